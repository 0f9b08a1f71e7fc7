//! Who leads which group, by the word of an operator, and what is shown of it.

use std::time::Duration;

use serde_json::Value;

use super::nodes::{Cluster, GROUPS};
use crate::support::wait_for;

/// Longer than a leader stays before it gives way to the preferred one, and than it waits before it tries again.
const GIVEN_BACK_AFTER: Duration = Duration::from_secs(12);

fn group(cluster: &Cluster, asked: usize, number: &str) -> Value {
    let groups = cluster.admin_json(asked, &["groups"]);
    let groups = groups["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), usize::from(GROUPS) + 1);
    let is_meant = |group: &&Value| match number {
        "directory" => group["directory"] == true,
        number => group["group"].as_u64() == number.parse().ok(),
    };
    groups.iter().find(is_meant).expect("such a group").clone()
}

fn leader(cluster: &Cluster, number: &str) -> String {
    group(cluster, 0, number)["leader_name"].as_str().unwrap_or("nobody").to_owned()
}

/// Of three nodes one that does not lead a group.
fn other(leader: &str) -> &'static str {
    ["n1", "n2", "n3"].into_iter().find(|&name| name != leader).expect("three nodes")
}

#[test]
fn leadership_goes_where_an_operator_wants_it_and_stays_there() {
    let cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    for number in ["3", "directory"] {
        wait_for("it has a leader", || leader(&cluster, number) != "nobody");
        let to = other(&leader(&cluster, number));
        let told = cluster.admin(1, &["transfer", number, to]).expect("it is done");
        assert!(told.starts_with(&format!("{to} leads ")), "{told}");
        std::thread::sleep(GIVEN_BACK_AFTER);
        wait_for("it stays there", || {
            let found = group(&cluster, 0, number);
            found["leader_name"] == to && !found["chosen"].is_null()
        });
        let undone = cluster.admin_json(2, &["transfer", number, "--undo"]);
        assert!(undone["leader"].is_null());
        wait_for("nobody is chosen", || group(&cluster, 0, number)["chosen"].is_null());
    }
}

#[test]
fn leadership_goes_to_nobody_who_could_not_lead() {
    let mut cluster = Cluster::of(5);
    wait_for("it has a leader", || leader(&cluster, "0") != "nobody");
    let first = group(&cluster, 0, "0");
    let voters: Vec<String> = (first["voters"].as_array().expect("voters").iter())
        .map(|node| node.as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(voters.len(), 3);
    let members = cluster.admin_json(0, &["members"]);
    let members = members["members"].as_array().expect("members").clone();
    let votes = |member: &&Value| voters.iter().any(|voter| member["node"] == voter.as_str());
    let outsider = members.iter().find(|member| !votes(member)).expect("five nodes")["name"].as_str().expect("a name");
    let error = cluster.admin(0, &["transfer", "0", outsider]).expect_err("it has no vote");
    assert!(error.contains(&format!("{outsider} has no vote in group 0")), "{error}");

    let leads = first["leader_name"].as_str().expect("a leader");
    let follower = members.iter().find(|member| votes(member) && member["name"] != leads).expect("three voters");
    let follower = follower["name"].as_str().expect("a name").to_owned();
    let drained = follower.clone();
    let asked = cluster.nodes.iter().position(|node| node.name != follower).expect("five nodes");
    cluster.admin_json(asked, &["drain", &drained]);
    let error = cluster.admin(asked, &["transfer", "0", &follower]).expect_err("it is drained");
    assert!(error.contains("is drained"), "{error}");
    cluster.admin_json(asked, &["drain", &drained, "--undo"]);
    assert!(group(&cluster, asked, "0")["chosen"].is_null(), "what was refused changed nothing");

    let index = cluster.nodes.iter().position(|node| node.name == follower).expect("one of ours");
    cluster.nodes[index].kill();
    wait_for("its leader misses it", || {
        let error = cluster.admin(asked, &["transfer", "0", &follower, "--wait-seconds", "0"]);
        error.is_err_and(|error| error.contains(&format!("node {follower} is not heard of")))
    });
    for (arguments, expected) in [
        (&["transfer", "99", "n1"][..], "there is no group 99"),
        (&["transfer", "0", "nobody"][..], "no node is called"),
    ] {
        let error = cluster.admin(asked, arguments).expect_err("it cannot be");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn members_and_groups_are_shown_as_tables() {
    let cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    let _client = cluster.nodes[1].client("counted");
    let table = cluster.admin(2, &["members"]).expect("members");
    let mut lines = table.lines();
    assert!(lines.next().expect("a heading").starts_with("NODE  STATE    ZONE  LEASE    CONNECTIONS  LEADS  VOTES"));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    let short: Vec<_> = rows.iter().map(|row| &row[..3]).collect();
    assert_eq!(short, [["n1", "serving", "none"], ["n2", "serving", "none"], ["n3", "serving", "none"]], "{table}");
    assert_eq!((rows[1][5], rows[0][7], rows[0][8]), ("1", "17", "0"), "{table}");
    let table = cluster.admin(1, &["groups"]).expect("groups");
    assert_eq!(table.lines().count(), usize::from(GROUPS) + 2, "{table}");
    let last = table.lines().last().expect("the directory");
    assert!(last.starts_with("directory  n") && last.contains("n1, n2, n3"), "{table}");
}
