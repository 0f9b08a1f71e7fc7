//! What must hold whatever the bytes; the tests and the fuzz targets ask the same.

use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, PacketType, Sender};
use kentongan_proto::mqtt::{Packet, ProtocolVersion};

/// The bytes of a packet.
pub fn encode(packet: &Packet, version: ProtocolVersion) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(packet, version, &mut bytes).expect("a packet that can be expressed");
    bytes
}

/// The packet in `bytes`, if the codec takes it.
pub fn decode(bytes: &[u8], version: ProtocolVersion, sender: Sender) -> Option<Packet> {
    let limits = Limits::default();
    let Ok(FrameStatus::Complete(frame)) = codec::split_frame(bytes, sender, &limits) else {
        return None;
    };
    let packet = codec::decode(&frame, None, version, sender, &limits).ok();
    // The ways that allocate nothing must agree.
    match frame.packet_type() {
        PacketType::Publish => {
            assert_eq!(codec::decode_publish(&frame, version, sender, &limits).is_ok(), packet.is_some());
        }
        PacketType::PubAck | PacketType::PubRec | PacketType::PubRel | PacketType::PubComp => {
            assert_eq!(codec::decode_ack(&frame, version).is_ok(), packet.is_some());
        }
        _ => {}
    }
    packet
}

/// Takes one packet after the other out of `bytes`, as a connection would, and returns how many there were.
///
/// # Panics
/// The codec panicked, or does not give back what it took.
pub fn judge(bytes: &[u8], mut version: ProtocolVersion, sender: Sender) -> usize {
    let limits = Limits::default();
    let mut rest = bytes;
    let mut taken = 0;
    while let Ok(FrameStatus::Complete(frame)) = codec::split_frame(rest, sender, &limits) {
        let Some(packet) = decode(rest, version, sender) else {
            break;
        };
        rest = &rest[frame.len()..];
        taken += 1;
        // CONNECT says itself which version it is, also of what follows.
        if let Packet::Connect(connect) = &packet {
            version = connect.version;
        }
        let again = encode(&packet, version);
        assert_eq!(again.len(), codec::encoded_len(&packet, version), "{packet:?}");
        assert_eq!(decode(&again, version, sender).as_ref(), Some(&packet));
    }
    taken
}
