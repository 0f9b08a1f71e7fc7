//! The directory of a node: one process at a time, one format, one identity.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::disk::{FILE_MODE, SyncSite, make_durable_directory, sync_directory};
use crate::identity::NodeId;

/// Raised when the layout of the directory changes its meaning.
pub const FORMAT_VERSION: u32 = 3;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The file system said no.
    #[error("data directory {path}: {error}{}", advice(error))]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// Another process has it.
    #[error("data directory {path} is in use by another process: stop that one, or give this one another --data-dir")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Written by another version.
    #[error(
        "data directory {path} has format {found}; this version knows only {FORMAT_VERSION}: use the version that wrote it"
    )]
    OtherFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// `cluster recover` or `cluster restore` did not come to its end there.
    #[error(
        "data directory {path} was to be filled by `kentongan cluster recover` or `restore`, which did not finish: remove it, and run \
         that again"
    )]
    Unfinished {
        /// The directory.
        path: PathBuf,
    },
    /// It is a survivor's, and a new cluster has taken the place of its own.
    #[error(
        "a new cluster was made of what data directory {path} has (`kentongan cluster recover`): start the node of that one, and this \
         node with an empty directory; if that one was given up instead, remove the file {ENDED:?} here"
    )]
    Ended {
        /// The directory.
        path: PathBuf,
    },
    /// It is a copy that is not the node's newest, or that of a node that lives.
    #[error(
        "data directory {path} is an older copy of a node's, or a copy of that of a node that lives: that ended an earlier process. It \
         lacks what the node has acknowledged since. Start this node with an empty one instead; if it is the newest one of its node \
         after all, and no other process of that node runs, remove the file {COPIED:?} here"
    )]
    Copied {
        /// The directory.
        path: PathBuf,
    },
    /// A new cluster begins in a directory of its own.
    #[error("data directory {path} is not empty: name one that is, or that does not exist; nothing was changed")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Not written by us.
    #[error("{path} is not what this program wrote there")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

/// Says that what is in a directory is not all of what was to be put there.
const UNFINISHED: &str = "unfinished";

/// Says that a new cluster goes on with what is in a directory.
const ENDED: &str = "ended";

/// Says that the log may lack what the node acknowledged.
const UNSYNCED: &str = "unsynced";

/// Says that others have heard of a newer one of the same node.
const COPIED: &str = "copied";

/// By which a directory is kept from being started from again.
#[derive(Debug)]
pub struct CopyMark {
    directory: PathBuf,
}

impl CopyMark {
    /// It is an older copy, or a copy of a living node's.
    ///
    /// # Errors
    /// The file system said no.
    pub fn set(&self) -> Result<(), DataDirError> {
        write_number(&self.directory, COPIED, 1)
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Of a directory whose log may lack what the node acknowledged: a process wrote it without syncs, and none has had, since, all that
/// was committed.
#[derive(Debug)]
pub struct UnsyncedLog {
    directory: PathBuf,
}

impl UnsyncedLog {
    /// A process that syncs has had all that was committed.
    ///
    /// # Errors
    /// The file system said no.
    pub fn end(&self) -> Result<(), DataDirError> {
        remove_number(&self.directory, UNSYNCED)
    }
}

/// A data directory, locked for this process until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    node: NodeId,
    incarnation: u64,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be, locks it, checks its format, and counts this start.
    ///
    /// # Errors
    /// It cannot be used; the message says why and what to do.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let opened = Self::open_survivor(path)?;
        let is_there = |name: &str| {
            let mark = path.join(name);
            mark.try_exists().map_err(at(&mark))
        };
        if is_there(ENDED)? {
            return Err(DataDirError::Ended { path: path.to_owned() });
        }
        if is_there(COPIED)? {
            return Err(DataDirError::Copied { path: path.to_owned() });
        }
        Ok(opened)
    }

    /// The same, of a directory that is only to be read.
    ///
    /// # Errors
    /// The same, but for [`DataDirError::Ended`] and [`DataDirError::Copied`].
    pub(crate) fn open_survivor(path: &Path) -> Result<Self, DataDirError> {
        make_durable_directory(path, SyncSite::DataDirectory).map_err(at(path))?;
        let lock = lock(path)?;
        let mark = path.join(UNFINISHED);
        if mark.try_exists().map_err(at(&mark))? {
            return Err(DataDirError::Unfinished { path: path.to_owned() });
        }
        Self::locked(path, lock)
    }

    /// Makes a new one that is to be filled before anybody uses it: until [`Self::finish`], [`Self::open`] refuses it.
    ///
    /// # Errors
    /// There is something in it, or it cannot be used.
    pub fn make_unfinished(path: &Path) -> Result<Self, DataDirError> {
        make_durable_directory(path, SyncSite::DataDirectory).map_err(at(path))?;
        // The top of a file system of its own may have this.
        let is_something = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() != "lost+found");
        if fs::read_dir(path).map_err(at(path))?.any(is_something) {
            return Err(DataDirError::NotEmpty { path: path.to_owned() });
        }
        let lock = lock(path)?;
        write_number(path, UNFINISHED, 1)?;
        Self::locked(path, lock)
    }

    /// Everything is in it, and safe.
    ///
    /// # Errors
    /// The file system said no.
    pub fn finish(&self) -> Result<(), DataDirError> {
        remove_number(&self.path, UNFINISHED)
    }

    /// The log is written from now on, by a process that waits for its syncs or by one that does not.
    ///
    /// # Errors
    /// The file system said no.
    pub fn write_log(&self, waits_for_syncs: bool) -> Result<Option<UnsyncedLog>, DataDirError> {
        let mark = self.path.join(UNSYNCED);
        let is_unsynced = mark.try_exists().map_err(at(&mark))?;
        if !waits_for_syncs && !is_unsynced {
            write_number(&self.path, UNSYNCED, 1)?;
        }
        Ok((is_unsynced || !waits_for_syncs).then(|| UnsyncedLog { directory: self.path.clone() }))
    }

    /// For the case that it turns out to be a copy.
    #[must_use]
    pub fn copy_mark(&self) -> CopyMark {
        CopyMark { directory: self.path.clone() }
    }

    /// A new cluster goes on with what is in it: nobody shall start from it.
    ///
    /// # Errors
    /// The file system said no.
    pub(crate) fn end(&self) -> Result<(), DataDirError> {
        write_number(&self.path, ENDED, 1)
    }

    fn locked(path: &Path, lock: File) -> Result<Self, DataDirError> {
        check_format(path)?;
        let node = node_id(path)?;
        let incarnation = next_incarnation(path)?;
        Ok(Self { path: path.to_owned(), node, incarnation, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who this node is, drawn when the directory was made.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The number of this start: larger than that of every earlier one, power cuts included.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

/// Whose fault it is, where that is known, and what to do.
fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let user = rustix::process::geteuid().as_raw();
            format!(
                ": this process runs as user {user}, who may not use it: give it to that user (chown), or name another one (--data-dir)"
            )
        }
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            ": there is a file where a directory is to be: name another one (--data-dir)".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => ": nothing can be kept there: name another one (--data-dir)".to_owned(),
        _ => String::new(),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> DataDirError + use<> {
    let path = path.to_owned();
    move |error| DataDirError::Io { path: path.clone(), error }
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let file = path.join("lock");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(FILE_MODE);
    let lock = options.open(&file).map_err(at(&file))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(at(&file)(error)),
    }
}

fn check_format(path: &Path) -> Result<(), DataDirError> {
    match read_number(&path.join("format"))? {
        None => write_number(path, "format", u64::from(FORMAT_VERSION)),
        Some(found) if found != u64::from(FORMAT_VERSION) => {
            Err(DataDirError::OtherFormat { path: path.to_owned(), found: u32::try_from(found).unwrap_or(u32::MAX) })
        }
        Some(_) => Ok(()),
    }
}

fn node_id(path: &Path) -> Result<NodeId, DataDirError> {
    let file = path.join("node");
    if let Some(id) = read_number(&file)? {
        return if id == 0 { Err(DataDirError::Foreign { path: file }) } else { Ok(NodeId(id)) };
    }
    let mut bytes = [0; 8];
    let random = Path::new("/dev/urandom");
    let mut read = || File::open(random)?.read_exact(&mut bytes);
    read().map_err(|error| DataDirError::Io { path: random.to_owned(), error })?;
    let id = u64::from_le_bytes(bytes).max(1);
    write_number(path, "node", id)?;
    Ok(NodeId(id))
}

fn next_incarnation(path: &Path) -> Result<u64, DataDirError> {
    let incarnation = read_number(&path.join("incarnation"))?.unwrap_or(0) + 1;
    write_number(path, "incarnation", incarnation)?;
    Ok(incarnation)
}

fn read_number(path: &Path) -> Result<Option<u64>, DataDirError> {
    let mut text = String::new();
    match File::open(path).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(DataDirError::Foreign { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataDirError::Io { path: path.to_owned(), error }),
    }
}

/// Replaces a small file as a whole, or not at all.
fn remove_number(directory: &Path, name: &str) -> Result<(), DataDirError> {
    let path = directory.join(name);
    fs::remove_file(&path).map_err(at(&path))?;
    sync_directory(directory, SyncSite::NumberName).map_err(at(directory))
}

fn write_number(directory: &Path, name: &str, number: u64) -> Result<(), DataDirError> {
    let new = directory.join(format!("{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(FILE_MODE).open(&new)?;
        writeln!(file, "{number}")?;
        SyncSite::Number.sync(|| file.sync_all())?;
        fs::rename(&new, directory.join(name))?;
        sync_directory(directory, SyncSite::NumberName)
    };
    write().map_err(|error| DataDirError::Io { path: directory.join(name), error })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::disk::{Disk as _, RealDisk};

    #[test]
    fn a_second_process_is_refused_and_each_start_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("data");
        let first = DataDir::open(&path).expect("opened");
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse { .. })));
        assert_eq!(first.incarnation(), 1);
        let node = first.node();
        drop(first);
        let second = DataDir::open(&path).expect("opened");
        assert_eq!((second.incarnation(), second.node()), (2, node));
    }

    /// A recovery that was killed leaves nothing that could be taken for a node.
    /// What is acknowledged without a sync may be gone after a power cut, whatever the next process does.
    #[test]
    fn that_a_log_was_written_without_syncs_is_known_until_it_is_whole_again() {
        let parent = tempfile::tempdir().expect("a directory");
        let open = || DataDir::open(parent.path()).expect("a data directory");
        assert!(open().write_log(true).expect("noted").is_none());
        assert!(open().write_log(false).expect("noted").is_some());
        assert!(open().write_log(true).expect("noted").is_some(), "it may have been the one that lost its power");
        let noted = open().write_log(true).expect("noted").expect("nobody showed that all is there");
        noted.end().expect("ended");
        assert!(open().write_log(true).expect("noted").is_none());
    }

    /// Each start counts, so an old copy that is started again and again would seem to be the newest one in the end.
    #[test]
    fn a_directory_that_was_found_to_be_a_copy_is_not_started_from_again() {
        let parent = tempfile::tempdir().expect("a directory");
        let opened = DataDir::open(parent.path()).expect("opened");
        opened.copy_mark().set().expect("noted");
        drop(opened);
        let error = DataDir::open(parent.path()).expect_err("a copy");
        assert!(matches!(error, DataDirError::Copied { .. }) && error.to_string().contains("\"copied\""), "{error}");
        drop(DataDir::open_survivor(parent.path()).expect("only read"));
        fs::remove_file(parent.path().join(COPIED)).expect("by the operator");
        drop(DataDir::open(parent.path()).expect("opened"));
    }

    #[test]
    fn a_directory_that_is_being_filled_is_no_node_before_it_is_finished() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("data");
        let making = DataDir::make_unfinished(&path).expect("made");
        let node = making.node();
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse { .. })));
        drop(making);
        assert!(matches!(DataDir::open(&path), Err(DataDirError::Unfinished { .. })));
        assert!(matches!(DataDir::make_unfinished(&path), Err(DataDirError::NotEmpty { .. })));
        fs::remove_dir_all(&path).expect("removed");
        let made = DataDir::make_unfinished(&path).expect("made");
        assert_ne!(made.node(), node, "another node");
        made.finish().expect("finished");
        let node = made.node();
        drop(made);
        assert_eq!(DataDir::open(&path).expect("opened").node(), node);
    }

    #[test]
    fn a_file_in_its_place_is_said_with_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("written");
        for path in [file.clone(), file.join("below")] {
            let error = DataDir::open(&path).expect_err("a file").to_string();
            assert!(
                error.contains("there is a file where a directory is to be") && error.contains("--data-dir"),
                "{error}"
            );
        }
        let denied = advice(&io::ErrorKind::PermissionDenied.into());
        assert!(denied.contains(&format!("user {}", rustix::process::geteuid().as_raw())), "{denied}");
    }

    /// What is there already stays as it is: a volume's directory may be a group's.
    #[test]
    fn nobody_else_may_read_what_is_made() {
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
        let directory = tempfile::tempdir().expect("a directory");
        let above = directory.path().join("above");
        let path = above.join("data");
        drop(DataDir::open(&path).expect("opened"));
        let disk = RealDisk::open(&path.join("log")).expect("opened");
        disk.append_to("segment").expect("opened");
        for made in [&above, &path, &path.join("log")] {
            assert_eq!(mode(made), 0o700, "{}", made.display());
        }
        let files = fs::read_dir(&path).expect("read").map(|entry| entry.expect("read").path());
        let files: Vec<_> = files.filter(|path| path.is_file()).chain([path.join("log/segment")]).collect();
        assert_eq!(files.len(), 5, "{files:?}");
        for file in &files {
            assert_eq!(mode(file), 0o600, "{}", file.display());
        }

        fs::set_permissions(&path, Permissions::from_mode(0o2770)).expect("changed");
        fs::set_permissions(path.join("lock"), Permissions::from_mode(0o660)).expect("changed");
        drop(DataDir::open(&path).expect("opened"));
        assert_eq!((mode(&path), mode(&path.join("lock"))), (0o2770, 0o660));
    }

    #[test]
    fn another_format_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        for found in [FORMAT_VERSION - 1, FORMAT_VERSION + 1] {
            fs::write(directory.path().join("format"), format!("{found}\n")).expect("written");
            assert!(matches!(DataDir::open(directory.path()), Err(DataDirError::OtherFormat { .. })));
        }
        fs::write(directory.path().join("format"), "x").expect("written");
        assert!(matches!(DataDir::open(directory.path()), Err(DataDirError::Foreign { .. })));
    }
}
