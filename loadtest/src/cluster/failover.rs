//! One node is killed: how long until the others serve again.
//!
//! Publishers at the other nodes send QoS 1 messages, one at a time, to persistent sessions; others try to connect and to
//! subscribe, and the clients of the killed node to take up their sessions. There are enough of each that most groups have one,
//! so that the slowest shows the slowest group.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, bail, ensure};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use serde::{Deserialize, Serialize};

use crate::{
    measure::{SECOND, now_ns},
    nodes::Nodes,
    wire::{
        PublishTemplate, Target,
        handshake::{self, Session},
        packet_type,
    },
};

/// Publishers, each to a session of its own, over all surviving nodes.
const PUBLISHERS: usize = 32;

/// Clients that try to connect and to subscribe, over all surviving nodes.
const CONNECTORS: usize = 32;

/// Clients of the node that is killed, with persistent sessions.
const OWNED: usize = 32;

/// From an acknowledgement to the next message of the same publisher.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a client waits for one answer before it begins again. A broker may withhold one for ten seconds.
const ANSWER: Duration = Duration::from_secs(12);

/// How long nothing may be answered until it counts as never.
const PATIENCE_NS: u64 = 60 * SECOND;

/// The longest pause of a publisher that is served.
const STEADY_GAP_NS: u64 = SECOND / 4;

/// How long all must have been served for a node's loss to be over.
const STEADY_NS: u64 = 3 * SECOND;

/// What the loss of one node cost, in milliseconds from the kill.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    /// Which node, counted from 0.
    pub node: usize,
    /// Until every publisher was acknowledged again.
    pub acknowledged_ms: f64,
    /// Until a CONNECT of every client was accepted.
    pub connected_ms: f64,
    /// Until a SUBSCRIBE of every client was answered.
    pub subscribed_ms: f64,
    /// Until every client of the node had taken up its session elsewhere.
    pub resumed_ms: f64,
    /// Whether the node led the directory.
    pub led_directory: bool,
}

/// Kills one node after the other, and starts each again.
pub fn run(nodes: &mut Nodes, kills: usize, run: u32, mut tell: impl FnMut(usize)) -> Result<Vec<Kill>> {
    for number in 0..PUBLISHERS {
        let id = format!("lt-{run:08x}-f{number}");
        let mut client = Client::connect(nodes.address(number % nodes.count()), &id, Session::Kept)?;
        client.subscribe(&topic(run, number))?;
        client.disconnect()?;
    }
    let mut results = Vec::new();
    for number in 0..kills {
        tell(number);
        let victim = number % nodes.count();
        results.push(kill_one(nodes, victim, run, number)?);
        nodes.restart(victim)?;
        // It is ready, but its caches and its disk are not at rest yet, and the next kill is not to pay for this restart.
        thread::sleep(Duration::from_secs(2));
    }
    Ok(results)
}

fn kill_one(nodes: &mut Nodes, victim: usize, run: u32, round: usize) -> Result<Kill> {
    let survivors: Vec<_> = (0..nodes.count()).filter(|node| *node != victim).map(|node| nodes.address(node)).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|number| Publisher::start(survivors[number % survivors.len()], run, number, Arc::clone(&is_over)))
        .collect();
    let owned_id = |number: usize| format!("lt-{run:08x}-o{number}");
    let owned: Vec<_> = (0..OWNED)
        .map(|number| Client::connect(nodes.address(victim), &owned_id(number), Session::Kept))
        .collect::<Result<_>>()?;
    wait_until(now_ns() + PATIENCE_NS, || publishers.iter().all(|one| one.is_steady(now_ns(), SECOND)));

    let led_directory = nodes.directory_leader(victim)? == victim;
    nodes.kill(victim)?;
    let killed_ns = now_ns();
    drop(owned);
    let resumers: Vec<_> = (0..OWNED)
        .map(|number| {
            let (address, id) = (survivors[number % survivors.len()], owned_id(number));
            thread::spawn(move || resumed(address, &id, killed_ns + PATIENCE_NS))
        })
        .collect();
    let connectors: Vec<_> = (0..CONNECTORS)
        .map(|number| {
            let (address, id) = (survivors[number % survivors.len()], format!("lt-{run:08x}-c{round}-{number}"));
            thread::spawn(move || first_answers(address, &id, killed_ns + PATIENCE_NS))
        })
        .collect();
    let mut answered = (0, 0);
    for connector in connectors {
        let (connected_ns, subscribed_ns) = connector.join().map_err(|_| anyhow!("a client panicked"))??;
        answered = (answered.0.max(connected_ns), answered.1.max(subscribed_ns));
    }
    let mut resumed_ns = 0;
    for resumer in resumers {
        resumed_ns = resumed_ns.max(resumer.join().map_err(|_| anyhow!("a client panicked"))??);
    }
    let deadline = killed_ns + PATIENCE_NS;
    wait_until(deadline, || publishers.iter().all(|one| one.is_steady(now_ns(), STEADY_NS)));
    is_over.store(true, Ordering::Relaxed);
    let mut acknowledged_ns = 0;
    for publisher in publishers {
        let acks = publisher.thread.join().map_err(|_| anyhow!("a publisher panicked"))?;
        let Some(recovered) = recovered_ns(&acks, killed_ns) else {
            bail!("a publisher was never acknowledged again");
        };
        acknowledged_ns = acknowledged_ns.max(recovered);
    }
    let ms = |ns: u64| ns as f64 / 1e6;
    Ok(Kill {
        node: victim,
        acknowledged_ms: ms(acknowledged_ns),
        connected_ms: ms(answered.0 - killed_ns),
        subscribed_ms: ms(answered.1 - killed_ns),
        resumed_ms: ms(resumed_ns - killed_ns),
        led_directory,
    })
}

/// From the kill to the end of the longest time without an acknowledgement after it, if that was long enough to be noticed, and nothing if
/// not; `None`: nothing came any more.
fn recovered_ns(acks: &[u64], killed_ns: u64) -> Option<u64> {
    let first = acks.partition_point(|ack| *ack <= killed_ns);
    let after = &acks[first..];
    let before = std::iter::once(&killed_ns).chain(after);
    let (from, end) = before.zip(after).max_by_key(|(from, to)| *to - *from)?;
    // Whose group led elsewhere shows the pauses of any moment.
    Some(if end - from < STEADY_GAP_NS { 0 } else { end - killed_ns })
}

fn wait_until(deadline_ns: u64, condition: impl Fn() -> bool) {
    while !condition() && now_ns() < deadline_ns {
        thread::sleep(Duration::from_millis(20));
    }
}

fn topic(run: u32, number: usize) -> String {
    format!("lt/{run:08x}/failover/{number}")
}

/// A publisher on a thread of its own.
struct Publisher {
    thread: thread::JoinHandle<Vec<u64>>,
    progress: Arc<Progress>,
}

/// What others may see of a publisher meanwhile.
#[derive(Default)]
struct Progress {
    last_ack_ns: AtomicU64,
    steady_since_ns: AtomicU64,
}

impl Publisher {
    fn start(address: SocketAddr, run: u32, number: usize, is_over: Arc<AtomicBool>) -> Self {
        let progress = Arc::new(Progress::default());
        let shown = Arc::clone(&progress);
        let thread = thread::spawn(move || {
            let mut acks = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                // The broker closed the connection, or lets nobody in: the next try shows how long.
                if publish(address, run, number, &is_over, &shown, &mut acks).is_err() {
                    thread::sleep(PAUSE);
                }
            }
            acks
        });
        Self { thread, progress }
    }

    /// Whether it was served without a gap for `length_ns`.
    fn is_steady(&self, now: u64, length_ns: u64) -> bool {
        let last = self.progress.last_ack_ns.load(Ordering::Relaxed);
        let since = self.progress.steady_since_ns.load(Ordering::Relaxed);
        last > 0 && now.saturating_sub(last) < STEADY_GAP_NS && last.saturating_sub(since) > length_ns
    }
}

impl Progress {
    fn acknowledged(&self, now: u64) {
        if now.saturating_sub(self.last_ack_ns.load(Ordering::Relaxed)) > STEADY_GAP_NS {
            self.steady_since_ns.store(now, Ordering::Relaxed);
        }
        self.last_ack_ns.store(now, Ordering::Relaxed);
    }
}

fn publish(
    address: SocketAddr,
    run: u32,
    number: usize,
    is_over: &AtomicBool,
    progress: &Progress,
    acks: &mut Vec<u64>,
) -> Result<()> {
    let mut client = Client::connect(address, &format!("lt-{run:08x}-g{number}"), Session::Clean)?;
    let target = Target::Topic(topic(run, number));
    let who = (run, number as u32);
    let template = PublishTemplate::new(ProtocolVersion::V3_1_1, QoS::AtLeastOnce, false, &target, 64, who);
    while !is_over.load(Ordering::Relaxed) {
        let mut packet = Vec::new();
        template.append(&mut packet, 1, acks.len() as u64, now_ns());
        client.stream.write_all(&packet)?;
        let (first, _) = client.read()?;
        ensure!(first >> 4 == packet_type::PUBACK, "the broker answered a PUBLISH with {first:#04x}");
        let now = now_ns();
        progress.acknowledged(now);
        acks.push(now);
        thread::sleep(PAUSE);
    }
    client.disconnect()
}

/// When the first CONNECT and the first SUBSCRIBE of a client were answered with success.
fn first_answers(address: SocketAddr, id: &str, deadline_ns: u64) -> Result<(u64, u64)> {
    let mut connected = None;
    while now_ns() < deadline_ns {
        let subscribed = Client::connect(address, id, Session::Clean).and_then(|mut client| {
            connected.get_or_insert_with(now_ns);
            client.subscribe(id)?;
            Ok((now_ns(), client.disconnect()))
        });
        if let (Ok((subscribed, _)), Some(connected)) = (subscribed, connected) {
            return Ok((connected, subscribed));
        }
        thread::sleep(PAUSE);
    }
    bail!("{id} was not served again")
}

/// When a client had its session again.
fn resumed(address: SocketAddr, id: &str, deadline_ns: u64) -> Result<u64> {
    while now_ns() < deadline_ns {
        if let Ok(client) = Client::connect(address, id, Session::Kept) {
            let resumed = now_ns();
            client.disconnect()?;
            return Ok(resumed);
        }
        thread::sleep(PAUSE);
    }
    bail!("{id} never had its session again")
}

/// A client that waits for each answer.
struct Client {
    stream: TcpStream,
}

impl Client {
    fn connect(address: SocketAddr, id: &str, session: Session) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(&handshake::connect(ProtocolVersion::V3_1_1, id, 60, session))?;
        let mut client = Self { stream };
        let (first, body) = client.read()?;
        ensure!(first >> 4 == packet_type::CONNACK, "the broker answered CONNECT with {first:#04x}");
        match handshake::read_connack(ProtocolVersion::V3_1_1, &body)? {
            Ok(_) => Ok(client),
            Err(code) => bail!("the broker refused CONNECT with code {code}"),
        }
    }

    fn subscribe(&mut self, filter: &str) -> Result<()> {
        let subscribe = handshake::subscribe(ProtocolVersion::V3_1_1, 1, filter, QoS::AtLeastOnce);
        self.stream.write_all(&subscribe)?;
        let (first, body) = self.read()?;
        ensure!(first >> 4 == packet_type::SUBACK, "the broker answered SUBSCRIBE with {first:#04x}");
        let (_, reason) = handshake::read_suback(&body)?;
        ensure!(reason < 0x80, "the broker refused SUBSCRIBE");
        Ok(())
    }

    /// First byte and body of the next packet, which is a short one: all that these clients are sent.
    fn read(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        ensure!(head[1] < 0x80, "the broker sent a long packet");
        let mut body = vec![0; usize::from(head[1])];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    fn disconnect(mut self) -> Result<()> {
        Ok(self.stream.write_all(&[0xE0, 0])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_loss_cost_ends_with_the_longest_gap_after_it() {
        let recovered = |acks: &[u64]| {
            let acks: Vec<_> = acks.iter().map(|ms| ms * SECOND / 1000).collect();
            recovered_ns(&acks, SECOND).map(|ns| ns * 1000 / SECOND)
        };
        assert_eq!(recovered(&[900, 990, 1050, 4000, 4100, 4200]), Some(3000), "one was still under way");
        assert_eq!(recovered(&[900, 990, 2500, 2600]), Some(1500));
        assert_eq!(recovered(&[900, 990, 1010, 1020, 1150, 1160]), Some(0), "nothing that anybody notices");
        assert_eq!(recovered(&[900, 990]), None);
    }

    #[test]
    fn a_publisher_is_steady_once_no_gap_was_long() {
        let progress = Arc::new(Progress::default());
        let publisher = Publisher { thread: thread::spawn(Vec::new), progress: Arc::clone(&progress) };
        assert!(!publisher.is_steady(10 * SECOND, 0));
        progress.acknowledged(10 * SECOND);
        progress.acknowledged(10 * SECOND + STEADY_GAP_NS);
        assert!(publisher.is_steady(10 * SECOND + STEADY_GAP_NS, STEADY_GAP_NS - 1));
        assert!(!publisher.is_steady(10 * SECOND + 2 * STEADY_GAP_NS, 0), "silent since");
        progress.acknowledged(10 * SECOND + 3 * STEADY_GAP_NS);
        assert!(!publisher.is_steady(10 * SECOND + 3 * STEADY_GAP_NS, 1), "a gap begins it anew");
    }
}
