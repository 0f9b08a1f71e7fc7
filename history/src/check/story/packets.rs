//! Packets: subscriptions, messages and deliveries, and how they belong together.

use super::{Answered, Delivery, Kind, Mark, Message, NONE, Send, Session, Span, Story};
use crate::check::faults::NEVER;
use crate::event::{Action, Publish, Subscribe, Symbol, What};
use crate::matching;

impl Story<'_> {
    pub(super) fn read_packets(&mut self) {
        for index in 0..self.history.events().len() {
            let c = self.connection_of[index];
            if c == NONE {
                continue;
            }
            let event = &self.history.events()[index];
            let mark = Mark { event: index as u32, at: event.at };
            if let What::Client { action, .. } = &event.what {
                self.read_packet(mark, c, action);
            }
        }
    }

    fn read_packet(&mut self, mark: Mark, c: u32, action: &Action) {
        match action {
            Action::ConnectSent(connect) => {
                if let Some(will) = &connect.will {
                    self.add_will(mark, c, will);
                }
            }
            Action::ConnAck { .. } => self.resume_spans(c),
            Action::SubscribeSent(subscribe) => self.subscribe_sent(mark, c, subscribe),
            Action::SubAck { packet_id, reasons } => self.subscribe_answered(mark, c, *packet_id, reasons),
            Action::UnsubscribeSent { packet_id, filters } => {
                self.connections[c as usize].open_subscribes.push((*packet_id, mark.event));
                self.unsubscribe_sent(mark, c, filters);
            }
            Action::UnsubAck { packet_id, reasons } => self.unsubscribe_answered(mark, c, *packet_id, reasons),
            Action::PublishSent(publish) => self.publish_sent(mark, c, publish),
            Action::PubAckReceived(answer) | Action::PubRecReceived(answer) => {
                self.publish_answered(mark, c, answer.packet_id, answer.reason);
            }
            Action::Delivered(delivery) => self.delivered(mark, c, delivery),
            Action::PubAckSent(answer) => self.acknowledged(mark, c, answer.packet_id, true),
            Action::PubRecSent(answer) => self.acknowledged(mark, c, answer.packet_id, answer.reason >= 0x80),
            Action::PubRelReceived(answer) => {
                if let Some(session) = self.session_mut(c) {
                    session.open_deliveries.retain(|&(packet_id, _)| packet_id != answer.packet_id);
                }
            }
            _ => {}
        }
    }

    fn session_mut(&mut self, c: u32) -> Option<&mut Session> {
        let session = self.connections[c as usize].session;
        (session != NONE).then(|| &mut self.sessions[session as usize])
    }

    fn add_will(&mut self, mark: Mark, c: u32, will: &crate::event::Will) {
        let index = self.messages.len() as u32;
        let connection = &mut self.connections[c as usize];
        connection.will = index;
        connection.will_delay = will.delay;
        let first = mark;
        let message = Message {
            id: will.message,
            publisher: connection.client,
            topic: will.topic,
            qos: will.qos,
            retain: will.retain,
            empty: false,
            expiry: None,
            will_of: c,
            first_send: NONE,
            last_send: NONE,
            tries: 1,
            first,
            acknowledged: None,
            accepted: first,
            refused: false,
            deliveries: (0, 0),
        };
        self.messages.push(message);
        self.message_of.insert(will.message, index);
    }

    /// Subscriptions of a session that may have been replaced meanwhile are no longer sure.
    fn resume_spans(&mut self, c: u32) {
        let connection = &self.connections[c as usize];
        let (session, void_at) = (connection.session, connection.void_at);
        if session == NONE || void_at == NEVER {
            return;
        }
        for &span in &self.sessions[session as usize].open_spans {
            let must = &mut self.spans[span as usize].must;
            must.1 = must.1.min(void_at);
        }
    }

    fn subscribe_sent(&mut self, mark: Mark, c: u32, subscribe: &Subscribe) {
        self.connections[c as usize].open_subscribes.push((subscribe.packet_id, mark.event));
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        for subscription in &subscribe.filters {
            let name = self.history.name(subscription.filter);
            let share = matching::split_share(name);
            let plain = share.map_or(name, |(_, filter)| filter);
            let mut span = Span {
                session,
                filter: subscription.filter,
                shared: share.is_some(),
                exact: None,
                wildcard: NONE,
                qos: subscription.qos,
                no_local: subscription.no_local,
                retain_as_published: subscription.retain_as_published,
                may_read: share.is_none() && subscription.retain_handling < 2,
                must_read: share.is_none() && subscription.retain_handling == 0,
                subscribe: mark,
                suback: None,
                connection: c,
                must: (NEVER, NEVER),
                given_up_at: NEVER,
                unbroken_since: NEVER,
                may_until: NEVER,
                ended_by: NONE,
            };
            if plain.contains(['+', '#']) {
                let number = self.wildcards.len() as u32;
                span.wildcard = *self.wildcards.entry(subscription.filter).or_insert(number);
            } else {
                span.exact = self.history.find(plain);
            }
            let replaced = self.open_span(session, subscription.filter);
            // From now on either of the two may be in force; the answer will tell.
            if let Some(old) = replaced {
                let old = &mut self.spans[old as usize];
                old.must.1 = old.must.1.min(mark.at);
                if subscription.retain_handling == 2 {
                    old.given_up_at = old.given_up_at.min(mark.at);
                }
            }
            if subscription.retain_handling == 1 {
                // Retain Handling 1 reads only for a new subscription: sure if none may stand. What the one before it reads
                // may still be on its way.
                span.must_read = replaced.is_none() && share.is_none();
                span.may_read &= replaced.is_none_or(|old| {
                    let old = &self.spans[old as usize];
                    old.must.0 == NEVER || old.must.1 < mark.at || old.may_read
                });
            }
            let index = self.spans.len() as u32;
            self.spans.push(span);
            let session = &mut self.sessions[session as usize];
            session.spans.push(index);
            session.open_spans.push(index);
        }
    }

    /// The latest subscription of a filter that may stand.
    fn open_span(&self, session: u32, filter: Symbol) -> Option<u32> {
        let open = &self.sessions[session as usize].open_spans;
        open.iter().rev().copied().find(|&span| self.spans[span as usize].filter == filter)
    }

    fn take_open_subscribe(&mut self, c: u32, packet_id: u16) -> Option<u32> {
        let open = &mut self.connections[c as usize].open_subscribes;
        let position = open.iter().position(|&(id, _)| id == packet_id)?;
        let (_, event) = open.remove(position);
        self.answered_subscribes.push(event);
        let connection = &mut self.connections[c as usize];
        connection.alive_at = connection.alive_at.max(self.history.events()[event as usize].at);
        Some(event)
    }

    fn subscribe_answered(&mut self, mark: Mark, c: u32, packet_id: u16, reasons: &[u8]) {
        let Some(subscribe) = self.take_open_subscribe(c, packet_id) else { return };
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        let spans: Vec<u32> = {
            let session = &self.sessions[session as usize];
            let of_subscribe = |&&span: &&u32| self.spans[span as usize].subscribe.event == subscribe;
            session.spans.iter().filter(of_subscribe).copied().collect()
        };
        for (&new, &reason) in spans.iter().zip(reasons) {
            let filter = self.spans[new as usize].filter;
            let older: Vec<u32> = self.sessions[session as usize]
                .open_spans
                .iter()
                .copied()
                .filter(|&old| old < new && self.spans[old as usize].filter == filter)
                .collect();
            if reason >= 0x80 {
                let refused = &mut self.spans[new as usize];
                (refused.may_until, refused.ended_by) = (0, mark.event);
                (refused.may_read, refused.must_read) = (false, false);
                self.sessions[session as usize].open_spans.retain(|&span| span != new);
                // Whether a refusal leaves the subscription before it alone, the specification does not say.
                continue;
            }
            self.grant(new, &older, mark, reason);
            self.sessions[session as usize].open_spans.retain(|span| !older.contains(span));
        }
    }

    fn grant(&mut self, new: u32, older: &[u32], mark: Mark, granted: u8) {
        let mut since = mark.at;
        let mut unbroken_since = mark.at;
        let sent = self.spans[new as usize].subscribe.at;
        let no_local = self.spans[new as usize].no_local;
        for &old in older {
            let old = &mut self.spans[old as usize];
            if old.must.1 == sent && old.no_local == no_local {
                unbroken_since = unbroken_since.min(old.must.0).min(old.unbroken_since);
            }
            // The filter matched throughout: messages sent while it was being replaced are owed as well.
            if old.must.1 == sent && old.no_local == no_local && old.qos >= granted {
                since = since.min(old.must.0);
            }
            old.may_until = mark.at;
            old.ended_by = mark.event;
        }
        let span = &mut self.spans[new as usize];
        span.qos = granted;
        span.suback = Some(mark);
        span.must.0 = since;
        span.unbroken_since = unbroken_since;
    }

    fn unsubscribe_sent(&mut self, mark: Mark, c: u32, filters: &[Symbol]) {
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        for &span in &self.sessions[session as usize].open_spans {
            let span = &mut self.spans[span as usize];
            if filters.contains(&span.filter) {
                span.must.1 = span.must.1.min(mark.at);
                span.given_up_at = span.given_up_at.min(mark.at);
            }
        }
    }

    fn unsubscribe_answered(&mut self, mark: Mark, c: u32, packet_id: u16, reasons: &[u8]) {
        let Some(unsubscribe) = self.take_open_subscribe(c, packet_id) else { return };
        let What::Client { action: Action::UnsubscribeSent { filters, .. }, .. } =
            &self.history.events()[unsubscribe as usize].what
        else {
            return;
        };
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        for (position, filter) in filters.iter().enumerate() {
            if reasons.get(position).is_some_and(|&reason| reason >= 0x80) {
                continue;
            }
            let spans = &mut self.spans;
            self.sessions[session as usize].open_spans.retain(|&span| {
                let span = &mut spans[span as usize];
                let ends = span.filter == *filter && span.subscribe.event < unsubscribe;
                if ends {
                    span.may_until = mark.at;
                    span.ended_by = mark.event;
                }
                !ends
            });
        }
    }

    fn publish_sent(&mut self, mark: Mark, c: u32, publish: &Publish) {
        let send = self.sends.len() as u32;
        let message = match self.message_of.get(&publish.message) {
            Some(&message) => {
                let again = self.sends_again(message, c, publish);
                let last = self.messages[message as usize].last_send;
                if last != NONE {
                    self.sends[last as usize].next = send;
                }
                let message = &mut self.messages[message as usize];
                message.last_send = send;
                message.tries += u32::from(!again);
                // What one try was told, another need not be.
                message.refused = false;
                self.message_of[&publish.message]
            }
            None => self.add_message(mark, c, publish, send),
        };
        let packet_id = publish.packet_id;
        self.sends.push(Send { mark, message, connection: c, packet_id, answer: None, next: NONE });
        if publish.qos > 0 {
            self.connections[c as usize].open_sends.push_back((packet_id, send));
        }
    }

    fn add_message(&mut self, mark: Mark, c: u32, publish: &Publish, send: u32) -> u32 {
        let index = self.messages.len() as u32;
        self.messages.push(Message {
            id: publish.message,
            publisher: self.connections[c as usize].client,
            topic: publish.topic,
            qos: publish.qos,
            retain: publish.retain,
            empty: publish.empty,
            expiry: publish.expiry,
            will_of: NONE,
            first_send: send,
            last_send: send,
            tries: 1,
            first: mark,
            acknowledged: None,
            accepted: mark,
            refused: false,
            deliveries: (0, 0),
        });
        self.message_of.insert(publish.message, index);
        index
    }

    /// Whether a PUBLISH continues the same QoS 2 handshake; any other second try is a new message to the server.
    fn sends_again(&self, message: u32, c: u32, publish: &Publish) -> bool {
        let last = self.messages[message as usize].last_send;
        if last == NONE {
            return false;
        }
        let last = &self.sends[last as usize];
        let connection = &self.connections[c as usize];
        let session = connection.session;
        publish.qos == 2
            && last.answer.is_none_or(|answer| answer.reason < 0x80)
            && last.packet_id == publish.packet_id
            && session != NONE
            && connection.void_at == NEVER
            && self.connections[last.connection as usize].session == session
    }

    fn publish_answered(&mut self, mark: Mark, c: u32, packet_id: u16, reason: u8) {
        let open = &mut self.connections[c as usize].open_sends;
        let Some(position) = open.iter().position(|&(id, _)| id == packet_id) else { return };
        let Some((_, send)) = open.remove(position) else { return };
        let send = &mut self.sends[send as usize];
        send.answer = Some(Answered { mark, reason });
        let message = &mut self.messages[send.message as usize];
        if reason < 0x80 {
            if message.acknowledged.is_none() {
                message.acknowledged = Some(mark);
                // A QoS 2 handshake may have begun, and been matched, with any PUBLISH of it.
                message.accepted = if message.qos == 2 { message.first } else { send.mark };
            }
            message.refused = false;
        } else if message.first_send == message.last_send && message.acknowledged.is_none() {
            // Of several PUBLISH packets another may have been accepted, and not answered.
            message.refused = true;
        }
        let connection = &mut self.connections[c as usize];
        connection.alive_at = connection.alive_at.max(send.mark.at);
    }

    fn delivered(&mut self, mark: Mark, c: u32, delivery: &crate::event::Delivery) {
        let index = self.deliveries.len() as u32;
        let session = self.connections[c as usize].session;
        let message = match delivery.message {
            Some(id) => self.message_of.get(&id).copied().unwrap_or(NONE),
            None => NONE,
        };
        let mut seen = Delivery {
            mark,
            connection: c,
            session,
            message,
            topic: delivery.topic,
            qos: delivery.qos,
            dup: delivery.dup,
            retain: delivery.retain,
            kind: Kind::Live,
            expiry: delivery.expiry,
            acknowledged: None,
            new: !delivery.dup,
            collides: NONE,
        };
        if session != NONE {
            let entered = &mut self.sessions[session as usize];
            entered.deliveries.push(index);
            entered.last_delivery_at = mark.at;
            // What was on its way on a connection that was replaced tells nothing of the successor's identifiers.
            let stale = self.connections[c as usize].superseded.is_some_and(|newer| newer.event < mark.event);
            seen.new &= !(stale && delivery.qos == 2);
            if delivery.qos > 0 && !stale {
                let open = &mut entered.open_deliveries;
                let position = open.iter().position(|&(id, _)| id == delivery.packet_id);
                let before = position.map(|position| open.swap_remove(position).1);
                open.push((delivery.packet_id, index));
                if let Some(before) = before {
                    let old = &self.deliveries[before as usize];
                    if old.message != message && old.connection == c {
                        seen.collides = before;
                    }
                }
                if delivery.qos == 2 {
                    // The receiver's own rule: a Packet Identifier it has stored is no new message [MQTT-4.3.3-10].
                    let stored = before.is_some_and(|before| {
                        let old = &self.deliveries[before as usize];
                        old.message == message && old.qos == 2
                    });
                    seen.new = !stored;
                }
            }
        }
        self.deliveries.push(seen);
    }

    fn acknowledged(&mut self, mark: Mark, c: u32, packet_id: u16, done: bool) {
        let session = self.connections[c as usize].session;
        if session == NONE {
            return;
        }
        let open = &mut self.sessions[session as usize].open_deliveries;
        let Some(position) = open.iter().position(|&(id, _)| id == packet_id) else { return };
        let (_, delivery) = open[position];
        if done {
            open.swap_remove(position);
        }
        self.deliveries[delivery as usize].acknowledged.get_or_insert(mark);
    }

    // What matches.

    pub(super) fn match_topics(&mut self) {
        self.by_topic = vec![Vec::new(); self.history.symbol_count()];
        self.wildcard_matches = vec![Vec::new(); self.history.symbol_count()];
        let mut of_wildcard: Vec<Vec<u32>> = vec![Vec::new(); self.wildcards.len()];
        let mut of_exact: Vec<Vec<u32>> = vec![Vec::new(); self.history.symbol_count()];
        for (index, span) in self.spans.iter().enumerate() {
            match span.exact {
                Some(topic) => of_exact[topic.0 as usize].push(index as u32),
                None if span.wildcard != NONE => of_wildcard[span.wildcard as usize].push(index as u32),
                None => {}
            }
        }
        let topics: Vec<Symbol> = self
            .messages
            .iter()
            .map(|message| message.topic)
            .chain(self.deliveries.iter().map(|delivery| delivery.topic))
            .collect();
        let mut known_topics = vec![false; self.history.symbol_count()];
        for topic in topics {
            if std::mem::replace(&mut known_topics[topic.0 as usize], true) {
                continue;
            }
            let mut spans = std::mem::take(&mut of_exact[topic.0 as usize]);
            let known = &mut self.wildcard_matches[topic.0 as usize];
            *known = vec![false; self.wildcards.len()];
            let name = self.history.name(topic);
            for (filter, &number) in &self.wildcards {
                let filter = self.history.name(*filter);
                let plain = matching::split_share(filter).map_or(filter, |(_, plain)| plain);
                if matching::matches(plain, name) {
                    known[number as usize] = true;
                    spans.extend(&of_wildcard[number as usize]);
                }
            }
            spans.sort_unstable();
            self.by_topic[topic.0 as usize] = spans;
        }
        for index in 0..self.deliveries.len() {
            self.deliveries[index].kind = self.kind_of(&self.deliveries[index]);
        }
    }

    fn kind_of(&self, delivery: &Delivery) -> Kind {
        if !delivery.retain {
            return Kind::Live;
        }
        let as_published = self.spans_of(delivery).any(|span| span.retain_as_published);
        if as_published { Kind::Either } else { Kind::Retained }
    }

    pub(super) fn sort_deliveries(&mut self) {
        let mut counts = vec![0u32; self.messages.len() + 1];
        for delivery in self.deliveries.iter().filter(|delivery| delivery.message != NONE) {
            counts[delivery.message as usize + 1] += 1;
        }
        for index in 1..counts.len() {
            counts[index] += counts[index - 1];
        }
        for (message, bounds) in self.messages.iter_mut().zip(counts.windows(2)) {
            message.deliveries = (bounds[0], bounds[1]);
        }
        self.by_message = vec![0; counts.last().copied().unwrap_or(0) as usize];
        for (index, delivery) in self.deliveries.iter().enumerate() {
            if delivery.message != NONE {
                let next = &mut counts[delivery.message as usize];
                self.by_message[*next as usize] = index as u32;
                *next += 1;
            }
        }
    }
}
