//! The groups: persistent sessions, their queues, retained messages and wills, changed only by committed commands.

pub mod command;
mod interface;
mod slots;
mod temp;
pub use temp::*;

pub use interface::{
    ClaimRequest, DeliverPersistent, LaneAnswer, Opened, RetainedCursor, RetainedPage, SubscribeOutcome,
    SubscribedPersistent, UnsubscribedPersistent,
};
pub use slots::Slots;
