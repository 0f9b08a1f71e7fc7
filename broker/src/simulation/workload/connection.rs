//! A client's end of one connection: the stream, what waits to be written to it, and what was read and is no packet yet.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use kentongan_history::{Action, ClosedBy};

use crate::connection::MemoryStream;

/// Where a client is with its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It has none.
    Closed,
    /// It asked for one.
    Opening,
    /// CONNECT is sent.
    Connecting,
    /// CONNACK came.
    Connected,
    /// It has said all that it will say, and waits for the end.
    Leaving,
}

/// One of a client's connections: what is due for another is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) client: usize,
    pub(super) number: u32,
}

/// An acknowledgement that a client will send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owed {
    pub(super) due_ns: u64,
    pub(super) kind: kentongan_proto::mqtt::codec::AckKind,
    pub(super) packet_id: kentongan_proto::mqtt::PacketId,
}

/// A client, and the connection that it has or had last.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) identity: usize,
    pub(super) link: Link,
    pub(super) node: usize,
    pub(super) phase: Phase,
    pub(super) stream: Option<MemoryStream>,
    pub(super) outgoing: Outgoing,
    pub(super) unparsed: Vec<u8>,
    /// In their order [MQTT-4.6.0-2].
    pub(super) owed: VecDeque<Owed>,
    /// It sends nothing more, and its acknowledgements least of all.
    pub(super) is_silent: bool,
    /// Until then nothing is read.
    pub(super) reads_again_ns: u64,
    /// SUBSCRIBEs and UNSUBSCRIBEs without an answer.
    pub(super) requests_open: u32,
    /// Topic Aliases that the server takes.
    pub(super) alias_maximum: u16,
    /// The topics that the client gave one, in the order of their numbers, from 1 on.
    pub(super) aliases: Vec<String>,
    /// Those that the server gave.
    pub(super) aliases_of_server: BTreeMap<u16, String>,
}

impl Connection {
    pub(super) fn new(client: usize, identity: usize) -> Self {
        Self {
            identity,
            link: Link { client, number: 0 },
            node: 0,
            phase: Phase::Closed,
            stream: None,
            outgoing: Outgoing::default(),
            unparsed: Vec::new(),
            owed: VecDeque::new(),
            is_silent: false,
            reads_again_ns: 0,
            requests_open: 0,
            alias_maximum: 0,
            aliases: Vec::new(),
            aliases_of_server: BTreeMap::new(),
        }
    }

    /// Begins anew, for connection `number` of the Client Identifier.
    pub(super) fn begin(&mut self, number: u32, node: usize) {
        let Self { identity, link: Link { client, .. }, .. } = *self;
        let link = Link { client, number };
        *self = Self { link, node, phase: Phase::Opening, ..Self::new(client, identity) };
    }

    /// Whether there is nothing to do before the connection comes to rest.
    pub(super) fn is_quiet(&self) -> bool {
        self.owed.is_empty() && self.requests_open == 0 && self.outgoing.is_empty()
    }

    /// Reads what is there into `unparsed`. The end, if it has come.
    pub(super) fn read(&mut self) -> Option<ClosedBy> {
        let stream = self.stream.as_ref()?;
        let mut buffer = [0; 2048];
        loop {
            match stream.try_read(&mut buffer) {
                Ok(0) => return Some(ClosedBy::Server),
                Ok(count) => self.unparsed.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => return Some(ClosedBy::Network),
            }
        }
    }
}

/// Packets that wait for room in the stream. Each is recorded when its first byte goes.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
    /// Where in `bytes` each one begins, and what the history says of it.
    packets: VecDeque<(usize, Option<Action>)>,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a packet that `encode` appends.
    pub(super) fn push(&mut self, action: Option<Action>, encode: impl FnOnce(&mut Vec<u8>)) {
        self.packets.push_back((self.bytes.len(), action));
        encode(&mut self.bytes);
    }

    /// Writes what there is room for; calls `record` for each packet that has begun to leave.
    pub(super) fn write(&mut self, stream: &MemoryStream, mut record: impl FnMut(Action)) {
        while self.written < self.bytes.len() {
            // A stream that is of no more use says so to whoever reads it.
            let Ok(count) = stream.try_write(&self.bytes[self.written..]) else {
                return;
            };
            self.written += count;
            while self.packets.front().is_some_and(|(begins, _)| *begins < self.written) {
                if let Some((_, Some(action))) = self.packets.pop_front() {
                    record(action);
                }
            }
        }
        self.bytes.clear();
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ping(packet_id: u16) -> Option<Action> {
        Some(Action::PubAckSent(kentongan_history::Answer { packet_id, reason: 0 }))
    }

    #[test]
    fn a_packet_is_recorded_when_its_first_byte_goes() {
        let (here, there) = MemoryStream::pair(4);
        let mut outgoing = Outgoing::default();
        for (packet_id, bytes) in [(1, b"abc"), (2, b"def"), (3, b"ghi")] {
            outgoing.push(ping(packet_id), |out| out.extend_from_slice(bytes));
        }
        let mut recorded = Vec::new();
        let mut write = |outgoing: &mut Outgoing| {
            recorded.clear();
            outgoing.write(&here, |action| recorded.push(Some(action)));
            recorded.clone()
        };
        assert_eq!(write(&mut outgoing), [ping(1), ping(2)], "one whole packet, and a byte of the next");
        assert_eq!(write(&mut outgoing), [], "no room");
        let mut buffer = [0; 8];
        assert_eq!(there.try_read(&mut buffer).expect("they are there"), 4);
        assert_eq!(write(&mut outgoing), [ping(3)]);
        assert!(!outgoing.is_empty());
        drop(there);
        assert_eq!(write(&mut outgoing), [], "the rest never leaves");
    }
}
