//! A connection that may break at any byte, and says so.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, Sender};
use kentongan_proto::mqtt::*;

/// Time within which a broker that is well answers.
const DEADLINE: Duration = Duration::from_secs(10);

/// A connection of a client.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    version: ProtocolVersion,
    incoming: Vec<u8>,
}

/// The session a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// One that ends with its connection.
    Transient,
    /// One that stays.
    Persistent,
}

impl Link {
    /// A connection on which nothing was said.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn dial(address: SocketAddr, version: ProtocolVersion) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self { stream, version, incoming: Vec::new() })
    }

    /// Connects; also says whether a session was there.
    ///
    /// # Errors
    /// The connection broke, or the broker refuses it.
    pub fn open(
        address: SocketAddr,
        version: ProtocolVersion,
        client_id: &str,
        session: Session,
    ) -> io::Result<(Self, bool)> {
        let mut link = Self::dial(address, version)?;
        let mut connect = Connect {
            version,
            bridge: false,
            clean_start: session == Session::Transient,
            keep_alive: 60,
            client_id: client_id.to_owned(),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        };
        if version.is_v5() && session == Session::Persistent {
            connect.properties.session_expiry_interval = Some(3600);
        }
        link.send(&Packet::Connect(Box::new(connect)))?;
        match link.expect()? {
            Packet::ConnAck(answer) if !answer.reason_code.is_error() => Ok((link, answer.session_present)),
            other => Err(io::Error::new(ErrorKind::ConnectionRefused, format!("{other:?}"))),
        }
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// The connection broke, or takes nothing.
    ///
    /// # Panics
    /// The packet cannot be encoded, which is the caller's mistake.
    pub fn send(&mut self, packet: &Packet) -> io::Result<()> {
        let mut bytes = Vec::new();
        codec::encode(packet, self.version, &mut bytes).expect("a packet that can be encoded");
        self.stream.write_all(&bytes)
    }

    /// The next packet; `None` if there is none within `wait`.
    ///
    /// # Errors
    /// The connection ended.
    ///
    /// # Panics
    /// What comes is no MQTT: a mistake of the broker that no promise speaks of.
    pub fn receive_within(&mut self, wait: Duration) -> io::Result<Option<Packet>> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(packet) = self.decode() {
                return Ok(Some(packet));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.incoming.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next packet, which is due.
    ///
    /// # Errors
    /// The connection ended, or there is none.
    pub fn expect(&mut self) -> io::Result<Packet> {
        self.receive_within(DEADLINE)?.ok_or_else(|| ErrorKind::TimedOut.into())
    }

    /// Subscribes, on a connection on which nothing else happens.
    ///
    /// # Errors
    /// The connection ended, or the broker refuses.
    pub fn subscribe(&mut self, filter: &str, qos: QoS) -> io::Result<()> {
        let packet_id = PacketId::MIN;
        self.send(&Packet::Subscribe(Subscribe {
            packet_id,
            filters: vec![(filter.to_owned(), SubscriptionOptions::new(qos))],
            subscription_identifier: None,
            user_properties: Vec::new(),
        }))?;
        match self.expect()? {
            Packet::SubAck(answer) if !answer.reason_codes[0].is_error() => Ok(()),
            other => Err(io::Error::other(format!("SUBACK expected, got {other:?}"))),
        }
    }

    fn decode(&mut self) -> Option<Packet> {
        let limits = Limits { packet_bytes_max: 268_435_460, ..Limits::default() };
        let frame = match codec::split_frame(&self.incoming, Sender::Server, &limits) {
            Ok(FrameStatus::Complete(frame)) => frame,
            Ok(FrameStatus::Incomplete { .. }) => return None,
            Err(error) => panic!("the broker sent a malformed packet: {error}"),
        };
        let packet = codec::decode(&frame, None, self.version, Sender::Server, &limits);
        let packet = packet.expect("the broker sends well-formed packets");
        let length = frame.len();
        self.incoming.drain(..length);
        Some(packet)
    }
}
