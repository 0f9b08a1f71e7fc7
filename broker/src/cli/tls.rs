//! TLS of the clients of the command line, in the flags of mosquitto's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion,
};

/// Whom to trust, who to be.
#[derive(Debug, Clone, Args)]
pub(super) struct TlsArgs {
    /// Connect by TLS; trust the authorities in this file (PEM).
    #[arg(long, value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// Connect by TLS; trust the authorities in the files of this directory (PEM).
    #[arg(long, value_name = "DIRECTORY")]
    capath: Option<PathBuf>,
    /// Connect by TLS; trust the authorities that the system trusts, beside those of --cafile and --capath. So does a URL of
    /// mqtts:// or wss:// without these two.
    #[arg(long)]
    tls_use_os_certs: bool,
    /// The client's certificate (PEM), followed by those between it and the authority.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Take a server's certificate that is for another name. Whoever has any certificate of a trusted authority can then
    /// pass for the broker.
    #[arg(long)]
    insecure: bool,
    /// The only TLS version to speak: tlsv1.3 or tlsv1.2. Without it, the better one that the broker has.
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    tls_version: Option<TlsVersion>,
    /// Protocol to ask for by ALPN, such as mqtt.
    #[arg(long, alias = "tls-alpn", value_name = "PROTOCOL")]
    alpn: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TlsVersion {
    V1_2,
    V1_3,
}

impl TlsVersion {
    fn supported(self) -> &'static SupportedProtocolVersion {
        match self {
            Self::V1_2 => &rustls::version::TLS12,
            Self::V1_3 => &rustls::version::TLS13,
        }
    }
}

fn parse_version(text: &str) -> Result<TlsVersion, String> {
    match text {
        "tlsv1.3" => Ok(TlsVersion::V1_3),
        "tlsv1.2" => Ok(TlsVersion::V1_2),
        _ => Err(String::from("it is one of tlsv1.3 and tlsv1.2")),
    }
}

impl TlsArgs {
    /// Whether these flags ask for TLS by themselves.
    fn ask(&self) -> bool {
        self.cafile.is_some() || self.capath.is_some() || self.tls_use_os_certs
    }

    /// What to connect with. `None`: without TLS, which neither a flag nor, by `by_url`, the URL asked for.
    ///
    /// # Errors
    /// A sentence for whoever typed the flags.
    pub(super) fn resolve(&self, by_url: bool) -> Result<Option<Arc<ClientConfig>>, String> {
        if !self.ask() && !by_url {
            let given = [
                ("--cert", self.cert.is_some()),
                ("--insecure", self.insecure),
                ("--tls-version", self.tls_version.is_some()),
                ("--alpn", self.alpn.is_some()),
            ];
            return match given.iter().find(|(_, is_given)| *is_given) {
                Some((flag, _)) => {
                    let ways = "--cafile, --capath, --tls-use-os-certs or a URL of mqtts:// or wss://";
                    Err(format!("{flag} is for TLS; ask for it with {ways}"))
                }
                None => Ok(None),
            };
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = match self.tls_version {
            Some(version) => vec![version.supported()],
            None => vec![&rustls::version::TLS13, &rustls::version::TLS12],
        };
        let text = |error: rustls::Error| format!("TLS: {error}");
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&versions);
        let builder = builder.map_err(text)?.dangerous().with_custom_certificate_verifier(self.verifier(provider)?);
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
                let config = builder.with_client_auth_cert(certificates(cert)?, key);
                config.map_err(|error| format!("--cert and --key do not go together: {error}"))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
        Ok(Some(Arc::new(config)))
    }

    fn verifier(&self, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, String> {
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        let verifier = verifier.map_err(|error| format!("TLS: {error}"))?;
        Ok(Arc::new(Verifier { verifier, any_name: self.insecure }))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.cafile {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
            }
        }
        if let Some(directory) = &self.capath {
            let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", directory.display());
            for entry in std::fs::read_dir(directory).map_err(unreadable)? {
                // What else lies there, keys perhaps, is not what was meant.
                let found = certificates(&entry.map_err(unreadable)?.path()).unwrap_or_default();
                roots.add_parsable_certificates(found);
            }
        }
        if self.tls_use_os_certs || (self.cafile.is_none() && self.capath.is_none()) {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
        }
        if roots.is_empty() {
            return Err(String::from(
                "there is no authority to trust a broker by; name some with --cafile or --capath",
            ));
        }
        Ok(roots)
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found = found.map_err(|error| unreadable(file, &error))?;
    if found.is_empty() { Err(format!("{} holds no certificate (PEM)", file.display())) } else { Ok(found) }
}

fn unreadable(file: &Path, error: &rustls::pki_types::pem::Error) -> String {
    format!("cannot use {}: {error}", file.display())
}

#[derive(Debug)]
struct Verifier {
    verifier: Arc<WebPkiServerVerifier>,
    /// The certificate need not be for the name of the broker.
    any_name: bool,
}

/// Says what is wrong with a certificate where the words of the library do not.
fn in_words(error: rustls::Error) -> rustls::Error {
    match &error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("CaUsedAsEndEntity") =>
        {
            rustls::Error::General(String::from(
                "the broker shows the certificate of an authority (CA:TRUE, as `openssl req -x509` makes it) instead of one that an authority \
                 made for it",
            ))
        }
        _ => error,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is what is looked at last.
        match self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            other => other.map_err(in_words),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
