//! Metrics and health over HTTP, on a thread of its own, so that neither a scrape nor a slow reader of one ever delays
//! a packet.
//!
//! `/metrics` is for Prometheus, `/livez` says that the process answers and its arbiters turn, `/readyz` whether clients should be sent
//! here. The latter two are for everybody and name no version. Absent: administration.
//!
//! Whoever reaches the port can cost no more than [`Bounds`] allow. A supervisor that asks for `/livez` is heard all the same.

pub(crate) mod bounded;
mod readiness;
mod rendered;

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
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

use crate::api::caller::bearer_token;
use crate::config::{HttpConfig, Secret};
use crate::metrics::{Metrics, render_readiness};
use bounded::{Bounds, Connections, Known, Taken, answer};
pub use readiness::Readiness;
use rendered::Rendered;

/// How long answers that are under way may take once the server was told to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Pause when no connection can be accepted, for want of descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections at a time. One more ends the oldest.
pub const CONNECTIONS_MAX: usize = 64;

const BOUNDS: Bounds = Bounds {
    connections_max: CONNECTIONS_MAX,
    head_max: Duration::from_secs(30),
    head_bytes_max: 16 << 10,
    connection_max: Duration::from_secs(300),
    unread_max: Duration::from_secs(30),
};

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

/// Starts the server on `config.address`, for so many connections.
///
/// # Errors
/// The address cannot be bound, or the system refuses a thread.
pub fn start(
    config: &HttpConfig,
    metrics: Metrics,
    readiness: Arc<Readiness>,
    connections_max: usize,
) -> io::Result<HttpServer> {
    start_within(config, metrics, readiness, Bounds { connections_max, ..BOUNDS })
}

fn start_within(
    config: &HttpConfig,
    metrics: Metrics,
    readiness: Arc<Readiness>,
    bounds: Bounds,
) -> io::Result<HttpServer> {
    let listener = TcpListener::bind(config.address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let token = config.token.clone().map(Arc::new);
    let app = App { metrics, readiness, token, rendered: Arc::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name(String::from("http")).spawn(move || {
        if let Err(error) = runtime.block_on(serve(listener, app, stopped, bounds)) {
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
    rendered: Arc<Rendered>,
}

async fn serve(listener: TcpListener, app: App, mut stopped: oneshot::Receiver<()>, bounds: Bounds) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let upkeep = tokio::spawn(upkeep(app.metrics.clone()));
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(app);

    let (stopping, stops) = watch::channel(false);
    let mut connections = Connections::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.one_ended() => continue,
            // An error means that the handle is gone, which also stops the server.
            _ = &mut stopped => break,
        };
        match accepted {
            Ok((socket, address)) => {
                let serving = connection(socket, address, routes.clone(), stops.clone(), bounds);
                connections.add(serving, Known::default(), bounds.connections_max);
            }
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics or health was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    connections.all_ended(SHUTDOWN_GRACE).await;
    upkeep.abort();
    Ok(())
}

async fn connection(
    socket: TcpStream,
    address: SocketAddr,
    routes: Router,
    stops: watch::Receiver<bool>,
    bounds: Bounds,
) {
    // Answers are written whole; waiting for more would only delay their ends.
    let _ = socket.set_nodelay(true);
    let stream = Taken::new(socket, bounds.unread_max);
    if let Err(error) = answer(stream, routes, stops, Known::default(), bounds).await {
        tracing::debug!(%address, %error, "a connection for metrics or health ended");
    }
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
    let text = app.rendered.text(|| {
        let mut text = app.metrics.render();
        render_readiness(&mut text, app.readiness.conditions());
        text
    });
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response()
}

fn bears(headers: &HeaderMap, token: &Secret) -> bool {
    let value = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    value.and_then(bearer_token).is_some_and(|given| token.matches(given))
}

async fn livez(State(app): State<App>) -> (StatusCode, &'static str) {
    match app.readiness.is_stuck() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "an arbiter does nothing any more\n"),
        false => (StatusCode::OK, "alive\n"),
    }
}

async fn readyz(State(app): State<App>) -> (StatusCode, String) {
    let missing = app.readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, String::from("ready\n"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready, missing: {}\n", missing.join(", ")))
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
        start(&config, Metrics::isolated(), Arc::clone(readiness), CONNECTIONS_MAX).unwrap()
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
        assert!(answer.ends_with("\r\n\r\nnot ready, missing: lease, listeners\n"), "{answer}");
        assert!(!answer.contains(env!("CARGO_PKG_VERSION")), "{answer}");

        readiness.set("lease", true);
        readiness.set("listeners", true);
        assert!(ask(&server, "/readyz", "").starts_with("HTTP/1.1 200 OK"));
        readiness.set("lease", false);
        assert!(ask(&server, "/readyz", "").ends_with("not ready, missing: lease\n"));

        readiness.set_stuck(true);
        assert!(ask(&server, "/livez", "").starts_with("HTTP/1.1 503 "), "a new start would mend it");
        readiness.set_stuck(false);
        assert!(ask(&server, "/livez", "").starts_with("HTTP/1.1 200 OK"));
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

    /// Heads that never end and readers that never read hold their places for a time only, and keep nobody out meanwhile.
    ///
    /// Abuse: [http-bounds]
    #[test]
    fn whoever_asks_without_end_is_closed_and_keeps_nobody_out() {
        let bounds = Bounds {
            connections_max: 4,
            head_max: Duration::from_secs(2),
            connection_max: Duration::from_secs(4),
            ..BOUNDS
        };
        let readiness = Arc::new(Readiness::new(&[]));
        let config = HttpConfig { address: "127.0.0.1:0".parse().unwrap(), ..HttpConfig::default() };
        let server = start_within(&config, Metrics::isolated(), Arc::clone(&readiness), bounds).unwrap();
        let connect = |request: &str| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream
        };
        let mut crowd: Vec<_> = (0..8).map(|_| connect("GET /metrics HTTP/1.1\r\nx: aaaa")).collect();
        assert!(ask(&server, "/livez", "").starts_with("HTTP/1.1 200 "), "among more than there are places for");
        // The oldest made room for others, and the rest took too long.
        for stream in &mut crowd {
            let end = stream.read_to_end(&mut Vec::new());
            // What was sent and not read makes the end a reset.
            assert!(end.is_ok() || end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
        }

        let mut large = connect(&format!("GET /livez HTTP/1.1\r\nx: {}", "a".repeat(64 << 10)));
        let mut answer = Vec::new();
        let _ = large.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "a head that is too large");

        // As often as it asks, at last it is over.
        let mut busy = connect("");
        let began = std::time::Instant::now();
        while busy.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
            && matches!(busy.read(&mut [0; 512]), Ok(count) if count > 0)
        {
            assert!(began.elapsed() < Duration::from_secs(20), "it goes on for ever");
        }
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
