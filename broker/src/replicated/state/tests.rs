//! What a group makes of its commands, command by command.

use bytes::Bytes;

use super::resync::Has;
use super::*;
use crate::replicated::command::{
    self, Acknowledge, AcknowledgeItem, Connect, Disconnect, Fence, LaneBatch, LaneMessage, Lost, OutboxSettled,
    Receive, Released, RetainedPage, SessionCommand, Subscribe, SubscribeFilter, Tick, Unsubscribe, WillRecord,
};
use crate::replicated::effect::Drop;

mod claims;
mod lanes;
mod leaders;
mod shares;
mod subscriptions;
mod time;

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
        delayed_bytes_max: 0,
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
        let filter =
            SubscribeFilter { filter: filter.to_owned(), qos: 2, retain_handling, ..SubscribeFilter::default() };
        self.ask_for(epoch, filter, again)
    }

    fn subscribe_to(&mut self, epoch: u64, filter: SubscribeFilter) -> Option<u64> {
        self.ask_for(epoch, filter, false)
    }

    fn ask_for(&mut self, epoch: u64, filter: SubscribeFilter, again: bool) -> Option<u64> {
        let effects = self.apply(Command::Subscribe(Subscribe {
            client_id: "c".to_owned(),
            epoch,
            packet_id: 1,
            filters: vec![filter],
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

/// What follows but that messages are under way no more.
pub(super) fn beside_settled(effects: Vec<Effect>) -> Vec<Effect> {
    let is_other = |effect: &Effect| !matches!(effect, Effect::Settled { .. } | Effect::LetGo { .. });
    effects.into_iter().filter(is_other).collect()
}

pub(super) fn sent(id: u16, dup: bool, payload: &str) -> (u16, bool, String) {
    (id, dup, payload.to_owned())
}

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

/// A leader sends no more than it is told of in this way that the client has acknowledged, and keeps nothing for one that is gone.
#[test]
fn what_is_under_way_to_a_client_ends_by_its_acknowledgement_or_with_its_connection() {
    let mut script = Script::new();
    let opened = script.connect(true, 100);
    let (owner, epoch) = (opened.owner, opened.epoch);
    script.subscribe(epoch, "t", false);
    let mut twice = script.message("two");
    twice.message.as_mut().expect("a message").qos = 2;
    script.publish("one");
    script.lane_batch(vec![LaneMessage { number: 3, ..twice }]);
    let of_these = |effects: Vec<Effect>| -> Vec<Effect> {
        let is_one = |effect: &Effect| matches!(effect, Effect::Settled { .. } | Effect::LetGo { .. });
        effects.into_iter().filter(is_one).collect()
    };
    let settled = |number| Effect::Settled { owner, packet_id: PacketId::new(number).expect("not zero") };
    assert_eq!(of_these(script.acknowledge(epoch, 4, 1)), [settled(1)]);
    assert_eq!(of_these(script.acknowledge(epoch, 4, 1)), [], "there is no such message any more");
    assert_eq!(of_these(script.acknowledge(epoch, 5, 2)), [settled(2)]);
    assert_eq!(of_these(script.acknowledge(epoch, 5, 2)), []);
    assert_eq!(of_these(script.acknowledge(epoch, 7, 2)), [], "PUBREC has settled it");
    script.lane = 3;
    script.publish("three");
    assert_eq!(of_these(script.disconnect(epoch, false)), [Effect::LetGo { owner }]);
    let epoch = script.connect(false, 100).epoch;
    script.acknowledge(epoch, 4, 3);
    assert_eq!(of_these(script.disconnect(epoch, false)), [], "it had nothing");
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

/// What expired while it waited is nothing that is lost, and costs no other message its place.
#[test]
fn what_expired_makes_room_in_a_full_queue() {
    for (level, reason, kept) in [(2, Drop::QueueMessages, &["3"][..]), (3, Drop::Expired, &["3", "5"])] {
        let mut script = Script::new();
        script.apply(Command::Level(command::Level { level }));
        let epoch = script.connect(true, 100).epoch;
        script.subscribe(epoch, "t", false);
        script.disconnect(epoch, false);
        for number in 0..5 {
            let mut message = script.message(&number.to_string());
            message.message.as_mut().expect("there is one").expiry_left_ms = (number != 3).then_some(5_000);
            script.lane_batch(vec![message]);
        }
        script.restart();
        script.tick(6_000);
        let effects: Vec<_> = (5..8).flat_map(|number| script.publish(&number.to_string())).collect();
        let reasons: Vec<_> = effects
            .iter()
            .filter_map(|effect| if let Effect::Dropped { reason, .. } = effect { Some(*reason) } else { None })
            .collect();
        assert_eq!(reasons, [reason; 3], "level {level}");
        assert_eq!(script.state.sessions["c"].outbound.queue_len(), 5);
        script.restart();
        let (_, effects) = script.connect_with_will(false, 100, None);
        let sent: Vec<_> = (1..).zip(kept).map(|(id, payload)| sent(id, false, payload)).collect();
        assert_eq!(deliveries(&effects), sent, "level {level}");
    }
}

/// The bounds are on what waits: what the window has room for does not.
#[test]
fn what_the_window_has_room_for_needs_none_in_the_queue() {
    for (queue_messages_max, queue_bytes_max) in [(0, 1_000_000), (5, 1)] {
        for level in [2, 3] {
            let config = GroupConfig { queue_messages_max, queue_bytes_max, ..config() };
            let mut script = Script { state: GroupState::new(config), ..Script::new() };
            script.apply(Command::Level(command::Level { level }));
            let epoch = script.connect(true, 100).epoch;
            script.subscribe(epoch, "t", false);
            let messages = (0..3).map(|number| script.message(&number.to_string())).collect();
            let effects = script.lane_batch(messages);
            let window = [sent(1, false, "0"), sent(2, false, "1")];
            assert_eq!(deliveries(&effects), if level == 2 { &[][..] } else { &window }, "level {level}");
            let dropped = effects.iter().filter(|effect| matches!(effect, Effect::Dropped { .. })).count();
            assert_eq!(dropped, if level == 2 { 3 } else { 1 }, "level {level}");
            script.restart();
        }
    }
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

/// A device without a battery starts in 1970, and may run for days before anybody tells it the time, or never hear it.
#[test]
fn a_wall_clock_that_was_never_set_ends_nothing_when_it_is_right_again() {
    const NOW_MS: u64 = 1_800_000_000_000;
    const DAY_MS: u64 = 86_400_000;
    let at_level = |level: u32, ticks: &[(u64, u64, bool)]| {
        let mut script = Script::new();
        script.apply(Command::Level(command::Level { level }));
        for &(elapsed_ms, wall_ms, bridge) in ticks {
            script.apply(Command::Tick(Tick { elapsed_ms, wall_ms, bridge, from_ms: None }));
            script.restart();
        }
        script.state.clock_ms()
    };
    // From its first start on.
    let fresh = [(0, 100_000, true), (5_000, 105_000, false), (0, NOW_MS, true), (0, NOW_MS + DAY_MS, true)];
    assert_eq!(at_level(3, &fresh), 5_000 + DAY_MS, "what is bridged is the day");
    assert!(at_level(2, &fresh) > NOW_MS / 2);
    // It knew the time once.
    let knew = [(0, NOW_MS, true), (0, 100_000, true), (2 * DAY_MS, 100_000 + 2 * DAY_MS, false)];
    let right = (0, NOW_MS + 2 * DAY_MS + 1_000, true);
    assert_eq!(at_level(3, &[&knew[..], &[right]].concat()), 2 * DAY_MS + 1_000);
    assert_eq!(at_level(2, &[&knew[..], &[right]].concat()), 4 * DAY_MS + 1_000);
}

fn will(delay_seconds: u32) -> Option<WillRecord> {
    Some(WillRecord { message: Some(record(0, "bye")), delay_seconds, publish_delay_ms: None, is_granted: false })
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

/// P10: the time that a session has runs from the end of the last connection that there was.
#[test]
fn a_claim_of_which_no_connection_came_gives_the_session_no_more_time() {
    let mut script = Script::new();
    let opened = script.connect(true, 100);
    script.disconnect(opened.epoch, false);
    for _ in 0..2 {
        script.tick(40_000);
        let opened = script.connect(false, 100);
        assert!(opened.session_present);
        script.restart();
        script.apply(never_began(opened.epoch));
    }
    script.tick(20_000 + CLOCK_LAG_MS_MAX);
    assert!(!script.connect(false, 100).session_present, "100 s are over");
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

/// What nobody takes would fill the memory of every replica: it is refused, and the identifier is free again.
#[test]
fn an_outbox_that_nobody_empties_takes_so_much_from_clients_and_no_more() {
    const MESSAGE_BYTES: usize = 1024 * 1024;
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    let payload = "x".repeat(MESSAGE_BYTES);
    let receive = |script: &mut Script, packet_id: u32| {
        let message = Some(record(u64::from(packet_id), &payload));
        let receive = Receive { client_id: "c".to_owned(), epoch, packet_id, message, delay_ms: None };
        let effects = script.apply(Command::Receive(receive));
        let reasons = effects.into_iter().filter_map(|effect| match effect {
            Effect::Acknowledge { kind: AckKind::PubRec, reason, .. } => Some(reason),
            _ => None,
        });
        reasons.collect::<Vec<_>>()
    };
    let fits = (RECEIVED_BYTES_MAX / MESSAGE_BYTES) as u32;
    for packet_id in 1..=fits {
        assert_eq!(receive(&mut script, packet_id), [ReasonCode::Success], "message {packet_id}");
    }
    script.restart();
    let full = fits + 1;
    assert_eq!(receive(&mut script, full), [ReasonCode::QuotaExceeded]);
    assert_eq!(receive(&mut script, 1), [ReasonCode::Success], "it is there");
    assert_eq!((script.state.outbox.len(), script.state.sessions["c"].received.len()), (fits as usize, fits as usize));
    script.apply(Command::Routed(command::Routed { positions: vec![1] }));
    assert_eq!(receive(&mut script, full), [ReasonCode::Success], "there is room again");
    assert_eq!(script.state.outbox.len(), fits as usize);
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
        let page = RetainedPage { client_id, filter, read, messages, last: true, ..RetainedPage::default() };
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
        ..RetainedPage::default()
    };
    let effects = script.apply(Command::RetainedPage(page.clone()));
    assert_eq!(deliveries(&effects), [sent(1, false, "older"), sent(2, false, "kept")]);
    assert_eq!(script.apply(Command::RetainedPage(page)), [], "a page of a read that is over");
}

/// [MQTT-3.3.4-2]: what is published while retained messages are read that it is one of comes once, with the highest QoS of all.
#[test]
fn what_is_published_while_retained_messages_are_read_keeps_its_qos() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    let asked = |filter: &str, no_local: bool| SubscribeFilter {
        filter: filter.to_owned(),
        qos: 1,
        no_local,
        ..SubscribeFilter::default()
    };
    let page = |filter: &str, read, messages| {
        let (client_id, filter) = ("c".to_owned(), filter.to_owned());
        Command::RetainedPage(RetainedPage { client_id, filter, read, messages, last: true, ..RetainedPage::default() })
    };
    let came = |effects: &[Effect]| -> Vec<(String, QoS, bool)> {
        let delivered = effects.iter().filter_map(|effect| match effect {
            Effect::Deliver(delivery) => Some(delivery),
            _ => None,
        });
        let payload = |message: &Message| String::from_utf8_lossy(&message.payload).into_owned();
        delivered.map(|delivery| (payload(&delivery.message), delivery.qos, delivery.retain)).collect()
    };
    let page_of = |messages| page("#", 1, messages);
    let publish = |script: &mut Script, payload: &str| {
        let mut message = script.message(payload);
        message.message.iter_mut().for_each(|message| message.qos = 2);
        script.lane_batch(vec![message])
    };
    assert_eq!(script.subscribe_to(epoch, asked("#", false)), Some(1));
    assert_eq!(came(&publish(&mut script, "kept")), []);
    script.restart();
    let kept = MessageRecord { qos: 2, ..record(1, "kept") };
    let effects = script.apply(page_of(vec![kept, record(7, "of another")]));
    let expected = [("kept", QoS::ExactlyOnce), ("of another", QoS::AtLeastOnce)];
    assert_eq!(came(&effects), expected.map(|(payload, qos)| (payload.to_owned(), qos, true)));

    // [MQTT-3.8.3-3], where the window has room.
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    let read = script.subscribe_to(epoch, asked("+/#", true)).expect("a read");
    let own = MessageRecord { publisher: "c".to_owned(), ..record(3, "own") };
    let effects = script.apply(page("+/#", read, vec![own, record(4, "of another")]));
    assert_eq!(came(&effects), [("of another".to_owned(), QoS::AtLeastOnce, true)]);
}

/// P1: a client that went before its retained messages were read may be away for long, and nobody reads on for it. What comes then is
/// bounded as its queue is, and no tighter.
#[test]
fn what_waits_behind_retained_messages_is_bounded_as_the_queue() {
    let queue_messages_max = u32::MAX as usize;
    let config = GroupConfig { queue_messages_max, queue_bytes_max: 100_000_000, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", true).expect("a read");
    script.disconnect(epoch, false);
    let published = HELD_MESSAGES_MAX + 1_500;
    for at in (0..published).step_by(500) {
        let messages = (at..at + 500).map(|number| script.message(&number.to_string())).collect();
        let effects = script.lane_batch(messages);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Dropped { .. })), "at {at}");
    }
    script.restart();
    let session = &script.state.sessions["c"];
    let (window, held) = (session.outbound.in_flight(), session.held.len());
    assert_eq!(window + session.outbound.queue_len() + held, published);
    assert!((1..=HELD_MESSAGES_MAX).contains(&held), "{held}");
}

/// Where more live messages come than can wait behind retained ones, what was read before they went on is read again: it would come behind
/// what replaced it. That is so from level 3 on.
#[test]
fn no_retained_message_follows_the_live_one_that_replaced_it() {
    let queue_messages_max = u32::MAX as usize;
    let config = GroupConfig { queue_messages_max, queue_bytes_max: 100_000_000, ..config() };
    for level in [2, 3] {
        let mut script = Script { state: GroupState::new(config), ..Script::new() };
        script.apply(Command::Level(command::Level { level }));
        let epoch = script.connect(true, 100).epoch;
        let read = script.subscribe(epoch, "#", true).expect("a read");
        let publish = |script: &mut Script, retain| {
            let first = record(0, "new");
            let messages = (0..=HELD_MESSAGES_MAX).map(|at| {
                let LaneMessage { message, .. } = script.message("another");
                let MessageRecord { number, .. } = message.clone().expect("there is one");
                let of_topic = MessageRecord { number, retain, ..first.clone() };
                let another = message.map(|message| MessageRecord { topic: "u".to_owned(), ..message });
                let message = if at == 0 { Some(of_topic) } else { another };
                LaneMessage { number, message, match_subscriptions: true, ..LaneMessage::default() }
            });
            let messages = messages.collect();
            script.lane_batch(messages);
        };
        publish(&mut script, true);
        script.restart();
        let page = |messages: &[&str], number, overflows, last| {
            let retained = |payload: &&str| MessageRecord { retain: true, ..record(1_000_000, payload) };
            let (client_id, filter) = ("c".to_owned(), "#".to_owned());
            let messages = messages.iter().map(retained).collect();
            Command::RetainedPage(RetainedPage { client_id, filter, read, messages, last, number, overflows })
        };
        let answered = |effects: &[Effect]| match effects {
            [Effect::RetainedTaken { answer, .. }] => (answer.page, answer.overflows),
            effects => panic!("nothing has room in the window: {effects:?}"),
        };
        let on_topic = |script: &Script| {
            let outbound = &script.state.sessions["c"].outbound;
            let in_flight = outbound.resend().into_iter().filter_map(|(.., entry)| entry);
            let entries = in_flight.chain(outbound.queued()).filter(|entry| *entry.message.topic == *"t");
            let said =
                entries.map(|entry| (String::from_utf8_lossy(&entry.message.payload).into_owned(), entry.retain));
            said.collect::<Vec<_>>()
        };
        let refuses = level == 3;
        let mut expected = vec![("new".to_owned(), false)];
        // Also if it says that it was the last one.
        for last in [false, true] {
            if last && !refuses {
                continue;
            }
            let effects = script.apply(page(&["old"], 1, 0, last));
            assert_eq!(answered(&effects), (1, u64::from(refuses)), "level {level}");
        }
        if !refuses {
            expected.push(("old".to_owned(), true));
        }
        assert_eq!(on_topic(&script), expected, "level {level}");
        // What others replace nothing, nothing is out of date for.
        publish(&mut script, false);
        script.restart();
        let effects = script.apply(page(&["newer"], 2, u64::from(refuses), false));
        assert_eq!(answered(&effects), (2, u64::from(refuses)), "level {level}");
        expected.extend([("new", false), ("newer", true)].map(|(payload, retain)| (payload.to_owned(), retain)));
        assert_eq!(on_topic(&script), expected, "level {level}");
        // Nothing is older than anything.
        let effects = script.apply(page(&[], 3, 0, true));
        assert_eq!(answered(&effects), (3, u64::from(refuses)), "level {level}");
        assert!(!script.state.sessions["c"].is_reading());
    }
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
    assert_eq!(beside_settled(effects), [Effect::Dropped { reason: Drop::Expired, count: 1 }]);
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
