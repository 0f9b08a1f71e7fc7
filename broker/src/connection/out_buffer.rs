//! What waits to be written to a socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;

use super::Transport;

/// From this size on a payload is shared between connections instead of copied into each buffer: below it a copy
/// costs less than a reference count and an entry in `writev`.
pub const SHARED_PAYLOAD_BYTES_MIN: usize = 3 * 1024;

/// A buffer that grew beyond this is not kept in the pool.
const POOLED_BYTES_MAX: usize = 256 * 1024;
const POOLED_BUFFERS_MAX: usize = 256;
const FIRST_CAPACITY_BYTES: usize = 1024;
const PIECES_MAX: usize = 32;

/// With more than this in it a copied buffer takes no more packets: the next one goes into another. What is written is given
/// back buffer by buffer, so a client that is always a little behind holds no more than what waits for it; and none of them
/// grows by doubling what a slow client may cost. Most packets fit into what is left of 16 KiB.
const COPIED_BYTES_MAX: usize = 14 * 1024;

/// Empty buffers of one arbiter, for the next connection that has something to write.
#[derive(Debug, Default)]
pub struct BufferPool {
    buffers: Vec<Vec<u8>>,
}

impl BufferPool {
    /// An empty buffer with some capacity.
    #[inline]
    fn take(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_else(|| Vec::with_capacity(FIRST_CAPACITY_BYTES))
    }

    #[inline]
    fn give(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= POOLED_BYTES_MAX && self.buffers.len() < POOLED_BUFFERS_MAX {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}

/// Bytes of one connection written in one turn, so that a burst does not keep those of others waiting.
const FLUSHED_BYTES_MAX: usize = 256 * 1024;

/// The same where large payloads are among them, which come in greater numbers.
const LARGE_FLUSHED_BYTES_MAX: usize = 64 * 1024;

/// How far [`OutBuffer::flush`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Everything is written.
    All,
    /// The socket takes no more for now.
    Blocked,
    /// It would take more, but others have their turn first.
    Part,
}

#[derive(Debug)]
enum Piece {
    /// Packets, or heads of packets, copied.
    Copied(Vec<u8>),
    /// A payload that other connections share.
    Shared(Bytes),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// The bytes a connection has yet to write, in order. Holds no memory while empty.
#[derive(Debug, Default)]
pub struct OutBuffer {
    /// The common case: one buffer of small packets.
    front: Vec<u8>,
    /// Of the first piece (`front`, or if that is empty the first of `rest`): bytes already written.
    written: usize,
    /// What follows `front`, once that is full or a shared payload had to stand in between.
    rest: VecDeque<Piece>,
    /// How many of `rest` are shared payloads.
    shared: u32,
    /// Something in it is for its reader only as long as this node has a lease.
    needs_lease: bool,
    /// Packets were written, and each of them whole.
    is_between_packets: bool,
    len: usize,
}

impl OutBuffer {
    /// Bytes that wait.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether everything was written.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What was appended last is written under a lease only, and so is what stands around it.
    #[inline]
    pub fn need_lease(&mut self) {
        self.needs_lease = true;
    }

    /// Whether it is written under a lease only.
    #[inline]
    #[must_use]
    pub fn needs_lease(&self) -> bool {
        self.needs_lease
    }

    /// Forgets what waits. `false`: its reader has had a part of a packet, or nothing at all, so that nothing else can follow.
    pub fn forget(&mut self) -> bool {
        *self = Self { is_between_packets: self.is_between_packets, ..Self::default() };
        self.is_between_packets
    }

    /// Lets `write` append to the last copied buffer, and counts what it appended.
    #[inline]
    pub fn append(&mut self, pool: &mut BufferPool, write: impl FnOnce(&mut Vec<u8>)) {
        let buffer = if self.rest.is_empty() && self.front.len() <= COPIED_BYTES_MAX {
            if self.front.capacity() == 0 {
                self.front = pool.take();
            }
            &mut self.front
        } else {
            self.last_copied(pool)
        };
        let before = buffer.len();
        write(buffer);
        self.len += buffer.len() - before;
    }

    /// The buffer behind `front` that takes the next packet.
    fn last_copied(&mut self, pool: &mut BufferPool) -> &mut Vec<u8> {
        let full = match self.rest.back_mut() {
            Some(Piece::Copied(buffer)) if buffer.len() <= COPIED_BYTES_MAX => None,
            Some(Piece::Copied(buffer)) => Some(buffer),
            Some(Piece::Shared(_)) => None,
            None => Some(&mut self.front),
        };
        if let Some(full) = full {
            // A packet that went beyond the mark may have doubled it.
            if full.capacity() - full.len() > full.len() / 8 {
                full.shrink_to_fit();
            }
        }
        if !matches!(self.rest.back(), Some(Piece::Copied(buffer)) if buffer.len() <= COPIED_BYTES_MAX) {
            self.rest.push_back(Piece::Copied(pool.take()));
        }
        match self.rest.back_mut() {
            Some(Piece::Copied(buffer)) => buffer,
            _ => unreachable!("a copied piece was pushed above"),
        }
    }

    /// Whether it will take several turns to write what waits, because of large payloads.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.shared > 0 && self.len > LARGE_FLUSHED_BYTES_MAX
    }

    /// Appends a payload without copying it.
    pub fn append_shared(&mut self, payload: Bytes) {
        self.len += payload.len();
        self.shared += 1;
        self.rest.push_back(Piece::Shared(payload));
    }

    /// Writes until all is written, the socket takes no more, or the others should have their turn.
    ///
    /// # Errors
    /// Those of the socket; the connection is then of no more use.
    pub fn flush(&mut self, transport: &mut Transport, pool: &mut BufferPool) -> io::Result<Flushed> {
        let before = self.len;
        let outcome = self.write_turn(transport, pool);
        if self.len < before {
            self.is_between_packets = self.len == 0;
        }
        self.needs_lease &= self.len > 0;
        outcome
    }

    fn write_turn(&mut self, transport: &mut Transport, pool: &mut BufferPool) -> io::Result<Flushed> {
        let before = self.len;
        let flushed_max = if self.is_large() { LARGE_FLUSHED_BYTES_MAX } else { FLUSHED_BYTES_MAX };
        while self.len > 0 {
            if before - self.len >= flushed_max {
                return Ok(Flushed::Part);
            }
            let outcome = if self.rest.is_empty() {
                let waiting = &self.front[self.written..];
                transport.try_write(&waiting[..waiting.len().min(FLUSHED_BYTES_MAX)])
            } else {
                self.write_pieces(transport, flushed_max)
            };
            match outcome {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count, pool),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Flushed::All)
    }

    fn write_pieces(&self, transport: &mut Transport, mut room: usize) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        let mut skip = self.written;
        let front = (!self.front.is_empty()).then_some(self.front.as_slice());
        for piece in front.into_iter().chain(self.rest.iter().map(Piece::as_slice)).take(PIECES_MAX) {
            let piece = &piece[skip..];
            let piece = &piece[..piece.len().min(room)];
            slices[count] = IoSlice::new(piece);
            skip = 0;
            count += 1;
            room -= piece.len();
            if room == 0 {
                break;
            }
        }
        transport.try_write_vectored(&slices[..count])
    }

    #[inline]
    fn advance(&mut self, mut count: usize, pool: &mut BufferPool) {
        self.len -= count;
        if !self.front.is_empty() {
            let left = self.front.len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            pool.give(std::mem::take(&mut self.front));
        }
        while let Some(piece) = self.rest.front() {
            let left = piece.as_slice().len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            match self.rest.pop_front() {
                Some(Piece::Copied(buffer)) => pool.give(buffer),
                Some(Piece::Shared(_)) => self.shared -= 1,
                None => {}
            }
        }
        debug_assert!(count == 0 && self.len == 0, "wrote more than there was");
        if self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(buffer: &OutBuffer) -> Vec<u8> {
        let mut bytes = buffer.front.clone();
        for piece in &buffer.rest {
            bytes.extend_from_slice(piece.as_slice());
        }
        bytes.split_off(buffer.written)
    }

    /// Whatever the socket takes at a time, the bytes stay in order and none is written twice.
    #[test]
    fn partial_writes_keep_order() {
        for step in 1..40 {
            let mut pool = BufferPool::default();
            let mut buffer = OutBuffer::default();
            let mut expected = Vec::new();
            for round in 0_u8..5 {
                buffer.append(&mut pool, |out| out.extend_from_slice(&[round; 7]));
                expected.extend_from_slice(&[round; 7]);
                buffer.append_shared(Bytes::from(vec![round + 100; 11]));
                expected.extend_from_slice(&[round + 100; 11]);
            }
            let mut written = Vec::new();
            while !buffer.is_empty() {
                let bytes = pending(&buffer);
                assert_eq!(bytes.len(), buffer.len());
                let count = step.min(bytes.len());
                written.extend_from_slice(&bytes[..count]);
                buffer.advance(count, &mut pool);
            }
            assert_eq!(written, expected);
            assert_eq!(buffer.front.capacity(), 0, "an empty buffer holds no memory");
            assert_eq!(buffer.shared, 0);
        }
    }

    /// What the copied buffers take of memory.
    fn held(buffer: &OutBuffer) -> usize {
        let copied = |piece: &Piece| match piece {
            Piece::Copied(bytes) => bytes.capacity(),
            Piece::Shared(_) => 0,
        };
        buffer.front.capacity() + buffer.rest.iter().map(copied).sum::<usize>()
    }

    /// A client that reads as fast as it gets, and is never quite done.
    #[test]
    fn what_was_written_is_not_kept_until_all_is() {
        let mut pool = BufferPool::default();
        let mut buffer = OutBuffer::default();
        let (mut appended, mut written) = (0_u32, 0_u32);
        for _ in 0..20_000 {
            buffer.append(&mut pool, |out| out.extend((0..25).flat_map(|number| (appended + number).to_be_bytes())));
            appended += 25;
            if buffer.len() > 50_000 {
                let bytes = pending(&buffer);
                for number in bytes.chunks_exact(4).take(25) {
                    assert_eq!(number, written.to_be_bytes());
                    written += 1;
                }
                buffer.advance(100, &mut pool);
            }
        }
        assert!(held(&buffer) < 50_000 + 2 * 16 * 1024, "{} bytes are held", held(&buffer));
    }

    /// Packets of whatever size: memory does not double for the last of them.
    #[test]
    fn a_full_buffer_costs_about_what_waits_in_it() {
        for packet_bytes in [10, 100, 2_000, 2_900, 3_100] {
            let mut pool = BufferPool::default();
            let mut buffer = OutBuffer::default();
            while buffer.len() <= 256 * 1024 {
                buffer.append(&mut pool, |out| out.resize(out.len() + packet_bytes, 7));
                assert!(held(&buffer) <= buffer.len() * 9 / 8 + 32 * 1024, "packets of {packet_bytes} bytes");
            }
            assert!(!buffer.is_large(), "these are small ones");
        }
    }
}
