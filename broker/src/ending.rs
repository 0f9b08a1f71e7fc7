//! Why a node ends by itself though nothing failed: others have decided something by which it must not go on.

use kentongan_cluster::UnknownLevel;

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
}

impl Ending {
    /// What the process ends with, so that a supervisor can tell that another start is of no use.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Removed => 3,
            Self::FeatureLevel(_) => 4,
        }
    }
}
