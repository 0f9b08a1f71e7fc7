//! The state machine of a group: persistent sessions, queues, retained messages, wills.
//!
//! Plain deterministic Rust: a [`command::Command`] in, [`effect::Effect`]s out. No clock, no randomness, no I/O: the
//! same commands give the same state on every replica, byte for byte.

pub mod command;
pub mod effect;
