//! A broker process of one's own, and a client that can say anything.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan::auth::Authority;
use kentongan::config::Settings;
use kentongan::listener::serve;
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, Sender};
use kentongan_proto::mqtt::*;
use tempfile::TempDir;

/// Time within which anything that should happen has happened.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Time in which nothing should happen: long against a loopback round trip, short against patience.
pub const QUIET: Duration = Duration::from_millis(150);

/// A broker process with a data directory of its own. Killed when dropped.
pub struct Broker {
    child: Option<Child>,
    pub address: SocketAddr,
    pub http: SocketAddr,
    /// Where operators ask, if they may.
    pub api: Option<SocketAddr>,
    directory: TempDir,
    /// Where the data directory is in it.
    data: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Soft and hard limit of file descriptors, if not those of the tests.
    descriptors: Option<(u32, u32)>,
    logs: mpsc::Receiver<String>,
    /// Whoever holds it keeps the broker's standard error from being read.
    pub reading: Arc<Mutex<()>>,
}

impl Broker {
    /// Starts with nothing but addresses chosen by the system.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts with more command line arguments.
    pub fn with(arguments: &[&str]) -> Self {
        Self::with_environment(arguments, &[])
    }

    /// Starts with arguments and with settings from `KENTONGAN_…` variables.
    pub fn with_environment(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::within(TempDir::new().expect("a temporary directory"), "data", arguments, environment)
    }

    /// Starts with settings as they stand in a file, the listeners among them.
    pub fn with_settings(settings: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("kentongan.toml");
        std::fs::write(&file, settings).expect("written");
        let arguments = ["--config", file.to_str().expect("UTF-8")];
        Self::within(directory, "data", &arguments, &[])
    }

    /// Starts with few file descriptors, as a soft and a hard limit.
    pub fn with_descriptors(soft: u32, hard: u32, environment: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut broker = Self::new(directory, "data", &[], environment);
        broker.descriptors = Some((soft, hard));
        broker.spawn();
        broker
    }

    /// Starts with too few of them, and returns how it ended and what it said.
    pub fn fails_with_descriptors(limit: u32) -> (std::process::ExitStatus, String) {
        let directory = TempDir::new().expect("a temporary directory");
        let mut command = limited(&broker_command(), limit, limit);
        command.args(["serve", "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--data-dir"]);
        let output = command.arg(directory.path().join("data")).stdin(Stdio::null()).output().expect("started");
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join(&self.data)
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running broker").id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("a running broker");
        rustix::process::kill_process(rustix_pid(child), signal).expect("our own child");
    }

    fn spawn(&mut self) {
        let mut command = match self.descriptors {
            None => broker_command(),
            Some((soft, hard)) => limited(&broker_command(), soft, hard),
        };
        command.args(["serve", "--http", "127.0.0.1:0", "--data-dir"]).arg(self.data_dir()).args(&self.arguments);
        if !self.arguments.iter().any(|argument| argument == "--config") {
            command.args(["--mqtt", "127.0.0.1:0"]);
        }
        command
            .env("KENTONGAN_LOG__FORMAT", "json")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the broker starts");
        let stderr = child.stderr.take().expect("piped");
        let (lines, logs) = mpsc::channel();
        let reading = Arc::clone(&self.reading);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // A test that failed while it held the lock is no reason to stop.
                drop(reading.lock());
                if std::env::var_os("BROKER_TEST_LOG").is_some() {
                    eprintln!("{line}");
                }
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        self.child = Some(child);
        self.logs = logs;
        let (mut mqtt, mut http) = (None, None);
        self.api = None;
        let mut seen = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        while mqtt.is_none() || http.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.logs.recv_timeout(left) else {
                panic!("the broker did not say where it listens:\n{}", seen.join("\n"));
            };
            let address = field(&line, "address").and_then(|text| text.parse().ok());
            match address {
                Some(address) if line.contains("MQTT") => mqtt = mqtt.or(Some(address)),
                Some(address) if line.contains("operators") => self.api = Some(address),
                Some(address) if line.contains("HTTP") => http = http.or(Some(address)),
                // Before those for MQTT.
                Some(address) if line.contains("for operators") => self.api = Some(address),
                _ => {}
            }
            seen.push(line);
        }
        self.address = mqtt.expect("set above");
        self.http = http.expect("set above");
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// SIGTERM, and what it answered.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        self.stop_by(rustix::process::Signal::TERM)
    }

    /// A signal that ends it in good order, and what it answered.
    pub fn stop_by(&mut self, signal: rustix::process::Signal) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("a running broker");
        let pid = rustix_pid(&child);
        rustix::process::kill_process(pid, signal).expect("our own child");
        let deadline = Instant::now() + DEADLINE * 2;
        loop {
            if let Some(status) = child.try_wait().expect("our own child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the broker did not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same data directory, a new process.
    pub fn restart(&mut self) {
        self.restart_after(|| {});
    }

    /// The same after something was done `between`.
    pub fn restart_after(&mut self, between: impl FnOnce()) {
        self.kill();
        between();
        self.spawn();
    }

    /// Starts with a configuration file, which names its listener.
    pub fn with_file(file: &std::path::Path) -> Self {
        Self::with(&["--config", file.to_str().expect("UTF-8")])
    }

    /// Starts in `directory`, with the data directory at the path `data` in it.
    pub fn within(
        directory: TempDir,
        data: impl Into<PathBuf>,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut broker = Self::new(directory, data, arguments, environment);
        broker.spawn();
        broker
    }

    fn new(directory: TempDir, data: impl Into<PathBuf>, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            child: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            api: None,
            directory,
            data: data.into(),
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            environment: environment.iter().map(owned).collect(),
            descriptors: None,
            logs: mpsc::channel().1,
            reading: Arc::default(),
        }
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// Waits until one more listener says where it is.
    pub fn next_listener(&self) -> SocketAddr {
        let line = self.wait_for_log("listening for MQTT");
        field(&line, "address").and_then(|text| text.parse().ok()).expect("an address")
    }

    /// Waits for a line of the log.
    pub fn wait_for_log(&self, text: &str) -> String {
        self.logs_until(text).pop().expect("the line that was waited for")
    }

    /// The log as far as it was not read yet, up to a line with `text`.
    pub fn logs_until(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + DEADLINE;
        let mut lines = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.logs.recv_timeout(left) {
                Ok(line) => lines.push(line),
                Err(_) => panic!("no log line with {text:?}:\n{}", lines.join("\n")),
            }
            if lines.last().is_some_and(|line| line.contains(text)) {
                return lines;
            }
        }
    }

    /// The body of an HTTP answer, and its status.
    pub fn http_get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).expect("HTTP listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    }

    /// A figure of `/metrics`: all series of the name added up, or the one whose label follows the name.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, body) = self.http_get("/metrics");
        body.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until a figure is as wanted.
    pub fn wait_for_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        wait_for(&format!("metric {name}"), || wanted(self.metric(name)));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `command` as it is with other limits of file descriptors.
fn limited(command: &Command, soft: u32, hard: u32) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
    shell.arg("-c").arg(script).arg(command.get_program());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn rustix_pid(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a pid is not zero")
}

/// A field of a line of the log that is text.
pub fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("\"{name}\":\""))?;
    rest.split('"').next()
}

/// The program, with nothing set from outside: what is meant for the tests is no setting of the broker.
pub fn broker_command() -> Command {
    program_command(env!("CARGO_BIN_EXE_kentongan"))
}

/// The same of another program.
pub fn program_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KENTONGAN_")) {
        command.env_remove(name);
    }
    command
}

/// Waits for a condition, with a deadline.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A broker in a thread of this process, for what is plugged into one. It ends with the process at the latest.
pub struct Plugged {
    pub address: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Plugged {
    pub fn start(authority: Authority) -> Self {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let directory = tempfile::tempdir().expect("a directory");
            let mut settings = Settings { data_dir: directory.path().join("data"), ..Settings::default() };
            settings.listener.truncate(1);
            settings.listener[0].address = SocketAddr::from(([127, 0, 0, 1], 0)).into();
            settings.http.enabled = false;
            actix_rt::System::new().block_on(async move {
                let descriptors = serve::raise_descriptor_limit();
                let broker =
                    serve::Broker::start(settings, authority, descriptors, &AtomicBool::new(false)).expect("started");
                tell.send(broker.listeners()[0].address.ip().expect("over IP")).expect("the test waits");
                match stopped.await {
                    Ok(()) => broker.stop().await.expect("stopped"),
                    // Nobody will stop it, and somebody may still use it.
                    Err(_) => std::future::pending().await,
                }
            });
        });
        Self { address: told.recv().expect("a broker that starts"), stop }
    }

    /// What SIGTERM would do.
    pub fn stop(self) {
        self.stop.send(()).expect("a running broker");
    }

    /// Sends CONNECT and returns the CONNACK.
    pub fn open(&self, connect: Connect) -> (Client, ConnAck) {
        let mut client = Client::at(self.address, connect.version);
        client.send(&Packet::Connect(Box::new(connect)));
        let connack = client.expect_connack();
        (client, connack)
    }
}

/// A client that sends what it is told and reads what comes.
pub struct Client {
    pub stream: TcpStream,
    pub version: ProtocolVersion,
    buffer: Vec<u8>,
    /// Read while something else was waited for.
    stash: VecDeque<Packet>,
}

/// Starts a CONNECT.
pub fn connect(version: ProtocolVersion, client_id: &str) -> Connect {
    Connect {
        version,
        bridge: false,
        clean_start: true,
        keep_alive: 60,
        client_id: client_id.to_owned(),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

/// A PUBLISH without properties.
pub fn publish(topic: &str, payload: &str, delivery: Delivery) -> Publish {
    Publish {
        dup: false,
        delivery,
        retain: false,
        topic: topic.to_owned(),
        properties: PublishProperties::default(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

/// A SUBSCRIBE to one filter.
pub fn subscribe(number: u16, filter: &str, qos: QoS) -> Subscribe {
    Subscribe {
        packet_id: id(number),
        filters: vec![(filter.to_owned(), SubscriptionOptions::new(qos))],
        subscription_identifier: None,
        user_properties: Vec::new(),
    }
}

pub fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

pub fn qos1(number: u16) -> Delivery {
    Delivery::AtLeastOnce(id(number))
}

pub fn qos2(number: u16) -> Delivery {
    Delivery::ExactlyOnce(id(number))
}

pub const QOS0: Delivery = Delivery::AtMostOnce;

impl Client {
    /// A connection on which nothing was said.
    pub fn raw(broker: &Broker, version: ProtocolVersion) -> Self {
        Self::at(broker.address, version)
    }

    /// The same, to a broker that is no process of its own.
    pub fn at(address: SocketAddr, version: ProtocolVersion) -> Self {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_nodelay(true).expect("a socket option");
        Self::on(stream, version)
    }

    /// On a connection that is there.
    pub fn on(stream: TcpStream, version: ProtocolVersion) -> Self {
        Self { stream, version, buffer: Vec::new(), stash: VecDeque::new() }
    }

    /// Sends CONNECT and returns the CONNACK.
    pub fn open(broker: &Broker, connect: Connect) -> (Self, ConnAck) {
        let mut client = Self::raw(broker, connect.version);
        client.send(&Packet::Connect(Box::new(connect)));
        let connack = client.expect_connack();
        (client, connack)
    }

    /// A connected MQTT 5 client with a clean session.
    pub fn v5(broker: &Broker, client_id: &str) -> Self {
        Self::accepted(broker, connect(ProtocolVersion::V5, client_id))
    }

    /// A connected MQTT 3.1.1 client with a clean session.
    pub fn v311(broker: &Broker, client_id: &str) -> Self {
        Self::accepted(broker, connect(ProtocolVersion::V3_1_1, client_id))
    }

    /// A connected client.
    pub fn accepted(broker: &Broker, connect: Connect) -> Self {
        let (client, connack) = Self::open(broker, connect);
        assert_eq!(connack.reason_code, ReasonCode::Success);
        client
    }

    pub fn send(&mut self, packet: &Packet) {
        let mut bytes = Vec::new();
        codec::encode(packet, self.version, &mut bytes).expect("a packet that can be encoded");
        self.send_bytes(&bytes);
    }

    /// Sends them in one piece.
    pub fn send_at_once(&mut self, packets: &[Packet]) {
        let mut bytes = Vec::new();
        for packet in packets {
            codec::encode(packet, self.version, &mut bytes).expect("a packet that can be encoded");
        }
        self.send_bytes(&bytes);
    }

    /// Ignores that the broker may have closed: what counts is what it said before.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    /// The next packet within `wait`; `None` if there is none or the connection was closed.
    pub fn receive_within(&mut self, wait: Duration) -> Option<Packet> {
        if let Some(packet) = self.stash.pop_front() {
            return Some(packet);
        }
        self.read_within(wait)
    }

    fn read_within(&mut self, wait: Duration) -> Option<Packet> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(packet) = self.decode() {
                return Some(packet);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).expect("a socket option");
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(count) if count > 0 => self.buffer.extend_from_slice(&chunk[..count]),
                Ok(_) => return None,
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    return None;
                }
                Err(_) => return None,
            }
        }
    }

    fn decode(&mut self) -> Option<Packet> {
        let limits = Limits { packet_bytes_max: 268_435_460, ..Limits::default() };
        let (packet, length) = match codec::split_frame(&self.buffer, Sender::Server, &limits) {
            Ok(FrameStatus::Complete(frame)) => {
                let packet = codec::decode(&frame, None, self.version, Sender::Server, &limits);
                (packet.expect("the broker sends well-formed packets"), frame.len())
            }
            Ok(FrameStatus::Incomplete { .. }) => return None,
            Err(error) => panic!("the broker sent a malformed packet: {error}"),
        };
        self.buffer.drain(..length);
        Some(packet)
    }

    pub fn receive(&mut self) -> Packet {
        self.receive_within(DEADLINE).expect("a packet from the broker")
    }

    pub fn expect_connack(&mut self) -> ConnAck {
        match self.receive() {
            Packet::ConnAck(connack) => *connack,
            other => panic!("CONNACK expected, got {other:?}"),
        }
    }

    pub fn expect_publish(&mut self) -> Publish {
        match self.receive() {
            Packet::Publish(publish) => publish,
            other => panic!("PUBLISH expected, got {other:?}"),
        }
    }

    /// The next PUBLISH, acknowledged as its QoS demands (QoS 2 through PUBCOMP).
    pub fn take_publish(&mut self) -> Publish {
        let publish = self.expect_publish();
        match publish.delivery {
            Delivery::AtMostOnce => {}
            Delivery::AtLeastOnce(id) => self.send(&Packet::PubAck(Ack::success(id))),
            Delivery::ExactlyOnce(id) => {
                self.send(&Packet::PubRec(Ack::success(id)));
                // Other messages of the window may come first.
                loop {
                    match self.read_within(DEADLINE).expect("PUBREL") {
                        Packet::PubRel(ack) if ack.packet_id == id => break,
                        other => self.stash.push_back(other),
                    }
                }
                self.send(&Packet::PubComp(Ack::success(id)));
            }
        }
        publish
    }

    /// Nothing comes, and the connection stays: a PINGREQ is the next thing answered.
    pub fn expect_nothing(&mut self) {
        self.send(&Packet::PingReq);
        assert_eq!(self.receive(), Packet::PingResp, "nothing but the answer to PINGREQ");
        assert_eq!(self.receive_within(QUIET), None);
    }

    /// The broker closes, and says nothing more before it does.
    pub fn expect_closed(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        assert!(self.buffer.is_empty(), "something was left: {:?}", self.buffer);
        self.stream.set_read_timeout(Some(DEADLINE)).expect("a socket option");
        let mut chunk = [0; 256];
        match self.stream.read(&mut chunk) {
            Ok(0) => {}
            Ok(count) => panic!("unexpected bytes before the end: {:?}", &chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("not closed ({error})"),
        }
        assert!(Instant::now() < deadline, "closed too late");
    }

    /// MQTT 5: DISCONNECT with a reason, then the end.
    pub fn expect_disconnect(&mut self, reason: ReasonCode) {
        match self.receive() {
            Packet::Disconnect(disconnect) => assert_eq!(disconnect.reason_code, reason),
            other => panic!("DISCONNECT expected, got {other:?}"),
        }
        self.expect_closed();
    }

    pub fn subscribe(&mut self, filter: &str, qos: QoS) -> ReasonCode {
        self.subscribe_with(filter, SubscriptionOptions::new(qos), None)
    }

    pub fn subscribe_with(
        &mut self,
        filter: &str,
        options: SubscriptionOptions,
        subscription_identifier: Option<u32>,
    ) -> ReasonCode {
        self.send(&Packet::Subscribe(Subscribe {
            packet_id: id(65_000),
            filters: vec![(filter.to_owned(), options)],
            subscription_identifier,
            user_properties: Vec::new(),
        }));
        match self.receive() {
            Packet::SubAck(suback) => suback.reason_codes[0],
            other => panic!("SUBACK expected, got {other:?}"),
        }
    }

    pub fn unsubscribe(&mut self, filter: &str) -> Vec<ReasonCode> {
        self.send(&Packet::Unsubscribe(Unsubscribe {
            packet_id: id(65_001),
            filters: vec![filter.to_owned()],
            user_properties: Vec::new(),
        }));
        match self.receive() {
            Packet::UnsubAck(unsuback) => unsuback.reason_codes,
            other => panic!("UNSUBACK expected, got {other:?}"),
        }
    }

    /// Of one filter. Older versions are not told.
    pub fn unsubscribe_code(&mut self, filter: &str, version: ProtocolVersion) -> ReasonCode {
        self.unsubscribe(filter).first().copied().filter(|_| version.is_v5()).unwrap_or(ReasonCode::Success)
    }

    pub fn publish(&mut self, topic: &str, payload: &str, delivery: Delivery) {
        self.send(&Packet::Publish(publish(topic, payload, delivery)));
    }

    /// Publishes and completes the exchange.
    pub fn publish_acknowledged(&mut self, topic: &str, payload: &str, delivery: Delivery) {
        self.publish(topic, payload, delivery);
        self.complete(delivery);
    }

    /// The same of a client that gets messages meanwhile; they are still to be received.
    pub fn publish_acknowledged_among_others(&mut self, topic: &str, payload: &str, delivery: Delivery) {
        self.publish(topic, payload, delivery);
        let mut others = Vec::new();
        let mut is_over = delivery == QOS0;
        while !is_over {
            match self.receive() {
                Packet::PubRec(ack) => self.send(&Packet::PubRel(Ack::success(ack.packet_id))),
                Packet::PubAck(_) | Packet::PubComp(_) => is_over = true,
                other => others.push(other),
            }
        }
        others.into_iter().rev().for_each(|other| self.stash.push_front(other));
    }

    /// The acknowledgements that a PUBLISH is owed.
    pub fn complete(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::AtMostOnce => {}
            Delivery::AtLeastOnce(id) => match self.receive() {
                Packet::PubAck(ack) => assert_eq!(ack.packet_id, id),
                other => panic!("PUBACK expected, got {other:?}"),
            },
            Delivery::ExactlyOnce(id) => {
                match self.receive() {
                    Packet::PubRec(ack) => assert_eq!(ack.packet_id, id),
                    other => panic!("PUBREC expected, got {other:?}"),
                }
                self.send(&Packet::PubRel(Ack::success(id)));
                match self.receive() {
                    Packet::PubComp(ack) => assert_eq!(ack.packet_id, id),
                    other => panic!("PUBCOMP expected, got {other:?}"),
                }
            }
        }
    }

    pub fn disconnect(mut self) {
        self.send(&Packet::Disconnect(Disconnect {
            reason_code: ReasonCode::Success,
            properties: DisconnectProperties::default(),
        }));
        self.expect_closed();
    }
}
