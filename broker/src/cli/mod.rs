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
    #[command(disable_help_flag = true)]
    Pub(publish::PublishArgs),
    /// Subscribe and print what comes, with the flags of mosquitto_sub.
    #[command(disable_help_flag = true)]
    Sub(subscribe::SubscribeArgs),
    /// Publish a request and print the response, with the flags of mosquitto_rr.
    #[command(disable_help_flag = true)]
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
}
