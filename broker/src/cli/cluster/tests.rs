//! Nodes with canned answers, asked over loopback.

use std::collections::VecDeque;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use clap::Parser as _;
use kentongan_cluster::formation::Joined;
use kentongan_cluster::transport::{
    Asked, Event, LocalIdentity, PeerHello, Question, Responder, Sink, SnapshotChunks, TlsFiles, Transport,
    TransportConfig,
};
use kentongan_cluster::{FeatureLevels, GroupId, NodeId};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::super::{Cli, Command};
use super::act::Silence;
use super::*;
use crate::peers::administration::{Act, Administered, Administration};
use crate::peers::status::{ChosenStatus, GroupStatus, LinkStatus, MemberStatus, NodeStatus, RouteStatus, Standing};

/// What `kentongan cluster status` prints.
fn status(settings: &Settings, peer: &str, json: bool) -> anyhow::Result<String> {
    let asked = Cli::try_parse_from(["kentongan", "cluster", "status"].into_iter().chain(json.then_some("--json")));
    let Some(Command::Cluster(command)) = asked.unwrap().command else { panic!("this command") };
    carry_out(&command, settings, peer)
}

/// Answers with what it is given, once it is; with what it is to say at first before that, if it is given any of it. And whether a removal
/// is done, if it is to know. And does every act, and remembers it.
#[derive(Clone, Default)]
struct Canned(
    Arc<OnceLock<NodeStatus>>,
    Arc<Mutex<VecDeque<NodeStatus>>>,
    Arc<OnceLock<Joined>>,
    Arc<Mutex<Vec<Option<Act>>>>,
);

impl Responder for Canned {
    fn on_question(&self, asked: Asked) {
        if asked.question == Question::Remove {
            let answer = self.2.get().map(|joined| joined.encode_to_vec().into());
            return asked.answer.send(answer.ok_or_else(|| "it has ended".to_owned()));
        }
        if asked.question == Question::Administer {
            self.3.lock().unwrap().push(Administration::decode_question(asked.body).unwrap());
            return asked.answer.send(Ok(Administered { done: true, ..Administered::default() }.encode_answer()));
        }
        assert_eq!(asked.question, Question::Status);
        let first = self.1.lock().unwrap().pop_front();
        let answer = first.as_ref().or(self.0.get()).map(NodeStatus::encode_answer);
        asked.answer.send(answer.ok_or_else(|| "not yet".to_owned()));
    }

    fn open_snapshot(&self, _: &PeerHello, _: GroupId, _: u64) -> Result<SnapshotChunks, String> {
        Err("there are none".to_owned())
    }
}

impl Sink for Canned {
    fn on_event(&self, _: Event) {}
}

struct Node {
    transport: Transport,
    canned: Canned,
    member: MemberStatus,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.transport.stop(Duration::ZERO);
    }
}

fn node(number: u64) -> Node {
    node_with(number, None)
}

fn node_with(number: u64, tls: Option<TlsFiles>) -> Node {
    let name = format!("n{number}");
    let feature_levels = FeatureLevels { min: 1, max: 1 };
    let identity =
        LocalIdentity { cluster: None, node: NodeId(number), name: name.clone(), incarnation: None, feature_levels };
    let canned = Canned::default();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = TransportConfig { tls, ..TransportConfig::new(listen, identity) };
    let transport = Transport::start(config, Arc::new(canned.clone()), Arc::new(canned.clone())).unwrap();
    let peer_address = transport.local_address().to_string();
    let client_address = format!("127.0.0.1:{}", 1882 + number);
    let member = MemberStatus {
        node: number,
        name,
        peer_address,
        client_address,
        incarnation: 40 + number,
        ..MemberStatus::default()
    };
    Node { transport, canned, member }
}

fn group(group: u32, leads: bool, leader: u64, committed: u64, applied: u64) -> GroupStatus {
    GroupStatus {
        group,
        leads,
        leader,
        term: 3,
        committed,
        applied,
        last: committed + 2,
        voters: vec![1, 2],
        learners: vec![3],
    }
}

fn route(group: u32, leader: u64, term: u64) -> RouteStatus {
    RouteStatus { group, leader, term, backlog: 5 }
}

fn link(peer: u64, last_error: &str) -> LinkStatus {
    LinkStatus { peer, up: last_error.is_empty(), last_error: last_error.to_owned(), backlog: 0 }
}

/// Nodes 1 and 2 of three; there was a node 3, and another one is where it was.
fn scene() -> (Vec<Node>, String) {
    let nodes = vec![node(1), node(2), node(4)];
    let mut members: Vec<MemberStatus> = nodes[..2].iter().map(|node| node.member.clone()).collect();
    let peer_address = nodes[2].member.peer_address.clone();
    for (member, known) in members.iter_mut().zip([2, 1]) {
        (member.feature_level_min, member.feature_level_max) = (1, known);
    }
    members.push(MemberStatus { node: 3, name: "n3".into(), peer_address, ..MemberStatus::default() });
    members[0].drains = true;
    let directory = u32::from(GroupId::DIRECTORY.0);
    let one = NodeStatus {
        node: 1,
        name: "n1".into(),
        version: "0.1.0".into(),
        cluster: "c1".into(),
        incarnation: 41,
        standing: Standing::Serving.into(),
        lease_ms_left: Some(1234),
        connections: 7,
        members: members.clone(),
        groups: vec![group(0, true, 1, 90, 90), group(1, false, 2, 50, 50), group(directory, true, 1, 9, 9)],
        links: vec![link(2, ""), link(3, "127.0.0.1:7003: refused\u{1b}[2J")],
        routes: vec![route(0, 1, 3), route(2, 0, 0)],
        chosen: vec![ChosenStatus { group: 1, node: 2 }],
        disk_full: false,
        cluster_wall_ms: Some(1_000_000_000_000),
        feature_level: 1,
        feature_level_min: 1,
        feature_level_max: 2,
    };
    let two = NodeStatus {
        node: 2,
        name: "n2".into(),
        incarnation: 42,
        standing: Standing::Lapsed.into(),
        lease_ms_left: None,
        connections: 0,
        groups: vec![group(0, false, 1, 88, 80), group(1, true, 2, 50, 50), group(directory, false, 0, 9, 9)],
        links: vec![link(1, ""), link(3, "")],
        ..one.clone()
    };
    for (node, status) in nodes.iter().zip([one.clone(), two, NodeStatus { node: 4, ..one }]) {
        node.canned.0.set(status).unwrap();
    }
    let peer = nodes[0].member.peer_address.clone();
    (nodes, peer)
}

#[test]
fn all_nodes_are_asked_and_shown_with_links_and_groups() {
    let (nodes, peer) = scene();
    let text = status(&Settings::default(), &peer, false).unwrap();
    let [one, two, three] = [0, 1, 2].map(|index| nodes[index].member.peer_address.as_str());
    let width = [one, two, three, "PEERS AT"].map(str::len).into_iter().max().unwrap();
    let expected = format!(
        "cluster c1
feature level 1; 2 once all know it, which these did not when they registered last: n2, n3

NODE  ID                STANDING   LEASE    CONNECTIONS  LEADS  FOLLOWS  LINKS  {:width$}  CLIENTS AT      INCARNATION
n1    0000000000000001  draining   1.234 s  7            2      1        1/2    {one:width$}  127.0.0.1:1883  41
n2    0000000000000002  lapsed     none     0            1      2        2/2    {two:width$}  127.0.0.1:1884  42
n3    0000000000000003  NO ANSWER                                               {three:width$}                  none

No answer from
  n3: node 0000000000000004 (\"n4\") answers at {three} now

Links that are not up
  n1 with n3: 127.0.0.1:7003: refused\u{fffd}[2J

GROUP      LEADER      TERM  COMMITTED  NOT COMMITTED  KEPT BY            BEHIND
0          n1          3     90         2              n1, n2             n2 (commits 2, applies 10)
1          n2          3     50         2              n1, n2             none
2          none known  0     0          unknown        none that answers  none
directory  n1          3     9          2              n1, n2             none
",
        "PEERS AT"
    );
    assert_eq!(text, expected);
}

fn remove(arguments: &[&str], peer: &str) -> anyhow::Result<String> {
    let arguments = ["kentongan", "cluster", "remove", "--now"].iter().chain(arguments);
    let Some(Command::Cluster(command)) = Cli::try_parse_from(arguments).unwrap().command else {
        panic!("this command")
    };
    carry_out(&command, &Settings::default(), peer)
}

/// Who is asked at the node that goes hears from another one that it has gone.
#[test]
fn a_removal_that_was_asked_at_the_very_node_ends_when_it_is_done() {
    let (nodes, peer) = scene();
    let joined = Joined { formation: vec![1].into(), ..Joined::default() };
    nodes[1].canned.2.set(joined).unwrap();
    assert_eq!(remove(&["n1", "--fewer-copies"], &peer).unwrap(), "n1 is no member any more\n");
}

/// P1: what is acknowledged outlives the next node that fails. Two nodes keep everything, and the third is down.
#[test]
fn a_node_that_lives_is_not_removed_by_mistake_for_one_that_is_down() {
    let (nodes, peer) = scene();
    let joined = Joined { formation: vec![1].into(), ..Joined::default() };
    nodes[1].canned.2.set(joined).unwrap();
    let refused = remove(&["n1"], &peer).unwrap_err().to_string();
    for part in ["n1 lives, and n3 is down", "only n2", "Remove n3 instead", "--fewer-copies"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    // What was decided is waited for, and who is down goes.
    let status = nodes[0].canned.0.get().unwrap().clone();
    let check = |change: &dyn Fn(&mut NodeStatus), called: &str| {
        let mut status = status.clone();
        change(&mut status);
        let member = status.members.iter().find(|member| member.name == called).unwrap();
        act::check_copies_stay(&status, member).is_ok()
    };
    assert!(check(&|_| {}, "n3"));
    assert!(!check(&|_| {}, "n2"));
    assert!(check(&|status| status.members[2].incarnation = 43, "n2"), "all are up");
    let one_more = |status: &mut NodeStatus| {
        let more = MemberStatus { node: 4, name: "n4".into(), incarnation: 44, ..MemberStatus::default() };
        status.members.push(more);
    };
    assert!(check(&one_more, "n2"), "two others are up");
    assert!(
        !check(
            &|status| {
                one_more(status);
                status.members[3].leaves = true;
            },
            "n2"
        ),
        "who leaves keeps nothing"
    );
}

#[test]
fn a_node_that_is_being_removed_is_not_said_to_come_back() {
    let node = node(1);
    let leaving = MemberStatus { leaves: true, drains: true, ..node.member.clone() };
    node.canned.0.set(NodeStatus { members: vec![leaving], ..NodeStatus::default() }).unwrap();
    let asked = Cli::try_parse_from(["kentongan", "cluster", "drain", "n1", "--undo"]).unwrap();
    let Some(Command::Cluster(command)) = asked.command else { panic!("this command") };
    let refused = carry_out(&command, &Settings::default(), &node.member.peer_address).unwrap_err();
    assert_eq!(refused.to_string(), "n1 is being removed, which cannot be undone");
}

#[test]
fn json_has_everything_that_was_said() {
    let (nodes, peer) = scene();
    let text = status(&Settings::default(), &peer, true).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let found = &value["nodes"];
    assert_eq!(found[0]["name"], "n1");
    assert_eq!(found[0]["peer_address"], nodes[0].member.peer_address);
    let status = &found[0]["status"];
    assert_eq!((&status["standing"], &status["lease_ms_left"]), (&"serving".into(), &1234.into()));
    assert_eq!((&status["cluster"], &status["version"]), (&"c1".into(), &"0.1.0".into()));
    assert_eq!((&status["incarnation"], &status["connections"]), (&41.into(), &7.into()));
    assert_eq!(status["members"][1]["node"], "0000000000000002");
    assert_eq!(status["members"][1]["incarnation"], 42);
    assert_eq!(status["members"][1]["feature_levels"], serde_json::json!([1, 1]));
    assert_eq!(status["feature_levels"], serde_json::json!([1, 2]));
    assert_eq!(status["feature_level"], 1);
    assert_eq!(status["links"][0], serde_json::json!({ "peer": id(2), "up": true, "last_error": null, "backlog": 0 }));
    assert_eq!(status["links"][1]["up"], false);
    let expected = serde_json::json!({
        "group": 0, "leads": false, "leader": id(1), "term": 3, "committed": 88, "applied": 80, "last": 90,
        "voters": [id(1), id(2)], "learners": [id(3)],
    });
    assert_eq!(found[1]["status"]["groups"][0], expected);
    assert_eq!(found[1]["status"]["groups"][2]["leader"], serde_json::Value::Null);
    assert_eq!(status["routes"][0], serde_json::json!({ "group": 0, "leader": id(1), "term": 3, "backlog": 5 }));
    assert_eq!(status["routes"][1]["leader"], serde_json::Value::Null);
    assert!(found[2]["error"].as_str().unwrap().contains("answers at") && found[2].get("status").is_none());
}

/// As of one that answers as long as nothing more than its reserve is to be written.
#[test]
fn a_node_whose_disk_is_full_is_named() {
    let node = node(1);
    let members = vec![node.member.clone()];
    node.canned.0.set(NodeStatus { node: 1, members, disk_full: true, ..NodeStatus::default() }).unwrap();
    let peer = &node.member.peer_address;
    let text = status(&Settings::default(), peer, false).unwrap();
    assert!(text.contains("\nthe disk of n1 is full (storage.free_bytes_reserve)"), "{text}");
    let value: serde_json::Value = serde_json::from_str(&status(&Settings::default(), peer, true).unwrap()).unwrap();
    assert_eq!(value["nodes"][0]["status"]["disk_full"], true);
}

fn id(node: u64) -> String {
    NodeId(node).to_string()
}

/// What a command that shows prints.
fn shown(command: &str, peer: &str, json: bool) -> String {
    let asked = Cli::try_parse_from(["kentongan", "cluster", command].into_iter().chain(json.then_some("--json")));
    let Some(Command::Cluster(command)) = asked.unwrap().command else { panic!("this command") };
    carry_out(&command, &Settings::default(), peer).unwrap()
}

#[test]
fn members_are_shown_with_what_they_do_and_lead() {
    let (_nodes, peer) = scene();
    let expected = "\
NODE  STATE     ZONE  LEASE    CONNECTIONS  LEADS  VOTES  FOLLOWS  BACKLOG  CLIENTS AT      VERSION  ID
n1    draining  none  1.234 s  7            2      3      0        10       127.0.0.1:1883  0.1.0    0000000000000001
n2    lapsed    none  none     0            1      3      0        10       127.0.0.1:1884  0.1.0    0000000000000002
n3    dead      none                                                                                 0000000000000003
";
    assert_eq!(shown("members", &peer, false), expected);
    let value: serde_json::Value = serde_json::from_str(&shown("members", &peer, true)).unwrap();
    let member = &value["members"][0];
    assert_eq!(
        (&member["state"], &member["connections"], &member["leads"]),
        (&"draining".into(), &7.into(), &2.into())
    );
    assert_eq!((&member["drains"], &member["zone"], &member["backlog"]), (&true.into(), &().into(), &10.into()));
    assert!(value["members"][2]["error"].is_string() && value["members"][2]["connections"].is_null());
}

#[test]
fn groups_are_shown_with_their_leader_and_who_is_behind() {
    let (_nodes, peer) = scene();
    let expected = "\
GROUP      LEADER      CHOSEN  TERM  VOTERS  LEARNERS  COMMITTED  NOT COMMITTED  BEHIND                       BACKLOG
0          n1          no      3     n1, n2  n3        90         2              n2 (commits 2, applies 10)   10
1          n2          n2      3     n1, n2  n3        50         2              none                         0
2          none known  no      0     none    none      0          unknown        none                         10
directory  n1          no      3     n1, n2  n3        9          2              none
";
    let squeezed = |text: &str| {
        text.lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("|"))
            .collect::<Vec<_>>()
    };
    assert_eq!(squeezed(&shown("groups", &peer, false)), squeezed(expected));
    let value: serde_json::Value = serde_json::from_str(&shown("groups", &peer, true)).unwrap();
    let group = &value["groups"][0];
    assert_eq!((&group["leader_name"], &group["leader"]), (&"n1".into(), &id(1).into()));
    assert_eq!(group["behind"], serde_json::json!([{ "node": id(2), "name": "n2", "commits": 2, "applies": 10 }]));
    assert_eq!((&value["groups"][1]["chosen"], &value["groups"][3]["directory"]), (&id(2).into(), &true.into()));
}

/// Under steady traffic a follower has never committed the last entries. Whoever waits until nobody is behind would wait for ever.
#[test]
fn who_has_by_the_second_look_what_was_committed_at_the_first_is_not_behind() {
    let nodes = [node(1), node(2), node(3)];
    let members: Vec<MemberStatus> = nodes.iter().map(|node| node.member.clone()).collect();
    let answer = |number: u64, committed: u64, applied: u64| NodeStatus {
        node: number,
        members: members.clone(),
        groups: vec![group(0, number == 1, 1, committed, applied)],
        ..NodeStatus::default()
    };
    let peer = nodes[0].member.peer_address.clone();
    // The third node makes progress and does not keep up.
    for (node, (committed, applied)) in nodes.iter().zip([(95, 95), (94, 90), (89, 89)]) {
        node.canned.0.set(answer(node.member.node, committed, applied)).unwrap();
    }
    let at_first = || {
        for (node, (committed, applied)) in nodes.iter().zip([(90, 90), (89, 89), (70, 70)]) {
            node.canned.1.lock().unwrap().push_back(answer(node.member.node, committed, applied));
        }
    };
    at_first();
    let text = status(&Settings::default(), &peer, false).unwrap();
    assert!(text.contains("  95         2              n1, n2, n3  n3 (commits 6, applies 6)\n"), "{text}");
    at_first();
    let value: serde_json::Value = serde_json::from_str(&shown("groups", &peer, true)).unwrap();
    let group = &value["groups"][0];
    assert_eq!(group["committed"], 95);
    assert_eq!(group["behind"], serde_json::json!([{ "node": id(3), "name": "n3", "commits": 6, "applies": 6 }]));
}

#[test]
fn a_group_is_a_number_or_the_directory() {
    assert_eq!(act::parse_group("3"), Ok(3));
    assert_eq!(act::parse_group("directory"), Ok(GroupId::DIRECTORY.0));
    for wrong in ["65535", "-1", "", "all"] {
        assert!(act::parse_group(wrong).is_err(), "{wrong}");
    }
    for line in ["transfer 3", "transfer 3 n1 --undo", "drain", "transfer all n1"] {
        let line = ["kentongan", "cluster"].into_iter().chain(line.split(' '));
        assert!(Cli::try_parse_from(line).is_err());
    }
}

#[test]
fn a_node_that_is_gone_is_named_with_the_reason() {
    let (mut nodes, peer) = scene();
    drop(nodes.remove(1));
    let text = status(&Settings::default(), &peer, false).unwrap();
    assert!(text.contains("\nn2    0000000000000002  NO ANSWER "), "{text}");
    assert!(text.contains("\n  n2: 127.0.0.1:") && text.contains("refused"), "{text}");
    assert!(text.contains("\n3 groups have no majority that answers: start n2\n"), "{text}");
    assert!(
        text.contains("\n0          n1          3     90         2              n1, n2 (no answer)  none\n"),
        "{text}"
    );
}

/// Whoever looks at a cluster that stands still learns what keeps it from going on, not only what is left of it.
#[test]
fn a_group_is_shown_with_voters_that_are_silent_and_one_without_a_majority_says_so() {
    let (one, gone) = (node(1), [node(2), node(3)]);
    let members = [&one, &gone[0], &gone[1]].map(|node| node.member.clone());
    let seen = |group: u32, voters: &[u64]| GroupStatus {
        voters: voters.to_vec(),
        learners: Vec::new(),
        ..self::group(group, false, 0, 12, 12)
    };
    let shown = |groups: Vec<GroupStatus>| {
        let of = |member: &MemberStatus| member.node == 1;
        let answer = NodeStatus { node: 1, members: members.to_vec(), groups, ..NodeStatus::default() };
        let surveyed = |member: &MemberStatus| ask::Surveyed {
            member: member.clone(),
            answer: of(member).then(|| answer.clone()).ok_or_else(|| "refused".to_owned()),
        };
        show::table(&Survey { nodes: members.iter().map(surveyed).collect(), due: None })
    };
    let text = shown(vec![seen(0, &[1, 2, 3]), seen(1, &[3, 2, 1])]);
    assert!(text.contains("\n2 groups have no majority that answers: start n2 or n3\n"), "{text}");
    assert!(text.contains("  n1, n2 (no answer), n3 (no answer)  none\n"), "{text}");
    let text = shown(vec![seen(0, &[1, 2, 3]), seen(1, &[2])]);
    assert!(text.contains("\n2 groups have no majority that answers: start n2, n3\n"), "{text}");
    let text = shown(vec![seen(0, &[1])]);
    assert!(!text.contains("majority"), "{text}");
}

/// By a clock of its own that is behind a ban would be over before it began, and by one that is ahead last for hours too long.
#[test]
fn a_ban_ends_by_the_clock_of_the_cluster() {
    let until = |cluster_wall_ms: Option<u64>, flags: &[&str]| {
        let node = node(1);
        node.canned.0.set(NodeStatus { node: 1, cluster_wall_ms, ..NodeStatus::default() }).unwrap();
        let line = ["kentongan", "cluster", "ban", "--client-id", "c"].iter().chain(flags);
        let Some(Command::Cluster(command)) = Cli::try_parse_from(line).unwrap().command else {
            panic!("this command")
        };
        let text = carry_out(&command, &Settings::default(), &node.member.peer_address).unwrap();
        let acts = std::mem::take(&mut *node.canned.3.lock().unwrap());
        let [Some(Act::Ban(ban))] = &acts[..] else { panic!("{acts:?}") };
        (ban.until_seconds, text)
    };
    let (seconds, text) = until(Some(1_000_000_000_001), &["--seconds", "60"]);
    assert_eq!((seconds, text.contains(" is banned until 2001-09-09T01:47:41Z")), (1_000_000_061, true), "{text}");
    assert_eq!(until(Some(1_000_000_000_001), &[]).0, 0, "for good");
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let (seconds, _) = until(None, &["--seconds", "60"]);
    assert!((before + 60..=now() + 61).contains(&seconds), "an older node does not say what time it is");
}

#[test]
fn a_drained_node_is_shown_as_one() {
    let one = node(1);
    let member = MemberStatus { drains: true, ..one.member.clone() };
    let standing = Standing::Serving.into();
    one.canned.0.set(NodeStatus { node: 1, standing, members: vec![member], ..NodeStatus::default() }).unwrap();
    let text = status(&Settings::default(), &one.member.peer_address, false).unwrap();
    assert!(text.contains("\nn1    0000000000000001  drained   "), "{text}");
}

#[test]
fn a_node_without_a_cluster_is_shown_alone() {
    let alone = node(1);
    alone.canned.0.set(NodeStatus { node: 1, name: "n1".into(), ..NodeStatus::default() }).unwrap();
    let text = status(&Settings::default(), &alone.member.peer_address, false).unwrap();
    assert!(text.starts_with("not in a cluster yet\n"), "{text}");
    assert!(text.contains("n1    0000000000000001  unregistered  none   0 "), "{text}");
}

#[test]
fn where_no_node_is_one_is_told_what_to_look_for() {
    let gone = node(1);
    let peer = gone.member.peer_address.clone();
    drop(gone);
    let error = format!("{:#}", status(&Settings::default(), &peer, false).unwrap_err());
    assert!(error.contains(&peer) && error.contains("--peer") && error.contains("refused"), "{error}");
}

/// Writes an authority, a certificate from it for `name`, and its key.
fn certificates(directory: &Path, name: &str) -> TlsFiles {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let [ca, certificate_file, key_file] = ["ca.pem", "node.pem", "node.key"].map(|file| directory.join(file));
    fs::write(&ca, issuer.pem()).unwrap();
    fs::write(&certificate_file, certificate.pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    TlsFiles { ca, certificate: certificate_file, key: key_file }
}

#[test]
fn nodes_with_tls_are_asked_with_the_certificate_of_the_flags() {
    let directory = tempfile::tempdir().unwrap();
    let node = node_with(1, Some(certificates(directory.path(), "n1")));
    node.canned.0.set(NodeStatus { node: 1, name: "n1".into(), ..NodeStatus::default() }).unwrap();
    let peer = node.member.peer_address.as_str();
    let within = |file: &str| directory.path().join(file).to_str().unwrap().to_owned();
    let (ca, certificate, key) = (within("ca.pem"), within("node.pem"), within("node.key"));
    let files = ["--ca-file", &ca, "--certificate-file", &certificate, "--key-file", &key];
    let settings = |name: &str| {
        let line = ["kentongan", "cluster", "status", "--node", name].into_iter().chain(files);
        let cli = Cli::try_parse_from(line).unwrap();
        let Some(Command::Cluster(ClusterCommand::Status(arguments))) = cli.command else { panic!("this command") };
        arguments.asked.settings().unwrap()
    };
    assert!(status(&settings("n1"), peer, false).unwrap().contains("n1    0000000000000001"));
    let other_name = format!("{:#}", status(&settings("n2"), peer, false).unwrap_err());
    assert!(other_name.contains("\"n2\"") && other_name.contains("certificate"), "{other_name}");
    assert!(status(&Settings::default(), peer, false).is_err(), "without a certificate");
}

/// Whoever has a single node and no settings of a cluster learns which one is missing.
#[test]
fn who_says_nowhere_where_a_node_is_learns_what_a_lone_node_needs() {
    let why = |flags: &[&str], settings: &Settings| {
        let asked = Cli::try_parse_from(["kentongan", "cluster", "bans"].iter().chain(flags));
        let Some(Command::Cluster(ClusterCommand::Bans(ban::BansArgs { asked, .. }))) = asked.unwrap().command else {
            panic!("this command")
        };
        asked.why_nobody_listens(settings, "127.0.0.1:7001")
    };
    let mut settings = Settings::default();
    let text = why(&[], &settings).unwrap();
    assert!(text.contains("`cluster.address = \"127.0.0.1:7001\"` (--cluster 7001)"), "{text}");
    assert_eq!(why(&["--peer", "10.0.0.1:7001"], &settings), None);
    settings.cluster.address = Some(SocketAddr::from(([127, 0, 0, 1], 7001)));
    assert_eq!(why(&[], &settings), None);
}

/// The hint stands behind what happened, and only where nobody was reached.
#[test]
fn a_command_that_was_answered_does_not_say_whom_it_asked() {
    let explained = |line: &[&str], peer: &str| {
        let asked = Cli::try_parse_from(["kentongan", "cluster"].iter().chain(line));
        let Some(Command::Cluster(command)) = asked.unwrap().command else { panic!("this command") };
        let ClusterCommand::Drain(DrainArgs { asked, .. }) = &command else { panic!("this command") };
        let error = carry_out(&command, &Settings::default(), peer).unwrap_err();
        asked.explain(&error, &Settings::default(), peer)
    };
    let (nodes, peer) = scene();
    assert_eq!(explained(&["drain", "nosuch"], &peer), "no node is called nosuch");
    drop(nodes);
    let text = explained(&["drain", "n1"], &peer);
    assert!(text.starts_with(&format!("cannot ask {peer}: ")), "{text}");
    assert!(text.ends_with("(--cluster 7001))") && text.contains(&format!(" ({peer} was asked, since ")), "{text}");
    let text = explained(&["drain", "n1", "--peer", &peer], &peer);
    assert!(text.contains("refused") && !text.contains("was asked"), "{text}");
}

/// It is no cluster that changes too often.
#[test]
fn a_backup_of_a_node_that_nobody_reaches_says_so_at_once() {
    let (nodes, peer) = scene();
    drop(nodes);
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("backup");
    let asked = Cli::try_parse_from(["kentongan", "cluster", "backup", file.to_str().unwrap()]);
    let Some(Command::Cluster(command)) = asked.unwrap().command else { panic!("this command") };
    let text = format!("{:#}", carry_out(&command, &Settings::default(), &peer).unwrap_err());
    assert!(text.starts_with(&format!("cannot ask {peer}; ")), "{text}");
    assert!(!file.exists());
}

/// One answer that is lost would have a node removed with all of its clients.
#[test]
fn a_living_node_that_does_not_answer_once_is_asked_again() {
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut silence = Silence::of(true);
    assert!(!silence.is_end(at(0)) && !silence.is_end(at(2)) && silence.is_end(at(3)));
    assert!(Silence::of(false).is_end(at(0)), "who is dead has no clients");
}
