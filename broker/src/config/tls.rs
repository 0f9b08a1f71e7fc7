//! What no single key of `[listener.tls]` can know to be wrong.

use super::settings::{ClientCertificate, ExpiredList, TlsConfig, TlsVersion};

impl TlsConfig {
    /// Says what is wrong of each key to `refuse`.
    pub(super) fn contradictions(&self, mut refuse: impl FnMut(&str, String)) {
        if self.certificate_file.is_none() {
            refuse("certificate_file", String::from("give the file of the server's certificate (PEM)"));
        }
        if self.key_file.is_none() {
            refuse("key_file", String::from("give the file of the certificate's private key (PEM)"));
        }
        if self.sni.iter().any(|one| one.certificate_file.is_none() || one.key_file.is_none()) {
            refuse("sni", String::from("give both `certificate_file` and `key_file` for each"));
        }
        let asks = self.client_certificate != ClientCertificate::None;
        if asks && self.client_ca_file.is_none() {
            let message = "clients are asked for certificates: say whose are good (PEM of the authorities)";
            refuse("client_ca_file", String::from(message));
        }
        for (key, file) in [("client_ca_file", &self.client_ca_file), ("crl_file", &self.crl_file)] {
            if !asks && file.is_some() {
                refuse(key, String::from("nobody is asked for a certificate: set `client_certificate` too"));
            }
        }
        if self.crl_expired == ExpiredList::Refuse && self.crl_file.is_none() {
            refuse("crl_expired", String::from("there is no list: name one by `crl_file`"));
        }
        let is_of_1_3 = |name: &str| !name.contains("_WITH_");
        let suites = &self.cipher_suites;
        if self.minimum_version == TlsVersion::V1_3
            && !suites.is_empty()
            && !suites.iter().any(|suite| is_of_1_3(&suite.to_string()))
        {
            refuse("cipher_suites", String::from("none of them is one of TLS 1.3, the only version that is spoken"));
        }
    }
}
