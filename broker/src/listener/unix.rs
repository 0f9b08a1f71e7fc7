//! Listening on a Unix socket.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{fs, io};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::FileMode;

/// Opens the socket at `path`, in the place of one that nobody answers on.
pub(super) fn open(path: &Path, mode: FileMode, backlog: i32) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if is_left_over(path) {
        fs::remove_file(path)?;
    }
    socket.bind(&SockAddr::unix(path)?)?;
    // Before anybody can connect.
    fs::set_permissions(path, fs::Permissions::from_mode(mode.0))?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Whether there is a socket whose process is gone. What is no socket is not ours to remove.
fn is_left_over(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_replaced_only_if_nobody_answers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = open(&path, FileMode(0o600), 1).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let in_use = open(&path, FileMode(0o600), 1).unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let second = open(&path, FileMode(0o660), 1).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(second);

        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert_eq!(open(&path, FileMode(0o600), 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }
}
