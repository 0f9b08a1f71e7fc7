//! The HTTP API answers for the whole cluster, from any node.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use kentongan::api::tokens::{Role, Token};

use super::nodes::{Cluster, Node};
use crate::support::*;

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
    let directory = TempDir::new().expect("a temporary directory");
    let files = directory.path().to_owned();
    keys.write(&files.join("tokens"));
    let places = (1..=3).map(|number| files.join(format!("n{number}"))).collect();
    Cluster::within(directory, places, move |index| {
        let file = |name: &str| files.join(name).to_str().expect("UTF-8").to_owned();
        vec![
            ("KENTONGAN_API__ADDRESS".to_owned(), "127.0.0.1:0".to_owned()),
            ("KENTONGAN_API__TOKENS_FILE".to_owned(), file("tokens")),
            ("KENTONGAN_LOG__AUDIT_FILE".to_owned(), file(&format!("audit{}", index + 1))),
        ]
    })
}

/// Status and body of an answer.
pub(super) fn ask(node: &Node, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let address = node.said_address("listening for operators").expect("it serves the API");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
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
        let page = get(&cluster.nodes[turn % 3], keys, &format!("{path}limit={limit}{cursor}"));
        assert_eq!(page["unavailable"], Value::Array(Vec::new()), "{page}");
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
    assert_eq!(ask(node, "", "GET", "/openapi.json", None).1["info"]["title"], "Kentongan");
}
