//! Where one Control Packet ends and the next begins.

use super::{Malformed, read_varint};

/// The extent of one Control Packet at the start of a buffer; its body may not have arrived yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Packet type and flags.
    pub first: u8,
    /// Bytes before the body.
    pub header_bytes: usize,
    /// Remaining Length.
    pub body_bytes: usize,
}

impl Frame {
    /// The bytes of the whole packet.
    #[inline]
    pub fn bytes(self) -> usize {
        self.header_bytes + self.body_bytes
    }
}

/// Reads a fixed header; `None` when it is cut off.
#[inline]
pub fn scan(bytes: &[u8]) -> Result<Option<Frame>, Malformed> {
    let Some((&first, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let length = read_varint(rest)?;
    Ok(length.map(|(body_bytes, length_bytes)| Frame { first, header_bytes: 1 + length_bytes, body_bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_once_it_is_whole() {
        assert_eq!(scan(&[]), Ok(None));
        assert_eq!(scan(&[0x30, 0x80]), Ok(None));
        let frame = scan(&[0x30, 0x80, 0x01, 0xFF]).unwrap().unwrap();
        assert_eq!(frame, Frame { first: 0x30, header_bytes: 3, body_bytes: 128 });
        assert_eq!(frame.bytes(), 131);
    }
}
