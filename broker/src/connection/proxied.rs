//! A connection that begins with a balancer's word about the client: the PROXY protocol's header, then whatever the listener
//! speaks.
//!
//! The header is read straight from the socket, under TLS, and nothing beyond it. Once it is there, what lies over the socket is
//! put over it, and all that is left of this layer is one step on the way through and what was said.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::proxy::{self, Claims, Progress};
use super::{RawSocket, Transport};
use crate::listener::{self, ListenerContext};
use crate::router::Shared;
use crate::tls::HandshakeGuard;

/// See the module.
#[derive(Debug)]
pub struct Proxied {
    stage: Stage,
    claims: Claims,
}

#[derive(Debug)]
enum Stage {
    /// The header, or its rest, is still to come.
    Header(Header),
    Open(Transport),
    /// The header was none.
    Failed,
}

#[derive(Debug)]
struct Header {
    socket: RawSocket,
    bytes: Vec<u8>,
    listener: Arc<ListenerContext>,
    /// For who is banned.
    shared: Arc<Shared>,
    /// The balancer.
    peer: Option<SocketAddr>,
    /// Of TLS, if it follows.
    handshake: Option<HandshakeGuard>,
}

impl Proxied {
    /// Over `socket`, from which nothing was read yet, of the balancer `peer`.
    #[must_use]
    pub fn new(
        socket: RawSocket,
        listener: Arc<ListenerContext>,
        shared: Arc<Shared>,
        peer: Option<SocketAddr>,
        handshake: Option<HandshakeGuard>,
    ) -> Self {
        let header = Header { socket, bytes: Vec::new(), listener, shared, peer, handshake };
        Self { stage: Stage::Header(header), claims: Claims::default() }
    }

    /// Where the client is, if the balancer said so.
    #[must_use]
    pub fn said_address(&self) -> Option<SocketAddr> {
        self.claims.address
    }

    /// Whom the balancer names as the holder of the client's certificate, if the listener takes its word for it.
    #[must_use]
    pub fn certified(&self) -> Option<Arc<str>> {
        self.claims.common_name.as_deref().map(Arc::from)
    }

    /// What lies over the socket, once the header is there.
    #[must_use]
    pub fn over(&self) -> Option<&Transport> {
        match &self.stage {
            Stage::Open(transport) => Some(transport),
            Stage::Header(_) | Stage::Failed => None,
        }
    }

    /// The same, to work with.
    pub fn over_mut(&mut self) -> Option<&mut Transport> {
        match &mut self.stage {
            Stage::Open(transport) => Some(transport),
            Stage::Header(_) | Stage::Failed => None,
        }
    }

    /// Whether reading goes on with a handshake of TLS: what brings the end of the header may bring the beginning of that, and
    /// all is done at once.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        match &self.stage {
            Stage::Header(header) => header.handshake.is_some(),
            Stage::Open(transport) => transport.is_handshaking(),
            Stage::Failed => false,
        }
    }

    /// See [`Transport::poll_read`]. A header that is none comes as an error with a [`proxy::ProxyError`] in it.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Stage::Header(header) = &mut self.stage {
            let outcome = ready!(header.poll(cx, buffer));
            let Stage::Header(mut header) = std::mem::replace(&mut self.stage, Stage::Failed) else {
                return Poll::Ready(Ok(()));
            };
            let Some(claims) = outcome? else {
                return Poll::Ready(Ok(()));
            };
            if claims.address.is_some_and(|client| !header.lets_in(client.ip())) {
                return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
            }
            let client = claims.address.or(header.peer);
            self.claims = claims;
            if !header.listener.config.proxy_protocol_identity {
                self.claims.common_name = None;
            }
            self.stage = Stage::Open(header.listener.layers(header.socket, client, header.handshake)?);
        }
        match &mut self.stage {
            Stage::Open(transport) => transport.poll_read(cx, buffer),
            Stage::Header(_) | Stage::Failed => Poll::Ready(Ok(())),
        }
    }

    /// See [`Transport::poll_write_ready`].
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Header(header) => header.socket.poll_write_ready(cx),
            Stage::Open(transport) => transport.poll_write_ready(cx),
            Stage::Failed => Poll::Ready(Ok(())),
        }
    }
}

impl Header {
    /// What is asked of a client's address before a byte of its own is read, as of one that connects without a balancer: that it is not
    /// banned, and that no more TLS handshakes of it go on than its share.
    fn lets_in(&mut self, client: IpAddr) -> bool {
        if self.shared.bans.has_address(client, || self.shared.wall_seconds()) {
            self.shared.connections_banned.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        match (&mut self.handshake, &self.listener.tls) {
            (Some(handshake), Some(tls)) => {
                handshake.count_for(listener::origin(client), tls.settings().handshakes_max)
            }
            _ => true,
        }
    }

    /// Reads on; `None` if the balancer closed before it had said all. `scratch` is left as it was.
    fn poll(&mut self, cx: &mut Context<'_>, scratch: &mut ReadBuf<'_>) -> Poll<io::Result<Option<Claims>>> {
        loop {
            let mut piece = scratch.take(proxy::needed(&self.bytes));
            ready!(self.socket.poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(None));
            }
            self.bytes.extend_from_slice(piece.filled());
            match proxy::parse(&self.bytes) {
                Ok(Progress::Incomplete) => {}
                Ok(Progress::Complete(claims)) => return Poll::Ready(Ok(Some(claims))),
                Err(error) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::TcpListener;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;

    use kentongan_cluster::PipelineHandle;

    use super::*;
    use crate::auth::Authority;
    use crate::clock::{Clock, ManualClock};
    use crate::config::{ListenerConfig, Settings};
    use crate::replicated::{Slots, Submitter};
    use crate::tls::Handshakes;

    /// 192.0.2.8:50001 with a verified certificate of "meter-7", and then a packet.
    const STREAM: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1E\xC0\0\x02\x08\x0A\0\0\x01\xC3\x51\x07\x5B\
        \x20\0\x0F\x03\0\0\0\0\x22\0\x07meter-7\xC0\0";

    /// One from which nothing was read, and the balancer.
    async fn ends(takes_identity: bool, handshake: Option<HandshakeGuard>) -> (Proxied, TcpStream) {
        let acceptor = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = acceptor.local_addr().unwrap();
        let balancer = TcpStream::connect(address).await.unwrap();
        let (accepted, peer) = acceptor.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let socket = RawSocket::Tcp(TcpStream::from_std(accepted).unwrap());
        let config = ListenerConfig { proxy_protocol_identity: takes_identity, ..ListenerConfig::default() };
        let listener = Arc::new(ListenerContext::new(config, &Settings::default(), address));
        let clock = Clock::manual(Arc::new(ManualClock::new(0)));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let shared = Shared::new(Arc::default(), 1, submitter, Authority::default(), 1, None, clock);
        (Proxied::new(socket, listener, Arc::new(shared), Some(peer), handshake), balancer)
    }

    async fn read(takes_identity: bool) -> (Proxied, Vec<u8>) {
        let (mut proxied, mut balancer) = ends(takes_identity, None).await;
        balancer.write_all(STREAM).await.unwrap();
        let mut bytes = [0; 100];
        let mut buffer = ReadBuf::new(&mut bytes);
        poll_fn(|cx| proxied.poll_read(cx, &mut buffer)).await.unwrap();
        let read = buffer.filled().to_vec();
        (proxied, read)
    }

    #[test]
    fn the_stream_begins_behind_the_header() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (proxied, bytes) = runtime.block_on(read(true));
        assert_eq!(bytes, b"\xC0\0");
        assert_eq!(proxied.said_address(), Some("192.0.2.8:50001".parse().unwrap()));
    }

    /// Abuse: [bans]
    #[test]
    fn a_banned_client_is_closed_before_what_lies_behind_the_header_is_read() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let outcome = runtime.block_on(async {
            let (mut proxied, mut balancer) = ends(false, None).await;
            let Stage::Header(header) = &proxied.stage else { panic!("nothing was read yet") };
            header.shared.bans.set([("address:192.0.2.8", 0)].into_iter());
            balancer.write_all(STREAM).await.unwrap();
            let mut bytes = [0; 100];
            let mut buffer = ReadBuf::new(&mut bytes);
            poll_fn(|cx| proxied.poll_read(cx, &mut buffer)).await
        });
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    /// Whatever comes first is held against the time for handshakes, if there is one to come.
    #[test]
    fn the_header_counts_as_the_beginning_of_the_handshake_behind_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let is_handshaking =
            |handshake| Transport::Proxied(Box::new(runtime.block_on(ends(false, handshake)).0)).is_handshaking();
        let guard = HandshakeGuard::begin(&Arc::new(Handshakes::default()), 0, None);
        assert!(is_handshaking(guard));
        assert!(!is_handshaking(None));
    }

    /// A balancer that is believed about addresses need not be one that checks certificates.
    #[test]
    fn a_balancer_names_clients_only_where_the_listener_says_so() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let certified = |takes_identity| runtime.block_on(read(takes_identity)).0.certified();
        assert_eq!(certified(true).as_deref(), Some("meter-7"));
        assert_eq!(certified(false), None);
    }
}
