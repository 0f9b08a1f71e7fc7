//! Clients that mean well, beside a storm: how long it takes until they are answered.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use kentongan_proto::mqtt::ProtocolVersion;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    figure::{Figure, Unit},
    link::{Layer, Link},
    measure::{Latency, now_ns},
    wire::{
        self,
        handshake::{self, Login, Session},
        packet_type,
    },
};

/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between one and the next.
const PAUSE: Duration = Duration::from_millis(50);

/// What is said of the one that stays.
const PINGS: &str = "PINGRESP";

/// Time within which a client that means well is let in, and any of its packets answered.
const SERVED_US_MAX: f64 = 1e6;

/// A connection, and what is said on it, one after the other.
#[derive(Debug)]
pub struct Talk {
    link: Link,
    buffer: Vec<u8>,
}

/// Who comes, and where.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// What it is called.
    pub name: &'static str,
    /// Where it connects.
    pub address: SocketAddr,
    /// Where it comes from.
    pub from: IpAddr,
    /// What lies over its sockets.
    pub layer: Layer,
    /// How it logs in, each time as another; none: without a user name.
    pub logins: Vec<Login>,
    /// Between one visit and the next.
    pub pause: Duration,
}

impl Visitor {
    /// An anonymous one of this machine.
    pub fn new(name: &'static str, address: SocketAddr, layer: Layer) -> Self {
        Self { name, address, from: address.ip(), layer, logins: Vec::new(), pause: PAUSE }
    }

    /// Connects, and has its CONNACK.
    fn connect(&self, number: usize) -> Result<Talk> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
        socket.bind(&SocketAddr::new(self.from, 0).into())?;
        socket.set_tcp_nodelay(true)?;
        let mut talk = Talk::begin(socket, self.address, &self.layer, number)?;
        let login = self.logins.get(number % self.logins.len().max(1));
        let id = format!("lt-{}-{number}", self.name);
        talk.connect(&id, login)?;
        Ok(talk)
    }
}

impl Talk {
    /// Connects `socket`, without a word.
    pub fn begin(socket: Socket, address: SocketAddr, layer: &Layer, number: usize) -> Result<Self> {
        socket.connect_timeout(&address.into(), PATIENCE)?;
        let link = layer.over(socket.into(), number)?;
        link.set_read_timeout(PATIENCE)?;
        Ok(Self { link, buffer: Vec::new() })
    }

    /// CONNECT and CONNACK.
    pub fn connect(&mut self, id: &str, login: Option<&Login>) -> Result<()> {
        self.send(&handshake::connect_as(ProtocolVersion::V5, id, 600, Session::Clean, login))?;
        let (kind, body) = self.receive()?;
        if kind != packet_type::CONNACK {
            bail!("the broker answered CONNECT with a packet of type {kind}");
        }
        handshake::read_connack(ProtocolVersion::V5, &body)?
            .map_err(|code| anyhow!("the broker refused CONNECT with code {code:#04x}"))?;
        Ok(())
    }

    /// PINGREQ; what comes before its PINGRESP is handed to `other`.
    pub fn ping(&mut self, mut other: impl FnMut(u8, &[u8])) -> Result<()> {
        let mut ping = Vec::new();
        wire::append_ping(&mut ping);
        self.send(&ping)?;
        loop {
            match self.receive()? {
                (packet_type::PINGRESP, _) => return Ok(()),
                (kind, body) => other(kind, &body),
            }
        }
    }

    /// Sends all of it.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.link.write_all(bytes)?;
        Ok(self.link.flush()?)
    }

    /// The type and the body of the next packet.
    pub fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = wire::scan(&self.buffer)?.filter(|frame| frame.bytes() <= self.buffer.len()) {
                let packet: Vec<u8> = self.buffer.drain(..frame.bytes()).collect();
                return Ok((frame.first >> 4, packet[frame.header_bytes..].to_vec()));
            }
            let mut bytes = [0; 64 * 1024];
            match self.link.read(&mut bytes)? {
                0 => bail!("the broker closed the connection"),
                read => self.buffer.extend_from_slice(&bytes[..read]),
            }
        }
    }
}

/// Visitors that come over and over, each on a thread of its own, and one client that stays and pings.
#[derive(Debug)]
pub struct Witnesses {
    threads: Vec<(String, thread::JoinHandle<Seen>)>,
    is_over: Arc<AtomicBool>,
}

/// What one of them saw.
#[derive(Debug, Default)]
struct Seen {
    latency: Latency,
    failed: u64,
    /// Why the first of them failed.
    failure: Option<String>,
}

impl Seen {
    fn take(&mut self, outcome: Result<u64>) {
        match outcome {
            Ok(nanoseconds) => self.latency.record(nanoseconds),
            Err(error) => {
                self.failed += 1;
                self.failure.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}

impl Witnesses {
    /// Lets them come; the one that stays has its place before this returns.
    pub fn start(visitors: Vec<Visitor>, stays: &Visitor) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut resident = stays.connect(0).context("the one that stays")?;
        let over = Arc::clone(&is_over);
        let pings = move || -> Result<u64> {
            let began = now_ns();
            resident.ping(|_, _| ()).map(|()| now_ns() - began)
        };
        threads.push((PINGS.to_owned(), thread::spawn(move || again_and_again(&over, PAUSE, pings))));
        for visitor in visitors {
            let over = Arc::clone(&is_over);
            let pause = visitor.pause;
            let name = format!("CONNACK, {}", visitor.name);
            let mut number = 0;
            let visit = move || -> Result<u64> {
                number += 1;
                let began = now_ns();
                let mut talk = visitor.connect(number)?;
                let took = now_ns() - began;
                let mut bytes = Vec::new();
                wire::append_disconnect(&mut bytes);
                talk.send(&bytes)?;
                Ok(took)
            };
            threads.push((name, thread::spawn(move || again_and_again(&over, pause, visit))));
        }
        Ok(Self { threads, is_over })
    }

    /// Ends them, and says what they saw. Who connects must have its CONNACK in time if `connects_in_time`; a PINGRESP must come
    /// in time in any case.
    pub fn end(self, connects_in_time: bool) -> Result<Vec<Figure>> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut figures = Vec::new();
        for (name, thread) in self.threads {
            let seen = thread.join().map_err(|_| anyhow!("a witness panicked"))?;
            let us = seen.latency.summary();
            figures.push(Figure::new(&format!("{name}: answered"), us.count as f64, Unit::Count).at_least(1.0));
            figures.push(Figure::new(&format!("{name}: p50"), us.p50_us, Unit::Microseconds));
            let longest = Figure::new(&format!("{name}: longest"), us.max_us, Unit::Microseconds);
            figures.push(if connects_in_time || name == PINGS { longest.at_most(SERVED_US_MAX) } else { longest });
            let failure = seen.failure.map_or_else(String::new, |failure| format!(" ({failure})"));
            figures
                .push(Figure::new(&format!("{name}: failed{failure}"), seen.failed as f64, Unit::Count).at_most(0.0));
        }
        Ok(figures)
    }
}

fn again_and_again(is_over: &AtomicBool, pause: Duration, mut once: impl FnMut() -> Result<u64>) -> Seen {
    let mut seen = Seen::default();
    while !is_over.load(Ordering::Relaxed) {
        seen.take(once());
        thread::sleep(pause);
    }
    seen
}
