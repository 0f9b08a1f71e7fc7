//! What an arbiter holds, for a simulation that looks for what should be gone.

use std::sync::Arc;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::{ClientSession, OwnSubscription, Phase};
use crate::subscription::{LocalMatch, LocalSubscription, LocalSubscriptions, topic_hash};

/// A client that is connected.
#[derive(Debug, Clone)]
pub(crate) struct HeldClient {
    pub(crate) client_id: Arc<str>,
    pub(crate) connection: ConnectionKey,
    /// Of the claim that its group granted; `None`: no group was asked.
    pub(crate) epoch: Option<u64>,
    pub(crate) persistent: bool,
    /// By Topic Filter, in order.
    pub(crate) subscriptions: Vec<(Box<str>, OwnSubscription)>,
}

impl ArbiterState {
    /// Those that got CONNACK and were not left since.
    pub(crate) fn held_clients(&self) -> Vec<HeldClient> {
        let held = |(index, client): (usize, &super::client::Client)| {
            let session = client.session.as_ref().filter(|_| client.phase == Phase::Connected)?;
            let mut subscriptions: Vec<_> =
                session.subscriptions.iter().map(|(filter, own)| (filter.clone(), *own)).collect();
            subscriptions.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            let claim = session.served.as_ref().map(|served| served.claim).or(session.persistent);
            Some(HeldClient {
                client_id: Arc::clone(&client.client_id),
                connection: ConnectionKey::new(self.id, index as u32, client.generation),
                epoch: claim.map(|claim| claim.epoch),
                persistent: session.persistent.is_some(),
                subscriptions,
            })
        };
        self.clients.iter().filter_map(held).collect()
    }

    /// What nobody waits for any more, once everything came to rest. `topics`: those that are looked up.
    pub(crate) fn leftovers(&self, topics: &[&str]) -> Vec<String> {
        let mut left = Vec::new();
        for (_, client) in &self.clients {
            match &client.session {
                Some(session) if client.phase == Phase::Connected => {
                    left.extend(leftovers_of(session).map(|what| format!("{what} of {}", client.client_id)));
                }
                _ => left.push(format!("a connection of {:?} that is {:?}", client.client_id, client.phase)),
            }
        }
        let lists = [
            ("connections that are gone, with something under way", self.departing.len()),
            ("connections whose acknowledgements wait for the lease", self.withheld.len()),
            ("connections that are not read for want of a lease", self.unread.len()),
            ("connections that are not written to for want of a lease", self.unwritten.len()),
            ("SUBSCRIBEs that not every node has heard of", self.barriers.len()),
            ("changes of interest that nobody was told of", self.interest.filters.len()),
            ("messages that other nodes have for their members", self.settling.len()),
            ("messages that are taken and not let go", self.taking.len()),
        ];
        left.extend(lists.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")));
        left.extend(self.lanes.leftovers());
        left.extend(self.misplaced_subscriptions(topics));
        left
    }

    /// The table of subscriptions holds those of the clients that are connected, and no other.
    fn misplaced_subscriptions(&self, topics: &[&str]) -> Option<String> {
        let mut expected = LocalSubscriptions::new();
        for client in self.held_clients() {
            for (filter, own) in client.subscriptions.iter().filter(|(filter, _)| !filter.starts_with("$share/")) {
                let subscription = LocalSubscription {
                    connection: client.connection.raw(),
                    qos: own.options.qos,
                    no_local: own.options.no_local,
                    retain_as_published: own.options.retain_as_published,
                    subscription_identifier: own.identifier,
                    persistent: client.persistent,
                    held: false,
                };
                expected.insert(filter, &subscription);
            }
        }
        let differs = |topic: &&&str| matches(&self.subscriptions, topic) != matches(&expected, topic);
        if let Some(topic) = topics.iter().find(differs) {
            let (found, wanted) = (matches(&self.subscriptions, topic), matches(&expected, topic));
            return Some(format!("{topic} goes to {found:?}, and {wanted:?} subscribe"));
        }
        let (found, wanted) = (self.subscriptions.len(), expected.len());
        (found != wanted).then(|| format!("{found} subscriptions in the table, and clients have {wanted}"))
    }
}

/// The connections that get a topic, and whether their live messages wait.
fn matches(subscriptions: &LocalSubscriptions, topic: &str) -> Vec<(u64, bool, bool)> {
    let mut found: Vec<LocalMatch> = Vec::new();
    subscriptions.matches(topic, topic_hash(topic), &mut found);
    let mut found: Vec<_> = found.iter().map(|one| (one.connection, one.persistent, one.held)).collect();
    found.sort_unstable();
    found
}

fn leftovers_of(session: &ClientSession) -> impl Iterator<Item = &'static str> {
    let served = session.served.as_ref();
    let waits = [
        ("a SUBSCRIBE or UNSUBSCRIBE without an answer", served.is_some_and(|served| !served.unanswered.is_empty())),
        ("one that its group was not asked for", served.is_some_and(|served| !served.unasked.is_empty())),
        ("a subscription that goes over", session.changes.as_ref().is_some_and(|changes| changes.waits())),
        ("a SUBSCRIBE that not every node has heard of", served.is_some_and(|served| !served.barriers.is_empty())),
        ("a read of retained messages", session.reads.is_under_way()),
    ];
    waits.into_iter().filter(|(_, waits)| *waits).map(|(what, _)| what)
}
