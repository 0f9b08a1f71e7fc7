//! The commonest [`NodeMessage`](super::wire::NodeMessage), written and read without anything made for it alone.
//!
//! Plain is a message without properties for all who subscribe directly. Its bytes are those of the `NodeMessage`; whatever
//! else is in one, [`PlainMessage::read`] leaves it to that.

use bytes::{Buf, BufMut};
use kentongan_proto::mqtt::QoS;
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use crate::message::MessageIdentity;
use crate::replicated::command;

// Field number and wire type, as protobuf writes them before a value.
const NUMBER: u8 = 1 << 3;
const MESSAGE: u8 = 2 << 3 | LENGTH_DELIMITED;
const DIRECT: u8 = 3 << 3;
const RECORD_LANE: u8 = 1 << 3;
const RECORD_NUMBER: u8 = 2 << 3;
const RECORD_TOPIC: u8 = 3 << 3 | LENGTH_DELIMITED;
const RECORD_PAYLOAD: u8 = 4 << 3 | LENGTH_DELIMITED;
const RECORD_QOS: u8 = 5 << 3;
const RECORD_RETAIN: u8 = 6 << 3;
const RECORD_PUBLISHER: u8 = 7 << 3 | LENGTH_DELIMITED;
const RECORD_EXPIRY: u8 = 8 << 3;
const LENGTH_DELIMITED: u8 = 2;

/// A message without properties, for all who subscribe directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainMessage<'a> {
    /// Increasing within the lane.
    pub number: u64,
    /// Which publication it is.
    pub identity: MessageIdentity,
    /// Topic Name.
    pub topic: &'a str,
    /// The payload.
    pub payload: &'a [u8],
    /// As published.
    pub qos: QoS,
    /// As published.
    pub retain: bool,
    /// Milliseconds that it might still wait when the clock of its batch said 0.
    pub expiry_left_ms: Option<u64>,
}

impl<'a> PlainMessage<'a> {
    /// Appends it, with its length before it.
    pub fn write(&self, out: &mut impl BufMut) {
        let record_bytes = self.record_bytes();
        let bytes = varint_bytes(self.number) + 1 + encoded_len_varint(record_bytes as u64) + record_bytes + 2;
        encode_varint(bytes as u64, out);
        put_varint(NUMBER, self.number, out);
        out.put_u8(MESSAGE);
        encode_varint(record_bytes as u64, out);
        self.write_record(out);
        put_varint(DIRECT, 1, out);
    }

    fn record_bytes(&self) -> usize {
        varint_bytes(self.identity.lane)
            + varint_bytes(self.identity.number)
            + slice_bytes(self.topic.as_bytes())
            + slice_bytes(self.payload)
            + varint_bytes(self.qos as u64)
            + varint_bytes(u64::from(self.retain))
            + self.expiry_left_ms.map_or(0, |left| 1 + encoded_len_varint(left))
    }

    fn write_record(&self, out: &mut impl BufMut) {
        put_varint(RECORD_LANE, self.identity.lane, out);
        put_varint(RECORD_NUMBER, self.identity.number, out);
        put_slice(RECORD_TOPIC, self.topic.as_bytes(), out);
        put_slice(RECORD_PAYLOAD, self.payload, out);
        put_varint(RECORD_QOS, self.qos as u64, out);
        put_varint(RECORD_RETAIN, u64::from(self.retain), out);
        if let Some(left) = self.expiry_left_ms {
            out.put_u8(RECORD_EXPIRY);
            encode_varint(left, out);
        }
    }

    /// What `bytes`, one `NodeMessage` without its length, hold. `None`: it is not a plain one, or malformed.
    #[must_use]
    pub fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let (mut number, mut record, mut direct) = (0, None, false);
        while bytes.has_remaining() {
            match bytes.get_u8() {
                NUMBER => number = decode_varint(&mut bytes).ok()?,
                MESSAGE => record = Some(take_slice(&mut bytes)?),
                DIRECT => direct = decode_varint(&mut bytes).ok()? != 0,
                _ => return None,
            }
        }
        if !direct {
            return None;
        }
        Self::read_record(number, record?)
    }

    fn read_record(number: u64, mut bytes: &'a [u8]) -> Option<Self> {
        let (mut topic, mut qos) = (&bytes[..0], 0);
        let mut read = Self {
            number,
            identity: MessageIdentity::default(),
            topic: "",
            payload: &[],
            qos: QoS::AtMostOnce,
            retain: false,
            expiry_left_ms: None,
        };
        while bytes.has_remaining() {
            match bytes.get_u8() {
                RECORD_LANE => read.identity.lane = decode_varint(&mut bytes).ok()?,
                RECORD_NUMBER => read.identity.number = decode_varint(&mut bytes).ok()?,
                RECORD_TOPIC => topic = take_slice(&mut bytes)?,
                RECORD_PAYLOAD => read.payload = take_slice(&mut bytes)?,
                RECORD_QOS => qos = decode_varint(&mut bytes).ok()?,
                RECORD_RETAIN => read.retain = decode_varint(&mut bytes).ok()? != 0,
                // Only No Local asks for it, and the publisher is at another node.
                RECORD_PUBLISHER => drop(take_slice(&mut bytes)?),
                RECORD_EXPIRY => read.expiry_left_ms = Some(decode_varint(&mut bytes).ok()?),
                _ => return None,
            }
        }
        read.topic = std::str::from_utf8(topic).ok()?;
        read.qos = command::qos(u32::try_from(qos).ok()?);
        Some(read)
    }
}

/// Bytes of a field that is left out when it is 0.
fn varint_bytes(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

fn put_varint(key: u8, value: u64, out: &mut impl BufMut) {
    if value != 0 {
        out.put_u8(key);
        encode_varint(value, out);
    }
}

/// Bytes of a field that is left out when it is empty.
fn slice_bytes(value: &[u8]) -> usize {
    if value.is_empty() { 0 } else { 1 + encoded_len_varint(value.len() as u64) + value.len() }
}

fn put_slice(key: u8, value: &[u8], out: &mut impl BufMut) {
    if !value.is_empty() {
        out.put_u8(key);
        encode_varint(value.len() as u64, out);
        out.put_slice(value);
    }
}

fn take_slice<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
    let (slice, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(slice)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::peers::wire::{NodeMessage, ShareSettled};
    use crate::replicated::command::{MessageRecord, UserProperty};

    /// The same in the words of `NodeMessage`.
    fn in_full(plain: &PlainMessage<'_>) -> NodeMessage {
        let record = MessageRecord {
            lane: plain.identity.lane,
            number: plain.identity.number,
            topic: plain.topic.to_owned(),
            payload: Bytes::copy_from_slice(plain.payload),
            qos: plain.qos as u32,
            retain: plain.retain,
            expiry_left_ms: plain.expiry_left_ms,
            ..MessageRecord::default()
        };
        NodeMessage { number: plain.number, message: Some(record), direct: true, ..NodeMessage::default() }
    }

    proptest! {
        #[test]
        fn its_bytes_are_those_of_the_whole_message(
            number: u64, lane: u64, of_lane: u64, topic in "[a-z/\u{e9}]{0,200}",
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            qos in 0u8..3, retain: bool, expiry_left_ms: Option<u64>,
        ) {
            let qos = QoS::from_bits(qos).unwrap();
            let identity = MessageIdentity { lane, number: of_lane };
            let plain =
                PlainMessage { number, identity, topic: &topic, payload: &payload, qos, retain, expiry_left_ms };
            let mut written = Vec::new();
            plain.write(&mut written);
            prop_assert_eq!(&written, &in_full(&plain).encode_length_delimited_to_vec());
            let in_full = in_full(&plain).encode_to_vec();
            prop_assert_eq!(PlainMessage::read(&in_full), Some(plain));
        }

        #[test]
        fn any_bytes_are_read_or_left(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = PlainMessage::read(&bytes);
        }
    }

    /// What it would not carry on must be read in full.
    #[test]
    fn whatever_is_not_plain_is_left_to_the_whole_message() {
        let identity = MessageIdentity { lane: 1, number: 2 };
        let plain = PlainMessage {
            number: 3,
            identity,
            topic: "t",
            payload: b"p",
            qos: QoS::AtLeastOnce,
            retain: true,
            expiry_left_ms: None,
        };
        let read = |message: &NodeMessage| PlainMessage::read(&message.encode_to_vec()).is_some();
        let full = in_full(&plain);
        assert!(read(&full));
        let record = || full.message.clone().unwrap();
        let user = UserProperty { name: "n".into(), value: "v".into() };
        let with_property = MessageRecord { user_properties: vec![user], ..record() };
        let with_content_type = MessageRecord { content_type: Some(String::new()), ..record() };
        let settled = vec![ShareSettled::default()];
        for other in [
            NodeMessage { message: Some(with_property), ..full.clone() },
            NodeMessage { message: Some(with_content_type), ..full.clone() },
            NodeMessage { shares: vec!["$share/a/t".into()], ..full.clone() },
            NodeMessage { settled, ..full.clone() },
            NodeMessage { message: None, ..full.clone() },
            NodeMessage { direct: false, ..full.clone() },
        ] {
            assert!(!read(&other), "{other:?}");
        }
        let bytes = full.encode_to_vec();
        assert!((1..bytes.len() - 2).all(|cut| PlainMessage::read(&bytes[..cut]).is_none()), "cut off");
    }
}
