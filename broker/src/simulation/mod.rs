//! Whole nodes in one thread, with their disks, clocks and clients, on simulated time and from a seed.
//!
//! A node is what it is in the product, from the log and its checkpoints to the connections: the pipeline and the arbiters are driven by
//! plain calls, and what is below and around them is simulated. [`World`] owns it all and the one order of what happens: which
//! thread of which process has its next turn, which frame arrives, which byte. All of it is drawn from the seed, so that a
//! seed repeats event for event, which `tests` tries.
//!
//! - `host`: a machine with its disk and clocks, and the process on it. `network`: the links between nodes. `streams`: the
//!   connections of clients. `faults`: what befalls them all. [`workload`]: the clients, who record what they see.
//! - `checks`: what must hold whatever clients see: every replica applies the same entries and has the same state after them. Clients'
//!   histories are judged by [`kentongan_history`].
//! - `registry`: what nodes hold at the end. Who is connected is registered once, at the epoch its group says; the tables of each
//!   node are those of one that heard of everything once; and nothing is left that nobody waits for (P12).
//! - `run`: one seed after the other, for tests and for the program `sim`.
//!
//! Absent: the acceptor, TLS, the forming of a cluster, HTTP. Members of a cluster do not change.
//!
//! # Mistakes that must be found
//!
//! [`Plant`](crate::plants::Plant)s are found here. Others are found where the part is simulated by itself:
//!
//! | mistake | found in |
//! |---|---|
//! | a sync is skipped, commands are handed out before they are committed, the log is purged before the checkpoint, a learner is promoted early, a read without quorum | `cluster/src/node/simulation` |
//! | a lease is looked at before the match, a barrier of a group is skipped, a stale `Join` counts, a late joiner misses a barrier; and those of the directory that are planted here too | `cluster/tests/membership` |
//! | any one of the syncs is removed | `cluster/tests/power_cut.rs` |

mod checks;
mod faults;
mod host;
mod network;
mod registry;
mod run;
mod streams;
#[cfg(test)]
mod tampering;
#[cfg(test)]
mod tests;
pub mod workload;
mod world;

pub use run::{Failure, Found, Summary, find, run_seed};
pub use world::{Outcome, Plan, World};
