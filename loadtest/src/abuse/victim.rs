//! The broker that is tried, with a listener for each way in.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    certificates::Certificates,
    measure::Memory,
    nodes::{ask, labelled, sample},
    process::{Process, accepts_connect, free_port},
    wire::handshake::Login,
};

/// The broker. Dropping it ends the process.
#[derive(Debug)]
pub struct Victim {
    process: Process,
    /// Without TLS and user names.
    pub plain: SocketAddr,
    /// Over TLS.
    pub tls: SocketAddr,
    /// Over TLS, with a certificate of the client.
    pub certified: SocketAddr,
    /// With user name and password.
    pub passwords: SocketAddr,
    http: SocketAddr,
    /// Of its authority.
    pub certificates: Certificates,
    /// Held until the process has ended.
    _dir: TempDir,
}

/// Users with the same password, which is hashed once: to verify it takes as long for each of them.
#[derive(Debug, Clone)]
pub struct Users(Vec<Login>);

impl Users {
    /// `PREFIX0`, `PREFIX1`, …
    pub fn new(prefix: &str, count: usize) -> Self {
        let login = |number| Login { user: format!("{prefix}{number}"), password: "carried by a drum".into() };
        Self((0..count).map(login).collect())
    }

    /// Them.
    pub fn logins(&self) -> Vec<Login> {
        self.0.clone()
    }

    /// Appends them to a password file that is there, or not yet.
    fn write(&self, program: &Path, file: &Path) -> Result<()> {
        let Some(first) = self.0.first() else {
            return Ok(());
        };
        let one = file.with_extension("one");
        let mut command = Command::new(program);
        command.args(["passwd", "-c", "-b"]).arg(&one).args([&first.user, &first.password]);
        let output = command.output().with_context(|| format!("starting {}", program.display()))?;
        ensure!(output.status.success(), "kentongan passwd: {}", String::from_utf8_lossy(&output.stderr).trim());
        let written = fs::read_to_string(&one)?;
        let (_, hash) = written.trim().split_once(':').context("kentongan passwd wrote no user")?;
        let lines: String = self.0.iter().map(|login| format!("{}:{hash}\n", login.user)).collect();
        let before = fs::read_to_string(file).unwrap_or_default();
        fs::write(file, before + &lines).context("writing a password file")
    }
}

impl Victim {
    /// Starts it with these settings more, and these users.
    pub fn start(program: &Path, settings: &str, users: &[&Users]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certificates = Certificates::make(dir.path())?;
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let [plain, tls, certified, passwords, http] = {
            let mut places = [at(0); 5];
            for place in &mut places {
                *place = at(free_port()?);
            }
            places
        };
        let users_file = dir.path().join("users");
        fs::write(&users_file, "")?;
        users.iter().try_for_each(|users| users.write(program, &users_file))?;
        let quoted = |path: &PathBuf| format!("{:?}", path.display().to_string());
        let shown = format!(
            "[listener.tls]\ncertificate_file = {}\nkey_file = {}\n",
            quoted(&certificates.certificate),
            quoted(&certificates.key)
        );
        let known =
            format!("client_certificate = \"required\"\nclient_ca_file = {}\n", quoted(&certificates.authority));
        let auth = match users {
            [] => String::new(),
            // All who were verified slowly are still to be remembered when they come back.
            _ => format!("[auth]\npassword_file = {}\nremember_seconds = 3600\n", quoted(&users_file)),
        };
        // Where there are users, nobody else comes in unless that is said.
        let text = format!(
            "allow_anonymous = true\n{settings}\n{auth}\n[[listener]]\naddress = \"{plain}\"\n\n[[listener]]\naddress = \"{tls}\"\n{shown}\n\
             [[listener]]\naddress = \"{certified}\"\n{shown}{known}\n\
             [[listener]]\naddress = \"{passwords}\"\nallow_anonymous = false\n"
        );
        let file = dir.path().join("kentongan.toml");
        fs::write(&file, text)?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(file).arg("--http").arg(http.to_string());
        command.arg("--data-dir").arg(dir.path().join("data")).arg("--log").arg("error");
        let mut process = Process::start(&mut command, dir.path().join("broker.log"))
            .with_context(|| format!("starting {}", program.display()))?;
        process.await_ready(|| accepts_connect(plain)).context("the broker did not become ready")?;
        Ok(Self { process, plain, tls, certified, passwords, http, certificates, _dir: dir })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its resident memory.
    pub fn memory(&self) -> Result<Memory> {
        Memory::of(self.process.id())
    }

    /// What its metrics are asked for.
    pub fn metrics(&self) -> Metrics {
        Metrics(self.http)
    }
}

/// Its metrics, which anybody may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Metrics(SocketAddr);

impl Metrics {
    /// A metric without labels.
    pub fn value(self, name: &str) -> Result<f64> {
        sample(&ask(self.0, "/metrics")?, name)
    }

    /// A counter, added up over its labels.
    pub fn sum(self, name: &str) -> Result<u64> {
        Ok(labelled(&ask(self.0, "/metrics")?, name).into_iter().map(|(_, value)| value).sum())
    }

    /// A counter by the value of its first label.
    pub fn labelled(self, name: &str, label: &str) -> Result<u64> {
        let series = labelled(&ask(self.0, "/metrics")?, name);
        Ok(series.into_iter().find(|(value, _)| value == label).map_or(0, |(_, value)| value))
    }
}
