//! One seed after the other, and what is said of one that fails.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::faults;
use super::workload;
use super::world::{Outcome, Plan, STRATEGIES, World};
use crate::plants::Plant;
use crate::{drops, plants};

/// A seed whose run is not as it should be.
#[derive(Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What is wrong.
    pub why: String,
    /// What happened last.
    pub trace: String,
    /// What clients saw.
    pub history: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, why, trace, .. } = self;
        write!(
            formatter,
            "{trace}seed {seed} failed: {why}\nagain: KENTONGAN_SEED={seed} cargo run --bin sim -- --seed {seed}"
        )
    }
}

impl Plan {
    /// What a seed is run with: three nodes, as a rule. Of more, each keeps some of the groups only; of four, one has no vote in
    /// the directory.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let usual =
            Self { nodes: 3, alone: false, grows: false, upgrades: false, trace: false, only: None, plant: None };
        match seed % 16 {
            0 | 8 => Self { nodes: 1, alone: true, ..usual },
            4 => Self { nodes: 1, ..usual },
            12 => Self { grows: true, ..usual },
            5 => Self { upgrades: true, ..usual },
            3 => Self { nodes: 5, ..usual },
            11 => Self { nodes: 4, ..usual },
            _ => usual,
        }
    }
}

/// Runs a seed.
///
/// # Errors
/// It is not as it should be.
pub fn run_seed(seed: u64, plan: Plan) -> Result<Outcome, Box<Failure>> {
    plants::plant(plan.plant);
    let mut world = World::new(seed, plan);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "it panicked".into()))
    });
    plants::plant(None);
    drops::listen(false);
    outcome.map_err(|why| Box::new(Failure { seed, why, trace: world.last_events(), history: world.history_text() }))
}

/// A seed that shows a mistake.
#[derive(Debug)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// How many were tried, this one included.
    pub tried: usize,
    /// What is said of it.
    pub why: String,
}

/// The first of `seeds` that finds a mistake: it is as it should be without it, and with it some of what is said is what the mistake
/// must lead to. Any change of what happens makes other seeds fail, if there are seeds that fail: the reason tells.
pub fn find(plant: Plant, seeds: impl Iterator<Item = u64>) -> Option<Found> {
    let run = |seed, plant| run_seed(seed, Plan { plant, ..Plan::of_seed(seed) });
    let is_sign = |line: &str| signs(plant).iter().any(|sign| line.starts_with(sign));
    for (number, seed) in seeds.enumerate() {
        if let Err(failure) = run(seed, Some(plant))
            && let Some(why) = failure.why.lines().find(|line| is_sign(line))
            && run(seed, None).is_ok()
        {
            return Some(Found { seed, tried: number + 1, why: why.to_owned() });
        }
    }
    None
}

/// What is said where a mistake is made: promises that are broken, replicas that differ, nodes that cannot start or hold what they
/// should not.
fn signs(plant: Plant) -> &'static [&'static str] {
    match plant {
        Plant::SkipSync | Plant::PurgeEarly => &["node", "P1:", "entry", "after entry"],
        Plant::ResyncAhead => &["P1:", "P2:", "P4:"],
        Plant::AcknowledgeEarly => &["P1:"],
        Plant::PushUnsynced | Plant::ResendLiving | Plant::ForgetLane | Plant::DeposedTells => &["P3:", "P4:"],
        Plant::GrantWithoutQuorum => &["P1:", "P7:"],
        Plant::WillTwice => &["P9:"],
        Plant::ReadStale => &["P6:"],
        Plant::ChangeAtOnce => &["P1:", "P3:", "P4:"],
        Plant::LoseOutbox => &["P1:", "P9:", "P11:"],
        Plant::RenumberOutbox => &["P1:", "P3:", "P4:", "P9:", "P11:", "node"],
        Plant::IgnoreEpoch => &["P7:", "P9:"],
        Plant::SkipFence | Plant::DeadUncommitted => &["P1:", "node", "HeldSession"],
        Plant::DropInterest => &["P1:", "node"],
    }
}

/// What several runs came to.
#[derive(Debug)]
pub struct Summary {
    /// Runs that were as they should be.
    pub passed: u64,
    /// Events in all of them.
    pub events: u64,
    /// The fewest events of one.
    pub events_min: u64,
    /// How often each kind of thing was done.
    pub counts: BTreeMap<&'static str, u64>,
}

/// What must have happened in many runs, beside the faults and what clients do.
const HAPPENINGS: [&str; 14] = [
    "start",
    "joined",
    "disk lost",
    "upgraded",
    "taken back",
    "ended for its version",
    "process ended by its disk",
    "entries compared",
    "snapshot fetched",
    "snapshot broken off",
    "snapshots installed",
    "dropped for too many messages",
    "dropped for too many bytes",
    "dropped for its size",
];

impl Default for Summary {
    fn default() -> Self {
        let strategies = STRATEGIES.map(|(_, name)| name);
        let counts = faults::NAMES
            .into_iter()
            .chain(workload::OPERATIONS)
            .chain(HAPPENINGS)
            .chain(strategies)
            .map(|name| (name, 0))
            .collect();
        Self { passed: 0, events: 0, events_min: 0, counts }
    }
}

impl Summary {
    /// What never happened.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        self.counts.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name)
    }

    /// One more run was as it should be.
    pub fn add(&mut self, outcome: &Outcome) {
        self.events_min = if self.passed == 0 { outcome.events } else { self.events_min.min(outcome.events) };
        self.passed += 1;
        self.events += outcome.events;
        for (name, count) in &outcome.counts {
            *self.counts.entry(name).or_default() += count;
        }
    }
}
