//! From a data directory to groups at work: alone, or as one node of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender};
use kentongan_cluster::data_dir::{DataDir, UnsyncedLog};
use kentongan_cluster::directory::command::{Ban, Departing, MemberRecord};
use kentongan_cluster::directory::{JoinRefusal, Placement};
use kentongan_cluster::disk::{Disk, RealDisk};
use kentongan_cluster::formation::{Formation, FormationError, Forming, Joined, Terms};
use kentongan_cluster::group::{self, HandOverError, Role};
use kentongan_cluster::lane::Incoming;
use kentongan_cluster::lease::LeaseCell;
use kentongan_cluster::membership::{Limits, Membership, Wish, WishRefusal};
use kentongan_cluster::pipeline::NoPeers;
use kentongan_cluster::state::StateReader;
use kentongan_cluster::transport::{
    Answerer, Asked, Conversation, LocalIdentity, PeerHello, PeerStatus, Question, Responder, SnapshotChunks, TlsError,
    Transport, TransportConfig,
};
use kentongan_cluster::{
    Configuration, FeatureLevels, GroupId, NodeId, Pipeline, PipelineConfig, PipelineHandle, StateStore, state,
};

use prost::Message as _;
use serde_json::{Value, json};

use super::backup;
use super::certificates::PeerCertificates;
use super::health::Health;
use super::machine::{Machine, QueueMemory, SharedCell};
use super::member::Member;
use super::read_ahead;
use super::search::Search;
use super::why_silent;
use crate::auth::Authority;
use crate::bans::Subject;
use crate::clock::Clock;
use crate::config::{Durability, Overlapping, Settings};
use crate::descriptors::Descriptors;
use crate::ending::{CopyEnd, Ending};
use crate::later;
use crate::log_lines;
use crate::metrics::{ClusterFigures, Metrics, NodeFigures, PeerFigures};
use crate::moving::Elsewhere;
use crate::operator::Operator;
use crate::peers::Peers;
use crate::peers::administration::{Act, Administered, Administration};
use crate::peers::links::{LinkSink, Links, RaftLinks};
use crate::peers::status::{GroupStatus, LinkStatus, NodeStatus};
use crate::random::Random;
use crate::replicated::retained::RetainedLimits;
use crate::replicated::rows::GroupRows;
use crate::replicated::state::{GroupConfig, GroupState};
use crate::replicated::{Query, Slots, Submitter, command};
use crate::router::Shared;
use crate::router::cluster::{ClusterView, Leaders};
use crate::router::node_lanes::Nodes;

/// The groups' threads, running.
#[derive(Debug)]
pub struct Running {
    pipeline: Pipeline<Query>,
    read_ahead: JoinHandle<()>,
    transport: Option<Transport>,
    /// Of the links, if they have TLS.
    certificates: Option<PeerCertificates>,
    data_dir: DataDir,
    /// The log may lack what this node acknowledged, though it is synced now.
    unsynced: Option<UnsyncedLog>,
    /// As long as this is kept, members are searched for that this node does not know.
    _searches: Option<Sender<()>>,
    operator: Arc<Operator>,
}

impl Running {
    /// What answers operators.
    #[must_use]
    pub fn operator(&self) -> &Arc<Operator> {
        &self.operator
    }

    /// How many groups this node leads that another one could lead, the directory among them; 0 if it does not say.
    #[must_use]
    pub fn leads_for_others(&self) -> usize {
        let groups = self.pipeline.handle().status().recv_timeout(STATUS_MAX).unwrap_or_default();
        let is_led = |status: &&group::GroupStatus| matches!(status.role, Role::Leader { .. });
        let has_others = |status: &&group::GroupStatus| status.configuration.voters.len() > 1;
        groups.iter().map(|(_, status)| status).filter(is_led).filter(has_others).count()
    }

    /// What there is to know of its replicas; of a node that is alone there is nothing.
    #[must_use]
    pub fn health(&mut self) -> Option<Health> {
        let is_member = self.transport.is_some();
        let unsynced = self.unsynced.take();
        is_member.then(|| Health::new(self.data_dir.node(), self.pipeline.handle().clone(), unsynced))
    }

    /// Reads the certificates for the links again, if they have any. Links that are up keep theirs.
    ///
    /// # Errors
    /// They cannot be used, and those of before stay.
    pub fn reload_certificates(&mut self) -> Result<(), TlsError> {
        if let Some((certificates, transport)) = self.certificates.as_mut().zip(self.transport.as_ref()) {
            certificates.reload(transport)?;
            tracing::info!("the certificates for the links between nodes were read again");
        }
        Ok(())
    }

    /// Takes up certificates for the links whose files have changed; call it every few seconds. What came of it, if they had.
    pub fn look_at_certificates(&mut self) -> Option<Result<(), TlsError>> {
        let (certificates, transport) = self.certificates.as_mut().zip(self.transport.as_ref())?;
        let outcome = certificates.look(transport)?;
        match &outcome {
            Ok(()) => tracing::info!("new certificates for the links between nodes are in use"),
            Err(error) => tracing::error!(%error, "the certificates for the links between nodes stay as they were"),
        }
        Some(outcome)
    }

    /// When the certificate for the links ends, in Unix time, if there is one.
    #[must_use]
    pub fn certificate_expires_seconds(&self) -> Option<i64> {
        self.certificates.as_ref()?.expires_seconds()
    }

    /// Writes a last checkpoint and ends the threads.
    pub fn stop(self) {
        if let Some(transport) = self.transport {
            transport.stop(TRANSPORT_STOP_MAX);
        }
        self.pipeline.stop();
        // Nobody asks any more. It lets go of the store before another opens it.
        drop(self.read_ahead.join());
    }
}

/// Time within which what waits for other nodes is sent at the end.
const TRANSPORT_STOP_MAX: Duration = Duration::from_secs(1);

/// Time within which the groups let go of what an earlier start held.
const FENCE_MAX: Duration = Duration::from_secs(600);

/// How often it looks meanwhile whether it is to end.
const FENCE_LOOK: Duration = Duration::from_millis(100);

/// How often it says that it waits.
const FENCE_SAID_SECONDS: u64 = 10;

/// Time that threads of this node have to say how they are.
const STATUS_MAX: Duration = Duration::from_secs(2);

/// Messages of each queue that are in memory at first.
pub(super) const FRONT_MESSAGES: usize = 64;

/// Opens the data directory, takes up what is stored there, and begins to work: alone, or, where the settings name an
/// address for other nodes, as one of a cluster, for whose formation it waits as long as `stop` is false.
///
/// # Errors
/// The directory cannot be used, or what is stored is not whole; the message says what to do.
pub fn start(
    settings: &Arc<Settings>,
    authority: Authority,
    arbiters: usize,
    descriptors: &Descriptors,
    metrics: &Metrics,
    stop: &AtomicBool,
) -> anyhow::Result<(Arc<Shared>, Running)> {
    let data_dir = DataDir::open(&settings.data_dir)?;
    let kept = Kept::open(data_dir, descriptors)?;
    match settings.cluster.address {
        None => start_alone(settings, authority, arbiters, metrics, kept, stop),
        Some(address) => {
            let strangers_max = descriptors.strangers;
            start_member(settings, authority, arbiters, metrics, kept, Door { address, strangers_max }, stop)
        }
    }
}

/// What this node has on its disk.
struct Kept {
    data_dir: DataDir,
    disk: Arc<dyn Disk>,
    store: StateStore,
}

impl Kept {
    fn open(data_dir: DataDir, descriptors: &Descriptors) -> anyhow::Result<Self> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&data_dir.path().join("log"))?);
        let store = StateStore::open_within(&data_dir.path().join("state"), Arc::clone(&disk), descriptors.tables)?;
        Ok(Self { data_dir, disk, store })
    }
}

/// Where other nodes connect.
#[derive(Clone, Copy)]
struct Door {
    address: std::net::SocketAddr,
    /// See [`TransportConfig::strangers_max`].
    strangers_max: usize,
}

fn start_alone(
    settings: &Arc<Settings>,
    authority: Authority,
    arbiters: usize,
    metrics: &Metrics,
    Kept { data_dir, disk, store }: Kept,
    stop: &AtomicBool,
) -> anyhow::Result<(Arc<Shared>, Running)> {
    anyhow::ensure!(
        !store.bases().contains_key(&GroupId::DIRECTORY),
        "this data directory belongs to a node of a cluster: start it with --cluster ADDRESS:PORT, as before"
    );
    check_is_own(&store, &data_dir)?;
    let setting = Setting {
        settings: Arc::clone(settings),
        authority,
        arbiters,
        clock: Clock::real(),
        random: Random::of_process(),
        on_end: end_process,
    };
    let (assembly, mut machine) = assemble_alone(setting, metrics, &store, data_dir.node())?;
    let reading = machine.read_ahead();
    let config = pipeline_config(settings, data_dir.node(), data_dir.incarnation(), assembly.new_groups());
    let waits_for_syncs = config.sync;
    if let Some(unsynced) = data_dir.write_log(waits_for_syncs)?.filter(|_| waits_for_syncs) {
        // What it lacks nobody else has.
        unsynced.end()?;
    }
    let pipeline = Pipeline::start(config, disk, store, machine, NoPeers)?;
    let read_ahead = read_ahead::start(reading, pipeline.handle().clone())?;
    metrics.show_storage(Arc::clone(pipeline.handle().stats()));
    let (shared, wait) = assembly.connect(pipeline.handle(), data_dir.incarnation(), None);
    show_node(metrics, &shared, pipeline.handle(), None);
    wait_until_fenced(&wait, stop)?;
    let operator = Arc::new(Operator::new(Arc::clone(&shared), data_dir.node(), pipeline.handle().clone(), None));
    Ok((
        shared,
        Running {
            pipeline,
            read_ahead,
            transport: None,
            certificates: None,
            data_dir,
            unsynced: None,
            operator,
            _searches: None,
        },
    ))
}

/// Groups of which another node has the only vote would wait for it for ever.
fn check_is_own(store: &StateStore, data_dir: &DataDir) -> anyhow::Result<()> {
    let node = data_dir.node();
    let voters = store.bases().values().flat_map(|base| &base.configuration.voters);
    if let Some(other) = voters.copied().find(|&voter| voter != node) {
        let (path, node, other) = (data_dir.path().join("node"), node.get(), other.get());
        anyhow::bail!(
            "the file \"node\" is not the one that this data directory was made with: {} says {node}, and what is stored here belongs to \
             node {other}. Put the file back as it was (it had the number {other}) if nothing else was lost here; otherwise restore this \
             data directory from a backup, or start with an empty one; nothing that is stored was changed",
            path.display()
        );
    }
    Ok(())
}

/// Waits until the groups have let go of what an earlier start held, or this one is to end.
fn wait_until_fenced(wait: &mpsc::Receiver<()>, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match wait.recv_timeout(FENCE_LOOK) {
            Ok(()) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                anyhow::bail!("stopped before the groups had let go of the connections of the process before this one")
            }
            Err(RecvTimeoutError::Timeout) if waited < FENCE_MAX => waited += FENCE_LOOK,
            Err(_) => anyhow::bail!("the groups did not let go of the connections of the process before this one"),
        }
        if waited.as_secs().is_multiple_of(FENCE_SAID_SECONDS) && waited.subsec_nanos() == 0 {
            tracing::warn!(
                seconds = waited.as_secs(),
                "still waiting for the groups to let go of the connections of the process before this one: what is stored is applied first, \
                 and written to the disk"
            );
        }
    }
}

fn start_member(
    settings: &Arc<Settings>,
    authority: Authority,
    arbiters: usize,
    metrics: &Metrics,
    Kept { data_dir, disk, store }: Kept,
    door: Door,
    stop: &AtomicBool,
) -> anyhow::Result<(Arc<Shared>, Running)> {
    let certificates = PeerCertificates::new(&settings.cluster);
    let me = member_record(settings, data_dir.node());
    let copy_end = Arc::new(CopyEnd::new(data_dir.copy_mark(), end_process));
    let sink = Arc::new(LinkSink::new(Arc::clone(&copy_end)));
    let answers = Arc::new(Answers::default());
    let transport = start_transport(settings, &me, data_dir.incarnation(), door, &sink, &answers)?;
    let own = group_config(settings);
    let terms =
        Terms { groups: settings.storage.groups.get(), voters: settings.cluster.voters.get(), settings: own.encode() };
    let forming = Forming::open(data_dir.path(), me.clone(), settings.cluster.seeds.clone(), terms)?;
    // Before it promises to be part of a cluster in which it could not work.
    check_store(&store, settings, forming.formation().is_some())?;
    let forming = Arc::new(forming);
    set_once(&answers.forming, Arc::clone(&forming));
    let formation = forming.run(&transport, stop)?;
    set_once(&answers.reader, store.reader());

    let setting = Setting {
        settings: Arc::clone(settings),
        authority,
        arbiters,
        clock: Clock::real(),
        random: Random::of_process(),
        on_end: end_process,
    };
    let (assembly, mut machine) = assemble_member(setting, metrics, &store, &formation, me.clone(), rand::random())?;
    let reading = machine.read_ahead();
    let agreed = &formation.terms;
    let as_formed = GroupConfig::decode(agreed.settings.clone())?;
    // That there is no bound where the cluster was formed before there could be one is not for the operator to mend.
    let delayed_bytes_max = if as_formed.delayed_bytes_max == 0 { 0 } else { own.delayed_bytes_max };
    if as_formed != (GroupConfig { delayed_bytes_max, ..own }) || agreed.groups != settings.storage.groups.get() {
        tracing::warn!(
            ?agreed,
            "what sessions may hold here, and the number of groups, stay as the cluster was formed with"
        );
    }
    let config = pipeline_config(settings, data_dir.node(), data_dir.incarnation(), assembly.new_groups());
    let waits_for_syncs = config.sync;
    let unsynced = data_dir.write_log(waits_for_syncs)?;
    let config = PipelineConfig { forgets: unsynced.is_some(), ..config };
    let unsynced = unsynced.filter(|_| waits_for_syncs);
    let pipeline = Pipeline::start(config, disk, store, machine, RaftLinks::new(transport.clone(), copy_end))?;
    let read_ahead = read_ahead::start(reading, pipeline.handle().clone())?;
    metrics.show_storage(Arc::clone(pipeline.handle().stats()));
    let (shared, _) = assembly.connect(pipeline.handle(), 0, Some(Arc::new(Links(transport.clone()))));
    show_node(metrics, &shared, pipeline.handle(), Some(transport.clone()));
    let operator =
        Operator::new(Arc::clone(&shared), data_dir.node(), pipeline.handle().clone(), Some(transport.clone()));
    let operator = Arc::new(operator);
    let asking = Asking {
        me: data_dir.node(),
        formation: formation.clone(),
        pipeline: pipeline.handle().clone(),
        transport: transport.clone(),
        shared: Arc::clone(&shared),
        operator: Arc::clone(&operator),
    };
    sink.start(Arc::clone(&shared), pipeline.handle().clone());
    let search = Search {
        me,
        cluster: formation.cluster_id,
        seeds: settings.cluster.seeds.clone(),
        data_dir: data_dir.path().to_owned(),
        pipeline: pipeline.handle().clone(),
        transport: transport.clone(),
        shared: Arc::clone(&shared),
    };
    let (searches, stop_searching) = crossbeam::channel::bounded(0);
    // It ends with its other end, and nothing waits for it.
    drop(search.start(stop_searching)?);
    set_once(&answers.running, asking);
    pipeline.handle().notify(Query::Listening);
    let searches = Some(searches);
    let transport = Some(transport);
    let running =
        Running { pipeline, read_ahead, transport, certificates, data_dir, unsynced, operator, _searches: searches };
    Ok((shared, running))
}

/// Lets `/metrics` show how the node is, as long as there is one.
fn show_node(metrics: &Metrics, shared: &Arc<Shared>, pipeline: &PipelineHandle<Query>, transport: Option<Transport>) {
    // Asked once: who looks is not to wait for a disk that hangs.
    let disk_bytes_reserve = free_bytes_reserve(&shared.settings);
    let (shared, pipeline) = (Arc::downgrade(shared), pipeline.clone());
    metrics
        .show_node(move || Some(node_figures(&*shared.upgrade()?, &pipeline, transport.as_ref(), disk_bytes_reserve)));
}

fn node_figures(
    shared: &Shared,
    pipeline: &PipelineHandle<Query>,
    transport: Option<&Transport>,
    disk_bytes_reserve: u64,
) -> NodeFigures {
    NodeFigures {
        is_overloaded: shared.is_overloaded(),
        memory_level: shared.memory_level(),
        memory_bytes_high_water: shared.memory_bytes_high_water.load(Ordering::Relaxed),
        is_disk_full: pipeline.is_full(),
        disk_bytes_reserve,
        log_in_flight_bytes: pipeline.in_flight_bytes(),
        index_filters: shared.index.filters(),
        index_subscriptions: shared.index.subscriptions(),
        cluster: shared
            .cluster
            .as_ref()
            .zip(transport)
            .map(|(view, transport)| cluster_figures(shared, view, transport)),
    }
}

fn cluster_figures(shared: &Shared, view: &ClusterView, transport: &Transport) -> ClusterFigures {
    let backlog = shared.backlog();
    let peer = |peer: PeerStatus| {
        let name = peer.peer.name.clone();
        let link = LinkStatus::new(peer, &backlog);
        PeerFigures { name, is_up: link.up, backlog: link.backlog }
    };
    let peers: Vec<_> = transport.peers().into_iter().map(peer).collect();
    ClusterFigures {
        lease_left: view.lease_left(),
        serves: view.serving.load(Ordering::Acquire),
        wall_clock_ahead: (view.clock.wall_ms() as f64 - view.clock.cluster_wall_ms() as f64) / 1000.0,
        members: peers.len() + 1,
        peers,
        transport: Arc::clone(transport.stats()),
        group_backlog: backlog.groups,
    }
}

/// What a node is started with, beside what is stored.
pub(crate) struct Setting {
    pub(crate) settings: Arc<Settings>,
    pub(crate) authority: Authority,
    pub(crate) arbiters: usize,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    /// Called on the thread that applies, where the node must not go on.
    pub(crate) on_end: fn(Ending),
}

/// Ends the process. What is on disk is as after a `kill -9`: nothing that was applied of what it does not know is there.
fn end_process(ending: Ending) {
    log_lines::flush();
    std::process::exit(ending.exit_code().into());
}

/// Groups that are to be made, with their first members.
type NewGroups = Vec<(GroupId, Configuration)>;

/// A node whose machine waits for its pipeline.
pub(crate) struct Assembly {
    setting: Setting,
    slots: Slots,
    /// Groups that are to be made, with their first members.
    new_groups: NewGroups,
    shared_cell: SharedCell,
    fenced: mpsc::Receiver<()>,
    /// Who it is in a cluster, and its lease.
    member: Option<(NodeId, Arc<LeaseCell>)>,
}

/// A node that is the only one there is, from what it has stored.
///
/// # Errors
/// What is stored cannot be used.
pub(crate) fn assemble_alone(
    setting: Setting,
    metrics: &Metrics,
    store: &StateStore,
    node: NodeId,
) -> anyhow::Result<(Assembly, Machine)> {
    let slots = Slots::new(setting.settings.storage.groups.get());
    let config = group_config(&setting.settings);
    let new_groups: NewGroups = (0..slots.groups()).map(|group| (GroupId(group), Configuration::of([node]))).collect();
    let groups = restore_groups(store, &new_groups, config)?;
    let shared_cell = SharedCell::default();
    let (fenced, wait) = mpsc::channel();
    let memory = queue_memory(&setting.settings);
    let machine = Machine::new(groups, config, memory, Arc::clone(&shared_cell), metrics.arbiter(), fenced, None);
    let machine = machine.ending_by(setting.on_end);
    Ok((Assembly { setting, slots, new_groups, shared_cell, fenced: wait, member: None }, machine))
}

/// A node of a cluster, from what it has stored. `nonce` is another one at each start.
///
/// # Errors
/// What is stored cannot be used.
pub(crate) fn assemble_member(
    setting: Setting,
    metrics: &Metrics,
    store: &StateStore,
    formation: &Formation,
    me: MemberRecord,
    nonce: u64,
) -> anyhow::Result<(Assembly, Machine)> {
    let slots = Slots::new(formation.terms.groups);
    let config = GroupConfig::decode(formation.terms.settings.clone())?;
    let node = NodeId(me.node);
    let new_groups = new_groups(store, formation, node);
    let groups = restore_groups(store, &new_groups, config)?;
    let lease = Arc::new(LeaseCell::default());
    let membership = Membership::new(node, me.clone(), nonce, Arc::clone(&lease), Limits::default());
    let member = take_up(store, &me, membership, formation, &groups, &setting.clock)?;
    let shared_cell = SharedCell::default();
    let (fenced, wait) = mpsc::channel();
    let memory = queue_memory(&setting.settings);
    let machine =
        Machine::new(groups, config, memory, Arc::clone(&shared_cell), metrics.arbiter(), fenced, Some(member));
    let machine = machine.ending_by(setting.on_end);
    Ok((Assembly { setting, slots, new_groups, shared_cell, fenced: wait, member: Some((node, lease)) }, machine))
}

impl Assembly {
    /// What the pipeline is to make of groups that are not there yet.
    pub(crate) fn new_groups(&self) -> NewGroups {
        self.new_groups.clone()
    }

    /// The pipeline is there: hands the machine what it needs to act. Also returns what says that a node that is alone has let
    /// go of what an earlier start held.
    pub(crate) fn connect(
        self,
        pipeline: &PipelineHandle<Query>,
        incarnation: u64,
        peers: Option<Arc<dyn Peers>>,
    ) -> (Arc<Shared>, mpsc::Receiver<()>) {
        let Setting { settings, authority, arbiters, clock, random, .. } = self.setting;
        let submitter = Submitter::new(pipeline.clone(), self.slots, clock.clone());
        let cluster = self.member.zip(peers).map(|((node, lease), peers)| ClusterView {
            node: node.get(),
            lease,
            peers,
            leaders: Leaders::default(),
            nodes: Nodes::default(),
            incoming: Mutex::new(Incoming::new(&Default::default())),
            patient_answers: Mutex::default(),
            clock: clock.clone(),
            serving: AtomicBool::new(false),
            leases: Mutex::default(),
            removed: AtomicBool::new(false),
            elsewhere: Elsewhere::default(),
        });
        // What other nodes retain, this one does not see.
        let retained_possible = cluster.is_some();
        let mut shared = Shared::new(settings, arbiters, submitter, authority, incarnation, cluster, clock);
        shared.random = random;
        shared.retained_possible.store(retained_possible, Ordering::Relaxed);
        let shared = Arc::new(shared);
        set_once(&self.shared_cell, Arc::clone(&shared));
        pipeline.notify(Query::Begin);
        (shared, self.fenced)
    }
}

fn set_once<T>(cell: &OnceLock<T>, value: T) {
    if cell.set(value).is_err() {
        unreachable!("start-up sets it, once");
    }
}

/// A cluster's node has a directory from its first start on. What has groups and none was alone, and begins a cluster with what it
/// has; nobody else can have promised it anything, so it must be the only one that this cluster begins with.
fn check_store(store: &StateStore, settings: &Settings, is_formed: bool) -> anyhow::Result<()> {
    if store.bases().is_empty() || store.bases().contains_key(&GroupId::DIRECTORY) || is_formed {
        return Ok(());
    }
    anyhow::ensure!(
        settings.cluster.seeds.is_empty(),
        "this data directory has what a node kept that was alone: start it with --cluster and without --seeds, so that it forms a \
         cluster with what it has, which other nodes then join by naming it among their seeds; or start this one with an empty \
         directory (--data-dir)"
    );
    let (has, set) = (store.bases().len(), settings.storage.groups);
    anyhow::ensure!(
        has == usize::from(set.get()),
        "this data directory has {has} groups, and the settings say {set}: set storage.groups to {has}, as it was"
    );
    Ok(())
}

/// The groups that are stored, and those that are to be made, but for those of which this node was told nothing yet.
fn restore_groups(
    store: &StateStore,
    new_groups: &[(GroupId, Configuration)],
    config: GroupConfig,
) -> anyhow::Result<BTreeMap<u16, GroupState>> {
    let stored = store.bases().iter().filter(|(_, base)| base.applied.index > 0).map(|(&group, _)| group);
    let made = new_groups.iter().filter(|(_, members)| !members.voters.is_empty()).map(|&(group, _)| group);
    let kept: BTreeSet<GroupId> = stored.chain(made).filter(|&group| group != GroupId::DIRECTORY).collect();
    let restore = |group: GroupId| {
        let rows = Arc::new(GroupRows { reader: store.reader(), group });
        let state = GroupState::resume(config, rows, FRONT_MESSAGES);
        let state = state.with_context(|| format!("the stored state of group {group} cannot be used"))?;
        later::feature_levels().check(state.level()).map_err(Ending::FeatureLevel)?;
        Ok((group.0, state))
    };
    kept.into_iter().map(restore).collect()
}

fn queue_memory(settings: &Settings) -> QueueMemory {
    let bytes_max = usize::try_from(settings.session.queue_memory_bytes_max).unwrap_or(usize::MAX);
    QueueMemory::new(bytes_max)
}

fn take_up(
    store: &StateStore,
    me: &MemberRecord,
    membership: Membership,
    formation: &Formation,
    groups: &BTreeMap<u16, GroupState>,
    clock: &Clock,
) -> anyhow::Result<Member> {
    let mut member = Member::new(membership, formation.form_command(), clock.clone());
    member.restore_directory(clock.boottime_ns(), &store.load(GroupId::DIRECTORY)?)?;
    let node = NodeId(me.node);
    if member.directory().removed().contains(&node) {
        return Err(Ending::Removed.into());
    }
    // Who joined since is in no record of the formation.
    let members = member.directory().members();
    let others_know = members.get(&node).filter(|_| members.len() > 1);
    if let Some(known) = others_know.filter(|known| known.name != me.name) {
        return Err(FormationError::Renamed { was: known.name.clone() }.into());
    }
    if member.directory().cluster_id().is_some() {
        later::feature_levels().check(member.directory().feature_level()).map_err(Ending::FeatureLevel)?;
    }
    for (&number, state) in groups {
        let index = store.bases().get(&GroupId(number)).map_or(0, |base| base.applied.index);
        member.restored(number, index, state);
    }
    Ok(member)
}

/// What a node makes of the groups: with the members that the formation gives those that it keeps, and the others with none, so
/// that they can be told of some. Once it has made them, which it did if it has a directory, none is made again: one that it
/// gave away since would come back without its log, and vote.
fn new_groups(store: &StateStore, formation: &Formation, node: NodeId) -> NewGroups {
    if store.bases().contains_key(&GroupId::DIRECTORY) {
        return Vec::new();
    }
    let placements = formation.placements().into_iter();
    let is_kept = |placed: &Placement| placed.keeps(node);
    // The directory is the last, and they are stored in this order.
    placements
        .map(|(group, placed)| (group, if is_kept(&placed) { (&placed).into() } else { Configuration::default() }))
        .collect()
}

pub(crate) fn member_record(settings: &Settings, node: NodeId) -> MemberRecord {
    let levels = later::feature_levels();
    let listens = || settings.listener.first().map_or_else(String::new, |listener| listener.address.to_string());
    MemberRecord {
        node: node.get(),
        name: settings.node_name(),
        peer_address: settings.cluster.advertised().unwrap_or_default(),
        feature_level: levels.max,
        client_address: settings.cluster.advertise_clients.clone().unwrap_or_else(listens),
        is_advertised: settings.cluster.advertise_clients.is_some(),
        zone: settings.cluster.zone.clone().unwrap_or_default(),
        feature_level_min: levels.min,
    }
}

fn start_transport(
    settings: &Settings,
    me: &MemberRecord,
    start: u64,
    door: Door,
    sink: &Arc<LinkSink>,
    answers: &Arc<Answers>,
) -> anyhow::Result<Transport> {
    let identity = LocalIdentity {
        cluster: None,
        node: NodeId(me.node),
        name: me.name.clone(),
        incarnation: None,
        feature_levels: FeatureLevels { min: me.feature_level_min, max: me.feature_level },
    };
    let mut config = TransportConfig::new(door.address, identity);
    config.strangers_max = door.strangers_max;
    config.tls = settings.cluster.tls();
    config.advertise.clone_from(&me.peer_address);
    config.start = start;
    let sink: Arc<LinkSink> = Arc::clone(sink);
    let transport = Transport::start(config, sink, Arc::<Answers>::clone(answers))?;
    tracing::info!(address = %transport.local_address(), name = me.name, node = %NodeId(me.node), "listening for other nodes");
    Ok(transport)
}

/// Answers what other nodes ask beside the links.
#[derive(Default)]
struct Answers {
    forming: OnceLock<Arc<Forming>>,
    reader: OnceLock<StateReader>,
    running: OnceLock<Asking>,
}

/// Whom to ask how this node is.
struct Asking {
    me: NodeId,
    formation: Formation,
    pipeline: PipelineHandle<Query>,
    transport: Transport,
    shared: Arc<Shared>,
    operator: Arc<Operator>,
}

impl Asking {
    /// Makes the asker a member, if whoever leads the directory is here, and tells a member who there is.
    fn answer_join(&self, from: &PeerHello, body: Bytes, answer: Answerer) {
        match MemberRecord::decode(body) {
            // It looks for its own, and found us at an address of theirs.
            Ok(_) if from.cluster.is_some_and(|theirs| theirs != self.formation.cluster_id) => {
                answer.send(Err("it is a member of another cluster".to_owned()));
            }
            Ok(record) if record.node == from.node.0 && record.name == from.name => {
                self.answer_wish(answer, None, |outcome| Query::Admit(record, outcome));
            }
            _ => answer.send(Err("it asks for another node".to_owned())),
        }
    }

    /// Removes a member, if whoever leads the directory is here.
    fn answer_remove(&self, from: &PeerHello, body: Bytes, answer: Answerer) {
        match Departing::decode(body).ok().and_then(|departing| NodeId::new(departing.node)) {
            Some(node) => {
                let wanted = Wanted::new(from, "remove", json!({ "node": node.to_string() }));
                self.answer_wish(answer, Some(wanted), |outcome| Query::Remove(node, outcome));
            }
            None => answer.send(Err("it names no node".to_owned())),
        }
    }

    /// On a thread of its own: it waits for the others.
    fn answer_wish(
        &self,
        answer: Answerer,
        wanted: Option<Wanted>,
        query: impl FnOnce(Sender<(Wish, Vec<MemberRecord>)>) -> Query,
    ) {
        let (asked, outcome) = crossbeam::channel::bounded(1);
        self.pipeline.notify(query(asked));
        let formation = self.formation.clone();
        let shared = Arc::clone(&self.shared);
        answer_when_known(&self.pipeline, answer, outcome, move |(wish, members)| {
            if let Some(wanted) = wanted {
                wanted.audit(&shared, &administered(wish.clone()), wish == Wish::Proposed);
            }
            joined(wish, members, formation).encode_to_vec().into()
        });
    }

    /// Does what an operator wants done, if it is for this node to decide.
    fn answer_administer(&self, from: &PeerHello, body: Bytes, answer: Answerer) {
        let group = |group: u32| u16::try_from(group).ok().map(GroupId);
        match Administration::decode_question(body) {
            Ok(Some(Act::Drain(drain))) if let Some(node) = NodeId::new(drain.node) => {
                let wanted =
                    Wanted::new(from, if drain.on { "drain" } else { "undrain" }, json!({ "node": node.to_string() }));
                self.answer_decision(answer, wanted, |outcome| Query::Drain(node, drain.on, outcome));
            }
            Ok(Some(Act::Prefer(to))) if let Some(group) = group(to.group) => {
                let node = NodeId::new(to.node);
                let leader = node.map(|node| node.to_string());
                let wanted = Wanted::new(from, "transfer", json!({ "group": group.0, "leader": leader }));
                self.answer_decision(answer, wanted, |outcome| Query::Prefer(group, node, outcome));
            }
            Ok(Some(Act::Ban(ban))) => match ban.subject.parse::<Subject>() {
                Ok(subject) => {
                    let event = if ban.lifted { "unban" } else { "ban" };
                    let until = (ban.until_seconds != 0).then_some(ban.until_seconds);
                    let what = json!({ "subject": subject.to_string(), "until_seconds": until, "reason": ban.reason });
                    let ban = Ban { subject: subject.to_string(), ..ban };
                    let wanted = Wanted::new(from, event, what);
                    self.answer_decision(answer, wanted, |outcome| Query::Ban(ban, outcome));
                }
                Err(error) => answer.send(Err(error.to_string())),
            },
            Ok(Some(Act::Say(say))) => self.operator.answer(from, say.question, answer),
            Ok(Some(Act::Bans(behind))) => {
                let (asked, outcome) = crossbeam::channel::bounded(1);
                self.pipeline.notify(Query::Bans(behind.subject, asked));
                answer_when_known(&self.pipeline, answer, outcome, |bans| {
                    Administered { done: true, bans, ..Administered::default() }.encode_answer()
                });
            }
            Ok(Some(Act::HandOver(wanted)))
                if let (Some(group), Some(node)) = (group(wanted.group), NodeId::new(wanted.node)) =>
            {
                let outcome = self.pipeline.hand_over(group, node);
                let wanted = Wanted::new(from, "hand over", json!({ "group": group.0, "node": node.to_string() }));
                let shared = Arc::clone(&self.shared);
                answer_when_known(&self.pipeline, answer, outcome, move |outcome| {
                    let administered = handed_over(outcome);
                    wanted.audit(&shared, &administered, administered.done);
                    administered.encode_answer()
                });
            }
            Ok(_) => answer.send(Err("this version does not know how to do that".to_owned())),
            Err(_) => answer.send(Err("the question is malformed".to_owned())),
        }
    }

    fn answer_decision(
        &self,
        answer: Answerer,
        wanted: Wanted,
        query: impl FnOnce(Sender<(Wish, Vec<MemberRecord>)>) -> Query,
    ) {
        let (asked, outcome) = crossbeam::channel::bounded(1);
        self.pipeline.notify(query(asked));
        let shared = Arc::clone(&self.shared);
        answer_when_known(&self.pipeline, answer, outcome, move |(wish, _)| {
            let proposed = wish == Wish::Proposed;
            let administered = administered(wish);
            wanted.audit(&shared, &administered, proposed);
            administered.encode_answer()
        });
    }

    /// On a thread of its own: it waits for the others.
    fn answer_status(&self, answer: Answerer) {
        let (me, pipeline, transport) = (self.me, self.pipeline.clone(), self.transport.clone());
        let shared = Arc::clone(&self.shared);
        let ask = move || answer.send(status(me, &pipeline, &transport, &shared).map(|status| status.encode_answer()));
        if let Err(error) = std::thread::Builder::new().name("status".into()).spawn(ask) {
            tracing::error!(%error, "the system gives no thread to say how this node is");
        }
    }
}

/// What an operator wants, for the audit log.
struct Wanted {
    who: Value,
    event: &'static str,
    what: Value,
}

impl Wanted {
    /// Where nodes speak TLS, the name is that of a certificate of the cluster.
    fn new(from: &PeerHello, event: &'static str, what: Value) -> Self {
        Self { who: json!({ "operator": from.name }), event, what }
    }

    /// Operators' programs ask until it is so: only what had an effect, or was refused, is recorded.
    fn audit(self, shared: &Shared, administered: &Administered, had_effect: bool) {
        let result = match &*administered.refusal {
            "" if !had_effect => return,
            "" => "done here".to_owned(),
            refusal => format!("refused: {refusal}"),
        };
        tracing::info!(event = self.event, who = %self.who, what = %self.what, result, "an operator's wish");
        shared.audit.record(shared.clock.wall_ms(), self.event, self.who, self.what, &result);
    }
}

/// On a thread of its own: it waits for the others.
fn answer_when_known<T: Send + 'static>(
    pipeline: &PipelineHandle<Query>,
    answer: Answerer,
    outcome: Receiver<T>,
    say: impl FnOnce(T) -> Bytes + Send + 'static,
) {
    let pipeline = pipeline.clone();
    let wait = move || {
        let known = outcome.recv_timeout(STATUS_MAX).map(say);
        answer.send(known.map_err(|_| silent(&pipeline, "decide that")));
    };
    if let Err(error) = std::thread::Builder::new().name("members".into()).spawn(wait) {
        tracing::error!(%error, "the system gives no thread to say what becomes of what an operator wants");
    }
}

fn administered(wish: Wish) -> Administered {
    match wish {
        Wish::Fulfilled => Administered { done: true, ..Administered::default() },
        Wish::Elsewhere { address } => Administered { elsewhere: address, ..Administered::default() },
        Wish::Refused(reason) => Administered { refusal: reason.to_string(), ..Administered::default() },
        Wish::NoLeader => {
            Administered { hindrance: "the directory has no leader".to_owned(), ..Administered::default() }
        }
        Wish::Proposed => Administered::default(),
    }
}

fn handed_over(outcome: Result<(), HandOverError>) -> Administered {
    match outcome {
        Ok(()) => Administered { done: true, ..Administered::default() },
        // A leader forgets now and then, for a moment, whom it has heard of.
        Err(error @ (HandOverError::NotLeader(_) | HandOverError::Busy | HandOverError::Silent(_))) => {
            Administered { hindrance: error.to_string(), ..Administered::default() }
        }
        Err(error) => Administered { refusal: error.to_string(), ..Administered::default() },
    }
}

fn joined(wish: Wish, members: Vec<MemberRecord>, formation: Formation) -> Joined {
    match wish {
        Wish::Fulfilled => Joined { formation: Formation { members, ..formation }.encode(), ..Joined::default() },
        Wish::Elsewhere { address } => Joined { elsewhere: address, ..Joined::default() },
        Wish::Refused(reason) => {
            let removed = reason == WishRefusal::Join(JoinRefusal::Removed);
            Joined { refusal: reason.to_string(), removed, ..Joined::default() }
        }
        Wish::Proposed | Wish::NoLeader => Joined::default(),
    }
}

fn status(
    me: NodeId,
    pipeline: &PipelineHandle<Query>,
    transport: &Transport,
    shared: &Shared,
) -> Result<NodeStatus, String> {
    let (answer, answered) = crossbeam::channel::bounded(1);
    pipeline.notify(Query::Status(answer));
    let groups = pipeline.status();
    let silent = |_| silent(pipeline, "say how it is");
    let status = answered.recv_timeout(STATUS_MAX).map_err(silent)?;
    let groups = groups.recv_timeout(STATUS_MAX).map_err(silent)?;
    let group = |(group, status): &(GroupId, _)| {
        let raft: &group::GroupStatus = status;
        GroupStatus::new(*group, me, raft, raft.handed_out.index)
    };
    let groups = groups.iter().filter(|(_, status)| status.configuration.contains(me)).map(group).collect();
    let backlog = shared.backlog();
    let links = transport.peers().into_iter().map(|peer| LinkStatus::new(peer, &backlog)).collect();
    Ok(NodeStatus { groups, links, disk_full: pipeline.is_full(), ..status })
}

fn silent(pipeline: &PipelineHandle<Query>, do_what: &str) -> String {
    format!("{}: ask again", why_silent(pipeline.is_full(), do_what))
}

impl Responder for Answers {
    fn on_question(&self, asked: Asked) {
        let not_yet = || Err("this node is still starting: ask again".to_owned());
        match asked.question {
            Question::Promise | Question::Form => match self.forming.get() {
                Some(forming) => forming.answer(asked),
                None => asked.answer.send(not_yet()),
            },
            Question::Join | Question::Remove | Question::Administer | Question::Status => match self.running.get() {
                None => asked.answer.send(not_yet()),
                Some(running) => match asked.question {
                    Question::Join => running.answer_join(&asked.from, asked.body, asked.answer),
                    Question::Remove => running.answer_remove(&asked.from, asked.body, asked.answer),
                    Question::Administer => running.answer_administer(&asked.from, asked.body, asked.answer),
                    _ => running.answer_status(asked.answer),
                },
            },
        }
    }

    fn on_backup(&self, from: &PeerHello, conversation: Conversation) {
        let (Some(running), Some(reader)) = (self.running.get(), self.reader.get()) else {
            return conversation.refuse("this node is still starting: ask again".to_owned());
        };
        tracing::info!(node = %from.node, name = from.name, "a backup of this node's groups begins");
        let (pipeline, formation) = (running.pipeline.clone(), running.formation.clone());
        let clock = running.shared.clock.clone();
        backup::Source { pipeline, reader: reader.clone(), formation, clock }.serve(conversation);
    }

    fn open_snapshot(&self, _: &PeerHello, group: GroupId, _: u64) -> Result<SnapshotChunks, String> {
        let reader = self.reader.get().ok_or_else(|| "this node is still starting".to_owned())?;
        match state::chunks(reader, group) {
            Ok(chunks) => Ok(Box::new(chunks)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Bounds of the whole node, shared out evenly: names spread evenly over the groups.
pub(crate) fn group_config(settings: &Settings) -> GroupConfig {
    let groups = u64::from(settings.storage.groups.get());
    let share = |bound: u64| if bound == 0 { 0 } else { bound.div_ceil(groups) + bound.div_ceil(groups) / 8 };
    GroupConfig {
        queue_messages_max: settings.session.queue_messages_max as usize,
        queue_bytes_max: usize::try_from(settings.session.queue_bytes_max).unwrap_or(usize::MAX),
        drop_policy: settings.session.queue_drop_policy.into(),
        retained: RetainedLimits {
            messages_max: share(settings.retained.messages_max),
            bytes_max: share(settings.retained.bytes_max),
        },
        one_each: settings.session.overlapping == Overlapping::OneEach,
        share_strategy: settings.shared.strategy.into(),
        retained_age_ms_max: u64::from(settings.retained.age_seconds_max) * 1000,
        delayed_messages_max: usize::try_from(share(settings.delayed.messages_max)).unwrap_or(usize::MAX),
        delayed_bytes_max: usize::try_from(share(settings.delayed.bytes_max)).unwrap_or(usize::MAX),
    }
}

/// `incarnation` is that of the data directory: another one at each start.
pub(crate) fn pipeline_config(
    settings: &Settings,
    node: NodeId,
    incarnation: u64,
    groups: Vec<(GroupId, Configuration)>,
) -> PipelineConfig {
    PipelineConfig {
        node,
        seed: node.0.rotate_left(32) ^ incarnation,
        groups,
        segment_bytes: settings.storage.segment_bytes,
        checkpoint_log_bytes: settings.storage.checkpoint_log_bytes,
        checkpoint_interval: Duration::from_secs(u64::from(settings.storage.checkpoint_seconds.get())),
        sync: settings.durability == Durability::Fsync,
        forgets: settings.durability != Durability::Fsync,
        free_bytes_reserve: free_bytes_reserve(settings),
        kind_of: |group, command| if group == GroupId::DIRECTORY { "directory" } else { command::kind_of(command) },
    }
}

/// Of which most file systems have much more.
const FREE_BYTES_RESERVE_MAX: u64 = 512 * 1024 * 1024;

/// What a small file system has less than that many times is kept for what is accepted.
const FREE_RESERVE_SHARE: u64 = 8;

fn free_bytes_reserve(settings: &Settings) -> u64 {
    settings.storage.free_bytes_reserve.unwrap_or_else(|| {
        // Whether the directory can be used others find out.
        let total = rustix::fs::statvfs(&settings.data_dir)
            .map_or(u64::MAX, |space| space.f_blocks.saturating_mul(space.f_frsize));
        FREE_BYTES_RESERVE_MAX.min(total / FREE_RESERVE_SHARE)
    })
}

#[cfg(test)]
mod tests {
    use kentongan_cluster::CheckpointBase;
    use kentongan_cluster::disk::SimDisk;
    use kentongan_cluster::state::{Checkpoint, MemoryState};
    use kentongan_cluster::transport::ClusterId;

    use super::*;

    fn checkpoint(group: GroupId) -> Checkpoint {
        let base = CheckpointBase::new_group(Configuration::of([NodeId(1)]));
        Checkpoint { group, base, writes: Vec::new() }
    }

    /// Whoever asks for the end need not wait for what may never come.
    #[test]
    fn a_start_that_waits_for_its_groups_ends_when_it_is_told_to() {
        let (fenced, wait) = mpsc::channel();
        let stopped = wait_until_fenced(&wait, &AtomicBool::new(true)).expect_err("they have not let go");
        assert!(stopped.to_string().starts_with("stopped"), "{stopped}");
        fenced.send(()).expect("it is waited for");
        wait_until_fenced(&wait, &AtomicBool::new(false)).expect("they have let go");
        drop(fenced);
        wait_until_fenced(&wait, &AtomicBool::new(false)).expect_err("they never will");
    }

    /// What it has of a group that is not there any more is not made anew: it would vote again.
    #[test]
    fn a_node_makes_its_groups_once_and_keeps_those_that_the_formation_gave_it() {
        let settings = Settings::default();
        let member = |node| MemberRecord { node, name: format!("n{node}"), ..MemberRecord::default() };
        let terms = Terms { groups: 5, voters: 3, settings: group_config(&settings).encode() };
        let members = (1..=5).map(member).collect();
        let formation = Formation { cluster_id: ClusterId(7), terms, members, is_joined: false };
        let mut store = StateStore::in_memory(&MemoryState::default(), Arc::new(SimDisk::new())).unwrap();
        let made = |store: &StateStore| new_groups(store, &formation, NodeId(1));

        let new = made(&store);
        let all = [0, 1, 2, 3, 4].map(GroupId).into_iter().chain([GroupId::DIRECTORY]);
        assert!(new.iter().map(|(group, _)| *group).eq(all), "{new:?}");
        let kept = new.iter().filter(|(_, members)| members.contains(NodeId(1))).map(|(group, _)| group.0);
        assert_eq!(kept.collect::<Vec<_>>(), [0, 1, 3, GroupId::DIRECTORY.0]);
        assert!([2, 4].iter().all(|&other| new[other].1 == Configuration::default()), "they wait to be told: {new:?}");

        store.write(vec![checkpoint(GroupId(0))]).unwrap();
        assert_eq!(made(&store), new, "the power was cut before all of them were there");
        store.write(vec![checkpoint(GroupId(3)), checkpoint(GroupId::DIRECTORY)]).unwrap();
        assert_eq!(made(&store), []);
        let restored = restore_groups(&store, &[], group_config(&settings)).unwrap();
        assert_eq!(restored.keys().copied().collect::<Vec<_>>(), [0, 3]);
    }
}
