//! Why a node ends by itself though nothing failed: others have decided something, or know something, by which it must not go on.

use std::sync::atomic::{AtomicBool, Ordering};

use kentongan_cluster::UnknownLevel;
use kentongan_cluster::data_dir::{CopyMark, DataDirError};
use kentongan_cluster::transport::Copied;

/// What a process ends with whose data directory is a copy.
const EXIT_COPIED: u8 = 5;

/// Why it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// The operator's doing: it was removed.
    #[error(
        "this node was removed from its cluster: it serves nobody any more, and what is on its disk nobody counts on. To use the \
         machine again, start a new node on it, with an empty data directory"
    )]
    Removed,
    /// The cluster was upgraded, and this node was not, or was taken back to an older version too late.
    #[error(transparent)]
    FeatureLevel(#[from] UnknownLevel),
    /// Others have heard of a newer data directory of this node, or of its living process.
    #[error("{0}: {OF_COPIES}")]
    Copied(Copied),
    /// A leader counts on what this node has acknowledged, and the log here does not have that.
    #[error("the log of this node lacks entries that it has acknowledged: {OF_COPIES}")]
    Forgot,
}

/// What it means, and what to do.
const OF_COPIES: &str = "the data directory of this node is an older copy (a snapshot of the machine or the volume that was restored, say) \
    or a copy of a living node's, or its disk has lost what it said was safe. What the node has acknowledged since it lacks, so nobody \
    can count on it. Start the node with its newest data directory if that still exists; if it is lost, start it with an empty one under \
    the same name, which replaces it. If a node of this name lives already, give this one another name and an empty data directory";

impl Ending {
    /// What the process ends with, so that a supervisor can tell that another start is of no use.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Removed => 3,
            Self::FeatureLevel(_) => 4,
            Self::Copied(_) | Self::Forgot => EXIT_COPIED,
        }
    }

    /// That of a process that ends with this error, if it is one of those.
    #[must_use]
    pub fn exit_code_of(error: &anyhow::Error) -> Option<u8> {
        match error.downcast_ref::<DataDirError>() {
            Some(DataDirError::Copied { .. }) => Some(EXIT_COPIED),
            _ => error.downcast_ref::<Self>().map(|ending| ending.exit_code()),
        }
    }
}

/// What is to be done once it is known that this node's data directory is a copy.
#[derive(Debug)]
pub struct CopyEnd {
    mark: CopyMark,
    on_end: fn(Ending),
    was_found: AtomicBool,
}

impl CopyEnd {
    /// `on_end` is called then, once.
    #[must_use]
    pub fn new(mark: CopyMark, on_end: fn(Ending)) -> Self {
        Self { mark, on_end, was_found: AtomicBool::new(false) }
    }

    /// It is one: nobody starts from it again, and this process says nothing more to others.
    pub fn end(&self, ending: Ending) {
        if self.was_found.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::error!(data_dir = %self.mark.directory().display(), "{ending}");
        if let Err(error) = self.mark.set() {
            tracing::error!(%error, "that the data directory is a copy could not be noted in it: do not start from it again");
        }
        (self.on_end)(ending);
    }
}
