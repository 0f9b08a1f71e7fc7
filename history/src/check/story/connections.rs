//! Connections, their bounds, and the sessions that they take up.

use std::collections::{HashMap, VecDeque};

use super::{Answered, Connection, Mark, NONE, NumberMap, Session, Story, after};
use crate::check::faults::NEVER;
use crate::event::{Action, ClosedBy, Nanoseconds, Symbol, What};

impl Story<'_> {
    pub(super) fn read_connections(&mut self) {
        let mut numbers: NumberMap<u64, u32> = HashMap::default();
        for (index, event) in self.history.events().iter().enumerate() {
            let mark = Mark { event: index as u32, at: event.at };
            let What::Client { client, connection, node, ref action } = event.what else {
                self.connection_of.push(NONE);
                if event.what == What::Quiesced {
                    self.quiesced.push(mark);
                }
                continue;
            };
            let number = (u64::from(client.0) << 32) | u64::from(connection);
            let connection = *numbers.entry(number).or_insert_with(|| {
                self.clients[client.0 as usize].push(self.connections.len() as u32);
                self.connections.push(Connection::new(client, node, mark));
                self.connections.len() as u32 - 1
            });
            self.connection_of.push(connection);
            self.connections[connection as usize].see(mark, action);
        }
    }

    /// Which connection follows which.
    pub(super) fn order_connections(&mut self) {
        for client in &self.clients {
            let mut accepted: Vec<(Mark, u32)> =
                client.iter().filter_map(|&c| Some((self.connections[c as usize].accepted()?, c))).collect();
            accepted.sort_unstable_by_key(|(mark, _)| mark.event);
            for (index, &(mark, old)) in accepted.iter().enumerate() {
                let newer = accepted[index + 1..]
                    .iter()
                    .find(|&&(_, newer)| self.connections[newer as usize].connect.event > mark.event);
                self.connections[old as usize].superseded = newer.map(|&(mark, _)| mark);
                if let Some(&(_, next)) = accepted.get(index + 1) {
                    self.connections[next as usize].previous = old;
                }
            }
        }
    }

    /// When the server may have taken each connection for ended.
    pub(super) fn bound_ends(&mut self) {
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let mut from = NEVER;
            let mut until = NEVER;
            if let Some((closed, by)) = connection.closed {
                // What came last may have been under way for a while, longer than the server's end took.
                let last = connection.last_received_at.saturating_sub(self.settings.transit_max);
                let disturbed =
                    self.faults.overlap(last, closed.at) || self.faults.node_down(connection.node, last, closed.at);
                from = if disturbed { last } else { closed.at.saturating_sub(self.settings.transit_max).max(last) };
                until = self.faults.extend(closed.at, self.settings.detection_max);
                // A node that is cut off goes on answering PINGREQ when the others have taken it for dead.
                if let Some(accepted) = connection.accepted()
                    && let Some(began) = self.faults.first_within(accepted.at, closed.at)
                {
                    from = from.min(began);
                }
                if let Some(disconnect) = connection.disconnect {
                    from = from.min(disconnect.mark.at);
                    // A DISCONNECT counts once the server has closed the connection, unless something else may have.
                    let acted = by == ClosedBy::Server
                        && !connection.disconnect_received
                        && !self.faults.node_down(connection.node, disconnect.mark.at, closed.at)
                        && connection.superseded.is_none_or(|newer| newer.at > closed.at);
                    if acted {
                        until = closed.at;
                    }
                    let connection = &mut self.connections[index];
                    connection.left = acted && disconnect.reason == 0;
                    if let Some(expiry) = connection.disconnect_expiry {
                        let (low, high) = connection.expiry;
                        connection.expiry = if acted { (expiry, expiry) } else { (low.min(expiry), high.max(expiry)) };
                    }
                }
            }
            if let Some(newer) = self.connections[index].superseded {
                let connect = self.connections[self.connection_of[newer.event as usize] as usize].connect;
                from = from.min(connect.at);
                until = until.min(newer.at);
            }
            self.connections[index].ended = (from, until);
        }
    }

    // Sessions.

    pub(super) fn read_sessions(&mut self, client: usize) {
        let all = std::mem::take(&mut self.clients[client]);
        let mut accepted: Vec<u32> =
            all.iter().copied().filter(|&c| self.connections[c as usize].accepted().is_some()).collect();
        accepted.sort_unstable_by_key(|&c| self.connections[c as usize].accepted().map(|mark| mark.event));
        let unsure: Vec<u32> =
            all.iter().copied().filter(|&c| self.connections[c as usize].accepted().is_none()).collect();
        for &c in &accepted {
            self.judge_session_present(c, &unsure);
            self.enter_session(c, &unsure);
        }
        for &c in &unsure {
            let connect = self.connections[c as usize].connect;
            if let Some(session) = self.session_before(&accepted, connect.event) {
                let ends = &mut self.sessions[session as usize].ends;
                ends.0 = ends.0.min(connect.at);
            }
        }
        self.clients[client] = all;
    }

    /// The session whose last connection was accepted before that event.
    fn session_before(&self, accepted: &[u32], event: u32) -> Option<u32> {
        let last = accepted.iter().rev().find(|&&c| self.connections[c as usize].connect.event < event)?;
        let session = self.connections[*last as usize].session;
        (self.sessions[session as usize].connections.last() == Some(last)).then_some(session)
    }

    /// Until when a CONNECT that was not answered with success may still be carried out.
    fn effect_until(&self, unsure: &Connection) -> Nanoseconds {
        let given_up = unsure.connack.map_or(unsure.closed_at(), |answer| answer.mark.at);
        if given_up == NEVER { NEVER } else { self.faults.extend(given_up, self.settings.detection_max) }
    }

    /// Those CONNECTs of unknown fate that may have been carried out between two accepted ones.
    fn unsure_between<'a>(&'a self, unsure: &'a [u32], c: u32) -> impl Iterator<Item = &'a Connection> {
        let connection = &self.connections[c as usize];
        let connack_at = connection.accepted().map_or(NEVER, |mark| mark.at);
        let since =
            if connection.previous == NONE { 0 } else { self.connections[connection.previous as usize].connect.at };
        unsure
            .iter()
            .map(|&u| &self.connections[u as usize])
            .filter(move |other| other.connect.at < connack_at && self.effect_until(other) >= since)
    }

    fn judge_session_present(&mut self, c: u32, unsure: &[u32]) {
        let connection = &self.connections[c as usize];
        let Some(connack) = connection.accepted() else { return };
        let connect_at = connection.connect.at;
        let previous = (connection.previous != NONE).then(|| &self.connections[connection.previous as usize]);
        let settings = self.settings;
        let mut must_resume = false;
        let mut may_resume = !settings.starts_empty;
        if let Some(previous) = previous {
            let racing = previous.accepted().is_some_and(|mark| mark.event > connection.connect.event);
            let (low, high) = previous.expiry;
            let lives_until = after(previous.ended.0, low).saturating_sub(settings.clock_skew_max);
            must_resume = !racing && low > 0 && lives_until >= connack.at;
            let gone_at =
                after(previous.ended.1, high).saturating_add(settings.expiry_late_max + settings.clock_skew_max);
            may_resume |= racing || gone_at >= connect_at;
            // An open connection is taken over: whether a session of no expiry survives that, nobody says.
            may_resume |= previous.ended.1 >= connect_at;
        }
        for other in self.unsure_between(unsure, c) {
            may_resume = true;
            must_resume &= !other.clean_start
                && other.expiry.0 > 0
                && previous.is_some_and(|previous| {
                    after(previous.ended.0, other.expiry.0.min(previous.expiry.0)) >= connack.at
                });
        }
        let clean_start = connection.clean_start;
        let connection = &mut self.connections[c as usize];
        connection.must_resume = must_resume && !clean_start;
        connection.must_be_new = clean_start || !may_resume;
    }

    fn enter_session(&mut self, c: u32, unsure: &[u32]) {
        let connection = &self.connections[c as usize];
        let previous = connection.previous;
        let connect = connection.connect;
        let Some(connack) = connection.accepted() else { return };
        let previous_session = if previous == NONE { NONE } else { self.connections[previous as usize].session };
        let session = if connection.session_present && previous_session != NONE {
            let void = self.unsure_between(unsure, c).collect::<Vec<_>>();
            let doubtful = void.iter().any(|other| other.clean_start)
                || void.len() > 1
                || (!void.is_empty() && !connection.must_resume);
            let void_at = if doubtful { void.iter().map(|other| other.connect.at).min() } else { None };
            self.connections[c as usize].void_at = void_at.unwrap_or(NEVER);
            previous_session
        } else {
            if previous_session != NONE {
                let ends = &mut self.sessions[previous_session as usize].ends;
                *ends = (ends.0.min(connect.at), ends.1.min(connack.at));
            }
            self.sessions.push(Session::new(self.connections[c as usize].client));
            self.sessions.len() as u32 - 1
        };
        let connection = &mut self.connections[c as usize];
        connection.session = session;
        let (low, high) = connection.expiry;
        let ends = (after(connection.ended.0, low), after(connection.ended.1, high));
        let entered = &mut self.sessions[session as usize];
        entered.connections.push(c);
        entered.ends = (ends.0, ends.1.saturating_add(self.settings.expiry_late_max));
    }
}

impl Session {
    fn new(client: Symbol) -> Self {
        Self {
            client,
            connections: Vec::new(),
            spans: Vec::new(),
            deliveries: Vec::new(),
            ends: (NEVER, NEVER),
            last_delivery_at: 0,
            open_deliveries: Vec::new(),
            open_spans: Vec::new(),
        }
    }
}

impl Connection {
    fn new(client: Symbol, node: u16, connect: Mark) -> Self {
        Self {
            client,
            node,
            connect,
            clean_start: false,
            expiry: (0, 0),
            connack: None,
            session_present: false,
            disconnect: None,
            disconnect_expiry: None,
            disconnect_received: false,
            closed: None,
            last_received_at: connect.at,
            alive_at: connect.at,
            ended: (NEVER, NEVER),
            left: false,
            superseded: None,
            session: NONE,
            void_at: NEVER,
            must_resume: false,
            must_be_new: false,
            previous: NONE,
            will: NONE,
            will_delay: 0,
            open_sends: VecDeque::new(),
            open_subscribes: Vec::new(),
        }
    }

    /// What concerns the connection as a whole.
    fn see(&mut self, mark: Mark, action: &Action) {
        match action {
            Action::ConnectSent(connect) => {
                self.clean_start = connect.clean_start;
                self.expiry = (connect.session_expiry, connect.session_expiry);
            }
            Action::ConnAck { reason, session_present, session_expiry } => {
                self.connack = Some(Answered { mark, reason: *reason });
                self.session_present = *session_present;
                if let Some(expiry) = *session_expiry {
                    self.expiry = (expiry, expiry);
                }
                self.last_received_at = mark.at;
            }
            Action::DisconnectSent { reason, session_expiry } => {
                self.disconnect = Some(Answered { mark, reason: *reason });
                self.disconnect_expiry = *session_expiry;
            }
            Action::DisconnectReceived { .. } => self.disconnect_received = true,
            Action::ConnectionClosed { by } => {
                self.closed.get_or_insert((mark, *by));
            }
            Action::SubAck { .. }
            | Action::UnsubAck { .. }
            | Action::PubAckReceived(_)
            | Action::PubRecReceived(_)
            | Action::PubCompReceived(_)
            | Action::PubRelReceived(_)
            | Action::Delivered(_)
            | Action::PingResp => self.last_received_at = mark.at,
            _ => {}
        }
    }
}
