//! Who is connected is held against new files of users and rights, or new keys of tokens.
//!
//! That takes microseconds for each, more where there are many subscriptions, and a node has tens of thousands of connections: a turn
//! looks at some of them, and the packets of the others are handled in between. Whoever connects meanwhile comes by what is new.

use std::collections::VecDeque;

use super::ConnectionKey;
use super::arbiter::ArbiterState;

/// Connections that one turn looks at: well below a millisecond, usually.
const LOOKED_AT_A_TURN: usize = 64;

/// What may have changed for those who are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Changed {
    /// Who may be here, as by new keys of tokens: those who stay may what they could before.
    #[default]
    WhoMayStay,
    /// And who may what: the files of users and rights, and settings that go with them.
    WhoMayWhat,
}

/// The connections of an arbiter that are still to be looked at.
#[derive(Debug, Default)]
pub(super) struct LookingAgain {
    changed: Changed,
    waiting: VecDeque<ConnectionKey>,
}

impl ArbiterState {
    /// Whoever would not be let in any more goes, and the others may what they may now. Begins with that.
    pub(super) fn look_again_at_all(&mut self, changed: Changed) {
        let before = std::mem::take(&mut self.looking_again);
        // Those that an earlier change has not come to are looked at for that as well.
        let changed = if before.waiting.is_empty() { changed } else { changed.max(before.changed) };
        self.looking_again = LookingAgain { changed, waiting: self.keys().into() };
        self.look_again_at_some();
    }

    /// Goes on with it. Every turn.
    pub(super) fn look_again_at_some(&mut self) {
        let changed = self.looking_again.changed;
        for _ in 0..LOOKED_AT_A_TURN {
            let Some(key) = self.looking_again.waiting.pop_front() else {
                return;
            };
            self.look_again(key, changed);
        }
        self.schedule_flush();
    }

    fn look_again(&mut self, key: ConnectionKey, changed: Changed) {
        let session = self.client(key).and_then(|client| client.session.as_ref());
        let Some(identified) = session.map(|session| session.identified()) else {
            return;
        };
        if !self.may_stay(key, &identified) {
            return self.end_denied(key);
        }
        if changed == Changed::WhoMayWhat {
            self.plan_renewal_again(key);
            self.apply_rights(key, &identified);
        }
    }
}
