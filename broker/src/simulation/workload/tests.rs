//! What clients do against one node. That a history of theirs is not believed once it is tampered with is tried in
//! `simulation::tampering`.

use super::*;
use crate::simulation::{Plan, World};

/// A run of a node that is alone and is as it should be: its history, and how often clients did what.
fn run(number: u64) -> (History, BTreeMap<&'static str, u64>) {
    let seed = 8 * number;
    let mut world = World::new(seed, Plan::of_seed(seed));
    let outcome = world.run();
    if std::env::var_os("KENTONGAN_PRINT").is_some() {
        let history = world.history();
        (0..history.events().len()).for_each(|index| println!("{index:>7} {}", history.describe(index)));
    }
    let outcome = outcome.unwrap_or_else(|why| panic!("KENTONGAN_SEED={seed}: {why}"));
    (world.history().clone(), outcome.counts)
}

#[test]
fn clients_do_everything_and_one_node_keeps_its_promises() {
    let mut counts = BTreeMap::new();
    for seed in 1..7 {
        let of_seed = run(seed).1;
        assert!(of_seed["<- PUBLISH"] > 500, "seed {seed}: {of_seed:?}");
        for (what, count) in of_seed {
            *counts.entry(what).or_insert(0) += count;
        }
    }
    let missing: Vec<_> = OPERATIONS.into_iter().filter(|what| !counts.contains_key(what)).collect();
    assert!(missing.is_empty(), "{missing:?} never came: {counts:#?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    assert_eq!(run(1).0.events(), run(1).0.events());
    assert_ne!(run(1).0.events(), run(2).0.events());
}
