//! A listener on a Unix socket.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use super::support::{Broker, DEADLINE, broker_command};

/// CONNECT of an MQTT 3.1.1 client with a clean session, and what accepts it.
const CONNECT: &[u8] = b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01u";
const CONNACK: &[u8] = b"\x20\x02\0\0";

#[test]
fn a_client_connects_over_a_unix_socket_and_after_a_crash_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kentongan.sock");
    let settings = format!(
        "[[listener]]\naddress = \"unix:{}\"\nunix_mode = \"0600\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n",
        path.display()
    );
    let mut broker = Broker::with_settings(&settings);
    for crashes in [false, true] {
        if crashes {
            broker.restart();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        // Without a user: who may write the socket may connect.
        client.write_all(CONNECT).unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, CONNACK);
    }
}

/// By the flag of mosquitto's clients.
#[test]
fn our_own_clients_connect_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kentongan.sock");
    let settings =
        format!("[[listener]]\naddress = \"unix:{}\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n", path.display());
    let broker = Broker::with_settings(&settings);
    let run = |command: &str, flags: &[&str]| {
        let output = broker_command().args([command, "--unix"]).arg(&path).args(flags).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    assert_eq!(run("pub", &["-t", "a", "-m", "over a socket", "-r", "-q", "1"]), (true, String::new()));
    assert_eq!(run("sub", &["-t", "a", "-C", "1", "-W", "10"]), (true, String::from("over a socket\n")));
    drop(broker);
    let (is_reached, said) = run("pub", &["-t", "a", "-m", "x"]);
    assert!(!is_reached && said.contains(&format!("cannot connect to unix:{}", path.display())), "{said}");
}
