//! The API's own listener.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_rustls::TlsAcceptor;

pub use super::certificate::New as NewCertificate;
use super::certificate::{Acceptor, Certificate};
use super::tokens::Tokens;
use super::{Api, Peer, router};
use crate::config::ApiConfig;
use crate::metrics::{ApiMetrics, TlsMetrics};
use crate::operator::Operator;
use crate::tls::TlsFileError;

/// How long answers that are under way may take once the server was told to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Time for a TLS handshake, and again for the head of each request; a connection that asks for nothing is closed after it.
const HEAD_MAX: Duration = Duration::from_secs(30);

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
    let Some(tokens) = &config.tokens_file else { return Ok(None) };
    let api = Arc::new(Api::new(Arc::clone(operator), Tokens::read(tokens).context("`api.tokens_file`")?, metrics));
    let certificate = Certificate::read(config)?;
    let listener = TcpListener::bind(config.address).with_context(|| {
        format!("cannot serve the API on {}: is another program there? api.address says where else", config.address)
    })?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let tls = certificate.as_ref().map(Certificate::follow);
    let server = Server { routes: router(&api), tls, connections_max: config.connections_max.get() as usize };
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
    connections_max: usize,
}

impl Server {
    async fn serve(self, listener: TcpListener, mut stopped: oneshot::Receiver<()>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(self.connections_max));
        let (stopping, stops) = watch::channel(false);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
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
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::debug!(%address, "too many connections to the API (api.connections_max)");
                continue;
            };
            let tls = self.tls.as_ref().map(|tls| tls.borrow().0.clone());
            let (routes, stops) = (self.routes.clone(), stops.clone());
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = connection(socket, address, routes, tls, stops).await {
                    tracing::debug!(%address, %error, "a connection to the API ended");
                }
            });
        }
        drop(listener);
        stopping.send_replace(true);
        // All places are free when all connections have ended.
        let all = places.acquire_many(u32::try_from(self.connections_max).unwrap_or(u32::MAX));
        // Those that take longer are cut off.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, all).await;
        Ok(())
    }
}

async fn connection(
    socket: TcpStream,
    address: SocketAddr,
    routes: Router,
    tls: Option<TlsAcceptor>,
    stops: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    // Lists are written whole; waiting for more would only delay their ends.
    socket.set_nodelay(true)?;
    match tls {
        None => requests(socket, address, routes, stops).await,
        Some(tls) => {
            let stream =
                tokio::time::timeout(HEAD_MAX, tls.accept(socket)).await.context("the handshake took too long")??;
            requests(stream, address, routes, stops).await
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    routes: Router,
    mut stops: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let service = TowerToHyperService::new(routes.layer(axum::Extension(Peer(address))));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    let serving = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        outcome = serving.as_mut() => return Ok(outcome?),
        _ = stops.wait_for(|&stops| stops) => serving.as_mut().graceful_shutdown(),
    }
    Ok(serving.await?)
}
