//! A connection as its arbiter keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::Waker;

use actix::Addr;
use hashbrown::HashMap;
use kentongan_proto::mqtt::{ProtocolVersion, QoS, SubscriptionOptions, Will};

use super::changing::Changes;
use super::cluster::Served;
use super::lanes::BlockedLane;
use super::pace::Pace;
use super::renewal::RightsRenewal;
use super::retained_read::RetainedReads;
use super::share_settling::ShareOrigin;
use crate::auth::{Actor, Credential, Granted, Identified, Rights};
use crate::connection::{ConnectionActor, Origin, OutBuffer, Transport};
use crate::listener::ListenerContext;
use crate::message::Message;
use crate::mount::Mount;
use crate::replicated::PersistentSession;
use crate::session::acknowledgements::Acknowledgements;
use crate::session::alias::{InboundAliases, OutboundAliases};
use crate::session::inbound::Inbound;
use crate::session::outbound::Outbound;
use crate::subscription::ShareGroup;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing but a CONNECT is accepted.
    AwaitingConnect,
    /// Authentication exchanges AUTH packets.
    Authenticating,
    /// A thread looks at a password; nothing is read meanwhile.
    Verifying,
    /// The Client Identifier is to be claimed once it is this connection's turn; nothing is read meanwhile.
    AwaitingTurn,
    /// It is being claimed; nothing is read meanwhile.
    Claiming,
    /// CONNACK was sent.
    Connected,
    /// DISCONNECT came, and the group that keeps the will has not said that it knows: closed before, a client would count
    /// on that in vain.
    Leaving,
    /// Only what is in the buffer is still written.
    Closing,
}

/// A message of QoS 1 or 2 in the window of a transient session, or in the queue before it.
#[derive(Debug, Clone)]
pub struct Held {
    /// `None` once it is on the wire and nobody else could get it: a transient session never sends it again.
    pub message: Option<Arc<Message>>,
    /// RETAIN as it goes to this client.
    pub retain: bool,
    /// Subscription Identifiers that go with it; `None` once it is on the wire.
    pub identifiers: Option<Box<[u32]>>,
    /// The shared subscription it came by, to whose other members it goes if this session ends.
    pub share: Option<Arc<ShareGroup>>,
    /// The node that picked this one for it, and waits for what becomes of it. Boxed, for few come so, and all are copied
    /// into the window.
    pub origin: Option<Box<ShareOrigin>>,
}

/// What it depends on whether a will may be published.
#[derive(Debug)]
pub struct WillTerms {
    /// As CONNECT said it, below the mount point.
    pub topic: Box<str>,
    /// Quality of Service.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
}

impl From<&Will> for WillTerms {
    fn from(will: &Will) -> Self {
        Self { topic: Box::from(&*will.topic), qos: will.qos, retain: will.retain }
    }
}

/// A subscription as the connection remembers it, to be undone when it ends.
#[derive(Debug, Clone, Copy)]
pub struct OwnSubscription {
    /// As granted.
    pub options: SubscriptionOptions,
    /// Subscription Identifier.
    pub identifier: Option<NonZeroU32>,
}

/// Until when at the latest it is looked whether a login has ended, rights are due, or nothing was heard. What was armed for a
/// connection stays in the wheel when that is gone, so it must not be armed for the year that a token may be good for, nor for the
/// day that a Keep Alive may last.
pub(super) const LOOK_SECONDS_MAX: u32 = 600;

/// What a connection has once its CONNECT was accepted.
#[derive(Debug)]
pub struct ClientSession {
    /// Messages from the client.
    pub inbound: Inbound,
    /// What the client is owed for them.
    pub owed: Acknowledgements,
    /// Aliases the client set.
    pub aliases_in: InboundAliases,
    /// Aliases we set.
    pub aliases_out: OutboundAliases,
    /// Messages to the client, if the session is transient.
    pub outbound: Outbound<Held>,
    /// `None`: the session ends with the connection, and no group knows of it.
    pub persistent: Option<PersistentSession>,
    /// What its Will Message is judged by if the connection ends, whoever keeps it. `None`: CONNECT brought none.
    pub will_terms: Option<Box<WillTerms>>,
    /// Published if the connection ends abnormally (transient sessions; a group keeps that of a persistent one).
    pub will: Option<Box<Will>>,
    /// By Topic Filter, shared ones with their `$share/NAME/`.
    pub subscriptions: HashMap<Box<str>, OwnSubscription, foldhash::fast::RandomState>,
    /// Topic Filters that it does not have and its group was asked for: they count as if it had them.
    pub asked: BTreeSet<Box<str>>,
    /// Topic Filters that SUBSCRIBEs and UNSUBSCRIBEs name which its group has not answered, and in how many places: until it has,
    /// nobody knows here by what terms they stand there.
    pub terms_asked: BTreeMap<Box<str>, u32>,
    /// Retained messages still to be sent.
    pub reads: RetainedReads,
    /// The authenticated identity, empty for an anonymous client.
    pub identity: Arc<str>,
    /// Whom CONNECT said to be, if that is another name: a ban on it counts too.
    pub claimed: Option<Box<str>>,
    /// Why that is believed.
    pub credential: Credential,
    /// What its login brings along.
    pub granted: Option<Arc<Granted>>,
    /// What it may do. `None`: there are no rules.
    pub rights: Option<Box<Rights>>,
    /// When a server is asked for that again, if one is.
    pub renewal: Option<Box<RightsRenewal>>,
    /// The second in which its deadlines are looked at next. What the wheel has for it before that is left from earlier plans.
    pub look_at: u32,
    /// UNSUBSCRIBEs that the client did not send, and is not to be answered.
    pub revocations: Vec<u64>,
    /// Milliseconds of the process clock at which CONNACK was sent.
    pub connected_ms: u64,
    /// Seconds; may be changed by DISCONNECT.
    pub session_expiry_seconds: u32,
    /// Another broker, which may send back what it got from here unless its subscriptions leave that out.
    pub bridge: bool,
    /// Reason Strings may go on any packet.
    pub problem_information: bool,
    /// What the session's group may ask for; only where there are several nodes.
    pub served: Option<Box<Served>>,
    /// Its subscriptions that go over to its group, or from there.
    pub changes: Option<Box<Changes>>,
}

impl ClientSession {
    /// Who the client is, and why that is believed.
    #[must_use]
    pub fn identified(&self) -> Identified {
        let (identity, credential) = (Arc::clone(&self.identity), self.credential.clone());
        Identified { identity, credential, granted: self.granted.clone() }
    }

    /// In which second to look at its login or its rights, beside its Keep Alive.
    #[must_use]
    pub fn next_second(&self, now: u32) -> Option<u32> {
        let renewal = self.renewal.as_ref().map(|renewal| renewal.next_second());
        let next = self.login_ends_second().into_iter().chain(renewal).min();
        next.map(|second| second.min(now.saturating_add(LOOK_SECONDS_MAX)))
    }

    /// The second of the process clock in which its login has ended, if it ever does.
    #[must_use]
    pub fn login_ends_second(&self) -> Option<u32> {
        let expires_ms = self.granted.as_ref()?.expires_ms()?;
        Some(u32::try_from(expires_ms.div_ceil(1000)).unwrap_or(u32::MAX))
    }
}

/// Whether a connection is not read because a SUBSCRIBE or UNSUBSCRIBE has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BehindSuback {
    /// It is read.
    No,
    /// Not since this second.
    Since(u32),
    /// It was not for [`SUBACK_SECONDS_MAX`](super::subscribe::SUBACK_SECONDS_MAX), and is read until all have their answers.
    LongEnough,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    /// Distinguishes the tenants of one place in the slab.
    pub generation: u32,
    /// How far it has come.
    pub phase: Phase,
    /// Fixed by CONNECT.
    pub version: ProtocolVersion,
    /// It stands in the arbiter's list of connections to flush.
    pub dirty: bool,
    /// The socket took no more; its readiness is awaited.
    pub blocked: bool,
    /// Writing failed, so nothing is written any more; reading goes on until it fails or ends too.
    pub deaf: bool,
    /// `partial` may hold whole packets that were not looked at, because reading had to stop.
    pub unprocessed: bool,
    /// Reading waits for something else than the socket.
    pub paused: bool,
    /// It stands in the arbiter's line of connections that wait in the midst of a packet.
    pub amid_packet: bool,
    /// It asked for something while others could not keep up: what it asks for next waits until they can.
    pub held_up: bool,
    /// SUBSCRIBEs and UNSUBSCRIBEs without an answer: what it publishes next waits until there are none.
    pub unanswered: usize,
    /// Whether it is not read for that.
    pub(super) behind_suback: BehindSuback,
    /// Second in which it last went on by one packet though memory is short.
    pub went_on_second: u32,
    /// It is held up for what it has for a group or node that answers nothing.
    pub(super) behind_blocked: Option<BlockedLane>,
    /// What is sent to it is looked at: it may have been queued, or subscribed to, under other rules.
    pub guarded: bool,
    /// Another connection claims the Client Identifier and waits for our release.
    pub taken_over: bool,
    /// It is to end so that the peer sees a broken connection: closed in an orderly way it would pass for the answer to a
    /// DISCONNECT that nobody read, or that no group has heard of (P9).
    pub breaks_off: bool,
    /// Seconds; 0 is off.
    pub keep_alive_seconds: u16,
    /// Second of the arbiter's clock in which the last packet came, or much of one.
    pub last_activity: u32,
    /// Second in which the socket last took anything, while `blocked` or `deaf`.
    pub blocked_since: u32,
    /// Reading waits until the client has taken what it is owed.
    pub owes_reading: bool,
    /// How fast it publishes, where there are bounds on that.
    pub pace: Pace,
    /// Reading waits for a bucket of [`Rates`](super::pace::Rates) to fill; `paused` as well.
    pub paced: bool,
    /// Largest packet the client takes.
    pub packet_bytes_max_out: u32,
    /// The socket.
    pub transport: Transport,
    /// Bytes to write.
    pub out: OutBuffer,
    /// The beginning of a packet whose rest has not come.
    pub partial: Vec<u8>,
    /// Wakes the actor's read loop.
    pub waker: Option<Waker>,
    /// The actor, for what is rare.
    pub address: Option<Addr<ConnectionActor>>,
    /// Empty until CONNECT.
    pub client_id: Arc<str>,
    /// Once connected.
    pub session: Option<Box<ClientSession>>,
    /// A CONNECT whose claim is under way.
    pub pending: Option<Box<super::connect::PendingConnect>>,
    /// The listener it came by.
    pub listener: Arc<ListenerContext>,
    /// What stands in front of its topics, within the broker. Such a client is `guarded`.
    pub mount: Option<Mount>,
    /// Who is at the other end.
    pub origin: Origin,
}

impl Client {
    /// Takes in what the layers below MQTT have learned about the other end, now that bytes of it were read.
    pub fn learn_origin(&mut self) {
        if let Some(address) = self.transport.said_address() {
            self.origin.address = Some(address);
        }
        if let Some(certified) = self.transport.certified() {
            self.origin.certified = Some(certified);
        }
    }

    /// It, as the one who wants to do something; `None` before CONNACK.
    #[inline]
    #[must_use]
    pub fn actor(&self) -> Option<Actor<'_>> {
        let session = self.session.as_ref()?;
        Some(Actor { identity: &session.identity, client_id: &self.client_id, rights: session.rights.as_deref() })
    }

    /// Bytes that this connection keeps in memory until the client takes them, acknowledges others, or says the rest of what it began.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        let of_session = self.session.as_ref().map_or(0, |session| {
            let queued = usize::try_from(session.outbound.backlog().queued_bytes).unwrap_or(0);
            queued + session.reads.held_bytes()
        });
        self.out.len() + self.partial.capacity() + of_session
    }

    /// Whether it has something that it may acknowledge, and by that make memory free.
    #[must_use]
    pub fn has_unacknowledged(&self) -> bool {
        self.session.as_ref().is_some_and(|session| {
            let by_group = match &session.served {
                Some(served) => !served.sent.is_empty(),
                None => session.persistent.is_some(),
            };
            by_group || session.outbound.in_flight() > 0
        })
    }

    /// Whether packets to it may be written.
    #[inline]
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }
}
