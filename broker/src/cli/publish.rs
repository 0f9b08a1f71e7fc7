//! `kentongan pub`: publish from the command line, as mosquitto_pub does.
//!
//! Where many messages come (`-l`, `--repeat`), a lost connection is made again, and what was not acknowledged is sent again: in a
//! session that is kept (`-c`, `-x`) as what it is, else as new messages. What comes meanwhile waits at its source.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead};
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgGroup, Args};
use kentongan_proto::mqtt::{
    Ack, ConnAck, ConnAckProperties, Delivery, Disconnect, Packet, PacketId, ProtocolVersion, Publish, QoS, ReasonCode,
};
use kentongan_proto::topic;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{ClientError, Connection, spaced};
use super::options::{ConnectOptions, ConnectionArgs, parse_qos};
use super::payload::{PayloadArgs, PayloadError};
use super::subscribe::RECONNECT_DELAY;
use super::{EXIT_FAILURE, EXIT_USAGE, wire};

/// The flags of mosquitto_pub.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("payload").required(true))]
pub(super) struct PublishArgs {
    /// Topic Name to publish to.
    #[arg(short = 't', long, value_name = "TOPIC", required_unless_present = "url")]
    topic: Option<String>,
    #[command(flatten)]
    payload: PayloadArgs,
    /// Each line of standard input is a message.
    #[arg(short = 'l', long, group = "payload")]
    stdin_line: bool,
    /// QoS to publish with.
    #[arg(short = 'q', long, default_value = "0", value_name = "QOS", value_parser = parse_qos)]
    qos: QoS,
    /// Make it the retained message of its topic.
    #[arg(short = 'r', long)]
    retain: bool,
    /// How often to publish the message.
    #[arg(long, default_value_t = 1, value_name = "TIMES", conflicts_with = "stdin_line")]
    repeat: u64,
    /// Seconds between repetitions, such as 0.5.
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = parse_seconds)]
    repeat_delay: Duration,
    /// QoS 1 and 2 messages that may be unacknowledged at once.
    #[arg(short = 'M', long, default_value = "20", value_name = "MESSAGES")]
    max_inflight: NonZeroU16,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Why publishing came to nothing.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    /// The flags or what they name: the user's to mend.
    #[error("{0}")]
    Usage(String),
    /// There is no message.
    #[error("{0}")]
    NoMessage(PayloadError),
    /// The broker does not offer what was asked for.
    #[error("{0}")]
    NotOffered(String),
    /// The connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Some were refused by the broker, which was said at each.
    #[error("{0} of the messages were refused")]
    SomeRefused(u64),
    /// The connection ended too early.
    #[error("{source}; {unacknowledged} messages were not acknowledged")]
    Unacknowledged { source: ClientError, unacknowledged: usize },
}

pub(super) fn run(arguments: &PublishArgs) -> u8 {
    let quiet = arguments.connection.resolve().is_ok_and(|options| options.quiet);
    match run_to_end(arguments) {
        Ok(()) => 0,
        Err(PublishError::Usage(message)) => {
            eprintln!("kentongan pub: {message}");
            EXIT_USAGE
        }
        Err(error) => {
            if !quiet {
                eprintln!("kentongan pub: {error}");
            }
            EXIT_FAILURE
        }
    }
}

fn run_to_end(arguments: &PublishArgs) -> Result<(), PublishError> {
    let options = arguments.connection.resolve().map_err(PublishError::Usage)?;
    let topic = arguments.topic.clone().or_else(|| options.topic.clone()).unwrap_or_default();
    if topic::check_topic_name(&topic).is_err() {
        let message = format!("`{topic}` is not a Topic Name: it must not be empty nor contain +, # or NUL");
        return Err(PublishError::Usage(message));
    }
    let source = arguments.source()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| PublishError::Client(ClientError::Failed(error)))?;
    let outcome = runtime.block_on(Publisher::new(arguments, options, topic).run(source));
    // A thread that still reads standard input must not keep the process.
    runtime.shutdown_background();
    outcome
}

impl PublishArgs {
    fn source(&self) -> Result<Source, PublishError> {
        let once = |payload: Vec<u8>| Source::Repeated {
            payload: Bytes::from(payload),
            left: self.repeat,
            due: Instant::now(),
        };
        if self.stdin_line {
            return Ok(Source::Lines(stdin_lines()));
        }
        self.payload.read().map(once).map_err(|error| match error {
            PayloadError::Usage(message) => PublishError::Usage(message),
            error @ PayloadError::EmptyInput => PublishError::NoMessage(error),
        })
    }

    /// Whether there is more to come, for which a lost connection is made again.
    fn publishes_many(&self) -> bool {
        self.stdin_line || self.repeat > 1
    }

    fn check_offer(&self, offer: &ConnAckProperties) -> Result<(), PublishError> {
        if offer.maximum_qos.is_some_and(|maximum| self.qos as u8 > maximum) {
            let maximum = offer.maximum_qos.unwrap_or_default();
            return Err(PublishError::NotOffered(format!("the broker takes QoS {maximum} at most; lower -q")));
        }
        if self.retain && offer.retain_available == Some(false) {
            return Err(PublishError::NotOffered(String::from("the broker keeps no retained messages; leave out -r")));
        }
        Ok(())
    }
}

/// Where payloads come from.
enum Source {
    Repeated { payload: Bytes, left: u64, due: Instant },
    Lines(mpsc::Receiver<Bytes>),
    Exhausted,
}

impl Source {
    /// The next payload, once it is due. May be dropped half-way.
    async fn next(&mut self, delay: Duration) -> Option<Bytes> {
        match self {
            Self::Repeated { left: 0, .. } | Self::Exhausted => None,
            Self::Repeated { payload, left, due } => {
                // The timer's grain is a millisecond; without a delay that would be one.
                if !delay.is_zero() {
                    sleep_until(*due).await;
                }
                *left -= 1;
                *due = Instant::now() + delay;
                Some(payload.clone())
            }
            Self::Lines(lines) => lines.recv().await,
        }
    }
}

/// Lines of standard input, without their ends; a thread reads them, for a terminal cannot be read asynchronously.
fn stdin_lines() -> mpsc::Receiver<Bytes> {
    let (lines, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match input.read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    if lines.blocking_send(Bytes::from(line)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    eprintln!("kentongan pub: cannot read standard input: {error}");
                    return;
                }
            }
        }
    });
    receiver
}

/// What an unacknowledged message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaiting {
    /// PUBACK.
    Acknowledged,
    /// PUBREC.
    Received,
    /// PUBCOMP.
    Complete,
}

/// A message of QoS 1 or 2 until its end, which a lost connection is not.
#[derive(Debug)]
struct Unacknowledged {
    /// The how manieth it is: Packet Identifiers begin anew.
    number: u64,
    awaiting: Awaiting,
    message: Publish,
}

/// Publishes what a [`Source`] has, one after the other, over one connection or, where that is lost, the next.
struct Publisher<'a> {
    arguments: &'a PublishArgs,
    /// After the first connection, those by which the next one takes up its session, if there is one.
    options: ConnectOptions,
    topic: String,
    packet_bytes_max: Option<u32>,
    window: usize,
    is_connected_once: bool,
    unacknowledged: BTreeMap<PacketId, Unacknowledged>,
    /// Those of them that were sent over connections of before only, in their order.
    unsent: VecDeque<PacketId>,
    published: u64,
    last_id: u16,
    refused: u64,
}

impl<'a> Publisher<'a> {
    fn new(arguments: &'a PublishArgs, options: ConnectOptions, topic: String) -> Self {
        Self {
            arguments,
            options,
            topic,
            packet_bytes_max: None,
            window: 0,
            is_connected_once: false,
            unacknowledged: BTreeMap::new(),
            unsent: VecDeque::new(),
            published: 0,
            last_id: 0,
            refused: 0,
        }
    }

    /// Connects, again if need be, until all is published and acknowledged.
    async fn run(mut self, mut source: Source) -> Result<(), PublishError> {
        loop {
            match self.serve(&mut source).await {
                Err(PublishError::Client(error)) if self.connects_again(&error) => {
                    if !self.options.quiet {
                        eprintln!("kentongan pub: {error}; connecting again");
                    }
                    sleep(RECONNECT_DELAY).await;
                }
                Err(PublishError::Client(error)) => return Err(self.cut_off(error)),
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        match self.refused {
            0 => Ok(()),
            refused => Err(PublishError::SomeRefused(refused)),
        }
    }

    fn connects_again(&self, error: &ClientError) -> bool {
        self.is_connected_once && self.arguments.publishes_many() && error.may_retry()
    }

    fn cut_off(&self, source: ClientError) -> PublishError {
        match self.unacknowledged.len() {
            0 => PublishError::Client(source),
            unacknowledged => PublishError::Unacknowledged { source, unacknowledged },
        }
    }

    /// One connection, to its end.
    async fn serve(&mut self, source: &mut Source) -> Result<(), PublishError> {
        let (mut connection, connack) = Connection::open(&self.options).await?;
        self.begin(&connack)?;
        while !matches!(source, Source::Exhausted) || !self.unacknowledged.is_empty() {
            self.resend(&mut connection)?;
            let has_room = self.unacknowledged.len() < self.window && self.unsent.is_empty();
            tokio::select! {
                // Acknowledgements first: they make room. And nothing is taken from the source for a connection that has ended.
                biased;
                packet = connection.next() => self.on_packet(packet?, &mut connection)?,
                payload = source.next(self.arguments.repeat_delay), if has_room && !matches!(source, Source::Exhausted) => match payload {
                    Some(payload) => {
                        self.publish(payload, &mut connection)?;
                        connection.flush().await?;
                    }
                    None => *source = Source::Exhausted,
                },
            }
        }
        let properties = self.options.properties.disconnect.clone();
        connection.close(Disconnect { reason_code: ReasonCode::Success, properties }).await?;
        Ok(())
    }

    /// Looks at what a broker said when it took the connection.
    fn begin(&mut self, connack: &ConnAck) -> Result<(), PublishError> {
        let offer = &connack.properties;
        self.arguments.check_offer(offer)?;
        self.window = offer.receive_maximum.unwrap_or(NonZeroU16::MAX).min(self.arguments.max_inflight).get().into();
        self.packet_bytes_max = offer.maximum_packet_size;
        self.is_connected_once = true;
        let connect = &mut self.options.connect;
        // MQTT 3.1 does not say whether there is one.
        let has_session = connack.session_present || (connect.version == ProtocolVersion::V3_1 && !connect.clean_start);
        if !has_session {
            // By its PUBREC the broker had taken a message over; in a session that has ended nothing of it is left to do.
            self.unacknowledged.retain(|_, one| one.awaiting != Awaiting::Complete);
        }
        for one in self.unacknowledged.values_mut() {
            // [MQTT-3.3.1-1], and [MQTT-4.4.0-1]: without its session it is a new message.
            one.message.dup = has_session;
        }
        let mut unsent: Vec<_> = self.unacknowledged.iter().map(|(&id, one)| (one.number, id)).collect();
        unsent.sort_unstable();
        self.unsent = unsent.into_iter().map(|(_, id)| id).collect();

        let expiry = offer.session_expiry_interval.or(connect.properties.session_expiry_interval);
        if expiry.is_some_and(|seconds| seconds != 0) {
            connect.clean_start = false;
            if let Some(assigned) = &offer.assigned_client_identifier {
                connect.client_id.clone_from(assigned);
            }
        }
        Ok(())
    }

    /// Sends again what earlier connections did not bring to its end, as far as the window goes.
    fn resend(&mut self, connection: &mut Connection) -> Result<(), PublishError> {
        while self.unacknowledged.len().saturating_sub(self.unsent.len()) < self.window {
            let Some(id) = self.unsent.pop_front() else { break };
            match self.unacknowledged.get(&id) {
                Some(Unacknowledged { awaiting: Awaiting::Complete, .. }) => {
                    connection.send(&Packet::PubRel(Ack::success(id)))?;
                }
                Some(one) => self.send(one.message.clone(), connection)?,
                // A broker may acknowledge what it was not yet asked about again.
                None => {}
            }
        }
        Ok(())
    }

    fn publish(&mut self, payload: Bytes, connection: &mut Connection) -> Result<(), PublishError> {
        let (delivery, awaiting) = match self.arguments.qos {
            QoS::AtMostOnce => (Delivery::AtMostOnce, None),
            QoS::AtLeastOnce => (Delivery::AtLeastOnce(self.new_id()), Some(Awaiting::Acknowledged)),
            QoS::ExactlyOnce => (Delivery::ExactlyOnce(self.new_id()), Some(Awaiting::Received)),
        };
        let (topic, properties) = (self.topic.clone(), self.options.properties.publish.clone());
        let retain = self.arguments.retain;
        let message = Publish { dup: false, delivery, retain, topic, properties, payload };
        self.send(message.clone(), connection)?;
        if let Some((id, awaiting)) = delivery.packet_id().zip(awaiting) {
            self.published += 1;
            self.unacknowledged.insert(id, Unacknowledged { number: self.published, awaiting, message });
        }
        Ok(())
    }

    fn send(&self, message: Publish, connection: &mut Connection) -> Result<(), PublishError> {
        let packet = Packet::Publish(message);
        let size = wire::size(&packet, connection.version());
        if self.packet_bytes_max.is_some_and(|maximum| size > maximum as usize) {
            // [MQTT-3.2.2-15]
            let maximum = self.packet_bytes_max.unwrap_or_default();
            let message = format!("the message makes a packet of {size} bytes; the broker takes {maximum}");
            return Err(PublishError::NotOffered(message));
        }
        Ok(connection.send(&packet)?)
    }

    /// A Packet Identifier that no unacknowledged message has. There is one: the window is below 65,535.
    fn new_id(&mut self) -> PacketId {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if let Some(id) = PacketId::new(self.last_id).filter(|id| !self.unacknowledged.contains_key(id)) {
                return id;
            }
        }
    }

    fn on_packet(&mut self, packet: Packet, connection: &mut Connection) -> Result<(), ClientError> {
        match packet {
            Packet::PubAck(ack) => self.settle(&ack, Awaiting::Acknowledged),
            Packet::PubRec(ack) if ack.reason_code.is_error() => self.settle(&ack, Awaiting::Received),
            Packet::PubRec(ack) => {
                if let Some(one) = self.unacknowledged.get_mut(&ack.packet_id) {
                    one.awaiting = Awaiting::Complete;
                }
                connection.send(&Packet::PubRel(Ack::success(ack.packet_id)))?;
            }
            Packet::PubComp(ack) => self.settle(&ack, Awaiting::Complete),
            // A kept session (-c) may hold subscriptions of an earlier `sub`; take what comes and let it go.
            Packet::Publish(Publish { delivery: Delivery::AtLeastOnce(id), .. }) => {
                connection.send(&Packet::PubAck(Ack::success(id)))?;
            }
            Packet::Publish(Publish { delivery: Delivery::ExactlyOnce(id), .. }) => {
                connection.send(&Packet::PubRec(Ack::success(id)))?;
            }
            Packet::PubRel(ack) => connection.send(&Packet::PubComp(Ack::success(ack.packet_id)))?,
            _ => {}
        }
        Ok(())
    }

    fn settle(&mut self, ack: &Ack, expected: Awaiting) {
        if self.unacknowledged.get(&ack.packet_id).is_none_or(|one| one.awaiting != expected) {
            return;
        }
        self.unacknowledged.remove(&ack.packet_id);
        if ack.reason_code.is_error() {
            self.refused += 1;
            let detail = ack.properties.reason_string.as_ref().map_or_else(String::new, |text| format!(": {text}"));
            if self.options.quiet {
                return;
            }
            let code = ack.reason_code as u8;
            eprintln!(
                "kentongan pub: message {} was refused: {} (0x{code:02X}){detail}",
                ack.packet_id,
                spaced(ack.reason_code)
            );
        }
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| String::from("seconds, such as 0.5"))
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use clap::Parser;
    use kentongan_proto::mqtt::Connect;
    use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, Sender};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::{Cli, Command};
    use super::*;

    /// The broker's end of a connection.
    struct End {
        stream: TcpStream,
        version: ProtocolVersion,
        inbound: Vec<u8>,
    }

    impl End {
        /// Takes the next connection, and says whether there is a session.
        async fn accept(listener: &TcpListener, connack: ConnAck) -> (Self, Connect) {
            let (stream, _) = listener.accept().await.unwrap();
            let mut end = Self { stream, version: ProtocolVersion::V5, inbound: Vec::new() };
            let Some(Packet::Connect(connect)) = end.next().await else { panic!("no CONNECT") };
            end.version = connect.version;
            end.send(Packet::ConnAck(Box::new(connack))).await;
            (end, *connect)
        }

        async fn send(&mut self, packet: Packet) {
            let mut bytes = Vec::new();
            codec::encode(&packet, self.version, &mut bytes).unwrap();
            self.stream.write_all(&bytes).await.unwrap();
        }

        async fn next(&mut self) -> Option<Packet> {
            loop {
                if let FrameStatus::Complete(frame) =
                    codec::split_frame(&self.inbound, Sender::Client, &Limits::default()).unwrap()
                {
                    let limits = Limits::default();
                    let packet = codec::decode(&frame, None, self.version, Sender::Client, &limits).unwrap();
                    let length = frame.len();
                    self.inbound.drain(..length);
                    return Some(packet);
                }
                if self.stream.read_buf(&mut self.inbound).await.unwrap() == 0 {
                    return None;
                }
            }
        }

        /// The next message: its number, its payload, and whether it comes again.
        async fn message(&mut self) -> (u16, String, bool) {
            match self.next().await {
                Some(Packet::Publish(publish)) => {
                    let id = publish.delivery.packet_id().map_or(0, u16::from);
                    (id, String::from_utf8(publish.payload.to_vec()).unwrap(), publish.dup)
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn id(number: u16) -> Ack {
        Ack::success(PacketId::new(number).unwrap())
    }

    fn connack(session_present: bool) -> ConnAck {
        ConnAck { session_present, reason_code: ReasonCode::Success, properties: ConnAckProperties::default() }
    }

    fn message(number: u16, payload: &str, dup: bool) -> (u16, String, bool) {
        (number, payload.to_owned(), dup)
    }

    /// Publishes lines at a broker that the test plays.
    fn with_lines<F: Future<Output = ()>>(
        line: &str,
        play: impl FnOnce(TcpListener, mpsc::Sender<Bytes>) -> F,
    ) -> Result<(), PublishError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port().to_string();
            let words = ["kentongan", "pub", "-h", "127.0.0.1", "-p", &port, "-t", "t", "-l"];
            let cli = Cli::try_parse_from(words.into_iter().chain(line.split(' '))).unwrap();
            let Some(Command::Pub(arguments)) = cli.command else { panic!("this command") };
            let options = arguments.connection.resolve().unwrap();
            let (lines, source) = mpsc::channel(64);
            let publisher = Publisher::new(&arguments, options, String::from("t")).run(Source::Lines(source));
            let both = async { tokio::join!(publisher, play(listener, lines)) };
            tokio::time::timeout(Duration::from_secs(20), both).await.expect("it ends").0
        })
    }

    async fn say(lines: &mpsc::Sender<Bytes>, texts: &[&str]) {
        for text in texts {
            lines.send(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
        }
    }

    #[test]
    fn a_lost_connection_is_made_again_and_what_was_not_acknowledged_is_sent_as_new_messages() {
        let done = with_lines("-q 1 -M 2", async |listener, lines| {
            let (mut end, connect) = End::accept(&listener, connack(false)).await;
            assert!(connect.clean_start);
            say(&lines, &["one", "two"]).await;
            assert_eq!(end.message().await, message(1, "one", false));
            assert_eq!(end.message().await, message(2, "two", false));
            end.send(Packet::PubAck(id(1))).await;
            say(&lines, &["three", "four"]).await;
            assert_eq!(end.message().await, message(3, "three", false));
            drop(end);
            let (mut end, connect) = End::accept(&listener, connack(false)).await;
            assert!(connect.clean_start && connect.client_id.is_empty());
            assert_eq!(end.message().await, message(2, "two", false));
            assert_eq!(end.message().await, message(3, "three", false));
            end.send(Packet::PubAck(id(2))).await;
            assert_eq!(end.message().await, message(4, "four", false));
            drop(lines);
            end.send(Packet::PubAck(id(3))).await;
            end.send(Packet::PubAck(id(4))).await;
            assert!(matches!(end.next().await, Some(Packet::Disconnect(_))));
        });
        done.unwrap();
    }

    /// [MQTT-3.3.1-1], [MQTT-4.4.0-1].
    #[test]
    fn in_a_session_that_is_kept_each_message_goes_on_where_it_was() {
        for flags in ["-q 2 -x 60", "-q 2 -c -i kept", "-q 2 -c -i kept -V 311"] {
            let done = with_lines(flags, async |listener, lines| {
                let properties = ConnAckProperties {
                    assigned_client_identifier: flags.contains("-x").then(|| String::from("kept")),
                    ..ConnAckProperties::default()
                };
                let (mut end, connect) = End::accept(&listener, ConnAck { properties, ..connack(false) }).await;
                assert_eq!(connect.clean_start, flags.contains("-x"));
                say(&lines, &["one", "two", "three"]).await;
                for (number, text) in [(1, "one"), (2, "two"), (3, "three")] {
                    assert_eq!(end.message().await, message(number, text, false));
                }
                for number in [1, 2] {
                    end.send(Packet::PubRec(id(number))).await;
                    assert_eq!(end.next().await, Some(Packet::PubRel(id(number))));
                }
                end.send(Packet::PubComp(id(1))).await;
                drop(end);
                let (mut end, connect) = End::accept(&listener, connack(true)).await;
                assert_eq!((connect.clean_start, connect.client_id.as_str()), (false, "kept"));
                assert_eq!(end.next().await, Some(Packet::PubRel(id(2))));
                assert_eq!(end.message().await, message(3, "three", true));
                drop(end);
                // It has ended meanwhile: the broker had the second one, and may not have had the third.
                let (mut end, _) = End::accept(&listener, connack(false)).await;
                assert_eq!(end.message().await, message(3, "three", false));
                drop(lines);
                end.send(Packet::PubRec(id(3))).await;
                assert_eq!(end.next().await, Some(Packet::PubRel(id(3))));
                end.send(Packet::PubComp(id(3))).await;
                assert!(matches!(end.next().await, Some(Packet::Disconnect(_))));
            });
            done.unwrap();
        }
    }

    #[test]
    fn lines_wait_for_a_connection_at_qos_0() {
        let done = with_lines("-q 0", async |listener, lines| {
            let (mut end, _) = End::accept(&listener, connack(false)).await;
            say(&lines, &["one"]).await;
            assert_eq!(end.message().await, message(0, "one", false));
            drop(end);
            let (mut end, _) = End::accept(&listener, connack(false)).await;
            say(&lines, &["two"]).await;
            drop(lines);
            assert_eq!(end.message().await, message(0, "two", false));
            assert!(matches!(end.next().await, Some(Packet::Disconnect(_))));
        });
        done.unwrap();
    }

    #[test]
    fn a_broker_that_wants_no_more_is_not_asked_again() {
        for reason_code in [ReasonCode::SessionTakenOver, ReasonCode::TopicNameInvalid] {
            let done = with_lines("-q 1", async |listener, lines| {
                let (mut end, _) = End::accept(&listener, connack(false)).await;
                say(&lines, &["one"]).await;
                assert_eq!(end.message().await, message(1, "one", false));
                let disconnect = Disconnect { reason_code, properties: Default::default() };
                end.send(Packet::Disconnect(disconnect)).await;
            });
            let text = done.unwrap_err().to_string();
            assert!(text.ends_with("; 1 messages were not acknowledged"), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_sent_is_an_error() {
        let done = with_lines("-q 1 -V 311", async |listener, lines| {
            let (mut end, _) = End::accept(&listener, connack(false)).await;
            // With what stands before it, more than a Remaining Length can say.
            lines.send(Bytes::from(vec![b'x'; 268_435_455])).await.unwrap();
            assert_eq!(end.next().await, None);
        });
        assert!(done.unwrap_err().to_string().starts_with("PUBLISH cannot be sent: "));
        let will = format!("-q 1 --will-topic t --will-payload {}", "x".repeat(70_000));
        let done = with_lines(&will, async |listener, _| drop(listener.accept().await));
        assert!(done.unwrap_err().to_string().starts_with("CONNECT cannot be sent: "));
    }
}
