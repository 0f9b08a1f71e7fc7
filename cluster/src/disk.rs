//! Files as the log and the manifest use them, behind a trait, so that a simulated disk can lose and damage what a real
//! one might.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file that is appended to.
pub trait AppendFile: Send {
    /// Adds bytes at the end. They may be lost until [`Self::sync`].
    ///
    /// # Errors
    /// Those of the disk; some of the bytes may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything appended survive a power cut.
    ///
    /// # Errors
    /// Those of the disk. What was not synced before must then be taken for lost: a second try proves nothing.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file to `length` bytes.
    ///
    /// # Errors
    /// Those of the disk.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// One directory of files.
pub trait Disk: Send + Sync {
    /// Opens a file for appending, made if it is not there.
    ///
    /// # Errors
    /// Those of the disk.
    fn append_to(&self, name: &str) -> io::Result<Box<dyn AppendFile>>;

    /// All of a file.
    ///
    /// # Errors
    /// Those of the disk; `NotFound`.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Names of all files, sorted.
    ///
    /// # Errors
    /// Those of the disk.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the disk.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// Those of the disk.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes creations, removals and renames survive a power cut.
    ///
    /// # Errors
    /// Those of the disk.
    fn sync_directory(&self) -> io::Result<()>;

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// Those of the disk.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// Makes a directory whose name survives a power cut.
///
/// # Errors
/// Those of the file system.
pub fn make_durable_directory(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// A directory of the real file system.
#[derive(Debug, Clone)]
pub struct RealDisk {
    directory: PathBuf,
}

impl RealDisk {
    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(directory: &Path) -> io::Result<Self> {
        make_durable_directory(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }
}

struct RealFile(File);

impl AppendFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}

impl Disk for RealDisk {
    fn append_to(&self, name: &str) -> io::Result<Box<dyn AppendFile>> {
        let file = OpenOptions::new().append(true).create(true).open(self.directory.join(name))?;
        Ok(Box::new(RealFile(file)))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.directory.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::statvfs(&self.directory)?;
        Ok(space.f_bavail * space.f_frsize)
    }
}

#[derive(Debug, Clone, Default)]
struct SimFile {
    bytes: Vec<u8>,
    /// What a power cut leaves at least.
    synced: usize,
}

#[derive(Debug, Default)]
struct SimState {
    files: BTreeMap<String, Arc<Mutex<SimFile>>>,
    /// The directory as a power cut leaves it.
    durable: BTreeMap<String, Arc<Mutex<SimFile>>>,
    free: Option<u64>,
    operations: u64,
    /// Operations from this number on fail: the power is gone.
    power_until: Option<u64>,
    /// Syncs that do nothing, by name of the site, to prove that tests would notice.
    ignored_sync: Option<&'static str>,
}

/// A disk in memory that can lose what was not synced, tear the last write, run full and fail.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<SimState>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// After so many more operations the power is gone: each further one fails.
    pub fn cut_power_after(&self, operations: u64) {
        let mut state = locked(&self.state);
        state.power_until = Some(state.operations + operations);
    }

    /// Bytes that can still be written.
    pub fn set_free_bytes(&self, free: Option<u64>) {
        locked(&self.state).free = free;
    }

    /// Makes one kind of sync do nothing: `"file"` or `"directory"`.
    pub fn ignore_sync(&self, kind: Option<&'static str>) {
        locked(&self.state).ignored_sync = kind;
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        locked(&self.state).operations
    }

    /// The power comes back: what was not synced is gone, but for a prefix of `torn` bytes of each file's unsynced end.
    pub fn power_cycle(&self, torn: impl Fn(&str, usize) -> usize) {
        let mut state = locked(&self.state);
        let mut files = BTreeMap::new();
        for (name, file) in &state.durable {
            let file = locked(file);
            let unsynced = file.bytes.len() - file.synced;
            let kept = file.synced + torn(name, unsynced).min(unsynced);
            let bytes = file.bytes[..kept].to_vec();
            files.insert(name.clone(), Arc::new(Mutex::new(SimFile { bytes, synced: kept })));
        }
        state.durable.clone_from(&files);
        state.files = files;
        state.power_until = None;
    }

    /// Changes a file's bytes behind everybody's back.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let file = locked(&self.state).files.get(name).cloned();
        if let Some(file) = file {
            let mut file = locked(&file);
            change(&mut file.bytes);
            file.synced = file.bytes.len();
        }
    }

    fn operate(&self) -> io::Result<MutexGuard<'_, SimState>> {
        let mut state = locked(&self.state);
        state.operations += 1;
        if state.power_until.is_some_and(|until| state.operations > until) {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(state)
    }
}

struct SimAppend {
    disk: SimDisk,
    file: Arc<Mutex<SimFile>>,
}

impl AppendFile for SimAppend {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.operate()?;
        if let Some(free) = &mut state.free {
            if (bytes.len() as u64) > *free {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *free -= bytes.len() as u64;
        }
        locked(&self.file).bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let state = self.disk.operate()?;
        if state.ignored_sync != Some("file") {
            let mut file = locked(&self.file);
            file.synced = file.bytes.len();
        }
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        drop(self.disk.operate()?);
        let mut file = locked(&self.file);
        file.bytes.truncate(length as usize);
        file.synced = file.synced.min(file.bytes.len());
        Ok(())
    }
}

impl Disk for SimDisk {
    fn append_to(&self, name: &str) -> io::Result<Box<dyn AppendFile>> {
        let mut state = self.operate()?;
        let file = Arc::clone(state.files.entry(name.to_owned()).or_default());
        drop(state);
        Ok(Box::new(SimAppend { disk: self.clone(), file }))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.operate()?;
        let file = state.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(locked(file).bytes.clone())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.operate()?.files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate()?.files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.operate()?;
        if state.ignored_sync != Some("directory") {
            state.durable = state.files.clone();
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.operate()?.free.unwrap_or(u64::MAX))
    }
}
