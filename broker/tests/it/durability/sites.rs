//! F3: with any one sync of the broker removed, something acknowledged is gone after a power cut, or the broker refuses to
//! start from what is left; or the sync is harmless for a reason that is given.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kentongan_cluster::disk::SyncSite;
use kentongan_proto::mqtt::ProtocolVersion;

use super::survive;
use crate::powercut;

enum Expectation {
    Noticed,
    /// Not noticed, and for this reason nothing could be.
    Harmless(&'static str),
    /// Takes a moment that a real process hardly meets: see `cluster/tests/power_cut.rs`.
    OnSimulatedDisk,
}

fn expectation(site: SyncSite) -> Expectation {
    use Expectation::{Harmless, Noticed, OnSimulatedDisk};
    match site {
        SyncSite::DataDirectory
        | SyncSite::Number
        | SyncSite::StateDirectory
        | SyncSite::StateKeyspaces
        | SyncSite::StateBatches
        | SyncSite::ManifestLines
        | SyncSite::LogRound
        | SyncSite::LogSegmentName => Noticed,
        SyncSite::NumberName => {
            Harmless("the same directory is synced for the names of log and state before anything is served")
        }
        SyncSite::LogDirectory => {
            Harmless("the same directory is synced for the name of the state before anything is served")
        }
        SyncSite::Promise
        | SyncSite::PromiseName
        | SyncSite::Formation
        | SyncSite::FormationName
        | SyncSite::ManifestName
        | SyncSite::SnapshotSpooled
        | SyncSite::SnapshotSpooledName
        | SyncSite::ManifestRewritten
        | SyncSite::ManifestReplaced
        | SyncSite::LogReopened
        | SyncSite::LogReopenedNames
        | SyncSite::LogSegmentHeader
        | SyncSite::LogBackground
        | SyncSite::LogEnd
        | SyncSite::LogPurged => OnSimulatedDisk,
    }
}

/// Each cut may notice, and ends the run when it does.
const CUTS: u64 = 4;

#[test]
fn each_sync_is_needed_or_harmless_for_a_reason() {
    for &site in SyncSite::ALL {
        let expected = expectation(site);
        if matches!(expected, Expectation::OnSimulatedDisk) {
            continue;
        }
        println!("without {site}:");
        let (broker, power) = powercut::start(Some(site));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            survive(broker, ProtocolVersion::V5, CUTS, |broker| broker.restart_after(|| powercut::cut(&power)));
        }));
        match expected {
            Expectation::Harmless(reason) => assert!(outcome.is_ok(), "{site} was taken for harmless: {reason}"),
            _ => assert!(outcome.is_err(), "nobody noticed that {site} was never synced"),
        }
    }
}
