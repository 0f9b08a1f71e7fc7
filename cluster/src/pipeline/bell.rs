//! What wakes a thread of the pipeline: one bell for all its channels.
//!
//! The blocking receive of crossbeam's channels yields the core ten times before it sleeps. A thread that is woken sixty times a
//! second, because groups have heartbeats, spends more on that than on all it is woken for. Here a thread that finds nothing sleeps
//! at once; one that is busy is never asleep, and ringing for it costs one atomic exchange.

use std::fmt;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, SendError};
use crossbeam::sync::{Parker, Unparker};

/// Where a thread waits. It looks into its channels *before* it does, so that a ring is never for nothing.
pub(super) struct Bell(Parker);

impl Bell {
    pub(super) fn new() -> Self {
        Self(Parker::new())
    }

    /// A channel whose senders ring.
    pub(super) fn channel<T>(&self) -> (Ringing<T>, Receiver<T>) {
        let (channel, received) = channel::unbounded();
        (Ringing { channel, rope: Rope(self.0.unparker().clone()) }, received)
    }

    /// Until somebody rang since the last call, or `timeout` is over, or for no reason.
    pub(super) fn wait(&self, timeout: Duration) {
        if !timeout.is_zero() {
            self.0.park_timeout(timeout);
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
        self.send_all([what])
    }

    /// Likewise, but rings only once they are all there: who is woken by the first finds it alone.
    pub(super) fn send_all(&self, all: impl IntoIterator<Item = T>) -> Result<(), SendError<T>> {
        all.into_iter().try_for_each(|what| self.channel.send(what))?;
        self.rope.0.unpark();
        Ok(())
    }
}

impl<T> Clone for Ringing<T> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone(), rope: Rope(self.rope.0.clone()) }
    }
}

impl<T> fmt::Debug for Ringing<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ringing").finish_non_exhaustive()
    }
}

/// Rings once more when its sender is gone, which is dropped before it: the last one's end is an end to be noticed.
struct Rope(Unparker);

impl Drop for Rope {
    fn drop(&mut self) {
        self.0.unpark();
    }
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
}
