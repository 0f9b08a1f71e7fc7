//! Processes of brokers that we start ourselves, and end.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kentongan_proto::mqtt::ProtocolVersion;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    quota::Quota,
    wire::handshake::{self, Session},
};

/// How long a broker may take until it is ready.
const START: Duration = Duration::from_secs(60);

/// How long a broker may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(10);

/// A process of a broker. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Removed behind the process.
    quota: Option<Quota>,
}

impl Process {
    /// Starts `command`; what it writes goes to the end of the file `log`.
    pub fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::options().append(true).create(true).open(&log)?;
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Self { child, log, quota: None })
    }

    /// Waits until `ready` succeeds.
    pub fn await_ready(&mut self, mut ready: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let Err(error) = ready() else {
                return Ok(());
            };
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}: {}", self.log_tail());
            }
            if Instant::now() > deadline {
                return Err(error.context(self.log_tail()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Holds it to so many cores from now on.
    pub fn limit(&mut self, cores: f64) -> Result<()> {
        self.quota = Some(Quota::of(self.id(), cores)?);
        Ok(())
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing a broker")?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it ends by itself.
    pub fn await_end(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it still runs; {}", self.log_tail());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process without a number")?;
        Ok(kill_process(pid, signal)?)
    }

    /// The end of what it wrote.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(2000)..];
        format!("it wrote: {}", String::from_utf8_lossy(tail).trim())
    }

    /// Asks it to end, without waiting.
    pub fn terminate(&mut self) {
        if !self.has_ended() {
            // Errors mean that it has ended, which who waits finds out.
            let _ = self.signal(Signal::TERM);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate();
        let deadline = Instant::now() + STOP;
        while !self.has_ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether the broker at `address` lets a client in.
pub fn accepts_connect(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&handshake::connect(ProtocolVersion::V3_1_1, "lt-probe", 60, Session::Clean))?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack)?;
    ensure!(connack == [0x20, 2, 0, 0], "it answered CONNECT with {connack:?}");
    stream.write_all(&[0xE0, 0])?;
    Ok(())
}
