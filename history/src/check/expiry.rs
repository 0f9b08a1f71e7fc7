//! P10 of messages: none is delivered long after its expiry, and what is left of it is told truthfully.
//!
//! That none expires early is P1: a message that may not have expired yet is owed.

use super::faults::NEVER;
use super::story::{Delivery, Message, NONE, Story, after};
use crate::event::Nanoseconds;
use crate::settings::SECOND;
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>) {
    for delivery in story.deliveries.iter().filter(|delivery| delivery.message != NONE) {
        let message = &story.messages[delivery.message as usize];
        let Some(expiry) = message.expiry else { continue };
        if let Some(what) = accuse(story, delivery, message, expiry) {
            let summary = format!(
                "{} with an expiry of {expiry} s {what} in {}",
                story.message_name(message),
                story.session_name(delivery.session)
            );
            report.add(Promise::P10, &[message.first.event, delivery.mark.event], summary);
        }
    }
}

fn accuse(story: &Story<'_>, delivery: &Delivery, message: &Message, expiry: u32) -> Option<&'static str> {
    let settings = story.settings;
    let received_until = received_until(story, message);
    let slack = settings.expiry_late_max + settings.transit_max + settings.clock_skew_max;
    // What was begun before the expiry may be sent again after it.
    if !delivery.dup && delivery.mark.at > after(received_until, expiry).saturating_add(slack) {
        return Some("came too late");
    }
    let left = delivery.expiry?;
    if left > expiry {
        return Some("came with more than that left");
    }
    let waited = delivery.mark.at.saturating_sub(message.first.at) + settings.clock_skew_max;
    let waited = waited.div_ceil(SECOND) + 1;
    (u64::from(left) + waited < u64::from(expiry)).then_some("came with less left than it waited")
}

/// Until when the server may have received it for the last time.
fn received_until(story: &Story<'_>, message: &Message) -> Nanoseconds {
    let of_send = |send: &super::story::Send| match send.answer {
        Some(answer) => answer.mark.at,
        None => story.connections[send.connection as usize].ended.1,
    };
    story.sends_of(message).map(of_send).max().unwrap_or(NEVER)
}
