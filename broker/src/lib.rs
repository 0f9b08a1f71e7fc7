//! Kentongan: a clustered, high-throughput MQTT broker.
//!
//! See ARCHITECTURE.md for the way of one PUBLISH through these modules.

pub mod api;
pub mod audit;
pub mod auth;
pub mod bans;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection;
pub mod connection_key;
pub mod descriptors;
pub mod drops;
pub mod ending;
pub mod events;
pub mod groups;
pub mod http;
pub mod http_client;
pub mod later;
pub mod listener;
mod log_lines;
pub mod memory;
pub mod message;
pub mod metrics;
pub mod mount;
pub mod moving;
pub mod operator;
pub mod peers;
pub mod plants;
pub mod random;
pub mod replicated;
pub mod router;
pub mod service_manager;
pub mod session;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
pub mod subscription;
pub mod tls;
pub mod watching;
