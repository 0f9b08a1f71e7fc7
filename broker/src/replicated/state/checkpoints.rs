//! What checkpoints write: what changed, however much a session holds. And what may leave memory behind them.

use super::tests::{Script, claim, deliveries, owner, sent};
use super::*;
use crate::replicated::command::{
    Connect, Disconnect, LaneBatch, LaneMessage, MessageRecord, Subscribe, SubscribeFilter,
};
use crate::replicated::effect::Drop;
use crate::replicated::rows::MemoryRows;

/// Keys and values that the next checkpoint writes.
fn checkpoint_bytes(script: &mut Script) -> (usize, usize) {
    let began = std::time::Instant::now();
    let writes = script.state.take_dirty();
    let value = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
    let bytes = writes.iter().map(|(key, written)| key.len() + value(written)).sum();
    println!("{} writes, {bytes} bytes, {:?}", writes.len(), began.elapsed());
    (writes.len(), bytes)
}

fn roomy() -> Script {
    let config = GroupConfig { queue_messages_max: 1_000_000, queue_bytes_max: usize::MAX, ..super::tests::config() };
    let mut script = Script::new();
    script.state = GroupState::new(config);
    script
}

fn away(script: &mut Script, filters: impl Iterator<Item = String>, retained: bool) {
    let connect = Connect { session_expiry_seconds: 100, window_max: 128, ..claim(owner(1, 1), "c") };
    script.state.apply(Command::Connect(connect), &mut Vec::new());
    let filter = |filter| SubscribeFilter {
        filter,
        qos: 1,
        retain_handling: if retained { 0 } else { 2 },
        ..SubscribeFilter::default()
    };
    let filters = filters.map(filter).collect();
    let subscribe = Subscribe { client_id: "c".to_owned(), epoch: 1, packet_id: 1, filters, ..Subscribe::default() };
    script.state.apply(Command::Subscribe(subscribe), &mut Vec::new());
    let left = Disconnect { client_id: "c".to_owned(), epoch: 1, ..Disconnect::default() };
    script.state.apply(Command::Disconnect(left), &mut Vec::new());
}

fn publish(script: &mut Script, count: u64) {
    publish_of(script, count, 64);
}

fn publish_of(script: &mut Script, count: u64, payload_bytes: usize) {
    let message = |number| LaneMessage {
        number,
        message: Some(MessageRecord { payload: vec![7; payload_bytes].into(), ..super::tests::record(number, "") }),
        match_subscriptions: true,
        ..LaneMessage::default()
    };
    for _ in 0..count {
        script.lane += 1;
        let messages = vec![message(script.lane)];
        let batch = LaneBatch { lane: 1 << 12, incarnation: 1, messages, ..LaneBatch::default() };
        script.state.apply(Command::Lane(batch), &mut Vec::new());
    }
}

#[test]
fn a_checkpoint_of_a_long_queue_writes_what_came_since_the_last_one() {
    let mut script = roomy();
    away(&mut script, ["t".to_owned()].into_iter(), false);
    publish(&mut script, 100_000);
    checkpoint_bytes(&mut script);
    publish(&mut script, 10);
    let (_, bytes) = checkpoint_bytes(&mut script);
    assert!(bytes < 4_000);
}

#[test]
fn a_checkpoint_of_a_session_with_many_subscriptions_writes_those_that_changed() {
    let mut script = roomy();
    away(&mut script, (0..10_000).map(|number| format!("plant/{number}/temperature")).chain(["t".to_owned()]), false);
    checkpoint_bytes(&mut script);
    publish(&mut script, 10);
    let (_, bytes) = checkpoint_bytes(&mut script);
    assert!(bytes < 4_000);
}

#[test]
fn a_checkpoint_of_messages_behind_retained_ones_writes_those_that_changed() {
    let mut script = roomy();
    away(&mut script, ["t".to_owned()].into_iter(), true);
    publish(&mut script, 9_000);
    checkpoint_bytes(&mut script);
    publish(&mut script, 10);
    let (_, bytes) = checkpoint_bytes(&mut script);
    assert!(bytes < 4_000);
}

/// What was taken out of the middle of a queue is in the store until the next checkpoint: it must not come back with what is around
/// it (found by simulation, seed 1252).
#[test]
fn what_was_handed_on_does_not_come_back_with_what_is_read_around_it() {
    let mut script = Script::new();
    let rows = Arc::<MemoryRows>::default();
    script.state.keep_in(Arc::<MemoryRows>::clone(&rows));
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    script.subscribe(epoch, "$share/g/s", false);
    for payload in ["0", "1", "2"] {
        script.publish(payload);
    }
    let shares = vec!["$share/g/s".to_owned()];
    let shared = LaneMessage { match_subscriptions: false, shares, ..script.message("shared") };
    script.lane_batch(vec![shared]);
    script.publish("3");
    rows.write(script.state.take_dirty());

    let other = Connect { session_expiry_seconds: 100, ..claim(owner(1, 99), "d") };
    script.apply(Command::Connect(other));
    let filters = vec![SubscribeFilter { filter: "$share/g/s".to_owned(), qos: 1, ..SubscribeFilter::default() }];
    let subscribe = Subscribe { client_id: "d".to_owned(), epoch: 2, packet_id: 1, filters, ..Subscribe::default() };
    script.apply(Command::Subscribe(subscribe));
    assert_eq!(deliveries(&script.disconnect(epoch, false)), [sent(1, false, "shared")]);
    script.state.put_away(0);
    script.state.assert_invariants();
    rows.write(script.state.take_dirty());
    script.state.put_away(0);
    let middle = script.state.sessions["c"].outbound.middle();
    assert_eq!(middle.map(|middle| middle.messages), Some(2));

    let (opened, effects) = script.connect_with_will(false, 100, None);
    assert_eq!(deliveries(&effects), [sent(1, true, "0"), sent(2, true, "1")]);
    assert_eq!(deliveries(&script.acknowledge(opened.epoch, 4, 1)), [sent(3, false, "2")]);
    assert_eq!(deliveries(&script.acknowledge(opened.epoch, 4, 2)), [sent(4, false, "3")]);
}

/// A client that was away comes back, and wants nothing of what waited for it.
fn begin_anew(script: &mut Script) -> (std::time::Duration, u64) {
    let connect = Connect { clean_start: true, session_expiry_seconds: 100, ..claim(owner(1, 2), "c") };
    let (began, mut effects) = (std::time::Instant::now(), Vec::new());
    script.state.apply(Command::Connect(connect), &mut effects);
    let elapsed = began.elapsed();
    let dropped = effects.iter().map(|effect| match effect {
        Effect::Dropped { reason: Drop::SessionEnded, count } => *count,
        _ => 0,
    });
    (elapsed, dropped.sum())
}

const LONG: u64 = 100_000;

/// The one of a client that is away, and what of it is stored; beyond the first messages it is stored only, if it is `put_away`.
fn long_queue(put_away: bool) -> (Script, Arc<MemoryRows>) {
    let (mut script, rows) = (roomy(), Arc::<MemoryRows>::default());
    script.state.keep_in(Arc::<MemoryRows>::clone(&rows));
    away(&mut script, ["t".to_owned()].into_iter(), false);
    publish(&mut script, LONG / 2);
    rows.write(script.state.take_dirty());
    if put_away {
        script.state.put_away(0);
    }
    publish(&mut script, LONG / 2);
    (script, rows)
}

/// The thread that applies keeps the lease: how long a queue was must not hold it up.
#[test]
fn the_queue_of_a_session_that_ends_goes_bit_by_bit() {
    for put_away in [false, true] {
        let (mut script, rows) = long_queue(put_away);
        let (elapsed, dropped) = begin_anew(&mut script);
        println!("{LONG} messages, put away {put_away}: the session ended in {elapsed:?}");
        assert_eq!(dropped, LONG, "all are told of at once");
        assert_eq!(script.state.backlog().queued_messages, 0);
        let at_first = script.state.ended_messages();
        assert_eq!(at_first, LONG as usize - LET_GO_MESSAGES_MAX);
        let (mut turns, mut longest) = (0, std::time::Duration::ZERO);
        loop {
            let began = std::time::Instant::now();
            let all = script.state.let_ended_go(LET_GO_MESSAGES_MAX);
            (turns, longest) = (turns + 1, longest.max(began.elapsed()));
            assert_eq!(script.state.ended_messages(), at_first - turns * LET_GO_MESSAGES_MAX);
            if all {
                break;
            }
        }
        println!("{turns} turns, of which the longest took {longest:?}");
        assert_eq!(script.state.bodies.len(), 0);
        script.state.assert_invariants();
        rows.write(script.state.take_dirty());
        assert_eq!(rows.all(), script.state.snapshot());
    }
}

/// Whoever takes the state up from there knows nothing of what had still to go.
#[test]
fn a_checkpoint_has_nothing_of_the_queue_of_a_session_that_ended() {
    for put_away in [false, true] {
        let (mut script, rows) = long_queue(put_away);
        begin_anew(&mut script);
        assert!(script.state.ended_messages() > 0);
        rows.write(script.state.take_dirty());
        assert_eq!(script.state.ended_messages(), 0);
        assert_eq!(rows.all(), script.state.snapshot());
        let restored = GroupState::restore(script.state.config, Vec::from_iter(rows.all())).expect("a whole state");
        assert_eq!(restored.digest(), script.state.digest());
        restored.assert_invariants();
    }
}

/// What it takes, to be looked at: `cargo test --profile quick -p kentongan --lib how_long -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn how_long_a_state_of_100_mb_takes() {
    for (messages, payload) in [(100_000_u64, 900), (400_000, 64)] {
        let mut script = roomy();
        away(&mut script, ["t".to_owned()].into_iter(), false);
        publish_of(&mut script, messages, payload);
        let pairs: Vec<_> = script.state.snapshot().into_iter().collect();
        let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        let began = std::time::Instant::now();
        let state = GroupState::restore(script.state.config, &pairs[..]).expect("a whole state");
        println!("{messages} messages, {bytes} bytes: decoded in {:?}", began.elapsed());
        let began = std::time::Instant::now();
        drop(state);
        println!("dropped in {:?}", began.elapsed());
    }
}
