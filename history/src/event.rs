//! What an observer writes down: packets as the clients sent and received them, and what befell the cluster.
//!
//! Types are generic over how a text is held: [`Symbol`] in memory, `String` in a file.

use serde::{Deserialize, Serialize};

/// Nanoseconds of the observer's one monotonic clock.
pub type Nanoseconds = u64;

/// A text that a [`History`](crate::History) keeps once: a Client Identifier, Topic Name, Topic Filter or reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(pub(crate) u32);

/// The number a publisher puts into its payload, unique in the history; a Will Message has one too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(pub u64);

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event<S = Symbol> {
    /// When: for a packet that was sent, not after its first byte left; for one received, when it was read.
    pub at: Nanoseconds,
    /// What.
    pub what: What<S>,
}

/// What an event tells of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What<S = Symbol> {
    /// A client sent, received or saw something.
    Client {
        /// Its Client Identifier.
        client: S,
        /// Which of its connections, numbered as they were opened.
        connection: u32,
        /// The node it is connected to.
        node: u16,
        /// What it sent, received or saw.
        action: Action<S>,
    },
    /// A node's process ended without notice.
    NodeCrashed {
        /// Which.
        node: u16,
    },
    /// The node runs again.
    NodeRecovered {
        /// Which.
        node: u16,
    },
    /// A fault other than a crash begins: a partition, a pause, a full disk.
    FaultBegan {
        /// Tells it from the others.
        fault: u32,
        /// Its kind, for the reader.
        kind: S,
    },
    /// That fault is over.
    FaultHealed {
        /// Which.
        fault: u32,
    },
    /// A metric says that the cluster dropped messages that P1 would have delivered: QoS above 0, not expired.
    Dropped {
        /// The metric's reason.
        reason: S,
        /// How many since the last such event of this reason.
        count: u64,
        /// Whose session, if the metric tells.
        client: Option<S>,
    },
    /// What the cluster says of itself; looked at when it had time to recover.
    Registry {
        /// Every connection that is registered: a Client Identifier may stand there once.
        owners: Vec<S>,
        /// The filters that are routed anywhere.
        routes: Vec<S>,
        /// Groups without a leader.
        leaderless: Vec<u16>,
    },
    /// All faults are healed, and each connected session has been sent all that it is owed.
    Quiesced,
}

/// What a client sent, received or saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action<S = Symbol> {
    /// CONNECT was sent. An MQTT 3.1.1 Clean Session is Clean Start with an expiry of 0; its absence, one of `u32::MAX`.
    ConnectSent(Box<Connect<S>>),
    /// CONNACK came.
    ConnAck {
        /// Its Reason Code.
        reason: u8,
        /// Its Session Present flag.
        session_present: bool,
        /// The Session Expiry Interval, if the server chose another.
        session_expiry: Option<u32>,
    },
    /// SUBSCRIBE was sent.
    SubscribeSent(Box<Subscribe<S>>),
    /// SUBACK came.
    SubAck {
        /// Its Packet Identifier.
        packet_id: u16,
        /// A Reason Code for each filter.
        reasons: Box<[u8]>,
    },
    /// UNSUBSCRIBE was sent.
    UnsubscribeSent {
        /// Its Packet Identifier.
        packet_id: u16,
        /// Its Topic Filters.
        filters: Box<[S]>,
    },
    /// UNSUBACK came.
    UnsubAck {
        /// Its Packet Identifier.
        packet_id: u16,
        /// A Reason Code for each filter; empty for MQTT 3.1.1, which has none.
        reasons: Box<[u8]>,
    },
    /// PUBLISH was sent.
    PublishSent(Publish<S>),
    /// PUBACK came.
    PubAckReceived(Answer),
    /// PUBREC came.
    PubRecReceived(Answer),
    /// PUBREL was sent.
    PubRelSent(Answer),
    /// PUBCOMP came.
    PubCompReceived(Answer),
    /// PUBLISH came.
    Delivered(Delivery<S>),
    /// PUBACK was sent.
    PubAckSent(Answer),
    /// PUBREC was sent.
    PubRecSent(Answer),
    /// PUBREL came.
    PubRelReceived(Answer),
    /// PUBCOMP was sent.
    PubCompSent(Answer),
    /// PINGRESP came: a proof that the connection lives. Recording it is optional.
    PingResp,
    /// DISCONNECT was sent.
    DisconnectSent {
        /// Its Reason Code.
        reason: u8,
        /// Its Session Expiry Interval, if it has one.
        session_expiry: Option<u32>,
    },
    /// DISCONNECT came.
    DisconnectReceived {
        /// Its Reason Code.
        reason: u8,
    },
    /// The connection is over.
    ConnectionClosed {
        /// By whom, as far as the client can tell.
        by: ClosedBy,
    },
}

/// Who closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClosedBy {
    /// The client itself.
    Client,
    /// The server, or the end of its process: the client read the end of the stream.
    Server,
    /// The network: a reset, a time-out, a fault that was injected.
    Network,
}

/// What matters of a CONNECT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connect<S = Symbol> {
    /// Clean Start.
    pub clean_start: bool,
    /// Session Expiry Interval in seconds; `u32::MAX` means never.
    pub session_expiry: u32,
    /// The Will Message.
    pub will: Option<Will<S>>,
}

/// A Will Message and when it is due.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Will<S = Symbol> {
    /// Will Topic.
    pub topic: S,
    /// Will QoS.
    pub qos: u8,
    /// Will Retain.
    pub retain: bool,
    /// Will Delay Interval in seconds.
    pub delay: u32,
    /// The number in its payload; another for each CONNECT.
    pub message: MessageId,
}

/// What matters of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subscribe<S = Symbol> {
    /// Packet Identifier.
    pub packet_id: u16,
    /// Filters with their options.
    pub filters: Vec<Subscription<S>>,
}

/// A Topic Filter and its Subscription Options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription<S = Symbol> {
    /// The Topic Filter, `$share/…` included.
    pub filter: S,
    /// Maximum QoS.
    pub qos: u8,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Retain Handling: 0, 1 or 2.
    pub retain_handling: u8,
}

/// What matters of a PUBLISH that a client sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Publish<S = Symbol> {
    /// Packet Identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// DUP.
    pub dup: bool,
    /// QoS.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// Topic Name.
    pub topic: S,
    /// Message Expiry Interval in seconds.
    pub expiry: Option<u32>,
    /// The number in its payload; a second try has the same.
    pub message: MessageId,
    /// The payload is empty, so that with RETAIN it deletes; then only the sender knows the number.
    pub empty: bool,
}

/// What matters of a PUBLISH that a client receives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery<S = Symbol> {
    /// Packet Identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// DUP.
    pub dup: bool,
    /// QoS.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// Topic Name.
    pub topic: S,
    /// The number in the payload; none if it is empty.
    pub message: Option<MessageId>,
    /// Message Expiry Interval in seconds: what is left of it.
    pub expiry: Option<u32>,
    /// Subscription Identifiers.
    pub identifiers: Box<[u32]>,
}

/// A PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Packet Identifier.
    pub packet_id: u16,
    /// Reason Code.
    pub reason: u8,
}

impl<S> Event<S> {
    /// The same event with every text held in another way.
    pub fn map<T>(self, text: &mut impl FnMut(S) -> T) -> Event<T> {
        let what = match self.what {
            What::Client { client, connection, node, action } => {
                What::Client { client: text(client), connection, node, action: action.map(text) }
            }
            What::NodeCrashed { node } => What::NodeCrashed { node },
            What::NodeRecovered { node } => What::NodeRecovered { node },
            What::FaultBegan { fault, kind } => What::FaultBegan { fault, kind: text(kind) },
            What::FaultHealed { fault } => What::FaultHealed { fault },
            What::Dropped { reason, count, client } => {
                What::Dropped { reason: text(reason), count, client: client.map(text) }
            }
            What::Registry { owners, routes, leaderless } => What::Registry {
                owners: owners.into_iter().map(&mut *text).collect(),
                routes: routes.into_iter().map(text).collect(),
                leaderless,
            },
            What::Quiesced => What::Quiesced,
        };
        Event { at: self.at, what }
    }
}

impl<S> Action<S> {
    fn map<T>(self, text: &mut impl FnMut(S) -> T) -> Action<T> {
        match self {
            Self::ConnectSent(connect) => {
                let Connect { clean_start, session_expiry, will } = *connect;
                let will = will.map(|Will { topic, qos, retain, delay, message }| Will {
                    topic: text(topic),
                    qos,
                    retain,
                    delay,
                    message,
                });
                Action::ConnectSent(Box::new(Connect { clean_start, session_expiry, will }))
            }
            Self::ConnAck { reason, session_present, session_expiry } => {
                Action::ConnAck { reason, session_present, session_expiry }
            }
            Self::SubscribeSent(subscribe) => {
                let Subscribe { packet_id, filters } = *subscribe;
                let filters = filters.into_iter().map(|subscription| subscription.map(text)).collect();
                Action::SubscribeSent(Box::new(Subscribe { packet_id, filters }))
            }
            Self::SubAck { packet_id, reasons } => Action::SubAck { packet_id, reasons },
            Self::UnsubscribeSent { packet_id, filters } => {
                let filters = filters.into_iter().map(text).collect();
                Action::UnsubscribeSent { packet_id, filters }
            }
            Self::UnsubAck { packet_id, reasons } => Action::UnsubAck { packet_id, reasons },
            Self::PublishSent(Publish { packet_id, dup, qos, retain, topic, expiry, message, empty }) => {
                let topic = text(topic);
                Action::PublishSent(Publish { packet_id, dup, qos, retain, topic, expiry, message, empty })
            }
            Self::Delivered(Delivery { packet_id, dup, qos, retain, topic, message, expiry, identifiers }) => {
                let topic = text(topic);
                Action::Delivered(Delivery { packet_id, dup, qos, retain, topic, message, expiry, identifiers })
            }
            Self::PubAckReceived(answer) => Action::PubAckReceived(answer),
            Self::PubRecReceived(answer) => Action::PubRecReceived(answer),
            Self::PubRelSent(answer) => Action::PubRelSent(answer),
            Self::PubCompReceived(answer) => Action::PubCompReceived(answer),
            Self::PubAckSent(answer) => Action::PubAckSent(answer),
            Self::PubRecSent(answer) => Action::PubRecSent(answer),
            Self::PubRelReceived(answer) => Action::PubRelReceived(answer),
            Self::PubCompSent(answer) => Action::PubCompSent(answer),
            Self::PingResp => Action::PingResp,
            Self::DisconnectSent { reason, session_expiry } => Action::DisconnectSent { reason, session_expiry },
            Self::DisconnectReceived { reason } => Action::DisconnectReceived { reason },
            Self::ConnectionClosed { by } => Action::ConnectionClosed { by },
        }
    }
}

impl<S> Subscription<S> {
    fn map<T>(self, text: &mut impl FnMut(S) -> T) -> Subscription<T> {
        let Self { filter, qos, no_local, retain_as_published, retain_handling } = self;
        Subscription { filter: text(filter), qos, no_local, retain_as_published, retain_handling }
    }
}
