//! P2: what is delivered was published, was not refused, and was subscribed to.

use std::collections::HashSet;

use super::story::{Delivery, Kind, Message, NONE, Span, Story};
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>) {
    let emptied: HashSet<_> = story.messages.iter().filter(|m| m.empty).map(|m| m.topic).collect();
    for delivery in &story.deliveries {
        if delivery.session == NONE {
            report.add(Promise::P2, &[delivery.mark.event], "a message came before CONNACK".into());
            continue;
        }
        if delivery.message == NONE {
            if !emptied.contains(&delivery.topic) || carries_number(story, delivery) {
                report.add(Promise::P2, &[delivery.mark.event], "what was delivered had not been published".into());
            }
            continue;
        }
        let message = &story.messages[delivery.message as usize];
        if let Some((what, events)) = accuse(story, delivery, message) {
            let session = story.session_name(delivery.session);
            let summary = format!("{} {what} in {session}", story.message_name(message));
            report.add(Promise::P2, &events, summary);
        }
    }
}

fn carries_number(story: &Story<'_>, delivery: &Delivery) -> bool {
    use crate::event::{Action, What};
    let event = &story.history.events()[delivery.mark.event as usize];
    matches!(&event.what, What::Client { action: Action::Delivered(delivery), .. } if delivery.message.is_some())
}

/// What is wrong with a delivery of a message that exists, and the events that show it.
fn accuse(story: &Story<'_>, delivery: &Delivery, message: &Message) -> Option<(&'static str, Vec<u32>)> {
    let mut events = vec![message.first.event, delivery.mark.event];
    if message.topic != delivery.topic {
        return Some(("came under another topic", events));
    }
    if delivery.mark.event < message.first.event {
        return Some(("came before it was sent", events));
    }
    if message.refused {
        events.extend(story.sends_of(message).filter_map(|send| Some(send.answer?.mark.event)));
        return Some(("was refused and came nevertheless", events));
    }
    if delivery.retain && !message.retain {
        return Some(("was not retained and came with RETAIN", events));
    }
    if delivery.qos > message.qos {
        return Some(("came with a QoS above its own", events));
    }
    let own = story.sessions[delivery.session as usize].client == message.publisher && message.will_of == NONE;
    let mut reasons = story.spans_of(delivery).filter(|span| is_reason(span, delivery, message, own)).peekable();
    if reasons.peek().is_none() {
        events.extend(story.spans_of(delivery).map(|span| span.ended_by).filter(|&event| event != NONE));
        return Some(("was not subscribed to when it was sent, and came", events));
    }
    let publisher = story.sessions[delivery.session as usize].client == message.publisher;
    // A live copy goes with the retained one, by the highest QoS of all.
    let goes_with =
        |span: &&Span| delivery.kind == Kind::Retained && message.first.at <= span.may_until && !(span.no_local && own);
    let reasons = story.spans_of(delivery).filter(|span| is_reason(span, delivery, message, own) || goes_with(span));
    wrong_qos(delivery, message, publisher, reasons)
        .then_some(("came with a QoS that no subscription of it explains", events))
}

fn is_reason(span: &Span, delivery: &Delivery, message: &Message, own: bool) -> bool {
    let stood = message.first.at <= span.may_until;
    let live = !(span.no_local && own);
    stood
        && match delivery.kind {
            Kind::Live => live,
            Kind::Retained => span.may_read,
            Kind::Either => live || span.may_read,
        }
}

/// One copy comes, at the highest QoS of all that match [MQTT-3.3.4-2]; a shared subscription has a copy of its own.
///
/// Whether No Local keeps a client from its own will, the specification does not say.
fn wrong_qos<'a>(
    delivery: &Delivery,
    message: &Message,
    by_itself: bool,
    reasons: impl Iterator<Item = &'a Span>,
) -> bool {
    let (mut lowest, mut highest) = (0, 0);
    let mut shared = false;
    for span in reasons {
        highest = highest.max(span.qos);
        shared |= span.shared;
        if span.must_take(message.first.at, delivery.mark.at) && !(span.no_local && by_itself) {
            lowest = lowest.max(span.qos);
        }
    }
    let too_low = delivery.kind == Kind::Live && !shared && delivery.qos < message.qos.min(lowest);
    too_low || delivery.qos > message.qos.min(highest)
}
