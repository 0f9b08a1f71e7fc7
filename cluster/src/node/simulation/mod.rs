//! Whole clusters of [`Node`]s in one thread, from one seed: network, disks, crashes, checkpoints, snapshots, members.

mod checker;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use self::checker::{Checker, Digest, Violation, logs_match};
use super::{Node, NodeConfig, PlantedBug, Sink};
use crate::directory::Placement;
use crate::disk::SimDisk;
use crate::group::{Change, CheckpointBase, Committed, Configuration, Keeping, Role, Target};
use crate::identity::{GroupId, NodeId};
use crate::log::{LogId, is_full};
use crate::placement::transition::is_settled;

const GROUPS: [GroupId; 2] = [GroupId(0), GroupId::DIRECTORY];

/// Steps between two ticks of a node.
const TICK_STEPS: u64 = 5;

/// Steps that a healed cluster gets to agree again.
const SETTLE_STEPS: u64 = 6000;

/// SplitMix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Once in `times`.
    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    nodes: u64,
    steps: u64,
    /// Groups are placed anew now and then, and go there; else members are changed one by one, as it comes.
    placed: bool,
    planted: Option<PlantedBug>,
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Report {
    hash: u64,
    events: u64,
    counts: BTreeMap<&'static str, u64>,
}

/// The state machine: everything applied, in a digest.
#[derive(Debug, Clone, Default)]
struct Machine {
    base: CheckpointBase,
    digest: Digest,
}

impl Machine {
    fn apply(&mut self, id: LogId, what: &Committed) {
        self.base.applied = id;
        self.digest.add_number(Digest::of(what).0);
        if let Committed::Configuration(configuration) = what {
            self.base.configuration = configuration.clone();
        }
    }
}

/// What a client of a node waits for in one group.
#[derive(Debug, Default)]
struct Client {
    /// Numbers of the last command proposed, and of the last own one handed out.
    proposed: u64,
    handed_out: u64,
    /// The last one proposed in the present leadership.
    in_leadership: Option<u64>,
}

#[derive(Debug)]
enum Waiting {
    /// Everything up to the first number must be handed out, nothing above the second.
    Query(Option<u64>, u64),
    /// Everything up to this index must be handed out.
    Read(u64),
}

#[derive(Debug)]
struct Host {
    id: NodeId,
    disk: SimDisk,
    node: Option<Node>,
    starts: u64,
    restart_at: u64,
    /// Its disk is gone: it never comes back.
    is_lost: bool,
    full_until: u64,
    /// Durable.
    checkpoints: BTreeMap<GroupId, Machine>,
    /// Lost in a crash.
    machines: BTreeMap<GroupId, Machine>,
    clients: BTreeMap<GroupId, Client>,
    waiting: BTreeMap<u64, Waiting>,
    /// Being written: when it will be done.
    writing: Option<(u64, BTreeMap<GroupId, Machine>)>,
    /// Being fetched: when, whose, from whom.
    fetching: Vec<(u64, GroupId, NodeId)>,
}

#[derive(Debug)]
struct Packet {
    from: NodeId,
    to: NodeId,
    group: GroupId,
    bytes: Bytes,
}

#[derive(Debug)]
enum Out {
    Send(NodeId, GroupId, Bytes),
    Committed(GroupId, LogId, Committed),
    Role(GroupId, u64, Role),
    Query(GroupId, u64),
    Dropped(u64),
    Read(GroupId, u64),
    Fetch(GroupId, NodeId),
}

#[derive(Debug, Default)]
struct Outs(Vec<Out>);

impl Sink for Outs {
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes, _: bool) {
        self.0.push(Out::Send(to, group, message));
    }

    fn committed(&mut self, group: GroupId, id: LogId, what: Committed) {
        self.0.push(Out::Committed(group, id, what));
    }

    fn role(&mut self, group: GroupId, term: u64, role: Role) {
        self.0.push(Out::Role(group, term, role));
    }

    fn query(&mut self, group: GroupId, token: u64) {
        self.0.push(Out::Query(group, token));
    }

    fn query_dropped(&mut self, _: GroupId, token: u64) {
        self.0.push(Out::Dropped(token));
    }

    fn read_ready(&mut self, group: GroupId, token: u64, _: u64) {
        self.0.push(Out::Read(group, token));
    }

    fn read_dropped(&mut self, _: GroupId, token: u64) {
        self.0.push(Out::Dropped(token));
    }

    fn fetch_snapshot(&mut self, group: GroupId, from: NodeId, _: &CheckpointBase) {
        self.0.push(Out::Fetch(group, from));
    }
}

struct Simulation {
    plan: Plan,
    random: Random,
    now: u64,
    hosts: Vec<Host>,
    /// By the time of arrival.
    network: BTreeMap<(u64, u64), Packet>,
    packets: u64,
    /// One-way cuts, and until when.
    cuts: BTreeMap<(NodeId, NodeId), u64>,
    /// No more faults.
    healing: bool,
    /// Where groups are to be kept, as a directory would say.
    targets: BTreeMap<GroupId, Target>,
    checker: Checker,
    tokens: u64,
    hash: Digest,
    report: Report,
}

impl Simulation {
    fn run(plan: Plan) -> Result<Report, Violation> {
        let mut simulation = Self::new(plan)?;
        for _ in 0..plan.steps {
            simulation.step()?;
        }
        simulation.heal()?;
        simulation.report.hash = simulation.hash.0;
        Ok(simulation.report)
    }

    fn new(plan: Plan) -> Result<Self, Violation> {
        // A fourth and a fifth node join.
        let voters: Vec<_> = (1..=plan.nodes.min(3)).map(NodeId).collect();
        let host = |id: u64| {
            let founder = CheckpointBase::new_group(Configuration::of(voters.iter().copied()));
            let base = if voters.contains(&NodeId(id)) { founder } else { CheckpointBase::default() };
            let machine = Machine { base, digest: Digest::default() };
            Host {
                id: NodeId(id),
                disk: SimDisk::new(),
                node: None,
                starts: 0,
                restart_at: 0,
                is_lost: false,
                full_until: 0,
                checkpoints: GROUPS.iter().map(|&group| (group, machine.clone())).collect(),
                machines: BTreeMap::new(),
                clients: BTreeMap::new(),
                waiting: BTreeMap::new(),
                writing: None,
                fetching: Vec::new(),
            }
        };
        let mut simulation = Self {
            plan,
            random: Random(plan.seed),
            now: 0,
            hosts: (1..=plan.nodes).map(host).collect(),
            network: BTreeMap::new(),
            packets: 0,
            cuts: BTreeMap::new(),
            healing: false,
            targets: BTreeMap::new(),
            checker: Checker::default(),
            tokens: 0,
            hash: Digest::default(),
            report: Report::default(),
        };
        for at in 0..simulation.hosts.len() {
            simulation.start(at)?;
        }
        Ok(simulation)
    }

    fn count(&mut self, what: &'static str) {
        *self.report.counts.entry(what).or_default() += 1;
    }

    fn event(&mut self, node: NodeId, what: &str, number: u64) {
        self.report.events += 1;
        self.hash.add(what.as_bytes());
        self.hash.add_number(node.0);
        self.hash.add_number(number);
    }

    fn start(&mut self, at: usize) -> Result<(), Violation> {
        let seed = self.random.next();
        let planted = self.plan.planted;
        let host = &mut self.hosts[at];
        host.starts += 1;
        // So little in half of the runs that there is often more, and who lacks something gets a snapshot.
        let keeping = match self.plan.seed % 2 {
            0 => Keeping::default(),
            _ => Keeping { usual: 1500, group: 6000, node: 9000 },
        };
        let config = NodeConfig { election_ticks: 10, keeping, planted, ..NodeConfig::new(host.id, 2000, true, seed) };
        host.machines = host.checkpoints.clone();
        let bases = host.checkpoints.iter().map(|(&group, machine)| (group, machine.base.clone())).collect();
        let disk = Arc::new(host.disk.clone());
        let node =
            Node::open(config, disk, bases).map_err(|error| format!("node {} cannot start: {error}", host.id))?;
        host.node = Some(node);
        self.round(at)
    }

    fn crash(&mut self, at: usize) {
        self.count("crash");
        let pause = 1 + self.random.below(300);
        let torn = self.random.next();
        let host = &mut self.hosts[at];
        host.node = None;
        host.disk.power_cycle(|_, unsynced| (torn % (unsynced as u64 + 1)) as usize);
        host.disk.set_free_bytes(None);
        host.full_until = 0;
        host.restart_at = self.now + pause;
        host.clients.values_mut().for_each(|client| client.in_leadership = None);
        host.waiting.clear();
        host.writing = None;
        host.fetching.clear();
    }

    fn step(&mut self) -> Result<(), Violation> {
        self.now += 1;
        if !self.healing {
            self.maybe_fault();
            for _ in 0..1 + self.random.below(3) {
                self.act();
            }
        }
        self.deliver()?;
        for at in 0..self.hosts.len() {
            let host = &mut self.hosts[at];
            if host.node.is_none() && host.restart_at <= self.now && !host.is_lost {
                self.count("restart");
                self.start(at)?;
            }
            if self.now < self.hosts[at].full_until {
                continue;
            }
            if std::mem::take(&mut self.hosts[at].full_until) > 0 {
                self.hosts[at].disk.set_free_bytes(None);
                self.round(at)?;
            }
            self.finish_background_work(at)?;
            self.tell_targets(at);
            if let Some(node) = &mut self.hosts[at].node
                && (self.now + at as u64).is_multiple_of(TICK_STEPS)
            {
                node.tick();
            }
            self.round(at)?;
        }
        if self.now.is_multiple_of(100) {
            self.check_logs()?;
        }
        Ok(())
    }

    // Faults.

    fn maybe_fault(&mut self) {
        let at = self.random.below(self.plan.nodes) as usize;
        let is_up = self.hosts[at].node.is_some();
        if self.random.once_in(250) && is_up {
            if self.random.once_in(2) {
                self.crash(at);
            } else {
                // In the midst of a round.
                let operations = self.random.below(4);
                self.hosts[at].disk.cut_power_after(operations);
            }
        }
        if self.random.once_in(150) {
            let other = NodeId(1 + self.random.below(self.plan.nodes));
            let until = self.now + self.random.below(400);
            self.cuts.insert((self.hosts[at].id, other), until);
            self.count("cut");
        }
        if self.plan.placed && self.random.once_in(500) {
            self.lose_disk(at);
        }
        if self.random.once_in(600) && is_up {
            let free = self.random.below(500);
            self.hosts[at].disk.set_free_bytes(Some(free));
            self.count("little room");
        }
    }

    /// One for good in a run, of which the groups that have three voters or more can bear the loss.
    fn lose_disk(&mut self, at: usize) {
        let bears = |group: GroupId| {
            let machines = self.hosts.iter().map(|host| &host.machines[&group]);
            let ahead = machines.max_by_key(|machine| machine.base.applied.index);
            ahead.is_some_and(|machine| machine.base.configuration.voters.len() >= 3)
        };
        if self.hosts.iter().any(|host| host.is_lost) || !GROUPS.into_iter().all(bears) {
            return;
        }
        self.crash(at);
        self.hosts[at].is_lost = true;
        self.count("lost disk");
        let nodes: Vec<NodeId> = self.hosts.iter().filter(|host| !host.is_lost).map(|host| host.id).collect();
        for group in GROUPS {
            self.place(group, nodes.clone());
        }
    }

    // What clients and operators do.

    fn act(&mut self) {
        let at = self.random.below(self.plan.nodes) as usize;
        let group = GROUPS[self.random.below(2) as usize];
        // A full round is still under way: nothing may be put in.
        if self.hosts[at].full_until > 0 {
            return;
        }
        match self.random.below(100) {
            0..60 => self.propose(at, group),
            60..75 => self.query(at, group),
            75..90 => self.read(at, group),
            90..96 => self.checkpoint(at),
            96 => self.transfer(at, group),
            97 => {
                let peer = NodeId(1 + self.random.below(self.plan.nodes));
                let is_connected = self.random.once_in(2);
                if let Some(node) = &mut self.hosts[at].node {
                    node.report_unreachable(peer);
                    node.connected(peer, is_connected.then_some(1));
                }
            }
            _ if self.plan.placed => {
                if self.random.once_in(10) {
                    let nodes = self.hosts.iter().filter(|host| !host.is_lost).map(|host| host.id).collect();
                    self.place(group, nodes);
                }
            }
            _ => self.change_members(at, group),
        }
    }

    /// Three or five of these vote, drawn by lot, and some of the others follow.
    fn place(&mut self, group: GroupId, mut nodes: Vec<NodeId>) {
        for at in (1..nodes.len()).rev() {
            let other = self.random.below(at as u64 + 1) as usize;
            nodes.swap(at, other);
        }
        let seats = if nodes.len() >= 5 && self.random.once_in(3) { 5 } else { 3 };
        let rest = nodes.split_off(seats.min(nodes.len()));
        let learners = rest.into_iter().filter(|_| self.random.once_in(2)).collect();
        let drained = nodes.last().copied().filter(|_| self.random.once_in(3)).into_iter().collect();
        let leader = nodes.first().copied();
        let placement = Placement { voters: nodes.into_iter().collect(), learners };
        self.targets.insert(group, Target { placement, leader, drained });
        self.count("placed");
    }

    /// Whoever leads knows where its group is to be kept.
    fn tell_targets(&mut self, at: usize) {
        let Some(node) = &mut self.hosts[at].node else {
            return;
        };
        for (&group, target) in &self.targets {
            if let Some(status) = node.status(group).filter(|status| matches!(status.role, Role::Leader { .. })) {
                node.place(group, status.term, target.clone());
            }
        }
    }

    fn propose(&mut self, at: usize, group: GroupId) {
        let filling = vec![b'x'; self.random.below(60) as usize];
        let host = &mut self.hosts[at];
        let client = host.clients.entry(group).or_default();
        let number = client.proposed + 1;
        let command = [&host.id.0.to_le_bytes()[..], &number.to_le_bytes(), &filling].concat();
        if let Some(node) = &mut host.node
            && node.propose(group, &command).is_ok()
        {
            client.proposed = number;
            client.in_leadership = Some(number);
            self.count("propose");
        }
    }

    fn query(&mut self, at: usize, group: GroupId) {
        self.tokens += 1;
        let token = self.tokens;
        let host = &mut self.hosts[at];
        let client = host.clients.entry(group).or_default();
        if let Some(node) = &mut host.node
            && node.query(group, token).is_ok()
        {
            host.waiting.insert(token, Waiting::Query(client.in_leadership, client.proposed));
        }
    }

    fn read(&mut self, at: usize, group: GroupId) {
        self.tokens += 1;
        let floor = self.checker.last(group);
        let host = &mut self.hosts[at];
        if let Some(node) = &mut host.node
            && node.read_index(group, self.tokens).is_ok()
        {
            host.waiting.insert(self.tokens, Waiting::Read(floor));
        }
    }

    fn checkpoint(&mut self, at: usize) {
        let done = self.now + self.random.below(30);
        let host = &mut self.hosts[at];
        // What a process had in memory is gone with it, and the next one goes on from what is durable.
        if host.writing.is_none() && host.node.is_some() {
            host.writing = Some((done, host.machines.clone()));
        }
    }

    fn transfer(&mut self, at: usize, group: GroupId) {
        let to = NodeId(1 + self.random.below(self.plan.nodes));
        if let Some(node) = &mut self.hosts[at].node
            && node.transfer_leader(group, to).is_ok()
        {
            self.count("transfer");
        }
    }

    fn change_members(&mut self, at: usize, group: GroupId) {
        if self.plan.nodes < 4 {
            return;
        }
        let joiner = 4 + self.random.below(self.plan.nodes - 3);
        let change = match self.random.below(4) {
            0 => Change::Remove(NodeId(joiner)),
            1 => Change::AddLearner(NodeId(joiner)),
            _ => Change::AddVoter(NodeId(joiner)),
        };
        let Some(node) = &mut self.hosts[at].node else {
            return;
        };
        if node.propose_change(group, &[change]).is_ok() {
            if let Change::AddVoter(_) = change {
                let committed = node.status(group).map_or(0, |status| status.committed);
                let joined = self.hosts[joiner as usize - 1].node.as_ref();
                let last = joined.and_then(|node| node.status(group)).map_or(u64::MAX, |status| status.last);
                if last.saturating_add(100) < committed || last == 0 {
                    self.report.counts.insert("promoted early", 1);
                }
                self.count("promote");
            }
            self.count("change of members");
        }
    }

    // Network.

    fn send(&mut self, from: NodeId, to: NodeId, group: GroupId, bytes: Bytes) {
        let is_cut = self.cuts.get(&(from, to)).is_some_and(|&until| until > self.now);
        if is_cut || (!self.healing && self.random.once_in(50)) {
            return self.count("lost message");
        }
        let copies = if !self.healing && self.random.once_in(50) { 2 } else { 1 };
        for _ in 0..copies {
            let slow = if !self.healing && self.random.once_in(100) { 100 } else { 4 };
            let arrival = self.now + 1 + self.random.below(slow);
            self.packets += 1;
            self.network.insert((arrival, self.packets), Packet { from, to, group, bytes: bytes.clone() });
        }
    }

    fn deliver(&mut self) -> Result<(), Violation> {
        while let Some(entry) = self.network.first_entry()
            && entry.key().0 <= self.now
        {
            let Packet { from, to, group, bytes } = entry.remove();
            self.event(to, "message", bytes.len() as u64);
            let host = &mut self.hosts[to.0 as usize - 1];
            if host.full_until > 0 {
                continue;
            }
            if let Some(node) = &mut host.node {
                node.step(from, group, bytes).map_err(|error| format!("node {to}: {error}"))?;
            }
        }
        Ok(())
    }

    // Checkpoints and snapshots.

    fn finish_background_work(&mut self, at: usize) -> Result<(), Violation> {
        if self.hosts[at].writing.as_ref().is_some_and(|(done, _)| *done <= self.now)
            && let Some((_, machines)) = self.hosts[at].writing.take()
        {
            self.complete_checkpoint(at, machines);
        }
        let due: Vec<_> = self.hosts[at].fetching.extract_if(.., |(done, ..)| *done <= self.now).collect();
        for (_, group, from) in due {
            self.complete_fetch(at, group, from)?;
        }
        Ok(())
    }

    fn complete_checkpoint(&mut self, at: usize, machines: BTreeMap<GroupId, Machine>) {
        let host = &mut self.hosts[at];
        let mut bases = Vec::new();
        for (group, machine) in machines {
            let stored = host.checkpoints.entry(group).or_default();
            if machine.base.applied.index > stored.base.applied.index {
                bases.push((group, machine.base.clone()));
                *stored = machine;
            }
        }
        let purged = host.node.as_mut().and_then(|node| node.checkpointed(bases).ok()).unwrap_or(0);
        self.count("checkpoint");
        if purged > 0 {
            self.count("purge");
        }
    }

    fn complete_fetch(&mut self, at: usize, group: GroupId, from: NodeId) -> Result<(), Violation> {
        let source = &self.hosts[from.0 as usize - 1];
        let fetched = source.node.as_ref().map(|_| source.checkpoints[&group].clone());
        let failed = self.random.once_in(4) && !self.healing;
        let host = &mut self.hosts[at];
        let Some(node) = &mut host.node else {
            return Ok(());
        };
        match fetched.filter(|_| !failed) {
            Some(machine) => {
                let base = machine.base.clone();
                if base.applied.index > host.machines[&group].base.applied.index {
                    host.machines.insert(group, machine.clone());
                    host.checkpoints.insert(group, machine);
                    // What is being written is older.
                    host.writing = None;
                }
                node.installed(group, base).map_err(|error| format!("node {}: {error}", host.id))?;
                self.count("snapshot");
            }
            None => {
                node.fetch_failed(group);
                self.count("failed snapshot");
            }
        }
        let delivered = !failed;
        let source = &mut self.hosts[from.0 as usize - 1];
        if source.full_until == 0
            && let Some(node) = &mut source.node
        {
            node.report_snapshot(group, NodeId(at as u64 + 1), delivered);
        }
        Ok(())
    }

    // A node's round.

    fn round(&mut self, at: usize) -> Result<(), Violation> {
        for _ in 0..10 {
            let Some(node) = &mut self.hosts[at].node else {
                return Ok(());
            };
            let mut outs = Outs::default();
            let result = node.round(&mut outs);
            // What it said before it failed was said.
            self.take(at, outs)?;
            match result {
                Ok(round) if round.busy => {}
                Ok(_) => return Ok(()),
                Err(error) if is_full(&error) => {
                    self.count("full disk");
                    let host = &mut self.hosts[at];
                    host.full_until = self.now + 1 + self.random.below(100);
                    return Ok(());
                }
                Err(_) => {
                    self.crash(at);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, at: usize, outs: Outs) -> Result<(), Violation> {
        let id = self.hosts[at].id;
        for out in outs.0 {
            match out {
                Out::Send(to, group, bytes) => self.send(id, to, group, bytes),
                Out::Committed(group, log_id, what) => self.committed(at, group, log_id, &what)?,
                Out::Role(group, term, role) => self.role(at, group, term, role)?,
                Out::Query(group, token) | Out::Read(group, token) => self.answer(at, group, token)?,
                Out::Dropped(token) => {
                    self.hosts[at].waiting.remove(&token);
                    self.count("dropped question");
                }
                Out::Fetch(group, from) => {
                    let done = self.now + 1 + self.random.below(60);
                    self.hosts[at].fetching.push((done, group, from));
                }
            }
        }
        Ok(())
    }

    fn committed(&mut self, at: usize, group: GroupId, id: LogId, what: &Committed) -> Result<(), Violation> {
        let node = self.hosts[at].id;
        self.event(node, "committed", id.index);
        self.checker.committed(node, group, id, what)?;
        let host = &mut self.hosts[at];
        if let Committed::Commands(commands) = what {
            let own = commands.iter().filter(|command| command[..8] == node.0.to_le_bytes());
            if let Some(last) = own.last() {
                let number = u64::from_le_bytes(command_number(last));
                let client = host.clients.entry(group).or_default();
                client.handed_out = number;
            }
        }
        if let Committed::Configuration(configuration) = what
            && self.plan.placed
        {
            self.check_step(at, group, configuration)?;
        }
        let host = &mut self.hosts[at];
        let machine = host.machines.entry(group).or_default();
        match id.index.checked_sub(machine.base.applied.index) {
            Some(1) => machine.apply(id, what),
            // A snapshot went ahead of what was on its way.
            Some(0) | None => {}
            Some(_) => {
                let applied = machine.base.applied.index;
                return Err(format!("node {node} hands out {} of group {group} after {applied}", id.index));
            }
        }
        Ok(())
    }

    /// A step towards where a group is to be kept: an odd number of voters, and no vote without the log.
    fn check_step(&mut self, at: usize, group: GroupId, now: &Configuration) -> Result<(), Violation> {
        if now.voters.len().is_multiple_of(2) {
            return Err(format!("group {group} has an even number of voters: {now:?}"));
        }
        let before = self.hosts[at].machines[&group].base.configuration.clone();
        for node in now.voters.iter().filter(|&&node| !before.votes(node)) {
            self.count("promote");
            let promoted = self.hosts[node.0 as usize - 1].node.as_ref().and_then(|node| node.status(group));
            if promoted.is_some_and(|status| status.last == 0) {
                return Err(format!("node {node} has nothing of group {group} and was given a vote"));
            }
        }
        Ok(())
    }

    fn role(&mut self, at: usize, group: GroupId, term: u64, role: Role) -> Result<(), Violation> {
        let host = &mut self.hosts[at];
        let id = host.id;
        if role != (Role::Leader { ready: true }) {
            host.clients.entry(group).or_default().in_leadership = None;
        }
        if let Role::Leader { ready } = role {
            let handed_out = ready.then(|| host.machines[&group].base.applied.index);
            self.checker.leads(id, group, term, handed_out)?;
            self.count("election");
        }
        self.event(id, "role", term);
        Ok(())
    }

    fn answer(&mut self, at: usize, group: GroupId, token: u64) -> Result<(), Violation> {
        let host = &mut self.hosts[at];
        let id = host.id;
        let applied = host.machines[&group].base.applied.index;
        let client = host.clients.entry(group).or_default();
        match host.waiting.remove(&token) {
            Some(Waiting::Read(floor)) if applied < floor => {
                return Err(format!(
                    "node {id} answers a read of group {group} at {applied}; {floor} was known before"
                ));
            }
            Some(Waiting::Query(least, most))
                if least.is_some_and(|least| client.handed_out < least) || client.handed_out > most =>
            {
                let handed_out = client.handed_out;
                return Err(format!("node {id} answers a question at {handed_out}, not in {least:?}..={most}"));
            }
            Some(Waiting::Read(_)) => {
                let status = host.node.as_ref().and_then(|node| node.status(group));
                let leads = status.is_some_and(|status| matches!(status.role, Role::Leader { .. }));
                self.count(if leads { "read" } else { "read by a follower" });
            }
            Some(Waiting::Query(..)) => self.count("query"),
            None => return Err(format!("node {id} answers a question twice")),
        }
        self.event(id, "answer", token);
        Ok(())
    }

    // Checks.

    fn check_logs(&mut self) -> Result<(), Violation> {
        for group in GROUPS {
            let logs: Vec<_> = self.hosts.iter().filter_map(|host| Some(host.node.as_ref()?.entries(group))).collect();
            for (at, one) in logs.iter().enumerate() {
                for other in &logs[at + 1..] {
                    logs_match(one, other)?;
                }
            }
        }
        if self.report.counts.contains_key("promoted early") {
            return Err("a learner without the log was given a vote".to_owned());
        }
        Ok(())
    }

    /// Faults end: everything handed out must come to be applied by every member alike, and the group goes on.
    fn heal(&mut self) -> Result<(), Violation> {
        self.healing = true;
        self.cuts.clear();
        for host in &mut self.hosts {
            host.full_until = host.full_until.min(self.now + 1);
            host.disk.set_free_bytes(None);
            host.restart_at = 0;
        }
        for _ in 0..SETTLE_STEPS {
            self.step()?;
            if self.now.is_multiple_of(50) {
                let at = self.random.below(self.plan.nodes) as usize;
                self.checkpoint(at);
                for (at, group) in (0..self.hosts.len()).flat_map(|at| GROUPS.map(|group| (at, group))) {
                    self.propose(at, group);
                }
            }
            if self.now.is_multiple_of(50) && self.has_settled() {
                return self.check_logs();
            }
        }
        Err(format!(
            "the healed cluster does not agree: {:?}",
            self.hosts.iter().map(|host| &host.machines).collect::<Vec<_>>()
        ))
    }

    fn has_settled(&self) -> bool {
        GROUPS.iter().all(|&group| {
            let machines = self.hosts.iter().map(|host| (host.id, &host.machines[&group]));
            let Some((_, ahead)) = machines.clone().max_by_key(|(_, machine)| machine.base.applied.index) else {
                return false;
            };
            let members: BTreeSet<_> =
                [&ahead.base.configuration.voters, &ahead.base.configuration.learners].into_iter().flatten().collect();
            let last = ahead.base.applied.index;
            let mut behind = machines.filter(|(id, _)| members.contains(id));
            let is_there = |target: &Target| is_settled(&ahead.base.configuration, &target.placement);
            last >= self.checker.last(group)
                && self.targets.get(&group).is_none_or(is_there)
                && behind.all(|(_, machine)| machine.base.applied.index + 4 >= last)
                && self.hosts.iter().all(|host| host.node.is_some() || host.is_lost)
        })
    }
}

fn command_number(command: &[u8]) -> [u8; 8] {
    let mut number = [0; 8];
    number.copy_from_slice(&command[8..16]);
    number
}

/// What a run came to, panics included.
fn outcome(plan: Plan) -> Result<Report, Violation> {
    std::panic::catch_unwind(|| Simulation::run(plan)).unwrap_or_else(|_| Err("a panic".to_owned()))
}
