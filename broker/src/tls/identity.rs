//! Whom a client's certificate names.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::config::CertificateIdentity;

/// Bytes of a name at most; what an identity is used for grows with it.
const NAME_BYTES_MAX: usize = 1024;

/// The name in `certificate` that `identity` asks for; the first, where there are several. The certificate was verified
/// before. `None`: it has no such name, or one that is empty, too long, or has control characters in it.
pub(super) fn name_in(certificate: &CertificateDer<'_>, identity: CertificateIdentity) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = match identity {
        CertificateIdentity::None => return None,
        CertificateIdentity::CommonName => certificate.subject().iter_common_name().next()?.as_str().ok()?,
        CertificateIdentity::DnsName => alternative_name(&certificate, |name| match name {
            GeneralName::DNSName(name) => Some(name),
            _ => None,
        })?,
        CertificateIdentity::Uri => alternative_name(&certificate, |name| match name {
            GeneralName::URI(name) => Some(name),
            _ => None,
        })?,
        CertificateIdentity::Email => alternative_name(&certificate, |name| match name {
            GeneralName::RFC822Name(name) => Some(name),
            _ => None,
        })?,
    };
    is_usable(name).then(|| Arc::from(name))
}

/// The second (Unix time) after which a certificate is not valid any more.
pub(super) fn expires_seconds(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Whether a name in a certificate can be used further: for messages of the log, topics, whatever it is compared with.
pub(crate) fn is_usable(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

/// The DNS names that a server's certificate is for; of one that has none, its common name.
pub(super) fn server_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let names: Vec<String> = names.collect();
    if !names.is_empty() {
        return names;
    }
    let common = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    common.map(str::to_ascii_lowercase).into_iter().collect()
}

fn alternative_name<'a>(
    certificate: &'a X509Certificate<'_>,
    wanted: impl Fn(&'a GeneralName<'_>) -> Option<&'a str>,
) -> Option<&'a str> {
    let names = certificate.subject_alternative_name().ok()??.value;
    names.general_names.iter().find_map(wanted)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common_name: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["*.Devices.example".to_owned(), "second.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names.push(SanType::URI("urn:dev:7".try_into().unwrap()));
        params.subject_alt_names.push(SanType::Rfc822Name("seven@example.com".try_into().unwrap()));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_name_is_the_one_that_the_listener_asks_for() {
        let certificate = certificate("device-7");
        for (identity, expected) in [
            (CertificateIdentity::None, None),
            (CertificateIdentity::CommonName, Some("device-7")),
            (CertificateIdentity::DnsName, Some("*.Devices.example")),
            (CertificateIdentity::Uri, Some("urn:dev:7")),
            (CertificateIdentity::Email, Some("seven@example.com")),
        ] {
            assert_eq!(name_in(&certificate, identity).as_deref(), expected, "{identity}");
        }
    }

    #[test]
    fn a_name_that_could_not_be_trusted_further_is_none() {
        let common = |name: &str| name_in(&certificate(name), CertificateIdentity::CommonName);
        assert_eq!(common("a\nb"), None);
        assert_eq!(common(""), None);
        assert_eq!(common("nul\0"), None);
        assert_eq!(common(&"x".repeat(NAME_BYTES_MAX + 1)), None);
        assert_eq!(name_in(&CertificateDer::from(vec![0x30, 0x82]), CertificateIdentity::CommonName), None);
    }

    #[test]
    fn a_server_certificate_is_for_its_dns_names() {
        assert_eq!(server_names(&certificate("common")), ["*.devices.example", "second.example"]);
    }
}
