//! The generator: one thread, one epoll, all publishers and subscribers of a run.
//!
//! A turn of the loop sends what is due, waits, reads each ready socket once, and writes once to
//! each connection for which something gathered. Publishers and subscribers live in one place, so a
//! receipt opens its publisher's window by a plain call. Nothing allocates per message.

mod connection;
mod publisher;
mod rest;
mod schedule;
mod subscriber;

use std::{collections::VecDeque, io, net::SocketAddr, os::fd::OwnedFd};

use anyhow::{Context, Result, bail};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use rustix::{
    event::{Timespec, epoll},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

use crate::{
    link::Layer,
    measure::{Latency, SECOND, SequenceChecker, now_ns},
    wire::{self, Frame, Incoming, handshake, packet_type},
};
use connection::{Arrived, Connection, Flushed, Role, State};
pub use publisher::{Publisher, PublisherPlan};
use rest::Rest;
pub use schedule::Schedule;
use subscriber::{Arrival, group_findings};
pub use subscriber::{Expected, Findings, Subscriber};

/// Bytes that one read may bring.
const SCRATCH_BYTES: usize = 256 * 1024;

/// Connections being opened at once: below the accept backlog of 100 that some brokers have.
const OPENING_MAX: usize = 50;

/// The Keep Alive of every client, in seconds.
const KEEP_ALIVE_SECONDS: u16 = 60;

/// The epoll token of the timer.
const TIMER: u64 = u64::MAX;

/// Filters that a churning client keeps before it unsubscribes the oldest.
const CHURN_FILTERS: u64 = 1000;

/// What the broker did that ends a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not MQTT.
    #[error(transparent)]
    Malformed(#[from] wire::Malformed),
    /// CONNACK with a Reason Code (3.1.1: return code) of failure.
    #[error("the broker refused CONNECT with code {0:#04x}")]
    Refused(u8),
    /// SUBACK with a failure, or with less than the QoS asked for.
    #[error("the broker answered SUBSCRIBE with {0:#04x}")]
    SubscriptionRefused(u8),
    /// DISCONNECT from the broker.
    #[error("the broker sent DISCONNECT with code {0:#04x}")]
    Disconnected(u8),
    /// End of stream.
    #[error("the broker closed the connection")]
    Closed,
    /// An acknowledgement that nothing awaits.
    #[error("the broker sent an unexpected acknowledgement (type {packet_type}, Packet Identifier {packet_id})")]
    UnexpectedAck {
        /// PUBACK, PUBREC, PUBREL or PUBCOMP.
        packet_type: u8,
        /// Its Packet Identifier.
        packet_id: u16,
    },
    /// A packet that this client cannot get now.
    #[error("the broker sent an unexpected packet (first byte {0:#04x})")]
    UnexpectedPacket(u8),
}

/// Where clients connect: in turn, where there are several addresses.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where publishers and all others connect. At least one.
    pub publishers: Vec<SocketAddr>,
    /// Where subscribers connect. At least one.
    pub subscribers: Vec<SocketAddr>,
    /// What lies over all of their sockets.
    pub layer: Layer,
}

impl From<SocketAddr> for Places {
    fn from(address: SocketAddr) -> Self {
        Self { publishers: vec![address], subscribers: vec![address], layer: Layer::Plain }
    }
}

impl Places {
    /// Where the publisher with this index connects.
    pub fn of_publisher(&self, index: usize) -> SocketAddr {
        self.publishers[index % self.publishers.len()]
    }

    fn of(&self, role: Role) -> SocketAddr {
        match role {
            Role::Subscriber(index) => self.subscribers[index % self.subscribers.len()],
            Role::Publisher(index) => self.of_publisher(index),
            Role::Churner => self.publishers[0],
        }
    }
}

/// What has happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// PUBLISH packets sent.
    pub published: u64,
    /// PUBLISH packets received.
    pub delivered: u64,
    /// SUBACKs of churning clients.
    pub subscribed: u64,
    /// UNSUBACKs of churning clients.
    pub unsubscribed: u64,
    /// PINGREQs sent.
    pub pings: u64,
}

/// Publishers and subscribers, and what passes between them.
#[derive(Debug)]
struct Traffic {
    run: u32,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    /// Checkers of the shared groups, by group and publisher.
    groups: Vec<Vec<SequenceChecker>>,
    counts: Counts,
    latencies: Vec<Latency>,
    /// Publishers that may have become able to send.
    ready: Vec<usize>,
    publishing: bool,
    opening: usize,
}

#[derive(Debug)]
struct Planned {
    client_id: String,
    role: Role,
    subscription: Option<(String, QoS)>,
}

/// Subscribing and unsubscribing beside everything else.
#[derive(Debug)]
struct Churn {
    schedule: Schedule,
    /// Indexes of the connections.
    clients: Vec<usize>,
    per_second: f64,
    is_running: bool,
    /// SUBSCRIBE and UNSUBSCRIBE packets sent.
    asked: u64,
}

/// The generator. Dropping it closes all connections as they are.
pub struct Engine {
    places: Places,
    keeps_sessions: bool,
    version: ProtocolVersion,
    epoll: OwnedFd,
    timer: OwnedFd,
    armed_ns: u64,
    events: Vec<epoll::Event>,
    connections: Vec<Connection>,
    /// Connections whose socket is not open yet. They open in the order they were added.
    planned: VecDeque<Planned>,
    scratch: Box<[u8]>,
    dirty: Vec<usize>,
    traffic: Traffic,
    pacing: Option<(Schedule, std::ops::Range<usize>)>,
    pace_step_ns: u64,
    churn: Option<Churn>,
    next_keep_alive_ns: u64,
    woke_ns: u64,
    longest_turn_ns: u64,
    rest: Rest,
}

impl Engine {
    /// A generator towards the broker at `places`; `run` marks its messages and topics.
    pub fn new(places: Places, version: ProtocolVersion, run: u32) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("creating an epoll")?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .context("creating a timer")?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        Ok(Self {
            places,
            keeps_sessions: false,
            version,
            epoll,
            timer,
            armed_ns: 0,
            events: Vec::with_capacity(1024),
            connections: Vec::new(),
            planned: VecDeque::new(),
            scratch: vec![0; SCRATCH_BYTES].into(),
            dirty: Vec::new(),
            traffic: Traffic {
                run,
                publishers: Vec::new(),
                subscribers: Vec::new(),
                groups: Vec::new(),
                counts: Counts::default(),
                latencies: vec![Latency::default()],
                ready: Vec::new(),
                publishing: false,
                opening: 0,
            },
            pacing: None,
            pace_step_ns: 0,
            churn: None,
            next_keep_alive_ns: now_ns() + SECOND,
            woke_ns: now_ns(),
            longest_turn_ns: 0,
            rest: Rest::begin(),
        })
    }

    /// Lets the broker keep the sessions of subscribers that are added.
    pub fn keep_sessions(&mut self) {
        self.keeps_sessions = true;
    }

    /// The beginning of all topics of this run.
    pub fn topic_root(&self) -> String {
        format!("lt/{:08x}", self.traffic.run)
    }

    /// Adds a publisher; its connection opens in [`Engine::establish`]. Returns its index.
    pub fn add_publisher(&mut self, plan: &PublisherPlan) -> usize {
        let index = self.traffic.publishers.len();
        let connection = self.add_connection("p", Role::Publisher(index), None);
        let who = (self.traffic.run, index as u32);
        self.traffic.publishers.push(Publisher::new(plan, self.version, connection, who));
        while self.traffic.latencies.len() <= plan.latency_class {
            self.traffic.latencies.push(Latency::default());
        }
        index
    }

    /// Adds a subscriber to `filter`; its connection opens in [`Engine::establish`]. Returns its
    /// index.
    pub fn add_subscriber(&mut self, filter: String, qos: QoS, expected: &Expected) -> usize {
        let index = self.traffic.subscribers.len();
        if let Expected::Member { group, publishers } = *expected {
            let groups = &mut self.traffic.groups;
            groups.resize(groups.len().max(group + 1), vec![SequenceChecker::default(); publishers as usize]);
        }
        self.add_connection("s", Role::Subscriber(index), Some((filter, qos)));
        self.traffic.subscribers.push(Subscriber::new(expected));
        index
    }

    /// Adds `clients` that together subscribe and unsubscribe `per_second` times a second each,
    /// once [`Engine::start`] was called. One filter in ten is a wildcard; none matches a message
    /// of the run.
    pub fn add_churn(&mut self, clients: usize, per_second: f64) {
        let clients = (0..clients).map(|_| self.add_connection("c", Role::Churner, None)).collect();
        self.churn =
            Some(Churn { schedule: Schedule::new(0, per_second), per_second, is_running: true, clients, asked: 0 });
    }

    /// Lets publishers `range`, in turn, send `per_second` messages a second in all.
    pub fn pace(&mut self, range: std::ops::Range<usize>, per_second: f64) {
        self.pacing = Some((Schedule::new(now_ns(), per_second), range));
    }

    /// Looks what is due by the pace at most that often, and sends it then. To arm a timer for each message costs more than the message,
    /// and where the generator shares its cores with what it measures, it measures that. 0: each is sent when it is due.
    pub fn look_every(&mut self, nanoseconds: u64) {
        self.pace_step_ns = nanoseconds;
    }

    fn add_connection(&mut self, kind: &str, role: Role, subscription: Option<(String, QoS)>) -> usize {
        let index = self.connections.len() + self.planned.len();
        let client_id = format!("lt-{:08x}-{kind}{index}", self.traffic.run);
        self.planned.push_back(Planned { client_id, role, subscription });
        index
    }

    /// Opens all connections that were added and waits until each is connected and subscribed.
    pub fn establish(&mut self, timeout_ns: u64) -> Result<()> {
        let deadline = now_ns() + timeout_ns;
        while self.traffic.opening > 0 || !self.planned.is_empty() {
            while self.traffic.opening < OPENING_MAX
                && let Some(planned) = self.planned.pop_front()
            {
                self.open(planned)?;
            }
            if now_ns() > deadline {
                bail!(
                    "{} connections did not open in time; {} were not begun",
                    self.traffic.opening,
                    self.planned.len()
                );
            }
            self.turn(deadline)?;
        }
        Ok(())
    }

    fn open(&mut self, planned: Planned) -> Result<()> {
        let Planned { client_id, role, subscription } = planned;
        let address = self.places.of(role);
        let is_kept = self.keeps_sessions && matches!(role, Role::Subscriber(_));
        let session = if is_kept { handshake::Session::Kept } else { handshake::Session::Clean };
        let connect = handshake::connect(self.version, &client_id, KEEP_ALIVE_SECONDS, session);
        let index = self.connections.len();
        let mut connection = Connection::open(address, &self.places.layer, index, client_id, self.version, role)
            .with_context(|| format!("connecting to {address}"))?;
        connection.out.bytes = connect;
        connection.subscription = subscription;
        epoll::add(&self.epoll, &connection.stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
        self.connections.push(connection);
        self.traffic.opening += 1;
        self.mark_dirty(index);
        Ok(())
    }

    /// Lets publishers send, and churning clients churn.
    pub fn start(&mut self) {
        self.traffic.publishing = true;
        let now = now_ns();
        if let Some(churn) = &mut self.churn {
            churn.schedule = Schedule::new(now, churn.per_second);
        }
        if let Some((schedule, _)) = &mut self.pacing {
            schedule.restart(now);
        }
        self.traffic.ready = (0..self.traffic.publishers.len()).collect();
        self.traffic.publishers.iter_mut().for_each(|publisher| publisher.is_ready = true);
    }

    /// Lets each of the publishers `range` send `messages` more.
    pub fn release(&mut self, range: std::ops::Range<usize>, messages: u64) {
        for index in range {
            self.traffic.publishers[index].allow(messages);
            self.traffic.mark_ready(index);
        }
    }

    /// Stops pacing and churning, and lets no publisher send new messages.
    pub fn stop(&mut self) {
        self.pacing = None;
        self.traffic.publishers.iter_mut().for_each(Publisher::stop);
        if let Some(churn) = &mut self.churn {
            churn.is_running = false;
        }
    }

    /// Turns until `until_ns`, calling `tick` about ten times a second.
    pub fn run_until(&mut self, until_ns: u64, tick: &mut dyn FnMut()) -> Result<()> {
        loop {
            let now = now_ns();
            if now >= until_ns {
                return Ok(());
            }
            let tick_end = until_ns.min(now + SECOND / 10);
            while now_ns() < tick_end {
                self.turn(tick_end)?;
            }
            tick();
        }
    }

    /// Turns until `done` says so. False if nothing arrived for `patience_ns` before that.
    pub fn run_while_moving(&mut self, patience_ns: u64, mut done: impl FnMut(&Self) -> bool) -> Result<bool> {
        let mut last_counts = self.traffic.counts;
        let mut last_moved = now_ns();
        while !done(self) {
            let now = now_ns();
            if self.traffic.counts != last_counts {
                last_counts = self.traffic.counts;
                last_moved = now;
            } else if now - last_moved > patience_ns {
                return Ok(false);
            }
            self.turn(now + SECOND / 20)?;
        }
        Ok(true)
    }

    /// Every message sent has arrived everywhere and is acknowledged, and all churn is answered.
    pub fn is_settled(&self) -> bool {
        let counts = &self.traffic.counts;
        self.traffic.publishers.iter().all(Publisher::is_done)
            && self.churn.as_ref().is_none_or(|churn| churn.asked == counts.subscribed + counts.unsubscribed)
    }

    /// One turn of the loop; returns at `until_ns` at the latest.
    pub fn turn(&mut self, until_ns: u64) -> Result<()> {
        let now = now_ns();
        let mut wake_at = until_ns.min(self.next_keep_alive_ns);
        if self.traffic.publishing {
            self.take_due(now);
            self.fill_ready(now);
            if let Some((schedule, _)) = &self.pacing {
                let due = schedule.next_due_ns();
                // On a raster, so that to be woken by something else arms nothing anew.
                wake_at = wake_at.min(due.next_multiple_of(self.pace_step_ns.max(1)));
            }
            if let Some(churn) = self.churn.as_ref().filter(|churn| churn.is_running) {
                wake_at = wake_at.min(churn.schedule.next_due_ns());
            }
        }
        if now >= self.next_keep_alive_ns {
            self.ping(now);
        }
        self.flush(now)?;
        if !self.dirty.is_empty() {
            wake_at = 1; // Long ago: only look what is ready.
        }
        self.longest_turn_ns = self.longest_turn_ns.max(now_ns() - self.woke_ns);
        self.rest.take();
        self.wait(wake_at)?;
        self.woke_ns = now_ns();
        for at in 0..self.events.len() {
            let epoll::Event { flags, data } = self.events[at];
            let token = data.u64();
            if token == TIMER {
                continue; // Re-arming it makes it quiet.
            }
            if flags.intersects(epoll::EventFlags::OUT) {
                self.mark_dirty(token as usize);
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                self.on_readable(token as usize)?;
            }
        }
        Ok(())
    }

    /// The timer wakes by the nanosecond; the timeout of epoll alone would have the slack of the
    /// thread, 50 µs, which is a whole interval at 20,000 messages a second.
    fn wait(&mut self, wake_at_ns: u64) -> Result<()> {
        if self.armed_ns != wake_at_ns {
            let at = Timespec { tv_sec: (wake_at_ns / SECOND) as i64, tv_nsec: (wake_at_ns % SECOND) as _ };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
            timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
            self.armed_ns = wake_at_ns;
        }
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for sockets"),
        }
    }

    fn mark_dirty(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(index);
        }
    }

    /// Turns what the schedules say is due into messages owed and churn asked.
    fn take_due(&mut self, now: u64) {
        if let Some((schedule, range)) = &mut self.pacing {
            while let Some((tick, due)) = schedule.take(now) {
                let index = range.start + tick as usize % range.len();
                let publisher = &mut self.traffic.publishers[index];
                publisher.owe(due);
                if !publisher.is_ready {
                    publisher.is_ready = true;
                    self.traffic.ready.push(index);
                }
            }
        }
        while let Some(churn) = self.churn.as_mut().filter(|churn| churn.is_running)
            && let Some((tick, _)) = churn.schedule.take(now)
        {
            let (client, packets) = churn.step(tick, self.version);
            self.connections[client].out.bytes.extend_from_slice(&packets);
            self.mark_dirty(client);
        }
    }

    /// Lets every publisher whose window may have opened send what it can.
    fn fill_ready(&mut self, now: u64) {
        let mut ready = std::mem::take(&mut self.traffic.ready);
        for index in ready.drain(..) {
            let publisher = &mut self.traffic.publishers[index];
            publisher.is_ready = false;
            let connection = publisher.connection;
            let sent = publisher.fill(&mut self.connections[connection].out, now);
            if sent > 0 {
                self.traffic.counts.published += sent;
                self.mark_dirty(connection);
            }
        }
        self.traffic.ready = ready;
    }

    fn flush(&mut self, now: u64) -> Result<()> {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            let connection = &mut self.connections[index];
            connection.is_dirty = false;
            if connection.state == State::Closed {
                continue;
            }
            connection.last_sent_ns = now;
            let flushed = match connection.flush() {
                Ok(flushed) => flushed,
                // The reading side tells why.
                Err(error) if is_end(&error) => Flushed::All,
                Err(error) => {
                    return Err(error).with_context(|| format!("writing as {}", connection.client_id));
                }
            };
            if flushed == Flushed::Partly {
                connection.is_dirty = true;
                self.dirty.push(index);
            }
            let blocked = flushed == Flushed::Blocked;
            if blocked != connection.awaits_writable {
                connection.awaits_writable = blocked;
                let mut flags = epoll::EventFlags::IN;
                flags.set(epoll::EventFlags::OUT, blocked);
                let token = epoll::EventData::new_u64(index as u64);
                epoll::modify(&self.epoll, &connection.stream, token, flags)?;
            }
        }
        // What is dirty again comes first in the next turn.
        self.dirty.append(&mut dirty);
        Ok(())
    }

    /// Sends PINGREQ where nothing was sent for nine tenths of the Keep Alive.
    fn ping(&mut self, now: u64) {
        self.next_keep_alive_ns = now + SECOND;
        let silent_ns = u64::from(KEEP_ALIVE_SECONDS) * SECOND * 9 / 10;
        for index in 0..self.connections.len() {
            let connection = &mut self.connections[index];
            if connection.state == State::Ready && now.saturating_sub(connection.last_sent_ns) > silent_ns {
                wire::append_ping(&mut connection.out.bytes);
                self.traffic.counts.pings += 1;
                self.mark_dirty(index);
            }
        }
    }

    fn on_readable(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let ended = match connection.read(&mut self.scratch) {
            Ok(Arrived::Nothing) => {
                if connection.stream.wants_write() {
                    self.mark_dirty(index);
                }
                return Ok(());
            }
            Ok(Arrived::Bytes(bytes)) => {
                let now = now_ns();
                take_bytes(connection, &mut self.traffic, bytes, now)
                    .with_context(|| format!("client {}", connection.client_id))?;
                if !connection.out.is_empty() || connection.stream.wants_write() {
                    self.mark_dirty(index);
                }
                return Ok(());
            }
            Ok(Arrived::End) => None,
            Err(error) => Some(error),
        };
        if connection.state == State::Closing {
            connection.state = State::Closed;
            epoll::delete(&self.epoll, &connection.stream)?;
            return Ok(());
        }
        let fault = match ended {
            None => anyhow::Error::new(Fault::Closed),
            Some(error) => anyhow::Error::new(error),
        };
        Err(fault.context(format!("client {} in state {:?}", connection.client_id, connection.state)))
    }

    /// Sends DISCONNECT on all connections and waits until the broker has closed them; false if it
    /// did not close all in time. Sockets then vanish without TIME_WAIT.
    pub fn close(mut self, timeout_ns: u64) -> Result<bool> {
        self.stop();
        for index in 0..self.connections.len() {
            let connection = &mut self.connections[index];
            wire::append_disconnect(&mut connection.out.bytes);
            connection.state = State::Closing;
            self.mark_dirty(index);
        }
        let deadline = now_ns() + timeout_ns;
        let all_closed = |engine: &Self| engine.connections.iter().all(|c| c.state == State::Closed);
        while !all_closed(&self) && now_ns() < deadline {
            self.turn(deadline)?;
        }
        let closed = all_closed(&self);
        for connection in self.connections {
            connection.stream.close_without_trace();
        }
        Ok(closed)
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.traffic.counts
    }

    /// The histogram of one class of publishers.
    pub fn latency(&self, class: usize) -> &Latency {
        &self.traffic.latencies[class]
    }

    /// The longest time that the generator itself was not listening, since the latencies were
    /// forgotten: so much of a latency may be its own doing.
    pub fn longest_turn_ns(&self) -> u64 {
        self.longest_turn_ns
    }

    /// Forgets the latencies so far.
    pub fn reset_latencies(&mut self) {
        self.woke_ns = now_ns();
        self.longest_turn_ns = 0;
        self.traffic.latencies.iter_mut().for_each(Latency::reset);
    }

    /// A subscriber by its index.
    pub fn subscriber(&self, index: usize) -> &Subscriber {
        &self.traffic.subscribers[index]
    }

    /// A publisher by its index.
    pub fn publisher(&self, index: usize) -> &Publisher {
        &self.traffic.publishers[index]
    }

    /// What is wrong so far with what arrived and with what was acknowledged.
    pub fn findings(&self) -> Findings {
        let sent = |publisher: u32| self.traffic.publishers.get(publisher as usize).map_or(0, |p| p.next);
        let mut findings = Findings::default();
        for subscriber in &self.traffic.subscribers {
            findings += subscriber.findings(sent);
        }
        for group in &self.traffic.groups {
            findings += group_findings(group, sent);
        }
        for publisher in &self.traffic.publishers {
            findings.unacknowledged += publisher.unacknowledged() as u64;
            findings.refused += publisher.refused;
        }
        findings
    }
}

impl Churn {
    /// The client whose turn it is, and its packets: a SUBSCRIBE, and an UNSUBSCRIBE of what was
    /// subscribed [`CHURN_FILTERS`] steps earlier.
    fn step(&mut self, tick: u64, version: ProtocolVersion) -> (usize, Vec<u8>) {
        let count = self.clients.len() as u64;
        let client = self.clients[(tick % count) as usize];
        // Two identifiers a step, of which a client makes every `count`-th.
        let packet_id = ((tick / count * 2) % 65_534 + 1) as u16;
        self.asked += 1;
        let mut packets = handshake::subscribe(version, packet_id, &churn_filter(tick), QoS::AtMostOnce);
        // A multiple of the number of clients, so that the same client unsubscribes.
        if let Some(old) = tick.checked_sub(CHURN_FILTERS.next_multiple_of(count)) {
            self.asked += 1;
            packets.extend(handshake::unsubscribe(version, packet_id + 1, &churn_filter(old)));
        }
        (client, packets)
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn churn_filter(number: u64) -> String {
    if number.is_multiple_of(10) { format!("churn/{number}/+/state") } else { format!("churn/{number}/plant/state") }
}

/// Takes all packets that are complete in `bytes` and keeps the rest.
fn take_bytes(connection: &mut Connection, traffic: &mut Traffic, bytes: &[u8], now: u64) -> Result<(), Fault> {
    let (mut rest, large) = connection.skip_large(bytes);
    if let Some(large) = large {
        on_packet(connection, traffic, large.frame, &large.head, Some(large.tail), now)?;
    }
    loop {
        let frame = wire::scan(rest)?;
        match frame {
            Some(frame) if frame.bytes() <= rest.len() => {
                on_packet(connection, traffic, frame, &rest[frame.header_bytes..frame.bytes()], None, now)?;
                rest = &rest[frame.bytes()..];
            }
            _ => {
                connection.keep(rest, frame);
                return Ok(());
            }
        }
    }
}

/// `body` is the whole body, or the head of a large one whose last bytes are `tail`.
#[inline]
fn on_packet(
    connection: &mut Connection,
    traffic: &mut Traffic,
    frame: Frame,
    body: &[u8],
    tail: Option<[u8; 8]>,
    now: u64,
) -> Result<(), Fault> {
    let unexpected = Fault::UnexpectedPacket(frame.first);
    match (frame.first >> 4, connection.role) {
        (packet_type::PUBLISH, Role::Subscriber(index)) => {
            let incoming = Incoming::read(frame.first, body, frame.body_bytes, tail, connection.version)?;
            traffic.on_publish(index, &incoming, &mut connection.out.bytes, now);
        }
        (packet_type::PUBREL, Role::Subscriber(index)) => {
            let (packet_id, _) = wire::read_ack(body)?;
            traffic.subscribers[index].end_exactly_once(packet_id);
            wire::append_ack(&mut connection.out.bytes, packet_type::PUBCOMP, packet_id);
        }
        (packet_type @ (packet_type::PUBACK | packet_type::PUBREC | packet_type::PUBCOMP), Role::Publisher(index)) => {
            let (packet_id, reason) = wire::read_ack(body)?;
            if traffic.publishers[index].on_ack(packet_type, packet_id, reason, &mut connection.out.bytes)? {
                traffic.mark_ready(index);
            }
        }
        (packet_type::PINGRESP, _) => {}
        (packet_type::CONNACK, _) if connection.state == State::Connecting => on_connack(connection, traffic, body)?,
        (packet_type::SUBACK, _) => on_suback(connection, traffic, body)?,
        (packet_type::UNSUBACK, Role::Churner) => {
            handshake::read_suback(body)?;
            traffic.counts.unsubscribed += 1;
        }
        (packet_type::DISCONNECT, _) => {
            return Err(Fault::Disconnected(body.first().copied().unwrap_or_default()));
        }
        _ => return Err(unexpected),
    }
    Ok(())
}

#[cold]
fn on_connack(connection: &mut Connection, traffic: &mut Traffic, body: &[u8]) -> Result<(), Fault> {
    let allowed = handshake::read_connack(connection.version, body)?.map_err(Fault::Refused)?;
    if let Role::Publisher(index) = connection.role {
        traffic.publishers[index].set_receive_maximum(allowed.receive_maximum);
    }
    match &connection.subscription {
        Some((filter, qos)) => {
            connection.state = State::Subscribing;
            let subscribe = handshake::subscribe(connection.version, 1, filter, *qos);
            connection.out.bytes.extend_from_slice(&subscribe);
        }
        None => {
            connection.state = State::Ready;
            traffic.opening -= 1;
        }
    }
    Ok(())
}

#[cold]
fn on_suback(connection: &mut Connection, traffic: &mut Traffic, body: &[u8]) -> Result<(), Fault> {
    let (_, reason) = handshake::read_suback(body)?;
    let asked = connection.subscription.as_ref().map_or(0, |(_, qos)| *qos as u8);
    if reason != asked {
        return Err(Fault::SubscriptionRefused(reason));
    }
    match connection.state {
        State::Subscribing => {
            connection.state = State::Ready;
            traffic.opening -= 1;
        }
        _ => traffic.counts.subscribed += 1,
    }
    Ok(())
}

impl Traffic {
    /// Hands an arrival to its subscriber, answers it, and opens the publisher's window.
    #[inline]
    fn on_publish(&mut self, index: usize, incoming: &Incoming, out: &mut Vec<u8>, now: u64) {
        self.counts.delivered += 1;
        let subscriber = &mut self.subscribers[index];
        match incoming.qos() {
            0 => {}
            1 => wire::append_ack(out, packet_type::PUBACK, incoming.packet_id),
            _ => {
                wire::append_ack(out, packet_type::PUBREC, incoming.packet_id);
                if !subscriber.begin_exactly_once(incoming.packet_id) {
                    return;
                }
            }
        }
        let Some((stamp, publisher)) = incoming
            .stamp
            .filter(|stamp| stamp.run == self.run)
            .and_then(|stamp| Some((stamp, self.publishers.get_mut(stamp.publisher as usize)?)))
            .filter(|(_, publisher)| publisher.payload_bytes == incoming.payload_bytes)
        else {
            return subscriber.on_corrupt();
        };
        subscriber.on_flags(incoming.flags, publisher.flags);
        if subscriber.on_message(stamp.publisher, stamp.sequence, publisher.next, &mut self.groups) == Arrival::First {
            self.latencies[publisher.latency_class].record(now.saturating_sub(stamp.sent_ns));
            if publisher.on_received(stamp.sequence) {
                self.mark_ready(stamp.publisher as usize);
            }
        }
    }

    #[inline]
    fn mark_ready(&mut self, index: usize) {
        let publisher = &mut self.publishers[index];
        if !publisher.is_ready {
            publisher.is_ready = true;
            self.ready.push(index);
        }
    }
}
