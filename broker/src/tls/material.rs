//! From files to what rustls works with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Endpoint, Handshakes};
use crate::config::TlsConfig;

/// The protocol that clients may ask for by ALPN.
const MQTT: &[u8] = b"mqtt";

/// Why files cannot be used for TLS. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// No file is named where one is needed. Settings are checked for this before.
    #[error("`tls.{0}` names no file")]
    Unnamed(&'static str),
    /// A file cannot be read, or is no PEM of the right kind.
    #[error("{}: {}", file.display(), describe(source))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{}: holds no certificate: it must be PEM, with lines of BEGIN CERTIFICATE", .0.display())]
    NoCertificate(PathBuf),
    /// They do not belong together, or are not what they should be.
    #[error("{}: {what}: {source}", file.display())]
    Invalid {
        /// The file that is to blame.
        file: PathBuf,
        /// What was tried with it.
        what: &'static str,
        /// What is wrong.
        source: rustls::Error,
    },
}

fn describe(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        pem::Error::NoItemsFound => String::from("holds nothing of the kind that belongs there, in PEM"),
        other => format!("is no PEM file: {other}"),
    }
}

impl Endpoint {
    /// Reads the files of `config`.
    ///
    /// # Errors
    /// Which file is wrong, and in what way.
    pub fn load(config: &TlsConfig, handshakes: Arc<Handshakes>) -> Result<Self, TlsFileError> {
        let file = |path: &Option<PathBuf>, name| path.clone().ok_or(TlsFileError::Unnamed(name));
        let certificate_file = file(&config.certificate_file, "certificate_file")?;
        let key_file = file(&config.key_file, "key_file")?;
        let chain = read_certificates(&certificate_file)?;
        let key = PrivateKeyDer::from_pem_file(&key_file)
            .map_err(|source| TlsFileError::Unreadable { file: key_file.clone(), source })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let invalid = |what| {
            let file = certificate_file.clone();
            move |source| TlsFileError::Invalid { file, what, source }
        };
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(invalid("cannot be used"))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(invalid("does not go with its key"))?;
        server.alpn_protocols = vec![MQTT.to_vec()];
        Ok(Self { config: Arc::new(server), handshakes })
    }
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let bad = |source| TlsFileError::Unreadable { file: file.to_owned(), source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)?;
    if certificates.is_empty() {
        return Err(TlsFileError::NoCertificate(file.to_owned()));
    }
    Ok(certificates)
}
