//! The ledger's rules alone: any node proposes, messages are late, processes die and disks are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::*;
use crate::disk::{SimDisk, Unsynced};
use crate::transport::ClusterId;

fn member(node: u64) -> MemberRecord {
    MemberRecord { node, name: format!("n{node}"), ..MemberRecord::default() }
}

fn ledger(node: u64) -> Ledger {
    Ledger::open(Arc::new(SimDisk::new()), NodeId(node)).unwrap()
}

fn proposal(cluster: u128, number: u32, decider: u64, members: &[u64]) -> Proposal {
    Proposal::new(ClusterId(cluster), number, &member(decider), members.to_vec())
}

fn formation_of(cluster: u128, members: &[u64]) -> Formation {
    let members = members.iter().copied().map(member).collect();
    Formation {
        cluster_id: ClusterId(cluster),
        terms: Terms { groups: 1, voters: 3, settings: Bytes::new() },
        members,
        is_joined: false,
    }
}

#[test]
fn a_promise_is_given_again_to_whoever_has_it() {
    let mut ledger = ledger(3);
    for _ in 0..2 {
        ledger.make_promise(&proposal(7, 1, 1, &[1, 2, 3])).unwrap();
    }
    assert_eq!(ledger.promise(), Some(&proposal(7, 1, 1, &[1, 2, 3])));
}

#[test]
fn a_promise_never_gives_way_to_a_lower_number_or_another_cluster_of_the_same() {
    let mut ledger = ledger(3);
    ledger.make_promise(&proposal(7, 2, 1, &[1, 2, 3])).unwrap();
    for (cluster, number, decider) in [(7, 1, 1), (8, 2, 2), (8, 2, 1), (8, 1, 2)] {
        let refused = ledger.make_promise(&proposal(cluster, number, decider, &[1, 2, 3]));
        assert!(matches!(refused, Err(PromiseError::Promised { number: 2, decider: 1, .. })), "{refused:?}");
    }
}

#[test]
fn a_first_seed_that_lost_its_disk_is_promised_again() {
    let mut ledger = ledger(3);
    ledger.make_promise(&proposal(7, 1, 1, &[1, 2, 3])).unwrap();
    ledger.make_promise(&proposal(8, 2, 11, &[11, 2, 3])).unwrap();
    assert!(matches!(ledger.adopt(formation_of(7, &[1, 2, 3])), Err(AdoptError::NotPromised(ClusterId(7)))));
    ledger.adopt(formation_of(8, &[11, 2, 3])).unwrap();
}

#[test]
fn a_promise_does_not_give_way_if_more_than_the_first_seed_is_missing() {
    let mut ledger = ledger(3);
    ledger.make_promise(&proposal(7, 1, 1, &[1, 2, 3])).unwrap();
    let refused = ledger.make_promise(&proposal(8, 2, 11, &[11, 12, 3]));
    assert!(matches!(refused, Err(PromiseError::Missing { missing: 2 })), "{refused:?}");
}

#[test]
fn another_seed_that_lost_its_disk_is_part_of_the_same_cluster() {
    let mut ledger = ledger(3);
    ledger.make_promise(&proposal(7, 1, 1, &[1, 2, 3])).unwrap();
    ledger.make_promise(&proposal(7, 1, 1, &[1, 12, 3])).unwrap();
    assert_eq!(ledger.promise().unwrap().members, [1, 2, 3, 12], "all that were named");
    ledger.adopt(formation_of(7, &[1, 12, 3])).unwrap();
}

#[test]
fn a_node_of_a_cluster_promises_nothing_and_adopts_nothing() {
    let mut ledger = ledger(3);
    ledger.make_promise(&proposal(7, 1, 1, &[1, 2, 3])).unwrap();
    ledger.adopt(formation_of(7, &[1, 2, 3])).unwrap();
    let refused = ledger.make_promise(&proposal(8, 2, 1, &[1, 2, 3]));
    assert!(matches!(refused, Err(PromiseError::Formed(ClusterId(7)))), "{refused:?}");
    assert!(ledger.adopt(formation_of(7, &[1, 2, 3])).is_err());
}

#[test]
fn a_node_that_is_not_listed_or_never_promised_adopts_nothing() {
    let mut ledger = ledger(3);
    let refused = ledger.adopt(formation_of(7, &[1, 2, 3]));
    assert!(matches!(refused, Err(AdoptError::NotPromised(ClusterId(7)))), "{refused:?}");
    ledger.make_promise(&proposal(7, 1, 1, &[1, 2, 3])).unwrap();
    let refused = ledger.adopt(formation_of(7, &[1, 2, 13]));
    assert!(matches!(refused, Err(AdoptError::NotListed(ClusterId(7)))), "{refused:?}");
}

/// Whatever it promised: what it never adopts it harms no more than by being lost.
#[test]
fn a_node_joins_a_cluster_that_there_is_once() {
    let mut ledger = ledger(3);
    ledger.make_promise(&proposal(7, 1, 1, &[1, 2, 3])).unwrap();
    let refused = ledger.join(formation_of(8, &[4, 5]));
    assert!(matches!(refused, Err(AdoptError::NotListed(ClusterId(8)))), "not before it is a member: {refused:?}");
    ledger.join(formation_of(8, &[4, 5, 3])).unwrap();
    assert!(ledger.formation().is_some_and(|formation| formation.is_joined));
    assert!(matches!(ledger.adopt(formation_of(7, &[1, 2, 3])), Err(AdoptError::NotPromised(_))));
    assert!(matches!(ledger.join(formation_of(9, &[3])), Err(AdoptError::NotPromised(_))));
    let refused = ledger.make_promise(&proposal(7, 2, 1, &[1, 2, 3]));
    assert!(matches!(refused, Err(PromiseError::Formed(ClusterId(8)))), "{refused:?}");
}

#[test]
fn nonsense_is_not_promised() {
    let twice = [1, 3, 3];
    let many: Vec<u64> = (1..=MEMBERS_MAX as u64 + 1).collect();
    let table: &[(u32, u64, &[u64])] =
        &[(0, 1, &[1, 3]), (u32::MAX, 1, &[1, 3]), (1, 1, &[1, 2]), (1, 1, &[2, 3]), (1, 1, &twice), (1, 1, &many)];
    for &(number, decider, members) in table {
        let refused = ledger(3).make_promise(&proposal(7, number, decider, members));
        assert!(matches!(refused, Err(PromiseError::Malformed(_))), "{number} {decider} {members:?}");
    }
}

#[test]
fn a_decider_decides_only_what_it_proposed_last() {
    let mut ledger = ledger(1);
    let first = ledger.propose(&member(1), vec![1, 2], 1).unwrap();
    let cluster = first.cluster().unwrap().0;
    let raised = ledger.propose(&member(1), vec![1, 2], 2).unwrap();
    let refused = ledger.decide(&first, formation_of(cluster, &[1, 2]));
    assert!(matches!(refused, Err(AdoptError::NotPromised(_))), "{refused:?}");
    ledger.decide(&raised, formation_of(cluster, &[1, 2])).unwrap();
}

#[test]
fn what_is_proposed_again_after_a_restart_is_the_same_cluster() {
    let disk = SimDisk::new();
    let open = || Ledger::open(Arc::new(disk.clone()), NodeId(1)).unwrap();
    let first = open().propose(&member(1), vec![1, 2], 1).unwrap();
    assert_eq!(open().propose(&member(1), vec![1, 2], 1).unwrap(), first);
    let raised = open().propose(&member(1), vec![1, 2], 5).unwrap();
    assert_eq!((raised.cluster(), raised.number), (first.cluster(), 5));
}

#[test]
fn a_failed_write_promises_nothing_more() {
    let disk = SimDisk::new();
    let mut ledger = Ledger::open(Arc::new(disk.clone()), NodeId(3)).unwrap();
    disk.cut_power_after(4);
    let failed = ledger.make_promise(&proposal(7, 1, 1, &[1, 3]));
    assert!(matches!(failed, Err(PromiseError::Ledger(LedgerError::Disk { .. }))), "{failed:?}");
    disk.power_cycle(|_, _| 0);
    let unsure = ledger.make_promise(&proposal(7, 1, 1, &[1, 3]));
    assert!(matches!(unsure, Err(PromiseError::Ledger(LedgerError::Unsure))), "{unsure:?}");
}

#[test]
fn a_damaged_file_is_noticed() {
    for file in ["promise", "formation"] {
        let disk = SimDisk::new();
        let open = || Ledger::open(Arc::new(disk.clone()), NodeId(3));
        let mut ledger = open().unwrap();
        ledger.make_promise(&proposal(7, 1, 1, &[1, 3])).unwrap();
        if file == "formation" {
            ledger.adopt(formation_of(7, &[1, 3])).unwrap();
        }
        disk.damage(file, |bytes| *bytes.last_mut().unwrap() ^= 1);
        assert!(matches!(open(), Err(LedgerError::Foreign { .. })), "{file}");
    }
}

/// A place in the list of seeds, and who is there now.
struct Place {
    node: u64,
    disk: SimDisk,
    ledger: Ledger,
    /// What its process asks for promises of, and who gave them.
    asking: Option<(Proposal, BTreeSet<u64>)>,
    number: u32,
}

impl Place {
    fn new(node: u64) -> Self {
        let disk = SimDisk::new();
        let ledger = Ledger::open(Arc::new(disk.clone()), NodeId(node)).unwrap();
        Self { node, disk, ledger, asking: None, number: 1 }
    }

    /// The process dies, or the power goes, and it starts again.
    fn restart(&mut self, is_power_cut: bool) {
        self.disk = match is_power_cut {
            true => self.disk.after_power_cut(Unsynced::Lost, Unsynced::Lost),
            false => self.disk.after_kill(),
        };
        self.ledger = Ledger::open(Arc::new(self.disk.clone()), NodeId(self.node)).unwrap();
        self.asking = None;
    }
}

/// As many messages may be under way.
const NETWORK_MAX: usize = 12;

/// What is under way.
enum Message {
    Proposal { to: usize, proposal: Proposal },
    Promise { to: u64, from: u64, proposal: Proposal },
}

struct World {
    places: Vec<Place>,
    network: Vec<Message>,
    /// Formations that were fetched and are not taken up yet.
    fetched: Vec<(u64, Formation)>,
    /// Nodes that were replaced and may come back, and where they were.
    away: Vec<(usize, Place)>,
    newest: u64,
    /// By cluster, who was ever part of it.
    adopted: BTreeMap<ClusterId, (Formation, BTreeSet<u64>)>,
    state: u64,
}

impl World {
    fn new(seed: u64, nodes: u64) -> Self {
        let places = (1..=nodes).map(Place::new).collect();
        Self {
            places,
            network: Vec::new(),
            fetched: Vec::new(),
            away: Vec::new(),
            newest: 0,
            adopted: BTreeMap::new(),
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// xorshift64*.
    fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn step(&mut self) {
        let at = self.below(self.places.len());
        match self.below(64) {
            // Mostly one of them, or nothing would ever be decided.
            0..=5 => self.propose(0),
            6..=7 => self.propose(at),
            8..=39 => self.deliver(),
            40..=47 => (0..self.places.len()).for_each(|at| self.decide(at)),
            48..=53 => self.fetch(at),
            54..=57 => self.adopt(),
            58 => {
                let is_power_cut = self.below(2) == 0;
                self.places[at].restart(is_power_cut);
            }
            59..=60 => self.replace(at),
            _ => self.bring_back(),
        }
        // What is late may be very late, but something must arrive.
        while self.network.len() > NETWORK_MAX {
            let dropped = self.below(self.network.len());
            self.network.swap_remove(dropped);
        }
    }

    /// Another node with an empty disk is where this one was, seldom and mostly where the one is that proposes. The one that
    /// was there knows nothing of that, and may come back.
    fn replace(&mut self, at: usize) {
        let at = if self.below(2) == 0 { 0 } else { at };
        if self.away.len() < 2 {
            self.newest += 100;
            let other = Place::new(self.newest + at as u64);
            self.away.push((at, std::mem::replace(&mut self.places[at], other)));
        }
    }

    fn bring_back(&mut self) {
        if let Some((at, place)) = self.away.pop() {
            let other = std::mem::replace(&mut self.places[at], place);
            self.away.insert(0, (at, other));
        }
    }

    fn propose(&mut self, at: usize) {
        let members: Vec<u64> = self.places.iter().map(|place| place.node).collect();
        let place = &mut self.places[at];
        let Ok(proposal) = place.ledger.propose(&member(place.node), members, place.number) else { return };
        // Promises of earlier rounds count, which is more than a node grants itself.
        if place.asking.as_ref().is_none_or(|(asked, _)| *asked != proposal) {
            place.asking = Some((proposal.clone(), BTreeSet::from([place.node])));
        }
        let others = (0..self.places.len()).filter(|&to| to != at);
        self.network.extend(others.map(|to| Message::Proposal { to, proposal: proposal.clone() }));
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let next = self.below(self.network.len());
        match self.network.swap_remove(next) {
            Message::Proposal { to, proposal } => {
                let (from, decider) = (self.places[to].node, proposal.decider);
                match self.places[to].ledger.make_promise(&proposal) {
                    Ok(()) => self.network.push(Message::Promise { to: decider, from, proposal }),
                    Err(PromiseError::Promised { number, .. }) => {
                        let asker = self.places.iter_mut().find(|place| place.node == decider);
                        asker.into_iter().for_each(|asker| asker.number = asker.number.max(number + 1));
                    }
                    Err(_) => {}
                }
            }
            Message::Promise { to, from, proposal } => {
                let asker = self.places.iter_mut().find(|place| place.node == to);
                let asking = asker.and_then(|asker| asker.asking.as_mut());
                if let Some((_, promised)) = asking.filter(|(asked, _)| *asked == proposal) {
                    promised.insert(from);
                }
            }
        }
    }

    fn decide(&mut self, at: usize) {
        let place = &mut self.places[at];
        let Some((proposal, promised)) = place.asking.clone() else { return };
        let members: BTreeSet<u64> = proposal.members.iter().copied().collect();
        if members == promised {
            let formation = formation_of(proposal.cluster().unwrap().0, &proposal.members);
            let node = place.node;
            if place.ledger.decide(&proposal, formation.clone()).is_ok() {
                self.note(node, formation);
            }
        }
    }

    fn fetch(&mut self, at: usize) {
        let from = self.below(self.places.len());
        if let Some(formation) = self.places[from].ledger.formation().cloned() {
            self.fetched.push((self.places[at].node, formation));
        }
    }

    /// What was fetched may be taken up much later.
    fn adopt(&mut self) {
        if self.fetched.is_empty() {
            return;
        }
        let next = self.below(self.fetched.len());
        let (to, formation) = self.fetched.swap_remove(next);
        let place = self.places.iter_mut().find(|place| place.node == to);
        if let Some(place) = place.filter(|place| place.ledger.formation().is_none())
            && place.ledger.adopt(formation.clone()).is_ok()
        {
            self.note(to, formation);
        }
    }

    fn note(&mut self, node: u64, formation: Formation) {
        let cluster = formation.cluster_id;
        let (known, nodes) = self.adopted.entry(cluster).or_insert_with(|| (formation.clone(), BTreeSet::new()));
        assert_eq!(*known, formation, "one cluster, one list of members");
        nodes.insert(node);
    }

    /// Clusters of which a majority was ever part.
    fn acting(&self) -> Vec<&Formation> {
        let could_act =
            |(formation, adopted): &&(Formation, BTreeSet<u64>)| adopted.len() > formation.members.len() / 2;
        self.adopted.values().filter(could_act).map(|(formation, _)| formation).collect()
    }

    /// Two clusters may act only if all nodes of the one were replaced before the other was proposed.
    fn is_one_cluster(&self) -> bool {
        let acting = self.acting();
        let nodes = acting.iter().flat_map(|formation| &formation.members).map(|member| member.node);
        nodes.collect::<BTreeSet<_>>().len() == acting.iter().map(|formation| formation.members.len()).sum::<usize>()
    }
}

/// Whoever proposes, however late messages are, and whoever loses its process, its power or its place.
#[test]
fn there_are_never_two_clusters() {
    let (mut formed, mut decided_twice) = (0, 0);
    for seed in 0..4000 {
        let mut world = World::new(seed, 2 + seed % 3);
        for _ in 0..300 {
            world.step();
            assert!(world.is_one_cluster(), "seed {seed}: {:?}", world.adopted);
        }
        formed += world.acting().len();
        decided_twice += usize::from(world.adopted.len() > 1);
    }
    println!("{formed} formed, {decided_twice} decided twice");
    assert!(formed > 300 && decided_twice > 100, "much was tried: {formed} formed, {decided_twice} decided twice");
}
