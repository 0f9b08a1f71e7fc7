//! Which of a client's certificates are looked up in the lists of those that were revoked.
//!
//! The client's own must be on the books of a list, or it is refused. What lies between it and the authority is refused if a
//! list has it, and taken if there is no list of whoever issued it: an operator who keeps a list of the authority that issues to
//! devices need not keep one of every authority above. rustls has either rule, and for the whole chain at once.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// See the module.
#[derive(Debug)]
pub(super) struct WholeChain {
    /// Looks the client's own certificate up.
    pub(super) own: Arc<dyn ClientCertVerifier>,
    /// Looks all of them up, and takes those that no list is about.
    pub(super) all: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for WholeChain {
    fn offer_client_auth(&self) -> bool {
        self.own.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.own.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.own.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.own.verify_client_cert(end_entity, intermediates, now)?;
        // Straight from an authority: nothing is left to be looked up, which most clients need not pay for.
        if intermediates.is_empty() {
            return Ok(verified);
        }
        self.all.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.own.requires_raw_public_keys()
    }
}
