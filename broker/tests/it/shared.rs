//! Shared subscriptions: which member gets a message, by every strategy and for every kind of member.

use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;

use crate::support::*;

/// Whether each member's session outlives its connection: members of both kinds are picked differently, and so are
/// those of one subscription that are of both.
const KINDS: [[bool; 3]; 3] = [[false; 3], [true; 3], [true, false, true]];

fn broker(strategy: &str) -> Broker {
    Broker::with_environment(&[], &[("KENTONGAN_SHARED__STRATEGY", strategy)])
}

/// Three members of one shared subscription.
struct Members {
    /// Where their messages are published.
    topic: String,
    clients: Vec<Client>,
}

impl Members {
    fn join(broker: &Broker, kinds: [bool; 3]) -> Self {
        let mut members = Self { topic: format!("work/{kinds:?}"), clients: Vec::new() };
        for persistent in kinds {
            members.add(broker, persistent);
        }
        members
    }

    fn add(&mut self, broker: &Broker, persistent: bool) {
        let mut asked = connect(ProtocolVersion::V5, &format!("{}-{}", self.topic, self.clients.len()));
        asked.properties.session_expiry_interval = persistent.then_some(100);
        asked.properties.receive_maximum = PacketId::new(2);
        let mut member = Client::accepted(broker, asked);
        let filter = format!("$share/group/{}/#", self.topic);
        assert_eq!(member.subscribe(&filter, QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        self.clients.push(member);
    }

    /// Who gets the message that was just published; it is acknowledged.
    fn receiver(&mut self) -> usize {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            for (member, client) in self.clients.iter_mut().enumerate() {
                if let Some(packet) = client.receive_within(Duration::from_millis(2)) {
                    let Packet::Publish(Publish { delivery: Delivery::AtLeastOnce(id), .. }) = packet else {
                        panic!("PUBLISH of QoS 1 expected, got {packet:?}");
                    };
                    client.send(&Packet::PubAck(Ack::success(id)));
                    return member;
                }
            }
        }
        panic!("nobody got it");
    }

    /// Who gets each of `count` messages of `publisher` to `name` below the topic.
    fn receivers(&mut self, publisher: &mut Client, name: &str, count: usize) -> Vec<usize> {
        let topic = format!("{}/{name}", self.topic);
        let mut receivers = Vec::new();
        for _ in 0..count {
            publisher.publish_acknowledged(&topic, "x", qos1(1));
            receivers.push(self.receiver());
        }
        receivers
    }

    /// Who gets each message, of at least 12, until each of `expected` got two. A persistent member has nothing in
    /// flight again only once the disk has its acknowledgement, and until then the others get all.
    fn until_each_of(&mut self, expected: &[usize], publisher: &mut Client) -> Vec<usize> {
        let deadline = Instant::now() + DEADLINE;
        let mut receivers = self.receivers(publisher, "x", 12);
        while expected.iter().any(|&member| counts(&receivers)[member] < 2) {
            assert!(Instant::now() < deadline, "each of {expected:?} expected twice: {receivers:?}");
            receivers.extend(self.receivers(publisher, "x", 1));
        }
        receivers
    }
}

fn counts(receivers: &[usize]) -> [usize; 3] {
    [0, 1, 2].map(|member| receivers.iter().filter(|&&one| one == member).count())
}

/// The one who got them all.
fn only(receivers: &[usize]) -> usize {
    assert!(receivers.iter().all(|one| one == &receivers[0]), "one member expected: {receivers:?}");
    receivers[0]
}

/// [MQTT-3.8.4-3]: a persistent member that is granted another QoS gets what is published then, by whichever way.
#[test]
fn a_member_that_subscribes_again_with_another_qos_still_gets_everything() {
    let broker = broker("round-robin");
    let mut publisher = Client::v5(&broker, "publisher");
    let mut asked = connect(ProtocolVersion::V5, "member");
    asked.properties.session_expiry_interval = Some(100);
    let mut member = Client::accepted(&broker, asked);
    for (qos, granted) in [
        (QoS::AtLeastOnce, ReasonCode::GrantedQos1),
        (QoS::AtMostOnce, ReasonCode::Success),
        (QoS::AtLeastOnce, ReasonCode::GrantedQos1),
    ] {
        assert_eq!(member.subscribe("$share/group/again", qos), granted);
        publisher.publish_acknowledged("again", "x", qos1(1));
        let received = member.take_publish();
        assert_eq!(received.delivery.qos(), qos);
        publisher.publish("again", "0", Delivery::AtMostOnce);
        assert_eq!(member.take_publish().payload, "0");
        member.expect_nothing();
    }
}

#[test]
fn round_robin_gives_each_member_its_turn() {
    let broker = broker("round-robin");
    let mut publisher = Client::v5(&broker, "publisher");
    for kinds in KINDS {
        let mut members = Members::join(&broker, kinds);
        let receivers = members.receivers(&mut publisher, "x", 30);
        assert_eq!(counts(&receivers), [10; 3], "{kinds:?}: {receivers:?}");
    }
}

#[test]
fn random_gives_every_member_some_in_no_order() {
    let broker = broker("random");
    let mut publisher = Client::v5(&broker, "publisher");
    for kinds in KINDS {
        let mut members = Members::join(&broker, kinds);
        let receivers = members.receivers(&mut publisher, "x", 150);
        // 50 on average, and five standard deviations.
        assert!(counts(&receivers).iter().all(|count| (20..80).contains(count)), "{kinds:?}: {receivers:?}");
        let repeats = receivers.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((20..80).contains(&repeats), "{kinds:?}: {receivers:?}");
    }
}

/// Members of one group draw there, not in turn.
#[test]
fn random_draws_among_the_members_of_one_group_too() {
    let settings = [("KENTONGAN_SHARED__STRATEGY", "random"), ("KENTONGAN_STORAGE__GROUPS", "1")];
    let broker = Broker::with_environment(&[], &settings);
    let mut members = Members::join(&broker, [true; 3]);
    let receivers = members.receivers(&mut Client::v5(&broker, "publisher"), "x", 150);
    assert!(counts(&receivers).iter().all(|count| (20..80).contains(count)), "{receivers:?}");
    let repeats = receivers.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!((20..80).contains(&repeats), "{receivers:?}");
}

#[test]
fn sticky_stays_with_one_member_until_it_goes() {
    for groups in ["1", "16"] {
        let settings = [("KENTONGAN_SHARED__STRATEGY", "sticky"), ("KENTONGAN_STORAGE__GROUPS", groups)];
        let broker = Broker::with_environment(&[], &settings);
        let mut publisher = Client::v5(&broker, "publisher");
        for kinds in KINDS {
            let mut members = Members::join(&broker, kinds);
            let first = only(&members.receivers(&mut publisher, "x", 20));
            broker.wait_for_metric("kentongan_connections", |count| count == 4.0);
            members.clients.remove(first).disconnect();
            broker.wait_for_metric("kentongan_connections", |count| count == 3.0);
            only(&members.receivers(&mut publisher, "x", 20));
            members.clients.into_iter().for_each(Client::disconnect);
        }
    }
}

/// The publisher's name counts, whichever way its messages take: QoS 2 of a persistent session and wills go by its group.
#[test]
fn hash_client_gives_a_publisher_one_member() {
    for groups in ["1", "16"] {
        let settings = [("KENTONGAN_SHARED__STRATEGY", "hash-client"), ("KENTONGAN_STORAGE__GROUPS", groups)];
        let broker = Broker::with_environment(&[], &settings);
        for kinds in KINDS {
            let mut members = Members::join(&broker, kinds);
            let mut used = Vec::new();
            for number in 0..12 {
                let name = format!("publisher-{number}");
                let mut publisher = Client::v5(&broker, &name);
                let member = only(&members.receivers(&mut publisher, &format!("topic/{number}"), 3));
                publisher.disconnect();
                used.push(member);

                let mut asked = connect(ProtocolVersion::V5, &name);
                asked.properties.session_expiry_interval = (number % 2 == 0).then_some(100);
                asked.will = Some(Will {
                    topic: format!("{}/will", members.topic),
                    payload: "x".into(),
                    qos: QoS::AtLeastOnce,
                    retain: false,
                    properties: WillProperties::default(),
                });
                let mut publisher = Client::accepted(&broker, asked);
                publisher.publish_acknowledged(&format!("{}/other", members.topic), "x", qos2(2));
                assert_eq!(members.receiver(), member, "{kinds:?}, {groups} groups, QoS 2 of {name}");
                drop(publisher);
                assert_eq!(members.receiver(), member, "{kinds:?}, {groups} groups, will of {name}");
            }
            assert!(used.iter().any(|one| one != &used[0]), "{kinds:?}, {groups} groups: {used:?}");
        }
    }
}

#[test]
fn hash_topic_gives_a_topic_one_member() {
    for groups in ["1", "16"] {
        let settings = [("KENTONGAN_SHARED__STRATEGY", "hash-topic"), ("KENTONGAN_STORAGE__GROUPS", groups)];
        let broker = Broker::with_environment(&[], &settings);
        let mut publishers = ["a", "b"].map(|name| Client::v5(&broker, name));
        for kinds in KINDS {
            let mut members = Members::join(&broker, kinds);
            let mut used = Vec::new();
            for number in 0..12 {
                let name = format!("topic/{number}");
                let [a, b] = &mut publishers;
                let mut receivers = members.receivers(a, &name, 3);
                receivers.extend(members.receivers(b, &name, 3));
                used.push(only(&receivers));
            }
            assert!(used.iter().any(|one| one != &used[0]), "{kinds:?}, {groups} groups: {used:?}");
        }
    }
}

/// What waits behind a member's window is unacknowledged too.
#[test]
fn least_inflight_spares_a_member_with_much_before_it() {
    for groups in ["1", "16"] {
        let settings = [("KENTONGAN_SHARED__STRATEGY", "least-inflight"), ("KENTONGAN_STORAGE__GROUPS", groups)];
        let broker = Broker::with_environment(&[], &settings);
        let mut publisher = Client::v5(&broker, "publisher");
        for kinds in KINDS {
            let mut members = Members { topic: format!("work/{kinds:?}"), clients: Vec::new() };
            members.add(&broker, kinds[0]);
            let topic = format!("{}/x", members.topic);
            for _ in 0..10 {
                publisher.publish_acknowledged(&topic, "x", qos1(1));
            }
            assert_eq!([members.receiver(), members.receiver()], [0, 0]);
            let slow = &mut members.clients[0];
            let mut waiting: Vec<_> = (0..2).filter_map(|_| slow.expect_publish().delivery.packet_id()).collect();
            slow.expect_nothing();
            members.add(&broker, kinds[1]);
            members.add(&broker, kinds[2]);
            let receivers = members.until_each_of(&[1, 2], &mut publisher);
            assert_eq!(counts(&receivers)[0], 0, "{kinds:?}, {groups} groups: {receivers:?}");
            // It works off what it has, and is one of three again.
            let slow = &mut members.clients[0];
            for _ in 0..6 {
                slow.send(&Packet::PubAck(Ack::success(waiting.remove(0))));
                waiting.extend(slow.expect_publish().delivery.packet_id());
            }
            for packet_id in waiting {
                slow.send(&Packet::PubAck(Ack::success(packet_id)));
            }
            slow.expect_nothing();
            members.until_each_of(&[0, 1, 2], &mut publisher);
        }
    }
}
