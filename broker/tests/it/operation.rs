//! What an operator meets: health, metrics, a second process, a low limit of descriptors.

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
    let before = ["kentongan_log_syncs_total", "kentongan_log_commands_total", "kentongan_log_sync_seconds_total"]
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

/// With few descriptors the acceptor neither spins nor stops: others are served once some are free.
#[test]
fn running_out_of_descriptors_is_survived() {
    let broker = Broker::start();
    let pid = rustix::process::Pid::from_raw(broker.pid().cast_signed());
    let open = std::fs::read_dir(format!("/proc/{}/fd", broker.pid())).expect("our own child").count() as u64;
    let limit = rustix::process::Rlimit { current: Some(open + 5), maximum: Some(open + 5) };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).expect("our own child");
    let crowd: Vec<_> = (0..20).map(|_| Client::raw(&broker, ProtocolVersion::V5)).collect();
    broker.wait_for_log("accepting failed");
    let before = cpu_ticks(&broker);
    std::thread::sleep(QUIET * 4);
    assert!(cpu_ticks(&broker) - before < 20, "it spins");
    drop(crowd);
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
