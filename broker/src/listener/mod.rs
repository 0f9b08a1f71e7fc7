//! Sockets that accept clients, and the thread that does it.
//!
//! One thread accepts for all listeners and deals the sockets out to the arbiters in turn: with few connections,
//! nothing else spreads them evenly.

mod accept;
mod certificates;
mod rate;
pub mod serve;
mod unix;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kentongan_proto::mqtt::codec::Limits;

use crate::config::{ListenAddress, ListenerConfig, Settings};
use crate::connection::{RawSocket, Transport};
use crate::router::pace::Rates;
use crate::session::handshake::Policy;
use crate::session::outbound::QueueCaps;
use crate::tls::{Endpoint, HandshakeGuard};

pub use accept::{Acceptor, bind};

/// What the connections of one listener have in common.
#[derive(Debug)]
pub struct ListenerContext {
    /// Its section of the configuration.
    pub config: ListenerConfig,
    /// Where it really listens, the port chosen by the system included.
    pub address: ListenAddress,
    /// What its clients may ask for.
    pub policy: Policy,
    /// What its clients may send.
    pub limits: Limits,
    /// The same before a CONNECT was accepted.
    pub limits_before_connect: Limits,
    /// Whether clients need no user name.
    pub allow_anonymous: bool,
    /// New connections a second; 0 means no bound.
    pub connect_rate_per_second: u32,
    /// Subscriptions that a session of its clients may have.
    pub subscriptions_max: u32,
    /// TLS, if its clients speak it.
    pub tls: Option<Arc<Endpoint>>,
    /// How fast its clients may publish: one for the listener, likewise.
    pub rates: Arc<Rates>,
    /// Connections open now: one number for the listener, however often its settings are read again.
    open: Arc<AtomicU32>,
}

/// Characters of a Client Identifier that MQTT 3.1 allows.
const CLIENT_ID_CHARACTERS_MAX_V3_1: usize = 23;

impl ListenerContext {
    /// A listener as `settings` describe it.
    #[must_use]
    pub fn new(config: ListenerConfig, settings: &Settings, address: impl Into<ListenAddress>) -> Self {
        let session = &settings.session;
        let expiry_max = config
            .session_expiry_seconds_max
            .map_or(session.session_expiry_seconds_max, |own| own.min(session.session_expiry_seconds_max));
        let policy = Policy {
            receive_maximum: session.receive_maximum,
            inflight_messages_max: session.inflight_messages_max,
            topic_alias_maximum: session.topic_alias_maximum,
            topic_alias_out_maximum: session.topic_alias_out_maximum,
            packet_bytes_max: session.packet_bytes_max.get(),
            keep_alive_seconds_max: NonZeroU16::new(config.keep_alive_seconds_max),
            keep_alive_seconds_min: config.keep_alive_seconds_min,
            session_expiry_seconds_max: expiry_max,
            session_expiry_seconds_v3: session.session_expiry_seconds_default,
            client_id_characters_max_v3_1: CLIENT_ID_CHARACTERS_MAX_V3_1,
            client_id_bytes_max: usize::from(session.client_id_bytes_max.get()),
            response_information: session.response_information.clone(),
            versions: config.protocol_versions.iter().map(|&version| version.into()).collect(),
        };
        let limits = Limits {
            packet_bytes_max: session.packet_bytes_max.get(),
            user_properties_max: u16::try_from(session.user_properties_max).unwrap_or(u16::MAX),
            filters_max: u16::try_from(session.filters_per_subscribe_max).unwrap_or(u16::MAX),
            topic_levels_max: session.topic_levels_max.get(),
            dup_on_requests: false,
        };
        let rates = Arc::new(Rates::default());
        rates.set(&config, settings);
        let before = session.packet_bytes_before_connect_max.get().min(limits.packet_bytes_max);
        Self {
            allow_anonymous: config.allows_anonymous(settings),
            config,
            address: address.into(),
            policy,
            limits,
            limits_before_connect: Limits { packet_bytes_max: before, ..limits },
            connect_rate_per_second: settings.limits.connect_rate_per_second,
            subscriptions_max: session.subscriptions_max,
            tls: None,
            rates,
            open: Arc::default(),
        }
    }

    /// The same with TLS, or without.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Endpoint>>) -> Self {
        Self { tls, ..self }
    }

    /// The same listener under new settings, for its next connections. Those that are there keep what they came by, except
    /// for the rates, which hold for them too.
    #[must_use]
    pub fn reloaded(&self, config: ListenerConfig, settings: &Settings) -> Self {
        self.rates.set(&config, settings);
        let (open, rates) = (Arc::clone(&self.open), Arc::clone(&self.rates));
        Self { open, rates, ..Self::new(config, settings, self.address.clone()) }
    }

    /// What may wait for a client of this listener, if less than for others.
    #[must_use]
    pub fn queue_caps(&self) -> QueueCaps {
        let bytes = |bound: u64| usize::try_from(bound).unwrap_or(usize::MAX);
        QueueCaps {
            messages_max: self.config.queue_messages_max.map(|bound| bound as usize),
            bytes_max: self.config.queue_bytes_max.map(bytes),
        }
    }

    /// Counts a connection in, unless the listener has as many as it may.
    #[must_use]
    pub fn try_open(&self) -> bool {
        let maximum = self.config.connections_max;
        if maximum != 0 && self.open.load(Ordering::Relaxed) >= maximum {
            return false;
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Counts a connection out.
    pub fn connection_closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket between its acceptance and its arbiter.
#[derive(Debug)]
pub struct AcceptedSocket {
    socket: OwnedFd,
    /// If TLS is spoken. Counted from here on, so that a flood does not find the same room many times.
    handshake: Option<HandshakeGuard>,
}

impl AcceptedSocket {
    /// Registers the socket with this arbiter's runtime, and puts over it what `listener` says.
    ///
    /// # Errors
    /// The runtime could not watch one more descriptor.
    pub fn into_transport(self, listener: &ListenerContext) -> std::io::Result<Transport> {
        let socket = match listener.address {
            ListenAddress::Ip(_) => RawSocket::Tcp(tokio::net::TcpStream::from_std(self.socket.into())?),
            ListenAddress::Unix(_) => RawSocket::Unix(tokio::net::UnixStream::from_std(self.socket.into())?),
        };
        match (&listener.tls, self.handshake) {
            (Some(endpoint), Some(handshake)) => Ok(Transport::Tls(Box::new(endpoint.accept(socket, handshake)?))),
            _ => Ok(Transport::Socket(socket)),
        }
    }
}

/// A connection for an arbiter to take in.
#[derive(Debug)]
pub struct Accepted {
    /// The socket, non-blocking.
    pub socket: AcceptedSocket,
    /// Where it came in.
    pub listener: Arc<ListenerContext>,
    /// Who came.
    pub peer: Option<SocketAddr>,
}
