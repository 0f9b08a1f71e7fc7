//! The byte stream under a connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::MemoryStream;

/// An ordered, lossless byte stream [MQTT-4.2-1].
#[derive(Debug)]
pub enum Transport {
    /// Plain TCP.
    Tcp(TcpStream),
    /// None at all, for simulations.
    Memory(MemoryStream),
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
            Self::Memory(stream) => stream.poll_read(cx, buffer),
        }
    }

    /// Waits until the socket takes bytes again.
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Memory(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Writes what the socket takes now.
    #[inline]
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Memory(stream) => stream.try_write(bytes),
        }
    }

    /// Writes several pieces at once.
    pub fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(pieces),
            // Some of it, as may happen on a socket too.
            Self::Memory(stream) => stream.try_write(pieces.first().map_or(&[], |first| first)),
        }
    }

    /// Ends our side of the stream, so that the peer reads what was written and then the end. What the peer sent and
    /// nobody will read is discarded first: closing over it would reset the connection and take our last words along.
    pub fn shut_down_write(&self) {
        const DISCARDED_BYTES_MAX: usize = 256 * 1024;
        let mut discarded = [0; 4096];
        for _ in 0..DISCARDED_BYTES_MAX / discarded.len() {
            if !matches!(self.try_read(&mut discarded), Ok(count) if count > 0) {
                break;
            }
        }
        match self {
            Self::Tcp(stream) => {
                let outcome = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
                // The peer may have gone first; then there is nothing left to say.
                drop(outcome);
            }
            Self::Memory(stream) => stream.shut_down_write(),
        }
    }

    /// Lets the stream end so that the peer sees a broken connection, not one that was closed.
    pub fn reset_when_closed(&self) {
        match self {
            Self::Tcp(stream) => {
                let outcome = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
                // It is closed all the same.
                drop(outcome);
            }
            Self::Memory(stream) => stream.reset(),
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Memory(stream) => stream.try_read(buffer),
        }
    }
}
