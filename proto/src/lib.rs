//! Every byte on a wire: MQTT packets and their codec, Topic Names and Topic Filters, and what nodes say to each other.
//!
//! No runtime, no clock, no randomness, no I/O: bytes in, typed values out, and back.

pub mod mqtt;
pub mod peer;
pub mod topic;
