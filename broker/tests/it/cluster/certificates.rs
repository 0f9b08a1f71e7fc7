//! Nodes with the certificates that the program makes.

use std::path::Path;
use std::process::Output;

use kentongan_proto::mqtt::*;
use tempfile::TempDir;

use super::nodes::Cluster;
use crate::support::*;

fn certs(directory: &Path, names: &[&str]) -> Output {
    let mut command = broker_command();
    command.args(["cluster", "certs"]).arg(directory).arg("--node").args(names).output().expect("the program runs")
}

fn environment(directory: &Path, name: &str) -> Vec<(String, String)> {
    let file = |key: &str, file: String| {
        (format!("KENTONGAN_CLUSTER__{key}"), directory.join(file).to_str().expect("UTF-8").to_owned())
    };
    vec![
        file("CA_FILE", "ca.crt".to_owned()),
        file("CERTIFICATE_FILE", format!("{name}.crt")),
        file("KEY_FILE", format!("{name}.key")),
    ]
}

/// Abuse: [peers-tls]
#[test]
fn nodes_with_certificates_of_one_authority_are_a_cluster_and_one_of_another_is_refused() {
    let directory = TempDir::new().expect("a temporary directory");
    let [own, foreign] = ["own", "foreign"].map(|name| directory.path().join(name));
    let made = certs(&own, &["n1", "n2", "n3", "operator"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(certs(&foreign, &["n3"]).status.success());
    let places = (1..=3).map(|number| directory.path().join(format!("d{number}"))).collect();
    let at = own.clone();
    let mut cluster = Cluster::within(directory, places, move |index| environment(&at, &format!("n{}", index + 1)));

    let mut reader = cluster.nodes[0].client("reader");
    reader.subscribe("t", QoS::AtLeastOnce);
    let mut writer = cluster.nodes[2].client("writer");
    writer.publish_acknowledged("t", "x", qos1(1));
    assert_eq!(&reader.take_publish().payload[..], b"x");
    let status = |from: &Path, name: &str| {
        let [ca, certificate, key] =
            ["ca.crt".to_owned(), format!("{name}.crt"), format!("{name}.key")].map(|file| from.join(file));
        let paths = [&ca, &certificate, &key].map(|path| path.to_str().expect("UTF-8").to_owned());
        let [ca, certificate, key] = &paths;
        let files = ["--ca-file", ca, "--certificate-file", certificate, "--key-file", key];
        cluster.command(0, &[&["status", "--node", name][..], &files[..]].concat())
    };
    assert!(status(&own, "operator").status.success());
    assert!(!status(&foreign, "n3").status.success(), "an operator of another authority is none");

    drop((reader, writer));
    let renewed = broker_command().args(["cluster", "certs", "--renew"]).arg(&own).args(["--node", "n1"]).output();
    assert!(renewed.expect("the program runs").status.success());
    cluster.nodes[0].hang_up();
    wait_for("they are read again", || {
        cluster.nodes[0].said("certificates for the links between nodes were read again")
    });
    let renewed = broker_command().args(["cluster", "certs", "--renew"]).arg(&own).args(["--node", "n2"]).output();
    assert!(renewed.expect("the program runs").status.success());
    wait_for("they are taken up without a word", || {
        cluster.nodes[1].said("new certificates for the links between nodes are in use")
    });
    std::fs::write(own.join("n2.crt"), "no certificate\n").expect("written");
    wait_for("who waits for alerts hears that they are refused", || {
        let reloads = cluster.nodes[1].counters("kentongan_tls_reloads_total");
        reloads.contains(&("refused".to_owned(), 1)) && reloads.contains(&("applied".to_owned(), 1))
    });
    assert_eq!(cluster.nodes[1].gauge("kentongan_cluster_members"), 3);
    let foreign_environment = environment(&foreign, "n3");
    cluster.nodes[2].kill();
    cluster.nodes[2].set_environment(foreign_environment);
    cluster.nodes[2].spawn();
    wait_for("it is refused", || cluster.nodes[0].said("the TLS handshake with a peer failed"));
    assert!(!cluster.nodes[2].is_ready());
    cluster.nodes[2].kill();
    cluster.nodes[2].set_environment(environment(&own, "n3"));
    cluster.nodes[2].restart();
}
