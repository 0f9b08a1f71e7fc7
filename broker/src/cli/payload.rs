//! Where `pub` and `rr` take what they publish from.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;

/// The flags of mosquitto_pub and mosquitto_rr that say so, one of which must be there.
#[derive(Debug, Clone, Args)]
pub(super) struct PayloadArgs {
    /// The message.
    #[arg(short = 'm', long, value_name = "TEXT", group = "payload", allow_hyphen_values = true)]
    message: Vec<String>,
    /// File whose content is the message.
    #[arg(short = 'f', long, value_name = "FILE", group = "payload")]
    file: Vec<PathBuf>,
    /// Standard input, all of it, is the message; it must not be empty.
    #[arg(short = 's', long, group = "payload")]
    stdin_file: bool,
    /// An empty message; with -r of `pub` it deletes the retained one.
    #[arg(short = 'n', long, group = "payload")]
    null_message: bool,
}

/// Why there is nothing to publish.
#[derive(Debug, thiserror::Error)]
pub(super) enum PayloadError {
    /// What the flags name cannot be read: the user's to mend.
    #[error("{0}")]
    Usage(String),
    /// Most likely the command in front of the pipe failed, and with -r an empty message deletes the retained one.
    #[error("standard input is empty, so nothing is published; -n publishes an empty message")]
    EmptyInput,
}

impl PayloadArgs {
    /// The payload; empty if none of the first three says one.
    ///
    /// # Errors
    /// What could not be read, or was not there.
    pub(super) fn read(&self) -> Result<Vec<u8>, PayloadError> {
        self.read_from(io::stdin())
    }

    fn read_from(&self, mut input: impl Read) -> Result<Vec<u8>, PayloadError> {
        // Of other flags the last one counts; here the others would be messages that nobody gets.
        if self.message.len() + self.file.len() > 1 {
            return Err(PayloadError::Usage(String::from("one message is published; give -m or -f once")));
        }
        if let [message] = self.message.as_slice() {
            return Ok(message.as_bytes().to_vec());
        }
        if let [path] = self.file.as_slice() {
            let read = std::fs::read(path);
            return read.map_err(|error| PayloadError::Usage(format!("cannot read {}: {error}", path.display())));
        }
        let mut content = Vec::new();
        if self.stdin_file {
            let read = input.read_to_end(&mut content);
            read.map_err(|error| PayloadError::Usage(format!("cannot read standard input: {error}")))?;
            if content.is_empty() {
                return Err(PayloadError::EmptyInput);
            }
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        payload: PayloadArgs,
    }

    fn read(line: &[&str], input: &str) -> Result<Vec<u8>, PayloadError> {
        Line::parse_from([&["x"], line].concat()).payload.read_from(input.as_bytes())
    }

    #[test]
    fn only_an_empty_standard_input_is_no_message() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.path().to_str().unwrap();
        assert!(matches!(read(&["-s"], ""), Err(PayloadError::EmptyInput)));
        assert_eq!(read(&["-s"], "a\nb\n").unwrap(), b"a\nb\n");
        for empty in [["-n"].as_slice(), &["-m", ""], &["-f", file]] {
            assert_eq!(read(empty, "x").unwrap(), b"", "{empty:?}");
        }
    }

    #[test]
    fn a_second_message_is_refused() {
        for two in [["-m", "a", "-m", "b"], ["-f", "/dev/null", "-f", "/dev/null"]] {
            assert!(matches!(read(&two, ""), Err(PayloadError::Usage(text)) if text.contains("once")), "{two:?}");
        }
    }
}
