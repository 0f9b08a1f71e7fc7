//! Users and rights where there are several nodes, each with the same files.

use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;
use tempfile::TempDir;

use super::nodes::Cluster;
use crate::support::*;
use crate::users::{Files, of_user, quick};

/// A will is late by what it takes to declare a node dead, and P9's 5 s.
const WILL_LATE_MAX: Duration = Duration::from_secs(8);

fn start(files: &Files) -> Cluster {
    files.write("passwords", &(quick("ana", "x") + &quick("budi", "x")));
    let directory = TempDir::new().expect("a temporary directory");
    let places = (1..=3).map(|number| directory.path().join(format!("n{number}"))).collect();
    let setting = |name: &str, file: &str| (format!("KENTONGAN_AUTH__{name}"), files.path(file).display().to_string());
    Cluster::within(directory, places, |_| vec![setting("PASSWORD_FILE", "passwords"), setting("ACL_FILE", "acl")])
}

fn user(name: &str, client_id: &str, is_persistent: bool) -> Connect {
    let mut asked = of_user(ProtocolVersion::V5, client_id, name, "x");
    asked.clean_start = !is_persistent;
    asked.properties.session_expiry_interval = is_persistent.then_some(3600);
    asked
}

/// Row 2 of the security list, on each path of a claim: a living session or one that waits, persistent or not, on the node that
/// has it or another, asked to be resumed or begun anew.
#[test]
fn another_user_gets_no_session_of_that_name_on_any_node() {
    let files = Files::new("");
    files.write("acl", "pattern #\n");
    let cluster = start(&files);
    let nodes = &cluster.nodes;
    for is_persistent in [false, true] {
        let (mut ana, _) = nodes[0].accepted(&user("ana", "same", is_persistent));
        assert_eq!(ana.subscribe("letters", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        let refused = |node: usize| {
            for clean_start in [false, true] {
                let (mut budi, connack) = nodes[node].open(Connect { clean_start, ..user("budi", "same", true) });
                assert_eq!(connack.reason_code, ReasonCode::NotAuthorized);
                budi.expect_closed();
            }
        };
        (0..3).for_each(refused);
        ana.expect_nothing();
        ana.disconnect();
        if is_persistent {
            (0..3).for_each(refused);
            let (ana, connack) = nodes[2].accepted(&user("ana", "same", true));
            assert!(connack.session_present);
            ana.disconnect();
            nodes[1].accepted(&user("ana", "same", false)).0.disconnect();
        }
        // It is free as soon as its group has heard that hers is over, for which nobody waits.
        wait_for("a free name", || nodes[1].open(user("budi", "same", false)).1.reason_code == ReasonCode::Success);
        wait_for("a free name", || nodes[0].open(user("ana", "same", false)).1.reason_code == ReasonCode::Success);
    }
}

/// Whoever leads the group of a session asks its own files when the will is due.
#[test]
fn a_will_that_may_not_be_published_any_more_is_not_when_its_node_is_killed() {
    let files = Files::new("");
    let before = "user budi\ntopic #\nuser ana\ntopic a/#\n";
    files.write("acl", before);
    let mut cluster = start(&files);
    let (mut watcher, _) = cluster.nodes[0].accepted(&user("budi", "watcher", false));
    watcher.subscribe("#", QoS::AtLeastOnce);
    let mut clients = Vec::new();
    for (number, is_persistent) in [false, true, false, true].into_iter().enumerate() {
        let topic = format!("a/{number}");
        let properties = WillProperties::default();
        let will = Will { topic, payload: "gone".into(), qos: QoS::AtLeastOnce, retain: false, properties };
        let asked = Connect { will: Some(will), ..user("ana", &format!("ana-{number}"), is_persistent) };
        clients.push(cluster.nodes[2].accepted(&asked).0);
    }
    // One that may: it tells when the wills of that node are due.
    let properties = WillProperties::default();
    let will = Will { topic: "b".to_owned(), payload: "gone".into(), qos: QoS::AtLeastOnce, retain: false, properties };
    let asked = Connect { will: Some(will), ..user("budi", "teller", true) };
    clients.push(cluster.nodes[2].accepted(&asked).0);
    files.write("acl", "user budi\ntopic #\n");
    for node in &cluster.nodes[..2] {
        node.hang_up();
        wait_for("the new rules", || node.said("the settings were read again"));
    }
    let refused = |cluster: &Cluster| -> u64 {
        let of = |node: usize| cluster.nodes[node].counters("kentongan_publishes_refused_total");
        [0, 1].into_iter().flat_map(of).filter(|(reason, _)| reason == "not_authorized").map(|(_, count)| count).sum()
    };
    assert_eq!(refused(&cluster), 0);
    cluster.nodes[2].kill();
    let told = watcher.receive_within(WILL_LATE_MAX);
    assert!(matches!(&told, Some(Packet::Publish(publish)) if publish.topic == "b"), "{told:?}");
    let deadline = Instant::now() + WILL_LATE_MAX;
    while refused(&cluster) < 4 {
        assert!(Instant::now() < deadline, "{} of 4 wills were refused", refused(&cluster));
        std::thread::sleep(Duration::from_millis(20));
    }
    watcher.expect_nothing();
}
