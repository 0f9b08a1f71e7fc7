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

fn cpu_ticks(broker: &Broker) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", broker.pid())).expect("our own child");
    let fields: Vec<_> = stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}
