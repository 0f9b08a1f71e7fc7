//! P7: after the new CONNACK, nothing from the old connection is acknowledged or takes effect.

use super::story::{Kind, Mark, NONE, Send, Story};
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>) {
    let superseded = |c: u32| story.connections[c as usize].superseded;
    for send in &story.sends {
        let Some(newer) = superseded(send.connection) else { continue };
        if let Some((what, event)) = accuse(story, send, newer) {
            let message = story.message_name(&story.messages[send.message as usize]);
            let summary = format!("{message}, sent on a connection that was replaced, {what}");
            report.add(Promise::P7, &[newer.event, send.mark.event, event], summary);
        }
    }
    for span in &story.spans {
        let (Some(newer), Some(suback)) = (superseded(span.connection), span.suback) else { continue };
        if span.subscribe.event > newer.event {
            let summary = format!(
                "SUBSCRIBE to {} was accepted on a connection that was replaced before it",
                story.history.name(span.filter)
            );
            report.add(Promise::P7, &[newer.event, span.subscribe.event, suback.event], summary);
        }
    }
    for delivery in story.deliveries.iter().filter(|delivery| delivery.message != NONE) {
        let Some(newer) = superseded(delivery.connection) else { continue };
        let message = &story.messages[delivery.message as usize];
        if message.will_of == NONE && message.first.event > newer.event {
            let summary = format!(
                "{} was sent after a new CONNACK and came on the old connection of {}",
                story.message_name(message),
                story.session_name(delivery.session)
            );
            report.add(Promise::P7, &[newer.event, message.first.event, delivery.mark.event], summary);
        }
    }
}

/// What a PUBLISH on a replaced connection still did, and the event that shows it.
fn accuse(story: &Story<'_>, send: &Send, newer: Mark) -> Option<(&'static str, u32)> {
    let message = &story.messages[send.message as usize];
    let accepted = send.answer.filter(|answer| answer.reason < 0x80).map(|answer| answer.mark);
    let only_try = message.tries == 1;
    if send.mark.event > newer.event {
        if let Some(answer) = accepted {
            return Some(("was acknowledged", answer.event));
        }
        let delivered = story.deliveries_of(message).next().filter(|_| only_try);
        return delivered.map(|delivery| ("was delivered", delivery.mark.event));
    }
    if let Some(answer) = accepted {
        // What the old connection was sent before may be read after, but not by much.
        let late = answer.at > newer.at.saturating_add(story.settings.transit_max)
            && !story.faults.overlap(newer.at, answer.at);
        return late.then_some(("was acknowledged long after the new CONNACK", answer.event));
    }
    // No subscription of before explains the delivery: the message was matched after the new CONNACK.
    let matched_later = |delivery: &&super::story::Delivery| {
        // A shared group may have held it for another member.
        delivery.kind == Kind::Live
            && story.spans_of(delivery).all(|span| span.subscribe.event > newer.event && !span.shared)
    };
    let open = only_try && message.qos == 1 && send.answer.is_none();
    let delivery = story.deliveries_of(message).filter(|_| open).find(matched_later)?;
    Some(("was delivered to a subscription made after the new CONNACK", delivery.mark.event))
}
