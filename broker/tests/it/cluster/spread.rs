//! Five nodes (as `--local 1/5` to `--local 5/5` start them), each of which keeps some of the groups only.

use std::collections::BTreeMap;

use kentongan_proto::mqtt::*;

use super::nodes::Cluster;
use crate::support::*;

const NODES: usize = 5;

/// Messages that a test publishes one after the other.
const MESSAGES: usize = 150;

impl Cluster {
    /// Which nodes keep each group, as those that run say.
    fn keepers(&self) -> BTreeMap<u16, Vec<usize>> {
        let status = self.status_at(0);
        let mut keepers: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for node in status["nodes"].as_array().expect("nodes") {
            let index = self.nodes.iter().position(|one| node["name"] == one.name).expect("one of ours");
            for group in node["status"]["groups"].as_array().into_iter().flatten() {
                let group = group["group"].as_u64().expect("a number");
                keepers.entry(group as u16).or_default().push(index);
            }
        }
        keepers
    }

    /// A name that begins with `prefix`, of a group that `fits`.
    fn name_of(&self, prefix: &str, fits: impl Fn(u16) -> bool) -> String {
        let names = (0..10_000).map(|number| format!("{prefix}-{number}"));
        let mut fitting = names.filter(|name| fits(self.group_of(name)));
        fitting.next().expect("names spread over all groups")
    }
}

#[test]
fn each_group_is_kept_by_three_of_five_nodes_and_the_directory_by_all() {
    let cluster = Cluster::of(NODES);
    let mut keepers = cluster.keepers();
    assert_eq!(keepers.remove(&u16::MAX), Some((0..NODES).collect()));
    assert!(keepers.len() == 16 && keepers.values().all(|nodes| nodes.len() == 3), "{keepers:?}");
    let kept = |node| keepers.values().filter(|nodes| nodes.contains(&node)).count();
    assert!((0..NODES).all(|node| (9..=10).contains(&kept(node))), "{keepers:?}");
}

/// P1, P4, P5, P6, P8: neither the subscriber's node nor the reader's has a replica of what they want, and the leader of
/// the subscriber's group is killed while messages come.
#[test]
fn nodes_without_a_replica_lose_nothing_with_the_leader_of_the_group() {
    let mut cluster = Cluster::of(NODES);
    let keepers = cluster.keepers();
    let lacks = |node: usize| move |group: u16| !keepers[&group].contains(&node);
    let name = cluster.name_of("kept", lacks.clone()(0));
    let victim = cluster.leader_of(&name);
    let publishes = (1..NODES).find(|&node| node != victim).expect("five nodes");
    let board = cluster.name_of("board", lacks(publishes));

    let (mut client, _) = cluster.nodes[0].persistent(&name);
    assert_eq!(client.subscribe("letters", QoS::ExactlyOnce), ReasonCode::GrantedQos2);
    let mut writer = cluster.nodes[publishes].client("writer");
    let to_board = board.clone();
    let writing = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            let delivery = if number % 2 == 0 { qos1(1) } else { qos2(1) };
            writer.publish_acknowledged("letters", &number.to_string(), delivery);
            let retained = Publish { retain: true, ..publish(&to_board, &number.to_string(), qos1(2)) };
            writer.send(&Packet::Publish(retained));
            writer.complete(qos1(2));
        }
    });
    for number in 0..MESSAGES {
        if number == MESSAGES / 3 {
            cluster.nodes[victim].kill();
        }
        let message = client.take_publish();
        let (text, dup) = (String::from_utf8_lossy(&message.payload).into_owned(), message.dup);
        assert_eq!((text, dup), (number.to_string(), false), "in order, and nothing again on a living connection");
    }
    writing.join().expect("everything was acknowledged");
    client.expect_nothing();
    client.disconnect();

    let mut reader = cluster.nodes[publishes].client("reader");
    reader.subscribe(&board, QoS::AtMostOnce);
    assert_eq!(reader.expect_publish().payload, (MESSAGES - 1).to_string().as_bytes());
    cluster.nodes[victim].restart();
    let (mut client, present) = cluster.nodes[victim].persistent(&name);
    assert!(present);
    client.expect_nothing();
}

/// F12, of one group: two of the three nodes that keep it are gone, and the directory has its majority.
#[test]
fn clients_of_a_group_without_a_majority_are_refused_until_it_has_one() {
    let mut cluster = Cluster::of(NODES);
    let keepers = cluster.keepers();
    let gone = [3, 4];
    let left = |group: u16| keepers[&group].iter().filter(|node| !gone.contains(node)).count();
    let (lost, led) =
        (cluster.name_of("client", |group| left(group) == 1), cluster.name_of("client", |group| left(group) > 1));
    gone.iter().for_each(|&node| cluster.nodes[node].kill());
    // Once its node has a lease again, if that was granted by one of those.
    cluster.nodes[0].client(&led).disconnect();
    let (mut client, connack) = cluster.nodes[0].open(connect(ProtocolVersion::V5, &lost));
    assert_eq!(connack.reason_code, ReasonCode::ServerUnavailable);
    client.expect_closed();
    cluster.nodes[gone[0]].restart();
    cluster.nodes[0].client(&lost).disconnect();
}
