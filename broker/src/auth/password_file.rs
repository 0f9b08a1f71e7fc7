//! Users and their passwords, in a file.
//!
//! One `USER:HASH` a line, as mosquitto has it, with blanks around both or without; blank lines and lines that begin with `#` are
//! passed over. HASH is argon2id in
//! PHC form, which is what we write, or one of the two forms of mosquitto_passwd: `$7$ITERATIONS$SALT$HASH`, PBKDF2 with
//! HMAC-SHA-512, and `$6$SALT$HASH`, SHA-512 of password and salt. So a fleet moves over without new passwords. A user that
//! is to show its password by SCRAM-SHA-256 has `$scram-sha-256$ITERATIONS$SALT$STORED_KEY$SERVER_KEY`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use ring::rand::SecureRandom;
use ring::{digest, hmac, pbkdf2, rand};
use subtle::ConstantTimeEq;

use super::scram::{self, ScramKeys};
use crate::http_client::HttpClientError;

/// Bytes of a SHA-512.
const SHA512_BYTES: usize = 64;

/// Salt of what we write, as RFC 9106 recommends.
const SALT_BYTES: usize = 16;

/// Iterations beyond which a file is wrong rather than careful: one password would take many seconds.
pub(super) const ITERATIONS_MAX: u32 = 10_000_000;

/// Memory of argon2, in KiB, beyond which it is: each thread that verifies takes as much.
const ARGON2_KIB_MAX: u32 = 1 << 20;

/// Passes of argon2 over it beyond which it is.
const ARGON2_PASSES_MAX: u32 = 64;

/// Programs write hashes by argon2 of 16, 32 or 64 bytes, or of what somebody chose. Nothing else says of a hash that its end is missing: cut
/// off, it is one of another length, which no password has.
const ARGON2_HASH_BYTES_MIN: usize = 16;

/// What lengths that somebody chose are multiples of.
const ARGON2_HASH_BYTES_STEP: usize = 8;

/// Entries that make the key for strangers. All are needed to know it; those that come behind change nothing.
const KEY_ENTRIES: usize = 3;

/// What is wrong with a file of users or rights, and where.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// Which file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// A line cannot be used.
    #[error("{path}, line {line}: {message}")]
    Line {
        /// Which file.
        path: String,
        /// From 1.
        line: usize,
        /// What to do about it. Never a password, nor a hash of one.
        message: String,
    },
    /// As a whole it cannot be used.
    #[error("{path}: {message}")]
    Whole {
        /// Which file.
        path: String,
        /// What to do about it.
        message: String,
    },
    /// The authorities that an authentication server is trusted by, or the header for it, cannot be used.
    #[error("`auth.http`: {0}")]
    Server(HttpClientError),
}

impl FileError {
    /// Reads a whole file of text.
    pub(crate) fn read(path: &Path) -> Result<String, Self> {
        std::fs::read_to_string(path).map_err(|error| Self::Unreadable { path: path.display().to_string(), error })
    }

    pub(crate) fn line(path: &Path, line: usize, message: impl Into<String>) -> Self {
        Self::Line { path: path.display().to_string(), line, message: message.into() }
    }

    pub(crate) fn whole(path: &Path, message: impl Into<String>) -> Self {
        Self::Whole { path: path.display().to_string(), message: message.into() }
    }
}

/// How a password is kept.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum StoredPassword {
    /// In PHC form, parsed once to know that it can be.
    Argon2(Box<str>),
    /// mosquitto's `$7$`.
    Pbkdf2Sha512 {
        /// Rounds.
        iterations: NonZeroU32,
        /// Any length.
        salt: Box<[u8]>,
        /// What comes out.
        hash: [u8; SHA512_BYTES],
    },
    /// Keys for SCRAM-SHA-256, which serve for a password as well.
    Scram(ScramKeys),
    /// mosquitto's `$6$`.
    Sha512 {
        /// Any length.
        salt: Box<[u8]>,
        /// What comes out.
        hash: [u8; SHA512_BYTES],
    },
}

/// Only of which kind it is: hashes are secrets too.
impl fmt::Debug for StoredPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm())
    }
}

impl StoredPassword {
    /// Of which kind it is.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Argon2(_) => "argon2",
            Self::Pbkdf2Sha512 { .. } => "pbkdf2-sha512",
            Self::Scram(_) => "scram-sha-256",
            Self::Sha512 { .. } => "sha512",
        }
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it, without showing it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("$argon2") {
            let hash = PasswordHash::new(text).map_err(|error| format!("no argon2 hash in PHC form ({error})"))?;
            argon2::Algorithm::try_from(hash.algorithm).map_err(|_| String::from("an unknown kind of argon2"))?;
            let cost = argon2::Params::try_from(&hash).map_err(|error| format!("parameters of argon2: {error}"))?;
            if cost.m_cost() > ARGON2_KIB_MAX || cost.t_cost() > ARGON2_PASSES_MAX {
                return Err(format!(
                    "argon2 with m={} and t={} would take too long; at most m={ARGON2_KIB_MAX} (KiB) and t={ARGON2_PASSES_MAX}",
                    cost.m_cost(),
                    cost.t_cost()
                ));
            }
            let (Some(stored), Some(_)) = (hash.hash, hash.salt) else {
                return Err(String::from("an argon2 hash without salt or without hash"));
            };
            if stored.len() < ARGON2_HASH_BYTES_MIN || !stored.len().is_multiple_of(ARGON2_HASH_BYTES_STEP) {
                return Err(format!(
                    "an argon2 hash of {} bytes, which are 16, 24, 32 and so on where it is whole: its end is missing, give the user a \
                     password again (`kentongan passwd FILE USER`)",
                    stored.len()
                ));
            }
            return Ok(Self::Argon2(Box::from(text)));
        }
        let bytes =
            |text: &str| BASE64.decode(text).map_err(|_| String::from("not base64 where salt or hash should be"));
        let hash = |text: &str| {
            <[u8; SHA512_BYTES]>::try_from(bytes(text)?.as_slice()).map_err(|_| String::from("not a hash of 64 bytes"))
        };
        match text.split('$').collect::<Vec<_>>()[..] {
            ["", "7", iterations, salt, stored] => {
                let iterations = iterations.parse::<NonZeroU32>().ok().filter(|number| number.get() <= ITERATIONS_MAX);
                let iterations = iterations.ok_or("the number of iterations cannot be used")?;
                Ok(Self::Pbkdf2Sha512 { iterations, salt: bytes(salt)?.into(), hash: hash(stored)? })
            }
            ["", "scram-sha-256", iterations, salt, stored_key, server_key] => {
                ScramKeys::parse(iterations, salt, stored_key, server_key).map(Self::Scram)
            }
            ["", "6", salt, stored] => Ok(Self::Sha512 { salt: bytes(salt)?.into(), hash: hash(stored)? }),
            _ => Err(String::from(
                "no hash of a kind that is known ($argon2id$, $scram-sha-256$, $7$, $6$); passwords in plain text are hashed by \
                 `kentongan passwd -U FILE`",
            )),
        }
    }

    /// Hashes a password as we do it: argon2id, with the parameters that RFC 9106 and OWASP recommend for a server.
    ///
    /// # Errors
    /// The system has no randomness, or the password is longer than argon2 takes.
    pub fn argon2id(password: &[u8]) -> anyhow::Result<String> {
        let mut salt = [0; SALT_BYTES];
        rand::SystemRandom::new().fill(&mut salt).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        let salt = SaltString::encode_b64(&salt).map_err(|error| anyhow::anyhow!("salt: {error}"))?;
        let hash = Argon2::default().hash_password(password, &salt);
        Ok(hash.map_err(|error| anyhow::anyhow!("argon2: {error}"))?.to_string())
    }

    /// The same as keys for SCRAM-SHA-256.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn scram_sha256(password: &[u8]) -> anyhow::Result<String> {
        Ok(ScramKeys::new(password)?.to_line())
    }

    /// The same in one of mosquitto's forms, for a file that mosquitto is to read as well.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn for_mosquitto(password: &[u8], form: MosquittoForm) -> anyhow::Result<String> {
        let mut salt = [0; 12];
        rand::SystemRandom::new().fill(&mut salt).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        Ok(match form {
            MosquittoForm::Pbkdf2Sha512 { iterations } => {
                let hash = pbkdf2_sha512(iterations, &salt, password);
                format!("$7${iterations}${}${}", BASE64.encode(salt), BASE64.encode(hash))
            }
            MosquittoForm::Sha512 => {
                format!("$6${}${}", BASE64.encode(salt), BASE64.encode(salted_sha512(&salt, password)))
            }
        })
    }

    /// Whether it is the password, in a time that does not depend on how near it comes.
    #[must_use]
    pub fn matches(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2(text) => {
                PasswordHash::new(text).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
            }
            Self::Pbkdf2Sha512 { iterations, salt, hash } => {
                pbkdf2_sha512(*iterations, salt, password).ct_eq(hash).into()
            }
            Self::Scram(keys) => keys.matches(password),
            Self::Sha512 { salt, hash } => salted_sha512(salt, password).ct_eq(hash).into(),
        }
    }

    /// What it takes to verify: entries of the same cost take the same time.
    fn cost(&self) -> Cost {
        match self {
            Self::Argon2(text) => {
                let cost = PasswordHash::new(text).ok().and_then(|hash| argon2::Params::try_from(&hash).ok());
                let [memory, passes, lanes] = cost.map_or([0; 3], |cost| [cost.m_cost(), cost.t_cost(), cost.p_cost()]);
                Cost::Argon2 { memory, passes, lanes }
            }
            Self::Pbkdf2Sha512 { iterations, .. } => Cost::Pbkdf2Sha512(*iterations),
            Self::Scram(keys) => Cost::Scram(keys.iterations),
            Self::Sha512 { .. } => Cost::Sha512,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    Argon2 { memory: u32, passes: u32, lanes: u32 },
    Pbkdf2Sha512(NonZeroU32),
    Scram(NonZeroU32),
    Sha512,
}

/// The forms that mosquitto_passwd writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MosquittoForm {
    /// `$7$`, since mosquitto 2.0.
    Pbkdf2Sha512 {
        /// Rounds; mosquitto_passwd takes 101.
        iterations: NonZeroU32,
    },
    /// `$6$`, what older ones know.
    Sha512,
}

fn pbkdf2_sha512(iterations: NonZeroU32, salt: &[u8], password: &[u8]) -> [u8; SHA512_BYTES] {
    let mut hash = [0; SHA512_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, iterations, salt, password, &mut hash);
    hash
}

fn salted_sha512(salt: &[u8], password: &[u8]) -> [u8; SHA512_BYTES] {
    let mut context = digest::Context::new(&digest::SHA512);
    context.update(password);
    context.update(salt);
    let mut hash = [0; SHA512_BYTES];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The users of a file.
pub struct PasswordFile {
    users: HashMap<Box<str>, StoredPassword, RandomState>,
    strangers: Strangers,
}

impl fmt::Debug for PasswordFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordFile").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

/// What somebody is asked who is no user, so that nothing tells that from one who is: neither the time that a wrong password
/// takes, nor what SCRAM begins with. Each name is given one of the kinds that there are among the users, the same each time
/// and on each node that has the file, after a restart too.
struct Strangers {
    /// Made of the file, which nobody knows who may not know all of it.
    key: hmac::Key,
    /// One entry of each cost that there is.
    dummies: Vec<StoredPassword>,
    /// Each number of iterations, with the length of its salts, that SCRAM has for users.
    challenges: Vec<(NonZeroU32, usize)>,
}

impl Strangers {
    fn of(entries: &[(&str, StoredPassword)], key: hmac::Key) -> Self {
        let mut dummies = BTreeMap::new();
        let mut challenges = BTreeSet::new();
        for (_, stored) in entries {
            dummies.entry(stored.cost()).or_insert_with(|| stored.clone());
            if let StoredPassword::Scram(keys) = stored {
                challenges.insert((keys.iterations, keys.salt.len()));
            }
        }
        if challenges.is_empty() {
            challenges.insert((scram::ITERATIONS, SALT_BYTES));
        }
        Self { key, dummies: dummies.into_values().collect(), challenges: challenges.into_iter().collect() }
    }

    fn bytes(&self, purpose: &str, number: u8, user: &str) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(purpose.as_bytes());
        context.update(&[number]);
        context.update(user.as_bytes());
        context.sign()
    }

    fn pick<'a, T>(&self, of: &'a [T], purpose: &str, user: &str) -> Option<&'a T> {
        let drawn = self.bytes(purpose, 0, user);
        let drawn = drawn.as_ref().iter().take(4).fold(0usize, |number, &byte| number << 8 | usize::from(byte));
        of.get(drawn % of.len().max(1))
    }

    fn dummy(&self, user: &str) -> Option<&StoredPassword> {
        self.pick(&self.dummies, "cost", user)
    }

    fn challenge(&self, user: &str) -> (Vec<u8>, NonZeroU32) {
        let picked = self.pick(&self.challenges, "iterations", user);
        let (iterations, salt_bytes) = picked.copied().unwrap_or((scram::ITERATIONS, SALT_BYTES));
        let mut salt = Vec::new();
        for number in 0..=u8::MAX {
            if salt.len() >= salt_bytes {
                break;
            }
            salt.extend_from_slice(self.bytes("salt", number, user).as_ref());
        }
        salt.truncate(salt_bytes);
        (salt, iterations)
    }
}

impl PasswordFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It is unreadable or empty, or a line is wrong. Then nobody should be let in by what is left of it.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        Self::parse(path, &FileError::read(path)?)
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let mut entries: Vec<(&str, StoredPassword)> = Vec::new();
        let mut users = HashMap::default();
        let mut secret = digest::Context::new(&digest::SHA256);
        for (number, line) in text.lines().enumerate() {
            let refused = |message: &str| FileError::line(path, number + 1, message);
            let line = line.trim_end_matches('\r');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, stored) = line.split_once(':').ok_or_else(|| refused("not USER:HASH"))?;
            let user = trim_blanks(user);
            check_user_name(user).map_err(refused)?;
            let stored = StoredPassword::parse(trim_blanks(stored)).map_err(|message| refused(&message))?;
            if entries.len() < KEY_ENTRIES {
                secret.update(line.as_bytes());
                secret.update(b"\n");
            }
            if users.insert(Box::from(user), stored.clone()).is_some() {
                return Err(refused("that user stands in an earlier line already"));
            }
            entries.push((user, stored));
        }
        if entries.is_empty() {
            return Err(FileError::whole(path, "there is no user in it"));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.finish().as_ref());
        Ok(Self { users, strangers: Strangers::of(&entries, key) })
    }

    /// Whether it is that user's password. `None`: there is no such user. Takes its time: argon2id is meant to.
    #[must_use]
    pub fn verify(&self, user: &str, password: &[u8]) -> Option<bool> {
        match self.users.get(user) {
            Some(stored) => Some(stored.matches(password)),
            None => {
                // Kept from being left out: the answer is not needed, the time is.
                std::hint::black_box(self.strangers.dummy(user).map(|dummy| dummy.matches(password)));
                None
            }
        }
    }

    /// Salt and iterations by which SCRAM asks somebody who has no keys for it.
    pub(super) fn challenge_of_stranger(&self, user: &str) -> (Vec<u8>, NonZeroU32) {
        self.strangers.challenge(user)
    }

    /// How a user's password is kept.
    #[must_use]
    pub fn stored(&self, user: &str) -> Option<&StoredPassword> {
        self.users.get(user)
    }

    /// All users, in no order.
    pub fn users(&self) -> impl Iterator<Item = (&str, &StoredPassword)> {
        self.users.iter().map(|(user, stored)| (&**user, stored))
    }

    /// Number of users.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is none; no file that was read is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// What stands in a field of a line: as mosquitto, we pass over the blanks around it (what C's `isspace` takes for one).
#[must_use]
pub fn trim_blanks(field: &str) -> &str {
    field.trim_matches(|letter: char| letter.is_ascii_whitespace() || letter == '\x0b')
}

/// Whether a user may be called that in a file.
///
/// # Errors
/// Why not.
pub fn check_user_name(user: &str) -> Result<(), &'static str> {
    match user {
        "" => Err("the user name is empty"),
        _ if user.starts_with('#') => Err("a line that begins with `#` is a comment, so a user name must not"),
        _ if trim_blanks(user).len() < user.len() => Err("a user name must not begin or end with a blank"),
        _ if user.contains(':') => Err("a user name must not contain `:`"),
        _ if user.len() > usize::from(u16::MAX) => Err("the user name is longer than MQTT allows"),
        _ if user.chars().any(char::is_control) => Err("the user name contains a control character"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Written by mosquitto_passwd 2.0.11; the password is `tabuh`.
    const PBKDF2: &str = "$7$101$VcwtcHnFvjQkOPm+$q8G125YW9JkaFcGsm7qCJrM9aXItoLxwqcrVRJLupbIpq5F73j37AH2x8buEIQUXWudt8UalrSvsXASnDQZYfA==";
    const SHA512: &str =
        "$6$4OTXbjlzcrWsFhUg$Ugf1txuaFBnJWKhdr9TfkaTN4cZamWAqt97o6GG+GyyqJ8mnBHuJ4L9cDbtOZbnVwhQKIKlss4yd5ZICajOPgw==";

    /// Salt and hash.
    const PHC: &str = "AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    /// Salt and keys.
    const SCRAM: &str =
        "$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn parse(text: &str) -> Result<PasswordFile, String> {
        PasswordFile::parse(Path::new("passwords"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn entries_of_mosquitto_and_ours_are_verified() {
        let argon2 = StoredPassword::argon2id(b"tabuh").expect("hashed");
        let ours = StoredPassword::for_mosquitto(
            b"tabuh",
            MosquittoForm::Pbkdf2Sha512 { iterations: NonZeroU32::new(101).expect("not 0") },
        );
        let scram = StoredPassword::scram_sha256(b"tabuh").expect("hashed");
        let ours = ours.expect("hashed");
        let file = format!("# users\n\na:{argon2}\nb:{PBKDF2}\r\nc:{SHA512}\nd:{ours}\nf:{scram}\n");
        let file = parse(&file).expect("a file");
        assert_eq!(file.len(), 5);
        for user in ["a", "b", "c", "d", "f"] {
            assert_eq!(file.verify(user, b"tabuh"), Some(true), "{user}");
            assert_eq!(file.verify(user, b"tabuh7"), Some(false), "{user}");
            assert_eq!(file.verify(user, b""), Some(false), "{user}");
        }
        assert_eq!(file.verify("e", b"tabuh"), None);
    }

    /// As mosquitto 2.0 reads them.
    #[test]
    fn blanks_around_a_name_and_its_hash_are_passed_over() {
        let file = parse(&format!(" ana:{PBKDF2}\nbudi :{SHA512}\n\tcitra dewi: {PBKDF2} \t\r\n")).expect("a file");
        for user in ["ana", "budi", "citra dewi"] {
            assert_eq!(file.verify(user, b"tabuh"), Some(true), "{user}");
        }
        assert_eq!(file.verify(" ana", b"tabuh"), None);
        assert!(parse(&format!("ana:{PBKDF2}\n ana:{PBKDF2}\n")).is_err(), "the same user twice");
        assert!(parse(&format!(" :{PBKDF2}\n")).is_err(), "no user");
        assert!(check_user_name(" ana").is_err() && check_user_name("ana\u{a0}").is_ok());
    }

    /// A wrong password of a user takes as long as one of some strangers, and which those are nobody can tell.
    ///
    /// Abuse: [passwords]
    #[test]
    fn strangers_take_the_time_of_the_users_that_there_are() {
        let argon2 = StoredPassword::argon2id(b"tabuh").expect("hashed");
        let kinds = |text: &str| {
            let file = parse(text).expect("a file");
            let kind = |number: usize| format!("{:?}", file.strangers.dummy(&number.to_string()).expect("a kind"));
            (0..100).map(kind).collect::<Vec<_>>()
        };
        let both = format!("a:{argon2}\nb:{SHA512}\nc:{PBKDF2}\n");
        let drawn = kinds(&both);
        let differ: BTreeSet<_> = drawn.iter().cloned().collect();
        assert_eq!(differ.into_iter().collect::<Vec<_>>(), ["argon2", "pbkdf2-sha512", "sha512"]);
        assert_eq!(kinds(&both), drawn, "at each start, and on each node");
        assert_eq!(kinds(&format!("{both}d:{SHA512}\n")), drawn, "somebody came");
        assert!(kinds(&format!("b:{SHA512}\n")).iter().all(|kind| kind == "sha512"));
    }

    /// Abuse: [passwords]
    #[test]
    fn strangers_are_asked_as_users_are() {
        let keys = |iterations: u32, salt: &str| {
            format!("$scram-sha-256${iterations}${salt}${}${}", BASE64.encode([1; 32]), BASE64.encode([2; 32]))
        };
        let (short, long) = (BASE64.encode([3; 8]), BASE64.encode([4; 40]));
        let text = format!("a:{}\nb:{}\nc:{SHA512}\n", keys(10_000, &short), keys(20_000, &long));
        let ask = |text: &str, user: &str| parse(text).expect("a file").challenge_of_stranger(user);
        let names: Vec<_> = (0..100).map(|number| number.to_string()).collect();
        let asked: BTreeSet<_> = names
            .iter()
            .map(|name| {
                let (salt, iterations) = ask(&text, name);
                assert_eq!(ask(&text, name), (salt.clone(), iterations), "the same each time");
                (iterations.get(), salt.len())
            })
            .collect();
        assert_eq!(asked, BTreeSet::from([(10_000, 8), (20_000, 40)]));
        assert_ne!(ask(&text, "x").0, ask(&text, "y").0);
        assert_ne!(ask(&text, "x"), ask(&text.replace(&keys(10_000, &short), SHA512), "x"), "the file is the secret");
        let (salt, iterations) = ask(&format!("c:{SHA512}\n"), "x");
        assert_eq!((salt.len(), iterations), (SALT_BYTES, scram::ITERATIONS));
    }

    #[test]
    fn a_file_that_cannot_be_used_whole_is_not_used_at_all() {
        let salt = &SHA512[3..];
        for (text, expected) in [
            (String::new(), "passwords: there is no user in it"),
            (String::from("# nobody\n"), "passwords: there is no user in it"),
            (format!("a:{SHA512}\nnonsense\n"), "passwords, line 2: not USER:HASH"),
            (format!(":{SHA512}\n"), "passwords, line 1: the user name is empty"),
            (String::from("a:secret\n"), "passwords, line 1: no hash of a kind that is known"),
            (format!("a:$6${}\n", salt.replace('=', "*")), "passwords, line 1: not base64"),
            (String::from("a:$6$AAAA$AAAA\n"), "passwords, line 1: not a hash of 64 bytes"),
            (format!("a:$7$0${salt}\n"), "passwords, line 1: the number of iterations"),
            (format!("a:$7$100000001${salt}\n"), "passwords, line 1: the number of iterations"),
            (String::from("a:$argon2id$v=19$m=8,t=1,p=1\n"), "passwords, line 1: an argon2 hash without"),
            (String::from("a:$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ\n"), "passwords, line 1: an argon2 hash without"),
            (String::from("a:$argon2id$v=19$m=1\n"), "passwords, line 1:"),
            (format!("a:$argon2id$v=19$m=1048577,t=1,p=1${PHC}\n"), "passwords, line 1: argon2 with m=1048577"),
            (format!("a:$argon2id$v=19$m=64,t=65,p=1${PHC}\n"), "passwords, line 1: argon2 with m=64 and t=65"),
            (
                format!("a:$argon2id$v=19$m=8,t=1,p=1${}\n", &PHC[..PHC.len() - 15]),
                "passwords, line 1: an argon2 hash of 21 bytes",
            ),
            (
                format!("a:$argon2id$v=19$m=8,t=1,p=1${}\n", &PHC[..PHC.len() - 1]),
                "passwords, line 1: an argon2 hash of 31 bytes",
            ),
            (
                format!("a:$argon2id$v=19$m=8,t=1,p=1${}\n", &PHC[..PHC.len() - 2]),
                "passwords, line 1: no argon2 hash in PHC form",
            ),
            (format!("a:$7$10000001${salt}\n"), "passwords, line 1: the number of iterations"),
            (format!("a:$scram-sha-256$10000001{SCRAM}\n"), "passwords, line 1: the number of iterations"),
            (format!("a:{SHA512}\na:{SHA512}\n"), "passwords, line 2: that user stands in an earlier line"),
        ] {
            let error = parse(&text).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let error = PasswordFile::read(Path::new("/nowhere/passwords")).expect_err("no file");
        assert!(error.to_string().starts_with("cannot read /nowhere/passwords:"), "{error}");
    }

    /// Nobody learns by the clock which users there are.
    #[test]
    fn a_stranger_waits_though_there_is_nothing_to_compare() {
        let file = parse(&format!("a:{}\n", StoredPassword::argon2id(b"tabuh").expect("hashed"))).expect("a file");
        // The quickest of some, because others are at work here too. What argon2 takes is thousands of times what it takes to look
        // for a name.
        let takes = |user: &str| {
            let once = |_| {
                let began = std::time::Instant::now();
                let _ = file.verify(user, b"wrong");
                began.elapsed()
            };
            (0..3).map(once).min().expect("three")
        };
        assert!(takes("nobody") * 20 > takes("a"));
    }

    #[test]
    fn a_stored_password_shows_itself_nowhere() {
        let file = parse(&format!("a:{SHA512}\n")).expect("a file");
        assert!(!format!("{file:?}").contains(&SHA512[3..20]), "{file:?}");
    }
}
