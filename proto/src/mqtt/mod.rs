//! MQTT 3.1, 3.1.1 and 5: one packet model, two byte formats.

pub mod codec;
mod packet;
mod property;
mod reason_code;

pub use packet::*;
pub use property::*;
pub use reason_code::ReasonCode;
