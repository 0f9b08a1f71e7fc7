//! The packets that open and close connections and subscriptions. They are rare.

use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use super::{Malformed, append_string, append_varint, read_varint};

/// What the broker allowed in its CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// QoS 1 and 2 messages that may be unacknowledged towards the broker.
    pub receive_maximum: u16,
}

/// What becomes of a session when its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// It begins anew and ends with its connection.
    Clean,
    /// It is taken up, and stays: in MQTT 5 for an hour, before as long as the broker keeps it.
    Kept,
}

/// User Name and Password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// User Name.
    pub user: String,
    /// Password.
    pub password: String,
}

/// A CONNECT without will and credentials.
pub fn connect(version: ProtocolVersion, client_id: &str, keep_alive_seconds: u16, session: Session) -> Vec<u8> {
    connect_as(version, client_id, keep_alive_seconds, session, None)
}

/// A CONNECT without will.
pub fn connect_as(
    version: ProtocolVersion,
    client_id: &str,
    keep_alive_seconds: u16,
    session: Session,
    login: Option<&Login>,
) -> Vec<u8> {
    let level = if version.is_v5() { 5 } else { 4 };
    let flags = if session == Session::Clean { 0x02 } else { 0 } | if login.is_some() { 0xC0 } else { 0 };
    let mut body = Vec::new();
    append_string(&mut body, "MQTT");
    body.extend_from_slice(&[level, flags]);
    body.extend_from_slice(&keep_alive_seconds.to_be_bytes());
    match session {
        _ if !version.is_v5() => {}
        Session::Clean => body.push(0),
        // Session Expiry Interval: an hour.
        Session::Kept => body.extend_from_slice(&[5, 0x11, 0, 0, 0x0E, 0x10]),
    }
    append_string(&mut body, client_id);
    if let Some(Login { user, password }) = login {
        append_string(&mut body, user);
        append_string(&mut body, password);
    }
    packet(0x10, &body)
}

/// A SUBSCRIBE of one Topic Filter.
pub fn subscribe(version: ProtocolVersion, packet_id: u16, filter: &str, qos: QoS) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version.is_v5() {
        body.push(0);
    }
    append_string(&mut body, filter);
    body.push(qos as u8);
    packet(0x82, &body)
}

/// An UNSUBSCRIBE of one Topic Filter.
pub fn unsubscribe(version: ProtocolVersion, packet_id: u16, filter: &str) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version.is_v5() {
        body.push(0);
    }
    append_string(&mut body, filter);
    packet(0xA2, &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    append_varint(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

/// Reads a CONNACK: what is allowed, or the code of the refusal.
pub fn read_connack(version: ProtocolVersion, body: &[u8]) -> Result<Result<Allowed, u8>, Malformed> {
    let [_, reason, ref properties @ ..] = *body else {
        return Err(Malformed("CONNACK too short"));
    };
    if reason != 0 {
        return Ok(Err(reason));
    }
    let receive_maximum = if version.is_v5() { read_receive_maximum(properties)? } else { u16::MAX };
    Ok(Ok(Allowed { receive_maximum }))
}

/// Finds the Receive Maximum among the properties of a CONNACK; 65,535 when absent
/// [MQTT5 3.2.2.3.3].
fn read_receive_maximum(bytes: &[u8]) -> Result<u16, Malformed> {
    let cut_off = Malformed("CONNACK properties cut off");
    let (length, length_bytes) = read_varint(bytes)?.ok_or(cut_off)?;
    let mut rest = bytes.get(length_bytes..length_bytes + length).ok_or(cut_off)?;
    let string = |at: &[u8]| at.first_chunk::<2>().map(|n| 2 + usize::from(u16::from_be_bytes(*n)));
    while let Some((&id, value)) = rest.split_first() {
        let value_bytes = match id {
            0x21 => {
                let [high, low, ..] = *value else {
                    return Err(cut_off);
                };
                return Ok(u16::from_be_bytes([high, low]));
            }
            0x24 | 0x25 | 0x28 | 0x29 | 0x2A => 1,
            0x22 | 0x13 => 2,
            0x11 | 0x27 => 4,
            0x12 | 0x1A | 0x1C | 0x1F | 0x15 | 0x16 => string(value).ok_or(cut_off)?,
            0x26 => {
                let name = string(value).ok_or(cut_off)?;
                name + string(value.get(name..).ok_or(cut_off)?).ok_or(cut_off)?
            }
            _ => return Err(Malformed("CONNACK with a property it cannot have")),
        };
        rest = value.get(value_bytes..).ok_or(cut_off)?;
    }
    Ok(u16::MAX)
}

/// Reads a SUBACK or UNSUBACK of one Topic Filter: Packet Identifier and Reason Code. The Reason
/// Code of an UNSUBACK before MQTT 5, which has none, is 0.
pub fn read_suback(body: &[u8]) -> Result<(u16, u8), Malformed> {
    let [high, low, ref rest @ ..] = *body else {
        return Err(Malformed("SUBACK too short"));
    };
    // With one filter the only Reason Code is the last byte, whatever properties stand before it.
    Ok((u16::from_be_bytes([high, low]), rest.last().copied().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_is_as_the_standard_writes_it() {
        let v3 = connect(ProtocolVersion::V3_1_1, "ab", 60, Session::Clean);
        assert_eq!(v3, [0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 2, b'a', b'b']);
        let v5 = connect(ProtocolVersion::V5, "ab", 60, Session::Clean);
        assert_eq!(v5, [0x10, 15, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 2, b'a', b'b']);
        let kept = connect(ProtocolVersion::V5, "ab", 60, Session::Kept);
        assert_eq!(kept[8..17], [5, 0, 0, 60, 5, 0x11, 0, 0, 0x0E]);
        assert_eq!(connect(ProtocolVersion::V3_1_1, "ab", 60, Session::Kept)[9], 0);
    }

    #[test]
    fn receive_maximum_is_found_among_other_properties() {
        let body = [0, 0, 13, 0x22, 0, 10, 0x26, 0, 1, b'k', 0, 0, 0x21, 0, 20, 0x25];
        let allowed = read_connack(ProtocolVersion::V5, &body[..]).unwrap().unwrap();
        assert_eq!(allowed.receive_maximum, 20);
        let none = read_connack(ProtocolVersion::V5, &[0, 0, 0]).unwrap().unwrap();
        assert_eq!(none.receive_maximum, u16::MAX);
    }

    #[test]
    fn a_refusal_carries_its_code() {
        assert_eq!(read_connack(ProtocolVersion::V3_1_1, &[0, 5]), Ok(Err(5)));
        assert!(read_connack(ProtocolVersion::V5, &[0]).is_err());
        assert!(read_connack(ProtocolVersion::V5, &[0, 0, 9, 0x21]).is_err());
    }
}
