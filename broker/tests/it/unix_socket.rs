//! A listener on a Unix socket.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use super::support::{Broker, DEADLINE};

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
