use super::*;

fn plan(seed: u64, nodes: u64) -> Plan {
    Plan { seed, nodes, steps: 2000, placed: false, planted: None }
}

fn placed(seed: u64) -> Plan {
    Plan { placed: true, ..plan(seed, 7) }
}

/// Seeds of one test: `KENTONGAN_SEEDS` of them, from `KENTONGAN_SEED` on.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("KENTONGAN_SEED").unwrap_or(1);
    first..first + number("KENTONGAN_SEEDS").unwrap_or(usual)
}

fn hold(nodes: u64, usual: u64, kinds: &[&'static str]) {
    all_hold(usual, |seed| plan(seed, nodes), kinds);
}

fn all_hold(usual: u64, plan: impl Fn(u64) -> Plan, kinds: &[&'static str]) {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut events = 0;
    for seed in seeds(usual) {
        let plan = plan(seed);
        match Simulation::run(plan) {
            Ok(report) => {
                events += report.events;
                report.counts.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
            }
            Err(violation) => panic!("{plan:?}: {violation}"),
        }
    }
    println!("{events} events, {counts:?}");
    for kind in kinds {
        assert!(counts.get(kind).is_some_and(|&count| count > 0), "no {kind} in all of them: {counts:?}");
    }
}

#[test]
fn a_node_alone_keeps_every_promise() {
    hold(1, 30, &["crash", "restart", "full disk", "propose", "query", "read", "checkpoint", "purge"]);
}

#[test]
fn three_nodes_keep_every_promise() {
    let faults = ["crash", "restart", "cut", "full disk", "lost message", "failed snapshot"];
    let operations =
        ["propose", "query", "read", "read by a follower", "checkpoint", "purge", "election", "snapshot", "transfer"];
    hold(3, 30, &[&faults[..], &operations].concat());
}

#[test]
fn five_nodes_of_which_two_join_keep_every_promise() {
    hold(5, 20, &["crash", "snapshot", "change of members", "promote"]);
}

/// Groups move over seven nodes while all else goes on, one of which loses its disk for good.
#[test]
fn groups_that_are_placed_anew_get_there() {
    all_hold(20, placed, &["crash", "snapshot", "placed", "lost disk", "promote"]);
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for plan in [plan(7, 1), plan(7, 3), plan(7, 5), placed(7)] {
        let once = Simulation::run(plan).expect("holds");
        assert_eq!(once, Simulation::run(plan).expect("holds"));
        assert_ne!(once.hash, Simulation::run(Plan { seed: 8, ..plan }).expect("holds").hash);
    }
}

/// The simulation is worth something: each mistake is found within 200 seeds.
fn is_caught(bug: PlantedBug, nodes: u64) {
    is_caught_in(bug, |seed| plan(seed, nodes));
}

fn is_caught_in(bug: PlantedBug, plan: impl Fn(u64) -> Plan) {
    let plans = (1..=200).map(|seed| Plan { planted: Some(bug), ..plan(seed) });
    let caught = plans.map(|plan| (plan.seed, outcome(plan))).find_map(|(seed, outcome)| Some((seed, outcome.err()?)));
    let (seed, violation) = caught.unwrap_or_else(|| panic!("nobody noticed {bug:?}"));
    println!("{bug:?} was caught by seed {seed}: {violation}");
}

#[test]
fn a_skipped_sync_is_caught() {
    is_caught(PlantedBug::SkipSync, 3);
}

#[test]
fn a_command_handed_out_before_it_is_committed_is_caught() {
    is_caught(PlantedBug::HandOutBeforeCommit, 3);
}

#[test]
fn a_log_purged_before_its_checkpoint_is_caught() {
    is_caught(PlantedBug::PurgeBeforeCheckpoint, 3);
}

#[test]
fn a_learner_promoted_early_is_caught() {
    is_caught(PlantedBug::PromoteEarly, 5);
    is_caught_in(PlantedBug::PromoteEarly, placed);
}

#[test]
fn a_read_without_a_majority_is_caught() {
    is_caught(PlantedBug::ReadWithoutQuorum, 3);
}
