//! The way from the arbiters to the groups: commands to be committed, and questions in their order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use kentongan_cluster::{GroupId, PipelineHandle};

use super::command::{self, Command};
use super::{ClaimRequest, InterestChanges, RetainedCursor, Slots};
use crate::clock::Clock;
use crate::connection_key::ConnectionKey;
use crate::peers::wire::Resync;

/// What the thread that applies commands is asked beside them.
#[derive(Debug)]
pub enum Query {
    /// Start-up has handed over what acting on effects needs.
    Begin,
    /// A CONNECT that must ask who else has its Client Identifier.
    Claim(ClaimRequest),
    /// A connection that was to be taken over is done.
    Released(Arc<str>),
    /// What the clients of an arbiter want has changed.
    Interest(InterestChanges),
    /// The link to this node broke.
    LinkBroken(u64),
    /// What a node has of the sessions that it serves.
    Resync {
        /// Which node.
        node: u64,
        /// What.
        resync: Resync,
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

/// A group's clock as its leader keeps it.
#[derive(Debug)]
struct GroupClock {
    /// Process time of the last tick that was submitted.
    ticked_ms: AtomicU64,
    /// Whoever submits a tick holds it, so that each stretch of time is told once.
    telling: Mutex<bool>,
}

/// A group's clock may lag this much behind when a command reaches it.
const LAG_MS_MAX: u64 = 500;

impl Submitter {
    /// To the groups of `slots`, by `pipeline`.
    #[must_use]
    pub fn new(pipeline: PipelineHandle<Query>, slots: Slots, clock: Clock) -> Self {
        let group_clock = |_| GroupClock { ticked_ms: AtomicU64::new(0), telling: Mutex::new(false) };
        Self { pipeline, slots, clocks: (0..slots.groups()).map(group_clock).collect(), clock }
    }

    fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Sees to it that the group knows the time before what is submitted next: its messages expire by that clock. An
    /// idle group hears nothing, so that an idle broker writes nothing.
    fn tell_time(&self, group: u16) {
        let Some(clock) = self.clocks.get(usize::from(group)) else {
            return;
        };
        if self.now_ms().saturating_sub(clock.ticked_ms.load(Ordering::Acquire)) <= LAG_MS_MAX
            && self.now_ms() > LAG_MS_MAX
        {
            return;
        }
        let mut told = clock.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = self.now_ms();
        let elapsed_ms = now_ms.saturating_sub(clock.ticked_ms.load(Ordering::Acquire));
        if *told && elapsed_ms <= LAG_MS_MAX {
            return;
        }
        let wall_ms = self.clock.wall_ms();
        // The first one bridges the time that the node was down, by the wall clock.
        let tick = command::Tick { elapsed_ms, wall_ms, bridge: !*told };
        *told = true;
        self.pipeline.propose(GroupId(group), command::encode(Command::Tick(tick)));
        clock.ticked_ms.store(now_ms, Ordering::Release);
    }

    /// A timer of the group is due `in_ms` after its last tick: ticks when that time has come.
    pub fn tick_if_due(&self, group: u16, in_ms: u64) {
        if let Some(clock) = self.clocks.get(usize::from(group)) {
            let elapsed_ms = self.now_ms().saturating_sub(clock.ticked_ms.load(Ordering::Acquire));
            if elapsed_ms >= in_ms && elapsed_ms > LAG_MS_MAX {
                self.tell_time(group);
            }
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

    /// The link to a node broke: what was said over it may be lost.
    pub fn link_broken(&self, node: u64) {
        self.pipeline.notify(Query::LinkBroken(node));
    }

    /// What an arbiter of `node` has of the sessions of a group that this node leads. Behind what was proposed before.
    pub fn resync(&self, node: u64, resync: Resync) {
        let group = GroupId(u16::try_from(resync.group).unwrap_or(u16::MAX));
        self.pipeline.query(group, Query::Resync { node, resync });
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

    /// Asks for a part of the retained messages that match `filter`.
    pub fn retained_page(&self, asker: Asker, number: u64, filter: &str, cursor: RetainedCursor) {
        let group = GroupId(if filter.contains(['+', '#']) { cursor.group } else { self.slots.group_of(filter) });
        self.pipeline.read(group, Query::RetainedPage { asker, number, filter: filter.to_owned(), cursor });
    }

    /// The mapping of names to groups.
    #[must_use]
    pub fn slots(&self) -> Slots {
        self.slots
    }
}
