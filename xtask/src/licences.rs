//! The licences of what the broker is linked with: all of them allowed, and their texts, which a package brings along.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::{fs, process};

use anyhow::{Context, ensure};
use serde_json::Value;

/// What may be linked and given away with a program under the Apache License.
const ALLOWED: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// What a file with a licence or a notice begins with.
const FILES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"];

/// Platforms that there are packages for.
const PLATFORMS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

struct Dependency {
    name: String,
    licence: String,
    directory: String,
}

/// Fails if a licence is not allowed.
pub fn check() -> anyhow::Result<()> {
    let refused: Vec<String> = dependencies()?
        .into_iter()
        .filter(|one| !is_allowed(&one.licence))
        .map(|one| format!("{}: {}", one.name, if one.licence.is_empty() { "no licence" } else { &one.licence }))
        .collect();
    ensure!(refused.is_empty(), "licences that xtask/src/licences.rs does not allow: {}", refused.join(", "));
    Ok(())
}

/// Every text once, with the crates that it holds for.
pub fn texts() -> anyhow::Result<String> {
    check()?;
    let mut index = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for dependency in dependencies()? {
        let _ = writeln!(index, "{}: {}", dependency.name, dependency.licence);
        for text in files(Path::new(&dependency.directory))? {
            texts.entry(text).or_default().insert(dependency.name.clone());
        }
    }
    let mut page = format!("Kentongan contains these crates, under these licences.\n\n{index}");
    for (text, crates) in texts {
        let crates: Vec<_> = crates.into_iter().collect();
        let line = "-".repeat(80);
        let _ = write!(page, "\n{line}\n{}:\n\n{}\n", crates.join(", "), text.trim_end());
    }
    Ok(page)
}

fn files(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_ascii_uppercase();
        if FILES.iter().any(|file| name.starts_with(file)) && entry.file_type()?.is_file() {
            texts.push(fs::read_to_string(entry.path()).with_context(|| entry.path().display().to_string())?);
        }
    }
    Ok(texts)
}

/// What `kentongan` is linked with on any platform, our own crates not counted.
fn dependencies() -> anyhow::Result<Vec<Dependency>> {
    let mut all = BTreeMap::new();
    for platform in PLATFORMS {
        let metadata = metadata(platform)?;
        let ours: BTreeSet<&str> = strings(&metadata["workspace_members"]).collect();
        let linked = linked(&metadata)?;
        for package in metadata["packages"].as_array().context("packages")? {
            let field = |name: &str| package[name].as_str().unwrap_or_default();
            let id = field("id");
            if !linked.contains(id) || ours.contains(id) {
                continue;
            }
            let directory = field("manifest_path").trim_end_matches("Cargo.toml");
            let name = format!("{} {}", field("name"), field("version"));
            let licence = field("license").to_owned();
            all.insert(name.clone(), Dependency { name, licence, directory: directory.to_owned() });
        }
    }
    Ok(all.into_values().collect())
}

fn metadata(platform: &str) -> anyhow::Result<Value> {
    let arguments = ["metadata", "--locked", "--format-version", "1", "--filter-platform", platform];
    let output = process::Command::new("cargo").args(arguments).stderr(process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo metadata failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The identifiers of all that the broker needs at run time, procedural macros among them.
fn linked(metadata: &Value) -> anyhow::Result<BTreeSet<&str>> {
    let nodes = metadata["resolve"]["nodes"].as_array().context("a resolved graph")?;
    let by_id: BTreeMap<&str, &Value> = nodes.iter().filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let packages = metadata["packages"].as_array().context("packages")?;
    let broker = packages.iter().find(|one| one["name"] == "kentongan").and_then(|one| one["id"].as_str());
    let mut waiting = vec![broker.context("there is a package kentongan")?];
    let mut found = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !found.insert(id) {
            continue;
        }
        for dependency in by_id[id]["deps"].as_array().into_iter().flatten() {
            let mut kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            if kinds.any(|kind| kind["kind"].is_null()) {
                waiting.extend(dependency["pkg"].as_str());
            }
        }
    }
    Ok(found)
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether an SPDX expression can be kept by keeping allowed licences only. What is not understood is not allowed.
fn is_allowed(expression: &str) -> bool {
    // Older crates write "MIT/Apache-2.0".
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = expression.split_whitespace().peekable();
    any(&mut words) == Some(true) && words.peek().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = all(words)?;
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all(words)?;
    }
    Some(allowed)
}

fn all(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words)?;
    }
    Some(allowed)
}

fn one(words: &mut Words<'_>) -> Option<bool> {
    if words.next_if_eq(&"(").is_some() {
        let allowed = any(words)?;
        return words.next_if_eq(&")").map(|_| allowed);
    }
    let mut licence = words.next()?.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", words.next()?);
    }
    Some(ALLOWED.contains(&licence.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_allowed_if_allowed_licences_keep_it() {
        for allowed in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        ] {
            assert!(is_allowed(allowed), "{allowed}");
        }
        for refused in
            ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC", "MIT ISC", "MIT OR", "Apache-2.0 WITH x", "AND"]
        {
            assert!(!is_allowed(refused), "{refused}");
        }
    }
}
