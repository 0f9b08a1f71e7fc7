//! Connections whose clients are gone while what they said last is not read.
//!
//! That a client is gone is told by the end of its stream. Where reading has to stop, because memory is short or others cannot keep up,
//! nobody comes to that end, and Keep Alive ends nobody whom we do not read: its subscriptions would keep the memory for whose sake it is
//! not read, and its Will Message would not be published.

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::ended::EndCause;

/// How long what it said before is still read if there is room for it. A sensor publishes and goes.
const HUNG_UP_SECONDS_MAX: u32 = 30;

/// Of so many connections one is looked at each second.
const TURNS: usize = 8;

impl ArbiterState {
    /// Once a second: ends some of those that have hung up. Nothing that is lost with them was acknowledged.
    pub(super) fn end_hung_up(&mut self) {
        let (id, now) = (self.id, self.now_seconds());
        for index in (now as usize % TURNS..self.clients.capacity()).step_by(TURNS) {
            let Some(client) = self.clients.get_mut(index) else {
                continue;
            };
            // Who is read is heard when it goes; and what comes before CONNACK has a time of its own.
            let is_read = !(client.paused || client.unprocessed || client.owes_reading);
            if is_read || !client.is_connected() || !client.transport.is_hung_up() {
                client.hung_up_since = 0;
            } else if client.hung_up_since == 0 {
                client.hung_up_since = now.max(1);
            } else if now.saturating_sub(client.hung_up_since) >= HUNG_UP_SECONDS_MAX {
                let key = ConnectionKey::new(id, index as u32, client.generation);
                self.tear_down(key, EndCause::ClosedByPeer);
                self.end_now(key);
            }
        }
    }
}
