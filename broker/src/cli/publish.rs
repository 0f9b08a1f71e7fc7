//! `kentongan pub`: publish from the command line, as mosquitto_pub does.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgGroup, Args};
use kentongan_proto::mqtt::{
    Ack, ConnAckProperties, Delivery, Disconnect, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode,
};
use kentongan_proto::topic;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::client::{ClientError, Connection, spaced};
use super::options::{ConnectOptions, ConnectionArgs, parse_qos};
use super::payload::{PayloadArgs, PayloadError};
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
    let outcome = runtime.block_on(async {
        let (connection, connack) = Connection::open(&options).await?;
        arguments.check_offer(&connack.properties)?;
        let window = connack.properties.receive_maximum.unwrap_or(NonZeroU16::MAX).min(arguments.max_inflight);
        let publisher = Publisher {
            arguments,
            topic,
            properties: options.properties.publish.clone(),
            packet_bytes_max: connack.properties.maximum_packet_size,
            window: window.get().into(),
            connection,
            unacknowledged: BTreeMap::new(),
            last_id: 0,
            refused: 0,
            quiet: options.quiet,
        };
        publisher.run(source, &options).await
    });
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

struct Publisher<'a> {
    arguments: &'a PublishArgs,
    topic: String,
    properties: PublishProperties,
    packet_bytes_max: Option<u32>,
    window: usize,
    connection: Connection,
    unacknowledged: BTreeMap<PacketId, Awaiting>,
    last_id: u16,
    refused: u64,
    quiet: bool,
}

impl Publisher<'_> {
    async fn run(mut self, mut source: Source, options: &ConnectOptions) -> Result<(), PublishError> {
        while !matches!(source, Source::Exhausted) || !self.unacknowledged.is_empty() {
            let room = self.unacknowledged.len() < self.window && !matches!(source, Source::Exhausted);
            tokio::select! {
                // Acknowledgements first: they make room.
                biased;
                packet = self.connection.next() => {
                    let packet = packet.map_err(|error| self.cut_off(error))?;
                    self.on_packet(packet);
                }
                payload = source.next(self.arguments.repeat_delay), if room => match payload {
                    Some(payload) => {
                        self.publish(payload)?;
                        self.connection.flush().await.map_err(|error| self.cut_off(error))?;
                    }
                    None => source = Source::Exhausted,
                },
            }
        }
        let disconnect =
            Disconnect { reason_code: ReasonCode::Success, properties: options.properties.disconnect.clone() };
        self.connection.close(disconnect).await?;
        match self.refused {
            0 => Ok(()),
            refused => Err(PublishError::SomeRefused(refused)),
        }
    }

    fn cut_off(&self, source: ClientError) -> PublishError {
        match self.unacknowledged.len() {
            0 => PublishError::Client(source),
            unacknowledged => PublishError::Unacknowledged { source, unacknowledged },
        }
    }

    fn publish(&mut self, payload: Bytes) -> Result<(), PublishError> {
        let delivery = match self.arguments.qos {
            QoS::AtMostOnce => Delivery::AtMostOnce,
            QoS::AtLeastOnce => Delivery::AtLeastOnce(self.new_id(Awaiting::Acknowledged)),
            QoS::ExactlyOnce => Delivery::ExactlyOnce(self.new_id(Awaiting::Received)),
        };
        let (topic, properties) = (self.topic.clone(), self.properties.clone());
        let retain = self.arguments.retain;
        let packet = Packet::Publish(Publish { dup: false, delivery, retain, topic, properties, payload });
        let size = wire::size(&packet, self.connection.version());
        if self.packet_bytes_max.is_some_and(|maximum| size > maximum as usize) {
            // [MQTT-3.2.2-15]
            let maximum = self.packet_bytes_max.unwrap_or_default();
            let message = format!("the message makes a packet of {size} bytes; the broker takes {maximum}");
            return Err(PublishError::NotOffered(message));
        }
        self.connection.send(&packet);
        Ok(())
    }

    /// A Packet Identifier that no unacknowledged message has. There is one: the window is below 65,535.
    fn new_id(&mut self, awaiting: Awaiting) -> PacketId {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if let Some(id) = PacketId::new(self.last_id).filter(|id| !self.unacknowledged.contains_key(id)) {
                self.unacknowledged.insert(id, awaiting);
                return id;
            }
        }
    }

    fn on_packet(&mut self, packet: Packet) {
        match packet {
            Packet::PubAck(ack) => self.settle(&ack, Awaiting::Acknowledged),
            Packet::PubRec(ack) if ack.reason_code.is_error() => self.settle(&ack, Awaiting::Received),
            Packet::PubRec(ack) => {
                if let Some(awaiting) = self.unacknowledged.get_mut(&ack.packet_id) {
                    *awaiting = Awaiting::Complete;
                }
                self.connection.send(&Packet::PubRel(Ack::success(ack.packet_id)));
            }
            Packet::PubComp(ack) => self.settle(&ack, Awaiting::Complete),
            // A kept session (-c) may hold subscriptions of an earlier `sub`; take what comes and let it go.
            Packet::Publish(Publish { delivery: Delivery::AtLeastOnce(id), .. }) => {
                self.connection.send(&Packet::PubAck(Ack::success(id)));
            }
            Packet::Publish(Publish { delivery: Delivery::ExactlyOnce(id), .. }) => {
                self.connection.send(&Packet::PubRec(Ack::success(id)));
            }
            Packet::PubRel(ack) => self.connection.send(&Packet::PubComp(Ack::success(ack.packet_id))),
            _ => {}
        }
    }

    fn settle(&mut self, ack: &Ack, expected: Awaiting) {
        if self.unacknowledged.get(&ack.packet_id) != Some(&expected) {
            return;
        }
        self.unacknowledged.remove(&ack.packet_id);
        if ack.reason_code.is_error() {
            self.refused += 1;
            let detail = ack.properties.reason_string.as_ref().map_or_else(String::new, |text| format!(": {text}"));
            if self.quiet {
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
