//! What is measured: sequence numbers, latencies, the CPU and memory of processes, and the disk.

mod cpu;
mod disk;
mod latency;
mod memory;
mod sequence;

pub use cpu::{CpuSample, CpuUse, OwnCpu};
pub use disk::{DiskProber, syncs_per_second};
pub use latency::{Latency, LatencySummary};
pub use memory::Memory;
pub use sequence::{Observation, SequenceChecker};

/// Nanoseconds of the monotonic clock, the only clock of a run: send timestamps in payloads,
/// deadlines and pacing all count on it.
#[inline]
pub fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
