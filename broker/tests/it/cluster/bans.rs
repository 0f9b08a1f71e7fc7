//! Who is banned on one node is banned on all of them, and who is connected there is closed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use kentongan::auth::StoredPassword;

use super::nodes::{Cluster, Node, place};
use crate::support::*;
use crate::users::{self, Files, scram};

/// Where a client comes from that has an address of its own.
const FAR: [u8; 4] = [127, 9, 9, 9];

fn from_far(node: &Node) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((FAR, 0)).into()).expect("loopback is all ours");
    socket.connect(&node.address.into()).expect("the node listens");
    Client::on(socket.into(), ProtocolVersion::V5)
}

fn reason(node: &Node, asked: Connect) -> ReasonCode {
    node.open(asked).1.reason_code
}

fn named(client_id: &str) -> Connect {
    connect(ProtocolVersion::V5, client_id)
}

fn of_user(name: &str) -> Connect {
    Connect { user_name: Some(name.to_owned()), ..named("somebody") }
}

fn banned(cluster: &Cluster, asked: usize) -> Vec<String> {
    let bans = cluster.admin_json(asked, &["bans"]);
    let bans = bans["bans"].as_array().expect("a list").iter();
    bans.map(|ban| ban["who"].as_str().expect("a text").to_owned()).collect()
}

/// What all nodes recorded of an event: who, what and the result.
fn recorded(directory: &std::path::Path, event: &str) -> Vec<(Value, Value, Value)> {
    let mut found = Vec::new();
    for node in 1..=3 {
        let text = std::fs::read_to_string(directory.join(format!("audit{node}"))).expect("every node has one");
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            if line["event"] == event {
                found.push((line["who"].clone(), line["what"].clone(), line["result"].clone()));
            }
        }
    }
    found
}

fn ban(cluster: &Cluster, arguments: &[&str]) {
    let arguments: Vec<_> = ["ban"].iter().chain(arguments).copied().collect();
    cluster.admin(1, &arguments).expect("it is committed");
}

/// Abuse: [bans]
#[test]
fn a_ban_holds_on_every_node_within_a_second_and_closes_who_is_there() {
    let directory = TempDir::new().expect("a temporary directory");
    let audit = directory.path().join("audit");
    std::fs::create_dir(&audit).expect("a directory");
    let places = (1..=3).map(|number| directory.path().join(format!("n{number}"))).collect();
    let files = audit.clone();
    let mut cluster = Cluster::within(directory, places, move |index| {
        let file = files.join(format!("audit{}", index + 1)).to_str().expect("UTF-8").to_owned();
        vec![("KENTONGAN_LOG__AUDIT_FILE".to_owned(), file)]
    });
    let mut meter = cluster.nodes[0].client("meter");
    let mut bystander = cluster.nodes[2].client("bystander");
    let mut far = from_far(&cluster.nodes[2]);
    far.send(&Packet::Connect(Box::new(named("far"))));
    assert_eq!(far.expect_connack().reason_code, ReasonCode::Success);

    ban(&cluster, &["--client-id", "meter", "--reason", "stolen"]);
    let committed = Instant::now();
    meter.expect_disconnect(ReasonCode::AdministrativeAction);
    assert!(committed.elapsed() < Duration::from_millis(2500), "closed after {:?}", committed.elapsed());
    ban(&cluster, &["--user", "eve"]);
    ban(&cluster, &["--address", "127.9.0.0/16"]);
    let committed = Instant::now();
    far.expect_disconnect(ReasonCode::AdministrativeAction);
    std::thread::sleep(Duration::from_secs(1).saturating_sub(committed.elapsed()));
    for node in &cluster.nodes {
        assert_eq!(reason(node, named("meter")), ReasonCode::Banned, "at {}", node.name);
        assert_eq!(reason(node, of_user("eve")), ReasonCode::Banned);
        assert_eq!(reason(node, of_user("bob")), ReasonCode::Success);
        // Before it has said a word, and long before its time for that is up.
        let began = Instant::now();
        from_far(node).expect_closed();
        assert!(began.elapsed() < Duration::from_secs(5), "closed after {:?}", began.elapsed());
        let old = Connect { version: ProtocolVersion::V3_1_1, ..named("meter") };
        assert_eq!(reason(node, old), ReasonCode::NotAuthorized, "the nearest that MQTT 3.1.1 has");
    }
    bystander.expect_nothing();
    assert_eq!(banned(&cluster, 2), ["address:127.9.0.0/16", "client-id:meter", "user:eve"]);
    let table = cluster.admin(0, &["bans"]).expect("an answer");
    assert!(table.contains("for good") && table.contains("stolen"), "{table}");

    // It outlives the process that was told.
    cluster.nodes[0].kill();
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_ready();
    assert_eq!(reason(&cluster.nodes[0], named("meter")), ReasonCode::Banned);

    for who in [["--client-id", "meter"], ["--user", "eve"], ["--address", "127.9.0.0/16"]] {
        cluster.admin(2, &["unban", who[0], who[1]]).expect("it is lifted");
    }
    ban(&cluster, &["--client-id", "meter", "--seconds", "5"]);
    wait_for("its beginning", || reason(&cluster.nodes[1], named("meter")) == ReasonCode::Banned);
    wait_for("the end of it", || reason(&cluster.nodes[2], named("meter")) == ReasonCode::Success);
    assert!(banned(&cluster, 1).is_empty(), "what is over is not shown");

    cluster.admin(1, &["drain", "n3", "--wait-seconds", "0"]).expect("it is committed");
    cluster.admin(1, &["drain", "n3", "--undo"]).expect("it is committed");
    let recorded = |event| recorded(&audit, event);
    for event in ["drain", "undrain"] {
        assert!(recorded(event).iter().all(|(who, what, _)| who["operator"].is_string() && what["node"].is_string()));
        assert!(!recorded(event).is_empty(), "{event} is recorded");
    }
    wait_for("every refusal is recorded", || recorded("login").len() > 9);
    let bans = recorded("ban");
    assert!(
        bans.iter().any(|(who, what, result)| who["operator"].is_string()
            && what["subject"] == "client-id:meter"
            && what["reason"] == "stolen"
            && result == "done here"),
        "{bans:?}"
    );
    assert!(recorded("unban").iter().any(|(_, what, _)| what["subject"] == "user:eve"));
    let logins = recorded("login");
    assert!(logins.iter().any(|(who, ..)| who["user"] == "eve" && who["address"].is_string()), "{logins:?}");
    let of_meter = logins.iter().find(|(who, ..)| who["client_id"] == "meter").expect("it was refused");
    assert_eq!(of_meter.2, "refused: banned by the operator of this server");
}

/// By whatever it showed who it is; and who it is a client may say only when it proves it.
///
/// Abuse: [bans]
#[test]
fn a_banned_user_is_closed_and_does_not_come_in_without_a_user_name() {
    let files = Files::new("");
    let line = StoredPassword::scram_sha256(b"tabuh").expect("hashed");
    files.write("passwords", &format!("ana:{line}\nbudi:{line}\n"));
    let directory = TempDir::new().expect("a temporary directory");
    let place = directory.path().join("n1");
    let password_file = files.path("passwords").display().to_string();
    let cluster = Cluster::within(directory, vec![place], move |_| {
        vec![("KENTONGAN_AUTH__PASSWORD_FILE".to_owned(), password_file.clone())]
    });
    let (mut by_password, connack) = cluster.nodes[0].open(users::of_user(ProtocolVersion::V5, "a", "ana", "tabuh"));
    assert_eq!(connack.reason_code, ReasonCode::Success);
    cluster.admin(0, &["ban", "--user", "ana"]).expect("it is committed");
    by_password.expect_disconnect(ReasonCode::AdministrativeAction);
    let come = |user| match scram(Client::at(cluster.nodes[0].address, ProtocolVersion::V5), user, "tabuh").1 {
        Packet::ConnAck(connack) => connack.reason_code,
        other => panic!("CONNACK expected, got {other:?}"),
    };
    wait_for("the ban", || come("ana") == ReasonCode::Banned);
    assert_eq!(come("budi"), ReasonCode::Success);
}

#[test]
fn what_cannot_be_banned_is_refused_with_the_reason() {
    let cluster = Cluster::start_first_of(1, false);
    let refused = |arguments: &[&str]| cluster.admin(0, arguments).expect_err("it cannot be");
    assert!(refused(&["ban", "--address", "10.0.0.0/40"]).contains("must be an IP address"));
    assert!(refused(&["ban", "--user", &"x".repeat(2000)]).contains("1 to 1024 bytes"));
    assert!(refused(&["ban"]).contains("--client-id"), "whom?");
    assert!(refused(&["ban", "--user", "a", "--client-id", "b"]).contains("cannot be used with"));
    assert_eq!(cluster.admin(0, &["bans"]).expect("an answer"), "nobody is banned\n");
    for number in 0..3 {
        cluster.admin(0, &["ban", "--user", &number.to_string()]).expect("it is committed");
    }
    assert_eq!(banned(&cluster, 0), ["user:0", "user:1", "user:2"]);
}

/// Two devices of one name that come to different nodes: each node counts who was taken from it.
///
/// Abuse: [reconnect-storm]
#[test]
fn a_client_identifier_that_nodes_take_from_each_other_is_banned() {
    let settings = [("KENTONGAN_LIMITS__FLAP_TAKEOVERS_MAX", "3"), ("KENTONGAN_LIMITS__FLAP_WINDOW_SECONDS", "60")];
    let cluster = Cluster::advertised(3, &settings);
    let asked = connect(ProtocolVersion::V5, "twin");
    let mut holders = Vec::new();
    let mut refused = None;
    // Four times taken from each of two nodes; the ban holds where that happened.
    for round in 0..12 {
        let (holder, connack) = cluster.nodes[round % 2].open(asked.clone());
        holders.push(holder);
        if connack.reason_code == ReasonCode::Banned {
            refused = Some(round);
            break;
        }
        assert_eq!(connack.reason_code, ReasonCode::Success);
    }
    assert_eq!(refused, Some(8), "the first node was asked for the fifth time");
    assert_eq!(cluster.nodes[2].open(asked).1.reason_code, ReasonCode::Success, "nobody took it from this one");
}

/// Its settings of a cluster are no more than where it takes commands.
///
/// Abuse: [bans]
#[test]
fn a_node_that_is_alone_bans_too() {
    let at = SocketAddr::from(place()).to_string();
    let broker = Broker::with(&["--cluster", &at]);
    wait_for("readiness", || broker.http_get("/readyz").0 == 200);
    let mut meter = Client::accepted(&broker, named("meter-17"));
    let command = |arguments: &[&str]| {
        let asked = broker_command().arg("cluster").args(arguments).args(["--peer", &at]).output().expect("it runs");
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        String::from_utf8(asked.stdout).expect("UTF-8")
    };
    command(&["ban", "--client-id", "meter-17", "--reason", "stolen"]);
    meter.expect_disconnect(ReasonCode::AdministrativeAction);
    assert_eq!(Client::open(&broker, named("meter-17")).1.reason_code, ReasonCode::Banned);
    assert!(command(&["bans"]).contains("stolen"));
    command(&["unban", "--client-id", "meter-17"]);
    wait_for("the end of the ban", || Client::open(&broker, named("meter-17")).1.reason_code == ReasonCode::Success);
}
