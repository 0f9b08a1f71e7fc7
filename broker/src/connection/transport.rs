//! The byte stream under a connection.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::{MemoryStream, RawSocket, TlsStream};

/// An ordered, lossless byte stream [MQTT-4.2-1]: a socket, or a layer over one.
#[derive(Debug)]
pub enum Transport {
    /// A socket and nothing over it.
    Socket(RawSocket),
    /// TLS over a socket. Boxed, for few connections of a plain listener should pay for its size.
    Tls(Box<TlsStream>),
    /// None at all, for simulations.
    Memory(MemoryStream),
}

impl Transport {
    /// Reads into `buffer`; zero bytes read means the peer closed its side. `Pending` once nothing is left, neither in the
    /// socket nor in what a layer holds.
    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => socket.poll_read(cx, buffer),
            Self::Tls(stream) => stream.poll_read(cx, buffer),
            Self::Memory(stream) => stream.poll_read(cx, buffer),
        }
    }

    /// Waits until the socket takes bytes again.
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => socket.poll_write_ready(cx),
            Self::Tls(stream) => stream.poll_write_ready(cx),
            Self::Memory(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Writes what the socket takes now. Whoever writes less than it wanted, or nothing because of `WouldBlock`, comes again
    /// with the bytes that follow those written: a layer may have taken them up already.
    #[inline]
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.try_write(bytes),
            Self::Tls(stream) => stream.try_write(bytes),
            Self::Memory(stream) => stream.try_write(bytes),
        }
    }

    /// Writes several pieces at once; see [`Self::try_write`].
    pub fn try_write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.try_write_vectored(pieces),
            Self::Tls(stream) => stream.try_write_vectored(pieces),
            // Some of it, as may happen on a socket too.
            Self::Memory(stream) => stream.try_write(pieces.first().map_or(&[], |first| first)),
        }
    }

    /// Ends our side of the stream, so that the peer reads what was written and then the end. What the peer sent and
    /// nobody will read is discarded first: closing over it would reset the connection and take our last words along.
    pub fn shut_down_write(&mut self) {
        const DISCARDED_BYTES_MAX: usize = 256 * 1024;
        let mut discarded = [0; 4096];
        for _ in 0..DISCARDED_BYTES_MAX / discarded.len() {
            if !matches!(self.try_discard(&mut discarded), Ok(count) if count > 0) {
                break;
            }
        }
        match self {
            Self::Socket(socket) => socket.shut_down_write(),
            Self::Tls(stream) => {
                stream.say_end();
                stream.socket().shut_down_write();
            }
            Self::Memory(stream) => stream.shut_down_write(),
        }
    }

    /// Says that the stream ends here, where a layer has words for that; closing follows.
    pub fn say_end(&mut self) {
        match self {
            Self::Socket(_) | Self::Memory(_) => {}
            Self::Tls(stream) => stream.say_end(),
        }
    }

    /// Lets the stream end so that the peer sees a broken connection, not one that was closed.
    pub fn reset_when_closed(&self) {
        match self {
            Self::Socket(socket) => socket.reset_when_closed(),
            Self::Tls(stream) => stream.socket().reset_when_closed(),
            Self::Memory(stream) => stream.reset(),
        }
    }

    /// Whether reading goes on with a handshake, which may cost a private key's work.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        match self {
            Self::Socket(_) | Self::Memory(_) => false,
            Self::Tls(stream) => stream.is_handshaking(),
        }
    }

    /// Whom the peer proved to be by a certificate, once bytes of it were read.
    #[must_use]
    pub fn certified(&self) -> Option<Arc<str>> {
        match self {
            Self::Socket(_) | Self::Memory(_) => None,
            Self::Tls(stream) => stream.certified(),
        }
    }

    /// Takes bytes off the socket that nobody will look at, whatever they mean.
    fn try_discard(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.try_read(buffer),
            Self::Tls(stream) => stream.socket().try_read(buffer),
            Self::Memory(stream) => stream.try_read(buffer),
        }
    }
}
