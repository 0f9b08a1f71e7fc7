//! The broker over real sockets: real processes, one behaviour a test.

mod support;

mod first_light;
mod sessions;
