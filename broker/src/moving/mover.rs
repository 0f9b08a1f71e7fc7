//! How many clients go now: asked a few times a second, as long as the node runs, and once more when it stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Elsewhere, Leveling, Pace, shares};
use crate::config::{Balance, MovingConfig};
use crate::router::{Event, Shared};

/// Time between two portions.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Time between two looks at whether anybody is to go.
const CALM_LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Of the time that a process has to stop, the part in which its clients are moved. What is left is for those that must be
/// closed, and for the state.
const MOVING_PERCENT: u32 = 80;

/// How long a process that stops waits for others to lead what it leads, once its clients are gone.
const LEADERSHIP_MAX: Duration = Duration::from_secs(4);

/// Moves clients away while this node is drained, or has clearly more than others, for as long as the process runs.
pub fn start(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    actix_rt::spawn(async move {
        let mut mover = Mover::new(&shared.settings.moving);
        loop {
            let Some(cluster) = &shared.cluster else { return };
            if cluster.elsewhere.stops() {
                return;
            }
            let is_moving = mover.look(&shared);
            tokio::time::sleep(if is_moving { LOOK_INTERVAL } else { CALM_LOOK_INTERVAL }).await;
        }
    });
}

/// Decides how many clients of a node go. Whoever owns it asks it a few times a second.
#[derive(Debug)]
pub struct Mover {
    pace: Pace,
    /// Since when this node has been drained, and how long balancers have to notice.
    drained_since_ms: Option<u64>,
    notice_ms: u64,
    leveling: Leveling,
    rate_per_second: u64,
    balance: Balance,
}

impl Mover {
    /// Of a node that is not drained.
    #[must_use]
    pub fn new(config: &MovingConfig) -> Self {
        Self {
            pace: Pace::default(),
            drained_since_ms: None,
            notice_ms: u64::from(config.notice_seconds) * 1000,
            leveling: Leveling::new(config.balance_percent),
            rate_per_second: u64::from(config.clients_per_second.get()),
            balance: config.balance,
        }
    }

    /// Tells the arbiters how many clients are to go now. Returns whether more may have to go soon.
    pub fn look(&mut self, shared: &Shared) -> bool {
        let Some(cluster) = &shared.cluster else {
            return false;
        };
        let (count, only_told) = self.due(shared, &cluster.elsewhere);
        tell(shared, count, only_told);
        count > 0 || self.drained_since_ms.is_some()
    }

    /// How many clients are to go, and whether only those that can be told where to.
    fn due(&mut self, shared: &Shared, elsewhere: &Elsewhere) -> (u64, bool) {
        let now_ms = shared.now_ms();
        let portion = self.pace.take(now_ms, self.rate_per_second);
        if elsewhere.is_drained() {
            let since_ms = *self.drained_since_ms.get_or_insert(now_ms);
            let is_noticed = now_ms.saturating_sub(since_ms) >= self.notice_ms;
            return (if is_noticed { portion } else { 0 }, false);
        }
        self.drained_since_ms = None;
        let is_referred = shared.settings.session.server_reference.is_some() || elsewhere.is_any_advertised();
        let only_told = match self.balance {
            Balance::Off => return (0, true),
            Balance::Told if !is_referred => return (0, true),
            Balance::Told => true,
            Balance::All => false,
        };
        // Who holds no lease knows nothing of the others.
        let is_in_step = shared.cluster.as_ref().is_some_and(|cluster| cluster.may_acknowledge());
        let Some(others) = elsewhere.other_loads().filter(|others| is_in_step && !others.is_empty()) else {
            return (0, only_told);
        };
        let own = shared.connections.load(Ordering::Relaxed) as u64;
        let count = self.leveling.surplus(own, &others, now_ms).min(portion);
        self.leveling.on_moved(count);
        (count, only_told)
    }
}

fn tell(shared: &Shared, count: u64, only_told: bool) {
    if count == 0 {
        return;
    }
    let shares = shares(count, &shared.arbiter_connections());
    for (inbox, count) in shared.inboxes.iter().zip(shares).filter(|(_, count)| *count > 0) {
        inbox.push(Event::Move { count, only_told }, 0);
    }
}

/// The process is about to end: leadership and clients go to other nodes as long as there are some, within the time that it
/// has. Faster than the rate of the settings, if that is what it takes. `leads_for_others` says how many groups this node leads
/// that another one could lead.
pub async fn move_everything(shared: &Shared, leads_for_others: impl Fn() -> usize) {
    let Some(cluster) = &shared.cluster else { return };
    cluster.elsewhere.set_stops();
    if !cluster.may_acknowledge() {
        return;
    }
    shared.submitter.notify(crate::replicated::Query::Stops);
    let config = &shared.settings.moving;
    let began = Instant::now();
    let whole = Duration::from_secs(u64::from(config.stop_seconds_max.get())) * MOVING_PERCENT / 100;
    let rate = u64::from(config.clients_per_second.get());
    // Half of the time is for moving in any case. A node that has been drained before has clients no more.
    let notice = Duration::from_secs(config.notice_seconds.into()).min(whole / 2);
    let mut pace = Pace::default();
    while cluster.elsewhere.is_there_any() && began.elapsed() < whole {
        let left = shared.connections.load(Ordering::Relaxed) as u64;
        if left == 0 && (leads_for_others() == 0 || began.elapsed() >= LEADERSHIP_MAX) {
            break;
        }
        if began.elapsed() >= notice {
            let needed = rate_needed(left, whole.saturating_sub(began.elapsed()));
            tell(shared, pace.take(shared.now_ms(), rate.max(needed)), false);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let left = shared.connections.load(Ordering::Relaxed);
    tracing::info!(left, "leadership and clients were moved to other nodes");
}

/// As many a second as must go for all to be gone in time.
fn rate_needed(left: u64, time: Duration) -> u64 {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    left.saturating_mul(1000).div_ceil(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_stops_moves_as_fast_as_it_must() {
        assert_eq!(rate_needed(5000, Duration::from_secs(8)), 625);
        assert_eq!(rate_needed(0, Duration::from_secs(8)), 0);
        assert_eq!(rate_needed(3, Duration::ZERO), 3000);
    }
}
