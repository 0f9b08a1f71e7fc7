//! TLS over a socket, as a stream that is polled like one.
//!
//! rustls keeps no bytes here: it works on buffers that it is given, which are the thread's while something is done, and
//! the connection's own only for what cannot be finished now. A connection that is idle therefore holds none.
//!
//! - `incoming`: a record of which a part is still to come.
//! - `plaintext`: what did not fit into the reader's buffer. It is given out before the socket is asked again, so a reader
//!   that comes until it hears `Pending` misses nothing.
//! - `outgoing`: records that the socket has not taken. While the last of them are the application's, it is not told that
//!   its bytes were written (`held_back`): it keeps waiting for the socket and comes again with them, and then the records
//!   leave. So nothing is stuck here, and what waits is counted once, in the out-buffer.
//!
//! The handshake is driven by reading. Absent: certificates and what they mean ([`crate::tls`]).

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, WriteTraffic};
use rustls::{AlertDescription, HandshakeKind};
use tokio::io::ReadBuf;

use super::{RawSocket, Spoken};
use crate::tls::{Endpoint, HandshakeGuard};

/// Plaintext of a record at most (RFC 8446, 5.1).
const RECORD_PLAINTEXT_BYTES_MAX: usize = 16 * 1024;

/// A record on the wire at most, of any version: header, plaintext, and what encryption may add (RFC 5246, 6.2.3).
const RECORD_BYTES_MAX: usize = 5 + RECORD_PLAINTEXT_BYTES_MAX + 2048;

/// What a record has more than its plaintext, about.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// Bytes of a handshake that may gather before they make sense: a chain of certificates is the longest of what a client
/// sends. rustls would take 64 KiB.
const HANDSHAKE_BYTES_MAX: usize = 32 * 1024;

/// Bytes read from the socket at once, if the reader has room for what they become.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Read at least, however little the reader wants: a record must be whole to be opened.
const READ_BYTES_MIN: usize = 4 * 1024;

/// In front of a fatal alert: its type, the version, its length, its level (RFC 8446, 5.1 and 6).
const ALERT_HEADER: [u8; 6] = [21, 3, 3, 0, 2, 2];

/// With more than this still to be sent on account of the protocol itself, nothing is read that could add to it.
const OUTGOING_BYTES_MAX: usize = 32 * 1024;

thread_local! {
    /// Records that are being opened.
    static OPENING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Plaintext gathered from pieces, and the record made of it.
    static SEALING: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// The server's end of a TLS connection.
pub struct TlsStream {
    socket: RawSocket,
    connection: UnbufferedServerConnection,
    endpoint: Arc<Endpoint>,
    /// Until the handshake is done.
    handshake: Option<HandshakeGuard>,
    /// The client's first message was answered.
    answered: bool,
    /// The certificate in the ticket that the client came by was looked at.
    ticket_checked: bool,
    incoming: Vec<u8>,
    plaintext: Vec<u8>,
    outgoing: Vec<u8>,
    /// Bytes of the application that stand, encrypted, at the end of `outgoing` or have left it, and that it was not told of.
    held_back: usize,
    /// The peer said that nothing follows.
    ended: bool,
    /// What comes behind the plaintext that was there before it.
    failure: Option<io::Error>,
    /// We did, or the connection failed. From then on rustls is not called again: it does not expect that.
    is_over: bool,
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl TlsStream {
    /// TLS over `socket`, on which nothing was said yet.
    pub(crate) fn new(
        socket: RawSocket,
        connection: UnbufferedServerConnection,
        endpoint: Arc<Endpoint>,
        handshake: HandshakeGuard,
    ) -> Self {
        Self {
            socket,
            connection,
            endpoint,
            handshake: Some(handshake),
            answered: false,
            ticket_checked: false,
            incoming: Vec::new(),
            plaintext: Vec::new(),
            outgoing: Vec::new(),
            held_back: 0,
            ended: false,
            failure: None,
            is_over: false,
        }
    }

    /// What is below.
    #[must_use]
    pub fn socket(&self) -> &RawSocket {
        &self.socket
    }

    /// Whether the handshake is still to be finished.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.handshake.is_some()
    }

    /// Whether the client's first message was answered, which is what the private key's work goes into.
    #[must_use]
    pub fn is_past_first_flight(&self) -> bool {
        self.answered
    }

    /// Whom the client's certificate names, as the listener reads it. `None` before the handshake is done, or if there is
    /// nobody to name.
    #[must_use]
    pub fn certified(&self) -> Option<Arc<str>> {
        if self.is_handshaking() {
            return None;
        }
        self.endpoint.name_in(self.connection.peer_certificates()?.first()?)
    }

    /// See [`super::Transport::poll_read`]. An end without the peer's close_notify is an end all the same: MQTT says itself
    /// where a packet is complete, and whether a client meant to leave. For the same reason what came before a failure is read
    /// before it.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.plaintext.is_empty() {
                let count = self.plaintext.len().min(buffer.remaining());
                buffer.put_slice(&self.plaintext[..count]);
                self.plaintext.drain(..count);
                if self.plaintext.is_empty() {
                    self.plaintext = Vec::new();
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = self.failure.take() {
                return Poll::Ready(Err(error));
            }
            if self.ended || self.is_over {
                return Poll::Ready(Ok(()));
            }
            let before = buffer.filled().len();
            self.failure = ready!(self.poll_records(cx, buffer)).err();
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// See [`super::Transport::poll_write_ready`].
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write_ready(cx)
    }

    /// See [`super::Transport::try_write`].
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(outcome) = self.write_again() {
            return outcome;
        }
        let count = bytes.len().min(RECORD_PLAINTEXT_BYTES_MAX);
        SEALING.with_borrow_mut(|(_, record)| self.write_record(&bytes[..count], record))
    }

    /// See [`super::Transport::try_write_vectored`]. The pieces become one record as far as they fit.
    pub fn try_write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Some(outcome) = self.write_again() {
            return outcome;
        }
        SEALING.with_borrow_mut(|(gathered, record)| {
            gathered.clear();
            for piece in pieces {
                let room = RECORD_PLAINTEXT_BYTES_MAX - gathered.len();
                gathered.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            self.write_record(gathered, record)
        })
    }

    /// Says that nothing follows (close_notify), if the socket takes that now and it was not said before.
    pub fn say_end(&mut self) {
        if self.is_over || self.is_handshaking() {
            return;
        }
        // The peer may have gone first; then there is nothing left to say.
        drop(self.send_outgoing());
        if self.outgoing.is_empty() {
            let mut alert = [0; 64];
            let count = self.with_traffic(|traffic| traffic.queue_close_notify(&mut alert).unwrap_or(0)).unwrap_or(0);
            drop(self.socket.try_write(&alert[..count]));
        }
        self.is_over = true;
    }

    /// One read of the socket, and everything in it opened.
    fn poll_records(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.outgoing.is_empty() {
            self.send_outgoing()?;
            ready!(self.poll_room(cx))?;
        }
        OPENING.with_borrow_mut(|scratch| {
            let held = self.incoming.len();
            let wanted = buffer.remaining().clamp(READ_BYTES_MIN, READ_BYTES_MAX);
            if scratch.len() < held + wanted {
                scratch.resize((held + wanted).max(READ_BYTES_MAX + RECORD_BYTES_MAX), 0);
            }
            let mut read = ReadBuf::new(&mut scratch[held..held + wanted]);
            ready!(self.socket.poll_read(cx, &mut read))?;
            let count = read.filled().len();
            if count == 0 {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            scratch[..held].copy_from_slice(&self.incoming);
            let filled = held + count;
            let opened = self.open(&mut scratch[..filled], buffer);
            // Also of an alert that says what was wrong.
            let sent = self.send_outgoing();
            let consumed = opened?;
            sent?;
            self.keep(&scratch[consumed..filled])?;
            // For the waker only: what was opened must reach the reader now.
            let _ = self.poll_room(cx)?;
            Poll::Ready(Ok(()))
        })
    }

    /// Has the task woken when more of `outgoing` can leave; `Pending` only if too much of it waits.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() && self.socket.poll_write_ready(cx)?.is_ready() {
            self.send_outgoing()?;
        }
        if self.outgoing.len() > OUTGOING_BYTES_MAX { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Keeps what is left of `incoming`.
    fn keep(&mut self, rest: &[u8]) -> io::Result<()> {
        let most = if self.is_handshaking() { HANDSHAKE_BYTES_MAX } else { RECORD_BYTES_MAX };
        if rest.len() > most {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than any message of TLS has"));
        }
        if rest.is_empty() {
            self.incoming = Vec::new();
        } else {
            self.incoming.clear();
            self.incoming.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Opens all whole records in `records` and returns how many bytes are done with.
    fn open(&mut self, records: &mut [u8], buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        let mut consumed = 0;
        let mut failure = None;
        // Before rustls works on them.
        let spoken = Spoken::of(records).filter(|&spoken| self.is_handshaking() && spoken != Spoken::Tls);
        // After a failure only for the alert that tells the peer: rustls panics if it finds more to read then.
        while failure.is_none() || self.connection.wants_write() {
            let status = self.connection.process_tls_records(&mut records[consumed..]);
            let mut discard = status.discard;
            let mut waits = false;
            match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = match record {
                            Ok(record) => record,
                            Err(error) => {
                                failure = Some(error);
                                break;
                            }
                        };
                        discard += record.discard;
                        let fits = record.payload.len().min(buffer.remaining());
                        buffer.put_slice(&record.payload[..fits]);
                        self.plaintext.extend_from_slice(&record.payload[fits..]);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode_message(&mut self.outgoing, &mut data)?;
                    self.answered = true;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => self.ended = true,
                Ok(_) => waits = true,
                Err(error) => failure = Some(error),
            }
            consumed += discard;
            if failure.is_none()
                && let Err(error) = self.check_ticket()
            {
                // Nothing was sent yet by which the client could think that it is let in, or get another ticket.
                self.outgoing = refusal(&error);
                failure = Some(error);
                break;
            }
            if waits || self.ended {
                break;
            }
        }
        if let Some(handshake) = self.handshake.take_if(|_| !self.connection.is_handshaking()) {
            handshake.done(matches!(self.connection.handshake_kind(), Some(HandshakeKind::Resumed)));
        }
        if let Some(error) = failure {
            self.is_over = true;
            if let Some(handshake) = &mut self.handshake {
                handshake.failed(&error, spoken);
            }
            return Err(match spoken {
                Some(spoken) => {
                    io::Error::new(io::ErrorKind::InvalidData, format!("the client speaks {spoken} without it"))
                }
                None => broken(error),
            });
        }
        Ok(consumed)
    }

    /// Looks at the certificate of a client that comes by a ticket, once that is known. rustls takes it as it is.
    fn check_ticket(&mut self) -> Result<(), rustls::Error> {
        if self.ticket_checked || self.connection.handshake_kind() != Some(HandshakeKind::Resumed) {
            return Ok(());
        }
        self.ticket_checked = true;
        self.endpoint.check_again(self.connection.peer_certificates().unwrap_or_default())
    }

    /// First what was taken up before. `None`: nothing of it is left, and new bytes may come.
    fn write_again(&mut self) -> Option<io::Result<usize>> {
        if !self.outgoing.is_empty() {
            let progress = match self.send_outgoing() {
                Ok(progress) => progress,
                Err(error) => return Some(Err(error)),
            };
            if !self.outgoing.is_empty() {
                return Some(self.release(progress));
            }
        }
        match mem::take(&mut self.held_back) {
            0 => None,
            count => Some(Ok(count)),
        }
    }

    fn write_record(&mut self, plaintext: &[u8], record: &mut Vec<u8>) -> io::Result<usize> {
        if self.is_handshaking() || self.is_over {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the TLS connection is not open"));
        }
        record.clear();
        self.with_traffic(|traffic| {
            encode(record, plaintext.len() + RECORD_OVERHEAD_BYTES, |room| match traffic.encrypt(plaintext, room) {
                Ok(count) => Ok(count),
                Err(EncryptError::InsufficientSize(needed)) => Err(Some(needed.required_size)),
                Err(EncryptError::EncryptExhausted) => Err(None),
            })
        })??;
        // What opening the way to `traffic` brought up goes first.
        let written = if self.outgoing.is_empty() { self.try_send(record)? } else { 0 };
        if written == record.len() {
            return Ok(plaintext.len());
        }
        self.outgoing.extend_from_slice(&record[written..]);
        self.held_back = plaintext.len();
        self.release(written)
    }

    /// Tells the application of as many of its bytes as have left at the least, and never of all while some of them have not.
    fn release(&mut self, progress: usize) -> io::Result<usize> {
        let released = progress.min(self.held_back.saturating_sub(1));
        if released == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.held_back -= released;
        Ok(released)
    }

    /// Calls `act` with the state in which application data may be written.
    fn with_traffic<R>(
        &mut self,
        mut act: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>) -> R,
    ) -> io::Result<R> {
        loop {
            // With what waits to be completed: rustls knows where in it it stopped.
            let status = self.connection.process_tls_records(&mut self.incoming);
            let discard = status.discard;
            let mut done = None;
            let state = status.state.map_err(|error| {
                self.is_over = true;
                broken(error)
            });
            match state? {
                ConnectionState::WriteTraffic(mut traffic) => done = Some(act(&mut traffic)),
                ConnectionState::EncodeTlsData(mut data) => {
                    encode_message(&mut self.outgoing, &mut data)?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.ended = true,
                _ => return Err(io::ErrorKind::NotConnected.into()),
            }
            self.incoming.drain(..discard);
            if let Some(done) = done {
                return Ok(done);
            }
        }
    }

    /// Sends what it can of `outgoing`; returns how many bytes.
    fn send_outgoing(&mut self) -> io::Result<usize> {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match self.try_send(&self.outgoing[sent..])? {
                0 => break,
                count => sent += count,
            }
        }
        if sent == self.outgoing.len() {
            self.outgoing = Vec::new();
        } else {
            self.outgoing.drain(..sent);
        }
        Ok(sent)
    }

    /// Writes what the socket takes; none is no error.
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.try_write(bytes) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            outcome => outcome,
        }
    }
}

/// Appends what `write` puts into the room it is given, `room` bytes at first; it says how much it needs, or `None` if it
/// cannot at all.
fn encode(
    target: &mut Vec<u8>,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> io::Result<()> {
    let start = target.len();
    loop {
        target.resize(start + room, 0);
        match write(&mut target[start..]) {
            Ok(count) => {
                target.truncate(start + count);
                return Ok(());
            }
            Err(Some(needed)) if needed > room => room = needed,
            Err(_) => {
                target.truncate(start);
                return Err(io::Error::other("the TLS connection can send no more"));
            }
        }
    }
}

/// Appends a message of the protocol itself.
fn encode_message(target: &mut Vec<u8>, data: &mut EncodeTlsData<'_, ServerConnectionData>) -> io::Result<()> {
    encode(target, 0, |room| match data.encode(room) {
        Ok(count) => Ok(count),
        Err(EncodeError::InsufficientSize(needed)) => Err(Some(needed.required_size)),
        Err(EncodeError::AlreadyEncoded) => Err(None),
    })
}

/// Why a certificate is not taken, in the clear: the answer to the first message of a client.
fn refusal(error: &rustls::Error) -> Vec<u8> {
    let description = match error {
        rustls::Error::InvalidCertificate(error) => error.clone().into(),
        _ => AlertDescription::CertificateUnknown,
    };
    [&ALERT_HEADER[..], &[description.into()]].concat()
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

    use super::*;
    use crate::config::TlsConfig;
    use crate::tls::{Files, Handshakes};

    /// As small as the kernel has them: a few records at the most.
    const SOCKET_BYTES: usize = 4 * 1024;

    /// What [`crate::connection::OutBuffer`] may have waiting at a time, growing while it is written.
    const WAITING_BYTES: [usize; 6] = [1, 700, 16 * 1024, 40_000, 3, 16 * 1024 + 1];

    fn ends() -> (TlsStream, StreamOwned<ClientConnection, UnixStream>) {
        let directory = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed([String::from("localhost")]).unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("crt"), own.cert.pem()).unwrap();
        std::fs::write(path("key"), own.signing_key.serialize_pem()).unwrap();
        let config =
            TlsConfig { certificate_file: Some(path("crt")), key_file: Some(path("key")), ..TlsConfig::default() };
        let endpoint = Endpoint::new(&config, &Files::read(&config), Arc::new(Handshakes::default()), None).unwrap();
        let (server, client) = UnixStream::pair().unwrap();
        socket2::SockRef::from(&server).set_send_buffer_size(SOCKET_BYTES).unwrap();
        server.set_nonblocking(true).unwrap();
        let socket = RawSocket::Unix(tokio::net::UnixStream::from_std(server).unwrap());
        let handshake = endpoint.begin_handshake(None).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client_config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client_config = client_config.unwrap().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(client_config), name).unwrap();
        (Arc::new(endpoint).accept(socket, handshake).unwrap(), StreamOwned::new(connection, client))
    }

    /// Until the handshake is done, or the client's end of it is.
    async fn shake_hands(stream: &mut TlsStream) {
        let mut room = [0; 1024];
        poll_fn(|cx| {
            let polled = stream.poll_read(cx, &mut ReadBuf::new(&mut room));
            assert!(polled.is_pending() || stream.is_handshaking(), "{polled:?}");
            if stream.is_handshaking() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// What comes from then on is worth more than another first message.
    #[test]
    fn a_handshake_is_past_its_first_flight_before_it_is_done() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let (mut stream, mut client) = ends();
            assert!(stream.is_handshaking() && !stream.is_past_first_flight());
            client.conn.write_tls(&mut client.sock).unwrap();
            poll_fn(|cx| {
                let mut room = [0; 64];
                assert!(stream.poll_read(cx, &mut ReadBuf::new(&mut room)).is_pending());
                if stream.is_past_first_flight() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert!(stream.is_handshaking());
        });
    }

    /// A client may say all it has to say and an alert behind it, in one segment: what it said counts (P9).
    #[test]
    fn what_came_before_a_failure_is_read_before_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            for buffer_bytes in [100, 3] {
                let (mut stream, mut client) = ends();
                let writer = std::thread::spawn(move || {
                    while client.conn.is_handshaking() {
                        client.conn.complete_io(&mut client.sock).unwrap();
                    }
                    client.conn.writer().write_all(b"DISCONNECT").unwrap();
                    let mut segment = Vec::new();
                    client.conn.write_tls(&mut segment).unwrap();
                    // No record of this connection.
                    segment.extend([23, 3, 3, 0, 20]);
                    segment.extend([0; 20]);
                    client.sock.write_all(&segment).unwrap();
                    client
                });
                let mut read = Vec::new();
                let error = loop {
                    let mut room = vec![0; buffer_bytes];
                    let mut buffer = ReadBuf::new(&mut room);
                    match poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await {
                        Ok(()) => assert!(!buffer.filled().is_empty(), "an end, behind {read:?}"),
                        Err(error) => break error,
                    }
                    read.extend_from_slice(buffer.filled());
                };
                assert_eq!(read, b"DISCONNECT");
                assert!(!stream.is_handshaking(), "that was over before");
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                drop(writer.join().unwrap());
            }
        });
    }

    /// Has all of `bytes` written, as an out-buffer does that grows meanwhile. Returns how often the socket took no more.
    async fn write(stream: &mut TlsStream, bytes: &[u8]) -> usize {
        let (mut written, mut end, mut turn, mut refusals) = (0, 0, 0, 0);
        while written < bytes.len() {
            if written == end {
                end += WAITING_BYTES[turn % WAITING_BYTES.len()];
                turn += 1;
            }
            end = (end + turn % 2).min(bytes.len());
            let waiting = &bytes[written..end];
            let (head, tail) = waiting.split_at(waiting.len() / 3);
            let outcome = match turn % 3 {
                0 => stream.try_write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]),
                _ => stream.try_write(waiting),
            };
            match outcome {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    refusals += 1;
                    poll_fn(|cx| stream.poll_write_ready(cx)).await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        refusals
    }

    /// The socket takes no more in the middle of a record, over and over: nothing is lost, doubled or stuck, whatever is told of
    /// bytes that were taken up and not sent.
    #[test]
    fn what_is_written_to_a_socket_that_takes_little_comes_whole_and_in_order() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let bursts: Vec<Vec<u8>> = (0..80u32)
            .map(|burst| (0..20_000 + burst * 1013).map(|number| (number * 31 + burst) as u8).collect())
            .collect();
        runtime.block_on(async {
            let (mut stream, mut client) = ends();
            let (came, comes) = std::sync::mpsc::channel();
            let expected = bursts.clone();
            let reader = std::thread::spawn(move || {
                for burst in expected {
                    let mut received = vec![0; burst.len()];
                    client.read_exact(&mut received).unwrap();
                    assert!(received == burst, "a burst of {} bytes", burst.len());
                    came.send(()).unwrap();
                }
            });
            shake_hands(&mut stream).await;
            let mut refusals = 0;
            for burst in &bursts {
                refusals += write(&mut stream, burst).await;
                // Nobody writes again before all of it is there.
                comes.recv_timeout(Duration::from_secs(10)).unwrap();
            }
            // How often depends on who of the two has the core.
            assert!(refusals > 0, "the socket was to take little");
            reader.join().unwrap();
        });
    }
}
