//! TLS for clients: certificates and keys from files, and what a handshake came to.
//!
//! [`material`] reads the files and makes of them what rustls works with; [`handshakes`] counts. The stream itself, over the
//! socket of a connection, is [`crate::connection::TlsStream`].

mod handshakes;
mod material;

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;

use crate::connection::{RawSocket, TlsStream};

pub(crate) use handshakes::HandshakeGuard;
pub use handshakes::Handshakes;
pub use material::TlsFileError;

/// What the TLS connections of one listener have in common, as long as its files and settings stay as they are.
#[derive(Debug)]
pub struct Endpoint {
    config: Arc<ServerConfig>,
    handshakes: Arc<Handshakes>,
}

impl Endpoint {
    /// TLS over a socket that was just accepted.
    ///
    /// # Errors
    /// rustls cannot begin a connection.
    pub fn accept(self: &Arc<Self>, socket: RawSocket) -> io::Result<TlsStream> {
        let connection = UnbufferedServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        let handshake = HandshakeGuard::begin(&self.handshakes);
        Ok(TlsStream::new(socket, connection, Arc::clone(self), handshake))
    }

    /// Whom a client's certificate names.
    pub(crate) fn name_in(&self, _certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
        None
    }
}
