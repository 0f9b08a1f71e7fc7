//! What was acknowledged survives nodes, one after the other and all at once, under load.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kentongan_cluster::disk::SyncSite;
use kentongan_proto::mqtt::ProtocolVersion;

use super::nodes::Cluster;
use crate::durability::{Brokers, kills, survive};
use crate::powercut;

impl Brokers for Cluster {
    fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// The addresses are its own, whoever runs.
    fn addresses_meanwhile(&self) -> Vec<SocketAddr> {
        self.addresses()
    }
}

/// P1, P3, P4, P5, P8: the load of the durability tests, on all nodes, while one of them is killed. The session of the
/// subscriber is found wherever it connects.
#[test]
fn killing_one_node_after_the_other_loses_nothing_that_was_acknowledged() {
    let mut rounds = 0;
    survive(Cluster::start(), ProtocolVersion::V5, kills().max(3), |cluster| {
        // Another node each time, and in turn the one that leads the subscriber's group.
        let victim = if rounds % 3 == 2 { cluster.leader_of("subscriber") } else { rounds % 3 };
        rounds += 1;
        cluster.nodes[victim].restart();
    });
}

/// F2: all nodes at once.
#[test]
fn killing_all_nodes_loses_nothing_that_was_acknowledged() {
    survive(Cluster::start(), ProtocolVersion::V3_1_1, kills().min(2), |cluster| cluster.restart_all_after(|| {}));
}

/// P1, F3: the power of all nodes is cut, so that only what was synced is left on any of them.
#[test]
fn a_power_cut_of_all_nodes_loses_nothing_that_was_acknowledged() {
    let (cluster, cuts) = powercut::start_cluster(None);
    survive(cluster, ProtocolVersion::V5, kills().min(2), |cluster| {
        cluster.restart_all_after(|| cuts.iter().for_each(powercut::cut));
    });
}

/// And without the one sync that a message waits for, something is lost, or no node starts again.
#[test]
fn a_power_cut_of_nodes_that_do_not_sync_their_log_is_noticed() {
    let (cluster, cuts) = powercut::start_cluster(Some(SyncSite::LogRound));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        survive(cluster, ProtocolVersion::V5, 2, |cluster| {
            cluster.restart_all_after(|| cuts.iter().for_each(powercut::cut));
        });
    }));
    assert!(outcome.is_err(), "nobody noticed that the log was never synced");
}
