//! Every interleaving of a push with an arbiter that goes to rest, by loom: [`super::inbox`]'s own source over loom's types.

use std::sync::Arc as StdArc;
use std::sync::atomic::{AtomicUsize as StdAtomicUsize, Ordering as StdOrdering};
use std::task::{Wake, Waker};

use loom::sync::Arc;
use loom::thread;

mod sync {
    use std::collections::VecDeque;

    pub use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

    /// As weak as the real queue may be: that it is not empty is told by one number, which nothing orders with other
    /// memory.
    #[derive(Debug)]
    pub struct SegQueue<T> {
        items: loom::sync::Mutex<VecDeque<T>>,
        pushed: AtomicUsize,
        popped: AtomicUsize,
    }

    impl<T> SegQueue<T> {
        pub fn new() -> Self {
            Self {
                items: loom::sync::Mutex::new(VecDeque::new()),
                pushed: AtomicUsize::new(0),
                popped: AtomicUsize::new(0),
            }
        }

        pub fn push(&self, item: T) {
            if let Ok(mut items) = self.items.lock() {
                items.push_back(item);
            }
            self.pushed.fetch_add(1, Ordering::Relaxed);
        }

        pub fn pop(&self) -> Option<T> {
            if self.is_empty() {
                return None;
            }
            let item = self.items.lock().ok()?.pop_front();
            self.popped.fetch_add(1, Ordering::Relaxed);
            item
        }

        pub fn is_empty(&self) -> bool {
            self.popped.load(Ordering::Relaxed) == self.pushed.load(Ordering::Relaxed)
        }
    }

    #[derive(Debug, Default)]
    pub struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub fn new() -> Self {
            Self::default()
        }

        pub fn register(&self, waker: &std::task::Waker) {
            self.0.register_by_ref(waker);
        }

        pub fn wake(&self) {
            self.0.wake();
        }
    }
}

#[expect(dead_code, reason = "the model asks for no weights")]
#[allow(clippy::duplicate_mod, reason = "the same source over other types is what is to be tried")]
#[path = "inbox.rs"]
mod inbox;

use inbox::Inbox;

/// Counts wake-ups. Not one of loom's types: it is looked at only when all threads have ended.
struct Count(StdAtomicUsize);

impl Wake for Count {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, StdOrdering::SeqCst);
    }
}

fn counting() -> (StdArc<Count>, Waker) {
    let count = StdArc::new(Count(StdAtomicUsize::new(0)));
    let waker = Waker::from(StdArc::clone(&count));
    (count, waker)
}

/// An arbiter that rests while something waits for it would sleep over it: an item is seen before the rest, or it wakes.
#[test]
fn no_item_is_slept_over() {
    for (pushers, preemptions_max) in [(1, None), (2, Some(2))] {
        let mut model = loom::model::Builder::new();
        // All interleavings of three threads would take minutes.
        model.preemption_bound = preemptions_max;
        model.check(move || {
            let inbox = Arc::new(Inbox::new(100));
            let (count, waker) = counting();
            let threads: Vec<_> = (0..pushers)
                .map(|item| {
                    let inbox = Arc::clone(&inbox);
                    thread::spawn(move || inbox.push(item, 1))
                })
                .collect();
            let mut taken = 0;
            while inbox.pop().is_some() {
                taken += 1;
            }
            let rests = inbox.arm(&waker);
            for thread in threads {
                assert!(thread.join().is_ok(), "a pusher panicked");
            }
            let woken = count.0.load(StdOrdering::SeqCst);
            if rests && taken < pushers {
                assert_eq!(woken, 1, "an item came, and nobody woke the arbiter, or more than once");
            }
            if !rests {
                assert!(woken <= 1, "woken {woken} times");
            }
        });
    }
}

/// A second rest needs its own wake-up: one that was meant for the first must not use it up unseen.
#[test]
fn each_rest_is_ended_by_an_item_of_its_own() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::new(100));
        let (first, first_waker) = counting();
        let (second, second_waker) = counting();
        let rested = inbox.arm(&first_waker);
        assert!(rested, "nothing is there yet");
        let pusher = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || {
                inbox.push(1, 1);
                inbox.push(2, 1);
            })
        };
        // The runtime may poll an arbiter for reasons of its own.
        let mut taken = 0;
        while inbox.pop().is_some() {
            taken += 1;
        }
        let rests = inbox.arm(&second_waker);
        assert!(pusher.join().is_ok(), "the pusher panicked");
        let woken = first.0.load(StdOrdering::SeqCst) + second.0.load(StdOrdering::SeqCst);
        if rests && taken < 2 {
            assert!(woken >= 1, "items wait, and the arbiter sleeps");
        }
        while inbox.pop().is_some() {
            taken += 1;
        }
        assert_eq!(taken, 2);
    });
}
