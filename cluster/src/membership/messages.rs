//! What nodes say to each other: interest that is offered, asked for, sent and confirmed, renewals and registrations.

use bytes::Bytes;

use super::supply::Turns;
use super::wire::{self, Body, Malformed};
use super::{Group, Membership, OWN_LINK, Output, Supply};
use crate::directory::command;
use crate::directory::command::Command;
use crate::identity::{Incarnation, NodeId};
use crate::interest::{LinkId, Source, SourceId, TableOutput, Version};

impl Membership {
    /// The link to a node is up, or up anew, or down (`None`). What was sent over it before may be lost; what comes over the
    /// new one comes after this call. No two links have the same id, and none is 0.
    pub fn on_link(&mut self, now_ns: u64, peer: NodeId, link: Option<LinkId>) {
        let closed = match link {
            Some(link) => self.links.insert(peer, link),
            None => self.links.remove(&peer),
        };
        if let Some(closed) = closed {
            self.table.on_link_closed(closed);
        }
        if let Some(life) = &mut self.life {
            life.supply.forget(peer);
        }
        for led in self.groups.values_mut().filter_map(|group| group.led.as_mut()) {
            led.supply.forget(peer);
        }
        if link.is_some() {
            // Before anything by which it could be registered, and so have a say in what time it is.
            self.tell_wall_clock(now_ns, peer);
            // The other side may not have noticed, and go on where nothing arrived. Who leads which group is its to know.
            let at_peer = |source: &SourceId| !matches!(*source, SourceId::Node(node, _) if node != peer);
            let sources: Vec<_> = self.table.sources().filter(at_peer).collect();
            for source in sources {
                self.request(peer, source, self.table.have(source));
            }
        }
        self.leases.remove(&peer);
        self.tell_lease(peer);
        self.place();
        self.offer(now_ns);
        self.settle(now_ns);
    }

    /// A message came from a node.
    ///
    /// # Errors
    /// No node of ours sends this: close the link.
    pub fn on_message(&mut self, now_ns: u64, peer: NodeId, message: Bytes) -> Result<(), Malformed> {
        if let Some(body) = wire::decode(message)? {
            self.on_body(now_ns, peer, body)?;
            self.settle(now_ns);
        }
        Ok(())
    }

    fn on_body(&mut self, now_ns: u64, peer: NodeId, body: Body) -> Result<(), Malformed> {
        match body {
            Body::Join(registration) => {
                if registration.member.as_ref().is_none_or(|member| member.node != peer.get()) {
                    return Err(Malformed::Invalid("a registration of another node"));
                }
                let Some(leading) = &mut self.leading else { return Ok(()) };
                if leading.apart.may_join(peer, &registration.unheard, &self.directory) {
                    self.propose(Command::Join(registration.into()));
                }
            }
            Body::Renewal(renewal) => self.on_renewal(now_ns, peer, &renewal),
            Body::Granted(granted) => {
                if self.incarnation() == Some(Incarnation(granted.incarnation)) {
                    let load = |load: &wire::Load| Some((NodeId::new(load.node)?, load.connections));
                    self.loads = granted.loads.iter().filter_map(load).collect();
                    self.with_holder(|holder, outputs| holder.on_granted(now_ns, granted.sequence, outputs));
                }
            }
            Body::Refused(refused) => {
                if self.incarnation() == Some(Incarnation(refused.incarnation)) {
                    self.end();
                }
            }
            Body::Offer(offer) => {
                let source = self.source_at(peer, offer.source)?;
                if self.table.follows(source) {
                    self.request(peer, source, self.table.have(source));
                }
            }
            Body::Request(request) => self.on_request(peer, request)?,
            Body::Update(update) => {
                self.source_at(peer, update.source)?;
                let link = if peer == self.me { Some(OWN_LINK) } else { self.links.get(&peer).copied() };
                let mut outputs = Vec::new();
                if let Some(link) = link {
                    self.table.on_update(link, update.try_into()?, &mut outputs);
                }
                self.on_table(peer, outputs);
            }
            Body::Confirm(confirm) => self.on_confirm(confirm)?,
            Body::Lease(lease) => {
                if self.links.contains_key(&peer) && self.leases.insert(peer, lease.held) != Some(lease.held) {
                    self.place();
                }
            }
            Body::WallClock(clock) => {
                if let Some(&link) = self.links.get(&peer) {
                    self.wall_clocks.on_other(now_ns, peer, link, clock.wall_ms);
                }
            }
        }
        Ok(())
    }

    /// A node has no interest but its own; a group's may come from anyone who led it.
    fn source_at(&self, peer: NodeId, record: Option<wire::SourceRecord>) -> Result<SourceId, Malformed> {
        match wire::source(record)? {
            SourceId::Node(node, _) if node != peer => Err(Malformed::Invalid("the interest of another node")),
            source => Ok(source),
        }
    }

    fn on_renewal(&mut self, now_ns: u64, peer: NodeId, renewal: &wire::Renewal) {
        let Some(leading) = &mut self.leading else { return };
        let mut outputs = Vec::new();
        leading.on_renewal(now_ns, peer, renewal, &self.directory, &mut outputs);
        self.lead(outputs);
        let incarnation = Incarnation(renewal.incarnation);
        let member = self.directory.members().get(&peer).filter(|member| member.living == Some(incarnation));
        if renewal.stops && member.is_some_and(|member| member.stops.is_none()) {
            let drain = command::Drain { node: peer.get(), on: true, incarnation: incarnation.0 };
            self.propose(Command::Drain(drain));
        }
    }

    fn on_request(&mut self, peer: NodeId, request: wire::Request) -> Result<(), Malformed> {
        let source = wire::source(request.source)?;
        let (receiver, have) = (Incarnation(request.receiver), request.have.map(Version));
        if let Some((source, supply)) = self.supply(source) {
            supply.on_request(source, peer, receiver, have);
        }
        Ok(())
    }

    fn on_confirm(&mut self, confirm: wire::Confirm) -> Result<(), Malformed> {
        let source = wire::source(confirm.source)?;
        let Some((_, supply)) = self.supply(source) else { return Ok(()) };
        let mut released = Vec::new();
        supply.barrier.on_confirmed(Incarnation(confirm.receiver), Version(confirm.version), &mut released);
        let group = match source {
            SourceId::Node(..) => None,
            SourceId::Group(group) => Some(group),
        };
        self.release(group, released);
        Ok(())
    }

    /// What this node sends to others of a source, if it does.
    fn supply(&mut self, source: SourceId) -> Option<(&Source, &mut Supply)> {
        match source {
            SourceId::Group(group) => self.groups.get_mut(&group)?.supply(),
            SourceId::Node(node, incarnation) => {
                let life = self.life.as_mut()?;
                (node == self.me && incarnation == life.incarnation).then_some((&life.source, &mut life.supply))
            }
        }
    }

    pub(super) fn request(&mut self, peer: NodeId, source: SourceId, have: Option<Version>) {
        if let Some(receiver) = self.incarnation() {
            let have = have.map(|version| version.0);
            let source = Some(source.into());
            self.send(peer, Body::Request(wire::Request { source, have, receiver: receiver.0 }));
        }
    }

    pub(super) fn on_table(&mut self, peer: NodeId, outputs: Vec<TableOutput>) {
        for output in outputs {
            match output {
                TableOutput::Change { source, filter, old, new } => {
                    self.outputs.push(Output::Interest { source, filter, old, new });
                }
                TableOutput::Ask { source, have } => self.request(peer, source, have),
                TableOutput::Confirm { source, version } => {
                    if let Some(receiver) = self.incarnation() {
                        let source = Some(source.into());
                        let confirm = wire::Confirm { source, version: version.0, receiver: receiver.0 };
                        self.send(peer, Body::Confirm(confirm));
                    }
                }
            }
        }
    }

    /// To who lives and does not ask.
    pub(super) fn offer(&mut self, now_ns: u64) {
        let reached = |&(node, _): &(NodeId, Incarnation)| node == self.me || self.links.contains_key(&node);
        let there: Vec<_> = self.directory.living().filter(reached).collect();
        let others: Vec<_> = there.iter().copied().filter(|&(node, _)| node != self.me).collect();
        let mut offers = Vec::new();
        if let Some(life) = &mut self.life {
            let source = SourceId::Node(self.me, life.incarnation);
            offers.extend(life.supply.offers(now_ns, &others).into_iter().map(|peer| (peer, source)));
        }
        for (&id, group) in &mut self.groups {
            if let Some(led) = &mut group.led {
                let source = SourceId::Group(id);
                offers.extend(led.supply.offers(now_ns, &there).into_iter().map(|peer| (peer, source)));
            }
        }
        for (peer, source) in offers {
            self.send(peer, Body::Offer(wire::Offer { source: Some(source.into()) }));
        }
    }

    pub(super) fn send(&mut self, to: NodeId, body: Body) {
        if to == self.me {
            self.loopback.push_back(body);
        } else if self.links.contains_key(&to) {
            self.outputs.push(Output::Send { to, message: wire::encode(body) });
        }
    }

    /// The end of every input: what this node said to itself is heard, what changed is sent.
    pub(super) fn settle(&mut self, now_ns: u64) {
        loop {
            while let Some(body) = self.loopback.pop_front() {
                self.on_body(now_ns, self.me, body).expect("what this program says is not malformed");
            }
            self.pump();
            if self.loopback.is_empty() {
                break;
            }
        }
        self.complete_interest(now_ns);
        self.has_changed = false;
    }

    /// To each node an update of each source in turn, until it has everything or there is no room for more.
    fn pump(&mut self) {
        let mut turns = Turns::default();
        if let Some(life) = &mut self.life {
            life.supply.take_turns(&life.source, &mut self.budgets, &mut turns);
        }
        for (source, supply) in self.groups.values_mut().filter_map(Group::supply) {
            supply.take_turns(source, &mut self.budgets, &mut turns);
        }
        while !turns.later.is_empty() {
            for (source, peer) in std::mem::take(&mut turns.later) {
                let supply = match source {
                    SourceId::Node(..) => self.life.as_mut().map(|life| (&life.source, &mut life.supply)),
                    SourceId::Group(group) => self.groups.get_mut(&group).and_then(Group::supply),
                };
                if let Some((source, supply)) = supply {
                    supply.take_turn(source, peer, &mut self.budgets, &mut turns);
                }
            }
        }
        for (peer, update) in turns.updates {
            self.send(peer, Body::Update(update.into()));
        }
    }
}
