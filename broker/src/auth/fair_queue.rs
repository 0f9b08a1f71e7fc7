//! Queues in which addresses take turns, and so do the users of one address, so that no storm keeps others from their turn.
//!
//! What waits is bounded: when the queue is full, whoever has most waiting gives way to one who has less.

use std::collections::VecDeque;
use std::hash::Hash;
use std::net::IpAddr;

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

/// What waits for its turn.
pub trait Waits {
    /// Where it comes from.
    fn address(&self) -> FairAddress;

    /// Whom it is about.
    fn user(&self) -> &str;
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
    type Job;

    fn len(&self) -> usize;
    fn pop(&mut self) -> Option<Self::Job>;
    fn pop_longest(&mut self) -> Option<Self::Job>;
}

impl<J> Queue for VecDeque<J> {
    type Job = J;

    fn len(&self) -> usize {
        self.len()
    }

    fn pop(&mut self) -> Option<J> {
        self.pop_front()
    }

    /// The last that came.
    fn pop_longest(&mut self) -> Option<J> {
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
    type Job = Q::Job;

    fn len(&self) -> usize {
        self.queues.values().map(Queue::len).sum()
    }

    fn pop(&mut self) -> Option<Q::Job> {
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

    fn pop_longest(&mut self) -> Option<Q::Job> {
        let key = self.order.iter().max_by_key(|&key| self.queues.get(key).map_or(0, Queue::len))?.clone();
        let job = self.queues.get_mut(&key)?.pop_longest();
        self.remove_if_empty(&key);
        job
    }
}

/// The queue.
#[derive(Debug)]
pub struct FairQueue<J> {
    /// By address, and then by user.
    waiting: Turns<FairAddress, Turns<Box<str>, VecDeque<J>>>,
    count: usize,
    count_max: usize,
}

impl<J: Waits> FairQueue<J> {
    /// In which at most `count_max` wait, and one at least may.
    #[must_use]
    pub fn new(count_max: usize) -> Self {
        Self { waiting: Turns::default(), count: 0, count_max: count_max.max(1) }
    }

    /// How many wait.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether more than half of the room is taken.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.count > self.count_max / 2
    }

    /// Takes a job in. What gives way for it, if there was no room: perhaps the job itself.
    pub fn push(&mut self, job: J) -> Option<J> {
        if self.count < self.count_max {
            self.count += 1;
            self.take_in(job);
            return None;
        }
        let own = self.waiting.queues.get(&job.address()).map_or(0, Queue::len);
        let longest = self.waiting.queues.values().map(Queue::len).max().unwrap_or(0);
        if own > 0 && own + 1 > longest {
            // Its own address has most: among the users of that one the same holds.
            let users = self.waiting.queue(job.address());
            let own = users.queues.get(job.user()).map_or(0, VecDeque::len);
            if own + 1 > users.queues.values().map(VecDeque::len).max().unwrap_or(0) {
                return Some(job);
            }
            let gives_way = users.pop_longest();
            self.take_in(job);
            return gives_way;
        }
        let gives_way = self.waiting.pop_longest();
        self.take_in(job);
        gives_way
    }

    fn take_in(&mut self, job: J) {
        self.waiting.queue(job.address()).queue(Box::from(job.user())).push_back(job);
    }

    /// Whose turn it is.
    pub fn pop(&mut self) -> Option<J> {
        let job = self.waiting.pop()?;
        self.count -= 1;
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    struct Job(u8, &'static str);

    impl Waits for Job {
        fn address(&self) -> FairAddress {
            Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, self.0)))
        }

        fn user(&self) -> &str {
            self.1
        }
    }

    fn name(job: &Job) -> String {
        format!("{}{}", job.0, job.1)
    }

    fn turns(queue: &mut FairQueue<Job>) -> Vec<String> {
        std::iter::from_fn(|| queue.pop()).map(|job| name(&job)).collect()
    }

    #[test]
    fn addresses_take_turns_and_so_do_the_users_of_one() {
        let mut queue = FairQueue::new(100);
        for (address, user) in [(1, "a"), (1, "a"), (1, "a"), (1, "b"), (2, "c"), (2, "c"), (3, "d")] {
            assert!(queue.push(Job(address, user)).is_none());
        }
        assert_eq!(turns(&mut queue), ["1a", "2c", "3d", "1b", "2c", "1a", "1a"]);
        assert!(queue.waiting.queues.is_empty() && queue.waiting.order.is_empty() && queue.count() == 0);
    }

    #[test]
    fn whoever_has_most_waiting_gives_way() {
        let mut queue = FairQueue::new(4);
        let mut push = |address, user| queue.push(Job(address, user)).map(|job| name(&job));
        for _ in 0..4 {
            assert_eq!(push(1, "a"), None);
        }
        assert_eq!(push(1, "a").as_deref(), Some("1a"), "the newcomer itself");
        assert_eq!(push(1, "b").as_deref(), Some("1a"), "another user of that address");
        assert_eq!(push(2, "c").as_deref(), Some("1a"), "another address");
        assert_eq!(push(3, "d").as_deref(), Some("1a"));
        assert_eq!(push(1, "b").as_deref(), Some("1b"), "no more for that address than there is");
        assert_eq!(queue.count(), 4);
        assert!(queue.is_crowded());
        assert_eq!(turns(&mut queue), ["1a", "2c", "3d", "1b"]);
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
