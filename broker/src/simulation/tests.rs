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
    for seed in seeds(4) {
        match run_seed(seed, Plan::of_seed(seed)) {
            Ok(outcome) => summary.add(&outcome),
            Err(failure) => panic!("{failure}"),
        }
    }
    assert!(summary.events_min >= 10_000, "a run is {} events", summary.events_min);
}

/// P12: whoever publishes at the directory's leader does not reach it, and it does not hear whom the others have declared dead.
#[test]
fn what_a_node_without_a_lease_comes_to_lead_is_led_by_another_soon() {
    const PLOT: &str = "a leader cut off";
    for seed in [1, 2, 6, 7, 9, 10] {
        match run_seed(seed, Plan { only: Some(PLOT), ..Plan::of_seed(seed) }) {
            Ok(outcome) => assert_eq!(outcome.counts.get(PLOT), Some(&1), "seed {seed}"),
            Err(failure) => panic!("{failure}"),
        }
    }
}

#[test]
fn a_seed_repeats_event_for_event() {
    for seed in [1, 8] {
        let run = || run_seed(seed, Plan::of_seed(seed)).map(|outcome| (outcome.hash, outcome.events));
        let (first, again) = (run().expect("a good run"), run().expect("a good run"));
        assert_eq!(first, again, "KENTONGAN_SEED={seed}");
    }
}

/// That the others are found is for `sim --plants` to show, which is faster.
#[test]
fn a_sync_that_is_skipped_is_found() {
    let plant = Plant::SkipSync;
    match find(plant, 301..301 + SEEDS_MAX) {
        Some(Found { seed, tried, why }) => println!("{plant:?}: seed {seed}, {tried} tried: {why}"),
        None => panic!("{SEEDS_MAX} seeds do not find {plant:?}"),
    }
}
