//! Bytes: what is rare is encoded packet by packet ([`handshake`]); a PUBLISH is a template that is
//! copied and patched, and an arriving one is read in place.
//!
//! The generator must be much cheaper than the broker it measures, so the hot half of this module
//! knows only as much of MQTT as it needs.

mod frame;
pub mod handshake;
mod publish;

pub use frame::{Frame, scan};
pub use publish::{Incoming, PublishTemplate, Target};

/// The broker sent bytes that are not MQTT. Always the broker's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker sent malformed bytes: {0}")]
pub struct Malformed(pub &'static str);

/// Control Packet types, the high nibble of the first byte.
pub mod packet_type {
    #![allow(missing_docs, reason = "the names are those of the standard")]
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBACK: u8 = 9;
    pub const UNSUBACK: u8 = 11;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
}

/// Appends the four bytes of PUBACK, PUBREC, PUBREL or PUBCOMP, which are the same in all versions
/// when they report success.
#[inline]
pub fn append_ack(out: &mut Vec<u8>, packet_type: u8, packet_id: u16) {
    // PUBREL alone has flags [MQTT-3.6.1-1].
    let flags = if packet_type == packet_type::PUBREL { 2 } else { 0 };
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[packet_type << 4 | flags, 2, high, low]);
}

/// Appends a PINGREQ.
pub fn append_ping(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xC0, 0]);
}

/// Appends a DISCONNECT with the reason "normal", which every version writes alike.
pub fn append_disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xE0, 0]);
}

/// Reads the Packet Identifier and, where there is one, the Reason Code of an acknowledgement.
#[inline]
pub fn read_ack(body: &[u8]) -> Result<(u16, u8), Malformed> {
    match *body {
        [high, low] => Ok((u16::from_be_bytes([high, low]), 0)),
        [high, low, reason, ..] => Ok((u16::from_be_bytes([high, low]), reason)),
        _ => Err(Malformed("acknowledgement without Packet Identifier")),
    }
}

/// A Variable Byte Integer at the start of `bytes`: its value and length. `None` when it is cut off.
#[inline]
fn read_varint(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut value = 0;
    for (i, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= 4 { Err(Malformed("Variable Byte Integer of more than four bytes")) } else { Ok(None) }
}

fn append_varint(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

fn append_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_length() {
        for value in [0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455] {
            let mut bytes = Vec::new();
            append_varint(&mut bytes, value);
            assert_eq!(read_varint(&bytes), Ok(Some((value, bytes.len()))));
            assert_eq!(read_varint(&bytes[..bytes.len() - 1]), Ok(None));
        }
        assert!(read_varint(&[0x80, 0x80, 0x80, 0x80, 1]).is_err());
    }

    #[test]
    fn acknowledgements_are_read_with_and_without_reason() {
        let mut bytes = Vec::new();
        append_ack(&mut bytes, packet_type::PUBREL, 0x1234);
        assert_eq!(bytes, [0x62, 2, 0x12, 0x34]);
        assert_eq!(read_ack(&bytes[2..]), Ok((0x1234, 0)));
        assert_eq!(read_ack(&[0, 7, 0x97, 0]), Ok((7, 0x97)));
        assert!(read_ack(&[0]).is_err());
    }
}
