//! Whether other nodes reach this one where it says that it is.
//!
//! A node that advertises a wrong address reaches all others and is reached by none: it waits for a lease that nobody can grant it, and
//! only the others' logs would say why.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kentongan_cluster::NodeId;
use kentongan_cluster::transport::PeerStatus;

/// Time that others have to dial this node once it has a link to them: several times the longest pause between two dials.
const DIALLED_WITHIN: Duration = Duration::from_secs(10);

/// Pause between two log lines about it.
const REPEATED: Duration = Duration::from_secs(60);

/// What was seen of the links.
#[derive(Debug, Default)]
pub(super) struct Unreached {
    /// Since when there has been a link to these, and none from them.
    since: BTreeMap<NodeId, Instant>,
    said: Option<Instant>,
}

impl Unreached {
    /// Whom to name in the log: those that this node has reached for long, and that have not reached it. Empty if there is nobody, or it
    /// was said not long ago.
    pub(super) fn look(&mut self, now: Instant, peers: &[PeerStatus]) -> Vec<String> {
        let silent = |peer: &&PeerStatus| !peer.outgoing.is_empty() && peer.incoming.is_empty();
        let silent: Vec<&PeerStatus> = peers.iter().filter(silent).collect();
        self.since.retain(|node, _| silent.iter().any(|peer| peer.peer.node == *node));
        let mut names = Vec::new();
        for peer in silent {
            let since = *self.since.entry(peer.peer.node).or_insert(now);
            if now.saturating_duration_since(since) >= DIALLED_WITHIN {
                names.push(peer.peer.name.clone());
            }
        }
        if names.is_empty() || self.said.is_some_and(|said| now.saturating_duration_since(said) < REPEATED) {
            return Vec::new();
        }
        self.said = Some(now);
        names
    }
}

#[cfg(test)]
mod tests {
    use kentongan_cluster::transport::{Class, PeerAddress};

    use super::*;

    fn peer(node: u64, outgoing: bool, incoming: bool) -> PeerStatus {
        let up = |is_up| if is_up { Class::ALL.to_vec() } else { Vec::new() };
        let peer = PeerAddress { node: NodeId(node), name: format!("n{node}"), address: String::new() };
        PeerStatus { peer, outgoing: up(outgoing), incoming: up(incoming), last_error: None }
    }

    #[test]
    fn who_is_reached_for_long_and_does_not_dial_back_is_named() {
        let (mut unreached, begun) = (Unreached::default(), Instant::now());
        let peers = [peer(1, true, true), peer(2, true, false), peer(3, false, false)];
        assert!(unreached.look(begun, &peers).is_empty(), "it may dial yet");
        assert_eq!(unreached.look(begun + DIALLED_WITHIN, &peers), ["n2"]);
        assert!(unreached.look(begun + DIALLED_WITHIN * 2, &peers).is_empty(), "that was said");
        assert_eq!(unreached.look(begun + DIALLED_WITHIN + REPEATED, &peers), ["n2"]);

        // Its time begins anew with each link.
        let later = begun + REPEATED * 3;
        assert!(unreached.look(later, &[peer(2, true, true)]).is_empty());
        assert!(unreached.look(later + DIALLED_WITHIN, &peers).is_empty());
        assert_eq!(unreached.look(later + DIALLED_WITHIN * 2, &peers), ["n2"]);
    }
}
