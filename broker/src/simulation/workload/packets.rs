//! What clients do with the packets they receive.

use kentongan_history::{Action, Answer, Delivery, MessageId, matching};
use kentongan_proto::mqtt::codec::{self, AckKind, FrameStatus, Limits, Sender};
use kentongan_proto::mqtt::{self, Ack, ConnAck, Packet, Publish};

use super::connection::Phase;
use super::plan::Kind;
use super::{Happening, Workload};

impl Workload {
    /// Takes all whole packets of what was read.
    pub(super) fn take_packets(&mut self, now_ns: u64, client: usize) {
        let mut unparsed = std::mem::take(&mut self.clients[client].unparsed);
        let version = self.identities[self.clients[client].identity].character.version;
        let limits = Limits::default();
        let mut taken = 0;
        while taken < unparsed.len() {
            let packet = match codec::split_frame(&unparsed[taken..], Sender::Server, &limits) {
                Ok(FrameStatus::Incomplete { .. }) => break,
                Ok(FrameStatus::Complete(frame)) => {
                    taken += frame.len();
                    codec::decode(&frame, None, version, Sender::Server, &limits)
                }
                Err(error) => Err(error),
            };
            match packet {
                Ok(packet) => self.on_packet(now_ns, client, packet),
                Err(error) => {
                    self.complain(client, &format!("was sent what is no MQTT: {error}"));
                    taken = unparsed.len();
                }
            }
        }
        unparsed.drain(..taken);
        self.clients[client].unparsed = unparsed;
    }

    pub(super) fn complain(&mut self, client: usize, what: &str) {
        let connection = &self.clients[client];
        let name = &self.identities[connection.identity].name;
        self.complaints.push(format!("{name} {what} (connection {})", connection.link.number));
    }

    fn on_packet(&mut self, now_ns: u64, client: usize, packet: Packet) {
        if !matches!(packet, Packet::PingResp) {
            self.last_packet_ns = now_ns;
        }
        match packet {
            Packet::ConnAck(connack) => self.on_connack(now_ns, client, &connack),
            Packet::Publish(publish) => self.on_publish(now_ns, client, &publish),
            Packet::PubAck(ack) => {
                self.record(now_ns, client, Action::PubAckReceived(answer(&ack)));
                self.forget(client, &ack);
            }
            Packet::PubRec(ack) => {
                self.record(now_ns, client, Action::PubRecReceived(answer(&ack)));
                if ack.reason_code.is_error() {
                    self.forget(client, &ack);
                } else if self.is_current(client) {
                    self.owe(now_ns, client, AckKind::PubRel, ack.packet_id);
                }
            }
            Packet::PubRel(ack) => {
                self.record(now_ns, client, Action::PubRelReceived(answer(&ack)));
                self.owe(now_ns, client, AckKind::PubComp, ack.packet_id);
            }
            Packet::PubComp(ack) => {
                self.record(now_ns, client, Action::PubCompReceived(answer(&ack)));
                self.forget(client, &ack);
            }
            Packet::SubAck(suback) => {
                let reasons = suback.reason_codes.iter().map(|&reason| reason as u8).collect();
                let packet_id = suback.packet_id.get();
                self.on_answer(client);
                self.record(now_ns, client, Action::SubAck { packet_id, reasons });
            }
            Packet::UnsubAck(unsuback) => {
                let reasons = unsuback.reason_codes.iter().map(|&reason| reason as u8).collect();
                let packet_id = unsuback.packet_id.get();
                self.on_answer(client);
                self.record(now_ns, client, Action::UnsubAck { packet_id, reasons });
            }
            Packet::PingResp => self.record(now_ns, client, Action::PingResp),
            Packet::Disconnect(mqtt::Disconnect { reason_code, .. }) => {
                self.record(now_ns, client, Action::DisconnectReceived { reason: reason_code as u8 });
                self.await_end(now_ns, client);
            }
            other => self.complain(client, &format!("was sent {other:?}")),
        }
    }

    fn on_connack(&mut self, now_ns: u64, client: usize, connack: &ConnAck) {
        let session_present = connack.session_present;
        let session_expiry = connack.properties.session_expiry_interval;
        let reason = connack.reason_code as u8;
        self.record(now_ns, client, Action::ConnAck { reason, session_present, session_expiry });
        if connack.reason_code.is_error() {
            self.count("refused by CONNACK");
            return self.await_end(now_ns, client);
        }
        let connection = &mut self.clients[client];
        if connection.phase != Phase::Connecting {
            return self.complain(client, "was sent CONNACK once more");
        }
        connection.phase = Phase::Connected;
        connection.alias_maximum = connack.properties.topic_alias_maximum.unwrap_or(0);
        let (link, identity) = (connection.link, connection.identity);
        self.resume(client, session_present);
        self.count(if session_present { "session resumed" } else { "session begun" });
        let kind = self.identities[identity].character.kind;
        match kind {
            Kind::Publisher if !self.percent(30) => {}
            Kind::Claimer if !self.percent(50) => {}
            Kind::LastReader => self.subscribe(client, Some(1)),
            _ if session_present && !self.percent(10) => {}
            _ => self.subscribe(client, Some(2)),
        }
        self.act_later(now_ns, link);
        self.at(now_ns, Happening::Ping(link));
    }

    fn on_publish(&mut self, now_ns: u64, client: usize, publish: &Publish) {
        let message = match publish.payload.first_chunk() {
            Some(number) => Some(MessageId(u64::from_be_bytes(*number))),
            None if publish.payload.is_empty() => None,
            None => return self.complain(client, "was sent a payload that nobody published"),
        };
        let Some(topic) = self.topic_of(client, publish) else {
            return self.complain(client, "was sent a Topic Alias that it was never told of, or did not allow");
        };
        self.look_at_identifiers(client, &topic, &publish.properties.subscription_identifiers);
        let delivery = Delivery {
            packet_id: publish.delivery.packet_id().map_or(0, mqtt::PacketId::get),
            dup: publish.dup,
            qos: publish.delivery.qos() as u8,
            retain: publish.retain,
            topic: self.history.symbol(&topic),
            message,
            expiry: publish.properties.message_expiry_interval,
            identifiers: publish.properties.subscription_identifiers.as_slice().into(),
        };
        self.record(now_ns, client, Action::Delivered(delivery));
        match publish.delivery {
            mqtt::Delivery::AtMostOnce => {}
            mqtt::Delivery::AtLeastOnce(packet_id) => self.owe(now_ns, client, AckKind::PubAck, packet_id),
            mqtt::Delivery::ExactlyOnce(packet_id) => self.owe(now_ns, client, AckKind::PubRec, packet_id),
        }
    }

    /// The Topic Name, or what an alias stands for. `None`: nothing.
    fn topic_of(&mut self, client: usize, publish: &Publish) -> Option<String> {
        let Some(alias) = publish.properties.topic_alias else {
            return Some(publish.topic.clone());
        };
        let connection = &mut self.clients[client];
        let maximum = self.identities[connection.identity].character.topic_alias_maximum.unwrap_or(0);
        if alias == 0 || alias > maximum {
            return None;
        }
        if publish.topic.is_empty() {
            let topic = connection.aliases_of_server.get(&alias).cloned();
            self.count("received by a Topic Alias");
            return topic;
        }
        connection.aliases_of_server.insert(alias, publish.topic.clone());
        Some(publish.topic.clone())
    }

    /// A Subscription Identifier is of a filter that matches [MQTT-3.3.4-3].
    fn look_at_identifiers(&mut self, client: usize, topic: &str, identifiers: &[u32]) {
        if !identifiers.is_empty() {
            self.count("received with a Subscription Identifier");
        }
        let known = &self.identities[self.clients[client].identity].identifiers;
        let plain = |filter: &'static str| matching::split_share(filter).map_or(filter, |(_, plain)| plain);
        let is_known = |&identifier: &u32| {
            known.iter().any(|&(given, filter)| given == identifier && matching::matches(plain(filter), topic))
        };
        if !identifiers.iter().all(is_known) {
            self.complain(client, &format!("was sent {topic} with {identifiers:?}, which none of its filters has"));
        }
    }

    fn on_answer(&mut self, client: usize) {
        let connection = &mut self.clients[client];
        match connection.requests_open.checked_sub(1) {
            Some(open) => connection.requests_open = open,
            None => self.complain(client, "was sent an answer to nothing"),
        }
    }

    /// An answer on a connection that was replaced says nothing of what its successor sent.
    fn forget(&mut self, client: usize, ack: &Ack) {
        if self.is_current(client) {
            let identity = self.clients[client].identity;
            self.identities[identity].forget(ack.packet_id);
        }
    }
}

fn answer(ack: &Ack) -> Answer {
    Answer { packet_id: ack.packet_id.get(), reason: ack.reason_code as u8 }
}
