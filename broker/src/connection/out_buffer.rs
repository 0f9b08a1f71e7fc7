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
    /// What follows `front`, once a shared payload had to stand in between.
    rest: VecDeque<Piece>,
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

    /// Lets `write` append to the last copied buffer, and counts what it appended.
    #[inline]
    pub fn append(&mut self, pool: &mut BufferPool, write: impl FnOnce(&mut Vec<u8>)) {
        let buffer = if self.rest.is_empty() {
            if self.front.capacity() == 0 {
                self.front = pool.take();
            }
            &mut self.front
        } else {
            if !matches!(self.rest.back(), Some(Piece::Copied(_))) {
                self.rest.push_back(Piece::Copied(pool.take()));
            }
            match self.rest.back_mut() {
                Some(Piece::Copied(buffer)) => buffer,
                _ => unreachable!("a copied piece was pushed above"),
            }
        };
        let before = buffer.len();
        write(buffer);
        self.len += buffer.len() - before;
    }

    /// Whether it will take several turns to write what waits, because of large payloads.
    #[must_use]
    pub fn is_large(&self) -> bool {
        !self.rest.is_empty() && self.len > LARGE_FLUSHED_BYTES_MAX
    }

    /// Appends a payload without copying it.
    pub fn append_shared(&mut self, payload: Bytes) {
        self.len += payload.len();
        self.rest.push_back(Piece::Shared(payload));
    }

    /// Writes until all is written, the socket takes no more, or the others should have their turn.
    ///
    /// # Errors
    /// Those of the socket; the connection is then of no more use.
    pub fn flush(&mut self, transport: &mut Transport, pool: &mut BufferPool) -> io::Result<Flushed> {
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
            if let Some(Piece::Copied(buffer)) = self.rest.pop_front() {
                pool.give(buffer);
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
        }
    }
}
