//! What other nodes say, on its way to the arbiters and groups here.

use std::sync::Arc;

use crate::connection_key::ConnectionKey;
use crate::peers::wire::{AskResync, Forwarded, GroupEvents, Propose, ReadRetained, Resync};
use crate::replicated::RetainedCursor;
use crate::replicated::submitter::Asker;
use crate::router::{Event, Shared};

/// Takes in what `from` said. What cannot be read, or is for another time, is dropped: whoever said it will say it again.
pub fn take(shared: &Arc<Shared>, from: u64, forwarded: Forwarded) {
    match forwarded {
        Forwarded::Propose(propose) => take_proposal(shared, propose),
        Forwarded::Events(events) => take_events(shared, from, events),
        Forwarded::Resync(resync) => take_resync(shared, from, resync),
        Forwarded::Read(read) => take_read(shared, from, read),
        Forwarded::AskResync(ask) => take_ask(shared, from, ask),
    }
}

fn known_group(shared: &Shared, group: u32) -> Option<u16> {
    u16::try_from(group).ok().filter(|&group| group < shared.submitter.slots().groups())
}

fn take_proposal(shared: &Shared, propose: Propose) {
    if let Some(group) = known_group(shared, propose.group) {
        shared.submitter.propose_encoded(group, propose.command);
    }
}

fn take_resync(shared: &Shared, from: u64, resync: Resync) {
    if known_group(shared, resync.group).is_some() {
        shared.submitter.resync(from, resync);
    }
}

fn take_read(shared: &Shared, from: u64, read: ReadRetained) {
    let Some(group) = known_group(shared, read.group) else {
        return;
    };
    let connection = ConnectionKey::from_raw(read.connection);
    let asker = Asker { node: from, incarnation: read.incarnation, connection };
    let cursor = RetainedCursor { group, after: read.after };
    shared.submitter.retained_page(asker, read.number, &read.filter, cursor);
}

/// What the leader of a group pushes. Under the lock of the leaders, so that nothing of an earlier one reaches an inbox
/// behind the word that there is a new one.
fn take_events(shared: &Shared, from: u64, events: GroupEvents) {
    let (Some(cluster), Some(group)) = (&shared.cluster, known_group(shared, events.group)) else {
        return;
    };
    if events.incarnation != shared.incarnation {
        return;
    }
    let now_ms = shared.now_ms();
    cluster.leaders.if_leads(shared, group, from, events.term, || {
        for kind in events.events.into_iter().filter_map(|event| event.kind) {
            let Some((arbiter, event)) = kind.into_event(group, now_ms) else {
                continue;
            };
            if let Some(inbox) = shared.inboxes.get(usize::from(arbiter)) {
                inbox.push(event, 0);
            }
        }
    });
}

fn take_ask(shared: &Shared, from: u64, ask: AskResync) {
    let (Some(cluster), Some(group)) = (&shared.cluster, known_group(shared, ask.group)) else {
        return;
    };
    cluster.leaders.if_leads(shared, group, from, ask.term, || {
        let leader = Some(crate::router::cluster::Leader { node: from, term: ask.term });
        for inbox in &shared.inboxes {
            inbox.push(Event::Led { group, leader }, 0);
        }
    });
}
