//! Requests to the authentication server, counted where they are made.

use std::sync::Arc;
use std::time::Duration;

use super::counters::{Kind, LabelInfo};
use super::{Family, Label};
use crate::auth::BreakerState;

const REQUESTS: &str = "kentongan_http_auth_requests_total";
pub(super) const SECONDS: &str = "kentongan_http_auth_request_seconds";
const IN_PROGRESS: &str = "kentongan_http_auth_requests_in_progress";
const WAITING: &str = "kentongan_http_auth_waiting";
const NOT_ASKED: &str = "kentongan_http_auth_not_asked_total";
const BREAKER: &str = "kentongan_http_auth_breaker";
const RIGHTS: &str = "kentongan_http_auth_rights_total";

/// Upper bounds of the buckets of [`SECONDS`].
pub(super) const SECONDS_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

pub(super) const fn label<L: Label>() -> Option<LabelInfo> {
    Some(LabelInfo { name: L::NAME, values: L::VALUES, meanings: L::MEANINGS })
}

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: REQUESTS,
        kind: Kind::Counter,
        doc: &["Requests to the authentication server (`auth.http`)."],
        label: label::<HttpAuthOutcome>(),
    },
    Family {
        name: SECONDS,
        kind: Kind::Histogram,
        doc: &["Time that they took, from the request to the last byte of the answer or to giving up."],
        label: None,
    },
    Family {
        name: IN_PROGRESS,
        kind: Kind::Gauge,
        doc: &["Those under way, at most `auth.http.requests_max`."],
        label: None,
    },
    Family {
        name: WAITING,
        kind: Kind::Gauge,
        doc: &["Those that wait for their turn, at most `auth.http.queue_max`."],
        label: None,
    },
    Family {
        name: NOT_ASKED,
        kind: Kind::Counter,
        doc: &["Requests that were not made."],
        label: label::<HttpAuthNotAsked>(),
    },
    Family {
        name: BREAKER,
        kind: Kind::Gauge,
        doc: &[
            "Whether the server is asked: 0, it is; 1, it is not for a while, since it did not answer; 2, one request tries it.",
        ],
        label: None,
    },
    Family {
        name: RIGHTS,
        kind: Kind::Counter,
        doc: &["Times that the rights of a connected client were due to be asked for again."],
        label: label::<HttpAuthRights>(),
    },
];

macro_rules! outcomes {
    ($(
        $(#[doc = $doc:literal])*
        pub enum $name:ident as $label:literal {
            $(#[doc = $value_doc:literal] $variant:ident = $value:literal,)*
        }
    )*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $(#[doc = $value_doc] $variant,)* }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($value),*];
            const MEANINGS: &'static [&'static str] = &[$($value_doc),*];

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

pub(super) use outcomes;

outcomes! {
    /// What came of a request.
    pub enum HttpAuthOutcome as "outcome" {
        /// The server allowed it.
        Allow = "allow",
        /// It denied it.
        Deny = "deny",
        /// It left it to others.
        Ignore = "ignore",
        /// It answered with another status than 200.
        Status = "status",
        /// It answered with something that is not understood, or too large.
        Invalid = "invalid",
        /// It did not answer in time.
        Timeout = "timeout",
        /// It could not be reached, or the answer broke off.
        Unreachable = "unreachable",
    }

    /// Why a request was not made.
    pub enum HttpAuthNotAsked as "reason" {
        /// The decision was known.
        Remembered = "remembered",
        /// The server did not answer before (`auth.http.breaker_failures`).
        BreakerOpen = "breaker_open",
        /// Too many were waiting.
        Busy = "busy",
        /// The client went while it waited.
        Gone = "gone",
    }

    /// What came of asking again what a client may.
    pub enum HttpAuthRights as "outcome" {
        /// As before.
        Unchanged = "unchanged",
        /// Other rights, which count at once.
        Changed = "changed",
        /// The client may not be here any more.
        Denied = "denied",
        /// The server decided nothing: what it said before goes on to count.
        Undecided = "undecided",
        /// It was put off, since too many logins were waiting.
        PutOff = "put_off",
    }
}

/// Counters of the authentication server. Cheap to clone.
#[derive(Clone)]
pub struct HttpAuthMetrics {
    outcomes: Arc<[metrics::Counter]>,
    seconds: metrics::Histogram,
    in_progress: metrics::Gauge,
    waiting: metrics::Gauge,
    not_asked: Arc<[metrics::Counter]>,
    breaker: metrics::Gauge,
    rights: Arc<[metrics::Counter]>,
}

impl std::fmt::Debug for HttpAuthMetrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("HttpAuthMetrics").finish_non_exhaustive()
    }
}

/// Counts nothing.
impl Default for HttpAuthMetrics {
    fn default() -> Self {
        let none = |count| std::iter::repeat_with(metrics::Counter::noop).take(count).collect();
        Self {
            outcomes: none(HttpAuthOutcome::VALUES.len()),
            seconds: metrics::Histogram::noop(),
            in_progress: metrics::Gauge::noop(),
            waiting: metrics::Gauge::noop(),
            not_asked: none(HttpAuthNotAsked::VALUES.len()),
            breaker: metrics::Gauge::noop(),
            rights: none(HttpAuthRights::VALUES.len()),
        }
    }
}

pub(super) fn counters<L: Label>(family: &'static str) -> Arc<[metrics::Counter]> {
    let counted = |&value: &&'static str| {
        let counter = metrics::counter!(family, L::NAME => value);
        counter.increment(0);
        counter
    };
    L::VALUES.iter().map(counted).collect()
}

pub(super) fn gauge(family: &'static str) -> metrics::Gauge {
    let gauge = metrics::gauge!(family);
    gauge.set(0.0);
    gauge
}

impl HttpAuthMetrics {
    /// With the recorder that is current.
    pub(super) fn register() -> Self {
        Self {
            outcomes: counters::<HttpAuthOutcome>(REQUESTS),
            seconds: metrics::histogram!(SECONDS),
            in_progress: gauge(IN_PROGRESS),
            waiting: gauge(WAITING),
            not_asked: counters::<HttpAuthNotAsked>(NOT_ASKED),
            breaker: gauge(BREAKER),
            rights: counters::<HttpAuthRights>(RIGHTS),
        }
    }

    /// A request is made.
    pub fn begun(&self) {
        self.in_progress.increment(1.0);
    }

    /// It is over.
    pub fn ended(&self, outcome: HttpAuthOutcome, took: Duration) {
        self.in_progress.decrement(1.0);
        self.outcomes[outcome.index()].increment(1);
        self.seconds.record(took.as_secs_f64());
    }

    /// So many wait.
    pub fn waiting(&self, count: usize) {
        self.waiting.set(count as f64);
    }

    /// One is not made.
    pub fn not_asked(&self, reason: HttpAuthNotAsked) {
        self.not_asked[reason.index()].increment(1);
    }

    /// The breaker is so from now on.
    pub fn breaker(&self, state: BreakerState) {
        self.breaker.set(match state {
            BreakerState::Closed => 0.0,
            BreakerState::Open => 1.0,
            BreakerState::Probing => 2.0,
        });
    }

    /// What a client may was due to be asked for again.
    pub fn rights(&self, outcome: HttpAuthRights) {
        self.rights[outcome.index()].increment(1);
    }
}
