//! Some seeds in the ordinary run of tests, and the proof that the simulator would notice. `KENTONGAN_SEED` and `KENTONGAN_SEEDS` say
//! which seeds are run.

use super::*;
use crate::plants::Plant;

/// Seeds that a mistake may take to be found.
const SEEDS_MAX: u64 = 200;

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("KENTONGAN_SEED").unwrap_or(1);
    first..first + number("KENTONGAN_SEEDS").unwrap_or(usual)
}

#[test]
fn whole_clusters_keep_their_promises() {
    let mut summary = Summary::default();
    for seed in seeds(12) {
        match run_seed(seed, Plan::of_seed(seed)) {
            Ok(outcome) => summary.add(&outcome),
            Err(failure) => panic!("{failure}"),
        }
    }
    assert!(summary.events_min >= 10_000, "a run is {} events", summary.events_min);
}

#[test]
fn a_seed_repeats_event_for_event() {
    for seed in [1, 8] {
        let run = || run_seed(seed, Plan::of_seed(seed)).map(|outcome| (outcome.hash, outcome.events));
        let (first, again) = (run().expect("a good run"), run().expect("a good run"));
        assert_eq!(first, again, "KENTONGAN_SEED={seed}");
    }
}

/// It is found by a seed that is as it should be without it. `first` is such a seed at present; others are too.
fn is_found(plant: Plant, first: u64) {
    let runs = |seed, plant| run_seed(seed, Plan { plant, ..Plan::of_seed(seed) }).is_ok();
    let found = (first..first + SEEDS_MAX).find(|&seed| !runs(seed, Some(plant)) && runs(seed, None));
    assert!(found.is_some(), "{SEEDS_MAX} seeds do not find {plant:?}");
}

#[test]
fn a_sync_that_is_skipped_is_found() {
    is_found(Plant::SkipSync, 2);
}

#[test]
fn an_acknowledgement_before_the_commit_is_found() {
    is_found(Plant::AcknowledgeEarly, 10);
}

#[test]
fn what_is_pushed_to_who_may_have_it_is_found() {
    is_found(Plant::PushUnsynced, 7);
}

#[test]
fn a_fence_that_is_not_there_is_found() {
    is_found(Plant::SkipFence, 1);
}

#[test]
fn a_lane_that_begins_anew_is_found() {
    is_found(Plant::ForgetLane, 3);
}

#[test]
fn an_outbox_that_lets_go_early_is_found() {
    is_found(Plant::LoseOutbox, 57);
}

#[test]
fn an_epoch_that_nobody_looks_at_is_found() {
    is_found(Plant::IgnoreEpoch, 6);
}
