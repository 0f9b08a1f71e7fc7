//! An arbiter that somebody drives by plain calls: no thread, no runtime, no socket, no clock that moves by itself.
//!
//! It has the tasks that an arbiter's thread has (one for each connection, the flush, the events), which are woken as there,
//! and stand in a run queue. Which of them runs next is the caller's choice, and nothing runs but by a call, so that a
//! simulation that draws its choices from a seed repeats.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use super::claims::ClaimTurns;
use super::{ArbiterState, ConnectionKey, Shared};
use crate::connection::{MemoryStream, Transport};
use crate::listener::ListenerContext;
use crate::metrics::ArbiterCounters;

/// Claims of it that a group has to answer for at a time: there are few clients, and they are to wait for their turns.
const CLAIMS_UNDER_WAY_MAX: u16 = 2;

/// An arbiter and its run queue.
pub struct SteppedArbiter {
    state: ArbiterState,
    run_queue: Arc<RunQueue>,
}

#[derive(Debug, Default)]
struct RunQueue(Mutex<VecDeque<Arc<Task>>>);

impl RunQueue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Task>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>, work: Work) {
        let task = Task { work, is_queued: AtomicBool::new(true), run_queue: Arc::downgrade(self) };
        self.lock().push_back(Arc::new(task));
    }
}

/// Lives as long as somebody may wake it.
#[derive(Debug)]
struct Task {
    work: Work,
    is_queued: AtomicBool,
    run_queue: Weak<RunQueue>,
}

/// What an arbiter's thread does in tasks of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Connection(ConnectionKey),
    Flush,
    Events,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::Relaxed)
            && let Some(run_queue) = self.run_queue.upgrade()
        {
            run_queue.lock().push_back(self);
        }
    }
}

impl SteppedArbiter {
    /// The arbiter `id`, whose tasks wait for their first turn.
    #[must_use]
    pub fn new(id: u16, shared: Arc<Shared>, counters: ArbiterCounters) -> Self {
        let run_queue = Arc::new(RunQueue::default());
        run_queue.spawn(Work::Flush);
        run_queue.spawn(Work::Events);
        let mut state = ArbiterState::new(id, shared, counters);
        let groups = state.shared.submitter.slots().groups();
        state.claim_turns = ClaimTurns::new(groups, CLAIMS_UNDER_WAY_MAX);
        Self { state, run_queue }
    }

    /// The arbiter.
    #[must_use]
    pub fn state(&self) -> &ArbiterState {
        &self.state
    }

    /// Takes a connection in. Whoever accepted it has counted it ([`Shared::try_open_connection`]).
    pub fn add_connection(
        &mut self,
        stream: MemoryStream,
        listener: Arc<ListenerContext>,
        peer: Option<SocketAddr>,
    ) -> ConnectionKey {
        let key = self.state.add_connection(Transport::Memory(stream), listener, peer);
        self.run_queue.spawn(Work::Connection(key));
        key
    }

    /// Tasks that want a turn.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.run_queue.lock().len()
    }

    /// Gives a turn to one of those that wait: the `choice`-th, counted round and round from the one that was woken first.
    /// `false`: none waits.
    pub fn step(&mut self, choice: usize) -> bool {
        let mut waiting = self.run_queue.lock();
        let next = choice.checked_rem(waiting.len()).and_then(|at| waiting.remove(at));
        drop(waiting);
        let Some(task) = next else {
            return false;
        };
        // From here on it can be woken again, by itself too.
        task.is_queued.store(false, Ordering::Relaxed);
        let work = task.work;
        let waker = Waker::from(task);
        let mut cx = Context::from_waker(&waker);
        let outcome = match work {
            Work::Connection(key) => self.state.poll_connection(key, &mut cx),
            Work::Flush => self.state.poll_flush(&mut cx),
            Work::Events => self.state.poll_events(&mut cx),
        };
        if let (Poll::Ready(()), Work::Connection(key)) = (outcome, work) {
            self.state.remove_connection(key);
        }
        true
    }

    /// Gives turns, in the order in which they were asked for, until nobody wants one.
    pub fn run(&mut self) {
        while self.step(0) {}
    }

    /// What an arbiter does once a second.
    pub fn on_second(&mut self) {
        self.state.on_second();
        self.resume_paced();
    }

    /// What it does every [`RESUME_INTERVAL`](super::pace::RESUME_INTERVAL) while publishers are held to a rate.
    pub fn resume_paced(&mut self) {
        self.state.resume_paced();
    }
}

#[cfg(test)]
mod tests;
