//! F14: two programs at once, one of which is a feature level ahead: it says what the other has no name for, and puts into the groups' logs
//! what the other does not know, once it may.

use serde_json::Value;

use super::growth::{find_everything, leave_a_session, while_writing};
use super::nodes::Cluster;
use crate::support::*;

/// The feature level that this program knows, and not the one before it. Written down: who raises it means to.
const KNOWN: u64 = 3;

fn too_high() -> String {
    format!("uses feature level {}, and the program of this node knows none above {KNOWN}", KNOWN + 1)
}

const NEXT: &str = env!("CARGO_BIN_EXE_kentongan-next");

/// Of a process that is too old for its cluster.
const TOO_OLD: i32 = 4;

/// What is said when the later program meets what only it knows.
const LATER_ENTRY: &str = "an entry of a later version is applied";

impl Cluster {
    fn change_program(&mut self, index: usize, program: Option<&str>) {
        let node = &mut self.nodes[index];
        node.terminate();
        node.set_program(program);
        node.spawn();
        node.wait_until_ready();
    }

    /// As every node that runs says.
    fn feature_levels(&self) -> Vec<u64> {
        let status = self.status_at(0);
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.iter().map(|node: &Value| node["status"]["feature_level"].as_u64().unwrap_or(0)).collect()
    }
}

#[test]
fn a_rolling_upgrade_loses_nothing_and_is_taken_back_only_before_it_is_complete() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    leave_a_session(&cluster.nodes[0]);
    let writer = cluster.nodes[1].client("writer");
    let letters = while_writing(writer, 1, || {
        cluster.change_program(2, Some(NEXT));
        cluster.change_program(0, Some(NEXT));
        cluster.change_program(2, None);
        cluster.change_program(2, Some(NEXT));
        assert_eq!(cluster.feature_levels(), [KNOWN; 3], "one does not know more");
        assert!(!cluster.nodes.iter().any(|node| node.has_logged(LATER_ENTRY)));
    });
    assert!(letters > 20, "{letters} letters were written meanwhile");
    let letters = while_writing(cluster.nodes[0].client("writer"), letters, || {
        cluster.change_program(1, Some(NEXT));
        wait_for("all know more", || cluster.feature_levels() == [KNOWN + 1; 3]);
        wait_for("it is used", || cluster.nodes.iter().all(|node| node.has_logged(LATER_ENTRY)));
    });

    cluster.nodes[1].terminate();
    cluster.nodes[1].set_program(None);
    let (code, words) = cluster.nodes[1].ends_when_started();
    assert_eq!(code, Some(TOO_OLD), "{words}");
    let (why, remedy) = (too_high(), "start the node with the version");
    assert!(words.contains(&why) && words.contains(remedy), "{words}");
    cluster.nodes[1].set_program(Some(NEXT));
    cluster.nodes[1].spawn();
    cluster.nodes[1].wait_until_ready();
    find_everything(&cluster.nodes[1], letters);
}

/// Taken back behind the back of the others, it hears from them, and from what is in the log, that it is too late.
#[test]
fn a_node_that_is_taken_back_while_it_is_away_ends_before_it_does_harm() {
    let mut cluster = Cluster::start();
    cluster.change_program(0, Some(NEXT));
    cluster.change_program(2, Some(NEXT));
    cluster.nodes[2].kill();
    cluster.change_program(1, Some(NEXT));
    wait_for("all know more", || {
        let status = cluster.status_at(0);
        status["nodes"].as_array().is_some_and(|nodes| nodes[0]["status"]["feature_level"] == KNOWN + 1)
    });
    cluster.nodes[2].set_program(None);
    cluster.nodes[2].spawn();
    let refused = format!("the cluster {}", too_high());
    wait_for("it hears why", || cluster.nodes[2].has_logged(&refused));
    assert!(!cluster.nodes[2].is_ready());
    cluster.nodes[2].kill();
    cluster.nodes[2].set_program(Some(NEXT));
    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_until_ready();
}
