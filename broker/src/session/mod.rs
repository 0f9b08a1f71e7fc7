//! The MQTT session, without I/O.
