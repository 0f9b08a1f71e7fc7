//! Several processes that are one broker, and the promises that they make together.

pub mod nodes;

mod api;
mod backup;
mod balance;
mod bans;
mod certificates;
mod copies;
mod drain;
mod growth;
mod kills;
mod membership;
mod messages;
mod recovery;
mod rolling;
mod sessions;
mod snapshots;
mod spread;
mod transfer;
#[cfg(feature = "simulation")]
mod upgrade;
mod users;
mod watching;
mod workload;
mod zones;
