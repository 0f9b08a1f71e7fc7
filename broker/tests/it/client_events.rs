//! What happens to clients, told under `$SYS`.

use kentongan_proto::mqtt::*;
use serde_json::Value;

use crate::support::*;

const EVERYTHING: &str = r#"
node = "n+1"
[events]
sys = ["connected", "disconnected", "subscribed", "unsubscribed"]
[[listener]]
address = "127.0.0.1:0"
"#;

/// The next event, and the topic it came under.
fn next(watcher: &mut Client) -> (String, Value) {
    let publish = watcher.expect_publish();
    assert!(!publish.retain);
    (publish.topic, serde_json::from_slice(&publish.payload).expect("JSON"))
}

/// The next event and that it came under its topic, in short.
fn expect(watcher: &mut Client, client_id: &str, event: &str, key: &str) -> Value {
    let (topic, json) = next(watcher);
    assert_eq!(topic, format!("$SYS/brokers/n%2B1/clients/{client_id}/{event}"));
    assert_eq!(json["event"], format!("client.{event}"));
    assert_eq!((&json["node"], &json["ipaddress"]), (&Value::from("n+1"), &Value::from("127.0.0.1")));
    json[key].clone()
}

#[test]
fn whoever_may_read_sys_hears_of_clients_of_both_kinds_of_session() {
    let broker = Broker::with_settings(EVERYTHING);
    let mut watcher = Client::v5(&broker, "watcher");
    watcher.subscribe("$SYS/brokers/+/clients/a%2Fb/+", QoS::AtMostOnce);
    for expiry in [None, Some(60)] {
        let mut asked = connect(ProtocolVersion::V5, "a/b");
        asked.properties.session_expiry_interval = expiry;
        let mut client = Client::accepted(&broker, asked);
        assert_eq!(expect(&mut watcher, "a%2Fb", "connected", "expiry_interval"), expiry.unwrap_or(0));
        client.subscribe("t/#", QoS::AtLeastOnce);
        assert_eq!(expect(&mut watcher, "a%2Fb", "subscribed", "topic"), "t/#");
        client.unsubscribe("t/#");
        assert_eq!(expect(&mut watcher, "a%2Fb", "unsubscribed", "topic"), "t/#");
        client.unsubscribe("t/#");
        client.disconnect();
        assert_eq!(expect(&mut watcher, "a%2Fb", "disconnected", "reason"), "client_disconnect");
    }
}

/// Each by the arbiter of its connection, so in either order.
#[test]
fn a_takeover_ends_one_connection_and_begins_another() {
    let broker = Broker::with_settings(EVERYTHING);
    let mut watcher = Client::v311(&broker, "watcher");
    watcher.subscribe("$SYS/brokers/+/clients/twice/#", QoS::AtMostOnce);
    let _first = Client::v5(&broker, "twice");
    assert_eq!(expect(&mut watcher, "twice", "connected", "clean_start"), true);
    let _second = Client::v5(&broker, "twice");
    let mut told = [next(&mut watcher), next(&mut watcher)];
    told.sort_by(|one, other| one.0.cmp(&other.0));
    let events = told.each_ref().map(|(topic, json)| (topic.rsplit('/').next().expect("a level"), &json["reason"]));
    assert_eq!(events, [("connected", &Value::Null), ("disconnected", &Value::from("taken_over"))]);
}

#[test]
fn nothing_is_told_unless_somebody_says_so() {
    let broker = Broker::start();
    let mut watcher = Client::v5(&broker, "watcher");
    watcher.subscribe("$SYS/brokers/#", QoS::AtMostOnce);
    Client::v5(&broker, "lamp").disconnect();
    watcher.expect_nothing();
}

/// One SUBSCRIBE may have more filters than events may wait; what is left out is counted.
#[test]
fn more_at_once_than_is_told_is_counted() {
    let broker = Broker::with_settings(&format!("{EVERYTHING}[session]\nfilters_per_subscribe_max = 9000\n"));
    let mut watcher = Client::v5(&broker, "watcher");
    watcher.subscribe("$SYS/brokers/+/clients/many/+", QoS::AtMostOnce);
    let mut client = Client::v5(&broker, "many");
    expect(&mut watcher, "many", "connected", "topic");
    let filters = (0..9000).map(|number| (format!("t/{number}"), SubscriptionOptions::new(QoS::AtMostOnce))).collect();
    client.send(&Packet::Subscribe(Subscribe {
        packet_id: id(1),
        filters,
        subscription_identifier: None,
        user_properties: Vec::new(),
    }));
    let Packet::SubAck(_) = client.receive() else { panic!("SUBACK") };
    assert_eq!(expect(&mut watcher, "many", "subscribed", "topic"), "t/0");
    broker.wait_for_metric("kentongan_client_events_dropped_total{reason=\"sys_busy\"}", |dropped| {
        dropped == 9000.0 - 4096.0
    });
}
