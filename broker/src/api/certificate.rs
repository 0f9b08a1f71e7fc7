//! The API's own certificate: read at the start, and again on a reload and when its files change, as those of the listeners.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::config::{ApiConfig, TlsConfig};
use crate::metrics::{ReloadOutcome, TlsMetrics};
use crate::tls::{Files, TlsFileError, Watch};

/// A certificate and its key, in use and on disk.
#[derive(Debug)]
pub(super) struct Certificate {
    named: TlsConfig,
    /// Of the files that are in use.
    digest: [u8; 32],
    watch: Watch,
    in_use: watch::Sender<Acceptor>,
}

/// What TLS connections begin with from now on.
#[derive(Clone)]
pub(super) struct Acceptor(pub(super) TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Acceptor")
    }
}

impl Certificate {
    /// What the settings name; `None`: no TLS.
    ///
    /// # Errors
    /// It cannot be used.
    pub(super) fn read(config: &ApiConfig) -> anyhow::Result<Option<Self>> {
        let (Some(certificate), Some(key)) = (&config.certificate_file, &config.key_file) else { return Ok(None) };
        let named = named(certificate.clone(), key.clone());
        let files = Files::read(&named);
        let acceptor = acceptor(&named, &files).context("`api.certificate_file`, `api.key_file`")?;
        let (in_use, _) = watch::channel(acceptor);
        Ok(Some(Self { named, digest: files.digest(), watch: Watch::default(), in_use }))
    }

    /// What is in use, from now on.
    pub(super) fn follow(&self) -> watch::Receiver<Acceptor> {
        self.in_use.subscribe()
    }

    /// Takes up files that have changed and stayed the same since the last look.
    pub(super) fn look(&mut self, metrics: &TlsMetrics) {
        let files = Files::read(&self.named);
        if self.watch.look(&files, self.digest == files.digest()) {
            self.take_up(&files, metrics);
        }
    }

    /// What the files hold, if they have changed.
    pub(super) fn read_again(&self) -> Result<Option<New>, TlsFileError> {
        let files = Files::read(&self.named);
        if self.digest == files.digest() {
            return Ok(None);
        }
        Ok(Some(New { acceptor: acceptor(&self.named, &files)?, digest: files.digest() }))
    }

    /// Shows it from here on.
    pub(super) fn take(&mut self, new: New, metrics: &TlsMetrics) {
        self.digest = new.digest;
        self.in_use.send_replace(new.acceptor);
        metrics.reloaded(ReloadOutcome::Applied);
        tracing::info!("the API shows a new certificate");
    }

    fn take_up(&mut self, files: &Files, metrics: &TlsMetrics) {
        match acceptor(&self.named, files) {
            Ok(acceptor) => self.take(New { acceptor, digest: files.digest() }, metrics),
            Err(error) => {
                metrics.reloaded(ReloadOutcome::Refused);
                tracing::error!(%error, "the API's new certificate cannot be used, that of before stays");
            }
        }
    }
}

/// A certificate that was read and can be used.
#[derive(Debug)]
pub struct New {
    acceptor: Acceptor,
    digest: [u8; 32],
}

fn named(certificate: PathBuf, key: PathBuf) -> TlsConfig {
    TlsConfig { certificate_file: Some(certificate), key_file: Some(key), ..TlsConfig::default() }
}

fn acceptor(named: &TlsConfig, files: &Files) -> Result<Acceptor, TlsFileError> {
    let mut config: ServerConfig = files.server_config(named)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::metrics::Metrics;

    fn write(directory: &std::path::Path) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![String::from("localhost")]).expect("a name");
        fs::write(directory.join("c.pem"), params.self_signed(&key).expect("signed").pem()).expect("written");
        fs::write(directory.join("k.pem"), key.serialize_pem()).expect("written");
    }

    #[test]
    fn a_certificate_that_changed_is_taken_up_whole_and_what_is_wrong_leaves_the_old_one() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path());
        let config = ApiConfig {
            certificate_file: Some(directory.path().join("c.pem")),
            key_file: Some(directory.path().join("k.pem")),
            ..ApiConfig::default()
        };
        let mut certificate = Certificate::read(&config).expect("good").expect("there is one");
        let mut followed = certificate.follow();
        let metrics = Metrics::isolated().tls();
        let mut has_changed = || {
            let changed = followed.has_changed().expect("it is there");
            followed.mark_unchanged();
            changed
        };

        certificate.look(&metrics);
        assert!(matches!(certificate.read_again(), Ok(None)), "nothing is new");
        assert!(!has_changed());
        write(directory.path());
        certificate.look(&metrics);
        assert!(!has_changed(), "it may still be written");
        certificate.look(&metrics);
        assert!(has_changed());
        certificate.look(&metrics);
        assert!(!has_changed());

        write(directory.path());
        let new = certificate.read_again().expect("good").expect("new");
        certificate.take(new, &metrics);
        assert!(has_changed(), "at once, if somebody says so");
        let before = fs::read(directory.path().join("k.pem")).expect("there");
        write(directory.path());
        fs::write(directory.path().join("k.pem"), before).expect("written");
        certificate.read_again().map(drop).expect_err("the key is another one's");
        certificate.look(&metrics);
        certificate.look(&metrics);
        assert!(!has_changed(), "the key is another one's");
    }
}
