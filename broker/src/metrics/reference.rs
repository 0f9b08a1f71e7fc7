//! The reference page of metrics, made from the descriptions that Prometheus sees.

use std::fmt::Write as _;

use super::counters::FAMILIES;
use super::{
    Family, Kind, api, build, descriptors, events, groups, http_auth, jwks, log_lines, node, process, readiness,
    reloads, storage, tls,
};

const PREFACE: &str = "\
<!-- Made from the comments in broker/src/metrics/ by `cargo xtask docs`; change it there. -->

# Metrics

`GET /metrics` on the HTTP address (`--http`, by default 127.0.0.1:8090) answers in the text format of Prometheus. Names
follow its conventions: base units, `_total` for what only grows. The figures of the broker are at most about a second
old. What to make of them: [operations](../guide/operations.md).

No label holds a Client Identifier, a topic or an address: the number of series depends on groups and nodes only. Latencies
are sampled, so that no message pays for it: `_count` says how many were looked at.
";

/// The page, in Markdown.
#[must_use]
pub fn reference_page() -> String {
    let mut page = String::from(PREFACE);
    push_families(&mut page, "The broker", FAMILIES);
    push_families(&mut page, "The node", node::families());
    push_families(&mut page, "Its descriptors", descriptors::FAMILIES);
    push_families(&mut page, "Its readiness", readiness::FAMILIES);
    push_families(&mut page, "The log and the checkpoints", storage::families());
    push_families(&mut page, "The groups", groups::families());
    push_families(&mut page, "TLS towards clients", tls::FAMILIES);
    push_families(&mut page, "The authentication server", http_auth::FAMILIES);
    push_families(&mut page, "The keys of tokens", jwks::FAMILIES);
    push_families(&mut page, "Events of clients", events::FAMILIES);
    push_families(&mut page, "Its settings", reloads::FAMILIES);
    push_families(&mut page, "The HTTP API", api::FAMILIES);
    push_families(&mut page, "Its own log", log_lines::FAMILIES);
    push_families(&mut page, "The program", build::FAMILIES);
    push_families(&mut page, "The process", process::FAMILIES);
    page
}

fn push_families<'a>(page: &mut String, heading: &str, families: impl IntoIterator<Item = &'a Family>) {
    let _ = write!(page, "\n## {heading}\n");
    for family in families {
        let kind = match family.kind {
            Kind::Counter => "Counter",
            Kind::Gauge => "Gauge",
            Kind::Histogram => "Histogram",
        };
        let _ = write!(page, "\n### `{}`\n\n{kind}. {}\n", family.name, family.description());
        let Some(label) = family.label else { continue };
        if label.values.is_empty() {
            let _ = write!(page, "\nLabel `{}`: {}\n", label.name, label.meanings.concat());
            continue;
        }
        if label.meanings.iter().all(|meaning| is_a_packet_name(meaning)) {
            let values: Vec<String> = label.values.iter().map(|value| format!("`{value}`")).collect();
            let _ = write!(page, "\nLabel `{}`: {}.\n", label.name, values.join(", "));
            continue;
        }
        let _ = write!(page, "\nLabel `{}`:\n\n", label.name);
        for (value, meaning) in label.values.iter().zip(label.meanings) {
            let _ = writeln!(page, "- `{value}`: {}", meaning.trim());
        }
    }
}

/// `CONNECT.` and the like say no more than the value itself.
fn is_a_packet_name(meaning: &str) -> bool {
    meaning.trim().trim_end_matches('.').bytes().all(|byte| byte.is_ascii_uppercase())
}
