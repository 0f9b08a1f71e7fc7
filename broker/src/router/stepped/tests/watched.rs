//! What operators who look see of connections of two arbiters.

use super::*;
use crate::watching::slow::{Ranking, SlowSubscriber, Slowest};
use crate::watching::top_topics;
use crate::watching::trace::{Target, Wanted};

fn trace(world: &World, number: u64, target: Target) {
    let wanted = Wanted { number, target, seconds: 60, payload_bytes_max: 0 };
    world.shared.watches.begin_trace(wanted, world.shared.now_ms()).expect("there is room");
}

/// What came of a trace: what happened to whom, and the topic or kind of packet.
fn taken(world: &World, number: u64) -> Vec<String> {
    let lines = world.shared.watches.traces().take(number, world.shared.now_ms()).expect("it is on").lines;
    let in_short = |line: &String| {
        let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let what = json.get("topic").or(json.get("packet")).or(json.get("reason")).and_then(|what| what.as_str());
        format!(
            "{} {} {}",
            json["clientid"].as_str().unwrap_or(""),
            json["event"].as_str().unwrap_or(""),
            what.unwrap_or("-")
        )
    };
    lines.iter().map(in_short).collect()
}

fn open(world: &mut World, arbiter: usize, name: &str) -> Client {
    world.open(arbiter, connect(ProtocolVersion::V5, name.to_owned(), 0))
}

#[test]
fn a_trace_of_a_client_shows_what_it_says_and_hears_and_one_of_a_topic_who_says_and_gets_it() {
    let mut world = World::new(1);
    trace(&world, 1, Target::Client("a".to_owned()));
    trace(&world, 2, Target::Topic("t/+".to_owned()));
    let (mut one, mut other) = (open(&mut world, 0, "a"), open(&mut world, 1, "b"));
    for client in [&mut one, &mut other] {
        let subscribe = subscribe_to(client, &["t/x"], QoS::AtMostOnce);
        say(&mut world, client, &subscribe);
    }
    for topic in ["t/x", "u", "$SYS/x"] {
        let publish = publish_to(&mut one, topic, "p");
        say(&mut world, &mut one, &publish);
    }
    let properties = DisconnectProperties::default();
    say(&mut world, &mut one, &Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
    assert_eq!(
        taken(&world, 1),
        [
            "a packet.sent connack",
            "a client.connected -",
            "a packet.received subscribe",
            "a client.subscribed t/x",
            "a packet.sent suback",
            "a publish.received t/x",
            "a publish.sent t/x",
            "a packet.sent puback",
            "a publish.received u",
            "a packet.sent puback",
            "a publish.refused $SYS/x",
            "a packet.sent puback",
            "a packet.received disconnect",
            "a client.disconnected client_disconnect",
        ]
    );
    assert_eq!(taken(&world, 2), ["a publish.received t/x", "a publish.sent t/x", "b publish.sent t/x"]);
}

#[test]
fn a_trace_that_nobody_asks_for_ends_and_nothing_is_written_any_more() {
    let mut world = World::new(1);
    trace(&world, 1, Target::Client("a".to_owned()));
    world.pass(20_000);
    assert!(!world.shared.watches.is_on());
    open(&mut world, 0, "a");
    assert!(world.shared.watches.traces().take(1, world.shared.now_ms()).is_none());
}

#[test]
fn topics_are_counted_on_all_arbiters_while_somebody_asks() {
    let mut world = World::new(1);
    let mut publishers = [0, 1].map(|arbiter| open(&mut world, arbiter, &format!("p{arbiter}")));
    let mut publish = |world: &mut World, at: usize, topic: &str, payload| {
        let publish = publish_to(&mut publishers[at], topic, payload);
        say(world, &mut publishers[at], &publish);
    };
    publish(&mut world, 0, "before", "x");
    world.shared.watches.count_topics(5, world.shared.now_ms());
    publish(&mut world, 0, "often", "x");
    publish(&mut world, 1, "often", "x");
    publish(&mut world, 1, "large", "xxxxxxxx");
    publish(&mut world, 1, "$SYS/refused", "x");
    world.pass(6000);
    publish(&mut world, 1, "behind", "x");
    let counted = |ranking| {
        let counts = world.shared.watches.topics().counts(ranking, 9, world.shared.now_ms());
        counts.topics.iter().map(|one| (one.topic.clone(), one.count, one.error)).collect::<Vec<_>>()
    };
    let named = |topic: &str, count| (topic.to_owned(), count, 0);
    assert_eq!(counted(top_topics::Ranking::Messages), [named("often", 2), named("large", 1)]);
    assert_eq!(counted(top_topics::Ranking::Bytes), [named("large", 8), named("often", 2)]);
}

#[test]
fn a_client_that_takes_too_little_is_found_and_others_are_not() {
    let mut world = World::new(1);
    let slow = connect(ProtocolVersion::V5, "slow".to_owned(), 0);
    let properties = ConnectProperties { receive_maximum: NonZeroU16::new(1), ..ConnectProperties::default() };
    let mut slow = world.open(0, Connect { properties, ..slow });
    let (mut unwritten, mut publisher) = (open(&mut world, 0, "unwritten"), open(&mut world, 0, "publisher"));
    for (client, filter, qos) in [(&mut slow, "q", QoS::AtLeastOnce), (&mut unwritten, "u", QoS::AtMostOnce)] {
        let subscribe = subscribe_to(client, &[filter], qos);
        say(&mut world, client, &subscribe);
    }
    let large: &'static str = "x".repeat(2000).leak();
    for (topic, count) in [("q", 5), ("u", 10)] {
        for _ in 0..count {
            let publish = publish_to(&mut publisher, topic, large);
            say(&mut world, &mut publisher, &publish);
        }
    }
    world.pass(3000);
    let found = |ranking| {
        let mut slowest = Slowest::new(ranking, 9);
        let mut place = Some(0);
        while let Some(from) = place {
            // One at a time, so that it goes on where it was.
            place = world.arbiters[0].state.look_for_slow(from, 1, &mut slowest);
        }
        slowest.in_order()
    };
    let names = |found: &[SlowSubscriber]| found.iter().map(|one| one.clientid.clone()).collect::<Vec<_>>();
    let by_bytes = found(Ranking::Bytes);
    assert_eq!(names(&by_bytes), ["unwritten", "slow"]);
    let [unwritten, slow] = &by_bytes[..] else { panic!("{by_bytes:?}") };
    assert!(unwritten.out_buffer_bytes > 10_000 && unwritten.blocked_seconds >= 2, "{unwritten:?}");
    assert_eq!((slow.mqueue_len, slow.inflight_cnt, slow.blocked_seconds), (Some(4), 1, 0), "{slow:?}");
    assert!(slow.mqueue_bytes > Some(8000) && slow.silent_seconds >= 3, "{slow:?}");
    assert_eq!(names(&found(Ranking::Messages))[0], "slow");
    assert_eq!(names(&found(Ranking::Blocked))[0], "unwritten");
}
