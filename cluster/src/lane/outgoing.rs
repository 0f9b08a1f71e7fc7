//! The origin's half of a lane.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use bytes::BytesMut;

use super::Batch;

/// Room that is made for a batch at its first item, if the one before was as long. An idle lane keeps none.
const GATHERING_BYTES_RESERVED_MAX: usize = 256 * 1024;

/// The target has forgotten what it had answered: it is not the target it was. Everything in the lane is in doubt; the target
/// must be given up as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the target knows the lane up to {last}, but had answered up to {answered}")]
pub struct LaneForgotten {
    /// What it says it has.
    pub last: u64,
    /// What it had said.
    pub answered: u64,
}

/// One lane to one target: keeps every item until the target has answered for it.
///
/// Items are *settled* by an answer, or all at once when the target is lost; a publish is acknowledged when its items in
/// all lanes are settled.
#[derive(Debug)]
pub struct Outgoing {
    /// Number of the last item; 0 before the first.
    last: u64,
    /// Everything up to this number is settled.
    settled: u64,
    gathering: BytesMut,
    gathering_items: u32,
    /// Of the last one, up to [`GATHERING_BYTES_RESERVED_MAX`].
    batch_bytes_before: usize,
    /// Cut and not answered.
    batches: VecDeque<Batch>,
    /// How many of `batches`, from the front, were sent in this round.
    sent: usize,
    round: u32,
    /// How many of `batches` may be under way while it is tried whether the target answers again.
    trying: Option<usize>,
    bytes: usize,
    bytes_max: usize,
    /// What gathers is cut when there is as much.
    batch_bytes_max: usize,
    paused: bool,
}

impl Outgoing {
    /// An empty lane. Publishers should pause when it holds `bytes_max`, and go on when it holds half of that. Nothing is added to
    /// a batch of `batch_bytes_max`: a batch goes in one frame, and what goes to a group in one entry of its log, and neither may be
    /// of any length.
    #[must_use]
    pub fn new(bytes_max: usize, batch_bytes_max: usize) -> Self {
        Self {
            last: 0,
            settled: 0,
            gathering: BytesMut::new(),
            gathering_items: 0,
            batch_bytes_before: 0,
            batches: VecDeque::new(),
            sent: 0,
            round: 0,
            trying: None,
            bytes: 0,
            bytes_max,
            batch_bytes_max,
            paused: false,
        }
    }

    /// Appends an item, which `write` writes; returns its number.
    pub fn push(&mut self, write: impl FnOnce(&mut BytesMut)) -> u64 {
        let number = self.last + 1;
        self.push_at(number, write);
        number
    }

    /// The number that [`Self::push`] gives next.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// Appends an item under a number of its own, the position in an outbox say.
    ///
    /// # Panics
    /// The number is not above the last: the target would ignore the item.
    pub fn push_at(&mut self, number: u64, write: impl FnOnce(&mut BytesMut)) {
        assert!(number > self.last, "item {number} after {}", self.last);
        let before = self.gathering.len();
        if before == 0 {
            // It will be about as long as the last one, and is not to be moved as it grows.
            self.gathering.reserve(self.batch_bytes_before);
        }
        write(&mut self.gathering);
        self.bytes += self.gathering.len() - before;
        self.gathering_items += 1;
        self.last = number;
        self.paused |= self.bytes >= self.bytes_max;
        if self.gathering.len() >= self.batch_bytes_max {
            self.cut();
        }
    }

    /// Whether publishers should pause. Nothing is refused: what was read already still finds room.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Bytes of items that are not answered.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything is settled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled == self.last
    }

    /// Whether all that it has was given out by [`Self::next_batch`] since the target, or the way to it, was another.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.sent == self.batches.len() && self.gathering_items == 0
    }

    /// The next batch to send: one that must be sent again, or what gathered since the last.
    pub fn next_batch(&mut self) -> Option<Batch> {
        if self.sent > 0 && self.sent == self.batches.len() {
            // It has answered, and all that it had before was sent again.
            self.trying = self.trying.filter(|&most| most == 1);
        }
        if self.trying.is_some_and(|most| self.sent >= most) {
            return None;
        }
        if self.sent == self.batches.len() && self.gathering_items > 0 {
            self.cut();
        }
        let batch = self.batches.get_mut(self.sent)?;
        self.sent += 1;
        batch.round = self.round;
        Some(batch.clone())
    }

    /// The target has everything up to `number`. Returns the numbers that are settled by that.
    pub fn on_answer(&mut self, number: u64) -> Option<RangeInclusive<u64>> {
        // Also one that was sent before the link broke, and not yet again: its answer is true all the same.
        let number = number.min(self.batches.back().map_or(self.settled, |batch| batch.last));
        if number <= self.settled {
            return None;
        }
        let settled = self.settled + 1..=number;
        self.settled = number;
        while let Some(batch) = self.batches.pop_front_if(|batch| batch.last <= number) {
            self.bytes -= batch.payload.len();
            self.sent = self.sent.saturating_sub(1);
        }
        self.paused &= self.bytes > self.bytes_max / 2;
        self.trying = self.trying.map(|most| most.saturating_mul(2));
        Some(settled)
    }

    /// Whether the target has answered for some of a batch and not for the rest: it took no more of it, and nothing behind it.
    #[must_use]
    pub fn is_answered_in_part(&self) -> bool {
        self.batches.front().is_some_and(|batch| batch.previous < self.settled)
    }

    /// The target refused a batch of `round` because it has only what is up to `last`: one before it was lost.
    ///
    /// # Errors
    /// It has less than it had answered for.
    pub fn on_gap(&mut self, round: u32, last: u64) -> Result<(), LaneForgotten> {
        if last < self.settled {
            return Err(LaneForgotten { last, answered: self.settled });
        }
        if round == self.round {
            self.on_reset();
        }
        Ok(())
    }

    /// The link broke, or the group has another leader: what is not answered is sent again, from the oldest.
    pub fn on_reset(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.sent = 0;
        self.trying = None;
    }

    /// The target has answered nothing for a while: what was sent to it is lost, or it is slow, and then each copy makes it
    /// slower. So the oldest batch is sent again, and nothing else before there is an answer; then two, and so on.
    pub fn on_silence(&mut self) {
        self.on_reset();
        self.trying = Some(1);
    }

    /// Whether an answer lets something go that waits here: [`Self::next_batch`] should be asked then.
    #[must_use]
    pub fn is_trying(&self) -> bool {
        self.trying.is_some()
    }

    /// The target is lost: nobody there waits for anything. Returns the numbers that are settled by that.
    pub fn on_lost(self) -> Option<RangeInclusive<u64>> {
        (self.settled < self.last).then(|| self.settled + 1..=self.last)
    }

    fn cut(&mut self) {
        let previous = self.batches.back().map_or(self.settled, |batch| batch.last);
        let payload = self.gathering.split().freeze();
        self.batch_bytes_before = payload.len().min(GATHERING_BYTES_RESERVED_MAX);
        let items = std::mem::take(&mut self.gathering_items);
        self.batches.push_back(Batch { previous, last: self.last, items, round: self.round, payload });
    }
}
