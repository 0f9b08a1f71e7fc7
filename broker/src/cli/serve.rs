//! `kentongan serve`: settings together, log on, broker running.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::local::{Local, parse_listener, parse_peer, parse_peer_listener};
use super::{EXIT_FAILURE, EXIT_USAGE, logging};
use crate::config::{
    self, ConfigError, Effective, FlagValue, ListenerConfig, Reload, Settings, Sources, warn_of_bounds,
    warn_of_open_files,
};
use crate::ending::Ending;
use crate::log_lines;

/// The flags of the broker. Each stands for a setting and wins over every other source of it.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct ServeArgs {
    /// Configuration file (TOML); files in FILE.d/ beside it are laid over it.
    #[arg(long, short = 'c', value_name = "FILE", env = config::CONFIG_VARIABLE, hide_env_values = true)]
    config: Option<PathBuf>,
    /// Where MQTT clients connect, such as 0.0.0.0:1883; may be repeated. Replaces all configured listeners.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_listener)]
    mqtt: Vec<SocketAddr>,
    /// Let clients in without a user name, from wherever they can reach a listener.
    #[arg(long)]
    allow_anonymous: bool,
    /// Where metrics and health are served.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_listener)]
    http: Option<SocketAddr>,
    /// Where sessions, retained messages and the log are kept.
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// What this node is called, its own name among those of its cluster; without it, the name of the host.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where other nodes connect; a port alone is one of 127.0.0.1. Without it this node is alone.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_peer_listener)]
    cluster: Option<SocketAddr>,
    /// Where other nodes dial this one, if that is not the address of --cluster.
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_peer)]
    advertise: Option<String>,
    /// The nodes that form the cluster together, this one among them, in the same order on all of them; or some of the nodes
    /// of a cluster that there is, to join it. A port alone is one of 127.0.0.1.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', value_parser = parse_peer)]
    seeds: Vec<String>,
    /// What this node shares its fate with, such as a rack or a site: what several nodes keep is kept in different zones.
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// Node N of M on this machine, such as 1/3: says its name (kentongan-N), data directory (./kentongan-N), ports of
    /// 127.0.0.1 (MQTT 1882+N, HTTP 8089+N, API 18082+N, peers 7000+N) and seeds, unless other flags say them.
    #[arg(long, value_name = "N/M")]
    local: Option<Local>,
    /// What is logged: a level, or several with modules, such as info,kentongan::session=debug.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Any other setting, such as session.receive_maximum=64; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ServeArgs {
    /// Every source of settings, as the process finds them.
    pub(super) fn sources(&self) -> Result<Sources, String> {
        Ok(Sources { file: self.config.clone(), environment: std::env::vars_os().collect(), flags: self.flags()? })
    }

    fn flags(&self) -> Result<Vec<FlagValue>, String> {
        // Others are stronger, so it comes first.
        let mut flags = self.local.map(Local::flags).unwrap_or_default();
        for assignment in &self.set {
            flags.push(FlagValue::parse("--set", assignment)?);
        }
        if !self.mqtt.is_empty() {
            let listener = |address: &SocketAddr| {
                let address = toml::Value::String(address.to_string());
                toml::Value::Table(toml::Table::from_iter([(String::from("address"), address)]))
            };
            flags.push(FlagValue::new("--mqtt", "listener", self.mqtt.iter().map(listener).collect::<Vec<_>>()));
        }
        if self.allow_anonymous {
            flags.push(FlagValue::new("--allow-anonymous", "allow_anonymous", true));
        }
        if let Some(address) = self.http {
            flags.push(FlagValue::new("--http", "http.address", address.to_string()));
        }
        if let Some(directory) = &self.data_dir {
            let Some(directory) = directory.to_str() else {
                return Err(format!("flag --data-dir: {} is not UTF-8", directory.display()));
            };
            flags.push(FlagValue::new("--data-dir", "data_dir", directory));
        }
        if let Some(name) = &self.node {
            flags.push(FlagValue::new("--node", "node", name.as_str()));
        }
        if let Some(address) = self.cluster {
            flags.push(FlagValue::new("--cluster", "cluster.address", address.to_string()));
        }
        if let Some(address) = &self.advertise {
            flags.push(FlagValue::new("--advertise", "cluster.advertise", address.as_str()));
        }
        if !self.seeds.is_empty() {
            flags.push(FlagValue::new("--seeds", "cluster.seeds", self.seeds.clone()));
        }
        if let Some(zone) = &self.zone {
            flags.push(FlagValue::new("--zone", "cluster.zone", zone.as_str()));
        }
        if let Some(filter) = &self.log {
            flags.push(FlagValue::new("--log", "log.filter", filter.as_str()));
        }
        Ok(flags)
    }
}

/// The way to the settings while the broker runs.
#[derive(Debug)]
pub struct Reloading {
    sources: Sources,
    log_filter: logging::LogFilter,
}

impl Reload for Reloading {
    fn read(&self) -> Result<Settings, ConfigError> {
        let effective = Effective::load(&self.sources)?;
        warn_of_open_files(&effective.settings);
        warn_of_bounds(&effective.settings);
        Ok(effective.settings)
    }

    fn change_log_filter(&self, settings: &Settings) {
        self.log_filter.change(&settings.log);
    }
}

pub(super) fn run(arguments: &ServeArgs, serve: impl FnOnce(Effective, Reloading) -> anyhow::Result<()>) -> u8 {
    let sources = match arguments.sources() {
        Ok(sources) => sources,
        Err(message) => {
            eprintln!("kentongan: {message}");
            return EXIT_USAGE;
        }
    };
    let effective = match Effective::load(&sources) {
        Ok(effective) => effective,
        Err(error) => {
            eprintln!("kentongan: the settings cannot be used:\n{error}");
            return EXIT_USAGE;
        }
    };
    let log_filter = logging::start(&effective.settings.log);
    warn_of_open_files(&effective.settings);
    warn_of_bounds(&effective.settings);
    if is_as_installed(&effective) {
        tracing::info!(
            "only clients on this machine can connect; to let others in, on a network that you trust, start with \
             --mqtt 0.0.0.0:1883 --allow-anonymous"
        );
    }
    for listener in closed_to_all(&effective.settings) {
        tracing::warn!(
            listener = %listener.address,
            "nobody can connect here: no users are set up (auth.password_file, auth.jwt, auth.http.url), and anonymous clients \
             are not allowed (allow_anonymous)"
        );
    }
    let code = match serve(effective, Reloading { sources, log_filter }) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            Ending::exit_code_of(&error).unwrap_or(EXIT_FAILURE)
        }
    };
    log_lines::flush();
    code
}

/// Whether nobody has said where clients connect, nor who they are.
fn is_as_installed(effective: &Effective) -> bool {
    let settings = &effective.settings;
    effective.listeners_are_defaults() && settings.allow_anonymous.is_none() && !settings.auth.has_users()
}

/// Listeners that let nobody in: nothing says who a client could be, and it may not be nobody.
fn closed_to_all(settings: &Settings) -> impl Iterator<Item = &ListenerConfig> {
    let may_know_somebody = |listener: &ListenerConfig| {
        let by_certificate = listener.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some());
        // A balancer may say whose certificate it saw.
        by_certificate || !listener.proxy_protocol_from.is_empty() || settings.auth.has_users()
    };
    settings
        .listener
        .iter()
        .filter(move |listener| !listener.allows_anonymous(settings) && !may_know_somebody(listener))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::super::{Cli, run as run_cli};
    use super::*;

    fn settings(line: &str) -> Settings {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let sources = Sources { flags: cli.serve.flags().unwrap(), ..Sources::default() };
        Effective::load(&sources).unwrap().settings
    }

    #[test]
    fn flags_become_settings() {
        let settings = settings(
            "kentongan --mqtt 0.0.0.0:1 --mqtt [::]:2 --allow-anonymous --http 127.0.0.1:0 --data-dir /d \
             --zone rack-1 --log debug --set session.receive_maximum=7 --set session.response_information=3",
        );
        let addresses: Vec<_> = settings.listener.iter().map(|one| one.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:1", "[::]:2"]);
        assert_eq!(settings.allow_anonymous, Some(true));
        assert_eq!(settings.http.address.port(), 0);
        assert_eq!(settings.data_dir.to_str(), Some("/d"));
        assert_eq!(settings.log.filter, "debug");
        assert_eq!(settings.cluster.zone.as_deref(), Some("rack-1"));
        assert_eq!(settings.session.receive_maximum.get(), 7);
        assert_eq!(settings.session.response_information.as_deref(), Some("3"));
    }

    #[test]
    fn advice_is_for_those_who_have_said_nothing_and_a_listener_that_lets_nobody_in_is_named() {
        let effective = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            Effective::load(&Sources { flags: cli.serve.flags().unwrap(), ..Sources::default() }).unwrap()
        };
        let closed = |effective: &Effective| {
            closed_to_all(&effective.settings).map(|listener| listener.address.to_string()).collect::<Vec<_>>()
        };
        let bare = effective("kentongan");
        assert!(is_as_installed(&bare) && closed(&bare).is_empty());
        for (line, expected) in [
            ("kentongan --local 2/3", &[][..]),
            ("kentongan --set allow_anonymous=false", &["127.0.0.1:1883", "[::1]:1883"]),
            ("kentongan --set auth.password_file=/u", &[]),
            ("kentongan --mqtt 0.0.0.0:1 --mqtt 127.0.0.1:2", &["0.0.0.0:1"]),
            ("kentongan --mqtt 0.0.0.0:1 --allow-anonymous", &[]),
            ("kentongan --mqtt 0.0.0.0:1 --set auth.password_file=/u", &[]),
            ("kentongan --set listener=[{address='0.0.0.0:1',proxy_protocol_from=['10.0.0.1']}]", &[]),
        ] {
            let effective = effective(line);
            assert!(!is_as_installed(&effective), "{line}");
            assert_eq!(closed(&effective), expected, "{line}");
        }
    }

    #[test]
    fn three_nodes_on_one_machine_are_three_short_lines() {
        let long = settings(
            "kentongan --node kentongan-2 --cluster 7002 --seeds 7001,7002,7003 --mqtt 127.0.0.1:1884 --http 127.0.0.1:8091 \
             --set api.address=127.0.0.1:18084 --data-dir ./kentongan-2",
        );
        assert_eq!(settings("kentongan --local 2/3"), long);
        assert_eq!(long.node_name(), "kentongan-2");
        assert_eq!(long.cluster.seeds, ["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"]);
        assert_eq!(long.cluster.advertised().as_deref(), Some("127.0.0.1:7002"));
    }

    #[test]
    fn other_flags_win_over_what_a_local_node_derives() {
        let settings = settings(
            "kentongan --local 1/3 --node a --cluster 7101 --advertise localhost:7101 --mqtt 127.0.0.1:1 --set data_dir=/d \
             --set cluster.seeds=[\"h:1\"]",
        );
        assert_eq!(settings.node_name(), "a");
        assert_eq!(settings.cluster.address.map(|address| address.port()), Some(7101));
        assert_eq!(settings.cluster.advertised().as_deref(), Some("localhost:7101"));
        assert_eq!(settings.listener.len(), 1);
        assert_eq!(settings.listener[0].address.to_string(), "127.0.0.1:1");
        assert_eq!(settings.data_dir.to_str(), Some("/d"));
        assert_eq!(settings.cluster.seeds, ["h:1"]);
        assert_eq!(settings.http.address.port(), 8090);
    }

    #[test]
    fn serve_takes_the_same_flags() {
        let line = "kentongan serve --node n1 --cluster 7001 --seeds 7001,7002";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Some(super::super::Command::Serve(serve)) = cli.command else { panic!("a command of its own") };
        let keys: Vec<String> = serve.flags().unwrap().into_iter().map(|flag| flag.key).collect();
        assert_eq!(keys, ["node", "cluster.address", "cluster.seeds"]);
    }

    #[test]
    fn a_wrong_place_is_blamed_on_its_flag() {
        for (line, expected) in [
            ("kentongan --mqtt 1883", "--mqtt <ADDRESS:PORT>"),
            ("kentongan --mqtt localhost:1883", "--mqtt <ADDRESS:PORT>"),
            ("kentongan --http 8090", "--http <ADDRESS:PORT>"),
            ("kentongan --cluster host:1", "--cluster <ADDRESS:PORT>"),
            ("kentongan --seeds 7001,host", "--seeds <HOST:PORT,...>"),
            ("kentongan --advertise host", "--advertise <HOST:PORT>"),
            ("kentongan --local 4/3", "--local <N/M>"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("such as"), "{error}");
        }
    }

    #[test]
    fn a_wrong_setting_on_the_command_line_is_a_usage_error() {
        for (assignment, expected) in [
            (
                "session.recieve_maximum=1",
                "flag --set: unknown key `session.recieve_maximum`; did you mean `receive_maximum`?",
            ),
            ("session=1", "flag --set: `session` is a section; set a key of it, such as session.receive_maximum=VALUE"),
            ("arbiters", "flag --set: `arbiters` must be KEY=VALUE"),
        ] {
            assert_eq!(FlagValue::parse("--set", assignment).unwrap_err(), expected);
        }
        let line = ["kentongan", "--set", "nonsense=1"].map(OsString::from);
        let code = run_cli(line, |_, _| panic!("nothing is served with wrong settings"));
        assert_eq!(code, std::process::ExitCode::from(EXIT_USAGE));
    }
}
