//! Packets as bytes, and in the words that mosquitto's clients use under `-d`.

use bytes::{Buf, BytesMut};
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, Sender};
use kentongan_proto::mqtt::{Packet, ProtocolVersion};

/// What a client takes from a broker that it chose itself: anything that can be expressed.
const LIMITS: Limits = Limits {
    packet_bytes_max: u32::MAX,
    user_properties_max: u16::MAX,
    filters_max: u16::MAX,
    topic_levels_max: u16::MAX,
    dup_on_requests: false,
};

/// Appends a packet, whole or nothing of it. One that cannot be expressed, such as a Topic Name of more than 65,535 bytes, is an
/// error of the command line that its own checks let through.
pub(super) fn encode(packet: &Packet, version: ProtocolVersion, out: &mut BytesMut) -> Result<(), String> {
    let mut bytes = Vec::new();
    codec::encode(packet, version, &mut bytes).map_err(|error| error.to_string())?;
    out.extend_from_slice(&bytes);
    Ok(())
}

/// Takes the first packet off, if it is whole.
pub(super) fn decode(inbound: &mut BytesMut, version: ProtocolVersion) -> Result<Option<Packet>, String> {
    let (packet, length) = match codec::split_frame(inbound, Sender::Server, &LIMITS) {
        Ok(FrameStatus::Complete(frame)) => {
            let packet = codec::decode(&frame, None, version, Sender::Server, &LIMITS);
            (packet.map_err(|error| error.to_string())?, frame.len())
        }
        Ok(FrameStatus::Incomplete { .. }) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    inbound.advance(length);
    Ok(Some(packet))
}

/// Bytes of a packet on the wire.
pub(super) fn size(packet: &Packet, version: ProtocolVersion) -> usize {
    codec::encoded_len(packet, version)
}

/// Whether a whole packet has come, by its Remaining Length.
pub(super) fn holds_packet(inbound: &[u8]) -> bool {
    let mut length = 0_usize;
    for (position, &byte) in inbound.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * position);
        if byte & 0x80 == 0 {
            return inbound.len() >= 2 + position + length;
        }
    }
    false
}

/// The name of a packet, as the specification writes it.
pub(super) fn name(packet: &Packet) -> &'static str {
    match packet {
        Packet::Connect(_) => "CONNECT",
        Packet::ConnAck(_) => "CONNACK",
        Packet::Publish(_) => "PUBLISH",
        Packet::PubAck(_) => "PUBACK",
        Packet::PubRec(_) => "PUBREC",
        Packet::PubRel(_) => "PUBREL",
        Packet::PubComp(_) => "PUBCOMP",
        Packet::Subscribe(_) => "SUBSCRIBE",
        Packet::SubAck(_) => "SUBACK",
        Packet::Unsubscribe(_) => "UNSUBSCRIBE",
        Packet::UnsubAck(_) => "UNSUBACK",
        Packet::PingReq => "PINGREQ",
        Packet::PingResp => "PINGRESP",
        Packet::Disconnect(_) => "DISCONNECT",
        Packet::Auth(_) => "AUTH",
    }
}

/// A packet in the words of mosquitto's debug output.
pub(super) fn describe(packet: &Packet) -> String {
    let name = name(packet);
    match packet {
        Packet::ConnAck(connack) => format!("{name} ({})", connack.reason_code as u8),
        Packet::Publish(publish) => format!(
            "{name} (d{}, q{}, r{}, m{}, '{}', ... ({} bytes))",
            u8::from(publish.dup),
            publish.delivery.qos() as u8,
            u8::from(publish.retain),
            publish.delivery.packet_id().map_or(0, u16::from),
            publish.topic,
            publish.payload.len(),
        ),
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            format!("{name} (Mid: {}, RC:{})", ack.packet_id, ack.reason_code as u8)
        }
        Packet::Subscribe(subscribe) => {
            let filters: Vec<String> = subscribe
                .filters
                .iter()
                .map(|(filter, options)| format!("{filter} (QoS {})", options.qos as u8))
                .collect();
            format!("{name} (Mid: {}, {})", subscribe.packet_id, filters.join(", "))
        }
        Packet::Unsubscribe(unsubscribe) => {
            format!("{name} (Mid: {}, {})", unsubscribe.packet_id, unsubscribe.filters.join(", "))
        }
        Packet::Disconnect(disconnect) => format!("{name} ({})", disconnect.reason_code as u8),
        _ => name.to_owned(),
    }
}
