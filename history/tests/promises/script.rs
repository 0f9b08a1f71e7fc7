//! Histories that are written line by line.

use std::collections::HashMap;

use kentongan_history::{
    Action, Answer, ClosedBy, Connect, Delivery, History, MessageId, Promise, Publish, SECOND, Settings, Subscribe,
    Subscription, What, Will, check,
};

pub(super) const EVER: u32 = u32::MAX;
pub(super) const TOPIC: &str = "plant/1/temp";

/// A history that is written line by line; each line takes 10 ms.
#[derive(Default)]
pub(super) struct Script {
    pub(super) history: History,
    pub(super) now: u64,
    pub(super) connections: HashMap<&'static str, u32>,
    /// Of those that are not on node 1.
    pub(super) nodes: HashMap<&'static str, u16>,
    pub(super) packet_id: u16,
}

impl Script {
    pub(super) fn wait(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
    }

    pub(super) fn line(&mut self, client: &'static str, action: Action<&str>) {
        let connection = *self.connections.entry(client).or_insert(1);
        self.line_on(client, connection, action);
    }

    pub(super) fn line_on(&mut self, client: &'static str, connection: u32, action: Action<&str>) {
        let node = self.nodes.get(client).copied().unwrap_or(1);
        self.mark(What::Client { client, connection, node, action });
    }

    pub(super) fn mark(&mut self, what: What<&str>) {
        self.now += SECOND / 100;
        let event = kentongan_history::Event { at: self.now, what }.map(&mut |text| self.history.symbol(text));
        self.history.events_mut().push(event);
    }

    pub(super) fn connect_with(&mut self, client: &'static str, connect: Connect<&str>, session_present: bool) {
        *self.connections.entry(client).or_insert(0) += 1;
        self.line(client, Action::ConnectSent(Box::new(connect)));
        self.line(client, Action::ConnAck { reason: 0, session_present, session_expiry: None });
    }

    pub(super) fn connect(&mut self, client: &'static str, session_expiry: u32) {
        self.connect_with(client, Connect { clean_start: false, session_expiry, will: None }, false);
    }

    pub(super) fn resume(&mut self, client: &'static str, session_expiry: u32) {
        self.connect_with(client, Connect { clean_start: false, session_expiry, will: None }, true);
    }

    pub(super) fn connect_with_will(&mut self, client: &'static str, message: u64, delay: u32) {
        let will = Will { topic: TOPIC, qos: 1, retain: false, delay, message: MessageId(message) };
        let connect = Connect { clean_start: false, session_expiry: EVER, will: Some(will) };
        self.connect_with(client, connect, false);
    }

    pub(super) fn close(&mut self, client: &'static str) {
        self.line(client, Action::ConnectionClosed { by: ClosedBy::Client });
    }

    /// Resumed on another node.
    pub(super) fn move_to(&mut self, client: &'static str, node: u16) {
        self.close(client);
        self.nodes.insert(client, node);
        self.resume(client, EVER);
    }

    pub(super) fn subscribe(&mut self, client: &'static str, filter: &'static str, qos: u8) {
        self.subscribe_handling(client, filter, qos, 0);
    }

    pub(super) fn subscribe_handling(
        &mut self,
        client: &'static str,
        filter: &'static str,
        qos: u8,
        retain_handling: u8,
    ) {
        self.packet_id += 1;
        let filters = vec![Subscription { filter, qos, no_local: false, retain_as_published: false, retain_handling }];
        let packet_id = self.packet_id;
        self.line(client, Action::SubscribeSent(Box::new(Subscribe { packet_id, filters })));
        self.line(client, Action::SubAck { packet_id, reasons: Box::new([qos]) });
    }

    pub(super) fn unsubscribe(&mut self, client: &'static str, filter: &'static str) {
        self.packet_id += 1;
        let packet_id = self.packet_id;
        self.line(client, Action::UnsubscribeSent { packet_id, filters: Box::new([filter]) });
        self.line(client, Action::UnsubAck { packet_id, reasons: Box::new([0]) });
    }

    pub(super) fn send(&mut self, client: &'static str, message: u64, qos: u8) -> Publish<&'static str> {
        self.packet_id += 1;
        let publish = Publish {
            packet_id: if qos > 0 { self.packet_id } else { 0 },
            dup: false,
            qos,
            retain: false,
            topic: TOPIC,
            expiry: None,
            message: MessageId(message),
            empty: false,
        };
        self.line(client, Action::PublishSent(publish.clone()));
        publish
    }

    pub(super) fn acknowledge(&mut self, client: &'static str, packet_id: u16, qos: u8, reason: u8) {
        let answer = Answer { packet_id, reason };
        let action = if qos == 1 { Action::PubAckReceived(answer) } else { Action::PubRecReceived(answer) };
        self.line(client, action);
    }

    /// Sent and acknowledged.
    pub(super) fn publish(&mut self, client: &'static str, message: u64, qos: u8) {
        let sent = self.send(client, message, qos);
        self.acknowledge(client, sent.packet_id, qos, 0);
    }

    pub(super) fn publish_expiring(&mut self, client: &'static str, message: u64, expiry: u32) {
        self.packet_id += 1;
        let packet_id = self.packet_id;
        let publish = Publish {
            packet_id,
            dup: false,
            qos: 1,
            retain: false,
            topic: TOPIC,
            expiry: Some(expiry),
            message: MessageId(message),
            empty: false,
        };
        self.line(client, Action::PublishSent(publish));
        self.acknowledge(client, packet_id, 1, 0);
    }

    pub(super) fn retain(&mut self, client: &'static str, message: u64, empty: bool) {
        self.packet_id += 1;
        let packet_id = self.packet_id;
        let publish = Publish {
            packet_id,
            dup: false,
            qos: 1,
            retain: true,
            topic: TOPIC,
            expiry: None,
            message: MessageId(message),
            empty,
        };
        self.line(client, Action::PublishSent(publish));
        self.acknowledge(client, packet_id, 1, 0);
    }

    pub(super) fn deliver_as(
        &mut self,
        client: &'static str,
        message: u64,
        qos: u8,
        packet_id: u16,
        dup: bool,
        retain: bool,
    ) {
        let delivery = Delivery {
            packet_id,
            dup,
            qos,
            retain,
            topic: TOPIC,
            message: Some(MessageId(message)),
            expiry: None,
            identifiers: Box::default(),
        };
        self.line(client, Action::Delivered(delivery));
    }

    /// Delivered for the first time under a Packet Identifier of its own.
    pub(super) fn deliver(&mut self, client: &'static str, message: u64, qos: u8) {
        self.deliver_as(client, message, qos, 1_000 + message as u16, false, false);
    }

    pub(super) fn puback(&mut self, client: &'static str, message: u64) {
        self.line(client, Action::PubAckSent(Answer { packet_id: 1_000 + message as u16, reason: 0 }));
    }

    pub(super) fn broken(&self) -> Vec<Promise> {
        let violations = check(&self.history, &Settings::default());
        violations.iter().map(|violation| violation.promise).collect()
    }

    #[track_caller]
    pub(super) fn keeps_all(&self) {
        let violations = check(&self.history, &Settings::default());
        assert!(violations.is_empty(), "{}", violations[0]);
    }

    #[track_caller]
    pub(super) fn breaks(&self, promise: Promise) {
        assert_eq!(self.broken(), [promise]);
    }
}

/// A history of a subscriber with a session that lasts, and a publisher.
pub(super) fn pair(qos: u8) -> Script {
    let mut script = Script::default();
    script.connect("sub", EVER);
    script.connect("pub", 0);
    script.subscribe("sub", TOPIC, qos);
    script
}
