//! Connections: the actor that lives with a socket, what it reads with, and what waits to be written.
//!
//! The actor is a thin shell. Everything a delivery touches stands in the arbiter's own slab (see
//! [`crate::router`]), so that a fan-out is plain calls; the actor polls the socket and takes the rare
//! messages: close, take over, drain.

mod actor;
mod memory;
pub mod networks;
mod origin;
mod out_buffer;
mod proxied;
pub mod proxy;
mod raw_socket;
mod spoken;
mod tls;
mod transport;
pub mod websocket;

pub use actor::{ConnectionActor, EndConnection};
pub use memory::MemoryStream;
pub use origin::Origin;
pub use out_buffer::{BufferPool, Flushed, OutBuffer, SHARED_PAYLOAD_BYTES_MIN};
pub use proxied::Proxied;
pub use raw_socket::RawSocket;
pub use spoken::Spoken;
pub use tls::TlsStream;
pub use transport::Transport;

/// What the other end did wrong below MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// A WebSocket client.
    #[error("{0}")]
    WebSocket(websocket::WebSocketError),
    /// A balancer.
    #[error("{0}")]
    Proxy(proxy::ProxyError),
}

impl LayerError {
    /// The one in an error of reading, if a layer and not the socket said it.
    #[must_use]
    pub fn within(error: &std::io::Error) -> Option<Self> {
        let inner = error.get_ref()?;
        let websocket = inner.downcast_ref().copied().map(Self::WebSocket);
        websocket.or_else(|| inner.downcast_ref().copied().map(Self::Proxy))
    }
}
