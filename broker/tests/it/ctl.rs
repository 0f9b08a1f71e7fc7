//! `kentongan ctl` against a node that is alone.

use std::io::{BufRead, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};

use kentongan::api::tokens::{Role, Token};
use kentongan_proto::mqtt::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

/// A broker with an API, and a token of an operator in a file.
struct Node {
    broker: Broker,
    api: SocketAddr,
    files: TempDir,
}

impl Node {
    fn start() -> Self {
        Self::start_for(Role::Operator)
    }

    /// With a token of that role.
    fn start_for(role: Role) -> Self {
        let files = TempDir::new().expect("a temporary directory");
        let token = Token::draw();
        std::fs::write(files.path().join("tokens"), token.line("made", role)).expect("written");
        std::fs::write(files.path().join("token"), token.expose()).expect("written");
        let settings = format!(
            "[api]\naddress = \"127.0.0.1:0\"\ntokens_file = {:?}\n[log]\naudit_file = {:?}\n[[listener]]\naddress = \"127.0.0.1:0\"\n",
            files.path().join("tokens"),
            files.path().join("audit"),
        );
        let broker = Broker::with_settings(&settings);
        let api = broker.api.expect("it serves the API");
        Self { broker, api, files }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = broker_command();
        command.args(["ctl", "--url", &format!("http://{}", self.api), "--token-file"]);
        command.arg(self.files.path().join("token")).args(line.split(' '));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What it prints, or complains of.
    fn ctl(&self, line: &str) -> Result<String, String> {
        let output = self.command(line).output().expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}

/// `kentongan ctl trace`, as it runs.
struct Trace {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Trace {
    /// Has begun.
    fn begin(node: &Node, line: &str) -> Self {
        let mut child = node.command(&format!("trace {line}")).spawn().expect("it runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut first = String::new();
        lines.read_line(&mut first).expect("a line");
        assert!(first.contains("trace.begun"), "{first}");
        Self { child, lines }
    }

    /// Up to a line with `text`.
    fn until(&mut self, text: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|line: &String| !line.contains(text)) {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).expect("a line") > 0, "{text} never came: {seen:?}");
            seen.push(line.trim_end().to_owned());
        }
        seen
    }

    fn ended(mut self) -> (ExitStatus, String) {
        let mut errors = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("text");
        (self.child.wait().expect("it ends"), errors)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_trace_is_printed_as_it_comes_and_ends_with_its_reader() {
    let node = Node::start();
    let mut trace = Trace::begin(&node, "--topic t/# --payload 3");
    let mut lamp = Client::v5(&node.broker, "lamp");
    lamp.subscribe("t/#", QoS::AtLeastOnce);
    // One at a time, each seen before the next.
    for (number, payload) in [(1, "hello"), (2, "again")] {
        lamp.publish("t/1", payload, qos1(number));
        let lines = trace.until("publish.sent");
        let sent = lines.last().expect("it has come");
        let shown = &payload[..3];
        assert!(sent.ends_with(&format!("bytes=5 payload={shown} qos=1 retain=no topic=t/1")), "{sent}");
        assert!(sent.contains(" publish.sent lamp "), "{sent}");
    }
    trace.signal(Signal::INT);
    let (status, errors) = trace.ended();
    assert_eq!((status.code(), &*errors), (Some(0), ""));
    // Nodes end a trace that nobody reads: there is room for as many others as there may be.
    wait_for("room for eight more", || {
        let traces: Vec<_> = (0..8).map(|number| node.command(&format!("trace --client c{number}")).spawn()).collect();
        let mut begun = 0;
        for trace in traces {
            let mut trace = trace.expect("it runs");
            let mut line = String::new();
            BufReader::new(trace.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line, or none");
            begun += usize::from(line.contains("trace.begun"));
            kill_process(Pid::from_child(&trace), Signal::TERM).expect("our own child");
            assert!(!line.is_empty() || !trace.wait().expect("it ends").success());
            let _ = trace.wait();
        }
        begun == 8
    });
}

#[test]
fn a_trace_ends_when_its_time_is_over_and_says_why_there_is_none() {
    let node = Node::start();
    let lines = node.ctl("trace --client lamp --seconds 1 --json").expect("it ends well");
    let begun: Value = serde_json::from_str(&lines).expect("one line of JSON");
    assert_eq!((&begun["event"], &begun["seconds"]), (&"trace.begun".into(), &1.into()));
    let refused = node.ctl("trace --topic a/#/b").expect_err("no filter");
    assert!(refused.contains("that is no topic filter") && refused.contains("400"), "{refused}");
    assert!(node.ctl("trace").is_err() && node.ctl("trace --client a --topic b").is_err());

    // Nobody says that it is over: the node is gone.
    let trace = Trace::begin(&node, "--client lamp");
    drop(node);
    let (status, errors) = trace.ended();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("broke off"), "{errors}");
}

/// A node that is in no cluster keeps sessions all the same.
#[test]
fn a_session_is_ended_on_a_node_that_is_alone() {
    let node = Node::start();
    let mut asked = connect(ProtocolVersion::V5, "lamp");
    asked.properties.session_expiry_interval = Some(3600);
    asked.clean_start = false;
    for is_there in [true, false] {
        let (mut lamp, connack) = Client::open(&node.broker, asked.clone());
        assert!(!connack.session_present);
        lamp.subscribe("t", QoS::AtLeastOnce);
        let lamp = match is_there {
            true => Some(lamp),
            false => {
                lamp.disconnect();
                None
            }
        };
        assert_eq!(node.ctl("sessions discard lamp").as_deref(), Ok("the session of lamp has ended\n"));
        if let Some(mut lamp) = lamp {
            lamp.expect_disconnect(ReasonCode::AdministrativeAction);
        }
        let list = node.ctl("sessions list").expect("a list");
        assert_eq!(list.lines().count(), 1, "{list}");
        node.broker.wait_for_metric("kentongan_sessions", |sessions| sessions == 0.0);
    }
    let refused = node.ctl("sessions discard lamp").expect_err("there is none");
    assert!(refused.contains("has no session") && refused.contains("404"), "{refused}");
    let (mut lamp, connack) = Client::open(&node.broker, asked);
    assert!(!connack.session_present);
    lamp.publish_acknowledged("t", "for nobody", qos1(1));
    lamp.expect_nothing();
    let audit = std::fs::read_to_string(node.files.path().join("audit")).expect("it is there");
    assert_eq!(audit.matches("discard session").count(), 3, "{audit}");
}

#[test]
fn users_are_those_of_the_password_file() {
    let node = Node::start();
    assert_eq!(node.ctl("users").as_deref(), Ok("USERNAME  SOURCE  ALGORITHM  NODES\n"));
}

/// What a script goes by.
#[test]
fn a_reload_that_is_refused_fails_and_hints_name_commands() {
    let node = Node::start_for(Role::Administrator);
    assert!(node.ctl("reload").expect("applied").contains("  yes  "));
    std::fs::write(node.files.path().join("tokens"), "no token\n").expect("written");
    let output = node.command("reload").output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stdout).contains("  no  ") && text(&output.stdout).contains("tokens"), "{output:?}");
    assert_eq!(text(&output.stderr), "kentongan ctl: not every node has applied it\n");
    let refusal = node.ctl("clients show nobody").expect_err("there is none");
    assert!(refusal.contains("is among `ctl sessions list` (404"), "{refusal}");
    let line = ["ctl", "--url", "127.0.0.1:18083", "nodes"];
    let output = broker_command().args(line).env("KENTONGANCTL_TOKEN", "t").output().expect("it runs");
    assert!(text(&output.stderr).contains("such as http://127.0.0.1:18083"), "{output:?}");
}
