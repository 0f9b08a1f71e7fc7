//! The byte stream to the broker: a socket, or TLS over one.
//!
//! Who answers is not looked at: what is measured is the broker, so the client's half of a handshake is to cost little. One
//! version, one suite and one key exchange are offered ([`TLS_TERMS`]), which is how all brokers come to use the same.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};
use socket2::{Domain, Protocol, Socket, Type};

/// What is offered in a handshake, in words.
pub const TLS_TERMS: &str = "TLS 1.3, TLS_AES_128_GCM_SHA256, X25519";

/// Sessions that are remembered to be resumed, at most.
const TICKETS_MAX: usize = 20_000;

/// What lies over the socket.
#[derive(Debug, Clone, Default)]
pub enum Layer {
    /// Nothing.
    #[default]
    Plain,
    /// TLS.
    Tls(Arc<ClientConfig>),
}

/// A certificate, and its private key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Layer {
    /// TLS with these terms; with `resumes` a client comes back by a ticket that it got, if it got one.
    pub fn tls(resumes: bool, identity: Option<&Identity>) -> Result<Self> {
        let mut provider = ring::default_provider();
        provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
        provider.kx_groups = vec![ring::kx_group::X25519];
        let provider = Arc::new(provider);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).context("preparing TLS")?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => builder
                .with_client_auth_cert(vec![certificate.clone()], key.clone_key())
                .context("using a client's certificate")?,
        };
        config.resumption = if resumes { Resumption::in_memory_sessions(TICKETS_MAX) } else { Resumption::disabled() };
        Ok(Self::Tls(Arc::new(config)))
    }

    /// For words.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Over a socket on which nothing was said yet. Tickets are of use only to the same `number`.
    pub fn over(&self, socket: TcpStream, number: usize) -> io::Result<Link> {
        let tls = match self {
            Self::Plain => None,
            Self::Tls(config) => {
                let name = ServerName::try_from(format!("c{number}.localhost")).map_err(io::Error::other)?;
                let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                Some(Box::new(connection))
            }
        };
        Ok(Link { socket, tls })
    }

    /// Begins to connect, without blocking then or later.
    pub fn begin(&self, address: SocketAddr, number: usize) -> io::Result<Link> {
        self.over(begin_connect(address)?, number)
    }
}

/// A connection to the broker. TLS shakes hands while it is read, and what is written before that waits.
#[derive(Debug)]
pub struct Link {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Link {
    /// Bytes wait for the socket that nobody will write again.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Whether the broker recognised a ticket.
    pub fn was_resumed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// Sends as much as the socket takes of `bytes`, and of what was taken before; what remains stays in `bytes`.
    pub fn send_from(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write(bytes) {
                Ok(sent) => drop(bytes.drain(..sent)),
                Err(error) => return nothing_now(error),
            }
        }
        self.flush().or_else(nothing_now)
    }

    /// Bounds how long a read of a blocking socket may take.
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(timeout))
    }

    /// Closes so that neither TIME_WAIT nor a long-lived entry of connection tracking remains. Only
    /// after the broker has closed its side: what is under way is discarded.
    pub fn close_without_trace(self) {
        let socket = Socket::from(self.socket);
        // Failing only means that the entry lives longer.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for Link {
    /// All that is there, or nothing of it, if there is room for a record.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { socket, tls } = self;
        let Some(tls) = tls else {
            return socket.read(buffer);
        };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            if tls.read_tls(socket)? == 0 {
                return Ok(0);
            }
            let processed = tls.process_new_packets();
            // Also an alert that says what was wrong. What the socket does not take is for `flush`.
            send(tls, socket).or_else(nothing_now)?;
            processed.map_err(io::Error::other)?;
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let Self { socket, tls } = self;
        let Some(tls) = tls else {
            return socket.write(bytes);
        };
        let taken = tls.writer().write(bytes)?;
        send(tls, socket).or_else(nothing_now)?;
        // What waits for the end of the handshake is bounded.
        if taken == 0 && !bytes.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// `WouldBlock`: something is left that was taken.
    fn flush(&mut self) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |tls| send(tls, &mut self.socket))
    }
}

fn send(tls: &mut ClientConnection, socket: &mut TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(socket)?;
    }
    Ok(())
}

fn nothing_now(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::NotConnected => Ok(()),
        _ => Err(error),
    }
}

/// Begins a non-blocking TCP connection.
fn begin_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// Takes any certificate, without work.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use rustls::{
        ServerConfig, ServerConnection, StreamOwned,
        pki_types::{PrivateKeyDer, pem::PemObject},
    };

    use super::*;
    use crate::certificates::Certificates;

    /// Answers with what it gets, until the end of each connection.
    fn echo() -> SocketAddr {
        let dir = tempfile::tempdir().unwrap();
        let files = Certificates::make(dir.path()).unwrap();
        let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, socket.unwrap());
                let mut bytes = vec![0; 10_000];
                while let Ok(read @ 1..) = stream.read(&mut bytes) {
                    stream.write_all(&bytes[..read]).unwrap();
                }
            }
        });
        address
    }

    /// Sends `bytes` and gets them back, on a socket that never blocks.
    fn there_and_back(link: &mut Link, bytes: &[u8]) {
        let (mut to_send, mut received, mut buffer) = (bytes.to_vec(), Vec::new(), vec![0; 64 * 1024]);
        while received.len() < bytes.len() {
            link.send_from(&mut to_send).unwrap();
            match link.read(&mut buffer) {
                Ok(0) => panic!("the end after {} bytes", received.len()),
                Ok(read) => received.extend_from_slice(&buffer[..read]),
                Err(error) => nothing_now(error).unwrap(),
            }
        }
        assert!(received == bytes && to_send.is_empty());
    }

    #[test]
    fn more_than_waits_for_a_handshake_or_fits_into_a_record_comes_back_whole() {
        let mut link = Layer::tls(false, None).unwrap().begin(echo(), 0).unwrap();
        let bytes: Vec<_> = (0..300_000u32).map(|number| (number * 7) as u8).collect();
        there_and_back(&mut link, &bytes);
        assert!(!link.wants_write());
    }

    #[test]
    fn only_who_was_there_before_resumes_and_only_if_it_may() {
        let address = echo();
        let resumed = |layer: &Layer, number| {
            let mut link = layer.begin(address, number).unwrap();
            there_and_back(&mut link, b"tickets come before this");
            link.was_resumed()
        };
        let resuming = Layer::tls(true, None).unwrap();
        assert!(!resumed(&resuming, 1), "a stranger");
        assert!(resumed(&resuming, 1));
        assert!(!resumed(&resuming, 2), "another");
        let whole = Layer::tls(false, None).unwrap();
        assert!(!resumed(&whole, 1) && !resumed(&whole, 1));
    }
}
