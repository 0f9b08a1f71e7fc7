//! What an operator meets: health, metrics, a second process, a low limit of descriptors.

use bytes::Bytes;
use kentongan::api::tokens::{Role, Token};
use kentongan_proto::mqtt::*;

use crate::support::*;

#[test]
fn health_and_metrics_are_served() {
    let broker = Broker::start();
    assert_eq!(broker.http_get("/livez").0, 200);
    assert_eq!(broker.http_get("/readyz").0, 200);
    let mut client = Client::v5(&broker, "a");
    client.subscribe("x/y", QoS::AtMostOnce);
    client.publish("x/y", "z", QOS0);
    client.expect_publish();
    broker.wait_for_metric("kentongan_connections", |value| value == 1.0);
    broker.wait_for_metric("kentongan_messages_received_total", |value| value == 1.0);
    broker.wait_for_metric("kentongan_subscriptions", |value| value == 1.0);
    assert_eq!(client.unsubscribe("x/y"), [ReasonCode::Success]);
    assert_eq!(client.unsubscribe("x/y"), [ReasonCode::NoSubscriptionExisted]);
    client.disconnect();
    broker.wait_for_metric("kentongan_connections", |value| value == 0.0);
    broker.wait_for_metric("kentongan_subscriptions", |value| value == 0.0);
}

/// F10: who spreads clients over nodes is to leave out one that refuses what they publish.
#[test]
fn a_node_whose_disk_has_no_room_is_not_ready() {
    let more_than_any_disk = [("KENTONGAN_STORAGE__FREE_BYTES_RESERVE", "9000000000000000000")];
    let broker = Broker::with_environment(&[], &more_than_any_disk);
    wait_for("not ready", || broker.http_get("/readyz") == (503, "not ready, missing: disk\n".to_owned()));
}

/// F10: nor does QoS 0, which nobody could be told about, take of what is kept for settling.
#[test]
fn with_a_full_disk_nothing_of_qos_0_is_kept_and_what_is_empty_deletes() {
    const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    let mut broker = Broker::with_settings(LISTENER);
    let mut client = Client::v5(&broker, "a");
    for topic in ["old", "kept"] {
        client.send(&retained(topic, topic, QoS::AtLeastOnce));
        assert!(matches!(client.receive(), Packet::PubAck(_)));
    }
    let file = broker.data_dir().with_file_name("kentongan.toml");
    let full = format!("{LISTENER}[storage]\nfree_bytes_reserve = 9000000000000000000\n");
    broker.restart_after(|| std::fs::write(file, full).expect("written"));
    wait_for("not ready", || broker.http_get("/readyz").0 == 503);
    let mut client = Client::v5(&broker, "b");
    client.subscribe("new", QoS::AtMostOnce);
    client.send(&retained("kept", "not any more", QoS::AtMostOnce));
    client.send(&retained("old", "", QoS::AtMostOnce));
    client.send(&retained("$delayed/0/later", "x", QoS::AtMostOnce));
    client.send(&retained("new", "live", QoS::AtMostOnce));
    assert_eq!(client.expect_publish().payload, "live");
    broker.wait_for_metric("kentongan_retained_not_kept_total", |value| value == 2.0);
    broker.wait_for_metric("kentongan_messages_dropped_total{reason=\"delayed\"}", |value| value == 1.0);
    broker.wait_for_metric("kentongan_retained_messages", |value| value == 1.0);
    let mut reader = Client::v5(&broker, "c");
    reader.subscribe("#", QoS::AtMostOnce);
    let read = reader.expect_publish();
    assert_eq!((read.topic.as_str(), &read.payload[..]), ("kept", &b"kept"[..]));
    reader.expect_nothing();
}

fn retained(topic: &str, payload: &str, qos: QoS) -> Packet {
    let delivery = match qos {
        QoS::AtMostOnce => Delivery::AtMostOnce,
        _ => qos1(1),
    };
    let (topic, payload) = (topic.to_owned(), Bytes::from(payload.to_owned()));
    Packet::Publish(Publish {
        dup: false,
        delivery,
        retain: true,
        topic,
        properties: PublishProperties::default(),
        payload,
    })
}

/// `$SYS` has mosquitto's names, as retained messages, and nobody else may speak there.
#[test]
fn the_broker_tells_about_itself() {
    let broker = Broker::start();
    let mut client = Client::v311(&broker, "a");
    client.subscribe("$SYS/broker/version", QoS::AtMostOnce);
    let message = client.expect_publish();
    assert!(message.retain);
    assert!(message.payload.starts_with(b"kentongan version "));
    let mut other = Client::v5(&broker, "b");
    other.publish("$SYS/broker/version", "mine", qos1(1));
    match other.receive() {
        Packet::PubAck(ack) => assert_eq!(ack.reason_code, ReasonCode::NotAuthorized),
        packet => panic!("PUBACK expected, got {packet:?}"),
    }
    client.expect_nothing();
}

/// The names of mosquitto 2.0.11, beside its load averages, which have a test of their own; at the end one that only its
/// manual has.
const SYS_NAMES: [&str; 27] = [
    "bytes/received",
    "bytes/sent",
    "clients/active",
    "clients/connected",
    "clients/disconnected",
    "clients/expired",
    "clients/inactive",
    "clients/maximum",
    "clients/total",
    "heap/current",
    "heap/maximum",
    "messages/received",
    "messages/sent",
    "messages/stored",
    "publish/bytes/received",
    "publish/bytes/sent",
    "publish/messages/dropped",
    "publish/messages/received",
    "publish/messages/sent",
    "retained messages/count",
    "shared_subscriptions/count",
    "store/messages/bytes",
    "store/messages/count",
    "subscriptions/count",
    "uptime",
    "version",
    "messages/inflight",
];

/// Every name is there, and those that count say what happened.
#[test]
fn the_broker_tells_what_mosquitto_tells() {
    let broker = Broker::with(&["--set", "sys.interval_seconds=1"]);
    // One message waits for a client that is away.
    let mut away = connect(ProtocolVersion::V5, "away");
    away.properties.session_expiry_interval = Some(60);
    let mut away = Client::accepted(&broker, away);
    away.subscribe("t", QoS::AtLeastOnce);
    away.subscribe("$share/g/x", QoS::AtLeastOnce);
    away.disconnect();
    Client::v5(&broker, "publisher").publish_acknowledged("t", "12345", qos1(1));
    let mut client = Client::v311(&broker, "a");
    client.subscribe("$SYS/#", QoS::AtMostOnce);
    let mut values = std::collections::BTreeMap::new();
    let mut owed = vec![
        ("clients/disconnected", "1"),
        ("clients/connected", "1"),
        ("clients/total", "2"),
        ("messages/stored", "1"),
        ("store/messages/count", "1"),
        ("publish/bytes/received", "5"),
        ("shared_subscriptions/count", "1"),
        ("subscriptions/count", "3"),
    ];
    let deadline = std::time::Instant::now() + DEADLINE;
    while !owed.is_empty() || values.len() < SYS_NAMES.len() {
        assert!(std::time::Instant::now() < deadline, "{owed:?} never came, {values:?} did");
        let message = client.expect_publish();
        let name = message.topic.strip_prefix("$SYS/broker/").expect("as subscribed").to_owned();
        let value = String::from_utf8(message.payload.to_vec()).expect("text");
        owed.retain(|own| *own != (name.as_str(), value.as_str()));
        if SYS_NAMES.contains(&name.as_str()) {
            values.insert(name, value);
        }
    }
    let heap = |name: &str| values[name].parse::<u64>().expect("a number");
    assert!(heap("heap/current") > 1_000_000 && heap("heap/maximum") >= heap("heap/current"));
}

/// Load averages have mosquitto's names, begin at nothing, and grow with what happens.
#[test]
fn the_broker_tells_its_load() {
    let broker = Broker::with(&["--set", "sys.interval_seconds=1"]);
    let mut client = Client::v311(&broker, "a");
    client.subscribe("$SYS/broker/load/#", QoS::AtMostOnce);
    let mut values = std::collections::BTreeMap::new();
    let deadline = std::time::Instant::now() + DEADLINE;
    let mut busy = ["messages/received/1min", "bytes/sent/15min", "sockets/5min", "connections/1min"].to_vec();
    while !busy.is_empty() {
        assert!(std::time::Instant::now() < deadline, "still nothing for {busy:?}");
        let message = client.expect_publish();
        let name = message.topic.strip_prefix("$SYS/broker/load/").expect("as subscribed").to_owned();
        let value: f64 = std::str::from_utf8(&message.payload).expect("text").parse().expect("a number");
        if value > 0.0 {
            busy.retain(|own| *own != name);
        }
        values.insert(name, value);
    }
    let kinds = ["messages/received", "messages/sent", "publish/received", "publish/sent", "publish/dropped"];
    let kinds = kinds.into_iter().chain(["bytes/received", "bytes/sent", "sockets", "connections"]);
    for name in kinds.flat_map(|kind| ["1min", "5min", "15min"].map(|window| format!("{kind}/{window}"))) {
        assert!(values.remove(&name).is_some(), "{name} is missing");
    }
    assert!(values.is_empty(), "more than mosquitto has: {values:?}");
}

/// What the log does is seen: an acknowledged message was synced.
#[test]
fn the_log_is_measured() {
    let broker = Broker::start();
    let before = ["kentongan_log_sync_seconds_count", "kentongan_log_commands_total", "kentongan_log_sync_seconds_sum"]
        .map(|name| (name, broker.metric(name)));
    let mut connect = connect(ProtocolVersion::V5, "s");
    connect.properties.session_expiry_interval = Some(60);
    let (mut subscriber, _) = Client::open(&broker, connect);
    subscriber.subscribe("t", QoS::AtLeastOnce);
    Client::v5(&broker, "p").publish_acknowledged("t", "x", qos1(1));
    for (name, before) in before {
        assert!(broker.metric(name) > before, "{name} did not grow");
    }
    assert!(broker.metric("kentongan_log_size_bytes") > 0.0);
}

#[test]
fn a_second_process_is_refused_the_data_directory() {
    let broker = Broker::start();
    let output = broker_command()
        .args(["serve", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
        .arg(broker.data_dir())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("in use by another process"), "{text}");
}

/// A data directory of a later version is left as it is.
#[test]
fn a_newer_format_on_disk_is_refused() {
    let mut broker = Broker::start();
    assert!(broker.terminate().success());
    let format = broker.data_dir().join("format");
    let known: u64 = std::fs::read_to_string(&format).expect("a format").trim().parse().expect("a number");
    std::fs::write(&format, format!("{}\n", known + 1)).expect("written");
    let output = broker_command()
        .args(["serve", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
        .arg(broker.data_dir())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&format!("has format {}", known + 1)), "{text}");
    assert!(text.contains("use the version that wrote it"), "{text}");
    std::fs::write(&format, format!("{known}\n")).expect("written");
    broker.restart();
    Client::v5(&broker, "a").disconnect();
}

/// Its groups belong to the node that the file named, and would wait for that one's vote.
#[test]
fn a_data_directory_without_its_node_file_is_refused() {
    let mut broker = Broker::start();
    Client::v5(&broker, "p").publish_acknowledged("t", "x", qos1(1));
    broker.kill();
    let file = broker.data_dir().join("node");
    let number = std::fs::read_to_string(&file).expect("a number");
    // Lost, and then that which a start drew anew.
    for is_lost in [true, false] {
        if is_lost {
            std::fs::remove_file(&file).expect("removed");
        }
        let output = broker_command()
            .args(["serve", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
            .arg(broker.data_dir())
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("is not the one that this data directory was made with"), "{text}");
        assert!(text.contains(&format!("it had the number {}", number.trim())), "{text}");
    }
    std::fs::write(&file, number).expect("written");
    broker.restart();
    Client::v5(&broker, "a").disconnect();
}

/// SIGINT and SIGTERM: clients are told, the state is written, the process ends with success.
#[test]
fn a_signal_stops_it_in_good_order() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut broker = Broker::start();
        let mut five = Client::v5(&broker, "five");
        let mut three = Client::v311(&broker, "three");
        assert!(broker.stop_by(signal).success(), "{signal:?}");
        five.expect_disconnect(ReasonCode::ServerShuttingDown);
        three.expect_closed();
    }
}

/// A log that nobody reads on holds up nothing: neither clients nor the end. What found no room in it is counted, and told once there is
/// room again.
///
/// Abuse: [unread-log]
#[test]
fn a_stalled_reader_of_the_log_stalls_nobody() {
    // In the log's line of a connection too: more than a pipe and the queue before it hold.
    let connect_all = |broker: &Broker| {
        for number in 0..400 {
            Client::v5(broker, &format!("{number}-{}", "x".repeat(16_000))).disconnect();
        }
    };
    let mut broker = Broker::start();
    let reading = std::sync::Arc::clone(&broker.reading);
    let stalled = reading.lock().expect("nobody failed with it");
    connect_all(&broker);
    assert_eq!(broker.http_get("/livez").0, 200);
    broker.wait_for_metric("kentongan_log_lines_dropped_total", |lines| lines > 0.0);
    drop(stalled);
    let told = broker.wait_for_log("were left out of the log");
    assert!(told.contains("WARN"), "{told}");
    let stalled = reading.lock().expect("nobody failed with it");
    connect_all(&broker);
    assert!(broker.terminate().success());
    drop(stalled);
}

/// What is logged last is what matters when a process ends: it is all there, however much there was before, and what a panic says too.
#[test]
fn the_last_line_of_the_log_is_written_before_the_process_ends() {
    let broker = Broker::start();
    let output = broker_command()
        .args(["serve", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log", "trace", "--data-dir"])
        .arg(broker.data_dir())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    let last = text.lines().last().unwrap_or_default();
    assert!(text.ends_with('\n') && last.contains("ERROR"), "{text}");
    assert!(last.contains("in use by another process"), "{text}");
}

/// Tools for mosquitto send these, and other programs end with them.
#[test]
fn signals_of_mosquitto_that_mean_nothing_here_are_ignored() {
    let broker = Broker::start();
    let mut client = Client::v5(&broker, "a");
    for (signal, name) in [(rustix::process::Signal::USR1, "SIGUSR1"), (rustix::process::Signal::USR2, "SIGUSR2")] {
        broker.signal(signal);
        broker.wait_for_log(name);
    }
    client.send(&Packet::PingReq);
    assert_eq!(client.receive(), Packet::PingResp);
}

/// Each shell gets a script that knows the subcommands and their flags.
#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = broker_command().args(["completions", shell]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = String::from_utf8(output.stdout).expect("text");
        for word in ["serve", "data-dir", "will-topic", "config"] {
            assert!(script.contains(word), "{word} is not in the completions of {shell}");
        }
    }
    let output = broker_command().args(["completions", "tcsh"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
}

/// What is held for sessions, those of a group and those of an arbiter alike, and that nothing of it is left over.
#[test]
fn what_is_held_for_sessions_is_measured() {
    let broker =
        Broker::with_environment(&[], &[("KENTONGAN_ARBITERS", "2"), ("KENTONGAN_SESSION__QUEUE_MESSAGES_MAX", "2")]);
    let reaches = |name: &str, expected: f64| {
        broker.wait_for_metric(&format!("kentongan_{name}"), |value| value == expected);
    };
    // A persistent session: one message in flight, two in the queue, one dropped.
    let mut narrow = connect(ProtocolVersion::V5, "narrow");
    narrow.clean_start = false;
    narrow.properties.receive_maximum = std::num::NonZeroU16::new(1);
    narrow.properties.session_expiry_interval = Some(60);
    let mut persistent = Client::accepted(&broker, narrow.clone());
    // The same of a transient one.
    let mut transient = Client::accepted(
        &broker,
        Connect {
            client_id: "transient".to_owned(),
            properties: ConnectProperties { session_expiry_interval: None, ..narrow.properties.clone() },
            ..narrow.clone()
        },
    );
    for client in [&mut persistent, &mut transient] {
        client.subscribe("t", QoS::AtLeastOnce);
        client.subscribe("$share/g/s", QoS::AtLeastOnce);
    }
    let mut publisher = Client::v5(&broker, "publisher");
    for number in 1..=4 {
        publisher.publish_acknowledged("t", "four", qos1(number));
    }
    for (name, expected) in [
        ("connections", 3.0),
        ("sessions", 3.0),
        ("subscriptions", 4.0),
        ("shared_subscriptions", 2.0),
        ("inflight_messages", 2.0),
        ("queued_messages", 4.0),
        ("messages_dropped_total{reason=\"queue_messages\"}", 2.0),
        ("received_payload_bytes_total", 16.0),
        ("sent_payload_bytes_total", 8.0),
    ] {
        reaches(name, expected);
    }
    assert!(broker.metric("kentongan_queued_bytes") > 16.0);
    // What was in flight is sent again; then all of it is taken, or goes with its session.
    drop(persistent);
    reaches("connections", 2.0);
    let mut persistent = Client::accepted(&broker, narrow);
    assert!(persistent.take_publish().dup);
    reaches("messages_resent_total", 1.0);
    for _ in 0..2 {
        persistent.take_publish();
    }
    persistent.unsubscribe("t");
    persistent.unsubscribe("$share/g/s");
    drop(transient);
    for name in ["inflight_messages", "queued_messages", "queued_bytes", "subscriptions", "shared_subscriptions"] {
        reaches(name, 0.0);
    }
    reaches("sessions", 2.0);
}

/// No family is dead: each one that `/metrics` names moves when what it counts happens.
#[test]
fn every_family_of_metrics_moves() {
    let settings = [
        ("KENTONGAN_ARBITERS", "2"),
        ("KENTONGAN_SESSION__QUEUE_MESSAGES_MAX", "1"),
        ("KENTONGAN_RETAINED__MESSAGES_MAX", "1"),
    ];
    let broker = Broker::with_environment(&[], &settings);
    let (_, metrics) = broker.http_get("/metrics");
    let families = metrics.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(if kind == "histogram" { format!("{name}_count") } else { name.to_owned() })
    });
    // The log and its checkpoints have tests of their own, and so have TLS, authentication servers, the webhook, the API, the want of
    // descriptors, rates, the audit log, rights that are taken away, and what needs other nodes, or a machine that is short of something.
    let elsewhere = [
        "kentongan_log_",
        "kentongan_checkpoints_",
        "kentongan_tls_",
        "kentongan_certificate_expires_timestamp_seconds",
        "kentongan_http_auth_",
        "kentongan_descriptors_exhausted_total",
        "kentongan_publishers_slowed_total",
        "kentongan_audit_dropped_total",
        "kentongan_shared_messages_elsewhere",
        "kentongan_subscriptions_revoked_total",
        "kentongan_jwks_",
        "kentongan_webhook_",
        "kentongan_client_events_dropped_total",
        "kentongan_api_requests_total",
        "kentongan_lease_lapses_total",
        "kentongan_declared_dead_total",
        "kentongan_raft_leader_changes_total",
        "kentongan_raft_replication_lag_entries",
        "kentongan_raft_snapshots_",
        "kentongan_raft_commands_too_long_total",
        "kentongan_overloaded",
        "kentongan_memory_",
        "kentongan_disk_full",
        "kentongan_cluster_members",
    ];
    let mut unmoved: Vec<_> = families
        .filter(|name| name.starts_with("kentongan_") && !elsewhere.iter().any(|other| name.starts_with(other)))
        .collect();
    assert!(unmoved.len() > 50, "{unmoved:?}");

    // Two subscribers on different arbiters, each with messages in flight, queued and dropped; one resumes.
    let with = |client_id: &str, change: &dyn Fn(&mut Connect)| {
        let mut asked = connect(ProtocolVersion::V5, client_id);
        change(&mut asked);
        Client::accepted(&broker, asked)
    };
    let narrow = |client_id: &str, expiry| {
        with(client_id, &|asked| {
            asked.clean_start = false;
            asked.properties.receive_maximum = std::num::NonZeroU16::new(1);
            asked.properties.session_expiry_interval = expiry;
        })
    };
    let mut persistent = narrow("persistent", Some(60));
    let mut transient = narrow("transient", None);
    for client in [&mut persistent, &mut transient] {
        client.subscribe("t", QoS::AtLeastOnce);
    }
    transient.subscribe("$share/g/s", QoS::AtLeastOnce);
    let mut publisher = Client::v5(&broker, "publisher");
    for (number, topic) in (1..).zip(["t", "t", "t", "nobody", "$delayed/60/t", "$SYS/mine"]) {
        publisher.publish_acknowledged(topic, "payload", qos1(number));
    }
    publisher.send(&Packet::Publish(Publish { retain: true, ..publish("r", "kept", qos1(10)) }));
    publisher.complete(qos1(10));
    // More topics than there are groups: some group is asked to keep a second message.
    for number in 11..40 {
        publisher
            .send(&Packet::Publish(Publish { retain: true, ..publish(&format!("r/{number}"), "kept", qos1(number)) }));
        publisher.complete(qos1(number));
    }
    drop(persistent);
    let _resumed = narrow("persistent", Some(60));
    // Ends and refusals.
    Client::v5(&broker, "confused").subscribe("a/#/b", QoS::AtMostOnce);
    Client::raw(&broker, ProtocolVersion::V5).send(&Packet::PingReq);
    Client::v5(&broker, "rude").send_bytes(&[0xC3, 0]);
    let _silent = with("silent", &|asked| asked.keep_alive = 1);
    let _twins = [Client::v5(&broker, "twin"), Client::v5(&broker, "twin")];
    with("brief", &|asked| asked.properties.session_expiry_interval = Some(1)).disconnect();
    drop(with("mortal", &|asked| {
        asked.will = Some(Will {
            topic: "will".to_owned(),
            payload: Bytes::new(),
            qos: QoS::AtMostOnce,
            retain: false,
            properties: WillProperties::default(),
        });
    }));
    broker.hang_up();
    let deadline = std::time::Instant::now() + DEADLINE;
    while !unmoved.is_empty() {
        assert!(std::time::Instant::now() < deadline, "never moved: {unmoved:?}");
        unmoved.retain(|name| broker.metric(name) == 0.0);
    }
}

/// With metrics off nothing is counted, and nothing is shown that would read as "none".
#[test]
fn metrics_can_be_turned_off() {
    let settings = [("KENTONGAN_METRICS__ENABLED", "false"), ("KENTONGAN_SYS__INTERVAL_SECONDS", "1")];
    let broker = Broker::with_environment(&[], &settings);
    let mut subscriber = Client::v5(&broker, "s");
    subscriber.subscribe("t", QoS::AtLeastOnce);
    let mut client = Client::v5(&broker, "a");
    client.publish_acknowledged("t", "x", qos1(1));
    assert_eq!(subscriber.take_publish().payload, "x");
    client.subscribe("$SYS/#", QoS::AtMostOnce);
    let mut names = std::collections::BTreeSet::new();
    loop {
        let message = client.expect_publish();
        // What is retained came first; once this is live, all the others had their chance.
        if message.topic == "$SYS/broker/uptime" && !message.retain {
            break;
        }
        names.insert(message.topic);
    }
    let (_, metrics) = broker.http_get("/metrics");
    let families: Vec<_> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(families.iter().any(|family| family.starts_with("process_resident_memory_bytes ")), "{metrics}");
    assert!(families.iter().any(|family| family.starts_with("kentongan_log_sync_seconds ")), "{metrics}");
    for name in ["kentongan_messages_received_total", "kentongan_connections", "kentongan_flushes_total"] {
        assert!(!metrics.contains(name), "{name} is in {metrics}");
    }
    let expected = ["heap/current", "heap/maximum", "uptime", "version"].map(|name| format!("$SYS/broker/{name}"));
    assert_eq!(names, expected.into());
}

/// Started with a low soft limit, it takes the hard one; connections leave a reserve, in which HTTP is still served.
#[test]
fn connections_leave_a_reserve_of_descriptors() {
    let broker = Broker::with_descriptors(100, 400, &[("KENTONGAN_LIMITS__DESCRIPTORS_RESERVE", "100")]);
    assert_eq!(broker.metric("process_max_fds"), 400.0, "the soft limit is raised to the hard one");
    // What is left of 400 depends on how many arbiters there are.
    let max = broker.metric("kentongan_connections_max");
    assert!((20.0..200.0).contains(&max), "{max}");
    let mut crowd: Vec<_> = (0..max as u32).map(|number| Client::v5(&broker, &format!("crowd{number}"))).collect();
    let mut flood: Vec<_> = (0..100).map(|_| Client::raw(&broker, ProtocolVersion::V5)).collect();
    let refused = "kentongan_connects_refused_total{reason=\"too_many_connections\"}";
    broker.wait_for_metric(refused, |count| count == 100.0);
    flood.iter_mut().for_each(Client::expect_closed);
    broker.wait_for_metric("kentongan_connections", |count| count == max);
    assert_eq!(broker.metric("kentongan_descriptors_exhausted_total"), 0.0);
    assert!(broker.metric("process_open_fds") <= 300.0, "the reserve is used");
    assert_eq!(broker.http_get("/readyz").0, 200);
    // One goes, one comes.
    crowd.pop().expect("one").disconnect();
    wait_for("room", || {
        let mut client = Client::raw(&broker, ProtocolVersion::V5);
        client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "late"))));
        matches!(client.receive_within(QUIET), Some(Packet::ConnAck(_)))
    });
}

/// F10: with as many connections at each door as it takes, a node writes its checkpoints and lives.
///
/// Abuse: [connect-flood]
#[test]
fn all_doors_full_leave_the_log_and_its_checkpoints_their_descriptors() {
    let files = tempfile::tempdir().expect("a directory");
    let tokens = files.path().join("tokens");
    std::fs::write(&tokens, Token::draw().line("made", Role::Operator)).expect("written");
    let environment = [
        ("KENTONGAN_API__ADDRESS", "127.0.0.1:0"),
        ("KENTONGAN_API__TOKENS_FILE", tokens.to_str().expect("UTF-8")),
        ("KENTONGAN_STORAGE__CHECKPOINT_SECONDS", "1"),
        ("KENTONGAN_STORAGE__SEGMENT_BYTES", "65536"),
    ];
    let broker = Broker::with_descriptors(400, 400, &environment);
    let mut subscriber = staying(&broker, "subscriber");
    subscriber.subscribe("a/#", QoS::AtLeastOnce);
    let mut publisher = Client::v5(&broker, "publisher");
    let rest = broker.metric("kentongan_connections_max") as u32 - 2;
    let _crowd: Vec<_> = (0..rest).map(|number| Client::v5(&broker, &format!("crowd{number}"))).collect();
    let _flood: Vec<_> = (0..50).map(|_| Client::raw(&broker, ProtocolVersion::V5)).collect();
    let refused = "kentongan_connects_refused_total{reason=\"too_many_connections\"}";
    broker.wait_for_metric(refused, |count| count == 50.0);
    let connect = |address| std::net::TcpStream::connect(address).expect("connected");
    let _at_api: Vec<_> = (0..80).map(|_| connect(broker.api.expect("it serves the API"))).collect();
    let _at_http: Vec<_> = (0..80).map(|_| connect(broker.http)).collect();
    let checkpoints = broker.metric("kentongan_checkpoints_total");
    let purged = broker.metric("kentongan_log_segments_purged_total");
    let mut number = 0;
    wait_for("checkpoints, and new segments", || {
        for _ in 0..20 {
            number = number % 60_000 + 1;
            publisher.publish_acknowledged("a/b", &"x".repeat(5000), qos1(number));
            subscriber.take_publish();
        }
        broker.metric("kentongan_checkpoints_total") >= checkpoints + 3.0
            && broker.metric("kentongan_log_segments_purged_total") > purged
    });
    assert_eq!(broker.metric("kentongan_descriptors_exhausted_total"), 0.0);
    assert_eq!(broker.http_get("/readyz").0, 200);
    assert!(open_files(&broker) <= 400 - 64, "{} are open: the reserve is used", open_files(&broker));
}

/// F10: where something takes them all the same, checkpoints wait until there are some, and nothing else does.
#[test]
fn a_checkpoint_waits_for_descriptors() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_STORAGE__CHECKPOINT_SECONDS", "1")]);
    let mut subscriber = staying(&broker, "subscriber");
    subscriber.subscribe("a", QoS::AtLeastOnce);
    let mut publisher = Client::v5(&broker, "publisher");
    let pid = rustix::process::Pid::from_raw(broker.pid().cast_signed());
    let limit = |current| rustix::process::Rlimit { current: Some(current), maximum: Some(1024) };
    let set = |current| {
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit(current)).expect("our own child");
    };
    set(open_files(&broker) + 4);
    let mut publish = |number| {
        publisher.publish_acknowledged("a", "x", qos1(number));
        subscriber.take_publish();
    };
    publish(1);
    broker.wait_for_log("no descriptors left for a checkpoint");
    assert!(broker.metric("kentongan_log_descriptors_missing_total") >= 1.0);
    let before = broker.metric("kentongan_checkpoints_total");
    publish(2);
    set(1024);
    broker.wait_for_log("there are descriptors for a checkpoint again");
    broker.wait_for_metric("kentongan_checkpoints_total", |count| count > before);
    publish(3);
}

/// How many descriptors a broker has in use.
fn open_files(broker: &Broker) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", broker.pid())).expect("our own child").count() as u64
}

/// A client whose session is kept, so that what is for it goes through the log.
fn staying(broker: &Broker, client_id: &str) -> Client {
    let mut asked = connect(ProtocolVersion::V5, client_id);
    asked.clean_start = false;
    asked.properties.session_expiry_interval = Some(600);
    Client::accepted(broker, asked)
}

/// What holds the syncs of a process up as long as a file exists.
const HANGING: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static void hang(void) { const char *file = getenv("HANG_FILE"); while (file && access(file, F_OK) == 0) usleep(20000); }
int fdatasync(int fd) { int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync"); hang(); return real(fd); }
int fsync(int fd) { int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync"); hang(); return real(fd); }
"#;

/// F5: a disk that does not answer, and says of nothing that it failed.
#[test]
fn a_node_whose_disk_hangs_says_so_and_is_not_ready() {
    let files = tempfile::tempdir().expect("a directory");
    let path = |name: &str| files.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(path("hang.c"), HANGING).expect("written");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([path("hang.so"), path("hang.c"), "-ldl".to_owned()]);
    assert!(compiler.status().expect("a C compiler").success());
    let environment = [("LD_PRELOAD", &*path("hang.so")), ("HANG_FILE", &*path("hang"))];
    let broker = Broker::with_environment(&[], &environment);
    let mut subscriber = staying(&broker, "subscriber");
    subscriber.subscribe("a", QoS::AtLeastOnce);
    let mut publisher = Client::v5(&broker, "publisher");
    publisher.publish_acknowledged("a", "x", qos1(1));
    assert_eq!(broker.metric("kentongan_log_sync_oldest_seconds"), 0.0);
    std::fs::write(path("hang"), "").expect("written");
    publisher.publish("a", "x", qos1(2));
    broker.wait_for_metric("kentongan_log_sync_oldest_seconds", |seconds| seconds > 1.0);
    assert_eq!(broker.http_get("/readyz").0, 200, "not yet");
    let until = |wanted: &str| {
        let deadline = std::time::Instant::now() + 3 * DEADLINE;
        while broker.http_get("/readyz").1 != wanted {
            assert!(std::time::Instant::now() < deadline, "{wanted}");
            std::thread::sleep(QUIET);
        }
    };
    until("not ready, missing: disk\n");
    assert_eq!(broker.http_get("/livez").0, 200);
    std::fs::remove_file(path("hang")).expect("removed");
    until("ready\n");
    publisher.complete(qos1(2));
    broker.wait_for_metric("kentongan_log_sync_oldest_seconds", |seconds| seconds == 0.0);
}

/// It says what to do, where the runtime would only panic.
#[test]
fn too_few_descriptors_for_a_start_are_an_error() {
    for limit in [10, 30] {
        let (status, words) = Broker::fails_with_descriptors(limit);
        assert_eq!(status.code(), Some(1), "{words}");
        assert!(
            words.contains("RLIMIT_NOFILE") && words.contains("ulimit -n") && !words.contains("panicked"),
            "{words}"
        );
    }
}

/// With few descriptors the acceptor neither spins nor stops: others are served once some are free.
#[test]
fn running_out_of_descriptors_is_survived() {
    let broker = Broker::start();
    let pid = rustix::process::Pid::from_raw(broker.pid().cast_signed());
    let open = open_files(&broker);
    let limit = rustix::process::Rlimit { current: Some(open + 5), maximum: Some(open + 5) };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).expect("our own child");
    let crowd: Vec<_> = (0..20).map(|_| Client::raw(&broker, ProtocolVersion::V5)).collect();
    broker.wait_for_log("accepting failed");
    let before = cpu_ticks(&broker);
    std::thread::sleep(QUIET * 4);
    assert!(cpu_ticks(&broker) - before < 20, "it spins");
    drop(crowd);
    broker.wait_for_metric("kentongan_descriptors_exhausted_total", |count| count >= 1.0);
    Client::v5(&broker, "late").disconnect();
}

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";

/// A broker whose settings are in a file that the test may write again.
fn with_settings(text: &str) -> (Broker, impl Fn(&str) + use<>) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kentongan.toml");
    std::fs::write(&file, text).expect("written");
    let broker = Broker::with_file(&file);
    // The directory goes with the closure.
    (broker, move |text: &str| std::fs::write(directory.path().join("kentongan.toml"), text).expect("written"))
}

/// What is logged changes without a restart, and whoever is connected stays.
#[test]
fn sighup_changes_the_log_filter() {
    let (broker, write) = with_settings(&format!("log.filter = \"info,kentongan::router=warn\"\n{LISTENER}"));
    let mut client = Client::v5(&broker, "unheard-of");
    write(&format!("log.filter = \"info\"\n{LISTENER}"));
    broker.hang_up();
    let lines = broker.logs_until("the settings were read again");
    assert!(lines.iter().any(|line| line.contains("log.filter")), "{lines:?}");
    let _other = Client::v5(&broker, "heard-of");
    let lines = broker.logs_until("heard-of");
    assert!(!lines.iter().any(|line| line.contains("unheard-of")), "{lines:?}");
    client.expect_nothing();
    assert_eq!(broker.metric("kentongan_settings_reloads_total"), 1.0);
}

/// Wrong settings change nothing: the log says what and where.
#[test]
fn sighup_with_wrong_settings_keeps_the_old_ones() {
    let (broker, write) = with_settings(&format!("{LISTENER}connections_max = 2\n"));
    let mut client = Client::v5(&broker, "a");
    write(&format!("{LISTENER}connections_max = 1\n[session]\nreceive_maximun = 1\n"));
    broker.hang_up();
    let line = broker.wait_for_log("everything stays as it was");
    for part in ["ERROR", "kentongan.toml:5", "receive_maximun", "did you mean"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let (_, metrics) = broker.http_get("/metrics");
    assert!(metrics.contains("kentongan_settings_reloads_total{outcome=\"refused\"} 1"), "{metrics}");
    assert!(metrics.contains("kentongan_settings_reloads_total{outcome=\"applied\"} 0"), "{metrics}");
    let mut second = Client::v5(&broker, "b");
    second.expect_nothing();
    client.expect_nothing();
}

/// Whoever has renamed it deletes it some time later, whatever is wrong with the settings meanwhile.
#[test]
fn sighup_with_wrong_settings_begins_the_audit_log_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let (audit, before) = (directory.path().join("audit.log"), directory.path().join("audit.log.1"));
    let settings = format!("log.audit_file = {audit:?}\n{LISTENER}");
    let (broker, write) = with_settings(&settings);
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    for (wrong, rotated) in [("nonsense = 1\n", 0), ("[auth]\npassword_file = \"/nowhere/passwords\"\n", 1)] {
        std::fs::rename(&audit, &before).expect("it is there");
        write(&format!("{settings}{wrong}"));
        broker.hang_up();
        wait_for("the refusal is in a new one", || read(&audit).contains("refused"));
        assert_eq!(read(&before).matches("refused").count(), rotated, "{wrong}");
    }
}

/// A bound holds for connections to come, on the listener that counted those before.
#[test]
fn sighup_changes_what_new_connections_may() {
    let (broker, write) = with_settings(LISTENER);
    let mut client = Client::v5(&broker, "a");
    write(&format!("{LISTENER}connections_max = 1\n"));
    broker.hang_up();
    broker.wait_for_log("the settings were read again");
    Client::raw(&broker, ProtocolVersion::V5).expect_closed();
    write(&format!("{LISTENER}connections_max = 2\n[session]\nreceive_maximum = 7\n"));
    broker.hang_up();
    broker.wait_for_log("the settings were read again");
    let mut second = Client::raw(&broker, ProtocolVersion::V5);
    second.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "b"))));
    match second.receive() {
        Packet::ConnAck(connack) => {
            assert_eq!(connack.properties.receive_maximum.map(|maximum| maximum.get()), Some(7))
        }
        packet => panic!("CONNACK expected, got {packet:?}"),
    }
    client.expect_nothing();
}

/// What cannot change in a running broker is named, again at every reading, until it is restarted.
#[test]
fn sighup_names_what_needs_a_restart() {
    let (broker, write) = with_settings(&format!("arbiters = 1\n{LISTENER}"));
    let mut client = Client::v5(&broker, "a");
    write("arbiters = 2\n[[listener]]\naddress = \"127.0.0.1:1\"\n");
    for _ in 0..2 {
        broker.hang_up();
        let lines = broker.logs_until("the settings were read again");
        let wait: Vec<_> = lines.iter().filter(|line| line.contains("needs a restart")).collect();
        assert_eq!(wait.len(), 3, "{lines:?}");
        for key in ["\"arbiters\"", "listener 127.0.0.1:0 (gone)", "listener 127.0.0.1:1 (new)"] {
            assert!(wait.iter().any(|line| line.contains(key)), "{key} is not in {wait:?}");
        }
    }
    client.expect_nothing();
    Client::v5(&broker, "b").expect_nothing();
}

fn cpu_ticks(broker: &Broker) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", broker.pid())).expect("our own child");
    let fields: Vec<_> = stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// Each reload and each refused login is a line; what is no JSON cannot hide in it.
///
/// Abuse: [audit]
#[test]
fn the_audit_log_tells_who_was_refused_and_what_was_reloaded() {
    let directory = tempfile::tempdir().expect("a directory");
    let (file, audit) = (directory.path().join("kentongan.toml"), directory.path().join("audit.log"));
    let settings = |more: &str| {
        let audit = audit.to_str().expect("UTF-8");
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nallow_anonymous = false\n[log]\naudit_file = \"{audit}\"\n{more}"
        )
    };
    std::fs::write(&file, settings("")).expect("written");
    let broker = Broker::with_file(&file);
    let asked = Connect {
        user_name: Some("eve\"}\n".to_owned()),
        password: Some(Bytes::from_static(b"planted-secret")),
        ..connect(ProtocolVersion::V5, "meter")
    };
    assert!(Client::open(&broker, asked).1.reason_code.is_error());
    // Where there is no such file, the log must do.
    let line = broker.wait_for_log("no users are set up on this listener");
    assert!(line.contains("refused") && line.contains("meter") && line.contains("\"user\":\"eve"), "{line}");
    for (text, outcome) in [("filter = \"debug\"\n", "applied"), ("filter = \"(\"\nnonsense = 1\n", "refused")] {
        std::fs::write(&file, settings(text)).expect("written");
        broker.hang_up();
        let series = format!("kentongan_settings_reloads_total{{outcome=\"{outcome}\"}}");
        broker.wait_for_metric(&series, |count| count == 1.0);
    }
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&audit).expect("it is there");
        assert!(!text.contains("planted-secret"), "{text}");
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    };
    wait_for("three lines", || lines().len() == 3);
    let [login, applied, refused] = &lines()[..] else { panic!("three lines") };
    assert_eq!(
        (&login["event"], &login["who"]["user"], &login["who"]["client_id"]),
        (&"login".into(), &"eve\"}\n".into(), &"meter".into())
    );
    assert!(login["result"].as_str().is_some_and(|text| text.starts_with("refused: ")), "{login}");
    assert!(login["time"].as_str().is_some_and(|text| text.ends_with('Z')), "{login}");
    assert_eq!((&applied["event"], &applied["result"]), (&"reload".into(), &"applied".into()));
    assert_eq!(applied["what"]["changed"], serde_json::json!(["log.filter"]));
    assert!(refused["result"].as_str().is_some_and(|text| text.contains("nonsense")), "{refused}");
    assert_eq!(broker.metric("kentongan_audit_dropped_total"), 0.0);
}

/// What is secret is said nowhere: not in the log at its most talkative, not in metrics or health, not in the settings as shown.
///
/// Abuse: [secrets]
#[test]
fn secrets_that_were_planted_are_found_nowhere() {
    const SECRETS: [&str; 2] = ["planted-token", "planted-password"];
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kentongan.toml");
    let text =
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[http]\ntoken = \"planted-token\"\n[log]\nfilter = \"trace\"\n";
    std::fs::write(&file, text).expect("written");
    let broker = Broker::with_file(&file);
    let mut asked = Connect {
        user_name: Some("user".to_owned()),
        password: Some(Bytes::from_static(b"planted-password")),
        ..connect(ProtocolVersion::V5, "planted")
    };
    // A session that is kept makes the log talk, too.
    asked.properties.session_expiry_interval = Some(60);
    drop(Client::open(&broker, asked));
    let mut seen = broker.logs_until("disconnected");
    for path in ["/metrics", "/livez", "/readyz"] {
        seen.push(broker.http_get(path).1);
    }
    let shown = broker_command().args(["config", "show", "--config"]).arg(&file).output().expect("the program runs");
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    seen.push(String::from_utf8_lossy(&shown.stdout).into_owned());
    for (secret, text) in SECRETS.iter().flat_map(|secret| seen.iter().map(move |text| (secret, text))) {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
}

/// `kentongan config check` finds what the broker would not start with, in the files that settings name as well.
#[test]
fn a_check_of_the_settings_looks_at_the_files_that_they_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let file = path("kentongan.toml");
    std::fs::write(path("acl"), "topik #\n").unwrap();
    let cut = "ana:$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAA\n";
    std::fs::write(path("cut"), cut).unwrap();
    let check = |flags: &[&str]| {
        let output = broker_command().args(["config", "check"]).args(flags).arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let listener = |name: &str| {
        let key = path("server.key");
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[listener.tls]\ncertificate_file = {:?}\nkey_file = {key:?}\n",
            path(name)
        )
    };
    std::fs::write(path("secret"), "kulkul".repeat(8)).unwrap();
    let webhook = |ca: &std::path::Path| {
        let secret = path("secret");
        format!("[events.webhook]\nurl = \"https://hooks.example/\"\nca_file = {ca:?}\nsecret_file = {secret:?}\n")
    };
    let certs = broker_command().args(["cluster", "certs", "--node", "n1", "--"]).arg(path("certs")).output().unwrap();
    assert!(certs.status.success(), "{}", String::from_utf8_lossy(&certs.stderr));
    let member = |node: &str| {
        let [ca, certificate, key] = ["ca.crt", "n1.crt", "n1.key"].map(|name| path("certs").join(name));
        format!(
            "{node}[cluster]\naddress = \"127.0.0.1:0\"\nca_file = {ca:?}\ncertificate_file = {certificate:?}\nkey_file = {key:?}\n"
        )
    };
    for (settings, wrong) in [
        (listener("nosuch.crt"), "nosuch.crt: cannot be read: No such file or directory (os error 2)\n"),
        (format!("[auth]\npassword_file = {:?}\n", path("nosuch")), "nosuch"),
        (format!("[auth]\npassword_file = {:?}\n", path("cut")), "cut, line 1: an argon2 hash of 12 bytes"),
        (format!("[auth]\nacl_file = {:?}\n", path("acl")), "acl, line 1: "),
        (format!("[api]\naddress = \"127.0.0.1:0\"\ntokens_file = {:?}\n", path("tokens")), "tokens"),
        (format!("[log]\naudit_file = {:?}\n", path("nowhere/audit")), "`log.audit_file`: there is no directory "),
        (format!("[log]\naudit_file = {:?}\n", directory.path()), "`log.audit_file`: that names no file\n"),
        (format!("data_dir = {:?}\n", path("acl/data")), "acl is no directory\n"),
        (webhook(&path("nosuch.pem")), "`events.webhook`: cannot use "),
        (webhook(&path("acl")), "acl holds no certificate of an authority (PEM)\n"),
        (member("node = \"n2\"\n"), "with node = \"n2\": "),
        (member("node = \"n2\"\n"), "has no DNS name equal to the node's name"),
        (member("").replace("n1.crt", "nosuch.crt"), "TLS of the links between nodes: "),
        (member("").replace("ca.crt", "n1.crt"), "is not valid under the CA"),
    ] {
        std::fs::write(&file, &settings).unwrap();
        let (is_in_order, said) = check(&[]);
        assert!(!is_in_order && said.contains(wrong), "{settings}{said}");
        let (is_in_order, said) = check(&["--without-files"]);
        assert!(is_in_order && said.contains("in order"), "{settings}{said}");
    }
    std::fs::write(path("acl"), "topic #\n").unwrap();
    for settings in [
        format!("[auth]\nacl_file = {:?}\n", path("acl")),
        format!("data_dir = {:?}\n", path("not/yet")),
        webhook(&path("certs").join("ca.crt")),
        member("node = \"n1\"\n"),
    ] {
        std::fs::write(&file, &settings).unwrap();
        let (is_in_order, said) = check(&[]);
        assert!(is_in_order && said.ends_with("in order\n") && said.lines().count() == 1, "{settings}{said}");
    }
    // Whoever starts the node names it, and not this host.
    std::fs::write(&file, member("")).unwrap();
    let (is_in_order, said) = check(&[]);
    assert!(is_in_order && said.contains("in order") && said.contains("--node NAME says it"), "{said}");
    let (is_in_order, said) = check(&["--node", "n1"]);
    assert!(is_in_order && !said.contains("--node"), "{said}");
    let (is_in_order, said) = check(&["--node", "n2"]);
    assert!(!is_in_order && said.contains("with node = \"n2\": "), "{said}");
}
