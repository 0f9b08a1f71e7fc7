//! An authority of this run alone, and what it certifies: ECDSA on P-256.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::PrivateKeyDer;

use crate::link::Identity;

/// The authority, and the files that a broker reads.
#[derive(Debug)]
pub struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    /// The authority's own certificate.
    pub authority: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificates {
    /// Writes into `directory` what a broker needs.
    pub fn make(directory: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Authority of kentongan-loadtest");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let path = |name| directory.join(name);
        fs::write(path("ca.crt"), params.self_signed(&key)?.pem()).context("writing a certificate")?;
        let issuer = Issuer::new(params, key);
        let mut params = CertificateParams::new(vec!["localhost".into()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        fs::write(path("server.crt"), params.signed_by(&key, &issuer)?.pem())?;
        fs::write(path("server.key"), key.serialize_pem())?;
        Ok(Self { issuer, authority: path("ca.crt"), certificate: path("server.crt"), key: path("server.key") })
    }

    /// A certificate for the client called `name`.
    pub fn client(&self, name: &str) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Identity { certificate, key })
    }
}
