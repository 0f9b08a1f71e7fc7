//! Who may ask: names, roles and hashes of tokens, from a file.
//!
//! A line is `NAME:ROLE:sha256$HEX`. A token is drawn by chance, 32 bytes of it ([`Token::draw`]), so nobody finds it by
//! trying hashes, and one round of SHA-256 is enough; a password would want Argon2.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::auth::FileError;

/// What stands before the hash.
const METHOD: &str = "sha256$";

/// Bytes of chance in a token.
const TOKEN_BYTES: usize = 32;

/// What tokens begin with, so that those who look for secrets in the wrong places find them.
const TOKEN_PREFIX: &str = "kentongan_";

/// Tokens longer than this are not looked at.
const TOKEN_BYTES_MAX: usize = 256;

/// Tokens in one file: each is compared with.
const TOKENS_MAX: usize = 1000;

/// What somebody may do. Each may what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See everything.
    Viewer,
    /// Publish, kick, ban, delete retained messages.
    Operator,
    /// Change how nodes run: drain them, have settings read again, say what is logged.
    Administrator,
}

impl Role {
    const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Administrator];

    /// As files have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A token that was drawn. It shows itself to nobody but by [`Token::expose`].
pub struct Token(String);

impl Token {
    /// Draws one.
    #[must_use]
    pub fn draw() -> Self {
        let bytes: [u8; TOKEN_BYTES] = rand::random();
        Self(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The token itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The line of a file by which somebody with this token may come in.
    #[must_use]
    pub fn line(&self, name: &str, role: Role) -> String {
        let hash: String = hash(self.0.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name}:{role}:{METHOD}{hash}")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(crate::config::REDACTED)
    }
}

fn hash(token: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut hash = [0; SHA256_OUTPUT_LEN];
    hash.copy_from_slice(digest(&SHA256, token).as_ref());
    hash
}

/// Somebody who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// For the audit log.
    pub name: String,
    /// What he may do.
    pub role: Role,
}

/// By what a token is known again that somebody sent.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash([u8; SHA256_OUTPUT_LEN]);

impl TokenHash {
    /// Of a token; `None`: it is too long to be one.
    #[must_use]
    pub fn of(token: &[u8]) -> Option<Self> {
        (token.len() <= TOKEN_BYTES_MAX).then(|| Self(hash(token)))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(crate::config::REDACTED)
    }
}

/// A file that was read.
#[derive(Debug, Default)]
pub struct Tokens(Vec<(Bearer, [u8; SHA256_OUTPUT_LEN])>);

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// It is unreadable, empty, or a line is wrong.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        Self::parse(path, &FileError::read(path)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let mut tokens: Vec<(Bearer, _)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let refused = |message: &str| FileError::line(path, number + 1, message.to_owned());
            let entry = parse_line(line).map_err(refused)?;
            if tokens.iter().any(|(bearer, _)| bearer.name == entry.0.name) {
                return Err(refused("this name stands there twice"));
            }
            if tokens.len() == TOKENS_MAX {
                return Err(refused("there are too many tokens: 1000 at most"));
            }
            tokens.push(entry);
        }
        if tokens.is_empty() {
            let message = "there is no token in it: make one with `kentongan ctl token NAME --role ROLE`";
            return Err(FileError::whole(path, message));
        }
        Ok(Self(tokens))
    }

    /// Whose token it is. Every one is compared with, and whole, so the time it takes says nothing.
    #[must_use]
    pub fn bearer(&self, TokenHash(given): &TokenHash) -> Option<&Bearer> {
        let mut found = None;
        for (bearer, expected) in &self.0 {
            if bool::from(expected.ct_eq(given)) {
                found = Some(bearer);
            }
        }
        found
    }
}

/// What is wrong with a name, if anything.
///
/// # Errors
/// What it must be like.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    match name.len() {
        1..=64 if name.bytes().all(is_good) => Ok(()),
        _ => Err("a name is 1 to 64 letters, digits and -_.@"),
    }
}

fn parse_line(line: &str) -> Result<(Bearer, [u8; SHA256_OUTPUT_LEN]), &'static str> {
    let mut parts = line.splitn(3, ':');
    let (Some(name), Some(role), Some(hash)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("a line is NAME:ROLE:sha256$HEX, as `kentongan ctl token` prints it");
    };
    check_name(name)?;
    let role = Role::ALL.into_iter().find(|known| known.name() == role);
    let role = role.ok_or("a role is viewer, operator or administrator")?;
    let hash = hash.strip_prefix(METHOD).and_then(parse_hash).ok_or("a hash is sha256$ and 64 hexadecimal digits")?;
    Ok((Bearer { name: name.to_owned(), role }, hash))
}

fn parse_hash(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let mut hash = [0; SHA256_OUTPUT_LEN];
    if text.len() != 2 * SHA256_OUTPUT_LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Tokens, String> {
        Tokens::parse(Path::new("tokens"), text).map_err(|error| error.to_string())
    }

    /// Abuse: [api]
    #[test]
    fn only_whoever_has_a_token_is_somebody_and_the_file_does_not_have_it() {
        let (one, other) = (Token::draw(), Token::draw());
        let file = format!("# who\n{}\n\n{}\n", one.line("ann", Role::Viewer), other.line("ben", Role::Administrator));
        assert!(!file.contains(one.expose()) && one.expose().len() > 40);
        let tokens = parse(&file).unwrap();
        let bearer = |token: &str| {
            let bearer = tokens.bearer(&TokenHash::of(token.as_bytes())?)?;
            Some((bearer.name.as_str(), bearer.role))
        };
        assert_eq!(bearer(one.expose()), Some(("ann", Role::Viewer)));
        assert_eq!(bearer(other.expose()), Some(("ben", Role::Administrator)));
        for wrong in ["", "kentongan_", &one.expose()[1..], &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert_eq!(bearer(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{one:?}"), "<redacted>");
    }

    #[test]
    fn a_wrong_line_is_named_and_no_hash_is_shown() {
        let good = Token::draw().line("ann", Role::Viewer);
        for (text, expected) in [
            (String::new(), "tokens: there is no token in it"),
            ("ann".to_owned(), "tokens, line 1: a line is NAME:ROLE:sha256$HEX"),
            (format!("{good}\n{good}"), "tokens, line 2: this name stands there twice"),
            (good.replace("viewer", "root"), "tokens, line 1: a role is viewer, operator or administrator"),
            (good.replace("sha256$", "md5$"), "tokens, line 1: a hash is sha256$ and 64 hexadecimal digits"),
            (good.replace("ann", "a b"), "tokens, line 1: a name is 1 to 64"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains(&good[good.len() - 20..]), "{error}");
        }
    }

    #[test]
    fn roles_grow() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Administrator);
    }
}
