//! Who waits, and who is let in, while memory is short or others answer nothing.

use super::*;
use crate::replicated::LaneAnswer;
use crate::router::lanes::DELAYED_UNANSWERED_MAX;

/// A publisher that has more to say than it may: once its bucket is empty it goes on with what comes in, part by part.
#[test]
fn a_publisher_under_a_rate_is_read_in_small_parts() {
    let mut settings = Settings::default();
    settings.session.publish_rate_max = 100;
    let settings = Arc::new(settings);
    let machine = Arc::new(ManualClock::new(1_000_000));
    let clock = Clock::manual(Arc::clone(&machine));
    let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
    let shared = Shared::new(Arc::clone(&settings), 1, submitter, Authority::default(), 1, None, clock);
    let shared = Arc::new(shared);
    let mut arbiter = SteppedArbiter::new(0, Arc::clone(&shared), Metrics::isolated().arbiter());
    let address = SocketAddr::from(([127, 0, 0, 1], 1883));
    let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &settings, address));
    assert_eq!(shared.try_open_connection(&listener, 1), Some(0));
    let (here, there) = MemoryStream::pair(1 << 20);
    arbiter.add_connection(there, listener, None);
    let mut client = Client::new(here, ProtocolVersion::V3_1_1);
    client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V3_1_1, "c".to_owned(), 0))));
    for _ in 0..300 {
        let delivery = Delivery::AtLeastOnce(client.packet_id());
        let properties = PublishProperties::default();
        let (topic, payload) = (String::from("t"), Bytes::new());
        client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    }
    while client.write(usize::MAX) {}
    let mut pubacks = || {
        arbiter.run();
        let mut read = [0; 4096];
        let puback = |bytes: &&[u8]| bytes[0] == 0x40;
        let count = client.stream.try_read(&mut read).map_or(0, |count| read[..count].chunks(4).filter(puback).count());
        machine.advance(crate::router::pace::RESUME_INTERVAL);
        arbiter.resume_paced();
        count
    };
    assert_eq!(pubacks(), 100, "what the bucket held");
    for part in 0..20 {
        assert_eq!(pubacks(), 5, "part {part}");
    }
}

/// Memory is short because of what waits for a subscriber: what it acknowledges is read, and so memory is short no more. Only
/// who publishes waits, and behind what it has said before it goes on by one read at a time.
///
/// Abuse: [queue-full]
#[test]
fn what_makes_queues_shorter_is_read_while_publishers_wait() {
    const MESSAGES: i64 = 20;
    let mut world = World::new(1);
    let slow = connect(ProtocolVersion::V5, "slow".to_owned(), 0);
    let properties = ConnectProperties { receive_maximum: NonZeroU16::new(1), ..ConnectProperties::default() };
    let mut slow = world.open(0, Connect { properties, ..slow });
    let mut publisher = world.open(1, connect(ProtocolVersion::V5, "publisher".to_owned(), 0));
    let mut bystander = world.open(0, connect(ProtocolVersion::V5, "bystander".to_owned(), 0));
    for client in [&mut slow, &mut publisher, &mut bystander] {
        assert_eq!(packets(client).len(), 1, "CONNACK");
    }
    let subscribe = subscribe_to(&mut slow, &["t"], QoS::AtLeastOnce);
    assert_eq!(say(&mut world, &mut slow, &subscribe).len(), 1, "SUBACK");
    for _ in 0..MESSAGES {
        let publish = publish_to(&mut publisher, "t", "x");
        assert!(say(&mut world, &mut publisher, &publish).iter().all(is_puback));
    }
    let queued = |world: &World| {
        let clients = world.arbiters[0].state.clients.iter();
        clients.filter_map(|(_, client)| Some(client.session.as_ref()?.outbound.backlog().queued_messages)).sum::<i64>()
    };
    assert_eq!(queued(&world), MESSAGES - 1);
    let mark = (MESSAGES as u64 - 1) * 1000 * 100 / 115;
    let watch = |world: &World| world.shared.pretend_memory(queued(world) as u64 * 1000, mark);
    watch(&world);
    assert_eq!(world.shared.memory_level(), 2);

    for acknowledged in [1, 0] {
        let publish = publish_to(&mut publisher, "u", "x");
        assert_eq!(say(&mut world, &mut publisher, &publish).len(), acknowledged);
    }
    for _ in 0..2 {
        assert_eq!(say(&mut world, &mut bystander, &Packet::PingReq), [Packet::PingResp]);
    }
    let connections = world.arbiters[0].state.connections();
    drop(bystander);
    world.arbiters[0].run();
    assert_eq!(world.arbiters[0].state.connections(), connections - 1, "the end of a stream is read");

    let mut unacknowledged = packets(&mut slow);
    for _ in 0..MESSAGES {
        let [Packet::Publish(publish)] = &unacknowledged[..] else { panic!("{unacknowledged:?}") };
        let id = publish.delivery.packet_id().expect("QoS 1");
        unacknowledged = say(&mut world, &mut slow, &Packet::PubAck(Ack::success(id)));
        watch(&world);
    }
    assert_eq!((queued(&world), world.shared.memory_level()), (0, 0));
    for _ in 0..3 {
        world.arbiters.iter_mut().for_each(SteppedArbiter::run);
    }
    assert!(matches!(packets(&mut publisher)[..], [Packet::PubAck(_)]), "it goes on");
}

/// Who is not read for others' sake and goes is gone after a while, or its subscriptions would keep the memory for whose sake it is not read.
///
/// Abuse: [memory]
#[test]
fn who_hangs_up_while_nobody_reads_it_does_not_stay() {
    let mut world = World::new(1);
    let mut watcher = world.open(0, connect(ProtocolVersion::V5, "watcher".to_owned(), 0));
    let will = Will {
        topic: "gone".to_owned(),
        payload: Bytes::new(),
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
    };
    let stays = world.open(0, connect(ProtocolVersion::V5, "stays".to_owned(), 0));
    let goes = world.open(0, Connect { will: Some(will), ..connect(ProtocolVersion::V5, "goes".to_owned(), 0) });
    let mut clients = [stays, goes];
    clients.iter_mut().chain([&mut watcher]).for_each(|client| assert_eq!(packets(client).len(), 1, "CONNACK"));
    let subscribe = subscribe_to(&mut watcher, &["gone"], QoS::AtMostOnce);
    assert_eq!(say(&mut world, &mut watcher, &subscribe).len(), 1, "SUBACK");

    world.shared.pretend_memory(115, 100);
    for client in &mut clients {
        for acknowledged in [1, 0] {
            let publish = publish_to(client, "u", "x");
            assert_eq!(say(&mut world, client, &publish).len(), acknowledged);
        }
    }
    let [mut stays, goes] = clients;
    drop(goes);
    let connections = |world: &World| world.arbiters[0].state.connections();
    // Memory is what it is pretended to be until the second is over.
    let pass = |world: &mut World, seconds: u32| {
        for _ in 0..seconds {
            world.machine.advance(Duration::from_secs(1));
            world.arbiters[0].state.read_clock();
            world.arbiters[0].state.end_hung_up();
            world.arbiters[0].run();
        }
    };
    pass(&mut world, 25);
    assert_eq!(connections(&world), 3, "there may be room again for what it said");
    pass(&mut world, 25);
    assert_eq!(connections(&world), 2);
    assert!(matches!(packets(&mut watcher)[..], [Packet::Publish(_)]), "its will");
    assert_eq!(packets(&mut stays), []);
    world.shared.pretend_memory(50, 100);
    world.pass(1000);
    for _ in 0..3 {
        world.arbiters.iter_mut().for_each(SteppedArbiter::run);
    }
    assert!(matches!(packets(&mut stays)[..], [Packet::PubAck(_)]), "who is still there goes on");
}

/// What waits for a client weighs the Subscription Identifiers that go with it, too: a client may have one for each of its filters.
/// What is on the wire needs none any more.
///
/// Abuse: [queue-full]
#[test]
fn what_waits_weighs_its_identifiers() {
    let mut world = World::new(1);
    let slow = connect(ProtocolVersion::V5, "slow".to_owned(), 0);
    let properties = ConnectProperties { receive_maximum: NonZeroU16::new(1), ..ConnectProperties::default() };
    let mut slow = world.open(0, Connect { properties, ..slow });
    let mut publisher = world.open(1, connect(ProtocolVersion::V5, "publisher".to_owned(), 0));
    for subscribe in subscribe_with_identifiers(&mut slow, QoS::AtLeastOnce) {
        say(&mut world, &mut slow, &subscribe);
    }
    let mut got = Vec::new();
    for _ in 0..3 {
        let publish = publish_to(&mut publisher, IDENTIFIED_TOPIC, "x");
        say(&mut world, &mut publisher, &publish);
    }
    let waiting = |world: &World| {
        let mut clients = world.arbiters[0].state.clients.iter().map(|(_, client)| client);
        let client = clients.find(|client| *client.client_id == *"slow").expect("it is there");
        let outbound = &client.session.as_ref().expect("it is connected").outbound;
        let in_flight = (1..100).filter_map(|id| outbound.in_flight_under(PacketId::new(id)?)?.1);
        let on_the_wire = in_flight.filter(|held| held.identifiers.is_some()).count();
        (outbound.queue_len(), outbound.queue_bytes() / (IDENTIFIED_FILTERS * size_of::<u32>()), on_the_wire)
    };
    for left in [2, 1, 0] {
        got.extend(packets(&mut slow));
        let Some(Packet::Publish(publish)) = got.pop() else { panic!("{got:?}") };
        assert_eq!(publish.properties.subscription_identifiers.len(), IDENTIFIED_FILTERS);
        let (messages, times_identifiers, on_the_wire) = waiting(&world);
        assert_eq!((messages, on_the_wire), (left, 0));
        assert!(times_identifiers >= left, "{times_identifiers}");
        let acknowledged = Ack::success(publish.delivery.packet_id().expect("QoS 1"));
        got = say(&mut world, &mut slow, &Packet::PubAck(acknowledged));
    }
}

/// While memory is short, some of those who may come for what waits for them are let in, and nobody else.
#[test]
fn owners_of_sessions_come_in_while_memory_is_short() {
    let mut world = World::new(1);
    let mut number = 0;
    let mut comes_in = |world: &mut World, clean_start: bool| {
        number += 1;
        let comes = connect(ProtocolVersion::V5, format!("c{number}"), 0);
        let mut client = world.open(0, Connect { clean_start, ..comes });
        match &packets(&mut client)[..] {
            [Packet::ConnAck(connack)] => connack.reason_code != ReasonCode::ServerBusy,
            other => panic!("{other:?}"),
        }
    };
    for used in [105, 115] {
        world.pass(1000);
        world.shared.pretend_memory(used, 100);
        assert!(!comes_in(&mut world, true));
        let let_in = (0..100).filter(|_| comes_in(&mut world, false)).count();
        assert_eq!(let_in, LET_IN_A_SECOND_MAX as usize, "{used}");
    }
    world.pass(1000);
    world.shared.pretend_memory(125, 100);
    assert!(!comes_in(&mut world, false), "others are closed");
    world.shared.pretend_memory(100, 100);
    assert!(comes_in(&mut world, true));
}

/// Who is not let in for who it is takes nobody's place.
///
/// Abuse: [memory]
#[test]
fn who_may_not_come_in_at_all_keeps_no_owner_of_a_session_out() {
    let mut world = World::new(1);
    let open_to_all = Arc::clone(&world.listener);
    let address = SocketAddr::from(([127, 0, 0, 1], 1883));
    let config = ListenerConfig { allow_anonymous: Some(false), ..ListenerConfig::default() };
    let closed = Arc::new(ListenerContext::new(config, &Settings::default(), address));
    world.pass(1000);
    world.shared.pretend_memory(105, 100);
    let comes = |world: &mut World, listener: &Arc<ListenerContext>, number: u32| {
        world.listener = Arc::clone(listener);
        let comes = connect(ProtocolVersion::V5, format!("c{number}"), 0);
        let mut client = world.open(0, Connect { clean_start: false, ..comes });
        match &packets(&mut client)[..] {
            [Packet::ConnAck(connack)] => connack.reason_code,
            other => panic!("{other:?}"),
        }
    };
    for number in 0..2 * LET_IN_A_SECOND_MAX {
        assert_eq!(comes(&mut world, &closed, number), ReasonCode::NotAuthorized);
    }
    assert_eq!(comes(&mut world, &open_to_all, u32::MAX), ReasonCode::Success);
}

/// Whoever has most waiting for it is closed where memory is very short, wherever it waits; one that has little is not.
///
/// Abuse: [stalled-subscriber]
#[test]
fn whoever_has_most_waiting_is_closed_first() {
    let mut world = World::new(1);
    let names = ["queued", "unwritten", "bystander", "publisher"];
    let mut clients = names.map(|name| {
        let connect = connect(ProtocolVersion::V5, name.to_owned(), 0);
        let receive_maximum = NonZeroU16::new(1).filter(|_| name == "queued");
        let properties = ConnectProperties { receive_maximum, ..ConnectProperties::default() };
        world.open(0, Connect { properties, ..connect })
    });
    for (at, filter, qos) in [(0, "q", QoS::AtLeastOnce), (1, "u", QoS::AtMostOnce), (2, "b", QoS::AtMostOnce)] {
        let subscribe = subscribe_to(&mut clients[at], &[filter], qos);
        say(&mut world, &mut clients[at], &subscribe);
    }
    let large: &'static str = "x".repeat(2000).leak();
    for (topic, count) in [("q", 100), ("u", 50), ("b", 5)] {
        for _ in 0..count {
            let publish = publish_to(&mut clients[3], topic, large);
            say(&mut world, &mut clients[3], &publish);
        }
    }
    let left = |world: &World| {
        let clients = world.arbiters[0].state.clients.iter().filter(|(_, client)| client.session.is_some());
        clients.map(|(_, client)| client.client_id.to_string()).collect::<Vec<_>>()
    };
    world.shared.memory_bytes_high_water.store(1, Ordering::Relaxed);
    for expected in [&names[1..], &names[2..], &names[2..]] {
        world.pass(1000);
        assert_eq!(left(&world), expected);
    }
}

/// Memory is short for what waits for a client that publishes as well: its acknowledgement stands behind what it publishes.
#[test]
fn an_acknowledgement_behind_a_publish_is_read_in_time() {
    let mut world = World::new(1);
    let both = connect(ProtocolVersion::V5, "both".to_owned(), 0);
    let properties = ConnectProperties { receive_maximum: NonZeroU16::new(1), ..ConnectProperties::default() };
    let mut both = world.open(1, Connect { properties, ..both });
    let mut publisher = world.open(0, connect(ProtocolVersion::V5, "publisher".to_owned(), 0));
    let subscribe = subscribe_to(&mut both, &["t"], QoS::AtLeastOnce);
    assert_eq!(say(&mut world, &mut both, &subscribe).len(), 2, "CONNACK, SUBACK");
    for _ in 0..3 {
        let publish = publish_to(&mut publisher, "t", "x");
        say(&mut world, &mut publisher, &publish);
    }
    let [Packet::Publish(first)] = &packets(&mut both)[..] else { panic!("one message") };
    let id = first.delivery.packet_id().expect("QoS 1");
    world.shared.pretend_memory(115, 100);
    let (publish, another) = (publish_to(&mut both, "u", "x"), publish_to(&mut both, "u", "x"));
    assert_eq!(say(&mut world, &mut both, &publish).len(), 1, "PUBACK");
    let publish = publish_to(&mut publisher, "u", "x");
    assert_eq!(say(&mut world, &mut publisher, &publish).len(), 1, "PUBACK");
    world.machine.advance(Duration::from_secs(1));
    // The other one looks at what memory there really is.
    world.arbiters[1].on_second();
    assert!(say(&mut world, &mut publisher, &publish).is_empty(), "it has nothing to acknowledge");
    both.send(&publish);
    both.send(&another);
    let heard = say(&mut world, &mut both, &Packet::PubAck(Ack::success(id)));
    assert!(matches!(heard[..], [Packet::PubAck(_)]), "one goes on: {heard:?}");
    world.machine.advance(Duration::from_secs(1));
    world.arbiters[1].on_second();
    world.arbiters[1].run();
    let heard = packets(&mut both);
    assert!(matches!(heard[..], [Packet::PubAck(_), Packet::Publish(_)]), "{heard:?}");
    assert_eq!(world.shared.memory_level(), 2);
}

/// A group remembers so many refusals of a lane and no more, and what stands behind them would not be heard: a resync of a new leader, say. Whoever
/// publishes delayed messages waits, and nobody else.
#[test]
fn delayed_messages_that_no_group_has_answered_are_bounded() {
    const MORE: usize = 100;
    let (mut arbiter, mut publisher, _) = client_of_several_nodes();
    let shared = Arc::clone(&arbiter.state.shared);
    let (mut bystander, connection) = another_claimant(&mut arbiter, "d");
    shared.inboxes[0].push(Opened::transient(connection, Arc::from("d")).into(), 0);
    arbiter.run();
    let held = |arbiter: &SteppedArbiter| arbiter.state.lanes.held().into_iter().sum::<u64>() as usize;
    let before = held(&arbiter);
    for _ in 0..DELAYED_UNANSWERED_MAX + MORE {
        let mut publish = publish_to(&mut publisher, "$delayed/60/t", "x");
        if let Packet::Publish(publish) = &mut publish {
            publish.delivery = Delivery::AtMostOnce;
        }
        publisher.send(&publish);
    }
    while publisher.write(usize::MAX) {
        arbiter.run();
    }
    assert_eq!(held(&arbiter) - before, DELAYED_UNANSWERED_MAX);
    let delayed = message_to("$delayed/60/t", QoS::AtLeastOnce);
    assert!(arbiter.state.holds_up(&delayed) && !arbiter.state.holds_up(&message_to("u", QoS::AtLeastOnce)));
    packets(&mut bystander);
    let publish = publish_to(&mut bystander, "u", "x");
    bystander.send(&publish);
    bystander.write(usize::MAX);
    arbiter.run();
    assert_eq!(packets(&mut bystander).len(), 1, "PUBACK");

    let number = (before + DELAYED_UNANSWERED_MAX) as u64;
    tell(&mut arbiter, Event::LaneAnswered(LaneAnswer { group: 0, number, refused: vec![] }));
    while publisher.write(usize::MAX) {
        arbiter.run();
    }
    assert_eq!(held(&arbiter), MORE);
}

/// P11: a shared message has a living member, and need not wait until a dead one's node is lost everywhere.
#[test]
fn shared_messages_go_to_no_dead_node() {
    let (mut arbiter, _, _) = client_of_several_nodes();
    let shared = Arc::clone(&arbiter.state.shared);
    let nodes = &shared.cluster.as_ref().expect("one of several").nodes;
    let [dead, living] = [2, 3].map(|node| nodes.indexed(PeerProcess { node, incarnation: 20 }));
    for node in [dead, living] {
        shared.index.set_node("$share/s/t", node, 0, NodeInterest { any: 1, ..NodeInterest::default() }.to_value());
    }
    tell(&mut arbiter, Event::NodeDead { node: dead.number });
    for qos in ANY_QOS.into_iter().cycle().take(12) {
        arbiter.state.route_message(&message_to("t", qos));
    }
    arbiter.run();
    let held: Vec<_> = arbiter.state.lanes.nodes.held().filter(|&(_, held)| held > 0).collect();
    assert_eq!(held, [(living.number, 12)]);
}

/// Of five nodes two died, and a group had both as voters: it answers nobody, and they are never lost. Whoever has something for
/// them waits; all others go on.
#[test]
fn who_answers_nothing_holds_up_only_those_who_have_something_for_it() {
    let (mut arbiter, mut publisher, _) = client_of_several_nodes();
    let shared = Arc::clone(&arbiter.state.shared);
    let (mut bystander, connection) = another_claimant(&mut arbiter, "d");
    shared.inboxes[0].push(Opened::transient(connection, Arc::from("d")).into(), 0);
    arbiter.run();
    let process = PeerProcess { node: 2, incarnation: 20 };
    let node = shared.cluster.as_ref().expect("one of several").nodes.indexed(process);
    let interest = NodeInterest { any: 1, ..NodeInterest::default() };
    shared.index.set_node("t", node, 0, interest.to_value());
    let say = |arbiter: &mut SteppedArbiter, client: &mut Client, packet: Packet| {
        client.send(&packet);
        client.write(usize::MAX);
        arbiter.run();
        packets(client).len()
    };
    assert_eq!([packets(&mut publisher).len(), packets(&mut bystander).len()], [1, 1], "CONNACK");
    let held = |arbiter: &SteppedArbiter| arbiter.state.lanes.nodes.held().map(|(_, held)| held).sum::<u64>();

    let large = Arc::new(Message {
        identity: MessageIdentity::default(),
        topic: Arc::from("t"),
        payload: Bytes::from(vec![0; 8 * 1024 * 1024]),
        qos: QoS::AtLeastOnce,
        retain: false,
        publisher: Arc::from(""),
        properties: None,
        expires_at_ms: None,
    });
    arbiter.state.route_message(&large);
    arbiter.run();
    assert!(arbiter.state.is_overloaded(), "it may just be slow");
    (0..4).for_each(|_| arbiter.on_second());
    assert!(!arbiter.state.is_overloaded());
    for under_way in [2, 2] {
        let publish = publish_to(&mut publisher, "t", "x");
        assert_eq!(say(&mut arbiter, &mut publisher, publish), 0);
        assert_eq!(held(&arbiter), under_way, "one, and then it waits");
        arbiter.on_second();
    }
    for _ in 0..3 {
        let publish = publish_to(&mut bystander, "u", "x");
        assert_eq!(say(&mut arbiter, &mut bystander, publish), 1, "PUBACK");
    }
    shared.inboxes[0].push(Event::NodeLost { node: node.number }, 0);
    arbiter.run();
    assert_eq!(packets(&mut publisher).len(), 2, "PUBACK of both");
}

/// Whom nobody can keep waiting is refused where a client would not be read any more.
///
/// Abuse: [memory]
#[test]
fn what_an_operator_publishes_is_refused_where_a_client_would_be_held_up() {
    let (mut arbiter, ..) = client_of_several_nodes();
    let shared = Arc::clone(&arbiter.state.shared);
    let nodes = &shared.cluster.as_ref().expect("one of several").nodes;
    let [silent, other] = [2, 3].map(|node| nodes.indexed(PeerProcess { node, incarnation: node * 10 }));
    let interest = NodeInterest { any: 1, ..NodeInterest::default() };
    shared.index.set_node("t", silent, 0, interest.to_value());
    shared.index.set_node("$share/g/s", silent, 0, interest.to_value());
    shared.index.set_node("$share/h/o", other, 0, interest.to_value());
    let message = |topic: &str, qos, bytes| Message {
        identity: MessageIdentity::default(),
        topic: Arc::from(topic),
        payload: Bytes::from(vec![0; bytes]),
        qos,
        retain: false,
        publisher: Arc::from(""),
        properties: None,
        expires_at_ms: None,
    };
    let held_up = |arbiter: &SteppedArbiter| {
        let of = |(topic, qos)| arbiter.state.holds_up(&message(topic, qos, 1));
        [
            ("t", QoS::AtLeastOnce),
            ("s", QoS::AtLeastOnce),
            ("o", QoS::AtLeastOnce),
            ("u", QoS::ExactlyOnce),
            ("t", QoS::AtMostOnce),
        ]
        .map(of)
    };
    assert_eq!(held_up(&arbiter), [false; 5]);
    arbiter.state.route_message(&Arc::new(message("t", QoS::AtLeastOnce, 8 * 1024 * 1024)));
    arbiter.run();
    assert_eq!(held_up(&arbiter), [true; 5], "it may answer: all wait");
    (0..4).for_each(|_| arbiter.on_second());
    assert_eq!(held_up(&arbiter), [true, true, false, false, false], "what is for it: QoS 0 is dropped");
    let picked_before = held_up(&arbiter);
    assert_eq!(picked_before, held_up(&arbiter), "it is nobody's turn for that");
    shared.pretend_memory(111, 100);
    assert_eq!(held_up(&arbiter), [true; 5]);
    shared.pretend_memory(110, 100);
    assert_eq!(held_up(&arbiter)[2..], [false; 3]);
    let pushed = |arbiter: &SteppedArbiter| arbiter.state.lanes.nodes.held().map(|(_, held)| held).sum::<u64>();
    assert_eq!(pushed(&arbiter), 1, "looking changes nothing");
}

/// What is kept, or delayed, goes to the group of its topic, whoever wants it.
#[test]
fn what_an_operator_has_kept_is_refused_while_its_group_answers_nothing() {
    let (mut arbiter, ..) = client_of_several_nodes();
    let message = |topic: &str, retain, bytes| Message {
        identity: MessageIdentity::default(),
        topic: Arc::from(topic),
        payload: Bytes::from(vec![0; bytes]),
        qos: QoS::AtMostOnce,
        retain,
        publisher: Arc::from(""),
        properties: None,
        expires_at_ms: None,
    };
    arbiter.state.route_message(&Arc::new(message("t", true, 8 * 1024 * 1024)));
    arbiter.run();
    (0..6).for_each(|_| arbiter.on_second());
    let held_up = |topic: &str, retain| arbiter.state.holds_up(&message(topic, retain, 1));
    assert!(held_up("t", true) && held_up("$delayed/5/t", false) && !held_up("t", false));
}

/// A group's answers are awaited for what a lane has, which is bounded by its bytes: looked at between turns. In each of them a client that has a
/// Client Identifier of 64 KiB could put so much more into it with each packet of a few bytes.
#[test]
fn a_long_client_identifier_fills_no_lane_in_one_turn() {
    const PUBLISHED: usize = 300;
    let client_id = "c".repeat(60_000);
    let settings = Settings::default();
    let asked = Connect { clean_start: true, ..connect(ProtocolVersion::V5, client_id.clone(), 0) };
    let (mut arbiter, mut client, connection) = claimant(settings, Authority::default(), asked);
    while client.write(usize::MAX) {
        arbiter.run();
    }
    let opened = Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, Arc::from(&*client_id)) };
    tell(&mut arbiter, opened.into());
    assert!(matches!(packets(&mut client)[..], [Packet::ConnAck(_)]));
    let held = |arbiter: &SteppedArbiter| arbiter.state.lanes.held().into_iter().sum::<u64>() as usize;
    let before = held(&arbiter);
    for _ in 0..PUBLISHED {
        let delivery = Delivery::ExactlyOnce(client.packet_id());
        let properties = PublishProperties::default();
        let (topic, payload) = ("t".to_owned(), Bytes::new());
        client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    }
    client.write(usize::MAX);
    arbiter.run();
    let bytes = (held(&arbiter) - before) * 2 * client_id.len();
    assert!(
        bytes > 0 && bytes < 16 * 1024 * 1024,
        "{bytes} bytes, and no more than the lane may have and a turn puts there"
    );
}
