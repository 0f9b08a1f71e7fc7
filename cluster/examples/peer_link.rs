//! What a message over the peer link costs: CPU of sender and receiver, and how long a heartbeat takes beside bulk data.
//!
//! `cargo run --release -p kentongan-cluster --example peer_link`

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, unbounded};
use kentongan_cluster::transport::{
    Asked, Class, ClusterId, Event, Incoming, LocalIdentity, NodeId, PeerAddress, PeerHello, Responder, SendError,
    SnapshotChunks, Transport, TransportConfig,
};
use kentongan_cluster::{FeatureLevels, GroupId};
use kentongan_proto::peer::Kind;

const MESSAGES: usize = 4_000_000;
const BODY_BYTES: usize = 64;
const HEARTBEATS: u64 = 2_000;
const KIND: Kind = Kind(100);

/// Nobody asks anything here.
struct Silent;

impl Responder for Silent {
    fn on_question(&self, _: Asked) {}

    fn open_snapshot(&self, _: &PeerHello, _: GroupId, _: u64) -> Result<SnapshotChunks, String> {
        Err("there are no checkpoints".into())
    }
}

fn main() {
    let ((one, _), (two, events)) = (start(1), start(2));
    let know = |from: &Transport, number, whom: &Transport| {
        let (node, address) = (NodeId(number), whom.local_address().to_string());
        from.set_peers([PeerAddress { node, name: format!("n{number}"), address }]);
    };
    know(&one, 2, &two);
    know(&two, 1, &one);
    while one.peers()[0].outgoing.len() < Class::ALL.len() {
        thread::sleep(Duration::from_millis(1));
    }

    for batch in [1, 16, 64, 1024, 256 * 1024] {
        cpu_per_message(&one, &two, &events, batch);
    }
    heartbeats("idle", &one, &events, None);
    for body_bytes in [64, 1024, 64 * 1024] {
        heartbeats(&format!("beside {body_bytes}-byte forward messages"), &one, &events, Some(body_bytes));
    }
    one.stop(Duration::from_secs(1));
    two.stop(Duration::from_secs(1));
}

fn start(number: u64) -> (Transport, Receiver<Event>) {
    let identity = LocalIdentity {
        cluster: Some(ClusterId(1)),
        node: NodeId(number),
        name: format!("n{number}"),
        incarnation: None,
        feature_levels: FeatureLevels { min: 1, max: 1 },
    };
    let (sink, events) = unbounded();
    let config = TransportConfig {
        forward_queue_bytes_max: 64 * 1024 * 1024,
        ..TransportConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), identity)
    };
    (Transport::start(config, Arc::new(sink), Arc::new(Silent)).expect("a free port"), events)
}

/// Sends in turns of so many, each waiting until the last has arrived: at 1 it is the cost of a message alone.
fn cpu_per_message(one: &Transport, two: &Transport, events: &Receiver<Event>, batch: usize) {
    let messages = (MESSAGES / 1024 * batch).clamp(10_000, MESSAGES);
    let (body, frames) = (Bytes::from(vec![7; BODY_BYTES]), &two.stats().class(Class::Forward).frames_received);
    let (cpu, clock, frames_before) = (cpu_time(), Instant::now(), frames.load(Ordering::Relaxed));
    for _ in 0..messages / batch {
        for _ in 0..batch {
            one.send(NodeId(2), Class::Forward, KIND, body.clone()).expect("there is room for one turn");
        }
        let mut left = batch;
        while left > 0 {
            if let Event::Batch(incoming) = events.recv().expect("the transport runs") {
                for message in &incoming.messages {
                    std::hint::black_box(message.body.first());
                    left -= 1;
                }
            }
        }
    }
    let sent = (messages / batch * batch) as f64;
    println!(
        "{batch:>5} messages a turn: {:>7.3} µs CPU a message, {:>9.0}/s, {:.1} messages a frame",
        (cpu_time() - cpu).as_secs_f64() * 1e6 / sent,
        sent / clock.elapsed().as_secs_f64(),
        sent / (frames.load(Ordering::Relaxed) - frames_before) as f64,
    );
}

/// A heartbeat a millisecond, one way, while another thread sends as much of class forward as is taken.
fn heartbeats(what: &str, one: &Transport, events: &Receiver<Event>, bulk_body_bytes: Option<usize>) {
    let clock = Instant::now();
    let mut delays = thread::scope(|scope| {
        let (done, stop) = unbounded::<()>();
        if let Some(body_bytes) = bulk_body_bytes {
            scope.spawn(move || {
                let body = Bytes::from(vec![7; body_bytes]);
                while stop.is_empty() {
                    if one.send(NodeId(2), Class::Forward, KIND, body.clone()) == Err(SendError::Full) {
                        thread::sleep(Duration::from_micros(200));
                    }
                }
            });
        }
        scope.spawn(move || {
            for _ in 0..HEARTBEATS {
                let now = clock.elapsed().as_nanos() as u64;
                one.send(NodeId(2), Class::Control, KIND, Bytes::copy_from_slice(&now.to_le_bytes())).expect("room");
                thread::sleep(Duration::from_millis(1));
            }
        });
        let (mut delays, mut bulk_bytes) = (Vec::new(), 0);
        while delays.len() < HEARTBEATS as usize {
            match events.recv().expect("the transport runs") {
                Event::Batch(Incoming { class: Class::Control, messages, .. }) => {
                    let sent = messages.iter().filter_map(|message| message.body.first_chunk().copied());
                    let now = clock.elapsed();
                    delays.extend(sent.map(|sent| now.saturating_sub(Duration::from_nanos(u64::from_le_bytes(sent)))));
                }
                Event::Batch(incoming) => bulk_bytes += incoming.messages.packed_bytes(),
                _ => {}
            }
        }
        done.send(()).expect("both ends are here");
        if bulk_bytes > 0 {
            println!("  bulk {:.0} MB/s", bulk_bytes as f64 / 1e6 / clock.elapsed().as_secs_f64());
        }
        delays
    });
    delays.sort();
    let at = |share: usize| delays[(delays.len() - 1) * share / 1000];
    println!("heartbeats {what}: p50 {:?}, p99 {:?}, p99.9 {:?}", at(500), at(990), at(999));
    // What is still under way would count into the next.
    while events.recv_timeout(Duration::from_millis(500)).is_ok() {}
}

/// CPU time of this process, user and kernel.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
