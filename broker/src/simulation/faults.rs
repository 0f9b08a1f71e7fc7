//! What befalls a cluster: drawn before the run, so that it depends on the seed alone.

use rand::RngExt as _;
use rand::rngs::SmallRng;

/// Milliseconds, as nanoseconds.
pub(super) const MS: u64 = 1_000_000;

/// Seconds, as nanoseconds.
pub(super) const SECOND: u64 = 1_000 * MS;

/// One kind of fault, and whom it befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process is killed.
    Kill(usize),
    /// The machine loses its power.
    PowerCut(usize),
    /// All processes are killed.
    KillAll,
    /// All machines lose their power.
    PowerCutAll,
    /// The process stands still, while its clocks run on.
    Pause(usize),
    /// All links between two nodes break.
    Break(usize, usize),
    /// One link breaks.
    BreakOne(usize),
    /// Nothing passes from one node to another.
    OneWay(usize, usize),
    /// Nothing passes between two nodes.
    Apart(usize, usize),
    /// Nothing passes between a node and the others.
    Isolate(usize),
    /// Frames take long.
    Delay,
    /// The wall clock is set an hour on, or back.
    WallJump(usize, bool),
    /// The disk has little room left; or none.
    DiskFull(usize, bool),
    /// The disk fails, and the process ends.
    DiskError(usize),
    /// The disk takes long: the thread that waits for it does nothing, while all others go on.
    DiskStall(usize),
    /// Each sync takes long, by so many milliseconds: on one node, or on all.
    DiskSlow(Option<usize>, u64),
    /// No fault: an operator drains the node, and lets it be one like the others again.
    Drain(usize),
    /// No fault: an operator lets a node lead all groups that it can.
    Transfer(usize),
    /// Connections of clients to a node break.
    ResetClients(usize),
    /// Nothing passes between clients and a node.
    CutClients(usize),
    /// No fault: everybody publishes and subscribes much at once.
    Rush,
    /// Everybody publishes and subscribes much, but only to what nobody wanted before.
    Whisper,
    /// Nobody does anything of their own.
    Hush,
    /// Several, one after the other.
    Plot(Plot),
}

/// The names of all kinds.
pub(super) const NAMES: [&str; 31] = [
    "kill",
    "power cut",
    "kill all",
    "power cut of all",
    "pause",
    "links broken",
    "link broken",
    "one-way cut",
    "two apart",
    "isolated",
    "delay",
    "wall clock set",
    "disk nearly full",
    "disk full",
    "disk error",
    "disk stalls",
    "disk slow",
    "drained",
    "groups transferred",
    "clients reset",
    "clients cut",
    "clients hurry",
    "clients whisper",
    "clients wait",
    "a usurper",
    "a condemned node",
    "a late joiner",
    "a leader that stalls",
    "slow disks",
    "two kept apart",
    "a leader cut off",
];

impl Fault {
    /// Its name in histories and counts.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::PowerCut(_) => "power cut",
            Self::KillAll => "kill all",
            Self::PowerCutAll => "power cut of all",
            Self::Pause(_) => "pause",
            Self::Break(..) => "links broken",
            Self::BreakOne(_) => "link broken",
            Self::OneWay(..) => "one-way cut",
            Self::Apart(..) => "two apart",
            Self::Isolate(_) => "isolated",
            Self::Delay => "delay",
            Self::WallJump(..) => "wall clock set",
            Self::DiskFull(_, false) => "disk nearly full",
            Self::DiskFull(_, true) => "disk full",
            Self::DiskError(_) => "disk error",
            Self::ResetClients(_) => "clients reset",
            Self::CutClients(_) => "clients cut",
            Self::DiskStall(_) => "disk stalls",
            Self::DiskSlow(..) => "disk slow",
            Self::Drain(_) => "drained",
            Self::Transfer(_) => "groups transferred",
            Self::Rush => "clients hurry",
            Self::Whisper => "clients whisper",
            Self::Hush => "clients wait",
            Self::Plot(Plot::Usurper) => "a usurper",
            Self::Plot(Plot::Condemned) => "a condemned node",
            Self::Plot(Plot::LateJoiner) => "a late joiner",
            Self::Plot(Plot::StalledLeader) => "a leader that stalls",
            Self::Plot(Plot::SlowDisks) => "slow disks",
            Self::Plot(Plot::Apart) => "two kept apart",
            Self::Plot(Plot::CutOff) => "a leader cut off",
        }
    }

    /// The same for whoever leads the directory by then.
    pub(super) fn of_leader(self, leader: usize) -> Self {
        match self {
            Self::Pause(_) => Self::Pause(leader),
            Self::Isolate(_) => Self::Isolate(leader),
            Self::DiskStall(_) => Self::DiskStall(leader),
            Self::DiskSlow(Some(_), by_ms) => Self::DiskSlow(Some(leader), by_ms),
            Self::Drain(_) => Self::Drain(leader),
            Self::OneWay(from, to) if to == leader => Self::OneWay(to, from),
            Self::OneWay(_, to) => Self::OneWay(leader, to),
            Self::Apart(one, other) if one != leader && other != leader => Self::Apart(leader, other),
            other => other,
        }
    }

    /// Whether the history tells when it begins and ends: crashes are told as what they are, and haste is none.
    pub(super) fn is_marked(self) -> bool {
        let is_crash = matches!(self, Self::Kill(_) | Self::PowerCut(_) | Self::KillAll | Self::PowerCutAll);
        !is_crash && !matches!(self, Self::Rush | Self::Whisper | Self::Hush | Self::Transfer(_) | Self::Plot(_))
    }

    fn draw(nodes: usize, random: &mut SmallRng) -> Self {
        let node = random.random_range(0..nodes);
        if nodes == 1 {
            return match random.random_range(0..11) {
                0 | 1 => Self::Kill(node),
                2 | 3 => Self::PowerCut(node),
                4 => Self::Pause(node),
                5 => Self::DiskFull(node, random.random()),
                6 => Self::DiskError(node),
                7 => Self::WallJump(node, random.random()),
                8 => Self::DiskStall(node),
                9 => Self::DiskSlow(Some(node), random.random_range(10..300)),
                _ if random.random() => Self::ResetClients(node),
                _ => Self::CutClients(node),
            };
        }
        let other = (node + random.random_range(1..nodes)) % nodes;
        match random.random_range(0..32) {
            0..3 => Self::Kill(node),
            3..5 => Self::PowerCut(node),
            5 => Self::KillAll,
            6 => Self::PowerCutAll,
            7..9 => Self::Pause(node),
            9..11 => Self::Break(node, other),
            11 => Self::BreakOne(random.random_range(0..usize::MAX)),
            12..14 => Self::OneWay(node, other),
            14..16 => Self::Isolate(node),
            16 => Self::Delay,
            17 => Self::WallJump(node, random.random()),
            18 => Self::DiskFull(node, random.random()),
            19 => Self::DiskError(node),
            20 => Self::ResetClients(node),
            21 => Self::CutClients(node),
            22..24 => Self::DiskStall(node),
            24..26 => Self::Drain(node),
            26 => Self::DiskSlow(Some(node), random.random_range(10..300)),
            27 => Self::DiskSlow(None, random.random_range(10..300)),
            28 | 29 => Self::Apart(node, other),
            _ => Self::Rush,
        }
    }

    fn lasts_ns(self, random: &mut SmallRng) -> u64 {
        match self {
            Self::Kill(_) | Self::PowerCut(_) | Self::DiskError(_) => random.random_range(50 * MS..6 * SECOND),
            Self::KillAll | Self::PowerCutAll => random.random_range(20 * MS..2 * SECOND),
            Self::Pause(_) => random.random_range(100 * MS..8 * SECOND),
            Self::Break(..) | Self::BreakOne(_) | Self::ResetClients(_) | Self::WallJump(..) | Self::Transfer(_) => 0,
            Self::OneWay(..) | Self::Isolate(_) => random.random_range(100 * MS..7 * SECOND),
            Self::Apart(..) => random.random_range(SECOND..12 * SECOND),
            Self::Delay | Self::DiskFull(..) => random.random_range(500 * MS..4 * SECOND),
            Self::CutClients(_) => random.random_range(100 * MS..5 * SECOND),
            Self::DiskStall(_) => random.random_range(100 * MS..5 * SECOND),
            Self::Drain(_) | Self::DiskSlow(..) => random.random_range(SECOND..8 * SECOND),
            Self::Rush | Self::Whisper | Self::Hush => random.random_range(200 * MS..2 * SECOND),
            Self::Plot(plot) => plot.lasts_ns(),
        }
    }
}

/// About as long as leases and elections take: who was away may come back while it is being decided what it was.
fn undecided_ns(random: &mut SmallRng) -> u64 {
    random.random_range(SECOND..4 * SECOND)
}

/// Where no sync takes longer than this, nodes serve.
pub(super) const SLOW_MS_MAX: u64 = 450;

/// A fault and when it comes and goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    pub(super) at_ns: u64,
    pub(super) lasts_ns: u64,
    pub(super) fault: Fault,
    /// It befalls whoever leads the directory, where the kind has one whom it befalls.
    pub(super) of_leader: bool,
}

/// The faults of a run, between `from_ns` and `to_ns`; how many, the seed says.
pub(super) fn plan(nodes: usize, from_ns: u64, to_ns: u64, random: &mut SmallRng) -> Vec<Planned> {
    let count = random.random_range(6..14) * if nodes == 1 { 2 } else { 1 };
    // Where a clock is set, little can be said of what expires.
    let sets_clocks = random.random_ratio(1, 6);
    let mut planned: Vec<_> = (0..count)
        .map(|_| {
            let mut fault = Fault::draw(nodes, random);
            while matches!(fault, Fault::WallJump(..)) && !sets_clocks {
                fault = Fault::draw(nodes, random);
            }
            let of_leader = nodes > 1 && random.random_ratio(1, 3);
            let lasts_ns = if of_leader { undecided_ns(random) } else { fault.lasts_ns(random) };
            Planned { at_ns: random.random_range(from_ns..to_ns), lasts_ns, fault, of_leader }
        })
        .collect();
    for number in 0..planned.len() {
        // Who starts with a wrong clock knows nothing else of how long it was away.
        if let Planned { at_ns, fault: Fault::WallJump(node, _), .. } = planned[number]
            && random.random()
        {
            let fault = if random.random() { Fault::Kill(node) } else { Fault::PowerCut(node) };
            let lasts_ns = fault.lasts_ns(random);
            planned.push(Planned { at_ns: at_ns + random.random_range(MS..SECOND), lasts_ns, fault, of_leader: false });
        }
    }
    let plot = match nodes {
        3 if random.random() => {
            let plots = [Plot::Usurper, Plot::Condemned, Plot::LateJoiner, Plot::SlowDisks, Plot::Apart];
            Some(plots[random.random_range(0..plots.len())])
        }
        3.. if random.random_ratio(2, 3) => Some(Plot::StalledLeader),
        3 => Some(Plot::CutOff),
        _ => None,
    };
    if let Some(plot) = plot {
        // It takes that everything else is as it should be.
        let over_ns = planned.iter().map(|planned| planned.at_ns + planned.lasts_ns).max().unwrap_or(to_ns);
        let at_ns = over_ns + random.random_range(4 * SECOND..5 * SECOND);
        planned.push(Planned { at_ns, lasts_ns: plot.lasts_ns(), fault: Fault::Plot(plot), of_leader: false });
    }
    planned.sort_by_key(|planned| planned.at_ns);
    planned
}

/// What one fault alone hardly leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plot {
    /// Whoever leads the directory does not notice that it was deposed and declared dead, and its clients go on.
    Usurper,
    /// Whoever leads the directory proposes a death, and is deposed before it is committed; both go on.
    Condemned,
    /// A process registers anew while another node does not hear of that, and of which it hears nothing new.
    LateJoiner,
    /// Whoever leads most groups waits for its disk until others lead them, with everybody busy, and goes on.
    StalledLeader,
    /// All disks are slow, with everybody busy: who has a majority serves all the same.
    SlowDisks,
    /// Two nodes do not hear each other for long, and both hear whoever leads the directory: the others and one of them serve.
    Apart,
    /// A process registers anew, does not hear whoever leads the directory from then on, and comes to lead groups when it has been so for a
    /// while: those of the others serve.
    CutOff,
}

/// For so long two nodes are kept apart of which one serves in the end, and all others.
pub(super) const APART_NS: u64 = 16 * SECOND;

impl Plot {
    const ALL: [Self; 7] = [
        Self::Usurper,
        Self::Condemned,
        Self::LateJoiner,
        Self::StalledLeader,
        Self::SlowDisks,
        Self::Apart,
        Self::CutOff,
    ];

    /// The one whose name begins so, some time after `from_ns`: for runs that leave all else out.
    pub(super) fn planned(name: &str, from_ns: u64) -> Option<Planned> {
        let is_named = |plot: &Self| Fault::Plot(*plot).name().starts_with(name);
        let plot = Self::ALL.into_iter().find(is_named)?;
        let (at_ns, lasts_ns) = (from_ns + 4 * SECOND, plot.lasts_ns());
        Some(Planned { at_ns, lasts_ns, fault: Fault::Plot(plot), of_leader: false })
    }

    /// By then it is over.
    pub(super) const fn lasts_ns(self) -> u64 {
        match self {
            Self::Usurper => 11 * SECOND,
            Self::Condemned | Self::LateJoiner | Self::StalledLeader | Self::SlowDisks => 8 * SECOND,
            Self::Apart => APART_NS,
            Self::CutOff => 20 * SECOND,
        }
    }

    /// What befalls whom from `at_ns` on.
    pub(super) fn acts(
        self,
        at_ns: u64,
        leader: usize,
        busiest: usize,
        [one, other]: [usize; 2],
        random: &mut SmallRng,
    ) -> Vec<Planned> {
        let mut acts = Vec::new();
        let mut act = |from_ns: u64, lasts_ns: u64, fault| {
            acts.push(Planned { at_ns: at_ns + from_ns, lasts_ns, fault, of_leader: false });
        };
        match self {
            Self::Usurper => {
                // Some five seconds pass before the others have elected another, waited for the lease, and fenced it. A client that
                // waits for a group by then hears nothing of what it publishes later, as acknowledgements keep their order; and what
                // somebody wanted before, or the others still told, the deposed node knows of.
                act(0, 8 * SECOND, Fault::Hush);
                let deposed_ns = random.random_range(8 * SECOND..10 * SECOND);
                act(0, deposed_ns, Fault::DiskStall(leader));
                act(500 * MS, deposed_ns - 500 * MS, Fault::Isolate(leader));
                act(5_200 * MS, 2_800 * MS, Fault::Whisper);
                act(8 * SECOND, 2 * SECOND, Fault::Rush);
            }
            Self::Condemned => {
                act(0, 2_200 * MS, Fault::OneWay(one, leader));
                act(1_200 * MS, random.random_range(2_400 * MS..2_900 * MS), Fault::DiskStall(leader));
                act(4_200 * MS, 2 * SECOND, Fault::Rush);
            }
            Self::LateJoiner => {
                let away_ns = random.random_range(2 * SECOND..3 * SECOND);
                act(0, away_ns, Fault::Kill(one));
                act(away_ns - 100 * MS, 1_300 * MS, Fault::OneWay(leader, other));
                act(away_ns + random.random_range(300 * MS..700 * MS), 800 * MS, Fault::OneWay(other, one));
                act(away_ns + 300 * MS, 1_500 * MS, Fault::Rush);
            }
            Self::StalledLeader => {
                act(0, 8 * SECOND, Fault::Rush);
                act(500 * MS, random.random_range(4 * SECOND..7 * SECOND), Fault::DiskStall(busiest));
            }
            Self::SlowDisks => {
                act(0, 8 * SECOND, Fault::DiskSlow(None, random.random_range(300..SLOW_MS_MAX)));
                // To the end: where nothing is to be synced, all is well.
                act(4 * SECOND, 4 * SECOND, Fault::Rush);
            }
            Self::Apart => {
                act(0, APART_NS, Fault::Apart(one, other));
                act(0, 3 * SECOND, Fault::Rush);
                act(12 * SECOND, 2 * SECOND, Fault::Rush);
            }
            Self::CutOff => {
                act(0, 2 * SECOND, Fault::Kill(one));
                act(random.random_range(2_400 * MS..3_500 * MS), APART_NS, Fault::Apart(one, leader));
                // It hears the other one alone, and can have groups from that one alone.
                act(6_300 * MS, 0, Fault::Transfer(other));
                act(7_300 * MS, 0, Fault::Transfer(one));
                act(12 * SECOND, 2 * SECOND, Fault::Rush);
            }
        }
        acts
    }
}
