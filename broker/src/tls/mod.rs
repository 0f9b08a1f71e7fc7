//! TLS for clients: certificates and keys from files, and what a handshake came to.
//!
//! [`material`] reads the files and makes of them what rustls works with; [`watch`] says when that is to be done again.
//! [`server_names`] chooses the certificate that a client is shown, [`identity`] reads the one that it shows. [`tickets`] lets
//! clients come back without either. [`handshakes`] bounds and counts. The stream itself, over the socket of a connection, is
//! [`crate::connection::TlsStream`].

mod handshakes;
mod identity;
mod material;
mod revocation;
mod server_names;
mod tickets;
mod watch;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::UnbufferedServerConnection;
use rustls::server::danger::ClientCertVerifier;

use crate::config::{CertificateIdentity, TlsConfig};
use crate::connection::{RawSocket, TlsStream};

pub use handshakes::{HandshakeGuard, Handshakes};
pub(crate) use identity::is_usable;
pub use material::{Files, TlsFileError};
pub use watch::Watch;

/// What the TLS connections of one listener have in common, as long as its files and settings stay as they are.
#[derive(Debug)]
pub struct Endpoint {
    config: Arc<ServerConfig>,
    /// What clients' certificates are checked by.
    clients: Arc<dyn ClientCertVerifier>,
    identity: CertificateIdentity,
    handshakes: Arc<Handshakes>,
    /// `None`: the system gave no secret.
    tickets: Option<Arc<tickets::Tickets>>,
    /// The second (Unix time) at which the first of the lists of revoked certificates runs out.
    lists_until: Option<i64>,
    /// Likewise, the first of its own certificates.
    expires_seconds: Option<i64>,
    /// What it was made of.
    settings: TlsConfig,
    /// Likewise.
    digest: material::Digest,
}

/// The second (Unix time) at which the first certificate in a file ends, if there is one.
#[must_use]
pub fn expires_seconds_in(file: &Path) -> Option<i64> {
    let config = TlsConfig { certificate_file: Some(file.to_owned()), ..TlsConfig::default() };
    Files::read(&config).expires_seconds(file)
}

impl Endpoint {
    /// TLS over a socket that was just accepted.
    ///
    /// # Errors
    /// rustls cannot begin a connection.
    pub fn accept(self: &Arc<Self>, socket: RawSocket, handshake: HandshakeGuard) -> io::Result<TlsStream> {
        let connection = UnbufferedServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        Ok(TlsStream::new(socket, connection, Arc::clone(self), handshake))
    }

    /// Lets a handshake begin, unless as many as may be are going on, in all or of clients at `address`.
    #[must_use]
    pub fn begin_handshake(&self, address: Option<IpAddr>) -> Option<HandshakeGuard> {
        HandshakeGuard::begin(&self.handshakes, self.settings.handshakes_max, address)
    }

    /// Its handshakes, for the one that takes its place.
    #[must_use]
    pub fn handshakes(&self) -> Arc<Handshakes> {
        Arc::clone(&self.handshakes)
    }

    /// The settings it was made of.
    #[must_use]
    pub fn settings(&self) -> &TlsConfig {
        &self.settings
    }

    /// Whether it was made of `files`.
    #[must_use]
    pub fn is_made_of(&self, files: &Files) -> bool {
        self.digest == files.digest()
    }

    /// Whether one of its lists of revoked certificates has run out, and a newer one should have come.
    #[must_use]
    pub fn has_expired_list(&self, now_seconds: i64) -> bool {
        self.lists_until.is_some_and(|until| until <= now_seconds)
    }

    /// The second (Unix time) at which the first of the certificates that clients are shown ends.
    #[must_use]
    pub fn expires_seconds(&self) -> Option<i64> {
        self.expires_seconds
    }

    /// Checks the certificates of a client that comes back by a ticket as if it showed them now: they may have run out since.
    ///
    /// # Errors
    /// It would not be let in by them any more.
    pub(crate) fn check_again(&self, certificates: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let Some((own, between)) = certificates.split_first().filter(|_| self.clients.offer_client_auth()) else {
            return Ok(());
        };
        self.clients.verify_client_cert(own, between, UnixTime::now()).map(drop)
    }

    /// Whom a client's certificate names.
    pub(crate) fn name_in(&self, certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
        identity::name_in(certificate, self.identity)
    }
}
