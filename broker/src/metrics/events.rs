//! Events of clients that were told or left out, counted where that happens.

use std::sync::Arc;
use std::time::Duration;

use super::counters::Kind;
use super::http_auth::{SECONDS_BUCKETS, counters, gauge, label, outcomes};
use super::{Family, Label};

const DROPPED: &str = "kentongan_client_events_dropped_total";
const DELIVERED: &str = "kentongan_webhook_events_delivered_total";
const REQUESTS: &str = "kentongan_webhook_requests_total";
pub(super) const SECONDS: &str = "kentongan_webhook_request_seconds";
const WAITING: &str = "kentongan_webhook_waiting_events";
const WAITING_BYTES: &str = "kentongan_webhook_waiting_bytes";

/// Upper bounds of the buckets of [`SECONDS`].
pub(super) const BUCKETS: &[f64] = SECONDS_BUCKETS;

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: DROPPED,
        kind: Kind::Counter,
        doc: &["Events of clients that were left out."],
        label: label::<EventDrop>(),
    },
    Family {
        name: DELIVERED,
        kind: Kind::Counter,
        doc: &["Events that the server of `events.webhook` has taken."],
        label: None,
    },
    Family { name: REQUESTS, kind: Kind::Counter, doc: &["Requests to it."], label: label::<WebhookOutcome>() },
    Family {
        name: SECONDS,
        kind: Kind::Histogram,
        doc: &["Time that they took, from the request to the last byte of the answer or to giving up."],
        label: None,
    },
    Family {
        name: WAITING,
        kind: Kind::Gauge,
        doc: &["Events that wait for it, at most `events.webhook.queue_events_max`."],
        label: None,
    },
    Family {
        name: WAITING_BYTES,
        kind: Kind::Gauge,
        doc: &["Their bytes, at most `events.webhook.queue_bytes_max`."],
        label: None,
    },
];

outcomes! {
    /// Why an event was left out.
    pub enum EventDrop as "reason" {
        /// `$SYS`: more happened at once than is told.
        SysBusy = "sys_busy",
        /// Webhook: as many waited as may.
        QueueEvents = "queue_events",
        /// Webhook: they had as many bytes as they may.
        QueueBytes = "queue_bytes",
        /// Webhook: the server would not have them, and not because it was busy.
        Refused = "refused",
        /// Webhook: the server could not be told for too long (`events.webhook.give_up_seconds`).
        GaveUp = "gave_up",
        /// Webhook: the process ended.
        Ended = "ended",
    }

    /// What came of a request.
    pub enum WebhookOutcome as "outcome" {
        /// The server took it (2xx).
        Taken = "taken",
        /// It would not have it (any other status but the next ones).
        Refused = "refused",
        /// It could not take it for now (408, 425, 429, 5xx).
        NotNow = "not_now",
        /// It did not answer in time.
        Timeout = "timeout",
        /// It could not be reached, or the answer broke off.
        Unreachable = "unreachable",
    }
}

/// Counters of events. Cheap to clone.
#[derive(Clone)]
pub struct EventMetrics {
    dropped: Arc<[metrics::Counter]>,
    delivered: metrics::Counter,
    requests: Arc<[metrics::Counter]>,
    seconds: metrics::Histogram,
    waiting: metrics::Gauge,
    waiting_bytes: metrics::Gauge,
}

impl std::fmt::Debug for EventMetrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EventMetrics").finish_non_exhaustive()
    }
}

/// Counts nothing.
impl Default for EventMetrics {
    fn default() -> Self {
        let none = |count| std::iter::repeat_with(metrics::Counter::noop).take(count).collect();
        Self {
            dropped: none(EventDrop::VALUES.len()),
            delivered: metrics::Counter::noop(),
            requests: none(WebhookOutcome::VALUES.len()),
            seconds: metrics::Histogram::noop(),
            waiting: metrics::Gauge::noop(),
            waiting_bytes: metrics::Gauge::noop(),
        }
    }
}

impl EventMetrics {
    /// With the recorder that is current.
    pub(super) fn register() -> Self {
        let delivered = metrics::counter!(DELIVERED);
        delivered.increment(0);
        Self {
            dropped: counters::<EventDrop>(DROPPED),
            delivered,
            requests: counters::<WebhookOutcome>(REQUESTS),
            seconds: metrics::histogram!(SECONDS),
            waiting: gauge(WAITING),
            waiting_bytes: gauge(WAITING_BYTES),
        }
    }

    /// So many are left out.
    pub fn dropped(&self, reason: EventDrop, count: u64) {
        self.dropped[reason.index()].increment(count);
    }

    /// So many were taken.
    pub fn delivered(&self, count: u64) {
        self.delivered.increment(count);
    }

    /// A request is over.
    pub fn requested(&self, outcome: WebhookOutcome, took: Duration) {
        self.requests[outcome.index()].increment(1);
        self.seconds.record(took.as_secs_f64());
    }

    /// So many wait, of so many bytes.
    pub fn waiting(&self, events: usize, bytes: usize) {
        self.waiting.set(events as f64);
        self.waiting_bytes.set(bytes as f64);
    }
}
