//! Subscriptions and the reads that go with them.

use super::*;

/// P1, [MQTT-3.8.4-4]: no publish may miss a subscription while it is replaced.
#[test]
fn replacing_a_subscription_never_withdraws_the_interest() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    let mut subscribe = |filter: &str, qos| {
        let effects = script.apply(Command::Subscribe(Subscribe {
            client_id: "c".to_owned(),
            epoch,
            packet_id: 1,
            filters: vec![SubscribeFilter {
                filter: filter.to_owned(),
                qos,
                retain_handling: 2,
                ..SubscribeFilter::default()
            }],
            ..Subscribe::default()
        }));
        let interest = effects.into_iter().filter_map(|effect| match effect {
            Effect::Interest { wanted, .. } => Some(wanted),
            Effect::ShareInterest { joined, .. } => Some(joined),
            _ => None,
        });
        interest.collect::<Vec<_>>()
    };
    for filter in ["t", "$share/g/t"] {
        assert_eq!(subscribe(filter, 1), [true]);
        assert_eq!(subscribe(filter, 2), [] as [bool; 0], "{filter}");
        assert_eq!(subscribe(filter, 0), [false], "QoS 0 is delivered directly");
        assert_eq!(subscribe(filter, 1), [true]);
    }
}

/// P5: live messages that wait for a read are let go in order when the read is given up.
#[test]
fn what_waits_for_a_read_goes_on_when_the_subscription_is_replaced_or_ends() {
    for unsubscribe in [true, false] {
        let mut script = Script::new();
        let epoch = script.connect(true, 100).epoch;
        script.subscribe(epoch, "t", true).expect("a read");
        script.publish("one");
        let effects = if unsubscribe {
            let filters = vec!["t".to_owned()];
            let client_id = "c".to_owned();
            script.apply(Command::Unsubscribe(Unsubscribe {
                client_id,
                epoch,
                packet_id: 2,
                filters,
                ..Unsubscribe::default()
            }))
        } else {
            let filter = SubscribeFilter { filter: "t".to_owned(), qos: 1, retain_handling: 2, ..Default::default() };
            let client_id = "c".to_owned();
            script.apply(Command::Subscribe(Subscribe {
                client_id,
                epoch,
                packet_id: 2,
                filters: vec![filter],
                ..Subscribe::default()
            }))
        };
        assert_eq!(deliveries(&effects), [sent(1, false, "one")], "unsubscribed: {unsubscribe}");
    }
}

/// P6: what waits for the retained messages of one filter goes on waiting though another filter that was read is given up.
#[test]
fn what_waits_for_one_read_still_waits_when_another_is_given_up() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", true).expect("a read");
    script.subscribe(epoch, "u", true).expect("another");
    script.publish("one");
    let mut unsubscribe = |filter: &str| {
        let (client_id, filters) = ("c".to_owned(), vec![filter.to_owned()]);
        script.apply(Command::Unsubscribe(Unsubscribe {
            client_id,
            epoch,
            packet_id: 9,
            filters,
            ..Unsubscribe::default()
        }))
    };
    assert_eq!(deliveries(&unsubscribe("u")), []);
    assert_eq!(deliveries(&unsubscribe("t")), [sent(1, false, "one")]);
}

/// P1, P6: names may have 65,535 bytes, and so may the keys of the store, with all that is before the name. The store's checkpoints ended
/// the process of each node that kept the group, at every start.
#[test]
fn names_that_no_key_holds_survive_a_restart() {
    let long = |last: &str| format!("{}{last}", "x".repeat(65_534));
    let share = |last: &str| format!("$share/{}{last}/t", "g".repeat(65_525));
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    for last in ["a", "b"] {
        script.subscribe(epoch, &long(last), false);
        script.subscribe(epoch, &share(last), false);
        let mut message = script.message(last);
        message.store_retained = true;
        message.shares = vec![share(last)];
        let record = message.message.take().expect("a record");
        message.message = Some(MessageRecord { topic: long(last), ..record });
        script.lane_batch(vec![message]);
    }
    assert_eq!(script.state.turns.len(), 2);
    let before = script.state.digest();
    script.restart();
    assert!(script.stored.keys().all(|key| key.len() < usize::from(u16::MAX) - 3), "three bytes are the group's");
    assert_eq!((script.state.digest(), script.state.turns.len(), script.state.retained().len()), (before, 2, 2));
    let subscriptions = &script.state.sessions["c"].subscriptions;
    for last in ["a", "b"] {
        assert!(subscriptions.contains_key(&long(last)[..]) && subscriptions.contains_key(&share(last)[..]));
    }
    let filters = [long("a"), share("a")].to_vec();
    let client_id = "c".to_owned();
    script.apply(Command::Unsubscribe(Unsubscribe {
        client_id,
        epoch,
        packet_id: 2,
        filters,
        ..Unsubscribe::default()
    }));
    script.restart();
    let left: Vec<_> = script.state.sessions["c"].subscriptions.keys().map(|filter| filter.to_string()).collect();
    assert_eq!(left, [share("b"), long("b")]);
}

/// Subscribes to all of them in one command.
fn subscribe_to_all(script: &mut Script, epoch: u64, filters: &[String], retain_handling: u32) {
    let filter = |filter: &String| SubscribeFilter {
        filter: filter.clone(),
        qos: 2,
        retain_handling,
        ..SubscribeFilter::default()
    };
    let filters = filters.iter().map(filter).collect();
    let (client_id, packet_id) = ("c".to_owned(), 1);
    script.apply(Command::Subscribe(Subscribe { client_id, epoch, packet_id, filters, ..Subscribe::default() }));
}

/// All sessions of a group wait for each of its commands: one of them does not match all that waits with all that holds it back, for
/// each filter.
#[test]
fn many_filters_that_hold_many_messages_back_end_in_a_moment() {
    let config = GroupConfig { queue_messages_max: 100_000, queue_bytes_max: 100_000_000, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    let epoch = script.connect(true, 100).epoch;
    let filters: Vec<String> = (0..1_000).map(|number| format!("z/{number}/+")).collect();
    subscribe_to_all(&mut script, epoch, &filters, 0);
    script.subscribe(epoch, "t", true).expect("a read");
    script.subscribe(epoch, "+", true).expect("a read");
    let messages = (0..1_000).map(|number| script.message(&number.to_string())).collect();
    script.lane_batch(messages);
    script.restart();
    let unsubscribe = |filters: &[String]| {
        let (client_id, packet_id, filters) = ("c".to_owned(), 2, filters.to_vec());
        Command::Unsubscribe(Unsubscribe { client_id, epoch, packet_id, filters, ..Unsubscribe::default() })
    };
    let began = std::time::Instant::now();
    let effects = script.apply(unsubscribe(&filters[1..]));
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(deliveries(&effects), []);
    assert_eq!(deliveries(&script.apply(unsubscribe(&["+".to_owned()]))), []);
    assert_eq!(script.state.sessions["c"].held.len(), 1_000, "t holds them");
    let effects = script.apply(unsubscribe(&["t".to_owned()]));
    assert_eq!(deliveries(&effects), [sent(1, false, "0"), sent(2, false, "1")], "what its window takes");
    assert_eq!(script.state.sessions["c"].held.len(), 0);
}

/// Nor does the end of a session look at all its subscriptions for each.
#[test]
fn a_session_with_many_subscriptions_ends_in_a_moment() {
    for retain_handling in [2, 0] {
        let mut script = Script::new();
        let epoch = script.connect(true, 100).epoch;
        let filters: Vec<String> = (0..30_000).map(|number| format!("x/{number}/+")).collect();
        subscribe_to_all(&mut script, epoch, &filters, retain_handling);
        assert_eq!(script.state.subscriptions().0, filters.len());
        let began = std::time::Instant::now();
        script.connect(true, 100);
        assert!(began.elapsed() < std::time::Duration::from_secs(8), "{:?}", began.elapsed());
        assert_eq!(script.state.subscriptions().0, 0);
    }
}
