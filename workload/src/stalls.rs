//! Whether the machine let the nodes work.
//!
//! P9 and P12 speak of time, and a node whose threads wait for a processor, or for the disk, as long as a lease lasts is as
//! good as stopped: the machine did it, and no promise is broken. So that is noted as a fault. What the machine did is read
//! from the kernel, and from a file beside those of the nodes; what a node does by itself shows in neither.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kentongan_history::What;

use crate::stage::Stage;

/// Between two looks.
const GLANCE: Duration = Duration::from_millis(250);

/// A thread that waits for a processor for so long in a [`GLANCE`] is late with everything: what it takes to renew a lease
/// goes through several.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// The same of a file that is synced.
const SYNC_MAX: Duration = Duration::from_millis(500);

/// A stall is over when there was none for so long.
const CALM: Duration = Duration::from_secs(1);

/// Numbers of these faults, beside those that are made.
const FIRST_FAULT: u32 = 1_000_000;

/// Looks until the run ends, and then says how long the nodes were stalled.
///
/// # Panics
/// There is no room for a file of a few kilobytes.
pub fn watch(stage: Arc<Stage>) -> JoinHandle<Duration> {
    thread::spawn(move || {
        let mut file = tempfile::tempfile().expect("a temporary file");
        let mut watch = Watch { stage, waited: Vec::new(), stalled: None, faults: FIRST_FAULT, total: Duration::ZERO };
        while !watch.stage.is_over.load(SeqCst) {
            let began = Instant::now();
            let since = watch.stage.recorder.now();
            sync(&mut file);
            let synced_in = began.elapsed();
            thread::sleep(GLANCE.saturating_sub(synced_in));
            let waited = watch.waited_most();
            watch.judge(since, synced_in > SYNC_MAX || waited > WAIT_MAX.max(began.elapsed() * 2 / 5));
        }
        watch.judge_calm(Duration::ZERO);
        watch.total
    })
}

fn sync(file: &mut File) {
    file.write_all(&[0; 64]).expect("there is room");
    file.sync_data().expect("a sound disk");
}

struct Watch {
    stage: Arc<Stage>,
    /// By thread: how long it had waited at the last look.
    waited: Vec<(u32, u64)>,
    /// When a stall was seen first and last.
    stalled: Option<(Instant, Instant)>,
    faults: u32,
    total: Duration,
}

impl Watch {
    /// How long the thread of a node that waited most did so since the last look.
    fn waited_most(&mut self) -> Duration {
        let threads: Vec<_> = self.stage.seats.iter().flat_map(|seat| threads_of(seat.pid.load(SeqCst))).collect();
        let before = std::mem::replace(&mut self.waited, threads);
        let since = |&(thread, waited): &(u32, u64)| {
            let at_last_look = before.iter().find(|(other, _)| *other == thread)?.1;
            Some(waited.saturating_sub(at_last_look))
        };
        Duration::from_nanos(self.waited.iter().filter_map(since).max().unwrap_or(0))
    }

    fn judge(&mut self, since: u64, is_stalled: bool) {
        match (is_stalled, &mut self.stalled) {
            (false, _) => self.judge_calm(CALM),
            (true, Some((_, last))) => *last = Instant::now(),
            (true, None) => {
                self.stalled = Some((Instant::now(), Instant::now()));
                self.faults += 1;
                self.stage.stalls.fetch_add(1, SeqCst);
                let kind = self.stage.recorder.symbol("the machine is busy");
                self.stage.recorder.note_at(since, What::FaultBegan { fault: self.faults, kind });
            }
        }
    }

    /// The stall is over if there was none for so long.
    fn judge_calm(&mut self, calm: Duration) {
        if let Some((began, _)) = self.stalled.take_if(|(_, last)| last.elapsed() >= calm) {
            self.total += began.elapsed();
            self.stage.recorder.note(What::FaultHealed { fault: self.faults });
        }
    }
}

/// The threads of a process, and the nanoseconds that each has waited for a processor. None of one that is gone.
fn threads_of(pid: u32) -> Vec<(u32, u64)> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| {
            let thread = thread.ok()?;
            let statistics = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            let waited = statistics.split(' ').nth(1)?.parse().ok()?;
            Some((thread.file_name().to_str()?.parse().ok()?, waited))
        })
        .collect()
}
