//! All nodes are restarted one after the other, in good order, while clients go on.

use kentongan_proto::mqtt::ProtocolVersion;

use super::nodes::Cluster;
use crate::durability::survive;

/// P1, P3, P4, P5, P8, F13: the load of the durability tests. Each node is told to stop, in turn; every other one was drained
/// before by an operator, which lasts until the node is back and that is undone.
#[test]
fn restarting_one_node_after_the_other_loses_nothing_that_was_acknowledged() {
    let mut rounds = 0;
    survive(Cluster::advertised(3, &[]), ProtocolVersion::V5, 4, |cluster| {
        let node = rounds % 3;
        let (name, asked) = (cluster.nodes[node].name.clone(), (node + 1) % 3);
        let is_drained = rounds % 2 == 1;
        rounds += 1;
        if is_drained {
            let drained = cluster.admin_json(asked, &["drain", &name]);
            assert_eq!((&drained["leads"], &drained["connections"]), (&0.into(), &0.into()), "{drained:#}");
        }
        cluster.nodes[node].terminate();
        cluster.nodes[node].spawn();
        if is_drained {
            cluster.admin_json(asked, &["drain", &name, "--undo"]);
        }
        cluster.nodes[node].wait_until_ready();
    });
}
