//! Nodes of Kentongan that are one broker, each a process on loopback with a data directory of its own.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    engine::Places,
    process::{Process, accepts_connect, free_port},
    scenario::Broker,
};

/// How long an HTTP answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Nodes that run. Dropping it ends them.
#[derive(Debug)]
pub struct Nodes {
    program: PathBuf,
    nodes: Vec<Node>,
    dir: TempDir,
}

#[derive(Debug)]
struct Node {
    ports: Ports,
    process: Process,
}

/// Where one node listens on loopback.
#[derive(Debug, Clone, Copy)]
struct Ports {
    mqtt: u16,
    http: u16,
    peers: u16,
}

impl Nodes {
    /// Starts `count` empty nodes and waits until each has a lease and lets clients in.
    pub fn start(program: &Path, count: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports = (0..count)
            .map(|_| Ok(Ports { mqtt: free_port()?, http: free_port()?, peers: free_port()? }))
            .collect::<Result<Vec<_>>>()?;
        let mut nodes = Vec::new();
        for index in 0..count {
            let process = start_process(program, dir.path(), &ports, index)?;
            nodes.push(Node { ports: ports[index], process });
        }
        let mut nodes = Self { program: program.to_owned(), nodes, dir };
        for index in 0..count {
            nodes.await_ready(index)?;
        }
        Ok(nodes)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Where clients connect to node `index`.
    pub fn address(&self, index: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.nodes[index].ports.mqtt).into()
    }

    /// All of them, with publishers spread over all, and each one's subscriber at the next node.
    pub fn rotated(&self) -> Broker {
        let publishers: Vec<_> = (0..self.count()).map(|index| self.address(index)).collect();
        let mut subscribers = publishers.clone();
        subscribers.rotate_left(1);
        self.broker(Places { publishers, subscribers })
    }

    /// All of them, with publishers at the first and subscribers spread over the others.
    pub fn one_to_others(&self) -> Broker {
        let subscribers = (1..self.count()).map(|index| self.address(index)).collect();
        self.broker(Places { publishers: vec![self.address(0)], subscribers })
    }

    fn broker(&self, places: Places) -> Broker {
        Broker { places, pids: self.nodes.iter().map(|node| node.process.id()).collect() }
    }

    /// The directory in which all have their data.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills a node as `kill -9` does.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        self.nodes[index].process.kill()
    }

    /// Starts a node that was killed, on what it had, and waits until it serves.
    pub fn restart(&mut self, index: usize) -> Result<()> {
        let ports: Vec<_> = self.nodes.iter().map(|node| node.ports).collect();
        self.nodes[index].process = start_process(&self.program, self.dir.path(), &ports, index)?;
        self.await_ready(index)
    }

    fn await_ready(&mut self, index: usize) -> Result<()> {
        let address = self.address(index);
        let Node { ports, process } = &mut self.nodes[index];
        let is_ready = || {
            let answer = ask(ports.http, "/readyz")?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "it says: {}", answer.lines().last().unwrap_or_default());
            accepts_connect(address)
        };
        process.await_ready(is_ready).with_context(|| format!("node {} did not become ready", index + 1))
    }

    /// A metric, added up over all nodes.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let mut sum = 0.0;
        for node in &self.nodes {
            sum += sample(&ask(node.ports.http, "/metrics")?, name)?;
        }
        Ok(sum)
    }

    /// What became of a node that ended by itself, with the end of what it wrote.
    pub fn ended(&mut self) -> Option<String> {
        let ended = |(index, node): (usize, &mut Node)| {
            node.process.has_ended().then(|| format!("node {} ended; {}", index + 1, node.process.log_tail()))
        };
        self.nodes.iter_mut().enumerate().find_map(ended)
    }
}

impl Drop for Nodes {
    /// Together: one that ends alone would wait for the others.
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.process.terminate());
    }
}

fn start_process(program: &Path, dir: &Path, ports: &[Ports], index: usize) -> Result<Process> {
    let mut command = Command::new(program);
    command.arg("serve").args(arguments(dir, ports, index));
    let log = dir.join(format!("node-{}.log", index + 1));
    Process::start(&mut command, log).with_context(|| format!("starting {}", program.display()))
}

fn arguments(dir: &Path, ports: &[Ports], index: usize) -> Vec<String> {
    let loopback = |port: u16| format!("127.0.0.1:{port}");
    let seeds: Vec<_> = ports.iter().map(|ports| loopback(ports.peers)).collect();
    let own = ports[index];
    let node = format!("n{}", index + 1);
    let data = dir.join(&node).display().to_string();
    let flags = [
        ("--node", node),
        ("--cluster", loopback(own.peers)),
        ("--seeds", seeds.join(",")),
        ("--mqtt", loopback(own.mqtt)),
        ("--http", loopback(own.http)),
        ("--data-dir", data),
        ("--log", "warn".into()),
    ];
    flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect()
}

/// Head and body of the answer to a GET.
fn ask(port: u16, path: &str) -> Result<String> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The sample called `name`, without labels, in the text format of Prometheus.
fn sample(text: &str, name: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.with_context(|| format!("there is no metric {name}"))?.trim().parse().context("a metric is not a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_told_of_all_and_has_a_directory_of_its_own() {
        let ports = |n| Ports { mqtt: n, http: 100 + n, peers: 200 + n };
        let arguments = arguments(Path::new("/d"), &[ports(1), ports(2)], 1).join(" ");
        let expected = "--node n2 --cluster 127.0.0.1:202 --seeds 127.0.0.1:201,127.0.0.1:202 --mqtt 127.0.0.1:2 \
                        --http 127.0.0.1:102 --data-dir /d/n2 --log warn";
        assert_eq!(arguments, expected);
    }

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# TYPE syncs_total counter\nsyncs_total 12\nsyncs 3.5\nsyncs_total{a=\"b\"} 9\n";
        assert_eq!(sample(text, "syncs").unwrap(), 3.5);
        assert_eq!(sample(text, "syncs_total").unwrap(), 12.0);
        assert!(sample(text, "syn").is_err());
    }
}
