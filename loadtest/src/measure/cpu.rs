//! CPU time of the broker and of ourselves.
//!
//! The kernel keeps nanoseconds per *thread* (`/proc/PID/task/TID/schedstat`) and, per process,
//! only a total in ticks (`/proc/PID/stat`), which however includes threads that have ended. The
//! sum over threads is used, unless the total shows that threads took time with them.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What one thread has used since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ThreadTime {
    on_cpu_ns: u64,
    /// Runnable, but another thread had the CPU.
    waiting_ns: u64,
}

/// The CPU time of a process at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSample {
    threads: BTreeMap<u32, ThreadTime>,
    /// User and system time of all threads, ended ones included.
    total_ticks: u64,
    at_ns: u64,
}

/// The CPU time of a process between two samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuUse {
    /// Nanoseconds on a CPU, all threads.
    pub on_cpu_ns: u64,
    /// Nanoseconds that threads were runnable and waited for a CPU: high when the machine is busy.
    pub waiting_ns: u64,
    /// Nanoseconds between the samples.
    pub elapsed_ns: u64,
    /// `on_cpu_ns` came from the process total (10 ms grain), as threads ended in between.
    pub threads_ended: bool,
}

impl CpuUse {
    /// The share of one core, 1.0 being all of it.
    pub fn share(&self) -> f64 {
        self.on_cpu_ns as f64 / self.elapsed_ns.max(1) as f64
    }
}

/// Two processes at the same time.
impl std::ops::Add for CpuUse {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            on_cpu_ns: self.on_cpu_ns + other.on_cpu_ns,
            waiting_ns: self.waiting_ns + other.waiting_ns,
            elapsed_ns: self.elapsed_ns.max(other.elapsed_ns),
            threads_ended: self.threads_ended || other.threads_ended,
        }
    }
}

impl CpuSample {
    /// Reads the CPU time of process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let tasks = format!("/proc/{pid}/task");
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}: is process {pid} alive?"))? {
            let task = task?;
            let name = task.file_name();
            // A thread may end between the listing and the reading; the total has its time.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else {
                continue;
            };
            if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
                threads.insert(id, parse_schedstat(&text)?);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Ok(Self { threads, total_ticks: parse_stat_ticks(&stat)?, at_ns: super::now_ns() })
    }

    /// What was used from `earlier` until this sample.
    pub fn since(&self, earlier: &Self) -> CpuUse {
        let mut on_cpu_ns = 0;
        let mut waiting_ns = 0;
        for (id, now) in &self.threads {
            let before = earlier.threads.get(id).copied().unwrap_or_default();
            on_cpu_ns += now.on_cpu_ns.saturating_sub(before.on_cpu_ns);
            waiting_ns += now.waiting_ns.saturating_sub(before.waiting_ns);
        }
        let tick_ns = super::SECOND / rustix::param::clock_ticks_per_second();
        let total_ns = self.total_ticks.saturating_sub(earlier.total_ticks) * tick_ns;
        // Both ends of the total are rounded to a tick, so three of them are within its error.
        let threads_ended = total_ns > on_cpu_ns + on_cpu_ns / 50 + 3 * tick_ns;
        if threads_ended {
            on_cpu_ns = total_ns;
        }
        CpuUse { on_cpu_ns, waiting_ns, elapsed_ns: self.at_ns.saturating_sub(earlier.at_ns), threads_ended }
    }
}

/// The CPU time of the calling thread: the generator must show that it was not the bottleneck.
#[derive(Debug, Clone, Copy)]
pub struct OwnCpu {
    thread_ns: u64,
    at_ns: u64,
}

impl OwnCpu {
    /// Reads the clock of the calling thread.
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let thread_ns = time.tv_sec as u64 * super::SECOND + time.tv_nsec as u64;
        Self { thread_ns, at_ns: super::now_ns() }
    }

    /// Nanoseconds since the clock was read.
    pub fn elapsed_ns(&self) -> u64 {
        super::now_ns() - self.at_ns
    }

    /// The share of a core that this thread has used since.
    pub fn share_since(&self) -> f64 {
        let now = Self::now();
        (now.thread_ns - self.thread_ns) as f64 / (now.at_ns - self.at_ns).max(1) as f64
    }
}

/// `on-cpu-ns waiting-ns timeslices`.
fn parse_schedstat(text: &str) -> Result<ThreadTime> {
    let mut fields = text.split_whitespace().map(str::parse::<u64>);
    let mut field = || fields.next().context("schedstat is short")?.context("schedstat is not numeric");
    Ok(ThreadTime { on_cpu_ns: field()?, waiting_ns: field()? })
}

/// Fields 14 and 15, utime and stime. The name (field 2) may itself hold spaces and parentheses.
fn parse_stat_ticks(text: &str) -> Result<u64> {
    let (_, after_name) = text.rsplit_once(')').context("stat has no process name")?;
    let mut fields = after_name.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut field = || fields.next().context("stat is short")?.context("stat is not numeric");
    Ok(field()? + field()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(threads: &[(u32, u64)], total_ticks: u64, at_ns: u64) -> CpuSample {
        let threads = threads.iter().map(|(id, ns)| (*id, ThreadTime { on_cpu_ns: *ns, waiting_ns: 0 })).collect();
        CpuSample { threads, total_ticks, at_ns }
    }

    #[test]
    fn schedstat_is_run_time_then_waiting_time() {
        let time = parse_schedstat("493651 108792 1\n").unwrap();
        assert_eq!(time, ThreadTime { on_cpu_ns: 493_651, waiting_ns: 108_792 });
        assert!(parse_schedstat("").is_err());
        assert!(parse_schedstat("12 x 1").is_err());
    }

    #[test]
    fn stat_is_read_behind_a_hostile_process_name() {
        let stat = "77 (a) b (1 2) S 1 77 77 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 1 0 5 1 1";
        assert_eq!(parse_stat_ticks(stat).unwrap(), 281);
        assert!(parse_stat_ticks("77 (a) S 1").is_err());
    }

    #[test]
    fn threads_are_summed_and_new_ones_count_from_zero() {
        let before = sample(&[(1, 1_000_000_000), (2, 500_000_000)], 150, 0);
        let after = sample(&[(1, 1_400_000_000), (2, 500_000_000), (3, 100_000_000)], 200, 1_000_000_000);
        let used = after.since(&before);
        assert_eq!((used.on_cpu_ns, used.threads_ended), (500_000_000, false));
        assert!((used.share() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn time_of_an_ended_thread_comes_from_the_total() {
        let before = sample(&[(1, 1_000_000_000), (2, 500_000_000)], 150, 0);
        let after = sample(&[(1, 1_100_000_000)], 260, 1_000_000_000);
        let used = after.since(&before);
        assert_eq!((used.on_cpu_ns, used.threads_ended), (1_100_000_000, true));
    }

    #[test]
    fn our_own_process_can_be_read() {
        let before = CpuSample::of(std::process::id()).unwrap();
        let own = OwnCpu::now();
        let mut x = 1u64;
        while CpuSample::of(std::process::id()).unwrap().since(&before).on_cpu_ns < 20_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(own.share_since() > 0.0);
    }
}
