//! When a node gives clients away because it has clearly more than the others, and how many.
//!
//! It waits until it has had clearly more than the mean for a while, and then gives the surplus away, once: the *round*. Then
//! it rests, whatever the counts are: those it sent away are on their way. If they came back, because they know no other
//! place or a balancer sends them here, the next rest is twice as long.
//!
//! There is no to and fro: who receives is below the mean, and must come clearly above it before it gives itself.

/// A surplus of fewer clients is none.
const SURPLUS_MIN: u64 = 10;

/// A node that has just been started is found by clients of its own accord, and counts change while others are moved.
const STEADY_MS: u64 = 10_000;

/// After a round.
const REST_MS_MIN: u64 = 30_000;

/// After rounds that came to nothing.
const REST_MS_MAX: u64 = 3_600_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// As many as others, or not known for long enough to be more.
    Calm { above_since_ms: Option<u64> },
    /// So many of the surplus are left to be moved.
    Moving { surplus: u64, left: u64 },
    /// A round is over that was to move `surplus`.
    Resting { surplus: u64, until_ms: u64 },
}

/// One node's decision.
#[derive(Debug)]
pub struct Leveling {
    percent: u64,
    state: State,
    rest_ms: u64,
}

impl Leveling {
    /// A node that gives clients away when it has `percent` more than the mean.
    #[must_use]
    pub fn new(percent: u32) -> Self {
        Self { percent: percent.into(), state: State::Calm { above_since_ms: None }, rest_ms: REST_MS_MIN }
    }

    /// How many clients may be moved now, of `own`; `others` are the counts of the other nodes that take clients. Say with
    /// [`Self::on_moved`] how many were.
    pub fn surplus(&mut self, own: u64, others: &[u64], now_ms: u64) -> u64 {
        let mean = (own + others.iter().sum::<u64>()).div_ceil(others.len() as u64 + 1);
        let above = own.saturating_sub(mean);
        match self.state {
            State::Calm { above_since_ms } => {
                let is_clear = above > SURPLUS_MIN.max(mean.saturating_mul(self.percent) / 100);
                let since_ms = above_since_ms.filter(|_| is_clear).unwrap_or(now_ms);
                self.state = State::Calm { above_since_ms: is_clear.then_some(since_ms) };
                if is_clear && now_ms.saturating_sub(since_ms) >= STEADY_MS {
                    self.state = State::Moving { surplus: above, left: above };
                    return above;
                }
                0
            }
            State::Moving { surplus, .. } if above == 0 => {
                self.rest(surplus, now_ms);
                0
            }
            // Some may have gone of their own accord.
            State::Moving { left, .. } if left > 0 => left.min(above),
            State::Moving { surplus, .. } => {
                self.rest(surplus, now_ms);
                0
            }
            State::Resting { surplus, until_ms } => {
                if now_ms >= until_ms {
                    let came_back = above > surplus / 2;
                    self.rest_ms =
                        if came_back { self.rest_ms.saturating_mul(2).min(REST_MS_MAX) } else { REST_MS_MIN };
                    self.state = State::Calm { above_since_ms: None };
                }
                0
            }
        }
    }

    /// So many were told to go.
    pub fn on_moved(&mut self, moved: u64) {
        if let State::Moving { left, .. } = &mut self.state {
            *left = left.saturating_sub(moved);
        }
    }

    fn rest(&mut self, surplus: u64, now_ms: u64) {
        self.state = State::Resting { surplus, until_ms: now_ms.saturating_add(self.rest_ms) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;

    /// Nodes whose clients, when moved, go where `lands` says after a second, from second to second.
    struct Nodes {
        counts: Vec<u64>,
        leveling: Vec<Leveling>,
        under_way: Vec<usize>,
        moved: u64,
        now_ms: u64,
    }

    impl Nodes {
        fn new(counts: &[u64]) -> Self {
            let leveling = counts.iter().map(|_| Leveling::new(20)).collect();
            Self { counts: counts.to_vec(), leveling, under_way: Vec::new(), moved: 0, now_ms: 0 }
        }

        /// Runs for some seconds, each node moving at most 20 clients a second.
        fn run(&mut self, seconds: u64, lands: impl Fn(usize, &[u64]) -> usize) {
            for _ in 0..seconds {
                self.now_ms += SECOND;
                for to in std::mem::take(&mut self.under_way) {
                    self.counts[to] += 1;
                }
                let seen = self.counts.clone();
                for node in 0..seen.len() {
                    let others: Vec<u64> =
                        (0..seen.len()).filter(|&other| other != node).map(|other| seen[other]).collect();
                    let leveling = &mut self.leveling[node];
                    let count = leveling.surplus(seen[node], &others, self.now_ms).min(20);
                    leveling.on_moved(count);
                    self.counts[node] -= count;
                    self.moved += count;
                    for _ in 0..count {
                        let mut expected = self.counts.clone();
                        self.under_way.iter().for_each(|&to| expected[to] += 1);
                        self.under_way.push(lands(node, &expected));
                    }
                }
            }
        }
    }

    fn least(_: usize, counts: &[u64]) -> usize {
        (0..counts.len()).min_by_key(|&node| counts[node]).unwrap()
    }

    #[test]
    fn a_node_that_returned_gets_its_share_and_then_nobody_moves_any_more() {
        let mut nodes = Nodes::new(&[300, 300, 0]);
        nodes.run(60, least);
        assert!(nodes.counts.iter().all(|count| (190..=210).contains(count)), "{:?}", nodes.counts);
        let moved = nodes.moved;
        assert!((180..=220).contains(&moved), "{moved} moved");
        nodes.run(7200, least);
        assert_eq!(nodes.moved, moved, "no to and fro: {:?}", nodes.counts);
    }

    #[test]
    fn nobody_moves_for_little_or_not_for_long() {
        let mut nodes = Nodes::new(&[110, 100, 95]);
        nodes.run(600, least);
        assert_eq!((nodes.moved, &nodes.counts[..]), (0, &[110, 100, 95][..]));
        let mut few = Nodes::new(&[12, 0, 0]);
        few.run(600, least);
        assert_eq!(few.moved, 0, "a few clients are not worth it");

        let mut leveling = Leveling::new(20);
        for second in 0..9 {
            assert_eq!(leveling.surplus(300, &[100, 100], second * SECOND), 0);
        }
        assert_eq!(leveling.surplus(100, &[100, 100], 9 * SECOND), 0);
        assert_eq!(leveling.surplus(300, &[100, 100], 15 * SECOND), 0, "it begins anew");
        assert_eq!(leveling.surplus(300, &[100, 100], 25 * SECOND), 133);
    }

    /// Clients that know no other place come back at once.
    #[test]
    fn clients_that_come_back_are_moved_ever_more_rarely() {
        let mut nodes = Nodes::new(&[300, 0, 0]);
        nodes.run(3600, |from, _| from);
        let in_an_hour = nodes.moved;
        assert!(in_an_hour <= 8 * 200, "{in_an_hour} moved in an hour");
        nodes.run(24 * 3600, |from, _| from);
        let in_a_day = nodes.moved - in_an_hour;
        assert!(in_a_day <= 25 * 200, "{in_a_day} moved in a day");
    }

    #[test]
    fn after_a_round_that_helped_the_rest_is_short_again() {
        let mut nodes = Nodes::new(&[300, 0, 0]);
        nodes.run(1200, |from, _| from);
        assert!(nodes.leveling[0].rest_ms > 2 * REST_MS_MIN);
        nodes.run(3600, least);
        assert_eq!(nodes.leveling[0].rest_ms, REST_MS_MIN);
        assert!(nodes.counts.iter().all(|count| (90..=110).contains(count)), "{:?}", nodes.counts);
    }

    #[test]
    fn a_node_that_is_alone_has_no_surplus() {
        let mut leveling = Leveling::new(20);
        assert_eq!([0, 20, 40].map(|second| leveling.surplus(1000, &[], second * SECOND)), [0, 0, 0]);
    }
}
