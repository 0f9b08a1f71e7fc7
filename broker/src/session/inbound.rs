//! The client's half of a session: messages on their way in.
//!
//! A QoS 2 message moves `(none) → Routing → AwaitingPubRel → (none)`; QoS 1 stops after `Routing`. PUBACK and
//! PUBREC leave only once the router has accepted the message (see [`super::acknowledgements`]).

use hashbrown::HashMap;
use kentongan_proto::mqtt::{Delivery, PacketId, ReasonCode};

use super::SessionError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    /// With the router; PUBREC follows.
    Routing,
    /// PUBREC was sent.
    AwaitingPubRel,
    /// Likewise, over a connection before this one, and nothing came of it over this one yet.
    Resumed,
}

/// What to do about a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishStep {
    /// A new message: route it.
    Route,
    /// The client missed our PUBREC: answer again, never route again [MQTT-4.3.3-10].
    AnswerAgain,
    /// Still with the router, which will answer.
    Wait,
}

/// Identifiers and quota of messages from the client.
#[derive(Debug)]
pub struct Inbound {
    receive_maximum: u16,
    /// Whether a client that exceeds the maximum is at fault (5), or knows of none (3.x).
    enforced: bool,
    /// QoS 1 messages not yet acknowledged.
    at_least_once: u32,
    /// QoS 2 messages whose PUBREC was not sent.
    routing: u32,
    /// QoS 2 messages that came over connections before this one. Each connection begins with its whole quota [MQTT-4.9.0-1], so they
    /// count only once the client sends them again.
    resumed: usize,
    /// No more than there are identifiers: 640 KiB at most. A client of 3.x may leave as many waiting for its PUBREL over one
    /// connection.
    received: HashMap<PacketId, Received, foldhash::fast::RandomState>,
}

impl Inbound {
    /// `enforced`: the client was told the maximum (MQTT 5).
    #[must_use]
    pub fn new(receive_maximum: u16, enforced: bool) -> Self {
        Self { receive_maximum, enforced, at_least_once: 0, routing: 0, resumed: 0, received: HashMap::default() }
    }

    /// Takes over the QoS 2 identifiers that a resumed session still holds: their PUBREC was committed.
    pub fn resume(&mut self, received: impl IntoIterator<Item = PacketId>) {
        for id in received {
            if self.received.insert(id, Received::Resumed) != Some(Received::Resumed) {
                self.resumed += 1;
            }
        }
    }

    /// Whether reading should stop until we have answered something: 3.x knows no Receive Maximum, so the quota
    /// shows there as back pressure. What waits for the client's own PUBREL does not count, or it could never come.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.enforced && self.at_least_once + self.routing >= u32::from(self.receive_maximum)
    }

    fn unacknowledged(&self) -> usize {
        self.at_least_once as usize + self.received.len() - self.resumed
    }

    /// Takes one PUBLISH from the client and says what must be done about it. On error nothing changed.
    ///
    /// # Errors
    /// The Receive Maximum is exceeded [MQTT-3.3.4-7]; the quota never delays other packets [MQTT-4.9.0-3].
    #[inline]
    pub fn on_publish(&mut self, delivery: Delivery) -> Result<PublishStep, SessionError> {
        match delivery {
            Delivery::AtMostOnce => Ok(PublishStep::Route),
            Delivery::AtLeastOnce(_) => {
                self.check_quota()?;
                self.at_least_once += 1;
                Ok(PublishStep::Route)
            }
            Delivery::ExactlyOnce(id) => match self.received.get(&id) {
                Some(Received::AwaitingPubRel) => Ok(PublishStep::AnswerAgain),
                Some(Received::Routing) => Ok(PublishStep::Wait),
                Some(Received::Resumed) => {
                    self.check_quota()?;
                    self.received.insert(id, Received::AwaitingPubRel);
                    self.resumed -= 1;
                    Ok(PublishStep::AnswerAgain)
                }
                None => {
                    self.check_quota()?;
                    self.received.insert(id, Received::Routing);
                    self.routing += 1;
                    Ok(PublishStep::Route)
                }
            },
        }
    }

    fn check_quota(&self) -> Result<(), SessionError> {
        if self.enforced && self.unacknowledged() >= usize::from(self.receive_maximum) {
            return Err(SessionError::ReceiveMaximumExceeded { receive_maximum: self.receive_maximum });
        }
        Ok(())
    }

    /// A PUBACK is about to leave; afterwards the identifier is a new message's [MQTT-4.3.2-5].
    #[inline]
    pub fn on_puback_sent(&mut self) {
        debug_assert!(self.at_least_once > 0, "a PUBACK for a message that never came");
        self.at_least_once -= 1;
    }

    /// A PUBREC is about to leave. One that refuses frees the identifier [MQTT-4.3.3-9].
    #[inline]
    pub fn on_pubrec_sent(&mut self, id: PacketId, reason: ReasonCode) {
        let before = if reason.is_error() {
            self.received.remove(&id)
        } else {
            self.received.insert(id, Received::AwaitingPubRel)
        };
        self.is_no_more(before);
    }

    /// PUBREL frees the identifier; the reason goes into PUBCOMP [MQTT-4.3.3-11, 4.3.3-12].
    ///
    /// # Errors
    /// It came before its PUBREC left [MQTT-4.3.3-4]. Answered, the identifier would be a new message's, and what was said of the old one
    /// would be taken for that.
    #[inline]
    pub fn on_pubrel(&mut self, id: PacketId) -> Result<ReasonCode, SessionError> {
        match self.received.get(&id) {
            None => Ok(ReasonCode::PacketIdentifierNotFound),
            Some(Received::Routing) => Err(SessionError::Protocol("PUBREL before PUBREC")),
            Some(_) => {
                let before = self.received.remove(&id);
                self.is_no_more(before);
                Ok(ReasonCode::Success)
            }
        }
    }

    #[inline]
    fn is_no_more(&mut self, before: Option<Received>) {
        match before {
            Some(Received::Routing) => self.routing -= 1,
            Some(Received::Resumed) => self.resumed -= 1,
            Some(Received::AwaitingPubRel) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> PacketId {
        PacketId::new(number).expect("not zero")
    }

    /// [MQTT-4.3.3-10]: until PUBREL, a repeated QoS 2 PUBLISH is answered but not routed again.
    #[test]
    fn repeated_qos2_publish_is_routed_once() {
        let mut inbound = Inbound::new(10, true);
        let publish = Delivery::ExactlyOnce(id(7));
        assert_eq!(inbound.on_publish(publish), Ok(PublishStep::Route));
        assert_eq!(inbound.on_publish(publish), Ok(PublishStep::Wait), "still with the router");
        inbound.on_pubrec_sent(id(7), ReasonCode::Success);
        assert_eq!(inbound.on_publish(publish), Ok(PublishStep::AnswerAgain));
        assert_eq!(inbound.on_pubrel(id(7)), Ok(ReasonCode::Success));
        assert_eq!(inbound.on_publish(publish), Ok(PublishStep::Route), "a new message [MQTT-4.3.3-12]");
    }

    /// What came first would be taken for the answer to what comes under that identifier next.
    #[test]
    fn pubrel_before_pubrec_frees_nothing() {
        let mut inbound = Inbound::new(10, true);
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(7))), Ok(PublishStep::Route));
        assert!(inbound.on_pubrel(id(7)).is_err());
        inbound.on_pubrec_sent(id(7), ReasonCode::Success);
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(7))), Ok(PublishStep::AnswerAgain));
    }

    /// [MQTT-4.3.3-9]: after a PUBREC of 0x80 or more the identifier is free.
    #[test]
    fn a_refused_qos2_publish_frees_its_identifier() {
        let mut inbound = Inbound::new(10, true);
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(1))), Ok(PublishStep::Route));
        inbound.on_pubrec_sent(id(1), ReasonCode::QuotaExceeded);
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(1))), Ok(PublishStep::Route));
        assert_eq!(inbound.on_pubrel(id(9)), Ok(ReasonCode::PacketIdentifierNotFound));
    }

    /// [MQTT-3.3.4-7]: one more than the Receive Maximum is the client's fault; QoS 0 never counts.
    #[test]
    fn the_receive_maximum_is_enforced_for_those_who_know_it() {
        let mut inbound = Inbound::new(2, true);
        assert_eq!(inbound.on_publish(Delivery::AtLeastOnce(id(1))), Ok(PublishStep::Route));
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(2))), Ok(PublishStep::Route));
        assert_eq!(inbound.on_publish(Delivery::AtMostOnce), Ok(PublishStep::Route));
        let refused = inbound.on_publish(Delivery::AtLeastOnce(id(3)));
        assert_eq!(refused, Err(SessionError::ReceiveMaximumExceeded { receive_maximum: 2 }));
        inbound.on_puback_sent();
        assert_eq!(inbound.on_publish(Delivery::AtLeastOnce(id(3))), Ok(PublishStep::Route));
    }

    /// [MQTT-4.9.0-1]: a connection begins with its whole quota, whatever the one before left; PUBREL needs none, what is sent again does.
    #[test]
    fn what_came_over_a_connection_before_counts_only_when_it_is_sent_again() {
        let mut inbound = Inbound::new(2, true);
        inbound.resume([id(1), id(2), id(3)]);
        for number in [4, 5] {
            assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(number))), Ok(PublishStep::Route));
        }
        let exceeded = Err(SessionError::ReceiveMaximumExceeded { receive_maximum: 2 });
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(6))), exceeded);
        assert_eq!(inbound.on_pubrel(id(1)), Ok(ReasonCode::Success));
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(6))), exceeded, "that freed nothing");
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(2))), exceeded);

        inbound.on_pubrec_sent(id(4), ReasonCode::Success);
        assert_eq!(inbound.on_pubrel(id(4)), Ok(ReasonCode::Success));
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(2))), Ok(PublishStep::AnswerAgain));
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(2))), Ok(PublishStep::AnswerAgain), "once is enough");
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(6))), exceeded);
        inbound.on_pubrec_sent(id(5), ReasonCode::Success);
        for number in [2, 3, 5] {
            assert_eq!(inbound.on_pubrel(id(number)), Ok(ReasonCode::Success));
        }
        for number in [1, 2] {
            assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(number))), Ok(PublishStep::Route), "a new message");
        }
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(3))), exceeded);
    }

    #[test]
    fn a_client_of_3_1_1_is_slowed_down_instead() {
        let mut inbound = Inbound::new(1, false);
        assert!(!inbound.is_full());
        assert_eq!(inbound.on_publish(Delivery::AtLeastOnce(id(1))), Ok(PublishStep::Route));
        assert!(inbound.is_full());
        assert_eq!(inbound.on_publish(Delivery::AtLeastOnce(id(2))), Ok(PublishStep::Route));
    }

    /// PUBREL comes over the connection that would not be read.
    #[test]
    fn a_message_that_waits_for_pubrel_never_stops_the_reading() {
        let mut inbound = Inbound::new(1, false);
        assert_eq!(inbound.on_publish(Delivery::ExactlyOnce(id(1))), Ok(PublishStep::Route));
        assert!(inbound.is_full());
        inbound.on_pubrec_sent(id(1), ReasonCode::Success);
        assert!(!inbound.is_full());
    }
}
