//! Lanes and retained messages.

use super::*;
use crate::later::DELAYED_BYTES_LEVEL;
use crate::peers::wire::Resync;

/// P2: a message that others have already is not refused because it cannot be kept; it is counted. The one before it must
/// not pass for the newest.
#[test]
fn a_message_without_room_among_the_retained_is_delivered_and_not_kept() {
    let config = GroupConfig { retained: RetainedLimits { messages_max: 0, bytes_max: 500 }, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    let retain = |script: &mut Script, payload: &str| {
        let message = LaneMessage { store_retained: true, ..script.message(payload) };
        script.lane_batch(vec![message])
    };
    retain(&mut script, "fits");
    assert_eq!(script.state.retained().len(), 1);
    let effects = retain(&mut script, &"x".repeat(500));
    assert_eq!(deliveries(&effects).len(), 1);
    let answer = Effect::LaneAnswered { node: 0, lane: 1 << 12, number: 2, refused: vec![] };
    assert_eq!(effects[1..], [Effect::RetainedNotKept, answer]);
    assert_eq!(script.state.retained().len(), 0);
    script.restart();
    assert_eq!(script.state.retained().len(), 0);
}

/// Nothing counts it: a Client Identifier of 64 KiB would be kept with each of a million messages of a few bytes.
#[test]
fn messages_that_are_kept_share_the_long_name_of_their_publisher() {
    let mut script = Script::new();
    let publisher = "p".repeat(60_000);
    let messages = (1..=6).map(|number| {
        let topic = format!("t/{number}");
        let message = Some(MessageRecord { publisher: publisher.clone(), topic, ..record(number, "x") });
        let is_delayed = number % 2 == 0;
        LaneMessage {
            number,
            message,
            delay_ms: is_delayed.then_some(5_000),
            store_retained: !is_delayed,
            ..LaneMessage::default()
        }
    });
    script.lane_batch(messages.collect());
    for _ in 0..2 {
        let state = &script.state;
        let delayed = state.outbox.values().map(|entry| &entry.message.publisher);
        let retained = ["t/1", "t/3", "t/5"].map(|topic| &state.retained().get(topic).expect("it is kept").publisher);
        let names: Vec<_> = delayed.chain(retained).collect();
        assert_eq!(names.len(), 6);
        assert!(names.iter().all(|name| Arc::ptr_eq(name, names[0])));
        script.restart();
    }
}

/// Before the feature level all replicas do as those do that know of no such bound.
#[test]
fn delayed_messages_are_bounded_by_their_bytes() {
    let config = GroupConfig { delayed_bytes_max: 3_000, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    let mut number = 0;
    let mut delay = |script: &mut Script, bytes: usize| {
        number += 1;
        let message = Some(record(number, &"x".repeat(bytes)));
        let message = LaneMessage { number, message, delay_ms: Some(5_000), ..LaneMessage::default() };
        let effects = script.lane_batch(vec![message]);
        let [Effect::LaneAnswered { refused, .. }] = &effects[..] else { panic!("{effects:?}") };
        refused.iter().any(|&(refused, reason)| refused == number && reason == ReasonCode::QuotaExceeded)
    };
    assert!(!delay(&mut script, 2_000));
    assert!(!delay(&mut script, 2_000), "not yet");
    script.apply(Command::Level(command::Level { level: DELAYED_BYTES_LEVEL }));
    assert!(delay(&mut script, 1));
    assert!(script.state.delayed_bytes() > 4_000);
    script.restart();
    assert!(delay(&mut script, 1), "nor after a restart");
    script.tick(5_000 + CLOCK_LAG_MS_MAX);
    assert_eq!((script.state.delayed(), script.state.delayed_bytes()), (0, 0), "due");
    assert!(delay(&mut script, 3_000), "its own weight counts");
    assert!(!delay(&mut script, 1_000));
    assert!(delay(&mut script, 2_000));
    assert!(!delay(&mut script, 100));
    assert_eq!(script.state.delayed(), 2);
}

/// P6: what was refused stays refused, also if the origin asks a new leader.
#[test]
fn a_refusal_is_remembered_until_the_origin_knows_it() {
    let config = GroupConfig { delayed_messages_max: 1, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    let delay = |number| LaneMessage {
        number,
        message: Some(record(number, "x")),
        delay_ms: Some(5_000),
        ..LaneMessage::default()
    };
    let messages = vec![delay(1), delay(2)];
    let refused = vec![(2, ReasonCode::QuotaExceeded)];
    let answer = Effect::LaneAnswered { node: 0, lane: 1 << 12, number: 2, refused };
    assert_eq!(script.lane_batch(messages.clone()), std::slice::from_ref(&answer));
    script.restart();
    assert_eq!(script.lane_batch(messages), [answer]);
    let batch = LaneBatch { lane: 1 << 12, incarnation: 1, answered: 2, ..LaneBatch::default() };
    script.apply(Command::Lane(batch));
    assert!(script.state.lanes[&(0, 1 << 12)].refused.is_empty());
}

/// P1: a batch that overtook a lost one is not applied, or the lost one would be taken for a repetition when it comes.
#[test]
fn a_batch_over_a_gap_is_refused_until_what_was_lost_has_come() {
    let mut script = Script::new();
    let epoch = script.connect(false, 100).epoch;
    script.subscribe(epoch, "t", false);
    script.disconnect(epoch, false);
    let batch = |number| {
        let message = Some(record(number, "x"));
        let messages = vec![LaneMessage { number, message, match_subscriptions: true, ..LaneMessage::default() }];
        Command::Lane(LaneBatch { lane: 5, incarnation: 1, messages, previous: number - 1, ..LaneBatch::default() })
    };
    let answered = |number| Effect::LaneAnswered { node: 0, lane: 5, number, refused: vec![] };
    assert_eq!(script.apply(batch(1)), [answered(1)]);
    assert_eq!(script.apply(batch(3)), [answered(1)], "2 is missing");
    script.restart();
    assert_eq!(script.apply(batch(2)), [answered(2)]);
    assert_eq!(script.apply(batch(3)), [answered(3)]);
    assert_eq!(script.state.bodies.len(), 3, "each is kept once");
}

/// An acknowledgement that came twice could settle a later message under the same identifier.
#[test]
fn a_command_that_comes_again_by_its_lane_is_answered_and_not_applied() {
    let mut script = Script::new();
    let epoch = script.connect(false, 100).epoch;
    script.subscribe(epoch, "t", false);
    script.publish("first");
    let items = vec![AcknowledgeItem { kind: 4, packet_id: 1, reason: 0 }];
    let command = SessionCommand::Acknowledge(Acknowledge { client_id: "c".to_owned(), epoch, items });
    let message = LaneMessage { number: 1, command: Some(command), ..LaneMessage::default() };
    let batch = LaneBatch { lane: 5, incarnation: 1, messages: vec![message], ..LaneBatch::default() };
    let answered = Effect::LaneAnswered { node: 0, lane: 5, number: 1, refused: vec![] };
    assert_eq!(beside_settled(script.apply(Command::Lane(batch.clone()))), std::slice::from_ref(&answered));
    script.publish("second");
    assert_eq!(script.state.bodies.len(), 1, "the second, in flight");
    assert_eq!(script.apply(Command::Lane(batch)), [answered]);
    assert_eq!(script.state.bodies.len(), 1, "and still");
}

/// P10: the age of a retained message goes on through a restart.
#[test]
fn a_retained_message_is_forgotten_at_its_age_whatever_restarts() {
    let aged = GroupConfig { retained_age_ms_max: 10_000, ..config() };
    let mut script = Script { state: GroupState::new(aged), ..Script::new() };
    let mut message = script.message("x");
    message.store_retained = true;
    script.lane_batch(vec![message]);
    script.tick(6_000);
    let stored: BTreeMap<_, _> = script.state.snapshot();
    script.state = GroupState::restore(aged, Vec::from_iter(stored)).expect("whole");
    script.tick(3_000);
    assert_eq!(script.state.retained().len(), 1);
    script.tick(1_000 + CLOCK_LAG_MS_MAX);
    assert_eq!(script.state.retained().len(), 0);
}

/// P1, P2: of what was lost on its way it would say that it was refused.
#[test]
fn what_a_node_says_of_its_clients_counts_once_what_they_did_before_is_applied() {
    let mut script = Script::new();
    let resync = |said| Resync { incarnation: 1, arbiter: 5, said, ..Resync::default() };
    assert!(script.state.has_heard(2, &resync(0)), "it says so, or knows nothing of this");
    assert!(!script.state.has_heard(2, &resync(1)));
    let messages = vec![LaneMessage { number: 1, ..LaneMessage::default() }];
    let batch = LaneBatch { node: 2, lane: 1 << 12 | 5, incarnation: 1, messages, ..LaneBatch::default() };
    script.apply(Command::Lane(batch));
    assert!(script.state.has_heard(2, &resync(1)) && !script.state.has_heard(2, &resync(2)));
    assert!(!script.state.has_heard(3, &resync(1)), "another node");
    assert!(!script.state.has_heard(2, &Resync { arbiter: 6, ..resync(1) }), "another lane");
}

/// P1: a refusal that is forgotten before the origin has heard of it would pass for a success.
#[test]
fn no_more_is_refused_than_is_remembered() {
    const BATCH: u64 = 1000;
    let config = GroupConfig { delayed_messages_max: 0, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    let delay = |number| LaneMessage {
        number,
        message: Some(record(number, "x")),
        delay_ms: Some(5_000),
        ..LaneMessage::default()
    };
    let batch = |previous: u64, answered| {
        let messages = (previous + 1..=previous + BATCH).map(delay).collect();
        let head = LaneBatch { node: 2, lane: 1 << 12, incarnation: 1, ..LaneBatch::default() };
        Command::Lane(LaneBatch { messages, previous, answered, ..head })
    };
    let answers = |script: &mut Script, first: u64, answered| {
        let (mut last, mut refused) = (0, BTreeSet::new());
        for previous in (first..6 * BATCH).step_by(BATCH as usize) {
            for effect in script.apply(batch(previous, answered)) {
                let Effect::LaneAnswered { number, refused: new, .. } = effect else {
                    panic!("{effect:?}");
                };
                last = number;
                refused.extend(new.into_iter().map(|(number, _)| number));
            }
        }
        (last, refused)
    };
    let (last, _) = answers(&mut script, 0, 0);
    assert_eq!(last, REFUSED_MAX as u64);
    script.restart();
    let (last, refused) = answers(&mut script, 0, 0);
    assert_eq!(refused, (1..=last).collect(), "a new leader is asked about all of them");
    let (last, refused) = answers(&mut script, 4 * BATCH, last);
    assert_eq!(
        (last, refused),
        (6 * BATCH, (4 * BATCH + 1..=6 * BATCH).filter(|&number| number > REFUSED_MAX as u64).collect())
    );
}

/// P1: an answer says up to where everything was taken. If it is the one before it that is lost, what that one refused would pass for a
/// success, and be acknowledged though nobody has it.
#[test]
fn an_answer_has_what_was_refused_in_batches_before_until_the_origin_says_that_it_knows() {
    let config = GroupConfig { delayed_messages_max: 0, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    let message = |number, delay_ms| LaneMessage {
        number,
        message: Some(record(number, "x")),
        delay_ms,
        ..LaneMessage::default()
    };
    let mut refused = |previous, message, answered| {
        let head = LaneBatch { node: 2, lane: 1 << 12, incarnation: 1, ..LaneBatch::default() };
        let effects = script.apply(Command::Lane(LaneBatch { messages: vec![message], previous, answered, ..head }));
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::LaneAnswered { number, refused, .. } => Some((number, refused.len())),
            _ => None,
        });
        answer.expect("an answer")
    };
    assert_eq!(refused(0, message(1, Some(5_000)), 0), (1, 1));
    assert_eq!(refused(1, message(2, None), 0), (2, 1));
    assert_eq!(refused(7, message(8, None), 0), (2, 1), "nor over a gap");
    assert_eq!(refused(2, message(3, None), 2), (3, 0));
}
