//! What is said while a cluster is backed up, as protobuf: fields may be added, and who does not know one skips it.
//!
//! The one that backs up speaks with every node that lives, each of which *holds*: of what its groups route from their outboxes, nothing is taken out
//! of them any more. When all hold, nodes *capture* groups: each has, or gets, a checkpoint with everything that was
//! committed anywhere before, and keeps it open. Then they are released, and what was captured is handed over.
//!
//! Without the hold, a message might be lost that was acknowledged long before: its outbox is captured when it has gone from there, and the group
//! that it went to was captured before it came. With it, whatever is gone from a captured outbox was in its targets
//! before any group was captured.

use bytes::Bytes;

/// What is ordered. The first order is [`Order::Hold`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BackupOrder {
    /// Which.
    #[prost(oneof = "Order", tags = "1, 2, 3, 4")]
    pub order: Option<Order>,
}

/// See [`BackupOrder`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Order {
    /// Keep in the outboxes what is in them, from here on.
    #[prost(message, tag = "1")]
    Hold(Groups),
    /// Capture these groups.
    #[prost(message, tag = "2")]
    Capture(Groups),
    /// Hold no more.
    #[prost(message, tag = "3")]
    Release(Groups),
    /// Hand over these groups, which were captured.
    #[prost(message, tag = "4")]
    Send(Groups),
}

/// Some groups; none where the order is not about groups.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Groups {
    /// By their numbers.
    #[prost(uint32, repeated, tag = "1")]
    pub groups: Vec<u32>,
}

/// An answer, in the order of the orders.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BackupAnswer {
    /// Which.
    #[prost(oneof = "Said", tags = "1, 2, 3, 4, 5")]
    pub said: Option<Said>,
}

/// See [`BackupAnswer`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Said {
    /// It holds.
    #[prost(message, tag = "1")]
    Holds(Holds),
    /// They were captured.
    #[prost(message, tag = "2")]
    Captured(Groups),
    /// It holds no more.
    #[prost(message, tag = "3")]
    Released(Released),
    /// A part of the group that is handed over.
    #[prost(bytes = "bytes", tag = "4")]
    Data(Bytes),
    /// The group was handed over; the next one comes.
    #[prost(uint32, tag = "5")]
    GroupEnd(u32),
}

/// Who holds.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Holds {
    /// Its registration.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// The record of its cluster's formation.
    #[prost(bytes = "bytes", tag = "2")]
    pub formation: Bytes,
}

/// Whether what was captured can be believed.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Released {
    /// It held all the time: it gives up when that takes too long.
    #[prost(bool, tag = "1")]
    pub held: bool,
}

impl Order {
    /// As it is said.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        prost::Message::encode_to_vec(&BackupOrder { order: Some(self.clone()) }).into()
    }
}

impl Said {
    /// As it is said.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        prost::Message::encode_to_vec(&BackupAnswer { said: Some(self.clone()) }).into()
    }
}
