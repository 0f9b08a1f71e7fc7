//! The places where something is made to survive a power cut, each with a name.
//!
//! A disk under test, simulated or real, can ignore any one of them, which shows whether a test would notice that it is
//! missing. What is tried where, and which are harmless for what reason, stands in `cluster/tests/power_cut.rs` and
//! `broker/tests/it/durability/sites.rs`.

use std::fmt::Display;

/// Declares the sites once, so that the list of all of them is complete.
macro_rules! sites {
    ($($(#[$doc:meta])* $site:ident = $name:literal,)*) => {
        /// Who syncs. Every sync of this crate has one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum SyncSite {
            $($(#[$doc])* $site,)*
        }

        impl SyncSite {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$site,)*];

            /// As the process's log and the tests call it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$site => $name,)*
                }
            }
        }
    };
}

sites! {
    /// The name of the data directory, and those of its ancestors that were made with it.
    DataDirectory = "data_directory",
    /// A number in the data directory (its format, its starts), before it replaces the old one.
    Number = "number",
    /// That it replaced the old one.
    NumberName = "number_name",
    /// A promise to join a cluster, before it replaces an earlier one.
    Promise = "promise",
    /// That it replaced it.
    PromiseName = "promise_name",
    /// How this node's cluster was formed, before the file has its name.
    Formation = "formation",
    /// That it has.
    FormationName = "formation_name",
    /// The name of the log's directory.
    LogDirectory = "log_directory",
    /// The name of the state store's directory.
    StateDirectory = "state_directory",
    /// The names within the state store, which the store leaves unsynced when it makes them.
    StateKeyspaces = "state_keyspaces",
    /// The batches of a checkpoint.
    StateBatches = "state_batches",
    /// A snapshot of another node's in its file, before the store begins to take it over.
    SnapshotSpooled = "snapshot_spooled",
    /// The name of that file.
    SnapshotSpooledName = "snapshot_spooled_name",
    /// The lines that say a checkpoint is complete.
    ManifestLines = "manifest_lines",
    /// The name of the first manifest.
    ManifestName = "manifest_name",
    /// A manifest written anew, before it replaces the old one.
    ManifestRewritten = "manifest_rewritten",
    /// That it replaced the old one.
    ManifestReplaced = "manifest_replaced",
    /// What the log's last segment has at start: an earlier process may have died between its write and its sync.
    LogReopened = "log_reopened",
    /// The names of the segments at start, for the same reason.
    LogReopenedNames = "log_reopened_names",
    /// The header of a new segment, before its first record.
    LogSegmentHeader = "log_segment_header",
    /// The name of a new segment.
    LogSegmentName = "log_segment_name",
    /// A round of records, before it is applied.
    LogRound = "log_round",
    /// Records that were applied before they were synced (durability `memory`).
    LogBackground = "log_background",
    /// What is left when the writer ends.
    LogEnd = "log_end",
    /// That segments before the checkpoints are gone.
    LogPurged = "log_purged",
}

impl SyncSite {
    /// Syncs for this site. Begin and end are traced, which is how a preload learns on whose behalf a thread syncs.
    ///
    /// # Errors
    /// Those of `sync`.
    pub fn sync<T, E>(self, sync: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        tracing::trace!(site = self.name(), "sync begins");
        let outcome = sync();
        tracing::trace!(site = self.name(), "sync ended");
        outcome
    }
}

impl Display for SyncSite {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}
