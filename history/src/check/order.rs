//! P5: first deliveries keep the publisher's order.

use std::collections::HashMap;

use super::story::{Delivery, Kind, NONE, NumberMap, Story};
use crate::violation::{Promise, Report};

/// What was delivered of one publisher, topic and QoS.
#[derive(Default)]
struct Chain {
    /// The latest PUBLISH of which a delivery was seen.
    latest: u32,
    deliveries: Vec<u32>,
}

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>) {
    let mut seen = vec![NONE; story.messages.len()];
    for (index, session) in story.sessions.iter().enumerate() {
        let shares = session.spans.iter().any(|&span| story.spans[span as usize].shared);
        let mut chains: NumberMap<(u64, u32), Chain> = HashMap::default();
        for &number in &session.deliveries {
            let delivery = &story.deliveries[number as usize];
            if delivery.message == NONE || delivery.kind != Kind::Live {
                continue;
            }
            let message = &story.messages[delivery.message as usize];
            let again = std::mem::replace(&mut seen[delivery.message as usize], index as u32) == index as u32;
            let stale = story.connections[delivery.connection as usize]
                .superseded
                .is_some_and(|newer| newer.event < delivery.mark.event);
            if again || stale || message.will_of != NONE || message.empty {
                continue;
            }
            // A shared subscription promises no order.
            if shares && story.spans_of(delivery).any(|span| span.shared) {
                continue;
            }
            let publisher = (u64::from(message.publisher.0) << 32) | u64::from(message.topic.0);
            let chain = chains.entry((publisher, u32::from(message.qos * 3 + delivery.qos))).or_default();
            if message.first.event < chain.latest {
                let overtook = chain.deliveries.iter().rev().map(|&d| &story.deliveries[d as usize]);
                let overtook = overtook
                    .map(|later| (later, &story.messages[later.message as usize]))
                    .find(|(by, later)| story.precedes(message, later) && !is_late_where_it_moved(story, delivery, by));
                if let Some((later, overtaking)) = overtook {
                    let summary = format!(
                        "{} came after m{}, which {} sent later, in {}",
                        story.message_name(message),
                        overtaking.id.0,
                        story.history.name(message.publisher),
                        story.session_name(index as u32)
                    );
                    let events = [message.first.event, overtaking.first.event, later.mark.event, delivery.mark.event];
                    report.add(Promise::P5, &events, summary);
                }
            }
            chain.latest = chain.latest.max(message.first.event);
            chain.deliveries.push(number);
        }
    }
}

/// At QoS 0 a session that moves may find on its new node what had not come there yet, and its successor had come on the old one.
fn is_late_where_it_moved(story: &Story<'_>, late: &Delivery, overtook: &Delivery) -> bool {
    late.qos == 0
        && story.process_of(late) != story.process_of(overtook)
        && late.mark.at <= story.may_meet_again_until(&story.messages[late.message as usize])
}
