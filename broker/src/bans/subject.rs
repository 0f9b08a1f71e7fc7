//! Whom a ban is about, as operators write it and as the directory keeps it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Bits of an IPv6 address before an IPv4 one that it stands for.
const MAPPED_BITS: u8 = 96;

/// Who is kept out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// Whoever has this Client Identifier.
    ClientId(String),
    /// Whoever says to be, or is, this user: a user name, or the identity that a certificate or another proof gave.
    User(String),
    /// Whoever comes from there.
    Network(Network),
}

/// Addresses with a common beginning; one alone if that is all of it.
///
/// IPv4 addresses are kept as the IPv6 ones that stand for them, so that they are the same by whichever socket they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    bits: u8,
    beginning: u128,
}

/// What a text must be that says whom a ban is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// Of no kind that this version knows.
    #[error("a ban is about client-id:ID, user:NAME or address:ADDRESS, perhaps with /BITS")]
    Kind,
    /// No address.
    #[error("must be an IP address such as 192.0.2.7, or a network such as 192.0.2.0/24 or 2001:db8::/32")]
    Address,
}

impl Network {
    /// The network of `bits` bits that `address` lies in.
    #[must_use]
    pub(super) fn around(address: IpAddr, bits: u8) -> Self {
        Self { bits, beginning: to_bits(address) & mask(bits) }
    }

    /// How many bits its addresses have in common, of 128.
    #[must_use]
    pub(super) fn bits(self) -> u8 {
        self.bits
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mask(bits: u8) -> u128 {
    if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits.min(128))) }
}

impl FromStr for Network {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| SubjectError::Address)?)),
        };
        let address: IpAddr = address.parse().map_err(|_| SubjectError::Address)?;
        let (before, most) = if address.is_ipv4() { (MAPPED_BITS, 32) } else { (0, 128) };
        let bits = bits.unwrap_or(most);
        if bits > most {
            return Err(SubjectError::Address);
        }
        Ok(Self::around(address, before + bits))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from_bits(self.beginning);
        let (address, bits, most) = match address.to_ipv4_mapped() {
            Some(v4) if self.bits >= MAPPED_BITS => (IpAddr::V4(v4), self.bits - MAPPED_BITS, 32),
            _ => (IpAddr::V6(address), self.bits, 128),
        };
        if bits == most { write!(f, "{address}") } else { write!(f, "{address}/{bits}") }
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        match text.split_once(':').ok_or(SubjectError::Kind)? {
            ("client-id", id) => Ok(Self::ClientId(id.to_owned())),
            ("user", name) => Ok(Self::User(name.to_owned())),
            ("address", network) => network.parse().map(Self::Network),
            _ => Err(SubjectError::Kind),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientId(id) => write!(f, "client-id:{id}"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Network(network) => write!(f, "address:{network}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_read_as_it_is_written() {
        for text in [
            "client-id:a:b",
            "user:jürgen",
            "address:192.0.2.7",
            "address:10.0.0.0/8",
            "address:0.0.0.0/0",
            "address:2001:db8::1",
            "address:2001:db8::/32",
            "address:::/0",
        ] {
            assert_eq!(text.parse::<Subject>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn bits_beyond_the_network_do_not_count_and_a_mapped_address_is_the_ipv4_one() {
        let same = |one: &str, other: &str| assert_eq!(one.parse::<Network>(), other.parse::<Network>(), "{one}");
        same("10.1.2.3/8", "10.0.0.0/8");
        same("2001:db8:ffff::1/32", "2001:db8::/32");
        same("::ffff:10.0.0.0/104", "10.0.0.0/8");
        assert_ne!("10.0.0.0/8".parse::<Network>(), "10.0.0.0/9".parse::<Network>());
    }

    #[test]
    fn what_is_no_subject_is_refused() {
        for text in ["", "a", "name:a", "address:", "address:10.0.0/8", "address:10.0.0.0/33", "address:::/129"] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }
}
