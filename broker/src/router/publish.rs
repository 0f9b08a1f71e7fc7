//! One publication on its way: whom it is for, and when its publisher may be told that it is safe.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use kentongan_proto::mqtt::codec::{AckKind, PacketType};
use kentongan_proto::mqtt::{Delivery, PublishProperties, PublishRef, QoS, ReasonCode, Will};
use smallvec::SmallVec;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::batch::Addressee;
use super::ended::EndCause;
use super::lanes::{BlockedLane, Waiter};
use super::log_rate::excerpt;
use super::pace;
use super::share_settling::{Kept, ShareOrigin, ShareOutcome};
use super::shared::MEMORY_LEVEL_PAUSES;
use crate::auth::{Action, Actor};
use crate::message::{Message, MessageIdentity, lifetime_ms};
use crate::metrics::DropReason;
use crate::plants::{Plant, is_planted};
use crate::replicated::command::SessionCommand;
use crate::session::SessionError;
use crate::session::acknowledgements::Verdict;
use crate::session::handshake::Refusal;
use crate::session::inbound::PublishStep;
use crate::subscription::{CachedMatch, Matched, NodeNumber, PassedOver, PickStrategy, ShareGroup, ShareTarget};
use crate::watching::trace::Traced;

/// The bytes of an Application Message: a slice that lives for this turn, and its owner if it has one.
#[derive(Debug, Clone)]
pub struct Payload<'a> {
    slice: &'a [u8],
    owner: Option<Bytes>,
}

impl<'a> Payload<'a> {
    /// A slice of a buffer that will be used again.
    #[must_use]
    pub fn copied(slice: &'a [u8]) -> Self {
        Self { slice, owner: None }
    }

    /// All of `bytes`, which may be kept by a reference.
    #[must_use]
    pub fn shared(bytes: &'a Bytes) -> Self {
        Self { slice: bytes, owner: Some(bytes.clone()) }
    }

    /// `slice` as part of `source`, if it has one.
    #[must_use]
    pub fn of(slice: &'a [u8], source: Option<&Bytes>) -> Self {
        Self { slice, owner: source.map(|source| source.slice_ref(slice)) }
    }

    /// Bytes of the payload.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slice.is_empty()
    }

    /// For this turn.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &'a [u8] {
        self.slice
    }

    /// To keep: copied at most once, whoever asks.
    pub fn share(&mut self) -> Bytes {
        self.owner.get_or_insert_with(|| Bytes::copy_from_slice(self.slice)).clone()
    }
}

/// One publication within a turn, nothing copied that nobody keeps.
#[derive(Debug)]
pub struct Publication<'a> {
    /// Which one it is.
    pub identity: MessageIdentity,
    /// Topic Name, aliases resolved.
    pub topic: &'a str,
    /// Of the topic, by the index's hasher.
    pub topic_hash: u64,
    /// The Application Message.
    pub payload: Payload<'a>,
    /// As published.
    pub qos: QoS,
    /// RETAIN as published.
    pub retain: bool,
    /// `None` if there are none to forward.
    pub properties: Option<&'a PublishProperties>,
    /// On the process clock.
    pub expires_at_ms: Option<u64>,
    /// The connection it came by, if that is one of this arbiter's: for No Local.
    pub publisher: Option<ConnectionKey>,
    /// The publisher's Client Identifier.
    pub publisher_id: Option<&'a Arc<str>>,
    /// Who has it for one member of a shared subscription here, and waits for what becomes of it.
    pub origin: Option<ShareOrigin>,
    /// Members of a shared subscription that it was for and who may not read it.
    pub passed_on: u8,
    /// The same as something to keep, made when first asked for.
    pub message: Option<Arc<Message>>,
}

impl Publication<'_> {
    /// The message to keep, shared by all who keep it.
    pub fn share_message(&mut self) -> Arc<Message> {
        if let Some(message) = &self.message {
            return Arc::clone(message);
        }
        let message = Arc::new(Message {
            identity: self.identity,
            topic: Arc::from(self.topic),
            payload: self.payload.share(),
            qos: self.qos,
            retain: self.retain,
            publisher: self.publisher_id.cloned().unwrap_or_else(|| Arc::from("")),
            properties: self.properties.map(|properties| Box::new(properties.clone())),
            expires_at_ms: self.expires_at_ms,
        });
        self.message = Some(Arc::clone(&message));
        message
    }
}

/// What a PUBLISH or a will must answer for before it is accepted.
struct Asked<'a> {
    topic: &'a str,
    qos: QoS,
    payload: &'a [u8],
    payload_format_indicator: Option<u8>,
    retain: bool,
}

/// The nodes that were picked for a member of a shared subscription.
type Elsewhere = SmallVec<[(NodeNumber, Arc<ShareGroup>); 2]>;

/// The shared subscriptions of which one node's members were picked.
type Shares = SmallVec<[Arc<ShareGroup>; 2]>;

/// Shared subscriptions that one item names: an answer says in 16 bits which of them it is about.
const SHARES_AN_ITEM_MAX: usize = 1 << 16;

/// What became of a publication when it was routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Routed {
    /// Everyone who should have it has it; or nobody wants it.
    Done {
        /// Whether anybody did.
        matched: bool,
    },
    /// Groups have still to answer this waiter of `lanes`.
    Waiting(Waiter),
}

impl ArbiterState {
    pub(super) fn on_publish(&mut self, key: ConnectionKey, publish: &PublishRef<'_>, payload: Payload<'_>) {
        let qos = publish.delivery.qos();
        self.counters.messages_received.inc(qos);
        self.counters.payload_bytes_received.add(payload.len() as u64);
        let Some(client) = self.client(key) else {
            return;
        };
        let client_id = Arc::clone(&client.client_id);
        let Some(session) = client.session.as_mut() else {
            return;
        };
        // The alias first: it stands for what follows even if this message is refused.
        let aliased = match publish.properties.topic_alias() {
            None if publish.topic.is_empty() => {
                return self.fail(key, &SessionError::Protocol("an empty topic name without a topic alias"));
            }
            None => None,
            Some(alias) => match session.aliases_in.resolve(alias, publish.topic) {
                Ok(topic) => Some(topic),
                Err(error) => return self.fail(key, &error),
            },
        };
        let topic = aliased.as_deref().unwrap_or(publish.topic);
        match session.inbound.on_publish(publish.delivery) {
            Ok(PublishStep::Route) => {}
            Ok(PublishStep::Wait) => return,
            Ok(PublishStep::AnswerAgain) => {
                if let Some(id) = publish.delivery.packet_id() {
                    self.write_ack(key, AckKind::PubRec, id, ReasonCode::Success);
                }
                return;
            }
            Err(error) => return self.fail(key, &error),
        }
        let mut whole = None;
        let mut unreachable = None;
        if let Some(mount) = &self.clients[key.index()].mount {
            let response_topic = publish.properties.to_owned().response_topic;
            match mount.whole_publish(topic, response_topic.as_deref()) {
                Ok(topics) => whole = Some(topics),
                Err(error) => unreachable = Some(error.refusal()),
            }
        }
        let topic = whole.as_ref().map_or(topic, |whole| &whole.topic);
        if let Some(refusal) = unreachable.or_else(|| self.refusal(key, topic, publish, payload.as_slice())) {
            let reason = refusal.reason;
            self.counters.publishes_refused.inc(reason.into());
            if self.shared.watches.is_tracing() {
                let payload = payload.as_slice();
                let refused =
                    Traced { topic, qos: qos as u8, retain: publish.retain, payload, reason: Some(refusal.text) };
                self.trace_refused(&client_id, refused);
            }
            if self.refusal_lines.admits(self.now_seconds()) {
                tracing::info!(%client_id, topic = excerpt(topic), ?reason, "PUBLISH refused");
            }
            let will_pass = reason == ReasonCode::QuotaExceeded && self.shared.submitter.is_full();
            if will_pass && self.client(key).is_some_and(|client| !client.version.is_v5()) {
                // An older PUBACK can only say that the message is safe. Without one it comes again.
                return self.end(key, EndCause::Refused(reason), None);
            }
            return self.answer_publish(key, publish.delivery, refusal.into());
        }
        let mut properties = (!publish.properties.is_empty()).then(|| publish.properties.to_owned());
        if let (Some(properties), Some(whole)) = (&mut properties, &whole) {
            properties.response_topic.clone_from(&whole.response_topic);
        }
        let expires_at_ms = properties
            .as_ref()
            .and_then(|properties| properties.message_expiry_interval)
            .map(|seconds| self.now_ms + lifetime_ms(seconds));
        let properties = properties.filter(has_something_to_forward);
        let mut publication = Publication {
            identity: self.next_identity(),
            topic,
            topic_hash: self.shared.index.hash(topic),
            payload,
            qos,
            retain: publish.retain,
            properties: properties.as_ref(),
            expires_at_ms,
            publisher: Some(key),
            publisher_id: Some(&client_id),
            origin: None,
            passed_on: 0,
            message: None,
        };
        if self.shared.watches.is_on() {
            self.watch_publish(&client_id, &publication);
        }
        self.accept(key, publish.delivery, &mut publication);
        let full = self.clients[key.index()].session.as_ref().is_some_and(|session| session.inbound.is_full());
        if full {
            self.pause(key);
        }
    }

    /// Routes an accepted message and answers its publisher, at once or when the groups have it.
    fn accept(&mut self, key: ConnectionKey, delivery: Delivery, publication: &mut Publication<'_>) {
        let persistent = self.clients[key.index()].session.as_ref().and_then(|session| session.persistent);
        if let (Some(persistent), Delivery::ExactlyOnce(id), Some(publisher)) =
            (persistent, delivery, publication.publisher_id)
        {
            // The group takes message and identifier in one entry and routes it from its outbox.
            self.owe(key, AckKind::PubRec, id);
            if publication.retain {
                self.shared.retained_possible.store(true, Ordering::Relaxed);
            }
            let message = publication.share_message();
            let received = SessionCommand::receive(publisher, persistent, &message, id, self.now_ms);
            self.count_named(publisher);
            self.lanes.command(persistent.group, received);
            return self.schedule_flush();
        }
        match self.route(publication) {
            Routed::Done { matched } => {
                let v5 = self.clients[key.index()].version.is_v5();
                let reason = if matched || !v5 { ReasonCode::Success } else { ReasonCode::NoMatchingSubscribers };
                self.answer_publish(key, delivery, reason.into());
            }
            Routed::Waiting(waiter) if is_planted(Plant::AcknowledgeEarly) => {
                self.lanes.answer_to(waiter, key, None);
                self.answer_publish(key, delivery, ReasonCode::Success.into());
            }
            Routed::Waiting(waiter) => {
                publication.publisher_id.into_iter().for_each(|publisher| self.count_named(publisher));
                let owed = match delivery {
                    Delivery::AtMostOnce => None,
                    Delivery::AtLeastOnce(id) => Some(self.owe(key, AckKind::PubAck, id)),
                    Delivery::ExactlyOnce(id) => Some(self.owe(key, AckKind::PubRec, id)),
                };
                self.lanes.answer_to(waiter, key, owed);
            }
        }
    }

    fn owe(&mut self, key: ConnectionKey, kind: AckKind, id: kentongan_proto::mqtt::PacketId) -> u64 {
        self.timing.owes(key, id, self.now);
        match self.client(key).and_then(|client| client.session.as_mut()) {
            Some(session) => session.owed.owe(kind, id),
            None => 0,
        }
    }

    /// Why a message is not accepted, if it is not.
    fn refusal(&self, key: ConnectionKey, topic: &str, publish: &PublishRef<'_>, payload: &[u8]) -> Option<Refusal> {
        let client = self.clients.get(key.index())?;
        let actor = client.actor()?;
        let asked = Asked {
            topic,
            qos: publish.delivery.qos(),
            payload,
            payload_format_indicator: publish.properties.payload_format_indicator(),
            retain: publish.retain,
        };
        let refused = self.refusal_of(&actor, &asked);
        if refused.is_none() && publish.delivery.qos() != QoS::AtMostOnce && self.shared.submitter.is_full() {
            return Some(Refusal { reason: ReasonCode::QuotaExceeded, text: "the disk of this server is full" });
        }
        refused
    }

    /// Why a will is not accepted, if it is not: by the same rules as a PUBLISH, but for a full disk, which may have
    /// room again when the will is due, and must not keep subscribers away until then.
    pub(super) fn will_refusal(&self, actor: &Actor<'_>, will: &Will) -> Option<Refusal> {
        let asked = Asked {
            topic: &will.topic,
            qos: will.qos,
            payload: &will.payload,
            payload_format_indicator: will.properties.payload_format_indicator,
            retain: will.retain,
        };
        self.refusal_of(actor, &asked)
    }

    fn refusal_of(&self, actor: &Actor<'_>, asked: &Asked<'_>) -> Option<Refusal> {
        let refused = |reason, text| Some(Refusal { reason, text });
        let action = Action::Publish { topic: asked.topic, qos: asked.qos, retain: asked.retain };
        if !self.shared.authority.authorize(actor, action) {
            return refused(ReasonCode::NotAuthorized, "the client may not publish to that topic");
        }
        self.bound_of(asked)
    }

    /// Why a message of an operator's is not accepted, if it is not. It may go to every topic that is not the broker's own; the bounds of a
    /// client's hold for it too.
    pub(crate) fn operator_refusal(&self, message: &Message) -> Option<Refusal> {
        let topic = crate::message::delayed(&message.topic).map_or(&*message.topic, |(_, reached)| reached);
        let wrong_topic = |text| Some(Refusal { reason: ReasonCode::TopicNameInvalid, text });
        if super::sys::is_sys(topic) {
            return wrong_topic("$SYS is the broker's own");
        }
        let levels = topic.split('/').count();
        if levels > usize::from(self.shared.settings.session.topic_levels_max.get()) {
            return wrong_topic("more levels than `session.topic_levels_max`");
        }
        let asked = Asked {
            topic: &message.topic,
            qos: message.qos,
            payload: &message.payload,
            payload_format_indicator: message.properties.as_ref().and_then(|own| own.payload_format_indicator),
            retain: message.retain,
        };
        self.bound_of(&asked)
    }

    /// Whether others cannot keep up with who publishes that: as [`Self::hold_up_if_overloaded`] finds, but before anything is done.
    pub(crate) fn holds_up(&self, message: &Message) -> bool {
        self.is_overloaded() || self.is_for_blocked_lane(message)
    }

    /// Whether something of a message would go into a full lane whose group or node answers nothing.
    fn is_for_blocked_lane(&self, message: &Message) -> bool {
        let is_blocked = |group| self.lanes.is_blocked(BlockedLane::Group(group));
        if let Some((_, topic)) = crate::message::delayed(&message.topic) {
            let group = self.lanes.group_of(topic);
            return is_blocked(group) || self.lanes.is_blocked(BlockedLane::Delayed(group));
        }
        if message.retain && is_blocked(self.lanes.group_of(&message.topic)) {
            return true;
        }
        if message.qos == QoS::AtMostOnce {
            return false;
        }
        let (mut wanted, hash) = (Matched::default(), self.shared.index.hash(&message.topic));
        self.shared.index.matches(&message.topic, hash, &mut wanted);
        let is_shut = |target| match target {
            ShareTarget::Connection { .. } => false,
            ShareTarget::Session { group } => is_blocked(group),
            ShareTarget::Node { node } => self.lanes.is_blocked(BlockedLane::Node(node)),
        };
        let strategy: PickStrategy = self.shared.settings.shared.strategy.into();
        let publisher = strategy.publisher_hash(&message.publisher);
        let topic = strategy.topic_hash(&message.topic, hash);
        wanted.groups.iter().any(|&group| is_blocked(group))
            || wanted.nodes_for(message.qos).any(|node| self.lanes.is_blocked(BlockedLane::Node(node)))
            || wanted.shares.iter().any(|share| share.may_pick(strategy, publisher, topic, &is_shut))
    }

    /// Why nobody may publish that, if so.
    fn bound_of(&self, asked: &Asked<'_>) -> Option<Refusal> {
        let refused = |reason, text| Some(Refusal { reason, text });
        let settings = &self.shared.settings;
        if settings.session.check_payload_format
            && asked.payload_format_indicator == Some(1)
            && std::str::from_utf8(asked.payload).is_err()
        {
            return refused(ReasonCode::PayloadFormatInvalid, "the payload is not the UTF-8 that it claims to be");
        }
        if asked.topic.starts_with(crate::message::DELAYED) {
            let Some((seconds, _)) = crate::message::delayed(asked.topic) else {
                // As an ordinary topic it would reach nobody who waits for the other, and nobody would be told.
                let text = "$delayed/ is followed by a whole number of seconds and a topic that is not delayed again: \
                            $delayed/SECONDS/TOPIC";
                return refused(ReasonCode::TopicNameInvalid, text);
            };
            if !settings.delayed.enabled {
                return refused(ReasonCode::NotAuthorized, "delayed publication is turned off here");
            }
            if seconds > u64::from(settings.delayed.seconds_max) {
                return refused(ReasonCode::QuotaExceeded, "the delay is longer than allowed here");
            }
        }
        let retained_max = settings.retained.payload_bytes_max as usize;
        if asked.retain && retained_max != 0 && asked.payload.len() > retained_max {
            return refused(ReasonCode::QuotaExceeded, "the payload is larger than one that may be retained here");
        }
        None
    }

    /// Answers a PUBLISH that is settled now, in its turn [MQTT-3.3.4-1].
    fn answer_publish(&mut self, key: ConnectionKey, delivery: Delivery, verdict: Verdict) {
        let (kind, id) = match delivery {
            Delivery::AtMostOnce => return,
            Delivery::AtLeastOnce(id) => (AckKind::PubAck, id),
            Delivery::ExactlyOnce(id) => (AckKind::PubRec, id),
        };
        let Some(client) = self.client(key) else {
            return;
        };
        let Some(session) = client.session.as_mut() else {
            return;
        };
        let first = session.owed.is_empty();
        if first && self.may_acknowledge() {
            return self.send_owed(key, kind, id, verdict);
        }
        let ticket = self.owe(key, kind, id);
        if let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) {
            session.owed.settle(ticket, verdict);
        }
        if first {
            self.withheld.push(key);
        }
    }

    fn send_owed(&mut self, key: ConnectionKey, kind: AckKind, id: kentongan_proto::mqtt::PacketId, verdict: Verdict) {
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        if kind == AckKind::PubAck {
            session.inbound.on_puback_sent();
        } else {
            session.inbound.on_pubrec_sent(id, verdict.reason);
        }
        match verdict.text {
            None => self.write_ack(key, kind, id, verdict.reason),
            Some(text) => self.write_refusal(key, kind, id, verdict.reason, text),
        }
        if let Some(since) = self.timing.acknowledged(key, id) {
            let took = self.shared.clock.elapsed().saturating_sub(since);
            self.counters.publish_ack_seconds.record(took);
        }
    }

    /// The groups answered for the message behind `ticket`.
    pub(super) fn settle(&mut self, key: ConnectionKey, ticket: u64, reason: ReasonCode) {
        if self.ends_for_refusal(key, reason) {
            return;
        }
        if let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) {
            session.owed.settle(ticket, of_group(reason));
            self.send_settled(key);
        }
    }

    /// Before MQTT 5 PUBACK and PUBREC say that the message is taken, so a client of which one is refused ends: it is to send it again.
    fn ends_for_refusal(&mut self, key: ConnectionKey, reason: ReasonCode) -> bool {
        let ends = reason.is_error() && self.client(key).is_some_and(|client| !client.version.is_v5());
        if ends {
            self.end(key, EndCause::Refused(reason), None);
        }
        ends
    }

    /// The group answered for a QoS 2 message of a persistent session.
    pub(super) fn settle_received(
        &mut self,
        key: ConnectionKey,
        id: kentongan_proto::mqtt::PacketId,
        reason: ReasonCode,
    ) {
        if self.ends_for_refusal(key, reason) {
            return;
        }
        if let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) {
            session.owed.settle_packet(AckKind::PubRec, id, of_group(reason));
            self.send_settled(key);
        }
    }

    pub(super) fn send_settled(&mut self, key: ConnectionKey) {
        if !self.may_acknowledge() {
            return self.withheld.push(key);
        }
        let was_full = self.is_full(key);
        while let Some(session) = self.client(key).and_then(|client| client.session.as_mut())
            && let Some(owed) = session.owed.pop()
        {
            self.send_owed(key, owed.kind, owed.packet_id, owed.verdict);
        }
        if self.is_full(key) {
            return;
        }
        if !self.shared.publishers_paused.load(Ordering::Relaxed) {
            self.resume_reading(key);
        } else if was_full {
            // It publishes again with the others: until now it waited for its own acknowledgements only.
            self.hold_up(key);
            self.resume_reading(key);
        }
    }

    /// Whether the client has sent as much as it may without an answer.
    pub(super) fn is_full(&mut self, key: ConnectionKey) -> bool {
        let session = self.client(key).and_then(|client| client.session.as_ref());
        session.is_some_and(|session| session.inbound.is_full())
    }

    /// Publishes the Will Message of a transient session [MQTT-3.1.2-8].
    pub(super) fn route_will(&mut self, client_id: &Arc<str>, will: &Will) {
        let properties = PublishProperties {
            payload_format_indicator: will.properties.payload_format_indicator,
            message_expiry_interval: will.properties.message_expiry_interval,
            content_type: will.properties.content_type.clone(),
            response_topic: will.properties.response_topic.clone(),
            correlation_data: will.properties.correlation_data.clone(),
            user_properties: will.properties.user_properties.clone(),
            ..PublishProperties::default()
        };
        let expires_at_ms = properties.message_expiry_interval.map(|seconds| self.now_ms + lifetime_ms(seconds));
        let mut publication = Publication {
            identity: self.next_identity(),
            topic: &will.topic,
            topic_hash: self.shared.index.hash(&will.topic),
            payload: Payload::shared(&will.payload),
            qos: will.qos,
            retain: will.retain,
            properties: has_something_to_forward(&properties).then_some(&properties),
            expires_at_ms,
            publisher: None,
            publisher_id: Some(client_id),
            origin: None,
            passed_on: 0,
            message: None,
        };
        // Nobody waits for it: what the groups answer is for no connection.
        self.route(&mut publication);
    }

    /// Routes a message of the broker's own, such as `$SYS`, that nobody waits for.
    pub fn route_message(&mut self, message: &Arc<Message>) {
        let mut publication = self.publication_of(message);
        // Nobody waits for it: what the groups answer is for no connection.
        self.route(&mut publication);
    }

    /// What tells one more message that is published here from every other.
    pub fn next_identity(&mut self) -> MessageIdentity {
        self.message_number += 1;
        MessageIdentity { lane: self.lanes.id(), number: self.message_number }
    }

    pub(super) fn publication_of<'a>(&self, message: &'a Arc<Message>) -> Publication<'a> {
        Publication {
            identity: message.identity,
            topic: &message.topic,
            topic_hash: self.shared.index.hash(&message.topic),
            payload: Payload::shared(&message.payload),
            qos: message.qos,
            retain: message.retain,
            properties: message.properties.as_deref(),
            expires_at_ms: message.expires_at_ms,
            publisher: None,
            publisher_id: Some(&message.publisher),
            origin: None,
            passed_on: 0,
            message: Some(Arc::clone(message)),
        }
    }

    /// Hands a publication to everyone who wants it: connections here, batches for other arbiters, lanes to groups.
    pub(super) fn route(&mut self, publication: &mut Publication<'_>) -> Routed {
        if let Some(delay) = crate::message::delayed(publication.topic) {
            return self.route_delayed(publication, delay);
        }
        self.templates.begin();
        let mut cached =
            self.cache.take(publication.topic, publication.topic_hash, &self.shared.index, &self.subscriptions);
        let visited = cached.global.take_visited() + self.subscriptions.take_visited();
        self.work += (visited + cached.local.len() + cached.global.shares.len()) as u64;
        let routed = self.route_to(publication, &cached);
        self.cache.put_back(cached);
        routed
    }

    fn route_to(&mut self, publication: &mut Publication<'_>, cached: &CachedMatch) -> Routed {
        let mut matched = !cached.local.is_empty();
        for target in &cached.local {
            self.deliver_matched(publication, target);
        }
        for arbiter in cached.global.arbiters.iter() {
            if arbiter != self.id {
                matched = true;
                self.batches[usize::from(arbiter)].push_to_subscribers(publication);
                self.schedule_flush();
            }
        }
        // QoS 0 never enters a log: it goes directly to those who are connected.
        if publication.qos != QoS::AtMostOnce {
            for &group in &cached.global.groups {
                self.lanes.publish(group, publication, None);
            }
        }
        let mut elsewhere = Elsewhere::new();
        for share in &cached.global.shares {
            matched |= self.hand_to_member(publication, share, PassedOver::Nobody, &mut elsewhere);
        }
        if !(elsewhere.is_empty() && cached.global.nodes.is_empty()) {
            matched |= self.route_to_nodes(publication, cached.global.nodes_for(publication.qos), &elsewhere, 0);
        }
        if publication.retain && !self.is_without_room(publication) {
            self.shared.retained_possible.store(true, Ordering::Relaxed);
            let group = self.lanes.group_of(publication.topic);
            self.lanes.store_retained(group, publication);
        }
        if let Some(waiter) = self.lanes.take_waiter() {
            self.schedule_flush();
            return Routed::Waiting(waiter);
        }
        if !matched {
            self.counters.publishes_unmatched.inc();
        }
        Routed::Done { matched }
    }

    /// Only the reserve of the disk is left, and nobody would hear that a retained message of QoS 0 is refused: it is delivered, and not
    /// kept. One that is to be forgotten makes room.
    fn is_without_room(&mut self, publication: &Publication<'_>) -> bool {
        let is_kept = publication.qos == QoS::AtMostOnce && !publication.payload.is_empty();
        let is_without_room = is_kept && self.shared.submitter.is_full();
        if is_without_room {
            self.counters.retained_not_kept.inc();
        }
        is_without_room
    }

    /// One member of the shared subscription gets it, but not who was passed over. Nobody waits for it any more.
    pub(super) fn route_to_share(
        &mut self,
        publication: &mut Publication<'_>,
        share: &ShareGroup,
        passed_over: PassedOver,
    ) {
        self.route_to_share_again(publication, share, passed_over, 0);
    }

    /// The same for a message that nodes gave back so many times.
    pub(super) fn route_to_share_again(
        &mut self,
        publication: &mut Publication<'_>,
        share: &ShareGroup,
        passed_over: PassedOver,
        given_back: u8,
    ) {
        // Who was to be answered may be lost: then it is for this node to see to the message.
        publication.origin = publication.origin.filter(|origin| self.lanes.is_there(origin.keeper));
        // All members may have left since, and others come: those are members of another group of the same name.
        let Some(share) = self.shared.index.share(share.name(), share.filter()) else {
            return self.on_nobody(publication.origin.filter(|_| publication.qos != QoS::AtMostOnce));
        };
        let mut elsewhere = Elsewhere::new();
        self.hand_to_member(publication, &share, passed_over, &mut elsewhere);
        if !elsewhere.is_empty() {
            self.route_to_nodes(publication, std::iter::empty(), &elsewhere, given_back);
        }
        self.lanes.take_waiter();
    }

    /// Picks a member and hands it the message; if it is one of another node, says so in `elsewhere`. `false`: there is none.
    fn hand_to_member(
        &mut self,
        publication: &mut Publication<'_>,
        share: &Arc<ShareGroup>,
        passed_over: PassedOver,
        elsewhere: &mut Elsewhere,
    ) -> bool {
        let strategy: PickStrategy = self.shared.settings.shared.strategy.into();
        // By the name, so that a publisher that reconnects keeps its member.
        let publisher = strategy.publisher_hash(publication.publisher_id.map_or("", |name| name));
        let topic = strategy.topic_hash(publication.topic, publication.topic_hash);
        let online_only = publication.qos == QoS::AtMostOnce;
        let picked = match publication.origin {
            // The index knows the dead until they are lost.
            None => {
                let is_dead = |node| self.lanes.nodes.is_dead(node);
                share.pick_living(strategy, publisher, topic, passed_over, online_only, &is_dead)
            }
            Some(_) => share.pick_here(strategy, publisher, topic, passed_over, online_only),
        };
        match picked {
            Some(ShareTarget::Connection { connection, .. }) => {
                let member = ConnectionKey::from_raw(connection);
                if member.arbiter() == self.id {
                    self.deliver_to_member(publication, member, share);
                } else {
                    self.hand_to_arbiter_of(member, publication, share);
                }
                true
            }
            Some(ShareTarget::Session { group }) => {
                let name = share.subscription_name().to_owned();
                self.lanes.publish(group, publication, Some(name));
                // Whoever hands a message on for somebody else does not wait, and so would not see to it.
                self.schedule_flush();
                true
            }
            Some(ShareTarget::Node { node }) => {
                if !online_only && let Some(full) = self.settling.full(node, share) {
                    // As a member here would have it dropped whose queue is full.
                    self.counters.messages_dropped.inc(full.into());
                    return true;
                }
                elsewhere.push((node, Arc::clone(share)));
                true
            }
            None => {
                self.on_nobody(publication.origin.filter(|_| !online_only));
                false
            }
        }
    }

    /// A message for a member whose connection is another arbiter's.
    pub(super) fn hand_to_arbiter_of(
        &mut self,
        member: ConnectionKey,
        publication: &mut Publication<'_>,
        share: &Arc<ShareGroup>,
    ) {
        let by_publisher = PickStrategy::from(self.shared.settings.shared.strategy) == PickStrategy::HashClient;
        let publisher = publication.publisher_id.filter(|_| by_publisher).cloned();
        let addressee = Addressee::Member(member, Arc::clone(share), publisher);
        self.batches[usize::from(member.arbiter())].push(publication, addressee);
        self.schedule_flush();
    }

    /// A message found no member: whoever answers for it picks again, or it is gone.
    pub(super) fn on_nobody(&mut self, origin: Option<ShareOrigin>) {
        match origin {
            Some(origin) => self.answer_origin(origin, ShareOutcome::GivenBack),
            None => self.counters.messages_dropped.inc(DropReason::NoSharedMember),
        }
    }

    /// Hands a message to other nodes: to those that want it directly, and to those where members were picked, each once.
    fn route_to_nodes(
        &mut self,
        publication: &mut Publication<'_>,
        direct: impl Iterator<Item = NodeNumber>,
        members: &Elsewhere,
        given_back: u8,
    ) -> bool {
        if members.is_empty() {
            let mut any = false;
            for node in direct {
                any = true;
                self.hand_to_node(publication, node, true, SmallVec::new(), given_back);
            }
            if any {
                self.schedule_flush();
            }
            return any;
        }
        let mut nodes: SmallVec<[(NodeNumber, bool); 4]> = direct.map(|node| (node, true)).collect();
        for &(node, _) in members {
            if nodes.iter().all(|&(known, _)| known != node) {
                nodes.push((node, false));
            }
        }
        for &(node, direct) in &nodes {
            let of_node = members.iter().filter(|(of, _)| *of == node).map(|(_, share)| Arc::clone(share));
            self.hand_to_node(publication, node, direct, of_node.collect(), given_back);
        }
        self.schedule_flush();
        true
    }

    fn hand_to_node(
        &mut self,
        publication: &mut Publication<'_>,
        node: NodeNumber,
        direct: bool,
        shares: Shares,
        given_back: u8,
    ) {
        if shares.is_empty() {
            return self.hand_item_to_node(publication, node, direct, shares, given_back);
        }
        // There may be as many shared subscriptions as there are subscribers, and together their names are longer than a frame.
        let bytes_max = self.shared.piece_bytes();
        let mut shares = shares.into_iter().peekable();
        let mut direct = direct;
        while let Some(first) = shares.next() {
            let mut bytes = first.subscription_name().len();
            let mut item = Shares::from_iter([first]);
            while let Some(share) = shares.next_if(|share| {
                bytes += share.subscription_name().len();
                bytes <= bytes_max && item.len() < SHARES_AN_ITEM_MAX
            }) {
                item.push(share);
            }
            self.hand_item_to_node(publication, node, direct, item, given_back);
            direct = false;
        }
    }

    #[inline]
    fn hand_item_to_node(
        &mut self,
        publication: &mut Publication<'_>,
        node: NodeNumber,
        direct: bool,
        shares: Shares,
        given_back: u8,
    ) {
        match self.lanes.publish_to_node(node, publication, direct, &shares) {
            Ok(number) if publication.qos != QoS::AtMostOnce => {
                self.keep_for_members(publication, (node, number), shares, given_back);
            }
            Ok(_) => {}
            Err(reason) => self.counters.messages_dropped.inc(reason),
        }
    }

    fn keep_for_members(
        &mut self,
        publication: &mut Publication<'_>,
        (node, number): (NodeNumber, u64),
        shares: Shares,
        given_back: u8,
    ) {
        for (share, at) in shares.into_iter().zip(0..=u16::MAX) {
            share.began_at_node(node);
            let message = publication.share_message();
            self.settling.keep(node, number, at, Kept { message, share, given_back });
            self.counters.shared_elsewhere.inc();
        }
    }

    fn route_delayed(&mut self, publication: &mut Publication<'_>, delay: (u64, &str)) -> Routed {
        let (seconds, topic) = delay;
        if publication.qos == QoS::AtMostOnce && self.shared.submitter.is_full() {
            // Only the reserve of the disk is left, and nobody would hear that it is refused.
            self.counters.messages_dropped.inc(DropReason::Delayed);
            return Routed::Done { matched: true };
        }
        if publication.retain {
            self.shared.retained_possible.store(true, Ordering::Relaxed);
        }
        let group = self.lanes.group_of(topic);
        let waiter = self.lanes.delay(group, publication, topic, seconds.saturating_mul(1000), self.now_ms);
        self.schedule_flush();
        Routed::Waiting(waiter)
    }

    /// Counts a PUBLISH where publishers have rates. `false`: this one ended its connection.
    pub(super) fn keeps_pace(&mut self, key: ConnectionKey, bytes: usize) -> bool {
        let now_ms = self.now_ms;
        let Some(client) = self.client(key) else {
            return false;
        };
        match client.pace.count(&client.listener.rates, now_ms, bytes as u64) {
            pace::Verdict::Within => true,
            pace::Verdict::Wait => {
                client.paused = true;
                if !std::mem::replace(&mut client.paced, true) {
                    self.paced.push(key);
                    self.counters.publishers_slowed.inc();
                    self.paced_waker.take().into_iter().for_each(Waker::wake);
                }
                true
            }
            pace::Verdict::Exceeded => {
                self.end(key, EndCause::TooFast, Some(ReasonCode::MessageRateTooHigh));
                false
            }
        }
    }

    /// Ready while connections are not read because of a rate.
    pub fn poll_paced(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.paced.is_empty() {
            self.paced_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Reads those again whose buckets have something in them. Every [`RESUME_INTERVAL`](pace::RESUME_INTERVAL), as long as
    /// there are some.
    pub fn resume_paced(&mut self) {
        self.read_clock();
        let now_ms = self.now_ms;
        let overloaded = self.is_overloaded();
        for key in std::mem::take(&mut self.paced) {
            let Some(client) = self.client(key) else { continue };
            if client.pace.must_wait(&client.listener.rates, now_ms) {
                self.paced.push(key);
                continue;
            }
            client.paced = false;
            if overloaded {
                self.hold_up(key);
            }
            if !self.is_full(key) {
                self.resume_reading(key);
            }
        }
    }

    pub(super) fn is_overloaded(&self) -> bool {
        self.shared.is_overloaded() || self.lanes.is_paused()
    }

    /// Stops reading a connection until [`Self::resume_reading`].
    pub(super) fn pause(&mut self, key: ConnectionKey) {
        if let Some(client) = self.client(key)
            && !client.paused
        {
            client.paused = true;
        }
    }

    /// Reads a connection again, from what was left over on.
    pub(super) fn resume_reading(&mut self, key: ConnectionKey) {
        if let Some(client) = self.client(key)
            && (client.paused || client.unprocessed)
            && !client.paced
        {
            client.paused = false;
            super::arbiter::wake(client);
        }
    }

    /// What the connection asks for next waits until others can keep up again.
    fn hold_up(&mut self, key: ConnectionKey) {
        if let Some(client) = self.client(key)
            && !std::mem::replace(&mut client.held_up, true)
        {
            self.held_up.push(key);
        }
    }

    /// Others cannot keep up with what the connection has just asked for. `next` is the first byte of what it says behind that,
    /// if that has come. What has come so far counts: so each goes on by a little, however often others are slow.
    pub(super) fn hold_up_if_overloaded(&mut self, key: ConnectionKey, next: Option<&u8>) {
        let blocked = self.lanes.take_touched_blocked();
        if blocked.is_some() || self.is_overloaded() {
            self.shared.publishers_paused.store(true, Ordering::Release);
            self.hold_up(key);
            if let Some(client) = self.client(key) {
                client.behind_blocked = client.behind_blocked.or(blocked);
            }
            if let Some(&next) = next {
                self.waits_for_others(key, next);
            }
        }
    }

    /// Whether a connection that is held up must wait with the packet that begins with `first_byte`. What asks for nothing is
    /// read: acknowledgements are what makes queues shorter, and a client must be able to go, or to say that it is there.
    pub(super) fn waits_for_others(&mut self, key: ConnectionKey, first_byte: u8) -> bool {
        let Some(packet_type) = PacketType::of(first_byte).filter(|&packet_type| asks_something(packet_type)) else {
            return false;
        };
        let Some(client) = self.client(key) else {
            return false;
        };
        let waits = if is_acknowledgement(packet_type) {
            // Of a persistent session it goes to the group by a lane, which is to be bounded whatever clients acknowledge.
            let session = client.session.as_ref().and_then(|session| session.persistent);
            session.is_some_and(|session| self.lanes.is_full(session.group) || self.shared.submitter.is_overloaded())
        } else {
            client.behind_blocked.is_some() || (self.is_overloaded() && !self.may_go_on_by_one(key))
        };
        if waits && let Some(client) = self.client(key) {
            (client.paused, client.unprocessed) = (true, true);
        }
        waits
    }

    /// Whether only memory is short, which may be so for what this client has not acknowledged, and its acknowledgement stand
    /// behind the packet at hand. It goes on by one such packet a second: if that takes more memory than it frees, level 3 decides.
    fn may_go_on_by_one(&mut self, key: ConnectionKey) -> bool {
        let now = self.now_seconds();
        if !self.is_only_memory_short() {
            return false;
        }
        let client = self.client(key).filter(|client| client.has_unacknowledged());
        client.is_some_and(|client| std::mem::replace(&mut client.went_on_second, now) != now)
    }

    fn is_only_memory_short(&self) -> bool {
        self.shared.memory_level() >= MEMORY_LEVEL_PAUSES
            && !self.shared.is_inbox_overloaded()
            && !self.shared.submitter.is_overloaded()
            && !self.lanes.is_paused()
    }

    /// Once a second: see [`Self::may_go_on_by_one`].
    pub(super) fn look_behind_publishes(&mut self) {
        if self.held_up.is_empty() || !self.is_only_memory_short() {
            return;
        }
        for key in self.held_up.clone() {
            if self.client(key).is_some_and(|client| client.has_unacknowledged()) && !self.is_full(key) {
                self.resume_reading(key);
            }
        }
    }

    /// Those who were waited for caught up.
    pub(super) fn resume_publishers(&mut self) {
        if self.shared.memory_level() < MEMORY_LEVEL_PAUSES {
            self.go_on_amid_packets();
        }
        if self.held_up.is_empty() || self.is_overloaded() {
            return;
        }
        for key in std::mem::take(&mut self.held_up) {
            let behind = self.client(key).and_then(|client| client.behind_blocked);
            if behind.is_some_and(|lane| self.lanes.is_blocked(lane)) {
                self.held_up.push(key);
                continue;
            }
            if let Some(client) = self.client(key) {
                (client.held_up, client.behind_blocked) = (false, None);
            }
            if !self.is_full(key) {
                self.resume_reading(key);
            }
        }
        // Others may wait for no more than this.
        self.shared.wake_paused_publishers();
    }
}

/// Whether a packet of this type makes work for others than the connection's own arbiter, or takes memory.
pub(super) fn asks_something(packet_type: PacketType) -> bool {
    matches!(packet_type, PacketType::Publish | PacketType::Subscribe | PacketType::Unsubscribe)
        || is_acknowledgement(packet_type)
}

fn is_acknowledgement(packet_type: PacketType) -> bool {
    matches!(packet_type, PacketType::PubAck | PacketType::PubRec | PacketType::PubRel | PacketType::PubComp)
}

fn has_something_to_forward(properties: &PublishProperties) -> bool {
    properties.payload_format_indicator.is_some()
        || properties.content_type.is_some()
        || properties.response_topic.is_some()
        || properties.correlation_data.is_some()
        || !properties.user_properties.is_empty()
        // It lives a little longer than it may say.
        || properties.message_expiry_interval == Some(0)
}

/// A group refuses nothing but one more message that waits, for its time or for those who are to have it.
fn of_group(reason: ReasonCode) -> Verdict {
    let text = reason.is_error().then_some("as many messages wait here for their time, or for other nodes, as may");
    Verdict { reason, text }
}
