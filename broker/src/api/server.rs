//! The API's own listener.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

pub use super::certificate::New as NewCertificate;
use super::certificate::{Acceptor, Certificate};
use super::tokens::Tokens;
use super::{Api, Peer, router};
use crate::config::ApiConfig;
use crate::http::bounded::{Bounds, Connections, Known, Taken, answer};
use crate::metrics::{ApiMetrics, TlsMetrics};
use crate::operator::Operator;
use crate::tls::TlsFileError;

/// How long answers that are under way may take once the server was told to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// What those who have no good token may cost. The head, for Client Identifiers and filters stand in URLs; the time for it is also
/// that for a TLS handshake.
const BOUNDS: Bounds = Bounds {
    // As the settings say.
    connections_max: 0,
    head_max: Duration::from_secs(30),
    head_bytes_max: 256 << 10,
    connection_max: Duration::from_secs(300),
    unread_max: Duration::from_secs(30),
};

/// Pause when no connection can be accepted, for want of descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    api: Arc<Api>,
    /// `None`: no TLS.
    certificate: Option<Certificate>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the server, if `config` says who may ask.
///
/// # Errors
/// The tokens, the certificate or the address cannot be used.
pub fn start(config: &ApiConfig, operator: &Arc<Operator>, metrics: ApiMetrics) -> anyhow::Result<Option<ApiServer>> {
    start_within(config, operator, metrics, Bounds { connections_max: config.connections_max.get() as usize, ..BOUNDS })
}

fn start_within(
    config: &ApiConfig,
    operator: &Arc<Operator>,
    metrics: ApiMetrics,
    bounds: Bounds,
) -> anyhow::Result<Option<ApiServer>> {
    let Some(tokens) = &config.tokens_file else { return Ok(None) };
    let api = Arc::new(Api::new(Arc::clone(operator), Tokens::read(tokens).context("`api.tokens_file`")?, metrics));
    let certificate = Certificate::read(config)?;
    let listener = TcpListener::bind(config.address).with_context(|| {
        format!("cannot serve the API on {}: is another program there? api.address says where else", config.address)
    })?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let tls = certificate.as_ref().map(Certificate::follow);
    let server = Server { routes: router(&api), tls, bounds };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name(String::from("api")).spawn(move || {
        if let Err(error) = runtime.block_on(server.serve(listener, stopped)) {
            tracing::error!(%error, "the API ended");
        }
        // Whoever still waits for another node is not waited for.
        runtime.shutdown_background();
    })?;
    Ok(Some(ApiServer { address, api, certificate, stop: Some(stop), thread: Some(thread) }))
}

impl ApiServer {
    /// Where it listens, with the port that the system chose if it was asked to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its requests share.
    #[must_use]
    pub fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// Takes up a certificate whose files have changed; call it every few seconds.
    pub fn look_at_certificate(&mut self, metrics: &TlsMetrics) {
        if let Some(certificate) = &mut self.certificate {
            certificate.look(metrics);
        }
    }

    /// What its certificate's files hold, if they have changed.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn read_certificate(&self) -> Result<Option<NewCertificate>, TlsFileError> {
        self.certificate.as_ref().map_or(Ok(None), Certificate::read_again)
    }

    /// Shows what [`Self::read_certificate`] returned, from here on.
    pub fn take_certificate(&mut self, new: NewCertificate, metrics: &TlsMetrics) {
        if let Some(certificate) = &mut self.certificate {
            certificate.take(new, metrics);
        }
    }

    /// Stops accepting, gives answers under way two seconds, and returns when the thread has ended.
    pub fn shutdown(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The receiver is gone only if the server ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the API's thread panicked");
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

struct Server {
    routes: Router,
    tls: Option<watch::Receiver<Acceptor>>,
    bounds: Bounds,
}

impl Server {
    async fn serve(self, listener: TcpListener, mut stopped: oneshot::Receiver<()>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connections = Connections::default();
        let (stopping, stops) = watch::channel(false);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = connections.one_ended() => continue,
                // An error means that the handle is gone, which also stops the server.
                _ = &mut stopped => break,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection to the API was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let tls = self.tls.as_ref().map(|tls| tls.borrow().0.clone());
            let known = Known::default();
            let peer = Peer { address, known: known.clone() };
            let serving = connection(socket, peer, self.routes.clone(), tls, stops.clone(), self.bounds);
            let serving = async move {
                if let Err(error) = serving.await {
                    tracing::debug!(%address, %error, "a connection to the API ended");
                }
            };
            if !connections.add(serving, known, self.bounds.connections_max) {
                tracing::debug!(%address, "too many connections to the API (api.connections_max)");
            }
        }
        drop(listener);
        stopping.send_replace(true);
        connections.all_ended(SHUTDOWN_GRACE).await;
        Ok(())
    }
}

async fn connection(
    socket: TcpStream,
    peer: Peer,
    routes: Router,
    tls: Option<TlsAcceptor>,
    stops: watch::Receiver<bool>,
    bounds: Bounds,
) -> anyhow::Result<()> {
    // Lists are written whole; waiting for more would only delay their ends.
    socket.set_nodelay(true)?;
    let known = peer.known.clone();
    let routes = routes.layer(axum::Extension(peer));
    let stream = Taken::new(socket, bounds.unread_max);
    match tls {
        None => answer(stream, routes, stops, known, bounds).await?,
        Some(tls) => {
            let stream = tokio::time::timeout(bounds.head_max, tls.accept(stream))
                .await
                .context("the handshake took too long")??;
            answer(stream, routes, stops, known, bounds).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use kentongan_cluster::{NodeId, PipelineHandle};

    use super::*;
    use crate::api::tokens::{Role, Token};
    use crate::auth::Authority;
    use crate::clock::{Clock, ManualClock};
    use crate::config::Settings;
    use crate::metrics::Metrics;
    use crate::replicated::{Slots, Submitter};
    use crate::router::Shared;

    struct Served {
        server: ApiServer,
        token: Token,
        files: tempfile::TempDir,
    }

    impl Served {
        fn within(bounds: Bounds) -> Self {
            let settings = Arc::new(Settings::default());
            let clock = Clock::manual(Arc::new(ManualClock::new(0)));
            let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
            let shared = Shared::new(settings, 1, submitter, Authority::default(), 1, None, clock);
            let operator = Arc::new(Operator::new(Arc::new(shared), NodeId(1), PipelineHandle::ended(), None));
            let (files, token) = (tempfile::tempdir().unwrap(), Token::draw());
            let tokens = files.path().join("tokens");
            std::fs::write(&tokens, token.line("wayan", Role::Viewer)).unwrap();
            let address = "127.0.0.1:0".parse().unwrap();
            let config = ApiConfig { address, tokens_file: Some(tokens), ..ApiConfig::default() };
            let server = start_within(&config, &operator, Metrics::isolated().api(), bounds).unwrap().unwrap();
            Self { server, token, files }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.server.address()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        }

        /// Asks for the traced lines of nobody, which is refused for what it says, and not for who asks.
        fn is_heard(&self, stream: &mut TcpStream) -> bool {
            let head = format!("Host: x\r\nAuthorization: Bearer {}\r\n", self.token.expose());
            let sent = write!(stream, "GET /api/v1/trace HTTP/1.1\r\n{head}\r\n");
            let mut answer = [0; 4096];
            let count = sent.and_then(|()| stream.read(&mut answer)).unwrap_or(0);
            answer[..count].starts_with(b"HTTP/1.1 400 ")
        }
    }

    /// The status of an answer, and what it says.
    fn ask(served: &Served, what: &str) -> (u16, String) {
        let mut stream = served.connect();
        let token = served.token.expose();
        write!(stream, "{what} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    /// What is misspelt would go for more than was meant.
    #[test]
    fn a_query_with_something_unknown_in_it_is_refused() {
        let served = Served::within(Bounds { connections_max: 4, ..BOUNDS });
        for (what, names) in [
            ("POST /api/v1/reload?Node=n1", "`node`"),
            ("POST /api/v1/reload?node=n1&node_=n2", "`node`"),
            ("PUT /api/v1/log?nodes=n1", "`node`"),
            ("DELETE /api/v1/nodes/n1/drain?node=n2", "none"),
            ("POST /api/v1/publish?retain=true", "none"),
            ("GET /api/v1/clients?clientid=x", "`cursor`, `ip_address`, `like_clientid`, `limit`, `node`, `username`"),
            ("HEAD /api/v1/clients?clientid=x", ""),
        ] {
            let (status, answer) = ask(&served, what);
            assert!(status == 400 && answer.contains(names), "{what}: {answer}");
        }
        for what in
            ["GET /api/v1/nodes?", "GET /api/v1/users?limit=5&like_username=x", "GET /api/v1/top-topics?seconds=1"]
        {
            let (status, answer) = ask(&served, what);
            assert_eq!(status, 200, "{what}: {answer}");
        }
        assert_eq!(ask(&served, "GET /api/v1/nothing?x=y").0, 404);
    }

    #[test]
    fn what_cannot_be_traced_is_not_well_said() {
        let served = Served::within(Bounds { connections_max: 4, ..BOUNDS });
        for filter in ["a/%23/b", "$share/g/a", ""] {
            let (status, answer) = ask(&served, &format!("GET /api/v1/trace?topic={filter}"));
            assert!(status == 400 && answer.contains("`topic`: that is no topic filter"), "{answer}");
        }
    }

    /// Abuse: [api]
    #[test]
    fn a_trace_ends_with_the_token_by_which_it_was_begun() {
        let served = Served::within(Bounds { connections_max: 4, ..BOUNDS });
        let begin = || {
            let mut stream = served.connect();
            let token = served.token.expose();
            write!(stream, "GET /api/v1/trace?client=x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
                .unwrap();
            BufReader::new(stream).lines().map(Result::unwrap)
        };
        let change = |lines: &str| {
            let tokens = served.files.path().join("tokens");
            std::fs::write(&tokens, lines).unwrap();
            served.server.api().change_tokens(Tokens::read(&tokens).unwrap());
        };
        let mut lines = begin();
        assert!(lines.any(|line| line.contains("trace.begun")));
        // Others come, and its own name stays, with another token.
        change(&Token::draw().line("wayan", Role::Administrator));
        assert!(lines.any(|line| line.contains("trace.ended")));
        assert!(lines.any(|line| line == "0"), "it is over");

        change(&served.token.line("wayan", Role::Administrator));
        let mut lines = begin();
        assert!(lines.any(|line| line.contains("trace.begun")));
        change(&served.token.line("ketut", Role::Viewer));
        assert!(lines.any(|line| line.contains("trace.ended")), "it was an administrator's");
    }

    const OPEN: &str = "GET /api/v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";

    /// Abuse: [http-bounds]
    #[test]
    fn whoever_has_no_token_keeps_nobody_out_who_has_one() {
        let served = Served::within(Bounds { connections_max: 4, ..BOUNDS });
        let mut long_there = served.connect();
        assert!(served.is_heard(&mut long_there));
        let crowd: Vec<_> = (0..8)
            .map(|_| {
                let mut stream = served.connect();
                // It may have made room for others already.
                let _ = stream.write_all(OPEN.repeat(400).as_bytes());
                stream
            })
            .collect();
        assert!(served.is_heard(&mut served.connect()), "among more than there are places for");
        assert!(served.is_heard(&mut long_there), "it made room for nobody");
        drop(crowd);
    }

    /// Abuse: [http-bounds]
    #[test]
    fn whoever_asks_without_end_and_without_a_token_is_closed() {
        let connection_max = Duration::from_millis(500);
        let served = Served::within(Bounds { connections_max: 4, connection_max, ..BOUNDS });
        let began = Instant::now();
        let (mut busy, mut known) = (served.connect(), served.connect());
        while busy.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
            && matches!(busy.read(&mut [0; 4096]), Ok(count) if count > 0)
        {
            assert!(served.is_heard(&mut known));
            assert!(began.elapsed() < Duration::from_secs(20), "it goes on for ever");
        }
        assert!(began.elapsed() >= connection_max);
        while began.elapsed() < 3 * connection_max {
            assert!(served.is_heard(&mut known), "it has a token");
        }
    }
}
