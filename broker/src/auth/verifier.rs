//! Threads that do what takes long, verifying passwords, while the arbiters go on.
//!
//! What waits for them is bounded, and shared out fairly: addresses take turns, and so do the users of one address. When the
//! queue is full, whoever has most waiting gives way to one who has less, so that no storm keeps others from their turn.

use std::collections::VecDeque;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// Whom the others take turns with: an IPv4 address, or an IPv6 network of 64 bits, which is what one site has. `None`:
/// whoever has no address.
pub type FairAddress = Option<IpAddr>;

/// What stands for an address in the queue.
#[must_use]
pub fn fair_address(address: Option<IpAddr>) -> FairAddress {
    address.map(|address| match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    })
}

/// A thing to do that waits for a thread.
pub struct Job {
    /// Where it comes from.
    pub address: FairAddress,
    /// Whom it is about.
    pub user: Box<str>,
    /// Nobody waits for it any more once this is gone.
    pub awaited: Weak<()>,
    /// Does it. `false`: there was no room, it is not to be done but to be answered.
    pub act: Box<dyn FnOnce(bool) + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Queues that take turns, by key.
#[derive(Debug)]
struct Turns<K, Q> {
    queues: HashMap<K, Q, RandomState>,
    order: VecDeque<K>,
}

impl<K, Q> Default for Turns<K, Q> {
    fn default() -> Self {
        Self { queues: HashMap::default(), order: VecDeque::new() }
    }
}

/// What can stand in [`Turns`].
trait Queue: Default {
    fn len(&self) -> usize;
    fn pop(&mut self) -> Option<Job>;
    fn pop_longest(&mut self) -> Option<Job>;
}

impl Queue for VecDeque<Job> {
    fn len(&self) -> usize {
        self.len()
    }

    fn pop(&mut self) -> Option<Job> {
        self.pop_front()
    }

    /// The last that came.
    fn pop_longest(&mut self) -> Option<Job> {
        self.pop_back()
    }
}

impl<K: Hash + Eq + Clone, Q: Queue> Turns<K, Q> {
    fn queue(&mut self, key: K) -> &mut Q {
        if !self.queues.contains_key(&key) {
            self.order.push_back(key.clone());
        }
        self.queues.entry(key).or_default()
    }

    fn remove_if_empty(&mut self, key: &K) {
        if self.queues.get(key).is_some_and(|queue| queue.len() == 0) {
            self.queues.remove(key);
            self.order.retain(|other| other != key);
        }
    }
}

impl<K: Hash + Eq + Clone, Q: Queue> Queue for Turns<K, Q> {
    fn len(&self) -> usize {
        self.queues.values().map(Queue::len).sum()
    }

    fn pop(&mut self) -> Option<Job> {
        let key = self.order.pop_front()?;
        let queue = self.queues.get_mut(&key)?;
        let job = queue.pop();
        if queue.len() == 0 {
            self.queues.remove(&key);
        } else {
            self.order.push_back(key);
        }
        job
    }

    fn pop_longest(&mut self) -> Option<Job> {
        let key = self.order.iter().max_by_key(|&key| self.queues.get(key).map_or(0, Queue::len))?.clone();
        let job = self.queues.get_mut(&key)?.pop_longest();
        self.remove_if_empty(&key);
        job
    }
}

/// By address, and then by user.
type Waiting = Turns<FairAddress, Turns<Box<str>, VecDeque<Job>>>;

#[derive(Debug, Default)]
struct State {
    waiting: Waiting,
    count: usize,
    is_over: bool,
}

impl State {
    /// Takes a job in. What gives way for it, if there was no room: perhaps the job itself.
    fn push(&mut self, job: Job, count_max: usize) -> Option<Job> {
        if self.count < count_max {
            self.count += 1;
            self.waiting.queue(job.address).queue(job.user.clone()).push_back(job);
            return None;
        }
        let own = self.waiting.queues.get(&job.address).map_or(0, Queue::len);
        let longest = self.waiting.queues.values().map(Queue::len).max().unwrap_or(0);
        if own > 0 && own + 1 > longest {
            // Its own address has most: among the users of that one the same holds.
            let users = self.waiting.queue(job.address);
            let own = users.queues.get(&job.user).map_or(0, VecDeque::len);
            if own + 1 > users.queues.values().map(VecDeque::len).max().unwrap_or(0) {
                return Some(job);
            }
            let gives_way = users.pop_longest();
            users.queue(job.user.clone()).push_back(job);
            return gives_way;
        }
        let gives_way = self.waiting.pop_longest();
        self.waiting.queue(job.address).queue(job.user.clone()).push_back(job);
        gives_way
    }

    fn pop(&mut self) -> Option<Job> {
        let job = self.waiting.pop()?;
        self.count -= 1;
        Some(job)
    }
}

#[derive(Debug, Default)]
struct Common {
    state: Mutex<State>,
    work: Condvar,
}

impl Common {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads, and the queue before them. They end with it.
#[derive(Debug)]
pub struct Verifier {
    common: Arc<Common>,
    count_max: usize,
}

impl Verifier {
    /// Starts `threads`, for at most `count_max` jobs that wait.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn start(threads: usize, count_max: usize) -> std::io::Result<Self> {
        let common = Arc::<Common>::default();
        for _ in 0..threads {
            let common = Arc::clone(&common);
            std::thread::Builder::new().name("passwords".into()).spawn(move || work(&common))?;
        }
        Ok(Self { common, count_max: count_max.max(1) })
    }

    /// Lets a thread do `job`, or answers it, or one that gives way for it, at once.
    pub fn submit(&self, job: Job) {
        let gives_way = self.common.lock().push(job, self.count_max);
        self.common.work.notify_one();
        if let Some(job) = gives_way {
            (job.act)(false);
        }
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.common.lock().is_over = true;
        self.common.work.notify_all();
    }
}

fn work(common: &Common) {
    // Messages go first: on Linux this is of the thread alone. Where it is not allowed, passwords are verified all the same.
    let _ = rustix::process::nice(10);
    loop {
        let mut state = common.lock();
        let job = loop {
            if state.is_over {
                return;
            }
            match state.pop() {
                Some(job) => break job,
                None => state = common.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(state);
        if job.awaited.strong_count() > 0 {
            (job.act)(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    use super::*;

    fn job(awaited: &Arc<()>, address: u8, user: &str) -> Job {
        Job {
            address: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, address))),
            user: Box::from(user),
            awaited: Arc::downgrade(awaited),
            act: Box::new(|_| {}),
        }
    }

    fn name(job: &Job) -> String {
        let last = job.address.map_or(0, |address| match address {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => 0,
        });
        format!("{last}{}", job.user)
    }

    fn turns(state: &mut State) -> Vec<String> {
        std::iter::from_fn(|| state.pop()).map(|job| name(&job)).collect()
    }

    #[test]
    fn addresses_take_turns_and_so_do_the_users_of_one() {
        let awaited = Arc::new(());
        let mut state = State::default();
        for (address, user) in [(1, "a"), (1, "a"), (1, "a"), (1, "b"), (2, "c"), (2, "c"), (3, "d")] {
            assert!(state.push(job(&awaited, address, user), 100).is_none());
        }
        assert_eq!(turns(&mut state), ["1a", "2c", "3d", "1b", "2c", "1a", "1a"]);
        assert!(state.waiting.queues.is_empty() && state.waiting.order.is_empty() && state.count == 0);
    }

    #[test]
    fn whoever_has_most_waiting_gives_way() {
        let awaited = Arc::new(());
        let mut state = State::default();
        let mut push = |address, user| state.push(job(&awaited, address, user), 4).map(|job| name(&job));
        for _ in 0..4 {
            assert_eq!(push(1, "a"), None);
        }
        assert_eq!(push(1, "a").as_deref(), Some("1a"), "the newcomer itself");
        assert_eq!(push(1, "b").as_deref(), Some("1a"), "another user of that address");
        assert_eq!(push(2, "c").as_deref(), Some("1a"), "another address");
        assert_eq!(push(3, "d").as_deref(), Some("1a"));
        assert_eq!(push(1, "b").as_deref(), Some("1b"), "no more for that address than there is");
        assert_eq!(state.count, 4);
        assert_eq!(turns(&mut state), ["1a", "2c", "3d", "1b"]);
    }

    #[test]
    fn what_nobody_waits_for_is_not_done_and_the_rest_is() {
        let verifier = Verifier::start(1, 10).expect("started");
        let (tell, told) = mpsc::channel();
        let act = |text: &'static str| {
            let tell = tell.clone();
            Box::new(move |is_done| tell.send((text, is_done)).expect("the test waits")) as Box<dyn FnOnce(bool) + Send>
        };
        let awaited = Arc::new(());
        let gone = Arc::downgrade(&Arc::new(()));
        verifier.submit(Job { awaited: gone, act: act("gone"), ..job(&awaited, 1, "a") });
        verifier.submit(Job { act: act("awaited"), ..job(&awaited, 1, "a") });
        assert_eq!(told.recv(), Ok(("awaited", true)));
    }

    #[test]
    fn one_site_is_one_address() {
        let of = |text: &str| fair_address(Some(text.parse().expect("an address")));
        assert_eq!(of("2001:db8::1:2"), of("2001:db8::ffff:9"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
