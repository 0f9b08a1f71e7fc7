//! The byte stream under a connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// An ordered, lossless byte stream [MQTT-4.2-1].
#[derive(Debug)]
pub enum Transport {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Transport {
    /// Reads into `buffer`; zero bytes read means the peer closed its side.
    ///
    /// Goes through `poll_read`, not `try_read`: only there does tokio clear readiness on a short read, which
    /// spares the system call that would say `WouldBlock`.
    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }

    /// Waits until the socket takes bytes again.
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Writes what the socket takes now.
    #[inline]
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Writes several pieces at once.
    pub fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(pieces),
            Self::Unix(stream) => stream.try_write_vectored(pieces),
        }
    }

    /// Ends our side of the stream, so that the peer reads what was written and then the end.
    pub fn shut_down_write(&self) {
        let outcome = match self {
            Self::Tcp(stream) => socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write),
            Self::Unix(stream) => socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write),
        };
        // The peer may have gone first; then there is nothing left to say.
        drop(outcome);
    }
}
