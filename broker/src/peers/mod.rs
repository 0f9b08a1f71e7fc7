//! The other nodes, as arbiters and groups see them.

use std::collections::BTreeSet;
use std::fmt;

use bytes::{Bytes, BytesMut};
use kentongan_cluster::NodeId;
use kentongan_cluster::transport::{ClusterId, FRAME_BYTES_MAX, LinkEpoch, PeerAddress};

pub mod administration;
pub mod backup;
pub mod links;
pub mod plain;
pub mod status;
pub mod wire;

/// There is no room on the way to that node now. Whoever wanted to say something keeps it, and says it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerFull;

/// How much is said to a node at once, in bytes, where it could be said in parts: far less than a frame holds, and than a queue
/// takes.
pub const PIECE_BYTES: usize = 1024 * 1024;

/// Size of the longest packet that goes to other nodes, in bytes. A frame has room for one at the end of a page of retained messages,
/// and for that at the end of a lane's batch, with what is said of them there.
pub const PACKET_BYTES_MAX: u32 = (FRAME_BYTES_MAX - 4 * PIECE_BYTES) as u32;

/// How much can be said to a node at once, in bytes: a frame, less what is written around it.
pub const WHOLE_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;

/// How long what goes in a lane may be, in bytes: a frame has room for it at the end of a batch.
pub const ITEM_BYTES_MAX: usize = WHOLE_BYTES_MAX - 2 * PIECE_BYTES;

/// Writes what goes in a lane, or, if no frame could hold it, what keeps its place: it would be sent for ever, and whatever stands behind
/// it would wait for that. Returns how long it would have been then.
pub(crate) fn write_item(
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut),
    keep_place: impl FnOnce(&mut BytesMut),
) -> Option<usize> {
    let before = out.len();
    write(out);
    let bytes = out.len() - before;
    if bytes <= ITEM_BYTES_MAX {
        return None;
    }
    out.truncate(before);
    keep_place(out);
    Some(bytes)
}

/// As they are, in parts of `bytes_max`, or of one item that is longer. All that a turn has for a node, or for a group, may be more
/// than a frame holds: the windows of one session, or a message for thousands of them.
pub(crate) fn in_pieces<M: prost::Message>(items: Vec<M>, bytes_max: usize) -> impl Iterator<Item = Vec<M>> {
    let is_one = items.iter().map(prost::Message::encoded_len).sum::<usize>() <= bytes_max;
    let (mut whole, items) = if is_one { (Some(items), Vec::new()) } else { (None, items) };
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(move || {
        if let Some(whole) = whole.take().filter(|whole| !whole.is_empty()) {
            return Some(whole);
        }
        let mut piece = vec![items.next()?];
        let mut bytes = piece[0].encoded_len();
        while let Some(item) = items.next_if(|item| {
            bytes += item.encoded_len();
            bytes <= bytes_max
        }) {
            piece.push(item);
        }
        Some(piece)
    })
}

/// The way to the other nodes. Never blocks.
pub trait Peers: Send + Sync + fmt::Debug {
    /// Says something to `node`. What was said may still be lost with the link. What no frame can hold is lost at once, and
    /// counted: it would find no room later either.
    ///
    /// # Errors
    /// No room, or no link.
    fn forward(&self, node: u64, forwarded: wire::Forwarded) -> Result<(), PeerFull>;

    /// The same of something that must stand behind what went over one life of the link: it goes over that, or there is no room.
    /// Returns the life over which it goes; `None` where links have none, or if no frame can hold it.
    ///
    /// # Errors
    /// No room, no link, or another one than `over`.
    fn forward_over(
        &self,
        node: u64,
        _over: Option<LinkEpoch>,
        forwarded: wire::Forwarded,
    ) -> Result<Option<LinkEpoch>, PeerFull> {
        self.forward(node, forwarded).map(|()| None)
    }

    /// Bytes after which what could be said in parts begins another part.
    fn piece_bytes(&self) -> usize {
        PIECE_BYTES
    }

    /// Bytes up to which something must go as a whole, because nodes of versions before know of no parts of it.
    fn whole_bytes(&self) -> usize {
        WHOLE_BYTES_MAX
    }

    /// Says something of membership to `node`. It arrives, in order, or the link breaks.
    fn control(&self, node: u64, message: Bytes);

    /// From here on these are the nodes that there are. Those that were linked with and are not among them are no more.
    fn members(&self, members: Vec<PeerAddress>);

    /// What the cluster uses, and who was a member once: by both, others are refused from here on.
    fn admission(&self, _feature_level: u32, _removed: BTreeSet<NodeId>) {}
    /// The cluster has taken the place of these: their nodes are told so.
    fn succeeded(&self, _: Vec<ClusterId>) {}
}

/// Nobody takes anything.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct NoPeers;

#[cfg(test)]
impl Peers for NoPeers {
    fn control(&self, _: u64, _: Bytes) {}

    fn forward(&self, _: u64, _: wire::Forwarded) -> Result<(), PeerFull> {
        Err(PeerFull)
    }

    fn members(&self, _: Vec<PeerAddress>) {}
}
