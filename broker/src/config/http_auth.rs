//! What no single key of `[auth.http]` can know to be wrong.

use hyper::header::HeaderName;

use super::settings::HttpAuthConfig;
use crate::http_client;

impl HttpAuthConfig {
    /// Says what is wrong of each key to `refuse`. Secrets are not read from their files yet.
    pub(super) fn contradictions(&self, refuse: &mut impl FnMut(&str, String)) {
        if self.header_value.is_some() && self.header_value_file.is_some() {
            refuse("header_value_file", String::from("give either `header_value` or `header_value_file`"));
        }
        match HeaderName::try_from(self.header.as_str()) {
            Err(_) => refuse("header", format!("{:?} is no name of a header", self.header)),
            Ok(name) => {
                let is_wrong = |value| http_client::secret_header(name, value).is_err();
                if self.header_value.as_ref().is_some_and(is_wrong) {
                    refuse("header_value", String::from("it has a character that cannot stand in a header"));
                }
            }
        }
        // The last half of that is for a server that does not answer at once, and for the spread of the questions.
        let (seconds, outdated) = (self.rights_seconds.get(), self.rights_outdated_seconds_max);
        if outdated != 0 && outdated < seconds.saturating_mul(2) {
            let text = format!(
                "at least twice `rights_seconds` ({seconds}), or 0: a client would be gone before it is asked about"
            );
            refuse("rights_outdated_seconds_max", text);
        }
        if self.rights_for_all && self.rights_url.is_none() {
            refuse("rights_for_all", String::from("say where rights are asked for: `rights_url`"));
        }
    }
}
