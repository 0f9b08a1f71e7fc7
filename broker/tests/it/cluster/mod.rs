//! Several processes that are one broker, and the promises that they make together.

pub mod nodes;

mod balance;
mod drain;
mod growth;
mod kills;
mod membership;
mod messages;
mod rolling;
mod sessions;
mod snapshots;
mod spread;
mod transfer;
mod workload;
