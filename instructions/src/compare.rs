//! Counts all rows, and holds them against counts.tsv or writes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};

use crate::{Row, rows};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/counts.tsv");

const HEAD: &str = "# Instructions an operation takes, as callgrind counts them on x86_64. Written by:\n\
                    #   cargo xtask instructions --update\n";

/// A count may differ from the file's by this part of it.
const CHANGE_MAX: f64 = 0.05;

/// Hash tables draw their seed from where things lie and from the clock: now and then what is looked for meets another's mark
/// on its way, which has cost a tenth more. The least count is what the code takes.
const COUNTS_MAX: usize = 5;

/// The function in which callgrind collects, by whatever name the compiler gave it.
pub const COLLECTED: &str = "*counted_part*";

/// Counts all rows and compares, or with `update` writes the file.
pub fn run(update: bool) -> anyhow::Result<()> {
    ensure!(!cfg!(debug_assertions), "these are counts of an optimised build: run `cargo xtask instructions`");
    if !cfg!(target_arch = "x86_64") {
        println!("the counts in the tree are of x86_64: nothing is compared here");
        return Ok(());
    }
    let rows: Vec<&Row> = rows().collect();
    if update {
        let found = count_all(&rows, &BTreeMap::new())?;
        fs::write(FILE, page(&found)).with_context(|| format!("cannot write {FILE}"))?;
        print!("{}", page(&found));
        return Ok(());
    }
    let text = fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?;
    let expected = parse(&text)?;
    let comparison = Comparison::new(&expected, &count_all(&rows, &expected)?);
    print!("{}", comparison.table);
    comparison.verdict()
}

/// Counts as many rows at once as there are cores.
fn count_all(rows: &[&'static Row], expected: &BTreeMap<&str, f64>) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let enough = expected.get(row.name).map_or(0.0, |count| count * (1.0 + CHANGE_MAX));
                    let outcome = least(enough, || count(row.name));
                    let outcome = outcome.with_context(|| format!("cannot count {:?}", row.name));
                    counts.lock().unwrap_or_else(PoisonError::into_inner).insert(row.name, outcome);
                }
            });
        }
    });
    let mut counts = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
    let counted = rows.iter().filter_map(|row| Some((row.name, counts.remove(row.name)?)));
    counted.map(|(name, outcome)| Ok((name, outcome?))).collect()
}

/// The least of up to [`COUNTS_MAX`] counts, and no more counts than it takes to find one that is at most `enough`.
fn least(enough: f64, mut count: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    let mut least = count()?;
    for _ in 1..COUNTS_MAX {
        if least <= enough {
            break;
        }
        least = least.min(count()?);
    }
    Ok(least)
}

/// Instructions an operation of the row takes.
fn count(row: &str) -> anyhow::Result<f64> {
    let directory = tempfile::tempdir()?;
    let profile = directory.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .arg("--quiet")
        .arg("--tool=callgrind")
        .arg(format!("--toggle-collect={COLLECTED}"))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args(["run", row])
        // The allocator gives memory back after a time, which would come at any moment.
        .env("MIMALLOC_PURGE_DELAY", "-1")
        .output()
        .context("cannot run valgrind: `./test.sh setup` installs it")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let operations: f64 = said.trim().parse().with_context(|| format!("not a number of operations: {said:?}"))?;
    let total = total(&profile)?;
    ensure!(total > 0.0 && operations > 0.0, "callgrind saw nothing of {COLLECTED}");
    Ok(total / operations)
}

/// The line `totals: NUMBER` of a profile.
fn total(profile: &Path) -> anyhow::Result<f64> {
    let text = fs::read_to_string(profile).with_context(|| format!("cannot read {}", profile.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.context("callgrind gave no total")?.trim().parse()?)
}

fn page(counts: &[(&str, f64)]) -> String {
    let mut page = HEAD.to_owned();
    for (name, count) in counts {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "{name}\t{count:.1}");
    }
    page
}

fn parse(text: &str) -> anyhow::Result<BTreeMap<&str, f64>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, count) = line.split_once('\t').with_context(|| format!("counts.tsv: no tab in {line:?}"))?;
            Ok((name, count.parse().with_context(|| format!("counts.tsv: no number in {line:?}"))?))
        })
        .collect()
}

/// What was found beside what was expected.
struct Comparison {
    table: String,
    worse: usize,
    better: usize,
    /// Rows that only the program or only the file has.
    unpaired: usize,
}

impl Comparison {
    fn new(expected: &BTreeMap<&str, f64>, found: &[(&str, f64)]) -> Self {
        let mut comparison = Self { table: String::new(), worse: 0, better: 0, unpaired: 0 };
        comparison.line("", "expected", "found", "change", "");
        for (name, found) in found {
            comparison.compare(name, expected.get(name).copied(), *found);
        }
        for (name, expected) in expected {
            if found.iter().all(|(found, _)| found != name) {
                comparison.unpaired += 1;
                comparison.line(name, &format!("{expected:.1}"), "-", "", "counted no more");
            }
        }
        comparison
    }

    fn compare(&mut self, name: &str, expected: Option<f64>, found: f64) {
        let found_text = format!("{found:.1}");
        let Some(expected) = expected else {
            self.unpaired += 1;
            return self.line(name, "-", &found_text, "", "new");
        };
        let change = found / expected - 1.0;
        let verdict = if change > CHANGE_MAX {
            self.worse += 1;
            "WORSE"
        } else if change < -CHANGE_MAX {
            self.better += 1;
            "better"
        } else {
            ""
        };
        self.line(name, &format!("{expected:.1}"), &found_text, &format!("{:+.1} %", change * 100.0), verdict);
    }

    fn line(&mut self, name: &str, expected: &str, found: &str, change: &str, verdict: &str) {
        let line = format!("{name:<48}{expected:>10}{found:>10}{change:>11}  {verdict}");
        self.table.push_str(line.trim_end());
        self.table.push('\n');
    }

    /// An error says what to do about it.
    fn verdict(&self) -> anyhow::Result<()> {
        if self.worse + self.better + self.unpaired == 0 {
            return Ok(());
        }
        let mut text = String::new();
        if self.worse > 0 {
            text +=
                &format!("{} counts grew by more than 5 %: find out why, and mend it if it need not be. ", self.worse);
        }
        if self.better > 0 {
            text += &format!("{} counts shrank by more than 5 %, which is better: keep that. ", self.better);
        }
        if self.unpaired > 0 {
            text += &format!("{} counts are not in both, the program and counts.tsv. ", self.unpaired);
        }
        bail!(
            "{text}What is meant to stay is kept by `cargo xtask instructions --update`, with the reason in the commit."
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(found: &[(&str, f64)]) -> Result<(), String> {
        let text = page(&[("a", 100.0), ("b", 20.0)]);
        let expected = parse(&text).expect("a page reads back");
        Comparison::new(&expected, found).verdict().map_err(|error| error.to_string())
    }

    #[test]
    fn what_stays_within_five_percent_passes() {
        assert_eq!(verdict(&[("a", 104.9), ("b", 19.1)]), Ok(()));
    }

    #[test]
    fn what_meets_another_mark_on_its_way_is_counted_again() {
        let counts_of = |counts: &[f64]| {
            let mut left = counts.iter();
            let least =
                least(105.0, || left.next().copied().context("enough was found")).map_err(|error| error.to_string());
            (least, left.len())
        };
        assert_eq!(counts_of(&[108.0, 111.0, 100.0, 99.0]), (Ok(100.0), 1));
        assert_eq!(counts_of(&[110.0, 108.0, 109.0, 111.0, 112.0, 100.0]), (Ok(108.0), 1), "worse each time is worse");
    }

    #[test]
    fn more_and_fewer_instructions_both_fail_and_say_which() {
        let worse = verdict(&[("a", 105.1), ("b", 20.0)]).expect_err("5.1 % more");
        assert!(worse.contains("1 counts grew") && !worse.contains("shrank") && worse.contains("--update"), "{worse}");
        let better = verdict(&[("a", 100.0), ("b", 18.9)]).expect_err("5.5 % fewer");
        assert!(better.contains("1 counts shrank") && !better.contains("grew"), "{better}");
    }

    /// Else a row that was renamed would be compared with nothing.
    #[test]
    fn a_row_that_only_one_side_has_fails() {
        assert!(verdict(&[("a", 100.0)]).is_err());
        assert!(verdict(&[("a", 100.0), ("b", 20.0), ("c", 1.0)]).is_err());
    }
}
