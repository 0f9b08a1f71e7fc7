//! Messages from a client of one node to clients of others.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;

use super::nodes::Cluster;
use crate::support::*;

/// P1: SUBACK means that every node knows, so nobody has to wait after it.
#[test]
fn what_is_published_on_one_node_right_after_suback_on_another_arrives() {
    let cluster = Cluster::start();
    let mut clients: Vec<_> = cluster.nodes.iter().map(|node| node.client(&format!("client-{}", node.name))).collect();
    let (mut kept, _) = cluster.nodes[0].persistent("kept");
    for round in 0..100 {
        let (subscribes, publishes) = (round % 3, (round + 1 + round / 3 % 2) % 3);
        let id = round as u16 + 1;
        // Exact filters and wildcards take different ways.
        let filter = |topic: &str| if round % 2 == 0 { topic.to_owned() } else { format!("{topic}/#") };

        let topic = format!("rooms/{round}");
        assert_eq!(clients[subscribes].subscribe(&filter(&topic), QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        clients[publishes].publish_acknowledged(&topic, "now", qos1(id));
        assert_eq!(clients[subscribes].take_publish().topic, topic);

        let topic = format!("kept/{round}");
        assert_eq!(kept.subscribe(&filter(&topic), QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        clients[1 + round % 2].publish_acknowledged(&topic, "now", qos1(id));
        assert_eq!(kept.take_publish().topic, topic);
    }
}

/// A request behind the SUBSCRIBE to its answer, in one piece: the answer comes, whatever node it is given at.
#[test]
fn an_answer_to_what_is_published_behind_a_subscribe_arrives() {
    let cluster = Cluster::start();
    let mut responder = cluster.nodes[2].client("responder");
    responder.subscribe("requests", QoS::AtLeastOnce);
    let mut clients = [cluster.nodes[0].client("client"), cluster.nodes[0].persistent("kept").0];
    for (round, number) in (0..20).zip(1_u16..) {
        let client = &mut clients[round % 2];
        let topic = format!("answers/{round}");
        let request = Packet::Publish(publish("requests", &topic, QOS0));
        client.send_at_once(&[Packet::Subscribe(subscribe(number, &topic, QoS::AtLeastOnce)), request]);
        assert_eq!(responder.take_publish().payload, topic);
        responder.publish_acknowledged(&topic, "answer", qos1(number));
        assert!(matches!(client.receive(), Packet::SubAck(_)));
        assert_eq!(client.take_publish().topic, topic);
    }
}

/// A client that acknowledges nothing is sent no more than `session.out_buffer_bytes_max`, or one message whatever its size: the rest waits
/// in its session, and not in copies at the node of its connection. So it is under the next leader, which counts what was sent under the
/// one before, and on the next connection. In the end it gets everything, in order.
///
/// Abuse: [stalled-subscriber]
#[test]
fn what_a_stalled_subscriber_is_sent_from_another_node_is_bounded_in_bytes() {
    const MESSAGES: u16 = 30;
    let settings = [("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", "262144")];
    let cluster = Cluster::advertised(3, &settings);
    let leader = cluster.leader_of("stalled");
    let (owner, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (mut stalled, _) = cluster.nodes[owner].persistent("stalled");
    stalled.subscribe("big", QoS::AtLeastOnce);
    let mut publisher = cluster.nodes[leader].client("publisher");
    for number in 1..=MESSAGES {
        let bytes = if number == 7 { 500_000 } else { 100_000 };
        publisher.publish_acknowledged("big", &format!("{}{number}", " ".repeat(bytes)), qos1(number));
    }
    let number = |message: &Publish| {
        let text = std::str::from_utf8(&message.payload).expect("our own");
        (text.trim_start().parse::<u16>().expect("a number"), message.dup)
    };
    let numbers = |messages: &[Publish]| messages.iter().map(number).collect::<Vec<_>>();
    // The answer is pushed behind all that goes without one.
    let until_suback = |client: &mut Client| {
        client.send(&Packet::Subscribe(subscribe(60_000, "other", QoS::AtLeastOnce)));
        let mut sent = Vec::new();
        loop {
            match client.receive() {
                Packet::Publish(message) => sent.push(message),
                Packet::SubAck(_) => return sent,
                other => panic!("PUBLISH or SUBACK expected, got {other:?}"),
            }
        }
    };
    let acknowledge = |client: &mut Client, message: &Publish| {
        client.send(&Packet::PubAck(Ack::success(message.delivery.packet_id().expect("QoS 1"))));
    };
    let mut has = until_suback(&mut stalled);
    assert_eq!(numbers(&has), [(1, false), (2, false)]);

    let group = cluster.group_of("stalled").to_string();
    cluster.admin(owner, &["transfer", &group, &cluster.nodes[other].name]).expect("it leads");
    assert_eq!(numbers(&until_suback(&mut stalled)), [], "the next leader sends no more");
    for next in 3..=6 {
        acknowledge(&mut stalled, &has.remove(0));
        has.push(stalled.expect_publish());
        assert_eq!(number(&has[1]), (next, false));
    }
    acknowledge(&mut stalled, &has.remove(0));
    assert_eq!(numbers(&until_suback(&mut stalled)), [], "the next one is larger than the bound");
    acknowledge(&mut stalled, &has.remove(0));
    assert_eq!(number(&stalled.expect_publish()), (7, false), "when nothing is before it");
    assert_eq!(numbers(&until_suback(&mut stalled)), []);

    drop(stalled);
    let (mut stalled, present) = cluster.nodes[leader].persistent("stalled");
    assert!(present);
    let has = until_suback(&mut stalled);
    assert_eq!(numbers(&has), [(7, true)]);
    acknowledge(&mut stalled, &has[0]);
    let rest = (8..=MESSAGES).map(|_| number(&stalled.take_publish()).0);
    assert_eq!(rest.collect::<Vec<_>>(), Vec::from_iter(8..=MESSAGES));
    stalled.expect_nothing();
}

/// What a new subscription finds on a topic, where there is as much as is wanted.
fn retained_at(cluster: &Cluster, node: usize, filter: &str, wanted: usize) -> Vec<String> {
    let mut reader = cluster.nodes[node].client("reader");
    reader.subscribe(filter, QoS::AtMostOnce);
    let mut found = Vec::new();
    reader.send(&Packet::PingReq);
    // Retained messages are read by the groups; an answer to PINGREQ does not wait for them.
    let mut answered = false;
    while let Some(packet) = reader.receive_within(if answered && found.len() >= wanted { QUIET } else { DEADLINE }) {
        match packet {
            Packet::Publish(message) => found.push(String::from_utf8(message.payload.to_vec()).expect("our own")),
            Packet::PingResp => answered = true,
            other => panic!("a retained message expected, got {other:?}"),
        }
    }
    reader.disconnect();
    found.sort_unstable();
    found
}

/// P6: a retained topic is one register, wherever it is written and read.
#[test]
fn what_is_retained_or_deleted_on_one_node_is_so_on_all_at_once() {
    let cluster = Cluster::start();
    let mut writers: Vec<_> = cluster.nodes.iter().map(|node| node.client(&format!("writer-{}", node.name))).collect();
    let mut write = |node: usize, payload: &str, id: u16| {
        let message = Publish { retain: true, ..publish("board/1", payload, qos1(id)) };
        writers[node].send(&Packet::Publish(message));
        writers[node].complete(qos1(id));
    };
    for round in 0..12 {
        let (writes, reads) = (round % 3, (round + 1) % 3);
        let text = format!("value {round}");
        write(writes, &text, 1);
        let filter = ["board/1", "board/+", "#"][round / 3 % 3];
        assert_eq!(retained_at(&cluster, reads, filter, 1), [text], "{filter}");
        write(reads, "", 2);
        assert_eq!(retained_at(&cluster, writes, filter, 0), [""; 0], "{filter}: deleted");
    }
}

/// Sends PUBREL, and waits for PUBCOMP.
fn release(client: &mut Client, number: u16) {
    client.send(&Packet::PubRel(Ack::success(id(number))));
    match client.receive() {
        Packet::PubComp(ack) => assert_eq!(ack.packet_id, id(number)),
        other => panic!("PUBCOMP expected, got {other:?}"),
    }
}

/// P3: whatever was said to the killed node, the publisher finishes on another, and the subscriber gets it once.
#[test]
fn qos_2_is_handed_on_once_though_the_publishers_node_is_killed() {
    let mut cluster = Cluster::start();
    let (mut subscriber, _) = cluster.nodes[1].persistent("subscriber");
    subscriber.subscribe("parcels", QoS::ExactlyOnce);
    let (mut publisher, _) = cluster.nodes[0].persistent("publisher");
    publisher.publish("parcels", "received", qos2(1));
    assert!(matches!(publisher.receive(), Packet::PubRec(_)));
    publisher.publish("parcels", "perhaps received", qos2(2));
    cluster.nodes[0].kill();

    let (mut publisher, present) = cluster.nodes[2].persistent("publisher");
    assert!(present);
    publisher.send(&Packet::Publish(Publish { dup: true, ..publish("parcels", "perhaps received", qos2(2)) }));
    assert!(matches!(publisher.receive(), Packet::PubRec(_)));
    release(&mut publisher, 1);
    release(&mut publisher, 2);
    for expected in ["received", "perhaps received"] {
        assert_eq!(&subscriber.take_publish().payload[..], expected.as_bytes());
    }
    cluster.nodes[0].restart();
    subscriber.expect_nothing();
}

/// P11: what the members of a killed node had not acknowledged goes to the others, and nothing goes to two that live.
#[test]
fn a_shared_group_hands_what_a_killed_node_had_to_members_elsewhere() {
    const MESSAGES: u16 = 60;
    let mut cluster = Cluster::start();
    let mut dies = cluster.nodes[0].client("dies");
    dies.subscribe("$share/work/jobs", QoS::AtLeastOnce);
    let mut lives = cluster.nodes[1].client("lives");
    lives.subscribe("$share/work/jobs", QoS::AtLeastOnce);
    let mut publisher = cluster.nodes[2].client("publisher");
    for number in 1..=MESSAGES {
        publisher.publish_acknowledged("jobs", &number.to_string(), qos1(number));
    }
    // It has some and acknowledges none.
    dies.expect_publish();
    cluster.nodes[0].kill();

    let mut done = BTreeSet::new();
    while done.len() < usize::from(MESSAGES) {
        let message = lives.take_publish();
        let number: u16 = String::from_utf8_lossy(&message.payload).parse().expect("our own payload");
        assert!(done.insert(number), "{number} came twice to a member that lives");
    }
    lives.expect_nothing();
}

fn connect_refused(cluster: &Cluster, version: ProtocolVersion) -> (ReasonCode, Duration) {
    let asked = Instant::now();
    let (_, connack) = cluster.nodes[0].open(connect(version, "newcomer"));
    (connack.reason_code, asked.elapsed())
}

/// F12: a node without its majority promises nothing, says so to whoever comes, and is whole again when the others are.
#[test]
fn a_node_without_a_majority_refuses_and_withholds_until_it_has_one() {
    let refused_within = Duration::from_secs(3);
    let mut cluster = Cluster::start();
    let mut publisher = cluster.nodes[0].client("publisher");
    let mut gossip = cluster.nodes[0].client("gossip");
    let mut local = cluster.nodes[0].client("local");
    local.subscribe("news", QoS::AtLeastOnce);
    // Live messages wait until the retained ones of the subscription are read, which takes a majority.
    publisher.publish_acknowledged("news", "before", qos1(1));
    assert_eq!(&local.take_publish().payload[..], b"before");
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();

    for version in [ProtocolVersion::V5, ProtocolVersion::V3_1_1] {
        let (reason, took) = connect_refused(&cluster, version);
        assert_eq!(reason, ReasonCode::ServerUnavailable, "{version:?}");
        assert!(took < refused_within, "{version:?}: refused after {took:?}");
    }
    wait_for("readiness is off", || !cluster.nodes[0].is_ready());
    publisher.publish("news", "is withheld", qos1(1));
    gossip.publish("news", "goes on", QOS0);
    // The other one takes no effect: its publisher may be connected elsewhere by now.
    assert_eq!(&local.take_publish().payload[..], b"goes on");
    assert_eq!(publisher.receive_within(Duration::from_secs(2)), None, "an acknowledgement without a majority");

    cluster.nodes[1].spawn();
    cluster.nodes[2].spawn();
    cluster.wait_until_ready();
    // It is answered now, or its client was sent to find the majority.
    match publisher.receive() {
        Packet::PubAck(ack) => assert_eq!(ack.reason_code, ReasonCode::Success),
        Packet::Disconnect(disconnect) => assert_eq!(disconnect.reason_code, ReasonCode::UseAnotherServer),
        other => panic!("PUBACK or DISCONNECT expected, got {other:?}"),
    }
    let mut subscriber = cluster.nodes[0].client("subscriber");
    subscriber.subscribe("news", QoS::AtLeastOnce);
    cluster.nodes[2].client("writer").publish_acknowledged("news", "whole again", qos1(1));
    assert_eq!(&subscriber.take_publish().payload[..], b"whole again");
}

/// P5: live messages wait while the retained ones of their subscription are read, which takes a question to every group.
/// When that subscription goes meanwhile, they go ahead of what another one lets through.
#[test]
fn what_waits_for_retained_messages_is_not_overtaken_when_its_subscription_goes() {
    let cluster = Cluster::start();
    let mut client = cluster.nodes[0].client("client");
    assert_eq!(client.subscribe("news/1", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    for round in 0..20 {
        assert_eq!(client.subscribe("news/#", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        client.publish("news/1", &format!("{round} first"), qos1(1));
        let packet_id = id(3);
        let filters = vec!["news/#".to_owned()];
        client.send(&Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: Vec::new() }));
        client.publish("news/1", &format!("{round} second"), qos1(2));
        let (mut came, mut answers) = (Vec::new(), 0);
        while came.len() < 2 || answers < 3 {
            match client.receive() {
                Packet::Publish(message) => {
                    if let Delivery::AtLeastOnce(id) = message.delivery {
                        client.send(&Packet::PubAck(Ack::success(id)));
                    }
                    came.push(String::from_utf8(message.payload.to_vec()).expect("our own"));
                }
                _ => answers += 1,
            }
        }
        assert_eq!(came, [format!("{round} first"), format!("{round} second")]);
    }
}

/// P1: what waits for a session may be more than nodes send each other at once. Whichever node it comes to, it gets all of it.
#[test]
fn more_than_a_frame_waits_for_a_session_that_comes_to_any_node() {
    const MESSAGES: u16 = 20;
    // The client acknowledges nothing: all of it is under way at once.
    let cluster = Cluster::advertised(3, &[("KENTONGAN_SESSION__OUT_BUFFER_BYTES_MAX", "40000000")]);
    let (mut subscriber, _) = cluster.nodes[0].persistent("camera");
    subscriber.subscribe("pictures", QoS::AtLeastOnce);
    drop(subscriber);
    let mut publisher = cluster.nodes[0].client("publisher");
    let picture = "x".repeat(1_000_000);
    for number in 1..=MESSAGES {
        publisher.publish_acknowledged("pictures", &format!("{number} {picture}"), qos1(number));
    }
    for node in &cluster.nodes {
        let (mut subscriber, present) = node.persistent("camera");
        assert!(present);
        let number = |message: Publish| {
            let payload = String::from_utf8(message.payload.to_vec()).expect("our own");
            payload.split_once(' ').expect("our own").0.parse().expect("a number")
        };
        let got: Vec<u16> = (0..MESSAGES).map(|_| number(subscriber.expect_publish())).collect();
        assert_eq!(got, (1..=MESSAGES).collect::<Vec<_>>(), "at {}", node.name);
    }
}

/// The same of retained messages.
#[test]
fn more_than_a_frame_is_retained_under_a_wildcard() {
    const MESSAGES: u16 = 20;
    let cluster = Cluster::start();
    let mut publisher = cluster.nodes[0].client("publisher");
    let picture = "x".repeat(1_000_000);
    // All of one group, so that they would be one page.
    let mut topics = (0..).map(|number| format!("pictures/{number}"));
    let group = cluster.group_of("pictures/0");
    for number in 1..=MESSAGES {
        let topic = topics.find(|topic| cluster.group_of(topic) == group).expect("names spread over all groups");
        publisher.send(&Packet::Publish(Publish { retain: true, ..publish(&topic, &picture, qos1(number)) }));
        publisher.complete(qos1(number));
    }
    for node in &cluster.nodes {
        let mut reader = node.client("reader");
        reader.subscribe("pictures/+", QoS::AtLeastOnce);
        let got: BTreeSet<_> = (0..MESSAGES).map(|_| reader.take_publish().topic).collect();
        assert_eq!(got.len(), usize::from(MESSAGES), "at {}", node.name);
    }
}
