//! What a process may have of the CPU at most, as if it ran on a small machine of its own: by a control group of Linux.
//!
//! Nodes of a cluster that share the cores of one machine take them from each other, and what one of them does not need the others
//! have. Where each is held to so much, three nodes are to one broker what three machines are to one of the same size.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail, ensure};

/// In which a process may use up what it has; then it stands until the next. The kernel's own 100 ms would show as latency.
const PERIOD_US: u32 = 10_000;

/// The least share of a core that the kernel takes for such a period.
const CORES_MIN: f64 = 0.1;

/// A control group with one process in it. Dropping it, once that has ended, removes it.
#[derive(Debug)]
pub struct Quota(PathBuf);

impl Quota {
    /// Holds a process and all of its threads to so many cores. The process needs nothing for that; this one needs the right to make
    /// control groups.
    pub fn of(pid: u32, cores: f64) -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        ensure!(cores >= CORES_MIN, "a process needs {CORES_MIN} of a core at least");
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading what is mounted")?;
        let Some(hierarchy) = Hierarchy::of(&mounts) else {
            bail!("this system has no control groups that bound the CPU");
        };
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("kentongan-loadtest-{}-{number}", std::process::id());
        let quota_us = (cores * f64::from(PERIOD_US)).round() as u64;
        hierarchy.make(&name, quota_us, pid).with_context(|| {
            format!("making a control group in {} (root may, in a container often not)", hierarchy.root().display())
        })
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // One that stays bounds nothing any more, and who removes it by hand is not hindered.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where control groups that bound the CPU are made.
#[derive(Debug, PartialEq, Eq)]
enum Hierarchy {
    /// That of the controller `cpu`.
    V1(PathBuf),
    /// The only one.
    V2(PathBuf),
}

impl Hierarchy {
    /// By what stands in `/proc/self/mountinfo`. Where both are mounted, the first version has the controllers.
    fn of(mounts: &str) -> Option<Self> {
        let mut unified = None;
        for line in mounts.lines() {
            let (Some(place), Some((_, about))) = (line.split(' ').nth(4), line.split_once(" - ")) else {
                continue;
            };
            let mut about = about.split(' ');
            match (about.next(), about.nth(1)) {
                (Some("cgroup"), Some(options)) if options.split(',').any(|option| option == "cpu") => {
                    return Some(Self::V1(place.into()));
                }
                (Some("cgroup2"), _) => unified = Some(Self::V2(place.into())),
                _ => {}
            }
        }
        unified
    }

    fn root(&self) -> &Path {
        match self {
            Self::V1(root) | Self::V2(root) => root,
        }
    }

    fn make(&self, name: &str, quota_us: u64, pid: u32) -> Result<Quota> {
        if let Self::V2(root) = self {
            fs::write(root.join("cgroup.subtree_control"), "+cpu")?;
        }
        let group = self.root().join(name);
        fs::create_dir(&group)?;
        let quota = Quota(group);
        match self {
            Self::V1(_) => {
                fs::write(quota.0.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
                fs::write(quota.0.join("cpu.cfs_quota_us"), quota_us.to_string())?;
            }
            Self::V2(_) => fs::write(quota.0.join("cpu.max"), format!("{quota_us} {PERIOD_US}"))?,
        }
        fs::write(quota.0.join("cgroup.procs"), pid.to_string())?;
        Ok(quota)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_made_where_the_controller_is() {
        let first = "30 23 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n";
        let sets = "31 23 0:27 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n";
        let second = "29 23 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let v1 = Some(Hierarchy::V1("/sys/fs/cgroup/cpu".into()));
        assert_eq!(Hierarchy::of(&format!("{second}{sets}{first}")), v1);
        assert_eq!(Hierarchy::of(&format!("{sets}{second}")), Some(Hierarchy::V2("/sys/fs/cgroup".into())));
        assert_eq!(Hierarchy::of(sets), None);
        assert_eq!(Hierarchy::of("what is this\n - \n"), None);
    }

    /// As the kernel's files would be, in a directory of its own.
    #[test]
    fn a_group_says_how_much_of_each_period_its_process_has() {
        let dir = tempfile::tempdir().expect("a directory");
        let read = |name: &str| fs::read_to_string(dir.path().join("g").join(name)).expect(name);
        let quota = Hierarchy::V2(dir.path().into()).make("g", 4_000, 7).expect("a group");
        assert_eq!((read("cpu.max"), read("cgroup.procs")), ("4000 10000".into(), "7".into()));
        std::mem::forget(quota);
        fs::remove_dir_all(dir.path().join("g")).expect("removed");
        let quota = Hierarchy::V1(dir.path().into()).make("g", 4_000, 7).expect("a group");
        assert_eq!((read("cpu.cfs_quota_us"), read("cpu.cfs_period_us")), ("4000".into(), "10000".into()));
        assert_eq!(read("cgroup.procs"), "7");
        std::mem::forget(quota);
        assert!(Quota::of(7, 0.05).is_err(), "less than the kernel takes");
    }
}
