//! A power cut: the process is killed, and of its disk only what had been synced is left.
//!
//! `kill -9` keeps the page cache, so it cannot show that a sync is missing. `powercut.c`, preloaded, remembers what each
//! sync made safe; see there.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use kentongan_cluster::disk::SyncSite;
use tempfile::TempDir;

use std::os::unix::fs::MetadataExt as _;

use crate::cluster::nodes::Cluster;
use crate::support::Broker;

/// The data directory, in that of the test.
const DATA: &str = "disk/var/data";

/// A directory whose power can be cut.
pub struct PowerCut {
    directory: PathBuf,
}

impl PowerCut {
    /// A broker under the preload. The syncs of the site `ignored` do not count.
    pub fn start(ignored: Option<SyncSite>) -> (Broker, Self) {
        let root = TempDir::new().expect("a temporary directory");
        let (own, environment) = Self::prepare(root.path(), ignored);
        let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        (Broker::within(root, DATA, &[], &environment), own)
    }

    /// Three nodes under the preload, whose power is cut together.
    pub fn start_cluster(ignored: Option<SyncSite>) -> (Cluster, Vec<Self>) {
        let root = TempDir::new().expect("a temporary directory");
        let prepare = |number| {
            let directory = root.path().join(format!("n{number}"));
            fs::create_dir(&directory).expect("created");
            Self::prepare(&directory, ignored)
        };
        let (cuts, environments): (Vec<_>, Vec<_>) = (1..=3).map(prepare).unzip();
        let data_dirs = cuts.iter().map(|cut: &Self| cut.directory.join(DATA)).collect();
        (Cluster::within(root, data_dirs, |node| environments[node].clone()), cuts)
    }

    /// A disk in `directory`, and the environment of the process that writes to it.
    fn prepare(directory: &Path, ignored: Option<SyncSite>) -> (Self, Vec<(String, String)>) {
        let directory = directory.to_owned();
        let library = directory.join("powercut.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/powercut.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(source)
            .arg("-ldl")
            .status()
            .expect("a C compiler");
        assert!(compiled.success());
        let own = Self { directory };
        for kind in ["files", "directories"] {
            fs::create_dir_all(own.shadow().join(kind)).expect("created");
        }
        fs::create_dir(own.disk()).expect("created");
        own.remember(&own.disk());
        let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        // Small, so that checkpoints come within a test; but they sync the directory of the segments, which nobody else may do
        // for a moment where it is their own names that are not synced.
        let checkpoints =
            if ignored == Some(SyncSite::LogSegmentName) { ("100000000", "3600") } else { ("20000", "30") };
        let environment = [
            ("LD_PRELOAD", text(library)),
            ("POWERCUT_DIR", text(own.disk())),
            ("POWERCUT_SHADOW", text(own.shadow())),
            ("POWERCUT_IGNORE", ignored.map_or("", SyncSite::name).to_owned()),
            // On whose behalf a thread syncs, the preload reads in the log.
            ("KENTONGAN_LOG__FILTER", "info,kentongan_cluster::disk=trace".to_owned()),
            // Small, so that segments begin and end within a test.
            ("KENTONGAN_STORAGE__SEGMENT_BYTES", "65536".to_owned()),
            ("KENTONGAN_STORAGE__CHECKPOINT_LOG_BYTES", checkpoints.0.to_owned()),
            ("KENTONGAN_STORAGE__CHECKPOINT_SECONDS", checkpoints.1.to_owned()),
            // What the store has of queues is in the store only.
            ("KENTONGAN_SESSION__QUEUE_MEMORY_BYTES_MAX", "0".to_owned()),
        ];
        (own, environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Only this exists before the broker starts: its data directory lies deeper.
    fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    fn shadow(&self) -> PathBuf {
        self.directory.join("shadow")
    }

    /// Puts the disk back together from what was safe, for the broker that has just been killed.
    pub fn cut(&self) {
        let rebuilt = self.directory.join("rebuilt");
        self.rebuild(&self.disk(), &rebuilt);
        fs::remove_dir_all(self.disk()).expect("removed");
        fs::rename(&rebuilt, self.disk()).expect("renamed");
        for kind in ["files", "directories"] {
            fs::remove_dir_all(self.shadow().join(kind)).expect("removed");
            fs::create_dir_all(self.shadow().join(kind)).expect("created");
        }
        self.remember(&self.disk());
    }

    fn rebuild(&self, from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("created");
        // Never synced: nothing in it is sure to be there.
        let names = fs::read_to_string(self.shadow().join("directories").join(key(from))).unwrap_or_default();
        for (key, name) in names.lines().filter_map(|line| line.split_once(' ')) {
            let (old, new) = (from.join(name), to.join(name));
            if self.shadow().join("directories").join(key).exists() || old.is_dir() {
                self.rebuild(&old, &new);
            } else {
                // Its name was safe before its content ever was: an empty file.
                let content = fs::read(self.shadow().join("files").join(key)).unwrap_or_default();
                fs::write(new, content).expect("written");
            }
        }
    }

    /// What a process finds at its start is safe.
    fn remember(&self, directory: &Path) {
        let mut names = String::new();
        for entry in fs::read_dir(directory).expect("read") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
            writeln!(names, "{} {name}", key(&path)).expect("a string");
            if path.is_dir() {
                self.remember(&path);
            } else {
                fs::copy(&path, self.shadow().join("files").join(key(&path))).expect("copied");
            }
        }
        fs::write(self.shadow().join("directories").join(key(directory)), names).expect("written");
    }
}

fn key(path: &Path) -> String {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return String::new();
    };
    let born = metadata.created().expect("a file system with times of birth");
    let born = born.duration_since(UNIX_EPOCH).expect("after 1970");
    format!("{}-{}-{}", metadata.ino(), born.as_secs(), born.subsec_nanos())
}
