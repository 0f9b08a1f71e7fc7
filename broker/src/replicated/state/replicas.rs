//! Replicas of one group, one of which is restarted from its checkpoint now and then, and has little of its queues in memory:
//! whatever happens, they do the same.

use bytes::Bytes;
use kentongan_proto::topic::matches;
use proptest::prelude::*;

use super::*;
use crate::replicated::ReadPage;
use crate::replicated::command::{
    self, Acknowledge, AcknowledgeItem, Connect, Disconnect, Fence, LaneBatch, LaneMessage, Lost, OutboxSettled,
    Receive, Released, RetainedPage, SessionCommand, Subscribe, SubscribeFilter, Tick, Unsubscribe, WillRecord,
};
use crate::replicated::rows::MemoryRows;

const CLIENTS: [&str; 4] = ["ann", "bob", "cyd", "dee"];
const TOPICS: [&str; 3] = ["a", "a/x", "b"];
const FILTERS: [&str; 8] = ["a", "a/#", "+", "b", "#", "$share/g/a", "$share/g/#", "a/x"];
const WINDOWS: [u32; 4] = [1, 2, 3, 40];

/// What the clients and the nodes saw.
#[derive(Default)]
struct Seen {
    /// Session → (owner, epoch, window) as opened last.
    open: BTreeMap<String, (Owner, u64, u32)>,
    windows: BTreeMap<Owner3, u32>,
    /// Sent on the present connection and not acknowledged: (session, identifier) → may be repeated no more.
    sent: BTreeMap<(String, PacketId), QoS>,
    /// Session → last number of a first delivery, by topic and QoS.
    order: BTreeMap<(String, String, QoS), u64>,
    closing: Vec<(String, u64)>,
    /// Overlapping subscriptions get a copy each.
    one_each: bool,
}

type Owner3 = (u64, u64, u64);

fn key(owner: Owner) -> Owner3 {
    (owner.node, owner.incarnation, owner.connection)
}

impl Seen {
    fn take(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Opened(opened) => {
                    let name = opened.client_id.to_string();
                    let window = self.windows[&key(opened.owner)];
                    self.sent.retain(|(client, _), _| *client != name);
                    if !opened.session_present {
                        self.order.retain(|(client, ..), _| *client != name);
                    }
                    self.open.insert(name, (opened.owner, opened.epoch, window));
                }
                Effect::Deliver(delivery) => self.deliver(delivery),
                Effect::Close { client_id, epoch, .. } => self.closing.push((client_id.to_string(), *epoch)),
                _ => {}
            }
        }
    }

    fn deliver(&mut self, delivery: &Delivery) {
        let (name, (owner, epoch, window)) = self
            .open
            .iter()
            .find(|(_, open)| open.0 == delivery.owner)
            .map(|(name, open)| (name.clone(), *open))
            .expect("P7: nothing goes to a connection that was not opened, or that another has taken the session from");
        assert_eq!((owner, epoch), (delivery.owner, delivery.epoch));
        let before = self.sent.insert((name.clone(), delivery.packet_id), delivery.qos);
        assert_eq!(before, None, "P4: {} is sent again on a living connection", delivery.packet_id);
        let in_flight = self.sent.keys().filter(|(client, _)| *client == name).count();
        assert!(in_flight <= window as usize, "[MQTT-3.3.4-9]: {in_flight} in flight");
        // Retained ones are copies, and stand where the read put them.
        if !delivery.dup && delivery.message.publisher.is_empty() {
            let stream = (name, delivery.message.topic.to_string(), delivery.qos);
            let number = delivery.message.identity.number;
            let last = self.order.insert(stream, number);
            let follows = last.is_none_or(|last| last < number || (self.one_each && last == number));
            assert!(follows, "P3, P5: {number} after {last:?}");
        }
    }

    fn acknowledged(&mut self, name: &str, kind: u32, packet_id: PacketId, reason: u32) {
        let at = (name.to_owned(), packet_id);
        let ends = match (kind, self.sent.get(&at)) {
            (4, Some(QoS::AtLeastOnce)) | (7, Some(QoS::ExactlyOnce)) => true,
            (5, Some(QoS::ExactlyOnce)) => reason >= 0x80,
            _ => false,
        };
        if ends {
            self.sent.remove(&at);
        }
    }
}

struct Replicas {
    config: GroupConfig,
    living: GroupState,
    restarted: GroupState,
    stored: Arc<MemoryRows>,
    log: Vec<Bytes>,
    seen: Seen,
    number: u64,
    /// The last number of the lane by which commands of sessions come.
    in_lane: u64,
    turn: u64,
    connections: u64,
    fenced: u64,
    /// Pages that were read and not taken yet.
    pages: Vec<ReadPage>,
}

impl Replicas {
    fn new(config: GroupConfig) -> Self {
        let stored = Arc::<MemoryRows>::default();
        let mut restarted = GroupState::new(config);
        restarted.keep_in(Arc::<MemoryRows>::clone(&stored));
        Self {
            config,
            living: GroupState::new(config),
            restarted,
            stored,
            log: Vec::new(),
            seen: Seen { one_each: config.one_each, ..Seen::default() },
            number: 0,
            in_lane: 0,
            turn: 0,
            connections: 0,
            fenced: 0,
            pages: Vec::new(),
        }
    }

    /// Every other command of a session comes by a lane.
    fn by_lane(&mut self, command: Command) -> Command {
        let command = match command {
            Command::Connect(connect) => SessionCommand::Connect(connect),
            Command::Disconnect(disconnect) => SessionCommand::Disconnect(disconnect),
            Command::Subscribe(subscribe) => SessionCommand::Subscribe(subscribe),
            Command::Unsubscribe(unsubscribe) => SessionCommand::Unsubscribe(unsubscribe),
            Command::Acknowledge(acknowledge) => SessionCommand::Acknowledge(acknowledge),
            Command::Receive(receive) => SessionCommand::Receive(receive),
            Command::RetainedPage(page) => SessionCommand::RetainedPage(page),
            Command::Released(released) => SessionCommand::Released(released),
            other => return other,
        };
        self.lane_of(command)
    }

    fn lane_of(&mut self, command: SessionCommand) -> Command {
        self.in_lane += 1;
        Command::Lane(LaneBatch {
            lane: 2 << 12,
            incarnation: u64::MAX,
            messages: vec![LaneMessage { number: self.in_lane, command: Some(command), ..LaneMessage::default() }],
            previous: self.in_lane - 1,
            ..LaneBatch::default()
        })
    }

    fn apply(&mut self, command: Command) -> Vec<Effect> {
        let command = if self.turn.is_multiple_of(2) { self.by_lane(command) } else { command };
        self.turn += 1;
        let bytes = command::encode(command);
        let decoded = || command::decode(bytes.clone()).expect("ours").command.expect("known");
        let mut effects = Vec::new();
        self.living.apply(decoded(), &mut effects);
        self.living.assert_invariants();
        let mut others = Vec::new();
        self.restarted.apply(decoded(), &mut others);
        self.restarted.assert_invariants();
        assert_eq!(effects, others, "replicas do different things");
        let (living, restarted) = (self.living.snapshot(), self.restarted.snapshot());
        if living != restarted {
            let keys = living.keys().chain(restarted.keys());
            let differing: BTreeSet<_> = keys.filter(|&key| living.get(key) != restarted.get(key)).collect();
            let differing: Vec<_> = differing.into_iter().map(|key| key.escape_ascii().to_string()).collect();
            panic!("replicas differ at {differing:?}");
        }
        self.log.push(bytes);
        self.seen.take(&effects);
        effects
    }

    fn checkpoint(&mut self) {
        self.stored.write(self.restarted.take_dirty());
        assert_eq!(self.stored.all(), self.restarted.snapshot(), "the checkpoints together are the state");
    }

    fn restart(&mut self, a: u8) {
        if self.log.is_empty() {
            return;
        }
        self.checkpoint();
        self.restarted = match a % 4 {
            0 => {
                let mut whole =
                    GroupState::restore(self.config, Vec::from_iter(self.stored.all())).expect("a whole state");
                whole.keep_in(Arc::<MemoryRows>::clone(&self.stored));
                whole
            }
            front => {
                let front_max = usize::from(front) - 1;
                GroupState::resume(self.config, Arc::<MemoryRows>::clone(&self.stored), front_max)
                    .expect("a whole state")
            }
        };
        assert_eq!(self.restarted.digest(), self.living.digest());
    }

    /// The last checkpoint is complete, and memory is scarce; or a page comes that was asked for before.
    fn put_away(&mut self, a: u8) {
        if self.log.is_empty() {
            return;
        }
        match a % 4 {
            0 => {
                for request in self.restarted.take_page_requests() {
                    self.pages.push(request.read().expect("it is stored"));
                }
            }
            1 => self.pages.drain(..).for_each(|page| self.restarted.take_page(page)),
            2 => self.restarted.put_away(0),
            _ => {
                self.checkpoint();
                self.restarted.put_away(2_000);
            }
        }
        self.restarted.assert_invariants();
        assert_eq!(self.restarted.digest(), self.living.digest());
    }

    fn step(&mut self, (kind, a, b, c): (u8, u8, u8, u8)) {
        let name = CLIENTS[usize::from(a) % CLIENTS.len()].to_owned();
        let epoch = self.seen.open.get(&name).map_or(0, |(_, epoch, _)| *epoch);
        let filter = FILTERS[usize::from(b) % FILTERS.len()].to_owned();
        match kind {
            0..=2 => self.connect(name, b, c),
            3 => drop(self.apply(Command::Disconnect(Disconnect {
                client_id: name,
                epoch,
                publish_will: b & 1 == 0,
                session_expiry_seconds: (b & 6 == 6).then_some(u32::from(c & 7)),
                never_began: b & 25 == 25,
            }))),
            4..=6 => drop(self.apply(Command::Subscribe(Subscribe {
                client_id: name,
                epoch,
                packet_id: 1,
                filters: vec![SubscribeFilter {
                    filter,
                    qos: u32::from(c % 3),
                    no_local: false,
                    retain_as_published: c & 4 != 0,
                    retain_handling: u32::from(c >> 3) % 3,
                    subscription_identifier: (c & 64 != 0).then_some(u32::from(c)),
                    refused: None,
                }],
                ..Subscribe::default()
            }))),
            7 => drop(self.apply(Command::Unsubscribe(Unsubscribe {
                client_id: name,
                epoch,
                packet_id: 2,
                filters: vec![filter],
                ..Unsubscribe::default()
            }))),
            8..=14 => self.publish(a, b, c),
            15..=21 => self.acknowledge(name, epoch, b, c),
            22 => {
                let message = MessageRecord { publisher: name.clone(), ..self.record(b, 2) };
                let delay_ms = (c & 3 == 0).then_some(u64::from(c) * 100);
                let packet_id = u32::from(b % 3) + 1;
                let message = Some(message);
                self.apply(Command::Receive(Receive { client_id: name, epoch, packet_id, message, delay_ms }));
            }
            23 => {
                let first: Vec<_> = self.living.outbox.keys().copied().take(usize::from(b % 4)).collect();
                self.apply(Command::Routed(command::Routed { positions: first }));
            }
            24 | 25 => self.page(b, c),
            26 => drop(self.apply(Command::Tick(Tick {
                elapsed_ms: u64::from(b) * 40,
                wall_ms: 1_000 * self.log.len() as u64,
                bridge: c < 3,
                from_ms: (c & 4 == 0).then_some(self.living.clock_ms),
            }))),
            27 if c < 80 => {
                self.fenced = (self.fenced + 1).min(3);
                let below = self.fenced;
                self.apply(Command::Fence(Fence { below, sessions_max: u32::from(b % 3), node: u64::from(a % 2) }));
            }
            27 => {
                let incarnation = u64::from(b % 3);
                let known = self.living.not_known_to_be_lost().next().filter(|_| b & 4 == 0);
                let (node, incarnation) = known.unwrap_or((u64::from(a % 2), incarnation));
                self.apply(Command::Lost(Lost { node, incarnation, sessions_max: u32::from(c % 3) }));
            }
            28 => {
                if let Some((client_id, epoch)) = self.seen.closing.pop() {
                    let (publish_will, never_began) = (b & 1 == 0, b & 3 == 3);
                    self.apply(Command::Released(Released { client_id, epoch, publish_will, never_began }));
                }
            }
            29 | 30 => self.pick(a, b, c),
            31 => {
                let position = self.position(a);
                let settled = OutboxSettled { position, given_back: b & 1 == 0 };
                let command = self.lane_of(SessionCommand::OutboxSettled(settled));
                self.apply(command);
            }
            32 => self.restart(a),
            33 => drop(self.apply(Command::Level(command::Level { level: u32::from(a % 4) }))),
            _ => self.put_away(a),
        }
    }

    /// One that is in the outbox, or none any more.
    fn position(&self, a: u8) -> u64 {
        let positions: Vec<u64> = self.living.outbox.keys().copied().collect();
        positions.get(usize::from(a) % (positions.len() + 1)).copied().unwrap_or(1)
    }

    fn pick(&mut self, a: u8, b: u8, c: u8) {
        let position = self.position(a);
        let pick = |(number, share): (u8, &str)| {
            let target = match (b >> number) & 1 {
                0 => PickTarget::Group(3),
                _ => PickTarget::Node { node: u64::from(c & 1), incarnation: u64::from(c >> 6) },
            };
            command::Pick { share: share.to_owned(), target: Some(target.record()) }
        };
        let share = self.living.outbox.get(&position).and_then(|entry| entry.share.clone());
        let picks = match &share {
            Some(share) => vec![pick((0, share))],
            None => (0..).zip(&FILTERS[5..7]).map(|(number, share)| pick((number, share))).collect(),
        };
        let (routed, more) = (c & 2 == 0, c & 4 == 0);
        let entries = vec![command::PickedEntry { position, picks, routed, more, after: String::new() }];
        self.apply(Command::Picked(command::Picked { entries }));
    }

    fn connect(&mut self, name: String, b: u8, c: u8) {
        self.connections += 1;
        let owner = Owner { incarnation: u64::from(b >> 5), connection: self.connections, node: u64::from(c & 1) };
        let window_max = WINDOWS[usize::from(c >> 1) % WINDOWS.len()];
        self.seen.windows.insert(key(owner), window_max);
        let record = MessageRecord { publisher: name.clone(), ..self.record(c, 1) };
        self.apply(Command::Connect(Connect {
            owner: Some(owner),
            identity: if c == 255 { "mallory".to_owned() } else { String::new() },
            client_id: name,
            clean_start: b & 3 == 3,
            session_expiry_seconds: [100, 5, u32::MAX, 0][usize::from(c >> 3) & 3],
            will: (c & 32 != 0).then_some(WillRecord {
                message: Some(record),
                delay_seconds: u32::from((c >> 6) & 1) * 3,
                publish_delay_ms: (c & 128 != 0).then_some(2_000),
                is_granted: b & 64 != 0,
            }),
            window_max,
            wait_for_release: b & 4 != 0,
            keep_transient: b & 8 != 0,
            queue_messages_max: (b & 16 != 0).then_some(2),
            queue_bytes_max: (b & 48 == 48).then_some(600),
        }));
    }

    fn record(&mut self, topic: u8, qos: u32) -> MessageRecord {
        self.number += 1;
        MessageRecord {
            lane: 1 << 12,
            number: self.number,
            topic: TOPICS[usize::from(topic) % TOPICS.len()].to_owned(),
            payload: Bytes::from(vec![topic; usize::from(topic) * 4]),
            qos,
            ..MessageRecord::default()
        }
    }

    fn publish(&mut self, a: u8, b: u8, c: u8) {
        let mut record = self.record(a, u32::from(b % 3));
        let store_retained = c & 7 == 0;
        let shares: Vec<_> = (c & 3 == 1).then(|| FILTERS[5 + usize::from(b & 1)].to_owned()).into_iter().collect();
        if !shares.is_empty() || store_retained {
            // Not judged by the order of the others.
            record.publisher = "x".to_owned();
        }
        record.expiry_left_ms = (b >> 6 == 3).then_some(u64::from(c) * 20);
        record.retain = store_retained;
        if store_retained && b & 32 != 0 {
            record.payload = Bytes::new();
        }
        let delay_ms = (c & 127 == 2).then_some(700);
        let expected = if shares.is_empty() && delay_ms.is_none() { self.copies(&record) } else { 0 };
        let judged = shares.is_empty();
        let before = self.held_copies();
        let message = LaneMessage {
            number: self.number,
            message: Some(record),
            match_subscriptions: shares.is_empty(),
            shares,
            store_retained,
            delay_ms,
            command: None,
        };
        let answered = self.number.saturating_sub(u64::from(a >> 5));
        let messages = vec![message];
        let batch =
            LaneBatch { lane: 1 << 12, incarnation: u64::MAX, messages, node: 0, answered, previous: 0, clock_ms: 0 };
        let effects = self.apply(Command::Lane(batch));
        let dropped = effects.iter().map(|effect| if let Effect::Dropped { count, .. } = effect { *count } else { 0 });
        if judged {
            assert_eq!(self.held_copies() + dropped.sum::<u64>(), before + expected, "P1: kept, or counted as dropped");
        }
    }

    /// Copies of a message that the sessions are owed.
    fn copies(&self, record: &MessageRecord) -> u64 {
        let plain = |filter: &Arc<str>| !filter.starts_with("$share/");
        let of_session = |session: &PersistentSession| {
            let subscriptions = session.subscriptions.iter();
            let matching = subscriptions.filter(|(filter, _)| plain(filter) && matches(filter, &record.topic));
            let qos = matching.map(|(_, own)| own.options.qos.min(command::qos(record.qos)));
            let copies = qos.filter(|&qos| is_wanted(qos)).count() as u64;
            if self.config.one_each { copies } else { copies.min(1) }
        };
        self.living.sessions.values().map(of_session).sum()
    }

    fn held_copies(&self) -> u64 {
        let of_session = |session: &PersistentSession| {
            let in_flight = session.outbound.resend().iter().filter(|(.., entry)| entry.is_some()).count();
            in_flight + session.outbound.queue_len() + session.held.len()
        };
        self.living.sessions.values().map(|session| of_session(session) as u64).sum()
    }

    fn acknowledge(&mut self, name: String, epoch: u64, b: u8, c: u8) {
        let sent = self.seen.sent.range((name.clone(), PacketId::MIN)..=(name.clone(), PacketId::MAX));
        let sent: Vec<_> = sent.map(|((_, id), qos)| (*id, *qos)).collect();
        let (packet_id, qos) = match sent.get(usize::from(b) % (sent.len() + 1)) {
            Some(known) => *known,
            None => (PacketId::MIN.saturating_add(u16::from(b)), QoS::AtLeastOnce),
        };
        let kind = match qos {
            QoS::ExactlyOnce if c & 1 == 0 => 5,
            QoS::ExactlyOnce => 7,
            _ if c & 15 == 15 => 6,
            _ => 4,
        };
        let reason = if c & 48 == 48 { 0x83 } else { 0 };
        if self.living.current(&name, epoch).is_some() {
            // A PUBCOMP counts only after PUBREC.
            let stage = |slot: &(PacketId, Stage, QoS, Option<&Entry>)| slot.0 == packet_id && kind == 7;
            let in_flight = self.living.sessions[name.as_str()].outbound.resend();
            let early = in_flight.iter().find(|slot| stage(slot)).is_some_and(|slot| slot.1 != Stage::AwaitingPubComp);
            if !early {
                self.seen.acknowledged(&name, kind, packet_id, reason);
            }
        }
        let items = vec![AcknowledgeItem { kind, packet_id: u32::from(packet_id.get()), reason }];
        self.apply(Command::Acknowledge(Acknowledge { client_id: name, epoch, items }));
    }

    /// A page for one of the reads under way.
    fn page(&mut self, b: u8, c: u8) {
        let mut reads: Vec<_> = (self.living.sessions.values())
            .flat_map(|session| {
                let reads = session.subscriptions.iter().filter_map(|(filter, own)| Some((filter, own.read?)));
                reads.map(|(filter, read)| (session.client_id.to_string(), filter.to_string(), read))
            })
            .collect();
        reads.sort();
        let Some((client_id, filter, read)) = reads.get(usize::from(b) % reads.len().max(1)).cloned() else {
            return;
        };
        let page = self.living.retained_page(&filter, None, 2, usize::MAX, 10);
        let messages = page.messages.iter().map(|message| absolute(message)).collect();
        // Some were asked for before the last that their node knows of.
        let known = self.living.sessions[client_id.as_str()].overflows;
        let (last, number, overflows) = (c & 3 != 0, u64::from(c), known.saturating_sub(u64::from(c >> 7)));
        let page = RetainedPage { client_id, filter, read, messages, last, number, overflows };
        self.apply(Command::RetainedPage(page));
    }
}

fn share_strategy() -> impl Strategy<Value = PickStrategy> {
    prop::sample::select(vec![
        PickStrategy::RoundRobin,
        PickStrategy::Random,
        PickStrategy::Sticky,
        PickStrategy::HashClient,
        PickStrategy::HashTopic,
        PickStrategy::LeastInflight,
    ])
}

fn config() -> impl Strategy<Value = GroupConfig> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 2_usize..8, share_strategy()).prop_map(
        |(oldest, one_each, ages, queue_messages_max, share_strategy)| GroupConfig {
            queue_messages_max,
            queue_bytes_max: 3_000,
            drop_policy: if oldest { DropPolicy::Oldest } else { DropPolicy::New },
            retained: RetainedLimits { messages_max: 2, bytes_max: 0 },
            one_each,
            share_strategy,
            retained_age_ms_max: if ages { 4_000 } else { 0 },
            delayed_messages_max: 3,
            delayed_bytes_max: 700,
        },
    )
}

proptest! {
    /// One replica lives through it, one is restarted in between, one replays the log from its beginning.
    #[test]
    fn replicas_do_the_same_whatever_happens_to_them(
        config in config(),
        steps in prop::collection::vec((0_u8..37, any::<u8>(), any::<u8>(), any::<u8>()), 1..150),
    ) {
        let mut replicas = Replicas::new(config);
        for step in steps {
            replicas.step(step);
        }
        let mut replayed = GroupState::new(config);
        for entry in &replicas.log {
            replayed.apply(command::decode(entry.clone()).expect("ours").command.expect("known"), &mut Vec::new());
        }
        prop_assert_eq!(replayed.digest(), replicas.living.digest());
        // An origin that resends everything after a change of leader.
        for entry in &replicas.log {
            if let Ok(command::Entry { command: Some(Command::Lane(mut batch)), .. }) = command::decode(entry.clone()) {
                batch.answered = 0;
                let mut effects = Vec::new();
                replayed.apply(Command::Lane(batch), &mut effects);
                let only_answered = effects.iter().all(|effect| matches!(effect, Effect::LaneAnswered { .. }));
                prop_assert!(only_answered, "{:?}", effects);
            }
        }
        prop_assert_eq!(replayed.digest(), replicas.living.digest());
    }
}
