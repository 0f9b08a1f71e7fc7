//! Clients that are sent to other nodes: all of them when this node is drained or stops, the surplus when it has clearly more
//! than the others.
//!
//! [`Elsewhere`] is what the arbiters know of it: whether this node takes clients, and where else they may go. [`mover`] says
//! how many go and when, by two plain functions of (counts, now), [`Pace`] and [`Leveling`]; which ones is for the arbiters
//! to choose (`router/moving.rs`).
//!
//! A client that is moved hears DISCONNECT with 0x9C (Use another server) and, if somebody said where clients reach the other
//! nodes, a Server Reference (MQTT 5, section 4.11); one of an older version is closed. Its session stays where it is kept.

mod elsewhere;
mod leveling;
pub mod mover;
mod pace;

pub use elsewhere::{Elsewhere, Place};
pub use leveling::Leveling;
pub use pace::{Pace, shares};
