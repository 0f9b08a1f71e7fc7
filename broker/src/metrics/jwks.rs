//! Keys of tokens that a server has (`auth.jwt.jwks_url`), which are fetched by tasks that come and go with the settings.

use std::time::{SystemTime, UNIX_EPOCH};

use super::counters::LabelInfo;
use super::{Family, Kind};

const FETCHES: &str = "kentongan_jwks_fetches_total";
const FETCHED: &str = "kentongan_jwks_last_fetch_timestamp_seconds";
const OUTCOMES: [&str; 2] = ["fetched", "failed"];

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: FETCHES,
        kind: Kind::Counter,
        doc: &["Fetches of the keys of tokens (`auth.jwt.jwks_url`)."],
        label: Some(LabelInfo {
            name: "outcome",
            values: &OUTCOMES,
            meanings: &["They are those that the server has.", "Those of before stay, if there are any."],
        }),
    },
    Family {
        name: FETCHED,
        kind: Kind::Gauge,
        doc: &["When they were fetched last, in Unix time; 0: never."],
        label: None,
    },
];

/// With the recorder that is current.
pub(super) fn register() {
    for outcome in OUTCOMES {
        metrics::counter!(FETCHES, "outcome" => outcome).increment(0);
    }
    metrics::gauge!(FETCHED).set(0.0);
}

/// Counts a fetch, with the recorder of the process.
pub fn count_jwks_fetch(succeeded: bool) {
    metrics::counter!(FETCHES, "outcome" => OUTCOMES[usize::from(!succeeded)]).increment(1);
    if succeeded {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::gauge!(FETCHED).set(now.as_secs_f64());
    }
}
