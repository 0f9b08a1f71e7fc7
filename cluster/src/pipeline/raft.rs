//! The raft thread: everything that gathered becomes one round.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::apply::CHECKPOINT_RESERVE_SHARE;
use super::bell::Ringing;
use super::stats::{self, CommitWatch};
use super::{
    FetchedChunks, FetchedState, Item, Opening, Peers, PipelineConfig, Prepare, Round, Stats, Submission, give_up,
};
use crate::disk::SyncSite;
use crate::group::{COMMAND_BYTES_MAX, CheckpointBase, Committed, MessageError, Role};
use crate::identity::{GroupId, NodeId};
use crate::log::is_full;
use crate::node::{Node, Sink};
use crate::state::{Spool, Spooler};

/// Bytes of one round: bounds the time that its first command waits for the others.
pub(super) const ROUND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// From the beginning of one round with peers to that of the next. A round wakes threads on three nodes and syncs three
/// disks, whatever is in it; one that comes after a pause waits for nothing.
pub(super) const ROUND_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How often the groups hear that time passes.
pub(super) const RAFT_TICK: Duration = Duration::from_millis(50);

/// How often free space is looked at, and said how the groups are.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What rounds come to: gathered for the apply thread, or sent.
pub(super) struct Outcome<Q, P> {
    pub(super) round: Round<Q>,
    pub(super) peers: P,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) stats: Arc<Stats>,
    /// This node.
    pub(super) own: NodeId,
    /// For snapshots that come later.
    pub(super) submissions: Ringing<Submission<Q>>,
    /// What the state machine makes of them, before they come here.
    pub(super) prepare: Prepare,
    pub(super) spooler: Spooler,
    /// Bytes proposed in this leadership and not handed out, by group.
    pub(super) outstanding: BTreeMap<GroupId, usize>,
    /// Of some of what is outstanding, since when.
    pub(super) commits: CommitWatch,
    /// Whom each group was last seen to be led by.
    pub(super) leaders: BTreeMap<GroupId, NodeId>,
    /// Groups of which [`Item::Lead`] was said.
    pub(super) leading: BTreeSet<GroupId>,
    pub(super) queries: BTreeMap<u64, Q>,
    /// Those of them that a majority must confirm, once what was proposed before them is committed.
    pub(super) reads: BTreeSet<u64>,
    /// Those whose turn that is now.
    pub(super) reads_due: Vec<(GroupId, u64)>,
}

impl<Q: Send + 'static, P: Peers> Sink for Outcome<Q, P> {
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes, carries_entries: bool) {
        self.peers.send(to, group, message, carries_entries);
    }

    fn flush(&mut self) {
        self.peers.flush();
    }

    fn committed(&mut self, group: GroupId, id: crate::log::LogId, what: Committed) {
        let item = match what {
            Committed::Empty => Item::Empty(group, id),
            Committed::Configuration(configuration) => Item::Configuration(group, id, configuration),
            Committed::Commands(commands) => {
                let live = self.leading.contains(&group);
                if live {
                    self.stats.commands.fetch_add(commands.len() as u64, Ordering::Relaxed);
                    self.settle(group, commands.iter().map(Bytes::len).sum());
                }
                Item::Commands { group, id, commands, live }
            }
        };
        self.round.items.push(item);
    }

    fn role(&mut self, group: GroupId, term: u64, role: Role) {
        if role == (Role::Leader { ready: true }) {
            self.leading.insert(group);
            self.led_by(group, self.own);
            stats::count(&self.stats, group, |counts| &counts.elections_won);
            return self.round.items.push(Item::Lead(group, term));
        }
        self.leading.remove(&group);
        // What was proposed under an earlier term may be lost: nobody waits for it here any more.
        let lost = self.outstanding.remove(&group).unwrap_or(0);
        self.in_flight.fetch_sub(lost, Ordering::Relaxed);
        self.commits.lost(group);
        if let Role::Follower { leader } = role {
            leader.into_iter().for_each(|leader| self.led_by(group, leader));
            self.round.items.push(Item::Follow(group, term, leader));
        }
    }

    fn query(&mut self, group: GroupId, token: u64) {
        if self.reads.remove(&token) {
            return self.reads_due.push((group, token));
        }
        self.round.items.extend(self.queries.remove(&token).map(Item::Query));
    }

    fn query_dropped(&mut self, _: GroupId, token: u64) {
        self.reads.remove(&token);
        self.round.items.extend(self.queries.remove(&token).map(Item::Refuse));
    }

    fn read_ready(&mut self, _: GroupId, token: u64, _: u64) {
        self.round.items.extend(self.queries.remove(&token).map(Item::Query));
    }

    fn read_dropped(&mut self, _: GroupId, token: u64) {
        self.round.items.extend(self.queries.remove(&token).map(Item::Refuse));
    }

    fn fetch_snapshot(&mut self, group: GroupId, from: NodeId, _: &CheckpointBase) {
        // Before anybody waits for it: it would take the turn of others.
        if let Err(error) = self.spooler.expects_room(group) {
            tracing::debug!(%group, %from, %error, "a snapshot is not fetched yet");
            return drop(self.submissions.send(Submission::Fetched(group, None)));
        }
        let (submissions, prepare) = (self.submissions.clone(), Arc::clone(&self.prepare));
        let spooler = self.spooler.clone();
        let done = move |chunks: Option<FetchedChunks<'_>>| {
            let fetched = chunks.and_then(|chunks| match spooler.take_in(group, chunks) {
                Ok(spool) => {
                    let spool = Arc::new(spool);
                    let prepared = prepare(group, &spool);
                    Some(FetchedState { spool, prepared })
                }
                Err(error) => {
                    tracing::warn!(%group, %from, %error, "a snapshot could not be fetched; it is tried again");
                    None
                }
            });
            drop(submissions.send(Submission::Fetched(group, fetched)));
        };
        self.peers.fetch_snapshot(from, group, Box::new(done));
    }
}

impl<Q, P> Outcome<Q, P> {
    /// Bytes that are in flight until the apply thread is done with the round.
    fn settle(&mut self, group: GroupId, bytes: usize) {
        let outstanding = self.outstanding.entry(group).or_default();
        let settled = bytes.min(*outstanding);
        *outstanding -= settled;
        self.round.bytes += settled;
        self.commits.committed(group, settled);
    }

    fn led_by(&mut self, group: GroupId, leader: NodeId) {
        if self.leaders.insert(group, leader).is_some_and(|before| before != leader) {
            stats::count(&self.stats, group, |counts| &counts.leader_changes);
        }
    }
}

/// How often it is said that messages, or commands, are refused.
const REFUSED_INTERVAL: Duration = Duration::from_secs(10);

/// Messages, or commands, that were refused.
#[derive(Debug, Default)]
pub(super) struct Refused {
    said: Option<Duration>,
    not_said: u64,
}

impl Refused {
    /// Counts one. If it is to be said: how many before it were not.
    fn is_to_be_said(&mut self, now: Duration) -> Option<u64> {
        if self.said.is_some_and(|said| now.saturating_sub(said) < REFUSED_INTERVAL) {
            self.not_said += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.not_said))
    }
}

pub(super) struct RaftThread<Q, P> {
    pub(super) node: Node,
    pub(super) outcome: Outcome<Q, P>,
    pub(super) config: PipelineConfig,
    pub(super) full: Arc<AtomicBool>,
    pub(super) stats: Arc<Stats>,
    pub(super) next_query: u64,
    pub(super) ticked: Duration,
    /// As of [`Self::on_time`].
    pub(super) now: Duration,
    /// When it looked how much space there is, and how the groups are.
    pub(super) looked: Option<Duration>,
    pub(super) unsynced_since: Option<Duration>,
    /// The term of the last [`Opening`] of each group, and its number.
    pub(super) opened: BTreeMap<GroupId, (u64, u64)>,
    pub(super) refused: Refused,
    pub(super) too_long: Refused,
}

impl<Q: Send + 'static, P: Peers> RaftThread<Q, P> {
    /// What is due by time.
    ///
    /// # Errors
    /// The disk failed: the process must end.
    pub(super) fn on_time(&mut self, now: Duration) -> io::Result<()> {
        self.now = now;
        self.look_if_due(now);
        self.sync_if_old(now)?;
        self.tick_if_due(now);
        Ok(())
    }

    /// Bytes that it adds to the round; `None`: the last one.
    pub(super) fn take(&mut self, submission: Submission<Q>) -> Option<usize> {
        match submission {
            Submission::Propose(group, command) => return Some(self.propose(group, &command)),
            Submission::ProposeIn(group, term, command) => {
                if self.node.leads_in(group) == Some(term) {
                    return Some(self.propose(group, &command));
                }
                self.outcome.in_flight.fetch_sub(command.len(), Ordering::Relaxed);
            }
            Submission::ProposeBehind(group, opening, command) => {
                let opened = self.open(group, &opening);
                return Some(opened + command.map_or(0, |command| self.propose(group, &command)));
            }
            Submission::Read(group, query) => {
                self.next_query += 1;
                // Nobody else can lead the group of a node that is alone.
                if !self.node.is_alone(group) {
                    self.outcome.reads.insert(self.next_query);
                }
                self.query(group, query);
            }
            Submission::Query(group, query) => {
                self.next_query += 1;
                self.query(group, query);
            }
            Submission::ReadIndex(group, query) => {
                self.next_query += 1;
                match self.node.read_index(group, self.next_query) {
                    Ok(()) => drop(self.outcome.queries.insert(self.next_query, query)),
                    Err(_) => self.outcome.round.items.push(Item::Refuse(query)),
                }
            }
            Submission::Message(from, group, message) => {
                let bytes = message.len();
                if let Err(error) = self.node.step(from, group, message) {
                    self.on_refused(from, group, &error);
                }
                return Some(bytes);
            }
            Submission::Release(credit) => drop(credit),
            Submission::Unreachable(peer) => self.node.report_unreachable(peer),
            Submission::Connected(peer, process) => self.node.connected(peer, process),
            Submission::Fetched(group, fetched) => {
                // What was handed out meanwhile is worth as much.
                let handed_out = self.node.status(group).map_or(0, |status| status.handed_out.index);
                let fetched = fetched.filter(|fetched| fetched.spool.base().applied.index > handed_out);
                match fetched.filter(|fetched| self.has_room_for(&fetched.spool)) {
                    Some(fetched) => self.outcome.round.items.push(Item::Install(group, fetched)),
                    None => {
                        self.stats.snapshots_failed.fetch_add(1, Ordering::Relaxed);
                        self.node.fetch_failed(group);
                    }
                }
            }
            Submission::Installed(group, base) => {
                if let Err(error) = self.node.installed(group, base) {
                    give_up("taking up a snapshot", &error);
                }
                stats::count(&self.stats, group, |counts| &counts.snapshots);
            }
            Submission::Place(group, term, target) => self.node.place(group, term, target),
            Submission::HandOver(group, to, answer) => {
                // An asker that is gone needs no answer.
                let _ = answer.send(self.node.transfer_leader(group, to));
            }
            Submission::Status(answer) => {
                let statuses = self.node.groups().map(|group| (group, self.node.status(group)));
                // An asker that is gone needs no answer.
                let _ = answer.send(statuses.filter_map(|(group, status)| Some((group, status?))).collect());
            }
            Submission::Checkpointed(checkpoints) => self.checkpointed(checkpoints),
            Submission::Stop => return None,
        }
        Some(0)
    }

    /// A message was not taken. Who sends one like it sends more, several a second to each group.
    fn on_refused(&mut self, from: NodeId, group: GroupId, error: &MessageError) {
        if let Some(not_said) = self.refused.is_to_be_said(self.now) {
            tracing::warn!(%error, %group, not_said, "a message of a peer was refused");
        }
        if matches!(error, MessageError::Forgotten { .. }) {
            self.outcome.peers.forgot(from, group);
        }
    }

    /// Proposes an opening, unless that or a newer one was proposed in this term of this node's.
    fn open(&mut self, group: GroupId, opening: &Opening) -> usize {
        let Some(term) = self.node.leads_in(group) else {
            return 0;
        };
        if self.opened.get(&group).is_some_and(|&opened| opened >= (term, opening.number)) {
            return 0;
        }
        self.opened.insert(group, (term, opening.number));
        self.outcome.in_flight.fetch_add(opening.command.len(), Ordering::Relaxed);
        self.propose(group, &opening.command)
    }

    fn propose(&mut self, group: GroupId, command: &[u8]) -> usize {
        let bytes = command.len();
        if bytes > COMMAND_BYTES_MAX {
            self.on_too_long(group, command);
            self.outcome.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        } else if self.node.propose(group, command).is_ok() {
            let outstanding = self.outcome.outstanding.entry(group).or_default();
            *outstanding += bytes;
            self.outcome.commits.submitted(group, *outstanding, self.now);
        } else {
            self.outcome.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        }
        bytes
    }

    /// In a log it would go to nobody, and nothing behind it would be committed, whoever leads. It is a mistake of whoever made it: what
    /// may be as long is said in pieces.
    fn on_too_long(&mut self, group: GroupId, command: &[u8]) {
        self.stats.commands_too_long.fetch_add(1, Ordering::Relaxed);
        if let Some(not_said) = self.too_long.is_to_be_said(self.now) {
            let kind = (self.config.kind_of)(group, command);
            tracing::error!(
                %group,
                kind,
                bytes = command.len(),
                not_said,
                "a command is longer than a frame may be, and was not proposed; this is a mistake of the broker, please report it"
            );
        }
    }

    fn query(&mut self, group: GroupId, query: Q) {
        match self.node.query(group, self.next_query) {
            Ok(()) => drop(self.outcome.queries.insert(self.next_query, query)),
            Err(_) => {
                self.outcome.reads.remove(&self.next_query);
                self.outcome.round.items.push(Item::Refuse(query));
            }
        }
    }

    /// One round. Returns whether there is more to be done; `None`: the disk is full, and nothing but this may be tried
    /// again, for what was accepted is not given up.
    ///
    /// # Errors
    /// The disk failed: the process must end.
    pub(super) fn round(&mut self, now: Duration) -> io::Result<Option<bool>> {
        let round = match self.node.round(&mut self.outcome) {
            Ok(round) => round,
            Err(error) if is_full(&error) => {
                if !self.full.swap(true, Ordering::Relaxed) {
                    tracing::error!("the disk is full: nothing is acknowledged until there is room again");
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if round.wrote && !self.config.sync {
            self.unsynced_since.get_or_insert(now);
        }
        let mut busy = round.busy;
        for (group, token) in std::mem::take(&mut self.outcome.reads_due) {
            busy = true;
            if self.node.read_index(group, token).is_err() {
                self.outcome.read_dropped(group, token);
            }
        }
        Ok(Some(busy))
    }

    /// Whether any group has other members.
    pub(super) fn has_peers(&self) -> bool {
        self.node.groups().any(|group| !self.node.is_alone(group))
    }

    /// What the rounds came to, for the apply thread.
    pub(super) fn take_round(&mut self) -> Option<Round<Q>> {
        let mut round = std::mem::take(&mut self.outcome.round);
        round.log_position = self.node.log().position();
        (!round.items.is_empty()).then_some(round)
    }

    /// Counts what the round came to, which ended at `now`.
    pub(super) fn show(&mut self, now: Duration) {
        let log = self.node.log();
        self.stats.show_syncs(log.syncs());
        self.stats.log_bytes.store(log.bytes(), Ordering::Relaxed);
        if log.is_overlong() {
            self.stats.descriptors_missing.fetch_add(1, Ordering::Relaxed);
        }
        self.outcome.commits.count(&self.stats.commit_times, now);
    }

    fn tick_if_due(&mut self, now: Duration) {
        if now.saturating_sub(self.ticked) >= RAFT_TICK {
            // Ticks missed during a slow sync are not made up for: a leader was not silent, this node was deaf.
            self.ticked = now;
            self.node.tick();
        }
    }

    fn sync_if_old(&mut self, now: Duration) -> io::Result<()> {
        if self.unsynced_since.is_some_and(|since| now.saturating_sub(since) >= LOOK_INTERVAL) {
            self.node.sync(SyncSite::LogBackground)?;
            self.unsynced_since = None;
        }
        Ok(())
    }

    /// What finds no room half way ends the process, and takes the room that its next start needs. It is offered again by and by.
    fn has_room_for(&self, spool: &Spool) -> bool {
        // Its file has its room. The store has them in its journal, and then in its tables.
        let room = self.config.free_bytes_reserve / CHECKPOINT_RESERVE_SHARE + 2 * spool.bytes();
        // A disk that fails says so when it is written to.
        if let Ok(free) = self.node.log().free_bytes()
            && free < room
        {
            let (group, wanted) = (spool.group(), room + spool.bytes());
            tracing::warn!(%group, room, free, "there is no room on disk any more for another node's checkpoint");
            self.outcome.spooler.found_no_room(group, wanted);
            return false;
        }
        let has_descriptors = self.node.log().can_open_more();
        if !has_descriptors {
            tracing::debug!("there is no descriptor for another node's checkpoint");
        }
        has_descriptors
    }

    fn checkpointed(&mut self, checkpoints: Vec<(GroupId, CheckpointBase)>) {
        match self.node.checkpointed(checkpoints) {
            Ok(removed) => {
                self.stats.segments_purged.fetch_add(removed as u64, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(%error, "old segments of the log could not be removed; they only take room"),
        }
    }

    fn look_if_due(&mut self, now: Duration) {
        if self.looked.is_some_and(|at| now.saturating_sub(at) < LOOK_INTERVAL) {
            return;
        }
        self.looked = Some(now);
        let statuses = self.node.groups().filter_map(|group| Some((group, self.node.status(group)?)));
        self.stats.show_groups(self.config.node, statuses);
        if let Ok(free) = self.node.log().free_bytes() {
            self.stats.free_bytes.store(free, Ordering::Relaxed);
            let full = free < self.config.free_bytes_reserve;
            if self.full.swap(full, Ordering::Relaxed) != full {
                let reserve_bytes = self.config.free_bytes_reserve;
                if full {
                    tracing::warn!(
                        free_bytes = free,
                        reserve_bytes,
                        "only the reserve of the disk is left (`storage.free_bytes_reserve`): publishes of QoS 1 and 2 are refused until there is room"
                    );
                } else {
                    tracing::info!(
                        free_bytes = free,
                        reserve_bytes,
                        "the disk has room again: nothing is refused for it any more"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refused_messages_is_said_now_and_then_with_their_number() {
        let mut refused = Refused::default();
        let mut said = |seconds| refused.is_to_be_said(Duration::from_secs(seconds));
        assert_eq!([said(100), said(100), said(109), said(110), said(111)], [Some(0), None, None, Some(2), None]);
    }
}
