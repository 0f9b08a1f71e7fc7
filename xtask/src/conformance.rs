//! docs/reference/conformance.md: every clause that concerns a server, and the test that watches it.
//!
//! A test names its clauses in a doc line, `Conformance: [MQTT5-3.1.2-22], [MQTT311-3.1.2-24]`. Clauses that no test can
//! show have their reason in `conformance_reasons.tsv`, and which annotations were tried stands in
//! `conformance_trials.tsv`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

const PAGE: &str = "docs/reference/conformance.md";
const TABLES: [(&str, &str, &str); 2] = [
    ("MQTT5", "MQTT 5", "docs/reference/mqtt5-normative.tsv"),
    ("MQTT311", "MQTT 3.1.1", "docs/reference/mqtt311-normative.tsv"),
];
const SOURCES: [&str; 5] = ["broker/tests", "broker/src", "proto/src", "proto/tests", "cluster/src"];
const REASONS: &str = include_str!("conformance_reasons.tsv");
/// The first of them were picked at random.
const TRIALS: &str = include_str!("conformance_trials.tsv");
const TRIALS_AT_RANDOM: usize = 20;

struct Clause {
    id: String,
    text: String,
}

/// Writes the page, or with `check` holds it against what would be written.
pub fn run(check: bool) -> anyhow::Result<()> {
    let mut tests = BTreeMap::new();
    for root in SOURCES {
        collect(Path::new(root), "Conformance:", &mut tests)?;
    }
    let reasons: BTreeMap<&str, &str> = REASONS.lines().filter_map(|line| line.split_once('\t')).collect();
    let mut known = Vec::new();
    let mut page = HEAD.to_owned();
    let mut missing = Vec::new();
    for (prefix, title, table) in TABLES {
        let clauses = clauses(prefix, table)?;
        writeln!(page, "\n## {title}\n\n| clause | it says | shown by |\n|---|---|---|")?;
        for clause in &clauses {
            let shown = match (tests.get(&clause.id), reasons.get(clause.id.as_str())) {
                (Some(tests), _) => tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", "),
                (None, Some(reason)) => format!("*{reason}*"),
                (None, None) => {
                    missing.push(clause.id.clone());
                    "**nothing yet**".to_owned()
                }
            };
            writeln!(page, "| {} | {} | {shown} |", clause.id, clause.text.replace('|', "\\|"))?;
        }
        known.extend(clauses.into_iter().map(|clause| clause.id));
    }
    let total = known.len();
    for id in tests.keys() {
        ensure!(known.contains(id), "{id} stands in a test and in no table of clauses");
    }
    page.push_str(&trials(&tests)?);
    println!("{} of {total} clauses shown; not yet: {}", total - missing.len(), missing.join(" "));
    write_or_check(PAGE, &page, check)
}

/// Writes a page, or with `check` holds it against what would be written.
pub fn write_or_check(path: &str, page: &str, check: bool) -> anyhow::Result<()> {
    if check {
        let stored = fs::read_to_string(path).unwrap_or_default();
        ensure!(stored == page, "{path} is stale: run cargo xtask fix");
    } else {
        fs::write(path, page)?;
    }
    Ok(())
}

const HEAD: &str = "\
# Conformance

Made from the tests' own annotations by `cargo xtask conformance`; do not edit. Each clause of the specifications that
concerns a server, in short, and the tests that fail when it is broken, or why none can exist.
";

/// The clauses that were disabled in the code, each with the test that failed then.
fn trials(tests: &BTreeMap<String, Vec<String>>) -> anyhow::Result<String> {
    let mut section = TRIALS_HEAD.to_owned();
    for (number, line) in TRIALS.lines().enumerate() {
        let fields: Vec<_> = line.split('\t').collect();
        let [clause, disabled, test] = fields[..] else {
            bail!("conformance_trials.tsv has three columns, not {}: {line}", fields.len());
        };
        let suffix = format!("::{test}");
        let named = tests.get(clause).is_some_and(|tests| tests.iter().any(|name| name.ends_with(&suffix)));
        ensure!(
            named,
            "{test} was tried for {clause} and no longer names it: try again and mend conformance_trials.tsv"
        );
        let picked = if number < TRIALS_AT_RANDOM { "at random" } else { "many clauses" };
        writeln!(section, "| {clause} | {disabled} | `{test}` | {picked} |")?;
    }
    Ok(section)
}

const TRIALS_HEAD: &str = "
## Tried

An annotation is a promise: whoever disables the clause in the code sees the test fail. Twenty clauses were picked at
random (Python's `random.seed(20261124)`, `sample` of the 338 that had tests), others because one test names many. Each
was disabled in the broker, and the test named here failed for that reason. One did not at first, MQTT5-3.1.2-16, and was
mended: it looked at 3.1.1 only.

| clause | what was disabled | the test that failed | picked |
|---|---|---|---|
";

fn clauses(prefix: &str, table: &str) -> anyhow::Result<Vec<Clause>> {
    let text = fs::read_to_string(table).with_context(|| format!("{table} is not there"))?;
    let rows = text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split('\t');
        let (id, text) = (fields.next()?, fields.next()?);
        let concerns_server = fields.nth(1)? == "yes";
        concerns_server.then(|| Clause { id: id.replacen("MQTT", prefix, 1), text: text.to_owned() })
    });
    Ok(rows.collect())
}

/// What the doc lines of tests name that begin with `keyword`, and the tests.
pub fn collect(path: &Path, keyword: &str, tests: &mut BTreeMap<String, Vec<String>>) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            collect(&entry, keyword, tests)?;
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            read_annotations(&entry, keyword, tests)?;
        }
    }
    Ok(())
}

/// Of a doc line that begins an annotation.
const KEYWORDS: [&str; 2] = ["Conformance:", "Abuse:"];

fn read_annotations(path: &Path, keyword: &str, tests: &mut BTreeMap<String, Vec<String>>) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let file = path.display().to_string().replace('\\', "/");
    let mut pending: Vec<String> = Vec::new();
    let mut in_annotation = false;
    for line in text.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            let doc = doc.trim_start();
            if KEYWORDS.iter().any(|known| doc.starts_with(known)) {
                in_annotation = doc.starts_with(keyword);
            }
            if in_annotation {
                pending.extend(ids(doc));
            }
            continue;
        }
        in_annotation = false;
        if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next()) {
            for id in pending.drain(..) {
                tests.entry(id).or_default().push(format!("{file}::{name}"));
            }
        }
    }
    ensure!(pending.is_empty(), "{file}: an annotation without a test behind it");
    Ok(())
}

fn ids(doc: &str) -> impl Iterator<Item = String> {
    doc.split('[').skip(1).filter_map(|part| part.split_once(']')).map(|(id, _)| id.to_owned())
}
