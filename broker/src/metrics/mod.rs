//! What the broker counts, and how others read it.
//!
//! Arbiters count in [`ArbiterCounters`], plain cells of their own, and flush them into the totals of the process. The
//! same flush feeds Prometheus (through the `metrics` recorder) and [`Metrics::snapshot`], from which `$SYS` is
//! written. Other parts of the process may use the macros of the `metrics` crate directly. A process may also count
//! nothing at all (`metrics.enabled`).

mod api;
mod build;
mod counters;
mod descriptors;
mod events;
mod groups;
mod http_auth;
mod jwks;
mod load;
mod log_lines;
mod node;
mod page;
mod process;
mod readiness;
mod reference;
mod reloads;
mod storage;
mod times;
mod tls;

use std::sync::{Arc, OnceLock};

use kentongan_cluster::Stats;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub use api::{ApiMetrics, ApiOutcome};
pub use counters::{
    ArbiterCounters, AuthenticationOutcome, CloseReason, ConnectRefusal, Count, CountBy, DropReason, Family, Kind,
    Label, Level, MalformedReason, PacketKind, PublishRefusal, SubscribeRefusal,
};
use counters::{FAMILIES, Totals};
pub use events::{EventDrop, EventMetrics, WebhookOutcome};
pub use http_auth::{HttpAuthMetrics, HttpAuthNotAsked, HttpAuthOutcome, HttpAuthRights};
pub use jwks::count_jwks_fetch;
pub use load::{Load, LoadAverages};
pub use node::{ClusterFigures, NodeFigures, PeerFigures};
pub use process::anonymous_bytes;
pub use readiness::render_readiness;
pub use reference::reference_page;
pub use reloads::ReloadOutcome;
use reloads::Reloads;
pub use times::TimeCounts;
pub use tls::{CertificateUse, HandshakeOutcome, TlsMetrics};

/// Says how the node is, if there still is one. Must not wait.
type NodeSource = Box<dyn Fn() -> Option<NodeFigures> + Send + Sync>;

/// The metrics of the process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    totals: Arc<Totals>,
    prometheus: PrometheusHandle,
    reloads: Reloads,
    api: ApiMetrics,
    tls: TlsMetrics,
    http_auth: HttpAuthMetrics,
    events: EventMetrics,
    storage: Arc<OnceLock<Arc<Stats>>>,
    node: Arc<OnceLock<NodeSource>>,
    connections_max: metrics::Gauge,
    counting: bool,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Installs the recorder of the process, the first time; later calls give the same metrics.
    ///
    /// If another recorder was installed before, what the macros of the `metrics` crate count goes there, and only
    /// the arbiters' counters are shown here. Without `counting`, nobody counts anything in this process.
    pub fn install(counting: bool) -> Self {
        static INSTALLED: OnceLock<Metrics> = OnceLock::new();
        INSTALLED
            .get_or_init(|| {
                let recorder = builder().build_recorder();
                counters::set_counting(counting);
                let metrics = Self { counting, ..Self::with_recorder(&recorder) };
                if metrics::set_global_recorder(recorder).is_err() {
                    tracing::warn!("another metrics recorder is installed; /metrics shows the arbiters' counters only");
                }
                metrics
            })
            .clone()
    }

    /// Metrics that share nothing with the rest of the process, for tests.
    #[must_use]
    pub fn isolated() -> Self {
        Self::with_recorder(&builder().build_recorder())
    }

    fn with_recorder(recorder: &PrometheusRecorder) -> Self {
        metrics::with_local_recorder(recorder, || {
            describe();
            jwks::register();
            Self {
                totals: Arc::new(Totals::register()),
                prometheus: recorder.handle(),
                reloads: Reloads::register(),
                api: ApiMetrics::register(),
                tls: TlsMetrics::register(),
                http_auth: HttpAuthMetrics::register(),
                events: EventMetrics::register(),
                storage: Arc::default(),
                node: Arc::default(),
                connections_max: descriptors::register(),
                counting: true,
            }
        })
    }

    /// The counters of one more arbiter; it must flush them.
    #[must_use]
    pub fn arbiter(&self) -> ArbiterCounters {
        ArbiterCounters::new(Arc::clone(&self.totals))
    }

    /// Shows what the log and the checkpoints did, as `stats` count it. The first call holds.
    pub fn show_storage(&self, stats: Arc<Stats>) {
        if self.storage.set(stats).is_err() {
            tracing::warn!("another log is shown in /metrics already");
        }
    }

    /// Shows how the node is, as `source` says when it is asked, which must not wait. The first call holds.
    pub fn show_node(&self, source: impl Fn() -> Option<NodeFigures> + Send + Sync + 'static) {
        if self.node.set(Box::new(source)).is_err() {
            tracing::warn!("another node is shown in /metrics already");
        }
    }

    /// Shows how many connections of clients the process takes.
    pub fn show_connections_max(&self, connections_max: usize) {
        self.connections_max.set(connections_max as f64);
    }

    /// The counters of the HTTP API.
    #[must_use]
    pub fn api(&self) -> ApiMetrics {
        self.api.clone()
    }

    /// Counts that the settings were read again.
    pub fn reloaded(&self, outcome: ReloadOutcome) {
        self.reloads.count(outcome);
    }

    /// The counters of TLS.
    #[must_use]
    pub fn tls(&self) -> TlsMetrics {
        self.tls.clone()
    }

    /// The counters of the authentication server.
    #[must_use]
    pub fn http_auth(&self) -> HttpAuthMetrics {
        self.http_auth.clone()
    }

    /// The counters of events.
    #[must_use]
    pub fn events(&self) -> EventMetrics {
        self.events.clone()
    }

    /// Whether the broker's own figures are counted.
    #[must_use]
    pub fn is_counting(&self) -> bool {
        self.counting
    }

    /// The text that Prometheus scrapes. What is not counted is not there, rather than 0.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        if self.counting {
            text = self.prometheus.render();
            self.totals.render(&mut text);
            log_lines::render(&mut text);
        }
        if let Some(node) = self.node.get().and_then(|node| node()) {
            node::render(&mut text, &node);
        }
        if let Some(stats) = self.storage.get() {
            storage::render(&mut text, stats);
            groups::render(&mut text, stats);
        }
        build::render(&mut text);
        process::render(&mut text);
        text
    }

    /// Lets histograms forget what was scraped long ago; call it every few seconds.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }

    /// The totals as of the arbiters' last flush.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let totals = &*self.totals;
        let sum = |counts: &[counters::CountTotal]| counts.iter().map(counters::CountTotal::get).sum();
        Snapshot {
            clients_connected: totals.connections.get(),
            clients_maximum: totals.connections.maximum(),
            clients_total: totals.sessions.get(),
            clients_expired: totals.sessions_expired.get(),
            sockets: totals.sockets_accepted.get(),
            connections: totals.connects_accepted.get(),
            packets_received: sum(&totals.packets_received),
            packets_sent: sum(&totals.packets_sent),
            publishes_received: sum(&totals.messages_received),
            publishes_sent: sum(&totals.messages_sent),
            publishes_dropped: sum(&totals.messages_dropped),
            publish_bytes_received: totals.payload_bytes_received.get(),
            publish_bytes_sent: totals.payload_bytes_sent.get(),
            bytes_received: totals.bytes_received.get(),
            bytes_sent: totals.bytes_sent.get(),
            retained_messages: totals.retained_messages.get(),
            retained_bytes: totals.retained_bytes.get(),
            subscriptions: totals.subscriptions.get(),
            shared_subscriptions: totals.subscriptions_shared.get(),
            stored_messages: totals.queued_messages.get() + totals.retained_messages.get(),
            stored_bytes: totals.queued_bytes.get() + totals.retained_bytes.get(),
            inflight_messages: totals.inflight_messages.get(),
        }
    }
}

/// Totals of the process at one moment, under the names that `$SYS` gives them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Clients connected now.
    pub clients_connected: u64,
    /// The most clients that were connected at once.
    pub clients_maximum: u64,
    /// Sessions, those of clients that are away included.
    pub clients_total: u64,
    /// Sessions that expired.
    pub clients_expired: u64,
    /// Sockets accepted since the start.
    pub sockets: u64,
    /// CONNECTs accepted since the start.
    pub connections: u64,
    /// Packets of any kind received; mosquitto calls these messages.
    pub packets_received: u64,
    /// Packets of any kind sent.
    pub packets_sent: u64,
    /// Application Messages received.
    pub publishes_received: u64,
    /// Application Messages sent.
    pub publishes_sent: u64,
    /// Application Messages that did not reach a session they were meant for.
    pub publishes_dropped: u64,
    /// Payload bytes of Application Messages received.
    pub publish_bytes_received: u64,
    /// Payload bytes of Application Messages sent.
    pub publish_bytes_sent: u64,
    /// Bytes read from clients.
    pub bytes_received: u64,
    /// Bytes written to clients.
    pub bytes_sent: u64,
    /// Retained messages.
    pub retained_messages: u64,
    /// Their bytes.
    pub retained_bytes: u64,
    /// Subscriptions of all sessions.
    pub subscriptions: u64,
    /// Those of them that are shared.
    pub shared_subscriptions: u64,
    /// Messages held: queued and retained.
    pub stored_messages: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Messages sent and not yet acknowledged.
    pub inflight_messages: u64,
}

fn builder() -> PrometheusBuilder {
    let buckets = [(http_auth::SECONDS, http_auth::SECONDS_BUCKETS), (events::SECONDS, events::BUCKETS)];
    buckets.into_iter().fold(PrometheusBuilder::new(), |builder, (family, buckets)| {
        let builder = builder.set_buckets_for_metric(Matcher::Full(String::from(family)), buckets);
        builder.expect("there are buckets")
    })
}

/// Gives the recorder that is current the description of every family.
fn describe() {
    let others = [
        reloads::FAMILIES,
        api::FAMILIES,
        tls::FAMILIES,
        http_auth::FAMILIES,
        jwks::FAMILIES,
        events::FAMILIES,
        descriptors::FAMILIES,
    ];
    for family in FAMILIES.iter().chain(others.into_iter().flatten()) {
        let text = family.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        match family.kind {
            Kind::Counter => metrics::describe_counter!(family.name, text),
            Kind::Gauge => metrics::describe_gauge!(family.name, text),
            Kind::Histogram => metrics::describe_histogram!(family.name, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use kentongan_proto::mqtt::QoS;

    use super::*;

    #[test]
    fn what_arbiters_count_is_seen_after_their_flush() {
        let metrics = Metrics::isolated();
        let (one, two) = (metrics.arbiter(), metrics.arbiter());
        one.messages_received.inc(QoS::AtLeastOnce);
        two.messages_received.add(QoS::AtMostOnce, 4);
        one.connections.add(3);
        assert_eq!(metrics.snapshot(), Snapshot::default(), "nothing flushed yet");

        one.flush();
        two.flush();
        two.flush();
        two.connections.dec();
        two.flush();

        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.publishes_received, 5);
        assert_eq!((snapshot.clients_connected, snapshot.clients_maximum), (2, 3));
        let text = metrics.render();
        for line in [
            "# HELP kentongan_connections Clients connected now.",
            "# TYPE kentongan_messages_received_total counter",
            "kentongan_messages_received_total{qos=\"1\"} 1",
            "kentongan_messages_received_total{qos=\"2\"} 0",
            "kentongan_connections 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
