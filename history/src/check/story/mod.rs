//! The story behind the events: connections, sessions, subscriptions, messages and deliveries.
//!
//! Where the client cannot know, both bounds are kept: what *must* be so by its knowledge, and what *may* be so. Checks
//! accuse only across the bound that suits the cluster.

mod connections;
mod packets;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::faults::{Faults, NEVER};
use crate::event::{Action, ClosedBy, MessageId, Nanoseconds, Symbol, What};
use crate::history::History;
use crate::settings::{SECOND, Settings};

/// No index.
pub(crate) const NONE: u32 = u32::MAX;

/// An event: its index and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) event: u32,
    pub(crate) at: Nanoseconds,
}

/// An answer to something sent, or sent for something received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) mark: Mark,
    pub(crate) reason: u8,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Symbol,
    pub(crate) node: u16,
    pub(crate) connect: Mark,
    pub(crate) clean_start: bool,
    /// The Session Expiry Interval may be anything between these, in seconds.
    pub(crate) expiry: (u32, u32),
    pub(crate) connack: Option<Answered>,
    pub(crate) session_present: bool,
    pub(crate) disconnect: Option<Answered>,
    disconnect_expiry: Option<u32>,
    disconnect_received: bool,
    pub(crate) closed: Option<(Mark, ClosedBy)>,
    last_received_at: Nanoseconds,
    /// The server still served it when this was sent, for it was answered.
    pub(crate) alive_at: Nanoseconds,
    /// The server's end of it lies between these.
    pub(crate) ended: (Nanoseconds, Nanoseconds),
    /// A normal DISCONNECT was acted on.
    pub(crate) left: bool,
    /// The CONNACK of the next connection of this client that was surely begun later.
    pub(crate) superseded: Option<Mark>,
    pub(crate) session: u32,
    /// The session it resumed may have been replaced at this time by a CONNECT that was not answered.
    void_at: Nanoseconds,
    /// Session Present must be 1; must be 0.
    pub(crate) must_resume: bool,
    pub(crate) must_be_new: bool,
    pub(crate) previous: u32,
    pub(crate) will: u32,
    pub(crate) will_delay: u32,
    open_sends: VecDeque<(u16, u32)>,
    open_subscribes: Vec<(u16, u32)>,
}

impl Connection {
    pub(crate) fn accepted(&self) -> Option<Mark> {
        self.connack.filter(|answer| answer.reason < 0x80).map(|answer| answer.mark)
    }

    pub(crate) fn closed_at(&self) -> Nanoseconds {
        self.closed.map_or(NEVER, |(mark, _)| mark.at)
    }
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Symbol,
    pub(crate) connections: Vec<u32>,
    pub(crate) spans: Vec<u32>,
    pub(crate) deliveries: Vec<u32>,
    /// It lives at least until the first, and not after the second.
    pub(crate) ends: (Nanoseconds, Nanoseconds),
    pub(crate) last_delivery_at: Nanoseconds,
    open_deliveries: Vec<(u16, u32)>,
    open_spans: Vec<u32>,
}

/// A subscription from a SUBSCRIBE to what replaced or ended it.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) session: u32,
    pub(crate) filter: Symbol,
    pub(crate) shared: bool,
    /// The filter as a topic if it has no wildcard, else its number among the wildcard filters.
    exact: Option<Symbol>,
    wildcard: u32,
    pub(crate) qos: u8,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    /// A SUBSCRIBE that may, and that must, read retained messages.
    pub(crate) may_read: bool,
    pub(crate) must_read: bool,
    pub(crate) subscribe: Mark,
    pub(crate) suback: Option<Mark>,
    pub(crate) connection: u32,
    /// Stands for sure after the first and before the second.
    pub(crate) must: (Nanoseconds, Nanoseconds),
    /// When the client said that it wants no more retained messages of it: UNSUBSCRIBE, or a SUBSCRIBE with Retain
    /// Handling 2, was sent.
    pub(crate) given_up_at: Nanoseconds,
    /// Since when the filter stands for sure, by this SUBSCRIBE or one that it replaced, whatever QoS they were granted.
    pub(crate) unbroken_since: Nanoseconds,
    /// Stands possibly after SUBSCRIBE was sent and not after this.
    pub(crate) may_until: Nanoseconds,
    pub(crate) ended_by: u32,
}

impl Span {
    /// A message sent at that time must be matched, and `until` it the subscription stands.
    pub(crate) fn must_take(&self, sent_at: Nanoseconds, until: Nanoseconds) -> bool {
        self.must.0 < sent_at && until < self.must.1
    }
}

/// One PUBLISH that a client sent.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) mark: Mark,
    pub(crate) message: u32,
    pub(crate) connection: u32,
    packet_id: u16,
    pub(crate) answer: Option<Answered>,
    /// The next PUBLISH of the same message.
    pub(crate) next: u32,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) id: MessageId,
    pub(crate) publisher: Symbol,
    pub(crate) topic: Symbol,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) empty: bool,
    pub(crate) expiry: Option<u32>,
    /// The connection whose will it is.
    pub(crate) will_of: u32,
    pub(crate) first_send: u32,
    last_send: u32,
    /// How often the cluster may take it for a new message.
    pub(crate) tries: u32,
    /// Where it was first seen, and the earliest time at which it may have been published.
    pub(crate) first: Mark,
    /// The first positive PUBACK or PUBREC, and the PUBLISH that it answers.
    pub(crate) acknowledged: Option<Mark>,
    pub(crate) accepted: Mark,
    /// Every try was refused.
    pub(crate) refused: bool,
    /// Its deliveries, as a range of [`Story::by_message`].
    deliveries: (u32, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// For a subscription that stood.
    Live,
    /// For a SUBSCRIBE.
    Retained,
    /// One of both: Retain As Published leaves no trace of the difference.
    Either,
}

#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) mark: Mark,
    pub(crate) connection: u32,
    pub(crate) session: u32,
    pub(crate) message: u32,
    pub(crate) topic: Symbol,
    pub(crate) qos: u8,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    pub(crate) kind: Kind,
    pub(crate) expiry: Option<u32>,
    pub(crate) acknowledged: Option<Mark>,
    /// QoS 2: the receiver had not stored its Packet Identifier. Else: DUP is not set.
    pub(crate) new: bool,
    /// Another message was in flight under its Packet Identifier on this connection: that delivery.
    pub(crate) collides: u32,
}

pub(crate) struct Story<'h> {
    pub(crate) history: &'h History,
    pub(crate) settings: &'h Settings,
    pub(crate) faults: Faults,
    pub(crate) connections: Vec<Connection>,
    /// The connection of each event; [`NONE`] for what is not a client's.
    pub(crate) connection_of: Vec<u32>,
    /// Connections by client symbol, as they were opened.
    pub(crate) clients: Vec<Vec<u32>>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) spans: Vec<Span>,
    pub(crate) messages: Vec<Message>,
    pub(crate) sends: Vec<Send>,
    pub(crate) deliveries: Vec<Delivery>,
    /// Deliveries ordered by message.
    by_message: Vec<u32>,
    /// SUBSCRIBEs and UNSUBSCRIBEs that were answered, by event.
    pub(crate) answered_subscribes: Vec<u32>,
    pub(crate) quiesced: Vec<Mark>,
    wildcards: HashMap<Symbol, u32>,
    /// Wildcard filters that match a topic, by topic symbol and wildcard number.
    wildcard_matches: Vec<Vec<bool>>,
    /// Spans that match a topic, by topic symbol; empty for symbols that are no topic of a message.
    by_topic: Vec<Vec<u32>>,
    message_of: NumberMap<MessageId, u32>,
    /// The last event's time.
    ended_at: Nanoseconds,
}

/// A hasher for numbers that nobody chose to collide.
#[derive(Default)]
pub(crate) struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// A map keyed by numbers of the history.
pub(crate) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<Multiply>>;

impl<'h> Story<'h> {
    pub(crate) fn read(history: &'h History, settings: &'h Settings) -> Self {
        let mut story = Self {
            history,
            settings,
            faults: Faults::read(history),
            connections: Vec::new(),
            connection_of: Vec::with_capacity(history.events().len()),
            clients: vec![Vec::new(); history.symbol_count()],
            sessions: Vec::new(),
            spans: Vec::new(),
            messages: Vec::new(),
            sends: Vec::new(),
            deliveries: Vec::new(),
            by_message: Vec::new(),
            answered_subscribes: Vec::new(),
            quiesced: Vec::new(),
            wildcards: HashMap::new(),
            wildcard_matches: Vec::new(),
            by_topic: Vec::new(),
            message_of: HashMap::default(),
            ended_at: history.events().last().map_or(0, |event| event.at),
        };
        story.read_connections();
        story.order_connections();
        story.bound_ends();
        for client in 0..story.clients.len() {
            story.read_sessions(client);
        }
        story.read_packets();
        story.match_topics();
        story.sort_deliveries();
        story
    }

    /// Whether that event ended subscriptions because the client wanted it so.
    pub(crate) fn is_unsubscribed_by(&self, event: u32) -> bool {
        let event = self.history.events().get(event as usize);
        event.is_some_and(|event| matches!(event.what, What::Client { action: Action::UnsubAck { .. }, .. }))
    }

    pub(crate) fn ended_at(&self) -> Nanoseconds {
        self.ended_at
    }

    /// Whether a subscription's filter matches a topic.
    pub(crate) fn matches(&self, span: &Span, topic: Symbol) -> bool {
        match span.exact {
            Some(exact) => exact == topic,
            None => {
                span.wildcard != NONE
                    && self.wildcard_matches[topic.0 as usize].get(span.wildcard as usize).copied().unwrap_or(false)
            }
        }
    }

    /// All subscriptions that match a topic, of any time and session.
    pub(crate) fn spans_on(&self, topic: Symbol) -> impl Iterator<Item = &Span> {
        self.by_topic[topic.0 as usize].iter().map(|&span| &self.spans[span as usize])
    }

    /// The subscriptions that may be the reason of a delivery.
    pub(crate) fn spans_of<'a>(&'a self, delivery: &'a Delivery) -> impl Iterator<Item = &'a Span> {
        let spans: &[u32] =
            if delivery.session == NONE { &[] } else { &self.sessions[delivery.session as usize].spans };
        spans
            .iter()
            .map(|&span| &self.spans[span as usize])
            .filter(move |span| span.subscribe.event < delivery.mark.event && self.matches(span, delivery.topic))
    }

    /// Deliveries of a message, in order of time.
    pub(crate) fn deliveries_of(&self, message: &Message) -> impl Iterator<Item = &Delivery> {
        let (from, to) = message.deliveries;
        self.by_message[from as usize..to as usize].iter().map(|&delivery| &self.deliveries[delivery as usize])
    }

    /// Every PUBLISH of a message; none for a will.
    pub(crate) fn sends_of(&self, message: &Message) -> impl Iterator<Item = &Send> {
        let mut next = message.first_send;
        std::iter::from_fn(move || {
            let send = self.sends.get(next as usize)?;
            next = send.next;
            Some(send)
        })
    }

    /// Whether the publisher sent `first` before `then` in a way that no second try can turn round: each PUBLISH of
    /// `then` follows all of `first`. If nothing is ever refused, it is enough that it follows one on its connection:
    /// second tries keep their order [MQTT-4.6.0-1].
    pub(crate) fn precedes(&self, first: &Message, then: &Message) -> bool {
        let opened = |send: &Send| self.connections[send.connection as usize].connect.event;
        let follows_all = |later: &Send| {
            self.sends_of(first).all(|send| send.mark.event < later.mark.event && opened(send) <= opened(later))
        };
        let follows_one = |later: &Send| {
            self.sends_of(first).any(|send| send.connection == later.connection && send.mark.event < later.mark.event)
        };
        first.publisher == then.publisher
            && self.sends_of(then).all(|later| follows_all(later) || (!self.settings.may_refuse && follows_one(later)))
    }

    /// Whether a session is connected at a time, by a connection that nothing has replaced.
    pub(crate) fn connected_at(&self, session: &Session, at: Nanoseconds) -> bool {
        session.connections.iter().any(|&c| {
            let connection = &self.connections[c as usize];
            connection.accepted().is_some_and(|connack| connack.at <= at)
                && connection.closed_at() > at
                && connection.superseded.is_none_or(|newer| newer.at > at)
        })
    }

    /// A session as a reader knows it.
    pub(crate) fn session_name(&self, session: u32) -> String {
        let session = &self.sessions[session as usize];
        let first = session.connections.first().map_or(0.0, |&c| self.connections[c as usize].connect.at as f64 / 1e9);
        format!("the session of {} begun at {first:.3} s", self.history.name(session.client))
    }

    /// The earliest that a message which was taken at `since` may be gone for its expiry: nodes' clocks differ.
    pub(crate) fn may_expire_at(&self, message: &Message, since: Nanoseconds) -> Nanoseconds {
        message.expiry.map_or(NEVER, |expiry| after(since, expiry).saturating_sub(self.settings.clock_skew_max))
    }

    /// Until when a session that moves may find on its new node what is still on its way there, although a later message, or
    /// the same, had come on the old one: at QoS 0 nobody keeps what a session had. Nothing is on its way for long, unless
    /// a fault keeps it.
    pub(crate) fn may_meet_again_until(&self, message: &Message) -> Nanoseconds {
        let sent_at = if message.will_of == NONE {
            self.sends_of(message).map(|send| send.mark.at).max().unwrap_or(message.first.at)
        } else {
            // When its connection may have ended last.
            let connection = &self.connections[message.will_of as usize];
            after(connection.ended.1, connection.will_delay)
        };
        self.faults.extend(sent_at, self.settings.recovery_max).saturating_add(self.settings.transit_max)
    }

    /// By which process a delivery came: the node, and how often it had crashed by then.
    pub(crate) fn process_of(&self, delivery: &Delivery) -> (u16, usize) {
        let node = self.connections[delivery.connection as usize].node;
        (node, self.faults.crashes_of(node, delivery.mark.at))
    }

    /// A message as a reader knows it.
    pub(crate) fn message_name(&self, message: &Message) -> String {
        let kind = if message.will_of == NONE { "message" } else { "will" };
        format!("{kind} m{} on {} (QoS {})", message.id.0, self.history.name(message.topic), message.qos)
    }
}

/// A time and an interval of seconds after it; `u32::MAX` seconds never pass.
pub(crate) fn after(at: Nanoseconds, seconds: u32) -> Nanoseconds {
    if seconds == u32::MAX { NEVER } else { at.saturating_add(u64::from(seconds) * SECOND) }
}
