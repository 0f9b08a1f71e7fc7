//! A node that is drained, or told to stop: its groups and its clients are others' before it goes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;
use serde_json::Value;

use super::nodes::{Cluster, Node};
use crate::support::*;

/// A leader gives way to a preferred one after five seconds in office.
const OFFICE: Duration = Duration::from_secs(6);

/// How many groups a node leads, and its state, as `cluster members` says.
fn member(cluster: &Cluster, asked: usize, name: &str) -> (u64, String) {
    let members = cluster.admin_json(asked, &["members"]);
    let found = members["members"].as_array().expect("members").iter().find(|member| member["name"] == name);
    let found = found.expect("every member is named");
    (found["leads"].as_u64().unwrap_or(0), found["state"].as_str().expect("a state").to_owned())
}

/// Where a DISCONNECT sends its client.
fn moved_to(client: &mut Client) -> Option<String> {
    match client.receive() {
        Packet::Disconnect(disconnect) => {
            assert_eq!(disconnect.reason_code, ReasonCode::UseAnotherServer);
            client.expect_closed();
            disconnect.properties.server_reference
        }
        packet => panic!("DISCONNECT expected, got {packet:?}"),
    }
}

fn addresses(nodes: &[Node]) -> BTreeSet<String> {
    nodes.iter().map(|node| node.address.to_string()).collect()
}

#[test]
fn a_drained_node_leads_nothing_and_tells_its_clients_where_others_are_until_that_is_undone() {
    let cluster = Cluster::advertised(3, &[]);
    let mut clients: Vec<_> = (0..6).map(|number| cluster.nodes[0].client(&format!("new-{number}"))).collect();
    let old = |node: &Node, name: &str| node.open(connect(ProtocolVersion::V3_1_1, name));
    let (mut older, _) = old(&cluster.nodes[0], "old");
    let (mut kept, _) = cluster.nodes[0].persistent("kept");
    kept.subscribe("letters", QoS::AtLeastOnce);
    let mut writer = cluster.nodes[1].client("writer");

    let drained = cluster.admin_json(1, &["drain", "n1"]);
    assert_eq!((&drained["drains"], &drained["leads"], &drained["connections"]), (&true.into(), &0.into(), &0.into()));
    assert_eq!(member(&cluster, 1, "n1"), (0, "drained".to_owned()));
    let others = addresses(&cluster.nodes[1..]);
    let told: BTreeSet<String> = clients.iter_mut().map(|client| moved_to(client).expect("a reference")).collect();
    assert_eq!(told, others, "they are spread over the others");
    older.expect_closed();
    moved_to(&mut kept);

    assert!(!cluster.nodes[0].is_ready());
    let (mut refused, connack) = cluster.nodes[0].open(connect(ProtocolVersion::V5, "late"));
    assert_eq!(connack.reason_code, ReasonCode::UseAnotherServer);
    assert!(others.contains(&connack.properties.server_reference.expect("a reference")));
    refused.expect_closed();
    let (mut refused, connack) = old(&cluster.nodes[0], "late");
    assert_eq!(connack.reason_code, ReasonCode::ServerUnavailable);
    refused.expect_closed();

    // What it keeps it still keeps, and its clients find their sessions elsewhere.
    writer.publish_acknowledged("letters", "hello", qos1(1));
    let (mut kept, present) = cluster.nodes[2].persistent("kept");
    assert!(present);
    assert_eq!(kept.take_publish().payload, &b"hello"[..]);

    std::thread::sleep(OFFICE);
    assert_eq!(member(&cluster, 1, "n1"), (0, "drained".to_owned()), "leadership stays away");
    let text = cluster.admin(2, &["drain", "n1", "--undo"]).expect("it is undone");
    assert!(text.contains("not drained any more"), "{text}");
    wait_for("it is ready", || cluster.nodes[0].is_ready());
    cluster.nodes[0].client("late").disconnect();
    wait_for("it leads groups again", || member(&cluster, 1, "n1").0 > 0);
}

#[test]
fn clients_go_at_the_rate_of_the_settings() {
    let cluster = Cluster::advertised(2, &[("KENTONGAN_MOVING__CLIENTS_PER_SECOND", "20")]);
    let mut clients: Vec<_> = (0..30).map(|number| cluster.nodes[0].client(&format!("c-{number}"))).collect();
    let begun = cluster.admin_json(1, &["drain", "n1", "--wait-seconds", "0"]);
    assert_eq!(begun["drains"], true);
    assert_eq!(begun["connections"], 30, "balancers are to notice first");
    wait_for("it is not ready", || !cluster.nodes[0].is_ready());
    let (mut first, mut last) = (None, Instant::now());
    wait_for("all are moved", || {
        clients.retain_mut(|client| {
            let Some(packet) = client.receive_within(Duration::from_millis(1)) else { return true };
            assert!(matches!(packet, Packet::Disconnect(_)), "{packet:?}");
            first.get_or_insert_with(Instant::now);
            last = Instant::now();
            false
        });
        clients.is_empty()
    });
    // At this rate it takes 1.45 s; a reader that is late at first sees less of that.
    let took = last - first.expect("some");
    assert!(took > Duration::from_millis(700), "30 clients were moved in {took:?}");
}

/// Without an address for clients of other nodes, they are told that there are others [MQTT 5, section 4.11].
#[test]
fn a_drained_node_that_knows_no_address_sends_its_clients_away_without_one() {
    let cluster = Cluster::of(2);
    let mut client = cluster.nodes[1].client("moved");
    cluster.wait_until_kept_by(0, 1, 1);
    cluster.admin_json(0, &["drain", "n2"]);
    assert_eq!(moved_to(&mut client), None);
    let (leads, state) = member(&cluster, 0, "n2");
    assert!(leads > 0 && state == "drained", "it still leads what it alone has a vote in: {leads} {state}");
    let (_, connack) = cluster.nodes[1].open(connect(ProtocolVersion::V5, "late"));
    assert_eq!(connack.reason_code, ReasonCode::UseAnotherServer);
    let error = cluster.admin(0, &["drain", "n1"]).expect_err("nobody would be left");
    assert!(error.contains("no other node could take what n1 has"), "{error}");
    let error = cluster.admin(0, &["drain", "n7"]).expect_err("there is none");
    assert!(error.contains("no node is called n7"), "{error}");
}

/// P9: to be moved is no DISCONNECT of the client, so its Will Message is published, unless it is back before the delay ends.
#[test]
fn the_will_of_a_client_that_is_moved_is_published_unless_it_is_back_in_time() {
    let cluster = Cluster::advertised(2, &[]);
    let mut reader = cluster.nodes[1].client("reader");
    reader.subscribe("gone/#", QoS::AtLeastOnce);
    let with_will = |name: &str, delay: Option<u32>| {
        let mut asked = connect(ProtocolVersion::V5, name);
        asked.properties.session_expiry_interval = Some(3600);
        asked.clean_start = false;
        let properties = WillProperties { will_delay_interval: delay, ..WillProperties::default() };
        asked.will = Some(Will {
            topic: format!("gone/{name}"),
            payload: bytes::Bytes::from_static(b"gone"),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties,
        });
        asked
    };
    let (mut at_once, _) = cluster.nodes[0].accepted(&with_will("at-once", None));
    let (mut later, _) = cluster.nodes[0].accepted(&with_will("later", Some(5)));
    // Who has five seconds goes first.
    cluster.admin_json(1, &["drain", "n1", "--wait-seconds", "0"]);
    moved_to(&mut later);
    let (_back, connack) = cluster.nodes[1].accepted(&with_will("later", Some(5)));
    assert!(connack.session_present);
    moved_to(&mut at_once);
    assert_eq!(reader.take_publish().topic, "gone/at-once");
    std::thread::sleep(OFFICE);
    reader.expect_nothing();
}

/// F13: within the time that it has, whoever is connected, and what it leads, is moved.
#[test]
fn a_node_that_is_told_to_stop_moves_leadership_and_clients_first() {
    let settings = [("KENTONGAN_MOVING__CLIENTS_PER_SECOND", "10"), ("KENTONGAN_MOVING__STOP_SECONDS_MAX", "5")];
    let mut cluster = Cluster::advertised(3, &settings);
    wait_for("it leads something", || member(&cluster, 1, "n1").0 > 0);
    let mut clients: Vec<_> = (0..100).map(|number| cluster.nodes[0].client(&format!("c-{number}"))).collect();
    let started = Instant::now();
    let stopping = std::thread::scope(|scope| {
        let node = &mut cluster.nodes[0];
        let stopped = scope.spawn(move || {
            node.terminate();
            started.elapsed()
        });
        for client in &mut clients {
            moved_to(client).expect("a reference");
        }
        stopped.join().expect("it stops")
    });
    assert!(stopping < Duration::from_secs(9), "it took {stopping:?}");
    assert!(stopping > Duration::from_millis(1500), "all at once is no bounded rate: {stopping:?}");
    let led = |status: &Value| {
        let nodes = status["nodes"].as_array().expect("nodes").iter();
        let groups = nodes.filter_map(|node| node["status"]["groups"].as_array());
        groups.flatten().filter(|group| group["leads"] == true).count()
    };
    // One of the others' may just be handed over to whom it belongs to.
    assert!((0..5).any(|_| led(&cluster.status_at(1)) == 17), "every group has a leader at once");
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_ready();
    assert_eq!(member(&cluster, 1, "n1").1, "serving", "the next process is not drained");
}

/// Clients are moved before the node is no member any more.
#[test]
fn a_live_node_that_is_removed_sends_its_clients_to_others_first() {
    let cluster = Cluster::advertised(3, &[]);
    cluster.wait_until_kept_by(0, 3, 0);
    let mut clients: Vec<_> = (0..3).map(|number| cluster.nodes[2].client(&format!("c-{number}"))).collect();
    cluster.remove(0, "n3");
    for client in &mut clients {
        moved_to(client).expect("a reference");
    }
    wait_for("it is no member", || {
        let members = cluster.admin_json(0, &["members"]);
        let members = members["members"].as_array().expect("members").iter();
        members.map(|one| one["name"].clone()).eq(["n1", "n2"])
    });
}
