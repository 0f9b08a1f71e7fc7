//! Some seeds in the ordinary run of tests, and the proof that the simulator would notice. `KENTONGAN_SEED` and `KENTONGAN_SEEDS` say
//! which seeds are run.

use super::*;
use crate::plants::Plant;

/// Seeds that a mistake may take to be found.
const SEEDS_MAX: usize = 200;

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

/// Some seed finds it, and is as it should be without it. `hints` do at present, which saves time; if they do not any more, others
/// do (`sim --plants` says which).
fn is_found(plant: Plant, hints: &[u64]) {
    let seeds = hints.iter().copied().chain((1..).filter(|seed| !hints.contains(seed)));
    match find(plant, seeds.take(SEEDS_MAX)) {
        Some(Found { seed, tried, why }) => println!("{plant:?}: seed {seed}, {tried} tried: {why}"),
        None => panic!("{SEEDS_MAX} seeds do not find {plant:?}"),
    }
}

#[test]
fn a_sync_that_is_skipped_is_found() {
    is_found(Plant::SkipSync, &[305]);
}

#[test]
fn an_acknowledgement_before_the_commit_is_found() {
    is_found(Plant::AcknowledgeEarly, &[311]);
}

#[test]
fn what_is_said_of_clients_ahead_of_what_they_did_is_found() {
    is_found(Plant::ResyncAhead, &[44]);
}

#[test]
fn a_word_of_a_deposed_leader_is_found() {
    is_found(Plant::DeposedTells, &[359]);
}

#[test]
fn what_is_pushed_to_who_may_have_it_is_found() {
    is_found(Plant::PushUnsynced, &[301]);
}

#[test]
fn what_is_sent_again_on_a_living_connection_is_found() {
    is_found(Plant::ResendLiving, &[301]);
}

#[test]
fn a_fence_that_is_not_there_is_found() {
    is_found(Plant::SkipFence, &[301]);
}

#[test]
fn a_lane_that_begins_anew_is_found() {
    is_found(Plant::ForgetLane, &[301]);
}

#[test]
fn an_outbox_that_lets_go_early_is_found() {
    is_found(Plant::LoseOutbox, &[301]);
}

#[test]
fn an_outbox_that_counts_anew_is_found() {
    is_found(Plant::RenumberOutbox, &[301]);
}

#[test]
fn an_epoch_that_nobody_looks_at_is_found() {
    is_found(Plant::IgnoreEpoch, &[302]);
}

#[test]
fn a_lease_that_no_majority_was_asked_for_is_found() {
    is_found(Plant::GrantWithoutQuorum, &[303]);
}

#[test]
fn a_death_that_was_not_committed_is_found() {
    is_found(Plant::DeadUncommitted, &[305]);
}

#[test]
fn interest_that_goes_with_a_link_is_found() {
    is_found(Plant::DropInterest, &[317]);
}

#[test]
fn a_log_that_is_purged_too_early_is_found() {
    is_found(Plant::PurgeEarly, &[302]);
}

#[test]
fn a_will_that_is_published_twice_is_found() {
    is_found(Plant::WillTwice, &[301]);
}

#[test]
fn a_replica_that_is_behind_is_found() {
    is_found(Plant::ReadStale, &[301]);
}

#[test]
fn a_subscription_that_goes_over_at_once_is_found() {
    is_found(Plant::ChangeAtOnce, &[311]);
}
