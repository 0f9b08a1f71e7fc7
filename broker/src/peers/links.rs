//! The way to the other nodes over [`Transport`], and what comes that way.
//!
//! Raft messages with entries have a class of their own, so that heartbeats, leases and interest never wait behind them;
//! lanes and pushes have the third.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kentongan_cluster::interest::LinkId;
use kentongan_cluster::pipeline::{FetchError, Fetched, Peers as RaftPeers, together};
use kentongan_cluster::transport::{
    Class, ClusterId, Direction, Event, Incoming, LinkEpoch, PeerAddress, SendError, Sink, Transport,
};
use kentongan_cluster::{GroupId, NodeId, PipelineHandle};
use kentongan_proto::peer::Kind;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::wire::{Forward, Forwarded, Messages};
use super::{PeerFull, Peers};
use crate::ending::{CopyEnd, Ending};
use crate::groups::incoming;
use crate::later;
use crate::replicated::Query;
use crate::router::Shared;

/// A message of [`kentongan_cluster::membership`].
pub(crate) const MEMBERSHIP: Kind = Kind(2);

/// A [`Forward`].
pub(crate) const FORWARD: Kind = Kind(3);

/// As it crosses the wire.
#[cfg(any(test, feature = "simulation"))]
pub(crate) fn forward_body(forwarded: Forwarded) -> Bytes {
    match forward_pieces(forwarded) {
        [whole, rest] if rest.is_empty() => whole,
        pieces => pieces.concat().into(),
    }
}

/// The same in two pieces, the second of which is what a lane keeps until it is answered, and so is not copied here.
fn forward_pieces(forwarded: Forwarded) -> [Bytes; 2] {
    match forwarded {
        Forwarded::Messages(messages) if !messages.payload.is_empty() => messages_pieces(messages),
        other => [later::sent(Forward { forwarded: Some(other) }.encode_to_vec().into()), Bytes::new()],
    }
}

/// Fields may stand in any order, so `payload` is the last.
fn messages_pieces(mut messages: Messages) -> [Bytes; 2] {
    const FORWARDED_MESSAGES_TAG: u32 = 6;
    const MESSAGES_PAYLOAD_TAG: u32 = 8;
    let payload = std::mem::take(&mut messages.payload);
    let payload_field = key_len(MESSAGES_PAYLOAD_TAG) + encoded_len_varint(payload.len() as u64) + payload.len();
    let length = messages.encoded_len() + payload_field;
    let mut head = BytesMut::with_capacity(length - payload.len() + 16);
    encode_key(FORWARDED_MESSAGES_TAG, WireType::LengthDelimited, &mut head);
    encode_varint(length as u64, &mut head);
    // Cannot fail: a `BytesMut` grows.
    let _ = messages.encode(&mut head);
    encode_key(MESSAGES_PAYLOAD_TAG, WireType::LengthDelimited, &mut head);
    encode_varint(payload.len() as u64, &mut head);
    [head.freeze(), later::sent(payload)]
}

/// A Raft message as it crosses the wire.
pub(crate) fn raft_body(group: GroupId, message: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(2 + message.len());
    body.put_u16(group.0);
    body.put_slice(message);
    body.freeze()
}

/// By which a Raft message goes.
pub(crate) fn raft_class(carries_entries: bool) -> Class {
    if carries_entries { Class::Append } else { Class::Control }
}

/// What arbiters and groups say to other nodes.
#[derive(Debug, Clone)]
pub struct Links(pub Transport);

impl Peers for Links {
    fn forward(&self, node: u64, forwarded: Forwarded) -> Result<(), PeerFull> {
        self.forward_over(node, None, forwarded).map(drop)
    }

    fn forward_over(
        &self,
        node: u64,
        over: Option<LinkEpoch>,
        forwarded: Forwarded,
    ) -> Result<Option<LinkEpoch>, PeerFull> {
        let node = NodeId::new(node).ok_or(PeerFull)?;
        match self.0.send_pieces(node, Class::Forward, FORWARD, forward_pieces(forwarded), over) {
            Ok(epoch) => Ok(Some(epoch)),
            Err(SendError::TooLarge) => {
                tracing::error!(%node, "what this node has for another is longer than a frame may be; it is dropped");
                Ok(None)
            }
            Err(SendError::Full | SendError::Down | SendError::UnknownPeer | SendError::Stopping) => Err(PeerFull),
        }
    }

    fn control(&self, node: u64, message: Bytes) {
        let Some(node) = NodeId::new(node) else {
            return;
        };
        match self.0.send(node, Class::Control, MEMBERSHIP, message) {
            // Where there is no link, its next one begins with everything anew.
            Ok(()) | Err(SendError::Down | SendError::Stopping | SendError::UnknownPeer) => {}
            Err(error @ (SendError::Full | SendError::TooLarge)) => {
                tracing::warn!(%node, %error, "a control message found no room; the link is made anew");
                self.0.break_link(node, Class::Control);
            }
        }
    }

    fn admission(&self, feature_level: u32, removed: BTreeSet<NodeId>) {
        self.0.set_feature_level(feature_level);
        self.0.set_removed(removed);
    }

    fn succeeded(&self, clusters: Vec<ClusterId>) {
        self.0.set_succeeded(clusters);
    }

    fn members(&self, members: Vec<PeerAddress>) {
        self.0.set_peers(members);
    }
}

/// What Raft says to other nodes: what all groups have to say at once wakes each link once.
#[derive(Debug)]
pub struct RaftLinks {
    transport: Transport,
    gathered: BTreeMap<(NodeId, Class), Vec<Bytes>>,
    copy_end: Arc<CopyEnd>,
    /// Whoever fetches a snapshot has this.
    turn: Arc<Mutex<()>>,
}

impl RaftLinks {
    /// By `transport`.
    #[must_use]
    pub fn new(transport: Transport, copy_end: Arc<CopyEnd>) -> Self {
        Self { transport, gathered: BTreeMap::new(), copy_end, turn: Arc::default() }
    }
}

impl RaftPeers for RaftLinks {
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes, carries_entries: bool) {
        let class = raft_class(carries_entries);
        self.gathered.entry((to, class)).or_default().push(raft_body(group, &message));
    }

    fn flush(&mut self) {
        for (&(to, class), bodies) in self.gathered.iter_mut().filter(|(_, bodies)| !bodies.is_empty()) {
            // Raft sends again what is lost.
            self.transport.send_all(to, class, Kind::RAFT, bodies.drain(..));
        }
    }

    fn fetch_snapshot(&mut self, from: NodeId, group: GroupId, fetched: Fetched) {
        let transport = self.transport.clone();
        // Each takes room on the disk, and what it is made into takes memory, so those of several groups are fetched one after the other.
        // The directory is small, and nothing goes on without it.
        let turn = (group != GroupId::DIRECTORY).then(|| Arc::clone(&self.turn));
        let (hand_over, handed_over) = mpsc::sync_channel::<Fetched>(1);
        let fetch = move || {
            let Ok(fetched) = handed_over.recv() else {
                return;
            };
            let _turn = turn.as_ref().map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
            let chunks = transport.fetch_snapshot(from, group, 0);
            fetched(Some(&mut chunks.map(|chunk| chunk.map_err(FetchError::from))));
        };
        match std::thread::Builder::new().name("snapshot".into()).spawn(fetch) {
            // It waits for just this.
            Ok(_) => drop(hand_over.send(fetched)),
            Err(error) => {
                tracing::error!(%error, "the system gives no thread to fetch a snapshot; it is tried again");
                fetched(None);
            }
        }
    }

    fn forgot(&mut self, from: NodeId, group: GroupId) {
        tracing::error!(%from, %group, "a leader counts on entries that this node has acknowledged and does not have");
        self.copy_end.end(Ending::Forgot);
    }
}

/// The newest links of a node in one class, each way.
#[derive(Debug, Default)]
struct Ways {
    incoming: Option<LinkEpoch>,
    outgoing: Option<LinkEpoch>,
}

#[derive(Debug, Default)]
struct Known {
    control: BTreeMap<NodeId, Ways>,
    links: u64,
}

/// Takes what the transport hears.
#[derive(Debug, Default)]
pub struct LinkSink {
    started: OnceLock<(Arc<Shared>, PipelineHandle<Query>)>,
    known: Mutex<Known>,
    copy_end: Option<Arc<CopyEnd>>,
}

impl LinkSink {
    /// Of a node that ends this way if others say that its data directory is a copy.
    #[must_use]
    pub fn new(copy_end: Arc<CopyEnd>) -> Self {
        Self { copy_end: Some(copy_end), ..Self::default() }
    }

    /// The node is there: before this, nobody speaks with it.
    pub fn start(&self, shared: Arc<Shared>, pipeline: PipelineHandle<Query>) {
        if self.started.set((shared, pipeline)).is_err() {
            unreachable!("a node starts once");
        }
    }

    fn on_control(&self, pipeline: &PipelineHandle<Query>, node: NodeId, change: impl FnOnce(&mut Ways)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let ways = known.control.entry(node).or_default();
        change(ways);
        // Whichever way changed, what was said over it may be lost, so both begin anew. What comes is heard as soon as it
        // can come: the other side may know of both before this one does.
        let up = ways.incoming.is_some();
        known.links += 1;
        let link = up.then_some(LinkId(known.links));
        pipeline.notify(Query::ControlLink { node, link });
    }

    /// A link began or ended.
    pub(crate) fn on_link(&self, peer: NodeId, class: Class, direction: Direction, epoch: LinkEpoch, up: bool) {
        let Some((shared, pipeline)) = self.started.get() else {
            return;
        };
        match class {
            Class::Control => self.on_control(pipeline, peer, |ways| {
                let way = if direction == Direction::Incoming { &mut ways.incoming } else { &mut ways.outgoing };
                if up {
                    *way = Some(epoch);
                } else if *way == Some(epoch) {
                    *way = None;
                }
                pipeline.connected(peer, ways.incoming.map(LinkEpoch::process));
            }),
            Class::Append if !up && direction == Direction::Outgoing => pipeline.unreachable(peer),
            Class::Append => {}
            // Once it is there again: what is sent again before that is lost as well.
            Class::Forward if up => {
                pipeline.notify(Query::LinkBroken(peer));
                if let Some(cluster) = &shared.cluster {
                    cluster.on_link_broken(shared, peer.get());
                }
            }
            Class::Forward => {}
        }
    }

    fn on_batch(&self, batch: Incoming) {
        let Some((_, pipeline)) = self.started.get() else {
            return;
        };
        together(|| {
            let mut raft = false;
            for message in &batch.messages {
                raft |= message.kind == Kind::RAFT;
                self.on_message(batch.from, message.kind, message.body);
            }
            if raft {
                pipeline.release(batch.credit);
            }
        });
    }

    /// One message of a batch.
    pub(crate) fn on_message(&self, from: NodeId, kind: Kind, mut body: Bytes) {
        let Some((shared, pipeline)) = self.started.get() else {
            return;
        };
        match kind {
            Kind::RAFT if body.len() >= 2 => {
                let group = GroupId(body.get_u16());
                pipeline.step(from, group, body);
            }
            // What is kept of it is small; a copy lets the rest of the batch go.
            MEMBERSHIP => {
                let message = Bytes::copy_from_slice(&body);
                pipeline.notify(Query::Control { node: from, message });
            }
            FORWARD => match Forward::decode(body) {
                Ok(Forward { forwarded: Some(forwarded) }) => incoming::take(shared, from.get(), forwarded),
                Ok(_) => {}
                Err(error) => tracing::warn!(%from, %error, "what a node forwarded cannot be read; it is dropped"),
            },
            kind => tracing::debug!(%from, ?kind, "a message of a kind that this version does not know"),
        }
    }
}

impl Sink for LinkSink {
    fn on_event(&self, event: Event) {
        match event {
            Event::LinkUp { peer, class, direction, epoch, .. } => self.on_link(peer, class, direction, epoch, true),
            Event::LinkDown { peer, class, direction, epoch } => self.on_link(peer, class, direction, epoch, false),
            Event::Batch(batch) => self.on_batch(batch),
            Event::Removed { by } => {
                if let Some((_, pipeline)) = self.started.get() {
                    pipeline.notify(Query::ToldRemoved(by));
                }
            }
            Event::Copied { by, how } => {
                if let Some(copy_end) = &self.copy_end {
                    tracing::error!(%by, "a member says that this node has not its newest data directory");
                    copy_end.end(Ending::Copied(how));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use crossbeam::channel::{Receiver, Sender, unbounded};
    use kentongan_cluster::FeatureLevels;
    use kentongan_cluster::data_dir::DataDir;
    use kentongan_cluster::pipeline::FetchedChunks;
    use kentongan_cluster::transport::{Asked, LocalIdentity, PeerHello, Responder, SnapshotChunks, TransportConfig};
    use proptest::prelude::*;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Says which group is asked for, and sends nothing of it before it is told to.
    struct Keeper {
        opened: Sender<GroupId>,
        go_on: Receiver<()>,
    }

    impl Responder for Keeper {
        fn on_question(&self, _: Asked) {}

        fn open_snapshot(&self, _: &PeerHello, group: GroupId, _: u64) -> Result<SnapshotChunks, String> {
            let _ = self.opened.send(group);
            let go_on = self.go_on.clone();
            let waits = group != GroupId::DIRECTORY;
            Ok(Box::new(std::iter::from_fn(move || {
                if waits {
                    let _ = go_on.recv_timeout(DEADLINE);
                }
                None
            })))
        }
    }

    fn transport(node: u64, keeper: Keeper) -> Transport {
        let identity = LocalIdentity {
            cluster: Some(ClusterId(1)),
            node: NodeId(node),
            name: format!("n{node}"),
            incarnation: None,
            feature_levels: FeatureLevels { min: 1, max: 1 },
        };
        let config = TransportConfig::new((Ipv4Addr::LOCALHOST, 0).into(), identity);
        Transport::start(config, Arc::new(LinkSink::default()), Arc::new(keeper)).expect("a transport")
    }

    fn know(one: &Transport, number: u64, other: &Transport) {
        let (node, address) = (NodeId(number), other.local_address().to_string());
        one.set_peers([PeerAddress { node, name: format!("n{number}"), address }]);
    }

    /// What a disk that was replaced costs in memory is for one group, however many there are. Nothing waits for them but each other.
    #[test]
    fn snapshots_are_fetched_one_after_the_other_and_the_directory_beside_them() {
        let ((opened, openings), (goes_on, go_on)) = (unbounded(), unbounded());
        let source = transport(2, Keeper { opened: opened.clone(), go_on: go_on.clone() });
        let here = transport(1, Keeper { opened, go_on });
        know(&here, 2, &source);
        know(&source, 1, &here);
        let directory = tempfile::tempdir().expect("a directory");
        let mark = DataDir::open(directory.path()).expect("a data directory").copy_mark();
        let mut links = RaftLinks::new(here.clone(), Arc::new(CopyEnd::new(mark, |_| {})));
        let (ended, ends) = unbounded();
        let mut fetch = |group: GroupId| {
            let ended = ended.clone();
            let fetched = move |chunks: Option<FetchedChunks<'_>>| {
                chunks.into_iter().flatten().for_each(drop);
                let _ = ended.send(group);
            };
            links.fetch_snapshot(NodeId(2), group, Box::new(fetched));
        };

        fetch(GroupId(1));
        fetch(GroupId(2));
        let first = openings.recv_timeout(DEADLINE).expect("one of them");
        fetch(GroupId::DIRECTORY);
        assert_eq!(openings.recv_timeout(DEADLINE), Ok(GroupId::DIRECTORY));
        assert_eq!(ends.recv_timeout(DEADLINE), Ok(GroupId::DIRECTORY));
        assert!(openings.is_empty(), "the other waits");

        goes_on.send(()).expect("it is waited for");
        assert_eq!(ends.recv_timeout(DEADLINE), Ok(first));
        let second = openings.recv_timeout(DEADLINE).expect("the other");
        goes_on.send(()).expect("it is waited for");
        assert_eq!(ends.recv_timeout(DEADLINE), Ok(second));
        assert_eq!(BTreeSet::from([first, second]), BTreeSet::from([GroupId(1), GroupId(2)]));
        [here, source].iter().for_each(|transport| transport.stop(Duration::ZERO));
    }

    proptest! {
        /// What is written by hand says the same as the message that it stands for.
        #[test]
        fn a_batch_in_two_pieces_is_read_as_it_was(
            lane: u32, incarnation: u64, target_incarnation: u64, previous: u64, last: u64, items: u32, round: u32,
            payload in proptest::collection::vec(any::<u8>(), 0..300), patient: bool, clock_ms: u64,
        ) {
            let payload = Bytes::from(payload);
            let messages = Messages {
                lane, incarnation, target_incarnation, previous, last, items, round, payload: payload.clone(), patient,
                clock_ms,
            };
            let pieces = forward_pieces(Forwarded::Messages(messages.clone()));
            prop_assert!(payload.is_empty() || pieces[1].as_ptr() == payload.as_ptr(), "not copied");
            let read = Forward::decode(forward_body(Forwarded::Messages(messages.clone()))).unwrap();
            prop_assert_eq!(read.forwarded, Some(Forwarded::Messages(messages)));
        }
    }
}
