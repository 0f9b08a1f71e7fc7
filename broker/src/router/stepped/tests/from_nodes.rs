//! What other nodes bring.

use super::*;

/// What the lane of an arbiter of node 2 brings: plain messages, each as topic and payload, above `previous`.
fn bring(arbiter: &SteppedArbiter, previous: u64, messages: &[(&[u8], &str)]) {
    let mut items = bytes::BytesMut::new();
    for (number, &(topic, payload)) in (previous + 1..).zip(messages) {
        let identity = MessageIdentity { lane: 2, number };
        let (payload, qos, retain) = (payload.as_bytes(), QoS::AtMostOnce, false);
        PlainMessage { number, identity, topic, payload, qos, retain, expiry_left_ms: None }.write(&mut items);
    }
    let shared = &arbiter.state.shared;
    let messages = Messages {
        incarnation: 20,
        target_incarnation: shared.incarnation(),
        previous,
        last: previous + messages.len() as u64,
        items: messages.len() as u32,
        payload: items.freeze(),
        ..Messages::default()
    };
    crate::groups::incoming::take(shared, 2, Forwarded::Messages(messages));
}

/// Runs of one topic are looked up once. What is no text was not written by a node that is in order: it reaches nobody, nor does what
/// came behind it.
#[test]
fn what_another_node_brings_is_for_those_who_want_its_topic() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let subscribe = |arbiter: &mut SteppedArbiter, client: &mut Client, filter: &str| {
        let filters = vec![(filter.to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))];
        let packet_id = client.packet_id();
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        client.send(&Packet::Subscribe(subscribe));
        client.write(usize::MAX);
        arbiter.run();
    };
    let heard = |arbiter: &mut SteppedArbiter, client: &mut Client| -> Vec<(String, Bytes)> {
        arbiter.run();
        let publish = |packet| match packet {
            Packet::Publish(publish) => Some((publish.topic, publish.payload)),
            _ => None,
        };
        packets(client).into_iter().filter_map(publish).collect()
    };
    subscribe(&mut arbiter, &mut client, "t/a");
    subscribe(&mut arbiter, &mut client, "t/+/c");
    let messages: [(&[u8], &str); 7] =
        [(b"t/a", "1"), (b"t/a", "2"), (b"t/b", "3"), (b"t/a", "4"), (b"t/x/c", "5"), (b"t/y/c", "6"), (b"t/y/c", "7")];
    bring(&arbiter, 0, &messages);
    let expected = [("t/a", "1"), ("t/a", "2"), ("t/a", "4"), ("t/x/c", "5"), ("t/y/c", "6"), ("t/y/c", "7")];
    let expected = expected.map(|(topic, payload)| (topic.to_owned(), Bytes::from(payload)));
    assert_eq!(heard(&mut arbiter, &mut client), expected);
    bring(&arbiter, 0, &messages);
    assert_eq!(heard(&mut arbiter, &mut client), [], "they had come before");

    subscribe(&mut arbiter, &mut client, "t/b");
    bring(&arbiter, 7, &[(b"t/b", "8"), (b"t/\xff", "9"), (b"t/b", "10")]);
    assert_eq!(heard(&mut arbiter, &mut client), [("t/b".to_owned(), Bytes::from("8"))]);
}

/// Who wants the topic of a message is not who wanted that of another one, whatever stands between them.
#[test]
fn in_a_batch_each_message_is_for_those_who_want_its_own_topic() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let filters = vec![("t/a".to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))];
    let packet_id = client.packet_id();
    client.send(&Packet::Subscribe(Subscribe {
        packet_id,
        filters,
        subscription_identifier: None,
        user_properties: vec![],
    }));
    client.write(usize::MAX);
    arbiter.run();
    packets(&mut client);
    let shared = Arc::clone(&arbiter.state.shared);
    let target = ShareTarget::Session { group: 0 };
    shared.index.join_share("s", "t/b", ShareMember { target, client_id_hash: 0, node: 0, qos0_only: false });
    let share = shared.index.share("s", "t/b").expect("it has a member");
    let nobody = ConnectionKey::new(0, 1_000, 1);

    let message = |topic: &str, payload: &'static str| {
        Arc::new(Message {
            identity: MessageIdentity::default(),
            topic: Arc::from(topic),
            payload: Bytes::from(payload),
            qos: QoS::AtMostOnce,
            retain: false,
            publisher: Arc::from(""),
            properties: None,
            expires_at_ms: None,
        })
    };
    let mut batch = Batch::default();
    for (topic, payload, is_for_member) in
        [("t/a", "1", false), ("t/b", "2", true), ("t/b", "3", false), ("t/a", "4", true), ("t/a", "5", false)]
    {
        let message = message(topic, payload);
        let mut publication = arbiter.state.publication_of(&message);
        if is_for_member {
            batch.push(&mut publication, Addressee::Member(nobody, Arc::clone(&share), None));
        } else {
            batch.push_to_subscribers(&mut publication);
        }
    }
    let weight = batch.weight_bytes();
    shared.inboxes[0].push(Event::Batch { from: None, batch, weight }, weight);
    arbiter.run();
    let payload = |packet| match packet {
        Packet::Publish(publish) => Some(publish.payload),
        _ => None,
    };
    let heard: Vec<_> = packets(&mut client).into_iter().filter_map(payload).collect();
    assert_eq!(heard, ["1", "5"]);
}
