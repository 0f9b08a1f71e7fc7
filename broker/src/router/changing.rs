//! Topics that come to a persistent session by its group and are to come directly, or the other way round.
//!
//! What is published with a QoS reaches a persistent session by its group if it was granted one, and directly if it was granted
//! QoS 0. A SUBSCRIBE that replaces a subscription may change that, and so may an end, or a beginning, of one with a QoS that
//! overlaps one without. Who decides is the group by its log, and the owner by its tables, and no order stands between the lanes
//! to the two. So meanwhile the session counts as one of both kinds, and what came one way does not come the other:
//!
//! - From the group to directly: every node hears first that this one wants the messages, and only then the group is asked
//!   (`Served::unasked`). What comes directly before the group's answer waits for it: it is for those messages only that the group has
//!   not handed over by then.
//! - From directly to the group: what comes directly goes on at once until the group's answer, which stands behind the word of every
//!   node that it sends to the group. What comes directly after that, and before SUBACK, waits a moment for its copy, and goes if
//!   there is none: it had been under way since before. SUBACK stands behind the word of every node that this one wants nothing
//!   directly, so what is published after it has a copy, however long the group takes.
//!
//! One thing is left: SUBACK does not wait for the turns of this node's other arbiters. What one of them matched before it knew of the
//! group, and hands over only behind SUBACK, is taken for what has a copy, and lost.
//!
//! Messages are told apart by their identity. What came just before the client asked counts as well (`Lately`). A copy that the group
//! sends for the sake of a shared subscription says so, and is another one. Where each subscription has a copy
//! (`session.overlapping`), nothing tells them apart, and nothing is done.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::Arc;

use kentongan_proto::mqtt::{QoS, SubscriptionOptions};
use kentongan_proto::topic;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::ClientSession;
use super::deliver::Terms;
use super::publish::Publication;
use crate::auth::overlaps;
use crate::config::Overlapping;
use crate::drops;
use crate::message::{Message, MessageIdentity, identifiers_weight_bytes};
use crate::metrics::DropReason;
use crate::plants::{Plant, is_planted};
use crate::replicated::DeliverPersistent;
use crate::replicated::command::SessionCommand;
use crate::session::outbound::Full;
use crate::subscription::InterestKind;

/// Messages that one arbiter remembers to have handed to persistent sessions last.
const LATELY_MAX: usize = 4096;

/// Messages that one session remembers to have had either way while it changes.
const CAME_MAX: usize = 1024;

/// The same of one that was resumed, and changes nothing: there may be as many as clients that all come back at once.
pub(super) const CAME_BEFORE_MAX: usize = 32;

/// Messages of one session that may wait until it is known which way they come.
const WAITING_MAX: usize = 1024;

/// Filters of one session that are remembered as going over. Each message that comes directly is held against them.
const CHANGES_MAX: usize = 256;

/// Filters, and pairs of them, that are looked at in one turn, before all others count as overlapping. More would be felt by the arbiter's
/// other clients.
pub(super) const OVERLAPS_LOOKED_AT_MAX: usize = 1 << 15;

/// How long one that came directly waits for its copy from the group, once that said that it hands over. Much longer than
/// what is on its way usually needs.
const COPY_WAIT_MS: u64 = 2_000;

/// How long a session remembers what it had after its last change: longer than a leader is searched for, or a dead node declared so.
const REMEMBERED_MS: u64 = 30_000;

/// By which way a message came to a persistent session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Directly,
    ByGroup,
}

/// What persistent sessions of this arbiter had last.
#[derive(Debug, Default)]
pub(super) struct Lately(VecDeque<(ConnectionKey, MessageIdentity, Way)>);

impl Lately {
    #[inline]
    fn note(&mut self, key: ConnectionKey, message: MessageIdentity, way: Way) {
        if self.0.len() == LATELY_MAX {
            self.0.pop_front();
        }
        self.0.push_back((key, message, way));
    }

    fn of(&self, key: ConnectionKey) -> impl Iterator<Item = (MessageIdentity, Way)> + '_ {
        self.0.iter().filter(move |(of, ..)| *of == key).map(|&(_, message, way)| (message, way))
    }
}

/// What came by one way, as far back as is remembered. Short enough to be walked through.
#[derive(Debug, Default)]
struct Came(VecDeque<MessageIdentity>);

impl Came {
    fn note(&mut self, message: MessageIdentity, most: usize) {
        if self.0.len() >= most {
            self.0.pop_front();
        }
        self.0.push_back(message);
    }

    fn has(&self, message: MessageIdentity) -> bool {
        self.0.contains(&message)
    }
}

/// A filter whose messages go over.
#[derive(Debug)]
struct Change {
    filter: Box<str>,
    /// Of the SUBSCRIBE or UNSUBSCRIBE.
    ticket: u64,
    to: Way,
    /// RETAIN as published, by its SUBSCRIBE: the group knows that before the tables here do.
    keeps_retain: bool,
    /// Other nodes were told to send its messages directly before the group was asked.
    is_announced: bool,
    /// When the group had answered.
    answered_ms: Option<u64>,
    /// What the SUBACK waits for.
    barrier: Option<u64>,
    /// The SUBACK was written: what is published from then on comes by the new way.
    is_settled: bool,
}

impl Change {
    /// It has gone over: what comes from now on may be a second copy, and is not the only one.
    fn is_done(&self) -> bool {
        self.answered_ms.is_some() && (self.to == Way::Directly || self.is_settled)
    }
}

/// A message that came directly, and may come by the group.
#[derive(Debug)]
struct Waiting {
    message: Arc<Message>,
    retain: bool,
    identifiers: Box<[u32]>,
    since_ms: u64,
}

impl Waiting {
    fn weight_bytes(&self) -> usize {
        self.message.weight_bytes() + identifiers_weight_bytes(&self.identifiers)
    }
}

/// The subscriptions of a session that go over, and what came meanwhile.
#[derive(Debug, Default)]
pub struct Changes {
    filters: Vec<Change>,
    directly: Came,
    by_group: Came,
    /// What the group was handed as retained, and sends as such.
    read: Came,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Also if no filter goes over: the connection before this one may have had some that did.
    remembers_until_ms: u64,
}

impl Changes {
    fn note(&mut self, message: MessageIdentity, way: Way) {
        let most = if self.filters.is_empty() { CAME_BEFORE_MAX } else { CAME_MAX };
        match way {
            Way::Directly => self.directly.note(message, most),
            Way::ByGroup => self.by_group.note(message, most),
        }
    }

    /// Whether no more filter can be remembered.
    fn is_full(&self) -> bool {
        self.filters.len() >= CHANGES_MAX && !self.filters.iter().any(Change::is_done)
    }

    /// Whether one more filter can be remembered: the oldest that has gone over makes room.
    fn has_room(&mut self) -> bool {
        if self.filters.len() < CHANGES_MAX {
            return true;
        }
        let oldest = self.filters.iter().position(Change::is_done);
        oldest.map(|at| self.filters.remove(at)).is_some()
    }

    /// Whether the group was asked, or is to be, for something that it has not answered.
    fn is_open(&self) -> bool {
        self.filters.iter().any(|change| change.answered_ms.is_none())
    }

    /// Whether what comes directly now, though the group is to hand it over, may have no copy there.
    fn may_come_alone(&self, topic: &str) -> bool {
        self.filters.iter().any(|change| !change.is_done() && topic::matches(&change.filter, topic))
    }

    fn keeps_retain(&self, topic: &str) -> bool {
        self.filters.iter().any(|change| change.keeps_retain && topic::matches(&change.filter, topic))
    }

    /// The filters that match a topic and are going over, each once.
    fn going(&self, topic: &str) -> impl Iterator<Item = &str> {
        let going = |change: &Change| !change.is_done();
        let is_last = move |at: usize, filter: &str| {
            self.filters[at + 1..].iter().filter(|later| going(later)).all(|later| *later.filter != *filter)
        };
        let matching = self.filters.iter().enumerate();
        let matching = matching.filter(move |(_, change)| going(change) && topic::matches(&change.filter, topic));
        matching.filter(move |(at, change)| is_last(*at, &change.filter)).map(|(_, change)| &*change.filter)
    }

    fn put_back(&mut self, waiting: Vec<Waiting>) {
        self.waiting_bytes = waiting.iter().map(Waiting::weight_bytes).sum();
        self.waiting = waiting.into();
    }

    fn take_waiting(&mut self, is_due: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let (due, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().partition(is_due);
        self.put_back(others);
        due
    }

    /// How many messages wait until it is known which way they come.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The filters whose messages other nodes were told to send directly, ahead of the subscription.
    pub(super) fn announced(&self) -> impl Iterator<Item = &str> {
        let open = self.filters.iter().filter(|change| change.is_announced && change.answered_ms.is_none());
        open.map(|change| &*change.filter)
    }

    /// Forgets what was long ago. `true`: nothing is left that anybody waits for.
    fn is_over(&mut self, now_ms: u64) -> bool {
        self.filters
            .retain(|change| !change.is_done() || change.answered_ms.is_some_and(|at| now_ms < at + REMEMBERED_MS));
        self.waiting.is_empty() && self.filters.is_empty() && now_ms >= self.remembers_until_ms
    }

    /// Whether anything is still to become of it.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty() || self.is_open()
    }

    /// Filters that are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.filters.len()
    }
}

/// A SUBSCRIBE or UNSUBSCRIBE that its group is still to be asked for.
#[derive(Debug)]
pub struct Unasked {
    /// Its own.
    pub ticket: u64,
    /// What to ask.
    pub command: SessionCommand,
    /// Every node has heard what it must before.
    pub may_go: bool,
}

/// How many subscriptions of a session have a message come one way and the other.
#[derive(Debug, Default)]
struct Matching {
    directly: usize,
    by_group: usize,
    /// RETAIN as published, by some of them.
    keeps_retain: bool,
}

impl Matching {
    fn is_any(&self) -> bool {
        self.directly + self.by_group > 0
    }

    /// The group hands nothing over.
    fn is_directly(&self) -> bool {
        self.directly > 0 && self.by_group == 0
    }
}

/// By which way a subscription has a message come. `is_own`: the session published it itself [MQTT-3.8.3-3].
fn way_for(qos: QoS, no_local: bool, is_own: bool) -> Option<Way> {
    (!(no_local && is_own)).then(|| way_of(qos))
}

fn way_of(qos: QoS) -> Way {
    if qos == QoS::AtMostOnce { Way::Directly } else { Way::ByGroup }
}

/// By which way the messages of a filter will come once the group has answered what it was asked so far. `None`: there is no
/// such subscription, or it is not known.
fn way_so_far(session: &ClientSession, filter: &str) -> Option<Way> {
    let open = session.changes.iter().flat_map(|changes| &changes.filters);
    let open = open.filter(|change| change.answered_ms.is_none() && *change.filter == *filter);
    let standing = session.subscriptions.get(filter).map(|own| way_of(own.options.qos));
    open.map(|change| change.to).next_back().or(standing)
}

/// By which way the messages of a filter are to come from now on, if that may be another one. `qos`: of its SUBSCRIBE; `None`
/// is UNSUBSCRIBE. `overlaps_others`: whether another one may come directly of which it has topics.
fn goes_over(
    session: &ClientSession,
    filter: &str,
    qos: Option<QoS>,
    overlaps_others: impl FnOnce(&str) -> bool,
) -> Option<Way> {
    // [MQTT-3.8.4-4] is about subscriptions that are not shared.
    if is_shared(filter) {
        return None;
    }
    let to = qos.map(way_of);
    // It was asked for already, and by which way is not known yet.
    let is_asked = session.asked.contains(filter);
    if to.is_some() && is_asked {
        return to;
    }
    let before = way_so_far(session, filter);
    if before.is_some() && to.is_some() {
        return to.filter(|_| before != to);
    }
    // What comes by another one without a QoS comes by the group as long as this one is there.
    if !is_asked && before.or(to) != Some(Way::ByGroup) {
        return None;
    }
    overlaps_others(filter).then_some(to.unwrap_or(Way::Directly))
}

fn is_shared(filter: &str) -> bool {
    filter.starts_with("$share/")
}

/// The filters of a session whose messages come directly, or will, or may.
fn coming_directly(session: &ClientSession) -> Vec<&str> {
    let standing = session.subscriptions.iter().filter(|(_, own)| way_of(own.options.qos) == Way::Directly);
    let open = session.changes.iter().flat_map(|changes| &changes.filters);
    let open = open.filter(|change| change.answered_ms.is_none() && change.to == Way::Directly);
    let all = standing.map(|(filter, _)| &**filter).chain(session.asked.iter().map(|filter| &**filter));
    all.chain(open.map(|change| &*change.filter)).filter(|filter| !is_shared(filter)).collect()
}

/// A filter that a client asks for: with the options of its SUBSCRIBE, or without any of an UNSUBSCRIBE.
pub(super) type Asked<'a> = (&'a str, Option<SubscriptionOptions>);

/// What goes over of what is asked, and which way.
fn going_over<'a>(session: &ClientSession, asked: &[Asked<'a>], looks_left: &mut usize) -> Vec<(Asked<'a>, Way)> {
    let directly = OnceCell::new();
    let mut overlaps_others = |filter: &str| {
        // To count as both without need loses nothing.
        if *looks_left == 0 {
            return true;
        }
        let directly = directly.get_or_init(|| {
            *looks_left = looks_left.saturating_sub(session.subscriptions.len());
            coming_directly(session)
        });
        directly.iter().filter(|other| **other != filter).any(|other| {
            *looks_left == 0 || {
                *looks_left -= 1;
                overlaps(other, filter)
            }
        })
    };
    let going = asked.iter().filter_map(|&(filter, options)| {
        let to = goes_over(session, filter, options.map(|options| options.qos), &mut overlaps_others)?;
        Some(((filter, options), to))
    });
    going.collect()
}

/// Whether the group may send a message of the topic for the sake of a shared subscription.
fn may_be_shared(session: &ClientSession, topic: &str) -> bool {
    let by_group = session.subscriptions.iter().filter(|(_, own)| way_of(own.options.qos) == Way::ByGroup);
    let mut shared = by_group.filter_map(|(filter, _)| filter.strip_prefix("$share/")?.split_once('/'));
    shared.any(|(_, filter)| topic::matches(filter, topic))
}

impl ArbiterState {
    /// A persistent session is about to ask its group for these. `true`: every node must hear of something before.
    pub(super) fn begin_changes(&mut self, key: ConnectionKey, ticket: u64, asked: &[Asked<'_>]) -> bool {
        if is_planted(Plant::ChangeAtOnce) || self.shared.settings.session.overlapping == Overlapping::OneEach {
            return false;
        }
        let is_one_of_several = self.shared.cluster.is_some();
        let mut looks_left = self.overlap_looks_left;
        let session = self.client(key).and_then(|client| client.session.as_ref());
        let Some(session) = session.filter(|session| session.persistent.is_some()) else {
            return false;
        };
        if session.changes.as_ref().is_some_and(|changes| changes.is_full()) {
            return false;
        }
        let is_first = session.changes.as_ref().is_none_or(|changes| changes.filters.is_empty());
        let going = going_over(session, asked, &mut looks_left);
        self.overlap_looks_left = looks_left;
        if is_first && !going.is_empty() {
            self.begin_to_count_as_both(key);
            self.sessions_going_over += 1;
        }
        let mut announces = false;
        for ((filter, options), to) in going {
            let Some(changes) = self.changes(key) else {
                break;
            };
            if !changes.has_room() {
                break;
            }
            // Without a QoS there is one that says so already.
            let is_announced = is_one_of_several && to == Way::Directly && options.is_some();
            changes.filters.push(Change {
                filter: Box::from(filter),
                ticket,
                to,
                keeps_retain: options.is_some_and(|options| options.retain_as_published),
                is_announced,
                answered_ms: None,
                barrier: None,
                is_settled: false,
            });
            if is_announced {
                self.change_interest(filter, InterestKind::Any, true);
                announces = true;
            }
        }
        announces
    }

    /// A session was resumed. A filter may have gone over while it was connected before: what its group hands over by now, the node may
    /// have as well. The other way round it is not known what came.
    pub(super) fn resume_changes(&mut self, key: ConnectionKey) {
        let session = self.client(key).and_then(|client| client.session.as_ref());
        let is_concerned = session.is_some_and(|session| {
            session.persistent.is_some()
                && session.changes.is_none()
                && session
                    .subscriptions
                    .iter()
                    .any(|(filter, own)| way_of(own.options.qos) == Way::Directly && !is_shared(filter))
        });
        if is_concerned
            && !is_planted(Plant::ChangeAtOnce)
            && self.shared.settings.session.overlapping != Overlapping::OneEach
        {
            self.count_as_both(key, Box::default(), false);
        }
    }

    /// From here on more is remembered than since the session was resumed: what came before, too, as far as it still is.
    fn begin_to_count_as_both(&mut self, key: ConnectionKey) {
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        let before = session.changes.take();
        let is_listed = before.is_some();
        let mut changes = before.unwrap_or_default();
        for (message, way) in self.lately.of(key) {
            let came = if way == Way::Directly { &mut changes.directly } else { &mut changes.by_group };
            if !came.has(message) {
                came.note(message, CAME_MAX);
            }
        }
        self.count_as_both(key, changes, is_listed);
    }

    /// `is_listed`: it did so before.
    fn count_as_both(&mut self, key: ConnectionKey, mut changes: Box<Changes>, is_listed: bool) {
        changes.remembers_until_ms = self.now_ms + REMEMBERED_MS;
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        session.changes = Some(changes);
        if !is_listed {
            self.changing.push(key);
        }
    }

    /// The group answered a SUBSCRIBE or UNSUBSCRIBE, and what it said stands in the tables.
    pub(super) fn on_changes_answered(&mut self, key: ConnectionKey, ticket: u64) {
        let now_ms = self.now_ms;
        let Some(changes) = self.changes(key) else {
            return;
        };
        let mut announced = Vec::new();
        for change in changes.filters.iter_mut().filter(|change| change.ticket == ticket) {
            change.answered_ms = Some(now_ms);
            if std::mem::take(&mut change.is_announced) {
                announced.push(change.filter.clone());
            }
        }
        // The subscription says so itself by now, if it was granted.
        for filter in announced {
            self.change_interest(&filter, InterestKind::Any, false);
        }
        self.hand_over_waiting(key);
    }

    /// SUBACK of `ticket` waits for a barrier; or, where there is no other node, it was written.
    pub(super) fn on_changes_await(&mut self, key: ConnectionKey, ticket: u64, barrier: Option<u64>) {
        for change in self.changes(key).into_iter().flat_map(|changes| &mut changes.filters) {
            if change.ticket == ticket {
                (change.barrier, change.is_settled) = (barrier, barrier.is_none());
            }
        }
    }

    /// The SUBACK that waited for a barrier is written.
    pub(super) fn on_changes_settled(&mut self, key: ConnectionKey, barrier: u64) {
        for change in self.changes(key).into_iter().flat_map(|changes| &mut changes.filters) {
            change.is_settled |= change.barrier == Some(barrier);
        }
    }

    /// Whether what was published with a QoS, and came to a persistent session directly, goes to its client now. `by_group`: the
    /// tables have it come by the group.
    pub(super) fn goes_directly(
        &mut self,
        key: ConnectionKey,
        publication: &mut Publication<'_>,
        terms: Terms<'_>,
        by_group: bool,
    ) -> bool {
        if by_group {
            if self.sessions_going_over > 0 && publication.identity != MessageIdentity::default() {
                self.wait_for_copy(key, publication, terms);
            }
            return false;
        }
        let message = publication.identity;
        if message == MessageIdentity::default() {
            return true;
        }
        if !self.changing.is_empty() && self.changes(key).is_some_and(|changes| changes.by_group.has(message)) {
            return false;
        }
        // Its filter may be the next that goes over.
        self.note_directly(key, message);
        true
    }

    /// What is to come by the group waits for that, if it may have no copy there.
    fn wait_for_copy(&mut self, key: ConnectionKey, publication: &mut Publication<'_>, terms: Terms<'_>) {
        let may_come_alone = self.changes(key).is_some_and(|changes| changes.may_come_alone(publication.topic));
        if !may_come_alone || self.is_decided(key, publication) {
            return;
        }
        let now_ms = self.now_ms;
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        let bytes_max = session.outbound.limits().queue_bytes_max;
        let Some(changes) = session.changes.as_deref_mut() else {
            return;
        };
        if changes.by_group.has(publication.identity) {
            return;
        }
        let message = publication.share_message();
        let weight = message.weight_bytes() + identifiers_weight_bytes(terms.identifiers);
        let full = match changes.waiting.len() {
            WAITING_MAX.. => Some(Full::Messages),
            _ if changes.waiting_bytes.saturating_add(weight) > bytes_max => Some(Full::Bytes),
            _ => None,
        };
        if let Some(full) = full {
            self.counters.messages_dropped.inc(full.into());
            drops::note(&self.clients[key.index()].client_id, full, 1);
            return;
        }
        changes.waiting_bytes += weight;
        changes.waiting.push_back(Waiting {
            message,
            retain: terms.retain,
            identifiers: Box::from(terms.identifiers),
            since_ms: now_ms,
        });
    }

    /// Whether a subscription that does not go over decides about a message: the group hands it over for its sake.
    fn is_decided(&mut self, key: ConnectionKey, publication: &Publication<'_>) -> bool {
        let is_own = self.is_publisher(key, publication);
        let by_group = self.matching(key, publication).by_group;
        let Some(session) = self.client(key).and_then(|client| client.session.as_ref()) else {
            return false;
        };
        let going = session.changes.iter().flat_map(|changes| changes.going(publication.topic));
        let going = going.filter_map(|filter| session.subscriptions.get(filter)).map(|own| own.options);
        let going = going.filter(|own| way_for(own.qos, own.no_local, is_own) == Some(Way::ByGroup));
        by_group > going.count()
    }

    /// The subscriptions of a session by which a message comes to it.
    fn matching(&mut self, key: ConnectionKey, publication: &Publication<'_>) -> Matching {
        let is_own = self.is_publisher(key, publication);
        let mut matching = Matching::default();
        self.subscriptions.each_of(key.raw(), publication.topic, publication.topic_hash, |subscription| {
            let way = way_for(subscription.qos, subscription.no_local, is_own);
            matching.directly += usize::from(way == Some(Way::Directly));
            matching.by_group += usize::from(way == Some(Way::ByGroup));
            matching.keeps_retain |= way.is_some() && subscription.retain_as_published;
        });
        matching
    }

    fn note_directly(&mut self, key: ConnectionKey, message: MessageIdentity) {
        if let Some(changes) = self.changes(key) {
            changes.note(message, Way::Directly);
        }
        self.lately.note(key, message, Way::Directly);
    }

    /// A message that the group hands over. `true`: the session had it directly.
    pub(super) fn had_directly(&mut self, key: ConnectionKey, delivery: &DeliverPersistent) -> bool {
        let DeliverPersistent { ref message, retain, shared, dup, .. } = *delivery;
        if shared == Some(true) {
            // A copy of its own [MQTT-4.8.2].
            return false;
        }
        let session = self.client(key).and_then(|client| client.session.as_ref());
        let Some((session, changes)) = session.and_then(|session| Some((session, session.changes.as_ref()?))) else {
            if !retain {
                self.lately.note(key, message.identity, Way::ByGroup);
            }
            return false;
        };
        // What is read as retained is sent whatever came live, and looks like what came live where RETAIN is kept.
        let is_read = retain && changes.read.has(message.identity);
        let may_be_shared = shared.is_none() && may_be_shared(session, &message.topic);
        let keeps_retain = changes.keeps_retain(&message.topic);
        if is_read || message.identity == MessageIdentity::default() || may_be_shared {
            return false;
        }
        if retain && !keeps_retain && !self.matching(key, &self.publication_of(message)).keeps_retain {
            return false;
        }
        let Some(changes) = self.changes(key) else {
            return false;
        };
        // One that comes again is known to the client by its Packet Identifier, which waits for it.
        if changes.directly.has(message.identity) && !dup {
            return true;
        }
        changes.note(message.identity, Way::ByGroup);
        let waiting = changes.waiting.iter().position(|waiting| waiting.message.identity == message.identity);
        if let Some(waiting) = waiting.and_then(|at| changes.waiting.remove(at)) {
            changes.waiting_bytes -= waiting.weight_bytes();
        }
        if !retain {
            self.lately.note(key, message.identity, Way::ByGroup);
        }
        false
    }

    /// The group is handed a message as retained.
    pub(super) fn note_read(&mut self, key: ConnectionKey, message: MessageIdentity) {
        if let Some(changes) = self.changes(key) {
            changes.read.note(message, CAME_MAX);
        }
    }

    /// Once a second: what waited long enough for a copy, and what is over.
    pub(super) fn go_on_changing(&mut self) {
        if self.changing.is_empty() {
            return;
        }
        let now_ms = self.now_ms;
        self.sessions_going_over = 0;
        for key in std::mem::take(&mut self.changing) {
            self.hand_over_waiting(key);
            let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
                continue;
            };
            if session.changes.as_mut().is_none_or(|changes| changes.is_over(now_ms)) {
                session.changes = None;
                continue;
            }
            let goes_over = session.changes.as_ref().is_some_and(|changes| !changes.filters.is_empty());
            self.sessions_going_over += usize::from(goes_over);
            self.changing.push(key);
        }
    }

    /// What waited goes, if it is for this node now to hand it over, or if the group had time enough.
    pub(super) fn hand_over_waiting(&mut self, key: ConnectionKey) {
        let now_ms = self.now_ms;
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        // What is read as retained comes by the group first, and live messages behind it.
        let is_reading = session.reads.is_reading_any();
        let Some(changes) = session.changes.as_deref_mut().filter(|changes| !changes.waiting.is_empty()) else {
            return;
        };
        let has_answers = !changes.is_open() && !is_reading;
        let all = changes.take_waiting(|_| true);
        let (due, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|waiting| {
            let had_time = has_answers && now_ms >= waiting.since_ms + COPY_WAIT_MS;
            had_time || self.matching(key, &self.publication_of(&waiting.message)).is_directly()
        });
        if let Some(changes) = self.changes(key) {
            changes.put_back(others);
        }
        for waiting in due {
            self.hand_over(key, &waiting);
        }
    }

    fn hand_over(&mut self, key: ConnectionKey, waiting: &Waiting) {
        let message = &waiting.message;
        if message.expires_at_ms.is_some_and(|at| at <= self.now_ms) {
            return self.counters.messages_dropped.inc(DropReason::Expired);
        }
        let mut publication = self.publication_of(message);
        if !self.matching(key, &publication).is_any() {
            // Unsubscribed meanwhile.
            return;
        }
        self.note_directly(key, message.identity);
        let is_held = self.subscriptions.holds(key.raw(), &message.topic);
        self.templates.begin();
        let terms =
            Terms { qos: QoS::AtMostOnce, retain: waiting.retain, identifiers: &waiting.identifiers, share: None };
        if is_held && self.hold_back(key, &mut publication, terms) {
            return;
        }
        self.deliver(key, &mut publication, terms);
    }

    /// A SUBSCRIBE for which the group is not asked before every node has heard what this one wants.
    pub(super) fn ask_behind_barrier(&mut self, key: ConnectionKey, ticket: u64, command: SessionCommand) {
        self.on_terms_asked(key, &command);
        let Some(served) = self.served(key) else {
            return;
        };
        served.unasked.push_back(Unasked { ticket, command, may_go: false });
        self.on_asked(key);
        self.barriers.insert(ticket, key);
        self.interest.barrier = Some((self.id, ticket));
        self.schedule_flush();
    }

    /// The command, if the group is to be asked at once. Else something that the client asked for before waits, and so does this.
    pub(super) fn ask_in_turn(
        &mut self,
        key: ConnectionKey,
        ticket: u64,
        command: SessionCommand,
    ) -> Option<SessionCommand> {
        let Some(served) = self.served(key).filter(|served| !served.unasked.is_empty()) else {
            return Some(command);
        };
        served.unasked.push_back(Unasked { ticket, command, may_go: true });
        None
    }

    /// Asks the group for what waits no more, up to the first that does.
    pub(super) fn ask_what_may_go(&mut self, key: ConnectionKey) {
        self.flush_lanes();
        while let Some(served) = self.served(key)
            && served.unasked.front().is_some_and(|unasked| unasked.may_go)
            && let Some(Unasked { ticket, command, .. }) = served.unasked.pop_front()
        {
            let group = served.claim.group;
            served.unanswered.push_back((ticket, command.clone()));
            self.lanes.command(group, command);
        }
        self.schedule_flush();
    }

    fn changes(&mut self, key: ConnectionKey) -> Option<&mut Changes> {
        self.client(key)?.session.as_mut()?.changes.as_deref_mut()
    }
}
