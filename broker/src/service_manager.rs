//! What this process says to the service manager that started it, as systemd's sd_notify(3) has it: one datagram a message, to
//! the socket that `NOTIFY_SOCKET` names.
//!
//! Nothing here decides when something is said: that is `listener::supervised`. Nothing blocks, and nothing that goes wrong here ends
//! a broker that works; it is only logged.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What began this process and wants to hear how it does.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

/// What can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It serves: whatever is ordered after it may start.
    Ready,
    /// It reads its settings again; [`Notice::Ready`] ends that.
    Reloading,
    /// It ends.
    Stopping,
    /// Its loops turn. Not said for [`ServiceManager::watchdog`], the process is killed and started anew.
    Alive,
}

impl ServiceManager {
    /// The one that the environment names; `None`, if none started this process or it wants to hear nothing.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let watchdog = watchdog(env::var_os("WATCHDOG_USEC"), env::var_os("WATCHDOG_PID"), std::process::id());
        Self::new(&name, watchdog)
            .inspect_err(|error| tracing::warn!(%error, socket = ?name, "the service manager cannot be told anything"))
            .ok()
    }

    /// One that listens on the socket `name`, a path or, behind `@`, an abstract name.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn new(name: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, watchdog })
    }

    /// How long it waits for [`Notice::Alive`] before it takes the process for stuck; `None`: for ever.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Says it.
    pub fn notify(&self, notice: Notice) {
        if let Err(error) = self.socket.send(notice.to_string().as_bytes()) {
            tracing::warn!(%error, ?notice, "the service manager could not be told");
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("READY=1"),
            // With the time, systemd can tell this reload from one that ended before it asked for it.
            Self::Reloading => write!(f, "RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()),
            Self::Stopping => f.write_str("STOPPING=1"),
            Self::Alive => f.write_str("WATCHDOG=1"),
        }
    }
}

fn monotonic_usec() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

/// The watchdog is meant for one process; another, which has inherited the environment, is none of its.
fn watchdog(usec: Option<OsString>, pid: Option<OsString>, own_pid: u32) -> Option<Duration> {
    let number = |text: OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
    if pid.is_some_and(|pid| number(pid) != Some(own_pid.into())) {
        return None;
    }
    usec.and_then(number).filter(|&usec| usec > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_notice_is_a_datagram_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::new(path.as_os_str(), None).unwrap();

        manager.notify(Notice::Ready);
        manager.notify(Notice::Alive);
        manager.notify(Notice::Stopping);
        assert_eq!([heard(&socket), heard(&socket), heard(&socket)], ["READY=1", "WATCHDOG=1", "STOPPING=1"]);

        let before = monotonic_usec();
        manager.notify(Notice::Reloading);
        let reloading = heard(&socket);
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("its time").parse::<u64>().unwrap();
        assert!((before..=monotonic_usec()).contains(&usec), "{reloading}");
    }

    #[test]
    fn a_name_behind_an_at_sign_is_abstract() {
        let name = format!("kentongan-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let manager = ServiceManager::new(OsStr::new(&format!("@{name}")), None).unwrap();
        manager.notify(Notice::Ready);
        assert_eq!(heard(&socket), "READY=1");
    }

    #[test]
    fn nobody_who_listens_is_an_error_and_no_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        assert!(ServiceManager::new(path.as_os_str(), None).is_err());
        // Its queue is full: what it does not read is not waited for.
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::new(path.as_os_str(), None).unwrap();
        (0..10_000).for_each(|_| manager.notify(Notice::Alive));
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let of = |usec: Option<&str>, pid: Option<&str>| watchdog(usec.map(OsString::from), pid.map(OsString::from), 7);
        assert_eq!(of(Some("30000000"), None), Some(Duration::from_secs(30)));
        assert_eq!(of(Some("30000000"), Some("7")), Some(Duration::from_secs(30)));
        assert_eq!(of(Some("30000000"), Some("8")), None);
        assert_eq!(of(Some("30000000"), Some("x")), None);
        assert_eq!(of(Some("0"), Some("7")), None);
        assert_eq!(of(Some("soon"), None), None);
        assert_eq!(of(None, Some("7")), None);
    }
}
