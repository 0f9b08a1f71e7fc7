//! What the log and the checkpoints did, read from the pipeline when somebody asks: nothing is counted twice.

use std::sync::atomic::Ordering;

use kentongan_cluster::Stats;
use kentongan_cluster::times::Times;

use super::page::{Counted, Page};
use super::{Family, Kind};

/// Figures, and where each is.
const FIGURES: &[Counted<Stats>] = &[
    (family("kentongan_log_commands_total", Kind::Counter, &["Commands committed to the log."]), |stats| {
        &stats.commands
    }),
    (
        family("kentongan_log_size_bytes", Kind::Gauge, &["Size of the log on disk, without what is written ahead."]),
        |stats| &stats.log_bytes,
    ),
    (
        family(
            "kentongan_log_segments_purged_total",
            Kind::Counter,
            &["Segments of the log removed after a checkpoint."],
        ),
        |stats| &stats.segments_purged,
    ),
    (
        family("kentongan_disk_free_bytes", Kind::Gauge, &["Room on the disk of the log for those who are not root."]),
        |stats| &stats.free_bytes,
    ),
    (family("kentongan_checkpoints_total", Kind::Counter, &["Checkpoints completed, of all groups."]), |stats| {
        &stats.checkpoints
    }),
    (
        family(
            "kentongan_log_descriptors_missing_total",
            Kind::Counter,
            &[
                "Times that a checkpoint, or a new segment of the log, was due and found no descriptor: it waits for one.",
            ],
        ),
        |stats| &stats.descriptors_missing,
    ),
];

/// A family of times, and where they are.
type Timed = (Family, fn(&Stats) -> &Times);

const TIMES: &[Timed] = &[
    (
        family(
            "kentongan_log_sync_seconds",
            Kind::Histogram,
            &["Time that syncs of the log took; one covers every group."],
        ),
        |stats| &stats.sync_times,
    ),
    (
        family(
            "kentongan_commit_seconds",
            Kind::Histogram,
            &[
                "Time from submitting a command to its commit, which means that a majority has synced it, where this node ",
                "leads. Of each group one command at a time is watched.",
            ],
        ),
        |stats| &stats.commit_times,
    ),
];

const OLDEST_SYNC: Family = family(
    "kentongan_log_sync_oldest_seconds",
    Kind::Gauge,
    &["How long the log has waited for the disk by now, with a sync most often, or a write; 0: it does not wait."],
);

const fn family(name: &'static str, kind: Kind, doc: &'static [&'static str]) -> Family {
    Family { name, kind, doc, label: None }
}

/// What [`render`] writes.
pub(super) fn families() -> impl Iterator<Item = &'static Family> {
    TIMES.iter().map(|(family, _)| family).chain([&OLDEST_SYNC]).chain(FIGURES.iter().map(|(family, _)| family))
}

/// Appends the families.
pub(super) fn render(text: &mut String, stats: &Stats) {
    let mut page = Page(text);
    for (family, times) in TIMES {
        page.times(family, times(stats));
    }
    page.one(&OLDEST_SYNC, stats.under_way.age().as_secs_f64());
    for (family, counter) in FIGURES {
        page.one(family, counter(stats).load(Ordering::Relaxed) as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_figure_stands_under_its_own_name() {
        let stats = Stats::default();
        let counters = [
            &stats.commands,
            &stats.log_bytes,
            &stats.segments_purged,
            &stats.free_bytes,
            &stats.checkpoints,
            &stats.descriptors_missing,
        ];
        for (number, counter) in (1..).zip(counters) {
            counter.store(number, Ordering::Relaxed);
        }
        stats.sync_times.record(Duration::from_millis(2_500));
        stats.commit_times.record(Duration::from_millis(7_000));
        let mut text = String::new();
        render(&mut text, &stats);
        for line in [
            "kentongan_log_sync_seconds_sum 2.5",
            "kentongan_log_sync_oldest_seconds 0",
            "kentongan_commit_seconds_sum 7",
            "kentongan_log_commands_total 1",
            "kentongan_log_size_bytes 2",
            "kentongan_log_segments_purged_total 3",
            "kentongan_disk_free_bytes 4",
            "kentongan_checkpoints_total 5",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
        }
    }
}
