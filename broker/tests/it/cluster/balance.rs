//! Nodes that have more clients than others give some away.

use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;

use super::nodes::Cluster;
use crate::support::*;

/// A surplus must have been there for ten seconds; and then some.
const LEVELLED_WITHIN: Duration = Duration::from_secs(40);

/// Time in which nobody is to move any more.
const CALM: Duration = Duration::from_secs(12);

/// A client that goes where it is told to.
struct Follower {
    name: String,
    client: Client,
    node: usize,
}

impl Follower {
    fn at(cluster: &Cluster, node: usize, name: String) -> Self {
        Self { client: cluster.nodes[node].client(&name), name, node }
    }

    /// Whether it was moved.
    fn follow(&mut self, cluster: &Cluster) -> bool {
        let Some(Packet::Disconnect(disconnect)) = self.client.receive_within(Duration::from_millis(2)) else {
            return false;
        };
        assert_eq!(disconnect.reason_code, ReasonCode::UseAnotherServer);
        let to = disconnect.properties.server_reference.expect("it is told where to go");
        self.node = cluster.nodes.iter().position(|node| node.address.to_string() == to).expect("one of ours");
        self.client = cluster.nodes[self.node].client(&self.name);
        true
    }
}

fn counts(followers: &[Follower]) -> Vec<usize> {
    (0..3).map(|node| followers.iter().filter(|follower| follower.node == node).count()).collect()
}

#[test]
fn clients_are_levelled_when_a_node_returned_and_stay_then() {
    let mut cluster = Cluster::advertised(3, &[("KENTONGAN_MOVING__CLIENTS_PER_SECOND", "50")]);
    cluster.nodes[2].terminate();
    // The first of those that could be chosen.
    let old: Vec<Client> = (0..10)
        .map(|number| {
            let asked = connect(ProtocolVersion::V3_1_1, &format!("old-{number}"));
            cluster.nodes[0].accepted(&asked).0
        })
        .collect();
    let follower = |number: usize| Follower::at(&cluster, number % 2, format!("follower-{number}"));
    let mut followers: Vec<Follower> = (0..90).map(follower).collect();
    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();

    let deadline = Instant::now() + LEVELLED_WITHIN;
    while counts(&followers)[2] < 20 {
        for follower in &mut followers {
            follower.follow(&cluster);
        }
        assert!(Instant::now() < deadline, "not levelled: {:?}", counts(&followers));
    }
    let mut moved_at = Instant::now();
    while moved_at.elapsed() < CALM {
        for follower in &mut followers {
            if follower.follow(&cluster) {
                moved_at = Instant::now();
            }
        }
        assert!(Instant::now() < deadline + CALM, "to and fro: {:?}", counts(&followers));
    }
    let levelled = counts(&followers);
    assert!(levelled[2] <= 45 && levelled[0] >= 15 && levelled[1] >= 20, "{levelled:?}");
    // Those that cannot be told stay where they are.
    for mut client in old {
        client.send(&Packet::PingReq);
        assert!(matches!(client.receive(), Packet::PingResp));
    }
}
