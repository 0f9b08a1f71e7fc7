//! A server of the operator's that says who may come in and what they may: what its answers mean, and what it means if there is none.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kentongan_proto::mqtt::*;
use serde_json::{Value, json};

use crate::support::*;
use crate::users::{Files, of_user, quick};

/// A status and a body, or nothing at all.
type Reply = Option<(u16, String)>;

type Answer = Box<dyn Fn(&Value) -> Reply + Send>;

/// A server that answers what it is told to.
struct Server {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn start(answer: impl Fn(&Value) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(answer)));
        let server = Self { port, answer, asked: Arc::default() };
        let (answer, asked) = (Arc::clone(&server.answer), Arc::clone(&server.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, asked) = (Arc::clone(&answer), Arc::clone(&asked));
                std::thread::spawn(move || serve(stream, &answer, &asked));
            }
        });
        server
    }

    fn answer(&self, answer: impl Fn(&Value) -> Reply + Send + 'static) {
        *self.answer.lock().expect("whole") = Box::new(answer);
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().expect("whole").clone()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mqtt", self.port)
    }
}

fn serve(mut stream: TcpStream, answer: &Mutex<Answer>, asked: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let question: Value = serde_json::from_slice(&body).expect("JSON");
        asked.lock().expect("whole").push(question.clone());
        let reply = answer.lock().expect("whole")(&question);
        let Some((status, body)) = reply else {
            // Until the other side gives up.
            let _ = reader.read(&mut [0]);
            return;
        };
        if write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).is_err() {
            return;
        }
    }
}

fn say(value: &Value) -> Reply {
    Some((200, value.to_string()))
}

fn files(server: &Server, more: &str) -> Files {
    Files::new(&format!("allow_anonymous = false\nauth.http.url = \"{}\"\n{more}", server.url()))
}

fn ana(version: ProtocolVersion, client_id: &str) -> Connect {
    of_user(version, client_id, "ana", "tabuh")
}

fn reason(broker: &Broker, connect: Connect) -> ReasonCode {
    Client::open(broker, connect).1.reason_code
}

const V5: ProtocolVersion = ProtocolVersion::V5;
const V3: ProtocolVersion = ProtocolVersion::V3_1_1;

fn asked(outcome: &str) -> String {
    format!("kentongan_http_auth_requests_total{{outcome=\"{outcome}\"}}")
}

fn not_asked(reason: &str) -> String {
    format!("kentongan_http_auth_not_asked_total{{reason=\"{reason}\"}}")
}

/// Abuse: [http-authentication]
#[test]
fn allow_deny_and_ignore_in_a_chain() {
    let server = Server::start(|question| match question["username"].as_str() {
        Some("ana") if question["password"] == "tabuh" => say(&json!({ "result": "allow" })),
        Some("budi") => say(&json!({ "result": "deny" })),
        None => say(&json!({ "result": "allow", "identity": "nameless" })),
        _ => say(&json!({ "result": "ignore" })),
    });
    let files = Files::with_listener(
        &format!("allow_anonymous = false\nauth.password_file = \"@/passwords\"\nauth.http.url = \"{}\"", server.url()),
        "authentication = [\"http\", \"password\"]",
    );
    files.write("passwords", &(quick("budi", "x") + &quick("citra", "x")));
    let broker = files.start();
    let of = |user, password| of_user(V5, "c", user, password);
    assert_eq!(reason(&broker, ana(V5, "c")), ReasonCode::Success);
    assert_eq!(reason(&broker, of("budi", "x")), ReasonCode::NotAuthorized, "whatever stands behind it");
    assert_eq!(reason(&broker, of("citra", "x")), ReasonCode::Success, "somebody else says so");
    assert_eq!(reason(&broker, of("citra", "y")), ReasonCode::BadUserNameOrPassword);
    assert_eq!(reason(&broker, of("dewi", "x")), ReasonCode::BadUserNameOrPassword, "nobody knows her");
    assert_eq!(reason(&broker, connect(V5, "c")), ReasonCode::Success, "by its client identifier, say");
    let first = &server.asked()[0];
    let expected = json!({
        "ask": "login", "client_id": "c", "username": "ana", "password": "tabuh", "address": "127.0.0.1",
        "listener": broker.address.to_string(), "protocol": "5",
    });
    assert_eq!(*first, expected);
    for (outcome, count) in [("allow", 2.0), ("deny", 1.0), ("ignore", 3.0)] {
        broker.wait_for_metric(&asked(outcome), |value| value == count);
    }
    broker.wait_for_metric("kentongan_http_auth_request_seconds_count", |value| value == 6.0);
    let counted = |outcome: &str| format!("kentongan_authentications_total{{outcome=\"{outcome}\"}}");
    broker.wait_for_metric(&counted("server"), |value| value == 2.0);
    broker.wait_for_metric(&counted("server_denied"), |value| value == 1.0);
}

#[test]
fn a_decision_is_remembered_with_all_that_was_asked_and_forgotten_on_reload() {
    let server = Server::start(|question| match question["password"].as_str() {
        Some("tabuh") => say(&json!({ "result": "allow" })),
        _ => say(&json!({ "result": "deny" })),
    });
    let files = files(&server, "");
    let broker = files.start();
    for _ in 0..3 {
        assert_eq!(reason(&broker, ana(V5, "c")), ReasonCode::Success);
        assert_eq!(reason(&broker, of_user(V5, "c", "ana", "wrong")), ReasonCode::NotAuthorized);
    }
    assert_eq!(server.asked().len(), 2);
    broker.wait_for_metric(&not_asked("remembered"), |value| value == 4.0);
    assert_eq!(reason(&broker, ana(V5, "another")), ReasonCode::Success);
    assert_eq!(server.asked().len(), 3, "another client identifier is another question");
    broker.hang_up();
    broker.wait_for_log("read again");
    server.answer(|_| say(&json!({ "result": "deny" })));
    assert_eq!(reason(&broker, ana(V5, "c")), ReasonCode::NotAuthorized);
}

/// Abuse: [http-authentication]
#[test]
fn a_server_that_decides_nothing_lets_nobody_in_and_is_named_in_the_audit_log() {
    let server = Server::start(|_| None);
    let url = server.url();
    let files = Files::with_listener(
        &format!(
            "allow_anonymous = true\nauth.password_file = \"@/passwords\"\nauth.http.url = \"{url}\"\n\
             auth.http.timeout_milliseconds = 2500\nauth.http.breaker_failures = 0\nlog.audit_file = \"@/audit\""
        ),
        "authentication = [\"http\", \"password\"]",
    );
    files.write("passwords", &quick("ana", "tabuh"));
    let broker = files.start();
    // The password file would let her in, and anybody else as nobody in particular.
    for refused in [ana(V5, "c"), connect(V5, "c")] {
        assert_eq!(reason(&broker, refused), ReasonCode::ServerUnavailable);
    }
    assert_eq!(reason(&broker, ana(V3, "c")), ReasonCode::ServerUnavailable, "return code 3");
    broker.wait_for_metric(&asked("timeout"), |value| value == 3.0);
    let many = json!({ "result": "allow", "acl": { "pub": vec!["x"; 1000] } }).to_string();
    let large = format!("{{\"result\":\"allow\",\"identity\":\"{}\"}}", "x".repeat(100_000));
    for (status, body) in [
        (200, "garbage"),
        (200, ""),
        (200, "{\"result\":\"allow\",\"unless\":\"it rains\"}"),
        (200, many.as_str()),
        (200, large.as_str()),
        (500, "{\"result\":\"allow\"}"),
        (201, "{\"result\":\"allow\"}"),
        (302, "{\"result\":\"allow\"}"),
        (503, ""),
    ] {
        let reply = Some((status, body.to_owned()));
        server.answer(move |_| reply.clone());
        assert_eq!(reason(&broker, ana(V5, "c")), ReasonCode::ServerUnavailable, "{status} {body:.40}");
    }
    broker.wait_for_metric(&asked("invalid"), |value| value == 5.0);
    broker.wait_for_metric(&asked("status"), |value| value == 4.0);
    server.answer(|_| say(&json!({ "result": "deny" })));
    assert_eq!(reason(&broker, ana(V5, "c")), ReasonCode::NotAuthorized);
    let named = format!("127.0.0.1:{}", server.port);
    wait_for("both lines", || {
        let audit = std::fs::read_to_string(files.path("audit")).unwrap_or_default();
        let line = |text: &str| audit.lines().any(|line| line.contains(text) && line.contains(&named));
        line("the authentication server decided nothing") && line("the authentication server denies it")
    });
    let audit = std::fs::read_to_string(files.path("audit")).expect("written");
    assert!(!audit.contains("tabuh"));
}

/// Abuse: [http-authentication]
#[test]
fn a_server_that_is_gone_is_left_alone_until_a_probe_finds_it() {
    let server = Server::start(|_| Some((503, String::new())));
    let files = files(&server, "auth.http.breaker_failures = 3\nauth.http.breaker_seconds = 3");
    let broker = files.start();
    for _ in 0..3 {
        assert_eq!(reason(&broker, ana(V5, "c")), ReasonCode::ServerUnavailable);
    }
    broker.wait_for_log("is not asked for a while");
    assert_eq!(reason(&broker, ana(V5, "c")), ReasonCode::ServerUnavailable);
    assert_eq!(server.asked().len(), 3, "at once, without asking");
    broker.wait_for_metric(&not_asked("breaker_open"), |value| value == 1.0);
    assert!(broker.metric("kentongan_http_auth_breaker") > 0.0);
    server.answer(|_| say(&json!({ "result": "allow" })));
    wait_for("a probe", || reason(&broker, ana(V5, "c")) == ReasonCode::Success);
    assert_eq!(server.asked().len(), 4);
    broker.wait_for_log("is asked again");
    assert_eq!(broker.metric("kentongan_http_auth_breaker"), 0.0);
}

/// Abuse: [http-authentication]
#[test]
fn a_storm_from_one_address_waits_and_others_take_their_turns() {
    let may_answer = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&may_answer);
    let server = Server::start(move |_| {
        while !is_open.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        say(&json!({ "result": "allow" }))
    });
    let more = "auth.http.requests_max = 1\nauth.http.queue_max = 20\nauth.http.timeout_milliseconds = 60000";
    let files = files(&server, more);
    let broker = files.start();
    let send = |connect: Connect| {
        let mut client = Client::raw(&broker, V5);
        client.send(&Packet::Connect(Box::new(connect)));
        client
    };
    let mut storm: Vec<_> = (0..100).map(|number| send(ana(V5, &format!("storm-{number}")))).collect();
    broker.wait_for_metric("kentongan_http_auth_waiting", |value| value == 20.0);
    broker.wait_for_metric("kentongan_http_auth_requests_in_progress", |value| value == 1.0);
    // All come from one address here, where users take turns.
    let mut calm = send(of_user(V5, "calm", "calm", "x"));
    broker.wait_for_metric(&not_asked("busy"), |value| value == 80.0);
    may_answer.store(true, Ordering::Relaxed);
    assert_eq!(calm.expect_connack().reason_code, ReasonCode::Success);
    let reasons: Vec<_> = storm.iter_mut().map(|client| client.expect_connack().reason_code).collect();
    let count = |reason| reasons.iter().filter(|&&other| other == reason).count();
    assert_eq!((count(ReasonCode::Success), count(ReasonCode::ServerBusy)), (20, 80));
}

/// What it is answered. Messages to itself may come first.
fn published(client: &mut Client, topic: &str) -> ReasonCode {
    client.publish(topic, "x", qos1(7));
    loop {
        match client.receive() {
            Packet::PubAck(ack) => return ack.reason_code,
            Packet::Publish(_) => {}
            other => panic!("PUBACK expected, got {other:?}"),
        }
    }
}

/// The end that it is told of, whatever messages come before.
fn ended(client: &mut Client) -> ReasonCode {
    loop {
        match client.receive() {
            Packet::Disconnect(disconnect) => return disconnect.reason_code,
            Packet::Publish(_) => {}
            other => panic!("DISCONNECT expected, got {other:?}"),
        }
    }
}

fn will(topic: &str) -> Option<Will> {
    let properties = WillProperties::default();
    Some(Will { topic: topic.to_owned(), payload: "x".into(), qos: QoS::AtMostOnce, retain: false, properties })
}

/// Abuse: [http-authentication]
#[test]
fn rights_that_come_with_a_login_hold_on_every_path() {
    let server = Server::start(|question| match question["username"].as_str() {
        Some("boss") => say(&json!({ "result": "allow", "superuser": true })),
        _ => say(&json!({ "result": "allow", "acl": { "pub": ["plant/%c/#"], "sub": ["news/#"] } })),
    });
    let files = files(&server, "");
    let broker = files.start();
    let mut boss = Client::accepted(&broker, of_user(V5, "boss", "boss", "x"));
    boss.subscribe("#", QoS::AtMostOnce);
    assert_eq!(published(&mut boss, "$SYS/x"), ReasonCode::NotAuthorized, "nobody speaks for the broker");

    let mut asked = ana(V5, "dev-7");
    asked.will = will("plant/dev-8/gone");
    assert_eq!(reason(&broker, asked.clone()), ReasonCode::NotAuthorized);
    asked.will = will("plant/dev-7/gone");
    let mut ana = Client::accepted(&broker, asked);
    assert_eq!(published(&mut ana, "plant/dev-7/t"), ReasonCode::Success);
    assert_eq!(boss.expect_publish().topic, "plant/dev-7/t");
    assert_eq!(published(&mut ana, "plant/dev-8/t"), ReasonCode::NotAuthorized);
    assert_eq!(published(&mut ana, "$delayed/0/plant/dev-8/t"), ReasonCode::NotAuthorized);
    for (filter, is_granted) in [
        ("news/+", true),
        ("$share/g/news/x", true),
        ("#", false),
        ("plant/dev-7/t", false),
        ("$share/g/plant/#", false),
    ] {
        let code = ana.subscribe(filter, QoS::AtMostOnce);
        assert_eq!(!code.is_error(), is_granted, "{filter}: {code:?}");
    }
    let mut sender = Client::accepted(&broker, of_user(V5, "sender", "boss", "x"));
    sender.publish_acknowledged("news/x", "x", qos1(1));
    assert_eq!(ana.take_publish().topic, "news/x");
    assert_eq!(boss.expect_publish().topic, "news/x");
    drop(ana);
    assert_eq!(boss.expect_publish().topic, "plant/dev-7/gone");
}

/// Abuse: [http-authentication]
#[test]
fn rights_are_asked_for_again_and_what_is_new_counts_at_once() {
    let all = || json!({ "result": "allow", "acl": { "all": ["a/#", "b"] } });
    let server = Server::start(move |_| say(&all()));
    let files = files(&server, &format!("auth.http.rights_url = \"{}\"\nauth.http.rights_seconds = 1", server.url()));
    let broker = files.start();
    let mut ana = Client::accepted(&broker, self::ana(V5, "ana"));
    let mut boss = Client::accepted(&broker, of_user(V5, "boss", "boss", "x"));
    ana.subscribe("a/#", QoS::AtMostOnce);
    ana.subscribe("b", QoS::AtMostOnce);
    boss.publish_acknowledged("a/x", "x", qos1(1));
    assert_eq!(ana.expect_publish().topic, "a/x");

    server.answer(move |question| match question["identity"].as_str() {
        Some("ana") => say(&json!({ "result": "allow", "acl": { "all": ["b"] } })),
        _ => say(&all()),
    });
    let counted = |outcome: &str| format!("kentongan_http_auth_rights_total{{outcome=\"{outcome}\"}}");
    broker.wait_for_metric(&counted("changed"), |value| value == 1.0);
    assert_eq!(published(&mut ana, "a/x"), ReasonCode::NotAuthorized);
    boss.publish_acknowledged("a/x", "x", qos1(2));
    boss.publish_acknowledged("b", "x", qos1(3));
    assert_eq!(ana.take_publish().topic, "b", "the live subscription is gone");
    let question = server.asked().into_iter().find(|question| question["ask"] == "rights").expect("asked");
    assert_eq!(question["identity"], question["client_id"]);
    assert!(question.get("password").is_none() && question.get("username").is_none());

    // While it decides nothing, its last word counts.
    server.answer(|_| Some((503, String::new())));
    broker.wait_for_metric(&counted("undecided"), |value| value >= 2.0);
    assert_eq!(published(&mut ana, "b"), ReasonCode::Success);

    server.answer(|question| match question["identity"].as_str() {
        Some("ana") => say(&json!({ "result": "deny" })),
        _ => say(&json!({ "result": "allow" })),
    });
    assert_eq!(ended(&mut ana), ReasonCode::NotAuthorized);
    broker.wait_for_metric(&counted("denied"), |value| value == 1.0);
}

#[test]
fn rights_that_nobody_confirms_do_not_count_for_ever() {
    let server = Server::start(|_| say(&json!({ "result": "allow" })));
    let more = format!(
        "auth.http.rights_url = \"{}\"\nauth.http.rights_seconds = 1\nauth.http.rights_outdated_seconds_max = 3",
        server.url()
    );
    let files = files(&server, &more);
    let broker = files.start();
    let mut ana = Client::accepted(&broker, ana(V5, "ana"));
    broker.wait_for_metric("kentongan_http_auth_rights_total{outcome=\"unchanged\"}", |value| value >= 4.0);
    assert!(!published(&mut ana, "x").is_error(), "it is confirmed again and again");
    server.answer(|_| Some((503, String::new())));
    assert_eq!(ended(&mut ana), ReasonCode::NotAuthorized);
}

#[test]
fn whom_a_password_lets_in_can_have_its_rights_from_the_server() {
    let server = Server::start(|question| match (question["ask"].as_str(), question["identity"].as_str()) {
        (Some("rights"), Some("ana")) => say(&json!({ "result": "allow", "acl": { "pub": ["a"] } })),
        (Some("rights"), Some("budi")) => say(&json!({ "result": "deny" })),
        _ => say(&json!({ "result": "ignore" })),
    });
    let files = Files::new(&format!(
        "allow_anonymous = false\nauth.password_file = \"@/passwords\"\nauth.http.rights_url = \"{}\"\n\
         auth.http.rights_for_all = true",
        server.url()
    ));
    files.write("passwords", &(quick("ana", "tabuh") + &quick("budi", "x") + &quick("citra", "x")));
    let broker = files.start();
    let mut ana = Client::accepted(&broker, ana(V5, "ana"));
    assert!(!published(&mut ana, "a").is_error());
    assert_eq!(published(&mut ana, "b"), ReasonCode::NotAuthorized);
    assert_eq!(reason(&broker, of_user(V5, "b", "budi", "x")), ReasonCode::NotAuthorized);
    assert_eq!(reason(&broker, of_user(V5, "a", "ana", "wrong")), ReasonCode::BadUserNameOrPassword);
    let mut citra = Client::accepted(&broker, of_user(V5, "c", "citra", "x"));
    assert!(!published(&mut citra, "b").is_error(), "the files say nothing");
}

#[test]
fn a_login_for_a_time_ends_with_it() {
    let server = Server::start(|_| say(&json!({ "result": "allow", "expires": 2 })));
    let files = files(&server, "");
    let broker = files.start();
    let mut ana = Client::accepted(&broker, ana(V5, "ana"));
    assert_eq!(ended(&mut ana), ReasonCode::MaximumConnectTime);
}

#[test]
fn what_cannot_be_meant_refuses_the_start() {
    for (settings, expected) in [
        ("auth.http.url = \"auth.example\"", "no URL of http or https"),
        ("auth.http.rights_for_all = true", "rights_url"),
        ("auth.http.header_value = \"a\\nb\"", "cannot stand in a header"),
        ("auth.http.header = \"a b\"", "no name of a header"),
        ("auth.http.url = \"https://localhost/\"\nauth.http.ca_file = \"@/nothing\"", "`auth.http`"),
    ] {
        let files = Files::new(settings);
        let output = broker_command()
            .args(["serve", "--config"])
            .arg(files.path("kentongan.toml"))
            .arg("--data-dir")
            .arg(files.path("data"))
            .output()
            .expect("it ran");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{settings}: {said}");
    }
}
