//! Rights that an authentication server said, asked for again while their client is connected.
//!
//! Each connection has its own time, spread so that they do not come all at once. While the server decides nothing its last word
//! counts, but not for ever. What is new counts at once, as it does when files are read again.

use std::sync::Arc;

use kentongan_proto::mqtt::ReasonCode;

use super::arbiter::ArbiterState;
use super::ended::EndCause;
use super::{ConnectionKey, Event};
use crate::auth::{Renewal, RenewedRights, RightsTerms};

/// A part of the time, up to one in this many, is taken away at random.
const SPREAD: u32 = 4;

/// Put off since too many logins were waiting, or not answered, it is tried again after one part of the time in this many.
const PUT_OFF: u32 = 8;

/// When the rights of a connection are asked for again, in seconds of the arbiter's clock.
#[derive(Debug)]
pub struct RightsRenewal {
    /// Then.
    due: u32,
    /// When somebody last said what they are.
    said: u32,
    /// By then somebody must have said that they are still so.
    outdated: Option<u32>,
    /// While the server is asked: gone, nobody waits for the answer.
    awaited: Option<Arc<()>>,
}

impl RightsRenewal {
    /// When to look at it next.
    pub fn next_second(&self) -> u32 {
        self.outdated.map_or(self.due, |outdated| outdated.min(self.due))
    }
}

fn outdated(terms: RightsTerms, said: u32) -> Option<u32> {
    (terms.outdated_seconds_max != 0).then(|| said.saturating_add(terms.outdated_seconds_max))
}

impl ArbiterState {
    /// Says when the rights of a connected client are asked for again, if they are.
    pub(super) fn plan_renewal(&mut self, key: ConnectionKey) {
        let terms = self.rights_terms(key);
        let now = self.now_seconds();
        let due = terms.map(|terms| self.spread(now, terms.seconds));
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        let planned = terms.zip(due).map(|(terms, due)| {
            let outdated = outdated(terms, now);
            Box::new(RightsRenewal { due, said: now, outdated, awaited: None })
        });
        session.renewal = planned;
    }

    /// The settings were read again: whether rights are asked for, and when, may be otherwise than before. What the server before was
    /// asked is not waited for.
    pub(super) fn plan_renewal_again(&mut self, key: ConnectionKey) {
        let session = self.client(key).and_then(|client| client.session.as_mut());
        let before = session.and_then(|session| session.renewal.take());
        self.plan_renewal(key);
        let (terms, now) = (self.rights_terms(key), self.now_seconds());
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        if let (Some(before), Some(terms), Some(renewal)) = (before, terms, &mut session.renewal) {
            // What is due sooner stays so: those of all connections are spread already.
            if before.due <= now.saturating_add(terms.seconds) {
                renewal.due = before.due;
            }
            renewal.said = before.said;
            renewal.outdated = outdated(terms, before.said);
        }
        if let Some(next) = session.next_second(now) {
            self.look_by(key, next);
        }
    }

    fn rights_terms(&mut self, key: ConnectionKey) -> Option<RightsTerms> {
        let granted = self.client(key)?.session.as_ref()?.granted.clone();
        self.shared.authority.rights_terms(granted.as_deref())
    }

    fn spread(&self, now: u32, seconds: u32) -> u32 {
        let taken_away = self.shared.random.draw() % u128::from(seconds / SPREAD + 1);
        now.saturating_add((seconds - taken_away as u32).max(1))
    }

    /// Asks if it is time. `false`: nobody has said for too long what the client may, and it is gone.
    pub(super) fn renew_rights_if_due(&mut self, key: ConnectionKey) -> bool {
        let now = self.now_seconds();
        let session = self.client(key).and_then(|client| client.session.as_ref());
        let Some(renewal) = session.and_then(|session| session.renewal.as_ref()) else {
            return true;
        };
        if renewal.outdated.is_some_and(|outdated| outdated <= now) {
            self.end(key, EndCause::NotAuthorized, Some(ReasonCode::NotAuthorized));
            return false;
        }
        if renewal.due <= now {
            self.renew_rights(key, now);
        }
        true
    }

    fn renew_rights(&mut self, key: ConnectionKey, now: u32) {
        let Some(terms) = self.rights_terms(key) else {
            return;
        };
        let (later, soon) = (self.spread(now, terms.seconds), self.spread(now, terms.seconds / PUT_OFF));
        let shared = Arc::clone(&self.shared);
        let Some(client) = self.client(key) else {
            return;
        };
        let awaited = Arc::new(());
        let Some(session) = client.session.as_mut() else {
            return;
        };
        let Some(renewal) = session.renewal.as_mut() else {
            return;
        };
        // Two questions of one client at a time would be one too many.
        let is_asked = renewal.awaited.is_none() && {
            let weak = Arc::downgrade(&awaited);
            let answering = Arc::clone(&shared);
            let answer = move |rights| {
                let event = Event::RightsRenewed { connection: key, rights };
                answering.inboxes[usize::from(key.arbiter())].push(event, 0);
            };
            let place = (&*client.listener, &client.origin, client.version);
            shared.authority.renew_rights(&session.identity, &client.client_id, place, weak, answer)
        };
        if is_asked {
            renewal.awaited = Some(awaited);
        }
        renewal.due = if is_asked { later } else { soon };
    }

    /// The server has said what a client may, or has not.
    pub(super) fn on_rights_renewed(&mut self, key: ConnectionKey, rights: RenewedRights) {
        let (now, clocks) = (self.now_seconds(), self.both_clocks());
        let Some(terms) = self.rights_terms(key) else {
            return;
        };
        let soon = self.spread(now, terms.seconds / PUT_OFF);
        let shared = Arc::clone(&self.shared);
        let Some(session) = self.client(key).and_then(|client| client.session.as_mut()) else {
            return;
        };
        let (Some(renewal), Some(granted)) = (&mut session.renewal, &session.granted) else {
            return;
        };
        renewal.awaited = None;
        let said = shared.authority.on_rights(&session.identity, granted, rights, clocks);
        if said != Renewal::Undecided {
            (renewal.said, renewal.outdated) = (now, outdated(terms, now));
        }
        match said {
            Renewal::Undecided => {
                renewal.due = renewal.due.min(soon);
                let next = renewal.next_second();
                self.look_by(key, next);
            }
            Renewal::Confirmed => {}
            Renewal::Denied => self.end_denied(key),
            Renewal::Prolonged(granted) => {
                session.granted = Some(granted);
                self.look_at_login_end(key);
            }
            Renewal::Changed(granted) => {
                session.granted = Some(granted);
                let identified = session.identified();
                self.look_at_login_end(key);
                self.apply_rights(key, &identified);
            }
        }
    }

    /// The login may end before anybody would look at it.
    fn look_at_login_end(&mut self, key: ConnectionKey) {
        let session = self.client(key).and_then(|client| client.session.as_ref());
        let Some(session) = session else {
            return;
        };
        let next = session.renewal.as_ref().map_or(u32::MAX, |renewal| renewal.next_second());
        if let Some(ends) = session.login_ends_second().filter(|&ends| ends < next) {
            self.look_by(key, ends);
        }
    }
}
