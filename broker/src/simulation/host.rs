//! A simulated machine, which outlives what runs on it, and the broker's process there.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use kentongan_cluster::directory::command::MemberRecord;
use kentongan_cluster::disk::{Disk, SimDisk, SyncSite, Unsynced};
use kentongan_cluster::formation::{Formation, Terms};
use kentongan_cluster::pipeline::{FetchError, Inline, InlineError};
use kentongan_cluster::state::{MemoryState, StateReader, StateStore};
use kentongan_cluster::transport::ClusterId;
use kentongan_cluster::{GroupId, NodeId};
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

use super::checks::{Replicas, Watched};
use super::network::{Network, SimLinks};
use crate::auth::Authority;
use crate::clock::{Clock, ManualClock};
use crate::config::{ListenerConfig, Settings};
use crate::connection::MemoryStream;
use crate::groups::search::{Lapse, heir};
use crate::groups::start::{self, Setting};
use crate::later;
use crate::listener::ListenerContext;
use crate::metrics::Metrics;
use crate::moving::mover::Mover;
use crate::peers::links::LinkSink;
use crate::plants::{Plant, is_planted};
use crate::random::Random;
use crate::router::{Shared, SteppedArbiter};

/// Of messages that weigh about 130 bytes each.
const UNDER_WAY_BYTES_MAX: usize = 1_500;

/// Wall clock at which machines boot, as milliseconds since 1970.
const WALL_MS: u64 = 1_800_000_000_000;

/// Threads that serve connections, on each node.
pub(super) const ARBITERS: usize = 2;

/// What all nodes of a run have in common.
pub(super) struct Cluster {
    pub(super) settings: Arc<Settings>,
    pub(super) listener: Arc<ListenerContext>,
    /// `None`: the only node is alone, without a cluster.
    pub(super) formation: Option<Formation>,
    /// As those have it that joined later.
    pub(super) joined: Formation,
    pub(super) network: Network,
    pub(super) replicas: Arc<Mutex<Replicas>>,
}

impl Cluster {
    /// `founders` of the nodes form it, the others join.
    pub(super) fn new(settings: Settings, nodes: usize, founders: usize, alone: bool, network: Network) -> Self {
        let settings = Arc::new(settings);
        let address = SocketAddr::from(([127, 0, 0, 1], 1883));
        let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &settings, address));
        let formation = Formation {
            cluster_id: ClusterId(7),
            terms: Terms {
                groups: settings.storage.groups.get(),
                voters: settings.cluster.voters.get(),
                settings: start::group_config(&settings).encode(),
            },
            members: (0..founders).map(|host| member(host, network.id(host))).collect(),
            is_joined: false,
        };
        let members = (0..nodes).map(|host| member(host, network.id(host))).collect();
        let joined = Formation { members, is_joined: true, ..formation.clone() };
        let replicas = Arc::new(Mutex::new(Replicas::new()));
        Self { settings, listener, formation: (!alone).then_some(formation), joined, network, replicas }
    }
}

/// The node that is at a place.
pub(super) fn member(node: usize, id: NodeId) -> MemberRecord {
    let levels = later::feature_levels();
    MemberRecord {
        node: id.0,
        name: format!("node-{}", node + 1),
        peer_address: format!("127.0.0.1:{}", 7000 + node),
        client_address: format!("127.0.0.1:{}", 1883 + node),
        feature_level: levels.max,
        is_advertised: false,
        zone: String::new(),
        feature_level_min: levels.min,
    }
}

/// A machine: its disk, its clocks, and the process there, if one runs.
pub(super) struct Host {
    pub(super) index: usize,
    disk: SimDisk,
    state: MemoryState,
    clock: Arc<ManualClock>,
    /// How fast its clock runs, in thousandths.
    pub(super) rate: u64,
    /// World time up to which the clock has run.
    clock_at_ns: u64,
    pub(super) paused: bool,
    pub(super) process: Option<Process>,
    /// Starts so far; what was meant for an earlier one is for nobody.
    pub(super) starts: u64,
    pub(super) metrics: Metrics,
    /// What the process is to find missing when it syncs.
    pub(super) ignored_sync: Option<SyncSite>,
    /// Its disk was told to fail: the process may end by itself.
    pub(super) disk_fails: bool,
    /// It may be unable to start.
    pub(super) is_disk_full: bool,
    /// Faults because of which its disk takes long just now.
    pub(super) disk_stalls: u32,
    /// How long a sync takes, by each fault because of which it takes long just now.
    pub(super) slow_ms: Vec<u64>,
    /// Until then the disk is at the last one.
    pub(super) syncs_until_ns: u64,
    /// It belongs to the cluster: it was there when that was formed, or was told that it is a member.
    pub(super) is_member: bool,
    /// It did not form the cluster.
    pub(super) is_joined: bool,
    /// The program there is one feature level ahead.
    pub(super) ahead: bool,
}

/// A process of the broker.
pub(super) struct Process {
    pub(super) shared: Arc<Shared>,
    pub(super) arbiters: Vec<SteppedArbiter>,
    pub(super) pipeline: Inline<Watched, SimLinks>,
    pub(super) sink: LinkSink,
    reader: StateReader,
    clock: Clock,
    ahead: bool,
    /// Somebody was told to give it its next turn.
    pub(super) scheduled: bool,
    /// The thread that waits for the disk goes on until it has committed something, and hands that over late.
    pub(super) stalls_late: bool,
    /// Until then a node that is alone takes nobody in: its groups still hold what an earlier start held.
    fenced: Option<mpsc::Receiver<()>>,
    mover: Mover,
    seconds_up: u64,
    lapse: Lapse,
}

/// Which thread of a process had its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Idle,
    Raft,
    RaftThatStalls,
    Apply,
    Checkpoint,
    Arbiter(usize),
}

impl Host {
    pub(super) fn new(index: usize, rate: u64) -> Self {
        Self {
            index,
            disk: SimDisk::new(),
            state: MemoryState::default(),
            clock: Arc::new(ManualClock::new(WALL_MS)),
            rate,
            clock_at_ns: 0,
            paused: false,
            process: None,
            starts: 0,
            metrics: Metrics::isolated(),
            ignored_sync: None,
            disk_fails: false,
            is_disk_full: false,
            disk_stalls: 0,
            slow_ms: Vec::new(),
            syncs_until_ns: 0,
            is_member: true,
            is_joined: false,
            ahead: false,
        }
    }

    /// Its disk is gone, with all that was on it: another node is to be there.
    pub(super) fn lose_disk(&mut self) {
        self.kill();
        (self.disk, self.state) = (SimDisk::new(), MemoryState::default());
        (self.disk_fails, self.is_disk_full) = (false, false);
        self.await_membership();
    }

    /// It does not start before it is a member.
    pub(super) fn await_membership(&mut self) {
        self.is_member = false;
        self.is_joined = true;
    }

    /// Its clock runs, whether or not anything else does.
    pub(super) fn run_clock(&mut self, now_ns: u64) {
        let by_ns = (now_ns - self.clock_at_ns) * self.rate / 1000;
        self.clock_at_ns = now_ns;
        self.clock.advance(Duration::from_nanos(by_ns));
    }

    /// Somebody sets the wall clock, `by_ms` ahead of where it started or behind.
    pub(super) fn jump_wall(&mut self, now_ns: u64, by_ms: i64) {
        self.run_clock(now_ns);
        let up_ms = Clock::manual(Arc::clone(&self.clock)).boottime_ns() / 1_000_000;
        self.clock.set_wall_ms((WALL_MS + up_ms).saturating_add_signed(by_ms));
    }

    pub(super) fn set_free_bytes(&self, free: Option<u64>) {
        self.disk.set_free_bytes(free);
    }

    /// Each operation of its disk fails, after so many more.
    pub(super) fn fail_disk_after(&self, operations: u64) {
        self.disk.cut_power_after(operations);
    }

    /// Starts the process on what is stored.
    ///
    /// # Errors
    /// What is stored cannot be used.
    pub(super) fn start(&mut self, now_ns: u64, cluster: &Cluster, random: &mut SmallRng) -> anyhow::Result<()> {
        later::set_ahead(self.ahead);
        self.run_clock(now_ns);
        self.starts += 1;
        self.disk.ignore_sync(self.ignored_sync);
        let clock = Clock::manual(Arc::clone(&self.clock));
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let store = StateStore::in_memory(&self.state, Arc::clone(&disk))?;
        let reader = store.reader();
        let setting = Setting {
            settings: Arc::clone(&cluster.settings),
            authority: Authority::default(),
            arbiters: ARBITERS,
            clock: clock.clone(),
            random: Random::seeded(random.random()),
            on_end: |_| (),
        };
        let node = cluster.network.id(self.index);
        let links = SimLinks { node: self.index, network: cluster.network.clone() };
        let (assembly, machine) = match &cluster.formation {
            None => start::assemble_alone(setting, &self.metrics, &store, node)?,
            Some(formation) => {
                let formation = if self.is_joined { &cluster.joined } else { formation };
                let me = member(self.index, node);
                let nonce = random.random();
                start::assemble_member(setting, &self.metrics, &store, formation, me, nonce)?
            }
        };
        let machine = Watched::new(self.index, machine, Arc::clone(&cluster.replicas));
        let config = start::pipeline_config(&cluster.settings, node, random.random(), assembly.new_groups());
        let mut pipeline = Inline::start(config, disk, store, machine, links.clone(), clock.elapsed())?;
        if is_planted(Plant::PurgeEarly) {
            pipeline.purge_early();
        }
        let is_member = cluster.formation.is_some();
        let incarnation = if is_member { 0 } else { self.starts };
        let (shared, fenced) = assembly.connect(
            pipeline.handle(),
            incarnation,
            is_member.then(|| Arc::new(links) as Arc<dyn crate::peers::Peers>),
        );
        let sink = LinkSink::default();
        // Half of the nodes send a session no more than some messages before it acknowledges some: they are small here.
        if shared.settings.storage.segment_bytes.is_multiple_of(2048) {
            shared.under_way_bytes_max.store(UNDER_WAY_BYTES_MAX, Ordering::Relaxed);
        }
        sink.start(Arc::clone(&shared), pipeline.handle().clone());
        let arbiter = |id| SteppedArbiter::new(id as u16, Arc::clone(&shared), self.metrics.arbiter());
        let arbiters = (0..ARBITERS).map(arbiter).collect();
        let fenced = (!is_member).then_some(fenced);
        let ahead = self.ahead;
        let mover = Mover::new(&cluster.settings.moving);
        self.process = Some(Process {
            shared,
            arbiters,
            pipeline,
            sink,
            reader,
            clock,
            ahead,
            scheduled: false,
            stalls_late: false,
            fenced,
            mover,
            seconds_up: 0,
            lapse: Lapse::default(),
        });
        Ok(())
    }

    /// Whether the thread that waits for the disk does nothing.
    pub(super) fn waits_for_disk(&self, now_ns: u64) -> bool {
        self.disk_stalls > 0 || now_ns < self.syncs_until_ns
    }

    /// So much the disk was told in its life.
    pub(super) fn disk_operations(&self) -> u64 {
        self.disk.operations()
    }

    /// For the reader.
    pub(super) fn describe(&self) -> String {
        let Some(process) = &self.process else {
            return format!("\n  node {}: down", self.index + 1);
        };
        let node = process.pipeline.node();
        let groups: String = node.groups().map(|group| format!("\n    {group}: {:?}", node.status(group))).collect();
        let status = process.pipeline.machine().status();
        format!("\n  node {}: {status:?}{groups}", self.index + 1)
    }

    /// The process ends where it stands.
    pub(super) fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.arbiters.iter().for_each(|arbiter| arbiter.state().counters.flush());
            process.pipeline.machine().flush_counters();
        }
        self.paused = false;
    }

    /// The machine loses its power, and with it what was not synced.
    pub(super) fn cut_power(&mut self, random: &mut SmallRng) {
        self.kill();
        let kinds = [Unsynced::Lost, Unsynced::Torn, Unsynced::Holed, Unsynced::Kept];
        let kind = |random: &mut SmallRng| *kinds.choose(random).unwrap_or(&Unsynced::Lost);
        // Names of files are lost as whole operations: there is nothing to be holed.
        let names = kind(random);
        let bytes = kind(random);
        self.disk = self.disk.after_power_cut(names, bytes);
        self.state.power_cut(|batches| random.random_range(0..=batches));
    }

    /// The disk does again what it is told. Whoever failed on it must have ended.
    pub(super) fn mend_disk(&mut self) {
        self.disk = self.disk.after_kill();
    }
}

impl Process {
    /// Threads that want a turn.
    fn waiting(&self, disk_stalls: bool, into: &mut Vec<Turn>) {
        into.clear();
        if self.pipeline.raft_waits() && !disk_stalls {
            into.push(Turn::Raft);
        } else if self.pipeline.raft_waits() && self.stalls_late {
            into.push(Turn::RaftThatStalls);
        }
        if self.pipeline.apply_waits() {
            into.push(Turn::Apply);
        }
        if self.pipeline.checkpoint_waits() && !disk_stalls {
            into.push(Turn::Checkpoint);
        }
        let arbiters = self.arbiters.iter().enumerate().filter(|(_, arbiter)| arbiter.waiting() > 0);
        into.extend(arbiters.map(|(arbiter, _)| Turn::Arbiter(arbiter)));
    }

    pub(super) fn is_idle(&self, disk_stalls: bool) -> bool {
        (disk_stalls && !self.stalls_late || !self.pipeline.raft_waits())
            && (disk_stalls || !self.pipeline.checkpoint_waits())
            && !self.pipeline.apply_waits()
            && self.arbiters.iter().all(|arbiter| arbiter.waiting() == 0)
    }

    /// Gives one of its threads a turn.
    ///
    /// # Errors
    /// The process would have ended.
    pub(super) fn step(
        &mut self,
        disk_stalls: bool,
        random: &mut SmallRng,
        waiting: &mut Vec<Turn>,
    ) -> Result<Turn, InlineError> {
        later::set_ahead(self.ahead);
        self.waiting(disk_stalls, waiting);
        let turn = waiting.choose(random).copied().unwrap_or(Turn::Idle);
        match turn {
            Turn::Idle => {}
            Turn::Raft => self.pipeline.turn_raft(self.clock.elapsed())?,
            Turn::RaftThatStalls => {
                self.stalls_late = !self.pipeline.turn_raft_to_stall(self.clock.elapsed())?;
            }
            Turn::Apply => drop(self.pipeline.turn_apply(self.clock.elapsed())),
            Turn::Checkpoint => drop(self.pipeline.turn_checkpoint()?),
            Turn::Arbiter(arbiter) => {
                let arbiter = &mut self.arbiters[arbiter];
                let choice = random.random_range(0..arbiter.waiting());
                arbiter.step(choice);
            }
        }
        Ok(turn)
    }

    /// Time passed.
    ///
    /// # Errors
    /// The process would have ended.
    pub(super) fn tick(&mut self, disk_stalls: bool) -> Result<(), InlineError> {
        later::set_ahead(self.ahead);
        let now = self.clock.elapsed();
        if !disk_stalls {
            self.pipeline.turn_raft(now)?;
        }
        self.pipeline.turn_apply(now);
        self.mover.look(&self.shared);
        Ok(())
    }

    /// Whether a member is drained, as far as this node knows; `None` if it is none.
    pub(super) fn drains(&self, node: NodeId) -> Option<bool> {
        let members = self.pipeline.machine().status().members;
        members.iter().find(|member| member.node == node.0).map(|member| member.drains)
    }

    /// It does not know the feature level that it met, and applied nothing from there on.
    pub(super) fn has_ended(&self) -> bool {
        self.pipeline.machine().ended().is_some()
    }

    /// Whether all groups here, and the directory, have what the later version brings.
    pub(super) fn is_all_ahead(&self) -> bool {
        self.pipeline.machine().has_level(later::LEVEL_AHEAD)
    }

    pub(super) fn on_second(&mut self, me: NodeId) {
        later::set_ahead(self.ahead);
        for arbiter in &mut self.arbiters {
            arbiter.on_second();
        }
        self.seconds_up += 1;
        let (serves, now) = (self.serves(), Duration::from_secs(self.seconds_up));
        if let (Some(due), Some(cluster)) = (self.lapse.look(now, serves), &self.shared.cluster) {
            let node = self.pipeline.node();
            let leases = cluster.leases.lock().unwrap_or_else(PoisonError::into_inner);
            let heir = |group| heir(me, group, &node.status(group)?, &leases, due.to_anybody);
            for (group, heir) in node.groups().filter_map(|group| Some((group, heir(group)?))) {
                if self.lapse.may_hand_over(group, now) {
                    // Whatever comes of it.
                    drop(self.pipeline.handle().hand_over(group, heir));
                }
            }
        }
    }

    /// Whether it takes in clients by now.
    pub(super) fn listens(&mut self) -> bool {
        let is_fenced = self.fenced.as_ref().is_none_or(|fenced| fenced.try_recv().is_ok());
        if is_fenced {
            self.fenced = None;
        }
        is_fenced
    }

    /// Takes in a client.
    pub(super) fn accept(&mut self, stream: MemoryStream, cluster: &Cluster) -> bool {
        let Some(arbiter) = self.shared.try_open_connection(&cluster.listener, usize::MAX) else {
            return false;
        };
        later::set_ahead(self.ahead);
        self.arbiters[usize::from(arbiter)].add_connection(stream, Arc::clone(&cluster.listener), None);
        true
    }

    /// Whether it acknowledges, as of a moment ago.
    pub(super) fn serves(&self) -> bool {
        let serving = |cluster: &crate::router::cluster::ClusterView| cluster.serving.load(Ordering::Relaxed);
        self.shared.cluster.as_ref().is_none_or(serving)
    }

    /// Its newest checkpoint of a group, as it would be sent.
    pub(super) fn checkpoint(
        &self,
        group: GroupId,
    ) -> Option<impl Iterator<Item = Result<bytes::Bytes, FetchError>> + use<>> {
        let chunks = kentongan_cluster::state::chunks(&self.reader, group).ok()?;
        Some(chunks.map(|chunk| chunk.map_err(FetchError::from)))
    }
}
