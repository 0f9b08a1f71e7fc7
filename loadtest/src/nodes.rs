//! Nodes of Kentongan that are one broker, each a process on loopback with a data directory of its own.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    engine::Places,
    link::Layer,
    process::{Process, accepts_connect},
    scenario::Broker,
};

/// How long an HTTP answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Nodes that run. Dropping it ends them.
#[derive(Debug)]
pub struct Nodes {
    program: PathBuf,
    nodes: Vec<Node>,
    /// So many of them form the cluster; the others join it.
    founders: usize,
    log: &'static str,
    /// Cores that each may use.
    cores: Option<f64>,
    dir: TempDir,
}

#[derive(Debug)]
struct Node {
    addresses: Addresses,
    /// Where the others dial it.
    advertised: SocketAddr,
    data: PathBuf,
    environment: Vec<(String, String)>,
    /// Another program than the others have.
    program: Option<PathBuf>,
    process: Option<Process>,
}

/// Where one node listens on loopback.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    mqtt: SocketAddr,
    http: SocketAddr,
    peers: SocketAddr,
}

impl Nodes {
    /// The places of `count` empty nodes, none of which runs yet.
    pub fn prepare(program: &Path, count: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (host, base) = place();
        let at = |port: usize| SocketAddr::from((host, base + port as u16));
        let node = |index: usize| Node {
            addresses: Addresses { peers: at(index * 4), mqtt: at(index * 4 + 1), http: at(index * 4 + 2) },
            advertised: at(index * 4),
            data: dir.path().join(format!("n{}", index + 1)),
            environment: Vec::new(),
            program: None,
            process: None,
        };
        let nodes = (0..count).map(node).collect();
        Ok(Self { program: program.to_owned(), nodes, founders: count, log: "warn", cores: None, dir })
    }

    /// An address for each node that nobody else has.
    pub fn spare_addresses(&self) -> Vec<SocketAddr> {
        let after = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() + 3);
        self.nodes.iter().map(|node| after(node.addresses.peers)).collect()
    }

    /// Where each listens for the others.
    pub fn peer_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.addresses.peers).collect()
    }

    /// Lets the others dial a node elsewhere than where it listens. Before any of them runs.
    pub fn advertise(&mut self, addresses: &[SocketAddr]) {
        self.nodes.iter_mut().zip(addresses).for_each(|(node, address)| node.advertised = *address);
    }

    /// Only the first of them form the cluster. Before any of them runs.
    pub fn set_founders(&mut self, founders: usize) {
        self.founders = founders;
    }

    /// What a node runs from its next start on; `None`: what the others do.
    pub fn set_program(&mut self, index: usize, program: Option<PathBuf>) {
        self.nodes[index].program = program;
    }

    /// Holds each to so many cores from its next start on.
    pub fn set_cores(&mut self, cores: Option<f64>) {
        self.cores = cores;
    }

    /// What all of them log.
    pub fn log(&mut self, filter: &'static str) {
        self.log = filter;
    }

    /// Environment variables of a node from its next start on.
    pub fn environment(&mut self, index: usize) -> &mut Vec<(String, String)> {
        &mut self.nodes[index].environment
    }

    /// Lets a node have its data elsewhere. Before it runs.
    pub fn set_data(&mut self, index: usize, data: PathBuf) {
        self.nodes[index].data = data;
    }

    /// Where a node has its data.
    pub fn data(&self, index: usize) -> &Path {
        &self.nodes[index].data
    }

    /// Starts all, and waits until each has a lease and lets clients in.
    pub fn spawn_all(&mut self) -> Result<()> {
        (0..self.count()).try_for_each(|index| self.spawn(index))?;
        (0..self.count()).try_for_each(|index| self.await_ready(index))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Where clients connect to node `index`.
    pub fn address(&self, index: usize) -> SocketAddr {
        self.nodes[index].addresses.mqtt
    }

    /// All of them, with publishers spread over all, and each one's subscriber at the next node.
    pub fn rotated(&self) -> Broker {
        self.only(&(0..self.count()).collect::<Vec<_>>())
    }

    /// All of them, with publishers at the first and subscribers spread over the others.
    pub fn one_to_others(&self) -> Broker {
        let subscribers = (1..self.count()).map(|index| self.address(index)).collect();
        self.broker(Places { publishers: vec![self.address(0)], subscribers, layer: Layer::Plain })
    }

    /// Those with these indexes, with publishers spread over them, and each one's subscriber at the next.
    pub fn only(&self, indexes: &[usize]) -> Broker {
        let publishers: Vec<_> = indexes.iter().map(|index| self.address(*index)).collect();
        let mut subscribers = publishers.clone();
        subscribers.rotate_left(1);
        self.broker(Places { publishers, subscribers, layer: Layer::Plain })
    }

    fn broker(&self, places: Places) -> Broker {
        Broker { places, pids: (0..self.count()).filter_map(|index| self.pid(index)).collect() }
    }

    /// The directory in which all have their data.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills a node as `kill -9` does.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        self.nodes[index].process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Sends a signal to a node that runs.
    pub fn signal(&self, index: usize, signal: Signal) -> Result<()> {
        self.nodes[index].process.as_ref().with_context(|| format!("node {} does not run", index + 1))?.signal(signal)
    }

    /// Waits until a node ends by itself.
    pub fn await_end(&mut self, index: usize, within: Duration) -> Result<ExitStatus> {
        let Some(process) = &mut self.nodes[index].process else {
            bail!("node {} does not run", index + 1);
        };
        let status = process.await_end(within).with_context(|| format!("node {} does not end", index + 1))?;
        self.nodes[index].process = None;
        Ok(status)
    }

    /// The process of a node, if there is one.
    pub fn pid(&self, index: usize) -> Option<u32> {
        self.nodes[index].process.as_ref().map(Process::id)
    }

    /// Starts a node that was killed, on what it had, and waits until it serves.
    pub fn restart(&mut self, index: usize) -> Result<()> {
        self.spawn(index)?;
        self.await_ready(index)
    }

    /// Starts a node that does not run.
    pub fn spawn(&mut self, index: usize) -> Result<()> {
        let founders = self.nodes.iter().take(self.founders);
        let seeds: Vec<_> = founders.map(|node| node.advertised.to_string()).collect();
        let node = &mut self.nodes[index];
        let mut command = Command::new(node.program.as_ref().unwrap_or(&self.program));
        command.arg("serve").args(node.arguments(index, &seeds.join(","), self.log));
        command.envs(node.environment.iter().map(|(name, value)| (name, value)));
        let log = self.dir.path().join(format!("node-{}.log", index + 1));
        let started = Process::start(&mut command, log);
        let mut process = started.with_context(|| format!("starting {}", self.program.display()))?;
        self.cores.map_or(Ok(()), |cores| process.limit(cores))?;
        node.process = Some(process);
        Ok(())
    }

    /// Waits until a node serves.
    pub fn await_ready(&mut self, index: usize) -> Result<()> {
        let Node { addresses, process, .. } = &mut self.nodes[index];
        let Some(process) = process else {
            bail!("node {} does not run", index + 1);
        };
        let is_ready = || {
            let answer = ask(addresses.http, "/readyz")?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "it says: {}", answer.lines().last().unwrap_or_default());
            accepts_connect(addresses.mqtt)
        };
        process.await_ready(is_ready).with_context(|| format!("node {} did not become ready", index + 1))
    }

    /// Whether a node says that it is ready for clients.
    pub fn is_ready(&self, index: usize) -> bool {
        ask(self.nodes[index].addresses.http, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    }

    /// What `kentongan cluster status --json` says, asked at a node.
    pub fn status(&self, index: usize) -> Result<serde_json::Value> {
        let peer = self.nodes[index].addresses.peers.to_string();
        let output = Command::new(&self.program).args(["cluster", "status", "--json", "--peer", &peer]).output()?;
        ensure!(output.status.success(), "cluster status failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        serde_json::from_slice(&output.stdout).context("reading what cluster status says")
    }

    /// Which node leads the directory, as `asked` has it.
    pub fn directory_leader(&self, asked: usize) -> Result<usize> {
        const DIRECTORY: u64 = u16::MAX as u64;
        let status = self.status(asked)?;
        let leads = |node: &serde_json::Value| {
            let groups = node["status"]["groups"].as_array()?;
            groups.iter().find(|group| group["group"] == DIRECTORY && group["leads"] == true)?;
            node["name"].as_str()?.strip_prefix('n')?.parse::<usize>().ok()
        };
        let nodes = status["nodes"].as_array().context("status names no nodes")?;
        nodes.iter().find_map(leads).map(|number| number - 1).context("nobody leads the directory")
    }

    /// `kentongan cluster remove`, asked at a node, which waits until it is done.
    pub fn remover(&self, asked: usize, removed: usize) -> Command {
        let peer = self.nodes[asked].addresses.peers.to_string();
        let mut command = Command::new(&self.program);
        command.args(["cluster", "remove", &format!("n{}", removed + 1), "--wait-seconds", "90", "--peer", &peer]);
        command
    }

    /// The counter called `name` of a node, by the value of its first label.
    pub fn counters(&self, index: usize, name: &str) -> Result<Vec<(String, u64)>> {
        Ok(labelled(&ask(self.nodes[index].addresses.http, "/metrics")?, name))
    }

    /// A metric, added up over all nodes.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let mut sum = 0.0;
        for node in &self.nodes {
            sum += sample(&ask(node.addresses.http, "/metrics")?, name)?;
        }
        Ok(sum)
    }

    /// What became of a node that ended by itself, with the end of what it wrote.
    pub fn ended(&mut self) -> Option<String> {
        let ended = |(index, node): (usize, &mut Node)| {
            let process = node.process.as_mut()?;
            process.has_ended().then(|| format!("node {} ended; {}", index + 1, process.log_tail()))
        };
        self.nodes.iter_mut().enumerate().find_map(ended)
    }
}

impl Drop for Nodes {
    /// Together: one that ends alone would wait for the others.
    fn drop(&mut self) {
        self.nodes.iter_mut().filter_map(|node| node.process.as_mut()).for_each(Process::terminate);
    }
}

impl Node {
    fn arguments(&self, index: usize, seeds: &str, log: &str) -> Vec<String> {
        let flags = [
            ("--node", format!("n{}", index + 1)),
            ("--cluster", self.addresses.peers.to_string()),
            ("--advertise", self.advertised.to_string()),
            ("--seeds", seeds.into()),
            ("--mqtt", self.addresses.mqtt.to_string()),
            ("--http", self.addresses.http.to_string()),
            ("--data-dir", self.data.display().to_string()),
            ("--log", log.into()),
        ];
        flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect()
    }
}

/// An address of the loopback network that no other process has, and the first of some ports there that no other nodes of
/// this process have. The system gives none of these to anybody by itself, so a node that is down keeps its own.
fn place() -> (Ipv4Addr, u16) {
    static CLUSTERS: AtomicU16 = AtomicU16::new(0);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // There are fewer ports than a long run may start clusters, which follow one another.
    let number = CLUSTERS.fetch_add(1, Ordering::Relaxed) % 400;
    // Numbers of processes have 22 bits. 127.64 to 127.127 are those of the broker's tests.
    (Ipv4Addr::new(127, 128 + high % 64, middle, low), 7000 + 40 * number)
}

/// Head and body of the answer to a GET.
pub fn ask(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The sample called `name`, without labels, in the text format of Prometheus.
pub fn sample(text: &str, name: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.with_context(|| format!("there is no metric {name}"))?.trim().parse().context("a metric is not a number")
}

/// The samples called `name`, by the value of their first label.
pub fn labelled(text: &str, name: &str) -> Vec<(String, u64)> {
    let series = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    let sample = |rest: &str| {
        let (labels, value) = rest.rsplit_once("} ")?;
        Some((labels.split('"').nth(1)?.to_owned(), value.parse::<f64>().ok()? as u64))
    };
    series.filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_told_of_all_and_has_a_directory_of_its_own() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let node = Node {
            addresses: Addresses { peers: at(1), mqtt: at(2), http: at(3) },
            advertised: at(4),
            data: "/d/n2".into(),
            environment: Vec::new(),
            program: None,
            process: None,
        };
        let arguments = node.arguments(1, "127.0.0.1:9,127.0.0.1:4", "warn").join(" ");
        let expected = "--node n2 --cluster 127.0.0.1:1 --advertise 127.0.0.1:4 --seeds 127.0.0.1:9,127.0.0.1:4 \
                        --mqtt 127.0.0.1:2 --http 127.0.0.1:3 --data-dir /d/n2 --log warn";
        assert_eq!(arguments, expected);
    }

    #[test]
    fn counters_are_told_apart_by_their_first_label() {
        let text = "dropped_total{reason=\"full\"} 3\ndropped_total{reason=\"late\",node=\"1\"} 4\ndropped_totals{a=\"b\"} 9\n";
        assert_eq!(labelled(text, "dropped_total"), [("full".into(), 3), ("late".into(), 4)]);
    }

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# TYPE syncs_total counter\nsyncs_total 12\nsyncs 3.5\nsyncs_total{a=\"b\"} 9\n";
        assert_eq!(sample(text, "syncs").unwrap(), 3.5);
        assert_eq!(sample(text, "syncs_total").unwrap(), 12.0);
        assert!(sample(text, "syn").is_err());
    }
}
