//! For people: tables with aligned columns, and a progress bar on a terminal.

use std::{fs, io::IsTerminal, thread, time::UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::measure::now_ns;

/// Rows of text in aligned columns. The first column is aligned left, the others right.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row, of as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (i, row) in self.rows.iter().enumerate() {
            let mut line = format!("{:<width$}", row[0], width = widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                line += &format!("  {cell:>width$}");
            }
            writeln!(f, "{}", line.trim_end())?;
            if i == 0 {
                let ruler: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                writeln!(f, "{}", ruler.join("  "))?;
            }
        }
        Ok(())
    }
}

/// A result with what it needs to be repeated.
#[derive(Debug, Serialize)]
pub struct Report<'a, T> {
    /// Under what conditions it came about.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// What came out.
    pub result: &'a T,
}

/// Under what conditions a result came about.
#[derive(Debug, Serialize)]
pub struct Conditions {
    /// Version of this program.
    pub loadtest: &'static str,
    /// The arguments of this program.
    pub arguments: Vec<String>,
    /// Seconds since 1970.
    pub unix_seconds: u64,
    /// Model of the CPU.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Load of the machine in the last minute, at the end of the run.
    pub load_average: String,
}

impl Conditions {
    /// Those of this moment. What cannot be read is empty.
    pub fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            loadtest: env!("CARGO_PKG_VERSION"),
            arguments: std::env::args().skip(1).collect(),
            unix_seconds: UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
            cpu: model.map_or_else(String::new, |(_, model)| model.trim().to_owned()),
            cores: thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// Shows how far a run is, if anybody looks.
#[derive(Debug)]
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// A bar on standard error if that is a terminal.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} {bar:30} {percent:>3} %").expect("the template is valid");
            ProgressBar::new(1000).with_style(style)
        });
        Self(bar)
    }

    /// `what` is `done` of `all` far.
    pub fn at(&self, what: &str, done: u64, all: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_owned());
            bar.set_position(1000 * done / all.max(1));
        }
    }

    /// `what` lasts `length_ns` and ends at `end_ns`.
    pub fn until(&self, what: &str, end_ns: u64, length_ns: u64) {
        let left = end_ns.saturating_sub(now_ns());
        self.at(what, length_ns.saturating_sub(left), length_ns);
    }

    /// Says something that remains, above the bar.
    pub fn say(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Removes the bar.
    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Nanoseconds of CPU per message.
pub fn nanoseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.0}"))
}

/// Microseconds, with as many digits as are of interest.
pub fn microseconds(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} s", value / 1e6),
        value if value >= 1e4 => format!("{:.1} ms", value / 1e3),
        value if value >= 1e3 => format!("{:.2} ms", value / 1e3),
        value => format!("{value:.0} µs"),
    }
}

/// A count with its thousands apart.
pub fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in mebibytes.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters_and_not_by_bytes() {
        let mut table = Table::new(&["row", "p50"]);
        table.row(vec!["1→50".into(), "7 µs".into()]);
        table.row(vec!["pairs".into(), "12 µs".into()]);
        assert_eq!(table.to_string(), "row      p50\n-----  -----\n1→50    7 µs\npairs  12 µs\n");
    }

    #[test]
    fn figures_have_the_unit_that_reads_best() {
        assert_eq!(microseconds(7.4), "7 µs");
        assert_eq!(microseconds(1500.0), "1.50 ms");
        assert_eq!(microseconds(15_000.0), "15.0 ms");
        assert_eq!(microseconds(2_500_000.0), "2.50 s");
        assert_eq!(count(1_234_567.0), "1,234,567");
        assert_eq!(count(999.0), "999");
    }
}
