//! What an arbiter counts, in plain cells that only its own thread touches.
//!
//! A counter on the hot path is one add to a [`Cell`]. About once a second the arbiter calls
//! [`ArbiterCounters::flush`], which moves what gathered to the process's totals and to Prometheus.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use kentongan_proto::mqtt::{Packet, QoS, ReasonCode};

use super::page::Page;
use super::times::TimeCounts;

/// Whether this process counts at all: off, neither a cell nor a total is touched. One predictable branch a counter, and
/// written once, before the first arbiter starts.
static COUNTING: AtomicBool = AtomicBool::new(true);

/// Says so, once, at the start.
pub(super) fn set_counting(counting: bool) {
    COUNTING.store(counting, Ordering::Relaxed);
}

#[inline]
pub(super) fn is_counting() -> bool {
    COUNTING.load(Ordering::Relaxed)
}

/// A number that only grows, as one arbiter counts it between two flushes.
#[derive(Debug, Default)]
pub struct Count(Cell<u64>);

impl Count {
    /// Counts one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Counts `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        if is_counting() {
            self.0.set(self.0.get().wrapping_add(n));
        }
    }

    /// What gathered since the last flush.
    #[must_use]
    pub fn unflushed(&self) -> u64 {
        self.0.get()
    }
}

/// A number that goes up and down, as the change one arbiter made to it between two flushes.
#[derive(Debug, Default)]
pub struct Level(Cell<i64>);

impl Level {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// One less.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Changes it by `n`.
    #[inline]
    pub fn add(&self, n: i64) {
        if is_counting() {
            self.0.set(self.0.get().wrapping_add(n));
        }
    }

    /// The change since the last flush.
    #[must_use]
    pub fn unflushed(&self) -> i64 {
        self.0.get()
    }
}

/// The values of a label, known in advance so that a series is an index.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Its values, in the order of [`Label::index`].
    const VALUES: &'static [&'static str];
    /// What each value means; empty where that needs no saying.
    const MEANINGS: &'static [&'static str] = &[];

    /// Position in [`Label::VALUES`].
    fn index(self) -> usize;
}

/// A [`Count`] for each value of a label.
#[derive(Debug)]
pub struct CountBy<L, const N: usize> {
    counts: [Count; N],
    label: std::marker::PhantomData<L>,
}

impl<L: Label, const N: usize> Default for CountBy<L, N> {
    fn default() -> Self {
        const { assert!(L::VALUES.len() == N, "a cell for each value of the label") };
        Self { counts: std::array::from_fn(|_| Count::default()), label: std::marker::PhantomData }
    }
}

impl<L: Label, const N: usize> CountBy<L, N> {
    /// Counts one of `label`.
    #[inline]
    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    /// Counts `n` of `label`.
    #[inline]
    pub fn add(&self, label: L, n: u64) {
        self.counts[label.index()].add(n);
    }

    /// What gathered since the last flush.
    #[must_use]
    pub fn unflushed(&self, label: L) -> u64 {
        self.counts[label.index()].unflushed()
    }
}

macro_rules! labels {
    ($(
        $(#[doc = $doc:literal])*
        pub enum $name:ident as $label:literal {
            $(#[doc = $value_doc:literal] $variant:ident = $value:literal,)*
        }
    )*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $(#[doc = $value_doc] $variant,)* }

        impl $name {
            /// The number of its values.
            pub const COUNT: usize = [$($value),*].len();
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($value),*];
            const MEANINGS: &'static [&'static str] = &[$($value_doc),*];

            #[inline]
            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

labels! {
    /// Kinds of MQTT Control Packet.
    pub enum PacketKind as "type" {
        /// CONNECT.
        Connect = "connect",
        /// CONNACK.
        ConnAck = "connack",
        /// PUBLISH.
        Publish = "publish",
        /// PUBACK.
        PubAck = "puback",
        /// PUBREC.
        PubRec = "pubrec",
        /// PUBREL.
        PubRel = "pubrel",
        /// PUBCOMP.
        PubComp = "pubcomp",
        /// SUBSCRIBE.
        Subscribe = "subscribe",
        /// SUBACK.
        SubAck = "suback",
        /// UNSUBSCRIBE.
        Unsubscribe = "unsubscribe",
        /// UNSUBACK.
        UnsubAck = "unsuback",
        /// PINGREQ.
        PingReq = "pingreq",
        /// PINGRESP.
        PingResp = "pingresp",
        /// DISCONNECT.
        Disconnect = "disconnect",
        /// AUTH.
        Auth = "auth",
    }

    /// Why an Application Message did not reach somebody it was meant for.
    pub enum DropReason as "reason" {
        /// The session's queue held too many messages.
        QueueMessages = "queue_messages",
        /// The session's queue held too many bytes.
        QueueBytes = "queue_bytes",
        /// QoS 0 and the client's socket did not take more.
        SlowConsumer = "slow_consumer",
        /// QoS 0 and the client was away.
        Qos0Offline = "qos0_offline",
        /// Its Message Expiry Interval ran out.
        Expired = "expired",
        /// Larger than the client's Maximum Packet Size.
        PacketTooLarge = "packet_too_large",
        /// The subscriber may no longer read the topic.
        NotAuthorized = "not_authorized",
        /// It is not below the mount point of the subscriber.
        OutsideMount = "outside_mount",
        /// The session ended with the message still waiting.
        SessionEnded = "session_ended",
        /// Another node was lost or unreachable (QoS 0).
        NodeLost = "node_lost",
        /// No member of the shared subscription was left.
        NoSharedMember = "no_shared_member",
        /// A bound on delayed messages.
        Delayed = "delayed",
        /// With what is said of it, it is longer than a message to another node may be: a mistake of the broker.
        TooLong = "too_long",
    }

    /// Why a PUBLISH of a client was not accepted.
    pub enum PublishRefusal as "reason" {
        /// The publisher may not write the topic.
        NotAuthorized = "not_authorized",
        /// The Topic Name was malformed.
        TopicNameInvalid = "topic_name_invalid",
        /// A bound (retained, delayed, storage).
        QuotaExceeded = "quota_exceeded",
        /// The payload was not the UTF-8 it claimed to be.
        PayloadFormatInvalid = "payload_format_invalid",
        /// The broker could not store it.
        Unavailable = "unavailable",
    }

    /// Why a filter of a SUBSCRIBE was not accepted.
    pub enum SubscribeRefusal as "reason" {
        /// The client may not read what it matches.
        NotAuthorized = "not_authorized",
        /// It is none, or has too many levels or too long a ShareName.
        TopicFilterInvalid = "topic_filter_invalid",
        /// The session has as many subscriptions as it may.
        QuotaExceeded = "quota_exceeded",
        /// Any other reason.
        Other = "other",
    }

    /// Why a client was not let in.
    pub enum ConnectRefusal as "reason" {
        /// The process or the listener holds as many connections as it may.
        TooManyConnections = "too_many_connections",
        /// New connections came too fast.
        ConnectRate = "connect_rate",
        /// No complete CONNECT in time.
        ConnectTimeout = "connect_timeout",
        /// The first packet was something else, or malformed.
        Malformed = "malformed",
        /// No WebSocket could be opened, or it was broken before CONNACK.
        WebSocket = "websocket",
        /// A balancer sent no good header of the PROXY protocol.
        ProxyHeader = "proxy_header",
        /// A protocol version that is not spoken here.
        ProtocolVersion = "protocol_version",
        /// The Client Identifier was not acceptable.
        ClientIdentifier = "client_identifier",
        /// Unknown user or wrong password, or no user where one is wanted.
        BadCredentials = "bad_credentials",
        /// Known, and not allowed.
        NotAuthorized = "not_authorized",
        /// Banned.
        Banned = "banned",
        /// Enhanced authentication by a method that is not offered.
        AuthenticationMethod = "authentication_method",
        /// No majority, or no storage.
        Unavailable = "unavailable",
        /// Memory or another resource is over its mark.
        Busy = "busy",
        /// The node is shutting down.
        ShuttingDown = "shutting_down",
        /// The Will Message was not acceptable.
        Will = "will",
        /// The client was told to use another server.
        SentElsewhere = "sent_elsewhere",
    }

    /// What a client was let in by, or why not. Refusals for other reasons count in `kentongan_connects_refused_total` only.
    pub enum AuthenticationOutcome as "outcome" {
        /// By nothing: it offered no credentials, or none are asked for.
        Anonymous = "anonymous",
        /// By a certificate.
        Certificate = "certificate",
        /// By a password that was verified.
        Password = "password",
        /// By a password that was verified a while ago.
        Remembered = "remembered",
        /// By a token.
        Token = "token",
        /// By enhanced authentication.
        Mechanism = "mechanism",
        /// By the word of an authentication server, also if that was given a while ago.
        Server = "server",
        /// Not: the password is not that of the user.
        WrongPassword = "wrong_password",
        /// Not: there is no such user.
        UnknownUser = "unknown_user",
        /// Not: the token is not good.
        BadToken = "bad_token",
        /// Not: it offered nothing where something is wanted.
        NothingOffered = "nothing_offered",
        /// Not: enhanced authentication failed.
        MechanismFailed = "mechanism_failed",
        /// Not: an authentication server denied it.
        ServerDenied = "server_denied",
        /// Not: an authentication server could not be asked, or did not give an answer that is one.
        Undecided = "undecided",
        /// Not: too many were waiting for their passwords to be verified, or for an authentication server.
        Busy = "busy",
    }

    /// How a connection ended.
    pub enum CloseReason as "reason" {
        /// The client sent DISCONNECT.
        ClientDisconnect = "client_disconnect",
        /// The socket closed or failed without one.
        ConnectionLost = "connection_lost",
        /// Nothing came for one and a half Keep Alive intervals.
        KeepAliveTimeout = "keep_alive_timeout",
        /// Another connection took the session over.
        TakenOver = "taken_over",
        /// The client was moved to other nodes, because this one is drained or has more than its share.
        Moved = "moved",
        /// The client broke the protocol.
        ProtocolError = "protocol_error",
        /// The client did not read, or memory was far over its mark and much of it waited for the client.
        SlowConsumer = "slow_consumer",
        /// Memory was over its mark, and the client had sent much of a packet and not its rest.
        UnfinishedPacket = "unfinished_packet",
        /// A bound was exceeded.
        QuotaExceeded = "quota_exceeded",
        /// It would not be let in any more: the files of users or rights changed.
        NotAuthorized = "not_authorized",
        /// Its login was for a time, and that is over.
        LoginExpired = "login_expired",
        /// An administrator's doing.
        Administrative = "administrative",
        /// The node shut down.
        ShuttingDown = "shutting_down",
        /// The broker's own storage or cluster failed.
        Unavailable = "unavailable",
    }

    /// In which way a client's packet was wrong.
    pub enum MalformedReason as "reason" {
        /// Not as the byte format says (0x81).
        MalformedPacket = "malformed_packet",
        /// Well-formed and not allowed there (0x82).
        ProtocolError = "protocol_error",
        /// Larger than announced (0x95).
        PacketTooLarge = "packet_too_large",
        /// More unacknowledged messages than announced (0x93).
        ReceiveMaximumExceeded = "receive_maximum_exceeded",
        /// Topic Alias 0 or above the one announced (0x94).
        TopicAliasInvalid = "topic_alias_invalid",
        /// A Topic Name with a wildcard, or too many levels (0x90).
        TopicNameInvalid = "topic_name_invalid",
        /// A Topic Filter that is none (0x8F).
        TopicFilterInvalid = "topic_filter_invalid",
    }
}

impl Label for QoS {
    const NAME: &'static str = "qos";
    const VALUES: &'static [&'static str] = &["0", "1", "2"];

    #[inline]
    fn index(self) -> usize {
        self as usize
    }
}

impl From<ReasonCode> for PublishRefusal {
    fn from(reason: ReasonCode) -> Self {
        match reason {
            ReasonCode::NotAuthorized => Self::NotAuthorized,
            ReasonCode::PayloadFormatInvalid => Self::PayloadFormatInvalid,
            ReasonCode::TopicNameInvalid => Self::TopicNameInvalid,
            _ => Self::QuotaExceeded,
        }
    }
}

impl From<&Packet> for PacketKind {
    fn from(packet: &Packet) -> Self {
        match packet {
            Packet::Connect(_) => Self::Connect,
            Packet::ConnAck(_) => Self::ConnAck,
            Packet::Publish(_) => Self::Publish,
            Packet::PubAck(_) => Self::PubAck,
            Packet::PubRec(_) => Self::PubRec,
            Packet::PubRel(_) => Self::PubRel,
            Packet::PubComp(_) => Self::PubComp,
            Packet::Subscribe(_) => Self::Subscribe,
            Packet::SubAck(_) => Self::SubAck,
            Packet::Unsubscribe(_) => Self::Unsubscribe,
            Packet::UnsubAck(_) => Self::UnsubAck,
            Packet::PingReq => Self::PingReq,
            Packet::PingResp => Self::PingResp,
            Packet::Disconnect(_) => Self::Disconnect,
            Packet::Auth(_) => Self::Auth,
        }
    }
}

/// Kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many took how long, in buckets.
    Histogram,
}

/// A metric family as the reference page shows it.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Name in Prometheus.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// The lines of its description.
    pub doc: &'static [&'static str],
    /// Its label, if it has one.
    pub label: Option<LabelInfo>,
}

/// A label as the reference page shows it.
#[derive(Debug, Clone, Copy)]
pub struct LabelInfo {
    /// [`Label::NAME`].
    pub name: &'static str,
    /// [`Label::VALUES`].
    pub values: &'static [&'static str],
    /// [`Label::MEANINGS`].
    pub meanings: &'static [&'static str],
}

impl Family {
    /// The description as one line.
    #[must_use]
    pub fn description(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// A cell, or cells, of an arbiter that are flushed into totals of the process.
pub(super) trait Flushed {
    /// The totals.
    type Total;

    const KIND: Kind;
    const LABEL: Option<LabelInfo>;

    fn register(name: &'static str) -> Self::Total;
    fn flush(&self, total: &Self::Total);

    /// Appends the total, where the recorder does not have it.
    fn render(_: &Self::Total, _: &Family, _: &mut Page<'_>) {}
}

/// The process's total of a [`Count`].
#[derive(Debug)]
pub(super) struct CountTotal {
    value: AtomicU64,
    handle: metrics::Counter,
}

impl CountTotal {
    fn new(handle: metrics::Counter) -> Self {
        // A series that exists from the start shows its first increase in `rate()`.
        handle.increment(0);
        Self { value: AtomicU64::new(0), handle }
    }

    pub(super) fn add(&self, n: u64) {
        if n != 0 {
            self.value.fetch_add(n, Ordering::Relaxed);
            self.handle.increment(n);
        }
    }

    pub(super) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// The process's total of a [`Level`].
#[derive(Debug)]
pub(super) struct LevelTotal {
    value: AtomicI64,
    maximum: AtomicI64,
    handle: metrics::Gauge,
}

impl LevelTotal {
    fn new(handle: metrics::Gauge) -> Self {
        handle.set(0.0);
        Self { value: AtomicI64::new(0), maximum: AtomicI64::new(0), handle }
    }

    pub(super) fn add(&self, n: i64) {
        if n != 0 {
            let now = self.value.fetch_add(n, Ordering::Relaxed).wrapping_add(n);
            self.maximum.fetch_max(now, Ordering::Relaxed);
            self.handle.increment(n as f64);
        }
    }

    /// Never below zero, although flushes of two arbiters may pass each other.
    pub(super) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed).try_into().unwrap_or(0)
    }

    pub(super) fn maximum(&self) -> u64 {
        self.maximum.load(Ordering::Relaxed).try_into().unwrap_or(0)
    }
}

impl Flushed for Count {
    type Total = CountTotal;

    const KIND: Kind = Kind::Counter;
    const LABEL: Option<LabelInfo> = None;

    fn register(name: &'static str) -> CountTotal {
        CountTotal::new(metrics::counter!(name))
    }

    fn flush(&self, total: &CountTotal) {
        total.add(self.0.take());
    }
}

impl Flushed for Level {
    type Total = LevelTotal;

    const KIND: Kind = Kind::Gauge;
    const LABEL: Option<LabelInfo> = None;

    fn register(name: &'static str) -> LevelTotal {
        LevelTotal::new(metrics::gauge!(name))
    }

    fn flush(&self, total: &LevelTotal) {
        total.add(self.0.take());
    }
}

impl<L: Label, const N: usize> Flushed for CountBy<L, N> {
    type Total = [CountTotal; N];

    const KIND: Kind = Kind::Counter;
    const LABEL: Option<LabelInfo> = Some(LabelInfo { name: L::NAME, values: L::VALUES, meanings: L::MEANINGS });

    fn register(name: &'static str) -> [CountTotal; N] {
        std::array::from_fn(|index| CountTotal::new(metrics::counter!(name, L::NAME => L::VALUES[index])))
    }

    fn flush(&self, totals: &[CountTotal; N]) {
        for (count, total) in self.counts.iter().zip(totals) {
            count.flush(total);
        }
    }
}

macro_rules! families {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $name:literal,)*) => {
        /// What one arbiter counts. Not shared between threads; [`flush`](Self::flush) it about once a second.
        #[derive(Debug)]
        pub struct ArbiterCounters {
            $($(#[doc = $doc])* pub $field: $type,)*
            totals: Arc<Totals>,
        }

        /// What the whole process counted.
        #[derive(Debug)]
        pub(super) struct Totals {
            $(pub(super) $field: <$type as Flushed>::Total,)*
        }

        impl Totals {
            /// Registers every series with the recorder that is current.
            pub(super) fn register() -> Self {
                Self { $($field: <$type as Flushed>::register($name),)* }
            }

            /// Appends those that the recorder does not have.
            pub(super) fn render(&self, text: &mut String) {
                let mut page = Page(text);
                let mut families = FAMILIES.iter();
                $(if let Some(family) = families.next() {
                    <$type as Flushed>::render(&self.$field, family, &mut page);
                })*
            }
        }

        impl ArbiterCounters {
            pub(super) fn new(totals: Arc<Totals>) -> Self {
                Self { $($field: Default::default(),)* totals }
            }

            /// Moves what gathered to the totals of the process.
            pub fn flush(&self) {
                $(self.$field.flush(&self.totals.$field);)*
            }
        }

        /// Every family of [`ArbiterCounters`].
        pub(super) const FAMILIES: &[Family] = &[
            $(Family {
                name: $name,
                kind: <$type as Flushed>::KIND,
                doc: &[$($doc),*],
                label: <$type as Flushed>::LABEL,
            },)*
        ];
    };
}

families! {
    /// MQTT Control Packets received.
    packets_received: CountBy<PacketKind, { PacketKind::COUNT }> = "kentongan_packets_received_total",
    /// MQTT Control Packets sent.
    packets_sent: CountBy<PacketKind, { PacketKind::COUNT }> = "kentongan_packets_sent_total",
    /// Application Messages received from clients, by the QoS they were published with.
    messages_received: CountBy<QoS, 3> = "kentongan_messages_received_total",
    /// Application Messages sent to clients, by the QoS they were delivered with; repeated deliveries count again.
    messages_sent: CountBy<QoS, 3> = "kentongan_messages_sent_total",
    /// Deliveries repeated with DUP after a break.
    messages_resent: Count = "kentongan_messages_resent_total",
    /// Payload bytes of the Application Messages received.
    payload_bytes_received: Count = "kentongan_received_payload_bytes_total",
    /// Payload bytes of the Application Messages sent.
    payload_bytes_sent: Count = "kentongan_sent_payload_bytes_total",
    /// Bytes read from the sockets of clients.
    bytes_received: Count = "kentongan_received_bytes_total",
    /// Bytes written to the sockets of clients.
    bytes_sent: Count = "kentongan_sent_bytes_total",
    /// Messages that did not reach a session they were meant for.
    messages_dropped: CountBy<DropReason, { DropReason::COUNT }> = "kentongan_messages_dropped_total",
    /// PUBLISH packets of clients that were not accepted.
    publishes_refused: CountBy<PublishRefusal, { PublishRefusal::COUNT }> = "kentongan_publishes_refused_total",
    /// Filters of SUBSCRIBE packets that were not accepted.
    subscribes_refused: CountBy<SubscribeRefusal, { SubscribeRefusal::COUNT }> = "kentongan_subscribes_refused_total",
    /// Subscriptions that were taken from clients which may not have them any more.
    subscriptions_revoked: Count = "kentongan_subscriptions_revoked_total",
    /// Messages with RETAIN that were delivered but not kept, because of a bound on retained messages.
    retained_not_kept: Count = "kentongan_retained_not_kept_total",
    /// Accepted publishes that matched no subscription.
    publishes_unmatched: Count = "kentongan_publishes_unmatched_total",
    /// Connections accepted from the operating system.
    sockets_accepted: Count = "kentongan_sockets_accepted_total",
    /// Times that accepting failed because the process or the system had no file descriptor left.
    descriptors_exhausted: Count = "kentongan_descriptors_exhausted_total",
    /// CONNECTs answered with success.
    connects_accepted: Count = "kentongan_connects_accepted_total",
    /// Connections that were not let in.
    connects_refused: CountBy<ConnectRefusal, { ConnectRefusal::COUNT }> = "kentongan_connects_refused_total",
    /// Clients that showed who they are, or did not.
    authentications: CountBy<AuthenticationOutcome, { AuthenticationOutcome::COUNT }> = "kentongan_authentications_total",
    /// How the connections of accepted clients ended.
    connections_closed: CountBy<CloseReason, { CloseReason::COUNT }> = "kentongan_connections_closed_total",
    /// Packets by which clients broke the protocol.
    packets_malformed: CountBy<MalformedReason, { MalformedReason::COUNT }> = "kentongan_packets_malformed_total",
    /// Sessions taken over from a connection that was still open.
    takeovers: Count = "kentongan_takeovers_total",
    /// Times that a connection was not read for a while, because it, or all of its listener, published faster than they may.
    publishers_slowed: Count = "kentongan_publishers_slowed_total",
    /// Lines that were left out of the audit log, because it could not be written as fast.
    audit_dropped: Count = "kentongan_audit_dropped_total",
    /// Connections closed because nothing came for one and a half Keep Alive intervals.
    keep_alive_timeouts: Count = "kentongan_keep_alive_timeouts_total",
    /// Will Messages published.
    wills_published: Count = "kentongan_wills_published_total",
    /// Sessions that reached the end of their Session Expiry Interval.
    sessions_expired: Count = "kentongan_sessions_expired_total",
    /// Clients connected now.
    connections: Level = "kentongan_connections",
    /// Sessions now, those of clients that are away included.
    sessions: Level = "kentongan_sessions",
    /// Subscriptions of all sessions.
    subscriptions: Level = "kentongan_subscriptions",
    /// Subscriptions of all sessions that are shared ones.
    subscriptions_shared: Level = "kentongan_shared_subscriptions",
    /// Retained messages.
    retained_messages: Level = "kentongan_retained_messages",
    /// Bytes of retained messages.
    retained_bytes: Level = "kentongan_retained_bytes",
    /// Messages that wait for their time of delivery.
    delayed_messages: Level = "kentongan_delayed_messages",
    /// Bytes of messages that wait for their time of delivery.
    delayed_bytes: Level = "kentongan_delayed_bytes",
    /// Messages that wait in the queues of sessions, beside those in flight.
    queued_messages: Level = "kentongan_queued_messages",
    /// Bytes of the messages that wait in the queues of sessions.
    queued_bytes: Level = "kentongan_queued_bytes",
    /// Memory that messages of persistent sessions take here, about. The rest of what waits is in the data directory only.
    queue_memory_bytes: Level = "kentongan_queue_memory_bytes",
    /// Messages of shared subscriptions that were handed to other nodes, whose members have not acknowledged them.
    shared_elsewhere: Level = "kentongan_shared_messages_elsewhere",
    /// Messages sent to clients and not yet acknowledged.
    inflight_messages: Level = "kentongan_inflight_messages",
    /// Time from reading a PUBLISH to its PUBACK or PUBREC, where groups or other nodes must have it first. Each arbiter watches
    /// one at a time.
    publish_ack_seconds: TimeCounts = "kentongan_publish_ack_seconds",
    /// Time from reading a PUBLISH here, or hearing of it from a group or another node, to writing it to the sockets of its
    /// subscribers: that of the oldest message of each turn of an arbiter.
    publish_deliver_seconds: TimeCounts = "kentongan_publish_deliver_seconds",
    /// Time from the first packet of a turn of an arbiter to its last write.
    arbiter_turn_seconds: TimeCounts = "kentongan_arbiter_turn_seconds",
    /// How late an arbiter comes to what it does once a second: what everything else on it waits, too.
    arbiter_late_seconds: TimeCounts = "kentongan_arbiter_late_seconds",
    /// Times that the lease of this node ran out.
    lease_lapses: Count = "kentongan_lease_lapses_total",
    /// Times that this node was declared dead by the others.
    declared_dead: Count = "kentongan_declared_dead_total",
    /// Batches handed from one arbiter to another.
    arbiter_batches: Count = "kentongan_arbiter_batches_total",
    /// Messages in those batches.
    arbiter_batch_deliveries: Count = "kentongan_arbiter_batch_deliveries_total",
    /// Times an arbiter was woken by other threads, for batches of other arbiters among other things.
    arbiter_wakeups: Count = "kentongan_arbiter_wakeups_total",
    /// Writes to sockets of clients.
    flushes: Count = "kentongan_flushes_total",
    /// Publishes, and messages of other arbiters, whose subscribers here were found in the cache of the topic.
    route_cache_hits: Count = "kentongan_route_cache_hits_total",
    /// Publishes, and messages of other arbiters, whose subscribers here had to be looked up.
    route_cache_misses: Count = "kentongan_route_cache_misses_total",
}
