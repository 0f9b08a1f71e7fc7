//! One connection to the broker: bytes in, bytes out, and how far its opening has come.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    sync::Arc,
};

use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use crate::{
    link::{Layer, Link},
    wire::Frame,
};

/// Packets above this size are not collected: their head and tail are kept, the rest is skipped.
pub const COLLECTED_BYTES_MAX: usize = 64 * 1024;

/// Bytes that one connection may send in one turn, so that a large message does not delay others.
const FLUSH_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a large message read in one turn, for the same reason.
const LARGE_READ_BYTES_MAX: usize = 64 * 1024;

/// Bytes kept of a packet that is not collected: its topic, properties and stamp.
const HEAD_BYTES: usize = 4096;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Index among the publishers.
    Publisher(usize),
    /// Index among the subscribers.
    Subscriber(usize),
    /// Subscribes and unsubscribes, and gets nothing.
    Churner,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// CONNECT is on its way.
    Connecting,
    /// SUBSCRIBE is on its way.
    Subscribing,
    /// In use.
    Ready,
    /// DISCONNECT is on its way; the broker must close [MQTT-3.14.4-1].
    Closing,
    /// The broker closed after our DISCONNECT.
    Closed,
}

/// A connection of the generator.
#[derive(Debug)]
pub struct Connection {
    pub stream: Link,
    pub client_id: String,
    pub version: ProtocolVersion,
    pub role: Role,
    pub state: State,
    pub subscription: Option<(String, QoS)>,
    pub out: Outbox,
    /// Among those to be flushed at the end of the turn.
    pub is_dirty: bool,
    /// The socket did not take everything: epoll tells when it takes more.
    pub awaits_writable: bool,
    pub last_sent_ns: u64,
    /// The bytes of an incomplete packet.
    partial: Vec<u8>,
    large: Option<Large>,
}

/// What a connection has to send: packets that were copied together, and large ones that are shared
/// with their publisher.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Whole packets; those before `written` are sent.
    pub bytes: Vec<u8>,
    written: usize,
    /// Each a packet, and how much of it is sent. Only the first can be begun.
    pub bodies: VecDeque<(Arc<Vec<u8>>, usize)>,
}

/// How far a flush came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// All is sent.
    All,
    /// The socket would take more, but it is the turn of others.
    Partly,
    /// The socket takes no more.
    Blocked,
}

/// A large packet of which only the ends are kept.
#[derive(Debug)]
pub struct Large {
    pub frame: Frame,
    /// The first bytes of the body.
    pub head: Vec<u8>,
    /// The last bytes so far.
    pub tail: [u8; 8],
    remaining: usize,
}

/// What a read brought.
pub enum Arrived<'a> {
    /// Nothing, for now.
    Nothing,
    /// The end of the stream.
    End,
    /// Bytes: what was kept from earlier, and the new ones.
    Bytes(&'a [u8]),
}

impl Connection {
    /// Begins to connect. CONNECT may be appended to `out` at once.
    pub fn open(
        address: SocketAddr,
        layer: &Layer,
        number: usize,
        client_id: String,
        version: ProtocolVersion,
        role: Role,
    ) -> io::Result<Self> {
        Ok(Self {
            stream: layer.begin(address, number)?,
            client_id,
            version,
            role,
            state: State::Connecting,
            subscription: None,
            out: Outbox::default(),
            is_dirty: false,
            awaits_writable: false,
            last_sent_ns: 0,
            partial: Vec::new(),
            large: None,
        })
    }

    /// Reads once into `scratch`, behind what was kept of an incomplete packet.
    pub fn read<'a>(&mut self, scratch: &'a mut [u8]) -> io::Result<Arrived<'a>> {
        let kept = self.partial.len();
        scratch[..kept].copy_from_slice(&self.partial);
        let room = if self.large.is_some() { LARGE_READ_BYTES_MAX } else { scratch.len() - kept };
        match self.stream.read(&mut scratch[kept..kept + room]) {
            Ok(0) => Ok(Arrived::End),
            Ok(read) => {
                self.partial.clear();
                Ok(Arrived::Bytes(&scratch[..kept + read]))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Arrived::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes what there is, as far as a turn goes.
    pub fn flush(&mut self) -> io::Result<Flushed> {
        match self.out.flush(&mut self.stream)? {
            Flushed::All => match self.stream.flush() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Flushed::Blocked),
                outcome => outcome.map(|()| Flushed::All),
            },
            flushed => Ok(flushed),
        }
    }

    /// Keeps an incomplete packet until more arrives, skipping the middle of a large one.
    pub fn keep(&mut self, rest: &[u8], frame: Option<Frame>) {
        match frame {
            Some(frame) if frame.bytes() > COLLECTED_BYTES_MAX && rest.len() >= HEAD_BYTES => {
                let head = rest[frame.header_bytes..HEAD_BYTES].to_vec();
                let mut large = Large { frame, head, tail: [0; 8], remaining: frame.bytes() };
                large.take(rest);
                self.large = Some(large);
            }
            _ => self.partial.extend_from_slice(rest),
        }
    }

    /// Gives `bytes` to a large packet that is under way. Returns what is not part of it, and the
    /// packet once it is complete.
    #[inline]
    pub fn skip_large<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], Option<Large>) {
        let Some(large) = &mut self.large else {
            return (bytes, None);
        };
        let rest = large.take(bytes);
        (rest, self.large.take_if(|large| large.remaining == 0))
    }
}

impl Outbox {
    /// Nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.bodies.is_empty()
    }

    /// Writes what there is, but no more than [`FLUSH_BYTES_MAX`].
    pub fn flush(&mut self, stream: &mut impl Write) -> io::Result<Flushed> {
        let mut budget = FLUSH_BYTES_MAX;
        loop {
            // A body that was begun must be ended before anything else.
            let body = self.bodies.front_mut().filter(|(_, written)| *written > 0 || self.bytes.is_empty());
            let (rest, written) = match body {
                Some((body, written)) => (&body[*written..], written),
                None => (&self.bytes[self.written..], &mut self.written),
            };
            if rest.is_empty() {
                return Ok(Flushed::All);
            }
            if budget == 0 {
                return Ok(Flushed::Partly);
            }
            match stream.write(&rest[..rest.len().min(budget)]) {
                Ok(taken) => {
                    *written += taken;
                    budget -= taken;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A connection that is not yet established takes nothing either.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(Flushed::Blocked);
                }
                Err(error) => return Err(error),
            }
            self.forget_written();
        }
    }

    fn forget_written(&mut self) {
        if self.bodies.front().is_some_and(|(body, written)| *written == body.len()) {
            self.bodies.pop_front();
        }
        if self.written == self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
        }
    }
}

impl Large {
    fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (own, rest) = bytes.split_at(bytes.len().min(self.remaining));
        self.remaining -= own.len();
        for byte in &own[own.len().saturating_sub(8)..] {
            self.tail.rotate_left(1);
            self.tail[7] = *byte;
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes and then blocks.
    struct Socket {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let bytes = &bytes[..bytes.len().min(self.room)];
            self.taken.extend_from_slice(bytes);
            self.room -= bytes.len();
            if bytes.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { Ok(bytes.len()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_body_that_was_begun_is_not_interrupted() {
        let mut outbox = Outbox::default();
        let mut socket = Socket { taken: Vec::new(), room: 3 };
        outbox.bytes.extend_from_slice(b"ab");
        outbox.bodies.push_back((Arc::new(b"LARGE".to_vec()), 0));
        assert_eq!(outbox.flush(&mut socket).unwrap(), Flushed::Blocked);
        outbox.bytes.extend_from_slice(b"cd");
        outbox.bodies.push_back((Arc::new(b"NEXT".to_vec()), 0));
        socket.room = 100;
        assert_eq!(outbox.flush(&mut socket).unwrap(), Flushed::All);
        assert_eq!(socket.taken, b"abLARGEcdNEXT");
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_turn_sends_a_bounded_amount() {
        let mut outbox = Outbox::default();
        let mut socket = Socket { taken: Vec::new(), room: usize::MAX };
        outbox.bodies.push_back((Arc::new(vec![7; FLUSH_BYTES_MAX + 1]), 0));
        assert_eq!(outbox.flush(&mut socket).unwrap(), Flushed::Partly);
        assert_eq!(socket.taken.len(), FLUSH_BYTES_MAX);
        assert_eq!(outbox.flush(&mut socket).unwrap(), Flushed::All);
    }

    #[test]
    fn only_the_ends_of_a_large_packet_are_kept() {
        let frame = Frame { first: 0x30, header_bytes: 4, body_bytes: 20_000 };
        let packet: Vec<u8> = (0..frame.bytes()).map(|i| (i % 253) as u8).collect();
        let mut large = Large { frame, head: Vec::new(), tail: [0; 8], remaining: frame.bytes() };
        assert_eq!(large.take(&packet[..10_000]), b"");
        for byte in &packet[10_000..packet.len() - 3] {
            assert_eq!(large.take(&[*byte]), b"");
        }
        let mut last = packet[packet.len() - 3..].to_vec();
        last.extend_from_slice(b"next");
        assert_eq!(large.take(&last), b"next");
        assert_eq!(large.remaining, 0);
        assert_eq!(large.tail, packet[packet.len() - 8..]);
    }
}
