//! Links between nodes, and what goes over them.

use bytes::Bytes;
use kentongan_cluster::transport::{Direction, LinkEpoch};
use kentongan_proto::peer::Kind;
use rand::RngExt as _;

use super::{Event, World};
use crate::simulation::faults::{MS, SECOND};
use crate::simulation::network::{Fetch, LinkIndex};

impl World {
    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from][to] > 0 || self.cut[to][from] > 0
    }

    pub(super) fn dial_later(&mut self, link: LinkIndex, from_ns: u64, to_ns: u64) {
        if !std::mem::replace(&mut self.dialling[link], true) {
            self.after(from_ns, to_ns, Event::Dial(link));
        }
    }

    pub(super) fn dial(&mut self, link: LinkIndex) {
        self.dialling[link] = false;
        let (from, to, open) = self.network.with(link, |link| (link.from, link.to, link.open));
        if open || self.hosts[from].process.is_none() {
            return;
        }
        let is_there = self.hosts[to].process.is_some() && !self.hosts[to].paused;
        if !is_there || self.is_cut(from, to) {
            return self.dial_later(link, 50 * MS, SECOND);
        }
        self.network.break_off(link);
        let epoch = self.network.begin(link);
        self.after(100_000, MS, Event::Heard { link, epoch });
        self.after(MS, 2 * MS, Event::Opened { link, epoch });
    }

    pub(super) fn tell_of_link(&mut self, link: LinkIndex, direction: Direction, epoch: u64, up: bool) {
        let (from, to, class) = self.network.with(link, |link| (link.from, link.to, link.class));
        let (host, peer) = if direction == Direction::Incoming { (to, from) } else { (from, to) };
        if let Some(process) = &self.hosts[host].process {
            process.sink.on_link(self.network.id(peer), class, direction, LinkEpoch(epoch), up);
        }
    }

    pub(super) fn heard(&mut self, link: LinkIndex, epoch: u64) {
        let (now, broken, before, to) = self.network.with(link, |link| (link.epoch, link.broken, link.heard, link.to));
        if now != epoch || broken || self.hosts[to].process.is_none() {
            return;
        }
        if let Some(before) = before {
            self.tell_of_link(link, Direction::Incoming, before, false);
        }
        self.network.with(link, |link| link.heard = Some(epoch));
        self.tell_of_link(link, Direction::Incoming, epoch, true);
        self.network.release(link);
    }

    pub(super) fn opened(&mut self, link: LinkIndex, epoch: u64) {
        let (now, broken, heard, from) =
            self.network.with(link, |link| (link.epoch, link.broken, link.heard, link.from));
        if now != epoch || self.hosts[from].process.is_none() {
            return;
        }
        if broken || heard != Some(epoch) {
            return self.dial_later(link, 50 * MS, SECOND);
        }
        self.network.with(link, |link| link.open = true);
        self.tell_of_link(link, Direction::Outgoing, epoch, true);
    }

    pub(super) fn unheard(&mut self, link: LinkIndex, epoch: u64) {
        if self.network.with(link, |link| link.heard == Some(epoch)) {
            self.network.with(link, |link| link.heard = None);
            self.tell_of_link(link, Direction::Incoming, epoch, false);
        }
    }

    pub(super) fn closed(&mut self, link: LinkIndex, epoch: u64) {
        if self.network.with(link, |link| link.open && link.epoch == epoch) {
            self.network.with(link, |link| link.open = false);
            self.tell_of_link(link, Direction::Outgoing, epoch, false);
            self.dial_later(link, 50 * MS, 500 * MS);
        }
    }

    /// Both sides notice, `late_ns` or so later.
    pub(super) fn break_link(&mut self, link: LinkIndex, late_ns: u64) {
        if self.network.break_off(link) {
            let epoch = self.network.with(link, |link| link.epoch);
            self.after(late_ns + 50_000, late_ns + 20 * MS, Event::Closed { link, epoch });
            self.after(late_ns + 50_000, late_ns + 20 * MS, Event::Unheard { link, epoch });
        }
    }

    pub(super) fn receive(&mut self, link: LinkIndex) {
        let (from, to, epoch, heard) = self.network.with(link, |link| (link.from, link.to, link.epoch, link.heard));
        if self.cut[from][to] > 0 || heard != Some(epoch) {
            return self.network.hold(link);
        }
        let mut frames = Vec::new();
        let next = self.network.receive(link, &mut frames);
        self.hand_over(link, frames);
        if let Some(at_ns) = next {
            self.at(at_ns, Event::Frames(link));
        }
    }

    pub(super) fn hand_over(&mut self, link: LinkIndex, frames: Vec<(Kind, Bytes)>) {
        let (from, to) = self.network.with(link, |link| (link.from, link.to));
        let Some(process) = &self.hosts[to].process else {
            return;
        };
        for (kind, body) in frames {
            self.hash.bytes(&body);
            process.sink.on_message(self.network.id(from), kind, body);
        }
    }

    pub(super) fn fetched(&mut self, fetch: usize) {
        let Some(Fetch { from, to, group, fetched }) = self.fetches[fetch].take() else {
            return;
        };
        let fails =
            self.hosts[from].paused || self.is_cut(from, to) || (!self.healed && self.random.random_ratio(1, 8));
        let process = self.hosts[from].process.as_ref().filter(|_| !fails);
        match process.and_then(|process| process.checkpoint(group)) {
            Some(mut chunks) => fetched(Some(&mut chunks)),
            None => fetched(None),
        }
        self.count(if fails { "snapshot broken off" } else { "snapshot fetched" });
    }
}
