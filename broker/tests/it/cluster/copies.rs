//! A node is started from an older copy of its data directory, or from a copy of that of a living node.

use std::fs;

use super::growth::{find_everything, leave_a_session, while_writing};
use super::nodes::{Cluster, Node};
use super::recovery::copy;

/// What a process ends with whose data directory is a copy.
const COPIED: i32 = 5;

/// A copy of a node's data directory, and that is written by the node afterwards.
fn copy_and_go_on(cluster: &mut Cluster, index: usize) -> std::path::PathBuf {
    let node = &mut cluster.nodes[index];
    node.terminate();
    let kept = node.data_dir.with_extension("copy");
    copy(&node.data_dir, &kept);
    node.spawn();
    node.wait_until_ready();
    kept
}

/// A snapshot of a machine that ran has another number of starts than the copy of a stopped node's disk.
fn start_counted(data_dir: &std::path::Path, add: u64) {
    let file = data_dir.join("incarnation");
    let starts: u64 = fs::read_to_string(&file).expect("a number").trim().parse().expect("a number");
    fs::write(file, format!("{}\n", starts + add)).expect("written");
}

fn put_in_place(node: &Node, kept: &std::path::Path) {
    fs::remove_dir_all(&node.data_dir).expect("a data directory");
    fs::rename(kept, &node.data_dir).expect("another one");
}

fn ends_as_a_copy(node: &mut Node, why: &str) {
    let (code, words) = node.ends_when_started();
    assert_eq!(code, Some(COPIED), "{words}");
    assert!(words.contains(why) && words.contains("an older copy"), "{words}");
    let (code, words) = node.ends_when_started();
    assert_eq!(code, Some(COPIED), "{words}");
    assert!(words.contains("that ended an earlier process"), "however often it is started: {words}");
}

fn comes_back_empty(cluster: &mut Cluster, index: usize) {
    let node = &mut cluster.nodes[index];
    fs::remove_dir_all(&node.data_dir).expect("a data directory");
    node.spawn();
    node.wait_until_ready();
    cluster.wait_until_kept_by(0, 3, 0);
}

/// It has forgotten votes and entries that it acknowledged, and never votes.
#[test]
fn a_node_with_an_older_copy_of_its_disk_ends_and_comes_back_with_an_empty_one() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    leave_a_session(&cluster.nodes[0]);
    let letters = while_writing(cluster.nodes[0].client("writer"), 1, || {
        let kept = copy_and_go_on(&mut cluster, 2);
        cluster.nodes[2].kill();
        put_in_place(&cluster.nodes[2], &kept);
        ends_as_a_copy(&mut cluster.nodes[2], "another process of the node was heard of");
        comes_back_empty(&mut cluster, 2);
    });
    find_everything(&cluster.nodes[2], letters);
}

/// The number of its starts says nothing: a machine was put back to a snapshot that was made while the node ran. Those who lead know what
/// it acknowledged since.
#[test]
fn a_node_that_lacks_what_it_acknowledged_ends_however_often_it_was_started() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    let kept = copy_and_go_on(&mut cluster, 2);
    cluster.nodes[2].kill();
    start_counted(&kept, 1);
    put_in_place(&cluster.nodes[2], &kept);
    ends_as_a_copy(&mut cluster.nodes[2], "lacks entries that it has acknowledged");
    comes_back_empty(&mut cluster, 2);
}

#[test]
fn a_copy_of_a_living_node_ends_and_the_node_goes_on() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    leave_a_session(&cluster.nodes[0]);
    let letters = while_writing(cluster.nodes[1].client("writer"), 1, || {
        let kept = copy_and_go_on(&mut cluster, 2);
        start_counted(&kept, 1);
        let mut twin = cluster.nodes[2].twin(kept);
        ends_as_a_copy(&mut twin, "another process of the node lives");
    });
    assert!(cluster.nodes[2].is_ready(), "the one that lives");
    assert!(!cluster.nodes[2].said("was declared dead"), "and was heard all the time");
    find_everything(&cluster.nodes[2], letters);
}
