//! Files as the log and the manifest use them, behind a trait, so that a simulated disk can lose and damage what a real
//! one might.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

mod site;
#[cfg(test)]
mod tests;

pub use site::SyncSite;

/// A file that is appended to.
///
/// Its end is where it ended when it was opened, and moves with what is appended and cut off. Behind it there may be room that was
/// reserved.
pub trait AppendFile: Send {
    /// Adds bytes at the end. They may be lost until [`Self::sync`].
    ///
    /// # Errors
    /// Those of the disk; some of the bytes may have been written, and the end stays where it was.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file at least `until` bytes long, by zeros behind its end, which stays where it is: what is appended up to there
    /// changes neither the file's length nor its blocks, so that a sync has nothing to write but the bytes. The zeros may be lost,
    /// or a part of them, until [`Self::sync`]. Whoever opens the file again finds them before its end.
    ///
    /// # Errors
    /// Those of the disk. What was appended is as safe as before, and more can be.
    fn reserve(&mut self, until: u64) -> io::Result<()>;

    /// Makes everything appended survive a power cut.
    ///
    /// # Errors
    /// Those of the disk. What was not synced before must then be taken for lost: a second try proves nothing.
    fn sync(&mut self, site: SyncSite) -> io::Result<()>;

    /// Cuts the file to `length` bytes, and what was reserved behind them.
    ///
    /// # Errors
    /// Those of the disk.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// A file that is read from, and that stays there for this reader when its name is gone.
pub trait ReadFile: Send + Sync {
    /// What stands there from an offset on: so many bytes, or fewer at its end. Opens nothing.
    ///
    /// # Errors
    /// Those of the disk.
    fn read_at(&self, offset: u64, count: usize) -> io::Result<Vec<u8>>;
}

/// One directory of files.
pub trait Disk: Send + Sync {
    /// Opens a file for appending, made if it is not there.
    ///
    /// # Errors
    /// Those of the disk.
    fn append_to(&self, name: &str) -> io::Result<Box<dyn AppendFile>>;

    /// All of a file, as the disk has it: [`forget_cached`].
    ///
    /// # Errors
    /// Those of the disk; `NotFound`.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Opens a file for reading, for one who reads a bit of it now and then: what is open needs no descriptor any more.
    ///
    /// # Errors
    /// Those of the disk; `NotFound`.
    fn open_to_read(&self, name: &str) -> io::Result<Box<dyn ReadFile>>;

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
    fn sync_directory(&self, site: SyncSite) -> io::Result<()>;

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// Those of the disk.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Whether the process could open as many files now as a checkpoint wants at once, so that it need not be begun to find out.
    fn can_open_more(&self) -> bool {
        true
    }

    /// A number that belongs to `of` and that nobody outside can know, the same each time until the process ends.
    fn secret(&self, of: u64) -> u64 {
        static KEYS: OnceLock<RandomState> = OnceLock::new();
        KEYS.get_or_init(RandomState::new).hash_one(of)
    }
}

/// Who may use a file that is made here: messages, and what a session may, are nobody else's.
pub(crate) const FILE_MODE: u32 = 0o600;

/// Makes a directory, with the ancestors it needs, so that their names survive a power cut. Only its own user may use what is
/// made; what there is already stays as it is, for somebody else may have a reason.
///
/// # Errors
/// Those of the file system.
pub fn make_durable_directory(directory: &Path, site: SyncSite) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let made: Vec<_> = directory.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    if made.is_empty() {
        // Whoever made it may have ended before the sync. If it lies where we may not look, we did not make it.
        return match sync_parent(directory, site) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            outcome => outcome,
        };
    }
    made.into_iter().try_for_each(|path| sync_parent(path, site))
}

fn sync_parent(path: &Path, site: SyncSite) -> io::Result<()> {
    match path.parent() {
        None => Ok(()), // The root was not made by anybody.
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new("."), site),
        Some(parent) => sync_directory(parent, site),
    }
}

/// Makes creations, removals and renames in a directory survive a power cut.
///
/// # Errors
/// Those of the file system.
pub(crate) fn sync_directory(directory: &Path, site: SyncSite) -> io::Result<()> {
    let directory = File::open(directory)?;
    site.sync(|| directory.sync_all())
}

/// Sees to it that what is read of a file is what the disk has. After a sync that failed, the system keeps the bytes in its memory as if
/// they were written, and a process that starts then would take them for safe: its own syncs succeed, for there is nothing left to write,
/// and a power cut leaves a hole under what it acknowledged.
///
/// # Errors
/// Those of the disk.
pub(crate) fn forget_cached(file: &File) -> io::Result<()> {
    // What is still to be written would stay. Where nothing can be written, nothing is.
    match file.sync_data() {
        Err(error) if !matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::InvalidInput) => {
            return Err(error);
        }
        _ => {}
    }
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// [`forget_cached`] of all files in a directory and those below it.
///
/// # Errors
/// Those of the file system.
pub(crate) fn forget_cached_in(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
        let kind = entry?;
        if kind.is_dir() {
            forget_cached_in(&path)?;
        } else if kind.is_file() {
            forget_cached(&File::open(path)?)?;
        }
    }
    Ok(())
}

/// Whether the process, or the system, had no descriptor left for a file that was to be opened: nothing was done, and the same may be
/// tried again.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Files that a checkpoint may have open at once, beside those that stay open: the store's new journal, and what it writes and merges.
const CHECKPOINT_FILES: usize = 8;

/// A directory of the real file system.
#[derive(Debug, Clone)]
pub struct RealDisk {
    directory: PathBuf,
    /// The same, kept open: a new name is made safe when no descriptor is left, too. `None` until it is there.
    handle: Arc<OnceLock<File>>,
}

impl RealDisk {
    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(directory: &Path) -> io::Result<Self> {
        make_durable_directory(directory, SyncSite::LogDirectory)?;
        let disk = Self::existing(directory);
        disk.handle()?;
        Ok(disk)
    }

    /// One that is there, and whose name is safe.
    #[must_use]
    pub fn existing(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), handle: Arc::default() }
    }

    fn handle(&self) -> io::Result<&File> {
        match self.handle.get() {
            Some(handle) => Ok(handle),
            None => {
                let handle = File::open(&self.directory)?;
                Ok(self.handle.get_or_init(|| handle))
            }
        }
    }
}

struct RealFile {
    file: File,
    /// Where the next bytes go.
    end: u64,
    /// Of the file, with what is reserved.
    length: u64,
}

/// What is reserved is written so much at a time.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

impl RealFile {
    fn write_zeros(&mut self, until: u64) -> io::Result<()> {
        while self.length < until {
            let count = (until - self.length).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..count as usize], self.length)?;
            self.length += count;
        }
        Ok(())
    }
}

impl AppendFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        self.length = self.length.max(self.end);
        Ok(())
    }

    fn reserve(&mut self, until: u64) -> io::Result<()> {
        // Not `fallocate`: the first write to what was only allocated changes the extents of the file.
        let before = self.length;
        self.write_zeros(until).inspect_err(|_| {
            // What there was no room for should not take up what was left. If it stays, it is in nobody's way.
            if self.file.set_len(before).is_ok() {
                self.length = before;
            }
        })
    }

    fn sync(&mut self, site: SyncSite) -> io::Result<()> {
        site.sync(|| self.file.sync_data())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        (self.end, self.length) = (length, length);
        Ok(())
    }
}

impl ReadFile for File {
    fn read_at(&self, offset: u64, count: usize) -> io::Result<Vec<u8>> {
        let (mut bytes, mut read) = (vec![0; count], 0);
        while read < count {
            match std::os::unix::fs::FileExt::read_at(self, &mut bytes[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }
}

impl Disk for RealDisk {
    fn append_to(&self, name: &str) -> io::Result<Box<dyn AppendFile>> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(FILE_MODE);
        let file = options.open(self.directory.join(name))?;
        let length = file.metadata()?.len();
        Ok(Box::new(RealFile { file, end: length, length }))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.directory.join(name))?;
        forget_cached(&file)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn open_to_read(&self, name: &str) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(File::open(self.directory.join(name))?))
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

    fn sync_directory(&self, site: SyncSite) -> io::Result<()> {
        let directory = self.handle()?;
        site.sync(|| directory.sync_all())
    }

    fn can_open_more(&self) -> bool {
        let spare: io::Result<Vec<File>> = (0..CHECKPOINT_FILES).map(|_| self.handle()?.try_clone()).collect();
        // What else goes wrong says so where it matters.
        !spare.is_err_and(|error| is_out_of_descriptors(&error))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::statvfs(&self.directory)?;
        Ok(space.f_bavail * space.f_frsize)
    }
}

/// What a power cut leaves of what was not synced. It may be anything: these are the kinds that have gone wrong elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// Nothing.
    Lost,
    /// The beginning, and half of the room that was reserved.
    Torn,
    /// The end, behind zeros: blocks are not written in order.
    Holed,
    /// All.
    Kept,
}

#[derive(Debug, Clone, Default)]
struct SimFile {
    bytes: Vec<u8>,
    /// Up to where they were appended. Behind are the zeros that were reserved.
    written: usize,
    /// How much of what was appended a power cut leaves at least.
    synced: usize,
    /// How long it leaves the file at least: what follows `synced` are zeros that were reserved, whatever was appended over them.
    safe_length: usize,
    /// All that was synced, if part of it was cut off since: that may be undone.
    before_truncation: Option<Vec<u8>>,
}

impl SimFile {
    fn append(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(bytes);
        self.written = end;
    }

    fn reserve(&mut self, until: usize) {
        if self.bytes.len() < until {
            self.bytes.resize(until, 0);
        }
    }

    fn sync(&mut self) {
        self.synced = self.written;
        self.safe_length = self.bytes.len();
        self.before_truncation = None;
    }

    fn truncate(&mut self, length: usize) {
        if length < self.safe_length {
            let before = self.after_power_cut(Unsynced::Lost).bytes;
            self.before_truncation.get_or_insert(before);
            self.safe_length = length;
            self.synced = self.synced.min(length);
        }
        self.bytes.truncate(length);
        self.written = self.written.min(length);
    }

    /// A file that has these bytes, and has them safely.
    fn safe(bytes: Vec<u8>) -> Self {
        let length = bytes.len();
        Self { bytes, written: length, synced: length, safe_length: length, before_truncation: None }
    }

    /// The first `count` bytes, and behind them zeros up to `length`.
    fn beginning(&self, count: usize, length: usize) -> Vec<u8> {
        let mut bytes = self.bytes[..count].to_vec();
        bytes.resize(length.max(count), 0);
        bytes
    }

    fn after_power_cut(&self, unsynced: Unsynced) -> Self {
        let half = self.synced + (self.written - self.synced) / 2;
        Self::safe(match (unsynced, &self.before_truncation) {
            (Unsynced::Lost, Some(before)) => before.clone(),
            (Unsynced::Lost, None) => self.beginning(self.synced, self.safe_length),
            (Unsynced::Torn, _) => self.beginning(half, self.safe_length + (self.bytes.len() - self.safe_length) / 2),
            (Unsynced::Holed, _) => {
                let mut bytes = self.bytes.clone();
                bytes[self.synced..half].fill(0);
                bytes
            }
            (Unsynced::Kept, _) => self.bytes.clone(),
        })
    }
}

type SharedFile = Arc<Mutex<SimFile>>;
type Names = BTreeMap<String, SharedFile>;

/// What a test does at each operation of a disk.
type Watch = Arc<dyn Fn(&SimDisk) + Send + Sync>;

#[derive(Default)]
struct SimState {
    files: Names,
    /// The directory as it was synced, and after each change since.
    earlier: Vec<Names>,
    free: Option<u64>,
    operations: u64,
    power_cuts: u64,
    /// Operations from this number on fail: the power is gone.
    power_until: Option<u64>,
    /// The syncs that do nothing, to prove that tests would notice.
    ignored: Option<SyncSite>,
    /// The file that cannot be removed.
    stuck: Option<(String, io::ErrorKind)>,
    watch: Option<Watch>,
    /// No file can be opened.
    no_descriptors: bool,
}

impl SimState {
    fn change_names(&mut self, change: impl FnOnce(&mut Names)) {
        self.earlier.push(self.files.clone());
        change(&mut self.files);
    }

    /// Takes room for a file of `length` bytes to be `until` bytes long.
    fn take_room(&mut self, length: usize, until: usize) -> io::Result<()> {
        if let Some(free) = &mut self.free {
            let taken = until.saturating_sub(length) as u64;
            *free = free.checked_sub(taken).ok_or(io::ErrorKind::StorageFull)?;
        }
        Ok(())
    }

    /// The directory as a power cut leaves it.
    fn names_after_power_cut(&self, unsynced: Unsynced) -> &Names {
        match unsynced {
            Unsynced::Lost => self.earlier.first(),
            Unsynced::Torn => self.earlier.get(self.earlier.len().div_ceil(2)),
            Unsynced::Holed | Unsynced::Kept => None,
        }
        .unwrap_or(&self.files)
    }
}

impl std::fmt::Debug for SimState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SimState").field("files", &self.files).finish_non_exhaustive()
    }
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

    /// Lets no more files be opened, or again as many as there are.
    pub fn set_out_of_descriptors(&self, is_out: bool) {
        locked(&self.state).no_descriptors = is_out;
    }

    /// Makes the syncs of one site do nothing.
    pub fn ignore_sync(&self, site: Option<SyncSite>) {
        locked(&self.state).ignored = site;
    }

    /// Makes each try to remove a file fail.
    pub fn stick(&self, stuck: Option<(&str, io::ErrorKind)>) {
        locked(&self.state).stuck = stuck.map(|(name, kind)| (name.to_owned(), kind));
    }

    /// Calls `watch` before each operation, with this disk.
    pub fn watch(&self, watch: impl Fn(&Self) + Send + Sync + 'static) {
        locked(&self.state).watch = Some(Arc::new(watch));
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        locked(&self.state).operations
    }

    /// The power comes back: what was not synced is gone, but for a prefix of `torn` bytes of what was appended to each file, and all
    /// of it is there with the room that was reserved behind it. What is gone of appends to room that was synced are zeros.
    pub fn power_cycle(&self, torn: impl Fn(&str, usize) -> usize) {
        let mut state = locked(&self.state);
        let mut files = Names::new();
        for (name, file) in state.names_after_power_cut(Unsynced::Lost) {
            let file = locked(file);
            let unsynced = file.written - file.synced;
            let left = match torn(name, unsynced) {
                0 => file.after_power_cut(Unsynced::Lost),
                kept if kept < unsynced => SimFile::safe(file.beginning(file.synced + kept, file.safe_length)),
                _ => file.after_power_cut(Unsynced::Kept),
            };
            files.insert(name.clone(), Arc::new(Mutex::new(left)));
        }
        state.files = files;
        state.earlier.clear();
        state.power_until = None;
        state.power_cuts += 1;
    }

    /// Another disk, with what would be left of this one if the power were cut now.
    #[must_use]
    pub fn after_power_cut(&self, names: Unsynced, bytes: Unsynced) -> Self {
        let state = locked(&self.state);
        let left = |file: &SharedFile| Arc::new(Mutex::new(locked(file).after_power_cut(bytes)));
        let files = state.names_after_power_cut(names).iter().map(|(name, file)| (name.clone(), left(file))).collect();
        let (ignored, power_cuts) = (state.ignored, state.power_cuts + 1);
        Self { state: Arc::new(Mutex::new(SimState { files, ignored, power_cuts, ..SimState::default() })) }
    }

    /// Another disk, with what would be left of this one if the process were killed now: everything, but no safer.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let state = locked(&self.state);
        // A file stays one file, however many states of the directory name it.
        let mut copies: BTreeMap<*const Mutex<SimFile>, SharedFile> = BTreeMap::new();
        let mut copy = |names: &Names| -> Names {
            let mut one = |file: &SharedFile| {
                let copied =
                    copies.entry(Arc::as_ptr(file)).or_insert_with(|| Arc::new(Mutex::new(locked(file).clone())));
                Arc::clone(copied)
            };
            names.iter().map(|(name, file)| (name.clone(), one(file))).collect()
        };
        let (files, earlier) = (copy(&state.files), state.earlier.iter().map(&mut copy).collect());
        Self { state: Arc::new(Mutex::new(SimState { files, earlier, ignored: state.ignored, ..SimState::default() })) }
    }

    /// All names and contents: equal if two disks are.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let state = locked(&self.state);
        state.files.iter().map(|(name, file)| (name.clone(), locked(file).bytes.clone())).collect()
    }

    /// Changes a file's bytes behind everybody's back.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let file = locked(&self.state).files.get(name).cloned();
        if let Some(file) = file {
            let mut file = locked(&file);
            change(&mut file.bytes);
            file.written = file.bytes.len();
            file.sync();
        }
    }

    fn operate(&self) -> io::Result<MutexGuard<'_, SimState>> {
        let watch = locked(&self.state).watch.clone();
        if let Some(watch) = watch {
            watch(self);
        }
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
    file: SharedFile,
    /// Where the next bytes go.
    end: usize,
}

impl AppendFile for SimAppend {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.operate()?;
        let mut file = locked(&self.file);
        state.take_room(file.bytes.len(), self.end + bytes.len())?;
        file.append(self.end, bytes);
        self.end += bytes.len();
        Ok(())
    }

    fn reserve(&mut self, until: u64) -> io::Result<()> {
        let mut state = self.disk.operate()?;
        let mut file = locked(&self.file);
        state.take_room(file.bytes.len(), until as usize)?;
        file.reserve(until as usize);
        Ok(())
    }

    fn sync(&mut self, site: SyncSite) -> io::Result<()> {
        let state = self.disk.operate()?;
        if state.ignored != Some(site) {
            locked(&self.file).sync();
        }
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.disk.operate()?;
        let mut file = locked(&self.file);
        let before = file.bytes.len();
        file.truncate(length as usize);
        if let Some(free) = &mut state.free {
            *free += (before - file.bytes.len()) as u64;
        }
        self.end = file.bytes.len();
        Ok(())
    }
}

struct SimRead {
    disk: SimDisk,
    file: SharedFile,
}

impl ReadFile for SimRead {
    fn read_at(&self, offset: u64, count: usize) -> io::Result<Vec<u8>> {
        let _state = self.disk.operate()?;
        let file = locked(&self.file);
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(file.bytes.len());
        Ok(file.bytes[from..from.saturating_add(count).min(file.bytes.len())].to_vec())
    }
}

impl Disk for SimDisk {
    fn append_to(&self, name: &str) -> io::Result<Box<dyn AppendFile>> {
        let mut state = self.operate()?;
        if state.no_descriptors {
            return Err(rustix::io::Errno::MFILE.into());
        }
        if !state.files.contains_key(name) {
            state.change_names(|names| drop(names.insert(name.to_owned(), SharedFile::default())));
        }
        let file = Arc::clone(&state.files[name]);
        drop(state);
        let end = locked(&file).bytes.len();
        Ok(Box::new(SimAppend { disk: self.clone(), file, end }))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.operate()?;
        let file = state.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(locked(file).bytes.clone())
    }

    fn open_to_read(&self, name: &str) -> io::Result<Box<dyn ReadFile>> {
        let state = self.operate()?;
        if state.no_descriptors {
            return Err(rustix::io::Errno::MFILE.into());
        }
        let file = Arc::clone(state.files.get(name).ok_or(io::ErrorKind::NotFound)?);
        drop(state);
        Ok(Box::new(SimRead { disk: self.clone(), file }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.operate()?.files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        if let Some((_, kind)) = state.stuck.as_ref().filter(|(stuck, _)| stuck == name) {
            return Err((*kind).into());
        }
        if !state.files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let length = locked(&state.files[name]).bytes.len() as u64;
        if let Some(free) = &mut state.free {
            *free += length;
        }
        state.change_names(|names| drop(names.remove(name)));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        let file = Arc::clone(state.files.get(from).ok_or(io::ErrorKind::NotFound)?);
        state.change_names(|names| {
            names.remove(from);
            names.insert(to.to_owned(), file);
        });
        Ok(())
    }

    fn sync_directory(&self, site: SyncSite) -> io::Result<()> {
        let mut state = self.operate()?;
        if state.ignored != Some(site) {
            state.earlier.clear();
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.operate()?.free.unwrap_or(u64::MAX))
    }

    fn can_open_more(&self) -> bool {
        !locked(&self.state).no_descriptors
    }

    fn secret(&self, of: u64) -> u64 {
        (of ^ locked(&self.state).power_cuts).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}
