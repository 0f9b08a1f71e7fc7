//! Many at once: those who say nothing, those who read nothing, and all of them coming back.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::codec;
use kentongan_proto::mqtt::*;
use socket2::{Domain, Socket, Type};

use crate::support::*;

/// Time within which a client that means well is served, whatever others do.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

fn bytes_of(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(packet, ProtocolVersion::V5, &mut bytes).expect("encoded");
    bytes
}

/// Few bytes that ask for much: each PUBLISH of eight bytes is one for 10,000 shared subscriptions. The others have their turns in between.
#[test]
fn who_publishes_to_many_subscriptions_has_no_longer_turns_than_others() {
    const FILTERS: usize = 10_000;
    let broker = Broker::with_environment(&[], &[("KENTONGAN_ARBITERS", "1")]);
    let mut members = Client::v5(&broker, "members");
    for part in 0..10 {
        let filters = (0..FILTERS / 10).map(|number| format!("$share/{part}-{number}/t"));
        let filters = filters.map(|filter| (filter, SubscriptionOptions::new(QoS::AtMostOnce))).collect();
        let (packet_id, user_properties) = (id(1), Vec::new());
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties };
        members.send(&Packet::Subscribe(subscribe));
        assert!(matches!(members.receive(), Packet::SubAck(_)));
    }
    let (mut busy, mut other) = (Client::v5(&broker, "busy"), Client::v5(&broker, "other"));
    let mut packets = vec![Packet::Publish(publish("t", "", QOS0)); 400];
    packets.push(Packet::PingReq);
    busy.send_at_once(&packets);
    other.send(&Packet::PingReq);
    assert_eq!(other.receive(), Packet::PingResp);
    assert_eq!(busy.receive_within(Duration::from_millis(1)), None, "all of it had one turn");
}

/// Connections that are accepted and never say a word. Those that stall in a TLS handshake stand in `tls.rs`, and both at once in
/// `kentongan-loadtest abuse`.
///
/// Abuse: [slow-connect], [connect-flood]
#[test]
fn a_client_comes_in_within_a_second_beside_5000_connections_that_say_nothing() {
    const SILENT: usize = 5_000;
    let broker = Broker::start();
    let connected = |_| TcpStream::connect(broker.address).expect("the broker accepts");
    let silent: Vec<_> = (0..SILENT).map(connected).collect();
    broker.wait_for_metric("kentongan_sockets_accepted_total", |count| count >= SILENT as f64);
    let served_after = |round| {
        let began = Instant::now();
        let mut client = Client::v5(&broker, &format!("client{round}"));
        client.subscribe("t", QoS::AtLeastOnce);
        client.publish_acknowledged("nobody", "served", qos1(1));
        began.elapsed()
    };
    let mut took: Vec<_> = (0..20).map(served_after).collect();
    took.sort();
    // The machine may do something else once.
    assert!(took[18] < SERVED_WITHIN, "served after {took:?}");
    drop(silent);
}

/// One that subscribed and does not read.
fn deaf(address: SocketAddr, name: &str) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a socket option");
    socket.connect(&address.into()).expect("the broker listens");
    let mut client = Client::on(socket.into(), ProtocolVersion::V5);
    client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, name))));
    assert_eq!(client.expect_connack().reason_code, ReasonCode::Success);
    for topic in ["fill", "load"] {
        assert_eq!(client.subscribe(topic, QoS::AtMostOnce), ReasonCode::Success);
    }
    client
}

/// Messages that a publisher sends without a pause.
const BURST: u64 = 8;

/// Quiet after which nothing more comes.
const OVER_AFTER: Duration = Duration::from_secs(1);

/// What became of messages that were published to `load`.
struct Load {
    sent: u64,
    /// By all subscribers that read.
    received: u64,
    /// How long they took, of 99 in 100 of these.
    p99: Duration,
}

/// Publishes to `load` at a rate for a while, and lets the healthy read it.
fn load(broker: &Broker, healthy: &mut [Client], rate: u32, payload_bytes: usize, time: Duration) -> Load {
    let mut publisher = Client::v5(broker, "publisher");
    let (start, expected) = (Instant::now(), AtomicU64::new(u64::MAX));
    let mut latencies = Vec::new();
    let sent = std::thread::scope(|scope| {
        let expected = &expected;
        let read = move |client: &mut Client| {
            let (mut latencies, mut last) = (Vec::new(), Instant::now());
            loop {
                let expected = expected.load(Ordering::Relaxed);
                let is_over = expected != u64::MAX && last.elapsed() > OVER_AFTER;
                if latencies.len() as u64 >= expected || is_over {
                    return latencies;
                }
                match client.receive_within(Duration::from_millis(50)) {
                    Some(Packet::Publish(message)) => {
                        let sent = u64::from_be_bytes(message.payload[..8].try_into().expect("a time"));
                        latencies.push(start.elapsed().saturating_sub(Duration::from_nanos(sent)));
                        last = Instant::now();
                    }
                    Some(other) => panic!("unexpected {other:?}"),
                    None => {}
                }
            }
        };
        let readers: Vec<_> = healthy.iter_mut().map(|client| scope.spawn(move || read(client))).collect();
        let mut sent = 0u64;
        let mut message = publish("load", "", QOS0);
        while start.elapsed() < time {
            let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            // A publisher that was late makes up for it, but not all at once.
            for _ in 0..due.saturating_sub(sent).min(BURST) {
                let mut payload = vec![b'x'; payload_bytes];
                payload[..8].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_be_bytes());
                message.payload = payload.into();
                publisher.send(&Packet::Publish(message.clone()));
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // All of it was handled when this is answered.
        publisher.publish_acknowledged("nobody", "", qos1(1));
        expected.store(sent, Ordering::Relaxed);
        for reader in readers {
            latencies.extend(reader.join().expect("no panic"));
        }
        sent
    });
    publisher.disconnect();
    latencies.sort_unstable();
    let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(Duration::MAX);
    Load { sent, received: latencies.len() as u64, p99 }
}

/// 100 subscribers that do not read, at 20,000 deliveries a second in all: they cost their bounds, others are served as before,
/// and every message is either delivered or counted. `KENTONGAN_OVERLOAD_SECONDS` says for how long (4 if it is not set).
///
/// Abuse: [stalled-subscriber], [queue-full]
#[test]
fn stalled_subscribers_cost_their_bounds_and_no_more() {
    // A machine that does something else in between is no slow broker.
    const TRIES: usize = 3;
    let bound = OUT_BUFFER_BYTES.to_string();
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", &bound)]);
    let mut healthy: Vec<_> = (0..5).map(|number| Client::v5(&broker, &format!("healthy{number}"))).collect();
    for client in &mut healthy {
        client.subscribe("load", QoS::AtMostOnce);
    }
    let tried: Vec<_> = (0..TRIES)
        .map(|_| before_and_beside_stalled_subscribers(&broker, &mut healthy))
        .take_while(|[before, beside]| *beside > *before * 2 + Duration::from_millis(5))
        .collect();
    assert!(tried.len() < TRIES, "the 99th percentile, without and with stalled subscribers, each time: {tried:?}");
}

const OUT_BUFFER_BYTES: u64 = 262_144;

/// The 99th percentile without and with stalled subscribers. What they cost must be right each time.
fn before_and_beside_stalled_subscribers(broker: &Broker, healthy: &mut [Client]) -> [Duration; 2] {
    const STALLED: u64 = 100;
    const PAYLOAD_BYTES: usize = 2_000;
    const DELIVERIES_A_SECOND: u32 = 20_000;
    let seconds = std::env::var("KENTONGAN_OVERLOAD_SECONDS").map_or(4, |text| text.parse().expect("a number"));
    let rate = DELIVERIES_A_SECOND / STALLED as u32;
    let before = load(broker, healthy, rate, PAYLOAD_BYTES, Duration::from_secs(2));

    let dropped = || broker.metric("kentongan_messages_dropped_total{reason=\"slow_consumer\"}");
    let heap = || broker.metric("process_heap_bytes");
    let mut stalled: Vec<_> = (0..STALLED).map(|number| deaf(broker.address, &format!("deaf{number}"))).collect();
    let idle_bytes = heap();
    fill(broker, STALLED);
    let dropped_before = dropped();
    let beside = load(broker, healthy, rate, PAYLOAD_BYTES, Duration::from_secs(seconds));
    let held_bytes = heap() - idle_bytes;
    let bound = (STALLED * OUT_BUFFER_BYTES) as f64 * 1.1;
    assert!(held_bytes <= bound, "{held_bytes} bytes are held, {bound} may be");

    // They read at last: what they lack was counted.
    let read: u64 = std::thread::scope(|scope| {
        let readers: Vec<_> = stalled.iter_mut().map(|client| scope.spawn(move || messages_left(client))).collect();
        readers.into_iter().map(|reader| reader.join().expect("no panic")).sum()
    });
    let lacking = beside.sent * (STALLED + healthy.len() as u64) - read - beside.received;
    assert!(lacking > beside.sent * STALLED / 2, "they lack {lacking} only: they were not stalled");
    wait_for("as many are counted as they lack", || dropped() - dropped_before == lacking as f64);
    [before.p99, beside.p99]
}

/// The kernel takes some megabytes for a client that does not read: those come first, until none of so many takes any more.
fn fill(broker: &Broker, stalled: u64) {
    const MESSAGES: usize = 80;
    const ROUNDS_MAX: usize = 20;
    const PAYLOAD_BYTES: usize = 60_000;
    let mut publisher = Client::v5(broker, "filler");
    let payload = "x".repeat(PAYLOAD_BYTES);
    let mut dropped_of = |messages: usize| {
        let dropped = || broker.metric("kentongan_messages_dropped_total{reason=\"slow_consumer\"}");
        let before = dropped();
        for _ in 0..messages {
            publisher.publish("fill", &payload, QOS0);
            // Each socket is to have its turn.
            std::thread::sleep(Duration::from_millis(10));
        }
        publisher.publish_acknowledged("nobody", "", qos1(1));
        // Arbiters flush their counters once a second.
        std::thread::sleep(Duration::from_millis(1_500));
        dropped() - before
    };
    dropped_of(MESSAGES);
    // A kernel with much memory, or much else to do, takes more before it takes no more.
    assert!((0..ROUNDS_MAX).any(|_| dropped_of(5) >= (5 * stalled) as f64), "they take ever more");
    publisher.disconnect();
}

/// All that was kept for a client that reads from now on.
fn messages_left(client: &mut Client) -> u64 {
    let mut read = 0;
    client.send(&Packet::PingReq);
    loop {
        match client.receive() {
            Packet::Publish(message) => read += u64::from(message.topic == "load"),
            Packet::PingResp => return read,
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// Everybody lost the connection at once and comes back. `KENTONGAN_RECONNECTS` says how many (10,000 if it is not set, as far as
/// there are descriptors).
///
/// Abuse: [connect-flood]
#[test]
fn ten_thousand_clients_that_reconnect_at_once_are_all_back_within_a_minute() {
    const WITHIN: Duration = Duration::from_secs(60);
    const THREADS: usize = 8;
    let clients = std::env::var("KENTONGAN_RECONNECTS").map_or(10_000, |text| text.parse().expect("a number"));
    let broker = Broker::start();
    let (address, together) = (broker.address, Arc::new(Barrier::new(THREADS)));
    let come = |thread: usize, together: &Barrier| {
        let names = (0..clients / THREADS).map(|number| format!("client{}", thread * clients + number));
        let packets: Vec<_> =
            names.map(|name| bytes_of(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, &name))))).collect();
        together.wait();
        let mut crowd: Vec<_> = packets
            .iter()
            .map(|packet| {
                let mut stream = TcpStream::connect(address).expect("the broker accepts");
                stream.write_all(packet).expect("it is open");
                stream
            })
            .collect();
        let mut codes = BTreeMap::new();
        for stream in &mut crowd {
            // A CONNACK of MQTT 5: type, length, flags, reason.
            let mut head = [0; 4];
            stream.set_read_timeout(Some(WITHIN)).expect("a socket option");
            stream.read_exact(&mut head).expect("an answer");
            *codes.entry((head[0], head[3])).or_insert(0) += 1;
        }
        (crowd, codes)
    };
    for round in ["first", "again"] {
        let began = Instant::now();
        let crowds: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (come, together) = (&come, Arc::clone(&together));
                    scope.spawn(move || come(thread, &together))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(began.elapsed() < WITHIN, "{round}: {:?}", began.elapsed());
        let each = clients / THREADS;
        assert!(
            crowds.iter().all(|(_, codes)| *codes == BTreeMap::from([((0x20, 0), each)])),
            "{round}: all are let in"
        );
        broker.wait_for_metric("kentongan_connections", |count| count == (each * THREADS) as f64);
        drop(crowds);
        // The connection is gone for all of them at the same moment.
        broker.wait_for_metric("kentongan_connections", |count| count == 0.0);
    }
}
