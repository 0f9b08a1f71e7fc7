//! docs/reference/conformance.md: every clause that concerns a server, and the test that watches it.
//!
//! A test names its clauses in a doc line, `Conformance: [MQTT5-3.1.2-22], [MQTT311-3.1.2-24]`. Clauses that no test can
//! show have their reason in `conformance_reasons.tsv`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

const PAGE: &str = "docs/reference/conformance.md";
const TABLES: [(&str, &str, &str); 2] = [
    ("MQTT5", "MQTT 5", "docs/reference/mqtt5-normative.tsv"),
    ("MQTT311", "MQTT 3.1.1", "docs/reference/mqtt311-normative.tsv"),
];
const SOURCES: [&str; 5] = ["broker/tests", "broker/src", "proto/src", "proto/tests", "cluster/src"];
const REASONS: &str = include_str!("conformance_reasons.tsv");

struct Clause {
    id: String,
    text: String,
}

/// Writes the page, or with `check` holds it against what would be written.
pub fn run(check: bool) -> anyhow::Result<()> {
    let mut tests = BTreeMap::new();
    for root in SOURCES {
        collect(Path::new(root), &mut tests)?;
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
    println!("{} of {total} clauses shown; not yet: {}", total - missing.len(), missing.join(" "));
    if check {
        let stored = fs::read_to_string(PAGE).unwrap_or_default();
        ensure!(stored == page, "{PAGE} is stale: run cargo xtask fix");
    } else {
        fs::write(PAGE, page)?;
    }
    Ok(())
}

const HEAD: &str = "\
# Conformance

Made from the tests' own annotations by `cargo xtask conformance`; do not edit. Each clause of the specifications that
concerns a server, in short, and the tests that fail when it is broken, or why none can exist.
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

fn collect(path: &Path, tests: &mut BTreeMap<String, Vec<String>>) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            collect(&entry, tests)?;
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            read_annotations(&entry, tests)?;
        }
    }
    Ok(())
}

fn read_annotations(path: &Path, tests: &mut BTreeMap<String, Vec<String>>) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let file = path.display().to_string().replace('\\', "/");
    let mut pending: Vec<String> = Vec::new();
    let mut in_annotation = false;
    for line in text.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            in_annotation |= doc.trim_start().starts_with("Conformance:");
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
