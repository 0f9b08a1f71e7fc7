//! Persistent sessions, retained messages and wills, and what of them survives the process.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::time::Duration;

use kentongan::replicated::Slots;
use kentongan_proto::mqtt::*;

use crate::support::*;

/// By the default settings.
const GROUPS: u16 = 16;

fn persistent(client_id: &str, clean_start: bool) -> Connect {
    let mut connect = connect(ProtocolVersion::V5, client_id);
    connect.clean_start = clean_start;
    connect.properties.session_expiry_interval = Some(3600);
    connect
}

/// P1, P8: what was acknowledged while the subscriber was away, and the process killed, is delivered in its order.
#[test]
fn messages_wait_for_an_absent_subscriber_over_kill_and_restart() {
    let mut broker = Broker::start();
    let (mut subscriber, connack) = Client::open(&broker, persistent("s", false));
    assert!(!connack.session_present);
    assert_eq!(subscriber.subscribe("a/+", QoS::ExactlyOnce), ReasonCode::GrantedQos2);
    subscriber.disconnect();

    let mut publisher = Client::v5(&broker, "p");
    for number in 1..=20 {
        publisher.publish_acknowledged(
            "a/b",
            &format!("{number}"),
            if number % 2 == 0 { qos1(number) } else { qos2(number) },
        );
    }
    broker.restart();

    let (mut subscriber, connack) = Client::open(&broker, persistent("s", false));
    assert!(connack.session_present, "[MQTT-3.2.2-3]");
    for number in 1..=20 {
        let message = subscriber.take_publish();
        assert_eq!(message.payload, format!("{number}"));
        assert!(!message.dup);
    }
    subscriber.expect_nothing();
    subscriber.disconnect();
    broker.restart();
    let (mut subscriber, _) = Client::open(&broker, persistent("s", false));
    subscriber.expect_nothing();
}

/// A client need not wait for SUBACK: what it publishes behind a SUBSCRIBE comes back to it, as at other brokers, and behind an
/// UNSUBSCRIBE it does not.
#[test]
fn what_a_persistent_session_publishes_behind_its_subscribe_comes_to_it() {
    let broker = Broker::start();
    for (number, (granted, delivery)) in (0..).zip([
        (QoS::AtMostOnce, QOS0),
        (QoS::AtMostOnce, qos1(7)),
        (QoS::AtLeastOnce, QOS0),
        (QoS::AtLeastOnce, qos1(7)),
        (QoS::AtLeastOnce, qos2(7)),
        (QoS::ExactlyOnce, qos2(7)),
    ]) {
        let (mut client, _) = Client::open(&broker, persistent(&format!("c{number}"), true));
        let topic = format!("t/{number}");
        let publish = Packet::Publish(publish(&topic, "behind it", delivery));
        client.send_at_once(&[Packet::Subscribe(subscribe(1, &topic, granted)), publish.clone()]);
        assert!(matches!(client.receive(), Packet::SubAck(_)));
        let mut has_come = false;
        let mut is_over = delivery == QOS0;
        while !(has_come && is_over) {
            match client.receive() {
                Packet::Publish(message) => {
                    assert_eq!((&message.payload[..], has_come), (&b"behind it"[..], false));
                    has_come = true;
                }
                Packet::PubRec(ack) => client.send(&Packet::PubRel(Ack::success(ack.packet_id))),
                Packet::PubAck(_) | Packet::PubComp(_) => is_over = true,
                other => panic!("{other:?}"),
            }
        }

        let (packet_id, filters) = (id(2), vec![topic]);
        let unsubscribe = Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: Vec::new() });
        client.send_at_once(&[unsubscribe, publish]);
        assert!(matches!(client.receive(), Packet::UnsubAck(_)));
        client.complete(delivery);
        client.expect_nothing();
    }
}

/// What waits for a client is bounded by its listener too, whichever bound is lower, over a restart as well.
#[test]
fn a_listener_bounds_what_waits_for_its_clients() {
    for (caps, kept) in [
        ("queue_messages_max = 3\n[session]\nqueue_messages_max = 5\n", 3),
        ("queue_messages_max = 5\n[session]\nqueue_messages_max = 3\n", 3),
        ("queue_bytes_max = 25000\n", 2),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("kentongan.toml");
        std::fs::write(&file, format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{caps}")).expect("written");
        let mut broker = Broker::with_file(&file);
        let (mut subscriber, _) = Client::open(&broker, persistent("s", false));
        subscriber.subscribe("t", QoS::AtLeastOnce);
        subscriber.disconnect();
        let payload = |number: u16| format!("{number}{}", "x".repeat(10_000));
        let mut publisher = Client::v5(&broker, "p");
        publisher.publish_acknowledged("t", &payload(1), qos1(1));
        broker.restart();
        let mut publisher = Client::v5(&broker, "p");
        for number in 2..=6 {
            publisher.publish_acknowledged("t", &payload(number), qos1(number));
        }
        broker.wait_for_metric("kentongan_messages_dropped_total", |value| value == f64::from(6 - kept));
        let (mut subscriber, _) = Client::open(&broker, persistent("s", false));
        for number in 1..=kept {
            assert!(subscriber.take_publish().payload == payload(number), "number {number} of {caps}");
        }
        subscriber.expect_nothing();
    }
}

/// [MQTT-4.4.0-1], P4: what was in flight comes again with DUP and its identifier; what was acknowledged does not.
#[test]
fn unacknowledged_messages_come_again_with_dup_on_resume() {
    let mut broker = Broker::start();
    let (mut subscriber, _) = Client::open(&broker, persistent("s", true));
    subscriber.subscribe("t", QoS::ExactlyOnce);
    let mut publisher = Client::v311(&broker, "p");
    publisher.publish_acknowledged("t", "one", qos1(1));
    publisher.publish_acknowledged("t", "two", qos2(2));
    publisher.publish_acknowledged("t", "three", qos2(3));
    let one = subscriber.expect_publish();
    let two = subscriber.expect_publish();
    let three = subscriber.expect_publish();
    let three_id = three.delivery.packet_id().expect("QoS 2");
    subscriber.send(&Packet::PubRec(Ack::success(three_id)));
    assert!(matches!(subscriber.receive(), Packet::PubRel(ack) if ack.packet_id == three_id));
    for round in 0..2 {
        drop(subscriber);
        if round == 1 {
            broker.restart();
        }
        (subscriber, _) = Client::open(&broker, persistent("s", false));
        let again = subscriber.expect_publish();
        assert!(again.dup);
        assert_eq!((again.delivery, &again.payload), (one.delivery, &one.payload));
        let again = subscriber.expect_publish();
        assert!(again.dup);
        assert_eq!((again.delivery, &again.payload), (two.delivery, &two.payload));
        assert!(matches!(subscriber.receive(), Packet::PubRel(ack) if ack.packet_id == three_id), "not PUBLISH again");
    }
    subscriber.send(&Packet::PubAck(Ack::success(one.delivery.packet_id().expect("QoS 1"))));
    let two_id = two.delivery.packet_id().expect("QoS 2");
    subscriber.send(&Packet::PubRec(Ack::success(two_id)));
    assert!(matches!(subscriber.receive(), Packet::PubRel(ack) if ack.packet_id == two_id));
    subscriber.send(&Packet::PubComp(Ack::success(two_id)));
    subscriber.send(&Packet::PubComp(Ack::success(three_id)));
    subscriber.expect_nothing();
    drop(subscriber);
    let (mut subscriber, _) = Client::open(&broker, persistent("s", false));
    subscriber.expect_nothing();
}

/// P3: a QoS 2 message whose PUBREC was lost with the process is not routed twice.
#[test]
fn a_qos_2_publish_repeated_after_a_crash_is_delivered_once() {
    let mut broker = Broker::start();
    let (mut subscriber, _) = Client::open(&broker, persistent("s", true));
    subscriber.subscribe("t", QoS::ExactlyOnce);
    subscriber.disconnect();
    let (mut publisher, _) = Client::open(&broker, persistent("p", true));
    publisher.publish("t", "once", qos2(7));
    assert!(matches!(publisher.receive(), Packet::PubRec(_)));
    broker.restart();
    let (mut publisher, connack) = Client::open(&broker, persistent("p", false));
    assert!(connack.session_present);
    let mut again = publish("t", "once", qos2(7));
    again.dup = true;
    publisher.send(&Packet::Publish(again));
    publisher.complete(qos2(7));
    let (mut subscriber, _) = Client::open(&broker, persistent("s", false));
    assert_eq!(subscriber.take_publish().payload, "once");
    subscriber.expect_nothing();
}

/// A second SUBSCRIBE takes the place of one whose retained messages are still being read. Live messages wait for the
/// second then, and not for what nobody goes on with.
#[test]
fn a_subscription_that_is_replaced_while_it_is_read_goes_on() {
    // More than a page, in one group.
    let topics = (0..).map(|number| format!("r/{number}")).filter(|topic| Slots::new(GROUPS).group_of(topic) == 0);
    let topics: Vec<_> = topics.take(300).collect();
    let broker = Broker::start();
    let mut publisher = Client::v5(&broker, "p");
    for (topic, number) in topics.iter().zip(1..) {
        let mut message = publish(topic, "kept", qos1(number));
        message.retain = true;
        publisher.send(&Packet::Publish(message));
        publisher.complete(qos1(number));
    }
    let (mut subscriber, _) = Client::open(&broker, persistent("s", false));
    let mut both = Vec::new();
    for number in [1, 2] {
        let packet = Packet::Subscribe(Subscribe {
            packet_id: id(number),
            filters: vec![("r/#".to_owned(), SubscriptionOptions::new(QoS::AtLeastOnce))],
            subscription_identifier: None,
            user_properties: Vec::new(),
        });
        codec::encode(&packet, ProtocolVersion::V5, &mut both).expect("it fits");
    }
    subscriber.send_bytes(&both);
    let mut missing: BTreeSet<_> = topics.iter().cloned().chain(["r/live".to_owned()]).collect();
    let mut granted = 0;
    while !missing.is_empty() {
        match subscriber.receive() {
            Packet::SubAck(_) => {
                granted += 1;
                if granted == 2 {
                    publisher.publish("r/live", "live", Delivery::AtMostOnce);
                }
            }
            Packet::Publish(message) => {
                if let Some(id) = message.delivery.packet_id() {
                    subscriber.send(&Packet::PubAck(Ack::success(id)));
                }
                missing.remove(&message.topic);
            }
            other => panic!("no reason for {other:?}"),
        }
    }
}

/// P6: nobody drops a retained message because there are more of them than a queue may hold, nor because the queue was full before. They
/// wait until the client has taken what it has.
#[test]
fn retained_messages_wait_for_room_in_the_queue() {
    const TOPICS: u16 = 600;
    const QUEUED: u16 = 40;
    let text = "x".repeat(1000);
    // With 500 bytes none of them ever fits into the queue, and with 2,000 one does, but not two.
    let bounds = [
        ("queue_messages_max = 40", true),
        ("queue_bytes_max = 50000", true),
        ("queue_messages_max = 0", false),
        ("queue_bytes_max = 500", false),
        ("queue_bytes_max = 2000", false),
    ];
    for (bound, queues) in bounds {
        let broker = Broker::with_settings(&format!("[[listener]]\naddress = \"127.0.0.1:0\"\n[session]\n{bound}\n"));
        let mut publisher = Client::v5(&broker, "p");
        for number in 1..=TOPICS {
            let mut message = publish(&format!("r/{number}"), &text, qos1(number));
            message.retain = true;
            publisher.send(&Packet::Publish(message));
            publisher.complete(qos1(number));
        }
        // A new broker's groups have their feature level a moment later, and before it nothing passes a queue that is too small.
        let (mut probe, _) = Client::open(&broker, persistent("probe", true));
        probe.subscribe("probe", QoS::AtLeastOnce);
        wait_for("the feature level", || {
            publisher.publish_acknowledged("probe", &text, qos1(1));
            probe.receive_within(Duration::from_millis(200)).is_some()
        });
        for (is_persistent, is_full) in [(false, false), (true, false), (true, queues)] {
            let opening = |clean_start| {
                let mut asked = persistent("s", clean_start);
                if !is_persistent {
                    asked.properties.session_expiry_interval = None;
                }
                asked.properties.receive_maximum = NonZeroU16::new(10);
                asked
            };
            println!("{bound}, persistent {is_persistent}, full {is_full}");
            let (mut subscriber, _) = Client::open(&broker, opening(true));
            let mut missing: BTreeSet<_> = (1..=TOPICS).map(|number| format!("r/{number}")).collect();
            if is_full {
                subscriber.subscribe("q/+", QoS::AtLeastOnce);
                subscriber.disconnect();
                for number in 1..=QUEUED {
                    publisher.publish_acknowledged(&format!("q/{number}"), &text, qos1(number));
                    missing.insert(format!("q/{number}"));
                }
                (subscriber, _) = Client::open(&broker, opening(false));
            }
            let asked = Subscribe { packet_id: id(1), ..self::subscribe(1, "r/+", QoS::AtLeastOnce) };
            subscriber.send(&Packet::Subscribe(asked));
            // Until the window is full and something waits behind it, nothing is acknowledged.
            let mut unacknowledged = Vec::new();
            let mut granted = false;
            while !granted || unacknowledged.len() < 10 {
                match subscriber.receive() {
                    Packet::Publish(message) => {
                        unacknowledged.extend(message.delivery.packet_id());
                        assert!(missing.remove(&message.topic), "{bound}: {} came again", message.topic);
                    }
                    Packet::SubAck(_) => granted = true,
                    other => panic!("no reason for {other:?}"),
                }
            }
            if queues {
                broker.wait_for_metric("kentongan_queued_messages", |queued| queued > 0.0);
            }
            unacknowledged.into_iter().for_each(|id| subscriber.send(&Packet::PubAck(Ack::success(id))));
            while !missing.is_empty() {
                let message = subscriber.take_publish();
                assert!(missing.remove(&message.topic), "{bound}: {} came again", message.topic);
            }
            subscriber.expect_nothing();
            subscriber.disconnect();
        }
    }
}

/// [MQTT-3.3.1-5], [MQTT-3.3.1-6], P6: the last retained message of each topic, over restarts; a deleted one stays away.
#[test]
fn retained_messages_survive_restarts_and_deletions_too() {
    let mut broker = Broker::start();
    let mut publisher = Client::v5(&broker, "p");
    let mut retain = |topic: &str, payload: &str, number| {
        let mut message = publish(topic, payload, qos1(number));
        message.retain = true;
        publisher.send(&Packet::Publish(message));
        publisher.complete(qos1(number));
    };
    retain("r/1", "old", 1);
    retain("r/1", "new", 2);
    retain("r/2", "gone", 3);
    retain("r/2", "", 4);
    for round in 0..3 {
        let mut subscriber = Client::v311(&broker, "s");
        subscriber.subscribe("r/#", QoS::AtLeastOnce);
        let message = subscriber.take_publish();
        assert!(message.retain);
        assert_eq!((message.topic.as_str(), &message.payload[..]), ("r/1", &b"new"[..]), "round {round}");
        subscriber.expect_nothing();
        let (mut subscriber, _) = Client::open(&broker, persistent("ps", true));
        subscriber.subscribe("r/+", QoS::AtLeastOnce);
        assert_eq!(subscriber.take_publish().payload, "new");
        subscriber.expect_nothing();
        broker.restart();
    }
}

/// A checkpoint is as good as the log: after a clean stop everything is where it was.
#[test]
fn a_clean_stop_and_start_keeps_everything() {
    let mut broker = Broker::start();
    let (mut subscriber, _) = Client::open(&broker, persistent("s", true));
    subscriber.subscribe("t/#", QoS::AtLeastOnce);
    subscriber.disconnect();
    let mut publisher = Client::v5(&broker, "p");
    publisher.publish_acknowledged("t/1", "waits", qos1(1));
    assert!(broker.terminate().success());
    match publisher.receive() {
        Packet::Disconnect(disconnect) => assert_eq!(disconnect.reason_code, ReasonCode::ServerShuttingDown),
        other => panic!("DISCONNECT expected, got {other:?}"),
    }
    broker.restart();
    let (mut subscriber, connack) = Client::open(&broker, persistent("s", false));
    assert!(connack.session_present);
    assert_eq!(subscriber.take_publish().payload, "waits");
}

/// [MQTT-3.1.4-3], P7: the older connection is told and closed before the newer one hears CONNACK.
#[test]
fn a_second_connection_takes_the_session_over() {
    let broker = Broker::start();
    for persistent_session in [false, true] {
        let open = |clean| {
            let mut asked = persistent("same", clean);
            if !persistent_session {
                asked.properties.session_expiry_interval = None;
            }
            Client::open(&broker, asked)
        };
        let (mut old, _) = open(true);
        let (mut new, connack) = open(false);
        assert_eq!(connack.session_present, persistent_session);
        old.expect_disconnect(ReasonCode::SessionTakenOver);
        new.expect_nothing();
        new.disconnect();
    }
}

/// [MQTT-3.1.2-8], [MQTT-3.14.4-3], P9.
#[test]
fn a_will_is_published_when_the_connection_breaks_and_not_after_disconnect() {
    let mut broker = Broker::start();
    let mut watcher = Client::v5(&broker, "w");
    watcher.subscribe("wills", QoS::AtLeastOnce);
    for expiry in [0, 3600] {
        let with_will = || {
            let mut asked = persistent("dying", true);
            asked.properties.session_expiry_interval = Some(expiry);
            asked.will = Some(Will {
                topic: "wills".to_owned(),
                payload: "bye".into(),
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: WillProperties::default(),
            });
            asked
        };
        let (client, _) = Client::open(&broker, with_will());
        client.disconnect();
        watcher.expect_nothing();
        let (client, _) = Client::open(&broker, with_will());
        drop(client);
        assert_eq!(watcher.take_publish().payload, "bye");
        watcher.expect_nothing();
    }
    // The process that dies takes the connection along: the will of a persistent session is published at start.
    let (mut watcher, _) = Client::open(&broker, persistent("pw", true));
    watcher.subscribe("wills", QoS::AtLeastOnce);
    let mut asked = persistent("dying", true);
    asked.will = Some(Will {
        topic: "wills".to_owned(),
        payload: "crash".into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: WillProperties::default(),
    });
    let (_client, _) = Client::open(&broker, asked);
    broker.restart();
    let (mut watcher, _) = Client::open(&broker, persistent("pw", false));
    assert_eq!(watcher.take_publish().payload, "crash");
    watcher.expect_nothing();
}

/// `$delayed/SECONDS/TOPIC`, also over a restart.
#[test]
fn a_delayed_message_comes_when_it_is_due() {
    let mut broker = Broker::start();
    let (mut subscriber, _) = Client::open(&broker, persistent("s", true));
    subscriber.subscribe("later", QoS::AtLeastOnce);
    subscriber.disconnect();
    let mut publisher = Client::v5(&broker, "p");
    publisher.publish_acknowledged("$delayed/2/later", "now", qos1(1));
    broker.restart();
    let (mut subscriber, _) = Client::open(&broker, persistent("s", false));
    assert_eq!(subscriber.receive_within(QUIET), None, "not due yet");
    let message = subscriber.take_publish();
    assert_eq!((message.topic.as_str(), &message.payload[..]), ("later", &b"now"[..]));
}

/// What is over when it is due is dropped before anybody gets it, on one node as in a cluster.
#[test]
fn a_delayed_message_that_expired_when_it_is_due_goes_to_nobody() {
    let broker = Broker::start();
    let mut publisher = Client::v5(&broker, "p");
    let mut subscriber = Client::v5(&broker, "s");
    subscriber.subscribe("later", QoS::AtLeastOnce);
    for (number, payload, expiry) in [(2, "over", 1), (3, "in time", 3600)] {
        let mut message = publish("$delayed/1/later", payload, qos1(number));
        message.properties.message_expiry_interval = Some(expiry);
        publisher.send(&Packet::Publish(message));
        publisher.complete(qos1(number));
    }
    assert_eq!(&subscriber.take_publish().payload[..], b"in time", "it was due after the other");
    broker.wait_for_metric("kentongan_messages_dropped_total{reason=\"expired\"}", |dropped| dropped == 1.0);
    subscriber.expect_nothing();
}

/// [MQTT-3.3.2-5] lets a message be dropped when its interval has passed: one of 0 is for those who are connected, whichever way it takes.
#[test]
fn a_message_with_an_expiry_interval_of_0_reaches_who_is_connected() {
    let broker = Broker::start();
    let mut publishers = [Client::v5(&broker, "p"), Client::accepted(&broker, persistent("kept", true))];
    let mut subscribers = [Client::v5(&broker, "s"), Client::accepted(&broker, persistent("k", true))];
    for subscriber in &mut subscribers {
        subscriber.subscribe("now", QoS::ExactlyOnce);
    }
    for round in 0..10 {
        for (at, delivery) in [QOS0, qos1(1), qos2(2)].into_iter().enumerate() {
            let publisher = &mut publishers[(round + at) % 2];
            let mut message = publish("now", &format!("{round}-{at}"), delivery);
            message.properties.message_expiry_interval = Some(0);
            publisher.send(&Packet::Publish(message));
            publisher.complete(delivery);
            for subscriber in &mut subscribers {
                let got = subscriber.take_publish();
                assert_eq!(got.payload, format!("{round}-{at}"));
                assert!(got.properties.message_expiry_interval <= Some(1), "{got:?}");
            }
        }
    }
    // For whoever comes later it is over.
    let [_, away] = subscribers;
    away.disconnect();
    let mut message = publish("now", "over", qos1(1));
    message.properties.message_expiry_interval = Some(0);
    publishers[0].send(&Packet::Publish(message));
    publishers[0].complete(qos1(1));
    std::thread::sleep(Duration::from_millis(2500));
    Client::accepted(&broker, persistent("k", false)).expect_nothing();
}

/// 4.8.2: each message goes to one member, persistent and transient ones alike, and none is lost when a member goes.
#[test]
fn a_shared_subscription_hands_each_message_to_one_member() {
    let broker = Broker::start();
    let mut members =
        vec![Client::v5(&broker, "m1"), Client::v311(&broker, "m2"), Client::accepted(&broker, persistent("m3", true))];
    for member in &mut members {
        assert_eq!(member.subscribe("$share/g/work/#", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    }
    let mut publisher = Client::v5(&broker, "p");
    for number in 1..=30 {
        publisher.publish_acknowledged("work/x", &format!("{number}"), qos1(number));
    }
    let (mut seen, mut of_each) = (Vec::new(), [0; 3]);
    wait_for("all of them", || {
        for (member, own) in members.iter_mut().zip(&mut of_each) {
            while let Some(packet) = member.receive_within(Duration::from_millis(2)) {
                let Packet::Publish(message) = packet else {
                    panic!("PUBLISH expected");
                };
                member.send(&Packet::PubAck(Ack::success(message.delivery.packet_id().expect("QoS 1"))));
                seen.push(String::from_utf8_lossy(&message.payload).parse::<u16>().expect("a number"));
                *own += 1;
            }
        }
        seen.len() >= 30
    });
    members.iter_mut().for_each(Client::expect_nothing);
    assert!(of_each.iter().all(|&own| own >= 5), "spread over all: {of_each:?}");
    seen.sort_unstable();
    assert_eq!(seen, (1..=30).collect::<Vec<_>>());
}

/// P11: what a member did not acknowledge goes to another one.
#[test]
fn unacknowledged_shared_messages_go_to_another_member() {
    let broker = Broker::start();
    let mut leaver = Client::v5(&broker, "leaver");
    leaver.subscribe("$share/g/work", QoS::AtLeastOnce);
    let mut publisher = Client::v5(&broker, "p");
    for number in 1..=5 {
        publisher.publish_acknowledged("work", &format!("{number}"), qos1(number));
    }
    for _ in 0..5 {
        leaver.expect_publish();
    }
    let mut heir = Client::v5(&broker, "heir");
    heir.subscribe("$share/g/work", QoS::AtLeastOnce);
    drop(leaver);
    let payloads: Vec<_> = (0..5).map(|_| heir.take_publish().payload).collect();
    assert_eq!(payloads, ["1", "2", "3", "4", "5"]);
    heir.expect_nothing();
}
