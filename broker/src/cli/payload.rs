//! Where `pub` and `rr` take what they publish from.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;

/// The flags of mosquitto_pub and mosquitto_rr that say so, one of which must be there.
#[derive(Debug, Clone, Args)]
pub(super) struct PayloadArgs {
    /// The message.
    #[arg(short = 'm', long, value_name = "TEXT", group = "payload", allow_hyphen_values = true)]
    message: Option<String>,
    /// File whose content is the message.
    #[arg(short = 'f', long, value_name = "FILE", group = "payload")]
    file: Option<PathBuf>,
    /// Standard input, all of it, is the message.
    #[arg(short = 's', long, group = "payload")]
    stdin_file: bool,
    /// An empty message; with -r of `pub` it deletes the retained one.
    #[arg(short = 'n', long, group = "payload")]
    null_message: bool,
}

impl PayloadArgs {
    /// The payload; empty if none of the first three says one.
    ///
    /// # Errors
    /// What could not be read, in a sentence.
    pub(super) fn read(&self) -> Result<Vec<u8>, String> {
        if let Some(message) = &self.message {
            return Ok(message.as_bytes().to_vec());
        }
        if let Some(path) = &self.file {
            return std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
        }
        let mut content = Vec::new();
        if self.stdin_file {
            let read = io::stdin().lock().read_to_end(&mut content);
            read.map_err(|error| format!("cannot read standard input: {error}"))?;
        }
        Ok(content)
    }
}
