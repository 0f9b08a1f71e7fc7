//! Leases: why a node may believe that it is still a member.
//!
//! A node renews its lease with the leader of the directory. As long as the lease is valid, no other node has given up
//! waiting for this one: what others acknowledged, this one had confirmed. The two halves:
//!
//! - [`Granter`], at the leader of the directory, grants, and proposes the death of who fell silent.
//! - [`Holder`], at every node, asks, and publishes how long the answer is good for in a [`LeaseCell`].
//!
//! They count on different clocks, so each errs to the safe side by a tenth: the holder counts a lease from just before it
//! asked, less a tenth; the granter from when it heard the question, plus a tenth. Clocks may therefore differ in rate by
//! almost a fifth, and in their reading by anything.

mod cell;
mod granter;
mod holder;

pub use cell::LeaseCell;
pub use granter::{Granter, GranterOutput, ReadToken};
pub use holder::{Holder, HolderOutput, Standing};

/// How long a lease lasts, nanoseconds.
pub const LEASE_NS: u64 = 1_500_000_000;

/// How often it is renewed, nanoseconds.
pub const RENEW_INTERVAL_NS: u64 = 300_000_000;

/// How long a node without a lease keeps its clients, nanoseconds.
pub const KEEP_CLIENTS_NS: u64 = 10_000_000_000;

/// What each half takes off or adds for the rates of clocks.
const MARGIN_NS: u64 = LEASE_NS / 10;

/// How long a lease is good for at its holder, from just before it asked.
const HELD_NS: u64 = LEASE_NS - MARGIN_NS;

/// How long the leader waits for its holder, from when it heard the question.
pub(crate) const GRANTED_NS: u64 = LEASE_NS + MARGIN_NS;
