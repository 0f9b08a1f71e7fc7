//! Mount points: topics of a listener's clients stand below a prefix that they do not see.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use kentongan_proto::mqtt::*;

use crate::support::*;
use crate::users::{Files, of_user, quick};

/// A listener without a mount point, and others with one each.
struct Tenants {
    broker: Broker,
    mounted: Vec<SocketAddr>,
}

impl Tenants {
    fn start(mount_points: &[&str]) -> Self {
        Self::with_settings("", mount_points)
    }

    fn with_settings(settings: &str, mount_points: &[&str]) -> Self {
        let mut text = format!("{settings}\n[[listener]]\naddress = \"127.0.0.1:0\"\n");
        for mount_point in mount_points {
            text += &format!("[[listener]]\naddress = \"127.0.0.1:0\"\nmount_point = \"{mount_point}\"\n");
        }
        Self::of(Broker::with_settings(&text), mount_points.len())
    }

    fn of(broker: Broker, mounted: usize) -> Self {
        let mounted = (0..mounted).map(|_| broker.next_listener()).collect();
        Self { broker, mounted }
    }

    fn open(&self, mount: usize, connect: Connect) -> (Client, ConnAck) {
        let mut client = Client::at(self.mounted[mount], connect.version);
        client.send(&Packet::Connect(Box::new(connect)));
        let connack = client.expect_connack();
        (client, connack)
    }

    fn accepted(&self, mount: usize, connect: Connect) -> Client {
        let (client, connack) = self.open(mount, connect);
        assert_eq!(connack.reason_code, ReasonCode::Success);
        client
    }

    fn client(&self, mount: usize, client_id: &str) -> Client {
        self.accepted(mount, connect(ProtocolVersion::V5, client_id))
    }

    fn dropped(&self) -> f64 {
        self.broker.metric("kentongan_messages_dropped_total{reason=\"outside_mount\"}")
    }
}

fn persistent(version: ProtocolVersion, client_id: &str) -> Connect {
    let mut asked = connect(version, client_id);
    asked.clean_start = false;
    asked.properties.session_expiry_interval = version.is_v5().then_some(100);
    asked
}

const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::V3_1_1, ProtocolVersion::V5];
const TWO: [&str; 2] = ["tenant-a/", "tenant-b/"];

#[test]
fn a_mounted_client_publishes_and_gets_what_is_below_its_mount() {
    let tenants = Tenants::start(&TWO);
    let mut whole = Client::v5(&tenants.broker, "whole");
    whole.subscribe("#", QoS::ExactlyOnce);
    for version in VERSIONS {
        for asked in [connect(version, "one"), persistent(version, "two")] {
            let mut own = tenants.accepted(0, asked);
            let mut other = tenants.client(1, "other");
            own.subscribe("#", QoS::ExactlyOnce);
            other.subscribe("#", QoS::ExactlyOnce);
            for (topic, delivery) in [("x", QOS0), ("x/y", qos1(1)), ("/z", qos2(2)), ("$delayed/0/d", qos1(3))] {
                own.publish_acknowledged_among_others(topic, "m", delivery);
                let topic = topic.trim_start_matches("$delayed/0/");
                assert_eq!(own.take_publish().topic, topic);
                assert_eq!(whole.take_publish().topic, format!("tenant-a/{topic}"));
            }
            whole.publish("tenant-a/from/outside", "m", QOS0);
            assert_eq!(own.take_publish().topic, "from/outside");
            assert_eq!(whole.take_publish().topic, "tenant-a/from/outside");
            other.expect_nothing();
            assert_eq!(own.unsubscribe_code("#", version), ReasonCode::Success);
            whole.publish("tenant-a/y", "m", QOS0);
            whole.take_publish();
            own.expect_nothing();
            own.disconnect();
            other.disconnect();
        }
    }
    assert_eq!(tenants.dropped(), 0.0);
}

#[test]
fn aliases_response_topics_and_retained_messages_are_mounted() {
    let tenants = Tenants::start(&TWO);
    let mut whole = Client::v5(&tenants.broker, "whole");
    whole.subscribe("tenant-a/#", QoS::AtMostOnce);
    let mut own = tenants.client(0, "own");
    let mut asking = publish("ask", "1", QOS0);
    asking.retain = true;
    asking.properties.topic_alias = Some(1);
    asking.properties.response_topic = Some(String::from("answer"));
    own.send(&Packet::Publish(asking.clone()));
    asking.topic.clear();
    // Only what is acknowledged is retained for certain: at QoS 0 it may reach others before.
    asking.delivery = qos1(1);
    own.send(&Packet::Publish(asking));
    assert!(matches!(own.receive(), Packet::PubAck(ack) if ack.packet_id == PacketId::new(1).unwrap()));
    for _ in 0..2 {
        let seen = whole.expect_publish();
        assert_eq!(
            (seen.topic.as_str(), seen.properties.response_topic.as_deref()),
            ("tenant-a/ask", Some("tenant-a/answer"))
        );
    }
    // With aliases towards the client, too.
    let mut asked = connect(ProtocolVersion::V5, "late");
    asked.properties.topic_alias_maximum = Some(5);
    let mut late = tenants.accepted(0, asked);
    late.subscribe("+", QoS::AtMostOnce);
    let retained = late.expect_publish();
    assert!(retained.retain);
    assert_eq!((retained.topic.as_str(), retained.properties.response_topic.as_deref()), ("ask", Some("answer")));
    let mut elsewhere = publish("tenant-a/ask", "2", QOS0);
    elsewhere.properties.response_topic = Some(String::from("tenant-b/answer"));
    whole.send(&Packet::Publish(elsewhere));
    let seen = late.expect_publish();
    assert_eq!(seen.properties.response_topic, None, "it would be taken for another topic");
    assert!(seen.topic.is_empty() || seen.topic == "ask");
    let mut other = tenants.client(1, "other");
    other.subscribe("#", QoS::AtMostOnce);
    other.expect_nothing();
}

#[test]
fn a_will_is_mounted_and_so_is_what_waits_for_a_session() {
    let tenants = Tenants::start(&TWO);
    for version in VERSIONS {
        let mut away = tenants.accepted(0, persistent(version, "away"));
        away.subscribe("will/+", QoS::AtLeastOnce);
        away.disconnect();
        for asked in [connect(version, "w1"), persistent(version, "w2")] {
            let mut asked = asked;
            let topic = format!("will/{}", asked.client_id);
            let properties = WillProperties::default();
            asked.will = Some(Will { topic, payload: "gone".into(), qos: QoS::AtLeastOnce, retain: false, properties });
            let mut whole = Client::v5(&tenants.broker, "whole");
            whole.subscribe("tenant-a/#", QoS::AtMostOnce);
            let topic = format!("tenant-a/will/{}", asked.client_id);
            drop(tenants.accepted(0, asked));
            assert_eq!(whole.expect_publish().topic, topic);
        }
        let mut back = tenants.accepted(0, persistent(version, "away"));
        let mut topics = [back.take_publish().topic, back.take_publish().topic];
        topics.sort();
        assert_eq!(topics, ["will/w1", "will/w2"]);
        back.disconnect();
        tenants.accepted(0, connect(version, "away")).disconnect();
    }
}

/// What is published to `tenant-a/$…` from outside reaches no mounted client either [MQTT-4.7.2-1].
#[test]
fn topics_of_the_broker_are_out_of_reach_of_mounted_clients() {
    let tenants = Tenants::start(&TWO);
    let mut own = tenants.client(0, "own");
    for filter in ["$SYS/#", "$SYS/broker/uptime", "$share/g/$SYS/#", "$x"] {
        assert_eq!(own.subscribe(filter, QoS::AtMostOnce), ReasonCode::NotAuthorized, "{filter}");
    }
    for topic in ["$SYS/broker/uptime", "$x", "$delayed/0/$SYS/x"] {
        own.publish(topic, "m", qos1(1));
        match own.receive() {
            Packet::PubAck(ack) => assert_eq!(ack.reason_code, ReasonCode::NotAuthorized, "{topic}"),
            other => panic!("PUBACK expected, got {other:?}"),
        }
    }
    let mut asked = connect(ProtocolVersion::V5, "will");
    let properties = WillProperties::default();
    let topic = String::from("$x");
    asked.will = Some(Will { topic, payload: "".into(), qos: QoS::AtMostOnce, retain: false, properties });
    assert_eq!(tenants.open(0, asked).1.reason_code, ReasonCode::NotAuthorized);
    own.subscribe("#", QoS::AtMostOnce);
    let mut whole = Client::v5(&tenants.broker, "whole");
    for topic in ["tenant-a/$x", "tenant-a", "tenant-a/"] {
        whole.publish_acknowledged(topic, "m", qos1(1));
    }
    own.expect_nothing();
    tenants.broker.wait_for_metric("kentongan_messages_dropped_total{reason=\"outside_mount\"}", |count| count == 3.0);
}

/// [MQTT-4.7.3-3]
#[test]
fn what_is_too_long_with_its_mount_is_refused() {
    let tenants = Tenants::with_settings("session.packet_bytes_before_connect_max = 131072", &TWO);
    let long = "x".repeat(65_535 - "tenant-a/".len());
    let longer = format!("{long}x");
    let mut own = tenants.client(0, "own");
    assert_eq!(own.subscribe(&long, QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    assert_eq!(own.subscribe(&longer, QoS::AtLeastOnce), ReasonCode::TopicFilterInvalid);
    own.publish(&longer, "m", qos1(1));
    own.publish(&longer, "m", qos2(2));
    own.publish(&longer, "m", QOS0);
    for _ in 0..2 {
        match own.receive() {
            Packet::PubAck(ack) | Packet::PubRec(ack) => assert_eq!(ack.reason_code, ReasonCode::TopicNameInvalid),
            other => panic!("PUBACK or PUBREC expected, got {other:?}"),
        }
    }
    own.publish(&long, "m", QOS0);
    assert_eq!(own.expect_publish().topic.len(), long.len());
    let mut asked = connect(ProtocolVersion::V5, "will");
    let properties = WillProperties::default();
    asked.will = Some(Will { topic: longer, payload: "".into(), qos: QoS::AtMostOnce, retain: false, properties });
    assert_eq!(tenants.open(0, asked).1.reason_code, ReasonCode::TopicNameInvalid);
}

/// A group is told by its name and its whole filter.
#[test]
fn members_of_a_shared_subscription_may_be_below_a_mount_or_not() {
    let tenants = Tenants::start(&TWO);
    let mut own = tenants.client(0, "own");
    let mut whole = Client::v5(&tenants.broker, "whole");
    let mut other = tenants.client(1, "other");
    assert_eq!(own.subscribe("$share/g/x", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    assert_eq!(whole.subscribe("$share/g/tenant-a/x", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    assert_eq!(other.subscribe("$share/g/x", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    let mut publisher = tenants.client(0, "publisher");
    for number in 1..=10 {
        publisher.publish_acknowledged("x", "m", qos1(number));
    }
    let taken = |client: &mut Client, topic: &str| {
        let mut count = 0;
        while let Some(packet) = client.receive_within(Duration::from_millis(2)) {
            let Packet::Publish(message) = packet else { panic!("PUBLISH expected, got {packet:?}") };
            assert_eq!(message.topic, topic);
            let id = message.delivery.packet_id().expect("QoS 1");
            client.send(&Packet::PubAck(Ack::success(id)));
            count += 1;
        }
        count
    };
    let (mut below, mut above) = (0, 0);
    wait_for("all of them", || {
        below += taken(&mut own, "x");
        above += taken(&mut whole, "tenant-a/x");
        below + above >= 10
    });
    for client in [&mut own, &mut whole, &mut other] {
        client.expect_nothing();
    }
    assert_eq!(below + above, 10);
    assert!(below > 0 && above > 0, "{below} and {above}");
}

/// What the session has from before is not below the new mount: its subscriptions are taken from it, and what waited is not
/// sent.
#[test]
fn a_session_taken_up_below_another_mount_brings_nothing_along() {
    let tenants = Tenants::start(&TWO);
    for version in VERSIONS {
        let mut first = tenants.accepted(0, persistent(version, "mover"));
        first.subscribe("#", QoS::AtLeastOnce);
        first.subscribe("$share/g/s", QoS::AtLeastOnce);
        first.disconnect();
        let mut neighbour = tenants.client(0, "neighbour");
        let before = tenants.dropped();
        neighbour.publish_acknowledged("waited", "m", qos1(1));
        let (mut second, connack) = tenants.open(1, persistent(version, "mover"));
        assert!(connack.session_present);
        second.expect_nothing();
        tenants
            .broker
            .wait_for_metric("kentongan_messages_dropped_total{reason=\"outside_mount\"}", |now| now == before + 1.0);
        for topic in ["live", "s"] {
            neighbour.publish_acknowledged(topic, "m", qos1(2));
            neighbour.publish_acknowledged(topic, "m", QOS0);
        }
        second.expect_nothing();
        second.subscribe("#", QoS::AtLeastOnce);
        second.publish_acknowledged_among_others("own", "m", qos1(1));
        assert_eq!(second.take_publish().topic, "own");
        second.disconnect();
        tenants.accepted(0, connect(version, "mover")).disconnect();
        neighbour.disconnect();
    }
}

/// Abuse: [names-in-patterns]
#[test]
fn a_name_that_would_reach_out_of_its_mount_is_refused() {
    let files = Files::new("allow_anonymous = true\nauth.password_file = \"@/passwords\"");
    files.write("passwords", &(quick("ana", "x") + &quick("a/b", "x") + &quick("$SYS", "x")));
    let settings = std::fs::read_to_string(files.path("kentongan.toml")).expect("written above");
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\nmount_point = ";
    files.write("kentongan.toml", &format!("{settings}{listener}\"%u/\"\n{listener}\"t/%c/\"\n"));
    let tenants = Tenants::of(files.start(), 2);
    for version in VERSIONS {
        let reason = |mount, asked| tenants.open(mount, asked).1.reason_code;
        assert_eq!(reason(0, of_user(version, "c", "ana", "x")), ReasonCode::Success);
        for user in ["a/b", "$SYS"] {
            assert_eq!(reason(0, of_user(version, "c", user, "x")), ReasonCode::NotAuthorized, "{user}");
        }
        assert_eq!(reason(0, connect(version, "c")), ReasonCode::NotAuthorized, "nobody in particular");
        assert_eq!(reason(1, connect(version, "c")), ReasonCode::Success);
        for client_id in ["a/b", "+", "#", "a\n"] {
            let refused = reason(1, connect(version, client_id));
            assert_eq!(refused, ReasonCode::ClientIdentifierNotValid, "{client_id}");
        }
    }
    let mut ana = tenants.accepted(0, of_user(ProtocolVersion::V5, "c", "ana", "x"));
    ana.subscribe("#", QoS::AtMostOnce);
    let mut whole = Client::v5(&tenants.broker, "whole");
    whole.publish("budi/x", "m", QOS0);
    whole.publish("ana/x", "m", QOS0);
    assert_eq!(ana.expect_publish().topic, "x");
}

/// As with mosquitto: what stands in the file are whole topics.
#[test]
fn rights_are_judged_on_whole_topics() {
    for acl_subscribe in ["covered", "filter"] {
        let files = Files::new(&format!(
            "auth.acl_file = \"@/acl\"\nauth.acl_subscribe = \"{acl_subscribe}\"\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\nmount_point = \"tenant-a/\""
        ));
        files.write("acl", "topic readwrite tenant-a/x\ntopic readwrite y\n");
        // The mounted listener stands first in this file.
        let broker = files.start();
        let mut own = Client::v5(&broker, "own");
        let (granted, denied) = (ReasonCode::Success, ReasonCode::NotAuthorized);
        assert_eq!(own.subscribe("x", QoS::AtMostOnce), granted);
        assert_eq!(own.subscribe("y", QoS::AtMostOnce), if acl_subscribe == "filter" { granted } else { denied });
        for (topic, expected) in [("x", granted), ("y", denied)] {
            own.publish(topic, "m", qos1(1));
            loop {
                match own.receive() {
                    Packet::PubAck(ack) => break assert_eq!(ack.reason_code, expected, "{topic}"),
                    Packet::Publish(message) => assert_eq!(message.topic, "x"),
                    other => panic!("PUBACK expected, got {other:?}"),
                }
            }
        }
    }
}

#[test]
fn clients_that_are_not_ours_see_no_mount() {
    if Command::new("mosquitto_sub").arg("--help").output().is_err() {
        eprintln!("skipped: no mosquitto clients here");
        return;
    }
    let tenants = Tenants::start(&TWO);
    let port = |address: SocketAddr| address.port().to_string();
    let (own, whole) = (port(tenants.mounted[0]), port(tenants.broker.address));
    for version in ["mqttv311", "mqttv5"] {
        let subscribe = |port: &str, filter: &str| {
            let mut command = Command::new("mosquitto_sub");
            command.args(["-h", "127.0.0.1", "-p", port, "-V", version, "-t", filter, "-F", "%t %p", "-C", "1"]);
            command.stdout(Stdio::piped()).spawn().expect("mosquitto_sub starts")
        };
        let subscribers = [subscribe(&own, "plant/+"), subscribe(&whole, "tenant-a/#")];
        tenants.broker.wait_for_metric("kentongan_subscriptions", |count| count == 2.0);
        let published = Command::new("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &own, "-V", version, "-q", "1", "-t", "plant/1", "-m", "hot"])
            .status()
            .expect("mosquitto_pub runs");
        assert!(published.success());
        for (child, expected) in subscribers.into_iter().zip(["plant/1 hot\n", "tenant-a/plant/1 hot\n"]) {
            let output = child.wait_with_output().expect("our own child");
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{version}");
        }
        tenants.broker.wait_for_metric("kentongan_subscriptions", |count| count == 0.0);
    }
}
