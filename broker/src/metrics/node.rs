//! How a node and its links with others are, read from their owners when somebody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kentongan_cluster::GroupId;
use kentongan_cluster::transport::{Class, ClassStats, TransportStats};

use super::counters::LabelInfo;
use super::groups::{is, label};
use super::page::{Counted, CountedBy, Page, Read};
use super::{Family, Kind};

/// A node at one moment.
#[derive(Debug, Default)]
pub struct NodeFigures {
    /// New work waits, because an arbiter, the groups or memory cannot keep up.
    pub is_overloaded: bool,
    /// How far memory is over its mark: 0 not at all, up to 3.
    pub memory_level: u8,
    /// The mark; 0: none.
    pub memory_bytes_high_water: u64,
    /// Only the reserve of the disk is left.
    pub is_disk_full: bool,
    /// That is below so much.
    pub disk_bytes_reserve: u64,
    /// Bytes submitted to the groups and not applied.
    pub log_in_flight_bytes: usize,
    /// Different filters that somebody wants, here, at other nodes or in groups.
    pub index_filters: usize,
    /// Subscriptions behind them.
    pub index_subscriptions: usize,
    /// `None`: this is the only node there is.
    pub cluster: Option<ClusterFigures>,
}

/// A node among others.
#[derive(Debug)]
pub struct ClusterFigures {
    /// What is left of its lease.
    pub lease_left: Duration,
    /// Whether it has one.
    pub serves: bool,
    /// By how many seconds its wall clock is ahead of the cluster's.
    pub wall_clock_ahead: f64,
    /// What its lanes hold for each group without an answer.
    pub group_backlog: Vec<u64>,
    /// Nodes that belong to the cluster, this one among them.
    pub members: usize,
    /// The other nodes.
    pub peers: Vec<PeerFigures>,
    /// What was sent to them, and came.
    pub transport: Arc<TransportStats>,
}

/// Another node.
#[derive(Debug)]
pub struct PeerFigures {
    /// Its label.
    pub name: String,
    /// Whether all links with it are up, in both directions.
    pub is_up: bool,
    /// What lanes hold for clients of it without an answer.
    pub backlog: u64,
}

/// Of any node.
const OWN: &[Read<NodeFigures>] = &[
    (
        gauge(
            "kentongan_overloaded",
            &["1 if publishers are not read, because an arbiter, the groups or memory cannot keep up; else 0."],
        ),
        |node| is(node.is_overloaded),
    ),
    (
        gauge(
            "kentongan_memory_level",
            &[
                "How far memory is over `limits.memory_bytes_high_water`: 0 not at all, 1 new clients are refused, ",
                "2 publishers are not read, 3 the clients that hold most of it are closed.",
            ],
        ),
        |node| f64::from(node.memory_level),
    ),
    (gauge("kentongan_memory_high_water_bytes", &["`limits.memory_bytes_high_water`; 0: there is none."]), |node| {
        node.memory_bytes_high_water as f64
    }),
    (gauge("kentongan_disk_full", &["1 if only `storage.free_bytes_reserve` is left for the log, else 0."]), |node| {
        is(node.is_disk_full)
    }),
    (
        gauge("kentongan_disk_reserve_bytes", &["`storage.free_bytes_reserve`: with less room new work is refused."]),
        |node| node.disk_bytes_reserve as f64,
    ),
    (
        gauge("kentongan_log_in_flight_bytes", &["Bytes of commands that were submitted to groups and not applied."]),
        |node| node.log_in_flight_bytes as f64,
    ),
    (gauge("kentongan_index_filters", &["Different filters that clients here, other nodes or groups want."]), |node| {
        node.index_filters as f64
    }),
    (
        gauge("kentongan_index_subscriptions", &["What stands behind them: arbiters here, nodes, groups and members."]),
        |node| node.index_subscriptions as f64,
    ),
];

/// Of a node among others.
const MEMBER: &[Read<ClusterFigures>] = &[
    (gauge("kentongan_lease_seconds", &["What is left of the lease of this node; 0: it has none."]), |cluster| {
        cluster.lease_left.as_secs_f64()
    }),
    (gauge("kentongan_serving", &["1 if this node holds a lease and so acknowledges, else 0."]), |cluster| {
        is(cluster.serves)
    }),
    (
        gauge(
            "kentongan_wall_clock_ahead_seconds",
            &["By how much the wall clock of this machine is ahead of what most nodes say; below 0: behind."],
        ),
        |cluster| cluster.wall_clock_ahead,
    ),
    (
        gauge("kentongan_cluster_members", &["Members of the cluster, whether they run or not, this node among them."]),
        |cluster| cluster.members as f64,
    ),
];

const GROUP_BACKLOG: Family = labelled(
    "kentongan_lane_group_backlog",
    Kind::Gauge,
    &["What lanes hold for a group that it has not answered for."],
    "group",
    &["The number of a group, kept here or not."],
);

/// By other node.
const PEERS: &[Read<PeerFigures>] = &[
    (
        by_peer(
            "kentongan_lane_node_backlog",
            &["What lanes hold for clients of a node that it has not answered for."],
        ),
        |peer| peer.backlog as f64,
    ),
    (by_peer("kentongan_peer_up", &["1 if all links with a node are up, in both directions; else 0."]), |peer| {
        is(peer.is_up)
    }),
];

/// By class of traffic.
const CLASSES: &[Counted<ClassStats>] = &[
    (by_class("kentongan_peer_messages_sent_total", &["Messages handed to the network for other nodes."]), |class| {
        &class.messages_sent
    }),
    (by_class("kentongan_peer_messages_received_total", &["Messages that came from other nodes."]), |class| {
        &class.messages_received
    }),
    (by_class("kentongan_peer_bytes_sent_total", &["Bytes of them with their headers."]), |class| &class.bytes_sent),
    (by_class("kentongan_peer_bytes_received_total", &["Bytes of them with their headers."]), |class| {
        &class.bytes_received
    }),
    (by_class("kentongan_peer_links_established_total", &["Links that came up, in either direction."]), |class| {
        &class.links_up
    }),
];

/// Why a message for another node was not sent, of all classes. What must arrive is sent again.
const LOST: &[CountedBy<ClassStats>; 5] = &[
    ("full", "Too much waited already.", |class| &class.refused_full),
    ("down", "There was no link.", |class| &class.refused_down),
    ("oldest", "It was the oldest message of Raft, and made room.", |class| &class.dropped_oldest),
    ("reset", "It waited in the queue of a link that broke.", |class| &class.dropped_reset),
    ("too_large", "It is longer than a frame may be, and never goes: a mistake of the program.", |class| {
        &class.refused_too_large
    }),
];

const LOST_FAMILY: Family = Family {
    name: "kentongan_peer_messages_lost_total",
    kind: Kind::Counter,
    doc: &["Messages for other nodes that were not sent; what must arrive is sent again."],
    label: Some(LabelInfo { name: "reason", values: &firsts(LOST), meanings: &seconds(LOST) }),
};

/// Why a connection or a link with another node was not made, or ended.
const REFUSED: &[CountedBy<TransportStats>; 7] = &[
    ("dial", "Dialling came to no link.", |transport| &transport.dials_failed),
    ("connection", "There were too many, or it was plain TCP from elsewhere than this machine.", |transport| {
        &transport.refused_connections
    }),
    ("handshake", "TLS failed or took too long.", |transport| &transport.failed_handshakes),
    ("identity", "Because of what it said of itself.", |transport| &transport.refused_peers),
    ("broken", "It ended in an error.", |transport| &transport.broken_connections),
    ("malformed", "It sent bytes that are no frame, or no batch.", |transport| &transport.malformed_frames),
    ("oversize", "It sent a frame over the limit.", |transport| &transport.oversize_frames),
];

const REFUSED_FAMILY: Family = Family {
    name: "kentongan_peer_failures_total",
    kind: Kind::Counter,
    doc: &["Connections with other nodes that were not made, or ended, for a fault."],
    label: Some(LabelInfo { name: "reason", values: &firsts(REFUSED), meanings: &seconds(REFUSED) }),
};

const fn firsts<T, const N: usize>(all: &[(&'static str, &'static str, T); N]) -> [&'static str; N] {
    let mut out = [""; N];
    let mut at = 0;
    while at < N {
        out[at] = all[at].0;
        at += 1;
    }
    out
}

const fn seconds<T, const N: usize>(all: &[(&'static str, &'static str, T); N]) -> [&'static str; N] {
    let mut out = [""; N];
    let mut at = 0;
    while at < N {
        out[at] = all[at].1;
        at += 1;
    }
    out
}

const fn gauge(name: &'static str, doc: &'static [&'static str]) -> Family {
    Family { name, kind: Kind::Gauge, doc, label: None }
}

const fn labelled(
    name: &'static str,
    kind: Kind,
    doc: &'static [&'static str],
    label: &'static str,
    meanings: &'static [&'static str],
) -> Family {
    Family { name, kind, doc, label: Some(LabelInfo { name: label, values: &[], meanings }) }
}

const fn by_peer(name: &'static str, doc: &'static [&'static str]) -> Family {
    labelled(name, Kind::Gauge, doc, "peer", &["The name of another node."])
}

const fn by_class(name: &'static str, doc: &'static [&'static str]) -> Family {
    let label = LabelInfo { name: "class", values: &CLASS_NAMES, meanings: &CLASS_MEANINGS };
    Family { name, kind: Kind::Counter, doc, label: Some(label) }
}

/// In the order of [`Class::ALL`].
const CLASS_NAMES: [&str; Class::ALL.len()] = ["control", "append", "forward"];
const CLASS_MEANINGS: [&str; Class::ALL.len()] = [
    "Heartbeats, votes, leases, interest.",
    "Entries of the groups.",
    "Lanes, and what groups tell the owners of sessions.",
];

/// What [`render`] writes.
pub(super) fn families() -> Vec<&'static Family> {
    let mut all: Vec<_> = OWN.iter().map(|(family, _)| family).collect();
    all.extend(MEMBER.iter().map(|(family, _)| family));
    all.push(&GROUP_BACKLOG);
    all.extend(PEERS.iter().map(|(family, _)| family));
    all.extend(CLASSES.iter().map(|(family, _)| family));
    all.extend([&LOST_FAMILY, &REFUSED_FAMILY]);
    all
}

/// Appends the families; those about other nodes only if there may be some.
pub(super) fn render(text: &mut String, node: &NodeFigures) {
    let mut page = Page(text);
    for (family, read) in OWN {
        page.one(family, read(node));
    }
    let Some(cluster) = &node.cluster else { return };
    for (family, read) in MEMBER {
        page.one(family, read(cluster));
    }
    let held = (0..).zip(&cluster.group_backlog).map(|(group, &held)| (label(GroupId(group)), held as f64));
    page.each(&GROUP_BACKLOG, held);
    for (family, read) in PEERS {
        page.each(family, cluster.peers.iter().map(|peer| (&peer.name, read(peer))));
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let transport = &cluster.transport;
    for (family, counter) in CLASSES {
        let classes = CLASS_NAMES.iter().zip(Class::ALL);
        page.each(family, classes.map(|(name, class)| (name, count(counter(transport.class(class))))));
    }
    let lost = |&(reason, _, counter): &CountedBy<ClassStats>| {
        (reason, Class::ALL.iter().map(|&class| count(counter(transport.class(class)))).sum())
    };
    page.each(&LOST_FAMILY, LOST.iter().map(lost));
    page.each(&REFUSED_FAMILY, REFUSED.iter().map(|&(reason, _, counter)| (reason, count(counter(transport)))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_stands_under_its_own_name() {
        let transport = TransportStats::default();
        transport.class(Class::Append).bytes_sent.store(3, Ordering::Relaxed);
        transport.class(Class::Control).refused_full.store(4, Ordering::Relaxed);
        transport.class(Class::Forward).refused_full.store(5, Ordering::Relaxed);
        transport.dials_failed.store(6, Ordering::Relaxed);
        let cluster = ClusterFigures {
            lease_left: Duration::from_millis(1_250),
            serves: true,
            wall_clock_ahead: -2.5,
            group_backlog: vec![0, 7],
            members: 9,
            peers: vec![PeerFigures { name: "n2".to_owned(), is_up: true, backlog: 8 }],
            transport: Arc::new(transport),
        };
        let node = NodeFigures {
            disk_bytes_reserve: 10,
            index_filters: 1,
            index_subscriptions: 2,
            cluster: Some(cluster),
            ..Default::default()
        };
        let mut text = String::new();
        render(&mut text, &node);
        for line in [
            "kentongan_overloaded 0",
            "kentongan_disk_reserve_bytes 10",
            "kentongan_index_filters 1",
            "kentongan_index_subscriptions 2",
            "kentongan_lease_seconds 1.25",
            "kentongan_serving 1",
            "kentongan_wall_clock_ahead_seconds -2.5",
            "kentongan_cluster_members 9",
            "kentongan_lane_group_backlog{group=\"1\"} 7",
            "kentongan_lane_node_backlog{peer=\"n2\"} 8",
            "kentongan_peer_up{peer=\"n2\"} 1",
            "kentongan_peer_bytes_sent_total{class=\"append\"} 3",
            "kentongan_peer_messages_lost_total{reason=\"full\"} 9",
            "kentongan_peer_failures_total{reason=\"dial\"} 6",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn a_node_that_is_alone_says_nothing_of_others() {
        let mut text = String::new();
        render(&mut text, &NodeFigures::default());
        assert!(text.contains("kentongan_disk_full 0") && !text.contains("peer") && !text.contains("lease"), "{text}");
    }
}
