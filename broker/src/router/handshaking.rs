//! How much of a turn goes into TLS handshakes.
//!
//! What a private key does takes up to a millisecond, a thousand times what a packet takes. When 10,000 devices come back at
//! once, those that are connected must not wait for all of them. So a turn begins handshakes for a bounded time; the others
//! stand in a line, and the next turn wakes the first of them. The same goes for a CONNECT with a token, whose signature takes a
//! tenth of that.
//!
//! With a large key one handshake is more than a turn's time: whoever was woken in vain keeps its place. And whose handshake is past
//! its first flight comes before those that have not begun: the dear part is done, and in vain if its time runs out in the line.

use std::collections::VecDeque;
use std::mem;
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
    /// Those of them whose handshake is past its first flight.
    begun: VecDeque<ConnectionKey>,
    /// Those that were woken at the beginning of this turn, and were not served.
    woken: Vec<ConnectionKey>,
    /// Those of them for which there was no time, and whether they are past their first flight.
    unserved: Vec<(ConnectionKey, bool)>,
}

impl Handshaking {
    fn may_go_on(&self) -> bool {
        self.spent < TIME_A_TURN_MAX
    }

    /// Something was done for `key`.
    fn serve(&mut self, key: ConnectionKey, took: Duration) {
        self.spent += took;
        self.woken.retain(|&woken| woken != key);
    }

    /// The time was spent when `key` came.
    fn stand_in_line(&mut self, key: ConnectionKey, has_begun: bool) {
        if self.woken.contains(&key) {
            self.unserved.push((key, has_begun));
        } else if has_begun {
            self.begun.push_back(key);
        } else {
            self.waiting.push_back(key);
        }
    }

    /// A turn ends: the first of the line are to be woken for the next one.
    fn begin_turn(&mut self) {
        self.spent = Duration::ZERO;
        self.woken.clear();
        while let Some((key, has_begun)) = self.unserved.pop() {
            let line = if has_begun { &mut self.begun } else { &mut self.waiting };
            line.push_front(key);
        }
        // One at least of those that wait, or whoever says the rest of its handshake byte by byte would keep all others out.
        let newcomer = self.waiting.pop_front();
        let room = WOKEN_A_TURN - usize::from(newcomer.is_some());
        let begun = self.begun.len().min(room);
        let others = self.waiting.len().min(room - begun);
        self.woken.extend(self.begun.drain(..begun));
        self.woken.extend(newcomer.into_iter().chain(self.waiting.drain(..others)));
    }

    fn has_line(&self) -> bool {
        !self.waiting.is_empty() || !self.begun.is_empty()
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
            let has_begun = self.client(key).is_some_and(|client| client.transport.is_past_first_flight());
            self.handshaking.stand_in_line(key, has_begun);
            return Poll::Pending;
        }
        let begun = Instant::now();
        let outcome = self.read_once(key, cx);
        self.handshaking.serve(key, begun.elapsed());
        outcome
    }

    /// A turn ends, and the time of the next one is there to be spent.
    pub(super) fn next_handshakes(&mut self) {
        self.handshaking.begin_turn();
        if self.handshaking.woken.is_empty() {
            return;
        }
        let woken = mem::take(&mut self.handshaking.woken);
        for &key in &woken {
            if let Some(client) = self.client(key) {
                super::arbiter::wake(client);
            }
        }
        self.handshaking.woken = woken;
        if self.handshaking.has_line() {
            self.schedule_flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> ConnectionKey {
        ConnectionKey::new(0, index, 1)
    }

    /// A turn in which those that were woken come one after the other: who is served, where a handshake takes `cost`.
    fn turn(line: &mut Handshaking, has_begun: impl Fn(ConnectionKey) -> bool, cost: Duration) -> Vec<ConnectionKey> {
        line.begin_turn();
        let mut served = Vec::new();
        for key in line.woken.clone() {
            if line.may_go_on() {
                line.serve(key, cost);
                served.push(key);
            } else {
                line.stand_in_line(key, has_begun(key));
            }
        }
        served
    }

    #[test]
    fn whoever_is_woken_in_vain_keeps_its_place_in_the_line() {
        let keys: Vec<_> = (0..30).map(key).collect();
        for (cost, turns) in [(Duration::from_millis(3), 30), (Duration::from_micros(400), 10), (Duration::ZERO, 4)] {
            let mut line = Handshaking::default();
            keys.iter().for_each(|&key| line.stand_in_line(key, false));
            let served: Vec<_> = (0..turns).flat_map(|_| turn(&mut line, |_| false, cost)).collect();
            assert_eq!(served, keys, "{cost:?}");
            assert!(!line.has_line() && line.unserved.is_empty());
        }
    }

    #[test]
    fn a_handshake_that_has_begun_is_finished_before_others_begin_and_keeps_nobody_out() {
        let cost = Duration::from_millis(3);
        let has_begun = |key: ConnectionKey| key.index() >= 100;
        let mut line = Handshaking::default();
        (0..20).map(key).for_each(|key| line.stand_in_line(key, false));
        turn(&mut line, has_begun, cost);
        (100..103).map(key).for_each(|key| line.stand_in_line(key, true));
        let served: Vec<_> = (0..5).flat_map(|_| turn(&mut line, has_begun, cost)).collect();
        assert_eq!(served, [100, 101, 102, 1, 2].map(key));

        // They cost nothing, and come again and again.
        let mut served = Vec::new();
        for _ in 0..17 {
            while line.begun.len() < 2 * WOKEN_A_TURN {
                line.stand_in_line(key(100), true);
            }
            served.extend(turn(&mut line, has_begun, Duration::ZERO));
        }
        served.retain(|&key| !has_begun(key));
        assert_eq!(served, (3..20).map(key).collect::<Vec<_>>());
    }
}
