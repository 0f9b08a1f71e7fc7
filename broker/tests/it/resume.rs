//! A long queue is streamed to the client that resumes, through the window, and never loaded whole.

use std::time::Duration;

use bytes::Bytes;
use kentongan_proto::mqtt::*;

use crate::support::*;

/// Messages that wait, and the size of each.
const QUEUED: u64 = 100_000;
const PAYLOAD_BYTES: usize = 1024;

/// The client's Receive Maximum.
const WINDOW: u16 = 32;

/// What the broker may grow by while half of the queue leaves it: for the log and the store, and less than that half.
const GROWTH_BYTES_MAX: f64 = 40.0 * 1024.0 * 1024.0;

/// Publishes that wait for their PUBACK at once.
const PUBLISHER_WINDOW: u64 = 1000;

fn payload(number: u64) -> Bytes {
    let mut bytes = vec![b'x'; PAYLOAD_BYTES];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Bytes::from(bytes)
}

fn number_of(message: &Publish) -> u64 {
    assert_eq!(message.payload.len(), PAYLOAD_BYTES);
    u64::from_be_bytes(message.payload[..8].try_into().expect("eight bytes"))
}

fn resume(broker: &Broker, clean_start: bool) -> Client {
    let mut asked = connect(ProtocolVersion::V5, "subscriber");
    asked.clean_start = clean_start;
    asked.properties.session_expiry_interval = Some(3600);
    asked.properties.receive_maximum = WINDOW.try_into().ok();
    let (client, connack) = Client::open(broker, asked);
    assert_eq!(connack.session_present, !clean_start);
    client
}

fn publish_all(broker: &Broker) {
    let mut publisher = Client::v5(broker, "publisher");
    let mut acknowledged = 0;
    for number in 0..QUEUED {
        let packet_id = id((number % 60_000) as u16 + 1);
        let message = publish("queue", "", Delivery::AtLeastOnce(packet_id));
        publisher.send(&Packet::Publish(Publish { payload: payload(number), ..message }));
        while number + 1 - acknowledged >= PUBLISHER_WINDOW {
            acknowledged += expect_puback(&mut publisher);
        }
    }
    while acknowledged < QUEUED {
        acknowledged += expect_puback(&mut publisher);
    }
}

fn expect_puback(publisher: &mut Client) -> u64 {
    match publisher.receive() {
        Packet::PubAck(ack) => assert_eq!(ack.reason_code, ReasonCode::Success),
        other => panic!("PUBACK expected, got {other:?}"),
    }
    1
}

fn resident_bytes(broker: &Broker) -> f64 {
    broker.metric("process_resident_memory_bytes")
}

/// Resumes and receives up to `until`, a window at a time, so that more than a window would be seen; the broker's memory
/// must not grow by a copy of the queue meanwhile.
fn stream(broker: &Broker, mut next: u64, until: u64) -> Client {
    let (before, mut most) = (resident_bytes(broker), 0.0_f64);
    let mut client = resume(broker, false);
    let first = next;
    while next < until {
        let window: Vec<_> = (0..u64::from(WINDOW).min(until - next)).map(|_| client.expect_publish()).collect();
        if next == first {
            assert_eq!(client.receive_within(QUIET), None, "no more than the Receive Maximum");
        }
        for message in window {
            let number = number_of(&message);
            // Acknowledgements under way at the end of the connection before may have been lost with it.
            let again = message.dup && number < next && next - number <= u64::from(WINDOW);
            assert!(number == next || again, "message {number} came where {next} was due");
            next = next.max(number + 1);
            match message.delivery {
                Delivery::AtLeastOnce(id) => client.send(&Packet::PubAck(Ack::success(id))),
                other => panic!("QoS 1 expected, got {other:?}"),
            }
        }
        if next % 1000 < u64::from(WINDOW) {
            most = most.max(resident_bytes(broker) - before);
        }
    }
    println!("{first} to {until} let memory grow by {most} bytes");
    assert!(most < GROWTH_BYTES_MAX, "memory grew by {most} bytes while the queue was sent");
    client
}

/// P1, P5: all of it, in order, through a small Receive Maximum; half of it after the process was killed.
#[test]
fn a_hundred_thousand_queued_messages_are_streamed_through_the_window() {
    let settings =
        [("KENTONGAN_SESSION__QUEUE_MESSAGES_MAX", "200000"), ("KENTONGAN_SESSION__QUEUE_BYTES_MAX", "1000000000")];
    let mut broker = Broker::with_environment(&[], &settings);
    let mut subscriber = resume(&broker, true);
    assert_eq!(subscriber.subscribe("queue", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    subscriber.disconnect();
    publish_all(&broker);

    drop(stream(&broker, 0, QUEUED / 2));
    broker.restart();
    let mut subscriber = stream(&broker, QUEUED / 2, QUEUED);
    assert_eq!(subscriber.receive_within(Duration::from_secs(1)), None, "nothing is left");
}
