//! One TCP connection to the broker: bytes in, bytes out, and how far its opening has come.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use socket2::{Domain, Protocol, Socket, Type};

use crate::wire::Frame;

/// Packets above this size are not collected: their head and tail are kept, the rest is skipped.
pub const COLLECTED_BYTES_MAX: usize = 64 * 1024;

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
    pub stream: TcpStream,
    pub client_id: String,
    pub version: ProtocolVersion,
    pub role: Role,
    pub state: State,
    pub subscription: Option<(String, QoS)>,
    /// Bytes to send; those before `written` are sent.
    pub out: Vec<u8>,
    written: usize,
    /// Among those to be flushed at the end of the turn.
    pub is_dirty: bool,
    /// The socket did not take everything: epoll tells when it takes more.
    pub awaits_writable: bool,
    pub last_sent_ns: u64,
    /// The bytes of an incomplete packet.
    partial: Vec<u8>,
    large: Option<Large>,
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
        client_id: String,
        version: ProtocolVersion,
        role: Role,
    ) -> io::Result<Self> {
        Ok(Self {
            stream: begin_connect(address)?,
            client_id,
            version,
            role,
            state: State::Connecting,
            subscription: None,
            out: Vec::new(),
            written: 0,
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
        match self.stream.read(&mut scratch[kept..]) {
            Ok(0) => Ok(Arrived::End),
            Ok(read) => {
                self.partial.clear();
                Ok(Arrived::Bytes(&scratch[..kept + read]))
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(Arrived::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps an incomplete packet until more arrives, skipping the middle of a large one.
    pub fn keep(&mut self, rest: &[u8], frame: Option<Frame>) {
        match frame {
            Some(frame) if frame.bytes() > COLLECTED_BYTES_MAX && rest.len() >= HEAD_BYTES => {
                let head = rest[frame.header_bytes..HEAD_BYTES].to_vec();
                let mut large = Large {
                    frame,
                    head,
                    tail: [0; 8],
                    remaining: frame.bytes(),
                };
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

    /// Writes what there is. True when all was taken.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A connection that is not yet established takes nothing either.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(true)
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

/// Begins a non-blocking TCP connection.
pub fn begin_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// Closes so that neither TIME_WAIT nor a long-lived entry of connection tracking remains. Only
/// after the broker has closed its side: what is under way is discarded.
pub fn close_without_trace(stream: TcpStream) {
    let socket = Socket::from(stream);
    // Failing only means that the entry lives longer.
    let _ = socket.set_linger(Some(std::time::Duration::ZERO));
}
