//! What other nodes say, on its way to the arbiters and groups here.

use std::num::NonZeroU64;
use std::ops::Range;
use std::str::Utf8Error;
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use kentongan_cluster::identity::{Incarnation, NodeId};
use kentongan_cluster::lane::{Batch, Incoming, LaneId, Verdict};
use kentongan_proto::mqtt::QoS;
use prost::Message as _;
use smallvec::SmallVec;

use crate::connection::SHARED_PAYLOAD_BYTES_MIN;
use crate::connection_key::{ALL_PLACES, ConnectionKey};
use crate::message::Message;
use crate::peers::plain::{PlainMessage, take_slice};
use crate::peers::wire::{
    AskResync, Forwarded, GroupEvents, Messages, MessagesAnswer, NodeMessage, OUTBOX_INCARNATION, OUTBOX_LANE,
    OutboxAnswered, Propose, ReadRetained, Resync, ResyncPart, ShareLoad, ShareLoads, ShareSettled,
};
use crate::replicated::RetainedCursor;
use crate::replicated::submitter::{Asker, OutboxTarget};
use crate::router::batch;
use crate::router::cluster::{ClusterView, Leader};
use crate::router::node_lanes::PeerProcess;
use crate::router::publish::{Payload, Publication};
use crate::router::share_settling::{ShareAnswer, ShareKeeper, ShareOrigin, ShareOutcome};
use crate::router::{Event, Shared};
use crate::subscription::{Matched, NodeNumber, PassedOver, PickStrategy, ShareGroup, ShareTarget, topic_hash};

/// Stands for whatever node leads a group, in the lanes of outboxes.
pub(super) const OUTBOXES: NodeId = NodeId(u64::MAX);

/// Takes in what `from` said. What cannot be read, or is for another time, is dropped: whoever said it will say it again.
pub fn take(shared: &Arc<Shared>, from: u64, forwarded: Forwarded) {
    match forwarded {
        Forwarded::Propose(propose) => take_proposal(shared, propose),
        Forwarded::Events(events) => take_events(shared, from, events),
        Forwarded::Resync(resync) => take_resync(shared, from, resync, ALL_PLACES),
        Forwarded::ResyncPart(ResyncPart { resync: Some(resync), from: first, below }) => {
            take_resync(shared, from, resync, first..below.unwrap_or(ALL_PLACES.end));
        }
        Forwarded::ResyncPart(_) => {}
        Forwarded::Read(read) => take_read(shared, from, read),
        Forwarded::AskResync(ask) => take_ask(shared, from, ask),
        Forwarded::Messages(messages) => take_messages(shared, from, messages),
        Forwarded::MessagesAnswer(answer) => take_messages_answer(shared, from, answer),
        Forwarded::OutboxAnswered(answer) => take_outbox_answered(shared, answer),
        Forwarded::ShareLoads(told) => take_share_loads(shared, from, &told),
    }
}

fn known_group(shared: &Shared, group: u32) -> Option<u16> {
    u16::try_from(group).ok().filter(|&group| group < shared.submitter.slots().groups())
}

/// How far lanes to this node got, if it is still registered as `incarnation`. Only under this lock it is registered anew, so what is
/// done while it is held does not get among what is said to the next registration: lanes of that have the same numbers.
fn registered_as<'a>(shared: &Shared, cluster: &'a ClusterView, incarnation: u64) -> Option<MutexGuard<'a, Incoming>> {
    let incoming = cluster.incoming.lock().unwrap_or_else(PoisonError::into_inner);
    (incarnation == shared.incarnation()).then_some(incoming)
}

fn take_proposal(shared: &Shared, propose: Propose) {
    if let Some(group) = known_group(shared, propose.group) {
        shared.submitter.propose_encoded(group, propose.command);
    }
}

fn take_resync(shared: &Shared, from: u64, resync: Resync, places: Range<u32>) {
    if known_group(shared, resync.group).is_some() {
        shared.submitter.resync(from, resync, places);
    }
}

fn take_read(shared: &Shared, from: u64, read: ReadRetained) {
    let Some(group) = known_group(shared, read.group) else {
        return;
    };
    let connection = ConnectionKey::from_raw(read.connection);
    let asker = Asker { node: from, incarnation: read.incarnation, connection };
    let cursor = RetainedCursor { group, after: read.after };
    shared.submitter.retained_page(asker, read.number, &read.filter, cursor);
}

/// What the leader of a group pushes. Under the lock of the leaders, so that nothing of an earlier one reaches an inbox
/// behind the word that there is a new one.
fn take_events(shared: &Shared, from: u64, events: GroupEvents) {
    let (Some(cluster), Some(group)) = (&shared.cluster, known_group(shared, events.group)) else {
        return;
    };
    let Some(_registered) = registered_as(shared, cluster, events.incarnation) else {
        return;
    };
    let now_ms = shared.now_ms();
    cluster.leaders.if_leads(shared, group, from, events.term, || {
        for kind in events.events.into_iter().filter_map(|event| event.kind) {
            let Some((arbiter, event)) = kind.into_event(group, now_ms) else {
                continue;
            };
            if let Some(inbox) = shared.inboxes.get(usize::from(arbiter)) {
                inbox.push(event, 0);
            }
        }
    });
}

fn take_ask(shared: &Shared, from: u64, ask: AskResync) {
    let (Some(cluster), Some(group)) = (&shared.cluster, known_group(shared, ask.group)) else {
        return;
    };
    let leader = Leader { node: from, term: ask.term, round: ask.round };
    cluster.leaders.on_asked(shared, group, leader);
}

/// From whoever leads the group, as far as this node knows: an older word would stand until the next change.
fn take_share_loads(shared: &Shared, from: u64, told: &ShareLoads) {
    let Some(group) = known_group(shared, told.group) else {
        return;
    };
    let leader = shared.cluster.as_ref().and_then(|cluster| cluster.leaders.get(group));
    if leader.is_some_and(|leader| leader.node == from) {
        for ShareLoad { share, least } in &told.loads {
            if let Some(share) = find_share(shared, share) {
                share.set_sessions_in_flight(group, *least);
            }
        }
    }
}

/// Messages for the transient sessions here. Answered once the arbiters' inboxes have them, and are not too full: what happens
/// to them then happens to their subscribers too.
fn take_messages(shared: &Shared, from: u64, messages: Messages) {
    let (Some(cluster), Some(origin)) = (&shared.cluster, NodeId::new(from)) else {
        return;
    };
    // Held while they are handed on: a batch that comes again by another link waits for its turn.
    let Some(mut incoming) = registered_as(shared, cluster, messages.target_incarnation) else {
        return;
    };
    // Taken for dead without knowing it, this node may have clients who are connected elsewhere by now, and get what is sent
    // there (P7). Not answered, it comes again.
    if !cluster.may_acknowledge() {
        return;
    }
    let Messages { lane, incarnation, target_incarnation, previous, last, items, round, payload, patient, clock_ms } =
        messages;
    // Whoever leads a group, its outbox has one lane.
    let (origin, number) = match lane & OUTBOX_LANE {
        0 => (origin, u16::try_from(lane).ok()),
        _ => (OUTBOXES, known_group(shared, lane & !OUTBOX_LANE)),
    };
    let Some(number) = number else {
        return;
    };
    let batch = Batch { previous, last, items, round, payload };
    let (answered, gap_in_round, patient) =
        match incoming.on_batch(origin, Incarnation(incarnation), LaneId(lane), &batch) {
            Verdict::Apply { above } => {
                let node = cluster.nodes.number(PeerProcess { node: from, incarnation });
                Origin { shared, node, number, is_outbox: origin == OUTBOXES, clock_ms }
                    .take_items(&batch.payload, above);
                (last, None, patient)
            }
            Verdict::Duplicate { last } => (last, None, false),
            Verdict::Gap { last } => (last, Some(round), false),
            Verdict::Fenced => return,
            Verdict::Malformed => {
                tracing::warn!(node = from, "a node sent a batch that makes no sense; it is dropped");
                return;
            }
        };
    drop(incoming);
    let answer = MessagesAnswer { lane, incarnation, target_incarnation, number: answered, gap_in_round };
    let now_ms = shared.now_ms();
    let mut patient_answers = cluster.patient_answers.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = match patient {
        // Answered now, as much again would come at once, whatever the arbiters have before them.
        _ if gap_in_round.is_none() && shared.is_inbox_overloaded() => {
            patient_answers.hold(from, answer);
            None
        }
        true => patient_answers.on_patient(from, answer, now_ms),
        false => {
            patient_answers.on_answered(from, lane, now_ms);
            Some(answer)
        }
    };
    drop(patient_answers);
    let Some(answer) = answer else {
        return;
    };
    // If there is no room, the origin sends the batch again.
    let _ = cluster.peers.forward(from, Forwarded::MessagesAnswer(answer));
}

/// Hands on what an outbox here has for arbiters here, unless they have had it from whoever led its group before. It is in their inboxes
/// before anything that another leader sends behind it (P5).
pub(super) fn hand_on_first_time<E: IntoIterator<Item = (u16, Event)>>(
    shared: &Shared,
    origin: u16,
    position: u64,
    events: impl FnOnce() -> E,
) {
    let incoming = shared.cluster.as_ref().map(|cluster| &cluster.incoming);
    // Held until everything is in the inboxes.
    let mut incoming = incoming.map(|incoming| incoming.lock().unwrap_or_else(PoisonError::into_inner));
    if incoming.as_mut().is_none_or(|incoming| is_first_time(incoming, origin, position)) {
        for (arbiter, event) in events() {
            if let Some(inbox) = shared.inboxes.get(usize::from(arbiter)) {
                inbox.push(event, 0);
            }
        }
    }
}

fn is_first_time(incoming: &mut Incoming, origin: u16, position: u64) -> bool {
    let lane = LaneId(OUTBOX_LANE | u32::from(origin));
    let batch = Batch { previous: 0, last: position, items: 1, round: 0, payload: Bytes::new() };
    match incoming.on_batch(OUTBOXES, Incarnation(OUTBOX_INCARNATION), lane, &batch) {
        Verdict::Apply { .. } => true,
        Verdict::Duplicate { .. } => false,
        // Nothing is before it, no outbox is fenced, and there is room for all of them.
        verdict @ (Verdict::Gap { .. } | Verdict::Fenced | Verdict::Malformed) => {
            tracing::error!(
                group = origin,
                position,
                ?verdict,
                "how far an outbox got here is not known: clients may get a message twice"
            );
            true
        }
    }
}

/// Whose lane it is that brings messages.
#[derive(Clone, Copy)]
struct Origin<'a> {
    shared: &'a Shared,
    node: NodeNumber,
    /// The arbiter there; of an outbox, the group.
    number: u16,
    /// It is that of an outbox, whose messages' publishers may be connected here.
    is_outbox: bool,
    /// What its clock said when this was sent.
    clock_ms: u64,
}

/// What is on its way to the arbiters of this node, and who wants the topic at hand.
struct Handing {
    topic: String,
    topic_hash: u64,
    matched: Matched,
    /// Those of `matched`.
    arbiters: SmallVec<[u16; 8]>,
    /// One for each arbiter.
    batches: Vec<batch::Batch>,
}

impl Handing {
    fn new(shared: &Shared) -> Self {
        Self {
            topic: String::new(),
            topic_hash: 0,
            matched: Matched::default(),
            arbiters: SmallVec::new(),
            batches: shared.inboxes.iter().map(|_| batch::Batch::default()).collect(),
        }
    }

    /// A publisher's messages come in runs of one topic, which is looked at and looked up once.
    ///
    /// # Errors
    /// It is no text.
    #[inline]
    fn match_topic(&mut self, shared: &Shared, topic: &[u8]) -> Result<(), Utf8Error> {
        if self.topic.as_bytes() != topic || !shared.index.is_current(&self.matched) {
            self.match_another(shared, std::str::from_utf8(topic)?);
        }
        Ok(())
    }

    fn match_another(&mut self, shared: &Shared, topic: &str) {
        topic.clone_into(&mut self.topic);
        self.topic_hash = topic_hash(topic);
        shared.index.matches(topic, self.topic_hash, &mut self.matched);
        self.arbiters.clear();
        self.arbiters.extend(self.matched.arbiters.iter());
    }

    /// Into the inboxes. What is pushed there after this comes after it.
    fn finish(&mut self, origin: Origin<'_>) {
        for (batch, arbiter) in self.batches.iter_mut().zip(0..=u16::MAX).filter(|(batch, _)| !batch.is_empty()) {
            let batch = std::mem::take(batch);
            let weight = batch.weight_bytes();
            origin.push(arbiter, Event::Batch { from: None, batch, weight }, weight);
        }
    }
}

impl Origin<'_> {
    /// Hands on the items above a number. When this returns, they are in the inboxes.
    fn take_items(self, payload: &Bytes, above: u64) {
        let now_ms = self.shared.now_ms();
        let mut handing = Handing::new(self.shared);
        let mut rest = &payload[..];
        while !rest.is_empty() {
            let Some(item) = take_slice(&mut rest) else {
                tracing::warn!("a node sent messages that cannot be read; the rest of the batch is dropped");
                break;
            };
            // A plain message does not say who published it, which No Local asks [MQTT-3.8.3-3].
            let plain = if self.is_outbox { None } else { PlainMessage::read(item) };
            if let Some(plain) = plain
                && (plain.number <= above || self.hand_on_plain(&plain, payload, now_ms, &mut handing).is_ok())
            {
                continue;
            }
            match NodeMessage::decode(payload.slice_ref(item)) {
                Ok(item) if item.number <= above => {}
                Ok(item) => self.hand_on(item, now_ms, &mut handing),
                Err(error) => {
                    tracing::warn!(%error, "a node sent a message that cannot be read; the rest is dropped");
                    break;
                }
            }
        }
        handing.finish(self);
    }

    /// `from` is where it was read from.
    ///
    /// # Errors
    /// Its topic is no text.
    #[inline]
    fn hand_on_plain(
        self,
        plain: &PlainMessage<'_>,
        from: &Bytes,
        now_ms: u64,
        handing: &mut Handing,
    ) -> Result<(), Utf8Error> {
        handing.match_topic(self.shared, plain.topic)?;
        let mut publication = Publication {
            identity: plain.identity,
            topic: &handing.topic,
            topic_hash: handing.topic_hash,
            payload: Payload::of(plain.payload, Some(from).filter(|_| plain.payload.len() >= SHARED_PAYLOAD_BYTES_MIN)),
            qos: plain.qos,
            retain: plain.retain,
            properties: None,
            expires_at_ms: plain.expiry_left_ms.map(|left| self.expires_at_ms(left, now_ms)),
            publisher: None,
            publisher_id: None,
            origin: None,
            passed_on: 0,
            message: None,
        };
        for &arbiter in &handing.arbiters {
            let Some(batch) = handing.batches.get_mut(usize::from(arbiter)) else { continue };
            if batch.is_empty() {
                *batch = self.shared.recycled_from_nodes.pop().unwrap_or_default();
            }
            batch.push_to_subscribers(&mut publication);
        }
        Ok(())
    }

    fn hand_on(self, item: NodeMessage, now_ms: u64, handing: &mut Handing) {
        // Whatever goes to an inbox by itself goes behind what gathered for it.
        handing.finish(self);
        self.take_answers(&item.settled);
        let Some(record) = item.message else {
            return;
        };
        let expires_at_ms = record.expiry_left_ms.map(|left| self.expires_at_ms(left, now_ms));
        let message: Arc<Message> = Arc::new(Message { expires_at_ms, ..record.into_message(now_ms) });
        if item.direct {
            self.hand_to_subscribers(&message, handing);
        }
        for (share, at) in item.shares.iter().zip(0..=u16::MAX) {
            self.hand_to_member(&message, share, at, item.number);
        }
    }

    /// By the clock here, of what was written by that of the origin. What expired on its way is over.
    fn expires_at_ms(self, left_ms: u64, now_ms: u64) -> u64 {
        match left_ms.saturating_sub(self.clock_ms) {
            0 => now_ms.saturating_sub(1),
            left_ms => now_ms.saturating_add(left_ms),
        }
    }

    fn hand_to_subscribers(self, message: &Arc<Message>, handing: &mut Handing) {
        if handing.topic != *message.topic || !self.shared.index.is_current(&handing.matched) {
            handing.match_another(self.shared, &message.topic);
        }
        for &arbiter in &handing.arbiters {
            let weight = message.weight_bytes();
            self.push(arbiter, Event::Route { message: Arc::clone(message), weight }, weight);
        }
    }

    /// One connection here that is a member gets it.
    fn hand_to_member(self, message: &Arc<Message>, share: &str, at: u16, number: u64) {
        let origin = if self.is_outbox {
            ShareOrigin::outbox(self.number, number)
        } else {
            let keeper = ShareKeeper::Arbiter { node: self.node, arbiter: self.number };
            NonZeroU64::new(number).map(|number| ShareOrigin { keeper, share: at, number })
        };
        let Some(origin) = origin else {
            return; // Lanes count from 1.
        };
        let weight = message.weight_bytes();
        let (arbiter, event) = for_member(self.shared, message, share, origin, weight);
        let weight = if matches!(event, Event::RouteShare { .. }) { weight } else { 0 };
        self.push(arbiter, event, weight);
    }

    /// What became of messages that the other node had for its members, for the arbiters here that keep them.
    fn take_answers(self, settled: &[ShareSettled]) {
        for run in settled.chunk_by(|first, second| first.lane == second.lane) {
            let Ok(arbiter) = u16::try_from(run[0].lane) else {
                continue;
            };
            let answers = run.iter().filter_map(answer).collect();
            self.push(arbiter, Event::ShareAnswered { node: self.node, answers }, 0);
        }
    }

    fn push(self, arbiter: u16, event: Event, weight: usize) {
        if let Some(inbox) = self.shared.inboxes.get(usize::from(arbiter)) {
            inbox.push(event, weight);
        }
    }
}

/// What an arbiter here is told of a message that `origin` has for one member here of a shared subscription, and which
/// arbiter. `weight`: what it is pushed with.
pub(super) fn for_member(
    shared: &Shared,
    message: &Arc<Message>,
    share: &str,
    origin: ShareOrigin,
    weight: usize,
) -> (u16, Event) {
    let picked = find_share(shared, share).and_then(|share| Some((pick_here(shared, &share, message)?, share)));
    match picked {
        Some((member, share)) => {
            let message = Arc::clone(message);
            (member.arbiter(), Event::RouteShare { message, share, member, origin, weight })
        }
        None => {
            // Some arbiter must say so; it has nothing else to do with it.
            let any = origin.number.get() % shared.inboxes.len().max(1) as u64;
            let origin = (message.qos != QoS::AtMostOnce).then_some(origin);
            (any as u16, Event::NoMember { origin })
        }
    }
}

/// By `$share/NAME/FILTER`.
pub(super) fn find_share(shared: &Shared, share: &str) -> Option<Arc<ShareGroup>> {
    let (name, filter) = share_parts(share)?;
    shared.index.share(name, filter)
}

/// NAME and FILTER of `$share/NAME/FILTER`.
pub(super) fn share_parts(share: &str) -> Option<(&str, &str)> {
    share.strip_prefix("$share/")?.split_once('/')
}

fn pick_here(shared: &Shared, share: &ShareGroup, message: &Message) -> Option<ConnectionKey> {
    let strategy: PickStrategy = shared.settings.shared.strategy.into();
    let publisher = strategy.publisher_hash(&message.publisher);
    let topic = strategy.topic_hash(&message.topic, topic_hash(&message.topic));
    let qos0 = message.qos == QoS::AtMostOnce;
    match share.pick_here(strategy, publisher, topic, PassedOver::Nobody, qos0)? {
        ShareTarget::Connection { connection, .. } => Some(ConnectionKey::from_raw(connection)),
        ShareTarget::Session { .. } | ShareTarget::Node { .. } => None,
    }
}

fn answer(settled: &ShareSettled) -> Option<ShareAnswer> {
    let outcome = if settled.given_back { ShareOutcome::GivenBack } else { ShareOutcome::Settled };
    Some(ShareAnswer { number: settled.number, share: u16::try_from(settled.share).ok()?, outcome })
}

fn take_outbox_answered(shared: &Shared, answer: OutboxAnswered) {
    if let (Some(origin), Some(group)) = (known_group(shared, answer.origin), known_group(shared, answer.group)) {
        shared.submitter.outbox_answered(origin, OutboxTarget::Group(group), answer.number, None);
    }
}

fn take_messages_answer(shared: &Shared, from: u64, answer: MessagesAnswer) {
    let Some(cluster) = &shared.cluster else {
        return;
    };
    let node = cluster.nodes.number(PeerProcess { node: from, incarnation: answer.target_incarnation });
    if answer.lane & OUTBOX_LANE != 0 {
        if let Some(origin) = known_group(shared, answer.lane & !OUTBOX_LANE) {
            let target = OutboxTarget::Node(node);
            shared.submitter.outbox_answered(origin, target, answer.number, answer.gap_in_round);
        }
        return;
    }
    let Some(_registered) = registered_as(shared, cluster, answer.incarnation) else {
        return;
    };
    let event = match answer.gap_in_round {
        Some(round) => Event::NodeGap { node, round, last: answer.number },
        None => Event::NodeAnswered { node, number: answer.number },
    };
    if let Some(inbox) = shared.inboxes.get(answer.lane as usize) {
        inbox.push(event, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::atomic::AtomicBool;
    use std::sync::{Mutex, mpsc};
    use std::thread;
    use std::time::{Duration, Instant};

    use kentongan_cluster::PipelineHandle;
    use kentongan_cluster::lease::LeaseCell;

    use super::*;
    use crate::auth::Authority;
    use crate::clock::{Clock, ManualClock};
    use crate::config::Settings;
    use crate::peers::NoPeers;
    use crate::peers::wire::{Close, EventKind, GroupEvent, LaneAnswered};
    use crate::replicated::command::MessageRecord;
    use crate::replicated::{Slots, Submitter};
    use crate::router::cluster::Leaders;
    use crate::router::node_lanes::Nodes;
    use crate::subscription::Target;

    /// As what this node was registered, and is then.
    const BEFORE: u64 = 3;
    const AFTER: u64 = 9;

    /// The other node.
    const FROM: u64 = 2;

    fn one_of_two() -> Arc<Shared> {
        let clock = Clock::manual(Arc::new(ManualClock::new(0)));
        let cluster = ClusterView {
            node: 1,
            lease: Arc::new(LeaseCell::endless()),
            peers: Arc::new(NoPeers),
            leaders: Leaders::default(),
            nodes: Nodes::default(),
            incoming: Mutex::new(Incoming::new(&BTreeMap::new())),
            patient_answers: Mutex::default(),
            clock: clock.clone(),
            serving: AtomicBool::new(true),
            leases: Mutex::default(),
            removed: AtomicBool::new(false),
            elsewhere: crate::moving::Elsewhere::default(),
        };
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let (settings, authority) = (Arc::new(Settings::default()), Authority::default());
        Arc::new(Shared::new(settings, 1, submitter, authority, BEFORE, Some(cluster), clock))
    }

    /// The other node says something. Returns when that was taken, or waits for a lock.
    fn says(shared: &Arc<Shared>, forwarded: Forwarded) -> thread::JoinHandle<()> {
        let (say, said) = mpsc::channel();
        let taking = Arc::clone(shared);
        let taking = thread::spawn(move || {
            say.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
            take(&taking, FROM, forwarded);
        });
        let stat = std::path::Path::new("/proc").join(said.recv().unwrap()).join("stat");
        let deadline = Instant::now() + Duration::from_secs(10);
        let waits = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "));
        while !taking.is_finished() && !waits() {
            assert!(Instant::now() < deadline, "it neither comes to an end nor waits");
            thread::yield_now();
        }
        taking
    }

    /// The other node says something while this one is being registered anew. Returns what the arbiter is told.
    fn said_meanwhile(shared: &Arc<Shared>, forwarded: Forwarded) -> Vec<Event> {
        let cluster = shared.cluster.as_ref().unwrap();
        let mut incoming = cluster.incoming.lock().unwrap();
        let taking = says(shared, forwarded);
        *incoming = Incoming::new(&BTreeMap::new());
        shared.set_incarnation(AFTER);
        drop(incoming);
        taking.join().unwrap();
        std::iter::from_fn(|| shared.inboxes[0].pop()).collect()
    }

    /// P5: of two messages the second would come first, if it did not wait until the one before it is where it has to be.
    #[test]
    fn what_another_leader_sends_comes_behind_what_the_one_here_has_begun_to_hand_on() {
        let shared = one_of_two();
        let message = |number: u64| NodeMessage {
            number,
            message: Some(MessageRecord { topic: format!("t/{number}"), qos: 1, ..MessageRecord::default() }),
            direct: true,
            ..NodeMessage::default()
        };
        shared.index.subscribe("t/+", Target::Arbiter(0));
        let payload = [20, 21].map(|number| message(number).encode_length_delimited_to_vec()).concat().into();
        let messages = Messages {
            lane: OUTBOX_LANE,
            incarnation: OUTBOX_INCARNATION,
            target_incarnation: BEFORE,
            last: 21,
            items: 2,
            payload,
            ..Messages::default()
        };
        let local = Arc::new(message(20).message.expect("it has one").into_message(0));
        let mut other = None;
        hand_on_first_time(&shared, 0, 20, || {
            other = Some(says(&shared, Forwarded::Messages(messages)));
            [(0, Event::Route { message: local, weight: 0 })]
        });
        other.expect("it said so").join().unwrap();
        let topic = |event| match event {
            Event::Route { message, .. } => message.topic.to_string(),
            other => panic!("{other:?}"),
        };
        let handed: Vec<_> = std::iter::from_fn(|| shared.inboxes[0].pop()).map(topic).collect();
        assert_eq!(handed, ["t/20", "t/21"]);
    }

    /// P1: the lane would count from where that of the registration before was, and take what comes first for what came already.
    #[test]
    fn a_batch_for_the_registration_before_does_not_begin_a_lane_to_the_next() {
        let shared = one_of_two();
        let messages =
            Messages { incarnation: 5, target_incarnation: BEFORE, last: 40, items: 40, ..Messages::default() };
        said_meanwhile(&shared, Forwarded::Messages(messages));
        let cluster = shared.cluster.as_ref().unwrap();
        let batch = Batch { previous: 0, last: 1, items: 1, round: 0, payload: Bytes::new() };
        let origin = NodeId::new(FROM).unwrap();
        let verdict = cluster.incoming.lock().unwrap().on_batch(origin, Incarnation(5), LaneId(0), &batch);
        assert_eq!(verdict, Verdict::Apply { above: 0 });
    }

    /// P1, P8: registered again, an arbiter that is asked to close what it had before would say of it, by a lane that counts, that it had
    /// never been.
    #[test]
    fn nothing_of_the_registration_before_is_to_be_closed_in_the_next() {
        let close = Close { connection: 0, client_id: "c".to_owned(), epoch: 1 };
        let told = |incarnation| {
            let events = vec![GroupEvent { kind: Some(EventKind::Close(close.clone())) }];
            let events = GroupEvents { term: 1, incarnation, events, ..Default::default() };
            let told = said_meanwhile(&one_of_two(), Forwarded::Events(events));
            told.iter().any(|event| matches!(event, Event::Close { .. }))
        };
        assert_eq!([BEFORE, AFTER].map(told), [false, true]);
    }

    /// P1: lanes of the next registration have the same numbers; what nobody has would be acknowledged.
    #[test]
    fn answers_to_the_registration_before_settle_nothing_of_the_next() {
        let shared = one_of_two();
        let answer = MessagesAnswer { incarnation: BEFORE, target_incarnation: 5, number: 40, ..Default::default() };
        let told = said_meanwhile(&shared, Forwarded::MessagesAnswer(answer));
        assert!(!told.iter().any(|event| matches!(event, Event::NodeAnswered { .. })), "{told:?}");

        let shared = one_of_two();
        let answered = EventKind::LaneAnswered(LaneAnswered { number: 40, ..Default::default() });
        let events = vec![GroupEvent { kind: Some(answered) }];
        let events = GroupEvents { term: 1, incarnation: BEFORE, events, ..Default::default() };
        let told = said_meanwhile(&shared, Forwarded::Events(events));
        assert!(!told.iter().any(|event| matches!(event, Event::LaneAnswered(_))), "{told:?}");
    }
}
