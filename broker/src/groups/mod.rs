//! The groups of this node at work: what was committed is applied here, and its effects are carried out.
//!
//! [`crate::replicated`] says what a command changes and what follows; [`machine`] makes it happen, on the one thread on
//! which groups change; [`start()`] takes up what the disk has.

mod backup;
mod certificates;
mod health;
pub mod incoming;
pub(crate) mod machine;
mod member;
mod outboxes;
mod pushes;
mod read_ahead;
mod search;
mod share_loads;
pub(crate) mod start;
mod unreached;

pub use health::Health;
pub use start::{Running, start};
