//! From a PUBLISH to the connections, arbiters and groups that want it.
//!
//! Each arbiter (one thread, one tokio runtime) owns the connections that were accepted for it, in a slab, with
//! everything that a delivery touches. What crosses between arbiters is a batch; what needs the log goes through a
//! lane to a group. Nothing on the way of a publish to transient subscribers takes a lock or leaves its arbiter.
//!
//! - [`arbiter`]: the state of one arbiter, and a turn of its loop: read, route, flush.
//! - `packets`, `connect`, `subscribe`, `publish`, `deliver`: what each kind of packet leads to.
//! - [`batch`], [`inbox`]: the way between threads. `lanes`: the way to the groups, and what waits for them.
//! - [`cluster`]: what is said again, and withheld, where there are several nodes. [`share_settling`]: messages for a
//!   member elsewhere, until they are settled. `changing`: subscriptions that go over from groups to arbiters, or back.
//! - `moving`: clients that are told to use another server.
//! - [`registry`]: who holds which Client Identifier. `claims`: who claims one, a few at a time.
//! - [`pace`]: how fast clients may publish; `banned`: who may not be here at all.
//! - `looking_again`: who is connected, held against files that were read again.
//! - [`keep_alive`]: the wheel of deadlines.
//! - [`visit`]: what an operator sees of the connections.
//! - [`stepped`]: an arbiter without a thread, for simulations.

pub mod arbiter;
pub mod backlog;
mod banned;
pub mod batch;
mod changing;
mod claims;
pub mod client;
mod client_events;
pub mod cluster;
mod connect;
mod deliver;
mod ended;
mod events;
mod flapping;
mod handshaking;
mod hung_up;
pub mod inbox;
#[cfg(test)]
mod inbox_model;
#[cfg(test)]
mod inbox_tests;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod inspect;
pub mod keep_alive;
mod lanes;
pub(crate) mod log_rate;
mod looking_again;
mod moving;
pub mod node_lanes;
pub mod pace;
mod packets;
pub mod patient_answers;
pub mod publish;
mod pulse;
pub mod registry;
mod renewal;
mod retained_read;
pub mod share_settling;
pub mod shared;
pub mod stepped;
mod subscribe;
pub mod sys;
mod timing;
pub mod visit;
mod watched;

/// What [`inbox`] is made of.
mod sync {
    pub use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

    pub use crossbeam::queue::SegQueue;
    pub use futures_util::task::AtomicWaker;
}

use crate::connection_key::ConnectionKey;
pub use arbiter::ArbiterState;
pub use events::Event;
pub use looking_again::Changed;
pub use pulse::{Pulse, Silence};
pub use shared::Shared;
pub use stepped::SteppedArbiter;
