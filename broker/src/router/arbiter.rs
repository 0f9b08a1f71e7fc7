//! The state of one arbiter, and a turn of its loop.
//!
//! A turn: every socket that became ready is read and its packets are handled, which fills the out-buffers of the
//! connections here, the batches for other arbiters and the lanes to the groups. Then, and not by any timer, the
//! flush task runs: it was woken by the first packet of the turn and so stands in the run queue behind all sockets
//! that were ready with it.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, PacketType, Sender};
use kentongan_proto::mqtt::{ProtocolVersion, ReasonCode};
use slab::Slab;
use tokio::io::ReadBuf;

use super::batch::Batch;
use super::changing::{Lately, OVERLAPS_LOOKED_AT_MAX};
use super::claims::{self, ClaimTurns};
use super::client::{BehindSuback, Client, LOOK_SECONDS_MAX, Phase};
use super::cluster::Departing;
use super::deliver::Templates;
use super::handshaking::Handshaking;
use super::keep_alive::{Wheel, silence_seconds_max};
use super::lanes::Lanes;
use super::log_rate::LogRate;
use super::looking_again::LookingAgain;
use super::pace::Pace;
use super::publish::asks_something;
use super::share_settling::{ShareSettling, ShareTaking};
use super::shared::{MEMORY_LEVEL_CLOSES, MEMORY_LEVEL_PAUSES, MEMORY_LEVEL_REFUSES};
use super::subscribe::SUBACK_SECONDS_MAX;
use super::timing::Timing;
use super::{ConnectionKey, Event, Shared};
use crate::config::Overlapping;
use crate::connection::{BufferPool, Flushed, OutBuffer, Transport};
use crate::listener::ListenerContext;
use crate::message::Message;
use crate::metrics::{ArbiterCounters, ConnectRefusal};
use crate::replicated::InterestChanges;
use crate::subscription::{LocalSubscriptions, MatchCache};

/// Size of the one read buffer of an arbiter.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// What may have come of a packet before its rest is read into a buffer of its own.
const UNFINISHED_BYTES_MAX: usize = READ_BUFFER_BYTES / 2;

/// The same while memory is short, and then the rest waits. Also what of a CONNECT may have come, where others are refused already.
const UNFINISHED_BYTES_MAX_SHORT: usize = 4 * 1024;

/// Of packets whose rest waits because memory is short, so much is read in a second all the same, and by these many connections.
/// Where all memory is such packets, none of it would be free again if nobody finished one.
const REST_BYTES_A_SECOND: usize = 256 * 1024;
const RESTS_A_SECOND_MAX: usize = 16;

/// How long a client may say nothing amid a packet while memory is short, with more of it here than
/// [`UNFINISHED_BYTES_MAX_SHORT`]. Its Keep Alive may be longer, or none.
const UNFINISHED_SECONDS_MAX: u32 = 60;

/// Bytes of large packets after which somebody looks at what memory there is, for in a second gigabytes may come.
const MEMORY_LOOK_BYTES: usize = 4 * 1024 * 1024;

/// So many bytes of a packet that is still to be finished show as well as a whole one that a client is there. Who cannot send them
/// in its Keep Alive should have a longer one.
const ACTIVITY_BYTES: usize = 1000;

/// Bytes of a large packet read at once.
const LARGE_READ_BYTES_MAX: usize = 64 * 1024;

/// Bytes behind a CONNECT that are read before it is known whose it is.
const LOOK_AHEAD_BYTES_MAX: usize = 512;

/// Full reads of one connection in one turn, before the others have theirs.
const READS_A_TURN_MAX: usize = 2;

/// What one connection may have done for it in one turn before the others have theirs, but for its last packet: subscribers reached and
/// nodes of tries looked at, each some 50 ns. Few bytes can ask for much, where somebody subscribed to make them.
const WORK_A_TURN_MAX: u64 = 100_000;

/// Bytes of a Client Identifier that are some work: a packet of a few bytes may put all 64 KiB of them into a lane once more.
const NAME_BYTES_OF_WORK: usize = 16;

/// Bytes of large packets that are read, and as many that are written, in one turn over all connections: what a turn may
/// add to the latency of small messages.
const LARGE_BYTES_A_TURN_MAX: usize = 256 * 1024;

/// Seconds that a closing connection may take to accept what is still to be written.
pub(super) const CLOSING_SECONDS_MAX: u32 = 5;

/// Whoever takes no answers any more, and of whom nothing was read for so long either, is gone.
const DEAF_SECONDS_MAX: u32 = SUBACK_SECONDS_MAX + CLOSING_SECONDS_MAX;

/// How long a connection whose client said DISCONNECT waits for its group to hear of it. Long, because once it is closed its will
/// must not be published (P9), and a group may be without a leader for a while; a client that keeps to the standard
/// [MQTT-3.14.4-1] does not wait.
pub(super) const LEAVING_SECONDS_MAX: u32 = 60;

/// What must wait for a client at least that is closed because memory is short: to close others would gain nothing.
const CLOSED_BYTES_MIN: usize = 64 * 1024;

/// One of so many connections may be closed for that in one second, so that what others free meanwhile counts.
const CLOSED_SHARE: usize = 16;

/// And no more than these, for all of that is done in one turn.
const CLOSED_A_SECOND_MAX: usize = 1000;

thread_local! {
    static ARBITER: RefCell<Option<Box<ArbiterState>>> = const { RefCell::new(None) };
}

/// Everything one arbiter owns.
pub struct ArbiterState {
    /// Its number.
    pub id: u16,
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// Counters, flushed about once a second.
    pub counters: ArbiterCounters,
    pub(super) clients: Slab<Client>,
    pub(super) generation: u32,
    pub(super) subscriptions: LocalSubscriptions,
    pub(super) cache: MatchCache,
    pub(super) templates: Templates,
    pub(super) pool: BufferPool,
    pub(super) batches: Vec<Batch>,
    pub(super) lanes: Lanes,
    pub(super) claim_turns: ClaimTurns,
    pub(super) message_number: u64,
    /// The process clock, read once a turn.
    pub(super) now: Duration,
    /// Its milliseconds.
    pub(super) now_ms: u64,
    pub(super) timing: Timing,
    dirty: Vec<ConnectionKey>,
    flush_scheduled: bool,
    flush_waker: Option<Waker>,
    read_buffer: Vec<u8>,
    /// Bytes of large packets that this turn may still read.
    large_reads_left: usize,
    /// Those that may come until somebody looks at memory again.
    memory_look_in: usize,
    /// Whether memory was short in the second before.
    was_memory_short: bool,
    /// What may have come of a packet before its rest goes by what memory there is, as it was looked at last.
    unfinished_bytes_max: usize,
    /// What is left of [`REST_BYTES_A_SECOND`].
    pub(super) rest_bytes_left: usize,
    /// Connections that wait in the midst of a packet because memory is short. Some may have ended.
    amid_packet: VecDeque<ConnectionKey>,
    /// What was done for publishers in all, as [`WORK_A_TURN_MAX`] counts it.
    pub(super) work: u64,
    /// Where it will be when the turn of the connection that is read is over.
    work_until: u64,
    pub(super) refusal_lines: LogRate,
    pub(super) wheel: Wheel,
    /// Connections that ask for more than others can keep up with.
    pub(super) held_up: Vec<ConnectionKey>,
    /// Those of [`BehindSuback::Since`], and some that were.
    pub(super) behind_suback: BTreeSet<ConnectionKey>,
    /// Owners of sessions that came in this second although memory is short.
    pub(super) let_in: u32,
    pub(super) handshaking: Handshaking,
    /// Connections that publish faster than they may.
    pub(super) paced: Vec<ConnectionKey>,
    /// Of the task that reads them again, while there are none.
    pub(super) paced_waker: Option<Waker>,
    /// Connections that are still to be held against new files of users and rights.
    pub(super) looking_again: LookingAgain,
    /// The bans that the connections here were held against.
    pub(super) bans_seen: u32,
    pub(super) slow_reads: Vec<ConnectionKey>,
    /// Those of which a subscription goes over to its group, or from there.
    pub(super) changing: Vec<ConnectionKey>,
    pub(super) lately: Lately,
    /// Those of `changing` of which a filter goes over, or more: some may have ended.
    pub(super) sessions_going_over: usize,
    /// See [`OVERLAPS_LOOKED_AT_MAX`]: what is left of this turn.
    pub(super) overlap_looks_left: usize,
    /// Connections whose socket took no more, some of which may take it again by now.
    stalled: Vec<ConnectionKey>,
    /// What other nodes have for members of shared subscriptions there.
    pub(super) settling: ShareSettling,
    /// What other nodes and outboxes have for members here, and are to let go of first.
    pub(super) taking: ShareTaking,
    /// What clients here want more and less since the last flush.
    pub(super) interest: InterestChanges,
    /// Connections whose acknowledgements wait for the lease.
    pub(super) withheld: Vec<ConnectionKey>,
    /// Connections that are not read until the lease is back.
    pub(super) unread: Vec<ConnectionKey>,
    /// Connections for which something waits to be written until the lease is back.
    pub(super) unwritten: BTreeSet<ConnectionKey>,
    /// SUBSCRIBEs that every node has heard of, and whose answers wait for the lease.
    pub(super) withheld_barrier: Option<u64>,
    /// SUBSCRIBEs of transient sessions that not every node has heard of, by their tickets: those of connections that live.
    pub(super) barriers: BTreeMap<u64, ConnectionKey>,
    /// What is to be published about clients here.
    pub(super) client_events: VecDeque<Arc<Message>>,
    /// The process stops: whoever was accepted before the acceptors heard of that is not taken in any more.
    pub(super) ending: bool,
    /// Connections that are gone, while something that came by them is still on its way.
    pub(super) departing: hashbrown::HashMap<ConnectionKey, Departing>,
}

impl ArbiterState {
    /// Makes this thread the arbiter `id`.
    pub fn install(id: u16, shared: Arc<Shared>, counters: ArbiterCounters) {
        let state = Self::new(id, shared, counters);
        ARBITER.with_borrow_mut(|arbiter| *arbiter = Some(Box::new(state)));
    }

    /// The arbiter `id`, without connections. Somebody must drive it: the tasks of its thread, or [`super::stepped`].
    #[must_use]
    pub fn new(id: u16, shared: Arc<Shared>, counters: ArbiterCounters) -> Self {
        let groups = shared.submitter.slots().groups();
        Self {
            id,
            counters,
            clients: Slab::new(),
            generation: 0,
            subscriptions: LocalSubscriptions::new(),
            cache: match shared.settings.session.overlapping {
                Overlapping::OneCopy => MatchCache::new(),
                Overlapping::OneEach => MatchCache::one_each(),
            },
            templates: Templates::default(),
            pool: BufferPool::default(),
            batches: (0..shared.inboxes.len()).map(|_| Batch::default()).collect(),
            lanes: Lanes::new(
                shared.cluster.as_ref().map(|cluster| (cluster.node, &*cluster.peers)),
                shared.incarnation(),
                id,
                groups,
            ),
            claim_turns: ClaimTurns::new(groups, claims::UNDER_WAY_MAX),
            message_number: 0,
            now: shared.clock.elapsed(),
            now_ms: shared.now_ms(),
            timing: Timing::default(),
            dirty: Vec::new(),
            flush_scheduled: false,
            flush_waker: None,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            large_reads_left: LARGE_BYTES_A_TURN_MAX,
            memory_look_in: MEMORY_LOOK_BYTES,
            was_memory_short: false,
            unfinished_bytes_max: UNFINISHED_BYTES_MAX,
            rest_bytes_left: REST_BYTES_A_SECOND,
            amid_packet: VecDeque::new(),
            work: 0,
            work_until: u64::MAX,
            refusal_lines: LogRate::default(),
            wheel: Wheel::default(),
            held_up: Vec::new(),
            behind_suback: BTreeSet::new(),
            let_in: 0,
            handshaking: Handshaking::default(),
            paced: Vec::new(),
            paced_waker: None,
            looking_again: LookingAgain::default(),
            bans_seen: 0,
            slow_reads: Vec::new(),
            changing: Vec::new(),
            lately: Lately::default(),
            sessions_going_over: 0,
            overlap_looks_left: OVERLAPS_LOOKED_AT_MAX,
            stalled: Vec::new(),
            settling: ShareSettling::default(),
            taking: ShareTaking::default(),
            interest: InterestChanges::default(),
            withheld: Vec::new(),
            withheld_barrier: None,
            barriers: BTreeMap::new(),
            unread: Vec::new(),
            unwritten: BTreeSet::new(),
            client_events: VecDeque::new(),
            ending: false,
            departing: hashbrown::HashMap::new(),
            shared,
        }
    }

    /// Calls `act` with this thread's arbiter. `None` on a thread that is none, or no more.
    pub fn with<R>(act: impl FnOnce(&mut Self) -> R) -> Option<R> {
        ARBITER.with_borrow_mut(|arbiter| arbiter.as_deref_mut().map(act))
    }

    /// Reads the process clock for what follows in this turn.
    #[inline]
    pub(super) fn read_clock(&mut self) {
        self.now = self.shared.clock.elapsed();
        self.now_ms = self.now.as_millis() as u64;
    }

    /// The connection `key`, unless it is gone.
    #[inline]
    pub(super) fn client(&mut self, key: ConnectionKey) -> Option<&mut Client> {
        let id = self.id;
        let client = self.clients.get_mut(key.index())?;
        (ConnectionKey::new(id, key.index() as u32, client.generation) == key).then_some(client)
    }

    /// Seconds of the process clock.
    #[inline]
    pub(super) fn now_seconds(&self) -> u32 {
        seconds(self.now_ms)
    }

    /// Whether connections are still taken in.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending
    }

    /// Takes a socket in. The caller starts the actor, which then calls [`Self::poll_connection`].
    pub fn add_connection(
        &mut self,
        transport: Transport,
        listener: Arc<ListenerContext>,
        peer: Option<std::net::SocketAddr>,
    ) -> ConnectionKey {
        self.read_clock();
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let now = self.now_seconds();
        let connect_seconds = listener.config.connect_timeout_seconds;
        let index = self.clients.insert(Client {
            generation,
            phase: Phase::AwaitingConnect,
            version: ProtocolVersion::V3_1_1,
            dirty: false,
            blocked: false,
            deaf: false,
            unprocessed: false,
            paused: false,
            amid_packet: false,
            held_up: false,
            unanswered: 0,
            behind_suback: BehindSuback::No,
            went_on_second: 0,
            behind_blocked: None,
            guarded: false,
            taken_over: false,
            breaks_off: false,
            keep_alive_seconds: 0,
            last_activity: now,
            blocked_since: 0,
            hung_up_since: 0,
            owes_reading: false,
            pace: Pace::default(),
            paced: false,
            packet_bytes_max_out: u32::MAX,
            transport,
            out: OutBuffer::default(),
            partial: Vec::new(),
            waker: None,
            address: None,
            client_id: Arc::from(""),
            session: None,
            pending: None,
            listener,
            mount: None,
            origin: peer.into(),
        });
        let key = ConnectionKey::new(self.id, index as u32, generation);
        self.wheel.arm(key, now + connect_seconds.get());
        self.counters.sockets_accepted.inc();
        key
    }

    /// The actor of `key` ended: nothing of the connection stays.
    pub fn remove_connection(&mut self, key: ConnectionKey) {
        if self.client(key).is_none() {
            return;
        }
        self.tear_down(key, super::ended::EndCause::Dropped);
        self.timing.forget(key);
        let mut client = self.clients.remove(key.index());
        if client.breaks_off {
            client.transport.reset_when_closed();
        } else {
            client.transport.take_leave();
        }
        self.shared.connection_closed(&client.listener, self.id);
    }

    /// Reads and handles what the socket has. `Ready`: the connection is over and the actor should stop.
    pub fn poll_connection(&mut self, key: ConnectionKey, cx: &mut Context<'_>) -> Poll<()> {
        let Some(client) = self.client(key) else {
            return Poll::Ready(());
        };
        if !client.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            client.waker = Some(cx.waker().clone());
        }
        if client.blocked {
            match client.transport.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {
                    client.blocked = false;
                    self.mark_dirty(key);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        self.poll_read(key, cx)
    }

    fn poll_read(&mut self, key: ConnectionKey, cx: &mut Context<'_>) -> Poll<()> {
        self.work_until = self.work + WORK_A_TURN_MAX;
        let outcome = self.poll_turn(key, cx);
        self.work_until = u64::MAX;
        outcome
    }

    fn poll_turn(&mut self, key: ConnectionKey, cx: &mut Context<'_>) -> Poll<()> {
        let mut reads = 0;
        // Above the bound at which QoS 0 is dropped, so that only what it asks for itself can stop a client.
        let out_bytes_max = (self.shared.settings.session.out_buffer_bytes_max as usize).saturating_mul(2);
        loop {
            let Some(client) = self.client(key) else {
                return Poll::Ready(());
            };
            let phase = client.phase;
            match phase {
                Phase::Closing if client.out.is_empty() => return Poll::Ready(()),
                Phase::Verifying => return self.look_ahead(key, cx),
                Phase::Closing | Phase::Leaving | Phase::AwaitingTurn | Phase::Claiming => return Poll::Pending,
                _ if client.paused => return Poll::Pending,
                // What is asked of us must not grow what we hold without end: PINGREQ after PINGREQ, never reading.
                _ if client.out.len() > out_bytes_max => {
                    client.owes_reading = true;
                    return Poll::Pending;
                }
                _ => {}
            }
            let unprocessed = client.unprocessed;
            if self.work >= self.work_until || (reads == READS_A_TURN_MAX && !unprocessed) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if unprocessed {
                self.consume_leftover(key);
                continue;
            }
            let read = match phase {
                Phase::AwaitingConnect => self.read_first(key, cx),
                _ => self.read_once(key, cx),
            };
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    self.tear_down(key, super::ended::EndCause::ClosedByPeer);
                    return Poll::Ready(());
                }
                Poll::Ready(Ok(_)) => {
                    reads += 1;
                    if phase != Phase::Connected && self.shared.memory_level() >= MEMORY_LEVEL_REFUSES {
                        self.end_stranger_with_much(key);
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.tear_down(key, super::ended::EndCause::of_reading(&error));
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Reads a little of what a client says while somebody is asked about it, to notice when it is gone. `Ready`: it is, and nothing
    /// is still to be done for it. What it said before it went is, as it need not wait for CONNACK.
    fn look_ahead(&mut self, key: ConnectionKey, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(client) = self.client(key) else {
                return Poll::Ready(());
            };
            let mut bytes = [0; LOOK_AHEAD_BYTES_MAX];
            let room = LOOK_AHEAD_BYTES_MAX.saturating_sub(client.partial.len());
            if room == 0 {
                return Poll::Pending;
            }
            let mut target = ReadBuf::new(&mut bytes[..room]);
            let outcome = client.transport.poll_read(cx, &mut target);
            let cause = match outcome {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !target.filled().is_empty() => {
                    client.partial.extend_from_slice(target.filled());
                    client.unprocessed = true;
                    let count = target.filled().len() as u64;
                    self.counters.bytes_received.add(count);
                    continue;
                }
                Poll::Ready(Ok(())) if client.partial.is_empty() => super::ended::EndCause::ClosedByPeer,
                Poll::Ready(Ok(())) => return Poll::Pending,
                Poll::Ready(Err(error)) => super::ended::EndCause::of_reading(&error),
            };
            self.tear_down(key, cause);
            return Poll::Ready(());
        }
    }

    /// One read and what it brought. A packet larger than the read buffer gets a buffer of its own, which grows as
    /// the bytes come, not as its header promises.
    pub(super) fn read_once(&mut self, key: ConnectionKey, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let unfinished_max = self.unfinished_bytes_max;
        let Some(client) = self.client(key) else {
            return Poll::Ready(Ok(0));
        };
        if client.partial.len() >= unfinished_max {
            return self.read_large(key, cx);
        }
        let mut buffer = mem::take(&mut self.read_buffer);
        // A panic while something was read would have taken it along, and every read after it would look like an end.
        buffer.resize(READ_BUFFER_BYTES, 0);
        let Some(client) = self.client(key) else {
            return Poll::Ready(Ok(0));
        };
        let before = client.partial.len();
        buffer[..before].copy_from_slice(&client.partial);
        let mut target = ReadBuf::new(&mut buffer[before..2 * unfinished_max]);
        let outcome = client.transport.poll_read(cx, &mut target);
        let count = target.filled().len();
        let outcome = match outcome {
            Poll::Ready(Ok(())) if count > 0 => {
                client.partial.clear();
                self.counters.bytes_received.add(count as u64);
                let filled = before + count;
                let consumed = self.consume(key, &buffer[..filled], None);
                if let Some(client) = self.client(key) {
                    if consumed < filled {
                        client.partial.extend_from_slice(&buffer[consumed..filled]);
                        if consumed == 0 {
                            self.hear_part(key, before, filled);
                        }
                    } else if client.partial.capacity() > 0 {
                        client.partial = Vec::new();
                    }
                }
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(0)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.read_buffer = buffer;
        outcome
    }

    fn read_large(&mut self, key: ConnectionKey, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        // The flush task begins the next turn.
        self.schedule_flush();
        if self.large_reads_left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let limits = self.limits(key);
        let Some(client) = self.client(key) else {
            return Poll::Ready(Ok(0));
        };
        let needed = match codec::split_frame(&client.partial, Sender::Client, &limits) {
            Ok(FrameStatus::Incomplete { needed }) => needed,
            // Whole packets in there are handled before another byte is read; a fault shows there as well.
            Ok(FrameStatus::Complete(_)) | Err(_) => {
                client.unprocessed = true;
                return Poll::Ready(Ok(1));
            }
        };
        let is_short = self.look_at_memory() >= MEMORY_LEVEL_PAUSES;
        if is_short && self.must_wait_amid_packet(key) {
            return Poll::Pending;
        }
        let Some(client) = self.client(key) else {
            return Poll::Ready(Ok(0));
        };
        let (filled, capacity) = (client.partial.len(), client.partial.capacity());
        let missing = needed.saturating_sub(filled).max(1);
        // What is read at once stays small, so that others have their turn.
        if client.partial.capacity() == filled {
            client.partial.reserve_exact(large_capacity(needed, filled) - filled);
        }
        let room = missing.min(client.partial.capacity() - filled).min(LARGE_READ_BYTES_MAX);
        client.partial.resize(filled + room, 0);
        let mut target = ReadBuf::new(&mut client.partial[filled..]);
        let outcome = client.transport.poll_read(cx, &mut target);
        let count = target.filled().len();
        client.partial.truncate(filled + count);
        let taken = client.partial.capacity().saturating_sub(capacity).max(count);
        self.large_reads_left = self.large_reads_left.saturating_sub(count);
        if is_short {
            self.rest_bytes_left = self.rest_bytes_left.saturating_sub(taken);
        }
        self.look_at_memory_after(taken);
        let Some(client) = self.client(key) else {
            return Poll::Ready(Ok(0));
        };
        let complete = client.partial.len() >= needed;
        match outcome {
            Poll::Ready(Ok(())) if count > 0 => {
                if complete {
                    let whole = Bytes::from(mem::take(&mut client.partial));
                    let consumed = self.consume(key, &whole, Some(&whole));
                    if consumed < whole.len()
                        && let Some(client) = self.client(key)
                    {
                        client.partial.extend_from_slice(&whole[consumed..]);
                    }
                } else {
                    self.read_clock();
                    self.hear_part(key, filled, filled + count);
                }
                self.counters.bytes_received.add(count as u64);
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(0)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// More of a packet came that is still to be finished: with much of it, its client was heard as with a whole one [MQTT-3.1.2-22].
    /// On a slow link a large message takes longer than the Keep Alive, and nothing can be said amid it.
    fn hear_part(&mut self, key: ConnectionKey, before: usize, filled: usize) {
        let now = self.now_seconds();
        if filled / ACTIVITY_BYTES > before / ACTIVITY_BYTES
            && let Some(client) = self.client(key).filter(|client| client.is_connected())
        {
            client.last_activity = now;
        }
    }

    /// How short memory is; from here on that says what may come of a packet before its rest.
    fn look_at_memory(&mut self) -> u8 {
        let level = self.shared.memory_level();
        let is_short = level >= MEMORY_LEVEL_PAUSES;
        self.unfinished_bytes_max = if is_short { UNFINISHED_BYTES_MAX_SHORT } else { UNFINISHED_BYTES_MAX };
        level
    }

    /// Large packets took so much more of it.
    fn look_at_memory_after(&mut self, bytes: usize) {
        self.memory_look_in = self.memory_look_in.saturating_sub(bytes);
        if self.memory_look_in == 0 {
            self.memory_look_in = MEMORY_LOOK_BYTES;
            self.shared.watch_memory();
        }
    }

    /// Memory is short, and a connection has said the beginning of a packet. Whether its rest must wait. While nothing of it is
    /// held up for others, what it has said would be handled: so each goes on by a packet, when it is its turn.
    fn must_wait_amid_packet(&mut self, key: ConnectionKey) -> bool {
        if self.rest_bytes_left > 0 {
            return false;
        }
        let Some(client) = self.client(key).filter(|client| client.is_connected()) else {
            return false;
        };
        client.paused = true;
        if !mem::replace(&mut client.amid_packet, true) {
            self.amid_packet.push_back(key);
        }
        self.shared.publishers_paused.store(true, Ordering::Release);
        self.fall_behind(key);
        true
    }

    /// Reads those on that wait in the midst of a packet: all of them once memory is not short any more, else the next few. Whoever says
    /// nothing then is silent, for which its Keep Alive may end it.
    pub(super) fn go_on_amid_packets(&mut self) {
        let all = self.amid_packet.len();
        let count = if self.look_at_memory() >= MEMORY_LEVEL_PAUSES { all.min(RESTS_A_SECOND_MAX) } else { all };
        for _ in 0..count {
            let Some(key) = self.amid_packet.pop_front() else {
                return;
            };
            let Some(client) = self.client(key) else {
                continue;
            };
            client.amid_packet = false;
            if !self.is_full(key) {
                self.resume_reading(key);
            }
        }
    }

    /// Memory is short: whoever nobody knows yet is owed none of it for a packet whose rest is still to come.
    fn end_stranger_with_much(&mut self, key: ConnectionKey) {
        let is_stranger = |client: &&mut Client| matches!(client.phase, Phase::AwaitingConnect | Phase::Authenticating);
        let client = self.client(key).filter(is_stranger);
        if client.is_some_and(|client| client.partial.capacity() > UNFINISHED_BYTES_MAX_SHORT) {
            self.counters.connects_refused.inc(ConnectRefusal::Busy);
            self.tear_down(key, super::ended::EndCause::Refused(ReasonCode::ServerBusy));
            self.end_now(key);
        }
    }

    /// Packets that were read before reading had to stop.
    fn consume_leftover(&mut self, key: ConnectionKey) {
        let Some(client) = self.client(key) else {
            return;
        };
        client.unprocessed = false;
        let leftover = mem::take(&mut client.partial);
        let consumed = self.consume(key, &leftover, None);
        if consumed < leftover.len()
            && let Some(client) = self.client(key)
        {
            client.partial.extend_from_slice(&leftover[consumed..]);
        }
    }

    /// Handles the whole packets in `buffer` and returns how many bytes they were. Stops early when the
    /// connection must not be read for now, and remembers that.
    fn consume(&mut self, key: ConnectionKey, buffer: &[u8], source: Option<&Bytes>) -> usize {
        self.read_clock();
        let mut limits = self.limits(key);
        let (mut held_up, mut has_asked) =
            self.client(key).map_or((false, false), |client| (client.held_up, client.unanswered > 0));
        let mut asks = false;
        // What others put there is nothing to this one.
        self.lanes.take_touched_blocked();
        let mut position = 0;
        while position < buffer.len() {
            if (has_asked && self.waits_for_suback(key, buffer[position]))
                || (held_up && self.waits_for_others(key, buffer[position]))
            {
                self.fall_behind(key);
                break;
            }
            match codec::split_frame(&buffer[position..], Sender::Client, &limits) {
                Ok(FrameStatus::Complete(frame)) => {
                    if self.shared.cluster.is_some()
                        && (self.waits_for_lease(key, &frame) || self.waits_for_answers(key, &frame))
                    {
                        self.fall_behind(key);
                        break;
                    }
                    position += frame.len();
                    asks |= asks_something(frame.packet_type());
                    self.on_frame(key, &frame, source, &limits);
                    // One read may hold hundreds.
                    if self.lanes.is_touched_for_delayed() {
                        self.hold_up_if_overloaded(key, None);
                        held_up = true;
                    }
                    match frame.packet_type() {
                        PacketType::Connect => limits = self.limits(key),
                        PacketType::Subscribe | PacketType::Unsubscribe => {
                            has_asked = self.client(key).is_some_and(|client| client.unanswered > 0);
                        }
                        _ => {}
                    }
                }
                Ok(FrameStatus::Incomplete { .. }) => break,
                Err(error) => {
                    self.on_no_packet(key, &buffer[position..], &error);
                    return buffer.len();
                }
            }
            match self.clients.get_mut(key.index()) {
                Some(client) if matches!(client.phase, Phase::Connected | Phase::Authenticating) => {
                    if client.paused || self.work >= self.work_until {
                        client.unprocessed = position < buffer.len();
                        break;
                    }
                }
                Some(client) if matches!(client.phase, Phase::Verifying | Phase::AwaitingTurn | Phase::Claiming) => {
                    client.unprocessed = position < buffer.len();
                    break;
                }
                // Nothing that follows the end of a connection counts [MQTT-3.1.4-6].
                _ => return buffer.len(),
            }
        }
        if asks {
            self.hold_up_if_overloaded(key, buffer.get(position));
        }
        let now = self.now_seconds();
        if position > 0
            && let Some(client) = self.clients.get_mut(key.index())
        {
            client.last_activity = now;
        }
        position
    }

    /// What a client said goes into a lane with its name.
    #[inline]
    pub(super) fn count_named(&mut self, client_id: &str) {
        self.work += (client_id.len() / NAME_BYTES_OF_WORK) as u64;
    }

    /// What comes is not read for now, and not for its rates.
    fn fall_behind(&mut self, key: ConnectionKey) {
        let now_ms = self.now_ms;
        if let Some(client) = self.client(key) {
            client.pace.fall_behind(now_ms);
        }
    }

    fn limits(&mut self, key: ConnectionKey) -> Limits {
        let Some(client) = self.client(key) else {
            return Limits::default();
        };
        if client.phase == Phase::AwaitingConnect {
            client.listener.limits_before_connect
        } else {
            Limits { dup_on_requests: client.version == ProtocolVersion::V3_1, ..client.listener.limits }
        }
    }

    /// The connection has something to write when the turn ends.
    #[inline]
    pub(super) fn mark_dirty(&mut self, key: ConnectionKey) {
        let client = &mut self.clients[key.index()];
        if !client.dirty {
            client.dirty = true;
            self.dirty.push(key);
            self.schedule_flush();
        }
    }

    /// The flush task runs at the end of this turn.
    #[inline]
    pub(super) fn schedule_flush(&mut self) {
        if !self.flush_scheduled {
            self.flush_scheduled = true;
            self.timing.begin_turn(self.now);
            if let Some(waker) = &self.flush_waker {
                waker.wake_by_ref();
            }
        }
    }

    /// The flush task: hands over what the turn gathered.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.flush_waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.flush_waker = Some(cx.waker().clone());
        }
        if self.flush_scheduled {
            self.take_events();
            let turn = self.timing.turn();
            self.flush_scheduled = false;
            self.large_reads_left = LARGE_BYTES_A_TURN_MAX;
            self.overlap_looks_left = OVERLAPS_LOOKED_AT_MAX;
            if !self.client_events.is_empty() {
                self.publish_client_events();
            }
            self.next_handshakes();
            self.look_again_at_some();
            self.flush_hurried_lanes();
            self.flush_interest();
            self.flush_clients();
            self.timing.end_turn(turn, self.shared.clock.elapsed(), &self.counters);
        }
        Poll::Pending
    }

    /// What gathered for the other arbiters here goes into their inboxes.
    pub(super) fn flush_batches(&mut self) {
        for (target, batch) in self.batches.iter_mut().enumerate() {
            if !batch.is_empty() {
                let empty = self.shared.recycled[usize::from(self.id)].pop().unwrap_or_default();
                let mut full = mem::replace(batch, empty);
                full.set_oldest(self.timing.turn().oldest);
                let weight = full.weight_bytes();
                self.counters.arbiter_batches.inc();
                self.counters.arbiter_batch_deliveries.add(full.len() as u64);
                self.shared.inboxes[target].push(Event::Batch { from: Some(self.id), batch: full, weight }, weight);
            }
        }
    }

    fn flush_clients(&mut self) {
        let mut dirty = mem::take(&mut self.dirty);
        let mut large_left = LARGE_BYTES_A_TURN_MAX;
        let mut unfinished = Vec::new();
        for key in dirty.drain(..) {
            if self.flush_client(key, &mut large_left) {
                unfinished.push(key);
            }
        }
        // Behind those that found the turn's bytes used up.
        for key in unfinished {
            self.mark_dirty(key);
        }
        // What was marked meanwhile belongs to the next flush.
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
    }

    /// `true`: the socket would take more, but it is the turn of others.
    fn flush_client(&mut self, key: ConnectionKey, large_left: &mut usize) -> bool {
        let (id, now_ms) = (self.id, self.now_ms);
        let Some(client) = self.clients.get_mut(key.index()) else {
            return false;
        };
        if ConnectionKey::new(id, key.index() as u32, client.generation) != key {
            return false;
        }
        client.dirty = false;
        if client.deaf {
            client.out = OutBuffer::default();
            if client.phase == Phase::Closing || mem::take(&mut client.owes_reading) {
                wake(client);
            }
            return false;
        }
        // Asked here and not where it was decided on: the process may have stood still since, for longer than a lease (P7).
        if client.out.needs_lease() && !self.shared.may_acknowledge() {
            if client.phase == Phase::Closing {
                self.forget_unwritten(key);
            } else {
                self.unwritten.insert(key);
            }
            return false;
        }
        if client.blocked {
            return false;
        }
        let before = client.out.len();
        let large = client.out.is_large();
        if large && *large_left == 0 {
            self.mark_dirty(key);
            return false;
        }
        let outcome = client.out.flush(&mut client.transport, &mut self.pool);
        let written = before - client.out.len();
        if large {
            *large_left = large_left.saturating_sub(written);
        }
        if written > 0 && client.blocked_since != 0 {
            client.blocked_since = seconds(now_ms).max(1);
        }
        self.counters.bytes_sent.add(written as u64);
        self.counters.flushes.add(u64::from(before > 0));
        match outcome {
            Ok(Flushed::All) if client.phase == Phase::Closing => {
                if !client.breaks_off {
                    client.transport.shut_down_write();
                }
                wake(client);
            }
            Ok(Flushed::All) => {
                if mem::take(&mut client.owes_reading) {
                    wake(client);
                }
                self.after_flush(key);
            }
            Ok(Flushed::Part) => return true,
            Ok(Flushed::Blocked) => {
                client.blocked = true;
                wake(client);
                self.watch_stalled(key);
            }
            // As of one that closes without waiting for answers: what it said before is still there to be read, its DISCONNECT maybe.
            Err(_) if client.phase == Phase::Connected => {
                client.out = OutBuffer::default();
                client.deaf = true;
                if client.blocked_since != 0 {
                    client.blocked_since = seconds(now_ms).max(1);
                }
                wake(client);
                self.watch_stalled(key);
            }
            Err(_) => {
                client.out = OutBuffer::default();
                self.tear_down(key, super::ended::EndCause::WriteFailed);
                if let Some(client) = self.client(key) {
                    client.phase = Phase::Closing;
                    wake(client);
                }
            }
        }
        false
    }

    /// Handles what came from other threads. Stops after a while, so that sockets have their turn.
    pub fn take_events(&mut self) -> bool {
        const EVENTS_A_TURN_MAX: usize = 256;
        self.read_clock();
        let shared = Arc::clone(&self.shared);
        let inbox = &shared.inboxes[usize::from(self.id)];
        for _ in 0..EVENTS_A_TURN_MAX {
            let Some(event) = inbox.pop() else {
                return false;
            };
            self.on_event(event);
        }
        true
    }

    /// The event task: [`Self::take_events`] whenever something comes.
    pub fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.counters.arbiter_wakeups.inc();
        loop {
            if self.take_events() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.shared.inboxes[usize::from(self.id)].arm(cx.waker()) {
                return Poll::Pending;
            }
        }
    }

    /// Once a second: deadlines, counters, publishers that paused.
    pub fn on_second(&mut self) {
        self.read_clock();
        let mut due = Vec::new();
        self.wheel.advance(self.now_seconds(), &mut due);
        for key in due {
            self.on_deadline(key);
        }
        self.let_in = 0;
        if self.id == 0 {
            self.shared.watch_memory();
            self.shared.watches.end_what_is_over(self.now_ms);
            self.count_accepting();
        }
        let memory_level = self.look_at_memory();
        let is_short = memory_level >= MEMORY_LEVEL_REFUSES;
        if is_short && !mem::replace(&mut self.was_memory_short, is_short) {
            // Who comes later, or says more, is looked at then.
            self.keys().into_iter().for_each(|key| self.end_stranger_with_much(key));
        }
        self.was_memory_short = is_short;
        if is_short {
            // Before others are read on: they have until the next second to say something.
            self.end_unfinished();
        }
        if memory_level >= MEMORY_LEVEL_CLOSES {
            self.close_slowest();
        }
        self.rest_bytes_left = REST_BYTES_A_SECOND;
        self.go_on_amid_packets();
        self.end_stalled();
        self.end_hung_up();
        self.end_banned();
        self.flush_lanes();
        self.retry_lanes();
        self.show_backlog();
        self.resume_publishers();
        self.look_behind_publishes();
        self.end_waits_for_suback();
        self.continue_slow_reads();
        self.go_on_changing();
        let (hits, misses) = self.cache.take_hits_and_misses();
        self.counters.route_cache_hits.add(hits);
        self.counters.route_cache_misses.add(misses);
        self.counters.flush();
        self.timing.counters_flushed();
        let unlogged = self.refusal_lines.take_unlogged();
        if unlogged > 0 {
            tracing::warn!(unlogged, "more refusals than are logged one by one");
        }
    }

    fn on_deadline(&mut self, key: ConnectionKey) {
        let now = self.now_seconds();
        let Some(client) = self.client(key) else {
            return;
        };
        let connect_seconds = client.listener.config.connect_timeout_seconds.get();
        match client.phase {
            // The client has done its part, and waits for us: in a queue that is bounded, and moves on.
            Phase::Verifying => self.wheel.arm(key, now.saturating_add(connect_seconds)),
            // It may have waited so long that the time of its CONNECT is over.
            Phase::AwaitingTurn | Phase::Claiming if now < client.last_activity.saturating_add(connect_seconds) => {
                let due = client.last_activity.saturating_add(connect_seconds);
                self.wheel.arm(key, due);
            }
            Phase::AwaitingConnect | Phase::Authenticating | Phase::AwaitingTurn | Phase::Claiming => {
                self.tear_down(key, super::ended::EndCause::ConnectTimeout);
                self.end_now(key);
            }
            Phase::Leaving | Phase::Closing if now < client.last_activity => {}
            Phase::Leaving => {
                // Nobody knows whether its group has heard of DISCONNECT.
                client.breaks_off = true;
                self.end_now(key);
            }
            Phase::Closing => self.end_now(key),
            Phase::Connected => {
                if client.session.as_ref().is_some_and(|session| now < session.look_at) {
                    return;
                }
                let login_ends = client.session.as_ref().and_then(|session| session.login_ends_second());
                if login_ends.is_some_and(|ends| ends <= now) {
                    let cause = super::ended::EndCause::LoginExpired;
                    return self.end(key, cause, Some(ReasonCode::MaximumConnectTime));
                }
                if !self.renew_rights_if_due(key) {
                    return;
                }
                let Some(client) = self.client(key) else {
                    return;
                };
                let looked_at_next = client.session.as_ref().and_then(|session| session.next_second(now));
                if let Some(session) = client.session.as_mut() {
                    session.look_at = u32::MAX;
                }
                if client.keep_alive_seconds == 0 {
                    if let Some(next) = looked_at_next {
                        self.look_by(key, next);
                    }
                    return;
                }
                let allowed = silence_seconds_max(client.keep_alive_seconds);
                // A client that we do not read cannot be blamed for its silence.
                if client.paused || client.unprocessed {
                    client.last_activity = now;
                }
                let due = client.last_activity + allowed;
                if now >= due {
                    self.counters.keep_alive_timeouts.inc();
                    self.end(key, super::ended::EndCause::KeepAlive, Some(ReasonCode::KeepAliveTimeout));
                } else {
                    let due = looked_at_next.map_or(due, |next| next.min(due));
                    self.look_by(key, due.min(now + LOOK_SECONDS_MAX));
                }
            }
        }
    }

    /// A connected client is looked at in that second, unless it is before. What was armed for it and comes later is passed over then, or
    /// each change of plans would be one more to come up for ever.
    pub(super) fn look_by(&mut self, key: ConnectionKey, second: u32) {
        let session = self.client(key).and_then(|client| client.session.as_mut());
        if let Some(session) = session.filter(|session| second < session.look_at) {
            session.look_at = second;
            self.wheel.arm(key, second);
        }
    }

    /// What the acceptor counted, which has no counters of its own.
    fn count_accepting(&self) {
        let taken = |counter: &std::sync::atomic::AtomicU64| counter.swap(0, Ordering::Relaxed);
        let refused = &self.counters.connects_refused;
        refused.add(ConnectRefusal::TooManyConnections, taken(&self.shared.connections_too_many));
        refused.add(ConnectRefusal::ConnectRate, taken(&self.shared.connections_too_fast));
        refused.add(ConnectRefusal::Banned, taken(&self.shared.connections_banned));
        self.counters.descriptors_exhausted.add(taken(&self.shared.descriptors_exhausted));
        self.counters.audit_dropped.add(self.shared.audit.take_dropped());
        self.shared.audit.note_left_out(self.shared.clock.wall_ms());
    }

    /// The socket of `key` takes no more for now.
    fn watch_stalled(&mut self, key: ConnectionKey) {
        let now = self.now_seconds();
        let Some(client) = self.client(key) else {
            return;
        };
        if client.blocked_since == 0 {
            // Never 0, which means that nobody watches.
            client.blocked_since = now.max(1);
            self.stalled.push(key);
        }
    }

    /// Ends the connections whose peers have taken nothing for too long.
    fn end_stalled(&mut self) {
        let now = self.now_seconds();
        let longest = self.shared.settings.session.stalled_seconds_max;
        for key in mem::take(&mut self.stalled) {
            let Some(client) = self.client(key) else {
                continue;
            };
            if client.deaf {
                // As long as something is read of what it said, or its rate lets nothing be read, that goes on.
                let since = client.blocked_since.max(client.last_activity);
                if !client.paced && now.saturating_sub(since) >= DEAF_SECONDS_MAX {
                    self.tear_down(key, super::ended::EndCause::WriteFailed);
                    self.end_now(key);
                } else {
                    self.stalled.push(key);
                }
            } else if client.out.is_empty() {
                client.blocked_since = 0;
            } else if longest != 0 && client.blocked && now.saturating_sub(client.blocked_since) >= longest {
                // One that is not blocked waits for us: for its turn among others who get much.
                self.tear_down(key, super::ended::EndCause::SlowConsumer);
                self.end_now(key);
            } else {
                self.stalled.push(key);
            }
        }
    }

    /// Memory is far over its mark: those connections go that hold most of it, if it is much, as many as bring it under the mark. Each
    /// arbiter has its part in that.
    fn close_slowest(&mut self) {
        let id = self.id;
        let arbiters = self.shared.inboxes.len().max(1) as u64;
        let mut over = self.shared.memory_bytes_over().div_ceil(arbiters);
        let holding = self
            .clients
            .iter()
            .map(|(index, client)| (client.waiting_bytes(), ConnectionKey::new(id, index as u32, client.generation)));
        let mut slowest: Vec<_> = holding.filter(|&(bytes, _)| bytes >= CLOSED_BYTES_MIN).collect();
        slowest.sort_unstable_by_key(|&holding| Reverse(holding));
        slowest.truncate((self.clients.len() / CLOSED_SHARE).clamp(1, CLOSED_A_SECOND_MAX));
        for (bytes, key) in slowest {
            if over == 0 {
                return;
            }
            over = over.saturating_sub(bytes as u64);
            let partial_bytes = self.client(key).map_or(0, |client| client.partial.capacity());
            let cause = match partial_bytes > bytes / 2 {
                true => super::ended::EndCause::UnfinishedPacket,
                false => super::ended::EndCause::SlowConsumer,
            };
            self.tear_down(key, cause);
            self.end_now(key);
        }
    }

    /// Memory is short: whoever began a large packet, and could go on with it, holds some of it for a time only.
    fn end_unfinished(&mut self) {
        let (id, now) = (self.id, self.now_seconds());
        let is_silent = |client: &Client| {
            // A client that we do not read cannot be blamed for its silence.
            let is_read = !client.paused && !client.unprocessed && !client.owes_reading;
            let is_over = now.saturating_sub(client.last_activity) >= UNFINISHED_SECONDS_MAX;
            client.is_connected() && is_read && is_over && client.partial.capacity() > UNFINISHED_BYTES_MAX_SHORT
        };
        let silent = self.clients.iter().filter(|(_, client)| is_silent(client));
        let silent = silent.map(|(index, client)| ConnectionKey::new(id, index as u32, client.generation));
        for key in silent.take(CLOSED_A_SECOND_MAX).collect::<Vec<_>>() {
            self.tear_down(key, super::ended::EndCause::UnfinishedPacket);
            self.end_now(key);
        }
    }

    /// Stops the actor without waiting for unwritten bytes, our DISCONNECT maybe among them.
    pub(super) fn end_now(&mut self, key: ConnectionKey) {
        if let Some(client) = self.client(key) {
            client.phase = Phase::Closing;
            client.breaks_off |= !client.out.is_empty();
            client.out = OutBuffer::default();
            wake(client);
        }
    }

    /// Connections here, of any phase.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.clients.len()
    }

    /// Keys of all connections.
    pub(super) fn keys(&self) -> Vec<ConnectionKey> {
        let id = self.id;
        self.clients.iter().map(|(index, client)| ConnectionKey::new(id, index as u32, client.generation)).collect()
    }
}

#[inline]
fn seconds(ms: u64) -> u32 {
    (ms / 1000) as u32
}

/// Room for a packet of `needed` bytes of which `filled` have come: all of it, or so much that the next step is all of it.
/// At most 32 times what has come, so that nobody gets memory for a promise; in few steps, because each copies.
fn large_capacity(needed: usize, filled: usize) -> usize {
    let mut capacity = needed;
    while capacity / 16 >= filled * 2 {
        capacity /= 16;
    }
    capacity.max(filled + 1)
}

pub(super) fn wake(client: &Client) {
    if let Some(waker) = &client.waker {
        waker.wake_by_ref();
    }
}

impl ArbiterState {
    /// The actor of a connection, for what is rare.
    pub fn set_address(&mut self, key: ConnectionKey, address: actix::Addr<crate::connection::ConnectionActor>) {
        if let Some(client) = self.client(key) {
            client.address = Some(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::large_capacity;

    #[test]
    fn a_large_packet_gets_memory_as_it_comes_in_steps_that_copy_little() {
        for needed in [READ + 1, 100_000, 1 << 20, 16_777_300, 256 << 20] {
            let (mut filled, mut copied) = (READ, 0);
            while filled < needed {
                let capacity = large_capacity(needed, filled);
                assert!(capacity > filled && capacity <= needed.max(filled + 1), "{needed} {filled} {capacity}");
                assert!(capacity <= filled * 32, "memory for a promise: {needed} {filled} {capacity}");
                copied += filled;
                filled = capacity;
            }
            assert!(copied <= READ + needed / 7, "{copied} bytes copied for {needed}");
        }
    }

    const READ: usize = 32 * 1024;
}
