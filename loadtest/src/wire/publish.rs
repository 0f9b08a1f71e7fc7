//! PUBLISH: the template of an outgoing one, and what is read of an arriving one.
//!
//! A payload begins with a [`Stamp`]; the rest is filler whose last eight bytes depend on the
//! stamp, so that a body that was cut, mixed up or swapped with another is noticed.

use std::sync::Arc;

use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use super::{Malformed, append_string, append_varint, packet_type, read_varint};

/// The least payload: the bytes of a [`Stamp`].
pub const STAMP_BYTES: usize = 24;

/// Payloads of this size and above end with a check of their stamp.
const CHECKED_PAYLOAD_BYTES: usize = STAMP_BYTES + 8;

/// Packets above this size are shared with the socket's queue.
const COPIED_BYTES_MAX: usize = 64 * 1024;

/// Digits of a patched topic number.
const TOPIC_DIGITS: usize = 7;

/// Who sent a message, its number, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Tells this run's messages from those of an earlier one on the same broker.
    pub run: u32,
    /// Index of the publisher within the run.
    pub publisher: u32,
    /// 0, 1, 2, … for each publisher.
    pub sequence: u64,
    /// Of the monotonic clock. For paced messages the time they were due.
    pub sent_ns: u64,
}

impl Stamp {
    fn write(self, payload: &mut [u8]) {
        payload[0..4].copy_from_slice(&self.run.to_be_bytes());
        payload[4..8].copy_from_slice(&self.publisher.to_be_bytes());
        payload[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        payload[16..24].copy_from_slice(&self.sent_ns.to_be_bytes());
        let length = payload.len();
        if length >= CHECKED_PAYLOAD_BYTES {
            payload[length - 8..].copy_from_slice(&self.check());
        }
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let (stamp, _) = payload.split_first_chunk::<STAMP_BYTES>()?;
        let u32_at = |at: usize| u32::from_be_bytes(stamp[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(stamp[at..at + 8].try_into().expect("eight bytes"));
        Some(Self { run: u32_at(0), publisher: u32_at(4), sequence: u64_at(8), sent_ns: u64_at(16) })
    }

    fn check(self) -> [u8; 8] {
        let who = u64::from(self.run) << 32 | u64::from(self.publisher);
        (who ^ self.sequence.rotate_left(17) ^ self.sent_ns).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()
    }
}

/// Where the messages of one publisher go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All to one topic.
    Topic(String),
    /// In turn to `count` topics: `before`, seven digits, `after`.
    Numbered {
        /// The text before the digits.
        before: String,
        /// The text behind the digits.
        after: String,
        /// Message n goes to topic n modulo this.
        count: u64,
    },
}

impl Target {
    /// The Topic Name of message `sequence`.
    pub fn topic(&self, sequence: u64) -> String {
        match self {
            Self::Topic(topic) => topic.clone(),
            Self::Numbered { before, after, count } => {
                format!("{before}{:0width$}{after}", sequence % count, width = TOPIC_DIGITS)
            }
        }
    }
}

/// One publisher's PUBLISH, encoded once.
#[derive(Debug, Clone)]
pub struct PublishTemplate {
    bytes: Arc<Vec<u8>>,
    fields: Fields,
}

/// What changes from message to message.
#[derive(Debug, Clone, Copy)]
struct Fields {
    packet_id_at: Option<usize>,
    /// Where the topic's digits stand, and how many topics there are.
    digits: Option<(usize, u64)>,
    payload_at: usize,
    run: u32,
    publisher: u32,
}

impl Fields {
    #[inline]
    fn patch(self, message: &mut [u8], packet_id: u16, sequence: u64, sent_ns: u64) {
        if let Some(at) = self.packet_id_at {
            message[at..at + 2].copy_from_slice(&packet_id.to_be_bytes());
        }
        if let Some((at, count)) = self.digits {
            let mut number = sequence % count;
            for digit in message[at..at + TOPIC_DIGITS].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        if message.len() > self.payload_at {
            let stamp = Stamp { run: self.run, publisher: self.publisher, sequence, sent_ns };
            stamp.write(&mut message[self.payload_at..]);
        }
    }
}

impl PublishTemplate {
    /// Encodes what does not change from message to message. A payload shorter than a stamp is
    /// made as long as one, except that 0 is none, which deletes a retained message.
    pub fn new(
        version: ProtocolVersion,
        qos: QoS,
        retain: bool,
        target: &Target,
        payload_bytes: usize,
        who: (u32, u32),
    ) -> Self {
        let payload_bytes = if payload_bytes == 0 { 0 } else { payload_bytes.max(STAMP_BYTES) };
        let topic = target.topic(0);
        let packet_id_bytes = if qos == QoS::AtMostOnce { 0 } else { 2 };
        let property_bytes = usize::from(version.is_v5());
        let mut bytes = vec![packet_type::PUBLISH << 4 | (qos as u8) << 1 | u8::from(retain)];
        append_varint(&mut bytes, 2 + topic.len() + packet_id_bytes + property_bytes + payload_bytes);
        let digits = match target {
            Target::Topic(_) => None,
            Target::Numbered { before, count, .. } => Some((bytes.len() + 2 + before.len(), *count)),
        };
        append_string(&mut bytes, &topic);
        let packet_id_at = (packet_id_bytes > 0).then_some(bytes.len());
        bytes.resize(bytes.len() + packet_id_bytes + property_bytes, 0);
        let payload_at = bytes.len();
        bytes.extend((0..payload_bytes).map(|i| (i % 251) as u8));
        let (run, publisher) = who;
        let fields = Fields { packet_id_at, digits, payload_at, run, publisher };
        Self { bytes: Arc::new(bytes), fields }
    }

    /// Appends message `sequence`. `packet_id` is ignored for QoS 0.
    #[inline]
    pub fn append(&self, out: &mut Vec<u8>, packet_id: u16, sequence: u64, sent_ns: u64) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        self.fields.patch(&mut out[start..], packet_id, sequence, sent_ns);
    }

    /// Messages are so large that they are better shared than copied.
    pub fn is_large(&self) -> bool {
        self.bytes.len() > COPIED_BYTES_MAX
    }

    /// Message `sequence`, without a copy if the message shared before is no longer in use.
    pub fn share(&mut self, packet_id: u16, sequence: u64, sent_ns: u64) -> Arc<Vec<u8>> {
        let fields = self.fields;
        let bytes: &mut Vec<u8> = Arc::make_mut(&mut self.bytes);
        fields.patch(bytes, packet_id, sequence, sent_ns);
        Arc::clone(&self.bytes)
    }

    /// Bytes of a payload.
    pub fn payload_bytes(&self) -> usize {
        self.bytes.len() - self.fields.payload_at
    }
}

/// What is read of an arriving PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// DUP, QoS and RETAIN, as in the fixed header.
    pub flags: u8,
    /// Zero for QoS 0.
    pub packet_id: u16,
    /// Bytes of the payload.
    pub payload_bytes: usize,
    /// `None` when the payload is not one of ours, or is not as it was sent.
    pub stamp: Option<Stamp>,
}

impl Incoming {
    /// 0, 1 or 2.
    #[inline]
    pub fn qos(&self) -> u8 {
        self.flags >> 1 & 3
    }

    /// Reads a PUBLISH of `body_bytes` of which `head` has arrived and is kept: all of it or, for a
    /// large one, as much as holds the stamp. `tail` is then the last eight bytes of the packet.
    #[inline]
    pub fn read(
        first: u8,
        head: &[u8],
        body_bytes: usize,
        tail: Option<[u8; 8]>,
        version: ProtocolVersion,
    ) -> Result<Self, Malformed> {
        let qos = first >> 1 & 3;
        if qos == 3 {
            return Err(Malformed("PUBLISH with QoS 3"));
        }
        let cut_off = Malformed("PUBLISH ends before its payload");
        let [high, low, ..] = *head else {
            return Err(cut_off);
        };
        let mut at = 2 + usize::from(u16::from_be_bytes([high, low]));
        let mut packet_id = 0;
        if qos > 0 {
            let id = head.get(at..at + 2).ok_or(cut_off)?;
            packet_id = u16::from_be_bytes([id[0], id[1]]);
            if packet_id == 0 {
                return Err(Malformed("PUBLISH with Packet Identifier 0"));
            }
            at += 2;
        }
        if version.is_v5() {
            let (property_bytes, length_bytes) = read_varint(head.get(at..).ok_or(cut_off)?)?.ok_or(cut_off)?;
            at += length_bytes + property_bytes;
        }
        let payload = head.get(at..).ok_or(cut_off)?;
        let payload_bytes = body_bytes - at;
        let stamp = Stamp::read(payload).filter(|stamp| {
            let end =
                tail.as_ref().map(<[u8; 8]>::as_slice).or_else(|| payload.last_chunk::<8>().map(<[u8; 8]>::as_slice));
            payload_bytes < CHECKED_PAYLOAD_BYTES || end == Some(&stamp.check())
        });
        Ok(Self { flags: first & 0x0F, packet_id, payload_bytes, stamp })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::scan, *};

    const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::V3_1_1, ProtocolVersion::V5];

    fn arrive(bytes: &[u8], version: ProtocolVersion) -> Incoming {
        let frame = scan(bytes).unwrap().unwrap();
        assert_eq!(frame.bytes(), bytes.len());
        Incoming::read(frame.first, &bytes[frame.header_bytes..], frame.body_bytes, None, version).unwrap()
    }

    #[test]
    fn what_is_sent_is_read_back_in_every_version_and_qos() {
        for version in VERSIONS {
            for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                for payload in [1, 24, 31, 32, 64, 1000] {
                    let target = Target::Topic("a/b".into());
                    let template = PublishTemplate::new(version, qos, false, &target, payload, (9, 4));
                    let mut out = Vec::new();
                    template.append(&mut out, 513, 77, 123_456);
                    let incoming = arrive(&out, version);
                    let stamp = Stamp { run: 9, publisher: 4, sequence: 77, sent_ns: 123_456 };
                    assert_eq!(incoming.stamp, Some(stamp));
                    assert_eq!(incoming.qos(), qos as u8);
                    assert_eq!(incoming.packet_id, if incoming.qos() == 0 { 0 } else { 513 });
                    assert_eq!(incoming.payload_bytes, payload.max(STAMP_BYTES));
                }
            }
        }
    }

    #[test]
    fn a_changed_payload_has_no_stamp() {
        let target = Target::Topic("t".into());
        let template = PublishTemplate::new(ProtocolVersion::V3_1_1, QoS::AtMostOnce, false, &target, 64, (1, 2));
        let mut out = Vec::new();
        template.append(&mut out, 0, 3, 4);
        for at in [out.len() - 1, out.len() - 64, out.len() - 45] {
            let mut changed = out.clone();
            changed[at] ^= 1;
            assert_eq!(arrive(&changed, ProtocolVersion::V3_1_1).stamp, None, "byte {at}");
        }
    }

    #[test]
    fn topics_are_numbered_in_place() {
        let target = Target::Numbered { before: "x/".into(), after: "/y".into(), count: 100 };
        let template = PublishTemplate::new(ProtocolVersion::V5, QoS::AtLeastOnce, true, &target, 24, (1, 2));
        let mut out = Vec::new();
        template.append(&mut out, 1, 142, 0);
        let topic = target.topic(142);
        assert_eq!(topic, "x/0000042/y");
        assert_eq!(&out[4..4 + topic.len()], topic.as_bytes());
        assert_eq!(arrive(&out, ProtocolVersion::V5).flags, 0b0011, "QoS 1, RETAIN");
    }

    #[test]
    fn cut_off_packets_are_malformed_and_do_not_panic() {
        let target = Target::Topic("topic".into());
        let template = PublishTemplate::new(ProtocolVersion::V5, QoS::AtLeastOnce, false, &target, 64, (1, 2));
        let mut out = Vec::new();
        template.append(&mut out, 1, 0, 0);
        let body = &out[2..];
        for length in 0..body.len() {
            let read = Incoming::read(out[0], &body[..length], length, None, ProtocolVersion::V5);
            assert!(read.is_err() || read.is_ok_and(|incoming| incoming.payload_bytes < 64));
        }
    }
}
