//! What waits behind retained messages that are still read.

use super::*;

/// [MQTT-3.10.4-2] lets what was under way come: a message that waited for the retained ones of a subscription does not wait for
/// ever when that is gone, and nothing that comes later by another one gets past it.
#[test]
fn what_waited_behind_retained_messages_comes_when_their_subscription_ends() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let (packet_id, filters) = (client.packet_id(), vec![("t".to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))]);
    let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
    client.send(&Packet::Subscribe(subscribe));
    let (topic, payload, properties) = ("t".to_owned(), Bytes::from("live"), PublishProperties::default());
    let delivery = Delivery::AtMostOnce;
    client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    client.write(usize::MAX);
    arbiter.run();
    all_hear(&mut arbiter);
    let came = |client: &mut Client| read_all(client).windows(4).any(|window| window == b"live");
    assert!(!came(&mut client), "no group has said what is retained");

    let (packet_id, filters) = (client.packet_id(), vec!["t".to_owned()]);
    client.send(&Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] }));
    client.write(usize::MAX);
    arbiter.run();
    assert!(came(&mut client));
}

/// P5: a subscription that is taken anew, and wants nothing retained this time, holds nothing back any more: what waits for
/// another one comes once that has ended, before what is published then.
#[test]
fn who_wants_nothing_retained_any_more_holds_nothing_back() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut say = |client: &mut Client, packet: &Packet| {
        client.send(packet);
        client.write(usize::MAX);
        arbiter.run();
        all_hear(&mut arbiter);
        let received = packets(client).into_iter();
        let payloads = received.filter_map(|packet| match packet {
            Packet::Publish(publish) => Some(publish.payload),
            _ => None,
        });
        payloads.collect::<Vec<_>>()
    };
    let publish = |payload: &'static str| {
        let (topic, payload, properties) = ("t".to_owned(), Bytes::from(payload), PublishProperties::default());
        Packet::Publish(Publish {
            dup: false,
            delivery: Delivery::AtMostOnce,
            retain: false,
            topic,
            properties,
            payload,
        })
    };
    let all = subscribe_to(&mut client, &["t", "+", "x/#"], QoS::AtMostOnce);
    say(&mut client, &all);
    let options =
        SubscriptionOptions { retain_handling: RetainHandling::Never, ..SubscriptionOptions::new(QoS::AtMostOnce) };
    let (packet_id, filters) = (client.packet_id(), vec![("t".to_owned(), options)]);
    let anew = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
    say(&mut client, &Packet::Subscribe(anew));
    assert_eq!(say(&mut client, &publish("older")).len(), 0, "no group has said what is retained for +");

    let (packet_id, filters) = (client.packet_id(), vec!["+".to_owned()]);
    let mut received =
        say(&mut client, &Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] }));
    received.extend(say(&mut client, &publish("newer")));
    assert_eq!(received, ["older", "newer"]);
}

/// P5: the read of one subscription is over, and what it held back waits for that of another. Subscribed to anew without retained
/// messages, the first one lets nothing past that (found by simulation, seed 13885).
#[test]
fn what_waits_behind_retained_messages_is_not_overtaken_when_its_subscription_is_renewed() {
    let mut world = World::new(1);
    world.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
    assert_eq!(packets(&mut client).len(), 1, "CONNACK");
    let connection = world.arbiters[0].state.keys()[0];
    let subscribe = |world: &mut World, client: &mut Client, filter: &str, retain_handling| {
        let options = SubscriptionOptions { retain_handling, ..SubscriptionOptions::new(QoS::AtMostOnce) };
        let (packet_id, filters) = (client.packet_id(), vec![(filter.to_owned(), options)]);
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        let heard = say(world, client, &Packet::Subscribe(subscribe));
        assert!(matches!(heard[..], [Packet::SubAck(_)]), "{heard:?}");
        // Of the read, if one began.
        world.arbiters[0].state.message_number
    };
    let publish = |world: &mut World, client: &mut Client, payload| {
        let publish = publish_to(client, "t", payload);
        assert!(matches!(say(world, client, &publish)[..], [Packet::PubAck(_)]), "{payload} waits");
    };
    let end_read = |world: &mut World, client: &mut Client, filter, number| -> Vec<Bytes> {
        let group = world.shared.submitter.slots().group_of(filter);
        let asked = RetainedCursor { group, after: None };
        let page = RetainedPage { connection, number, asked, messages: vec![], next: None };
        world.shared.inboxes[0].push(Event::RetainedPage(page), 0);
        world.arbiters[0].run();
        let payload = |packet| match packet {
            Packet::Publish(publish) => publish.payload,
            other => panic!("{other:?}"),
        };
        packets(client).into_iter().map(payload).collect()
    };
    let first = subscribe(&mut world, &mut client, "t", RetainHandling::Always);
    let other = subscribe(&mut world, &mut client, "u", RetainHandling::Always);
    publish(&mut world, &mut client, "older");
    assert_eq!(end_read(&mut world, &mut client, "t", first), [""; 0], "that of the other goes on");
    subscribe(&mut world, &mut client, "t", RetainHandling::IfNew);
    publish(&mut world, &mut client, "newer");
    assert_eq!(end_read(&mut world, &mut client, "u", other), ["older", "newer"]);
}

/// P6: a SUBSCRIBE begins to hold live messages back for one filter, and ends the only read that is under way by another (found by
/// simulation, seed 8137).
#[test]
fn what_a_filter_holds_back_is_not_let_go_by_another_one_of_the_same_packet() {
    let mut world = World::new(1);
    world.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
    assert_eq!(packets(&mut client).len(), 1, "CONNACK");
    let mut subscribe = |filters: &[(&str, RetainHandling)]| {
        let options =
            |retain_handling| SubscriptionOptions { retain_handling, ..SubscriptionOptions::new(QoS::AtMostOnce) };
        let filters = filters.iter().map(|&(filter, handling)| (filter.to_owned(), options(handling))).collect();
        let packet_id = client.packet_id();
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        let heard = say(&mut world, &mut client, &Packet::Subscribe(subscribe));
        assert!(matches!(heard[..], [Packet::SubAck(_)]), "{heard:?}");
    };
    subscribe(&[("u", RetainHandling::Always)]);
    subscribe(&[("t", RetainHandling::Always), ("u", RetainHandling::Never)]);
    let live = publish_to(&mut client, "t", "live");
    let heard = say(&mut world, &mut client, &live);
    assert!(matches!(heard[..], [Packet::PubAck(_)]), "no group has said what is retained: {heard:?}");
}

/// [MQTT-3.3.2-6]: the interval that is sent is never more than the one that came.
#[test]
fn a_message_that_came_with_no_time_to_live_is_delivered_at_once_and_says_so() {
    let mut world = World::new(1);
    let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
    assert_eq!(packets(&mut client).len(), 1, "CONNACK");
    let subscribe = subscribe_to(&mut client, &["t"], QoS::AtLeastOnce);
    assert_eq!(say(&mut world, &mut client, &subscribe).len(), 1, "SUBACK");
    for seconds in [None, Some(0), Some(1), Some(60)] {
        for delivery in [Delivery::AtMostOnce, Delivery::AtLeastOnce(client.packet_id())] {
            let properties = PublishProperties { message_expiry_interval: seconds, ..PublishProperties::default() };
            let (topic, payload) = ("t".to_owned(), Bytes::from("p"));
            let publish = Publish { dup: false, delivery, retain: false, topic, properties, payload };
            let heard = say(&mut world, &mut client, &Packet::Publish(publish));
            let interval = |packet| match packet {
                Packet::Publish(publish) => Some(publish.properties.message_expiry_interval),
                _ => None,
            };
            assert_eq!(heard.into_iter().filter_map(interval).collect::<Vec<_>>(), [seconds]);
        }
    }
}

/// P10 [MQTT-3.3.2-5]: what expires while retained messages are read does not come behind them (found by simulation, seed 4031).
#[test]
fn what_expires_behind_retained_messages_is_dropped() {
    let mut world = World::new(1);
    world.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
    assert_eq!(packets(&mut client).len(), 1, "CONNACK");
    for (qos, delivery) in
        [(QoS::AtMostOnce, Delivery::AtMostOnce), (QoS::AtLeastOnce, Delivery::AtLeastOnce(client.packet_id()))]
    {
        let subscribe = subscribe_to(&mut client, &["t"], qos);
        assert_eq!(say(&mut world, &mut client, &subscribe).len(), 1, "SUBACK");
        for (payload, seconds) in [("gone", Some(1)), ("kept", Some(60)), ("for ever", None)] {
            let properties = PublishProperties { message_expiry_interval: seconds, ..PublishProperties::default() };
            let (topic, payload) = ("t".to_owned(), Bytes::from(payload));
            let publish = Publish { dup: false, delivery, retain: false, topic, properties, payload };
            say(&mut world, &mut client, &Packet::Publish(publish));
        }
        world.pass(2_000);
        let packet_id = client.packet_id();
        let filters = vec!["t".to_owned()];
        let unsubscribe = Unsubscribe { packet_id, filters, user_properties: vec![] };
        let heard = say(&mut world, &mut client, &Packet::Unsubscribe(unsubscribe));
        let payload = |packet| match packet {
            Packet::Publish(publish) => Some(publish.payload),
            _ => None,
        };
        assert_eq!(heard.into_iter().filter_map(payload).collect::<Vec<_>>(), ["kept", "for ever"]);
        let dropped = &world.arbiters[0].state.counters.messages_dropped;
        assert_eq!(dropped.unflushed(crate::metrics::DropReason::Expired), 1);
    }
}

/// What waits behind retained messages is bounded in bytes as the queue is: what finds no room is dropped, and counted.
///
/// Abuse: [queue-full]
#[test]
fn what_waits_behind_retained_messages_is_bounded_in_bytes() {
    const MESSAGES: usize = 20;
    const PAYLOAD_BYTES: usize = 1000;
    let mut settings = Settings::default();
    settings.session.queue_bytes_max = 10 * PAYLOAD_BYTES as u64;
    let (mut arbiter, mut client, connection) = claimant_by(settings);
    grant(&mut arbiter, connection);
    arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let subscribe = subscribe_to(&mut client, &["t"], QoS::AtMostOnce);
    client.send(&subscribe);
    let publish = Publish {
        dup: false,
        delivery: Delivery::AtMostOnce,
        retain: false,
        topic: "t".to_owned(),
        properties: PublishProperties::default(),
        payload: vec![0; PAYLOAD_BYTES].into(),
    };
    (0..MESSAGES).for_each(|_| client.send(&Packet::Publish(publish.clone())));
    let mut received = Vec::new();
    let mut work = |arbiter: &mut SteppedArbiter, client: &mut Client| {
        for _ in 0..100 {
            client.write(usize::MAX);
            arbiter.run();
            all_hear(arbiter);
            received.extend(packets(client));
        }
        received.iter().filter(|packet| matches!(packet, Packet::Publish(_))).count()
    };
    assert_eq!(work(&mut arbiter, &mut client), 0, "no group has said what is retained");
    let held_bytes = |arbiter: &mut SteppedArbiter| {
        let session = arbiter.state.client(connection).and_then(|client| client.session.as_ref());
        session.map(|session| session.reads.held_bytes()).expect("it is there")
    };
    let held = held_bytes(&mut arbiter);
    assert!((8 * PAYLOAD_BYTES..=10 * PAYLOAD_BYTES).contains(&held), "{held}");
    let (packet_id, filters) = (client.packet_id(), vec!["t".to_owned()]);
    client.send(&Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] }));
    let received = work(&mut arbiter, &mut client);
    assert!((8..10).contains(&received), "{received}");
    assert_eq!(held_bytes(&mut arbiter), 0);
}

/// So are the identifiers of what waits there.
///
/// Abuse: [queue-full]
#[test]
fn what_waits_behind_retained_messages_weighs_its_identifiers() {
    let (mut arbiter, mut client, connection) = claimant_of_several_nodes();
    grant(&mut arbiter, connection);
    arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut packets = subscribe_with_identifiers(&mut client, QoS::AtMostOnce);
    packets.push(Packet::Publish(Publish {
        dup: false,
        delivery: Delivery::AtMostOnce,
        retain: false,
        topic: IDENTIFIED_TOPIC.to_owned(),
        properties: PublishProperties::default(),
        payload: Bytes::from_static(b"x"),
    }));
    for packet in packets {
        client.send(&packet);
        while !client.to_write.is_empty() {
            client.write(usize::MAX);
            arbiter.run();
            all_hear(&mut arbiter);
            read_all(&mut client);
        }
    }
    let session = arbiter.state.client(connection).and_then(|client| client.session.as_ref());
    let held = session.map(|session| session.reads.held_bytes()).expect("it is there");
    assert!(held >= IDENTIFIED_FILTERS * size_of::<u32>(), "{held}");
}

/// P6: what only begins like the broker's own topics is kept by a group, and read there.
#[test]
fn retained_messages_of_what_begins_like_sys_are_asked_for() {
    for (filter, is_asked) in [("$SYSTEM/x", true), ("$SYS/x", false), ("$SYS", false)] {
        let mut world = World::new(1);
        world.shared.retained_possible.store(true, Ordering::Relaxed);
        let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
        let subscribe = subscribe_to(&mut client, &[filter], QoS::AtMostOnce);
        assert_eq!(say(&mut world, &mut client, &subscribe).len(), 2, "CONNACK and SUBACK");
        let mut sessions = world.arbiters[0].state.clients.iter().filter_map(|(_, client)| client.session.as_ref());
        assert_eq!(sessions.next().map(|session| session.reads.is_under_way()), Some(is_asked), "{filter}");
    }
}

/// One of 0 lasts to the end of its second, by whichever arbiter its subscriber is served, and however long the way there takes.
#[test]
fn a_message_that_came_with_no_time_to_live_is_not_over_on_its_way() {
    let mut world = World::new(1);
    let mut clients = [0, 1].map(|at| world.open(at, connect(ProtocolVersion::V5, format!("c{at}"), 0)));
    let [publisher, subscriber] = &mut clients;
    assert_eq!(packets(publisher).len(), 1, "CONNACK");
    let subscribe = subscribe_to(subscriber, &["t"], QoS::AtLeastOnce);
    assert_eq!(say(&mut world, subscriber, &subscribe).len(), 2, "CONNACK and SUBACK");
    for delivery in [Delivery::AtMostOnce, Delivery::AtLeastOnce(publisher.packet_id())] {
        let properties = PublishProperties { message_expiry_interval: Some(0), ..PublishProperties::default() };
        let (topic, payload) = ("t".to_owned(), Bytes::from("p"));
        publisher.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
        publisher.write(usize::MAX);
        world.arbiters[0].run();
        assert_eq!(packets(subscriber), []);
        world.pass(500);
        world.arbiters[1].run();
        let interval = |packet| match packet {
            Packet::Publish(publish) => publish.properties.message_expiry_interval,
            other => panic!("{other:?}"),
        };
        assert_eq!(packets(subscriber).into_iter().map(interval).collect::<Vec<_>>(), [Some(0)]);
    }
}
