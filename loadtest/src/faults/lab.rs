//! One cluster of real processes, clients that load it, and what is done to it.
//!
//! What the clients see is judged by the checker of histories. What no client can see (that a process ended at a failed
//! fsync, say) is looked at here; what is wrong is a *finding*.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use kentongan_history::{History, What};
use kentongan_workload::{Act, Client, Habits, PowerCut, Seat, Stage, SubscribedTopics, quiet, watch};
use rand::{SeedableRng, rngs::SmallRng};
use tempfile::TempDir;

use super::{
    counts::Mark,
    machine::{Preload, SmallDisk},
    mesh::Mesh,
    schedule::{Injection, NODES_AFTER_SHRINKING, Step, Victim},
};
use crate::{nodes::Nodes, report::Progress};

/// P12, and a while in which the clients see that it holds.
const RECOVERED: Duration = Duration::from_secs(12);

/// Time for all that is owed to arrive.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);

/// What a cluster is tried with.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    /// The program of the nodes.
    pub program: &'a Path,
    /// Another version of it.
    pub other_program: Option<&'a Path>,
    /// How many nodes.
    pub nodes: usize,
    /// How many clients.
    pub clients: usize,
    /// QoS 1 and 2 messages a second in all.
    pub messages_per_second: f64,
    /// What clients do is drawn from it.
    pub seed: u64,
}

/// What was seen of a cluster.
#[derive(Debug)]
pub struct Seen {
    /// By its clients.
    pub history: History,
    /// When faults were on.
    pub marks: Vec<Mark>,
    /// What is wrong beside.
    pub findings: Vec<String>,
    /// What could not be injected, and why.
    pub skipped: Vec<(Injection, String)>,
    /// How long the machine did not let the nodes work.
    pub stalled: Duration,
    /// Time under load.
    pub loaded: Duration,
    /// Where the nodes had their data and their logs. Dropping it removes them.
    pub nodes: Nodes,
}

/// A cluster under load.
pub(super) struct Lab<'a> {
    pub(super) nodes: Nodes,
    pub(super) mesh: Mesh,
    pub(super) stage: Arc<Stage>,
    /// The places of the nodes that there are.
    pub(super) members: Vec<usize>,
    pub(super) other_program: Option<PathBuf>,
    /// So many vote in each group, where there are as many.
    pub(super) voters: usize,
    clients: Vec<JoinHandle<()>>,
    watch: JoinHandle<Duration>,
    pub(super) random: SmallRng,
    faults: u32,
    marks: Vec<Mark>,
    findings: Vec<String>,
    pub(super) preload: Option<Preload>,
    pub(super) small_disk: Option<SmallDisk>,
    /// Of every node, where there are any.
    pub(super) power: Vec<PowerCut>,
    progress: &'a Progress,
    /// What is compiled, and what nodes are told while they run.
    _tools: TempDir,
}

/// Does these steps to an empty cluster, then lets the clients have what they are owed.
pub fn run(load: &Load<'_>, steps: &[Step], progress: &Progress) -> Result<Seen> {
    let mut skipped = Vec::new();
    let mut lab = Lab::start(load, steps, &mut skipped, progress)?;
    let began = Instant::now();
    let possible = steps.iter().filter(|step| !skipped.iter().any(|(injection, _)| *injection == step.injection));
    for step in possible {
        // The length of the calm is part of the schedule: there is nothing to wait for.
        thread::sleep(Duration::from_millis(step.calm_milliseconds));
        progress.say(&format!("{:>8.1} s  {:?}", lab.seconds(), step.injection));
        if let Err(error) = lab.inject(&step.injection) {
            lab.finding(format!("{:?}: {error:#}", step.injection));
            // The cluster is not what the next steps begin with. What clients saw is still worth a look.
            break;
        }
    }
    lab.finish(began, skipped)
}

impl<'a> Lab<'a> {
    fn start(
        load: &Load<'_>,
        steps: &[Step],
        skipped: &mut Vec<(Injection, String)>,
        progress: &'a Progress,
    ) -> Result<Self> {
        let tools = tempfile::tempdir()?;
        // There is room for two more to come.
        let mut nodes = Nodes::prepare(load.program, load.nodes.max(NODES_AFTER_SHRINKING + 2))?;
        nodes.set_founders(load.nodes);
        nodes.log("info");
        let voters = if load.nodes >= 5 { 5 } else { 3 };
        for node in 0..nodes.count() {
            nodes.environment(node).push(("KENTONGAN_CLUSTER__VOTERS".into(), voters.to_string()));
        }
        let members: Vec<_> = (0..load.nodes).collect();
        let mesh = Mesh::start(&nodes.spare_addresses(), nodes.peer_addresses())?;
        nodes.advertise(mesh.addresses());
        let (mut preload, mut small_disk, mut power) = (None, None, Vec::new());
        let forgets = steps.iter().any(|step| step.injection.needs_power_cuts());
        for Step { injection, .. } in steps {
            let prepared = match *injection {
                Injection::Clock { .. } | Injection::StartWithClock { .. } | Injection::SyncError { .. } if forgets => {
                    Err(anyhow!("another library is preloaded for the power cuts of the same cluster"))
                }
                Injection::Clock { .. } | Injection::StartWithClock { .. } | Injection::SyncError { .. }
                    if preload.is_none() =>
                {
                    prepare_preload(&mut nodes, tools.path()).map(|made| preload = Some(made))
                }
                Injection::DiskFull { node: Victim::Node(node), .. } => {
                    prepare_small_disk(&mut nodes, node).map(|mounted| small_disk = Some(mounted))
                }
                Injection::DiskFull { .. } => Err(anyhow!("the node must be named, since its disk is made first")),
                Injection::PowerCut | Injection::PowerCutBehindMinority { .. } if power.is_empty() => {
                    prepare_power_cuts(&mut nodes, tools.path()).map(|prepared| power = prepared)
                }
                Injection::KillAtCheckpoint { .. } => {
                    set(&mut nodes, None, &[("CHECKPOINT_LOG_BYTES", "500000"), ("CHECKPOINT_SECONDS", "2")]);
                    Ok(())
                }
                Injection::Upgrade if load.other_program.is_none() => {
                    Err(anyhow!("--other-binary names no other version"))
                }
                _ => Ok(()),
            };
            if let Err(error) = prepared {
                skipped.push((injection.clone(), format!("{error:#}")));
            }
        }
        members.iter().try_for_each(|&node| spawn(&mut nodes, &mesh, node))?;
        members.iter().try_for_each(|&node| nodes.await_ready(node))?;

        let seats = (0..nodes.count()).map(|node| Seat::new(nodes.address(node), nodes.pid(node).unwrap_or(0)));
        let stage = Arc::new(Stage::new(seats.collect(), habits(load)));
        let watch = watch(Arc::clone(&stage));
        let client = |number| {
            let client = Client::new(Arc::clone(&stage), number, load.seed);
            thread::spawn(|| client.run())
        };
        let clients = (0..load.clients).map(client).collect();
        Ok(Self {
            nodes,
            mesh,
            stage,
            members,
            other_program: load.other_program.map(Path::to_owned),
            voters,
            clients,
            watch,
            random: SmallRng::seed_from_u64(load.seed),
            faults: 0,
            marks: Vec::new(),
            findings: Vec::new(),
            preload,
            small_disk,
            power,
            progress,
            _tools: tools,
        })
    }

    fn seconds(&self) -> f64 {
        self.stage.recorder.now() as f64 / 1e9
    }

    pub(super) fn finding(&mut self, what: String) {
        self.progress.say(&format!("{:>8.1} s  FOUND: {what}", self.seconds()));
        self.findings.push(what);
    }

    fn inject(&mut self, injection: &Injection) -> Result<()> {
        let began = self.stage.recorder.now();
        let place = self.marks.len();
        let victims = self.do_to_nodes(injection)?;
        let mark = Mark {
            fault: injection.fault(),
            what: format!("{injection:?}"),
            began,
            healed: self.stage.recorder.now(),
            victims: victims.iter().map(|&node| node as u16).collect(),
        };
        self.marks.insert(place, mark);
        Ok(())
    }

    pub(super) fn note(&self, what: What) {
        self.stage.recorder.note(what);
    }

    pub(super) fn fault_begins(&mut self, kind: &str) -> u32 {
        self.faults += 1;
        let kind = self.stage.recorder.symbol(kind);
        self.note(What::FaultBegan { fault: self.faults, kind });
        self.faults
    }

    pub(super) fn fault_heals(&self, fault: u32) {
        self.note(What::FaultHealed { fault });
    }

    /// Lets clients have all that they are owed, says so to the checker, and ends everything.
    fn finish(mut self, began: Instant, skipped: Vec<(Injection, String)>) -> Result<Seen> {
        if let Some(ended) = self.nodes.ended() {
            self.finding(ended);
        }
        thread::sleep(RECOVERED);
        self.stage.set_act(Act::Settle);
        let loaded = began.elapsed();
        if quiet(&self.stage, SETTLED_WITHIN) {
            self.note_registry();
            self.note_drops();
            self.note(What::Quiesced);
        } else {
            self.finding("packets still come, or something is not acknowledged, long after the last fault".into());
        }
        self.stage.set_act(Act::End);
        for client in std::mem::take(&mut self.clients) {
            if let Err(panic) = client.join() {
                self.finding(format!("a client stopped: {}", panic_text(&*panic)));
            }
        }
        self.stage.end_watch();
        (0..self.nodes.count()).try_for_each(|node| self.nodes.kill(node))?;
        let Self { watch, stage, marks, findings, nodes, .. } = self;
        let stalled = watch.join().map_err(|_| anyhow!("the watch over the machine panicked"))?;
        let stage = Arc::into_inner(stage).context("a client has not gone")?;
        Ok(Seen { history: stage.recorder.finish(), marks, findings, skipped, stalled, loaded, nodes })
    }

    /// Which groups no node says that it leads.
    fn note_registry(&mut self) {
        let status = match self.nodes.status(0) {
            Ok(status) => status,
            Err(error) => return self.finding(format!("{error:#}")),
        };
        let groups = |node: &serde_json::Value| node["status"]["groups"].as_array().cloned().unwrap_or_default();
        let all: Vec<_> = status["nodes"].as_array().iter().flat_map(|nodes| nodes.iter()).flat_map(groups).collect();
        let number = |group: &serde_json::Value| group["group"].as_u64().map(|number| number as u16);
        let led: Vec<_> = all.iter().filter(|group| group["leads"] == true).filter_map(number).collect();
        let mut leaderless: Vec<_> = all.iter().filter_map(number).filter(|group| !led.contains(group)).collect();
        leaderless.sort_unstable();
        leaderless.dedup();
        self.note(What::Registry { owners: Vec::new(), routes: Vec::new(), leaderless });
    }

    /// Queues are longer than what a run publishes, so nothing is dropped; if something is, the metrics must say so.
    fn note_drops(&self) {
        for node in 0..self.nodes.count() {
            let counters = self.nodes.counters(node, "kentongan_messages_dropped_total").unwrap_or_default();
            for (reason, count) in
                counters.into_iter().filter(|(reason, count)| *count > 0 && reason.starts_with("queue_"))
            {
                let reason = self.stage.recorder.symbol(&reason);
                self.note(What::Dropped { reason, count, client: None });
            }
        }
    }
}

/// Starts a node, and tells the links whose they are.
pub(super) fn spawn(nodes: &mut Nodes, mesh: &Mesh, node: usize) -> Result<()> {
    nodes.spawn(node)?;
    mesh.set_process(node, nodes.pid(node).unwrap_or(0));
    Ok(())
}

fn habits(load: &Load<'_>) -> Habits {
    Habits {
        clients: load.clients,
        messages_per_second: load.messages_per_second,
        subscribes_per_second: load.clients as f64 / 2.0,
        unsubscribes_per_second: load.clients as f64 / 2.0,
        departures_per_second: load.clients as f64 / 8.0,
        topics: SubscribedTopics::spread(load.clients),
    }
}

fn prepare_preload(nodes: &mut Nodes, dir: &Path) -> Result<Preload> {
    let preload = Preload::compile(dir)?;
    for node in 0..nodes.count() {
        nodes.environment(node).extend(preload.environment(node)?);
    }
    Ok(preload)
}

fn prepare_power_cuts(nodes: &mut Nodes, dir: &Path) -> Result<Vec<PowerCut>> {
    // Each sync is remembered by copying a file, so files are small.
    set(nodes, None, &[("SEGMENT_BYTES", "262144"), ("CHECKPOINT_LOG_BYTES", "1000000"), ("CHECKPOINT_SECONDS", "10")]);
    let count = nodes.count();
    let prepare = |node: usize| {
        let directory = dir.join(format!("disk-{node}"));
        fs::create_dir(&directory)?;
        let (power, environment) = PowerCut::prepare(&directory, None)?;
        nodes.set_data(node, power.data_dir());
        nodes.environment(node).extend(environment);
        Ok(power)
    };
    (0..count).map(prepare).collect()
}

fn prepare_small_disk(nodes: &mut Nodes, node: usize) -> Result<SmallDisk> {
    let mounted = SmallDisk::mount(nodes.data(node))?;
    // So that a run has room on it, and a reserve.
    let settings =
        [("SEGMENT_BYTES", "4000000"), ("CHECKPOINT_LOG_BYTES", "1000000"), ("FREE_BYTES_RESERVE", "32000000")];
    set(nodes, Some(node), &settings);
    Ok(mounted)
}

/// Settings of storage, of one node or all.
fn set(nodes: &mut Nodes, node: Option<usize>, settings: &[(&str, &str)]) {
    let which = node.map_or(0..nodes.count(), |node| node..node + 1);
    for node in which {
        let named = settings.iter().map(|(name, value)| (format!("KENTONGAN_STORAGE__{name}"), (*value).to_owned()));
        nodes.environment(node).extend(named);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it does not say why").to_owned()
}

/// Keeps what people need to see what happened: the nodes' logs.
pub fn keep_logs(nodes: &Nodes, to: &Path) -> Result<()> {
    for entry in fs::read_dir(nodes.dir())? {
        let path = entry?.path();
        if let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|extension| extension == "log")) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
