//! The groups: persistent sessions, their queues, retained messages and wills, changed only by committed commands.
//!
//! - [`command`]: what is proposed and committed. [`effect`]: what follows from it.
//! - [`state`]: the state machine of a group: commands in, effects out; `retained` and `session` are parts of it, `store`
//!   is what of it goes to disk at a checkpoint, [`rows`] how it is read there, `bodies` what of the messages is in memory.
//! - [`submitter`]: how arbiters propose. Who applies, and carries the effects out, is [`crate::groups`].

mod bodies;
pub mod command;
pub mod effect;
pub mod group_settings;
mod interface;
mod publishers;
pub mod retained;
pub mod rows;
pub mod session;
mod session_command;
mod slots;
pub mod state;
pub mod store;
pub mod submitter;

pub use bodies::{PageRequest, ReadPage};
pub use interface::{
    ClaimRequest, DeliverPersistent, InterestChanges, LaneAnswer, Opened, PersistentSession, RetainedCursor,
    RetainedPage, SubscribeOutcome, SubscribedPersistent, UnsubscribedPersistent,
};
pub use slots::{SLOTS, Slots};
pub use submitter::{Look, Query, Submitter};
