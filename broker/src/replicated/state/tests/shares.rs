//! Shared subscriptions, of a queue and out of an outbox.

use kentongan_cluster::state::{Pair, StateError};

use super::*;
use crate::later::PIECES_LEVEL;
use crate::replicated::rows::{MemoryRows, StoredRows};

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
        Self::configured(GroupConfig { share_strategy, ..config() }, members)
    }

    fn configured(config: GroupConfig, members: &[&'static str]) -> Self {
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
    let effects = beside_settled(shared.disconnect("m1", None));
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
    assert_eq!(beside_settled(effects), [Effect::ShareInFlight { share: Arc::clone(&share), least: 0 }]);
    let effects = beside_settled(shared.disconnect("m1", None));
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
    let effects = shared.script.apply(Command::Acknowledge(Acknowledge { client_id, epoch, items }));
    assert_eq!(beside_settled(effects), []);
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
    let entries = vec![command::PickedEntry { position, picks, routed, ..command::PickedEntry::default() }];
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

/// A leader says who gets what stands at position 1, of these shared subscriptions behind `after`.
fn piece(script: &mut Script, after: &str, shares: &[&str], target: PickTarget, more: bool) -> Vec<Effect> {
    let pick = |share: &&str| command::Pick { share: (*share).to_owned(), target: Some(target.record()) };
    let (picks, after) = (shares.iter().map(pick).collect(), after.to_owned());
    let entries = vec![command::PickedEntry { position: 1, picks, routed: true, more, after }];
    script.apply(Command::Picked(command::Picked { entries }))
}

/// P11: there may be so many shared subscriptions that no entry of the log holds all their names.
#[test]
fn what_is_picked_in_pieces_counts_once_whoever_says_it_and_how_often() {
    let mut script = posted();
    script.apply(Command::Level(command::Level { level: PIECES_LEVEL }));
    let route = |position| Effect::Route { position };
    let up_to = |share| Effect::PickedUpTo { position: 1, share: Arc::from(share) };
    assert_eq!(piece(&mut script, "b", &["c"], ON_ONE, false), [], "one before it was lost");
    assert_eq!(piece(&mut script, "", &["a", "b"], ON_ONE, true), [route(2), route(3), up_to("b")]);
    assert_eq!(piece(&mut script, "", &["a", "b"], ON_TWO, true), [up_to("b")], "it was proposed twice");

    assert_eq!(routed_by_a_new_leader(&mut script), [1, 2, 3]);
    assert!(script.state.outbox[&1].is_picked_of("b") && !script.state.outbox[&1].is_picked_of("c"));
    assert_eq!(piece(&mut script, "", &["a", "aa", "b", "c"], ON_TWO, true), [route(4), up_to("c")], "cut elsewhere");
    assert_eq!(piece(&mut script, "b", &["c"], ON_ONE, true), [up_to("c")], "by the leader before");
    assert_eq!(piece(&mut script, "d", &["e"], ON_ONE, false), [up_to("c")], "one before it was lost");
    script.restart();
    assert_eq!(piece(&mut script, "b", &["c", "d"], ON_TWO, false), [route(5), Effect::Picked { position: 1 }]);
    assert_eq!(piece(&mut script, "c", &["d"], ON_ONE, false), [Effect::Picked { position: 1 }], "it comes too late");
    assert_eq!(picked(&script), [(2, Some(ON_ONE)), (3, Some(ON_ONE)), (4, Some(ON_TWO)), (5, Some(ON_TWO))]);
    let shares = script.state.outbox.values().map(|entry| entry.share.as_deref().expect("one each"));
    assert_eq!(shares.collect::<Vec<_>>(), ["a", "b", "c", "d"]);
}

/// As an earlier version takes it, which knows of no pieces.
#[test]
fn below_its_level_a_piece_is_all_there_is() {
    let mut script = posted();
    let effects = piece(&mut script, "", &["a"], ON_ONE, true);
    assert_eq!(effects, [Effect::Route { position: 2 }, Effect::Picked { position: 1 }]);
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
    let entries = vec![command::PickedEntry { position: 1, picks, routed: true, ..command::PickedEntry::default() }];
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
    let will = WillRecord { message: Some(record), delay_seconds: 0, publish_delay_ms: None, is_granted: false };
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
    let (opened, _) = script.connect_with_will(
        true,
        100,
        Some(WillRecord { message, delay_seconds: 0, publish_delay_ms: None, is_granted: false }),
    );
    script.disconnect(opened.epoch, true);
    pick(&mut script, 1, ON_ONE, true);
    assert_eq!(routed_by_a_new_leader(&mut script), [2]);
    let effects = script.apply(Command::Fence(Fence { below: 6, sessions_max: 10, node: 1 }));
    assert_eq!(effects, [Effect::Fenced { node: 1, below: 6, more: false }], "it may have been sent");
    script.apply(Command::Routed(command::Routed { positions: vec![2] }));
    assert_eq!(picked(&script), []);
}

/// Rows that count how often they are read.
#[derive(Debug, Default)]
struct CountedRows {
    rows: MemoryRows,
    reads: std::sync::atomic::AtomicUsize,
}

impl CountedRows {
    fn reads(&self) -> usize {
        self.reads.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl StoredRows for CountedRows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.rows.get(key)
    }

    fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError> {
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.rows.range(from, until, pairs_max)
    }
}

/// A slow member that comes and goes: its queue is on disk, and the thread that would read it keeps the lease.
#[test]
fn the_queue_of_a_member_that_goes_is_read_back_only_for_others_that_are_there() {
    let config = GroupConfig { queue_messages_max: 1_000, ..config() };
    let mut shared = ShareScript::configured(config, &["m0", "m1"]);
    shared.disconnect("m1", None);
    for _ in 0..200 {
        shared.publish();
    }
    let rows = Arc::new(CountedRows::default());
    rows.rows.write(shared.script.state.take_dirty());
    let stored: Arc<dyn StoredRows> = Arc::<CountedRows>::clone(&rows);
    shared.script.state = GroupState::resume(config, stored, 10).expect("a whole state");
    assert!(shared.script.state.sessions["m0"].outbound.middle().is_some_and(|middle| middle.messages > 100));

    let before = rows.reads();
    let disconnect = Disconnect { client_id: "m0".to_owned(), epoch: shared.epochs["m0"], ..Disconnect::default() };
    shared.script.state.apply(Command::Disconnect(disconnect), &mut Vec::new());
    assert_eq!(rows.reads(), before, "nobody is there who could have it");
    assert!(shared.script.state.sessions["m0"].outbound.middle().is_some());

    let effects = shared.script.apply(Command::Connect(claim(owner(1, 7), "m1")));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Opened(_))));
    let effects = shared.script.apply(Command::Connect(claim(owner(1, 8), "m0")));
    let opened = effects.iter().find_map(|effect| match effect {
        Effect::Opened(opened) => Some(opened.epoch),
        _ => None,
    });
    shared.epochs.insert("m0", opened.expect("opened"));
    shared.disconnect("m0", None);
    assert_eq!(shared.script.state.sessions["m0"].outbound.queue_len(), 0, "the other one has it");
    assert!(rows.reads() > before);
}
