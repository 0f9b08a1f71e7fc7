//! The network between clients and nodes: it carries the bytes of each connection, both ways, some time later.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::ReadBuf;

use crate::connection::MemoryStream;

/// What is under way in one direction of a connection.
const STREAM_BYTES_MAX: usize = 16 * 1024;

/// Connections where something can be carried on.
#[derive(Debug, Clone, Default)]
pub(super) struct Ready(Arc<Mutex<Vec<usize>>>);

impl Ready {
    pub(super) fn take(&self, into: &mut Vec<usize>) {
        into.append(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[derive(Debug)]
struct Wakes {
    stream: usize,
    ready: Ready,
    is_queued: AtomicBool,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::Relaxed) {
            self.ready.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.stream);
        }
    }
}

/// One connection of a client.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) client: usize,
    pub(super) host: usize,
    client_side: MemoryStream,
    node_side: MemoryStream,
    up: Vec<u8>,
    down: Vec<u8>,
    up_ended: bool,
    down_ended: bool,
    wakes: Arc<Wakes>,
    waker: Waker,
    /// Nothing passes for now.
    pub(super) cut: bool,
    pub(super) over: bool,
}

/// What came of carrying.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Passed {
    pub(super) bytes_up: usize,
    pub(super) bytes_down: usize,
}

impl Carried {
    /// A new one, with the ends that the client and the node have.
    pub(super) fn new(stream: usize, client: usize, host: usize, ready: &Ready) -> (Self, MemoryStream, MemoryStream) {
        let (client_end, client_side) = MemoryStream::pair(STREAM_BYTES_MAX);
        let (node_end, node_side) = MemoryStream::pair(STREAM_BYTES_MAX);
        // It is looked at once, to be woken from then on.
        let wakes = Arc::new(Wakes { stream, ready: ready.clone(), is_queued: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&wakes));
        waker.wake_by_ref();
        let carried = Self {
            client,
            host,
            client_side,
            node_side,
            up: Vec::new(),
            down: Vec::new(),
            up_ended: false,
            down_ended: false,
            wakes,
            waker,
            cut: false,
            over: false,
        };
        (carried, client_end, node_end)
    }

    /// The connection breaks: what is under way is lost.
    pub(super) fn reset(&mut self) {
        self.client_side.reset();
        self.node_side.reset();
        self.over = true;
    }

    /// Carries what there is, as far as there is room.
    pub(super) fn carry(&mut self) -> Passed {
        self.wakes.is_queued.store(false, Ordering::Relaxed);
        if self.cut || self.over {
            return Passed::default();
        }
        let mut cx = Context::from_waker(&self.waker);
        let up = carry(&self.client_side, &self.node_side, &mut self.up, &mut self.up_ended, &mut cx);
        let down = carry(&self.node_side, &self.client_side, &mut self.down, &mut self.down_ended, &mut cx);
        let passed = Passed { bytes_up: *up.as_ref().unwrap_or(&0), bytes_down: *down.as_ref().unwrap_or(&0) };
        if up.is_err() || down.is_err() || (self.up_ended && self.down_ended) {
            if up.is_err() || down.is_err() {
                self.reset();
            }
            self.over = true;
        }
        passed
    }
}

fn carry(
    from: &MemoryStream,
    to: &MemoryStream,
    pending: &mut Vec<u8>,
    ended: &mut bool,
    cx: &mut Context<'_>,
) -> io::Result<usize> {
    let mut passed = 0;
    loop {
        while !pending.is_empty() {
            match to.try_write(pending) {
                Ok(count) => {
                    passed += count;
                    pending.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if to.poll_write_ready(cx).is_pending() {
                        return Ok(passed);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if *ended {
            return Ok(passed);
        }
        let mut buffer = [0; 4096];
        let mut buffer = ReadBuf::new(&mut buffer);
        match from.poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                *ended = true;
                to.shut_down_write();
                return Ok(passed);
            }
            Poll::Ready(Ok(())) => pending.extend_from_slice(buffer.filled()),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(passed),
        }
    }
}
