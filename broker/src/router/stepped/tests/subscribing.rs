//! SUBSCRIBE and its answers, and the interest that other nodes hear of.

use super::*;

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
