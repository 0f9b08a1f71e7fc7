//! Questions beside the links, and who answers them.

use std::io;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::connection::LinkError;
use super::identity::{NodeId, PeerHello};
use crate::GroupId;

/// What may be asked of a node. The bytes of question and answer are for those who ask and answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Question {
    /// To promise that it will join the cluster that the asker forms.
    Promise,
    /// To take note that the cluster was formed.
    Form,
    /// To have the asker made a member of its cluster.
    Join,
    /// To have a member removed from its cluster.
    Remove,
    /// To do what an operator wants done.
    Administer,
    /// How it is.
    Status,
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A peer; nobody else may answer.
    Peer(NodeId),
    /// Whoever answers at this address (`host:port`) and, with TLS, holds a certificate for the name it goes by.
    Address(String),
}

/// A question that came in.
#[derive(Debug)]
pub struct Asked {
    /// Who asks. May belong to another cluster, or to none.
    pub from: PeerHello,
    /// What is asked.
    pub question: Question,
    /// What is asked, in detail.
    pub body: Bytes,
    /// Where the answer goes.
    pub answer: Answerer,
}

/// Takes the answer to one question, from any thread. Dropped without one, the asker is told that there is none.
#[derive(Debug)]
pub struct Answerer(pub(super) oneshot::Sender<Result<Bytes, String>>);

impl Answerer {
    /// Answers, or says why not.
    pub fn send(self, answer: Result<Bytes, String>) {
        // An asker that is gone needs no answer.
        let _ = self.0.send(answer);
    }
}

/// A conversation that somebody began, for whom all groups are to be read. On a thread that may wait, both ways: for what the other
/// side says, and until it has taken what was said.
#[derive(Debug)]
pub struct Conversation {
    pub(super) heard: mpsc::Receiver<Bytes>,
    pub(super) said: mpsc::Sender<Result<Bytes, String>>,
}

impl Conversation {
    /// What the other side says next. `None`: it has ended, or is gone.
    pub fn hear(&mut self) -> Option<Bytes> {
        self.heard.blocking_recv()
    }

    /// Says something. `false`: nobody listens any more.
    pub fn say(&self, what: Bytes) -> bool {
        self.said.blocking_send(Ok(what)).is_ok()
    }

    /// Ends it, and says why.
    pub fn refuse(self, reason: String) {
        // Who is gone need not know.
        let _ = self.said.blocking_send(Err(reason));
    }
}

/// The side of a conversation that began it. On a thread that may wait.
#[derive(Debug)]
pub struct Talk {
    pub(super) orders: mpsc::UnboundedSender<Bytes>,
    /// `None` at a good end.
    pub(super) answers: mpsc::Receiver<Result<Option<Bytes>, LinkError>>,
}

impl Talk {
    /// Orders something. What becomes of it [`Self::hear`] says.
    pub fn order(&self, what: Bytes) {
        // Fails only when the conversation has ended, which `hear` says.
        let _ = self.orders.send(what);
    }

    /// The next answer; `None`: the other side has said everything.
    ///
    /// # Errors
    /// The other side broke it off, or the way to it broke.
    pub fn hear(&mut self) -> Result<Option<Bytes>, LinkError> {
        self.answers.blocking_recv().unwrap_or(Err(LinkError::Stopped))
    }
}

/// Parts of a checkpoint, each short enough for a frame. Read on a thread that may wait for a disk.
pub type SnapshotChunks = Box<dyn Iterator<Item = io::Result<Bytes>> + Send>;

/// Answers what peers ask.
pub trait Responder: Send + Sync + 'static {
    /// Takes a question. Called on the transport's own thread, so it must not wait; the answer may come later.
    fn on_question(&self, asked: Asked);

    /// Hands out what groups have, for a backup, until the conversation ends. May wait for a disk.
    fn on_backup(&self, _from: &PeerHello, conversation: Conversation) {
        conversation.refuse("there is nothing to back up here".to_owned());
    }

    /// Opens a checkpoint for a member, or says why not. May wait for a disk.
    fn open_snapshot(&self, from: &PeerHello, group: GroupId, checkpoint: u64) -> Result<SnapshotChunks, String>;
}

/// A checkpoint on its way. Waits in `next` for the network, so not for a thread that must not wait.
///
/// It is whole only if it ends without an error.
#[derive(Debug)]
pub struct Snapshot {
    /// Chunks, and `None` at a good end: a channel that merely closes is not one.
    pub(super) chunks: mpsc::Receiver<Result<Option<Bytes>, LinkError>>,
    pub(super) ended: bool,
}

impl Iterator for Snapshot {
    type Item = Result<Bytes, LinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.chunks.blocking_recv().unwrap_or(Err(LinkError::Stopped)).transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
