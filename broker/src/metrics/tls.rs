//! TLS towards clients, which is counted where it happens and not by arbiters.

use std::sync::Arc;

use super::counters::{Kind, LabelInfo};
use super::{Family, Label, ReloadOutcome};

const HANDSHAKES: &str = "kentongan_tls_handshakes_total";
const IN_PROGRESS: &str = "kentongan_tls_handshakes_in_progress";
const EXPIRED: &str = "kentongan_tls_expired_lists";
const EXPIRES: &str = "kentongan_certificate_expires_timestamp_seconds";
const RELOADS: &str = "kentongan_tls_reloads_total";

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: HANDSHAKES,
        kind: Kind::Counter,
        doc: &["TLS handshakes of clients."],
        label: Some(LabelInfo {
            name: HandshakeOutcome::NAME,
            values: HandshakeOutcome::VALUES,
            meanings: HandshakeOutcome::MEANINGS,
        }),
    },
    Family {
        name: IN_PROGRESS,
        kind: Kind::Gauge,
        doc: &["TLS handshakes of clients that have begun and not ended."],
        label: None,
    },
    Family {
        name: EXPIRED,
        kind: Kind::Gauge,
        doc: &["Listeners with a list of revoked certificates whose time is over (`tls.crl_expired`)."],
        label: None,
    },
    Family {
        name: EXPIRES,
        kind: Kind::Gauge,
        doc: &["When the first of the node's own certificates for this use ends, in Unix time. 0: there is none."],
        label: Some(LabelInfo {
            name: CertificateUse::NAME,
            values: CertificateUse::VALUES,
            meanings: CertificateUse::MEANINGS,
        }),
    },
    Family {
        name: RELOADS,
        kind: Kind::Counter,
        doc: &[
            "Times that certificates, keys or lists of a listener, of the API or for the links between nodes were read again, ",
            "because they or the settings changed.",
        ],
        label: Some(LabelInfo {
            name: ReloadOutcome::NAME,
            values: ReloadOutcome::VALUES,
            meanings: &["They serve new connections.", "One of them was wrong: those of before stay."],
        }),
    },
];

/// What came of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeOutcome {
    /// It succeeded with certificates.
    Full,
    /// It succeeded with a ticket.
    Resumed,
    /// The two sides do not fit, or the client's certificate was refused, or it refused ours.
    Failed,
    /// The client went, or took too long.
    GivenUp,
    /// Too many were going on.
    Refused,
}

impl Label for HandshakeOutcome {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [&'static str] = &["full", "resumed", "failed", "given_up", "refused"];
    const MEANINGS: &'static [&'static str] = &[
        "It succeeded with certificates.",
        "It succeeded with a ticket of an earlier one.",
        "The two sides do not fit, or one refused the other's certificate.",
        "The client went, or took longer than `connect_timeout_seconds`.",
        "As many were going on as `tls.handshakes_max` allows.",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// What a certificate of this node's is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateUse {
    /// Clients are shown it.
    Listener,
    /// Operators are shown it.
    Api,
    /// Other nodes are shown it.
    Peers,
}

impl Label for CertificateUse {
    const NAME: &'static str = "use";
    const VALUES: &'static [&'static str] = &["listener", "api", "peers"];
    const MEANINGS: &'static [&'static str] = &[
        "Clients are shown it, by one listener or another (`tls.certificate_file`, `tls.sni`).",
        "Operators are shown it (`api.certificate_file`, as the file is now).",
        "Other nodes are shown it (`cluster.certificate_file`).",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// Counters of TLS. Cheap to clone.
#[derive(Clone)]
pub struct TlsMetrics {
    outcomes: Arc<[metrics::Counter]>,
    in_progress: metrics::Gauge,
    expired_lists: metrics::Gauge,
    expires: Arc<[metrics::Gauge]>,
    reloads: Arc<[metrics::Counter]>,
}

impl std::fmt::Debug for TlsMetrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TlsMetrics").finish_non_exhaustive()
    }
}

/// Counts nothing.
impl Default for TlsMetrics {
    fn default() -> Self {
        let none = |count| std::iter::repeat_with(metrics::Counter::noop).take(count).collect();
        Self {
            outcomes: none(HandshakeOutcome::VALUES.len()),
            in_progress: metrics::Gauge::noop(),
            expired_lists: metrics::Gauge::noop(),
            expires: std::iter::repeat_with(metrics::Gauge::noop).take(CertificateUse::VALUES.len()).collect(),
            reloads: none(ReloadOutcome::VALUES.len()),
        }
    }
}

impl TlsMetrics {
    /// With the recorder that is current.
    pub(super) fn register() -> Self {
        let counted = |counter: metrics::Counter| {
            counter.increment(0);
            counter
        };
        let in_progress = metrics::gauge!(IN_PROGRESS);
        in_progress.set(0.0);
        let expired_lists = metrics::gauge!(EXPIRED);
        expired_lists.set(0.0);
        Self {
            outcomes: (HandshakeOutcome::VALUES.iter())
                .map(|&outcome| counted(metrics::counter!(HANDSHAKES, HandshakeOutcome::NAME => outcome)))
                .collect(),
            in_progress,
            expired_lists,
            expires: (CertificateUse::VALUES.iter())
                .map(|&what| {
                    let gauge = metrics::gauge!(EXPIRES, CertificateUse::NAME => what);
                    gauge.set(0.0);
                    gauge
                })
                .collect(),
            reloads: (ReloadOutcome::VALUES.iter())
                .map(|&outcome| counted(metrics::counter!(RELOADS, ReloadOutcome::NAME => outcome)))
                .collect(),
        }
    }

    /// A handshake began.
    pub fn begun(&self) {
        self.in_progress.increment(1.0);
    }

    /// One that began is over.
    pub fn gone(&self) {
        self.in_progress.decrement(1.0);
    }

    /// A handshake ended so, or was not let begin.
    pub fn ended(&self, outcome: HandshakeOutcome) {
        self.outcomes[outcome.index()].increment(1);
    }

    /// So many listeners have a list of revoked certificates that has run out.
    pub fn expired_lists(&self, listeners: usize) {
        self.expired_lists.set(listeners as f64);
    }

    /// The first certificate for this use ends at this second of Unix time, if there is one.
    pub fn expires(&self, what: CertificateUse, seconds: Option<i64>) {
        self.expires[what.index()].set(seconds.unwrap_or(0) as f64);
    }

    /// Certificates were read again.
    pub fn reloaded(&self, outcome: ReloadOutcome) {
        self.reloads[outcome.index()].increment(1);
    }
}
