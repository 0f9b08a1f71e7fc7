//! A node that was away for longer than the logs reach back goes on from a snapshot, and nothing is missing in it.

use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;
use tempfile::TempDir;

use super::nodes::{Cluster, FORMED_WITHIN};
use crate::support::{publish, qos1};

const MESSAGES: u16 = 250;
/// More than a leader keeps of its log in memory for those who are a little behind (4 MiB), by far.
const PAYLOAD_BYTES: usize = 32 * 1024;

/// Times that another leader is asked for, by killing the one there is.
const ELECTIONS_MAX: usize = 20;

/// Small segments, and checkpoints all the time: the log goes soon. Most of the queue is in the store only, whoever leads.
fn forgetful() -> Vec<(String, String)> {
    let settings = [
        ("KENTONGAN_STORAGE__SEGMENT_BYTES", "65536"),
        ("KENTONGAN_STORAGE__CHECKPOINT_LOG_BYTES", "65536"),
        ("KENTONGAN_STORAGE__CHECKPOINT_SECONDS", "1"),
        ("KENTONGAN_SESSION__QUEUE_MEMORY_BYTES_MAX", "1000000"),
    ];
    settings.map(|(name, value)| (String::from(name), String::from(value))).to_vec()
}

fn log_bytes(cluster: &Cluster, node: usize) -> u64 {
    cluster.nodes[node].gauge("kentongan_log_size_bytes")
}

/// Index up to which a node applied a group, and up to which its group is committed as far as it knows.
fn applied(cluster: &Cluster, node: usize, group: u16) -> (u64, u64) {
    let status = cluster.status_at(node);
    let nodes = status["nodes"].as_array().expect("nodes");
    let of_node = nodes.iter().find(|one| one["name"] == cluster.nodes[node].name).expect("it is one of them");
    let groups = of_node["status"]["groups"].as_array().expect("groups");
    let found = groups.iter().find(|one| one["group"] == group).expect("every node has every group");
    let number = |name: &str| found[name].as_u64().expect("a number");
    (number("applied"), number("committed"))
}

/// P1, F13: what was published while a node was away is not in any log any more when it comes back; and then that node alone is
/// asked for all of it.
#[test]
fn a_node_that_was_away_for_long_has_everything_from_a_snapshot() {
    let directory = TempDir::new().expect("a temporary directory");
    let places = (1..=3).map(|number| directory.path().join(format!("n{number}"))).collect();
    let mut cluster = Cluster::within(directory, places, |_| forgetful());
    let group = cluster.group_of("reader");
    let (mut reader, _) = cluster.nodes[0].persistent("reader");
    reader.subscribe("letters/#", QoS::AtLeastOnce);
    reader.disconnect();

    cluster.nodes[2].kill();
    let (mut writer, _) = cluster.nodes[0].persistent("writer");
    let body = "x".repeat(PAYLOAD_BYTES);
    for number in 1..=MESSAGES {
        writer.publish_acknowledged(&format!("letters/{number}"), &body, qos1(number));
    }
    let mut retained = publish("notice", "kept", qos1(MESSAGES + 1));
    retained.retain = true;
    writer.send(&Packet::Publish(retained));
    writer.complete(qos1(MESSAGES + 1));
    writer.disconnect();
    let deadline = Instant::now() + FORMED_WITHIN;
    let all = u64::from(MESSAGES) * PAYLOAD_BYTES as u64;
    while (0..2).any(|node| log_bytes(&cluster, node) > all / 2) {
        assert!(Instant::now() < deadline, "the logs are not purged");
        std::thread::sleep(Duration::from_millis(50));
    }

    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();
    let deadline = Instant::now() + FORMED_WITHIN;
    while applied(&cluster, 2, group).0 < applied(&cluster, 0, group).1 {
        assert!(Instant::now() < deadline, "the node that was away does not catch up");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Until it leads. It stood for election for a while when the first of the others is back, and so mostly wins the first one.
    let mut elections = 0;
    loop {
        elections += 1;
        assert!(elections <= ELECTIONS_MAX, "the node that was away never leads");
        (0..2).for_each(|node| cluster.nodes[node].kill());
        let deadline = Instant::now() + FORMED_WITHIN;
        while cluster.nodes[2].is_ready() {
            assert!(Instant::now() < deadline, "a node without a majority says that it is ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster.nodes[1].spawn();
        cluster.nodes[1].wait_until_ready();
        if cluster.leader_of("reader") == 2 {
            break;
        }
        cluster.nodes[0].spawn();
        cluster.nodes[0].wait_until_ready();
    }
    println!("it leads after {elections} elections");
    let (mut reader, present) = cluster.nodes[2].persistent("reader");
    assert!(present);
    for number in 1..=MESSAGES {
        let message = reader.take_publish();
        assert_eq!((message.topic, message.payload.len()), (format!("letters/{number}"), PAYLOAD_BYTES));
    }
    reader.expect_nothing();
    reader.subscribe("notice", QoS::AtMostOnce);
    let notice = reader.take_publish();
    assert_eq!((&notice.payload[..], notice.retain), (&b"kept"[..], true));
}

/// A killed node is back, and has everything, within 10 s: 10,000 persistent sessions, 100,000 retained messages.
/// `cargo nextest run --release -p kentongan --run-ignored only --no-capture -E 'test(a_killed_node_with_many)'`.
#[test]
#[ignore = "two minutes in a debug build"]
fn a_killed_node_with_many_sessions_is_back_soon() {
    const SESSIONS: usize = 10_000;
    const RETAINED: u32 = 100_000;
    let mut cluster = Cluster::start();
    for number in 0..SESSIONS {
        let (mut client, _) = cluster.nodes[number % 3].persistent(&format!("session-{number}"));
        client.subscribe(&format!("letters/{number}"), QoS::AtLeastOnce);
        client.disconnect();
    }
    let retain = |cluster: &Cluster, from: u32, until: u32| {
        let mut writer = cluster.nodes[0].client("writer");
        for first in (from..until).step_by(1000) {
            let numbers = first..(first + 1000).min(until);
            for number in numbers.clone() {
                let mut kept = publish(&format!("kept/{number}"), "a value", qos1((number % 1000) as u16 + 1));
                kept.retain = true;
                writer.send(&Packet::Publish(kept));
            }
            numbers
                .for_each(|_| assert!(matches!(writer.receive(), Packet::PubAck(ack) if !ack.reason_code.is_error())));
        }
    };
    retain(&cluster, 0, RETAINED);
    cluster.nodes[2].kill();
    retain(&cluster, 0, 10_000);

    let began = Instant::now();
    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();
    println!("ready after {:.1} s", began.elapsed().as_secs_f64());
    let groups = super::nodes::GROUPS;
    while (0..groups).any(|group| applied(&cluster, 2, group).0 < applied(&cluster, 0, group).1) {
        assert!(began.elapsed() < Duration::from_secs(10), "it does not catch up");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("caught up after {:.1} s", began.elapsed().as_secs_f64());
}
