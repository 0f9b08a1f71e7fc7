//! What the operating system says about the process, under the names that every Prometheus client gives it.

use std::fs;

use super::page::Page;
use super::{Family, Kind};
use crate::memory;

/// Clock ticks a second in `/proc`: USER_HZ, which Linux fixes at 100 on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What [`render`] writes.
pub(super) const FAMILIES: &[Family] = &[
    family("process_cpu_seconds_total", Kind::Counter, &["User and system CPU time of the process."]),
    family("process_resident_memory_bytes", Kind::Gauge, &["Memory of the process that is in RAM."]),
    family(
        "process_heap_bytes",
        Kind::Gauge,
        &["Memory that the process has from its allocator: what `limits.memory_bytes_high_water` is held against."],
    ),
    family("process_virtual_memory_bytes", Kind::Gauge, &["Address space of the process."]),
    family("process_open_fds", Kind::Gauge, &["Open file descriptors."]),
    family("process_max_fds", Kind::Gauge, &["File descriptors that the process may open."]),
    family("process_threads", Kind::Gauge, &["Threads of the process."]),
    family("process_start_time_seconds", Kind::Gauge, &["When the process started, in Unix time."]),
];

const fn family(name: &'static str, kind: Kind, doc: &'static [&'static str]) -> Family {
    Family { name, kind, doc, label: None }
}

/// Appends the families, with what can be read now. What cannot is left out: a scrape never fails for it.
pub(super) fn render(text: &mut String) {
    for (family, value) in FAMILIES.iter().zip(read()) {
        let Some(value) = value else { continue };
        Page(text).one(family, value);
    }
}

/// Memory of the process in RAM that is no file's: heap and stacks.
#[must_use]
pub fn anonymous_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(after(&status, "RssAnon:")?.parse::<u64>().ok()? * 1024)
}

/// The values, in the order of [`FAMILIES`].
fn read() -> [Option<f64>; FAMILIES.len()] {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();

    // The fields of proc_pid_stat(5) from the third on; the second may contain anything, in brackets.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let bytes = |name: &str| Some(after(&status, name)?.parse::<f64>().ok()? * 1024.0);
    [
        field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_PER_SECOND),
        bytes("VmRSS:"),
        memory::used_bytes().map(|bytes| bytes as f64),
        bytes("VmSize:"),
        fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64),
        after(&limits, "Max open files").and_then(|soft| soft.parse().ok()),
        field(20),
        field(22)
            .zip(after(&boot, "btime"))
            .and_then(|(ticks, boot)| Some(boot.parse::<f64>().ok()? + ticks / TICKS_PER_SECOND)),
    ]
}

/// The first word after `name` on the line that begins with it.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_everything() {
        let values = read();
        assert!(values.iter().all(Option::is_some), "{values:?}");
        assert!(anonymous_bytes().is_some_and(|bytes| bytes as f64 <= values[1].unwrap() * 2.0));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let start = values[7].unwrap();
        assert!((now - start).abs() < 3600.0, "started {} s ago", now - start);
    }
}
