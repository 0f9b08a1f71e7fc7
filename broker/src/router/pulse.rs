//! Whether the arbiters' loops turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Event, Shared};

/// A question to all arbiters, put into their inboxes like everything that comes from other threads: one that does not turn
/// never takes it out.
#[derive(Debug)]
pub struct Pulse {
    unanswered: Arc<AtomicUsize>,
}

impl Pulse {
    /// Asks all of them.
    #[must_use]
    pub fn ask(shared: &Shared) -> Self {
        let unanswered = Arc::new(AtomicUsize::new(shared.inboxes.len()));
        for inbox in &shared.inboxes {
            inbox.push(Event::Pulse(Arc::clone(&unanswered)), 0);
        }
        Self { unanswered }
    }

    /// Whether all of them have answered.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) == 0
    }
}

/// For how long one of the arbiters has answered nothing: counted in looks at them, which stand still with the process.
#[derive(Debug, Default)]
pub struct Silence {
    pulse: Option<Pulse>,
    looks: u32,
}

impl Silence {
    /// Asks all of them again once they have answered. Returns for how many looks in a row they had not.
    pub fn look(&mut self, shared: &Shared) -> u32 {
        match &self.pulse {
            Some(pulse) if !pulse.is_answered() => self.looks = self.looks.saturating_add(1),
            _ => (self.pulse, self.looks) = (Some(Pulse::ask(shared)), 0),
        }
        self.looks
    }
}

#[cfg(test)]
mod tests {
    use kentongan_cluster::PipelineHandle;

    use super::*;
    use crate::auth::Authority;
    use crate::clock::{Clock, ManualClock};
    use crate::metrics::Metrics;
    use crate::replicated::{Slots, Submitter};
    use crate::router::SteppedArbiter;

    #[test]
    fn an_arbiter_that_does_not_turn_is_counted_until_it_does() {
        let clock = Clock::manual(Arc::new(ManualClock::new(0)));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let shared = Arc::new(Shared::new(Arc::default(), 2, submitter, Authority::default(), 1, None, clock));
        let mut arbiters = [0, 1].map(|id| SteppedArbiter::new(id, Arc::clone(&shared), Metrics::isolated().arbiter()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        let mut silence = Silence::default();
        assert_eq!(silence.look(&shared), 0);
        arbiters.iter_mut().for_each(SteppedArbiter::run);
        assert_eq!(silence.look(&shared), 0);
        arbiters[0].run();
        assert_eq!([silence.look(&shared), silence.look(&shared)], [1, 2], "the second does not turn");
        arbiters[1].run();
        assert_eq!(silence.look(&shared), 0);
    }
}
