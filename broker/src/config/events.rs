//! What is told of clients, and to whom.

use std::num::NonZeroU32;
use std::path::PathBuf;

use super::HttpUrl;
use super::schema::{choices, settings};
use super::secret::Secret;

/// Bytes that a secret has at least, for its signatures to be worth something.
const SECRET_BYTES_MIN: usize = 16;

const fn nonzero(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).expect("a default that must not be zero")
}

settings! {
    /// What becomes known of clients as it happens: `"connected"`, `"disconnected"`, `"subscribed"`, `"unsubscribed"`
    /// (docs/guide/events.md).
    pub struct EventsConfig {
        /// Which of them are published as JSON to `$SYS/brokers/NODE/clients/CLIENTID/EVENT`. None unless you say so: without rules on
        /// who may read `$SYS/#` every client would learn of every other who it is and where it comes from.
        pub sys: Vec<ClientEventKind> = Vec::new(),
        /// A server of yours that is told.
        pub webhook: WebhookConfig = WebhookConfig::default(),
    }

    /// A server of yours that is told of clients, by requests that are signed as Standard Webhooks has it. No client waits for it: what
    /// finds no room is counted and left out.
    pub struct WebhookConfig {
        /// Where events are posted, such as `https://events.example/mqtt`. Unset: nowhere.
        pub url: Option<HttpUrl> = None,
        /// Which events.
        pub events: Vec<ClientEventKind> = vec![ClientEventKind::Connected, ClientEventKind::Disconnected],
        /// What requests are signed with, by HMAC-SHA256: `whsec_` and the key in base64, as receivers' libraries want it, or any text,
        /// whose bytes are the key. 16 bytes or more.
        pub secret: Option<Secret> = None,
        /// The same in a file of its own.
        pub secret_file: Option<PathBuf> = None,
        /// Authorities (PEM) that a server of `https` is trusted by. Unset: those that the system trusts.
        pub ca_file: Option<PathBuf> = None,
        /// Time for a request, from connecting to the last byte of its answer.
        pub timeout_milliseconds: NonZeroU32 = nonzero(5000),
        /// Events in one request.
        pub batch_events_max: NonZeroU32 = nonzero(100),
        /// How long the first event of a request waits for others.
        pub linger_milliseconds: u32 = 100,
        /// Events that may wait; one more is left out.
        pub queue_events_max: NonZeroU32 = nonzero(10_000),
        /// Their bytes, likewise.
        pub queue_bytes_max: NonZeroU32 = nonzero(8 * 1024 * 1024),
        /// The longest pause between two tries of a request. The first is half a second, each later one twice as long.
        pub retry_seconds_max: NonZeroU32 = nonzero(30),
        /// How long a request is tried before its events are left out.
        pub give_up_seconds: NonZeroU32 = nonzero(600),
    }
}

choices! {
    /// What happens to a client.
    pub enum ClientEventKind {
        /// It was let in.
        Connected = "connected",
        /// Its connection ended.
        Disconnected = "disconnected",
        /// A subscription that it asked for stands.
        Subscribed = "subscribed",
        /// A subscription is gone, while the client is there.
        Unsubscribed = "unsubscribed",
    }
}

impl WebhookConfig {
    /// Says what is wrong of each key to `refuse`. The secret is not read from its file yet.
    pub(super) fn contradictions(&self, refuse: &mut impl FnMut(&str, String)) {
        if self.secret.is_some() && self.secret_file.is_some() {
            refuse("secret_file", String::from("give either `secret` or `secret_file`"));
        }
        if self.url.is_some() && self.secret.is_none() && self.secret_file.is_none() {
            refuse("secret_file", String::from("say what requests to `url` are signed with"));
        }
        if self.url.is_some() && self.events.is_empty() {
            refuse("events", String::from("name at least one, or no `url`"));
        }
        if let Err(message) = self.key() {
            refuse("secret", message);
        }
    }

    /// What requests are signed with; empty if there is no secret.
    ///
    /// # Errors
    /// The secret is none.
    pub fn key(&self) -> Result<Vec<u8>, String> {
        use base64::Engine as _;
        let Some(secret) = &self.secret else {
            return Ok(Vec::new());
        };
        let key = match secret.expose().strip_prefix("whsec_") {
            Some(text) => base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_err(|_| String::from("what follows `whsec_` is no base64"))?,
            None => secret.expose().as_bytes().to_vec(),
        };
        if key.len() < SECRET_BYTES_MIN {
            return Err(format!("a key of {} bytes can be guessed; {SECRET_BYTES_MIN} or more", key.len()));
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(toml: &str) -> Vec<String> {
        let config: WebhookConfig = toml::from_str(toml).unwrap();
        let mut problems = Vec::new();
        config.contradictions(&mut |key, message| problems.push(format!("{key}: {message}")));
        problems
    }

    #[test]
    fn a_webhook_without_a_key_that_is_one_is_refused() {
        const URL: &str = "url = \"https://events.example/\"\n";
        assert!(problems("").is_empty());
        assert!(problems(&format!("{URL}secret_file = \"s\"")).is_empty());
        assert!(problems(&format!("{URL}secret = \"0123456789abcdef\"")).is_empty());
        assert!(problems(&format!("{URL}secret = \"whsec_MDEyMzQ1Njc4OWFiY2RlZg==\"")).is_empty());
        for (wrong, expected) in [
            ("", "secret_file: say what"),
            ("secret = \"short\"", "secret: a key of 5 bytes can be guessed"),
            ("secret = \"whsec_???\"", "secret: what follows `whsec_` is no base64"),
            ("secret = \"whsec_MDEy\"", "secret: a key of 3 bytes"),
            ("secret_file = \"s\"\nevents = []", "events: name at least one"),
            ("secret_file = \"s\"\nsecret = \"0123456789abcdef\"", "secret_file: give either"),
        ] {
            let found = problems(&format!("{URL}{wrong}"));
            assert!(found.len() == 1 && found[0].starts_with(expected), "{wrong}: {found:?}");
        }
    }
}
