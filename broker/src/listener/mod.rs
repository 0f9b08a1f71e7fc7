//! Sockets that accept clients, and the thread that does it.
//!
//! One thread accepts for all listeners and deals the sockets out to the arbiters in turn: with few connections,
//! nothing else spreads them evenly.

mod accept;
mod certificates;
mod rate;
pub mod serve;
mod supervised;
mod unix;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kentongan_proto::mqtt::codec::Limits;

use crate::config::{AuthenticationMethod, ListenAddress, ListenerConfig, Settings, WebSocketConfig};
use crate::connection::networks::any_contains;
use crate::connection::websocket::{Terms, WebSocket, handshake::Rules};
use crate::connection::{Proxied, RawSocket, Transport};
use crate::router::Shared;
use crate::router::pace::Rates;
use crate::session::handshake::Policy;
use crate::session::outbound::QueueCaps;
use crate::tls::{Endpoint, HandshakeGuard};

pub use accept::{Acceptor, Bound, bind};
pub(crate) use rate::origin;

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
    /// How its clients show who they are, in the order in which that is looked at.
    pub authentication: Vec<AuthenticationMethod>,
    /// New connections a second; 0 means no bound.
    pub connect_rate_per_second: u32,
    /// The same from one address.
    pub connect_rate_per_address: u32,
    /// Subscriptions that a session of its clients may have.
    pub subscriptions_max: u32,
    /// Bytes of their Topic Filters.
    pub subscription_bytes_max: u64,
    /// TLS, if its clients speak it.
    pub tls: Option<Arc<Endpoint>>,
    /// How fast its clients may publish: one for the listener, likewise.
    pub rates: Arc<Rates>,
    /// What is asked of its WebSocket clients, if it is for them.
    pub websocket: Option<Arc<Terms>>,
    /// The same, as it is now: one answer for the listener, however often its settings are read again.
    anonymous_now: Arc<AtomicBool>,
    /// Connections open now: one number for the listener, however often its settings are read again.
    open: Arc<AtomicU32>,
}

/// Characters of a Client Identifier that MQTT 3.1 allows.
const CLIENT_ID_CHARACTERS_MAX_V3_1: usize = 23;

/// What a listener goes by that says nothing about it.
const ALL_METHODS: [AuthenticationMethod; 4] = [
    AuthenticationMethod::Certificate,
    AuthenticationMethod::Jwt,
    AuthenticationMethod::Password,
    AuthenticationMethod::Http,
];

impl ListenerContext {
    /// A listener as `settings` describe it.
    #[must_use]
    pub fn new(config: ListenerConfig, settings: &Settings, address: impl Into<ListenAddress>) -> Self {
        let session = &settings.session;
        let websocket = config.websocket.as_ref().map(|websocket| {
            let WebSocketConfig { path, origins, frame_bytes_max, forwarded_from } = websocket.clone();
            Arc::new(Terms {
                rules: Rules { path, origins, forwarded_from },
                frame_bytes_max: frame_bytes_max.get().into(),
            })
        });
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
        let allow_anonymous = config.allows_anonymous(settings);
        Self {
            allow_anonymous,
            anonymous_now: Arc::new(AtomicBool::new(allow_anonymous)),
            authentication: config.authentication.clone().unwrap_or_else(|| ALL_METHODS.to_vec()),
            connect_rate_per_second: config.connect_rate_per_second.unwrap_or(settings.limits.connect_rate_per_second),
            connect_rate_per_address: config
                .connect_rate_per_address
                .unwrap_or(settings.limits.connect_rate_per_address),
            config,
            address: address.into(),
            policy,
            limits,
            limits_before_connect: Limits { packet_bytes_max: before, ..limits },
            subscriptions_max: session.subscriptions_max,
            subscription_bytes_max: session.subscription_bytes_max,
            tls: None,
            rates,
            websocket,
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
        let anonymous_now = Arc::clone(&self.anonymous_now);
        anonymous_now.store(config.allows_anonymous(settings), Ordering::Relaxed);
        Self { open, rates, anonymous_now, ..Self::new(config, settings, self.address.clone()) }
    }

    /// Whether clients need no user name now, whatever it was when they came.
    #[must_use]
    pub fn lets_anonymous_stay(&self) -> bool {
        self.anonymous_now.load(Ordering::Relaxed)
    }

    /// Puts over `socket` what the clients of this listener speak. `peer` is where the client is, as far as is known;
    /// `handshake` is its place among those of the listener, if that speaks TLS.
    ///
    /// # Errors
    /// A layer could not be made.
    pub fn layers(
        &self,
        socket: RawSocket,
        peer: Option<SocketAddr>,
        handshake: Option<HandshakeGuard>,
    ) -> io::Result<Transport> {
        let transport = match (&self.tls, handshake) {
            (Some(endpoint), Some(handshake)) => Transport::Tls(Box::new(endpoint.accept(socket, handshake)?)),
            _ => Transport::Socket(socket),
        };
        Ok(match &self.websocket {
            None => transport,
            Some(terms) => Transport::WebSocket(Box::new(WebSocket::new(transport, Arc::clone(terms), peer))),
        })
    }

    /// Whether `peer` is a balancer or proxy that speaks for many clients: what is counted by address is not counted for it.
    #[must_use]
    pub fn speaks_for_others(&self, peer: SocketAddr) -> bool {
        let forwards = |websocket: &WebSocketConfig| any_contains(&websocket.forwarded_from, peer.ip());
        self.must_announce(peer) || self.config.websocket.as_ref().is_some_and(forwards)
    }

    /// Whether a connection of `peer` must begin with a header of the PROXY protocol.
    fn must_announce(&self, peer: SocketAddr) -> bool {
        any_contains(&self.config.proxy_protocol_from, peer.ip())
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

    /// Whether user names and passwords mean anything here.
    #[must_use]
    pub fn asks_for_passwords(&self) -> bool {
        self.authentication.contains(&AuthenticationMethod::Password)
    }

    /// Whether tokens mean anything here.
    #[must_use]
    pub fn asks_for_tokens(&self) -> bool {
        self.authentication.contains(&AuthenticationMethod::Jwt)
    }

    /// Whether a server is asked about its clients, if there is one.
    #[must_use]
    pub fn asks_server(&self) -> bool {
        self.authentication.contains(&AuthenticationMethod::Http)
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
    /// Registers the socket with this arbiter's runtime, and puts over it what `listener` says. `peer` is at its other end.
    ///
    /// # Errors
    /// The runtime could not watch one more descriptor.
    pub fn into_transport(
        self,
        listener: &Arc<ListenerContext>,
        peer: Option<SocketAddr>,
        shared: &Arc<Shared>,
    ) -> io::Result<Transport> {
        let socket = match listener.address {
            ListenAddress::Ip(_) => RawSocket::Tcp(tokio::net::TcpStream::from_std(self.socket.into())?),
            ListenAddress::Unix(_) => RawSocket::Unix(tokio::net::UnixStream::from_std(self.socket.into())?),
        };
        if peer.is_some_and(|peer| listener.must_announce(peer)) {
            let proxied = Proxied::new(socket, Arc::clone(listener), Arc::clone(shared), peer, self.handshake);
            return Ok(Transport::Proxied(Box::new(proxied)));
        }
        listener.layers(socket, peer, self.handshake)
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
