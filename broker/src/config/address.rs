//! Where a listener is.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::schema::SettingType;

/// What a Unix socket's path stands behind.
const UNIX_PREFIX: &str = "unix:";

/// Where a listener is: an address of IP and a port, or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// Over IP.
    Ip(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl ListenAddress {
    /// The address, if it is one of IP.
    #[must_use]
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether who listens here has `other` as well, so that nobody else can listen there. A port that the system chooses is nobody's yet.
    #[must_use]
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ip(own), Self::Ip(other)) => {
                let is_covered = match own.ip().to_canonical() {
                    IpAddr::V4(ip) if ip.is_unspecified() => other.ip().to_canonical().is_ipv4(),
                    // IPv4 as well: sockets of all addresses serve both.
                    IpAddr::V6(ip) if ip.is_unspecified() => true,
                    ip => own == other || (ip.is_ipv4() && ip == other.ip().to_canonical()),
                };
                is_covered && own.port() == other.port() && own.port() != 0
            }
            (own, other) => own == other,
        }
    }

    /// Whether only programs on this machine can connect.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.ip().is_none_or(|address| address.ip().is_loopback())
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(UNIX_PREFIX) {
            Some("") => Err(String::from("no path behind `unix:`; such as `unix:/run/kentongan.sock`")),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text.parse().map(Self::Ip).map_err(|_| what_to_write(text)),
        }
    }
}

/// What is meant by something that is no address to listen at.
fn what_to_write(text: &str) -> String {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(address) => {
            format!("{text:?} has no port: write it behind the address, such as \"{}\"", SocketAddr::new(address, 1883))
        }
        Err(_) => format!(
            "{text:?} must be an IP address of this machine and a port, such as \"127.0.0.1:1883\", or \"0.0.0.0:1883\" for all of its \
             addresses; or `unix:` and a path"
        ),
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl SettingType for ListenAddress {
    const IS_TEXT: bool = true;

    fn type_name() -> String {
        String::from("IP address and port, or `unix:` and a path")
    }
}

/// Permissions of a file, written in octal as chmod takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl fmt::Display for FileMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04o}", self.0)
    }
}

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or_else(|| String::from("permissions in octal, such as \"0660\""))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl SettingType for FileMode {
    const IS_TEXT: bool = true;

    fn type_name() -> String {
        String::from("permissions in octal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in ["127.0.0.1:1883", "[::1]:0", "unix:/run/k.sock", "unix:relative"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        assert!("unix:".parse::<ListenAddress>().is_err() && "/run/k.sock".parse::<ListenAddress>().is_err());
        for (text, expected) in [
            ("127.0.0.1", "such as \"127.0.0.1:1883\""),
            ("::1", "such as \"[::1]:1883\""),
            ("[::]", "such as \"[::]:1883\""),
            ("gateway:1883", "such as \"127.0.0.1:1883\", or \"0.0.0.0:1883\" for all"),
            ("/run/k.sock", "or `unix:` and a path"),
        ] {
            let error = text.parse::<ListenAddress>().unwrap_err();
            assert!(error.starts_with(&format!("{text:?} ")) && error.contains(expected), "{error}");
        }
        assert!("unix:/x".parse::<ListenAddress>().unwrap().is_local());
        assert!(!"0.0.0.0:1".parse::<ListenAddress>().unwrap().is_local());
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!("0660".parse(), Ok(FileMode(0o660)));
        assert_eq!(FileMode(0o600).to_string(), "0600");
        assert!("rw".parse::<FileMode>().is_err() && "7777".parse::<FileMode>().is_err());
    }
}
