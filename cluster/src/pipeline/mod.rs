//! From a proposal to an applied command: the threads around [`Node`] and the state machine.
//!
//! The *raft thread* owns the node. Everything that gathered becomes one round: one entry a group, one write, one sync. What
//! a round committed goes to the *apply thread*, which owns the state machine, while the raft thread takes the next one.
//! What one thread submits to a group keeps its order, questions included. The *checkpoint thread* writes what changed to
//! the state store.

mod apply;
mod bell;
mod inline;
mod raft;
mod stats;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded, unbounded};

pub use self::bell::together;
pub use self::inline::{Inline, InlineError};
pub use self::stats::{GroupCounts, GroupFigures, Stats};

use self::apply::{Applier, CHECKPOINT_RESERVE_SHARE, TICK, ToWrite, write_checkpoints};
use self::bell::{Bell, Ringing};
use self::raft::{Outcome, RAFT_TICK, ROUND_BYTES_MAX, ROUND_INTERVAL_MIN, RaftThread};
use crate::disk::Disk;
use crate::group::{CheckpointBase, Configuration, GroupStatus, HandOverError, Target};
use crate::identity::{GroupId, NodeId};
use crate::log::LogId;
use crate::node::{Node, NodeConfig, OpenError};
use crate::state::{Checkpoint, Spool, Spooler, StateError, StateStore, Write};
use crate::transport::Credit;

/// Bytes submitted and not yet applied above which submitters should pause.
const IN_FLIGHT_BYTES_HIGH_WATER: usize = 64 * 1024 * 1024;

/// Pause before a write is tried again on a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// What commands are applied to: all groups of a node. Lives on the apply thread.
pub trait StateMachine: Send + 'static {
    /// What can be asked in the order of the commands.
    type Query: Send + 'static;

    /// The log has entries of the group up to `last` when the pipeline starts. When those were proposed nobody here knows; the ones
    /// beyond the checkpoint are applied again.
    fn reread(&mut self, group: GroupId, last: u64);

    /// Applies one committed command. Deterministic. `live` is whether this node leads the group, and so acts upon what
    /// follows from it; it is false while the log is read again at start.
    fn apply(&mut self, group: GroupId, index: u64, command: &Bytes, live: bool);

    /// This node leads the group from here on. Everything committed before has been applied.
    fn lead(&mut self, group: GroupId, term: u64);

    /// This node does not lead the group, or not any more. `leader` is who does in `term`, if that is known.
    fn follow(&mut self, group: GroupId, term: u64, leader: Option<NodeId>);

    /// Answers a question. What its asker proposed to the group before has been applied.
    fn query(&mut self, query: Self::Query);

    /// Refuses a question: this node does not lead the group that it is for, or no majority answered.
    fn refuse(&mut self, query: Self::Query);

    /// A round was applied: what gathered may be handed out. May submit.
    fn flush(&mut self);

    /// Time passes; since the pipeline started. May submit.
    fn tick(&mut self, now: Duration);

    /// These are the members of a group from here on. Said of each group at the start, and after each restore.
    fn members(&mut self, group: GroupId, configuration: &Configuration);

    /// Reads what another node had of a group, on whatever thread fetched it: it may be long, and the apply thread keeps the lease.
    fn prepare(&self) -> Prepare {
        Arc::new(|_, _| Box::new(()))
    }

    /// Replaces the state of a group by what another node had after the entry at `index`: what is in `spool`, and what [`Self::prepare`]
    /// made of it.
    fn restore(&mut self, group: GroupId, index: u64, spool: &Arc<Spool>, prepared: Prepared);

    /// What changed in a group since this was last asked; empty if nothing did.
    /// `None`: not now, what was applied since the last one stays in the log.
    fn checkpoint(&mut self, group: GroupId) -> Option<Vec<Write>>;

    /// Whether a checkpoint should be written before it is due, because too much waits for one in memory.
    fn wants_checkpoint(&self) -> bool {
        false
    }

    /// Everything that [`Self::checkpoint`] returned and [`Self::restore`] was given is stored, and can be read back.
    fn stored(&mut self) {}
}

/// What a state machine made of another node's checkpoint, in terms of its own.
pub type Prepared = Box<dyn Any + Send>;

/// Makes it, from all that the checkpoint has of a group.
pub type Prepare = Arc<dyn Fn(GroupId, &Arc<Spool>) -> Prepared + Send + Sync>;

/// A checkpoint of another node's.
struct FetchedState {
    spool: Arc<Spool>,
    prepared: Prepared,
}

/// Why a checkpoint that is fetched broke off.
pub type FetchError = Box<dyn std::error::Error + Send + Sync>;

/// A checkpoint as it comes. It is whole only if it ends without an error.
pub type FetchedChunks<'a> = &'a mut dyn Iterator<Item = Result<Bytes, FetchError>>;

/// Takes in what is fetched of a checkpoint, chunk by chunk, as [`crate::state::chunks`] makes them; or hears that nothing is. Waits for
/// who sends it, and for the disk.
pub type Fetched = Box<dyn FnOnce(Option<FetchedChunks<'_>>) + Send>;

/// The way to other nodes. Nothing here may block.
pub trait Peers: Send + 'static {
    /// Sends a Raft message. It may be lost, and it may wait until [`Self::flush`].
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes, carries_entries: bool);

    /// Nothing more is sent for now.
    fn flush(&mut self) {}

    /// Fetches the newest checkpoint of a group from a node, and calls `fetched` once, from any thread.
    fn fetch_snapshot(&mut self, from: NodeId, group: GroupId, fetched: Fetched);

    /// A node that leads a group counts on entries that this node has acknowledged, and does not have: what is on its disk is an older
    /// copy, or its disk has lost what it said was safe. It must not go on.
    fn forgot(&mut self, _from: NodeId, _group: GroupId) {}
}

/// A node that is alone.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn send(&mut self, _: NodeId, _: GroupId, _: Bytes, _: bool) {}

    fn fetch_snapshot(&mut self, _: NodeId, _: GroupId, fetched: Fetched) {
        fetched(None);
    }
}

/// How the log and the checkpoints are kept.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// Who this is.
    pub node: NodeId,
    /// For what is drawn by chance; another one at each start.
    pub seed: u64,
    /// The groups, with the members that they begin with. Those that are not there yet are made; without members, they wait for
    /// a leader that makes this node one.
    pub groups: Vec<(GroupId, Configuration)>,
    /// Size of a segment of the log.
    pub segment_bytes: u64,
    /// Log after which a checkpoint is written.
    pub checkpoint_log_bytes: u64,
    /// Time after which a checkpoint is written, if anything changed.
    pub checkpoint_interval: Duration,
    /// Whether a round is synced before it is applied. If not, it is synced soon after.
    pub sync: bool,
    /// Whether the log may lack what this node acknowledged, see [`crate::data_dir::UnsyncedLog`].
    pub forgets: bool,
    /// Free space below which [`PipelineHandle::is_full`] says so.
    pub free_bytes_reserve: u64,
    /// What kind of command one of a group is, for the log.
    pub kind_of: fn(GroupId, &[u8]) -> &'static str,
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

/// A command that goes ahead of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Newer ones of the same group have higher ones, of whichever thread.
    pub number: u64,
    /// To apply it again does no harm.
    pub command: Bytes,
}

enum Submission<Q> {
    Propose(GroupId, Bytes),
    ProposeIn(GroupId, u64, Bytes),
    ProposeBehind(GroupId, Opening, Option<Bytes>),
    Query(GroupId, Q),
    Read(GroupId, Q),
    ReadIndex(GroupId, Q),
    Message(NodeId, GroupId, Bytes),
    Release(Credit),
    Unreachable(NodeId),
    Connected(NodeId, Option<u32>),
    Fetched(GroupId, Option<FetchedState>),
    Installed(GroupId, CheckpointBase),
    Place(GroupId, u64, Target),
    HandOver(GroupId, NodeId, Sender<Result<(), HandOverError>>),
    Status(Sender<Vec<(GroupId, GroupStatus)>>),
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
    Install(GroupId, FetchedState),
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

/// Submits to the groups. Cheap to clone.
pub struct PipelineHandle<Q> {
    submissions: Ringing<Submission<Q>>,
    notifications: Ringing<Q>,
    in_flight: Arc<AtomicUsize>,
    full: Arc<AtomicBool>,
    stats: Arc<Stats>,
}

impl<Q> Clone for PipelineHandle<Q> {
    fn clone(&self) -> Self {
        Self {
            submissions: self.submissions.clone(),
            notifications: self.notifications.clone(),
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
        let bell = Bell::new();
        let ((submissions, _), (notifications, _)) = (bell.channel(), bell.channel());
        Self { submissions, notifications, in_flight: Arc::default(), full: Arc::default(), stats: Arc::default() }
    }

    /// Submits a command to be committed and applied. One of more than [`COMMAND_BYTES_MAX`](crate::group::COMMAND_BYTES_MAX) is dropped, and
    /// counted.
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

    /// The same of any replica, in no order with what was proposed.
    pub fn read_index(&self, group: GroupId, query: Q) {
        self.submit(Submission::ReadIndex(group, query));
    }

    /// Submits a command, unless this node does not lead the group in `term` any more.
    pub fn propose_in(&self, group: GroupId, term: u64, command: Bytes) {
        self.in_flight.fetch_add(command.len(), Ordering::Relaxed);
        self.submit(Submission::ProposeIn(group, term, command));
    }

    /// Tells the state machine something that concerns no group. It does not wait for the disk, as what goes through the
    /// log does.
    pub fn notify(&self, query: Q) {
        // Fails only when the pipeline has stopped; then there is nobody to tell.
        drop(self.notifications.send(query));
    }

    /// Says where a group is to be kept, if this node leads it in `term`.
    pub fn place(&self, group: GroupId, term: u64, target: Target) {
        self.submit(Submission::Place(group, term, target));
    }

    /// Hands the leadership of a group over, if this node has it. The channel closes without an answer if the pipeline has
    /// stopped.
    #[must_use]
    pub fn hand_over(&self, group: GroupId, to: NodeId) -> Receiver<Result<(), HandOverError>> {
        let (answer, answered) = bounded(1);
        self.submit(Submission::HandOver(group, to, answer));
        answered
    }

    /// Submits a command, if any, behind an opening: that is proposed first, unless this one or a newer was since this node leads the group.
    /// What is submitted while nobody here leads is dropped, and the next command of the same thread may find that this node leads by now:
    /// it would be there without what went ahead of it.
    pub fn propose_behind(&self, group: GroupId, opening: Opening, command: Option<Bytes>) {
        self.in_flight.fetch_add(command.as_ref().map_or(0, Bytes::len), Ordering::Relaxed);
        self.submit(Submission::ProposeBehind(group, opening, command));
    }

    /// Hands in what a peer sent.
    pub fn step(&self, from: NodeId, group: GroupId, message: Bytes) {
        self.submit(Submission::Message(from, group, message));
    }

    /// Gives room back to a peer, once everything that was handed in before was dealt with.
    pub fn release(&self, credit: Credit) {
        self.submit(Submission::Release(credit));
    }

    /// What was sent to a peer may be lost.
    pub fn unreachable(&self, peer: NodeId) {
        self.submit(Submission::Unreachable(peer));
    }

    /// Which process of a peer has a connection over which it would be heard. See [`Node::connected`](crate::node::Node::connected).
    pub fn connected(&self, peer: NodeId, process: Option<u32>) {
        self.submit(Submission::Connected(peer, process));
    }

    /// Asks how all groups are. The channel closes without an answer if the pipeline has stopped.
    #[must_use]
    pub fn status(&self) -> Receiver<Vec<(GroupId, GroupStatus)>> {
        let (answer, answered) = bounded(1);
        self.submit(Submission::Status(answer));
        answered
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

    /// How long the log has waited for the disk to write or sync; 0 if it does not.
    #[must_use]
    pub fn disk_waited(&self) -> Duration {
        self.stats.under_way.age()
    }

    /// Bytes submitted and not applied yet.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What was done so far; outlives the pipeline.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}

/// How the end comes about, as the threads must know it.
#[derive(Debug, Default)]
struct End {
    /// It is asked for: nobody waits for room on the disk any more.
    is_asked: AtomicBool,
    /// The last round found no room, and is not written.
    is_full: AtomicBool,
}

/// A running pipeline.
pub struct Pipeline<Q> {
    handle: PipelineHandle<Q>,
    end: Arc<End>,
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
        store: StateStore,
        machine: M,
        peers: impl Peers,
    ) -> Result<Self, StartError> {
        let started = Instant::now();
        let parts = Parts::new(config, disk, store, machine, peers, Duration::ZERO)?;
        let Parts { raft, applier, mut store, bells, submitted, notified, to_write, handle, unwritten } = parts;
        let (rounds, committed) = bells.apply.channel();
        let (completed, stats) = (handle.submissions.clone(), Arc::clone(&handle.stats));
        let checkpoints = move || {
            for write in &to_write {
                if let Err(error) = write_checkpoints(&mut store, write, &completed, &stats) {
                    give_up("writing a checkpoint", &error);
                }
                unwritten.fetch_sub(1, Ordering::Release);
            }
        };
        let end = Arc::<End>::default();
        let (of_raft, of_applier) = (Arc::clone(&end), Arc::clone(&end));
        Ok(Self {
            raft: spawn("raft", move || run_raft(raft, started, &bells.raft, &submitted, &rounds, &of_raft)),
            applier: spawn("apply", move || {
                run_applier(applier, started, &bells.apply, &committed, &notified, &of_applier)
            }),
            checkpointer: spawn("checkpoint", checkpoints),
            handle,
            end,
        })
    }

    /// To submit with.
    #[must_use]
    pub fn handle(&self) -> &PipelineHandle<Q> {
        &self.handle
    }

    /// Commits and applies what was submitted, writes a last checkpoint, and ends the threads. On a full disk it ends them without: what
    /// found no room was acknowledged to nobody, and all else is in the log.
    pub fn stop(self) {
        self.end.is_asked.store(true, Ordering::Release);
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
            crate::ending::abort();
        }
    };
    match std::thread::Builder::new().name(name.to_owned()).spawn(guarded) {
        Ok(thread) => thread,
        Err(error) => {
            tracing::error!(%error, name, "the system gives no thread");
            crate::ending::abort();
        }
    }
}

/// A failed sync is never tried again: the kernel may have dropped what it could not write.
fn give_up(what: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, "{what} failed; this process ends, because what is on disk is no longer known");
    crate::ending::abort();
}

/// A group begins with a checkpoint that says who its members are.
fn make_groups(config: &PipelineConfig, store: &mut StateStore) -> Result<(), StateError> {
    let new = config.groups.iter().filter(|(group, _)| !store.bases().contains_key(group));
    let first = new.map(|(group, members)| Checkpoint { group: *group, base: first_base(members), writes: Vec::new() });
    let first: Vec<_> = first.collect();
    if first.is_empty() { Ok(()) } else { store.write(first) }
}

/// What wakes the threads.
struct Bells {
    raft: Bell,
    apply: Bell,
}

/// Without members it is as if there were nothing: a leader's snapshot says who they are.
fn first_base(members: &Configuration) -> CheckpointBase {
    if members.voters.is_empty() { CheckpointBase::default() } else { CheckpointBase::new_group(members.clone()) }
}

/// What a pipeline is made of, before anybody drives it.
struct Parts<M: StateMachine, P> {
    raft: RaftThread<M::Query, P>,
    applier: Applier<M>,
    store: StateStore,
    bells: Bells,
    submitted: Receiver<Submission<M::Query>>,
    notified: Receiver<M::Query>,
    to_write: Receiver<ToWrite>,
    handle: PipelineHandle<M::Query>,
    unwritten: Arc<AtomicUsize>,
}

impl<M: StateMachine, P: Peers> Parts<M, P> {
    fn new(
        config: PipelineConfig,
        disk: Arc<dyn Disk>,
        mut store: StateStore,
        mut machine: M,
        peers: P,
        now: Duration,
    ) -> Result<Self, StartError> {
        make_groups(&config, &mut store)?;
        let node_config = NodeConfig {
            forgets: config.forgets,
            free_bytes_reserve: config.free_bytes_reserve,
            ..NodeConfig::new(config.node, config.segment_bytes, config.sync, config.seed)
        };
        let node = Node::open(node_config, Arc::clone(&disk), store.bases().clone())?;
        for (group, status) in node.groups().filter_map(|group| Some((group, node.status(group)?))) {
            machine.reread(group, status.last);
            machine.members(group, &status.configuration);
        }
        let bells = Bells { raft: Bell::new(), apply: Bell::new() };
        let (submissions, submitted) = bells.raft.channel();
        let (notifications, notified) = bells.apply.channel();
        // One more than is begun at a time: a snapshot is written behind a checkpoint.
        let (checkpoints, to_write) = unbounded();
        let handle = PipelineHandle {
            submissions,
            notifications,
            in_flight: Arc::default(),
            full: Arc::default(),
            stats: Arc::new(Stats::of(
                store.bases().iter().map(|(&group, base)| (group, base.applied.index)),
                Arc::clone(node.log().under_way()),
            )),
        };
        let unwritten = Arc::<AtomicUsize>::default();
        let outcome = Outcome {
            round: Round::default(),
            peers,
            in_flight: Arc::clone(&handle.in_flight),
            stats: Arc::clone(&handle.stats),
            own: config.node,
            submissions: handle.submissions.clone(),
            prepare: machine.prepare(),
            spooler: Spooler::new(
                Arc::clone(&disk),
                store.reader(),
                config.seed,
                config.free_bytes_reserve / CHECKPOINT_RESERVE_SHARE,
            ),
            outstanding: BTreeMap::new(),
            commits: Default::default(),
            leaders: BTreeMap::new(),
            leading: BTreeSet::new(),
            queries: BTreeMap::new(),
            reads: BTreeSet::new(),
            reads_due: Vec::new(),
        };
        let raft = RaftThread {
            node,
            outcome,
            config: config.clone(),
            full: Arc::clone(&handle.full),
            stats: Arc::clone(&handle.stats),
            next_query: 0,
            ticked: now,
            now,
            looked: None,
            unsynced_since: None,
            opened: BTreeMap::new(),
            refused: Default::default(),
            too_long: Default::default(),
        };
        let applier = Applier {
            machine,
            applied: store.bases().clone(),
            checkpointed: store.bases().iter().map(|(&group, base)| (group, base.applied.index)).collect(),
            config,
            disk,
            in_flight: Arc::clone(&handle.in_flight),
            stats: Arc::clone(&handle.stats),
            checkpoints,
            unwritten: Arc::clone(&unwritten),
            tells_stored: true,
            is_held_up: false,
            is_told: true,
            last_checkpoint: (now, 0),
            wanted: false,
            ticked: now,
        };
        Ok(Self { raft, applier, store, bells, submitted, notified, to_write, handle, unwritten })
    }
}

fn run_raft<Q: Send + 'static, P: Peers>(
    mut raft: RaftThread<Q, P>,
    started: Instant,
    bell: &Bell,
    submitted: &Receiver<Submission<Q>>,
    rounds: &Ringing<Round<Q>>,
    end: &End,
) {
    // The first round hands out what is to be applied again, and elects a node that is alone.
    let (mut busy, mut stopping) = (true, false);
    let mut round_began = Duration::ZERO;
    while busy || !stopping {
        let idle = RAFT_TICK.saturating_sub(started.elapsed().saturating_sub(raft.ticked));
        let mut first = submitted.try_recv().ok();
        if first.is_none() && !busy {
            bell.wait(idle);
            first = submitted.try_recv().ok();
        }
        if first.is_some() && raft.has_peers() {
            // Asleep, not waiting for more: what comes meanwhile wakes nobody.
            std::thread::sleep((round_began + ROUND_INTERVAL_MIN).saturating_sub(started.elapsed()));
        }
        round_began = started.elapsed();
        if let Err(error) = raft.on_time(round_began) {
            give_up("syncing the log", &error);
        }
        let (mut next, mut bytes) = (first, 0);
        while let Some(submission) = next {
            match raft.take(submission) {
                Some(taken) => bytes += taken,
                None => stopping = true,
            }
            next = if bytes < ROUND_BYTES_MAX { submitted.try_recv().ok() } else { None };
        }
        let Some(more) = whole_round(&mut raft, started, end) else {
            end.is_full.store(true, Ordering::Release);
            tracing::warn!("stopped while the disk was full; what was acknowledged is in the log");
            break;
        };
        busy = more;
        raft.show(started.elapsed());
        if let Some(round) = raft.take_round()
            && rounds.send(round).is_err()
        {
            break;
        }
    }
    if let Err(error) = raft.node.end() {
        give_up("syncing the log", &error);
    }
}

/// Waits for room on the disk if there is none: what was accepted is not given up, unless all is to end (`None`).
fn whole_round<Q: Send + 'static, P: Peers>(raft: &mut RaftThread<Q, P>, started: Instant, end: &End) -> Option<bool> {
    loop {
        match raft.round(started.elapsed()) {
            Ok(Some(busy)) => return Some(busy),
            // Whoever asks for the end does so by a submission as well, and those are read between rounds.
            Ok(None) if end.is_asked.load(Ordering::Acquire) => return None,
            Ok(None) => std::thread::sleep(FULL_PAUSE),
            Err(error) => give_up("writing the log", &error),
        }
    }
}

fn run_applier<M: StateMachine>(
    mut applier: Applier<M>,
    started: Instant,
    bell: &Bell,
    committed: &Receiver<Round<M::Query>>,
    notified: &Receiver<M::Query>,
    end: &End,
) {
    loop {
        let (round, query) = (committed.try_recv(), notified.try_recv());
        let idle = round.is_err() && query.is_err();
        match round {
            Ok(round) => applier.apply(started.elapsed(), round),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => break,
        }
        // Its senders are the handles, one of which the machine's own submitter may hold: it never closes.
        if let Ok(query) = query {
            applier.notified(query);
        }
        applier.tick_if_due(started.elapsed());
        if idle {
            bell.wait(TICK);
        }
    }
    // Without room it would end the process half way. The log has what it would have.
    if !end.is_full.load(Ordering::Acquire) && applier.has_room() {
        applier.checkpoint();
    }
}

#[cfg(test)]
mod tests;
