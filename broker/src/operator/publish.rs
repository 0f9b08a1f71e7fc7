//! Messages that an operator publishes.

use std::sync::Arc;

use super::{AskError, Operator, PART_MAX, Unvisited};
use crate::message::{Message, MessageIdentity, lifetime_ms};
use crate::router::ArbiterState;
use crate::session::handshake::Refusal;
use kentongan_proto::mqtt::{PublishProperties, QoS, ReasonCode};
use kentongan_proto::topic::check_topic_name;

/// A message to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToPublish {
    /// Topic Name.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Quality of Service.
    pub qos: QoS,
    /// Whether it is retained.
    pub retain: bool,
    /// What goes with it.
    pub properties: PublishProperties,
}

impl Operator {
    /// Hands a message to everyone who wants it, from this node. This node has taken it when this returns, and maybe nobody else: who must know
    /// that it is safe publishes by MQTT.
    ///
    /// A client that publishes is not read while others cannot keep up; whoever asks here cannot be kept waiting like that, and is refused.
    ///
    /// # Errors
    /// It is no message that may be published, or cannot be now. It is not published then, unless the error says that this is in doubt.
    pub fn publish(&self, wanted: ToPublish) -> Result<(), AskError> {
        let refused = |text: String| AskError::Refused(text);
        check_topic_name(&wanted.topic).map_err(|error| wrong_topic(&error))?;
        let bytes_max = self.shared.settings.session.packet_bytes_max.get() as usize;
        if wanted.payload.len() + wanted.topic.len() > bytes_max {
            return Err(refused(format!("larger than `session.packet_bytes_max` ({bytes_max})")));
        }
        let expires_at_ms =
            wanted.properties.message_expiry_interval.map(|seconds| self.shared.now_ms() + lifetime_ms(seconds));
        let mut message = Message {
            identity: MessageIdentity::default(),
            topic: wanted.topic.into(),
            payload: wanted.payload.into(),
            qos: wanted.qos,
            retain: wanted.retain,
            publisher: Arc::from(""),
            properties: Some(Box::new(wanted.properties)).filter(|own| **own != PublishProperties::default()),
            expires_at_ms,
        };
        if message.qos != QoS::AtMostOnce && self.shared.submitter.is_full() {
            return Err(AskError::Unavailable("the disk of this node is full".to_owned()));
        }
        let publish = move |arbiter: &mut ArbiterState| match arbiter.operator_refusal(&message) {
            Some(Refusal { reason: ReasonCode::TopicNameInvalid, text }) => Err(wrong_topic(&text)),
            Some(Refusal { text, .. }) => Err(AskError::Refused(text.to_owned())),
            None if arbiter.holds_up(&message) => Err(AskError::Unavailable(HELD_UP.to_owned())),
            None => {
                message.identity = arbiter.next_identity();
                arbiter.route_message(&Arc::new(message));
                Ok(())
            }
        };
        let unavailable = |unvisited| match unvisited {
            Unvisited::Undone => "this node is too busy to publish: ask again",
            Unvisited::InDoubt => {
                "this node is too busy to say whether it has published it: ask again if it may come twice"
            }
        };
        let published = self.visit_within(0, PART_MAX, publish);
        published.map_err(|unvisited| AskError::Unavailable(unavailable(unvisited).to_owned()))?
    }
}

/// Clients that publish wait, too.
const HELD_UP: &str =
    "it is not published: too much waits here for other nodes or for memory, as when a majority is down; ask again";

/// Asking again does not help: another topic does.
fn wrong_topic(what: &dyn std::fmt::Display) -> AskError {
    AskError::Invalid(format!("`topic`: {what}"))
}
