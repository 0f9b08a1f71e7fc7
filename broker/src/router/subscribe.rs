//! SUBSCRIBE and UNSUBSCRIBE.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::atomic::Ordering;

use kentongan_proto::mqtt::codec::{self, PacketType};
use kentongan_proto::mqtt::{
    AckProperties, Packet, PacketId, QoS, ReasonCode, RetainHandling, SubAck, Subscribe, SubscriptionOptions,
    Unsubscribe,
};
use kentongan_proto::topic::ParsedFilter;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::{BehindSuback, ClientSession, OwnSubscription};
use super::cluster::{ASKED_MAX, PendingSubAck};
use super::log_rate::excerpt;
use crate::auth::Action;
use crate::metrics::SubscribeRefusal;
use crate::mount::{Mount, Unreachable};
use crate::replicated::command::SessionCommand;
use crate::replicated::{SubscribeOutcome, SubscribedPersistent, UnsubscribedPersistent};
use crate::session::subscribing::{bridge_options, granted, wants_retained};
use crate::subscription::{InterestKind, LocalSubscription, ShareMember, ShareTarget, Target, name_hash};

/// How long what a client publishes waits for SUBACK: longer than groups take to elect other leaders.
pub(super) const SUBACK_SECONDS_MAX: u32 = 5;

/// The longest ShareName, in bytes. The names of all that a message is for are said together, and stand in a log for each message.
const SHARE_NAME_BYTES_MAX: usize = 256;

/// Filters of one SUBSCRIBE that its session does not have.
#[derive(Debug, Default)]
struct Fresh<'a> {
    filters: BTreeSet<&'a str>,
    /// Of these and of all that the session has or asked its group for.
    bytes: usize,
}

impl Fresh<'_> {
    fn of(session: &ClientSession) -> Self {
        let asked: usize = session.asked.iter().map(|filter| filter.len()).sum();
        Self { bytes: session.filter_bytes + asked, ..Self::default() }
    }
}

impl ArbiterState {
    pub(super) fn on_subscribe(&mut self, key: ConnectionKey, mut subscribe: Subscribe) {
        if self.client(key).and_then(|client| client.session.as_ref()).is_some_and(|session| session.bridge) {
            subscribe.filters.iter_mut().for_each(|(filter, options)| *options = bridge_options(filter, *options));
        }
        let unreachable: Vec<Option<ReasonCode>> =
            subscribe.filters.iter_mut().map(|(filter, _)| self.make_whole(key, filter).err()).collect();
        let mut fresh =
            self.client(key).and_then(|client| client.session.as_deref()).map_or_else(Fresh::default, Fresh::of);
        let refusals: Vec<Option<ReasonCode>> = (subscribe.filters.iter().zip(unreachable))
            .map(|((filter, options), unreachable)| {
                unreachable.or_else(|| self.filter_refusal(key, filter, options.qos, &mut fresh))
            })
            .collect();
        if self.shared.authority.grants_subscriptions()
            && let Some(client) = self.client(key)
        {
            // As it has been since a moment ago: this connection may not have heard of it, and nobody looked at the filters.
            client.guarded |= client.session.as_ref().is_some_and(|session| session.rights.is_some());
        }
        for ((filter, _), refusal) in subscribe.filters.iter().zip(&refusals) {
            if let Some(reason) = *refusal {
                self.on_filter_refused(key, filter, reason);
            }
        }
        let Some(session) = self.client(key).and_then(|client| client.session.as_ref()) else {
            return;
        };
        if let Some(persistent) = session.persistent {
            self.message_number += 1;
            let ticket = self.message_number;
            let admitted = subscribe.filters.iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none());
            let admitted: Vec<_> = admitted.map(|((filter, options), _)| (filter.as_str(), Some(*options))).collect();
            let is_announced = self.begin_changes(key, ticket, &admitted);
            if let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) {
                session.asked.extend(fresh.filters.into_iter().map(Box::from));
            }
            // The group's SUBACK must stand behind all that this connection published before.
            self.flush_lanes();
            let possible = subscribe.filters.iter().any(|(filter, _)| self.retained_may_match(filter));
            let client_id = &self.clients[key.index()].client_id;
            let command = SessionCommand::subscribe(client_id, persistent, &subscribe, &refusals, possible, ticket);
            if is_announced {
                return self.ask_behind_barrier(key, ticket, command);
            }
            return self.ask_group(key, persistent.group, ticket, command);
        }
        let identifier = subscribe.subscription_identifier.and_then(NonZeroU32::new);
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        let mut reads = Vec::new();
        let granted_ones = subscribe.filters.iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none());
        self.forget_replaced(key, granted_ones.map(|((filter, options), _)| (filter.as_str(), *options)));
        for ((filter, options), refusal) in subscribe.filters.iter().zip(refusals) {
            if let Some(reason) = refusal {
                codes.push(reason);
                continue;
            }
            let own = OwnSubscription { options: *options, identifier };
            let wants = wants_retained(filter, options.retain_handling, self.is_new(key, filter))
                && self.retained_may_match(filter);
            self.enter_subscription(key, filter, own, wants);
            self.tell_subscribed(key, filter, *options);
            codes.push(granted(options.qos));
            if wants {
                reads.push((filter.as_str(), own));
            }
        }
        let reads = reads.into_iter().map(|(filter, own)| self.begin_read(key, filter, own, None)).collect();
        let suback = PendingSubAck { packet_id: subscribe.packet_id, codes, reads };
        if self.shared.cluster.is_some() {
            self.on_asked(key);
            self.await_barrier(key, suback);
            return;
        }
        self.answer_subscribe(key, suback);
    }

    /// SUBACK, and then what it promises.
    pub(super) fn answer_subscribe(&mut self, key: ConnectionKey, suback: PendingSubAck) {
        let PendingSubAck { packet_id, codes, reads } = suback;
        self.write_suback(key, packet_id, codes, Packet::SubAck);
        for number in reads {
            self.ask_first_page(key, number);
        }
    }

    fn is_new(&mut self, key: ConnectionKey, filter: &str) -> bool {
        self.client(key)
            .and_then(|client| client.session.as_ref())
            .is_none_or(|session| !session.subscriptions.contains_key(filter))
    }

    fn retained_may_match(&self, filter: &str) -> bool {
        self.shared.retained_possible.load(Ordering::Relaxed) || super::sys::is_sys(filter)
    }

    /// Puts the mount point of the client, if it has one, into a filter that it said.
    fn make_whole(&self, key: ConnectionKey, filter: &mut String) -> Result<(), ReasonCode> {
        if let Some(mount) = self.clients.get(key.index()).and_then(|client| client.mount.as_ref()) {
            *filter = mount.whole_filter(filter).map_err(Unreachable::reason_of_filter)?;
        }
        Ok(())
    }

    /// Why a filter is refused, if it is; the others of the same SUBSCRIBE are not touched by that. `fresh`: those of it that
    /// the session does not have, as far as they were looked at and are not refused.
    fn filter_refusal<'a>(
        &self,
        key: ConnectionKey,
        filter: &'a str,
        qos: QoS,
        fresh: &mut Fresh<'a>,
    ) -> Option<ReasonCode> {
        let Ok(parsed) = ParsedFilter::parse(filter) else {
            return Some(ReasonCode::TopicFilterInvalid);
        };
        if let ParsedFilter::Shared(shared) = &parsed
            && shared.share_name().len() > SHARE_NAME_BYTES_MAX
        {
            return Some(ReasonCode::TopicFilterInvalid);
        }
        let client = self.clients.get(key.index())?;
        let listener = &client.listener;
        let levels_max = usize::from(listener.limits.topic_levels_max) + client.mount.as_ref().map_or(0, Mount::levels);
        // What stands before the filter of a shared subscription is no part of a topic.
        if parsed.filter().levels().count() > levels_max {
            return Some(ReasonCode::TopicFilterInvalid);
        }
        let (maximum, bytes_max) = (listener.subscriptions_max as usize, listener.subscription_bytes_max);
        let session = client.session.as_ref()?;
        let action = Action::Subscribe { filter: parsed.filter(), qos };
        if !self.shared.authority.authorize(&client.actor()?, action) {
            return Some(ReasonCode::NotAuthorized);
        }
        if session.subscriptions.contains_key(filter)
            || session.asked.contains(filter)
            || fresh.filters.contains(filter)
        {
            return None;
        }
        if session.subscriptions.len() + session.asked.len() + fresh.filters.len() >= maximum
            || (fresh.bytes + filter.len()) as u64 > bytes_max
        {
            return Some(ReasonCode::QuotaExceeded);
        }
        fresh.bytes += filter.len();
        fresh.filters.insert(filter);
        None
    }

    /// The rules changed, or the session stood since they were others, or was made by a listener with another mount point: what
    /// it may not subscribe to any more it loses.
    pub(super) fn revoke_subscriptions(&mut self, key: ConnectionKey) {
        let Some(client) = self.client(key).filter(|client| client.guarded) else {
            return;
        };
        let Some(session) = client.session.as_ref() else {
            return;
        };
        let own = session.subscriptions.iter().map(|(filter, own)| (filter.clone(), own.options.qos));
        let mut own: Vec<(Box<str>, QoS)> = own.collect();
        own.sort_unstable();
        for (filter, qos) in own {
            self.revoke_if_refused(key, &filter, qos);
        }
    }

    fn revoke_if_refused(&mut self, key: ConnectionKey, filter: &str, qos: QoS) {
        let (Ok(parsed), Some(client)) = (ParsedFilter::parse(filter), self.clients.get(key.index())) else {
            return;
        };
        let action = Action::Subscribe { filter: parsed.filter(), qos };
        let is_outside = client.mount.as_ref().is_some_and(|mount| !mount.holds(parsed.filter()));
        if is_outside || client.actor().is_some_and(|actor| !self.shared.authority.authorize(&actor, action)) {
            self.revoke(key, filter);
        }
    }

    /// As if the client had sent UNSUBSCRIBE. Here it is gone at once; where its group keeps it, when that has heard.
    fn revoke(&mut self, key: ConnectionKey, filter: &str) {
        self.counters.subscriptions_revoked.inc();
        if self.refusal_lines.admits(self.now_seconds())
            && let Some(client) = self.client(key)
        {
            tracing::info!(client_id = %client.client_id, filter = excerpt(filter), "a subscription was revoked");
        }
        self.message_number += 1;
        let ticket = self.message_number;
        self.begin_changes(key, ticket, &[(filter, None)]);
        if self.remove_subscription(key, filter) {
            self.hand_over_waiting(key);
            self.tell_unsubscribed(key, filter);
        }
        let Some(client) = self.client(key) else {
            return;
        };
        let client_id = std::sync::Arc::clone(&client.client_id);
        let Some(session) = client.session.as_ref() else {
            return;
        };
        let Some(persistent) = session.persistent else {
            return;
        };
        if let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) {
            session.revocations.push(ticket);
        }
        let filters = vec![filter.to_owned()];
        let unsubscribe = Unsubscribe { packet_id: PacketId::MIN, filters, user_properties: Vec::new() };
        self.flush_lanes();
        let command = SessionCommand::unsubscribe(&client_id, persistent, &unsubscribe, ticket);
        self.ask_group(key, persistent.group, ticket, command);
    }

    fn on_filter_refused(&mut self, key: ConnectionKey, filter: &str, reason: ReasonCode) {
        self.counters.subscribes_refused.inc(subscribe_refusal(reason));
        if self.refusal_lines.admits(self.now_seconds())
            && let Some(client) = self.client(key)
        {
            tracing::info!(client_id = %client.client_id, filter = excerpt(filter), ?reason, "SUBSCRIBE refused");
        }
    }

    /// Those that are replaced by ones without retained messages have none to wait for. Before any of the same SUBSCRIBE is entered: what
    /// one of these holds back from then on would be let go with the last read, though its own is yet to begin.
    fn forget_replaced<'a>(
        &mut self,
        key: ConnectionKey,
        subscriptions: impl Iterator<Item = (&'a str, SubscriptionOptions)>,
    ) {
        let replaced = subscriptions.filter(|(_, options)| options.retain_handling == RetainHandling::Never);
        let replaced: Vec<&str> = replaced.map(|(filter, _)| filter).collect();
        self.forget_reads(key, &replaced);
    }

    /// Makes a subscription stand in the tables: after this every publish finds it.
    pub(super) fn enter_subscription(&mut self, key: ConnectionKey, filter: &str, own: OwnSubscription, held: bool) {
        let Ok(parsed) = ParsedFilter::parse(filter) else {
            return;
        };
        let id = self.id;
        // Its read may have ended: what it held back waits until all have, and is not to be overtaken by what comes by this one.
        let holds =
            own.options.retain_handling != RetainHandling::Never && self.subscriptions.is_holding(key.raw(), filter);
        let Some(client) = self.client(key) else {
            return;
        };
        let client_id = std::sync::Arc::clone(&client.client_id);
        let Some(session) = client.session.as_mut() else {
            return;
        };
        let persistent = session.persistent;
        // Another SUBSCRIBE takes the place of the first: what that one still waits for comes by the terms of this one, and
        // live messages do not get past it.
        session.reads.change_terms(filter, own);
        let held = held || holds || session.reads.is_reading(filter);
        let kind = interest_kind(persistent.is_some(), own);
        let before = session.subscriptions.insert(Box::from(filter), own);
        session.filter_bytes += if before.is_none() { filter.len() } else { 0 };
        let kind_before = before.map(|before| interest_kind(persistent.is_some(), before));
        let replaced = before.is_some();
        if kind_before != Some(kind) {
            self.change_interest(filter, kind, true);
            if let Some(before) = kind_before {
                self.change_interest(filter, before, false);
            }
        }
        match parsed {
            ParsedFilter::Plain(plain) => {
                self.subscriptions.insert(
                    plain.as_str(),
                    &LocalSubscription {
                        connection: key.raw(),
                        qos: own.options.qos,
                        no_local: own.options.no_local,
                        retain_as_published: own.options.retain_as_published,
                        subscription_identifier: own.identifier,
                        persistent: persistent.is_some(),
                        held,
                    },
                );
                if !replaced {
                    self.shared.index.subscribe(plain.as_str(), Target::Arbiter(id));
                }
            }
            ParsedFilter::Shared(shared) => {
                // A member that keeps its kind keeps its place, too, and what is counted there.
                if kind_before != Some(kind) {
                    let member = ShareMember {
                        target: share_target(key),
                        client_id_hash: name_hash(&client_id),
                        node: self.shared.cluster.as_ref().map_or(0, |cluster| cluster.node),
                        qos0_only: kind == InterestKind::Qos0Only,
                    };
                    self.shared.index.join_share(shared.share_name(), shared.filter().as_str(), member);
                }
            }
        }
        if !replaced && persistent.is_none() {
            self.count_subscription(filter, 1);
        }
    }

    /// Of a transient session; those of persistent ones count where they are kept, also while the client is away.
    fn count_subscription(&self, filter: &str, change: i64) {
        self.counters.subscriptions.add(change);
        if filter.starts_with("$share/") {
            self.counters.subscriptions_shared.add(change);
        }
    }

    /// Takes one subscription out of the tables. `false`: it did not stand there.
    pub(super) fn remove_subscription(&mut self, key: ConnectionKey, filter: &str) -> bool {
        let removed = self.take_out(key, filter);
        if removed {
            self.forget_reads(key, &[filter]);
        }
        removed
    }

    /// [`Self::remove_subscription`], but for what waits because of it: that is for [`Self::forget_reads`], once for many.
    fn take_out(&mut self, key: ConnectionKey, filter: &str) -> bool {
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return false;
        };
        let Some(own) = session.subscriptions.remove(filter) else {
            return false;
        };
        session.filter_bytes -= filter.len();
        let group = session.persistent.map(|persistent| persistent.group);
        self.leave(key, filter, own, group);
        true
    }

    fn leave(&mut self, key: ConnectionKey, filter: &str, own: OwnSubscription, group: Option<u16>) {
        self.change_interest(filter, interest_kind(group.is_some(), own), false);
        match ParsedFilter::parse(filter) {
            Ok(ParsedFilter::Plain(plain)) => {
                self.subscriptions.remove(plain.as_str(), key.raw());
                self.shared.index.unsubscribe(plain.as_str(), Target::Arbiter(self.id));
            }
            Ok(ParsedFilter::Shared(shared)) => {
                self.shared.index.leave_share(shared.share_name(), shared.filter().as_str(), &share_target(key));
            }
            Err(_) => {}
        }
        if group.is_none() {
            self.count_subscription(filter, -1);
        }
    }

    /// All subscriptions of a connection that ends.
    pub(super) fn leave_subscriptions(&mut self, key: ConnectionKey, session: &ClientSession) {
        let group = session.persistent.map(|persistent| persistent.group);
        let mut subscriptions: Vec<_> = session.subscriptions.iter().collect();
        // Other nodes hear of it in this order, and a simulation repeats: it must not be that of a table with random keys.
        subscriptions.sort_unstable_by_key(|&(filter, _)| filter);
        for (filter, own) in subscriptions {
            self.leave(key, filter, *own, group);
        }
        for filter in session.changes.iter().flat_map(|changes| changes.announced()) {
            self.change_interest(filter, InterestKind::Any, false);
        }
    }

    pub(super) fn on_unsubscribe(&mut self, key: ConnectionKey, mut unsubscribe: Unsubscribe) {
        for filter in &mut unsubscribe.filters {
            // One that can have no subscription has none.
            let _ = self.make_whole(key, filter);
        }
        let Some(session) = self.client(key).and_then(|client| client.session.as_ref()) else {
            return;
        };
        if let Some(persistent) = session.persistent {
            self.flush_lanes();
            self.message_number += 1;
            let ticket = self.message_number;
            let ended: Vec<_> = unsubscribe.filters.iter().map(|filter| (filter.as_str(), None)).collect();
            self.begin_changes(key, ticket, &ended);
            let client_id = &self.clients[key.index()].client_id;
            let command = SessionCommand::unsubscribe(client_id, persistent, &unsubscribe, ticket);
            return self.ask_group(key, persistent.group, ticket, command);
        }
        let mut codes = Vec::with_capacity(unsubscribe.filters.len());
        let mut ended = Vec::new();
        for filter in &unsubscribe.filters {
            let existed = self.take_out(key, filter);
            if existed {
                self.tell_unsubscribed(key, filter);
                ended.push(filter.as_str());
            }
            codes.push(if existed { ReasonCode::Success } else { ReasonCode::NoSubscriptionExisted });
        }
        self.forget_reads(key, &ended);
        self.write_suback(key, unsubscribe.packet_id, codes, Packet::UnsubAck);
    }

    /// SUBSCRIBE or UNSUBSCRIBE of a persistent session, to be answered by its group.
    fn ask_group(&mut self, key: ConnectionKey, group: u16, ticket: u64, command: SessionCommand) {
        self.on_asked(key);
        self.on_terms_asked(key, &command);
        let Some(command) = self.ask_in_turn(key, ticket, command) else {
            return;
        };
        if let Some(served) = self.served(key) {
            served.unanswered.push_back((ticket, command.clone()));
        }
        let client_id = std::sync::Arc::clone(&self.clients[key.index()].client_id);
        self.count_named(&client_id);
        self.lanes.command(group, command);
        self.schedule_flush();
    }

    /// Whether an answer is for something that was asked and not answered yet.
    fn is_answer(&mut self, key: ConnectionKey, ticket: u64) -> bool {
        let Some(served) = self.served(key) else {
            return true; // The only node: what is asked is answered once.
        };
        let asked = served.unanswered.iter().position(|&(asked, _)| asked == ticket);
        asked.and_then(|at| served.unanswered.remove(at)).is_some()
    }

    /// A SUBSCRIBE or UNSUBSCRIBE has no answer yet: its group is to say what stands, or every node to hear of it.
    pub(super) fn on_asked(&mut self, key: ConnectionKey) {
        if let Some(client) = self.client(key) {
            client.unanswered += 1;
        }
    }

    /// Such a one has its answer. What was not read for want of it is read now.
    pub(super) fn on_answered(&mut self, key: ConnectionKey) {
        let Some(client) = self.client(key).filter(|client| client.unanswered > 0) else {
            return;
        };
        client.unanswered -= 1;
        if client.unanswered == 0 {
            client.behind_suback = BehindSuback::No;
        }
        let (is_last, has_room) = (client.unanswered == 0, client.unanswered + 1 == ASKED_MAX);
        if (is_last || has_room) && !self.is_full(key) {
            self.resume_reading(key);
        }
        self.continue_reads(key);
    }

    /// What a client publishes behind a SUBSCRIBE is for that subscription as well, and so is what others publish because of it,
    /// whatever node they are at; behind an UNSUBSCRIBE it is not. So while one has no answer, the connection is read up to
    /// the next PUBLISH, for so long as [`SUBACK_SECONDS_MAX`]. Whether the packet that begins with `first_byte` waits for that.
    pub(super) fn waits_for_suback(&mut self, key: ConnectionKey, first_byte: u8) -> bool {
        if PacketType::of(first_byte) != Some(PacketType::Publish) {
            return false;
        }
        let now = self.now_seconds();
        let Some(client) = self.client(key).filter(|client| client.unanswered > 0) else {
            return false;
        };
        match client.behind_suback {
            BehindSuback::No => {
                client.behind_suback = BehindSuback::Since(now);
                self.behind_suback.insert(key);
            }
            BehindSuback::Since(_) => {}
            BehindSuback::LongEnough => return false,
        }
        if let Some(client) = self.client(key) {
            (client.paused, client.unprocessed) = (true, true);
        }
        true
    }

    /// Once a second: reads on whom a group without a majority, say, has not answered for long. Nobody would notice that such a client is
    /// gone, nor that it is there, and nothing is promised to it before SUBACK.
    pub(super) fn end_waits_for_suback(&mut self) {
        let now = self.now_seconds();
        for key in std::mem::take(&mut self.behind_suback) {
            let Some(client) = self.client(key) else {
                continue;
            };
            match client.behind_suback {
                BehindSuback::Since(since) if now.saturating_sub(since) >= SUBACK_SECONDS_MAX => {
                    client.behind_suback = BehindSuback::LongEnough;
                    if !self.is_full(key) {
                        self.resume_reading(key);
                    }
                }
                BehindSuback::Since(_) => drop(self.behind_suback.insert(key)),
                BehindSuback::No | BehindSuback::LongEnough => {}
            }
        }
    }

    /// Whether a SUBSCRIBE or UNSUBSCRIBE of the filter that came after that of `ticket` was answered before it: SUBACK waits
    /// until every node has heard, and one that is asked for again by a new leader is answered behind what it had not heard of.
    fn is_answered_since(&mut self, key: ConnectionKey, ticket: u64, filter: &str) -> bool {
        let is_later = |(since, ahead): &(u64, Box<str>)| *since > ticket && **ahead == *filter;
        self.served(key).is_some_and(|served| served.answered_ahead.iter().any(is_later))
    }

    /// See [`ArbiterState::is_answered_since`].
    fn remember_answered(&mut self, key: ConnectionKey, ticket: u64, filter: &str) {
        let Some(served) = self.served(key) else {
            return;
        };
        // Nothing older is answered any more.
        let oldest = served.unanswered.iter().map(|&(asked, _)| asked).min().unwrap_or(u64::MAX);
        served.answered_ahead.retain(|&(since, _)| since > oldest);
        if ticket > oldest {
            served.answered_ahead.push((ticket, Box::from(filter)));
        }
    }

    /// A group committed the subscriptions of a persistent session.
    pub(super) fn on_subscribed_persistent(&mut self, subscribed: SubscribedPersistent) {
        let SubscribedPersistent { connection: key, epoch, packet_id, ticket, outcomes } = subscribed;
        if !self.is_current(key, epoch) || !self.is_answer(key, ticket) {
            return;
        }
        if let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) {
            for outcome in &outcomes {
                session.asked.remove(outcome.filter.as_str());
            }
        }
        self.on_terms_answered(key, outcomes.iter().map(|outcome| outcome.filter.as_str()));
        let codes = outcomes.iter().map(|outcome| outcome.reason).collect();
        let is_overtaken = |outcome: &SubscribeOutcome| self.is_answered_since(key, ticket, &outcome.filter);
        let overtaken: Vec<bool> = outcomes.iter().map(is_overtaken).collect();
        let mut newest = Vec::with_capacity(outcomes.len());
        newest
            .extend(outcomes.iter().zip(&overtaken).filter(|(_, overtaken)| !**overtaken).map(|(outcome, _)| outcome));
        let granted_ones = newest.iter().filter(|outcome| !outcome.reason.is_error());
        self.forget_replaced(key, granted_ones.map(|outcome| (outcome.filter.as_str(), outcome.options)));
        newest.iter().for_each(|outcome| self.enter_outcome(key, outcome));
        for outcome in outcomes.iter().filter(|outcome| !outcome.reason.is_error()) {
            self.tell_subscribed(key, &outcome.filter, outcome.options);
        }
        outcomes.iter().for_each(|outcome| self.remember_answered(key, ticket, &outcome.filter));
        if self.client(key).is_some_and(|client| client.guarded) {
            // The rules may have changed while the group was asked.
            for outcome in outcomes.iter().filter(|outcome| !outcome.reason.is_error()) {
                self.revoke_if_refused(key, &outcome.filter, outcome.options.qos);
            }
        }
        if self.shared.cluster.is_some() {
            // What goes directly, QoS 0, is wanted by this node: the others must have heard of that as well.
            let reads = outcomes.iter().zip(overtaken);
            let reads = reads.filter_map(|(outcome, overtaken)| self.begin_read_of(key, outcome, overtaken)).collect();
            self.on_changes_answered(key, ticket);
            let barrier = self.await_barrier(key, PendingSubAck { packet_id, codes, reads });
            return self.on_changes_await(key, ticket, Some(barrier));
        }
        self.write_suback(key, packet_id, codes, Packet::SubAck);
        self.read_outcomes(key, &outcomes);
        self.on_changes_answered(key, ticket);
        self.on_changes_await(key, ticket, None);
        self.on_answered(key);
    }

    /// A subscription of a persistent session stands here for what goes directly, QoS 0.
    pub(super) fn enter_outcome(&mut self, key: ConnectionKey, outcome: &SubscribeOutcome) {
        if !outcome.reason.is_error() {
            let own = OwnSubscription { options: outcome.options, identifier: outcome.identifier };
            self.enter_subscription(key, &outcome.filter, own, outcome.read.is_some());
        }
    }

    /// The read that a subscription waits for: by the terms that stand, if it is `overtaken` by a later SUBSCRIBE, and not again
    /// if that one has begun it.
    fn begin_read_of(&mut self, key: ConnectionKey, outcome: &SubscribeOutcome, overtaken: bool) -> Option<u64> {
        outcome.read?;
        let mut own = OwnSubscription { options: outcome.options, identifier: outcome.identifier };
        if overtaken {
            let session = self.client(key)?.session.as_ref()?;
            own = *session.subscriptions.get(outcome.filter.as_str())?;
            if session.reads.is_reading(&outcome.filter) {
                return None;
            }
        }
        Some(self.begin_read(key, &outcome.filter, own, outcome.read))
    }

    /// The retained messages that subscriptions of a persistent session wait for.
    pub(super) fn read_outcomes(&mut self, key: ConnectionKey, outcomes: &[SubscribeOutcome]) {
        for outcome in outcomes.iter().filter(|outcome| outcome.read.is_some()) {
            let own = OwnSubscription { options: outcome.options, identifier: outcome.identifier };
            self.read_retained(key, &outcome.filter, own, outcome.read);
        }
    }

    /// A group committed the end of subscriptions of a persistent session.
    pub(super) fn on_unsubscribed_persistent(&mut self, unsubscribed: UnsubscribedPersistent) {
        let UnsubscribedPersistent { connection: key, epoch, packet_id, ticket, outcomes } = unsubscribed;
        if !self.is_current(key, epoch) || !self.is_answer(key, ticket) {
            return;
        }
        let session = self.client(key).and_then(|client| client.session.as_mut());
        let is_revoked = session.is_some_and(|session| {
            let before = session.revocations.len();
            session.revocations.retain(|&revoked| revoked != ticket);
            session.revocations.len() < before
        });
        self.on_terms_answered(key, outcomes.iter().map(|(filter, _)| filter.as_str()));
        let mut codes = Vec::with_capacity(outcomes.len());
        let mut ended = Vec::new();
        for (filter, reason) in &outcomes {
            if !self.is_answered_since(key, ticket, filter) && self.take_out(key, filter) {
                self.tell_unsubscribed(key, filter);
                ended.push(filter.as_str());
            }
            self.remember_answered(key, ticket, filter);
            codes.push(*reason);
        }
        self.forget_reads(key, &ended);
        self.on_changes_answered(key, ticket);
        // The client did not ask for it.
        if !is_revoked {
            self.write_suback(key, packet_id, codes, Packet::UnsubAck);
        }
        self.on_answered(key);
    }

    pub(super) fn is_current(&mut self, key: ConnectionKey, epoch: u64) -> bool {
        self.client(key)
            .and_then(|client| client.session.as_ref())
            .and_then(|session| session.persistent)
            .is_some_and(|persistent| persistent.epoch == epoch)
    }

    /// SUBACK and UNSUBACK: one code for each filter, in their order [MQTT-3.9.3-1, MQTT-3.11.3-1]. A Reason String says
    /// why some were refused; without one it is never larger than the request was.
    fn write_suback(
        &mut self,
        key: ConnectionKey,
        packet_id: PacketId,
        reason_codes: Vec<ReasonCode>,
        wrap: fn(SubAck) -> Packet,
    ) {
        if let Some(text) = refusals_text(&reason_codes) {
            let packet = |properties| wrap(SubAck { packet_id, reason_codes: reason_codes.clone(), properties });
            if let Some(packet) = self.explained(key, &text, packet) {
                return self.write_packet(key, &packet);
            }
        }
        let packet = wrap(SubAck { packet_id, reason_codes, properties: AckProperties::default() });
        let Some(client) = self.client(key) else {
            return;
        };
        if codec::encoded_len(&packet, client.version) <= client.packet_bytes_max_out as usize {
            self.write_packet(key, &packet);
        }
    }
}

fn subscribe_refusal(reason: ReasonCode) -> SubscribeRefusal {
    match reason {
        ReasonCode::NotAuthorized => SubscribeRefusal::NotAuthorized,
        ReasonCode::TopicFilterInvalid => SubscribeRefusal::TopicFilterInvalid,
        ReasonCode::QuotaExceeded => SubscribeRefusal::QuotaExceeded,
        _ => SubscribeRefusal::Other,
    }
}

/// Why filters were refused, each reason once; `None` if none was.
fn refusals_text(reason_codes: &[ReasonCode]) -> Option<String> {
    let explanations = [
        (ReasonCode::NotAuthorized, "the client may not subscribe to that filter"),
        (
            ReasonCode::TopicFilterInvalid,
            "that is no topic filter, or one with too many levels or too long a ShareName",
        ),
        (ReasonCode::QuotaExceeded, "the session has as many subscriptions as it may, or their filters as many bytes"),
    ];
    let texts: Vec<_> = explanations
        .iter()
        .filter(|(reason, _)| reason_codes.contains(reason))
        .map(|(reason, text)| format!("0x{:02X}: {text}", *reason as u8))
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

fn share_target(key: ConnectionKey) -> ShareTarget {
    ShareTarget::Connection { arbiter: key.arbiter(), connection: key.raw() }
}

/// What has a QoS goes to a persistent session by its group, as far as it was granted that; directly goes only QoS 0.
fn interest_kind(persistent: bool, own: OwnSubscription) -> InterestKind {
    if persistent && own.options.qos != QoS::AtMostOnce { InterestKind::Qos0Only } else { InterestKind::Any }
}
