//! Resident memory of the broker, from `/proc/PID/status`.

use std::fs;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `VmRSS`.
    pub resident_bytes: u64,
    /// `VmHWM`: the highest `VmRSS` so far, or since [`Memory::reset_peak`].
    pub peak_bytes: u64,
}

impl std::ops::AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        self.resident_bytes += other.resident_bytes;
        self.peak_bytes += other.peak_bytes;
    }
}

impl Memory {
    /// Reads the memory of process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        parse_status(&status)
    }

    /// Lets the peak start again from what is resident now. The kernel may forbid it for a process
    /// of somebody else; then the peak is that of the whole life of the process.
    pub fn reset_peak(pid: u32) -> bool {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok()
    }
}

fn parse_status(status: &str) -> Result<Memory> {
    let kibibytes = |key: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let Some(line) = line else { bail!("the process has no {key}: is it a zombie?") };
        let number = line.split_whitespace().next().unwrap_or_default();
        Ok(number.parse::<u64>().with_context(|| format!("{key} is not a number"))? * 1024)
    };
    Ok(Memory { resident_bytes: kibibytes("VmRSS")?, peak_bytes: kibibytes("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_in_kibibytes() {
        let status = "Name:\tmosquitto\nVmPeak:\t   99 kB\nVmHWM:\t    8192 kB\nVmRSS:\t    4096 kB\n";
        let memory = parse_status(status).unwrap();
        assert_eq!(memory, Memory { resident_bytes: 4096 * 1024, peak_bytes: 8192 * 1024 });
    }

    #[test]
    fn a_zombie_without_memory_is_an_error() {
        assert!(parse_status("Name:\tmosquitto\nState:\tZ (zombie)\n").is_err());
    }
}
