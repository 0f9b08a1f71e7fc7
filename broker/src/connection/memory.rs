//! A byte stream in memory, in the place of a socket where a simulation drives the arbiters.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;

/// One end of a stream: what is written to one end can be read from the other. Dropping it closes the stream, as if the
/// process there had closed its socket.
#[derive(Debug)]
pub struct MemoryStream {
    incoming: Arc<Mutex<Pipe>>,
    outgoing: Arc<Mutex<Pipe>>,
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    bytes: VecDeque<u8>,
    bytes_max: usize,
    state: State,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The writer has said all it had; what is there can still be read.
    Ended,
    /// The reader is gone, or the connection broke: nothing passes.
    Broken,
}

impl Pipe {
    fn new(bytes_max: usize) -> Arc<Mutex<Self>> {
        let pipe = Self { bytes: VecDeque::new(), bytes_max, state: State::Open, reader: None, writer: None };
        Arc::new(Mutex::new(pipe))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.state == State::Broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.bytes.is_empty() && self.state == State::Open && !buffer.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Maybe not all that is there, as from a socket.
        let count = io::Read::read(&mut self.bytes, buffer)?;
        if count > 0 {
            wake(&mut self.writer);
        }
        Ok(count)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.state != State::Open {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(self.bytes_max - self.bytes.len());
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if count > 0 {
            self.bytes.extend(&bytes[..count]);
            wake(&mut self.reader);
        }
        Ok(count)
    }

    fn close(&mut self, state: State) {
        if self.state != State::Broken {
            self.state = state;
        }
        if state == State::Broken {
            self.bytes = VecDeque::new();
        }
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn lock(pipe: &Mutex<Pipe>) -> MutexGuard<'_, Pipe> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryStream {
    /// The two ends of a stream that holds up to `bytes_max` bytes in each direction.
    #[must_use]
    pub fn pair(bytes_max: usize) -> (Self, Self) {
        let (one, other) = (Pipe::new(bytes_max), Pipe::new(bytes_max));
        let first = Self { incoming: Arc::clone(&one), outgoing: Arc::clone(&other) };
        (first, Self { incoming: other, outgoing: one })
    }

    /// Reads what is there. Zero bytes read means that the other end has said all it had.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there now. Others: the connection is of no more use.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        lock(&self.incoming).read(buffer)
    }

    /// Writes as much as there is room for.
    ///
    /// # Errors
    /// `WouldBlock`: there is no room now. Others: the connection is of no more use.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.outgoing).write(bytes)
    }

    /// Whether the other end has said all it will, though some of it may still be to be read.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        lock(&self.incoming).state != State::Open
    }

    /// [`Self::try_read`] into `buffer`; wakes the task when there is something to read.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.incoming);
        match pipe.read(buffer.initialize_unfilled()) {
            Ok(count) => {
                buffer.advance(count);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pipe.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Waits until there is room for a byte, or never will be.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.outgoing);
        if pipe.state == State::Open && pipe.bytes.len() == pipe.bytes_max {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more will be written.
    pub fn shut_down_write(&self) {
        lock(&self.outgoing).close(State::Ended);
    }

    /// Breaks the connection off, as a reset does: what is under way is lost, and neither end can use it any more.
    pub fn reset(&self) {
        lock(&self.outgoing).close(State::Broken);
        lock(&self.incoming).close(State::Broken);
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        lock(&self.outgoing).close(State::Ended);
        lock(&self.incoming).close(State::Broken);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    fn read(stream: &MemoryStream) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 16];
        stream.try_read(&mut buffer).map(|count| buffer[..count].to_vec())
    }

    fn kind<T: std::fmt::Debug>(outcome: io::Result<T>) -> io::ErrorKind {
        outcome.expect_err("it must fail").kind()
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn bytes_come_in_order_and_no_more_of_them_than_there_is_room_for() {
        let (here, there) = MemoryStream::pair(4);
        assert_eq!(here.try_write(b"abcdef").unwrap(), 4);
        assert_eq!(kind(here.try_write(b"ef")), io::ErrorKind::WouldBlock);
        assert_eq!(there.try_write(b"x").unwrap(), 1, "the other direction has room of its own");
        let mut first = [0; 3];
        assert_eq!(there.try_read(&mut first).unwrap(), 3);
        assert_eq!(here.try_write(b"ef").unwrap(), 2);
        assert_eq!(
            (&first[..], read(&there).unwrap(), read(&here).unwrap()),
            (&b"abc"[..], b"def".into(), b"x".into())
        );
        assert_eq!(kind(read(&there)), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn who_waits_is_woken_by_bytes_by_room_and_by_the_end() {
        let (here, there) = MemoryStream::pair(1);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        let poll_read = |cx: &mut Context<'_>| {
            let mut buffer = [0; 4];
            let mut buffer = ReadBuf::new(&mut buffer);
            there.poll_read(cx, &mut buffer).map(|outcome| outcome.map(|()| buffer.filled().to_vec()).unwrap())
        };
        assert_eq!(poll_read(&mut cx), Poll::Pending);
        assert!(here.poll_write_ready(&mut cx).is_ready());
        here.try_write(b"a").unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(here.poll_write_ready(&mut cx).is_pending());
        assert_eq!(poll_read(&mut cx), Poll::Ready(b"a".to_vec()));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert_eq!(poll_read(&mut cx), Poll::Pending);
        here.shut_down_write();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 3);
        assert_eq!(poll_read(&mut cx), Poll::Ready(vec![]));
    }

    #[test]
    fn what_was_written_before_a_close_can_be_read_and_nothing_more_be_written() {
        let (here, there) = MemoryStream::pair(8);
        here.try_write(b"last").unwrap();
        drop(here);
        assert_eq!(kind(there.try_write(b"x")), io::ErrorKind::BrokenPipe);
        assert_eq!(read(&there).unwrap(), b"last");
        assert_eq!(read(&there).unwrap(), b"");
    }

    #[test]
    fn a_reset_loses_what_is_under_way() {
        let (here, there) = MemoryStream::pair(8);
        here.try_write(b"lost").unwrap();
        there.reset();
        assert_eq!(kind(read(&there)), io::ErrorKind::ConnectionReset);
        assert_eq!(kind(read(&here)), io::ErrorKind::ConnectionReset);
        assert_eq!(kind(here.try_write(b"x")), io::ErrorKind::BrokenPipe);
        drop(there);
        assert_eq!(kind(read(&here)), io::ErrorKind::ConnectionReset, "a close afterwards changes nothing");
    }
}
