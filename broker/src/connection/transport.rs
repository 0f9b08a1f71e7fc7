//! The byte stream under a connection.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::proxied::Proxied;
use super::websocket::WebSocket;
use super::{MemoryStream, RawSocket, TlsStream};

/// An ordered, lossless byte stream [MQTT-4.2-1]: a socket, or a layer over one.
#[derive(Debug)]
pub enum Transport {
    /// A socket and nothing over it.
    Socket(RawSocket),
    /// TLS over a socket. Boxed, for few connections of a plain listener should pay for its size.
    Tls(Box<TlsStream>),
    /// A WebSocket over any of the others.
    WebSocket(Box<WebSocket>),
    /// Any of the others, behind a balancer's word about the client.
    Proxied(Box<Proxied>),
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
            Self::WebSocket(stream) => stream.poll_read(cx, buffer),
            Self::Proxied(stream) => stream.poll_read(cx, buffer),
            Self::Memory(stream) => stream.poll_read(cx, buffer),
        }
    }

    /// Waits until the socket takes bytes again.
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => socket.poll_write_ready(cx),
            Self::Tls(stream) => stream.poll_write_ready(cx),
            Self::WebSocket(stream) => stream.poll_write_ready(cx),
            Self::Proxied(stream) => stream.poll_write_ready(cx),
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
            Self::WebSocket(stream) => stream.try_write(bytes),
            Self::Proxied(stream) => stream.over_mut().map_or(Err(closed()), |over| over.try_write(bytes)),
            Self::Memory(stream) => stream.try_write(bytes),
        }
    }

    /// Writes several pieces at once; see [`Self::try_write`].
    pub fn try_write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.try_write_vectored(pieces),
            Self::Tls(stream) => stream.try_write_vectored(pieces),
            Self::WebSocket(stream) => stream.try_write_vectored(pieces),
            Self::Proxied(stream) => stream.over_mut().map_or(Err(closed()), |over| over.try_write_vectored(pieces)),
            // Some of it, as may happen on a socket too.
            Self::Memory(stream) => stream.try_write(pieces.first().map_or(&[], |first| first)),
        }
    }

    /// Ends our side of the stream, so that the peer reads what was written and then the end. What the peer sent and
    /// nobody will read is discarded first: closing over it would reset the connection and take our last words along.
    pub fn shut_down_write(&mut self) {
        const DISCARDED_BYTES_MAX: usize = 256 * 1024;
        if let Self::WebSocket(stream) = self {
            return stream.finish();
        }
        if let Self::Proxied(stream) = self {
            return stream.over_mut().map_or((), Self::shut_down_write);
        }
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
            Self::WebSocket(_) | Self::Proxied(_) => {}
        }
    }

    /// The connection is about to be closed, and nothing breaks it off: a layer that has a word for that says it. May follow
    /// [`Self::shut_down_write`].
    pub fn take_leave(&mut self) {
        match self {
            Self::Socket(_) | Self::Memory(_) => {}
            Self::Tls(stream) => stream.say_end(),
            Self::WebSocket(stream) => stream.finish(),
            Self::Proxied(stream) => stream.over_mut().map_or((), Self::take_leave),
        }
    }

    /// Lets the stream end so that the peer sees a broken connection, not one that was closed.
    pub fn reset_when_closed(&self) {
        match self {
            Self::Socket(socket) => socket.reset_when_closed(),
            Self::Tls(stream) => stream.socket().reset_when_closed(),
            Self::Memory(stream) => stream.reset(),
            Self::WebSocket(stream) => stream.under().reset_when_closed(),
            Self::Proxied(stream) => stream.over().map_or((), Self::reset_when_closed),
        }
    }

    /// Whether reading goes on with a handshake, which may cost a private key's work.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        match self {
            Self::Socket(_) | Self::Memory(_) => false,
            Self::Tls(stream) => stream.is_handshaking(),
            Self::WebSocket(stream) => stream.under().is_handshaking(),
            Self::Proxied(stream) => stream.is_handshaking(),
        }
    }

    /// Whether a handshake has cost the private key's work already.
    #[must_use]
    pub fn is_past_first_flight(&self) -> bool {
        match self {
            Self::Socket(_) | Self::Memory(_) => false,
            Self::Tls(stream) => stream.is_past_first_flight(),
            Self::WebSocket(stream) => stream.under().is_past_first_flight(),
            Self::Proxied(stream) => stream.over().is_some_and(Self::is_past_first_flight),
        }
    }

    /// Whom the peer proved to be by a certificate, once bytes of it were read.
    #[must_use]
    pub fn certified(&self) -> Option<Arc<str>> {
        match self {
            Self::Socket(_) | Self::Memory(_) => None,
            Self::Tls(stream) => stream.certified(),
            Self::WebSocket(stream) => stream.under().certified(),
            // Who proved it to us comes before whom the balancer names.
            Self::Proxied(stream) => stream.over().and_then(Self::certified).or_else(|| stream.certified()),
        }
    }

    /// Where the client is, once bytes of it were read, if somebody who is believed said so: its socket is then that of a
    /// balancer or proxy.
    #[must_use]
    pub fn said_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(_) | Self::Tls(_) | Self::Memory(_) => None,
            Self::WebSocket(stream) => stream.forwarded_for().or_else(|| stream.under().said_address()),
            Self::Proxied(stream) => stream.over().and_then(Self::said_address).or(stream.said_address()),
        }
    }

    /// Takes bytes off the socket that nobody will look at, whatever they mean.
    fn try_discard(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.try_read(buffer),
            Self::Tls(stream) => stream.socket().try_read(buffer),
            Self::Memory(stream) => stream.try_read(buffer),
            Self::WebSocket(stream) => stream.under().try_discard(buffer),
            Self::Proxied(stream) => stream.over().map_or(Ok(0), |over| over.try_discard(buffer)),
        }
    }
}

/// Nothing may be written before the layers are there.
fn closed() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
