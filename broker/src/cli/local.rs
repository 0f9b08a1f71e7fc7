//! The short ways to say where nodes are: ports of this machine, and node N of M on it.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::config::{DEFAULT_PEER_PORT, FlagValue, check_host_port};

/// As many as anybody starts on one machine; their ports do not meet.
const NODES_MAX: u16 = 99;

const MQTT_PORT: u16 = 1883;

const HTTP_PORT: u16 = 8090;

const API_PORT: u16 = 18083;

/// `--local`: which node this is, of how many on this machine. Everything else follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Local {
    number: u16,
    nodes: u16,
}

impl FromStr for Local {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be N/M, node N of M, such as 1/3; M is at most {NODES_MAX}");
        let (number, nodes) = text.split_once('/').ok_or_else(wrong)?;
        let local = Self { number: number.parse().map_err(|_| wrong())?, nodes: nodes.parse().map_err(|_| wrong())? };
        if !(1..=NODES_MAX).contains(&local.nodes) || !(1..=local.nodes).contains(&local.number) {
            return Err(wrong());
        }
        Ok(local)
    }
}

impl Local {
    /// What it stands for, for flags that are stronger to be laid over.
    pub(super) fn flags(self) -> Vec<FlagValue> {
        let own = |first: u16| port_here(first + self.number - 1);
        let name = format!("kentongan-{}", self.number);
        let listener = toml::Table::from_iter([(String::from("address"), own(MQTT_PORT).into())]);
        let seeds: Vec<String> = (0..self.nodes).map(|other| port_here(DEFAULT_PEER_PORT + other)).collect();
        let flag = |key: &str, value: toml::Value| FlagValue::new("--local", key, value);
        vec![
            flag("data_dir", format!("./{name}").into()),
            flag("node", name.into()),
            flag("listener", vec![toml::Value::Table(listener)].into()),
            flag("http.address", own(HTTP_PORT).into()),
            flag("api.address", own(API_PORT).into()),
            flag("cluster.address", own(DEFAULT_PEER_PORT).into()),
            flag("cluster.seeds", seeds.into()),
        ]
    }
}

/// Reads `HOST:PORT`; a port alone is one of this machine.
pub(super) fn parse_peer(text: &str) -> Result<String, String> {
    let text = text.trim();
    let peer =
        if text.bytes().all(|byte| byte.is_ascii_digit()) { format!("127.0.0.1:{text}") } else { text.to_owned() };
    match check_host_port(&peer) {
        Ok(()) => Ok(peer),
        Err(_) => Err(String::from("must be HOST:PORT, or a port of this machine such as 7001")),
    }
}

/// Reads `ADDRESS:PORT`, to listen on; a port alone is one of this machine.
pub(super) fn parse_peer_listener(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().map_err(|_| {
        String::from("must be an IP address of this machine and a port, such as 192.0.2.1:7001, or a port such as 7001")
    })
}

/// Reads `ADDRESS:PORT`, for clients: a port alone would not say whether others than those of this machine are meant.
pub(super) fn parse_listener(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        String::from("must be an IP address of this machine and a port, such as 127.0.0.1:1883, or 0.0.0.0:1883 for all of its addresses")
    })
}

fn port_here(port: u16) -> String {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_several_on_one_machine_is_a_number() {
        assert_eq!("2/3".parse(), Ok(Local { number: 2, nodes: 3 }));
        for wrong in ["", "3", "0/3", "4/3", "1/0", "1/100", "a/3", "1/3/5", "-1/3"] {
            assert!(wrong.parse::<Local>().unwrap_err().contains("such as 1/3"), "{wrong}");
        }
    }

    #[test]
    fn a_port_alone_is_one_of_this_machine() {
        assert_eq!(parse_peer("7001").as_deref(), Ok("127.0.0.1:7001"));
        assert_eq!(parse_peer(" n2.example:7001").as_deref(), Ok("n2.example:7001"));
        assert_eq!(parse_peer("[::1]:7001").as_deref(), Ok("[::1]:7001"));
        for wrong in ["", "0", "70000", "host", ":1", "::1:7001", "host:", "host:0"] {
            assert!(parse_peer(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_peer_listener("7001"), Ok(SocketAddr::from(([127, 0, 0, 1], 7001))));
        assert_eq!(parse_peer_listener("[::1]:1"), Ok("[::1]:1".parse().unwrap()));
        assert!(parse_peer_listener("host:1").unwrap_err().contains("IP address"));
    }
}
