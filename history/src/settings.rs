//! What the checker must know of the cluster and of the observer.

use crate::event::Nanoseconds;

/// One second.
pub const SECOND: Nanoseconds = 1_000_000_000;

/// Bounds that the promises name, and what the observer's view is uncertain by. All times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// QoS 1 and 2 messages that may be in flight to a session: bounds the duplicates after a break.
    pub in_flight_max: u32,
    /// How long after its expiry a session or message may still be there (P10).
    pub expiry_late_max: Nanoseconds,
    /// How long after detection and delay a Will Message may come (P9).
    pub will_late_max: Nanoseconds,
    /// How long the cluster may take to notice that a connection ended: the lease of a killed node, or one and a half
    /// times the longest Keep Alive if connections die without a word.
    pub detection_max: Nanoseconds,
    /// How long a packet may be on its way between a client and its node while no fault is injected.
    pub transit_max: Nanoseconds,
    /// How far nodes' clocks may be apart; expiry may err by it.
    pub clock_skew_max: Nanoseconds,
    /// How far a wall clock may have been set wrong: by so much a message that was acknowledged may expire early, where wall time
    /// bridged a stop (F7). Part of the skew.
    pub clocks_set_max: Nanoseconds,
    /// How much faster than the observer's a node's clock may run, in thousandths: by so much of its Message Expiry Interval a message
    /// that was acknowledged may expire early.
    pub clocks_fast_permille_max: u64,
    /// After a heal, how long until clients must be served (P12).
    pub recovery_max: Nanoseconds,
    /// How long an answer may take when the cluster has recovered.
    pub answer_max: Nanoseconds,
    /// How long before the end of its connection a client's own acknowledgement may still be lost (P11).
    pub acknowledgement_loss_max: Nanoseconds,
    /// A PUBLISH that was not answered may have been refused, so that its second try is its first effect. If nothing
    /// is ever refused, order is checked across second tries as well.
    pub may_refuse: bool,
    /// The cluster held no session before the history begins.
    pub starts_empty: bool,
    /// Only its node knows of a session that ends with its connection, as where there is no cluster: its will dies with the process.
    pub transient_wills_die_with_node: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_flight_max: u16::MAX.into(),
            expiry_late_max: 5 * SECOND,
            will_late_max: 5 * SECOND,
            detection_max: 5 * SECOND,
            transit_max: SECOND,
            clock_skew_max: 0,
            clocks_set_max: 0,
            clocks_fast_permille_max: 0,
            recovery_max: 10 * SECOND,
            answer_max: 5 * SECOND,
            acknowledgement_loss_max: SECOND,
            may_refuse: true,
            starts_empty: true,
            transient_wills_die_with_node: false,
        }
    }
}
