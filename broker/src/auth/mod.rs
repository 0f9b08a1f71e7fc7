//! Who a client is and what it may do.
//!
//! One place decides all of it: [`Authority::authenticate`] who a client is, [`Authority::authorize`] what it may, on every
//! path a message or a filter can take. What they go by stands in files that are read at the start and again on SIGHUP. Without any, a client may do everything but speak for the broker, that is,
//! publish to `$SYS`, unless an [`AccessControl`] that was plugged in says otherwise.

mod acl_file;
mod chain;
mod fair_queue;
mod granted;
mod http;
mod jwt;
mod password_file;
mod policy;
mod remembered;
mod rights;
mod rules_file;
mod scram;
mod section;
mod verifier;

use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use foldhash::fast::RandomState;
use kentongan_proto::mqtt::{Connect, QoS, ReasonCode};
use kentongan_proto::topic::TopicFilter;

use crate::config::AuthConfig;
use crate::connection::Origin;
use crate::listener::ListenerContext;
use crate::message;
use crate::metrics::{AuthenticationOutcome, HttpAuthMetrics};
use crate::operator::users::UserKey;
use crate::tls::Watch;
use remembered::Remembered;
use scram::Scram;
use verifier::Verifier;

pub use chain::{Credential, Identified, PasswordOutcome, Progress, Question, Verified};
pub use granted::{Granted, GrantedRules};
pub use http::{BreakerState, Renewal, RenewedRights, RightsTerms};
pub use jwt::{FetchedKeys, TokenMark, begins_like_token};
pub use password_file::{FileError, MosquittoForm, PasswordFile, StoredPassword, check_user_name, trim_blanks};
pub use policy::Policy;
pub use rights::{Rights, Site, Subject};
pub(crate) use rights::{is_dangerous, overlaps, with_names};

/// When somebody comes, by both clocks of this node.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Milliseconds of the process clock.
    pub process_ms: u64,
    /// Milliseconds since 1970, by the wall clock.
    pub wall_ms: u64,
}

impl Now {
    /// What the process clock will show when the wall clock shows `wall_ms`, if nobody sets it.
    #[must_use]
    pub fn at_wall_ms(self, wall_ms: u64) -> u64 {
        self.process_ms.saturating_add(wall_ms.saturating_sub(self.wall_ms))
    }
}

/// Who wants to do something.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// Whom its session belongs to; empty: nobody in particular.
    pub identity: &'a str,
    /// Its Client Identifier.
    pub client_id: &'a str,
    /// What [`Authority::rights`] said. `None`: there are no rules.
    pub rights: Option<&'a Rights>,
}

/// What it wants to do.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    /// Publish, be it with a PUBLISH or by a will.
    Publish {
        /// As the client says it, `$delayed/SECONDS/` included.
        topic: &'a str,
        /// Quality of Service.
        qos: QoS,
        /// RETAIN.
        retain: bool,
    },
    /// Subscribe. Of a shared subscription it is the filter inside.
    Subscribe {
        /// To what.
        filter: &'a TopicFilter,
        /// At most at this Quality of Service.
        qos: QoS,
    },
    /// Be sent a message, live, retained or one that waited.
    Read {
        /// Its topic.
        topic: &'a str,
        /// As it is sent.
        qos: QoS,
    },
}

/// One exchange of enhanced authentication (MQTT 5, section 4.12).
pub trait Mechanism: Send {
    /// Takes what the client sent, in CONNECT first and then in AUTH, and says how to go on.
    fn step(&mut self, data: Option<&[u8]>) -> MechanismStep;

    /// What of the password file an exchange about that user rests on, if anything.
    fn stored_password(&self, _identity: &str) -> Option<&StoredPassword> {
        None
    }
}

/// The answer of a [`Mechanism`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MechanismStep {
    /// AUTH with this data; the client must answer.
    Continue(Option<Bytes>),
    /// The client is who it claims.
    Success {
        /// Whom sessions of this client belong to.
        identity: Arc<str>,
        /// Goes with the CONNACK, or the last AUTH.
        data: Option<Bytes>,
    },
    /// It is not.
    Failure(ReasonCode),
}

/// Makes a mechanism for one exchange.
pub type MechanismFactory = Box<dyn Fn() -> Box<dyn Mechanism> + Send + Sync>;

/// What clients may do, beside what nobody may.
pub trait AccessControl: Send + Sync {
    /// Whether the client may publish to the topic, be it with a PUBLISH or as its will. A delayed message is judged by
    /// the topic that it will reach.
    fn may_publish(&self, identity: &str, client_id: &str, topic: &str) -> bool;

    /// Whether the client may subscribe to the filter: all that it matches. Of a shared subscription it is the filter
    /// inside.
    fn may_subscribe(&self, identity: &str, client_id: &str, filter: &TopicFilter) -> bool;
}

/// Sends clients to other servers (MQTT 5, section 4.11).
pub trait Redirector: Send + Sync {
    /// Where a client that connects should go; `None`: it may stay.
    fn on_connect(&self, identity: &str, client_id: &str) -> Option<Redirection>;

    /// Where a connected client should go when this server stops; `None`: wherever the setting
    /// `session.server_reference` says.
    fn on_shutdown(&self, identity: &str, client_id: &str) -> Option<Redirection>;
}

/// Another server for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    /// Server Reference: other servers, separated by spaces, such as `mqtt-2.example:1883`.
    pub server_reference: String,
    /// For good, which is 0x9D; otherwise for now, which is 0x9C.
    pub permanent: bool,
}

impl Redirection {
    /// For CONNACK or DISCONNECT.
    #[must_use]
    pub fn reason(&self) -> ReasonCode {
        if self.permanent { ReasonCode::ServerMoved } else { ReasonCode::UseAnotherServer }
    }
}

/// Decides who is who, who may what, and who goes where.
#[derive(Default)]
pub struct Authority {
    mechanisms: Vec<(String, MechanismFactory)>,
    access: Option<Box<dyn AccessControl>>,
    redirector: Option<Box<dyn Redirector>>,
    policy: RwLock<Arc<Policy>>,
    /// Of `policy`, for where it is asked for often.
    has_tokens: AtomicBool,
    verifier: OnceLock<Verifier>,
    asking: OnceLock<http::Asking>,
    http_metrics: HttpAuthMetrics,
    remembered: Option<Remembered>,
    hasher: RandomState,
}

fn verify_threads(config: &AuthConfig) -> usize {
    match config.verify_threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
        threads => threads as usize,
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").field("mechanisms", &self.mechanisms.len()).finish()
    }
}

impl Authority {
    /// Adds a mechanism under its Authentication Method.
    #[must_use]
    pub fn with_mechanism(mut self, method: &str, factory: MechanismFactory) -> Self {
        self.mechanisms.push((method.to_owned(), factory));
        self
    }

    /// Lets `access` refuse what clients would otherwise be allowed.
    #[must_use]
    pub fn with_access_control(mut self, access: Box<dyn AccessControl>) -> Self {
        self.access = Some(access);
        self
    }

    /// Lets `redirector` send clients elsewhere.
    #[must_use]
    pub fn with_redirector(mut self, redirector: Box<dyn Redirector>) -> Self {
        self.redirector = Some(redirector);
        self
    }

    /// Counts there what becomes of requests to an authentication server.
    #[must_use]
    pub fn with_http_metrics(mut self, metrics: HttpAuthMetrics) -> Self {
        self.http_metrics = metrics;
        self
    }

    /// Where a client that connects should go instead, if anywhere.
    #[must_use]
    pub fn elsewhere_on_connect(&self, identity: &str, client_id: &str) -> Option<Redirection> {
        self.redirector.as_ref()?.on_connect(identity, client_id)
    }

    /// Where a client should go when this server stops, if anybody cares.
    #[must_use]
    pub fn elsewhere_on_shutdown(&self, identity: &str, client_id: &str) -> Option<Redirection> {
        self.redirector.as_ref()?.on_shutdown(identity, client_id)
    }

    /// A fresh exchange of the method, if it is offered on the listener.
    #[must_use]
    pub fn mechanism(&self, method: &str, listener: &ListenerContext) -> Option<Box<dyn Mechanism>> {
        let plugged = self.mechanisms.iter().find(|(name, _)| name == method).map(|(_, factory)| factory());
        plugged.or_else(|| {
            let policy = self.policy();
            let is_offered = method == scram::METHOD && listener.asks_for_passwords() && policy.passwords.is_some();
            is_offered.then(|| Box::new(Scram::new(policy)) as Box<dyn Mechanism>)
        })
    }

    /// Whoever succeeded by a mechanism. `None`: no more, the files have changed since it began.
    #[must_use]
    pub fn by_mechanism(&self, mechanism: &dyn Mechanism, identity: Arc<str>) -> Option<Identified> {
        let Some(begun_with) = mechanism.stored_password(&identity) else {
            return Some(Identified::plainly(identity, Credential::Mechanism));
        };
        let policy = self.policy();
        let stored = policy.passwords.as_ref().and_then(|file| file.stored(&identity))?;
        let credential = Credential::Password(self.fingerprint(stored));
        (begun_with == stored).then(|| Identified::plainly(identity, credential))
    }

    /// Goes on with whoever succeeded by a mechanism.
    #[must_use]
    pub fn let_in_by_mechanism(
        &self,
        identified: Identified,
        connect: &Connect,
        listener: &ListenerContext,
        origin: &Origin,
        now: Now,
    ) -> Progress {
        let progress = Progress::Identified(identified, AuthenticationOutcome::Mechanism);
        self.with_rights(progress, http::Visitor { connect, listener, origin }, now)
    }

    /// Reads the files that the settings name, before the first client comes.
    ///
    /// # Errors
    /// What is wrong with them, with file and line; or the system gave no thread.
    pub fn open(&mut self, config: &AuthConfig) -> anyhow::Result<()> {
        self.remembered = Remembered::new(config.remember_max as usize, config.remember_seconds)?;
        let policy = self.read(config)?;
        self.change(policy, config)
    }

    /// Reads the files again. Nothing changes by that.
    ///
    /// # Errors
    /// What is wrong with them, with file and line.
    pub fn read(&self, config: &AuthConfig) -> Result<Policy, FileError> {
        Policy::read(config, &self.policy())
    }

    /// The first `count` users of the file of passwords, in their order, that are wanted. None where there is no such file.
    pub fn first_users(&self, count: usize, is_wanted: impl Fn(&UserKey) -> bool) -> Vec<UserKey> {
        let policy = self.policy();
        let mut first = BinaryHeap::with_capacity(count + 1);
        for (username, stored) in policy.passwords.iter().flat_map(PasswordFile::users) {
            let user = UserKey { username: username.to_owned(), algorithm: stored.algorithm().to_owned() };
            if is_wanted(&user) && (first.len() < count || first.peek().is_some_and(|last| user < *last)) {
                first.push(user);
                if first.len() > count {
                    first.pop();
                }
            }
        }
        first.into_sorted_vec()
    }

    /// What was read is in force from now on. Whoever is connected must be looked at again.
    ///
    /// # Errors
    /// There are passwords for the first time, and the system gave no thread to verify them.
    pub fn change(&self, policy: Policy, config: &AuthConfig) -> anyhow::Result<()> {
        if policy.passwords.is_some() && self.verifier.get().is_none() {
            let verifier = Verifier::start(verify_threads(config), config.verify_queue_max.get() as usize)?;
            // Somebody else's would do as well.
            let _ = self.verifier.set(verifier);
        }
        if policy.server.is_some() && self.asking.get().is_none() {
            // Likewise.
            let _ = self.asking.set(http::Asking::start(&config.http, self.http_metrics.clone())?);
        }
        self.has_tokens.store(policy.tokens.is_some(), Ordering::Relaxed);
        let before = {
            let mut in_force = self.policy.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *in_force, Arc::new(policy))
        };
        // Only now: to give up large files takes its time, and every arbiter would wait for it.
        drop(before);
        if let Some(remembered) = &self.remembered {
            remembered.forget_all();
        }
        if let Some(asking) = self.asking.get() {
            asking.begin_anew();
        }
        Ok(())
    }

    /// The files as they were read last.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether anybody may come with a token, whose signature takes its time.
    #[must_use]
    pub fn has_tokens(&self) -> bool {
        self.has_tokens.load(Ordering::Relaxed)
    }

    /// Keys of tokens that a server has, and somebody must fetch.
    #[must_use]
    pub fn fetched_keys(&self) -> Option<Arc<FetchedKeys>> {
        self.policy().tokens.as_ref()?.fetched().cloned()
    }

    /// Takes up keys of tokens whose files have changed, by what `watch` saw before. `true`: whoever is connected must be looked at.
    pub fn look_at_keys(&self, watch: &mut Watch) -> bool {
        let policy = self.policy();
        let Some(tokens) = &policy.tokens else { return false };
        let digest = tokens.digest();
        if !watch.look_at(digest, tokens.is_made_of(digest)) {
            return false;
        }
        match tokens.read_again() {
            Ok(()) => tracing::info!("other keys of tokens are in use"),
            Err(error) => {
                tracing::error!(%error, "the keys of tokens cannot be used, those before stay");
                return false;
            }
        }
        true
    }

    fn remembered(&self) -> Option<&Remembered> {
        self.remembered.as_ref()
    }

    fn verifier(&self) -> Option<&Verifier> {
        self.verifier.get()
    }

    /// Tells whether a stored password is another one than before, and nothing else about it.
    fn fingerprint(&self, stored: &StoredPassword) -> u64 {
        self.hasher.hash_one(stored)
    }

    /// What a client may do by what its login brings and under the files as they are now. `None`: whatever it likes.
    #[must_use]
    pub fn rights(&self, subject: &Subject<'_>, granted: Option<&Granted>) -> Option<Box<Rights>> {
        let policy = self.policy();
        match granted.and_then(Granted::rules) {
            Some(rules) => Some(Box::new(Rights::granted(policy.rules.as_ref(), rules, subject))),
            None => policy.rules.as_ref().map(|rules| Box::new(rules.for_subject(subject))),
        }
    }

    /// Whether every subscription of a client that there are rules for is granted, so that each message must be looked at.
    #[must_use]
    pub fn grants_subscriptions(&self) -> bool {
        self.policy().grants_subscriptions
    }

    /// Whether it may. Nobody speaks for the broker: `$SYS` is its own, also behind `$delayed/SECONDS/`.
    #[inline]
    #[must_use]
    pub fn authorize(&self, actor: &Actor<'_>, action: Action<'_>) -> bool {
        let plugged = self.access.as_deref();
        match action {
            Action::Publish { topic, qos, retain } => {
                // A delayed message is judged by the topic that it will reach.
                let topic = message::delayed(topic).map_or(topic, |(_, reached)| reached);
                let for_the_broker = topic.starts_with('$') && (topic == "$SYS" || topic.starts_with("$SYS/"));
                !for_the_broker
                    && actor.rights.is_none_or(|rights| rights.may_publish(topic, qos, retain))
                    && plugged.is_none_or(|access| access.may_publish(actor.identity, actor.client_id, topic))
            }
            Action::Subscribe { filter, qos } => {
                let may_by_rules = |rights: &Rights| self.grants_subscriptions() || rights.may_subscribe(filter, qos);
                actor.rights.is_none_or(may_by_rules)
                    && plugged.is_none_or(|access| access.may_subscribe(actor.identity, actor.client_id, filter))
            }
            Action::Read { topic, qos } => actor.rights.is_none_or(|rights| rights.may_read(topic, qos)),
        }
    }

    /// Whether the will of a client that is gone may be published now. `is_granted`: its login brought rules that allowed it,
    /// and are gone with it; only the files can still deny it.
    #[must_use]
    pub fn may_will_be_published(
        &self,
        identity: &str,
        client_id: &str,
        is_granted: bool,
        message: &message::Message,
    ) -> bool {
        let subject = Subject { identity, client_id, site: Site::Away };
        let rights = match is_granted {
            true => self
                .policy()
                .rules
                .as_ref()
                .map(|files| Box::new(Rights::granted(Some(files), &[GrantedRules::everything()], &subject))),
            false => self.rights(&subject, None),
        };
        let actor = Actor { identity, client_id, rights: rights.as_deref() };
        self.authorize(&actor, Action::Publish { topic: &message.topic, qos: message.qos, retain: message.retain })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_publish(authority: &Authority, client_id: &str, topic: &str) -> bool {
        let actor = Actor { identity: "", client_id, rights: None };
        authority.authorize(&actor, Action::Publish { topic, qos: QoS::AtMostOnce, retain: false })
    }

    #[test]
    fn nobody_speaks_for_the_broker() {
        let authority = Authority::default();
        assert!(!may_publish(&authority, "a", "$SYS/broker/uptime"));
        assert!(!may_publish(&authority, "a", "$SYS"));
        assert!(!may_publish(&authority, "a", "$delayed/0/$SYS/broker/version"), "what it stands for counts");
        assert!(may_publish(&authority, "a", "$SYSTEM"));
        assert!(may_publish(&authority, "a", "$delayed/5/plant/1"));
        assert!(may_publish(&authority, "a", "plant/1"));
    }

    /// An exchange that rests on this line of the file, or on none.
    struct Exchange(Option<StoredPassword>);

    impl Mechanism for Exchange {
        fn step(&mut self, _data: Option<&[u8]>) -> MechanismStep {
            MechanismStep::Continue(None)
        }

        fn stored_password(&self, _identity: &str) -> Option<&StoredPassword> {
            self.0.as_ref()
        }
    }

    /// It may have begun before the file was read again.
    #[test]
    fn an_exchange_counts_as_long_as_what_it_rests_on() {
        let line = |password: &[u8]| StoredPassword::for_mosquitto(password, MosquittoForm::Sha512).expect("hashed");
        let (kept, changed) = (line(b"kept"), line(b"changed"));
        let authority = Authority::default();
        let policy = Policy::of_users(&format!("ana:{kept}\n")).expect("a file");
        authority.change(policy, &AuthConfig::default()).expect("a thread");
        let of = |line: &str| Exchange(Some(StoredPassword::parse(line).expect("a line")));
        let succeed = |exchange: &Exchange, identity: &str| authority.by_mechanism(exchange, Arc::from(identity));
        let by_line = succeed(&of(&kept), "ana").expect("it stands");
        assert!(matches!(by_line.credential, Credential::Password(_)) && authority.is_still(&by_line));
        assert_eq!(succeed(&of(&changed), "ana"), None, "she has another password now");
        assert_eq!(succeed(&of(&kept), "budi"), None, "he is gone");
        let plugged = succeed(&Exchange(None), "budi").expect("it rests on nothing of ours");
        assert_eq!(plugged.credential, Credential::Mechanism);
    }

    #[test]
    fn scram_is_offered_where_passwords_are() {
        use crate::config::{AuthenticationMethod, ListenerConfig, Settings};
        let listener = |method| {
            let config = ListenerConfig { authentication: Some(vec![method]), ..ListenerConfig::default() };
            let address: std::net::SocketAddr = "127.0.0.1:1883".parse().expect("an address");
            ListenerContext::new(config, &Settings::default(), address)
        };
        let authority = Authority::default();
        let is_offered = |method: &str, listener: &ListenerContext| authority.mechanism(method, listener).is_some();
        assert!(!is_offered(scram::METHOD, &listener(AuthenticationMethod::Password)), "there are no users");
        let line = StoredPassword::scram_sha256(b"x").expect("hashed");
        let policy = Policy::of_users(&format!("ana:{line}\n")).expect("a file");
        authority.change(policy, &AuthConfig::default()).expect("a thread");
        assert!(is_offered(scram::METHOD, &listener(AuthenticationMethod::Password)));
        assert!(!is_offered(scram::METHOD, &listener(AuthenticationMethod::Certificate)));
        assert!(!is_offered("SCRAM-SHA-1", &listener(AuthenticationMethod::Password)));
    }

    /// Lets clients write below their own name, and read nothing at all.
    struct OwnName;

    impl AccessControl for OwnName {
        fn may_publish(&self, _identity: &str, client_id: &str, topic: &str) -> bool {
            topic.split('/').next() == Some(client_id)
        }

        fn may_subscribe(&self, _identity: &str, _client_id: &str, _filter: &TopicFilter) -> bool {
            false
        }
    }

    #[test]
    fn access_control_only_takes_away() {
        let authority = Authority::default().with_access_control(Box::new(OwnName));
        assert!(may_publish(&authority, "a", "a/1"));
        assert!(may_publish(&authority, "a", "$delayed/5/a/1"));
        assert!(!may_publish(&authority, "a", "b/1"));
        assert!(!may_publish(&authority, "a", "$delayed/5/b/1"));
        assert!(!may_publish(&authority, "$SYS", "$SYS/broker/uptime"), "not even if it says yes");
        let filter = TopicFilter::parse("a/1").expect("a filter");
        let actor = Actor { identity: "", client_id: "a", rights: None };
        assert!(!authority.authorize(&actor, Action::Subscribe { filter: &filter, qos: QoS::AtMostOnce }));
    }
}
