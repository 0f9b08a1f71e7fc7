//! Load and verification for MQTT brokers.
fn main() {}
