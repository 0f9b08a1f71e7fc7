//! What the disk does by itself: appending a little to a file and syncing it, as a log does.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{Latency, LatencySummary};

/// Bytes appended before each sync.
const WRITE_BYTES: usize = 4096;

/// From the beginning of one probe beside a load to the next.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// How many times a second something can be appended and synced in `dir`, one after the other, for `length`.
pub fn syncs_per_second(dir: &Path, length: Duration) -> Result<f64> {
    let mut file = tempfile::tempfile_in(dir)?;
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < length {
        append_and_sync(&mut file)?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// A thread that probes the disk beside a load.
#[derive(Debug)]
pub struct DiskProber {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Latency>>,
}

impl DiskProber {
    /// Begins to probe in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        let mut file = tempfile::tempfile_in(dir)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            let mut latency = Latency::default();
            while !ends.load(Ordering::Relaxed) {
                let begun = Instant::now();
                append_and_sync(&mut file)?;
                latency.record(begun.elapsed().as_nanos() as u64);
                thread::sleep(PROBE_INTERVAL.saturating_sub(begun.elapsed()));
            }
            Ok(latency)
        });
        Ok(Self { is_over, thread })
    }

    /// How long the probes took.
    pub fn finish(self) -> Result<LatencySummary> {
        self.is_over.store(true, Ordering::Relaxed);
        let latency = self.thread.join().map_err(|_| anyhow!("the thread that probed the disk panicked"))?;
        Ok(latency?.summary())
    }
}

fn append_and_sync(file: &mut File) -> Result<()> {
    file.write_all(&[0x5A; WRITE_BYTES]).and_then(|()| file.sync_data()).context("probing the disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_probed_until_told_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        assert!(syncs_per_second(dir.path(), Duration::from_millis(20)).unwrap() > 0.0);
        let summary = DiskProber::start(dir.path()).unwrap().finish().unwrap();
        assert!(summary.count == 0 || summary.max_us > 0.0);
    }
}
