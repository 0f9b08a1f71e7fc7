//! P9: a Will Message is published exactly once per abnormal end, not early and not late.
//!
//! That it is not published twice is checked with all other repetition.

use super::Losses;
use super::acknowledged::connected_at_marks;
use super::faults::NEVER;
use super::recovery::is_unavailable;
use super::story::{Connection, Delivery, Message, NONE, Span, Story, after};
use crate::event::Nanoseconds;
use crate::settings::SECOND;
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>, losses: &mut Losses) {
    if story.connections.iter().all(|connection| connection.will == NONE) {
        return;
    }
    let connected = connected_at_marks(story);
    for index in 0..story.connections.len() {
        let connection = &story.connections[index];
        if connection.will == NONE {
            continue;
        }
        let will = Will::of(story, index);
        for delivery in story.deliveries_of(will.message) {
            if let Some(what) = will.accuse(story, delivery) {
                let summary =
                    format!("{} of {} {what}", story.message_name(will.message), story.history.name(connection.client));
                report.add(Promise::P9, &will.events(&[delivery.mark.event]), summary);
            }
        }
        if will.is_owed(story) {
            will.check_arrival(story, &connected, report, losses);
        }
    }
}

struct Will<'a> {
    connection: &'a Connection,
    message: &'a Message,
    /// The delay in seconds is between these: the end of the session cuts it short.
    delay: (u32, u32),
    /// The next CONNECT of the same client, of whatever fate.
    next_connect_at: Nanoseconds,
    /// The session was resumed before the delay passed.
    cancelled: bool,
}

impl<'a> Will<'a> {
    fn of(story: &'a Story<'_>, index: usize) -> Self {
        let connection = &story.connections[index];
        let delay = |expiry: u32| connection.will_delay.min(expiry);
        let delay = (delay(connection.expiry.0), delay(connection.expiry.1));
        let later = story.clients[connection.client.0 as usize]
            .iter()
            .map(|&c| &story.connections[c as usize])
            .filter(|other| other.connect.event > connection.connect.event);
        let next_connect_at = later.clone().map(|other| other.connect.at).min().unwrap_or(NEVER);
        let due_from = after(connection.ended.0, delay.0).saturating_sub(story.settings.clock_skew_max);
        // The very next CONNECT resumed it: no other may have ended the session in between.
        let cancelled = delay.0 > 0
            && later.clone().min_by_key(|other| other.connect.event).is_some_and(|next| {
                next.session_present
                    && next.session == connection.session
                    && next.session != NONE
                    && next.accepted().is_some_and(|connack| connack.at <= due_from)
            });
        let message = &story.messages[connection.will as usize];
        Self { connection, message, delay, next_connect_at, cancelled }
    }

    fn events(&self, more: &[u32]) -> Vec<u32> {
        let mut events = vec![self.connection.connect.event];
        events.extend(self.connection.disconnect.map(|answer| answer.mark.event));
        events.extend(self.connection.closed.map(|(mark, _)| mark.event));
        events.extend(more);
        events
    }

    /// What is wrong with its having been published by the time of a delivery.
    fn accuse(&self, story: &Story<'_>, delivery: &Delivery) -> Option<&'static str> {
        let at = delivery.mark.at;
        let connection = self.connection;
        if let Some(answer) = connection.connack.filter(|answer| answer.reason >= 0x80) {
            let is_known = !(is_unavailable(answer.reason) && self.may_have_died(story, answer.mark.at));
            return is_known.then_some("was published although its CONNECT was refused");
        }
        if connection.left {
            return Some("was published after a normal DISCONNECT");
        }
        if self.cancelled {
            return Some("was published although the session was resumed within its delay");
        }
        if at < connection.alive_at {
            return Some("was published while its connection lived");
        }
        let due_from = after(connection.ended.0, self.delay.0).saturating_sub(story.settings.clock_skew_max);
        // A CONNECT may end the session, and with it the delay.
        let too_early = self.delay.0 > 0 && connection.ended.0 != NEVER && at < due_from && at < self.next_connect_at;
        too_early.then_some("was published before its delay had passed")
    }

    /// The claim of a client that is refused because its node is cut off may be granted. If that node does not live to say that it was
    /// for nothing, nobody can tell it from one whose client was told.
    fn may_have_died(&self, story: &Story<'_>, refused_at: Nanoseconds) -> bool {
        let (from, to) = (self.connection.connect.at, refused_at.saturating_add(story.settings.recovery_max));
        story.faults.overlap(from, to) || story.faults.node_down(self.connection.node, from, to)
    }

    /// It must be published: the end was abnormal for sure, and nobody may have resumed the session.
    fn is_owed(&self, story: &Story<'_>) -> bool {
        let connection = self.connection;
        connection.accepted().is_some()
            && connection.ended.1 != NEVER
            && connection.disconnect.is_none_or(|disconnect| disconnect.reason != 0)
            && self.message.qos > 0
            && (self.delay.1 == 0 || self.next_connect_at > self.due_by(story))
            && !self.died_with_its_node(story)
    }

    /// The process ended before the will was surely published, and nobody else knew of it.
    fn died_with_its_node(&self, story: &Story<'_>) -> bool {
        let connection = self.connection;
        let published_by = story.faults.extend(connection.ended.1, story.settings.will_late_max);
        story.settings.transient_wills_die_with_node
            && connection.expiry.0 == 0
            && story.faults.node_down(connection.node, connection.connect.at, published_by)
    }

    /// When its delay has passed for the server too, whose clock may count whole seconds, and may stand still while nobody is there
    /// to count. Until then resuming still cancels it.
    fn due_by(&self, story: &Story<'_>) -> Nanoseconds {
        story.faults.extend(after(self.connection.ended.1, self.delay.1), SECOND)
    }

    fn check_arrival(&self, story: &Story<'_>, connected: &[Vec<bool>], report: &mut Report<'_>, losses: &mut Losses) {
        let settings = story.settings;
        let allowance = after(0, self.delay.1).saturating_add(settings.will_late_max + settings.clock_skew_max);
        let deadline = story.faults.extend(self.connection.ended.1, allowance).saturating_add(settings.transit_max);
        // Of several subscriptions each session is owed one copy, and one drop excuses its absence.
        let mut missed = Vec::new();
        for span in story.spans_on(self.message.topic) {
            let session = &story.sessions[span.session as usize];
            let takes = !span.shared
                && span.qos > 0
                && !(span.no_local && session.client == self.connection.client)
                && span.must.0 < self.connection.ended.0;
            if !takes {
                continue;
            }
            let mut got = story.deliveries_of(self.message).filter(|delivery| delivery.session == span.session);
            match got.next() {
                Some(first) => self.check_lateness(story, span, first, deadline, report),
                None => {
                    let drained = story.quiesced.iter().zip(connected).find(|(mark, connected)| {
                        mark.at > deadline && connected[span.session as usize] && mark.at < span.must.1
                    });
                    if let Some((mark, _)) = drained.filter(|_| !missed.contains(&span.session)) {
                        missed.push(span.session);
                        let summary = format!(
                            "{} of {} is missing in {}",
                            story.message_name(self.message),
                            story.history.name(self.connection.client),
                            story.session_name(span.session)
                        );
                        let events = self.events(&[mark.event]);
                        losses.add(report, session.client, Promise::P9, &events, summary);
                    }
                }
            }
        }
    }

    /// Late for a subscriber that was connected all the time.
    fn check_lateness(
        &self,
        story: &Story<'_>,
        span: &Span,
        delivery: &Delivery,
        deadline: Nanoseconds,
        report: &mut Report<'_>,
    ) {
        let connection = &story.connections[delivery.connection as usize];
        let there = connection.accepted().is_some_and(|connack| connack.at < self.connection.ended.0);
        if there && !delivery.retain && delivery.mark.at > deadline && delivery.mark.at < span.must.1 {
            let summary = format!(
                "{} of {} came {:.1} s after it was due at the latest",
                story.message_name(self.message),
                story.history.name(self.connection.client),
                (delivery.mark.at - deadline) as f64 / 1e9
            );
            report.add(Promise::P9, &self.events(&[delivery.mark.event]), summary);
        }
    }
}
