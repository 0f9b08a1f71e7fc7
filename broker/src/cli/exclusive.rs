//! One change of a file at a time.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

/// As long as this lives, no other process changes files of the same directory, as far as it asks for this too. Whoever only reads
/// them does not.
///
/// The directory is what is locked: a file that another one takes the place of would be locked as what it was before, and a file
/// of locks would be left beside it.
#[derive(Debug)]
pub(super) struct Exclusive {
    _directory: Option<File>,
}

impl Exclusive {
    /// Waits until nobody else changes files beside this one, which need not exist. It must be no link to one elsewhere.
    pub(super) fn beside(file: &Path) -> Self {
        let directory = directory_of(file);
        // Whoever writes there says why it cannot be done.
        let Ok(opened) = File::open(directory) else { return Self { _directory: None } };
        if let Err(error) = retry_on_intr(|| flock(&opened, FlockOperation::LockExclusive)) {
            // Some file systems of other machines know no such lock.
            let directory = directory.display();
            eprintln!("kentongan: {directory} cannot be locked ({error}): see that nobody else changes its files now");
        }
        Self { _directory: Some(opened) }
    }
}

/// Where a file is.
pub(super) fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
