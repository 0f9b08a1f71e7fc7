//! The end of a run: everybody comes back once and gets what is owed, so that what is missing is lost.

use kentongan_history::{ClosedBy, Settings, What};

use super::connection::Phase;
use super::plan::{Kind, WILL_DELAY_SECONDS_MAX};
use super::{Happening, MILLISECOND, Workload};

/// How often it is looked whether all is quiet.
const LOOK_NS: u64 = 250 * MILLISECOND;

/// Nothing came for so long: nothing more will come.
const QUIET_NS: u64 = 3_000 * MILLISECOND;

/// Time within which all must have come to rest.
const DRAIN_NS_MAX: u64 = 90_000 * MILLISECOND;

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    No,
    /// Sessions are resumed and read, and wills fall due.
    Resuming {
        until_ns: u64,
    },
    /// What is retained is read on every node.
    Reading {
        until_ns: u64,
    },
    Done,
}

/// By then the Will Message of a connection that ended must have come.
fn wills_due_ns() -> u64 {
    let Settings { detection_max, will_late_max, transit_max, .. } = Workload::settings();
    detection_max + will_late_max + transit_max + u64::from(WILL_DELAY_SECONDS_MAX) * 1_000 * MILLISECOND
}

impl Workload {
    /// No client begins anything more, every session is resumed and gets what is owed. All faults are healed by now, and
    /// the nodes had time to recover.
    pub fn begin_drain(&mut self, now_ns: u64) {
        if self.drain != Drain::No {
            return;
        }
        self.drain = Drain::Resuming { until_ns: now_ns + DRAIN_NS_MAX };
        self.last_closed_ns = now_ns;
        self.last_packet_ns = now_ns;
        for client in 0..self.clients.len() {
            if self.clients[client].stream.is_none() {
                continue;
            }
            if !self.is_current(client) || self.clients[client].is_silent {
                self.close(now_ns, client, ClosedBy::Client);
            } else {
                self.clients[client].owed.iter_mut().for_each(|owed| owed.due_ns = now_ns);
                self.clients[client].reads_again_ns = 0;
                self.acknowledge_due(now_ns, client);
                self.on_stream(now_ns, client);
            }
        }
        for identity in 0..self.identities.len() {
            self.connect_later(now_ns, identity);
        }
        self.at(now_ns + LOOK_NS, Happening::Drain);
    }

    /// Everything that could come has come, and the history says so.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drain == Drain::Done
    }

    /// Whether a Client Identifier should be connected.
    pub(super) fn wants_connection(&self, identity: usize) -> bool {
        let character = &self.identities[identity].character;
        match self.drain {
            Drain::No => character.kind != Kind::LastReader,
            Drain::Resuming { .. } => character.expiry > 0 && !character.leaves,
            Drain::Reading { .. } => character.kind == Kind::LastReader || character.expiry > 0 && !character.leaves,
            Drain::Done => false,
        }
    }

    pub(super) fn go_on_draining(&mut self, now_ns: u64) {
        let is_quiet =
            now_ns >= self.last_packet_ns + QUIET_NS && (0..self.identities.len()).all(|i| self.is_at_rest(i));
        match self.drain {
            Drain::Resuming { until_ns } => {
                let is_due = now_ns >= self.last_closed_ns + wills_due_ns();
                if (is_quiet && is_due) || now_ns >= until_ns {
                    self.drain = Drain::Reading { until_ns };
                    self.last_packet_ns = now_ns;
                    for identity in (0..self.identities.len()).rev().take(self.nodes) {
                        self.at(now_ns, Happening::Connect(identity));
                    }
                }
            }
            Drain::Reading { until_ns } if is_quiet || now_ns >= until_ns => {
                if !is_quiet {
                    self.complain_of_unrest();
                }
                self.history.push(now_ns, What::Quiesced);
                self.drain = Drain::Done;
            }
            _ => {}
        }
        if self.drain != Drain::Done {
            self.at(now_ns + LOOK_NS, Happening::Drain);
        }
    }

    /// Whether it is connected if it should be, and nothing is open.
    fn is_at_rest(&self, identity: usize) -> bool {
        let one = &self.identities[identity];
        let clients = || one.clients.clone().map(|client| &self.clients[client]);
        let is_connected =
            one.current.is_some_and(|link| self.is_open(link) && self.clients[link.client].phase == Phase::Connected);
        let is_quiet = clients().all(|client| client.stream.is_none() || client.is_quiet());
        let is_opening = clients().any(|client| client.phase == Phase::Opening);
        let is_settled = !is_connected || one.unacknowledged.is_empty();
        (is_connected || !self.wants_connection(identity)) && is_quiet && is_settled && !is_opening
    }

    fn complain_of_unrest(&mut self) {
        for identity in 0..self.identities.len() {
            if !self.is_at_rest(identity) {
                let one = &self.identities[identity];
                let states: Vec<String> = one
                    .clients
                    .clone()
                    .map(|client| {
                        let connection = &self.clients[client];
                        format!("{:?}, {} requests open", connection.phase, connection.requests_open)
                    })
                    .collect();
                let open = one.unacknowledged.len();
                let what = format!("{} does not come to rest: {states:?}, {open} messages unacknowledged", one.name);
                self.complaints.push(what);
            }
        }
        if self.complaints.is_empty() {
            self.complaints.push("clients get messages without end".to_owned());
        }
    }
}
