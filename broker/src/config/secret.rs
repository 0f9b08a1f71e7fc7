//! Values that must never reach a log, an error message or an answer of the API.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use super::schema::SettingType;

/// What stands in place of a secret wherever it is shown.
pub const REDACTED: &str = "<redacted>";

/// A text that shows itself to nobody: `Debug`, `Display` and `Serialize` all give [`REDACTED`].
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes the text in.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Reads a secret from a file of its own. One trailing line end is not part of it.
    ///
    /// # Errors
    /// The file cannot be read, is not UTF-8, or is empty: an empty secret would let everybody in.
    pub fn from_file(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text itself. Name the place where it goes; never a log.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is the secret, in a time that depends on the candidate's length alone.
    #[must_use]
    pub fn matches(&self, candidate: &[u8]) -> bool {
        let secret = self.0.as_bytes();
        let mut difference = usize::from(secret.len() != candidate.len()) | usize::from(secret.is_empty());
        for (position, byte) in candidate.iter().enumerate() {
            let expected = secret.get(position % secret.len().max(1)).copied().unwrap_or_default();
            difference |= usize::from(byte ^ expected);
        }
        difference == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl SettingType for Secret {
    const IS_TEXT: bool = true;
    const IS_SECRET: bool = true;

    fn type_name() -> String {
        String::from("text, never shown")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Abuse: [secrets]
    #[test]
    fn a_secret_shows_itself_nowhere() {
        let secret = Secret::new(String::from("tabuh-7"));
        assert_eq!(format!("{secret:?} {secret}"), "<redacted> <redacted>");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"<redacted>\"");
    }

    #[test]
    fn a_secret_is_compared_whole() {
        let secret = Secret::new(String::from("tabuh-7"));
        assert!(secret.matches(b"tabuh-7"));
        for wrong in [&b""[..], b"tabuh", b"tabuh-8", b"tabuh-7tabuh-7"] {
            assert!(!secret.matches(wrong), "{wrong:?}");
        }
        assert!(!Secret::new(String::new()).matches(b""), "an empty secret lets nobody in");
    }

    #[test]
    fn a_secret_file_loses_one_line_end_and_must_not_be_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, " tabuh \r\n").unwrap();
        assert_eq!(Secret::from_file(&path).unwrap().expose(), " tabuh ");
        fs::write(&path, "\n").unwrap();
        assert_eq!(Secret::from_file(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
