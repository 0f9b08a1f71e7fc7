//! From a proposal to an applied command: the threads around [`Node`] and the state machine.
//!
//! The *raft thread* owns the node. Everything that gathered becomes one round: one entry a group, one write, one sync. What
//! a round committed goes to the *apply thread*, which owns the state machine, while the raft thread takes the next one.
//! What one thread submits to a group keeps its order, questions included. The *checkpoint thread* writes what changed to
//! the state store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::disk::{Disk, SyncSite};
use crate::group::{CheckpointBase, Committed, Configuration, Role};
use crate::identity::{GroupId, NodeId};
use crate::log::{LogId, is_full};
use crate::node::{Node, NodeConfig, OpenError, Sink};
use crate::state::{Checkpoint, StateError, StateStore, Write};

/// Bytes submitted and not yet applied above which submitters should pause.
const IN_FLIGHT_BYTES_HIGH_WATER: usize = 64 * 1024 * 1024;

/// Bytes of one round: bounds the time that its first command waits for the others.
const ROUND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How often the state machine hears that time passes.
const TICK: Duration = Duration::from_millis(100);

/// How often the groups do.
const RAFT_TICK: Duration = Duration::from_millis(50);

/// How often free space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// Pause before a write is tried again on a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// What commands are applied to: all groups of a node. Lives on the apply thread.
pub trait StateMachine: Send + 'static {
    /// What can be asked in the order of the commands.
    type Query: Send + 'static;

    /// Applies one committed command. Deterministic. `live` is whether this node leads the group, and so acts upon what
    /// follows from it; it is false while the log is read again at start.
    fn apply(&mut self, group: GroupId, index: u64, command: &Bytes, live: bool);

    /// This node leads the group from here on. Everything committed before has been applied.
    fn lead(&mut self, group: GroupId, term: u64);

    /// This node does not lead the group, or not any more. `leader` is who does in `term`, if that is known.
    fn follow(&mut self, group: GroupId, term: u64, leader: Option<NodeId>);

    /// Answers a question. What its asker proposed to the group before has been applied.
    fn query(&mut self, query: Self::Query);

    /// Refuses a question: this node does not lead the group that it is for.
    fn refuse(&mut self, query: Self::Query);

    /// A round was applied: what gathered may be handed out. May submit.
    fn flush(&mut self);

    /// Time passes. May submit.
    fn tick(&mut self, now: Instant);

    /// What changed in a group since this was last asked; empty if nothing did.
    /// `None`: not now, what was applied since the last one stays in the log.
    fn checkpoint(&mut self, group: GroupId) -> Option<Vec<Write>>;
}

/// Where messages to other nodes go.
pub trait Peers: Send + 'static {
    /// Sends a Raft message. It may be lost; that must not block.
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes);
}

/// A node that is alone.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn send(&mut self, _: NodeId, _: GroupId, _: Bytes) {}
}

/// How the log and the checkpoints are kept.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// Who this is.
    pub node: NodeId,
    /// For what is drawn by chance; another one at each start.
    pub seed: u64,
    /// Groups are numbered from 0. Those that are not there yet are made, with this node as their only member.
    pub groups: u16,
    /// Size of a segment of the log.
    pub segment_bytes: u64,
    /// Log after which a checkpoint is written.
    pub checkpoint_log_bytes: u64,
    /// Time after which a checkpoint is written, if anything changed.
    pub checkpoint_interval: Duration,
    /// Whether a round is synced before it is applied. If not, it is synced soon after.
    pub sync: bool,
    /// Free space below which [`PipelineHandle::is_full`] says so.
    pub free_bytes_reserve: u64,
}

/// Why the pipeline cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The groups cannot be taken up.
    #[error(transparent)]
    Node(#[from] OpenError),
    /// The first checkpoints of new groups could not be written.
    #[error(transparent)]
    State(#[from] StateError),
}

enum Submission<Q> {
    Propose(GroupId, Bytes),
    Query(GroupId, Q),
    Read(GroupId, Q),
    Notify(Q),
    Message(NodeId, GroupId, Bytes),
    Checkpointed(Vec<(GroupId, CheckpointBase)>),
    Stop,
}

enum Item<Q> {
    Commands { group: GroupId, id: LogId, commands: Vec<Bytes>, live: bool },
    Configuration(GroupId, LogId, Configuration),
    Empty(GroupId, LogId),
    Lead(GroupId, u64),
    Follow(GroupId, u64, Option<NodeId>),
    Query(Q),
    Refuse(Q),
}

struct Round<Q> {
    items: Vec<Item<Q>>,
    bytes: usize,
    log_position: u64,
}

impl<Q> Default for Round<Q> {
    fn default() -> Self {
        Self { items: Vec::new(), bytes: 0, log_position: 0 }
    }
}

/// What the pipeline did, for metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Syncs of the log.
    pub syncs: AtomicU64,
    /// Time they took.
    pub sync_nanoseconds: AtomicU64,
    /// Commands committed.
    pub commands: AtomicU64,
    /// Bytes of the log now.
    pub log_bytes: AtomicU64,
    /// Checkpoints completed.
    pub checkpoints: AtomicU64,
    /// Segments removed.
    pub segments_purged: AtomicU64,
}

/// Submits to the groups. Cheap to clone.
pub struct PipelineHandle<Q> {
    submissions: Sender<Submission<Q>>,
    in_flight: Arc<AtomicUsize>,
    full: Arc<AtomicBool>,
    stats: Arc<Stats>,
}

impl<Q> Clone for PipelineHandle<Q> {
    fn clone(&self) -> Self {
        Self {
            submissions: self.submissions.clone(),
            in_flight: Arc::clone(&self.in_flight),
            full: Arc::clone(&self.full),
            stats: Arc::clone(&self.stats),
        }
    }
}

impl<Q> std::fmt::Debug for PipelineHandle<Q> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PipelineHandle").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl<Q> PipelineHandle<Q> {
    /// That of a pipeline that has ended: whatever is submitted is dropped. For trials of what needs no group.
    #[must_use]
    pub fn ended() -> Self {
        let (submissions, _) = unbounded();
        Self { submissions, in_flight: Arc::default(), full: Arc::default(), stats: Arc::default() }
    }

    /// Submits a command to be committed and applied.
    pub fn propose(&self, group: GroupId, command: Bytes) {
        self.in_flight.fetch_add(command.len(), Ordering::Relaxed);
        self.submit(Submission::Propose(group, command));
    }

    /// Submits a question to a group.
    pub fn query(&self, group: GroupId, query: Q) {
        self.submit(Submission::Query(group, query));
    }

    /// Submits a question whose answer must be what was committed anywhere before it was asked: a majority confirms that
    /// this node still leads. What its asker proposed to the group before has been applied too.
    pub fn read(&self, group: GroupId, query: Q) {
        self.submit(Submission::Read(group, query));
    }

    /// Tells the state machine something that concerns no group.
    pub fn notify(&self, query: Q) {
        self.submit(Submission::Notify(query));
    }

    /// Hands in what a peer sent.
    pub fn step(&self, from: NodeId, group: GroupId, message: Bytes) {
        self.submit(Submission::Message(from, group, message));
    }

    fn submit(&self, submission: Submission<Q>) {
        // Fails only when the pipeline has stopped; then there is nobody to tell.
        drop(self.submissions.send(submission));
    }

    /// Whether submitters should pause.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > IN_FLIGHT_BYTES_HIGH_WATER
    }

    /// Whether the disk has only its reserve left, so that new work should be refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// What was done so far; outlives the pipeline.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}

/// A running pipeline.
pub struct Pipeline<Q> {
    handle: PipelineHandle<Q>,
    raft: JoinHandle<()>,
    applier: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
}

impl<Q> std::fmt::Debug for Pipeline<Q> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pipeline").finish_non_exhaustive()
    }
}

impl<Q: Send + 'static> Pipeline<Q> {
    /// Takes up the groups, makes those that are not there, and starts the threads. What the log has beyond the
    /// checkpoints is applied again, before [`StateMachine::lead`].
    ///
    /// # Errors
    /// The log is damaged, or does not reach back to the checkpoints.
    pub fn start<M: StateMachine<Query = Q>>(
        config: PipelineConfig,
        disk: Arc<dyn Disk>,
        mut store: StateStore,
        machine: M,
        peers: impl Peers,
    ) -> Result<Self, StartError> {
        make_groups(&config, &mut store)?;
        let node_config = NodeConfig::new(config.node, config.segment_bytes, config.sync, config.seed);
        let node = Node::open(node_config, disk, store.bases().clone())?;
        let (submissions, submitted) = unbounded();
        let (rounds, committed) = unbounded();
        let (checkpoints, to_write) = bounded(1);
        let handle =
            PipelineHandle { submissions, in_flight: Arc::default(), full: Arc::default(), stats: Arc::default() };
        let idle = Arc::new(AtomicBool::new(true));
        let outcome = Outcome {
            round: Round::default(),
            peers,
            in_flight: Arc::clone(&handle.in_flight),
            stats: Arc::clone(&handle.stats),
            outstanding: BTreeMap::new(),
            leading: BTreeSet::new(),
            queries: BTreeMap::new(),
            reads: BTreeSet::new(),
            reads_due: Vec::new(),
            unfetched: Vec::new(),
        };
        let raft = RaftThread {
            node,
            outcome,
            config: config.clone(),
            full: Arc::clone(&handle.full),
            stats: Arc::clone(&handle.stats),
            next_query: 0,
            ticked: Instant::now(),
            disk_checked: None,
            unsynced_since: None,
        };
        let applier = Applier {
            machine,
            applied: store.bases().clone(),
            checkpointed: store.bases().iter().map(|(&group, base)| (group, base.applied.index)).collect(),
            config,
            in_flight: Arc::clone(&handle.in_flight),
            checkpoints,
            idle: Arc::clone(&idle),
            last_checkpoint: (Instant::now(), 0),
        };
        let completed = handle.submissions.clone();
        let stats = Arc::clone(&handle.stats);
        Ok(Self {
            raft: spawn("raft", move || raft.run(&submitted, &rounds)),
            applier: spawn("apply", move || applier.run(&committed)),
            checkpointer: spawn("checkpoint", move || write_checkpoints(store, &to_write, &completed, &idle, &stats)),
            handle,
        })
    }

    /// To submit with.
    #[must_use]
    pub fn handle(&self) -> &PipelineHandle<Q> {
        &self.handle
    }

    /// Commits and applies what was submitted, writes a last checkpoint, and ends the threads.
    pub fn stop(self) {
        self.handle.submit(Submission::Stop);
        for thread in [self.raft, self.applier, self.checkpointer] {
            // A thread that panicked has ended the process.
            drop(thread.join());
        }
    }
}

/// A thread without which the node cannot go on: if it panics, the process ends rather than serve half a broker.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let guarded = move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            std::process::abort();
        }
    };
    match std::thread::Builder::new().name(name.to_owned()).spawn(guarded) {
        Ok(thread) => thread,
        Err(error) => {
            tracing::error!(%error, name, "the system gives no thread");
            std::process::abort();
        }
    }
}

/// A failed sync is never tried again: the kernel may have dropped what it could not write.
fn give_up(what: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, "{what} failed; this process ends, because what is on disk is no longer known");
    std::process::abort();
}

/// A group begins with a checkpoint that says who its members are.
fn make_groups(config: &PipelineConfig, store: &mut StateStore) -> Result<(), StateError> {
    let new = (0..config.groups).map(GroupId).filter(|group| !store.bases().contains_key(group));
    let alone = CheckpointBase::new_group(Configuration::of([config.node]));
    let first: Vec<_> = new.map(|group| Checkpoint { group, base: alone.clone(), writes: Vec::new() }).collect();
    if first.is_empty() { Ok(()) } else { store.write(first) }
}

/// What rounds come to: gathered for the apply thread, or sent.
struct Outcome<Q, P> {
    round: Round<Q>,
    peers: P,
    in_flight: Arc<AtomicUsize>,
    stats: Arc<Stats>,
    /// Bytes proposed in this leadership and not handed out, by group.
    outstanding: BTreeMap<GroupId, usize>,
    /// Groups of which [`Item::Lead`] was said.
    leading: BTreeSet<GroupId>,
    queries: BTreeMap<u64, Q>,
    /// Those of them that a majority must confirm, once what was proposed before them is committed.
    reads: BTreeSet<u64>,
    /// Those whose turn that is now.
    reads_due: Vec<(GroupId, u64)>,
    /// Snapshots that cannot be fetched: nothing streams them yet.
    unfetched: Vec<GroupId>,
}

impl<Q, P: Peers> Sink for Outcome<Q, P> {
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes) {
        self.peers.send(to, group, message);
    }

    fn committed(&mut self, group: GroupId, id: LogId, what: Committed) {
        let item = match what {
            Committed::Empty => Item::Empty(group, id),
            Committed::Configuration(configuration) => Item::Configuration(group, id, configuration),
            Committed::Commands(commands) => {
                let live = self.leading.contains(&group);
                if live {
                    self.stats.commands.fetch_add(commands.len() as u64, Ordering::Relaxed);
                    self.settle(group, commands.iter().map(Bytes::len).sum());
                }
                Item::Commands { group, id, commands, live }
            }
        };
        self.round.items.push(item);
    }

    fn role(&mut self, group: GroupId, term: u64, role: Role) {
        if role == (Role::Leader { ready: true }) {
            self.leading.insert(group);
            return self.round.items.push(Item::Lead(group, term));
        }
        self.leading.remove(&group);
        // What was proposed under an earlier term may be lost: nobody waits for it here any more.
        let lost = self.outstanding.remove(&group).unwrap_or(0);
        self.in_flight.fetch_sub(lost, Ordering::Relaxed);
        if let Role::Follower { leader } = role {
            self.round.items.push(Item::Follow(group, term, leader));
        }
    }

    fn query(&mut self, group: GroupId, token: u64) {
        if self.reads.remove(&token) {
            return self.reads_due.push((group, token));
        }
        self.round.items.extend(self.queries.remove(&token).map(Item::Query));
    }

    fn query_dropped(&mut self, _: GroupId, token: u64) {
        self.reads.remove(&token);
        self.round.items.extend(self.queries.remove(&token).map(Item::Refuse));
    }

    fn read_ready(&mut self, _: GroupId, token: u64, _: u64) {
        self.round.items.extend(self.queries.remove(&token).map(Item::Query));
    }

    fn read_dropped(&mut self, _: GroupId, token: u64) {
        self.round.items.extend(self.queries.remove(&token).map(Item::Refuse));
    }

    fn fetch_snapshot(&mut self, group: GroupId, _: NodeId, _: &CheckpointBase) {
        self.unfetched.push(group);
    }
}

impl<Q, P> Outcome<Q, P> {
    /// Bytes that are in flight until the apply thread is done with the round.
    fn settle(&mut self, group: GroupId, bytes: usize) {
        let outstanding = self.outstanding.entry(group).or_default();
        let settled = bytes.min(*outstanding);
        *outstanding -= settled;
        self.round.bytes += settled;
    }
}

struct RaftThread<Q, P> {
    node: Node,
    outcome: Outcome<Q, P>,
    config: PipelineConfig,
    full: Arc<AtomicBool>,
    stats: Arc<Stats>,
    next_query: u64,
    ticked: Instant,
    disk_checked: Option<Instant>,
    unsynced_since: Option<Instant>,
}

impl<Q, P: Peers> RaftThread<Q, P> {
    fn run(mut self, submitted: &Receiver<Submission<Q>>, rounds: &Sender<Round<Q>>) {
        // The first round hands out what is to be applied again, and elects a node that is alone.
        let (mut busy, mut stopping) = (true, false);
        while busy || !stopping {
            let pause = if busy { Duration::ZERO } else { RAFT_TICK.saturating_sub(self.ticked.elapsed()) };
            let first = match submitted.recv_timeout(pause) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.check_space();
            self.sync_if_old();
            self.tick_if_due();
            let (mut next, mut bytes) = (first, 0);
            while let Some(submission) = next {
                match self.take(submission) {
                    Some(taken) => bytes += taken,
                    None => stopping = true,
                }
                next = if bytes < ROUND_BYTES_MAX { submitted.try_recv().ok() } else { None };
            }
            busy = self.round();
            let mut round = std::mem::take(&mut self.outcome.round);
            round.log_position = self.node.log().position();
            if !round.items.is_empty() && rounds.send(round).is_err() {
                break;
            }
        }
        if let Err(error) = self.node.sync(SyncSite::LogEnd) {
            give_up("syncing the log", &error);
        }
    }

    /// Bytes that it adds to the round; `None`: the last one.
    fn take(&mut self, submission: Submission<Q>) -> Option<usize> {
        match submission {
            Submission::Propose(group, command) => {
                let bytes = command.len();
                if self.node.propose(group, &command).is_ok() {
                    *self.outcome.outstanding.entry(group).or_default() += bytes;
                } else {
                    self.outcome.in_flight.fetch_sub(bytes, Ordering::Relaxed);
                }
                return Some(bytes);
            }
            Submission::Notify(query) => self.outcome.round.items.push(Item::Query(query)),
            Submission::Read(group, query) => {
                self.next_query += 1;
                // Nobody else can lead the group of a node that is alone.
                if !self.node.is_alone(group) {
                    self.outcome.reads.insert(self.next_query);
                }
                match self.node.query(group, self.next_query) {
                    Ok(()) => drop(self.outcome.queries.insert(self.next_query, query)),
                    Err(_) => {
                        self.outcome.reads.remove(&self.next_query);
                        self.outcome.round.items.push(Item::Refuse(query));
                    }
                }
            }
            Submission::Query(group, query) => {
                self.next_query += 1;
                match self.node.query(group, self.next_query) {
                    Ok(()) => drop(self.outcome.queries.insert(self.next_query, query)),
                    Err(_) => self.outcome.round.items.push(Item::Refuse(query)),
                }
            }
            Submission::Message(from, group, message) => {
                let bytes = message.len();
                if let Err(error) = self.node.step(from, group, message) {
                    tracing::warn!(%error, %group, "a message of a peer was refused");
                }
                return Some(bytes);
            }
            Submission::Checkpointed(checkpoints) => self.checkpointed(checkpoints),
            Submission::Stop => return None,
        }
        Some(0)
    }

    /// One round; waits for room on the disk if there is none: what was accepted is not given up. Returns whether there is
    /// more to be done.
    fn round(&mut self) -> bool {
        let round = loop {
            match self.node.round(&mut self.outcome) {
                Ok(round) => break round,
                Err(error) if is_full(&error) => {
                    if !self.full.swap(true, Ordering::Relaxed) {
                        tracing::error!("the disk is full: nothing is acknowledged until there is room again");
                    }
                    std::thread::sleep(FULL_PAUSE);
                }
                Err(error) => give_up("writing the log", &error),
            }
        };
        if round.wrote && !self.config.sync {
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        for group in self.outcome.unfetched.drain(..) {
            self.node.fetch_failed(group);
        }
        let mut busy = round.busy;
        for (group, token) in std::mem::take(&mut self.outcome.reads_due) {
            busy = true;
            if self.node.read_index(group, token).is_err() {
                self.outcome.read_dropped(group, token);
            }
        }
        self.show();
        busy
    }

    fn show(&self) {
        let log = self.node.log();
        let (syncs, time) = log.syncs();
        self.stats.syncs.store(syncs, Ordering::Relaxed);
        self.stats.sync_nanoseconds.store(time.as_nanos() as u64, Ordering::Relaxed);
        self.stats.log_bytes.store(log.bytes(), Ordering::Relaxed);
    }

    fn tick_if_due(&mut self) {
        if self.ticked.elapsed() >= RAFT_TICK {
            // Ticks missed during a slow sync are not made up for: a leader was not silent, this node was deaf.
            self.ticked = Instant::now();
            self.node.tick();
        }
    }

    fn sync_if_old(&mut self) {
        if self.unsynced_since.is_some_and(|since| since.elapsed() >= SPACE_INTERVAL) {
            if let Err(error) = self.node.sync(SyncSite::LogBackground) {
                give_up("syncing the log", &error);
            }
            self.unsynced_since = None;
        }
    }

    fn checkpointed(&mut self, checkpoints: Vec<(GroupId, CheckpointBase)>) {
        match self.node.checkpointed(checkpoints) {
            Ok(removed) => {
                self.stats.segments_purged.fetch_add(removed as u64, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(%error, "old segments of the log could not be removed; they only take room"),
        }
    }

    fn check_space(&mut self) {
        if self.disk_checked.is_some_and(|at| at.elapsed() < SPACE_INTERVAL) {
            return;
        }
        self.disk_checked = Some(Instant::now());
        if let Ok(free) = self.node.log().free_bytes() {
            let full = free < self.config.free_bytes_reserve;
            if self.full.swap(full, Ordering::Relaxed) != full {
                tracing::warn!(free_bytes = free, full, "free space on disk crossed its reserve");
            }
        }
    }
}

struct Applier<M: StateMachine> {
    machine: M,
    applied: BTreeMap<GroupId, CheckpointBase>,
    /// What the last checkpoint of each group has, or the one that is being written.
    checkpointed: BTreeMap<GroupId, u64>,
    config: PipelineConfig,
    in_flight: Arc<AtomicUsize>,
    checkpoints: Sender<Vec<Checkpoint>>,
    /// Whether no checkpoint is being written.
    idle: Arc<AtomicBool>,
    last_checkpoint: (Instant, u64),
}

impl<M: StateMachine> Applier<M> {
    fn run(mut self, committed: &Receiver<Round<M::Query>>) {
        let mut ticked = Instant::now();
        loop {
            match committed.recv_timeout(TICK) {
                Ok(round) => self.apply(round),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.machine.tick(ticked);
                self.machine.flush();
                self.checkpoint_if_due(0);
            }
        }
        self.checkpoint();
    }

    fn apply(&mut self, round: Round<M::Query>) {
        for item in round.items {
            match item {
                Item::Commands { group, id, commands, live } => {
                    for command in &commands {
                        self.machine.apply(group, id.index, command, live);
                    }
                    self.applied(group, id);
                }
                Item::Configuration(group, id, configuration) => self.applied(group, id).configuration = configuration,
                Item::Empty(group, id) => drop(self.applied(group, id)),
                Item::Lead(group, term) => self.machine.lead(group, term),
                Item::Follow(group, term, leader) => self.machine.follow(group, term, leader),
                Item::Query(query) => self.machine.query(query),
                Item::Refuse(query) => self.machine.refuse(query),
            }
        }
        self.in_flight.fetch_sub(round.bytes, Ordering::Relaxed);
        self.machine.flush();
        self.checkpoint_if_due(round.log_position);
    }

    fn applied(&mut self, group: GroupId, id: LogId) -> &mut CheckpointBase {
        let base = self.applied.entry(group).or_default();
        base.applied = id;
        base
    }

    /// `position` is 0 where only time passed.
    fn checkpoint_if_due(&mut self, position: u64) {
        let (at, before) = self.last_checkpoint;
        let by_log = position.saturating_sub(before) >= self.config.checkpoint_log_bytes;
        let by_time = at.elapsed() >= self.config.checkpoint_interval;
        if (by_log || by_time) && self.idle.load(Ordering::Acquire) {
            self.last_checkpoint = (Instant::now(), position.max(before));
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        let mut checkpoints = Vec::new();
        for (&group, base) in &self.applied {
            let Some(writes) = self.machine.checkpoint(group) else {
                continue;
            };
            // Entries that changed nothing keep the log as well, until a checkpoint says so.
            let advanced = self.checkpointed.insert(group, base.applied.index) != Some(base.applied.index);
            if advanced || !writes.is_empty() {
                checkpoints.push(Checkpoint { group, base: base.clone(), writes });
            }
        }
        if !checkpoints.is_empty() {
            self.idle.store(false, Ordering::Release);
            // Fails only if the thread is gone, which ends the process.
            drop(self.checkpoints.send(checkpoints));
        }
    }
}

fn write_checkpoints<Q>(
    mut store: StateStore,
    to_write: &Receiver<Vec<Checkpoint>>,
    completed: &Sender<Submission<Q>>,
    idle: &AtomicBool,
    stats: &Stats,
) {
    for checkpoints in to_write {
        let bases = checkpoints.iter().map(|checkpoint| (checkpoint.group, checkpoint.base.clone())).collect();
        if let Err(error) = store.write(checkpoints) {
            give_up("writing a checkpoint", &error);
        }
        stats.checkpoints.fetch_add(1, Ordering::Relaxed);
        // Fails only at the end, when the log stays as it is.
        drop(completed.send(Submission::Checkpointed(bases)));
        idle.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
