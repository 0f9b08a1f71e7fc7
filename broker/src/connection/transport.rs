//! The byte stream under a connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// An ordered, lossless byte stream [MQTT-4.2-1].
#[derive(Debug)]
pub enum Transport {
    /// Plain TCP.
    Tcp(TcpStream),
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
        }
    }

    /// Waits until the socket takes bytes again.
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Writes what the socket takes now.
    #[inline]
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
        }
    }

    /// Writes several pieces at once.
    pub fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(pieces),
        }
    }

    /// Ends our side of the stream, so that the peer reads what was written and then the end. What the peer sent and
    /// nobody will read is discarded first: closing over it would reset the connection and take our last words along.
    pub fn shut_down_write(&self) {
        const DISCARDED_BYTES_MAX: usize = 256 * 1024;
        let Self::Tcp(stream) = self;
        let mut discarded = [0; 4096];
        for _ in 0..DISCARDED_BYTES_MAX / discarded.len() {
            if !matches!(stream.try_read(&mut discarded), Ok(count) if count > 0) {
                break;
            }
        }
        let outcome = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
        // The peer may have gone first; then there is nothing left to say.
        drop(outcome);
    }
}
