//! Who a client is and what it may do.
//!
//! One place decides all of it: [`Authority::may_publish`] and [`Authority::may_subscribe`] are asked on every path a
//! message or a filter can take. There are no users yet: an anonymous client may do everything but speak for the
//! broker, that is, publish to `$SYS`, unless an [`AccessControl`] that was plugged in says otherwise.

use std::sync::Arc;

use bytes::Bytes;
use kentongan_proto::mqtt::{Connect, ReasonCode};
use kentongan_proto::topic::TopicFilter;

use crate::connection::Origin;
use crate::listener::ListenerContext;
use crate::message;
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

/// What clients may do, beside what nobody may.
pub trait AccessControl: Send + Sync {
    /// Whether the client may publish to the topic, be it with a PUBLISH or as its will. A delayed message is judged by
    /// the topic that it will reach.
    fn may_publish(&self, identity: &str, client_id: &str, topic: &str) -> bool;

    /// Whether the client may subscribe to the filter: all that it matches. Of a shared subscription it is the filter
    /// inside.
    fn may_subscribe(&self, identity: &str, client_id: &str, filter: &TopicFilter) -> bool;
}

/// Sends clients to other servers (MQTT 5, section 4.11).
pub trait Redirector: Send + Sync {
    /// Where a client that connects should go; `None`: it may stay.
    fn on_connect(&self, identity: &str, client_id: &str) -> Option<Redirection>;

    /// Where a connected client should go when this server stops; `None`: wherever the setting
    /// `session.server_reference` says.
    fn on_shutdown(&self, identity: &str, client_id: &str) -> Option<Redirection>;
}

/// Another server for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    /// Server Reference: other servers, separated by spaces, such as `mqtt-2.example:1883`.
    pub server_reference: String,
    /// For good, which is 0x9D; otherwise for now, which is 0x9C.
    pub permanent: bool,
}

impl Redirection {
    /// For CONNACK or DISCONNECT.
    #[must_use]
    pub fn reason(&self) -> ReasonCode {
        if self.permanent { ReasonCode::ServerMoved } else { ReasonCode::UseAnotherServer }
    }
}

/// Decides who is who, who may what, and who goes where.
#[derive(Default)]
pub struct Authority {
    mechanisms: Vec<(String, MechanismFactory)>,
    access: Option<Box<dyn AccessControl>>,
    redirector: Option<Box<dyn Redirector>>,
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

    /// Lets `access` refuse what clients would otherwise be allowed.
    #[must_use]
    pub fn with_access_control(mut self, access: Box<dyn AccessControl>) -> Self {
        self.access = Some(access);
        self
    }

    /// Lets `redirector` send clients elsewhere.
    #[must_use]
    pub fn with_redirector(mut self, redirector: Box<dyn Redirector>) -> Self {
        self.redirector = Some(redirector);
        self
    }

    /// Where a client that connects should go instead, if anywhere.
    #[must_use]
    pub fn elsewhere_on_connect(&self, identity: &str, client_id: &str) -> Option<Redirection> {
        self.redirector.as_ref()?.on_connect(identity, client_id)
    }

    /// Where a client should go when this server stops, if anybody cares.
    #[must_use]
    pub fn elsewhere_on_shutdown(&self, identity: &str, client_id: &str) -> Option<Redirection> {
        self.redirector.as_ref()?.on_shutdown(identity, client_id)
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
        _origin: &Origin,
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

    /// Whether the client may publish to the topic: `$SYS` is the broker's own, also behind `$delayed/SECONDS/`.
    #[inline]
    #[must_use]
    pub fn may_publish(&self, identity: &str, client_id: &str, topic: &str) -> bool {
        let topic = message::delayed(topic).map_or(topic, |(_, reached)| reached);
        let for_the_broker = topic.starts_with('$') && (topic == "$SYS" || topic.starts_with("$SYS/"));
        !for_the_broker && self.access.as_ref().is_none_or(|access| access.may_publish(identity, client_id, topic))
    }

    /// Whether the client may subscribe to the filter.
    #[must_use]
    pub fn may_subscribe(&self, identity: &str, client_id: &str, filter: &TopicFilter) -> bool {
        self.access.as_ref().is_none_or(|access| access.may_subscribe(identity, client_id, filter))
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
        assert!(!authority.may_publish("", "a", "$delayed/0/$SYS/broker/version"), "what it stands for counts");
        assert!(authority.may_publish("", "a", "$SYSTEM"));
        assert!(authority.may_publish("", "a", "$delayed/5/plant/1"));
        assert!(authority.may_publish("", "a", "plant/1"));
    }

    /// Lets clients write below their own name, and read nothing at all.
    struct OwnName;

    impl AccessControl for OwnName {
        fn may_publish(&self, _identity: &str, client_id: &str, topic: &str) -> bool {
            topic.split('/').next() == Some(client_id)
        }

        fn may_subscribe(&self, _identity: &str, _client_id: &str, _filter: &TopicFilter) -> bool {
            false
        }
    }

    #[test]
    fn access_control_only_takes_away() {
        let authority = Authority::default().with_access_control(Box::new(OwnName));
        assert!(authority.may_publish("", "a", "a/1"));
        assert!(authority.may_publish("", "a", "$delayed/5/a/1"));
        assert!(!authority.may_publish("", "a", "b/1"));
        assert!(!authority.may_publish("", "a", "$delayed/5/b/1"));
        assert!(!authority.may_publish("", "$SYS", "$SYS/broker/uptime"), "not even if it says yes");
        assert!(!authority.may_subscribe("", "a", &TopicFilter::parse("a/1").expect("a filter")));
    }
}
