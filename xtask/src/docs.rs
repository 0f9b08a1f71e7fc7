//! The reference pages, which are made from the code so that they cannot drift from it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A page's file name and what makes its text.
type Page = (&'static str, fn() -> String);

const PAGES: [Page; 4] = [
    ("settings.md", kentongan::config::reference_page),
    ("metrics.md", kentongan::metrics::reference_page),
    ("command-line.md", kentongan::cli::reference_page),
    ("api.json", kentongan::api::reference_page),
];

/// Writes the pages, or with `check` compares them and says which are stale.
pub fn run(check: bool) -> anyhow::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
    let mut stale = Vec::new();
    for (name, make) in PAGES {
        let path = directory.join(name);
        let page = make();
        if fs::read_to_string(&path).is_ok_and(|found| found == page) {
            continue;
        }
        if check {
            stale.push(name);
        } else {
            write(&path, &page)?;
        }
    }
    if !stale.is_empty() {
        bail!("stale in docs/reference: {}; run `cargo xtask docs`", stale.join(", "));
    }
    Ok(())
}

fn write(path: &PathBuf, page: &str) -> anyhow::Result<()> {
    let directory = path.parent().context("a page lies in a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}
