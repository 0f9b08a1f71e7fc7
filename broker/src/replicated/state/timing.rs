//! Time, as it was proposed.

use kentongan_proto::mqtt::ReasonCode;

use super::{GroupState, TICK_WORK_MAX, Timer};
use crate::later::WALL_LEVEL;
use crate::replicated::command;
use crate::replicated::effect::Effect;
use crate::replicated::store::Key;

/// A group's clock may lag this much behind the time when a command reaches it.
pub(crate) const CLOCK_LAG_MS_MAX: u64 = 500;

/// Milliseconds since 1970, at the beginning of 2024. A wall clock that says less was never set: that of a device without a battery begins
/// in 1970 at each start, and from there nobody knows how long the device was off.
const WALL_MS_MIN: u64 = 1_704_067_200_000;

impl GroupState {
    /// The group's clock, if it lags as much as it may: what shall last some time lasts from here, so that it does not end
    /// too early, and how much of that is left is counted from here too.
    #[must_use]
    pub fn latest_ms(&self) -> u64 {
        self.clock_ms.saturating_add(CLOCK_LAG_MS_MAX)
    }

    pub(super) fn tick(&mut self, tick: command::Tick, effects: &mut Vec<Effect>) {
        let knows = self.wall_ms != 0 && (self.level < WALL_LEVEL || self.wall_ms >= WALL_MS_MIN);
        let bridged = if tick.bridge && knows { tick.wall_ms.saturating_sub(self.wall_ms) } else { 0 };
        let from_ms = tick.from_ms.unwrap_or(self.clock_ms);
        let before_ms = self.clock_ms;
        self.clock_ms = self.clock_ms.max(from_ms.saturating_add(tick.elapsed_ms.max(bridged)));
        if self.level >= WALL_LEVEL && knows {
            // What passed while the wall clock said less than the group knows is not to be bridged once more when it is right again.
            self.wall_ms = self.wall_ms.saturating_add(self.clock_ms - before_ms);
        }
        self.wall_ms = self.wall_ms.max(tick.wall_ms);
        self.run_timers(effects);
    }

    pub(super) fn run_timers(&mut self, effects: &mut Vec<Effect>) {
        let mut work = 0;
        while work < TICK_WORK_MAX {
            let Some((_, timer)) = self.timers.first().filter(|(due, _)| *due <= self.clock_ms).cloned() else {
                return;
            };
            self.timers.pop_first();
            work += 1;
            match timer {
                Timer::Will(client_id) => self.fire_will(&client_id, effects),
                Timer::SessionExpiry(client_id) => {
                    let session = self.sessions.get(&client_id);
                    work += session.map_or(0, |session| session.outbound.queue_len() + session.outbound.in_flight());
                    self.expire(&client_id, effects);
                }
                // Nobody knows when the others will have heard of the death.
                Timer::LaterClaim(client_id) => {
                    self.refuse_later_claim(&client_id, ReasonCode::ServerUnavailable, effects);
                }
                Timer::Outbox(position) => self.outbox_due(position, effects),
                Timer::Retained(topic) => {
                    self.retained_dues.remove(&topic);
                    if self.retained.remove(&topic).is_some() {
                        self.dirty.deleted(Key::Retained(topic));
                    }
                }
            }
        }
    }
}
