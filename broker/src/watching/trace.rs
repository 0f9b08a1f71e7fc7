//! One client, or the topics that one filter matches, line by line as it goes on.
//!
//! A line is an object of JSON. Lines wait on the node where they came about until somebody takes them; a trace that nobody has asked
//! for lately ends, so none outlives whoever began it. What finds no room is counted, and the next who takes lines is told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use kentongan_proto::topic::{self, ParsedFilter};
use serde::{Deserialize, Serialize};

/// Traces on a node at a time.
const TRACES_MAX: usize = 8;

/// How long a trace goes on at most.
pub const SECONDS_MAX: u32 = 3600;

/// Lines that wait to be taken.
const LINES_MAX: usize = 2000;

/// Their bytes.
const LINES_BYTES_MAX: usize = 512 * 1024;

/// Bytes of a payload in a line.
pub const PAYLOAD_BYTES_MAX: usize = 1024;

/// A trace that nobody has asked for so long is over.
pub(super) const UNASKED_MS_MAX: u64 = 15_000;

/// What is traced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The client of this Client Identifier.
    Client(String),
    /// What is published to topics that this Topic Filter matches.
    Topic(String),
}

/// What a trace is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Which one it is, on all nodes.
    pub number: u64,
    /// What is traced.
    pub target: Target,
    /// For how long.
    pub seconds: u32,
    /// So much of each payload is shown.
    pub payload_bytes_max: usize,
}

/// Why there is no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTrace {
    /// Whoever asks may ask again.
    #[error("{TRACES_MAX} traces are on already: end one, or wait")]
    TooMany,
    /// Whoever asks has it wrong.
    #[error("that is no topic filter: {0}")]
    NoFilter(String),
}

/// Lines that were taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// Each an object of JSON.
    pub lines: Vec<String>,
    /// Lines that found no room since lines were taken before.
    pub left_out: u64,
    /// There will be no more.
    pub is_over: bool,
}

/// A line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    ts: u64,
    node: &'a str,
    event: &'a str,
    clientid: &'a str,
    #[serde(flatten)]
    what: What<'a>,
}

/// What came about.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum What<'a> {
    /// A packet that is no PUBLISH.
    Packet {
        /// Its kind.
        packet: &'a str,
    },
    /// A PUBLISH.
    Publish {
        /// Topic Name.
        topic: &'a str,
        /// Of this PUBLISH.
        qos: u8,
        /// Likewise.
        retain: bool,
        /// Of its payload.
        bytes: usize,
        /// Its beginning, if it is wanted.
        #[serde(skip_serializing_if = "Option::is_none")]
        payload: Option<&'a str>,
        /// Why it was refused.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    },
}

/// A PUBLISH, as whoever traces looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Traced<'a> {
    /// Topic Name.
    pub topic: &'a str,
    /// Of this PUBLISH.
    pub qos: u8,
    /// Likewise.
    pub retain: bool,
    /// The Application Message.
    pub payload: &'a [u8],
    /// Why it was refused, if it was.
    pub reason: Option<&'a str>,
}

/// Where and when something came about, and with whom.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
    /// Client Identifier.
    pub client_id: &'a str,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<String>,
    bytes: usize,
    left_out: u64,
}

#[derive(Debug)]
struct Trace {
    wanted: Wanted,
    ends_ms: u64,
    asked_ms: AtomicU64,
    waiting: Mutex<Waiting>,
}

impl Trace {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_of_client(&self, client_id: &str) -> bool {
        matches!(&self.wanted.target, Target::Client(wanted) if wanted == client_id)
    }

    fn is_of(&self, client_id: &str, topic: &str) -> bool {
        match &self.wanted.target {
            Target::Client(wanted) => wanted == client_id,
            Target::Topic(filter) => topic::matches(filter, topic),
        }
    }

    fn is_over(&self, now_ms: u64) -> bool {
        now_ms >= self.ends_ms || now_ms >= self.asked_ms.load(Ordering::Relaxed) + UNASKED_MS_MAX
    }

    fn add(&self, line: String) {
        let mut waiting = self.waiting();
        if waiting.lines.len() >= LINES_MAX || waiting.bytes + line.len() > LINES_BYTES_MAX {
            waiting.left_out += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line);
    }

    fn write(&self, scene: Scene<'_>, event: &str, what: What<'_>) {
        let Scene { node, wall_ms, client_id } = scene;
        // It has no map with keys that are no text, which is all that could fail.
        self.add(
            serde_json::to_string(&Line { ts: wall_ms, node, event, clientid: client_id, what }).unwrap_or_default(),
        );
    }
}

/// Whether the topics that a filter matches can be traced.
///
/// # Errors
/// It is no filter of topics.
pub fn check_filter(filter: &str) -> Result<(), NoTrace> {
    match ParsedFilter::parse(filter) {
        Ok(ParsedFilter::Plain(_)) => Ok(()),
        Ok(ParsedFilter::Shared(_)) => Err(NoTrace::NoFilter("leave out `$share/NAME/`".to_owned())),
        Err(error) => Err(NoTrace::NoFilter(error.to_string())),
    }
}

/// The traces of a node.
#[derive(Debug, Default)]
pub struct Traces(RwLock<Vec<Arc<Trace>>>);

impl Traces {
    fn all(&self) -> RwLockReadGuard<'_, Vec<Arc<Trace>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, wanted: Wanted, now_ms: u64) -> Result<(), NoTrace> {
        if let Target::Topic(filter) = &wanted.target {
            check_filter(filter)?;
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|trace| trace.wanted.number == wanted.number) {
            return Ok(());
        }
        if all.len() >= TRACES_MAX {
            return Err(NoTrace::TooMany);
        }
        let wanted = Wanted { payload_bytes_max: wanted.payload_bytes_max.min(PAYLOAD_BYTES_MAX), ..wanted };
        all.push(Arc::new(Trace {
            ends_ms: now_ms + u64::from(wanted.seconds.min(SECONDS_MAX)) * 1000,
            asked_ms: AtomicU64::new(now_ms),
            wanted,
            waiting: Mutex::default(),
        }));
        Ok(())
    }

    /// Ends one. Returns how many are left.
    pub(super) fn end(&self, number: u64) -> usize {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|trace| trace.wanted.number != number);
        all.len()
    }

    /// Ends those that are over. Returns how many are left.
    pub(super) fn end_old(&self, now_ms: u64) -> usize {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|trace| !trace.is_over(now_ms));
        all.len()
    }

    /// Takes what waits of a trace. `None`: there is no such trace, or no more.
    #[must_use]
    pub fn take(&self, number: u64, now_ms: u64) -> Option<Lines> {
        let trace = self.all().iter().find(|trace| trace.wanted.number == number).cloned()?;
        trace.asked_ms.store(now_ms, Ordering::Relaxed);
        let mut waiting = trace.waiting();
        waiting.bytes = 0;
        let lines = std::mem::take(&mut waiting.lines).into();
        Some(Lines { lines, left_out: std::mem::take(&mut waiting.left_out), is_over: now_ms >= trace.ends_ms })
    }

    /// Something was told of a client, as JSON.
    pub fn on_event(&self, client_id: &str, json: impl FnOnce() -> String) {
        let all = self.all();
        let mut wanted = all.iter().filter(|trace| trace.is_of_client(client_id)).peekable();
        if wanted.peek().is_some() {
            let json = json();
            wanted.for_each(|trace| trace.add(json.clone()));
        }
    }

    /// A client has sent a packet, or was sent one.
    pub fn on_packet(&self, scene: Scene<'_>, event: &str, packet: &str) {
        for trace in self.all().iter().filter(|trace| trace.is_of_client(scene.client_id)) {
            trace.write(scene, event, What::Packet { packet });
        }
    }

    /// The same of a PUBLISH.
    pub fn on_publish(&self, scene: Scene<'_>, event: &str, publish: Traced<'_>) {
        for trace in self.all().iter().filter(|trace| trace.is_of(scene.client_id, publish.topic)) {
            let Traced { topic, qos, retain, payload, reason } = publish;
            let shown = &payload[..payload.len().min(trace.wanted.payload_bytes_max)];
            let text = String::from_utf8_lossy(shown);
            let payload = (trace.wanted.payload_bytes_max > 0).then_some(&*text);
            let bytes = publish.payload.len();
            trace.write(scene, event, What::Publish { topic, qos, retain, bytes, payload, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(number: u64, target: Target) -> Wanted {
        Wanted { number, target, seconds: 60, payload_bytes_max: 3 }
    }

    const SCENE: Scene<'_> = Scene { node: "n1", wall_ms: 5, client_id: "a" };

    fn publish(topic: &str) -> Traced<'_> {
        Traced { topic, qos: 1, retain: true, payload: b"hello", reason: None }
    }

    #[test]
    fn a_trace_has_what_is_of_its_client_or_topic_and_nothing_else() {
        let traces = Traces::default();
        traces.begin(wanted(1, Target::Client("a".into())), 0).unwrap();
        traces.begin(wanted(2, Target::Topic("t/+".into())), 0).unwrap();
        traces.on_publish(SCENE, "publish.received", publish("u"));
        traces.on_publish(Scene { client_id: "b", ..SCENE }, "publish.sent", publish("t/1"));
        traces.on_publish(Scene { client_id: "b", ..SCENE }, "publish.sent", publish("u"));
        traces.on_packet(SCENE, "packet.received", "pingreq");
        traces.on_event("b", || panic!("nobody traces it"));
        traces.on_event("a", || String::from("{}"));
        let of_client = traces.take(1, 0).unwrap();
        assert_eq!(
            of_client.lines,
            [
                r#"{"ts":5,"node":"n1","event":"publish.received","clientid":"a","topic":"u","qos":1,"retain":true,"bytes":5,"payload":"hel"}"#,
                r#"{"ts":5,"node":"n1","event":"packet.received","clientid":"a","packet":"pingreq"}"#,
                "{}",
            ]
        );
        let of_topic = traces.take(2, 0).unwrap();
        assert_eq!(of_topic.lines.len(), 1);
        assert!(of_topic.lines[0].contains(r#""clientid":"b","topic":"t/1""#));
        assert_eq!(traces.take(1, 0).unwrap(), Lines::default(), "lines are taken once");
        assert_eq!(traces.take(3, 0), None);
    }

    #[test]
    fn what_waits_is_bounded_and_what_was_left_out_is_counted() {
        let traces = Traces::default();
        traces.begin(wanted(1, Target::Client("a".into())), 0).unwrap();
        for _ in 0..LINES_MAX + 7 {
            traces.on_packet(SCENE, "packet.received", "pingreq");
        }
        let taken = traces.take(1, 0).unwrap();
        assert_eq!((taken.lines.len(), taken.left_out), (LINES_MAX, 7));
        let long = "t".repeat(60_000);
        for _ in 0..100 {
            traces.on_publish(SCENE, "publish.received", publish(&long));
        }
        let taken = traces.take(1, 0).unwrap();
        assert_eq!(taken.lines.len() as u64 + taken.left_out, 100);
        assert!(taken.lines.iter().map(String::len).sum::<usize>() <= LINES_BYTES_MAX && taken.lines.len() >= 8);
    }

    #[test]
    fn traces_are_few_and_end() {
        let traces = Traces::default();
        for number in 0..TRACES_MAX as u64 {
            traces.begin(wanted(number, Target::Client("a".into())), 0).unwrap();
        }
        traces.begin(wanted(0, Target::Client("a".into())), 0).expect("it is there already");
        assert_eq!(traces.begin(wanted(99, Target::Client("a".into())), 0), Err(NoTrace::TooMany));
        assert!(traces.take(0, 14_000).is_some());
        assert_eq!(traces.end_old(UNASKED_MS_MAX), 1, "one was asked for meanwhile");
        assert!(
            traces.take(0, 28_000).is_some() && traces.take(0, 42_000).is_some() && traces.take(0, 56_000).is_some()
        );
        assert!(!traces.take(0, 59_999).unwrap().is_over);
        assert!(traces.take(0, 60_000).unwrap().is_over);
        assert_eq!(traces.end_old(60_000), 0);
        for wrong in ["a/#/b", "", "$share/g/a"] {
            assert!(
                matches!(traces.begin(wanted(1, Target::Topic(wrong.into())), 0), Err(NoTrace::NoFilter(_))),
                "{wrong}"
            );
        }
    }
}
