//! Who may what: every path that a message or a filter can take, before and after the right to it is revoked.

use kentongan_proto::mqtt::*;

use crate::support::*;
use crate::users::{Files, of_user, quick};

const BEFORE: &str = "user boss\ntopic #\nuser ana\ntopic a/#\ntopic read b\n";

/// Ana lost whatever begins with `a`.
const AFTER: &str = "user boss\ntopic #\nuser ana\ntopic read b\n";

fn files(more: &str) -> Files {
    let files = Files::new(&format!(
        "allow_anonymous = false\nauth.password_file = \"@/passwords\"\nauth.acl_file = \"@/acl\"\n{more}"
    ));
    files.write("passwords", &(quick("ana", "x") + &quick("boss", "x")));
    files.write("acl", BEFORE);
    files
}

fn reload(broker: &Broker) -> String {
    broker.hang_up();
    broker.wait_for_log("reload: ")
}

/// The rules change. They count on every thread once a connection that asks last sees them.
fn revoke(files: &Files, broker: &Broker) {
    files.write("acl", AFTER);
    assert!(reload(broker).contains("read again"));
}

fn user(name: &str, client_id: &str, is_persistent: bool) -> Connect {
    let mut asked = of_user(ProtocolVersion::V5, client_id, name, "x");
    asked.clean_start = !is_persistent;
    asked.properties.session_expiry_interval = is_persistent.then_some(100);
    asked
}

fn will(topic: &str, retain: bool) -> Option<Will> {
    let properties = WillProperties::default();
    Some(Will { topic: topic.to_owned(), payload: "gone".into(), qos: QoS::AtLeastOnce, retain, properties })
}

fn published(client: &mut Client, topic: &str, delivery: Delivery) -> ReasonCode {
    client.publish(topic, "x", delivery);
    match client.receive() {
        Packet::PubAck(ack) | Packet::PubRec(ack) => ack.reason_code,
        other => panic!("PUBACK or PUBREC expected, got {other:?}"),
    }
}

/// The same of a client that gets messages meanwhile.
fn published_among_others(client: &mut Client, topic: &str) -> ReasonCode {
    client.publish(topic, "x", qos1(3));
    loop {
        match client.receive() {
            Packet::PubAck(ack) => return ack.reason_code,
            Packet::Publish(message) => {
                let id = message.delivery.packet_id();
                id.into_iter().for_each(|id| client.send(&Packet::PubAck(Ack::success(id))));
            }
            other => panic!("PUBACK expected, got {other:?}"),
        }
    }
}

/// What a client gets until a message of `b`, which it may read in any case.
fn topics_until_b(client: &mut Client, boss: &mut Client) -> Vec<String> {
    boss.publish_acknowledged("b", "sentinel", qos1(60_000));
    let mut topics = Vec::new();
    loop {
        let topic = client.take_publish().topic;
        if topic == "b" {
            return topics;
        }
        topics.push(topic);
    }
}

/// Abuse: [authorize]
#[test]
fn publishing_is_refused_from_the_moment_it_is_revoked() {
    let files = files("");
    let broker = files.start();
    for is_persistent in [false, true] {
        files.write("acl", BEFORE);
        reload(&broker);
        let mut ana = Client::accepted(&broker, user("ana", "ana", is_persistent));
        let mut boss = Client::accepted(&broker, user("boss", "boss", false));
        boss.subscribe("#", QoS::AtMostOnce);
        // Each with a Packet Identifier of its own: one of QoS 2 that stands is answered, whatever comes with it.
        for delivery in [qos1, qos2] {
            assert!(!published(&mut ana, "a/x", delivery(11)).is_error());
            assert_eq!(published(&mut ana, "b", delivery(12)), ReasonCode::NotAuthorized);
            assert_eq!(published(&mut ana, "$delayed/0/b", delivery(13)), ReasonCode::NotAuthorized);
            assert_eq!(boss.expect_publish().topic, "a/x");
        }
        revoke(&files, &broker);
        let mut taken = 0;
        wait_for("the new rules", || {
            let code = published(&mut ana, "a/x", qos1(3));
            taken += u32::from(!code.is_error());
            code == ReasonCode::NotAuthorized
        });
        (0..taken).for_each(|_| assert_eq!(boss.expect_publish().topic, "a/x"));
        assert_eq!(published(&mut ana, "a/x", qos2(4)), ReasonCode::NotAuthorized);
        ana.publish("a/x", "x", QOS0);
        ana.expect_nothing();
        boss.expect_nothing();
        ana.disconnect();
        boss.disconnect();
    }
}

/// Abuse: [authorize]
#[test]
fn a_filter_must_be_covered_also_within_a_shared_subscription() {
    let files = files("");
    files.write("acl", &format!("{BEFORE}topic deny a/secret\n"));
    let broker = files.start();
    for is_persistent in [false, true] {
        let mut ana = Client::accepted(&broker, user("ana", "ana", is_persistent));
        for (filter, is_granted) in [
            ("a/x", true),
            ("a/+/x", true),
            ("$share/g/a/x", true),
            ("b", true),
            ("a/#", false),
            ("a/+", false),
            ("a/secret", false),
            ("$share/g/a/#", false),
            ("$share/g/c", false),
            ("#", false),
            ("+/x", false),
            ("b/#", false),
            ("$SYS/#", false),
        ] {
            let reason = ana.subscribe(filter, QoS::AtLeastOnce);
            let expected = if is_granted { ReasonCode::GrantedQos1 } else { ReasonCode::NotAuthorized };
            assert_eq!(reason, expected, "{filter}");
        }
        ana.disconnect();
    }
}

/// A subscription that a session may not have any more is taken from it, be it there or be it away, and is not there when
/// the right comes back.
/// Abuse: [authorize]
#[test]
fn a_subscription_is_revoked_on_a_living_connection_and_on_resume() {
    let files = files("");
    let broker = files.start();
    for (is_persistent, is_away) in [(false, false), (true, false), (true, true)] {
        files.write("acl", BEFORE);
        reload(&broker);
        let mut boss = Client::accepted(&broker, user("boss", "boss", false));
        let client_id = format!("ana-{is_persistent}-{is_away}");
        let mut ana = Client::accepted(&broker, user("ana", &client_id, is_persistent));
        for filter in ["a/#", "a/x", "$share/g/a/y", "b"] {
            assert_eq!(ana.subscribe(filter, QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        }
        boss.publish_acknowledged("a/x", "x", qos1(1));
        assert_eq!(ana.take_publish().topic, "a/x");
        let before = broker.metric("kentongan_subscriptions_revoked_total");
        if is_away {
            ana.disconnect();
            boss.publish_acknowledged("a/x", "waits", qos1(2));
            revoke(&files, &broker);
            boss.publish_acknowledged("a/y", "waits", qos1(3));
            let (resumed, connack) = Client::open(&broker, user("ana", &client_id, true));
            assert!(connack.session_present);
            ana = resumed;
        } else {
            revoke(&files, &broker);
        }
        broker.wait_for_metric("kentongan_subscriptions_revoked_total", |value| value == before + 3.0);
        for (topic, delivery) in [("a/x", qos1(4)), ("a/y", qos1(5)), ("a/x", QOS0)] {
            boss.publish_acknowledged(topic, "x", delivery);
        }
        assert_eq!(topics_until_b(&mut ana, &mut boss), [] as [String; 0]);
        let filters = ["a/#", "a/x", "$share/g/a/y"].map(|filter| ana.unsubscribe(filter));
        assert_eq!(filters, [const { [ReasonCode::NoSubscriptionExisted] }; 3].map(Vec::from));
        assert_eq!(ana.unsubscribe("b"), [ReasonCode::Success]);
        ana.disconnect();
    }
}

/// With mosquitto's way of it, subscriptions stay, and each message is looked at: live ones, retained ones, and those that
/// waited.
/// Abuse: [authorize]
#[test]
fn deliveries_are_filtered_under_the_rules_of_their_moment() {
    let files = files("auth.acl_subscribe = \"filter\"");
    let broker = files.start();
    let mut boss = Client::accepted(&broker, user("boss", "boss", false));
    for topic in ["a/kept", "b", "c/kept"] {
        let mut message = publish(topic, "kept", qos1(9));
        message.retain = topic != "b";
        boss.send(&Packet::Publish(message));
        boss.complete(qos1(9));
    }
    for is_persistent in [false, true] {
        files.write("acl", BEFORE);
        reload(&broker);
        let client_id = format!("ana-{is_persistent}");
        let mut ana = Client::accepted(&broker, user("ana", &client_id, is_persistent));
        assert_eq!(ana.subscribe("#", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        assert_eq!(ana.take_publish().topic, "a/kept", "of what is retained");
        for topic in ["a/x", "c/x"] {
            boss.publish_acknowledged(topic, "x", qos1(1));
            boss.publish_acknowledged(topic, "x", QOS0);
        }
        let mut topics = topics_until_b(&mut ana, &mut boss);
        assert_eq!(topics, ["a/x", "a/x"]);
        if is_persistent {
            ana.disconnect();
            boss.publish_acknowledged("a/waits", "x", qos1(2));
            revoke(&files, &broker);
            let (resumed, connack) = Client::open(&broker, user("ana", &client_id, true));
            assert!(connack.session_present);
            ana = resumed;
        } else {
            revoke(&files, &broker);
            wait_for("the new rules", || published_among_others(&mut ana, "a/x") == ReasonCode::NotAuthorized);
        }
        boss.publish_acknowledged("a/x", "x", qos1(4));
        topics = topics_until_b(&mut ana, &mut boss);
        assert_eq!(topics, [] as [String; 0]);
        assert_eq!(ana.subscribe("a/#", QoS::AtLeastOnce), ReasonCode::GrantedQos1, "granted all the same");
        assert_eq!(topics_until_b(&mut ana, &mut boss), [] as [String; 0], "nothing retained comes of it");
        ana.disconnect();
    }
    broker.wait_for_metric("kentongan_messages_dropped_total{reason=\"not_authorized\"}", |value| value > 0.0);
}

/// A message for a shared subscription is lost with the member that it goes to, if that may not read it: nobody else gets it, and
/// nobody waits for it.
/// Abuse: [authorize]
#[test]
fn what_a_member_of_a_shared_subscription_may_not_read_is_settled() {
    let files = files("auth.acl_subscribe = \"filter\"");
    let broker = files.start();
    let mut boss = Client::accepted(&broker, user("boss", "boss", false));
    for is_persistent in [false, true] {
        let mut ana = Client::accepted(&broker, user("ana", &format!("ana-{is_persistent}"), is_persistent));
        assert_eq!(ana.subscribe("$share/g/#", QoS::ExactlyOnce), ReasonCode::GrantedQos2);
        let dropped = "kentongan_messages_dropped_total{reason=\"not_authorized\"}";
        let before = broker.metric(dropped);
        for (number, delivery) in [QOS0, qos1(1), qos2(2), QOS0, qos1(3), qos2(4)].into_iter().enumerate() {
            boss.publish_acknowledged(if number < 3 { "c/x" } else { "a/x" }, "x", delivery);
        }
        // In whatever order: what is for any member has none between levels of QoS.
        assert_eq!([(); 3].map(|()| ana.take_publish().topic), ["a/x"; 3]);
        ana.expect_nothing();
        broker.wait_for_metric(dropped, |value| value == before + 3.0);
        assert_eq!(ana.unsubscribe("$share/g/#"), [ReasonCode::Success]);
        ana.disconnect();
    }
}

/// A right to receive at some QoS only is held against each delivery, also where the filter was granted.
/// Abuse: [authorize]
#[test]
fn a_rule_about_qos_is_about_what_is_delivered() {
    let files = files("auth.rules_file = \"@/rules\"");
    files.write("rules", "[[rule]]\neffect = \"deny\"\nusers = [\"ana\"]\ntopics = [\"a/x\"]\nqos = [0]\n");
    let broker = files.start();
    let mut boss = Client::accepted(&broker, user("boss", "boss", false));
    for is_persistent in [false, true] {
        let mut ana = Client::accepted(&broker, user("ana", &format!("ana-{is_persistent}"), is_persistent));
        assert_eq!(ana.subscribe("a/x", QoS::AtMostOnce), ReasonCode::NotAuthorized);
        for filter in ["a/x", "b"] {
            assert_eq!(ana.subscribe(filter, QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        }
        boss.publish_acknowledged("a/x", "x", QOS0);
        boss.publish_acknowledged("a/x", "x", qos1(1));
        assert_eq!(topics_until_b(&mut ana, &mut boss), ["a/x"], "one, that of QoS 1");
        ana.disconnect();
    }
}

/// Abuse: [authorize]
#[test]
fn a_rule_about_addresses_is_about_where_a_client_comes_from() {
    let files = files("auth.rules_file = \"@/rules\"");
    let deny = |network: &str, topic: &str| {
        format!("[[rule]]\neffect = \"deny\"\naddresses = [\"{network}\"]\ntopics = [\"{topic}\"]\n")
    };
    files.write("rules", &(deny("127.0.0.0/8", "a/here") + &deny("10.0.0.0/8", "a/elsewhere")));
    let broker = files.start();
    let mut ana = Client::accepted(&broker, user("ana", "ana", false));
    assert_eq!(published(&mut ana, "a/here", qos1(1)), ReasonCode::NotAuthorized);
    assert!(!published(&mut ana, "a/elsewhere", qos1(2)).is_error());
}

/// Messages that wait for a slow client are judged when they are sent.
/// Abuse: [authorize]
#[test]
fn what_waits_in_a_queue_is_judged_when_it_is_sent() {
    let files = files("");
    let broker = files.start();
    for is_persistent in [false, true] {
        files.write("acl", BEFORE);
        reload(&broker);
        let mut boss = Client::accepted(&broker, user("boss", "boss", false));
        let mut asked = user("ana", &format!("ana-{is_persistent}"), is_persistent);
        asked.properties.receive_maximum = std::num::NonZeroU16::new(1);
        let mut ana = Client::accepted(&broker, asked);
        for filter in ["a/#", "b"] {
            ana.subscribe(filter, QoS::AtLeastOnce);
        }
        for number in 1..=5 {
            boss.publish_acknowledged("a/x", "x", qos1(number));
        }
        let first = ana.expect_publish();
        revoke(&files, &broker);
        broker.wait_for_metric("kentongan_subscriptions_revoked_total", |value| {
            value == if is_persistent { 2.0 } else { 1.0 }
        });
        ana.send(&Packet::PubAck(Ack::success(first.delivery.packet_id().expect("QoS 1"))));
        assert_eq!(topics_until_b(&mut ana, &mut boss), [] as [String; 0]);
        ana.disconnect();
    }
}

/// Abuse: [authorize]
#[test]
fn a_will_is_judged_at_connect_and_when_it_is_due() {
    let files = files("");
    let broker = files.start();
    let mut boss = Client::accepted(&broker, user("boss", "boss", false));
    boss.subscribe("#", QoS::AtLeastOnce);
    for is_persistent in [false, true] {
        files.write("acl", BEFORE);
        reload(&broker);
        let asked = |client_id: &str, topic: &str, retain| Connect {
            will: will(topic, retain),
            ..user("ana", client_id, is_persistent)
        };
        let (mut refused, connack) = Client::open(&broker, asked("w", "b", false));
        assert_eq!(connack.reason_code, ReasonCode::NotAuthorized);
        refused.expect_closed();
        drop(Client::accepted(&broker, asked("w", "a/will", false)));
        assert_eq!(boss.take_publish().topic, "a/will");
        for topic in ["a/will", "$delayed/0/a/will"] {
            let mut ana = Client::accepted(&broker, asked("w", topic, true));
            let refusals = "kentongan_publishes_refused_total{reason=\"not_authorized\"}";
            let before = broker.metric(refusals);
            revoke(&files, &broker);
            wait_for("her thread to know the new rules", || {
                ana.subscribe("a/x", QoS::AtMostOnce) == ReasonCode::NotAuthorized
            });
            drop(ana);
            broker.wait_for_metric(refusals, |value| value == before + 1.0);
            boss.expect_nothing();
            files.write("acl", BEFORE);
            reload(&broker);
        }
    }
}

/// Abuse: [anonymous]
#[test]
fn rules_that_cannot_be_used_change_nothing() {
    let files = files("auth.rules_file = \"@/rules\"");
    let deny = "[[rule]]\neffect = \"deny\"\nusers = [\"ana\"]\ntopics = [\"a/denied\"]\n";
    files.write("rules", deny);
    let broker = files.start();
    let mut ana = Client::accepted(&broker, user("ana", "ana", false));
    for (file, text, expected) in [
        ("acl", "topic wrong a/#\n", "line 1"),
        ("acl", "", "nobody could do anything"),
        ("rules", "[[rule]]\neffect = \"perhaps\"\n", "line 2"),
    ] {
        files.write(file, text);
        let line = reload(&broker);
        assert!(line.contains("stays as it was") && line.contains(expected), "{line}");
        assert_eq!(published(&mut ana, "a/denied", qos1(1)), ReasonCode::NotAuthorized, "rules come before the ACL");
        assert!(!published(&mut ana, "a/x", qos1(1)).is_error());
        files.write("acl", BEFORE);
        files.write("rules", deny);
    }
}

/// Whoever may not read a message does not use it up for those who may, whichever thread they are on.
///
/// Abuse: [authorize]
#[test]
fn a_message_for_a_shared_subscription_goes_to_a_member_that_may_read_it() {
    let files = files("arbiters = 2\nauth.acl_subscribe = \"filter\"\nshared.strategy = \"hash-topic\"");
    let broker = files.start();
    let dropped = || broker.metric("kentongan_messages_dropped_total{reason=\"not_authorized\"}");
    let mut boss = Client::accepted(&broker, user("boss", "boss", false));
    let mut members: Vec<_> =
        (0..5).map(|number| Client::accepted(&broker, user("ana", &format!("ana-{number}"), false))).collect();
    for member in &mut members {
        assert_eq!(member.subscribe("$share/g/+/x", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    }
    boss.publish_acknowledged("c/x", "nobody may", qos1(1));
    boss.publish_acknowledged("c/x", "nobody may", QOS0);
    wait_for("what nobody may read, once each", || dropped() == 2.0);
    let mut reader = Client::accepted(&broker, user("boss", "reader", false));
    assert_eq!(reader.subscribe("$share/g/+/x", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    for number in 1..=20 {
        let topic = if number % 2 == 0 { "c/x" } else { "d/x" };
        boss.publish_acknowledged(topic, &number.to_string(), if number % 4 < 2 { QOS0 } else { qos1(number) });
    }
    let mut got: Vec<u16> =
        (0..20).map(|_| String::from_utf8_lossy(&reader.take_publish().payload).parse().expect("a number")).collect();
    got.sort_unstable();
    assert_eq!(got, (1..=20).collect::<Vec<_>>());
    members.iter_mut().for_each(Client::expect_nothing);
    assert_eq!(dropped(), 2.0);
}

/// What waited and may not be read any more is settled when that is found: it takes no room from what comes.
///
/// Abuse: [authorize]
#[test]
fn what_waited_and_may_not_be_read_any_more_takes_no_room() {
    let files = files("session.queue_messages_max = 5");
    let broker = files.start();
    let dropped = |reason: &str| broker.metric(&format!("kentongan_messages_dropped_total{{reason=\"{reason}\"}}"));
    let mut boss = Client::accepted(&broker, user("boss", "boss", false));
    let mut asked = user("ana", "ana", true);
    asked.properties.receive_maximum = std::num::NonZeroU16::new(1);
    let mut ana = Client::accepted(&broker, asked.clone());
    ana.subscribe("a/#", QoS::AtLeastOnce);
    ana.subscribe("b", QoS::AtLeastOnce);
    ana.disconnect();
    (1..=5).for_each(|number| boss.publish_acknowledged("a/x", "m", qos1(number)));
    revoke(&files, &broker);
    let mut ana = Client::accepted(&broker, asked.clone());
    wait_for("what waited to be found unreadable", || dropped("not_authorized") == 5.0);
    ana.expect_nothing();
    ana.disconnect();
    (1..=5).for_each(|number| boss.publish_acknowledged("b", "m", qos1(number)));
    let mut ana = Client::accepted(&broker, asked);
    for _ in 0..5 {
        assert_eq!(ana.take_publish().topic, "b");
    }
    assert_eq!(dropped("queue_messages"), 0.0);
}

/// A subscription is granted for its own QoS; what comes by it at another one is judged as it comes.
///
/// Abuse: [authorize]
#[test]
fn what_a_rule_denies_at_one_qos_does_not_come_by_a_subscription_at_another() {
    let files = Files::new("auth.rules_file = \"@/rules.toml\"");
    let rule = |head: &str| format!("[[rule]]\n{head}\n");
    let denied = rule("effect = \"deny\"\nactions = [\"subscribe\"]\ntopics = [\"a\"]\nqos = [0]");
    let allowed = rule("effect = \"allow\"\nactions = [\"subscribe\", \"publish\"]");
    files.write("rules.toml", &(denied + &allowed));
    let broker = files.start();
    let mut ana = Client::v5(&broker, "ana");
    let mut boss = Client::v5(&broker, "boss");
    assert!(ana.subscribe("a", QoS::AtMostOnce).is_error());
    assert_eq!(ana.subscribe("a", QoS::ExactlyOnce), ReasonCode::GrantedQos2);
    assert_eq!(ana.subscribe("b", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
    boss.publish("a", "x", QOS0);
    boss.publish_acknowledged("a", "x", qos1(1));
    assert_eq!(topics_until_b(&mut ana, &mut boss), ["a"], "that of QoS 1");
}
