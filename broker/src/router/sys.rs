//! `$SYS`: what the broker says about itself, under the names that mosquitto uses.
//!
//! The values live in memory only: they go to live subscribers when they change and to new ones as retained
//! messages, and never enter the log.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use kentongan_proto::mqtt::QoS;
use kentongan_proto::topic;

use crate::clock::Clock;
use crate::message::{Message, MessageIdentity};
use crate::metrics::{self, Load, LoadAverages, Snapshot};

/// Whether a topic or a filter is about what the broker says of itself, and not about what only begins like that.
#[must_use]
pub fn is_sys(topic: &str) -> bool {
    topic.split('/').next() == Some("$SYS")
}

/// The current values, by topic.
#[derive(Debug, Default)]
pub struct SysTree {
    values: RwLock<BTreeMap<&'static str, Arc<Message>>>,
}

impl SysTree {
    /// Takes new figures and returns the messages whose values changed.
    pub fn update(&self, figures: &[(&'static str, String)]) -> Vec<Arc<Message>> {
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Vec::new();
        for (name, value) in figures {
            let same = values.get(name).is_some_and(|message| message.payload == value.as_bytes());
            if !same {
                let message = Arc::new(message(name, value));
                values.insert(name, Arc::clone(&message));
                changed.push(message);
            }
        }
        changed
    }

    /// The values whose topics match `filter`.
    #[must_use]
    pub fn matching(&self, filter: &str) -> Vec<Arc<Message>> {
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
        values.iter().filter(|(name, _)| topic::matches(filter, name)).map(|(_, message)| Arc::clone(message)).collect()
    }
}

fn message(name: &str, value: &str) -> Message {
    Message {
        identity: MessageIdentity::default(),
        topic: Arc::from(name),
        payload: Bytes::copy_from_slice(value.as_bytes()),
        qos: QoS::AtMostOnce,
        retain: false,
        publisher: Arc::from(""),
        properties: None,
        expires_at_ms: None,
    }
}

/// What the broker knows of its process, also if it counts nothing.
#[derive(Debug)]
pub struct Process {
    clock: Clock,
    heap_bytes: u64,
    heap_bytes_max: u64,
}

impl Process {
    /// The one that `clock` counts from the start of.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, heap_bytes: 0, heap_bytes_max: 0 }
    }

    /// Its figures now, under mosquitto's names. The heap's largest size is the largest that was seen.
    pub fn figures(&mut self) -> Vec<(&'static str, String)> {
        self.heap_bytes = metrics::anonymous_bytes().unwrap_or(self.heap_bytes);
        self.heap_bytes_max = self.heap_bytes_max.max(self.heap_bytes);
        let uptime_seconds = self.clock.elapsed().as_secs();
        vec![
            ("$SYS/broker/version", concat!("kentongan version ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("$SYS/broker/uptime", format!("{uptime_seconds} seconds")),
            ("$SYS/broker/heap/current", self.heap_bytes.to_string()),
            ("$SYS/broker/heap/maximum", self.heap_bytes_max.to_string()),
        ]
    }
}

/// What was counted, `snapshot` and `loads` up to it, under mosquitto's names.
#[must_use]
pub fn counted(snapshot: &Snapshot, loads: &LoadAverages) -> Vec<(&'static str, String)> {
    let disconnected = snapshot.clients_total.saturating_sub(snapshot.clients_connected);
    let counts = [
        ("$SYS/broker/clients/connected", snapshot.clients_connected),
        ("$SYS/broker/clients/active", snapshot.clients_connected),
        ("$SYS/broker/clients/disconnected", disconnected),
        ("$SYS/broker/clients/inactive", disconnected),
        ("$SYS/broker/clients/total", snapshot.clients_total.max(snapshot.clients_connected)),
        ("$SYS/broker/clients/maximum", snapshot.clients_maximum),
        ("$SYS/broker/clients/expired", snapshot.clients_expired),
        ("$SYS/broker/messages/received", snapshot.packets_received),
        ("$SYS/broker/messages/sent", snapshot.packets_sent),
        ("$SYS/broker/messages/inflight", snapshot.inflight_messages),
        ("$SYS/broker/messages/stored", snapshot.stored_messages),
        ("$SYS/broker/publish/messages/received", snapshot.publishes_received),
        ("$SYS/broker/publish/messages/sent", snapshot.publishes_sent),
        ("$SYS/broker/publish/messages/dropped", snapshot.publishes_dropped),
        ("$SYS/broker/publish/bytes/received", snapshot.publish_bytes_received),
        ("$SYS/broker/publish/bytes/sent", snapshot.publish_bytes_sent),
        ("$SYS/broker/bytes/received", snapshot.bytes_received),
        ("$SYS/broker/bytes/sent", snapshot.bytes_sent),
        ("$SYS/broker/retained messages/count", snapshot.retained_messages),
        ("$SYS/broker/subscriptions/count", snapshot.subscriptions),
        ("$SYS/broker/shared_subscriptions/count", snapshot.shared_subscriptions),
        ("$SYS/broker/store/messages/count", snapshot.stored_messages),
        ("$SYS/broker/store/messages/bytes", snapshot.stored_bytes),
        ("$SYS/broker/connections/socket/count", snapshot.sockets),
    ];
    let mut figures: Vec<_> = counts.into_iter().map(|(name, count)| (name, count.to_string())).collect();
    for (names, load) in load_averages(loads) {
        let averages = [load.one_minute, load.five_minutes, load.fifteen_minutes];
        figures.extend(names.into_iter().zip(averages.map(|average| format!("{average:.2}"))));
    }
    figures
}

/// Each average with its names, that over one minute first.
fn load_averages(loads: &LoadAverages) -> [([&'static str; 3], Load); 9] {
    macro_rules! names {
        ($what:literal) => {
            [
                concat!("$SYS/broker/load/", $what, "/1min"),
                concat!("$SYS/broker/load/", $what, "/5min"),
                concat!("$SYS/broker/load/", $what, "/15min"),
            ]
        };
    }
    [
        (names!("messages/received"), loads.messages_received),
        (names!("messages/sent"), loads.messages_sent),
        (names!("publish/received"), loads.publish_received),
        (names!("publish/sent"), loads.publish_sent),
        (names!("publish/dropped"), loads.publish_dropped),
        (names!("bytes/received"), loads.bytes_received),
        (names!("bytes/sent"), loads.bytes_sent),
        (names!("sockets"), loads.sockets),
        (names!("connections"), loads.connections),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changed_values_are_published_and_all_are_kept() {
        let tree = SysTree::default();
        let first = tree.update(&[("$SYS/broker/uptime", "1".to_owned()), ("$SYS/broker/version", "x".to_owned())]);
        assert_eq!(first.len(), 2);
        let second = tree.update(&[("$SYS/broker/uptime", "2".to_owned()), ("$SYS/broker/version", "x".to_owned())]);
        assert_eq!(second.iter().map(|message| &*message.topic).collect::<Vec<_>>(), ["$SYS/broker/uptime"]);
        assert_eq!(tree.matching("$SYS/broker/+").len(), 2);
        assert_eq!(tree.matching("$SYS/#").len(), 2);
        assert_eq!(tree.matching("#").len(), 0, "wildcards never match a topic that begins with $ [MQTT-4.7.2-1]");
    }
}
