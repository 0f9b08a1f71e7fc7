//! A cluster is backed up while it works, and another one begins with that.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kentongan_proto::mqtt::*;

use super::nodes::{Cluster, Node};
use crate::support::*;

fn restore(file: &Path, into: &Path) -> Output {
    let mut command = broker_command();
    command.args(["cluster", "restore"]).arg(file).arg("--into").arg(into);
    command.output().expect("the program runs")
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Publishes one letter after the other at QoS 2 from a persistent session, so that each goes by an outbox, and the number of the last
/// one as a retained message.
struct Writer {
    acknowledged: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    writing: std::thread::JoinHandle<()>,
}

impl Writer {
    fn start(node: &Node, name: &str) -> Self {
        let (mut client, _) = node.persistent(name);
        let (acknowledged, stop) = (Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let (said, told, name) = (Arc::clone(&acknowledged), Arc::clone(&stop), name.to_owned());
        let writing = std::thread::spawn(move || {
            for number in 1.. {
                if told.load(Ordering::Relaxed) {
                    return client.disconnect();
                }
                client.publish_acknowledged(&format!("letters/{name}/{number}"), "x", qos2(1));
                let last = publish(&format!("last/{name}"), &number.to_string(), qos1(2));
                client.send(&Packet::Publish(Publish { retain: true, ..last }));
                client.complete(qos1(2));
                said.store(number, Ordering::Relaxed);
            }
        });
        Self { acknowledged, stop, writing }
    }

    fn acknowledged(&self) -> u32 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.writing.join().expect("everything is acknowledged");
        self.acknowledged.load(Ordering::Relaxed)
    }
}

const WRITERS: [&str; 3] = ["ann", "bob", "cyd"];

/// Of each writer everything up to some number, once and in order, and no less than was acknowledged when the backup began.
fn find_letters(node: &Node, before: &[u32]) {
    let (mut reader, present) = node.persistent("reader");
    assert!(present, "the session is there");
    let mut found = vec![0; WRITERS.len()];
    loop {
        let has_all = found.iter().zip(before).all(|(found, before)| found >= before);
        let Some(packet) = reader.receive_within(if has_all { QUIET } else { DEADLINE }) else { break };
        let Packet::Publish(letter) = packet else { panic!("a letter expected, got {packet:?}") };
        let (writer, number) =
            letter.topic.strip_prefix("letters/").and_then(|rest| rest.split_once('/')).expect("a letter");
        let writer = WRITERS.iter().position(|name| *name == writer).expect("one of them");
        found[writer] += 1;
        assert_eq!(number, found[writer].to_string(), "once, and in order");
        match letter.delivery {
            Delivery::AtMostOnce => {}
            Delivery::AtLeastOnce(id) => reader.send(&Packet::PubAck(Ack::success(id))),
            // PUBREL may come behind others.
            Delivery::ExactlyOnce(id) => reader.send(&Packet::PubRec(Ack::success(id))),
        }
    }
    for (writer, (found, before)) in found.iter().zip(before).enumerate() {
        assert!(found >= before, "{}: {found} letters of {before} and more", WRITERS[writer]);
    }
    drop(reader);
    let mut anybody = node.client("anybody");
    for (name, before) in WRITERS.iter().zip(before) {
        anybody.subscribe(&format!("last/{name}"), QoS::AtMostOnce);
        let last: u32 = String::from_utf8_lossy(&anybody.take_publish().payload).parse().expect("a number");
        assert!(last >= *before, "{name}: {last} is retained, and {before} was");
    }
}

#[test]
fn a_backup_under_load_has_everything_that_was_acknowledged_before_it() {
    let mut cluster = Cluster::start();
    cluster.wait_until_kept_by(0, 3, 0);
    let (mut reader, _) = cluster.nodes[0].persistent("reader");
    reader.subscribe("letters/#", QoS::AtLeastOnce);
    reader.disconnect();
    // In flight both ways: what a client has not acknowledged, and what it has not released.
    let (mut half, _) = cluster.nodes[1].persistent("half");
    half.subscribe("half", QoS::AtLeastOnce);
    half.publish("half", "sent", qos2(7));
    let received = (half.receive(), half.receive());
    let sent = match &received {
        (Packet::Publish(sent), Packet::PubRec(_)) | (Packet::PubRec(_), Packet::Publish(sent)) => sent.clone(),
        other => panic!("PUBREC and the message expected, got {other:?}"),
    };
    let writers: Vec<_> =
        WRITERS.iter().enumerate().map(|(at, name)| Writer::start(&cluster.nodes[at], name)).collect();
    wait_for("they write", || writers.iter().all(|writer| writer.acknowledged() > 20));

    let before: Vec<u32> = writers.iter().map(Writer::acknowledged).collect();
    let directory = cluster.nodes[0].data_dir.parent().expect("a directory").to_owned();
    let file = directory.join("backup");
    let output = cluster.command(1, &["backup", file.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", says(&output));
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let again = cluster.command(1, &["backup", file.to_str().expect("UTF-8")]);
    assert!(says(&again).contains("exists: name a file that does not"), "{}", says(&again));
    let after: Vec<u32> = writers.into_iter().map(Writer::stop).collect();
    assert!(after.iter().zip(&before).all(|(after, before)| after > before), "nobody waited for its end");
    cluster.nodes.iter_mut().for_each(Node::kill);
    drop(half);

    let into = directory.join("restored");
    refuse_what_is_not_whole(&file, &into);
    let output = restore(&file, &into);
    assert!(output.status.success(), "{}", says(&output));
    assert!(says(&restore(&file, &into)).contains("is not empty"), "it is made once");

    let old = cluster.nodes[1].data_dir.clone();
    cluster.nodes[0].data_dir = into;
    for (node, fresh) in [(1, "fresh-2"), (2, "fresh-3")] {
        cluster.nodes[node].data_dir = directory.join(fresh);
    }
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_ready();
    find_letters(&cluster.nodes[0], &before);
    let (mut half, present) = cluster.nodes[0].persistent("half");
    assert!(present);
    let again = half.expect_publish();
    assert_eq!((again.delivery, again.dup, &again.payload[..]), (sent.delivery, true, &b"sent"[..]));
    half.send(&Packet::Publish(Publish { dup: true, ..publish("half", "sent", qos2(7)) }));
    assert!(matches!(half.receive(), Packet::PubRec(_)));
    half.expect_nothing();
    half.disconnect();

    cluster.nodes[1].spawn();
    cluster.nodes[2].spawn();
    cluster.wait_until_ready();
    cluster.wait_until_kept_by(0, 3, 0);
    // A node of the old cluster comes back.
    cluster.nodes[1].kill();
    cluster.nodes[1].data_dir = old;
    cluster.nodes[1].spawn();
    wait_for("it is told why it is refused", || cluster.nodes[1].said("whose place cluster"));
    assert!(!cluster.nodes[1].is_ready());
}

/// Cut anywhere, or with a bit flipped anywhere, it is refused in clear words, and nothing is made.
fn refuse_what_is_not_whole(file: &Path, into: &Path) {
    let whole = fs::read(file).expect("a backup");
    let bad = file.with_extension("bad");
    for part in [0, 5, 12, 100, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        fs::write(&bad, &whole[..part]).expect("written");
        let output = restore(&bad, into);
        assert!(!output.status.success() && says(&output).contains("it was cut"), "{part}: {}", says(&output));
        let mut flipped = whole.clone();
        flipped[part] ^= 0x10;
        fs::write(&bad, &flipped).expect("written");
        let output = restore(&bad, into);
        let named = ["is no backup of a cluster", "has backup format", "is damaged at byte", "it was cut"];
        assert!(!output.status.success() && named.iter().any(|text| says(&output).contains(text)), "{}", says(&output));
        assert!(!into.exists());
    }
}
