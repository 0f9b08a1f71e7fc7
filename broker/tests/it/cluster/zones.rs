//! Nodes that share their fate: what is in one zone may be gone at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use super::growth::{find_everything, leave_a_session, while_writing};
use super::nodes::{Cluster, FORMED_WITHIN, GROUPS};

const ZONES: usize = 3;

impl Cluster {
    /// Two nodes in each of three zones.
    fn in_three_zones() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let places = (1..=2 * ZONES).map(|number| directory.path().join(format!("n{number}"))).collect();
        let zone = |index: usize| vec![("KENTONGAN_CLUSTER__ZONE".to_owned(), format!("zone-{}", index % ZONES))];
        Self::within(directory, places, zone)
    }

    /// Whether no zone has the majority of any group, the directory among them, as the leaders say.
    fn bears_the_loss_of_a_zone(&self) -> bool {
        let status = self.status_at(0);
        let nodes = status["nodes"].as_array().expect("nodes");
        let members = nodes[0]["status"]["members"].as_array().expect("members");
        let zones: BTreeMap<&str, &str> =
            members.iter().map(|member| (text(&member["node"]), text(&member["zone"]))).collect();
        let led: Vec<&Value> = nodes
            .iter()
            .filter_map(|node| node["status"]["groups"].as_array())
            .flatten()
            .filter(|group| group["leads"] == true)
            .collect();
        led.len() == usize::from(GROUPS) + 1 && led.iter().all(|group| is_spread(group, &zones))
    }
}

fn is_spread(group: &Value, zones: &BTreeMap<&str, &str>) -> bool {
    let voters = group["voters"].as_array().expect("voters");
    let within = |zone: &str| voters.iter().filter(|voter| zones[text(voter)] == zone).count();
    zones.values().collect::<BTreeSet<_>>().into_iter().all(|zone| 2 * within(zone) < voters.len())
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[test]
fn when_a_zone_is_lost_every_group_keeps_its_majority() {
    let mut cluster = Cluster::in_three_zones();
    // Six processes, and each group takes a step of its way a second.
    let deadline = Instant::now() + 3 * FORMED_WITHIN;
    while !cluster.bears_the_loss_of_a_zone() {
        assert!(Instant::now() < deadline, "groups are not spread over the zones: {:#}", cluster.status_at(0));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    leave_a_session(&cluster.nodes[2]);
    let writer = cluster.nodes[0].client("writer");
    let letters = while_writing(writer, 1, || {
        for lost in [2, 5] {
            cluster.nodes[lost].kill();
        }
        let (_, present) = cluster.nodes[1].persistent("newcomer");
        assert!(!present, "its group takes it in");
    });
    find_everything(&cluster.nodes[4], letters);
}
