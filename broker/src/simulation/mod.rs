//! Whole nodes in one thread, with their disks, clocks and clients, on simulated time and from a seed.

mod checks;
mod faults;
mod host;
mod network;
mod run;
mod streams;
pub mod workload;
mod world;

pub use run::{Failure, Summary, run_seed};
pub use world::{Outcome, Plan, World};
