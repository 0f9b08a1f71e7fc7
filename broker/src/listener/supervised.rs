//! When the service manager is told what.
//!
//! READY=1 waits for what only time brings: clients can connect, and in a cluster the node holds a lease, its groups have leaders, and it
//! has caught up; so `systemctl restart`, one node after another, is an upgrade that does not take the second before the first is back. It
//! does not wait for what somebody must do, such as making room on a disk.
//!
//! WATCHDOG=1 is said for arbiters that have answered: each of a [`Pulse`], four in the time that the service manager waits. What a disk or
//! another node does is no part of it: a new start of this one would not mend those.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::serve::{Broker, LOOK_INTERVAL};
use crate::router::{Pulse, Shared};
use crate::service_manager::{Notice, ServiceManager};

/// A broker's side of it.
#[derive(Debug)]
pub(super) struct Supervised {
    manager: Option<ServiceManager>,
    is_ready: bool,
    ready_look: Interval,
    beat: Option<Interval>,
    pulse: Option<Pulse>,
}

impl Supervised {
    /// Begins before the broker is ready.
    pub(super) fn new(manager: Option<ServiceManager>) -> Self {
        let beat = manager.as_ref().and_then(ServiceManager::watchdog).map(|watchdog| every(watchdog / 4));
        Self { manager, is_ready: false, ready_look: every(LOOK_INTERVAL), beat, pulse: None }
    }

    /// Waits until there may be something to say, and says it. Nothing is lost if it is dropped while it waits.
    pub(super) async fn step(&mut self, broker: &Broker) {
        if self.manager.is_none() {
            return std::future::pending().await;
        }
        let beat = async {
            match &mut self.beat {
                Some(beat) => drop(beat.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.ready_look.tick(), if !self.is_ready => {
                if broker.has_started() {
                    self.is_ready = true;
                    self.notify(Notice::Ready);
                }
            }
            () = beat => self.beat(broker.shared()),
        }
    }

    /// Says that the settings are read again, and once they are, that this is over.
    pub(super) fn reload(&self, reload: impl FnOnce()) {
        // Before it is ready, READY=1 would say too much.
        if !self.is_ready {
            return reload();
        }
        self.notify(Notice::Reloading);
        reload();
        self.notify(Notice::Ready);
    }

    /// Says that it ends.
    pub(super) fn stopping(&self) {
        self.notify(Notice::Stopping);
    }

    fn beat(&mut self, shared: &Arc<Shared>) {
        match &self.pulse {
            // An arbiter has not come to it yet: another question would only stand behind it.
            Some(pulse) if !pulse.is_answered() => return,
            Some(_) => self.notify(Notice::Alive),
            None => {}
        }
        self.pulse = Some(Pulse::ask(shared));
    }

    fn notify(&self, notice: Notice) {
        if let Some(manager) = &self.manager {
            manager.notify(notice);
        }
    }
}

fn every(period: Duration) -> Interval {
    // An interval must not be zero.
    let mut every = interval(period.max(Duration::from_millis(1)));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use kentongan_cluster::PipelineHandle;

    use super::*;
    use crate::auth::Authority;
    use crate::clock::{Clock, ManualClock};
    use crate::metrics::Metrics;
    use crate::replicated::{Slots, Submitter};
    use crate::router::SteppedArbiter;

    fn shared(arbiters: usize) -> Arc<Shared> {
        let clock = Clock::manual(Arc::new(ManualClock::new(0)));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        Arc::new(Shared::new(Arc::default(), arbiters, submitter, Authority::default(), 1, None, clock))
    }

    /// The watchdog hears nothing of a process one of whose arbiters is stuck, though the others turn.
    #[test]
    fn an_arbiter_that_does_not_turn_silences_the_watchdog() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut bytes = [0; 64];
        let mut hears = || socket.recv(&mut bytes).is_ok_and(|length| &bytes[..length] == b"WATCHDOG=1");

        let shared = shared(2);
        let mut arbiters = [0, 1].map(|id| SteppedArbiter::new(id, Arc::clone(&shared), Metrics::isolated().arbiter()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        let manager = ServiceManager::new(path.as_os_str(), Some(Duration::from_secs(60))).unwrap();
        let mut supervised = Supervised::new(Some(manager));

        supervised.beat(&shared);
        assert!(!hears(), "nothing was shown yet");
        arbiters.iter_mut().for_each(SteppedArbiter::run);
        supervised.beat(&shared);
        assert!(hears());

        arbiters[0].run();
        supervised.beat(&shared);
        supervised.beat(&shared);
        assert!(!hears(), "the second does not turn");
        arbiters[1].run();
        supervised.beat(&shared);
        assert!(hears(), "it has caught up");
    }
}
