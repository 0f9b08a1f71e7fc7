//! How `sub` and `rr` print the messages that come.

use std::io::Write;

use clap::Args;
use jiff::ZonedDateTime;
use kentongan_proto::mqtt::Publish;

use super::format::{Format, PrintError};

/// The flags of mosquitto_sub and mosquitto_rr that say so.
#[derive(Debug, Clone, Args)]
pub(super) struct PrintingArgs {
    /// Print the topic before each message.
    #[arg(short = 'v', long)]
    verbose: bool,
    /// How to print a message: text with %t topic, %p payload, %x and %X payload in hexadecimal, %l its length, %q QoS,
    /// %r retained, %m Packet Identifier, %j and %J JSON, %I and %U time, @Y and the like as in strftime, \n and
    /// the like, and of MQTT 5 %A alias, %C content type, %D correlation data, %E expiry, %F payload format, %P
    /// User Properties, %R response topic, %S Subscription Identifier. Widths as in %-20t and %.5p.
    #[arg(short = 'F', value_name = "FORMAT", allow_hyphen_values = true)]
    format: Option<String>,
    /// Print JSON (%j and %J) over several lines.
    #[arg(long)]
    pretty: bool,
    /// Print no line end after each message.
    #[arg(short = 'N')]
    no_eol: bool,
}

/// What prints as they say.
pub(super) struct Printer {
    format: Format,
    is_pretty: bool,
    line_end: &'static [u8],
}

impl PrintingArgs {
    /// # Errors
    /// What is wrong with the format, for whoever typed it.
    pub(super) fn resolve(&self) -> Result<Printer, String> {
        let format = match &self.format {
            Some(text) => Format::parse(text).map_err(|error| error.to_string())?,
            None => Format::plain(self.verbose),
        };
        Ok(Printer { format, is_pretty: self.pretty, line_end: if self.no_eol { b"" } else { b"\n" } })
    }
}

impl Printer {
    /// Prints one. What cannot be printed as JSON is left out, and said on standard error as the word of `command`, unless all is to
    /// be `quiet`.
    ///
    /// # Errors
    /// Nothing more can be written.
    pub(super) fn print(
        &self,
        message: &Publish,
        out: &mut impl Write,
        command: &str,
        quiet: bool,
    ) -> std::io::Result<()> {
        match self.format.print(message, &ZonedDateTime::now(), self.is_pretty, out) {
            Ok(()) => out.write_all(self.line_end),
            Err(PrintError::Output(error)) => Err(error),
            Err(error @ PrintError::NotJson(_)) => {
                if !quiet {
                    eprintln!("kentongan {command}: {error}");
                }
                Ok(())
            }
        }
    }
}
