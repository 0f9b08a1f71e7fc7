//! `kentongan sub`: subscribe and print, as mosquitto_sub does.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufWriter, StdoutLock, Write};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use kentongan_proto::mqtt::{
    Ack, Delivery, Disconnect, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode, RetainHandling,
    Subscribe, SubscriptionOptions, Unsubscribe,
};
use kentongan_proto::topic::TopicFilter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::client::{ClientError, Connection, spaced};
use super::options::{ConnectOptions, ConnectionArgs, parse_qos};
use super::printing::{Printer, PrintingArgs};
use super::{EXIT_FAILURE, EXIT_TIMED_OUT, EXIT_USAGE};

/// Pause before a lost connection is made again.
pub(super) const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// The Packet Identifiers of the only requests that are made.
const SUBSCRIBE_ID: PacketId = PacketId::new(1).expect("not zero");
const UNSUBSCRIBE_ID: PacketId = PacketId::new(2).expect("not zero");

/// The flags of mosquitto_sub.
#[derive(Debug, Clone, Args)]
pub(super) struct SubscribeArgs {
    /// Topic Filter to subscribe to; may be repeated.
    #[arg(short = 't', long, value_name = "FILTER", required_unless_present_any = ["unsubscribe", "url"])]
    topic: Vec<String>,
    /// Maximum QoS of the subscriptions.
    #[arg(short = 'q', long, default_value = "0", value_name = "QOS", value_parser = parse_qos)]
    qos: QoS,
    /// Exit after this many messages.
    #[arg(short = 'C', value_name = "MESSAGES")]
    count: Option<NonZeroU64>,
    /// Exit after this many seconds, with exit code 27.
    #[arg(short = 'W', value_name = "SECONDS")]
    timeout: Option<NonZeroU32>,
    #[command(flatten)]
    printing: PrintingArgs,
    /// Do not print messages whose topic matches this filter; may be repeated.
    #[arg(short = 'T', long, value_name = "FILTER")]
    filter_out: Vec<String>,
    /// Unsubscribe from this filter, after subscribing; may be repeated.
    #[arg(short = 'U', long, value_name = "FILTER")]
    unsubscribe: Vec<String>,
    /// Do not print retained messages.
    #[arg(short = 'R')]
    no_retain: bool,
    /// Print retained messages only, and exit at the first that is not.
    #[arg(long)]
    retained_only: bool,
    /// Keep the RETAIN flag as it was published (MQTT 5).
    #[arg(long)]
    retain_as_published: bool,
    /// Delete each retained message that comes, save those filtered out by -T.
    #[arg(long)]
    remove_retained: bool,
    /// Print only this percentage of the messages, chosen at random.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    random_filter: Option<f64>,
    /// Exit once the subscriptions are acknowledged.
    #[arg(short = 'E')]
    exit_after_sub: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Why subscribing came to nothing.
#[derive(Debug, thiserror::Error)]
enum SubscribeError {
    /// The flags: the user's to mend.
    #[error("{0}")]
    Usage(String),
    /// The connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No subscription was granted; each was said.
    #[error("all subscriptions were refused")]
    AllRefused,
    /// Standard output.
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}

pub(super) fn run(arguments: &SubscribeArgs) -> u8 {
    let quiet = arguments.connection.resolve().is_ok_and(|options| options.quiet);
    match run_to_end(arguments) {
        Ok(code) => code,
        Err(SubscribeError::Usage(message)) => {
            eprintln!("kentongan sub: {message}");
            EXIT_USAGE
        }
        // Whoever read our output has gone, as `head` does.
        Err(SubscribeError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            if !quiet {
                eprintln!("kentongan sub: {error}");
            }
            EXIT_FAILURE
        }
    }
}

fn run_to_end(arguments: &SubscribeArgs) -> Result<u8, SubscribeError> {
    let options = arguments.connection.resolve().map_err(SubscribeError::Usage)?;
    let mut subscriber = Subscriber::new(arguments, &options).map_err(SubscribeError::Usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ClientError::Failed)?.block_on(subscriber.run())
}

/// Whether to go on with the next packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Continue,
    Done,
}

struct Subscriber<'a> {
    arguments: &'a SubscribeArgs,
    options: &'a ConnectOptions,
    filters: Vec<String>,
    filtered_out: Vec<TopicFilter>,
    printer: Printer,
    out: BufWriter<StdoutLock<'static>>,
    printed: u64,
    /// QoS 2 messages that wait for PUBREL; part of the session, so it outlives a connection.
    unreleased: BTreeMap<PacketId, Publish>,
    aliases: HashMap<u16, String>,
    requests_open: u8,
}

impl<'a> Subscriber<'a> {
    fn new(arguments: &'a SubscribeArgs, options: &'a ConnectOptions) -> Result<Self, String> {
        let mut filters = arguments.topic.clone();
        filters.extend(options.topic.clone());
        for filter in filters.iter().chain(&arguments.unsubscribe) {
            parse_filter(filter)?;
        }
        if arguments.retain_as_published && !options.is_v5() {
            return Err(String::from("--retain-as-published wants MQTT 5; leave out -V or give -V 5"));
        }
        let printer = arguments.printing.resolve()?;
        Ok(Self {
            arguments,
            options,
            filters,
            filtered_out: arguments.filter_out.iter().map(|filter| parse_filter(filter)).collect::<Result<_, _>>()?,
            printer,
            out: BufWriter::new(io::stdout().lock()),
            printed: 0,
            unreleased: BTreeMap::new(),
            aliases: HashMap::new(),
            requests_open: 0,
        })
    }

    /// Connects, again if need be, until there is a reason to exit.
    async fn run(&mut self) -> Result<u8, SubscribeError> {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let mut connection = None;
        let timeout = self.arguments.timeout.map(|seconds| Duration::from_secs(seconds.get().into()));
        let outcome = tokio::select! {
            outcome = self.serve(&mut connection) => outcome.map(|()| 0),
            () = after(timeout) => Ok(EXIT_TIMED_OUT),
            _ = interrupted.recv() => Ok(0),
            _ = terminated.recv() => Ok(0),
        };
        if let Some(connection) = connection {
            let properties = self.options.properties.disconnect.clone();
            let closed = connection.close(Disconnect { reason_code: ReasonCode::Success, properties }).await;
            if let (Ok(0), Err(error)) = (&outcome, closed) {
                return Err(error.into());
            }
        }
        if outcome.as_ref().is_ok_and(|&code| code == EXIT_TIMED_OUT) && !self.options.quiet {
            eprintln!("Timed out");
        }
        self.out.flush()?;
        outcome
    }

    async fn serve(&mut self, connection: &mut Option<Connection>) -> Result<(), SubscribeError> {
        let mut connected_once = false;
        loop {
            let outcome = self.serve_once(connection, &mut connected_once).await;
            match outcome {
                Err(SubscribeError::Client(error)) if connected_once && error.may_retry() => {
                    *connection = None;
                    if !self.options.quiet {
                        eprintln!("kentongan sub: {error}; connecting again");
                    }
                    sleep(RECONNECT_DELAY).await;
                }
                Err(error @ SubscribeError::Client(_)) => {
                    *connection = None;
                    return Err(error);
                }
                other => return other,
            }
        }
    }

    async fn serve_once(
        &mut self,
        slot: &mut Option<Connection>,
        connected_once: &mut bool,
    ) -> Result<(), SubscribeError> {
        let (connection, connack) = Connection::open(self.options).await?;
        let connection = slot.insert(connection);
        *connected_once = true;
        self.aliases.clear();
        if !connack.session_present {
            self.unreleased.clear();
        }
        self.request(connection)?;
        loop {
            let packet = connection.next().await?;
            if self.on_packet(packet, connection)? == Step::Done {
                return Ok(());
            }
            if connection.is_drained() {
                self.out.flush()?;
            }
        }
    }

    fn request(&mut self, connection: &mut Connection) -> Result<(), ClientError> {
        let properties = &self.options.properties;
        let subscription = SubscriptionOptions {
            qos: self.arguments.qos,
            no_local: false,
            retain_as_published: self.arguments.retain_as_published,
            retain_handling: RetainHandling::Always,
        };
        self.requests_open = 0;
        if !self.filters.is_empty() {
            self.requests_open += 1;
            connection.send(&Packet::Subscribe(Subscribe {
                packet_id: SUBSCRIBE_ID,
                filters: self.filters.iter().map(|filter| (filter.clone(), subscription)).collect(),
                subscription_identifier: properties.subscription_identifier,
                user_properties: properties.subscribe_user.clone(),
            }))?;
        }
        if !self.arguments.unsubscribe.is_empty() {
            self.requests_open += 1;
            connection.send(&Packet::Unsubscribe(Unsubscribe {
                packet_id: UNSUBSCRIBE_ID,
                filters: self.arguments.unsubscribe.clone(),
                user_properties: properties.unsubscribe_user.clone(),
            }))?;
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: Packet, connection: &mut Connection) -> Result<Step, SubscribeError> {
        match packet {
            Packet::SubAck(suback) => {
                self.requests_open = self.requests_open.saturating_sub(1);
                self.on_suback(&suback.reason_codes)?;
                return Ok(self.after_request());
            }
            Packet::UnsubAck(_) => {
                self.requests_open = self.requests_open.saturating_sub(1);
                return Ok(self.after_request());
            }
            Packet::Publish(publish) => return self.on_publish(publish, connection),
            Packet::PubRel(ack) => {
                let released = self.unreleased.remove(&ack.packet_id);
                let known = if released.is_some() { ReasonCode::Success } else { ReasonCode::PacketIdentifierNotFound };
                connection.send(&Packet::PubComp(Ack::with_reason(ack.packet_id, known)))?;
                if let Some(publish) = released {
                    return self.on_message(publish, connection);
                }
            }
            _ => {}
        }
        Ok(Step::Continue)
    }

    fn on_suback(&self, reason_codes: &[ReasonCode]) -> Result<(), SubscribeError> {
        if self.options.debug {
            let granted: Vec<String> = reason_codes.iter().map(|&code| (code as u8).to_string()).collect();
            eprintln!("Subscribed (mid: {SUBSCRIBE_ID}): {}", granted.join(", "));
        }
        let refused = self.filters.iter().zip(reason_codes).filter(|(_, code)| code.is_error());
        for (filter, &code) in refused.filter(|_| !self.options.quiet) {
            eprintln!(
                "kentongan sub: the subscription `{filter}` was refused: {} (0x{:02X})",
                spaced(code),
                code as u8
            );
        }
        if !reason_codes.is_empty() && reason_codes.iter().all(|code| code.is_error()) {
            return Err(SubscribeError::AllRefused);
        }
        Ok(())
    }

    fn after_request(&self) -> Step {
        if self.arguments.exit_after_sub && self.requests_open == 0 { Step::Done } else { Step::Continue }
    }

    fn on_publish(&mut self, mut publish: Publish, connection: &mut Connection) -> Result<Step, SubscribeError> {
        if let Some(alias) = publish.properties.topic_alias {
            if publish.topic.is_empty() {
                publish.topic = self
                    .aliases
                    .get(&alias)
                    .cloned()
                    .ok_or_else(|| ClientError::NotMqtt(format!("topic alias {alias} was never given a topic")))?;
            } else {
                self.aliases.insert(alias, publish.topic.clone());
            }
        }
        match publish.delivery {
            Delivery::AtMostOnce => {}
            Delivery::AtLeastOnce(id) => connection.send(&Packet::PubAck(Ack::success(id)))?,
            Delivery::ExactlyOnce(id) => {
                connection.send(&Packet::PubRec(Ack::success(id)))?;
                self.unreleased.insert(id, publish);
                return Ok(Step::Continue);
            }
        }
        self.on_message(publish, connection)
    }

    /// Prints a message, unless a flag is against it.
    fn on_message(&mut self, message: Publish, connection: &mut Connection) -> Result<Step, SubscribeError> {
        let arguments = self.arguments;
        if arguments.retained_only && !message.retain {
            return Ok(Step::Done);
        }
        if self.filtered_out.iter().any(|filter| filter.matches(&message.topic)) {
            return Ok(Step::Continue);
        }
        if arguments.remove_retained && message.retain {
            connection.send(&Packet::Publish(deletion(message.topic.clone())))?;
        }
        let unlucky = |percent| rand::random::<f64>() * 100.0 >= percent;
        if (arguments.no_retain && message.retain) || arguments.random_filter.is_some_and(unlucky) {
            return Ok(Step::Continue);
        }
        self.printer.print(&message, &mut self.out, "sub", self.options.quiet)?;
        self.printed += 1;
        let enough = arguments.count.is_some_and(|count| self.printed >= count.get());
        Ok(if enough { Step::Done } else { Step::Continue })
    }
}

/// What deletes the retained message of a topic. QoS 0 suffices: the broker reads it before our DISCONNECT.
fn deletion(topic: String) -> Publish {
    Publish {
        dup: false,
        delivery: Delivery::AtMostOnce,
        retain: true,
        topic,
        properties: PublishProperties::default(),
        payload: Bytes::new(),
    }
}

/// After that time, or never.
pub(super) async fn after(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => sleep(timeout).await,
        None => std::future::pending().await,
    }
}

fn parse_filter(text: &str) -> Result<TopicFilter, String> {
    TopicFilter::parse(text).map_err(|error| format!("`{text}` is not a Topic Filter: {error}"))
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| String::from("a percentage from 0 to 100"))
}
