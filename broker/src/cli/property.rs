//! `-D COMMAND PROPERTY VALUE`: MQTT 5 properties from the command line.

use std::num::NonZeroU16;

use bytes::Bytes;
use kentongan_proto::mqtt::{
    ConnectProperties, DisconnectProperties, PublishProperties, UserProperties, WillProperties,
};

/// The properties for each packet that `pub` and `sub` send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Properties {
    pub(super) connect: ConnectProperties,
    pub(super) will: WillProperties,
    pub(super) publish: PublishProperties,
    pub(super) subscribe_user: UserProperties,
    pub(super) subscription_identifier: Option<u32>,
    pub(super) unsubscribe_user: UserProperties,
    pub(super) disconnect: DisconnectProperties,
}

/// Where a value goes, and so what it must look like.
enum Slot<'a> {
    Flag(&'a mut Option<bool>),
    Byte(&'a mut Option<u8>),
    Short(&'a mut Option<u16>),
    NonZeroShort(&'a mut Option<NonZeroU16>),
    Number(&'a mut Option<u32>),
    Text(&'a mut Option<String>),
    Binary(&'a mut Option<Bytes>),
    Pair(&'a mut UserProperties),
}

/// The commands of `-D`.
const COMMANDS: [&str; 6] = ["connect", "publish", "subscribe", "unsubscribe", "disconnect", "will"];

impl Properties {
    /// Takes one `-D`: a command, a property, a value, and for `user-property` a second value.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub(super) fn add(&mut self, words: &[String]) -> Result<(), String> {
        let [command, name, values @ ..] = words else {
            return Err(String::from("-D wants a command, a property and its value"));
        };
        let [command, name] = [command, name].map(|word| word.to_ascii_lowercase());
        if !COMMANDS.contains(&command.as_str()) {
            return Err(format!("-D: `{command}` is none of {}", COMMANDS.join(", ")));
        }
        let slot = self.slot(&command, &name).ok_or_else(|| format!("-D: {command} has no property `{name}`"))?;
        match (slot, values) {
            (Slot::Pair(pairs), [key, value]) => {
                pairs.push((key.clone(), value.clone()));
                Ok(())
            }
            (Slot::Pair(_), _) => Err(format!("-D {command} {name} wants a name and a value")),
            (slot, [value]) => {
                slot.fill(value).map_err(|wanted| format!("-D {command} {name}: `{value}` is not {wanted}"))
            }
            _ => Err(format!("-D {command} {name} wants one value")),
        }
    }

    fn slot(&mut self, command: &str, name: &str) -> Option<Slot<'_>> {
        let Self { connect, will, publish, disconnect, .. } = self;
        Some(match (command, name) {
            ("connect", "authentication-data") => Slot::Binary(&mut connect.authentication_data),
            ("connect", "authentication-method") => Slot::Text(&mut connect.authentication_method),
            ("connect", "maximum-packet-size") => Slot::Number(&mut connect.maximum_packet_size),
            ("connect", "receive-maximum") => Slot::NonZeroShort(&mut connect.receive_maximum),
            ("connect", "request-problem-information") => Slot::Flag(&mut connect.request_problem_information),
            ("connect", "request-response-information") => Slot::Flag(&mut connect.request_response_information),
            ("connect", "session-expiry-interval") => Slot::Number(&mut connect.session_expiry_interval),
            ("connect", "topic-alias-maximum") => Slot::Short(&mut connect.topic_alias_maximum),
            ("connect", "user-property") => Slot::Pair(&mut connect.user_properties),
            ("publish", "content-type") => Slot::Text(&mut publish.content_type),
            ("publish", "correlation-data") => Slot::Binary(&mut publish.correlation_data),
            ("publish", "message-expiry-interval") => Slot::Number(&mut publish.message_expiry_interval),
            ("publish", "payload-format-indicator") => Slot::Byte(&mut publish.payload_format_indicator),
            ("publish", "response-topic") => Slot::Text(&mut publish.response_topic),
            ("publish", "topic-alias") => Slot::Short(&mut publish.topic_alias),
            ("publish", "user-property") => Slot::Pair(&mut publish.user_properties),
            ("subscribe", "subscription-identifier") => Slot::Number(&mut self.subscription_identifier),
            ("subscribe", "user-property") => Slot::Pair(&mut self.subscribe_user),
            ("unsubscribe", "user-property") => Slot::Pair(&mut self.unsubscribe_user),
            ("disconnect", "session-expiry-interval") => Slot::Number(&mut disconnect.session_expiry_interval),
            ("disconnect", "user-property") => Slot::Pair(&mut disconnect.user_properties),
            ("will", "content-type") => Slot::Text(&mut will.content_type),
            ("will", "correlation-data") => Slot::Binary(&mut will.correlation_data),
            ("will", "message-expiry-interval") => Slot::Number(&mut will.message_expiry_interval),
            ("will", "payload-format-indicator") => Slot::Byte(&mut will.payload_format_indicator),
            ("will", "response-topic") => Slot::Text(&mut will.response_topic),
            ("will", "user-property") => Slot::Pair(&mut will.user_properties),
            ("will", "will-delay-interval") => Slot::Number(&mut will.will_delay_interval),
            _ => return None,
        })
    }
}

impl Slot<'_> {
    /// Reads `text` into its place, or says what it should have been.
    fn fill(self, text: &str) -> Result<(), &'static str> {
        match self {
            Self::Flag(place) => {
                *place = Some(match text {
                    "0" => false,
                    "1" => true,
                    _ => return Err("0 or 1"),
                });
            }
            Self::Byte(place) => *place = Some(text.parse().map_err(|_| "a number up to 255")?),
            Self::Short(place) => *place = Some(text.parse().map_err(|_| "a number up to 65535")?),
            Self::NonZeroShort(place) => *place = Some(text.parse().map_err(|_| "a number from 1 to 65535")?),
            Self::Number(place) => *place = Some(text.parse().map_err(|_| "a number up to 4294967295")?),
            Self::Text(place) => *place = Some(text.to_owned()),
            Self::Binary(place) => *place = Some(Bytes::copy_from_slice(text.as_bytes())),
            Self::Pair(_) => return Err("a pair"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(properties: &mut Properties, line: &str) -> Result<(), String> {
        properties.add(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn properties_go_to_the_packet_they_were_named_for() {
        let mut properties = Properties::default();
        for line in [
            "connect receive-maximum 7",
            "publish content-type text/plain",
            "publish user-property k 1",
            "PUBLISH User-Property k 2",
            "will will-delay-interval 3",
            "subscribe subscription-identifier 9",
        ] {
            add(&mut properties, line).unwrap();
        }
        assert_eq!(properties.connect.receive_maximum, NonZeroU16::new(7));
        assert_eq!(properties.publish.content_type.as_deref(), Some("text/plain"));
        assert_eq!(properties.publish.user_properties.len(), 2);
        assert_eq!(properties.will.will_delay_interval, Some(3));
        assert_eq!(properties.subscription_identifier, Some(9));
    }

    #[test]
    fn a_property_that_cannot_be_says_why() {
        for (line, expected) in [
            ("connect", "-D wants a command, a property and its value"),
            (
                "conect user-property a b",
                "-D: `conect` is none of connect, publish, subscribe, unsubscribe, disconnect, will",
            ),
            ("connect content-type x", "-D: connect has no property `content-type`"),
            ("publish user-property a", "-D publish user-property wants a name and a value"),
            ("publish content-type a b", "-D publish content-type wants one value"),
            ("connect receive-maximum 0", "-D connect receive-maximum: `0` is not a number from 1 to 65535"),
        ] {
            assert_eq!(add(&mut Properties::default(), line).unwrap_err(), expected);
        }
    }
}
