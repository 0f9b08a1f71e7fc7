//! What waits to be sent to one peer in one class.
//!
//! Whoever sends never waits: it appends under a short lock, and wakes the connection only if that was idle. The
//! connection takes whatever gathered meanwhile as one frame, so batches grow with the load and no timer makes them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::Stream;
use kentongan_proto::peer::{Kind, MESSAGE_HEADER_BYTES, wire};

use super::codec::{Frame, batch_bytes};
use super::doorbell::Doorbell;
use super::event::{Class, LinkEpoch};
use super::stats::{TransportStats, add, count};

/// A frame takes messages until it is this long. Longer frames cost less per message, but by now that gains nothing,
/// and encoding one delays everything else on the transport's thread.
const FRAME_BYTES_TARGET: usize = 256 * 1024;

/// Memory of a waiting message beside its body.
const MESSAGE_OVERHEAD_BYTES: usize = size_of::<Waiting>();

/// Why a message was not taken. It is gone; whoever must not lose it keeps it and sends it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer, or the network, takes less than is sent: try again later.
    #[error("the queue to this peer is full")]
    Full,
    /// There is no link now: wait for its `LinkUp`.
    #[error("there is no link to this peer now")]
    Down,
    /// The node is none of the peers.
    #[error("this node is none of the peers")]
    UnknownPeer,
    /// No frame can hold it: our own mistake.
    #[error("the message is longer than a frame may be")]
    TooLarge,
    /// The transport is stopping.
    #[error("the transport is stopping")]
    Stopping,
}

/// A message that waits. Its body may be in two pieces, so that what somebody keeps anyway need not be copied behind its
/// head.
#[derive(Debug)]
pub(super) struct Waiting {
    pub kind: Kind,
    pub body: [Bytes; 2],
}

impl Waiting {
    pub(super) fn body_bytes(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }
}

/// A bounded queue that is open while its link is up.
#[derive(Debug)]
pub(super) struct Outbox {
    class: Class,
    bytes_max: usize,
    message_bytes_max: usize,
    stats: Arc<TransportStats>,
    doorbell: Arc<Doorbell>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The life of the link that is up. Messages are taken only then; while there is none, the queue is empty.
    up: Option<LinkEpoch>,
    /// No more messages are taken; the stream ends once the queue is empty.
    finishing: bool,
    /// Counts streams: one that is not the newest ends.
    stream: u64,
    queue: VecDeque<Waiting>,
    bytes: usize,
    /// Bytes of those in the queue that Raft could do without.
    raft_bytes: usize,
    /// The connection, if it waits for messages.
    waker: Option<Waker>,
}

impl Outbox {
    pub(super) fn new(
        class: Class,
        bytes_max: usize,
        frame_bytes_max: usize,
        stats: Arc<TransportStats>,
        doorbell: Arc<Doorbell>,
    ) -> Arc<Self> {
        let message_bytes_max = max_body_bytes(frame_bytes_max);
        Arc::new(Self { class, bytes_max, message_bytes_max, stats, doorbell, state: Mutex::default() })
    }

    /// Appends a message. Never waits. Returns over which life of the link it goes; if `over` is given it is that, or the message is
    /// not taken.
    pub(super) fn push(&self, kind: Kind, body: [Bytes; 2], over: Option<LinkEpoch>) -> Result<LinkEpoch, SendError> {
        let message = Waiting { kind, body };
        let mut state = self.lock();
        let epoch = self.admit(&mut state, kind, message.body_bytes(), over)?;
        state.append(message);
        self.wake(state);
        Ok(epoch)
    }

    /// Appends messages that may be lost, as many as are taken, and wakes the connection once for all of them.
    pub(super) fn push_all(&self, kind: Kind, bodies: impl IntoIterator<Item = Bytes>) {
        let mut state = self.lock();
        for body in bodies {
            match self.admit(&mut state, kind, body.len(), None) {
                Ok(_) => state.append(Waiting { kind, body: [body, Bytes::new()] }),
                // Its sender tries again and again, and nobody else would say why nothing comes of it.
                Err(SendError::TooLarge) => {
                    tracing::error!(class = ?self.class, bytes = body.len(), "a message is longer than a frame may be; it is dropped");
                }
                Err(_) => {}
            }
        }
        self.wake(state);
    }

    /// Wakes the connection if it waits, outside of the lock.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            self.doorbell.ring(waker);
        }
    }

    fn admit(
        &self,
        state: &mut State,
        kind: Kind,
        body_bytes: usize,
        over: Option<LinkEpoch>,
    ) -> Result<LinkEpoch, SendError> {
        self.has_room(state, kind, body_bytes, over).inspect_err(|error| match error {
            SendError::Full => count(&self.stats.class(self.class).refused_full),
            SendError::Down => count(&self.stats.class(self.class).refused_down),
            SendError::TooLarge => count(&self.stats.class(self.class).refused_too_large),
            _ => {}
        })
    }

    fn has_room(
        &self,
        state: &mut State,
        kind: Kind,
        body_bytes: usize,
        over: Option<LinkEpoch>,
    ) -> Result<LinkEpoch, SendError> {
        if body_bytes > self.message_bytes_max {
            return Err(SendError::TooLarge);
        }
        if state.finishing {
            return Err(SendError::Stopping);
        }
        let Some(epoch) = state.up.filter(|&up| over.is_none_or(|over| over == up)) else {
            return Err(SendError::Down);
        };
        if state.bytes + cost(body_bytes) > self.bytes_max && kind == Kind::RAFT && self.drops_oldest() {
            let dropped = state.drop_oldest_raft(self.bytes_max / 4 + cost(body_bytes));
            add(&self.stats.class(self.class).dropped_oldest, dropped);
        }
        // One that alone is over the bound still goes when nothing else waits, or it never would.
        if state.bytes + cost(body_bytes) > self.bytes_max && !state.queue.is_empty() {
            return Err(SendError::Full);
        }
        Ok(epoch)
    }

    /// Of heartbeats and votes the newest count. Entries are worth nothing without those before them: what waits is what a follower
    /// lacks first, and the rest is sent again once that arrived.
    fn drops_oldest(&self) -> bool {
        self.class != Class::Append
    }

    /// Begins a stream; those before it end.
    pub(super) fn open_stream(self: &Arc<Self>, opening: wire::Opening) -> Outgoing {
        let mut state = self.lock();
        state.stream += 1;
        let stream = state.stream;
        self.wake(state);
        Outgoing { outbox: Arc::clone(self), stream, opening: Some(opening) }
    }

    /// The link is up: messages are taken from here on.
    pub(super) fn up(&self, epoch: LinkEpoch) {
        self.lock().up = Some(epoch);
    }

    /// The link is down: what waits is dropped, because only the upper layer knows what of the rest arrived. Its stream ends, also
    /// while nothing is sent.
    pub(super) fn down(&self) {
        let mut state = self.lock();
        state.up = None;
        state.stream += 1;
        add(&self.stats.class(self.class).dropped_reset, state.queue.len());
        state.queue.clear();
        (state.bytes, state.raft_bytes) = (0, 0);
        self.wake(state);
    }

    /// Takes no more messages, and ends the stream when all that wait were sent.
    pub(super) fn finish(&self) {
        let mut state = self.lock();
        state.finishing = true;
        self.wake(state);
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.lock().finishing
    }

    pub(super) fn is_up(&self) -> bool {
        self.lock().up.is_some()
    }

    /// A thread that panicked while it held the lock left a whole message in or out: the state is good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest body that a frame of this size can hold: fields and lengths around it take less than this.
pub(super) fn max_body_bytes(frame_bytes_max: usize) -> usize {
    frame_bytes_max.saturating_sub(64)
}

fn cost(body_bytes: usize) -> usize {
    body_bytes + MESSAGE_OVERHEAD_BYTES
}

impl State {
    fn append(&mut self, message: Waiting) {
        let cost = cost(message.body_bytes());
        self.bytes += cost;
        if message.kind == Kind::RAFT {
            self.raft_bytes += cost;
        }
        self.queue.push_back(message);
    }

    /// Drops Raft messages from the front until `wanted` bytes are free; returns how many. More than one message needs,
    /// so that the walk over the queue is paid for by many.
    fn drop_oldest_raft(&mut self, wanted: usize) -> usize {
        if self.raft_bytes == 0 {
            return 0;
        }
        let (before, mut freed) = (self.queue.len(), 0);
        self.queue.retain(|message| {
            let drop = message.kind == Kind::RAFT && freed < wanted;
            freed += if drop { cost(message.body_bytes()) } else { 0 };
            !drop
        });
        self.bytes -= freed;
        self.raft_bytes -= freed;
        before - self.queue.len()
    }

    /// Takes what one frame holds from the front.
    fn take_frame(&mut self) -> Vec<Waiting> {
        let mut bytes = 0;
        let fits = self.queue.iter().take_while(|message| {
            let fits = bytes == 0 || bytes + message.body_bytes() <= FRAME_BYTES_TARGET;
            bytes += message.body_bytes() + MESSAGE_HEADER_BYTES;
            fits
        });
        let count = fits.count();
        let taken: Vec<Waiting> = self.queue.drain(..count).collect();
        for message in &taken {
            self.bytes -= cost(message.body_bytes());
            if message.kind == Kind::RAFT {
                self.raft_bytes -= cost(message.body_bytes());
            }
        }
        taken
    }
}

/// The frames of one stream: its opening, then whatever gathers.
#[derive(Debug)]
pub(super) struct Outgoing {
    outbox: Arc<Outbox>,
    stream: u64,
    opening: Option<wire::Opening>,
}

impl Stream for Outgoing {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        if let Some(opening) = self.opening.take() {
            return Poll::Ready(Some(Frame::Opening(opening)));
        }
        let mut state = self.outbox.lock();
        if state.stream != self.stream {
            return Poll::Ready(None);
        }
        if state.queue.is_empty() {
            if state.finishing {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let messages = state.take_frame();
        drop(state);
        let stats = self.outbox.stats.class(self.outbox.class);
        count(&stats.frames_sent);
        add(&stats.messages_sent, messages.len());
        add(&stats.bytes_sent, batch_bytes(&messages));
        Poll::Ready(Some(Frame::Messages(messages)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use futures_util::{FutureExt, StreamExt};

    use super::*;

    const LEASE: Kind = Kind(2);
    const FIRST: LinkEpoch = LinkEpoch(1);

    fn outbox(bytes_max: usize) -> (Arc<Outbox>, Outgoing) {
        outbox_of(Class::Control, bytes_max, 1024)
    }

    fn outbox_of(class: Class, bytes_max: usize, frame_bytes_max: usize) -> (Arc<Outbox>, Outgoing) {
        let outbox = Outbox::new(class, bytes_max, frame_bytes_max, Arc::default(), Arc::default());
        let mut stream = outbox.open_stream(wire::Opening::default());
        assert!(matches!(stream.next().now_or_never().flatten(), Some(Frame::Opening(_))));
        outbox.up(FIRST);
        (outbox, stream)
    }

    fn body(number: u8) -> Bytes {
        Bytes::from(vec![number; 100])
    }

    fn pieces(number: u8) -> [Bytes; 2] {
        [Bytes::from(vec![number; 40]), Bytes::from(vec![number; 60])]
    }

    fn next_numbers(stream: &mut Outgoing) -> Vec<u8> {
        let Some(Frame::Messages(messages)) = stream.next().now_or_never().flatten() else {
            panic!("no batch");
        };
        messages.iter().map(|message| message.body[0][0]).collect()
    }

    #[test]
    fn what_gathered_is_one_frame_in_order() {
        let (outbox, mut stream) = outbox(10_000);
        assert!(stream.next().now_or_never().is_none(), "nothing yet");
        for number in 0..5 {
            outbox.push(LEASE, pieces(number), None).unwrap();
        }
        assert_eq!(next_numbers(&mut stream), [0, 1, 2, 3, 4]);
        assert!(stream.next().now_or_never().is_none());
    }

    #[test]
    fn of_many_at_once_a_full_queue_takes_the_newest() {
        let (outbox, mut stream) = outbox(4 * cost(100));
        outbox.push_all(Kind::RAFT, (0..5).map(body));
        assert_eq!(next_numbers(&mut stream), [2, 3, 4]);
        assert!(stream.next().now_or_never().is_none());
    }

    #[test]
    fn a_full_queue_refuses_what_must_not_be_lost() {
        let (outbox, mut stream) = outbox(3 * cost(100));
        for number in 0..3 {
            outbox.push(LEASE, pieces(number), None).unwrap();
        }
        assert_eq!(outbox.push(LEASE, pieces(3), None), Err(SendError::Full));
        assert_eq!(
            outbox.push(Kind::RAFT, pieces(3), None),
            Err(SendError::Full),
            "no raft message is there to make room"
        );
        assert_eq!(outbox.stats.class(Class::Control).refused_full.load(Ordering::Relaxed), 2);
        assert_eq!(next_numbers(&mut stream), [0, 1, 2]);
        outbox.push(LEASE, pieces(4), None).unwrap();
    }

    #[test]
    fn the_oldest_raft_messages_make_room_for_newer_ones() {
        let (outbox, mut stream) = outbox(4 * cost(100));
        for (kind, number) in [(LEASE, 0), (Kind::RAFT, 1), (Kind::RAFT, 2), (Kind::RAFT, 3)] {
            outbox.push(kind, pieces(number), None).unwrap();
        }
        outbox.push(Kind::RAFT, pieces(4), None).unwrap();
        assert_eq!(next_numbers(&mut stream), [0, 3, 4], "a quarter of the queue beside the message's own room");
        assert_eq!(outbox.stats.class(Class::Control).dropped_oldest.load(Ordering::Relaxed), 2);
        assert_eq!(outbox.lock().bytes, 0);
        assert_eq!(outbox.lock().raft_bytes, 0);
    }

    /// Who was away is sent more at once than the queue holds, if the entries are long. Without the first of them all others are
    /// refused, and the next try would end like this one.
    #[test]
    fn of_entries_a_full_queue_takes_the_first() {
        const ENTRY_BYTES: usize = 2 * 1024 * 1024;
        let (outbox, mut stream) = outbox_of(Class::Append, 64 * 1024 * 1024, 4 * 1024 * 1024);
        let entries = |numbers: std::ops::Range<u8>| numbers.map(|number| Bytes::from(vec![number; ENTRY_BYTES]));
        outbox.push_all(Kind::RAFT, entries(0..64));
        let stats = outbox.stats.class(Class::Append);
        let lost = || (stats.dropped_oldest.load(Ordering::Relaxed), stats.refused_full.load(Ordering::Relaxed));
        assert_eq!(lost(), (0, 64 - 31));
        assert_eq!(next_numbers(&mut stream), [0]);
        outbox.push_all(Kind::RAFT, entries(64..66));
        assert_eq!(lost(), (0, 64 - 31 + 1), "there was room for one");
        for number in (1..31).chain([64]) {
            assert_eq!(next_numbers(&mut stream), [number]);
        }
        assert!(stream.next().now_or_never().is_none());
    }

    #[test]
    fn without_a_link_nothing_is_taken_and_nothing_waits() {
        let (outbox, mut stream) = outbox(10_000);
        outbox.push(LEASE, pieces(0), None).unwrap();
        outbox.down();
        assert_eq!(outbox.push(LEASE, pieces(1), None), Err(SendError::Down));
        assert!(stream.next().now_or_never().unwrap().is_none(), "the old stream ends");
        assert_eq!(outbox.stats.class(Class::Control).dropped_reset.load(Ordering::Relaxed), 1);

        let mut stream = outbox.open_stream(wire::Opening::default());
        assert!(matches!(stream.next().now_or_never().flatten(), Some(Frame::Opening(_))));
        outbox.up(LinkEpoch(2));
        assert!(stream.next().now_or_never().is_none(), "the next epoch begins empty");
    }

    /// What went over the life before may be lost: what is to stand behind that would stand behind nothing.
    #[test]
    fn what_is_to_go_over_one_life_of_the_link_goes_over_no_other() {
        let (outbox, mut first) = outbox(10_000);
        assert_eq!(outbox.push(LEASE, pieces(0), None), Ok(FIRST));
        assert_eq!(outbox.push(LEASE, pieces(1), Some(FIRST)), Ok(FIRST));
        assert_eq!(next_numbers(&mut first), [0, 1]);
        outbox.down();
        let mut second = outbox.open_stream(wire::Opening::default());
        assert!(matches!(second.next().now_or_never().flatten(), Some(Frame::Opening(_))));
        outbox.up(LinkEpoch(2));
        assert_eq!(outbox.push(LEASE, pieces(2), Some(FIRST)), Err(SendError::Down));
        assert_eq!(outbox.stats.class(Class::Control).refused_down.load(Ordering::Relaxed), 1);
        assert_eq!(outbox.push(LEASE, pieces(3), None), Ok(LinkEpoch(2)));
        assert_eq!(next_numbers(&mut second), [3]);
    }

    #[test]
    fn what_waits_when_the_end_comes_is_still_sent() {
        let (outbox, mut stream) = outbox(10_000);
        outbox.push(LEASE, pieces(0), None).unwrap();
        outbox.finish();
        assert_eq!(outbox.push(LEASE, pieces(1), None), Err(SendError::Stopping));
        assert_eq!(next_numbers(&mut stream), [0]);
        assert!(stream.next().now_or_never().unwrap().is_none());
    }

    #[test]
    fn a_message_that_no_frame_can_hold_is_refused() {
        let (outbox, _stream) = outbox(10_000);
        assert_eq!(
            outbox.push(LEASE, [Bytes::from(vec![0; 24]), Bytes::from(vec![0; 1000])], None),
            Err(SendError::TooLarge)
        );
        outbox.push_all(Kind::RAFT, [Bytes::from(vec![0; 1024]), Bytes::from(vec![0; 960])]);
        assert_eq!(outbox.stats.class(Class::Control).refused_too_large.load(Ordering::Relaxed), 2);
        outbox.push(LEASE, [Bytes::from(vec![0; 960]), Bytes::new()], None).unwrap();
        assert_eq!(outbox.lock().queue.len(), 2);
    }
}
