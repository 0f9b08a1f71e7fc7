//! Looking at the connections of an arbiter for an operator, a few at a time.
//!
//! A visit runs on the arbiter's own thread, between two events, and so must be short: whoever walks all connections
//! comes again for the next few.

use std::fmt;
use std::net::SocketAddr;

use kentongan_proto::mqtt::{ProtocolVersion, ReasonCode};

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::{Client, OwnSubscription};
use super::ended::EndCause;

/// Something short to do on an arbiter's thread.
pub struct Visit(Box<dyn FnOnce(&mut ArbiterState) + Send>);

impl Visit {
    /// To be carried out once. If the arbiter is gone, it is dropped.
    pub fn new(visit: impl FnOnce(&mut ArbiterState) + Send + 'static) -> Self {
        Self(Box::new(visit))
    }

    pub(super) fn carry_out(self, arbiter: &mut ArbiterState) {
        (self.0)(arbiter);
    }
}

impl fmt::Debug for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Visit")
    }
}

/// A connected client, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Its Client Identifier.
    pub client_id: &'a str,
    /// Who it is; empty if it came without a name.
    pub identity: &'a str,
    /// Where it comes from.
    pub address: Option<SocketAddr>,
    /// The listener that it came by.
    pub listener: &'a crate::config::ListenAddress,
    /// What it speaks.
    pub version: ProtocolVersion,
    /// Seconds; 0 is off.
    pub keep_alive_seconds: u16,
    /// Whether its session outlives the connection.
    pub persistent: bool,
    /// How long it does.
    pub session_expiry_seconds: u32,
    /// Milliseconds of the process clock at which CONNACK was sent.
    pub connected_ms: u64,
    /// How many subscriptions it has.
    pub subscriptions: usize,
    /// Messages that wait, and those in flight. `None`: a group keeps them.
    pub waiting: Option<(i64, i64)>,
    /// Bytes that its connection keeps in memory.
    pub waiting_bytes: usize,
}

impl<'a> Seen<'a> {
    /// `None`: it has not got CONNACK, or is about to go.
    fn of(client: &'a Client) -> Option<Self> {
        let session = client.session.as_ref().filter(|_| client.is_connected())?;
        let backlog = session.outbound.backlog();
        Some(Self {
            client_id: &client.client_id,
            identity: &session.identity,
            address: client.origin.address,
            listener: &client.listener.address,
            version: client.version,
            keep_alive_seconds: client.keep_alive_seconds,
            persistent: session.persistent.is_some(),
            session_expiry_seconds: session.session_expiry_seconds,
            connected_ms: session.connected_ms,
            subscriptions: session.subscriptions.len(),
            waiting: session.persistent.is_none().then_some((backlog.queued_messages, backlog.in_flight)),
            waiting_bytes: client.waiting_bytes(),
        })
    }
}

impl ArbiterState {
    /// Shows the connected clients in the places from `from` on to `show`, `places` of them at most, or until it has enough
    /// (`false`). Returns where to go on; `None`: those were all.
    ///
    /// A client keeps its place, so whoever is connected all the while is shown once.
    pub fn show_clients(&self, from: usize, places: usize, mut show: impl FnMut(&Seen<'_>) -> bool) -> Option<usize> {
        // Every place that is taken is below it.
        let all = self.clients.capacity();
        let end = from.saturating_add(places).min(all);
        for place in from..end {
            let seen = self.clients.get(place).and_then(Seen::of);
            if seen.is_some_and(|seen| !show(&seen)) {
                return Some(place + 1);
            }
        }
        (end < all).then_some(end)
    }

    /// The connected client of this name, if it has one of the places from `from` on, `places` of them at most, and where to
    /// look further.
    pub fn find_client(
        &self,
        client_id: &str,
        from: usize,
        places: usize,
    ) -> (Option<(ConnectionKey, Seen<'_>)>, Option<usize>) {
        let all = self.clients.capacity();
        let end = from.saturating_add(places).min(all);
        let found = (from..end).find_map(|place| {
            let client = self.clients.get(place).filter(|client| *client.client_id == *client_id)?;
            Some((ConnectionKey::new(self.id, place as u32, client.generation), Seen::of(client)?))
        });
        (found, (end < all).then_some(end))
    }

    /// Closes a connection; a client of MQTT 5 is told that it was an administrator's doing. `false`: it is gone.
    pub fn kick(&mut self, key: ConnectionKey) -> bool {
        let is_there = self.client(key).is_some_and(|client| client.is_connected());
        if is_there {
            self.end(key, EndCause::Kicked, Some(ReasonCode::AdministrativeAction));
        }
        is_there
    }

    /// The subscriptions of the clients in the places from `from` on, as [`Self::show_clients`] shows clients: a client's
    /// by their filters, those behind `after` of the first one.
    pub fn show_subscriptions(
        &self,
        from: usize,
        places: usize,
        after: Option<&str>,
        mut show: impl FnMut(&Client, &str, &OwnSubscription) -> bool,
    ) -> Option<(usize, Option<String>)> {
        let all = self.clients.capacity();
        let end = from.saturating_add(places).min(all);
        for place in from..end {
            let Some(client) = self.clients.get(place).filter(|client| client.is_connected()) else { continue };
            let Some(session) = &client.session else { continue };
            let is_behind = |filter: &str| place != from || after.is_none_or(|after| filter > after);
            let mut filters: Vec<_> = session.subscriptions.iter().filter(|(filter, _)| is_behind(filter)).collect();
            filters.sort_unstable_by_key(|(filter, _)| *filter);
            for (filter, own) in filters {
                if !show(client, filter, own) {
                    return Some((place, Some(filter.to_string())));
                }
            }
        }
        (end < all).then_some((end, None))
    }
}
