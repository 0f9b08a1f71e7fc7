//! What it costs to get a command from a proposal to every replica: three voters in one thread, their logs in memory.
//!
//! Commands of 200 bytes, as many to each group at a time as gather during a sync, so that a round packs them into one entry. An
//! iteration ends when all three nodes were handed all of them; nothing is done with them then. What the figure leaves out are
//! the network, the disk, and the state machine. `cargo bench -p kentongan-cluster --bench replication`

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use kentongan_cluster::disk::{AppendFile, Disk, ReadFile, SyncSite};
use kentongan_cluster::group::{CheckpointBase, Committed, Configuration, Role};
use kentongan_cluster::log::LogId;
use kentongan_cluster::node::{Node, NodeConfig, Sink};
use kentongan_cluster::{GroupId, NodeId};

const NODES: u64 = 3;
const COMMAND_BYTES: usize = 200;

/// Of each group, at one time.
const COMMANDS: u64 = 1000;

/// Iterations after which what was handed out leaves the logs.
const CHECKPOINT_ITERATIONS: u64 = 64;

/// A disk that is as fast as memory. Nothing is read from it again.
struct MemoryDisk;

struct MemoryFile {
    bytes: Vec<u8>,
}

impl AppendFile for MemoryFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A segment's worth of memory, written over and over.
        if self.bytes.len() + bytes.len() > self.bytes.capacity() {
            self.bytes.clear();
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn reserve(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self, _: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn append_to(&self, _: &str) -> io::Result<Box<dyn AppendFile>> {
        Ok(Box::new(MemoryFile { bytes: Vec::with_capacity(64 * 1024 * 1024) }))
    }

    fn read(&self, _: &str) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn open_to_read(&self, _: &str) -> io::Result<Box<dyn ReadFile>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_directory(&self, _: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

/// What a node said: messages for others, and how many commands it was handed.
struct Outcome {
    from: NodeId,
    messages: VecDeque<(NodeId, NodeId, GroupId, Bytes)>,
    applied: BTreeMap<GroupId, LogId>,
    commands: u64,
    leads: usize,
}

impl Sink for Outcome {
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes, _: bool) {
        self.messages.push_back((self.from, to, group, message));
    }

    fn committed(&mut self, group: GroupId, id: LogId, what: Committed) {
        if let Committed::Commands(commands) = what {
            self.commands += commands.len() as u64;
        }
        self.applied.insert(group, id);
    }

    fn role(&mut self, _: GroupId, _: u64, role: Role) {
        self.leads += usize::from(role == Role::Leader { ready: true });
    }

    fn query(&mut self, _: GroupId, _: u64) {}

    fn query_dropped(&mut self, _: GroupId, _: u64) {}

    fn read_ready(&mut self, _: GroupId, _: u64, _: u64) {}

    fn read_dropped(&mut self, _: GroupId, _: u64) {}

    fn fetch_snapshot(&mut self, _: GroupId, _: NodeId, _: &CheckpointBase) {
        unreachable!("nobody falls behind");
    }
}

struct Cluster {
    nodes: Vec<(Node, Outcome)>,
    configuration: Configuration,
}

impl Cluster {
    /// Led by its first node.
    fn new(groups: u16) -> Self {
        let configuration = Configuration::of((1..=NODES).map(NodeId));
        let base = CheckpointBase::new_group(configuration.clone());
        let node = |id| {
            // The first node stands for election long before the others would.
            let election_ticks = if id == 1 { 10 } else { 1000 };
            let config = NodeConfig { election_ticks, ..NodeConfig::new(NodeId(id), 64 * 1024 * 1024, true, id) };
            let checkpoints = (0..groups).map(|group| (GroupId(group), base.clone())).collect();
            let node = Node::open(config, Arc::new(MemoryDisk), checkpoints).expect("an empty log");
            let from = NodeId(id);
            (node, Outcome { from, messages: VecDeque::new(), applied: BTreeMap::new(), commands: 0, leads: 0 })
        };
        let mut cluster = Self { nodes: (1..=NODES).map(node).collect(), configuration };
        while cluster.nodes[0].1.leads < usize::from(groups) {
            cluster.nodes[0].0.tick();
            cluster.settle();
        }
        cluster
    }

    /// Rounds and deliveries until nobody has anything to do or say.
    fn settle(&mut self) {
        loop {
            let mut busy = false;
            let mut messages = VecDeque::new();
            for (node, outcome) in &mut self.nodes {
                busy |= node.round(outcome).expect("memory does not fail").busy;
                messages.append(&mut outcome.messages);
            }
            if messages.is_empty() && !busy {
                return;
            }
            for (from, NodeId(to), group, message) in messages {
                let (node, _) = &mut self.nodes[to as usize - 1];
                node.step(from, group, message).expect("an honest peer");
            }
        }
    }

    fn replicate(&mut self, groups: u16, command: &[u8]) {
        let before = self.commands();
        for group in (0..groups).map(GroupId) {
            for _ in 0..COMMANDS {
                self.nodes[0].0.propose(group, command).expect("it leads");
            }
        }
        self.settle();
        let all = u64::from(groups) * COMMANDS;
        // A follower learns what is committed with the next message at the latest.
        if self.nodes.iter().zip(before).any(|((_, outcome), before)| outcome.commands < before + all) {
            (0..4).for_each(|_| self.nodes[0].0.tick());
            self.settle();
        }
        for ((_, outcome), before) in self.nodes.iter().zip(before) {
            assert_eq!(outcome.commands, before + all, "every replica has every command once");
        }
    }

    fn commands(&self) -> [u64; NODES as usize] {
        std::array::from_fn(|node| self.nodes[node].1.commands)
    }

    fn checkpoint(&mut self) {
        for (node, outcome) in &mut self.nodes {
            let base =
                |(&group, &applied)| (group, CheckpointBase { applied, configuration: self.configuration.clone() });
            node.checkpointed(outcome.applied.iter().map(base).collect::<Vec<_>>()).expect("memory does not fail");
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("200 bytes from a proposal to three replicas");
    let command = [7; COMMAND_BYTES];
    for groups in [1, 16] {
        let mut cluster = Cluster::new(groups);
        let mut iterations = 0;
        group.throughput(Throughput::Elements(u64::from(groups) * COMMANDS));
        group.bench_function(BenchmarkId::new("groups", groups), |bencher| {
            bencher.iter(|| {
                cluster.replicate(groups, &command);
                iterations += 1;
                if iterations % CHECKPOINT_ITERATIONS == 0 {
                    cluster.checkpoint();
                }
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
