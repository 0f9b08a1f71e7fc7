//! Mutual TLS between nodes, and what a certificate says of its holder.
//!
//! Both sides prove with a certificate of the cluster's CA that they may speak at all. Which node it is stands in the DNS
//! names of the certificate: it must be valid for the node's *name*, and the directory says which name and node id
//! belong together. That is checked after the hello, alike on both sides, because whoever dials a seed knows no name yet.
//! A certificate that restricts its use must allow both, server and client.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Where a node's certificates lie, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that make nodes members of this cluster; more than one while they change.
    pub ca: PathBuf,
    /// This node's certificate, followed by those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Whether a node of this name can use them: they belong together, are valid now, and are for that name.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, name: &str) -> Result<(), TlsError> {
        Configs::load(self, Some(name)).map(drop)
    }

    /// Whether a node can use them whose name is one that they are for.
    ///
    /// # Errors
    /// Why not.
    pub fn check_for_any_name(&self) -> Result<(), TlsError> {
        Configs::load(self, None).map(drop)
    }
}

/// Why certificates cannot be used. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM of the right kind.
    #[error("{}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("{}: holds no certificate", .0.display())]
    Empty(PathBuf),
    /// They do not belong together, or expired.
    #[error("{}: {what}: {source}", file.display())]
    Invalid {
        /// The file that is to blame.
        file: PathBuf,
        /// What was tried with it.
        what: &'static str,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The node's name cannot stand in a certificate.
    #[error("node name {0:?} is no DNS name, so no certificate can be valid for it: choose another name")]
    Name(String),
    /// The transport was started without TLS.
    #[error("this node runs without TLS: there are no certificates to reload")]
    Plain,
}

/// The certificate with which the other end proved itself.
#[derive(Debug)]
pub(super) struct PeerCertificate(CertificateDer<'static>);

impl PeerCertificate {
    /// Whether one of its DNS names covers this one.
    pub(super) fn is_for(&self, name: &str) -> bool {
        let (Ok(name), Ok(certificate)) = (ServerName::try_from(name), ParsedCertificate::try_from(&self.0)) else {
            return false;
        };
        verify_server_name(&certificate, &name).is_ok()
    }
}

/// This node's certificates as they are now.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsFiles,
    name: String,
    current: RwLock<Arc<Configs>>,
}

#[derive(Debug)]
struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    pub(super) fn load(files: TlsFiles, name: &str) -> Result<Self, TlsError> {
        let configs = Configs::load(&files, Some(name))?;
        Ok(Self { files, name: name.to_owned(), current: RwLock::new(Arc::new(configs)) })
    }

    /// Reads the files again. On error the certificates stay as they were; connections keep theirs in any case.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let configs = Arc::new(Configs::load(&self.files, Some(&self.name))?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = configs;
        Ok(())
    }

    fn current(&self) -> Arc<Configs> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn connect(&self, socket: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, PeerCertificate)> {
        let connector = TlsConnector::from(Arc::clone(&self.current().client));
        // Sent to the server as a hint only, and ours have one certificate.
        let name = ServerName::try_from("peer").map_err(std::io::Error::other)?;
        with_certificate(TlsStream::Client(connector.connect(name, socket).await?))
    }

    pub(super) async fn accept(&self, socket: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, PeerCertificate)> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.current().server));
        with_certificate(TlsStream::Server(acceptor.accept(socket).await?))
    }
}

fn with_certificate(stream: TlsStream<TcpStream>) -> std::io::Result<(TlsStream<TcpStream>, PeerCertificate)> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    // Both verifiers insist on one; without it the peer is a stranger.
    let certificate = certificate.ok_or_else(|| std::io::Error::other("the peer showed no certificate"))?;
    Ok((stream, PeerCertificate(certificate)))
}

impl Configs {
    /// For a node of this name; `None`: whatever it is called.
    fn load(files: &TlsFiles, name: Option<&str>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(read_roots(&files.ca)?);
        let chain = read_certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|source| TlsError::File { file: files.key.clone(), source })?;
        let verifier = Arc::new(MemberVerifier { roots: Arc::clone(&roots), provider: Arc::clone(&provider) });
        verify_own(&verifier, &chain, name, files)?;

        let invalid =
            |what| move |source: rustls::Error| TlsError::Invalid { file: files.certificate.clone(), what, source };
        let versions = [&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(invalid("cannot be used"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(invalid("does not go with its key"))?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would outlive a change of certificates.
        client.resumption = Resumption::disabled();

        let clients =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().map_err(|error| {
                TlsError::Invalid {
                    file: files.ca.clone(),
                    what: "cannot verify peers",
                    source: rustls::Error::General(error.to_string()),
                }
            })?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(invalid("cannot be used"))?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(invalid("does not go with its key"))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// Our own certificate must pass what peers will check, or this node would only be refused everywhere.
fn verify_own(
    verifier: &MemberVerifier,
    chain: &[CertificateDer<'static>],
    name: Option<&str>,
    files: &TlsFiles,
) -> Result<(), TlsError> {
    // Whose authority it is of does not depend on the name.
    let named = name.unwrap_or("peer");
    let server_name = ServerName::try_from(named).map_err(|_| TlsError::Name(named.to_owned()))?;
    let invalid =
        |what| move |source: rustls::Error| TlsError::Invalid { file: files.certificate.clone(), what, source };
    let (own, between) = chain.split_first().ok_or_else(|| TlsError::Empty(files.certificate.clone()))?;
    verifier
        .verify_server_cert(own, between, &server_name, &[], UnixTime::now())
        .map_err(invalid("is not valid under the CA"))?;
    let own = ParsedCertificate::try_from(own).map_err(invalid("is no certificate"))?;
    if name.is_none() {
        return Ok(());
    }
    verify_server_name(&own, &server_name).map_err(invalid("has no DNS name equal to the node's name"))
}

fn read_roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(file)? {
        roots.add(certificate).map_err(|source| TlsError::Invalid {
            file: file.to_owned(),
            what: "holds a certificate that cannot be an authority",
            source,
        })?;
    }
    Ok(roots)
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |source| TlsError::File { file: file.to_owned(), source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty(file.to_owned()));
    }
    Ok(certificates)
}

/// Accepts whoever the cluster's CA vouches for. *Which* node it is, [`PeerCertificate::is_for`] finds after the hello.
#[derive(Debug)]
struct MemberVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
