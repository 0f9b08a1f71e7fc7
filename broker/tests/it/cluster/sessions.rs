//! Sessions that any node can serve, one at a time.

use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;

use super::nodes::Cluster;
use crate::support::*;

/// How long a node may be silent before it is declared dead, at the most: its lease, and what a clock may be off by.
const DETECTION: Duration = Duration::from_millis(1800);

/// P9: what a will may take on top of that.
const WILL_LATE_MAX: Duration = Duration::from_secs(5);

fn topic_of(message: &Publish) -> (&str, &[u8]) {
    (&message.topic, &message.payload)
}

/// P8: Session Present is 1 on whichever node, until the session ends on whichever node.
#[test]
fn a_session_is_present_on_every_node_until_it_ends_on_one() {
    let cluster = Cluster::start();
    let nodes = &cluster.nodes;
    let (mut client, present) = nodes[0].persistent("mover");
    assert!(!present, "nobody was here before");
    assert_eq!(client.subscribe("letters/#", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    client.disconnect();

    for (number, node) in [1, 2, 0].into_iter().enumerate() {
        let letter = format!("letter {number}");
        nodes[(node + 1) % 3].client("writer").publish_acknowledged("letters/1", &letter, qos1(1));
        let (mut client, present) = nodes[node].persistent("mover");
        assert!(present, "on node {node}");
        assert_eq!(topic_of(&client.take_publish()), ("letters/1", letter.as_bytes()));
        client.expect_nothing();
        client.disconnect();
    }

    nodes[1].client("mover").disconnect();
    for node in [2, 0] {
        let (client, present) = nodes[node].persistent("mover");
        assert_eq!(present, node == 0, "ended on node 1, begun anew on node 2");
        client.disconnect();
    }
}

/// P7: what the old connection had said took effect before the new CONNACK, or never does.
#[test]
fn the_same_client_identifier_on_another_node_takes_over() {
    let cluster = Cluster::start();
    let nodes = &cluster.nodes;
    let mut watcher = nodes[2].client("watcher");
    watcher.subscribe("seat", QoS::AtMostOnce);
    for round in 0..10 {
        let (from, to) = (round % 3, (round + 1) % 3);
        let (mut old, _) = nodes[from].persistent("mover");
        let mut flood = clone_of(&old);
        let writer = std::thread::spawn(move || {
            for number in 0..2000 {
                let message = publish("seat", &format!("old {number}"), QOS0);
                flood.send(&Packet::Publish(Publish { retain: true, ..message }));
            }
        });
        // Some of the flood is there, some on its way.
        assert!(watcher.expect_publish().payload.starts_with(b"old"));
        let (mut new, present) = nodes[to].persistent("mover");
        assert!(present);
        let mine = Publish { retain: true, ..publish("seat", "new", qos1(7)) };
        new.send(&Packet::Publish(mine));
        new.complete(qos1(7));
        while watcher.expect_publish().payload != "new".as_bytes() {}
        // The old one is closed, with a reason if there is room for one among what it did not read.
        assert_eq!(last_word(&mut old), Some(ReasonCode::SessionTakenOver));
        writer.join().expect("no panic");
        watcher.expect_nothing();
        let mut reader = nodes[from].client("reader");
        reader.subscribe("seat", QoS::AtMostOnce);
        assert_eq!(&reader.expect_publish().payload[..], b"new", "retained, and not by the old one");
        reader.disconnect();
        new.disconnect();
    }
}

/// The same connection, for a second thread to write to.
fn clone_of(client: &Client) -> Client {
    Client::on(client.stream.try_clone().expect("a descriptor"), client.version)
}

/// The Reason Code of the DISCONNECT with which the broker ends a connection.
fn last_word(client: &mut Client) -> Option<ReasonCode> {
    let mut last = None;
    while let Some(packet) = client.receive_within(DEADLINE) {
        if let Packet::Disconnect(disconnect) = packet {
            last = Some(disconnect.reason_code);
        }
    }
    last
}

/// P7, P8: a node that is dead cannot be asked to let go. Its sessions are taken over all the same.
#[test]
fn a_client_of_a_killed_node_finds_its_session_on_another() {
    let mut cluster = Cluster::start();
    let (mut client, _) = cluster.nodes[0].persistent("mover");
    client.subscribe("letters", QoS::AtLeastOnce);
    let mut writer = cluster.nodes[1].client("writer");
    writer.publish_acknowledged("letters", "not answered", qos1(1));
    let not_answered = client.expect_publish();
    assert!(!not_answered.dup);
    cluster.nodes[0].kill();
    writer.publish_acknowledged("letters", "while away", qos1(2));
    let (mut client, present) = cluster.nodes[2].persistent("mover");
    assert!(present);
    let again = client.take_publish();
    assert_eq!((topic_of(&again), again.dup), (("letters", &b"not answered"[..]), true));
    assert_eq!(again.delivery, not_answered.delivery, "under its Packet Identifier [MQTT-4.4.0-1]");
    // Nobody knows whether the node had been told of it before it was killed: it may come with DUP.
    assert_eq!(topic_of(&client.take_publish()), ("letters", &b"while away"[..]));
    client.expect_nothing();
}

/// P7: a CONNECT that waits until a dead node is lost gives way to a newer one.
#[test]
fn of_two_that_wait_for_the_session_of_a_killed_node_the_newer_one_gets_it() {
    let mut cluster = Cluster::start();
    let leads = cluster.directory_leader();
    // The others keep their leases.
    let (dies, first, second) = ((leads + 1) % 3, leads, (leads + 2) % 3);
    // Which of both came later, their group says, and it has to be there: the next leader of one that has lost its own hears
    // those who wait in any order. Chosen ones are not handed over meanwhile.
    let (mover, to) = ("mover", cluster.nodes[first].name.clone());
    for group in [cluster.group_of(mover).to_string(), "directory".to_owned()] {
        cluster.admin(first, &["transfer", &group, &to]).expect("it leads");
    }
    let (_client, _) = cluster.nodes[dies].persistent(mover);
    cluster.nodes[dies].kill();
    let mut asked = connect(ProtocolVersion::V5, mover);
    asked.clean_start = false;
    asked.properties.session_expiry_interval = Some(3600);
    let mut older = Client::at(cluster.nodes[first].address, ProtocolVersion::V5);
    older.send(&Packet::Connect(Box::new(asked)));
    // Less than the time until anybody takes the killed one for dead.
    assert_eq!(older.receive_within(Duration::from_millis(500)), None, "it waits");
    let (newer, present) = cluster.nodes[second].persistent(mover);
    assert!(present);
    match older.expect_connack().reason_code {
        // Both waited.
        ReasonCode::ServerBusy | ReasonCode::UnspecifiedError => older.expect_closed(),
        // The older one had it before the newer one could ask.
        ReasonCode::Success => older.expect_disconnect(ReasonCode::SessionTakenOver),
        other => panic!("no reason to refuse: {other:?}"),
    }
    newer.disconnect();
}

fn with_will(client_id: &str, qos: QoS) -> Connect {
    Connect {
        will: Some(Will {
            qos,
            retain: false,
            topic: format!("wills/{client_id}"),
            payload: bytes::Bytes::from_static(b"gone"),
            properties: WillProperties::default(),
        }),
        ..connect(ProtocolVersion::V5, client_id)
    }
}

/// P9: exactly once, in time, and not again when the node is back.
#[test]
fn the_wills_of_a_killed_node_are_published_once() {
    let mut cluster = Cluster::start();
    let (mut kept, _) = cluster.nodes[1].persistent("kept");
    kept.subscribe("wills/#", QoS::ExactlyOnce);
    let mut live = cluster.nodes[2].client("live");
    live.subscribe("wills/#", QoS::ExactlyOnce);
    let clients: Vec<_> = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]
        .into_iter()
        .map(|qos| cluster.nodes[0].accepted(&with_will(&format!("mortal-{}", qos as u8), qos)))
        .collect();
    let leaving: Vec<_> = (0..10)
        .map(|number| cluster.nodes[0].accepted(&with_will(&format!("says-goodbye-{number}"), QoS::AtLeastOnce)).0)
        .collect();
    // Their wills are discarded once they see the end of their connections, and be it the last thing that the node does.
    leaving.into_iter().for_each(Client::disconnect);
    cluster.nodes[0].kill();
    let killed = Instant::now();
    for watcher in [&mut kept, &mut live] {
        let mut topics: Vec<_> = clients.iter().map(|_| watcher.take_publish().topic).collect();
        topics.sort_unstable();
        assert_eq!(topics, ["wills/mortal-0", "wills/mortal-1", "wills/mortal-2"]);
    }
    let took = killed.elapsed();
    assert!(took < DETECTION + WILL_LATE_MAX, "the wills took {took:?}");
    cluster.nodes[0].restart();
    kept.expect_nothing();
    live.expect_nothing();
}

/// P7, F4: what a stopped process still has in its hands when others went on without it never takes effect.
#[test]
fn what_a_stopped_node_had_in_its_lanes_is_not_sent_when_it_goes_on() {
    const STOPPED: Duration = Duration::from_secs(5);
    let mut cluster = Cluster::start();
    let mut watcher = cluster.nodes[2].client("watcher");
    watcher.subscribe("seat", QoS::AtMostOnce);
    let (mut kept, _) = cluster.nodes[2].persistent("kept");
    kept.subscribe("seat", QoS::AtLeastOnce);
    let (mut old, _) = cluster.nodes[0].persistent("mover");
    old.subscribe("for-mover", QoS::AtLeastOnce);

    // Some of these are on their way to other nodes, and some in its sockets, when it stops.
    let old_message = |number: u16| {
        Packet::Publish(Publish { retain: true, ..publish("seat", &format!("old {number}"), qos1(number)) })
    };
    (1..=20).for_each(|number| old.send(&old_message(number)));
    cluster.nodes[0].pause();
    let paused = Instant::now();
    (21..=60).for_each(|number| old.send(&old_message(number)));

    let (mut new, present) = cluster.nodes[1].persistent("mover");
    assert!(present);
    let mine = Publish { retain: true, ..publish("seat", "new", qos1(1)) };
    new.send(&Packet::Publish(mine));
    new.complete(qos1(1));
    while watcher.expect_publish().payload != "new".as_bytes() {}
    while kept.take_publish().payload != "new".as_bytes() {}
    cluster.nodes[2].client("writer").publish_acknowledged("for-mover", "hello", qos1(1));
    assert_eq!(&new.take_publish().payload[..], b"hello");

    std::thread::sleep(STOPPED.saturating_sub(paused.elapsed()));
    // Acknowledgements from before it stopped may still be read.
    let mut acknowledged_before = 0;
    while old.receive_within(QUIET).is_some() {
        acknowledged_before += 1;
    }
    cluster.nodes[0].resume();
    let mut after = Vec::new();
    while let Some(packet) = old.receive_within(DEADLINE) {
        after.push(packet);
    }
    let is_end = |packet: &Packet| matches!(packet, Packet::Disconnect(_));
    assert!(after.iter().all(is_end), "after {acknowledged_before} acknowledgements: {after:?}");
    cluster.nodes[0].wait_until_ready();
    watcher.expect_nothing();
    kept.expect_nothing();
    new.expect_nothing();
    for node in &cluster.nodes {
        let mut reader = node.client("reader");
        reader.subscribe("seat", QoS::AtMostOnce);
        assert_eq!(&reader.expect_publish().payload[..], b"new", "retained on {}", node.name);
        reader.disconnect();
    }
}

/// Claims of one group wait for each other; who goes while it waits holds up nobody.
#[test]
fn all_who_come_at_once_for_the_same_group_are_served() {
    let cluster = Cluster::start();
    let node = &cluster.nodes[0];
    let group = cluster.group_of("crowd-0");
    let names = (0..).map(|number| format!("crowd-{number}")).filter(|name| cluster.group_of(name) == group);
    let mut crowd: Vec<_> = names
        .take(300)
        .map(|name| {
            let mut client = Client::at(node.address, ProtocolVersion::V5);
            client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, &name))));
            client
        })
        .collect();
    let mut number = 0;
    crowd.retain(|_| {
        number += 1;
        number % 3 != 0
    });
    for client in &mut crowd {
        assert_eq!(client.expect_connack().reason_code, ReasonCode::Success);
    }
}
