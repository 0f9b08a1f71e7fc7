//! Many clients on one thread that behave as badly as a fleet can: whoever is cut off comes back at once, and who is refused
//! tries again about every second, without end.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{ErrorKind, Read},
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::event::{Timespec, epoll};

use crate::{
    link::{Layer, Link},
    measure::{SECOND, now_ns},
    wire::{
        self,
        handshake::{self, Login},
        packet_type,
    },
};

/// How long until a client that was refused or cut off tries again, on average.
const RETRY_NS: u64 = SECOND;

/// Events of one wait.
const EVENTS: usize = 1024;

/// Who the clients are, and where they go.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where they connect at first.
    pub first: SocketAddr,
    /// Where they connect later, in turn.
    pub then: Vec<SocketAddr>,
    /// How many.
    pub clients: usize,
    /// New connections a second at first; 0: all at once.
    pub opened_per_second: u64,
    /// What lies over their sockets, in turn.
    pub layers: Vec<Layer>,
    /// How they log in, in turn; none of them: without a user name.
    pub logins: Vec<Login>,
    /// Of the times at which they try again.
    pub seed: u64,
    /// Of their topics and Client Identifiers.
    pub run: u32,
}

impl Plan {
    /// Clients of one broker, without TLS and user names, all at once.
    pub fn new(first: SocketAddr, clients: usize, run: u32) -> Self {
        let (then, layers) = (vec![first], vec![Layer::Plain]);
        Self { first, then, clients, opened_per_second: 0, layers, logins: Vec::new(), seed: u64::from(run), run }
    }
}

/// Clients with persistent sessions on a thread of their own, each subscribed to a topic of its own.
pub struct Fleet {
    thread: thread::JoinHandle<Came>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    served: AtomicUsize,
    is_over: AtomicBool,
    /// All are to lose their connections.
    is_cut: AtomicBool,
    /// Why the thread ended before its time.
    failure: OnceLock<String>,
}

/// How they came back.
pub struct Came {
    /// When each was served again, if it was.
    pub served_ns: Vec<Option<u64>>,
    /// CONNECT that were refused or broken off.
    pub refused: u64,
    /// CONNACK without Session Present after the first.
    pub lost_sessions: u64,
}

impl Fleet {
    /// Begins to connect them.
    pub fn start(plan: Plan) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let client = |_| Client { stage: Stage::Away, received: Vec::new(), to_send: Vec::new(), was_served: false };
        let opening = now_ns();
        let due = |n: usize| opening + (n as u64 * SECOND).checked_div(plan.opened_per_second).unwrap_or(0);
        let mut crowd = Crowd {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            clients: (0..plan.clients).map(client).collect(),
            due: (0..plan.clients).map(|n| Reverse((due(n), n))).collect(),
            random: StdRng::seed_from_u64(plan.seed),
            shared: Arc::clone(&shared),
            came: Came { served_ns: vec![None; plan.clients], refused: 0, lost_sessions: 0 },
            plan,
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
    pub fn served(&self) -> usize {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// An error if the thread ended.
    pub fn check(&self) -> Result<()> {
        self.shared.failure.get().map_or(Ok(()), |failure| bail!("the clients ended early: {failure}"))
    }

    /// Breaks all connections off at once, and returns when that is done; the clients come back as after any break.
    pub fn cut(&self) -> Result<()> {
        self.shared.is_cut.store(true, Ordering::Relaxed);
        while self.shared.is_cut.load(Ordering::Relaxed) {
            self.check()?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends them, and says how they came back.
    pub fn end(self) -> Result<Came> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the clients' thread panicked"))
    }
}

/// All clients, and when those who are away try again.
struct Crowd {
    plan: Plan,
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
    Connecting(Link),
    /// SUBSCRIBE is.
    Subscribing(Link),
    Served(Link),
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
        if self.shared.is_cut.load(Ordering::Relaxed) {
            (0..self.clients.len()).for_each(|number| self.cut(number));
            self.shared.is_cut.store(false, Ordering::Relaxed);
        }
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
        let (client, plan) = (&mut self.clients[number], &self.plan);
        let address = if client.was_served { plan.then[number % plan.then.len()] } else { plan.first };
        let id = format!("lt-{:08x}-r{number}", plan.run);
        let login = plan.logins.get(number % plan.logins.len().max(1));
        client.received.clear();
        client.to_send = handshake::connect_as(ProtocolVersion::V5, &id, 600, handshake::Session::Kept, login);
        let stream = plan.layers[number % plan.layers.len()].begin(address, number)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(number as u64), flags)?;
        client.stage = Stage::Connecting(stream);
        Ok(())
    }

    fn advance(&mut self, number: usize) -> Result<()> {
        let Self { clients, epoll, came, shared, plan, .. } = self;
        let client = &mut clients[number];
        match client.advance(|| format!("lt/{:08x}/reconnect/{number}", plan.run)) {
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
            && !stream.wants_write()
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
            stream.close_without_trace();
        }
        self.due.push(Reverse((due, number)));
    }

    /// Breaks its connection off, if it is served.
    fn cut(&mut self, number: usize) {
        if matches!(self.clients[number].stage, Stage::Served(_)) {
            self.away(number);
        }
    }

    fn leave(self) -> Came {
        self.clients.into_iter().filter_map(|client| client.stage.into_stream()).for_each(Link::close_without_trace);
        self.came
    }
}

impl Stage {
    fn stream(&self) -> Option<&Link> {
        match self {
            Self::Away => None,
            Self::Connecting(stream) | Self::Subscribing(stream) | Self::Served(stream) => Some(stream),
        }
    }

    fn stream_mut(&mut self) -> Option<&mut Link> {
        match self {
            Self::Away => None,
            Self::Connecting(stream) | Self::Subscribing(stream) | Self::Served(stream) => Some(stream),
        }
    }

    fn into_stream(self) -> Option<Link> {
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
        let Some(stream) = self.stage.stream_mut() else {
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
        let Some(stream) = self.stage.stream_mut() else {
            return Ok(());
        };
        Ok(stream.send_from(&mut self.to_send)?)
    }
}
