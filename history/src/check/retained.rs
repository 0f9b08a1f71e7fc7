//! P6: each retained topic is a linearizable register.
//!
//! A write is a retained PUBLISH, from when it was sent until it was acknowledged; a read is what a SUBSCRIBE got, from
//! when it was sent until the retained message came, or from when a later connection took the session up and what had not been read
//! to its end was read anew. Values are unique, so the question is polynomial (Gibbons and
//! Korach, *Testing shared memories*, 1997): the operations of one value make a *zone*; from the first end to the last
//! beginning, if that is in order, the register must have held the value (*forward*); else the value may have been held at one
//! point only, somewhere between (*backward*). The history is linearizable if no forward zones overlap and no backward zone lies
//! within a forward one.
//!
//! Absence is a value that has many writers: each delete, an expiry, the beginning. It is checked by what must hold for
//! it: a read of it lies within no forward zone, and something made the topic empty after the last value that was surely
//! written.

use std::collections::BTreeMap;

use super::Losses;
use super::faults::NEVER;
use super::story::{Delivery, Kind, Mark, Message, NONE, Span, Story};
use crate::event::{Nanoseconds, Symbol};
use crate::violation::{Promise, Report};

pub(super) fn check(story: &Story<'_>, report: &mut Report<'_>, losses: &mut Losses) {
    let mut registers: BTreeMap<Symbol, Register<'_>> = BTreeMap::new();
    for (index, message) in story.messages.iter().enumerate() {
        if message.retain && !message.refused {
            registers.entry(message.topic).or_default().writes.push((index as u32, message));
        }
    }
    if registers.is_empty() {
        return;
    }
    read_values(story, &mut registers);
    for (topic, register) in &mut registers {
        read_absences(story, *topic, register);
        register.judge(story, *topic, report, losses);
    }
}

/// One operation: when it may have taken effect, and the events of its beginning and end.
#[derive(Debug, Clone, Copy)]
struct Operation {
    start: Mark,
    end: Mark,
}

#[derive(Default)]
struct Register<'a> {
    writes: Vec<(u32, &'a Message)>,
    /// Reads of each value.
    reads: BTreeMap<u32, Vec<Operation>>,
    /// Reads that found nothing.
    absences: Vec<(Symbol, Operation)>,
}

/// Assigns each retained copy to the earliest reading that it can belong to.
fn read_values(story: &Story<'_>, registers: &mut BTreeMap<Symbol, Register<'_>>) {
    let mut earlier: BTreeMap<(u32, Symbol, u8), usize> = BTreeMap::new();
    for delivery in
        story.deliveries.iter().filter(|delivery| delivery.kind == Kind::Retained && delivery.session != NONE)
    {
        let Some(register) = registers.get_mut(&delivery.topic) else { continue };
        // A copy that is sent again tells when it was read less well than the first.
        if delivery.message == NONE || !delivery.new {
            continue;
        }
        // Each reading finds a topic once, and those of one QoS are served in order.
        let before = earlier.entry((delivery.session, delivery.topic, delivery.qos)).or_default();
        let readings = readings_for(story, delivery);
        let Some(&start) = readings.get((*before).min(readings.len().saturating_sub(1))) else { continue };
        *before += 1;
        register.reads.entry(delivery.message).or_default().push(Operation { start, end: delivery.mark });
    }
}

/// When the readings began that a retained copy may have come by, in that order.
fn readings_for(story: &Story<'_>, delivery: &Delivery) -> Vec<Mark> {
    let mut starts = Vec::new();
    for span in story.spans_of(delivery).filter(|span| span.may_read) {
        starts.push(span.subscribe);
        let mut anew = readings_begun_anew(story, span).filter(|anew| anew.event < delivery.mark.event).peekable();
        if anew.peek().is_some() {
            let end = end_of_reading(story, span).map_or(NEVER, |end| end.at);
            starts.extend(anew.filter(|anew| anew.at < end));
        }
    }
    starts.sort_unstable_by_key(|start| start.event);
    starts
}

/// When connections took the session up while what a SUBSCRIBE had to read may not have been read to its end: it is read from
/// the beginning then.
pub(super) fn readings_begun_anew<'a>(story: &'a Story<'_>, span: &'a Span) -> impl Iterator<Item = Mark> + 'a {
    let read_by = story.faults.extend(span.subscribe.at, story.settings.recovery_max);
    let connections = story.sessions[span.session as usize].connections.iter();
    connections.map(|&connection| story.connections[connection as usize].connect).filter(move |connected| {
        connected.event > span.subscribe.event && connected.at <= read_by && connected.at <= span.may_until
    })
}

/// Finds the SUBSCRIBEs that got nothing of a topic although their retained messages had all been sent.
///
/// Whether No Local holds back retained messages of one's own is not written anywhere: those are left out.
fn read_absences<'a>(story: &'a Story<'_>, topic: Symbol, register: &mut Register<'a>) {
    for span in story.spans_on(topic).filter(|span| span.must_read && span.suback.is_some() && !span.no_local) {
        let session = &story.sessions[span.session as usize];
        let got_any =
            session.deliveries.iter().map(|&delivery| &story.deliveries[delivery as usize]).any(|delivery| {
                delivery.topic == topic && delivery.retain && delivery.mark.event > span.subscribe.event
            });
        if got_any {
            continue;
        }
        if let Some(end) = end_of_reading(story, span) {
            register.absences.push((session.client, Operation { start: span.subscribe, end }));
        }
    }
}

/// Live messages of a subscription wait for its retained ones: the first of them is the end of reading. One of QoS 0 waits
/// only for those of QoS 0, for the others wait in turn for what the client has to acknowledge. What a shared subscription may
/// have brought waited for nothing. And when a retained message is read, the older ones of its topic that wait go before it: other topics
/// may still be to be read then, and if it never left, nobody can tell whether it was read.
///
/// A subscription that was given up before may have been read to no end: what had not begun to be sent is not owed.
fn end_of_reading(story: &Story<'_>, span: &Span) -> Option<Mark> {
    let suback = span.suback?;
    let connection = &story.connections[span.connection as usize];
    let over = connection.closed_at().min(connection.superseded.map_or(NEVER, |newer| newer.at));
    let session = &story.sessions[span.session as usize];
    let from = session.deliveries.partition_point(|&d| story.deliveries[d as usize].mark.event < suback.event);
    let sent = || session.deliveries[from..].iter().map(|&d| &story.deliveries[d as usize]);
    let is_before_its_retained = |live: &Delivery| {
        sent().any(|other| other.retain && other.topic == live.topic && other.mark.event > live.mark.event)
    };
    // It may have been read, and wait for what the client has to acknowledge.
    let may_wait = |retained: u32| !sent().any(|other| other.message == retained);
    let may_be_before_its_retained = |live: &Delivery| {
        let published = story.messages[live.message as usize].first;
        let mut later = (0_u32..).zip(&story.messages).filter(|(_, message)| {
            message.retain
                && message.topic == live.topic
                && message.first.event > published.event
                && message.first.at < over
        });
        later.any(|(index, _)| may_wait(index))
    };
    let live = sent().find(|delivery| {
        delivery.connection == span.connection
            && delivery.kind == Kind::Live
            && !delivery.dup
            && (delivery.qos > 0 || span.qos == 0)
            && story.spans_of(delivery).all(|reason| !reason.shared && reason.subscribe.event == span.subscribe.event)
            && story.matches(span, delivery.topic)
            && delivery.message != NONE
            && story.messages[delivery.message as usize].first.event > suback.event
            && !is_before_its_retained(delivery)
            && !may_be_before_its_retained(delivery)
    });
    let drained = story.quiesced.iter().find(|mark| mark.event > suback.event && mark.at < over).copied();
    let live = live.map(|delivery| delivery.mark);
    let end = live.into_iter().chain(drained).min_by_key(|mark| mark.event)?;
    (end.at < span.given_up_at).then_some(end)
}

/// The operations of one value, or of one write whose value proves nothing more.
#[derive(Debug, Clone, Copy)]
struct Zone {
    first_end: Mark,
    last_start: Mark,
    message: u32,
}

impl Zone {
    fn of(operation: Operation, message: u32) -> Self {
        Self { first_end: operation.end, last_start: operation.start, message }
    }

    fn add(&mut self, operation: Operation) {
        if operation.end.at < self.first_end.at {
            self.first_end = operation.end;
        }
        if operation.start.at > self.last_start.at {
            self.last_start = operation.start;
        }
    }

    fn is_forward(&self) -> bool {
        self.first_end.at < self.last_start.at
    }
}

const NEVER_MARK: Mark = Mark { event: NONE, at: NEVER };

impl Register<'_> {
    fn judge(&self, story: &Story<'_>, topic: Symbol, report: &mut Report<'_>, losses: &mut Losses) {
        let mut forward: Vec<Zone> = Vec::new();
        let mut backward: Vec<Zone> = Vec::new();
        for &(index, message) in &self.writes {
            self.zones_of(story, index, message, &mut forward, &mut backward);
        }
        forward.sort_unstable_by_key(|zone| zone.first_end.at);
        let name = story.history.name(topic);
        for pair in forward.windows(2) {
            if pair[1].first_end.at < pair[0].last_start.at {
                report_stale(story, name, &pair[0], &pair[1], report);
                return;
            }
        }
        let around = |start: Nanoseconds, end: Nanoseconds| {
            let before = forward.partition_point(|zone| zone.first_end.at < start);
            forward[..before].last().filter(|zone| end < zone.last_start.at)
        };
        for zone in &backward {
            if let Some(outer) = around(zone.last_start.at, zone.first_end.at) {
                report_stale(story, name, outer, zone, report);
            }
        }
        for (client, read) in &self.absences {
            // Nodes' clocks differ: what has expired on one may still be there on another.
            let expires_at = |message: &Message| story.may_expire_at(message, message.first.at);
            let may_be_over = |zone: &&Zone| expires_at(&story.messages[zone.message as usize]) < read.end.at;
            let between = around(read.start.at, read.end.at).filter(|zone| !may_be_over(zone)).map(|zone| zone.message);
            if let Some(lost) = between.or_else(|| self.surely_there(story, *read)) {
                let message = &story.messages[lost as usize];
                let summary = format!(
                    "{} is retained and was not sent to a SUBSCRIBE of {}",
                    story.message_name(message),
                    story.history.name(*client)
                );
                let mut events = vec![message.first.event, read.start.event, read.end.event];
                events.extend(message.acknowledged.map(|mark| mark.event));
                losses.add(report, *client, Promise::P6, &events, summary);
            }
        }
    }

    fn zones_of(
        &self,
        story: &Story<'_>,
        index: u32,
        message: &Message,
        forward: &mut Vec<Zone>,
        backward: &mut Vec<Zone>,
    ) {
        let reads = self.reads.get(&index).map_or(&[][..], Vec::as_slice);
        if message.tries > 1 {
            // The value was possibly written more than once: only single operations are sure.
            let sure = story.sends_of(message).filter_map(|send| {
                let end = send.answer.filter(|answer| answer.reason < 0x80)?.mark;
                // A QoS 2 handshake may have begun with any PUBLISH before.
                Some(Operation { start: if message.qos == 2 { message.first } else { send.mark }, end })
            });
            backward.extend(sure.chain(reads.iter().copied()).map(|operation| Zone::of(operation, index)));
            return;
        }
        let write = Operation { start: message.first, end: message.acknowledged.unwrap_or(NEVER_MARK) };
        let mut zone = Zone::of(write, index);
        reads.iter().for_each(|&read| zone.add(read));
        match zone {
            // Neither acknowledged nor read: it may never have been.
            zone if zone.first_end.at == NEVER => {}
            zone if zone.is_forward() => forward.push(zone),
            zone => backward.push(zone),
        }
    }

    /// A value that was surely written before a read of nothing, and that nothing can have ended since.
    fn surely_there(&self, story: &Story<'_>, read: Operation) -> Option<u32> {
        let mut last: Option<(Nanoseconds, u32)> = None;
        for &(index, message) in self.writes.iter().filter(|(_, message)| !message.empty) {
            let reads = self.reads.get(&index).into_iter().flatten().map(|read| read.end.at).min();
            let written_by = message.acknowledged.map(|mark| mark.at).into_iter().chain(reads).min();
            if written_by.is_some_and(|at| at < read.start.at) {
                last = last.max(Some((message.first.at, index)));
            }
        }
        let (started, index) = last?;
        let ended = self.writes.iter().any(|(_, message)| {
            let until = if message.tries == 1 { message.acknowledged.map_or(NEVER, |mark| mark.at) } else { NEVER };
            let since = if message.empty { message.first.at } else { story.may_expire_at(message, message.first.at) };
            until >= started && since < read.end.at
        });
        (!ended).then_some(index)
    }
}

fn report_stale(story: &Story<'_>, topic: &str, outer: &Zone, inner: &Zone, report: &mut Report<'_>) {
    let (old, new) = (&story.messages[outer.message as usize], &story.messages[inner.message as usize]);
    let what = if new.empty { "deleted" } else { "replaced" };
    let summary =
        format!("retained {topic}: m{} was there, was {what} by m{}, and was there again", old.id.0, new.id.0);
    let marks = [outer.first_end, outer.last_start, inner.first_end, inner.last_start];
    let mut events: Vec<u32> = marks.iter().map(|mark| mark.event).filter(|&event| event != NONE).collect();
    events.extend([old.first.event, new.first.event]);
    // The retained copies themselves, where SUBSCRIBEs began.
    let copies = story.deliveries_of(old).filter(|delivery: &&Delivery| delivery.kind == Kind::Retained);
    events.extend(copies.map(|delivery| delivery.mark.event).filter(|&event| event >= outer.last_start.event).take(1));
    report.add(Promise::P6, &events, summary);
}
