//! Brokers whose power can be cut: see `kentongan_workload::PowerCut`.

use std::path::Path;

use kentongan_cluster::disk::SyncSite;
use kentongan_workload::PowerCut;
use tempfile::TempDir;

use crate::cluster::nodes::Cluster;
use crate::support::Broker;

/// A broker under the preload. The syncs of the site `ignored` do not count.
pub fn start(ignored: Option<SyncSite>) -> (Broker, PowerCut) {
    let root = TempDir::new().expect("a temporary directory");
    let (power, environment) = prepare(root.path(), ignored);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let data = power.data_dir().strip_prefix(root.path()).expect("within it").to_owned();
    (Broker::within(root, data, &[], &environment), power)
}

/// Three nodes under the preload, whose power is cut together.
pub fn start_cluster(ignored: Option<SyncSite>) -> (Cluster, Vec<PowerCut>) {
    let root = TempDir::new().expect("a temporary directory");
    let prepare = |number| {
        let directory = root.path().join(format!("n{number}"));
        std::fs::create_dir(&directory).expect("created");
        prepare(&directory, ignored)
    };
    let (cuts, environments): (Vec<_>, Vec<_>) = (1..=3).map(prepare).unzip();
    let data_dirs = cuts.iter().map(PowerCut::data_dir).collect();
    (Cluster::within(root, data_dirs, |node| environments[node].clone()), cuts)
}

/// What was not synced is gone, of a process that has just been killed.
pub fn cut(power: &PowerCut) {
    power.cut().expect("what was synced can be read");
}

/// A disk in `directory`, and the environment of the process that writes to it.
fn prepare(directory: &Path, ignored: Option<SyncSite>) -> (PowerCut, Vec<(String, String)>) {
    let prepared = PowerCut::prepare(directory, ignored.map(SyncSite::name));
    let (power, mut environment) = prepared.expect("a file system with times of birth, and a C compiler");
    // Small, so that checkpoints come within a test; but they sync the directory of the segments, which nobody else may do
    // for a moment where it is their own names that are not synced.
    let checkpoints = if ignored == Some(SyncSite::LogSegmentName) { ("100000000", "3600") } else { ("20000", "30") };
    let settings = [
        // On whose behalf a thread syncs, the preload reads in the log.
        ("KENTONGAN_LOG__FILTER", "info,kentongan_cluster::disk=trace"),
        // Small, so that segments begin and end within a test.
        ("KENTONGAN_STORAGE__SEGMENT_BYTES", "65536"),
        ("KENTONGAN_STORAGE__CHECKPOINT_LOG_BYTES", checkpoints.0),
        ("KENTONGAN_STORAGE__CHECKPOINT_SECONDS", checkpoints.1),
        // What the store has of queues is in the store only.
        ("KENTONGAN_SESSION__QUEUE_MEMORY_BYTES_MAX", "0"),
    ];
    environment.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    (power, environment)
}
