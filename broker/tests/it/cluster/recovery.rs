//! A majority is lost for good: a new cluster begins with what a survivor has.

use std::fs;
use std::path::Path;
use std::process::Output;

use kentongan_proto::mqtt::*;
use serde_json::Value;

use super::nodes::{Cluster, Node};
use crate::support::*;

/// Runs `kentongan cluster recover`, without a terminal.
fn recover(survivors: &[&Path], into: &Path, answers: &[&str]) -> Output {
    let mut command = broker_command();
    command.args(["cluster", "recover", "--from-survivors"]).args(survivors).arg("--into").arg(into).args(answers);
    command.stdin(std::process::Stdio::null()).output().expect("the program runs")
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Of a data directory that nobody writes.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// All that a node has of each group is what anybody has.
fn has_everything(status: &Value, name: &str) -> bool {
    let nodes = status["nodes"].as_array().expect("nodes");
    let groups = |node: &Value| node["status"]["groups"].as_array().cloned().unwrap_or_default();
    let last = |group: &Value| (group["group"].as_u64(), group["last"].as_u64());
    let own: Vec<_> =
        nodes.iter().filter(|node| node["name"] == name).flat_map(groups).map(|group| last(&group)).collect();
    nodes.iter().flat_map(groups).all(|group| {
        let (number, index) = last(&group);
        own.iter().any(|&(own_number, own_index)| own_number == number && own_index >= index)
    })
}

/// The same of the groups that it keeps, as a voter or a learner.
fn has_what_it_keeps(status: &Value, name: &str) -> bool {
    let nodes = status["nodes"].as_array().expect("nodes");
    let groups = |node: &Value| node["status"]["groups"].as_array().cloned().unwrap_or_default();
    let own: Vec<_> = nodes.iter().filter(|node| node["name"] == name).flat_map(groups).collect();
    own.iter().all(|own| {
        let same = |group: &Value| group["group"] == own["group"];
        nodes.iter().flat_map(groups).filter(same).all(|group| group["last"].as_u64() <= own["last"].as_u64())
    })
}

const LETTERS: u32 = 50;

/// A session with letters that wait, one in flight, and what is retained.
fn leave_everything(node: &Node) {
    let (mut reader, _) = node.persistent("reader");
    reader.subscribe("letters/#", QoS::AtLeastOnce);
    reader.disconnect();
    let mut writer = node.client("writer");
    for number in 1..=LETTERS {
        writer.publish_acknowledged(&format!("letters/{number}"), "x", qos1(1));
    }
    writer.send(&Packet::Publish(Publish { retain: true, ..publish("notice", "kept", qos1(1)) }));
    writer.complete(qos1(1));
    writer.disconnect();
}

fn find_everything(node: &Node) {
    let (mut reader, present) = node.persistent("reader");
    assert!(present, "the session is there");
    for number in 1..=LETTERS {
        assert_eq!(reader.take_publish().topic, format!("letters/{number}"));
    }
    reader.subscribe("notice", QoS::AtMostOnce);
    assert_eq!(&reader.take_publish().payload[..], b"kept");
    reader.unsubscribe("notice");
    reader.disconnect();
}

#[test]
fn a_survivor_becomes_a_new_cluster_that_grows_and_refuses_the_disks_of_the_old_one() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    leave_everything(&cluster.nodes[1]);
    // Of a client that is connected as its node dies, the session must be let go of.
    let (mut connected, _) = cluster.nodes[2].persistent("connected");
    connected.subscribe("news", QoS::AtLeastOnce);
    wait_for("the survivor has everything", || has_everything(&cluster.status_at(0), "n1"));
    cluster.nodes.iter_mut().for_each(Node::kill);
    drop(connected);

    let [old, lost, other] = [0, 1, 2].map(|node| cluster.nodes[node].data_dir.clone());
    let stale = lost.with_file_name("stale");
    copy(&lost, &stale);
    fs::remove_dir_all(&lost).expect("removed");
    fs::remove_dir_all(&other).expect("removed");

    let into = old.with_file_name("recovered");
    let id = refused_without_its_answers(&old, &into);
    let accepted = ["--yes-i-accept-the-loss", &id, "--given-up", "n2,n3"];
    let output = recover(&[&old], &into, &accepted);
    assert!(output.status.success(), "{}", says(&output));
    assert!(says(&recover(&[&old], &into, &accepted)).contains("is not empty"), "it is made once");

    let mut serve = broker_command();
    serve.args(["serve", "--cluster", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--data-dir"]).arg(&old);
    let refused = serve.output().expect("the program runs");
    assert!(says(&refused).contains("a new cluster was made of what data directory"), "{}", says(&refused));

    cluster.nodes[0].data_dir = into;
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_ready();
    assert_ne!(cluster.status_at(0)["nodes"][0]["status"]["cluster"].as_str(), Some(&*id), "another cluster");
    find_everything(&cluster.nodes[0]);
    let (mut connected, present) = cluster.nodes[0].persistent("connected");
    assert!(present, "its owner is gone, it is not");
    let mut writer = cluster.nodes[0].client("writer");
    writer.publish_acknowledged("news", "again", qos1(1));
    assert_eq!(&connected.take_publish().payload[..], b"again");

    cluster.nodes[1].spawn();
    cluster.nodes[2].spawn();
    cluster.wait_until_ready();
    cluster.wait_until_kept_by(0, 3, 0);
    drop((connected, writer));
    leave_everything(&cluster.nodes[2]);
    cluster.nodes[0].kill();
    find_everything(&cluster.nodes[2]);
    cluster.nodes[0].restart();
    leave_everything(&cluster.nodes[0]);

    // A disk of the old cluster comes back after all.
    cluster.nodes[1].kill();
    cluster.nodes[1].data_dir = stale;
    cluster.nodes[1].spawn();
    wait_for("it is told why it is refused", || cluster.nodes[1].said("whose place cluster"));
    assert!(cluster.nodes[1].said("start it with an empty data directory to have it join"));
    assert!(!cluster.nodes[1].is_ready());
    find_everything(&cluster.nodes[0]);
}

/// What is not confirmed, and confirmed rightly, is not done. Returns the cluster's id.
fn refused_without_its_answers(old: &Path, into: &Path) -> String {
    let report = recover(&[old], into, &[]);
    let text = says(&report);
    assert!(!report.status.success() && text.contains("nothing was done"), "{text}");
    assert!(text.contains("Given up for good") && text.contains("n2, n3") && text.contains("LOST"), "{text}");
    let id = text.split_whitespace().nth(1).expect("cluster ID ends").to_owned();
    for answers in [
        &["--yes-i-accept-the-loss", "0123", "--given-up", "n2,n3"][..],
        &["--yes-i-accept-the-loss", &id],
        &["--yes-i-accept-the-loss", &id, "--given-up", "n2"],
        &["--yes-i-accept-the-loss", &id, "--given-up", "n2,n3", "--start-empty", "4"],
    ] {
        let output = recover(&[old], into, answers);
        assert!(
            !output.status.success() && says(&output).contains("nothing was done"),
            "{answers:?}: {}",
            says(&output)
        );
    }
    assert!(says(&recover(&[old, old], into, &[])).contains("was named twice"), "one directory, twice");
    assert!(!into.exists());
    id
}

/// With three voters on five nodes no two survivors have every group. What none of them has is named, and given up only by name.
#[test]
fn what_no_survivor_has_begins_empty_if_that_is_wanted() {
    let mut cluster = Cluster::of(5);
    let names: Vec<String> = (0..40).map(|number| format!("client-{number}")).collect();
    for name in &names {
        let (mut client, _) = cluster.nodes[0].persistent(name);
        client.subscribe("t", QoS::AtLeastOnce);
        client.disconnect();
    }
    wait_for("all have everything that they keep", || {
        let status = cluster.status_at(0);
        ["n1", "n2", "n3", "n4", "n5"].iter().all(|name| has_what_it_keeps(&status, name))
    });
    cluster.nodes.iter_mut().for_each(Node::kill);
    let disks: Vec<_> = cluster.nodes.iter().map(|node| node.data_dir.clone()).collect();
    let into = disks[0].with_file_name("recovered");

    let missing = |survivors: &[&Path]| {
        let text = says(&recover(survivors, &into, &[]));
        let list = text.rsplit_once("--start-empty ")?.1.split_once(')')?.0.to_owned();
        let groups: Vec<u16> = list.split(',').map(|group| group.parse().ok()).collect::<Option<_>>()?;
        Some((list, groups))
    };
    let (_, of_one) = missing(&[&disks[0]]).expect("one node has not every group");
    // Groups are dealt out by the nodes' ids, so it is chance which two have all.
    let pair = (1..5).find_map(|other| Some((other, missing(&[&disks[0], &disks[other]])?)));
    let (other, (list, groups)) = pair.expect("some two have not");
    let both = [disks[0].as_path(), disks[other].as_path()];
    let given_up: Vec<&str> =
        ["n2", "n3", "n4", "n5"].into_iter().filter(|name| **name != *format!("n{}", other + 1)).collect();
    let given_up = given_up.join(",");
    assert!(
        groups.len() < of_one.len() && groups.iter().all(|group| of_one.contains(group)),
        "{groups:?} of {of_one:?}"
    );
    let text = says(&recover(&both, &into, &[]));
    let id = text.split_whitespace().nth(1).expect("cluster ID ends").to_owned();
    let mut answers = vec!["--yes-i-accept-the-loss", &id, "--given-up", &given_up];
    assert!(says(&recover(&both, &into, &answers)).contains("nothing was done"));
    answers.extend(["--start-empty", &list]);
    let output = recover(&both, &into, &answers);
    assert!(output.status.success(), "{}", says(&output));

    cluster.nodes[0].data_dir = into;
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_ready();
    let mut lost = 0;
    for name in &names {
        let (mut client, present) = cluster.nodes[0].persistent(name);
        let is_lost = groups.contains(&cluster.group_of(name));
        assert_eq!(present, !is_lost, "{name}");
        lost += u32::from(is_lost);
        client.subscribe("t", QoS::AtLeastOnce);
        client.disconnect();
    }
    assert!(lost > 0 && lost < 40, "{lost}");
}
