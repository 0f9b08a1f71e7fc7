//! What wakes a thread of the pipeline: one bell for all its channels.
//!
//! The blocking receive of crossbeam's channels yields the core ten times before it sleeps. A thread that is woken sixty times a
//! second, because groups have heartbeats, spends more on that than on all it is woken for. Here a thread that finds nothing sleeps
//! at once; one that is busy is never asleep, and ringing for it costs one atomic exchange.

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, SendError};
use crossbeam::sync::{Parker, Unparker};

/// Where a thread waits. It looks into its channels *before* it does, so that a ring is never for nothing.
pub(super) struct Bell {
    parker: Parker,
    number: u64,
}

impl Bell {
    pub(super) fn new() -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self { parker: Parker::new(), number: NUMBERS.fetch_add(1, Ordering::Relaxed) }
    }

    /// A channel whose senders ring.
    pub(super) fn channel<T>(&self) -> (Ringing<T>, Receiver<T>) {
        let (channel, received) = channel::unbounded();
        (Ringing { channel, rope: Rope { unparker: self.parker.unparker().clone(), bell: self.number } }, received)
    }

    /// Until somebody rang since the last call, or `timeout` is over, or for no reason.
    pub(super) fn wait(&self, timeout: Duration) {
        if !timeout.is_zero() {
            self.parker.park_timeout(timeout);
        }
    }
}

/// Sends, and wakes who waits for it.
pub(super) struct Ringing<T> {
    channel: channel::Sender<T>,
    rope: Rope,
}

impl<T> Ringing<T> {
    /// Fails once there is no receiver any more.
    pub(super) fn send(&self, what: T) -> Result<(), SendError<T>> {
        self.channel.send(what)?;
        self.rope.ring();
        Ok(())
    }
}

impl<T> Clone for Ringing<T> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone(), rope: self.rope.clone() }
    }
}

impl<T> fmt::Debug for Ringing<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ringing").finish_non_exhaustive()
    }
}

/// Rings once more when its sender is gone, which is dropped before it: the last one's end is an end to be noticed.
#[derive(Clone)]
struct Rope {
    unparker: Unparker,
    bell: u64,
}

impl Rope {
    fn ring(&self) {
        let is_put_off = PUT_OFF.with_borrow_mut(|put_off| match put_off {
            Some(ropes) if ropes.iter().any(|(bell, _)| *bell == self.bell) => true,
            Some(ropes) => {
                ropes.push((self.bell, self.unparker.clone()));
                true
            }
            None => false,
        });
        if !is_put_off {
            self.unparker.unpark();
        }
    }
}

impl Drop for Rope {
    fn drop(&mut self) {
        self.unparker.unpark();
    }
}

thread_local! {
    /// The bells that this thread rings once it has said all, by their numbers; `None`: at once.
    static PUT_OFF: RefCell<Option<Vec<(u64, Unparker)>>> = const { RefCell::new(None) };
}

/// Submits several things, of which the pipeline's threads hear once they are all there: who is woken by the first finds it alone, and
/// makes a round of it. Must not wait for an answer meanwhile.
pub fn together<R>(submit: impl FnOnce() -> R) -> R {
    struct Ring;
    impl Drop for Ring {
        fn drop(&mut self) {
            for (_, unparker) in PUT_OFF.take().into_iter().flatten() {
                unparker.unpark();
            }
        }
    }
    let is_outermost = PUT_OFF.with_borrow_mut(|put_off| {
        let is_outermost = put_off.is_none();
        put_off.get_or_insert_default();
        is_outermost
    });
    let _ring = is_outermost.then(|| Ring);
    submit()
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use crossbeam::channel::TryRecvError;

    use super::*;

    const FOREVER: Duration = Duration::from_secs(60);

    /// What a thread of the pipeline does.
    fn receive<T>(bell: &Bell, received: &Receiver<T>) -> Option<T> {
        loop {
            match received.try_recv() {
                Ok(what) => return Some(what),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => bell.wait(FOREVER),
            }
        }
    }

    #[test]
    fn everything_sent_is_noticed_and_so_is_the_end() {
        let bell = Bell::new();
        let (sender, received) = bell.channel();
        let begun = Instant::now();
        let sending = thread::spawn(move || (0..100_000).for_each(|number| sender.send(number).unwrap()));
        for number in 0..100_000 {
            assert_eq!(receive(&bell, &received), Some(number));
        }
        assert_eq!(receive(&bell, &received), None);
        sending.join().unwrap();
        assert!(begun.elapsed() < FOREVER, "a ring was missed");
    }

    #[test]
    fn one_bell_serves_two_channels() {
        let bell = Bell::new();
        let ((first, numbers), (second, words)) = (bell.channel::<u8>(), bell.channel::<&str>());
        first.send(1).unwrap();
        second.send("one").unwrap();
        bell.wait(FOREVER);
        assert_eq!((numbers.try_recv(), words.try_recv()), (Ok(1), Ok("one")));
        second.send("two").unwrap();
        bell.wait(FOREVER);
        assert_eq!((numbers.try_recv(), words.try_recv()), (Err(TryRecvError::Empty), Ok("two")));
    }

    #[test]
    fn what_is_said_together_rings_once_it_is_all_there() {
        let bell = Bell::new();
        let (sender, received) = bell.channel();
        let rang = || {
            let began = Instant::now();
            bell.wait(Duration::from_millis(50));
            began.elapsed() < Duration::from_millis(50)
        };
        together(|| {
            sender.send(1).unwrap();
            together(|| sender.send(2).unwrap());
            assert!(!rang(), "not yet, and not by what is within");
            sender.send(3).unwrap();
        });
        assert!(rang());
        assert_eq!(received.try_iter().collect::<Vec<_>>(), [1, 2, 3]);
        sender.send(4).unwrap();
        assert!(rang(), "at once again");
        drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| together(|| panic!("of no use")))));
        sender.send(5).unwrap();
        assert!(rang());
    }
}
