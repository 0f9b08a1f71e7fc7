//! One connection to a broker, seen from the client: handshake, packets both ways, Keep Alive.
//!
//! Sessions are not kept here: what is unacknowledged belongs to whoever publishes or subscribes.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use kentongan_proto::mqtt::{ConnAck, Disconnect, Packet, ProtocolVersion, ReasonCode};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout};

use super::link::{Link, Stream};
use super::options::ConnectOptions;
use super::wire;
use crate::connection::Spoken;

/// How long a broker may take to accept a connection, and then to answer CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a connection could not be made, or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot find the host `{host}`: {source}; is -h right?")]
    UnknownHost { host: String, source: io::Error },
    #[error("cannot connect to {address}: {source}; {hint}")]
    Unreachable { address: String, source: io::Error, hint: &'static str },
    #[error(
        "{address} took the connection and did not answer CONNECT; is it an MQTT port, and one without TLS if none was asked for?"
    )]
    NoAnswer { address: String },
    #[error("no TLS with {address}: {text}{hint}")]
    Tls { address: String, text: String, hint: &'static str },
    #[error("the broker opens no WebSocket: {0}")]
    NoWebSocket(String),
    #[error("the broker refused the connection: {reason}{hint}")]
    Refused { reason: Reason, hint: &'static str },
    #[error("the broker ended the connection: {0}")]
    Disconnected(Reason),
    #[error("the broker closed the connection")]
    Closed,
    #[error("the connection failed: {0}")]
    Failed(#[source] io::Error),
    /// What was typed asks for more than MQTT can say.
    #[error("{packet} cannot be sent: {error}")]
    Unsendable { packet: &'static str, error: String },
    #[error("the broker answered nothing for a whole Keep Alive interval")]
    Silent,
    #[error("what came is not MQTT: {0}; is it an MQTT port, and the version (-V) one that the broker speaks?")]
    NotMqtt(String),
    #[error("what came is {spoken}, not MQTT; {}", instead_of_mqtt(*.spoken))]
    Foreign { spoken: Spoken },
    #[error("{address} closed the connection instead of answering by TLS; is it a port with TLS?")]
    NoTlsAnswer { address: String },
}

/// What to try where something else was heard than MQTT.
fn instead_of_mqtt(spoken: Spoken) -> &'static str {
    match spoken {
        Spoken::Tls => "the port wants TLS: say --cafile FILE, with the certificate of the broker's authority",
        Spoken::Http => "if it is a port with WebSocket, say --ws",
        Spoken::Mqtt | Spoken::ProxyHeader => "is it an MQTT port?",
    }
}

/// A Reason Code with what the broker said about it.
#[derive(Debug)]
pub(super) struct Reason {
    pub(super) code: ReasonCode,
    text: Option<String>,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (0x{:02X})", spaced(self.code), self.code as u8)?;
        match &self.text {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}

/// `NotAuthorized` as "Not authorized", the way the specification writes it.
pub(super) fn spaced(code: ReasonCode) -> String {
    let mut text = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push(' ');
            text.push(letter.to_ascii_lowercase());
        } else {
            text.push(letter);
        }
    }
    text
}

impl ClientError {
    /// Whether trying again later makes sense. A session that another client took over is not fought for, and what was wrong with a
    /// packet would be wrong with it again.
    pub(super) fn may_retry(&self) -> bool {
        match self {
            Self::Disconnected(reason) => reason.code != ReasonCode::SessionTakenOver && !blames_a_packet(reason.code),
            Self::Refused { reason, .. } => {
                matches!(reason.code, ReasonCode::ServerUnavailable | ReasonCode::ServerBusy)
            }
            Self::NotMqtt(_)
            | Self::Foreign { .. }
            | Self::Tls { .. }
            | Self::NoWebSocket(_)
            | Self::Unsendable { .. } => false,
            _ => true,
        }
    }
}

/// Whether a broker ends connections with this for what one packet says.
fn blames_a_packet(code: ReasonCode) -> bool {
    matches!(
        code,
        ReasonCode::MalformedPacket
            | ReasonCode::ProtocolError
            | ReasonCode::TopicFilterInvalid
            | ReasonCode::TopicNameInvalid
            | ReasonCode::TopicAliasInvalid
            | ReasonCode::PacketTooLarge
            | ReasonCode::PayloadFormatInvalid
            | ReasonCode::RetainNotSupported
            | ReasonCode::QosNotSupported
            | ReasonCode::SharedSubscriptionsNotSupported
            | ReasonCode::SubscriptionIdentifiersNotSupported
            | ReasonCode::WildcardSubscriptionsNotSupported
    )
}

/// An open connection. Every `async` method may be dropped half-way and called again; nothing is lost by it.
#[derive(Debug)]
pub(super) struct Connection {
    link: Link,
    version: ProtocolVersion,
    inbound: BytesMut,
    outbound: BytesMut,
    keep_alive: Option<Duration>,
    last_sent: Instant,
    ping_sent: Option<Instant>,
    /// Under this name the debug output speaks of us; without one there is none.
    debug_name: Option<String>,
}

impl Connection {
    /// Connects, and returns once CONNACK said success.
    pub(super) async fn open(options: &ConnectOptions) -> Result<(Self, ConnAck), ClientError> {
        let address = options.address();
        let linked = async { Link::over(dial(options).await?, options).await };
        let (link, inbound) = timeout(CONNECT_TIMEOUT, linked).await.map_err(|_| ClientError::Unreachable {
            address: address.clone(),
            source: io::ErrorKind::TimedOut.into(),
            hint: "is a firewall between here and there?",
        })??;
        let connect = &options.connect;
        let name = if connect.client_id.is_empty() { "(null)" } else { &connect.client_id };
        let keep_alive = Some(u64::from(connect.keep_alive)).filter(|&seconds| seconds != 0);
        let mut connection = Self {
            link,
            version: connect.version,
            inbound,
            outbound: BytesMut::new(),
            keep_alive: keep_alive.map(Duration::from_secs),
            last_sent: Instant::now(),
            ping_sent: None,
            debug_name: options.debug.then(|| name.to_owned()),
        };
        connection.send(&Packet::Connect(Box::new(connect.clone())))?;
        let answer = timeout(CONNECT_TIMEOUT, connection.connack()).await;
        let connack = answer.map_err(|_| ClientError::NoAnswer { address })??;
        if connack.reason_code.is_error() {
            let hint = hint(connack.reason_code, options);
            let text = connack.properties.reason_string.clone();
            return Err(ClientError::Refused { reason: Reason { code: connack.reason_code, text }, hint });
        }
        if let Some(seconds) = connack.properties.server_keep_alive {
            // [MQTT-3.1.2-21]
            connection.keep_alive = Some(Duration::from_secs(seconds.into())).filter(|time| !time.is_zero());
        }
        Ok((connection, connack))
    }

    async fn connack(&mut self) -> Result<ConnAck, ClientError> {
        match self.next().await? {
            Packet::ConnAck(connack) => Ok(*connack),
            other => Err(ClientError::NotMqtt(format!("{} before CONNACK", wire::name(&other)))),
        }
    }

    /// The version it speaks.
    pub(super) fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// Whether nothing that came still waits to be read by [`Connection::next`], save a packet's beginning.
    pub(super) fn is_drained(&self) -> bool {
        !wire::holds_packet(&self.inbound)
    }

    /// Puts a packet behind those that wait to be written.
    ///
    /// # Errors
    /// It cannot be expressed: what people typed was checked when it was parsed, and this is the last line. Nothing is sent of it.
    pub(super) fn send(&mut self, packet: &Packet) -> Result<(), ClientError> {
        let unsendable = |error| ClientError::Unsendable { packet: wire::name(packet), error };
        wire::encode(packet, self.version, &mut self.outbound).map_err(unsendable)?;
        if let Some(name) = &self.debug_name {
            eprintln!("Client {name} sending {}", wire::describe(packet));
        }
        Ok(())
    }

    /// Writes all that waits.
    pub(super) async fn flush(&mut self) -> Result<(), ClientError> {
        while self.outbound.has_remaining() || self.link.has_unwritten() {
            self.link.write(&mut self.outbound).await.map_err(ClientError::Failed)?;
            self.last_sent = Instant::now();
        }
        Ok(())
    }

    /// The next packet, PINGRESP aside. Meanwhile writes what waits, and keeps the connection alive.
    pub(super) async fn next(&mut self) -> Result<Packet, ClientError> {
        loop {
            if let Some(packet) = self.decode()? {
                return Ok(packet);
            }
            self.flush().await?;
            let ping_due = self.keep_alive.map(|interval| self.last_sent + interval);
            let silent_at = self.ping_sent.zip(self.keep_alive).map(|(sent, interval)| sent + interval);
            tokio::select! {
                read = self.link.read(&mut self.inbound) => match read {
                    Ok(false) => return Err(ClientError::Closed),
                    Ok(true) => {}
                    Err(error) => return Err(ClientError::Failed(error)),
                },
                () = at(silent_at) => return Err(ClientError::Silent),
                () = at(ping_due.filter(|_| self.ping_sent.is_none())) => {
                    self.send(&Packet::PingReq)?;
                    self.ping_sent = Some(Instant::now());
                }
            }
        }
    }

    fn decode(&mut self) -> Result<Option<Packet>, ClientError> {
        while let Some(packet) = self.decode_one()? {
            if let Some(name) = &self.debug_name {
                eprintln!("Client {name} received {}", wire::describe(&packet));
            }
            match packet {
                Packet::PingResp => self.ping_sent = None,
                Packet::Disconnect(Disconnect { reason_code, properties }) => {
                    let reason = Reason { code: reason_code, text: properties.reason_string };
                    return Err(ClientError::Disconnected(reason));
                }
                packet => return Ok(Some(packet)),
            }
        }
        Ok(None)
    }

    fn decode_one(&mut self) -> Result<Option<Packet>, ClientError> {
        wire::decode(&mut self.inbound, self.version).map_err(|text| match Spoken::instead_of_mqtt(&self.inbound) {
            Some(spoken) => ClientError::Foreign { spoken },
            None => ClientError::NotMqtt(text),
        })
    }

    /// Says goodbye, and waits until the broker has closed its end too, so that all we sent was read.
    pub(super) async fn close(mut self, disconnect: Disconnect) -> Result<(), ClientError> {
        self.send(&Packet::Disconnect(disconnect))?;
        self.flush().await?;
        // From here on the broker has everything; how the socket ends no longer matters.
        let _ = self.link.shut_down().await;
        let drained = async {
            while matches!(self.link.read(&mut self.inbound).await, Ok(true)) {
                self.inbound.clear();
            }
        };
        let _ = timeout(Duration::from_secs(1), drained).await;
        Ok(())
    }
}

/// At a moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn dial(options: &ConnectOptions) -> Result<Box<dyn Stream>, ClientError> {
    match &options.unix {
        Some(path) => Ok(Box::new(dial_unix(path, options).await?)),
        None => Ok(Box::new(dial_host(options).await?)),
    }
}

async fn dial_unix(path: &Path, options: &ConnectOptions) -> Result<UnixStream, ClientError> {
    UnixStream::connect(path).await.map_err(|source| {
        let hint = match source.kind() {
            io::ErrorKind::PermissionDenied => "whoever may write to it may connect (`unix_mode` of the listener)",
            _ => "is the broker running, and has it a listener there (`address = \"unix:PATH\"`)?",
        };
        ClientError::Unreachable { address: options.address(), source, hint }
    })
}

/// Tries every address of the host in turn.
async fn dial_host(options: &ConnectOptions) -> Result<TcpStream, ClientError> {
    let host = || options.host.clone();
    let addresses = lookup_host((options.host.as_str(), options.port)).await;
    let addresses = addresses.map_err(|source| ClientError::UnknownHost { host: host(), source })?;
    let mut failure = None;
    for address in addresses {
        match dial_one(address, options).await {
            Ok(stream) => return Ok(stream),
            // What is said first is said about the address that is tried first.
            Err(error) => failure = failure.or(Some((address, error))),
        }
    }
    let Some((address, source)) = failure else {
        let source = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        return Err(ClientError::UnknownHost { host: host(), source });
    };
    let hint = match source.kind() {
        io::ErrorKind::ConnectionRefused => "is the broker running there, and is -p right? `kentongan` starts one",
        io::ErrorKind::TimedOut => "is a firewall between here and there?",
        io::ErrorKind::AddrNotAvailable => "is -A an address of this machine?",
        _ => "is -h right, and the network up?",
    };
    Err(ClientError::Unreachable { address: address.to_string(), source, hint })
}

async fn dial_one(address: SocketAddr, options: &ConnectOptions) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(local) = options.bind {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    let stream = socket.connect(address).await?;
    if options.nodelay {
        stream.set_nodelay(true)?;
    }
    Ok(stream)
}

/// What to try about a refusal.
fn hint(code: ReasonCode, options: &ConnectOptions) -> &'static str {
    match code {
        ReasonCode::BadUserNameOrPassword | ReasonCode::NotAuthorized if options.connect.user_name.is_none() => {
            "; give a user with -u and -P, or let anonymous clients in (--allow-anonymous of the broker)"
        }
        ReasonCode::BadUserNameOrPassword => "; are -u and -P right?",
        ReasonCode::UnsupportedProtocolVersion => "; try another version with -V",
        ReasonCode::ClientIdentifierNotValid => "; try another Client Identifier with -i",
        ReasonCode::ServerUnavailable => "; the broker has no majority of its cluster or no storage now, try later",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_as_the_specification_writes_it() {
        let reason = Reason { code: ReasonCode::NotAuthorized, text: Some(String::from("no ACL")) };
        assert_eq!(reason.to_string(), "Not authorized (0x87): no ACL");
        assert_eq!(spaced(ReasonCode::GrantedQos1), "Granted qos1");
    }
}
