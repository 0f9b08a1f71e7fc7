//! Where something can be asked by HTTP.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::Scheme;
use serde::{Deserialize, Serialize};

use super::schema::SettingType;

/// A URL of `http` or `https`, with a host and without a user name in it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpUrl(Uri);

impl HttpUrl {
    /// For a request.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.0
    }

    /// Whether what is said to it is for nobody else.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTPS)
    }

    /// Whether others may hear what is said to it: it is not encrypted, and does not stay on this machine.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        let host = self.0.host().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_local = host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback());
        !self.is_encrypted() && !is_local
    }

    /// Reads it as `from_str` does.
    ///
    /// # Errors
    /// It is none; the message shows `example`.
    pub fn parse_like(text: &str, example: &str) -> Result<Self, String> {
        let form = format!("such as {example}");
        let uri: Uri = text.parse().map_err(|error| format!("no URL: {error}; {form}"))?;
        if ![Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme()) {
            return Err(format!("no URL of http or https; {form}"));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(format!("a URL without a host; {form}"));
        }
        let port = uri.authority().and_then(|authority| authority.as_str().strip_prefix(uri.host()?));
        if port.is_some_and(|port| !port.is_empty()) && uri.port_u16().is_none() {
            return Err(format!("a URL with a port that is none; {form}"));
        }
        // It would be shown wherever the URL is.
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(String::from("a URL with a user name or password in it; give them in a header"));
        }
        Ok(Self(uri))
    }

    /// Host, and port if one is named: enough to know whom it is about.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.0.authority().map_or("", |authority| authority.as_str())
    }
}

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse_like(text, "https://auth.example/mqtt")
    }
}

impl TryFrom<String> for HttpUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<HttpUrl> for String {
    fn from(url: HttpUrl) -> Self {
        url.to_string()
    }
}

impl SettingType for HttpUrl {
    const IS_TEXT: bool = true;

    fn type_name() -> String {
        String::from("URL of http or https")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_url_and_what_is_none() {
        let url: HttpUrl = "https://auth.example:8443/mqtt?x=1".parse().unwrap();
        assert_eq!(url.authority(), "auth.example:8443");
        assert_eq!(url.to_string(), "https://auth.example:8443/mqtt?x=1");
        let is_exposed = |text: &str| text.parse::<HttpUrl>().unwrap().is_exposed();
        assert!(is_exposed("http://auth.example/") && is_exposed("http://192.0.2.1:1/"));
        for text in ["https://auth.example/", "http://[::1]:1/", "http://127.0.0.2/", "http://localhost:80/"] {
            assert!(!is_exposed(text), "{text}");
        }
        for (wrong, expected) in [
            ("", "no URL"),
            ("auth.example", "no URL of http or https"),
            ("/mqtt", "no URL of http or https"),
            ("ftp://auth.example/", "no URL of http or https"),
            ("http://", "no URL"),
            ("http:///x", "no URL"),
            ("http://auth.example:b/", "a URL with a port that is none"),
            ("http://auth.example:65536/", "a URL with a port that is none"),
            ("https://me:secret@auth.example/", "a URL with a user name"),
        ] {
            let error = wrong.parse::<HttpUrl>().expect_err(wrong);
            assert!(error.starts_with(expected) && !error.contains("secret"), "{wrong}: {error}");
        }
    }
}
