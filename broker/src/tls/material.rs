//! From files to what rustls works with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use ring::digest::{Context, SHA256};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientCertVerifierBuilder, NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::revocation::WholeChain;
use super::server_names::ByName;
use super::tickets::Tickets;
use super::{Endpoint, Handshakes, identity};
use crate::config::{ClientCertificate, ExpiredList, TlsConfig, TlsVersion};

/// The protocol that clients may ask for by ALPN.
const MQTT: &[u8] = b"mqtt";

/// What browsers ask for before they open a WebSocket.
const HTTP: &[u8] = b"http/1.1";

/// A file that is longer is none of those that are meant here.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Least entropy that a shared secret can have.
const TICKET_KEY_BYTES_MIN: usize = 32;

/// SHA-256.
pub(super) type Digest = [u8; 32];

/// Why files cannot be used for TLS. The operator's to mend. Each says its cause, and so has no source that would be said again.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// No file is named where one is needed. Settings are checked for this before.
    #[error("`tls.{0}` names no file")]
    Unnamed(&'static str),
    /// A file cannot be read.
    #[error("{}: cannot be read: {error}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is no PEM, or not of the right kind.
    #[error("{}: no {what} in PEM is in it: {error}", file.display())]
    NotPem {
        /// The file.
        file: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// A file should hold something and does not.
    #[error("{}: holds no {what} in PEM", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// They do not belong together, or are not what they should be.
    #[error("{}: {what}: {error}", file.display())]
    Invalid {
        /// The file that is to blame.
        file: PathBuf,
        /// What was tried with it.
        what: &'static str,
        /// What is wrong.
        error: rustls::Error,
    },
    /// The secret of tickets is too short to be one.
    #[error("{}: holds {bytes} bytes, and a secret needs at least 32: make one with `openssl rand -out FILE 48`", file.display())]
    TicketKeyShort {
        /// The file.
        file: PathBuf,
        /// How many there are.
        bytes: usize,
    },
}

/// The files of a listener as they were at one moment: what is made of them does not mix old and new.
#[derive(Debug)]
pub struct Files {
    contents: BTreeMap<PathBuf, io::Result<Vec<u8>>>,
}

impl Files {
    /// Reads all that `config` names.
    #[must_use]
    pub fn read(config: &TlsConfig) -> Self {
        let TlsConfig { certificate_file, key_file, client_ca_file, crl_file, ticket_key_file, sni, .. } = config;
        let main = [certificate_file, key_file, client_ca_file, crl_file, ticket_key_file];
        let more = sni.iter().flat_map(|one| [&one.certificate_file, &one.key_file]);
        let paths = main.into_iter().chain(more).flatten();
        Self { contents: paths.map(|path| (path.clone(), read(path))).collect() }
    }

    /// Tells contents apart, those that cannot be read among them.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        for (path, contents) in &self.contents {
            update(&mut context, path.as_os_str().as_encoded_bytes());
            match contents {
                Ok(contents) => update(&mut context, contents),
                Err(error) => update(&mut context, error.to_string().as_bytes()),
            }
        }
        finish(context)
    }

    /// The second (Unix time) at which the certificate in one of them ends, if there is one.
    #[must_use]
    pub fn expires_seconds(&self, file: &Path) -> Option<i64> {
        identity::expires_seconds(self.certificates(file).ok()?.first()?)
    }

    fn get(&self, path: &Path) -> Result<&[u8], TlsFileError> {
        let unreadable = |error| TlsFileError::Unreadable { file: path.to_owned(), error };
        match self.contents.get(path) {
            Some(Ok(contents)) => Ok(contents),
            Some(Err(error)) => Err(unreadable(io::Error::new(error.kind(), error.to_string()))),
            None => Err(unreadable(io::ErrorKind::NotFound.into())),
        }
    }

    /// TLS by the certificate and the key that `config` names, for anybody, with nothing remembered of him.
    ///
    /// # Errors
    /// Which file is wrong, and in what way.
    pub(crate) fn server_config(&self, config: &TlsConfig) -> Result<ServerConfig, TlsFileError> {
        let certificate_file = named(&config.certificate_file, "certificate_file")?;
        let main = self.certified_key(certificate_file, named(&config.key_file, "key_file")?)?;
        let server = ServerConfig::builder_with_provider(Arc::new(provider(config)))
            .with_protocol_versions(&versions(config.minimum_version))
            .map_err(|error| TlsFileError::Invalid { file: certificate_file.clone(), what: "cannot be used", error })?;
        Ok(server.with_no_client_auth().with_cert_resolver(Arc::new(ByName::new(main, Vec::new()))))
    }

    fn certificates(&self, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        self.items(file, "certificate")
    }

    fn items<T: PemObject>(&self, file: &Path, what: &'static str) -> Result<Vec<T>, TlsFileError> {
        let bad = |error| TlsFileError::NotPem { file: file.to_owned(), what, error };
        let items: Vec<T> = T::pem_slice_iter(self.get(file)?).collect::<Result<_, _>>().map_err(bad)?;
        if items.is_empty() {
            return Err(TlsFileError::Empty { file: file.to_owned(), what });
        }
        Ok(items)
    }

    /// A certificate with its key, found to belong together.
    fn certified_key(&self, certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsFileError> {
        let invalid = |file: &Path, what| {
            let file = file.to_owned();
            move |error| TlsFileError::Invalid { file, what, error }
        };
        let chain = self.certificates(certificate)?;
        let der = PrivateKeyDer::from_pem_slice(self.get(key)?).map_err(|error| TlsFileError::NotPem {
            file: key.to_owned(),
            what: "private key",
            error,
        })?;
        let signer = any_supported_type(&der).map_err(invalid(key, "is no key that can be used"))?;
        let certified = CertifiedKey::new(chain, signer);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
            Err(error) => Err(invalid(certificate, "does not go with its key")(error)),
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, FILE_BYTES_MAX + 1), &mut contents)?;
    if contents.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any certificate or list of them"));
    }
    Ok(contents)
}

fn update(context: &mut Context, bytes: &[u8]) {
    context.update(&bytes.len().to_be_bytes());
    context.update(bytes);
}

fn finish(context: Context) -> Digest {
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl Endpoint {
    /// Makes of `files` what `config` says.
    ///
    /// It may take the place of the one `before`.
    ///
    /// # Errors
    /// Which file is wrong, and in what way.
    pub fn new(
        config: &TlsConfig,
        files: &Files,
        handshakes: Arc<Handshakes>,
        before: Option<&Self>,
    ) -> Result<Self, TlsFileError> {
        let certificate_file = named(&config.certificate_file, "certificate_file")?;
        let main = files.certified_key(certificate_file, named(&config.key_file, "key_file")?)?;
        let mut others = Vec::new();
        for one in &config.sni {
            let certificate = named(&one.certificate_file, "sni.certificate_file")?;
            others.push(files.certified_key(certificate, named(&one.key_file, "sni.key_file")?)?);
        }
        // Those between them and the authority may run out by design: clients that trust another authority need them not.
        let own = others.iter().chain([&main]).filter_map(|key| key.cert.first());
        let expires_seconds = own.filter_map(identity::expires_seconds).min();
        let provider = Arc::new(provider(config));
        let clients = client_verifier(config, files, &provider)?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(config.minimum_version))
            .map_err(|error| TlsFileError::Invalid {
                file: certificate_file.clone(),
                what: "cannot be used with these `cipher_suites` and this `minimum_version`",
                error,
            })?
            .with_client_cert_verifier(Arc::clone(&clients))
            .with_cert_resolver(Arc::new(ByName::new(main, others)));
        server.alpn_protocols = vec![MQTT.to_vec(), HTTP.to_vec()];
        // What is remembered of a session goes with the client, in a ticket.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let tickets = tickets(config, files)?.map(|tickets| match before.and_then(|before| before.tickets.as_ref()) {
            Some(before) => Arc::new(tickets.in_place_of(before)),
            None => Arc::new(tickets),
        });
        if let Some(tickets) = &tickets {
            server.ticketer = Arc::clone(tickets) as Arc<dyn ProducesTickets>;
        }
        server.send_tls13_tickets = 1;
        Ok(Self {
            config: Arc::new(server),
            clients,
            identity: config.identity,
            handshakes,
            tickets,
            lists_until: lists_until(config, files)?,
            expires_seconds,
            settings: config.clone(),
            digest: files.digest(),
        })
    }
}

fn named<'a>(file: &'a Option<PathBuf>, key: &'static str) -> Result<&'a PathBuf, TlsFileError> {
    file.as_ref().ok_or(TlsFileError::Unnamed(key))
}

fn versions(minimum: TlsVersion) -> Vec<&'static SupportedProtocolVersion> {
    match minimum {
        TlsVersion::V1_2 => vec![&version::TLS13, &version::TLS12],
        TlsVersion::V1_3 => vec![&version::TLS13],
    }
}

/// What ring can do, as far as the settings allow it.
fn provider(config: &TlsConfig) -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    if !config.cipher_suites.is_empty() {
        let names: Vec<String> = config.cipher_suites.iter().map(ToString::to_string).collect();
        // rustls says TLS13_ where the registry of IANA says TLS_.
        provider.cipher_suites.retain(|suite| {
            let name = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
            names.contains(&name)
        });
    }
    provider
}

fn client_verifier(
    config: &TlsConfig,
    files: &Files,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsFileError> {
    if config.client_certificate == ClientCertificate::None {
        return Ok(WebPkiClientVerifier::no_client_auth());
    }
    let ca_file = named(&config.client_ca_file, "client_ca_file")?;
    let mut roots = RootCertStore::empty();
    for certificate in files.certificates(ca_file)? {
        roots.add(certificate).map_err(|error| TlsFileError::Invalid {
            file: ca_file.clone(),
            what: "holds a certificate that cannot be an authority",
            error,
        })?;
    }
    let roots = Arc::new(roots);
    let builder = || WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
    let build = |mut builder: ClientCertVerifierBuilder, file: &PathBuf| {
        if config.client_certificate == ClientCertificate::Optional {
            builder = builder.allow_unauthenticated();
        }
        builder.build().map_err(|error| TlsFileError::Invalid {
            file: file.clone(),
            what: "clients' certificates cannot be checked with it",
            error: rustls::Error::General(error.to_string()),
        })
    };
    let Some(crl_file) = &config.crl_file else {
        return build(builder(), ca_file);
    };
    let lists: Vec<CertificateRevocationListDer<'static>> = files.items(crl_file, "list of revoked certificates")?;
    let looked_up = || match config.crl_expired {
        ExpiredList::Use => builder().with_crls(lists.clone()),
        ExpiredList::Refuse => builder().with_crls(lists.clone()).enforce_revocation_expiration(),
    };
    let own = build(looked_up().only_check_end_entity_revocation(), crl_file)?;
    let all = build(looked_up().allow_unknown_revocation_status(), crl_file)?;
    Ok(Arc::new(WholeChain { own, all }))
}

/// When the first of the lists of revoked certificates runs out, in seconds of Unix time.
fn lists_until(config: &TlsConfig, files: &Files) -> Result<Option<i64>, TlsFileError> {
    let Some(file) = config.crl_file.as_ref().filter(|_| config.client_certificate != ClientCertificate::None) else {
        return Ok(None);
    };
    let lists: Vec<CertificateRevocationListDer<'static>> = files.items(file, "list of revoked certificates")?;
    let until = |list: &CertificateRevocationListDer<'_>| {
        let (_, list) = CertificateRevocationList::from_der(list).ok()?;
        Some(list.next_update()?.timestamp())
    };
    Ok(lists.iter().filter_map(until).min())
}

fn tickets(config: &TlsConfig, files: &Files) -> Result<Option<Tickets>, TlsFileError> {
    let secret = config.ticket_key_file.as_ref().map(|file| {
        let secret = files.get(file)?;
        if secret.len() < TICKET_KEY_BYTES_MIN {
            return Err(TlsFileError::TicketKeyShort { file: file.clone(), bytes: secret.len() });
        }
        Ok(secret)
    });
    Ok(Tickets::new(secret.transpose()?, policy(config, files)?))
}

/// What a client is checked against.
fn policy(config: &TlsConfig, files: &Files) -> Result<Digest, TlsFileError> {
    let mut context = Context::new(&SHA256);
    update(&mut context, config.client_certificate.to_string().as_bytes());
    if config.crl_expired == ExpiredList::Refuse {
        update(&mut context, config.crl_expired.to_string().as_bytes());
    }
    if config.client_certificate != ClientCertificate::None {
        for file in [&config.client_ca_file, &config.crl_file].into_iter().flatten() {
            update(&mut context, files.get(file)?);
        }
    }
    Ok(finish(context))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };
    use rustls::CertificateError;
    use rustls::pki_types::UnixTime;

    use super::*;

    fn params(name: &str, serial: u64, is_authority: bool) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        } else {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        }
        params
    }

    fn list(issuer: &Issuer<'_, KeyPair>, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|&serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(issuer).unwrap().pem().unwrap()
    }

    /// An authority that was given its own certificate, and whose certificates are worth nothing once that is revoked.
    #[test]
    fn what_lies_between_a_client_and_its_authority_is_looked_up_too() {
        let [root_key, middle_key, own_key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let root = params("root", 1, true);
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let root = Issuer::new(root, root_key);
        let middle = params("middle", 2, true);
        let middle_der = middle.signed_by(&middle_key, &root).unwrap().der().clone();
        let middle = Issuer::new(middle, middle_key);
        let own_der = params("device", 3, false).signed_by(&own_key, &middle).unwrap().der().clone();

        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("ca"), root_pem).unwrap();
        let check = |lists: &[String]| {
            fs::write(path("crl"), lists.concat()).unwrap();
            let config = TlsConfig {
                client_certificate: ClientCertificate::Required,
                client_ca_file: Some(path("ca")),
                crl_file: Some(path("crl")),
                ..TlsConfig::default()
            };
            let provider = Arc::new(provider(&config));
            let verifier = client_verifier(&config, &Files::read(&config), &provider).unwrap();
            match verifier.verify_client_cert(&own_der, std::slice::from_ref(&middle_der), UnixTime::now()) {
                Ok(_) => None,
                Err(rustls::Error::InvalidCertificate(error)) => Some(error),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(check(&[list(&middle, &[]), list(&root, &[])]), None);
        assert_eq!(check(&[list(&middle, &[])]), None, "nobody keeps a list of what is above");
        assert_eq!(check(&[list(&middle, &[]), list(&root, &[2])]), Some(CertificateError::Revoked));
        assert_eq!(check(&[list(&middle, &[3]), list(&root, &[])]), Some(CertificateError::Revoked));
        assert_eq!(check(&[list(&root, &[])]), Some(CertificateError::UnknownRevocationStatus), "its own must be kept");
    }
}
