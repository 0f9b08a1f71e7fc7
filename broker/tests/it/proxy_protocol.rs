//! Connections of balancers that say for whom they connect.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use kentongan_proto::mqtt::*;

use crate::support::*;

/// The series of balancers that were refused.
const REFUSED: &str = "kentongan_connects_refused_total{reason=\"proxy_header\"}";

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 50000 1883\r\n";

/// 192.0.2.8:50001, and nothing else.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\x02\x08\x0A\0\0\x01\xC3\x51\x07\x5B";

/// A health check of the balancer itself.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn settings(more: &str) -> String {
    format!("allow_anonymous = true\n{}", settings_of_default(more))
}

/// The same without a word about who may come without a user name.
fn settings_of_default(more: &str) -> String {
    format!("[[listener]]\naddress = \"127.0.0.1:0\"\nproxy_protocol_from = [\"127.0.0.0/8\"]\n{more}")
}

fn announced(broker: &Broker, header: &[u8]) -> Client {
    let mut client = Client::raw(broker, ProtocolVersion::V5);
    client.send_bytes(header);
    client
}

/// Versions 1 and 2, in one piece and byte by byte; the log knows the client by what was said.
#[test]
fn a_client_is_known_by_what_its_balancer_says() {
    let broker = Broker::with_settings(&settings(""));
    for (header, peer) in [(V1, "192.0.2.7:50000"), (V2, "192.0.2.8:50001"), (LOCAL, "127.0.0.1:")] {
        for step in [header.len(), 1] {
            let mut client = Client::raw(&broker, ProtocolVersion::V5);
            for piece in header.chunks(step) {
                client.send_bytes(piece);
            }
            client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "behind"))));
            client.expect_connack();
            let line = broker.wait_for_log("\"connected\"");
            assert!(line.contains(&format!("\"peer\":\"{peer}")), "{line}");
            client.publish_acknowledged("t", "x", qos1(1));
        }
    }
}

/// A loopback address lets in whoever gives no user name, but not for the outside, which comes by way of a balancer.
///
/// Abuse: [anonymous]
#[test]
fn who_comes_from_outside_by_a_balancer_needs_a_user_name() {
    let broker = Broker::with_settings(&settings_of_default(""));
    let mut client = announced(&broker, b"PROXY TCP4 203.0.113.9 10.0.0.1 50000 1883\r\n");
    client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "outside"))));
    assert_eq!(client.expect_connack().reason_code, ReasonCode::NotAuthorized);
}

/// What lies behind it may be anything that the listener speaks.
#[test]
fn a_websocket_may_follow() {
    let broker = Broker::with_settings(&settings("[listener.websocket]\n"));
    let mut client = announced(&broker, V2);
    client.send_bytes(b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
    let line = broker.wait_for_log("ended before CONNACK");
    assert!(line.contains("\"peer\":\"192.0.2.8:50001\""), "{line}");
}

/// `X-Forwarded-For` is believed of whom the header says that it comes from, not of the balancer that passed it on: or whoever is
/// behind one that is listed could be anybody.
///
/// Abuse: [certificates]
#[test]
fn a_proxy_behind_a_balancer_is_known_by_its_own_address() {
    for (forwarded_from, expected) in [("192.0.2.8", "203.0.113.1:"), ("127.0.0.0/8", "192.0.2.8:50001")] {
        let broker = Broker::with_settings(&settings(&format!(
            "[listener.websocket]\nforwarded_from = [\"{forwarded_from}\"]\n"
        )));
        let mut client = announced(&broker, V2);
        client.send_bytes(
            b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
              Sec-WebSocket-Protocol: mqtt\r\nX-Forwarded-For: 203.0.113.1\r\n\r\n",
        );
        let mut answer = [0; 12];
        client.stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 101");
        drop(client);
        let line = broker.wait_for_log("ended before CONNACK");
        assert!(line.contains(&format!("\"peer\":\"{expected}")), "{forwarded_from}: {line}");
    }
}

/// Abuse: [certificates], [refusals-logged]
#[test]
fn a_balancer_that_says_nothing_is_refused() {
    let broker = Broker::with_settings(&settings(""));
    for (number, bytes) in [
        &b"\x10\x0c\0\x04MQTT\x05\x02\0\0\0\0"[..],
        b"PROXY TCP4 192.0.2.7\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0C............",
    ]
    .into_iter()
    .enumerate()
    {
        announced(&broker, bytes).expect_closed();
        let line = broker.wait_for_log("ended before CONNACK");
        assert!(line.contains("PROXY protocol header"), "{line}");
        broker.wait_for_metric(REFUSED, |count| count == (number + 1) as f64);
    }
}

/// Abuse: [certificates]
#[test]
fn a_header_of_anybody_else_is_refused() {
    let unlisted = settings("connect_timeout_seconds = 1\n").replace("127.0.0.0/8", "192.0.2.1");
    let broker = Broker::with_settings(&unlisted);
    for header in [V1, V2] {
        announced(&broker, header).expect_closed();
    }
    // As what they look like in MQTT: one is no packet, the other the beginning of one that never comes.
    broker.wait_for_metric("kentongan_connects_refused_total", |count| count == 2.0);
    Client::v5(&broker, "direct");
    let line = broker.wait_for_log("\"connected\"");
    assert!(line.contains("\"peer\":\"127.0.0.1:"), "{line}");
}

/// The header counts towards the time that there is for CONNECT.
///
/// Abuse: [slow-connect]
#[test]
fn a_header_that_stalls_is_cut_off_in_time() {
    let broker = Broker::with_settings(&settings("connect_timeout_seconds = 1\n"));
    let mut silent = announced(&broker, b"");
    let mut stalled = announced(&broker, &V2[..20]);
    silent.expect_closed();
    stalled.expect_closed();
    broker.wait_for_metric("kentongan_connects_refused_total{reason=\"connect_timeout\"}", |count| count == 2.0);
}

/// All of a balancer's clients come from its address, so that one is not held to the rate of one.
///
/// Abuse: [connect-flood]
#[test]
fn a_balancer_is_not_held_to_the_rate_of_one_address() {
    let rate = "[limits]\nconnect_rate_per_address = 2\n";
    let broker = Broker::with_settings(&settings(rate));
    let clients: Vec<Client> = (0..20)
        .map(|number| {
            let mut client = announced(&broker, V1);
            client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, &format!("c{number}")))));
            client.expect_connack();
            client
        })
        .collect();
    assert_eq!(clients.len(), 20);
    assert_eq!(broker.metric("kentongan_connects_refused_total{reason=\"connect_rate\"}"), 0.0);

    let unlisted = Broker::with_settings(&settings(rate).replace("127.0.0.0/8", "192.0.2.1"));
    for _ in 0..20 {
        // Closed at once or not: the flood itself is what counts.
        if let Ok(mut stream) = TcpStream::connect(unlisted.address) {
            let _ = stream.write_all(b"\x10");
        }
    }
    unlisted.wait_for_metric("kentongan_connects_refused_total{reason=\"connect_rate\"}", |count| count >= 10.0);
}
