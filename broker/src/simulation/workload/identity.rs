//! A Client Identifier, and the client's part of its session: what its clients, which take it from each other, share.

use std::collections::BTreeSet;
use std::sync::Arc;

use kentongan_history::{Publish, Symbol};
use kentongan_proto::mqtt::PacketId;

use super::connection::Link;
use super::plan::Character;

/// QoS 1 and 2 messages that one client has unacknowledged at a time.
const UNACKNOWLEDGED_MAX: usize = 12;

/// Packet Identifiers come round often, so that one that is used too early shows.
const PACKET_ID_MAX: u16 = 60;

/// A message of QoS 1 or 2 whose handshake is not over.
#[derive(Debug, Clone)]
pub(super) struct Unacknowledged {
    pub(super) packet_id: PacketId,
    pub(super) publish: Publish,
    pub(super) padding: usize,
    /// PUBREL was sent.
    pub(super) released: bool,
}

/// One Client Identifier.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) name: Arc<str>,
    pub(super) symbol: Symbol,
    pub(super) character: Character,
    /// Its clients.
    pub(super) clients: std::ops::Range<usize>,
    /// The connection of its latest CONNECT.
    pub(super) current: Option<Link>,
    /// How many there were.
    pub(super) connections: u32,
    next_packet_id: u16,
    pub(super) unacknowledged: Vec<Unacknowledged>,
    /// Subscription Identifiers that it ever gave, each with its filter.
    pub(super) identifiers: BTreeSet<(u32, &'static str)>,
}

impl Identity {
    pub(super) fn new(name: Arc<str>, symbol: Symbol, character: Character, clients: std::ops::Range<usize>) -> Self {
        Self {
            name,
            symbol,
            character,
            clients,
            current: None,
            connections: 0,
            next_packet_id: 0,
            unacknowledged: Vec::new(),
            identifiers: BTreeSet::new(),
        }
    }

    /// One that is not in use, as far as any of its clients knows.
    pub(super) fn packet_id(&mut self) -> PacketId {
        loop {
            self.next_packet_id = self.next_packet_id % PACKET_ID_MAX + 1;
            let packet_id = PacketId::MIN.saturating_add(self.next_packet_id - 1);
            if self.unacknowledged.iter().all(|one| one.packet_id != packet_id) {
                return packet_id;
            }
        }
    }

    pub(super) fn may_publish(&self) -> bool {
        self.unacknowledged.len() < UNACKNOWLEDGED_MAX
    }

    pub(super) fn forget(&mut self, packet_id: PacketId) {
        self.unacknowledged.retain(|one| one.packet_id != packet_id);
    }

    pub(super) fn release(&mut self, packet_id: PacketId) {
        for one in self.unacknowledged.iter_mut().filter(|one| one.packet_id == packet_id) {
            one.released = true;
        }
    }
}
