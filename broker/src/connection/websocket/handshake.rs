//! The HTTP request with which a WebSocket connection begins (RFC 6455, section 4), as a plain function of its bytes.
//!
//! [`answer`] takes what has come so far and says that more is wanted, or what is to be written: the response that opens
//! the WebSocket, or one that says in a sentence why there will be none. Nothing else is served here, and a connection
//! that was refused ends.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::connection::networks::{Network, any_contains};

/// The longest request head. Browsers send cookies, and there is no more than that to be said.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

const HEADERS_MAX: usize = 100;

/// What every server appends to the key (RFC 6455, section 1.3).
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The subprotocols there are: `mqtt` for 3.1.1 and 5 [MQTT-6.0.0-4], the other one for 3.1.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// What a listener asks of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// The only path there is.
    pub path: String,
    /// The origins of pages that may connect; all of them if it is empty.
    pub origins: Vec<String>,
    /// Whose `X-Forwarded-For` is believed.
    pub forwarded_from: Vec<Network>,
}

/// How far the request came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its end has not come.
    Incomplete,
    /// It is granted.
    Open(Opening),
    /// It is not.
    Refused(Refusal),
}

/// A request that is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Bytes of the request; frames follow.
    pub request_bytes: usize,
    /// What is answered.
    pub response: Vec<u8>,
    /// Where the client is, if a proxy that is believed said so.
    pub forwarded_for: Option<SocketAddr>,
}

/// Why there will be no WebSocket. The client's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Refusal {
    status: &'static str,
    headers: &'static str,
    text: &'static str,
}

impl Refusal {
    const MALFORMED: Self = Self::new("400 Bad Request", "This is not an HTTP request that can be read.");
    const VERSION: Self = Self::new("400 Bad Request", "A WebSocket is opened by a request of HTTP/1.1.");
    const HOST: Self = Self::new("400 Bad Request", "The request must have one Host header.");
    const BODY: Self = Self::new("400 Bad Request", "The request must have no body.");
    const KEY: Self =
        Self::new("400 Bad Request", "The request must have one Sec-WebSocket-Key of 16 bytes in Base64.");
    const SUBPROTOCOL: Self = Self::new(
        "400 Bad Request",
        "The client must offer the WebSocket subprotocol \"mqtt\" (Sec-WebSocket-Protocol).",
    );
    const ORIGIN: Self = Self::new("403 Forbidden", "Pages of this origin may not connect here.");
    const PATH: Self = Self::new("404 Not Found", "There is no MQTT under this path.");
    const METHOD: Self =
        Self { headers: "Allow: GET\r\n", ..Self::new("405 Method Not Allowed", "A WebSocket is opened by GET.") };
    const UPGRADE: Self = Self {
        headers: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        ..Self::new("426 Upgrade Required", "Here is MQTT over WebSocket, version 13, and nothing else.")
    };
    const TOO_LONG: Self = Self::new("431 Request Header Fields Too Large", "The request's headers are too long.");

    const fn new(status: &'static str, text: &'static str) -> Self {
        Self { status, headers: "", text }
    }

    /// The response, after which the connection is closed.
    #[must_use]
    pub fn response(&self) -> Vec<u8> {
        let Self { status, headers, text } = self;
        let length = text.len() + 1;
        format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n{text}\n"
        )
        .into_bytes()
    }
}

/// For the log.
impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.status, self.text)
    }
}

/// Reads a request of which `bytes` have come, from `peer`.
#[must_use]
pub fn answer(bytes: &[u8], rules: &Rules, peer: Option<SocketAddr>) -> Answer {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let request_bytes = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Answer::Incomplete,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Answer::Refused(Refusal::TOO_LONG),
        Err(_) => return Answer::Refused(Refusal::MALFORMED),
    };
    match grant(&request, rules) {
        Ok(granted) => {
            let forwarded_for = peer.and_then(|peer| forwarded_for(&Headers(request.headers), rules, peer.ip()));
            Answer::Open(Opening { request_bytes, response: granted.response(), forwarded_for })
        }
        Err(refusal) => Answer::Refused(refusal),
    }
}

/// Looks for what is wrong, the most general first: who mistook the port should not read about subprotocols.
fn grant(request: &httparse::Request<'_, '_>, rules: &Rules) -> Result<Granted, Refusal> {
    let headers = Headers(request.headers);
    if request.version != Some(1) {
        return Err(Refusal::VERSION);
    }
    // RFC 9112, section 3.2.
    let Some(_host) = headers.only("Host") else {
        return Err(Refusal::HOST);
    };
    if request.path.map(|path| path.split('?').next().unwrap_or(path)) != Some(rules.path.as_str()) {
        return Err(Refusal::PATH);
    }
    if request.method != Some("GET") {
        return Err(Refusal::METHOD);
    }
    let upgrades = headers.lists("Upgrade", "websocket") && headers.lists("Connection", "upgrade");
    if !upgrades || headers.only("Sec-WebSocket-Version").is_none_or(|version| version != "13") {
        return Err(Refusal::UPGRADE);
    }
    if headers.all("Transfer-Encoding").next().is_some() || headers.all("Content-Length").any(|length| length != "0") {
        return Err(Refusal::BODY);
    }
    // Browsers send it and pages cannot forge it; whoever is no browser has no need to.
    let origins = || headers.all("Origin");
    let is_listed = |origin: &str| rules.origins.iter().any(|own| own.eq_ignore_ascii_case(origin));
    if !rules.origins.is_empty() && !origins().all(is_listed) {
        return Err(Refusal::ORIGIN);
    }
    let key = headers.only("Sec-WebSocket-Key").ok_or(Refusal::KEY)?;
    if !BASE64_STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
        return Err(Refusal::KEY);
    }
    let offered = |own: &&str| headers.items("Sec-WebSocket-Protocol").any(|item| item == *own);
    let subprotocol = SUBPROTOCOLS.into_iter().find(|own| offered(own)).ok_or(Refusal::SUBPROTOCOL)?;
    Ok(Granted { accept: accept(key), subprotocol })
}

/// What a request's key is answered with.
#[must_use]
pub fn accept(key: &str) -> String {
    // Proves that somebody here speaks WebSocket; nothing is kept secret by it.
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(KEY_SUFFIX);
    BASE64_STANDARD.encode(hash.finish())
}

struct Granted {
    accept: String,
    subprotocol: &'static str,
}

impl Granted {
    fn response(&self) -> Vec<u8> {
        let Self { accept, subprotocol } = self;
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
        )
        .into_bytes()
    }
}

/// Where the client is, by the last proxies' own words: each appends whom it heard it from, so they are read from the
/// right, and the first that is no listed proxy is the client. What stands further left, anybody may have written.
fn forwarded_for(headers: &Headers<'_, '_>, rules: &Rules, peer: IpAddr) -> Option<SocketAddr> {
    if !any_contains(&rules.forwarded_from, peer) {
        return None;
    }
    let mut nearest = None;
    let items: Vec<&str> = headers.items("X-Forwarded-For").collect();
    for item in items.iter().rev() {
        let Some(address) = parse_address(item) else {
            break;
        };
        nearest = Some(address);
        if !any_contains(&rules.forwarded_from, address.ip()) {
            break;
        }
    }
    nearest
}

/// An address, with or without a port; 0 stands for none.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = || bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0));
    text.parse().ok().or_else(address)
}

struct Headers<'h, 'b>(&'h [httparse::Header<'b>]);

impl<'h> Headers<'h, '_> {
    /// The values of all headers of that name. One that is not text is left out: nothing that is looked for may be so.
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'h str> + use<'h> {
        let named = self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| std::str::from_utf8(header.value).unwrap_or("\u{FFFD}").trim())
    }

    /// The value, if there is exactly one.
    fn only(&self, name: &'static str) -> Option<&'h str> {
        let mut values = self.all(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// What stands between the commas, of all headers of that name together.
    fn items(&self, name: &'static str) -> impl Iterator<Item = &'h str> + use<'h> {
        self.all(name).flat_map(|value| value.split(',').map(str::trim)).filter(|item| !item.is_empty())
    }

    fn lists(&self, name: &'static str, wanted: &str) -> bool {
        self.items(name).any(|item| item.eq_ignore_ascii_case(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &[&str] = &[
        "Host: broker.example",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: mqtt",
        "Sec-WebSocket-Version: 13",
    ];

    fn rules() -> Rules {
        Rules { path: String::from("/mqtt"), ..Rules::default() }
    }

    fn request(line: &str, headers: &[&str]) -> Vec<u8> {
        format!("{line}\r\n{}\r\n\r\n", headers.join("\r\n")).into_bytes()
    }

    /// The usual headers, with `header` in the place of the one of its name or, if it has no value, without that one.
    fn with(header: &str) -> Vec<u8> {
        let name = header.split(':').next().unwrap();
        let mut headers: Vec<&str> = HEADERS.iter().filter(|own| !own.starts_with(name)).copied().collect();
        headers.extend(header.contains(": ").then_some(header));
        request("GET /mqtt HTTP/1.1", &headers)
    }

    fn status(bytes: &[u8]) -> String {
        let response = match answer(bytes, &rules(), None) {
            Answer::Open(opening) => opening.response,
            Answer::Refused(refusal) => refusal.response(),
            Answer::Incomplete => return String::from("incomplete"),
        };
        String::from_utf8(response).unwrap()[9..12].to_owned()
    }

    /// RFC 6455, section 1.3.
    #[test]
    fn a_request_is_granted_as_in_the_rfc() {
        let bytes = request("GET /mqtt HTTP/1.1", HEADERS);
        let Answer::Open(opening) = answer(&[&bytes[..], b"frames"].concat(), &rules(), None) else {
            panic!("refused");
        };
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
        assert_eq!(String::from_utf8(opening.response).unwrap(), expected);
        assert_eq!((opening.request_bytes, opening.forwarded_for), (bytes.len(), None));
    }

    /// [MQTT-6.0.0-3], [MQTT-6.0.0-4]
    #[test]
    fn the_subprotocol_is_one_that_the_client_offers() {
        let chosen = |offer: &str| match answer(&with(&format!("Sec-WebSocket-Protocol: {offer}")), &rules(), None) {
            Answer::Open(opening) => {
                let text = String::from_utf8(opening.response).unwrap();
                let line =
                    text.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: ").map(str::to_owned));
                line.unwrap()
            }
            other => format!("{other:?}"),
        };
        assert_eq!(chosen("mqtt"), "mqtt");
        assert_eq!(chosen("chat, mqtt ,mqttv3.1"), "mqtt");
        assert_eq!(chosen("mqttv3.1"), "mqttv3.1");
        assert!(chosen("chat").contains("must offer the WebSocket subprotocol"));
        assert!(chosen("MQTT").contains("400"), "compared as it is spelt");
    }

    #[test]
    fn whatever_is_wrong_has_its_status() {
        for (bytes, expected) in [
            (with("Host:"), "400"),
            (with("Host: a\r\nHost: b"), "400"),
            (with("Upgrade:"), "426"),
            (with("Upgrade: h2c"), "426"),
            (with("Upgrade: WebSocket"), "101"),
            (with("Connection:"), "426"),
            (with("Connection: close"), "426"),
            (with("Sec-WebSocket-Version:"), "426"),
            (with("Sec-WebSocket-Version: 8"), "426"),
            (with("Sec-WebSocket-Key:"), "400"),
            (with("Sec-WebSocket-Key: c2hvcnQ="), "400"),
            (with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), "400"),
            (with("Sec-WebSocket-Key: no base64 in here at all"), "400"),
            (with("Sec-WebSocket-Protocol:"), "400"),
            (with("Content-Length: 0"), "101"),
            (with("Content-Length: 7"), "400"),
            (with("Transfer-Encoding: chunked"), "400"),
            (with("Sec-WebSocket-Extensions: permessage-deflate"), "101"),
            (request("GET /mqtt?token=x HTTP/1.1", HEADERS), "101"),
            (request("GET / HTTP/1.1", HEADERS), "404"),
            (request("GET /mqtt/ HTTP/1.1", HEADERS), "404"),
            (request("POST /mqtt HTTP/1.1", HEADERS), "405"),
            (request("GET /mqtt HTTP/1.0", HEADERS), "400"),
            (b"\x10\x0c\0\x04MQTT\x05\x02\0\0\0\0".to_vec(), "400"),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), "400"),
            (with(&format!("Cookie: {}", "x".repeat(HEAD_BYTES_MAX))), "431"),
            (request("GET /mqtt HTTP/1.1", &["X: y"; HEADERS_MAX + 1]), "431"),
        ] {
            assert_eq!(status(&bytes), expected, "{}", bytes[..bytes.len().min(300)].escape_ascii());
        }
    }

    #[test]
    fn a_refusal_says_in_a_sentence_what_to_do() {
        let refused = |bytes: &[u8]| match answer(bytes, &rules(), None) {
            Answer::Refused(refusal) => String::from_utf8(refusal.response()).unwrap(),
            other => panic!("{other:?}"),
        };
        let text = refused(&request("GET /mqtt HTTP/1.1", &["Host: x", "Accept: text/html"]));
        assert!(text.starts_with("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\n"), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "Here is MQTT over WebSocket, version 13, and nothing else.\n");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        assert!(refused(&request("PUT /mqtt HTTP/1.1", HEADERS)).contains("Allow: GET\r\n"));
    }

    /// In whatever pieces it comes, and never more than the bound.
    #[test]
    fn a_request_is_waited_for_up_to_its_bound() {
        let bytes = request("GET /mqtt HTTP/1.1", HEADERS);
        for count in 0..bytes.len() {
            assert_eq!(status(&bytes[..count]), "incomplete");
        }
        let endless = [&b"GET /mqtt HTTP/1.1\r\nX: "[..], &[b'x'; HEAD_BYTES_MAX]].concat();
        assert_eq!(status(&endless[..HEAD_BYTES_MAX - 1]), "incomplete");
        assert_eq!(status(&endless[..HEAD_BYTES_MAX]), "431");
    }

    #[test]
    fn pages_of_other_origins_are_kept_out() {
        let rules = Rules { origins: vec![String::from("https://example.org"), String::from("null")], ..rules() };
        let admits = |bytes: &[u8]| matches!(answer(bytes, &rules, None), Answer::Open(_));
        assert!(admits(&with("Origin: https://example.org")));
        assert!(admits(&with("Origin: HTTPS://Example.org")));
        assert!(admits(&with("Origin: null")));
        assert!(admits(&with("Origin:")), "no browser");
        for origin in [
            "http://example.org",
            "https://example.org:8443",
            "https://example.org.evil.example",
            "https://evil.example",
            "https://example.org\r\nOrigin: https://evil.example",
            "\u{FF}",
        ] {
            let bytes = with(&format!("Origin: {origin}"));
            assert_eq!(answer(&bytes, &rules, None), Answer::Refused(Refusal::ORIGIN), "{origin}");
        }
    }

    /// Anybody may write the header; only what a listed proxy appended counts.
    #[test]
    fn the_client_is_where_the_last_listed_proxy_heard_it_from() {
        let networks = ["127.0.0.1", "10.0.0.0/8"].map(|text| text.parse().unwrap()).to_vec();
        let rules = Rules { forwarded_from: networks, ..rules() };
        let heard = |peer: &str, lines: &str| match answer(&with(lines), &rules, Some(peer.parse().unwrap())) {
            Answer::Open(opening) => opening.forwarded_for.map(|address| address.to_string()),
            other => panic!("{other:?}"),
        };
        let from = |lines| heard("127.0.0.1:5", lines);
        assert_eq!(from("X-Forwarded-For: 192.0.2.7").as_deref(), Some("192.0.2.7:0"));
        assert_eq!(from("X-Forwarded-For: 192.0.2.7:99").as_deref(), Some("192.0.2.7:99"));
        assert_eq!(from("X-Forwarded-For: 2001:db8::7").as_deref(), Some("[2001:db8::7]:0"));
        assert_eq!(from("X-Forwarded-For: [2001:db8::7]:99").as_deref(), Some("[2001:db8::7]:99"));
        assert_eq!(from("X-Forwarded-For: 198.51.100.1, 192.0.2.7").as_deref(), Some("192.0.2.7:0"), "forged");
        assert_eq!(from("X-Forwarded-For: 192.0.2.7, 10.0.0.9").as_deref(), Some("192.0.2.7:0"), "two proxies");
        let two_lines = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-For: 10.0.0.9";
        assert_eq!(from(two_lines).as_deref(), Some("192.0.2.7:0"));
        assert_eq!(from("X-Forwarded-For: 10.0.0.9").as_deref(), Some("10.0.0.9:0"), "a client among proxies");
        assert_eq!(from("X-Forwarded-For: 192.0.2.7, unknown"), None);
        assert_eq!(from("X-Forwarded-For: unknown, 10.0.0.9").as_deref(), Some("10.0.0.9:0"));
        assert_eq!(from("X-Other: 192.0.2.7"), None);
        assert_eq!(heard("192.0.2.1:5", "X-Forwarded-For: 192.0.2.7"), None, "no listed proxy");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = answer(&bytes, &rules(), None);
            let _ = answer(&[&b"GET /mqtt HTTP/1.1\r\n"[..], &bytes].concat(), &rules(), None);
        }
    }
}
