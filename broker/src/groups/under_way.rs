//! How much the groups led here have under way to each connection: sent, and not acknowledged by its client.
//!
//! A session's window counts messages. What is in it waits where the connection is, on another node in a copy of its own for each
//! session, and the client may read nothing. So no more of it is sent than so many bytes, or one message whatever its size. The
//! rest waits here, where the window keeps it anyway, until the client has acknowledged some of what it was sent.
//!
//! All of it is known from what the group applies, so owners need say nothing for it, and nothing of it is replicated: who comes to lead
//! counts what owners say that they have, when they say so. What waits here is in the window like the rest. If it is let go,
//! because its connection ends, or because the owner is yet to say what it has, it is sent as whatever is missing there.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use kentongan_proto::mqtt::PacketId;

use crate::connection_key::ConnectionKey;
use crate::replicated::DeliverPersistent;
use crate::replicated::command::Owner;

/// Of one connection.
#[derive(Debug, Default)]
struct Account {
    /// What its client is to acknowledge, in the order in which it was sent, each with its weight.
    sent: VecDeque<(PacketId, usize)>,
    /// Weight of all that.
    bytes: usize,
    /// What follows, in order. Empty if nothing is `sent`: then nothing would ever ask for it.
    waiting: VecDeque<DeliverPersistent>,
    /// Bytes that its client may have beyond the bound, for it acknowledges only much at once.
    more: usize,
    /// Since when something waits, and nothing has been acknowledged.
    since: Option<Duration>,
}

/// Clients may collect what they get and acknowledge it at once, and one whose parts are larger than the bound would wait for the rest for
/// ever. So after that long without an acknowledgement it gets as much again; who reads nothing at all is closed after a while
/// (`session.stalled_seconds_max`).
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

impl Account {
    fn has_room(&self, bytes: usize, bytes_max: usize) -> bool {
        self.sent.is_empty() || self.bytes.saturating_add(bytes) <= bytes_max.saturating_add(self.more)
    }

    fn send(&mut self, packet_id: PacketId, bytes: usize) {
        self.sent.push_back((packet_id, bytes));
        self.bytes += bytes;
    }

    fn settle(&mut self, packet_id: PacketId) {
        self.since = None;
        // Clients acknowledge in order [MQTT-4.6.0-2], so it is found at once.
        if let Some(at) = self.sent.iter().position(|&(sent, _)| sent == packet_id) {
            self.bytes -= self.sent.remove(at).map_or(0, |(_, bytes)| bytes);
        } else {
            // A client that acknowledges what it was not sent. The identifier is free, and may be another message's.
            self.waiting.retain(|delivery| delivery.packet_id != packet_id);
        }
    }

    /// The next one that there is room for, which is sent.
    fn next(&mut self, bytes_max: usize) -> Option<DeliverPersistent> {
        let bytes = self.waiting.front()?.message.weight_bytes();
        if !self.has_room(bytes, bytes_max) {
            return None;
        }
        let delivery = self.waiting.pop_front()?;
        self.send(delivery.packet_id, bytes);
        Some(delivery)
    }
}

/// Of all connections that have something under way.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    groups: HashMap<u16, HashMap<Owner, Account>>,
}

impl UnderWay {
    /// A message of the window is to be sent. It is given back if that is now, as up to `bytes_max` may be under way.
    pub(super) fn offer(
        &mut self,
        group: u16,
        owner: Owner,
        delivery: DeliverPersistent,
        bytes_max: usize,
    ) -> Option<DeliverPersistent> {
        let account = self.groups.entry(group).or_default().entry(owner).or_default();
        let bytes = delivery.message.weight_bytes();
        if account.waiting.is_empty() && account.has_room(bytes, bytes_max) {
            account.send(delivery.packet_id, bytes);
            return Some(delivery);
        }
        account.waiting.push_back(delivery);
        None
    }

    /// A message was sent before: by another leader, or by this one before it counted anew.
    pub(super) fn has_been_sent(&mut self, group: u16, owner: Owner, packet_id: PacketId, bytes: usize) {
        self.groups.entry(group).or_default().entry(owner).or_default().send(packet_id, bytes);
    }

    /// A client has acknowledged a message. Returns what is to be sent now.
    pub(super) fn settled(
        &mut self,
        group: u16,
        owner: Owner,
        packet_id: PacketId,
        bytes_max: usize,
    ) -> Vec<DeliverPersistent> {
        let Some(accounts) = self.groups.get_mut(&group) else {
            return Vec::new();
        };
        let Entry::Occupied(mut account) = accounts.entry(owner) else {
            return Vec::new();
        };
        account.get_mut().settle(packet_id);
        let next = std::iter::from_fn(|| account.get_mut().next(bytes_max)).collect();
        if account.get().sent.is_empty() && account.get().more == 0 {
            account.remove();
        }
        next
    }

    /// Call now and then. Returns what is to be sent to those who have acknowledged nothing for long, and their groups.
    pub(super) fn go_on(&mut self, now: Duration, bytes_max: usize) -> Vec<(u16, Owner, DeliverPersistent)> {
        let mut all = Vec::new();
        for (&group, accounts) in &mut self.groups {
            for (&owner, account) in accounts.iter_mut().filter(|(_, account)| !account.waiting.is_empty()) {
                let since = *account.since.get_or_insert(now);
                if now.saturating_sub(since) >= UNACKNOWLEDGED_MAX {
                    account.since = Some(now);
                    account.more = account.more.saturating_add(bytes_max);
                    all.extend(std::iter::from_fn(|| account.next(bytes_max)).map(|next| (group, owner, next)));
                }
            }
        }
        all
    }

    /// A connection takes its session up, or lets go of it: nothing is under way.
    pub(super) fn restart(&mut self, group: u16, owner: Owner) {
        if let Some(accounts) = self.groups.get_mut(&group) {
            accounts.remove(&owner);
        }
    }

    /// An arbiter of a node has said what its connections in these places have. What each was sent is counted anew.
    pub(super) fn restart_all_in(&mut self, group: u16, node: u64, arbiter: u16, places: &Range<u32>) {
        if let Some(accounts) = self.groups.get_mut(&group) {
            accounts.retain(|owner, _| {
                let connection = ConnectionKey::from_raw(owner.connection);
                owner.node != node || connection.arbiter() != arbiter || !connection.is_in(places)
            });
        }
    }

    /// This node begins or ceases to lead a group.
    pub(super) fn forget(&mut self, group: u16) {
        self.groups.remove(&group);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use kentongan_proto::mqtt::QoS;

    use super::*;
    use crate::connection_key::ALL_PLACES;
    use crate::message::{Message, MessageIdentity};

    const BYTES_MAX: usize = 10_000;
    const OWNER: Owner = Owner { incarnation: 1, connection: 5, node: 2 };

    fn id(number: u16) -> PacketId {
        PacketId::new(number).expect("not zero")
    }

    fn delivery(number: u16, payload_bytes: usize) -> DeliverPersistent {
        let message = Message {
            identity: MessageIdentity::default(),
            topic: Arc::from("t"),
            payload: Bytes::from(vec![0; payload_bytes]),
            qos: QoS::AtLeastOnce,
            retain: false,
            publisher: Arc::from(""),
            properties: None,
            expires_at_ms: None,
        };
        DeliverPersistent {
            connection: ConnectionKey::from_raw(OWNER.connection),
            epoch: 1,
            packet_id: id(number),
            qos: QoS::AtLeastOnce,
            dup: false,
            retain: false,
            subscription_identifiers: Vec::new(),
            message: Arc::new(message),
            expires_at_ms: None,
            shared: Some(false),
        }
    }

    /// A group that one client is sent messages by, and what the client has of them.
    #[derive(Default)]
    struct Script {
        under_way: UnderWay,
        has: VecDeque<(u16, usize)>,
        got: Vec<u16>,
    }

    impl Script {
        fn take(&mut self, deliveries: impl IntoIterator<Item = DeliverPersistent>) {
            for delivery in deliveries {
                self.has.push_back((delivery.packet_id.get(), delivery.message.weight_bytes()));
                self.got.push(delivery.packet_id.get());
            }
            let bytes: usize = self.has.iter().map(|(_, bytes)| bytes).sum();
            assert!(
                bytes <= BYTES_MAX || self.has.len() == 1,
                "{bytes} bytes are under way in {} messages",
                self.has.len()
            );
        }

        fn offer(&mut self, number: u16, payload_bytes: usize) {
            let now = self.under_way.offer(1, OWNER, delivery(number, payload_bytes), BYTES_MAX);
            self.take(now);
        }

        fn acknowledge(&mut self, number: u16) {
            self.has.retain(|&(has, _)| has != number);
            let next = self.under_way.settled(1, OWNER, id(number), BYTES_MAX);
            self.take(next);
        }

        /// The client acknowledges what it has, one message after the other, as long as it has any.
        fn acknowledge_all(&mut self) {
            while let Some(&(number, _)) = self.has.front() {
                self.acknowledge(number);
            }
        }
    }

    /// Who acknowledges only much at once gets it, by and by; and then at once, as long as it stays.
    #[test]
    fn who_acknowledges_more_at_once_than_the_bound_does_not_wait_for_ever() {
        let mut under_way = UnderWay::default();
        let offer =
            |under_way: &mut UnderWay, number| under_way.offer(1, OWNER, delivery(number, 4_000), BYTES_MAX).is_some();
        assert_eq!((1..=9).filter(|&number| offer(&mut under_way, number)).count(), 2);
        let go_on = |under_way: &mut UnderWay, seconds| {
            let next = under_way.go_on(Duration::from_secs(seconds), BYTES_MAX);
            next.into_iter().map(|(_, _, delivery)| delivery.packet_id.get()).collect::<Vec<_>>()
        };
        let none: [u16; 0] = [];
        assert_eq!(go_on(&mut under_way, 100), none);
        assert_eq!(go_on(&mut under_way, 109), none);
        assert_eq!(go_on(&mut under_way, 110), [3, 4], "as much again");
        assert_eq!(go_on(&mut under_way, 119), none);
        assert_eq!(go_on(&mut under_way, 120), [5, 6, 7]);
        let next = (1..=9).flat_map(|number| under_way.settled(1, OWNER, id(number), BYTES_MAX)).count();
        assert_eq!(next, 2);
        assert_eq!((11..=19).filter(|&number| offer(&mut under_way, number)).count(), 7, "it is known for that");
        assert_eq!(go_on(&mut under_way, 130), none, "it has acknowledged some");
    }

    /// P3, P4: a client that reads slowly has no more before it than the bound, and gets all in order. Small messages behind a large one
    /// wait for it, and one that is larger than the bound goes alone.
    ///
    /// Abuse: [stalled-subscriber]
    #[test]
    fn no_more_is_under_way_than_the_bound_and_all_of_it_arrives_in_order() {
        let sizes = [10, 3_000, 4_000, 3_000, 20, 50_000, 10, 9_000, 60_000, 60_000, 1, 2, 3];
        for acknowledged_each in 0..4 {
            let mut script = Script::default();
            for (number, &size) in (1..).zip(&sizes) {
                script.offer(number, size);
                for _ in 0..acknowledged_each {
                    if let Some(&(number, _)) = script.has.front() {
                        script.acknowledge(number);
                    }
                }
            }
            if acknowledged_each == 0 {
                assert_eq!(script.got, [1, 2, 3], "it has acknowledged nothing");
            }
            script.acknowledge_all();
            assert_eq!(script.got, Vec::from_iter(1..=sizes.len() as u16));
            assert!(script.under_way.groups[&1].is_empty(), "who has all takes no room");
        }
    }

    /// A window of small messages is under way as a whole.
    #[test]
    fn small_messages_wait_for_nothing() {
        let mut script = Script::default();
        (1..=50).for_each(|number| script.offer(number, 50));
        assert_eq!(script.got.len(), 50);
        script.acknowledge(7);
        script.offer(51, 50);
        assert_eq!(script.got.len(), 51, "in whatever order they are acknowledged");
    }

    /// P3: its identifier is free, and may be given to another message while the first one waits.
    #[test]
    fn what_is_acknowledged_before_it_was_sent_is_not_sent() {
        let mut script = Script::default();
        (1..=4).for_each(|number| script.offer(number, 6_000));
        assert_eq!(script.got, [1]);
        script.acknowledge(3);
        script.acknowledge(9);
        script.offer(3, 10);
        script.acknowledge_all();
        assert_eq!(script.got, [1, 2, 4, 3]);
    }

    /// A new leader, or one that may have lost something on the way, counts what the owner says it has. What waited is sent with all else
    /// that is missing there, and so not from here.
    #[test]
    fn what_an_owner_has_counts_from_when_it_says_so() {
        let mut script = Script::default();
        (1..=4).for_each(|number| script.offer(number, 6_000));
        script.under_way.restart_all_in(1, 2, 1, &ALL_PLACES);
        script.under_way.restart_all_in(1, 3, 0, &ALL_PLACES);
        script.under_way.restart_all_in(1, 2, 0, &(6..10));
        script.under_way.restart_all_in(2, 2, 0, &ALL_PLACES);
        assert_eq!(script.under_way.groups[&1][&OWNER].waiting.len(), 3, "none of these is about it");

        script.under_way.restart_all_in(1, 2, 0, &(5..6));
        script.under_way.has_been_sent(1, OWNER, id(1), 6_112);
        (2..=4).for_each(|number| script.offer(number, 6_000));
        assert_eq!(script.got, [1]);
        script.acknowledge_all();
        assert_eq!(script.got, [1, 2, 3, 4]);
    }

    /// P7: nothing of a connection's waits behind what the one before it had.
    #[test]
    fn a_connection_that_lets_go_leaves_nothing() {
        let mut script = Script::default();
        (1..=3).for_each(|number| script.offer(number, 20_000));
        script.under_way.restart(1, OWNER);
        assert!(script.under_way.settled(1, OWNER, id(1), BYTES_MAX).is_empty());
        let again = Owner { connection: 6, ..OWNER };
        assert!(script.under_way.offer(1, again, delivery(1, 20_000), BYTES_MAX).is_some());
        script.under_way.forget(1);
        assert!(script.under_way.groups.is_empty());
    }
}
