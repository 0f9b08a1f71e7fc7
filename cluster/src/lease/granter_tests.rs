use super::GranterOutput::{Grant, ProposeDead, Refuse, StartRead};
use super::*;
use crate::directory::command::{Command, Departed, Form, Join, MemberRecord};

const MS: u64 = 1_000_000;

fn node(id: u64) -> NodeId {
    NodeId::new(id).expect("not zero")
}

/// Nodes 1 and 2 live as incarnations 2 and 3.
fn directory() -> Directory {
    let mut directory = Directory::new();
    let form = Form { cluster_id: vec![1].into(), groups: 1, ..Form::default() };
    directory.apply(1, Command::Form(form));
    for id in [1, 2] {
        let member = MemberRecord { node: id, name: id.to_string(), ..MemberRecord::default() };
        directory.apply(id + 1, Command::Join(Join { member: Some(member), attempt: 1, newest: 0 }));
    }
    directory
}

fn kill(directory: &mut Directory, id: u64) {
    let departed = Departed { node: id, incarnation: id + 1 };
    directory.apply(directory.applied() + 1, Command::Dead(departed));
}

/// A leader elected at 0.
struct Leader {
    granter: Granter,
    directory: Directory,
}

impl Leader {
    fn new() -> Self {
        let directory = directory();
        Self { granter: Granter::new(0, &directory), directory }
    }

    fn renewal(&mut self, now_ms: u64, id: u64, sequence: u64) -> Vec<GranterOutput> {
        let mut outputs = Vec::new();
        self.granter.on_renewal(now_ms * MS, node(id), Incarnation(id + 1), sequence, &mut outputs);
        outputs
    }

    fn read(&mut self, now_ms: u64, token: u64) -> Vec<GranterOutput> {
        let mut outputs = Vec::new();
        self.granter.on_read(now_ms * MS, ReadToken(token), &self.directory, &mut outputs);
        outputs
    }

    fn tick(&mut self, now_ms: u64) -> Vec<GranterOutput> {
        let mut outputs = Vec::new();
        self.granter.tick(now_ms * MS, &self.directory, &mut outputs);
        outputs
    }

    /// Answers rounds at every tick, as a healthy majority does, while node 1 renews; nothing else may come out.
    fn run_healthy(&mut self, from_ms: u64, to_ms: u64) {
        for now_ms in (from_ms..to_ms).step_by(100) {
            for output in [self.renewal(now_ms, 1, now_ms), self.tick(now_ms)].concat() {
                let StartRead(ReadToken(token)) = output else { panic!("{output:?} at {now_ms}") };
                assert_eq!(self.read(now_ms, token), [grant(1, now_ms)]);
            }
        }
    }
}

fn grant(id: u64, sequence: u64) -> GranterOutput {
    Grant { node: node(id), incarnation: Incarnation(id + 1), sequence }
}

fn propose_dead(id: u64) -> GranterOutput {
    ProposeDead { node: node(id), incarnation: Incarnation(id + 1) }
}

#[test]
fn a_renewal_is_granted_after_a_round() {
    let mut leader = Leader::new();
    assert_eq!(leader.renewal(10, 1, 5), [StartRead(ReadToken(1))]);
    assert_eq!(leader.read(20, 1), [grant(1, 5)]);
}

/// A round that was on its way when the renewal arrived may have been confirmed before another leader was elected.
#[test]
fn a_renewal_waits_for_a_round_begun_after_it_arrived() {
    let mut leader = Leader::new();
    assert_eq!(leader.renewal(10, 1, 5), [StartRead(ReadToken(1))]);
    assert_eq!(leader.renewal(11, 2, 7), []);
    assert_eq!(leader.renewal(12, 1, 6), []);
    assert_eq!(leader.read(20, 1), [grant(1, 5), StartRead(ReadToken(2))]);
    assert_eq!(leader.read(30, 2), [grant(1, 6), grant(2, 7)], "one round for all that wait");
}

/// Its rounds are never confirmed.
#[test]
fn a_deposed_leader_that_wakes_grants_nothing() {
    let mut leader = Leader::new();
    assert_eq!(leader.renewal(60_000, 1, 5), [StartRead(ReadToken(1))]);
    for (now_ms, token) in (60_300..80_000).step_by(300).zip(2..) {
        assert_eq!(leader.renewal(now_ms - 1, 1, token), []);
        assert_eq!(leader.tick(now_ms), [StartRead(ReadToken(token))]);
        assert!(leader.granter.rounds.len() <= ROUNDS_MAX);
    }
}

/// Where a disk takes its time for each sync, so does every round.
#[test]
fn rounds_that_are_slow_count() {
    let mut leader = Leader::new();
    assert_eq!(leader.renewal(10, 1, 5), [StartRead(ReadToken(1))]);
    assert_eq!(leader.renewal(300, 1, 6), []);
    assert_eq!(leader.tick(310), [StartRead(ReadToken(2))]);
    assert_eq!(leader.renewal(600, 1, 7), []);
    assert_eq!(leader.tick(610), [StartRead(ReadToken(3))]);
    assert_eq!(leader.read(710, 1), [grant(1, 5)], "others are under way");
    assert_eq!(leader.read(1_310, 3), [grant(1, 7)], "one begun before is lost");
    assert_eq!(leader.read(1_320, 2), []);
    assert_eq!(leader.renewal(1_330, 2, 9), [StartRead(ReadToken(4))]);
}

/// The renewals of a round that is lost are answered by the next, if nothing newer was asked.
#[test]
fn a_later_round_answers_for_those_before_it() {
    let mut leader = Leader::new();
    leader.renewal(10, 1, 5);
    leader.renewal(20, 2, 7);
    leader.tick(310);
    leader.renewal(320, 1, 6);
    leader.tick(610);
    assert_eq!(leader.read(700, 3), [grant(1, 6), grant(2, 7)]);
}

#[test]
fn what_was_asked_long_ago_is_still_answered() {
    let mut leader = Leader::new();
    leader.renewal(0, 1, 5);
    leader.renewal(299, 2, 7);
    leader.renewal(299, 1, 6);
    let last = 3 * ROUNDS_MAX as u64;
    for token in 2..=last {
        assert_eq!(leader.tick((token - 1) * 300), [StartRead(ReadToken(token))]);
    }
    assert_eq!(leader.read(last * 300, 1), [], "there are too many for the first to be known");
    let first_known = last + 1 - ROUNDS_MAX as u64;
    assert_eq!(leader.read(last * 300, first_known), [grant(1, 6), grant(2, 7)]);
}

/// It is still known who is silent.
#[test]
fn a_leader_whose_rounds_are_slow_proposes_deaths() {
    let mut leader = Leader::new();
    let mut under_way = VecDeque::new();
    let mut proposed = None;
    for now_ms in (0..3_000).step_by(10) {
        let mut outputs = Vec::new();
        if now_ms % 300 == 0 {
            outputs.extend(leader.renewal(now_ms, 1, now_ms));
        }
        if under_way.front().is_some_and(|&(begun_ms, _)| begun_ms + 400 <= now_ms) {
            let (_, token) = under_way.pop_front().expect("just seen");
            outputs.extend(leader.read(now_ms, token));
        }
        outputs.extend(leader.tick(now_ms));
        for output in outputs {
            match output {
                StartRead(ReadToken(token)) => under_way.push_back((now_ms, token)),
                Grant { node: to, .. } => assert_eq!(to, node(1)),
                dead => {
                    assert_eq!(dead, propose_dead(2));
                    proposed.get_or_insert(now_ms);
                }
            }
        }
    }
    assert_eq!(proposed, Some(1_650));
}

#[test]
fn who_is_dead_at_the_index_of_the_round_is_refused() {
    let mut leader = Leader::new();
    leader.renewal(10, 1, 5);
    kill(&mut leader.directory, 1);
    assert_eq!(leader.read(20, 1), [Refuse { node: node(1), incarnation: Incarnation(2) }]);
}

#[test]
fn a_round_that_is_lost_is_begun_again_for_all_that_wait() {
    let mut leader = Leader::new();
    leader.renewal(10, 1, 5);
    leader.renewal(200, 2, 7);
    assert_eq!(leader.tick(309), []);
    assert_eq!(leader.tick(310), [StartRead(ReadToken(2))]);
    assert_eq!(leader.read(320, 2), [grant(1, 5), grant(2, 7)]);
}

#[test]
fn a_silent_member_is_proposed_dead_a_tenth_after_its_lease_counted_from_receipt() {
    let mut leader = Leader::new();
    leader.renewal(100, 2, 7);
    assert_eq!(leader.read(190, 1), [grant(2, 7)]);
    leader.run_healthy(200, 1_700);
    assert_eq!(leader.renewal(1_700, 1, 9), [StartRead(ReadToken(17))]);
    assert_eq!(leader.read(1_700, 17), [grant(1, 9)]);
    assert_eq!(leader.tick(1_749), []);
    assert_eq!(leader.tick(1_750), [propose_dead(2)], "100 + 1650");
    assert_eq!(leader.tick(1_751), [], "proposed again only after a while");
    leader.run_healthy(1_900, 1_901);
    assert_eq!(leader.tick(2_050), [propose_dead(2)]);
}

/// The proposal may be on its way, and not in the state that the round leads to: a lease given now would outlive the death.
#[test]
fn who_was_proposed_dead_is_granted_nothing_more() {
    let mut leader = Leader::new();
    leader.run_healthy(0, 1_650);
    assert_eq!(leader.tick(1_650), [propose_dead(2)]);
    let start = leader.renewal(1_660, 2, 7);
    let [StartRead(ReadToken(token))] = start[..] else { panic!("{start:?}") };
    assert_eq!(leader.read(1_670, token), []);
    kill(&mut leader.directory, 2);
    leader.renewal(1_960, 2, 8);
    assert_eq!(leader.read(1_970, token + 1), [Refuse { node: node(2), incarnation: Incarnation(3) }]);
}

#[test]
fn a_new_leader_gives_every_member_one_full_lease() {
    let mut leader = Leader::new();
    leader.run_healthy(0, 1_600);
    assert_eq!(leader.tick(1_649), []);
    assert_eq!(leader.tick(1_650), [propose_dead(2)]);
}

#[test]
fn who_joins_has_one_full_lease() {
    let mut leader = Leader::new();
    leader.run_healthy(0, 1_000);
    let member = MemberRecord { node: 3, name: "3".to_owned(), ..MemberRecord::default() };
    let join = Join { member: Some(member), attempt: 1, newest: 0 };
    leader.directory.apply(4, Command::Join(join));
    leader.renewal(1_000, 2, 1);
    leader.read(1_000, 11);
    leader.run_healthy(1_100, 2_600);
    leader.renewal(2_600, 2, 2);
    leader.read(2_600, 27);
    assert_eq!(leader.tick(2_649), []);
    let dead = ProposeDead { node: node(3), incarnation: Incarnation(4) };
    assert_eq!(leader.tick(2_650), [dead]);
}

/// A leader without a quorum answers nobody. When the quorum comes back, its members are silent on its own account.
#[test]
fn a_leader_that_was_cut_off_gives_every_member_one_full_lease() {
    let mut leader = Leader::new();
    leader.run_healthy(0, 500);
    for now_ms in (500..5_200).step_by(100) {
        let outputs = leader.tick(now_ms);
        assert!(outputs.iter().all(|output| matches!(output, StartRead(_))), "{outputs:?} at {now_ms}");
    }
    let outputs = leader.tick(5_200);
    let [StartRead(ReadToken(token))] = outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(leader.read(5_210, token), []);
    leader.run_healthy(5_300, 6_800);
    leader.renewal(6_800, 1, 1);
    assert_eq!(leader.tick(6_859), []);
    leader.read(6_859, token + 16);
    assert_eq!(leader.tick(6_860), [propose_dead(2)], "5210 + 1650");
}

#[test]
fn who_waits_for_an_answer_is_not_silent() {
    let mut leader = Leader::new();
    leader.run_healthy(0, 1_600);
    let start = leader.renewal(1_600, 2, 1);
    let [StartRead(ReadToken(token))] = start[..] else { panic!("{start:?}") };
    assert_eq!(leader.tick(1_650), []);
    assert_eq!(leader.read(1_660, token), [grant(2, 1)]);
    assert_eq!(leader.tick(1_661), []);
}

/// Proposals get lost. It is granted nothing any more, so it must not keep itself half alive by asking.
#[test]
fn who_was_proposed_dead_is_proposed_again_while_it_asks() {
    let mut leader = Leader::new();
    leader.run_healthy(0, 1_650);
    assert_eq!(leader.tick(1_650), [propose_dead(2)]);
    leader.run_healthy(1_660, 1_900);
    let start = leader.renewal(1_940, 2, 7);
    assert!(matches!(start[..], [StartRead(_)]), "{start:?}");
    assert_eq!(leader.tick(1_950), [propose_dead(2)]);
}
