//! The broker over real sockets: real processes, one behaviour a test.

mod support;

mod durability;
mod first_light;
mod operation;
mod rumqttc;
mod sessions;
