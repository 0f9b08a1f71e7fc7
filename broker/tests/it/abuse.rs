//! Clients that mean harm, or do not know what they do.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan_proto::mqtt::codec;
use kentongan_proto::mqtt::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::support::*;

/// The time runs from accepting the connection, not from its last byte.
#[test]
fn a_connect_that_dribbles_in_is_cut_off_in_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kentongan.toml");
    std::fs::write(&file, "[[listener]]\naddress = \"127.0.0.1:0\"\nconnect_timeout_seconds = 1\n").expect("written");
    let broker = Broker::with_file(&file);
    let mut silent = Client::raw(&broker, ProtocolVersion::V5);
    let mut slow = Client::raw(&broker, ProtocolVersion::V5);
    let mut bytes = Vec::new();
    let packet = Packet::Connect(Box::new(connect(ProtocolVersion::V5, "slow")));
    codec::encode(&packet, ProtocolVersion::V5, &mut bytes).expect("encoded");
    let began = Instant::now();
    for byte in &bytes {
        if slow.stream.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(began.elapsed() > Duration::from_secs(1));
    slow.expect_closed();
    silent.expect_closed();
}

/// Before a CONNECT was accepted, next to nothing may be promised.
#[test]
fn a_large_packet_before_connect_is_refused_by_its_header() {
    let broker = Broker::start();
    let mut client = Client::raw(&broker, ProtocolVersion::V5);
    client.send_bytes(&[0x10, 0x80, 0x80, 0x08]);
    client.expect_closed();
}

#[test]
fn limits_on_properties_levels_filters_and_subscriptions_are_kept() {
    let broker = Broker::with_environment(
        &[],
        &[
            ("KENTONGAN_SESSION__USER_PROPERTIES_MAX", "2"),
            ("KENTONGAN_SESSION__TOPIC_LEVELS_MAX", "3"),
            ("KENTONGAN_SESSION__FILTERS_PER_SUBSCRIBE_MAX", "2"),
            ("KENTONGAN_SESSION__SUBSCRIPTIONS_MAX", "2"),
        ],
    );
    let mut client = Client::v5(&broker, "a");
    let mut message = publish("t", "x", QOS0);
    message.properties.user_properties = vec![("n".to_owned(), "v".to_owned()); 3];
    client.send(&Packet::Publish(message));
    client.expect_disconnect(ReasonCode::QuotaExceeded);

    let mut client = Client::v5(&broker, "a");
    client.publish("a/b/c/d", "x", QOS0);
    client.expect_disconnect(ReasonCode::TopicNameInvalid);

    let mut client = Client::v5(&broker, "a");
    assert_eq!(client.subscribe("a/b/c/d", QoS::AtMostOnce), ReasonCode::TopicFilterInvalid);
    assert_eq!(client.subscribe("a", QoS::AtMostOnce), ReasonCode::Success);
    assert_eq!(client.subscribe("b", QoS::AtMostOnce), ReasonCode::Success);
    assert_eq!(client.subscribe("c", QoS::AtMostOnce), ReasonCode::QuotaExceeded);
    assert_eq!(client.subscribe("b", QoS::AtMostOnce), ReasonCode::Success, "no new one");
    client.send(&Packet::Subscribe(Subscribe {
        packet_id: id(1),
        filters: ["d", "e", "f"].map(|filter| (filter.to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))).to_vec(),
        subscription_identifier: None,
        user_properties: Vec::new(),
    }));
    client.expect_disconnect(ReasonCode::QuotaExceeded);
}

/// Its out-buffer is bounded, what does not fit is counted, and nobody else notices.
#[test]
fn a_subscriber_that_does_not_read_costs_no_more_than_its_bounds() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", "65536")]);
    let mut stuck = Client::v311(&broker, "stuck");
    stuck.subscribe("flood", QoS::AtMostOnce);
    let mut steady = Client::v311(&broker, "steady");
    steady.subscribe("steady", QoS::AtMostOnce);
    let mut publisher = Client::v5(&broker, "p");
    let payload = "x".repeat(10_000);
    for _ in 0..2_000 {
        publisher.publish("flood", &payload, QOS0);
    }
    publisher.publish_acknowledged("steady", "still served", qos1(1));
    assert_eq!(steady.expect_publish().payload, "still served");
    broker.wait_for_metric("kentongan_messages_dropped_total", |value| value > 0.0);
}

/// A packet whose fields arrive one byte at a time is the same packet.
#[test]
fn a_packet_in_single_bytes_is_taken_whole() {
    let broker = Broker::start();
    let mut client = Client::v5(&broker, "a");
    client.subscribe("t", QoS::AtMostOnce);
    let mut bytes = Vec::new();
    codec::encode(&Packet::Publish(publish("t", "slowly", QOS0)), ProtocolVersion::V5, &mut bytes).expect("encoded");
    for byte in bytes {
        client.send_bytes(&[byte]);
    }
    assert_eq!(client.expect_publish().payload, "slowly");
}

/// Messages beyond the read buffer: whole, in order, among small ones, at every QoS.
#[test]
fn large_messages_arrive_whole_among_small_ones() {
    // The subscriber reads only when all is published: QoS 0 must not count as too much for it meanwhile.
    let settings =
        [("KENTONGAN_SESSION__PACKET_BYTES_MAX", "20000000"), ("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", "20000000")];
    let broker = Broker::with_environment(&[], &settings);
    let mut subscriber = Client::v5(&broker, "s");
    subscriber.subscribe("t", QoS::ExactlyOnce);
    let mut publisher = Client::v311(&broker, "p");
    let sizes = [10, 3_000, 70_000, 20, 5_000_000, 32_768, 65_536, 1];
    for (number, &size) in sizes.iter().enumerate() {
        let delivery = [QOS0, qos1(number as u16 + 1), qos2(number as u16 + 1)][number % 3];
        let payload = vec![number as u8; size];
        let message = Publish { payload: Bytes::from(payload), ..publish("t", "", delivery) };
        publisher.send(&Packet::Publish(message));
        publisher.complete(delivery);
    }
    for (number, &size) in sizes.iter().enumerate() {
        let got = subscriber.take_publish();
        assert_eq!(got.payload.len(), size);
        assert!(got.payload.iter().all(|&byte| byte == number as u8));
    }
}

/// Mutated sessions against a living broker: it serves on, and nothing of them stays.
/// `KENTONGAN_LIVE_MUTATIONS` says how many (1,000 if it is not set), `KENTONGAN_SEED` repeats a run.
#[test]
fn mutated_sessions_leave_nothing_behind() {
    let count = std::env::var("KENTONGAN_LIVE_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_u64);
    let seed = std::env::var("KENTONGAN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1_u64);
    println!("KENTONGAN_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    // A mutation may ask for a session that outlives its connection: not for longer than the test can wait.
    let expiry = [
        ("KENTONGAN_SESSION__SESSION_EXPIRY_SECONDS_MAX", "1"),
        ("KENTONGAN_SESSION__SESSION_EXPIRY_SECONDS_DEFAULT", "1"),
    ];
    let mut broker = Broker::with_environment(&[], &expiry);
    mutated_sessions(&broker, WARM_UP, &mut random);
    broker.wait_for_metric("kentongan_connections", |value| value == 0.0);
    let descriptors = broker.metric("process_open_fds");
    let resident = broker.metric("process_resident_memory_bytes");
    mutated_sessions(&broker, count, &mut random);
    Client::v5(&broker, "after").disconnect();
    broker.wait_for_metric("kentongan_connections", |value| value == 0.0);
    broker.wait_for_metric("kentongan_sessions", |value| value == 0.0);
    broker.wait_for_metric("kentongan_subscriptions", |value| value == 0.0);
    broker.wait_for_metric("process_open_fds", |value| value <= descriptors + DESCRIPTORS_MORE_MAX);
    let grown = broker.metric("process_resident_memory_bytes") - resident;
    println!(
        "descriptors: {descriptors} before, {} after; memory grew by {grown} bytes",
        broker.metric("process_open_fds")
    );
    assert!(grown <= RESIDENT_BYTES_MORE_MAX, "memory grew by {grown} bytes over {count} sessions");
    assert!(broker.terminate().success());
}

/// Sessions after which caches, pools and the allocator have what they keep.
const WARM_UP: u64 = 500;

/// Descriptors that the log and the store may have more than at the start: a leak has one for each session.
const DESCRIPTORS_MORE_MAX: f64 = 16.0;

/// What the allocator, the log and the store may keep.
const RESIDENT_BYTES_MORE_MAX: f64 = 24.0 * 1024.0 * 1024.0;

fn mutated_sessions(broker: &Broker, count: u64, random: &mut SmallRng) {
    for _ in 0..count {
        let version = [ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5][random.random_range(0..3)];
        let mut bytes = Vec::new();
        for packet in session(version, random) {
            codec::encode(&packet, version, &mut bytes).expect("encoded");
        }
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..3) {
                0 => bytes[at] ^= 1 << random.random_range(0..8),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.random()),
            }
        }
        let mut client = Client::raw(broker, version);
        client.send_bytes(&bytes);
        // Half of them wait for what the broker says, half go at once.
        if random.random() {
            client.stream.set_read_timeout(Some(Duration::from_millis(10))).expect("a socket option");
            drop(std::io::Read::read(&mut client.stream, &mut [0; 64]));
        }
    }
}

fn session(version: ProtocolVersion, random: &mut SmallRng) -> Vec<Packet> {
    let mut asked = connect(version, &format!("m{}", random.random_range(0..5)));
    asked.keep_alive = 5;
    let filters = vec![("m/#".to_owned(), SubscriptionOptions::new(QoS::ExactlyOnce))];
    vec![
        Packet::Connect(Box::new(asked)),
        Packet::Subscribe(Subscribe {
            packet_id: id(1),
            filters,
            subscription_identifier: None,
            user_properties: vec![],
        }),
        Packet::Publish(publish("m/x", "payload", qos1(2))),
        Packet::Publish(publish("m/y", "payload", qos2(3))),
        Packet::PubRel(Ack::success(id(3))),
        Packet::PingReq,
        Packet::Unsubscribe(Unsubscribe { packet_id: id(4), filters: vec!["m/#".to_owned()], user_properties: vec![] }),
    ]
}

/// Two devices with one Client Identifier, each of which reconnects when the other threw it out.
#[test]
fn a_client_identifier_that_is_fought_over_is_banned() {
    let settings = [("KENTONGAN_LIMITS__FLAP_TAKEOVERS_MAX", "3"), ("KENTONGAN_LIMITS__FLAP_BAN_SECONDS", "1")];
    let broker = Broker::with_environment(&[], &settings);
    let mut holder = Client::v5(&broker, "twin");
    for _ in 0..4 {
        let next = Client::v5(&broker, "twin");
        holder.expect_disconnect(ReasonCode::SessionTakenOver);
        holder = next;
    }
    let (_, refused) = Client::open(&broker, connect(ProtocolVersion::V5, "twin"));
    assert_eq!(refused.reason_code, ReasonCode::Banned);
    let (_, refused) = Client::open(&broker, connect(ProtocolVersion::V3_1_1, "twin"));
    assert_eq!(refused.reason_code, ReasonCode::NotAuthorized, "3.1.1 has no better code");
    assert_eq!(holder.subscribe("t", QoS::AtMostOnce), ReasonCode::Success, "whoever holds it keeps it");
    Client::v5(&broker, "other").disconnect();
    wait_for("the end of the ban", || {
        Client::open(&broker, connect(ProtocolVersion::V5, "twin")).1.reason_code == ReasonCode::Success
    });
}

/// Beyond its rate an address is hung up on before it has said a word; others, and later times, are not affected.
#[test]
fn a_flood_of_connections_from_one_address_is_cut_off() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_LIMITS__CONNECT_RATE_PER_ADDRESS", "5")]);
    let mut clients: Vec<_> = (0..30).map(|_| Client::raw(&broker, ProtocolVersion::V5)).collect();
    broker.wait_for_metric("kentongan_connects_refused_total", |refused| refused >= 20.0);
    clients.last_mut().expect("one").expect_closed();
    wait_for("a later connection", || {
        let mut client = Client::raw(&broker, ProtocolVersion::V5);
        client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "later"))));
        matches!(client.receive_within(Duration::from_secs(1)), Some(Packet::ConnAck(_)))
    });
}

/// One that publishes faster than it may is not read, which slows it down, and closed if it goes on.
#[test]
fn a_publisher_that_is_too_fast_is_slowed_down_and_then_closed() {
    let settings =
        [("KENTONGAN_SESSION__PUBLISH_RATE_MAX", "10"), ("KENTONGAN_SESSION__PUBLISH_RATE_SECONDS_MAX", "2")];
    let broker = Broker::with_environment(&[], &settings);
    let mut client = Client::v5(&broker, "fast");
    let mut within = Client::v5(&broker, "within");
    let began = Instant::now();
    for number in 1..=100 {
        client.publish("t", "x", qos1(number));
    }
    for number in 1..=9 {
        within.publish_acknowledged("t", "x", qos1(number));
    }
    let mut acknowledged = 0;
    loop {
        match client.receive() {
            Packet::PubAck(_) => acknowledged += 1,
            Packet::Disconnect(disconnect) => {
                assert_eq!(disconnect.reason_code, ReasonCode::MessageRateTooHigh);
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!((15..=45).contains(&acknowledged), "{acknowledged} acknowledged");
    assert!(began.elapsed() > Duration::from_secs(1), "slowed down first");
    within.publish_acknowledged("t", "x", qos1(10));
}

/// A client that asks and asks and never reads the answers is not listened to for ever.
#[test]
fn answers_that_nobody_reads_are_bounded_and_their_connection_is_closed() {
    let settings =
        [("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", "65536"), ("KENTONGAN_SESSION__STALLED_SECONDS_MAX", "1")];
    let broker = Broker::with_environment(&[], &settings);
    let mut deaf = Client::v5(&broker, "deaf");
    deaf.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket option");
    // Each of these is answered with as many bytes; the kernel takes some megabytes each way.
    let questions = [0xC0, 0].repeat(64 * 1024);
    while deaf.stream.write_all(&questions).is_ok() {}
    broker.wait_for_metric("kentongan_connections", |connections| connections == 0.0);
    let mut steady = Client::v5(&broker, "steady");
    assert_eq!(steady.subscribe("t", QoS::AtMostOnce), ReasonCode::Success);
}

/// Over the mark of memory: no new clients, no new messages, and nobody is blamed for the silence that this causes.
#[test]
fn short_of_memory_clients_are_refused_and_publishers_not_read() {
    let idle_bytes = Broker::start().metric("process_resident_memory_bytes") as u64;
    let mark = (idle_bytes + 48 * 1024 * 1024).to_string();
    let broker = Broker::with_environment(&[], &[("KENTONGAN_LIMITS__MEMORY_BYTES_HIGH_WATER", &mark)]);
    let mut away = connect(ProtocolVersion::V5, "away");
    away.properties.session_expiry_interval = Some(3600);
    let mut away = Client::accepted(&broker, away);
    away.subscribe("t", QoS::AtLeastOnce);
    away.disconnect();
    let mut asked = connect(ProtocolVersion::V5, "publisher");
    asked.keep_alive = 1;
    let mut publisher = Client::accepted(&broker, asked);
    let payload = "x".repeat(500_000);
    let mut number = 0;
    let paused = loop {
        number += 1;
        assert!(number < 1000, "never stopped reading");
        publisher.publish("t", &payload, qos1(number));
        // Twice as long as a client with this keep-alive may be silent.
        let asked = Instant::now();
        if publisher.receive_within(Duration::from_secs(4)).is_none() {
            break asked.elapsed();
        }
    };
    assert!(paused >= Duration::from_secs(4), "closed, not paused");
    for (version, reason) in
        [(ProtocolVersion::V5, ReasonCode::ServerBusy), (ProtocolVersion::V3_1_1, ReasonCode::ServerUnavailable)]
    {
        let (_, refused) = Client::open(&broker, connect(version, "late"));
        assert_eq!(refused.reason_code, reason);
    }
}

/// What a session may not keep is dropped by policy and counted, the rest is delivered in order.
#[test]
fn a_full_queue_drops_by_policy_and_counts() {
    for (policy, expected) in [("drop-new", ["0", "1", "2"]), ("drop-oldest", ["5", "6", "7"])] {
        let settings =
            [("KENTONGAN_SESSION__QUEUE_MESSAGES_MAX", "3"), ("KENTONGAN_SESSION__QUEUE_DROP_POLICY", policy)];
        let broker = Broker::with_environment(&[], &settings);
        let mut asked = connect(ProtocolVersion::V5, "away");
        asked.clean_start = false;
        asked.properties.session_expiry_interval = Some(3600);
        let mut client = Client::accepted(&broker, asked.clone());
        client.subscribe("t", QoS::AtLeastOnce);
        client.disconnect();
        let mut publisher = Client::v5(&broker, "p");
        for number in 0..8 {
            publisher.publish_acknowledged("t", &number.to_string(), qos1(number + 1));
        }
        broker.wait_for_metric("kentongan_messages_dropped_total", |dropped| dropped == 5.0);
        let mut client = Client::accepted(&broker, asked);
        let got = [(); 3].map(|()| client.expect_publish().payload);
        assert_eq!(got, expected);
        client.expect_nothing();
    }
}
