//! Users and their passwords, in a file.
//!
//! One `USER:HASH` a line, as mosquitto has it; blank lines and lines that begin with `#` are passed over. HASH is argon2id in
//! PHC form, which is what we write, or one of the two forms of mosquitto_passwd: `$7$ITERATIONS$SALT$HASH`, PBKDF2 with
//! HMAC-SHA-512, and `$6$SALT$HASH`, SHA-512 of password and salt. So a fleet moves over without new passwords. A user that
//! is to show its password by SCRAM-SHA-256 has `$scram-sha-256$ITERATIONS$SALT$STORED_KEY$SERVER_KEY`.

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
use ring::{digest, pbkdf2, rand};
use subtle::ConstantTimeEq;

use super::scram::ScramKeys;

/// Bytes of a SHA-512.
const SHA512_BYTES: usize = 64;

/// Salt of what we write, as RFC 9106 recommends.
const SALT_BYTES: usize = 16;

/// Iterations of a `$7$` entry beyond which a file is wrong rather than careful: one password would take minutes.
const ITERATIONS_MAX: u32 = 100_000_000;

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
}

impl FileError {
    /// Reads a whole file of text.
    pub(super) fn read(path: &Path) -> Result<String, Self> {
        std::fs::read_to_string(path).map_err(|error| Self::Unreadable { path: path.display().to_string(), error })
    }

    pub(super) fn line(path: &Path, line: usize, message: impl Into<String>) -> Self {
        Self::Line { path: path.display().to_string(), line, message: message.into() }
    }

    pub(super) fn whole(path: &Path, message: impl Into<String>) -> Self {
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
        f.write_str(match self {
            Self::Argon2(_) => "argon2",
            Self::Pbkdf2Sha512 { .. } => "pbkdf2-sha512",
            Self::Scram(_) => "scram-sha-256",
            Self::Sha512 { .. } => "sha512",
        })
    }
}

impl StoredPassword {
    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it, without showing it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("$argon2") {
            let hash = PasswordHash::new(text).map_err(|error| format!("no argon2 hash in PHC form ({error})"))?;
            argon2::Algorithm::try_from(hash.algorithm).map_err(|_| String::from("an unknown kind of argon2"))?;
            argon2::Params::try_from(&hash).map_err(|error| format!("parameters of argon2: {error}"))?;
            if hash.hash.is_none() || hash.salt.is_none() {
                return Err(String::from("an argon2 hash without salt or without hash"));
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

    /// Which of two kinds takes longer, as a rule.
    fn strength(&self) -> u8 {
        match self {
            Self::Argon2(_) => 2,
            Self::Pbkdf2Sha512 { .. } | Self::Scram(_) => 1,
            Self::Sha512 { .. } => 0,
        }
    }
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
#[derive(Debug)]
pub struct PasswordFile {
    users: HashMap<Box<str>, StoredPassword, RandomState>,
    /// What the password of somebody who is no user is held against, so that the answer takes as long.
    dummy: StoredPassword,
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
        let mut users = HashMap::default();
        let mut dummy: Option<StoredPassword> = None;
        for (number, line) in text.lines().enumerate() {
            let refused = |message: &str| FileError::line(path, number + 1, message);
            let line = line.trim_end_matches('\r');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, stored) = line.split_once(':').ok_or_else(|| refused("not USER:HASH"))?;
            check_user_name(user).map_err(refused)?;
            let stored = StoredPassword::parse(stored).map_err(|message| refused(&message))?;
            if dummy.as_ref().is_none_or(|dummy| dummy.strength() < stored.strength()) {
                dummy = Some(stored.clone());
            }
            if users.insert(Box::from(user), stored).is_some() {
                return Err(refused("that user stands in an earlier line already"));
            }
        }
        let dummy = dummy.ok_or_else(|| FileError::whole(path, "there is no user in it"))?;
        Ok(Self { users, dummy })
    }

    /// Whether it is that user's password. `None`: there is no such user. Takes its time: argon2id is meant to.
    #[must_use]
    pub fn verify(&self, user: &str, password: &[u8]) -> Option<bool> {
        match self.users.get(user) {
            Some(stored) => Some(stored.matches(password)),
            None => {
                // Kept from being left out: the answer is not needed, the time is.
                std::hint::black_box(self.dummy.matches(password));
                None
            }
        }
    }

    /// How a user's password is kept.
    #[must_use]
    pub fn stored(&self, user: &str) -> Option<&StoredPassword> {
        self.users.get(user)
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

/// Whether a user may be called that in a file.
///
/// # Errors
/// Why not.
pub fn check_user_name(user: &str) -> Result<(), &'static str> {
    match user {
        "" => Err("the user name is empty"),
        _ if user.starts_with('#') => Err("a line that begins with `#` is a comment, so a user name must not"),
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
        let file = format!("# users\n\na:{argon2}\nb:{PBKDF2}\r\nc:{SHA512}\nd:{}\n", ours.expect("hashed"));
        let file = parse(&file).expect("a file");
        assert_eq!(file.len(), 4);
        for user in ["a", "b", "c", "d"] {
            assert_eq!(file.verify(user, b"tabuh"), Some(true), "{user}");
            assert_eq!(file.verify(user, b"tabuh7"), Some(false), "{user}");
            assert_eq!(file.verify(user, b""), Some(false), "{user}");
        }
        assert_eq!(file.verify("e", b"tabuh"), None);
        assert_eq!(file.dummy.strength(), 2, "strangers wait as long as the slowest");
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
            (String::from("a:$argon2id$v=19$m=1\n"), "passwords, line 1:"),
            (format!("a:{SHA512}\na:{SHA512}\n"), "passwords, line 2: that user stands in an earlier line"),
        ] {
            let error = parse(&text).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let error = PasswordFile::read(Path::new("/nowhere/passwords")).expect_err("no file");
        assert!(error.to_string().starts_with("cannot read /nowhere/passwords:"), "{error}");
    }

    #[test]
    fn a_stored_password_shows_itself_nowhere() {
        let file = parse(&format!("a:{SHA512}\n")).expect("a file");
        assert!(!format!("{file:?}").contains(&SHA512[3..20]), "{file:?}");
    }
}
