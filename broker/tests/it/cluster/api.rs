//! The HTTP API answers for the whole cluster, from any node.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use kentongan::api::tokens::{Role, Token};

use super::nodes::{Cluster, GROUPS, Node};
use crate::support::*;
use crate::users::quick;

/// Tokens of each role.
pub(super) struct Keys {
    pub(super) viewer: Token,
    operator: Token,
    administrator: Token,
}

impl Keys {
    pub(super) fn draw() -> Self {
        Self { viewer: Token::draw(), operator: Token::draw(), administrator: Token::draw() }
    }

    fn write(&self, path: &Path) {
        let lines = [
            self.viewer.line("wayan", Role::Viewer),
            self.operator.line("made", Role::Operator),
            self.administrator.line("putu", Role::Administrator),
        ];
        std::fs::write(path, lines.join("\n")).expect("written");
    }
}

/// Three nodes that serve the API, and their directory, in which each has an audit log `audit1` and so on.
pub(super) fn cluster(keys: &Keys) -> Cluster {
    cluster_with(keys, |_, _| Vec::new())
}

/// The same with more settings for each, which may name files of the directory.
fn cluster_with(keys: &Keys, more: impl Fn(usize, &Path) -> Vec<(String, String)>) -> Cluster {
    let directory = TempDir::new().expect("a temporary directory");
    let files = directory.path().to_owned();
    keys.write(&files.join("tokens"));
    let places = (1..=3).map(|number| files.join(format!("n{number}"))).collect();
    Cluster::within(directory, places, move |index| {
        let file = |name: &str| files.join(name).to_str().expect("UTF-8").to_owned();
        let mut settings = vec![
            ("KENTONGAN_API__ADDRESS".to_owned(), "127.0.0.1:0".to_owned()),
            ("KENTONGAN_API__TOKENS_FILE".to_owned(), file("tokens")),
            ("KENTONGAN_LOG__AUDIT_FILE".to_owned(), file(&format!("audit{}", index + 1))),
        ];
        settings.extend(more(index, &files));
        settings
    })
}

/// Status and body of an answer. As an operator would, it asks again while a part of the cluster has no leader.
pub(super) fn ask(node: &Node, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (status, answer) = ask_once(node, token, method, path, body);
        if status != 503 || Instant::now() >= deadline {
            return (status, answer);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ask_once(node: &Node, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let address = node.said_address("listening for operators").expect("it serves the API");
    let mut stream = TcpStream::connect(address).expect("it listens");
    // What must be decided has some seconds for that.
    stream.set_read_timeout(Some(2 * DEADLINE)).expect("a socket");
    let body = body.map(Value::to_string).unwrap_or_default();
    let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let length = body.len();
    write!(
        stream,
        "{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    let is_problem = head.to_lowercase().contains("content-type: application/problem+json");
    assert_eq!(is_problem, status >= 400, "{head}");
    (status, if body.is_empty() { Value::Null } else { serde_json::from_str(body).expect("JSON") })
}

pub(super) fn get(node: &Node, keys: &Keys, path: &str) -> Value {
    let (status, answer) = ask(node, keys.viewer.expose(), "GET", path, None);
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

/// All rows of a list, a page at a time, from one node after another.
fn all(cluster: &Cluster, keys: &Keys, path: &str, limit: usize) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut cursor = String::new();
    for turn in 0.. {
        let mut page = Value::Null;
        wait_for("every part answers", || {
            page = get(&cluster.nodes[turn % 3], keys, &format!("{path}limit={limit}{cursor}"));
            page["unavailable"] == json!([])
        });
        let data = page["data"].as_array().expect("a list");
        assert!(data.len() <= limit, "{page}");
        rows.extend(data.iter().cloned());
        match page["meta"]["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    rows
}

fn names(rows: &[Value]) -> BTreeSet<&str> {
    rows.iter().map(|row| row["clientid"].as_str().expect("a text")).collect()
}

#[test]
fn clients_of_all_nodes_are_listed_from_any_a_page_at_a_time() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let clients: Vec<_> = (0..23).map(|number| cluster.nodes[number % 3].client(&format!("meter-{number}"))).collect();
    let expected: Vec<_> = (0..23).map(|number| format!("meter-{number}")).collect();
    for limit in [1, 7, 23, 1000] {
        let rows = all(&cluster, &keys, "/clients?", limit);
        assert_eq!(rows.len(), 23, "each of them once");
        assert_eq!(names(&rows), expected.iter().map(String::as_str).collect());
    }
    let rows = all(&cluster, &keys, "/clients?like_clientid=meter-1&", 4);
    assert_eq!(rows.len(), 11);
    let second = &cluster.nodes[1];
    let rows = all(&cluster, &keys, &format!("/clients?node={}&", second.name), 100);
    assert_eq!(rows.len(), 8);
    assert!(rows.iter().all(|row| row["node"] == second.name.as_str() && row["ip_address"] == "127.0.0.1"), "{rows:?}");
    assert_eq!(all(&cluster, &keys, "/clients?username=nobody&", 5), [] as [Value; 0]);
    let (status, problem) = ask(second, keys.viewer.expose(), "GET", "/clients?node=nowhere", None);
    assert_eq!((status, problem["code"].as_str()), (404, Some("NOT_FOUND")));
    drop(clients);
}

/// Abuse: [api]
#[test]
fn nobody_is_heard_without_a_token_and_wrong_ones_are_few() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let node = &cluster.nodes[0];
    assert_eq!(ask(node, "", "GET", "/clients", None).0, 401);
    let statuses: Vec<_> = (0..12).map(|_| ask(node, "kentongan_wrong", "GET", "/clients", None).0).collect();
    assert_eq!(statuses[..10], [401; 10]);
    assert_eq!(statuses[10..], [429; 2]);
    assert_eq!(ask(node, keys.viewer.expose(), "GET", "/clients", None).0, 200, "a good one is heard all the same");
    for (path, code) in
        [("/nothing", 404), ("/clients?limit=0", 400), ("/clients?limit=x", 400), ("/clients?cursor=x", 400)]
    {
        assert_eq!(ask(node, keys.viewer.expose(), "GET", path, None).0, code, "{path}");
    }
    assert_eq!(ask(node, keys.viewer.expose(), "PUT", "/clients", None).0, 405);
    let counted = node.counters("kentongan_api_requests_total");
    let counted = |outcome: &str| counted.iter().find(|(name, _)| name == outcome).map(|(_, count)| *count);
    assert_eq!(counted("answered"), Some(1));
    assert_eq!((counted("unauthorized"), counted("refused")), (Some(13), Some(3)));
    assert_eq!(ask(node, "", "GET", "/openapi.json", None).1["info"]["title"], "Kentongan");
}

fn act(node: &Node, token: &Token, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    ask(node, token.expose(), method, path, body)
}

/// Abuse: [api]
#[test]
fn an_operator_kicks_and_bans_on_any_node_and_a_viewer_does_not() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
    let mut meter = third.client("meter/7");
    assert_eq!(get(first, &keys, "/clients/meter%2F7")["node"], third.name.as_str());
    assert_eq!(act(first, &keys.viewer, "DELETE", "/clients/meter%2F7", None).0, 403);
    let body = json!({ "as": "clientid", "who": "meter/7", "reason": "x" });
    assert_eq!(act(first, &keys.viewer, "POST", "/banned", Some(&body)).0, 403);
    assert_eq!(act(first, &keys.operator, "POST", "/reload", None).0, 403);
    wait_for("that is on record", || first.said("the role does not go that far"));
    let long = json!({ "as": "clientid", "who": "x", "reason": "r".repeat(257) });
    assert_eq!(act(first, &keys.operator, "POST", "/banned", Some(&long)).0, 400);
    // What a client may not publish for its bounds, or because it is the broker's, nobody may.
    let nested = "$delayed/0/$delayed/0/x";
    for topic in ["$SYS/x", "$delayed/0/$SYS/broker/version", "$delayed/99999999999/x", nested, &"l/".repeat(200)] {
        let message = json!({ "topic": topic, "payload": "x", "retain": true });
        let (status, answer) = act(first, &keys.operator, "POST", "/publish", Some(&message));
        assert!((400..500).contains(&status), "{topic}: {status} {answer}");
    }
    for (topic, wrong) in [
        ("", "it is empty"),
        ("a/+/b", "a topic name has no wildcards"),
        ("a/#", "a topic name has no wildcards"),
        ("a\0b", "it contains U+0000"),
        (&"x".repeat(65_536), "it is longer than 65535 bytes"),
        ("$SYS/x", "$SYS is the broker's own"),
        (&"l/".repeat(200), "more levels than `session.topic_levels_max`"),
        (nested, "$delayed/SECONDS/TOPIC"),
    ] {
        let message = json!({ "topic": topic, "payload": "x" });
        let (status, answer) = act(first, &keys.operator, "POST", "/publish", Some(&message));
        assert_eq!((status, answer["code"].as_str()), (400, Some("BAD_REQUEST")), "{wrong}: {answer}");
        let detail = answer["detail"].as_str().expect("a text");
        assert!(detail.starts_with("`topic`: ") && detail.contains(wrong), "{detail}");
    }
    assert_eq!(act(first, &keys.operator, "POST", "/publish", Some(&json!({ "topic": "a/b", "payload": "x" }))).0, 202);
    meter.expect_nothing();
    assert_eq!(act(first, &keys.operator, "DELETE", "/clients/meter%2F7", None).0, 204);
    match meter.receive() {
        Packet::Disconnect(disconnect) => assert_eq!(disconnect.reason_code, ReasonCode::AdministrativeAction),
        packet => panic!("DISCONNECT expected, got {packet:?}"),
    }
    wait_for("it is gone", || ask(second, keys.viewer.expose(), "GET", "/clients/meter%2F7", None).0 == 404);
    assert_eq!(act(second, &keys.operator, "POST", "/banned", Some(&body)).0, 200);
    wait_for("all know", || {
        cluster.nodes.iter().all(|node| get(node, &keys, "/banned")["data"][0]["who"] == "meter/7")
    });
    assert_eq!(act(third, &keys.operator, "DELETE", "/banned/clientid/meter%2F7", None).0, 204);
    wait_for("all know", || cluster.nodes.iter().all(|node| get(node, &keys, "/banned")["meta"]["count"] == 0));
}

/// A client that publishes is not read any more; whoever asks here is told to ask again.
#[test]
fn what_is_published_without_a_majority_is_bounded() {
    let keys = Keys::draw();
    let mut cluster = cluster(&keys);
    let message = |topic: &str| json!({ "topic": topic, "payload": "x".repeat(500_000), "qos": 1, "retain": true });
    let publish = |cluster: &Cluster, topic: &str| {
        ask_once(&cluster.nodes[0], keys.operator.expose(), "POST", "/publish", Some(&message(topic))).0
    };
    let group = cluster.group_of("t");
    let elsewhere = (0..).map(|number| format!("u{number}")).find(|topic| cluster.group_of(topic) != group);
    let elsewhere = elsewhere.expect("there are several groups");
    cluster.nodes[1..].iter_mut().for_each(Node::kill);
    let statuses: Vec<_> = (0..60).map(|_| publish(&cluster, "t")).collect();
    let taken = statuses.iter().filter(|&&status| status == 202).count();
    assert!((1..=20).contains(&taken) && statuses.ends_with(&[503]), "{statuses:?}");
    wait_for("its group is known to be silent, and no other is", || publish(&cluster, &elsewhere) == 202);
    assert_eq!(publish(&cluster, "t"), 503);
    cluster.nodes[1..].iter_mut().for_each(Node::spawn);
    wait_for("all is taken again", || publish(&cluster, "t") == 202);
}

#[test]
fn sessions_subscriptions_and_retained_messages_are_seen_from_any_node() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let mut sessions = Vec::new();
    for number in 0..9 {
        let (mut client, _) = cluster.nodes[number % 3].persistent(&format!("s{number}"));
        client.subscribe(&format!("plant/{number}"), QoS::AtLeastOnce);
        if number < 4 {
            client.disconnect();
        } else {
            sessions.push(client);
        }
    }
    let node = &cluster.nodes[1];
    let expected: Vec<_> = (0..9).map(|number| format!("s{number}")).collect();
    for limit in [1, 4, 100] {
        let rows = all(&cluster, &keys, "/sessions?", limit);
        assert_eq!(rows.len(), 9);
        assert_eq!(names(&rows), expected.iter().map(String::as_str).collect());
    }
    wait_for("four are away", || all(&cluster, &keys, "/sessions?connected=false&", 3).len() == 4);
    assert_eq!(get(node, &keys, "/sessions/s3")["subscriptions"][0]["topic"], "plant/3");
    assert_eq!(names(&all(&cluster, &keys, "/subscriptions?", 2)), ["s4", "s5", "s6", "s7", "s8"].into());
    assert_eq!(all(&cluster, &keys, "/subscriptions?match_topic=plant/5&", 2).len(), 1);
    for number in 0..9 {
        let body = json!({ "topic": format!("plant/{number}"), "payload": "eA==", "payload_encoding": "base64", "qos": 1, "retain": true });
        assert_eq!(act(&cluster.nodes[number % 3], &keys.operator, "POST", "/publish", Some(&body)).0, 202);
    }
    assert_eq!(sessions[0].expect_publish().payload, "x");
    wait_for("all are retained", || all(&cluster, &keys, "/retained?", 2).len() == 9);
    assert_eq!(get(node, &keys, "/retained/plant%2F8")["payload"], "eA==");
    assert_eq!(act(node, &keys.operator, "DELETE", "/retained/plant%2F8", None).0, 204);
    assert_eq!(act(&cluster.nodes[0], &keys.viewer, "GET", "/retained/plant%2F8", None).0, 404);
    wait_for("one waits", || get(node, &keys, "/sessions/s0")["mqueue_len"] == 1);
}

/// Whoever asks for a list waits once for the nodes that say nothing, and not for each of the groups that they lead.
#[test]
fn a_list_waits_once_for_those_who_do_not_answer() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    wait_for("each leads some", || {
        (0..GROUPS).map(|group| cluster.leader_of_group(group)).collect::<BTreeSet<_>>().len() == 3
    });
    cluster.nodes[1].pause();
    cluster.nodes[2].pause();
    let (node, token) = (&cluster.nodes[0], keys.viewer.expose());
    // Users are asked for at all nodes at once, and each may take longer.
    let paths = ["/sessions", "/retained?topic=%23", "/clients", "/subscriptions", "/users"];
    std::thread::scope(|scope| {
        let asked = paths.map(|path| {
            scope.spawn(move || {
                let began = Instant::now();
                (path, ask_once(node, token, "GET", path, None), began.elapsed())
            })
        });
        for answer in asked {
            let (path, (status, page), took) = answer.join().expect("it is answered");
            assert_eq!((status, &page["meta"]["hasnext"]), (200, &json!(false)), "{page}");
            assert!(!page["unavailable"].as_array().expect("a list").is_empty(), "{page}");
            let most = Duration::from_secs(if path == "/users" { 8 } else { 4 });
            assert!(took < most, "{path} took {took:?}");
        }
    });
}

/// Also what this node took for decided already: a majority may have decided otherwise since.
#[test]
fn without_a_majority_nothing_is_said_to_be_committed() {
    let keys = Keys::draw();
    let mut cluster = cluster(&keys);
    let known = json!({ "as": "username", "who": "eve" });
    assert_eq!(act(&cluster.nodes[0], &keys.operator, "POST", "/banned", Some(&known)).0, 200);
    wait_for("it is known", || get(&cluster.nodes[0], &keys, "/banned")["meta"]["count"] == 1);
    let [drained, other] = [2, 1].map(|node| format!("/nodes/{}/drain", cluster.nodes[node].name));
    assert_eq!(act(&cluster.nodes[0], &keys.administrator, "POST", &drained, None).0, 200);
    wait_for("that is known too", || {
        let nodes = get(&cluster.nodes[0], &keys, "/nodes");
        nodes["data"].as_array().expect("a list").iter().any(|row| row["drains"] == true)
    });
    wait_for("the first leads some", || (0..GROUPS).any(|group| cluster.leader_of_group(group) == 0));
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let node = &cluster.nodes[0];
    wait_for("nobody leads here", || {
        get(node, &keys, "/groups")["data"]
            .as_array()
            .is_some_and(|rows| rows.iter().all(|row| row["leader"].is_null()))
    });
    let sessions = get(node, &keys, "/sessions");
    let missing = sessions["unavailable"].as_array().expect("a list");
    let is_said = |row: &Value| {
        let group = row["node"].as_str().expect("which group");
        row["detail"] == format!("{group} has no leader that this node knows: a majority of its nodes must be up")
    };
    assert!(missing.len() == usize::from(GROUPS) && missing.iter().any(is_said), "{sessions}");
    let new = json!({ "as": "clientid", "who": "meter" });
    let asked = [
        ("POST", "/banned", Some(&new)),
        ("POST", "/banned", Some(&known)),
        ("DELETE", "/banned/clientid/nobody", None),
        ("POST", &drained, None),
        ("DELETE", &other, None),
    ];
    let token = keys.administrator.expose();
    std::thread::scope(|scope| {
        let answers =
            asked.map(|(method, path, body)| scope.spawn(move || (method, ask_once(node, token, method, path, body))));
        for answer in answers {
            let (method, (status, problem)) = answer.join().expect("it is answered");
            assert_eq!((status, problem["code"].as_str()), (503, Some("UNAVAILABLE")), "{method}: {problem}");
            assert!(problem["detail"].as_str().is_some_and(|text| text.starts_with("it is not done: ")), "{problem}");
        }
    });
    assert_eq!(get(node, &keys, "/banned")["meta"]["count"], 1);
}

/// What an operator did, by the audit log of a node.
fn audited(cluster: &Cluster, node: usize, event: &str) -> Vec<(Value, Value)> {
    let file = cluster.nodes[node].data_dir.with_file_name(format!("audit{}", node + 1));
    let text = std::fs::read_to_string(file).expect("an audit log");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let lines = lines.filter(|line| line["event"] == event && line["who"]["api"] == "made");
    lines.map(|line| (line["what"].clone(), line["result"].clone())).collect()
}

#[test]
fn a_session_is_ended_from_any_node_with_what_it_subscribes_to_and_what_waits() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
    let (mut here, _) = third.persistent("here");
    here.subscribe("plant/#", QoS::AtLeastOnce);
    let (mut away, _) = second.persistent("away");
    away.subscribe("plant/#", QoS::AtLeastOnce);
    away.disconnect();
    let mut publisher = first.client("publisher");
    publisher.publish_acknowledged("plant/1", "x", qos1(1));
    assert_eq!(here.expect_publish().payload, "x");
    wait_for("it waits", || get(first, &keys, "/sessions/away")["mqueue_len"] == 1);

    assert_eq!(act(first, &keys.viewer, "DELETE", "/sessions/here", None).0, 403);
    assert_eq!(act(first, &keys.operator, "DELETE", "/sessions/publisher", None).0, 404, "it ends with its connection");
    here.expect_nothing();
    for client_id in ["here", "away"] {
        assert_eq!(act(first, &keys.operator, "DELETE", &format!("/sessions/{client_id}"), None).0, 204);
        for node in &cluster.nodes {
            assert_eq!(ask(node, keys.viewer.expose(), "GET", &format!("/sessions/{client_id}"), None).0, 404);
        }
        assert_eq!(act(second, &keys.operator, "DELETE", &format!("/sessions/{client_id}"), None).0, 404);
    }
    here.expect_disconnect(ReasonCode::AdministrativeAction);
    assert_eq!(act(first, &keys.viewer, "GET", "/clients/here", None).0, 404);

    publisher.publish_acknowledged("plant/1", "for nobody", qos1(2));
    for (node, client_id) in [(first, "here"), (third, "away")] {
        let (mut client, resumed) = node.persistent(client_id);
        assert!(!resumed, "{client_id} begins anew");
        client.expect_nothing();
        client.disconnect();
    }
    let done = |client_id: &str| (json!({ "client_id": client_id }), Value::from("done"));
    wait_for("both are recorded", || {
        let audited = audited(&cluster, 0, "discard session");
        audited.len() == 3 && audited[1..] == [done("here"), done("away")]
    });
}

/// A client that is always back at once: each time it is told to go first, and what it has then is a new session.
#[test]
fn a_session_is_ended_although_its_client_comes_back_at_once() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let stop = AtomicBool::new(false);
    let coming = AtomicUsize::new(0);
    let is_anew = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut anew = 0;
            for turn in 0.. {
                let (mut client, connack) = cluster.nodes[turn % 3].open(stubborn());
                match connack.reason_code {
                    ReasonCode::Success => {}
                    // The operator's request came while this one waited.
                    ReasonCode::ServerUnavailable | ReasonCode::ServerBusy | ReasonCode::UnspecifiedError => {
                        std::thread::sleep(Duration::from_millis(20));
                        continue;
                    }
                    other => panic!("no reason to refuse: {other:?}"),
                }
                anew += usize::from(!connack.session_present);
                coming.fetch_add(1, Ordering::Relaxed);
                while client.receive_within(Duration::from_millis(20)).is_none() {
                    if stop.load(Ordering::Relaxed) {
                        return anew;
                    }
                }
            }
            unreachable!("it is told to stop")
        });
        let (mut turn, mut ended) = (0, 0);
        while ended < 6 {
            wait_for("it is back", || coming.load(Ordering::Relaxed) > turn);
            let (status, problem) = act(&cluster.nodes[turn % 3], &keys.operator, "DELETE", "/sessions/stubborn", None);
            // It may come between the two steps of this request, which then finds the new one.
            assert!(status == 204 || status == 404, "{problem}");
            ended += u8::from(status == 204);
            turn += 1;
        }
        stop.store(true, Ordering::Relaxed);
        client.join().expect("its connections work")
    });
    assert!(is_anew >= 6, "ended {is_anew} times");
}

fn stubborn() -> Connect {
    let mut asked = connect(ProtocolVersion::V5, "stubborn");
    asked.clean_start = false;
    asked.properties.session_expiry_interval = Some(3600);
    asked
}

#[test]
fn users_of_all_nodes_are_listed_a_page_at_a_time_and_without_their_passwords() {
    let keys = Keys::draw();
    let cluster = cluster_with(&keys, |index, files| {
        let mut text: String = (0..25).map(|number| quick(&format!("user-{number:02}"), "x")).collect();
        if index == 2 {
            text += &quick("only-here", "x");
        }
        let file = files.join(format!("passwords{index}"));
        std::fs::write(&file, text).expect("written");
        vec![("KENTONGAN_AUTH__PASSWORD_FILE".to_owned(), file.to_str().expect("UTF-8").to_owned())]
    });
    for limit in [1, 7, 1000] {
        let rows = all(&cluster, &keys, "/users?", limit);
        let found: Vec<_> = rows.iter().map(|row| row["username"].as_str().expect("a text")).collect();
        let mut expected = vec!["only-here".to_owned()];
        expected.extend((0..25).map(|number| format!("user-{number:02}")));
        assert_eq!(found, expected);
        assert_eq!((&rows[0]["nodes"], &rows[1]["nodes"]), (&json!(["n3"]), &json!(["n1", "n2", "n3"])));
    }
    let page = get(&cluster.nodes[0], &keys, "/users?like_username=user-1&limit=100");
    assert_eq!(page["meta"]["count"], 10);
    let row =
        json!({ "username": "user-10", "source": "password_file", "algorithm": "sha512", "nodes": ["n1", "n2", "n3"] });
    assert_eq!(page["data"][0], row, "and no hash");
}

#[test]
fn nodes_are_shown_drained_and_told_what_to_log() {
    let keys = Keys::draw();
    let cluster = cluster(&keys);
    let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
    let nodes = get(first, &keys, "/nodes");
    let rows = nodes["data"].as_array().expect("a list");
    assert!(rows.len() == 3 && rows.iter().all(|row| row["node_status"] == "running"), "{nodes}");
    wait_for("all groups are led", || {
        let groups = get(second, &keys, "/groups");
        let rows = groups["data"].as_array().expect("a list");
        rows.len() == 17 && rows.iter().all(|row| row["leader"].is_string())
    });
    let path = format!("/nodes/{}/drain", third.name);
    assert_eq!(act(first, &keys.administrator, "POST", &path, None).0, 200);
    wait_for("it is drained", || {
        let nodes = get(second, &keys, "/nodes");
        let rows = nodes["data"].as_array().expect("a list").clone();
        rows.iter().any(|row| row["node"] == third.name.as_str() && row["drains"] == true)
    });
    assert_eq!(act(second, &keys.administrator, "DELETE", &path, None).0, 200);
    let reloaded = act(first, &keys.administrator, "POST", "/reload", None).1;
    assert!(reloaded["data"].as_array().expect("a list").iter().all(|row| row["applied"] == true), "{reloaded}");
    let filter = json!({ "filter": "debug" });
    assert_eq!(act(first, &keys.administrator, "PUT", &format!("/log?node={}", third.name), Some(&filter)).0, 200);
    let logs = get(second, &keys, "/log");
    let debug = logs["data"].as_array().expect("a list").iter().filter(|row| row["filter"] == "debug");
    assert_eq!(debug.count(), 1, "{logs}");
    let wrong = json!({ "filter": "=" });
    assert_eq!(act(first, &keys.administrator, "PUT", "/log", Some(&wrong)).0, 400);
}
