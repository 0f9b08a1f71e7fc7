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
//! `KENTONGAN_SEED=n` runs one seed and prints what happened; `KENTONGAN_SEEDS=n` runs more than usual.

mod consensus;
mod process;
mod random;
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;

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

const SEEDS: u64 = 1_000;
const SEEDS_TO_CATCH: u64 = 200;

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

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// The first seed that catches the bug.
fn caught(plant: Plant) -> (u64, String) {
    let violation = |seed| World::run(seed, plant).violation.map(|violation| (seed, violation));
    (0..SEEDS_TO_CATCH).find_map(violation).unwrap_or_else(|| panic!("{plant:?} is not caught"))
}

fn assert_caught(plant: Plant) {
    let (seed, violation) = caught(plant);
    println!("{plant:?}: seed {seed}: {violation}");
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

fn pass(seeds: std::ops::Range<u64>) {
    let mut counts = BTreeMap::<&str, u64>::new();
    let mut events = 0;
    for seed in seeds {
        let outcome = World::run(seed, Plant::None);
        assert!(outcome.violation.is_none(), "{}", report(seed, &outcome));
        events += outcome.events;
        for (what, count) in outcome.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{events} events: {counts:?}");
    for kind in KINDS {
        assert!(counts.contains_key(kind), "no seed had one: {kind}");
    }
}

/// The seeds in four parts, for as many cores.
fn pass_quarter(quarter: u64) {
    let seeds = from_environment("KENTONGAN_SEEDS").unwrap_or(SEEDS);
    pass(seeds * quarter / 4..seeds * (quarter + 1) / 4);
}

#[test]
fn the_promises_hold_in_the_first_quarter_of_the_seeds() {
    if let Some(seed) = from_environment("KENTONGAN_SEED") {
        let outcome = World::run(seed, Plant::None);
        panic!("{}", report(seed, &outcome));
    }
    pass_quarter(0);
}

#[test]
fn the_promises_hold_in_the_second_quarter_of_the_seeds() {
    pass_quarter(1);
}

#[test]
fn the_promises_hold_in_the_third_quarter_of_the_seeds() {
    pass_quarter(2);
}

#[test]
fn the_promises_hold_in_the_fourth_quarter_of_the_seeds() {
    pass_quarter(3);
}

#[test]
fn a_seed_runs_the_same_every_time() {
    for seed in 0..5 {
        let [first, second] = [(); 2].map(|()| World::run(seed, Plant::None));
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
    assert_ne!(World::run(1, Plant::None).hash, World::run(2, Plant::None).hash);
}

#[test]
fn a_lease_granted_without_a_round_is_caught() {
    assert_caught(Plant::GrantWithoutRound);
}

#[test]
fn acting_on_a_death_that_is_not_committed_is_caught() {
    assert_caught(Plant::DeadUncommitted);
}

#[test]
fn a_fence_that_is_skipped_is_caught() {
    assert_caught(Plant::SkipFence);
}

#[test]
fn a_late_joiner_that_misses_a_barrier_is_caught() {
    assert_caught(Plant::LateJoiner);
}

#[test]
fn interest_dropped_on_reconnect_is_caught() {
    assert_caught(Plant::DropInterest);
}

#[test]
fn a_forgotten_lane_is_caught() {
    assert_caught(Plant::ForgetLane);
}

#[test]
fn a_lease_looked_at_before_the_match_is_caught() {
    assert_caught(Plant::LeaseBeforeMatch);
}

#[test]
fn a_barrier_of_a_group_that_is_skipped_is_caught() {
    assert_caught(Plant::SkipBarrier);
}

#[test]
fn a_stale_join_is_caught() {
    assert_caught(Plant::StaleJoin);
}
