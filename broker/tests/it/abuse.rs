//! Clients that mean harm, or do not know what they do.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan_proto::mqtt::codec;
use kentongan_proto::mqtt::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::support::*;
use crate::users::{Files, of_user, quick};

/// The time runs from accepting the connection, not from its last byte.
///
/// Abuse: [slow-connect]
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
    broker.wait_for_metric(&refused("connects", "connect_timeout"), |count| count == 2.0);
}

/// The series of a refusal.
fn refused(what: &str, reason: &str) -> String {
    format!("kentongan_{what}_refused_total{{reason=\"{reason}\"}}")
}

fn malformed(reason: &str) -> String {
    format!("kentongan_packets_malformed_total{{reason=\"{reason}\"}}")
}

/// Whatever ends a connection before CONNACK leaves a line in the log and a count by its reason.
///
/// Abuse: [slow-connect], [refusals-logged]
#[test]
fn an_end_before_connack_is_logged_and_counted() {
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\nconnect_timeout_seconds = 1\n";
    let broker = Broker::with_settings(listener);
    let table: [(&[u8], &str, Option<&str>); 6] = [
        (&[], "ConnectTimeout", Some("connect_timeout")),
        (&[0xC0, 0], "the first packet was not CONNECT", Some("malformed")),
        (&[0x10, 0x80, 0x80, 0x08], "PacketTooLarge", Some("malformed")),
        // The length of the properties goes beyond the packet; then a property's value does.
        (b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x05\x00\x00", "MalformedPacket", Some("malformed")),
        (b"\x10\x10\x00\x04MQTT\x05\x02\x00\x00\x03\x11\x00\x00\x00\x00", "MalformedPacket", Some("malformed")),
        (b"\x10\x0d\x00\x04MQTT\x07\x02\x00\x00\x00\x00\x00", "UnsupportedProtocolVersion", Some("protocol_version")),
    ];
    for (bytes, logged, counted) in table {
        let before = counted.map(|reason| broker.metric(&refused("connects", reason)));
        let mut client = Client::raw(&broker, ProtocolVersion::V5);
        let peer = client.stream.local_addr().expect("an address").to_string();
        client.send_bytes(bytes);
        let line = broker.wait_for_log(&peer);
        assert!(line.contains(logged), "{bytes:?}: {logged:?} is not in {line}");
        if let (Some(reason), Some(before)) = (counted, before) {
            broker.wait_for_metric(&refused("connects", reason), |count| count == before + 1.0);
        }
    }
    // One that goes by itself was refused nothing.
    let client = Client::raw(&broker, ProtocolVersion::V5);
    let peer = client.stream.local_addr().expect("an address").to_string();
    drop(client);
    let line = broker.wait_for_log(&peer);
    assert!(line.contains("ended before CONNACK") && line.contains("ClosedByPeer"), "{line}");
    // Nor does one that was connected, of which one line says so.
    let mut client = Client::v5(&broker, "goes");
    client.publish_acknowledged("t", "m", qos1(1));
    let peer = client.stream.local_addr().expect("an address").to_string();
    drop(client);
    broker.wait_for_log("\"disconnected\"");
    drop(Client::raw(&broker, ProtocolVersion::V5));
    let lines = broker.logs_until("ended before CONNACK");
    assert!(!lines.iter().any(|line| line.contains(&peer)), "{lines:?}");
}

/// A flood of refusals does not flood the log: what is left out is counted, and nothing is left out of the metrics.
///
/// Abuse: [refusals-logged]
#[test]
fn refusals_are_logged_at_a_bounded_rate() {
    const FLOOD: usize = 400;
    let listener = "arbiters = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\nallow_anonymous = false\n";
    let broker = Broker::with_settings(listener);
    let began = Instant::now();
    for _ in 0..FLOOD {
        let (_, connack) = Client::open(&broker, connect(ProtocolVersion::V5, "nobody"));
        assert_eq!(connack.reason_code, ReasonCode::NotAuthorized);
    }
    broker.wait_for_metric(&refused("connects", "not_authorized"), |count| count == FLOOD as f64);
    let (mut logged, mut unlogged) = (0, 0);
    while logged + unlogged < FLOOD {
        for line in broker.logs_until("refus") {
            logged += usize::from(line.contains("\"refused\""));
            if let Some((_, rest)) = line.split_once("\"unlogged\":") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                unlogged += digits.parse::<usize>().expect("a number");
            }
        }
    }
    assert_eq!(logged + unlogged, FLOOD);
    let seconds = began.elapsed().as_secs() as usize + 2;
    assert!(logged <= 20 * seconds, "{logged} lines in {seconds} s");
}

/// Not only the whole SUBSCRIBE, each filter is counted by its reason, and logged with its client.
///
/// Abuse: [refusals-logged]
#[test]
fn refused_filters_and_publishes_are_counted_and_logged() {
    let settings = [("KENTONGAN_SESSION__SUBSCRIPTIONS_MAX", "1"), ("KENTONGAN_DELAYED__ENABLED", "false")];
    let broker = Broker::with_environment(&[], &settings);
    for (client_id, expiry) in [("transient", 0), ("persistent", 60)] {
        let mut asked = connect(ProtocolVersion::V5, client_id);
        asked.properties.session_expiry_interval = Some(expiry);
        let mut client = Client::accepted(&broker, asked);
        assert_eq!(client.subscribe("a", QoS::AtMostOnce), ReasonCode::Success);
        for (filter, reason, name) in [
            ("b", ReasonCode::QuotaExceeded, "quota_exceeded"),
            ("a/#/b", ReasonCode::TopicFilterInvalid, "topic_filter_invalid"),
        ] {
            let series = refused("subscribes", name);
            let before = broker.metric(&series);
            assert_eq!(client.subscribe(filter, QoS::AtMostOnce), reason);
            broker.wait_for_metric(&series, |count| count == before + 1.0);
            let line = broker.wait_for_log("SUBSCRIBE refused");
            assert!(line.contains(client_id) && line.contains(filter), "{line}");
        }
        let series = refused("publishes", "not_authorized");
        let before = broker.metric(&series);
        client.publish("$delayed/1/t", "x", qos1(1));
        client.complete(qos1(1));
        broker.wait_for_metric(&series, |count| count == before + 1.0);
        let line = broker.wait_for_log("PUBLISH refused");
        assert!(line.contains(client_id) && line.contains("$delayed/1/t"), "{line}");
    }
}

/// A property that ends before its value does, in a packet of a connected client.
///
/// Abuse: [malformed]
#[test]
fn a_truncated_property_ends_the_connection() {
    let broker = Broker::start();
    let table: [&[u8]; 5] = [
        // Message Expiry Interval of three bytes; a User Property without its value; a length beyond the packet.
        &[0x30, 8, 0, 1, b'a', 4, 0x02, 0, 0, 0],
        &[0x30, 8, 0, 1, b'a', 4, 0x26, 0, 1, b'n'],
        &[0x30, 5, 0, 1, b'a', 9, 0x01],
        // Subscription Identifier whose last byte is to come; Session Expiry Interval of DISCONNECT.
        &[0x82, 9, 0, 1, 2, 0x0B, 0x80, 0, 1, b'a', 0],
        &[0xE0, 4, 0, 2, 0x11, 0],
    ];
    for (number, bytes) in table.into_iter().enumerate() {
        let mut client = Client::v5(&broker, "a");
        client.send_bytes(bytes);
        client.expect_disconnect(ReasonCode::MalformedPacket);
        broker.wait_for_metric(&malformed("malformed_packet"), |count| count == number as f64 + 1.0);
    }
}

/// Before a CONNECT was accepted, next to nothing may be promised.
///
/// Abuse: [packet-too-large]
#[test]
fn a_large_packet_before_connect_is_refused_by_its_header() {
    let broker = Broker::start();
    let mut client = Client::raw(&broker, ProtocolVersion::V5);
    client.send_bytes(&[0x10, 0x80, 0x80, 0x08]);
    client.expect_closed();
    broker.wait_for_metric(&malformed("packet_too_large"), |count| count == 1.0);
}

/// Abuse: [too-many]
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
    broker.wait_for_metric(&malformed("topic_name_invalid"), |count| count == 1.0);

    let mut client = Client::v5(&broker, "a");
    assert_eq!(client.subscribe("a/b/c/d", QoS::AtMostOnce), ReasonCode::TopicFilterInvalid);
    assert_eq!(client.subscribe("$share/s/a/b/c", QoS::AtMostOnce), ReasonCode::Success, "its filter has three");
    client.unsubscribe("$share/s/a/b/c");
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
    broker.wait_for_metric(&refused("subscribes", "topic_filter_invalid"), |count| count == 1.0);
    broker.wait_for_metric(&refused("subscribes", "quota_exceeded"), |count| count == 1.0);
}

/// Its out-buffer is bounded, what does not fit is counted, and nobody else notices.
///
/// Abuse: [stalled-subscriber]
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
    broker.wait_for_metric("kentongan_messages_dropped_total{reason=\"slow_consumer\"}", |value| value > 0.0);
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
///
/// Abuse: [malformed]
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
///
/// Abuse: [reconnect-storm]
#[test]
fn a_client_identifier_that_is_fought_over_is_banned() {
    let settings = [("KENTONGAN_LIMITS__FLAP_TAKEOVERS_MAX", "3"), ("KENTONGAN_LIMITS__FLAP_BAN_SECONDS", "3")];
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
    broker.wait_for_metric("kentongan_connects_refused_total{reason=\"banned\"}", |count| count == 2.0);
    Client::v5(&broker, "other").disconnect();
    wait_for("the end of the ban", || {
        Client::open(&broker, connect(ProtocolVersion::V5, "twin")).1.reason_code == ReasonCode::Success
    });
}

/// Whoever reaches the port of health and metrics takes up a bounded number of connections, and a probe is answered all the same.
///
/// Abuse: [http-bounds]
#[test]
fn requests_that_never_end_keep_no_probe_out() {
    let broker = Broker::start();
    let mut crowd: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(broker.http).expect("it listens");
            stream.set_nonblocking(true).expect("a socket");
            stream.write_all(b"GET /livez HTTP/1.1\r\nx: aaaa").expect("written");
            stream
        })
        .collect();
    let began = Instant::now();
    assert_eq!(broker.http_get("/livez").0, 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let is_open = |stream: &mut std::net::TcpStream| {
        let read = std::io::Read::read(stream, &mut [0; 16]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    wait_for("the oldest are closed", || crowd.iter_mut().map(&is_open).filter(|&open| open).count() <= 64);
    assert!(is_open(crowd.last_mut().expect("one")), "the last has its place");
}

/// Beyond its rate an address is hung up on before it has said a word; others, and later times, are not affected.
///
/// Abuse: [connect-flood]
#[test]
fn a_flood_of_connections_from_one_address_is_cut_off() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_LIMITS__CONNECT_RATE_PER_ADDRESS", "2")]);
    let mut clients: Vec<_> = (0..30).map(|_| Client::raw(&broker, ProtocolVersion::V5)).collect();
    broker.wait_for_metric(&refused("connects", "connect_rate"), |refused| refused >= 20.0);
    clients.last_mut().expect("one").expect_closed();
    wait_for("a later connection", || {
        let mut client = Client::raw(&broker, ProtocolVersion::V5);
        client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "later"))));
        matches!(client.receive_within(Duration::from_secs(1)), Some(Packet::ConnAck(_)))
    });
}

/// A listener's own rates come before those of all, also ones that come while it is open.
///
/// Abuse: [connect-flood]
#[test]
fn a_listener_has_rates_of_connecting_of_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kentongan.toml");
    let settings = |own: &str| {
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
        format!("limits.connect_rate_per_address = 5\n{listener}{own}\n{listener}connect_rate_per_address = 0\n")
    };
    std::fs::write(&file, settings("")).expect("written");
    let broker = Broker::with_file(&file);
    let free = broker.next_listener();
    let refused = || broker.metric(&refused("connects", "connect_rate"));
    let flood = |address| (0..40).map(|_| Client::at(address, ProtocolVersion::V5)).collect::<Vec<_>>();
    let _unbounded = flood(free);
    Client::accepted(&broker, connect(ProtocolVersion::V5, "one")).disconnect();
    assert_eq!(refused(), 0.0, "the listener says 0 for itself");
    let _bounded = flood(broker.address);
    wait_for("refusals by the rate of all", || refused() >= 30.0);
    std::fs::write(&file, settings("connect_rate_per_address = 1000")).expect("written");
    broker.hang_up();
    broker.wait_for_metric("kentongan_settings_reloads_total{outcome=\"applied\"}", |count| count == 1.0);
    // The bucket fills up to the new rate.
    wait_for("a bucket with room for a flood", || {
        let before = refused();
        let mut flood = flood(broker.address);
        let all_stay = flood.iter_mut().all(|client| {
            client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, ""))));
            matches!(client.receive_within(DEADLINE), Some(Packet::ConnAck(_)))
        });
        all_stay && refused() == before
    });
}

/// One that publishes faster than it may is not read, which slows it down, and closed if it goes on.
///
/// Abuse: [publisher-too-fast]
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
    broker.wait_for_metric("kentongan_connections_closed_total{reason=\"quota_exceeded\"}", |count| count == 1.0);
    within.publish_acknowledged("t", "x", qos1(10));
}

/// Slowed down for longer than its keep-alive, it is not taken for dead: what it sent waits in the socket, its PINGREQ
/// behind it.
///
/// Abuse: [publisher-too-fast]
#[test]
fn a_publisher_that_is_slowed_down_is_not_blamed_for_its_silence() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__PUBLISH_RATE_MAX", "12")]);
    let mut asked = connect(ProtocolVersion::V5, "fast");
    asked.keep_alive = 1;
    let mut client = Client::accepted(&broker, asked);
    // At 12 a second this takes almost twice as long as such a client may be silent: up to three seconds.
    for number in 1..=80 {
        client.publish("t", "x", qos1(number));
    }
    let began = Instant::now();
    for number in 1..=80 {
        client.complete(qos1(number));
    }
    assert!(began.elapsed() > Duration::from_secs(4), "it was not slowed down");
    assert_eq!(broker.metric("kentongan_keep_alive_timeouts_total"), 0.0);
    client.send(&Packet::PingReq);
    assert_eq!(client.receive(), Packet::PingResp);
}

/// The same by bytes, and with settings that come while it is connected; others keep their own pace.
///
/// Abuse: [publisher-too-fast]
#[test]
fn a_publisher_is_held_to_a_rate_of_bytes_from_the_moment_that_it_is_set() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kentongan.toml");
    let settings = |rate: &str| format!("[[listener]]\naddress = \"127.0.0.1:0\"\n[session]\n{rate}\n");
    std::fs::write(&file, settings("")).expect("written");
    let broker = Broker::with_file(&file);
    let mut fast = Client::v5(&broker, "fast");
    let mut slow = Client::v5(&broker, "slow");
    let payload = "x".repeat(100_000);
    let takes = |client: &mut Client, messages: u16| {
        let began = Instant::now();
        for number in 1..=messages {
            client.publish("t", &payload, qos1(number));
        }
        for number in 1..=messages {
            client.complete(qos1(number));
        }
        began.elapsed()
    };
    takes(&mut fast, 20);
    assert_eq!(broker.metric("kentongan_publishers_slowed_total"), 0.0);
    std::fs::write(&file, settings("publish_bytes_rate_max = 500000")).expect("written");
    broker.hang_up();
    broker.wait_for_metric("kentongan_settings_reloads_total{outcome=\"applied\"}", |count| count == 1.0);
    // A second's worth at once, the other 1.5 MB at the rate.
    let took = takes(&mut fast, 20);
    assert!(took > Duration::from_secs(2), "2 MB in {took:?}");
    assert!(broker.metric("kentongan_publishers_slowed_total") > 0.0);
    assert!(takes(&mut slow, 2) < Duration::from_secs(1), "it has a bucket of its own");
}

/// All of its clients together, not those of others; who is not read for the others' sake is never closed for it.
///
/// Abuse: [publisher-too-fast]
#[test]
fn the_publishers_of_a_listener_share_its_rate() {
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    let broker = Broker::with_settings(&format!(
        "{listener}publish_rate_max = 20\n{listener}[session]\npublish_rate_max = 1000\npublish_rate_seconds_max = 1\n"
    ));
    let other = broker.next_listener();
    let mut beside = Client::at(other, ProtocolVersion::V5);
    beside.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "beside"))));
    assert_eq!(beside.expect_connack().reason_code, ReasonCode::Success);
    let mut limited = ["one", "two"].map(|name| Client::v5(&broker, name));
    let began = Instant::now();
    for client in &mut limited {
        (1..=40).for_each(|number| client.publish("t", "x", qos1(number)));
    }
    (1..=200).for_each(|number| beside.publish_acknowledged("t", "x", qos1(number)));
    let free = began.elapsed();
    for client in &mut limited {
        (1..=40).for_each(|number| client.complete(qos1(number)));
    }
    let took = began.elapsed();
    assert!(took > Duration::from_millis(2500), "80 messages at 20 a second in {took:?}");
    // At the rate of the others, which is theirs as well, it would be 13 s.
    assert!(free < Duration::from_secs(8), "{free:?} for who has no rate");
}

/// One that connects and goes again and again, although nobody else wants its name.
///
/// Abuse: [reconnect-storm]
#[test]
fn a_client_identifier_that_comes_and_goes_too_often_is_banned_where_that_is_set() {
    let broker = Broker::with_environment(
        &[],
        &[("KENTONGAN_LIMITS__FLAP_CONNECTS_MAX", "5"), ("KENTONGAN_LIMITS__FLAP_BAN_SECONDS", "2")],
    );
    let come = || {
        let (client, connack) = Client::open(&broker, connect(ProtocolVersion::V5, "flapping"));
        if connack.reason_code == ReasonCode::Success {
            client.disconnect();
        }
        connack.reason_code
    };
    let came = [(); 8].map(|()| come());
    let (success, banned) = (ReasonCode::Success, ReasonCode::Banned);
    assert_eq!(came, [success, success, success, success, success, success, banned, banned]);
    Client::v5(&broker, "steady").disconnect();
    broker.wait_for_metric(&refused("connects", "banned"), |count| count == 2.0);
    wait_for("the end of it", || come() == success);
}

/// Nobody has a Client Identifier banned by asking for it: only those count who are granted it.
///
/// Abuse: [reconnect-storm]
#[test]
fn a_user_that_asks_for_the_identifier_of_another_does_not_lock_it_out() {
    let files =
        Files::new("allow_anonymous = false\nauth.password_file = \"@/passwords\"\nlimits.flap_connects_max = 5");
    files.write("passwords", &(quick("ana", "tabuh") + &quick("budi", "kentong")));
    let broker = files.start();
    let come = |user: &str, password: &str| {
        let mut asked = of_user(ProtocolVersion::V5, "meter", user, password);
        asked.clean_start = false;
        asked.properties.session_expiry_interval = Some(3600);
        let (client, connack) = Client::open(&broker, asked);
        if connack.reason_code == ReasonCode::Success {
            client.disconnect();
        }
        connack.reason_code
    };
    assert_eq!(come("ana", "tabuh"), ReasonCode::Success);
    for _ in 0..20 {
        let refused = come("budi", "kentong");
        assert!(refused.is_error() && refused != ReasonCode::Banned, "{refused:?}");
    }
    assert_eq!(come("ana", "tabuh"), ReasonCode::Success);
}

/// An identifier that nobody has now is anybody's to connect by: who does it too often is kept out, and nobody else is.
///
/// Abuse: [reconnect-storm]
#[test]
fn a_user_that_connects_too_often_by_the_identifier_of_another_is_locked_out_alone() {
    let files =
        Files::new("allow_anonymous = false\nauth.password_file = \"@/passwords\"\nlimits.flap_connects_max = 5");
    files.write("passwords", &(quick("ana", "tabuh") + &quick("budi", "kentong")));
    let broker = files.start();
    let come = |user: &str, password: &str| {
        let (client, connack) = Client::open(&broker, of_user(ProtocolVersion::V5, "meter", user, password));
        if connack.reason_code == ReasonCode::Success {
            client.disconnect();
            broker.wait_for_metric("kentongan_connections", |value| value == 0.0);
        }
        connack.reason_code
    };
    let (success, banned) = (ReasonCode::Success, ReasonCode::Banned);
    assert_eq!(come("ana", "tabuh"), success);
    let came = [(); 8].map(|()| come("budi", "kentong"));
    assert_eq!(came, [success, success, success, success, success, success, banned, banned]);
    assert_eq!(come("ana", "tabuh"), success);
    let refused = come("budi", "wrong");
    assert!(refused.is_error() && refused != banned, "who is not budi hears nothing of him: {refused:?}");
}

/// Beyond the rate of a listener clients wait in its backlog, and come in by and by; another listener is not affected.
///
/// Abuse: [connect-flood]
#[test]
fn a_flood_of_connections_to_a_listener_waits_its_turn() {
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    let broker = Broker::with_settings(&format!("limits.connect_rate_per_second = 10\n{listener}{listener}"));
    let other = broker.next_listener();
    let began = Instant::now();
    let mut flood: Vec<_> = (0..30)
        .map(|number| {
            let mut client = Client::raw(&broker, ProtocolVersion::V5);
            client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, &format!("flood{number}")))));
            client
        })
        .collect();
    let mut beside = Client::at(other, ProtocolVersion::V5);
    beside.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "beside"))));
    assert_eq!(beside.expect_connack().reason_code, ReasonCode::Success);
    if began.elapsed() < Duration::from_secs(1) {
        let last = flood.last_mut().expect("thirty");
        assert_eq!(last.receive_within(Duration::from_millis(1)), None, "nobody waits");
    }
    let mut last = Duration::ZERO;
    for (number, client) in flood.iter_mut().enumerate() {
        assert_eq!(client.expect_connack().reason_code, ReasonCode::Success);
        // The bucket holds one second's worth, and one more was let in before it was filled.
        last = began.elapsed();
        let earliest = Duration::from_secs_f64((number as f64 - 11.0).max(0.0) / 10.0);
        assert!(last >= earliest, "client {number} came in after {last:?}");
    }
    assert!(last > Duration::from_secs(1), "nobody waited");
    assert_eq!(broker.metric("kentongan_connects_refused_total"), 0.0);
}

/// Subscribers that do not read are closed for nothing but the memory that they take.
fn with_mark_of_memory(bytes: u64) -> String {
    format!(
        "arbiters = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[session]\nout_buffer_bytes_max = 200000000\n\
         stalled_seconds_max = 0\n[limits]\nmemory_bytes_high_water = {bytes}\n"
    )
}

/// Far over the mark of memory, the connection with most bytes waiting is closed; one that reads is not.
///
/// Abuse: [memory]
#[test]
fn far_over_the_mark_of_memory_the_slowest_subscriber_is_closed() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kentongan.toml");
    std::fs::write(&file, with_mark_of_memory(0)).expect("written");
    let broker = Broker::with_file(&file);
    let mut publisher = Client::v5(&broker, "publisher");
    let mut steady = Client::v5(&broker, "steady");
    steady.subscribe("steady", QoS::AtMostOnce);
    let payload = "x".repeat(100_000);
    // They never read, the slowest has four times as much before it; the kernel takes some megabytes of each.
    let _deaf = [("slow", 200), ("slowest", 800)].map(|(client_id, messages)| {
        let mut client = Client::v5(&broker, client_id);
        client.subscribe(client_id, QoS::AtMostOnce);
        for _ in 0..messages {
            publisher.publish(client_id, &payload, QOS0);
        }
        client
    });
    publisher.publish_acknowledged("nobody", "", qos1(1));
    let bytes = broker.metric("process_heap_bytes") as u64;
    assert!(bytes > 60_000_000, "only {bytes} bytes are held");
    // Over 120 % of the mark: level 3, until the slowest has gone.
    std::fs::write(&file, with_mark_of_memory(bytes * 10 / 13)).expect("written");
    broker.hang_up();
    let line = broker.wait_for_log("disconnected");
    assert!(line.contains("\"slowest\"") && line.contains("SlowConsumer"), "{line}");
    broker.wait_for_metric("kentongan_connections_closed_total{reason=\"slow_consumer\"}", |count| count >= 1.0);
    std::fs::write(&file, with_mark_of_memory(0)).expect("written");
    broker.hang_up();
    wait_for("a subscriber that is served again", || {
        publisher.publish("steady", "still here", QOS0);
        steady.receive_within(QUIET).is_some()
    });
}

/// One after the other, and what each does ends with it.
///
/// Abuse: [memory]
#[test]
fn each_mark_of_memory_adds_a_measure() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kentongan.toml");
    std::fs::write(&file, with_mark_of_memory(0)).expect("written");
    let broker = Broker::with_file(&file);
    let mut publisher = Client::v5(&broker, "publisher");
    let mut deaf = Client::v5(&broker, "deaf");
    deaf.subscribe("deaf", QoS::AtMostOnce);
    let payload = "x".repeat(100_000);
    for _ in 0..800 {
        publisher.publish("deaf", &payload, QOS0);
    }
    publisher.publish_acknowledged("nobody", "", qos1(1));
    let bytes = broker.metric("process_heap_bytes") as u64;
    assert!(bytes > 60_000_000, "only {bytes} bytes are held");
    let used = |percent: u64| {
        std::fs::write(&file, with_mark_of_memory(bytes * 100 / percent)).expect("written");
        broker.hang_up();
    };
    let comes = || Client::open(&broker, connect(ProtocolVersion::V5, "late")).1.reason_code;

    used(105);
    wait_for("level 1", || comes() == ReasonCode::ServerBusy);
    publisher.publish_acknowledged("nobody", "still read", qos1(2));
    used(115);
    // Whatever it sends, it is answered no more.
    let mut number = 2;
    wait_for("level 2", || {
        number += 1;
        publisher.publish("nobody", "", qos1(number));
        publisher.receive_within(Duration::from_secs(2)).is_none()
    });
    assert_eq!(comes(), ReasonCode::ServerBusy);
    let closed = "kentongan_connections_closed_total{reason=\"slow_consumer\"}";
    assert_eq!(broker.metric(closed), 0.0, "nobody is closed yet");
    used(130);
    broker.wait_for_metric(closed, |count| count == 1.0);
    // What it had is free, and by that all measures end.
    publisher.complete(qos1(number));
    wait_for("level 0", || comes() == ReasonCode::Success);
}

/// A persistent session whose client stops reading loses its connection and nothing else.
///
/// Abuse: [stalled-subscriber]
#[test]
fn a_persistent_session_closed_by_a_stall_resumes_with_its_messages() {
    // More than fits into the kernel's buffers is in flight at once.
    const MESSAGES: u16 = 200;
    // More than the pauses of a client that reads, however busy its machine is.
    let settings =
        [("KENTONGAN_SESSION__STALLED_SECONDS_MAX", "3"), ("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", "40000000")];
    let broker = Broker::with_environment(&[], &settings);
    let mut asked = connect(ProtocolVersion::V5, "stalled");
    asked.clean_start = false;
    asked.properties.session_expiry_interval = Some(3600);
    let mut stalled = Client::accepted(&broker, asked.clone());
    stalled.subscribe("t", QoS::AtLeastOnce);
    let mut publisher = Client::v5(&broker, "publisher");
    let filling = "x".repeat(200_000);
    for number in 1..=MESSAGES {
        publisher.publish_acknowledged("t", &format!("{number} {filling}"), qos1(number));
    }
    let closed = "kentongan_connections_closed_total{reason=\"slow_consumer\"}";
    broker.wait_for_metric(closed, |count| count == 1.0);
    let (mut resumed, connack) = Client::open(&broker, asked);
    assert!(connack.session_present);
    for number in 1..=MESSAGES {
        let message = resumed.take_publish();
        let text = std::str::from_utf8(&message.payload).expect("as published");
        assert_eq!(text.split(' ').next(), Some(number.to_string().as_str()));
    }
    resumed.expect_nothing();
    // Those on the way when it ended.
    broker.wait_for_metric("kentongan_messages_resent_total", |count| count > 0.0);
    assert_eq!(broker.metric("kentongan_messages_dropped_total"), 0.0);
}

/// A client that asks and asks and never reads the answers is not listened to for ever.
///
/// Abuse: [stalled-subscriber]
#[test]
fn answers_that_nobody_reads_are_bounded_and_their_connection_is_closed() {
    let settings =
        [("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", "65536"), ("KENTONGAN_SESSION__STALLED_SECONDS_MAX", "1")];
    let broker = Broker::with_environment(&[], &settings);
    let mut deaf = Client::v5(&broker, "deaf");
    deaf.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket option");
    // Each of these is answered with as many bytes; the kernel takes some megabytes each way.
    let questions = [0xC0, 0].repeat(64 * 1024);
    let mut at = 0;
    // Where half a question was taken, it goes on with the other half.
    let mut ask = || {
        while let Ok(count) = deaf.stream.write(&questions[at..]) {
            at = (at + count) % 2;
        }
    };
    ask();
    wait_for("its end", || {
        ask();
        broker.metric("kentongan_connections_closed_total{reason=\"slow_consumer\"}") == 1.0
    });
    broker.wait_for_metric("kentongan_connections", |connections| connections == 0.0);
    let mut steady = Client::v5(&broker, "steady");
    assert_eq!(steady.subscribe("t", QoS::AtMostOnce), ReasonCode::Success);
}

/// Over the mark of memory: no new clients, no new messages, and nobody is blamed for the silence that this causes.
///
/// Abuse: [memory]
#[test]
fn short_of_memory_clients_are_refused_and_publishers_not_read() {
    let idle_bytes = Broker::start().metric("process_heap_bytes") as u64;
    let mark = (idle_bytes + 48 * 1024 * 1024).to_string();
    let broker = Broker::with_environment(&[], &[("KENTONGAN_LIMITS__MEMORY_BYTES_HIGH_WATER", &mark)]);
    let mut away = connect(ProtocolVersion::V5, "away");
    away.properties.session_expiry_interval = Some(3600);
    let mut away = Client::accepted(&broker, away);
    away.subscribe("t", QoS::AtLeastOnce);
    away.disconnect();
    let mut asked = connect(ProtocolVersion::V5, "publisher");
    asked.keep_alive = 2;
    let mut publisher = Client::accepted(&broker, asked);
    let payload = "x".repeat(500_000);
    let mut number = 0;
    let paused = loop {
        number += 1;
        assert!(number < 1000, "never stopped reading");
        publisher.publish("t", &payload, qos1(number));
        // Twice as long as a client with this keep-alive may be silent.
        let asked = Instant::now();
        if publisher.receive_within(Duration::from_secs(8)).is_none() {
            break asked.elapsed();
        }
    };
    assert!(paused >= Duration::from_secs(8), "closed, not paused");
    for (version, reason) in
        [(ProtocolVersion::V5, ReasonCode::ServerBusy), (ProtocolVersion::V3_1_1, ReasonCode::ServerUnavailable)]
    {
        let (_, refused) = Client::open(&broker, connect(version, "late"));
        assert_eq!(refused.reason_code, reason);
    }
    broker.wait_for_metric("kentongan_connects_refused_total{reason=\"busy\"}", |count| count == 2.0);
}

/// What a session may not keep is dropped by policy and counted, the rest is delivered in order.
///
/// Abuse: [queue-full]
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
        let dropped = "kentongan_messages_dropped_total{reason=\"queue_messages\"}";
        broker.wait_for_metric(dropped, |dropped| dropped == 5.0);
        let mut client = Client::accepted(&broker, asked);
        let got = [(); 3].map(|()| client.expect_publish().payload);
        assert_eq!(got, expected);
        client.expect_nothing();
    }
}

/// The same behind the window of a client that is connected, whose session ends with it; bounds on messages and bytes.
///
/// Abuse: [queue-full]
#[test]
fn a_full_queue_of_a_transient_session_drops_by_policy_and_counts() {
    for (bound, reason) in [("queue_messages_max = 3", "queue_messages"), ("queue_bytes_max = 35000", "queue_bytes")] {
        for (policy, expected) in [("drop-new", [0, 1, 2, 3]), ("drop-oldest", [0, 5, 6, 7])] {
            let settings = format!(
                "[[listener]]\naddress = \"127.0.0.1:0\"\n[session]\nqueue_drop_policy = \"{policy}\"\n{bound}\n"
            );
            let broker = Broker::with_settings(&settings);
            let mut asked = connect(ProtocolVersion::V5, "narrow");
            asked.properties.receive_maximum = std::num::NonZeroU16::new(1);
            let mut client = Client::accepted(&broker, asked);
            client.subscribe("t", QoS::AtLeastOnce);
            let mut publisher = Client::v5(&broker, "p");
            for number in 0..8 {
                publisher.publish_acknowledged("t", &number.to_string().repeat(10_000), qos1(number + 1));
            }
            let series = format!("kentongan_messages_dropped_total{{reason=\"{reason}\"}}");
            broker.wait_for_metric(&series, |dropped| dropped == 4.0);
            let got = [(); 4].map(|()| client.take_publish().payload[0] - b'0');
            assert_eq!(got, expected, "{bound} {policy}");
            client.expect_nothing();
        }
    }
}

/// A client that reads too slowly loses what is of QoS 0; what has a QoS waits for it.
///
/// Abuse: [queue-full]
#[test]
fn qos_0_gives_way_first() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", "65536")]);
    let mut client = Client::v5(&broker, "slow");
    client.subscribe("t", QoS::AtLeastOnce);
    let mut publisher = Client::v5(&broker, "p");
    let payload = "x".repeat(50_000);
    let mut number = 0;
    // Until the kernel's buffers and the out-buffer are full of it.
    wait_for("a drop", || {
        for _ in 0..50 {
            publisher.publish("t", &payload, QOS0);
        }
        number += 1;
        publisher.publish_acknowledged("t", &number.to_string(), qos1(number));
        broker.metric("kentongan_messages_dropped_total{reason=\"slow_consumer\"}") > 0.0
    });
    let mut got = Vec::new();
    while got.len() < usize::from(number) {
        let message = client.take_publish();
        if message.delivery.qos() == QoS::AtLeastOnce {
            got.push(String::from_utf8_lossy(&message.payload).into_owned());
        }
    }
    assert_eq!(got, (1..=number).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(broker.metric("kentongan_messages_dropped_total{reason=\"queue_messages\"}"), 0.0);
}
