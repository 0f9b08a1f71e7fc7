use bytes::Bytes;

use super::*;
use crate::replicated::command::{
    Acknowledge, AcknowledgeItem, Connect, Disconnect, Fence, LaneBatch, LaneMessage, Receive, RetainedPage, Subscribe,
    SubscribeFilter, Tick, WillRecord,
};

fn config() -> GroupConfig {
    GroupConfig {
        queue_messages_max: 5,
        queue_bytes_max: 1_000_000,
        drop_policy: DropPolicy::New,
        retained: RetainedLimits::default(),
        one_each: false,
        retained_age_ms_max: 0,
        delayed_messages_max: 10,
    }
}

const OWNER: Owner = Owner { incarnation: 1, connection: 77, node: 0 };

/// A state machine whose effects can be compared whole, and whose every state survives its own checkpoint.
struct Script {
    state: GroupState,
    stored: BTreeMap<Vec<u8>, Vec<u8>>,
    lane: u64,
    connections: u64,
}

impl Script {
    fn new() -> Self {
        Self { state: GroupState::new(config()), stored: BTreeMap::new(), lane: 0, connections: 0 }
    }

    fn apply(&mut self, command: Command) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.state.apply(command, &mut effects);
        self.state.assert_invariants();
        effects
    }

    /// What a restart makes of it.
    fn restart(&mut self) {
        for (key, value) in self.state.take_dirty() {
            match value {
                Some(value) => drop(self.stored.insert(key, value)),
                None => drop(self.stored.remove(&key)),
            }
        }
        self.state = GroupState::restore(config(), self.stored.clone()).expect("a whole state");
        self.state.assert_invariants();
    }

    fn connect(&mut self, clean_start: bool, expiry: u32) -> OpenedSession {
        self.connect_with_will(clean_start, expiry, None).0
    }

    fn connect_with_will(
        &mut self,
        clean_start: bool,
        expiry: u32,
        will: Option<WillRecord>,
    ) -> (OpenedSession, Vec<Effect>) {
        self.connections += 1;
        let effects = self.apply(Command::Connect(Connect {
            owner: Some(Owner { connection: self.connections, ..OWNER }),
            client_id: "c".to_owned(),
            identity: String::new(),
            clean_start,
            session_expiry_seconds: expiry,
            will,
            window_max: 2,
            ..Connect::default()
        }));
        let opened = effects.iter().find_map(|effect| match effect {
            Effect::Opened(opened) => Some(opened.clone()),
            _ => None,
        });
        (opened.expect("opened"), effects)
    }

    fn disconnect(&mut self, epoch: u64, publish_will: bool) -> Vec<Effect> {
        let client_id = "c".to_owned();
        self.apply(Command::Disconnect(Disconnect { client_id, epoch, publish_will, session_expiry_seconds: None }))
    }

    fn subscribe(&mut self, epoch: u64, filter: &str, retained: bool) -> Option<u64> {
        let effects = self.apply(Command::Subscribe(Subscribe {
            client_id: "c".to_owned(),
            epoch,
            packet_id: 1,
            filters: vec![SubscribeFilter {
                filter: filter.to_owned(),
                qos: 2,
                retain_handling: if retained { 0 } else { 2 },
                ..SubscribeFilter::default()
            }],
        }));
        effects.iter().find_map(|effect| match effect {
            Effect::Subscribed { outcomes, .. } => Some(outcomes[0].read),
            _ => None,
        })?
    }

    fn message(&mut self, payload: &str) -> LaneMessage {
        self.lane += 1;
        LaneMessage {
            number: self.lane,
            message: Some(record(self.lane, payload)),
            match_subscriptions: true,
            ..LaneMessage::default()
        }
    }

    fn publish(&mut self, payload: &str) -> Vec<Effect> {
        let message = self.message(payload);
        self.lane_batch(vec![message])
    }

    fn lane_batch(&mut self, messages: Vec<LaneMessage>) -> Vec<Effect> {
        self.apply(Command::Lane(LaneBatch { lane: 1 << 12, incarnation: 1, messages, ..LaneBatch::default() }))
    }

    fn acknowledge(&mut self, epoch: u64, kind: u32, packet_id: u32) -> Vec<Effect> {
        let items = vec![AcknowledgeItem { kind, packet_id, reason: 0 }];
        self.apply(Command::Acknowledge(Acknowledge { client_id: "c".to_owned(), epoch, items }))
    }

    fn tick(&mut self, elapsed_ms: u64) -> Vec<Effect> {
        self.apply(Command::Tick(Tick { elapsed_ms, wall_ms: 0, bridge: false }))
    }
}

fn record(number: u64, payload: &str) -> MessageRecord {
    MessageRecord {
        lane: 1 << 12,
        number,
        topic: "t".to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos: 1,
        ..MessageRecord::default()
    }
}

/// (Packet Identifier, DUP, payload) of what is to be sent.
fn deliveries(effects: &[Effect]) -> Vec<(u16, bool, String)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Deliver(delivery) => Some((
                delivery.packet_id.get(),
                delivery.dup,
                String::from_utf8_lossy(&delivery.message.payload).into_owned(),
            )),
            _ => None,
        })
        .collect()
}

fn sent(id: u16, dup: bool, payload: &str) -> (u16, bool, String) {
    (id, dup, payload.to_owned())
}

/// A lane's number is applied once, whatever a leader resends.
#[test]
fn a_lane_message_that_comes_again_changes_nothing() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    let message = script.message("one");
    assert_eq!(deliveries(&script.lane_batch(vec![message.clone()])), [sent(1, false, "one")]);
    script.restart();
    let again = script.lane_batch(vec![message]);
    assert_eq!(
        again,
        [Effect::LaneAnswered { node: 0, lane: 1 << 12, number: 1, refused: vec![] }],
        "answered, not applied"
    );
}

/// P7: what carries an older epoch changes nothing.
#[test]
fn commands_of_an_older_claim_are_ignored() {
    let mut script = Script::new();
    let old = script.connect(true, 100).epoch;
    script.subscribe(old, "t", false);
    script.publish("one");
    let new = script.connect(false, 100);
    assert!(new.session_present);
    assert_eq!(script.acknowledge(old, 4, 1), []);
    assert_eq!(script.disconnect(old, true), []);
    assert_eq!(script.state.sessions["c"].outbound.in_flight(), 1);
}

/// [MQTT-3.3.4-9]: apply itself fills the window, and no more than the window; a restart in between changes nothing.
#[test]
fn the_window_is_filled_at_apply_and_by_acknowledgements() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    assert_eq!(deliveries(&script.publish("one")), [sent(1, false, "one")]);
    assert_eq!(deliveries(&script.publish("two")), [sent(2, false, "two")]);
    assert_eq!(deliveries(&script.publish("three")), []);
    script.restart();
    assert_eq!(deliveries(&script.acknowledge(epoch, 4, 1)), [sent(3, false, "three")]);
    script.restart();
    script.disconnect(epoch, false);
    let (_, effects) = script.connect_with_will(false, 100, None);
    assert_eq!(deliveries(&effects), [sent(2, true, "two"), sent(3, true, "three")], "again, with DUP, in order");
}

/// P1: what does not fit is dropped by policy, and counted.
#[test]
fn a_full_queue_counts_what_it_drops() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    script.disconnect(epoch, false);
    let dropped: u64 = (0..8)
        .flat_map(|number| script.publish(&format!("{number}")))
        .map(|effect| if let Effect::Dropped { reason: Drop::QueueFull, count } = effect { count } else { 0 })
        .sum();
    assert_eq!(dropped, 3);
    script.restart();
    let (_, effects) = script.connect_with_will(false, 100, None);
    assert_eq!(deliveries(&effects), [sent(1, false, "0"), sent(2, false, "1")]);
}

/// P10: a session ends when its time has come, not before, and a restart does not prolong it.
#[test]
fn a_session_expires_by_elapsed_time() {
    let mut script = Script::new();
    let epoch = script.connect(true, 10).epoch;
    script.disconnect(epoch, false);
    script.tick(9_000);
    script.restart();
    assert_eq!(script.state.sessions(), 1);
    let effects = script.tick(1_000);
    assert!(effects.contains(&Effect::SessionExpired));
    assert_eq!(script.state.sessions(), 0);
    assert!(!script.connect(false, 10).session_present);
}

/// Wall time only bridges a stop of the whole cluster, and never backwards.
#[test]
fn wall_time_bridges_a_stop_and_never_runs_backwards() {
    let mut script = Script::new();
    script.apply(Command::Tick(Tick { elapsed_ms: 0, wall_ms: 1_000_000, bridge: true }));
    assert_eq!(script.state.clock_ms(), 0, "the first start bridges nothing");
    script.apply(Command::Tick(Tick { elapsed_ms: 5, wall_ms: 1_060_000, bridge: true }));
    assert_eq!(script.state.clock_ms(), 60_000);
    script.apply(Command::Tick(Tick { elapsed_ms: 7, wall_ms: 3, bridge: true }));
    assert_eq!(script.state.clock_ms(), 60_007);
}

fn will(delay_seconds: u32) -> Option<WillRecord> {
    Some(WillRecord { message: Some(record(0, "bye")), delay_seconds })
}

fn routes(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Route { .. })).count()
}

/// P9, [MQTT-3.1.2-8], [MQTT-3.1.3-9]: once per abnormal end, after its delay, cancelled by resuming.
#[test]
fn a_will_is_published_once_after_its_delay_unless_resumed() {
    let mut script = Script::new();
    let (opened, _) = script.connect_with_will(true, 100, will(0));
    assert_eq!(routes(&script.disconnect(opened.epoch, true)), 1);
    assert_eq!(routes(&script.tick(200_000)), 0, "the session ends, its will was published");

    let (opened, _) = script.connect_with_will(true, 100, will(20));
    assert_eq!(routes(&script.disconnect(opened.epoch, true)), 0);
    script.restart();
    let (opened, effects) = script.connect_with_will(false, 100, will(20));
    assert_eq!(routes(&effects), 0);
    assert_eq!(routes(&script.tick(30_000)), 0, "resumed before the delay ran out");
    assert_eq!(routes(&script.disconnect(opened.epoch, true)), 0);
    assert_eq!(routes(&script.tick(20_000)), 1);

    let (opened, _) = script.connect_with_will(true, 5, will(20));
    script.disconnect(opened.epoch, true);
    assert_eq!(routes(&script.tick(5_000)), 1, "the session ends before the delay does");

    let (opened, _) = script.connect_with_will(true, 100, will(0));
    assert_eq!(routes(&script.disconnect(opened.epoch, false)), 0, "[MQTT-3.14.4-3]");
    assert_eq!(routes(&script.tick(200_000)), 0);
}

/// The connections of a process that died end, their wills are published, its lanes are refused.
#[test]
fn a_fence_ends_what_an_older_incarnation_held() {
    let mut script = Script::new();
    let (opened, _) = script.connect_with_will(true, 100, will(0));
    script.subscribe(opened.epoch, "t", false);
    script.restart();
    let effects = script.apply(Command::Fence(Fence { below: 2, sessions_max: 10, node: 0 }));
    assert_eq!(routes(&effects), 1);
    assert_eq!(effects.last(), Some(&Effect::Fenced { more: false }));
    assert_eq!(script.publish("late"), [], "a lane of the older incarnation");
    assert_eq!(script.acknowledge(opened.epoch, 4, 1), []);
}

/// P3, [MQTT-4.3.3-10]: message and identifier are one entry; a repeated identifier is answered, not routed.
#[test]
fn a_qos_2_message_is_taken_once() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    let receive =
        Receive { client_id: "c".to_owned(), epoch, packet_id: 9, message: Some(record(5, "x")), delay_ms: None };
    let first = script.apply(Command::Receive(receive.clone()));
    assert_eq!((routes(&first), first.len()), (1, 2), "{first:?}");
    script.restart();
    let again = script.apply(Command::Receive(receive.clone()));
    assert_eq!((routes(&again), again.len()), (0, 1), "PUBREC again, and nothing else: {again:?}");
    let mut lead = Vec::new();
    script.state.lead(&mut lead);
    assert_eq!(routes(&lead), 1, "a new leader routes what is still in the outbox");
    script.apply(Command::Routed(command::Routed { positions: vec![1] }));
    script.restart();
    let mut lead = Vec::new();
    script.state.lead(&mut lead);
    assert_eq!(routes(&lead), 0);
    script.acknowledge(epoch, 6, 9);
    assert_eq!(routes(&script.apply(Command::Receive(receive))), 1, "after PUBREL it is a new message [MQTT-4.3.3-12]");
}

/// Live messages wait behind retained ones; what is in both comes once, and the order of the topic stays.
#[test]
fn live_messages_wait_until_the_retained_ones_are_there() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    let read = script.subscribe(epoch, "t", true).expect("a read");
    assert_eq!(deliveries(&script.publish("older")), []);
    assert_eq!(deliveries(&script.publish("kept")), []);
    script.restart();
    let page = RetainedPage {
        client_id: "c".to_owned(),
        filter: "t".to_owned(),
        read,
        messages: vec![record(2, "kept")],
        last: true,
    };
    let effects = script.apply(Command::RetainedPage(page.clone()));
    assert_eq!(deliveries(&effects), [sent(1, false, "older"), sent(2, false, "kept")]);
    assert_eq!(script.apply(Command::RetainedPage(page)), [], "a page of a read that is over");
}

/// What came and went between two checkpoints is never written.
#[test]
fn what_is_settled_before_a_checkpoint_is_never_stored() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    script.state.take_dirty();
    script.publish("one");
    script.acknowledge(epoch, 4, 1);
    let keys: Vec<u8> = script.state.take_dirty().iter().map(|(key, _)| key[0]).collect();
    assert!(!keys.contains(&b'q') && !keys.contains(&b'b'), "{keys:?}");
    assert!(script.state.take_dirty().is_empty());
}

/// [MQTT-3.3.2-5]: a message whose time ran out while it waited is not sent; [MQTT-4.3.3-7]: one that was sent is.
#[test]
fn a_message_expires_in_the_queue_and_not_in_the_window() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    for payload in ["one", "two", "three"] {
        let mut message = script.message(payload);
        if let Some(record) = &mut message.message {
            record.expiry_left_ms = Some(5_000);
        }
        script.lane_batch(vec![message]);
    }
    script.tick(6_000);
    let effects = script.acknowledge(epoch, 4, 1);
    assert_eq!(effects, [Effect::Dropped { reason: Drop::Expired, count: 1 }]);
    script.disconnect(epoch, false);
    let (_, effects) = script.connect_with_will(false, 100, None);
    assert_eq!(deliveries(&effects), [sent(2, true, "two")]);
}
