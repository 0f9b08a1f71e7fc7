//! The checker is itself checked: a history of the model, broken once in a way that is surely illegal, is rejected.
//!
//! Whether a mutation is illegal is decided here, from what the model knows and from the packets, never by the checker.

use std::collections::{BTreeMap, HashMap, HashSet};

use kentongan_history::model::{DeliveryFact, Random, Recording};
use kentongan_history::{
    Action, Delivery, History, MessageId, Nanoseconds, Promise, Publish, SECOND, Symbol, What, check, model,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mutation {
    Loss,
    Duplicate,
    ResentOnLivingConnection,
    Swap,
    NeverPublished,
    Refused,
    WrongTopic,
    SessionExpiresEarly,
    MessageExpiresEarly,
    StaleRetainedRead,
}

use Mutation::*;
const MUTATIONS: [Mutation; 10] = [
    Loss,
    Duplicate,
    ResentOnLivingConnection,
    Swap,
    NeverPublished,
    Refused,
    WrongTopic,
    SessionExpiresEarly,
    MessageExpiresEarly,
    StaleRetainedRead,
];

impl Mutation {
    /// The promises of which at least one must be found broken.
    fn breaks(self) -> &'static [Promise] {
        match self {
            Loss | MessageExpiresEarly => &[Promise::P1],
            Duplicate => &[Promise::P3, Promise::P4, Promise::P9],
            ResentOnLivingConnection => &[Promise::P4],
            Swap => &[Promise::P5],
            NeverPublished | Refused | WrongTopic => &[Promise::P2],
            SessionExpiresEarly => &[Promise::P8, Promise::P10],
            StaleRetainedRead => &[Promise::P6],
        }
    }
}

/// One loss, duplicate, swap, ghost, early expiry or stale retained read, and the checker sees it: a thousand times.
#[test]
fn a_history_that_is_broken_once_is_rejected() {
    let mut counts: BTreeMap<Mutation, u32> = BTreeMap::new();
    let mut seed = 0;
    while counts.values().sum::<u32>() < 1_000 {
        let mutation = MUTATIONS[seed as usize % MUTATIONS.len()];
        let recording = model::record(seed, 700);
        if let Some(history) = Subject::new(&recording).mutate(mutation, &mut Random::new(seed)) {
            *counts.entry(mutation).or_default() += 1;
            let violations = check(&history, &model::settings());
            let seen = violations.iter().any(|violation| mutation.breaks().contains(&violation.promise));
            assert!(seen, "seed {seed}: {mutation:?} was accepted: {violations:?}");
        }
        seed += 1;
        assert!(seed < 20_000, "too few candidates: {counts:?}");
    }
    println!("{seed} histories: {counts:?}");
    for mutation in MUTATIONS {
        assert!(counts.get(&mutation).is_some_and(|&count| count >= 5), "{mutation:?} hardly tried: {counts:?}");
    }
}

/// What a mutation needs to know of a recording.
struct Subject<'r> {
    recording: &'r Recording,
    /// Every PUBLISH of each message: index of the event.
    sends: HashMap<MessageId, Vec<usize>>,
    /// When each message was acknowledged with success, and whether one try was refused.
    acknowledged: HashMap<MessageId, Nanoseconds>,
    refused: HashSet<MessageId>,
    /// Clients that ever subscribed as members of a group, or with Retain As Published.
    intricate: HashSet<Symbol>,
    /// Clients of which a metric counted drops; of unknown ones: nobody is judged.
    dropped: HashSet<Symbol>,
    dropped_of_any: bool,
}

impl<'r> Subject<'r> {
    fn new(recording: &'r Recording) -> Self {
        let mut subject = Self {
            recording,
            sends: HashMap::new(),
            acknowledged: HashMap::new(),
            refused: HashSet::new(),
            intricate: HashSet::new(),
            dropped: HashSet::new(),
            dropped_of_any: false,
        };
        let mut open: HashMap<(Symbol, u32, u16), MessageId> = HashMap::new();
        let history = &recording.history;
        for (index, event) in history.events().iter().enumerate() {
            if let What::Dropped { client, .. } = event.what {
                subject.dropped.extend(client);
                subject.dropped_of_any |= client.is_none();
            }
            let What::Client { client, connection, ref action, .. } = event.what else { continue };
            match action {
                Action::PublishSent(publish) => {
                    subject.sends.entry(publish.message).or_default().push(index);
                    open.insert((client, connection, publish.packet_id), publish.message);
                }
                Action::PubAckReceived(answer) | Action::PubRecReceived(answer) => {
                    let Some(&message) = open.get(&(client, connection, answer.packet_id)) else { continue };
                    if answer.reason < 0x80 {
                        subject.acknowledged.entry(message).or_insert(event.at);
                    } else {
                        subject.refused.insert(message);
                    }
                }
                Action::SubscribeSent(subscribe) => {
                    let intricate = subscribe.filters.iter().any(|subscription| {
                        subscription.retain_as_published || history.name(subscription.filter).starts_with("$share/")
                    });
                    if intricate {
                        subject.intricate.insert(client);
                    }
                }
                _ => {}
            }
        }
        subject
    }

    fn mutate(&self, mutation: Mutation, random: &mut Random) -> Option<History> {
        let mut history = self.recording.history.clone();
        let mut facts = self.recording.deliveries.clone();
        // A different one each time.
        for index in (1..facts.len()).rev() {
            facts.swap(index, random.below(index as u64 + 1) as usize);
        }
        let done = match mutation {
            Loss => self.lose(&facts, &mut history),
            Duplicate => self.duplicate(&facts, &mut history, false),
            ResentOnLivingConnection => self.duplicate(&facts, &mut history, true),
            Swap => self.swap(&facts, &mut history),
            NeverPublished => {
                facts.iter().filter(|fact| fact.message.is_some()).map(|fact| fact.event).next().map(|event| {
                    delivery_mut(&mut history, event).message = Some(MessageId(u64::MAX));
                })
            }
            Refused => self.deliver_refused(&facts, &mut history),
            WrongTopic => facts.iter().find(|fact| fact.message.is_some()).map(|fact| {
                let elsewhere = history.symbol("another/topic");
                delivery_mut(&mut history, fact.event).topic = elsewhere;
            }),
            SessionExpiresEarly => self.forget_session(random, &mut history),
            MessageExpiresEarly => self.expire_early(&facts, &mut history),
            StaleRetainedRead => self.read_stale(&facts, &mut history),
        };
        done.map(|()| history)
    }

    // What the events say.

    fn client(&self, event: usize) -> (Symbol, u32) {
        match self.recording.history.events()[event].what {
            What::Client { client, connection, .. } => (client, connection),
            _ => unreachable!("facts are of clients' events"),
        }
    }

    fn at(&self, event: usize) -> Nanoseconds {
        self.recording.history.events()[event].at
    }

    fn delivery(&self, fact: &DeliveryFact) -> &Delivery {
        match &self.recording.history.events()[fact.event].what {
            What::Client { action: Action::Delivered(delivery), .. } => delivery,
            _ => unreachable!("facts are of deliveries"),
        }
    }

    /// The only PUBLISH of a message; none if there are more, or it is a will.
    fn only_send(&self, message: MessageId) -> Option<(usize, &Publish)> {
        let &[event] = self.sends.get(&message)?.as_slice() else { return None };
        match &self.recording.history.events()[event].what {
            What::Client { action: Action::PublishSent(publish), .. } => Some((event, publish)),
            _ => None,
        }
    }

    /// The deliveries of one message in one session, if they are all the same copy.
    fn whole_copy(&self, fact: &DeliveryFact) -> Option<Vec<usize>> {
        let same = |other: &&DeliveryFact| other.session == fact.session && other.message == fact.message;
        let all: Vec<_> = self.recording.deliveries.iter().filter(same).collect();
        all.iter().all(|other| other.copy == fact.copy).then(|| all.iter().map(|other| other.event).collect())
    }

    /// A copy for a session's own subscriptions, sent for the first time, of a message that was sent once.
    fn is_plain(&self, fact: &DeliveryFact) -> bool {
        let first = self.recording.deliveries.iter().find(|other| other.copy == fact.copy);
        first == Some(fact)
            && !fact.shared
            && fact.read_since.is_none()
            && !self.delivery(fact).dup
            && !self.delivery(fact).retain
            && !self.intricate.contains(&self.client(fact.event).0)
            && fact.message.is_some_and(|message| self.only_send(message).is_some())
    }

    /// Owed for sure, and no counted drop can excuse its absence.
    fn is_owed(&self, fact: &DeliveryFact) -> bool {
        fact.owed
            && !fact.shared
            && fact.read_since.is_none()
            && !self.dropped_of_any
            && !self.dropped.contains(&self.client(fact.event).0)
            && self.delivery(fact).qos > 0
            && fact
                .message
                .is_some_and(|message| self.acknowledged.contains_key(&message) && self.only_send(message).is_some())
            && self.recording.settled_sessions.contains(&fact.session)
    }

    // The mutations.

    fn lose(&self, facts: &[DeliveryFact], history: &mut History) -> Option<()> {
        let never_expires = |fact: &DeliveryFact| {
            let send = fact.message.and_then(|message| self.only_send(message));
            send.is_some_and(|(_, publish)| publish.expiry.is_none() && !publish.empty)
        };
        let candidates = facts.iter().filter(|fact| self.is_owed(fact) && never_expires(fact));
        let copy = candidates.filter_map(|fact| self.whole_copy(fact)).next()?;
        remove(history, &copy);
        Some(())
    }

    fn expire_early(&self, facts: &[DeliveryFact], history: &mut History) -> Option<()> {
        // Gone before a later message of the same publisher, topic and QoS came, within the lifetime of the first.
        let seen_too_early = |fact: &DeliveryFact| {
            let (sent, publish) = self.only_send(fact.message?)?;
            let expires_at = self.at(sent) + u64::from(publish.expiry?) * SECOND;
            self.recording.deliveries.iter().find(|later| {
                self.is_plain(later)
                    && later.session == fact.session
                    && self.at(later.event) < expires_at
                    && self.delivery(later).qos > 0
                    && self.follows(fact, later)
            })
        };
        let candidates = facts.iter().filter(|fact| self.is_owed(fact) && seen_too_early(fact).is_some());
        let copy = candidates.filter_map(|fact| self.whole_copy(fact)).next()?;
        remove(history, &copy);
        Some(())
    }

    /// Whether the second message was sent after the first: same connection, topic and QoS.
    fn follows(&self, first: &DeliveryFact, second: &DeliveryFact) -> bool {
        let send = |fact: &DeliveryFact| fact.message.and_then(|message| self.only_send(message));
        let (Some((one, first)), Some((two, second))) = (send(first), send(second)) else { return false };
        one < two
            && self.client(one) == self.client(two)
            && (first.topic, first.qos) == (second.topic, second.qos)
            && !first.empty
            && !second.empty
    }

    fn duplicate(&self, facts: &[DeliveryFact], history: &mut History, dup: bool) -> Option<()> {
        let fact = facts.iter().find(|fact| self.is_plain(fact) && (!dup || self.delivery(fact).qos > 0))?;
        let mut event = history.events()[fact.event].clone();
        if let What::Client { action: Action::Delivered(delivery), .. } = &mut event.what {
            delivery.dup = dup;
            if delivery.qos > 0 && !dup {
                delivery.packet_id = 60_000;
            }
        }
        history.events_mut().insert(fact.event + 1, event);
        Some(())
    }

    fn swap(&self, facts: &[DeliveryFact], history: &mut History) -> Option<()> {
        for one in facts.iter().filter(|fact| self.is_plain(fact)) {
            let other = facts.iter().find(|other| {
                self.is_plain(other)
                    && one.session == other.session
                    && one.event < other.event
                    && self.client(one.event) == self.client(other.event)
                    && self.delivery(one).qos == self.delivery(other).qos
                    && self.follows(one, other)
                    && self.sends[&other.message.expect("a plain copy has a number")][0] < one.event
            });
            if let Some(other) = other {
                let (first, second) = (self.delivery(one), self.delivery(other));
                let (first, second) = ((first.message, first.expiry), (second.message, second.expiry));
                let delivery = delivery_mut(history, one.event);
                (delivery.message, delivery.expiry) = second;
                let delivery = delivery_mut(history, other.event);
                (delivery.message, delivery.expiry) = first;
                return Some(());
            }
        }
        None
    }

    fn deliver_refused(&self, facts: &[DeliveryFact], history: &mut History) -> Option<()> {
        for &message in &self.refused {
            let Some((sent, publish)) = self.only_send(message) else { continue };
            let fact = facts.iter().find(|fact| fact.event > sent && self.delivery(fact).topic == publish.topic);
            if let Some(fact) = fact {
                delivery_mut(history, fact.event).message = Some(message);
                return Some(());
            }
        }
        None
    }

    fn forget_session(&self, random: &mut Random, history: &mut History) -> Option<()> {
        let disturbed = |what: &What| matches!(what, What::NodeCrashed { .. } | What::FaultBegan { .. });
        if history.events().iter().any(|event| disturbed(&event.what)) {
            return None;
        }
        #[derive(Default)]
        struct Seen {
            connect: Option<(u32, bool, u32)>,
            accepted: u32,
            expiry: u32,
            closed_at: Option<Nanoseconds>,
            doubtful: bool,
        }
        let mut clients: HashMap<Symbol, Seen> = HashMap::new();
        let mut candidates = Vec::new();
        for (index, event) in history.events().iter().enumerate() {
            let What::Client { client, connection, ref action, .. } = event.what else { continue };
            let seen = clients.entry(client).or_default();
            match action {
                Action::ConnectSent(connect) => {
                    seen.doubtful |= seen.connect.is_some();
                    seen.connect = Some((connection, connect.clean_start, connect.session_expiry));
                }
                Action::ConnAck { session_present, .. } => {
                    let Some((_, _, expiry)) = seen.connect.take() else { continue };
                    let lives = seen.closed_at.is_some_and(|closed_at| {
                        seen.expiry == u32::MAX || event.at + 3 * SECOND < closed_at + u64::from(seen.expiry) * SECOND
                    });
                    if *session_present && lives && !seen.doubtful {
                        candidates.push(index);
                    }
                    (seen.accepted, seen.expiry, seen.closed_at) = (connection, expiry, None);
                }
                Action::DisconnectSent { session_expiry: Some(_), .. } => seen.doubtful = true,
                Action::ConnectionClosed { .. } => {
                    seen.doubtful |= connection != seen.accepted;
                    seen.closed_at = Some(event.at);
                }
                _ => {}
            }
        }
        let &index = candidates.get(random.below(candidates.len().max(1) as u64) as usize)?;
        if let What::Client { action: Action::ConnAck { session_present, .. }, .. } =
            &mut history.events_mut()[index].what
        {
            *session_present = false;
        }
        Some(())
    }

    fn read_stale(&self, facts: &[DeliveryFact], history: &mut History) -> Option<()> {
        let retained = |message: &MessageId| {
            let (sent, publish) = self.only_send(*message)?;
            let acknowledged_at = *self.acknowledged.get(message)?;
            publish.retain.then_some((*message, self.at(sent), acknowledged_at, publish))
        };
        let mut writes: Vec<_> = self.sends.keys().filter_map(retained).collect();
        writes.sort_by_key(|write| write.0);
        let plain =
            |fact: &&DeliveryFact| !self.delivery(fact).dup && !self.intricate.contains(&self.client(fact.event).0);
        for fact in facts.iter().filter(|fact| fact.first_read).filter(plain) {
            let delivery = self.delivery(fact);
            let since = fact.read_since?;
            let stale = writes.iter().find(|&&(message, _, written_at, publish)| {
                publish.topic == delivery.topic
                    && publish.qos == delivery.qos
                    && !publish.empty
                    && fact.message != Some(message)
                    && self.recording.deliveries.iter().all(|other| {
                        other.session != fact.session || other.message != Some(message)
                    })
                    // Replaced, for sure, before the SUBSCRIBE was sent.
                    && writes.iter().any(|&(_, sent_at, acknowledged_at, later)| {
                        later.topic == publish.topic && written_at < sent_at && acknowledged_at < since
                    })
            });
            if let Some(stale) = stale {
                let stale = stale.0;
                let delivery = delivery_mut(history, fact.event);
                (delivery.message, delivery.expiry) = (Some(stale), None);
                return Some(());
            }
        }
        None
    }
}

fn delivery_mut(history: &mut History, event: usize) -> &mut Delivery {
    match &mut history.events_mut()[event].what {
        What::Client { action: Action::Delivered(delivery), .. } => delivery,
        _ => unreachable!("facts are of deliveries"),
    }
}

fn remove(history: &mut History, events: &[usize]) {
    let mut index = 0;
    history.events_mut().retain(|_| {
        index += 1;
        !events.contains(&(index - 1))
    });
}
