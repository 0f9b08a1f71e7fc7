//! The broker over real sockets: real processes, one behaviour a test.

mod support;

mod abuse;
mod conformance;
mod durability;
mod first_light;
mod operation;
mod powercut;
mod pub_sub;
mod resume;
mod rumqttc;
mod sessions;
