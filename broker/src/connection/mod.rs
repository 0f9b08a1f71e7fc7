//! Connections: the actor that lives with a socket, what it reads with, and what waits to be written.
//!
//! The actor is a thin shell. Everything a delivery touches stands in the arbiter's own slab (see
//! [`crate::router`]), so that a fan-out is plain calls; the actor polls the socket and takes the rare
//! messages: close, take over, drain.

mod actor;
mod memory;
mod origin;
mod out_buffer;
mod raw_socket;
mod tls;
mod transport;

pub use actor::{ConnectionActor, EndConnection};
pub use memory::MemoryStream;
pub use origin::Origin;
pub use out_buffer::{BufferPool, Flushed, OutBuffer, SHARED_PAYLOAD_BYTES_MIN};
pub use raw_socket::RawSocket;
pub use tls::TlsStream;
pub use transport::Transport;
