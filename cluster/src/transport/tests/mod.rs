//! Whole transports that speak with each other over loopback.

mod bounds;
mod copies;
mod links;
mod proxy;
mod requests;
mod trust;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, unbounded};
use kentongan_proto::peer::Kind;

use super::*;
use crate::FeatureLevels;

/// What should happen has happened by then.
const DEADLINE: Duration = Duration::from_secs(10);

/// What should not happen would have happened by then.
const A_WHILE: Duration = Duration::from_millis(300);

const CLUSTER: ClusterId = ClusterId(0xc1);
const LANE: Kind = Kind(40);

/// Answers every question with itself, and has one checkpoint.
struct Echo;

impl Responder for Echo {
    fn on_question(&self, asked: Asked) {
        let answer = match asked.question {
            Question::Form => Err("no promise was given".to_owned()),
            Question::Promise | Question::Join | Question::Remove | Question::Administer | Question::Status => {
                Ok(asked.body)
            }
        };
        asked.answer.send(answer);
    }

    fn open_snapshot(&self, _: &PeerHello, group: GroupId, checkpoint: u64) -> Result<SnapshotChunks, String> {
        let chunk = |number| Ok(Bytes::from(vec![number; 100_000]));
        match (group, checkpoint) {
            (GroupId(3), 77) => Ok(Box::new((0..50).map(chunk))),
            (GroupId(3), 78) => Ok(Box::new((0..5).map(chunk).chain([Err(io::Error::other("bad sector"))]))),
            _ => Err("there is no such checkpoint".to_owned()),
        }
    }
}

/// A transport and what it told its node.
struct Node {
    transport: Transport,
    events: Receiver<Event>,
    node: NodeId,
    name: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.transport.stop(Duration::ZERO);
    }
}

fn config(number: u64) -> TransportConfig {
    let identity = LocalIdentity {
        cluster: Some(CLUSTER),
        node: NodeId(number),
        name: format!("n{number}"),
        incarnation: Some(Incarnation(100 + number)),
        feature_levels: FeatureLevels { min: 1, max: 1 },
    };
    TransportConfig { backoff_max: Duration::from_millis(200), ..TransportConfig::new(loopback(), identity) }
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn node(number: u64) -> Node {
    start(config(number))
}

fn start(config: TransportConfig) -> Node {
    let (sink, events) = unbounded();
    let (node, name) = (config.identity.node, config.identity.name.clone());
    let transport = Transport::start(config, Arc::new(sink), Arc::new(Echo)).unwrap();
    Node { transport, events, node, name }
}

/// What a node hears of the beginning of a link.
struct Began {
    epoch: LinkEpoch,
    hello: PeerHello,
}

impl Node {
    fn address(&self) -> PeerAddress {
        self.address_behind(self.transport.local_address())
    }

    fn address_behind(&self, address: SocketAddr) -> PeerAddress {
        PeerAddress { node: self.node, name: self.name.clone(), address: address.to_string() }
    }

    fn know(&self, peers: &[&Node]) {
        self.transport.set_peers(peers.iter().map(|peer| peer.address()));
    }

    /// Reads events until one is what is looked for.
    fn find<T>(&self, what: &str, mut look: impl FnMut(Event) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let event =
                self.events.recv_deadline(deadline).unwrap_or_else(|_| panic!("{} never saw {what}", self.name));
            if let Some(found) = look(event) {
                return found;
            }
        }
    }

    fn up(&self, from: &Node, wanted: Class, way: Direction) -> Began {
        self.find(&format!("{way:?} {wanted:?} up"), |event| match event {
            Event::LinkUp { peer, class, direction, epoch, hello }
                if (peer, class, direction) == (from.node, wanted, way) =>
            {
                Some(Began { epoch, hello })
            }
            _ => None,
        })
    }

    fn down(&self, from: &Node, wanted: Class, way: Direction) -> LinkEpoch {
        self.find(&format!("{way:?} {wanted:?} down"), |event| match event {
            Event::LinkDown { peer, class, direction, epoch }
                if (peer, class, direction) == (from.node, wanted, way) =>
            {
                Some(epoch)
            }
            _ => None,
        })
    }

    fn wait_all_up(&self) {
        eventually("all links are up", || {
            self.transport.peers().iter().all(|peer| peer.outgoing.len() == 3 && peer.incoming.len() == 3)
        });
    }

    /// Reads events until both halves of all its links with one peer are up: a link counts as up before that is said.
    fn hear_all_up(&self, peer: &Node) {
        let mut up = Vec::new();
        self.find("all its links", |event| {
            match event {
                Event::LinkUp { peer: of, class, direction, .. } if of == peer.node => up.push((class, direction)),
                Event::LinkDown { peer: of, class, direction, .. } if of == peer.node => {
                    up.retain(|&link| link != (class, direction));
                }
                _ => {}
            }
            (up.len() == 2 * Class::COUNT).then_some(())
        });
    }

    fn send(&self, to: &Node, class: Class, body: impl Into<Bytes>) -> Result<(), SendError> {
        self.transport.send(to.node, class, LANE, body.into())
    }

    /// The numbers that came from one node in one class, until there are so many.
    fn numbers(&self, from: &Node, wanted: Class, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        self.find("all messages", |event| {
            if let Event::Batch(incoming) = event
                && (incoming.from, incoming.class) == (from.node, wanted)
            {
                numbers.extend(incoming.messages.iter().map(|message| number_of(&message.body)));
            }
            (numbers.len() >= count).then_some(())
        });
        numbers
    }

    fn last_error(&self) -> String {
        let mut error = None;
        eventually("a dial failed", || {
            error = self.transport.peers()[0].last_error.clone();
            error.is_some()
        });
        error.unwrap()
    }
}

fn numbered(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

fn number_of(body: &[u8]) -> u64 {
    u64::from_le_bytes(body[..8].try_into().unwrap())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Two nodes with all links up, and no event unread.
fn pair() -> (Node, Node) {
    join(node(1), node(2))
}

fn join(one: Node, two: Node) -> (Node, Node) {
    one.know(&[&two]);
    two.know(&[&one]);
    one.hear_all_up(&two);
    two.hear_all_up(&one);
    (one, two)
}
