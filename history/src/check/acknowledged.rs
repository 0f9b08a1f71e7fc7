//! P1: what was acknowledged reaches every matching session.
//!
//! A message is owed to a session whose SUBACK came before it was sent and whose subscription stood until it must have
//! arrived: until a mark that says that everything has, or until a later message of the same publisher, topic and QoS
//! came (it would have been before it). Not owed is what may have expired by then.
//!
//! Replacing a subscription loses nothing [MQTT-3.8.4-4], also if one of the two was granted QoS 0: what was sent meanwhile is owed as
//! long as the connection lives and nothing befalls the cluster.

use super::Losses;
use super::faults::NEVER;
use super::story::{Delivery, Kind, Mark, Message, NONE, Session, Span, Story, after};
use crate::event::Nanoseconds;
use crate::settings::SECOND;
use crate::violation::{Promise, Report};

/// How long what was sent while a subscription was replaced may be on its way.
const REPLACED_WITHIN: Nanoseconds = 5 * SECOND;

pub(super) fn check(story: &Story<'_>, report: &Report<'_>, losses: &mut Losses) {
    let connected = connected_at_marks(story);
    let mut got = vec![NONE; story.sessions.len()];
    let mut judged = vec![NONE; story.sessions.len()];
    for (index, message) in story.messages.iter().enumerate() {
        let Some(acknowledged) = message.acknowledged else { continue };
        // The receiver of an empty payload cannot tell which message it is.
        if message.empty {
            continue;
        }
        for delivery in story.deliveries_of(message).filter(|delivery| delivery.session != NONE) {
            got[delivery.session as usize] = index as u32;
        }
        for span in story.spans_on(message.topic) {
            let session = span.session as usize;
            if got[session] == index as u32 || judged[session] == index as u32 {
                continue;
            }
            let proof = if may_owe(story, span, message) {
                missed(story, &connected, span, message, acknowledged)
            } else {
                missed_while_replaced(story, &connected, span, message, acknowledged)
            };
            let Some(proof) = proof else { continue };
            judged[session] = index as u32;
            let summary = format!(
                "{} was acknowledged and is missing in {}",
                story.message_name(message),
                story.session_name(span.session)
            );
            let mut events = vec![message.accepted.event, acknowledged.event, proof.event];
            events.extend(span.suback.map(|mark| mark.event));
            losses.add(report, story.sessions[session].client, Promise::P1, &events, summary);
        }
    }
}

fn may_owe(story: &Story<'_>, span: &Span, message: &Message) -> bool {
    let session = &story.sessions[span.session as usize];
    !span.shared
        && span.qos > 0
        && span.must.0 < message.accepted.at
        && span.must.1 > message.accepted.at
        && session.ends.1 >= message.accepted.at
        && !(span.no_local && session.client == message.publisher)
}

/// A later delivery by the connection that replaced a subscription while the message was sent: what goes directly would have come before
/// it, and what goes by the session's queue comes in the end.
fn missed_while_replaced(
    story: &Story<'_>,
    connected: &[Vec<bool>],
    span: &Span,
    message: &Message,
    acknowledged: Mark,
) -> Option<Mark> {
    let session = &story.sessions[span.session as usize];
    let suback = span.suback?;
    let is_meanwhile = span.subscribe.at <= message.accepted.at && message.accepted.at <= suback.at;
    let until = suback.at.max(acknowledged.at).saturating_add(REPLACED_WITHIN);
    let connection = &story.connections[span.connection as usize];
    let stands = span.unbroken_since < message.accepted.at && span.must.1 > until && connection.closed_at() > until;
    if span.shared
        || !(is_meanwhile && stands)
        || message.expiry.is_some()
        || session.client == message.publisher
        || story.faults.disturb(message.accepted.at.saturating_sub(REPLACED_WITHIN), until)
        || connection.superseded.is_some_and(|newer| newer.at <= until)
    {
        return None;
    }
    let is_drained = |(mark, connected): (&Mark, &Vec<bool>)| mark.at > until && connected[span.session as usize];
    if !story.quiesced.iter().zip(connected).any(is_drained) {
        return None;
    }
    let deliveries = session.deliveries.iter().map(|&delivery| &story.deliveries[delivery as usize]);
    let later = deliveries.filter(|delivery| delivery.connection == span.connection && delivery.mark.at > until);
    later.map(|delivery| delivery.mark).next()
}

/// The sessions that are connected at each mark of quiescence.
pub(super) fn connected_at_marks(story: &Story<'_>) -> Vec<Vec<bool>> {
    let at = |mark: &Mark| story.sessions.iter().map(|session| story.connected_at(session, mark.at)).collect();
    story.quiesced.iter().map(at).collect()
}

/// The event at which the message should have been there; none if its absence proves nothing.
fn missed(
    story: &Story<'_>,
    connected: &[Vec<bool>],
    span: &Span,
    message: &Message,
    acknowledged: Mark,
) -> Option<Mark> {
    let expires_at = may_expire_at(story, message);
    let drained = story.quiesced.iter().zip(connected).find(|(mark, connected)| {
        mark.event > acknowledged.event
            && connected[span.session as usize]
            && span.must_take(message.accepted.at, mark.at)
            && mark.at < expires_at
    });
    drained.map(|(mark, _)| *mark).or_else(|| {
        let session = &story.sessions[span.session as usize];
        overtaken(story, session, span, message).filter(|delivery| delivery.mark.at < expires_at).map(|d| d.mark)
    })
}

/// The earliest that it may be gone for its expiry: its time runs by the clocks of nodes, that of the one which took it among them.
fn may_expire_at(story: &Story<'_>, message: &Message) -> Nanoseconds {
    let Some(expiry) = message.expiry else { return NEVER };
    let by_rate = after(0, expiry) / 1000 * story.settings.clocks_fast_permille_max;
    after(message.accepted.at, expiry).saturating_sub(by_rate).saturating_sub(story.settings.clocks_set_max)
}

/// The first delivery of a message that the publisher sent later, while the subscription stood.
fn overtaken<'a>(story: &'a Story<'_>, session: &'a Session, span: &Span, message: &Message) -> Option<&'a Delivery> {
    if session.last_delivery_at <= message.accepted.at {
        return None;
    }
    let from = session
        .deliveries
        .partition_point(|&delivery| story.deliveries[delivery as usize].mark.event < message.accepted.event);
    session.deliveries[from..].iter().map(|&delivery| &story.deliveries[delivery as usize]).find(|delivery| {
        delivery.message != NONE && delivery.qos > 0 && delivery.kind == Kind::Live && {
            let later = &story.messages[delivery.message as usize];
            later.topic == message.topic
                && later.qos == message.qos
                && later.will_of == NONE
                && delivery.mark.at < span.must.1
                // A shared subscription promises no order: its copy may overtake what waits for retained messages.
                && !story.spans_of(delivery).any(|span| span.shared)
                && story.precedes(message, later)
        }
    })
}
