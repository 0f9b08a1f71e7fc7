//! The actor of one connection. It lives and dies on one arbiter.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use actix::{Actor, ActorContext, ActorFuture, AsyncContext, Context, Handler, Message};

use crate::connection_key::ConnectionKey;
use crate::listener::{Accepted, ListenerContext};
use crate::router::ArbiterState;

use super::Transport;

/// Drives one connection: its task reads the socket, its mailbox takes what is rare. How it can end: the client or
/// the socket ended it, the session did, or [`EndConnection`] came; in each case the connection's entry in the
/// arbiter goes with it.
#[derive(Debug)]
pub struct ConnectionActor {
    key: ConnectionKey,
}

/// Ends the connection at once, without a word to the client.
#[derive(Debug)]
pub struct EndConnection;

impl Message for EndConnection {
    type Result = ();
}

impl ConnectionActor {
    /// Takes accepted sockets in and starts an actor for each. Of an arbiter that has ended its connections none is left again.
    pub fn start_all(arbiter: &mut ArbiterState, sockets: Vec<Accepted>) {
        for Accepted { socket, listener, peer } in sockets {
            if arbiter.is_ending() {
                arbiter.shared.connection_closed(&listener, arbiter.id);
                continue;
            }
            match socket.into_transport(&listener, peer, &arbiter.shared) {
                Ok(transport) => Self::start_one(arbiter, transport, listener, peer),
                Err(error) => {
                    arbiter.shared.connection_closed(&listener, arbiter.id);
                    tracing::warn!(%error, "an accepted socket could not be used");
                }
            }
        }
    }

    fn start_one(
        arbiter: &mut ArbiterState,
        transport: Transport,
        listener: Arc<ListenerContext>,
        peer: Option<std::net::SocketAddr>,
    ) {
        let key = arbiter.add_connection(transport, listener, peer);
        let address = Self { key }.start();
        arbiter.set_address(key, address);
    }
}

impl Actor for ConnectionActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(4);
        context.spawn(ReadLoop { key: self.key });
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        ArbiterState::with(|arbiter| arbiter.remove_connection(self.key));
    }
}

impl Handler<EndConnection> for ConnectionActor {
    type Result = ();

    fn handle(&mut self, _: EndConnection, context: &mut Self::Context) {
        context.stop();
    }
}

/// Reads until the connection is over.
struct ReadLoop {
    key: ConnectionKey,
}

impl ActorFuture<ConnectionActor> for ReadLoop {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        _: &mut ConnectionActor,
        context: &mut Context<ConnectionActor>,
        task: &mut TaskContext<'_>,
    ) -> Poll<()> {
        let key = self.key;
        let outcome = ArbiterState::with(|arbiter| arbiter.poll_connection(key, task));
        match outcome {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(())) | None => {
                context.stop();
                Poll::Ready(())
            }
        }
    }
}
