//! What is left of a cluster whose quorum is lost for good, on the disks of survivors, and a new cluster made of it.
//!
//! What survivors have is only read, so nothing is lost by trying; in the end they are marked, so that no node starts from them. Of each group the copy that goes furthest is taken, by Raft's own
//! measure: the term of its last entry, then its index. If that is one of a majority of the group's voters, it
//! has everything that was committed. Otherwise it may lack what only the lost nodes had; and the entries at its end may never have been committed,
//! so that nobody was told that they took effect. They are taken all the same: that a majority had them cannot be ruled out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::DecodeError;

use crate::data_dir::{DataDir, DataDirError};
use crate::directory::command::{self, MemberRecord};
use crate::directory::{Directory, STATE_KEY, SnapshotError};
use crate::disk::{Disk, RealDisk};
use crate::formation::{Formation, Ledger, LedgerError};
use crate::group::{CheckpointBase, Configuration, unpack};
use crate::identity::{GroupId, NodeId};
use crate::log::{EntryKind, GroupLog, Log, LogEntry, LogError, LogId};
use crate::seed::{Seed, SeedError};
use crate::state::{Pair, PairIter, StateError, StateStore};
use crate::transport::ClusterId;

/// As nodes have it by default; nothing is written that would fill a segment.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Why survivors cannot be read, or no new cluster be made of them.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Not the data directory of a node of a cluster.
    #[error(
        "{path} is no data directory of a node of a cluster: name the one that a survivor was started with (--data-dir)"
    )]
    NoNode {
        /// What was named.
        path: PathBuf,
    },
    /// The same node twice, which would count it twice.
    #[error("{path} is of the same node as another one that was named: name each survivor once")]
    Twice {
        /// The second.
        path: PathBuf,
    },
    /// Of another cluster.
    #[error("{path} is of cluster {found}, and the first one of {first}: survivors are of the same cluster")]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// That of the first.
        first: ClusterId,
    },
    /// None of them has what every node should have.
    #[error(
        "no survivor has a copy of the directory, without which nothing is known of the cluster: name others, or restore a backup"
    )]
    NoDirectory,
    /// The directory contradicts itself.
    #[error(transparent)]
    Directory(#[from] SnapshotError),
    /// The directory's log does.
    #[error("the directory's log holds something that is no command: {0}")]
    Command(#[from] DecodeError),
    /// A directory cannot be opened.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// What is formed there cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A log is damaged.
    #[error("{path}: {error}")]
    Log {
        /// Whose.
        path: PathBuf,
        /// What is wrong with it.
        error: LogError,
    },
    /// The state cannot be read, or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk failed.
    #[error("{path}: {error}")]
    Io {
        /// Whose.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// The new cluster cannot be made.
    #[error(transparent)]
    Seed(#[from] SeedError),
}

/// A node's data directory, while no process uses it.
pub struct Survivor {
    data_dir: DataDir,
    formation: Formation,
    store: StateStore,
    logs: BTreeMap<GroupId, GroupLog>,
}

impl std::fmt::Debug for Survivor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Survivor").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// A group as one survivor has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupCopy {
    /// Where its log ends.
    pub last: LogId,
    /// Up to where it knew that entries were committed.
    pub committed: u64,
    /// The members as of its checkpoint.
    pub configuration: Configuration,
    checkpoint: LogId,
    /// Whether the entries behind that change them.
    changes_members: bool,
}

impl Survivor {
    /// Opens the data directory of a node that is stopped, as its next start would: a torn end of its log is cut off.
    ///
    /// # Errors
    /// It is none, is in use, or is damaged.
    pub fn open(path: &Path) -> Result<Self, RecoveryError> {
        if !path.join("format").exists() {
            return Err(RecoveryError::NoNode { path: path.to_owned() });
        }
        let data_dir = DataDir::open_survivor(path)?;
        let ledger = Ledger::open(Arc::new(RealDisk::existing(path)), data_dir.node())?;
        let formation = ledger.formation().cloned().ok_or_else(|| RecoveryError::NoNode { path: path.to_owned() })?;
        let io = |error| RecoveryError::Io { path: path.to_owned(), error };
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&path.join("log")).map_err(io)?);
        let store = StateStore::open(&path.join("state"), Arc::clone(&disk))?;
        let opened = Log::open(disk, SEGMENT_BYTES);
        let (_, logs) = opened.map_err(|error| RecoveryError::Log { path: path.to_owned(), error })?;
        Ok(Self { data_dir, formation, store, logs })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.data_dir.path()
    }

    /// Who it was.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.data_dir.node()
    }

    /// The cluster that it belonged to.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.formation.cluster_id
    }

    /// What it has of a group. `None`: nothing, or nothing that anybody counted on.
    fn copy(&self, group: GroupId) -> Result<Option<GroupCopy>, RecoveryError> {
        let Some(base) = self.store.bases().get(&group).filter(|base| base.applied.index > 0) else {
            return Ok(None);
        };
        let CheckpointBase { applied, configuration } = base.clone();
        let log = self.logs.get(&group);
        if let Some(log) = log.filter(|log| log.base.index > applied.index) {
            let error = LogError::Gap { group, expected: applied.index + 1, found: log.base.index + 1 };
            return Err(RecoveryError::Log { path: self.path().to_owned(), error });
        }
        let behind = self.behind(group, applied);
        let last = behind.last().map_or(applied, |entry| entry.id);
        let changes_members = behind.iter().any(|entry| entry.kind != EntryKind::Commands);
        let committed = log.map_or(0, |log| log.hard.commit).clamp(applied.index, last.index);
        Ok(Some(GroupCopy { last, committed, configuration, checkpoint: applied, changes_members }))
    }

    /// The entries behind its checkpoint, if its log goes on from there.
    fn behind(&self, group: GroupId, checkpoint: LogId) -> &[LogEntry] {
        let log = self.logs.get(&group).filter(|log| log.term_at(checkpoint.index) == Some(checkpoint.term));
        let entries = log.map_or(&[][..], |log| &log.entries);
        &entries[entries.partition_point(|entry| entry.id.index <= checkpoint.index)..]
    }

    fn pairs(&self, group: GroupId) -> Result<PairIter, RecoveryError> {
        let opened = self.store.reader().open(group)?;
        Ok(opened.map_or_else(|| Box::new(std::iter::empty()) as PairIter, |(_, pairs)| pairs))
    }
}

/// What is to become of a group.
#[derive(Debug)]
pub struct GroupPlan {
    /// Which.
    pub group: GroupId,
    /// As each survivor has it, in their order.
    pub copies: Vec<Option<GroupCopy>>,
    /// Whose copy is taken. `None`: nobody has one, and it will be empty.
    pub chosen: Option<usize>,
    /// Who voted in it, as far as is known.
    pub voters: BTreeSet<NodeId>,
    /// Whether so many of these are survivors that nothing committed can be missing.
    pub is_whole: bool,
}

/// What can be made of survivors.
#[derive(Debug)]
pub struct Recovery {
    survivors: Vec<Survivor>,
    directory: Directory,
    directory_term: u64,
    groups: Vec<GroupPlan>,
}

impl Recovery {
    /// Looks at survivors, and changes nothing.
    ///
    /// # Errors
    /// They are not of one cluster, or one of them is damaged.
    pub fn plan(survivors: Vec<Survivor>) -> Result<Self, RecoveryError> {
        for (number, survivor) in survivors.iter().enumerate() {
            let (path, first) = (survivor.path().to_owned(), survivors[0].cluster_id());
            if survivors[..number].iter().any(|other| other.node() == survivor.node()) {
                return Err(RecoveryError::Twice { path });
            }
            if survivor.cluster_id() != first {
                return Err(RecoveryError::OtherCluster { path, found: survivor.cluster_id(), first });
            }
        }
        let directory_plan = plan(&survivors, GroupId::DIRECTORY, &Directory::new())?;
        let newest = directory_plan.chosen.zip(directory_plan.chosen.and_then(|at| directory_plan.copies[at].clone()));
        let (at, copy) = newest.ok_or(RecoveryError::NoDirectory)?;
        let directory = read_directory(&survivors[at], &copy)?;
        let groups = directory.groups().chain([GroupId::DIRECTORY]);
        let groups = groups.map(|group| plan(&survivors, group, &directory)).collect::<Result<_, _>>()?;
        Ok(Self { survivors, directory, directory_term: copy.last.term, groups })
    }

    /// The cluster that ends.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.survivors[0].cluster_id()
    }

    /// The survivors, in the order in which they were given.
    #[must_use]
    pub fn survivors(&self) -> &[Survivor] {
        &self.survivors
    }

    /// The newest directory that is left.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The groups, the directory last.
    #[must_use]
    pub fn groups(&self) -> &[GroupPlan] {
        &self.groups
    }

    /// Members that are not among the survivors: whatever only they have is given up.
    #[must_use]
    pub fn given_up(&self) -> BTreeSet<NodeId> {
        let survives = |node: &NodeId| self.survivors.iter().any(|survivor| survivor.node() == *node);
        self.directory.members().keys().copied().filter(|node| !survives(node)).collect()
    }

    /// Makes the data directory of the only node of a new cluster in `into`, which must be empty or not exist. `me` is that node as
    /// others shall know it, but for its id. `last` is a command that comes after all that a group had.
    ///
    /// # Errors
    /// The disk failed, or there is something in `into`.
    pub fn write(self, into: &Path, me: MemberRecord, last: &Bytes) -> Result<ClusterId, RecoveryError> {
        let mut seed = Seed::begin(into, me)?;
        for plan in &self.groups {
            let chosen = plan.chosen.and_then(|at| Some((&self.survivors[at], plan.copies[at].as_ref()?)));
            if let Some((survivor, copy)) = chosen.filter(|_| plan.group != GroupId::DIRECTORY) {
                let behind = survivor.behind(plan.group, copy.checkpoint).iter().map(without_members).collect();
                let pairs = survivor.pairs(plan.group)?.map(|pair| pair.map_err(RecoveryError::from));
                seed.fill(plan.group, copy.checkpoint, pairs, behind, last)?;
            }
        }
        let terms = self.survivors[0].formation.terms.clone();
        let cluster = seed.finish(self.directory, self.directory_term, terms)?;
        // Two clusters with the same sessions would be worse than none. What they have is still there.
        self.survivors.iter().try_for_each(|survivor| survivor.data_dir.end())?;
        Ok(cluster)
    }
}

/// The same entry, which leaves the members of the group as they are.
fn without_members(entry: &LogEntry) -> LogEntry {
    match entry.kind {
        EntryKind::Commands => entry.clone(),
        EntryKind::ConfChange | EntryKind::ConfChangeV2 => {
            LogEntry { id: entry.id, kind: EntryKind::Commands, payload: Bytes::new() }
        }
    }
}

fn plan(survivors: &[Survivor], group: GroupId, directory: &Directory) -> Result<GroupPlan, RecoveryError> {
    let placement = directory.placement(group);
    let mut copies = Vec::new();
    for survivor in survivors {
        let is_kept = |copy: &GroupCopy| {
            // What a group left behind as it moved away is old.
            copy.configuration.contains(survivor.node())
                || placement.is_some_and(|placed| placed.keeps(survivor.node()))
        };
        copies.push(survivor.copy(group)?.filter(is_kept));
    }
    let place =
        |(at, copy): (usize, &Option<GroupCopy>)| copy.as_ref().map(|copy| (copy.last.term, copy.last.index, at));
    // Of equals the first.
    let newest =
        copies.iter().enumerate().filter_map(place).max_by_key(|&(term, index, at)| (term, index, usize::MAX - at));
    let chosen = newest.map(|(.., at)| at);
    let taken = chosen.and_then(|at| copies[at].as_ref());
    let placed = placement.map(Configuration::from).unwrap_or_default().voters;
    let (known, outgoing) = match taken {
        Some(copy) => (copy.configuration.voters.clone(), copy.configuration.voters_outgoing.clone()),
        None => (placed.clone(), Vec::new()),
    };
    // Whoever was to vote in it may vote by now.
    let next = if taken.is_some_and(|copy| copy.changes_members) { placed } else { Vec::new() };
    let has_copy = |node: &NodeId| survivors.iter().zip(&copies).any(|(of, copy)| of.node() == *node && copy.is_some());
    let is_majority = |voters: &[NodeId]| voters.iter().filter(|node| has_copy(node)).count() * 2 > voters.len();
    let is_whole = [&known, &outgoing, &next].into_iter().all(|voters| voters.is_empty() || is_majority(voters));
    let voters = [known, outgoing, next].into_iter().flatten().collect();
    let is_whole = taken.is_some() && is_whole;
    Ok(GroupPlan { group, copies, chosen, voters, is_whole })
}

/// The directory after everything that a copy has, as every node applies it.
fn read_directory(survivor: &Survivor, copy: &GroupCopy) -> Result<Directory, RecoveryError> {
    let is_state = |pair: &Result<Pair, StateError>| pair.as_ref().map_or(true, |(key, _)| key == STATE_KEY);
    let mut directory = match survivor.pairs(GroupId::DIRECTORY)?.find(is_state).transpose()? {
        Some((_, bytes)) => Directory::restore(&bytes)?,
        None => Directory::new(),
    };
    for entry in survivor.behind(GroupId::DIRECTORY, copy.checkpoint) {
        for bytes in unpack(entry.payload.clone()).take_while(|_| entry.kind == EntryKind::Commands) {
            if let Some(command) = command::decode(bytes)? {
                directory.apply(entry.id.index, command);
            }
        }
        directory.skip(entry.id.index);
    }
    if directory.cluster_id().is_none() {
        return Err(RecoveryError::NoDirectory);
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::command::{Command, Form, Join};
    use crate::disk::SyncSite;
    use crate::formation::Terms;
    use crate::group::{pack, write_anew};
    use crate::log::HardState;

    const CLUSTER: ClusterId = ClusterId(7);

    fn member(node: NodeId, name: &str) -> MemberRecord {
        MemberRecord { node: node.get(), name: name.to_owned(), ..MemberRecord::default() }
    }

    /// A node's data directory, with these groups.
    struct Disks {
        directory: tempfile::TempDir,
        nodes: Vec<NodeId>,
    }

    impl Disks {
        fn of(nodes: usize) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let made = (0..nodes)
                .map(|number| DataDir::open(&directory.path().join(number.to_string())).expect("made").node());
            Self { nodes: made.collect(), directory }
        }

        fn path(&self, number: usize) -> PathBuf {
            self.directory.path().join(number.to_string())
        }

        fn records(&self) -> Vec<MemberRecord> {
            self.nodes.iter().enumerate().map(|(number, &node)| member(node, &format!("n{number}"))).collect()
        }

        /// Three groups that the first three nodes vote in. The nodes live.
        fn directory(&self) -> Directory {
            let mut directory = Directory::new();
            let cluster_id = CLUSTER.0.to_be_bytes().to_vec().into();
            let form = Form { cluster_id, groups: 3, members: self.records(), voters: 3, ..Form::default() };
            directory.apply(6, Command::Form(form));
            for (index, record) in self.records().into_iter().enumerate() {
                directory.apply(7 + index as u64, Command::Join(Join { member: Some(record), attempt: 1, newest: 0 }));
            }
            directory
        }

        /// Writes what a node has: of each group its last checkpoint, what stands in that, and the entries behind.
        fn write(&self, number: usize, groups: &[(u16, LogId, &str, Vec<LogEntry>)]) {
            let path = self.path(number);
            let mut ledger = Ledger::open(Arc::new(RealDisk::existing(&path)), self.nodes[number]).expect("a ledger");
            let terms = Terms { groups: 3, voters: 3, settings: Bytes::from_static(b"settings") };
            let formation = Formation { cluster_id: CLUSTER, terms, members: self.records(), is_joined: false };
            ledger.join(formation).expect("joined");
            let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&path.join("log")).expect("a disk"));
            let (mut log, _) = Log::open(Arc::clone(&disk), SEGMENT_BYTES).expect("a log");
            let mut store = StateStore::open(&path.join("state"), disk).expect("a store");
            let configuration = Configuration::of(self.nodes[..3].iter().copied());
            for (group, applied, value, entries) in groups {
                let (group, applied) = (GroupId(*group), *applied);
                let base = CheckpointBase { applied, configuration: configuration.clone() };
                let pair = Ok::<_, StateError>((b"k".to_vec(), value.as_bytes().to_vec()));
                store.fill(group, base, [pair]).expect("filled");
                let log_of = GroupLog { base: applied, entries: entries.clone(), hard: HardState::default() };
                write_anew(&mut log, group, &log_of, HardState { term: 9, vote: 3, commit: applied.index });
            }
            let directory = self.directory();
            let applied = LogId { index: directory.applied(), term: 5 };
            let pair = Ok::<_, StateError>((STATE_KEY.to_vec(), directory.snapshot()));
            let configuration = Configuration::of(self.nodes.iter().copied());
            store.fill(GroupId::DIRECTORY, CheckpointBase { applied, configuration }, [pair]).expect("filled");
            log.write().and_then(|()| log.sync(SyncSite::LogEnd)).expect("written");
        }

        fn plan(&self, numbers: &[usize]) -> Recovery {
            let survivors = numbers.iter().map(|&number| Survivor::open(&self.path(number)).expect("opened"));
            Recovery::plan(survivors.collect()).expect("planned")
        }
    }

    fn at(term: u64, index: u64) -> LogId {
        LogId { index, term }
    }

    fn entry(id: LogId, kind: EntryKind) -> LogEntry {
        LogEntry { id, kind, payload: pack(&[Bytes::from_static(b"command")]) }
    }

    fn taken(recovery: &Recovery) -> Vec<(u16, Option<usize>, bool)> {
        recovery.groups().iter().map(|plan| (plan.group.0, plan.chosen, plan.is_whole)).collect()
    }

    /// Raft's measure: a later term counts more than a longer log.
    #[test]
    fn of_each_group_the_copy_is_taken_that_goes_furthest() {
        let disks = Disks::of(5);
        let longer = vec![entry(at(2, 11), EntryKind::Commands), entry(at(2, 12), EntryKind::Commands)];
        disks.write(0, &[(0, at(2, 10), "a", longer), (1, at(2, 10), "b", Vec::new())]);
        let later = vec![entry(at(3, 11), EntryKind::Commands)];
        disks.write(1, &[(0, at(2, 10), "a", later)]);
        disks.write(3, &[(2, at(2, 10), "left behind", Vec::new())]);

        let alone = disks.plan(&[0]);
        assert_eq!(
            taken(&alone),
            [(0, Some(0), false), (1, Some(0), false), (2, None, false), (u16::MAX, Some(0), false)]
        );
        assert_eq!(alone.given_up().len(), 4);
        drop(alone);
        let both = disks.plan(&[0, 1]);
        assert_eq!(
            taken(&both),
            [(0, Some(1), true), (1, Some(0), false), (2, None, false), (u16::MAX, Some(0), false)]
        );
        drop(both);
        assert_eq!(taken(&disks.plan(&[3]))[2], (2, None, false), "what a node has that was no member any more is old");
    }

    #[test]
    fn survivors_are_different_nodes_of_one_cluster() {
        let disks = Disks::of(3);
        disks.write(0, &[]);
        let nothing = Survivor::open(&disks.path(1));
        assert!(matches!(nothing, Err(RecoveryError::NoNode { .. })), "{nothing:?}");
        let missing = disks.directory.path().join("missing");
        assert!(matches!(Survivor::open(&missing), Err(RecoveryError::NoNode { .. })));
        assert!(!missing.exists(), "and none is made");
    }

    /// A node that was about to vote may have voted since.
    #[test]
    fn a_group_whose_members_were_changing_is_whole_only_if_both_majorities_are_here() {
        let disks = Disks::of(3);
        disks.write(0, &[(0, at(2, 10), "a", vec![entry(at(2, 11), EntryKind::ConfChangeV2)])]);
        disks.write(1, &[(0, at(2, 10), "a", Vec::new())]);
        let recovery = disks.plan(&[0, 1]);
        let mut directory = disks.directory();
        let elsewhere = crate::directory::Placement { voters: [NodeId(98), NodeId(99)].into(), ..Default::default() };
        assert!(plan(&recovery.survivors, GroupId(0), &directory).expect("a plan").is_whole);
        directory.apply(100, Command::Placement(elsewhere.command(GroupId(0))));
        assert!(!plan(&recovery.survivors, GroupId(0), &directory).expect("a plan").is_whole);
    }

    #[test]
    fn the_new_node_is_the_only_voter_of_what_was_taken_and_of_what_is_empty() {
        let disks = Disks::of(3);
        let behind = vec![entry(at(2, 11), EntryKind::Commands), entry(at(4, 12), EntryKind::ConfChangeV2)];
        disks.write(0, &[(0, at(2, 10), "a", behind.clone()), (1, at(2, 10), "b", Vec::new())]);
        let into = disks.directory.path().join("new");
        let last = Bytes::from_static(b"last");
        let cluster = disks.plan(&[0]).write(&into, member(NodeId(1), "n0"), &last).expect("written");
        assert_ne!(cluster, CLUSTER);

        let made = DataDir::open(&into).expect("finished");
        assert!(!disks.nodes.contains(&made.node()), "another node");
        let ledger = Ledger::open(Arc::new(RealDisk::existing(&into)), made.node()).expect("a ledger");
        assert_eq!(ledger.formation().map(|formation| formation.cluster_id), Some(cluster));
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&into.join("log")).expect("a disk"));
        let store = StateStore::open(&into.join("state"), Arc::clone(&disk)).expect("a store");
        assert!(store.bases().values().all(|base| base.configuration.is_only(made.node())), "{:?}", store.bases());
        assert_eq!(store.bases().len(), 4);
        let value = |group| store.load(GroupId(group)).expect("loaded").into_iter().map(|(_, value)| value).next();
        assert_eq!([value(0), value(1), value(2)], [Some(b"a".to_vec()), Some(b"b".to_vec()), None]);
        let (_, logs) = Log::open(disk, SEGMENT_BYTES).expect("a log");
        let without = LogEntry { payload: Bytes::new(), ..entry(at(4, 12), EntryKind::Commands) };
        let ended = LogEntry { payload: pack(std::slice::from_ref(&last)), ..entry(at(4, 13), EntryKind::Commands) };
        assert_eq!(logs[&GroupId(0)].entries, [behind[0].clone(), without, ended]);
        assert_eq!(logs[&GroupId(0)].hard, HardState { term: 4, vote: 0, commit: 13 });

        let started = DataDir::open(&disks.path(0));
        assert!(matches!(started, Err(DataDirError::Ended { .. })), "two clusters with the same sessions: {started:?}");
        drop(disks.plan(&[0]));
        let pairs = store.load(GroupId::DIRECTORY).expect("loaded");
        let directory = Directory::restore(&pairs[0].1).expect("a directory");
        assert_eq!(directory.members().keys().copied().collect::<Vec<_>>(), [made.node()]);
        assert_eq!(directory.cluster_id(), Some(&cluster.0.to_be_bytes()[..]));
        assert_eq!(directory.succeeded(), [CLUSTER.0.to_be_bytes().to_vec()]);
        assert_eq!(store.bases()[&GroupId::DIRECTORY].applied.index, directory.applied());
    }
}
