//! The certificate for the links between nodes: when its files are read again, and when it ends.

use kentongan_cluster::transport::{TlsError, Transport};

use crate::config::{ClusterConfig, TlsConfig};
use crate::tls::{Files, Watch};

/// The files as they are in force.
#[derive(Debug)]
pub(super) struct PeerCertificates {
    /// As a listener would name them.
    files: TlsConfig,
    watch: Watch,
    in_force: [u8; 32],
    expires_seconds: Option<i64>,
}

impl PeerCertificates {
    /// Call it before the transport reads them: what changes meanwhile is then seen. `None`: links are without TLS.
    pub(super) fn new(config: &ClusterConfig) -> Option<Self> {
        let named = config.tls()?;
        let files = TlsConfig {
            certificate_file: Some(named.certificate),
            key_file: Some(named.key),
            client_ca_file: Some(named.ca),
            ..TlsConfig::default()
        };
        let mut own = Self { files, watch: Watch::default(), in_force: [0; 32], expires_seconds: None };
        let read = Files::read(&own.files);
        own.took_up(&read);
        Some(own)
    }

    /// When the certificate ends that new links show, in Unix time.
    pub(super) fn expires_seconds(&self) -> Option<i64> {
        self.expires_seconds
    }

    /// Looks at the files, and lets `transport` read them again once they have changed and stay so. `None`: there is nothing to do.
    pub(super) fn look(&mut self, transport: &Transport) -> Option<Result<(), TlsError>> {
        let read = Files::read(&self.files);
        let digest = read.digest();
        self.watch.look_at(digest, digest == self.in_force).then(|| self.reload_as(&read, transport))
    }

    /// Lets `transport` read them again now.
    pub(super) fn reload(&mut self, transport: &Transport) -> Result<(), TlsError> {
        let read = Files::read(&self.files);
        self.reload_as(&read, transport)
    }

    fn reload_as(&mut self, read: &Files, transport: &Transport) -> Result<(), TlsError> {
        transport.reload_certificates()?;
        self.took_up(read);
        Ok(())
    }

    fn took_up(&mut self, read: &Files) {
        self.in_force = read.digest();
        self.expires_seconds = self.files.certificate_file.as_deref().and_then(|file| read.expires_seconds(file));
    }
}
