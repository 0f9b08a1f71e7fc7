//! A Rust client that others use, MQTT 3.1.1 and 5.

use std::time::{Duration, Instant};

use crate::support::{Broker, DEADLINE};

/// The same tests on rumqttc's two modules, whose types differ though their names do not.
macro_rules! tests_of_version {
    ([$($root:ident)::+], $version:ident, $persist:expr) => {
        mod $version {
            use ::$($root)::+::mqttbytes::QoS;
            use ::$($root)::+::mqttbytes::$version::{ConnAck, Packet, Publish};
            use ::$($root)::+::{Client, Connection, Event, MqttOptions};

            use super::*;

            struct Rumqttc {
                client: Client,
                connection: Connection,
            }

            impl Rumqttc {
                fn options(broker: &Broker, client_id: &str) -> MqttOptions {
                    let mut options =
                        MqttOptions::new(client_id, broker.address.ip().to_string(), broker.address.port());
                    options.set_keep_alive(Duration::from_secs(30));
                    options
                }

                fn connect(options: MqttOptions) -> (Self, ConnAck) {
                    let (client, connection) = Client::new(options, 100);
                    let mut this = Self { client, connection };
                    let connack = this.wait_for("CONNACK", |event| match event {
                        Event::Incoming(Packet::ConnAck(connack)) => Some(connack),
                        _ => None,
                    });
                    (this, connack)
                }

                /// Drives the client until an event is the one waited for.
                fn wait_for<T>(&mut self, what: &str, wanted: impl Fn(Event) -> Option<T>) -> T {
                    let deadline = Instant::now() + DEADLINE;
                    loop {
                        let left = deadline.saturating_duration_since(Instant::now());
                        let Ok(event) = self.connection.recv_timeout(left) else {
                            panic!("no {what} in time");
                        };
                        if let Some(found) = wanted(event.expect("the connection stands")) {
                            return found;
                        }
                    }
                }

                fn subscribe(&mut self, filter: &str, qos: QoS) {
                    self.client.subscribe(filter, qos).expect("a request");
                    self.wait_for("SUBACK", |event| {
                        matches!(event, Event::Incoming(Packet::SubAck(_))).then_some(())
                    });
                }

                /// Publishes and completes the exchange.
                fn publish(&mut self, topic: &str, qos: QoS, retain: bool, payload: &str) {
                    self.client.publish(topic, qos, retain, payload.to_owned()).expect("a request");
                    self.wait_for("acknowledgement", |event| match (qos, event) {
                        (QoS::AtMostOnce, Event::Outgoing(::rumqttc::Outgoing::Publish(_)))
                        | (QoS::AtLeastOnce, Event::Incoming(Packet::PubAck(_)))
                        | (QoS::ExactlyOnce, Event::Incoming(Packet::PubComp(_))) => Some(()),
                        _ => None,
                    });
                }

                /// The next message, its exchange completed.
                fn take(&mut self) -> Publish {
                    let message = self.wait_for("PUBLISH", |event| match event {
                        Event::Incoming(Packet::Publish(publish)) => Some(publish),
                        _ => None,
                    });
                    if message.qos == QoS::AtMostOnce {
                        return message;
                    }
                    self.wait_for("the exchange's end", |event| match (message.qos, event) {
                        (QoS::AtLeastOnce, Event::Outgoing(::rumqttc::Outgoing::PubAck(_)))
                        | (QoS::ExactlyOnce, Event::Outgoing(::rumqttc::Outgoing::PubComp(_))) => Some(()),
                        _ => None,
                    });
                    message
                }

                fn disconnect(mut self) {
                    self.client.disconnect().expect("a request");
                    self.wait_for("DISCONNECT", |event| {
                        matches!(event, Event::Outgoing(::rumqttc::Outgoing::Disconnect)).then_some(())
                    });
                }
            }

            const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

            #[test]
            fn round_trips_at_every_qos() {
                let broker = Broker::start();
                let (mut subscriber, _) = Rumqttc::connect(Rumqttc::options(&broker, "subscriber"));
                let (mut publisher, _) = Rumqttc::connect(Rumqttc::options(&broker, "publisher"));
                for qos in QOS {
                    subscriber.subscribe("rumqttc/#", qos);
                    for text in ["one", "two", "three"] {
                        publisher.publish("rumqttc/test", qos, false, text);
                        let message = subscriber.take();
                        assert_eq!(message.payload, text);
                        assert_eq!((message.qos, message.retain, message.dup), (qos, false, false));
                    }
                }
            }

            #[test]
            fn a_retained_message_waits_for_its_subscriber() {
                let broker = Broker::start();
                let (mut publisher, _) = Rumqttc::connect(Rumqttc::options(&broker, "publisher"));
                publisher.publish("rumqttc/kept", QoS::AtLeastOnce, true, "kept");
                let (mut subscriber, _) = Rumqttc::connect(Rumqttc::options(&broker, "subscriber"));
                // Not `subscribe`: what is retained may come before SUBACK [MQTT-3.8.4-3].
                subscriber.client.subscribe("rumqttc/kept", QoS::AtLeastOnce).expect("a request");
                let message = subscriber.take();
                assert_eq!(message.payload, "kept");
                assert!(message.retain);
            }

            #[test]
            fn a_session_resumes_with_what_was_queued() {
                let broker = Broker::start();
                let persistent = || {
                    let mut options = Rumqttc::options(&broker, "session");
                    $persist(&mut options);
                    Rumqttc::connect(options)
                };
                let (mut subscriber, connack) = persistent();
                assert!(!connack.session_present);
                subscriber.subscribe("rumqttc/queue", QoS::ExactlyOnce);
                subscriber.disconnect();
                let (mut publisher, _) = Rumqttc::connect(Rumqttc::options(&broker, "publisher"));
                for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
                    publisher.publish("rumqttc/queue", qos, false, "queued");
                }
                let (mut subscriber, connack) = persistent();
                assert!(connack.session_present);
                let mut came = [subscriber.take().qos, subscriber.take().qos];
                // Order is promised a QoS.
                came.sort_by_key(|&qos| qos as u8);
                assert_eq!(came, [QoS::AtLeastOnce, QoS::ExactlyOnce]);
            }
        }
    };
}

tests_of_version!([rumqttc], v4, |options: &mut MqttOptions| {
    options.set_clean_session(false);
});
tests_of_version!([rumqttc::v5], v5, |options: &mut MqttOptions| {
    options.set_clean_start(false).set_session_expiry_interval(Some(300));
});
