//! What operators who look see of the connections here. Not called while nobody does.

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::Client;
use super::publish::Publication;
use crate::metrics::{Label as _, PacketKind};
use crate::watching::slow::{SlowSubscriber, Slowest};
use crate::watching::trace::{Scene, Traced};

impl ArbiterState {
    fn scene<'a>(&'a self, client_id: &'a str) -> Scene<'a> {
        Scene { node: self.shared.events.node(), wall_ms: self.shared.clock.wall_ms(), client_id }
    }

    /// A client has published something that is accepted.
    #[cold]
    pub(super) fn watch_publish(&self, client_id: &str, publication: &Publication<'_>) {
        let (topic, payload) = (publication.topic, publication.payload.as_slice());
        if self.shared.watches.is_counting_topics() {
            self.shared.watches.topics().count(self.id, publication.topic_hash, topic, payload.len());
        }
        if self.shared.watches.is_tracing() {
            let (qos, retain) = (publication.qos as u8, publication.retain);
            let publish = Traced { topic, qos, retain, payload, reason: None };
            self.shared.watches.traces().on_publish(self.scene(client_id), "publish.received", publish);
        }
    }

    /// A client has published something that is refused.
    #[cold]
    pub(super) fn trace_refused(&self, client_id: &str, publish: Traced<'_>) {
        self.shared.watches.traces().on_publish(self.scene(client_id), "publish.refused", publish);
    }

    /// A PUBLISH was written to a client.
    #[cold]
    pub(super) fn trace_sent(&self, key: ConnectionKey, publication: &Publication<'_>, qos: u8, retain: bool) {
        if let Some(client) = self.clients.get(key.index()) {
            let payload = publication.payload.as_slice();
            let publish = Traced { topic: publication.topic, qos, retain, payload, reason: None };
            self.shared.watches.traces().on_publish(self.scene(&client.client_id), "publish.sent", publish);
        }
    }

    /// Another packet has come from a client, or was written to it.
    #[cold]
    pub(super) fn trace_packet(&self, key: ConnectionKey, event: &str, kind: PacketKind) {
        if let Some(client) = self.clients.get(key.index()) {
            let packet = PacketKind::VALUES[kind.index()];
            self.shared.watches.traces().on_packet(self.scene(&client.client_id), event, packet);
        }
    }

    /// Shows the clients in the places from `from` on to `slowest`, `places` of them. Returns where to go on; `None`: those were all.
    pub fn look_for_slow(&self, from: usize, places: usize, slowest: &mut Slowest) -> Option<usize> {
        let until = from.saturating_add(places);
        for place in from..until.min(self.clients.capacity()) {
            if let Some(client) = self.clients.get(place) {
                self.slow_subscriber(client).into_iter().for_each(|one| slowest.look_at(one));
            }
        }
        (until < self.clients.capacity()).then_some(until)
    }

    fn slow_subscriber(&self, client: &Client) -> Option<SlowSubscriber> {
        let session = client.session.as_ref().filter(|_| client.is_connected())?;
        let backlog = session.outbound.backlog();
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let served = session.served.as_ref().map_or(0, |served| served.sent.len() as u64);
        let is_blocked = client.blocked && client.blocked_since != 0;
        // Most keep up: nothing is written about them.
        if client.out.is_empty() && !is_blocked && served == 0 && backlog.in_flight + backlog.queued_messages == 0 {
            return None;
        }
        let is_transient = session.persistent.is_none();
        let now = self.now_seconds();
        Some(SlowSubscriber {
            clientid: client.client_id.to_string(),
            username: (!session.identity.is_empty()).then(|| session.identity.to_string()),
            ip_address: client.origin.address.map(|address| address.ip().to_canonical().to_string()),
            node: self.shared.events.node().to_owned(),
            out_buffer_bytes: client.out.len() as u64,
            mqueue_len: is_transient.then(|| count(backlog.queued_messages)),
            mqueue_bytes: is_transient.then(|| count(backlog.queued_bytes)),
            inflight_cnt: if is_transient { count(backlog.in_flight) } else { served },
            blocked_seconds: if is_blocked { now.saturating_sub(client.blocked_since) } else { 0 },
            silent_seconds: now.saturating_sub(client.last_activity),
        })
    }
}
