//! What goes on in the whole cluster, seen from any node: traces, slow subscribers, top topics.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::num::NonZeroU16;

use kentongan_proto::mqtt::*;
use serde_json::Value;

use super::api::{Keys, ask, cluster, get};
use super::nodes::Node;
use crate::support::*;

/// A trace as it comes.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(node: &Node, keys: &Keys, query: &str) -> Self {
        let address = node.said_address("listening for operators").expect("it serves the API");
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
        let token = keys.viewer.expose();
        write!(stream, "GET /api/v1/trace?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
            .expect("sent");
        let mut own = Self(BufReader::new(stream));
        let begun = own.next().expect("a line");
        assert_eq!((&begun["event"], &begun["unavailable"]), (&Value::from("trace.begun"), &Value::Array(vec![])));
        assert_eq!(begun["nodes"].as_array().map(Vec::len), Some(3));
        own
    }

    /// The next line, of those that are no part of the framing; `None`: it is over.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let count = self.0.read_line(&mut line).expect("a line in time");
            match line.trim() {
                "0" => return None,
                text if text.starts_with('{') => return Some(serde_json::from_str(text).expect("JSON")),
                _ => assert!(count > 0, "the stream broke off"),
            }
        }
    }

    /// What happened, up to an event.
    fn until(&mut self, event: &str) -> Vec<Value> {
        let mut lines = Vec::new();
        while lines.last().is_none_or(|last: &Value| last["event"] != event) {
            lines.push(self.next().expect("it goes on"));
        }
        lines
    }
}

fn events(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["event"].as_str().expect("a text")).collect()
}

#[test]
fn a_client_and_a_topic_are_traced_from_another_node_than_theirs() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let mut of_client = Stream::open(&cluster.nodes[0], &keys, "client=lamp");
    let mut of_topic = Stream::open(&cluster.nodes[1], &keys, "topic=t/%23&payload=3");
    let mut lamp = cluster.nodes[2].client("lamp");
    let mut other = cluster.nodes[1].client("other");
    lamp.subscribe("t/1", QoS::AtLeastOnce);
    other.publish_acknowledged("elsewhere", "no", qos1(1));
    other.publish_acknowledged("t/1", "hello", qos1(2));
    let publish = lamp.expect_publish();
    assert_eq!(publish.topic, "t/1");
    lamp.disconnect();
    let lines = of_client.until("client.disconnected");
    let seen = events(&lines);
    for event in ["client.connected", "client.subscribed", "publish.sent", "packet.received"] {
        assert!(seen.contains(&event), "{event} in {lines:?}");
    }
    let is_own = |line: &Value| line["clientid"] == "lamp" && line["node"] == cluster.nodes[2].name.as_str();
    assert!(lines.iter().all(is_own), "{lines:?}");
    let mut lines = of_topic.until("publish.sent");
    if !events(&lines).contains(&"publish.received") {
        // Nodes are asked one after the other.
        lines.extend(of_topic.until("publish.received"));
    }
    let of = |event: &str| lines.iter().find(|line| line["event"] == event).expect("both are there");
    assert_eq!(
        (&of("publish.received")["clientid"], &of("publish.sent")["clientid"]),
        (&"other".into(), &"lamp".into())
    );
    assert!(
        lines.iter().all(|line| line["topic"] == "t/1" && line["payload"] == "hel" && line["bytes"] == 5),
        "{lines:?}"
    );
}

#[test]
fn a_trace_ends_when_its_time_is_over_and_is_not_begun_for_nothing() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let node = &cluster.nodes[0];
    assert_eq!(Stream::open(node, &keys, "client=lamp&seconds=1").next(), None);
    for (query, status) in [
        ("", 400),
        ("client=a&topic=b", 400),
        ("client=a&seconds=0", 400),
        ("client=a&payload=9999", 400),
        ("topic=a/%23/b", 400),
    ] {
        assert_eq!(ask(node, keys.viewer.expose(), "GET", &format!("/trace?{query}"), None).0, status, "{query}");
    }
}

#[test]
fn slow_subscribers_and_top_topics_of_all_nodes_are_seen_from_one() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let mut asked = connect(ProtocolVersion::V5, "slow");
    asked.properties.receive_maximum = NonZeroU16::new(1);
    let (mut slow, _) = cluster.nodes[1].open(asked);
    slow.subscribe("q", QoS::AtLeastOnce);
    let mut publishers = [0, 2].map(|node| cluster.nodes[node].client(&format!("publisher-{node}")));
    for number in 1..=5 {
        publishers[0].publish_acknowledged("q", "x", qos1(number));
    }
    wait_for("four wait behind one", || {
        let found = get(&cluster.nodes[2], &keys, "/slow-subscribers?by=messages");
        let first = &found["data"][0];
        (&first["clientid"], &first["node"]) == (&"slow".into(), &cluster.nodes[1].name.as_str().into())
            && (&first["mqueue_len"], &first["inflight_cnt"]) == (&4.into(), &1.into())
    });

    let counted = std::thread::scope(|scope| {
        let asking = scope.spawn(|| get(&cluster.nodes[1], &keys, "/top-topics?seconds=1&limit=2"));
        let mut number = 100;
        while !asking.is_finished() {
            for (at, topics) in [(0, &["often", "often", "seldom"][..]), (1, &["often"])] {
                for topic in topics {
                    number = number % 60_000 + 1;
                    publishers[at].publish_acknowledged(topic, "x", qos1(number));
                }
            }
        }
        asking.join().expect("an answer")
    });
    let [often, seldom] = &counted["data"].as_array().expect("a list")[..] else { panic!("{counted}") };
    assert_eq!((&often["topic"], &seldom["topic"]), (&"often".into(), &"seldom".into()));
    let count = |topic: &Value| topic["count"].as_u64().expect("a number");
    assert!(count(often) > 2 * count(seldom) + 2 && count(seldom) > 0, "of both nodes: {counted}");
    assert_eq!(counted["unavailable"], Value::Array(vec![]));
    for wrong in ["/top-topics?seconds=99", "/top-topics?by=luck", "/slow-subscribers?limit=0"] {
        assert_eq!(ask(&cluster.nodes[0], keys.viewer.expose(), "GET", wrong, None).0, 400, "{wrong}");
    }
}
