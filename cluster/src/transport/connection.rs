//! One connection to or from a peer: TCP, TLS, HTTP/2, and nothing that knows what is said over it.
//!
//! hyper is driven directly, not through tonic's channel and server: a link must learn at once that its connection
//! ended, the certificate of the other end must be at hand where the hello is read, and certificates change between two
//! connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::{Service, http};

use super::event::Class;
use super::refusal::Refusal;
use super::tls::{PeerCertificate, Tls};

/// What a stream may have under way without being read. What a link keeps busy: about 1 GB/s at 4 ms.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// What all streams of a connection may have under way.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// HTTP/2 frames of the default 16 KiB cost a header and a call each.
const HTTP2_FRAME_BYTES: u32 = 256 * 1024;

/// How many times as long as the client the server waits before it asks for a sign of life.
pub(super) const SERVER_PATIENCE: u32 = 3;

/// A link, a question and a snapshot need one each, on connections of their own.
const STREAMS_MAX: u32 = 4;

/// Why there is no connection, or no link, to a peer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Its address means nothing to the resolver.
    #[error("address {address:?} cannot be resolved: {source}")]
    Resolve {
        /// The address.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Without TLS, other machines could read and forge everything.
    #[error(
        "address {0:?} is not on this machine, and peers on other machines need TLS: set the CA, certificate and key"
    )]
    PlainNotLoopback(String),
    /// Nobody listens there, or the network is cut.
    #[error("{address}: {source}")]
    Connect {
        /// The address.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// One of the two does not accept the other's certificate.
    #[error("{address}: TLS: {source}")]
    Tls {
        /// The address.
        address: String,
        /// Which one, and why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Http(#[from] hyper::Error),
    /// The peer is too slow, or the network is cut.
    #[error("{0} took too long")]
    Timeout(&'static str),
    /// The kernel there takes connections, and nobody says anything over them.
    #[error("it takes connections and says nothing: its process is stopped or stuck, or the network is cut")]
    Silent,
    /// We turn the peer away.
    #[error("refused by this node: {0}")]
    RefusedHere(#[from] Refusal),
    /// The peer turned us away, or the connection broke under a call.
    #[error("{}", ended(.0))]
    EndedByPeer(#[source] Box<tonic::Status>),
    /// The transport stopped meanwhile.
    #[error("the transport stopped")]
    Stopped,
}

impl LinkError {
    /// Whether somebody took the connection and ended it without a word that a node says: most likely none listens for others there.
    #[must_use]
    pub fn is_no_node(&self) -> bool {
        match self {
            Self::EndedByPeer(status) => broken(status).is_some(),
            Self::Http(_) => true,
            Self::Tls { source, .. } => {
                matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
            }
            _ => false,
        }
    }
}

impl LinkError {
    /// Whether the connection broke, or nothing came over it: no word of the peer ended it.
    pub(super) fn is_break(&self) -> bool {
        match self {
            Self::Silent => true,
            Self::EndedByPeer(status) => broken(status).is_some(),
            _ => false,
        }
    }
}

impl From<tonic::Status> for LinkError {
    fn from(status: tonic::Status) -> Self {
        match broken(&status) {
            Some(error) if error.is_timeout() => LinkError::Silent,
            _ => LinkError::EndedByPeer(Box::new(status)),
        }
    }
}

/// How the connection broke under a call, if the peer did not end it by a word of its own.
fn broken(status: &tonic::Status) -> Option<&hyper::Error> {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source()).find_map(|error| error.downcast_ref())
}

/// What lies at the bottom of it, for hyper's own words are "http2 error".
fn ended(status: &tonic::Status) -> String {
    match broken(status) {
        None => format!("the peer ended the call: {}", status.message()),
        Some(error) => {
            let first: &dyn std::error::Error = error;
            let bottom = std::iter::successors(Some(first), |error| error.source()).last();
            format!("the connection broke: {}", bottom.unwrap_or(first))
        }
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub connect: Duration,
    pub keep_alive_interval: Duration,
    pub keep_alive_timeout: Duration,
}

impl Timing {
    /// Of a link. What is to be noticed at once, the link for control notices for all: the others are asked less often, for a sign of life wakes
    /// both nodes.
    pub(super) fn of(self, class: Class) -> Self {
        match class {
            Class::Control => self,
            Class::Append | Class::Forward => {
                Self { keep_alive_interval: self.keep_alive_interval * SERVER_PATIENCE, ..self }
            }
        }
    }
}

/// A connection that we dialled. Dropping it closes it.
pub(super) struct Connection {
    pub channel: Channel,
    pub certificate: Option<PeerCertificate>,
    _driver: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects to an address of the form `host:port`. With TLS, to whoever the cluster's CA vouches for.
pub(super) async fn dial(address: &str, tls: Option<&Tls>, timing: Timing) -> Result<Connection, LinkError> {
    timeout(timing.connect, connect(address, tls, timing)).await.map_err(|_| LinkError::Timeout("connecting"))?
}

async fn connect(address: &str, tls: Option<&Tls>, timing: Timing) -> Result<Connection, LinkError> {
    let socket = connect_tcp(address, tls.is_some()).await?;
    let Some(tls) = tls else {
        return handshake(socket, None, timing).await;
    };
    let (stream, certificate) =
        tls.connect(socket).await.map_err(|source| LinkError::Tls { address: address.to_owned(), source })?;
    handshake(stream, Some(certificate), timing).await
}

async fn connect_tcp(address: &str, may_leave_machine: bool) -> Result<TcpStream, LinkError> {
    let resolved = tokio::net::lookup_host(address)
        .await
        .map_err(|source| LinkError::Resolve { address: address.to_owned(), source })?;
    let mut last = io::Error::other("the name has no address");
    for candidate in resolved {
        if !may_leave_machine && !is_within_machine(candidate) {
            return Err(LinkError::PlainNotLoopback(address.to_owned()));
        }
        match TcpStream::connect(candidate).await.and_then(prepare) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(LinkError::Connect { address: address.to_owned(), source: last })
}

fn prepare(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn handshake(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    certificate: Option<PeerCertificate>,
    timing: Timing,
) -> Result<Connection, LinkError> {
    let (requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .keep_alive_interval(timing.keep_alive_interval)
        .keep_alive_timeout(timing.keep_alive_timeout)
        .keep_alive_while_idle(true)
        .handshake::<_, Body>(TokioIo::new(io))
        .await?;
    // How it ended is told to the calls over it.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok(Connection { channel: Channel(requests), certificate, _driver: AbortOnDrop(driver) })
}

/// hyper's sender of requests in the shape that tonic's stubs call.
#[derive(Clone)]
pub(super) struct Channel(SendRequest<Body>);

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Channel {
    /// What the stubs put in front of a call's path, because HTTP/2 wants an authority. Nobody looks at it.
    pub(super) fn origin() -> http::Uri {
        http::Uri::from_static("http://peer")
    }
}

/// Serves one accepted connection until it ends.
pub(super) async fn serve<S>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S,
    timing: Timing,
) -> hyper::Result<()>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = std::convert::Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        service.clone().call(request.map(Body::new))
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        // Who dialled is the one that has something to send, and asks more often.
        .keep_alive_interval(timing.keep_alive_interval * SERVER_PATIENCE)
        .keep_alive_timeout(timing.keep_alive_timeout)
        .serve_connection(TokioIo::new(io), service)
        .await
}

/// Whether a plain connection with this end is within the machine.
pub(super) fn is_within_machine(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
