//! One broker, and very many clients at once that mean harm or do not know better.
//!
//! A storm is good if clients that mean well notice no more of it than they may, and if what it takes stays within its bounds.
//! `victim` is the broker, `witness` the clients that mean well; every other file is a storm.

mod reconnect;
mod silent;
mod stalled;
mod tokens;
mod victim;
mod witness;

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    figure::Figure,
    report::{Progress, Table},
};
use reconnect::By;

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Storm {
    /// 5,000 connections that send nothing, and 500 that stall in a TLS handshake.
    Silent,
    /// 100 subscribers that read nothing, at 20,000 deliveries a second in all.
    Stalled,
    /// All lose their connections at once, and come back: anonymously.
    Reconnect,
    /// The same over TLS, each with a certificate of its client.
    ReconnectCertificate,
    /// All come with a password that was not verified yet (argon2id), lose their connections, and come back.
    ReconnectPassword,
    /// The same with tokens (ES256), one of each client.
    ReconnectToken,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program of the broker.
    pub program: PathBuf,
    /// The storms.
    pub storms: Vec<Storm>,
    /// Clients that reconnect.
    pub clients: usize,
    /// How long subscribers are stalled.
    pub seconds: f64,
    /// Of topics, Client Identifiers and the times at which clients try again.
    pub seed: u64,
}

/// How one storm went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StormResult {
    /// Which one.
    pub storm: Storm,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// All storms.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// One after the other.
    pub storms: Vec<StormResult>,
}

/// Does all storms, each to a broker of its own.
pub fn run(plan: &Plan, progress: &Progress) -> Result<Results> {
    let mut storms = Vec::new();
    for &storm in &plan.storms {
        let figures = match storm {
            Storm::Silent => silent::run(plan),
            Storm::Stalled => stalled::run(plan, progress),
            Storm::Reconnect => reconnect::run(plan, By::Nothing),
            Storm::ReconnectCertificate => reconnect::run(plan, By::Certificate),
            Storm::ReconnectPassword => reconnect::run(plan, By::Password),
            Storm::ReconnectToken => reconnect::run(plan, By::Token),
        };
        let figures = figures.with_context(|| format!("storm {}", storm.name()))?;
        figures.iter().for_each(|figure| progress.say(&format!("{}: {figure}", storm.name())));
        storms.push(StormResult { storm, figures });
    }
    Ok(Results { storms })
}

impl Storm {
    /// As on the command line.
    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Results {
    /// Every figure is within its limit.
    pub fn is_ok(&self) -> bool {
        self.storms.iter().flat_map(|storm| &storm.figures).all(Figure::is_ok)
    }
}

impl std::fmt::Display for Results {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new(&["storm: figure", "value", "limit", ""]);
        for StormResult { storm, figures } in &self.storms {
            for figure in figures {
                let name = format!("{}: {}", storm.name(), figure.name);
                table.row(vec![name, figure.value_text(), figure.limit_text(), figure.verdict().into()]);
            }
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Unit;

    #[test]
    fn one_figure_beyond_its_limit_is_a_storm_that_went_badly() {
        let result = |value| {
            let figures = vec![
                Figure::new("informs", 1e9, Unit::Count),
                Figure::new("CONNECT, longest", value, Unit::Microseconds).at_most(1e6),
            ];
            Results { storms: vec![StormResult { storm: Storm::ReconnectPassword, figures }] }
        };
        assert!(result(1e6).is_ok());
        let bad = result(1.1e6);
        assert!(!bad.is_ok());
        let text = bad.to_string();
        assert!(text.contains("reconnect-password: CONNECT, longest") && text.contains("MISSED"), "{text}");
    }
}
