//! Histories of whole nodes, each broken once: the checker believes what was recorded, and nothing that was tampered with.
//!
//! Whether a change is surely illegal is decided here, from the packets alone and never by the checker: where a client could
//! not know, there is no candidate. The same is tried in `history/tests/mutations.rs` with histories of a model, which knows
//! more.

use std::collections::{BTreeMap, HashMap, HashSet};

use kentongan_history::{
    Action, Delivery, Event, History, MessageId, Promise, Publish, SECOND, Settings, Symbol, What, check, matching,
};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

use super::{Plan, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mutation {
    Loss,
    Duplicate,
    ResentOnLivingConnection,
    Swap,
    Ghost,
    WrongTopic,
    MessageExpiresEarly,
    SessionExpiresEarly,
    StaleRetainedRead,
}

use Mutation::*;
const MUTATIONS: [Mutation; 9] = [
    Loss,
    Duplicate,
    ResentOnLivingConnection,
    Swap,
    Ghost,
    WrongTopic,
    MessageExpiresEarly,
    SessionExpiresEarly,
    StaleRetainedRead,
];

/// Of one kind, in one history.
const TRIES_MAX: usize = 8;

impl Mutation {
    /// The promises of which at least one must be found broken.
    fn breaks(self) -> &'static [Promise] {
        match self {
            Loss | MessageExpiresEarly => &[Promise::P1],
            Duplicate => &[Promise::P3, Promise::P4],
            ResentOnLivingConnection => &[Promise::P4],
            Swap => &[Promise::P5],
            Ghost | WrongTopic => &[Promise::P2],
            SessionExpiresEarly => &[Promise::P8, Promise::P10],
            StaleRetainedRead => &[Promise::P6],
        }
    }
}

/// The first seed, and how many at least. In the history of some there is a place for each mutation.
fn seeds() -> (u64, u64) {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    (number("KENTONGAN_SEED").unwrap_or(24), number("KENTONGAN_SEEDS").unwrap_or(5))
}

/// More are tried as long as some kind of mutation was found no place in any of them: what may be missed without doubt is rare.
const SEEDS_MAX: u64 = 100;

#[test]
fn a_history_of_whole_nodes_that_is_broken_once_is_rejected() {
    let mut tried: BTreeMap<Mutation, usize> = BTreeMap::new();
    let mut histories = 0;
    let (first, at_least) = seeds();
    for seed in first..first + at_least.max(SEEDS_MAX) {
        if seed >= first + at_least && MUTATIONS.iter().all(|mutation| tried.contains_key(mutation)) {
            break;
        }
        let mut world = World::new(seed, Plan::of_seed(seed));
        if let Err(why) = world.run() {
            panic!("KENTONGAN_SEED={seed} is no history to tamper with: {why}");
        }
        histories += 1;
        let (history, settings) = (world.history(), world.judged_by());
        let before: Vec<_> = check(history, &settings).iter().map(|violation| violation.promise).collect();
        let subject = Subject::new(history, settings.clocks_set_max);
        let mut random = SmallRng::seed_from_u64(seed);
        for mutation in MUTATIONS {
            for tampered in subject.tamper(mutation, &mut random) {
                *tried.entry(mutation).or_default() += 1;
                assert_rejected(seed, mutation, &tampered, &settings, &before);
            }
        }
    }
    println!("{histories} histories, {} of them broken: {tried:?}", tried.values().sum::<usize>());
    for mutation in MUTATIONS {
        assert!(tried.contains_key(&mutation), "{mutation:?} was not tried: {tried:?}");
    }
}

/// `before`: what is excused in the history as it was recorded.
fn assert_rejected(seed: u64, mutation: Mutation, tampered: &History, settings: &Settings, before: &[Promise]) {
    let violations = check(tampered, settings);
    let found = |promise: &&Promise| {
        let count = |promises: &mut dyn Iterator<Item = Promise>| promises.filter(|other| other == *promise).count();
        let after = count(&mut violations.iter().map(|violation| violation.promise));
        after > count(&mut before.iter().copied())
    };
    let seen = mutation.breaks().iter().any(|promise| found(&promise));
    assert!(seen, "KENTONGAN_SEED={seed}: {mutation:?} was accepted: {violations:?}");
}

/// What there is to know of a history.
struct Subject<'h> {
    history: &'h History,
    /// Messages may expire early by it, in nanoseconds.
    clocks_set_max: u64,
    /// Every PUBLISH of each message; none of a will.
    sends: HashMap<MessageId, Vec<usize>>,
    /// When it was acknowledged with success.
    acknowledged: HashMap<MessageId, u64>,
    /// How often each client got each message.
    copies: HashMap<(Symbol, MessageId), usize>,
    /// Clients that shared subscriptions, or asked for RETAIN as published: copies of theirs may have other reasons.
    intricate: HashSet<Symbol>,
    /// Clients of whose messages some were dropped.
    dropped: HashSet<Symbol>,
    /// The newest connection of each client that was accepted, at each event of one of its connections.
    is_newest: Vec<bool>,
}

impl<'h> Subject<'h> {
    fn new(history: &'h History, clocks_set_max: u64) -> Self {
        let mut subject = Self {
            history,
            clocks_set_max,
            sends: HashMap::new(),
            acknowledged: HashMap::new(),
            copies: HashMap::new(),
            intricate: HashSet::new(),
            dropped: HashSet::new(),
            is_newest: Vec::new(),
        };
        let mut newest: HashMap<Symbol, u32> = HashMap::new();
        let mut open: HashMap<(Symbol, u32, u16), MessageId> = HashMap::new();
        for (index, event) in history.events().iter().enumerate() {
            let What::Client { client, connection, ref action, .. } = event.what else {
                if let What::Dropped { client: Some(client), .. } = event.what {
                    subject.dropped.insert(client);
                }
                subject.is_newest.push(false);
                continue;
            };
            match action {
                Action::ConnAck { reason: 0, .. } => drop(newest.insert(client, connection)),
                Action::PublishSent(publish) => {
                    subject.sends.entry(publish.message).or_default().push(index);
                    open.insert((client, connection, publish.packet_id), publish.message);
                }
                Action::PubAckReceived(answer) | Action::PubRecReceived(answer) if answer.reason < 0x80 => {
                    if let Some(message) = open.get(&(client, connection, answer.packet_id)) {
                        subject.acknowledged.entry(*message).or_insert(event.at);
                    }
                }
                Action::Delivered(Delivery { message: Some(message), .. }) => {
                    *subject.copies.entry((client, *message)).or_default() += 1;
                }
                Action::SubscribeSent(subscribe) => {
                    let is_intricate = |subscription: &kentongan_history::Subscription| {
                        subscription.retain_as_published || history.name(subscription.filter).starts_with("$share/")
                    };
                    if subscribe.filters.iter().any(is_intricate) {
                        subject.intricate.insert(client);
                    }
                }
                _ => {}
            }
            subject.is_newest.push(newest.get(&client) == Some(&connection));
        }
        subject
    }

    fn at(&self, event: usize) -> u64 {
        self.history.events()[event].at
    }

    fn of(&self, event: usize) -> Option<(Symbol, u32, &Action)> {
        match &self.history.events()[event].what {
            What::Client { client, connection, action, .. } => Some((*client, *connection, action)),
            _ => None,
        }
    }

    fn delivery(&self, event: usize) -> Option<&Delivery> {
        match self.of(event)?.2 {
            Action::Delivered(delivery) => Some(delivery),
            _ => None,
        }
    }

    /// The only PUBLISH of a message.
    fn only_send(&self, message: MessageId) -> Option<(usize, &Publish)> {
        let &[event] = self.sends.get(&message)?.as_slice() else { return None };
        match self.of(event)?.2 {
            Action::PublishSent(publish) => Some((event, publish)),
            _ => None,
        }
    }

    /// Deliveries for a client's own subscriptions, of messages that were sent once and came to that client once, on the
    /// connection that was its newest.
    fn plain_deliveries(&self) -> Vec<usize> {
        let is_plain = |&event: &usize| {
            let (Some((client, ..)), Some(delivery)) = (self.of(event), self.delivery(event)) else {
                return false;
            };
            let is_only = |message| {
                self.only_send(message).is_some()
                    && self.copies.get(&(client, message)).is_some_and(|&copies| copies == 1)
            };
            !delivery.dup
                && !delivery.retain
                && self.is_newest[event]
                && !self.intricate.contains(&client)
                && delivery.message.is_some_and(is_only)
        };
        (0..self.history.events().len()).filter(is_plain).collect()
    }

    fn tamper(&self, mutation: Mutation, random: &mut SmallRng) -> Vec<History> {
        let plain = self.plain_deliveries();
        let with_qos = || -> Vec<usize> {
            plain.iter().copied().filter(|&at| self.delivery(at).is_some_and(|one| one.qos > 0)).collect()
        };
        let some = |candidates: Vec<usize>, random: &mut SmallRng| -> Vec<usize> {
            candidates.sample(random, TRIES_MAX).copied().collect()
        };
        match mutation {
            Duplicate => some(plain, random).into_iter().map(|at| self.repeated(at, false)).collect(),
            ResentOnLivingConnection => {
                some(with_qos(), random).into_iter().map(|at| self.repeated(at, true)).collect()
            }
            Ghost => {
                let ghost = |at| self.changed(at, |one| one.message = Some(MessageId(u64::MAX)));
                some(plain, random).into_iter().map(ghost).collect()
            }
            WrongTopic => some(plain, random).into_iter().map(|at| self.moved(at)).collect(),
            Swap => {
                let pairs: Vec<_> =
                    self.pairs(&plain).into_iter().filter(|&(one, other)| self.may_swap(one, other)).collect();
                pairs.sample(random, TRIES_MAX).map(|&(one, other)| self.swapped(one, other)).collect()
            }
            Loss | MessageExpiresEarly => {
                let expires = mutation == MessageExpiresEarly;
                let pairs: Vec<_> = self
                    .pairs(&with_qos())
                    .into_iter()
                    .filter(|&(one, other)| self.is_missed(one, other, expires))
                    .collect();
                pairs.sample(random, TRIES_MAX).map(|&(one, _)| self.without(one)).collect()
            }
            SessionExpiresEarly => {
                let candidates: Vec<usize> = self.surely_resumed();
                let anew = |at: usize| {
                    let mut history = self.history.clone();
                    if let What::Client { action: Action::ConnAck { session_present, .. }, .. } =
                        &mut history.events_mut()[at].what
                    {
                        *session_present = false;
                    }
                    history
                };
                some(candidates, random).into_iter().map(anew).collect()
            }
            StaleRetainedRead => {
                let reads = self.stale_reads();
                let stale = |&(at, old): &(usize, MessageId)| {
                    self.changed(at, |one| (one.message, one.expiry) = (Some(old), None))
                };
                reads.sample(random, TRIES_MAX).map(stale).collect()
            }
        }
    }

    // What is surely illegal.

    /// Two deliveries on one connection, the second of a message that its publisher sent later on the same connection, on the
    /// same topic and at the same QoS.
    fn pairs(&self, plain: &[usize]) -> Vec<(usize, usize)> {
        let mut last = HashMap::new();
        let mut pairs = Vec::new();
        for &at in plain {
            let (Some((client, connection, _)), Some(one)) = (self.of(at), self.delivery(at)) else { continue };
            let Some((sent, publish)) = one.message.and_then(|message| self.only_send(message)) else { continue };
            let Some((publisher, from, _)) = self.of(sent) else { continue };
            let key = (client, connection, publisher, from, publish.topic, publish.qos, one.qos);
            if let Some(before) = last.insert(key, at)
                && self.sent_at(before).is_some_and(|earlier| earlier < sent)
            {
                pairs.push((before, at));
            }
        }
        pairs
    }

    /// The event of the PUBLISH that a delivery is of.
    fn sent_at(&self, delivery: usize) -> Option<usize> {
        Some(self.only_send(self.delivery(delivery)?.message?)?.0)
    }

    /// Both were sent before either came.
    fn may_swap(&self, one: usize, other: usize) -> bool {
        self.sent_at(other).is_some_and(|sent| sent < one)
    }

    /// The first was acknowledged to its publisher, and a subscription that was acknowledged before it was sent stood until
    /// the second came: had it not come by then, it would never have. `expires`: it would have expired later than that.
    fn is_missed(&self, one: usize, other: usize, expires: bool) -> bool {
        let Some((client, connection, _)) = self.of(one) else { return false };
        let Some((sent, publish)) = self.delivery(one).and_then(|one| self.only_send(one.message?)) else {
            return false;
        };
        let lasts = match publish.expiry {
            None => !expires,
            Some(expiry) => {
                expires && self.at(other) + self.clocks_set_max < self.at(sent) + u64::from(expiry) * SECOND / 2
            }
        };
        let publisher = self.of(sent).map(|(publisher, ..)| publisher);
        lasts
            && !publish.empty
            && publisher != Some(client)
            && !self.dropped.contains(&client)
            && self.acknowledged.contains_key(&publish.message)
            && self.stands(client, connection, publish.topic, sent, other)
    }

    /// Whether a SUBSCRIBE of that connection was granted QoS 1 or 2 for the topic before `from`, and nothing that the client sent
    /// touches subscriptions that match it between the SUBSCRIBE and `until`. A CONNECT before that which was not accepted leaves it
    /// open whether the session is another one.
    fn stands(&self, client: Symbol, connection: u32, topic: Symbol, from: usize, until: usize) -> bool {
        let matches = |filter: &Symbol| matching::matches(self.history.name(*filter), self.history.name(topic));
        let mut asked = None;
        let mut granted = false;
        let mut unanswered = HashSet::new();
        // What was sent in the same instant may have been sent before, by the checker's clock.
        let in_time = |&event: &usize| event < until || self.at(event) == self.at(until);
        for event in (0..self.history.events().len()).take_while(in_time) {
            let Some((_, of, action)) = self.of(event).filter(|(other, ..)| *other == client) else { continue };
            match action {
                Action::ConnectSent(_) => drop(unanswered.insert(of)),
                Action::ConnAck { reason: 0, .. } => drop(unanswered.remove(&of)),
                _ => {}
            }
            if of != connection {
                continue;
            }
            match action {
                Action::SubscribeSent(subscribe) => {
                    let hit = subscribe.filters.iter().position(|one| matches(&one.filter));
                    if let Some(position) = hit {
                        // A second one would leave it open which of the two grants what.
                        if granted && event > from {
                            return false;
                        }
                        let only = subscribe.filters.iter().filter(|one| matches(&one.filter)).count() == 1;
                        asked = only.then_some((subscribe.packet_id, position));
                        granted = false;
                    }
                }
                Action::SubAck { packet_id, reasons } => {
                    if let Some((asked_id, position)) = asked
                        && asked_id == *packet_id
                        && self.at(event) < self.at(from)
                    {
                        granted = reasons.get(position).is_some_and(|&reason| matches!(reason, 1 | 2));
                    }
                }
                Action::UnsubscribeSent { filters, .. } if filters.iter().any(matches) => {
                    (asked, granted) = (None, false);
                }
                _ => {}
            }
        }
        granted && unanswered.is_empty()
    }

    /// CONNACKs of sessions that never expire, of clients of whom every CONNECT was accepted and was sent after the CONNACK
    /// before it.
    fn surely_resumed(&self) -> Vec<usize> {
        #[derive(Default)]
        struct Seen {
            lasts: bool,
            asked: Option<(bool, bool)>,
            doubtful: bool,
        }
        let mut seen: HashMap<Symbol, Seen> = HashMap::new();
        let mut found = Vec::new();
        for event in 0..self.history.events().len() {
            let Some((client, _, action)) = self.of(event) else { continue };
            let seen = seen.entry(client).or_default();
            match action {
                Action::ConnectSent(connect) => {
                    seen.doubtful |= seen.asked.is_some();
                    seen.asked = Some((connect.clean_start, connect.session_expiry == u32::MAX));
                }
                Action::ConnAck { reason: 0, session_present, .. } => {
                    let Some((clean_start, lasts)) = seen.asked.take() else { continue };
                    if *session_present && seen.lasts && !clean_start && !seen.doubtful {
                        found.push(event);
                    }
                    seen.lasts = lasts;
                }
                Action::ConnAck { .. } => seen.doubtful = true,
                Action::DisconnectSent { session_expiry: Some(_), .. } => seen.doubtful = true,
                _ => {}
            }
        }
        found
    }

    /// Retained messages that the first SUBSCRIBE of a session got, each with one that had been replaced for sure before.
    fn stale_reads(&self) -> Vec<(usize, MessageId)> {
        let is_write = |message: &MessageId| {
            let (sent, publish) = self.only_send(*message)?;
            let written_at = *self.acknowledged.get(message)?;
            (publish.retain && !publish.empty).then_some((*message, self.at(sent), written_at, publish))
        };
        let mut writes: Vec<_> = self.sends.keys().filter_map(is_write).collect();
        writes.sort_unstable_by_key(|write| write.0);
        let mut fresh: HashMap<(Symbol, u32), Option<u64>> = HashMap::new();
        let mut found = Vec::new();
        for event in 0..self.history.events().len() {
            let Some((client, connection, action)) = self.of(event) else { continue };
            match action {
                Action::ConnAck { reason: 0, session_present: false, .. } => {
                    fresh.insert((client, connection), None);
                }
                Action::SubscribeSent(_) => match fresh.get_mut(&(client, connection)) {
                    Some(first @ None) => *first = Some(self.at(event)),
                    // Which SUBSCRIBE a copy is for is open from here on.
                    Some(Some(_)) => drop(fresh.remove(&(client, connection))),
                    None => {}
                },
                Action::Delivered(one) if one.retain && !one.dup && !self.intricate.contains(&client) => {
                    let Some(Some(since)) = fresh.get(&(client, connection)) else { continue };
                    let is_stale = |&&(message, _, written_at, publish): &&(MessageId, u64, u64, &Publish)| {
                        publish.topic == one.topic
                            && publish.qos >= one.qos
                            && !self.copies.contains_key(&(client, message))
                            && publish.expiry.is_none()
                            && writes.iter().any(|&(_, sent_at, acknowledged_at, later)| {
                                later.topic == publish.topic && written_at < sent_at && acknowledged_at < *since
                            })
                    };
                    found.extend(writes.iter().find(is_stale).map(|write| (event, write.0)));
                }
                _ => {}
            }
        }
        found
    }

    // The changes.

    fn changed(&self, at: usize, change: impl FnOnce(&mut Delivery)) -> History {
        let mut history = self.history.clone();
        if let What::Client { action: Action::Delivered(one), .. } = &mut history.events_mut()[at].what {
            change(one);
        }
        history
    }

    fn moved(&self, at: usize) -> History {
        let mut history = self.history.clone();
        let elsewhere = history.symbol("another/topic");
        if let What::Client { action: Action::Delivered(one), .. } = &mut history.events_mut()[at].what {
            one.topic = elsewhere;
        }
        history
    }

    fn repeated(&self, at: usize, dup: bool) -> History {
        let mut history = self.history.clone();
        let mut again: Event = history.events()[at].clone();
        if let What::Client { action: Action::Delivered(one), .. } = &mut again.what {
            one.dup = dup;
            if one.qos > 0 && !dup {
                // As a node would send it that forgot.
                one.packet_id = 60_000;
            }
        }
        history.events_mut().insert(at + 1, again);
        history
    }

    fn without(&self, at: usize) -> History {
        let mut history = self.history.clone();
        history.events_mut().remove(at);
        history
    }

    fn swapped(&self, one: usize, other: usize) -> History {
        let of = |at| self.delivery(at).map(|delivery| (delivery.message, delivery.expiry));
        let (Some(first), Some(second)) = (of(one), of(other)) else { return self.history.clone() };
        let mut history = self.history.clone();
        for (at, what) in [(one, second), (other, first)] {
            if let What::Client { action: Action::Delivered(delivery), .. } = &mut history.events_mut()[at].what {
                (delivery.message, delivery.expiry) = what;
            }
        }
        history
    }
}
