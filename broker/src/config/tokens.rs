//! Tokens (JWT): by whose keys they are good, and what must stand in them.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::HttpUrl;
use super::schema::{SettingType, choices, settings};

const fn nonzero(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).expect("a default that must not be zero")
}

settings! {
    /// Tokens (JWT) that clients show instead of a password (docs/guide/security.md). Say where keys are in at least one way; the
    /// files are read again when they change, and on SIGHUP.
    pub struct JwtConfig {
        /// A secret for HS256, HS384 and HS512, 32 bytes or more; one line end at its end is no part of it.
        pub secret_file: Option<PathBuf> = None => reloaded,
        /// Public keys (PEM) for RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA.
        pub public_key_file: Option<PathBuf> = None => reloaded,
        /// Keys as a JSON Web Key Set.
        pub jwks_file: Option<PathBuf> = None => reloaded,
        /// Public keys as a JSON Web Key Set, by https; by http from this machine only. What was fetched last is used for as long as
        /// no other can be had.
        pub jwks_url: Option<HttpUrl> = None => reloaded,
        /// Authorities (PEM) that the server of `jwks_url` is trusted by. Unset: those of the system.
        pub jwks_ca_file: Option<PathBuf> = None => reloaded,
        /// Time between two fetches. A token that names a key which is not known lets it be fetched sooner, at most every ten seconds.
        pub jwks_refresh_seconds: NonZeroU32 = nonzero(300) => reloaded,
        /// Where CONNECT has the token: `"password"`, or `"user-name"`.
        pub token_in: TokenPlace = TokenPlace::Password => reloaded,
        /// A larger one is refused before anything is made of it.
        pub token_bytes_max: NonZeroU32 = nonzero(8192) => reloaded,
        /// Who must have issued it (`iss`). Unset: anyone who has the key.
        pub issuer: Option<String> = None => reloaded,
        /// For whom it must be (`aud`, a text or a list of them). Unset: for anyone.
        pub audience: Option<String> = None => reloaded,
        /// Claims that must have a value, such as `["client_id=%c", "tenant=acme"]`: `%c` is the Client Identifier, `%u` the user name.
        pub required_claims: Vec<RequiredClaim> = Vec::new() => reloaded,
        /// Whether it must have an end (`exp`).
        pub require_expiry: bool = true => reloaded,
        /// By how much clocks may differ, for `exp` and `nbf`.
        pub leeway_seconds: u32 = 30 => reloaded,
        /// The claim that says who the client is.
        pub identity_claim: String = String::from("sub") => reloaded,
        /// The claim that says what it may. A token without it leaves that to the files.
        pub acl_claim: String = String::from("acl") => reloaded,
    }
}

choices! {
    /// Where CONNECT has the token.
    pub enum TokenPlace {
        /// Password.
        Password = "password",
        /// User Name.
        UserName = "user-name",
    }
}

/// A claim and the value that it must have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequiredClaim {
    /// Its name.
    pub claim: String,
    /// `%c`, `%u`, or the value itself.
    pub value: String,
}

impl FromStr for RequiredClaim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((claim, value)) if !claim.is_empty() && !value.is_empty() => {
                Ok(Self { claim: claim.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("{text:?} is not of the form \"CLAIM=VALUE\"")),
        }
    }
}

impl TryFrom<String> for RequiredClaim {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for RequiredClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.claim, self.value)
    }
}

impl From<RequiredClaim> for String {
    fn from(claim: RequiredClaim) -> Self {
        claim.to_string()
    }
}

impl SettingType for RequiredClaim {
    const IS_TEXT: bool = true;

    fn type_name() -> String {
        String::from("claim and value")
    }
}

impl JwtConfig {
    /// What is wrong with it, by key.
    pub(super) fn contradictions(&self, mut refuse: impl FnMut(&str, String)) {
        let files = [&self.secret_file, &self.public_key_file, &self.jwks_file];
        if self.jwks_url.is_none() && files.iter().all(|file| file.is_none()) {
            let message = "or another key: say by what tokens are good, or leave out `[auth.jwt]`";
            refuse("public_key_file", String::from(message));
        }
        if let Some(url) = &self.jwks_url
            && !url.is_encrypted()
            && !is_here(url)
        {
            let message = "keys that come by http are those of whoever stands in between: use https";
            refuse("jwks_url", String::from(message));
        }
        if self.jwks_ca_file.is_some() && self.jwks_url.is_none() {
            refuse("jwks_ca_file", String::from("it is for `jwks_url`"));
        }
        for (key, text) in [("identity_claim", &self.identity_claim), ("acl_claim", &self.acl_claim)] {
            if text.is_empty() {
                refuse(key, String::from("the name of a claim"));
            }
        }
    }
}

/// Whether nobody can stand in between.
fn is_here(url: &HttpUrl) -> bool {
    let host = url.uri().host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let config: JwtConfig = toml::from_str(text).expect("a section");
        config.contradictions(|key, message| problems.push(format!("{key}: {message}")));
        problems
    }

    #[test]
    fn keys_come_from_somewhere_that_can_be_trusted() {
        assert!(problems("")[0].starts_with("public_key_file: or another key"));
        assert!(problems("jwks_url = \"http://keys.example/\"")[0].starts_with("jwks_url: keys that come by http"));
        for good in ["https://keys.example/", "http://127.0.0.1:1/", "http://localhost/x", "http://[::1]:1/"] {
            assert_eq!(problems(&format!("jwks_url = {good:?}")), [""; 0], "{good}");
        }
        assert!(problems("secret_file = \"s\"\njwks_ca_file = \"x\"")[0].starts_with("jwks_ca_file: "));
        assert!(problems("secret_file = \"s\"\nidentity_claim = \"\"")[0].starts_with("identity_claim: "));
    }

    #[test]
    fn a_required_claim_has_a_name_and_a_value() {
        let claim: RequiredClaim = "a=b=c".parse().expect("both");
        assert_eq!((&*claim.claim, &*claim.value, &*claim.to_string()), ("a", "b=c", "a=b=c"));
        for wrong in ["", "a", "=b", "a="] {
            assert!(wrong.parse::<RequiredClaim>().is_err(), "{wrong}");
        }
    }
}
