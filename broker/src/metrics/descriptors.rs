//! What the process may have open, which is settled when it starts.

use super::{Family, Kind};

const NAME: &str = "kentongan_connections_max";

pub(super) const FAMILIES: &[Family] = &[Family {
    name: NAME,
    kind: Kind::Gauge,
    doc: &[
        "Connections of clients that the process takes: as many as it may open files, less what it keeps for itself and others. 0: it starts.",
    ],
    label: None,
}];

/// With the recorder that is current.
pub(super) fn register() -> metrics::Gauge {
    let gauge = metrics::gauge!(NAME);
    gauge.set(0.0);
    gauge
}
