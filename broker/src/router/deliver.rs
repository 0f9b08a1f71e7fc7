//! From a matched message to bytes in a connection's out-buffer.
//!
//! A packet is encoded once for each (version, QoS, RETAIN) and copied; only the Packet Identifier differs, at a
//! fixed offset. Topic Aliases, Subscription Identifiers and expiry intervals make a packet its own.

use std::num::NonZeroU16;
use std::sync::Arc;

use kentongan_proto::mqtt::codec::{self, AckKind, PublishHead};
use kentongan_proto::mqtt::{Delivery, PacketId, ProtocolVersion, QoS, ReasonCode};

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::{Client, Held};
use super::cluster::Sent;
use super::publish::Publication;
use super::share_settling::{ShareKeeper, ShareOrigin, ShareOutcome, Taken};
use crate::auth::Action;
use crate::connection::{BufferPool, SHARED_PAYLOAD_BYTES_MIN};
use crate::drops::{self, Bound};
use crate::message::{Message, identifiers_weight_bytes};
use crate::metrics::{ArbiterCounters, DropReason};
use crate::replicated::DeliverPersistent;
use crate::replicated::state::CLOCK_LAG_MS_MAX;
use crate::session::alias::AliasUse;
use crate::session::outbound::{Full, Offer, Outbound};
use crate::subscription::{LocalMatch, PassedOver, ShareGroup};

/// Placeholder in templates of QoS 1 and 2, patched for each connection.
const ANY_ID: PacketId = NonZeroU16::MIN;

#[derive(Debug, Default)]
struct Template {
    /// Of which publication; 0 is none.
    number: u64,
    bytes: Vec<u8>,
    id_offset: usize,
}

/// The encodings of the publication at hand.
#[derive(Debug, Default)]
pub struct Templates {
    number: u64,
    slots: [Template; 12],
}

impl Templates {
    /// A new publication: what was encoded is of no more use.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.number += 1;
    }

    #[inline]
    fn get(&mut self, v5: bool, qos: QoS, retain: bool, publication: &Publication<'_>, now_ms: u64) -> &Template {
        let slot = &mut self.slots[usize::from(v5) * 6 + qos as usize * 2 + usize::from(retain)];
        if slot.number != self.number {
            slot.number = self.number;
            slot.bytes.clear();
            let version = if v5 { ProtocolVersion::V5 } else { ProtocolVersion::V3_1_1 };
            let head = head(publication, delivery(qos, ANY_ID), retain, false, now_ms);
            slot.id_offset = codec::encode_publish_head(&head, version, &mut slot.bytes).unwrap_or(0);
            if publication.payload.len() < SHARED_PAYLOAD_BYTES_MIN {
                slot.bytes.extend_from_slice(publication.payload.as_slice());
            }
        }
        slot
    }
}

fn delivery(qos: QoS, id: PacketId) -> Delivery {
    match qos {
        QoS::AtMostOnce => Delivery::AtMostOnce,
        QoS::AtLeastOnce => Delivery::AtLeastOnce(id),
        QoS::ExactlyOnce => Delivery::ExactlyOnce(id),
    }
}

fn head<'a>(
    publication: &'a Publication<'_>,
    delivery: Delivery,
    retain: bool,
    dup: bool,
    now_ms: u64,
) -> PublishHead<'a> {
    PublishHead {
        dup,
        delivery,
        retain,
        topic: publication.topic,
        topic_alias: None,
        message_expiry_interval: publication.expires_at_ms.map(|at| {
            let received = publication.properties.and_then(|properties| properties.message_expiry_interval);
            seconds_left(at.saturating_sub(now_ms)).min(received.unwrap_or(u32::MAX))
        }),
        properties: publication.properties,
        subscription_identifiers: &[],
        payload_len: publication.payload.len(),
    }
}

/// What is left of a Message Expiry Interval [MQTT-3.3.2-6]. To the nearest second, since nodes' clocks of milliseconds
/// differ and it must not say more than it came with; and a message of which anything is left never says 0. Nothing is left of one that
/// goes just when it ends; what came with 0 says so where that is known, since it may not say more.
fn seconds_left(left_ms: u64) -> u32 {
    match left_ms {
        0 => 0,
        left_ms => (left_ms.saturating_add(500) / 1000).clamp(1, u64::from(u32::MAX)) as u32,
    }
}

/// How a message goes to one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    pub qos: QoS,
    pub retain: bool,
    pub identifiers: &'a [u32],
    pub share: Option<&'a Arc<ShareGroup>>,
}

/// Whether somebody may miss what is dropped, beside those who ask for no more than QoS 0: a message of a shared subscription
/// reaches nobody else.
fn is_missed(publication: &Publication<'_>, terms: &Terms<'_>) -> bool {
    let qos = if terms.share.is_some() { publication.qos } else { terms.qos };
    qos != QoS::AtMostOnce || terms.retain
}

impl ArbiterState {
    /// A publication to one connection that its filters matched.
    #[inline]
    pub(super) fn deliver_matched(&mut self, publication: &mut Publication<'_>, target: &LocalMatch) {
        let key = ConnectionKey::from_raw(target.connection);
        // No Local [MQTT-3.8.3-3]: what the publisher itself gets leaves those subscriptions out.
        let merged = if self.is_publisher(key, publication) {
            match target.own() {
                Some(merged) => merged,
                None => return,
            }
        } else {
            target.merged()
        };
        let qos = publication.qos.min(merged.qos);
        let terms = Terms {
            qos,
            retain: publication.retain && merged.retain_as_published,
            identifiers: &merged.subscription_identifiers,
            share: None,
        };
        // A group delivers to persistent sessions what has a QoS; here goes only what never enters a log.
        if target.persistent
            && publication.qos != QoS::AtMostOnce
            && !self.goes_directly(key, publication, terms, qos != QoS::AtMostOnce)
        {
            return;
        }
        if target.held && self.hold_back(key, publication, terms) {
            return;
        }
        self.deliver(key, publication, terms);
    }

    /// Whether it expired on its way here.
    pub(super) fn is_over(&self, publication: &Publication<'_>) -> bool {
        publication.expires_at_ms.is_some_and(|at| at < self.now_ms)
    }

    /// Whether a connection is that of the publisher. What a group has routed, or another node, comes by no connection: then
    /// the Client Identifier tells.
    #[inline]
    pub(super) fn is_publisher(&mut self, key: ConnectionKey, publication: &Publication<'_>) -> bool {
        match (publication.publisher, publication.publisher_id) {
            (Some(publisher), _) => publisher == key,
            (None, None) => false,
            (None, Some(publisher)) => self.client(key).is_some_and(|client| *client.client_id == **publisher),
        }
    }

    /// A publication to the member of a shared subscription that was picked for it; or to the next one that may read it.
    pub(super) fn deliver_to_member(
        &mut self,
        publication: &mut Publication<'_>,
        member: ConnectionKey,
        share: &Arc<ShareGroup>,
    ) {
        let mut member = member;
        // If all had left when this one came back, it and who came with it are members of another group of the same name.
        let mut current: Option<Arc<ShareGroup>> = None;
        while let Err(reason) = self.offer_to_member(publication, member, current.as_ref().unwrap_or(share)) {
            publication.passed_on += 1;
            let online_only = publication.qos == QoS::AtMostOnce;
            current = current.or_else(|| self.shared.index.share(share.name(), share.filter()));
            let asked = current.as_ref().unwrap_or(share);
            let next = asked.next_here(member.raw(), publication.passed_on, online_only);
            match next.map(ConnectionKey::from_raw) {
                Some(next) if next.arbiter() == self.id => member = next,
                Some(next) => return self.hand_to_arbiter_of(next, publication, asked),
                None => {
                    self.counters.messages_dropped.inc(reason);
                    if let Some(origin) = publication.origin.filter(|_| publication.qos != QoS::AtMostOnce) {
                        self.answer_origin(origin, ShareOutcome::Settled);
                    }
                    return;
                }
            }
        }
    }

    /// `Err`: it is not for this one, by its rights or its mount point.
    fn offer_to_member(
        &mut self,
        publication: &mut Publication<'_>,
        member: ConnectionKey,
        share: &Arc<ShareGroup>,
    ) -> Result<(), DropReason> {
        if self.is_over(publication) {
            self.counters.messages_dropped.inc(DropReason::Expired);
            if let Some(origin) = publication.origin.filter(|_| publication.qos != QoS::AtMostOnce) {
                self.answer_origin(origin, ShareOutcome::Settled);
            }
            return Ok(());
        }
        let subscription = self
            .client(member)
            .filter(|client| client.is_connected())
            .and_then(|client| client.session.as_ref())
            .and_then(|session| {
                let own = session.subscriptions.get(share.subscription_name()).copied()?;
                let by_group = session.persistent.is_some() && publication.qos.min(own.options.qos) != QoS::AtMostOnce;
                (!by_group).then_some(own)
            });
        let Some(own) = subscription else {
            // The member left while the message was on its way, or its group took over: another one gets it.
            self.route_to_share(publication, share, PassedOver::Connection(member.raw()));
            return Ok(());
        };
        let identifier = own.identifier.map(std::num::NonZeroU32::get);
        let qos = publication.qos.min(own.options.qos);
        if let Some(reason) = self.why_kept_from(member, publication.topic, qos) {
            return Err(reason);
        }
        // Only at QoS 1 a message may be sent twice. One of QoS 0 nobody waits for.
        let may_repeat = qos == QoS::AtLeastOnce || publication.qos == QoS::AtMostOnce;
        if let Some(origin) = publication.origin.filter(|origin| !may_repeat && self.lanes.is_there(origin.keeper)) {
            self.take_first(publication, origin, member, share);
            return Ok(());
        }
        let terms = Terms {
            qos,
            retain: publication.retain && own.options.retain_as_published,
            identifiers: identifier.as_slice(),
            share: Some(share),
        };
        self.deliver(member, publication, terms);
        if terms.qos == QoS::AtMostOnce
            && publication.qos != QoS::AtMostOnce
            && let Some(origin) = publication.origin
        {
            // Nobody will acknowledge it.
            self.answer_origin(origin, ShareOutcome::Settled);
        }
        Ok(())
    }

    /// Whoever keeps a message says first that it let go of it; then the member gets it.
    fn take_first(
        &mut self,
        publication: &mut Publication<'_>,
        origin: ShareOrigin,
        member: ConnectionKey,
        share: &Arc<ShareGroup>,
    ) {
        if let Some(full) = self.taking.full() {
            self.counters.messages_dropped.inc(full.into());
            drops::note(&self.clients[member.index()].client_id, full, 1);
            return self.answer_origin(origin, ShareOutcome::Settled);
        }
        let taken = Taken { message: publication.share_message(), share: Arc::clone(share), member };
        match origin.keeper {
            ShareKeeper::Outbox { group } => {
                let number = self.lanes.settle_outbox(group, origin.number.get(), false);
                self.taking.take_from_outbox(group, number, taken);
            }
            ShareKeeper::Arbiter { node, .. } => {
                self.lanes.answer_keeper(origin, ShareOutcome::Settled);
                self.taking.take_from_node(node, taken);
            }
        }
        self.schedule_flush();
    }

    /// What became of a message that another node, or an outbox, has for a member here.
    pub(super) fn answer_origin(&mut self, origin: ShareOrigin, outcome: ShareOutcome) {
        self.lanes.answer_keeper(origin, outcome);
        self.schedule_flush();
    }

    /// Messages wait no more for a connection: their shared subscriptions count them there no longer, and nobody else is to
    /// get them.
    fn end_held(&mut self, key: ConnectionKey, ended: impl IntoIterator<Item = Held>) {
        for held in ended {
            if let Some(share) = &held.share {
                share.ended(key.raw());
            }
            if let Some(origin) = held.origin {
                self.answer_origin(*origin, ShareOutcome::Settled);
            }
        }
    }

    /// A publication to a connection, by its terms.
    #[inline]
    pub(super) fn deliver(&mut self, key: ConnectionKey, publication: &mut Publication<'_>, terms: Terms<'_>) {
        let Some(client) = self.client(key) else {
            return;
        };
        if !client.is_connected() {
            return;
        }
        if client.guarded && self.is_kept_from(key, publication.topic, terms.qos) {
            return;
        }
        if terms.qos == QoS::AtMostOnce {
            let bound = self.shared.settings.session.out_buffer_bytes_max as usize;
            let client = &mut self.clients[key.index()];
            if client.out.len() > bound {
                self.counters.messages_dropped.inc(DropReason::SlowConsumer);
                if terms.share.is_some() && publication.qos != QoS::AtMostOnce {
                    drops::note(&client.client_id, Bound::OutBuffer, 1);
                }
                return;
            }
            self.write_publication(key, publication, terms, None);
            return;
        }
        self.deliver_acknowledged(key, publication, terms);
    }

    /// Whether a message is not for the client. Then it is counted as dropped.
    fn is_kept_from(&mut self, key: ConnectionKey, topic: &str, qos: QoS) -> bool {
        let reason = self.why_kept_from(key, topic, qos);
        reason.into_iter().for_each(|reason| self.counters.messages_dropped.inc(reason));
        reason.is_some()
    }

    /// Why a message is not for the client, by its mount point or by what the rules are now, if it is not.
    fn why_kept_from(&self, key: ConnectionKey, topic: &str, qos: QoS) -> Option<DropReason> {
        let client = self.clients.get(key.index()).filter(|client| client.guarded)?;
        // A `#` matches more than its mount holds: its parent, and what begins with `$` below it.
        if client.mount.as_ref().is_some_and(|mount| mount.own_topic(topic).is_none()) {
            return Some(DropReason::OutsideMount);
        }
        let action = Action::Read { topic, qos };
        let may = client.actor().is_none_or(|actor| self.shared.authority.authorize(&actor, action));
        (!may).then_some(DropReason::NotAuthorized)
    }

    /// QoS 1 and 2 to a transient session: into the window, or the queue before it.
    fn deliver_acknowledged(&mut self, key: ConnectionKey, publication: &mut Publication<'_>, terms: Terms<'_>) {
        let Some(session) = self.clients[key.index()].session.as_mut() else {
            return;
        };
        let share = terms.share.cloned();
        let origin = publication.origin;
        if let Some(share) = &share {
            share.began(key.raw());
        }
        if session.outbound.can_send() {
            // Once written, nobody needs the message again: a transient session dies with its connection. Only a
            // shared subscription may hand it to another member.
            let message = share.is_some().then(|| publication.share_message());
            let held = Held { message, retain: terms.retain, identifiers: None, share, origin: origin.map(Box::new) };
            if let Some(id) =
                counted(&self.counters, &mut session.outbound, |outbound| outbound.send_now(held, terms.qos))
            {
                if !self.write_publication(key, publication, terms, Some(id)) {
                    self.forget(key, terms.qos, id);
                }
                return;
            }
            return;
        }
        let message = publication.share_message();
        let weight = message.weight_bytes() + identifiers_weight_bytes(terms.identifiers);
        let identifiers = (!terms.identifiers.is_empty()).then(|| Box::from(terms.identifiers));
        let boxed = origin.map(Box::new);
        let held = Held { message: Some(message), retain: terms.retain, identifiers, share, origin: boxed };
        let (offer, expired) = counted(&self.counters, &mut session.outbound, |outbound| {
            let expired = outbound.take_expired(weight, |held| has_expired(held, self.now_ms));
            (outbound.offer(held, weight, terms.qos), expired)
        });
        if !expired.is_empty() {
            self.counters.messages_dropped.add(DropReason::Expired, expired.len() as u64);
            self.end_held(key, expired);
        }
        match offer {
            Offer::Accepted => {}
            Offer::DroppedNew(full) => {
                self.counters.messages_dropped.inc(full.into());
                drops::note(&self.clients[key.index()].client_id, full, 1);
                if let Some(share) = terms.share {
                    share.ended(key.raw());
                }
                if let Some(origin) = origin {
                    self.answer_origin(origin, ShareOutcome::Settled);
                }
            }
            Offer::DroppedOldest(full, oldest) => {
                self.counters.messages_dropped.add(full.into(), oldest.len() as u64);
                drops::note(&self.clients[key.index()].client_id, full, oldest.len());
                self.end_held(key, oldest);
            }
        }
    }

    /// A packet that the client could not take counts as delivered [MQTT-3.1.2-25].
    fn forget(&mut self, key: ConnectionKey, qos: QoS, id: PacketId) {
        if let Some(session) = self.clients[key.index()].session.as_mut() {
            let outcome = counted(&self.counters, &mut session.outbound, |outbound| match qos {
                QoS::ExactlyOnce => outbound.on_pubrec(id, true),
                _ => outbound.on_puback(id),
            });
            self.end_held(key, outcome.ok().flatten());
        }
    }

    /// Writes one PUBLISH. `false`: it is larger than the client takes, and nothing was written.
    #[inline]
    fn write_publication(
        &mut self,
        key: ConnectionKey,
        publication: &mut Publication<'_>,
        terms: Terms<'_>,
        id: Option<PacketId>,
    ) -> bool {
        let now_ms = self.now_ms;
        let client = &mut self.clients[key.index()];
        let v5 = client.version.is_v5();
        if (v5 && !(terms.identifiers.is_empty() && aliases_off(client))) || client.mount.is_some() {
            return self.write_own_encoding(key, publication, terms, id, false);
        }
        let template = self.templates.get(v5, terms.qos, terms.retain, publication, now_ms);
        let large = publication.payload.len() >= SHARED_PAYLOAD_BYTES_MIN;
        let total = template.bytes.len() + if large { publication.payload.len() } else { 0 };
        if total > client.packet_bytes_max_out as usize {
            self.counters.messages_dropped.inc(DropReason::PacketTooLarge);
            if is_missed(publication, &terms) {
                drops::note(&client.client_id, Bound::PacketSize, 1);
            }
            return false;
        }
        client.out.append(&mut self.pool, |out| {
            let start = out.len();
            out.extend_from_slice(&template.bytes);
            if let Some(id) = id {
                let at = start + template.id_offset;
                out[at..at + 2].copy_from_slice(&id.get().to_be_bytes());
            }
        });
        if large {
            client.out.append_shared(publication.payload.share());
        }
        if id.is_some() {
            client.out.need_lease();
        }
        self.count_sent(&terms, publication.payload.len());
        if self.shared.watches.is_tracing() {
            self.trace_sent(key, publication, terms.qos as u8, terms.retain);
        }
        self.mark_dirty(key);
        true
    }

    #[inline]
    fn count_sent(&self, terms: &Terms<'_>, payload_bytes: usize) {
        self.counters.messages_sent.inc(terms.qos);
        self.counters.payload_bytes_sent.add(payload_bytes as u64);
    }

    /// A PUBLISH that no other connection gets in the same bytes; that of a mounted client among them.
    fn write_own_encoding(
        &mut self,
        key: ConnectionKey,
        publication: &mut Publication<'_>,
        terms: Terms<'_>,
        id: Option<PacketId>,
        dup: bool,
    ) -> bool {
        let client = &mut self.clients[key.index()];
        let delivery = delivery(terms.qos, id.unwrap_or(ANY_ID));
        let mut head = head(publication, delivery, terms.retain, dup, self.now_ms);
        let mount = client.mount.clone();
        let own_properties;
        if let Some(mount) = &mount {
            // What is not below it was kept from the client before.
            let Some(own) = mount.own_topic(publication.topic) else {
                return false;
            };
            head.topic = own;
            own_properties = publication.properties.and_then(|whole| mount.own_properties(whole));
            head.properties = own_properties.as_ref().or(head.properties);
        }
        if client.version.is_v5() {
            head.subscription_identifiers = terms.identifiers;
        }
        let topic = head.topic;
        let mut alias = AliasUse::None;
        // Not at QoS 2: widely used clients look at the Topic Name again when PUBREL comes, and have forgotten the alias.
        if let Some(session) = &client.session
            && !session.aliases_out.is_off()
            && terms.qos != QoS::ExactlyOnce
        {
            alias = session.aliases_out.look(topic);
            match alias {
                AliasUse::None => {}
                AliasUse::Set(alias) => head.topic_alias = Some(alias),
                AliasUse::Known(alias) => {
                    head.topic = "";
                    head.topic_alias = Some(alias);
                }
            }
        }
        let bytes_max = client.packet_bytes_max_out as usize;
        let mut fits = codec::publish_len(&head, client.version) <= bytes_max;
        if !fits && alias != AliasUse::None {
            // An alias takes three bytes, and what is too large with it may fit by its Topic Name alone [MQTT-3.1.2-24].
            alias = AliasUse::None;
            (head.topic, head.topic_alias) = (topic, None);
            fits = codec::publish_len(&head, client.version) <= bytes_max;
        }
        if !fits {
            self.counters.messages_dropped.inc(DropReason::PacketTooLarge);
            if is_missed(publication, &terms) {
                drops::note(&client.client_id, Bound::PacketSize, 1);
            }
            return false;
        }
        if let (AliasUse::Set(alias), Some(session)) = (alias, client.session.as_mut()) {
            session.aliases_out.set(topic, alias);
        }
        write_head(client, &mut self.pool, &head);
        if publication.payload.len() >= SHARED_PAYLOAD_BYTES_MIN {
            client.out.append_shared(publication.payload.share());
        } else {
            client.out.append(&mut self.pool, |out| out.extend_from_slice(publication.payload.as_slice()));
        }
        if id.is_some() {
            client.out.need_lease();
        }
        self.count_sent(&terms, publication.payload.len());
        if self.shared.watches.is_tracing() {
            self.trace_sent(key, publication, terms.qos as u8, terms.retain);
        }
        if dup {
            self.counters.messages_resent.inc();
        }
        self.mark_dirty(key);
        true
    }

    /// PUBACK, PUBREC or PUBCOMP for something we sent.
    pub(super) fn on_delivery_acknowledged(
        &mut self,
        key: ConnectionKey,
        kind: AckKind,
        id: PacketId,
        reason: ReasonCode,
    ) {
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        if let Some(persistent) = session.persistent {
            if let Some(served) = &mut session.served {
                served.on_acknowledged(kind, id, reason.is_error());
            }
            self.lanes.acknowledge(persistent, key, kind, id, reason);
            self.on_acknowledged_to_group(key);
            return self.schedule_flush();
        }
        let Some(session) = self.clients[key.index()].session.as_mut() else {
            return;
        };
        let settled = counted(&self.counters, &mut session.outbound, |outbound| match kind {
            AckKind::PubAck => outbound.on_puback(id),
            AckKind::PubRec => outbound.on_pubrec(id, reason.is_error()),
            AckKind::PubComp | AckKind::PubRel => outbound.on_pubcomp(id).map(|()| None),
        });
        let known = settled.is_ok();
        self.end_held(key, settled.ok().flatten());
        if kind == AckKind::PubRec && !(known && reason.is_error()) {
            // [MQTT-4.3.3-4]; an identifier we do not know is answered too, so that the client can end the exchange.
            let reason = if known { ReasonCode::Success } else { ReasonCode::PacketIdentifierNotFound };
            self.write_ack(key, AckKind::PubRel, id, reason);
        }
        self.send_queued(key);
    }

    /// Moves what waits into the window as far as it has room [MQTT-3.3.4-9].
    pub(super) fn send_queued(&mut self, key: ConnectionKey) {
        let now = self.now_ms;
        loop {
            let Some(session) = self.clients.get_mut(key.index()).and_then(|client| client.session.as_mut()) else {
                return;
            };
            if session.outbound.queue_len() == 0 {
                // Where a queue may hold nothing, retained messages wait for the window itself.
                if session.reads.waits_for_client() {
                    self.continue_reads(key);
                }
                return;
            }
            let mut expired = Vec::new();
            let outbound = &mut session.outbound;
            let next = counted(&self.counters, outbound, |outbound| pop_sendable(outbound, now, &mut expired));
            self.counters.messages_dropped.add(DropReason::Expired, expired.len() as u64);
            self.end_held(key, expired);
            let Some(Sendable { id, qos, retain, identifiers, message }) = next else {
                return;
            };
            let mut publication = self.publication_of(&message);
            let identifiers = identifiers.as_deref().unwrap_or(&[]);
            let terms = Terms { qos, retain, identifiers, share: None };
            self.templates.begin();
            // The rules may be others than when it was queued.
            if self.is_kept_from(key, publication.topic, qos)
                || !self.write_publication(key, &mut publication, terms, Some(id))
            {
                self.forget(key, qos, id);
            }
        }
    }

    /// A message that a group moved into the window of a persistent session.
    pub(super) fn deliver_persistent(&mut self, delivery: &DeliverPersistent) {
        let key = delivery.connection;
        let live = self
            .client(key)
            .and_then(|client| client.session.as_ref())
            .is_some_and(|session| session.persistent.is_some_and(|persistent| persistent.epoch == delivery.epoch));
        if !live {
            return;
        }
        if let Some(served) = self.served(key) {
            served.sent.insert(delivery.packet_id, Sent::Published);
        }
        let mut publication = self.publication_of(&delivery.message);
        publication.expires_at_ms = delivery.expires_at_ms;
        let terms = Terms {
            qos: delivery.qos,
            retain: delivery.retain,
            identifiers: &delivery.subscription_identifiers,
            share: None,
        };
        if self.had_directly(key, delivery)
            || self.expired_on_its_way(delivery)
            || self.is_kept_from(key, publication.topic, terms.qos)
            || !self.write_own_encoding(key, &mut publication, terms, Some(delivery.packet_id), delivery.dup)
        {
            // It was delivered, or counts as if [MQTT-3.1.2-25]: the group is told what the client would have said.
            let persistent = self.client(key).and_then(|client| client.session.as_ref()?.persistent);
            if let Some(persistent) = persistent {
                let (kind, reason) = match delivery.qos {
                    QoS::ExactlyOnce => (AckKind::PubRec, ReasonCode::PacketTooLarge),
                    _ => (AckKind::PubAck, ReasonCode::Success),
                };
                if let Some(served) = self.served(key) {
                    served.on_acknowledged(kind, delivery.packet_id, reason.is_error());
                }
                self.lanes.acknowledge(persistent, key, kind, delivery.packet_id, reason);
                self.schedule_flush();
            }
        }
    }

    /// Whether a message expired before anybody began to send it [MQTT-3.3.2-5]: its group's leader may have had to wait for the client.
    /// Then it is counted as dropped. What the group says that is left may be less than there is, by as much as its clock may lag (P10).
    fn expired_on_its_way(&mut self, delivery: &DeliverPersistent) -> bool {
        let is_over = |at_ms: u64| at_ms.saturating_add(CLOCK_LAG_MS_MAX) <= self.now_ms;
        let expired = !delivery.dup && delivery.expires_at_ms.is_some_and(is_over);
        if expired {
            self.counters.messages_dropped.inc(DropReason::Expired);
        }
        expired
    }

    /// Messages of shared subscriptions that a member leaves unacknowledged go to another one (P11), except QoS 2
    /// already begun [MQTT-4.8.2-5].
    pub(super) fn hand_on_shared(&mut self, mut outbound: Outbound<Held>, left: ConnectionKey) {
        self.end_held(left, outbound.take_begun());
        for held in counted(&self.counters, &mut outbound, Outbound::drain_undelivered) {
            if let (Some(message), Some(share)) = (held.message, held.share) {
                let mut publication = self.publication_of(&message);
                publication.origin = held.origin.map(|origin| *origin);
                self.templates.begin();
                self.route_to_share(&mut publication, &share, PassedOver::Connection(left.raw()));
            }
        }
    }
}

/// What is held for a transient session changes in here only, and so is always counted.
#[inline]
fn counted<R>(
    counters: &ArbiterCounters,
    outbound: &mut Outbound<Held>,
    act: impl FnOnce(&mut Outbound<Held>) -> R,
) -> R {
    let before = outbound.backlog();
    let outcome = act(outbound);
    let change = outbound.backlog() - before;
    counters.queued_messages.add(change.queued_messages);
    counters.queued_bytes.add(change.queued_bytes);
    counters.inflight_messages.add(change.in_flight);
    outcome
}

impl From<Full> for DropReason {
    fn from(full: Full) -> Self {
        match full {
            Full::Messages => Self::QueueMessages,
            Full::Bytes => Self::QueueBytes,
        }
    }
}

/// What goes from the queue of a transient session into its window.
struct Sendable {
    id: PacketId,
    qos: QoS,
    retain: bool,
    identifiers: Option<Box<[u32]>>,
    message: Arc<Message>,
}

fn pop_sendable(outbound: &mut Outbound<Held>, now_ms: u64, expired: &mut Vec<Held>) -> Option<Sendable> {
    let (id, qos, held) = outbound.pop_sendable(|held| has_expired(held, now_ms), |held| expired.push(held))?;
    let message = held.message.clone()?;
    if held.share.is_none() {
        held.message = None;
    }
    // Another member of a shared subscription gets its own.
    Some(Sendable { id, qos, retain: held.retain, identifiers: held.identifiers.take(), message })
}

fn has_expired(held: &Held, now_ms: u64) -> bool {
    held.message.as_ref().and_then(|message| message.expires_at_ms).is_some_and(|at| at <= now_ms)
}

fn aliases_off(client: &Client) -> bool {
    client.session.as_ref().is_none_or(|session| session.aliases_out.is_off())
}

fn write_head(client: &mut Client, pool: &mut BufferPool, head: &PublishHead<'_>) {
    let version = client.version;
    client.out.append(pool, |out| {
        codec::encode_publish_head(head, version, out);
    });
}
