//! The PROXY protocol, versions 1 and 2: what a balancer says of a client before the client's first byte
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>).
//!
//! [`parse`] is a plain function of the bytes that came so far; [`needed`] says how many more belong to the header for
//! certain, so that nothing behind it is ever taken from the socket and the layer above, TLS perhaps, finds it there.
//!
//! The grammar is the `ppp` crate's. It is only given whole headers: of version 1 it takes some beginnings of a good header
//! for bad ones. What it does not know are the values inside the SSL field, and any bound on length.
//!
//! Absent: whom to believe. That is the listener's to decide, before a byte is read.

use std::net::SocketAddr;

use ppp::{v1, v2};

use crate::tls::is_usable;

/// The longest header that is read; version 2 allows 65,551 bytes. A client's whole certificate is not among what is
/// wanted, and everything else is short.
pub const HEADER_BYTES_MAX: usize = 4096;

/// The longest of version 1, its line end included (section 2.1).
const V1_BYTES_MAX: usize = 107;

/// Signature, version and command, family and protocol, length.
const V2_FIXED_BYTES: usize = 16;

/// Kind and length in front of a field's value.
const TLV_FIXED_BYTES: usize = 3;

const SIGNATURE_BYTES: usize = v2::PROTOCOL_PREFIX.len();

/// In the SSL field: the client came by TLS; it showed a certificate on this connection; or in this TLS session.
const CLIENT_SSL: u8 = 0x01;
const CLIENT_CERT_CONN: u8 = 0x02;
const CLIENT_CERT_SESS: u8 = 0x04;

/// A checksum of the whole header (section 2.2.3).
const CRC32C_BYTES: usize = 4;

/// What the header says of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Where it comes from. `None`: the balancer speaks for itself (`LOCAL`, a health check), or does not know.
    pub address: Option<SocketAddr>,
    /// The Common Name of its certificate, if it showed one and the balancer found it good. Of one that it would not have if
    /// it showed us the certificate, there is none here either.
    pub common_name: Option<String>,
}

/// How far the header came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// More of it must come: [`needed`] says how much at least.
    Incomplete,
    /// It is whole.
    Complete(Claims),
}

/// Why a connection from a balancer is closed. The balancer's doing, or a client's that reached the port past it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Neither version's first bytes.
    #[error("no PROXY protocol header came from an address that must send one; is it turned on in the balancer?")]
    Missing,
    /// It begins like one and is none.
    #[error("the PROXY protocol header is malformed")]
    Malformed,
    /// More than anybody needs to say.
    #[error("the PROXY protocol header has more than {HEADER_BYTES_MAX} bytes")]
    TooLong,
    /// Not what the balancer sent.
    #[error("the checksum of the PROXY protocol header is wrong")]
    Checksum,
    /// UDP.
    #[error("the PROXY protocol header speaks of datagrams")]
    Datagram,
}

/// Reads the header at the beginning of a connection, of which `bytes` have come: no more than [`needed`] said.
///
/// # Errors
/// It is none, or not one that is taken; whatever follows.
pub fn parse(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let begins = |prefix: &[u8]| bytes.iter().zip(prefix).all(|(one, other)| one == other);
    if begins(v2::PROTOCOL_PREFIX) {
        parse_v2(bytes)
    } else if begins(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Err(ProxyError::Missing)
    }
}

/// How many bytes more belong to the header at least, if `bytes` are its beginning. Never 0 for an incomplete one.
#[must_use]
pub fn needed(bytes: &[u8]) -> usize {
    let count = bytes.len();
    if count < SIGNATURE_BYTES {
        // The shortest header is `PROXY UNKNOWN\r\n`.
        return SIGNATURE_BYTES - count;
    }
    if bytes.starts_with(v2::PROTOCOL_PREFIX) {
        return v2_len(bytes).unwrap_or(V2_FIXED_BYTES).saturating_sub(count).max(1);
    }
    if bytes.ends_with(b"\r") { 1 } else { 2 }
}

/// Bytes of the whole header, once that is said.
fn v2_len(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(V2_FIXED_BYTES - 2..V2_FIXED_BYTES)?;
    Some(V2_FIXED_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]])))
}

fn parse_v1(bytes: &[u8]) -> Result<Progress, ProxyError> {
    if !bytes.ends_with(b"\r\n") {
        return if bytes.len() >= V1_BYTES_MAX { Err(ProxyError::Malformed) } else { Ok(Progress::Incomplete) };
    }
    // Whatever stands behind it means nothing (section 2.1); the crate wants it to be text, and of four words at most.
    if bytes.starts_with(b"PROXY UNKNOWN ") {
        return Ok(Progress::Complete(Claims::default()));
    }
    let header = v1::Header::try_from(bytes).map_err(|_| ProxyError::Malformed)?;
    let address = match header.addresses {
        v1::Addresses::Tcp4(pair) => Some((pair.source_address, pair.source_port).into()),
        v1::Addresses::Tcp6(pair) => Some((pair.source_address, pair.source_port).into()),
        v1::Addresses::Unknown => None,
    };
    Ok(Progress::Complete(Claims { address, common_name: None }))
}

fn parse_v2(bytes: &[u8]) -> Result<Progress, ProxyError> {
    match v2_len(bytes) {
        Some(len) if len > HEADER_BYTES_MAX => return Err(ProxyError::TooLong),
        Some(len) if len <= bytes.len() => {}
        _ => return Ok(Progress::Incomplete),
    }
    let header = v2::Header::try_from(bytes).map_err(|_| ProxyError::Malformed)?;
    check_sum(&header)?;
    if header.command == v2::Command::Local {
        // Whatever addresses it holds mean nothing (section 2.2).
        return Ok(Progress::Complete(Claims::default()));
    }
    if header.protocol == v2::Protocol::Datagram {
        return Err(ProxyError::Datagram);
    }
    let address = match header.addresses {
        v2::Addresses::IPv4(pair) => Some((pair.source_address, pair.source_port).into()),
        v2::Addresses::IPv6(pair) => Some((pair.source_address, pair.source_port).into()),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    };
    let mut common_name = None;
    for field in header.tlvs() {
        let field = field.map_err(|_| ProxyError::Malformed)?;
        if field.kind == v2::Type::SSL as u8 {
            common_name = verified_common_name(&field.value)?;
        }
    }
    Ok(Progress::Complete(Claims { address, common_name }))
}

/// Holds the header against its checksum, if it has one: calculated with zeros in the place of the checksum itself.
fn check_sum(header: &v2::Header<'_>) -> Result<(), ProxyError> {
    let bytes = header.as_bytes();
    let mut end = bytes.len() - header.tlv_bytes().len();
    for field in header.tlvs() {
        // What is wrong with the fields is said by whoever reads them: a `LOCAL` one's mean nothing.
        let Ok(field) = field else {
            return Ok(());
        };
        end += TLV_FIXED_BYTES + field.value.len();
        if field.kind != v2::Type::CRC32C as u8 {
            continue;
        }
        let said: [u8; CRC32C_BYTES] = (*field.value).try_into().map_err(|_| ProxyError::Malformed)?;
        let (front, behind) = (&bytes[..end - CRC32C_BYTES], &bytes[end..]);
        let found = [front, &[0; CRC32C_BYTES], behind].into_iter().fold(!0, crc32c);
        if !found != u32::from_be_bytes(said) {
            return Err(ProxyError::Checksum);
        }
    }
    Ok(())
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit: a header is short, and comes once a connection.
fn crc32c(register: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(register, |register, &byte| {
        (0..8).fold(register ^ u32::from(byte), |register, _| register >> 1 ^ (0x82F6_3B78 * (register & 1)))
    })
}

/// The Common Name in the SSL field, if the client showed a certificate and it was verified (section 2.2.6).
fn verified_common_name(value: &[u8]) -> Result<Option<String>, ProxyError> {
    let (&[client, a, b, c, d], fields) = value.split_first_chunk().ok_or(ProxyError::Malformed)?;
    let is_verified = u32::from_be_bytes([a, b, c, d]) == 0;
    let showed_certificate = client & CLIENT_SSL != 0 && client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS) != 0;
    let mut common_name = None;
    for field in v2::TypeLengthValues::from(fields) {
        let field = field.map_err(|_| ProxyError::Malformed)?;
        if field.kind == v2::Type::SSLCommonName as u8 {
            let text = String::from_utf8(field.value.into_owned()).map_err(|_| ProxyError::Malformed)?;
            common_name = Some(text).filter(|text| is_usable(text));
        }
    }
    Ok(common_name.filter(|_| is_verified && showed_certificate))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the reader does it: never more than [`needed`]. Returns what was read of `stream` too.
    fn read(stream: &[u8]) -> (Result<Progress, ProxyError>, usize) {
        let mut count = 0;
        loop {
            let outcome = parse(&stream[..count]);
            if outcome != Ok(Progress::Incomplete) {
                return (outcome, count);
            }
            let more = needed(&stream[..count]);
            assert!(more > 0);
            if count + more > stream.len() {
                return (Ok(Progress::Incomplete), count);
            }
            count += more;
        }
    }

    fn v2_header(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = v2::PROTOCOL_PREFIX.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn field(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend((value.len() as u16).to_be_bytes());
        bytes.extend(value);
        bytes
    }

    fn ssl(client: u8, verify: u32, name: &[u8]) -> Vec<u8> {
        let mut value = vec![client];
        value.extend(verify.to_be_bytes());
        value.extend(field(0x21, b"TLSv1.3"));
        value.extend(field(0x22, name));
        field(0x20, &value)
    }

    const IPV4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0xC3, 0x50, 0x07, 0x5B];

    fn with_fields(fields: &[u8]) -> Vec<u8> {
        v2_header(1, 0x11, &[&IPV4[..], fields].concat())
    }

    fn claims(stream: &[u8]) -> Claims {
        match read(stream) {
            (Ok(Progress::Complete(claims)), _) => claims,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_versions_say_where_the_client_comes_from() {
        let mut ipv6 = Vec::new();
        ipv6.extend(std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | 7).octets());
        ipv6.extend([0; 16]);
        ipv6.extend([0xC3, 0x50, 0, 1]);
        for (header, address) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 50000 1883\r\n".to_vec(), Some("192.0.2.7:50000")),
            (b"PROXY TCP6 2001:db8::7 ::1 50000 1883\r\n".to_vec(), Some("[2001:db8::7]:50000")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever else stands here\r\n".to_vec(), None),
            (b"PROXY UNKNOWN six words and more may stand here\r\n".to_vec(), None),
            (b"PROXY UNKNOWN  \xFF\x0D\x00 \r\n".to_vec(), None),
            (v2_header(1, 0x11, &IPV4), Some("192.0.2.7:50000")),
            (v2_header(1, 0x21, &ipv6), Some("[2001:db8::7]:50000")),
            (v2_header(0, 0x11, &IPV4), None),
            (v2_header(0, 0, b""), None),
            (v2_header(1, 0x31, &[b'/'; 216]), None),
        ] {
            let address = address.map(|text| text.parse().unwrap());
            let expected = Ok(Progress::Complete(Claims { address, common_name: None }));
            // What follows stays where it is.
            let stream = [&header[..], b"\x10\r\n\r\nrest"].concat();
            assert_eq!(read(&stream), (expected, header.len()), "{}", header.escape_ascii());
        }
    }

    /// However it is cut, a header whose end has not come is no error.
    #[test]
    fn a_header_may_come_in_any_pieces() {
        for header in [
            b"PROXY TCP4 192.0.2.7 10.0.0.1 50000 1883\r\n".to_vec(),
            b"PROXY TCP6 2001:db8::7 ::1 50000 1883\r\n".to_vec(),
            with_fields(&ssl(7, 0, b"meter-7")),
        ] {
            for count in 0..header.len() {
                assert_eq!(parse(&header[..count]), Ok(Progress::Incomplete), "{}", header[..count].escape_ascii());
                assert!((1..=header.len() - count).contains(&needed(&header[..count])));
            }
        }
    }

    #[test]
    fn only_a_verified_certificate_names_a_client() {
        let name = |client, verify| claims(&with_fields(&ssl(client, verify, b"meter-7"))).common_name;
        assert_eq!(name(0x03, 0).as_deref(), Some("meter-7"));
        assert_eq!(name(0x05, 0).as_deref(), Some("meter-7"), "shown when the TLS session began");
        assert_eq!(name(0x03, 1), None, "not verified");
        assert_eq!(name(0x01, 0), None, "no certificate: `verify` means nothing");
        assert_eq!(name(0x02, 0), None, "no TLS");
        assert_eq!(claims(&with_fields(&ssl(3, 0, b""))).common_name, None);
        let local = v2_header(0, 0x11, &[&IPV4[..], &ssl(3, 0, b"meter-7")].concat());
        assert_eq!(claims(&local), Claims::default(), "LOCAL: the balancer speaks for itself");
    }

    /// The check value is that of the catalogues of CRCs, and of RFC 3720.
    #[test]
    fn a_checksum_must_be_right_where_there_is_one() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8A91_36AA);
        let unsummed = |command| {
            let fields = [field(0xE0, b"x"), field(0x03, &[0; 4]), ssl(3, 0, b"meter-7")].concat();
            v2_header(command, 0x11, &[&IPV4[..], &fields].concat())
        };
        for command in [0, 1] {
            let mut header = unsummed(command);
            let at = V2_FIXED_BYTES + IPV4.len() + 4 + TLV_FIXED_BYTES;
            let sum = !crc32c(!0, &header);
            header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
            assert!(matches!(read(&header).0, Ok(Progress::Complete(_))));
            for wrong in [at, at - TLV_FIXED_BYTES - 1, V2_FIXED_BYTES, header.len() - 1] {
                let mut header = header.clone();
                header[wrong] ^= 1;
                assert_eq!(read(&header).0, Err(ProxyError::Checksum), "byte {wrong}");
            }
        }
        assert_eq!(read(&with_fields(&field(0x03, &[0; 3]))).0, Err(ProxyError::Malformed));
    }

    /// As of a certificate that is shown to us.
    #[test]
    fn a_name_that_could_not_be_trusted_further_is_none() {
        let name = |name: &[u8]| claims(&with_fields(&ssl(3, 0, name))).common_name;
        assert_eq!(name(b"a\nb"), None);
        assert_eq!(name(b"nul\0"), None);
        assert_eq!(name(&[b'x'; 1025]), None);
        assert!(name(&[b'x'; 1024]).is_some());
    }

    #[test]
    fn fields_that_nobody_knows_are_passed_over() {
        let fields = [field(0xE0, b"x"), field(0x05, &[0; 128]), ssl(3, 0, b"meter-7"), field(0x04, b"")].concat();
        assert_eq!(claims(&with_fields(&fields)).common_name.as_deref(), Some("meter-7"));
    }

    #[test]
    fn what_is_no_header_is_refused_at_its_first_bytes() {
        for (stream, error) in [
            (&b"\x10\x0c\0\x04MQTT\x05\x02\0\0"[..], ProxyError::Missing),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\0", ProxyError::Missing),
            (b"GET /mqtt HTTP/1.1\r\n", ProxyError::Missing),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 50000\r\n", ProxyError::Malformed),
            (b"PROXY TCP4 192.0.2.777 10.0.0.1 1 2\r\n", ProxyError::Malformed),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 1 65536\r\n", ProxyError::Malformed),
            (b"PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n", ProxyError::Malformed),
            (&[&b"PROXY UNKNOWN "[..], &[b'x'; 200], b"\r\n"].concat(), ProxyError::Malformed),
            (&v2_header(2, 0x11, &IPV4), ProxyError::Malformed),
            (&v2_header(1, 0x11, &IPV4[..11]), ProxyError::Malformed),
            (&v2_header(1, 0x41, &IPV4), ProxyError::Malformed),
            (&v2_header(1, 0x12, &IPV4), ProxyError::Datagram),
            (&v2_header(1, 0x11, &[0; HEADER_BYTES_MAX]), ProxyError::TooLong),
            (&with_fields(&[0x20, 0, 9, 1]), ProxyError::Malformed),
            (&with_fields(&field(0x20, &[3, 0, 0])), ProxyError::Malformed),
            (&with_fields(&ssl(3, 0, b"\xFF")), ProxyError::Malformed),
        ] {
            let (outcome, read) = read(stream);
            assert_eq!(outcome, Err(error), "{}", stream.escape_ascii());
            assert!(read <= HEADER_BYTES_MAX.max(V1_BYTES_MAX), "bounded");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_read_beyond_its_bound(
            tail in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            prefix in proptest::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", v2::PROTOCOL_PREFIX, b"\r\n\r\n\0\r\nQUIT\n\x21\x11"]),
        ) {
            let stream = [prefix, &tail].concat();
            let (_, count) = read(&stream);
            proptest::prop_assert!(count <= HEADER_BYTES_MAX);
        }
    }
}
