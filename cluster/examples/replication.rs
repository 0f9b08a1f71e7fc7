//! How many packed commands of 200 bytes three voters in one thread commit and hand out in a second, in memory:
//! `cargo run --release -p kentongan-cluster --example replication`.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan_cluster::disk::{AppendFile, Disk, SyncSite};
use kentongan_cluster::group::{Committed, Role};
use kentongan_cluster::log::LogId;
use kentongan_cluster::node::{Node, NodeConfig, Sink};
use kentongan_cluster::{CheckpointBase, Configuration, GroupId, NodeId};

const GROUP: GroupId = GroupId(0);
const COMMANDS_A_ROUND: usize = 512;
const SECONDS: u64 = 3;

/// A disk that keeps nothing.
struct Nowhere;

impl AppendFile for Nowhere {
    fn append(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self, _: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for Nowhere {
    fn append_to(&self, _: &str) -> io::Result<Box<dyn AppendFile>> {
        Ok(Box::new(Nowhere))
    }

    fn read(&self, _: &str) -> io::Result<Vec<u8>> {
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

#[derive(Default)]
struct Host {
    sent: VecDeque<(NodeId, Bytes)>,
    applied: LogId,
    commands: u64,
    leads: bool,
}

impl Sink for Host {
    fn send(&mut self, to: NodeId, _: GroupId, message: Bytes, _: bool) {
        self.sent.push_back((to, message));
    }

    fn committed(&mut self, _: GroupId, id: LogId, what: Committed) {
        self.applied = id;
        if let Committed::Commands(commands) = what {
            self.commands += commands.len() as u64;
        }
    }

    fn role(&mut self, _: GroupId, _: u64, role: Role) {
        self.leads = role == Role::Leader { ready: true };
    }

    fn query(&mut self, _: GroupId, _: u64) {}
    fn query_dropped(&mut self, _: GroupId, _: u64) {}
    fn read_ready(&mut self, _: GroupId, _: u64, _: u64) {}
    fn read_dropped(&mut self, _: GroupId, _: u64) {}
    fn fetch_snapshot(&mut self, _: GroupId, _: NodeId, _: &CheckpointBase) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let configuration = Configuration::of((1..=3).map(NodeId));
    let checkpoints = BTreeMap::from([(GROUP, CheckpointBase::new_group(configuration.clone()))]);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let config = NodeConfig::new(NodeId(id), 64 << 20, true, id);
        nodes.push((Node::open(config, Arc::new(Nowhere), checkpoints.clone())?, Host::default()));
    }
    while !nodes.iter().any(|(_, host)| host.leads) {
        nodes.iter_mut().for_each(|(node, _)| node.tick());
        exchange(&mut nodes)?;
    }
    let command = [7; 200];
    let (began, mut ticked) = (Instant::now(), Instant::now());
    while began.elapsed() < Duration::from_secs(SECONDS) {
        for (node, host) in &mut nodes {
            if host.leads {
                for _ in 0..COMMANDS_A_ROUND {
                    node.propose(GROUP, &command)?;
                }
            }
        }
        exchange(&mut nodes)?;
        if ticked.elapsed() > Duration::from_millis(50) {
            ticked = Instant::now();
            for (node, host) in &mut nodes {
                node.tick();
                let checkpoint = CheckpointBase { applied: host.applied, configuration: configuration.clone() };
                node.checkpointed([(GROUP, checkpoint)])?;
            }
        }
    }
    let slowest = nodes.iter().map(|(_, host)| host.commands).min().unwrap_or(0);
    println!("{:.0} commands a second, handed out by all three", slowest as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

/// Rounds and messages until nobody has anything to say.
fn exchange(nodes: &mut [(Node, Host)]) -> Result<(), Box<dyn std::error::Error>> {
    loop {
        let mut quiet = true;
        for at in 0..nodes.len() {
            let (node, host) = &mut nodes[at];
            quiet &= !node.round(host)?.busy;
            let sent = std::mem::take(&mut host.sent);
            for (to, message) in sent {
                quiet = false;
                nodes[to.0 as usize - 1].0.step(NodeId(at as u64 + 1), GROUP, message)?;
            }
        }
        if quiet {
            return Ok(());
        }
    }
}
