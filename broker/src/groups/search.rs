//! Who this node does not know yet, and may be led by.
//!
//! Nodes speak with members only, and know those whom the directory names as far as they have it. While a node is away others may
//! join, and one of them may lead the directory when it is back: that one is refused as a stranger, the members that are known here
//! do not lead and have nothing to say, and so this node would never hear of it. So whoever is without a lease for long asks those
//! whom it knows, and its seeds, who the members are. Asking is asking to join, which any member answers to one that is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
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

/// Pause between two hand-overs of a group: one that cannot take over must not stop it again and again.
const HANDED_OVER_AGAIN: Duration = Duration::from_secs(4);

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
                // Those that are asked may take their time to answer, or not to.
                self.hand_over_all(due, &mut lapse, begun.elapsed());
                if due.ask {
                    self.ask_all(&mut refusals);
                }
            }
        }
    }

    /// Whoever hears of the directory leads the groups that this node leads, or comes to lead while it has no lease: one that is cut off
    /// from the directory's leader, and not from everybody, is not reached by all that publish to what it leads. And it may have been
    /// declared dead, hears nothing of that, and would not fence itself, for which all the others wait.
    fn hand_over_all(&self, due: Due, lapse: &mut Lapse, now: Duration) {
        let (Some(cluster), Ok(statuses)) = (&self.shared.cluster, self.pipeline.status().recv_timeout(ANSWER_MAX))
        else {
            return;
        };
        let me = NodeId(self.me.node);
        let leases = cluster.leases.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut handed_over = Vec::new();
        for (group, status) in statuses {
            let heir = heir(me, group, &status, &leases, due.to_anybody);
            if let Some(heir) = heir.filter(|_| lapse.may_hand_over(group, now)) {
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

/// How long a node has been without a lease, and what was done about it.
#[derive(Debug, Default)]
pub(crate) struct Lapse {
    since: Duration,
    asked: Option<Duration>,
    /// The groups that were handed over, and when.
    handed_over: BTreeMap<GroupId, Duration>,
}

/// It has been without a lease for long: the groups that it leads are to be led by others that have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// Who the members are is to be asked.
    pub(crate) ask: bool,
    /// Or by others that do not say whether they have one.
    pub(crate) to_anybody: bool,
}

impl Lapse {
    /// The node has a lease or not. `now` is the time since it started.
    pub(crate) fn look(&mut self, now: Duration, has_lease: bool) -> Option<Due> {
        if has_lease {
            *self = Self { since: now, ..Self::default() };
            return None;
        }
        if now.saturating_sub(self.since) < WITHOUT_LEASE_MAX {
            return None;
        }
        // Once: where everybody is without a lease, nobody would lead in the end.
        let to_anybody = self.asked.is_none();
        let ask = self.asked.is_none_or(|at| now.saturating_sub(at) >= WITHOUT_LEASE_MAX);
        if ask {
            self.asked = Some(now);
        }
        Some(Due { ask, to_anybody })
    }

    /// Whether a group, for which there is another that could lead it, is handed over now.
    pub(crate) fn may_hand_over(&mut self, group: GroupId, now: Duration) -> bool {
        if self.handed_over.get(&group).is_some_and(|&at| now.saturating_sub(at) < HANDED_OVER_AGAIN) {
            return false;
        }
        self.handed_over.insert(group, now);
        true
    }
}

/// Who is to lead a group that this node leads without a lease: of the voters that it hears of and that say that they have one (`leases`), the
/// one that has most of it; or of those that do not say, as older versions do not, if it may be `to_anybody`. Nobody instead of it for the
/// directory, whose leader others agree upon without a lease.
pub(crate) fn heir(
    me: NodeId,
    group: GroupId,
    status: &GroupStatus,
    leases: &BTreeMap<NodeId, bool>,
    to_anybody: bool,
) -> Option<NodeId> {
    if group == GroupId::DIRECTORY || !matches!(status.role, Role::Leader { .. }) {
        return None;
    }
    let may_lead = |peer: &&PeerStatus| peer.node != me && peer.active && status.configuration.votes(peer.node);
    let has_lease = |peer: &PeerStatus| leases.get(&peer.node).copied();
    let heirs = status.peers.iter().filter(may_lead).filter(|peer| has_lease(peer).unwrap_or(to_anybody));
    heirs.max_by_key(|peer| (has_lease(peer), peer.matched)).map(|peer| peer.node)
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
        let heir = |group, status: &GroupStatus, leases: &[(u64, bool)], to_anybody| {
            let leases = leases.iter().map(|&(node, held)| (NodeId(node), held)).collect();
            heir(NodeId(1), group, status, &leases, to_anybody).map(|node| node.0)
        };
        assert_eq!(heir(GroupId(0), &leader, &[], true), Some(3), "nobody says whether it has a lease");
        assert_eq!(heir(GroupId(0), &leader, &[], false), None, "that was tried");
        assert_eq!(heir(GroupId(0), &leader, &[(2, true), (4, true), (5, true)], true), Some(4));
        assert_eq!(heir(GroupId(0), &leader, &[(3, true), (4, true)], false), Some(3));
        assert_eq!(heir(GroupId(0), &leader, &[(3, false)], true), Some(4));
        assert_eq!(heir(GroupId(0), &leader, &[(3, false), (4, false)], true), None, "nobody has one: it stays");
        assert_eq!(heir(GroupId::DIRECTORY, &leader, &[(3, true)], true), None);
        assert_eq!(heir(GroupId(0), &status(Role::Follower { leader: None }), &[(3, true)], true), None);
    }

    #[test]
    fn a_node_without_a_lease_gives_up_its_groups_and_asks_again_and_again() {
        let mut lapse = Lapse::default();
        let mut due = |from: u64, to: u64, has_lease| {
            let looks =
                (from..to).filter_map(|second| Some((second, lapse.look(Duration::from_secs(second), has_lease)?)));
            looks.map(|(second, due)| (second, due.ask, due.to_anybody)).collect::<Vec<_>>()
        };
        let often = [(4, true, true), (5, false, false), (6, false, false), (7, false, false), (8, true, false)];
        assert_eq!(due(1, 9, false), often);
        assert_eq!(due(9, 20, true), []);
        assert_eq!(due(20, 25, false), [(23, true, true), (24, false, false)]);
    }

    /// It may come to lead one at any time; and one that cannot be handed over is not stopped all the time.
    #[test]
    fn each_group_is_handed_over_as_soon_as_it_is_led_and_then_once_in_a_while() {
        let mut lapse = Lapse::default();
        let mut may_hand_over = |group, second| lapse.may_hand_over(GroupId(group), Duration::from_secs(second));
        assert!(may_hand_over(0, 4) && !may_hand_over(0, 5) && may_hand_over(1, 6) && !may_hand_over(0, 7));
        assert!(may_hand_over(0, 8) && !may_hand_over(1, 9));
        assert_eq!(lapse.look(Duration::from_secs(9), true), None);
        assert!(lapse.may_hand_over(GroupId(0), Duration::from_secs(9)), "it had a lease meanwhile");
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
