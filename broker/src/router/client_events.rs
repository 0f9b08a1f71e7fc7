//! What is told of the clients here, as it happens.

use std::sync::Arc;

use kentongan_proto::mqtt::{QoS, SubscriptionOptions};

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use crate::config::ClientEventKind;
use crate::events::{ClientEvent, What, Who};
use crate::message::{Message, MessageIdentity};
use crate::metrics::CloseReason;

/// Messages about clients that may wait for the end of the turn. One SUBSCRIBE may have a thousand filters, and there may be many.
const WAITING_MAX: usize = 4096;

/// Those that are published in one turn.
const PUBLISHED_A_TURN_MAX: usize = 256;

impl ArbiterState {
    /// CONNACK is written.
    pub(super) fn tell_connected(&mut self, key: ConnectionKey, clean_start: bool, session_present: bool) {
        if !self.wants_event(ClientEventKind::Connected) {
            return;
        }
        let Some((client, session)) =
            self.clients.get(key.index()).and_then(|client| Some((client, client.session.as_ref()?)))
        else {
            return;
        };
        let what = What::Connected {
            keep_alive_seconds: client.keep_alive_seconds,
            clean_start,
            session_present,
            session_expiry_seconds: session.session_expiry_seconds,
        };
        let identity = Arc::clone(&session.identity);
        self.tell(key, &identity, what);
    }

    /// The connection is over, and its session was taken from it.
    pub(super) fn tell_disconnected(&mut self, key: ConnectionKey, identity: &str, reason: CloseReason) {
        if self.wants_event(ClientEventKind::Disconnected) {
            self.tell(key, identity, What::Disconnected { reason });
        }
    }

    /// A subscription that the client asked for stands.
    pub(super) fn tell_subscribed(&mut self, key: ConnectionKey, filter: &str, options: SubscriptionOptions) {
        if self.wants_event(ClientEventKind::Subscribed) {
            self.tell_of(key, What::Subscribed { filter, options });
        }
    }

    /// A subscription is gone: the client did not want it any more, or may not have it.
    pub(super) fn tell_unsubscribed(&mut self, key: ConnectionKey, filter: &str) {
        if self.wants_event(ClientEventKind::Unsubscribed) {
            self.tell_of(key, What::Unsubscribed { filter });
        }
    }

    fn wants_event(&self, kind: ClientEventKind) -> bool {
        self.shared.events.wants(kind) || self.shared.watches.is_tracing()
    }

    fn tell_of(&mut self, key: ConnectionKey, what: What<'_>) {
        let session = self.client(key).and_then(|client| client.session.as_ref());
        if let Some(identity) = session.map(|session| Arc::clone(&session.identity)) {
            self.tell(key, &identity, what);
        }
    }

    fn tell(&mut self, key: ConnectionKey, identity: &str, what: What<'_>) {
        let Some(client) = self.clients.get(key.index()) else {
            return;
        };
        let who = Who {
            client_id: &client.client_id,
            identity,
            origin: &client.origin,
            listener: &client.listener.address.to_string(),
            version: client.version,
        };
        let event = ClientEvent { who, what, wall_ms: self.shared.clock.wall_ms() };
        let events = &self.shared.events;
        if self.shared.watches.is_tracing() {
            self.shared.watches.traces().on_event(&client.client_id, || event.json(events.node()));
        }
        let Some((topic, json)) = events.tell(&event) else {
            return;
        };
        if self.client_events.len() == WAITING_MAX {
            return self.shared.events.count_sys_busy();
        }
        // Not now: somebody may be in the middle of handing on another message.
        self.client_events.push_back(Arc::new(Message {
            identity: MessageIdentity::default(),
            topic: Arc::from(topic),
            payload: json.into(),
            qos: QoS::AtMostOnce,
            retain: false,
            publisher: Arc::from(""),
            properties: None,
            expires_at_ms: None,
        }));
        self.schedule_flush();
    }

    /// Publishes what was told in this turn.
    pub(super) fn publish_client_events(&mut self) {
        for _ in 0..PUBLISHED_A_TURN_MAX {
            let Some(message) = self.client_events.pop_front() else {
                return;
            };
            self.route_message(&message);
        }
        if !self.client_events.is_empty() {
            self.schedule_flush();
        }
    }
}
