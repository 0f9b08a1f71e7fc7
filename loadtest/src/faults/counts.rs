//! What a history shows beside broken promises: how much was done, and how long it took to recover.

use std::collections::{BTreeSet, HashMap, HashSet};

use kentongan_history::{Action, Answer, History, MessageId, Nanoseconds, Publish, SECOND, Symbol, What, matching};
use serde::{Deserialize, Serialize};

use super::schedule::Fault;

/// Of a subscription that is tried hard, a publish follows its SUBACK within this.
const SOON: Nanoseconds = SECOND / 100;

/// After a heal it may still take so long until all is as before.
const AFTERWARDS: Nanoseconds = 10 * SECOND;

/// A message that waits longer for its acknowledgement is not served as usual.
const SLOW: Nanoseconds = SECOND;

/// A fault as it happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mark {
    /// Which one.
    pub fault: Fault,
    /// For people.
    pub what: String,
    /// When it began.
    pub began: Nanoseconds,
    /// When it ended.
    pub healed: Nanoseconds,
    /// The nodes that could not serve meanwhile, whatever they do.
    pub victims: Vec<u16>,
}

/// How much was done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// QoS 1 and 2 messages that were acknowledged.
    pub acknowledged: u64,
    /// Deliveries of QoS 1 and 2, each message once for each client.
    pub delivered: u64,
    /// Deliveries with DUP of what the client had seen before, which a break excuses.
    pub duplicated: u64,
    /// Connections that were taken over.
    pub takeovers: u64,
    /// Will Messages that were published.
    pub wills: u64,
    /// SUBSCRIBEs with a matching publish within 10 ms of the SUBACK.
    pub tight_subscribes: u64,
    /// Kinds of sessions that were there.
    pub kinds: BTreeSet<String>,
}

/// The same during one fault, and how long it took to recover.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Episode {
    /// The fault.
    pub mark: Mark,
    /// QoS 1 and 2 messages that were acknowledged from its beginning to that of the next.
    pub acknowledged: u64,
    /// Deliveries in that time.
    pub delivered: u64,
    /// Deliveries with DUP of what the client had seen before.
    pub duplicated: u64,
    /// How long after its beginning a message still waited more than a second for its acknowledgement, at a node that was not
    /// a victim; if none did, the longest wait. None if nothing was sent there.
    pub recovered: Option<Nanoseconds>,
}

impl Counts {
    /// Adds what was done elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.duplicated += other.duplicated;
        self.takeovers += other.takeovers;
        self.wills += other.wills;
        self.tight_subscribes += other.tight_subscribes;
        self.kinds.extend(other.kinds.iter().cloned());
    }
}

/// A message at QoS 1 or 2 on one connection.
struct Wait {
    packet_id: u16,
    message: MessageId,
    node: u16,
    from: Nanoseconds,
    /// When it was acknowledged, or the connection was over.
    to: Nanoseconds,
    /// The client listened all the time.
    heard: bool,
}

/// Reads a history once.
struct Reader<'h> {
    history: &'h History,
    counts: Counts,
    /// Messages without an answer, by client and connection.
    waiting: HashMap<(Symbol, u32), Vec<Wait>>,
    waited: Vec<Wait>,
    acknowledged: HashSet<MessageId>,
    seen: HashSet<(Symbol, MessageId)>,
    /// By client and connection.
    open: HashSet<(Symbol, u32)>,
    wills: HashSet<MessageId>,
    subscribing: HashMap<(Symbol, u32, u16), Vec<Symbol>>,
    subscribed: Vec<(Nanoseconds, Vec<Symbol>)>,
    episodes: Vec<Episode>,
    current: Option<usize>,
}

/// What a history shows of these faults, which come in the order of their beginning.
pub fn read(history: &History, marks: Vec<Mark>) -> (Counts, Vec<Episode>) {
    let episode = |mark| Episode { mark, acknowledged: 0, delivered: 0, duplicated: 0, recovered: None };
    let mut reader = Reader {
        history,
        counts: Counts::default(),
        waiting: HashMap::new(),
        waited: Vec::new(),
        acknowledged: HashSet::new(),
        seen: HashSet::new(),
        open: HashSet::new(),
        wills: HashSet::new(),
        subscribing: HashMap::new(),
        subscribed: Vec::new(),
        episodes: marks.into_iter().map(episode).collect(),
        current: None,
    };
    for event in history.events() {
        let next = reader.current.map_or(0, |current| current + 1);
        if reader.episodes.get(next).is_some_and(|episode| episode.mark.began <= event.at) {
            reader.current = Some(next);
        }
        if let What::Client { client, connection, node, action } = &event.what {
            reader.on_action(event.at, (*client, *connection), *node, action);
        }
    }
    reader.measure_recovery();
    (reader.counts, reader.episodes)
}

impl Reader<'_> {
    fn on_action(&mut self, at: Nanoseconds, who: (Symbol, u32), node: u16, action: &Action) {
        let exchange = |packet_id: u16| (who.0, who.1, packet_id);
        match action {
            Action::ConnectSent(connect) => {
                let kind = match connect.session_expiry {
                    0 => "transient",
                    1..60 => "expiring",
                    60..u32::MAX => "persistent",
                    u32::MAX => "persistent of MQTT 3.1.1",
                };
                self.counts.kinds.insert(kind.into());
            }
            Action::ConnAck { reason: 0, .. } => {
                self.counts.takeovers += u64::from(self.open.iter().any(|&(client, _)| client == who.0));
                self.open.insert(who);
            }
            Action::ConnectionClosed { .. } | Action::DisconnectSent { .. } => {
                self.open.remove(&who);
                self.on_end(at, who);
            }
            Action::PublishSent(publish) if publish.qos > 0 => {
                let Publish { packet_id, message, .. } = *publish;
                let wait = Wait { packet_id, message, node, from: at, to: at, heard: true };
                self.waiting.entry(who).or_default().push(wait);
                self.on_published(at, publish.topic);
            }
            Action::PubAckReceived(answer) | Action::PubRecReceived(answer) => self.on_answer(at, who, *answer),
            Action::SubscribeSent(subscribe) => {
                let filters = subscribe.filters.iter().map(|one| one.filter).collect();
                self.subscribing.insert(exchange(subscribe.packet_id), filters);
            }
            Action::SubAck { packet_id, .. } => {
                if let Some(filters) = self.subscribing.remove(&exchange(*packet_id)) {
                    self.subscribed.push((at, filters));
                }
            }
            Action::Delivered(delivery) => {
                if let Some(message) = delivery.message
                    && self.history.name(delivery.topic).starts_with("w/")
                    && self.wills.insert(message)
                {
                    self.counts.wills += 1;
                }
                // A retained copy is no second delivery.
                if delivery.qos > 0
                    && !delivery.retain
                    && let Some(message) = delivery.message
                {
                    self.on_delivered(who.0, message, delivery.dup);
                }
            }
            _ => {}
        }
    }

    fn on_answer(&mut self, at: Nanoseconds, who: (Symbol, u32), answer: Answer) {
        let Some(waiting) = self.waiting.get_mut(&who) else {
            return;
        };
        let Some(place) = waiting.iter().position(|wait| wait.packet_id == answer.packet_id) else {
            return;
        };
        let wait = Wait { to: at, ..waiting.swap_remove(place) };
        if answer.reason < 0x80 && self.acknowledged.insert(wait.message) {
            self.counts.acknowledged += 1;
            self.in_episode(|episode| episode.acknowledged += 1);
        }
        self.waited.extend(Some(wait).filter(|wait| wait.heard));
    }

    fn on_end(&mut self, at: Nanoseconds, who: (Symbol, u32)) {
        // Until a connection that was taken over ends, its client listens to nothing else.
        if self.open.iter().any(|&(client, _)| client == who.0) {
            let of_client = self.waiting.iter_mut().filter(|((client, _), _)| *client == who.0);
            of_client.flat_map(|(_, waiting)| waiting).for_each(|wait| wait.heard = false);
        }
        let left = self.waiting.remove(&who).unwrap_or_default();
        let left = left.into_iter().filter(|wait| wait.heard);
        self.waited.extend(left.map(|wait| Wait { to: at, ..wait }));
    }

    /// Without DUP, what was seen before is the copy of another subscription.
    fn on_delivered(&mut self, client: Symbol, message: MessageId, dup: bool) {
        if self.seen.insert((client, message)) {
            self.counts.delivered += 1;
            self.in_episode(|episode| episode.delivered += 1);
        } else if dup {
            self.counts.duplicated += 1;
            self.in_episode(|episode| episode.duplicated += 1);
        }
    }

    fn on_published(&mut self, at: Nanoseconds, topic: Symbol) {
        self.subscribed.retain(|(since, _)| since + SOON >= at);
        let (history, topic) = (self.history, self.history.name(topic));
        let matches = |filter: &Symbol| {
            let filter = history.name(*filter);
            matching::matches(matching::split_share(filter).map_or(filter, |(_, inner)| inner), topic)
        };
        let before = self.subscribed.len();
        self.subscribed.retain(|(_, filters)| !filters.iter().any(matches));
        self.counts.tight_subscribes += (before - self.subscribed.len()) as u64;
    }

    fn in_episode(&mut self, add: impl FnOnce(&mut Episode)) {
        if let Some(episode) = self.current.and_then(|current| self.episodes.get_mut(current)) {
            add(episode);
        }
    }

    fn measure_recovery(&mut self) {
        let begins: Vec<_> = self.episodes.iter().map(|episode| episode.mark.began).collect();
        let nexts = begins.into_iter().skip(1).chain([Nanoseconds::MAX]);
        for (episode, next) in self.episodes.iter_mut().zip(nexts) {
            let Mark { began, healed, ref victims, .. } = episode.mark;
            // What the next fault does is not this one's.
            let until = next.min(healed + AFTERWARDS);
            let concerned = |wait: &&Wait| wait.from < until && wait.to > began && !victims.contains(&wait.node);
            let after = |wait: &Wait| {
                let to = wait.to.min(until);
                let waited = to.saturating_sub(wait.from.max(began));
                if waited > SLOW { to - began } else { waited }
            };
            episode.recovered = self.waited.iter().filter(concerned).map(after).max();
        }
    }
}

#[cfg(test)]
mod tests {
    use kentongan_history::{ClosedBy, Connect, Delivery, Subscribe, Subscription};

    use super::*;

    /// A history of client `c` on node 0, in milliseconds.
    #[derive(Default)]
    struct Told(History);

    impl Told {
        fn does(&mut self, ms: u64, connection: u32, action: Action) {
            let client = self.0.symbol("c");
            self.0.push_client(ms * 1_000_000, client, connection, 0, action);
        }

        fn connects(&mut self, ms: u64, connection: u32) {
            let connect = Connect { clean_start: false, session_expiry: 0, will: None };
            self.does(ms, connection, Action::ConnectSent(Box::new(connect)));
            let accepted = Action::ConnAck { reason: 0, session_present: false, session_expiry: None };
            self.does(ms, connection, accepted);
        }

        fn publishes(&mut self, ms: u64, connection: u32, number: u16) {
            let topic = self.0.symbol("t/1");
            let (packet_id, message) = (number, MessageId(number.into()));
            let publish =
                Publish { packet_id, dup: false, qos: 1, retain: false, topic, expiry: None, message, empty: false };
            self.does(ms, connection, Action::PublishSent(publish));
        }

        fn is_answered(&mut self, ms: u64, connection: u32, packet_id: u16, reason: u8) {
            self.does(ms, connection, Action::PubAckReceived(Answer { packet_id, reason }));
        }

        fn receives(&mut self, ms: u64, topic: &str, number: u64, dup: bool) {
            let topic = self.0.symbol(topic);
            let message = Some(MessageId(number));
            let identifiers = Box::default();
            let delivery =
                Delivery { packet_id: 1, dup, qos: 1, retain: false, topic, message, expiry: None, identifiers };
            self.does(ms, 1, Action::Delivered(delivery));
        }

        fn subscribes(&mut self, ms: u64, filter: &str) {
            let filter = self.0.symbol(filter);
            let subscription =
                Subscription { filter, qos: 1, no_local: false, retain_as_published: false, retain_handling: 0 };
            let subscribe = Subscribe { packet_id: 9, filters: vec![subscription] };
            self.does(ms, 1, Action::SubscribeSent(Box::new(subscribe)));
            self.does(ms, 1, Action::SubAck { packet_id: 9, reasons: Box::new([1]) });
        }
    }

    #[test]
    fn what_was_done_is_counted() {
        let mut told = Told::default();
        told.connects(0, 1);
        told.subscribes(10, "t/#");
        told.publishes(15, 1, 1);
        told.is_answered(16, 1, 1, 0);
        told.publishes(17, 1, 2);
        told.is_answered(18, 1, 2, 0x97);
        told.subscribes(20, "$share/s/t/+");
        told.publishes(40, 1, 3);
        for dup in [false, false, true] {
            told.receives(41, "t/1", 1, dup);
            told.receives(41, "w/x", 7, dup);
        }
        told.connects(50, 2);
        told.does(51, 1, Action::ConnectionClosed { by: ClosedBy::Server });
        told.connects(60, 3);
        told.does(61, 3, Action::ConnectionClosed { by: ClosedBy::Client });
        told.does(61, 2, Action::ConnectionClosed { by: ClosedBy::Client });
        told.connects(70, 4);
        let (counts, _) = read(&told.0, Vec::new());
        let expected = Counts {
            acknowledged: 1,
            delivered: 2,
            duplicated: 2,
            takeovers: 2,
            wills: 1,
            tight_subscribes: 1,
            kinds: BTreeSet::from(["transient".to_owned()]),
        };
        assert_eq!(counts, expected);
    }

    /// In milliseconds, after faults that began at 1,000 and ended at 4,000.
    fn recovered(told: &Told, victims: Vec<u16>, next: u64) -> Option<u64> {
        const MS: u64 = 1_000_000;
        let mark = |began, victims| Mark {
            fault: Fault::F1,
            what: String::new(),
            began: began * MS,
            healed: (began + 3000) * MS,
            victims,
        };
        let (_, episodes) = read(&told.0, vec![mark(1000, victims), mark(next, Vec::new())]);
        Some(episodes[0].recovered? / MS)
    }

    #[test]
    fn recovery_ends_with_the_last_message_that_waited_long_where_no_victim_was() {
        let mut told = Told::default();
        told.connects(0, 1);
        told.publishes(900, 1, 1); // Before the fault, and answered during it.
        told.is_answered(1500, 1, 1, 0);
        assert_eq!(recovered(&told, vec![1], 90_000), Some(500), "from the fault on");
        assert_eq!(recovered(&told, vec![0], 90_000), None);
        told.publishes(2000, 1, 2);
        told.is_answered(3100, 1, 2, 0);
        assert_eq!(recovered(&told, vec![1], 90_000), Some(2100));
        told.publishes(5000, 1, 3); // Never answered: the client gives up.
        told.does(8000, 1, Action::ConnectionClosed { by: ClosedBy::Client });
        assert_eq!(recovered(&told, vec![1], 90_000), Some(7000));
        assert_eq!(recovered(&told, vec![1], 5500), Some(2100), "the next fault has a part in it");
        // A client that watches its old connection hears no answer on the new one.
        told.connects(9000, 2);
        told.publishes(9000, 2, 4);
        told.connects(9100, 3);
        told.publishes(9100, 3, 5);
        told.does(12_000, 2, Action::ConnectionClosed { by: ClosedBy::Client });
        told.is_answered(12_000, 3, 5, 0);
        assert_eq!(recovered(&told, vec![1], 90_000), Some(7000));
    }
}
