//! What a look-up, a subscription and a change cost.
//!
//! One million subscriptions of five levels; nine in ten without wildcards, one in twenty with a `+` at a random
//! level, one in twenty with a `#` at the end; about five of them match each topic. Topics are drawn at random, so
//! nearly every look-up is cold. `cargo bench -p kentongan --bench subscription_index`

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use kentongan::subscription::{
    LocalSubscription, LocalSubscriptions, MatchCache, Matched, SubscriptionIndex, Target, topic_hash,
};
use kentongan_proto::mqtt::QoS;

const SUBSCRIPTIONS: usize = 1_000_000;
const CONNECTIONS: u64 = 100_000;
const ARBITERS: u64 = 8;
const CHANGES_A_SECOND: u32 = 10_000;

/// Counts the bytes that are asked for and not given back.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on unchanged to the system's allocator; the counter takes no part in it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// SplitMix64: the same workload at every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn levels(&mut self) -> Vec<String> {
        let bounds = [("area", 20), ("site", 20), ("line", 22), ("unit", 12), ("value", 10)];
        bounds.map(|(name, bound)| format!("{name}{}", self.below(bound))).to_vec()
    }

    fn topic(&mut self) -> String {
        self.levels().join("/")
    }

    fn filter(&mut self) -> String {
        let mut levels = self.levels();
        match self.below(20) {
            0 => levels[self.below(5) as usize] = "+".to_owned(),
            1 => {
                levels.truncate(3 + self.below(2) as usize);
                levels.push("#".to_owned());
            }
            _ => {}
        }
        levels.join("/")
    }
}

fn subscription(connection: u64) -> LocalSubscription {
    LocalSubscription {
        connection,
        qos: QoS::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        subscription_identifier: None,
        persistent: false,
        held: false,
    }
}

/// Fills a table and prints what each subscription cost.
fn fill<T>(name: &str, mut table: T, mut insert: impl FnMut(&mut T, &str, u64)) -> T {
    let mut draws = Draws(1);
    let filters: Vec<(String, u64)> = (0..SUBSCRIPTIONS).map(|_| (draws.filter(), draws.below(CONNECTIONS))).collect();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let start = Instant::now();
    for (filter, connection) in &filters {
        insert(&mut table, filter, *connection);
    }
    let each = start.elapsed() / SUBSCRIPTIONS as u32;
    let bytes = ALLOCATED.load(Ordering::Relaxed) - before;
    println!("{name}: {} bytes a subscription, {each:?} to enter one", bytes / SUBSCRIPTIONS);
    table
}

fn topics() -> Vec<(String, u64)> {
    let mut draws = Draws(2);
    let topics = std::iter::repeat_with(|| draws.topic());
    topics.take(1 << 17).map(|topic| (topic.clone(), topic_hash(&topic))).collect()
}

/// Looks topics up for `duration`, and returns how many a second.
fn read_for(topics: &[(String, u64)], duration: Duration, mut look_up: impl FnMut(&str, u64)) -> f64 {
    let start = Instant::now();
    let mut count = 0_usize;
    while start.elapsed() < duration {
        for (topic, hash) in topics.iter().cycle().skip(count % topics.len()).take(1000) {
            look_up(topic, *hash);
        }
        count += 1000;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

/// Prints the rate of cold look-ups by its median and its best window, which other load disturbed least.
fn print_rate(name: &str, topics: &[(String, u64)], mut look_up: impl FnMut(&str, u64)) {
    let window = Duration::from_millis(100);
    let mut rates: Vec<f64> = (0..20).map(|_| read_for(topics, window, &mut look_up)).collect();
    rates.sort_by(f64::total_cmp);
    println!("{name}: {:.0} cold look-ups/s, {:.0} in the best window", rates[10], rates[19]);
}

/// Subscribes and unsubscribes at a steady rate until told to stop; returns how many pairs it made.
fn churn(index: &SubscriptionIndex, stop: &AtomicBool) -> u32 {
    let mut draws = Draws(3);
    let start = Instant::now();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * f64::from(CHANGES_A_SECOND)) as u32;
        for _ in count..due {
            let (filter, target) = (draws.filter(), Target::Group(draws.below(16) as u16));
            index.subscribe(&filter, target);
            index.unsubscribe(&filter, target);
        }
        count = due;
        std::thread::sleep(Duration::from_millis(1));
    }
    count
}

/// The cost that changes have for readers: still and changing by turns, so that other load on the machine hits both.
fn readers_under_churn(index: &SubscriptionIndex, topics: &[(String, u64)]) {
    let (mut still, mut changing, mut changes) = (Vec::new(), Vec::new(), 0);
    let mut matched = Matched::default();
    let mut look_up = |topic: &str, hash| {
        index.matches(topic, hash, &mut matched);
        black_box(&matched);
    };
    for _ in 0..12 {
        still.push(read_for(topics, Duration::from_millis(150), &mut look_up));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| churn(index, &stop));
            changing.push(read_for(topics, Duration::from_millis(150), &mut look_up));
            stop.store(true, Ordering::Relaxed);
            changes += writer.join().unwrap_or_default();
        });
    }
    let median = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (still, changing) = (median(still), median(changing));
    println!(
        "reader: {still:.0} look-ups/s still, {changing:.0}/s under {:.0} subscribes+unsubscribes/s ({:+.0} %)",
        f64::from(changes) / (12.0 * 0.150),
        (changing / still - 1.0) * 100.0
    );
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    let index = fill("shared index", SubscriptionIndex::new(), |index, filter, connection| {
        index.subscribe(filter, Target::Arbiter((connection % ARBITERS) as u16));
    });
    let local = fill("local table", LocalSubscriptions::new(), |local, filter, connection| {
        local.insert(filter, &subscription(connection));
    });
    let (shared_bytes, local_bytes) = (index.memory_bytes(), local.memory_bytes());
    println!("by their own account {} and {} bytes", shared_bytes / SUBSCRIPTIONS, local_bytes / SUBSCRIPTIONS);
    let topics = topics();
    let mut found = Vec::new();
    let total: usize = topics
        .iter()
        .map(|(topic, hash)| {
            local.matches_each(topic, *hash, &mut found);
            found.len()
        })
        .sum();
    println!("{:.2} matches a topic", total as f64 / topics.len() as f64);
    let mut matched = Matched::default();
    print_rate("shared index", &topics, |topic, hash| index.matches(topic, hash, &mut matched));
    print_rate("local table", &topics, |topic, hash| {
        local.matches(topic, hash, &mut found);
    });
    readers_under_churn(&index, &topics);

    let mut group = criterion.benchmark_group("subscription_index");
    group.throughput(Throughput::Elements(1));
    let mut turn = topics.iter().cycle();
    let mut next = || turn.next().map_or(("", 0), |(topic, hash)| (topic.as_str(), *hash));
    group.bench_function("shared, cold", |bencher| {
        bencher.iter(|| {
            let (topic, hash) = next();
            index.matches(black_box(topic), hash, &mut matched);
        });
    });
    group.bench_function("local, cold", |bencher| {
        bencher.iter(|| {
            let (topic, hash) = next();
            local.matches(black_box(topic), hash, &mut found)
        });
    });
    group.bench_function("both through the cache, cold", |bencher| {
        let mut cache = MatchCache::new();
        bencher.iter(|| {
            let (topic, hash) = next();
            let cached = cache.take(black_box(topic), hash, &index, &local);
            cache.put_back(cached);
        });
    });
    group.bench_function("both through the cache, 256 topics", |bencher| {
        let mut cache = MatchCache::new();
        let mut turn = topics[..256].iter().cycle();
        bencher.iter(|| {
            let Some((topic, hash)) = turn.next() else { return };
            let cached = cache.take(black_box(topic), *hash, &index, &local);
            cache.put_back(cached);
        });
    });
    group.bench_function("hash of a topic", |bencher| {
        bencher.iter(|| topic_hash(black_box(next().0)));
    });
    let mut draws = Draws(4);
    group.bench_function("subscribe and unsubscribe", |bencher| {
        bencher.iter_batched(
            || draws.filter(),
            |filter| {
                index.subscribe(&filter, Target::Group(3));
                index.unsubscribe(&filter, Target::Group(3))
            },
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}
