//! Sessions that outlive their connections, and retained messages: what the leaders of groups have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use kentongan_cluster::group::Role;
use kentongan_proto::mqtt::QoS;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::in_turn::InTurn;
use super::{Answered, AskError, Operator, PART_MAX, Question, ROW_BYTES_MAX, ROWS_MAX};
use crate::connection_key::ConnectionKey;
use crate::message::Message;
use crate::replicated::ClaimRequest;
use crate::replicated::command::{self, Command, Owner};
use crate::replicated::session::PersistentSession;
use crate::replicated::state::GroupState;
use crate::replicated::submitter::{Look, Query};
use crate::session::outbound::QueueCaps;

/// Topics that are looked at for one page of retained messages.
const TOPICS_A_LOOK: usize = 5000;

/// Bytes of a payload that is shown: in Base64 it must fit into a frame between nodes.
const PAYLOAD_SHOWN_MAX: usize = 8 * 1024 * 1024;

/// Time for a session to end. Whoever asked waits no longer than [`PART_MAX`].
const ENDED_WITHIN: Duration = Duration::from_secs(4);

/// Between two looks whether it has.
const END_PAUSE: Duration = Duration::from_millis(20);

/// After so many looks it is said again that it is to end: a client that came meanwhile may have claimed it.
const LOOKS_A_CLAIM: usize = 15;

/// The connection in whose name sessions are ended. No arbiter has it: each has less than so many places.
fn of_operator() -> ConnectionKey {
    ConnectionKey::new(0, ConnectionKey::INDEX_MAX, u32::MAX)
}

/// Which sessions of a group are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionsAsked {
    /// Of which group.
    pub group: u16,
    /// Those behind this name.
    pub after: Option<String>,
    /// How many at most.
    pub limit: usize,
    /// Only those of this user.
    pub username: Option<String>,
    /// Only those with this in their Client Identifiers.
    pub like_clientid: Option<String>,
    /// Only those that have, or have not, a connection.
    pub connected: Option<bool>,
}

/// A session that outlives its connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Session {
    /// Its Client Identifier.
    pub clientid: String,
    /// Whose it is; null if nobody's in particular.
    pub username: Option<String>,
    /// Whether it has a connection.
    pub connected: bool,
    /// The id of the node that the connection is to.
    pub node: Option<String>,
    /// For how many seconds it outlives its connection; 4294967295 is for ever.
    pub expiry_interval: u32,
    /// How many subscriptions it has.
    pub subscriptions_cnt: usize,
    /// Messages that wait for it.
    pub mqueue_len: u64,
    /// Bytes of them.
    pub mqueue_bytes: u64,
    /// Messages that its client has not acknowledged.
    pub inflight_cnt: u64,
    /// Messages of QoS 2 that its client has not released.
    pub awaiting_rel_cnt: usize,
    /// The group that keeps it.
    pub group: u16,
}

/// A session with what it subscribes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SessionDetail {
    /// The session.
    #[serde(flatten)]
    pub session: Session,
    /// Its subscriptions by Topic Filter; the first 1000.
    pub subscriptions: Vec<SessionSubscription>,
}

/// A subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SessionSubscription {
    /// Topic Filter, of a shared one with its `$share/NAME/`.
    pub topic: String,
    /// As granted.
    #[schema(minimum = 0, maximum = 2)]
    pub qos: u8,
}

/// Which retained messages of a group are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetainedAsked {
    /// Of which group.
    pub group: u16,
    /// Those behind this topic.
    pub after: Option<String>,
    /// How many at most.
    pub limit: usize,
    /// Whose topics this Topic Filter matches.
    pub filter: String,
    /// Whether their payloads are wanted.
    pub payload: bool,
}

/// A part of what a group has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part<T> {
    /// By their names.
    pub rows: Vec<T>,
    /// Where to go on; `None`: those were all.
    pub next: Option<String>,
}

/// A retained message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RetainedMessage {
    /// Topic Name.
    pub topic: String,
    /// As published.
    #[schema(minimum = 0, maximum = 2)]
    pub qos: u8,
    /// Bytes of its payload.
    pub payload_bytes: usize,
    /// Who published it; empty: the broker, or an operator.
    pub from_clientid: String,
    /// In how many seconds it is over; null: never.
    pub expires_in_seconds: Option<u64>,
    /// Its payload in Base64; only if one message is asked for, and up to 8 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

impl Operator {
    /// Looks at a group that this node leads.
    fn look<T: Send + 'static>(&self, group: u16, look: impl FnOnce(&GroupState) -> T + Send + 'static) -> Answered<T> {
        let (answer, answered) = bounded(1);
        let look = Look::new(group, move |state| {
            // Whoever gave up waiting needs no answer.
            let _ = answer.send(state.map(look));
        });
        self.pipeline.notify(Query::Look(look));
        match answered.recv_timeout(PART_MAX) {
            Ok(Some(seen)) => Ok(seen),
            Ok(None) => Err(self.not_led_here(group)),
            Err(_) => Err(self.silent("look at its groups")),
        }
    }

    /// What there is to say of a group that whoever asks took this node for the leader of. Who led it last is remembered also when nobody
    /// leads it any more.
    fn not_led_here(&self, group: u16) -> String {
        let Ok(statuses) = self.pipeline.status().recv_timeout(PART_MAX) else {
            return self.silent("say who leads a group");
        };
        match statuses.iter().find(|(kept, _)| kept.0 == group).map(|(_, status)| status.role) {
            Some(Role::Follower { leader: None }) => no_leader(&format!("group {group}")),
            _ => format!("group {group} has another leader by now: ask again"),
        }
    }

    pub(super) fn sessions_here(&self, asked: &SessionsAsked) -> Answered<Part<Session>> {
        let SessionsAsked { group, after, limit, username, like_clientid, connected } = asked.clone();
        let limit = limit.clamp(1, ROWS_MAX);
        self.look(group, move |state| {
            let wanted = |session: &PersistentSession| {
                username.as_ref().is_none_or(|wanted| *wanted == *session.identity)
                    && like_clientid.as_ref().is_none_or(|part| session.client_id.contains(part.as_str()))
                    && connected.is_none_or(|wanted| wanted == session.owner.is_some())
            };
            let mut rows = Vec::new();
            let mut bytes = 0;
            let found = state.show_sessions(after.as_deref(), limit, wanted);
            let mut is_more = found.len() == limit;
            for session in found {
                if bytes >= ROW_BYTES_MAX {
                    is_more = true;
                    break;
                }
                bytes += 300 + session.client_id.len();
                rows.push(session_row(session, group));
            }
            let next = rows.last().filter(|_| is_more).map(|last| last.clientid.clone());
            Part { rows, next }
        })
    }

    pub(super) fn session_here(&self, client_id: &str) -> Answered<Option<SessionDetail>> {
        let group = self.shared.submitter.slots().group_of(client_id);
        let client_id = client_id.to_owned();
        self.look(group, move |state| {
            let session = state.shown_session(&client_id)?;
            let subscriptions = session
                .subscriptions
                .iter()
                .take(ROWS_MAX)
                .scan(0, |bytes, (filter, own)| {
                    *bytes += filter.len();
                    (*bytes < ROW_BYTES_MAX).then_some((filter, own))
                })
                .map(|(filter, own)| SessionSubscription { topic: filter.to_string(), qos: number(own.options.qos) });
            Some(SessionDetail { session: session_row(session, group), subscriptions: subscriptions.collect() })
        })
    }

    /// Ends the session of this name; whether there was one. This node must lead its group.
    ///
    /// It is done as a client does it, which claims the session to begin it anew (Clean Start) and to keep nothing (Session Expiry
    /// Interval 0): so a client that has it now is disconnected first, one that comes meanwhile waits its turn, and the group ends it as one whose
    /// time is over, in an entry that every replica applies.
    pub(super) fn discard_here(&self, client_id: &str) -> Answered<bool> {
        let group = self.shared.submitter.slots().group_of(client_id);
        let present = || {
            let client_id = client_id.to_owned();
            self.look(group, move |state| {
                state.shown_session(&client_id).map(|session| (session.number, Arc::clone(&session.identity)))
            })
        };
        let Some((number, identity)) = present()? else { return Ok(false) };
        let claim = ClaimRequest {
            connection: of_operator(),
            client_id: Arc::from(client_id),
            identity,
            has_granted_rules: false,
            clean_start: true,
            session_expiry_seconds: 0,
            will: None,
            window: 1,
            caps: QueueCaps::default(),
        };
        let deadline = Instant::now() + ENDED_WITHIN;
        for look in 0.. {
            if look % LOOKS_A_CLAIM == 0 {
                self.claim_for_nobody(group, claim.clone());
            }
            std::thread::sleep(END_PAUSE);
            // Another of the same name has another number.
            if present()?.is_none_or(|(now, _)| now != number) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err("it has not ended yet: ask again".to_owned())
    }

    fn claim_for_nobody(&self, group: u16, claim: ClaimRequest) {
        let Some(cluster) = &self.shared.cluster else {
            return self.shared.submitter.claim(claim);
        };
        let owner =
            Owner { incarnation: self.shared.incarnation(), connection: claim.connection.raw(), node: cluster.node };
        let connect = command::Connect { wait_for_release: true, keep_transient: false, ..claim.command(owner) };
        self.shared.submitter.propose(group, Command::Connect(connect));
    }

    pub(super) fn retained_here(&self, asked: &RetainedAsked) -> Answered<Part<RetainedMessage>> {
        let RetainedAsked { group, after, limit, filter, payload } = asked.clone();
        let limit = limit.clamp(1, ROWS_MAX);
        self.look(group, move |state| {
            let clock_ms = state.clock_ms();
            let page = state.retained_page(&filter, after.as_deref(), limit, usize::MAX, TOPICS_A_LOOK);
            let mut bytes = 0;
            let fits = |message: &&std::sync::Arc<Message>| {
                let fits = bytes < ROW_BYTES_MAX;
                bytes += 200 + message.topic.len();
                fits
            };
            let rows: Vec<_> =
                page.messages.iter().take_while(fits).map(|message| retained_row(message, clock_ms, payload)).collect();
            let next = match rows.len() < page.messages.len() {
                true => rows.last().map(|last| last.topic.clone()),
                false => page.next.map(|next| next.to_string()),
            };
            Part { rows, next }
        })
    }

    /// Asks whoever leads the group of a name.
    ///
    /// # Errors
    /// There is no leader, or it does not answer.
    pub fn ask_leader<T: DeserializeOwned>(&self, group: u16, question: &Question) -> Result<T, AskError> {
        match self.leaders()?.get(usize::from(group)) {
            Some(&leader) if leader != 0 => self.ask(leader, question),
            _ => Err(AskError::Unavailable(no_leader(&format!("group {group}")))),
        }
    }
}

/// The leaders of groups, while a list is made of what they have, one group after another. A node that says nothing may lead many groups, and
/// another one the rest.
#[derive(Debug)]
pub struct GroupLeaders<'a> {
    /// By group; 0: nobody.
    nodes: Vec<u64>,
    in_turn: InTurn<'a>,
}

impl<'a> GroupLeaders<'a> {
    /// As this node knows them now, of the groups from this one on.
    ///
    /// # Errors
    /// It is too busy.
    pub fn new(operator: &'a Operator, from: u16) -> Result<Self, AskError> {
        let nodes = operator.leaders()?;
        let asked = nodes.iter().skip(usize::from(from)).copied().filter(|&node| node != 0);
        Ok(Self { in_turn: InTurn::new(operator, asked), nodes })
    }

    /// How many groups there are.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.nodes.len()
    }

    /// Asks whoever leads a group.
    ///
    /// # Errors
    /// It has no leader, or that one does not answer.
    pub fn ask<T: DeserializeOwned>(&mut self, group: u16, question: &Question) -> Result<T, AskError> {
        match self.nodes.get(usize::from(group)) {
            Some(&leader) if leader != 0 => self.in_turn.ask(leader, question),
            _ => Err(AskError::Unavailable(no_leader("it"))),
        }
    }
}

fn no_leader(group: &str) -> String {
    format!("{group} has no leader that this node knows: a majority of its nodes must be up")
}

fn session_row(session: &PersistentSession, group: u16) -> Session {
    let backlog = session.outbound.backlog();
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    Session {
        clientid: session.client_id.to_string(),
        username: Some(session.identity.to_string()).filter(|name| !name.is_empty()),
        connected: session.owner.is_some(),
        node: session.owner.map(|owner| kentongan_cluster::NodeId(owner.node).to_string()),
        expiry_interval: session.expiry_seconds,
        subscriptions_cnt: session.subscriptions.len(),
        // Behind retained ones that its client went without, too.
        mqueue_len: count(backlog.queued_messages) + session.held.len() as u64,
        mqueue_bytes: count(backlog.queued_bytes) + session.held_bytes as u64,
        inflight_cnt: count(backlog.in_flight),
        awaiting_rel_cnt: session.received.len(),
        group,
    }
}

fn retained_row(message: &Message, clock_ms: u64, payload: bool) -> RetainedMessage {
    use base64::Engine as _;
    RetainedMessage {
        topic: message.topic.to_string(),
        qos: number(message.qos),
        payload_bytes: message.payload.len(),
        from_clientid: message.publisher.to_string(),
        expires_in_seconds: message.expires_at_ms.map(|at| at.saturating_sub(clock_ms) / 1000),
        payload: (payload && message.payload.len() <= PAYLOAD_SHOWN_MAX)
            .then(|| base64::engine::general_purpose::STANDARD.encode(&message.payload)),
    }
}

/// As packets have it.
#[must_use]
pub fn number(qos: QoS) -> u8 {
    qos as u8
}
