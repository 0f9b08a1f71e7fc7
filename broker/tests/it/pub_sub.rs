//! `kentongan pub` and `kentongan sub` beside mosquitto_pub and mosquitto_sub, at mosquitto's broker.
//!
//! A foreign broker and foreign clients are what tells a mistake of the protocol from a habit of our own. Where
//! mosquitto is not installed these tests say so and pass.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);
const MOSQUITTO: &str = "/usr/sbin/mosquitto";

/// A mosquitto of this test's own.
struct Broker {
    port: u16,
    process: Child,
    directory: TempDir,
}

impl Broker {
    /// `None` where mosquitto is not installed.
    fn start() -> Option<Self> {
        Self::start_with("allow_anonymous true")
    }

    fn start_with(setting: &str) -> Option<Self> {
        let clients = Command::new("mosquitto_sub").arg("--help").output();
        if !Path::new(MOSQUITTO).exists() || clients.is_err() {
            eprintln!("skipped: mosquitto and its clients are not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = directory.path().join("mosquitto.conf");
        std::fs::write(&file, format!("listener {port} 127.0.0.1\n{setting}\n")).unwrap();
        let process = Self::spawn(&directory);
        let broker = Self { port, process, directory };
        broker.wait_until_it_listens();
        Some(broker)
    }

    fn spawn(directory: &TempDir) -> Child {
        let file = directory.path().join("mosquitto.conf");
        let mut command = Command::new(MOSQUITTO);
        command.arg("-c").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn wait_until_it_listens(&self) {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(start.elapsed() < DEADLINE, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        self.stop();
        self.process = Self::spawn(&self.directory);
        self.wait_until_it_listens();
    }

    /// A client's command, connected to this broker.
    fn client(&self, program: &str) -> Command {
        let mut command = match program {
            "pub" | "sub" => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_kentongan"));
                command.arg(program);
                command
            }
            other => Command::new(other),
        };
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let output = self.client(program).args(arguments).stdin(Stdio::null()).output().unwrap();
        if !output.stderr.is_empty() {
            eprintln!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        output
    }

    fn succeed(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn with_input(&self, arguments: &[&str], input: &str) {
        let mut child = self.client("pub").args(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// Makes a session that keeps what is published to `t/#`.
    fn keep(&self, sub: &str, id: &str, more: &[&str]) {
        self.succeed(sub, &[&["-c", "-i", id, "-t", "t/#", "-q", "2", "-E"], more].concat());
    }

    /// What a session that was made before prints now.
    fn collect(&self, sub: &str, id: &str, count: usize, more: &[&str]) -> String {
        let count = count.to_string();
        let arguments = ["-c", "-i", id, "-t", "t/#", "-q", "2", "-C", &count, "-W", "10"];
        self.succeed(sub, &[&arguments, more].concat())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // A test that stopped it already has waited for it too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the child's standard error until a line holds `text`.
fn wait_for_line(child: &mut Child, text: &str) -> BufReader<ChildStderr> {
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    wait_in(&mut stderr, text);
    stderr
}

fn wait_in(stderr: &mut impl BufRead, text: &str) {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended before {text:?}");
    }
}

#[test]
fn every_version_and_qos_reaches_the_other_client() {
    let Some(broker) = Broker::start() else {
        return;
    };
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        let of_version = ["-V", version];
        for qos in ["0", "1", "2"] {
            for (publisher, subscriber) in [("pub", "mosquitto_sub"), ("mosquitto_pub", "sub"), ("pub", "sub")] {
                let id = format!("{version}{qos}{publisher}{}", subscriber.len());
                broker.keep(subscriber, &id, &of_version);
                let publish = |topic, payload, qos| {
                    let arguments = ["-t", topic, "-m", payload, "-q", qos, "-V", version];
                    broker.succeed(publisher, &arguments);
                };
                publish("t/x", "payload ü", qos);
                publish("t/y", "last", "2");
                // mosquitto keeps no QoS 0 message for one who is away.
                let (count, first) = match qos {
                    "0" => (1, String::new()),
                    _ => (2, format!("t/x {qos} payload ü\n")),
                };
                let format = ["-V", version, "-F", "%t %q %p"];
                let found = broker.collect(subscriber, &id, count, &format);
                assert_eq!(found, format!("{first}t/y 2 last\n"), "{id}");
            }
        }
    }
}

#[test]
fn both_print_a_message_with_all_its_properties_alike() {
    let Some(broker) = Broker::start() else {
        return;
    };
    let mut publish = vec!["-V", "5", "-t", "t/a", "-r", "-q", "1", "-m", "hel\"lo\tu"];
    for property in [
        &["content-type", "text/x"][..],
        &["correlation-data", "cd"],
        &["payload-format-indicator", "1"],
        &["response-topic", "r/t"],
        &["user-property", "k1", "v1"],
        &["user-property", "k2", "v2"],
    ] {
        publish.extend(["-D", "publish"]);
        publish.extend(property);
    }
    broker.succeed("pub", &publish);

    let subscribe = ["-V", "5", "-t", "t/a", "-q", "1", "-C", "1", "-W", "5"];
    let identifier = ["-D", "subscribe", "subscription-identifier", "7"];
    let both = |format: &str| {
        let arguments = [&subscribe[..], &identifier, &["-F", format]].concat();
        ["sub", "mosquitto_sub"].map(|program| broker.succeed(program, &arguments))
    };
    for format in [
        "%t",
        "%p",
        "%q",
        "%r",
        "%l",
        "%m",
        "%x",
        "%X",
        "%A",
        "%C",
        "%D",
        "%E",
        "%F",
        "%P",
        "%R",
        "%S",
        "%%",
        "@@",
        "%12p|",
        "%-12p|",
        "%10t|",
        "%-10t|",
        "%2.2t|",
        "%10.2t|",
        "%-10.2t|",
        "%05l|",
        "%5l|",
        "%-5l|",
        "%5m|",
        "%05m|",
        "%10C|",
        "%10.3C|",
        "%10R|",
        "%10S|",
        "%010S|",
        "%10F|",
        "%5q|",
        "@Y-@m-@d",
        "\\n\\t\\\\\\e[0m",
    ] {
        let [ours, theirs] = both(format);
        assert_eq!(ours, theirs, "{format}");
    }
    let [ours, theirs] = both("%j").map(|text| {
        let mut message: serde_json::Value = serde_json::from_str(&text).unwrap();
        // Their 2.0.11 writes `Z` and an offset after each other.
        message["tst"].take();
        message
    });
    assert_eq!(ours, theirs);
}

#[test]
fn payloads_come_from_lines_files_and_repetition() {
    let Some(broker) = Broker::start() else {
        return;
    };
    broker.keep("sub", "s", &[]);
    broker.with_input(&["-t", "t/l", "-q", "1", "-l"], "one\ntwo\r\n\nfour");
    broker.with_input(&["-t", "t/s", "-q", "1", "-s"], "a\nb\n");
    let file = broker.directory.path().join("payload");
    std::fs::write(&file, "content").unwrap();
    broker.succeed("pub", &["-t", "t/f", "-q", "1", "-f", file.to_str().unwrap()]);
    broker.succeed("pub", &["-t", "t/r", "-q", "1", "-m", "-x", "--repeat", "3", "--repeat-delay", "0.01"]);
    broker.succeed("pub", &["-t", "t/n", "-q", "1", "-n"]);
    let found = broker.collect("sub", "s", 10, &["-F", "%t=%x"]);
    let expected = "t/l=6f6e65\nt/l=74776f0d\nt/l=\nt/l=666f7572\nt/s=610a620a\nt/f=636f6e74656e74\n\
                    t/r=2d78\nt/r=2d78\nt/r=2d78\nt/n=\n";
    assert_eq!(found, expected);
}

#[test]
fn many_lines_keep_their_order_within_the_window() {
    let Some(broker) = Broker::start() else {
        return;
    };
    let lines: String = (0..500).map(|number| format!("{number}\n")).collect();
    for (qos, window) in [("1", "5"), ("2", "20")] {
        // mosquitto queues a thousand for one who is away.
        broker.keep("mosquitto_sub", qos, &[]);
        broker.with_input(&["-t", "t/l", "-q", qos, "-l", "-M", window], &lines);
        assert_eq!(broker.collect("sub", qos, 500, &[]), lines, "QoS {qos}");
    }
}

#[test]
fn retained_messages_are_chosen_and_removed_by_flags() {
    let Some(broker) = Broker::start() else {
        return;
    };
    for topic in ["t/a", "t/b", "t/c"] {
        broker.succeed("pub", &["-t", topic, "-m", topic, "-r"]);
    }
    let sub = |arguments: &[&str]| {
        let output = broker.run("sub", &[&["-t", "t/#", "-W", "1", "--quiet"], arguments].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(sub(&["-v", "-C", "3"]), (Some(0), String::from("t/a t/a\nt/b t/b\nt/c t/c\n")));
    assert_eq!(sub(&["-T", "t/b", "-C", "2"]), (Some(0), String::from("t/a\nt/c\n")));
    assert_eq!(sub(&["-N", "-C", "3"]), (Some(0), String::from("t/at/bt/c")));
    assert_eq!(sub(&["-R"]), (Some(27), String::new()));

    assert_eq!(sub(&["--remove-retained", "-T", "t/b", "-C", "2"]), (Some(0), String::from("t/a\nt/c\n")));
    assert_eq!(sub(&[]), (Some(27), String::from("t/b\n")));
    broker.succeed("pub", &["-t", "t/b", "-n", "-r"]);
    assert_eq!(sub(&[]), (Some(27), String::new()));
}

#[test]
fn an_unsubscribed_session_gets_nothing_more() {
    let Some(broker) = Broker::start() else {
        return;
    };
    broker.keep("sub", "s", &[]);
    broker.succeed("sub", &["-c", "-i", "s", "-U", "t/#", "-E"]);
    broker.succeed("pub", &["-t", "t/x", "-m", "unheard", "-q", "1"]);
    let output = broker.run("sub", &["-c", "-i", "s", "-t", "other", "-W", "1", "--quiet"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(27), &b""[..]));
}

#[test]
fn the_will_of_a_subscriber_that_was_killed_is_published() {
    let Some(broker) = Broker::start() else {
        return;
    };
    broker.keep("mosquitto_sub", "heir", &[]);
    let will = ["--will-topic", "t/will", "--will-payload", "gone", "--will-qos", "1"];
    let mut command = broker.client("sub");
    let mut child = command.args(["-t", "x", "-d"]).args(will).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut child, "received SUBACK");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(broker.collect("mosquitto_sub", "heir", 1, &["-v"]), "t/will gone\n");
}

#[test]
fn a_subscriber_comes_back_when_the_broker_does() {
    let Some(mut broker) = Broker::start() else {
        return;
    };
    let mut command = broker.client("sub");
    command.args(["-t", "t/x", "-d", "-C", "1"]).stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = wait_for_line(&mut child, "received SUBACK");
    broker.restart();
    wait_in(&mut stderr, "connecting again");
    wait_in(&mut stderr, "received SUBACK");
    broker.succeed("pub", &["-t", "t/x", "-m", "after"]);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"after\n");
}

/// Two clients that took the session from each other for ever would help nobody.
/// At our own broker: mosquitto 2.0 says nothing when it closes the older connection.
#[test]
fn a_subscriber_whose_session_was_taken_over_gives_up() {
    let broker = crate::support::Broker::start();
    let port = broker.address.port().to_string();
    let subscriber = || {
        let mut command = crate::support::broker_command();
        command.args(["sub", "-h", "127.0.0.1", "-p", &port, "-i", "same", "-t", "t/x"]);
        command
    };
    let mut first = subscriber().arg("-d").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = wait_for_line(&mut first, "received SUBACK");
    assert!(subscriber().arg("-E").stdout(Stdio::null()).status().unwrap().success());
    wait_in(&mut stderr, "the broker ended the connection: Session taken over (0x8E)");
    assert_eq!(first.wait().unwrap().code(), Some(1));
}

#[test]
fn a_refused_connection_says_why_and_what_to_try() {
    let Some(broker) = Broker::start_with("allow_anonymous false") else {
        return;
    };
    for version in ["5", "311"] {
        for (program, more) in [("pub", "-n"), ("sub", "-v")] {
            let output = broker.run(program, &["-t", "t", more, "-V", version]);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1));
            assert!(text.contains("Not authorized (0x87); give a user with -u and -P"), "{text}");
        }
    }
}

#[test]
fn what_fails_says_what_to_try() {
    let Some(mut broker) = Broker::start() else {
        return;
    };
    let complaint = |broker: &Broker, program: &str, arguments: &[&str]| {
        let output = broker.run(program, arguments);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = complaint(&broker, "pub", &["-t", "a/#", "-m", "x"]);
    assert!(code == Some(2) && text.contains("not a Topic Name"), "{text}");
    let (code, text) = complaint(&broker, "sub", &["-t", "a/#/b"]);
    assert!(code == Some(2) && text.contains("not a Topic Filter"), "{text}");
    // Behind a command that failed; as a message it would delete the retained one.
    let (code, text) = complaint(&broker, "pub", &["-t", "a", "-s", "-r"]);
    assert!(code == Some(1) && text.contains("standard input is empty"), "{text}");

    broker.stop();
    let (code, text) = complaint(&broker, "pub", &["-t", "a", "-m", "x"]);
    assert!(code == Some(1) && text.contains("is the broker running there"), "{text}");
    let (code, text) = complaint(&broker, "pub", &["-t", "a", "-m", "x", "--quiet"]);
    assert_eq!((code, text.as_str()), (Some(1), ""));
}
