//! How a connection ends: why, what the client is told, and what is undone.

use std::sync::Arc;
use std::{fmt, io};

use kentongan_proto::mqtt::codec;
use kentongan_proto::mqtt::{Disconnect, DisconnectProperties, Packet, ProtocolVersion, ReasonCode};

use super::ConnectionKey;
use super::arbiter::{ArbiterState, CLOSING_SECONDS_MAX, LEAVING_SECONDS_MAX, wake};
use super::client::{ClientSession, Phase, WillTerms};
use super::cluster::{Awaits, LastWord, Served};
use crate::auth::{Action, Actor, Redirection, Rights};
use crate::connection::{LayerError, Spoken};
use crate::metrics::{CloseReason, ConnectRefusal, DropReason, PublishRefusal};
use crate::replicated::command::{Released, SessionCommand};

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndCause {
    /// DISCONNECT with reason 0: the Will Message is discarded [MQTT-3.14.4-3].
    Disconnected,
    /// DISCONNECT with another reason.
    DisconnectedWithWill,
    /// The peer closed the stream.
    ClosedByPeer,
    /// Reading failed.
    Socket(io::ErrorKind),
    /// The other end broke the rules of a layer below MQTT.
    Layer(LayerError),
    /// Likewise those of TLS, or the two do not fit. How, for the log.
    Tls(String),
    /// It speaks something else where MQTT is expected.
    Foreign(Spoken),
    /// Writing failed.
    WriteFailed,
    /// The actor was stopped.
    Dropped,
    /// No CONNECT, or no answer to AUTH, in time.
    ConnectTimeout,
    /// Silence for one and a half times the keep-alive.
    KeepAlive,
    /// Another connection has the Client Identifier now.
    TakenOver,
    /// CONNECT was refused.
    Refused(ReasonCode),
    /// The client broke the protocol.
    Malformed {
        /// What it was told.
        reason: ReasonCode,
        /// For the log.
        text: String,
    },
    /// Out of place before CONNACK, where nothing can be told.
    Protocol(&'static str),
    /// It took nothing for too long, or memory ran short and most of it was what waits for this client.
    SlowConsumer,
    /// Memory ran short, and this client had sent much of a packet and not its rest.
    UnfinishedPacket,
    /// It published faster than it may, for too long.
    TooFast,
    /// It asked for something that no frame to its group can hold.
    NotCarried,
    /// An operator banned it, its user or where it comes from.
    Banned,
    /// An operator closed it, and has nothing against that it comes again.
    Kicked,
    /// It would not be let in any more: the files of users or rights changed.
    NotAuthorized,
    /// Its login was for a time, and that is over.
    LoginExpired,
    /// This process stops.
    ShuttingDown,
    /// This node lost the majority of the cluster.
    CutOff,
    /// This process stops, and another has a place for the client.
    SentElsewhere(Redirection),
    /// Other nodes are to have the client, wherever it finds them, or at this place.
    Moved(Option<Redirection>),
}

impl EndCause {
    /// For an error of reading.
    pub fn of_reading(error: &io::Error) -> Self {
        match (LayerError::within(error), error.get_ref()) {
            (Some(layer), _) => Self::Layer(layer),
            (None, Some(_)) => Self::Tls(error.to_string()),
            // Of the kernel.
            (None, None) => Self::Socket(error.kind()),
        }
    }

    /// Whoever is banned says nothing more, nor does his will for him.
    fn publishes_will(&self) -> bool {
        !matches!(self, Self::Disconnected | Self::Banned)
    }

    /// DISCONNECT counts from the end of the connection, so that is when the group must know (P9).
    fn is_asked_for(&self) -> bool {
        matches!(self, Self::Disconnected | Self::DisconnectedWithWill)
    }

    /// Whether a client that says DISCONNECT at the same time can tell that it does not count: one of MQTT 5 is told by ours.
    fn is_told(&self, version: ProtocolVersion) -> bool {
        self.is_asked_for() || (version.is_v5() && *self != Self::Dropped)
    }

    fn close_reason(&self) -> CloseReason {
        match self {
            Self::Disconnected | Self::DisconnectedWithWill => CloseReason::ClientDisconnect,
            Self::ClosedByPeer | Self::Socket(_) | Self::Tls(_) | Self::WriteFailed | Self::Dropped => {
                CloseReason::ConnectionLost
            }
            Self::KeepAlive | Self::ConnectTimeout => CloseReason::KeepAliveTimeout,
            Self::TakenOver => CloseReason::TakenOver,
            Self::Refused(_) | Self::Malformed { .. } | Self::Protocol(_) | Self::Layer(_) | Self::Foreign(_) => {
                CloseReason::ProtocolError
            }
            Self::SlowConsumer => CloseReason::SlowConsumer,
            Self::UnfinishedPacket => CloseReason::UnfinishedPacket,
            Self::TooFast | Self::NotCarried => CloseReason::QuotaExceeded,
            Self::Banned | Self::Kicked => CloseReason::Administrative,
            Self::NotAuthorized => CloseReason::NotAuthorized,
            Self::LoginExpired => CloseReason::LoginExpired,
            Self::ShuttingDown | Self::SentElsewhere(_) => CloseReason::ShuttingDown,
            Self::Moved(_) => CloseReason::Moved,
            Self::CutOff => CloseReason::Unavailable,
        }
    }

    /// As what it counts if there was no CONNACK yet. `None`: counted already, or nobody refused anything.
    fn refusal_before_connack(&self) -> Option<ConnectRefusal> {
        match self {
            Self::ConnectTimeout => Some(ConnectRefusal::ConnectTimeout),
            Self::Malformed { .. } | Self::Protocol(_) | Self::Foreign(_) => Some(ConnectRefusal::Malformed),
            Self::Layer(LayerError::WebSocket(_)) => Some(ConnectRefusal::WebSocket),
            Self::Layer(LayerError::Proxy(_)) => Some(ConnectRefusal::ProxyHeader),
            Self::ShuttingDown => Some(ConnectRefusal::ShuttingDown),
            Self::Banned => Some(ConnectRefusal::Banned),
            _ => None,
        }
    }
}

/// For the log: a name where that says all, so that it can be looked for, and else what there is to say.
impl fmt::Display for EndCause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(kind) => write!(formatter, "reading failed: {kind}"),
            Self::Layer(error) => write!(formatter, "{error}"),
            Self::Tls(text) => write!(formatter, "TLS: {text}"),
            Self::Foreign(spoken) => {
                write!(formatter, "the client speaks {spoken}, and here is MQTT: it has the wrong port")
            }
            Self::Refused(reason) => write!(formatter, "refused: {reason:?}"),
            Self::Malformed { reason, text } => write!(formatter, "{text} ({reason:?})"),
            Self::Protocol(text) => formatter.write_str(text),
            Self::SentElsewhere(to) => write!(formatter, "SentElsewhere: to {}", to.server_reference),
            Self::Moved(Some(to)) => write!(formatter, "Moved: to {}", to.server_reference),
            Self::Moved(None) => formatter.write_str("Moved"),
            Self::Disconnected
            | Self::DisconnectedWithWill
            | Self::ClosedByPeer
            | Self::WriteFailed
            | Self::Dropped
            | Self::ConnectTimeout
            | Self::KeepAlive
            | Self::TakenOver
            | Self::SlowConsumer
            | Self::UnfinishedPacket
            | Self::TooFast
            | Self::NotCarried
            | Self::Banned
            | Self::Kicked
            | Self::NotAuthorized
            | Self::LoginExpired
            | Self::ShuttingDown
            | Self::CutOff => write!(formatter, "{self:?}"),
        }
    }
}

impl ArbiterState {
    /// Ends a connection: tells the client why if its version can hear it, undoes what stands in the tables, and
    /// closes once everything is written.
    pub(super) fn end(&mut self, key: ConnectionKey, cause: EndCause, reason: Option<ReasonCode>) {
        let can_be_told = self.forget_unwritten(key);
        let Some(client) = self.client(key) else {
            return;
        };
        // [MQTT-3.14.0-1]: no DISCONNECT before a CONNACK.
        if let Some(reason) = reason
            && client.version.is_v5()
            && can_be_told
        {
            if client.is_connected() {
                let (text, server_reference) = match &cause {
                    EndCause::Malformed { text, .. } => (Some(text.clone()), None),
                    EndCause::SentElsewhere(to) | EndCause::Moved(Some(to)) => {
                        (None, Some(to.server_reference.clone()))
                    }
                    _ => (None, None),
                };
                self.write_disconnect(key, reason, text, server_reference);
            } else if matches!(client.phase, Phase::Authenticating) {
                return self.refuse(key, reason, "the exchange broke the protocol");
            }
        }
        self.tear_down(key, cause);
        // One that leaves is closed when its group has heard of it.
        if self.client(key).is_some_and(|client| client.phase != Phase::Leaving) {
            self.begin_closing(key);
        }
    }

    fn write_disconnect(
        &mut self,
        key: ConnectionKey,
        reason_code: ReasonCode,
        text: Option<String>,
        server_reference: Option<String>,
    ) {
        let Some(client) = self.client(key) else {
            return;
        };
        let explains = client.session.as_ref().is_some_and(|session| session.problem_information) || text.is_none();
        let mut properties =
            DisconnectProperties { reason_string: text, server_reference, ..DisconnectProperties::default() };
        let bound = client.packet_bytes_max_out as usize;
        let version = client.version;
        let fits = |properties: &DisconnectProperties| {
            let packet = Packet::Disconnect(Disconnect { reason_code, properties: properties.clone() });
            codec::encoded_len(&packet, version) <= bound
        };
        // [MQTT-3.14.2-3]
        if !explains || !fits(&properties) {
            properties.reason_string = None;
        }
        // [MQTT-3.1.2-24]
        if !fits(&properties) {
            properties.server_reference = None;
        }
        if fits(&properties) {
            self.write_packet(key, &Packet::Disconnect(Disconnect { reason_code, properties }));
        }
    }

    pub(super) fn begin_closing(&mut self, key: ConnectionKey) {
        self.close_by_deadline(key, Phase::Closing, CLOSING_SECONDS_MAX);
    }

    /// DISCONNECT was said to the group: the connection is closed when that is committed.
    fn begin_leaving(&mut self, key: ConnectionKey) {
        self.close_by_deadline(key, Phase::Leaving, LEAVING_SECONDS_MAX);
    }

    fn close_by_deadline(&mut self, key: ConnectionKey, phase: Phase, seconds_max: u32) {
        let due = self.now_seconds() + seconds_max;
        if let Some(client) = self.client(key) {
            client.phase = phase;
            // What its Keep Alive armed comes up before.
            client.last_activity = due;
            wake(client);
            self.wheel.arm(key, due);
            self.mark_dirty(key);
        }
    }

    /// Undoes what the connection stands for in every table. Safe to call twice.
    pub(super) fn tear_down(&mut self, key: ConnectionKey, cause: EndCause) {
        self.end_claim(key);
        let Some(client) = self.client(key) else {
            return;
        };
        client.pending = None;
        let Some(session) = client.session.take() else {
            return self.ended_before_connack(key, &cause);
        };
        client.breaks_off |= session.will_terms.is_some() && !cause.is_told(client.version);
        let client_id = Arc::clone(&client.client_id);
        let taken_over = client.taken_over;
        tracing::info!(%client_id, peer = %client.origin, reason = %cause, "disconnected");
        self.counters.connections.dec();
        self.counters.connections_closed.inc(cause.close_reason());
        self.tell_disconnected(key, &session.identity, cause.close_reason());
        self.leave_subscriptions(key, &session);
        // Its group may have them, or not.
        let waiting = session.changes.as_ref().map_or(0, |changes| changes.waiting());
        self.counters.messages_dropped.add(DropReason::Qos0Offline, waiting as u64);
        let has_will = session.will_terms.is_some();
        let publish_will = cause.publishes_will() && self.may_leave_its_will(&client_id, &session);
        let ClientSession { outbound, persistent, will, session_expiry_seconds, served, .. } = *session;
        if let Some(served) = served {
            if persistent.is_none() {
                self.counters.sessions.dec();
                self.hand_on_shared(outbound, key);
            }
            // They come before the last word, in the same lane; nothing is sent for its sake alone, or none of the many that end in
            // a storm would go with what is said next.
            self.gather_acknowledged();
            let Served { claim, barriers, unasked, .. } = *served;
            let waiting = barriers.iter().map(|&(ticket, _)| ticket);
            for ticket in waiting.chain(unasked.iter().map(|unasked| unasked.ticket)) {
                self.barriers.remove(&ticket);
            }
            // As if it had been asked at once: there is no answer that could be wrong.
            unasked.into_iter().for_each(|unasked| self.lanes.command(claim.group, unasked.command));
            let last_word = if cause == EndCause::TakenOver {
                let client_id = client_id.to_string();
                SessionCommand::Released(Released { client_id, epoch: claim.epoch, publish_will, never_began: false })
            } else {
                SessionCommand::disconnect(&client_id, claim, publish_will, Some(session_expiry_seconds))
            };
            let leaves_nothing = persistent.is_none() && !has_will && cause != EndCause::TakenOver;
            let awaited_by = match cause.is_asked_for() {
                _ if leaves_nothing => Awaits::Nobody,
                true => Awaits::Client,
                false => Awaits::Group,
            };
            self.say_last_word(key, LastWord { group: claim.group, command: last_word, awaited_by });
            if awaited_by == Awaits::Client {
                self.begin_leaving(key);
            }
            return;
        }
        if let Some(persistent) = persistent {
            // Acknowledgements that came before go first.
            self.flush_lanes();
            let expiry_seconds = Some(session_expiry_seconds);
            let command = SessionCommand::disconnect(&client_id, persistent, publish_will, expiry_seconds);
            if cause.is_asked_for() {
                self.lanes.command_of(key, persistent.group, command);
                self.begin_leaving(key);
            } else {
                self.lanes.command(persistent.group, command);
            }
            // And this before anybody is told that the Client Identifier is free.
            self.flush_lanes();
        } else {
            self.counters.sessions.dec();
            self.hand_on_shared(outbound, key);
            if let Some(will) = will.filter(|_| publish_will) {
                self.counters.wills_published.inc();
                self.route_will(&client_id, &will);
            }
        }
        // The Client Identifier may be taken elsewhere at once: what it sent must be under way before (P5).
        self.flush_batches();
        self.shared.registry.release(&client_id, key);
        if taken_over || persistent.is_some() {
            self.shared.submitter.released(&client_id);
        }
    }

    /// A connection that was never accepted is over. One whose CONNECT was refused was logged and counted then.
    fn ended_before_connack(&mut self, key: ConnectionKey, cause: &EndCause) {
        let Some(client) = self.client(key) else {
            return;
        };
        // One that was connected is told of when its session is taken; its actor comes to an end after that.
        let is_told_of = matches!(client.phase, Phase::Connected | Phase::Leaving | Phase::Closing);
        if is_told_of || matches!(cause, EndCause::Refused(_)) {
            return;
        }
        client.phase = Phase::Closing;
        client.learn_origin();
        let (client_id, origin) = (Arc::clone(&client.client_id), client.origin.clone());
        let listener = Arc::clone(&client.listener);
        if let Some(refusal) = cause.refusal_before_connack() {
            self.counters.connects_refused.inc(refusal);
        }
        if self.refusal_lines.admits(self.now_seconds()) {
            let listener = &listener.address;
            tracing::info!(%client_id, peer = %origin, %listener, reason = %cause, "ended before CONNACK");
        }
    }

    /// A connection here gives way to another one, here or on another node.
    pub(super) fn count_takeover(&mut self, client_id: &Arc<str>) {
        self.counters.takeovers.inc();
        if self.shared.flapping.on_takeover(client_id, self.now_ms) {
            self.note_flap_ban(client_id, None, "connections take it from each other");
        }
    }

    /// Another connection claims the Client Identifier of `key` [MQTT-3.1.4-3]. It is told when we are done, also if
    /// we were done before.
    pub(super) fn on_take_over(&mut self, key: ConnectionKey, client_id: &Arc<str>) {
        self.count_takeover(client_id);
        match self.client(key) {
            Some(client) if client.session.is_some() => {
                client.taken_over = true;
                self.end(key, EndCause::TakenOver, Some(ReasonCode::SessionTakenOver));
            }
            Some(client) if client.phase == Phase::Claiming => {
                // It is the registered owner but was not told yet; Opened will find nothing pending. "Session taken over" is
                // for DISCONNECT only.
                self.refuse(key, ReasonCode::ServerBusy, "a newer connection has the client identifier");
            }
            _ => {
                self.shared.registry.release(client_id, key);
                self.shared.submitter.released(client_id);
            }
        }
    }

    /// Ends every connection, because the process stops.
    pub fn end_all(&mut self) {
        self.ending = true;
        for key in self.keys() {
            // Those who can be told where to go instead are told so.
            match self.elsewhere(key) {
                Some(to) => {
                    let reason = to.reason();
                    self.end(key, EndCause::SentElsewhere(to), Some(reason));
                }
                None => self.end(key, EndCause::ShuttingDown, Some(ReasonCode::ServerShuttingDown)),
            }
        }
    }

    /// Ends the connection of a client that would not be let in any more. Nor may its will speak for it.
    pub(super) fn end_denied(&mut self, key: ConnectionKey) {
        if let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) {
            session.rights = Some(Box::new(Rights::none()));
        }
        self.end(key, EndCause::NotAuthorized, Some(ReasonCode::NotAuthorized));
    }

    /// Whether a client whose connection ends may still publish its will. A group that keeps it knows of no rights that came with a
    /// login, and would go by what they were at CONNECT.
    fn may_leave_its_will(&mut self, client_id: &str, session: &ClientSession) -> bool {
        let Some(WillTerms { topic, qos, retain }) = session.will_terms.as_deref() else {
            return true;
        };
        let actor = Actor { identity: &session.identity, client_id, rights: session.rights.as_deref() };
        let may = self.shared.authority.authorize(&actor, Action::Publish { topic, qos: *qos, retain: *retain });
        if !may {
            self.counters.publishes_refused.inc(PublishRefusal::NotAuthorized);
        }
        may
    }
}
