//! MQTT over WebSocket (MQTT 5, section 6): a layer over a byte stream that makes another one of it.
//!
//! Below is a socket, or TLS over one. Above, the connection's actor reads and writes MQTT as if there were nothing in
//! between: what is read lies in the reader's own buffer, and what is written gets a header for as much as waits and goes
//! out as it stands. So a connection that is idle holds no buffer here.
//!
//! A frame is begun when it is first offered to the stream below, and goes on until all of it is taken: a layer that
//! encrypts may have taken bytes of which it says so later only. What this layer itself has to say, the response to the
//! request, Pongs and a Close, goes out between frames.
//!
//! Whatever ends it, the last word is said by [`WebSocket::finish`] only: whether the connection is closed in an orderly way or
//! broken off is not for this layer to know (P9).
//!
//! Its parts are plain functions of bytes: [`handshake`], the HTTP request at the beginning, and [`frames`].

pub mod frames;
pub mod handshake;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::ReadBuf;

use super::{Spoken, Transport};
use frames::{Decoded, Decoder, Header, Opcode, Sender, Violation};
use handshake::{Answer, HEAD_BYTES_MAX, Refusal, Rules};

/// Reads that bring no payload, before others have their turn.
const EMPTY_READS_MAX: usize = 16;

/// Pieces of one write, the frame's header aside.
const PIECES_MAX: usize = 32;

/// Pongs and the like that wait for a stream that takes nothing. One more Pong is left out.
const OWN_BYTES_MAX: usize = 512;

/// How we say that nothing is wrong.
const NORMAL_CLOSURE: u16 = 1000;

/// Why a connection ends here. The client's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WebSocketError {
    /// The request was not granted.
    #[error("no WebSocket was opened: {0}")]
    Refused(Refusal),
    /// It was none, but something else that is known.
    #[error("the client speaks {0}, and here is WebSocket: it has the wrong port, or must be told to use a WebSocket")]
    Foreign(Spoken),
    /// A frame was wrong.
    #[error("WebSocket: {0}")]
    Violation(Violation),
}

/// What a listener asks of its WebSocket clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Of the request.
    pub rules: Rules,
    /// Payload of one frame.
    pub frame_bytes_max: u64,
}

#[derive(Debug)]
enum Stage {
    /// The request has not come, or not all of it.
    Request(Box<Request>),
    Open,
    /// Nothing is read any more.
    Ended(End),
    /// And nothing is written.
    Finished,
}

#[derive(Debug)]
struct End {
    /// If it was somebody's fault, whose.
    error: Option<WebSocketError>,
    /// The answer to it.
    last_word: Vec<u8>,
}

#[derive(Debug)]
struct Request {
    head: Vec<u8>,
    terms: Arc<Terms>,
    peer: Option<SocketAddr>,
}

/// A WebSocket, seen from the server.
#[derive(Debug)]
pub struct WebSocket {
    under: Transport,
    stage: Stage,
    decoder: Decoder,
    /// Came behind the request, and was not looked at yet.
    early: Vec<u8>,
    /// What we have to say that is no MQTT.
    own: Vec<u8>,
    /// Of it, bytes that are written.
    own_written: usize,
    /// Who reads, while that waits for the end of a frame: reading is what sends it.
    own_waits: Option<Waker>,
    /// The header of the frame that is being written.
    header: Header,
    header_written: usize,
    /// Bytes of its payload that are still to come. 0 between frames.
    payload_left: usize,
    forwarded_for: Option<SocketAddr>,
}

impl WebSocket {
    /// Over `under`, on which nothing was said yet. `peer` is who is at its other end.
    #[must_use]
    pub fn new(under: Transport, terms: Arc<Terms>, peer: Option<SocketAddr>) -> Self {
        Self {
            under,
            decoder: Decoder::new(Sender::Client, terms.frame_bytes_max),
            stage: Stage::Request(Box::new(Request { head: Vec::new(), terms, peer })),
            early: Vec::new(),
            own: Vec::new(),
            own_written: 0,
            own_waits: None,
            header: Header::default(),
            header_written: 0,
            payload_left: 0,
            forwarded_for: None,
        }
    }

    /// The stream below.
    #[must_use]
    pub fn under(&self) -> &Transport {
        &self.under
    }

    /// Where the client is, if a proxy that is believed said so.
    #[must_use]
    pub fn forwarded_for(&self) -> Option<SocketAddr> {
        self.forwarded_for
    }

    /// See [`Transport::poll_read`]. What the client did wrong comes as an error with a [`WebSocketError`] in it; the client
    /// is told by [`Self::finish`].
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        for _ in 0..EMPTY_READS_MAX {
            self.poll_own(cx)?;
            match &self.stage {
                Stage::Ended(End { error: Some(error), .. }) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, *error)));
                }
                Stage::Ended(_) | Stage::Finished => return Poll::Ready(Ok(())),
                Stage::Request(_) | Stage::Open => {}
            }
            let before = buffer.filled().len();
            if self.early.is_empty() {
                ready!(self.under.poll_read(cx, buffer))?;
            } else {
                let count = self.early.len().min(buffer.remaining());
                buffer.put_slice(&self.early[..count]);
                self.early = self.early.split_off(count);
            }
            let bytes = &mut buffer.filled_mut()[before..];
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let payload_bytes = if let Stage::Request(request) = &mut self.stage {
                let answer = request.push(bytes);
                self.on_answer(answer);
                0
            } else {
                let decoded = self.decoder.decode(bytes);
                self.on_decoded(decoded)
            };
            buffer.set_filled(before + payload_bytes);
            if payload_bytes > 0 {
                // What is owed goes out soon enough: whoever reads comes until it hears `Pending`.
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn on_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Incomplete => {}
            Answer::Open(opening) => {
                if let Stage::Request(request) = std::mem::replace(&mut self.stage, Stage::Open) {
                    self.early = request.head[opening.request_bytes..].to_vec();
                }
                self.own = opening.response;
                self.forwarded_for = opening.forwarded_for;
            }
            Answer::Refused(refusal) => {
                let spoken = match &self.stage {
                    Stage::Request(request) => Spoken::of(&request.head).filter(|&spoken| spoken != Spoken::Http),
                    _ => None,
                };
                let error = Some(spoken.map_or(WebSocketError::Refused(refusal), WebSocketError::Foreign));
                self.stage = Stage::Ended(End { error, last_word: refusal.response() });
            }
        }
    }

    /// Returns how much payload there is.
    fn on_decoded(&mut self, decoded: Decoded) -> usize {
        if let Some(ping) = self.decoder.take_ping()
            && self.own.len() <= OWN_BYTES_MAX
        {
            frames::encode_pong(ping, &mut self.own);
        }
        if let Some(end) = decoded.end {
            let mut last_word = Vec::new();
            let (error, code) = match end {
                frames::End::Closed(code) => (None, code),
                frames::End::Violated(violation) => {
                    (Some(WebSocketError::Violation(violation)), Some(violation.code()))
                }
            };
            frames::encode_close(code, &mut last_word);
            self.stage = Stage::Ended(End { error, last_word });
        }
        decoded.payload_bytes
    }

    /// Writes what is ours, and sees to it that the task is woken to go on.
    fn poll_own(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.own.is_empty() && self.payload_left == 0 {
            match self.write_own() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.under.poll_write_ready(cx) {
                    Poll::Ready(outcome) => outcome?,
                    Poll::Pending => return Ok(()),
                },
                Err(error) => return Err(error),
            }
        }
        if !self.own.is_empty() {
            self.own_waits = Some(cx.waker().clone());
        }
        Ok(())
    }

    fn write_own(&mut self) -> io::Result<()> {
        while self.own_written < self.own.len() {
            match self.under.try_write(&self.own[self.own_written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.own_written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.own = Vec::new();
        self.own_written = 0;
        Ok(())
    }

    /// See [`Transport::poll_write_ready`].
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.under.poll_write_ready(cx)
    }

    /// See [`Transport::try_write`].
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write_vectored(&[IoSlice::new(bytes)])
    }

    /// See [`Transport::try_write`]. All pieces are one frame.
    pub fn try_write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.stage {
            Stage::Open => {}
            // Until we say so too, nothing keeps us from finishing what we have to say (RFC 6455, 5.5.1).
            Stage::Ended(End { error, .. })
                if !matches!(error, Some(WebSocketError::Refused(_) | WebSocketError::Foreign(_))) => {}
            Stage::Request(_) | Stage::Ended(_) | Stage::Finished => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        let pieces = &pieces[..pieces.len().min(PIECES_MAX)];
        if self.payload_left == 0 {
            self.write_own()?;
            let payload_bytes = pieces.iter().map(|piece| piece.len()).sum();
            if payload_bytes == 0 {
                return Ok(0);
            }
            self.header = Header::new(Opcode::Binary, payload_bytes);
            self.header_written = 0;
            self.payload_left = payload_bytes;
        }
        loop {
            let header = &self.header.as_slice()[self.header_written..];
            let mut slices = [IoSlice::new(&[]); PIECES_MAX + 1];
            slices[0] = IoSlice::new(header);
            let (mut count, mut room) = (1, self.payload_left);
            for piece in pieces {
                let piece = &piece[..piece.len().min(room)];
                if piece.is_empty() {
                    continue;
                }
                slices[count] = IoSlice::new(piece);
                count += 1;
                room -= piece.len();
            }
            let from = usize::from(header.is_empty());
            let written = self.under.try_write_vectored(&slices[from..count])?;
            if written == 0 {
                return Ok(0);
            }
            let of_header = written.min(header.len());
            self.header_written += of_header;
            self.payload_left -= written - of_header;
            if self.payload_left == 0
                && let Some(waker) = self.own_waits.take()
            {
                waker.wake();
            }
            if written > of_header {
                return Ok(written - of_header);
            }
        }
    }

    /// Ends our side of the stream. What is left to be said is said before, as far as there is room for it now: whoever takes
    /// not even that does not wait for it. May be called again.
    pub fn finish(&mut self) {
        let last_word = match std::mem::replace(&mut self.stage, Stage::Finished) {
            Stage::Request(_) | Stage::Finished => Vec::new(),
            Stage::Open => {
                let mut close = Vec::new();
                frames::encode_close(Some(NORMAL_CLOSURE), &mut close);
                close
            }
            Stage::Ended(end) => end.last_word,
        };
        if self.payload_left == 0 {
            self.own.extend_from_slice(&last_word);
            // The stream below is shut down whatever comes of it.
            let _ = self.write_own();
        }
        self.under.shut_down_write();
    }
}

impl Request {
    /// Takes more of the request.
    fn push(&mut self, bytes: &[u8]) -> Answer {
        let is_first = self.head.is_empty();
        self.head.extend_from_slice(bytes);
        // Only a line's end can bring anything new, and the bound: who sends byte after byte makes little work.
        if is_first || bytes.contains(&b'\n') || self.head.len() >= HEAD_BYTES_MAX {
            handshake::answer(&self.head, &self.terms.rules, self.peer)
        } else {
            Answer::Incomplete
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::connection::MemoryStream;

    const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames::encode_masked(opcode, payload, [1, 2, 3, 4], &mut bytes);
        bytes
    }

    /// A WebSocket and the client's end of the stream below it.
    struct Ends {
        ours: WebSocket,
        theirs: MemoryStream,
    }

    impl Ends {
        fn new(stream_bytes_max: usize) -> Self {
            let (below, theirs) = MemoryStream::pair(stream_bytes_max);
            let rules = Rules { path: String::from("/mqtt"), ..Rules::default() };
            let terms = Arc::new(Terms { rules, frame_bytes_max: 1000 });
            Self { ours: WebSocket::new(Transport::Memory(below), terms, None), theirs }
        }

        /// One whose request was granted.
        fn open(stream_bytes_max: usize) -> Self {
            let mut ends = Self::new(stream_bytes_max);
            for piece in REQUEST.chunks(stream_bytes_max) {
                ends.say(piece);
                assert!(ends.read().is_pending());
            }
            let mut response = ends.hear();
            while !response.ends_with(b"\r\n\r\n") {
                assert!(ends.read().is_pending());
                response.extend(ends.hear());
            }
            assert!(response.starts_with(b"HTTP/1.1 101 "));
            ends
        }

        fn say(&self, bytes: &[u8]) {
            assert_eq!(self.theirs.try_write(bytes).unwrap(), bytes.len());
        }

        /// Everything that can be heard now.
        fn hear(&self) -> Vec<u8> {
            let mut heard = Vec::new();
            let mut buffer = [0; 1000];
            while let Ok(count @ 1..) = self.theirs.try_read(&mut buffer) {
                heard.extend_from_slice(&buffer[..count]);
            }
            heard
        }

        fn read(&mut self) -> Poll<io::Result<Vec<u8>>> {
            self.read_by(Waker::noop())
        }

        fn read_by(&mut self, waker: &Waker) -> Poll<io::Result<Vec<u8>>> {
            let mut bytes = [0; 1000];
            let mut buffer = ReadBuf::new(&mut bytes);
            let outcome = self.ours.poll_read(&mut Context::from_waker(waker), &mut buffer);
            outcome.map_ok(|()| buffer.filled().to_vec())
        }

        fn read_now(&mut self) -> Vec<u8> {
            match self.read() {
                Poll::Ready(Ok(bytes)) => bytes,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_comes_with_the_request_is_read_after_it() {
        let mut ends = Ends::new(10_000);
        ends.say(&[REQUEST, &frame(Opcode::Binary, b"hello"), &frame(Opcode::Binary, b" there")].concat());
        assert_eq!(ends.read_now(), b"hello there");
        assert!(ends.read().is_pending());
        assert!(ends.hear().starts_with(b"HTTP/1.1 101 "));
    }

    /// A stream that takes a few bytes at a time, as a socket under pressure does.
    #[test]
    fn a_frame_is_finished_before_anything_else_is_said() {
        let mut ends = Ends::open(40);
        let payload: Vec<u8> = (0..700_u32).map(|number| number as u8).collect();
        let (mut written, mut heard) = (0, Vec::new());
        let pieces = |from: usize| {
            let middle = from.max(300);
            [IoSlice::new(&payload[from..middle]), IoSlice::new(&payload[middle..])]
        };
        let mut pinged = false;
        while written < payload.len() {
            match ends.ours.try_write_vectored(&pieces(written)) {
                Ok(count) => written += count,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    if !pinged {
                        ends.say(&frame(Opcode::Ping, b"there?"));
                        pinged = true;
                    }
                    // There is room again before the Ping is read: not the place for a Pong all the same.
                    heard.extend(ends.hear());
                    assert!(ends.read().is_pending());
                }
            }
        }
        heard.extend(ends.hear());
        assert!(ends.read().is_pending(), "the Pong goes out");
        heard.extend(ends.hear());
        let mut decoder = Decoder::new(Sender::Server, u64::MAX);
        let whole = [Header::new(Opcode::Binary, 700).as_slice(), &payload, b"\x8A\x06there?"].concat();
        assert_eq!(heard, whole, "one frame, and the Pong behind it");
        assert_eq!(decoder.decode(&mut heard), Decoded { payload_bytes: 700, end: None });
    }

    /// Nothing else comes that would have the connection read.
    #[test]
    fn a_pong_that_waits_for_the_end_of_a_frame_goes_out_behind_it() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let is_woken = || woken.0.swap(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&woken));
        let mut ends = Ends::open(40);
        assert_eq!(ends.ours.try_write(&[7; 60]).unwrap(), 38, "all that there is room for");
        ends.say(&frame(Opcode::Ping, b"there?"));
        assert!(ends.read_by(&waker).is_pending());
        assert_eq!(ends.hear().len(), 40);
        is_woken();
        assert_eq!(ends.ours.try_write(&[7; 22]).unwrap(), 22);
        assert!(is_woken(), "there is something to be said now");
        assert!(ends.read_by(&waker).is_pending());
        assert_eq!(ends.hear().split_off(22), b"\x8A\x06there?");
        assert_eq!(ends.ours.try_write(b"x").unwrap(), 1);
        assert!(!is_woken(), "nothing waits");
    }

    #[test]
    fn pings_are_answered_without_a_limit_on_what_waits_being_passed() {
        let mut ends = Ends::open(200);
        for _ in 0..100 {
            ends.say(&frame(Opcode::Ping, &[b'x'; 100]));
            assert!(ends.read().is_pending());
        }
        assert!(ends.ours.own.len() <= OWN_BYTES_MAX + 127);
        let mut heard = ends.hear();
        while ends.read().is_pending() && !ends.ours.own.is_empty() {
            heard.extend(ends.hear());
        }
        assert!(heard.starts_with(&[0x8A, 100]));
    }

    /// P9: whether the end is an orderly one, the connection knows, so the answer to a Close waits for it.
    #[test]
    fn a_close_is_answered_when_the_connection_has_ended() {
        let mut ends = Ends::open(10_000);
        ends.say(&[frame(Opcode::Binary, b"DISCONNECT"), frame(Opcode::Close, b"\x03\xE8")].concat());
        assert_eq!(ends.read_now(), b"DISCONNECT");
        assert_eq!(ends.read_now(), b"", "nothing follows");
        assert_eq!(ends.hear(), b"");
        assert_eq!(ends.ours.try_write(b"PUBACK").unwrap(), 6, "what was owed is still said");
        ends.ours.finish();
        ends.ours.finish();
        assert_eq!(ends.hear(), b"\x82\x06PUBACK\x88\x02\x03\xE8");
        assert_eq!(ends.ours.try_write(b"late").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_a_client_did_wrong_it_is_told_and_so_are_we() {
        for (bytes, error, last_word) in [
            (frame(Opcode::Text, b"hello"), Violation::Text, b"\x88\x02\x03\xEB"),
            (frame(Opcode::Binary, &[0; 1001]), Violation::TooLong, b"\x88\x02\x03\xF1"),
            (b"\x82\x01x".to_vec(), Violation::Unmasked, b"\x88\x02\x03\xEA"),
        ] {
            let mut ends = Ends::open(10_000);
            ends.say(&bytes);
            let Poll::Ready(Err(found)) = ends.read() else {
                panic!("not refused");
            };
            let found = found.get_ref().and_then(|inner| inner.downcast_ref::<WebSocketError>());
            assert_eq!(found, Some(&WebSocketError::Violation(error)));
            ends.ours.finish();
            assert_eq!(ends.hear(), last_word);
        }
    }

    #[test]
    fn a_request_that_is_not_granted_is_answered_at_the_end() {
        let mut ends = Ends::new(10_000);
        ends.say(b"GET /elsewhere HTTP/1.1\r\nHost: broker\r\n\r\n");
        assert!(matches!(ends.read(), Poll::Ready(Err(_))));
        assert_eq!(ends.ours.try_write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        ends.ours.finish();
        assert!(ends.hear().starts_with(b"HTTP/1.1 404 Not Found\r\n"));
    }

    #[test]
    fn an_end_of_ours_is_a_normal_closure() {
        let mut ends = Ends::open(10_000);
        assert_eq!(ends.ours.try_write(b"x").unwrap(), 1);
        ends.ours.finish();
        assert_eq!(ends.hear(), b"\x82\x01x\x88\x02\x03\xE8");
    }
}
