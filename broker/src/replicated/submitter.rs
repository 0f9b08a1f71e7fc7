//! The way from the arbiters to the groups: commands to be committed, and questions in their order.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use crossbeam::channel::Sender;
use kentongan_cluster::directory::command::{Ban, MemberRecord};
use kentongan_cluster::interest::LinkId;
use kentongan_cluster::membership::Wish;
use kentongan_cluster::{GroupId, NodeId, PipelineHandle};

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

    /// When it was that the group's clock said `clock_ms`: when the tick that set it was proposed, or the time that each takes to be
    /// applied would be lost, and groups with much to do expire everything late (P10). Of somebody else's tick that is not known, and it
    /// counts from now.
    fn said_at_ms(&mut self, wall_ms: u64, clock_ms: u64, now_ms: u64) -> u64 {
        let mut own = self.proposed.iter().filter(|(wall, tick)| (*wall, tick.clock_ms) == (wall_ms, clock_ms));
        let at_ms = own.next().map_or(now_ms, |(_, tick)| tick.at_ms);
        self.proposed.retain(|(_, tick)| tick.clock_ms > clock_ms);
        at_ms
    }
}

/// A tick that is not applied so long after it was proposed may have been dropped, as whoever does not lead drops proposals.
const TICK_RETRY_MS: u64 = 50;

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

    /// Sees to it that the group knows the time before what is submitted next: its messages expire by that clock. An
    /// idle group hears nothing, so that an idle broker writes nothing.
    fn tell_time(&self, group: u16) {
        let Some(clock) = self.clocks.get(usize::from(group)) else {
            return;
        };
        let now_ms = self.now_ms();
        let proposed_ms = clock.proposed_ms.load(Ordering::Acquire);
        let age_ms = now_ms.saturating_sub(proposed_ms);
        // A message that got ahead of the tick would be given its time by a clock that stands, and lose it when that goes on.
        let is_applied = || clock.applied_ms.load(Ordering::Acquire) >= proposed_ms;
        if proposed_ms != 0 && (age_ms <= TICK_RETRY_MS || age_ms <= CLOCK_LAG_MS_MAX && is_applied()) {
            return;
        }
        // Of several threads one tells it, and before it goes on.
        let mut ticks = clock.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.proposed_ms.load(Ordering::Acquire) != proposed_ms {
            return;
        }
        let tick = match ticks.applied {
            Some(Applied { clock_ms, at_ms }) => {
                let (elapsed_ms, wall_ms) = (now_ms.saturating_sub(at_ms), self.clock.wall_ms());
                ticks.propose(wall_ms, Applied { clock_ms: clock_ms + elapsed_ms, at_ms: now_ms });
                command::Tick { elapsed_ms, wall_ms, bridge: false, from_ms: Some(clock_ms) }
            }
            // The first one bridges the time that no replica ran, by the wall clock.
            None => command::Tick { elapsed_ms: 0, wall_ms: self.clock.wall_ms(), bridge: true, from_ms: None },
        };
        self.pipeline.propose(GroupId(group), command::encode(Command::Tick(tick)));
        clock.proposed_ms.store(now_ms, Ordering::Release);
    }

    /// A tick was applied here, which left the group's clock at `clock_ms`. How old it is its own wall time says, not the
    /// latest that the group has heard of: where the clocks were set back, no tick would ever count as recent, and the group's
    /// clock would stand. Of one that is reread from the log of the process before this one, nobody knows how long ago it was.
    pub fn ticked(&self, group: u16, clock_ms: u64, tick: command::Tick, is_reread: bool) {
        let is_recent = !is_reread && self.clock.wall_ms().abs_diff(tick.wall_ms) < TICK_AGE_MS_MAX;
        if let Some(clock) = self.clocks.get(usize::from(group)) {
            let now_ms = self.now_ms();
            clock.applied_ms.store(now_ms, Ordering::Release);
            let mut ticks = clock.ticks.lock().unwrap_or_else(PoisonError::into_inner);
            let at_ms = ticks.said_at_ms(tick.wall_ms, clock_ms, now_ms);
            ticks.applied = is_recent.then_some(Applied { clock_ms, at_ms });
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
            self.tell_time(group);
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

    /// Proposes a command to a group.
    pub fn propose(&self, group: u16, command: Command) {
        self.tell_time(group);
        self.pipeline.propose(GroupId(group), command::encode(command));
    }

    /// Proposes a command that was encoded before.
    pub fn propose_encoded(&self, group: u16, command: Bytes) {
        self.tell_time(group);
        self.pipeline.propose(GroupId(group), command);
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
        assert!(!proposes(TICK_RETRY_MS), "it is under way");
        assert!(proposes(1), "it should be there by now");
        submitter.ticked(0, 500, tick_at(clock.wall_ms()), false);
        assert!(!proposes(CLOCK_LAG_MS_MAX));
        assert!(proposes(1), "time for the next one");
        submitter.ticked(0, 1_000, tick_at(clock.wall_ms()), false);
        submitter.led(0);
        assert!(proposes(1), "nothing is known of what was proposed as a follower");
    }
}
