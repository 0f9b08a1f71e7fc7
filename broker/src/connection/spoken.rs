//! What somebody speaks who does not speak what is expected, by the first bytes: the log says so instead of what those bytes would
//! be in MQTT.

use std::fmt;

/// A protocol that is met where another one is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// MQTT without anything under it.
    Mqtt,
    /// A handshake of TLS, or an alert.
    Tls,
    /// A request or a response of HTTP; WebSocket begins so.
    Http,
    /// What a balancer sends in front of a connection.
    ProxyHeader,
}

/// How requests begin, that of HTTP/2 too, and responses.
const HTTP: [&[u8]; 10] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"PRI * HTTP", b"HTTP/1."];

/// Types of records (RFC 8446, 5.1): alert, handshake.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

impl Spoken {
    /// What a stream speaks that begins with `bytes`. `None`: nothing that is known, or too little of it.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let is_connect = || {
            // Behind the Remaining Length.
            let name = bytes.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0).map(|end| end + 2);
            let names: [&[u8]; 2] = [b"\0\x04MQTT", b"\0\x06MQIsdp"];
            name.and_then(|at| bytes.get(at..)).is_some_and(|rest| names.iter().any(|name| rest.starts_with(name)))
        };
        match bytes {
            [kind, 3, ..] if TLS_RECORDS.contains(kind) => Some(Self::Tls),
            [0x10, ..] if is_connect() => Some(Self::Mqtt),
            _ if HTTP.iter().any(|begin| bytes.starts_with(begin)) => Some(Self::Http),
            _ if bytes.starts_with(b"PROXY ") || bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n") => Some(Self::ProxyHeader),
            _ => None,
        }
    }

    /// The same where MQTT is expected.
    #[must_use]
    pub fn instead_of_mqtt(bytes: &[u8]) -> Option<Self> {
        Self::of(bytes).filter(|&spoken| spoken != Self::Mqtt)
    }
}

impl fmt::Display for Spoken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Mqtt => "MQTT",
            Self::Tls => "TLS",
            Self::Http => "HTTP",
            Self::ProxyHeader => "the PROXY protocol",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_known_by_its_first_bytes() {
        for (bytes, spoken) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], Some(Spoken::Tls)),
            (b"\x15\x03\x03\x00\x02\x02\x46", Some(Spoken::Tls)),
            (b"GET /mqtt HTTP/1.1\r\n", Some(Spoken::Http)),
            (b"POST / HTTP/1.1\r\n", Some(Spoken::Http)),
            (b"PRI * HTTP/2.0\r\n", Some(Spoken::Http)),
            (b"HTTP/1.1 400 Bad Request", Some(Spoken::Http)),
            (b"PROXY TCP4 192.0.2.1", Some(Spoken::ProxyHeader)),
            (b"\r\n\r\n\0\r\nQUIT\n\x21", Some(Spoken::ProxyHeader)),
            (b"\x10\x0c\0\x04MQTT\x05", Some(Spoken::Mqtt)),
            (b"\x10\x80\x01\0\x04MQTT\x05", Some(Spoken::Mqtt)),
            (b"\x10\x0c\0\x06MQIsdp\x03", Some(Spoken::Mqtt)),
            (b"\x10\x0c\0\x04MQTX\x05", None),
            (b"\x10\x80\x80\x80\x80\x80", None),
            (b"\x16", None),
            (b"GE", None),
            (b"", None),
        ] {
            assert_eq!(Spoken::of(bytes), spoken, "{bytes:?}");
            assert_eq!(Spoken::instead_of_mqtt(bytes), spoken.filter(|&spoken| spoken != Spoken::Mqtt));
        }
    }
}
