//! Who is at the other end of a connection, as far as what lies below MQTT tells.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where a connection comes from, and who proved to be there before the first MQTT packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The client's address: that of the socket, or what a balancer that is believed said. `None` where there is none.
    pub address: Option<SocketAddr>,
    /// Whom a client certificate, or a balancer that checked one, names.
    pub certified: Option<Arc<str>>,
}

impl From<Option<SocketAddr>> for Origin {
    fn from(address: Option<SocketAddr>) -> Self {
        Self { address, certified: None }
    }
}

/// For the log: the address, and `-` if there is none.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => address.fmt(f),
            None => f.write_str("-"),
        }
    }
}
