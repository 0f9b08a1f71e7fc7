//! One packet from a client, and who deals with it.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use kentongan_proto::mqtt::codec::{self, AckKind, DecodeError, Frame, Limits, PacketType, Sender};
use kentongan_proto::mqtt::{
    Ack, AckProperties, Auth, Disconnect, Packet, PacketId, ProtocolVersion, ReasonCode, SubAck,
};

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::Phase;
use super::ended::EndCause;
use super::publish::Payload;
use crate::connection::Spoken;
use crate::metrics::{MalformedReason, PacketKind};
use crate::session::SessionError;

/// What a line of a trace is about.
const RECEIVED: &str = "packet.received";
const SENT: &str = "packet.sent";

/// Bytes behind a fixed header by which it is known that somebody speaks no MQTT.
const FOREIGN_BYTES: usize = 14;

impl ArbiterState {
    pub(super) fn on_frame(&mut self, key: ConnectionKey, frame: &Frame<'_>, source: Option<&Bytes>, limits: &Limits) {
        let Some(client) = self.client(key) else {
            return;
        };
        let version = client.version;
        let phase = client.phase;
        self.counters.packets_received.inc(kind_of(frame.packet_type()));
        if self.shared.watches.is_tracing() && frame.packet_type() != PacketType::Publish {
            self.trace_packet(key, RECEIVED, kind_of(frame.packet_type()));
        }
        match (phase, frame.packet_type()) {
            (Phase::Connected, PacketType::Publish) => {
                match codec::decode_publish(frame, version, Sender::Client, limits) {
                    Ok(publish) => {
                        if self.shared.has_publish_rates.load(Ordering::Relaxed) && !self.keeps_pace(key, frame.len()) {
                            return;
                        }
                        let payload = Payload::of(publish.payload, source);
                        self.on_publish(key, &publish, payload);
                    }
                    Err(error) => self.on_malformed(key, &error),
                }
            }
            (Phase::Connected, PacketType::PubAck | PacketType::PubRec | PacketType::PubRel | PacketType::PubComp) => {
                match codec::decode_ack(frame, version) {
                    Ok((packet_id, reason)) => self.on_acknowledgement(key, frame.packet_type(), packet_id, reason),
                    Err(error) => self.on_malformed(key, &error),
                }
            }
            (Phase::Connected, PacketType::PingReq) if frame.body.is_empty() => {
                self.write_packet(key, &Packet::PingResp);
            }
            (Phase::AwaitingConnect, PacketType::Connect)
            | (Phase::Authenticating, PacketType::Auth | PacketType::Disconnect)
            | (Phase::Connected, _) => match codec::decode(frame, source, version, Sender::Client, limits) {
                Ok(packet) => self.on_packet(key, packet),
                Err(error) => self.on_malformed(key, &error),
            },
            // The first packet must be a CONNECT [MQTT-3.1.0-1]; before CONNACK only AUTH and DISCONNECT may
            // follow one that asked for enhanced authentication [MQTT-3.1.2-30].
            (Phase::AwaitingConnect, _) => {
                // As it came: one whose length has a second byte does not begin like anything that is known.
                let length = u8::try_from(frame.body.len()).unwrap_or_default();
                let begins: Vec<u8> = [frame.first_byte, length]
                    .into_iter()
                    .chain(frame.body.iter().copied().take(FOREIGN_BYTES))
                    .collect();
                let cause = Spoken::instead_of_mqtt(&begins)
                    .map_or(EndCause::Protocol("the first packet was not CONNECT"), EndCause::Foreign);
                self.end(key, cause, None);
            }
            (Phase::Authenticating, _) => {
                self.end(
                    key,
                    EndCause::Protocol("only AUTH may follow until CONNACK"),
                    Some(ReasonCode::ProtocolError),
                );
            }
            (Phase::Verifying | Phase::AwaitingTurn | Phase::Claiming | Phase::Leaving | Phase::Closing, _) => {}
        }
    }

    fn on_packet(&mut self, key: ConnectionKey, packet: Packet) {
        match packet {
            Packet::Connect(connect) => {
                let first = self.client(key).is_some_and(|client| client.phase == Phase::AwaitingConnect);
                if first {
                    self.on_connect(key, connect);
                } else {
                    // [MQTT-3.1.0-2]
                    self.fail(key, &SessionError::Protocol("a second CONNECT"));
                }
            }
            Packet::Subscribe(subscribe) => {
                if self.takes_answer(key, subscribe.packet_id, subscribe.filters.len()) {
                    self.on_subscribe(key, subscribe);
                }
            }
            Packet::Unsubscribe(unsubscribe) => {
                if self.takes_answer(key, unsubscribe.packet_id, unsubscribe.filters.len()) {
                    self.on_unsubscribe(key, unsubscribe);
                }
            }
            Packet::Disconnect(disconnect) => self.on_disconnect(key, &disconnect),
            Packet::Auth(auth) => self.on_auth(key, auth),
            _ => self.fail(key, &SessionError::Protocol("a packet that only servers send")),
        }
    }

    /// Whether SUBACK or UNSUBACK with so many codes is not larger than the client takes [MQTT-3.1.2-24]. If it is, the connection ends
    /// before anything is done: who is left without an answer waits for ever.
    fn takes_answer(&mut self, key: ConnectionKey, packet_id: PacketId, filters: usize) -> bool {
        if self.client(key).is_none_or(|client| client.packet_bytes_max_out == u32::MAX) {
            return true;
        }
        let reason_codes = vec![ReasonCode::Success; filters];
        // UNSUBACK is as long.
        let answer = Packet::SubAck(SubAck { packet_id, reason_codes, properties: AckProperties::default() });
        let takes = self.takes(key, &answer);
        if !takes {
            let reason = ReasonCode::PacketTooLarge;
            let text = "the answer to so many topic filters is larger than the client's Maximum Packet Size".to_owned();
            self.end(key, EndCause::Malformed { reason, text }, Some(reason));
        }
        takes
    }

    fn on_acknowledgement(&mut self, key: ConnectionKey, kind: PacketType, packet_id: PacketId, reason: ReasonCode) {
        let kind = match kind {
            PacketType::PubAck => AckKind::PubAck,
            PacketType::PubRec => AckKind::PubRec,
            PacketType::PubComp => AckKind::PubComp,
            _ => return self.on_pubrel(key, packet_id),
        };
        self.on_delivery_acknowledged(key, kind, packet_id, reason);
    }

    fn on_pubrel(&mut self, key: ConnectionKey, packet_id: PacketId) {
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        let reason = match session.inbound.on_pubrel(packet_id) {
            Ok(reason) => reason,
            Err(error) => return self.fail(key, &error),
        };
        match session.persistent {
            // PUBREL is committed before PUBCOMP, so that a crash between them frees nothing twice.
            Some(persistent) if !reason.is_error() => {
                if let Some(served) = &mut session.served {
                    served.completing.insert(packet_id);
                }
                self.lanes.release(persistent, key, packet_id);
            }
            _ => self.write_ack(key, AckKind::PubComp, packet_id, reason),
        }
        self.schedule_flush();
    }

    fn on_disconnect(&mut self, key: ConnectionKey, disconnect: &Disconnect) {
        let Some(client) = self.client(key) else {
            return;
        };
        let Some(session) = client.session.as_mut() else {
            return self.end(key, EndCause::Disconnected, None);
        };
        if let Some(asked) = disconnect.properties.session_expiry_interval {
            // A session that was to end with its connection cannot be prolonged at its end (3.14.2.2.2).
            if session.session_expiry_seconds == 0 && asked != 0 {
                return self.fail(key, &SessionError::Protocol("DISCONNECT cannot prolong a session that was to end"));
            }
            let longest = client.listener.policy.session_expiry_seconds_max;
            session.session_expiry_seconds = asked.min(longest);
        }
        let cause = match disconnect.reason_code {
            ReasonCode::Success => EndCause::Disconnected,
            _ => EndCause::DisconnectedWithWill,
        };
        self.end(key, cause, None);
    }

    fn on_auth(&mut self, key: ConnectionKey, auth: Auth) {
        let authenticating = self.client(key).is_some_and(|client| client.phase == Phase::Authenticating);
        if authenticating {
            self.continue_authentication(key, auth);
        } else {
            self.re_authenticate(key, auth);
        }
    }

    /// Bytes that are no packet of their sender: the connection ends, whatever can be told is told.
    pub(super) fn on_malformed(&mut self, key: ConnectionKey, error: &DecodeError) {
        self.counters.packets_malformed.inc(malformed_reason(error.reason_code()));
        let Some(client) = self.client(key) else {
            return;
        };
        if client.phase == Phase::AwaitingConnect
            && let DecodeError::UnsupportedProtocolVersion { level, .. } = error
        {
            // 3.1.1 clients know return code 1 [MQTT-3.1.2-2], later ones reason code 0x84.
            client.version = if *level >= 5 { ProtocolVersion::V5 } else { ProtocolVersion::V3_1_1 };
            return self.refuse(key, ReasonCode::UnsupportedProtocolVersion, "no such protocol version");
        }
        let reason = error.reason_code();
        let cause = EndCause::Malformed { reason, text: error.to_string() };
        self.end(key, cause, Some(reason));
    }

    /// The same, of `bytes` that begin with what is no packet.
    pub(super) fn on_no_packet(&mut self, key: ConnectionKey, bytes: &[u8], error: &DecodeError) {
        let is_first = self.client(key).is_some_and(|client| client.phase == Phase::AwaitingConnect);
        match Spoken::instead_of_mqtt(bytes).filter(|_| is_first) {
            Some(spoken) => {
                self.counters.packets_malformed.inc(malformed_reason(error.reason_code()));
                self.end(key, EndCause::Foreign(spoken), None);
            }
            None => self.on_malformed(key, error),
        }
    }

    /// The client broke the rules of the session.
    pub(super) fn fail(&mut self, key: ConnectionKey, error: &SessionError) {
        let reason = error.reason_code();
        self.counters.packets_malformed.inc(malformed_reason(reason));
        self.end(key, EndCause::Malformed { reason, text: error.to_string() }, Some(reason));
    }

    /// Whether a packet is not larger than the client takes [MQTT-3.1.2-24].
    pub(super) fn takes(&mut self, key: ConnectionKey, packet: &Packet) -> bool {
        self.client(key).is_some_and(|client| {
            let bound = client.packet_bytes_max_out;
            bound == u32::MAX || codec::encoded_len(packet, client.version) <= bound as usize
        })
    }

    /// Encodes a packet into the connection's out-buffer. Whoever wants that has seen to it that the client takes one that large
    /// [MQTT-3.1.2-24], see [`Self::takes`].
    pub(super) fn write_packet(&mut self, key: ConnectionKey, packet: &Packet) {
        let Some(client) = self.clients.get_mut(key.index()) else {
            return;
        };
        let version = client.version;
        let mut outcome = Ok(());
        client.out.append(&mut self.pool, |out| outcome = codec::encode(packet, version, out));
        if counts_on_lease(packet) {
            client.out.need_lease();
        }
        if let Err(error) = outcome {
            tracing::error!(%error, "a packet of our own could not be encoded");
        }
        self.counters.packets_sent.inc(PacketKind::from(packet));
        if self.shared.watches.is_tracing() {
            self.trace_packet(key, SENT, PacketKind::from(packet));
        }
        self.mark_dirty(key);
    }

    /// PUBACK or PUBREC that refuses, with a Reason String if [`Self::explained`] has one.
    pub(super) fn write_refusal(
        &mut self,
        key: ConnectionKey,
        kind: AckKind,
        packet_id: PacketId,
        reason_code: ReasonCode,
        text: &str,
    ) {
        let wrap = if kind == AckKind::PubAck { Packet::PubAck } else { Packet::PubRec };
        let packet = self.explained(key, text, |properties| wrap(Ack { packet_id, reason_code, properties }));
        match packet {
            Some(packet) => self.write_packet(key, &packet),
            None => self.write_ack(key, kind, packet_id, reason_code),
        }
    }

    /// A packet with a Reason String; `None` if the client does not want one [MQTT-3.1.2-29], or if the packet would
    /// be larger than it takes [MQTT-3.4.2-2], [MQTT-3.5.2-2], [MQTT-3.9.2-1].
    pub(super) fn explained(
        &mut self,
        key: ConnectionKey,
        text: &str,
        packet: impl FnOnce(AckProperties) -> Packet,
    ) -> Option<Packet> {
        let client = self.client(key)?;
        let wanted = client.version.is_v5() && client.session.as_ref()?.problem_information;
        if !wanted {
            return None;
        }
        let packet = packet(AckProperties { reason_string: Some(text.to_owned()), ..AckProperties::default() });
        (codec::encoded_len(&packet, client.version) <= client.packet_bytes_max_out as usize).then_some(packet)
    }

    /// Encodes an acknowledgement.
    #[inline]
    pub(super) fn write_ack(&mut self, key: ConnectionKey, kind: AckKind, packet_id: PacketId, reason: ReasonCode) {
        let Some(client) = self.clients.get_mut(key.index()) else {
            return;
        };
        let version = client.version;
        client.out.append(&mut self.pool, |out| codec::encode_ack(kind, packet_id, reason, version, out));
        client.out.need_lease();
        self.counters.packets_sent.inc(ack_kind(kind));
        if self.shared.watches.is_tracing() {
            self.trace_packet(key, SENT, ack_kind(kind));
        }
        self.mark_dirty(key);
    }
}

/// Whether who gets the packet may take it that the session is with this connection. Without a lease it may be with another one elsewhere,
/// and nothing of the kind is said here (P7).
fn counts_on_lease(packet: &Packet) -> bool {
    match packet {
        Packet::ConnAck(connack) => !connack.reason_code.is_error(),
        Packet::PingResp | Packet::Disconnect(_) | Packet::Auth(_) => false,
        _ => true,
    }
}

fn kind_of(packet_type: PacketType) -> PacketKind {
    match packet_type {
        PacketType::Connect => PacketKind::Connect,
        PacketType::ConnAck => PacketKind::ConnAck,
        PacketType::Publish => PacketKind::Publish,
        PacketType::PubAck => PacketKind::PubAck,
        PacketType::PubRec => PacketKind::PubRec,
        PacketType::PubRel => PacketKind::PubRel,
        PacketType::PubComp => PacketKind::PubComp,
        PacketType::Subscribe => PacketKind::Subscribe,
        PacketType::SubAck => PacketKind::SubAck,
        PacketType::Unsubscribe => PacketKind::Unsubscribe,
        PacketType::UnsubAck => PacketKind::UnsubAck,
        PacketType::PingReq => PacketKind::PingReq,
        PacketType::PingResp => PacketKind::PingResp,
        PacketType::Disconnect => PacketKind::Disconnect,
        PacketType::Auth => PacketKind::Auth,
    }
}

fn ack_kind(kind: AckKind) -> PacketKind {
    match kind {
        AckKind::PubAck => PacketKind::PubAck,
        AckKind::PubRec => PacketKind::PubRec,
        AckKind::PubRel => PacketKind::PubRel,
        AckKind::PubComp => PacketKind::PubComp,
    }
}

fn malformed_reason(reason: ReasonCode) -> MalformedReason {
    match reason {
        ReasonCode::MalformedPacket => MalformedReason::MalformedPacket,
        ReasonCode::PacketTooLarge => MalformedReason::PacketTooLarge,
        ReasonCode::ReceiveMaximumExceeded => MalformedReason::ReceiveMaximumExceeded,
        ReasonCode::TopicAliasInvalid => MalformedReason::TopicAliasInvalid,
        ReasonCode::TopicNameInvalid => MalformedReason::TopicNameInvalid,
        ReasonCode::TopicFilterInvalid => MalformedReason::TopicFilterInvalid,
        _ => MalformedReason::ProtocolError,
    }
}
