//! What an operator asks of the nodes and has them do, whichever of them he speaks with.
//!
//! Each node answers for what it has itself ([`Operator::answer`]); whoever is asked asks the others
//! ([`Operator::ask`], [`Operator::ask_all`]) and puts together what they say. Between nodes it is one more thing that a
//! member may be asked to do ([`crate::peers::administration`]), and so as guarded as the removal of a member.
//!
//! Every answer is bounded, in rows and in bytes, and what is walked is walked in slices: no arbiter, and not the thread
//! that applies, is stopped for long, and nothing is kept for operators while none asks.
//!
//! Absent: HTTP, and who may ask ([`crate::api`]).

pub mod clients;
pub mod control;
pub mod in_turn;
pub mod nodes;
pub mod publish;
pub mod sessions;
pub mod users;
pub mod watching;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, bounded};
use kentongan_cluster::NodeId;
use kentongan_cluster::pipeline::PipelineHandle;
use kentongan_cluster::transport::{self, Answerer, LinkError, PeerHello, Target, Transport};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::peers::administration::{Act, Administered, Administration, Say};
use crate::peers::status::{MemberStatus, NodeStatus};
use crate::replicated::submitter::Query;
use crate::router::visit::Visit;
use crate::router::{ArbiterState, Event, Shared};

/// Questions of operators that a node works at, at a time; for one more it is too busy.
const AT_A_TIME_MAX: usize = 16;

/// Time that a thread of this node, or another node, has for its part.
const PART_MAX: Duration = Duration::from_secs(5);

/// Time for what the directory must decide.
const DECIDED_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks whether it has.
const DECIDE_PAUSE: Duration = Duration::from_millis(50);

/// Rows in one answer.
pub const ROWS_MAX: usize = 1000;

/// Bytes of rows in one answer, about.
const ROW_BYTES_MAX: usize = 1024 * 1024;

/// What is looked at for one answer, however little of it is wanted.
const LOOKED_AT_MAX: usize = 200_000;

/// What a node is asked. As JSON on the way: fields may be added, and who does not know one skips it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Which clients are connected to it.
    Clients(clients::ClientsAsked),
    /// The client of this name.
    Client(String),
    /// To close the connection of the client of this name.
    Kick(String),
    /// What the clients that are connected to it subscribe to.
    Subscriptions(clients::SubscriptionsAsked),
    /// Which sessions a group has that it leads.
    Sessions(sessions::SessionsAsked),
    /// The session of this name.
    Session(String),
    /// To end the session of this name, whose group it leads.
    Discard(String),
    /// Which users its files have.
    Users(users::UsersAsked),
    /// Which retained messages a group has that it leads.
    Retained(sessions::RetainedAsked),
    /// How it is.
    Node,
    /// To read its settings again.
    Reload,
    /// What it logs; or to log this from now on.
    Log(Option<String>),
    /// What goes on there.
    Watch(watching::WatchAsked),
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It is not well said; what is wrong with it.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be; why, and what to do instead. The operator's to mend.
    #[error("{0}")]
    Refused(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

/// A node's answer, or why it has none, as it goes over the link.
type Answered<T> = Result<T, String>;

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// Who it is.
    pub node: u64,
    /// Its label.
    pub name: String,
    /// Whether it is there, as far as the node that was asked knows.
    pub lives: bool,
}

impl NodeName {
    /// Whether it goes by this name, or has this id.
    #[must_use]
    pub fn is_called(&self, called: &str) -> bool {
        self.name == called || NodeId(self.node).to_string() == called
    }
}

/// What answers an operator on this node.
#[derive(Debug)]
pub struct Operator {
    shared: Arc<Shared>,
    me: NodeId,
    pipeline: PipelineHandle<Query>,
    /// `None`: this node is alone.
    transport: Option<Transport>,
    at_work: AtomicUsize,
    /// The way to whoever reads the settings, once it listens.
    control: OnceLock<mpsc::UnboundedSender<control::Wanted>>,
}

/// One of those who work at a question, until it is dropped.
struct AtWork<'a>(&'a AtomicUsize);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Operator {
    /// Of the node `me`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, me: NodeId, pipeline: PipelineHandle<Query>, transport: Option<Transport>) -> Self {
        Self { shared, me, pipeline, transport, at_work: AtomicUsize::new(0), control: OnceLock::new() }
    }

    /// What all threads of this node share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeName {
        NodeName { node: self.me.get(), name: self.shared.settings.node_name(), lives: true }
    }

    /// Answers another node, on a thread of its own: it waits for the threads of this one.
    pub(crate) fn answer(self: &Arc<Self>, from: &PeerHello, question: Bytes, answer: Answerer) {
        let own = Arc::clone(self);
        let name = from.name.clone();
        let work = move || {
            let said = own.answer_bytes(&question);
            if let Err(reason) = &said {
                tracing::debug!(from = name, reason, "a question of an operator has no answer");
            }
            let administered = said.map(|said| Administered { done: true, said, ..Administered::default() });
            answer.send(administered.map(|administered| administered.encode_answer()));
        };
        if let Err(error) = std::thread::Builder::new().name("operator".into()).spawn(work) {
            tracing::error!(%error, "the system gives no thread to answer an operator");
        }
    }

    fn answer_bytes(&self, question: &[u8]) -> Result<Bytes, String> {
        let question = serde_json::from_slice(question)
            .map_err(|_| "this node's version does not know how to do that: upgrade it".to_owned())?;
        self.answer_here(&question).map(Bytes::from)
    }

    /// What this node says of itself, as JSON.
    fn answer_here(&self, question: &Question) -> Result<Vec<u8>, String> {
        let at_work = self.at_work.fetch_add(1, Ordering::Relaxed);
        let _at_work = AtWork(&self.at_work);
        if at_work >= AT_A_TIME_MAX {
            return Err("this node has too many questions of operators before it: ask again".to_owned());
        }
        match question {
            Question::Clients(asked) => say(&self.clients_here(asked)),
            Question::Client(client_id) => say(&self.client_here(client_id)),
            Question::Kick(client_id) => say(&self.kick_here(client_id)),
            Question::Subscriptions(asked) => say(&self.subscriptions_here(asked)),
            Question::Sessions(asked) => say(&self.sessions_here(asked)),
            Question::Session(client_id) => say(&self.session_here(client_id)),
            Question::Discard(client_id) => say(&self.discard_here(client_id)),
            Question::Users(asked) => say(&self.users_here(asked)),
            Question::Retained(asked) => say(&self.retained_here(asked)),
            Question::Node => say(&self.node_here()),
            Question::Reload => say(&self.reload_here()),
            Question::Log(filter) => say(&self.log_here(filter.clone())),
            Question::Watch(asked) => self.watch_here(asked),
        }
    }

    /// Asks one node, this one or another. Waits.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn ask<T: DeserializeOwned>(&self, node: u64, question: &Question) -> Result<T, AskError> {
        if node == self.me.get() {
            return understand(&self.answer_here(question).map_err(AskError::Unavailable)?);
        }
        let deadline = Instant::now() + PART_MAX;
        self.hear_by(&self.begin_asking(node, question)?, deadline)
    }

    /// Asks all nodes at once. Waits for the slowest.
    pub fn ask_all<T: DeserializeOwned>(&self, question: &Question) -> Vec<(NodeName, Result<T, AskError>)> {
        let begun: Vec<_> = self
            .nodes()
            .into_iter()
            .map(|node| {
                let asking = (node.node != self.me.get()).then(|| match node.lives {
                    true => self.begin_asking(node.node, question),
                    false => Err(AskError::Unavailable(format!("{} is down", node.name))),
                });
                (node, asking)
            })
            .collect();
        let deadline = Instant::now() + PART_MAX;
        let outcome = |(node, asking): (NodeName, Option<Result<Asking, AskError>>)| {
            let answered = match asking {
                None => self.ask(node.node, question),
                Some(asking) => asking.and_then(|asking| self.hear_by(&asking, deadline)),
            };
            (node, answered)
        };
        begun.into_iter().map(outcome).collect()
    }

    /// The nodes of the cluster in the order of their ids, this one among them.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeName> {
        let members = self.members().unwrap_or_default();
        let named =
            |member: MemberStatus| NodeName { node: member.node, name: member.name, lives: member.incarnation != 0 };
        let mut nodes: Vec<_> = members.into_iter().map(named).collect();
        if nodes.iter().all(|node| node.node != self.me.get()) {
            nodes.push(self.me());
        }
        nodes.sort_unstable_by_key(|node| node.node);
        nodes
    }

    /// The members as this node's directory has them; none where it is alone.
    fn members(&self) -> Option<Vec<MemberStatus>> {
        self.transport.as_ref()?;
        self.status_of_machine().map(|status| status.members)
    }

    /// As much of this node's status as the thread that applies knows.
    fn status_of_machine(&self) -> Option<NodeStatus> {
        let (answer, answered) = bounded(1);
        self.pipeline.notify(Query::Status(answer));
        answered.recv_timeout(PART_MAX).ok()
    }

    fn begin_asking(&self, node: u64, question: &Question) -> Result<Asking, AskError> {
        let (Some(transport), Some(node)) = (&self.transport, NodeId::new(node)) else {
            return Err(AskError::Refused("there is no such node".to_owned()));
        };
        let question = serde_json::to_vec(question).map_err(|error| AskError::Unavailable(error.to_string()))?;
        let body = Administration::encode_question(Act::Say(Say { question: question.into() }));
        Ok(transport.ask(Target::Peer(node), transport::Question::Administer, body))
    }

    fn hear_by<T: DeserializeOwned>(&self, asking: &Asking, deadline: Instant) -> Result<T, AskError> {
        let unavailable = |text: &str| AskError::Unavailable(text.to_owned());
        let answered = asking.recv_deadline(deadline).map_err(|_| unavailable("it does not answer in time"))?;
        let (_, body) = answered.map_err(|error| AskError::Unavailable(error.to_string()))?;
        let administered = Administered::decode_answer(body).map_err(|_| unavailable("its answer is malformed"))?;
        understand(&administered.said)
    }

    /// Has something done on an arbiter's thread and waits for what it says. `None`: the arbiter is gone, or too busy.
    pub(crate) fn visit<T: Send + 'static>(
        &self,
        arbiter: u16,
        visit: impl FnOnce(&mut ArbiterState) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = bounded(1);
        let inbox = self.shared.inboxes.get(usize::from(arbiter))?;
        inbox.push(
            Event::Visit(Visit::new(move |arbiter| {
                // Whoever gave up waiting needs no answer.
                let _ = answer.send(visit(arbiter));
            })),
            0,
        );
        answered.recv_timeout(PART_MAX).ok()
    }
}

/// A time of the wall clock as JSON has it (RFC 3339).
fn time(wall_ms: u64) -> String {
    let at = i64::try_from(wall_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| format!("{at:.3}"))
}

type Asking = Receiver<Result<(PeerHello, Bytes), LinkError>>;

fn say<T: Serialize>(answer: &Answered<T>) -> Result<Vec<u8>, String> {
    serde_json::to_vec(answer).map_err(|error| error.to_string())
}

fn understand<T: DeserializeOwned>(said: &[u8]) -> Result<T, AskError> {
    let answered: Answered<T> = serde_json::from_slice(said).map_err(|_| {
        AskError::Unavailable("its version answers something else than what was asked: upgrade it".to_owned())
    })?;
    answered.map_err(AskError::Unavailable)
}
