//! Tokens (JWT, RFC 7519) instead of passwords.
//!
//! A token is judged in this order: its size; its header, which may only select among the keys that there are; its signature, by an
//! algorithm that the key is for; then its claims. Nothing in it counts before its signature was found good. Refusals say why, and show
//! nothing of it.
//!
//! What does not look like a token is none: that is for the methods behind this one. What looks like one and is not good is refused.
//!
//! To verify a signature takes 20 to 100 µs. It is done in place: on the threads for passwords it would stand behind what takes a
//! thousand times as long, and their queue is shorter than a fleet. An arbiter begins only so much of that in a turn
//! (`router/handshaking.rs`), and what was good is remembered, bound to its key: a fleet that comes back with the tokens it had
//! costs a hash each.

mod fetched;
mod keys;
mod signature;

use std::borrow::Cow;
use std::hash::BuildHasher as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kentongan_proto::mqtt::{Connect, ReasonCode};
use ring::digest;
use serde_json::{Map, Value};

use super::chain::refused;
use super::password_file::FileError;
use super::remembered::Remembered;
use super::{Authority, Credential, Granted, GrantedRules, Identified, Now, Policy, Progress};
use crate::config::{HttpUrl, JwtConfig, RequiredClaim, TokenPlace};
use crate::metrics::AuthenticationOutcome;
pub use fetched::FetchedKeys;
use keys::{Key, Keys, NAMELESS_MAX};

/// Keys that are tried for one token: those without a name of the files and of the server, or as many where it names none.
const TRIES_MAX: usize = 2 * NAMELESS_MAX;

/// Year 9999: what is later is no time.
const LATEST_SECONDS: f64 = 253_402_300_799.0;

/// Why a token is not good. The client's doing, or that of whoever gave it the token, but for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenError {
    TooLarge,
    Malformed,
    UnknownKey,
    WrongAlgorithm,
    BadSignature,
    Expired,
    NoExpiry,
    NotYet,
    WrongIssuer,
    WrongAudience,
    MissingClaim,
    NoIdentity,
    BadRules,
    NoKeysYet,
}

impl TokenError {
    /// For the log, the audit log and the client.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::TooLarge => "the token is too large (auth.jwt.token_bytes_max)",
            Self::Malformed => "the token is malformed, or of an algorithm that is not supported",
            Self::UnknownKey => "the token names a key that is not known",
            Self::WrongAlgorithm => "the token is of an algorithm that its key is not for",
            Self::BadSignature => "the signature of the token is wrong",
            Self::Expired => "the token has expired",
            Self::NoExpiry => "the token has no end (exp)",
            Self::NotYet => "the token is not valid yet (nbf)",
            Self::WrongIssuer => "the token is from another issuer (iss)",
            Self::WrongAudience => "the token is for somebody else (aud)",
            Self::MissingClaim => "the token lacks a claim, or has another value in it (auth.jwt.required_claims)",
            Self::NoIdentity => "the token does not say whose it is (auth.jwt.identity_claim)",
            Self::BadRules => "the rights in the token are not understood (auth.jwt.acl_claim)",
            Self::NoKeysYet => "the keys of tokens could not be fetched yet",
        }
    }

    pub(super) fn reason(self) -> ReasonCode {
        match self {
            Self::NoKeysYet => ReasonCode::ServerUnavailable,
            _ => ReasonCode::BadUserNameOrPassword,
        }
    }
}

/// By what a token was found to be good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenMark {
    /// The key of a file. `None`: one that a server has, which is not asked for again while the connection stands.
    key: Option<u64>,
    /// Tells it from other servers and other demands on what tokens claim.
    terms: u64,
}

/// What a good token says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenLogin {
    pub(super) identity: Arc<str>,
    pub(super) mark: TokenMark,
    pub(super) granted: Option<Arc<Granted>>,
}

/// Names that claims may have to equal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) client_id: &'a str,
    pub(super) user_name: &'a str,
}

/// Keys that were read from files.
#[derive(Debug)]
struct FileKeys {
    keys: Keys,
    /// What was in the files.
    digest: [u8; 32],
}

/// By what tokens are judged.
#[derive(Debug)]
pub struct Tokens {
    config: JwtConfig,
    of_files: RwLock<Arc<FileKeys>>,
    fetched: Option<Arc<FetchedKeys>>,
}

impl Tokens {
    /// Reads the files that the settings name. What `before` has fetched stays if the settings say so.
    pub(super) fn read(config: &JwtConfig, before: Option<&Self>) -> Result<Self, FileError> {
        signature::install();
        let before = before.and_then(Self::fetched);
        let fetched = match before.filter(|fetched| fetched.is_as(config)) {
            Some(fetched) => Some(Arc::clone(fetched)),
            None => FetchedKeys::new(config, before.map(|fetched| &**fetched)).map_err(|error| {
                FileError::whole(config.jwks_ca_file.as_deref().unwrap_or(Path::new("auth.jwt.jwks_url")), &error)
            })?,
        };
        let of_files = RwLock::new(Arc::new(FileKeys::read(config)?));
        Ok(Self { config: config.clone(), of_files, fetched })
    }

    /// What must be fetched, if anything.
    pub(super) fn fetched(&self) -> Option<&Arc<FetchedKeys>> {
        self.fetched.as_ref()
    }

    /// Takes the keys up that are in the files now.
    pub(super) fn read_again(&self) -> Result<(), FileError> {
        let keys = Arc::new(FileKeys::read(&self.config)?);
        *self.of_files.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// What is in the files now.
    pub(super) fn digest(&self) -> [u8; 32] {
        digest_of_files(&self.config)
    }

    /// Whether that is what was read.
    pub(super) fn is_made_of(&self, digest: [u8; 32]) -> bool {
        self.of_files().digest == digest
    }

    /// Whether a login by that stands.
    pub(super) fn stands_by(&self, mark: TokenMark) -> bool {
        mark == self.mark(mark.key) && mark.key.is_none_or(|fingerprint| self.of_files().keys.has(fingerprint))
    }

    /// Of a login by that key, under what tokens must say now. How long they may be and where they stand makes nobody another.
    fn mark(&self, key: Option<u64>) -> TokenMark {
        let config = &self.config;
        // Where keys are fetched from matters to those who came by one of them.
        let server = config.jwks_url.as_ref().filter(|_| key.is_none()).map(HttpUrl::to_string);
        let claims = (&config.issuer, &config.audience, &config.required_claims, config.require_expiry);
        let meanings = (&config.identity_claim, &config.acl_claim);
        TokenMark { key, terms: foldhash::fast::FixedState::default().hash_one((server, claims, meanings)) }
    }

    fn of_files(&self) -> Arc<FileKeys> {
        Arc::clone(&self.of_files.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a CONNECT has in the place of a token. `None`: nothing.
    pub(super) fn offered<'a>(&self, connect: &'a Connect) -> Option<&'a [u8]> {
        let offered = match self.config.token_in {
            TokenPlace::Password => connect.password.as_deref(),
            TokenPlace::UserName => connect.user_name.as_deref().map(str::as_bytes),
        };
        offered.filter(|bytes| !bytes.is_empty())
    }

    /// Whom the token is for and what it grants.
    pub(super) fn judge(
        &self,
        token: &[u8],
        names: Names<'_>,
        now: Now,
        remembered: Option<&Remembered>,
    ) -> Result<TokenLogin, TokenError> {
        if token.len() > self.config.token_bytes_max.get() as usize {
            return Err(TokenError::TooLarge);
        }
        let token = std::str::from_utf8(token).map_err(|_| TokenError::Malformed)?;
        let key = self.signed_by(token, now, remembered)?;
        let payload = token.split('.').nth(1).ok_or(TokenError::Malformed)?;
        let claims = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Malformed)?;
        let claims: Map<String, Value> = serde_json::from_slice(&claims).map_err(|_| TokenError::Malformed)?;
        self.login(&claims, key, names, now)
    }

    /// The key by which its signature is good.
    fn signed_by(&self, token: &str, now: Now, remembered: Option<&Remembered>) -> Result<Option<u64>, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
        // RFC 7515, section 4.1.11: what must be understood, and here nothing is.
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (of_files, fetched_keys) = (self.of_files(), self.fetched.as_ref().and_then(|fetched| fetched.keys()));
        let name = header.kid.as_deref();
        fn own(key: &Key) -> (&Key, Option<u64>) {
            (key, Some(key.fingerprint))
        }
        fn fetched(key: &Key) -> (&Key, Option<u64>) {
            (key, None)
        }
        // Those that it names come before all that could have signed it too.
        let named = of_files.keys.named(name).map(own);
        let named = named.chain(fetched_keys.iter().flat_map(|keys| keys.named(name)).map(fetched));
        let nameless = of_files.keys.nameless(name).map(own);
        let nameless = nameless.chain(fetched_keys.iter().flat_map(|keys| keys.nameless(name)).map(fetched));
        let mut error = TokenError::UnknownKey;
        let mut tries = 0;
        for (key, of_file) in named.chain(nameless) {
            if !key.is_for(header.alg) {
                error = TokenError::WrongAlgorithm;
                continue;
            }
            if tries == TRIES_MAX {
                break;
            }
            tries += 1;
            if is_good(token, message, signature, key, header.alg, now, remembered) {
                return Ok(of_file);
            }
            error = TokenError::BadSignature;
        }
        // Unless what was fetched has the very key that it names, there may be a newer one.
        if let Some(fetched) = &self.fetched
            && !fetched_keys.as_ref().is_some_and(|keys| keys.has_named(name))
        {
            fetched.want_newer();
            if fetched_keys.is_none() {
                return Err(TokenError::NoKeysYet);
            }
        }
        Err(error)
    }

    /// What claims say that were signed.
    fn login(
        &self,
        claims: &Map<String, Value>,
        key: Option<u64>,
        names: Names<'_>,
        now: Now,
    ) -> Result<TokenLogin, TokenError> {
        let JwtConfig { issuer, audience, required_claims, require_expiry, leeway_seconds, .. } = &self.config;
        let leeway_ms = u64::from(*leeway_seconds) * 1000;
        let expires_ms = match claims.get("exp") {
            None if *require_expiry => return Err(TokenError::NoExpiry),
            None => None,
            Some(end) => {
                let end = milliseconds(end)?.saturating_add(leeway_ms);
                if end <= now.wall_ms {
                    return Err(TokenError::Expired);
                }
                Some(now.at_wall_ms(end))
            }
        };
        if let Some(begin) = claims.get("nbf")
            && milliseconds(begin)? > now.wall_ms.saturating_add(leeway_ms)
        {
            return Err(TokenError::NotYet);
        }
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if issuer.as_deref().is_some_and(|issuer| text("iss") != Some(issuer)) {
            return Err(TokenError::WrongIssuer);
        }
        if audience.as_deref().is_some_and(|audience| !is_for(claims.get("aud"), audience)) {
            return Err(TokenError::WrongAudience);
        }
        if !required_claims.iter().all(|required| has(claims, required, names)) {
            return Err(TokenError::MissingClaim);
        }
        let is_name = |name: &&str| !name.is_empty() && !name.chars().any(char::is_control);
        let identity = text(&self.config.identity_claim).filter(is_name).ok_or(TokenError::NoIdentity)?;
        let rules = match claims.get(&self.config.acl_claim) {
            None | Some(Value::Null) => None,
            Some(rules) => Some(GrantedRules::parse(rules).map_err(|error| {
                tracing::debug!(identity, error, "the rights in a token are not understood");
                TokenError::BadRules
            })?),
        };
        let mark = self.mark(key);
        Ok(TokenLogin { identity: Arc::from(identity), mark, granted: Granted::new(rules, expires_ms) })
    }
}

/// Whether it is the signature of that key, now or a while ago.
fn is_good(
    token: &str,
    message: &str,
    signature: &str,
    key: &Key,
    algorithm: jsonwebtoken::Algorithm,
    now: Now,
    remembered: Option<&Remembered>,
) -> bool {
    let remembered = remembered.filter(|_| !key.is_quick());
    // The place of the generation: another key under the same name is another one.
    let is_known =
        |remembered: &Remembered| remembered.knows(key.fingerprint, REMEMBERED_AS, token.as_bytes(), now.process_ms);
    if remembered.is_some_and(is_known) {
        return true;
    }
    let is_good = signature::is_good(signature, message.as_bytes(), &key.decoding, algorithm);
    if is_good && let Some(remembered) = remembered {
        remembered.remember(key.fingerprint, REMEMBERED_AS, token.as_bytes(), now.process_ms);
    }
    is_good
}

/// No user has such a name: a control character is in it.
const REMEMBERED_AS: &str = "\0token";

impl FileKeys {
    fn read(config: &JwtConfig) -> Result<Self, FileError> {
        // First: what changes meanwhile is then seen to be another.
        let digest = digest_of_files(config);
        Ok(Self { keys: read_files(config)?, digest })
    }
}

fn digest_of_files(config: &JwtConfig) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for file in [&config.secret_file, &config.public_key_file, &config.jwks_file].into_iter().flatten() {
        let contents = std::fs::read(file).unwrap_or_default();
        context.update(digest::digest(&digest::SHA256, &contents).as_ref());
    }
    let mut all = [0; 32];
    all.copy_from_slice(context.finish().as_ref());
    all
}

fn read_files(config: &JwtConfig) -> Result<Keys, FileError> {
    let mut keys = Keys::default();
    let mut read = |file: &Option<std::path::PathBuf>, parse: fn(&[u8]) -> Result<Keys, String>| {
        let Some(path) = file.as_deref() else { return Ok(()) };
        let added = Keys::read(path, parse).and_then(|read| keys.add(read));
        added.map_err(|error| FileError::whole(path, &error))
    };
    read(&config.secret_file, Keys::of_secret)?;
    read(&config.public_key_file, Keys::of_pem)?;
    read(&config.jwks_file, |contents| Keys::of_jwks(contents, true))?;
    Ok(keys)
}

/// A NumericDate.
fn milliseconds(date: &Value) -> Result<u64, TokenError> {
    let seconds = date.as_f64().filter(|seconds| (0.0..=LATEST_SECONDS).contains(seconds));
    seconds.map(|seconds| (seconds * 1000.0) as u64).ok_or(TokenError::Malformed)
}

fn is_for(audience: Option<&Value>, own: &str) -> bool {
    match audience {
        Some(Value::String(one)) => one == own,
        Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(own)),
        _ => false,
    }
}

fn has(claims: &Map<String, Value>, required: &RequiredClaim, names: Names<'_>) -> bool {
    let expected = match &*required.value {
        "%c" => names.client_id,
        "%u" => names.user_name,
        value => value,
    };
    let value = match claims.get(&required.claim) {
        Some(Value::String(text)) => Cow::Borrowed(&**text),
        Some(number @ (Value::Number(_) | Value::Bool(_))) => Cow::Owned(number.to_string()),
        _ => return false,
    };
    !expected.is_empty() && value == expected
}

impl Authority {
    /// `None`: there is nothing that looks like a token, or nothing to judge it by.
    pub(super) fn by_token(&self, policy: &Policy, connect: &Connect, now: Now) -> Option<Progress> {
        let tokens = policy.tokens.as_ref()?;
        let token = tokens.offered(connect).filter(|bytes| looks_like_token(bytes))?;
        let user_name = connect.user_name.as_deref().unwrap_or_default();
        let names = Names { client_id: &connect.client_id, user_name };
        Some(match tokens.judge(token, names, now, self.remembered()) {
            Ok(TokenLogin { identity, mark, granted }) => {
                let identified = Identified { identity, credential: Credential::Token(mark), granted };
                Progress::Identified(identified, AuthenticationOutcome::Token)
            }
            Err(error) => refused(error.reason(), error.text(), AuthenticationOutcome::BadToken),
        })
    }
}

/// Whether it may be a token, or what is left of one: not to be shown to anybody.
#[must_use]
pub fn begins_like_token(bytes: &[u8]) -> bool {
    // As an object of JSON does.
    let begin = bytes.first_chunk::<4>().and_then(|four| URL_SAFE_NO_PAD.decode(four).ok());
    begin.is_some_and(|begin| begin.first() == Some(&b'{'))
}

/// Whether it has the form of a token: three parts.
pub(super) fn looks_like_token(bytes: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    begins_like_token(bytes) && bytes.iter().filter(|&&byte| byte == b'.').count() == 2 && bytes.iter().all(is_part)
}

#[cfg(test)]
pub(super) mod tests;
