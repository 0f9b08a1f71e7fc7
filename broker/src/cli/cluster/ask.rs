//! Asking the nodes, one and then the others.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use crossbeam::channel::Receiver;
use kentongan_cluster::directory::command::Departing;
use kentongan_cluster::formation::{Joined, MEMBERS_MAX};
use kentongan_cluster::transport::{
    Asked, Event, LinkError, LocalIdentity, PeerHello, Question, Responder, Sink, SnapshotChunks, Target, Transport,
    TransportConfig,
};
use kentongan_cluster::{FeatureLevels, GroupId, NodeId};
use prost::Message as _;

use crate::config::Settings;
use crate::peers::status::{MemberStatus, NodeStatus};

/// What was found out, in the order of the nodes' names.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) nodes: Vec<Surveyed>,
    /// What was committed of each group when it was asked before, if it was: see [`survey_of_behind`].
    pub(super) due: Option<BTreeMap<u32, u64>>,
}

/// A node, and what it said or why it said nothing.
#[derive(Debug)]
pub(super) struct Surveyed {
    /// As the node that was asked first knows it.
    pub(super) member: MemberStatus,
    pub(super) answer: Result<NodeStatus, String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct Unanswered {
    why: String,
    /// Nobody listens there, or it is no place.
    pub(super) is_unreached: bool,
}

impl From<LinkError> for Unanswered {
    fn from(error: LinkError) -> Self {
        let is_unreached = matches!(error, LinkError::Connect { .. } | LinkError::Resolve { .. });
        Self { why: error.to_string(), is_unreached }
    }
}

impl Unanswered {
    /// Something came that is no answer.
    pub(super) fn malformed() -> Self {
        Self { why: "the answer is malformed".to_owned(), is_unreached: false }
    }
}

/// Nobody keeps links with an operator's client, and it answers nothing.
struct Client;

impl Sink for Client {
    fn on_event(&self, _: Event) {}
}

impl Responder for Client {
    fn on_question(&self, asked: Asked) {
        asked.answer.send(Err("this is no node".to_owned()));
    }

    fn open_snapshot(&self, _: &PeerHello, _: GroupId, _: u64) -> Result<SnapshotChunks, String> {
        Err("this is no node".to_owned())
    }
}

/// Something to ask with: a node of no cluster, for as long as this takes.
pub(super) fn client(settings: &Settings) -> anyhow::Result<Transport> {
    let identity = LocalIdentity {
        cluster: None,
        node: NodeId(rand::random::<u64>().max(1)),
        name: settings.node_name(),
        incarnation: None,
        // It is no member, and keeps nothing.
        feature_levels: FeatureLevels { min: 0, max: 0 },
    };
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = TransportConfig { tls: settings.cluster.tls(), ..TransportConfig::new(listen, identity) };
    let client = Arc::new(Client);
    Ok(Transport::start(config, Arc::<Client>::clone(&client), client)?)
}

/// Asks one node, and then those that it knows of.
pub(super) fn survey(transport: &Transport, peer: &str) -> anyhow::Result<Survey> {
    let (hello, status) = answer(&ask(transport, peer)).with_context(|| {
        format!(
            "cannot ask {peer}; --peer is where other nodes connect to a node (its --cluster), not its MQTT port, and nodes that \
             speak TLS with each other want a certificate of yours (--ca-file, --certificate-file, --key-file)"
        )
    })?;
    let mut members = status.members.clone();
    if members.iter().all(|member| member.node != hello.node.0) {
        let (node, name, peer_address) = (status.node, status.name.clone(), peer.to_owned());
        members.push(MemberStatus { node, name, peer_address, ..MemberStatus::default() });
    }
    members.truncate(MEMBERS_MAX);
    let is_first = |member: &MemberStatus| member.node == hello.node.0;
    let asked: Vec<_> = members
        .into_iter()
        .map(|member| (member.clone(), (!is_first(&member)).then(|| ask(transport, &member.peer_address))))
        .collect();
    let surveyed = |(member, asking): (MemberStatus, Option<Asking>)| {
        let answer = asking.map_or_else(|| Ok(status.clone()), |asking| answer_of(&member, &asking));
        Surveyed { member, answer }
    };
    let mut nodes: Vec<_> = asked.into_iter().map(surveyed).collect();
    nodes.sort_by(|one, other| (&one.member.name, one.member.node).cmp(&(&other.member.name, other.member.node)));
    Ok(Survey { nodes, due: None })
}

/// The same for who shows which nodes are behind.
///
/// A follower learns with the next entry or heartbeat that one is committed, so under steady traffic there is always somebody who
/// has not committed the last ones, and is not behind. If anybody seems to be, all are asked once more, and whoever has meanwhile
/// what was committed at first keeps up.
pub(super) fn survey_of_behind(transport: &Transport, peer: &str) -> anyhow::Result<Survey> {
    let first = survey(transport, peer)?;
    if !first.has_anybody_behind() {
        return Ok(first);
    }
    std::thread::sleep(TIME_TO_KEEP_UP);
    Ok(match survey(transport, peer) {
        Ok(second) => Survey { due: Some(first.committed()), ..second },
        // It has ended since then. What it said is still the best there is.
        Err(_) => first,
    })
}

/// How a node is, as it says itself.
pub(super) fn status_of(transport: &Transport, peer: &str) -> anyhow::Result<NodeStatus> {
    let answered = answer(&ask(transport, peer));
    answered.map(|(_, status)| status).with_context(|| format!("cannot ask {peer}"))
}

/// The one member that goes by this name, or has this id.
pub(super) fn member_called<'a>(members: &'a [MemberStatus], called: &str) -> anyhow::Result<&'a MemberStatus> {
    let is_meant = |known: &&MemberStatus| known.name == called || NodeId(known.node).to_string() == called;
    let meant: Vec<_> = members.iter().filter(is_meant).collect();
    match meant[..] {
        [one] => Ok(one),
        [] => anyhow::bail!("no node is called {called}"),
        _ => anyhow::bail!("several nodes are called {called}: say the id of one"),
    }
}

/// Asks again and again for a member to be removed, until it is none. Where `peer` does not answer, `others` are asked in turn: it may
/// be the one that was removed, and has ended.
pub(super) fn remove(
    transport: &Transport,
    peer: &str,
    others: &[&str],
    node: u64,
    deadline: Instant,
) -> anyhow::Result<()> {
    let body = Bytes::from(Departing { node }.encode_to_vec());
    let mut turns = others.iter().copied().chain([peer]).cycle();
    let mut address = peer.to_owned();
    loop {
        let asking = transport.ask(Target::Address(address.clone()), Question::Remove, body.clone());
        let answered = asking.recv().unwrap_or(Err(LinkError::Stopped));
        let last = match answered.map(|(_, body)| Joined::decode(body)) {
            Ok(Ok(joined)) if !joined.formation.is_empty() => return Ok(()),
            Ok(Ok(joined)) if !joined.elsewhere.is_empty() => {
                address = joined.elsewhere;
                "it is not done: its groups have not moved yet".to_owned()
            }
            Ok(Ok(_)) => "it is not done: its groups have not moved yet".to_owned(),
            Ok(Err(_)) => "nobody said whether it is done: the answer is malformed".to_owned(),
            Err(error) => {
                let last = format!("nobody said whether it is done: {address}: {error}");
                address = turns.next().unwrap_or(peer).to_owned();
                last
            }
        };
        anyhow::ensure!(Instant::now() < deadline, "{last}");
        std::thread::sleep(PAUSE);
    }
}

/// What a follower that keeps up needs to learn what is committed: two heartbeats of a group (0.2 s each), and some.
const TIME_TO_KEEP_UP: Duration = Duration::from_millis(500);

/// Between two looks whether something is done.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

type Asking = Receiver<Result<(PeerHello, Bytes), LinkError>>;

fn ask(transport: &Transport, peer: &str) -> Asking {
    transport.ask(Target::Address(peer.to_owned()), Question::Status, Bytes::new())
}

/// Waits for an answer; the transport bounds for how long.
fn answer(asking: &Asking) -> Result<(PeerHello, NodeStatus), Unanswered> {
    let (hello, body) = asking.recv().unwrap_or(Err(LinkError::Stopped))?;
    let status = NodeStatus::decode_answer(body).map_err(|_| Unanswered::malformed())?;
    Ok((hello, status))
}

fn answer_of(member: &MemberStatus, asking: &Asking) -> Result<NodeStatus, String> {
    let (hello, status) = answer(asking).map_err(|error| error.to_string())?;
    match hello.node.0 == member.node {
        true => Ok(status),
        false => Err(format!("node {} ({:?}) answers at {} now", hello.node, hello.name, member.peer_address)),
    }
}
