//! A queue that is longer than the memory for queues: its middle is in the data directory only.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan_proto::mqtt::*;

use crate::support::*;

/// The least time between two readings of the broker's memory.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Publishes that wait for their PUBACK at once.
const PUBLISHER_WINDOW: u64 = 1000;

/// What the process takes beside the queues: the program, a checkpoint on its way to the store, the store's tables and caches, and what
/// the allocator keeps. The same however long the queue is.
const BESIDE_BYTES: f64 = 512.0 * 1024.0 * 1024.0;

/// A broker, and the most memory that it was seen to take.
struct Watched {
    broker: Broker,
    looked: Instant,
    most: f64,
}

impl Watched {
    fn look(&mut self) {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.look_now();
        }
    }

    fn look_now(&mut self) {
        self.looked = Instant::now();
        self.most = self.most.max(self.broker.metric("process_resident_memory_bytes"));
    }

    /// Says what it took, and begins anew.
    fn tell(&mut self, what: &str, began: Instant, memory_max: f64) {
        let mib = self.most / 1024.0 / 1024.0;
        println!("{what}: {:.1} s, at most {mib:.0} MiB resident", began.elapsed().as_secs_f64());
        assert!(self.most < memory_max, "{what} took {mib:.0} MiB");
        self.most = 0.0;
    }
}

fn session(broker: &Broker, clean_start: bool) -> Client {
    let mut asked = connect(ProtocolVersion::V5, "subscriber");
    asked.clean_start = clean_start;
    asked.properties.session_expiry_interval = Some(3600);
    let (client, connack) = Client::open(broker, asked);
    assert_eq!(connack.session_present, !clean_start);
    client
}

fn publish_all(watched: &mut Watched, messages: u64, payload_bytes: usize) {
    let mut publisher = Client::v5(&watched.broker, "publisher");
    let mut acknowledged = 0;
    for number in 0..messages {
        let packet_id = id((number % 60_000) as u16 + 1);
        let mut payload = vec![b'x'; payload_bytes];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        let message = publish("queue", "", Delivery::AtLeastOnce(packet_id));
        publisher.send(&Packet::Publish(Publish { payload: Bytes::from(payload), ..message }));
        while number + 1 - acknowledged >= PUBLISHER_WINDOW {
            expect_puback(&mut publisher);
            acknowledged += 1;
        }
        watched.look();
    }
    (acknowledged..messages).for_each(|_| expect_puback(&mut publisher));
}

fn expect_puback(publisher: &mut Client) {
    match publisher.receive() {
        Packet::PubAck(ack) => assert_eq!(ack.reason_code, ReasonCode::Success),
        other => panic!("PUBACK expected, got {other:?}"),
    }
}

fn receive_all(watched: &mut Watched, messages: u64) {
    let mut subscriber = session(&watched.broker, false);
    for number in 0..messages {
        let message = subscriber.take_publish();
        assert_eq!(message.payload[..8], number.to_be_bytes(), "all of them, in order");
        watched.look();
    }
    assert_eq!(subscriber.receive_within(QUIET), None, "nothing is left");
}

fn queue_and_resume(messages: u64, payload_bytes: usize, memory_bytes: u64, checkpoint_bytes: u64) {
    let (memory, checkpoint) = (memory_bytes.to_string(), checkpoint_bytes.to_string());
    let settings = [
        ("KENTONGAN_SESSION__QUEUE_MESSAGES_MAX", "10000000"),
        ("KENTONGAN_SESSION__QUEUE_BYTES_MAX", "100000000000"),
        ("KENTONGAN_SESSION__QUEUE_MEMORY_BYTES_MAX", &memory),
        ("KENTONGAN_STORAGE__CHECKPOINT_LOG_BYTES", &checkpoint),
    ];
    let broker = Broker::with_environment(&[], &settings);
    let mut watched = Watched { broker, looked: Instant::now(), most: 0.0 };
    let memory_max = memory_bytes as f64 + BESIDE_BYTES;
    let mut subscriber = session(&watched.broker, true);
    assert_eq!(subscriber.subscribe("queue", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    subscriber.disconnect();

    let began = Instant::now();
    publish_all(&mut watched, messages, payload_bytes);
    watched.tell("queued", began, memory_max);
    let in_memory = |bytes: f64| bytes <= memory_bytes as f64 * 1.5 + 1024.0 * 1024.0;
    watched.broker.wait_for_metric("kentongan_queued_messages", |queued| queued == messages as f64);
    watched.broker.wait_for_metric("kentongan_queue_memory_bytes", in_memory);

    let began = Instant::now();
    watched.broker.restart();
    watched.look_now();
    watched.tell("restarted after kill -9", began, memory_max);

    let began = Instant::now();
    receive_all(&mut watched, messages);
    watched.tell("received", began, memory_max);
}

/// P1, P5: what left memory comes back whole and in order, also to another process.
#[test]
fn a_queue_that_is_longer_than_its_memory_arrives_whole_and_in_order() {
    queue_and_resume(30_000, 100, 1024 * 1024, 256 * 1024);
}

/// The same with a million, and the default of checkpoints:
/// `cargo nextest run --release -p kentongan --run-ignored only --no-capture -E 'test(a_million_queued)'`.
#[test]
#[ignore = "four minutes in a debug build, and 430 MiB"]
fn a_million_queued_messages_take_no_more_memory_than_the_setting_and_a_constant() {
    queue_and_resume(1_000_000, 100, 64 * 1024 * 1024, 64 * 1024 * 1024);
}

/// A million retained messages are there again within 30 s of a kill:
/// `cargo nextest run --release -p kentongan --run-ignored only --no-capture -E 'test(a_million_retained)'`.
#[test]
#[ignore = "half a minute in a debug build, and 400 MiB"]
fn a_million_retained_messages_are_read_again_soon() {
    const MESSAGES: u64 = 1_000_000;
    let broker = Broker::with_environment(&[], &[("KENTONGAN_RETAINED__MESSAGES_MAX", "0")]);
    let mut watched = Watched { broker, looked: Instant::now(), most: 0.0 };
    let began = Instant::now();
    let mut publisher = Client::v5(&watched.broker, "publisher");
    for first in (0..MESSAGES).step_by(1000) {
        for number in first..first + 1000 {
            let mut message = publish(&format!("kept/{number}"), "a value", qos1((number % 1000) as u16 + 1));
            message.retain = true;
            publisher.send(&Packet::Publish(message));
        }
        (0..1000).for_each(|_| expect_puback(&mut publisher));
        watched.look();
    }
    watched.tell("retained", began, f64::INFINITY);
    let began = Instant::now();
    watched.broker.restart();
    assert!(began.elapsed() < Duration::from_secs(30));
    watched.look_now();
    watched.tell("restarted after kill -9", began, f64::INFINITY);
    let mut reader = Client::v5(&watched.broker, "reader");
    reader.subscribe("kept/999999", QoS::AtLeastOnce);
    assert_eq!(&reader.take_publish().payload[..], b"a value");
}
