//! What checkpoints write: what changed, however much a session holds. And what may leave memory behind them.

use super::tests::{Script, claim, deliveries, owner, sent};
use super::*;
use crate::replicated::command::{
    Connect, Disconnect, LaneBatch, LaneMessage, MessageRecord, Subscribe, SubscribeFilter,
};
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
    let message = |number| LaneMessage {
        number,
        message: Some(MessageRecord { payload: vec![7; 64].into(), ..super::tests::record(number, "") }),
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
