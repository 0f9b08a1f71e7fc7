//! What nodes say to each other: the protobuf of the peer link, and the packing of its batches.
//!
//! `wire.rs` is made from `peer.proto` by `cargo xtask peer` and lies in the tree, so that a build compiles no protobuf
//! compiler; `cargo xtask verify` fails if it is stale. The stubs of the service need an HTTP/2 stack and lie beside
//! those who speak it.

mod batch;
#[allow(missing_docs, clippy::all)]
#[rustfmt::skip]
pub mod wire;

pub use batch::{Batch, BatchError, Kind, MESSAGE_HEADER_BYTES, Message, pack};

/// The lowest protocol version that this build speaks.
pub const PROTOCOL_MIN: u32 = 1;

/// The highest protocol version that this build speaks.
pub const PROTOCOL_MAX: u32 = 1;
