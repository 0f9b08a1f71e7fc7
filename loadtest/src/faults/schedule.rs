//! What is done to the nodes, and when: drawn from a seed, or read from a file.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};

/// A fault that docs/reliability.md names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "`title` says what each is")]
pub enum Fault {
    F1,
    F2,
    F3,
    F4,
    F5,
    F6,
    F7,
    F8,
    F9,
    F10,
    F11,
    F12,
    F13,
    F14,
    Grow,
    Shrink,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::F1,
        Self::F2,
        Self::F3,
        Self::F4,
        Self::F5,
        Self::F6,
        Self::F7,
        Self::F8,
        Self::F9,
        Self::F10,
        Self::F11,
        Self::F12,
        Self::F13,
        Self::F14,
        Self::Grow,
        Self::Shrink,
    ];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::F1 => "kill -9 of a node",
            Self::F2 => "kill -9 of all nodes at once",
            Self::F3 => "power cut of all nodes",
            Self::F4 => "a node stopped, and going on",
            Self::F5 => "partitions, one-way cuts, slow links",
            Self::F6 => "unsynced data lost while a minority is away",
            Self::F7 => "a clock one hour off",
            Self::F8 => "empty disk under the same name",
            Self::F9 => "log torn, bit flipped",
            Self::F10 => "disk full, fsync error",
            Self::F11 => "kill -9 during a checkpoint",
            Self::F12 => "no quorum",
            Self::F13 => "SIGTERM",
            Self::F14 => "rolling upgrade",
            Self::Grow => "two more nodes, kill -9 meanwhile",
            Self::Shrink => "two nodes fewer, kill -9 meanwhile",
        }
    }
}

/// Which node it befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// This one, counted from 0.
    Node(usize),
    /// The one that leads the directory at that moment.
    DirectoryLeader,
}

/// What is done, and undone after `milliseconds`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Injection {
    /// `kill -9`.
    Kill {
        /// Whom.
        node: Victim,
        /// Until it is started again.
        milliseconds: u64,
    },
    /// `kill -9` of all at once.
    KillAll {
        /// Until they are started again.
        milliseconds: u64,
    },
    /// `kill -9` of all at once, and what they had not synced is gone.
    PowerCut,
    /// A minority is stopped; while the others go on, one of these loses its power, and another is stopped. Then the minority goes
    /// on, with what it had, and the one comes back, with what it had synced.
    PowerCutBehindMinority {
        /// For so long the others go on alone, and for so long afterwards the one that was stopped last is away.
        milliseconds: u64,
    },
    /// SIGSTOP, then SIGCONT.
    Stop {
        /// Whom.
        node: Victim,
        /// Whether its clients take their sessions over elsewhere meanwhile, and watch their old connections.
        clients_move: bool,
        /// For so long.
        milliseconds: u64,
    },
    /// Nothing passes between a node and the others.
    Isolate {
        /// Whom.
        node: Victim,
        /// Whether connections are reset at the end, as something on the way that forgot them would do.
        forgotten: bool,
        /// For so long.
        milliseconds: u64,
    },
    /// Nothing passes between the first half of the nodes, which is the smaller one, and the rest.
    Halves {
        /// For so long.
        milliseconds: u64,
    },
    /// Nodes stand in a ring, and each hears and is heard only by those beside it, a majority with itself; of three nodes, the
    /// first and the last do not hear each other.
    Ring {
        /// For so long.
        milliseconds: u64,
    },
    /// A node is not heard by the others, or does not hear them.
    OneWay {
        /// Whom.
        node: Victim,
        /// It does not hear.
        deaf: bool,
        /// For so long.
        milliseconds: u64,
    },
    /// All links of a node are slow.
    Slow {
        /// Whom.
        node: Victim,
        /// Each way.
        delay_milliseconds: u64,
        /// Of each connection.
        bytes_per_second: u32,
        /// For so long.
        milliseconds: u64,
    },
    /// The wall clock of a node jumps, and back.
    Clock {
        /// Whom.
        node: Victim,
        /// By so much.
        seconds: i64,
        /// For so long.
        milliseconds: u64,
    },
    /// `kill -9`, and a start with a wall clock that is wrong for a while.
    StartWithClock {
        /// Whom.
        node: Victim,
        /// By so much.
        seconds: i64,
        /// For so long.
        milliseconds: u64,
    },
    /// `kill -9`, and then half a record at the end of the log, as a write that a power cut interrupts leaves it.
    TornEnd {
        /// Whom.
        node: Victim,
    },
    /// `kill -9`, and then a bit flipped in the middle of the log. The node must notice; then it is flipped back.
    FlippedBit {
        /// Whom.
        node: Victim,
    },
    /// The disk of a node fills up.
    DiskFull {
        /// Whom.
        node: Victim,
        /// For so long.
        milliseconds: u64,
    },
    /// fsync fails. The node must end at once; then it is started on a disk that is well.
    SyncError {
        /// Whom.
        node: Victim,
    },
    /// `kill -9` as soon as a checkpoint begins, again and again.
    KillAtCheckpoint {
        /// Whom.
        node: Victim,
        /// So often.
        times: u32,
    },
    /// `kill -9` of all but one, which must then say that it cannot serve.
    NoQuorum {
        /// Until they are started again.
        milliseconds: u64,
    },
    /// `kill -9`, and the disk is gone: another node comes to its place, under its name.
    LoseDisk {
        /// Whom.
        node: Victim,
        /// Until that one is started.
        milliseconds: u64,
    },
    /// Each node in turn is started again with another program, the second of them back with the first one and on once more. In the end what
    /// is new is used, and the first program has to end.
    Upgrade,
    /// Two more nodes join, one after the other, and while each does some node is killed.
    Grow {
        /// How long after the start of each.
        milliseconds: u64,
    },
    /// Two nodes are removed, one after the other, and while each is another one is killed.
    Shrink {
        /// How long after the request for each.
        milliseconds: u64,
    },
    /// SIGTERM, and a start after it ended.
    Terminate {
        /// Whom.
        node: Victim,
        /// So many clients are connected to it, beside the others.
        connections: usize,
    },
}

impl Injection {
    /// Which fault of the list it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Kill { .. } => Fault::F1,
            Self::KillAll { .. } => Fault::F2,
            Self::PowerCut => Fault::F3,
            Self::PowerCutBehindMinority { .. } => Fault::F6,
            Self::Stop { .. } => Fault::F4,
            Self::Isolate { .. }
            | Self::Halves { .. }
            | Self::Ring { .. }
            | Self::OneWay { .. }
            | Self::Slow { .. } => Fault::F5,
            Self::Clock { .. } | Self::StartWithClock { .. } => Fault::F7,
            Self::TornEnd { .. } | Self::FlippedBit { .. } => Fault::F9,
            Self::DiskFull { .. } | Self::SyncError { .. } => Fault::F10,
            Self::KillAtCheckpoint { .. } => Fault::F11,
            Self::NoQuorum { .. } => Fault::F12,
            Self::Terminate { .. } => Fault::F13,
            Self::LoseDisk { .. } => Fault::F8,
            Self::Upgrade => Fault::F14,
            Self::Grow { .. } => Fault::Grow,
            Self::Shrink { .. } => Fault::Shrink,
        }
    }

    /// Whether it changes how many nodes there are. What comes and what goes are steps of one cluster.
    fn resizes(&self) -> bool {
        matches!(self, Self::Grow { .. } | Self::Shrink { .. })
    }

    /// Whether nodes must run on disks that forget what was not synced. They are slower.
    pub fn needs_power_cuts(&self) -> bool {
        matches!(self, Self::PowerCut | Self::PowerCutBehindMinority { .. })
    }

    /// About how long it takes, to divide a run.
    fn milliseconds(&self) -> u64 {
        match *self {
            Self::Kill { milliseconds, .. }
            | Self::KillAll { milliseconds }
            | Self::Stop { milliseconds, .. }
            | Self::Isolate { milliseconds, .. }
            | Self::Halves { milliseconds }
            | Self::Ring { milliseconds }
            | Self::OneWay { milliseconds, .. }
            | Self::Slow { milliseconds, .. }
            | Self::Clock { milliseconds, .. }
            | Self::StartWithClock { milliseconds, .. }
            | Self::DiskFull { milliseconds, .. }
            | Self::NoQuorum { milliseconds } => milliseconds + 3000,
            Self::PowerCut | Self::TornEnd { .. } | Self::FlippedBit { .. } | Self::SyncError { .. } => 5000,
            Self::PowerCutBehindMinority { milliseconds } => 2 * milliseconds + 3000,
            Self::KillAtCheckpoint { times, .. } => u64::from(times) * 5000,
            Self::Terminate { .. } => 15_000,
            Self::LoseDisk { milliseconds, .. } => milliseconds + 10_000,
            Self::Upgrade => 25_000,
            Self::Grow { .. } | Self::Shrink { .. } => 25_000,
        }
    }
}

/// A fault, and the calm before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Load without a fault, before it.
    pub calm_milliseconds: u64,
    /// The fault.
    #[serde(flatten)]
    pub injection: Injection,
}

/// Everything that is done to the nodes in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// What clients do is drawn from it, and so was all this.
    pub seed: u64,
    /// How many nodes there are.
    pub nodes: usize,
    /// What befalls one cluster after the other: each begins empty, and has a history of its own.
    pub clusters: Vec<Vec<Step>>,
}

/// Nodes that are left at least, so that every group can bear the loss of one.
pub(super) const NODES_AFTER_SHRINKING: usize = 3;

/// A history is not to become longer than this under load, so that the checker and its memory keep up.
const CLUSTER_MILLISECONDS_MAX: u64 = 60_000;

impl Schedule {
    /// Every case of these faults so many times, in an order that follows from the seed; with `cases_max` so many cases of each fault
    /// in each round, whichever are drawn.
    pub fn draw(seed: u64, nodes: usize, faults: &[Fault], rounds: usize, cases_max: Option<usize>) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut clusters = Vec::new();
        for round in 0..rounds {
            let mut cases: Vec<_> = cases(&mut random, nodes, round);
            // What a fault undoes that was not asked for must be done first.
            let (grows, shrinks) = (faults.contains(&Fault::Grow), faults.contains(&Fault::Shrink));
            let small = nodes < NODES_AFTER_SHRINKING + 2;
            let is_needed = |fault| match fault {
                Fault::Grow => shrinks && small,
                Fault::Shrink => grows && !small,
                _ => false,
            };
            cases.retain(|case| faults.contains(&case.fault()) || is_needed(case.fault()));
            cases.shuffle(&mut random);
            let mut taken = BTreeMap::<Fault, usize>::new();
            cases.retain(|case| {
                let of_this = taken.entry(case.fault()).or_default();
                *of_this += 1;
                cases_max.is_none_or(|max| *of_this <= max)
            });
            let steps = cases
                .into_iter()
                .map(|injection| Step { calm_milliseconds: random.random_range(2000..4000), injection });
            let (resizing, steps): (Vec<_>, Vec<_>) = steps.partition(|step| step.injection.resizes());
            let (on_such_disks, others): (Vec<_>, Vec<_>) =
                steps.into_iter().partition(|step| step.injection.needs_power_cuts());
            clusters.extend(divide(others));
            clusters.extend(divide(on_such_disks));
            // Of three nodes none can go before others came; of more there need not be others first.
            let mut resizing = resizing;
            resizing.sort_by_key(|step| (step.injection.fault() == Fault::Grow) != (nodes < NODES_AFTER_SHRINKING + 2));
            clusters.extend((!resizing.is_empty()).then_some(resizing));
        }
        Self { seed, nodes, clusters }
    }

    /// The faults that are in it.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<_> = self.clusters.iter().flatten().map(|step| step.injection.fault()).collect();
        faults.sort_unstable();
        faults.dedup();
        faults
    }
}

/// What is tried in one round.
fn cases(random: &mut SmallRng, nodes: usize, round: usize) -> Vec<Injection> {
    let node = Victim::Node;
    let mut any = || random.random_range(0..nodes);
    let [killed, stopped, isolated, one_way, slow, skewed] = std::array::from_fn(|_| node(any()));
    let [torn, flipped, full, failing, checkpoint, terminated, lost] = std::array::from_fn(|_| node(any()));
    // Shorter and longer than a lease lasts.
    let milliseconds = random.random_range(100..4000);
    let is_even = round.is_multiple_of(2);
    vec![
        Injection::Kill { node: killed, milliseconds },
        Injection::Kill { node: Victim::DirectoryLeader, milliseconds },
        Injection::KillAll { milliseconds: 500 },
        Injection::PowerCut,
        Injection::PowerCutBehindMinority { milliseconds: 5000 },
        Injection::Stop { node: stopped, clients_move: true, milliseconds: 5000 },
        Injection::Stop {
            node: if is_even { Victim::DirectoryLeader } else { stopped },
            clients_move: false,
            milliseconds: [15_000, 5000, 30_000][round % 3],
        },
        Injection::Isolate { node: Victim::DirectoryLeader, forgotten: !is_even, milliseconds: 8000 },
        Injection::Isolate { node: isolated, forgotten: is_even, milliseconds: 13_000 },
        Injection::Halves { milliseconds: 8000 },
        Injection::Ring { milliseconds: 8000 },
        Injection::OneWay { node: one_way, deaf: is_even, milliseconds: 8000 },
        Injection::OneWay { node: Victim::DirectoryLeader, deaf: !is_even, milliseconds: 8000 },
        Injection::Slow { node: slow, delay_milliseconds: 100, bytes_per_second: 1_000_000, milliseconds: 6000 },
        Injection::Clock { node: skewed, seconds: if is_even { 3600 } else { -3600 }, milliseconds: 6000 },
        // Most clocks are right: one that is not ends nothing.
        Injection::StartWithClock { node: skewed, seconds: if is_even { 10_800 } else { -10_800 }, milliseconds: 6000 },
        Injection::TornEnd { node: torn },
        Injection::FlippedBit { node: flipped },
        Injection::DiskFull { node: full, milliseconds: 6000 },
        Injection::SyncError { node: failing },
        Injection::KillAtCheckpoint { node: checkpoint, times: 3 },
        Injection::NoQuorum { milliseconds: 14_000 },
        Injection::Terminate { node: terminated, connections: 5000 },
        Injection::LoseDisk { node: lost, milliseconds: 3000 },
        Injection::Upgrade,
        Injection::Grow { milliseconds: milliseconds / 2 },
        Injection::Shrink { milliseconds: milliseconds / 2 },
    ]
}

/// Over as many clusters as it takes.
fn divide(steps: Vec<Step>) -> Vec<Vec<Step>> {
    let mut clusters: Vec<Vec<Step>> = Vec::new();
    let mut length = u64::MAX;
    for step in steps {
        let takes = step.calm_milliseconds + step.injection.milliseconds();
        match clusters.last_mut() {
            Some(last) if length + takes <= CLUSTER_MILLISECONDS_MAX => {
                length += takes;
                last.push(step);
            }
            _ => {
                length = takes;
                clusters.push(vec![step]);
            }
        }
    }
    clusters
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_draws_the_same_schedule_again_and_a_file_keeps_it() {
        let drawn = Schedule::draw(7, 3, &Fault::ALL, 2, None);
        assert_eq!(drawn, Schedule::draw(7, 3, &Fault::ALL, 2, None));
        assert_ne!(drawn.clusters, Schedule::draw(8, 3, &Fault::ALL, 2, None).clusters);
        let text = serde_json::to_string(&drawn).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), drawn);
    }

    #[test]
    fn every_fault_is_drawn_in_every_round() {
        for fault in Fault::ALL {
            let schedule = Schedule::draw(1, 3, &[fault], 3, None);
            let steps = schedule.clusters.iter().flatten();
            assert!(steps.filter(|step| step.injection.fault() == fault).count() >= 3, "{fault:?}");
            let beside: &[Fault] = if fault == Fault::Shrink { &[Fault::Grow] } else { &[] };
            assert!(schedule.faults().iter().all(|drawn| *drawn == fault || beside.contains(drawn)), "{fault:?}");
        }
    }

    #[test]
    fn of_each_fault_so_many_cases_are_drawn_and_not_the_same_each_time() {
        let drawn = |seed| {
            let schedule = Schedule::draw(seed, 3, &Fault::ALL, 2, Some(1));
            let mut times = BTreeMap::<Fault, usize>::new();
            schedule.clusters.iter().flatten().for_each(|step| *times.entry(step.injection.fault()).or_default() += 1);
            assert_eq!(times, Fault::ALL.map(|fault| (fault, 2)).into());
            let partitions = schedule.clusters.concat().into_iter().filter(|step| step.injection.fault() == Fault::F5);
            partitions.map(|step| std::mem::discriminant(&step.injection)).collect::<HashSet<_>>()
        };
        let kinds: HashSet<_> = (1..=10).flat_map(drawn).collect();
        assert_eq!(kinds.len(), 5);
    }

    #[test]
    fn a_small_cluster_grows_before_it_shrinks_and_a_large_one_after() {
        let order = |nodes| {
            let schedule = Schedule::draw(1, nodes, &[Fault::Grow, Fault::Shrink], 1, None);
            schedule.clusters.concat().iter().map(|step| step.injection.fault()).collect::<Vec<_>>()
        };
        assert_eq!(order(3), [Fault::Grow, Fault::Shrink]);
        assert_eq!(order(5), [Fault::Shrink, Fault::Grow]);
    }

    #[test]
    fn a_cluster_is_used_for_as_long_as_a_history_may_be() {
        let schedule = Schedule::draw(1, 3, &Fault::ALL, 1, None);
        let takes = |step: &Step| step.calm_milliseconds + step.injection.milliseconds();
        let lengths = schedule.clusters.iter().map(|steps| steps.iter().map(takes).sum::<u64>());
        assert!(lengths.clone().all(|length| length <= CLUSTER_MILLISECONDS_MAX), "{:?}", lengths.collect::<Vec<_>>());
    }
}
