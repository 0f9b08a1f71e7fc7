//! What an operator wants of a member, beside the question how it is, and what becomes of it. As protobuf: fields may be
//! added, and who does not know one skips it.
//!
//! It comes as [`Question::Administer`](kentongan_cluster::transport::Question::Administer), and so is as guarded as the
//! removal of a member: where nodes speak TLS only who holds a certificate of the cluster is heard, and without TLS only who
//! is on this machine.

use bytes::Bytes;
use kentongan_cluster::directory::command::Ban;
use prost::Message as _;

/// The question.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Administration {
    /// What is wanted; unset if this version does not know it.
    #[prost(oneof = "Act", tags = "1, 2, 3, 4, 5, 6")]
    pub act: Option<Act>,
}

/// What is wanted.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Act {
    /// That a member leads nothing and has no clients, or that this is over. The directory's leader decides.
    #[prost(message, tag = "1")]
    Drain(Drain),
    /// That a voter of a group leads it from now on, if it can. The group's leader decides.
    #[prost(message, tag = "2")]
    HandOver(HandOver),
    /// That it is to lead it whenever it can. The directory's leader decides.
    #[prost(message, tag = "3")]
    Prefer(HandOver),
    /// That somebody is kept out, or let in again. The directory's leader decides.
    #[prost(message, tag = "4")]
    Ban(Ban),
    /// To be told who is kept out, as far as whoever is asked knows.
    #[prost(message, tag = "5")]
    Bans(BansBehind),
    /// To be told something of the node that is asked, or that it does something by itself.
    #[prost(message, tag = "6")]
    Say(Say),
}

/// See [`Act::Bans`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BansBehind {
    /// Those whose subjects come behind this one, [`BANS_A_PAGE`] at most.
    #[prost(string, tag = "1")]
    pub subject: String,
}

/// Bans in one answer.
pub const BANS_A_PAGE: usize = 500;

/// See [`Act::Say`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Say {
    /// A [`Question`](crate::operator::Question) in JSON.
    #[prost(bytes = "bytes", tag = "1")]
    pub question: Bytes,
}

/// See [`Act::Drain`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Drain {
    /// Which node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Whether it begins or is over.
    #[prost(bool, tag = "2")]
    pub on: bool,
}

/// See [`Act::HandOver`] and [`Act::Prefer`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HandOver {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// Which node; 0: whoever the cluster chooses.
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

/// What became of it. If nothing is set, it is under way, or nobody can decide now: ask again.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Administered {
    /// It is so.
    #[prost(bool, tag = "1")]
    pub done: bool,
    /// Another member decides: ask at this address.
    #[prost(string, tag = "2")]
    pub elsewhere: String,
    /// It cannot be; why.
    #[prost(string, tag = "3")]
    pub refusal: String,
    /// Why it must be asked again.
    #[prost(string, tag = "4")]
    pub hindrance: String,
    /// See [`Act::Bans`]; those that are over are left out.
    #[prost(message, repeated, tag = "5")]
    pub bans: Vec<Ban>,
    /// What was asked by [`Act::Say`], in JSON.
    #[prost(bytes = "bytes", tag = "6")]
    pub said: Bytes,
}

impl Administration {
    /// That this is wanted.
    #[must_use]
    pub fn encode_question(act: Act) -> Bytes {
        Self { act: Some(act) }.encode_to_vec().into()
    }

    /// Reads such a question. `Ok(None)`: one of a later version.
    ///
    /// # Errors
    /// It is something else.
    pub fn decode_question(question: Bytes) -> Result<Option<Act>, prost::DecodeError> {
        Self::decode(question).map(|administration| administration.act)
    }
}

impl Administered {
    /// The answer.
    #[must_use]
    pub fn encode_answer(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// Reads such an answer.
    ///
    /// # Errors
    /// It is something else.
    pub fn decode_answer(answer: Bytes) -> Result<Self, prost::DecodeError> {
        Self::decode(answer)
    }
}
