//! Brokers that we start ourselves, each in a directory and on a port of its own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    certificates::Certificates,
    link::Layer,
    process::{Process, accepts_connect, free_port},
    scenario::Broker,
};

/// mosquitto without limits, disk and log, so that what is compared is the passing of messages.
const MOSQUITTO_CONF: &str = "\
listener {port} 127.0.0.1
listener {tls_port} 127.0.0.1
cafile {authority}
certfile {certificate}
keyfile {key}
allow_anonymous true
persistence false
max_queued_messages 0
max_inflight_messages 0
set_tcp_nodelay true
log_dest none
log_type none
";

/// Our own, likewise.
const KENTONGAN_TOML: &str = "\
[[listener]]
address = \"127.0.0.1:{port}\"

[[listener]]
address = \"127.0.0.1:{tls_port}\"

[listener.tls]
certificate_file = \"{certificate}\"
key_file = \"{key}\"
";

/// How to start a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipe {
    /// The program at this path, with the settings that a comparison needs.
    Kentongan(PathBuf),
    /// The same, with metrics off.
    KentonganUncounted(PathBuf),
    /// The program at this path, with a configuration that we write.
    Mosquitto(PathBuf),
    /// A shell command with `{port}` and `{dir}` in it; for TLS also with `{tls_port}`, `{certificate}` and `{key}`.
    Command(String),
}

impl Recipe {
    /// `kentongan`, `mosquitto`, or else a command.
    pub fn parse(text: &str, kentongan: &Path, mosquitto: &Path) -> Self {
        match text {
            "kentongan" => Self::Kentongan(kentongan.to_owned()),
            "mosquitto" => Self::Mosquitto(mosquitto.to_owned()),
            command => Self::Command(command.to_owned()),
        }
    }

    /// A short name for tables.
    pub fn name(&self) -> String {
        match self {
            Self::Kentongan(_) => "kentongan".into(),
            Self::KentonganUncounted(_) => "kentongan without metrics".into(),
            Self::Mosquitto(_) => "mosquitto".into(),
            Self::Command(command) => {
                let program = command.split_whitespace().next().unwrap_or("?");
                Path::new(program)
                    .file_name()
                    .map_or_else(|| program.into(), |name| name.to_string_lossy().into_owned())
            }
        }
    }

    /// The same broker with metrics off, if we know how to turn them off.
    pub fn uncounted(&self) -> Option<Self> {
        match self {
            Self::Kentongan(path) => Some(Self::KentonganUncounted(path.clone())),
            _ => None,
        }
    }

    fn command(&self, place: &Place) -> Result<Command> {
        Ok(match self {
            Self::Kentongan(path) | Self::KentonganUncounted(path) => {
                let file = place.dir.join("kentongan.toml");
                fs::write(&file, place.fill(KENTONGAN_TOML))?;
                let mut command = Command::new(path);
                let counts = matches!(self, Self::Kentongan(_));
                command.env("KENTONGAN_METRICS__ENABLED", counts.to_string());
                command.arg("serve").arg("--config").arg(file);
                command.arg("--data-dir").arg(place.dir.join("data")).arg("--http").arg("127.0.0.1:0");
                // mosquitto logs nothing either.
                command.arg("--log").arg("warn");
                command
            }
            Self::Mosquitto(path) => {
                let mut conf = place.fill(MOSQUITTO_CONF);
                if rustix::process::geteuid().is_root() {
                    conf += "user root\n"; // Else it drops to a user that may not exist.
                }
                let file = place.dir.join("mosquitto.conf");
                fs::write(&file, conf)?;
                let mut command = Command::new(path);
                command.arg("-c").arg(file);
                command
            }
            Self::Command(text) => {
                let mut command = Command::new("/bin/sh");
                // With `exec` the process that we know is the broker, not the shell.
                command.arg("-c").arg(format!("exec {}", place.fill(text)));
                command
            }
        })
    }
}

/// What a broker of ours has to itself.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    port: u16,
    tls_port: u16,
    certificates: Certificates,
}

impl Place {
    fn new(dir: &Path) -> Result<Self> {
        let certificates = Certificates::make(dir)?;
        Ok(Self { dir: dir.to_owned(), port: free_port()?, tls_port: free_port()?, certificates })
    }

    fn fill(&self, text: &str) -> String {
        let Certificates { authority, certificate, key, .. } = &self.certificates;
        let text = text.replace("{port}", &self.port.to_string()).replace("{tls_port}", &self.tls_port.to_string());
        let paths = [("{dir}", &self.dir), ("{authority}", authority), ("{certificate}", certificate), ("{key}", key)];
        paths.into_iter().fold(text, |text, (name, path)| text.replace(name, &path.display().to_string()))
    }
}

/// A broker that runs. Dropping it ends the process.
#[derive(Debug)]
pub struct Running {
    process: Process,
    address: SocketAddr,
    tls_address: SocketAddr,
    /// Held until the process has ended.
    _dir: TempDir,
}

impl Running {
    /// Starts a broker and waits until it accepts a CONNECT.
    pub fn start(recipe: &Recipe) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let place = Place::new(dir.path())?;
        let mut command = recipe.command(&place)?;
        let log = dir.path().join("broker.log");
        let mut process = Process::start(&mut command, log).with_context(|| format!("starting {}", recipe.name()))?;
        let address = (Ipv4Addr::LOCALHOST, place.port).into();
        let tls_address = (Ipv4Addr::LOCALHOST, place.tls_port).into();
        process
            .await_ready(|| accepts_connect(address))
            .with_context(|| format!("{} did not become ready", recipe.name()))?;
        Ok(Self { process, address, tls_address, _dir: dir })
    }

    /// Holds its process to so many cores.
    pub fn limit(&mut self, cores: f64) -> Result<()> {
        self.process.limit(cores)
    }

    /// Where it listens for clients without TLS, and its process.
    pub fn broker(&self) -> Broker {
        self.broker_over(Layer::Plain)
    }

    /// Where it listens for what lies over the sockets of clients, and its process.
    pub fn broker_over(&self, layer: Layer) -> Broker {
        let address = if layer.is_tls() { self.tls_address } else { self.address };
        let mut broker = Broker::one(address, Some(self.process.id()));
        broker.places.layer = layer;
        broker
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    /// The end of what it wrote.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_profiles_and_all_else_is_a_command() {
        let parse = |text| Recipe::parse(text, Path::new("target/k"), Path::new("/usr/sbin/m"));
        assert_eq!(parse("kentongan"), Recipe::Kentongan("target/k".into()));
        assert_eq!(parse("mosquitto").name(), "mosquitto");
        assert_eq!(parse("/opt/flashmq/bin/flashmq --port {port}").name(), "flashmq");
    }

    #[test]
    fn only_our_own_broker_can_be_told_not_to_count() {
        let counts = |recipe: &Recipe| {
            let dir = tempfile::tempdir().unwrap();
            let command = recipe.command(&Place::new(dir.path()).unwrap()).unwrap();
            let variable = command.get_envs().find(|(name, _)| *name == "KENTONGAN_METRICS__ENABLED");
            variable.and_then(|(_, value)| value?.to_str()).map(str::to_owned)
        };
        let kentongan = Recipe::Kentongan("k".into());
        assert_eq!(counts(&kentongan).as_deref(), Some("true"));
        assert_eq!(counts(&kentongan.uncounted().unwrap()).as_deref(), Some("false"));
        assert_eq!(Recipe::Mosquitto("m".into()).uncounted(), None);
    }

    #[test]
    fn a_program_that_ends_at_once_is_reported_with_what_it_wrote() {
        let recipe = Recipe::Command("sh -c 'echo no licence >&2; exit 3'".into());
        let error = format!("{:#}", Running::start(&recipe).unwrap_err());
        assert!(error.contains("no licence"), "{error}");
    }
}
