//! Lists of addresses and networks, as settings have them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// An address (`10.0.0.1`) or a network (`10.0.0.0/8`, `2001:db8::/32`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

impl Network {
    /// Whether `address` is in it. IPv4 addresses may come as IPv6 ones.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = || text.parse::<IpAddr>().map(IpNet::from);
        let network = text.parse::<IpNet>().or_else(|_| address());
        let network = network.map(|network| Self(canonical(network)));
        network.map_err(|_| format!("{text:?} is neither an address nor a network such as 10.0.0.0/8"))
    }
}

/// The IPv4 network that an IPv6 one stands for, if it stands for one: addresses are compared in that form.
fn canonical(network: IpNet) -> IpNet {
    let before = Ipv6Addr::BITS as u8 - Ipv4Addr::BITS as u8;
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(before)) {
        (IpAddr::V4(address), Some(bits)) if network.addr().is_ipv6() => {
            Ipv4Net::new(address, bits).map_or(network, IpNet::from)
        }
        _ => network,
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

/// Whether any of `networks` contains `address`.
#[must_use]
pub fn any_contains(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_told_by_what_they_contain() {
        let list: Vec<Network> = ["10.0.0.0/8", "192.0.2.7", "::ffff:192.0.2.9", "2001:db8::/32", "::1"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let contains = |text: &str| any_contains(&list, text.parse().unwrap());
        assert!(
            ["10.255.0.1", "::ffff:10.0.0.1", "192.0.2.7", "192.0.2.9", "2001:db8:1::", "::1"]
                .into_iter()
                .all(contains)
        );
        assert!(!["11.0.0.1", "192.0.2.8", "2001:db9::", "127.0.0.1", "::ffff:11.0.0.1"].into_iter().any(contains));
    }

    #[test]
    fn an_ipv6_network_that_stands_for_an_ipv4_one_is_that_one() {
        for (mapped, own) in [
            ("::ffff:192.0.2.9", "192.0.2.9"),
            ("::ffff:192.0.2.9/128", "192.0.2.9"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(mapped.parse::<Network>(), own.parse::<Network>(), "{mapped}");
        }
        assert!(!"::ffff:0:0/95".parse::<Network>().unwrap().contains("192.0.2.9".parse().unwrap()));
    }

    #[test]
    fn what_is_written_is_what_was_read() {
        for text in ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for text in ["", "10.0.0.0/33", "10.0.0", "example.org", "10.0.0.0/", "/8"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
