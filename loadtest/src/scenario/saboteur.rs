//! A broker that does wrong on purpose: the checks must see it.
//!
//! It relays each PUBLISH, as it came, to those that subscribed to exactly its topic. QoS 1 it
//! acknowledges, and passes on with the publisher's Packet Identifier.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use super::{
    Broker, Outcome, connect, idle, large,
    traffic::{self, Shape},
};
use crate::{engine::Findings, report::Progress, wire};

/// The message to which something is done.
const VICTIM: usize = 10;

/// What is done with message [`VICTIM`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sabotage {
    Nothing,
    Lose,
    Repeat,
    SwapWithNext,
    Corrupt,
    MarkDuplicate,
    /// Ends the connections.
    Hang,
}

/// Relayed packets, and the subscribers' sockets.
#[derive(Default)]
struct Relay {
    subscribers: Vec<(Vec<u8>, TcpStream)>,
    relayed: usize,
    held: Option<Vec<u8>>,
}

impl Relay {
    fn relay(&mut self, sabotage: Sabotage, packet: &[u8], header_bytes: usize) {
        let number = self.relayed;
        self.relayed += 1;
        let mut packets = vec![packet.to_vec()];
        if number == VICTIM {
            match sabotage {
                Sabotage::Nothing => {}
                Sabotage::Lose => packets.clear(),
                Sabotage::Repeat => packets.push(packet.to_vec()),
                Sabotage::SwapWithNext => self.held = packets.pop(),
                Sabotage::Corrupt => packets[0][packet.len() - 1] ^= 1,
                Sabotage::MarkDuplicate => packets[0][0] |= 8,
                Sabotage::Hang => {
                    for (_, subscriber) in &self.subscribers {
                        subscriber.shutdown(std::net::Shutdown::Both).unwrap();
                    }
                    return;
                }
            }
        } else {
            packets.extend(self.held.take());
        }
        let topic = string(packet, header_bytes);
        for (_, subscriber) in self.subscribers.iter_mut().filter(|(filter, _)| *filter == topic) {
            for packet in &packets {
                // The tester may have given up.
                let _ = subscriber.write_all(packet);
            }
        }
    }
}

/// The string that begins at `at`.
fn string(packet: &[u8], at: usize) -> Vec<u8> {
    let length = usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    packet[at + 2..at + 2 + length].to_vec()
}

fn serve(mut stream: TcpStream, sabotage: Sabotage, relay: &Mutex<Relay>) {
    let mut buffer = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        while let Some(frame) = wire::scan(&buffer).unwrap().filter(|frame| frame.bytes() <= buffer.len()) {
            let packet: Vec<u8> = buffer.drain(..frame.bytes()).collect();
            let body = frame.header_bytes;
            let mut answer = Vec::new();
            match packet[0] >> 4 {
                1 => answer.extend([0x20, 2, 0, 0]),
                8 => {
                    let filter = string(&packet, body + 2);
                    let subscription = (filter, stream.try_clone().unwrap());
                    relay.lock().unwrap().subscribers.push(subscription);
                    let qos = packet[packet.len() - 1];
                    answer.extend([0x90, 3, packet[body], packet[body + 1], qos]);
                }
                3 => {
                    relay.lock().unwrap().relay(sabotage, &packet, body);
                    if packet[0] & 2 != 0 {
                        let id = body + 2 + string(&packet, body).len();
                        answer.extend([0x40, 2, packet[id], packet[id + 1]]);
                    }
                }
                4 => {}
                _ => {
                    stream.shutdown(std::net::Shutdown::Both).unwrap_or_default();
                    return;
                }
            }
            stream.write_all(&answer).unwrap_or_default();
        }
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(read) => buffer.extend_from_slice(&bytes[..read]),
        }
    }
}

/// A relay on a port of its own; its threads end with the test's process or their connections.
fn start(sabotage: Sabotage) -> Broker {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let relay = Arc::new(Mutex::new(Relay::default()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let relay = Arc::clone(&relay);
            thread::spawn(move || serve(stream.unwrap(), sabotage, &relay));
        }
    });
    Broker::one(address, None)
}

fn run(sabotage: Sabotage, shape: Shape, subscribers: u32, payload_bytes: usize) -> anyhow::Result<Outcome> {
    let plan = traffic::Plan {
        shape,
        version: ProtocolVersion::V3_1_1,
        qos: QoS::AtMostOnce,
        payload_bytes,
        window: 4,
        publishers: 1,
        subscribers,
        rate: None,
        keeps_sessions: false,
        look_ns: 0,
        churn_per_second: 0.0,
        seconds: 0.2,
        warm_up_seconds: 0.0,
        patience_seconds: 0.3,
        seed: 1,
    };
    traffic::run(&plan, &start(sabotage), &Progress::new())
}

fn findings(sabotage: Sabotage) -> Findings {
    run(sabotage, Shape::Pairs, 1, 64).unwrap().findings
}

#[test]
fn a_faithful_relay_is_clean() {
    for (shape, subscribers, payload) in [(Shape::Pairs, 1, 64), (Shape::FanOut, 3, 64), (Shape::Pairs, 1, 300_000)] {
        let outcome = run(Sabotage::Nothing, shape, subscribers, payload).unwrap();
        assert_eq!(outcome.findings, Findings::default());
        assert!(outcome.is_clean(), "{:?}", outcome.failures);
        assert!(outcome.delivered > VICTIM as u64);
        assert!(outcome.latency.p99_us > 0.0);
    }
}

#[test]
fn a_lost_message_is_reported() {
    let outcome = run(Sabotage::Lose, Shape::Pairs, 1, 64).unwrap();
    assert_eq!(outcome.findings, Findings { lost: 1, ..Findings::default() });
    assert_eq!(outcome.failures, ["1 lost"]);
    let fan_out = run(Sabotage::Lose, Shape::FanOut, 3, 64).unwrap();
    assert_eq!(fan_out.findings, Findings { lost: 3, ..Findings::default() });
}

#[test]
fn a_repeated_message_is_reported() {
    assert_eq!(findings(Sabotage::Repeat), Findings { duplicated: 1, ..Findings::default() });
}

#[test]
fn swapped_messages_are_reported() {
    assert_eq!(findings(Sabotage::SwapWithNext), Findings { out_of_order: 1, ..Findings::default() });
}

#[test]
fn a_changed_payload_is_reported_and_its_message_lost() {
    assert_eq!(findings(Sabotage::Corrupt), Findings { lost: 1, corrupt: 1, ..Findings::default() });
}

#[test]
fn a_message_marked_as_repeated_is_reported() {
    assert_eq!(findings(Sabotage::MarkDuplicate), Findings { wrong_flags: 1, ..Findings::default() });
}

#[test]
fn a_faithful_relay_passes_the_other_scenarios() {
    let version = ProtocolVersion::V3_1_1;
    let idle = idle::Plan { version, qos: QoS::AtLeastOnce, payload_bytes: 64, clients: 20, seconds: 0.1, seed: 1 };
    let large = large::Plan {
        version,
        qos: QoS::AtLeastOnce,
        payload_bytes: 1_000_000,
        pairs: 2,
        messages: 2,
        small_rate: 500.0,
        seconds: 0.1,
        seed: 1,
    };
    let connect = connect::Plan { version, rate: 200.0, seconds: 0.3, warm_up_seconds: 0.1, seed: 1 };
    let progress = Progress::new();
    let relay = || start(Sabotage::Nothing);
    let outcomes = [
        idle::run(&idle, &relay(), &progress).unwrap(),
        large::run(&large, &relay(), &progress).unwrap(),
        connect::run(&connect, &relay(), &progress).unwrap(),
    ];
    for outcome in &outcomes {
        assert!(outcome.is_clean(), "{}: {:?}", outcome.scenario, outcome.failures);
        assert!(outcome.latency.count > 0, "{}", outcome.scenario);
    }
    assert_eq!(outcomes[0].published_in_all, 3 * 20);
}

#[test]
fn a_broker_that_hangs_up_ends_the_run_with_the_client_named() {
    let error = format!("{:#}", run(Sabotage::Hang, Shape::Pairs, 1, 64).unwrap_err());
    assert!(error.contains("client lt-") && error.contains("closed the connection"), "{error}");
}
