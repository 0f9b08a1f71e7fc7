//! What an arbiter does where there are several nodes: it sends again what a group's leader may have lost, and says what
//! its clients have, so that a new leader sends what is missing and nothing else. See `docs/design/replication.md`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kentongan_cluster::NodeId;
use kentongan_cluster::lane::Incoming;
use kentongan_cluster::lease::LeaseCell;
use kentongan_proto::mqtt::codec::{AckKind, Frame, PacketType};
use kentongan_proto::mqtt::{PacketId, ReasonCode};
use prost::Message as _;
use prost::encoding::message;

use super::arbiter::{ArbiterState, wake};
use super::changing::Unasked;
use super::client::{Client, Phase};
use super::ended::EndCause;
use super::lanes::Lanes;
use super::node_lanes::Nodes;
use super::patient_answers::PatientAnswers;
use super::share_settling::ShareTaking;
use super::{ConnectionKey, Event, Shared};
use crate::clock::Clock;
use crate::connection_key::ALL_PLACES;
use crate::moving::Elsewhere;
use crate::peers::wire::{Forwarded, PendingClaim, Propose, Resync, ResyncPart, ServedSession};
use crate::peers::{PeerFull, Peers};
use crate::replicated::command::{Released, SessionCommand};
use crate::replicated::{PersistentSession, Query};
use crate::subscription::InterestKind;

/// What clients are told who must find another node.
const CUT_OFF: ReasonCode = ReasonCode::UseAnotherServer;

/// Why a claim is refused whose group answers nothing.
pub(super) const TOO_FEW_KEEP_IT: &str = "too few of the nodes that keep its session are there";

/// Fields of a [`Resync`].
const SESSIONS_TAG: u32 = 3;
const CLAIMS_TAG: u32 = 4;

/// Where the fixed header of a PUBLISH has its QoS.
const PUBLISH_QOS_BITS: u8 = 0b0110;

/// SUBSCRIBEs and UNSUBSCRIBEs of one connection that may wait for an answer before it says another.
pub(super) const ASKED_MAX: usize = 128;

/// SUBACKs that leave at once when a node that was away is back, or lost: then others have their turn.
pub(super) const SUBACKS_A_TURN_MAX: usize = 256;

/// What the arbiters know of the cluster.
pub struct ClusterView {
    /// This node.
    pub node: u64,
    /// Whether what is acknowledged may be believed.
    pub lease: Arc<LeaseCell>,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// Who leads which group.
    pub leaders: Leaders,
    /// The other nodes as the subscription index knows them.
    pub nodes: Nodes,
    /// How far the lanes from other nodes got.
    pub incoming: Mutex<Incoming>,
    /// What those lanes have still to be told.
    pub patient_answers: Mutex<PatientAnswers>,
    /// By which the lease is counted.
    pub clock: Clock,
    /// Whether this node holds a lease, as of a moment ago: for those who want to know, not for acknowledgements.
    pub serving: AtomicBool,
    /// Whether other nodes do, as each said last; nothing of those that do not say.
    pub leases: Mutex<BTreeMap<NodeId, bool>>,
    /// This node is no member any more: the process is to end.
    pub removed: AtomicBool,
    /// Whether this node takes clients, and where else they may go.
    pub elsewhere: Elsewhere,
}

impl fmt::Debug for ClusterView {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClusterView").field("node", &self.node).finish_non_exhaustive()
    }
}

impl ClusterView {
    /// The link to a node broke and is there again: what it said, or was told, may be lost.
    pub fn on_link_broken(&self, shared: &Shared, node: u64) {
        self.leaders.on_link_broken(shared, node);
        for number in self.nodes.of(node) {
            for inbox in &shared.inboxes {
                inbox.push(Event::NodeReset { node: number }, 0);
            }
        }
    }

    /// Answers lanes from other nodes that have waited long enough, unless arbiters have too much before them. From time to time.
    pub fn answer_patient(&self, shared: &Shared) {
        if shared.is_inbox_overloaded() {
            return;
        }
        let now_ms = shared.now_ms();
        let due = self.patient_answers.lock().unwrap_or_else(PoisonError::into_inner).take_due(now_ms);
        for (node, answer) in due {
            // If there is no room, the origin sends the batch again.
            let _ = self.peers.forward(node, Forwarded::MessagesAnswer(answer));
        }
    }

    /// Whether this node may acknowledge now. The clock is read here, so everything that is acknowledged must have been
    /// matched before.
    #[must_use]
    pub fn may_acknowledge(&self) -> bool {
        self.lease.is_valid(self.clock.boottime_ns())
    }

    /// What is left of the lease, for those who want to know.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        Duration::from_nanos(self.lease.valid_until_ns().saturating_sub(self.clock.boottime_ns()))
    }
}

/// Who leads a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// The node.
    pub node: u64,
    /// Its term.
    pub term: u64,
    /// The last round in which it asked for a resync.
    pub round: u32,
}

/// Who leads each group, as far as this node knows.
#[derive(Debug, Default)]
pub struct Leaders(Mutex<BTreeMap<u16, Leader>>);

impl Leaders {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Leader>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who leads a group.
    #[must_use]
    pub fn get(&self, group: u16) -> Option<Leader> {
        self.lock().get(&group).copied()
    }

    /// Who leads which group.
    #[must_use]
    pub fn all(&self) -> BTreeMap<u16, Leader> {
        self.lock().clone()
    }

    /// Somebody leads a group, as a replica here or the leader itself said. Arbiters hear of it, unless something newer is
    /// known.
    pub fn learn(&self, shared: &Shared, group: u16, leader: Leader) {
        let mut leaders = self.lock();
        if leaders.get(&group).is_none_or(|known| known.term < leader.term) {
            leaders.insert(group, leader);
            tell(shared, group, leader);
        }
    }

    /// Does something that holds only while `node` leads `group` in `term`. Word of a new leader that others have for the
    /// arbiters waits until it is done, so that nothing of an older one comes behind it.
    pub fn if_leads(&self, shared: &Shared, group: u16, node: u64, term: u64, act: impl FnOnce()) {
        let mut leaders = self.lock();
        let known = leaders.get(&group).map_or(0, |known| known.term);
        if known > term {
            return;
        }
        if known < term {
            let leader = Leader { node, term, round: 0 };
            leaders.insert(group, leader);
            tell(shared, group, leader);
        }
        act();
    }

    /// The same for much that the leaders of several groups have for the arbiters, from the node that leads them.
    pub fn hold(&self) -> HeldLeaders<'_> {
        HeldLeaders(self.lock())
    }

    /// A leader asks what the clients here have, because what it said may be lost.
    pub fn on_asked(&self, shared: &Shared, group: u16, leader: Leader) {
        let mut leaders = self.lock();
        let is_old = |known: &Leader| (known.term, known.round) > (leader.term, leader.round);
        if !leaders.get(&group).is_some_and(is_old) {
            leaders.insert(group, leader);
            tell(shared, group, leader);
        }
    }

    /// The link to a node broke: what it said, or was told, may be lost.
    pub fn on_link_broken(&self, shared: &Shared, node: u64) {
        for (&group, &leader) in self.lock().iter().filter(|(_, leader)| leader.node == node) {
            tell(shared, group, leader);
        }
    }
}

/// While this is there, arbiters hear of no new leader from others.
#[derive(Debug)]
pub struct HeldLeaders<'a>(MutexGuard<'a, BTreeMap<u16, Leader>>);

impl HeldLeaders<'_> {
    /// Whether somebody leads `group` in a later term than `term`.
    #[must_use]
    pub fn is_deposed(&self, group: u16, term: u64) -> bool {
        self.0.get(&group).is_some_and(|known| known.term > term)
    }
}

fn tell(shared: &Shared, group: u16, leader: Leader) {
    shared.submitter.notify(Query::Led(group));
    for inbox in &shared.inboxes {
        inbox.push(Event::Led { group, leader: Some(leader) }, 0);
    }
}

/// How far a message of a session's window came with its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// PUBLISH was sent.
    Published,
    /// PUBREL was sent.
    Released,
}

/// What a leader of the session's group may have to be told.
#[derive(Debug)]
pub struct Served {
    /// Of a transient session too: the group keeps its claim and its will.
    pub claim: PersistentSession,
    /// What the client was sent and has not acknowledged.
    pub sent: BTreeMap<PacketId, Sent>,
    /// Its PUBRELs that wait for PUBCOMP.
    pub completing: BTreeSet<PacketId>,
    /// SUBSCRIBEs and UNSUBSCRIBEs of a persistent session without an answer, by their tickets.
    pub unanswered: VecDeque<(u64, SessionCommand)>,
    /// What was answered of a SUBSCRIBE or UNSUBSCRIBE while an earlier one still waited, for a barrier or for a new leader
    /// to hear of it: ticket and filter.
    pub answered_ahead: Vec<(u64, Box<str>)>,
    /// SUBSCRIBEs and UNSUBSCRIBEs that the group is asked for once every node has heard of something, in their order.
    pub unasked: VecDeque<Unasked>,
    /// SUBSCRIBEs of a transient session that not every node has heard of, by their tickets.
    pub barriers: VecDeque<(u64, PendingSubAck)>,
}

impl Served {
    pub(super) fn new(claim: PersistentSession) -> Self {
        Self {
            claim,
            sent: BTreeMap::new(),
            completing: BTreeSet::new(),
            unanswered: VecDeque::new(),
            unasked: VecDeque::new(),
            answered_ahead: Vec::new(),
            barriers: VecDeque::new(),
        }
    }

    /// The client acknowledged something that it was sent.
    pub(super) fn on_acknowledged(&mut self, kind: AckKind, packet_id: PacketId, refused: bool) {
        match kind {
            // PUBREC leaves it as it is: whether PUBREL was sent is what counts.
            AckKind::PubRec if !refused => {}
            _ => drop(self.sent.remove(&packet_id)),
        }
    }

    fn record(&self, client_id: &str, connection: ConnectionKey, receiving: Vec<u32>) -> ServedSession {
        let number = |id: &PacketId| u32::from(id.get());
        ServedSession {
            client_id: client_id.to_owned(),
            epoch: self.claim.epoch,
            connection: connection.raw(),
            sent: self.sent.keys().map(number).collect(),
            released: self.sent.iter().filter(|(_, sent)| **sent == Sent::Released).map(|(id, _)| number(id)).collect(),
            receiving,
            completing: self.completing.iter().map(number).collect(),
        }
    }
}

/// A SUBSCRIBE of a transient session that stands in the tables here.
#[derive(Debug)]
pub struct PendingSubAck {
    /// Packet Identifier.
    pub packet_id: PacketId,
    /// One for each filter.
    pub codes: Vec<ReasonCode>,
    /// Reads of retained messages that begin when it is answered.
    pub reads: Vec<u64>,
}

/// A connection that is gone, while something that came by it is still on its way (P7).
#[derive(Debug)]
pub(super) struct Departing {
    /// Messages that no lane has answered for.
    pub under_way: usize,
    /// Said to the session's group once there are none.
    pub last_word: LastWord,
}

/// The end of a connection, for its session's group.
#[derive(Debug)]
pub(super) struct LastWord {
    pub group: u16,
    pub command: SessionCommand,
    pub awaited_by: Awaits,
}

/// Who waits until a group knows that a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaits {
    /// The client: the end of the stream is the only answer that DISCONNECT has, and its will may hang on it (P9).
    Client,
    /// Another connection, a will, an expiry.
    Group,
    /// Nothing is left of the session. Whoever claims the Client Identifier next has the group ask.
    Nobody,
}

impl ArbiterState {
    /// Whether what was matched may be acknowledged.
    #[inline]
    pub(super) fn may_acknowledge(&self) -> bool {
        self.shared.may_acknowledge()
    }

    /// What waits to be written to a connection that ends is not, where that needs a lease and there is none: the client may be connected
    /// elsewhere by now. `false`: nothing else can be written to it either, so it breaks off.
    pub(super) fn forget_unwritten(&mut self, key: ConnectionKey) -> bool {
        let may_acknowledge = self.may_acknowledge();
        let Some(client) = self.client(key).filter(|client| client.out.needs_lease() && !may_acknowledge) else {
            return true;
        };
        let goes_on = client.out.forget();
        // What is forgotten as it closes may have said why.
        client.breaks_off |= !goes_on || client.phase == Phase::Closing;
        wake(client);
        goes_on
    }

    /// Among several nodes, and not one of them: nothing that it says is about anybody, and what it hears is about those whom it had before.
    fn is_unregistered(&self) -> bool {
        self.shared.cluster.is_some() && self.lanes.incarnation() == 0
    }

    /// A group has a new leader, or the link to it broke.
    pub(super) fn on_led(&mut self, group: u16, leader: Option<Leader>) {
        if self.is_unregistered() {
            return; // It will be told when it is registered.
        }
        // What clients acknowledged goes ahead of what is said of them.
        self.flush_lanes();
        self.lanes.set_leader(group, leader);
        self.send_lane(group);
        self.resync(group);
        self.ask_again(group);
    }

    /// Sends what a lane has, to whoever leads its group.
    pub(super) fn send_lane(&mut self, group: u16) {
        let Some(cluster) = &self.shared.cluster else {
            return;
        };
        while let Some((leader, command)) = self.lanes.next_batch(group, self.now_ms) {
            if leader.node == cluster.node {
                self.shared.submitter.propose_encoded(group, command);
                continue;
            }
            let propose = Propose { group: u32::from(group), command };
            if let Err(PeerFull) = cluster.peers.forward(leader.node, Forwarded::Propose(propose)) {
                self.lanes.hold(group);
                return;
            }
        }
    }

    /// Tells the leader of a group what its clients here have: behind all that they did, or it would be told of what has not
    /// come. A PUBLISH that the leader has not heard of would count as refused, and an acknowledged message as lost.
    fn resync(&mut self, group: u16) {
        self.flush_lanes();
        let Some(said) = self.lanes.sent_up_to(group) else {
            return self.lanes.hold_resync(group);
        };
        let (Some(cluster), Some(leader)) = (&self.shared.cluster, self.lanes.leader(group)) else {
            return;
        };
        let head = Resync {
            group: u32::from(group),
            term: leader.term,
            round: leader.round,
            incarnation: self.shared.incarnation(),
            arbiter: u32::from(self.id),
            arbiters: self.shared.inboxes.len() as u32,
            sessions: Vec::new(),
            claims: Vec::new(),
            said,
        };
        let from = self.lanes.resync_from(group);
        let told = self.to_tell(group, from);
        let local = leader.node == cluster.node;
        let peers = Arc::clone(&cluster.peers);
        let parts = match from {
            0 if local || whole_bytes(&head, &told) <= peers.whole_bytes() => vec![(0, told)],
            _ => in_parts(told, from, peers.piece_bytes().min(peers.whole_bytes())),
        };
        let mut parts = parts.into_iter().peekable();
        let mut rest = None;
        while let Some((first, part)) = parts.next() {
            let mut resync = head.clone();
            let mut unanswered = Vec::new();
            for told in part {
                resync.sessions.extend(told.session);
                resync.claims.extend(told.claim);
                unanswered.extend(told.unanswered);
            }
            let below = parts.peek().map(|&(next, _)| next);
            let sent = if local {
                self.shared.submitter.resync(leader.node, resync, ALL_PLACES);
                Ok(())
            } else if first == 0 && below.is_none() {
                peers.forward(leader.node, Forwarded::Resync(resync))
            } else {
                let part = ResyncPart { resync: Some(resync), from: first, below };
                peers.forward(leader.node, Forwarded::ResyncPart(part))
            };
            if sent.is_err() {
                rest = Some(first);
                self.lanes.hold_resync(group);
                break;
            }
            // Behind the resync, or the leader would not yet push what it answers.
            for command in unanswered {
                self.lanes.command(group, command);
            }
        }
        self.lanes.set_resync_from(group, rest);
        self.flush_lanes();
    }

    /// What the leader of a group is to know of connections here, those from the place `from` on, by their places.
    fn to_tell(&self, group: u16, from: u32) -> Vec<Told> {
        let slots = self.shared.submitter.slots();
        let told = |(index, client): (usize, &Client)| {
            let place = index as u32;
            let key = ConnectionKey::new(self.id, place, client.generation);
            let is_claim = client.phase == Phase::Claiming && slots.group_of(&client.client_id) == group;
            let claim =
                is_claim.then(|| PendingClaim { client_id: client.client_id.to_string(), connection: key.raw() });
            let served = served_by(client, group);
            let asked = served.iter().flat_map(|(served, _)| &served.unanswered);
            let unanswered = asked.map(|(_, command)| asked_again(command)).collect();
            let session = served.map(|(served, receiving)| served.record(&client.client_id, key, receiving));
            (session.is_some() || claim.is_some()).then_some(Told { place, session, claim, unanswered })
        };
        self.clients.iter().skip_while(|(index, _)| *index < from as usize).filter_map(told).collect()
    }

    /// Once a second: lanes without progress, and what found no room on its way.
    pub(super) fn retry_lanes(&mut self) {
        if self.shared.cluster.is_none() {
            return;
        }
        self.retry_node_lanes();
        let (lanes, resyncs) = self.lanes.stuck();
        for group in lanes {
            self.send_lane(group);
        }
        for group in resyncs {
            // It may wait for what the lane has, though that has made progress.
            self.send_lane(group);
            self.resync(group);
        }
        self.refuse_claims_of_silent_groups();
        self.acknowledge_withheld();
    }

    /// Nobody may grant what clients wait for here: they try elsewhere.
    pub(super) fn refuse_claims(&mut self) {
        for key in self.claiming() {
            if self.is_claiming(key) {
                self.refuse(key, ReasonCode::ServerUnavailable, "this node is cut off from the cluster");
            }
        }
    }

    /// Those who keep a group may be away though this node has a lease. Clients try again later.
    fn refuse_claims_of_silent_groups(&mut self) {
        if !self.lanes.is_any_silent() {
            return;
        }
        let slots = self.shared.submitter.slots();
        for key in self.claiming() {
            let group = self.client(key).map(|client| slots.group_of(&client.client_id));
            if group.is_some_and(|group| self.lanes.is_silent(group)) && self.is_claiming(key) {
                self.refuse(key, ReasonCode::ServerUnavailable, TOO_FEW_KEEP_IT);
            }
        }
    }

    fn claiming(&mut self) -> Vec<ConnectionKey> {
        let mut keys = self.keys();
        keys.retain(|&key| self.is_claiming(key));
        keys
    }

    /// Not so any more if the end of another claim was its turn, and it was refused by that.
    fn is_claiming(&mut self, key: ConnectionKey) -> bool {
        self.client(key).is_some_and(|client| matches!(client.phase, Phase::AwaitingTurn | Phase::Claiming))
    }

    /// Without a lease the client may be connected elsewhere by now: nothing that it says here, and that waits for an answer or
    /// counts on one, takes effect before the lease is back (P7). QoS 0 goes on.
    pub(super) fn waits_for_lease(&mut self, key: ConnectionKey, frame: &Frame<'_>) -> bool {
        let goes_on = match frame.packet_type() {
            PacketType::Publish => frame.first_byte & PUBLISH_QOS_BITS == 0,
            packet_type => matches!(packet_type, PacketType::PingReq | PacketType::Disconnect),
        };
        if goes_on || !self.client(key).is_some_and(|client| client.is_connected()) || self.may_acknowledge() {
            return false;
        }
        if let Some(client) = self.client(key) {
            (client.paused, client.unprocessed) = (true, true);
        }
        self.unread.push(key);
        true
    }

    /// The lease may be back.
    pub(super) fn acknowledge_withheld(&mut self) {
        let nothing_waits = self.withheld.is_empty() && self.withheld_barrier.is_none() && self.unread.is_empty();
        if (nothing_waits && self.unwritten.is_empty()) || !self.may_acknowledge() {
            return;
        }
        for key in std::mem::take(&mut self.unwritten) {
            if self.client(key).is_some() {
                self.mark_dirty(key);
            }
        }
        for key in std::mem::take(&mut self.withheld) {
            self.send_settled(key);
        }
        if let Some(ticket) = self.withheld_barrier.take() {
            self.on_barrier(ticket);
        }
        for key in std::mem::take(&mut self.unread) {
            self.resume_reading(key);
        }
    }

    /// This node was registered (anew): its lanes begin.
    pub(super) fn on_registered(&mut self, incarnation: u64) {
        let Some(cluster) = &self.shared.cluster else {
            return;
        };
        let leaders = cluster.leaders.all();
        self.lanes = Lanes::new(
            Some((cluster.node, &*cluster.peers)),
            incarnation,
            self.id,
            self.shared.submitter.slots().groups(),
        );
        for (group, leader) in leaders {
            self.on_led(group, Some(leader));
        }
    }

    /// This node was declared dead: nothing that its clients did here counts any more, and others may be connected
    /// elsewhere by their names.
    pub(super) fn on_unregistered(&mut self) {
        for key in self.keys() {
            self.cut_off(key);
        }
        self.flush_interest();
        self.departing.clear();
        self.withheld.clear();
        self.withheld_barrier = None;
        self.barriers.clear();
        self.unread.clear();
        self.unwritten.clear();
        if let Some(cluster) = &self.shared.cluster {
            self.lanes =
                Lanes::new(Some((cluster.node, &*cluster.peers)), 0, self.id, self.shared.submitter.slots().groups());
        }
        self.forget_handed_over();
        self.taking = ShareTaking::default();
        self.shared.submitter.notify(Query::ClientsClosed);
    }

    /// The majority is elsewhere: clients are to find it.
    pub(super) fn on_cut_off(&mut self) {
        for key in self.keys() {
            // Whoever leaves waits for its group, which may still hear of it.
            if self.client(key).is_some_and(|client| client.phase != Phase::Leaving) {
                self.cut_off(key);
            }
        }
    }

    fn cut_off(&mut self, key: ConnectionKey) {
        let Some(client) = self.client(key) else {
            return;
        };
        if client.phase == Phase::Leaving {
            // No group will hear of its DISCONNECT.
            client.breaks_off = true;
            return self.begin_closing(key);
        }
        self.end(key, EndCause::CutOff, Some(CUT_OFF));
    }

    /// What clients here want changes what other nodes send.
    #[inline]
    pub(super) fn change_interest(&mut self, filter: &str, kind: InterestKind, wanted: bool) {
        if self.shared.cluster.is_some() {
            self.interest.filters.push((Box::from(filter), kind, wanted));
            self.schedule_flush();
        }
    }

    /// SUBACK waits until every node has heard of the subscription, so that what is acknowledged after it finds it.
    /// Returns the barrier's number.
    pub(super) fn await_barrier(&mut self, key: ConnectionKey, suback: PendingSubAck) -> u64 {
        self.message_number += 1;
        let ticket = self.message_number;
        if let Some(served) = self.served(key) {
            served.barriers.push_back((ticket, suback));
            self.barriers.insert(ticket, key);
            self.interest.barrier = Some((self.id, ticket));
            self.schedule_flush();
        }
        ticket
    }

    /// Every node has heard of what was subscribed to up to `ticket`.
    pub(super) fn on_barrier(&mut self, ticket: u64) {
        if !self.may_acknowledge() {
            // Declared dead, its interest may be forgotten already.
            self.withheld_barrier = self.withheld_barrier.max(Some(ticket));
            return;
        }
        for _ in 0..SUBACKS_A_TURN_MAX {
            let Some(first) = self.barriers.first_entry().filter(|first| *first.key() <= ticket) else {
                return;
            };
            let (ticket, key) = first.remove_entry();
            let Some(served) = self.served(key) else {
                continue;
            };
            let waiting = served.barriers.iter().position(|&(waiting, _)| waiting == ticket);
            if let Some((_, suback)) = waiting.and_then(|at| served.barriers.remove(at)) {
                self.on_changes_settled(key, ticket);
                self.answer_subscribe(key, suback);
                self.on_answered(key);
            } else if let Some(unasked) = served.unasked.iter_mut().find(|unasked| unasked.ticket == ticket) {
                unasked.may_go = true;
                self.ask_what_may_go(key);
            }
        }
        // Behind what others have for this arbiter.
        self.shared.inboxes[usize::from(self.id)].push(Event::Barrier { ticket }, 0);
    }

    /// One that says SUBSCRIBE or UNSUBSCRIBE again and again is not read while so many of them have no answer: each is kept
    /// until every node, or its group, has heard of it, and that may take as long as a node is away.
    pub(super) fn waits_for_answers(&mut self, key: ConnectionKey, frame: &Frame<'_>) -> bool {
        if !matches!(frame.packet_type(), PacketType::Subscribe | PacketType::Unsubscribe) {
            return false;
        }
        let Some(client) = self.client(key).filter(|client| client.unanswered >= ASKED_MAX) else {
            return false;
        };
        (client.paused, client.unprocessed) = (true, true);
        true
    }

    pub(super) fn flush_interest(&mut self) {
        if !self.interest.filters.is_empty() || self.interest.barrier.is_some() {
            self.shared.submitter.interest(std::mem::take(&mut self.interest));
        }
    }

    /// Another claim waits for the connection of `epoch` to end.
    pub(super) fn on_close(&mut self, key: ConnectionKey, group: u16, client_id: &Arc<str>, epoch: u64) {
        if self.is_unregistered() {
            // The group's fence releases it. It was told that it is connected, so its session would end as if it had never been.
            return;
        }
        let holds = self
            .client(key)
            .and_then(|client| client.session.as_ref()?.served.as_ref())
            .is_some_and(|served| served.claim.epoch == epoch);
        if holds {
            self.count_takeover(client_id);
            return self.end(key, EndCause::TakenOver, Some(ReasonCode::SessionTakenOver));
        }
        if !self.departing.contains_key(&key) {
            // It never learnt that its claim was granted; or it was gone before, and then this comes behind its last word.
            let client_id = client_id.to_string();
            let released = Released { client_id, epoch, publish_will: false, never_began: true };
            self.lanes.command(group, SessionCommand::Released(released));
            self.schedule_flush();
        }
    }

    /// The end of a connection, said to its session's group: once everything that came by it is settled.
    pub(super) fn say_last_word(&mut self, key: ConnectionKey, last_word: LastWord) {
        self.lanes.await_nodes(key);
        let under_way = self.lanes.under_way(key);
        if under_way > 0 {
            self.departing.insert(key, Departing { under_way, last_word });
        } else {
            self.say(key, last_word);
        }
    }

    fn say(&mut self, key: ConnectionKey, LastWord { group, command, awaited_by }: LastWord) {
        match awaited_by {
            Awaits::Client => self.lanes.command_of(key, group, command),
            Awaits::Group => self.lanes.command(group, command),
            Awaits::Nobody => self.lanes.command_without_hurry(group, command),
        }
        self.schedule_flush();
    }

    /// Something that came by a connection which is gone is settled.
    pub(super) fn on_departed_settled(&mut self, key: ConnectionKey) {
        let Some(departing) = self.departing.get_mut(&key) else {
            return self.on_last_word_heard(key);
        };
        departing.under_way -= 1;
        if departing.under_way == 0
            && let Some(departing) = self.departing.remove(&key)
        {
            self.say(key, departing.last_word);
        }
    }

    fn on_last_word_heard(&mut self, key: ConnectionKey) {
        if self.client(key).is_some_and(|client| client.phase == Phase::Leaving) {
            self.begin_closing(key);
        }
    }

    pub(super) fn served(&mut self, key: ConnectionKey) -> Option<&mut Served> {
        self.client(key)?.session.as_mut()?.served.as_deref_mut()
    }
}

/// What the leader of a group is to know of one connection.
#[derive(Debug)]
struct Told {
    /// In the arbiter's slab.
    place: u32,
    session: Option<ServedSession>,
    claim: Option<PendingClaim>,
    /// What it asked the group for, for the second time.
    unanswered: Vec<SessionCommand>,
}

impl Told {
    /// As a part of a resync.
    fn bytes(&self) -> usize {
        let session = self.session.as_ref().map(|session| message::encoded_len(SESSIONS_TAG, session));
        let claim = self.claim.as_ref().map(|claim| message::encoded_len(CLAIMS_TAG, claim));
        session.unwrap_or(0) + claim.unwrap_or(0)
    }
}

fn whole_bytes(head: &Resync, told: &[Told]) -> usize {
    head.encoded_len() + told.iter().map(Told::bytes).sum::<usize>()
}

/// In parts of about `bytes_max`, or of one connection that takes more, each with the first of its places. There is always one: that
/// there is nothing to tell is something, too.
fn in_parts(told: Vec<Told>, from: u32, bytes_max: usize) -> Vec<(u32, Vec<Told>)> {
    let mut parts = vec![(from, Vec::new())];
    let mut bytes = 0;
    for told in told {
        bytes += told.bytes();
        match parts.last_mut() {
            Some((_, part)) if part.is_empty() || bytes <= bytes_max => part.push(told),
            _ => {
                bytes = told.bytes();
                parts.push((told.place, vec![told]));
            }
        }
    }
    parts
}

fn served_by(client: &Client, group: u16) -> Option<(&Served, Vec<u32>)> {
    let session = client.session.as_ref()?;
    let served = session.served.as_ref().filter(|served| served.claim.group == group)?;
    let receiving = session.owed.unsettled(AckKind::PubRec).map(|id| u32::from(id.get())).collect();
    // A transient session's own PUBRECs are none of its group's business.
    Some((served, if session.persistent.is_some() { receiving } else { Vec::new() }))
}

fn asked_again(command: &SessionCommand) -> SessionCommand {
    let mut command = command.clone();
    match &mut command {
        SessionCommand::Subscribe(subscribe) => subscribe.again = true,
        SessionCommand::Unsubscribe(unsubscribe) => unsubscribe.again = true,
        _ => {}
    }
    command
}
