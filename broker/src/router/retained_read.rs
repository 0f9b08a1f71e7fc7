//! Retained messages for a new subscription of a transient session: read page by page, at the subscriber's pace.
//!
//! The subscription stands in the tables before the first page is asked for, so nothing published since is missed.
//! Live messages that come by it wait, bounded, until the retained ones are sent; what is in both is sent once.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashMap;
use kentongan_proto::mqtt::QoS;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::OwnSubscription;
use super::deliver::Terms;
use super::publish::Publication;
use crate::drops;
use crate::message::{Message, identifiers_weight_bytes};
use crate::metrics::DropReason;
use crate::peers::wire::{Forwarded, ReadRetained};
use crate::plants::{Plant, is_planted};
use crate::replicated::command::{self, MessageRecord, SessionCommand};
use crate::replicated::effect::{PageAnswer, QueueAtGroup};
use crate::replicated::submitter::Asker;
use crate::replicated::{RetainedCursor, RetainedPage};
use crate::session::outbound::Full;
use crate::subscription::Waits;

/// Live messages that may wait behind one connection's retained reads.
const HELD_MESSAGES_MAX: usize = 10_000;

/// Pages that one connection waits for at once. With no more groups than that, a wildcard takes as long as the slowest of
/// them; what may come for a client that turns out to be slow is bounded by it.
const PAGES_AT_ONCE: usize = 16;

/// Unwritten bytes above which the next page is not asked for, and nothing more at QoS 0 is written of those that came.
const PAGE_OUT_BYTES_MAX: usize = 128 * 1024;

/// Messages that wait for the client above which no retained one is put behind them.
const PAGE_QUEUE_MESSAGES_MAX: usize = 256;

/// A page that was asked for and has not come.
#[derive(Debug)]
struct Question {
    cursor: RetainedCursor,
    /// A second passed since.
    is_late: bool,
}

/// A page that came, as far as it was not taken.
#[derive(Debug, Default)]
struct PageLeft {
    asked: RetainedCursor,
    /// The last topic of it that was.
    taken: Option<Arc<str>>,
    messages: VecDeque<Arc<Message>>,
}

impl PageLeft {
    /// Where what is left begins.
    fn from(&self) -> RetainedCursor {
        match &self.taken {
            Some(topic) => RetainedCursor { group: self.asked.group, after: Some(topic.to_string()) },
            None => self.asked.clone(),
        }
    }
}

#[derive(Debug)]
struct Read {
    number: u64,
    filter: Box<str>,
    own: OwnSubscription,
    /// Those whose first page was not asked for yet. Until SUBACK there are none.
    groups: Range<u16>,
    /// Where groups that have more go on, once the client has taken what it has.
    further: Vec<RetainedCursor>,
    asked: Vec<Question>,
    /// What came and waits until the client has taken what it has, page by page. Nobody drops it for being slow, as live messages.
    arrived: VecDeque<PageLeft>,
    /// The number by which a group knows it: messages with a QoS go into the queue of the session there.
    session_read: Option<u64>,
    /// What was handed there and may come back.
    pieces: usize,
}

impl Read {
    /// Once the first page was asked for: whether all have come, and were taken.
    fn is_complete(&self) -> bool {
        !self.has_more() && self.asked.is_empty() && self.pieces == 0
    }

    /// What was read counts no more, from the places in `refused` on and all that the group has not got.
    fn begin_again(&mut self, refused: Vec<RetainedCursor>) {
        let asked = self.asked.drain(..).map(|question| question.cursor);
        let left = self.arrived.drain(..).map(|page| page.from());
        let places = refused.into_iter().chain(left).chain(asked).chain(self.further.drain(..));
        // A group is asked for one page after the other, so its first place is before the others.
        let mut groups = BTreeSet::new();
        self.further = places.filter(|place| groups.insert(place.group)).collect();
    }

    fn has_more(&self) -> bool {
        self.has_to_ask() || !self.arrived.is_empty()
    }

    fn has_to_ask(&self) -> bool {
        !self.groups.is_empty() || !self.further.is_empty()
    }

    fn standing(&self) -> Standing {
        Standing {
            has_more: self.has_more(),
            has_arrived: !self.arrived.is_empty(),
            may_ask: self.has_to_ask(),
            under_way: self.asked.len() + self.arrived.len(),
        }
    }

    /// The next page, which counts as asked for.
    fn next_page(&mut self) -> Option<RetainedCursor> {
        let first = |group| RetainedCursor { group, after: None };
        let cursor = self.further.pop().or_else(|| self.groups.next().map(first))?;
        self.asked.push(Question { cursor: cursor.clone(), is_late: false });
        Some(cursor)
    }

    /// Whether the page was waited for. A question that was asked twice is answered twice.
    fn is_answered_by(&mut self, page: &RetainedPage) -> bool {
        let at = self.asked.iter().position(|question| question.cursor == page.asked);
        at.map(|at| self.asked.swap_remove(at)).is_some()
    }
}

#[derive(Debug)]
struct HeldBack {
    message: Arc<Message>,
    qos: QoS,
    retain: bool,
    identifiers: Box<[u32]>,
    /// The filters that hold it back.
    holders: u32,
}

impl Waits for HeldBack {
    fn topic(&self) -> &str {
        &self.message.topic
    }

    fn holders(&mut self) -> &mut u32 {
        &mut self.holders
    }
}

/// What is known of a read without looking at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Standing {
    has_more: bool,
    has_arrived: bool,
    may_ask: bool,
    under_way: usize,
}

/// Reads by number, which is the order of their SUBSCRIBE. There may be as many as a session has subscriptions, so none is looked
/// for by walking past the others.
#[derive(Debug, Default)]
struct Reads {
    by_number: BTreeMap<u64, Read>,
    /// A filter has one.
    by_filter: HashMap<Box<str>, u64, foldhash::fast::RandomState>,
    by_session_read: BTreeMap<u64, u64>,
    /// How many have something to ask for or to be taken.
    with_more: usize,
    /// Those that have a page to be taken.
    arrived: BTreeSet<u64>,
    /// Those that have a page to ask for now.
    asking: BTreeSet<u64>,
    /// Pages that were asked for, or wait to be taken.
    under_way: usize,
}

impl Reads {
    fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    fn has(&self, filter: &str) -> bool {
        self.by_filter.contains_key(filter)
    }

    /// The newest of all. Another one of the same filter must not be there.
    fn push(&mut self, read: Read) {
        let number = read.number;
        self.by_filter.insert(read.filter.clone(), number);
        if let Some(session_read) = read.session_read {
            self.by_session_read.insert(session_read, number);
        }
        self.note(number, Standing::default(), read.standing());
        self.by_number.insert(number, read);
    }

    fn remove(&mut self, number: u64) -> Option<Read> {
        let read = self.by_number.remove(&number)?;
        self.by_filter.remove(&read.filter);
        if let Some(session_read) = read.session_read {
            self.by_session_read.remove(&session_read);
        }
        self.note(number, read.standing(), Standing::default());
        Some(read)
    }

    /// By the number that the group knows it by.
    fn of_session(&mut self, session_read: u64) -> Option<&mut Read> {
        self.by_number.get_mut(self.by_session_read.get(&session_read)?)
    }

    /// Returns the number by which the group knew the read that there was.
    fn remove_filter(&mut self, filter: &str) -> Option<u64> {
        let number = *self.by_filter.get(filter)?;
        self.remove(number)?.session_read
    }

    /// Changes a read, if it is there.
    fn change<R>(&mut self, number: u64, change: impl FnOnce(&mut Read) -> R) -> Option<R> {
        let read = self.by_number.get_mut(&number)?;
        let before = read.standing();
        let result = change(read);
        let after = read.standing();
        self.note(number, before, after);
        Some(result)
    }

    fn note(&mut self, number: u64, before: Standing, after: Standing) {
        self.with_more = self.with_more + usize::from(after.has_more) - usize::from(before.has_more);
        self.under_way = self.under_way + after.under_way - before.under_way;
        for (numbers, was, is) in [
            (&mut self.arrived, before.has_arrived, after.has_arrived),
            (&mut self.asking, before.may_ask, after.may_ask),
        ] {
            match (was, is) {
                (false, true) => drop(numbers.insert(number)),
                (true, false) => drop(numbers.remove(&number)),
                (true, true) | (false, false) => {}
            }
        }
    }

    fn numbers(&self) -> Vec<u64> {
        self.by_number.keys().copied().collect()
    }
}

/// The reads of one connection, in the order of their SUBSCRIBE, and what waits behind them.
#[derive(Debug, Default)]
pub struct RetainedReads(Option<Box<State>>);

#[derive(Debug, Default)]
struct State {
    reads: Reads,
    held: Vec<HeldBack>,
    /// Weight of these.
    held_bytes: usize,
    /// Of a persistent session.
    at_group: AtGroup,
    /// How often live messages have gone on there before their turn, as far as is known. What was asked for before that is void.
    overflows: u64,
    /// Messages that were handed there and not answered, oldest first.
    pieces: VecDeque<Piece>,
    /// How often in a row they came too late.
    refusals: u32,
}

/// Messages of a page that the group may refuse.
#[derive(Debug)]
struct Piece {
    number: u64,
    session_read: u64,
    /// Where they begin.
    from: RetainedCursor,
    /// How many overflows they know of.
    overflows: u64,
}

/// So often retained messages may come too late. Each time as many live ones as may wait have come in the time between the question for a
/// page and its arrival at the group; where that goes on, the page is taken as it is, or there would be no end.
const REFUSALS_MAX: u32 = 16;

/// A page that the group has not answered.
#[derive(Debug)]
struct Handed {
    session_read: u64,
    messages: usize,
    bytes: usize,
}

/// How the queue of a persistent session stands at its group. What is read waits here until it finds room there: a full queue drops.
#[derive(Debug, Default)]
struct AtGroup {
    /// As the group said last. Unknown at first.
    queue: Option<QueueAtGroup>,
    /// Messages that the client has acknowledged since: for each of them another one left the queue.
    acknowledged: usize,
    /// Oldest first, as they are answered.
    handed: VecDeque<Handed>,
    /// For so many seconds none of them was answered.
    seconds: u32,
}

/// Seconds after which a group that says nothing of a page is asked anew: its read may have been replaced there.
const ANSWER_SECONDS_MAX: u32 = 5;

/// What may be handed to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    messages: usize,
    bytes: usize,
    /// Nothing waits, and there is room for one message: it may be of any size.
    is_empty: bool,
}

impl Room {
    const NONE: Self = Self { messages: 0, bytes: 0, is_empty: false };

    /// Takes the room for one message, if there is any.
    fn take(&mut self, weight_bytes: usize) -> bool {
        let fits = self.is_empty || (self.messages > 0 && self.bytes >= weight_bytes);
        if fits {
            self.messages = self.messages.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(weight_bytes);
            self.is_empty = false;
        }
        fits
    }
}

impl AtGroup {
    /// Half of what is free, so that live messages find room as well.
    fn room(&self) -> Room {
        let Some(queue) = self.queue else {
            return Room::NONE;
        };
        let handed: usize = self.handed.iter().map(|handed| handed.messages).sum();
        let handed_bytes: usize = self.handed.iter().map(|handed| handed.bytes).sum();
        if queue.queued + handed > PAGE_QUEUE_MESSAGES_MAX {
            return Room::NONE;
        }
        Room {
            messages: queue.messages_free.saturating_sub(handed) / 2,
            bytes: queue.bytes_free.saturating_sub(handed_bytes) / 2,
            is_empty: queue.queued + handed == 0 && queue.messages_free > 0 && queue.window_free != Some(0),
        }
    }

    /// Whether nothing is under way whose answer would tell how much room there is, and what is known is too old.
    fn is_to_be_asked(&self) -> bool {
        self.handed.is_empty() && self.queue.is_none()
    }

    fn on_taken(&mut self, session_read: u64, queue: QueueAtGroup) {
        // Answers come in the order of the pages, and some are never given.
        if let Some(at) = self.handed.iter().position(|handed| handed.session_read == session_read) {
            self.handed.drain(..=at);
        }
        (self.queue, self.acknowledged, self.seconds) = (Some(queue), 0, 0);
    }

    /// Whether there may be more room now.
    fn on_acknowledged(&mut self) -> bool {
        self.acknowledged += 1;
        let is_old = self.handed.is_empty() && self.queue.is_some_and(|queue| self.acknowledged * 2 >= queue.queued);
        if is_old {
            self.queue = None;
        }
        is_old
    }

    fn on_second(&mut self) {
        self.seconds += 1;
        if self.seconds >= ANSWER_SECONDS_MAX {
            self.handed.clear();
        }
        if self.handed.is_empty() {
            (self.queue, self.seconds) = (None, 0);
        }
    }

    /// Nothing more is said of a read that is gone there.
    fn forget(&mut self, session_read: u64) {
        self.handed.retain(|handed| handed.session_read != session_read);
    }
}

/// What a page has for the session's group.
#[derive(Debug, Default)]
struct ForGroup {
    messages: Vec<MessageRecord>,
    /// Where they begin.
    from: RetainedCursor,
    weight_bytes: usize,
    /// The next of the page waits for the group.
    finds_no_room: bool,
}

/// A page that is to be taken now.
struct Arrived {
    number: u64,
    page: PageLeft,
    own: OwnSubscription,
    /// What its group knows the read by.
    session_read: Option<(u64, Box<str>)>,
}

impl State {
    fn hold(&mut self, held: HeldBack) {
        self.held_bytes += held.message.weight_bytes() + identifiers_weight_bytes(&held.identifiers);
        self.held.push(held);
    }

    fn take_held(&mut self) -> Vec<HeldBack> {
        self.held_bytes = 0;
        std::mem::take(&mut self.held)
    }

    /// The bound that there is no room within for one more.
    fn full(&self, weight_bytes: usize, bytes_max: usize) -> Option<Full> {
        match self.held.len() {
            HELD_MESSAGES_MAX.. => Some(Full::Messages),
            _ if self.held_bytes.saturating_add(weight_bytes) > bytes_max => Some(Full::Bytes),
            _ => None,
        }
    }

    /// The oldest read that has a page to be taken. By what terms the group takes it in is known once it has answered what it was asked
    /// of that filter: what comes behind a SUBSCRIBE with QoS 0 it leaves to this node, which would have given it away. What is asked
    /// of others changes none, and a client that goes on asking is not to wait until it has asked for all.
    fn next_arrived(&mut self, terms_asked: &BTreeMap<Box<str>, u32>) -> Option<Arrived> {
        let is_for_later = |read: &Read| read.session_read.is_some() && terms_asked.contains_key(&read.filter);
        let is_for_now = |number: &&u64| self.reads.by_number.get(number).is_some_and(|read| !is_for_later(read));
        let number = *self.reads.arrived.iter().find(is_for_now)?;
        let take = |read: &mut Read| {
            let page = read.arrived.pop_front()?;
            let session_read = read.session_read.map(|number| (number, read.filter.clone()));
            Some(Arrived { number, page, own: read.own, session_read })
        };
        self.reads.change(number, take)?
    }

    /// What is handed to the group by the command of that number waits for its answer. Returns how many overflows it is to know of.
    fn hand(&mut self, number: u64, session_read: u64, for_group: &ForGroup) -> u64 {
        let (messages, bytes) = (for_group.messages.len(), for_group.weight_bytes);
        self.at_group.handed.push_back(Handed { session_read, messages, bytes });
        let overflows = if self.refusals < REFUSALS_MAX { self.overflows } else { u64::MAX };
        if messages > 0
            && let Some(read) = self.reads.of_session(session_read)
        {
            read.pieces += 1;
            self.pieces.push_back(Piece { number, session_read, from: for_group.from.clone(), overflows });
        }
        overflows
    }

    /// The group has dealt with a page, and all before it. Reads that have to go back get new numbers, for what was asked for by
    /// the old ones may still come. Returns those that may be complete.
    fn on_answer(&mut self, answer: PageAnswer, last_number: &mut u64) -> Vec<u64> {
        // A version that does not say which page it is refuses none.
        let is_dealt_with = |piece: &Piece| answer.page == 0 || piece.number <= answer.page;
        let mut refused: BTreeMap<u64, Vec<RetainedCursor>> = BTreeMap::new();
        let mut taken = Vec::new();
        let mut is_refused = false;
        for piece in std::mem::take(&mut self.pieces) {
            let is_void = piece.overflows < answer.overflows;
            if !is_void && !is_dealt_with(&piece) {
                self.pieces.push_back(piece);
                continue;
            }
            is_refused |= is_void;
            if let Some(read) = self.reads.of_session(piece.session_read) {
                read.pieces -= 1;
                taken.push(read.number);
            }
            if is_void {
                refused.entry(piece.session_read).or_default().push(piece.from);
            }
        }
        if is_refused {
            self.refusals += 1;
        } else if !taken.is_empty() {
            self.refusals = 0;
        }
        if self.overflows < answer.overflows {
            self.overflows = answer.overflows;
            self.read_again(refused, last_number);
        }
        taken
    }

    fn read_again(&mut self, mut refused: BTreeMap<u64, Vec<RetainedCursor>>, last_number: &mut u64) {
        for number in self.reads.numbers() {
            let is_void = |read: &&Read| {
                let refused = read.session_read.is_some_and(|session_read| refused.contains_key(&session_read));
                refused || !read.asked.is_empty() || !read.arrived.is_empty()
            };
            // What no group keeps has no QoS.
            let has_group = |read: &&Read| read.session_read.is_some() && !super::sys::is_sys(&read.filter);
            if self.reads.by_number.get(&number).filter(has_group).filter(is_void).is_none() {
                continue;
            }
            if let Some(mut read) = self.reads.remove(number) {
                let session_read = read.session_read.unwrap_or_default();
                read.begin_again(refused.remove(&session_read).unwrap_or_default());
                *last_number += 1;
                read.number = *last_number;
                self.reads.push(read);
            }
        }
    }

    /// One of whose messages in the group nothing is known.
    fn unanswered(&self) -> Option<(u64, Box<str>)> {
        let session_read = self.pieces.front()?.session_read;
        let number = self.reads.by_session_read.get(&session_read)?;
        Some((session_read, self.reads.by_number.get(number)?.filter.clone()))
    }

    /// The pages to ask for now, of the oldest read first: read number, filter, page.
    fn next_pages(&mut self) -> Vec<(u64, Box<str>, RetainedCursor)> {
        let mut pages = Vec::new();
        while self.reads.under_way < PAGES_AT_ONCE
            && let Some(&number) = self.reads.asking.first()
        {
            let ask = |read: &mut Read| read.next_page().map(|cursor| (number, read.filter.clone(), cursor));
            let Some(page) = self.reads.change(number, ask).flatten() else {
                break;
            };
            pages.push(page);
        }
        pages
    }
}

impl RetainedReads {
    /// Whether retained messages are still to come for a subscription.
    pub(super) fn is_reading(&self, filter: &str) -> bool {
        self.0.as_ref().is_some_and(|state| state.reads.has(filter))
    }

    /// Whether retained messages are still to come for any.
    pub(super) fn is_reading_any(&self) -> bool {
        self.0.as_ref().is_some_and(|state| !state.reads.is_empty())
    }

    /// What is still to come of a subscription is not sent: it is gone, or read anew.
    fn forget(&mut self, filter: &str) {
        if let Some(state) = &mut self.0
            && let Some(session_read) = state.reads.remove_filter(filter)
        {
            state.at_group.forget(session_read);
            state.pieces.retain(|piece| piece.session_read != session_read);
        }
    }

    /// Bytes of what waits behind them.
    pub(super) fn held_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |state| state.held_bytes)
    }

    /// Whether retained messages are still to come.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn is_under_way(&self) -> bool {
        self.0.as_ref().is_some_and(|state| !state.reads.is_empty() || !state.held.is_empty())
    }

    /// The subscription was replaced: what is still to come of it comes by the terms of the new one.
    pub(super) fn change_terms(&mut self, filter: &str, own: OwnSubscription) {
        if let Some(state) = &mut self.0
            && let Some(&number) = state.reads.by_filter.get(filter)
        {
            state.reads.change(number, |read| read.own = own);
        }
    }

    pub(super) fn waits_for_client(&self) -> bool {
        self.0.as_ref().is_some_and(|state| state.reads.with_more > 0)
    }
}

impl ArbiterState {
    /// Asks for the first page.
    pub(super) fn read_retained(
        &mut self,
        key: ConnectionKey,
        filter: &str,
        own: OwnSubscription,
        session_read: Option<u64>,
    ) {
        let number = self.begin_read(key, filter, own, session_read);
        self.ask_first_page(key, number);
    }

    /// From here on live messages of the subscription wait. Nothing is asked for yet. Returns the read's number.
    pub(super) fn begin_read(
        &mut self,
        key: ConnectionKey,
        filter: &str,
        own: OwnSubscription,
        session_read: Option<u64>,
    ) -> u64 {
        // Never used again: a page that was asked for twice may come when the read is over and another has begun.
        self.message_number += 1;
        let number = self.message_number;
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return 0;
        };
        // Of a subscription that was replaced: what this one reads is newer, and the group takes nothing more for that one.
        session.reads.forget(filter);
        let state = session.reads.0.get_or_insert_default();
        state.reads.push(Read {
            number,
            filter: Box::from(filter),
            own,
            groups: 0..0,
            further: Vec::new(),
            asked: Vec::new(),
            arrived: VecDeque::new(),
            session_read,
            pieces: 0,
        });
        number
    }

    pub(super) fn ask_first_page(&mut self, key: ConnectionKey, number: u64) {
        // What this turn published before goes ahead of the read.
        self.flush_lanes();
        let slots = self.shared.submitter.slots();
        let begin = |read: &mut Read| {
            if super::sys::is_sys(&read.filter) {
                let asked = RetainedCursor::default();
                read.asked.push(Question { cursor: asked.clone(), is_late: false });
                return Some((read.filter.clone(), asked));
            }
            read.groups = if read.filter.contains(['+', '#']) {
                0..slots.groups()
            } else {
                let keeper = slots.group_of(&read.filter);
                keeper..keeper + 1
            };
            None
        };
        match self.change_read(key, number, begin) {
            Some(Some((filter, asked))) => {
                let messages = self.shared.sys.matching(&filter);
                self.on_retained_page(RetainedPage { connection: key, number, asked, messages, next: None });
            }
            Some(None) => self.continue_reads(key),
            None => {}
        }
    }

    /// Asks a group for a page.
    fn ask_page(&mut self, key: ConnectionKey, number: u64, filter: &str, cursor: RetainedCursor) {
        let node = self.shared.cluster.as_ref().map_or(0, |cluster| cluster.node);
        let asker = Asker { node, incarnation: self.shared.incarnation(), connection: key };
        let Some(cluster) = &self.shared.cluster else {
            return self.shared.submitter.retained_page(asker, number, filter, cursor);
        };
        // A leader that no majority confirms answers nothing, and may lead all the same when it is asked again.
        self.slow_reads.push(key);
        match self.lanes.leader(cursor.group) {
            Some(leader) if leader.node == node || is_planted(Plant::ReadStale) => {
                self.shared.submitter.retained_page(asker, number, filter, cursor);
            }
            Some(leader) => {
                let read = ReadRetained {
                    group: u32::from(cursor.group),
                    incarnation: asker.incarnation,
                    connection: key.raw(),
                    number,
                    filter: filter.to_owned(),
                    after: cursor.after,
                };
                // If there is no room, it is late.
                let _ = cluster.peers.forward(leader.node, Forwarded::Read(read));
            }
            // Asked when there is one.
            None => {}
        }
    }

    /// A group has another leader, or the link to it broke: what was asked of it may be lost, or its answer.
    pub(super) fn ask_again(&mut self, group: u16) {
        let mut lost = Vec::new();
        for (index, client) in &mut self.clients {
            let key = ConnectionKey::new(self.id, index as u32, client.generation);
            let Some(session) = &mut client.session else {
                continue;
            };
            let own = session.persistent.is_some_and(|persistent| persistent.group == group);
            let Some(state) = &mut session.reads.0 else {
                continue;
            };
            if own {
                state.at_group = AtGroup::default();
                self.slow_reads.push(key);
            }
            for number in state.reads.numbers() {
                state.reads.change(number, |read| {
                    for Question { cursor, .. } in read.asked.iter().filter(|question| question.cursor.group == group) {
                        lost.push((key, number, read.filter.clone(), cursor.clone()));
                    }
                });
            }
        }
        for (key, number, filter, cursor) in lost {
            self.ask_page(key, number, &filter, cursor);
        }
    }

    /// Changes a read, if it is still under way.
    fn change_read<R>(&mut self, key: ConnectionKey, number: u64, change: impl FnOnce(&mut Read) -> R) -> Option<R> {
        self.reads(key)?.reads.change(number, change)
    }

    /// A page came.
    pub(super) fn on_retained_page(&mut self, page: RetainedPage) {
        let key = page.connection;
        let Some(state) = self.reads(key) else {
            return;
        };
        let number = page.number;
        let take = |read: &mut Read| {
            let is_answered = read.is_answered_by(&page);
            if is_answered {
                read.further.extend(page.next);
                read.arrived.push_back(PageLeft { asked: page.asked, taken: None, messages: page.messages.into() });
            }
            is_answered
        };
        match state.reads.change(number, take) {
            // Unsubscribed meanwhile.
            None => self.finish_reads(key),
            Some(false) => {}
            Some(true) => {
                self.take_arrived(key);
                self.continue_reads(key);
            }
        }
    }

    /// The group is asked for other terms of these filters, at once or soon.
    pub(super) fn on_terms_asked(&mut self, key: ConnectionKey, command: &SessionCommand) {
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        let (subscribed, unsubscribed) = match command {
            SessionCommand::Subscribe(subscribe) => (&*subscribe.filters, &[][..]),
            SessionCommand::Unsubscribe(unsubscribe) => (&[][..], &*unsubscribe.filters),
            _ => return,
        };
        for filter in subscribed.iter().map(|asked| &asked.filter).chain(unsubscribed) {
            *session.terms_asked.entry(Box::from(filter.as_str())).or_default() += 1;
        }
    }

    /// The group has answered for these, each as often as it was asked. Their pages are taken with what follows the answer, so that the
    /// terms stand here by then.
    pub(super) fn on_terms_answered<'a>(&mut self, key: ConnectionKey, filters: impl Iterator<Item = &'a str>) {
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        for filter in filters {
            if let Some(places) = session.terms_asked.get_mut(filter) {
                *places -= 1;
                if *places == 0 {
                    session.terms_asked.remove(filter);
                }
            }
        }
    }

    /// Takes pages that came, until the client has enough to do.
    fn take_arrived(&mut self, key: ConnectionKey) {
        while let Some(session) = self.client(key).and_then(|client| client.session.as_deref_mut())
            && let Some(state) = session.reads.0.as_deref_mut()
            && let Some(Arrived { number, mut page, own, session_read }) = state.next_arrived(&session.terms_asked)
        {
            let room = state.at_group.room();
            let for_group = self.take_page(key, &mut page, own, session_read.as_ref().map(|_| room));
            let (waits, finds_no_room) = (!page.messages.is_empty(), for_group.finds_no_room);
            let put_back = |read: &mut Read| {
                if waits {
                    read.arrived.push_front(page);
                }
            };
            if self.change_read(key, number, put_back).is_none() {
                return;
            }
            // Most groups have nothing: each page is an entry of the session's group, for which the read waits.
            if let Some((session_read, filter)) = session_read {
                if !for_group.messages.is_empty() {
                    self.hand_to_group(key, &filter, session_read, for_group, false);
                }
                if finds_no_room {
                    self.wait_for_group(key, &filter, session_read);
                }
            }
            self.end_if_complete(key, number);
            if waits {
                return;
            }
        }
    }

    /// Ends a read of which nothing is to come any more, here and at the group: there only when it has taken what it was handed, or it could
    /// not be read again.
    fn end_if_complete(&mut self, key: ConnectionKey, number: u64) {
        let Some(state) = self.reads(key) else {
            return;
        };
        if !state.reads.by_number.get(&number).is_some_and(Read::is_complete) {
            return;
        }
        if let Some(Read { filter, session_read: Some(session_read), .. }) = state.reads.remove(number) {
            self.hand_to_group(key, &filter, session_read, ForGroup::default(), true);
        }
        self.finish_reads(key);
    }

    /// Hands a page on. What is left of it waits, because the client has enough to do. Returns what is for the session's group, if it
    /// is known there, by the room that it has.
    fn take_page(
        &mut self,
        key: ConnectionKey,
        page: &mut PageLeft,
        own: OwnSubscription,
        mut room_at_group: Option<Room>,
    ) -> ForGroup {
        let mut for_group = ForGroup::default();
        while let Some(message) = page.messages.pop_front() {
            if own.options.no_local && self.is_by_itself(key, &message) {
                continue; // [MQTT-3.8.3-3]
            }
            let qos = message.qos.min(own.options.qos);
            let has_group = room_at_group.is_some() && qos != QoS::AtMostOnce;
            let has_enough = match &mut room_at_group {
                _ if qos == QoS::AtMostOnce => self.has_enough_to_write(key),
                Some(room) => !room.take(message.weight_bytes()),
                None => self.has_enough_queued(key, message.weight_bytes()),
            };
            if has_enough {
                for_group.finds_no_room = has_group;
                page.messages.push_front(message);
                break;
            }
            if has_group && for_group.messages.is_empty() {
                for_group.from = page.from();
            }
            page.taken = Some(Arc::clone(&message.topic));
            if has_group {
                for_group.weight_bytes += message.weight_bytes();
                for_group.messages.push(MessageRecord::from_message(&message, 0));
                self.note_read(key, message.identity);
                continue;
            }
            let copy = self.deliver_held_before(key, &message);
            self.deliver_retained(key, &message, own, copy);
        }
        for_group
    }

    /// Whether a client published this.
    fn is_by_itself(&self, key: ConnectionKey, message: &Message) -> bool {
        self.clients.get(key.index()).is_some_and(|client| client.client_id == message.publisher)
    }

    fn has_enough_to_write(&mut self, key: ConnectionKey) -> bool {
        let bound = PAGE_OUT_BYTES_MAX.min(self.shared.settings.session.out_buffer_bytes_max as usize);
        self.client(key).is_some_and(|client| client.out.len() > bound)
    }

    /// Whether so much waits behind the window of a transient session that a retained message of that weight would come upon a full queue.
    fn has_enough_queued(&mut self, key: ConnectionKey, weight_bytes: usize) -> bool {
        let Some(session) = self.client(key).and_then(|client| client.session.as_ref()) else {
            return false;
        };
        let (outbound, limits) = (&session.outbound, session.outbound.limits());
        let messages_max = PAGE_QUEUE_MESSAGES_MAX.min(limits.queue_messages_max.div_ceil(2));
        let (bytes, bytes_max) = (outbound.queue_bytes(), limits.queue_bytes_max);
        !outbound.can_send()
            && (outbound.queue_len() >= messages_max
                || bytes >= bytes_max / 2
                || bytes.saturating_add(weight_bytes) > bytes_max)
    }

    /// A live copy of a retained message may wait: it is returned, and goes with the retained one, and what waits of the same topic
    /// from before it goes first, so that the order stays.
    fn deliver_held_before(&mut self, key: ConnectionKey, retained: &Message) -> Option<HeldBack> {
        let state = self.reads(key)?;
        let at_copy = state.held.iter().position(|held| held.message.is_copy_of(retained))?;
        let (mut older, mut copy) = (Vec::new(), None);
        for (at, held) in state.take_held().into_iter().enumerate() {
            match at.cmp(&at_copy) {
                Ordering::Equal => copy = Some(held),
                Ordering::Less if held.message.topic == retained.topic => older.push(held),
                _ => state.hold(held),
            }
        }
        for held in older {
            self.deliver_held(key, &held);
        }
        copy
    }

    /// Unless it expired while it waited [MQTT-3.3.2-5].
    fn deliver_held(&mut self, key: ConnectionKey, held: &HeldBack) {
        if held.message.expires_at_ms.is_some_and(|at| at <= self.now_ms) {
            return self.counters.messages_dropped.inc(DropReason::Expired);
        }
        let mut publication = self.publication_of(&held.message);
        self.templates.begin();
        let terms = Terms { qos: held.qos, retain: held.retain, identifiers: &held.identifiers, share: None };
        self.deliver(key, &mut publication, terms);
    }

    fn hand_to_group(&mut self, key: ConnectionKey, filter: &str, read: u64, for_group: ForGroup, last: bool) {
        let Some(client) = self.clients.get_mut(key.index()) else {
            return;
        };
        let Some(session) = client.session.as_mut() else {
            return;
        };
        let Some(persistent) = session.persistent else {
            return;
        };
        self.message_number += 1;
        let state = session.reads.0.as_mut();
        let overflows = state.map_or(0, |state| state.hand(self.message_number, read, &for_group));
        if !for_group.messages.is_empty() {
            // Its answer may be lost.
            self.slow_reads.push(key);
        }
        let page = command::RetainedPage {
            client_id: client.client_id.to_string(),
            filter: filter.to_owned(),
            read,
            messages: for_group.messages,
            last,
            number: self.message_number,
            overflows,
        };
        self.lanes.command(persistent.group, SessionCommand::RetainedPage(page));
        self.schedule_flush();
    }

    /// The session's group has no room, as far as is known. An empty page is answered like any other: with the room that there is.
    fn wait_for_group(&mut self, key: ConnectionKey, filter: &str, number: u64) {
        self.slow_reads.push(key);
        if self.reads(key).is_some_and(|state| state.at_group.is_to_be_asked()) {
            // What the client has acknowledged makes room.
            self.gather_acknowledged();
            self.hand_to_group(key, filter, number, ForGroup::default(), false);
        }
    }

    /// The group took a page in, and there may be room for more; or it is to be read again.
    pub(super) fn on_retained_taken(&mut self, key: ConnectionKey, epoch: u64, answer: PageAnswer) {
        if !self.is_current(key, epoch) {
            return;
        }
        let mut last_number = self.message_number;
        let Some(state) = self.reads(key) else {
            return;
        };
        state.at_group.on_taken(answer.read, answer.queue);
        let taken = state.on_answer(answer, &mut last_number);
        self.message_number = last_number;
        for number in taken {
            self.end_if_complete(key, number);
        }
        self.continue_reads(key);
    }

    /// The client of a persistent session has acknowledged a message: there is room for another one at the group.
    pub(super) fn on_acknowledged_to_group(&mut self, key: ConnectionKey) {
        if self.reads(key).is_some_and(|state| state.at_group.on_acknowledged()) {
            self.continue_reads(key);
        }
    }

    /// Once a second: reads whose sessions had enough to do, and pages that do not come. One that is asked for twice and
    /// comes twice counts once.
    pub(super) fn continue_slow_reads(&mut self) {
        let mut keys = std::mem::take(&mut self.slow_reads);
        keys.sort_unstable_by_key(|key| key.raw());
        keys.dedup();
        for key in keys {
            let Some(state) = self.reads(key) else {
                continue;
            };
            state.at_group.on_second();
            let waits_for_group = !state.at_group.handed.is_empty() || !state.pieces.is_empty();
            let unanswered = state.unanswered().filter(|_| state.at_group.is_to_be_asked());
            let mut late = Vec::new();
            let mut waits = false;
            for read in state.reads.by_number.values_mut() {
                for question in &mut read.asked {
                    waits = true;
                    if question.is_late {
                        late.push((read.number, read.filter.clone(), question.cursor.clone()));
                    }
                    // Asked again it has another second or two.
                    question.is_late = !question.is_late;
                }
            }
            if waits_for_group || (waits && late.is_empty() && self.shared.cluster.is_some()) {
                self.slow_reads.push(key);
            }
            for (number, filter, cursor) in late {
                self.ask_page(key, number, &filter, cursor);
            }
            if let Some((session_read, filter)) = unanswered {
                self.hand_to_group(key, &filter, session_read, ForGroup::default(), false);
            }
            self.continue_reads(key);
        }
    }

    /// With a copy that came live it is one message, by what all subscriptions together ask for [MQTT-3.3.4-2].
    fn deliver_retained(
        &mut self,
        key: ConnectionKey,
        message: &Arc<Message>,
        own: OwnSubscription,
        copy: Option<HeldBack>,
    ) {
        if message.expires_at_ms.is_some_and(|at| at <= self.now_ms) {
            return;
        }
        let own_identifier = own.identifier.map(std::num::NonZeroU32::get);
        let (mut qos, mut identifiers) = (message.qos.min(own.options.qos), Vec::from_iter(own_identifier));
        if let Some(copy) = copy {
            qos = qos.max(copy.qos);
            identifiers.extend(copy.identifiers.iter().filter(|&&identifier| Some(identifier) != own_identifier));
        }
        let mut publication = self.publication_of(message);
        self.templates.begin();
        let terms = Terms { qos, retain: true, identifiers: &identifiers, share: None };
        self.deliver(key, &mut publication, terms);
    }

    /// Asks for more pages of the reads that wait, the oldest first, if the client has taken enough.
    pub(super) fn continue_reads(&mut self, key: ConnectionKey) {
        let Some(client) = self.client(key) else {
            return;
        };
        let Some(session) = client.session.as_mut() else {
            return;
        };
        if !session.reads.waits_for_client()
            || client.out.len() > PAGE_OUT_BYTES_MAX
            || session.outbound.queue_len() > PAGE_QUEUE_MESSAGES_MAX
        {
            return;
        }
        self.take_arrived(key);
        let Some(state) = self.reads(key) else {
            return;
        };
        for (number, filter, cursor) in state.next_pages() {
            self.ask_page(key, number, &filter, cursor);
        }
    }

    /// Subscriptions are gone, or wait for nothing any more. What waited because of them only must not be overtaken by what another
    /// subscription lets through from now on. Their reads may have ended: what they held back waits until all have.
    ///
    /// For all filters of a packet together: it goes through everything that waits.
    pub(super) fn forget_reads(&mut self, key: ConnectionKey, filters: &[&str]) {
        if filters.is_empty() {
            return;
        }
        for filter in filters {
            self.subscriptions.stop_holding(key.raw(), filter);
        }
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        filters.iter().for_each(|filter| session.reads.forget(filter));
        let Some(state) = session.reads.0.as_mut() else {
            return;
        };
        let mut held = state.take_held();
        self.subscriptions.recount_holders(key.raw(), &mut held);
        let free: Vec<_> = held.extract_if(.., |held| held.holders == 0).collect();
        if let Some(state) = self.reads(key) {
            held.into_iter().for_each(|held| state.hold(held));
        }
        for held in &free {
            self.deliver_held(key, held);
        }
        self.finish_reads(key);
    }

    /// Once no read is left, the live messages that waited follow.
    fn finish_reads(&mut self, key: ConnectionKey) {
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        let Some(state) = &session.reads.0 else {
            return;
        };
        if !state.reads.is_empty() {
            return;
        }
        let Some(state) = session.reads.0.take() else {
            return;
        };
        self.subscriptions.release_held(key.raw());
        for held in &state.held {
            self.deliver_held(key, held);
        }
    }

    /// Keeps a live message back while retained ones of its subscription are still to be sent. `false`: none are.
    pub(super) fn hold_back(
        &mut self,
        key: ConnectionKey,
        publication: &mut Publication<'_>,
        terms: Terms<'_>,
    ) -> bool {
        let holders = self.subscriptions.holders(key.raw(), publication.topic);
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return false;
        };
        let bytes_max = session.outbound.limits().queue_bytes_max;
        let Some(state) = session.reads.0.as_deref_mut() else {
            return false;
        };
        let message = publication.share_message();
        let weight = message.weight_bytes() + identifiers_weight_bytes(terms.identifiers);
        if let Some(full) = state.full(weight, bytes_max) {
            self.counters.messages_dropped.inc(full.into());
            if terms.qos != QoS::AtMostOnce {
                drops::note(&self.clients[key.index()].client_id, full, 1);
            }
            return true;
        }
        let (Terms { qos, retain, .. }, identifiers) = (terms, Box::from(terms.identifiers));
        state.hold(HeldBack { message, qos, retain, identifiers, holders });
        true
    }

    fn reads(&mut self, key: ConnectionKey) -> Option<&mut State> {
        self.client(key)?.session.as_mut()?.reads.0.as_deref_mut()
    }

    /// Everything is written: the client may have more.
    pub(super) fn after_flush(&mut self, key: ConnectionKey) {
        let waits = self
            .client(key)
            .and_then(|client| client.session.as_ref())
            .is_some_and(|session| session.reads.waits_for_client());
        if waits {
            self.continue_reads(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use kentongan_proto::mqtt::SubscriptionOptions;

    use super::*;

    fn read(number: u64, groups: Range<u16>) -> Read {
        Read {
            number,
            filter: format!("{number}/#").into(),
            own: OwnSubscription { options: SubscriptionOptions::new(QoS::AtMostOnce), identifier: None },
            groups,
            further: Vec::new(),
            asked: Vec::new(),
            arrived: VecDeque::new(),
            session_read: None,
            pieces: 0,
        }
    }

    fn page(group: u16, after: Option<&str>, more: Option<&str>) -> RetainedPage {
        let at = |after: &str| RetainedCursor { group, after: Some(after.to_owned()) };
        RetainedPage {
            connection: ConnectionKey::new(0, 0, 0),
            number: 1,
            asked: RetainedCursor { group, after: after.map(str::to_owned) },
            messages: Vec::new(),
            next: more.map(at),
        }
    }

    fn take(state: &mut State, page: &RetainedPage) -> bool {
        let take = |read: &mut Read| {
            let answered = read.is_answered_by(page);
            read.further.extend(page.next.clone());
            answered
        };
        state.reads.change(1, take).expect("it is under way")
    }

    fn is_complete(state: &State) -> bool {
        state.reads.by_number[&1].is_complete()
    }

    fn state(reads: impl IntoIterator<Item = Read>) -> State {
        let mut state = State::default();
        reads.into_iter().for_each(|read| state.reads.push(read));
        state
    }

    fn groups(state: &mut State) -> Vec<(u64, u16)> {
        state.next_pages().into_iter().map(|(number, _, cursor)| (number, cursor.group)).collect()
    }

    /// All groups are asked at once, but no more of them than the bound, whichever read it is for.
    #[test]
    fn a_connection_waits_for_a_bounded_number_of_pages() {
        let mut state = state([read(1, 0..12), read(2, 0..12)]);
        let first: Vec<_> = (0..12).map(|group| (1, group)).chain((0..4).map(|group| (2, group))).collect();
        assert_eq!(groups(&mut state), first);
        assert_eq!(groups(&mut state), []);
        assert!(take(&mut state, &page(3, None, None)));
        assert_eq!(groups(&mut state), [(2, 4)]);
    }

    /// A group that has more is asked again, and a read is over when every group said that this was all.
    #[test]
    fn a_read_is_complete_when_no_group_has_more() {
        let mut state = state([read(1, 0..2)]);
        assert_eq!(groups(&mut state), [(1, 0), (1, 1)]);
        assert!(take(&mut state, &page(0, None, Some("a"))));
        assert!(!take(&mut state, &page(0, None, None)), "a question that was asked twice is answered twice");
        assert_eq!(groups(&mut state), [(1, 0)]);
        assert!(take(&mut state, &page(1, None, None)));
        assert!(!is_complete(&state));
        assert!(take(&mut state, &page(0, Some("a"), None)));
        assert!(is_complete(&state));
    }

    /// What was handed to the group and refused is read again with all that comes behind it, and what the group has is not. Where it always
    /// comes too late, it is taken as it is.
    #[test]
    fn what_is_out_of_date_at_the_group_is_read_again() {
        let mut state = state([Read { session_read: Some(9), ..read(1, 0..2) }]);
        let at = |group, after: &str| RetainedCursor { group, after: Some(after.to_owned()) };
        let asked = |state: &mut State| {
            let mut pages: Vec<_> =
                state.next_pages().into_iter().map(|(number, _, cursor)| (number, cursor)).collect();
            pages.sort_by_key(|(_, cursor)| cursor.group);
            pages
        };
        let hand = |state: &mut State, number, from: &RetainedCursor| {
            let messages = vec![MessageRecord::default()];
            state.hand(number, 9, &ForGroup { messages, from: from.clone(), ..ForGroup::default() })
        };
        let answer = |page, overflows| PageAnswer { read: 9, page, overflows, queue: QUEUE };
        let mut last_number = 100;
        state.next_pages();
        assert!(take(&mut state, &page(0, None, Some("m"))));
        for (number, from) in [(11, RetainedCursor { group: 0, after: None }), (12, at(0, "c"))] {
            assert_eq!(hand(&mut state, number, &from), 0);
        }
        let left = PageLeft {
            asked: RetainedCursor { group: 0, after: None },
            taken: Some("f".into()),
            ..PageLeft::default()
        };
        state.reads.change(1, |read| read.arrived.push_back(left));
        assert_eq!(state.on_answer(answer(11, 0), &mut last_number), [1]);
        assert!(!is_complete(&state));
        state.on_answer(answer(12, 1), &mut last_number);
        let group_1 = RetainedCursor { group: 1, after: None };
        assert_eq!(asked(&mut state), [(101, at(0, "c")), (101, group_1)], "from where the group has none");
        assert_eq!(state.pieces.len(), 0);
        state.on_answer(answer(13, 1), &mut last_number);
        assert_eq!(last_number, 101, "that is known");
        for overflows in 2..=u64::from(REFUSALS_MAX) {
            assert_eq!(hand(&mut state, 20 + overflows, &at(0, "c")), overflows - 1);
            state.on_answer(answer(20 + overflows, overflows), &mut last_number);
            assert_eq!(asked(&mut state)[0], (last_number, at(0, "c")));
        }
        assert_eq!(hand(&mut state, 50, &at(0, "c")), u64::MAX);
        assert_eq!(state.on_answer(answer(50, 1000), &mut last_number).len(), 1);
        assert_eq!(hand(&mut state, 51, &at(0, "g")), 1000);
        assert_eq!(state.unanswered().map(|(session_read, _)| session_read), Some(9));
    }

    const QUEUE: QueueAtGroup =
        QueueAtGroup { queued: 0, messages_free: 100, bytes_free: 10_000, window_free: Some(20) };

    fn hand(at_group: &mut AtGroup, session_read: u64, messages: usize) {
        at_group.handed.push_back(Handed { session_read, messages, bytes: messages * 100 });
    }

    /// Half of what is free, less what is on its way there, and nothing while much waits.
    #[test]
    fn what_is_handed_over_finds_room() {
        let mut at_group = AtGroup::default();
        assert_eq!(at_group.room(), Room::NONE, "nothing is known");
        assert!(at_group.is_to_be_asked());
        hand(&mut at_group, 1, 0);
        assert!(!at_group.is_to_be_asked(), "it was");
        at_group.on_taken(1, QUEUE);
        assert_eq!(at_group.room(), Room { messages: 50, bytes: 5_000, is_empty: true });
        at_group.on_taken(1, QueueAtGroup { window_free: Some(0), ..QUEUE });
        assert_eq!(
            at_group.room(),
            Room { messages: 50, bytes: 5_000, is_empty: false },
            "what is larger than the queue waits"
        );
        at_group.on_taken(1, QueueAtGroup { window_free: None, ..QUEUE });
        assert!(at_group.room().is_empty);
        hand(&mut at_group, 1, 40);
        hand(&mut at_group, 2, 10);
        assert_eq!(at_group.room(), Room { messages: 25, bytes: 2_500, is_empty: false });
        at_group.on_taken(2, QueueAtGroup { queued: 300, ..QUEUE });
        assert!(at_group.handed.is_empty(), "the first one's answer was lost");
        assert_eq!(at_group.room(), Room::NONE, "more waits than a client takes in a moment");
        let mut room = Room { messages: 0, bytes: 0, is_empty: true };
        assert_eq!([room.take(1_000_000), room.take(1)], [true, false], "one of any size where nothing waits");
    }

    /// It is asked anew when the client has acknowledged half as many as waited, or a second has passed, but not while an answer is to come.
    #[test]
    fn a_group_is_asked_again_when_there_may_be_room() {
        let mut at_group = AtGroup::default();
        at_group.on_taken(1, QueueAtGroup { queued: 300, ..QUEUE });
        assert_eq!((0..150).filter(|_| at_group.on_acknowledged()).count(), 1);
        assert!(at_group.is_to_be_asked());
        at_group.on_taken(1, QueueAtGroup { queued: 300, ..QUEUE });
        at_group.on_second();
        assert!(at_group.is_to_be_asked());
        at_group.on_taken(1, QUEUE);
        hand(&mut at_group, 1, 10);
        (1..ANSWER_SECONDS_MAX).for_each(|_| at_group.on_second());
        assert_eq!((0..150).filter(|_| at_group.on_acknowledged()).count(), 0);
        assert!(!at_group.is_to_be_asked());
        at_group.on_second();
        assert!(at_group.is_to_be_asked(), "no answer comes any more");
        hand(&mut at_group, 1, 0);
        at_group.forget(1);
        assert!(at_group.is_to_be_asked(), "the group knows nothing of that read by now");
    }

    /// A session with many subscriptions has as many reads, which come and go one by one, and each page is for one of them.
    #[test]
    fn many_reads_come_and_go_in_a_moment() {
        const READS: u64 = 10_000;
        let began = Instant::now();
        let mut reads = RetainedReads(Some(Box::new(state((1..=READS).map(|number| read(number, 0..1))))));
        for number in 1..=READS {
            let filter = format!("{number}/#");
            assert!(
                reads.is_reading(&filter) && reads.waits_for_client() == (number + PAGES_AT_ONCE as u64 <= READS + 1)
            );
            let state = reads.0.as_deref_mut().expect("they are under way");
            state.next_pages();
            assert!(state.next_arrived(&BTreeMap::new()).is_none());
            state.reads.change(number, |read| read.arrived.push_back(PageLeft::default()));
            let arrived = state.next_arrived(&BTreeMap::new()).map(|arrived| arrived.number);
            assert_eq!(arrived, Some(number));
            reads.forget(&filter);
        }
        let state = reads.0.expect("nobody finished them").reads;
        assert!(state.is_empty() && state.by_filter.is_empty() && state.asking.is_empty() && state.arrived.is_empty());
        assert_eq!((state.with_more, state.under_way), (0, 0));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
