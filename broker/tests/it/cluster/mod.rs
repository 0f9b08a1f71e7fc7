//! Several processes that are one broker, and the promises that they make together.

pub mod nodes;

mod backup;
mod certificates;
mod growth;
mod kills;
mod membership;
mod messages;
mod recovery;
mod sessions;
mod snapshots;
mod spread;
#[cfg(feature = "simulation")]
mod upgrade;
mod workload;
mod zones;
