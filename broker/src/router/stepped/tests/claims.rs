//! What a connection says to the group of its Client Identifier: claims, and the ends of sessions.

use super::*;

/// P10: what waits for a leader is written once, but its expiry runs.
#[test]
fn a_batch_says_the_time_at_which_it_is_sent_each_time() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let shared = Arc::clone(&arbiter.state.shared);
    shared.index.subscribe("t", Target::Group(0));
    let properties = PublishProperties { message_expiry_interval: Some(5), ..PublishProperties::default() };
    let delivery = Delivery::AtLeastOnce(client.packet_id());
    let (topic, payload) = ("t".to_owned(), Bytes::new());
    client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    client.write(usize::MAX);
    arbiter.run();
    let mut left_at = |clock_ms| {
        arbiter.state.lanes.set_leader(0, Some(Leader { node: 2, term: 1, round: 0 }));
        let batches = std::iter::from_fn(|| arbiter.state.lanes.next_batch(0, clock_ms));
        let mut left = Vec::new();
        for (_, batch) in batches {
            let Ok(command::Entry { command: Some(Command::Lane(batch)), .. }) = command::decode(batch) else {
                panic!("a batch of a lane")
            };
            let expiries = batch.messages.iter().filter_map(|message| message.message.as_ref()?.expiry_left_ms);
            left.extend(expiries.map(|left| left.saturating_sub(batch.clock_ms)));
        }
        left
    };
    let began_ms = shared.now_ms();
    assert_eq!(left_at(began_ms + 1_000), [4_000]);
    assert_eq!(left_at(began_ms + 3_000), [2_000], "sent again");
}

/// P7, P9: a leader that heard twice of a claim may grant it twice. The second time must not end what stands.
#[test]
fn a_claim_that_is_granted_twice_is_not_given_up() {
    let (mut arbiter, _client, connection) = client_of_several_nodes();
    let said = said_to_group(&mut arbiter);
    assert!(said > 0, "CONNECT at least");
    grant(&mut arbiter, connection);
    assert_eq!(said_to_group(&mut arbiter), said, "nothing more");
}

/// [MQTT-3.1.2-8]: a client that hears nothing, as its connection went before its claim was granted, was never accepted. Its will is
/// published by nobody, and its session is what it was.
#[test]
fn a_claim_that_is_granted_to_nobody_is_given_back_as_if_it_had_not_been() {
    let (mut arbiter, _client, connection) = claimant_of_several_nodes();
    arbiter.state.end(connection, EndCause::ConnectTimeout, None);
    grant(&mut arbiter, connection);
    let said = commands_to_group(&mut arbiter);
    let [SessionCommand::Connect(_), SessionCommand::Disconnect(end)] = &said[..] else {
        panic!("{said:?}");
    };
    assert!(end.never_began && !end.publish_will, "{end:?}");

    // The grant was lost, and the next claim waits for this one.
    let (mut arbiter, _client, connection) = claimant_of_several_nodes();
    arbiter.state.end(connection, EndCause::ConnectTimeout, None);
    arbiter.state.on_close(connection, 0, &Arc::from("c"), 1);
    let said = commands_to_group(&mut arbiter);
    let [SessionCommand::Connect(_), SessionCommand::Released(end)] = &said[..] else {
        panic!("{said:?}");
    };
    assert!(end.never_began && !end.publish_will, "{end:?}");
}

/// What a clean end costs the group is part of what is said to it next: nobody waits for it.
#[test]
fn the_end_of_a_session_that_leaves_nothing_waits_for_company() {
    let (mut arbiter, mut client, connection) = client_of_several_nodes();
    client.stream.try_read(&mut [0; 256]).expect("CONNACK");
    let before = flushed_to_group(&mut arbiter);
    let properties = DisconnectProperties::default();
    client.send(&Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
    client.write(usize::MAX);
    arbiter.run();
    assert_eq!(
        client.stream.try_read(&mut [0; 256]).expect("the end of the stream"),
        0,
        "though no group has heard of it"
    );
    assert_eq!(flushed_to_group(&mut arbiter), before, "nothing yet");

    // Another node has the Client Identifier's next claim.
    arbiter.state.on_close(connection, 0, &Arc::from("c"), 1);
    arbiter.run();
    assert!(flushed_to_group(&mut arbiter) > before, "the group asks, and is told at once");
}

/// In a storm one connection ends after the other: none of them sends away what the one before it left.
#[test]
fn the_ends_of_several_sessions_that_leave_nothing_go_with_the_next_claim() {
    let (mut arbiter, first, _) = client_of_several_nodes();
    let (second, connection) = another_claimant(&mut arbiter, "d");
    arbiter.state.shared.inboxes[0].push(Opened::transient(connection, Arc::from("d")).into(), 0);
    arbiter.run();
    let before = flushed_to_group(&mut arbiter);
    for mut client in [first, second] {
        let properties = DisconnectProperties::default();
        client.send(&Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
        client.write(usize::MAX);
        arbiter.run();
        assert_eq!(flushed_to_group(&mut arbiter), before, "nothing yet");
    }
    another_claimant(&mut arbiter, "e");
    let said = commands_to_group(&mut arbiter);
    let [.., SessionCommand::Disconnect(_), SessionCommand::Disconnect(_), SessionCommand::Connect(_)] = &said[..]
    else {
        panic!("{said:?}");
    };
}

/// P12: nobody asks.
#[test]
fn the_end_of_a_session_that_leaves_nothing_is_said_within_a_second() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let properties = DisconnectProperties::default();
    client.send(&Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
    client.write(usize::MAX);
    arbiter.run();
    let before = flushed_to_group(&mut arbiter);
    arbiter.on_second();
    assert!(flushed_to_group(&mut arbiter) > before);
}

/// A group without a majority may have none for days. What is claimed meanwhile is not kept for it: clients try again and again.
#[test]
fn no_claim_is_said_to_a_group_that_answers_nothing() {
    const CLIENTS: usize = 40;
    let (mut arbiter, _client, _) = claimant_of_several_nodes();
    let claimants: Vec<_> =
        (0..CLIENTS).map(|number| another_claimant(&mut arbiter, &format!("c{number}")).0).collect();
    arbiter.state.flush_lanes();
    let claimed = arbiter.state.lanes.held();
    assert!(claimed[0] < CLIENTS as u64, "others wait for their turn");
    (0..4).for_each(|_| arbiter.on_second());
    arbiter.run();
    arbiter.state.flush_lanes();
    assert_eq!(arbiter.state.lanes.held(), claimed, "nothing more");
    let (late, _) = another_claimant(&mut arbiter, "late");
    arbiter.state.flush_lanes();
    assert_eq!(arbiter.state.lanes.held(), claimed, "nothing more");
    for mut client in claimants.into_iter().chain([late]) {
        let [Packet::ConnAck(connack)] = &packets(&mut client)[..] else { panic!("one CONNACK") };
        assert_eq!(connack.reason_code, ReasonCode::ServerUnavailable);
    }
}
