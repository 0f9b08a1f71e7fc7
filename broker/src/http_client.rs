//! A client of HTTP, for what servers of the operator's know: who may come in, say, or which keys sign tokens.
//!
//! A request is answered, whole, within its time and within a bound of bytes, or it has failed. Connections are kept alive for
//! the next request. Whom to trust is said by a file or by the system; a redirection is an answer like any other and not
//! followed, so that what a request carries goes where the settings say and nowhere else.
//!
//! Absent: how many requests there may be at once, and how often one is tried. Who asks knows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, InvalidHeaderValue, USER_AGENT};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};

use crate::config::{HttpUrl, Secret};

/// Status line and header of an answer.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// How long a connection that nobody uses is kept: less than most servers keep one.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// How requests are made.
#[derive(Debug, Clone)]
pub struct HttpClientOptions {
    /// Authorities (PEM) that servers are trusted by. `None`: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Goes with every request.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// From the request to the last byte of the answer: looking up the name, connecting and TLS are part of it.
    pub timeout: Duration,
    /// The body of an answer.
    pub body_bytes_max: usize,
    /// Connections that are kept alive while nothing is asked.
    pub idle_connections_max: usize,
}

impl Default for HttpClientOptions {
    fn default() -> Self {
        let timeout = Duration::from_secs(5);
        Self { ca_file: None, header: None, timeout, body_bytes_max: 1024 * 1024, idle_connections_max: 1 }
    }
}

/// A header whose value is shown nowhere, such as one of `Authorization`.
///
/// # Errors
/// The value has a control character in it.
pub fn secret_header(name: HeaderName, value: &Secret) -> Result<(HeaderName, HeaderValue), InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(value.expose())?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// Why there can be no client. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// The file of authorities is unreadable, or no PEM.
    #[error("cannot use {}: {source}", file.display())]
    NotPem {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// There is something else in it.
    #[error("{} holds no certificate of an authority (PEM)", file.display())]
    NoAuthority {
        /// The file.
        file: PathBuf,
    },
    /// The value of the header that goes with requests has a control character in it.
    #[error("the value of the header: {0}")]
    Header(#[from] InvalidHeaderValue),
    /// The library does not know its own protocol versions.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why there is no answer. The server's doing, or that of the way to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Nobody is there, or not who it should be.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer has more bytes than is taken.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// It broke off, or was no HTTP.
    #[error("the answer broke off: {0}")]
    Broken(String),
}

/// What a server said.
#[derive(Debug, Clone)]
pub struct HttpAnswer {
    /// Any status: what it means, who asked knows.
    pub status: StatusCode,
    /// Its header.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
}

/// Makes requests on the tokio runtime that it is used in. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    header: Option<(HeaderName, HeaderValue)>,
    timeout: Duration,
    body_bytes_max: usize,
}

impl HttpClient {
    /// Reads the authorities.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(options: &HttpClientOptions) -> Result<Self, HttpClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.with_root_certificates(authorities(options.ca_file.as_deref())?).with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(options.idle_connections_max)
            .http1_max_buf_size(HEADER_BYTES_MAX)
            .build(connector.wrap_connector(tcp));
        let HttpClientOptions { timeout, body_bytes_max, .. } = *options;
        Ok(Self { client, header: options.header.clone(), timeout, body_bytes_max })
    }

    /// Fetches something.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn get(&self, url: &HttpUrl) -> Result<HttpAnswer, HttpError> {
        self.request(Method::GET, url, None, &[]).await
    }

    /// Sends JSON, and wants JSON.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post_json(&self, url: &HttpUrl, json: Bytes) -> Result<HttpAnswer, HttpError> {
        self.request(Method::POST, url, Some(json), &[]).await
    }

    /// The same, with headers of this request alone.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post_json_with(
        &self,
        url: &HttpUrl,
        json: Bytes,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<HttpAnswer, HttpError> {
        self.request(Method::POST, url, Some(json), headers).await
    }

    /// Sends something, and wants JSON.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn request(
        &self,
        method: Method,
        url: &HttpUrl,
        json: Option<Bytes>,
        more: &[(HeaderName, HeaderValue)],
    ) -> Result<HttpAnswer, HttpError> {
        let request = self.prepared(method, url, json, more);
        let answered = tokio::time::timeout(self.timeout, self.send(request)).await;
        answered.unwrap_or(Err(HttpError::Timeout(self.timeout)))
    }

    /// Fetches something whose body comes by and by. Its head must come within the time of an answer; how long the body may take, who
    /// reads it knows.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn open(&self, url: &HttpUrl) -> Result<HttpStream, HttpError> {
        let request = self.prepared(Method::GET, url, None, &[]);
        let answered = tokio::time::timeout(self.timeout, self.begin(request)).await;
        let answer = answered.unwrap_or(Err(HttpError::Timeout(self.timeout)))?;
        Ok(HttpStream { status: answer.status(), body: answer.into_body(), body_bytes_max: self.body_bytes_max })
    }

    fn prepared(
        &self,
        method: Method,
        url: &HttpUrl,
        json: Option<Bytes>,
        more: &[(HeaderName, HeaderValue)],
    ) -> Request<Full<Bytes>> {
        let has_body = json.is_some();
        let mut request = Request::new(Full::new(json.unwrap_or_default()));
        *request.method_mut() = method;
        *request.uri_mut() = url.uri().clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static("kentongan"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if has_body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in self.header.iter().chain(more) {
            headers.insert(name, value.clone());
        }
        request
    }

    async fn begin(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, HttpError> {
        self.client.request(request).await.map_err(|error| match error.is_connect() {
            true => HttpError::Unreachable(causes(&error)),
            false => HttpError::Broken(causes(&error)),
        })
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<HttpAnswer, HttpError> {
        let (parts, body) = self.begin(request).await?.into_parts();
        let body = collect(body, self.body_bytes_max).await?;
        Ok(HttpAnswer { status: parts.status, headers: parts.headers, body })
    }
}

async fn collect(body: Incoming, bytes_max: usize) -> Result<Bytes, HttpError> {
    let body = Limited::new(body, bytes_max).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => HttpError::TooLarge(bytes_max),
        false => HttpError::Broken(causes(&*error)),
    })?;
    Ok(body.to_bytes())
}

/// An answer whose body comes by and by. Dropping it ends the connection.
#[derive(Debug)]
pub struct HttpStream {
    /// Any status: what it means, who asked knows.
    pub status: StatusCode,
    body: Incoming,
    body_bytes_max: usize,
}

impl HttpStream {
    /// What comes next; `None`: that was all.
    ///
    /// # Errors
    /// It broke off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| HttpError::Broken(causes(&error)))?;
            // Trailers say nothing here.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// All that is left of it, where it is one answer after all.
    ///
    /// # Errors
    /// It broke off, or is too large.
    pub async fn rest(self) -> Result<Bytes, HttpError> {
        collect(self.body, self.body_bytes_max).await
    }
}

/// An error of the library says at its surface only where it was, and below what it was.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(cause) = deepest.source() {
        deepest = cause;
    }
    deepest.to_string()
}

fn authorities(file: Option<&Path>) -> Result<RootCertStore, HttpClientError> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        // None of them is no error before there is a URL of https; then no server is trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found = found.map_err(|source| HttpClientError::NotPem { file: file.to_owned(), source })?;
    let (taken, _) = roots.add_parsable_certificates(found);
    if taken == 0 { Err(HttpClientError::NoAuthority { file: file.to_owned() }) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Answers each request on a connection with the next of `answers`, and tells what was asked; at the end it closes. An empty
    /// answer is none.
    async fn converse(
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        answers: &[&str],
        tell: &UnboundedSender<String>,
    ) {
        for answer in answers {
            let mut asked = Vec::new();
            loop {
                let mut some = [0; 4096];
                let count = stream.read(&mut some).await.unwrap_or(0);
                if count == 0 {
                    return;
                }
                asked.extend_from_slice(&some[..count]);
                let text = String::from_utf8_lossy(&asked);
                let Some((header, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = header.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |length| length.parse().expect("a number")) {
                    break;
                }
            }
            let _ = tell.send(String::from_utf8_lossy(&asked).into_owned());
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }

    fn serve(listener: TcpListener, answers: &'static [&'static str]) -> UnboundedReceiver<String> {
        let (tell, told) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tell = tell.clone();
                tokio::spawn(async move { converse(stream, answers, &tell).await });
            }
        });
        told
    }

    /// A server that answers each connection so, and where it is.
    async fn server(answers: &'static [&'static str]) -> (HttpUrl, UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/ask", listener.local_addr().expect("bound"));
        (url.parse().expect("a URL"), serve(listener, answers))
    }

    fn client(options: &HttpClientOptions) -> HttpClient {
        HttpClient::new(options).expect("a client")
    }

    const YES: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes";

    #[tokio::test]
    async fn a_body_that_comes_by_and_by_is_read_as_it_comes_and_one_that_breaks_off_is_said() {
        const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for (answer, ends_well) in [
            (format!("{HEAD}2\r\na\n\r\n2\r\nb\n\r\n0\r\n\r\n"), true),
            (format!("{HEAD}2\r\na\n\r\n2\r\nb\n\r\n"), false),
        ] {
            let answers: &'static [&'static str] = Box::leak(Box::new([&*answer.leak()]));
            let (url, _) = server(answers).await;
            let mut stream = client(&HttpClientOptions::default()).open(&url).await.expect("a head");
            assert_eq!(stream.status, StatusCode::OK);
            let mut read = Vec::new();
            let end = loop {
                match stream.next().await {
                    Ok(Some(more)) => read.extend_from_slice(&more),
                    end => break end,
                }
            };
            assert_eq!(read, b"a\nb\n");
            assert_eq!(end.is_ok(), ends_well, "{end:?}");
        }
    }

    #[tokio::test]
    async fn json_goes_out_with_the_secret_and_a_connection_serves_again() {
        let (url, mut told) = server(&[YES, YES]).await;
        let secret = Secret::new(String::from("Bearer tabuh-7"));
        let header = Some(secret_header(hyper::header::AUTHORIZATION, &secret).expect("a header"));
        let options = HttpClientOptions { header, ..HttpClientOptions::default() };
        assert!(!format!("{options:?}").contains("tabuh-7"));
        let client = client(&options);
        assert!(!format!("{client:?}").contains("tabuh-7"));

        let answer = client.post_json(&url, Bytes::from_static(b"{\"x\":1}")).await.expect("an answer");
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"yes"[..]));
        let asked = told.recv().await.expect("asked");
        assert!(asked.starts_with("POST /ask HTTP/1.1\r\n") && asked.ends_with("\r\n\r\n{\"x\":1}"), "{asked}");
        assert!(asked.contains("authorization: Bearer tabuh-7\r\n"), "{asked}");
        assert!(asked.contains("content-type: application/json\r\n"), "{asked}");

        assert_eq!(client.get(&url).await.expect("an answer").body, "yes");
        let asked = told.recv().await.expect("asked");
        assert!(asked.starts_with("GET /ask HTTP/1.1\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_meanwhile_is_no_error() {
        let (url, _told) = server(&[YES]).await;
        let client = client(&HttpClientOptions::default());
        for _ in 0..3 {
            assert_eq!(client.get(&url).await.expect("an answer").body, "yes");
        }
    }

    #[tokio::test]
    async fn a_redirection_is_an_answer() {
        let (url, _told) =
            server(&["HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"]).await;
        let answer = client(&HttpClientOptions::default()).get(&url).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::FOUND);
    }

    #[tokio::test]
    async fn every_way_of_giving_no_answer_is_told() {
        let timeout = Duration::from_millis(200);
        let patient = HttpClientOptions { body_bytes_max: 2, ..HttpClientOptions::default() };
        let hasty = client(&HttpClientOptions { timeout, ..patient.clone() });
        let patient = client(&patient);
        for (answers, expected) in [
            (&[""][..], HttpError::Timeout(timeout)),
            (&["HTTP/1.1 200 OK\r\n"], HttpError::Broken(String::new())),
            (&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx"], HttpError::Broken(String::new())),
            (&["SSH-2.0-x\r\n"], HttpError::Broken(String::new())),
            (&["HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes"], HttpError::TooLarge(2)),
            (&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n"], HttpError::TooLarge(2)),
        ] {
            let (url, _told) = server(answers).await;
            let client = if matches!(expected, HttpError::Timeout(_)) { &hasty } else { &patient };
            let error = client.get(&url).await.expect_err("no answer");
            let is_alike = match (&error, &expected) {
                (HttpError::Broken(_), HttpError::Broken(_)) => true,
                (error, expected) => error == expected,
            };
            assert!(is_alike, "{answers:?}: {error}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("bound")).parse().expect("a URL");
        drop(listener);
        assert!(matches!(patient.get(&url).await, Err(HttpError::Unreachable(_))));
    }

    #[tokio::test]
    async fn a_server_is_trusted_by_the_file_of_authorities() {
        let own = rcgen::generate_simple_self_signed([String::from("localhost")]).expect("a certificate");
        let directory = tempfile::tempdir().expect("a directory");
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, own.cert.pem()).expect("written");
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let config = config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).expect("a pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (tell, _told) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    converse(stream, &[YES], &tell).await;
                }
            }
        });
        let url: HttpUrl = format!("https://localhost:{port}/").parse().expect("a URL");
        let with_file = HttpClientOptions { ca_file: Some(ca_file), ..HttpClientOptions::default() };
        assert_eq!(client(&with_file).get(&url).await.expect("an answer").body, "yes");
        let stranger = client(&HttpClientOptions::default()).get(&url).await.expect_err("not trusted");
        assert!(matches!(&stranger, HttpError::Unreachable(text) if text.contains("certificate")), "{stranger}");
        let by_address = format!("https://127.0.0.1:{port}/").parse().expect("a URL");
        assert!(client(&with_file).get(&by_address).await.is_err(), "another name");
    }

    #[test]
    fn a_file_without_an_authority_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("ca.pem");
        let new =
            || HttpClient::new(&HttpClientOptions { ca_file: Some(file.clone()), ..HttpClientOptions::default() });
        assert!(matches!(new(), Err(HttpClientError::NotPem { .. })), "not there");
        std::fs::write(&file, "x").expect("written");
        let error = new().expect_err("empty").to_string();
        assert!(error.contains("ca.pem holds no certificate"), "{error}");
    }
}
