//! Queues in which addresses take turns, and so do the users of one address, so that no storm keeps others from their turn.
//!
//! What waits is bounded: when the queue is full, whoever has most waiting gives way to one who has less. What is large takes several
//! places in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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

    /// How much of the queue it takes, at least 1.
    fn places(&self) -> usize {
        1
    }
}

/// What can stand in [`Turns`].
trait Queue: Default {
    type Job;

    /// What those in it take.
    fn places(&self) -> usize;
    fn pop(&mut self) -> Option<Self::Job>;
    /// One of whoever has most in it, the last that came.
    fn pop_longest(&mut self) -> Option<Self::Job>;
}

/// Those who wait behind one another.
#[derive(Debug)]
struct Line<J> {
    jobs: VecDeque<J>,
    places: usize,
}

impl<J> Default for Line<J> {
    fn default() -> Self {
        Self { jobs: VecDeque::new(), places: 0 }
    }
}

impl<J: Waits> Line<J> {
    fn push(&mut self, job: J) {
        self.places += job.places();
        self.jobs.push_back(job);
    }

    fn without(&mut self, job: Option<J>) -> Option<J> {
        self.places -= job.as_ref().map_or(0, Waits::places);
        job
    }
}

impl<J: Waits> Queue for Line<J> {
    type Job = J;

    fn places(&self) -> usize {
        self.places
    }

    fn pop(&mut self) -> Option<J> {
        let job = self.jobs.pop_front();
        self.without(job)
    }

    fn pop_longest(&mut self) -> Option<J> {
        let job = self.jobs.pop_back();
        self.without(job)
    }
}

/// Queues that take turns, by key. None of them is empty. Nothing here takes longer because many wait, but for the height of trees:
/// every arbiter stands before the lock meanwhile.
#[derive(Debug)]
struct Turns<K, Q> {
    queues: HashMap<K, Turn<Q>, RandomState>,
    /// By the number of their turn, the next one first.
    order: BTreeMap<u64, K>,
    /// By what they take, and then by that number.
    longest: BTreeSet<(usize, u64)>,
    turns: u64,
    places: usize,
}

/// A queue in [`Turns`].
#[derive(Debug)]
struct Turn<Q> {
    number: u64,
    queue: Q,
}

impl<K, Q> Default for Turns<K, Q> {
    fn default() -> Self {
        Self { queues: HashMap::default(), order: BTreeMap::new(), longest: BTreeSet::new(), turns: 0, places: 0 }
    }
}

impl<K: Hash + Eq + Clone, Q: Queue> Turns<K, Q> {
    fn places_of(&self, key: &K) -> usize {
        self.queues.get(key).map_or(0, |turn| turn.queue.places())
    }

    /// What the longest of them takes.
    fn places_max(&self) -> usize {
        self.longest.last().map_or(0, |&(places, _)| places)
    }

    fn next_number(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    /// Does something with a queue that is there, and puts it in its place again, `at_the_end` behind all others.
    fn change<R>(&mut self, key: &K, at_the_end: bool, act: impl FnOnce(&mut Q) -> R) -> Option<R> {
        let end = self.next_number();
        let turn = self.queues.get_mut(key)?;
        let (before, number) = (turn.queue.places(), turn.number);
        let done = act(&mut turn.queue);
        let after = turn.queue.places();
        if at_the_end {
            turn.number = end;
        }
        let new_number = turn.number;
        self.longest.remove(&(before, number));
        self.places = self.places - before + after;
        if after == 0 {
            self.queues.remove(key);
            self.order.remove(&number);
            return Some(done);
        }
        self.longest.insert((after, new_number));
        if new_number != number
            && let Some(key) = self.order.remove(&number)
        {
            self.order.insert(new_number, key);
        }
        Some(done)
    }

    /// Puts something into a queue, of those that are there or behind them. `act` must do so.
    fn add(&mut self, key: K, act: impl FnOnce(&mut Q)) {
        if !self.queues.contains_key(&key) {
            let number = self.next_number();
            self.order.insert(number, key.clone());
            self.queues.insert(key.clone(), Turn { number, queue: Q::default() });
        }
        self.change(&key, false, act);
    }
}

impl<K: Hash + Eq + Clone, Q: Queue> Queue for Turns<K, Q> {
    type Job = Q::Job;

    fn places(&self) -> usize {
        self.places
    }

    fn pop(&mut self) -> Option<Q::Job> {
        let key = self.order.first_key_value()?.1.clone();
        self.change(&key, true, Queue::pop)?
    }

    fn pop_longest(&mut self) -> Option<Q::Job> {
        let (_, number) = self.longest.last()?;
        let key = self.order.get(number)?.clone();
        self.change(&key, false, Queue::pop_longest)?
    }
}

/// The queue.
#[derive(Debug)]
pub struct FairQueue<J> {
    /// By address, and then by user.
    waiting: Turns<FairAddress, Turns<Box<str>, Line<J>>>,
    count: usize,
    places_max: usize,
}

impl<J: Waits> FairQueue<J> {
    /// Which has so many places, at least one.
    #[must_use]
    pub fn new(places_max: usize) -> Self {
        Self { waiting: Turns::default(), count: 0, places_max: places_max.max(1) }
    }

    /// How many wait.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether more than half of the room is taken.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.waiting.places() > self.places_max / 2
    }

    /// Takes a job in. Those that give way for it, if there was no room: perhaps the job itself, if there would be none that is its.
    pub fn push(&mut self, job: J) -> Vec<J> {
        let (address, places) = (job.address(), job.places());
        let mut give_way = Vec::new();
        // Where nothing waits there is room for anything.
        while self.count > 0 && self.waiting.places() + places > self.places_max {
            let gives_way = if self.waiting.places_of(&address) + places <= self.waiting.places_max() {
                self.waiting.pop_longest()
            } else {
                // Its own address would have most: among the users of that one the same holds.
                let pop = |users: &mut Turns<Box<str>, Line<J>>| {
                    let own = users.places_of(&Box::from(job.user()));
                    if own + places <= users.places_max() { users.pop_longest() } else { None }
                };
                self.waiting.change(&address, false, pop).flatten()
            };
            match gives_way {
                Some(other) => {
                    self.count -= 1;
                    give_way.push(other);
                }
                None => {
                    give_way.push(job);
                    return give_way;
                }
            }
        }
        self.count += 1;
        self.waiting.add(address, |users| users.add(Box::from(job.user()), |line| line.push(job)));
        give_way
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

    use proptest::prelude::*;

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
            assert!(queue.push(Job(address, user)).is_empty());
        }
        assert_eq!(turns(&mut queue), ["1a", "2c", "3d", "1b", "2c", "1a", "1a"]);
        assert!(queue.waiting.queues.is_empty() && queue.waiting.order.is_empty() && queue.count() == 0);
    }

    #[test]
    fn whoever_has_most_waiting_gives_way() {
        let mut queue = FairQueue::new(4);
        let mut push = |address, user| queue.push(Job(address, user)).pop().map(|job| name(&job));
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

    /// Of one user of an address, and so large.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Large(u8, usize);

    impl Waits for Large {
        fn address(&self) -> FairAddress {
            Job(self.0, "").address()
        }

        fn user(&self) -> &str {
            ""
        }

        fn places(&self) -> usize {
            self.1
        }
    }

    /// Abuse: [http-authentication]
    #[test]
    fn what_is_large_takes_the_places_of_several_and_only_from_who_has_more() {
        let mut queue = FairQueue::new(10);
        let mut push = |address, places| queue.push(Large(address, places));
        for address in 1..=8 {
            assert_eq!(push(address, 1), []);
        }
        assert_eq!(push(9, 3), [Large(9, 3)], "all others have less");
        assert_eq!(push(9, 2), []);
        assert_eq!(push(9, 1), [Large(9, 1)], "it would have most by far");
        assert_eq!(push(10, 1), [Large(9, 2)], "and has most now");
        assert_eq!(push(11, 1), []);
        assert_eq!(push(11, 100), [Large(11, 100)], "larger than the queue");
        assert_eq!(queue.count(), 10);
        assert!(queue.is_crowded());
        assert_eq!(std::iter::from_fn(|| queue.pop()).map(|job| job.1).sum::<usize>(), 10);
        assert!(queue.count() == 0 && !queue.is_crowded());
        assert_eq!((queue.push(Large(1, 100)), queue.push(Large(2, 1))), (vec![], vec![Large(1, 100)]));
    }

    proptest! {
        /// Whatever comes and goes: what is counted is what is there, and no key is without a queue or the other way round.
        #[test]
        fn its_books_are_right(acts in prop::collection::vec((0..6_u8, 0..5_usize), 0..200)) {
            let mut queue = FairQueue::new(12);
            let mut there = 0_usize;
            for (address, places) in acts {
                if places == 0 {
                    there -= queue.pop().map_or(0, |job: Large| job.1);
                } else {
                    there += places;
                    there -= queue.push(Large(address, places)).iter().map(|job| job.1).sum::<usize>();
                }
                let turns = &queue.waiting;
                let lengths: BTreeSet<_> = turns.queues.values().map(|turn| (turn.queue.places(), turn.number)).collect();
                prop_assert_eq!(&turns.longest, &lengths);
                prop_assert_eq!(turns.order.len(), lengths.len());
                prop_assert!(turns.order.iter().all(|(number, key)| turns.queues[key].number == *number));
                prop_assert!(lengths.iter().all(|&(places, _)| places > 0));
                prop_assert_eq!((turns.places(), lengths.iter().map(|&(places, _)| places).sum::<usize>()), (there, there));
                prop_assert!(there <= 12);
                let jobs = turns.queues.values().flat_map(|turn| turn.queue.queues.values());
                prop_assert_eq!(jobs.map(|turn| turn.queue.jobs.len()).sum::<usize>(), queue.count());
            }
        }
    }

    /// From an address of its own.
    struct Stranger(u32);

    impl Waits for Stranger {
        fn address(&self) -> FairAddress {
            Some(IpAddr::V4(Ipv4Addr::from_bits(self.0)))
        }

        fn user(&self) -> &str {
            ""
        }
    }

    /// Whoever pushes holds a lock that all arbiters take.
    ///
    /// Abuse: [http-authentication]
    #[test]
    fn what_finds_a_long_queue_full_does_not_walk_along_it() {
        let takes = |places: u32| {
            let mut queue = FairQueue::new(places as usize);
            (0..places).for_each(|number| drop(queue.push(Stranger(number))));
            let time = |round: u32| {
                let begun = std::time::Instant::now();
                (0..200).for_each(|number| drop(queue.push(Stranger(places + 200 * round + number))));
                begun.elapsed()
            };
            (0..5).map(time).min().expect("some")
        };
        let (short, long) = (takes(100), takes(30_000));
        assert!(long < short * 30, "{long:?} and not about {short:?}");
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
