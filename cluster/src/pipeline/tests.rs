use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread::ThreadId;

use super::*;
use crate::disk::SimDisk;
use crate::group::COMMAND_BYTES_MAX;
use crate::state::{MemoryState, Pair, cut};

/// Remembers every command of every group, and stores them.
struct Recorder {
    commands: BTreeMap<GroupId, Vec<Bytes>>,
    dirty: Vec<GroupId>,
    reread: BTreeMap<GroupId, u64>,
    shared: Arc<Mutex<BTreeMap<GroupId, Vec<Bytes>>>>,
    /// What was restored, and on which thread it was prepared.
    restored: Vec<(GroupId, u64, Vec<Pair>, ThreadId)>,
}

impl Recorder {
    fn from_store(store: &StateStore, shared: &Arc<Mutex<BTreeMap<GroupId, Vec<Bytes>>>>) -> Self {
        let commands = (0..2)
            .map(GroupId)
            .map(|group| {
                let stored = store.load(group).expect("loaded");
                (group, stored.into_iter().map(|(_, value)| Bytes::from(value)).collect())
            })
            .collect();
        Self { commands, dirty: Vec::new(), reread: BTreeMap::new(), shared: Arc::clone(shared), restored: Vec::new() }
    }
}

impl StateMachine for Recorder {
    type Query = mpsc::Sender<BTreeMap<GroupId, Vec<Bytes>>>;

    fn reread(&mut self, group: GroupId, last: u64) {
        self.reread.insert(group, last);
    }

    fn apply(&mut self, group: GroupId, index: u64, command: &Bytes, live: bool) {
        assert_eq!(live, index > self.reread[&group], "what a node that is alone does not propose it rereads");
        self.commands.entry(group).or_default().push(command.clone());
        self.dirty.push(group);
    }

    fn lead(&mut self, _: GroupId, _: u64) {}

    fn follow(&mut self, _: GroupId, _: u64, _: Option<NodeId>) {}

    fn refuse(&mut self, _: Self::Query) {}

    fn query(&mut self, query: Self::Query) {
        query.send(self.commands.clone()).expect("the asker waits");
    }

    fn flush(&mut self) {
        *self.shared.lock().expect("not poisoned") = self.commands.clone();
    }

    fn tick(&mut self, _: Duration) {}

    fn members(&mut self, _: GroupId, _: &Configuration) {}

    fn prepare(&self) -> Prepare {
        let all = |spool: &Spool| spool.range(&[], &[0xFF], usize::MAX).expect("it can be read");
        Arc::new(move |_, spool| Box::new((all(spool), std::thread::current().id())))
    }

    fn restore(&mut self, group: GroupId, index: u64, spool: &Arc<Spool>, prepared: Prepared) {
        let (prepared, thread) = *prepared.downcast::<(Vec<Pair>, ThreadId)>().expect("as it was prepared");
        assert_eq!(spool.base().applied.index, index);
        self.restored.push((group, index, prepared, thread));
    }

    fn checkpoint(&mut self, group: GroupId) -> Option<Vec<Write>> {
        if !self.dirty.contains(&group) {
            return None;
        }
        self.dirty.retain(|dirty| *dirty != group);
        let commands = self.commands.get(&group).cloned().unwrap_or_default();
        let numbered = commands.into_iter().enumerate();
        Some(numbered.map(|(at, command)| ((at as u64).to_be_bytes().to_vec(), Some(command.to_vec()))).collect())
    }
}

fn config() -> PipelineConfig {
    PipelineConfig {
        node: NodeId(1),
        seed: 1,
        groups: [0, 1].map(|group| (GroupId(group), Configuration::of([NodeId(1)]))).to_vec(),
        segment_bytes: 200,
        checkpoint_log_bytes: 300,
        checkpoint_interval: Duration::from_secs(3600),
        sync: true,
        forgets: false,
        free_bytes_reserve: 0,
        kind_of: |_, _| "of a test",
    }
}

/// Order within a submitter, questions included; restart with and without checkpoints gives the same commands.
#[test]
fn commands_are_applied_once_and_in_order_over_restarts() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let shared = Arc::default();
    let mut expected: BTreeMap<GroupId, Vec<Bytes>> = BTreeMap::from([(GroupId(0), vec![]), (GroupId(1), vec![])]);
    for start in 0..5 {
        let store = StateStore::open(directory.path(), Arc::clone(&disk)).expect("opened");
        let machine = Recorder::from_store(&store, &shared);
        let pipeline = Pipeline::start(config(), Arc::clone(&disk), store, machine, NoPeers).expect("started");
        for number in 0..50 {
            let group = GroupId(number % 2);
            let command = Bytes::from(format!("{start}-{number}"));
            expected.entry(group).or_default().push(command.clone());
            pipeline.handle().propose(group, command);
        }
        for group in [GroupId(0), GroupId(1)] {
            let (answer, answered) = mpsc::channel();
            pipeline.handle().query(group, answer);
            assert_eq!(answered.recv().expect("answered")[&group], expected[&group]);
        }
        pipeline.stop();
    }
}

/// Ends it on a thread of its own, so that one that never ends fails the test.
fn stop_in_time<Q: Send + 'static>(pipeline: Pipeline<Q>) {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        pipeline.stop();
        done.send(()).expect("the test waits");
    });
    is_done.recv_timeout(Duration::from_secs(20)).expect("it ends");
}

/// F10: a node whose disk is full ends when it is told to, with what it acknowledged, and without a checkpoint that would find no room.
#[test]
fn a_node_with_a_full_disk_ends_when_it_is_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = SimDisk::new();
    let log: Arc<dyn Disk> = Arc::new(disk.clone());
    let start = || {
        let store = StateStore::open(directory.path(), Arc::clone(&log)).expect("opened");
        let machine = Recorder::from_store(&store, &Arc::default());
        let rarely = PipelineConfig { checkpoint_log_bytes: u64::MAX, segment_bytes: 100_000, ..config() };
        Pipeline::start(rarely, Arc::clone(&log), store, machine, NoPeers).expect("started")
    };
    let ask = |pipeline: &Pipeline<<Recorder as StateMachine>::Query>| {
        let (answer, answered) = mpsc::channel();
        pipeline.handle().query(GroupId(0), answer);
        answered.recv().expect("answered")[&GroupId(0)].clone()
    };
    let pipeline = start();
    pipeline.handle().propose(GroupId(0), Bytes::from_static(b"acknowledged"));
    assert_eq!(ask(&pipeline), ["acknowledged"]);
    let stats = Arc::clone(pipeline.handle().stats());
    disk.set_free_bytes(Some(0));
    // Longer than what is written ahead of the log, so that it finds no room whatever that is.
    pipeline.handle().propose(GroupId(0), Bytes::from(vec![0; 1_000_000]));
    while !pipeline.handle().is_full() {
        std::thread::yield_now();
    }
    stop_in_time(pipeline);
    assert_eq!(stats.checkpoints.load(Ordering::Relaxed), 0, "there was no room for one");
    disk.set_free_bytes(None);
    let pipeline = start();
    assert_eq!(ask(&pipeline), ["acknowledged"], "from the log");
    stop_in_time(pipeline);
}

/// F10: on a disk that somebody else filled, beyond the reserve as well; and in a process that can open nothing more.
#[test]
fn a_checkpoint_waits_for_room_on_the_disk_and_for_descriptors() {
    let disk = SimDisk::new();
    let log: Arc<dyn Disk> = Arc::new(disk.clone());
    let store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&log)).expect("opened");
    let machine = Recorder::from_store(&store, &Arc::default());
    let often = PipelineConfig {
        checkpoint_interval: Duration::from_secs(1),
        checkpoint_log_bytes: u64::MAX,
        free_bytes_reserve: 800_000,
        ..config()
    };
    let mut pipeline = Inline::start(often, log, store, machine, NoPeers, Duration::ZERO).expect("started");
    pipeline.handle().propose(GroupId(0), Bytes::from_static(b"x"));
    let run = |pipeline: &mut Inline<Recorder, NoPeers>, milliseconds: u64| {
        let now = Duration::from_millis(milliseconds);
        for _ in 0..10 {
            pipeline.turn_raft(now).expect("the disk is well");
            pipeline.turn_apply(now);
        }
        pipeline.checkpoint_waits()
    };
    assert!(!run(&mut pipeline, 500), "none is due");
    disk.set_free_bytes(Some(99_999));
    assert!(!run(&mut pipeline, 2000), "there is no room");
    disk.set_free_bytes(Some(100_000));
    disk.set_out_of_descriptors(true);
    assert!(!run(&mut pipeline, 2200), "there is no descriptor");
    disk.set_out_of_descriptors(false);
    assert!(run(&mut pipeline, 2400));
}

/// Hands over what another node has.
fn hand_over(fetched: Fetched, base: &CheckpointBase, pairs: Vec<Pair>) {
    let chunks = cut(base, Box::new(pairs.into_iter().map(Ok)));
    fetched(Some(&mut chunks.map(|chunk| chunk.map_err(FetchError::from))));
}

/// Keeps what somebody else fetches.
#[derive(Debug, Default)]
struct Fetching(Vec<FetchedSlot>);

struct FetchedSlot(Fetched);

impl std::fmt::Debug for FetchedSlot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("FetchedSlot")
    }
}

impl Peers for Fetching {
    fn send(&mut self, _: NodeId, _: GroupId, _: Bytes, _: bool) {}

    fn fetch_snapshot(&mut self, _: NodeId, _: GroupId, fetched: Fetched) {
        self.0.push(FetchedSlot(fetched));
    }
}

/// F8: to read a long one takes longer than a lease lasts, and the thread that applies keeps the lease.
#[test]
fn another_nodes_checkpoint_is_prepared_by_the_thread_that_fetched_it() {
    let log: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&log)).expect("opened");
    let machine = Recorder::from_store(&store, &Arc::default());
    let mut parts =
        Parts::new(config(), log, store, machine, Fetching::default(), Duration::ZERO).expect("they can be made");
    let base = CheckpointBase { applied: LogId { index: 50, term: 7 }, ..CheckpointBase::default() };
    crate::node::Sink::fetch_snapshot(&mut parts.raft.outcome, GroupId(1), NodeId(2), &base);
    let FetchedSlot(fetched) = parts.raft.outcome.peers.0.pop().expect("it is to be fetched");
    let pairs = vec![(b"key".to_vec(), b"value".to_vec())];
    let sent = pairs.clone();
    let thread = std::thread::spawn(move || {
        hand_over(fetched, &base, sent);
        std::thread::current().id()
    });
    let thread = thread.join().expect("nothing goes wrong");
    let submission = parts.submitted.try_recv().expect("it was fetched");
    parts.raft.take(submission);
    parts.applier.apply(Duration::ZERO, std::mem::take(&mut parts.raft.outcome.round));
    assert_eq!(parts.applier.machine.restored, [(GroupId(1), 50, pairs, thread)]);
}

/// F10: it would end the process half way, and leave no room for the next start.
#[test]
fn another_nodes_checkpoint_waits_for_room_on_the_disk() {
    let disk = SimDisk::new();
    let log: Arc<dyn Disk> = Arc::new(disk.clone());
    let store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&log)).expect("opened");
    let machine = Recorder::from_store(&store, &Arc::default());
    let config = PipelineConfig { free_bytes_reserve: 800_000, ..config() };
    let mut parts =
        Parts::new(config, log, store, machine, Fetching::default(), Duration::ZERO).expect("they can be made");
    let base = CheckpointBase { applied: LogId { index: 50, term: 7 }, ..CheckpointBase::default() };
    let pairs = vec![(b"key".to_vec(), b"value".to_vec())];
    let sent = cut(&base, Box::new(pairs.clone().into_iter().map(Ok))).map(|chunk| chunk.expect("cut").len() as u64);
    // In its file, and then in the store's journal and tables.
    let enough = 100_000 + 3 * sent.sum::<u64>();
    for (free, is_taken) in [(enough - 1, false), (enough, true)] {
        disk.set_free_bytes(Some(free));
        crate::node::Sink::fetch_snapshot(&mut parts.raft.outcome, GroupId(1), NodeId(2), &base);
        let FetchedSlot(fetched) = parts.raft.outcome.peers.0.pop().expect("it is to be fetched");
        hand_over(fetched, &base, pairs.clone());
        let submission = parts.submitted.try_recv().expect("it was fetched");
        parts.raft.take(submission);
        parts.applier.apply(Duration::ZERO, std::mem::take(&mut parts.raft.outcome.round));
        assert_eq!(parts.applier.machine.restored.len(), usize::from(is_taken), "{free} bytes are free");
        if !is_taken {
            // Nobody is asked for what would find no more room than before.
            crate::node::Sink::fetch_snapshot(&mut parts.raft.outcome, GroupId(1), NodeId(2), &base);
            assert!(parts.raft.outcome.peers.0.is_empty());
            let submission = parts.submitted.try_recv().expect("it is offered again");
            parts.raft.take(submission);
        }
    }
}

/// P1: what was submitted before this node came to lead was dropped, and the next command of the same thread finds that it leads (found by
/// simulation, seed 31969).
#[test]
fn an_opening_goes_ahead_of_what_is_proposed_behind_it_once_in_each_term() {
    let log: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&log)).expect("opened");
    let shared = Arc::default();
    let machine = Recorder::from_store(&store, &shared);
    let group = GroupId(1);
    let others = Configuration::of([NodeId(2), NodeId(3)]);
    let mut groups = config().groups;
    groups.push((GroupId(2), others));
    let config = PipelineConfig { groups, ..config() };
    let mut parts = Parts::new(config, log, store, machine, NoPeers, Duration::ZERO).expect("they can be made");
    let opening = |number: u64| Opening { number, command: Bytes::from(format!("opening {number}")) };
    let submit = |parts: &mut Parts<Recorder, NoPeers>, group: GroupId, number: u64, command: Option<&'static str>| {
        parts.handle.propose_behind(group, opening(number), command.map(Bytes::from));
        let submission = parts.submitted.try_recv().expect("it was submitted");
        parts.raft.take(submission).expect("it is not the last")
    };
    let elected = (0..100).find(|_| {
        parts.raft.round(Duration::ZERO).expect("the disk is well");
        parts.raft.node.leads_in(group).is_some()
    });
    assert!(elected.is_some(), "it is alone");
    let term = parts.raft.node.leads_in(group).expect("it leads");

    assert_eq!(submit(&mut parts, GroupId(2), 1, Some("lost")), 4, "counted until it is dropped");
    assert!(!parts.raft.opened.contains_key(&GroupId(2)), "others lead that");
    submit(&mut parts, group, 1, Some("a"));
    submit(&mut parts, group, 1, Some("b"));
    submit(&mut parts, group, 2, None);
    submit(&mut parts, group, 1, Some("c"));
    submit(&mut parts, group, 2, Some("d"));
    assert_eq!(parts.raft.opened[&group], (term, 2));
    parts.raft.opened.insert(group, (term - 1, 2));
    submit(&mut parts, group, 2, Some("e"));
    for _ in 0..10 {
        parts.raft.round(Duration::ZERO).expect("the disk is well");
    }
    parts.applier.apply(Duration::ZERO, std::mem::take(&mut parts.raft.outcome.round));
    let expected = ["opening 1", "a", "b", "opening 2", "c", "d", "opening 2", "e"].map(Bytes::from);
    assert_eq!(parts.applier.machine.commands[&group], expected);
    assert_eq!(parts.raft.outcome.in_flight.load(Ordering::Relaxed), 0, "nothing waits");
}

/// In the log of one of several it would go to nobody, and whatever is proposed behind it would wait for ever.
#[test]
fn a_command_that_no_frame_holds_is_not_proposed_and_what_stands_behind_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = StateStore::open(directory.path(), Arc::clone(&disk)).expect("opened");
    let machine = Recorder::from_store(&store, &Arc::default());
    let config = PipelineConfig { segment_bytes: 1024 * 1024, checkpoint_log_bytes: u64::MAX, ..config() };
    let pipeline = Pipeline::start(config, disk, store, machine, NoPeers).expect("started");
    let [longest, too_long] = [0, 1].map(|more| Bytes::from(vec![7; COMMAND_BYTES_MAX + more]));
    for command in [&longest, &too_long, &Bytes::from_static(b"next")] {
        pipeline.handle().propose(GroupId(0), command.clone());
    }
    let (answer, answered) = mpsc::channel();
    pipeline.handle().query(GroupId(0), answer);
    let commands = answered.recv().expect("answered");
    assert_eq!(commands[&GroupId(0)].iter().map(Bytes::len).collect::<Vec<_>>(), [longest.len(), 4]);
    assert_eq!(pipeline.handle().stats().commands_too_long.load(Ordering::Relaxed), 1);
    let handle = pipeline.handle().clone();
    pipeline.stop();
    assert_eq!(handle.in_flight_bytes(), 0);
}
