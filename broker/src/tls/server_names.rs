//! Which certificate a client is shown, by the name of the server that it asks for (SNI, RFC 6066).

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::identity::server_names;

/// The certificates of a listener.
#[derive(Debug)]
pub(super) struct ByName {
    /// For whoever asks for no name, or for one that no other is for.
    main: Arc<CertifiedKey>,
    others: BTreeMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    /// Where several certificates are for one name, the first has it; `main` counts as the first of all.
    pub(super) fn new(main: CertifiedKey, others: Vec<CertifiedKey>) -> Self {
        let main = Arc::new(main);
        let all = std::iter::once(Arc::clone(&main)).chain(others.into_iter().map(Arc::new));
        let mut by_name = BTreeMap::new();
        for key in all {
            for name in key.cert.first().map(server_names).unwrap_or_default() {
                by_name.entry(name).or_insert_with(|| Arc::clone(&key));
            }
        }
        Self { main, others: by_name }
    }

    fn find(&self, name: &str) -> Arc<CertifiedKey> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        // An asterisk stands for one label, the leftmost (RFC 6125, 6.4.3).
        let wildcard = || self.others.get(&format!("*.{}", name.split_once('.')?.1));
        Arc::clone(self.others.get(&name).or_else(wildcard).unwrap_or(&self.main))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(hello.server_name().map_or_else(|| Arc::clone(&self.main), |name| self.find(name)))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::ring::sign::any_supported_type;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn certified(names: &[&str]) -> CertifiedKey {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        CertifiedKey::new(vec![certificate.der().clone()], any_supported_type(&key).unwrap())
    }

    #[test]
    fn the_certificate_for_a_name_is_shown_and_the_main_one_otherwise() {
        let keys = ByName::new(
            certified(&["mqtt.example", "shared.example"]),
            vec![certified(&["*.fleet.example", "shared.example"]), certified(&["one.fleet.example"])],
        );
        let names = |asked: &str| server_names(&keys.find(asked).cert[0]);
        let main = ["mqtt.example", "shared.example"];
        assert_eq!(names("mqtt.example"), main);
        assert_eq!(names("shared.example"), main, "the first that is for it");
        assert_eq!(names("Two.Fleet.example."), ["*.fleet.example", "shared.example"]);
        assert_eq!(names("one.fleet.example"), ["one.fleet.example"], "its own before an asterisk");
        assert_eq!(names("a.b.fleet.example"), main, "an asterisk is one label");
        assert_eq!(names("fleet.example"), main);
        assert_eq!(names("unknown"), main);
    }
}
