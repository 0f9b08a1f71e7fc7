//! What the log and the checkpoints did, read from the pipeline when somebody asks: nothing is counted twice.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use kentongan_cluster::Stats;

use super::{Family, Kind};

/// What [`render`] writes.
pub(super) const FAMILIES: &[Family] = &[
    family("kentongan_log_syncs_total", Kind::Counter, &["Syncs of the log; one covers every group."]),
    family("kentongan_log_sync_seconds_total", Kind::Counter, &["Time that syncs of the log took."]),
    family("kentongan_log_commands_total", Kind::Counter, &["Commands committed to the log."]),
    family("kentongan_log_size_bytes", Kind::Gauge, &["Size of the log on disk."]),
    family("kentongan_log_segments_purged_total", Kind::Counter, &["Segments of the log removed after a checkpoint."]),
    family("kentongan_checkpoints_total", Kind::Counter, &["Checkpoints completed, of all groups."]),
];

const fn family(name: &'static str, kind: Kind, doc: &'static [&'static str]) -> Family {
    Family { name, kind, doc, label: None }
}

/// Appends the families.
pub(super) fn render(text: &mut String, stats: &Stats) {
    for (family, value) in FAMILIES.iter().zip(read(stats)) {
        family.render(text, value);
    }
}

/// The values, in the order of [`FAMILIES`].
fn read(stats: &Stats) -> [f64; FAMILIES.len()] {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    [
        count(&stats.syncs),
        count(&stats.sync_nanoseconds) / 1e9,
        count(&stats.commands),
        count(&stats.log_bytes),
        count(&stats.segments_purged),
        count(&stats.checkpoints),
    ]
}

impl Family {
    /// Appends the family with its one value, as Prometheus reads it.
    pub(super) fn render(&self, text: &mut String, value: f64) {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::Histogram => "gauge",
        };
        let (name, help) = (self.name, self.description());
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_stands_under_its_own_name() {
        let stats = Stats::default();
        let counters = [
            &stats.syncs,
            &stats.sync_nanoseconds,
            &stats.commands,
            &stats.log_bytes,
            &stats.segments_purged,
            &stats.checkpoints,
        ];
        for (number, counter) in (1..).zip(counters) {
            counter.store(number, Ordering::Relaxed);
        }
        stats.sync_nanoseconds.store(2_500_000_000, Ordering::Relaxed);
        let mut text = String::new();
        render(&mut text, &stats);
        for line in [
            "kentongan_log_syncs_total 1",
            "kentongan_log_sync_seconds_total 2.5",
            "kentongan_log_commands_total 3",
            "kentongan_log_size_bytes 4",
            "kentongan_log_segments_purged_total 5",
            "kentongan_checkpoints_total 6",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
        }
    }
}
