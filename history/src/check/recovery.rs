//! P12: soon after a fault heals, clients can connect, publish and subscribe, and the registry is in order.

use std::collections::BTreeSet;

use super::story::{Connection, Mark, NONE, Story};
use crate::event::{Action, Nanoseconds, Symbol, What};
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>) {
    let calm = calm_times(story);
    if calm.is_empty() {
        return;
    }
    let within = |at: Nanoseconds| calm.iter().any(|&(from, to)| from <= at && at <= to);
    let served = |sent: Mark| within(sent.at) && within(sent.at.saturating_add(story.settings.answer_max));
    check_connects(story, &served, report);
    check_publishes(story, &served, report);
    check_subscribes(story, &served, report);
    for (index, event) in story.history.events().iter().enumerate() {
        if let What::Registry { owners, routes, leaderless } = &event.what
            && within(event.at)
        {
            check_registry(story, Mark { event: index as u32, at: event.at }, owners, routes, leaderless, report);
        }
    }
}

/// The times at which the cluster had recovered from a fault and none was on.
fn calm_times(story: &Story<'_>) -> Vec<(Nanoseconds, Nanoseconds)> {
    let mut disturbed: Vec<(Nanoseconds, Nanoseconds)> = story.faults.windows.clone();
    disturbed.extend(story.faults.crashes.iter().map(|&(_, from, to)| (from, to)));
    disturbed.sort_unstable();
    let mut calm = Vec::new();
    let mut healed = None;
    for (from, to) in disturbed {
        if let Some(since) = healed.filter(|&since| since < from) {
            calm.push((since, from));
        }
        let recovered = to.saturating_add(story.settings.recovery_max);
        healed = Some(healed.map_or(recovered, |before: Nanoseconds| before.max(recovered)));
    }
    if let Some(since) = healed.filter(|&since| since < story.ended_at()) {
        calm.push((since, story.ended_at()));
    }
    calm
}

/// Reason Codes that say that the server cannot serve now: MQTT 3.1.1's 3, 0x88 and 0x89.
pub(super) fn is_unavailable(reason: u8) -> bool {
    matches!(reason, 3 | 0x88 | 0x89)
}

fn check_connects(story: &Story<'_>, served: &impl Fn(Mark) -> bool, report: &mut Report<'_>) {
    for connection in story.connections.iter().filter(|connection| served(connection.connect)) {
        let deadline = connection.connect.at + story.settings.answer_max;
        let what = match connection.connack {
            Some(answer) if is_unavailable(answer.reason) => "was refused as unavailable",
            Some(answer) if answer.mark.at > deadline => "was answered late",
            None if connection.closed_at() > deadline => "was not answered",
            _ => continue,
        };
        let summary =
            format!("a CONNECT of {} to node {} {what}", story.history.name(connection.client), connection.node);
        let mut events = vec![connection.connect.event];
        events.extend(connection.connack.map(|answer| answer.mark.event));
        report.add(Promise::P12, &events, summary);
    }
}

fn check_publishes(story: &Story<'_>, served: &impl Fn(Mark) -> bool, report: &mut Report<'_>) {
    for send in story.sends.iter().filter(|send| served(send.mark)) {
        let message = &story.messages[send.message as usize];
        let deadline = send.mark.at + story.settings.answer_max;
        let what = match send.answer {
            Some(answer) if answer.mark.at > deadline => "was answered late",
            None if message.qos > 0 && stays_open(story, send.connection, deadline) => "was not answered",
            _ => continue,
        };
        let summary = format!("{} {what}", story.message_name(message));
        report.add(Promise::P12, &[send.mark.event], summary);
    }
}

fn check_subscribes(story: &Story<'_>, served: &impl Fn(Mark) -> bool, report: &mut Report<'_>) {
    let answered: BTreeSet<u32> = story.answered_subscribes.iter().copied().collect();
    for (index, event) in story.history.events().iter().enumerate() {
        let mark = Mark { event: index as u32, at: event.at };
        let What::Client { action: Action::SubscribeSent(_) | Action::UnsubscribeSent { .. }, .. } = event.what else {
            continue;
        };
        let connection = story.connection_of[index];
        let deadline = mark.at.saturating_add(story.settings.answer_max);
        if served(mark) && !answered.contains(&mark.event) && stays_open(story, connection, deadline) {
            report.add(Promise::P12, &[mark.event], "a SUBSCRIBE or UNSUBSCRIBE was not answered".into());
        }
    }
}

/// Whether an answer could have come until then: the client stayed, and nothing took the connection over.
fn stays_open(story: &Story<'_>, connection: u32, until: Nanoseconds) -> bool {
    let connection = &story.connections[connection as usize];
    connection.accepted().is_some()
        && connection.disconnect.is_none()
        && connection.closed_at() > until
        && connection.superseded.is_none_or(|newer| newer.at > until)
}

/// The CONNACK of a connection that was there some time before, and that nothing ended until the registry was looked at.
fn stays_connected(story: &Story<'_>, connection: &Connection, at: Mark) -> Option<Mark> {
    let connack = connection.accepted()?;
    let is_settled = connack.at.saturating_add(story.settings.answer_max) <= at.at;
    let is_there = connection.disconnect.is_none()
        && connection.superseded.is_none()
        && connection.closed_at() > at.at.saturating_add(story.settings.transit_max);
    (is_settled && is_there).then_some(connack)
}

/// Whether the server knew of its end long before.
fn ended_before(story: &Story<'_>, connection: &Connection, at: Mark) -> bool {
    connection.ended.1.saturating_add(story.settings.recovery_max) < at.at
}

fn check_registry(
    story: &Story<'_>,
    mark: Mark,
    owners: &[Symbol],
    routes: &[Symbol],
    leaderless: &[u16],
    report: &mut Report<'_>,
) {
    let mut once = BTreeSet::new();
    for &client in owners.iter().filter(|&&client| !once.insert(client)) {
        let summary = format!("{} is registered more than once", story.history.name(client));
        report.add(Promise::P12, &[mark.event], summary);
    }
    for client in 0..story.clients.len() as u32 {
        let client = Symbol(client);
        let connections = || story.clients[client.0 as usize].iter().map(|&c| &story.connections[c as usize]);
        let name = story.history.name(client);
        if !owners.contains(&client) {
            if let Some(connack) = connections().find_map(|connection| stays_connected(story, connection, mark)) {
                report.add(
                    Promise::P12,
                    &[connack.event, mark.event],
                    format!("{name} is connected and not registered"),
                );
            }
        } else if connections().all(|connection| ended_before(story, connection, mark)) {
            report.add(Promise::P12, &[mark.event], format!("{name} is registered, and its connections are long gone"));
        }
    }
    for &filter in routes {
        let wanted = story.spans.iter().any(|span| {
            span.filter == filter
                && span.session != NONE
                && span.subscribe.at <= mark.at
                && span.may_until.saturating_add(story.settings.recovery_max) > mark.at
                && story.sessions[span.session as usize].ends.1.saturating_add(story.settings.recovery_max) > mark.at
        });
        if !wanted {
            let summary = format!("{} is routed, and no session subscribes to it", story.history.name(filter));
            report.add(Promise::P12, &[mark.event], summary);
        }
    }
    if !leaderless.is_empty() {
        report.add(Promise::P12, &[mark.event], format!("groups {leaderless:?} have no leader"));
    }
}
