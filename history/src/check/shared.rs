//! P11: a shared group hands each message to one live member, and to another if that one died before acknowledging.

use std::collections::BTreeMap;

use super::Losses;
use super::acknowledged::connected_at_marks;
use super::faults::NEVER;
use super::story::{Delivery, Kind, Mark, Message, NONE, Session, Span, Story, after};
use crate::event::{ClosedBy, Nanoseconds, Symbol};
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>, losses: &mut Losses) {
    if story.spans.iter().all(|span| !span.shared) {
        return;
    }
    let connected = connected_at_marks(story);
    let mut groups_on: BTreeMap<Symbol, BTreeMap<Symbol, Vec<&Span>>> = BTreeMap::new();
    for message in &story.messages {
        if message.empty {
            continue;
        }
        let groups = groups_on.entry(message.topic).or_insert_with(|| {
            let mut groups: BTreeMap<Symbol, Vec<&Span>> = BTreeMap::new();
            for span in story.spans_on(message.topic).filter(|span| span.shared) {
                groups.entry(span.filter).or_default().push(span);
            }
            groups
        });
        for (&group, members) in groups.iter() {
            let received = received_by(story, message, group);
            check_one_member(story, message, group, &received, report);
            check_arrival(story, &connected, message, group, members, report, losses);
        }
    }
}

/// The first delivery to each session that can only have it from this group, by time.
fn received_by<'a>(story: &'a Story<'_>, message: &'a Message, group: Symbol) -> Vec<&'a Delivery> {
    let mut received: Vec<&Delivery> = Vec::new();
    for delivery in story.deliveries_of(message).filter(|delivery| delivery.kind == Kind::Live) {
        let mut spans = story.spans_of(delivery).peekable();
        let only_here = spans.peek().is_some() && spans.all(|span| span.filter == group);
        if only_here && received.iter().all(|before| before.session != delivery.session) {
            received.push(delivery);
        }
    }
    received
}

fn check_one_member(
    story: &Story<'_>,
    message: &Message,
    group: Symbol,
    received: &[&Delivery],
    report: &mut Report<'_>,
) {
    // In either order: whose connection ended reads what was on its way all the same, maybe after who has it because of that end.
    let is_handed_over = |one, other| hands_over(story, one, other) || hands_over(story, other, one);
    let mut unexplained = received.windows(2).filter(|pair| !is_handed_over(pair[0], pair[1]));
    let spare = message.tries as usize - 1;
    if let Some(pair) = unexplained.nth(spare) {
        let summary = format!(
            "{} was handed to two members of {}: {} and {}",
            story.message_name(message),
            story.history.name(group),
            story.session_name(pair[0].session),
            story.session_name(pair[1].session)
        );
        let mut events = vec![message.first.event, pair[0].mark.event, pair[1].mark.event];
        events.extend(pair[0].acknowledged.map(|mark| mark.event));
        report.add(Promise::P11, &events, summary);
    }
}

/// Whether the second member may have a message because the first one's connection ended.
fn hands_over(story: &Story<'_>, first: &Delivery, second: &Delivery) -> bool {
    let ended_from = story.connections[first.connection as usize].ended.0;
    let lost = |ack: Mark| {
        ended_from <= ack.at.saturating_add(story.settings.acknowledgement_loss_max)
            || story.faults.overlap(ack.at, ended_from)
    };
    // What the client read last may have been long on its way, and its connection ended before.
    let ended_before = ended_from <= second.mark.at.saturating_add(story.settings.transit_max);
    // What a member began at QoS 2 stays with it [MQTT-4.8.2-5]; QoS 0 is sent once.
    first.qos == 1 && ended_before && first.acknowledged.is_none_or(lost)
}

/// Whether one connection of the member lasted all that time.
fn stays(story: &Story<'_>, span: &Span, from: Nanoseconds, to: Nanoseconds) -> bool {
    let connections = &story.sessions[span.session as usize].connections;
    connections
        .iter()
        .map(|&c| &story.connections[c as usize])
        .any(|connection| connection.accepted().is_some_and(|connack| connack.at < from) && connection.ended.0 > to)
}

/// Whether the nodes of both are lost that had the message: the publisher's, which keeps it until it is settled, and that of a
/// member whose session was no more than a connection.
///
/// Seed 1927 of the simulation: m63 is acknowledged to a publisher at node 1 and reaches a member with a transient session at
/// node 2. Node 1 crashes; the member has not acknowledged m63 when node 2 crashes, too. Of transient sessions a node keeps nothing
/// on its disk, so nobody is left who knows of m63. The same goes for one crash if both are clients of that node.
fn dies_with_its_origin(story: &Story<'_>, message: &Message, session: &Session) -> bool {
    let Some(last) = session.connections.last().map(|&c| &story.connections[c as usize]) else {
        return false;
    };
    let (from, until) = last.ended;
    // A node that is cut off is taken for dead, and closes its clients.
    let lost = |node, from, until| story.faults.node_down(node, from, until) || story.faults.overlap(from, until);
    // Who goes is missed at once, but not by a node that is paused: seed 20, where that crashed before it went on.
    let is_missed = |at| !story.faults.overlap(at, at);
    let left = last.left || last.closed.is_some_and(|(mark, by)| by == ClosedBy::Client && is_missed(mark.at));
    if left || last.expiry.1 > 0 || !lost(last.node, from, until) {
        return false;
    }
    let mut sends = story.sends_of(message).filter(|send| send.mark.event == message.accepted.event);
    sends.any(|send| {
        let publisher = &story.connections[send.connection as usize];
        // What a persistent session publishes at QoS 2 is in the outbox of its group, as wills are.
        let is_in_outbox = message.qos == 2 && publisher.expiry.1 > 0;
        !is_in_outbox && lost(publisher.node, send.mark.at, until)
    })
}

fn check_arrival(
    story: &Story<'_>,
    connected: &[Vec<bool>],
    message: &Message,
    group: Symbol,
    members: &[&Span],
    report: &Report<'_>,
    losses: &mut Losses,
) {
    let Some(acknowledged) = message.acknowledged else { return };
    let sent_at = message.accepted.at;
    let expires_at = message.expiry.map_or(NEVER, |expiry| after(sent_at, expiry));
    let Some((mark, connected)) =
        story.quiesced.iter().zip(connected).find(|(mark, _)| mark.event > acknowledged.event)
    else {
        return;
    };
    let present = |span: &Span| connected[span.session as usize] && span.must.1 > mark.at;
    let owner = members.iter().find(|span| present(span) && span.qos > 0 && span.must.0 < sent_at);
    if owner.is_none() || mark.at >= expires_at {
        return;
    }
    // A member that is away may keep the message, or have taken it along.
    let may_keep = |span: &&&Span| {
        let session = &story.sessions[span.session as usize];
        let possible = span.subscribe.at < mark.at && span.may_until > sent_at && session.ends.1 > sent_at;
        let passes_on = session.ends.1 < mark.at
            && message.qos.min(span.qos) == 1
            && span.must.1 > session.ends.1
            && !dies_with_its_origin(story, message, session);
        // At QoS 0 a message is lost with its connection.
        let loses = span.qos == 0 && !stays(story, span, sent_at, mark.at);
        possible && (loses || !present(span) && !passes_on)
    };
    if members.iter().any(|span| may_keep(&span)) {
        return;
    }
    let settled = |delivery: &Delivery| {
        delivery.acknowledged.is_some()
            || delivery.qos != 1
            || delivery.session == NONE
            || story.sessions[delivery.session as usize].ends.1 >= mark.at
    };
    let in_group = |delivery: &&Delivery| story.spans_of(delivery).any(|span| span.filter == group);
    let mut received = story.deliveries_of(message).filter(in_group).peekable();
    let never = received.peek().is_none();
    if received.any(settled) {
        return;
    }
    let what = if never { "reached no member" } else { "was not given to another when its member died" };
    let summary = format!("{} {what} of {}", story.message_name(message), story.history.name(group));
    let mut events = vec![message.accepted.event, acknowledged.event, mark.event];
    events.extend(story.deliveries_of(message).map(|delivery| delivery.mark.event));
    let mut clients: Vec<Symbol> = members.iter().map(|span| story.sessions[span.session as usize].client).collect();
    clients.sort_unstable();
    clients.dedup();
    losses.add_of_any(report, clients, Promise::P11, &events, summary);
}
