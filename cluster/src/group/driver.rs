//! One group of one node upon `raft-rs`' RawNode.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use prost011::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeV2, Entry, Message, MessageType};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, Ready, SnapshotStatus, StateRole};

use super::configuration::{Change, CheckpointBase, Configuration, conf_change};
use super::forgetful::Forgetful;
use super::keeping::{Keeping, Mark, Marks};
use super::message::{self, Known, MessageError};
use super::packing::{Pack, unpack};
use super::reads::Reads;
use super::storage::{GroupStorage, kind_of};
use crate::directory::Placement;
use crate::identity::{GroupId, NodeId};
use crate::log::{self, Carried, EntryKind, GroupLog, Log, LogId};
#[cfg(test)]
use crate::node::PlantedBug;
use crate::node::Sink;
use crate::placement::transition::{self, Transition};

/// Entries that go to a follower in one message, in bytes; one that is longer goes alone.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Messages to one follower that are not answered. What they hold together must find room in the queue to its node beside what
/// other groups have for it: who was away for long is sent as much at once, and if the first of that is dropped, all is in vain.
const MESSAGES_IN_FLIGHT_MAX: usize = 64;

/// Proposed and not committed; what comes on top waits outside of Raft.
const UNCOMMITTED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Handed out in one round: an election looks through what was not.
const COMMITTED_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Marks the refusal of a snapshot that could not be fetched.
const FETCH_FAILED: &[u8] = b"fetch failed";

/// Ticks after which a snapshot of which nothing was heard is offered again. Its receiver fetches it once at a time, so an offer
/// too many costs nothing; and one that failed as a fault healed must be tried again in good time (P12).
const SNAPSHOT_TICKS: u64 = 40;

/// Ticks in which a peer must have been heard of for which the log is kept: one that begins anew, or whose link broke, is back by then.
const KEPT_TICKS: u64 = 200;

/// How often a leader looks whether its group is where it is to be.
const PLACE_TICKS: u64 = 4;

/// Ticks between two tries to let another one lead: one that cannot take over must not stop the group again and again.
const HAND_OVER_TICKS: u64 = 200;

/// The same for a leader that is not to lead at all, in which nobody is to wait for the end of a process in vain.
const GIVE_WAY_TICKS: u64 = 60;

/// After how many ticks the first voter stands for election whose leader is gone: the others are to have noticed it too, or they
/// would refuse to vote.
const STAND_TICKS_MIN: u64 = 2;

/// How many later the next one does, if that one could not: an election takes two round trips and a sync.
const STAND_TICKS_APART: u64 = 4;

/// Ticks that a leader stays before it gives way to a preferred one: while links come and go it would be the next to be replaced.
const OFFICE_TICKS_MIN: u64 = 100;

/// Entries that a learner may lack of what is committed when it gets a vote.
const LEARNER_LAG_MAX: u64 = 64;

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// Commands, in their order.
    Commands(Vec<Bytes>),
    /// The members are these now.
    Configuration(Configuration),
    /// Nothing: a new leader's first entry.
    Empty,
}

/// What a node is in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It decides the order.
    Leader {
        /// Whether it handed out an entry of its own term, and so everything committed before.
        ready: bool,
    },
    /// It follows, or waits for an election.
    Follower {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
}

/// The node does not lead the group: ask there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node does not lead the group")]
pub struct NotLeader {
    /// Who leads, if known.
    pub leader: Option<NodeId>,
}

/// Why members were not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeChangeError {
    /// Another node leads.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// A vote in the hand of a node without the log would stop the group. It must be a learner first and catch up.
    #[error("node {0} has not caught up with the group: make it a learner and try again later")]
    NotCaughtUp(NodeId),
    /// The leader cannot take its own vote: hand leadership over first.
    #[error("a leader cannot take its own vote: hand leadership over first")]
    OwnVote,
    /// Another change, or an election, is under way.
    #[error("the group cannot change its members now: try again later")]
    Busy,
}

/// Why leadership is not handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// Another node leads.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// Only a voter can lead.
    #[error("node {0} has no vote in the group, so it cannot lead it")]
    NoVoter(NodeId),
    /// It may be down, or cut off.
    #[error("node {0} is not heard of in the group: it cannot lead it now")]
    Silent(NodeId),
    /// The group would stand while it catches up.
    #[error("node {node} lacks {entries} entries of the group's log: let it catch up and try again")]
    Behind {
        /// Which.
        node: NodeId,
        /// How many of those that are committed.
        entries: u64,
    },
    /// Another hand-over, or a change of members, is under way.
    #[error("the group is changing its leader or its members: try again")]
    Busy,
}

/// One member as the leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which node.
    pub node: NodeId,
    /// It has the log up to here.
    pub matched: u64,
    /// Heard of within an election timeout.
    pub active: bool,
}

/// A group as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The latest term seen.
    pub term: u64,
    /// What this node is in it.
    pub role: Role,
    /// Known to be committed.
    pub committed: u64,
    /// Handed out.
    pub handed_out: LogId,
    /// Where the log ends.
    pub last: u64,
    /// The members.
    pub configuration: Configuration,
    /// Empty if this node does not lead.
    pub peers: Vec<PeerStatus>,
}

/// Where a group is to be kept, and who is to lead it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// By whom it is to be kept.
    pub placement: Placement,
    /// Who is to lead it, if it can.
    pub leader: Option<NodeId>,
    /// Who is not to lead it, as long as there is another that can: whoever is drained, or has no lease.
    pub drained: BTreeSet<NodeId>,
}

/// How a group is driven.
#[derive(Debug, Clone)]
pub(crate) struct GroupConfig {
    pub(crate) node: NodeId,
    /// Messages are sent without a sync before, so a power cut may take back what they say.
    pub(crate) forgets: bool,
    pub(crate) election_ticks: u32,
    pub(crate) heartbeat_ticks: u32,
    pub(crate) keeping: Keeping,
    pub(crate) seed: u64,
    #[cfg(test)]
    pub(crate) planted: Option<PlantedBug>,
}

/// What of a group's log is kept in memory for others, beyond what is usual.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) bytes: usize,
    /// For how many ticks the one that is furthest behind has needed it.
    pub(crate) age: u64,
}

/// What happened between rounds.
#[derive(Debug)]
enum Event {
    QueryDropped(u64),
    ReadDropped(u64),
    Fetch(NodeId, CheckpointBase),
}

/// Commands on their way into entries, and questions in their order among them.
#[derive(Debug, Default)]
struct Proposals {
    pack: Pack,
    /// Closed, and not in the log yet.
    packs: VecDeque<Bytes>,
    /// Number of the last pack that was closed, and of the last that was handed out.
    closed: u64,
    handed_out: u64,
    /// Numbers of packs in the log, with their index.
    proposed: VecDeque<(u64, u64)>,
    /// Questions, with the number of the pack that they come after.
    queries: VecDeque<(u64, u64)>,
}

impl Proposals {
    fn push(&mut self, command: &[u8]) {
        if !self.pack.has_room_for(command) {
            self.close();
        }
        self.pack.push(command);
    }

    fn close(&mut self) {
        if !self.pack.is_empty() {
            self.packs.push_back(self.pack.take());
            self.closed += 1;
        }
    }

    fn query(&mut self, token: u64) {
        self.close();
        self.queries.push_back((self.closed, token));
    }

    fn in_log(&mut self, index: u64) {
        let number = self.proposed.back().map_or(self.handed_out, |&(number, _)| number) + 1;
        self.proposed.push_back((number, index));
    }

    fn was_handed_out(&mut self, index: u64) {
        while let Some(&(number, proposed)) = self.proposed.front()
            && proposed <= index
        {
            self.handed_out = number;
            self.proposed.pop_front();
        }
    }

    fn next_query(&mut self) -> Option<u64> {
        let &(after, token) = self.queries.front()?;
        (after <= self.handed_out).then(|| self.queries.pop_front())?;
        Some(token)
    }

    /// All is given up; tokens of the questions.
    fn give_up(&mut self) -> impl Iterator<Item = u64> {
        let queries = std::mem::take(self).queries;
        queries.into_iter().map(|(_, token)| token)
    }
}

/// SplitMix64: election timeouts need no more.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// One group of this node.
pub(crate) struct Group {
    id: GroupId,
    config: GroupConfig,
    raw: RawNode<GroupStorage>,
    configuration: Configuration,
    random: Random,
    /// Ticks so far.
    now: u64,
    election_timeout: usize,
    /// Earlier than that, as the leader has no connection to this node any more; until it is heard of, or another one.
    stands_at: Option<usize>,
    /// The term in which this node leads.
    leading: Option<u64>,
    /// The tick from which on it does.
    leads_since: u64,
    /// When it heard of each peer since. Raft-rs forgets once in an election timeout of whom it heard, and who looks just then, or as
    /// often, sees nobody.
    heard: BTreeMap<NodeId, u64>,
    /// What of the log others need still, while this node leads.
    marks: Marks,
    /// Whether it handed out an entry of that term.
    is_ready: bool,
    reported: Option<(u64, Role)>,
    proposals: Proposals,
    reads: Reads,
    events: Vec<Event>,
    handed_out: LogId,
    /// Committed and not handed out yet, from a change of members on: see [`Self::may_hand_out`].
    held: VecDeque<Entry>,
    /// As the log has it.
    written: log::HardState,
    /// This round has another term, or a vote. With them forgotten, one term could have two leaders, and replicas that differ for good.
    has_voted: bool,
    /// What the log says is committed, even after a power cut.
    safe_commit: u64,
    /// If its end may be missing.
    forgetful: Option<Forgetful>,
    /// A snapshot that is being fetched, and from whom.
    fetching: Option<(NodeId, CheckpointBase)>,
    /// As this node was told since it leads.
    target: Option<Target>,
    /// When another one was last to take over.
    handed_over: Option<u64>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Group").field("id", &self.id).field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Group {
    /// Takes a group up where its checkpoint and its log left it. A sole voter leads at once.
    pub(crate) fn open(
        id: GroupId,
        config: GroupConfig,
        checkpoint: CheckpointBase,
        log: &GroupLog,
    ) -> raft::Result<Self> {
        let mut random = Random(config.seed ^ (u64::from(id.0) << 48));
        let first_question = random.next();
        let configuration = checkpoint.configuration.clone();
        let handed_out = checkpoint.applied;
        let storage = GroupStorage::new(checkpoint, log);
        let mut group = Self {
            id,
            raw: raw_node(id, &config, storage, handed_out.index)?,
            configuration,
            now: 0,
            election_timeout: 0,
            stands_at: None,
            leading: None,
            leads_since: 0,
            heard: BTreeMap::new(),
            marks: Marks::default(),
            is_ready: false,
            reported: None,
            proposals: Proposals::default(),
            reads: Reads::new(config.node, u64::from(config.election_ticks), first_question),
            events: Vec::new(),
            handed_out,
            held: VecDeque::new(),
            written: log.hard,
            has_voted: false,
            forgetful: config.forgets.then(|| Forgetful::new(log.hard.term)),
            safe_commit: log.hard.commit,
            fetching: None,
            target: None,
            handed_over: None,
            config,
            random,
        };
        group.draw_election_timeout();
        if group.configuration.is_only(group.config.node) {
            group.campaign();
        }
        Ok(group)
    }

    fn campaign(&mut self) {
        // Refused only while a change of members is not handed out yet; then the election timeout tries again.
        let _ = self.raw.campaign();
        self.note_leadership();
    }

    /// A peer has no connection to this node any more, and did not make another one. If it leads, the voters stand for election
    /// in an order of their own, each group in another one: the next if the one before cannot, and no two at once.
    pub(crate) fn lost(&mut self, peer: NodeId) {
        if self.raw.raft.leader_id != peer.0 || !self.raw.raft.promotable() {
            return;
        }
        let mut others: Vec<_> = self.configuration.voters.iter().filter(|&&voter| voter != peer).collect();
        others.sort_unstable();
        let count = others.len() as u64;
        let turn = others
            .iter()
            .position(|&&voter| voter == self.config.node)
            .map_or(count, |place| (place as u64 + u64::from(self.id.0)) % count);
        let least = self.config.election_ticks as usize;
        // From now on it votes for others: it does not follow anybody.
        self.raw.raft.election_elapsed = self.raw.raft.election_elapsed.max(least);
        let ticks = (STAND_TICKS_MIN + turn * STAND_TICKS_APART).min(least as u64 - 1);
        self.stands_at = Some(self.election_timeout.min(least + ticks as usize));
    }

    fn draw_election_timeout(&mut self) {
        let least = u64::from(self.config.election_ticks);
        self.election_timeout = (least + self.random.next() % least) as usize;
    }

    /// Time passes.
    pub(crate) fn tick(&mut self) {
        self.now += 1;
        // It follows again, or has voted or stood: all groups of both nodes would stand at the same ticks as before, if the next leader
        // went silently.
        if self.raw.raft.election_elapsed < self.config.election_ticks as usize {
            self.stands_at = None;
        }
        // raft-rs draws its own from a source that no seed governs.
        self.raw.raft.set_randomized_election_timeout(self.stands_at.unwrap_or(self.election_timeout));
        self.raw.tick();
        // All groups of a node at the same tick, so that a frame to each peer carries them all; raft-rs has its own from time to
        // time, of one group, which would go in a frame of its own and be answered in another.
        self.raw.raft.msgs.retain(|message| message.get_msg_type() != MessageType::MsgHeartbeat);
        if self.leading.is_some() && self.now.is_multiple_of(u64::from(self.config.heartbeat_ticks)) {
            self.raw.ping();
        }
        if self.raw.raft.election_elapsed == 0 {
            self.draw_election_timeout();
        }
        if self.now.is_multiple_of(SNAPSHOT_TICKS) {
            self.offer_snapshots_again();
        }
        let given_up = self.reads.tick(self.now);
        self.events.extend(given_up.into_iter().map(Event::ReadDropped));
        self.note_leadership();
        if self.now.is_multiple_of(PLACE_TICKS) {
            self.approach_target();
        }
    }

    /// Says where the group is to be kept: its leader goes there, one step after the other. Forgotten when another one leads,
    /// which must hear of it anew: it may know better.
    pub(crate) fn place(&mut self, term: u64, target: Target) {
        if self.leading == Some(term) {
            self.target = Some(target);
        }
    }

    fn approach_target(&mut self) {
        let Some(target) = self.target.as_ref().filter(|_| self.is_ready && !self.raw.raft.has_pending_conf()) else {
            return;
        };
        let me = self.config.node;
        let peer = |node: NodeId| transition::Peer { is_ready: self.has_heard(node) && self.has_caught_up(node) };
        let may_hand_over = |pause: u64| self.handed_over.is_none_or(|at| self.now - at >= pause);
        if let Some(heir) =
            transition::heir(me, &self.configuration, &target.placement, target.leader, &target.drained, peer)
        {
            if may_hand_over(GIVE_WAY_TICKS) {
                self.hand_over(heir);
            }
            return;
        }
        let preferred = target.leader.filter(|_| self.now - self.leads_since >= OFFICE_TICKS_MIN);
        let step = transition::next(me, &self.configuration, &target.placement, preferred, peer);
        match step {
            // Refused while another change or an election is under way; the next look finds out.
            Some(Transition::Change(changes)) => drop(self.propose_change(&changes)),
            Some(Transition::HandOver(to)) if may_hand_over(HAND_OVER_TICKS) => self.hand_over(to),
            Some(Transition::HandOver(_)) | None => {}
        }
    }

    fn hand_over(&mut self, to: NodeId) {
        self.handed_over = Some(self.now);
        self.raw.transfer_leader(to.0);
    }

    /// Its receiver, or the news of it, may be gone.
    fn offer_snapshots_again(&mut self) {
        let in_doubt =
            |(&node, progress): (&u64, &raft::Progress)| (progress.state == ProgressState::Snapshot).then_some(node);
        let mut nodes: Vec<_> = self.raw.raft.prs().iter().filter_map(in_doubt).collect();
        nodes.sort_unstable();
        nodes.into_iter().for_each(|node| self.raw.report_snapshot(node, SnapshotStatus::Failure));
    }

    /// Takes a message from a peer.
    pub(crate) fn step(&mut self, from: NodeId, bytes: Bytes) -> Result<(), MessageError> {
        let raft_log = &self.raw.raft.raft_log;
        let known = Known {
            me: self.config.node,
            term: self.raw.raft.term,
            leads: self.leading.is_some(),
            committed: raft_log.committed,
            last: raft_log.last_index(),
            forgets: self.config.forgets,
            term_of: &|index| (index >= raft_log.first_index()).then(|| raft_log.term(index).ok()).flatten(),
        };
        let mut message = message::decode(from, bytes, &known)?;
        if let Some(forgetful) = &mut self.forgetful {
            let answer = forgetful.amend(&mut self.raw, &mut message);
            self.raw.raft.msgs.extend(answer);
        }
        if let Some(offered) = self.offered_snapshot(&message) {
            if self.fetching.is_none() && offered.configuration.contains(self.config.node) {
                self.fetching = Some((from, offered.clone()));
                self.events.push(Event::Fetch(from, offered));
            }
            return Ok(());
        }
        // raft-rs would pass it on under the asker's name. The asker tries again, and knows better by then.
        if message.get_msg_type() == MessageType::MsgReadIndex && self.leading.is_none() {
            return Ok(());
        }
        let (base, refused) = (self.raw.store().base(), self.refused_snapshot(&message));
        // Refused are only messages of nodes that are no members any more.
        let _ = self.raw.step(message);
        self.note_leadership();
        if self.leading.is_some()
            && let Some(progress) = self.raw.raft.mut_prs().get_mut(from.0)
        {
            self.heard.insert(from, self.now);
            if refused {
                self.marks.failed(from);
            }
            // raft-rs waits for the snapshot that was offered last. If it was offered again meanwhile, that is not the one which was
            // fetched; and what lies behind that one is still here.
            if progress.state == ProgressState::Snapshot && progress.matched >= base {
                progress.snapshot_failure();
                progress.become_probe();
            }
        }
        Ok(())
    }

    /// Whether a peer says that it does not fetch what it was offered, as [`Self::fetch_failed`] has it.
    fn refused_snapshot(&self, message: &Message) -> bool {
        let is_refusal = message.get_msg_type() == MessageType::MsgAppendResponse && message.reject;
        is_refusal && message.term == self.raw.raft.term && message.context[..] == *FETCH_FAILED
    }

    /// A snapshot that must be fetched before Raft can go on from it.
    fn offered_snapshot(&self, message: &Message) -> Option<CheckpointBase> {
        let snapshot = message.snapshot.as_ref().filter(|_| message.get_msg_type() == MessageType::MsgSnapshot)?;
        let metadata = snapshot.get_metadata();
        let raft_log = &self.raw.raft.raft_log;
        let is_known = metadata.index <= raft_log.committed || raft_log.match_term(metadata.index, metadata.term);
        if message.term < self.raw.raft.term || is_known {
            return None;
        }
        let applied = LogId { index: metadata.index, term: metadata.term };
        Some(CheckpointBase { applied, configuration: message::configuration_of(snapshot)? })
    }

    fn note_leadership(&mut self) {
        let leading = (self.raw.raft.state == StateRole::Leader).then_some(self.raw.raft.term);
        if leading != self.leading {
            self.leading = leading;
            self.leads_since = self.now;
            self.heard.clear();
            self.marks.clear();
            self.is_ready = false;
            self.target = None;
            let dropped = self.proposals.give_up();
            self.events.extend(dropped.map(Event::QueryDropped));
        }
    }

    /// Whether this node, which leads, heard of another within an election timeout.
    fn has_heard(&self, node: NodeId) -> bool {
        let is_recent = |at: &u64| self.now - at <= u64::from(self.config.election_ticks);
        node == self.config.node || self.heard.get(&node).is_some_and(is_recent)
    }

    fn check_leads(&self) -> Result<(), NotLeader> {
        match self.leading {
            Some(_) => Ok(()),
            None => Err(NotLeader { leader: self.leader() }),
        }
    }

    /// The term in which this node leads.
    pub(crate) fn leads_in(&self) -> Option<u64> {
        self.leading
    }

    fn leader(&self) -> Option<NodeId> {
        Some(NodeId(self.raw.raft.leader_id)).filter(|leader| leader.0 != raft::INVALID_ID)
    }

    /// Adds a command to the next entry.
    pub(crate) fn propose(&mut self, command: &[u8]) -> Result<(), NotLeader> {
        self.check_leads()?;
        self.proposals.push(command);
        if self.id == GroupId::DIRECTORY {
            // The index of its entry becomes the name of an incarnation.
            self.proposals.close();
        }
        Ok(())
    }

    /// Asks to be told when everything proposed before was handed out, and nothing proposed after.
    pub(crate) fn query(&mut self, token: u64) -> Result<(), NotLeader> {
        self.check_leads()?;
        self.proposals.query(token);
        Ok(())
    }

    /// Asks to be told when everything was handed out that was committed anywhere before now.
    pub(crate) fn read_index(&mut self, token: u64) {
        self.reads.add(token, self.now);
    }

    pub(crate) fn propose_change(&mut self, changes: &[Change]) -> Result<(), ProposeChangeError> {
        self.check_leads()?;
        for change in changes {
            match *change {
                Change::AddVoter(node) if !self.has_caught_up(node) => {
                    return Err(ProposeChangeError::NotCaughtUp(node));
                }
                Change::AddLearner(node) | Change::Remove(node) if node == self.config.node => {
                    return Err(ProposeChangeError::OwnVote);
                }
                _ => {}
            }
        }
        if self.raw.raft.has_pending_conf() {
            return Err(ProposeChangeError::Busy);
        }
        self.raw.propose_conf_change(Vec::new(), conf_change(changes)).map_err(|_| ProposeChangeError::Busy)
    }

    fn has_caught_up(&self, node: NodeId) -> bool {
        #[cfg(test)]
        if self.config.planted == Some(PlantedBug::PromoteEarly) {
            return true;
        }
        // 0: it has not even a snapshot, however young the group is.
        let caught_up = |progress: &raft::Progress| {
            progress.matched > 0 && progress.matched + LEARNER_LAG_MAX >= self.raw.raft.raft_log.committed
        };
        self.raw.raft.prs().get(node.0).is_some_and(caught_up)
    }

    /// Hands over at once, unless the group would then stand for want of somebody who has everything.
    pub(crate) fn transfer_leader(&mut self, to: NodeId) -> Result<(), HandOverError> {
        self.check_leads()?;
        if to == self.config.node {
            return Ok(());
        }
        let progress = self.raw.raft.prs().get(to.0).filter(|_| self.configuration.votes(to));
        let Some(progress) = progress else { return Err(HandOverError::NoVoter(to)) };
        if !self.has_heard(to) {
            return Err(HandOverError::Silent(to));
        }
        if !self.has_caught_up(to) {
            let entries = self.raw.raft.raft_log.committed.saturating_sub(progress.matched);
            return Err(HandOverError::Behind { node: to, entries });
        }
        if self.raw.raft.has_pending_conf() || self.raw.raft.lead_transferee.is_some() {
            return Err(HandOverError::Busy);
        }
        self.hand_over(to);
        Ok(())
    }

    pub(crate) fn report_unreachable(&mut self, node: NodeId) {
        self.raw.report_unreachable(node.0);
    }

    pub(crate) fn report_snapshot(&mut self, node: NodeId, delivered: bool) {
        if !delivered {
            self.marks.failed(node);
        }
        self.raw.report_snapshot(node.0, if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// A checkpoint of what was handed out here was completed.
    pub(crate) fn checkpointed(&mut self, checkpoint: CheckpointBase) {
        if checkpoint.applied.index > self.checkpoint().applied.index {
            self.raw.mut_store().set_checkpoint(checkpoint);
        }
    }

    /// Drops what of the log neither this node needs, nor another one that it can help.
    pub(crate) fn release(&mut self) -> Kept {
        let needed = self.first_needed();
        let keeping = self.config.keeping;
        let store = self.raw.mut_store();
        store.drop_to(needed.map_or(u64::MAX, |mark| mark.index), keeping.usual);
        store.drop_to(u64::MAX, keeping.group);
        let age = needed.map_or(0, |mark| self.now - mark.since);
        Kept { bytes: store.bytes_beyond(keeping.usual), age }
    }

    /// Drops so many bytes of what others need, if there are as many. Returns what is kept less then.
    pub(crate) fn release_bytes(&mut self, bytes: usize) -> usize {
        let usual = self.config.keeping.usual;
        let store = self.raw.mut_store();
        let (before, rest) = (store.bytes_beyond(usual), store.bytes().saturating_sub(bytes));
        store.drop_to(u64::MAX, rest.max(usual));
        before - store.bytes_beyond(usual)
    }

    fn first_needed(&mut self) -> Option<Mark> {
        self.leading?;
        let (now, store) = (self.now, self.raw.store());
        let is_heard = |node: &NodeId| self.heard.get(node).is_some_and(|at| now - at <= KEPT_TICKS);
        let others = self.raw.raft.prs().iter().map(|(&node, progress)| (NodeId(node), progress.matched));
        let others = others.filter(|(node, _)| is_heard(node));
        self.marks.first(others, store.base(), store.checkpoint().applied.index, now)
    }

    pub(crate) fn checkpoint(&self) -> &CheckpointBase {
        self.raw.store().checkpoint()
    }

    /// What the log has behind the checkpoint, if the checkpoint has everything that was handed out: none can have more before
    /// more is known to be committed, and that may never be. Who left the group is told nothing of what came behind that.
    pub(crate) fn stuck(&self) -> Option<Carried> {
        let base = self.checkpoint().applied;
        (base == self.handed_out && self.raw.store().last() > base.index)
            .then(|| Carried { base, entries: self.raw.store().behind(base.index) })
    }

    /// The fetch of a snapshot came to nothing.
    pub(crate) fn fetch_failed(&mut self) {
        let Some((source, offered)) = self.fetching.take() else {
            return;
        };
        if self.raw.raft.leader_id != source.0 {
            return;
        }
        if offered.applied.index <= self.raw.raft.raft_log.committed {
            return self.say_how_far(source);
        }
        // Who leads keeps the log for this node behind what it offered. To raft-rs it is a refusal that comes too late.
        let refusal = Message {
            reject: true,
            index: offered.applied.index,
            reject_hint: self.raw.raft.raft_log.last_index(),
            context: Bytes::from_static(FETCH_FAILED),
            ..self.answer_to(source)
        };
        self.raw.raft.msgs.push(refusal);
    }

    /// A snapshot is this node's checkpoint now: the group goes on from there, as if it had been restarted upon it.
    pub(crate) fn installed(&mut self, checkpoint: CheckpointBase, log: &mut Log) -> raft::Result<()> {
        let source = self.fetching.take().map(|(from, _)| from);
        if checkpoint.applied.index <= self.handed_out.index {
            self.checkpointed(checkpoint);
            return Ok(());
        }
        let kept = self.raw.store().behind_snapshot(&checkpoint);
        let is_in_log = kept.is_some();
        let hard = self.raw.raft.hard_state();
        let hard = log::HardState { term: hard.term, vote: hard.vote, commit: hard.commit };
        let group_log = GroupLog { base: checkpoint.applied, entries: kept.unwrap_or_default(), hard };
        let storage = GroupStorage::new(checkpoint.clone(), &group_log);
        if is_in_log {
            // What lies behind it was synced and acknowledged. Written again behind a base, it would be gone from the base on
            // wherever a power cut tears that write; and the log needs no base to go on from a checkpoint that it goes through.
            log.add_hard_state(self.id, storage.hard());
        } else {
            write_anew(log, self.id, &group_log, storage.hard());
        }
        self.written = storage.hard();
        self.raw = raw_node(self.id, &self.config, storage, checkpoint.applied.index)?;
        self.configuration = checkpoint.configuration;
        self.handed_out = checkpoint.applied;
        // What lies behind it is committed anew.
        self.held.clear();
        self.note_leadership();
        if let Some(source) = source {
            self.say_how_far(source);
        }
        Ok(())
    }

    /// The leader sends nothing until it hears that the snapshot arrived. Leaves after the sync, like all of a follower.
    fn say_how_far(&mut self, leader: NodeId) {
        let answer = self.answer_to(leader);
        self.raw.raft.msgs.push(Message { index: answer.commit, ..answer });
    }

    fn answer_to(&self, leader: NodeId) -> Message {
        let raft = &self.raw.raft;
        Message {
            msg_type: MessageType::MsgAppendResponse as i32,
            to: leader.0,
            from: raft.id,
            term: raft.term,
            commit: raft.raft_log.committed,
            ..Message::default()
        }
    }

    // A round.

    /// Whether [`Self::begin_round`] would do anything.
    pub(crate) fn is_busy(&self) -> bool {
        !self.events.is_empty() || !self.held.is_empty() || self.raw.has_ready()
    }

    /// Sends what may leave before the sync, hands out what is committed, and adds what must be synced to the log. What it
    /// returns goes to [`Self::finish_round`] once that is done; in between the group must be left alone.
    pub(crate) fn begin_round(&mut self, log: &mut Log, sink: &mut dyn Sink) -> Option<Ready> {
        self.propose_packs();
        self.ask_for_reads();
        self.report_events(sink);
        self.report_role(sink);
        self.release_queries(sink);
        if !self.raw.has_ready() && self.held.is_empty() {
            self.release_reads(sink);
            return None;
        }
        let mut ready = self.raw.ready();
        self.send(ready.take_messages(), sink);
        let committed = ready.take_committed_entries();
        self.hand_out(committed, sink);
        for read in ready.take_read_states() {
            self.reads.answered(read.index, &read.request_ctx);
        }
        self.release_reads(sink);
        self.write(&mut ready, log);
        Some(ready)
    }

    fn propose_packs(&mut self) {
        self.proposals.close();
        while let Some(pack) = self.proposals.packs.pop_front() {
            let entry = Entry { data: pack.clone(), ..Entry::default() };
            let message = Message {
                msg_type: MessageType::MsgPropose as i32,
                from: self.config.node.0,
                entries: vec![entry],
                ..Message::default()
            };
            // Too much is uncommitted, or leadership is being handed over: it waits here.
            if self.raw.raft.step(message).is_err() {
                self.proposals.packs.push_front(pack);
                break;
            }
            self.proposals.in_log(self.raw.raft.raft_log.last_index());
        }
    }

    fn ask_for_reads(&mut self) {
        #[cfg(test)]
        if self.config.planted == Some(PlantedBug::ReadWithoutQuorum) && self.leading.is_some() {
            if let Some(context) = self.reads.ask(self.now) {
                self.reads.answered(self.raw.raft.raft_log.committed, &context);
            }
            return;
        }
        let may_be_answered = match self.leading {
            Some(_) => self.raw.raft.commit_to_current_term(),
            None => self.leader().is_some(),
        };
        if may_be_answered && let Some(context) = self.reads.ask(self.now) {
            self.raw.read_index(context);
        }
    }

    fn report_events(&mut self, sink: &mut dyn Sink) {
        for event in self.events.drain(..) {
            match event {
                Event::QueryDropped(token) => sink.query_dropped(self.id, token),
                Event::ReadDropped(token) => sink.read_dropped(self.id, token),
                Event::Fetch(from, checkpoint) => sink.fetch_snapshot(self.id, from, &checkpoint),
            }
        }
    }

    fn role(&self) -> Role {
        match self.leading {
            Some(_) => Role::Leader { ready: self.is_ready },
            None => Role::Follower { leader: self.leader() },
        }
    }

    fn report_role(&mut self, sink: &mut dyn Sink) {
        let now = (self.raw.raft.term, self.role());
        if self.reported != Some(now) {
            self.reported = Some(now);
            sink.role(self.id, now.0, now.1);
        }
    }

    fn send(&mut self, messages: Vec<Message>, sink: &mut dyn Sink) {
        for message in messages {
            if let Some(snapshot) = &message.snapshot
                && message.get_msg_type() == MessageType::MsgSnapshot
            {
                let matched = self.raw.raft.prs().get(message.to).map_or(0, |progress| progress.matched);
                self.marks.offered(NodeId(message.to), snapshot.get_metadata().index, matched, self.now);
            }
            // `batch_append` of raft-rs 0.7 adds entries to an append without any that is still waiting, though a rejection
            // has moved the next index back since: its receiver would acknowledge entries that it never got. Lost
            // messages are sent again, rightly.
            let is_append = message.get_msg_type() == MessageType::MsgAppend;
            if is_append && !message::entries_follow(&message) {
                continue;
            }
            let carries_entries = is_append && !message.entries.is_empty();
            // It also makes one message of all that may be under way to a follower, which may be more than a frame holds.
            let mut next = Some(message);
            while let Some(mut message) = next {
                next = message::cut(&mut message, MESSAGE_BYTES_MAX);
                sink.send(NodeId(message.to), self.id, message::encode(&message), carries_entries);
            }
        }
    }

    fn write(&mut self, ready: &mut Ready, log: &mut Log) {
        let must_sync = ready.must_sync();
        for entry in ready.entries() {
            log.add_entry(self.id, LogId { index: entry.index, term: entry.term }, kind_of(entry), &entry.data);
        }
        let storage = self.raw.mut_store();
        storage.append(ready.take_entries());
        if let Some(hard) = ready.hs() {
            storage.set_hard(hard.clone());
        }
        // A commit index alone is worth no sync, since it is found again; unless members change by it.
        if (must_sync || !self.held.is_empty()) && storage.hard() != self.written {
            let (before, hard) = (self.written, storage.hard());
            self.has_voted = (before.term, before.vote) != (hard.term, hard.vote);
            self.written = hard;
            log.add_hard_state(self.id, self.written);
        }
    }

    /// Whether what this round writes must be safe before anything is sent, whatever else may be lost. Says so once.
    pub(crate) fn take_voted(&mut self) -> bool {
        std::mem::take(&mut self.has_voted)
    }

    /// What the round added to the log is safe: sends the rest, and hands out what that committed.
    pub(crate) fn finish_round(&mut self, mut ready: Ready, sink: &mut dyn Sink) {
        self.safe_commit = self.written.commit;
        self.send(ready.take_persisted_messages(), sink);
        let mut light = self.raw.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().set_commit(commit);
        }
        self.send(light.take_messages(), sink);
        self.hand_out(light.take_committed_entries(), sink);
        #[cfg(test)]
        self.hand_out_uncommitted(sink);
        let applied = self.handed_out.index.min(self.raw.raft.raft_log.committed);
        self.raw.advance_apply_to(applied);
        if self.is_alone() {
            self.raw.mut_store().forget_to(applied);
        }
    }

    /// A change of members takes effect here only once this node cannot forget that it is committed. raft-rs counts with
    /// the members of the last change that is *known* to be committed: a process that has the end of a joint step in its
    /// log, and does not know, needs a majority of those that left to find it again, and they may be gone by then.
    fn may_hand_out(&self, entry: &Entry) -> bool {
        kind_of(entry) == EntryKind::Commands || entry.index <= self.safe_commit
    }

    fn hand_out(&mut self, entries: Vec<Entry>, sink: &mut dyn Sink) {
        self.held.extend(entries);
        while let Some(entry) = self.held.pop_front() {
            if !self.may_hand_out(&entry) {
                self.held.push_front(entry);
                break;
            }
            let id = LogId { index: entry.index, term: entry.term };
            #[cfg(test)]
            if id.index <= self.handed_out.index {
                continue;
            }
            debug_assert_eq!(id.index, self.handed_out.index + 1, "entries are handed out one after the other");
            let committed = match kind_of(&entry) {
                EntryKind::Commands if entry.data.is_empty() => Committed::Empty,
                EntryKind::Commands => Committed::Commands(unpack(entry.data).collect()),
                EntryKind::ConfChange | EntryKind::ConfChangeV2 => {
                    self.change_configuration(&entry);
                    Committed::Configuration(self.configuration.clone())
                }
            };
            sink.committed(self.id, id, committed);
            self.handed_out = id;
            self.proposals.was_handed_out(id.index);
            if self.leading == Some(id.term) && !self.is_ready {
                self.is_ready = true;
                self.report_role(sink);
            }
            self.release_queries(sink);
        }
        self.release_reads(sink);
    }

    #[cfg(test)]
    fn hand_out_uncommitted(&mut self, sink: &mut dyn Sink) {
        if self.config.planted == Some(PlantedBug::HandOutBeforeCommit) && self.is_ready {
            let from = self.handed_out.index + 1;
            let context = raft::GetEntriesContext::empty(false);
            let entries = self.raw.raft.raft_log.entries(from, None, context).unwrap_or_default();
            self.hand_out(entries, sink);
        }
    }

    /// One that cannot be read, or is against the rules, changes nothing: on every replica alike.
    fn change_configuration(&mut self, entry: &Entry) {
        let changed = match kind_of(entry) {
            EntryKind::ConfChange => {
                ConfChange::decode(entry.data.clone()).ok().and_then(|change| self.raw.apply_conf_change(&change).ok())
            }
            _ => ConfChangeV2::decode(entry.data.clone())
                .ok()
                .and_then(|change| self.raw.apply_conf_change(&change).ok()),
        };
        match changed {
            Some(state) => self.configuration = Configuration::from(&state),
            None => {
                tracing::error!(group = %self.id, index = entry.index, "a change of members against the rules is ignored")
            }
        }
        if self.leading.is_some() && !self.configuration.votes(self.config.node) {
            self.step_down();
        }
        // The others count with the members before until they know that this is committed, and may need votes of nodes that
        // are dispensable here: the next heartbeat is not soon enough.
        self.raw.ping();
    }

    /// A leader that lost its vote: raft-rs 0.7 leaves it in office, and fails over its missing progress.
    fn step_down(&mut self) {
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.raw.raft.msgs.clear();
        self.note_leadership();
    }

    fn release_queries(&mut self, sink: &mut dyn Sink) {
        while self.is_ready
            && let Some(token) = self.proposals.next_query()
        {
            sink.query(self.id, token);
        }
    }

    fn release_reads(&mut self, sink: &mut dyn Sink) {
        for (token, index) in self.reads.take_ready(self.handed_out.index) {
            sink.read_ready(self.id, token, index);
        }
    }

    #[cfg(test)]
    pub(crate) fn entries(&self) -> std::collections::BTreeMap<u64, (u64, u64)> {
        let entries = self.raw.raft.raft_log.all_entries();
        let digest = |entry: &Entry| (entry.term, u64::from(crc32fast::hash(&entry.data)));
        entries.iter().map(|entry| (entry.index, digest(entry))).collect()
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.raw.store().bytes_beyond(self.config.keeping.usual)
    }

    /// Whether this node is the only member.
    pub(crate) fn is_alone(&self) -> bool {
        self.configuration.is_only(self.config.node)
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let raft = &self.raw.raft;
        let mut peers = Vec::new();
        if self.leading.is_some() {
            peers.extend(raft.prs().iter().map(|(&node, progress)| PeerStatus {
                node: NodeId(node),
                matched: progress.matched,
                active: self.has_heard(NodeId(node)),
            }));
            peers.sort_unstable_by_key(|peer| peer.node);
        }
        GroupStatus {
            term: raft.term,
            role: self.role(),
            committed: raft.raft_log.committed,
            handed_out: self.handed_out,
            last: raft.raft_log.last_index(),
            configuration: self.configuration.clone(),
            peers,
        }
    }
}

/// Adds to the round that a group's log is this, whatever it was. A power cut may leave a beginning of that: it is not for entries
/// that anybody counts on already.
pub(crate) fn write_anew(log: &mut Log, id: GroupId, group: &GroupLog, hard: log::HardState) {
    log.add_base(id, group.base);
    for entry in &group.entries {
        log.add_entry(id, entry.id, entry.kind, &entry.payload);
    }
    log.add_hard_state(id, hard);
}

fn raw_node(
    id: GroupId,
    config: &GroupConfig,
    storage: GroupStorage,
    applied: u64,
) -> raft::Result<RawNode<GroupStorage>> {
    let election_tick = config.election_ticks as usize;
    let config = Config {
        id: config.node.0,
        election_tick,
        // As late as it may be: `Group::tick` says when.
        heartbeat_tick: election_tick - 1,
        min_election_tick: election_tick,
        max_election_tick: 2 * election_tick,
        applied,
        pre_vote: true,
        check_quorum: true,
        batch_append: true,
        // A follower learns what is committed with the next entry or heartbeat. Only the directory is waited for at
        // followers; elsewhere a message that says no more would wake two nodes for every round.
        skip_bcast_commit: id != GroupId::DIRECTORY,
        read_only_option: ReadOnlyOption::Safe,
        max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
        max_size_per_msg: MESSAGE_BYTES_MAX as u64,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: COMMITTED_BYTES_MAX,
        ..Config::default()
    };
    RawNode::new(&config, storage, &slog::Logger::root(ToTracing(id), slog::o!()))
}

/// What `raft-rs` has to say goes where everything else does.
struct ToTracing(GroupId);

impl slog::Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let group = self.0;
        match record.level() {
            slog::Level::Critical | slog::Level::Error => tracing::error!(%group, "raft: {}", record.msg()),
            slog::Level::Warning => tracing::warn!(%group, "raft: {}", record.msg()),
            slog::Level::Info => tracing::debug!(%group, "raft: {}", record.msg()),
            slog::Level::Debug | slog::Level::Trace => {}
        }
        Ok(())
    }
}
