//! The method `http`: a server of the operator's says who may come in, and what they may.
//!
//! What is said to it, and what it says, is the business of [`contract`]; [`asker`] makes the requests, so many at a time, and leaves
//! a server that does not answer alone for a while ([`breaker`]); [`answers`] remembers decisions. Here is what they mean:
//!
//! - *allow*: the client is in, as who the server says or else as who it says it is. Rules that come along are all that it may.
//! - *deny*: it is not, whatever the methods behind this one would say.
//! - *ignore*: the methods behind this one are asked.
//! - no answer, or none that is understood: nothing is decided, so nobody comes in, and no weaker method is asked instead. The client
//!   hears that the server is unavailable and may try again.
//!
//! What a client that is in may is asked for again from time to time, and what is new counts at once.

mod answers;
mod asker;
mod breaker;
mod contract;

use std::hash::BuildHasher as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderName;
use kentongan_proto::mqtt::{Connect, ProtocolVersion, ReasonCode};

use super::chain::refused;
use super::fair_queue::{FairAddress, fair_address};
use super::granted::Granted;
use super::{Authority, Credential, Identified, Now, Policy, Progress, Question, Verified};
use crate::config::{HttpAuthConfig, HttpUrl};
use crate::connection::Origin;
use crate::http_client::{HttpClient, HttpClientError, HttpClientOptions, secret_header};
use crate::listener::ListenerContext;
use crate::metrics::{AuthenticationOutcome, HttpAuthMetrics, HttpAuthRights};
use answers::{Answers, Mark};
use asker::{Asker, Job, Tell, Undecided};
use contract::{Allowed, Ask, Asked, Decision};

pub use breaker::BreakerState;

/// The server, as the settings describe it.
#[derive(Debug)]
pub struct Server {
    client: HttpClient,
    url: Option<HttpUrl>,
    rights_url: Option<HttpUrl>,
    rights_for_all: bool,
    rights_seconds: u32,
    rights_outdated_seconds_max: u32,
    remember_seconds: u32,
    remember_denied_seconds: u32,
}

impl Server {
    /// `None`: there is none.
    ///
    /// # Errors
    /// The authorities that it is to be trusted by, or the header for it, cannot be used.
    pub(super) fn new(config: &HttpAuthConfig) -> Result<Option<Self>, HttpClientError> {
        if config.url.is_none() && config.rights_url.is_none() {
            return Ok(None);
        }
        let name = HeaderName::try_from(config.header.as_str()).ok();
        let header = name.zip(config.header_value.as_ref()).map(|(name, value)| secret_header(name, value));
        let options = HttpClientOptions {
            ca_file: config.ca_file.clone(),
            header: header.transpose()?,
            timeout: Duration::from_millis(config.timeout_milliseconds.get().into()),
            body_bytes_max: contract::ANSWER_BYTES_MAX,
            idle_connections_max: config.requests_max.get() as usize,
        };
        for url in config.url.iter().chain(&config.rights_url).filter(|url| url.is_exposed()) {
            tracing::warn!(%url, "what is said to the authentication server is not encrypted on its way; use https");
        }
        Ok(Some(Self {
            client: HttpClient::new(&options)?,
            url: config.url.clone(),
            rights_url: config.rights_url.clone(),
            rights_for_all: config.rights_for_all,
            rights_seconds: config.rights_seconds.get(),
            rights_outdated_seconds_max: config.rights_outdated_seconds_max,
            remember_seconds: config.remember_seconds,
            remember_denied_seconds: config.remember_denied_seconds,
        }))
    }

    /// Whether it says who may come in, and not only what they may.
    pub(super) fn is_asked_about_logins(&self) -> bool {
        self.url.is_some()
    }

    /// Tells whether logins are asked about at another place than before.
    fn login_mark(&self) -> u64 {
        let url = self.url.as_ref().map(HttpUrl::to_string);
        foldhash::fast::FixedState::default().hash_one(url)
    }

    fn remembers(&self, decision: &Decision) -> u32 {
        match decision {
            Decision::Allow(Allowed { expires_seconds: Some(expires), .. }) => self.remember_seconds.min(*expires),
            Decision::Allow(_) => self.remember_seconds,
            Decision::Deny | Decision::Ignore => self.remember_denied_seconds,
        }
    }
}

/// Whoever asks the server, and what it said.
#[derive(Debug)]
pub(super) struct Asking {
    asker: Asker,
    answers: Answers,
}

impl Asking {
    /// Starts a thread.
    ///
    /// # Errors
    /// The system gave none, or no randomness.
    pub(super) fn start(config: &HttpAuthConfig, metrics: HttpAuthMetrics) -> anyhow::Result<Self> {
        let answers = Answers::new(config.remember_max as usize)?;
        Ok(Self { asker: Asker::start(config, metrics)?, answers })
    }

    /// Other settings are in force: nothing that was heard before counts.
    pub(super) fn begin_anew(&self) {
        self.answers.forget_all();
        self.asker.close_breaker();
    }
}

/// A question that the server must be asked.
pub struct ServerQuestion {
    server: Arc<Server>,
    url: HttpUrl,
    json: Bytes,
    /// Under which its answer is remembered.
    mark: Mark,
    generation: u64,
    address: FairAddress,
    user: Box<str>,
    about: About,
}

/// Without the password.
impl std::fmt::Debug for ServerQuestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerQuestion")
            .field("user", &self.user)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What it is about.
#[derive(Debug)]
enum About {
    /// Whether somebody may come in.
    Login {
        /// The methods behind this one.
        next: usize,
    },
    /// What somebody may whom another method lets in.
    Rights(Identified, AuthenticationOutcome),
}

/// The answer to a [`ServerQuestion`].
#[derive(Debug)]
pub struct ServerAnswer {
    server: Arc<Server>,
    decision: Result<Decision, Undecided>,
    mark: Mark,
    generation: u64,
    about: About,
}

/// What the server said about a client that is connected.
#[derive(Debug)]
pub struct RenewedRights {
    decision: Result<Decision, Undecided>,
    /// Of the settings by which the server was asked.
    generation: u64,
}

#[cfg(test)]
impl RenewedRights {
    /// As if the server that is asked now had said so.
    fn of(authority: &Authority, decision: Decision) -> Self {
        Self { decision: Ok(decision), generation: authority.policy().generation }
    }

    /// The server did not answer.
    pub(crate) fn undecided(authority: &Authority) -> Self {
        Self { decision: Err(Undecided::Unavailable), ..Self::denied(authority) }
    }

    /// It says that the client may not be here.
    pub(crate) fn denied(authority: &Authority) -> Self {
        Self::of(authority, Decision::Deny)
    }
}

/// What that means for it.
#[derive(Debug, PartialEq, Eq)]
pub enum Renewal {
    /// What it has goes on to count, confirmed.
    Confirmed,
    /// The same, for another time than before.
    Prolonged(Arc<Granted>),
    /// It may something else from now on.
    Changed(Arc<Granted>),
    /// It may not be here any more.
    Denied,
    /// Nothing was decided.
    Undecided,
}

/// When the rights of a client are to be asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RightsTerms {
    /// So many seconds after they were asked for.
    pub seconds: u32,
    /// So many seconds without an answer, and it has to go. 0: never.
    pub outdated_seconds_max: u32,
}

/// Whoever wants to come in, and how.
#[derive(Clone, Copy)]
pub struct Visitor<'a> {
    /// What it said.
    pub connect: &'a Connect,
    /// Where.
    pub listener: &'a ListenerContext,
    /// From where.
    pub origin: &'a Origin,
}

/// About a client, without what it offers.
fn asked<'a>(
    ask: Ask,
    client_id: &'a str,
    listener: &'a ListenerContext,
    origin: &'a Origin,
    version: ProtocolVersion,
) -> Asked<'a> {
    Asked {
        ask,
        client_id,
        user_name: None,
        password: None,
        identity: None,
        certified: origin.certified.as_deref(),
        address: origin.address.map(|address| address.ip()),
        listener: &listener.address,
        version,
    }
}

/// What asking comes to.
enum Asks {
    /// The server said so then, on the process clock.
    Known(Decision, u64),
    /// It must be asked, or cannot be.
    Not(Progress),
}

fn undecided(why: Undecided) -> Progress {
    match why {
        Undecided::Busy => refused(
            ReasonCode::ServerBusy,
            "too many logins wait for the authentication server",
            AuthenticationOutcome::Busy,
        ),
        Undecided::Unavailable => refused(
            ReasonCode::ServerUnavailable,
            "the authentication server decided nothing",
            AuthenticationOutcome::Undecided,
        ),
    }
}

fn denied() -> Progress {
    refused(ReasonCode::NotAuthorized, "the authentication server denies it", AuthenticationOutcome::ServerDenied)
}

fn ends_ms(allowed: &Allowed, decided_ms: u64) -> Option<u64> {
    allowed.expires_seconds.map(|seconds| decided_ms.saturating_add(u64::from(seconds) * 1000))
}

/// What the server's word about a login means. `None`: the methods behind this one decide.
fn let_in(server: &Server, connect: &Connect, decision: Decision, decided_ms: u64) -> Option<Progress> {
    let allowed = match decision {
        Decision::Ignore => return None,
        Decision::Deny => return Some(denied()),
        Decision::Allow(allowed) => allowed,
    };
    let expires_ms = ends_ms(&allowed, decided_ms);
    let itself = || Arc::from(connect.user_name.as_deref().unwrap_or_default());
    let identity = allowed.identity.unwrap_or_else(itself);
    let granted = Some(Granted::by_server(allowed.rules, expires_ms, None));
    let identified = Identified { identity, credential: Credential::Server(server.login_mark()), granted };
    Some(Progress::Identified(identified, AuthenticationOutcome::Server))
}

/// Somebody was let in by another method, and the server has said what it may.
fn rights_granted(
    identified: Identified,
    outcome: AuthenticationOutcome,
    decision: Decision,
    decided_ms: u64,
) -> Progress {
    let login_ends_ms = identified.granted.as_ref().and_then(|granted| granted.login_ends_ms());
    let granted = match decision {
        Decision::Deny => return denied(),
        Decision::Ignore => Granted::by_server(None, None, login_ends_ms),
        Decision::Allow(allowed) => {
            let expires_ms = ends_ms(&allowed, decided_ms);
            Granted::by_server(allowed.rules, expires_ms, login_ends_ms)
        }
    };
    Progress::Identified(Identified { granted: Some(granted), ..identified }, outcome)
}

impl Authority {
    /// `None`: there is no server, or it leaves this one to others.
    pub(super) fn by_server(
        &self,
        policy: &Arc<Policy>,
        visitor: Visitor<'_>,
        next: usize,
        now: Now,
    ) -> Option<Progress> {
        let server = policy.server.as_ref()?;
        let url = server.url.as_ref()?;
        let Visitor { connect, listener, origin } = visitor;
        let asked = Asked {
            user_name: connect.user_name.as_deref(),
            password: connect.password.as_deref(),
            ..asked(Ask::Login, &connect.client_id, listener, origin, connect.version)
        };
        let user = Box::from(connect.user_name.as_deref().unwrap_or_default());
        match self.ask(policy, server, url, &asked, user, About::Login { next }, now) {
            Asks::Known(decision, decided_ms) => let_in(server, connect, decision, decided_ms),
            Asks::Not(progress) => Some(progress),
        }
    }

    /// Goes on with somebody whom another method has let in: what it may, the server may have to say.
    pub(super) fn with_rights(&self, progress: Progress, visitor: Visitor<'_>, now: Now) -> Progress {
        let Progress::Identified(identified, outcome) = progress else {
            return progress;
        };
        let policy = self.policy();
        let server = policy.server.as_ref().filter(|server| server.rights_for_all);
        let has_own = identified.granted.as_ref().is_some_and(|granted| granted.is_of_server() || granted.has_rules());
        let Some((server, url)) =
            server.and_then(|server| Some((server, server.rights_url.as_ref()?))).filter(|_| !has_own)
        else {
            return Progress::Identified(identified, outcome);
        };
        let Visitor { connect, listener, origin } = visitor;
        let identity = Arc::clone(&identified.identity);
        let asked = Asked {
            identity: Some(&identity),
            ..asked(Ask::Rights, &connect.client_id, listener, origin, connect.version)
        };
        let about = About::Rights(identified.clone(), outcome);
        match self.ask(&policy, server, url, &asked, Box::from(&*identity), about, now) {
            Asks::Known(decision, decided_ms) => rights_granted(identified, outcome, decision, decided_ms),
            Asks::Not(progress) => progress,
        }
    }

    /// What is known already, or else the question.
    #[expect(clippy::too_many_arguments, reason = "a question is made of so much")]
    fn ask(
        &self,
        policy: &Arc<Policy>,
        server: &Arc<Server>,
        url: &HttpUrl,
        asked: &Asked<'_>,
        user: Box<str>,
        about: About,
        now: Now,
    ) -> Asks {
        // There is one as soon as there is a server; without, nobody is let in by any.
        let Some(asking) = self.asking.get() else {
            return Asks::Not(undecided(Undecided::Unavailable));
        };
        let json = asked.json();
        let mark = asking.answers.mark(policy.generation, &json);
        if let Some((decision, decided_ms)) = asking.answers.find(&mark, now.process_ms) {
            asking.asker.count_remembered();
            return Asks::Known(decision, decided_ms);
        }
        if !asking.asker.is_available() {
            return Asks::Not(undecided(Undecided::Unavailable));
        }
        let (server, url, address) = (Arc::clone(server), url.clone(), fair_address(asked.address));
        let generation = policy.generation;
        Asks::Not(Progress::Ask(Question::Server(ServerQuestion {
            server,
            url,
            json,
            mark,
            generation,
            address,
            user,
            about,
        })))
    }

    /// Lets the server be asked, and hands what it says to `answer`, unless `awaited` is gone by then.
    pub(super) fn ask_server(
        &self,
        question: ServerQuestion,
        awaited: Weak<()>,
        answer: impl FnOnce(Verified) + Send + 'static,
    ) {
        let ServerQuestion { server, url, json, mark, generation, address, user, about } = question;
        let client = server.client.clone();
        let tell: Tell = Box::new(move |decision| {
            answer(Verified::Server(ServerAnswer { server, decision, mark, generation, about }));
        });
        match self.asking.get() {
            Some(asking) => asking.asker.submit(Job { client, url, json, address, user, awaited, tell }),
            None => tell(Err(Undecided::Unavailable)),
        }
    }

    /// Goes on when the server has answered, or has not.
    pub(super) fn on_server_answer(&self, answer: ServerAnswer, visitor: Visitor<'_>, now: Now) -> Progress {
        let ServerAnswer { server, decision, mark, generation, about } = answer;
        let connect = visitor.connect;
        let decision = match decision {
            Err(why) => return undecided(why),
            // The settings were read again meanwhile: what another server said does not count.
            Ok(_) if generation != self.policy().generation => {
                return self.begin_again(about, visitor, now);
            }
            Ok(decision) => decision,
        };
        let identity = match (&about, &decision) {
            (About::Rights(identified, _), _) => &*identified.identity,
            (About::Login { .. }, Decision::Allow(Allowed { identity: Some(identity), .. })) => &**identity,
            (About::Login { .. }, _) => connect.user_name.as_deref().unwrap_or_default(),
        };
        if let Some(asking) = self.asking.get() {
            asking.answers.remember(mark, identity, &decision, server.remembers(&decision), now.process_ms);
        }
        match about {
            About::Login { next } => let_in(&server, connect, decision, now.process_ms)
                .unwrap_or_else(|| self.authenticate_behind(next, visitor, now)),
            About::Rights(identified, outcome) => rights_granted(identified, outcome, decision, now.process_ms),
        }
    }

    /// Other settings are in force than when the server was asked.
    fn begin_again(&self, about: About, visitor: Visitor<'_>, now: Now) -> Progress {
        let Visitor { connect, listener, origin } = visitor;
        match about {
            About::Login { .. } => self.authenticate(connect, listener, origin, now),
            // Who it is was found out, maybe in an exchange that nothing in CONNECT could repeat.
            About::Rights(identified, outcome) if self.is_still(&identified) => {
                self.with_rights(Progress::Identified(identified, outcome), visitor, now)
            }
            About::Rights(..) => refused(
                ReasonCode::NotAuthorized,
                "the settings were read again, and it would not be let in any more",
                AuthenticationOutcome::Undecided,
            ),
        }
    }

    /// Whether a client that this server let in is one that the server of today could have let in.
    pub(super) fn is_same_server(&self, mark: u64) -> bool {
        self.policy().server.as_ref().is_some_and(|server| server.url.is_some() && server.login_mark() == mark)
    }

    /// Which server is asked about logins, for the audit log.
    #[must_use]
    pub fn server_name(&self) -> Option<String> {
        let policy = self.policy();
        let server = policy.server.as_ref()?;
        Some(server.url.as_ref().or(server.rights_url.as_ref())?.authority().to_owned())
    }

    /// When the rights of a client are to be asked for again. `None`: never, it has them from elsewhere.
    #[must_use]
    pub fn rights_terms(&self, granted: Option<&Granted>) -> Option<RightsTerms> {
        granted.filter(|granted| granted.is_of_server())?;
        let policy = self.policy();
        let server = policy.server.as_ref().filter(|server| server.rights_url.is_some())?;
        let (seconds, outdated_seconds_max) = (server.rights_seconds, server.rights_outdated_seconds_max);
        Some(RightsTerms { seconds, outdated_seconds_max })
    }

    /// Asks again what a client may that is connected, and hands what the server says to `answer`, unless `awaited` is gone by
    /// then. `false`: not now.
    pub fn renew_rights(
        &self,
        identity: &Arc<str>,
        client_id: &str,
        (listener, origin, version): (&ListenerContext, &Origin, ProtocolVersion),
        awaited: Weak<()>,
        answer: impl FnOnce(RenewedRights) + Send + 'static,
    ) -> bool {
        let (policy, Some(asking)) = (self.policy(), self.asking.get()) else {
            return false;
        };
        let Some((server, url)) = policy.server.as_ref().and_then(|server| Some((server, server.rights_url.as_ref()?)))
        else {
            return false;
        };
        // Logins go first, whose clients wait.
        if asking.asker.is_crowded() {
            asking.asker.metrics().rights(HttpAuthRights::PutOff);
            return false;
        }
        let asked = Asked { identity: Some(identity), ..asked(Ask::Rights, client_id, listener, origin, version) };
        let generation = policy.generation;
        asking.asker.submit(Job {
            client: server.client.clone(),
            url: url.clone(),
            json: asked.json(),
            address: fair_address(asked.address),
            user: Box::from(&**identity),
            awaited,
            tell: Box::new(move |decision| answer(RenewedRights { decision, generation })),
        });
        true
    }

    /// What the server's word means for a client that has what `granted` says.
    #[must_use]
    pub fn on_rights(&self, identity: &str, granted: &Granted, rights: RenewedRights, now: Now) -> Renewal {
        let renewal = match rights.decision {
            Err(_) => Renewal::Undecided,
            // The settings were read again meanwhile: what another server said does not count.
            Ok(_) if rights.generation != self.policy().generation => Renewal::Undecided,
            Ok(Decision::Deny) => Renewal::Denied,
            Ok(Decision::Ignore) => renewed(granted, Allowed::default(), now),
            Ok(Decision::Allow(allowed)) => renewed(granted, allowed, now),
        };
        let Some(asking) = self.asking.get() else {
            return renewal;
        };
        let outcome = match &renewal {
            Renewal::Confirmed | Renewal::Prolonged(_) => HttpAuthRights::Unchanged,
            Renewal::Changed(_) => HttpAuthRights::Changed,
            Renewal::Denied => HttpAuthRights::Denied,
            Renewal::Undecided => HttpAuthRights::Undecided,
        };
        asking.asker.metrics().rights(outcome);
        // What its next login would be told otherwise is what was true before.
        if matches!(outcome, HttpAuthRights::Changed | HttpAuthRights::Denied) {
            asking.answers.take_back(identity, now.process_ms);
        }
        renewal
    }
}

fn renewed(before: &Granted, allowed: Allowed, now: Now) -> Renewal {
    let expires_ms = ends_ms(&allowed, now.process_ms).or(before.expires_ms());
    let new = Granted::by_server(allowed.rules, expires_ms, before.login_ends_ms());
    match (*new == *before, new.has_same_rules(before)) {
        (true, _) => Renewal::Confirmed,
        (_, true) => Renewal::Prolonged(new),
        _ => Renewal::Changed(new),
    }
}

#[cfg(test)]
mod tests;
