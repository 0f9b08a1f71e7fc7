//! How a link's frames are written: what waits in the outbox goes straight into the connection's buffer.
//!
//! The generated stubs would want a batch in one piece first, which is one copy more of everything that nodes say to each
//! other. The bytes are those of [`wire::Frame`], and frames that come in are read as such.

use bytes::BufMut;
use kentongan_proto::peer::{MESSAGE_HEADER_BYTES, pack, wire};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::connection::{Channel, LinkError};
use super::outbox::{Outgoing, Waiting};

/// The call by which the dialler opens a link, as peer.proto names it.
const LINK_PATH: &str = "/kentongan.peer.v1.Peer/Link";

/// Number of [`wire::Frame`]'s field `batch`.
const BATCH_TAG: u32 = 2;

/// A frame that goes out.
#[derive(Debug)]
pub(super) enum Frame {
    /// The first one.
    Opening(wire::Opening),
    /// A batch.
    Messages(Vec<Waiting>),
}

impl Frame {
    /// Appends the bytes of the [`wire::Frame`] that it is.
    pub(super) fn write(self, out: &mut impl BufMut) {
        match self {
            // Cannot fail: the buffers here grow.
            Frame::Opening(opening) => {
                let _ = wire::Frame { opening: Some(opening), batch: Default::default() }.encode(out);
            }
            Frame::Messages(messages) => {
                encode_key(BATCH_TAG, WireType::LengthDelimited, out);
                encode_varint(batch_bytes(&messages) as u64, out);
                messages.iter().for_each(|message| pack(message.kind, &message.body, out));
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Frame::Opening(opening) => opening.encoded_len() + 8,
            Frame::Messages(messages) => {
                let batch = batch_bytes(messages);
                1 + encoded_len_varint(batch as u64) + batch
            }
        }
    }
}

/// Bytes of a batch of these messages.
pub(super) fn batch_bytes(messages: &[Waiting]) -> usize {
    messages.iter().map(|message| MESSAGE_HEADER_BYTES + message.body_bytes()).sum()
}

/// Opens a link over a connection, on which `outgoing` is sent.
pub(super) async fn open_link(
    channel: Channel,
    outgoing: Outgoing,
    frame_bytes_max: usize,
) -> Result<Response<Streaming<wire::Frame>>, LinkError> {
    let mut grpc =
        tonic::client::Grpc::with_origin(channel, Channel::origin()).max_decoding_message_size(frame_bytes_max);
    grpc.ready().await?;
    let path = PathAndQuery::from_static(LINK_PATH);
    Ok(grpc.streaming(Request::new(outgoing), path, LinkCodec).await?)
}

struct LinkCodec;

impl Codec for LinkCodec {
    type Encode = Frame;
    type Decode = wire::Frame;
    type Encoder = FrameEncoder;
    type Decoder = <ProstCodec<wire::Frame, wire::Frame> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<wire::Frame, wire::Frame>::default().decoder()
    }
}

struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(frame.bytes());
        frame.write(out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use kentongan_proto::peer::{Batch, Kind};

    use super::*;

    fn read(frame: Frame) -> wire::Frame {
        let (mut written, bytes) = (BytesMut::new(), frame.bytes());
        frame.write(&mut written);
        assert!(written.len() <= bytes, "room was made for all of it");
        wire::Frame::decode(written.freeze()).unwrap()
    }

    #[test]
    fn what_is_written_is_a_frame_of_the_protocol() {
        let opening = wire::Opening { hello: Some(wire::Hello::default()), class: 2, epoch: 7, to: 9 };
        let frame = read(Frame::Opening(opening.clone()));
        assert_eq!(frame, wire::Frame { opening: Some(opening), batch: Bytes::new() });

        let long = Bytes::from(vec![7; 300]);
        let first = Waiting { kind: Kind(3), body: [Bytes::from_static(b"head"), long] };
        let second = Waiting { kind: Kind(4), body: [Bytes::from_static(b"x"), Bytes::new()] };
        let frame = read(Frame::Messages(vec![first, second]));
        assert_eq!(frame.opening, None);
        let read: Vec<_> = Batch::parse(frame.batch).unwrap().iter().collect();
        assert_eq!(read.iter().map(|message| message.kind).collect::<Vec<_>>(), [Kind(3), Kind(4)]);
        assert_eq!((&read[0].body[..4], read[0].body.len(), &read[1].body[..]), (&b"head"[..], 304, &b"x"[..]));
    }
}
