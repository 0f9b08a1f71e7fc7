//! How nodes that are given one list of seeds become one cluster, once.
//!
//! Each node asks all seeds who they are until it knows its cluster ([`Forming::run`]). Where there is a cluster, it takes
//! the record of its [`Formation`] from whoever has it. Where there is none, the first seed of the list, and nobody else,
//! makes one of all seeds: it *proposes* a cluster, every seed durably *promises* to be part of it, and then the first
//! seed *decides*, by writing the formation to its own disk. The others fetch it.
//!
//! # Why there are never two clusters
//!
//! A cluster acts only by majorities of its members, so two that are both decided are harmless as long as one of them never
//! gets past its decider. The rules of [`Ledger`]:
//!
//! 1. Proposals have numbers, and a node promises only upwards: never one with a lower number than it promised, and only
//!    one cluster for each number.
//! 2. A decider decides once it holds, for the proposal that it last promised itself, a promise of every other member, each
//!    given to exactly that list of members.
//! 3. A node becomes part of a cluster (*adopts* it) only if its last promise is for it, and then promises nothing else.
//! 4. A promise for one cluster gives way to one for another only if that one names all members ever named for the first,
//!    but for the decider of the first; and so must whatever is promised after it.
//!
//! Let X and Y be decided, and Y's number be no lower than X's. Whoever promised both promised X first (1). If anybody did,
//! then by (4) each member of X but its decider is a member of Y, or was itself the decider of something promised between.
//! So each has promised or proposed something above X; had it adopted X before, it could not have (3), and after it, it
//! never adopts X (1, 3). That leaves X its decider alone, no majority of two or more members; and a cluster of one asked
//! nobody for a promise. If nobody promised both, then X and Y share no member but perhaps a decider; and the decider of X
//! promised Y either before it decided X, which it then could not (2), or after, which it would not (3). So they share none:
//! different nodes were given different lists.
//!
//! (4) is what lets a first seed that lost its disk begin again under another node id: the promises to its former self give
//! way, since nobody else is missing. A second node that lost its disk may have been the other half of a majority, so then
//! an operator must say that nothing was stored. A seed that lost its disk before the decision, while the first one did
//! not, is simply asked again: it is the same cluster. A refusal for the sake of (1) names the number promised, and the
//! decider goes above it.
//!
//! That nodes promise only to whoever answers at the first seed of *their* lists is not needed for safety: it keeps nodes
//! with unlike lists from taking promises from each other for ever, and lets the log say that the lists are unlike.
//!
//! # Joining
//!
//! A node that finds a cluster whose record does not list it asks to be a member ([`Question::Join`]). Whoever leads the
//! directory commits that it is one; the asker asks again until it hears so, and only then writes down that it belongs to the
//! cluster. It keeps nothing at first: what it is to keep, the leaders of the groups send it.
//!
//! Had it promised to be part of another cluster, that one is harmed no more than by its loss: it never adopts it, so it
//! never votes there, and the argument above counts it among those that did not.

mod ledger;
mod plan;
mod record;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use bytes::Bytes;
use crossbeam::channel::{Receiver as Answer, RecvTimeoutError, TryRecvError};
use prost::Message as _;

use self::plan::{Seen, Step, next_step};
use self::record::Promised;
use crate::NodeId;
use crate::directory::command::MemberRecord;
use crate::disk::RealDisk;
use crate::transport::{Asked, ClusterId, LinkError, PeerHello, Question, Target, Transport};

pub use self::ledger::{AdoptError, Ledger, LedgerError, PromiseError};
pub use self::record::{Formation, FormationRecordError, Joined, MEMBERS_MAX, Proposal, Terms};

/// Pause between two looks at the seeds, see [`Inner::round`].
const ROUND: Duration = Duration::from_millis(200);

/// Pause between two log lines that say the same.
const REPEATED: Duration = Duration::from_secs(10);

/// Pause between two log lines in any case.
const SAID: Duration = Duration::from_secs(1);

/// How soon a stop is noticed.
const STOP_NOTICED: Duration = Duration::from_millis(50);

/// Members that send a node that asks to join on to another one, at a time.
const JOIN_HOPS_MAX: usize = 3;

/// Proposals that may wait for the disk; there is one first seed, which waits for its answer.
const PROPOSALS_MAX: usize = 16;

/// Why a node has no cluster.
#[derive(Debug, thiserror::Error)]
pub enum FormationError {
    /// It was told to stop, or the transport was.
    #[error("stopped before there was a cluster")]
    Stopped,
    /// The operator's to mend.
    #[error(
        "this node and the one at seed {seed} (node {node}) are both called {name:?}: give each node a name of its own (--node)"
    )]
    SameName {
        /// The name.
        name: String,
        /// Who else has it.
        node: NodeId,
        /// Where that one is.
        seed: String,
    },
    /// It has no seeds now, but had some.
    #[error(
        "this node cannot form a cluster of its own: {0}; start it with the seeds it had (--seeds), or with an empty data directory"
    )]
    Alone(#[source] PromiseError),
    /// Others know it by another name and would not speak with it. Alone it may be called what it likes.
    #[error(
        "others of its cluster know this node as {was:?}, and would not speak with it under another name: start it with --node {was}"
    )]
    Renamed {
        /// Its name.
        was: String,
    },
    /// What was promised cannot be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The system gives us no thread.
    #[error("cannot start the thread that writes promises: {0}")]
    Thread(#[source] io::Error),
}

/// A node on its way to a cluster, and afterwards what it tells others about it.
///
/// [`Self::run`] is for one thread that may wait, [`Self::answer`] for the transport's.
#[derive(Debug)]
pub struct Forming {
    inner: Arc<Inner>,
    /// Towards the thread that writes promises; `None` once no more will be given.
    proposals: Mutex<Option<SyncSender<Asked>>>,
}

#[derive(Debug)]
struct Inner {
    me: MemberRecord,
    seeds: Vec<String>,
    terms: Terms,
    /// Pause between two looks at the seeds.
    round: Duration,
    /// Never locked by the transport's thread: whoever holds it may wait for the disk.
    ledger: Mutex<Ledger>,
    /// What the ledger has.
    formation: OnceLock<Formation>,
    /// The node that last answered at the first seed; 0 for none.
    first: AtomicU64,
}

impl Forming {
    /// Takes up what a data directory, which exists and is locked, has from earlier starts. `me` is this node as others shall
    /// know it, `seeds` where the nodes are that form the cluster, in the same order on all of them; with none this node
    /// forms one alone. `terms` count if this node is the one that decides.
    ///
    /// # Errors
    /// What is there cannot be read, or not be made safe.
    pub fn open(data_dir: &Path, me: MemberRecord, seeds: Vec<String>, terms: Terms) -> Result<Self, FormationError> {
        let ledger = Ledger::open(Arc::new(RealDisk::existing(data_dir)), NodeId(me.node))?;
        Self::with(ledger, me, seeds, terms, ROUND)
    }

    fn with(
        ledger: Ledger,
        me: MemberRecord,
        seeds: Vec<String>,
        terms: Terms,
        round: Duration,
    ) -> Result<Self, FormationError> {
        if let Some(was) = ledger.formation().and_then(|formation| other_name(formation, &me)) {
            return Err(FormationError::Renamed { was });
        }
        let formation = OnceLock::new();
        let is_formed = ledger.formation().cloned().is_some_and(|found| formation.set(found).is_ok());
        let ledger = Mutex::new(ledger);
        let inner = Arc::new(Inner { me, seeds, terms, round, ledger, formation, first: AtomicU64::new(0) });
        let proposals = if is_formed { None } else { Some(inner.spawn_promising()?) };
        Ok(Self { inner, proposals: Mutex::new(proposals) })
    }

    /// The formation that is on this node's disk.
    #[must_use]
    pub fn formation(&self) -> Option<Formation> {
        self.inner.formation.get().cloned()
    }

    /// Answers [`Question::Promise`] and [`Question::Form`]. Does not wait; promises are written by a thread of their own.
    pub fn answer(&self, asked: Asked) {
        match asked.question {
            Question::Form => {
                let record = self.inner.formation.get().map(Formation::encode);
                asked.answer.send(record.ok_or_else(|| "no cluster is formed here".to_owned()));
            }
            Question::Promise => self.answer_promise(asked),
            Question::Join | Question::Remove | Question::Administer | Question::Status => {
                asked.answer.send(Err("this is not about forming a cluster".to_owned()))
            }
        }
    }

    fn answer_promise(&self, asked: Asked) {
        if let Some(formation) = self.inner.formation.get() {
            return asked.answer.send(Ok(refusal(&PromiseError::Formed(formation.cluster_id))));
        }
        let refused = match &*lock(&self.proposals) {
            Some(proposals) => proposals.try_send(asked).err(),
            None => return asked.answer.send(Err("this node has ended its search for a cluster".to_owned())),
        };
        if let Some(refused) = refused {
            let (TrySendError::Full(asked) | TrySendError::Disconnected(asked)) = refused;
            asked.answer.send(Err("too many proposals at once: try again later".to_owned()));
        }
    }

    /// Waits until this node knows its formation, and is known by `transport` as part of that cluster. May be called again.
    ///
    /// # Errors
    /// See [`FormationError`]. While others are merely silent, or a cluster was formed without this node, it goes on waiting and
    /// the log says so.
    pub fn run(&self, transport: &Transport, stop: &AtomicBool) -> Result<Formation, FormationError> {
        let formation = match self.inner.formation.get() {
            Some(formation) => formation.clone(),
            None => Search::new(&self.inner, transport, stop).run()?,
        };
        // Nobody is promised anything any more; the thread ends.
        lock(&self.proposals).take();
        transport.set_identity(Some(formation.cluster_id), None);
        Ok(formation)
    }
}

impl Inner {
    fn spawn_promising(self: &Arc<Self>) -> Result<SyncSender<Asked>, FormationError> {
        let (sender, proposals) = sync_channel(PROPOSALS_MAX);
        let inner = Arc::clone(self);
        let promising = move || inner.answer_proposals(&proposals);
        thread::Builder::new().name("promises".into()).spawn(promising).map_err(FormationError::Thread)?;
        Ok(sender)
    }

    fn answer_proposals(&self, proposals: &Receiver<Asked>) {
        for Asked { from, body, answer, .. } in proposals {
            answer.send(match self.make_promise(&from, body) {
                Ok(()) => Ok(Promised { member: Some(self.me.clone()), ..Promised::default() }.encode_to_vec().into()),
                Err(PromiseError::Ledger(error)) => Err(error.to_string()),
                Err(error) => Ok(refusal(&error)),
            });
        }
    }

    fn make_promise(&self, from: &PeerHello, body: Bytes) -> Result<(), PromiseError> {
        let proposal = Proposal::decode(body).map_err(|_| PromiseError::Malformed("not its format"))?;
        if proposal.decider != from.node.0 {
            return Err(PromiseError::Malformed("another node is to decide than the one that asks"));
        }
        match self.first.load(Ordering::Relaxed) {
            _ if self.seeds.is_empty() => Err(PromiseError::NoSeeds),
            0 => Err(PromiseError::NotYet { seed: self.seeds[0].clone() }),
            first if first != from.node.0 => Err(PromiseError::NotFirst { seed: self.seeds[0].clone(), first }),
            _ => lock(&self.ledger).make_promise(&proposal),
        }
    }

    /// Keeps what the ledger has just taken up.
    fn settle(&self, formation: Formation) -> Formation {
        let joined = formation.is_joined;
        tracing::info!(
            joined,
            cluster = %formation.cluster_id, nodes = formation.members.len(), "this node is part of a cluster");
        self.formation.get_or_init(|| formation).clone()
    }
}

fn refusal(error: &PromiseError) -> Bytes {
    let number = if let PromiseError::Promised { number, .. } = error { *number } else { 0 };
    Promised { member: None, refusal: error.to_string(), number }.encode_to_vec().into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A question under way.
type Asking<T> = Answer<Result<T, LinkError>>;

/// The search for a cluster, on a thread that may wait.
struct Search<'a> {
    inner: &'a Inner,
    transport: &'a Transport,
    stop: &'a AtomicBool,
    /// Those of the list, in its order.
    seeds: Vec<Seed>,
    /// The number below which our proposal was refused.
    number: u32,
    waiting: Waiting,
}

struct Seed {
    address: String,
    asking: Option<Asking<PeerHello>>,
    answer: Option<Result<PeerHello, String>>,
    /// When it was asked last, its name meant nothing to the resolver, or whoever is there is no node.
    is_wrong: bool,
}

impl Seed {
    fn new(address: &str) -> Self {
        Self { address: address.to_owned(), asking: None, answer: None, is_wrong: false }
    }

    fn on_answer(&mut self, answer: Result<PeerHello, LinkError>) {
        let is_no_node = answer.as_ref().is_err_and(LinkError::is_no_node);
        self.is_wrong = is_no_node || matches!(answer, Err(LinkError::Resolve { .. }));
        self.answer = Some(answer.map_err(|error| match is_no_node {
            true => format!("{error}; {NO_NODE}"),
            false => error.to_string(),
        }));
        self.asking = None;
    }
}

/// What somebody may have meant who names as a seed what is none.
const NO_NODE: &str = "no node listens for other nodes at that port: write that of its --cluster here (--seeds HOST:PORT), not where clients \
                       connect; or only one of the two nodes has TLS for it";

impl<'a> Search<'a> {
    fn new(inner: &'a Inner, transport: &'a Transport, stop: &'a AtomicBool) -> Self {
        let seeds = inner.seeds.iter().map(|address| Seed::new(address)).collect();
        Self { inner, transport, stop, seeds, number: 1, waiting: Waiting::default() }
    }

    fn run(mut self) -> Result<Formation, FormationError> {
        if self.seeds.is_empty() {
            return self.form_alone();
        }
        loop {
            self.look()?;
            let seen: Vec<Seen<'_>> =
                self.seeds.iter().map(|seed| (seed.address.as_str(), seed.answer.as_ref())).collect();
            match next_step(&self.inner.me, &seen)? {
                Step::Wait(reason) => {
                    let lasts = self.seeds.iter().any(|seed| seed.is_wrong);
                    self.waiting.say_of(&reason, lasts);
                }
                Step::Mend(reason) => self.waiting.say_of(&reason, true),
                Step::Fetch(addresses) => {
                    if let Some(formation) = self.fetch(addresses)? {
                        return Ok(self.inner.settle(formation));
                    }
                }
                Step::Form(others) => {
                    if let Some(formation) = self.form(others)? {
                        return Ok(self.inner.settle(formation));
                    }
                }
            }
            self.pause(self.inner.round)?;
        }
    }

    fn form_alone(&self) -> Result<Formation, FormationError> {
        let Inner { me, terms, ledger, .. } = self.inner;
        let mut ledger = lock(ledger);
        let proposal = ledger.propose(me, vec![me.node], 1).map_err(FormationError::Alone)?;
        let formation = formation(&proposal, terms, vec![me.clone()]);
        match ledger.decide(&proposal, formation.clone()) {
            Ok(()) => Ok(self.inner.settle(formation)),
            Err(AdoptError::Ledger(error)) => Err(error.into()),
            Err(AdoptError::NotListed(_) | AdoptError::NotPromised(_)) => {
                unreachable!("it has just promised this itself, under the same lock")
            }
        }
    }

    /// Takes in what the seeds answered, and asks those again that have.
    fn look(&mut self) -> Result<(), FormationError> {
        for seed in &mut self.seeds {
            let asking = seed.asking.get_or_insert_with(|| self.transport.who(seed.address.clone()));
            match asking.try_recv() {
                Ok(answer) => seed.on_answer(answer),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(FormationError::Stopped),
            }
        }
        if let Some(Seed { answer: Some(Ok(first)), .. }) = self.seeds.first() {
            self.inner.first.store(first.node.0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Asks those that have a cluster for its record, and adopts one that lists this node.
    fn fetch(&mut self, addresses: Vec<String>) -> Result<Option<Formation>, FormationError> {
        let asked: Vec<_> =
            addresses.into_iter().map(|address| self.ask(address, Question::Form, Bytes::new())).collect();
        for (address, asking) in asked {
            let record = match self.wait(&asking)? {
                Ok((_, body)) => Formation::decode(body).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let refused = match record {
                Err(error) => error,
                // How a node joined is its own matter: who is listed there may have been admitted after the formation.
                Ok(formation) if formation.is_joined => match self.join(address.clone(), formation.cluster_id)? {
                    Ok(formation) => return Ok(Some(formation)),
                    Err(waiting) => waiting,
                },
                Ok(formation) => {
                    let adopted = lock(&self.inner.ledger).adopt(formation.clone());
                    match adopted {
                        Ok(()) => return Ok(Some(formation)),
                        Err(AdoptError::Ledger(error)) => return Err(error.into()),
                        Err(AdoptError::NotListed(cluster)) => match self.join(address.clone(), cluster)? {
                            Ok(formation) => return Ok(Some(formation)),
                            Err(waiting) => waiting,
                        },
                        Err(error) => error.to_string(),
                    }
                }
            };
            let lasts = refused.starts_with(NOT_TAKEN);
            self.waiting.say_of(&format!("seed {address} is part of a cluster: {refused}"), lasts);
        }
        Ok(None)
    }

    /// Asks to be a member of a cluster that there is: at `address`, and where that one sends us. The inner error says what is
    /// waited for.
    fn join(&self, address: String, cluster: ClusterId) -> Result<Result<Formation, String>, FormationError> {
        let mut address = address;
        for _ in 0..JOIN_HOPS_MAX {
            let body = Bytes::from(self.inner.me.encode_to_vec());
            let (_, asking) = self.ask(address.clone(), Question::Join, body);
            let joined = match self.wait(&asking)? {
                Ok((_, body)) => Joined::decode(body).map_err(|_| "its answer is malformed".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match joined {
                Err(error) => return Ok(Err(error)),
                Ok(Joined { refusal, .. }) if !refusal.is_empty() => {
                    return Ok(Err(format!("{NOT_TAKEN}: {refusal}")));
                }
                Ok(Joined { elsewhere, .. }) if !elsewhere.is_empty() => address = elsewhere,
                Ok(Joined { formation, .. }) if formation.is_empty() => {
                    return Ok(Err("asked to be a member".to_owned()));
                }
                Ok(Joined { formation, .. }) => return self.take_part(formation, cluster),
            }
        }
        Ok(Err("its members do not agree on who leads".to_owned()))
    }

    fn take_part(&self, record: Bytes, cluster: ClusterId) -> Result<Result<Formation, String>, FormationError> {
        let formation = match Formation::decode(record) {
            Ok(formation) if formation.cluster_id == cluster => Formation { is_joined: true, ..formation },
            Ok(_) => return Ok(Err("its members are of another cluster".to_owned())),
            Err(error) => return Ok(Err(error.to_string())),
        };
        let joined = lock(&self.inner.ledger).join(formation.clone());
        match joined {
            Ok(()) => Ok(Ok(formation)),
            Err(AdoptError::Ledger(error)) => Err(error.into()),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Asks all others for their promises, and decides if all gave them.
    fn form(&mut self, others: Vec<(String, NodeId)>) -> Result<Option<Formation>, FormationError> {
        let me = &self.inner.me;
        let members = others.iter().map(|(_, node)| node.0).chain([me.node]).collect();
        let proposal = match lock(&self.inner.ledger).propose(me, members, self.number) {
            Ok(proposal) => proposal,
            Err(PromiseError::Ledger(error)) => return Err(error.into()),
            Err(error) => {
                self.waiting.say(&format!("this node is the first seed, but does not form a cluster: {error}"));
                return Ok(None);
            }
        };
        let body = Bytes::from(proposal.encode_to_vec());
        let asked: Vec<_> = others
            .into_iter()
            .map(|(address, node)| (node, self.ask(address, Question::Promise, body.clone())))
            .collect();
        let mut records = vec![me.clone()];
        for (node, (address, asking)) in asked {
            match self.wait(&asking)?.map_err(|error| error.to_string()).and_then(|answer| promised(node, answer)) {
                Ok(Ok(member)) => records.push(member),
                Ok(Err(Promised { refusal, number, .. })) => {
                    self.number = self.number.max(number.saturating_add(1));
                    self.waiting.say(&format!("seed {address} does not promise to join: {refusal}"));
                }
                Err(error) => self.waiting.say(&format!("seed {address} does not promise to join: {error}")),
            }
        }
        if records.len() < proposal.members.len() {
            return Ok(None);
        }
        let formation = formation(&proposal, &self.inner.terms, records);
        match lock(&self.inner.ledger).decide(&proposal, formation.clone()) {
            Ok(()) => Ok(Some(formation)),
            Err(AdoptError::Ledger(error)) => Err(error.into()),
            Err(error) => {
                self.waiting.say(&format!("this node is the first seed, but does not form a cluster: {error}"));
                Ok(None)
            }
        }
    }

    fn ask(&self, address: String, question: Question, body: Bytes) -> (String, Asking<(PeerHello, Bytes)>) {
        let asking = self.transport.ask(Target::Address(address.clone()), question, body);
        (address, asking)
    }

    fn wait<T>(&self, asking: &Asking<T>) -> Result<Result<T, LinkError>, FormationError> {
        while !self.stop.load(Ordering::Relaxed) {
            match asking.recv_timeout(STOP_NOTICED) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Err(FormationError::Stopped)
    }

    fn pause(&self, pause: Duration) -> Result<(), FormationError> {
        let until = Instant::now() + pause;
        while !self.stop.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(STOP_NOTICED));
        }
        Err(FormationError::Stopped)
    }
}

/// What other members know `me` as, if that is another name.
fn other_name(formation: &Formation, me: &MemberRecord) -> Option<String> {
    let known = formation.members.iter().find(|member| member.node == me.node)?;
    (formation.members.len() > 1 && known.name != me.name).then(|| known.name.clone())
}

fn formation(proposal: &Proposal, terms: &Terms, mut members: Vec<MemberRecord>) -> Formation {
    members.sort_by_key(|member| member.node);
    let cluster_id = proposal.cluster().expect("a proposal of our own has a cluster id");
    Formation { cluster_id, terms: terms.clone(), members, is_joined: false }
}

/// What `node` said to our proposal.
fn promised(node: NodeId, (hello, body): (PeerHello, Bytes)) -> Result<Result<MemberRecord, Promised>, String> {
    if hello.node != node {
        return Err(format!("node {} was there, and now node {}", node, hello.node));
    }
    let mut promised = Promised::decode(body).map_err(|_| "its answer is malformed".to_owned())?;
    match promised.member.take() {
        None => Ok(Err(promised)),
        Some(member) if member.node == node.0 && member.name == hello.name => Ok(Ok(member)),
        Some(_) => Err("it answers for another node".to_owned()),
    }
}

/// What a cluster that refuses a joiner is quoted with.
const NOT_TAKEN: &str = "it does not take this node";

/// Says what is waited for, not more often than anybody wants to read it.
#[derive(Default)]
struct Waiting {
    /// What was said within [`REPEATED`], the last one at the end; no more than fit into that, [`SAID`] apart.
    said: Vec<(Instant, String)>,
    /// Since when, and until when, there was a reason that hardly passes by itself.
    lasting: Option<(Instant, Instant)>,
}

/// How a reason to wait is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// It passes, as a rule.
    Plainly,
    /// It has not passed for [`REPEATED`], and will hardly do so.
    AsWarning,
}

impl Waiting {
    fn say(&mut self, reason: &str) {
        self.say_of(reason, false);
    }

    /// `lasts`: somebody must mend it, unless it is over within moments, as with a name that is still being published, or a
    /// predecessor that is not dead yet.
    fn say_of(&mut self, reason: &str, lasts: bool) {
        match self.how(Instant::now(), reason, lasts) {
            None => {}
            Some(Said::Plainly) => tracing::info!("no cluster yet: {reason}"),
            Some(Said::AsWarning) => {
                tracing::warn!("no cluster yet, so no clients are served, and this hardly passes by itself: {reason}")
            }
        }
    }

    fn how(&mut self, now: Instant, reason: &str, lasts: bool) -> Option<Said> {
        let has_lasted = lasts && self.has_lasted(now);
        self.said.retain(|(at, _)| now.saturating_duration_since(*at) < REPEATED);
        let is_soon = self.said.last().is_some_and(|(at, _)| now.saturating_duration_since(*at) < SAID);
        if is_soon || self.said.iter().any(|(_, said)| said == reason) {
            return None;
        }
        self.said.push((now, reason.to_owned()));
        Some(if has_lasted { Said::AsWarning } else { Said::Plainly })
    }

    /// Whether there has been such a reason for [`REPEATED`], with no longer pause than a look at seeds that do not answer takes.
    fn has_lasted(&mut self, now: Instant) -> bool {
        let since = match self.lasting {
            Some((since, until)) if now.saturating_duration_since(until) < REPEATED => since,
            _ => now,
        };
        self.lasting = Some((since, now));
        now.saturating_duration_since(since) >= REPEATED
    }
}

#[cfg(test)]
mod waiting_tests {
    use super::*;

    #[test]
    fn what_hardly_passes_by_itself_is_a_warning_once_it_has_lasted() {
        let (mut waiting, begun) = (Waiting::default(), Instant::now());
        assert_eq!(waiting.how(begun, "nowhere", true), Some(Said::Plainly));
        assert_eq!(waiting.how(begun + SAID, "nowhere", true), None);
        assert_eq!(waiting.how(begun + REPEATED, "nowhere", true), Some(Said::AsWarning));
        assert_eq!(waiting.how(begun + REPEATED + SAID, "another", false), Some(Said::Plainly));
        // It was mended, and later it is there again.
        assert_eq!(waiting.how(begun + REPEATED * 4, "nowhere", true), Some(Said::Plainly));
    }

    /// As of three seeds of a cluster that does not take this node, each of which says so.
    #[test]
    fn reasons_that_alternate_are_each_said_once_in_a_while() {
        let (mut waiting, begun) = (Waiting::default(), Instant::now());
        let mut said = Vec::new();
        for round in 0..(REPEATED * 2).as_millis() / ROUND.as_millis() {
            let now = begun + ROUND * round as u32;
            said.extend(["one", "two", "three"].iter().filter_map(|reason| waiting.how(now, reason, true)));
        }
        assert_eq!(said, [[Said::Plainly; 3], [Said::AsWarning; 3]].concat());
    }
}
