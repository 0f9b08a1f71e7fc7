//! Nodes come, lose their disks and go, and what the others keep stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;

use super::nodes::{Cluster, FORMED_WITHIN, Node};
use crate::support::*;

/// What a process ends with that must not be started again as it is.
const REMOVED: i32 = 3;

/// A session that subscribes, and is away; and a retained message.
pub fn leave_a_session(node: &Node) {
    let (mut reader, _) = node.persistent("reader");
    assert_eq!(reader.subscribe("letters/#", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    reader.disconnect();
    let mut writer = node.client("clerk");
    writer.send(&Packet::Publish(Publish { retain: true, ..publish("notice", "kept", qos1(1)) }));
    writer.complete(qos1(1));
    writer.disconnect();
}

/// Publishes one letter after the other, each acknowledged before the next, while something is done; says how many.
pub fn while_writing(mut writer: Client, first: u32, done: impl FnOnce()) -> u32 {
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut next = first;
            while !stop.load(Ordering::Relaxed) {
                writer.publish_acknowledged(&format!("letters/{next}"), "x", qos1(1));
                next += 1;
            }
            writer.disconnect();
            next
        })
    };
    done();
    stop.store(true, Ordering::Relaxed);
    writing.join().expect("every letter is acknowledged")
}

/// Everything that was left is found at a node.
pub fn find_everything(node: &Node, letters: u32) {
    let (mut reader, present) = node.persistent("reader");
    assert!(present, "the session is there");
    for number in 1..letters {
        assert_eq!(reader.take_publish().topic, format!("letters/{number}"));
    }
    reader.expect_nothing();
    reader.subscribe("notice", QoS::AtMostOnce);
    let notice = reader.take_publish();
    assert_eq!((&notice.payload[..], notice.retain), (&b"kept"[..], true));
}

/// Growth under load, one by one; then the node that it began with is killed, and nothing is missing.
#[test]
fn a_single_node_grows_to_three_and_is_not_needed_any_more() {
    let mut cluster = Cluster::start_first_of_three();
    leave_a_session(&cluster.nodes[0]);
    let letters = while_writing(cluster.nodes[0].client("writer"), 1, || {
        cluster.nodes[1].spawn();
        cluster.nodes[1].wait_until_ready();
        cluster.wait_until_kept_by(1, 1, 1);
    });
    let letters = while_writing(cluster.nodes[0].client("writer"), letters, || {
        cluster.nodes[2].spawn();
        cluster.nodes[2].wait_until_ready();
        cluster.wait_until_kept_by(0, 3, 0);
    });
    cluster.nodes[0].kill();
    find_everything(&cluster.nodes[1], letters);
    assert!(letters > 20, "{letters} letters were written meanwhile");
}

/// Nothing that it kept is lost, not even what clients had under way that were connected when it was killed.
#[test]
fn a_node_that_was_alone_begins_a_cluster_with_what_it_has() {
    let mut cluster = Cluster::start_first_of(3, true);
    leave_a_session(&cluster.nodes[0]);
    let mut will = connect(ProtocolVersion::V5, "connected");
    will.clean_start = false;
    will.properties.session_expiry_interval = Some(3600);
    will.will = Some(Will {
        topic: "letters/1".into(),
        payload: "x".into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: WillProperties::default(),
    });
    let (connected, _) = cluster.nodes[0].accepted(&will);
    cluster.nodes[0].kill();

    cluster.nodes[0].alone = false;
    let seeds = cluster.nodes[0].change_seeds("127.0.0.1:9");
    let (_, words) = cluster.nodes[0].ends_when_started();
    assert!(words.contains("a node kept that was alone") && words.contains("without --seeds"), "{words}");
    cluster.nodes[0].change_seeds(&seeds);
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_ready();
    drop(connected);
    let (again, present) = cluster.nodes[0].persistent("connected");
    assert!(present, "it was connected, and its session is there");
    again.disconnect();

    let letters = while_writing(cluster.nodes[0].client("writer"), 2, || {
        for joiner in [1, 2] {
            cluster.nodes[joiner].spawn();
            cluster.nodes[joiner].wait_until_ready();
        }
        cluster.wait_until_kept_by(0, 3, 0);
    });
    cluster.nodes[0].kill();
    find_everything(&cluster.nodes[2], letters);
    cluster.nodes[0].alone = true;
    let (_, words) = cluster.nodes[0].ends_when_started();
    assert!(words.contains("belongs to a node of a cluster"), "there is no way back: {words}");
}

/// F8: an empty disk under the same name is another node, which gets a vote once it has caught up.
#[test]
fn a_node_that_lost_its_disk_is_replaced_under_its_name() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    leave_a_session(&cluster.nodes[1]);
    cluster.nodes[2].kill();
    std::fs::remove_dir_all(&cluster.nodes[2].data_dir).expect("a data directory");
    let letters = while_writing(cluster.nodes[0].client("writer"), 1, || {
        cluster.nodes[2].spawn();
        cluster.nodes[2].wait_until_ready();
    });
    cluster.wait_until_kept_by(2, 3, 0);
    wait_for("its former self is no member", || {
        let status = cluster.status_at(0);
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.len() == 3 && nodes.iter().all(|node| node["status"]["standing"] == "serving")
    });
    cluster.nodes[0].kill();
    find_everything(&cluster.nodes[2], letters);
}

/// What it keeps moves away first; it learns that it is removed, and serves nobody.
#[test]
fn a_node_that_is_removed_is_not_counted_on_and_stops_serving() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    leave_a_session(&cluster.nodes[2]);
    let letters = while_writing(cluster.nodes[1].client("writer"), 1, || cluster.remove(1, "n3"));
    cluster.wait_until_kept_by(1, 1, 1);
    assert_eq!(cluster.nodes[2].wait_until_ended().code(), Some(REMOVED), "by itself");
    find_everything(&cluster.nodes[0], letters);

    let (_, words) = cluster.nodes[2].ends_when_started();
    assert!(words.contains("was removed from its cluster") && words.contains("an empty data directory"), "{words}");
}

/// It hears of it from the others, when it comes back.
#[test]
fn a_node_that_was_away_when_it_was_removed_ends_with_the_reason() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    cluster.nodes[2].kill();
    cluster.remove(0, "n3");
    for _ in 0..2 {
        let (code, words) = cluster.nodes[2].ends_when_started();
        assert_eq!(code, Some(REMOVED));
        assert!(words.contains("was removed from its cluster"), "{words}");
    }
    std::fs::remove_dir_all(&cluster.nodes[2].data_dir).expect("a data directory");
    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();
    cluster.wait_until_kept_by(0, 3, 0);
}

/// It hears of it from those that came since, whom it does not know.
#[test]
fn a_node_that_was_removed_by_others_that_are_gone_ends_with_the_reason() {
    let mut cluster = Cluster::start_first_of_three();
    cluster.nodes[1].spawn();
    cluster.nodes[1].wait_until_ready();
    cluster.wait_until_kept_by(0, 1, 1);
    cluster.nodes[1].kill();
    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();
    cluster.remove(0, "n2");
    cluster.wait_until_kept_by(0, 1, 1);
    cluster.nodes[0].kill();
    let left = cluster.nodes[2].peers.to_string();
    cluster.nodes[1].change_seeds(&left);
    let (code, words) = cluster.nodes[1].ends_when_started();
    assert_eq!(code, Some(REMOVED), "{words}");
}

/// No record of the formation has the others, and they would not speak with it.
#[test]
fn the_first_node_keeps_its_name_once_others_have_joined() {
    let mut cluster = Cluster::start_first_of_three();
    cluster.nodes[0].terminate();
    cluster.nodes[0].name = "alone".to_owned();
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_ready();
    cluster.nodes[1].spawn();
    cluster.nodes[1].wait_until_ready();
    cluster.wait_until_kept_by(0, 1, 1);
    cluster.nodes[0].terminate();
    cluster.nodes[0].name = "another".to_owned();
    let (_, words) = cluster.nodes[0].ends_when_started();
    assert!(words.contains("start it with --node alone"), "{words}");
    cluster.nodes[0].name = "alone".to_owned();
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_ready();
}

/// Two came while it was away, and one of them leads the directory: it is a stranger there, and nobody else has anything to say to it.
#[test]
fn a_node_that_was_away_while_others_came_finds_out_who_leads() {
    let mut cluster = Cluster::start_first_of(5, false);
    for index in [1, 2] {
        cluster.nodes[index].spawn();
        cluster.nodes[index].wait_until_ready();
    }
    cluster.wait_until_kept_among(3);
    cluster.nodes[1].kill();
    for index in [3, 4] {
        cluster.nodes[index].spawn();
        cluster.nodes[index].wait_until_ready();
    }
    let deadline = Instant::now() + FORMED_WITHIN;
    while let Err(error) = cluster.admin(0, &["transfer", "directory", "n4"]) {
        assert!(Instant::now() < deadline, "none that came leads the directory: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.nodes[1].spawn();
    cluster.nodes[1].wait_until_ready();
    cluster.wait_until_kept_among(5);
}

/// The same for one that only stood still: it does not know that its registration is over. And whoever does not answer keeps operators
/// from nothing, however short they wait.
#[test]
fn a_node_that_stood_still_while_others_came_finds_out_who_leads() {
    let mut cluster = Cluster::start_first_of(5, false);
    for index in [1, 2] {
        cluster.nodes[index].spawn();
        cluster.nodes[index].wait_until_ready();
    }
    cluster.wait_until_kept_among(3);
    cluster.nodes[1].pause();
    for index in [3, 4] {
        cluster.nodes[index].spawn();
        cluster.nodes[index].wait_until_ready();
    }
    let deadline = Instant::now() + FORMED_WITHIN * 2;
    while let Err(error) = cluster.admin(0, &["transfer", "directory", "n4", "--wait-seconds", "0"]) {
        assert!(Instant::now() < deadline, "none that came leads the directory: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.nodes[1].resume();
    wait_for("it has heard that it has no lease", || !cluster.nodes[1].is_ready());
    cluster.nodes[1].wait_until_ready();
    cluster.wait_until_kept_among(5);
}

/// Whoever cannot connect goes to another node; whoever could, and heard nothing, would wait. The process lives, and says that it is not
/// ready.
#[test]
fn a_node_that_waits_for_its_seeds_takes_no_connections_and_one_that_serves_does() {
    let mut cluster = Cluster::start_first_of_three();
    let alone = cluster.nodes[2].change_seeds("127.0.0.1:1,nosuch.invalid:7001");
    cluster.nodes[2].spawn();
    wait_for("it waits", || cluster.nodes[2].said("no cluster yet"));
    assert!(!cluster.nodes[2].is_ready());
    let refused = std::net::TcpStream::connect(cluster.nodes[2].address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    cluster.nodes[2].kill();
    cluster.nodes[2].change_seeds(&alone);
    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();
    cluster.nodes[2].client("served").disconnect();
}

/// Nobody dials it back, which it could not know by itself.
#[test]
fn a_node_that_advertises_a_wrong_address_is_warned() {
    let mut cluster = Cluster::start_first_of_three();
    let wrong = String::from("127.0.0.1:1");
    cluster.nodes[1].set_environment(vec![(String::from("KENTONGAN_CLUSTER__ADVERTISE"), wrong.clone())]);
    cluster.nodes[1].spawn();
    let warning = format!("n1 cannot connect to this node at \\\"{wrong}\\\"");
    let deadline = std::time::Instant::now() + super::nodes::FORMED_WITHIN;
    while !cluster.nodes[1].said(&warning) {
        assert!(std::time::Instant::now() < deadline, "it is not warned");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(!cluster.nodes[0].said(" cannot connect to this node at "), "the other one is reached");
}

/// It goes on as a member of its own cluster, which may need it; only whoever started it knows which of the two is wrong.
#[test]
fn a_node_with_the_data_directory_of_another_cluster_than_its_seeds_is_warned() {
    let mut cluster = Cluster::start_first_of_three();
    let [first, _, third] = &mut cluster.nodes[..] else { panic!("three nodes") };
    third.change_seeds("");
    third.spawn();
    third.wait_until_ready();
    third.terminate();
    third.change_seeds(&format!("{},{},127.0.0.1:1", third.peers, first.peers));
    third.spawn();
    third.wait_until_ready();
    let warning = format!("of the seeds (--seeds) of this node is {} (n1) of cluster ", first.peers);
    wait_for("it is warned", || third.said(&warning));
    assert!(third.said("but this node is a member of cluster") && third.said("start it with an empty data directory"));
}

/// The others dial it where it was, and only once it is reached can it say in the directory where it is.
#[test]
fn a_node_that_is_started_with_another_address_and_its_old_disk_comes_back() {
    let mut cluster = Cluster::start();
    cluster.nodes[2].terminate();
    let before = cluster.nodes[2].peers.to_string();
    cluster.nodes[2].change_port();
    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();
    let addresses = |cluster: &Cluster| {
        let status = cluster.status_at(0);
        let nodes = status["nodes"].as_array().expect("nodes").clone();
        nodes.iter().map(|node| node["peer_address"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    let now = cluster.nodes[2].peers.to_string();
    assert_ne!(now, before);
    wait_for("the directory has its address", || addresses(&cluster).contains(&now));
    assert!(!addresses(&cluster).contains(&before));

    // All of them at once: they find each other by their seeds, and the directory has none of the addresses.
    cluster.nodes.iter_mut().for_each(Node::kill);
    for node in &mut cluster.nodes[..2] {
        node.change_port();
    }
    let seeds: Vec<_> = cluster.nodes.iter().map(|node| node.peers.to_string()).collect();
    for node in &mut cluster.nodes {
        node.change_seeds(&seeds.join(","));
        node.spawn();
    }
    cluster.wait_until_ready();
    wait_for("the directory has their addresses", || seeds.iter().all(|seed| addresses(&cluster).contains(seed)));
}

/// Of what passes by itself nobody is warned; of a death everybody is, by name.
#[test]
fn a_first_start_warns_of_no_links_and_a_death_is_told_by_name() {
    let mut cluster = Cluster::start();
    for node in &cluster.nodes {
        assert!(!node.said("no link: the peer ended the call: the peer belongs to cluster"), "{}", node.name);
    }
    // Who has nothing to hand over may be gone before anybody knows that it is about to stop.
    wait_for("it leads a group", || (0..16).any(|group| cluster.leader_of_group(group) == 2));
    cluster.nodes[2].terminate();
    wait_for("its end is told", || {
        cluster.nodes[0].said("a node has stopped, as it said that it would\",\"name\":\"n3\"")
    });
    assert!(!cluster.nodes[0].said("a node is dead"));
    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();
    cluster.nodes[2].kill();
    wait_for("its death is told", || cluster.nodes[0].said("a node is dead"));
}
