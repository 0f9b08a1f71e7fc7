//! The network between nodes: a link for each ordered pair of them and class, as the transport keeps them.
//!
//! Within one life of a link (its epoch) frames arrive in order, all but an unknown end. A link that breaks loses what is
//! under way; either side notices at its own time. So nothing is lost, doubled or reordered but across epochs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kentongan_cluster::pipeline::{Fetched, Peers as RaftPeers};
use kentongan_cluster::transport::{Class, LinkEpoch, PeerAddress};
use kentongan_cluster::{GroupId, NodeId};
use kentongan_proto::peer::Kind;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::peers::links::{FORWARD, MEMBERSHIP, forward_body, raft_body, raft_class};
use crate::peers::wire::Forwarded;
use crate::peers::{PeerFull, Peers};

/// What may be under way on a link. Small, so that links are full now and then.
const LINK_BYTES_MAX: usize = 256 * 1024;

/// Bytes after which what could be said in parts begins another part, by turns of the seeds: small, so that it does. The smallest hold no
/// two names of shared subscriptions.
const PIECE_BYTES: [usize; 4] = [2 * 1024, 8 * 1024, 64 * 1024, 64];

/// Every so many seeds what an arbiter says of its connections goes in parts, and finds no room now and then.
const CUT_RESYNCS_EVERY: u64 = 4;

/// What else a frame of [`Class::Forward`] holds: one thing that cannot be said in parts. The longest is a page of retained messages
/// with the longest message at its end.
const WHOLE_BYTES_MAX: usize = 8 * 1024;

/// What a link takes that has no room for what is long.
const NARROW_BYTES_MAX: usize = 256;

/// How long that lasts once a link has begun, at most.
const NARROW_NS_MAX: u64 = 2_500_000_000;

/// Which link, by its place in [`Network`].
pub(super) type LinkIndex = usize;

/// Something on its way.
struct Frame {
    at_ns: u64,
    kind: Kind,
    body: Bytes,
}

/// One life after the other of the way from one node to another, in one class.
pub(super) struct Link {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) class: Class,
    /// The present life, or the last.
    pub(super) epoch: u64,
    /// Whether the sender believes that it is up.
    pub(super) open: bool,
    /// What it sends now is lost: the link is broken, and it has not noticed.
    pub(super) broken: bool,
    /// The receiver believes that this life of it is up.
    pub(super) heard: Option<u64>,
    /// Until then it has no room for what is long.
    narrow_until_ns: u64,
    /// Somebody has been told to look when the first frame is due.
    scheduled: bool,
    frames: VecDeque<Frame>,
    bytes: usize,
}

struct State {
    nodes: usize,
    /// Who is at each place: another one once a disk was lost.
    ids: Vec<NodeId>,
    random: SmallRng,
    piece_bytes: usize,
    /// Each connection goes alone in what an arbiter says of those that it has.
    cuts_resyncs: bool,
    now_ns: u64,
    links: Vec<Link>,
    /// Frames wait, and nobody was told when they are due.
    fresh: Vec<LinkIndex>,
    /// Links that a node wants broken.
    refused: Vec<LinkIndex>,
    fetches: Vec<Fetch>,
    /// Nodes to which a leader said that they lack what they acknowledged.
    forgetful: Vec<(usize, NodeId, GroupId)>,
    /// Longest additional delay of a frame.
    delay_ns_max: u64,
}

/// A node wants a checkpoint from another.
pub(super) struct Fetch {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) group: GroupId,
    pub(super) fetched: Fetched,
}

/// All links. Clones are the same network.
#[derive(Clone)]
pub(super) struct Network(Arc<Mutex<State>>);

impl std::fmt::Debug for Network {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Network").finish_non_exhaustive()
    }
}

impl Network {
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
        let mut links = Vec::new();
        for from in 0..nodes {
            for to in 0..nodes {
                links.extend(Class::ALL.map(|class| Link {
                    from,
                    to,
                    class,
                    epoch: 0,
                    open: false,
                    broken: true,
                    heard: None,
                    narrow_until_ns: 0,
                    scheduled: false,
                    frames: VecDeque::new(),
                    bytes: 0,
                }));
            }
        }
        Self(Arc::new(Mutex::new(State {
            nodes,
            ids: (1..=nodes as u64).map(NodeId).collect(),
            random: SmallRng::seed_from_u64(seed),
            piece_bytes: PIECE_BYTES[(seed % PIECE_BYTES.len() as u64) as usize],
            cuts_resyncs: seed.is_multiple_of(CUT_RESYNCS_EVERY),
            now_ns: 0,
            links,
            fresh: Vec::new(),
            refused: Vec::new(),
            fetches: Vec::new(),
            forgetful: Vec::new(),
            delay_ns_max: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is at a place.
    pub(super) fn id(&self, host: usize) -> NodeId {
        self.lock().ids[host]
    }

    /// Another node is there from here on.
    pub(super) fn replace(&self, host: usize) {
        let mut state = self.lock();
        let nodes = state.nodes as u64;
        state.ids[host].0 += nodes;
    }

    pub(super) fn set_now(&self, now_ns: u64) {
        self.lock().now_ns = now_ns;
    }

    /// Frames take up to so much longer from here on.
    pub(super) fn set_delay(&self, delay_ns_max: u64) {
        self.lock().delay_ns_max = delay_ns_max;
    }

    /// All links between different nodes.
    pub(super) fn between(&self) -> Vec<LinkIndex> {
        let state = self.lock();
        (0..state.links.len()).filter(|&link| state.links[link].from != state.links[link].to).collect()
    }

    /// Looks at a link, or changes it.
    pub(super) fn with<T>(&self, link: LinkIndex, act: impl FnOnce(&mut Link) -> T) -> T {
        act(&mut self.lock().links[link])
    }

    /// The link breaks: what is under way is lost. `false`: it was broken.
    pub(super) fn break_off(&self, link: LinkIndex) -> bool {
        let link = &mut self.lock().links[link];
        link.frames.clear();
        link.bytes = 0;
        !std::mem::replace(&mut link.broken, true)
    }

    /// A new life of it begins.
    pub(super) fn begin(&self, link: LinkIndex) -> u64 {
        let State { links, random, now_ns, .. } = &mut *self.lock();
        let link = &mut links[link];
        link.epoch += 1;
        link.broken = false;
        // What waited for it is more than it takes at once.
        if link.class == Class::Forward && random.random_ratio(1, 4) {
            link.narrow_until_ns = *now_ns + random.random_range(0..NARROW_NS_MAX);
        }
        link.epoch
    }

    /// Links with frames that nobody was told of, and when their first is due.
    pub(super) fn take_fresh(&self, into: &mut Vec<(LinkIndex, u64)>) {
        let mut state = self.lock();
        while let Some(index) = state.fresh.pop() {
            let link = &mut state.links[index];
            if let Some(frame) = link.frames.front() {
                link.scheduled = true;
                into.push((index, frame.at_ns));
            }
        }
    }

    pub(super) fn take_refused(&self) -> Vec<LinkIndex> {
        std::mem::take(&mut self.lock().refused)
    }

    pub(super) fn take_fetches(&self) -> Vec<Fetch> {
        std::mem::take(&mut self.lock().fetches)
    }

    /// A node that lacks what it acknowledged, to whom, and in which group.
    pub(super) fn take_forgetful(&self) -> Option<(usize, NodeId, GroupId)> {
        self.lock().forgetful.pop()
    }

    /// The frames that are due, and when the next one is. The receiver has heard that the link is up.
    pub(super) fn receive(&self, link: LinkIndex, into: &mut Vec<(Kind, Bytes)>) -> Option<u64> {
        let mut state = self.lock();
        let now_ns = state.now_ns;
        let link = &mut state.links[link];
        while let Some(frame) = link.frames.pop_front_if(|frame| frame.at_ns <= now_ns) {
            link.bytes -= frame.body.len();
            into.push((frame.kind, frame.body));
        }
        let next = link.frames.front().map(|frame| frame.at_ns);
        link.scheduled = next.is_some();
        next
    }

    /// Nobody looks at it any more: when it can be received from again, it is as fresh.
    pub(super) fn hold(&self, link: LinkIndex) {
        self.lock().links[link].scheduled = false;
    }

    /// Frames may be received again.
    pub(super) fn release(&self, index: LinkIndex) {
        let mut state = self.lock();
        let link = &state.links[index];
        if !link.scheduled && !link.frames.is_empty() {
            state.fresh.push(index);
        }
    }

    fn send(&self, from: usize, to: NodeId, class: Class, kind: Kind, body: Bytes) -> Result<(), SendRefused> {
        self.send_over(from, to, class, kind, body, None).map(drop)
    }

    /// Over this life of the link, if one is given. Returns over which.
    fn send_over(
        &self,
        from: usize,
        to: NodeId,
        class: Class,
        kind: Kind,
        body: Bytes,
        over: Option<LinkEpoch>,
    ) -> Result<LinkEpoch, SendRefused> {
        let mut state = self.lock();
        let State { nodes, ids, random, piece_bytes, now_ns, links, fresh, delay_ns_max, .. } = &mut *state;
        // The transport would drop it, each time that it is tried.
        assert!(
            class != Class::Forward || body.len() <= 2 * *piece_bytes + WHOLE_BYTES_MAX,
            "{} bytes for another node, which no frame can hold",
            body.len()
        );
        let Some(to) = ids.iter().position(|&id| id == to).filter(|&to| to != from) else {
            return Err(SendRefused::Down);
        };
        let index = (from * *nodes + to) * Class::ALL.len() + class as usize;
        let link = &mut links[index];
        let epoch = LinkEpoch(link.epoch);
        if !link.open || over.is_some_and(|over| over != epoch) {
            return Err(SendRefused::Down);
        }
        if link.broken {
            return Ok(epoch);
        }
        let is_narrow = body.len() > NARROW_BYTES_MAX && *now_ns < link.narrow_until_ns;
        if is_narrow || link.bytes + body.len() > LINK_BYTES_MAX {
            return Err(SendRefused::Full(index));
        }
        let mut delay_ns = random.random_range(30_000..400_000);
        if random.random_ratio(1, 64) {
            delay_ns *= 20;
        }
        if *delay_ns_max > 0 {
            delay_ns += random.random_range(0..*delay_ns_max);
        }
        let at_ns = (*now_ns + delay_ns).max(link.frames.back().map_or(0, |last| last.at_ns));
        link.bytes += body.len();
        link.frames.push_back(Frame { at_ns, kind, body });
        if !link.scheduled && link.frames.len() == 1 {
            fresh.push(index);
        }
        Ok(epoch)
    }
}

enum SendRefused {
    Down,
    Full(LinkIndex),
}

/// The network as one node has it.
#[derive(Debug, Clone)]
pub(super) struct SimLinks {
    pub(super) node: usize,
    pub(super) network: Network,
}

impl Peers for SimLinks {
    fn forward(&self, node: u64, forwarded: Forwarded) -> Result<(), PeerFull> {
        if matches!(forwarded, Forwarded::ResyncPart(_)) && self.network.lock().random.random_ratio(1, 8) {
            return Err(PeerFull);
        }
        let body = forward_body(forwarded);
        self.network.send(self.node, NodeId(node), Class::Forward, FORWARD, body).map_err(|_| PeerFull)
    }

    fn forward_over(
        &self,
        node: u64,
        over: Option<LinkEpoch>,
        forwarded: Forwarded,
    ) -> Result<Option<LinkEpoch>, PeerFull> {
        let body = forward_body(forwarded);
        let sent = self.network.send_over(self.node, NodeId(node), Class::Forward, FORWARD, body, over);
        sent.map(Some).map_err(|_| PeerFull)
    }

    fn piece_bytes(&self) -> usize {
        self.network.lock().piece_bytes
    }

    fn whole_bytes(&self) -> usize {
        if self.network.lock().cuts_resyncs { 1 } else { WHOLE_BYTES_MAX }
    }

    fn control(&self, node: u64, message: Bytes) {
        let sent = self.network.send(self.node, NodeId(node), Class::Control, MEMBERSHIP, message);
        if let Err(SendRefused::Full(link)) = sent {
            self.network.lock().refused.push(link);
        }
    }

    // Everybody can reach everybody: who is a member is asked where a link begins.
    fn members(&self, _: Vec<PeerAddress>) {}
}

impl RaftPeers for SimLinks {
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes, carries_entries: bool) {
        // Raft sends again what is lost.
        let body = raft_body(group, &message);
        let _ = self.network.send(self.node, to, raft_class(carries_entries), Kind::RAFT, body);
    }

    fn fetch_snapshot(&mut self, from: NodeId, group: GroupId, fetched: Fetched) {
        let mut state = self.network.lock();
        match state.ids.iter().position(|&id| id == from) {
            Some(from) => state.fetches.push(Fetch { from, to: self.node, group, fetched }),
            None => {
                drop(state);
                fetched(None);
            }
        }
    }

    fn forgot(&mut self, from: NodeId, group: GroupId) {
        self.network.lock().forgetful.push((self.node, from, group));
    }
}
