//! Which time it is, by the wall clocks of the members.
//!
//! How long something lasts is counted by clocks that nobody sets. Only how long no process ran, or none that this one has heard of, is
//! known from wall clocks; and whoever starts with its wall clock hours ahead would end what belongs to everybody. So each node tells the
//! others what its wall clock says, and goes by what most say.

use std::collections::BTreeMap;

use crate::identity::NodeId;
use crate::interest::LinkId;

/// How often a node tells the others, so that clocks may run at different rates.
const TELL_INTERVAL_NS: u64 = 5_000_000_000;

/// By how much a wall clock is set before the others are told at once.
const STEP_MS_MIN: u64 = 500;

/// What wall clocks say: each by how many milliseconds it is ahead of [`crate::clock::boottime_ns`] of this machine.
#[derive(Debug, Default)]
pub(super) struct WallClocks {
    own_ms: Option<i64>,
    told_ms: Option<i64>,
    tell_at_ns: u64,
    others: BTreeMap<NodeId, Other>,
}

/// What another node said, the last twice over the same link. What takes a while to get here makes its clock seem behind, so the later
/// time counts.
#[derive(Debug)]
struct Other {
    last_ms: i64,
    before_ms: Option<i64>,
    /// The link over which it said so.
    link: LinkId,
}

impl Other {
    fn ahead_ms(&self) -> i64 {
        self.before_ms.map_or(self.last_ms, |before_ms| before_ms.max(self.last_ms))
    }
}

impl WallClocks {
    /// What this machine's says. Returns whether the others are to be told.
    pub(super) fn set_own(&mut self, now_ns: u64, wall_ms: u64) -> bool {
        let own_ms = ahead_ms(now_ns, wall_ms);
        self.own_ms = Some(own_ms);
        let is_known = self.told_ms.is_some_and(|told_ms| told_ms.abs_diff(own_ms) < STEP_MS_MIN);
        if is_known && now_ns < self.tell_at_ns {
            return false;
        }
        (self.told_ms, self.tell_at_ns) = (Some(own_ms), now_ns + TELL_INTERVAL_NS);
        true
    }

    /// What this machine's says by now, if it is known: for who has not heard it.
    pub(super) fn own_wall_ms(&self, now_ns: u64) -> Option<u64> {
        let own_ms = self.own_ms?;
        Some((now_ns / 1_000_000).saturating_add_signed(own_ms))
    }

    /// A node says over a link what its wall clock says.
    pub(super) fn on_other(&mut self, now_ns: u64, node: NodeId, link: LinkId, wall_ms: u64) {
        let before_ms = self.others.get(&node).filter(|other| other.link == link).map(|other| other.last_ms);
        self.others.insert(node, Other { last_ms: ahead_ms(now_ns, wall_ms), before_ms, link });
    }

    /// What most say; of two the earlier, for what ends too early is lost, and what ends late is there a while longer. `None`: there is
    /// nobody else of whom it is known. Who does not stay is forgotten.
    pub(super) fn agreed_ms(&mut self, stays: impl Fn(NodeId) -> bool) -> Option<i64> {
        self.others.retain(|&node, _| stays(node));
        if self.others.is_empty() {
            return None;
        }
        let mut all: Vec<i64> = self.others.values().map(Other::ahead_ms).chain(self.own_ms).collect();
        all.sort_unstable();
        Some(all[(all.len() - 1) / 2])
    }

    /// By how much this machine's is ahead of what was agreed.
    pub(super) fn own_ahead_of_ms(&self, agreed_ms: i64) -> i64 {
        self.own_ms.map_or(0, |own_ms| own_ms.saturating_sub(agreed_ms))
    }
}

fn ahead_ms(now_ns: u64, wall_ms: u64) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(wall_ms).saturating_sub(signed(now_ns / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const HOUR_MS: u64 = 3_600_000;
    const LINK: LinkId = LinkId(1);

    /// Node 1 at 10 s since its machine booted, when it is 1,000,000 s; the others say what is given.
    fn agreed_ahead_ms(own_ms: u64, others: &[u64]) -> Option<i64> {
        let now_ns = 10_000 * MS;
        let mut clocks = WallClocks::default();
        clocks.set_own(now_ns, own_ms);
        for (node, &wall_ms) in (2..).zip(others) {
            clocks.on_other(now_ns, NodeId(node), LINK, wall_ms);
        }
        clocks.agreed_ms(|_| true).map(|ms| ms + 10_000)
    }

    #[test]
    fn one_wrong_clock_of_three_counts_for_nothing() {
        let right = 1_000_000_000;
        for wrong in [right + 3 * HOUR_MS, right - 3 * HOUR_MS, 0, u64::MAX] {
            assert_eq!(agreed_ahead_ms(wrong, &[right, right + 1]).map(|ms| ms / 10), Some(right.cast_signed() / 10));
            assert_eq!(agreed_ahead_ms(right, &[wrong, right + 1]).map(|ms| ms / 10), Some(right.cast_signed() / 10));
        }
    }

    #[test]
    fn of_two_the_earlier_counts_and_of_one_its_own() {
        assert_eq!(agreed_ahead_ms(5_000_000, &[]), None);
        assert_eq!(agreed_ahead_ms(5_000_000, &[6_000_000]), Some(5_000_000));
        assert_eq!(agreed_ahead_ms(6_000_000, &[5_000_000]), Some(5_000_000));
        assert_eq!(agreed_ahead_ms(9_000_000, &[6_000_000, 5_000_000, 7_000_000]), Some(6_000_000));
    }

    #[test]
    fn who_is_no_member_any_more_has_no_say() {
        let mut clocks = WallClocks::default();
        clocks.set_own(0, 5_000);
        clocks.on_other(0, NodeId(2), LINK, 1_000);
        clocks.on_other(0, NodeId(3), LINK, 2_000);
        assert_eq!(clocks.agreed_ms(|_| true), Some(2_000));
        assert_eq!(clocks.agreed_ms(|node| node == NodeId(2)), Some(1_000));
        assert_eq!(clocks.agreed_ms(|_| false), None);
    }

    /// As to a process that stood still, and reads by and by what came meanwhile.
    #[test]
    fn what_took_long_to_get_here_does_not_count_beside_what_did_not() {
        let mut clocks = WallClocks::default();
        clocks.set_own(0, 1_000_000);
        let mut hears = |at_ms: u64, link: LinkId, wall_ms: u64| {
            clocks.on_other(at_ms * MS, NodeId(2), link, wall_ms);
            clocks.agreed_ms(|_| true)
        };
        assert_eq!(hears(0, LINK, 1_000_000), Some(1_000_000));
        assert_eq!(hears(20_000, LINK, 1_005_000), Some(1_000_000), "15 s late");
        assert_eq!(hears(20_100, LINK, 1_020_100), Some(1_000_000));
        assert_eq!(hears(25_000, LINK, 985_000), Some(1_000_000), "set back, or late");
        assert_eq!(hears(30_000, LINK, 990_000), Some(960_000), "set back");
        assert_eq!(hears(31_000, LinkId(2), 991_000), Some(960_000));
        assert_eq!(hears(32_000, LinkId(3), 972_000), Some(940_000), "another process, or so");
    }

    /// It is told now and then, and at once if somebody sets it.
    #[test]
    fn the_others_are_told_when_it_is_set() {
        let mut clocks = WallClocks::default();
        assert!(clocks.set_own(0, 1_000_000));
        assert!(!clocks.set_own(100 * MS, 1_000_100));
        assert!(!clocks.set_own(200 * MS, 1_000_200 + STEP_MS_MIN - 1));
        assert!(clocks.set_own(300 * MS, 1_000_300 + STEP_MS_MIN));
        assert!(!clocks.set_own(400 * MS, 1_000_400 + STEP_MS_MIN));
        assert!(clocks.set_own(300 * MS + TELL_INTERVAL_NS, 6_000_000));
        assert_eq!(clocks.own_wall_ms(301 * MS + TELL_INTERVAL_NS), Some(6_000_001));
    }
}
