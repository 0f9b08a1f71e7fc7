//! Users and passwords: who gets in, who does not, and what a new file changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use kentongan::auth::{MosquittoForm, StoredPassword};
use kentongan_proto::mqtt::*;
use ring::{digest, hmac, pbkdf2};
use tempfile::TempDir;

use crate::support::*;

/// A directory with settings, and the files that they name.
pub struct Files(TempDir);

impl Files {
    /// `settings` stand before the listener.
    pub fn new(settings: &str) -> Self {
        Self::with_listener(settings, "")
    }

    /// `listener` stands in the section of the listener.
    pub fn with_listener(settings: &str, listener: &str) -> Self {
        let files = Self(TempDir::new().expect("a temporary directory"));
        let at = files.path("").display().to_string();
        let settings = settings.replace("@", at.trim_end_matches('/'));
        files.write("kentongan.toml", &format!("{settings}\n[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n"));
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    pub fn start(&self) -> Broker {
        Broker::with_file(&self.path("kentongan.toml"))
    }
}

/// A line of a password file, quick to verify.
pub fn quick(user: &str, password: &str) -> String {
    let hash = StoredPassword::for_mosquitto(password.as_bytes(), MosquittoForm::Sha512).expect("hashed");
    format!("{user}:{hash}\n")
}

/// A CONNECT of a user.
pub fn of_user(version: ProtocolVersion, client_id: &str, user: &str, password: &str) -> Connect {
    let mut asked = connect(version, client_id);
    asked.user_name = Some(user.to_owned());
    asked.password = Some(Bytes::copy_from_slice(password.as_bytes()));
    asked
}

const SETTINGS: &str = "allow_anonymous = false\nauth.password_file = \"@/passwords\"";

/// Whoever names users means users, as with mosquitto: also on this machine nobody gets in without a name, unless somebody says so.
///
/// Abuse: [anonymous]
#[test]
fn a_password_file_lets_nobody_in_without_a_user_name_unless_somebody_says_so() {
    let users = "auth.password_file = \"@/passwords\"";
    for (settings, reason) in [
        (users.to_owned(), ReasonCode::NotAuthorized),
        (format!("allow_anonymous = true\n{users}"), ReasonCode::Success),
        (String::from("session.receive_maximum = 10"), ReasonCode::Success),
    ] {
        let files = Files::new(&settings);
        files.write("passwords", &quick("ana", "x"));
        let broker = files.start();
        for version in [ProtocolVersion::V3_1_1, ProtocolVersion::V5] {
            assert_eq!(Client::open(&broker, connect(version, "c")).1.reason_code, reason, "{settings}");
            assert_eq!(Client::open(&broker, of_user(version, "c", "ana", "x")).1.reason_code, ReasonCode::Success);
        }
    }
}

/// Who looks for what somebody did finds where that one was.
#[test]
fn the_log_names_the_user_who_is_let_in() {
    let files = Files::new("allow_anonymous = true\nauth.password_file = \"@/passwords\"");
    files.write("passwords", &quick("ana", "x"));
    let broker = files.start();
    drop(Client::open(&broker, of_user(ProtocolVersion::V5, "meter", "ana", "x")));
    let line = broker.wait_for_log("\"connected\"");
    assert!(line.contains("\"user\":\"ana\""), "{line}");
    drop(Client::open(&broker, connect(ProtocolVersion::V5, "nobody")));
    let line = broker.wait_for_log("\"connected\"");
    assert!(!line.contains("\"user\""), "{line}");
}

fn reload(broker: &Broker) -> String {
    broker.hang_up();
    broker.wait_for_log("reload: ")
}

/// Abuse: [passwords]
#[test]
fn only_users_with_their_password_get_in() {
    let files = Files::new(SETTINGS);
    let argon2 = StoredPassword::argon2id(b"tabuh").expect("hashed");
    files.write("passwords", &format!("ana:{argon2}\n{}", quick("budi", "kentong")));
    let broker = files.start();
    for version in [ProtocolVersion::V3_1_1, ProtocolVersion::V5] {
        for (user, password, reason) in [
            ("ana", "tabuh", ReasonCode::Success),
            ("ana", "tabuh", ReasonCode::Success),
            ("ana", "kentong", ReasonCode::BadUserNameOrPassword),
            ("ana", "", ReasonCode::BadUserNameOrPassword),
            ("budi", "kentong", ReasonCode::Success),
            ("budi", "kentong ", ReasonCode::BadUserNameOrPassword),
            ("citra", "tabuh", ReasonCode::BadUserNameOrPassword),
            ("", "", ReasonCode::BadUserNameOrPassword),
        ] {
            let (mut client, connack) = Client::open(&broker, of_user(version, "c", user, password));
            assert_eq!(connack.reason_code, reason, "{user} {password}");
            if reason.is_error() {
                client.expect_closed();
            }
        }
        let (mut client, connack) = Client::open(&broker, connect(version, "c"));
        assert_eq!(connack.reason_code, ReasonCode::NotAuthorized);
        client.expect_closed();
    }
    let counted = |outcome: &str| format!("kentongan_authentications_total{{outcome=\"{outcome}\"}}");
    for (outcome, count) in [
        ("password", 2.0),
        ("remembered", 4.0),
        ("wrong_password", 6.0),
        ("unknown_user", 4.0),
        ("nothing_offered", 2.0),
    ] {
        broker.wait_for_metric(&counted(outcome), |value| value == count);
    }
}

/// Packets that stand behind the CONNECT of somebody whose password is still looked at are handled afterwards.
/// Abuse: [passwords]
#[test]
fn what_follows_connect_waits_for_the_password() {
    let files = Files::new(SETTINGS);
    files.write("passwords", &format!("ana:{}\n", StoredPassword::argon2id(b"tabuh").expect("hashed")));
    let broker = files.start();
    let mut client = Client::raw(&broker, ProtocolVersion::V5);
    client.send(&Packet::Connect(Box::new(of_user(ProtocolVersion::V5, "c", "ana", "tabuh"))));
    client.publish("a", "x", qos1(1));
    assert_eq!(client.expect_connack().reason_code, ReasonCode::Success);
    client.complete(qos1(1));
    // One that goes meanwhile harms nobody.
    let mut gone = Client::raw(&broker, ProtocolVersion::V5);
    gone.send(&Packet::Connect(Box::new(of_user(ProtocolVersion::V5, "gone", "ana", "nobody waits"))));
    drop(gone);
    client.publish_acknowledged("a", "x", qos1(2));
}

/// Abuse: [session-identity]
#[test]
fn a_session_is_its_users_alone() {
    let files = Files::new(SETTINGS);
    files.write("passwords", &(quick("ana", "a") + &quick("budi", "b")));
    let broker = files.start();
    for persistent in [false, true] {
        let of = |user: &str, password: &str| {
            let mut asked = of_user(ProtocolVersion::V5, "same", user, password);
            asked.clean_start = !persistent;
            asked.properties.session_expiry_interval = persistent.then_some(100);
            asked
        };
        let (mut ana, connack) = Client::open(&broker, of("ana", "a"));
        assert_eq!(connack.reason_code, ReasonCode::Success);
        for clean_start in [false, true] {
            let (mut budi, connack) = Client::open(&broker, Connect { clean_start, ..of("budi", "b") });
            assert!(connack.reason_code.is_error(), "not while she is there, even to begin anew");
            budi.expect_closed();
        }
        ana.expect_nothing();
        ana.disconnect();
        let (mut budi, connack) = Client::open(&broker, of("budi", "b"));
        assert_eq!(connack.reason_code.is_error(), persistent, "nor while her session waits for her");
        if persistent {
            budi.expect_closed();
            let (_, connack) = Client::open(&broker, of("ana", "a"));
            assert!(connack.session_present, "it is as it was");
        } else {
            budi.disconnect();
        }
    }
}

/// Abuse: [anonymous]
#[test]
fn a_new_password_file_changes_who_gets_in_and_who_stays() {
    let files = Files::new(SETTINGS);
    files.write("passwords", &[quick("ana", "a"), quick("budi", "b"), quick("citra", "c")].concat());
    let broker = files.start();
    let open = |user: &str, password: &str| Client::open(&broker, of_user(ProtocolVersion::V5, user, user, password));
    let [(mut ana, _), (mut budi, _), (mut citra, _)] =
        [("ana", "a"), ("budi", "b"), ("citra", "c")].map(|(user, password)| {
            let (client, connack) = open(user, password);
            assert_eq!(connack.reason_code, ReasonCode::Success);
            (client, connack)
        });
    let (mut again, connack) = Client::open(&broker, of_user(ProtocolVersion::V5, "budi-again", "budi", "b"));
    assert_eq!(connack.reason_code, ReasonCode::Success, "his password is remembered");
    // Citra's line is another one, with the same password.
    let kept = fs::read_to_string(files.path("passwords")).expect("a file");
    let kept = kept.lines().next().expect("a line").to_owned() + "\n";
    files.write("passwords", &[kept, quick("citra", "new")].concat());
    assert!(reload(&broker).contains("read again"));
    budi.expect_disconnect(ReasonCode::NotAuthorized);
    again.expect_disconnect(ReasonCode::NotAuthorized);
    citra.expect_disconnect(ReasonCode::NotAuthorized);
    ana.expect_nothing();
    for (user, password, reason) in [
        ("ana", "a", ReasonCode::Success),
        ("budi", "b", ReasonCode::BadUserNameOrPassword),
        ("citra", "c", ReasonCode::BadUserNameOrPassword),
        ("citra", "new", ReasonCode::Success),
    ] {
        assert_eq!(open(user, password).1.reason_code, reason, "{user}");
    }
    // What is wrong changes nothing.
    let whole = StoredPassword::argon2id(b"a").expect("hashed");
    let cut = format!("ana:{}\n", &whole[..whole.len() - 15]);
    for wrong in ["", "ana\n", "ana:secret\n", &cut] {
        files.write("passwords", wrong);
        let line = reload(&broker);
        assert!(line.contains("stays as it was") && !line.contains("secret"), "{line}");
        assert!(wrong != cut || line.contains("passwords, line 1: an argon2 hash of 21 bytes"), "{line}");
        assert_eq!(open("ana", "a").1.reason_code, ReasonCode::Success);
    }
    fs::remove_file(files.path("passwords")).expect("removed");
    assert!(reload(&broker).contains("stays as it was"));
    assert_eq!(open("ana", "a").1.reason_code, ReasonCode::Success);
}

/// Row 1 of the security list: whoever set a file up wants nobody in without it.
/// Abuse: [anonymous]
#[test]
fn a_file_that_cannot_be_used_refuses_to_start() {
    let files = Files::new(SETTINGS);
    for (text, expected) in [
        (None, "cannot read"),
        (Some(""), "there is no user in it"),
        (Some("# x\nana:planted-7\n"), "line 2: no hash of a kind that is known"),
        (
            Some("# x\nana:$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAA\n"),
            "line 2: an argon2 hash of 12 bytes",
        ),
    ] {
        match text {
            Some(text) => files.write("passwords", text),
            None => drop(fs::remove_file(files.path("passwords"))),
        }
        let output = run(&files.path("kentongan.toml"), &files.path("data"));
        assert!(output.contains("passwords") && output.contains(expected), "{output}");
        assert!(!output.contains("planted-7"), "{output}");
    }
}

/// What a broker that does not start has to say.
fn run(config: &Path, data: &Path) -> String {
    let output = broker_command()
        .args(["serve", "--http", "127.0.0.1:0", "--config"])
        .arg(config)
        .arg("--data-dir")
        .arg(data)
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// Row 9: neither passwords, right or wrong, nor hashes.
/// Abuse: [secrets]
#[test]
fn no_password_is_ever_logged() {
    let files = Files::new(&format!("{SETTINGS}\nlog.filter = \"trace\""));
    files.write("passwords", &quick("ana", "planted-right"));
    let mut broker = files.start();
    for password in ["planted-right", "planted-right", "planted-wrong"] {
        drop(Client::open(&broker, of_user(ProtocolVersion::V5, "c", "ana", password)));
    }
    drop(Client::open(&broker, of_user(ProtocolVersion::V5, "c", "citra", "planted-wrong")));
    broker.hang_up();
    let mut log = broker.logs_until("read again");
    let metrics = broker.http_get("/metrics").1;
    broker.stop_by(rustix::process::Signal::TERM);
    log.extend(broker.logs_until("\"stopped\""));
    let log = log.join("\n");
    assert!(log.contains("user name or password is wrong"), "{log}");
    let hash = fs::read_to_string(files.path("passwords")).expect("a file");
    let hash = hash.trim().rsplit('$').next().expect("a hash").to_owned();
    for secret in ["planted", &hash] {
        assert!(!log.contains(secret) && !metrics.contains(secret), "{secret} is in: {log}");
    }
}

/// More wait than may: whoever storms is refused, and others get in meanwhile.
/// Abuse: [passwords]
#[test]
fn a_storm_of_one_user_does_not_keep_others_out() {
    let settings = format!("{SETTINGS}\nauth.verify_threads = 1\nauth.verify_queue_max = 8");
    let files = Files::new(&settings);
    // Slow enough for a queue, and quick enough for all of it within the time that a CONNECT has, on a busy machine too.
    let form = MosquittoForm::Pbkdf2Sha512 { iterations: std::num::NonZeroU32::new(30_000).expect("not 0") };
    let slow = StoredPassword::for_mosquitto(b"tabuh", form).expect("hashed");
    files.write("passwords", &format!("ana:{slow}\nbudi:{slow}\n"));
    let broker = files.start();
    let mut storm: Vec<_> = (0..60)
        .map(|number| {
            let version = if number % 2 == 0 { ProtocolVersion::V5 } else { ProtocolVersion::V3_1_1 };
            let mut client = Client::raw(&broker, version);
            let asked = of_user(version, &format!("storm-{number}"), "ana", "wrong");
            client.send(&Packet::Connect(Box::new(asked)));
            client
        })
        .collect();
    broker.wait_for_metric("kentongan_authentications_total{outcome=\"busy\"}", |value| value > 0.0);
    let (_, connack) = Client::open(&broker, of_user(ProtocolVersion::V5, "budi", "budi", "tabuh"));
    assert_eq!(connack.reason_code, ReasonCode::Success);
    let reasons: Vec<_> = storm.iter_mut().map(|client| client.expect_connack().reason_code).collect();
    let busy = |reason: &&ReasonCode| matches!(reason, ReasonCode::ServerBusy | ReasonCode::ServerUnavailable);
    let refused = reasons.iter().filter(busy).count();
    assert!((1..60).contains(&refused), "{reasons:?}");
    let wrong = reasons.iter().filter(|&&reason| reason == ReasonCode::BadUserNameOrPassword).count();
    assert_eq!(refused + wrong, 60);
    assert_eq!(broker.metric("kentongan_authentications_total{outcome=\"busy\"}"), refused as f64);
}

/// All of a crowd have said CONNECT in time, and wait for their passwords to be verified longer than they had for that.
///
/// Abuse: [passwords]
#[test]
fn who_waits_for_its_password_to_be_verified_is_not_cut_off_for_being_slow() {
    const CROWD: usize = 120;
    let settings = format!("{SETTINGS}\nauth.verify_threads = 1");
    let files = Files::with_listener(&settings, "connect_timeout_seconds = 1");
    let argon2 = StoredPassword::argon2id(b"tabuh").expect("hashed");
    let users: String = (0..CROWD).map(|number| format!("user-{number}:{argon2}\n")).collect();
    files.write("passwords", &users);
    let broker = files.start();
    let began = Instant::now();
    let come = |number| {
        let mut client = Client::raw(&broker, ProtocolVersion::V5);
        let user = format!("user-{number}");
        client.send(&Packet::Connect(Box::new(of_user(ProtocolVersion::V5, &user, &user, "tabuh"))));
        client
    };
    let mut crowd: Vec<_> = (0..CROWD).map(come).collect();
    for client in &mut crowd {
        assert_eq!(client.expect_connack().reason_code, ReasonCode::Success, "after {:?}", began.elapsed());
    }
    assert!(began.elapsed() > Duration::from_secs(2), "nobody had to wait: {:?}", began.elapsed());
}

/// A listener says by what its clients show who they are, and whether some need not.
#[test]
fn a_listener_without_passwords_does_not_look_at_them() {
    let files = Files::with_listener(
        "allow_anonymous = true\nauth.password_file = \"@/passwords\"",
        "authentication = [\"certificate\"]\n[[listener]]\naddress = \"127.0.0.1:0\"\nauthentication = [\"password\"]",
    );
    files.write("passwords", &quick("ana", "a"));
    let broker = files.start();
    let asked = || of_user(ProtocolVersion::V5, "c", "ana", "wrong");
    assert_eq!(Client::open(&broker, asked()).1.reason_code, ReasonCode::Success, "nobody in particular");
    let mut other = Client::at(broker.next_listener(), ProtocolVersion::V5);
    other.send(&Packet::Connect(Box::new(asked())));
    assert_eq!(other.expect_connack().reason_code, ReasonCode::BadUserNameOrPassword);
}

fn sha256_mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

/// What a client of RFC 5802 answers to a challenge, and what it expects the broker to say then.
fn scram_answer(first_bare: &str, challenge: &str, password: &str) -> (String, String) {
    let part = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).expect("a part");
    let salt = BASE64.decode(part("s=")).expect("base64");
    let mut salted = [0; 32];
    let iterations = part("i=").parse().expect("a number");
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
    let client_key = sha256_mac(&salted, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, &client_key);
    let without_proof = format!("c=biws,r={}", part("r="));
    let signed = format!("{first_bare},{challenge},{without_proof}");
    let signature = sha256_mac(stored_key.as_ref(), signed.as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
    let server = sha256_mac(&sha256_mac(&salted, b"Server Key"), signed.as_bytes());
    (format!("{without_proof},p={}", BASE64.encode(proof)), format!("v={}", BASE64.encode(server)))
}

fn scram_auth(reason_code: ReasonCode, data: &str) -> Packet {
    let properties = AuthProperties {
        authentication_method: Some("SCRAM-SHA-256".to_owned()),
        authentication_data: Some(Bytes::copy_from_slice(data.as_bytes())),
        ..AuthProperties::default()
    };
    Packet::Auth(Auth { reason_code, properties })
}

/// Goes through an exchange on an open connection; the answer to it, and what the broker should say if it is good.
fn scram_again(client: &mut Client, user: &str, password: &str) -> (Packet, String) {
    let first_bare = format!("n={user},r=another");
    client.send(&scram_auth(ReasonCode::ReAuthenticate, &format!("n,,{first_bare}")));
    let Packet::Auth(auth) = client.receive() else { panic!("a challenge expected") };
    let (answer, expected) = scram_answer(&first_bare, &text(auth.properties.authentication_data), password);
    client.send(&scram_auth(ReasonCode::ContinueAuthentication, &answer));
    (client.receive(), expected)
}

fn text(data: Option<Bytes>) -> String {
    String::from_utf8(data.expect("data").to_vec()).expect("UTF-8")
}

/// Begins an exchange by CONNECT and answers the challenge; `client` has sent nothing yet.
pub fn scram(mut client: Client, user: &str, password: &str) -> (Client, Packet, String) {
    let first_bare = format!("n={user},r=clientnonce");
    let mut asked = connect(ProtocolVersion::V5, "c");
    asked.properties.authentication_method = Some("SCRAM-SHA-256".to_owned());
    asked.properties.authentication_data = Some(Bytes::from(format!("n,,{first_bare}")));
    client.send(&Packet::Connect(Box::new(asked)));
    let Packet::Auth(auth) = client.receive() else { panic!("a challenge expected") };
    let (answer, expected) = scram_answer(&first_bare, &text(auth.properties.authentication_data), password);
    client.send(&scram_auth(ReasonCode::ContinueAuthentication, &answer));
    let packet = client.receive();
    (client, packet, expected)
}

/// RFC 5802 over AUTH packets, and again on the open connection [MQTT-4.12.1-1].
#[test]
fn a_password_can_be_shown_without_sending_it() {
    let files = Files::new(SETTINGS);
    let scram_line = format!("ana:{}\n", StoredPassword::scram_sha256(b"tabuh").expect("hashed"));
    files.write("passwords", &(scram_line.clone() + &quick("budi", "b")));
    let broker = files.start();
    let raw = || Client::raw(&broker, ProtocolVersion::V5);
    let (mut ana, packet, expected) = scram(raw(), "ana", "tabuh");
    let Packet::ConnAck(connack) = packet else { panic!("CONNACK expected, got {packet:?}") };
    assert_eq!(connack.reason_code, ReasonCode::Success);
    assert_eq!(text(connack.properties.authentication_data), expected, "the broker knows it too");
    let (packet, expected) = scram_again(&mut ana, "ana", "tabuh");
    let Packet::Auth(auth) = packet else { panic!("AUTH expected, got {packet:?}") };
    assert_eq!((auth.reason_code, text(auth.properties.authentication_data)), (ReasonCode::Success, expected));
    // A wrong password, a user without such keys, and nobody: all alike.
    for (user, password) in [("ana", "kentong"), ("budi", "b"), ("citra", "tabuh")] {
        let (mut client, packet, _) = scram(raw(), user, password);
        let Packet::ConnAck(connack) = packet else { panic!("CONNACK expected, got {packet:?}") };
        assert_eq!(connack.reason_code, ReasonCode::NotAuthorized, "{user}");
        client.expect_closed();
    }
    let sent = of_user(ProtocolVersion::V3_1_1, "sent", "ana", "tabuh");
    assert_eq!(Client::open(&broker, sent).1.reason_code, ReasonCode::Success, "it may be sent as well");
    let wrong = of_user(ProtocolVersion::V5, "sent", "ana", "kentong");
    assert_eq!(Client::open(&broker, wrong).1.reason_code, ReasonCode::BadUserNameOrPassword);
    // Whoever came by it goes when the user is gone.
    ana.expect_nothing();
    files.write("passwords", &quick("budi", "b"));
    assert!(reload(&broker).contains("read again"));
    ana.expect_disconnect(ReasonCode::NotAuthorized);
}

/// [MQTT-4.12.1-2]: another user, however right the password is, does not get the session.
/// Abuse: [session-identity]
#[test]
fn nobody_becomes_another_user_by_authenticating_again() {
    let files = Files::new(SETTINGS);
    let line = StoredPassword::scram_sha256(b"tabuh").expect("hashed");
    files.write("passwords", &format!("ana:{line}\nbudi:{line}\n"));
    let broker = files.start();
    let (mut ana, packet, _) = scram(Client::raw(&broker, ProtocolVersion::V5), "ana", "tabuh");
    assert!(matches!(packet, Packet::ConnAck(_)), "{packet:?}");
    let (packet, _) = scram_again(&mut ana, "budi", "tabuh");
    match packet {
        Packet::Disconnect(disconnect) => assert_eq!(disconnect.reason_code, ReasonCode::NotAuthorized),
        other => panic!("DISCONNECT expected, got {other:?}"),
    }
    ana.expect_closed();
}

/// Whoever came without a user name goes when the settings let nobody in like that any more; users stay.
///
/// Abuse: [anonymous]
#[test]
fn anonymous_clients_are_closed_when_they_are_let_in_no_more() {
    let files = Files::new(&SETTINGS.replace("false", "true"));
    files.write("passwords", &quick("ana", "tabuh"));
    let broker = files.start();
    let mut nobody = Client::v5(&broker, "nobody");
    let mut ana = Client::accepted(&broker, of_user(ProtocolVersion::V5, "c", "ana", "tabuh"));
    reload(&broker);
    nobody.publish_acknowledged("t", "x", qos1(1));
    let settings = fs::read_to_string(files.path("kentongan.toml")).expect("a file");
    files.write("kentongan.toml", &settings.replace("allow_anonymous = true", "allow_anonymous = false"));
    reload(&broker);
    nobody.expect_disconnect(ReasonCode::NotAuthorized);
    ana.publish_acknowledged("t", "x", qos1(1));
}
