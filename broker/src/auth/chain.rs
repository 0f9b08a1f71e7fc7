//! Who is who: the methods of a listener, in their order.
//!
//! A method that has nothing to go by is passed over; the first one that accepts or refuses decides. Who offers nothing at all
//! is nobody in particular, and comes in where the listener lets such clients in; who offers something that no method knows is
//! refused. A listener whose methods all have nothing to work with does not look at what clients offer.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use kentongan_proto::mqtt::{Connect, ReasonCode};

use super::fair_queue::{FairAddress, fair_address};
use super::http::{ServerAnswer, ServerQuestion, Visitor};
use super::jwt::TokenMark;
use super::verifier::Job;
use super::{Authority, Granted, Now, Policy};
use crate::config::AuthenticationMethod;
use crate::connection::Origin;
use crate::listener::ListenerContext;
use crate::metrics::AuthenticationOutcome;
use crate::session::handshake::Refusal;

/// By what a client is who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// By nothing.
    Anonymous,
    /// A password, stored with this fingerprint.
    Password(u64),
    /// A certificate.
    Certificate,
    /// A token, by what judged it.
    Token(TokenMark),
    /// Enhanced authentication.
    Mechanism,
    /// The word of a server, which is known by this.
    Server(u64),
}

/// A client that was authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// Whom its sessions belong to; empty: nobody in particular.
    pub identity: Arc<str>,
    /// Why that is believed.
    pub credential: Credential,
    /// What the login brings along, if anything.
    pub granted: Option<Arc<Granted>>,
}

impl Identified {
    /// Nobody in particular.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::plainly(Arc::from(""), Credential::Anonymous)
    }

    /// By a login that brings nothing along.
    #[must_use]
    pub fn plainly(identity: Arc<str>, credential: Credential) -> Self {
        Self { identity, credential, granted: None }
    }
}

/// What somebody else must be asked, who takes a while.
#[derive(Debug)]
pub enum Question {
    /// A thread.
    Password(PasswordQuestion),
    /// A server.
    Server(ServerQuestion),
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub enum Verified {
    /// Of a thread.
    Password(VerifiedPassword),
    /// Of a server.
    Server(ServerAnswer),
}

/// A user name and a password that a thread must look at.
pub struct PasswordQuestion {
    user: Box<str>,
    password: Bytes,
    address: FairAddress,
    policy: Arc<Policy>,
    /// The methods behind this one.
    next: usize,
}

/// Without the password.
impl std::fmt::Debug for PasswordQuestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PasswordQuestion")
            .field("user", &self.user)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What became of a [`PasswordQuestion`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordOutcome {
    /// It is that user's password.
    Right,
    /// It is not.
    Wrong,
    /// There is no such user.
    UnknownUser,
    /// Too much waits for the threads.
    Busy,
}

/// The answer to a [`PasswordQuestion`].
#[derive(Debug)]
pub struct VerifiedPassword {
    outcome: PasswordOutcome,
    user: Box<str>,
    /// Of the file that was asked.
    generation: u64,
    fingerprint: u64,
    next: usize,
}

/// What is known about a client, by and by.
#[derive(Debug)]
pub enum Progress {
    /// It is who it says, and how that counts.
    Identified(Identified, AuthenticationOutcome),
    /// It is not let in.
    Refused(Refusal, AuthenticationOutcome),
    /// Somebody else must look at it first.
    Ask(Question),
}

pub(super) fn refused(reason: ReasonCode, text: &'static str, outcome: AuthenticationOutcome) -> Progress {
    Progress::Refused(Refusal { reason, text }, outcome)
}

impl Authority {
    /// Who the client is, as far as can be said without waiting.
    #[must_use]
    pub fn authenticate(&self, connect: &Connect, listener: &ListenerContext, origin: &Origin, now: Now) -> Progress {
        let visitor = Visitor { connect, listener, origin };
        self.with_rights(self.authenticate_from(0, None, visitor, now), visitor, now)
    }

    /// Goes on behind a server that leaves a client to others.
    pub(super) fn authenticate_behind(&self, next: usize, visitor: Visitor<'_>, now: Now) -> Progress {
        self.with_rights(self.authenticate_from(next, None, visitor, now), visitor, now)
    }

    /// Goes on when a question is answered.
    #[must_use]
    pub fn on_verified(
        &self,
        verified: Verified,
        connect: &Connect,
        listener: &ListenerContext,
        origin: &Origin,
        now: Now,
    ) -> Progress {
        let visitor = Visitor { connect, listener, origin };
        match verified {
            Verified::Server(answer) => self.on_server_answer(answer, visitor, now),
            Verified::Password(verified) => {
                self.with_rights(self.on_verified_password(verified, visitor, now), visitor, now)
            }
        }
    }

    fn on_verified_password(&self, verified: VerifiedPassword, visitor: Visitor<'_>, now: Now) -> Progress {
        let VerifiedPassword { outcome, user, generation, fingerprint, next } = verified;
        match outcome {
            PasswordOutcome::Busy => {
                refused(ReasonCode::ServerBusy, "too many passwords are being verified", AuthenticationOutcome::Busy)
            }
            // The file was read again meanwhile: what another one said does not count.
            _ if generation != self.policy().generation => self.authenticate_from(0, None, visitor, now),
            PasswordOutcome::Right => {
                if let (Some(remembered), Some(password)) = (self.remembered(), &visitor.connect.password) {
                    remembered.remember(generation, &user, password, now.process_ms);
                }
                let identified = Identified::plainly(Arc::from(user), Credential::Password(fingerprint));
                Progress::Identified(identified, AuthenticationOutcome::Password)
            }
            PasswordOutcome::Wrong => wrong(AuthenticationOutcome::WrongPassword),
            PasswordOutcome::UnknownUser => {
                let unknown = Some(AuthenticationOutcome::UnknownUser);
                self.authenticate_from(next, unknown, visitor, now)
            }
        }
    }

    /// The methods from `first` on. `passed_over`: what a method before them found.
    fn authenticate_from(
        &self,
        first: usize,
        passed_over: Option<AuthenticationOutcome>,
        visitor: Visitor<'_>,
        now: Now,
    ) -> Progress {
        let Visitor { connect, listener, origin } = visitor;
        let policy = self.policy();
        for (index, method) in listener.authentication.iter().enumerate().skip(first) {
            match method {
                AuthenticationMethod::Certificate => {
                    if let Some(certified) = origin.certified.as_ref().filter(|name| !name.is_empty()) {
                        let identified = Identified::plainly(Arc::clone(certified), Credential::Certificate);
                        return Progress::Identified(identified, AuthenticationOutcome::Certificate);
                    }
                }
                AuthenticationMethod::Jwt => {
                    if let Some(progress) = self.by_token(&policy, connect, now) {
                        return progress;
                    }
                }
                AuthenticationMethod::Password => {
                    if let Some(progress) = self.by_password(&policy, connect, origin, index + 1, now) {
                        return progress;
                    }
                }
                AuthenticationMethod::Http => {
                    if let Some(progress) = self.by_server(&policy, visitor, index + 1, now) {
                        return progress;
                    }
                }
            }
        }
        let by_file = policy.passwords.is_some() && listener.asks_for_passwords();
        let is_offered = connect.user_name.is_some() && (by_file || (policy.asks_server() && listener.asks_server()));
        let is_no_token = listener.asks_for_tokens()
            && policy.tokens.as_ref().is_some_and(|tokens| tokens.offered(connect).is_some());
        if is_offered || is_no_token {
            return wrong(passed_over.unwrap_or(AuthenticationOutcome::UnknownUser));
        }
        if listener.allow_anonymous {
            return Progress::Identified(Identified::anonymous(), AuthenticationOutcome::Anonymous);
        }
        let text = match &connect.user_name {
            None => "anonymous clients are not allowed on this listener (allow_anonymous)",
            Some(_) => "no users are set up on this listener (auth.password_file), nor may clients be anonymous",
        };
        refused(ReasonCode::NotAuthorized, text, AuthenticationOutcome::NothingOffered)
    }

    /// `None`: there is no user name, or nothing to hold it against.
    fn by_password(
        &self,
        policy: &Arc<Policy>,
        connect: &Connect,
        origin: &Origin,
        next: usize,
        now: Now,
    ) -> Option<Progress> {
        let user = connect.user_name.as_deref()?;
        let file = policy.passwords.as_ref()?;
        let password = connect.password.clone().unwrap_or_default();
        if let (Some(remembered), Some(stored)) = (self.remembered(), file.stored(user))
            && remembered.knows(policy.generation, user, &password, now.process_ms)
        {
            let credential = Credential::Password(self.fingerprint(stored));
            let identified = Identified::plainly(Arc::from(user), credential);
            return Some(Progress::Identified(identified, AuthenticationOutcome::Remembered));
        }
        let address = fair_address(origin.address.map(|address| address.ip()));
        let (user, policy) = (Box::from(user), Arc::clone(policy));
        Some(Progress::Ask(Question::Password(PasswordQuestion { user, password, address, policy, next })))
    }

    /// Lets somebody find the answer and hand it to `answer`, unless `awaited` is gone by then.
    pub fn verify(&self, question: Question, awaited: Weak<()>, answer: impl FnOnce(Verified) + Send + 'static) {
        match question {
            Question::Password(question) => self.verify_password(question, awaited, answer),
            Question::Server(question) => self.ask_server(question, awaited, answer),
        }
    }

    fn verify_password(
        &self,
        question: PasswordQuestion,
        awaited: Weak<()>,
        answer: impl FnOnce(Verified) + Send + 'static,
    ) {
        let PasswordQuestion { user, password, address, policy, next } = question;
        let fingerprint =
            policy.passwords.as_ref().and_then(|file| file.stored(&user)).map_or(0, |stored| self.fingerprint(stored));
        let generation = policy.generation;
        let job_user = user.clone();
        let act = Box::new(move |has_room: bool| {
            let right = |policy: &Policy| policy.passwords.as_ref()?.verify(&user, &password);
            let outcome = match has_room.then(|| right(&policy)) {
                None => PasswordOutcome::Busy,
                Some(Some(true)) => PasswordOutcome::Right,
                Some(Some(false)) => PasswordOutcome::Wrong,
                Some(None) => PasswordOutcome::UnknownUser,
            };
            answer(Verified::Password(VerifiedPassword { outcome, user, generation, fingerprint, next }));
        });
        let job = Job { address, user: job_user, awaited, act };
        match self.verifier() {
            Some(verifier) => verifier.submit(job),
            // There is one as soon as there are passwords; without, nobody is let in by any.
            None => (job.act)(false),
        }
    }

    /// Whether a client would still be let in as who it is, under the files as they are now.
    #[must_use]
    pub fn is_still(&self, identified: &Identified) -> bool {
        match identified.credential {
            Credential::Password(fingerprint) => {
                let policy = self.policy();
                let stored = policy.passwords.as_ref().and_then(|file| file.stored(&identified.identity));
                stored.is_some_and(|stored| self.fingerprint(stored) == fingerprint)
            }
            Credential::Server(mark) => self.is_same_server(mark),
            Credential::Token(mark) => self.policy().tokens.as_ref().is_some_and(|tokens| tokens.stands_by(mark)),
            Credential::Anonymous | Credential::Certificate | Credential::Mechanism => true,
        }
    }
}

/// For a wrong password and for an unknown user alike, so that nobody learns which users there are.
fn wrong(outcome: AuthenticationOutcome) -> Progress {
    refused(ReasonCode::BadUserNameOrPassword, "user name or password is wrong", outcome)
}

#[cfg(test)]
mod tests {
    use kentongan_proto::mqtt::{ConnectProperties, ProtocolVersion};

    use super::super::{MosquittoForm, StoredPassword};
    use super::*;
    use crate::config::{AuthConfig, ListenerConfig, Settings};

    use AuthenticationMethod::{Certificate, Password};

    /// Ana is a user, if there are any.
    fn authority(has_users: bool) -> Authority {
        let authority = Authority::default();
        if has_users {
            let line = StoredPassword::for_mosquitto(b"x", MosquittoForm::Sha512).expect("hashed");
            let policy = Policy { generation: 1, ..Policy::of_users(&format!("ana:{line}\n")).expect("a file") };
            authority.change(policy, &AuthConfig::default()).expect("a thread");
        }
        authority
    }

    fn listener(methods: &[AuthenticationMethod], allow_anonymous: bool) -> ListenerContext {
        let authentication = Some(methods.to_vec());
        let config =
            ListenerConfig { authentication, allow_anonymous: Some(allow_anonymous), ..ListenerConfig::default() };
        let address: std::net::SocketAddr = "127.0.0.1:1883".parse().expect("an address");
        ListenerContext::new(config, &Settings::default(), address)
    }

    fn connect(user: Option<&str>) -> Connect {
        Connect {
            version: ProtocolVersion::V5,
            bridge: false,
            clean_start: true,
            keep_alive: 0,
            client_id: "c".to_owned(),
            will: None,
            user_name: user.map(str::to_owned),
            password: user.map(|_| Bytes::from_static(b"x")),
            properties: ConnectProperties::default(),
        }
    }

    const NOW: Now = Now { process_ms: 0, wall_ms: 0 };

    fn certified(name: Option<&str>) -> Origin {
        Origin { certified: name.map(Arc::from), ..Origin::default() }
    }

    /// Who it is, or what it is told; `?` and the user whose password must be looked at.
    fn said(progress: Progress) -> String {
        match progress {
            Progress::Identified(identified, outcome) => format!("{:?} {outcome:?}", identified.identity),
            Progress::Refused(refusal, outcome) => format!("{:?} {outcome:?}", refusal.reason),
            Progress::Ask(Question::Password(question)) => format!("?{}", question.user),
            Progress::Ask(Question::Server(_)) => String::from("?server"),
        }
    }

    fn ask(methods: &[AuthenticationMethod], user: Option<&str>, certificate: Option<&str>) -> String {
        let authority = authority(true);
        said(authority.authenticate(&connect(user), &listener(methods, false), &certified(certificate), NOW))
    }

    fn verified(outcome: PasswordOutcome, generation: u64, next: usize) -> Verified {
        Verified::Password(VerifiedPassword { outcome, user: Box::from("ana"), generation, fingerprint: 7, next })
    }

    #[test]
    fn the_methods_are_asked_in_the_order_of_the_listener() {
        let certificate_first = [Certificate, Password];
        assert_eq!(ask(&certificate_first, Some("ana"), Some("meter")), "\"meter\" Certificate");
        assert_eq!(ask(&[Password, Certificate], Some("ana"), Some("meter")), "?ana");
        assert_eq!(ask(&certificate_first, Some("ana"), None), "?ana", "there was no certificate");
        assert_eq!(ask(&certificate_first, Some("ana"), Some("")), "?ana", "nor is an empty name one");
        assert_eq!(ask(&[Password, Certificate], None, Some("meter")), "\"meter\" Certificate", "no user name");
    }

    #[test]
    fn a_method_that_the_listener_does_not_name_is_not_asked() {
        assert_eq!(ask(&[Password], Some("ana"), Some("meter")), "?ana");
        assert_eq!(ask(&[Password], None, Some("meter")), "NotAuthorized NothingOffered");
        assert_eq!(ask(&[Certificate], Some("ana"), None), "NotAuthorized NothingOffered");
    }

    #[test]
    fn who_offers_nothing_is_nobody_where_the_listener_lets_nobody_in() {
        let methods = [Certificate, Password];
        let come = |authority: &Authority, user, allow| {
            said(authority.authenticate(&connect(user), &listener(&methods, allow), &Origin::default(), NOW))
        };
        let with_users = authority(true);
        assert_eq!(come(&with_users, None, true), "\"\" Anonymous");
        assert_eq!(come(&with_users, None, false), "NotAuthorized NothingOffered");
        let without_users = authority(false);
        assert_eq!(come(&without_users, Some("ana"), true), "\"\" Anonymous", "there is nothing to hold it against");
        assert_eq!(come(&without_users, Some("ana"), false), "NotAuthorized NothingOffered");
        let told = |user| match without_users.authenticate(
            &connect(user),
            &listener(&methods, false),
            &Origin::default(),
            NOW,
        ) {
            Progress::Refused(refusal, _) => refusal.text,
            other => panic!("{other:?}"),
        };
        assert!(told(None).starts_with("anonymous clients are not allowed"));
        assert!(told(Some("ana")).starts_with("no users are set up"), "it did not come as nobody");
    }

    #[test]
    fn a_wrong_password_is_a_refusal_and_an_unknown_user_is_passed_over() {
        let authority = authority(true);
        let listener = listener(&[Password, Certificate], true);
        let answer = |outcome, certificate, next| {
            let verified = verified(outcome, 1, next);
            said(authority.on_verified(verified, &connect(Some("ana")), &listener, &certified(certificate), NOW))
        };
        assert_eq!(answer(PasswordOutcome::Right, None, 1), "\"ana\" Password");
        assert_eq!(answer(PasswordOutcome::Wrong, Some("meter"), 1), "BadUserNameOrPassword WrongPassword");
        assert_eq!(answer(PasswordOutcome::UnknownUser, Some("meter"), 1), "\"meter\" Certificate");
        assert_eq!(
            answer(PasswordOutcome::UnknownUser, None, 1),
            "BadUserNameOrPassword UnknownUser",
            "an offer is refused, also where nobody may come in"
        );
        assert_eq!(answer(PasswordOutcome::Busy, Some("meter"), 1), "ServerBusy Busy");
    }

    /// Whatever an earlier file said of a password.
    #[test]
    fn an_answer_by_another_file_does_not_count() {
        let authority = authority(true);
        let listener = listener(&[Password], false);
        for outcome in [PasswordOutcome::Right, PasswordOutcome::Wrong, PasswordOutcome::UnknownUser] {
            let verified = verified(outcome, 0, 1);
            let progress = authority.on_verified(verified, &connect(Some("ana")), &listener, &Origin::default(), NOW);
            assert_eq!(said(progress), "?ana", "{outcome:?}: it is asked again");
        }
    }

    #[test]
    fn who_came_by_a_password_stays_as_long_as_its_line() {
        let authority = authority(true);
        let fingerprint = authority.policy().passwords.as_ref().and_then(|file| file.stored("ana")).cloned();
        let fingerprint = authority.fingerprint(&fingerprint.expect("a user"));
        let by = |identity: &str, credential| Identified::plainly(Arc::from(identity), credential);
        assert!(authority.is_still(&by("ana", Credential::Password(fingerprint))));
        assert!(!authority.is_still(&by("ana", Credential::Password(fingerprint ^ 1))), "another line");
        assert!(!authority.is_still(&by("budi", Credential::Password(fingerprint))), "no line");
        assert!(authority.is_still(&by("budi", Credential::Certificate)));
    }
}
