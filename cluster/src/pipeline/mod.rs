//! From a proposal to an applied command, on a cluster of one.
//!
//! Everything that gathered becomes one round: one record a group, one write, one sync. Then the round goes to the apply
//! thread, and the writer takes the next one, so a round is synced while the one before is applied. What one thread
//! submits keeps its order, questions included.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::disk::{Disk, SyncSite};
use crate::log::{Log, LogError, Record};
use crate::state::{Checkpoint, StateStore, Write};

/// Bytes submitted and not yet applied above which submitters should pause.
const IN_FLIGHT_BYTES_HIGH_WATER: usize = 64 * 1024 * 1024;

/// Bytes of one round: bounds the time that its first command waits for the others.
const ROUND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Rounds that may wait to be applied.
const ROUNDS_MAX: usize = 16;

/// How often the state machine hears that time passes.
const TICK: Duration = Duration::from_millis(100);

/// How often free space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// Pause before a write is tried again on a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// Names a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u16);

/// What commands are applied to: all groups of a node. Lives on the apply thread.
pub trait StateMachine: Send + 'static {
    /// What can be asked in the order of the commands.
    type Query: Send + 'static;

    /// Applies one committed command. Deterministic. `live` is false while the log is read again at start.
    fn apply(&mut self, group: GroupId, index: u64, command: &Bytes, live: bool);

    /// Answers a question. What its asker proposed before has been applied.
    fn query(&mut self, query: Self::Query);

    /// A round was applied: what gathered may be handed out. May submit.
    fn flush(&mut self);

    /// Time passes. May submit.
    fn tick(&mut self, now: Instant);

    /// What changed in a group since this was last asked; empty if nothing did.
    fn checkpoint(&mut self, group: GroupId) -> Vec<Write>;
}

/// How the log and the checkpoints are kept.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// Groups are numbered from 0.
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

enum Submission<Q> {
    Propose(GroupId, Bytes),
    Query(Q),
    Purge(BTreeMap<GroupId, u64>),
    Stop,
}

enum Item<Q> {
    Command(GroupId, u64, Bytes),
    Query(Q),
}

struct Round<Q> {
    items: Vec<Item<Q>>,
    bytes: usize,
    log_position: u64,
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
    /// Submits a command to be committed and applied.
    pub fn propose(&self, group: GroupId, command: Bytes) {
        self.in_flight.fetch_add(command.len(), Ordering::Relaxed);
        self.submit(Submission::Propose(group, command));
    }

    /// Submits a question.
    pub fn query(&self, query: Q) {
        self.submit(Submission::Query(query));
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
    writer: JoinHandle<()>,
    applier: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
}

impl<Q> std::fmt::Debug for Pipeline<Q> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pipeline").finish_non_exhaustive()
    }
}

impl<Q: Send + 'static> Pipeline<Q> {
    /// Applies again what the log has beyond the checkpoints, and starts the threads.
    ///
    /// # Errors
    /// The log is damaged, or does not reach back to the checkpoints.
    pub fn start<M: StateMachine<Query = Q>>(
        config: PipelineConfig,
        disk: Arc<dyn Disk>,
        store: StateStore,
        mut machine: M,
    ) -> Result<Self, LogError> {
        let mut applied: BTreeMap<GroupId, u64> = store.applied().clone();
        let log = recover(&config, disk, &mut applied, &mut machine)?;
        let (submissions, submitted) = unbounded();
        let (rounds, committed) = bounded(ROUNDS_MAX);
        let (checkpoints, to_write) = bounded(1);
        let handle =
            PipelineHandle { submissions, in_flight: Arc::default(), full: Arc::default(), stats: Arc::default() };
        let checkpointed = Arc::new(AtomicBool::new(true));
        let writer = Writer {
            next: applied.clone(),
            log,
            config: config.clone(),
            full: Arc::clone(&handle.full),
            stats: Arc::clone(&handle.stats),
            disk_checked: None,
            unsynced_since: None,
        };
        let applier = Applier {
            machine,
            applied,
            config,
            in_flight: Arc::clone(&handle.in_flight),
            checkpoints,
            idle: Arc::clone(&checkpointed),
            last_checkpoint: (Instant::now(), 0),
        };
        let purge = handle.submissions.clone();
        let stats = Arc::clone(&handle.stats);
        Ok(Self {
            writer: spawn("log", move || writer.run(&submitted, &rounds)),
            applier: spawn("apply", move || applier.run(&committed)),
            checkpointer: spawn("checkpoint", move || {
                write_checkpoints(store, &to_write, &purge, &checkpointed, &stats)
            }),
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
        for thread in [self.writer, self.applier, self.checkpointer] {
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

fn recover<M: StateMachine>(
    config: &PipelineConfig,
    disk: Arc<dyn Disk>,
    applied: &mut BTreeMap<GroupId, u64>,
    machine: &mut M,
) -> Result<Log, LogError> {
    let mut seen: BTreeMap<GroupId, u64> = BTreeMap::new();
    let mut gap = None;
    let log = Log::open(disk, config.segment_bytes, |record| {
        let done = applied.entry(record.group).or_insert(0);
        let previous = seen.insert(record.group, record.index);
        let expected = *done + 1;
        // In order, and without a gap but where the checkpoint has what is missing: records that were not synced may be
        // lost after it was taken, and new ones are numbered behind it.
        let fits = record.index <= expected && previous.is_none_or(|previous| record.index > previous);
        if !fits && gap.is_none() {
            gap = Some(LogError::Gap { group: record.group.0, expected, found: record.index });
        }
        if gap.is_none() && record.index > *done {
            *done = record.index;
            for command in unpack(record.payload) {
                machine.apply(record.group, record.index, &command, false);
            }
        }
    })?;
    if let Some(gap) = gap {
        return Err(gap);
    }
    // A group whose log ends before its checkpoint has lost what the checkpoint was made from: harmless, but new
    // entries must be numbered after the checkpoint, which `applied` sees to.
    Ok(log)
}

/// Many commands in one entry: their lengths stand before them.
fn pack(commands: &[Bytes]) -> Bytes {
    let mut packed = BytesMut::with_capacity(commands.iter().map(|command| command.len() + 4).sum());
    for command in commands {
        packed.put_u32_le(command.len() as u32);
        packed.extend_from_slice(command);
    }
    packed.freeze()
}

fn unpack(mut packed: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        if packed.len() < 4 {
            return None;
        }
        let length = (packed.get_u32_le() as usize).min(packed.len());
        Some(packed.split_to(length))
    })
}

struct Writer {
    log: Log,
    /// Index of the last entry of each group.
    next: BTreeMap<GroupId, u64>,
    config: PipelineConfig,
    full: Arc<AtomicBool>,
    stats: Arc<Stats>,
    disk_checked: Option<Instant>,
    unsynced_since: Option<Instant>,
}

impl Writer {
    fn run<Q>(mut self, submitted: &Receiver<Submission<Q>>, rounds: &Sender<Round<Q>>) {
        let mut stopping = false;
        while !stopping {
            let first = submitted.recv_timeout(SPACE_INTERVAL);
            self.check_space();
            self.sync_if_old();
            let first = match first {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut round = Round { items: Vec::new(), bytes: 0, log_position: 0 };
            let mut commands: BTreeMap<GroupId, Vec<Bytes>> = BTreeMap::new();
            let mut next = Some(first);
            while let Some(submission) = next {
                stopping |= self.take(submission, &mut round, &mut commands);
                next = if round.bytes < ROUND_BYTES_MAX { submitted.try_recv().ok() } else { None };
            }
            self.commit(&mut round, commands);
            if rounds.send(round).is_err() {
                break;
            }
        }
        if let Err(error) = self.log.sync(SyncSite::LogEnd) {
            give_up("syncing the log", &error);
        }
    }

    fn take<Q>(
        &mut self,
        submission: Submission<Q>,
        round: &mut Round<Q>,
        commands: &mut BTreeMap<GroupId, Vec<Bytes>>,
    ) -> bool {
        match submission {
            Submission::Propose(group, command) => {
                let gathered = commands.entry(group).or_default();
                if gathered.is_empty() {
                    *self.next.entry(group).or_insert(0) += 1;
                }
                round.bytes += command.len();
                round.items.push(Item::Command(group, self.next[&group], command.clone()));
                gathered.push(command);
            }
            Submission::Query(query) => round.items.push(Item::Query(query)),
            Submission::Purge(checkpointed) => self.purge(&checkpointed),
            Submission::Stop => return true,
        }
        false
    }

    fn commit<Q>(&mut self, round: &mut Round<Q>, commands: BTreeMap<GroupId, Vec<Bytes>>) {
        if !commands.is_empty() {
            for (group, commands) in commands {
                self.stats.commands.fetch_add(commands.len() as u64, Ordering::Relaxed);
                self.log.add(&Record { group, index: self.next[&group], payload: pack(&commands) });
            }
            self.write();
            if self.config.sync {
                self.sync(SyncSite::LogRound);
                if let Err(error) = self.log.rotate_if_full() {
                    give_up("beginning a segment of the log", &error);
                }
            } else {
                self.unsynced_since.get_or_insert_with(Instant::now);
            }
        }
        self.stats.log_bytes.store(self.log.bytes(), Ordering::Relaxed);
        round.log_position = self.log.position();
    }

    /// Waits for room if there is none: what was accepted is not given up.
    fn write(&mut self) {
        loop {
            match self.log.write() {
                Ok(()) => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    if !self.full.swap(true, Ordering::Relaxed) {
                        tracing::error!("the disk is full: nothing is acknowledged until there is room again");
                    }
                    std::thread::sleep(FULL_PAUSE);
                }
                Err(error) => give_up("writing the log", &error),
            }
        }
    }

    fn sync(&mut self, site: SyncSite) {
        let began = Instant::now();
        if let Err(error) = self.log.sync(site) {
            give_up("syncing the log", &error);
        }
        self.unsynced_since = None;
        self.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.stats.sync_nanoseconds.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    fn sync_if_old(&mut self) {
        if self.unsynced_since.is_some_and(|since| since.elapsed() >= SPACE_INTERVAL) {
            self.sync(SyncSite::LogBackground);
            if let Err(error) = self.log.rotate_if_full() {
                give_up("beginning a segment of the log", &error);
            }
        }
    }

    fn purge(&mut self, checkpointed: &BTreeMap<GroupId, u64>) {
        match self.log.purge(checkpointed) {
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
        if let Ok(free) = self.log.free_bytes() {
            let full = free < self.config.free_bytes_reserve;
            if self.full.swap(full, Ordering::Relaxed) != full {
                tracing::warn!(free_bytes = free, full, "free space on disk crossed its reserve");
            }
        }
    }
}

struct Applier<M: StateMachine> {
    machine: M,
    applied: BTreeMap<GroupId, u64>,
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
                Item::Command(group, index, command) => {
                    self.machine.apply(group, index, &command, true);
                    self.applied.insert(group, index);
                }
                Item::Query(query) => self.machine.query(query),
            }
        }
        self.in_flight.fetch_sub(round.bytes, Ordering::Relaxed);
        self.machine.flush();
        self.checkpoint_if_due(round.log_position);
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
        for group in (0..self.config.groups).map(GroupId) {
            let writes = self.machine.checkpoint(group);
            if !writes.is_empty() {
                let applied = self.applied.get(&group).copied().unwrap_or(0);
                checkpoints.push(Checkpoint { group, applied, writes });
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
    purge: &Sender<Submission<Q>>,
    idle: &AtomicBool,
    stats: &Stats,
) {
    for checkpoints in to_write {
        if let Err(error) = store.write(checkpoints) {
            give_up("writing a checkpoint", &error);
        }
        stats.checkpoints.fetch_add(1, Ordering::Relaxed);
        // Fails only at the end, when the log stays as it is.
        drop(purge.send(Submission::Purge(store.applied().clone())));
        idle.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
