//! Nodes with real transports, in one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::super::*;
use crate::disk::SimDisk;
use crate::transport::{ClusterId, Event, LocalIdentity, Responder, Sink, SnapshotChunks, TransportConfig};
use crate::{FeatureLevels, GroupId};

/// What should happen has happened by then.
const DEADLINE: Duration = Duration::from_secs(20);

/// What should not happen would have happened by then: many rounds.
const A_WHILE: Duration = Duration::from_millis(400);

const ROUND: Duration = Duration::from_millis(10);

const GROUPS: u16 = 4;

fn terms() -> Terms {
    Terms { groups: GROUPS, voters: 3, settings: Bytes::from_static(b"settings") }
}

/// Operations of a disk with which an empty ledger is opened, ..
const OPENING: u64 = 2;

/// .. and with which a file is written, in the end the decider's formation.
const WRITING: u64 = 6;

struct Deaf;

impl Sink for Deaf {
    fn on_event(&self, _: Event) {}
}

/// Delegates to the node's `Forming`, which is made after the transport because it wants the port.
#[derive(Clone, Default)]
struct Delegate {
    forming: Arc<OnceLock<Arc<Forming>>>,
    /// What those that ask to join are answered, one after the other, the first one last.
    joined: Arc<Mutex<Vec<Joined>>>,
}

impl Responder for Delegate {
    fn on_question(&self, asked: Asked) {
        if asked.question == Question::Join {
            let answer = lock(&self.joined).pop().map(|joined| joined.encode_to_vec().into());
            return asked.answer.send(answer.ok_or_else(|| "nobody is admitted here".to_owned()));
        }
        match self.forming.get() {
            Some(forming) => forming.answer(asked),
            None => asked.answer.send(Err("starting".to_owned())),
        }
    }

    fn open_snapshot(&self, _: &PeerHello, _: GroupId, _: u64) -> Result<SnapshotChunks, String> {
        Err("there are none".to_owned())
    }
}

/// A place where a node's transport runs, before the node knows its seeds.
struct Place {
    member: MemberRecord,
    disk: SimDisk,
    transport: Transport,
    delegate: Delegate,
}

/// A node that searches for its cluster.
struct Node {
    member: MemberRecord,
    disk: SimDisk,
    transport: Transport,
    forming: Arc<Forming>,
    stop: Arc<AtomicBool>,
    search: Option<JoinHandle<Result<Formation, FormationError>>>,
}

/// An address of this process alone, so that a port which a node gives up for a moment goes to nobody else.
fn host() -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 77, high, low)
}

fn place(node: u64, name: &str) -> Place {
    place_at(SocketAddr::from((host(), 0)), node, name, SimDisk::new())
}

fn place_at(address: SocketAddr, node: u64, name: &str, disk: SimDisk) -> Place {
    let feature_levels = FeatureLevels { min: 1, max: 1 };
    let identity =
        LocalIdentity { cluster: None, node: NodeId(node), name: name.into(), incarnation: None, feature_levels };
    let delegate = Delegate::default();
    let config = TransportConfig::new(address, identity);
    let transport = Transport::start(config, Arc::new(Deaf), Arc::new(delegate.clone())).unwrap();
    let member = MemberRecord {
        node,
        name: name.into(),
        peer_address: transport.local_address().to_string(),
        client_address: format!("{name}:1883"),
        is_advertised: false,
        feature_level: 1,
        zone: String::new(),
        feature_level_min: 1,
    };
    Place { member, disk, transport, delegate }
}

impl Place {
    fn address(&self) -> String {
        self.member.peer_address.clone()
    }

    fn search(self, seeds: &[String]) -> Node {
        let Self { member, disk, transport, delegate } = self;
        let ledger = Ledger::open(Arc::new(disk.clone()), NodeId(member.node)).unwrap();
        let forming = Forming::with(ledger, member.clone(), seeds.to_vec(), terms(), ROUND);
        let forming = Arc::new(forming.unwrap());
        assert!(delegate.forming.set(Arc::clone(&forming)).is_ok());
        let stop = Arc::new(AtomicBool::new(false));
        let search = thread::spawn({
            let (forming, transport, stop) = (Arc::clone(&forming), transport.clone(), Arc::clone(&stop));
            move || forming.run(&transport, &stop)
        });
        Node { member, disk, transport, forming, stop, search: Some(search) }
    }
}

impl Node {
    /// What its search came to.
    fn outcome(&mut self) -> Result<Formation, FormationError> {
        let search = self.search.take().expect("once");
        eventually(&format!("{} ends its search", self.member.name), || search.is_finished());
        search.join().unwrap()
    }

    fn formed(&mut self) -> Formation {
        self.outcome().unwrap_or_else(|error| panic!("{}: {error}", self.member.name))
    }

    fn promise(&self) -> Option<Proposal> {
        lock(&self.forming.inner.ledger).promise().cloned()
    }

    /// Ends the process. What its disk has is left.
    fn crash(mut self) -> (MemberRecord, SimDisk) {
        self.end();
        (self.member.clone(), self.disk.clone())
    }

    /// The same, and the power goes.
    fn power_cut(self) -> (MemberRecord, SimDisk) {
        let (member, disk) = self.crash();
        disk.power_cycle(|_, _| 0);
        (member, disk)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.transport.stop(Duration::ZERO);
        if let Some(search) = self.search.take() {
            let _ = search.join();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts a node again where it was.
fn restart((member, disk): (MemberRecord, SimDisk), seeds: &[String]) -> Node {
    place_at(member.peer_address.parse().unwrap(), member.node, &member.name, disk).search(seeds)
}

/// Another node, with an empty disk, where that one was.
fn replace((member, _): (MemberRecord, SimDisk), seeds: &[String]) -> Node {
    let address = member.peer_address.parse().unwrap();
    place_at(address, member.node + 100, &member.name, SimDisk::new()).search(seeds)
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn places(count: u64) -> (Vec<Place>, Vec<String>) {
    let places: Vec<Place> = (1..=count).map(|node| place(node, &format!("n{node}"))).collect();
    let seeds = places.iter().map(Place::address).collect();
    (places, seeds)
}

fn nodes(count: u64) -> (Vec<Node>, Vec<String>) {
    let (places, seeds) = places(count);
    (places.into_iter().map(|place| place.search(&seeds)).collect(), seeds)
}

/// All nodes know one formation, which lists exactly them.
fn assert_one_cluster(nodes: &mut [Node]) -> Formation {
    let formations: Vec<Formation> = nodes.iter_mut().map(Node::formed).collect();
    let mut members: Vec<MemberRecord> = nodes.iter().map(|node| node.member.clone()).collect();
    members.sort_by_key(|member| member.node);
    let expected = Formation { cluster_id: formations[0].cluster_id, terms: terms(), members, is_joined: false };
    for (node, formation) in nodes.iter().zip(&formations) {
        assert_eq!(*formation, expected, "{}", node.member.name);
        assert_eq!(node.forming.formation().as_ref(), Some(formation));
    }
    expected
}

fn identity_of(node: &Node) -> Option<ClusterId> {
    let asker = place(999, "asker");
    let answer = asker.transport.who(node.member.peer_address.clone()).recv_timeout(DEADLINE);
    asker.transport.stop(Duration::ZERO);
    answer.unwrap().unwrap().cluster
}

#[test]
fn three_nodes_become_one_cluster_and_stay_it() {
    let (mut nodes, seeds) = nodes(3);
    let formation = assert_one_cluster(&mut nodes);
    assert_eq!(nodes.iter().map(identity_of).collect::<Vec<_>>(), [Some(formation.cluster_id); 3]);
    let left: Vec<_> = nodes.into_iter().map(Node::power_cut).collect();
    let mut again: Vec<Node> = left.into_iter().map(|left| restart(left, &seeds)).collect();
    assert_eq!(assert_one_cluster(&mut again), formation);
}

#[test]
fn a_node_without_seeds_forms_alone_and_at_once() {
    let mut alone = place(1, "n1").search(&[]);
    let formation = alone.formed();
    assert_eq!((formation.nodes(), formation.terms.groups), (vec![NodeId(1)], GROUPS));
    assert_eq!(identity_of(&alone), Some(formation.cluster_id));
    let mut again = restart(alone.power_cut(), &[]);
    assert_eq!(again.formed(), formation);
}

#[test]
fn what_was_formed_is_found_in_the_data_directory() {
    let directory = tempfile::tempdir().unwrap();
    let Place { member, transport, .. } = place(1, "n1");
    let open = || Forming::open(directory.path(), member.clone(), Vec::new(), terms()).unwrap();
    let formation = open().run(&transport, &AtomicBool::new(false)).unwrap();
    assert_eq!(open().formation(), Some(formation));
    transport.stop(Duration::ZERO);
}

#[test]
fn a_member_keeps_its_name_unless_it_is_alone() {
    for (count, may_rename) in [(1, true), (2, false)] {
        let (mut nodes, seeds) = nodes(count);
        assert_one_cluster(&mut nodes);
        let renamed = MemberRecord { name: "other".into(), ..nodes[0].member.clone() };
        let ledger = Ledger::open(Arc::new(nodes[0].disk.clone()), NodeId(1)).unwrap();
        match Forming::with(ledger, renamed, seeds, terms(), ROUND) {
            Ok(_) => assert!(may_rename),
            Err(error) => assert!(!may_rename && error.to_string().contains("--node n1"), "{error}"),
        }
    }
}

#[test]
fn a_node_that_is_told_to_stop_ends_its_search() {
    let (places, seeds) = places(2);
    let mut node = places.into_iter().next().unwrap().search(&seeds);
    node.stop.store(true, Ordering::Relaxed);
    assert!(matches!(node.outcome(), Err(FormationError::Stopped)));
}

#[test]
fn a_node_that_is_its_only_seed_forms_alone() {
    let place = place(1, "n1");
    let seeds = [place.address()];
    assert_eq!(place.search(&seeds).formed().nodes(), [NodeId(1)]);
}

#[test]
fn nothing_is_formed_before_the_last_seed_is_there() {
    let (mut places, seeds) = places(3);
    let late = places.pop().unwrap();
    let (member, disk) = (late.member.clone(), late.disk.clone());
    late.transport.stop(Duration::ZERO);
    let mut nodes: Vec<Node> = places.into_iter().map(|place| place.search(&seeds)).collect();
    thread::sleep(A_WHILE);
    assert!(nodes.iter().all(|node| node.forming.formation().is_none()));
    nodes.push(restart((member, disk), &seeds));
    assert_one_cluster(&mut nodes);
}

/// The power of one node goes after each number of disk operations in turn: on its way to the promise, to the decision, to
/// what it fetched. When it is back, there is one cluster, the one that was promised.
#[test]
fn a_node_may_die_at_any_step() {
    let mut operations_tried = 0;
    for victim in 0..3 {
        for operations in 0.. {
            let (places, seeds) = places(3);
            let all_operations = places[victim].disk.clone();
            let mut nodes: Vec<Node> = Vec::new();
            all_operations.cut_power_after(OPENING + operations);
            nodes.extend(places.into_iter().map(|place| place.search(&seeds)));
            let promised = |node: &Node| node.promise().and_then(|promise| promise.cluster());
            let is_over = |node: &Node| node.search.as_ref().is_none_or(JoinHandle::is_finished);
            // It dies, or what was to be tried is over.
            let unsure = || lock(&nodes[victim].forming.inner.ledger).is_unsure();
            eventually("the victim fails, or all is done", || unsure() || nodes.iter().all(is_over));
            let survived = !unsure();
            let before = promised(&nodes[(victim + 1) % 3]);
            let left = nodes.remove(victim).power_cut();
            nodes.insert(victim, restart(left, &seeds));
            let formation = assert_one_cluster(&mut nodes);
            assert!(before.is_none_or(|before| before == formation.cluster_id), "what was promised is what is formed");
            operations_tried += 1;
            if survived {
                assert!(all_operations.operations() > 12, "a promise and a formation were written");
                break;
            }
        }
    }
    assert!(operations_tried > 30, "{operations_tried}");
}

#[test]
fn a_first_seed_that_lost_its_disk_before_it_decided_begins_again() {
    let (places, seeds) = places(3);
    places[0].disk.cut_power_after(OPENING + WRITING + 5);
    let mut nodes: Vec<Node> = places.into_iter().map(|place| place.search(&seeds)).collect();
    eventually("both promised", || nodes[1..].iter().all(|node| node.promise().is_some()));
    assert!(matches!(nodes[0].outcome(), Err(FormationError::Ledger(_))));
    let abandoned = nodes[1].promise().unwrap().cluster();
    let left = nodes.remove(0).crash();
    nodes.insert(0, replace(left, &seeds));
    let formation = assert_one_cluster(&mut nodes);
    assert_ne!(Some(formation.cluster_id), abandoned);
}

#[test]
fn a_seed_that_lost_its_disk_after_the_formation_waits_and_forms_nothing() {
    for lost in 0..3 {
        let (mut nodes, seeds) = nodes(3);
        let formation = assert_one_cluster(&mut nodes);
        let left = nodes.remove(lost).crash();
        let other = replace(left, &seeds);
        thread::sleep(A_WHILE);
        assert!(other.forming.formation().is_none() && other.promise().is_none());
        assert!(other.search.as_ref().is_some_and(|search| !search.is_finished()));
        assert!(nodes.iter().all(|node| node.forming.formation().as_ref() == Some(&formation)));
    }
}

#[test]
fn a_node_that_is_no_seed_forms_nothing_and_waits() {
    let stranger = place(4, "n4");
    let (mut nodes, seeds) = nodes(2);
    let stranger = stranger.search(&seeds);
    assert_one_cluster(&mut nodes);
    thread::sleep(A_WHILE);
    assert!(stranger.forming.formation().is_none());
    assert!(stranger.search.as_ref().is_some_and(|search| !search.is_finished()));
}

/// It asks until it is told that it is a member, where it is sent to, and belongs to the cluster from then on.
#[test]
fn a_node_that_finds_a_cluster_joins_it() {
    let places = [place(1, "n1"), place(2, "n2"), place(3, "n3")];
    let [one, two, three] = &places;
    let admitting = [one.delegate.joined.clone(), two.delegate.joined.clone()];
    let joiner = three.member.clone();
    let (seeds, elsewhere) = ([one.address()], two.address());
    let [one, two, three] = places;
    let mut alone = one.search(&[]);
    let formation = alone.formed();
    let members = vec![formation.members[0].clone(), joiner];
    let record = |cluster_id| Formation { cluster_id, members: members.clone(), ..formation.clone() }.encode();
    let is_member = |formation| Joined { formation, ..Joined::default() };
    *lock(&admitting[0]) = (0..3).map(|_| Joined { elsewhere: elsewhere.clone(), ..Joined::default() }).collect();
    *lock(&admitting[1]) = vec![
        is_member(record(formation.cluster_id)),
        is_member(record(ClusterId(99))),
        Joined { refusal: "the name is taken".to_owned(), ..Joined::default() },
        Joined::default(),
    ];
    lock(&admitting[0]).push(Joined { elsewhere, ..Joined::default() });
    // Node 2 only answers.
    let mut joined = three.search(&seeds);
    let expected = Formation { members: members.clone(), is_joined: true, ..formation.clone() };
    assert_eq!(joined.formed(), expected);
    assert_eq!(identity_of(&joined), Some(formation.cluster_id));
    assert!(lock(&admitting[0]).is_empty() && lock(&admitting[1]).is_empty(), "it asked as often as it was told to");
    let mut again = restart(joined.power_cut(), &seeds);
    assert_eq!(again.formed(), expected, "and asks nobody again");
    two.transport.stop(Duration::ZERO);
}

#[test]
fn two_nodes_of_one_name_are_told_so() {
    let places = [place(1, "n1"), place(2, "twin"), place(3, "twin")];
    let seeds: Vec<String> = places.iter().map(Place::address).collect();
    let mut nodes = places.map(|place| place.search(&seeds));
    for (twin, other) in [(1, 2), (2, 1)] {
        let error = nodes[twin].outcome().expect_err("a name of its own");
        let text = error.to_string();
        let expected = [NodeId(other as u64 + 1).to_string(), seeds[other].clone(), "\"twin\"".into(), "--node".into()];
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    }
    assert!(nodes[0].forming.formation().is_none() && nodes[0].promise().is_none());
}

#[test]
fn nodes_with_unlike_lists_form_nothing_until_the_lists_are_alike() {
    let (places, seeds) = places(2);
    let other_way: Vec<String> = seeds.iter().rev().cloned().collect();
    let mut places = places.into_iter();
    let mut one = places.next().unwrap().search(&seeds);
    let two = places.next().unwrap().search(&other_way);
    eventually("both propose", || one.promise().is_some() && two.promise().is_some());
    thread::sleep(A_WHILE);
    assert!(one.forming.formation().is_none() && two.forming.formation().is_none());
    let mut two = restart(two.crash(), &seeds);
    assert_eq!(one.formed(), two.formed());
    assert_eq!(one.promise().unwrap().decider, 1);
}

/// As of the port where a node's clients connect. Nothing is wrong with a node that does not run yet.
#[test]
fn a_seed_where_no_node_listens_for_others_is_said_to_be_wrong() {
    let asker = place(1, "n1");
    let other = std::net::TcpListener::bind((host(), 0)).unwrap();
    let mut seed = Seed::new(&other.local_addr().unwrap().to_string());
    let asking = asker.transport.who(seed.address.clone());
    drop(other.accept().unwrap());
    seed.on_answer(asking.recv_timeout(DEADLINE).unwrap());
    let said = seed.answer.take().unwrap().unwrap_err();
    assert!(seed.is_wrong && said.contains("--seeds HOST:PORT") && said.contains("--cluster"), "{said}");
    drop(other);
    seed.on_answer(asker.transport.who(seed.address.clone()).recv_timeout(DEADLINE).unwrap());
    let said = seed.answer.take().unwrap().unwrap_err();
    assert!(!seed.is_wrong && !said.contains("--seeds"), "{said}");
    asker.transport.stop(Duration::ZERO);
}

#[test]
fn a_node_that_promised_forms_no_cluster_of_its_own_while_others_might_have_formed_theirs() {
    let (places, seeds) = places(3);
    places[0].disk.cut_power_after(OPENING + WRITING + 5);
    let nodes: Vec<Node> = places.into_iter().map(|place| place.search(&seeds)).collect();
    eventually("it promised", || nodes[1].promise().is_some());
    let left = nodes.into_iter().nth(1).unwrap().crash();
    let error = restart(left, &[]).outcome().expect_err("promised elsewhere");
    assert!(matches!(error, FormationError::Alone(PromiseError::Missing { missing: 3 })), "{error}");
}

#[test]
fn only_the_first_seed_may_ask_and_only_for_its_own_proposal() {
    let (first, stranger, asked) = (place(1, "n1"), place(9, "n9"), place(2, "n2"));
    let seeds = [first.address(), asked.address()];
    let node = asked.search(&seeds);
    eventually("it knows its first seed", || node.forming.inner.first.load(Ordering::Relaxed) == 1);
    let ask = |asker: &Place, body: Vec<u8>| {
        let target = Target::Address(node.member.peer_address.clone());
        let answer = asker.transport.ask(target, Question::Promise, body.into()).recv_timeout(DEADLINE).unwrap();
        Promised::decode(answer.unwrap().1).unwrap()
    };
    let proposal =
        |decider: &Place| Proposal::new(ClusterId(5), 1, &decider.member, vec![decider.member.node, 2]).encode_to_vec();
    for (asker, body, expected) in [
        (&first, proposal(&stranger), "another node is to decide"),
        (&stranger, proposal(&first), "another node is to decide"),
        (&stranger, proposal(&stranger), "the first of its seeds is"),
        (&first, vec![0xff], "malformed"),
    ] {
        let answer = ask(asker, body);
        assert!(answer.member.is_none() && answer.refusal.contains(expected), "{answer:?}");
    }
    assert_eq!(node.promise(), None);
    assert_eq!(ask(&first, proposal(&first)).member, Some(node.member.clone()));
    assert!(node.promise().is_some());
    [first, stranger].iter().for_each(|place| place.transport.stop(Duration::ZERO));
}
