//! How much of a turn goes into TLS handshakes.
//!
//! What a private key does takes up to a millisecond, a thousand times what a packet takes. When 10,000 devices come back at
//! once, those that are connected must not wait for all of them. So a turn begins handshakes for a bounded time; the others
//! stand in a line, and the next turn wakes the first of them. The same goes for a CONNECT with a token, whose signature takes a
//! tenth of that.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::client::Client;
use super::{ArbiterState, ConnectionKey};

/// Time of a turn that may go into handshakes; the last one that begins within it is finished.
const TIME_A_TURN_MAX: Duration = Duration::from_millis(1);

/// Connections woken at the beginning of a turn: as many as the cheapest handshakes fill it with.
const WOKEN_A_TURN: usize = 8;

/// The handshakes of an arbiter's connections.
#[derive(Debug, Default)]
pub(super) struct Handshaking {
    /// In this turn.
    spent: Duration,
    /// Connections that came when the time was spent.
    waiting: VecDeque<ConnectionKey>,
}

impl Handshaking {
    fn may_go_on(&self) -> bool {
        self.spent < TIME_A_TURN_MAX
    }
}

impl ArbiterState {
    /// [`Self::read_once`] of a connection that has not sent a CONNECT, which may have a handshake before it. `Pending` also
    /// while it is the turn of others.
    pub(super) fn read_first(&mut self, key: ConnectionKey, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let has_tokens = self.shared.authority.has_tokens();
        let takes_long = |client: &mut Client| {
            client.transport.is_handshaking() || (has_tokens && client.listener.asks_for_tokens())
        };
        if !self.client(key).is_some_and(takes_long) {
            return self.read_once(key, cx);
        }
        // The flush task begins the next turn.
        self.schedule_flush();
        if !self.handshaking.may_go_on() {
            self.handshaking.waiting.push_back(key);
            return Poll::Pending;
        }
        let begun = Instant::now();
        let outcome = self.read_once(key, cx);
        self.handshaking.spent += begun.elapsed();
        outcome
    }

    /// A turn ends, and the time of the next one is there to be spent.
    pub(super) fn next_handshakes(&mut self) {
        self.handshaking.spent = Duration::ZERO;
        for _ in 0..WOKEN_A_TURN {
            let Some(key) = self.handshaking.waiting.pop_front() else {
                return;
            };
            if let Some(client) = self.client(key) {
                super::arbiter::wake(client);
            }
        }
        if !self.handshaking.waiting.is_empty() {
            self.schedule_flush();
        }
    }
}
