//! The story behind the events: connections, sessions, subscriptions, messages and deliveries.
//!
//! Where the client cannot know, both bounds are kept: what *must* be so by its knowledge, and what *may* be so. Checks
//! accuse only across the bound that suits the cluster.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::faults::{Faults, NEVER};
use crate::event::{Action, ClosedBy, MessageId, Nanoseconds, Publish, Subscribe, Symbol, What};
use crate::history::History;
use crate::matching;
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

    // Connections and their bounds.

    fn read_connections(&mut self) {
        let mut numbers: NumberMap<u64, u32> = HashMap::default();
        for (index, event) in self.history.events().iter().enumerate() {
            let mark = Mark { event: index as u32, at: event.at };
            let What::Client { client, connection, node, ref action } = event.what else {
                self.connection_of.push(NONE);
                if event.what == What::Quiesced {
                    self.quiesced.push(mark);
                }
                continue;
            };
            let number = (u64::from(client.0) << 32) | u64::from(connection);
            let connection = *numbers.entry(number).or_insert_with(|| {
                self.clients[client.0 as usize].push(self.connections.len() as u32);
                self.connections.push(Connection::new(client, node, mark));
                self.connections.len() as u32 - 1
            });
            self.connection_of.push(connection);
            self.connections[connection as usize].see(mark, action);
        }
    }

    /// Which connection follows which.
    fn order_connections(&mut self) {
        for client in &self.clients {
            let mut accepted: Vec<(Mark, u32)> =
                client.iter().filter_map(|&c| Some((self.connections[c as usize].accepted()?, c))).collect();
            accepted.sort_unstable_by_key(|(mark, _)| mark.event);
            for (index, &(mark, old)) in accepted.iter().enumerate() {
                let newer = accepted[index + 1..]
                    .iter()
                    .find(|&&(_, newer)| self.connections[newer as usize].connect.event > mark.event);
                self.connections[old as usize].superseded = newer.map(|&(mark, _)| mark);
                if let Some(&(_, next)) = accepted.get(index + 1) {
                    self.connections[next as usize].previous = old;
                }
            }
        }
    }

    /// When the server may have taken each connection for ended.
    fn bound_ends(&mut self) {
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let mut from = NEVER;
            let mut until = NEVER;
            if let Some((closed, by)) = connection.closed {
                // What came last may have been under way for a while, longer than the server's end took.
                let last = connection.last_received_at.saturating_sub(self.settings.transit_max);
                let disturbed =
                    self.faults.overlap(last, closed.at) || self.faults.node_down(connection.node, last, closed.at);
                from = if disturbed { last } else { closed.at.saturating_sub(self.settings.transit_max).max(last) };
                until = self.faults.extend(closed.at, self.settings.detection_max);
                // A node that is cut off goes on answering PINGREQ when the others have taken it for dead.
                if let Some(accepted) = connection.accepted()
                    && let Some(began) = self.faults.first_within(accepted.at, closed.at)
                {
                    from = from.min(began);
                }
                if let Some(disconnect) = connection.disconnect {
                    from = from.min(disconnect.mark.at);
                    // A DISCONNECT counts once the server has closed the connection, unless something else may have.
                    let acted = by == ClosedBy::Server
                        && !connection.disconnect_received
                        && !self.faults.node_down(connection.node, disconnect.mark.at, closed.at)
                        && connection.superseded.is_none_or(|newer| newer.at > closed.at);
                    if acted {
                        until = closed.at;
                    }
                    let connection = &mut self.connections[index];
                    connection.left = acted && disconnect.reason == 0;
                    if let Some(expiry) = connection.disconnect_expiry {
                        let (low, high) = connection.expiry;
                        connection.expiry = if acted { (expiry, expiry) } else { (low.min(expiry), high.max(expiry)) };
                    }
                }
            }
            if let Some(newer) = self.connections[index].superseded {
                let connect = self.connections[self.connection_of[newer.event as usize] as usize].connect;
                from = from.min(connect.at);
                until = until.min(newer.at);
            }
            self.connections[index].ended = (from, until);
        }
    }

    // Sessions.

    fn read_sessions(&mut self, client: usize) {
        let all = std::mem::take(&mut self.clients[client]);
        let mut accepted: Vec<u32> =
            all.iter().copied().filter(|&c| self.connections[c as usize].accepted().is_some()).collect();
        accepted.sort_unstable_by_key(|&c| self.connections[c as usize].accepted().map(|mark| mark.event));
        let unsure: Vec<u32> =
            all.iter().copied().filter(|&c| self.connections[c as usize].accepted().is_none()).collect();
        for &c in &accepted {
            self.judge_session_present(c, &unsure);
            self.enter_session(c, &unsure);
        }
        for &c in &unsure {
            let connect = self.connections[c as usize].connect;
            if let Some(session) = self.session_before(&accepted, connect.event) {
                let ends = &mut self.sessions[session as usize].ends;
                ends.0 = ends.0.min(connect.at);
            }
        }
        self.clients[client] = all;
    }

    /// The session whose last connection was accepted before that event.
    fn session_before(&self, accepted: &[u32], event: u32) -> Option<u32> {
        let last = accepted.iter().rev().find(|&&c| self.connections[c as usize].connect.event < event)?;
        let session = self.connections[*last as usize].session;
        (self.sessions[session as usize].connections.last() == Some(last)).then_some(session)
    }

    /// Until when a CONNECT that was not answered with success may still be carried out.
    fn effect_until(&self, unsure: &Connection) -> Nanoseconds {
        let given_up = unsure.connack.map_or(unsure.closed_at(), |answer| answer.mark.at);
        if given_up == NEVER { NEVER } else { self.faults.extend(given_up, self.settings.detection_max) }
    }

    /// Those CONNECTs of unknown fate that may have been carried out between two accepted ones.
    fn unsure_between<'a>(&'a self, unsure: &'a [u32], c: u32) -> impl Iterator<Item = &'a Connection> {
        let connection = &self.connections[c as usize];
        let connack_at = connection.accepted().map_or(NEVER, |mark| mark.at);
        let since =
            if connection.previous == NONE { 0 } else { self.connections[connection.previous as usize].connect.at };
        unsure
            .iter()
            .map(|&u| &self.connections[u as usize])
            .filter(move |other| other.connect.at < connack_at && self.effect_until(other) >= since)
    }

    fn judge_session_present(&mut self, c: u32, unsure: &[u32]) {
        let connection = &self.connections[c as usize];
        let Some(connack) = connection.accepted() else { return };
        let connect_at = connection.connect.at;
        let previous = (connection.previous != NONE).then(|| &self.connections[connection.previous as usize]);
        let settings = self.settings;
        let mut must_resume = false;
        let mut may_resume = !settings.starts_empty;
        if let Some(previous) = previous {
            let racing = previous.accepted().is_some_and(|mark| mark.event > connection.connect.event);
            let (low, high) = previous.expiry;
            let lives_until = after(previous.ended.0, low).saturating_sub(settings.clock_skew_max);
            must_resume = !racing && low > 0 && lives_until >= connack.at;
            let gone_at =
                after(previous.ended.1, high).saturating_add(settings.expiry_late_max + settings.clock_skew_max);
            may_resume |= racing || gone_at >= connect_at;
            // An open connection is taken over: whether a session of no expiry survives that, nobody says.
            may_resume |= previous.ended.1 >= connect_at;
        }
        for other in self.unsure_between(unsure, c) {
            may_resume = true;
            must_resume &= !other.clean_start
                && other.expiry.0 > 0
                && previous.is_some_and(|previous| {
                    after(previous.ended.0, other.expiry.0.min(previous.expiry.0)) >= connack.at
                });
        }
        let clean_start = connection.clean_start;
        let connection = &mut self.connections[c as usize];
        connection.must_resume = must_resume && !clean_start;
        connection.must_be_new = clean_start || !may_resume;
    }

    fn enter_session(&mut self, c: u32, unsure: &[u32]) {
        let connection = &self.connections[c as usize];
        let previous = connection.previous;
        let connect = connection.connect;
        let Some(connack) = connection.accepted() else { return };
        let previous_session = if previous == NONE { NONE } else { self.connections[previous as usize].session };
        let session = if connection.session_present && previous_session != NONE {
            let void = self.unsure_between(unsure, c).collect::<Vec<_>>();
            let doubtful = void.iter().any(|other| other.clean_start)
                || void.len() > 1
                || (!void.is_empty() && !connection.must_resume);
            let void_at = if doubtful { void.iter().map(|other| other.connect.at).min() } else { None };
            self.connections[c as usize].void_at = void_at.unwrap_or(NEVER);
            previous_session
        } else {
            if previous_session != NONE {
                let ends = &mut self.sessions[previous_session as usize].ends;
                *ends = (ends.0.min(connect.at), ends.1.min(connack.at));
            }
            self.sessions.push(Session::new(self.connections[c as usize].client));
            self.sessions.len() as u32 - 1
        };
        let connection = &mut self.connections[c as usize];
        connection.session = session;
        let (low, high) = connection.expiry;
        let ends = (after(connection.ended.0, low), after(connection.ended.1, high));
        let entered = &mut self.sessions[session as usize];
        entered.connections.push(c);
        entered.ends = (ends.0, ends.1.saturating_add(self.settings.expiry_late_max));
    }

    // Packets.

    fn read_packets(&mut self) {
        for index in 0..self.history.events().len() {
            let c = self.connection_of[index];
            if c == NONE {
                continue;
            }
            let event = &self.history.events()[index];
            let mark = Mark { event: index as u32, at: event.at };
            if let What::Client { action, .. } = &event.what {
                self.read_packet(mark, c, action);
            }
        }
    }

    fn read_packet(&mut self, mark: Mark, c: u32, action: &Action) {
        match action {
            Action::ConnectSent(connect) => {
                if let Some(will) = &connect.will {
                    self.add_will(mark, c, will);
                }
            }
            Action::ConnAck { .. } => self.resume_spans(c),
            Action::SubscribeSent(subscribe) => self.subscribe_sent(mark, c, subscribe),
            Action::SubAck { packet_id, reasons } => self.subscribe_answered(mark, c, *packet_id, reasons),
            Action::UnsubscribeSent { packet_id, filters } => {
                self.connections[c as usize].open_subscribes.push((*packet_id, mark.event));
                self.unsubscribe_sent(mark, c, filters);
            }
            Action::UnsubAck { packet_id, reasons } => self.unsubscribe_answered(mark, c, *packet_id, reasons),
            Action::PublishSent(publish) => self.publish_sent(mark, c, publish),
            Action::PubAckReceived(answer) | Action::PubRecReceived(answer) => {
                self.publish_answered(mark, c, answer.packet_id, answer.reason);
            }
            Action::Delivered(delivery) => self.delivered(mark, c, delivery),
            Action::PubAckSent(answer) => self.acknowledged(mark, c, answer.packet_id, true),
            Action::PubRecSent(answer) => self.acknowledged(mark, c, answer.packet_id, answer.reason >= 0x80),
            Action::PubRelReceived(answer) => {
                if let Some(session) = self.session_mut(c) {
                    session.open_deliveries.retain(|&(packet_id, _)| packet_id != answer.packet_id);
                }
            }
            _ => {}
        }
    }

    fn session_mut(&mut self, c: u32) -> Option<&mut Session> {
        let session = self.connections[c as usize].session;
        (session != NONE).then(|| &mut self.sessions[session as usize])
    }

    fn add_will(&mut self, mark: Mark, c: u32, will: &crate::event::Will) {
        let index = self.messages.len() as u32;
        let connection = &mut self.connections[c as usize];
        connection.will = index;
        connection.will_delay = will.delay;
        let first = mark;
        let message = Message {
            id: will.message,
            publisher: connection.client,
            topic: will.topic,
            qos: will.qos,
            retain: will.retain,
            empty: false,
            expiry: None,
            will_of: c,
            first_send: NONE,
            last_send: NONE,
            tries: 1,
            first,
            acknowledged: None,
            accepted: first,
            refused: false,
            deliveries: (0, 0),
        };
        self.messages.push(message);
        self.message_of.insert(will.message, index);
    }

    /// Subscriptions of a session that may have been replaced meanwhile are no longer sure.
    fn resume_spans(&mut self, c: u32) {
        let connection = &self.connections[c as usize];
        let (session, void_at) = (connection.session, connection.void_at);
        if session == NONE || void_at == NEVER {
            return;
        }
        for &span in &self.sessions[session as usize].open_spans {
            let must = &mut self.spans[span as usize].must;
            must.1 = must.1.min(void_at);
        }
    }

    fn subscribe_sent(&mut self, mark: Mark, c: u32, subscribe: &Subscribe) {
        self.connections[c as usize].open_subscribes.push((subscribe.packet_id, mark.event));
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        for subscription in &subscribe.filters {
            let name = self.history.name(subscription.filter);
            let share = matching::split_share(name);
            let plain = share.map_or(name, |(_, filter)| filter);
            let mut span = Span {
                session,
                filter: subscription.filter,
                shared: share.is_some(),
                exact: None,
                wildcard: NONE,
                qos: subscription.qos,
                no_local: subscription.no_local,
                retain_as_published: subscription.retain_as_published,
                may_read: share.is_none() && subscription.retain_handling < 2,
                must_read: share.is_none() && subscription.retain_handling == 0,
                subscribe: mark,
                suback: None,
                connection: c,
                must: (NEVER, NEVER),
                given_up_at: NEVER,
                unbroken_since: NEVER,
                may_until: NEVER,
                ended_by: NONE,
            };
            if plain.contains(['+', '#']) {
                let number = self.wildcards.len() as u32;
                span.wildcard = *self.wildcards.entry(subscription.filter).or_insert(number);
            } else {
                span.exact = self.history.find(plain);
            }
            let replaced = self.open_span(session, subscription.filter);
            // From now on either of the two may be in force; the answer will tell.
            if let Some(old) = replaced {
                let old = &mut self.spans[old as usize];
                old.must.1 = old.must.1.min(mark.at);
                if subscription.retain_handling == 2 {
                    old.given_up_at = old.given_up_at.min(mark.at);
                }
            }
            if subscription.retain_handling == 1 {
                // Retain Handling 1 reads only for a new subscription: sure if none may stand. What the one before it reads
                // may still be on its way.
                span.must_read = replaced.is_none() && share.is_none();
                span.may_read &= replaced.is_none_or(|old| {
                    let old = &self.spans[old as usize];
                    old.must.0 == NEVER || old.must.1 < mark.at || old.may_read
                });
            }
            let index = self.spans.len() as u32;
            self.spans.push(span);
            let session = &mut self.sessions[session as usize];
            session.spans.push(index);
            session.open_spans.push(index);
        }
    }

    /// The latest subscription of a filter that may stand.
    fn open_span(&self, session: u32, filter: Symbol) -> Option<u32> {
        let open = &self.sessions[session as usize].open_spans;
        open.iter().rev().copied().find(|&span| self.spans[span as usize].filter == filter)
    }

    fn take_open_subscribe(&mut self, c: u32, packet_id: u16) -> Option<u32> {
        let open = &mut self.connections[c as usize].open_subscribes;
        let position = open.iter().position(|&(id, _)| id == packet_id)?;
        let (_, event) = open.remove(position);
        self.answered_subscribes.push(event);
        let connection = &mut self.connections[c as usize];
        connection.alive_at = connection.alive_at.max(self.history.events()[event as usize].at);
        Some(event)
    }

    fn subscribe_answered(&mut self, mark: Mark, c: u32, packet_id: u16, reasons: &[u8]) {
        let Some(subscribe) = self.take_open_subscribe(c, packet_id) else { return };
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        let spans: Vec<u32> = {
            let session = &self.sessions[session as usize];
            let of_subscribe = |&&span: &&u32| self.spans[span as usize].subscribe.event == subscribe;
            session.spans.iter().filter(of_subscribe).copied().collect()
        };
        for (&new, &reason) in spans.iter().zip(reasons) {
            let filter = self.spans[new as usize].filter;
            let older: Vec<u32> = self.sessions[session as usize]
                .open_spans
                .iter()
                .copied()
                .filter(|&old| old < new && self.spans[old as usize].filter == filter)
                .collect();
            if reason >= 0x80 {
                let refused = &mut self.spans[new as usize];
                (refused.may_until, refused.ended_by) = (0, mark.event);
                (refused.may_read, refused.must_read) = (false, false);
                self.sessions[session as usize].open_spans.retain(|&span| span != new);
                // Whether a refusal leaves the subscription before it alone, the specification does not say.
                continue;
            }
            self.grant(new, &older, mark, reason);
            self.sessions[session as usize].open_spans.retain(|span| !older.contains(span));
        }
    }

    fn grant(&mut self, new: u32, older: &[u32], mark: Mark, granted: u8) {
        let mut since = mark.at;
        let mut unbroken_since = mark.at;
        let sent = self.spans[new as usize].subscribe.at;
        let no_local = self.spans[new as usize].no_local;
        for &old in older {
            let old = &mut self.spans[old as usize];
            if old.must.1 == sent && old.no_local == no_local {
                unbroken_since = unbroken_since.min(old.must.0).min(old.unbroken_since);
            }
            // The filter matched throughout: messages sent while it was being replaced are owed as well.
            if old.must.1 == sent && old.no_local == no_local && old.qos >= granted {
                since = since.min(old.must.0);
            }
            old.may_until = mark.at;
            old.ended_by = mark.event;
        }
        let span = &mut self.spans[new as usize];
        span.qos = granted;
        span.suback = Some(mark);
        span.must.0 = since;
        span.unbroken_since = unbroken_since;
    }

    fn unsubscribe_sent(&mut self, mark: Mark, c: u32, filters: &[Symbol]) {
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        for &span in &self.sessions[session as usize].open_spans {
            let span = &mut self.spans[span as usize];
            if filters.contains(&span.filter) {
                span.must.1 = span.must.1.min(mark.at);
                span.given_up_at = span.given_up_at.min(mark.at);
            }
        }
    }

    fn unsubscribe_answered(&mut self, mark: Mark, c: u32, packet_id: u16, reasons: &[u8]) {
        let Some(unsubscribe) = self.take_open_subscribe(c, packet_id) else { return };
        let What::Client { action: Action::UnsubscribeSent { filters, .. }, .. } =
            &self.history.events()[unsubscribe as usize].what
        else {
            return;
        };
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        for (position, filter) in filters.iter().enumerate() {
            if reasons.get(position).is_some_and(|&reason| reason >= 0x80) {
                continue;
            }
            let spans = &mut self.spans;
            self.sessions[session as usize].open_spans.retain(|&span| {
                let span = &mut spans[span as usize];
                let ends = span.filter == *filter && span.subscribe.event < unsubscribe;
                if ends {
                    span.may_until = mark.at;
                    span.ended_by = mark.event;
                }
                !ends
            });
        }
    }

    fn publish_sent(&mut self, mark: Mark, c: u32, publish: &Publish) {
        let send = self.sends.len() as u32;
        let message = match self.message_of.get(&publish.message) {
            Some(&message) => {
                let again = self.sends_again(message, c, publish);
                let last = self.messages[message as usize].last_send;
                if last != NONE {
                    self.sends[last as usize].next = send;
                }
                let message = &mut self.messages[message as usize];
                message.last_send = send;
                message.tries += u32::from(!again);
                // What one try was told, another need not be.
                message.refused = false;
                self.message_of[&publish.message]
            }
            None => self.add_message(mark, c, publish, send),
        };
        let packet_id = publish.packet_id;
        self.sends.push(Send { mark, message, connection: c, packet_id, answer: None, next: NONE });
        if publish.qos > 0 {
            self.connections[c as usize].open_sends.push_back((packet_id, send));
        }
    }

    fn add_message(&mut self, mark: Mark, c: u32, publish: &Publish, send: u32) -> u32 {
        let index = self.messages.len() as u32;
        self.messages.push(Message {
            id: publish.message,
            publisher: self.connections[c as usize].client,
            topic: publish.topic,
            qos: publish.qos,
            retain: publish.retain,
            empty: publish.empty,
            expiry: publish.expiry,
            will_of: NONE,
            first_send: send,
            last_send: send,
            tries: 1,
            first: mark,
            acknowledged: None,
            accepted: mark,
            refused: false,
            deliveries: (0, 0),
        });
        self.message_of.insert(publish.message, index);
        index
    }

    /// Whether a PUBLISH continues the same QoS 2 handshake; any other second try is a new message to the server.
    fn sends_again(&self, message: u32, c: u32, publish: &Publish) -> bool {
        let last = self.messages[message as usize].last_send;
        if last == NONE {
            return false;
        }
        let last = &self.sends[last as usize];
        let connection = &self.connections[c as usize];
        let session = connection.session;
        publish.qos == 2
            && last.answer.is_none_or(|answer| answer.reason < 0x80)
            && last.packet_id == publish.packet_id
            && session != NONE
            && connection.void_at == NEVER
            && self.connections[last.connection as usize].session == session
    }

    fn publish_answered(&mut self, mark: Mark, c: u32, packet_id: u16, reason: u8) {
        let open = &mut self.connections[c as usize].open_sends;
        let Some(position) = open.iter().position(|&(id, _)| id == packet_id) else { return };
        let Some((_, send)) = open.remove(position) else { return };
        let send = &mut self.sends[send as usize];
        send.answer = Some(Answered { mark, reason });
        let message = &mut self.messages[send.message as usize];
        if reason < 0x80 {
            if message.acknowledged.is_none() {
                message.acknowledged = Some(mark);
                // A QoS 2 handshake may have begun, and been matched, with any PUBLISH of it.
                message.accepted = if message.qos == 2 { message.first } else { send.mark };
            }
            message.refused = false;
        } else if message.first_send == message.last_send && message.acknowledged.is_none() {
            // Of several PUBLISH packets another may have been accepted, and not answered.
            message.refused = true;
        }
        let connection = &mut self.connections[c as usize];
        connection.alive_at = connection.alive_at.max(send.mark.at);
    }

    fn delivered(&mut self, mark: Mark, c: u32, delivery: &crate::event::Delivery) {
        let index = self.deliveries.len() as u32;
        let session = self.connections[c as usize].session;
        let message = match delivery.message {
            Some(id) => self.message_of.get(&id).copied().unwrap_or(NONE),
            None => NONE,
        };
        let mut seen = Delivery {
            mark,
            connection: c,
            session,
            message,
            topic: delivery.topic,
            qos: delivery.qos,
            dup: delivery.dup,
            retain: delivery.retain,
            kind: Kind::Live,
            expiry: delivery.expiry,
            acknowledged: None,
            new: !delivery.dup,
            collides: NONE,
        };
        if session != NONE {
            let entered = &mut self.sessions[session as usize];
            entered.deliveries.push(index);
            entered.last_delivery_at = mark.at;
            // What was on its way on a connection that was replaced tells nothing of the successor's identifiers.
            let stale = self.connections[c as usize].superseded.is_some_and(|newer| newer.event < mark.event);
            seen.new &= !(stale && delivery.qos == 2);
            if delivery.qos > 0 && !stale {
                let open = &mut entered.open_deliveries;
                let position = open.iter().position(|&(id, _)| id == delivery.packet_id);
                let before = position.map(|position| open.swap_remove(position).1);
                open.push((delivery.packet_id, index));
                if let Some(before) = before {
                    let old = &self.deliveries[before as usize];
                    if old.message != message && old.connection == c {
                        seen.collides = before;
                    }
                }
                if delivery.qos == 2 {
                    // The receiver's own rule: a Packet Identifier it has stored is no new message [MQTT-4.3.3-10].
                    let stored = before.is_some_and(|before| {
                        let old = &self.deliveries[before as usize];
                        old.message == message && old.qos == 2
                    });
                    seen.new = !stored;
                }
            }
        }
        self.deliveries.push(seen);
    }

    fn acknowledged(&mut self, mark: Mark, c: u32, packet_id: u16, done: bool) {
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        let open = &mut self.sessions[session as usize].open_deliveries;
        let Some(position) = open.iter().position(|&(id, _)| id == packet_id) else { return };
        let (_, delivery) = open[position];
        if done {
            open.swap_remove(position);
        }
        self.deliveries[delivery as usize].acknowledged.get_or_insert(mark);
    }

    // What matches.

    fn match_topics(&mut self) {
        self.by_topic = vec![Vec::new(); self.history.symbol_count()];
        self.wildcard_matches = vec![Vec::new(); self.history.symbol_count()];
        let mut of_wildcard: Vec<Vec<u32>> = vec![Vec::new(); self.wildcards.len()];
        let mut of_exact: Vec<Vec<u32>> = vec![Vec::new(); self.history.symbol_count()];
        for (index, span) in self.spans.iter().enumerate() {
            match span.exact {
                Some(topic) => of_exact[topic.0 as usize].push(index as u32),
                None if span.wildcard != NONE => of_wildcard[span.wildcard as usize].push(index as u32),
                None => {}
            }
        }
        let topics: Vec<Symbol> = self
            .messages
            .iter()
            .map(|message| message.topic)
            .chain(self.deliveries.iter().map(|delivery| delivery.topic))
            .collect();
        let mut known_topics = vec![false; self.history.symbol_count()];
        for topic in topics {
            if std::mem::replace(&mut known_topics[topic.0 as usize], true) {
                continue;
            }
            let mut spans = std::mem::take(&mut of_exact[topic.0 as usize]);
            let known = &mut self.wildcard_matches[topic.0 as usize];
            *known = vec![false; self.wildcards.len()];
            let name = self.history.name(topic);
            for (filter, &number) in &self.wildcards {
                let filter = self.history.name(*filter);
                let plain = matching::split_share(filter).map_or(filter, |(_, plain)| plain);
                if matching::matches(plain, name) {
                    known[number as usize] = true;
                    spans.extend(&of_wildcard[number as usize]);
                }
            }
            spans.sort_unstable();
            self.by_topic[topic.0 as usize] = spans;
        }
        for index in 0..self.deliveries.len() {
            self.deliveries[index].kind = self.kind_of(&self.deliveries[index]);
        }
    }

    fn kind_of(&self, delivery: &Delivery) -> Kind {
        if !delivery.retain {
            return Kind::Live;
        }
        let as_published = self.spans_of(delivery).any(|span| span.retain_as_published);
        if as_published { Kind::Either } else { Kind::Retained }
    }

    fn sort_deliveries(&mut self) {
        let mut counts = vec![0u32; self.messages.len() + 1];
        for delivery in self.deliveries.iter().filter(|delivery| delivery.message != NONE) {
            counts[delivery.message as usize + 1] += 1;
        }
        for index in 1..counts.len() {
            counts[index] += counts[index - 1];
        }
        for (message, bounds) in self.messages.iter_mut().zip(counts.windows(2)) {
            message.deliveries = (bounds[0], bounds[1]);
        }
        self.by_message = vec![0; counts.last().copied().unwrap_or(0) as usize];
        for (index, delivery) in self.deliveries.iter().enumerate() {
            if delivery.message != NONE {
                let next = &mut counts[delivery.message as usize];
                self.by_message[*next as usize] = index as u32;
                *next += 1;
            }
        }
    }

    // What the checks ask.

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

impl Session {
    fn new(client: Symbol) -> Self {
        Self {
            client,
            connections: Vec::new(),
            spans: Vec::new(),
            deliveries: Vec::new(),
            ends: (NEVER, NEVER),
            last_delivery_at: 0,
            open_deliveries: Vec::new(),
            open_spans: Vec::new(),
        }
    }
}

impl Connection {
    fn new(client: Symbol, node: u16, connect: Mark) -> Self {
        Self {
            client,
            node,
            connect,
            clean_start: false,
            expiry: (0, 0),
            connack: None,
            session_present: false,
            disconnect: None,
            disconnect_expiry: None,
            disconnect_received: false,
            closed: None,
            last_received_at: connect.at,
            alive_at: connect.at,
            ended: (NEVER, NEVER),
            left: false,
            superseded: None,
            session: NONE,
            void_at: NEVER,
            must_resume: false,
            must_be_new: false,
            previous: NONE,
            will: NONE,
            will_delay: 0,
            open_sends: VecDeque::new(),
            open_subscribes: Vec::new(),
        }
    }

    /// What concerns the connection as a whole.
    fn see(&mut self, mark: Mark, action: &Action) {
        match action {
            Action::ConnectSent(connect) => {
                self.clean_start = connect.clean_start;
                self.expiry = (connect.session_expiry, connect.session_expiry);
            }
            Action::ConnAck { reason, session_present, session_expiry } => {
                self.connack = Some(Answered { mark, reason: *reason });
                self.session_present = *session_present;
                if let Some(expiry) = *session_expiry {
                    self.expiry = (expiry, expiry);
                }
                self.last_received_at = mark.at;
            }
            Action::DisconnectSent { reason, session_expiry } => {
                self.disconnect = Some(Answered { mark, reason: *reason });
                self.disconnect_expiry = *session_expiry;
            }
            Action::DisconnectReceived { .. } => self.disconnect_received = true,
            Action::ConnectionClosed { by } => {
                self.closed.get_or_insert((mark, *by));
            }
            Action::SubAck { .. }
            | Action::UnsubAck { .. }
            | Action::PubAckReceived(_)
            | Action::PubRecReceived(_)
            | Action::PubCompReceived(_)
            | Action::PubRelReceived(_)
            | Action::Delivered(_)
            | Action::PingResp => self.last_received_at = mark.at,
            _ => {}
        }
    }
}
