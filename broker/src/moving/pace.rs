//! At most so many a second, and whose they are.

/// Time that counts at most for what may go at once: who looks late makes up for that much.
const CATCH_UP_MS_MAX: u64 = 1000;

/// At most so many a second, in small portions.
#[derive(Debug, Default)]
pub struct Pace {
    /// When it was last asked.
    asked_ms: Option<u64>,
    /// Thousandths of one that was not due yet.
    owed_milli: u64,
}

impl Pace {
    /// How many may go now.
    pub fn take(&mut self, now_ms: u64, rate_per_second: u64) -> u64 {
        let asked_ms = self.asked_ms.replace(now_ms);
        // Nothing has passed before the first time.
        let passed = now_ms.saturating_sub(asked_ms.unwrap_or(now_ms)).min(CATCH_UP_MS_MAX);
        let due = self.owed_milli + passed.saturating_mul(rate_per_second);
        self.owed_milli = due % 1000;
        due / 1000
    }
}

/// Shares `count` out over those that hold so many, in proportion, and none more than it holds.
#[must_use]
pub fn shares(count: u64, held: &[u64]) -> Vec<u64> {
    let all: u64 = held.iter().sum();
    let count = count.min(all);
    if count == 0 {
        return vec![0; held.len()];
    }
    let exact = |held: u64| (u128::from(count) * u128::from(held) / u128::from(all)) as u64;
    let mut shares: Vec<u64> = held.iter().map(|&held| exact(held)).collect();
    let mut left = count - shares.iter().sum::<u64>();
    // Less than one each, so nobody is given more than it holds.
    for (share, held) in shares.iter_mut().zip(held) {
        if left > 0 && *share < *held {
            *share += 1;
            left -= 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_many_go_as_the_rate_allows_however_often_it_is_asked() {
        for step in [1, 7, 100, 333] {
            let mut pace = Pace::default();
            let moved: u64 =
                (0..).map(|asked| asked * step).take_while(|&now| now <= 9990).map(|now| pace.take(now, 25)).sum();
            assert!((245..=250).contains(&moved), "{moved} in ten seconds, asked every {step} ms");
        }
    }

    #[test]
    fn a_rate_below_one_a_portion_is_kept_too() {
        let mut pace = Pace::default();
        let moved: Vec<u64> = [0, 400, 800, 1200, 1600, 2000].iter().map(|&now| pace.take(now, 1)).collect();
        assert_eq!(moved, [0, 0, 0, 1, 0, 1]);
    }

    #[test]
    fn a_long_pause_is_not_made_up_for_at_once() {
        let mut pace = Pace::default();
        assert_eq!([pace.take(0, 100), pace.take(60_000, 100)], [0, 100]);
    }

    proptest! {
        #[test]
        fn what_is_shared_out_is_all_that_can_be(count in 0..500u64, held in proptest::collection::vec(0..100u64, 1..8)) {
            let shares = shares(count, &held);
            prop_assert_eq!(shares.iter().sum::<u64>(), count.min(held.iter().sum()));
            prop_assert!(shares.iter().zip(&held).all(|(share, held)| share <= held), "{:?} of {:?}", shares, held);
        }
    }
}
