//! docs/reference/abuse.md: what clients can do to a broker, what it does then, and the test that shows it.
//!
//! A test names its rows in a doc line, `Abuse: [slow-connect]`. The rows stand in `abuse_rows.tsv`, those without a test with the
//! reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{bail, ensure};

use super::conformance::{collect, write_or_check};

const PAGE: &str = "docs/reference/abuse.md";
const SOURCES: [&str; 5] = ["broker/tests", "broker/src", "proto/src", "cluster/src", "loadtest/src"];
const ROWS: &str = include_str!("abuse_rows.tsv");

/// Writes the page, or with `check` holds it against what would be written.
pub fn run(check: bool) -> anyhow::Result<()> {
    let mut tests = BTreeMap::new();
    for root in SOURCES {
        collect(Path::new(root), "Abuse:", &mut tests)?;
    }
    let mut page = HEAD.to_owned();
    for (table, head) in [("abuse", ABUSE_HEAD), ("security", SECURITY_HEAD)] {
        page.push_str(head);
        for line in ROWS.lines() {
            let fields: Vec<_> = line.split('\t').collect();
            let [id, of, what, then, reason] = fields[..] else {
                bail!("abuse_rows.tsv has five columns, not {}: {line}", fields.len());
            };
            if of == table {
                let shown = shown(id, reason, tests.remove(id))?;
                writeln!(page, "| {id} | {what} | {then} | {shown} |")?;
            }
        }
    }
    let strangers: Vec<_> = tests.keys().collect();
    ensure!(strangers.is_empty(), "these stand in a test and not in abuse_rows.tsv: {strangers:?}");
    write_or_check(PAGE, &page, check)
}

fn shown(id: &str, reason: &str, tests: Option<Vec<String>>) -> anyhow::Result<String> {
    match tests {
        Some(tests) => {
            ensure!(reason.is_empty(), "{id} has a test: take its reason out of abuse_rows.tsv");
            Ok(tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", "))
        }
        None if reason.is_empty() => {
            bail!("no test names [{id}] of abuse_rows.tsv (`Abuse: [{id}]`), and no reason stands there")
        }
        None => Ok(format!("*{reason}*")),
    }
}

const HEAD: &str = "\
# Abuse

Made from the tests' own annotations by `cargo xtask abuse`; do not edit. [What to set](../guide/limits.md) on a broker that strangers
can reach stands in the guide.

Where many clients are at it at once, the tests below are the short version. The long one is `kentongan-loadtest abuse`, which starts a broker,
is all of them, and checks what the others notice: [docs/benchmarks.md](../benchmarks.md#storms) says what each storm does and how it went.
";

const ABUSE_HEAD: &str = "
## What clients do, and what they get

Clients of MQTT 3.1.1 are closed where MQTT 5 has a code.

| row | input | reaction | shown by |
|---|---|---|---|
";

const SECURITY_HEAD: &str = "
## What is always so

| row | it holds that | number | shown by |
|---|---|---|---|
";
