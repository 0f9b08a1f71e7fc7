//! A node with many clients is killed: how long until all of them are served by the others, and what those who were there
//! before notice.
//!
//! The clients behave as badly as a fleet can: all come back at once, and who is refused or cut off tries again about every
//! second, without end.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::event::{Timespec, epoll};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Engine, Expected, Findings, PublisherPlan, begin_connect, close_without_trace},
    measure::{LatencySummary, SECOND, now_ns},
    nodes::Nodes,
    wire::{self, Target, handshake, packet_type},
};

/// New connections a second while everything is still well.
const OPENED_PER_SECOND: u64 = 2000;

/// How long opening all may take.
const OPEN_NS: u64 = 120 * SECOND;

/// How long until a client that was refused or cut off tries again, on average.
const RETRY_NS: u64 = SECOND;

/// How long after the kill a client that is still not served counts as lost.
const PATIENCE_NS: u64 = 180 * SECOND;

/// How long those who stay are looked at before the kill.
const BEFORE_NS: u64 = 5 * SECOND;

/// How long they are looked at after it, at least.
const AFTER_NS: u64 = 10 * SECOND;

/// Pairs of clients at the other nodes.
const ESTABLISHED: u32 = 50;

/// Messages a second between all of them.
const ESTABLISHED_RATE: f64 = 1000.0;

/// Events of one wait.
const EVENTS: usize = 1024;

/// What the loss of one node with many clients cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Return {
    /// Clients of the node.
    pub clients: usize,
    /// Milliseconds from the kill until half of them had their CONNACK.
    pub half_ms: f64,
    /// Until all had it.
    pub all_ms: f64,
    /// CONNECT that were refused or broken off.
    pub refused: u64,
    /// From when a message between those who stayed was due until it arrived, before the kill.
    pub before: LatencySummary,
    /// The same from the kill on until all were back.
    pub meanwhile: LatencySummary,
}

/// Kills `victim` under `clients` clients, and starts it again once they are served elsewhere.
pub fn run(nodes: &mut Nodes, victim: usize, clients: usize, seed: u64, run: u32) -> Result<Return> {
    let others: Vec<_> = (0..nodes.count()).filter(|node| *node != victim).collect();
    let survivors: Vec<_> = others.iter().map(|node| nodes.address(*node)).collect();
    let fleet = Fleet::start(nodes.address(victim), survivors, clients, seed, run)?;
    let mut engine = Engine::new(nodes.only(&others).places, ProtocolVersion::V5, run)?;
    add_established(&mut engine);
    engine.establish(OPEN_NS)?;
    engine.pace(0..ESTABLISHED as usize, ESTABLISHED_RATE);
    engine.start();
    let deadline = now_ns() + OPEN_NS;
    while fleet.served() < clients {
        fleet.check()?;
        ensure!(now_ns() < deadline, "only {} of {clients} clients were served before the kill", fleet.served());
        engine.run_until(now_ns() + SECOND / 10, &mut || ())?;
    }

    engine.reset_latencies();
    engine.run_until(now_ns() + BEFORE_NS, &mut || ())?;
    let before = engine.latency(0).summary();
    engine.reset_latencies();
    let killed_ns = now_ns();
    nodes.kill(victim)?;
    engine.run_until(killed_ns + AFTER_NS, &mut || ())?;
    while fleet.served() < clients && now_ns() < killed_ns + PATIENCE_NS {
        fleet.check()?;
        engine.run_until(now_ns() + SECOND / 10, &mut || ())?;
    }
    engine.stop();
    engine.run_while_moving(10 * SECOND, Engine::is_settled)?;
    let meanwhile = engine.latency(0).summary();
    let findings = engine.findings();
    engine.close(10 * SECOND)?;
    ensure!(findings == Findings::default(), "what clients that stayed sent one another went wrong: {findings:?}");
    let came = fleet.end()?;
    nodes.restart(victim)?;

    let lost = came.lost_sessions;
    ensure!(lost == 0, "{lost} clients came back to a session that was gone");
    let mut until: Vec<_> = came.served_ns.iter().flatten().map(|at| at.saturating_sub(killed_ns)).collect();
    ensure!(until.len() == clients, "{} of {clients} clients were not served again", clients - until.len());
    until.sort_unstable();
    let ms = |ns: Option<&u64>| ns.map_or(f64::NAN, |ns| *ns as f64 / 1e6);
    Ok(Return {
        clients,
        half_ms: ms(until.get(clients / 2)),
        all_ms: ms(until.last()),
        refused: came.refused,
        before,
        meanwhile,
    })
}

/// Publishers and subscribers, each pair on two of the nodes that stay.
fn add_established(engine: &mut Engine) {
    let root = engine.topic_root();
    for number in 0..ESTABLISHED {
        let topic = format!("{root}/{number}");
        engine.add_subscriber(topic.clone(), QoS::AtLeastOnce, &Expected::Each { first: number, count: 1 });
        engine.add_publisher(&PublisherPlan {
            target: Target::Topic(topic),
            qos: QoS::AtLeastOnce,
            retain: false,
            payload_bytes: 64,
            receivers: 1,
            window: 1000,
            messages_max: u64::MAX,
            paced: true,
            latency_class: 0,
        });
    }
}

/// Clients with persistent sessions on a thread of their own, which come back whenever they are cut off.
struct Fleet {
    thread: thread::JoinHandle<Came>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    served: AtomicUsize,
    is_over: AtomicBool,
    /// Why the thread ended before its time.
    failure: OnceLock<String>,
}

/// How they came back.
struct Came {
    /// When each was served again, if it was.
    served_ns: Vec<Option<u64>>,
    /// CONNECT that were refused or broken off.
    refused: u64,
    /// CONNACK without Session Present after the first.
    lost_sessions: u64,
}

impl Fleet {
    fn start(first: SocketAddr, then: Vec<SocketAddr>, clients: usize, seed: u64, run: u32) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let client = |_| Client { stage: Stage::Away, received: Vec::new(), to_send: Vec::new(), was_served: false };
        let opening = now_ns();
        let mut crowd = Crowd {
            first,
            then,
            run,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            clients: (0..clients).map(client).collect(),
            due: (0..clients).map(|n| Reverse((opening + n as u64 * SECOND / OPENED_PER_SECOND, n))).collect(),
            random: StdRng::seed_from_u64(seed),
            shared: Arc::clone(&shared),
            came: Came { served_ns: vec![None; clients], refused: 0, lost_sessions: 0 },
        };
        let thread = thread::spawn(move || {
            while !crowd.shared.is_over.load(Ordering::Relaxed) {
                if let Err(error) = crowd.turn() {
                    // There is nobody who could have set it before.
                    let _ = crowd.shared.failure.set(format!("{error:#}"));
                    break;
                }
            }
            crowd.leave()
        });
        Ok(Self { thread, shared })
    }

    /// Clients that are connected and subscribed now.
    fn served(&self) -> usize {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// An error if the thread ended.
    fn check(&self) -> Result<()> {
        self.shared.failure.get().map_or(Ok(()), |failure| bail!("the clients ended early: {failure}"))
    }

    fn end(self) -> Result<Came> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the clients' thread panicked"))
    }
}

/// All clients, and when those who are away try again.
struct Crowd {
    first: SocketAddr,
    then: Vec<SocketAddr>,
    run: u32,
    epoll: OwnedFd,
    clients: Vec<Client>,
    due: BinaryHeap<Reverse<(u64, usize)>>,
    random: StdRng,
    shared: Arc<Shared>,
    came: Came,
}

struct Client {
    stage: Stage,
    received: Vec<u8>,
    to_send: Vec<u8>,
    /// It had a session before.
    was_served: bool,
}

enum Stage {
    Away,
    /// CONNECT is on its way.
    Connecting(TcpStream),
    /// SUBSCRIBE is.
    Subscribing(TcpStream),
    Served(TcpStream),
}

/// What became of a client in one turn.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// It got its CONNACK, with this Session Present.
    Connected(bool),
    Subscribed,
}

impl Crowd {
    fn turn(&mut self) -> Result<()> {
        let now = now_ns();
        while let Some(Reverse((due, number))) = self.due.peek().copied()
            && due <= now
        {
            self.due.pop();
            if self.connect(number).is_err() {
                self.away(number);
            }
        }
        let until = self.due.peek().map_or(SECOND / 10, |Reverse((due, _))| due.saturating_sub(now)).min(SECOND / 10);
        let timeout = Timespec { tv_sec: 0, tv_nsec: until as _ };
        let mut events = Vec::with_capacity(EVENTS);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for sockets"),
        }
        for epoll::Event { data, .. } in events {
            self.advance(data.u64() as usize)?;
        }
        Ok(())
    }

    fn connect(&mut self, number: usize) -> Result<()> {
        let client = &mut self.clients[number];
        let address = if client.was_served { self.then[number % self.then.len()] } else { self.first };
        let id = format!("lt-{:08x}-r{number}", self.run);
        client.received.clear();
        client.to_send = handshake::connect(ProtocolVersion::V5, &id, 600, handshake::Session::Kept);
        let stream = begin_connect(address)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(number as u64), flags)?;
        client.stage = Stage::Connecting(stream);
        Ok(())
    }

    fn advance(&mut self, number: usize) -> Result<()> {
        let Self { clients, epoll, came, shared, run, .. } = self;
        let client = &mut clients[number];
        match client.advance(|| format!("lt/{run:08x}/reconnect/{number}")) {
            Ok(Step::Nothing) => {}
            Ok(Step::Connected(is_present)) => {
                came.lost_sessions += u64::from(client.was_served && !is_present);
            }
            Ok(Step::Subscribed) => {
                // The first time is the opening, the second what is measured.
                if client.was_served {
                    came.served_ns[number] = Some(now_ns());
                }
                client.was_served = true;
                shared.served.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                self.away(number);
                return Ok(());
            }
        }
        if client.to_send.is_empty()
            && let Some(stream) = client.stage.stream()
        {
            let data = epoll::EventData::new_u64(number as u64);
            epoll::modify(epoll, stream, data, epoll::EventFlags::IN)?;
        }
        Ok(())
    }

    /// A client that was cut off comes back at once, and one that was not let in later.
    fn away(&mut self, number: usize) {
        let now = now_ns();
        let was = std::mem::replace(&mut self.clients[number].stage, Stage::Away);
        let due = if matches!(was, Stage::Served(_)) {
            self.shared.served.fetch_sub(1, Ordering::Relaxed);
            now
        } else {
            self.came.refused += 1;
            now + RETRY_NS / 2 + self.random.random_range(0..RETRY_NS)
        };
        if let Some(stream) = was.into_stream() {
            close_without_trace(stream);
        }
        self.due.push(Reverse((due, number)));
    }

    fn leave(self) -> Came {
        self.clients.into_iter().filter_map(|client| client.stage.into_stream()).for_each(close_without_trace);
        self.came
    }
}

impl Stage {
    fn stream(&self) -> Option<&TcpStream> {
        match self {
            Self::Away => None,
            Self::Connecting(stream) | Self::Subscribing(stream) | Self::Served(stream) => Some(stream),
        }
    }

    fn into_stream(self) -> Option<TcpStream> {
        match self {
            Self::Away => None,
            Self::Connecting(stream) | Self::Subscribing(stream) | Self::Served(stream) => Some(stream),
        }
    }
}

impl Client {
    /// Sends and reads what is possible. An error: it is not connected any more.
    fn advance(&mut self, filter: impl Fn() -> String) -> Result<Step> {
        self.send()?;
        let Some(mut stream) = self.stage.stream() else {
            return Ok(Step::Nothing);
        };
        let mut bytes = [0; 512];
        match stream.read(&mut bytes) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(read) => self.received.extend_from_slice(&bytes[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                return Ok(Step::Nothing);
            }
            Err(error) => return Err(error.into()),
        }
        let Some(frame) = wire::scan(&self.received)?.filter(|frame| frame.bytes() <= self.received.len()) else {
            return Ok(Step::Nothing);
        };
        let packet: Vec<_> = self.received.drain(..frame.bytes()).collect();
        let body = &packet[frame.header_bytes..];
        let stage = std::mem::replace(&mut self.stage, Stage::Away);
        match (stage, frame.first >> 4) {
            (Stage::Connecting(stream), packet_type::CONNACK) => {
                handshake::read_connack(ProtocolVersion::V5, body)?
                    .map_err(|code| anyhow!("the broker refused CONNECT with code {code:#04x}"))?;
                self.stage = Stage::Subscribing(stream);
                self.to_send = handshake::subscribe(ProtocolVersion::V5, 1, &filter(), QoS::AtLeastOnce);
                self.send()?;
                Ok(Step::Connected(body.first().is_some_and(|flags| flags & 1 == 1)))
            }
            (Stage::Subscribing(stream), packet_type::SUBACK) => {
                let (_, reason) = handshake::read_suback(body)?;
                ensure!(reason < 0x80, "the broker refused SUBSCRIBE with {reason:#04x}");
                self.stage = Stage::Served(stream);
                Ok(Step::Subscribed)
            }
            _ => bail!("the broker sent an unexpected packet (first byte {:#04x})", frame.first),
        }
    }

    fn send(&mut self) -> Result<()> {
        let Some(mut stream) = self.stage.stream() else {
            return Ok(());
        };
        while !self.to_send.is_empty() {
            match stream.write(&self.to_send) {
                Ok(sent) => drop(self.to_send.drain(..sent)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
