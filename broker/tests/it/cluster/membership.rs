//! What the nodes say of themselves.

use serde_json::Value;

use super::nodes::Cluster;
use crate::support::wait_for;

fn node<'a>(status: &'a Value, name: &str) -> &'a Value {
    let nodes = status["nodes"].as_array().expect("nodes");
    nodes.iter().find(|node| node["name"] == name).expect("every node is named")
}

fn serves(status: &Value, name: &str) -> bool {
    node(status, name)["status"]["standing"] == "serving"
}

/// The names of those that lead, by the groups: with the directory, as all that answer say.
fn leaders(status: &Value) -> Vec<String> {
    let nodes = status["nodes"].as_array().expect("nodes");
    let led = |node: &Value| {
        let groups = node["status"]["groups"]
            .as_array()
            .map_or(0, |groups| groups.iter().filter(|group| group["leads"] == true).count());
        vec![node["name"].as_str().expect("a name").to_owned(); groups]
    };
    nodes.iter().flat_map(led).collect()
}

/// Groups and the directory.
const GROUPS: usize = 17;

#[test]
fn status_says_who_was_killed_and_that_others_lead_until_it_is_back() {
    let mut cluster = Cluster::start();
    let before = cluster.status_at(0);
    for name in ["n1", "n2", "n3"] {
        assert!(serves(&before, name), "{before:#}");
    }
    wait_for("every group has a leader", || leaders(&cluster.status_at(2)).len() == GROUPS);

    let victim = cluster.leader_of("anything");
    let asked = (victim + 1) % 3;
    let name = cluster.nodes[victim].name.clone();
    cluster.nodes[victim].kill();
    wait_for("the killed node is missed, and others lead its groups", || {
        let status = cluster.status_at(asked);
        let others = leaders(&status);
        let members = &node(&status, &cluster.nodes[asked].name)["status"]["members"];
        let is_dead = |member: &Value| member["name"] == *name && member["incarnation"] == 0;
        node(&status, &name)["error"].is_string()
            && members.as_array().is_some_and(|members| members.iter().any(is_dead))
            && others.len() == GROUPS
            && !others.contains(&name)
    });

    cluster.nodes[victim].restart();
    let after = cluster.status_at(asked);
    assert!(serves(&after, &name), "{after:#}");
    let incarnation = |status: &Value| node(status, &name)["status"]["incarnation"].as_u64().expect("a number");
    assert!(incarnation(&after) > incarnation(&before), "another incarnation");
    wait_for("all links are there", || {
        let status = cluster.status_at(victim);
        let is_up = |link: &Value| link["up"] == true;
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.iter().all(|node| node["status"]["links"].as_array().is_some_and(|links| links.iter().all(is_up)))
    });
}
