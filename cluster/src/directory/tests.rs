use bytes::Bytes;

use super::command::{Departed, Departing, FeatureLevel};
use super::*;

fn node(id: u64) -> NodeId {
    NodeId::new(id).expect("not zero")
}

fn record(id: u64) -> MemberRecord {
    MemberRecord {
        node: id,
        name: format!("n{id}"),
        peer_address: format!("n{id}:7000"),
        client_address: format!("n{id}:1883"),
        is_advertised: id == 1,
        feature_level: 3,
        zone: format!("z{id}"),
        feature_level_min: 1,
    }
}

fn admit(record: MemberRecord) -> Command {
    Command::Admit(Admit { member: Some(record) })
}

fn remove(id: u64) -> Command {
    Command::Remove(Departing { node: id })
}

fn removed(id: u64) -> Command {
    Command::Removed(Departing { node: id })
}

fn join(id: u64, attempt: u64, newest: u64) -> Command {
    Command::Join(Join { member: Some(record(id)), attempt, newest })
}

fn dead(id: u64, incarnation: u64) -> Command {
    Command::Dead(Departed { node: id, incarnation })
}

fn lost(id: u64, incarnation: u64) -> Command {
    Command::Lost(Departed { node: id, incarnation })
}

fn joined(id: u64, incarnation: u64, attempt: u64) -> Effect {
    Effect::Joined { node: node(id), incarnation: Incarnation(incarnation), attempt }
}

fn died(id: u64, incarnation: u64) -> Effect {
    Effect::Died { node: node(id), incarnation: Incarnation(incarnation) }
}

fn refused(id: u64, attempt: u64, reason: JoinRefusal) -> Effect {
    Effect::Refused { node: node(id), attempt, reason }
}

fn drain(id: u64, on: bool, incarnation: u64) -> Command {
    Command::Drain(Drain { node: id, on, incarnation })
}

fn prefer(group: u32, id: u64) -> Command {
    Command::Prefer(Prefer { group, node: id })
}

/// Feeds commands at consecutive indices.
struct Log(Directory);

impl Log {
    fn formed() -> Self {
        let mut log = Self(Directory::new());
        let placement = command::Placement { group: 0, voters: vec![1, 2, 3], learners: vec![] };
        let form = Form {
            cluster_id: Bytes::from_static(&[7; 16]),
            groups: 16,
            members: vec![record(1), record(2), record(3)],
            placements: vec![placement],
            feature_level: 1,
            voters: 5,
        };
        assert_eq!(log.feed(Command::Form(form)), [Effect::Formed]);
        log
    }

    fn feed(&mut self, command: Command) -> Vec<Effect> {
        let bytes = command::encode(command);
        let command = command::decode(bytes).expect("own bytes").expect("a command");
        self.0.apply(self.0.applied() + 1, command)
    }

    fn living(&self) -> Vec<(u64, u64)> {
        self.0.living().map(|(node, incarnation)| (node.get(), incarnation.0)).collect()
    }

    fn witnesses(&self, incarnation: u64) -> Vec<u64> {
        self.0.dead_not_lost()[&Incarnation(incarnation)].witnesses.iter().map(|witness| witness.0).collect()
    }
}

#[test]
fn a_cluster_is_formed_once() {
    let mut log = Log::formed();
    let again = Form { cluster_id: Bytes::from_static(&[8; 16]), groups: 2, ..Form::default() };
    assert_eq!(log.feed(Command::Form(again)), []);
    assert_eq!(log.0.cluster_id(), Some(&[7; 16][..]));
    assert_eq!(log.0.groups().count(), 16);
    assert_eq!(log.0.group_of_slot(4095), Some(GroupId(15)));
    assert_eq!(log.0.group_of_slot(4096), None);
    assert_eq!(log.0.voters(), 5);
    assert_eq!(log.0.placement(GroupId(0)).map(|placed| placed.voters.clone()), Some([1, 2, 3].map(node).into()));
}

#[test]
fn a_group_is_placed_anew_as_a_whole() {
    let mut log = Log::formed();
    let placed = Placement { voters: [1].map(node).into(), learners: [2].map(node).into() };
    let command = placed.command(GroupId(0));
    assert_eq!(log.feed(Command::Placement(command.clone())), [Effect::Placed { group: GroupId(0) }]);
    assert_eq!(log.0.placement(GroupId(0)), Some(&placed));
    assert_eq!(log.feed(Command::Placement(command)), [Effect::Placed { group: GroupId(0) }], "safe to repeat");
    assert_eq!(placed.nodes().collect::<Vec<_>>(), [1, 2].map(node));
    assert!(placed.keeps(node(2)) && !placed.keeps(node(3)));
}

fn drained(id: u64) -> [Effect; 1] {
    [Effect::Drained { node: node(id) }]
}

/// Whatever becomes of the node: who upgrades it does not want it back before the work is done.
#[test]
fn what_an_operator_drains_stays_drained_until_that_is_undone() {
    let mut log = Log::formed();
    log.feed(join(1, 9, 0));
    assert_eq!(log.feed(drain(1, true, 0)), drained(1));
    assert_eq!(log.feed(drain(1, true, 0)), [], "safe to repeat");
    log.feed(dead(1, 2));
    log.feed(join(1, 10, 2));
    assert_eq!(log.0.drained(), [node(1)].into());
    assert_eq!(Directory::restore(&log.0.snapshot()).unwrap(), log.0);
    assert_eq!(log.feed(drain(1, false, 0)), drained(1));
    assert_eq!(log.0.drained(), [].into());
    assert_eq!(log.feed(drain(4, true, 0)), [], "there is no such member");
}

#[test]
fn a_process_that_ends_is_drained_as_long_as_it_lives() {
    let mut log = Log::formed();
    log.feed(join(1, 9, 0));
    assert_eq!(log.feed(drain(1, true, 1)), [], "that is not the incarnation which lives");
    assert_eq!(log.feed(drain(1, true, 2)), drained(1));
    assert_eq!(Directory::restore(&log.0.snapshot()).unwrap(), log.0);
    let newest = log.0.members()[&node(1)].newest.0;
    log.feed(join(1, 10, newest));
    assert_eq!(log.0.drained(), [].into(), "the next process takes clients");
    assert_eq!(log.feed(drain(1, true, newest)), [], "and what was said late of the one before changes nothing");
    let newest = log.0.members()[&node(1)].newest.0;
    log.feed(drain(1, true, newest));
    log.feed(dead(1, newest));
    assert_eq!(log.0.drained(), [].into());
}

#[test]
fn who_was_chosen_to_lead_is_so_until_it_has_no_vote() {
    let mut log = Log::formed();
    let preferred = [Effect::Preferred { group: GroupId(0) }];
    assert_eq!(log.feed(prefer(0, 4)), [], "it has no vote");
    assert_eq!(log.feed(prefer(9, 1)), [], "nobody knows where that group is");
    assert_eq!(log.feed(prefer(0, 2)), preferred);
    assert_eq!(log.feed(prefer(0, 2)), [], "safe to repeat");
    assert_eq!(Directory::restore(&log.0.snapshot()).unwrap(), log.0);
    let place = |voters: &[u64]| {
        let placed = Placement { voters: voters.iter().copied().map(node).collect(), learners: [].into() };
        Command::Placement(placed.command(GroupId(0)))
    };
    log.feed(place(&[1, 2]));
    assert_eq!(log.0.chosen(), &[(GroupId(0), node(2))].into());
    log.feed(place(&[1, 3]));
    log.feed(place(&[1, 2, 3]));
    assert_eq!(log.0.chosen(), &[].into(), "it is forgotten with the vote");
    log.feed(prefer(0, 3));
    assert_eq!(log.feed(prefer(0, 0)), preferred);
    assert_eq!(log.0.chosen(), &[].into());
}

#[test]
fn nobody_joins_what_is_not_formed() {
    let mut log = Log(Directory::new());
    assert_eq!(log.feed(join(1, 9, 0)), [refused(1, 9, JoinRefusal::NotFormed)]);
}

#[test]
fn the_index_of_a_join_is_the_incarnation() {
    let mut log = Log::formed();
    assert_eq!(log.living(), [], "members of Form do not live before they join");
    assert_eq!(log.feed(join(1, 9, 0)), [joined(1, 2, 9)]);
    assert_eq!(log.feed(join(2, 9, 0)), [joined(2, 3, 9)]);
    assert_eq!(log.living(), [(1, 2), (2, 3)]);
}

#[test]
fn an_entry_that_is_applied_again_changes_nothing() {
    let mut log = Log::formed();
    log.feed(join(1, 9, 0));
    assert_eq!(log.0.apply(2, dead(1, 2)), []);
    assert_eq!(log.living(), [(1, 2)]);
}

#[test]
fn registering_again_ends_the_older_incarnation_first() {
    let mut log = Log::formed();
    log.feed(join(1, 8, 0));
    log.feed(join(2, 9, 0));
    assert_eq!(log.feed(join(1, 10, 2)), [died(1, 2), joined(1, 4, 10)]);
    assert_eq!(log.living(), [(1, 4), (2, 3)]);
    assert_eq!(log.witnesses(2), [3], "the new incarnation did not live when the old one died");
    assert_eq!(log.0.not_lost().map(|(_, incarnation)| incarnation.0).collect::<Vec<_>>(), [4, 3, 2]);
}

/// The network may deliver a `Join` of an earlier start after a later one: it must not end the living incarnation, whose
/// process holds a lease.
#[test]
fn a_join_that_does_not_know_the_newest_incarnation_is_refused() {
    let mut log = Log::formed();
    log.feed(join(1, 9, 0));
    let stale = JoinRefusal::Stale { newest: Incarnation(2) };
    assert_eq!(log.feed(join(1, 9, 0)), [refused(1, 9, stale)], "a copy of the same");
    assert_eq!(log.feed(join(1, 8, 0)), [refused(1, 8, stale)], "an earlier one");
    log.feed(dead(1, 2));
    assert_eq!(log.feed(join(1, 8, 0)), [refused(1, 8, stale)], "also when the newest is dead");
    assert_eq!(log.feed(join(1, 11, 2)), [joined(1, 7, 11)]);
}

#[test]
fn a_name_belongs_to_one_living_node() {
    let mut log = Log::formed();
    log.feed(join(1, 9, 0));
    let namesake = || {
        let member = MemberRecord { node: 4, ..record(1) };
        Command::Join(Join { member: Some(member), attempt: 5, newest: 0 })
    };
    assert_eq!(log.feed(namesake()), [refused(4, 5, JoinRefusal::NameTaken { by: node(1) })]);
    log.feed(dead(1, 2));
    assert_eq!(log.feed(namesake()), [joined(4, 5, 5)]);
}

#[test]
fn dead_is_ignored_unless_it_names_the_living_incarnation() {
    let mut log = Log::formed();
    log.feed(join(1, 8, 0));
    log.feed(join(1, 9, 2));
    assert_eq!(log.feed(dead(1, 2)), []);
    assert_eq!(log.feed(dead(2, 3)), []);
    assert_eq!(log.feed(dead(1, 3)), [died(1, 3)]);
    assert_eq!(log.feed(dead(1, 3)), [], "and only once");
}

#[test]
fn lost_follows_dead_once() {
    let mut log = Log::formed();
    log.feed(join(1, 9, 0));
    assert_eq!(log.feed(lost(1, 2)), [], "not while it lives");
    log.feed(dead(1, 2));
    assert_eq!(log.feed(lost(1, 2)), [Effect::Lost { node: node(1), incarnation: Incarnation(2) }]);
    assert_eq!(log.feed(lost(1, 2)), []);
    assert_eq!(log.0.fences()[&node(1)], Incarnation(3), "what fences it outlives it");
}

/// Two nodes that die together would otherwise wait for each other for ever.
#[test]
fn a_witness_that_dies_no_longer_counts() {
    let mut log = Log::formed();
    for id in 1..=3 {
        log.feed(join(id, 9, 0));
    }
    log.feed(dead(1, 2));
    assert_eq!(log.witnesses(2), [3, 4]);
    log.feed(dead(2, 3));
    assert_eq!(log.witnesses(2), [4]);
    assert_eq!(log.witnesses(3), [4]);
}

#[test]
fn a_node_is_admitted_once_and_lives_only_when_it_registers() {
    let mut log = Log::formed();
    assert_eq!(log.feed(admit(record(4))), [Effect::Admitted { node: node(4) }]);
    assert_eq!(log.feed(admit(record(4))), [], "safe to repeat");
    assert_eq!((log.living(), log.0.members().len()), (vec![], 4));
    assert_eq!(log.0.members()[&node(4)].record(node(4)), record(4));
    assert_eq!(log.feed(join(4, 9, 0)), [joined(4, 4, 9)]);
}

/// A lost disk: what comes back under the name is another node.
#[test]
fn a_new_node_takes_the_name_of_a_dead_one_and_its_place() {
    let mut log = Log::formed();
    log.feed(join(1, 9, 0));
    let successor = || admit(MemberRecord { name: "n1".into(), ..record(4) });
    assert_eq!(log.feed(successor()), [], "the name is taken while its owner lives");
    log.feed(dead(1, 2));
    assert_eq!(log.feed(successor()), [Effect::Leaves { node: node(1) }, Effect::Admitted { node: node(4) }]);
    assert!(log.0.members()[&node(1)].leaves && !log.0.members()[&node(4)].leaves);
}

#[test]
fn a_member_that_leaves_is_removed_for_good() {
    let mut log = Log::formed();
    log.feed(join(3, 9, 0));
    assert_eq!(log.feed(removed(3)), [], "not before it was told to leave");
    assert_eq!(log.feed(remove(3)), [Effect::Leaves { node: node(3) }]);
    assert_eq!(log.feed(remove(3)), [], "safe to repeat");
    assert_eq!(log.feed(join(3, 10, 2)), [died(3, 2), joined(3, 6, 10)], "it serves until its groups have moved");
    assert!(log.0.members()[&node(3)].leaves, "and still leaves");
    assert_eq!(log.feed(removed(3)), [died(3, 6), Effect::Removed { node: node(3) }]);
    assert_eq!(log.feed(removed(3)), []);
    assert_eq!(log.feed(join(3, 11, 6)), [refused(3, 11, JoinRefusal::Removed)]);
    assert_eq!(log.feed(admit(record(3))), []);
    assert_eq!(log.0.fences()[&node(3)], Incarnation(7), "what fences it outlives it");
}

#[test]
fn the_last_member_that_stays_cannot_be_removed() {
    let mut log = Log::formed();
    log.feed(remove(1));
    log.feed(remove(2));
    assert_eq!(log.feed(remove(3)), []);
}

#[test]
fn the_feature_level_waits_for_every_member() {
    let mut log = Log::formed();
    let raise = |level| Command::FeatureLevel(FeatureLevel { level });
    assert_eq!(log.feed(raise(4)), [], "all know 3");
    assert_eq!(log.feed(raise(3)), [Effect::FeatureLevel { level: 3 }]);
    assert_eq!(log.feed(raise(2)), [], "never lowered");
    let old = MemberRecord { feature_level: 2, ..record(4) };
    let join = Command::Join(Join { member: Some(old), attempt: 1, newest: 0 });
    let too_old = JoinRefusal::FeatureLevel(UnknownLevel::TooOld { used: 3, max: 2 });
    assert_eq!(log.feed(join), [refused(4, 1, too_old)]);
    let new = MemberRecord { feature_level: 9, feature_level_min: 4, ..record(4) };
    let join = Command::Join(Join { member: Some(new), attempt: 2, newest: 0 });
    let too_new = JoinRefusal::FeatureLevel(UnknownLevel::TooNew { used: 3, min: 4 });
    assert_eq!(log.feed(join), [refused(4, 2, too_new)]);
}

/// Who is away comes back with the program it went with, unless it is removed.
#[test]
fn a_member_that_is_dead_holds_the_feature_level_back_until_it_is_removed() {
    let mut log = Log::formed();
    for id in 1..=3 {
        let known = if id == 2 { 3 } else { 4 };
        let member = MemberRecord { feature_level: known, ..record(id) };
        log.feed(Command::Join(Join { member: Some(member), attempt: 1, newest: 0 }));
    }
    log.feed(dead(2, 3));
    assert_eq!(log.0.level_known_to_all(), 3);
    let raise = Command::FeatureLevel(FeatureLevel { level: 4 });
    assert_eq!(log.feed(raise.clone()), []);
    log.feed(remove(2));
    log.feed(removed(2));
    assert_eq!(log.feed(raise), [Effect::FeatureLevel { level: 4 }]);
}

#[test]
fn a_snapshot_restores_the_state_to_the_byte() {
    let mut log = Log::formed();
    for id in 1..=3 {
        log.feed(join(id, 9, 0));
    }
    log.feed(dead(2, 3));
    log.feed(remove(2));
    log.feed(removed(2));
    log.feed(remove(1));
    log.feed(Command::Placement(command::Placement { group: 3, voters: vec![1], learners: vec![3] }));
    log.feed(Command::Ban(command::Ban { subject: "somebody".into(), ..command::Ban::default() }));
    let bytes = log.0.snapshot();
    let restored = Directory::restore(&bytes).expect("own bytes");
    assert_eq!(restored, log.0);
    assert_eq!(restored.snapshot(), bytes);
    assert_eq!(Directory::restore(&Directory::new().snapshot()).expect("own bytes"), Directory::new());
}

#[test]
fn bytes_that_are_no_snapshot_are_refused() {
    let fence_of_no_node = [0x3a, 2, 0x10, 1];
    assert!(matches!(Directory::restore(&fence_of_no_node), Err(SnapshotError::Invalid(_))));
    let one_slot = [0x4a, 1, 0];
    assert!(matches!(Directory::restore(&one_slot), Err(SnapshotError::Invalid(_))));
    assert!(matches!(Directory::restore(&[0xff]), Err(SnapshotError::Undecodable(_))));
}

/// Nobody of the old cluster is believed again, and whatever the groups have of them is fenced, also what this copy of the directory has
/// not heard of.
#[test]
fn a_cluster_that_takes_the_place_of_another_counts_on_nobody_of_it() {
    let mut log = Log::formed();
    log.feed(join(1, 1, 0));
    log.feed(join(2, 1, 0));
    log.feed(dead(2, 3));
    log.feed(prefer(0, 1));
    assert!(!log.0.chosen().is_empty(), "an operator chose who leads");
    let (old, before) = (log.0.clone(), log.0.applied());
    let new = old.begin_anew(vec![8; 16], record(9));

    assert_eq!(new.succeeded(), [vec![7; 16]]);
    assert_eq!(new.cluster_id(), Some(&[8; 16][..]));
    assert_eq!(new.members().keys().copied().collect::<Vec<_>>(), [node(9)]);
    assert_eq!(new.removed().iter().map(|node| node.get()).collect::<Vec<_>>(), [1, 2, 3]);
    let fenced: Vec<_> = new.dead_not_lost().iter().map(|(incarnation, dead)| (dead.node, incarnation.0 + 1)).collect();
    assert_eq!(fenced.len(), 3, "one for each of them");
    for (node, below) in fenced {
        assert!(
            below > before + 1_000 && below <= new.applied(),
            "it fences what came later, and the new node is above it"
        );
        assert_eq!(new.fences().get(&node), Some(&Incarnation(below)));
    }
    let alone = Placement { voters: [node(9)].into(), learners: [].into() };
    assert!(new.groups().chain([GroupId::DIRECTORY]).all(|group| new.placement(group) == Some(&alone)));
    assert_eq!((new.voters(), new.feature_level()), (5, 1));
    assert!(new.chosen().is_empty(), "who is no member leads nothing");
    assert_eq!(Directory::restore(&new.snapshot()).expect("own bytes"), new);

    let mut log = Log(new);
    let own = log.0.applied() + 1;
    assert_eq!(log.feed(join(9, 1, 0)), [joined(9, own, 1)]);
    assert_eq!(log.feed(join(1, 2, own)), [refused(1, 2, JoinRefusal::Removed)]);
}
