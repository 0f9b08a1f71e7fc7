//! The MQTT session, without I/O.

pub mod outbound;
