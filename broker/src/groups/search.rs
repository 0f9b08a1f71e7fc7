//! Who this node does not know yet, and may be led by.
//!
//! Nodes speak with members only, and know those whom the directory names as far as they have it. While a node is away others may
//! join, and one of them may lead the directory when it is back: that one is refused as a stranger, the members that are known here
//! do not lead and have nothing to say, and so this node would never hear of it. So whoever is without a lease for long asks those
//! whom it knows, and its seeds, who the members are. Asking is asking to join, which any member answers to one that is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, RecvTimeoutError};
use kentongan_cluster::directory::command::MemberRecord;
use kentongan_cluster::formation::{Formation, Joined};
use kentongan_cluster::group::{GroupStatus, PeerStatus, Role};
use kentongan_cluster::transport::{ClusterId, PeerHello, Question, Target, Transport};
use kentongan_cluster::{GroupId, NodeId, PipelineHandle};
use prost::Message as _;

use super::seeds::Seeds;
use super::unreached::Unreached;
use crate::replicated::Query;
use crate::router::Shared;

/// Pause between two looks at the lease.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Time without a lease after which the members are asked for, and again and again: longer than an election and a registration
/// take where all is well.
const WITHOUT_LEASE_MAX: Duration = Duration::from_secs(4);

/// Time after which a refusal is said again.
const REFUSAL_REPEATED: Duration = Duration::from_secs(60);

/// Time that one of them has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What the search needs.
pub(super) struct Search {
    pub(super) me: MemberRecord,
    pub(super) cluster: ClusterId,
    pub(super) seeds: Vec<String>,
    pub(super) data_dir: PathBuf,
    pub(super) pipeline: PipelineHandle<Query>,
    pub(super) transport: Transport,
    pub(super) shared: Arc<Shared>,
}

impl Search {
    /// Searches whenever there is need, until nobody holds the other end of `stop`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(self, stop: Receiver<()>) -> std::io::Result<JoinHandle<()>> {
        thread::Builder::new().name("search".to_owned()).spawn(move || self.run(&stop))
    }

    fn run(&self, stop: &Receiver<()>) {
        let begun = Instant::now();
        let mut lapse = Lapse::default();
        let mut unreached = Unreached::default();
        let mut refusals = Refusals::default();
        let mut seeds = Seeds::new(self.seeds.clone(), self.cluster, self.data_dir.clone());
        while stop.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if let Some(warning) = seeds.look(Instant::now(), |seed| self.transport.who(seed)) {
                tracing::warn!("{warning}");
            }
            let unreached_from = unreached.look(Instant::now(), &self.transport.peers());
            if !unreached_from.is_empty() {
                tracing::warn!(
                    "{}",
                    unreached_warning(&unreached_from, &self.me.peer_address, self.transport.own_address())
                );
            }
            let serves = |cluster: &crate::router::cluster::ClusterView| cluster.serving.load(Ordering::Relaxed);
            if let Some(due) = lapse.look(begun.elapsed(), self.shared.cluster.as_ref().is_none_or(serves)) {
                self.ask_all(&mut refusals);
                if due.hand_over {
                    self.hand_over_all();
                }
            }
        }
    }

    /// Whoever hears of the directory leads the groups that this node leads: one that is cut off from the directory's leader, and not from
    /// everybody, may have been declared dead, hears nothing of that, and would not fence itself, for which all the others wait.
    fn hand_over_all(&self) {
        let Ok(statuses) = self.pipeline.status().recv_timeout(ANSWER_MAX) else {
            return;
        };
        let me = NodeId(self.me.node);
        let mut handed_over = Vec::new();
        for (group, status) in statuses {
            if let Some(heir) = heir(me, group, &status) {
                handed_over.push((group, heir, self.pipeline.hand_over(group, heir)));
            }
        }
        for (group, heir, answer) in handed_over {
            match answer.recv_timeout(ANSWER_MAX) {
                Ok(Ok(())) => {
                    tracing::info!(%group, %heir, "without a lease for long: another node is to lead the group")
                }
                Ok(Err(error)) => {
                    tracing::warn!(%group, %heir, %error, "without a lease for long, and the group cannot be handed over");
                }
                Err(_) => {}
            }
        }
    }

    /// Everyone is asked, for one that was away as well may answer too.
    fn ask_all(&self, refusals: &mut Refusals) {
        let known = self.transport.peers().into_iter().map(|peer| peer.peer.address);
        let addresses: BTreeSet<String> = known.chain(self.seeds.iter().cloned()).collect();
        let body = Bytes::from(self.me.encode_to_vec());
        let ask = |address| self.transport.ask(Target::Address(address), Question::Join, body.clone());
        let asked: Vec<_> = addresses.into_iter().map(ask).collect();
        let until = Instant::now() + ANSWER_MAX;
        let mut heard = Heard::default();
        for asking in asked {
            // Who does not answer is not there.
            if let Ok(Ok((hello, answer))) = asking.recv_deadline(until) {
                heard.take(NodeId(self.me.node), self.cluster, &hello, answer);
            }
        }
        if let Some(by) = heard.removed_by {
            self.pipeline.notify(Query::ToldRemoved(by));
        }
        if !heard.members.is_empty() {
            self.pipeline.notify(Query::Members(heard.members.into_values().collect()));
        }
        if let Some((by, refusal)) = heard.refused.filter(|(_, refusal)| refusals.is_news(Instant::now(), refusal)) {
            tracing::warn!(by, "without a lease for long, and the cluster does not take this node: {refusal}");
        }
    }
}

/// What those answered that were asked who the members are.
#[derive(Debug, Default)]
struct Heard {
    /// Whom any of them names: one that was away for as long as this node knows no more than it does.
    members: BTreeMap<u64, MemberRecord>,
    /// Who says that this node is none any more.
    removed_by: Option<NodeId>,
    /// Who says why else it cannot be one.
    refused: Option<(String, String)>,
}

impl Heard {
    /// One answer. What is said by this node itself, which its seeds may name, or by a node of another cluster counts for nothing.
    fn take(&mut self, me: NodeId, cluster: ClusterId, from: &PeerHello, answer: Bytes) {
        if from.node == me || from.cluster != Some(cluster) {
            return;
        }
        match Joined::decode(answer) {
            Ok(Joined { removed: true, .. }) => self.removed_by = Some(from.node),
            Ok(Joined { refusal, .. }) if !refusal.is_empty() => self.refused = Some((from.name.clone(), refusal)),
            Ok(Joined { formation, .. }) => {
                let formation = Formation::decode(formation).ok().filter(|formation| formation.cluster_id == cluster);
                let members = formation.map(|formation| formation.members).unwrap_or_default();
                self.members.extend(members.into_iter().map(|member| (member.node, member)));
            }
            Err(_) => {}
        }
    }
}

/// The refusal that was said last: who is refused asks again and again.
#[derive(Debug, Default)]
struct Refusals {
    said: Option<(Instant, String)>,
}

impl Refusals {
    fn is_news(&mut self, now: Instant, refusal: &str) -> bool {
        let is_said =
            |(at, said): &(Instant, String)| said == refusal && now.saturating_duration_since(*at) < REFUSAL_REPEATED;
        if self.said.as_ref().is_some_and(is_said) {
            return false;
        }
        self.said = Some((now, refusal.to_owned()));
        true
    }
}

/// How long a node has been without a lease.
#[derive(Debug, Default)]
pub(crate) struct Lapse {
    since: Duration,
    has_handed_over: bool,
}

/// Who the members are is to be asked, and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// The groups that this node leads are to be led by others.
    pub(crate) hand_over: bool,
}

impl Lapse {
    /// The node has a lease or not. `now` is the time since it started.
    pub(crate) fn look(&mut self, now: Duration, has_lease: bool) -> Option<Due> {
        if has_lease {
            *self = Self { since: now, has_handed_over: false };
            return None;
        }
        if now.saturating_sub(self.since) < WITHOUT_LEASE_MAX {
            return None;
        }
        self.since = now;
        // Once: where everybody is without a lease, nobody would lead in the end.
        Some(Due { hand_over: !std::mem::replace(&mut self.has_handed_over, true) })
    }
}

/// Who is to lead a group that this node leads: a voter that it hears of, and that has most of it. Nobody instead of it for the directory,
/// whose leader others agree upon without a lease.
pub(crate) fn heir(me: NodeId, group: GroupId, status: &GroupStatus) -> Option<NodeId> {
    if group == GroupId::DIRECTORY {
        return None;
    }
    let may_lead = |peer: &&PeerStatus| peer.node != me && peer.active && status.configuration.votes(peer.node);
    let heirs = status.peers.iter().filter(|_| matches!(status.role, Role::Leader { .. })).filter(may_lead);
    heirs.max_by_key(|peer| peer.matched).map(|peer| peer.node)
}

/// `known`: where the members as of now have this node.
fn unreached_warning(unreached_from: &[String], own: &str, known: Option<String>) -> String {
    let before = known.filter(|known| known != own).map_or_else(String::new, |known| {
        format!(", nor at {known:?}, where the cluster has it until it is reached (older versions dial only that)")
    });
    format!(
        "{} cannot connect to this node at {own:?}, where it says that it is{before}, though it can connect to them: is that the address at \
         which others find it (--advertise), and is no firewall in between?",
        unreached_from.join(", "),
    )
}

/// Members that others named and the directory, as far as this node has it, does not know. It hears of their removal there as well.
pub(super) fn unknown<'a>(
    named: &'a [MemberRecord],
    known: &[MemberRecord],
    removed: &BTreeSet<NodeId>,
) -> Vec<&'a MemberRecord> {
    let known: BTreeSet<u64> = known.iter().map(|member| member.node).collect();
    named.iter().filter(|member| !known.contains(&member.node) && !removed.contains(&NodeId(member.node))).collect()
}

#[cfg(test)]
mod tests {
    use kentongan_cluster::formation::Terms;
    use kentongan_cluster::log::LogId;

    use kentongan_cluster::{Configuration, FeatureLevels};

    use super::*;

    fn member(node: u64) -> MemberRecord {
        MemberRecord { node, name: format!("n{node}"), ..MemberRecord::default() }
    }

    /// F5: who has most of it, of those that it hears of.
    #[test]
    fn a_group_is_handed_to_a_voter_that_is_there_and_has_most_of_it() {
        let peer = |node: u64, matched: u64, active: bool| PeerStatus { node: NodeId(node), matched, active };
        let status = |role: Role| GroupStatus {
            term: 3,
            role,
            committed: 90,
            handed_out: LogId::default(),
            last: 100,
            configuration: Configuration::of([1, 2, 3, 4].map(NodeId)),
            peers: vec![
                peer(1, 100, true),
                peer(2, 100, false),
                peer(3, 90, true),
                peer(4, 80, true),
                peer(5, 100, true),
            ],
        };
        let leader = status(Role::Leader { ready: true });
        assert_eq!(heir(NodeId(1), GroupId(0), &leader), Some(NodeId(3)));
        assert_eq!(heir(NodeId(1), GroupId::DIRECTORY, &leader), None);
        assert_eq!(heir(NodeId(1), GroupId(0), &status(Role::Follower { leader: None })), None);
    }

    #[test]
    fn a_node_without_a_lease_gives_up_its_groups_once_and_asks_again_and_again() {
        let mut lapse = Lapse::default();
        let mut due = |from: u64, to: u64, has_lease| {
            let looks =
                (from..to).filter_map(|second| Some((second, lapse.look(Duration::from_secs(second), has_lease)?)));
            looks.map(|(second, due)| (second, due.hand_over)).collect::<Vec<_>>()
        };
        assert_eq!(due(1, 10, false), [(4, true), (8, false)]);
        assert_eq!(due(10, 20, true), []);
        assert_eq!(due(20, 25, false), [(23, true)]);
    }

    const ME: NodeId = NodeId(1);
    const CLUSTER: ClusterId = ClusterId(7);

    fn hello(node: u64, cluster: ClusterId) -> PeerHello {
        PeerHello {
            cluster: Some(cluster),
            node: NodeId(node),
            name: format!("n{node}"),
            incarnation: None,
            protocol: 1,
            feature_levels: FeatureLevels { min: 1, max: 1 },
            nonce: node,
            address: String::new(),
            start: 0,
        }
    }

    fn naming(cluster: ClusterId, nodes: &[u64]) -> Joined {
        let terms = Terms { groups: 1, voters: 3, settings: Bytes::new() };
        let members = nodes.iter().copied().map(member).collect();
        let formation = Formation { cluster_id: cluster, terms, members, is_joined: false };
        Joined { formation: formation.encode(), ..Joined::default() }
    }

    fn heard(answers: impl IntoIterator<Item = (PeerHello, Joined)>) -> Heard {
        let mut heard = Heard::default();
        for (from, answer) in answers {
            heard.take(ME, CLUSTER, &from, Bytes::from(answer.encode_to_vec()));
        }
        heard
    }

    /// One that was away as well, or this node itself, may be the last to answer.
    #[test]
    fn whom_anybody_names_is_heard_of() {
        let named = |answers: &[(u64, &[u64])]| {
            let answers = answers.iter().map(|&(from, nodes)| (hello(from, CLUSTER), naming(CLUSTER, nodes)));
            heard(answers).members.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(named(&[(2, &[1, 2, 3, 4]), (3, &[1, 2, 3]), (1, &[1, 2])]), [1, 2, 3, 4]);
        assert_eq!(named(&[(2, &[1, 2, 4]), (3, &[1, 3, 5])]), [1, 2, 3, 4, 5]);
        assert!(named(&[(1, &[1, 2, 3])]).is_empty(), "it knows what it knows");
    }

    #[test]
    fn only_members_of_the_own_cluster_are_taken_from_an_answer() {
        let other = ClusterId(8);
        let from_another = [(hello(2, other), naming(other, &[1, 9])), (hello(2, other), naming(CLUSTER, &[1, 9]))];
        let found = heard(from_another.into_iter().chain([(hello(2, CLUSTER), naming(other, &[1, 9]))]));
        assert!(found.members.is_empty(), "{found:?}");
        let mut malformed = Heard::default();
        malformed.take(ME, CLUSTER, &hello(2, CLUSTER), Bytes::from_static(b"\xff\xff"));
        assert!(malformed.members.is_empty());
    }

    #[test]
    fn who_is_refused_hears_whether_it_was_removed_or_why_else() {
        let refused = |removed| Joined { refusal: "because".to_owned(), removed, ..Joined::default() };
        let removed = heard([(hello(3, CLUSTER), refused(true)), (hello(2, CLUSTER), Joined::default())]);
        assert_eq!((removed.removed_by, removed.refused), (Some(NodeId(3)), None));
        let elsewhere = heard([(hello(3, ClusterId(8)), refused(true))]);
        assert_eq!(elsewhere.removed_by, None, "what another cluster says of it");
        let refused = heard([(hello(3, CLUSTER), refused(false))]);
        assert_eq!((refused.removed_by, refused.refused), (None, Some(("n3".to_owned(), "because".to_owned()))));
    }

    #[test]
    fn a_refusal_is_said_once_in_a_while() {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        let mut is_news = |seconds, refusal| refusals.is_news(begun + Duration::from_secs(seconds), refusal);
        assert!(is_news(0, "one") && !is_news(4, "one") && is_news(8, "another") && !is_news(12, "another"));
        assert!(!is_news(67, "another") && is_news(68, "another"));
    }

    #[test]
    fn a_node_that_is_not_reached_reads_where_else_others_look_for_it() {
        let warning = |known: Option<&str>| unreached_warning(&["n1".to_owned()], "new:1", known.map(str::to_owned));
        assert!(warning(Some("old:1")).contains("at \"new:1\", where it says that it is, nor at \"old:1\""));
        for known in [None, Some("new:1")] {
            assert!(warning(known).contains("at \"new:1\", where it says that it is, though"), "{}", warning(known));
        }
    }

    #[test]
    fn who_is_known_or_was_removed_is_no_stranger() {
        let named = [member(1), member(2), member(3)];
        let found = unknown(&named, &[member(1)], &BTreeSet::from([NodeId(3)]));
        assert_eq!(found, [&named[1]]);
    }
}
