//! A history in memory and in a file.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, Write};

use crate::event::{Action, Delivery, Event, Nanoseconds, Publish, Symbol, What};

/// What was seen of one run, in the order of the observer's clock.
#[derive(Debug, Clone, Default)]
pub struct History {
    names: Vec<Box<str>>,
    symbols: HashMap<Box<str>, Symbol>,
    events: Vec<Event>,
}

/// Why a file is not a history.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("reading the history: {0}")]
    Io(#[from] io::Error),
    /// A line is not an event; the recorder wrote something else, or was cut off.
    #[error("line {line} of the history is no event: {error}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// The symbol of a text, which is kept once.
    pub fn symbol(&mut self, name: &str) -> Symbol {
        if let Some(symbol) = self.symbols.get(name) {
            return *symbol;
        }
        let symbol = Symbol(self.names.len() as u32);
        self.names.push(name.into());
        self.symbols.insert(name.into(), symbol);
        symbol
    }

    /// The text of a symbol of this history.
    pub fn name(&self, symbol: Symbol) -> &str {
        &self.names[symbol.0 as usize]
    }

    /// The symbol of a text that is already kept.
    pub(crate) fn find(&self, name: &str) -> Option<Symbol> {
        self.symbols.get(name).copied()
    }

    /// How many symbols there are.
    pub(crate) fn symbol_count(&self) -> usize {
        self.names.len()
    }

    /// Appends an event. Events of one client come in its order; between clients [`History::sort`] mends the order.
    pub fn push(&mut self, at: Nanoseconds, what: What) {
        self.events.push(Event { at, what });
    }

    /// Appends what a client sent, received or saw.
    pub fn push_client(&mut self, at: Nanoseconds, client: Symbol, connection: u32, node: u16, action: Action) {
        self.push(at, What::Client { client, connection, node, action });
    }

    /// The events.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The events, for whoever edits a history.
    pub fn events_mut(&mut self) -> &mut Vec<Event> {
        &mut self.events
    }

    /// Orders the events by time; those of one time keep their order.
    pub fn sort(&mut self) {
        self.events.sort_by_key(|event| event.at);
    }

    /// Writes one JSON object a line.
    pub fn write_json_lines(&self, mut to: impl Write) -> io::Result<()> {
        for event in &self.events {
            let event: Event<&str> = event.clone().map(&mut |symbol| self.name(symbol));
            serde_json::to_writer(&mut to, &event)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    }

    /// Reads what [`History::write_json_lines`] wrote, possibly several such files after one another, and orders it.
    pub fn read_json_lines(from: impl BufRead) -> Result<Self, ReadError> {
        let mut history = Self::new();
        for (index, line) in from.lines().enumerate() {
            let line = line?;
            if line.is_empty() {
                continue;
            }
            let event: Event<String> =
                serde_json::from_str(&line).map_err(|error| ReadError::Line { line: index + 1, error })?;
            let event = event.map(&mut |text: String| history.symbol(&text));
            history.events.push(event);
        }
        history.sort();
        Ok(history)
    }

    /// One event as a line for a reader.
    pub fn describe(&self, index: usize) -> impl fmt::Display + '_ {
        Described { history: self, event: &self.events[index] }
    }
}

struct Described<'h> {
    history: &'h History,
    event: &'h Event,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.event.clone().map(&mut |symbol| self.history.name(symbol));
        write!(f, "{:>12.6} s  ", self.event.at as f64 / 1e9)?;
        match event.what {
            What::Client { client, connection, node, action } => {
                write!(f, "{client} (connection {connection}, node {node}): ")?;
                describe_action(f, &action)
            }
            What::NodeCrashed { node } => write!(f, "node {node} crashed"),
            What::NodeRecovered { node } => write!(f, "node {node} recovered"),
            What::FaultBegan { fault, kind } => write!(f, "fault {fault} began: {kind}"),
            What::FaultHealed { fault } => write!(f, "fault {fault} healed"),
            What::Dropped { reason, count, client } => {
                write!(f, "{count} dropped, counted as {reason}")?;
                client.map_or(Ok(()), |client| write!(f, " of {client}"))
            }
            What::Registry { owners, routes, leaderless } => {
                write!(f, "registry: owners {owners:?}, routes {routes:?}, leaderless {leaderless:?}")
            }
            What::Quiesced => write!(f, "quiesced"),
        }
    }
}

fn describe_action(f: &mut fmt::Formatter<'_>, action: &Action<&str>) -> fmt::Result {
    let flag = |set: bool, name: &'static str| if set { name } else { "" };
    match action {
        Action::ConnectSent(connect) => {
            write!(f, "-> CONNECT{}", flag(connect.clean_start, " clean"))?;
            write!(f, " expiry {}", connect.session_expiry)?;
            match &connect.will {
                Some(will) => write!(f, " will m{} on {} delay {}", will.message.0, will.topic, will.delay),
                None => Ok(()),
            }
        }
        Action::ConnAck { reason, session_present, .. } => {
            write!(f, "<- CONNACK {reason:#04x} session present {}", u8::from(*session_present))
        }
        Action::SubscribeSent(subscribe) => {
            write!(f, "-> SUBSCRIBE {}", subscribe.packet_id)?;
            for filter in &subscribe.filters {
                write!(f, " {} qos{}{}", filter.filter, filter.qos, flag(filter.no_local, " no-local"))?;
            }
            Ok(())
        }
        Action::SubAck { packet_id, reasons } => write!(f, "<- SUBACK {packet_id} {reasons:x?}"),
        Action::UnsubscribeSent { packet_id, filters } => write!(f, "-> UNSUBSCRIBE {packet_id} {filters:?}"),
        Action::UnsubAck { packet_id, reasons } => write!(f, "<- UNSUBACK {packet_id} {reasons:x?}"),
        Action::PublishSent(publish) => {
            let Publish { packet_id, dup, qos, retain, topic, expiry, message, empty } = publish;
            write!(f, "-> PUBLISH {packet_id} m{} on {topic} qos{qos}", message.0)?;
            write!(f, "{}{}{}", flag(*retain, " retain"), flag(*dup, " dup"), flag(*empty, " empty"))?;
            expiry.map_or(Ok(()), |expiry| write!(f, " expiry {expiry}"))
        }
        Action::Delivered(delivery) => {
            let Delivery { packet_id, dup, qos, retain, topic, message, expiry, .. } = delivery;
            write!(f, "<- PUBLISH {packet_id} ")?;
            match message {
                Some(message) => write!(f, "m{}", message.0)?,
                None => write!(f, "empty")?,
            }
            write!(f, " on {topic} qos{qos}{}{}", flag(*retain, " retain"), flag(*dup, " dup"))?;
            expiry.map_or(Ok(()), |expiry| write!(f, " expiry {expiry}"))
        }
        Action::PubAckReceived(answer) => write!(f, "<- PUBACK {} {:#04x}", answer.packet_id, answer.reason),
        Action::PubRecReceived(answer) => write!(f, "<- PUBREC {} {:#04x}", answer.packet_id, answer.reason),
        Action::PubRelSent(answer) => write!(f, "-> PUBREL {} {:#04x}", answer.packet_id, answer.reason),
        Action::PubCompReceived(answer) => write!(f, "<- PUBCOMP {} {:#04x}", answer.packet_id, answer.reason),
        Action::PubAckSent(answer) => write!(f, "-> PUBACK {} {:#04x}", answer.packet_id, answer.reason),
        Action::PubRecSent(answer) => write!(f, "-> PUBREC {} {:#04x}", answer.packet_id, answer.reason),
        Action::PubRelReceived(answer) => write!(f, "<- PUBREL {} {:#04x}", answer.packet_id, answer.reason),
        Action::PubCompSent(answer) => write!(f, "-> PUBCOMP {} {:#04x}", answer.packet_id, answer.reason),
        Action::PingResp => write!(f, "<- PINGRESP"),
        Action::DisconnectSent { reason, .. } => write!(f, "-> DISCONNECT {reason:#04x}"),
        Action::DisconnectReceived { reason } => write!(f, "<- DISCONNECT {reason:#04x}"),
        Action::ConnectionClosed { by } => write!(f, "closed by {by:?}"),
    }
}
