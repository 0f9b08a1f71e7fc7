//! When a server that does not answer is asked no more for a while.
//!
//! A server counts as not there when it cannot be reached, does not answer in time, or says itself that it is overloaded (429, 502,
//! 503, 504). Anything else that it says shows that it is there, also what cannot be understood: otherwise whoever finds a login
//! that confuses it could lock all others out.

/// Whether the server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    Closed,
    /// It is not, for a while.
    Open,
    /// One request tries whether it is there again.
    Probing,
}

/// The breaker before one server.
#[derive(Debug)]
pub struct Breaker {
    state: BreakerState,
    failures: u32,
    until_ms: u64,
    /// Changes with the state: what was asked under another one says nothing about this one.
    epoch: u64,
    failures_max: u32,
    pause_ms: u64,
}

/// A request that may be made. What came of it is said with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    epoch: u64,
}

impl Breaker {
    /// Opens after `failures_max` in a row, 0 being never, for `pause_ms`.
    #[must_use]
    pub fn new(failures_max: u32, pause_ms: u64) -> Self {
        Self { state: BreakerState::Closed, failures: 0, until_ms: 0, epoch: 0, failures_max, pause_ms }
    }

    /// As it is now.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Whether a request would be let through.
    #[must_use]
    pub fn would_admit(&self, now_ms: u64) -> bool {
        match self.state {
            BreakerState::Closed => true,
            BreakerState::Open => now_ms >= self.until_ms,
            BreakerState::Probing => false,
        }
    }

    /// Lets a request through, or not. One that is must be followed by [`Self::on_outcome`].
    pub fn admit(&mut self, now_ms: u64) -> Option<Permission> {
        if !self.would_admit(now_ms) {
            return None;
        }
        if self.state == BreakerState::Open {
            self.change(BreakerState::Probing);
        }
        Some(Permission { epoch: self.epoch })
    }

    /// The server was there, or it was not.
    pub fn on_outcome(&mut self, permission: Permission, was_there: bool, now_ms: u64) {
        if permission.epoch != self.epoch {
            return;
        }
        if was_there {
            self.failures = 0;
            if self.state == BreakerState::Probing {
                self.change(BreakerState::Closed);
            }
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let opens = self.failures_max != 0 && self.failures >= self.failures_max;
        if opens || self.state == BreakerState::Probing {
            self.until_ms = now_ms.saturating_add(self.pause_ms);
            self.change(BreakerState::Open);
        }
    }

    /// The operator has read the settings again: it is tried at once.
    pub fn close(&mut self) {
        self.failures = 0;
        self.change(BreakerState::Closed);
    }

    fn change(&mut self, state: BreakerState) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(breaker: &mut Breaker, now_ms: u64, was_there: bool) -> BreakerState {
        let permission = breaker.admit(now_ms).expect("admitted");
        breaker.on_outcome(permission, was_there, now_ms);
        breaker.state()
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let mut breaker = Breaker::new(3, 100);
        for was_there in [false, false, true, false, false] {
            assert_eq!(asked(&mut breaker, 0, was_there), BreakerState::Closed, "not three in a row");
        }
        assert_eq!(asked(&mut breaker, 10, false), BreakerState::Open);
        assert!(!breaker.would_admit(109) && breaker.admit(109).is_none());
        let probe = breaker.admit(110).expect("a probe");
        assert!(breaker.admit(110).is_none() && breaker.admit(1000).is_none(), "one, however long it takes");
        breaker.on_outcome(probe, false, 200);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.would_admit(299));
        assert_eq!(asked(&mut breaker, 300, true), BreakerState::Closed);
        assert_eq!(asked(&mut breaker, 300, false), BreakerState::Closed, "counts from the beginning");
    }

    #[test]
    fn what_was_asked_before_says_nothing_about_the_probe() {
        let mut breaker = Breaker::new(1, 100);
        let (slow, quick) = (breaker.admit(0).expect("closed"), breaker.admit(0).expect("closed"));
        breaker.on_outcome(quick, false, 0);
        let probe = breaker.admit(100).expect("a probe");
        breaker.on_outcome(slow, false, 100);
        assert_eq!(breaker.state(), BreakerState::Probing);
        breaker.on_outcome(slow, true, 100);
        assert_eq!(breaker.state(), BreakerState::Probing);
        breaker.on_outcome(probe, true, 100);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn it_can_be_done_without_and_an_operator_can_close_it() {
        let mut never = Breaker::new(0, 100);
        assert!((0..1000).all(|_| asked(&mut never, 0, false) == BreakerState::Closed));
        let mut breaker = Breaker::new(1, 100);
        assert_eq!(asked(&mut breaker, 0, false), BreakerState::Open);
        breaker.close();
        assert!(breaker.would_admit(0));
    }
}
