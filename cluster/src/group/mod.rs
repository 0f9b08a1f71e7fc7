//! One group on one node: Raft by `raft-rs`, its log in memory, and what goes in and comes out.
//!
//! [`Group`] is the only place, with [`GroupStorage`], that names `raft-rs`. Nothing here performs I/O or reads a clock:
//! [`crate::node`] writes what a group adds to the log, and says when it is safe.

mod configuration;
mod driver;
mod forgetful;
mod keeping;
mod message;
mod packing;
mod reads;
mod storage;

pub use configuration::{Change, CheckpointBase, Configuration};
pub use driver::{Committed, GroupStatus, HandOverError, NotLeader, PeerStatus, ProposeChangeError, Role, Target};
pub(crate) use driver::{Group, GroupConfig, write_anew};
pub use keeping::Keeping;
pub use message::MessageError;
pub use packing::{COMMAND_BYTES_MAX, pack, unpack};
pub(crate) use storage::GroupStorage;

#[cfg(test)]
mod tests;
