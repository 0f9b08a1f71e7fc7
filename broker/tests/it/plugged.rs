//! What can be plugged into a broker: who may what, and who goes where.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kentongan::auth::{AccessControl, Authority, Redirection, Redirector};
use kentongan::listener::serve;
use kentongan_proto::mqtt::*;
use kentongan_proto::topic::TopicFilter;

use crate::support::*;

/// Everybody may do everything below `open`, and nothing elsewhere.
struct Open;

impl AccessControl for Open {
    fn may_publish(&self, _identity: &str, _client_id: &str, topic: &str) -> bool {
        topic.starts_with("open/")
    }

    fn may_subscribe(&self, _identity: &str, _client_id: &str, filter: &TopicFilter) -> bool {
        TopicFilter::parse("open/#").expect("a filter").contains(filter)
    }
}

/// What is plugged in panics when it is asked about a topic.
struct Broken;

impl AccessControl for Broken {
    fn may_publish(&self, _identity: &str, _client_id: &str, topic: &str) -> bool {
        assert_ne!(topic, "broken", "an invariant of the broker's does not hold");
        true
    }

    fn may_subscribe(&self, _identity: &str, _client_id: &str, _filter: &TopicFilter) -> bool {
        true
    }
}

/// Set in the process that is to end.
const PANICS: &str = "KENTONGAN_TEST_PANICS";

/// An arbiter that panicked would be one on which nothing happens any more, in a process that answers its probes: the process ends instead.
#[test]
fn a_panic_on_an_arbiter_ends_the_process() {
    if std::env::var_os(PANICS).is_some() {
        let broker = Plugged::start(Authority::default().with_access_control(Box::new(Broken)));
        let (mut publisher, _) = broker.open(connect(ProtocolVersion::V5, "p"));
        publisher.publish("whole", "1", Delivery::AtMostOnce);
        publisher.publish("broken", "2", Delivery::AtMostOnce);
        // It has not ended if this is reached.
        publisher.receive_within(Duration::from_secs(20));
        return;
    }
    let name = "plugged::a_panic_on_an_arbiter_ends_the_process";
    let mut child = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", name, "--nocapture"])
        .env(PANICS, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    assert_aborted(&mut child);
}

fn assert_aborted(child: &mut Child) {
    let began = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status,
            None => assert!(began.elapsed() < Duration::from_secs(60), "it neither ended nor gave up"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{status}");
}

/// Where the process that is to end keeps its data. No setting of the broker, which knows all that begin with its name.
const DATA_OF_PANICKING: &str = "PLUGGED_TEST_DATA";

/// What such a panic says is written before the process ends, and if nobody reads it, the process ends without.
#[test]
fn what_a_panic_says_is_written_before_the_process_ends() {
    if let Some(data) = std::env::var_os(DATA_OF_PANICKING) {
        let line = "kentongan serve --mqtt 127.0.0.1:0 --http 127.0.0.1:0 --data-dir".split(' ').map(OsString::from);
        let _ = kentongan::cli::run(line.chain([data]), |effective, reloading| {
            let authority = Authority::default().with_access_control(Box::new(Broken));
            serve::serve(effective.settings, &reloading, authority)
        });
        return;
    }
    for is_read in [true, false] {
        let directory = tempfile::tempdir().expect("a directory");
        let name = "plugged::what_a_panic_says_is_written_before_the_process_ends";
        let mut child = program_command(std::env::current_exe().expect("a path"))
            .args(["--exact", name, "--nocapture"])
            .env(DATA_OF_PANICKING, directory.path().join("data"))
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let listening = lines.find(|line| line.contains("listening for MQTT")).expect("it starts");
        let address = field(&listening, "address").and_then(|text| text.parse().ok()).expect("an address");
        let open = |client_id: &str| {
            let mut client = Client::at(address, ProtocolVersion::V5);
            client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, client_id))));
            client.expect_connack();
            client
        };
        if !is_read {
            // More than a pipe holds.
            (0..20).for_each(|number| open(&format!("{number}-{}", "x".repeat(16_000))).disconnect());
        }
        open("p").publish("broken", "2", Delivery::AtMostOnce);
        if is_read {
            let said: Vec<_> = lines.by_ref().collect();
            let panic = said.iter().position(|line| line.contains("panicked at"));
            let panic = panic.unwrap_or_else(|| panic!("{said:?}"));
            assert!(said[panic..].iter().any(|line| line.contains("an invariant of the broker's does not hold")));
            assert!(said.last().is_some_and(|line| line.contains("this is a fault of the program")), "{said:?}");
        }
        assert_aborted(&mut child);
    }
}

fn guarded() -> Plugged {
    Plugged::start(Authority::default().with_access_control(Box::new(Open)))
}

fn client(version: ProtocolVersion, client_id: &str, persistent: bool) -> Connect {
    let mut asked = connect(version, client_id);
    asked.clean_start = !persistent;
    asked.properties.session_expiry_interval = (persistent && version.is_v5()).then_some(100);
    asked
}

fn codes(client: &mut Client, filters: &[&str]) -> Vec<ReasonCode> {
    client.send(&Packet::Subscribe(Subscribe {
        packet_id: id(9),
        filters: filters.iter().map(|&one| (one.to_owned(), SubscriptionOptions::new(QoS::AtLeastOnce))).collect(),
        subscription_identifier: None,
        user_properties: Vec::new(),
    }));
    match client.receive() {
        Packet::SubAck(suback) => suback.reason_codes,
        other => panic!("SUBACK expected, got {other:?}"),
    }
}

/// Also within a shared subscription, and for any wildcard that reaches further than the right does.
///
/// Abuse: [unauthorised], [authorize]
#[test]
fn a_filter_that_is_not_allowed_gets_0x87_and_the_others_stand() {
    use ReasonCode::{GrantedQos1, NotAuthorized};
    let broker = guarded();
    for persistent in [false, true] {
        let (mut subscriber, _) = broker.open(client(ProtocolVersion::V5, "s", persistent));
        let asked = ["open/a", "closed", "#", "+/a", "open/+", "$share/g/closed", "$share/g/open/b", "$SYS/#"];
        let expected = [
            GrantedQos1,
            NotAuthorized,
            NotAuthorized,
            NotAuthorized,
            GrantedQos1,
            NotAuthorized,
            GrantedQos1,
            NotAuthorized,
        ];
        assert_eq!(codes(&mut subscriber, &asked), expected);
        let (mut publisher, _) = broker.open(client(ProtocolVersion::V5, "p", false));
        publisher.publish_acknowledged("open/a", "x", qos1(1));
        assert_eq!(subscriber.take_publish().payload, "x");
        subscriber.disconnect();
    }
    for persistent in [false, true] {
        let (mut old, _) = broker.open(client(ProtocolVersion::V3_1_1, "old", persistent));
        assert_eq!(codes(&mut old, &["closed", "open/a"]), [ReasonCode::UnspecifiedError, GrantedQos1]);
    }
}

/// Abuse: [unauthorised], [authorize]
#[test]
fn a_topic_that_is_not_allowed_gets_0x87_and_reaches_nobody() {
    let broker = guarded();
    let (mut watcher, _) = broker.open(client(ProtocolVersion::V5, "w", false));
    codes(&mut watcher, &["open/#"]);
    for persistent in [false, true] {
        let (mut publisher, _) = broker.open(client(ProtocolVersion::V5, "p", persistent));
        for topic in ["closed", "$delayed/0/closed", "open"] {
            for delivery in [qos1(1), qos2(2)] {
                publisher.publish(topic, "x", delivery);
                match publisher.receive() {
                    Packet::PubAck(ack) | Packet::PubRec(ack) => {
                        assert_eq!(Some(ack.packet_id), delivery.packet_id());
                        assert_eq!(ack.reason_code, ReasonCode::NotAuthorized, "{topic}");
                        assert!(ack.properties.reason_string.is_some());
                    }
                    other => panic!("a refusal expected, got {other:?}"),
                }
            }
            publisher.publish(topic, "x", QOS0);
        }
        publisher.expect_nothing();
    }
    watcher.expect_nothing();
}

/// Abuse: [unauthorised], [authorize]
#[test]
fn a_will_that_is_not_allowed_is_refused_at_connect() {
    let broker = guarded();
    for persistent in [false, true] {
        for (topic, reason) in [("open/w", ReasonCode::Success), ("closed", ReasonCode::NotAuthorized)] {
            for version in [ProtocolVersion::V5, ProtocolVersion::V3_1_1] {
                let mut asked = client(version, "c", persistent);
                asked.will = Some(Will {
                    topic: topic.to_owned(),
                    payload: "x".into(),
                    qos: QoS::AtLeastOnce,
                    retain: false,
                    properties: WillProperties::default(),
                });
                let (mut client, connack) = broker.open(asked);
                assert_eq!(connack.reason_code, reason);
                if reason.is_error() {
                    client.expect_closed();
                }
            }
        }
    }
}

/// Sends those whose name begins with `moved` away.
struct Away;

const ELSEWHERE: &str = "mqtt-2.example:1883";

impl Redirector for Away {
    fn on_connect(&self, _identity: &str, client_id: &str) -> Option<Redirection> {
        let permanent = client_id.starts_with("moved-for-good");
        client_id.starts_with("moved").then(|| Redirection { server_reference: ELSEWHERE.to_owned(), permanent })
    }

    fn on_shutdown(&self, _identity: &str, client_id: &str) -> Option<Redirection> {
        let permanent = false;
        client_id.starts_with("later").then(|| Redirection { server_reference: ELSEWHERE.to_owned(), permanent })
    }
}

/// MQTT 5, section 4.11: CONNACK names the other server; before MQTT 5 there is no room for one.
#[test]
fn a_client_with_a_place_elsewhere_is_sent_there() {
    let broker = Plugged::start(Authority::default().with_redirector(Box::new(Away)));
    let expected = [("moved", ReasonCode::UseAnotherServer), ("moved-for-good", ReasonCode::ServerMoved)];
    for persistent in [false, true] {
        for (name, reason) in expected {
            let (mut sent_away, connack) = broker.open(client(ProtocolVersion::V5, name, persistent));
            assert_eq!(connack.reason_code, reason);
            assert_eq!(connack.properties.server_reference.as_deref(), Some(ELSEWHERE));
            sent_away.expect_closed();
            let (mut old, connack) = broker.open(client(ProtocolVersion::V3_1_1, name, persistent));
            assert_eq!(connack.reason_code, ReasonCode::ServerUnavailable);
            old.expect_closed();
        }
    }
    let mut narrow = client(ProtocolVersion::V5, "moved", false);
    narrow.properties.maximum_packet_size = Some(10);
    let (_, connack) = broker.open(narrow);
    assert_eq!(connack.reason_code, ReasonCode::UseAnotherServer);
    assert_eq!(connack.properties, ConnAckProperties::default(), "no larger than the client takes");
    assert_eq!(broker.open(client(ProtocolVersion::V5, "stays", false)).1.reason_code, ReasonCode::Success);
}

/// At the end of the server, DISCONNECT names the other one.
#[test]
fn a_client_is_sent_elsewhere_when_the_server_stops() {
    let broker = Plugged::start(Authority::default().with_redirector(Box::new(Away)));
    let (mut later, _) = broker.open(client(ProtocolVersion::V5, "later", false));
    let (mut other, _) = broker.open(client(ProtocolVersion::V5, "other", false));
    broker.stop();
    match later.receive() {
        Packet::Disconnect(disconnect) => {
            assert_eq!(disconnect.reason_code, ReasonCode::UseAnotherServer);
            assert_eq!(disconnect.properties.server_reference.as_deref(), Some(ELSEWHERE));
        }
        packet => panic!("DISCONNECT expected, got {packet:?}"),
    }
    later.expect_closed();
    other.expect_disconnect(ReasonCode::ServerShuttingDown);
}
