//! Tokens: who gets in by one, what it grants on each path, and what its end ends.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kentongan_proto::mqtt::*;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::support::*;
use crate::users::{Files, of_user, quick};

const SECRET: &str = "a secret of the tests, 32 bytes and more";
const OTHER_SECRET: &str = "another secret of them, as long as that";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn by_secret(secret: &str, claims: &Value) -> String {
    let message = format!("{}.{}", part(&json!({ "alg": "HS256", "typ": "JWT" })), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())))
}

/// For an hour, with what else it claims.
fn token(identity: &str, more: Value) -> String {
    let mut claims = json!({ "sub": identity, "exp": now() + 3600.0 });
    claims.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    by_secret(SECRET, &claims)
}

fn files(more: &str) -> Files {
    let settings = "allow_anonymous = false\nauth.jwt.secret_file = \"@/secret\"\nauth.jwt.leeway_seconds = 0\n";
    let files = Files::new(&format!("{settings}{more}"));
    files.write("secret", SECRET);
    files
}

fn v5(client_id: &str, token: &str, is_persistent: bool) -> Connect {
    let mut asked = of_user(ProtocolVersion::V5, client_id, "", token);
    asked.clean_start = !is_persistent;
    asked.properties.session_expiry_interval = is_persistent.then_some(100);
    asked
}

fn will(topic: &str) -> Option<Will> {
    let properties = WillProperties::default();
    Some(Will { topic: topic.to_owned(), payload: "gone".into(), qos: QoS::AtLeastOnce, retain: false, properties })
}

/// One that may do everything that no file denies.
fn boss(broker: &Broker, client_id: &str) -> Client {
    Client::accepted(broker, v5(client_id, &token("boss", json!({ "acl": { "all": ["#"] } })), false))
}

/// Another, who sees what comes of `filters`.
fn watcher(broker: &Broker, filters: &[&str]) -> Client {
    let mut watcher = boss(broker, "watcher");
    for filter in filters {
        assert_eq!(watcher.subscribe(filter, QoS::AtLeastOnce), ReasonCode::GrantedQos1, "{filter}");
    }
    watcher
}

fn published(client: &mut Client, topic: &str) -> ReasonCode {
    client.publish(topic, "x", qos1(11));
    match client.receive() {
        Packet::PubAck(ack) => ack.reason_code,
        other => panic!("PUBACK expected, got {other:?}"),
    }
}

#[test]
fn a_good_token_lets_in_and_nothing_else_that_looks_like_one() {
    let files = files(
        "log.audit_file = \"@/audit\"\nauth.password_file = \"@/passwords\"\nauth.jwt.required_claims = [\"dev=%c\"]\n",
    );
    files.write("passwords", &quick("budi", "b"));
    let broker = files.start();
    let good = token("ana", json!({ "dev": "c" }));
    let expired = token("ana", json!({ "dev": "c", "exp": now() - 1.0 }));
    let early = token("ana", json!({ "dev": "c", "nbf": now() + 60.0 }));
    let others = by_secret(OTHER_SECRET, &json!({ "sub": "ana", "exp": now() + 60.0, "dev": "c" }));
    let elsewhere = token("ana", json!({ "dev": "d" }));
    let unsigned = format!("{}.{}.", part(&json!({ "alg": "none" })), part(&json!({ "sub": "ana" })));
    for version in [ProtocolVersion::V3_1_1, ProtocolVersion::V5] {
        for (user, password, reason) in [
            ("whoever", &*good, ReasonCode::Success),
            ("ana", &*expired, ReasonCode::BadUserNameOrPassword),
            ("ana", &*early, ReasonCode::BadUserNameOrPassword),
            ("ana", &*others, ReasonCode::BadUserNameOrPassword),
            ("ana", &*elsewhere, ReasonCode::BadUserNameOrPassword),
            ("ana", &*unsigned, ReasonCode::BadUserNameOrPassword),
            // What is no token is for the next method.
            ("budi", "b", ReasonCode::Success),
            ("budi", "x", ReasonCode::BadUserNameOrPassword),
            ("ana", "x", ReasonCode::BadUserNameOrPassword),
        ] {
            let (mut client, connack) = Client::open(&broker, of_user(version, "c", user, password));
            assert_eq!(connack.reason_code, reason, "{user} {password}");
            if reason.is_error() {
                client.expect_closed();
            }
        }
    }
    let counted = |outcome: &str| format!("kentongan_authentications_total{{outcome=\"{outcome}\"}}");
    for (outcome, count) in [("token", 2.0), ("bad_token", 10.0), ("password", 1.0), ("unknown_user", 2.0)] {
        broker.wait_for_metric(&counted(outcome), |value| value == count);
    }
    let audit = || std::fs::read_to_string(files.path("audit")).unwrap_or_default();
    for reason in ["has expired", "not valid yet", "signature of the token is wrong", "lacks a claim", "malformed"] {
        wait_for(reason, || audit().contains(reason));
    }
    let log = {
        broker.hang_up();
        broker.logs_until("read again").join("\n") + &audit()
    };
    assert!(log.contains("has expired"), "{log}");
    for secret in [&good, &expired, &others, &unsigned] {
        let signed = secret.rsplit_once('.').expect("three parts").0;
        assert!(!log.contains(signed), "a token is shown nowhere");
    }
}

#[test]
fn a_token_in_the_user_name_is_shown_nowhere_either() {
    let files = files("log.audit_file = \"@/audit\"\nauth.jwt.token_in = \"user-name\"\n");
    let broker = files.start();
    let good = token("ana", json!({}));
    Client::accepted(&broker, of_user(ProtocolVersion::V5, "c", &good, "")).disconnect();
    let forged = by_secret(OTHER_SECRET, &json!({ "sub": "ana", "exp": now() + 60.0 }));
    for wrong in [&*forged, "ana", &forged[..30]] {
        let (mut client, connack) = Client::open(&broker, of_user(ProtocolVersion::V5, "c", wrong, "x"));
        assert_eq!(connack.reason_code, ReasonCode::BadUserNameOrPassword, "{wrong}");
        client.expect_closed();
    }
    let audit = || std::fs::read_to_string(files.path("audit")).unwrap_or_default();
    wait_for("three lines", || audit().lines().count() == 3);
    let text = audit();
    assert!(text.contains("signature of the token is wrong") && !text.contains(&forged[..20]), "{text}");
}

/// Each path, by what the token says, while the files would allow nothing.
/// Abuse: [authorize]
#[test]
fn what_a_token_grants_holds_on_every_path() {
    let files = files("auth.acl_file = \"@/acl\"\n");
    files.write("acl", "user somebody\ntopic #\npattern deny t/locked\n");
    let broker = files.start();
    let mut boss = boss(&broker, "boss");
    assert_eq!(published(&mut boss, "t/locked"), ReasonCode::NotAuthorized, "not even she");
    let mut watcher = watcher(&broker, &["t/x", "t/a/x", "t/will", "dev/#"]);
    let mut message = publish("t/kept", "kept", qos1(9));
    message.retain = true;
    boss.send(&Packet::Publish(message));
    boss.complete(qos1(9));
    let acl = json!({ "acl": [
        { "permission": "deny", "action": "all", "topic": "t/own-no" },
        { "permission": "allow", "action": "all", "topics": ["t/#", "dev/%c/+"] },
        { "permission": "allow", "action": "subscribe", "topic": "b" },
    ] });
    for is_persistent in [false, true] {
        let asked = |will| Connect { will, ..v5("ana", &token("ana", acl.clone()), is_persistent) };
        let (mut refused, connack) = Client::open(&broker, asked(will("b")));
        assert_eq!(connack.reason_code, ReasonCode::NotAuthorized, "a will that she may not publish");
        refused.expect_closed();
        let mut ana = Client::accepted(&broker, asked(will("t/will")));
        for (topic, may) in [
            ("t/x", true),
            ("dev/ana/x", true),
            ("dev/budi/x", false),
            ("t/own-no", false),
            ("t/locked", false),
            ("b", false),
        ] {
            assert_eq!(!published(&mut ana, topic).is_error(), may, "{topic}");
            if may {
                assert_eq!(watcher.take_publish().topic, topic);
            }
        }
        for (filter, may) in [
            ("t/a/#", true),
            ("dev/ana/+", true),
            ("b", true),
            ("t/#", false),
            ("t/+", false),
            ("#", false),
            ("t/locked", false),
        ] {
            assert_eq!(!ana.subscribe(filter, QoS::AtLeastOnce).is_error(), may, "{filter}");
        }
        assert_eq!(ana.subscribe("t/kept", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        assert_eq!(ana.take_publish().topic, "t/kept", "retained");
        boss.publish_acknowledged("t/a/x", "x", qos1(1));
        assert_eq!(watcher.take_publish().topic, "t/a/x");
        assert_eq!(ana.take_publish().topic, "t/a/x");
        // Her end is abnormal: the files alone would keep the will back.
        drop(ana);
        assert_eq!(watcher.take_publish().topic, "t/will", "{is_persistent}");
    }
}

/// With a token that grants less, a session that is resumed loses what it does not.
/// Abuse: [authorize]
#[test]
fn a_session_has_what_the_new_token_grants() {
    for way in ["covered", "filter"] {
        let files = files(&format!("auth.acl_subscribe = \"{way}\"\n"));
        let broker = files.start();
        let mut boss = boss(&broker, "boss");
        let with = |acl: Value| v5("ana", &token("ana", json!({ "acl": acl })), true);
        let mut ana = Client::accepted(&broker, with(json!({ "sub": ["a/#", "b"] })));
        for filter in ["a/#", "b"] {
            assert_eq!(ana.subscribe(filter, QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        }
        ana.disconnect();
        for topic in ["a/waits", "b"] {
            boss.publish_acknowledged(topic, "x", qos1(1));
        }
        let (mut ana, connack) = Client::open(&broker, with(json!({ "sub": ["b"] })));
        assert!(connack.session_present);
        assert_eq!(ana.take_publish().topic, "b", "{way}: what waited and is not hers any more is kept from her");
        boss.publish_acknowledged("a/x", "x", qos1(2));
        boss.publish_acknowledged("b", "x", qos1(3));
        assert_eq!(ana.take_publish().topic, "b", "{way}");
        assert_eq!(published(&mut ana, "b"), ReasonCode::NotAuthorized);
        ana.disconnect();
        // Without rules of its own, a login is judged by the files, of which there are none.
        let mut ana = Client::accepted(&broker, v5("ana", &token("ana", json!({})), true));
        assert!(!published(&mut ana, "c").is_error());
    }
}

#[test]
fn a_login_ends_with_its_token_and_the_will_is_said() {
    let files = files("auth.acl_file = \"@/acl\"\n");
    files.write("acl", "user somebody\ntopic #\n");
    let broker = files.start();
    let mut boss = boss(&broker, "boss");
    let mut watcher = watcher(&broker, &["will/+"]);
    let soon = || json!({ "acl": { "pub": ["will/#"] }, "exp": now() + 2.0 });
    let asked = |version, client_id: &str, keep_alive| {
        let mut asked = of_user(version, client_id, "", &token("ana", soon()));
        asked.keep_alive = keep_alive;
        asked.will = will(&format!("will/{client_id}"));
        asked
    };
    let mut new = Client::accepted(&broker, asked(ProtocolVersion::V5, "new", 0));
    let mut old = Client::accepted(&broker, asked(ProtocolVersion::V3_1_1, "old", 600));
    new.expect_nothing();
    new.expect_disconnect(ReasonCode::MaximumConnectTime);
    old.expect_closed();
    let mut wills = [watcher.take_publish().topic, watcher.take_publish().topic];
    wills.sort();
    assert_eq!(wills, ["will/new", "will/old"]);
    broker.wait_for_metric("kentongan_connections_closed_total{reason=\"login_expired\"}", |count| count == 2.0);
    boss.publish_acknowledged("x", "she is still there", qos1(1));
}

#[test]
fn keys_change_with_their_file() {
    let files = files("");
    let broker = files.start();
    let mut ana = Client::accepted(&broker, v5("ana", &token("ana", json!({})), false));
    files.write("secret", "too short");
    broker.wait_for_log("cannot be used, those before stay");
    ana.expect_nothing();
    files.write("secret", OTHER_SECRET);
    broker.wait_for_log("other keys of tokens are in use");
    ana.expect_disconnect(ReasonCode::NotAuthorized);
    let (_, connack) = Client::open(&broker, v5("ana", &token("ana", json!({})), false));
    assert_eq!(connack.reason_code, ReasonCode::BadUserNameOrPassword);
    let other = by_secret(OTHER_SECRET, &json!({ "sub": "ana", "exp": now() + 60.0 }));
    Client::accepted(&broker, v5("ana", &other, false));
    broker.hang_up();
    assert!(broker.wait_for_log("reload: ").contains("read again"));
}

/// A server of keys, which can be told to have others, or none.
struct KeyServer {
    url: String,
    body: Arc<Mutex<Option<String>>>,
}

impl KeyServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("bound"));
        let body = Arc::new(Mutex::new(None::<String>));
        let shared = Arc::clone(&body);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let mut asked = Vec::new();
                let mut some = [0; 1024];
                while !asked.windows(4).any(|window| window == b"\r\n\r\n") {
                    match stream.read(&mut some) {
                        Ok(count) if count > 0 => asked.extend_from_slice(&some[..count]),
                        _ => break,
                    }
                }
                let body = shared.lock().expect("nobody panics").clone();
                let (status, body) = body.map_or(("503 no", String::new()), |body| ("200 OK", body));
                let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes());
            }
        });
        Self { url, body }
    }

    fn has(&self, keys: Option<&[&Pair]>) {
        let set =
            |keys: &[&Pair]| json!({ "keys": keys.iter().map(|pair| pair.jwk()).collect::<Vec<_>>() }).to_string();
        *self.body.lock().expect("nobody panics") = keys.map(set);
    }
}

struct Pair {
    name: &'static str,
    pair: EcdsaKeyPair,
}

impl Pair {
    fn new(name: &'static str) -> Self {
        let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("randomness");
        Self { name, pair: EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).expect("a key") }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|half| URL_SAFE_NO_PAD.encode(half));
        json!({ "kty": "EC", "kid": self.name, "use": "sig", "alg": "ES256", "crv": "P-256", "x": x, "y": y })
    }

    fn token(&self) -> String {
        let claims = json!({ "sub": "ana", "exp": now() + 3600.0 });
        let message = format!("{}.{}", part(&json!({ "alg": "ES256", "kid": self.name })), part(&claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[test]
fn keys_that_a_server_has_are_followed_and_stay_when_it_is_gone() {
    let server = KeyServer::start();
    let files = Files::new(&format!(
        "allow_anonymous = false\nauth.jwt.jwks_url = \"{}\"\nauth.jwt.jwks_refresh_seconds = 1\n",
        server.url
    ));
    let broker = files.start();
    let [one, other] = ["one", "other"].map(Pair::new);
    let (signed, by_other) = (one.token(), other.token());
    let asked = |token: &str| Client::open(&broker, v5("ana", token, false)).1.reason_code;
    broker.wait_for_log("cannot be fetched");
    assert_eq!(asked(&signed), ReasonCode::ServerUnavailable, "it may come again");
    assert!(broker.metric("kentongan_jwks_fetches_total{outcome=\"failed\"}") > 0.0);
    assert_eq!(broker.metric("kentongan_jwks_last_fetch_timestamp_seconds"), 0.0);
    server.has(Some(&[&one]));
    wait_for("the first key", || asked(&signed) == ReasonCode::Success);
    let mut stays = Client::accepted(&broker, v5("stays", &signed, false));
    assert_eq!(asked(&by_other), ReasonCode::BadUserNameOrPassword);
    server.has(Some(&[&other]));
    wait_for("the other key", || asked(&by_other) == ReasonCode::Success);
    assert_eq!(asked(&signed), ReasonCode::BadUserNameOrPassword, "though it was remembered");
    server.has(None);
    broker.wait_for_log("cannot be fetched");
    assert_eq!(asked(&by_other), ReasonCode::Success, "what was fetched last stays");
    assert!(broker.metric("kentongan_jwks_fetches_total{outcome=\"fetched\"}") > 1.0);
    assert!(now() - broker.metric("kentongan_jwks_last_fetch_timestamp_seconds") < 60.0);
    stays.expect_nothing();
}
