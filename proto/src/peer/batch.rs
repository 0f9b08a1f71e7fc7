//! Many messages in one field of bytes.
//!
//! A repeated protobuf field would cost a receiver more memory than arrived (a few bytes of an empty message become a
//! structure of dozens), so messages stay packed until they are looked at.

use bytes::{Buf, BufMut, Bytes};

/// Bytes in front of each message: its kind and its length.
pub const MESSAGE_HEADER_BYTES: usize = 6;

/// What a message is: a number that only those who send and receive it understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(pub u16);

impl Kind {
    /// A message of Raft, which tolerates its loss.
    pub const RAFT: Kind = Kind(1);
}

/// One message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// Its bytes. They keep the whole batch in memory; copy what is kept for long.
    pub body: Bytes,
}

/// Why bytes are not a batch. Always the sender's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer sent a batch whose message at byte {offset} does not end within it")]
pub struct BatchError {
    /// Where the message begins.
    pub offset: usize,
}

/// Messages that arrived together, in the order in which they were sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    packed: Bytes,
    messages: usize,
}

impl Batch {
    /// Takes a batch off the wire. Walks over it once, so that nobody later meets a message that is not whole.
    pub fn parse(packed: Bytes) -> Result<Self, BatchError> {
        let mut rest = &packed[..];
        let mut messages = 0;
        while !rest.is_empty() {
            let length = body_length(rest).ok_or(BatchError { offset: packed.len() - rest.len() })?;
            rest.advance(MESSAGE_HEADER_BYTES + length);
            messages += 1;
        }
        Ok(Self { packed, messages })
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Bytes of all messages with their headers.
    pub fn packed_bytes(&self) -> usize {
        self.packed.len()
    }

    /// The messages in order. They share the batch's memory.
    pub fn iter(&self) -> Iter {
        Iter { rest: self.packed.clone() }
    }
}

impl IntoIterator for &Batch {
    type Item = Message;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

/// The messages of a [`Batch`].
#[derive(Debug)]
pub struct Iter {
    rest: Bytes,
}

impl Iterator for Iter {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let length = body_length(&self.rest)?;
        let kind = Kind(self.rest.get_u16_le());
        self.rest.advance(MESSAGE_HEADER_BYTES - 2);
        Some(Message { kind, body: self.rest.split_to(length) })
    }
}

/// Appends a message in the bytes that [`Batch::parse`] reads. Its body, in one piece or several, must be shorter than 4 GiB.
pub fn pack(kind: Kind, body: &[Bytes], packed: &mut impl BufMut) {
    let length = body.iter().map(Bytes::len).sum::<usize>();
    debug_assert!(u32::try_from(length).is_ok());
    packed.put_u16_le(kind.0);
    packed.put_u32_le(length as u32);
    body.iter().for_each(|piece| packed.put_slice(piece));
}

/// The length of the body of the message that `rest` begins with, if that message is whole.
fn body_length(rest: &[u8]) -> Option<usize> {
    let (header, bodies) = rest.split_first_chunk::<MESSAGE_HEADER_BYTES>()?;
    let length = u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize;
    (length <= bodies.len()).then_some(length)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_survive_packing(
            bodies in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..40), 0..40usize), 0..20),
        ) {
            let mut packed = BytesMut::new();
            let mut messages = Vec::new();
            for (kind, body, cut) in bodies {
                let (kind, body) = (Kind(kind), Bytes::from(body));
                let cut = cut.min(body.len());
                pack(kind, &[body.slice(..cut), body.slice(cut..)], &mut packed);
                messages.push(Message { kind, body });
            }
            let batch = Batch::parse(packed.freeze()).unwrap();
            prop_assert_eq!(batch.len(), messages.len());
            prop_assert_eq!(batch.iter().collect::<Vec<_>>(), messages);
        }

        #[test]
        fn any_bytes_are_a_batch_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(batch) = Batch::parse(bytes.into()) {
                prop_assert_eq!(batch.iter().count(), batch.len());
            }
        }
    }

    #[test]
    fn a_message_longer_than_its_batch_is_refused() {
        let mut packed = BytesMut::new();
        pack(Kind(7), &[Bytes::from_static(b"whole")], &mut packed);
        packed.put_slice(&[7, 0, 255, 255, 255, 255, 1]);
        assert_eq!(Batch::parse(packed.freeze()), Err(BatchError { offset: 11 }));
    }
}
