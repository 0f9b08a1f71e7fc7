//! What clients do of their own: connect, publish, subscribe, and go in every way there is.

use bytes::Bytes;
use kentongan_history::{Action, Answer, MessageId, Publish, Subscribe, Subscription, Symbol};
use kentongan_proto::mqtt::codec::{self, AckKind, PublishHead};
use kentongan_proto::mqtt::{
    self, ConnectProperties, Delivery, DisconnectProperties, Packet, PacketId, ProtocolVersion, PublishProperties, QoS,
    ReasonCode, RetainHandling, SubscriptionOptions, WillProperties,
};
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;

use super::connection::{Link, Owed, Phase};
use super::drain::Drain;
use super::identity::Unacknowledged;
use super::plan::{self, Act, Kind};
use super::{Happening, Hurry, MILLISECOND, Workload};

const SECOND_NS: u64 = 1000 * MILLISECOND;

/// Time that a client waits for CONNACK.
const CONNACK_WAIT_NS: u64 = 10 * SECOND_NS;

/// Time that a client waits for the end after it said goodbye.
const END_WAIT_NS: u64 = 3 * SECOND_NS;

/// Unanswered SUBSCRIBEs and UNSUBSCRIBEs of one client.
const REQUESTS_OPEN_MAX: u32 = 3;

/// Topic Aliases of one client: fewer than there are topics.
const ALIASES_MAX: u16 = 3;

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

impl Workload {
    fn qos(&mut self) -> QoS {
        QOS[[0, 0, 1, 1, 1, 2, 2].choose(&mut self.random).copied().unwrap_or(1)]
    }

    /// Sends a packet as soon as there is room for it, and records it then.
    fn send(&mut self, client: usize, action: Option<Action>, packet: &Packet) {
        let connection = &mut self.clients[client];
        let version = self.identities[connection.identity].character.version;
        connection.outgoing.push(action, |out| {
            codec::encode(packet, version, out).expect("clients send only what can be expressed");
        });
    }

    // Connecting.

    pub(super) fn connect_later(&mut self, now_ns: u64, identity: usize) {
        let wait_ns = match (self.drain == Drain::No, self.percent(15)) {
            // Long enough for some sessions to expire, and some wills to fall due.
            (true, true) => self.milliseconds(1_000..9_000),
            _ => self.milliseconds(20..600),
        };
        self.at(now_ns + wait_ns, Happening::Connect(identity));
    }

    /// Whoever has no connection, and none under way, asks for one.
    pub(super) fn connect_if_needed(&mut self, now_ns: u64, identity: usize) {
        let one = &self.identities[identity];
        let is_served = one.current.is_some_and(|link| self.is_open(link));
        if !is_served && self.wants_connection(identity) {
            self.open(now_ns, identity);
        }
    }

    /// `false`: all clients of that name are busy.
    fn open(&mut self, _now_ns: u64, identity: usize) -> bool {
        let one = &self.identities[identity];
        let phases = || one.clients.clone().map(|client| (client, self.clients[client].phase));
        // Of two unanswered CONNECTs of one name nobody could tell which one counts.
        if phases().any(|(_, phase)| matches!(phase, Phase::Opening | Phase::Connecting)) {
            return false;
        }
        let Some((client, _)) = phases().find(|(_, phase)| *phase == Phase::Closed) else {
            return false;
        };
        let node = match one.character.kind {
            Kind::LastReader => identity + self.nodes - self.identities.len(),
            _ => self.random.random_range(0..self.nodes),
        };
        let one = &mut self.identities[identity];
        one.connections += 1;
        self.clients[client].begin(one.connections, node);
        self.wishes.push(super::Wish::Open { client, node });
        true
    }

    /// Sends CONNECT.
    pub(super) fn connect(&mut self, now_ns: u64, client: usize) {
        let link = self.clients[client].link;
        let identity = self.clients[client].identity;
        self.clients[client].phase = Phase::Connecting;
        self.identities[identity].current = Some(link);
        let character = self.identities[identity].character.clone();
        let is_v5 = character.version.is_v5();
        let is_draining = self.drain != Drain::No;
        let clean_start = self.percent(character.clean_percent) && (!is_draining || character.expiry == 0);
        let has_will = !is_draining && self.percent(character.will_percent);
        let (will, told) = if has_will { self.will(is_v5) } else { (None, None) };
        let expiry = if clean_start && !is_v5 { 0 } else { character.expiry };
        let connect = mqtt::Connect {
            version: character.version,
            bridge: false,
            clean_start,
            keep_alive: character.keep_alive,
            client_id: self.identities[identity].name.to_string(),
            will,
            user_name: None,
            password: None,
            properties: ConnectProperties {
                session_expiry_interval: (is_v5 && expiry > 0).then_some(expiry),
                receive_maximum: character.receive_maximum.and_then(PacketId::new),
                topic_alias_maximum: character.topic_alias_maximum,
                maximum_packet_size: character.maximum_packet_size,
                ..ConnectProperties::default()
            },
        };
        let connect_told = kentongan_history::Connect { clean_start, session_expiry: expiry, will: told };
        let action = Action::ConnectSent(Box::new(connect_told));
        self.send(client, Some(action), &Packet::Connect(Box::new(connect)));
        self.write(now_ns, client);
        self.at(now_ns + CONNACK_WAIT_NS, Happening::GiveUp(link, Phase::Connecting));
        if !is_draining && self.percent(3) {
            let wait_ns = self.milliseconds(0..60);
            self.at(now_ns + wait_ns, Happening::Vanish(link));
        }
    }

    fn will(&mut self, is_v5: bool) -> (Option<mqtt::Will>, Option<kentongan_history::Will>) {
        let message = self.next_message();
        let (name, topic) = self.topic(plan::TOPICS.len());
        let qos = self.qos();
        let retain = self.percent(15);
        let delays = [0, 0, 1, plan::WILL_DELAY_SECONDS_MAX];
        let delay = if is_v5 { delays.choose(&mut self.random).copied().unwrap_or(0) } else { 0 };
        let properties = WillProperties { will_delay_interval: (delay > 0).then_some(delay), ..Default::default() };
        let payload = Bytes::copy_from_slice(&message.0.to_be_bytes());
        let will = mqtt::Will { topic: name.to_owned(), payload, qos, retain, properties };
        self.count(match (qos, delay, retain) {
            (_, _, true) => "retained will",
            (_, 1.., _) => "will with delay",
            (QoS::AtMostOnce, ..) => "will of QoS 0",
            (QoS::AtLeastOnce, ..) => "will of QoS 1",
            (QoS::ExactlyOnce, ..) => "will of QoS 2",
        });
        (Some(will), Some(kentongan_history::Will { topic, qos: qos as u8, retain, delay, message }))
    }

    fn topic(&mut self, of: usize) -> (&'static str, Symbol) {
        let number = self.random.random_range(0..of);
        (plan::TOPICS[number], self.topics[number])
    }

    // Acting.

    pub(super) fn act_later(&mut self, now_ns: u64, link: Link) {
        let wait_ns = self.random.random_range(self.pace_ns / 20..self.pace_ns * 2);
        self.at(now_ns + wait_ns, Happening::Act(link));
    }

    pub(super) fn act(&mut self, now_ns: u64, client: usize) {
        let connection = &self.clients[client];
        if connection.phase != Phase::Connected || connection.is_silent || self.drain != Drain::No {
            return;
        }
        let (link, identity) = (connection.link, connection.identity);
        if !self.is_current(client) {
            return self.act_on_old(now_ns, client);
        }
        match self.identities[identity].character.kind.act(&mut self.random) {
            Act::Nothing => {}
            Act::Publish => self.publish(client),
            Act::Burst => (0..self.random.random_range(3..8)).for_each(|_| self.publish(client)),
            Act::Subscribe => self.subscribe(client, None),
            Act::Unsubscribe => self.unsubscribe(client),
            Act::Disconnect => self.disconnect(now_ns, client),
            Act::Close => return self.close(now_ns, client, kentongan_history::ClosedBy::Client),
            Act::Vanish => return self.vanish(now_ns, client),
            Act::FallSilent => self.fall_silent(now_ns, client),
            Act::TakeOver => {
                if self.open(now_ns, identity) {
                    self.count("taken over");
                }
                // Until it hears that it was replaced, it goes on.
                let wait_ns = self.milliseconds(0..60);
                self.at(now_ns + wait_ns, Happening::Act(link));
            }
        }
        self.write(now_ns, client);
        self.act_later(now_ns, link);
    }

    pub(super) fn hurry(&mut self, now_ns: u64, client: usize, hurry: Hurry) {
        let connection = &self.clients[client];
        let may = connection.phase == Phase::Connected && !connection.is_silent && self.drain == Drain::No;
        if !may || !self.is_current(client) {
            return;
        }
        match self.random.random_range(0..20) {
            0..7 if hurry == Hurry::Anything => self.publish(client),
            0..14 => self.publish_quietly(client, hurry),
            14..16 if hurry == Hurry::Anything => self.subscribe(client, Some(1)),
            14..19 => self.subscribe_quietly(client, hurry),
            _ => self.unsubscribe(client),
        }
        self.write(now_ns, client);
    }

    /// A connection that is just being replaced: its messages are never tried again, and their fate is unknown.
    fn act_on_old(&mut self, now_ns: u64, client: usize) {
        self.count("published on a replaced connection");
        let identity = self.clients[client].identity;
        let (name, topic) = self.topic(plan::TOPICS.len());
        let qos = if self.percent(70) { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let packet_id = self.identities[identity].packet_id();
        let message = self.next_message();
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { packet_id.get() };
        let publish = Publish {
            packet_id,
            dup: false,
            qos: qos as u8,
            retain: false,
            topic,
            expiry: None,
            message,
            empty: false,
        };
        self.send_publish(client, &publish, name, 0);
        self.write(now_ns, client);
    }

    fn publish(&mut self, client: usize) {
        let identity = self.clients[client].identity;
        let one = &self.identities[identity];
        let (is_slow, is_v5) = (one.character.is_slow, one.character.version.is_v5());
        let qos = if is_slow { QoS::AtMostOnce } else { self.qos() };
        if qos != QoS::AtMostOnce && !self.identities[identity].may_publish() {
            return;
        }
        let retain = self.percent(15);
        let (name, topic) = match plan::RETAINED_TOPICS.choose(&mut self.random) {
            Some(name) if retain => (*name, self.history.symbol(name)),
            _ => self.topic(plan::TOPICS.len()),
        };
        let empty = retain && self.percent(20);
        let expiry = (is_v5 && !empty && self.percent(12)).then(|| self.random.random_range(1..6));
        let padding = match self.random.random_range(0..100) {
            0..10 => self.random.random_range(0..600),
            10..12 => self.random.random_range(1_000..6_000),
            _ => 0,
        };
        if padding >= 1_000 {
            self.count("large message published");
        }
        let message = self.next_message();
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.identities[identity].packet_id());
        let publish = Publish {
            packet_id: packet_id.map_or(0, PacketId::get),
            dup: false,
            qos: qos as u8,
            retain,
            topic,
            expiry,
            message,
            empty,
        };
        self.send_publish(client, &publish, name, padding);
        if let Some(packet_id) = packet_id {
            let one = Unacknowledged { packet_id, publish, padding, released: false };
            self.identities[identity].unacknowledged.push(one);
        }
        self.count(match (empty, retain, expiry) {
            (true, ..) => "retained message deleted",
            (_, true, _) => "retained message published",
            (_, _, Some(_)) => "message with expiry published",
            _ => "message published",
        });
    }

    /// At QoS 1, on a topic that few want.
    fn publish_quietly(&mut self, client: usize, hurry: Hurry) {
        let identity = self.clients[client].identity;
        if !self.identities[identity].may_publish() || self.identities[identity].character.is_slow {
            return;
        }
        let name = hurry.quiet_topics().choose(&mut self.random).copied().unwrap_or("$x/0");
        let packet_id = self.identities[identity].packet_id();
        let publish = Publish {
            packet_id: packet_id.get(),
            dup: false,
            qos: 1,
            retain: false,
            topic: self.history.symbol(name),
            expiry: None,
            message: self.next_message(),
            empty: false,
        };
        self.send_publish(client, &publish, name, 0);
        let one = Unacknowledged { packet_id, publish, padding: 0, released: false };
        self.identities[identity].unacknowledged.push(one);
        self.count("message published on a quiet topic");
    }

    fn send_publish(&mut self, client: usize, publish: &Publish, topic: &str, padding: usize) {
        let (topic, topic_alias) = self.choose_alias(client, topic);
        let connection = &mut self.clients[client];
        let version = self.identities[connection.identity].character.version;
        let MessageId(number) = publish.message;
        let payload_len = if publish.empty { 0 } else { 8 + padding };
        let delivery = match (publish.qos, PacketId::new(publish.packet_id)) {
            (1, Some(packet_id)) => Delivery::AtLeastOnce(packet_id),
            (2, Some(packet_id)) => Delivery::ExactlyOnce(packet_id),
            _ => Delivery::AtMostOnce,
        };
        // What makes it carry the expiry of MQTT 5 is the head; no other property is of interest here.
        let properties = PublishProperties::default();
        let head = PublishHead {
            dup: publish.dup,
            delivery,
            retain: publish.retain,
            topic,
            topic_alias,
            message_expiry_interval: publish.expiry,
            properties: Some(&properties),
            subscription_identifiers: &[],
            payload_len,
        };
        connection.outgoing.push(Some(Action::PublishSent(publish.clone())), |out| {
            codec::encode_publish_head(&head, version, out);
            if !publish.empty {
                out.extend_from_slice(&number.to_be_bytes());
                out.resize(out.len() + padding, 0);
            }
        });
    }

    /// How a topic is said on this connection: now and then by an alias, which is given first.
    fn choose_alias<'a>(&mut self, client: usize, topic: &'a str) -> (&'a str, Option<u16>) {
        let connection = &self.clients[client];
        let known = connection.aliases.iter().position(|known| known == topic);
        let given = connection.aliases.len();
        let is_room = given < usize::from(connection.alias_maximum.min(ALIASES_MAX));
        match known {
            Some(at) if self.percent(70) => {
                self.count("published by a Topic Alias");
                ("", Some(at as u16 + 1))
            }
            None if is_room && self.percent(30) => {
                self.clients[client].aliases.push(topic.to_owned());
                (topic, Some(self.clients[client].aliases.len() as u16))
            }
            // Now another topic has the alias.
            None if given > 0 && self.percent(5) => {
                self.clients[client].aliases[0] = topic.to_owned();
                (topic, Some(1))
            }
            _ => (topic, None),
        }
    }

    /// Goes on with what was not acknowledged: the same handshakes in the same session; else second tries, or none.
    pub(super) fn resume(&mut self, client: usize, session_present: bool) {
        let identity = self.clients[client].identity;
        let kept = std::mem::take(&mut self.identities[identity].unacknowledged);
        for mut one in kept {
            if !session_present {
                if one.released || self.percent(50) {
                    continue;
                }
                one.packet_id = self.identities[identity].packet_id();
                one.publish.packet_id = one.packet_id.get();
            }
            one.publish.dup = session_present;
            if one.released {
                self.send_ack(client, AckKind::PubRel, one.packet_id);
            } else {
                self.count(if session_present { "resent in the same session" } else { "tried again" });
                let topic = self.history.name(one.publish.topic).to_owned();
                self.send_publish(client, &one.publish.clone(), &topic, one.padding);
            }
            self.identities[identity].unacknowledged.push(one);
        }
    }

    pub(super) fn subscribe(&mut self, client: usize, count: Option<usize>) {
        let kind = self.identities[self.clients[client].identity].character.kind;
        let count = count.unwrap_or_else(|| self.random.random_range(1..3));
        let mut chosen = Vec::new();
        for _ in 0..count {
            let filter = kind.filter(&mut self.random);
            if !chosen.contains(&filter) {
                chosen.push(filter);
            }
        }
        self.subscribe_to(client, &chosen);
    }

    fn subscribe_quietly(&mut self, client: usize, hurry: Hurry) {
        let filter = hurry.quiet_topics().choose(&mut self.random).copied().unwrap_or("$x/0");
        self.subscribe_to(client, &[filter]);
    }

    fn subscribe_to(&mut self, client: usize, chosen: &[&'static str]) {
        if self.clients[client].requests_open >= REQUESTS_OPEN_MAX {
            return;
        }
        let identity = self.clients[client].identity;
        let character = &self.identities[identity].character;
        let (kind, is_v5) = (character.kind, character.version.is_v5());
        let (mut filters, mut told) = (Vec::new(), Vec::new());
        for &filter in chosen {
            let options = self.subscription_options(kind, is_v5, filter.starts_with("$share/"));
            told.push(Subscription {
                filter: self.history.symbol(filter),
                qos: options.qos as u8,
                no_local: options.no_local,
                retain_as_published: options.retain_as_published,
                retain_handling: options.retain_handling as u8,
            });
            filters.push((filter.to_owned(), options));
        }
        // While its retained messages are still being read.
        let taken_back = (kind != Kind::LastReader && self.percent(8)).then(|| filters[0].0.clone());
        let packet_id = self.identities[identity].packet_id();
        let subscription_identifier = (is_v5 && self.percent(30)).then(|| self.random.random_range(1..100));
        if let Some(identifier) = subscription_identifier {
            self.count("subscribed with a Subscription Identifier");
            self.identities[identity].identifiers.extend(chosen.iter().map(|&filter| (identifier, filter)));
        }
        let packet = mqtt::Subscribe { packet_id, filters, subscription_identifier, user_properties: Vec::new() };
        let action = Action::SubscribeSent(Box::new(Subscribe { packet_id: packet_id.get(), filters: told }));
        self.clients[client].requests_open += 1;
        self.send(client, Some(action), &Packet::Subscribe(packet));
        if let Some(filter) = taken_back {
            self.count("subscription taken back at once");
            self.unsubscribe_from(client, &filter);
        }
    }

    fn subscription_options(&mut self, kind: Kind, is_v5: bool, is_shared: bool) -> SubscriptionOptions {
        if kind == Kind::LastReader {
            return SubscriptionOptions::new(QoS::ExactlyOnce);
        }
        let mut options = SubscriptionOptions::new(self.qos());
        if is_v5 {
            // [MQTT-3.8.3-4]
            options.no_local = !is_shared && self.percent(12);
            options.retain_as_published = self.percent(10);
            let handling =
                [RetainHandling::Always, RetainHandling::Always, RetainHandling::IfNew, RetainHandling::Never];
            options.retain_handling = handling.choose(&mut self.random).copied().unwrap_or_default();
        }
        match options.retain_handling {
            RetainHandling::Always => {}
            RetainHandling::IfNew => self.count("subscribed for retained messages if new"),
            RetainHandling::Never => self.count("subscribed for no retained messages"),
        }
        if options.no_local {
            self.count("subscribed without own messages");
        }
        if is_shared {
            self.count("subscribed as one of a group");
        }
        options
    }

    fn unsubscribe(&mut self, client: usize) {
        if self.clients[client].requests_open >= REQUESTS_OPEN_MAX {
            return;
        }
        let identity = self.clients[client].identity;
        let filter = self.identities[identity].character.kind.filter(&mut self.random);
        self.unsubscribe_from(client, filter);
    }

    fn unsubscribe_from(&mut self, client: usize, filter: &str) {
        let identity = self.clients[client].identity;
        let packet_id = self.identities[identity].packet_id();
        let packet = mqtt::Unsubscribe { packet_id, filters: vec![filter.to_owned()], user_properties: Vec::new() };
        let filters = Box::new([self.history.symbol(filter)]);
        self.clients[client].requests_open += 1;
        let action = Action::UnsubscribeSent { packet_id: packet_id.get(), filters };
        self.send(client, Some(action), &Packet::Unsubscribe(packet));
    }

    // Acknowledging.

    /// Owes an acknowledgement, behind those that are owed already.
    pub(super) fn owe(&mut self, now_ns: u64, client: usize, kind: AckKind, packet_id: PacketId) {
        if self.clients[client].is_silent {
            return;
        }
        let wait_ns = match self.random.random_range(0..100) {
            _ if self.drain != Drain::No => 0,
            0..60 => 0,
            60..96 => self.milliseconds(1..40),
            _ => {
                self.count("acknowledged late");
                self.milliseconds(300..1_500)
            }
        };
        let connection = &mut self.clients[client];
        let before_ns = connection.owed.back().map_or(0, |owed| owed.due_ns);
        let due_ns = before_ns.max(now_ns + wait_ns);
        let (link, is_idle) = (connection.link, connection.owed.is_empty());
        connection.owed.push_back(Owed { due_ns, kind, packet_id });
        if due_ns <= now_ns {
            self.acknowledge_due(now_ns, client);
        } else if is_idle {
            self.at(due_ns, Happening::Acknowledge(link));
        }
    }

    pub(super) fn acknowledge_due(&mut self, now_ns: u64, client: usize) {
        while let Some(&Owed { due_ns, kind, packet_id }) = self.clients[client].owed.front() {
            if due_ns > now_ns {
                let link = self.clients[client].link;
                self.at(due_ns, Happening::Acknowledge(link));
                break;
            }
            self.clients[client].owed.pop_front();
            let connection = &self.clients[client];
            if connection.phase == Phase::Connected && !connection.is_silent {
                self.send_ack(client, kind, packet_id);
            }
        }
        self.write(now_ns, client);
    }

    fn send_ack(&mut self, client: usize, kind: AckKind, packet_id: PacketId) {
        let connection = &mut self.clients[client];
        let one = &mut self.identities[connection.identity];
        if kind == AckKind::PubRel {
            // By whichever connection: the PUBLISH is not sent again [MQTT-4.3.3-6].
            one.release(packet_id);
        }
        let answer = Answer { packet_id: packet_id.get(), reason: 0 };
        let action = match kind {
            AckKind::PubAck => Action::PubAckSent(answer),
            AckKind::PubRec => Action::PubRecSent(answer),
            AckKind::PubRel => Action::PubRelSent(answer),
            AckKind::PubComp => Action::PubCompSent(answer),
        };
        connection.outgoing.push(Some(action), |out| {
            codec::encode_ack(kind, packet_id, ReasonCode::Success, one.character.version, out);
        });
    }

    // Staying, and going.

    pub(super) fn ping(&mut self, now_ns: u64, client: usize) {
        let connection = &self.clients[client];
        if connection.phase != Phase::Connected || connection.is_silent {
            return;
        }
        let (link, identity) = (connection.link, connection.identity);
        self.send(client, None, &Packet::PingReq);
        self.write(now_ns, client);
        let keep_alive = self.identities[identity].character.keep_alive;
        self.at(now_ns + u64::from(keep_alive) * SECOND_NS * 2 / 3, Happening::Ping(link));
    }

    fn disconnect(&mut self, now_ns: u64, client: usize) {
        let connection = &self.clients[client];
        let link = connection.link;
        let character = &self.identities[connection.identity].character;
        let (version, keeps) = (character.version, character.expiry > 0);
        let with_will = version == ProtocolVersion::V5 && self.percent(30);
        // From 0 to another one would break the protocol [MQTT-3.14.2-2].
        let expiry = if version == ProtocolVersion::V5 && keeps && self.percent(20) {
            self.count("left with another Session Expiry Interval");
            [0, 2, 2, 6, 3600].choose(&mut self.random).copied()
        } else {
            None
        };
        let reason_code = if with_will { ReasonCode::DisconnectWithWillMessage } else { ReasonCode::Success };
        let properties = DisconnectProperties { session_expiry_interval: expiry, ..DisconnectProperties::default() };
        let action = Action::DisconnectSent { reason: reason_code as u8, session_expiry: expiry };
        self.send(client, Some(action), &Packet::Disconnect(mqtt::Disconnect { reason_code, properties }));
        self.clients[client].phase = Phase::Leaving;
        self.count(if with_will { "left with the will" } else { "left" });
        let wait_ns = if self.percent(30) { self.milliseconds(0..50) } else { END_WAIT_NS };
        self.at(now_ns + wait_ns, Happening::GiveUp(link, Phase::Leaving));
    }

    /// From now on it answers nothing. In the end it is gone, or its node finds out.
    fn fall_silent(&mut self, now_ns: u64, client: usize) {
        self.count("fell silent");
        let connection = &mut self.clients[client];
        connection.is_silent = true;
        connection.owed.clear();
        let link = connection.link;
        let wait_ns = self.milliseconds(200..2_500);
        match self.random.random_range(0..3) {
            0 => self.at(now_ns + wait_ns, Happening::Vanish(link)),
            1 => self.at(now_ns + wait_ns, Happening::Close(link)),
            // [MQTT-3.1.2-22]: the node closes.
            _ => self.at(now_ns + (plan::SILENCE_SECONDS_MAX + 4) * SECOND_NS, Happening::Close(link)),
        }
    }

    /// What the server's end of the stream is waited for with, after it refused.
    pub(super) fn await_end(&mut self, now_ns: u64, client: usize) {
        self.clients[client].phase = Phase::Leaving;
        let link = self.clients[client].link;
        self.at(now_ns + END_WAIT_NS, Happening::GiveUp(link, Phase::Leaving));
    }
}
