//! The commonest [`NodeMessage`](super::wire::NodeMessage), written and read without anything made for it alone.
//!
//! Plain is a message without properties for all who subscribe directly. Its bytes are those of the `NodeMessage`; whatever
//! else is in one, [`PlainMessage::read`] leaves it to that.

use bytes::BytesMut;
use kentongan_proto::mqtt::QoS;
use prost::encoding::{decode_varint, encoded_len_varint};

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
    /// Topic Name, in UTF-8 if its writer is in order.
    pub topic: &'a [u8],
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
    pub fn write(&self, out: &mut BytesMut) {
        let record_bytes = self.record_bytes();
        let bytes = varint_bytes(self.number) + 1 + encoded_len_varint(record_bytes as u64) + record_bytes + 2;
        let start = out.len();
        out.resize(start + encoded_len_varint(bytes as u64) + bytes, 0);
        let mut room = Room { bytes: &mut out[start..], filled: 0 };
        room.put_varint(bytes as u64);
        room.put_number(NUMBER, self.number);
        room.put(MESSAGE);
        room.put_varint(record_bytes as u64);
        self.write_record(&mut room);
        room.put_number(DIRECT, 1);
        debug_assert_eq!(room.filled, room.bytes.len());
    }

    fn record_bytes(&self) -> usize {
        varint_bytes(self.identity.lane)
            + varint_bytes(self.identity.number)
            + slice_bytes(self.topic)
            + slice_bytes(self.payload)
            + varint_bytes(self.qos as u64)
            + varint_bytes(u64::from(self.retain))
            + self.expiry_left_ms.map_or(0, |left| 1 + encoded_len_varint(left))
    }

    #[inline]
    fn write_record(&self, room: &mut Room<'_>) {
        room.put_number(RECORD_LANE, self.identity.lane);
        room.put_number(RECORD_NUMBER, self.identity.number);
        room.put_slice(RECORD_TOPIC, self.topic);
        room.put_slice(RECORD_PAYLOAD, self.payload);
        room.put_number(RECORD_QOS, self.qos as u64);
        room.put_number(RECORD_RETAIN, u64::from(self.retain));
        if let Some(left) = self.expiry_left_ms {
            room.put(RECORD_EXPIRY);
            room.put_varint(left);
        }
    }

    /// What `bytes`, one `NodeMessage` without its length, hold. `None`: it is not a plain one, or malformed. Whether the topic is
    /// text is not looked at.
    #[must_use]
    #[inline]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        Self::read_in_order(bytes).or_else(|| Self::read_in_any_order(bytes))
    }

    fn empty() -> Self {
        Self {
            number: 0,
            identity: MessageIdentity::default(),
            topic: &[],
            payload: &[],
            qos: QoS::AtMostOnce,
            retain: false,
            expiry_left_ms: None,
        }
    }

    /// The fields in the order in which [`Self::write`] writes them, each at most once. `None`: they are not.
    #[inline]
    fn read_in_order(mut rest: &'a [u8]) -> Option<Self> {
        let mut read = Self::empty();
        if take_key(&mut rest, NUMBER) {
            read.number = take_varint(&mut rest)?;
        }
        if !take_key(&mut rest, MESSAGE) {
            return None;
        }
        let mut record = take_slice(&mut rest)?;
        if rest != [DIRECT, 1] {
            return None;
        }
        if take_key(&mut record, RECORD_LANE) {
            read.identity.lane = take_varint(&mut record)?;
        }
        if take_key(&mut record, RECORD_NUMBER) {
            read.identity.number = take_varint(&mut record)?;
        }
        if take_key(&mut record, RECORD_TOPIC) {
            read.topic = take_slice(&mut record)?;
        }
        if take_key(&mut record, RECORD_PAYLOAD) {
            read.payload = take_slice(&mut record)?;
        }
        if take_key(&mut record, RECORD_QOS) {
            read.qos = command::qos(u32::try_from(take_varint(&mut record)?).ok()?);
        }
        if take_key(&mut record, RECORD_RETAIN) {
            read.retain = take_varint(&mut record)? != 0;
        }
        if take_key(&mut record, RECORD_EXPIRY) {
            read.expiry_left_ms = Some(take_varint(&mut record)?);
        }
        record.is_empty().then_some(read)
    }

    #[cold]
    fn read_in_any_order(mut bytes: &'a [u8]) -> Option<Self> {
        let (mut number, mut record, mut direct) = (0, None, false);
        while let Some(key) = bytes.split_off_first() {
            match *key {
                NUMBER => number = take_varint(&mut bytes)?,
                // Protobuf merges two of them.
                MESSAGE if record.is_none() => record = Some(take_slice(&mut bytes)?),
                DIRECT => direct = take_varint(&mut bytes)? != 0,
                _ => return None,
            }
        }
        if !direct {
            return None;
        }
        Self::read_record(number, record?)
    }

    fn read_record(number: u64, mut bytes: &'a [u8]) -> Option<Self> {
        let mut read = Self { number, ..Self::empty() };
        let mut qos = 0;
        while let Some(key) = bytes.split_off_first() {
            match *key {
                RECORD_LANE => read.identity.lane = take_varint(&mut bytes)?,
                RECORD_NUMBER => read.identity.number = take_varint(&mut bytes)?,
                // Each of them would have to be text.
                RECORD_TOPIC if read.topic.is_empty() => read.topic = take_slice(&mut bytes)?,
                RECORD_PAYLOAD => read.payload = take_slice(&mut bytes)?,
                RECORD_QOS => qos = take_varint(&mut bytes)?,
                RECORD_RETAIN => read.retain = take_varint(&mut bytes)? != 0,
                // Only No Local asks for it, and the publisher is at another node.
                RECORD_PUBLISHER => drop(std::str::from_utf8(take_slice(&mut bytes)?).ok()?),
                RECORD_EXPIRY => read.expiry_left_ms = Some(take_varint(&mut bytes)?),
                _ => return None,
            }
        }
        read.qos = command::qos(u32::try_from(qos).ok()?);
        Some(read)
    }
}

/// Room for something whose length was reckoned before, filled from its beginning.
struct Room<'a> {
    bytes: &'a mut [u8],
    filled: usize,
}

impl Room<'_> {
    #[inline]
    fn put(&mut self, byte: u8) {
        self.bytes[self.filled] = byte;
        self.filled += 1;
    }

    #[inline]
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(value as u8 | 0x80);
            value >>= 7;
        }
        self.put(value as u8);
    }

    /// A field that is left out when it is 0.
    #[inline]
    fn put_number(&mut self, key: u8, value: u64) {
        if value != 0 {
            self.put(key);
            self.put_varint(value);
        }
    }

    /// A field that is left out when it is empty.
    #[inline]
    fn put_slice(&mut self, key: u8, value: &[u8]) {
        if !value.is_empty() {
            self.put_number(key, value.len() as u64);
            let end = self.filled + value.len();
            self.bytes[self.filled..end].copy_from_slice(value);
            self.filled = end;
        }
    }
}

/// Bytes of a field that is left out when it is 0.
#[inline]
fn varint_bytes(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

/// Bytes of a field that is left out when it is empty.
#[inline]
fn slice_bytes(value: &[u8]) -> usize {
    if value.is_empty() { 0 } else { 1 + encoded_len_varint(value.len() as u64) + value.len() }
}

/// Whether `key` is the next byte, which is taken if so.
#[inline]
fn take_key(bytes: &mut &[u8], key: u8) -> bool {
    let is_next = bytes.first() == Some(&key);
    if is_next {
        *bytes = &bytes[1..];
    }
    is_next
}

/// The next number, of one byte or a few most of the time. `None`: it is cut off, or larger than a number may be.
#[inline]
pub fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first()?;
    if *first < 0x80 {
        *bytes = rest;
        return Some(u64::from(*first));
    }
    take_long_varint(bytes)
}

/// Apart, so that what is read of one byte is short enough to stand where it is read.
#[inline(never)]
fn take_long_varint(bytes: &mut &[u8]) -> Option<u64> {
    const FEW: usize = 5;
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(FEW) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Some(value);
        }
    }
    decode_varint(bytes).ok()
}

/// The next bytes, which have their length before them. `None`: they are cut off.
#[inline]
pub fn take_slice<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(bytes)?).ok()?;
    bytes.split_off(..length)
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
            topic: std::str::from_utf8(plain.topic).unwrap().to_owned(),
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
            let topic = topic.as_bytes();
            let plain = PlainMessage { number, identity, topic, payload: &payload, qos, retain, expiry_left_ms };
            let mut written = BytesMut::from(&b"before"[..]);
            plain.write(&mut written);
            prop_assert_eq!(&written[6..], &in_full(&plain).encode_length_delimited_to_vec());
            let in_full = in_full(&plain).encode_to_vec();
            prop_assert_eq!(PlainMessage::read(&in_full), Some(plain));
            prop_assert_eq!(PlainMessage::read_in_order(&in_full), Some(plain), "by the short way");
            prop_assert_eq!(PlainMessage::read_in_any_order(&in_full), Some(plain), "by the long one");
        }

        #[test]
        fn any_bytes_are_read_as_the_whole_message_or_left(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            assert_agrees(&bytes);
        }

        /// What is nearly a plain message, and what is one in another order or with fields that come again.
        #[test]
        fn fields_in_any_order_are_read_as_the_whole_message_or_left(
            of_record in proptest::collection::vec(any_field(), 0..10),
            before in proptest::collection::vec(any_field(), 0..2),
            behind in proptest::collection::vec(any_field(), 0..2),
            direct in 0u8..3, cut in 0usize..200, changed in 0usize..400, to: u8,
        ) {
            let record = of_record.concat();
            let mut bytes = before.concat();
            bytes.push(MESSAGE);
            prost::encoding::encode_varint(record.len() as u64, &mut bytes);
            bytes.extend(record);
            bytes.extend([DIRECT, direct]);
            bytes.extend(behind.concat());
            assert_agrees(&bytes);
            assert_agrees(&bytes[..cut.min(bytes.len())]);
            if let Some(byte) = bytes.get_mut(changed) {
                *byte = to;
                assert_agrees(&bytes);
            }
        }

        #[test]
        fn numbers_are_read_as_prost_reads_them(bytes in proptest::collection::vec(any_byte_of_number(), 0..12)) {
            let (mut ours, mut theirs) = (&bytes[..], &bytes[..]);
            let read = take_varint(&mut ours);
            prop_assert_eq!(read, decode_varint(&mut theirs).ok());
            if read.is_some() {
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    fn any_byte_of_number() -> impl Strategy<Value = u8> {
        prop_oneof![0u8.., 0x80u8..]
    }

    /// With a key that either message knows, and a value that fits it most of the time.
    fn any_field() -> impl Strategy<Value = Vec<u8>> {
        let number = (1u8..12, prop_oneof![0u64..4, any::<u64>()]).prop_map(|(field, value)| {
            let mut bytes = vec![field << 3];
            prost::encoding::encode_varint(value, &mut bytes);
            bytes
        });
        let slice = (1u8..12, proptest::collection::vec(prop_oneof![b'a'..=b'z', any::<u8>()], 0..10));
        let slice =
            slice.prop_map(|(field, value)| [&[field << 3 | LENGTH_DELIMITED, value.len() as u8], &value[..]].concat());
        prop_oneof![number, slice]
    }

    /// What is read as a plain message is that in the words of `NodeMessage`, too, unless its topic is no text.
    fn assert_agrees(bytes: &[u8]) {
        let by_short_way = PlainMessage::read_in_order(bytes);
        if by_short_way.is_some() {
            assert_eq!(by_short_way, PlainMessage::read_in_any_order(bytes));
        }
        let Some(plain) = PlainMessage::read(bytes) else {
            return;
        };
        let whole = NodeMessage::decode(bytes);
        if std::str::from_utf8(plain.topic).is_err() {
            assert!(whole.is_err(), "{bytes:?}");
            return;
        }
        let mut whole = whole.expect("it was read");
        if let Some(record) = &mut whole.message {
            record.publisher.clear();
            record.qos = record.qos.min(2);
        }
        assert_eq!(whole, in_full(&plain), "{bytes:?}");
    }

    /// What it would not carry on must be read in full.
    #[test]
    fn whatever_is_not_plain_is_left_to_the_whole_message() {
        let identity = MessageIdentity { lane: 1, number: 2 };
        let plain = PlainMessage {
            number: 3,
            identity,
            topic: b"t",
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
