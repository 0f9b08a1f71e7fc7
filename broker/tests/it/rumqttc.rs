//! A Rust client that others use, MQTT 3.1.1 and 5.

use std::time::{Duration, Instant};

use crate::support::{Broker, DEADLINE};

/// The same tests on rumqttc's two modules, whose types differ though their names do not.
macro_rules! tests_of_version {
    ([$($root:ident)::+], $version:ident, $persist:expr, [$($will_properties:expr)?]) => {
        mod $version {
            use ::$($root)::+::mqttbytes::QoS;
            use ::$($root)::+::mqttbytes::$version::{ConnAck, LastWill, Packet, Publish};
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

            #[test]
            fn a_will_is_published_unless_its_client_says_goodbye() {
                let broker = Broker::start();
                let (mut subscriber, _) = Rumqttc::connect(Rumqttc::options(&broker, "subscriber"));
                subscriber.subscribe("rumqttc/will/#", QoS::ExactlyOnce);
                let with_will = |client_id: &str, qos| {
                    let mut options = Rumqttc::options(&broker, client_id);
                    let topic = format!("rumqttc/will/{client_id}");
                    options.set_last_will(LastWill::new(topic, "gone", qos, true $(, $will_properties)?));
                    Rumqttc::connect(options).0
                };
                with_will("polite", QoS::AtLeastOnce).disconnect();
                for (client_id, qos) in [("one", QoS::AtLeastOnce), ("two", QoS::ExactlyOnce)] {
                    drop(with_will(client_id, qos));
                    let message = subscriber.take();
                    assert_eq!(message.topic, format!("rumqttc/will/{client_id}"), "and none of the polite one");
                    assert_eq!(message.payload, "gone");
                    assert_eq!((message.qos, message.retain), (qos, false), "to whom subscribed before");
                }
            }

            #[test]
            fn each_message_of_a_shared_subscription_reaches_one_member() {
                let broker = Broker::start();
                let mut members = ["one", "two"].map(|client_id| {
                    let (mut member, _) = Rumqttc::connect(Rumqttc::options(&broker, client_id));
                    member.subscribe("$share/group/rumqttc/shared", QoS::AtLeastOnce);
                    member
                });
                let (mut publisher, _) = Rumqttc::connect(Rumqttc::options(&broker, "publisher"));
                for number in 0..4 {
                    publisher.publish("rumqttc/shared", QoS::AtLeastOnce, false, &number.to_string());
                }
                // In turn, as the strategy is by default; a fifth message would break the order of what follows.
                let mut got: Vec<_> = members.iter_mut().flat_map(|member| [member.take(), member.take()]).collect();
                got.sort_by_key(|message| message.payload.clone());
                let payloads: Vec<_> = got.iter().map(|message| &message.payload[..]).collect();
                assert_eq!(payloads, [b"0", b"1", b"2", b"3"]);
                publisher.publish("rumqttc/shared", QoS::AtLeastOnce, false, "last");
                publisher.publish("rumqttc/shared", QoS::AtLeastOnce, false, "last");
                for member in &mut members {
                    assert_eq!(member.take().payload, "last");
                }
            }
        }
    };
}

tests_of_version!(
    [rumqttc],
    v4,
    |options: &mut MqttOptions| {
        options.set_clean_session(false);
    },
    []
);
tests_of_version!(
    [rumqttc::v5],
    v5,
    |options: &mut MqttOptions| {
        options.set_clean_start(false).set_session_expiry_interval(Some(300));
    },
    [None]
);
