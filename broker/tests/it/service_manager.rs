//! What a service manager such as systemd hears, on a socket that the test has made.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::*;

struct Manager {
    directory: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        Self { directory, socket }
    }

    fn broker(&self, environment: &[(&str, &str)]) -> Broker {
        let path = self.directory.path().join("notify");
        let mut all = vec![("NOTIFY_SOCKET", path.to_str().expect("UTF-8"))];
        all.extend(environment);
        Broker::with_environment(&[], &all)
    }

    fn hears(&self) -> String {
        let mut bytes = [0; 256];
        let length = self.socket.recv(&mut bytes).expect("the broker says something");
        String::from_utf8(bytes[..length].to_vec()).expect("UTF-8")
    }

    fn hears_nothing(&self) -> bool {
        self.socket.set_nonblocking(true).expect("set");
        self.socket.recv(&mut [0; 256]).is_err()
    }
}

#[test]
fn a_service_manager_hears_of_readiness_reloads_and_the_end() {
    let manager = Manager::new();
    let mut broker = manager.broker(&[]);
    assert_eq!(manager.hears(), "READY=1");
    Client::v5(&broker, "a").disconnect();

    broker.hang_up();
    let reloading = manager.hears();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(manager.hears(), "READY=1");

    assert!(broker.terminate().success());
    assert_eq!(manager.hears(), "STOPPING=1");
    assert!(manager.hears_nothing());
}

#[test]
fn a_watchdog_hears_that_the_loops_turn_again_and_again() {
    let manager = Manager::new();
    let _broker = manager.broker(&[("WATCHDOG_USEC", "200000")]);
    let heard = std::iter::repeat_with(|| manager.hears()).take(6).collect::<Vec<_>>();
    assert_eq!(heard.iter().filter(|notice| *notice == "READY=1").count(), 1, "{heard:?}");
    assert_eq!(heard.iter().filter(|notice| *notice == "WATCHDOG=1").count(), 5, "{heard:?}");
}

/// Somebody must make room; a start that hung until then would only be one more thing that does not work.
#[test]
fn a_node_without_room_on_its_disk_has_started_all_the_same() {
    let manager = Manager::new();
    let broker = manager.broker(&[("KENTONGAN_STORAGE__FREE_BYTES_RESERVE", "9000000000000000000")]);
    assert_eq!(manager.hears(), "READY=1");
    wait_for("not ready", || broker.http_get("/readyz") == (503, "not ready, missing: disk\n".to_owned()));
}
