//! Who the nodes are, and what one must say before another believes it.

use std::fmt;

use kentongan_proto::peer::{PROTOCOL_MAX, PROTOCOL_MIN, wire};

use super::refusal::Refusal;
use super::tls::PeerCertificate;
use crate::feature_level::FeatureLevels;
pub use crate::identity::{Incarnation, NodeId};

/// Longest name of a node, in bytes: that of a DNS name.
const NAME_BYTES_MAX: usize = 253;

/// Longest address of a node, in bytes: such a name, a colon and a port.
const ADDRESS_BYTES_MAX: usize = NAME_BYTES_MAX + 6;

/// Names a cluster: made once, when it forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u128);

impl ClusterId {
    /// From its sixteen bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(u128::from_be_bytes(bytes.try_into().ok()?)))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalIdentity {
    /// The cluster that it belongs to, once there is one.
    pub cluster: Option<ClusterId>,
    /// Its identity.
    pub node: NodeId,
    /// Its label. With TLS, a DNS name for which its certificate is valid.
    pub name: String,
    /// Its last registration.
    pub incarnation: Option<Incarnation>,
    /// What its program knows.
    pub feature_levels: FeatureLevels,
}

impl LocalIdentity {
    pub(super) fn hello(&self, nonce: u64) -> wire::Hello {
        wire::Hello {
            cluster_id: self.cluster.map(|cluster| cluster.0.to_be_bytes().to_vec().into()).unwrap_or_default(),
            node_id: self.node.0,
            name: self.name.clone(),
            incarnation: self.incarnation.map_or(0, |incarnation| incarnation.0),
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            feature_level: self.feature_levels.max,
            nonce,
            feature_level_min: self.feature_levels.min,
            address: String::new(),
            start: 0,
        }
    }
}

/// Who a peer said it is. With TLS its certificate was found to be for that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// The cluster that it belongs to, if any.
    pub cluster: Option<ClusterId>,
    /// Its identity.
    pub node: NodeId,
    /// Its label.
    pub name: String,
    /// Its last registration when it connected, if there was one.
    pub incarnation: Option<Incarnation>,
    /// The newest protocol version that both speak.
    pub protocol: u32,
    /// What its program knows.
    pub feature_levels: FeatureLevels,
    /// Random for each start of its process. Our own if we dialled ourselves.
    pub nonce: u64,
    /// Where it says that others find it; empty if it does not say.
    pub address: String,
    /// The number of this start of its data directory; 0 if it does not say.
    pub start: u64,
}

impl PeerHello {
    /// Reads what a peer says of itself, and holds it against its certificate.
    pub(super) fn verify(
        hello: Option<wire::Hello>,
        certificate: Option<&PeerCertificate>,
    ) -> Result<PeerHello, Refusal> {
        let hello = hello.ok_or(Refusal::Malformed("no hello where one must be"))?;
        let protocol = hello.protocol_max.min(PROTOCOL_MAX);
        if protocol < hello.protocol_min.max(PROTOCOL_MIN) {
            return Err(Refusal::Version { min: hello.protocol_min, max: hello.protocol_max });
        }
        if hello.node_id == 0 {
            return Err(Refusal::Malformed("a node id of zero"));
        }
        if hello.name.is_empty() || hello.name.len() > NAME_BYTES_MAX {
            return Err(Refusal::Malformed("a name that is empty or too long"));
        }
        if hello.address.len() > ADDRESS_BYTES_MAX {
            return Err(Refusal::Malformed("an address that is too long"));
        }
        if certificate.is_some_and(|certificate| !certificate.is_for(&hello.name)) {
            return Err(Refusal::WrongCertificate { name: hello.name });
        }
        Ok(PeerHello {
            cluster: parse_cluster(&hello.cluster_id)?,
            node: NodeId(hello.node_id),
            name: hello.name,
            incarnation: (hello.incarnation != 0).then_some(Incarnation(hello.incarnation)),
            protocol,
            feature_levels: FeatureLevels { min: hello.feature_level_min, max: hello.feature_level },
            nonce: hello.nonce,
            address: hello.address,
            start: hello.start,
        })
    }

    /// Links and snapshots are for members of the same cluster only.
    pub(super) fn verify_cluster(&self, ours: Option<ClusterId>) -> Result<(), Refusal> {
        if ours.is_none() || self.cluster != ours {
            return Err(Refusal::WrongCluster { theirs: self.cluster, ours });
        }
        Ok(())
    }

    /// Whoever answers at a member's address must be that member.
    pub(super) fn verify_node(&self, node: NodeId, name: &str) -> Result<(), Refusal> {
        if self.node != node || self.name != name {
            return Err(Refusal::WrongNode {
                expected: node,
                expected_name: name.to_owned(),
                found: self.node,
                found_name: self.name.clone(),
            });
        }
        Ok(())
    }
}

fn parse_cluster(bytes: &[u8]) -> Result<Option<ClusterId>, Refusal> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes = bytes.try_into().map_err(|_| Refusal::Malformed("a cluster id that has not 16 bytes"))?;
    Ok(Some(ClusterId(u128::from_be_bytes(bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> wire::Hello {
        let identity = LocalIdentity {
            cluster: Some(ClusterId(7)),
            node: NodeId(1),
            name: "n1".into(),
            incarnation: None,
            feature_levels: FeatureLevels { min: 2, max: 3 },
        };
        identity.hello(9)
    }

    #[test]
    fn what_a_node_says_of_itself_is_read_back() {
        let read = PeerHello::verify(Some(hello()), None).unwrap();
        assert_eq!(read.cluster, Some(ClusterId(7)));
        assert_eq!((read.node, read.name.as_str(), read.nonce), (NodeId(1), "n1", 9));
        assert_eq!((read.incarnation, read.protocol), (None, PROTOCOL_MAX));
        assert_eq!(read.feature_levels, FeatureLevels { min: 2, max: 3 });
    }

    #[test]
    fn a_newer_peer_that_still_speaks_our_version_is_welcome() {
        let newer = wire::Hello { protocol_max: PROTOCOL_MAX + 5, ..hello() };
        assert_eq!(PeerHello::verify(Some(newer), None).unwrap().protocol, PROTOCOL_MAX);
    }

    #[test]
    fn a_peer_that_no_longer_speaks_our_version_is_refused() {
        let (min, max) = (PROTOCOL_MAX + 1, PROTOCOL_MAX + 5);
        let newer = wire::Hello { protocol_min: min, protocol_max: max, ..hello() };
        assert_eq!(PeerHello::verify(Some(newer), None), Err(Refusal::Version { min, max }));
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in [
            wire::Hello { node_id: 0, ..hello() },
            wire::Hello { name: String::new(), ..hello() },
            wire::Hello { name: "n".repeat(NAME_BYTES_MAX + 1), ..hello() },
            wire::Hello { cluster_id: vec![1; 15].into(), ..hello() },
            wire::Hello { address: "a".repeat(ADDRESS_BYTES_MAX + 1), ..hello() },
        ] {
            assert!(matches!(PeerHello::verify(Some(nonsense), None), Err(Refusal::Malformed(_))));
        }
        assert!(matches!(PeerHello::verify(None, None), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn nodes_without_a_cluster_are_not_of_the_same_one() {
        let read = PeerHello::verify(Some(wire::Hello { cluster_id: Default::default(), ..hello() }), None).unwrap();
        assert!(read.verify_cluster(None).is_err());
    }
}
