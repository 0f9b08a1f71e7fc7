//! The rows by which brokers are compared, and what is aimed at in each.

use anyhow::{Result, bail};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use serde::{Deserialize, Serialize};

use crate::{
    link::{Layer, TLS_TERMS},
    scenario::{
        PATIENCE_SECONDS, connect,
        traffic::{self, Shape},
    },
};

/// The row that others are measured against.
const BASELINE: &str = "p2p-qos0";

/// Connections a second that no broker reaches on two cores, so that all are opened as fast as it goes.
const CONNECTIONS_MAX: f64 = 20_000.0;

/// What is aimed at in a row, in CPU time per message.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// At most this multiple of what B uses.
    OfOther(f64),
    /// At most this multiple of what A itself uses in [`BASELINE`].
    OfBaseline(f64),
    /// At most this multiple of what A itself uses in the same row when it counts nothing.
    Uncounted(f64),
    /// At most this multiple of what B uses, and at most so many nanoseconds more than A itself uses in [`BASELINE`].
    OfOtherAndAbove(f64, f64),
    /// None: the figures are of interest by themselves.
    Nothing,
}

/// What lies over the sockets of a row's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Nothing.
    Plain,
    /// TLS, with a whole handshake for each connection.
    Tls,
    /// TLS, where a client resumes its last session if the broker lets it.
    ResumedTls,
}

impl Over {
    /// The same for clients.
    pub fn layer(self) -> Result<Layer> {
        match self {
            Self::Plain => Ok(Layer::Plain),
            Self::Tls => Layer::tls(false, None),
            Self::ResumedTls => Layer::tls(true, None),
        }
    }
}

/// What a row does.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Messages.
    Traffic(traffic::Plan),
    /// Connections.
    Connect(connect::Plan),
}

impl Work {
    fn describe(&self) -> String {
        match self {
            Self::Traffic(plan) => plan.describe(),
            Self::Connect(plan) => plan.describe(),
        }
    }
}

impl Row {
    /// What is done, in words.
    pub fn describe(&self) -> String {
        let work = self.work.describe();
        match self.over {
            Over::Plain => work,
            Over::Tls => format!("{work} over {TLS_TERMS}"),
            Over::ResumedTls => format!("{work} over {TLS_TERMS}, resumed"),
        }
    }
}

/// One row of the comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is done.
    pub work: Work,
    /// Over what.
    pub over: Over,
    /// What is aimed at.
    pub target: Target,
}

/// All rows, in the order of the table, each with `seconds` to measure.
pub fn all(seconds: f64, seed: u64) -> Vec<Row> {
    let plan = |shape, publishers, subscribers, qos, window| traffic::Plan {
        shape,
        version: ProtocolVersion::V3_1_1,
        qos,
        payload_bytes: 64,
        window,
        publishers,
        subscribers,
        rate: None,
        keeps_sessions: false,
        look_ns: 0,
        churn_per_second: 0.0,
        seconds,
        warm_up_seconds: 0.5,
        patience_seconds: PATIENCE_SECONDS,
        seed,
    };
    let pairs = |qos, window| plan(Shape::Pairs, 50, 50, qos, window);
    let row = |name, plan, target| Row { name, work: Work::Traffic(plan), over: Over::Plain, target };
    let connect = connect::Plan { version: ProtocolVersion::V3_1_1, rate: 1000.0, seconds, warm_up_seconds: 0.5, seed };
    let connecting = |name, rate, over, target| Row {
        name,
        work: Work::Connect(connect::Plan { rate, ..connect.clone() }),
        over,
        target,
    };
    use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
    use Target::{Nothing, OfBaseline, OfOther, OfOtherAndAbove, Uncounted};
    vec![
        row("fan-out", plan(Shape::FanOut, 1, 50, AtMostOnce, 200), OfOther(0.12)),
        row("fan-in", plan(Shape::FanIn, 50, 1, AtMostOnce, 20), OfOther(0.20)),
        row(BASELINE, pairs(AtMostOnce, 20), OfOther(0.25)),
        row("p2p-qos1", pairs(AtLeastOnce, 20), OfOther(0.18)),
        row("p2p-qos2", pairs(ExactlyOnce, 20), OfOther(0.15)),
        row("shared", plan(Shape::Shared, 10, 10, AtLeastOnce, 100), OfOther(0.14)),
        row("window1-qos0", pairs(AtMostOnce, 1), OfOther(1.2)),
        row("window1-qos1", pairs(AtLeastOnce, 1), OfOther(1.2)),
        row(
            "paced",
            traffic::Plan { rate: Some(20_000.0), ..plan(Shape::Pairs, 500, 500, AtMostOnce, 20) },
            OfOther(1.2),
        ),
        row("payload-1k", traffic::Plan { payload_bytes: 1024, ..pairs(AtMostOnce, 20) }, OfOther(0.3)),
        row("churn", traffic::Plan { churn_per_second: 1000.0, ..pairs(AtMostOnce, 20) }, OfBaseline(1.3)),
        row("mqtt5", traffic::Plan { version: ProtocolVersion::V5, ..pairs(AtMostOnce, 20) }, OfBaseline(1.15)),
        row("metrics", pairs(AtMostOnce, 20), Uncounted(1.15)),
        connecting("connect", 1000.0, Over::Plain, OfOther(1.2)),
        Row { over: Over::Tls, ..row("tls", pairs(AtMostOnce, 20), OfOtherAndAbove(0.3, 500.0)) },
        connecting("tls-connect", 1000.0, Over::Tls, Nothing),
        connecting("tls-resume", 1000.0, Over::ResumedTls, Nothing),
        connecting("tls-connect-max", CONNECTIONS_MAX, Over::Tls, Nothing),
        connecting("tls-resume-max", CONNECTIONS_MAX, Over::ResumedTls, Nothing),
    ]
}

/// What rows with a target of their own broker are measured against.
pub fn baseline(seconds: f64, seed: u64) -> Option<Work> {
    all(seconds, seed).into_iter().find(|row| row.name == BASELINE).map(|row| row.work)
}

/// The rows called `names`, or all of them for `all`.
pub fn select(names: &[String], seconds: f64, seed: u64) -> Result<Vec<Row>> {
    let mut rows = all(seconds, seed);
    if let Some(unknown) = names.iter().find(|name| *name != "all" && !rows.iter().any(|row| row.name == name.as_str()))
    {
        let known: Vec<_> = rows.iter().map(|row| row.name).collect();
        bail!("there is no row {unknown}; there are: all, {}", known.join(", "));
    }
    rows.retain(|row| names.iter().any(|name| name == "all" || name == row.name));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(wanted: &[&str]) -> Result<Vec<&'static str>> {
        let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
        Ok(select(&wanted, 1.0, 0)?.into_iter().map(|row| row.name).collect())
    }

    #[test]
    fn rows_come_in_the_order_of_the_table() {
        assert_eq!(names(&["paced", "fan-in"]).unwrap(), ["fan-in", "paced"]);
        assert_eq!(names(&["all"]).unwrap().len(), all(1.0, 0).len());
    }

    #[test]
    fn an_unknown_row_is_refused_with_the_known_ones() {
        assert!(names(&["paced", "nonsense"]).unwrap_err().to_string().contains("fan-out"));
    }
}
