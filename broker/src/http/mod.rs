//! Metrics and health over HTTP, on a thread of its own, so that neither a scrape nor a slow reader of one ever delays
//! a packet.
//!
//! `/metrics` is for Prometheus, `/livez` says that the process answers, `/readyz` whether clients should be sent
//! here. The latter two are for everybody and name no version. Absent: administration.

mod readiness;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::oneshot;

use crate::config::{HttpConfig, Secret};
use crate::metrics::{Metrics, render_readiness};
pub use readiness::Readiness;

/// How long answers that are under way may take once the server was told to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// How often histograms are tidied.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The content type of the Prometheus text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A running HTTP server. Dropping it stops it, as [`HttpServer::shutdown`] does.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the server on `config.address`.
///
/// # Errors
/// The address cannot be bound, or the system refuses a thread.
pub fn start(config: &HttpConfig, metrics: Metrics, readiness: Arc<Readiness>) -> io::Result<HttpServer> {
    let listener = TcpListener::bind(config.address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let app = App { metrics, readiness, token: config.token.clone().map(Arc::new) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name(String::from("http")).spawn(move || {
        if let Err(error) = runtime.block_on(serve(listener, app, stopped)) {
            tracing::error!(%error, "the HTTP server ended; metrics and health are no longer served");
        }
        runtime.shutdown_background();
    })?;
    Ok(HttpServer { address, stop: Some(stop), thread: Some(thread) })
}

impl HttpServer {
    /// Where it listens, with the port that the system chose if it was asked to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
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
            tracing::error!("the HTTP server's thread panicked");
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

#[derive(Clone)]
struct App {
    metrics: Metrics,
    readiness: Arc<Readiness>,
    token: Option<Arc<Secret>>,
}

async fn serve(listener: TcpListener, app: App, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let upkeep = tokio::spawn(upkeep(app.metrics.clone()));
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(app);

    let (stopping, mut told) = tokio::sync::watch::channel(false);
    let server = axum::serve(listener, routes).with_graceful_shutdown(async move {
        // An error means that the handle is gone, which also stops the server.
        let _ = stopped.await;
        stopping.send_replace(true);
    });
    let grace = async {
        let _ = told.wait_for(|&stopping| stopping).await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    let outcome = tokio::select! {
        outcome = server.into_future() => outcome,
        () = grace => Ok(()),
    };
    upkeep.abort();
    outcome
}

async fn upkeep(metrics: Metrics) {
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        interval.tick().await;
        metrics.upkeep();
    }
}

async fn metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    if app.token.as_ref().is_some_and(|token| !bears(&headers, token)) {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a bearer token is wanted\n")
            .into_response();
    }
    let mut text = app.metrics.render();
    render_readiness(&mut text, app.readiness.conditions());
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response()
}

fn bears(headers: &HeaderMap, token: &Secret) -> bool {
    let value = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    value.and_then(|value| value.strip_prefix(b"Bearer ")).is_some_and(|given| token.matches(given))
}

async fn livez() -> &'static str {
    "alive\n"
}

async fn readyz(State(app): State<App>) -> (StatusCode, String) {
    let missing = app.readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, String::from("ready\n"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn server(token: Option<&str>, readiness: &Arc<Readiness>) -> HttpServer {
        let config = HttpConfig {
            address: "127.0.0.1:0".parse().unwrap(),
            token: token.map(|text| Secret::new(text.to_owned())),
            ..HttpConfig::default()
        };
        start(&config, Metrics::isolated(), Arc::clone(readiness)).unwrap()
    }

    fn ask(server: &HttpServer, path: &str, header: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Abuse: [http]
    #[test]
    fn health_is_open_and_names_what_is_missing() {
        let readiness = Arc::new(Readiness::new(&["lease", "listeners"]));
        let server = server(None, &readiness);
        assert!(ask(&server, "/livez", "").starts_with("HTTP/1.1 200 OK"));
        let answer = ask(&server, "/readyz", "");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nnot ready: lease, listeners\n"), "{answer}");
        assert!(!answer.contains(env!("CARGO_PKG_VERSION")), "{answer}");

        readiness.set("lease", true);
        readiness.set("listeners", true);
        assert!(ask(&server, "/readyz", "").starts_with("HTTP/1.1 200 OK"));
        readiness.set("lease", false);
        assert!(ask(&server, "/readyz", "").ends_with("not ready: lease\n"));
    }

    /// Abuse: [http]
    #[test]
    fn metrics_want_the_token_if_there_is_one() {
        let readiness = Arc::new(Readiness::new(&[]));
        let open = server(None, &readiness);
        let answer = ask(&open, "/metrics", "");
        assert!(answer.contains("# TYPE kentongan_connections gauge"), "{answer}");
        assert!(answer.contains("text/plain; version=0.0.4") && answer.contains("process_resident_memory_bytes"));
        assert!(
            answer.contains(concat!("kentongan_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")),
            "{answer}"
        );

        let closed = server(Some("tabuh-7"), &readiness);
        for header in ["", "Authorization: Bearer tabuh\r\n", "Authorization: Basic tabuh-7\r\n"] {
            let answer = ask(&closed, "/metrics", header);
            assert!(answer.starts_with("HTTP/1.1 401 ") && !answer.contains("kentongan_"), "{header} {answer}");
        }
        assert!(ask(&closed, "/metrics", "Authorization: Bearer tabuh-7\r\n").starts_with("HTTP/1.1 200 "));
        assert!(ask(&closed, "/livez", "").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn a_server_that_was_shut_down_has_let_go_of_its_port() {
        let readiness = Arc::new(Readiness::new(&[]));
        let server = server(None, &readiness);
        let address = server.address();
        // A connection that asks for nothing must not hold it up for ever.
        let _idle = TcpStream::connect(address).unwrap();
        server.shutdown();
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    }
}
