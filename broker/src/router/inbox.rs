//! The way from one thread into an arbiter: a queue, an armed flag and one wake-up.
//!
//! Tried by loom (in `inbox_model`), which puts its own types in the place of `sync`.

use std::task::Waker;

use super::sync::{AtomicBool, AtomicUsize, AtomicWaker, Ordering, SegQueue, fence};

/// A queue into one arbiter. Any thread pushes; only the arbiter pops.
///
/// A push wakes the arbiter only if it said (by [`Inbox::arm`]) that it is about to rest, so a busy arbiter costs
/// its senders no system call.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: SegQueue<T>,
    armed: AtomicBool,
    waker: AtomicWaker,
    /// Bytes pushed and not yet popped; see [`Inbox::is_overloaded`].
    bytes: AtomicUsize,
    bytes_high_water: usize,
}

impl<T> Inbox<T> {
    /// An empty inbox that calls itself overloaded from `bytes_high_water` on.
    #[must_use]
    pub fn new(bytes_high_water: usize) -> Self {
        Self {
            queue: SegQueue::new(),
            armed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            bytes: AtomicUsize::new(0),
            bytes_high_water,
        }
    }

    /// Hands over `item`, which weighs `bytes`. Never refuses: the weight is what makes publishers pause.
    pub fn push(&self, item: T, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue.push(item);
        self.wake();
    }

    /// Wakes the arbiter if it rests.
    pub fn wake(&self) {
        // SeqCst pairs with `arm`: either the arbiter sees the item, or we see the flag.
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// The oldest item.
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Says that an item that weighed `bytes` was dealt with.
    pub fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Asks to be woken by the next push. `true`: nothing came in meanwhile, the arbiter may rest.
    pub fn arm(&self, waker: &Waker) -> bool {
        self.waker.register(waker);
        self.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.armed.store(false, Ordering::Relaxed);
        false
    }

    /// Whether whoever feeds this arbiter should stop reading for a while.
    #[inline]
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.bytes_high_water
    }
}
