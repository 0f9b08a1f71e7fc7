//! A checkpoint on its way to another node: a stream of bytes, cut into chunks.
//!
//! First what it is the state after, then every pair with its lengths before it. Chunks end anywhere: one value may be
//! longer than a frame.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Pair, PairIter, StateError, StateReader, base_bytes, base_key, parse_base};
use crate::group::CheckpointBase;
use crate::identity::GroupId;

/// Long enough to be cheap, short enough to leave others their turn.
const CHUNK_BYTES: usize = 256 * 1024;

/// Longest key or base that is believed; no honest node comes near.
const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// Longest value that is believed: that of the largest message that MQTT has, with what stands around it.
const VALUE_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Why what came is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotStreamError<E> {
    /// It broke off.
    #[error(transparent)]
    Stream(E),
    /// It is not what a node sends.
    #[error("the checkpoint that came is not what this program sends: {0}")]
    Malformed(&'static str),
}

/// The newest checkpoint of a group, as chunks.
///
/// # Errors
/// There is none, or the store failed.
pub fn chunks(
    reader: &StateReader,
    group: GroupId,
) -> Result<impl Iterator<Item = io::Result<Bytes>> + Send + use<>, StateError> {
    let missing = || StateError::Io(io::Error::other(format!("group {group} has no checkpoint here")));
    let (base, pairs) = reader.open(group)?.ok_or_else(missing)?;
    Ok(cut(&base, pairs))
}

/// A checkpoint that was opened before, as chunks.
pub fn cut(base: &CheckpointBase, pairs: PairIter) -> impl Iterator<Item = io::Result<Bytes>> + Send + use<> {
    let mut buffer = BytesMut::new();
    let base = base_bytes(base, 0);
    buffer.put_u32(base.len() as u32);
    buffer.put_slice(&base);
    Chunks { pairs: Some(pairs), buffer }
}

struct Chunks {
    /// `None` at the end, or after an error.
    pairs: Option<PairIter>,
    buffer: BytesMut,
}

impl Iterator for Chunks {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.buffer.len() < CHUNK_BYTES
            && let Some(pairs) = &mut self.pairs
        {
            match pairs.next() {
                Some(Ok((key, value))) => {
                    self.buffer.put_u32(key.len() as u32);
                    self.buffer.put_u32(value.len() as u32);
                    self.buffer.put_slice(&key);
                    self.buffer.put_slice(&value);
                }
                Some(Err(error)) => {
                    self.pairs = None;
                    self.buffer.clear();
                    return Some(Err(io::Error::other(error)));
                }
                None => self.pairs = None,
            }
        }
        let length = self.buffer.len().min(CHUNK_BYTES);
        (length > 0).then(|| Ok(self.buffer.split_to(length).freeze()))
    }
}

/// Takes the chunks in.
///
/// # Errors
/// The stream broke off, or is malformed.
pub fn collect<E>(
    group: GroupId,
    chunks: impl Iterator<Item = Result<Bytes, E>>,
) -> Result<(CheckpointBase, Vec<Pair>), SnapshotStreamError<E>> {
    let mut unpacked = Unpacked::begin(group, chunks)?;
    let pairs = unpacked.by_ref().collect::<Result<_, _>>()?;
    Ok((unpacked.base, pairs))
}

/// Chunks as the pairs in them, one after the other. It is whole only if it ends without an error.
#[derive(Debug)]
pub struct Unpacked<I> {
    /// What it is the state after.
    pub base: CheckpointBase,
    chunks: I,
    buffer: BytesMut,
    /// Bytes that came in chunks.
    received: u64,
    ended: bool,
}

impl<E, I: Iterator<Item = Result<Bytes, E>>> Unpacked<I> {
    /// Reads what they are the state after.
    ///
    /// # Errors
    /// The stream broke off, or is malformed.
    pub fn begin(group: GroupId, mut chunks: I) -> Result<Self, SnapshotStreamError<E>> {
        let (mut buffer, mut received) = (BytesMut::new(), 0);
        loop {
            if let Some(base) = take_base(group, &mut buffer)? {
                return Ok(Self { base, chunks, buffer, received, ended: false });
            }
            let chunk = chunks.next().ok_or(SnapshotStreamError::Malformed("it ends in the middle"))?;
            let chunk = chunk.map_err(SnapshotStreamError::Stream)?;
            received += chunk.len() as u64;
            buffer.extend_from_slice(&chunk);
        }
    }

    /// Chunks that begin with a pair, of a checkpoint whose beginning was read before.
    pub(super) fn goes_on(base: CheckpointBase, chunks: I) -> Self {
        Self { base, chunks, buffer: BytesMut::new(), received: 0, ended: false }
    }

    /// Bytes of what was read so far.
    pub(super) fn taken(&self) -> u64 {
        self.received - self.buffer.len() as u64
    }

    fn read(&mut self) -> Result<Option<Pair>, SnapshotStreamError<E>> {
        loop {
            if let Some(pair) = take_pair(&mut self.buffer)? {
                return Ok(Some(pair));
            }
            match self.chunks.next() {
                Some(chunk) => {
                    let chunk = chunk.map_err(SnapshotStreamError::Stream)?;
                    self.received += chunk.len() as u64;
                    self.buffer.extend_from_slice(&chunk);
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(SnapshotStreamError::Malformed("it ends in the middle")),
            }
        }
    }
}

impl<E, I: Iterator<Item = Result<Bytes, E>>> Iterator for Unpacked<I> {
    type Item = Result<Pair, SnapshotStreamError<E>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

fn take_base<E>(group: GroupId, buffer: &mut BytesMut) -> Result<Option<CheckpointBase>, SnapshotStreamError<E>> {
    let Some(length) = buffer.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize) else {
        return Ok(None);
    };
    if length > HEAD_BYTES_MAX {
        return Err(SnapshotStreamError::Malformed("a beginning that is too long"));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    let bytes = buffer.split_to(length);
    let Some((_, base, _)) = parse_base(&base_key(group), &bytes) else {
        return Err(SnapshotStreamError::Malformed("what it is the state after"));
    };
    Ok(Some(base))
}

fn take_pair<E>(buffer: &mut BytesMut) -> Result<Option<Pair>, SnapshotStreamError<E>> {
    let Some(lengths) = buffer.first_chunk::<8>() else {
        return Ok(None);
    };
    let key = u32::from_be_bytes([lengths[0], lengths[1], lengths[2], lengths[3]]) as usize;
    let value = u32::from_be_bytes([lengths[4], lengths[5], lengths[6], lengths[7]]) as usize;
    if key > HEAD_BYTES_MAX || value > VALUE_BYTES_MAX {
        return Err(SnapshotStreamError::Malformed("a key or a value that is too long"));
    }
    if buffer.len() < 8 + key + value {
        return Ok(None);
    }
    buffer.advance(8);
    let key = buffer.split_to(key).to_vec();
    Ok(Some((key, buffer.split_to(value).to_vec())))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use super::*;
    use crate::disk::SimDisk;
    use crate::group::Configuration;
    use crate::identity::NodeId;
    use crate::log::LogId;
    use crate::state::{Checkpoint, MemoryState, StateStore};

    fn store() -> StateStore {
        let mut store = StateStore::in_memory(&MemoryState::default(), Arc::new(SimDisk::new())).expect("a store");
        let base =
            CheckpointBase { applied: LogId { index: 9, term: 3 }, configuration: Configuration::of([NodeId(1)]) };
        let big = vec![7; CHUNK_BYTES * 2];
        let writes = vec![(b"a".to_vec(), Some(b"1".to_vec())), (b"b".to_vec(), Some(big)), (vec![0xFF], Some(vec![]))];
        store.write(vec![Checkpoint { group: GroupId(3), base, writes }]).expect("written");
        store
    }

    fn good(chunk: io::Result<Bytes>) -> Result<Bytes, Infallible> {
        Ok(chunk.expect("read"))
    }

    #[test]
    fn a_checkpoint_arrives_as_it_was_sent() {
        let store = store();
        let sent = chunks(&store.reader(), GroupId(3)).expect("there is one").map(good);
        let (base, pairs) = collect(GroupId(3), sent).expect("whole");
        assert_eq!(base, store.bases()[&GroupId(3)]);
        assert_eq!(pairs, store.load(GroupId(3)).expect("loaded"));
        assert!(chunks(&store.reader(), GroupId(4)).is_err(), "a group that is not here");
    }

    #[test]
    fn a_checkpoint_that_was_cut_is_refused() {
        let whole: Vec<u8> = chunks(&store().reader(), GroupId(3))
            .expect("there is one")
            .flat_map(|chunk| good(chunk).expect("ok"))
            .collect();
        for length in [0, 3, 10, 40, whole.len() - 1] {
            let cut = Bytes::copy_from_slice(&whole[..length]);
            let taken = collect(GroupId(3), std::iter::once(Ok::<_, Infallible>(cut)));
            assert!(matches!(taken, Err(SnapshotStreamError::Malformed(_))), "cut at {length}");
        }
    }
}
