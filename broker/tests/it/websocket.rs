//! MQTT over WebSocket, with a client that can put anything on the wire.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use kentongan::connection::websocket::frames::{Decoder, End, Opcode, Sender, encode_masked};
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, Sender as PacketSender};
use kentongan_proto::mqtt::*;

use crate::support::*;

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Version: 13\r\n";

fn settings(more: &str) -> String {
    format!("allow_anonymous = true\n[[listener]]\naddress = \"127.0.0.1:0\"\n[listener.websocket]\n{more}")
}

/// The series of connections that were refused on account of WebSocket.
const REFUSED: &str = "kentongan_connects_refused_total{reason=\"websocket\"}";

struct Browser {
    stream: TcpStream,
    decoder: Decoder,
    /// MQTT that came and was not looked at.
    inbound: Vec<u8>,
    end: Option<End>,
}

impl Browser {
    fn open(address: SocketAddr) -> Self {
        Self::open_with(address, "")
    }

    fn open_with(address: SocketAddr, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
        stream.write_all(format!("{REQUEST}{headers}\r\n").as_bytes()).expect("written");
        let mut response = Vec::new();
        let mut byte = [0];
        while !response.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("a response");
            response.push(byte[0]);
        }
        let response = String::from_utf8(response).expect("text");
        assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
        Self { stream, decoder: Decoder::new(Sender::Server, u64::MAX), inbound: Vec::new(), end: None }
    }

    /// The same, and CONNECT.
    fn connected(address: SocketAddr, client_id: &str) -> Self {
        let mut browser = Self::open(address);
        browser.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, client_id))));
        assert!(matches!(browser.receive(), Packet::ConnAck(connack) if !connack.reason_code.is_error()));
        browser
    }

    fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut bytes = Vec::new();
        encode_masked(opcode, payload, [7, 1, 0, 255], &mut bytes);
        self.stream.write_all(&bytes).expect("written");
    }

    fn send(&mut self, packet: &Packet) {
        self.frame(Opcode::Binary, &encoded(packet));
    }

    /// Reads once; `false` at the end.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 10_000];
        let count = self.stream.read(&mut bytes).expect("within the deadline");
        let decoded = self.decoder.decode(&mut bytes[..count]);
        self.inbound.extend_from_slice(&bytes[..decoded.payload_bytes]);
        self.end = self.end.or(decoded.end);
        count > 0
    }

    fn receive(&mut self) -> Packet {
        loop {
            let limits = Limits { packet_bytes_max: u32::MAX, ..Limits::default() };
            if let Ok(FrameStatus::Complete(frame)) = codec::split_frame(&self.inbound, PacketSender::Server, &limits) {
                let packet = codec::decode(&frame, None, ProtocolVersion::V5, PacketSender::Server, &limits);
                let (packet, length) = (packet.expect("a packet"), frame.len());
                self.inbound.drain(..length);
                return packet;
            }
            assert!(self.read(), "closed");
        }
    }

    /// How the connection ends, Close and the end of the stream.
    fn end(mut self) -> Option<End> {
        while self.read() {}
        self.end
    }
}

fn encoded(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(packet, ProtocolVersion::V5, &mut bytes).expect("encoded");
    bytes
}

/// What an HTTP client reads to the end.
fn answer(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer and the end");
    answer
}

/// Packets across frames, and several in one.
///
/// Conformance: [MQTT5-6.0.0-2], [MQTT311-6.0.0-2]
#[test]
fn packets_need_not_be_frames() {
    let broker = Broker::with_settings(&settings(""));
    let mut browser = Browser::open(broker.address);
    for byte in encoded(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "bytewise")))) {
        browser.frame(Opcode::Binary, &[byte]);
    }
    assert!(matches!(browser.receive(), Packet::ConnAck(_)));
    let options = SubscriptionOptions {
        qos: QoS::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Always,
    };
    let subscribe = Packet::Subscribe(Subscribe {
        packet_id: id(1),
        filters: vec![(String::from("t"), options)],
        subscription_identifier: None,
        user_properties: Vec::new(),
    });
    let both = [encoded(&subscribe), encoded(&Packet::Publish(publish("t", "one frame", qos1(2))))].concat();
    browser.frame(Opcode::Binary, &both);
    let mut kinds: Vec<String> = (0..3)
        .map(|_| match browser.receive() {
            Packet::SubAck(_) => String::from("SUBACK"),
            Packet::PubAck(_) => String::from("PUBACK"),
            Packet::Publish(publish) => String::from_utf8(publish.payload.to_vec()).expect("text"),
            other => panic!("{other:?}"),
        })
        .collect();
    kinds.sort();
    assert_eq!(kinds, ["PUBACK", "SUBACK", "one frame"]);
}

/// Larger than any buffer on the way, and than a frame's length in two bytes.
#[test]
fn large_messages_go_both_ways() {
    let broker = Broker::with_settings(&settings(""));
    let mut browser = Browser::connected(broker.address, "large");
    let payload = "kentongan ".repeat(90_000);
    let options = SubscriptionOptions {
        qos: QoS::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Always,
    };
    browser.send(&Packet::Subscribe(Subscribe {
        packet_id: id(1),
        filters: vec![(String::from("large"), options)],
        subscription_identifier: None,
        user_properties: Vec::new(),
    }));
    assert!(matches!(browser.receive(), Packet::SubAck(_)));
    for _ in 0..3 {
        browser.send(&Packet::Publish(publish("large", &payload, Delivery::AtMostOnce)));
    }
    for _ in 0..3 {
        let Packet::Publish(came) = browser.receive() else { panic!("no PUBLISH") };
        assert!(came.payload == payload.as_bytes());
    }
}

/// RFC 6455, 5.5.2.
#[test]
fn a_ping_is_answered_while_nothing_else_happens() {
    let broker = Broker::with_settings(&settings(""));
    let mut browser = Browser::open(broker.address);
    browser.frame(Opcode::Ping, b"before CONNECT");
    let mut pong = [0; 16];
    browser.stream.read_exact(&mut pong).expect("a Pong");
    assert_eq!(&pong, b"\x8A\x0Ebefore CONNECT");
}

/// Text, and whatever else a frame must not be: the client learns the code, the log and the metrics the reason.
///
/// Conformance: [MQTT5-6.0.0-1], [MQTT311-6.0.0-1]
/// Abuse: [refusals-logged]
#[test]
fn frames_that_are_not_allowed_end_the_connection() {
    let broker = Broker::with_settings(&settings("frame_bytes_max = 1000\n"));
    let closed = |code| Some(End::Closed(Some(code)));
    for (number, (opcode, payload, code, logged)) in [
        (Opcode::Text, &b"CONNECT"[..], 1003, "text"),
        (Opcode::Binary, &[0; 1001], 1009, "long"),
        (Opcode::Continuation, b"of nothing", 1002, "fragment"),
        (Opcode::Ping, &[0; 126], 1002, "control frame"),
        (Opcode::Close, b"\x03", 1002, "close frame"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut browser = Browser::open(broker.address);
        browser.frame(opcode, payload);
        assert_eq!(browser.end(), closed(code), "{logged}");
        let line = broker.wait_for_log("ended before CONNACK");
        assert!(line.contains(logged), "{line}");
        broker.wait_for_metric(REFUSED, |count| count == (number + 1) as f64);
    }
    let mut browser = Browser::open(broker.address);
    browser.stream.write_all(b"\x82\x01x").expect("written");
    assert_eq!(browser.end(), closed(1002), "unmasked");

    let mut browser = Browser::connected(broker.address, "late");
    browser.frame(Opcode::Text, b"after CONNACK");
    assert_eq!(browser.end(), closed(1003));
    let line = broker.wait_for_log("disconnected");
    assert!(line.contains("a text frame"), "{line}");
}

/// RFC 6455, 7: both sides say that they close, and then the stream ends.
#[test]
fn a_close_is_answered_and_so_is_disconnect() {
    let broker = Broker::with_settings(&settings(""));
    let mut browser = Browser::connected(broker.address, "closing");
    browser.frame(Opcode::Close, b"\x0F\xA1bye");
    assert_eq!(browser.end(), Some(End::Closed(Some(4001))));

    let mut browser = Browser::connected(broker.address, "disconnecting");
    let reason_code = ReasonCode::Success;
    browser.send(&Packet::Disconnect(Disconnect { reason_code, properties: DisconnectProperties::default() }));
    assert_eq!(browser.end(), Some(End::Closed(Some(1000))));

    // A second CONNECT: MQTT's own last word comes first.
    let mut browser = Browser::connected(broker.address, "twice");
    browser.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "twice"))));
    assert!(matches!(browser.receive(), Packet::Disconnect(Disconnect { reason_code: ReasonCode::ProtocolError, .. })));
    assert_eq!(browser.end(), Some(End::Closed(Some(1000))));
}

/// A client that does not offer the subprotocol among them.
///
/// Conformance: [MQTT5-6.0.0-3], [MQTT311-6.0.0-3]
#[test]
fn who_asks_for_something_else_is_told_in_http() {
    let broker = Broker::with_settings(&settings("path = \"/ws\"\norigins = [\"https://example.org\"]\n"));
    let at_path = |path: &str, more: &str| format!("{}{more}\r\n", REQUEST.replace("/mqtt", path));
    for (request, status) in [
        (String::from("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n"), "426 Upgrade Required"),
        (at_path("/mqtt", ""), "404 Not Found"),
        (at_path("/ws", "Origin: https://evil.example\r\n"), "403 Forbidden"),
        (at_path("/ws", "").replace("mqtt\r\n", "chat\r\n"), "400 Bad Request"),
        (at_path("/ws", "").replace("GET", "POST"), "405 Method Not Allowed"),
        (String::from("\x10\x0c\0\x04MQTT\x05\x02\0\0\0\0"), "400 Bad Request"),
    ] {
        let answer = answer(broker.address, &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        let line = broker.wait_for_log("ended before CONNACK");
        let logged = if request.starts_with("GET") || request.starts_with("POST") {
            &status[..3]
        } else {
            "the client speaks MQTT"
        };
        assert!(line.contains(logged), "{line}");
    }
    broker.wait_for_metric(REFUSED, |count| count == 6.0);
}

/// The request counts towards the time that there is for CONNECT.
///
/// Abuse: [slow-connect]
#[test]
fn a_request_that_dribbles_in_is_cut_off_in_time() {
    let broker = Broker::with_settings(&settings("").replace("[listener.", "connect_timeout_seconds = 1\n[listener."));
    let began = Instant::now();
    let mut stream = TcpStream::connect(broker.address).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    for byte in REQUEST.bytes() {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        if began.elapsed() > DEADLINE {
            panic!("not cut off");
        }
    }
    broker.wait_for_metric("kentongan_connects_refused_total{reason=\"connect_timeout\"}", |count| count == 1.0);
}

/// From a listed proxy only.
#[test]
fn a_listed_proxy_says_where_the_client_is() {
    for (listed, expected) in [("127.0.0.0/8", "192.0.2.7:0"), ("10.0.0.1", "127.0.0.1:")] {
        let broker = Broker::with_settings(&settings(&format!("forwarded_from = [\"{listed}\"]\n")));
        let mut browser = Browser::open_with(broker.address, "X-Forwarded-For: 203.0.113.1, 192.0.2.7\r\n");
        browser.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "forwarded"))));
        assert!(matches!(browser.receive(), Packet::ConnAck(_)));
        let line = broker.wait_for_log("\"connected\"");
        assert!(line.contains(&format!("\"peer\":\"{expected}")), "{line}");
    }
}

/// Conformance: [MQTT5-6.0.0-4], [MQTT311-6.0.0-4]
#[test]
fn the_subprotocol_that_is_chosen_is_one_that_was_offered() {
    let broker = Broker::with_settings(&settings(""));
    for (offered, chosen) in [("mqtt", "mqtt"), ("chat, mqttv3.1", "mqttv3.1"), ("mqttv3.1, mqtt", "mqtt")] {
        let mut stream = TcpStream::connect(broker.address).expect("it listens");
        let request = REQUEST.replace("Protocol: mqtt", &format!("Protocol: {offered}"));
        stream.write_all(format!("{request}\r\n").as_bytes()).expect("written");
        let mut response = [0; 500];
        let count = stream.read(&mut response).expect("a response");
        let response = String::from_utf8_lossy(&response[..count]);
        assert!(response.contains(&format!("\r\nSec-WebSocket-Protocol: {chosen}\r\n")), "{response}");
    }
}
