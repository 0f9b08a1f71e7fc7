//! A process that counts nothing. Alone in its program, because whether anything is counted is the process's.

use kentongan::metrics::{DropReason, Metrics, Snapshot};
use kentongan_proto::mqtt::QoS;

/// Not only is nothing shown: no cell is touched.
#[test]
fn with_metrics_off_no_counter_moves() {
    let metrics = Metrics::install(false);
    let counters = metrics.arbiter();
    counters.bytes_received.add(7);
    counters.messages_received.inc(QoS::AtLeastOnce);
    counters.messages_dropped.inc(DropReason::Expired);
    counters.connections.inc();
    assert_eq!(counters.bytes_received.unflushed(), 0);
    assert_eq!(counters.messages_received.unflushed(QoS::AtLeastOnce), 0);
    assert_eq!(counters.messages_dropped.unflushed(DropReason::Expired), 0);
    assert_eq!(counters.connections.unflushed(), 0);
    counters.flush();
    assert_eq!(metrics.snapshot(), Snapshot::default());
    assert!(!metrics.render().contains("kentongan_messages"));
}
