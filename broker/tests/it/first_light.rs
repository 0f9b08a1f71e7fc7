//! The first things a person would try.

use kentongan_proto::mqtt::QoS;

use crate::support::{Broker, Client, QOS0, qos1, qos2};

/// The tutorial: a subscriber, a publisher, a message.
#[test]
fn a_message_reaches_its_subscriber_at_every_qos() {
    let broker = Broker::start();
    for (qos, delivery) in [(QoS::AtMostOnce, QOS0), (QoS::AtLeastOnce, qos1(1)), (QoS::ExactlyOnce, qos2(2))] {
        let mut subscriber = Client::v311(&broker, "subscriber");
        subscriber.subscribe("test", qos);
        let mut publisher = Client::v5(&broker, "publisher");
        publisher.publish_acknowledged("test", "mqtt test", delivery);
        let message = subscriber.take_publish();
        assert_eq!((message.topic.as_str(), &message.payload[..]), ("test", &b"mqtt test"[..]));
        assert_eq!(message.delivery.qos(), qos);
        subscriber.disconnect();
        publisher.disconnect();
    }
}
