//! CONNECT, CONNACK, DISCONNECT, end of stream: over and over, at an even rate.
//!
//! Each connection ends by the broker closing it, after which our side is reset: so neither ports in
//! TIME_WAIT nor entries of the kernel's connection tracking pile up.

use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, bail, ensure};
use kentongan_proto::mqtt::ProtocolVersion;
use rustix::event::{Timespec, epoll};

use super::{Broker, Interval, Outcome, PATIENCE_NS, run_number};
use crate::{
    engine::{Counts, Fault, Places, Schedule},
    link::Link,
    measure::{Latency, SECOND, now_ns},
    report::Progress,
    wire::{self, handshake, packet_type},
};

/// Connections in one run at most, so that no table of the kernel fills.
const CONNECTIONS_MAX: f64 = 100_000.0;

/// Connections that may be open at once; what is due beyond that waits, and the wait counts.
const OPEN_MAX: usize = 200;

/// A scenario of connecting.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// MQTT version.
    pub version: ProtocolVersion,
    /// Connections a second.
    pub rate: f64,
    /// Length of the measured interval.
    pub seconds: f64,
    /// Load before the measured interval.
    pub warm_up_seconds: f64,
    /// Of client identifiers.
    pub seed: u64,
}

impl Plan {
    /// The scenario, in words.
    pub fn describe(&self) -> String {
        let version = if self.version.is_v5() { "MQTT 5" } else { "MQTT 3.1.1" };
        format!("connect and disconnect at {}/s {version}", self.rate)
    }
}

struct Slot {
    stream: Link,
    due_ns: u64,
    to_send: Vec<u8>,
    received: Vec<u8>,
    is_accepted: bool,
}

struct Connector {
    places: Places,
    version: ProtocolVersion,
    run: u32,
    epoll: std::os::fd::OwnedFd,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    begun: u64,
    counts: Counts,
    /// TLS sessions that went on where an earlier one ended.
    resumed: u64,
    latency: Latency,
}

/// Runs `plan` against `broker`.
pub fn run(plan: &Plan, broker: &Broker, progress: &Progress) -> Result<Outcome> {
    ensure!(plan.rate > 0.0, "connecting needs a rate above zero");
    ensure!(
        plan.rate * (plan.seconds + plan.warm_up_seconds) <= CONNECTIONS_MAX,
        "more than {CONNECTIONS_MAX} connections in one run: lower the rate or the seconds"
    );
    let mut outcome = Outcome { scenario: plan.describe(), memory_before: broker.memory()?, ..Outcome::default() };
    let mut connector = Connector {
        places: broker.places.clone(),
        version: plan.version,
        run: run_number(plan.seed),
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        slots: (0..OPEN_MAX).map(|_| None).collect(),
        free: (0..OPEN_MAX).collect(),
        begun: 0,
        counts: Counts::default(),
        resumed: 0,
        latency: Latency::default(),
    };
    let nanoseconds = |seconds: f64| (seconds * SECOND as f64) as u64;
    let mut schedule = Schedule::new(now_ns(), plan.rate);
    let warm = now_ns() + nanoseconds(plan.warm_up_seconds);
    connector.run_until(warm, &mut schedule, &mut || ())?;
    connector.latency.reset();
    let begun = Interval::begin(broker, connector.counts)?;
    let end = warm + nanoseconds(plan.seconds);
    connector
        .run_until(end, &mut schedule, &mut || progress.until(&outcome.scenario, end, nanoseconds(plan.seconds)))?;
    begun.end(broker, connector.counts, &mut outcome)?;
    outcome.latency = connector.latency.summary();
    outcome.cpu_ns_per_message = outcome.broker_cpu.map(|used| used.on_cpu_ns as f64 / outcome.delivered.max(1) as f64);

    let patience = now_ns() + PATIENCE_NS;
    while connector.free.len() < OPEN_MAX && now_ns() < patience {
        connector.turn(patience)?;
    }
    outcome.published_in_all = connector.counts.published;
    if broker.places.layer.is_tls() {
        outcome.note("resumed TLS sessions", connector.resumed as f64);
    }
    let open = OPEN_MAX - connector.free.len();
    if open > 0 {
        outcome.failures.push(format!("{open} connections were not answered or not closed after DISCONNECT"));
    }
    outcome.memory_after = broker.memory()?;
    Ok(outcome)
}

impl Connector {
    fn run_until(&mut self, until_ns: u64, schedule: &mut Schedule, tick: &mut dyn FnMut()) -> Result<()> {
        let mut next_tick = 0;
        loop {
            let now = now_ns();
            if now >= until_ns {
                return Ok(());
            }
            if now >= next_tick {
                tick();
                next_tick = now + SECOND / 10;
            }
            while let Some(&slot) = self.free.last()
                && let Some((_, due)) = schedule.take(now)
            {
                self.free.pop();
                self.begin(slot, due)?;
            }
            let next = if self.free.is_empty() { until_ns } else { schedule.next_due_ns() };
            self.turn(until_ns.min(next))?;
        }
    }

    fn begin(&mut self, index: usize, due_ns: u64) -> Result<()> {
        let client_id = format!("lt-{:08x}-k{}", self.run, self.begun);
        self.begun += 1;
        self.counts.published += 1;
        let stream =
            self.places.layer.begin(self.places.of_publisher(self.begun as usize), index).context("connecting")?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(index as u64), flags)?;
        let to_send = handshake::connect(self.version, &client_id, 60, handshake::Session::Clean);
        self.slots[index] = Some(Slot { stream, due_ns, to_send, received: Vec::new(), is_accepted: false });
        Ok(())
    }

    fn turn(&mut self, until_ns: u64) -> Result<()> {
        let left = until_ns.saturating_sub(now_ns());
        let timeout = Timespec { tv_sec: (left / SECOND) as i64, tv_nsec: (left % SECOND) as _ };
        let mut events = Vec::with_capacity(OPEN_MAX);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for sockets"),
        }
        for epoll::Event { data, .. } in events {
            let index = data.u64() as usize;
            let Some(slot) = &mut self.slots[index] else {
                continue;
            };
            let was_accepted = slot.is_accepted;
            let ended = slot.advance(self.version).with_context(|| format!("connection {index}"))?;
            if slot.is_accepted && !was_accepted {
                self.resumed += u64::from(slot.stream.was_resumed());
                self.latency.record(now_ns().saturating_sub(slot.due_ns));
            }
            if slot.to_send.is_empty() && !slot.stream.wants_write() {
                epoll::modify(
                    &self.epoll,
                    &slot.stream,
                    epoll::EventData::new_u64(index as u64),
                    epoll::EventFlags::IN,
                )?;
            }
            if ended && let Some(slot) = self.slots[index].take() {
                slot.stream.close_without_trace();
                self.free.push(index);
                self.counts.delivered += 1;
            }
        }
        Ok(())
    }
}

impl Slot {
    /// Sends and reads what is possible. True at the end, which must follow our DISCONNECT.
    fn advance(&mut self, version: ProtocolVersion) -> Result<bool> {
        self.send()?;
        let mut bytes = [0; 512];
        let read = match self.stream.read(&mut bytes) {
            Ok(0) if self.is_accepted => return Ok(true),
            Ok(0) => bail!(Fault::Closed),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                return Ok(false);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset && self.is_accepted => {
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        self.received.extend_from_slice(&bytes[..read]);
        let Some(frame) = wire::scan(&self.received)?.filter(|frame| frame.bytes() <= self.received.len()) else {
            return Ok(false);
        };
        if frame.first >> 4 != packet_type::CONNACK || self.is_accepted {
            bail!(Fault::UnexpectedPacket(frame.first));
        }
        handshake::read_connack(version, &self.received[frame.header_bytes..frame.bytes()])?.map_err(Fault::Refused)?;
        self.received.drain(..frame.bytes());
        self.is_accepted = true;
        wire::append_disconnect(&mut self.to_send);
        self.send()?;
        Ok(false)
    }

    fn send(&mut self) -> Result<()> {
        Ok(self.stream.send_from(&mut self.to_send)?)
    }
}
