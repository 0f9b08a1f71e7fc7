//! Directory, leases, fences, interest and lanes together, in a simulated world of three to five nodes: a network that
//! delays, breaks and is cut, processes that are stopped and killed, clocks that differ, leaders that are deposed and do not
//! know it.
//!
//! Checked of each seed:
//! - P1 of transient sessions: no publish is acknowledged that misses a subscription whose SUBACK came before it was sent,
//!   unless the subscriber's node died.
//! - P1 of persistent sessions: the same, whatever died.
//! - Takeover: nothing is acknowledged by a dead incarnation, and no lease outlives its incarnation, so no two incarnations of
//!   a node ever serve at once.
//! - Lanes: every item is applied once and in order; none of a lost incarnation at a node that lives.
//! - When the faults are over, everyone serves, nothing waits, and what groups want is known everywhere.
//!
//! What is simulated here is the cores of `kentongan-cluster` alone, at fifty times the speed of whole nodes.

mod consensus;
mod process;
mod random;
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;

use world::{Outcome, World};

/// A bug that is planted where the cores are wired together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// None.
    None,
    /// The leader grants from what it knows.
    GrantWithoutRound,
    /// The leader acts on a death that it has only proposed.
    DeadUncommitted,
    /// `Lost` is proposed before anyone says that it has fenced the dead one.
    SkipFence,
    /// A joiner takes interest that was taken before its `Join` was applied.
    LateJoiner,
    /// What a source wanted is forgotten when the link to it breaks.
    DropInterest,
    /// The target forgets the numbers of its lanes when a link breaks.
    ForgetLane,
    /// The lease is looked at before the socket is read.
    LeaseBeforeMatch,
    /// The leader of a group acknowledges a subscription before everyone knows of it.
    SkipBarrier,
    /// A `Join` counts also if it does not know the newest incarnation of its node.
    StaleJoin,
}

impl Plant {
    /// All of them.
    const ALL: [Self; 9] = [
        Self::GrantWithoutRound,
        Self::DeadUncommitted,
        Self::SkipFence,
        Self::LateJoiner,
        Self::DropInterest,
        Self::ForgetLane,
        Self::LeaseBeforeMatch,
        Self::SkipBarrier,
        Self::StaleJoin,
    ];
}

/// So many seeds do everything that there is to do.
const MANY: u64 = 250;

/// So many seeds are run again, and have to be the same.
const TWICE: u64 = 5;

/// Seeds that a mistake may take to be found.
const PLANT_SEEDS_MAX: u64 = 200;

/// Of what clients did, the last lines; of everything else, all.
const CLIENT_LINES: usize = 60;
const CLIENT_KINDS: [&str; 10] = [
    "acknowledged",
    "applied",
    "delivered",
    "publish",
    "subscribe",
    "subscribe in group",
    "subscribed",
    "subscribed in group",
    "unsubscribe",
    "unsubscribe in group",
];

fn report(seed: u64, outcome: &Outcome) -> String {
    let mut text = format!("seed {seed}: {}\n", outcome.violation.as_deref().unwrap_or("no violation"));
    let from = outcome.trace.len().saturating_sub(CLIENT_LINES);
    for (position, (at_us, what, a, b)) in outcome.trace.iter().enumerate() {
        if position < from && CLIENT_KINDS.contains(what) {
            continue;
        }
        let _ = writeln!(text, "{:>12.3} ms  {what} {a} {b}", *at_us as f64 / 1000.0);
    }
    text
}

/// Every kind of fault and of event that the seeds must have seen.
const KINDS: [&str; 29] = [
    "acknowledged",
    "applied",
    "closed",
    "crashed",
    "cut",
    "cut one way",
    "delivered",
    "died",
    "directory lags",
    "elected",
    "election forced",
    "group elected",
    "halved",
    "join refused",
    "joined",
    "link broken",
    "lost",
    "paused",
    "publish",
    "registered",
    "restored",
    "resume",
    "start",
    "subscribe",
    "subscribe in group",
    "subscribed",
    "subscribed in group",
    "unsubscribe",
    "unsubscribe in group",
];

/// Runs `seeds`, and each of the first few of them twice.
///
/// # Errors
/// One broke a promise, or was not the same twice; or many did not do everything there is to do.
pub fn pass(seeds: Range<u64>, threads: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let twice = seeds.start..seeds.start.saturating_add(TWICE);
    let outcomes = on_threads(seeds.clone(), threads, |seed| {
        let outcome = World::run(seed, Plant::None);
        anyhow::ensure!(outcome.violation.is_none(), "{}", report(seed, &outcome));
        if twice.contains(&seed) {
            let again = World::run(seed, Plant::None);
            anyhow::ensure!(
                (outcome.hash, outcome.events) == (again.hash, again.events),
                "seed {seed} is not the same twice"
            );
        }
        Ok((outcome.events, outcome.counts))
    })?;
    let (mut counts, mut events) = (BTreeMap::<&str, u64>::new(), 0);
    for (own_events, own_counts) in outcomes {
        events += own_events;
        for (what, count) in own_counts {
            *counts.entry(what).or_default() += count;
        }
    }
    for (what, count) in &counts {
        println!("{count:>10} {what}");
    }
    let run = seeds.end - seeds.start;
    println!("{run} seeds of membership passed, {events} events, in {:.1} s", started.elapsed().as_secs_f64());
    let missing: Vec<_> = KINDS.into_iter().filter(|kind| !counts.contains_key(kind)).collect();
    anyhow::ensure!(run < MANY || missing.is_empty(), "in none of the seeds: {missing:?}");
    Ok(())
}

/// Makes each mistake, until a seed from `first` on finds it.
///
/// # Errors
/// None did.
pub fn find_plants(first: u64, threads: usize) -> anyhow::Result<()> {
    on_threads(0..Plant::ALL.len() as u64, threads, |number| {
        let plant =
            usize::try_from(number).ok().and_then(|number| Plant::ALL.get(number)).copied().unwrap_or(Plant::None);
        let violation = |seed| World::run(seed, plant).violation.map(|violation| (seed, violation));
        let found = (first..first + PLANT_SEEDS_MAX).find_map(violation);
        let (seed, violation) = found.with_context(|| format!("{PLANT_SEEDS_MAX} seeds do not find {plant:?}"))?;
        println!("{plant:?}: seed {seed}, {} tried: {violation}", seed - first + 1);
        Ok(())
    })?;
    Ok(())
}

/// What `run` makes of each number, in no order; the first error ends it.
fn on_threads<T: Send>(
    numbers: Range<u64>,
    threads: usize,
    run: impl Fn(u64) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let (next, results) = (AtomicU64::new(numbers.start), Mutex::new(Ok(Vec::new())));
    let lock = || results.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while lock().is_ok() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        break;
                    }
                    let result = run(number);
                    let mut results = lock();
                    match (&mut *results, result) {
                        (Ok(all), Ok(one)) => all.push(one),
                        (Err(_), _) => {}
                        (_, Err(error)) => *results = Err(error),
                    }
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}
