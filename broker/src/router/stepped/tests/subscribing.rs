//! SUBSCRIBE and its answers, and the interest that other nodes hear of.

use super::*;
use crate::replicated::UnsubscribedPersistent;

/// A connection with these subscriptions ends: what other nodes are to hear of it.
fn interest_that_ends(filters: &[String]) -> Vec<(Box<str>, InterestKind, bool)> {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let filters = filters.iter().map(|filter| (filter.clone(), SubscriptionOptions::new(QoS::AtMostOnce)));
    let packet_id = client.packet_id();
    let filters = filters.collect();
    let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
    client.send(&Packet::Subscribe(subscribe));
    client.write(usize::MAX);
    arbiter.run();
    drop(client);
    // The connection's task, and not yet the flush, which hands the changes on.
    assert!(arbiter.step(0));
    arbiter.state.interest.filters.clone()
}

#[test]
fn the_interest_that_ends_with_a_connection_is_told_in_the_order_of_the_filters() {
    let filters: Vec<_> = (10..50).map(|number| format!("t/{number}")).collect();
    let expected: Vec<_> =
        filters.iter().map(|filter| (Box::from(filter.as_str()), InterestKind::Any, false)).collect();
    assert_eq!(interest_that_ends(&filters), expected);
}

/// P2, P4: of a SUBSCRIBE that it had not heard of a new leader is told again, behind a later one that it had. That one stands
/// (found by simulation, seed 6735).
#[test]
fn the_answer_to_an_earlier_subscribe_undoes_no_later_one() {
    let (mut arbiter, mut client, connection) = claimant_of_several_nodes();
    let opened = Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, Arc::from("c")) };
    arbiter.state.shared.inboxes[0].push(opened.into(), 0);
    arbiter.run();
    let asked = [QoS::AtMostOnce, QoS::AtLeastOnce].map(|qos| {
        let packet_id = client.packet_id();
        let filters = vec![("t".to_owned(), SubscriptionOptions::new(qos))];
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        client.send(&Packet::Subscribe(subscribe));
        (packet_id, SubscriptionOptions::new(qos))
    });
    client.write(usize::MAX);
    arbiter.run();
    let served = arbiter.state.served(connection).expect("it is served");
    let tickets: Vec<_> = served.unanswered.iter().map(|&(ticket, _)| ticket).collect();
    for ((packet_id, options), &ticket) in asked.into_iter().zip(&tickets).rev() {
        let (filter, reason) = ("t".to_owned(), ReasonCode::Success);
        let outcomes = vec![SubscribeOutcome { filter, reason, options, identifier: None, read: None }];
        let subscribed = SubscribedPersistent { connection, epoch: 1, packet_id, ticket, outcomes };
        arbiter.state.shared.inboxes[0].push(Event::Subscribed(subscribed), 0);
        arbiter.run();
    }
    let session = arbiter.state.client(connection).and_then(|client| client.session.as_ref());
    let standing = session.and_then(|session| session.subscriptions.get("t")).expect("a subscription");
    assert_eq!(standing.options.qos, QoS::AtLeastOnce);
    let served = arbiter.state.served(connection).expect("it is served");
    assert!(served.unanswered.is_empty(), "both are answered");
}

/// While some node does not answer, what waits for it ends with its connection, and a client that says SUBSCRIBE again and again
/// is not read.
#[test]
fn subscribes_that_not_every_node_has_heard_of_are_so_many_for_a_connection_and_go_with_it() {
    const SUBSCRIBES: usize = 1000;
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    for _ in 0..SUBSCRIBES {
        let subscribe = subscribe_to(&mut client, &["t"], QoS::AtMostOnce);
        client.send(&subscribe);
    }
    let mut subacks = 0;
    let mut work = |arbiter: &mut SteppedArbiter, client: &mut Client| {
        for _ in 0..50 {
            client.write(usize::MAX);
            arbiter.run();
            subacks += packets(client).iter().filter(|packet| matches!(packet, Packet::SubAck(_))).count();
        }
        subacks
    };
    let mut answered = 0;
    while answered < SUBSCRIBES {
        assert_eq!(work(&mut arbiter, &mut client), answered, "no node has heard of more");
        let waiting = arbiter.state.barriers.len();
        assert_eq!(waiting, ASKED_MAX.min(SUBSCRIBES - answered), "the rest is not read");
        let (&ticket, _) = arbiter.state.barriers.last_key_value().expect("some wait");
        arbiter.state.shared.inboxes[0].push(Event::Barrier { ticket }, 0);
        answered += waiting;
        arbiter.run();
        assert!(arbiter.state.barriers.len() <= ASKED_MAX);
    }
    assert_eq!(work(&mut arbiter, &mut client), SUBSCRIBES);

    let subscribe = subscribe_to(&mut client, &["t"], QoS::AtMostOnce);
    client.send(&subscribe);
    client.write(usize::MAX);
    arbiter.run();
    assert_eq!(arbiter.state.barriers.len(), 1);
    drop(client);
    arbiter.run();
    assert_eq!(arbiter.state.barriers.len(), 0, "nobody waits for it");
}

/// A node that is back lets go of all who waited for it: others have their turn between them.
#[test]
fn subacks_that_waited_for_a_node_leave_by_turns() {
    let (mut arbiter, _client, key) = client_of_several_nodes();
    let waiting = SUBACKS_A_TURN_MAX as u64 * 3;
    arbiter.state.barriers = (1..=waiting).map(|ticket| (ticket, key)).collect();
    arbiter.state.on_barrier(waiting - 10);
    assert_eq!(arbiter.state.barriers.len(), SUBACKS_A_TURN_MAX * 2);
    arbiter.run();
    assert!(arbiter.state.barriers.into_keys().eq(waiting - 9..=waiting), "no more than are due");
}

/// Nor have its filters more bytes together, whatever is asked for at once. What is taken back makes room.
///
/// Abuse: [memory]
#[test]
fn the_bytes_of_filters_are_bounded_in_one_packet_and_in_several_at_once() {
    let mut settings = Settings::default();
    settings.session.subscription_bytes_max = 6;
    let (mut arbiter, mut client, connection) = claimant_by(settings.clone());
    grant(&mut arbiter, connection);
    let mut ask = |arbiter: &mut SteppedArbiter, packet: &dyn Fn(&mut Client) -> Packet| {
        let packet = packet(&mut client);
        client.send(&packet);
        client.write(usize::MAX);
        arbiter.run();
        let session = arbiter.state.client(connection).and_then(|client| client.session.as_ref()).expect("connected");
        assert_eq!(session.filter_bytes, session.subscriptions.keys().map(|filter| filter.len()).sum::<usize>());
        session
            .subscriptions
            .keys()
            .map(|filter| filter.to_string())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    let subscribe =
        |filters: &'static [&'static str]| move |client: &mut Client| subscribe_to(client, filters, QoS::AtMostOnce);
    assert_eq!(ask(&mut arbiter, &subscribe(&["aaa", "bbbb", "cc", "d", "ee"])), ["aaa", "cc", "d"]);
    assert_eq!(ask(&mut arbiter, &subscribe(&["aaa", "f"])), ["aaa", "cc", "d"], "what it has it may ask for");
    let unsubscribe = |client: &mut Client| {
        let (packet_id, filters) = (client.packet_id(), vec!["aaa".to_owned()]);
        Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] })
    };
    assert_eq!(ask(&mut arbiter, &unsubscribe), ["cc", "d"]);
    assert_eq!(ask(&mut arbiter, &subscribe(&["bbbb", "ggg"])), ["cc", "d", "ggg"]);

    // The group of a persistent session has not answered yet.
    let (mut arbiter, mut client, connection) = claimant_by(settings);
    let opened = Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, Arc::from("c")) };
    arbiter.state.shared.inboxes[0].push(opened.into(), 0);
    arbiter.run();
    for (filters, refused) in [(["aaa", "bbb"], false), (["c", "d"], true)] {
        let subscribe = subscribe_to(&mut client, &filters, QoS::AtLeastOnce);
        client.send(&subscribe);
        client.write(usize::MAX);
        arbiter.run();
        let served = arbiter.state.served(connection).expect("it is served");
        let Some((_, SessionCommand::Subscribe(asked))) = served.unanswered.back() else {
            panic!("it was asked for");
        };
        assert!(asked.filters.iter().all(|filter| filter.refused.is_some() == refused), "{asked:?}");
    }
}

/// A session has no more subscriptions than it may, whether it asks for them in one packet or in several at once.
#[test]
fn subscriptions_are_bounded_in_one_packet_and_in_several_at_once() {
    let mut settings = Settings::default();
    settings.session.subscriptions_max = 2;
    let (mut arbiter, mut client, connection) = claimant_by(settings.clone());
    grant(&mut arbiter, connection);
    let filters = |arbiter: &mut SteppedArbiter| {
        let session = arbiter.state.client(connection).and_then(|client| client.session.as_ref());
        let filters = session.into_iter().flat_map(|session| session.subscriptions.keys());
        filters.map(|filter| filter.to_string()).collect::<BTreeSet<_>>()
    };
    let subscribe = subscribe_to(&mut client, &["a", "a", "b", "c", "d"], QoS::AtMostOnce);
    client.send(&subscribe);
    client.write(usize::MAX);
    arbiter.run();
    assert_eq!(filters(&mut arbiter), BTreeSet::from(["a".to_owned(), "b".to_owned()]));

    // The group of a persistent session has not answered yet.
    let (mut arbiter, mut client, connection) = claimant_by(settings);
    let opened = Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, Arc::from("c")) };
    arbiter.state.shared.inboxes[0].push(opened.into(), 0);
    arbiter.run();
    let mut ask = |arbiter: &mut SteppedArbiter, filter: &str| {
        let subscribe = subscribe_to(&mut client, &[filter], QoS::AtLeastOnce);
        client.send(&subscribe);
        client.write(usize::MAX);
        arbiter.run();
        let served = arbiter.state.served(connection).expect("it is served");
        let Some((ticket, SessionCommand::Subscribe(asked))) = served.unanswered.back() else {
            panic!("it was asked for");
        };
        (*ticket, asked.clone())
    };
    let mut is_refused = |arbiter: &mut SteppedArbiter, filter: &str| {
        let (ticket, asked) = ask(arbiter, filter);
        (asked.filters[0].refused == Some(ReasonCode::QuotaExceeded as u32), ticket)
    };
    let (_, first) = is_refused(&mut arbiter, "a");
    let refused = ["b", "a", "c"].map(|filter| is_refused(&mut arbiter, filter).0);
    assert_eq!(refused, [false, false, true]);
    // The group grants one of them and refuses the other: there is room for one more.
    let outcome = |filter: &str, reason| SubscribeOutcome {
        filter: filter.to_owned(),
        reason,
        options: SubscriptionOptions::new(QoS::AtLeastOnce),
        identifier: None,
        read: None,
    };
    let outcomes = vec![outcome("a", ReasonCode::GrantedQos1), outcome("b", ReasonCode::UnspecifiedError)];
    let subscribed = SubscribedPersistent { connection, epoch: 1, packet_id: PacketId::MIN, ticket: first, outcomes };
    arbiter.state.shared.inboxes[0].push(Event::Subscribed(subscribed), 0);
    arbiter.run();
    assert_eq!(["c", "d"].map(|filter| is_refused(&mut arbiter, filter).0), [false, true]);
}

/// What a client hears: each packet by its kind, and of a PUBLISH what it says.
fn heard(client: &mut Client) -> Vec<String> {
    let name = |packet: Packet| match packet {
        Packet::SubAck(_) => "SUBACK".to_owned(),
        Packet::UnsubAck(_) => "UNSUBACK".to_owned(),
        Packet::PubAck(_) => "PUBACK".to_owned(),
        Packet::PubRec(_) => "PUBREC".to_owned(),
        Packet::PingResp => "PINGRESP".to_owned(),
        Packet::Publish(publish) => String::from_utf8_lossy(&publish.payload).into_owned(),
        other => panic!("{other:?}"),
    };
    packets(client).into_iter().map(name).collect()
}

/// A connected client of one of several nodes, whose only group the test plays.
struct Asker {
    machine: Arc<ManualClock>,
    arbiter: SteppedArbiter,
    client: Client,
    connection: ConnectionKey,
}

impl Asker {
    fn new(is_persistent: bool, keep_alive: u16) -> Self {
        let machine = Arc::new(ManualClock::new(0));
        let connect = connect(ProtocolVersion::V5, "c".to_owned(), keep_alive);
        let (peers, settings) = (Arc::new(NoPeers), Settings::default());
        let (mut arbiter, mut client, connection) =
            claimant_at(&machine, peers, settings, Authority::default(), connect);
        let opened = Opened::transient(connection, Arc::from("c"));
        let opened = if is_persistent { Opened { epoch: 1, group: Some(0), ..opened } } else { opened };
        tell(&mut arbiter, opened.into());
        assert_eq!(packets(&mut client).len(), 1, "CONNACK");
        Self { machine, arbiter, client, connection }
    }

    /// Says all of it at once, and returns what it hears.
    fn say(&mut self, packets: &[Packet]) -> Vec<String> {
        packets.iter().for_each(|packet| self.client.send(packet));
        self.client.write(usize::MAX);
        self.arbiter.run();
        heard(&mut self.client)
    }

    fn publish(&mut self, delivery: Delivery, payload: &'static str) -> Packet {
        let (topic, payload, properties) = ("t".to_owned(), Bytes::from(payload), PublishProperties::default());
        Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload })
    }

    fn unsubscribe(&mut self, filter: &str) -> Packet {
        let (packet_id, filters) = (self.client.packet_id(), vec![filter.to_owned()]);
        Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] })
    }

    /// The group answers what it was asked first.
    fn answer(&mut self, reason: ReasonCode) -> Vec<String> {
        let connection = self.connection;
        let served = self.arbiter.state.served(connection).expect("it is served");
        let (ticket, asked) = served.unanswered.front().cloned().expect("it was asked");
        let event = match asked {
            SessionCommand::Subscribe(asked) => {
                let outcome = |filter: command::SubscribeFilter| SubscribeOutcome {
                    filter: filter.filter,
                    reason,
                    options: SubscriptionOptions::new(command::qos(filter.qos)),
                    identifier: None,
                    read: None,
                };
                let packet_id = PacketId::new(asked.packet_id as u16).expect("not zero");
                let outcomes = asked.filters.into_iter().map(outcome).collect();
                Event::Subscribed(SubscribedPersistent { connection, epoch: 1, packet_id, ticket, outcomes })
            }
            SessionCommand::Unsubscribe(asked) => {
                let packet_id = PacketId::new(asked.packet_id as u16).expect("not zero");
                let outcomes = asked.filters.into_iter().map(|filter| (filter, reason)).collect();
                Event::Unsubscribed(UnsubscribedPersistent { connection, epoch: 1, packet_id, ticket, outcomes })
            }
            other => panic!("{other:?}"),
        };
        tell(&mut self.arbiter, event);
        heard(&mut self.client)
    }

    /// Every node has heard of all that was subscribed to.
    fn all_hear(&mut self) -> Vec<String> {
        all_hear(&mut self.arbiter);
        heard(&mut self.client)
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.machine.advance(Duration::from_secs(1));
            self.arbiter.on_second();
            self.arbiter.run();
        }
    }

    /// PUBLISH packets that were looked at.
    fn publishes(&self) -> u64 {
        self.arbiter.state.counters.packets_received.unflushed(crate::metrics::PacketKind::Publish)
    }
}

/// P1, as other brokers do: what is published behind a SUBSCRIBE is for that subscription, too, though nobody waited for SUBACK.
#[test]
fn what_is_published_behind_a_subscribe_comes_back_by_it() {
    let id = PacketId::MIN;
    for (delivery, answer) in [
        (Delivery::AtMostOnce, None),
        (Delivery::AtLeastOnce(id), Some("PUBACK")),
        (Delivery::ExactlyOnce(id), Some("PUBREC")),
    ] {
        for is_persistent in [true, false] {
            let mut asker = Asker::new(is_persistent, 0);
            let subscribe = subscribe_to(&mut asker.client, &["t"], QoS::AtMostOnce);
            let publish = asker.publish(delivery, "x");
            assert_eq!(asker.say(&[Packet::PingReq, subscribe, publish, Packet::PingReq]), ["PINGRESP"]);
            if is_persistent {
                assert_eq!(asker.answer(ReasonCode::Success), [""; 0], "not every node has heard of it");
            }
            assert_eq!(asker.publishes(), 0);
            let heard = asker.all_hear();
            // What a persistent session publishes with QoS 2 comes and is acknowledged by groups.
            let by_group = is_persistent && matches!(delivery, Delivery::ExactlyOnce(_));
            let comes = ["x"].into_iter().chain(answer).filter(|_| !by_group);
            let expected: Vec<&str> = ["SUBACK"].into_iter().chain(comes).chain(["PINGRESP"]).collect();
            assert_eq!(heard, expected, "{delivery:?}, persistent: {is_persistent}");
            assert_eq!(asker.publishes(), 1);
        }
    }
}

/// Several wait for as long as there is one without an answer, whatever it is in the end, and nothing else does.
#[test]
fn what_is_published_waits_for_all_that_was_asked_before_and_for_refusals_too() {
    let mut asker = Asker::new(true, 0);
    let first = subscribe_to(&mut asker.client, &["t"], QoS::AtMostOnce);
    let second = subscribe_to(&mut asker.client, &["u"], QoS::AtMostOnce);
    let [one, two] = ["one", "two"].map(|payload| asker.publish(Delivery::AtMostOnce, payload));
    let unsubscribe = asker.unsubscribe("t");
    assert_eq!(asker.say(&[first, second, one, unsubscribe, two]), [""; 0]);
    assert_eq!(asker.answer(ReasonCode::Success), [""; 0]);
    assert_eq!(asker.all_hear(), ["SUBACK"]);
    assert_eq!(asker.publishes(), 0, "one has no answer");
    assert_eq!(asker.answer(ReasonCode::UnspecifiedError), [""; 0]);
    assert_eq!(asker.all_hear(), ["SUBACK", "one"]);
    assert_eq!(asker.publishes(), 1, "an UNSUBSCRIBE stands before the other");
    assert_eq!(asker.answer(ReasonCode::Success), ["UNSUBACK"], "the other is for nobody");
    assert_eq!(asker.publishes(), 2);
}

/// What others publish, and what was published before, does not wait.
#[test]
fn a_client_whose_publish_waits_for_suback_gets_what_comes() {
    let mut asker = Asker::new(true, 0);
    let subscribe = subscribe_to(&mut asker.client, &["t"], QoS::AtMostOnce);
    asker.say(&[subscribe]);
    asker.answer(ReasonCode::Success);
    assert_eq!(asker.all_hear(), ["SUBACK"]);
    let before = asker.publish(Delivery::AtLeastOnce(PacketId::MIN), "before");
    let subscribe = subscribe_to(&mut asker.client, &["u"], QoS::AtMostOnce);
    let behind = asker.publish(Delivery::AtMostOnce, "behind");
    assert_eq!(asker.say(&[before, subscribe, behind]), ["before", "PUBACK"]);
    let message = Arc::new(Message {
        identity: MessageIdentity { lane: 7, number: 1 },
        topic: Arc::from("t"),
        payload: Bytes::from("of another"),
        qos: QoS::AtMostOnce,
        retain: false,
        publisher: Arc::from("p"),
        properties: None,
        expires_at_ms: None,
    });
    tell(&mut asker.arbiter, Event::Route { message, weight: 0 });
    assert_eq!(heard(&mut asker.client), ["of another"]);
    asker.answer(ReasonCode::Success);
    assert_eq!(asker.all_hear(), ["SUBACK", "behind"]);
}

/// [MQTT-3.1.2-22]: nobody is silent whom we do not read, and once it is read again its time begins anew.
#[test]
fn nobody_whose_publish_waits_for_suback_is_ended_for_its_silence() {
    let mut asker = Asker::new(true, 2);
    let subscribe = subscribe_to(&mut asker.client, &["t"], QoS::AtMostOnce);
    let publish = asker.publish(Delivery::AtMostOnce, "x");
    assert_eq!(asker.say(&[subscribe, publish]), [""; 0]);
    asker.pass(4);
    assert_eq!(asker.arbiter.state.connections(), 1);
    asker.answer(ReasonCode::Success);
    assert_eq!(asker.all_hear(), ["SUBACK", "x"]);
    asker.pass(10);
    let disconnect = packets(&mut asker.client);
    let is_silent = |packet: &Packet| matches!(packet, Packet::Disconnect(disconnect) if disconnect.reason_code == ReasonCode::KeepAliveTimeout);
    assert!(matches!(&disconnect[..], [packet] if is_silent(packet)), "{disconnect:?}");
}

/// As where a group has no majority: whether its client is there is known all the same, and what it publishes goes to whoever can have it.
#[test]
fn a_publish_does_not_wait_for_suback_without_end() {
    let begin = || {
        let mut asker = Asker::new(true, 2);
        let subscribe = subscribe_to(&mut asker.client, &["t"], QoS::AtMostOnce);
        let publish = publish_to(&mut asker.client, "t", "x");
        assert_eq!(asker.say(&[subscribe, publish, Packet::PingReq]), [""; 0]);
        asker.pass(4);
        assert_eq!((asker.arbiter.state.connections(), heard(&mut asker.client)), (1, vec![]));
        asker
    };
    let mut asker = begin();
    asker.pass(2);
    assert_eq!(heard(&mut asker.client), ["PUBACK", "PINGRESP"]);
    let publish = publish_to(&mut asker.client, "t", "y");
    assert_eq!(asker.say(&[publish]), ["PUBACK"], "nor does the next one");
    asker.answer(ReasonCode::Success);
    assert_eq!(asker.all_hear(), ["SUBACK"]);
    let subscribe = subscribe_to(&mut asker.client, &["u"], QoS::AtMostOnce);
    let publish = publish_to(&mut asker.client, "t", "z");
    assert_eq!(asker.say(&[subscribe, publish]), [""; 0], "one that is asked for later is waited for");

    let mut asker = begin();
    asker.pass(10);
    assert_eq!(asker.arbiter.state.connections(), 0, "its keep alive is over");

    let mut asker = begin();
    asker.client.stream = MemoryStream::pair(1).0;
    asker.pass(2);
    assert_eq!(asker.arbiter.state.connections(), 0, "it is gone");
}

/// What stands behind a PUBLISH that waits comes in its turn, be it the end; and whoever takes over waits for nothing.
#[test]
fn a_connection_whose_publish_waits_for_suback_ends_as_any_other() {
    let begin = |asker: &mut Asker| {
        let subscribe = subscribe_to(&mut asker.client, &["t"], QoS::AtMostOnce);
        let publish = asker.publish(Delivery::AtMostOnce, "x");
        asker.say(&[subscribe, publish]);
    };
    let ended = |asker: &mut Asker| -> Vec<bool> {
        let ended = |command| match command {
            SessionCommand::Disconnect(ended) => Some(ended.publish_will),
            SessionCommand::Released(ended) => Some(ended.publish_will),
            _ => None,
        };
        commands_to_group(&mut asker.arbiter).into_iter().filter_map(ended).collect()
    };
    for (says_so, takes_answers) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut asker = Asker::new(true, 0);
        begin(&mut asker);
        if says_so {
            let properties = DisconnectProperties::default();
            asker.say(&[Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties })]);
        }
        if takes_answers {
            asker.client.stream.shut_down_write();
        } else {
            asker.client.stream = MemoryStream::pair(1).0;
        }
        asker.arbiter.run();
        assert_eq!((asker.publishes(), ended(&mut asker)), (0, vec![]), "it is read in its turn");
        asker.answer(ReasonCode::Success);
        asker.all_hear();
        assert_eq!((asker.publishes(), ended(&mut asker)), (1, vec![!says_so]));
    }
    // Whoever takes no answers is not waited for without end.
    let mut asker = Asker::new(true, 0);
    let subscribes = ["u", "t"].map(|filter| subscribe_to(&mut asker.client, &[filter], QoS::AtMostOnce));
    let publish = asker.publish(Delivery::AtMostOnce, "x");
    asker.say(&subscribes);
    asker.say(&[publish]);
    asker.client.stream = MemoryStream::pair(1).0;
    asker.answer(ReasonCode::Success);
    asker.all_hear();
    asker.pass(4);
    assert_eq!((asker.arbiter.state.connections(), ended(&mut asker)), (1, vec![]));
    asker.pass(2);
    assert_eq!((asker.arbiter.state.connections(), ended(&mut asker)), (0, vec![true]));

    let mut asker = Asker::new(true, 0);
    begin(&mut asker);
    asker.arbiter.state.end(asker.connection, EndCause::TakenOver, None);
    asker.arbiter.run();
    assert_eq!((asker.publishes(), ended(&mut asker).len()), (0, 1));
    assert_eq!(asker.arbiter.state.connections(), 0);
}

/// The group has another leader before it answers: that one is asked again, and its answer counts.
#[test]
fn what_waits_for_suback_goes_on_when_another_leader_answers() {
    let mut asker = Asker::new(true, 0);
    let subscribe = subscribe_to(&mut asker.client, &["t"], QoS::AtMostOnce);
    let publish = asker.publish(Delivery::AtMostOnce, "x");
    assert_eq!(asker.say(&[subscribe, publish]), [""; 0]);
    commands_to_group(&mut asker.arbiter);
    for term in 2..4 {
        let leader = Some(Leader { node: 2, term, round: 0 });
        tell(&mut asker.arbiter, Event::Led { group: 0, leader });
    }
    assert_eq!(asker.publishes(), 0);
    asker.answer(ReasonCode::Success);
    assert_eq!(asker.all_hear(), ["SUBACK", "x"]);
}
