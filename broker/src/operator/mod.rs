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

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// Why nothing is said of a visit to an arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unvisited {
    /// It was not made, and never will be.
    Undone,
    /// It had begun when whoever asked gave up.
    InDoubt,
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
    ///
    /// # Errors
    /// This one is too busy to say which they are: to ask only some of them is not what is wanted.
    pub fn ask_all<T: DeserializeOwned>(&self, question: &Question) -> Result<Answers<T>, AskError> {
        let begun: Vec<_> = self
            .nodes()?
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
        Ok(begun.into_iter().map(outcome).collect())
    }

    /// The nodes of the cluster in the order of their ids, this one among them.
    ///
    /// # Errors
    /// This one is too busy to say.
    pub fn nodes(&self) -> Result<Vec<NodeName>, AskError> {
        let members = self.members()?;
        let named =
            |member: MemberStatus| NodeName { node: member.node, name: member.name, lives: member.incarnation != 0 };
        let mut nodes: Vec<_> = members.into_iter().map(named).collect();
        if nodes.iter().all(|node| node.node != self.me.get()) {
            nodes.push(self.me());
        }
        nodes.sort_unstable_by_key(|node| node.node);
        Ok(nodes)
    }

    /// The members as this node's directory has them; none where it is alone.
    fn members(&self) -> Result<Vec<MemberStatus>, AskError> {
        if self.transport.is_none() {
            return Ok(Vec::new());
        }
        let busy = || AskError::Unavailable(self.silent("say who the members are"));
        self.status_of_machine().map(|status| status.members).ok_or_else(busy)
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
        self.visit_within(arbiter, PART_MAX, visit).ok()
    }

    /// The same, which tells whether it may have been done all the same. It is not begun any more once `within` is over: whoever is told to
    /// ask again would have it done twice.
    pub(crate) fn visit_within<T: Send + 'static>(
        &self,
        arbiter: u16,
        within: Duration,
        visit: impl FnOnce(&mut ArbiterState) -> T + Send + 'static,
    ) -> Result<T, Unvisited> {
        let (answer, answered) = bounded(1);
        let inbox = self.shared.inboxes.get(usize::from(arbiter)).ok_or(Unvisited::Undone)?;
        // Either it is begun first, or given up.
        let settled = Arc::new(AtomicBool::new(false));
        let given_up = Arc::clone(&settled);
        inbox.push(
            Event::Visit(Visit::new(move |arbiter| {
                if !settled.swap(true, Ordering::Relaxed) {
                    // Whoever gave up waiting needs no answer.
                    let _ = answer.send(visit(arbiter));
                }
            })),
            0,
        );
        if let Ok(said) = answered.recv_timeout(within) {
            return Ok(said);
        }
        match given_up.swap(true, Ordering::Relaxed) {
            false => Err(Unvisited::Undone),
            // It is short, so that it is over soon, or is so already.
            true => answered.recv_timeout(PART_MAX).map_err(|_| Unvisited::InDoubt),
        }
    }
}

/// A time of the wall clock as JSON has it (RFC 3339).
fn time(wall_ms: u64) -> String {
    let at = i64::try_from(wall_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| format!("{at:.3}"))
}

/// What each node answered, or why it did not.
pub type Answers<T> = Vec<(NodeName, Result<T, AskError>)>;

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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use kentongan_cluster::transport::{
        Asked, Event as LinkEvent, LocalIdentity, Responder, Sink, SnapshotChunks, TransportConfig,
    };
    use kentongan_cluster::{FeatureLevels, GroupId, PipelineHandle};

    use super::*;
    use crate::auth::Authority;
    use crate::clock::{Clock, ManualClock};
    use crate::config::Settings;
    use crate::metrics::Metrics;
    use crate::replicated::{Slots, Submitter};
    use crate::router::SteppedArbiter;

    fn shared() -> Arc<Shared> {
        let clock = Clock::manual(Arc::new(ManualClock::new(0)));
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        Arc::new(Shared::new(Arc::new(Settings::default()), 1, submitter, Authority::default(), 1, None, clock))
    }

    /// Whoever is told to ask again would have it done twice.
    #[test]
    fn what_an_arbiter_did_not_come_to_in_time_it_does_not_do_later() {
        let shared = shared();
        let mut arbiter = SteppedArbiter::new(0, Arc::clone(&shared), Metrics::isolated().arbiter());
        let operator = Operator::new(shared, NodeId(1), PipelineHandle::ended(), None);
        let visits = Arc::new(AtomicUsize::new(0));
        let visit = |within| {
            let visits = Arc::clone(&visits);
            operator.visit_within(0, within, move |_| visits.fetch_add(1, Ordering::Relaxed))
        };
        assert_eq!(visit(Duration::ZERO), Err(Unvisited::Undone));
        arbiter.run();
        assert_eq!(visits.load(Ordering::Relaxed), 0);
        let said = std::thread::scope(|scope| {
            let asking = scope.spawn(|| visit(PART_MAX));
            while !asking.is_finished() {
                arbiter.run();
                std::thread::yield_now();
            }
            asking.join().expect("it ends")
        });
        assert_eq!(said, Ok(0));
    }

    /// Whom nobody asks anything.
    struct Nobody;

    impl Sink for Nobody {
        fn on_event(&self, _: LinkEvent) {}
    }

    impl Responder for Nobody {
        fn on_question(&self, asked: Asked) {
            asked.answer.send(Err("nobody is here".to_owned()));
        }

        fn open_snapshot(&self, _: &PeerHello, _: GroupId, _: u64) -> Result<SnapshotChunks, String> {
            Err("nobody is here".to_owned())
        }
    }

    /// "All nodes" must not come to mean this one.
    #[test]
    fn where_the_members_are_not_known_nobody_is_asked_in_the_name_of_all() {
        let identity = LocalIdentity {
            cluster: None,
            node: NodeId(1),
            name: "n1".to_owned(),
            incarnation: None,
            feature_levels: FeatureLevels { min: 0, max: 0 },
        };
        let config = TransportConfig::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), identity);
        let transport = Transport::start(config, Arc::new(Nobody), Arc::new(Nobody)).expect("a port");
        let among_others = Operator::new(shared(), NodeId(1), PipelineHandle::ended(), Some(transport));
        let asked = among_others.ask_all::<nodes::NodeHere>(&Question::Node);
        assert!(matches!(asked, Err(AskError::Unavailable(_))), "{asked:?}");
        let alone = Operator::new(shared(), NodeId(1), PipelineHandle::ended(), None);
        assert_eq!(alone.nodes(), Ok(vec![alone.me()]));
    }
}
