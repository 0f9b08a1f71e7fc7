//! Many commands in one entry: their lengths stand before them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::transport::FRAME_BYTES_MAX;

/// Bytes of the longest command. Its entry goes to others in one message, and that in one frame: what is longer would stay in its leader's
/// log, and all that is proposed behind it as well.
pub const COMMAND_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;

/// Bytes of commands that are packed into one entry, if one command alone is not larger.
pub(super) const PACK_BYTES_MAX: usize = 256 * 1024;

/// Commands that wait for their entry.
#[derive(Debug, Default)]
pub(super) struct Pack {
    bytes: BytesMut,
}

impl Pack {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn has_room_for(&self, command: &[u8]) -> bool {
        self.bytes.is_empty() || self.bytes.len() + command.len() + 4 <= PACK_BYTES_MAX
    }

    pub(super) fn push(&mut self, command: &[u8]) {
        self.bytes.reserve(command.len() + 4);
        self.bytes.put_u32_le(command.len() as u32);
        self.bytes.extend_from_slice(command);
    }

    /// The packed commands; the next pack begins.
    pub(super) fn take(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }
}

/// Packs commands into the payload of one entry.
#[must_use]
pub fn pack(commands: &[Bytes]) -> Bytes {
    let mut pack = Pack::default();
    commands.iter().for_each(|command| pack.push(command));
    pack.take()
}

/// The commands of an entry's payload.
pub fn unpack(mut packed: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        if packed.len() < 4 {
            return None;
        }
        let length = (packed.get_u32_le() as usize).min(packed.len());
        Some(packed.split_to(length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_out_as_they_went_in() {
        let commands = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"three")];
        assert_eq!(unpack(pack(&commands)).collect::<Vec<_>>(), commands);
    }

    #[test]
    fn a_payload_that_nobody_packed_gives_what_is_there() {
        assert_eq!(unpack(Bytes::from_static(b"\xff\xff\xff\xffab")).collect::<Vec<_>>(), [&b"ab"[..]]);
        assert_eq!(unpack(Bytes::from_static(b"abc")).count(), 0);
    }
}
