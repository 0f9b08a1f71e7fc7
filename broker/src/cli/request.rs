//! `kentongan rr`: publish a request and wait for the response, as mosquitto_rr does.
//!
//! With MQTT 5 the request says where the response goes (Response Topic) and carries Correlation Data, by which the response
//! is told from those to others who wait on the same topic. A response without any is taken: older programs send none back.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgGroup, Args};
use kentongan_proto::mqtt::{
    Ack, Delivery, Disconnect, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode, RetainHandling,
    Subscribe, SubscriptionOptions,
};
use kentongan_proto::topic;

use super::client::{ClientError, Connection, spaced};
use super::options::{ConnectOptions, ConnectionArgs, parse_qos};
use super::payload::{PayloadArgs, PayloadError};
use super::printing::{Printer, PrintingArgs};
use super::subscribe::after;
use super::{EXIT_FAILURE, EXIT_TIMED_OUT, EXIT_USAGE};

/// The Packet Identifiers of the only requests that are made.
const SUBSCRIBE_ID: PacketId = PacketId::new(1).expect("not zero");
const PUBLISH_ID: PacketId = PacketId::new(2).expect("not zero");

/// The flags of mosquitto_rr.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("payload").required(true))]
pub(super) struct RequestArgs {
    /// Topic Name to publish the request to.
    #[arg(short = 't', long, value_name = "TOPIC", required_unless_present = "url")]
    topic: Option<String>,
    /// Topic Name on which the response is to come.
    #[arg(short = 'e', value_name = "TOPIC")]
    response_topic: String,
    #[command(flatten)]
    payload: PayloadArgs,
    /// QoS of the request and of the subscription to the response.
    #[arg(short = 'q', long, default_value = "0", value_name = "QOS", value_parser = parse_qos)]
    qos: QoS,
    /// Exit after this many seconds, with exit code 27.
    #[arg(short = 'W', value_name = "SECONDS")]
    timeout: Option<NonZeroU32>,
    #[command(flatten)]
    printing: PrintingArgs,
    /// A retained message is no response.
    #[arg(short = 'R')]
    no_retain: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    /// The flags: the user's to mend.
    #[error("{0}")]
    Usage(String),
    /// There is no request.
    #[error("{0}")]
    NoMessage(PayloadError),
    /// The connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The broker does not let us.
    #[error("{0} was refused: {name} (0x{code:02X})", name = spaced(*.1), code = *.1 as u8)]
    Refused(&'static str, ReasonCode),
    /// Standard output.
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}

pub(super) fn run(arguments: &RequestArgs) -> u8 {
    let quiet = arguments.connection.resolve().is_ok_and(|options| options.quiet);
    match run_to_end(arguments) {
        Ok(code) => {
            if code == EXIT_TIMED_OUT && !quiet {
                eprintln!("Timed out");
            }
            code
        }
        Err(RequestError::Usage(message)) => {
            eprintln!("kentongan rr: {message}");
            EXIT_USAGE
        }
        Err(error) => {
            if !quiet {
                eprintln!("kentongan rr: {error}");
            }
            EXIT_FAILURE
        }
    }
}

fn run_to_end(arguments: &RequestArgs) -> Result<u8, RequestError> {
    let options = arguments.connection.resolve().map_err(RequestError::Usage)?;
    let requester = Requester::new(arguments, &options)?;
    let timeout = arguments.timeout.map(|seconds| Duration::from_secs(seconds.get().into()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ClientError::Failed)?.block_on(async {
        tokio::select! {
            outcome = requester.run() => outcome.map(|()| 0),
            () = after(timeout) => Ok(EXIT_TIMED_OUT),
        }
    })
}

struct Requester<'a> {
    arguments: &'a RequestArgs,
    options: &'a ConnectOptions,
    topic: String,
    payload: Bytes,
    properties: PublishProperties,
    printer: Printer,
    /// QoS 2 messages that wait for PUBREL.
    unreleased: BTreeMap<PacketId, Publish>,
}

impl<'a> Requester<'a> {
    fn new(arguments: &'a RequestArgs, options: &'a ConnectOptions) -> Result<Self, RequestError> {
        let topic = arguments.topic.clone().or_else(|| options.topic.clone()).unwrap_or_default();
        for name in [&topic, &arguments.response_topic] {
            if topic::check_topic_name(name).is_err() {
                let message = format!("`{name}` is not a Topic Name: it must not be empty nor contain +, # or NUL");
                return Err(RequestError::Usage(message));
            }
        }
        let payload = arguments.payload.read().map(Bytes::from).map_err(|error| match error {
            PayloadError::Usage(message) => RequestError::Usage(message),
            error @ PayloadError::EmptyInput => RequestError::NoMessage(error),
        })?;
        let mut properties = options.properties.publish.clone();
        if options.is_v5() {
            properties.response_topic = Some(arguments.response_topic.clone());
            let random = || Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
            properties.correlation_data.get_or_insert_with(random);
        }
        let printer = arguments.printing.resolve().map_err(RequestError::Usage)?;
        Ok(Self { arguments, options, topic, payload, properties, printer, unreleased: BTreeMap::new() })
    }

    async fn run(mut self) -> Result<(), RequestError> {
        let (mut connection, _) = Connection::open(self.options).await?;
        connection.send(&self.subscription())?;
        let response = loop {
            let packet = connection.next().await?;
            if let Some(response) = self.on_packet(packet, &mut connection)? {
                break response;
            }
        };
        let properties = self.options.properties.disconnect.clone();
        connection.close(Disconnect { reason_code: ReasonCode::Success, properties }).await?;
        self.print(&response)
    }

    fn subscription(&self) -> Packet {
        let options = SubscriptionOptions {
            qos: self.arguments.qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Always,
        };
        Packet::Subscribe(Subscribe {
            packet_id: SUBSCRIBE_ID,
            filters: vec![(self.arguments.response_topic.clone(), options)],
            subscription_identifier: self.options.properties.subscription_identifier,
            user_properties: self.options.properties.subscribe_user.clone(),
        })
    }

    fn request(&self) -> Packet {
        let delivery = match self.arguments.qos {
            QoS::AtMostOnce => Delivery::AtMostOnce,
            QoS::AtLeastOnce => Delivery::AtLeastOnce(PUBLISH_ID),
            QoS::ExactlyOnce => Delivery::ExactlyOnce(PUBLISH_ID),
        };
        let (topic, properties) = (self.topic.clone(), self.properties.clone());
        Packet::Publish(Publish {
            dup: false,
            delivery,
            retain: false,
            topic,
            properties,
            payload: self.payload.clone(),
        })
    }

    /// Returns the response, if this is it.
    fn on_packet(&mut self, packet: Packet, connection: &mut Connection) -> Result<Option<Publish>, RequestError> {
        match packet {
            Packet::SubAck(suback) => match suback.reason_codes.first() {
                Some(&code) if code.is_error() => return Err(RequestError::Refused("the subscription", code)),
                // Not before: the response could be faster than the subscription.
                _ => connection.send(&self.request())?,
            },
            Packet::PubAck(ack) | Packet::PubRec(ack) if ack.reason_code.is_error() => {
                return Err(RequestError::Refused("the request", ack.reason_code));
            }
            Packet::PubRec(ack) => connection.send(&Packet::PubRel(Ack::success(ack.packet_id)))?,
            Packet::PubRel(ack) => {
                connection.send(&Packet::PubComp(Ack::success(ack.packet_id)))?;
                return Ok(self.unreleased.remove(&ack.packet_id).filter(|message| self.is_response(message)));
            }
            Packet::Publish(publish) => match publish.delivery {
                Delivery::ExactlyOnce(id) => {
                    connection.send(&Packet::PubRec(Ack::success(id)))?;
                    self.unreleased.insert(id, publish);
                }
                Delivery::AtLeastOnce(id) => {
                    connection.send(&Packet::PubAck(Ack::success(id)))?;
                    return Ok(Some(publish).filter(|message| self.is_response(message)));
                }
                Delivery::AtMostOnce => return Ok(Some(publish).filter(|message| self.is_response(message))),
            },
            _ => {}
        }
        Ok(None)
    }

    fn is_response(&self, message: &Publish) -> bool {
        let theirs = message.properties.correlation_data.as_ref();
        let is_ours = theirs.is_none() || theirs == self.properties.correlation_data.as_ref();
        is_ours && !(self.arguments.no_retain && message.retain)
    }

    fn print(&self, response: &Publish) -> Result<(), RequestError> {
        let mut out = io::stdout().lock();
        self.printer.print(response, &mut out, "rr", self.options.quiet)?;
        Ok(out.flush()?)
    }
}
