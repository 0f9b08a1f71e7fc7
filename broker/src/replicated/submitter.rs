//! The way from the arbiters to the groups: commands to be committed, and questions in their order.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::Sender;
use kentongan_cluster::directory::command::{Ban, MemberRecord};
use kentongan_cluster::interest::LinkId;
use kentongan_cluster::membership::Wish;
use kentongan_cluster::{GroupId, NodeId, Opening, PipelineHandle};

use super::command::{self, Command};
use super::state::{CLOCK_LAG_MS_MAX, GroupState};
use super::{ClaimRequest, InterestChanges, ReadPage, RetainedCursor, Slots};
use crate::clock::Clock;
use crate::connection_key::ConnectionKey;
use crate::peers::status::NodeStatus;
use crate::peers::wire::Resync;
use crate::plants::{Plant, is_planted};
use crate::subscription::NodeNumber;

/// What the thread that applies commands is asked beside them.
#[derive(Debug)]
pub enum Query {
    /// Start-up has handed over what acting on effects needs.
    Begin,
    /// What comes over links is heard from here on, so they may begin.
    Listening,
    /// A CONNECT that must ask who else has its Client Identifier.
    Claim(ClaimRequest),
    /// A connection that was to be taken over is done.
    Released(Arc<str>),
    /// A part of a session's queue was read back.
    QueuePage {
        /// Whose.
        group: u16,
        /// What was read.
        page: Box<ReadPage>,
    },
    /// What the clients of an arbiter want has changed.
    Interest(InterestChanges),
    /// A group is led by another node now, or the link to its leader broke: what was sent there may be lost.
    Led(u16),
    /// What is sent to this node, or by it, in the forward class goes over another link now.
    LinkBroken(NodeId),
    /// The control link from or to a node changed: `None`, nothing comes over it now.
    ControlLink {
        /// Which node.
        node: NodeId,
        /// The same for the same link, and for no other.
        link: Option<LinkId>,
    },
    /// A control message of a node.
    Control {
        /// Which node.
        node: NodeId,
        /// See [`kentongan_cluster::membership::wire`].
        message: Bytes,
    },
    /// A ReadIndex round that membership asked for is complete.
    RoundComplete(u64),
    /// An arbiter has closed the clients of a registration that ended.
    ClientsClosed,
    /// A member says that this node is none any more.
    ToldRemoved(NodeId),
    /// A member names those that there are, some of which this node may not have heard of.
    Members(Vec<MemberRecord>),
    /// A node wants to be a member.
    Admit(MemberRecord, Sender<(Wish, Vec<MemberRecord>)>),
    /// An operator wants a member gone.
    Remove(NodeId, Sender<(Wish, Vec<MemberRecord>)>),
    /// An operator wants a member drained, or wants that to be over.
    Drain(NodeId, bool, Sender<(Wish, Vec<MemberRecord>)>),
    /// An operator wants a node to lead a group, or (`None`) whoever the cluster chooses.
    Prefer(GroupId, Option<NodeId>, Sender<(Wish, Vec<MemberRecord>)>),
    /// An operator wants somebody kept out, or let in again.
    Ban(Ban, Sender<(Wish, Vec<MemberRecord>)>),
    /// An operator asks who is kept out: those behind this one.
    Bans(String, Sender<Vec<Ban>>),
    /// This process is about to end.
    Stops,
    /// Which groups others are to keep and this node is not, by the directory as far as it is known here.
    PlacedElsewhere(Sender<BTreeSet<GroupId>>),
    /// An operator asks how this node is: as much of it as is known to who applies.
    Status(Sender<NodeStatus>),
    /// An operator looks at groups that are kept here.
    Look(Look),
    /// A majority confirms that everything is applied that was committed when this was asked.
    Reached(Sender<()>),
    /// A checkpoint is wanted before it is due.
    WantCheckpoint,
    /// What is in the outboxes stays there for a while, see [`crate::peers::backup`].
    HoldOutboxes {
        /// As long as this is kept.
        token: Weak<()>,
        /// Told, when it does, what this node is registered as.
        answer: Sender<u64>,
    },
    /// A target has what came from an outbox, or lacks what came before it.
    OutboxAnswered {
        /// Whose outbox.
        origin: u16,
        /// Which target.
        target: OutboxTarget,
        /// It has everything up to here.
        number: u64,
        /// It refused a batch of this round.
        gap_in_round: Option<u32>,
    },
    /// What a node has of the sessions that it serves.
    Resync {
        /// Which node.
        node: u64,
        /// What.
        resync: Resync,
        /// Of the connections in these places of the arbiter.
        places: Range<u32>,
    },
    /// A part of the retained messages.
    RetainedPage {
        /// Who asks.
        asker: Asker,
        /// The read's number there.
        number: u64,
        /// Which topics.
        filter: String,
        /// Where to go on.
        cursor: RetainedCursor,
    },
}

/// What an operator sees of a group.
type Looking = Box<dyn FnOnce(Option<&GroupState>) + Send>;

/// A short look at a group, on the thread that applies.
pub struct Look {
    /// Which.
    pub group: u16,
    looking: Looking,
}

impl Look {
    /// To be carried out once, with the group if this node leads it.
    pub fn new(group: u16, looking: impl FnOnce(Option<&GroupState>) + Send + 'static) -> Self {
        Self { group, looking: Box::new(looking) }
    }

    pub(crate) fn carry_out(self, group: Option<&GroupState>) {
        (self.looking)(group);
    }
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Look({})", self.group)
    }
}

/// Where a lane from an outbox leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutboxTarget {
    /// The persistent sessions, or the retained messages, of a group.
    Group(u16),
    /// The transient sessions of another node, by its number in the index.
    Node(NodeNumber),
}

/// A connection anywhere in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// Its node.
    pub node: u64,
    /// The start of that node.
    pub incarnation: u64,
    /// The connection there.
    pub connection: ConnectionKey,
}

/// Hands commands and questions to the groups. From one thread they arrive in the order in which it said them.
#[derive(Debug, Clone)]
pub struct Submitter {
    pipeline: PipelineHandle<Query>,
    slots: Slots,
    clocks: Arc<[GroupClock]>,
    clock: Clock,
}

/// A group's clock as it is known here.
#[derive(Debug, Default)]
struct GroupClock {
    /// Process time of the last tick that was proposed; 0 before the first of a leadership.
    proposed_ms: AtomicU64,
    /// Process time at which a tick was applied last.
    applied_ms: AtomicU64,
    ticks: Mutex<Ticks>,
}

#[derive(Debug, Default)]
struct Ticks {
    /// Since when time counts: the last tick that was applied here, if it was no old one.
    applied: Option<Applied>,
    /// The last ones that were proposed here: the wall time by which each is known, what the group's clock is to say after it, and when.
    proposed: VecDeque<(u64, Applied)>,
    /// Likewise those that are to bridge the time before this process, of which nobody knows before what the clock will say.
    bridging: VecDeque<(u64, u64)>,
    /// The first of those since a tick was applied that counts, and since others said what their wall clocks say, if they did.
    bridges_from: Option<BridgesFrom>,
    /// The last one that was proposed, as it goes ahead of what is proposed until it is applied.
    opening: Option<Opening>,
    /// By how much the wall clock was ahead of the process clock when a tick was proposed here last.
    wall_ahead_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct BridgesFrom {
    wall_ms: u64,
    /// Process time.
    at_ms: u64,
    /// The wall clock is the cluster's, not that of this machine alone.
    is_clusters: bool,
}

#[derive(Debug, Clone, Copy)]
struct Applied {
    /// The group's clock after it.
    clock_ms: u64,
    /// Process time.
    at_ms: u64,
}

/// Ticks that are remembered until they are applied: more than [`TICK_RETRY_MS`] lets be under way where entries take a second. What is
/// forgotten makes the group's clock late, by as long as its entry took.
const PROPOSED_TICKS_MAX: usize = 16;

impl Ticks {
    fn propose(&mut self, wall_ms: u64, tick: Applied) {
        if self.proposed.len() == PROPOSED_TICKS_MAX {
            self.proposed.pop_front();
        }
        self.proposed.push_back((wall_ms, tick));
    }

    /// The wall time by which to bridge the time before this process. As long as an earlier try may be under way, what passes since is
    /// known without the wall clock, which may have been set meanwhile: the second would bridge that as well. But a try that went by this
    /// machine's wall clock alone, as before it has heard of anybody, says nothing once the others have said what theirs say: most tries of
    /// that time are dropped, and it may be an hour ahead.
    fn bridge(&mut self, clock: &Clock, now_ms: u64) -> u64 {
        let now =
            BridgesFrom { wall_ms: clock.cluster_wall_ms(), at_ms: now_ms, is_clusters: clock.knows_cluster_wall() };
        let from = match self.bridges_from {
            Some(from) if from.is_clusters || !now.is_clusters => from,
            _ => *self.bridges_from.insert(now),
        };
        let wall_ms = from.wall_ms + now_ms.saturating_sub(from.at_ms);
        if self.bridging.len() == PROPOSED_TICKS_MAX {
            self.bridging.pop_front();
        }
        self.bridging.push_back((wall_ms, now_ms));
        wall_ms
    }

    /// When a tick was proposed that was applied now, and left the clock at `clock_ms`, if it was proposed here: counted from when it
    /// is applied, the time that each takes would be lost, and groups with much to do expire everything late (P10).
    fn proposed_at_ms(&mut self, tick: &command::Tick, clock_ms: u64) -> Option<u64> {
        if tick.bridge {
            let own = self.bridging.iter().find(|(wall_ms, _)| *wall_ms == tick.wall_ms);
            return own.map(|(_, at_ms)| *at_ms);
        }
        let mut own = self.proposed.iter().filter(|(wall, tick_)| (*wall, tick_.clock_ms) == (tick.wall_ms, clock_ms));
        let at_ms = own.next().map(|(_, tick)| tick.at_ms);
        self.proposed.retain(|(_, tick)| tick.clock_ms > clock_ms);
        at_ms
    }
}

/// A tick that is not applied so long after it was proposed may have been dropped, as whoever does not lead drops proposals.
const TICK_RETRY_MS: u64 = 50;

/// The wall clock was set if it moved by this much against the process clock since a group was told of it. Less is how clocks drift.
const WALL_STEP_MS_MIN: u64 = 2000;

fn ahead_ms(wall_ms: u64, now_ms: u64) -> i64 {
    wall_ms.cast_signed().wrapping_sub(now_ms.cast_signed())
}

/// A tick that says an older time than this is one that the log kept while no replica ran.
const TICK_AGE_MS_MAX: u64 = 5000;

impl Submitter {
    /// To the groups of `slots`, by `pipeline`.
    #[must_use]
    pub fn new(pipeline: PipelineHandle<Query>, slots: Slots, clock: Clock) -> Self {
        Self { pipeline, slots, clocks: (0..slots.groups()).map(|_| GroupClock::default()).collect(), clock }
    }

    fn now_ms(&self) -> u64 {
        // Never 0, which stands for "not yet".
        self.clock.now_ms() + 1
    }

    /// Sees to it that the group knows the time before what is submitted next: its messages expire by that clock. Returns the tick behind
    /// which that is to be submitted, if nobody knows whether the group has it. An idle group hears nothing, so that an idle broker writes
    /// nothing.
    fn tell_time(&self, group: u16) -> Option<Opening> {
        let clock = self.clocks.get(usize::from(group))?;
        let now_ms = self.now_ms();
        // A message that got ahead of the tick would be given its time by a clock that stands, and lose it when that goes on.
        let is_recent = |proposed_ms: u64| {
            let is_applied = clock.applied_ms.load(Ordering::Acquire) >= proposed_ms;
            proposed_ms != 0 && now_ms.saturating_sub(proposed_ms) <= CLOCK_LAG_MS_MAX && is_applied
        };
        if is_recent(clock.proposed_ms.load(Ordering::Acquire)) {
            return None;
        }
        // Of several threads one makes it.
        let mut ticks = clock.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        let proposed_ms = clock.proposed_ms.load(Ordering::Acquire);
        if is_recent(proposed_ms) {
            return None;
        }
        if proposed_ms != 0 && now_ms.saturating_sub(proposed_ms) <= TICK_RETRY_MS {
            return ticks.opening.clone();
        }
        let tick = match ticks.applied {
            Some(Applied { clock_ms, at_ms }) => {
                let (elapsed_ms, wall_ms) = (now_ms.saturating_sub(at_ms), self.clock.cluster_wall_ms());
                ticks.wall_ahead_ms = Some(ahead_ms(wall_ms, now_ms));
                ticks.propose(wall_ms, Applied { clock_ms: clock_ms + elapsed_ms, at_ms: now_ms });
                command::Tick { elapsed_ms, wall_ms, bridge: false, from_ms: Some(clock_ms) }
            }
            // The first one bridges the time that no replica ran, by the wall clock.
            None => {
                let wall_ms = ticks.bridge(&self.clock, now_ms);
                ticks.wall_ahead_ms = Some(ahead_ms(wall_ms, now_ms));
                command::Tick { elapsed_ms: 0, wall_ms, bridge: true, from_ms: None }
            }
        };
        let number = ticks.opening.as_ref().map_or(0, |before| before.number) + 1;
        ticks.opening = Some(Opening { number, command: command::encode(Command::Tick(tick)) });
        clock.proposed_ms.store(now_ms, Ordering::Release);
        ticks.opening.clone()
    }

    /// Tells the group the time, if it is long since it heard of it.
    fn tick(&self, group: u16) {
        if let Some(tick) = self.tell_time(group) {
            self.pipeline.propose_behind(GroupId(group), tick, None);
        }
    }

    /// A tick was applied here, which left the group's clock at `clock_ms`. How old one of another process is its own wall time says, not
    /// the latest that the group has heard of: where the clocks were set back, no tick would ever count as recent, and the group's
    /// clock would stand. One that leaves the clock where it should be by what is known here is recent whatever the wall clocks say; and an
    /// old one, as of the log of a node that was away, does not take away what is known. Of this process's own that is known,
    /// however the wall clock was set meanwhile. Of one that is reread from the log of the process before this one, nobody knows how long
    /// ago it was.
    pub fn ticked(&self, group: u16, clock_ms: u64, tick: command::Tick, is_reread: bool) {
        if let Some(clock) = self.clocks.get(usize::from(group)) {
            let now_ms = self.now_ms();
            clock.applied_ms.store(now_ms, Ordering::Release);
            let mut ticks = clock.ticks.lock().unwrap_or_else(PoisonError::into_inner);
            let own_at_ms = ticks.proposed_at_ms(&tick, clock_ms);
            let known = ticks.applied.filter(|_| !is_reread);
            let is_recent = || {
                let is_of_now = self.clock.cluster_wall_ms().abs_diff(tick.wall_ms) < TICK_AGE_MS_MAX;
                let should_be_ms = known.map(|known| known.clock_ms + now_ms.saturating_sub(known.at_ms));
                is_of_now || should_be_ms.is_some_and(|should_be_ms| should_be_ms < clock_ms + TICK_AGE_MS_MAX)
            };
            let at_ms = match own_at_ms {
                _ if is_reread => None,
                Some(at_ms) => Some(at_ms),
                None => is_recent().then_some(now_ms),
            };
            ticks.applied = at_ms.map(|at_ms| Applied { clock_ms, at_ms }).or(known);
            if at_ms.is_some() {
                ticks.bridges_from = None;
                let ahead_ms = ahead_ms(self.clock.cluster_wall_ms(), now_ms);
                ticks.wall_ahead_ms.get_or_insert(ahead_ms);
            }
        }
    }

    /// What a group's clock says by now, if its last tick left it at `clock_ms`: a group to which nobody says anything hears of no time.
    #[must_use]
    pub fn clock_ms(&self, group: u16, clock_ms: u64) -> u64 {
        let applied = self.clocks.get(usize::from(group)).and_then(|clock| {
            let ticks = clock.ticks.lock().unwrap_or_else(PoisonError::into_inner);
            ticks.applied
        });
        let elapsed_ms = applied.map_or(0, |applied| self.now_ms().saturating_sub(applied.at_ms));
        clock_ms.saturating_add(elapsed_ms)
    }

    /// Tells a group of it, if somebody set the wall clock: by that the next process will know how long no replica ran. Counted from the
    /// time before, all that expires would have done so while it was set, as on a device that learns the time some minutes after its start.
    pub fn tick_if_wall_clock_was_set(&self, group: u16) {
        let Some(clock) = self.clocks.get(usize::from(group)) else {
            return;
        };
        let ahead_ms = ahead_ms(self.clock.cluster_wall_ms(), self.now_ms());
        let was_set = {
            let ticks = clock.ticks.lock().unwrap_or_else(PoisonError::into_inner);
            // Before the first tick of this process, that one bridges.
            let known = ticks.wall_ahead_ms.filter(|_| ticks.applied.is_some());
            known.is_some_and(|known_ms| known_ms.abs_diff(ahead_ms) >= WALL_STEP_MS_MIN)
        };
        if was_set {
            self.tick(group);
        }
    }

    /// This node leads the group from now on: what it proposed before is not in the log for sure.
    pub fn led(&self, group: u16) {
        if let Some(clock) = self.clocks.get(usize::from(group)) {
            clock.proposed_ms.store(0, Ordering::Release);
        }
    }

    /// A timer of the group is due `in_ms` after its last tick: ticks when that time has come.
    pub fn tick_if_due(&self, group: u16, in_ms: u64) {
        let Some(clock) = self.clocks.get(usize::from(group)) else {
            return;
        };
        let applied = clock.ticks.lock().unwrap_or_else(PoisonError::into_inner).applied;
        let elapsed_ms = applied.map_or(u64::MAX, |applied| self.now_ms().saturating_sub(applied.at_ms));
        if elapsed_ms >= in_ms && elapsed_ms > CLOCK_LAG_MS_MAX {
            self.tick(group);
        }
    }

    /// Whether publishers should pause until the groups caught up.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.pipeline.is_overloaded()
    }

    /// Whether the disk has only its reserve left, so that nothing new is accepted.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pipeline.is_full()
    }

    /// How long the log has waited for the disk to write or sync; 0 if it does not.
    #[must_use]
    pub fn disk_waited(&self) -> Duration {
        self.pipeline.disk_waited()
    }

    /// Proposes a command to a group.
    pub fn propose(&self, group: u16, command: Command) {
        self.propose_encoded(group, command::encode(command));
    }

    /// Proposes a command that was encoded before.
    pub fn propose_encoded(&self, group: u16, command: Bytes) {
        match self.tell_time(group) {
            Some(tick) => self.pipeline.propose_behind(GroupId(group), tick, Some(command)),
            None => self.pipeline.propose(GroupId(group), command),
        }
    }

    /// What the clients of an arbiter want has changed.
    pub fn interest(&self, changes: InterestChanges) {
        self.pipeline.notify(Query::Interest(changes));
    }

    /// Tells the thread that applies something that concerns no group.
    pub fn notify(&self, query: Query) {
        self.pipeline.notify(query);
    }

    /// The way to the groups themselves.
    #[must_use]
    pub fn pipeline(&self) -> &PipelineHandle<Query> {
        &self.pipeline
    }

    /// A target of an outbox's lane has everything up to `number`; or lacks what came before a batch of that round.
    pub fn outbox_answered(&self, origin: u16, target: OutboxTarget, number: u64, gap_in_round: Option<u32>) {
        self.pipeline.notify(Query::OutboxAnswered { origin, target, number, gap_in_round });
    }

    /// What an arbiter of `node` has, in some of its places, of the sessions of a group that this node leads. Behind what was proposed
    /// before.
    pub fn resync(&self, node: u64, resync: Resync, places: Range<u32>) {
        let group = GroupId(u16::try_from(resync.group).unwrap_or(u16::MAX));
        self.pipeline.query(group, Query::Resync { node, resync, places });
    }

    /// Asks for a Client Identifier that may be contended for.
    pub fn claim(&self, request: ClaimRequest) {
        let group = GroupId(self.slots.group_of(&request.client_id));
        self.pipeline.query(group, Query::Claim(request));
    }

    /// A connection let go of its Client Identifier, and somebody may wait for that.
    pub fn released(&self, client_id: &Arc<str>) {
        let group = GroupId(self.slots.group_of(client_id));
        self.pipeline.query(group, Query::Released(Arc::clone(client_id)));
    }

    /// Asks the group of the cursor for a part of the retained messages that match `filter`.
    pub fn retained_page(&self, asker: Asker, number: u64, filter: &str, cursor: RetainedCursor) {
        let group = GroupId(cursor.group);
        let query = Query::RetainedPage { asker, number, filter: filter.to_owned(), cursor };
        if is_planted(Plant::ReadStale) {
            return self.pipeline.notify(query);
        }
        self.pipeline.read(group, query);
    }

    /// The mapping of names to groups.
    #[must_use]
    pub fn slots(&self) -> Slots {
        self.slots
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;

    fn tick_at(wall_ms: u64) -> command::Tick {
        command::Tick { wall_ms, ..command::Tick::default() }
    }

    /// P10: of a process that is started again and again before five seconds have passed, each time must count (found by
    /// simulation, seed 1016).
    #[test]
    fn time_counts_from_a_tick_of_this_process_and_not_from_one_that_is_reread() {
        let machine = Arc::new(ManualClock::new(1_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let counts_from = |submitter: &Submitter| {
            let applied = submitter.clocks[0].ticks.lock().expect("not poisoned").applied;
            applied.map(|applied| applied.clock_ms)
        };
        let wall_ms = clock.wall_ms();
        machine.advance(Duration::from_secs(3));
        submitter.ticked(0, 500, tick_at(wall_ms), true);
        assert_eq!(counts_from(&submitter), None, "the wall clock bridges the time that no process ran");
        submitter.ticked(0, 3_500, tick_at(clock.wall_ms()), false);
        assert_eq!(counts_from(&submitter), Some(3_500));
    }

    /// P12: the wall clocks were set back, so the group has heard of a later time than any tick says from now on. It goes on all
    /// the same (found by simulation, seed 2326).
    #[test]
    fn time_goes_on_where_the_wall_clock_was_set_back() {
        let clock = Clock::manual(Arc::new(ManualClock::new(10_000_000)));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let counts_from =
            || submitter.clocks[0].ticks.lock().expect("not poisoned").applied.map(|applied| applied.clock_ms);
        submitter.ticked(0, 500, tick_at(clock.wall_ms() + 3_600_000), false);
        assert_eq!(counts_from(), None, "nobody knows how old it is");
        submitter.ticked(0, 500, tick_at(clock.wall_ms()), false);
        assert_eq!(counts_from(), Some(500), "though the group has heard of a later time");
    }

    /// P10: a node that has just started, with a wall clock that is hours ahead, knows from the others what time it is.
    #[test]
    fn the_time_that_no_process_ran_is_known_by_the_wall_clock_of_the_cluster() {
        let machine = Arc::new(ManualClock::new(1_000_000 + STEP_MS));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(2), clock.clone());
        clock.set_cluster_wall(Some(1_000_000));
        machine.advance(Duration::from_secs(3));
        submitter.propose_encoded(0, Bytes::new());
        let bridging = submitter.clocks[0].ticks.lock().expect("not poisoned").bridging.clone();
        assert_eq!(bridging.iter().map(|(wall_ms, _)| *wall_ms).collect::<Vec<_>>(), [1_003_000]);
        // And another's tick is one of now.
        submitter.ticked(1, 500, tick_at(1_003_000), false);
        assert_eq!(submitter.clock_ms(1, 500), 500);
        machine.advance(Duration::from_secs(1));
        assert_eq!(submitter.clock_ms(1, 500), 1_500);
    }

    /// P10: before it has heard of anybody it may have tried with its own, and such a try is mostly dropped.
    #[test]
    fn a_try_that_went_by_its_own_wall_clock_says_nothing_once_the_others_said_what_theirs_say() {
        let machine = Arc::new(ManualClock::new(1_000_000 + STEP_MS));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let tries = || {
            submitter.propose_encoded(0, Bytes::new());
            let bridging = submitter.clocks[0].ticks.lock().expect("not poisoned").bridging.clone();
            machine.advance(Duration::from_millis(100));
            bridging.back().map(|(wall_ms, _)| *wall_ms)
        };
        assert_eq!(tries(), Some(1_000_000 + STEP_MS));
        clock.set_cluster_wall(Some(1_000_000));
        assert_eq!(tries(), Some(1_000_100));
        clock.set_cluster_wall(Some(1_000_000 + STEP_MS.cast_signed()));
        assert_eq!(tries(), Some(1_000_200), "it was set meanwhile");
        clock.set_cluster_wall(None);
        assert_eq!(tries(), Some(1_000_300));
    }

    /// P10: the wall clock of the cluster is set, as where the node whose clock was the earlier of two is gone, and what is known of the
    /// group's clock still is; and by old ticks a node that was away catches up, and knows all the while what time it is.
    #[test]
    fn what_is_known_of_the_time_needs_no_wall_clock() {
        let machine = Arc::new(ManualClock::new(1_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let counts_from = || {
            let applied = submitter.clocks[0].ticks.lock().expect("not poisoned").applied;
            applied.map(|applied| (applied.clock_ms, applied.at_ms))
        };
        submitter.ticked(0, 500, tick_at(clock.wall_ms()), false);
        machine.advance(Duration::from_secs(7));
        submitter.ticked(0, 7_400, tick_at(clock.wall_ms() + STEP_MS), false);
        assert_eq!(counts_from(), Some((7_400, submitter.now_ms())), "it is where it should be");
        let known = counts_from();
        machine.advance(Duration::from_secs(3_600));
        for old_ms in [20_000, 3_000_000] {
            submitter.ticked(0, old_ms, tick_at(1_000_000 + old_ms), false);
            assert_eq!(counts_from(), known);
        }
        assert_eq!(submitter.clock_ms(0, 3_000_000), 3_000_000 + 3_600_000, "asked of the clock as it is known");
    }

    /// P10: each tick takes a while until it is applied, which is not lost: nothing lives the longer for it.
    #[test]
    fn time_goes_on_as_fast_as_it_does_however_long_ticks_take() {
        let machine = Arc::new(ManualClock::new(1_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let since = |submitter: &Submitter| submitter.clocks[0].ticks.lock().expect("not poisoned").applied;
        submitter.ticked(0, 500, tick_at(clock.wall_ms()), false);
        let began_ms = submitter.now_ms();
        for _ in 0..100 {
            machine.advance(Duration::from_millis(CLOCK_LAG_MS_MAX + 1));
            submitter.propose_encoded(0, Bytes::new());
            let proposed = *submitter.clocks[0].ticks.lock().expect("not poisoned").proposed.back().expect("a tick");
            machine.advance(Duration::from_millis(200));
            submitter.ticked(0, proposed.1.clock_ms, tick_at(proposed.0), false);
        }
        let applied = since(&submitter).expect("it is not old");
        assert_eq!(applied.clock_ms - 500, applied.at_ms - began_ms);

        // Another node's, which left the clock where one of this node's would have.
        machine.advance(Duration::from_millis(CLOCK_LAG_MS_MAX + 1));
        submitter.propose_encoded(0, Bytes::new());
        let clock_ms = submitter.clocks[0].ticks.lock().expect("not poisoned").proposed[0].1.clock_ms;
        machine.advance(Duration::from_millis(200));
        submitter.ticked(0, clock_ms, tick_at(clock.wall_ms()), false);
        let applied = since(&submitter).expect("it is not old");
        assert_eq!(applied.at_ms, submitter.now_ms(), "or what waits would expire early");
    }

    /// P1: what is proposed while nobody leads is lost, a tick too, and a group that has not heard of the time takes a message as if
    /// none had passed (found by simulation, seed 5637).
    #[test]
    fn a_tick_that_may_be_lost_is_proposed_again_before_anything_else() {
        let machine = Arc::new(ManualClock::new(1_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let proposes = |after_ms: u64| {
            machine.advance(Duration::from_millis(after_ms));
            let before = submitter.clocks[0].proposed_ms.load(Ordering::Relaxed);
            submitter.propose_encoded(0, Bytes::new());
            submitter.clocks[0].proposed_ms.load(Ordering::Relaxed) != before
        };
        assert!(proposes(0));
        let first = submitter.tell_time(0).expect("it may have been dropped");
        assert!(!proposes(TICK_RETRY_MS), "it is under way");
        assert_eq!(submitter.tell_time(0), Some(first), "what is said meanwhile goes behind it");
        assert!(proposes(1), "it should be there by now");
        submitter.ticked(0, 500, tick_at(clock.wall_ms()), false);
        assert_eq!(submitter.tell_time(0), None);
        assert!(!proposes(CLOCK_LAG_MS_MAX));
        assert!(proposes(1), "time for the next one");
        submitter.ticked(0, 1_000, tick_at(clock.wall_ms()), false);
        submitter.led(0);
        assert!(proposes(1), "nothing is known of what was proposed as a follower");
    }

    const STEP_MS: u64 = 86_400_000;

    /// P10: while a tick is under way somebody sets the wall clock, as where a device learns the time. The next one counts what passed, and
    /// does not bridge what the wall clock says.
    #[test]
    fn a_wall_clock_that_is_set_while_ticks_are_under_way_ends_nothing() {
        let machine = Arc::new(ManualClock::new(1_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let ticks = || submitter.clocks[0].ticks.lock().expect("not poisoned");
        let step = || machine.set_wall_ms(clock.wall_ms() + STEP_MS);

        // The first of a process, and a second try of it.
        submitter.propose_encoded(0, Bytes::new());
        step();
        machine.advance(Duration::from_millis(TICK_RETRY_MS + 1));
        submitter.propose_encoded(0, Bytes::new());
        let tries = Vec::from(ticks().bridging.clone());
        let [(first_ms, first_at_ms), (second_ms, second_at_ms)] = tries[..] else { panic!("{tries:?}") };
        assert_eq!(first_ms, 1_000_000);
        assert_eq!(second_ms - first_ms, second_at_ms - first_at_ms, "the second bridges what passed since the first");
        for (wall_ms, at_ms) in tries {
            submitter.ticked(0, 500, command::Tick { bridge: true, ..tick_at(wall_ms) }, false);
            assert_eq!(ticks().applied.map(|applied| (applied.clock_ms, applied.at_ms)), Some((500, at_ms)));
        }

        // And one that counts.
        machine.advance(Duration::from_millis(CLOCK_LAG_MS_MAX + 1));
        submitter.propose_encoded(0, Bytes::new());
        let (wall_ms, tick) = *ticks().proposed.back().expect("a tick");
        step();
        submitter.ticked(0, tick.clock_ms, tick_at(wall_ms), false);
        assert_eq!(ticks().applied.map(|applied| applied.at_ms), Some(tick.at_ms));
    }

    /// P10: the next process bridges from the wall time of the last tick, so an idle group is told that the wall clock was set.
    #[test]
    fn a_group_is_told_once_that_the_wall_clock_was_set() {
        let machine = Arc::new(ManualClock::new(1_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let tells = || {
            machine.advance(Duration::from_secs(60));
            submitter.tick_if_wall_clock_was_set(0);
            let mut ticks = submitter.clocks[0].ticks.lock().expect("not poisoned");
            assert_eq!(ticks.bridging, [], "what was set would count");
            ticks.proposed.pop_back().map(|(wall_ms, tick)| (wall_ms == clock.wall_ms(), tick.clock_ms))
        };
        assert_eq!(tells(), None, "the first tick bridges anyway");
        submitter.ticked(0, 500, tick_at(clock.wall_ms()), false);
        assert_eq!(tells(), None);
        machine.set_wall_ms(clock.wall_ms() + WALL_STEP_MS_MIN - 1);
        assert_eq!(tells(), None, "clocks drift");
        machine.set_wall_ms(clock.wall_ms() + STEP_MS);
        assert_eq!(tells(), Some((true, 500 + 3 * 60_000)));
        assert_eq!(tells(), None);
        machine.set_wall_ms(clock.wall_ms() - STEP_MS);
        assert_eq!(tells(), Some((true, 500 + 5 * 60_000)));
    }

    /// [MQTT-3.3.2-6]: what waits there grows older.
    #[test]
    fn the_clock_of_an_idle_group_goes_on() {
        let machine = Arc::new(ManualClock::new(1_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        assert_eq!(submitter.clock_ms(0, 500), 500, "nobody knows since when");
        submitter.ticked(0, 500, tick_at(clock.wall_ms()), false);
        machine.advance(Duration::from_secs(7));
        assert_eq!(submitter.clock_ms(0, 500), 7_500);
    }
}
