//! What all threads of the process share.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Event;
use super::backlog::Backlog;
use super::batch::Batch;
use super::cluster::ClusterView;
use super::flapping::Flapping;
use super::inbox::Inbox;
use super::registry::Registry;
use super::sys::SysTree;
use crate::audit::Audit;
use crate::auth::Authority;
use crate::bans::Bans;
use crate::clock::Clock;
use crate::config::Settings;
use crate::events::ClientEvents;
use crate::listener::ListenerContext;
use crate::memory;
use crate::peers::PIECE_BYTES;
use crate::random::Random;
use crate::replicated::Submitter;
use crate::subscription::SubscriptionIndex;
use crate::watching::Watches;

/// Bytes on their way into one arbiter from which on those who feed it stop reading their clients.
const INBOX_BYTES_HIGH_WATER: usize = 32 * 1024 * 1024;

/// New clients are refused.
pub const MEMORY_LEVEL_REFUSES: u8 = 1;

/// Publishers are not read either.
pub const MEMORY_LEVEL_PAUSES: u8 = 2;

/// Clients that hold most of it are closed too: the slowest subscribers, and who has sent most of a large packet.
pub const MEMORY_LEVEL_CLOSES: u8 = 3;

fn memory_level(bytes: u64, mark: u64) -> u8 {
    match bytes {
        _ if bytes > mark.saturating_mul(12) / 10 => MEMORY_LEVEL_CLOSES,
        _ if bytes > mark.saturating_mul(11) / 10 => MEMORY_LEVEL_PAUSES,
        _ if bytes > mark => MEMORY_LEVEL_REFUSES,
        _ => 0,
    }
}

/// Shared by the arbiters, the groups' threads and the acceptor.
#[derive(Debug)]
pub struct Shared {
    /// Who wants what.
    pub index: SubscriptionIndex,
    /// Who holds which Client Identifier.
    pub registry: Registry,
    /// Who is kept out of the cluster.
    pub bans: Bans,
    /// What operators did and who was refused.
    pub audit: Audit,
    /// Who wants to know what happens to clients.
    pub events: ClientEvents,
    /// Who looks at what clients do.
    pub watches: Watches,
    /// Whether there are bounds on how fast clients may publish, on any listener.
    pub has_publish_rates: AtomicBool,
    /// Client Identifiers that are fought over.
    pub flapping: Flapping,
    /// One for each arbiter.
    pub inboxes: Vec<Inbox<Event>>,
    /// Emptied batches, for the arbiter that fills them.
    pub recycled: Vec<crossbeam::queue::ArrayQueue<Batch>>,
    /// Likewise, for what comes from other nodes.
    pub recycled_from_nodes: crossbeam::queue::ArrayQueue<Batch>,
    /// The way to the groups.
    pub submitter: Submitter,
    /// `None`: this is the only node there is.
    pub cluster: Option<ClusterView>,
    /// The settings in force at start.
    pub settings: Arc<Settings>,
    /// Who may do what.
    pub authority: Authority,
    /// `$SYS` as it stands.
    pub sys: SysTree,
    /// Whether a retained message may exist anywhere: stays true once one was proposed.
    pub retained_possible: AtomicBool,
    /// Some arbiter waits for another, or for the groups, to catch up.
    pub publishers_paused: AtomicBool,
    /// Connections of the whole process, those on their way from the acceptor to an arbiter included.
    pub connections: AtomicUsize,
    /// Those of them that each arbiter has, from when they are accepted.
    arbiter_connections: Vec<AtomicUsize>,
    /// What the lanes of each arbiter held when it looked last.
    backlogs: Mutex<Vec<Backlog>>,
    /// Times that accepting failed for want of descriptors.
    pub descriptors_exhausted: AtomicU64,
    /// Connections closed at once, because there are as many as allowed.
    pub connections_too_many: AtomicU64,
    /// Connections closed at once, because their address connects too often.
    pub connections_too_fast: AtomicU64,
    /// Connections closed at once, because their address is banned.
    pub connections_banned: AtomicU64,
    /// See [`Self::incarnation`].
    incarnation: AtomicU64,
    /// Bytes that groups may have under way to one connection: as much as its out-buffer is for, but in simulations.
    pub under_way_bytes_max: AtomicUsize,
    /// `limits.memory_bytes_high_water` as read last.
    pub memory_bytes_high_water: AtomicU64,
    /// See [`Self::memory_level`].
    memory_level: AtomicU8,
    /// See [`Self::memory_bytes_over`].
    memory_bytes_over: AtomicU64,
    /// The clocks of the node.
    pub clock: Clock,
    /// What is drawn by chance comes from here.
    pub random: Random,
}

impl Shared {
    /// What all threads share, before the first connection.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        arbiters: usize,
        submitter: Submitter,
        authority: Authority,
        incarnation: u64,
        cluster: Option<ClusterView>,
        clock: Clock,
    ) -> Self {
        let under_way_bytes_max = usize::try_from(settings.session.out_buffer_bytes_max).unwrap_or(usize::MAX);
        let memory_bytes_high_water = AtomicU64::new(settings.limits.memory_bytes_high_water);
        Self {
            index: SubscriptionIndex::new(),
            registry: Registry::default(),
            bans: Bans::default(),
            audit: Audit::default(),
            events: ClientEvents::new(&settings),
            watches: Watches::new(arbiters),
            has_publish_rates: AtomicBool::new(settings.has_publish_rates()),
            flapping: Flapping::new(&settings.limits),
            inboxes: (0..arbiters).map(|_| Inbox::new(INBOX_BYTES_HIGH_WATER)).collect(),
            recycled: (0..arbiters).map(|_| crossbeam::queue::ArrayQueue::new(64)).collect(),
            recycled_from_nodes: crossbeam::queue::ArrayQueue::new(64),
            submitter,
            cluster,
            settings,
            authority,
            sys: SysTree::default(),
            retained_possible: AtomicBool::new(false),
            publishers_paused: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            arbiter_connections: (0..arbiters).map(|_| AtomicUsize::new(0)).collect(),
            backlogs: Mutex::new(vec![Backlog::default(); arbiters]),
            descriptors_exhausted: AtomicU64::new(0),
            connections_too_many: AtomicU64::new(0),
            connections_too_fast: AtomicU64::new(0),
            connections_banned: AtomicU64::new(0),
            incarnation: AtomicU64::new(incarnation),
            under_way_bytes_max: AtomicUsize::new(under_way_bytes_max),
            memory_bytes_high_water,
            memory_level: AtomicU8::new(0),
            memory_bytes_over: AtomicU64::new(0),
            clock,
            random: Random::of_process(),
        }
    }

    /// Counts a connection in, unless the process has `connections_max` or the listener as many as it may, and says which
    /// arbiter gets it: the one with the fewest, the first of them. So where connections come and go one by one, they stay on
    /// the thread that accepts. Whoever counts one in must see that it is counted out, by [`Self::connection_closed`].
    #[must_use]
    pub fn try_open_connection(&self, listener: &ListenerContext, connections_max: usize) -> Option<u16> {
        if self.connections.load(Ordering::Relaxed) >= connections_max || !listener.try_open() {
            return None;
        }
        let fewest = self.arbiter_connections.iter().enumerate().min_by_key(|(_, count)| count.load(Ordering::Relaxed));
        let (arbiter, count) = fewest?;
        count.fetch_add(1, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        Some(arbiter as u16)
    }

    /// Counts a connection of an arbiter out.
    pub fn connection_closed(&self, listener: &ListenerContext, arbiter: u16) {
        listener.connection_closed();
        self.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(count) = self.arbiter_connections.get(usize::from(arbiter)) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Connections of each arbiter.
    #[must_use]
    pub fn arbiter_connections(&self) -> Vec<u64> {
        self.arbiter_connections.iter().map(|count| count.load(Ordering::Relaxed) as u64).collect()
    }

    /// What the lanes of an arbiter hold.
    pub(super) fn show_backlog(&self, arbiter: u16, backlog: Backlog) {
        let mut backlogs = self.backlogs.lock().unwrap_or_else(PoisonError::into_inner);
        backlogs[usize::from(arbiter)] = backlog;
    }

    /// What the lanes of all arbiters held when they looked last, within a second.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        Backlog::sum(&*self.backlogs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As what this node is known: larger than every earlier one of it. Where there are several nodes, its last registration;
    /// 0 before the first.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// Bytes after which what could be said to other nodes in parts begins another part.
    #[must_use]
    pub fn piece_bytes(&self) -> usize {
        self.cluster.as_ref().map_or(PIECE_BYTES, |cluster| cluster.peers.piece_bytes())
    }

    /// This node was registered (anew). No client of the registration before is left.
    pub fn set_incarnation(&self, incarnation: u64) {
        self.incarnation.store(incarnation, Ordering::Release);
    }

    /// Whether this node may acknowledge now. See [`ClusterView::may_acknowledge`].
    #[inline]
    #[must_use]
    pub fn may_acknowledge(&self) -> bool {
        self.cluster.as_ref().is_none_or(ClusterView::may_acknowledge)
    }

    /// Milliseconds since the process started.
    #[inline]
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Seconds since 1970 by the cluster's wall clock, by which bans end.
    #[must_use]
    pub fn wall_seconds(&self) -> u64 {
        self.clock.cluster_wall_ms() / 1000
    }

    /// Whether publishers should pause: an arbiter or the groups have too much before them.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.submitter.is_overloaded() || self.memory_level() >= MEMORY_LEVEL_PAUSES || self.is_inbox_overloaded()
    }

    /// Whether an arbiter has too much before it.
    pub fn is_inbox_overloaded(&self) -> bool {
        self.inboxes.iter().any(Inbox::is_overloaded)
    }

    /// How far memory is over its mark: 0 not at all, else one of the levels of this module.
    #[must_use]
    pub fn memory_level(&self) -> u8 {
        self.memory_level.load(Ordering::Relaxed)
    }

    /// By how much memory was over its mark when somebody looked last.
    #[must_use]
    pub fn memory_bytes_over(&self) -> u64 {
        self.memory_bytes_over.load(Ordering::Relaxed)
    }

    /// Looks at the memory that the process uses, about once a second, and oftener while much of it is taken.
    pub fn watch_memory(&self) {
        let mark = self.memory_bytes_high_water.load(Ordering::Relaxed);
        if mark == 0 && self.memory_level() == 0 {
            return;
        }
        // Without a mark, nothing is over it.
        let (bytes, mark) = memory::used_bytes().filter(|_| mark != 0).map_or((0, 0), |bytes| (bytes, mark));
        self.set_memory(bytes, mark);
    }

    fn set_memory(&self, bytes: u64, mark: u64) {
        self.memory_bytes_over.store(bytes.saturating_sub(mark), Ordering::Relaxed);
        let level = memory_level(bytes, mark);
        if self.memory_level.swap(level, Ordering::Relaxed) != level {
            tracing::warn!(level, "memory crossed a mark (limits.memory_bytes_high_water)");
            self.wake_paused_publishers();
        }
    }

    /// As if the process used so much of a mark.
    #[cfg(test)]
    pub(super) fn pretend_memory(&self, bytes: u64, mark: u64) {
        self.set_memory(bytes, mark);
    }

    /// Called by whoever worked something off: publishers that paused look again.
    pub fn wake_paused_publishers(&self) {
        if self.publishers_paused.load(Ordering::Relaxed)
            && !self.is_overloaded()
            && self.publishers_paused.swap(false, Ordering::AcqRel)
        {
            for inbox in &self.inboxes {
                inbox.push(Event::ResumePublishers, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_three_marks() {
        let levels = [100, 101, 110, 111, 120, 121].map(|bytes| memory_level(bytes, 100));
        assert_eq!(levels, [0, 1, 1, 2, 2, 3]);
    }
}
