//! Several processes that are one broker, on this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kentongan::replicated::Slots;
use kentongan_proto::mqtt::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Client, DEADLINE, broker_command, connect, program_command, wait_for};

/// Time within which nodes form a cluster, or one that was killed is back, on a machine that has much to do.
pub const FORMED_WITHIN: Duration = Duration::from_secs(30);

/// Groups of a cluster, by the default settings.
pub const GROUPS: u16 = 16;

/// Ports of a cluster. The nodes of one of three have the first half.
const PORTS: u16 = 20;

/// Lines of a node's log that are shown when a test fails.
const LOG_LINES_SHOWN: usize = 400;

/// A process of the cluster, or its place while it is down. Its addresses and its data directory stay what they are.
pub struct Node {
    pub name: String,
    pub address: SocketAddr,
    http: SocketAddr,
    pub peers: SocketAddr,
    pub data_dir: PathBuf,
    seeds: String,
    environment: Vec<(String, String)>,
    /// It knows of no cluster.
    pub alone: bool,
    /// Another program than the broker of these tests.
    program: Option<PathBuf>,
    child: Option<Child>,
    /// Reads what the process says, until it has ended.
    reader: Option<JoinHandle<()>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Node {
    /// Starts the process. It may wait for others before it listens.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let mut command = self.program.as_ref().map_or_else(broker_command, program_command);
        let mut child = command
            .args(["serve", "--node", &self.name])
            .args((!self.seeds.is_empty()).then_some(["--seeds", &self.seeds]).into_iter().flatten())
            .args((!self.alone).then_some(["--cluster", &self.peers.to_string()]).into_iter().flatten())
            .args(["--mqtt", &self.address.to_string()])
            .args(["--http", &self.http.to_string()])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .env("KENTONGAN_LOG__FORMAT", "json")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the broker starts");
        let stderr = child.stderr.take().expect("piped");
        let (log, name) = (Arc::clone(&self.log), self.name.clone());
        self.reader = Some(std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // What the preload of a power cut reads says nothing to people.
                if line.contains("\"TRACE\"") {
                    continue;
                }
                if std::env::var_os("BROKER_TEST_LOG").is_some() {
                    eprintln!("{name}: {line}");
                }
                log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        }));
        self.note("started");
        self.child = Some(child);
    }

    /// A process that takes itself for this node, elsewhere and with another data directory, and does not run yet.
    pub fn twin(&self, data_dir: PathBuf) -> Self {
        let moved = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() + PORTS / 2);
        Self {
            name: self.name.clone(),
            address: moved(self.address),
            http: moved(self.http),
            peers: moved(self.peers),
            data_dir,
            seeds: self.seeds.clone(),
            environment: self.environment.clone(),
            alone: self.alone,
            program: self.program.clone(),
            child: None,
            reader: None,
            log: Arc::default(),
        }
    }

    /// For its next process.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            self.note("killed");
        }
    }

    /// SIGTERM; the process ends in good order, and in time.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        self.note("told to stop");
        let child = self.child.as_mut().expect("a running node");
        let deadline = Instant::now() + FORMED_WITHIN;
        let status = loop {
            if let Some(status) = child.try_wait().expect("our own child") {
                break status;
            }
            assert!(Instant::now() < deadline, "{} does not stop", self.name);
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{} ended: {status}", self.name);
        self.child = None;
        self.note("stopped");
    }

    /// Of the process that runs.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running node").id()
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// SIGSTOP: it says nothing and hears nothing, and does not know it.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        self.note("paused");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.note("goes on");
        self.signal(Signal::CONT);
    }

    /// SIGHUP: what can change in a running process is read again.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running node");
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid is not zero");
        kill_process(pid, signal).expect("our own child");
    }

    /// Whether its log has a line with this.
    pub fn said(&self, text: &str) -> bool {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|line| line.contains(text))
    }

    /// The address in the last line of its log that has this text.
    pub fn said_address(&self, text: &str) -> Option<SocketAddr> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let line = log.iter().rev().find(|line| line.contains(text))?;
        let line: Value = serde_json::from_str(line).ok()?;
        line["address"].as_str()?.parse().ok()
    }

    fn note(&self, what: &str) {
        let line = format!("-- the test: {what} at {:?}", std::time::SystemTime::now());
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Which nodes it asks from its next start on; returns those that it asked before.
    pub fn change_seeds(&mut self, seeds: &str) -> String {
        std::mem::replace(&mut self.seeds, seeds.to_owned())
    }

    /// Where other nodes find it from its next start on: a port that nothing else of its cluster has.
    pub fn change_port(&mut self) {
        self.peers.set_port(self.peers.port() + PORTS / 2);
    }

    /// What runs here from the next start on; `None`: the broker of these tests.
    #[cfg(feature = "simulation")]
    pub fn set_program(&mut self, program: Option<&str>) {
        self.program = program.map(PathBuf::from);
    }

    /// Whether some line of its log, of any of its processes, has this text.
    #[cfg(feature = "simulation")]
    pub fn has_logged(&self, text: &str) -> bool {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|line| line.contains(text))
    }

    /// Starts it, and waits until it ends by itself: with which code, and what it says.
    pub fn ends_when_started(&mut self) -> (Option<i32>, String) {
        let before = self.log.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.spawn();
        let code = self.wait_until_ended().code();
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        (code, log[before..].join("\n"))
    }

    /// What it ends with, by itself. All that it said is in its log then.
    pub fn wait_until_ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + FORMED_WITHIN;
        loop {
            let child = self.child.as_mut().expect("a running node");
            if let Some(status) = child.try_wait().expect("our own child") {
                self.child = None;
                self.reader.take().expect("of the process").join().expect("it reads to the end");
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The same data directory, a new process, which is ready for clients.
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
        self.wait_until_ready();
    }

    pub fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + FORMED_WITHIN;
        while !self.is_ready() {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("our own child")) {
                panic!("{} ended: {status}", self.name);
            }
            assert!(Instant::now() < deadline, "{} is not ready", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.http_get("/readyz"), Some((200, _)))
    }

    /// Status and body of an HTTP answer, if it gives one.
    fn http_get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.http, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    fn metrics(&self) -> String {
        let mut found = None;
        wait_for("metrics", || {
            found = self.http_get("/metrics");
            found.is_some()
        });
        found.expect("waited for").1
    }

    /// Sums of a counter of `/metrics` by the value of its first label.
    pub fn counters(&self, name: &str) -> Vec<(String, u64)> {
        let body = self.metrics();
        let series = body.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        series
            .filter_map(|rest| {
                let (labels, value) = rest.rsplit_once("} ")?;
                Some((labels.split('"').nth(1)?.to_owned(), value.parse::<f64>().ok()? as u64))
            })
            .collect()
    }

    /// A gauge of `/metrics` without labels.
    pub fn gauge(&self, name: &str) -> u64 {
        let body = self.metrics();
        let value = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect("a gauge that there is").parse::<f64>().expect("a number") as u64
    }

    /// Sends CONNECT and returns the CONNACK.
    pub fn open(&self, connect: Connect) -> (Client, ConnAck) {
        let mut client = Client::at(self.address, connect.version);
        client.send(&Packet::Connect(Box::new(connect)));
        let connack = client.expect_connack();
        (client, connack)
    }

    /// A connected MQTT 5 client with a session of its own that ends with the connection.
    pub fn client(&self, client_id: &str) -> Client {
        self.accepted(&connect(ProtocolVersion::V5, client_id)).0
    }

    /// A connected MQTT 5 client whose session outlives the connection; also whether it was there.
    pub fn persistent(&self, client_id: &str) -> (Client, bool) {
        let mut asked = connect(ProtocolVersion::V5, client_id);
        asked.clean_start = false;
        asked.properties.session_expiry_interval = Some(3600);
        let (client, connack) = self.accepted(&asked);
        (client, connack.session_present)
    }

    /// As a client would, it comes again if the node has no majority for a moment: when another one was killed that led
    /// the directory, say.
    pub fn accepted(&self, asked: &Connect) -> (Client, ConnAck) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (client, connack) = self.open(asked.clone());
            match connack.reason_code {
                ReasonCode::Success => return (client, connack),
                ReasonCode::ServerUnavailable => assert!(Instant::now() < deadline, "{} is not available", self.name),
                other => panic!("{} refuses {:?}: {other:?}", self.name, asked.client_id),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Nodes that know each other. All are killed when it is dropped; if the test failed, their logs are printed.
pub struct Cluster {
    pub nodes: Vec<Node>,
    _directory: TempDir,
}

impl Cluster {
    /// Three nodes, ready for clients.
    pub fn start() -> Self {
        Self::of(3)
    }

    /// So many nodes, ready for clients.
    pub fn of(nodes: usize) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let places = (1..=nodes).map(|number| directory.path().join(format!("n{number}"))).collect();
        Self::within(directory, places, |_| Vec::new())
    }

    /// So many nodes that tell each other where clients reach them, with more settings for all, ready for clients.
    pub fn advertised(nodes: usize, settings: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let places = (1..=nodes).map(|number| directory.path().join(format!("n{number}"))).collect();
        let more: Vec<_> = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut cluster = Self::places(directory, places, |_| more.clone());
        for node in &mut cluster.nodes {
            let own = ("KENTONGAN_CLUSTER__ADVERTISE_CLIENTS".to_owned(), node.address.to_string());
            node.environment.push(own);
            node.spawn();
        }
        cluster.wait_until_ready();
        cluster
    }

    /// Nodes with these data directories, which lie in `directory`, and more environment variables for each.
    pub fn within(
        directory: TempDir,
        data_dirs: Vec<PathBuf>,
        environment: impl Fn(usize) -> Vec<(String, String)>,
    ) -> Self {
        let mut cluster = Self::places(directory, data_dirs, environment);
        cluster.nodes.iter_mut().for_each(Node::spawn);
        cluster.wait_until_ready();
        cluster
    }

    /// One node of three, ready for clients, which forms a cluster of its own; the others know where it is and do not run.
    pub fn start_first_of_three() -> Self {
        Self::start_first_of(3, false)
    }

    /// The same of so many. `alone`: it knows of no cluster.
    pub fn start_first_of(count: usize, alone: bool) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let places = (1..=count).map(|number| directory.path().join(format!("n{number}"))).collect();
        let mut cluster = Self::places(directory, places, |_| Vec::new());
        let first = cluster.nodes[0].peers.to_string();
        cluster.nodes.iter_mut().for_each(|node| node.seeds.clone_from(&first));
        cluster.nodes[0].seeds.clear();
        cluster.nodes[0].alone = alone;
        cluster.nodes[0].spawn();
        cluster.nodes[0].wait_until_ready();
        cluster
    }

    /// Places of nodes, none of which runs.
    fn places(
        directory: TempDir,
        data_dirs: Vec<PathBuf>,
        environment: impl Fn(usize) -> Vec<(String, String)>,
    ) -> Self {
        let (host, base) = place();
        let at = |port: usize| SocketAddr::from((host, base + port as u16));
        let seeds: Vec<_> = (0..data_dirs.len()).map(|index| at(index * 3).to_string()).collect();
        let node = |(index, data_dir): (usize, PathBuf)| Node {
            name: format!("n{}", index + 1),
            peers: at(index * 3),
            address: at(index * 3 + 1),
            http: at(index * 3 + 2),
            data_dir,
            seeds: seeds.join(","),
            environment: environment(index),
            alone: false,
            program: None,
            child: None,
            reader: None,
            log: Arc::default(),
        };
        Self { nodes: data_dirs.into_iter().enumerate().map(node).collect(), _directory: directory }
    }

    pub fn wait_until_ready(&mut self) {
        self.nodes.iter_mut().for_each(Node::wait_until_ready);
    }

    /// Kills all of them at once, and starts them again after something was done `between`.
    pub fn restart_all_after(&mut self, between: impl FnOnce()) {
        self.nodes.iter_mut().for_each(Node::kill);
        between();
        self.nodes.iter_mut().for_each(Node::spawn);
        self.wait_until_ready();
    }

    /// Waits until groups are kept as they should be by so many nodes, the first of which is asked.
    pub fn wait_until_kept_among(&self, nodes: usize) {
        match nodes {
            1 => self.wait_until_kept(0, [1, 0], [1, 0]),
            2 => self.wait_until_kept(0, [1, 1], [1, 1]),
            3 => self.wait_until_kept(0, [3, 0], [3, 0]),
            4 => self.wait_until_kept(0, [3, 0], [3, 1]),
            more => self.wait_until_kept(0, [3, 0], [5, more - 5]),
        }
    }

    /// Waits until every group is kept by as many nodes: those that vote, and those that follow, as its leader has it and all
    /// that vote. Before they know, they may need those that voted before.
    pub fn wait_until_kept_by(&self, asked: usize, voters: usize, learners: usize) {
        self.wait_until_kept(asked, [voters, learners], [voters, learners]);
    }

    /// The directory has its own numbers.
    fn wait_until_kept(&self, asked: usize, wanted: [usize; 2], directory: [usize; 2]) {
        let deadline = Instant::now() + FORMED_WITHIN;
        loop {
            let status = self.status_at(asked);
            let nodes = status["nodes"].as_array().expect("nodes");
            let led: Vec<_> = (nodes.iter().filter_map(|node| node["status"]["groups"].as_array()).flatten())
                .filter(|group| group["leads"] == true)
                .collect();
            let count = |group: &Value, list: &str| group[list].as_array().map_or(0, Vec::len);
            let all_know = |led: &Value| {
                let here = nodes.iter().filter_map(|node| node["status"]["groups"].as_array()).flatten();
                let knows = |group: &&Value| group["group"] == led["group"] && group["voters"] == led["voters"];
                here.filter(knows).count() >= count(led, "voters")
            };
            let is_there = |group: &&Value| {
                let wanted = if group["group"] == u16::MAX { directory } else { wanted };
                [count(group, "voters"), count(group, "learners")] == wanted && all_know(group)
            };
            if led.len() == usize::from(GROUPS) + 1 && led.iter().all(is_there) {
                return;
            }
            assert!(Instant::now() < deadline, "not kept by {wanted:?} and {directory:?}: {led:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs `kentongan cluster remove NAME`, asked at another node, until it is done.
    pub fn remove(&self, asked: usize, name: &str) {
        let output = self.begin_to_remove(asked, name).wait_with_output().expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Begins to run it.
    pub fn begin_to_remove(&self, asked: usize, name: &str) -> Child {
        let peer = self.nodes[asked].peers.to_string();
        let mut command = broker_command();
        command.args(["cluster", "remove", name, "--peer", &peer]).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("the program runs")
    }

    /// Runs `kentongan cluster`, asked at a node.
    pub fn command(&self, asked: usize, arguments: &[&str]) -> Output {
        let peer = self.nodes[asked].peers.to_string();
        let output = broker_command().arg("cluster").args(arguments).args(["--peer", &peer]).output();
        output.expect("the program runs")
    }

    /// Runs `kentongan cluster` with these arguments, asked at a node: what it prints, or why it failed.
    pub fn admin(&self, asked: usize, arguments: &[&str]) -> Result<String, String> {
        let peer = self.nodes[asked].peers.to_string();
        let output = broker_command().arg("cluster").args(arguments).args(["--peer", &peer]).output();
        let output = output.expect("the program runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// The same with `--json`, which must not fail.
    pub fn admin_json(&self, asked: usize, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let text = self.admin(asked, &arguments).unwrap_or_else(|error| panic!("{arguments:?} failed: {error}"));
        serde_json::from_str(&text).expect("JSON")
    }

    /// What `kentongan cluster status --json` says, asked at `node`.
    pub fn status_at(&self, node: usize) -> Value {
        let output = broker_command()
            .args(["cluster", "status", "--json", "--peer", &self.nodes[node].peers.to_string()])
            .output()
            .expect("the program runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cluster status failed: {error}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The group that keeps this Client Identifier or Topic Name.
    pub fn group_of(&self, name: &str) -> u16 {
        Slots::new(GROUPS).group_of(name)
    }

    /// Which node leads the group that keeps this Client Identifier or Topic Name, as all that run say.
    pub fn leader_of(&self, name: &str) -> usize {
        self.leader_of_group(self.group_of(name))
    }

    /// Which node leads the directory.
    pub fn directory_leader(&self) -> usize {
        self.leader_of_group(u16::MAX)
    }

    /// Which node leads this group.
    pub fn leader_of_group(&self, group: u16) -> usize {
        let asked = self.nodes.iter().position(|node| node.child.is_some()).expect("a running node");
        let deadline = Instant::now() + FORMED_WITHIN;
        loop {
            let status = self.status_at(asked);
            let leads = |node: &Value| {
                let groups = node["status"]["groups"].as_array()?;
                let found = groups.iter().find(|one| one["group"] == group)?;
                (found["leads"] == true).then(|| node["name"].as_str().map(str::to_owned))?
            };
            let leaders: Vec<_> = status["nodes"].as_array().expect("nodes").iter().filter_map(leads).collect();
            if let [leader] = &leaders[..] {
                return self.nodes.iter().position(|node| node.name == *leader).expect("one of ours");
            }
            assert!(Instant::now() < deadline, "group {group} is led by {leaders:?}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
        if !std::thread::panicking() {
            return;
        }
        for node in &self.nodes {
            let log = node.log.lock().unwrap_or_else(PoisonError::into_inner);
            let skipped = log.len().saturating_sub(LOG_LINES_SHOWN);
            eprintln!("== log of {} ({skipped} lines before it left out)", node.name);
            log[skipped..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// An address of the loopback network that no other process of the tests has, and the first of some ports there that no
/// other cluster of this process has: nodes must know each other's ports before they listen.
pub(super) fn place() -> (Ipv4Addr, u16) {
    static CLUSTERS: AtomicU16 = AtomicU16::new(0);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let base = 7000 + PORTS * CLUSTERS.fetch_add(1, Ordering::Relaxed);
    // Numbers of processes have 22 bits.
    (Ipv4Addr::new(127, 64 + high % 64, middle, low), base)
}
