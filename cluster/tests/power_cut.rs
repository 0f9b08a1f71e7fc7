//! What was applied survives a power cut and `kill -9` at any moment, on a disk that loses what was not synced; and each
//! sync is needed for that, or harmless for a reason that is given.
//!
//! Nothing here knows how a record looks: a node is commands in, commands applied, and the disk under it. What needs
//! real files (the state store, the data directory) is tried by `broker/tests/it/durability/sites.rs`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan_cluster::disk::{Disk, SimDisk, SyncSite, Unsynced};
use tempfile::TempDir;

use kentongan_cluster::directory::command::MemberRecord;
use kentongan_cluster::formation::{Formation, Ledger, Proposal, Terms};
use kentongan_cluster::group::{CheckpointBase, Configuration};
use kentongan_cluster::log::LogId;
use kentongan_cluster::pipeline::{NoPeers, Prepared};
use kentongan_cluster::state::{Checkpoint, MemoryState, Spool, Spooler, cut};
use kentongan_cluster::transport::ClusterId;
use kentongan_cluster::{GroupId, NodeId, Pipeline, PipelineConfig, StateMachine, StateStore, Write};

/// How a scenario ended badly.
type Failure = String;

/// A scenario on disks that ignore the syncs of one site.
type Scenario = fn(Option<SyncSite>) -> Result<(), Failure>;

enum Expectation {
    /// Without it, this fails.
    Needed(Scenario),
    /// Without it, this passes, and for this reason so would anything else.
    Harmless(Scenario, &'static str),
    /// Another test tries it.
    OnRealFiles,
}

fn expectation(site: SyncSite) -> Expectation {
    use Expectation::{Harmless, Needed, OnRealFiles};
    match site {
        SyncSite::LogRound | SyncSite::LogSegmentHeader | SyncSite::LogSegmentName => Needed(cut_at_any_operation),
        SyncSite::LogReopened | SyncSite::LogReopenedNames => Needed(kill_or_cut_and_cut_again),
        SyncSite::LogBackground => Needed(cut_after_a_sync_in_the_background),
        SyncSite::LogEnd => Harmless(
            cut_after_a_clean_end,
            "the last checkpoint has all that was applied, and is synced; what was written ahead and cut off is zeros",
        ),
        SyncSite::LogPurged => Harmless(
            cut_after_checkpoints,
            "segments that come back lie before the checkpoints: they are skipped and purged again",
        ),
        SyncSite::ManifestLines | SyncSite::ManifestName => Needed(cut_after_manifest_lines),
        SyncSite::ManifestRewritten | SyncSite::ManifestReplaced => Needed(cut_after_a_manifest_was_rewritten),
        SyncSite::SnapshotSpooled | SyncSite::SnapshotSpooledName => Needed(cut_while_a_snapshot_is_installed),
        SyncSite::Promise | SyncSite::PromiseName => Needed(cut_after_a_promise),
        SyncSite::Formation | SyncSite::FormationName => Needed(cut_after_a_formation),
        SyncSite::DataDirectory
        | SyncSite::Number
        | SyncSite::NumberName
        | SyncSite::LogDirectory
        | SyncSite::StateDirectory
        | SyncSite::StateKeyspaces
        | SyncSite::StateBatches => OnRealFiles,
    }
}

#[test]
fn each_sync_is_needed_or_harmless_for_a_reason() {
    for &site in SyncSite::ALL {
        match expectation(site) {
            Expectation::Needed(scenario) => {
                let failure = scenario(Some(site)).expect_err(&format!("nobody noticed that {site} was never synced"));
                println!("{site}: needed, or {failure}");
            }
            Expectation::Harmless(scenario, reason) => match scenario(Some(site)) {
                Ok(()) => println!("{site}: harmless: {reason}"),
                Err(failure) => panic!("{site} was taken for harmless ({reason}), but {failure}"),
            },
            Expectation::OnRealFiles => {}
        }
    }
}

/// P1, F2, F3, F9: with all syncs in place, nothing of the above goes wrong.
#[test]
fn nothing_applied_is_lost_whenever_the_power_goes() {
    let scenarios: [Scenario; 10] = [
        cut_at_any_operation,
        cut_after_a_sync_in_the_background,
        cut_with_a_checkpoint_ahead_of_the_log,
        cut_after_a_clean_end,
        cut_after_checkpoints,
        cut_after_manifest_lines,
        cut_after_a_manifest_was_rewritten,
        cut_while_a_snapshot_is_installed,
        cut_after_a_promise,
        cut_after_a_formation,
    ];
    for scenario in scenarios {
        assert_eq!(scenario(None), Ok(()));
    }
}

/// P1, F2, F3: an end within recovery is no worse.
#[test]
fn nothing_applied_is_lost_if_the_power_goes_again() {
    assert_eq!(kill_or_cut_and_cut_again(None), Ok(()));
}

const GROUP: GroupId = GroupId(0);

/// Remembers the commands that were applied, in order; a checkpoint stores them.
struct Recorder {
    commands: Vec<Bytes>,
    stored: usize,
    keeps_checkpoints: bool,
    applied: Arc<AtomicUsize>,
}

impl StateMachine for Recorder {
    type Query = mpsc::Sender<Vec<Bytes>>;

    fn reread(&mut self, _: GroupId, _: u64) {}

    fn apply(&mut self, _: GroupId, _: u64, command: &Bytes, _: bool) {
        self.commands.push(command.clone());
    }

    fn lead(&mut self, _: GroupId, _: u64) {}

    fn follow(&mut self, _: GroupId, _: u64, _: Option<NodeId>) {}

    fn refuse(&mut self, _: Self::Query) {}

    fn query(&mut self, query: Self::Query) {
        query.send(self.commands.clone()).expect("the asker waits");
    }

    fn flush(&mut self) {
        self.applied.store(self.commands.len(), Ordering::SeqCst);
    }

    fn tick(&mut self, _: Duration) {}

    fn members(&mut self, _: GroupId, _: &Configuration) {}

    fn restore(&mut self, _: GroupId, _: u64, _: &Arc<Spool>, _: Prepared) {}

    fn checkpoint(&mut self, _: GroupId) -> Option<Vec<Write>> {
        if !self.keeps_checkpoints || self.stored == self.commands.len() {
            return None;
        }
        let new = self.commands.iter().enumerate().skip(std::mem::replace(&mut self.stored, self.commands.len()));
        Some(new.map(|(at, command)| ((at as u64).to_be_bytes().to_vec(), Some(command.to_vec()))).collect())
    }
}

/// How a node runs.
#[derive(Clone, Copy)]
struct Mode {
    sync: bool,
    checkpoints: bool,
    segment_bytes: u64,
}

/// The log alone.
const LOG_ONLY: Mode = Mode { sync: true, checkpoints: false, segment_bytes: 200 };

/// A node that runs.
struct Node {
    pipeline: Pipeline<mpsc::Sender<Vec<Bytes>>>,
    applied: Arc<AtomicUsize>,
}

impl Node {
    /// `applied` will say how many commands the world knows to be applied.
    fn start(disk: &SimDisk, store: &Path, mode: Mode, applied: &Arc<AtomicUsize>) -> Result<Self, Failure> {
        let refused = |error: &dyn std::fmt::Display| format!("the node refused to start: {error}");
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let store = StateStore::open(store, Arc::clone(&disk)).map_err(|error| refused(&error))?;
        let stored = store.load(GROUP).map_err(|error| refused(&error))?;
        let commands: Vec<_> = stored.into_iter().map(|(_, command)| Bytes::from(command)).collect();
        let machine = Recorder {
            stored: commands.len(),
            commands,
            keeps_checkpoints: mode.checkpoints,
            applied: Arc::clone(applied),
        };
        let config = PipelineConfig {
            node: NodeId(1),
            seed: 1,
            groups: vec![(GroupId(0), Configuration::of([NodeId(1)]))],
            segment_bytes: mode.segment_bytes,
            checkpoint_log_bytes: 300,
            checkpoint_interval: Duration::from_secs(3600),
            sync: mode.sync,
            forgets: !mode.sync,
            free_bytes_reserve: 0,
            kind_of: |_, _| "of a test",
        };
        let pipeline = Pipeline::start(config, disk, store, machine, NoPeers).map_err(|error| refused(&error))?;
        Ok(Self { pipeline, applied: Arc::clone(applied) })
    }

    /// All commands applied, which the answer shows to the world.
    fn commands(&self) -> Vec<Bytes> {
        let (answer, answered) = mpsc::channel();
        self.pipeline.handle().query(GROUP, answer);
        answered.recv().expect("answered")
    }

    /// Proposes the commands of these numbers, one after the other, and waits until each is applied.
    fn propose(&self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            self.pipeline.handle().propose(GROUP, command(number));
            assert_eq!(self.commands().len(), number + 1, "applied");
            // Shown only now, so that a watch of the disk never sees more than the world did.
            wait_until("a round is flushed", || self.applied.load(Ordering::SeqCst) == number + 1);
        }
    }
}

fn command(number: usize) -> Bytes {
    Bytes::from(format!("command {number}"))
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a node on what is left, and sees whether it has the first `applied` commands, each once and in order.
fn check(disk: &SimDisk, store: &Path, mode: Mode, applied: usize) -> Result<(), Failure> {
    disk.ignore_sync(None);
    let node = Node::start(disk, store, mode, &Arc::default())?;
    let found = node.commands();
    node.pipeline.stop();
    if found.iter().enumerate().any(|(number, found)| *found != command(number)) {
        return Err(format!("what was applied is not what was proposed: {found:?}"));
    }
    if found.len() < applied {
        return Err(format!("{applied} commands were applied, {} are left", found.len()));
    }
    Ok(())
}

/// What a moment may leave of a disk, and how many commands had been applied by then.
type Image = (usize, SimDisk);

/// Collects what may be left at each operation of a disk.
fn watch(disk: &SimDisk, applied: &Arc<AtomicUsize>, ends: &'static [End]) -> Arc<Mutex<Vec<Image>>> {
    let images = Arc::new(Mutex::new(Vec::<Image>::new()));
    let (collected, applied) = (Arc::clone(&images), Arc::clone(applied));
    disk.watch(move |disk| {
        let applied = applied.load(Ordering::SeqCst);
        collected.lock().expect("not poisoned").extend(ends.iter().map(|end| (applied, end.of(disk))));
    });
    images
}

/// How a node ends.
enum End {
    Kill,
    /// With what is left of names and of bytes.
    Cut(Unsynced, Unsynced),
}

impl End {
    fn of(&self, disk: &SimDisk) -> SimDisk {
        match *self {
            Self::Kill => disk.after_kill(),
            Self::Cut(names, bytes) => disk.after_power_cut(names, bytes),
        }
    }
}

const CUTS: &[End] = &[
    End::Cut(Unsynced::Lost, Unsynced::Lost),
    End::Cut(Unsynced::Lost, Unsynced::Torn),
    End::Cut(Unsynced::Lost, Unsynced::Holed),
    End::Cut(Unsynced::Lost, Unsynced::Kept),
    End::Cut(Unsynced::Kept, Unsynced::Lost),
    End::Cut(Unsynced::Kept, Unsynced::Torn),
    End::Cut(Unsynced::Kept, Unsynced::Holed),
    End::Cut(Unsynced::Kept, Unsynced::Kept),
];

const KILLS_AND_CUTS: &[End] =
    &[End::Kill, End::Cut(Unsynced::Kept, Unsynced::Lost), End::Cut(Unsynced::Kept, Unsynced::Holed)];

/// The ends of a run of the log alone, at each operation of its disk, and the store that was made at its start.
fn run_log(ignored: Option<SyncSite>, commands: usize, ends: &'static [End]) -> (Vec<Image>, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = SimDisk::new();
    disk.ignore_sync(ignored);
    let applied = Arc::default();
    let node = Node::start(&disk, directory.path(), LOG_ONLY, &applied).expect("an empty disk");
    let images = watch(&disk, &applied, ends);
    node.propose(0..commands);
    node.pipeline.stop();
    disk.watch(|_| {});
    let images = std::mem::take(&mut *images.lock().expect("not poisoned"));
    assert!(images.len() > commands, "a disk that is used");
    (images, directory)
}

/// Judges what the power may leave.
fn check_all(images: Vec<Image>, store: &Path) -> Result<(), Failure> {
    // No checkpoint is written, so one store serves all.
    let mut seen = BTreeSet::new();
    // Of those that are alike, the last one claims most.
    let mut distinct = images.into_iter().rev().filter(|(_, disk)| seen.insert(disk.contents()));
    distinct.try_for_each(|(applied, disk)| check(&disk, store, LOG_ONLY, applied))
}

fn cut_at_any_operation(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let (images, store) = run_log(ignored, 12, CUTS);
    check_all(images, store.path())
}

fn kill_or_cut_and_cut_again(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let (images, directory) = run_log(ignored, 5, KILLS_AND_CUTS);
    for (_, disk) in images {
        let applied = Arc::default();
        let images = watch(&disk, &applied, CUTS);
        // No further segment is begun, which would make the names of all safe.
        let mode = Mode { segment_bytes: 100_000, ..LOG_ONLY };
        let node = Node::start(&disk, directory.path(), mode, &applied)?;
        let found = node.commands().len();
        node.propose(found..found + 1);
        node.pipeline.stop();
        disk.watch(|_| {});
        let images = std::mem::take(&mut *images.lock().expect("not poisoned"));
        check_all(images, directory.path())?;
    }
    Ok(())
}

/// Durability `memory`: what was applied is safe once it was synced in the background.
fn cut_after_a_sync_in_the_background(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = SimDisk::new();
    disk.ignore_sync(ignored);
    let mode = Mode { sync: false, ..LOG_ONLY };
    let node = Node::start(&disk, directory.path(), mode, &Arc::default())?;
    node.propose(0..3);
    let stats = Arc::clone(node.pipeline.handle().stats());
    // Its vote for itself was synced before.
    let before = stats.syncs.load(Ordering::SeqCst);
    wait_until("the log is synced in the background", || stats.syncs.load(Ordering::SeqCst) > before);
    let left = disk.after_power_cut(Unsynced::Lost, Unsynced::Lost);
    node.pipeline.stop();
    check(&left, directory.path(), mode, 3)
}

/// Durability `memory`: a checkpoint may have what the log lost. New records come behind it, and leave a gap in the log.
fn cut_with_a_checkpoint_ahead_of_the_log(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = SimDisk::new();
    disk.ignore_sync(ignored);
    let mode = Mode { sync: false, checkpoints: true, segment_bytes: 100_000 };
    let node = Node::start(&disk, directory.path(), mode, &Arc::default())?;
    node.propose(0..3);
    let stats = Arc::clone(node.pipeline.handle().stats());
    // Its vote for itself was synced before.
    let before = stats.syncs.load(Ordering::SeqCst);
    wait_until("the log is synced in the background", || stats.syncs.load(Ordering::SeqCst) > before);
    let mut proposed = 3;
    while stats.checkpoints.load(Ordering::SeqCst) == 0 {
        node.propose(proposed..proposed + 1);
        proposed += 1;
    }
    let left = disk.after_power_cut(Unsynced::Lost, Unsynced::Lost);
    node.pipeline.stop();
    let node = Node::start(&left, directory.path(), mode, &Arc::default())?;
    let found = node.commands().len();
    node.propose(found..found + 1);
    node.pipeline.stop();
    check(&left, directory.path(), mode, found + 1)
}

/// Durability `memory`: what was applied is safe after a clean end, and stays so when the node goes on.
fn cut_after_a_clean_end(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut disk = SimDisk::new();
    let mode = Mode { sync: false, checkpoints: true, segment_bytes: 100_000 };
    for start in 0..3 {
        disk.ignore_sync(ignored);
        let node = Node::start(&disk, directory.path(), mode, &Arc::default())?;
        if node.commands().len() < start * 3 {
            return Err(format!("{} commands of {} are left", node.commands().len(), start * 3));
        }
        node.propose(start * 3..start * 3 + 3);
        node.pipeline.stop();
        disk = disk.after_power_cut(Unsynced::Lost, Unsynced::Lost);
    }
    check(&disk, directory.path(), mode, 9)
}

/// Checkpoints are written, and the log before them goes.
fn cut_after_checkpoints(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = SimDisk::new();
    disk.ignore_sync(ignored);
    let mode = Mode { checkpoints: true, ..LOG_ONLY };
    let node = Node::start(&disk, directory.path(), mode, &Arc::default())?;
    let stats = Arc::clone(node.pipeline.handle().stats());
    let mut proposed = 0;
    while stats.segments_purged.load(Ordering::SeqCst) < 2 {
        assert!(proposed < 10_000, "segments behind checkpoints go");
        node.propose(proposed..proposed + 1);
        proposed += 1;
    }
    node.pipeline.stop();
    for names in [Unsynced::Lost, Unsynced::Torn, Unsynced::Kept] {
        check(&disk.after_power_cut(names, Unsynced::Lost), directory.path(), mode, proposed)?;
    }
    Ok(())
}

/// The store alone, so that no sync of the log's stands in for one of the manifest's.
fn write_checkpoints(ignored: Option<SyncSite>, groups: u16, checkpoints: u64) -> Result<(), Failure> {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = SimDisk::new();
    disk.ignore_sync(ignored);
    let mut store = StateStore::open(directory.path(), Arc::new(disk.clone())).expect("opened");
    for applied in 1..=checkpoints {
        let write = || (b"key".to_vec(), Some(applied.to_be_bytes().to_vec()));
        let base = CheckpointBase {
            applied: LogId { index: applied, term: 1 },
            configuration: Configuration::of([NodeId(1)]),
        };
        let one = |group| Checkpoint { group: GroupId(group), base: base.clone(), writes: vec![write()] };
        store.write((0..groups).map(one).collect()).expect("written");
    }
    drop(store);
    let left = disk.after_power_cut(Unsynced::Lost, Unsynced::Lost);
    let store = StateStore::open(directory.path(), Arc::new(left)).map_err(|error| format!("refused: {error}"))?;
    let bases = store.bases();
    match bases.values().all(|base| base.applied.index == checkpoints) && bases.len() == groups.into() {
        true => Ok(()),
        false => Err(format!("the store is at {bases:?}")),
    }
}

fn cut_after_manifest_lines(ignored: Option<SyncSite>) -> Result<(), Failure> {
    write_checkpoints(ignored, 2, 3)
}

/// So many that their lines do not fit, and the manifest is begun anew: cut at once, and when more was added to it.
fn cut_after_a_manifest_was_rewritten(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let (groups, manifest_bytes_max) = (1000, 64 * 1024);
    let lines_bytes = usize::from(groups) * "100 1 0 01234567\n".len();
    let fit = (manifest_bytes_max / lines_bytes) as u64;
    (fit..fit + 4).try_for_each(|checkpoints| write_checkpoints(ignored, groups, checkpoints))
}

/// The store has begun to replace what it had, and has nothing but the file to go on with.
fn cut_while_a_snapshot_is_installed(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let base =
        |index| CheckpointBase { applied: LogId { index, term: 1 }, configuration: Configuration::of([NodeId(1)]) };
    for operations in (1..200).step_by(3) {
        let (state, disk) = (MemoryState::default(), SimDisk::new());
        disk.ignore_sync(ignored);
        let on_disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut store = StateStore::in_memory(&state, Arc::clone(&on_disk)).expect("opened");
        let writes = vec![(b"old".to_vec(), Some(b"old".to_vec()))];
        store.write(vec![Checkpoint { group: GROUP, base: base(5), writes }]).expect("written");
        disk.cut_power_after(operations);
        let pairs = (0..20_u8).map(|number| Ok((vec![number], vec![number; 100_000])));
        let taken = Spooler::new(on_disk, store.reader(), 1, 0).take_in(GROUP, cut(&base(9), Box::new(pairs)));
        let is_installed = taken.is_ok_and(|spool| store.install(&spool).is_ok());
        drop(store);
        state.power_cut(|_| 0);
        let left = disk.after_power_cut(Unsynced::Lost, Unsynced::Lost);
        let store = StateStore::in_memory(&state, Arc::new(left)).map_err(|error| format!("refused: {error}"))?;
        let (index, pairs) = (store.bases()[&GROUP].applied.index, store.load(GROUP).expect("loaded").len());
        if !matches!((index, pairs, is_installed), (5, 1, false) | (9, 20, _)) {
            return Err(format!("the store is at {index} with {pairs} pairs"));
        }
    }
    Ok(())
}

/// The node whose promises are tried.
const ONE: NodeId = NodeId(1);

fn member(node: u64) -> MemberRecord {
    MemberRecord { node, name: format!("n{node}"), ..MemberRecord::default() }
}

/// What node 2 proposes.
fn proposal(number: u32) -> Proposal {
    Proposal::new(ClusterId(number.into()), number, &member(2), vec![1, 2])
}

fn ledger(disk: &SimDisk) -> Result<Ledger, Failure> {
    Ledger::open(Arc::new(disk.clone()), ONE).map_err(|error| format!("refused: {error}"))
}

/// Runs `change` on ledgers that find `before`, and sees whether at any moment, after `kill -9` and a restart too, what a
/// ledger says survives a power cut: its promise is never lower and its formation never gone.
fn promises_survive(
    ignored: Option<SyncSite>,
    before: &SimDisk,
    change: impl Fn(&mut Ledger) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let kills = Arc::new(Mutex::new(Vec::new()));
    let disk = before.after_kill();
    disk.ignore_sync(ignored);
    let killed = Arc::clone(&kills);
    disk.watch(move |disk| killed.lock().expect("not poisoned").push(disk.after_kill()));
    change(&mut ledger(&disk)?)?;
    disk.watch(|_| {});
    let mut ends = std::mem::take(&mut *kills.lock().expect("not poisoned"));
    ends.push(disk);
    for end in ends {
        end.ignore_sync(ignored);
        let said = ledger(&end)?;
        for cut in CUTS {
            let left = cut.of(&end);
            left.ignore_sync(None);
            let found = ledger(&left)?;
            if found.formation() != said.formation() {
                return Err(format!("{said:?}, and after a power cut {found:?}"));
            }
            if said.formation().is_none() && found.promise() != said.promise() {
                return Err(format!("{said:?}, and after a power cut {found:?}"));
            }
        }
    }
    Ok(())
}

/// Whatever a node promised, once, or again with a higher number.
fn cut_after_a_promise(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let promise = |number| {
        move |ledger: &mut Ledger| ledger.make_promise(&proposal(number)).map_err(|error| format!("refused: {error}"))
    };
    let disk = SimDisk::new();
    promises_survive(ignored, &disk, promise(1))?;
    promise(1)(&mut ledger(&disk)?)?;
    promises_survive(ignored, &disk, promise(2))
}

/// A node that adopts a cluster is part of it for ever.
fn cut_after_a_formation(ignored: Option<SyncSite>) -> Result<(), Failure> {
    let disk = SimDisk::new();
    ledger(&disk)?.make_promise(&proposal(1)).map_err(|error| error.to_string())?;
    let terms = Terms { groups: 2, voters: 3, settings: Bytes::new() };
    let formation =
        Formation { cluster_id: ClusterId(1), terms, members: vec![member(1), member(2)], is_joined: false };
    promises_survive(ignored, &disk, |ledger| ledger.adopt(formation.clone()).map_err(|error| error.to_string()))
}
