//! From CONNECT to CONNACK.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kentongan_proto::mqtt::codec;
use kentongan_proto::mqtt::{Auth, AuthProperties, ConnAck, ConnAckProperties, Connect, Packet, ReasonCode};

use super::arbiter::{ArbiterState, wake};
use super::banned::BANNED;
use super::client::{ClientSession, LOOK_SECONDS_MAX, Phase, WillTerms};
use super::cluster::{Awaits, LastWord, Served, TOO_FEW_KEEP_IT};
use super::ended::EndCause;
use super::keep_alive::silence_seconds_max;
use super::log_rate::excerpt;
use super::retained_read::RetainedReads;
use super::shared::{MEMORY_LEVEL_CLOSES, MEMORY_LEVEL_REFUSES};
use super::{ConnectionKey, Event};
use crate::audit::RefusedLogin;
use crate::auth::{
    Actor, Credential, Identified, Mechanism, MechanismStep, Now, Progress, Redirection, Rights, Subject, Verified,
    begins_like_token,
};
use crate::metrics::{AuthenticationOutcome, ConnectRefusal};
use crate::mount::Unreachable;
use crate::replicated::command::{Connect as ConnectCommand, Owner, SessionCommand};
use crate::replicated::{ClaimRequest, Opened, PersistentSession};
use crate::session::SessionError;
use crate::session::acknowledgements::Acknowledgements;
use crate::session::alias::{InboundAliases, OutboundAliases};
use crate::session::handshake::{self, Negotiated, Refusal};
use crate::session::inbound::Inbound;
use crate::session::outbound::{Outbound, OutboundLimits};

/// Clients that ask for their sessions and that an arbiter lets in within a second although memory is short.
pub(super) const LET_IN_A_SECOND_MAX: u32 = 16;

/// What a client is told that comes meanwhile.
const MEMORY_IS_SHORT: &str = "memory is short";

/// What one is told that fights over a Client Identifier, or comes and goes.
const CONNECTS_TOO_OFTEN: &str = "this client identifier connects too often";

/// A CONNECT on its way to a CONNACK.
pub struct PendingConnect {
    connect: Box<Connect>,
    negotiated: Negotiated,
    identified: Identified,
    rights: Option<Box<Rights>>,
    /// While somebody else is asked: gone, nobody waits for the answer.
    awaited: Option<Arc<()>>,
    /// A server denied it, or decided nothing.
    is_refused_by_server: bool,
    mechanism: Option<Box<dyn Mechanism>>,
    authentication_data: Option<bytes::Bytes>,
}

impl PendingConnect {
    fn new(connect: Box<Connect>, negotiated: Negotiated) -> Box<Self> {
        Box::new(Self {
            connect,
            negotiated,
            identified: Identified::anonymous(),
            rights: None,
            awaited: None,
            is_refused_by_server: false,
            mechanism: None,
            authentication_data: None,
        })
    }

    /// Who the client says to be.
    pub(super) fn user_name(&self) -> Option<&str> {
        self.connect.user_name.as_deref()
    }

    /// Who it is, once that is known; empty before, and for nobody in particular.
    pub(super) fn identity(&self) -> &str {
        &self.identified.identity
    }

    /// What the client is told once its claim was granted.
    fn connack(&self, session_present: bool) -> Packet {
        let mut properties = self.negotiated.properties.clone();
        properties.authentication_method.clone_from(&self.connect.properties.authentication_method);
        properties.authentication_data.clone_from(&self.authentication_data);
        Packet::ConnAck(Box::new(ConnAck { session_present, reason_code: ReasonCode::Success, properties }))
    }

    fn actor(&self) -> Actor<'_> {
        let (identity, client_id) = (&self.identified.identity, &self.negotiated.client_id);
        Actor { identity, client_id, rights: self.rights.as_deref() }
    }
}

impl std::fmt::Debug for PendingConnect {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PendingConnect").field("client_id", &self.negotiated.client_id).finish_non_exhaustive()
    }
}

impl ArbiterState {
    pub(super) fn on_connect(&mut self, key: ConnectionKey, connect: Box<Connect>) {
        let Some(client) = self.client(key) else {
            return;
        };
        client.version = connect.version;
        client.learn_origin();
        client.packet_bytes_max_out = connect.properties.maximum_packet_size.unwrap_or(u32::MAX);
        let listener = Arc::clone(&client.listener);
        let negotiated = match handshake::negotiate(&connect, &listener.policy, self.shared.random.draw()) {
            Ok(negotiated) => negotiated,
            Err(refusal) => {
                if let Some(client) = self.client(key) {
                    client.client_id = Arc::from(excerpt(&connect.client_id));
                }
                return self.refuse(key, refusal.reason, refusal.text);
            }
        };
        if let Some(client) = self.client(key) {
            client.client_id = Arc::clone(&negotiated.client_id);
        }
        if self.is_banned(key, &connect, &negotiated.client_id) {
            return self.refuse_login(key, PendingConnect::new(connect, negotiated), ReasonCode::Banned, BANNED);
        }
        if self.shared.flapping.is_banned(&negotiated.client_id, self.now_ms) {
            return self.refuse(key, ReasonCode::Banned, CONNECTS_TOO_OFTEN);
        }
        if !self.may_acknowledge() {
            return self.refuse(key, ReasonCode::ServerUnavailable, "this node is cut off from the cluster");
        }
        if !self.has_room_for(&connect) {
            return self.refuse(key, ReasonCode::ServerBusy, MEMORY_IS_SHORT);
        }
        let mut pending = PendingConnect::new(connect, negotiated);
        if let Some(method) = pending.connect.properties.authentication_method.clone() {
            let Some(mechanism) = self.shared.authority.mechanism(&method, &listener) else {
                // [MQTT-4.12.0-1]
                return self.refuse(key, ReasonCode::BadAuthenticationMethod, "unknown authentication method");
            };
            pending.mechanism = Some(mechanism);
            let data = pending.connect.properties.authentication_data.clone();
            return self.authenticate(key, pending, data.as_deref());
        }
        let Some(client) = self.client(key) else {
            return;
        };
        let origin = client.origin.clone();
        let progress = self.shared.authority.authenticate(&pending.connect, &listener, &origin, self.both_clocks());
        self.on_progress(key, pending, progress);
    }

    /// Where memory is short, maybe because of what waits for clients that are away, some of those who may come for it are let in,
    /// until it is so short that others are closed. They are counted once it is known who they are: nobody else takes their places.
    fn has_room_for(&self, connect: &Connect) -> bool {
        let level = self.shared.memory_level();
        let may_fetch_its_queue =
            !connect.clean_start && level < MEMORY_LEVEL_CLOSES && self.let_in < LET_IN_A_SECOND_MAX;
        level < MEMORY_LEVEL_REFUSES || may_fetch_its_queue
    }

    fn on_progress(&mut self, key: ConnectionKey, mut pending: Box<PendingConnect>, progress: Progress) {
        match progress {
            Progress::Identified(identified, outcome) => {
                self.counters.authentications.inc(outcome);
                pending.identified = identified;
                self.claim(key, pending);
            }
            Progress::Refused(refusal, outcome) => {
                self.counters.authentications.inc(outcome);
                pending.is_refused_by_server =
                    matches!(outcome, AuthenticationOutcome::ServerDenied | AuthenticationOutcome::Undecided);
                self.refuse_login(key, pending, refusal.reason, refusal.text);
            }
            Progress::Ask(question) => {
                let awaited = Arc::new(());
                let weak = Arc::downgrade(&awaited);
                pending.awaited = Some(awaited);
                if let Some(client) = self.client(key) {
                    client.phase = Phase::Verifying;
                    client.pending = Some(pending);
                }
                let shared = Arc::clone(&self.shared);
                let answer = move |verified| {
                    shared.inboxes[usize::from(key.arbiter())].push(Event::Verified { connection: key, verified }, 0);
                };
                self.shared.authority.verify(question, weak, answer);
            }
        }
    }

    /// Refuses a CONNECT for who sent it, which the audit log tells.
    fn refuse_login(
        &mut self,
        key: ConnectionKey,
        pending: Box<PendingConnect>,
        reason: ReasonCode,
        text: &'static str,
    ) {
        if let Some(client) = self.client(key) {
            client.pending = Some(pending);
        }
        self.refuse(key, reason, text);
    }

    /// A thread has looked at a password. The connection may be gone since.
    pub(super) fn on_verified(&mut self, key: ConnectionKey, verified: Verified) {
        let now = self.now_seconds();
        let Some(client) = self.client(key).filter(|client| client.phase == Phase::Verifying) else {
            return;
        };
        let Some(mut pending) = client.pending.take() else {
            return;
        };
        pending.awaited = None;
        client.last_activity = now;
        let (listener, origin) = (Arc::clone(&client.listener), client.origin.clone());
        if !self.may_acknowledge() {
            return self.refuse(key, ReasonCode::ServerUnavailable, "this node is cut off from the cluster");
        }
        let authority = &self.shared.authority;
        let progress = authority.on_verified(verified, &pending.connect, &listener, &origin, self.both_clocks());
        self.on_progress(key, pending, progress);
    }

    /// Whether the client would still be let in as who it is.
    pub(super) fn may_stay(&self, key: ConnectionKey, identified: &Identified) -> bool {
        let listener = self.clients.get(key.index()).map(|client| &client.listener);
        let is_let_in = identified.credential != Credential::Anonymous
            || listener.is_none_or(|listener| listener.lets_anonymous_stay());
        is_let_in && self.shared.authority.is_still(identified)
    }

    /// What a connected client may is looked up again, and counts at once.
    pub(super) fn apply_rights(&mut self, key: ConnectionKey, identified: &Identified) {
        let rights = self.rights_of(key, identified);
        if let Some(client) = self.client(key) {
            // From here on, also what other threads are about to hand over is looked at.
            client.guarded = rights.is_some() || client.mount.is_some();
            if let Some(session) = client.session.as_mut() {
                session.rights = rights;
            }
        }
        self.revoke_subscriptions(key);
    }

    /// What the client may do by its login and under the files as they are now.
    fn rights_of(&mut self, key: ConnectionKey, identified: &Identified) -> Option<Box<Rights>> {
        let client = self.clients.get(key.index())?;
        let site = client.origin.address.map(|address| address.ip()).into();
        let subject = Subject { identity: &identified.identity, client_id: &client.client_id, site };
        self.shared.authority.rights(&subject, identified.granted.as_deref())
    }

    pub(super) fn both_clocks(&self) -> Now {
        Now { process_ms: self.now_ms, wall_ms: self.shared.clock.wall_ms() }
    }

    /// One step of enhanced authentication before CONNACK.
    fn authenticate(&mut self, key: ConnectionKey, mut pending: Box<PendingConnect>, data: Option<&[u8]>) {
        let Some(mechanism) = pending.mechanism.as_mut() else {
            return self.refuse(key, ReasonCode::BadAuthenticationMethod, "no authentication is under way");
        };
        match mechanism.step(data) {
            MechanismStep::Continue(data) => {
                let method = pending.connect.properties.authentication_method.clone();
                if let Some(client) = self.client(key) {
                    client.phase = Phase::Authenticating;
                    client.pending = Some(pending);
                }
                let challenge = challenge(method, data);
                if !self.takes(key, &challenge) {
                    return self.end(key, TOO_LARGE, None);
                }
                self.write_packet(key, &challenge);
            }
            MechanismStep::Success { identity, data } => {
                let Some(identified) = self.shared.authority.by_mechanism(&**mechanism, identity) else {
                    return self.refuse(key, ReasonCode::NotAuthorized, "the user is gone, or has another password");
                };
                pending.authentication_data = data;
                let Some(client) = self.client(key) else {
                    return;
                };
                let (listener, origin, now) = (Arc::clone(&client.listener), client.origin.clone(), self.both_clocks());
                let authority = &self.shared.authority;
                let progress = authority.let_in_by_mechanism(identified, &pending.connect, &listener, &origin, now);
                self.on_progress(key, pending, progress);
            }
            // [MQTT-4.12.0-4]
            MechanismStep::Failure(reason) => {
                self.counters.authentications.inc(AuthenticationOutcome::MechanismFailed);
                self.refuse_login(key, pending, reason, "authentication failed");
            }
        }
    }

    pub(super) fn continue_authentication(&mut self, key: ConnectionKey, auth: Auth) {
        let Some(pending) = self.client(key).and_then(|client| client.pending.take()) else {
            return;
        };
        let method = &pending.connect.properties.authentication_method;
        if auth.reason_code != ReasonCode::ContinueAuthentication || auth.properties.authentication_method != *method {
            // [MQTT-4.12.0-3], [MQTT-4.12.0-5]
            return self.refuse(key, ReasonCode::ProtocolError, "AUTH does not continue what CONNECT began");
        }
        self.authenticate(key, pending, auth.properties.authentication_data.as_deref());
    }

    /// AUTH on an open connection: [MQTT-4.12.0-7] without a method in CONNECT, else re-authentication.
    pub(super) fn re_authenticate(&mut self, key: ConnectionKey, auth: Auth) {
        let Some(client) = self.client(key) else {
            return;
        };
        let Some(mut pending) = client.pending.take() else {
            return self.fail(key, &SessionError::Protocol("AUTH without an authentication method in CONNECT"));
        };
        let method = pending.connect.properties.authentication_method.clone();
        if auth.properties.authentication_method != method {
            // [MQTT-4.12.1-1]
            return self.fail(key, &SessionError::Protocol("re-authentication must keep its method"));
        }
        if auth.reason_code == ReasonCode::ReAuthenticate {
            let listener = Arc::clone(&client.listener);
            let mechanism = |name: &str| self.shared.authority.mechanism(name, &listener);
            pending.mechanism = method.as_deref().and_then(mechanism);
        }
        let data = auth.properties.authentication_data.clone();
        let step = pending.mechanism.as_mut().map(|mechanism| mechanism.step(data.as_deref()));
        let answer = match step {
            Some(MechanismStep::Continue(data)) => challenge(method, data),
            Some(MechanismStep::Success { identity, data }) if *identity == *pending.identified.identity => {
                Packet::Auth(Auth { reason_code: ReasonCode::Success, properties: properties(method, data) })
            }
            // [MQTT-4.12.1-2]; another identity does not get this session either.
            _ => return self.end(key, EndCause::Refused(ReasonCode::NotAuthorized), Some(ReasonCode::NotAuthorized)),
        };
        if let Some(client) = self.client(key) {
            client.pending = Some(pending);
        }
        if !self.takes(key, &answer) {
            return self.end(key, TOO_LARGE, Some(ReasonCode::PacketTooLarge));
        }
        self.write_packet(key, &answer);
    }

    /// The client is who it says: now its Client Identifier.
    fn claim(&mut self, key: ConnectionKey, mut pending: Box<PendingConnect>) {
        if self.is_banned_identity(&pending.identified.identity) {
            return self.refuse_login(key, pending, ReasonCode::Banned, BANNED);
        }
        // What a name in CONNECT says of who it is nobody has proved before.
        let (client_id, identity) = (&pending.negotiated.client_id, &pending.identified.identity);
        if self.shared.flapping.is_banned_for(client_id, identity, self.now_ms) {
            return self.refuse(key, ReasonCode::Banned, CONNECTS_TOO_OFTEN);
        }
        pending.rights = self.rights_of(key, &pending.identified);
        let authority = &self.shared.authority;
        if let Some(elsewhere) =
            authority.elsewhere_on_connect(&pending.identified.identity, &pending.negotiated.client_id)
        {
            return self.redirect(key, elsewhere);
        }
        if !self.has_room_for(&pending.connect) {
            return self.refuse(key, ReasonCode::ServerBusy, MEMORY_IS_SHORT);
        }
        self.let_in += u32::from(self.shared.memory_level() >= MEMORY_LEVEL_REFUSES);
        if self.is_drained() {
            return self.refuse_drained(key, &pending.identified.identity, &pending.negotiated.client_id);
        }
        if self.has_too_deep_will(key, &pending.connect) {
            return self.refuse(key, ReasonCode::TopicNameInvalid, "the topic of the will has too many levels");
        }
        if let Err(refusal) = self.mount(key, &mut pending) {
            return self.refuse_login(key, pending, refusal.reason, refusal.text);
        }
        // What a PUBLISH of it would be refused for, the client learns now: later there is nobody to be told.
        if let Some(will) = &pending.connect.will
            && let Some(refusal) = self.will_refusal(&pending.actor(), will)
        {
            return self.refuse(key, refusal.reason, refusal.text);
        }
        // It is of the same length whether there is a session or not. A client that does not take it cannot go on, and one that can
        // must not have been ended for it.
        if !self.takes(key, &pending.connack(false)) {
            return self.end(key, TOO_LARGE, None);
        }
        let client_id = Arc::clone(&pending.negotiated.client_id);
        if self.shared.cluster.is_some() {
            self.claim_in_cluster(key, pending);
            return;
        }
        let transient = pending.negotiated.session_expiry_seconds == 0;
        if transient && self.shared.registry.claim_if_free(&client_id, &pending.identified.identity, key) {
            let opened = Opened::transient(key, client_id);
            if let Some(client) = self.client(key) {
                client.pending = Some(pending);
            }
            return self.on_opened(opened);
        }
        let Some(caps) = self.client(key).map(|client| client.listener.queue_caps()) else {
            return;
        };
        let request = ClaimRequest::new(key, &pending.connect, &pending.negotiated, &pending.identified, caps);
        if let Some(client) = self.client(key) {
            client.phase = Phase::Claiming;
            client.pending = Some(pending);
        }
        self.shared.submitter.claim(request);
    }

    /// Whether its will has a topic of more levels than one of a PUBLISH may have.
    fn has_too_deep_will(&mut self, key: ConnectionKey, connect: &Connect) -> bool {
        let levels_max = self.client(key).map(|client| usize::from(client.listener.limits.topic_levels_max));
        let levels = connect.will.as_ref().map(|will| will.topic.split('/').count());
        levels.zip(levels_max).is_some_and(|(levels, max)| levels > max)
    }

    /// From here on the client is below the mount point of its listener, if there is one, and so is its will.
    fn mount(&mut self, key: ConnectionKey, pending: &mut PendingConnect) -> Result<(), Refusal> {
        let Some(client) = self.client(key) else {
            return Ok(());
        };
        let Some(mount_point) = &client.listener.config.mount_point else {
            return Ok(());
        };
        let mount = mount_point.of_client(&pending.identified.identity, &pending.negotiated.client_id)?;
        if let Some(will) = &mut pending.connect.will {
            mount.enter_will(will).map_err(Unreachable::refusal)?;
        }
        client.mount = Some(mount);
        Ok(())
    }

    /// With several nodes every claim is its group's to grant, so that two nodes never both do. `false`: it is refused.
    fn claim_in_cluster(&mut self, key: ConnectionKey, pending: Box<PendingConnect>) -> bool {
        let group = self.shared.submitter.slots().group_of(&pending.negotiated.client_id);
        if self.lanes.is_silent(group) {
            // What is said to it now is said in vain, and kept until it is there again.
            self.refuse(key, ReasonCode::ServerUnavailable, TOO_FEW_KEEP_IT);
            return false;
        }
        if !self.claim_turns.may_begin(key, group) {
            if let Some(client) = self.client(key) {
                client.phase = Phase::AwaitingTurn;
                client.pending = Some(pending);
            }
            return true;
        }
        let Some(caps) = self.client(key).map(|client| client.listener.queue_caps()) else {
            return true;
        };
        let request = ClaimRequest::new(key, &pending.connect, &pending.negotiated, &pending.identified, caps);
        let node = self.shared.cluster.as_ref().map_or(0, |cluster| cluster.node);
        let owner = Owner { incarnation: self.shared.incarnation(), connection: key.raw(), node };
        let connect = ConnectCommand { wait_for_release: true, keep_transient: true, ..request.command(owner) };
        self.lanes.command(group, SessionCommand::Connect(connect));
        self.schedule_flush();
        if let Some(client) = self.client(key) {
            client.phase = Phase::Claiming;
            client.pending = Some(pending);
        }
        true
    }

    /// No answer to the claim of this connection is awaited any more: others have waited for their turn.
    pub(super) fn end_claim(&mut self, key: ConnectionKey) {
        let Some(group) = self.claim_turns.ended(key) else {
            return;
        };
        while let Some(next) = self.claim_turns.next(group) {
            // Who is gone, or was refused meanwhile, has no turn.
            let waiting = self.client(next).filter(|client| client.phase == Phase::AwaitingTurn);
            if let Some(pending) = waiting.and_then(|client| client.pending.take())
                && self.claim_in_cluster(next, pending)
            {
                return;
            }
        }
    }

    /// The claim was granted: the session begins, CONNACK first [MQTT-3.2.0-1].
    pub(super) fn on_opened(&mut self, opened: Opened) {
        let key = opened.connection;
        self.end_claim(key);
        let Some(pending) = self.client(key).and_then(|client| client.pending.take()) else {
            if self.is_known_claim(key, opened.epoch) {
                return;
            }
            // The connection went while its claim was under way.
            return self.abandon(&opened);
        };
        if !self.may_acknowledge() {
            // Another node may have granted it since.
            self.abandon(&opened);
            return self.refuse(key, ReasonCode::ServerUnavailable, "this node is cut off from the cluster");
        }
        if !self.may_stay(key, &pending.identified) {
            // The files changed while the claim was under way.
            self.abandon(&opened);
            return self.refuse(key, ReasonCode::NotAuthorized, "the user is gone, or has another password");
        }
        let connack = pending.connack(opened.session_present);
        // Only now: whoever is not granted the Client Identifier must not have it banned for its owner.
        let identity = &pending.identified.identity;
        if self.shared.flapping.on_connect(&opened.client_id, identity, self.now_ms) {
            self.note_flap_ban(&opened.client_id, Some(&**identity), "connects too often");
        }
        let PendingConnect { connect, negotiated, identified, mechanism, .. } = *pending;
        // Looked up again: the files may have changed since.
        let rights = self.rights_of(key, &identified);
        // What was queued or subscribed to before was so by whatever the rules were.
        let is_doubtful = opened.session_present || self.shared.authority.grants_subscriptions();
        // Likewise by whatever the mount point was; and a filter can match what no mounted client knows of.
        let guarded = self.clients[key.index()].mount.is_some()
            || rights.as_ref().is_some_and(|rights| is_doubtful || rights.reading_depends_on_qos());
        let listener = &self.clients[key.index()].listener;
        let policy = &listener.policy;
        let session_settings = &self.shared.settings.session;
        let (version, clean_start) = (connect.version, connect.clean_start);
        let mut session = Box::new(ClientSession {
            inbound: Inbound::new(policy.receive_maximum.get(), version.is_v5()),
            owed: Acknowledgements::default(),
            aliases_in: InboundAliases::new(if version.is_v5() { policy.topic_alias_maximum } else { 0 }),
            aliases_out: OutboundAliases::new(negotiated.topic_aliases_out),
            outbound: Outbound::new(
                OutboundLimits {
                    window_max: negotiated.window,
                    queue_messages_max: session_settings.queue_messages_max as usize,
                    queue_bytes_max: usize::try_from(session_settings.queue_bytes_max).unwrap_or(usize::MAX),
                    drop_policy: session_settings.queue_drop_policy.into(),
                }
                .capped(listener.queue_caps()),
            ),
            persistent: opened.group.map(|group| PersistentSession { group, epoch: opened.epoch }),
            will_terms: connect.will.as_ref().map(|will| Box::new(WillTerms::from(will))),
            will: None,
            subscriptions: hashbrown::HashMap::default(),
            filter_bytes: 0,
            asked: BTreeSet::new(),
            terms_asked: BTreeMap::new(),
            reads: RetainedReads::default(),
            identity: Arc::clone(&identified.identity),
            claimed: connect.user_name.as_deref().filter(|name| may_be_banned(name, &identified)).map(Box::from),
            credential: identified.credential.clone(),
            granted: identified.granted.clone(),
            rights,
            renewal: None,
            look_at: u32::MAX,
            revocations: Vec::new(),
            connected_ms: self.now_ms,
            session_expiry_seconds: negotiated.session_expiry_seconds,
            bridge: connect.bridge && !version.is_v5(),
            problem_information: negotiated.problem_information,
            served: None,
            changes: None,
        });
        session.inbound.resume(opened.received.iter().copied());
        if self.shared.cluster.is_some() {
            let group = self.shared.submitter.slots().group_of(&opened.client_id);
            session.served = Some(Box::new(Served::new(PersistentSession { group, epoch: opened.epoch })));
        } else if opened.group.is_none() {
            session.will.clone_from(&connect.will.clone().map(Box::new));
        }
        if opened.group.is_none() {
            self.counters.sessions.inc();
        }
        let now = self.now_seconds();
        let client = &mut self.clients[key.index()];
        client.phase = Phase::Connected;
        client.guarded = guarded;
        client.keep_alive_seconds = negotiated.keep_alive_seconds;
        client.session = Some(session);
        client.last_activity = now;
        if connect.properties.authentication_method.is_some() {
            // Kept for re-authentication.
            let mut kept = PendingConnect::new(connect, negotiated);
            (kept.identified, kept.mechanism) = (identified, mechanism);
            client.pending = Some(kept);
        }
        self.plan_renewal(key);
        let client = &self.clients[key.index()];
        let looked_at_next = client.session.as_ref().and_then(|session| session.next_second(now));
        let keep_alive_ends =
            (client.keep_alive_seconds > 0).then(|| now + silence_seconds_max(client.keep_alive_seconds));
        if let Some(due) = looked_at_next.into_iter().chain(keep_alive_ends).min() {
            self.look_by(key, due.min(now + LOOK_SECONDS_MAX));
        }
        let client = &self.clients[key.index()];
        let user = client.session.as_ref().map(|session| &*session.identity).filter(|user| !user.is_empty());
        tracing::info!(
            client_id = %client.client_id, peer = %client.origin, user, certificate = client.origin.certified.as_deref(),
            version = ?version, session_present = opened.session_present, persistent = opened.group.is_some(), "connected"
        );
        self.counters.connects_accepted.inc();
        self.counters.connections.inc();
        self.write_packet(key, &connack);
        self.tell_connected(key, clean_start, opened.session_present);
        self.restore_subscriptions(key, &opened);
        self.resume_changes(key);
        self.revoke_subscriptions(key);
        // Nothing was read while the claim was under way.
        wake(&self.clients[key.index()]);
    }

    /// The claim was granted, and what the session has subscribed to did not find its way here, nor ever will.
    pub(super) fn on_opened_in_vain(&mut self, opened: &Opened) {
        let key = opened.connection;
        self.end_claim(key);
        let claims = self.client(key).is_some_and(|client| client.phase == Phase::Claiming);
        if !claims && self.is_known_claim(key, opened.epoch) {
            return;
        }
        self.abandon(opened);
        if claims {
            self.refuse(
                key,
                ReasonCode::QuotaExceeded,
                "the session's subscriptions are more than this node can be told",
            );
        }
    }

    /// The subscriptions of a resumed session stand again for what goes directly, QoS 0.
    fn restore_subscriptions(&mut self, key: ConnectionKey, opened: &Opened) {
        for outcome in &opened.subscriptions {
            self.enter_outcome(key, outcome);
        }
        self.read_outcomes(key, &opened.subscriptions);
    }

    /// Whether the claim was granted before. A leader that is told twice what waits here, since the link to it broke or it
    /// asked again, may grant it twice.
    fn is_known_claim(&mut self, key: ConnectionKey, epoch: u64) -> bool {
        self.departing.contains_key(&key) || self.served(key).is_some_and(|served| served.claim.epoch == epoch)
    }

    /// A claim was granted, and its client is not told so: it is refused, or gone. Its CONNECT was never accepted, so its will is that
    /// of no connection [MQTT-3.1.2-8], and the session is what it was before.
    fn abandon(&mut self, opened: &Opened) {
        if self.shared.cluster.is_some() {
            let group = self.shared.submitter.slots().group_of(&opened.client_id);
            let claim = PersistentSession { group, epoch: opened.epoch };
            let disconnect = SessionCommand::never_began(&opened.client_id, claim);
            let last_word = LastWord { group, command: disconnect, awaited_by: Awaits::Group };
            return self.say_last_word(opened.connection, last_word);
        }
        if let Some(group) = opened.group {
            let persistent = PersistentSession { group, epoch: opened.epoch };
            self.lanes.command(group, SessionCommand::never_began(&opened.client_id, persistent));
            self.flush_lanes();
        }
        self.shared.registry.release(&opened.client_id, opened.connection);
        self.shared.submitter.released(&opened.client_id);
    }

    /// The claim was refused.
    pub(super) fn on_refused(&mut self, key: ConnectionKey, reason: ReasonCode) {
        if self.client(key).is_some_and(|client| client.phase == Phase::Claiming) {
            self.refuse(key, reason, "the client identifier is not available");
        }
    }

    /// Answers CONNECT with a refusal and ends the connection [MQTT-3.2.2-7].
    pub(super) fn refuse(&mut self, key: ConnectionKey, reason: ReasonCode, text: &'static str) {
        self.refuse_with(key, reason, text, None);
    }

    /// Answers CONNECT with another server (MQTT 5, section 4.11). Who cannot be told where to go hears that this one is
    /// not available.
    pub(super) fn redirect(&mut self, key: ConnectionKey, to: Redirection) {
        let v5 = self.client(key).is_some_and(|client| client.version.is_v5());
        let reason = if v5 { to.reason() } else { ReasonCode::ServerUnavailable };
        self.refuse_with(key, reason, "another server has a place for the client", Some(to.server_reference));
    }

    fn refuse_with(
        &mut self,
        key: ConnectionKey,
        reason: ReasonCode,
        text: &'static str,
        server_reference: Option<String>,
    ) {
        let counted = if server_reference.is_some() { ConnectRefusal::SentElsewhere } else { connect_refusal(reason) };
        // CONNACK has no such code (MQTT 5, section 3.2.2.2).
        let reason = if reason == ReasonCode::SessionTakenOver { ReasonCode::UnspecifiedError } else { reason };
        self.counters.connects_refused.inc(counted);
        let logged = self.refusal_lines.admits(self.now_seconds());
        let Some(client) = self.client(key) else {
            return;
        };
        // A token may stand where a user name does.
        let may_be_shown = |name: &&str| !begins_like_token(name.as_bytes());
        let user = client.pending.as_ref().and_then(|pending| pending.user_name());
        let user = user.filter(may_be_shown).map(str::to_owned);
        if logged {
            let user = user.as_deref();
            tracing::info!(client_id = %client.client_id, peer = %client.origin, user, ?reason, text, "refused");
        }
        let is_by_server = client.pending.as_ref().is_some_and(|pending| pending.is_refused_by_server);
        let (client_id, origin) = (Arc::clone(&client.client_id), client.origin.clone());
        if counted.is_of_login() || is_by_server {
            let server = if is_by_server { self.shared.authority.server_name() } else { None };
            let (user, server) = (user.as_deref(), server.as_deref());
            let refused = RefusedLogin { client_id: &client_id, user, origin: &origin, server, reason: text };
            self.shared.audit.refused_login(&refused, self.shared.clock.wall_ms());
        }
        let Some(client) = self.client(key) else {
            return;
        };
        // [MQTT-3.2.2-6] of 3.1.1: where no return code fits, the connection just closes.
        if client.version.is_v5() || codec::v3_connack_code(reason).is_some() {
            let mut properties = ConnAckProperties::default();
            if client.version.is_v5() {
                properties.reason_string = Some(text.to_owned());
                properties.server_reference = server_reference;
            }
            let mut packet =
                Packet::ConnAck(Box::new(ConnAck { session_present: false, reason_code: reason, properties }));
            let bound = client.packet_bytes_max_out as usize;
            if codec::encoded_len(&packet, client.version) > bound
                && let Packet::ConnAck(connack) = &mut packet
            {
                // [MQTT-3.2.2-19]
                connack.properties.reason_string = None;
            }
            if codec::encoded_len(&packet, client.version) > bound
                && let Packet::ConnAck(connack) = &mut packet
            {
                connack.properties.server_reference = None;
            }
            // [MQTT-3.1.2-24]
            if codec::encoded_len(&packet, client.version) <= bound {
                self.write_packet(key, &packet);
            }
        }
        self.tear_down(key, EndCause::Refused(reason));
        self.begin_closing(key);
    }
}

/// The client does not take what it must be told.
const TOO_LARGE: EndCause = EndCause::Protocol("what must be answered is larger than the client's Maximum Packet Size");

fn challenge(method: Option<String>, data: Option<bytes::Bytes>) -> Packet {
    // [MQTT-4.12.0-2]
    Packet::Auth(Auth { reason_code: ReasonCode::ContinueAuthentication, properties: properties(method, data) })
}

fn properties(method: Option<String>, data: Option<bytes::Bytes>) -> AuthProperties {
    AuthProperties { authentication_method: method, authentication_data: data, ..AuthProperties::default() }
}

impl From<Opened> for Event {
    fn from(opened: Opened) -> Self {
        Self::Opened(Box::new(opened))
    }
}

impl ConnectRefusal {
    /// Whether somebody was not let in for who it is, or says to be.
    fn is_of_login(self) -> bool {
        matches!(self, Self::BadCredentials | Self::NotAuthorized | Self::Banned | Self::AuthenticationMethod)
    }
}

fn connect_refusal(reason: ReasonCode) -> ConnectRefusal {
    match reason {
        ReasonCode::UnsupportedProtocolVersion => ConnectRefusal::ProtocolVersion,
        ReasonCode::ClientIdentifierNotValid => ConnectRefusal::ClientIdentifier,
        ReasonCode::BadUserNameOrPassword => ConnectRefusal::BadCredentials,
        ReasonCode::NotAuthorized => ConnectRefusal::NotAuthorized,
        ReasonCode::Banned => ConnectRefusal::Banned,
        ReasonCode::BadAuthenticationMethod => ConnectRefusal::AuthenticationMethod,
        ReasonCode::ServerBusy => ConnectRefusal::Busy,
        ReasonCode::ServerShuttingDown => ConnectRefusal::ShuttingDown,
        ReasonCode::ServerUnavailable => ConnectRefusal::Unavailable,
        ReasonCode::UseAnotherServer | ReasonCode::ServerMoved => ConnectRefusal::SentElsewhere,
        ReasonCode::PayloadFormatInvalid | ReasonCode::QuotaExceeded | ReasonCode::TopicNameInvalid => {
            ConnectRefusal::Will
        }
        _ => ConnectRefusal::Malformed,
    }
}

/// Whether a ban on that name is for a client that gave it as its user name and is known by another. A token is no name, and
/// too long to be kept.
fn may_be_banned(name: &str, identified: &Identified) -> bool {
    *name != *identified.identity && !begins_like_token(name.as_bytes())
}
