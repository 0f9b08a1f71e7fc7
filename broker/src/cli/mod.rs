//! The command line: the broker itself, its settings, and a small client for trying things out.
//!
//! `kentongan` alone is `kentongan serve`. `pub`, `sub` and `rr` take the flags of mosquitto_pub, mosquitto_sub and
//! mosquitto_rr, so that what people have in their scripts and fingers works.
//!
//! Absent: the broker. It comes in as a function, so that this module does not know what it is made of.

mod client;
mod cluster;
mod config;
mod ctl;
mod exclusive;
mod format;
mod link;
mod local;
mod logging;
mod options;
mod passwd;
mod payload;
mod printing;
mod property;
mod publish;
mod reference;
mod request;
mod serve;
mod subscribe;
mod tls;
mod wire;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::Effective;
pub use reference::reference_page;
pub use serve::Reloading;

/// Something failed while running.
const EXIT_FAILURE: u8 = 1;

/// The command line or the configuration is wrong. Clap uses the same.
const EXIT_USAGE: u8 = 2;

/// What mosquitto_sub and mosquitto_rr exit with when `-W` ran out.
const EXIT_TIMED_OUT: u8 = 27;

/// A clustered, high-throughput MQTT broker.
///
/// Without a command it serves: on port 1883 of the loopback addresses, for anonymous clients of this machine.
#[derive(Debug, Parser)]
#[command(name = "kentongan", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker; the same as no command at all.
    Serve(serve::ServeArgs),
    /// Publish messages, with the flags of mosquitto_pub.
    #[command(disable_help_flag = true, args_override_self = true)]
    Pub(publish::PublishArgs),
    /// Subscribe and print what comes, with the flags of mosquitto_sub.
    #[command(disable_help_flag = true, args_override_self = true)]
    Sub(subscribe::SubscribeArgs),
    /// Publish a request and print the response, with the flags of mosquitto_rr.
    #[command(disable_help_flag = true, args_override_self = true)]
    Rr(request::RequestArgs),
    /// Change the users of a password file, with the flags of mosquitto_passwd.
    Passwd(passwd::PasswdArgs),
    /// Look at settings.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Ask the nodes of a cluster.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Ask and command nodes by their HTTP API.
    Ctl(ctl::CtlArgs),
    /// Print what makes a shell complete this command line.
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
struct CompletionsArgs {
    /// Which shell.
    shell: clap_complete::Shell,
}

/// Runs what the command line says. `serve` runs the broker until it is told to stop, and can read the settings again.
///
/// Exit codes: 0 success, 1 something failed while running, 2 the command line or the configuration is wrong, 27 if `sub -W` or `rr -W`
/// ran out of time; and of a node that need not be started again as it is, see [`crate::ending::Ending`].
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    serve: impl FnOnce(Effective, Reloading) -> anyhow::Result<()>,
) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to say if even the message cannot be printed.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let code = match cli.command {
        None => serve::run(&cli.serve, serve),
        Some(Command::Serve(arguments)) => serve::run(&arguments, serve),
        Some(Command::Pub(arguments)) => publish::run(&arguments),
        Some(Command::Sub(arguments)) => subscribe::run(&arguments),
        Some(Command::Rr(arguments)) => request::run(&arguments),
        Some(Command::Passwd(arguments)) => passwd::run(&arguments),
        Some(Command::Config(command)) => config::run(&command),
        Some(Command::Cluster(command)) => cluster::run(&command),
        Some(Command::Ctl(arguments)) => ctl::run(&arguments),
        Some(Command::Completions(CompletionsArgs { shell })) => completions(shell),
    };
    ExitCode::from(code)
}

/// The whole command line, for completions, manual pages and the reference page.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

fn completions(shell: clap_complete::Shell) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "kentongan", &mut script);
    print_bytes(&script)
}

/// Prints to standard output. A reader that has gone, such as `head`, is not an error.
fn print_bytes(bytes: &[u8]) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            eprintln!("kentongan: cannot print: {error}");
            EXIT_FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    /// The words of an argument.
    fn parsed(line: &str, argument: &str) -> Result<Vec<String>, clap::error::ErrorKind> {
        let words = std::iter::once("kentongan").chain(line.split(' '));
        let matches = command().try_get_matches_from(words).map_err(|error| error.kind())?;
        let (_, matches) = matches.subcommand().unwrap();
        Ok(matches.get_raw(argument).unwrap().map(|word| word.to_str().unwrap().to_owned()).collect())
    }

    /// So that `alias pub='kentongan pub -h broker'` leaves room for another host, as with mosquitto's.
    #[test]
    fn the_last_of_a_repeated_flag_of_a_client_counts() {
        for (line, argument, expected) in [
            ("pub -h a -t t -n -h b", "host", ["b"].as_slice()),
            ("pub -t a -n -t b", "topic", &["b"]),
            ("pub -t a -n -q 0 -q 1 -q 2", "qos", &["2"]),
            ("pub -t a -n -d -d", "debug", &["true"]),
            ("sub -h a -t t --host b", "host", &["b"]),
            ("sub -v -t t -F %t -F %p", "format", &["%p"]),
            ("rr -e a -t t -n -e b", "response_topic", &["b"]),
            // Those that may be repeated go on collecting.
            ("sub -t a -q 1 -q 2 -t b", "topic", &["a", "b"]),
            ("sub -t a -T x -T y", "filter_out", &["x", "y"]),
            ("sub -t a -U x -U y", "unsubscribe", &["x", "y"]),
            (
                "pub -t t -n -D publish content-type x -D publish content-type y",
                "property",
                &["publish", "content-type", "x", "publish", "content-type", "y"],
            ),
        ] {
            let expected = expected.iter().map(ToString::to_string).collect();
            assert_eq!(parsed(line, argument), Ok(expected), "{line}");
        }
        let refused = Err(clap::error::ErrorKind::ArgumentConflict);
        assert_eq!(parsed("serve -c a -c b", "config"), refused, "a broker with two of something is a mistake");
        assert_eq!(parsed("pub -t t -n -m x", "topic"), refused);
    }
}
