//! What becomes known of clients as it happens: that they connected, disconnected and why, subscribed and unsubscribed.
//!
//! An event is one object of JSON ([`description`]), made where it happens and only if somebody wants it. It goes out by `$SYS`, from
//! the arbiter where it happened (`router/client_events.rs`), and to a server of the operator's ([`webhook`]). Neither is waited for:
//! both have bounded queues, and what finds no room is counted.

mod description;
mod signature;
mod waiting;
mod webhook;

use std::sync::OnceLock;

pub use description::{ClientEvent, What, Who};

use crate::config::{ClientEventKind, Settings};
use crate::http_client::HttpClientError;
use crate::metrics::{EventDrop, EventMetrics};
use webhook::Webhook;

/// Bytes of an escaped name in a topic. A Client Identifier may be as long as a topic; whoever needs all of it reads the payload.
const NAME_BYTES_MAX: usize = 1024;

/// Some of the kinds of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kinds(u8);

impl Kinds {
    fn of(kinds: &[ClientEventKind]) -> Self {
        Self(kinds.iter().fold(0, |all, &kind| all | 1 << kind as u8))
    }

    fn has(self, kind: ClientEventKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }
}

/// Who wants which events of this node.
#[derive(Debug)]
pub struct ClientEvents {
    /// What the node is called, and how it stands in a topic.
    node: String,
    node_level: String,
    sys: Kinds,
    webhook_wants: Kinds,
    webhook: OnceLock<Webhook>,
    metrics: OnceLock<EventMetrics>,
}

impl ClientEvents {
    /// As the settings say. The webhook hears of nothing before [`Self::begin`].
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let config = &settings.events;
        let node = settings.node_name();
        Self {
            node_level: level(&node),
            node,
            sys: Kinds::of(&config.sys),
            webhook_wants: config.webhook.url.as_ref().map_or(Kinds::default(), |_| Kinds::of(&config.webhook.events)),
            webhook: OnceLock::new(),
            metrics: OnceLock::new(),
        }
    }

    /// Starts the webhook's thread, if there is a webhook, and counts from now on. The first call holds.
    ///
    /// # Errors
    /// The authorities that its server is to be trusted by cannot be used, or the system gives no thread.
    pub fn begin(&self, settings: &Settings, metrics: EventMetrics) -> Result<(), BeginError> {
        if let Some(webhook) = Webhook::start(&self.node, &settings.events.webhook, metrics.clone())?
            && self.webhook.set(webhook).is_err()
        {
            tracing::warn!("the webhook was begun already");
        }
        // A second one would count the same.
        let _ = self.metrics.set(metrics);
        Ok(())
    }

    /// Whether anybody wants events of a kind.
    #[inline]
    #[must_use]
    pub fn wants(&self, kind: ClientEventKind) -> bool {
        Kinds(self.sys.0 | self.webhook_wants.0).has(kind)
    }

    /// What this node is called.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Hands an event to the webhook, if that wants it. What is to be published under `$SYS`, topic and payload, is returned.
    pub fn tell(&self, event: &ClientEvent<'_>) -> Option<(String, String)> {
        let kind = event.kind();
        if !self.wants(kind) {
            return None;
        }
        let json = event.json(&self.node);
        if let Some(webhook) = self.webhook.get().filter(|_| self.webhook_wants.has(kind)) {
            webhook.offer(json.clone());
        }
        self.sys.has(kind).then(|| (self.topic(event.who.client_id, kind), json))
    }

    fn topic(&self, client_id: &str, kind: ClientEventKind) -> String {
        format!("$SYS/brokers/{}/clients/{}/{kind}", self.node_level, level(client_id))
    }

    /// An event was not published under `$SYS`, for there were too many.
    pub fn count_sys_busy(&self) {
        if let Some(metrics) = self.metrics.get() {
            metrics.dropped(EventDrop::SysBusy, 1);
        }
    }

    /// What waits for the webhook gets its last chance, but not for long. The process ends.
    pub fn finish(&self) {
        if let Some(webhook) = self.webhook.get() {
            webhook.finish();
        }
    }
}

/// Why events cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The operator's to mend.
    #[error("events.webhook: {0}")]
    Client(#[from] HttpClientError),
    /// The key cannot be used.
    #[error("events.webhook: {0}")]
    Key(String),
    /// The system's doing.
    #[error("events.webhook: no thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A name as one level of a topic: `/`, `+`, `#`, `%`, `$` at its beginning and control characters as `%` and two digits, as in a URL.
/// One that is too long ends early.
fn level(name: &str) -> String {
    let mut level = String::with_capacity(name.len());
    for character in name.chars() {
        let is_plain = !matches!(character, '/' | '+' | '#' | '%') && !character.is_control();
        if is_plain && !(level.is_empty() && character == '$') {
            level.push(character);
        } else {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                level.push_str(&format!("%{byte:02X}"));
            }
        }
        if level.len() >= NAME_BYTES_MAX {
            break;
        }
    }
    level
}

#[cfg(test)]
mod tests {
    use kentongan_proto::topic::check_topic_name;

    use super::*;

    #[test]
    fn any_name_is_one_level_of_a_topic() {
        for (name, expected) in [
            ("lamp-7", "lamp-7"),
            ("a/b", "a%2Fb"),
            ("+", "%2B"),
            ("#", "%23"),
            ("50%", "50%25"),
            ("$SYS", "%24SYS"),
            ("a$", "a$"),
            ("a\u{1}\u{85}", "a%01%C2%85"),
            ("lampu-é-灯", "lampu-é-灯"),
        ] {
            assert_eq!(level(name), expected);
            assert_eq!(check_topic_name(&format!("$SYS/brokers/n/clients/{}/connected", level(name))), Ok(()));
        }
        let long = level(&"灯/".repeat(20_000));
        assert!(long.len() < NAME_BYTES_MAX + 16, "{}", long.len());
    }
}
