//! The bytes between a client of the command line and the broker: TCP or a Unix socket, TLS over it, WebSocket over either.

use std::fmt;
use std::io;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::{Buf, BufMut, BytesMut};
use kentongan_proto::mqtt::ProtocolVersion;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::client::ClientError;
use super::options::ConnectOptions;
use crate::connection::Spoken;
use crate::connection::websocket::frames::{Decoder, End, Opcode, Sender, encode_masked};
use crate::connection::websocket::handshake;

/// The longest head of a response that is read.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;

const RESPONSE_HEADERS_MAX: usize = 100;

/// How much of a refusal's text is shown.
const REFUSAL_CHARACTERS_MAX: usize = 200;

pub(super) trait Stream: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Stream for S {}

/// An open stream of MQTT. Every `async` method may be dropped half-way and called again; nothing is lost by it.
#[derive(Debug)]
pub(super) struct Link {
    stream: Box<dyn Stream>,
    websocket: Option<WebSocket>,
}

/// The client's side of a WebSocket.
#[derive(Debug)]
struct WebSocket {
    decoder: Decoder,
    /// Frames that wait to be written.
    framed: BytesMut,
    ended: bool,
}

impl Link {
    /// What `options` say, over a connection. Returns what the broker said beyond that as well.
    pub(super) async fn over(
        plain: Box<dyn Stream>,
        options: &ConnectOptions,
    ) -> Result<(Self, BytesMut), ClientError> {
        let mut stream: Box<dyn Stream> = match &options.tls {
            None => plain,
            Some(config) => {
                let name = ServerName::try_from(options.host.clone());
                let name =
                    name.map_err(|_| ClientError::Failed(io::Error::other("TLS wants a DNS name or an address")))?;
                let connected = TlsConnector::from(config.clone()).connect(name, plain).await;
                Box::new(connected.map_err(|error| of_handshake(error, options))?)
            }
        };
        let mut inbound = BytesMut::new();
        let Some(path) = &options.websocket_path else {
            return Ok((Self { stream, websocket: None }, inbound));
        };
        upgrade(&mut stream, options, path, &mut inbound).await?;
        let decoder = Decoder::new(Sender::Server, u64::MAX);
        let mut websocket = WebSocket { decoder, framed: BytesMut::new(), ended: false };
        websocket.decode(&mut inbound, 0).map_err(ClientError::Failed)?;
        Ok((Self { stream, websocket: Some(websocket) }, inbound))
    }

    /// Appends what came to `inbound`, maybe nothing. `false`: nothing follows.
    pub(super) async fn read(&mut self, inbound: &mut BytesMut) -> io::Result<bool> {
        if self.websocket.as_ref().is_some_and(|websocket| websocket.ended) {
            return Ok(false);
        }
        let before = inbound.len();
        match self.stream.read_buf(inbound).await {
            Ok(0) => return Ok(false),
            // TLS without its own goodbye: MQTT has said already whether it was meant.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            read => _ = read?,
        }
        if let Some(websocket) = &mut self.websocket {
            websocket.decode(inbound, before)?;
        }
        Ok(true)
    }

    /// Whether [`Link::write`] has something to do even without more of ours.
    pub(super) fn has_unwritten(&self) -> bool {
        self.websocket.as_ref().is_some_and(|websocket| websocket.framed.has_remaining())
    }

    /// Writes all of `outbound`.
    pub(super) async fn write(&mut self, outbound: &mut BytesMut) -> io::Result<()> {
        let bytes = match &mut self.websocket {
            None => outbound,
            Some(websocket) => {
                if outbound.has_remaining() {
                    encode_masked(Opcode::Binary, outbound, rand::random(), &mut websocket.framed);
                    outbound.clear();
                }
                &mut websocket.framed
            }
        };
        while bytes.has_remaining() {
            self.stream.write_buf(bytes).await?;
        }
        self.stream.flush().await
    }

    /// Says that nothing follows.
    pub(super) async fn shut_down(&mut self) -> io::Result<()> {
        if let Some(websocket) = &mut self.websocket {
            // 1000: nothing is wrong.
            encode_masked(Opcode::Close, &1000_u16.to_be_bytes(), rand::random(), &mut websocket.framed);
            self.write(&mut BytesMut::new()).await?;
        }
        self.stream.shutdown().await
    }
}

impl WebSocket {
    /// Takes the frames off what came behind the first `before` bytes.
    fn decode(&mut self, inbound: &mut BytesMut, before: usize) -> io::Result<()> {
        let decoded = self.decoder.decode(&mut inbound[before..]);
        inbound.truncate(before + decoded.payload_bytes);
        if let Some(ping) = self.decoder.take_ping() {
            encode_masked(Opcode::Pong, ping, rand::random(), &mut self.framed);
        }
        match decoded.end {
            None => Ok(()),
            Some(End::Closed(_)) => {
                self.ended = true;
                Ok(())
            }
            Some(End::Violated(violation)) => Err(io::Error::new(io::ErrorKind::InvalidData, violation)),
        }
    }
}

/// Asks for a WebSocket. What follows the response stays in `inbound`.
async fn upgrade(
    stream: &mut dyn Stream,
    options: &ConnectOptions,
    path: &str,
    inbound: &mut BytesMut,
) -> Result<(), ClientError> {
    let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
    let subprotocol = if options.connect.version == ProtocolVersion::V3_1 { "mqttv3.1" } else { "mqtt" };
    let host = if options.host.contains(':') { format!("[{}]", options.host) } else { options.host.clone() };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n",
        options.port
    );
    stream.write_all(request.as_bytes()).await.map_err(ClientError::Failed)?;
    stream.flush().await.map_err(ClientError::Failed)?;
    let closed = || ClientError::NoWebSocket(String::from("it closed the connection; is it a port with WebSocket?"));
    loop {
        let room = RESPONSE_BYTES_MAX.saturating_sub(inbound.len());
        if room == 0 {
            return Err(ClientError::NoWebSocket(String::from("its answer is too long")));
        }
        match stream.read_buf(&mut inbound.limit(room)).await {
            Ok(1..) => {}
            Ok(0) => return Err(closed()),
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                return Err(closed());
            }
            Err(error) => return Err(ClientError::Failed(error)),
        }
        let foreign = || Spoken::of(inbound).filter(|&spoken| spoken != Spoken::Http);
        let refused = |text| foreign().map_or(ClientError::NoWebSocket(text), |spoken| ClientError::Foreign { spoken });
        if let Some(length) = read_response(inbound, &key).map_err(refused)? {
            inbound.advance(length);
            return Ok(());
        }
    }
}

/// Bytes of the response, once it is whole and grants what was asked for.
fn read_response(bytes: &[u8], key: &str) -> Result<Option<usize>, String> {
    let mut headers = [httparse::EMPTY_HEADER; RESPONSE_HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("its answer is no HTTP: {error}")),
    };
    let code = response.code.unwrap_or_default();
    if code != 101 {
        // What came with it; the rest, if any, is not waited for.
        let text = String::from_utf8_lossy(&bytes[length..]);
        let text: String = text.lines().next().unwrap_or_default().chars().take(REFUSAL_CHARACTERS_MAX).collect();
        let text: String = text.chars().filter(|character| !character.is_control()).collect();
        return Err(format!("its answer is {code} {}: {text}", response.reason.unwrap_or_default()));
    }
    let accept = handshake::accept(key);
    let is = |name: &str, wanted: &str| {
        let mut named = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.any(|header| header.value == wanted.as_bytes())
    };
    if !is("Sec-WebSocket-Accept", &accept) {
        return Err(String::from("its answer does not belong to what was asked"));
    }
    if !is("Sec-WebSocket-Protocol", "mqtt") && !is("Sec-WebSocket-Protocol", "mqttv3.1") {
        return Err(String::from("there is a WebSocket, but not one of MQTT"));
    }
    Ok(Some(length))
}

/// What went wrong with TLS, with what to try, or with the connection beneath it.
fn of_handshake(error: io::Error, options: &ConnectOptions) -> ClientError {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        let is_end = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        let address = options.address();
        return if is_end { ClientError::NoTlsAnswer { address } } else { ClientError::Failed(error) };
    };
    let hint = match tls {
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
            "; give the authority's certificate with --cafile"
        }
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
        ) => "; is -h the name in it? --insecure does not look",
        rustls::Error::InvalidMessage(_) => "; is it a port with TLS?",
        rustls::Error::AlertReceived(_) => "; does it want a certificate (--cert and --key), or another --tls-version?",
        _ => "",
    };
    ClientError::Tls { address: options.address(), text: tls.to_string(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn response(status: &str, headers: &str) -> Result<Option<usize>, String> {
        read_response(format!("HTTP/1.1 {status}\r\n{headers}\r\nbody\n").as_bytes(), KEY)
    }

    #[test]
    fn only_an_answer_to_our_own_request_is_taken() {
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        let protocol = "Sec-WebSocket-Protocol: mqtt\r\n";
        let good = format!("{accept}{protocol}");
        assert!(response("101 Switching Protocols", &good).unwrap().is_some());
        assert!(response("101 Switching Protocols", protocol).is_err());
        assert!(response("101 Switching Protocols", accept).is_err());
        assert_eq!(response("404 Not Found", "").unwrap_err(), "its answer is 404 Not Found: body");
        assert_eq!(read_response(b"HTTP/1.1 101 Sw", KEY), Ok(None));
        assert!(read_response(b"\x20\x02\0\0", KEY).unwrap_err().contains("no HTTP"));
    }

    /// Across reads, and with a Ping between.
    #[test]
    fn frames_become_the_stream_that_they_carry() {
        let decoder = Decoder::new(Sender::Server, u64::MAX);
        let mut websocket = WebSocket { decoder, framed: BytesMut::new(), ended: false };
        let mut inbound = BytesMut::from(&b"kept"[..]);
        for piece in [&b"\x82\x05he"[..], b"llo\x89\x02hi", b"\x82\x01!\x88\x02\x03\xE8"] {
            let before = inbound.len();
            inbound.extend_from_slice(piece);
            websocket.decode(&mut inbound, before).unwrap();
        }
        assert_eq!((&inbound[..], websocket.ended), (&b"kepthello!"[..], true));
        assert_eq!(
            (websocket.framed[0], websocket.framed[1], websocket.framed.len()),
            (0x8A, 0x82, 8),
            "a masked Pong"
        );
    }
}
