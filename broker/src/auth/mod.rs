//! Who a client is and what it may do.
//!
//! One place decides all of it: [`Authority::may_publish`] and [`Authority::may_subscribe`] are asked on every path a
//! message or a filter can take. There are no users yet: an anonymous client may do everything but speak for the
//! broker, that is, publish to `$SYS`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use kentongan_proto::mqtt::{Connect, ReasonCode};
use kentongan_proto::topic::TopicFilter;

use crate::listener::ListenerContext;
use crate::session::handshake::Refusal;

/// One exchange of enhanced authentication (MQTT 5, section 4.12).
pub trait Mechanism: Send {
    /// Takes what the client sent, in CONNECT first and then in AUTH, and says how to go on.
    fn step(&mut self, data: Option<&[u8]>) -> MechanismStep;
}

/// The answer of a [`Mechanism`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MechanismStep {
    /// AUTH with this data; the client must answer.
    Continue(Option<Bytes>),
    /// The client is who it claims.
    Success {
        /// Whom sessions of this client belong to.
        identity: Arc<str>,
        /// Goes with the CONNACK, or the last AUTH.
        data: Option<Bytes>,
    },
    /// It is not.
    Failure(ReasonCode),
}

/// Makes a mechanism for one exchange.
pub type MechanismFactory = Box<dyn Fn() -> Box<dyn Mechanism> + Send + Sync>;

/// Decides who is who and who may what.
#[derive(Default)]
pub struct Authority {
    mechanisms: Vec<(String, MechanismFactory)>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").field("mechanisms", &self.mechanisms.len()).finish()
    }
}

impl Authority {
    /// Adds a mechanism under its Authentication Method.
    #[must_use]
    pub fn with_mechanism(mut self, method: &str, factory: MechanismFactory) -> Self {
        self.mechanisms.push((method.to_owned(), factory));
        self
    }

    /// A fresh exchange of the method, if we know it.
    #[must_use]
    pub fn mechanism(&self, method: &str) -> Option<Box<dyn Mechanism>> {
        self.mechanisms.iter().find(|(name, _)| name == method).map(|(_, factory)| factory())
    }

    /// Who the client is. Without users that is nobody in particular, where the listener lets nobody in.
    ///
    /// # Errors
    /// What CONNACK should say.
    pub fn authenticate(
        &self,
        _connect: &Connect,
        listener: &ListenerContext,
        _peer: Option<SocketAddr>,
    ) -> Result<Arc<str>, Refusal> {
        if listener.allow_anonymous {
            Ok(Arc::from(""))
        } else {
            Err(Refusal {
                reason: ReasonCode::NotAuthorized,
                text: "anonymous clients are not allowed on this listener (allow_anonymous)",
            })
        }
    }

    /// Whether the client may publish to the topic: `$SYS` is the broker's own.
    #[inline]
    #[must_use]
    pub fn may_publish(&self, _identity: &str, _client_id: &str, topic: &str) -> bool {
        !(topic.starts_with('$') && (topic == "$SYS" || topic.starts_with("$SYS/")))
    }

    /// Whether the client may subscribe to the filter.
    #[must_use]
    pub fn may_subscribe(&self, _identity: &str, _client_id: &str, _filter: &TopicFilter) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_speaks_for_the_broker() {
        let authority = Authority::default();
        assert!(!authority.may_publish("", "a", "$SYS/broker/uptime"));
        assert!(!authority.may_publish("", "a", "$SYS"));
        assert!(authority.may_publish("", "a", "$SYSTEM"));
        assert!(authority.may_publish("", "a", "plant/1"));
    }
}
