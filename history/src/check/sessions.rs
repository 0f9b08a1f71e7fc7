//! P8, and P10 of sessions: Session Present is 1 exactly while the session lives, and it lives as long as its expiry.

use super::story::{Connection, NONE, Story};
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>) {
    for connection in &story.connections {
        let Some(connack) = connection.accepted() else { continue };
        let previous = (connection.previous != NONE).then(|| &story.connections[connection.previous as usize]);
        let client = story.history.name(connection.client);
        let mut events = vec![connection.connect.event, connack.event];
        if let Some(previous) = previous {
            events.push(previous.connect.event);
            events.extend(previous.closed.map(|(mark, _)| mark.event));
        }
        if connection.must_resume && !connection.session_present {
            let expired = previous.is_some_and(|previous| ended_and_expires(previous, connection));
            let (promise, why) =
                if expired { (Promise::P10, "it had not expired") } else { (Promise::P8, "nothing ended it") };
            report.add(promise, &events, format!("Session Present is 0 for {client}, whose session lives: {why}"));
        }
        if connection.must_be_new && connection.session_present {
            let (promise, why) = match previous {
                _ if connection.clean_start => (Promise::P8, "it asked for a clean start [MQTT-3.2.2-2]"),
                Some(_) => (Promise::P10, "it outlived its expiry"),
                None => (Promise::P8, "it never had one"),
            };
            report.add(promise, &events, format!("Session Present is 1 for {client}, which has no session: {why}"));
        }
    }
}

fn ended_and_expires(previous: &Connection, next: &Connection) -> bool {
    previous.expiry.0 != u32::MAX && previous.closed_at() < next.connect.at
}
