use bytes::Bytes;

use super::resync::Has;
use super::*;
use crate::replicated::command::{
    self, Acknowledge, AcknowledgeItem, Connect, Disconnect, Fence, LaneBatch, LaneMessage, OutboxSettled, Receive,
    Released, RetainedPage, SessionCommand, Subscribe, SubscribeFilter, Tick, Unsubscribe, WillRecord,
};
use crate::replicated::effect::Drop;

pub(super) fn config() -> GroupConfig {
    GroupConfig {
        queue_messages_max: 5,
        queue_bytes_max: 1_000_000,
        drop_policy: DropPolicy::New,
        retained: RetainedLimits::default(),
        one_each: false,
        share_strategy: PickStrategy::RoundRobin,
        retained_age_ms_max: 0,
        delayed_messages_max: 10,
    }
}

const OWNER: Owner = Owner { incarnation: 1, connection: 77, node: 0 };

/// A state machine whose effects can be compared whole, and whose every state survives its own checkpoint.
pub(super) struct Script {
    pub(super) state: GroupState,
    stored: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) lane: u64,
    connections: u64,
}

impl Script {
    pub(super) fn new() -> Self {
        Self { state: GroupState::new(config()), stored: BTreeMap::new(), lane: 0, connections: 0 }
    }

    pub(super) fn apply(&mut self, command: Command) -> Vec<Effect> {
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
        self.state =
            GroupState::restore(self.state.config, Vec::from_iter(self.stored.clone())).expect("a whole state");
        self.state.assert_invariants();
    }

    pub(super) fn connect(&mut self, clean_start: bool, expiry: u32) -> OpenedSession {
        self.connect_with_will(clean_start, expiry, None).0
    }

    pub(super) fn connect_with_will(
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

    pub(super) fn disconnect(&mut self, epoch: u64, publish_will: bool) -> Vec<Effect> {
        let client_id = "c".to_owned();
        self.apply(Command::Disconnect(Disconnect { client_id, epoch, publish_will, ..Disconnect::default() }))
    }

    pub(super) fn subscribe(&mut self, epoch: u64, filter: &str, retained: bool) -> Option<u64> {
        self.subscribe_once_more(epoch, filter, retained, false)
    }

    fn subscribe_once_more(&mut self, epoch: u64, filter: &str, retained: bool, again: bool) -> Option<u64> {
        self.subscribe_handling(epoch, filter, if retained { 0 } else { 2 }, again)
    }

    fn subscribe_handling(&mut self, epoch: u64, filter: &str, retain_handling: u32, again: bool) -> Option<u64> {
        let effects = self.apply(Command::Subscribe(Subscribe {
            client_id: "c".to_owned(),
            epoch,
            packet_id: 1,
            filters: vec![SubscribeFilter {
                filter: filter.to_owned(),
                qos: 2,
                retain_handling,
                ..SubscribeFilter::default()
            }],
            again,
            ..Subscribe::default()
        }));
        effects.iter().find_map(|effect| match effect {
            Effect::Subscribed { outcomes, .. } => Some(outcomes[0].read),
            _ => None,
        })?
    }

    pub(super) fn message(&mut self, payload: &str) -> LaneMessage {
        self.lane += 1;
        LaneMessage {
            number: self.lane,
            message: Some(record(self.lane, payload)),
            match_subscriptions: true,
            ..LaneMessage::default()
        }
    }

    pub(super) fn publish(&mut self, payload: &str) -> Vec<Effect> {
        let message = self.message(payload);
        self.lane_batch(vec![message])
    }

    pub(super) fn lane_batch(&mut self, messages: Vec<LaneMessage>) -> Vec<Effect> {
        self.apply(Command::Lane(LaneBatch { lane: 1 << 12, incarnation: 1, messages, ..LaneBatch::default() }))
    }

    pub(super) fn acknowledge(&mut self, epoch: u64, kind: u32, packet_id: u32) -> Vec<Effect> {
        let items = vec![AcknowledgeItem { kind, packet_id, reason: 0 }];
        self.apply(Command::Acknowledge(Acknowledge { client_id: "c".to_owned(), epoch, items }))
    }

    fn tick(&mut self, elapsed_ms: u64) -> Vec<Effect> {
        self.apply(Command::Tick(Tick { elapsed_ms, ..Tick::default() }))
    }
}

pub(super) fn record(number: u64, payload: &str) -> MessageRecord {
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
pub(super) fn deliveries(effects: &[Effect]) -> Vec<(u16, bool, String)> {
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

pub(super) fn sent(id: u16, dup: bool, payload: &str) -> (u16, bool, String) {
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

/// The log says "identifier 17 is acknowledged": after a restart that must be the same message as before.
#[test]
fn a_restart_gives_messages_the_same_identifiers() {
    let mut scripts = [Script::new(), Script::new()];
    let mut given = Vec::new();
    for (script, restarts) in scripts.iter_mut().zip([false, true]) {
        let wide = Connect { window_max: 40, clean_start: true, ..claim(OWNER, "c") };
        script.apply(Command::Connect(wide));
        script.subscribe(1, "t", false);
        for number in 0..20 {
            script.publish(&format!("{number}"));
        }
        for id in 2..=20 {
            script.acknowledge(1, 4, id);
        }
        if restarts {
            script.restart();
        }
        let ids: Vec<_> = (0..20).flat_map(|_| deliveries(&script.publish("x"))).map(|(id, ..)| id).collect();
        given.push(ids);
    }
    assert_eq!(given[0], given[1]);
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
        .map(|effect| if let Effect::Dropped { reason: Drop::QueueMessages, count } = effect { count } else { 0 })
        .sum();
    assert_eq!(dropped, 3);
    script.restart();
    let (_, effects) = script.connect_with_will(false, 100, None);
    assert_eq!(deliveries(&effects), [sent(1, false, "0"), sent(2, false, "1")]);
}

/// The lower of the group's bound and the listener's holds, is stored with the session, and goes with the next claim.
#[test]
fn a_cap_of_the_listener_stays_with_the_session() {
    for (cap, kept) in [(3, 3), (50, 5)] {
        let mut script = Script::new();
        let epoch = script.connect(true, 100).epoch;
        script.subscribe(epoch, "t", false);
        script.disconnect(epoch, false);
        let capped = Connect { queue_messages_max: Some(cap), ..claim(owner(1, 7), "c") };
        let epoch = script.apply(Command::Connect(capped)).iter().find_map(|effect| match effect {
            Effect::Opened(opened) => Some(opened.epoch),
            _ => None,
        });
        script.disconnect(epoch.expect("opened"), false);
        script.restart();
        let queued = |script: &Script| script.state.sessions["c"].outbound.queue_len();
        for number in 0..8 {
            script.publish(&format!("{number}"));
        }
        assert_eq!(queued(&script), kept);
        script.restart();
        assert_eq!(queued(&script), kept);
        let epoch = script.connect(false, 100).epoch;
        script.disconnect(epoch, false);
        for number in 0..8 {
            script.publish(&format!("{number}"));
        }
        assert_eq!(queued(&script), 5, "a claim without a cap");
    }
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
    assert_eq!(script.tick(1_000), [], "the clock may have lagged when it was left alone");
    let effects = script.tick(CLOCK_LAG_MS_MAX);
    assert!(effects.contains(&Effect::SessionExpired));
    assert_eq!(script.state.sessions(), 0);
    assert!(!script.connect(false, 10).session_present);
}

/// Wall time only bridges a stop of the whole cluster, and never backwards.
#[test]
fn wall_time_bridges_a_stop_and_never_runs_backwards() {
    let mut script = Script::new();
    script.apply(Command::Tick(Tick { elapsed_ms: 0, wall_ms: 1_000_000, bridge: true, from_ms: None }));
    assert_eq!(script.state.clock_ms(), 0, "the first start bridges nothing");
    script.apply(Command::Tick(Tick { elapsed_ms: 5, wall_ms: 1_060_000, bridge: true, from_ms: None }));
    assert_eq!(script.state.clock_ms(), 60_000);
    script.apply(Command::Tick(Tick { elapsed_ms: 7, wall_ms: 3, bridge: true, from_ms: None }));
    assert_eq!(script.state.clock_ms(), 60_007);
}

fn will(delay_seconds: u32) -> Option<WillRecord> {
    Some(WillRecord { message: Some(record(0, "bye")), delay_seconds, publish_delay_ms: None })
}

fn routes(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Route { .. })).count()
}

/// A claim was granted and no client was told.
fn never_began(epoch: u64) -> Command {
    let client_id = "c".to_owned();
    Command::Disconnect(Disconnect { client_id, epoch, never_began: true, ..Disconnect::default() })
}

/// P9, [MQTT-3.1.2-8]: who was not accepted has no will. One that its client left before is published as it would have been.
#[test]
fn a_claim_of_which_no_connection_came_leaves_the_session_and_its_will_as_they_were() {
    let mut script = Script::new();
    let (opened, _) = script.connect_with_will(true, 100, will(20));
    script.disconnect(opened.epoch, true);
    script.tick(5_000);
    // Refused after all: twice, and with other terms.
    for _ in 0..2 {
        let (opened, _) = script.connect_with_will(false, 0, will(0));
        assert!(opened.session_present);
        script.restart();
        assert_eq!(script.apply(never_began(opened.epoch)), [], "no will, and no end of the session");
    }
    assert_eq!(routes(&script.tick(14_000)), 0);
    assert_eq!(
        routes(&script.tick(1_000 + CLOCK_LAG_MS_MAX)),
        1,
        "20 s behind the end of the connection that there was"
    );
    assert!(script.connect(false, 100).session_present);
}

/// P9: the delay may have passed while it was being decided who serves the client.
#[test]
fn a_will_that_became_due_while_a_claim_stood_of_which_no_connection_came_is_published_with_its_end() {
    let mut script = Script::new();
    let (opened, _) = script.connect_with_will(true, 100, will(20));
    script.disconnect(opened.epoch, true);
    let opened = script.connect(false, 100);
    assert_eq!(routes(&script.tick(60_000)), 0);
    assert_eq!(routes(&script.apply(never_began(opened.epoch))), 1);
}

/// P8: nobody heard of it.
#[test]
fn a_session_that_began_with_a_claim_of_which_no_connection_came_ends_with_it() {
    let mut script = Script::new();
    let (opened, _) = script.connect_with_will(true, 100, will(0));
    assert_eq!(script.apply(never_began(opened.epoch)), [session(false)]);
    assert!(!script.connect(false, 100).session_present);
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
    assert_eq!(routes(&script.tick(20_000)), 0, "the clock may have lagged when it was left alone");
    assert_eq!(routes(&script.tick(CLOCK_LAG_MS_MAX)), 1);

    let (opened, _) = script.connect_with_will(true, 5, will(20));
    script.disconnect(opened.epoch, true);
    assert_eq!(routes(&script.tick(5_000 + CLOCK_LAG_MS_MAX)), 1, "the session ends before the delay does");

    let (opened, _) = script.connect_with_will(true, 100, will(0));
    assert_eq!(routes(&script.disconnect(opened.epoch, false)), 0, "[MQTT-3.14.4-3]");
    assert_eq!(routes(&script.tick(200_000)), 0);
}

/// A will to `$delayed/SECONDS/TOPIC` is routed that much later than another, also after a restart.
#[test]
fn a_delayed_will_waits_in_the_outbox() {
    let mut script = Script::new();
    let (opened, _) = script.connect_with_will(true, 100, delayed_will());
    script.disconnect(opened.epoch, true);
    assert_eq!(script.tick(5_000 + CLOCK_LAG_MS_MAX), [Effect::WillPublished], "the Will Delay Interval comes first");
    script.restart();
    assert_eq!(routes(&script.tick(9_999 + CLOCK_LAG_MS_MAX)), 0);
    assert_eq!(routes(&script.tick(1)), 1);
}

/// Whoever could be told that too many wait already is gone: it is counted.
#[test]
fn a_delayed_will_without_room_is_dropped() {
    let config = GroupConfig { delayed_messages_max: 1, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    for expected in [vec![], vec![Effect::Dropped { reason: Drop::Delayed, count: 1 }]] {
        let (opened, _) = script.connect_with_will(true, 100, delayed_will());
        script.disconnect(opened.epoch, true);
        let effects = script.tick(5_000 + CLOCK_LAG_MS_MAX);
        assert_eq!(effects[0], Effect::WillPublished);
        assert_eq!(effects[1..], expected);
    }
}

fn delayed_will() -> Option<WillRecord> {
    Some(WillRecord { publish_delay_ms: Some(10_000), ..will(5).expect("a will") })
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
    assert_eq!(effects.last(), Some(&Effect::Fenced { node: 0, below: 2, more: false }));
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

/// P6: PUBREC says that the message is retained, and it is not before its group has it (found by simulation, seed 575).
#[test]
fn a_qos_2_message_to_be_retained_is_acknowledged_when_it_is_routed() {
    let mut script = Script::new();
    let first = script.connect(true, 100);
    let retained = MessageRecord { retain: true, publisher: "c".to_owned(), ..record(5, "x") };
    let receive = |epoch| {
        let (client_id, message) = ("c".to_owned(), Some(retained.clone()));
        Command::Receive(Receive { client_id, epoch, packet_id: 9, message, delay_ms: None })
    };
    let effects = script.apply(receive(first.epoch));
    assert_eq!((routes(&effects), effects.len()), (1, 1), "no PUBREC: {effects:?}");
    script.restart();
    let id = PacketId::new(9).expect("not zero");
    let waits = Has { receiving: vec![id], ..Has::default() };
    let mut effects = Vec::new();
    script.state.resync("c", first.owner, first.epoch, &waits, &mut effects);
    assert_eq!(effects, [], "nor by a new leader");
    let second = script.connect(false, 100);
    assert_eq!(second.received, [], "so the node asks here when PUBLISH comes again");
    assert_eq!(script.apply(receive(second.epoch)), [], "not routed again, and not answered yet");
    let routed = || Command::Routed(command::Routed { positions: vec![1] });
    let pubrec = |opened: &OpenedSession| Effect::Acknowledge {
        owner: opened.owner,
        epoch: opened.epoch,
        kind: AckKind::PubRec,
        packet_id: id,
        reason: ReasonCode::Success,
    };
    assert_eq!(script.apply(routed()), [pubrec(&second)]);
    assert_eq!(script.apply(routed()), [], "said again");
    assert_eq!(script.apply(receive(second.epoch)), [pubrec(&second)]);
    assert_eq!(script.connect(false, 100).received, [id], "the node may answer by itself");
}

/// Who waited for it is away, or begins a new session under the same name.
#[test]
fn a_held_pubrec_is_for_its_own_session_only() {
    for clean_start in [false, true] {
        let mut script = Script::new();
        let epoch = script.connect(true, 100).epoch;
        let message = Some(MessageRecord { retain: true, publisher: "c".to_owned(), ..record(5, "x") });
        let client_id = "c".to_owned();
        script.apply(Command::Receive(Receive { client_id, epoch, packet_id: 9, message, delay_ms: None }));
        script.disconnect(epoch, false);
        if clean_start {
            script.connect(true, 100);
        }
        let routed = Command::Routed(command::Routed { positions: vec![1] });
        assert_eq!(script.apply(routed), [], "clean start: {clean_start}");
    }
}

fn transient_opened(owner: Owner, epoch: u64) -> Effect {
    Effect::Opened(super::transient_opened(owner, &Arc::from("c"), epoch))
}

fn unrouted(exists: bool) -> Effect {
    super::unrouted_effect(&Arc::from("c"), exists)
}

/// One with a QoS 2 message at position 1 of the outbox, whose session has ended.
fn with_unrouted_message() -> Script {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    let message = Some(MessageRecord { publisher: "c".to_owned(), qos: 2, ..record(5, "x") });
    let client_id = "c".to_owned();
    script.apply(Command::Receive(Receive { client_id, epoch, packet_id: 9, message, delay_ms: None }));
    let (client_id, publish_will) = ("c".to_owned(), false);
    let ends = Disconnect { client_id, epoch, publish_will, session_expiry_seconds: Some(0), never_began: false };
    let effects = script.apply(Command::Disconnect(ends));
    assert_eq!(effects, [unrouted(true), session(false)], "another kind of session may not begin unasked");
    script
}

fn routed() -> Command {
    Command::Routed(command::Routed { positions: vec![1] })
}

/// P5: what a transient session sends goes by no outbox, and would overtake what the client had sent before (found by simulation,
/// seed 1420).
#[test]
fn a_transient_session_begins_when_what_its_client_sent_before_is_routed() {
    for keep_transient in [true, false] {
        let mut script = with_unrouted_message();
        let owner = owner(1, 7);
        let transient = Connect { session_expiry_seconds: 0, keep_transient, will: will(0), ..claim(owner, "c") };
        assert_eq!(script.apply(Command::Connect(transient.clone())), []);
        assert_eq!(script.apply(Command::Connect(transient.clone())), [], "proposed again, it waits for the same");
        script.restart();
        let mut effects = Vec::new();
        script.state.lead(&mut effects);
        assert_eq!(effects, [unrouted(true), Effect::Route { position: 1 }], "a new leader grants nothing either");
        effects.clear();
        assert_eq!(script.state.claim_again("c", owner, &mut effects), None);
        script.state.close_unknown((1, 1), |_| true, &mut effects);
        assert_eq!(effects, [], "nor does it answer whoever waits, and nobody has anything to let go of");
        assert_eq!(script.apply(routed()), [unrouted(false), transient_opened(owner, 2)]);
        assert_eq!(script.state.sessions(), usize::from(keep_transient));
        assert_eq!(script.tick(60_000), [], "who is connected does not expire");
    }
}

/// Nobody knows when the others will have it: the client may try again, or elsewhere.
#[test]
fn a_transient_session_is_refused_if_what_its_client_sent_before_is_not_routed_in_time() {
    let mut script = with_unrouted_message();
    let owner = owner(1, 7);
    let transient = Connect { session_expiry_seconds: 0, keep_transient: true, will: will(0), ..claim(owner, "c") };
    script.apply(Command::Connect(transient));
    assert_eq!(script.tick(4000), [], "its clock may have lagged when the claim came");
    script.restart();
    let refused = Effect::Refused { owner, reason: ReasonCode::ServerUnavailable };
    assert_eq!(script.tick(500), [refused], "no session, so no will");
    assert_eq!(script.state.sessions(), 0);
    assert_eq!(script.apply(routed()), [unrouted(false)]);
}

#[test]
fn a_claim_that_is_held_back_gives_way_to_the_next_one_or_to_a_fence() {
    let mut script = with_unrouted_message();
    let (first, second, third) = (owner(1, 7), owner(2, 8), owner(3, 9));
    let transient = |owner| {
        let with = Connect { session_expiry_seconds: 0, keep_transient: true, will: will(0), ..claim(owner, "c") };
        Command::Connect(with)
    };
    let refused = |owner, reason| Effect::Refused { owner, reason };
    script.apply(transient(first));
    assert_eq!(script.apply(transient(second)), [refused(first, ReasonCode::SessionTakenOver)]);
    let fence = Command::Fence(Fence { below: 2, sessions_max: 10, node: 2 });
    let fenced = Effect::Fenced { node: 2, below: 2, more: false };
    assert_eq!(script.apply(fence), [refused(second, ReasonCode::ServerUnavailable), fenced]);
    script.apply(transient(first));
    let effects = script.apply(Command::Connect(claim(third, "c")));
    let goes_on =
        [refused(first, ReasonCode::SessionTakenOver), session(true), unrouted(false), opened(third, 5, false)];
    assert_eq!(effects, goes_on, "what a persistent session sends goes by the same outbox");
    assert_eq!(script.apply(routed()), []);
}

/// What a client sends in its order is not all that waits in the outbox for it.
#[test]
fn a_will_or_a_delayed_message_holds_no_claim_back() {
    let mut script = Script::new();
    let (opened, _) = script.connect_with_will(true, 100, will(0));
    let message = Some(MessageRecord { publisher: "c".to_owned(), qos: 2, ..record(5, "x") });
    let (client_id, epoch, delay_ms) = ("c".to_owned(), opened.epoch, Some(1000));
    script.apply(Command::Receive(Receive { client_id, epoch, packet_id: 9, message, delay_ms }));
    assert_eq!(routes(&script.disconnect(epoch, true)), 1);
    let owner = owner(1, 7);
    let (clean_start, session_expiry_seconds, keep_transient) = (true, 0, true);
    let transient = Connect { clean_start, session_expiry_seconds, keep_transient, ..claim(owner, "c") };
    let effects = script.apply(Command::Connect(transient));
    assert_eq!(effects, [session(false), transient_opened(owner, 2)]);
    assert_eq!(routes(&script.tick(1500)), 1, "the delayed one");
}

/// [MQTT-3.3.1-9, MQTT-3.3.1-10]: what the first SUBSCRIBE was owed comes although it was replaced, for the second counts on
/// it; unless that one wants nothing [MQTT-3.3.1-11].
#[test]
fn a_read_goes_on_for_a_subscription_that_counts_on_it() {
    for (handling, delivered) in [(1, 1), (2, 0)] {
        let mut script = Script::new();
        let opened = script.connect(true, 100);
        let read = script.subscribe_handling(opened.epoch, "t", 0, false).expect("a read");
        assert_eq!(script.subscribe_handling(opened.epoch, "t", handling, false), None);
        let (client_id, filter) = ("c".to_owned(), "t".to_owned());
        let messages = vec![MessageRecord { retain: true, ..record(1, "x") }];
        let page = RetainedPage { client_id, filter, read, messages, last: true };
        let effects = script.apply(Command::RetainedPage(page));
        assert_eq!(deliveries(&effects).len(), delivered, "Retain Handling {handling}: {effects:?}");
    }
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

/// P10: expiries and delays run while a batch waits for a leader (found by simulation, seeds 14 and 328).
#[test]
fn what_is_left_of_an_expiry_or_a_delay_is_what_the_lane_left_of_it() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    let expiring = |script: &mut Script, payload| {
        let mut message = script.message(payload);
        // The origin's clock said 20 s when it came, and it lives for 5.
        message.message.as_mut().expect("there is one").expiry_left_ms = Some(25_000);
        message
    };
    let sent_at = |script: &mut Script, clock_ms, messages| {
        let batch = LaneBatch { lane: 1 << 12, incarnation: 1, messages, clock_ms, ..LaneBatch::default() };
        script.apply(Command::Lane(batch))
    };
    let message = expiring(&mut script, "in time");
    let effects = sent_at(&mut script, 22_000, vec![message]);
    let left = effects.iter().find_map(|effect| match effect {
        Effect::Deliver(delivery) => Some(delivery.expiry_left_ms),
        _ => None,
    });
    assert_eq!(left, Some(Some(3_000)));
    let message = expiring(&mut script, "too late");
    let effects = sent_at(&mut script, 25_000, vec![message]);
    assert_eq!(effects[0], Effect::Dropped { reason: Drop::Expired, count: 1 });
    assert_eq!(deliveries(&effects), []);

    let message = LaneMessage { delay_ms: Some(30_000), ..script.message("delayed") };
    sent_at(&mut script, 27_000, vec![message]);
    assert_eq!(routes(&script.tick(3_400)), 0, "the group's clock may lag");
    assert_eq!(routes(&script.tick(200)), 1);
}

// Claims in a cluster: the present owner may be on another node.

/// A connection of a node's first incarnation.
pub(super) fn owner(node: u64, connection: u64) -> Owner {
    Owner { incarnation: 1, connection, node }
}

pub(super) fn claim(owner: Owner, client_id: &str) -> Connect {
    Connect {
        owner: Some(owner),
        client_id: client_id.to_owned(),
        session_expiry_seconds: 100,
        window_max: 10,
        wait_for_release: true,
        ..Connect::default()
    }
}

fn opened(owner: Owner, epoch: u64, session_present: bool) -> Effect {
    Effect::Opened(OpenedSession {
        owner,
        client_id: Arc::from("c"),
        epoch,
        persistent: true,
        session_present,
        subscriptions: Vec::new(),
        received: Vec::new(),
    })
}

fn close(owner: Owner, epoch: u64) -> Effect {
    Effect::Close { owner, client_id: Arc::from("c"), epoch }
}

fn session(exists: bool) -> Effect {
    Effect::Session { client_id: Arc::from("c"), identity: Arc::from(""), exists }
}

fn released(epoch: u64, publish_will: bool) -> Command {
    Command::Released(Released { client_id: "c".to_owned(), epoch, publish_will, never_began: false })
}

/// P7: after the new CONNACK nothing of the old connection counts, and the new CONNACK waits for the old one's end.
#[test]
fn a_claim_waits_until_the_owner_before_it_has_let_go() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    assert_eq!(script.apply(Command::Connect(claim(old, "c"))), [session(true), opened(old, 1, false)]);
    assert_eq!(script.apply(Command::Connect(claim(new, "c"))), [close(old, 1)]);
    assert_eq!(script.disconnect(2, true), [], "the new one is not granted yet");
    script.restart();
    let mut lead = Vec::new();
    script.state.lead(&mut lead);
    assert_eq!(lead, [session(true), close(old, 1)], "a new leader asks again");
    assert_eq!(script.apply(released(2, true)), [], "nobody but the old owner can say so");
    assert_eq!(script.apply(released(1, true)), [opened(new, 2, true)]);
    assert_eq!(script.apply(released(1, true)), [], "said again");
}

/// P9: an owner that ended by itself, before it heard of the claim that waits for it, says so with DISCONNECT. That is its last
/// word; what it is told to close after that it no longer knows, and would be taken for an abnormal end.
#[test]
fn a_disconnect_that_crosses_a_claim_lets_go() {
    for (publish_will, expected) in [(false, 0), (true, 1)] {
        let mut script = Script::new();
        let (old, new) = (owner(1, 7), owner(2, 9));
        script.apply(Command::Connect(Connect { will: will(0), ..claim(old, "c") }));
        assert_eq!(script.apply(Command::Connect(claim(new, "c"))), [close(old, 1)]);
        let effects = script.disconnect(1, publish_will);
        assert_eq!(routes(&effects), expected, "abnormal: {publish_will}");
        assert_eq!(effects.last(), Some(&opened(new, 2, true)));
        assert_eq!(script.apply(released(1, true)), [], "the answer to being told to close");
        assert_eq!(script.disconnect(1, true), [], "said again");
    }
}

/// Of several that wait, the last one counts.
#[test]
fn a_third_claim_takes_the_place_of_the_one_that_waits() {
    let mut script = Script::new();
    let (old, second, third) = (owner(1, 7), owner(2, 9), owner(1, 8));
    script.apply(Command::Connect(claim(old, "c")));
    script.apply(Command::Connect(claim(second, "c")));
    let effects = script.apply(Command::Connect(claim(third, "c")));
    let refused = Effect::Refused { owner: second, reason: ReasonCode::SessionTakenOver };
    assert_eq!(effects, [refused, close(old, 1)]);
    assert_eq!(script.apply(released(1, true)), [opened(third, 3, true)]);
}

/// A SUBSCRIBE whose answer may be lost is asked again. Another read would be one that nobody reads, and what waits behind
/// it would wait for ever (found by simulation, seed 26).
#[test]
fn a_subscription_that_is_asked_for_again_keeps_its_read() {
    let mut script = Script::new();
    let opened = script.connect(false, 60);
    let read = script.subscribe(opened.epoch, "t", true);
    assert!(read.is_some());
    assert_eq!(script.subscribe_once_more(opened.epoch, "t", true, true), read);
    assert_eq!(script.subscribe_once_more(opened.epoch, "gone", true, true), None);
    assert!(!script.state.sessions["c"].subscriptions.contains_key("gone"), "it was unsubscribed since");
}

/// The same of an UNSUBSCRIBE: what was subscribed to since stays. It was taken away, and its SUBSCRIBE, asked for again too,
/// was granted and stood nowhere (found by simulation: P1).
#[test]
fn an_unsubscribe_that_is_asked_for_again_takes_nothing_away() {
    let mut script = Script::new();
    let epoch = script.connect(false, 60).epoch;
    let unsubscribe = |again| {
        let (client_id, filters) = ("c".to_owned(), vec!["t".to_owned()]);
        Command::Unsubscribe(Unsubscribe { client_id, epoch, packet_id: 1, filters, again, ..Unsubscribe::default() })
    };
    script.subscribe(epoch, "t", false);
    script.apply(unsubscribe(false));
    script.subscribe(epoch, "t", false);
    let effects = script.apply(unsubscribe(true));
    assert!(matches!(&effects[..], [Effect::Unsubscribed { outcomes, .. }] if outcomes.len() == 1), "{effects:?}");
    assert!(script.state.sessions["c"].subscriptions.contains_key("t"));
}

/// What a new leader is asked again, because an answer was lost, is answered again; nothing else happens.
#[test]
fn a_claim_that_is_proposed_again_is_answered_again() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    let with_will = Connect { will: will(0), ..claim(old, "c") };
    script.apply(Command::Connect(with_will.clone()));
    assert_eq!(script.apply(Command::Connect(with_will)), [opened(old, 2, false)], "its will is not published");
    script.apply(Command::Connect(claim(new, "c")));
    assert_eq!(script.apply(Command::Connect(claim(new, "c"))), [close(old, 2)]);
}

/// P9, [MQTT-3.1.3-9]: whoever is taken over has its will published, unless it said goodbye, or the will has a delay
/// and the session goes on.
#[test]
fn a_takeover_publishes_the_will_unless_it_is_delayed_and_the_session_goes_on() {
    for (delay, clean_start, publish_will, expected) in
        [(0, false, true, 1), (5, false, true, 0), (5, true, true, 1), (0, false, false, 0), (5, true, false, 0)]
    {
        let mut script = Script::new();
        script.apply(Command::Connect(Connect { will: will(delay), ..claim(owner(1, 7), "c") }));
        script.apply(Command::Connect(Connect { clean_start, ..claim(owner(2, 9), "c") }));
        let at_once = routes(&script.apply(released(1, publish_will)));
        let later = routes(&script.tick(60_000));
        assert_eq!((at_once, later), (expected, 0), "{delay} s, clean start {clean_start}, abnormal {publish_will}");
    }
}

/// A dead owner is waited for by nobody; a dead claim takes nothing from the owner before it.
#[test]
fn a_fence_grants_the_claim_that_waits_and_drops_the_one_that_died() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    let fence = |node| Command::Fence(Fence { below: 2, sessions_max: 10, node });
    let fenced = |node| Effect::Fenced { node, below: 2, more: false };
    script.apply(Command::Connect(claim(old, "c")));
    script.apply(Command::Connect(claim(new, "c")));
    assert_eq!(script.apply(fence(1)), [opened(new, 2, true), fenced(1)]);

    let newer = owner(3, 1);
    script.apply(Command::Connect(claim(newer, "c")));
    let refused = Effect::Refused { owner: newer, reason: ReasonCode::SessionTakenOver };
    assert_eq!(script.apply(fence(3)), [refused, fenced(3)]);
    script.restart();
    script.disconnect(2, false);
    assert_eq!(script.state.sessions["c"].owner, None, "the owner before it may go on, and end");
    let late = script.apply(Command::Connect(claim(owner(1, 70), "c")));
    let refused = Effect::Refused { owner: owner(1, 70), reason: ReasonCode::ServerUnavailable };
    assert_eq!(late, [refused], "nobody would ever release it");
}

/// Incarnations of one node say nothing about those of another.
/// A copy of a group begins a new cluster: whoever was connected is gone, and no position of the outbox comes twice, for other groups
/// may have had one that this copy has not given yet.
#[test]
fn a_group_that_begins_anew_lets_go_of_everybody_and_repeats_no_position() {
    let mut script = Script::new();
    script.apply(Command::Connect(Connect { session_expiry_seconds: 100, will: will(0), ..claim(owner(7, 1), "c") }));
    script.apply(Command::Connect(Connect { session_expiry_seconds: 100, ..claim(owner(8, 1), "d") }));
    let before = script.state.last_position;
    let effects = script.apply(Command::BeginAnew(command::BeginAnew::beyond_everything()));
    assert_eq!(routes(&effects), 1, "the will of the one that had one");
    assert!(script.state.sessions.values().all(|session| session.owner.is_none()));
    assert!(script.state.outbox.keys().all(|&position| position > before + 1_000_000));
    assert!(script.state.is_fenced(7, 1_000_000) && script.state.is_fenced(8, 1_000_000));
    let again = script.apply(Command::Connect(claim(owner(9, 1), "c")));
    assert!(again.iter().any(|effect| matches!(effect, Effect::Opened(_))), "at once: {again:?}");
}

#[test]
fn a_fence_concerns_one_node() {
    let mut script = Script::new();
    let lane = |node, number| {
        let message = LaneMessage { number, message: Some(record(number, "x")), ..LaneMessage::default() };
        let (incarnation, messages) = (1, vec![message]);
        Command::Lane(LaneBatch { lane: 5, incarnation, messages, node, ..LaneBatch::default() })
    };
    let answered = |node, number| Effect::LaneAnswered { node, lane: 5, number, refused: vec![] };
    assert_eq!(script.apply(lane(1, 1)), [answered(1, 1)]);
    assert_eq!(script.apply(lane(2, 1)), [answered(2, 1)], "a lane of the same number elsewhere");
    script.apply(Command::Fence(Fence { below: 2, sessions_max: 10, node: 1 }));
    script.restart();
    assert_eq!(script.apply(lane(1, 2)), []);
    assert_eq!(script.apply(lane(2, 2)), [answered(2, 2)]);
    assert_eq!(script.state.lanes.len(), 1, "one number for a node outlives its lanes");
}

/// A fence works in bounded steps, and says whether it is done.
#[test]
fn a_fence_releases_so_many_sessions_at_a_time() {
    let mut script = Script::new();
    for number in 0..5 {
        script.apply(Command::Connect(claim(owner(1, number), &format!("c{number}"))));
    }
    let mut steps = 0;
    loop {
        steps += 1;
        let effects = script.apply(Command::Fence(Fence { below: 2, sessions_max: 2, node: 1 }));
        if effects.last() == Some(&Effect::Fenced { node: 1, below: 2, more: false }) {
            break;
        }
    }
    assert_eq!(steps, 3);
    assert!(script.state.sessions.values().all(|session| session.owner.is_none()));
}

/// P9: the will of a transient session survives its node, the session does not.
#[test]
fn the_will_of_a_transient_session_is_published_when_its_node_dies() {
    let mut script = Script::new();
    let transient =
        Connect { session_expiry_seconds: 0, keep_transient: true, will: will(30), ..claim(owner(1, 7), "c") };
    let effects = script.apply(Command::Connect(transient.clone()));
    let expected = OpenedSession {
        owner: owner(1, 7),
        client_id: Arc::from("c"),
        epoch: 1,
        persistent: false,
        session_present: false,
        subscriptions: Vec::new(),
        received: Vec::new(),
    };
    assert_eq!(effects, [Effect::Opened(expected)], "no session that publishes would have to reach");
    assert_eq!(script.subscribe(1, "t", false), None);
    script.restart();
    let effects = script.apply(Command::Fence(Fence { below: 2, sessions_max: 10, node: 1 }));
    assert_eq!(routes(&effects), 1, "at once: the session ends with its connection [MQTT-3.1.2-8]");
    assert_eq!(script.state.sessions(), 0);

    script.apply(Command::Connect(Connect { owner: Some(owner(2, 1)), ..transient }));
    assert_eq!(routes(&script.disconnect(2, false)), 0, "[MQTT-3.14.4-3]");
    assert_eq!(script.state.sessions(), 0);
}

/// Security 2: another identity neither resumes nor takes over, nor does it disturb.
#[test]
fn another_identity_gets_nothing_of_a_session() {
    let mut script = Script::new();
    script.apply(Command::Connect(claim(owner(1, 7), "c")));
    let stranger = Connect { identity: "mallory".to_owned(), clean_start: true, ..claim(owner(1, 8), "c") };
    let refused = Effect::Refused { owner: owner(1, 8), reason: ReasonCode::NotAuthorized };
    assert_eq!(script.apply(Command::Connect(stranger)), [refused]);
    assert!(script.state.sessions["c"].served().is_some());
}

// Lanes and retained messages.

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
    assert_eq!(script.apply(Command::Lane(batch.clone())), std::slice::from_ref(&answered));
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

// Subscriptions.

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

// Shared subscriptions.

struct ShareScript {
    script: Script,
    epochs: BTreeMap<&'static str, u64>,
}

impl ShareScript {
    /// Members of `$share/g/t`, connected.
    fn new(members: &[&'static str]) -> Self {
        Self::with(PickStrategy::RoundRobin, members)
    }

    fn with(share_strategy: PickStrategy, members: &[&'static str]) -> Self {
        let config = GroupConfig { share_strategy, ..config() };
        let mut script = Script { state: GroupState::new(config), ..Script::new() };
        let mut epochs = BTreeMap::new();
        for (&name, number) in members.iter().zip(0..) {
            let effects = script.apply(Command::Connect(claim(owner(1, number), name)));
            let epoch = effects.iter().find_map(|effect| match effect {
                Effect::Opened(opened) => Some(opened.epoch),
                _ => None,
            });
            let epoch = epoch.expect("opened");
            epochs.insert(name, epoch);
            let filter = SubscribeFilter { filter: "$share/g/t".to_owned(), qos: 1, ..SubscribeFilter::default() };
            let (client_id, filters) = (name.to_owned(), vec![filter]);
            script.apply(Command::Subscribe(Subscribe {
                client_id,
                epoch,
                packet_id: 1,
                filters,
                ..Subscribe::default()
            }));
        }
        Self { script, epochs }
    }

    /// The connection that gets the next message.
    fn publish(&mut self) -> Option<u64> {
        let mut message = self.script.message("x");
        message.match_subscriptions = false;
        message.shares = vec!["$share/g/t".to_owned()];
        let effects = self.script.lane_batch(vec![message]);
        effects.iter().find_map(|effect| match effect {
            Effect::Deliver(delivery) => Some(delivery.owner.connection),
            _ => None,
        })
    }

    /// The connection that gets, and acknowledges, a message.
    fn receiver(&mut self, publisher: &str, topic: &str) -> u64 {
        let mut message = self.script.message("x");
        message.match_subscriptions = false;
        message.shares = vec!["$share/g/t".to_owned()];
        let record = message.message.take().expect("a record");
        message.message = Some(MessageRecord { publisher: publisher.to_owned(), topic: topic.to_owned(), ..record });
        let effects = self.script.lane_batch(vec![message]);
        let delivery = effects.iter().find_map(|effect| match effect {
            Effect::Deliver(delivery) => Some(delivery),
            _ => None,
        });
        let delivery = delivery.expect("somebody gets it");
        let client_id = self.script.state.sessions.values().find(|session| session.owner == Some(delivery.owner));
        let client_id = client_id.expect("its session").client_id.to_string();
        let items = vec![AcknowledgeItem { kind: 4, packet_id: u32::from(delivery.packet_id.get()), reason: 0 }];
        let epoch = delivery.epoch;
        self.script.apply(Command::Acknowledge(Acknowledge { client_id, epoch, items }));
        delivery.owner.connection
    }

    fn disconnect(&mut self, name: &str, session_expiry_seconds: Option<u32>) -> Vec<Effect> {
        let (client_id, epoch) = (name.to_owned(), self.epochs[name]);
        let disconnect = Disconnect { client_id, epoch, session_expiry_seconds, ..Disconnect::default() };
        self.script.apply(Command::Disconnect(disconnect))
    }
}

/// P11: members take turns, whatever restarts; those who are away are passed over.
#[test]
fn members_of_a_share_take_turns() {
    let mut shared = ShareScript::new(&["m2", "m0", "m1"]);
    let mut turns = Vec::new();
    for _ in 0..4 {
        turns.extend(shared.publish());
        shared.script.restart();
    }
    assert_eq!(turns, [1, 2, 0, 1], "in the order of their names: m0, m1, m2");
    let effects = shared.disconnect("m1", None);
    assert_eq!(effects, [Effect::ShareOnline { share: Arc::from("$share/g/t"), online: 2 }]);
    assert_eq!([shared.publish(), shared.publish()], [Some(0), Some(1)]);
}

/// [MQTT-3.3.2-5], P10: what a session that ends had in flight goes to another member, but not once it has expired (found by
/// simulation, seeds 156, 2864 and 3560).
#[test]
fn what_expired_in_flight_is_picked_for_nobody_else() {
    let mut shared = ShareScript::new(&["m0"]);
    for expiry_left_ms in [Some(5_000), None] {
        let mut message = shared.script.message("x");
        message.match_subscriptions = false;
        message.shares = vec!["$share/g/t".to_owned()];
        message.message.as_mut().expect("there is one").expiry_left_ms = expiry_left_ms;
        let effects = shared.script.lane_batch(vec![message]);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Deliver(_))), "{effects:?}");
    }
    shared.script.tick(5_000 + CLOCK_LAG_MS_MAX);
    let effects = shared.disconnect("m0", Some(0));
    let dropped = Effect::Dropped { reason: Drop::Expired, count: 1 };
    let about_messages = |effect: &Effect| matches!(effect, Effect::Dropped { .. } | Effect::Route { .. });
    let effects: Vec<_> = effects.into_iter().filter(about_messages).collect();
    assert_eq!(effects, [Effect::Route { position: 1 }, dropped]);
    assert_eq!(
        shared.script.state.outbox.values().map(|entry| entry.message.expires_at_ms).collect::<Vec<_>>(),
        [None]
    );
}

/// P11: one member until it goes, also through a restart.
#[test]
fn a_sticky_share_stays_with_its_member() {
    let mut shared = ShareScript::with(PickStrategy::Sticky, &["m0", "m1", "m2"]);
    assert_eq!([shared.receiver("p", "t"), shared.receiver("q", "u")], [0, 0]);
    shared.script.restart();
    assert_eq!(shared.receiver("p", "t"), 0);
    shared.disconnect("m0", None);
    assert_eq!([shared.receiver("p", "t"), shared.receiver("p", "t")], [1, 1]);
    shared.script.apply(Command::Connect(claim(owner(1, 7), "m0")));
    assert_eq!(shared.receiver("p", "t"), 1, "coming back changes nothing");
}

/// What is drawn comes from the state, so that replicas that restart draw the same.
#[test]
fn a_random_share_draws_the_same_on_every_replica() {
    let mut shared = ShareScript::with(PickStrategy::Random, &["m0", "m1", "m2"]);
    let mut other = ShareScript::with(PickStrategy::Random, &["m0", "m1", "m2"]);
    let mut counts = [0; 3];
    let mut repeats = 0;
    let mut last = None;
    for _ in 0..90 {
        let drawn = shared.receiver("p", "t");
        other.script.restart();
        assert_eq!(other.receiver("p", "t"), drawn);
        counts[drawn as usize] += 1;
        repeats += u32::from(last.replace(drawn) == Some(drawn));
    }
    assert!(counts.iter().all(|count| (15..45).contains(count)), "{counts:?}");
    assert!((15..45).contains(&repeats), "not in turn: {repeats}");
}

/// The same member for the same name; one that leaves moves only what was its own.
#[test]
fn a_hashing_share_keeps_each_name_with_its_member() {
    for strategy in [PickStrategy::HashClient, PickStrategy::HashTopic] {
        let mut shared = ShareScript::with(strategy, &["m0", "m1", "m2"]);
        let mut receivers = |without: Option<&str>| -> Vec<u64> {
            if let Some(name) = without {
                shared.disconnect(name, None);
            }
            let names = (0..30).map(|number| format!("name-{number}"));
            let receiver = |name: String| match strategy {
                PickStrategy::HashClient => [shared.receiver(&name, "t"), shared.receiver(&name, "u")],
                _ => [shared.receiver("p", &name), shared.receiver("q", &name)],
            };
            let pairs: Vec<_> = names.map(receiver).collect();
            assert!(pairs.iter().all(|[one, other]| one == other), "{strategy:?}");
            pairs.into_iter().map(|[one, _]| one).collect()
        };
        let before = receivers(None);
        assert!([0, 1, 2].iter().all(|member| before.contains(member)), "{before:?}");
        let after = receivers(Some("m1"));
        let moved =
            before.iter().zip(&after).all(|(before, after)| if *before == 1 { *after != 1 } else { before == after });
        assert!(moved, "{before:?} {after:?}");
    }
}

/// What waits counts like what is in flight; the group says how loaded its least loaded member is.
#[test]
fn a_share_by_load_spares_the_member_with_most_before_it() {
    let mut shared = ShareScript::with(PickStrategy::LeastInflight, &["m0", "m1"]);
    assert_eq!([shared.publish(), shared.publish(), shared.publish()], [Some(0), Some(1), Some(0)]);
    shared.script.restart();
    assert_eq!([shared.receiver("p", "t"), shared.receiver("p", "t")], [1, 1]);
    let items = vec![AcknowledgeItem { kind: 4, packet_id: 1, reason: 0 }];
    let (client_id, epoch) = ("m1".to_owned(), shared.epochs["m1"]);
    let effects = shared.script.apply(Command::Acknowledge(Acknowledge { client_id, epoch, items }));
    let share: Arc<str> = Arc::from("$share/g/t");
    assert_eq!(effects, [Effect::ShareInFlight { share: Arc::clone(&share), least: 0 }]);
    let effects = shared.disconnect("m1", None);
    let online = Effect::ShareOnline { share: Arc::clone(&share), online: 1 };
    assert_eq!(effects, [online, Effect::ShareInFlight { share, least: 2 }], "of those that may be picked");
}

/// P11: a group that has no member online must not be picked for one.
#[test]
fn a_share_without_members_says_that_nobody_is_online() {
    let mut shared = ShareScript::new(&["m0"]);
    let effects = shared.disconnect("m0", Some(0));
    let share: Arc<str> = Arc::from("$share/g/t");
    let last: Vec<_> = effects.iter().filter(|effect| !matches!(effect, Effect::Session { .. })).collect();
    let left = Effect::ShareInterest { share: Arc::clone(&share), joined: false };
    assert_eq!(last, [&left, &Effect::ShareOnline { share, online: 0 }]);
}

/// P11, [MQTT-4.8.2-4]: what a member has not acknowledged when its session ends goes to another.
#[test]
fn what_a_member_leaves_behind_is_routed_again() {
    let mut shared = ShareScript::new(&["m0", "m1"]);
    assert_eq!(shared.publish(), Some(0));
    let effects = shared.disconnect("m0", Some(0));
    let share: Arc<str> = Arc::from("$share/g/t");
    let again = effects.iter().filter_map(|effect| match effect {
        Effect::Route { position } => shared.script.state.outbox[position].share.clone(),
        _ => None,
    });
    assert_eq!(again.collect::<Vec<_>>(), [share]);
    assert_eq!(routes(&shared.disconnect("m1", Some(0))), 0);
    assert_eq!(shared.publish(), None);
    assert_eq!(shared.script.state.outbox.len(), 2, "nobody here: another group may have members");
}

/// P11: what only waits goes to a member that is there; what is in flight waits for the answer of its own.
#[test]
fn what_waits_for_a_member_that_went_away_goes_to_one_that_is_there() {
    let mut shared = ShareScript::new(&["m0", "m1"]);
    for connection in [0, 1] {
        let name = if connection == 0 { "m0" } else { "m1" };
        shared.script.apply(Command::Connect(Connect {
            window_max: 1,
            ..Connect { wait_for_release: false, ..claim(owner(1, connection), name) }
        }));
    }
    shared.epochs = BTreeMap::from([("m0", 3), ("m1", 4)]);
    assert_eq!([shared.publish(), shared.publish()], [Some(0), Some(1)]);
    assert_eq!([shared.publish(), shared.publish()], [None, None], "both are busy");
    shared.disconnect("m0", None);
    let left = |script: &Script, name: &str| {
        let outbound = &script.state.sessions[name].outbound;
        (outbound.in_flight(), outbound.queue_len())
    };
    assert_eq!(left(&shared.script, "m0"), (1, 0));
    assert_eq!(left(&shared.script, "m1"), (1, 2));
    shared.disconnect("m1", None);
    assert_eq!(left(&shared.script, "m1"), (1, 2), "nobody is there");
}

/// [MQTT-4.8.2-6]: a refusal is an answer.
#[test]
fn what_a_member_refuses_goes_to_nobody_else() {
    let mut shared = ShareScript::new(&["m0", "m1"]);
    assert_eq!(shared.publish(), Some(0));
    let items = vec![AcknowledgeItem { kind: 4, packet_id: 1, reason: 0x97 }];
    let (client_id, epoch) = ("m0".to_owned(), shared.epochs["m0"]);
    assert_eq!(shared.script.apply(Command::Acknowledge(Acknowledge { client_id, epoch, items })), []);
    assert_eq!(routes(&shared.disconnect("m0", Some(0))), 0);
    assert_eq!(shared.script.state.bodies.len(), 0);
}

// Shared subscriptions, out of an outbox.

const SHARE: &str = "$share/g/t";
const ON_ONE: PickTarget = PickTarget::Node { node: 1, incarnation: 5 };
const ON_TWO: PickTarget = PickTarget::Node { node: 2, incarnation: 6 };

/// A message of QoS 1 stands at position 1 of an outbox.
fn posted() -> Script {
    let mut script = Script::new();
    let (opened, _) = script.connect_with_will(true, 100, will(0));
    assert_eq!(routes(&script.disconnect(opened.epoch, true)), 1);
    script
}

/// A leader says who gets it of `SHARE`; `routed`: it is for nobody else.
fn pick(script: &mut Script, position: u64, target: PickTarget, routed: bool) -> Vec<Effect> {
    let picks = vec![command::Pick { share: SHARE.to_owned(), target: Some(target.record()) }];
    let entries = vec![command::PickedEntry { position, picks, routed }];
    script.apply(Command::Picked(command::Picked { entries }))
}

/// The node of `ON_ONE` says what became of a message, by the lane of one of its arbiters.
fn settle(script: &mut Script, number: u64, position: u64, given_back: bool) -> Vec<Effect> {
    let command = Some(SessionCommand::OutboxSettled(OutboxSettled { position, given_back }));
    let messages = vec![LaneMessage { number, command, ..LaneMessage::default() }];
    let lane =
        LaneBatch { lane: 5 << 12, incarnation: 5, node: 1, messages, previous: number - 1, answered: 0, clock_ms: 0 };
    let mut effects = script.apply(Command::Lane(lane));
    effects.retain(|effect| !matches!(effect, Effect::LaneAnswered { .. }));
    effects
}

/// What a new leader routes.
fn routed_by_a_new_leader(script: &mut Script) -> Vec<u64> {
    script.restart();
    let mut effects = Vec::new();
    script.state.lead(&mut effects);
    let position = |effect: &Effect| if let Effect::Route { position } = effect { Some(*position) } else { None };
    effects.iter().filter_map(position).collect()
}

fn picked(script: &Script) -> Vec<(u64, Option<PickTarget>)> {
    script.state.outbox.iter().map(|(&position, entry)| (position, entry.pick)).collect()
}

/// P11: whoever routes an entry, the member that is committed gets it; what that one had already it ignores.
#[test]
fn what_one_leader_picked_every_leader_routes() {
    let mut script = posted();
    let route = Effect::Route { position: 2 };
    assert_eq!(pick(&mut script, 1, PickTarget::Group(3), true), [route, Effect::Picked { position: 1 }]);
    assert_eq!(routed_by_a_new_leader(&mut script), [2]);
    assert_eq!(pick(&mut script, 1, ON_TWO, true), [Effect::Picked { position: 1 }], "it comes too late");
    assert_eq!(picked(&script), [(2, Some(PickTarget::Group(3)))]);

    let mut group = ShareScript::new(&["m0", "m1"]);
    let message = LaneMessage {
        number: 2,
        message: Some(record(2, "bye")),
        shares: vec![SHARE.to_owned()],
        ..LaneMessage::default()
    };
    let batch = LaneBatch { lane: OUTBOX_LANE, incarnation: u64::MAX, messages: vec![message], ..LaneBatch::default() };
    assert_eq!(deliveries(&group.script.apply(Command::Lane(batch.clone()))), [sent(1, false, "bye")]);
    assert_eq!(deliveries(&group.script.apply(Command::Lane(batch))), [], "from another leader");
    script.apply(Command::Routed(command::Routed { positions: vec![2] }));
    assert_eq!(routed_by_a_new_leader(&mut script), [] as [u64; 0]);
}

/// Who subscribes for himself does not wait for a pick, and a pick not for him.
#[test]
fn an_entry_outlives_its_picks_until_the_others_have_it() {
    let mut script = posted();
    pick(&mut script, 1, ON_ONE, false);
    assert_eq!(routed_by_a_new_leader(&mut script), [1, 2]);
    assert!(script.state.outbox[&1].picked, "whoever routes it now leaves shared subscriptions out");
    assert_eq!(pick(&mut script, 1, ON_TWO, false), [Effect::Picked { position: 1 }], "it comes too late");
    assert_eq!(pick(&mut script, 2, ON_TWO, true), [Effect::Picked { position: 2 }], "that is decided");
    assert_eq!(picked(&script), [(1, None), (2, Some(ON_ONE))]);
    script.apply(Command::Routed(command::Routed { positions: vec![1] }));
    assert_eq!(picked(&script), [(2, Some(ON_ONE))]);
}

/// P11: a message for a transient member is kept until it is settled, and sent once.
#[test]
fn what_a_node_was_picked_for_is_kept_until_a_member_there_settled_it() {
    let mut script = posted();
    pick(&mut script, 1, ON_ONE, true);
    script.apply(Command::Routed(command::Routed { positions: vec![2] }));
    assert_eq!(routed_by_a_new_leader(&mut script), [] as [u64; 0], "the node has it");
    assert_eq!(picked(&script), [(2, Some(ON_ONE))]);
    assert_eq!(settle(&mut script, 1, 2, false), []);
    script.restart();
    assert_eq!(picked(&script), []);
    assert_eq!(settle(&mut script, 2, 2, true), [], "of a position that is no more");
}

/// P11: when the node that was picked dies, another is picked, and that is committed too.
#[test]
fn a_pick_whose_node_is_fenced_is_made_again() {
    let mut script = posted();
    pick(&mut script, 1, ON_ONE, true);
    script.apply(Command::Routed(command::Routed { positions: vec![2] }));
    script.restart();
    let fence = |below| Command::Fence(Fence { below, sessions_max: 10, node: 1 });
    let fenced = |below| Effect::Fenced { node: 1, below, more: false };
    assert_eq!(script.apply(fence(5)), [fenced(5)], "that is an older one");
    assert_eq!(script.apply(fence(6)), [Effect::Route { position: 3 }, fenced(6)]);
    assert_eq!(picked(&script), [(3, None)], "above what any target has had");
    assert_eq!(settle(&mut script, 1, 2, false), [], "of the dead");

    let [route, _] = &pick(&mut script, 3, ON_ONE, true)[..] else {
        panic!("an entry of its own");
    };
    assert_eq!(route, &Effect::Route { position: 4 });
    assert_eq!(picked(&script), [(4, None)], "proposed before the fence: nobody was sent it");
    pick(&mut script, 4, ON_TWO, true);
    assert_eq!(routed_by_a_new_leader(&mut script), [5]);
    assert_eq!(picked(&script), [(5, Some(ON_TWO))]);
}

/// A fence counts as complete when nothing is left to the dead.
#[test]
fn a_fence_makes_so_many_picks_again_at_a_time() {
    let mut script = posted();
    let picks = vec![command::Pick { share: SHARE.to_owned(), target: Some(ON_ONE.record()) }; 3];
    let entries = vec![command::PickedEntry { position: 1, picks, routed: true }];
    script.apply(Command::Picked(command::Picked { entries }));
    let fence = Fence { below: 6, sessions_max: 2, node: 1 };
    let effects = script.apply(Command::Fence(fence));
    assert_eq!((routes(&effects), effects.last()), (2, Some(&Effect::Fenced { node: 1, below: 6, more: true })));
    assert_eq!(script.state.fences_complete().count(), 0);
    let effects = script.apply(Command::Fence(fence));
    assert_eq!((routes(&effects), effects.last()), (1, Some(&Effect::Fenced { node: 1, below: 6, more: false })));
    assert_eq!(script.state.fences_complete().count(), 1);
}

/// What a node gives back goes to others first, and not round for ever; what has expired meanwhile goes to nobody.
#[test]
fn what_a_node_gives_back_is_picked_again_so_many_times() {
    let mut script = posted();
    let mut position = 1;
    let mut times = 0;
    let last = loop {
        pick(&mut script, position, ON_ONE, true);
        times += 1;
        let effects = settle(&mut script, times, position + 1, true);
        let [Effect::Route { position: again }] = effects[..] else {
            break effects;
        };
        position = again;
        assert_eq!(script.state.outbox[&position].passed_over, Some((1, 5)));
        script.restart();
    };
    assert_eq!((times, last), (16, vec![Effect::Dropped { reason: Drop::NoMember, count: 1 }]));
    assert_eq!(picked(&script), []);

    let mut script = Script::new();
    let record = MessageRecord { expiry_left_ms: Some(1_000), ..record(0, "bye") };
    let will = WillRecord { message: Some(record), delay_seconds: 0, publish_delay_ms: None };
    let (opened, _) = script.connect_with_will(true, 100, Some(will));
    script.disconnect(opened.epoch, true);
    pick(&mut script, 1, ON_ONE, true);
    script.tick(1_000 + CLOCK_LAG_MS_MAX);
    assert_eq!(settle(&mut script, 1, 2, true), [Effect::Dropped { reason: Drop::Expired, count: 1 }]);
}

/// Nobody settles QoS 0: it is gone when it is sent.
#[test]
fn a_pick_of_qos_0_is_kept_until_it_is_sent() {
    let mut script = Script::new();
    let message = Some(MessageRecord { qos: 0, ..record(0, "bye") });
    let (opened, _) =
        script.connect_with_will(true, 100, Some(WillRecord { message, delay_seconds: 0, publish_delay_ms: None }));
    script.disconnect(opened.epoch, true);
    pick(&mut script, 1, ON_ONE, true);
    assert_eq!(routed_by_a_new_leader(&mut script), [2]);
    let effects = script.apply(Command::Fence(Fence { below: 6, sessions_max: 10, node: 1 }));
    assert_eq!(effects, [Effect::Fenced { node: 1, below: 6, more: false }], "it may have been sent");
    script.apply(Command::Routed(command::Routed { positions: vec![2] }));
    assert_eq!(picked(&script), []);
}

// A change of leader.

fn has(sent: &[u16]) -> Has {
    Has { sent: sent.iter().filter_map(|&id| PacketId::new(id)).collect(), ..Has::default() }
}

/// [MQTT-4.4.0-1]: a living connection gets what it has not, and nothing that it has.
#[test]
fn a_new_leader_sends_only_what_the_owner_has_not() {
    let mut script = Script::new();
    let opened = script.connect(true, 100);
    let (owner, epoch) = (opened.owner, opened.epoch);
    script.subscribe(epoch, "t", false);
    for payload in ["one", "two"] {
        let mut message = script.message(payload);
        message.message.as_mut().expect("a message").qos = 2;
        script.lane_batch(vec![message]);
    }
    let mut effects = Vec::new();
    script.state.resync("c", owner, epoch, &has(&[1]), &mut effects);
    assert_eq!(deliveries(&effects), [sent(2, false, "two")]);
    script.acknowledge(epoch, 5, 1);
    effects.clear();
    script.state.resync("c", owner, epoch, &has(&[1, 2]), &mut effects);
    let pubrel = |id| {
        let (kind, reason) = (AckKind::PubRel, ReasonCode::Success);
        Effect::Acknowledge { owner, epoch, kind, packet_id: PacketId::new(id).expect("not zero"), reason }
    };
    assert_eq!(effects, [pubrel(1)], "PUBREC was committed, PUBREL was not sent");
    effects.clear();
    let released = Has { released: has(&[1]).sent, ..has(&[1, 2]) };
    script.state.resync("c", owner, epoch, &released, &mut effects);
    assert_eq!(effects, [], "it has everything");
    script.disconnect(epoch, false);
    let opened = script.connect(false, 100);
    script.state.resync("c", opened.owner, opened.epoch, &has(&[]), &mut effects);
    assert_eq!(deliveries(&effects), [sent(2, true, "two")], "perhaps the second time: DUP");
}

/// P4: leadership is handed over without any fault, and what a leader could not send before it was told what its owners have
/// goes out for the first time, also to a client that resumed its session (found by simulation).
#[test]
fn a_new_leader_marks_only_what_was_in_flight_before_the_connection() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    script.publish("one");
    script.disconnect(epoch, false);
    let opened = script.connect(false, 100);
    script.publish("two");
    script.restart();
    let resync = |script: &Script| {
        let mut effects = Vec::new();
        script.state.resync("c", opened.owner, opened.epoch, &has(&[]), &mut effects);
        deliveries(&effects)
    };
    assert_eq!(resync(&script), [sent(1, true, "one"), sent(2, false, "two")]);
    script.acknowledge(opened.epoch, 4, 1);
    assert_eq!(resync(&script), [sent(2, false, "two")]);
}

/// P12: a connection that is gone and was never told that its claim was granted says nothing of it in a resync. Nobody else would
/// ask it to let go, and whoever comes next would wait for it for ever (found by simulation).
#[test]
fn who_does_not_know_that_it_owns_a_session_is_asked_to_let_go() {
    let mut script = Script::new();
    let opened = script.connect(false, 60);
    let owner = opened.owner;
    let close = |script: &Script, process, unknown: bool| {
        let mut effects = Vec::new();
        script.state.close_unknown(process, |_| unknown, &mut effects);
        effects
    };
    let here = (owner.node, owner.incarnation);
    assert_eq!(close(&script, here, false), [], "it is served");
    assert_eq!(close(&script, (owner.node, owner.incarnation + 1), true), [], "that of another process");
    let effects = close(&script, here, true);
    assert!(matches!(&effects[..], [Effect::Close { epoch, .. }] if *epoch == opened.epoch), "{effects:?}");
}

/// P7: who was taken over, or taken for dead, and never heard of it, is told when it says that it serves the session.
#[test]
fn an_owner_of_another_time_is_told_to_close() {
    let mut script = Script::new();
    let old = script.connect(true, 100);
    let new = script.connect(false, 100);
    let close =
        |opened: &OpenedSession| Effect::Close { owner: opened.owner, client_id: Arc::from("c"), epoch: opened.epoch };
    let mut effects = Vec::new();
    script.state.resync("c", old.owner, old.epoch, &has(&[]), &mut effects);
    assert_eq!(effects, [close(&old)]);
    effects.clear();
    script.state.resync("c", new.owner, new.epoch, &has(&[]), &mut effects);
    assert_eq!(effects, []);
}

/// A claim whose answer was lost with a leader is answered by the next one, with all that follows from it.
#[test]
fn a_claim_without_an_answer_is_answered_again() {
    let mut script = Script::new();
    let first = script.connect(true, 100);
    script.subscribe(first.epoch, "t", false);
    script.publish("one");
    let mut effects = Vec::new();
    assert_eq!(script.state.claim_again("c", first.owner, &mut effects), None);
    assert!(
        matches!(&effects[0], Effect::Opened(opened) if opened.epoch == first.epoch && opened.subscriptions.len() == 1)
    );
    assert_eq!(deliveries(&effects), [sent(1, false, "one")]);
    let next = Owner { connection: 99, ..first.owner };
    let waiting = Connect { owner: Some(next), wait_for_release: true, ..claim(next, "c") };
    script.apply(Command::Connect(waiting));
    effects.clear();
    assert_eq!(script.state.claim_again("c", next, &mut effects), None);
    let close = Effect::Close { owner: first.owner, client_id: Arc::from("c"), epoch: first.epoch };
    assert_eq!(effects, [close], "it is the present owner's turn");
    effects.clear();
    assert_eq!(script.state.claim_again("nobody", next, &mut effects), None);
    assert_eq!(effects, []);
    // The one that it waits for was never told that it had been granted, and lets go without having been served.
    let released = script.state.claim_again("c", first.owner, &mut effects).expect("it lets go");
    assert_eq!(effects, [Effect::Refused { owner: first.owner, reason: ReasonCode::SessionTakenOver }]);
    assert_eq!((released.epoch, released.never_began), (first.epoch, true));
    let effects = script.apply(Command::Released(released));
    assert!(matches!(effects.last(), Some(Effect::Opened(opened)) if opened.owner == next), "{effects:?}");
}

/// A QoS 2 message that was applied is answered, whoever leads.
#[test]
fn what_a_client_waits_for_is_answered_by_a_new_leader() {
    let mut script = Script::new();
    let opened = script.connect(true, 100);
    let (owner, epoch) = (opened.owner, opened.epoch);
    let (client_id, message) = ("c".to_owned(), Some(record(1, "x")));
    script.apply(Command::Receive(Receive { client_id, epoch, packet_id: 7, message, delay_ms: None }));
    let id = |id| PacketId::new(id).expect("not zero");
    let answer = |kind, packet_id, reason| Effect::Acknowledge { owner, epoch, kind, packet_id, reason };
    let waits = Has { receiving: vec![id(7), id(8)], completing: vec![id(7), id(9)], ..Has::default() };
    let mut effects = Vec::new();
    script.state.resync("c", owner, epoch, &waits, &mut effects);
    let expected = [
        answer(AckKind::PubRec, id(7), ReasonCode::Success),
        answer(AckKind::PubRec, id(8), ReasonCode::QuotaExceeded),
        answer(AckKind::PubComp, id(9), ReasonCode::Success),
    ];
    assert_eq!(effects, expected, "7 was not released yet");
}

// Time.

/// P10: one whose time has come is not resumed, though its timer has not run yet.
#[test]
fn a_session_is_over_when_its_time_has_come_not_when_its_timer_runs() {
    let mut script = Script::new();
    let epoch = script.connect(true, 10).epoch;
    script.disconnect(epoch, false);
    script.state.clock_ms += 10_000 + CLOCK_LAG_MS_MAX;
    assert!(!script.connect(false, 10).session_present);
}

/// What a new leader does, and what a checkpoint writes, is the same whatever the keys of a replica's tables are.
#[test]
fn the_same_history_has_its_effects_and_writes_in_the_same_order() {
    let replica = || {
        let mut script = Script::new();
        for number in 0..20 {
            let (client_id, epoch) = (format!("c{number}"), number + 1);
            let connect = Connect { session_expiry_seconds: 100, ..claim(owner(1, number), &client_id) };
            script.apply(Command::Connect(connect));
            let filter =
                |filter: String| SubscribeFilter { filter, qos: 1, retain_handling: 2, ..SubscribeFilter::default() };
            let filters = vec![filter("t".to_owned()), filter(format!("$share/g{number}/t"))];
            script.apply(Command::Subscribe(Subscribe {
                client_id,
                epoch,
                packet_id: 1,
                filters,
                ..Subscribe::default()
            }));
        }
        script.publish("one");
        let mut effects = Vec::new();
        script.state.lead(&mut effects);
        (effects, script.state.take_dirty())
    };
    let (effects, writes) = replica();
    let sessions = effects.iter().filter(|effect| matches!(effect, Effect::Session { .. })).count();
    let shares = effects.iter().filter(|effect| matches!(effect, Effect::ShareOnline { .. })).count();
    assert_eq!((sessions, shares), (20, 20));
    assert!(writes.len() > 40, "sessions and what waits in them: {}", writes.len());
    assert_eq!((effects, writes), replica());
}
