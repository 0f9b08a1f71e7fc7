//! P3 and P4: nothing is handed on twice, and what is sent again is marked and has a reason.

use std::collections::BTreeMap;

use super::faults::NEVER;
use super::retained::readings_begun_anew;
use super::story::{Delivery, Kind, Message, NONE, Story};
use crate::event::Nanoseconds;
use crate::settings::SECOND;
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>) {
    let mut seen = vec![NONE; story.messages.len()];
    for (index, session) in story.sessions.iter().enumerate() {
        let mut repeated = Vec::new();
        let mut duplicates: BTreeMap<u32, u32> = BTreeMap::new();
        for &delivery in &session.deliveries {
            let delivery = &story.deliveries[delivery as usize];
            check_identifier(story, delivery, report);
            if delivery.dup {
                *duplicates.entry(delivery.connection).or_default() += 1;
                check_break(story, delivery, report);
            }
            if delivery.message == NONE {
                continue;
            }
            if std::mem::replace(&mut seen[delivery.message as usize], index as u32) == index as u32 {
                repeated.push(delivery.message);
            }
        }
        repeated.sort_unstable();
        repeated.dedup();
        for message in repeated {
            check_repeated(story, index as u32, &story.messages[message as usize], report);
        }
        for (connection, count) in duplicates {
            if count > story.settings.in_flight_max {
                let summary = format!(
                    "{count} duplicates after one break, in flight are at most {}, in {}",
                    story.settings.in_flight_max,
                    story.session_name(index as u32)
                );
                let connack = story.connections[connection as usize].accepted().map(|mark| mark.event);
                report.add(Promise::P4, connack.as_slice(), summary);
            }
        }
    }
}

/// A Packet Identifier in flight names one message [MQTT-2.2.1-4].
fn check_identifier(story: &Story<'_>, delivery: &Delivery, report: &mut Report<'_>) {
    if delivery.collides != NONE {
        let before = &story.deliveries[delivery.collides as usize];
        let summary = format!(
            "a Packet Identifier was used for another message while in flight, in {}",
            story.session_name(delivery.session)
        );
        report.add(Promise::P4, &[before.mark.event, delivery.mark.event], summary);
    }
    // What was on its way on a connection that is being replaced may be read after its repetition on the new one.
    let replaced = story.connections[delivery.connection as usize].superseded;
    let stale = replaced.is_some_and(|newer| newer.event < delivery.mark.event);
    if delivery.qos == 2 && !delivery.new && !delivery.dup && !stale {
        let summary = format!("QoS 2 was sent again without DUP in {}", story.session_name(delivery.session));
        report.add(Promise::P4, &[delivery.mark.event], summary);
    }
}

/// Until a group hears that a connection has ended it moves messages into that connection's window, where they count as sent: a node that is
/// declared dead closes its clients at once, and the fence that tells the groups of it is an entry of each (seed 27).
const HEARD_AFTER: Nanoseconds = 2 * SECOND;

/// DUP needs an earlier connection of the session on which the message could have been sent. No fault of nodes excuses it: who takes over
/// from another one is told what a living connection was sent.
fn check_break(story: &Story<'_>, delivery: &Delivery, report: &mut Report<'_>) {
    if delivery.message == NONE {
        return;
    }
    let message = &story.messages[delivery.message as usize];
    let client = story.sessions[delivery.session as usize].client;
    let earlier = story.clients[client.0 as usize].iter().any(|&c| {
        let connection = &story.connections[c as usize];
        // A CONNECT that was not answered may have been served nevertheless.
        c != delivery.connection
            && (connection.session == delivery.session || connection.accepted().is_none())
            && connection.connect.event < story.connections[delivery.connection as usize].connect.event
            && connection.ended.1.saturating_add(HEARD_AFTER) >= message.first.at
    });
    if !earlier || delivery.qos == 0 {
        let summary = format!(
            "{} came with DUP, and no break explains it, in {}",
            story.message_name(message),
            story.session_name(delivery.session)
        );
        report.add(Promise::P4, &[message.first.event, delivery.mark.event], summary);
    }
}

fn check_repeated(story: &Story<'_>, session: u32, message: &Message, report: &mut Report<'_>) {
    let deliveries: Vec<&Delivery> = story.deliveries_of(message).filter(|d| d.session == session).collect();
    let Some(&last) = deliveries.last() else { return };
    let mut allowed = Allowed::of(story, last, message);
    if is_split(story, &deliveries, message) {
        allowed.live += message.tries;
    }
    let allowed_on_connection = allowed.live;
    allowed.live += met_again(story, &deliveries, message) * message.tries;
    let is = |kind: Kind| move |d: &&&Delivery| d.kind == kind;
    let new = |kind: Kind| deliveries.iter().filter(is(kind)).filter(|d| d.new).count() as u32;
    let (live, retained, either) = (new(Kind::Live), new(Kind::Retained), new(Kind::Either));
    let events: Vec<u32> =
        [message.first.event].into_iter().chain(deliveries.iter().map(|delivery| delivery.mark.event)).collect();
    let name = || format!("{} in {}", story.message_name(message), story.session_name(session));
    if live > allowed.live || live + retained + either > allowed.live + allowed.retained {
        let promise = match last.qos {
            _ if message.will_of != NONE => Promise::P9,
            2 => Promise::P3,
            _ => Promise::P4,
        };
        let summary = format!("handed on {} times as new: {}", live + retained + either, name());
        report.add(promise, &events, summary);
        return;
    }
    let mut on_connection: BTreeMap<u32, u32> = BTreeMap::new();
    for delivery in deliveries.iter().filter(is(Kind::Live)) {
        *on_connection.entry(delivery.connection).or_default() += 1;
    }
    if on_connection.values().any(|&count| count > allowed_on_connection) {
        report.add(Promise::P4, &events, format!("sent again on a living connection: {}", name()));
    }
}

/// Whether one copy may have come by a subscription that was just being made or ended, and another by one that stands: each
/// matching subscription may have a copy of its own [MQTT-3.3.4-2]. They are told apart by QoS: one of them is 0. A subscription
/// that is replaced is one, and has one copy: what else may have come is the one that its session had when it moved. One that UNSUBSCRIBE
/// ended is another than what the next SUBSCRIBE begins, and its copy has come (seed 14135).
fn is_split(story: &Story<'_>, deliveries: &[&Delivery], message: &Message) -> bool {
    let live = || deliveries.iter().filter(|delivery| delivery.kind != Kind::Retained);
    let (Some(last), true, true) = (live().next_back(), live().any(|d| d.qos == 0), live().any(|d| d.qos > 0)) else {
        return false;
    };
    let until = last.mark.at.min(matched_by(story, message));
    let spans = || story.spans_of(last).filter(|span| !span.shared && span.may_until >= message.first.at);
    let mut filters = spans().map(|span| span.filter);
    let first = filters.next();
    let was_left = spans().any(|span| story.is_unsubscribed_by(span.ended_by));
    let is_one =
        !was_left && filters.all(|filter| Some(filter) == first) && live().all(|d| d.connection == last.connection);
    !is_one && spans().any(|span| span.subscribe.at <= until && !span.must_take(message.first.at, until))
}

/// When it was matched for the last time. Only the publisher's acknowledgement of each try bounds that; and not of QoS 2, which says
/// no more than that the message is in an outbox.
fn matched_by(story: &Story<'_>, message: &Message) -> Nanoseconds {
    if message.qos == 2 || message.will_of != NONE {
        return NEVER;
    }
    let answered = story.sends_of(message).map(|send| send.answer.map_or(NEVER, |answer| answer.mark.at));
    answered.max().map_or(NEVER, |at| at.saturating_add(story.settings.transit_max))
}

/// Further processes at which a session met a message at QoS 0, of which nobody keeps what a session had. See
/// [`Story::may_meet_again_until`]. With RETAIN as published such a copy looks like a retained one.
fn met_again(story: &Story<'_>, deliveries: &[&Delivery], message: &Message) -> u32 {
    let until = story.may_meet_again_until(message);
    let mut processes = Vec::new();
    let mut met = 0;
    for delivery in deliveries.iter().filter(|delivery| delivery.qos == 0 && delivery.kind != Kind::Retained) {
        let process = story.process_of(delivery);
        if !processes.contains(&process) {
            met += u32::from(!processes.is_empty() && delivery.mark.at <= until);
            processes.push(process);
        }
    }
    met
}

/// How often a session may get one message as new.
struct Allowed {
    live: u32,
    retained: u32,
}

impl Allowed {
    fn of(story: &Story<'_>, last: &Delivery, message: &Message) -> Self {
        let mut shares = Vec::new();
        let mut plain = 0;
        let mut retained = 0;
        for span in story.spans_of(last).filter(|span| span.may_until >= message.first.at) {
            if !span.shared {
                plain = 1;
            } else if !shares.contains(&span.filter) {
                shares.push(span.filter);
            }
            if span.may_read {
                retained += 1 + readings_begun_anew(story, span).count() as u32;
            }
        }
        Self { live: message.tries * (plain + shares.len() as u32).max(1), retained }
    }
}
