//! Subscriptions, and what the node must know of them.

use std::num::NonZeroU32;
use std::ops::Bound;
use std::sync::Arc;

use kentongan_proto::mqtt::{ReasonCode, RetainHandling, SubscriptionOptions};
use kentongan_proto::topic::ParsedFilter;

use super::{GroupState, is_wanted, packet_id};
use crate::replicated::command;
use crate::replicated::effect::{Effect, FilterOutcome};
use crate::replicated::session::Subscription;
use crate::replicated::store::Key;
use crate::subscription::LocalSubscription;

impl GroupState {
    pub(super) fn subscribe(&mut self, subscribe: command::Subscribe, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.current(&subscribe.client_id, subscribe.epoch) else {
            return;
        };
        let Some(packet_id) = packet_id(subscribe.packet_id) else {
            return;
        };
        let (ticket, again) = (subscribe.ticket, subscribe.again);
        let filters = subscribe.filters.into_iter();
        let outcomes = filters.map(|filter| self.subscribe_one(&client_id, filter, again, effects)).collect();
        self.finish_reads(&client_id, effects);
        if let Some((owner, epoch)) = self.owner(&client_id) {
            effects.push(Effect::Subscribed { owner, client_id, epoch, packet_id, ticket, outcomes });
        }
    }

    pub(super) fn subscribe_one(
        &mut self,
        client_id: &Arc<str>,
        asked: command::SubscribeFilter,
        again: bool,
        effects: &mut Vec<Effect>,
    ) -> FilterOutcome {
        let options = SubscriptionOptions {
            qos: command::qos(asked.qos),
            no_local: asked.no_local,
            retain_as_published: asked.retain_as_published,
            retain_handling: match asked.retain_handling {
                0 => RetainHandling::Always,
                1 => RetainHandling::IfNew,
                _ => RetainHandling::Never,
            },
        };
        let identifier = asked.subscription_identifier.and_then(NonZeroU32::new);
        let mut outcome = FilterOutcome {
            filter: asked.filter,
            reason: crate::session::subscribing::granted(options.qos),
            options,
            identifier,
            read: None,
        };
        if let Some(refused) = asked.refused {
            outcome.reason = ReasonCode::from_byte(refused as u8).unwrap_or(ReasonCode::UnspecifiedError);
            return outcome;
        }
        let Ok(parsed) = ParsedFilter::parse(&outcome.filter) else {
            outcome.reason = ReasonCode::TopicFilterInvalid;
            return outcome;
        };
        let filter: Arc<str> = Arc::from(outcome.filter.as_str());
        if again {
            // Its first try was applied, for lanes lose nothing; so what stands is what it led to, and who asked may have been
            // told by now. Another read than the one that was begun would be one that nobody reads.
            let session = self.sessions.get(client_id);
            let standing = session.and_then(|session| session.subscriptions.get(&filter));
            outcome.read = standing.and_then(|subscription| subscription.read);
            return outcome;
        }
        let replaced = self.remove_quietly(client_id, &filter, effects);
        let new = replaced.is_none();
        if crate::session::subscribing::wants_retained(&filter, options.retain_handling, new) {
            self.last_read += 1;
            outcome.read = Some(self.last_read);
        }
        // Retain Handling 1 says that what there was is known: by a read that may not have come to its end.
        let goes_on = replaced.as_ref().filter(|_| options.retain_handling == RetainHandling::IfNew);
        let read = outcome.read.or(goes_on.and_then(|replaced| replaced.read));
        let subscription = Subscription { options, identifier, read, held: read.is_some() };
        self.enter_subscription(client_id, &filter, &parsed, subscription);
        // Replacing must not lose messages [MQTT-3.8.4-4]: the interest never lapses in between.
        let was_wanted = replaced.is_some_and(|replaced| is_wanted(replaced.options.qos));
        if was_wanted != is_wanted(options.qos) {
            self.interest(&filter, !was_wanted, effects);
        }
        self.share_online(&filter, effects);
        outcome
    }

    /// Makes a subscription stand in the tables that are not stored.
    pub(super) fn enter_subscription(
        &mut self,
        client_id: &Arc<str>,
        filter: &Arc<str>,
        parsed: &ParsedFilter,
        subscription: Subscription,
    ) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let before = session.subscriptions.insert(Arc::clone(filter), subscription);
        let is_new = before.is_none();
        session.reads += usize::from(subscription.read.is_some());
        session.reads -= usize::from(before.is_some_and(|before| before.read.is_some()));
        let key = Key::Subscription(session.number, Arc::clone(filter));
        if is_new {
            self.dirty.created(key)
        } else {
            self.dirty.changed(key)
        }
        self.subscriptions += usize::from(is_new);
        self.subscriptions_shared += usize::from(is_new && filter.starts_with("$share/"));
        let online = session.owner.is_some();
        match parsed {
            ParsedFilter::Plain(plain) => {
                let local = LocalSubscription {
                    connection: session.number,
                    qos: subscription.options.qos,
                    no_local: subscription.options.no_local,
                    retain_as_published: subscription.options.retain_as_published,
                    subscription_identifier: subscription.identifier,
                    persistent: true,
                    held: subscription.held,
                };
                self.matcher.insert(plain.as_str(), &local);
            }
            ParsedFilter::Shared(_) => {
                if is_wanted(subscription.options.qos) {
                    self.shares.entry(Arc::clone(filter)).or_default().set(client_id, online);
                    self.load_changed(filter);
                }
            }
        }
    }

    pub(super) fn interest(&self, filter: &Arc<str>, wanted: bool, effects: &mut Vec<Effect>) {
        if filter.starts_with("$share/") {
            effects.push(Effect::ShareInterest { share: Arc::clone(filter), joined: wanted });
        } else {
            effects.push(Effect::Interest { filter: Arc::clone(filter), wanted });
        }
    }

    pub(super) fn unsubscribe(&mut self, unsubscribe: command::Unsubscribe, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.current(&unsubscribe.client_id, unsubscribe.epoch) else {
            return;
        };
        let Some(packet_id) = packet_id(unsubscribe.packet_id) else {
            return;
        };
        let ticket = unsubscribe.ticket;
        let mut outcomes = Vec::with_capacity(unsubscribe.filters.len());
        for filter in unsubscribe.filters {
            // Its first try was applied, as that of a SUBSCRIBE: what stands now was asked for behind it. Whether there was
            // anything then, nobody knows any more.
            let existed =
                unsubscribe.again || self.remove_subscription(&client_id, &Arc::from(filter.as_str()), effects);
            let reason = if existed { ReasonCode::Success } else { ReasonCode::NoSubscriptionExisted };
            outcomes.push((filter, reason));
        }
        if let Some((owner, epoch)) = self.owner(&client_id) {
            effects.push(Effect::Unsubscribed { owner, client_id, epoch, packet_id, ticket, outcomes });
        }
    }

    pub(super) fn remove_subscription(
        &mut self,
        client_id: &Arc<str>,
        filter: &Arc<str>,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(removed) = self.remove_quietly(client_id, filter, effects) else {
            return false;
        };
        if is_wanted(removed.options.qos) {
            self.interest(filter, false, effects);
        }
        self.share_online(filter, effects);
        self.finish_reads(client_id, effects);
        true
    }

    /// Takes it out of the tables; the interest is the caller's.
    pub(super) fn remove_quietly(
        &mut self,
        client_id: &Arc<str>,
        filter: &Arc<str>,
        effects: &mut Vec<Effect>,
    ) -> Option<Subscription> {
        let session = self.sessions.get_mut(client_id)?;
        let number = session.number;
        let subscription = session.subscriptions.remove(filter)?;
        session.reads -= usize::from(subscription.read.is_some());
        self.dirty.deleted(Key::Subscription(number, Arc::clone(filter)));
        self.subscriptions -= 1;
        if filter.starts_with("$share/") {
            self.subscriptions_shared -= 1;
            if let Some(share) = self.shares.get_mut(filter) {
                share.remove(client_id);
                if share.members.is_empty() {
                    self.shares.remove(filter);
                    if self.turns.remove(filter).is_some() {
                        self.dirty.deleted(Key::Turn(Arc::clone(filter)));
                    }
                }
                self.load_changed(filter);
            }
        } else {
            self.matcher.remove(filter, number);
        }
        if subscription.held {
            self.enqueue_no_longer_held(client_id, effects);
        }
        Some(subscription)
    }

    /// The session came or went: its shared subscriptions tell how many of their members are connected.
    pub(super) fn update_shares_online(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(client_id) else {
            return;
        };
        let online = session.owner.is_some();
        let from: (Bound<&str>, Bound<&str>) = (Bound::Included("$share/"), Bound::Unbounded);
        let shared = session.subscriptions.range::<str, _>(from).map(|(filter, _)| filter);
        let shared: Vec<_> = shared.take_while(|filter| filter.starts_with("$share/")).cloned().collect();
        for filter in shared {
            if let Some(share) = self.shares.get_mut(&filter).filter(|share| share.members.contains_key(client_id)) {
                share.set(client_id, online);
                effects.push(Effect::ShareOnline { share: Arc::clone(&filter), online: share.online });
                self.load_changed(&filter);
            }
        }
    }

    /// Also where nobody is left: a group that was said to have members online would be picked.
    pub(super) fn share_online(&self, filter: &Arc<str>, effects: &mut Vec<Effect>) {
        if filter.starts_with("$share/") {
            let online = self.shares.get(filter).map_or(0, |share| share.online);
            effects.push(Effect::ShareOnline { share: Arc::clone(filter), online });
        }
    }
}
