//! What of the machine a node stands on is not a network: its clock and its disk.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Size of the disk that fills up: room for what a run writes, and no more than is filled in a moment.
const DISK_BYTES: u64 = 192 << 20;

/// What is preloaded into nodes whose clock is set or whose syncs fail.
#[derive(Debug)]
pub struct Preload {
    library: PathBuf,
    dir: PathBuf,
}

impl Preload {
    /// Compiles it, into a directory that is there.
    pub fn compile(dir: &Path) -> Result<Self> {
        let (source, library) = (dir.join("preload.c"), dir.join("preload.so"));
        fs::write(&source, include_str!("preload.c"))?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([library.as_os_str(), source.as_os_str()]).arg("-ldl");
        let status = compiler.status().context("there is no C compiler `cc`")?;
        ensure!(status.success(), "the C compiler failed: {status}");
        Ok(Self { library, dir: dir.to_owned() })
    }

    /// What a node with this number needs in its environment.
    pub fn environment(&self, node: usize) -> Result<Vec<(String, String)>> {
        self.tell(node, 0, 0)?;
        let text = |path: &Path| path.display().to_string();
        Ok(vec![("LD_PRELOAD".into(), text(&self.library)), ("LAB_FAULTS".into(), text(&self.file(node)))])
    }

    /// From now on the wall clock of a node is so many seconds off, and its syncs fail with this error, if it is not 0.
    pub fn tell(&self, node: usize, clock_seconds: i64, sync_errno: i64) -> Result<()> {
        let file = File::options().write(true).create(true).truncate(false).open(self.file(node))?;
        file.write_all_at(&clock_seconds.to_ne_bytes(), 0)?;
        file.write_all_at(&sync_errno.to_ne_bytes(), 8)?;
        Ok(())
    }

    fn file(&self, node: usize) -> PathBuf {
        self.dir.join(format!("faults-{node}"))
    }
}

/// A small disk. Dropping it takes it away.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one, which takes the rights of root.
    pub fn mount(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let options = std::ffi::CString::new(format!("size={DISK_BYTES}"))?;
        mount("tmpfs", at, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, options.as_c_str())
            .with_context(|| format!("mounting a small disk at {}", at.display()))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Leaves no byte.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.ballast())?;
        let mut chunk = vec![0x55; 1 << 20];
        while !chunk.is_empty() {
            if file.write_all(&chunk).is_err() {
                chunk.truncate(chunk.len() / 2);
            }
        }
        Ok(())
    }

    /// Gives the room back.
    pub fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // In use until the node has ended; then it goes by itself.
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

/// The newest segment of the log in a data directory.
pub fn newest_segment(data: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    gather(data, &mut found)?;
    let is_segment =
        |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("log-"));
    found.retain(is_segment);
    found.sort();
    found.pop().with_context(|| format!("there is no log in {}", data.display()))
}

fn gather(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { gather(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// When the last checkpoint in a data directory ended.
pub fn last_checkpoint(data: &Path) -> Option<SystemTime> {
    let mut found = Vec::new();
    // Files come and go meanwhile; the next look sees them.
    gather(data, &mut found).ok()?;
    let manifests = found.into_iter().filter(|path| path.file_name() == Some(OsStr::new("manifest")));
    manifests.filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max()
}

/// Appends to a file what nobody synced.
pub fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(File::options().append(true).open(path)?.write_all(bytes)?)
}

/// Somewhere in the middle of what was written to a file, which may be followed by room that was allocated in advance.
pub fn middle(path: &Path) -> Result<u64> {
    let content = fs::read(path)?;
    let end = content.iter().rposition(|byte| *byte != 0).with_context(|| format!("{} is empty", path.display()))?;
    Ok(end as u64 / 2)
}

/// Flips a bit; again, and it is as before.
pub fn flip(path: &Path, at: u64, bit: u8) -> Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(&[byte[0] ^ (1 << (bit % 8))])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_that_is_flipped_twice_is_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log-0");
        fs::write(&path, [1, 2, 3]).unwrap();
        flip(&path, 1, 4).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [1, 2 ^ 16, 3]);
        flip(&path, 1, 4).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn the_newest_segment_is_found_wherever_the_log_lies() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::create_dir(&log).unwrap();
        for name in ["log-00000001", "log-00000002", "manifest"] {
            fs::write(log.join(name), []).unwrap();
        }
        assert_eq!(newest_segment(dir.path()).unwrap(), log.join("log-00000002"));
        assert!(last_checkpoint(dir.path()).is_some());
    }

    /// What a preloaded program says of the time.
    #[test]
    fn a_preloaded_clock_is_off_and_syncs_fail() {
        let dir = tempfile::tempdir().unwrap();
        let preload = Preload::compile(dir.path()).unwrap();
        let environment = preload.environment(3).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
            command.output().unwrap()
        };
        let hour = || -> i64 {
            let output = run("date", &["+%s"]);
            let seconds: i64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
            let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs().cast_signed();
            (seconds - now + 60) / 3600
        };
        let file = dir.path().join("x");
        fs::write(&file, []).unwrap();
        let syncs = || run("sync", &[file.to_str().unwrap()]).status.success();
        assert_eq!((hour(), syncs()), (0, true));
        preload.tell(3, 3600, 5).unwrap();
        assert_eq!((hour(), syncs()), (1, false));
    }
}
