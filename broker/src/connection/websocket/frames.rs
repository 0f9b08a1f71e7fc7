//! WebSocket frames (RFC 6455, section 5), as a plain function of bytes.
//!
//! MQTT sees a stream of bytes: where frames begin and end means nothing to it [MQTT-6.0.0-2]. So a frame is never
//! gathered. [`Decoder::decode`] takes whatever the socket gave, unmasks it where it stands and moves the payload together
//! at the front; between two calls it remembers a few numbers and at most one control frame. A frame of any length costs
//! nothing before its bytes are there.
//!
//! Why no library: tungstenite and those built on it hand out whole messages in buffers of their own, reserved by the
//! length that the header claims, and take whole messages to write. Here the reader's buffer is one for all connections of
//! a thread, and what is written stays where it was encoded.

use std::fmt;

/// The longest payload of a control frame (section 5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// Two bytes, a length of eight and a mask of four.
const HEADER_BYTES_MAX: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a frame is (section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Goes on with the message before.
    Continuation = 0,
    /// UTF-8, which MQTT does not use.
    Text = 1,
    /// What carries MQTT [MQTT-6.0.0-1].
    Binary = 2,
    /// The last one in its direction.
    Close = 8,
    /// To be answered by a Pong.
    Ping = 9,
    /// The answer.
    Pong = 10,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        [Self::Continuation, Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong]
            .into_iter()
            .find(|&opcode| opcode as u8 == bits)
    }

    fn is_control(self) -> bool {
        self as u8 & 8 != 0
    }
}

/// Whose frames a decoder reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// All of them are masked.
    Client,
    /// None is.
    Server,
}

/// What the peer did wrong, by which the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// A client must mask (section 5.1).
    #[error("a frame of a client without a mask")]
    Unmasked,
    /// A server must not.
    #[error("a frame of a server with a mask")]
    Masked,
    /// No extension was agreed upon.
    #[error("reserved bits in the header of a frame")]
    ReservedBits,
    /// An opcode that has no meaning.
    #[error("a frame with a reserved opcode")]
    ReservedOpcode,
    /// A control frame in pieces, or one of more than 125 bytes.
    #[error("a control frame in fragments, or of more than 125 bytes")]
    Control,
    /// A continuation of nothing, or a new message within one.
    #[error("a fragment out of place")]
    Fragment,
    /// A length that would have fitted into fewer bytes, or of more than 63 bits.
    #[error("a frame's length in more bytes than it needs")]
    Length,
    /// A Close frame with half a code, or one that may not be sent.
    #[error("a close frame with a code that means nothing")]
    CloseCode,
    /// A Close frame whose reason is not UTF-8.
    #[error("a close frame whose reason is not UTF-8")]
    CloseReason,
    /// MQTT is in binary frames only [MQTT-6.0.0-1].
    #[error("a text frame: MQTT is carried in binary frames only")]
    Text,
    /// Longer than the listener allows.
    #[error("a frame longer than allowed here")]
    TooLong,
}

impl Violation {
    /// The status code for the Close frame (section 7.4.1).
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::CloseReason => 1007,
            Self::TooLong => 1009,
            _ => 1002,
        }
    }
}

/// Why no payload comes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer closed, with this code if it gave one.
    Closed(Option<u16>),
    /// It broke the protocol.
    Violated(Violation),
}

/// What [`Decoder::decode`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of payload, at the front of what was given.
    pub payload_bytes: usize,
    /// Behind that payload nothing comes any more.
    pub end: Option<End>,
}

/// The payload of a control frame.
#[derive(Clone, Copy)]
struct Control {
    bytes: [u8; CONTROL_BYTES_MAX],
    len: u8,
}

impl Control {
    const EMPTY: Self = Self { bytes: [0; CONTROL_BYTES_MAX], len: 0 };

    fn push(&mut self, more: &[u8]) {
        let len = usize::from(self.len);
        self.bytes[len..len + more.len()].copy_from_slice(more);
        self.len += more.len() as u8;
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({})", self.as_slice().escape_ascii())
    }
}

/// Reads frames, in whatever pieces they come.
#[derive(Debug)]
pub struct Decoder {
    sender: Sender,
    frame_bytes_max: u64,
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    /// Of the frame that is being read; meaningful while `payload_left` is more than 0.
    opcode: Opcode,
    payload_left: u64,
    /// Turned so that its first byte is for the next byte of payload.
    mask: [u8; 4],
    /// A message began whose last fragment has not come.
    in_message: bool,
    control: Control,
    /// `control` is the payload of a Ping that nobody answered.
    owes_pong: bool,
}

impl Decoder {
    /// One at the beginning of a connection. `frame_bytes_max` bounds the payload of a data frame.
    #[must_use]
    pub fn new(sender: Sender, frame_bytes_max: u64) -> Self {
        Self {
            sender,
            frame_bytes_max,
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            opcode: Opcode::Continuation,
            payload_left: 0,
            mask: [0; 4],
            in_message: false,
            control: Control::EMPTY,
            owes_pong: false,
        }
    }

    /// Takes the bytes that follow those of the last call, and leaves the payload of data frames at their front. Not to be
    /// called again after an end.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Decoded {
        let (mut read, mut payload_bytes) = (0, 0);
        while read < bytes.len() {
            let outcome = if self.payload_left > 0 {
                let count = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len() - read);
                if self.opcode == Opcode::Pong {
                    // Nobody asked for one.
                } else if self.opcode.is_control() {
                    self.unmask(&mut bytes[read..read + count]);
                    self.control.push(&bytes[read..read + count]);
                } else {
                    bytes.copy_within(read..read + count, payload_bytes);
                    self.unmask(&mut bytes[payload_bytes..payload_bytes + count]);
                    payload_bytes += count;
                }
                read += count;
                self.payload_left -= count as u64;
                Ok(self.payload_left == 0)
            } else {
                self.header[usize::from(self.header_len)] = bytes[read];
                self.header_len += 1;
                read += 1;
                self.on_header_byte()
            };
            let end = match outcome {
                Ok(false) => None,
                Ok(true) => self.on_frame_end(),
                Err(violation) => Some(End::Violated(violation)),
            };
            if end.is_some() {
                return Decoded { payload_bytes, end };
            }
        }
        Decoded { payload_bytes, end: None }
    }

    /// The payload of the last Ping, if it was not asked for since. Of several that come at once only the last must be
    /// answered (section 5.5.3).
    pub fn take_ping(&mut self) -> Option<&[u8]> {
        std::mem::take(&mut self.owes_pong).then(|| self.control.as_slice())
    }

    fn unmask(&mut self, bytes: &mut [u8]) {
        if self.sender == Sender::Client {
            apply_mask(bytes, self.mask);
            self.mask.rotate_left(bytes.len() % 4);
        }
    }

    /// One more byte of a header. `true`: the frame ends with it, for it has no payload.
    fn on_header_byte(&mut self) -> Result<bool, Violation> {
        let header = &self.header[..usize::from(self.header_len)];
        if header.len() == 1 {
            self.opcode = self.check_first(header[0])?;
            return Ok(false);
        }
        let second = header[1];
        if header.len() == 2 {
            self.check_second(second)?;
        }
        let length_bytes = match second & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask_bytes = if second & MASKED != 0 { 4 } else { 0 };
        if header.len() < 2 + length_bytes + mask_bytes {
            // Said before its mask comes, as soon as it can be known.
            if header.len() == 2 + length_bytes {
                self.check_length(payload_length(header))?;
            }
            return Ok(false);
        }
        let length = payload_length(header);
        self.check_length(length)?;
        self.mask = header.last_chunk().copied().unwrap_or_default();
        self.header_len = 0;
        self.payload_left = length;
        if matches!(self.opcode, Opcode::Ping | Opcode::Close) {
            self.control.len = 0;
            self.owes_pong = false;
        } else if !self.opcode.is_control() {
            self.in_message = self.header[0] & FIN == 0;
        }
        Ok(length == 0)
    }

    fn check_first(&self, first: u8) -> Result<Opcode, Violation> {
        if first & RESERVED != 0 {
            return Err(Violation::ReservedBits);
        }
        let opcode = Opcode::from_bits(first & 0x0F).ok_or(Violation::ReservedOpcode)?;
        match opcode {
            Opcode::Text => Err(Violation::Text),
            Opcode::Continuation if !self.in_message => Err(Violation::Fragment),
            Opcode::Binary if self.in_message => Err(Violation::Fragment),
            _ if opcode.is_control() && first & FIN == 0 => Err(Violation::Control),
            _ => Ok(opcode),
        }
    }

    fn check_second(&self, second: u8) -> Result<(), Violation> {
        match (self.sender, second & MASKED != 0) {
            (Sender::Client, false) => return Err(Violation::Unmasked),
            (Sender::Server, true) => return Err(Violation::Masked),
            _ => {}
        }
        if self.opcode.is_control() && usize::from(second & !MASKED) > CONTROL_BYTES_MAX {
            return Err(Violation::Control);
        }
        Ok(())
    }

    fn check_length(&self, length: u64) -> Result<(), Violation> {
        let least = match self.header[1] & !MASKED {
            126 => 126,
            127 => 1 << 16,
            _ => 0,
        };
        if length < least || length >= 1 << 63 {
            return Err(Violation::Length);
        }
        if !self.opcode.is_control() && length > self.frame_bytes_max {
            return Err(Violation::TooLong);
        }
        Ok(())
    }

    fn on_frame_end(&mut self) -> Option<End> {
        match self.opcode {
            Opcode::Close => Some(self.on_close()),
            Opcode::Ping => {
                self.owes_pong = true;
                None
            }
            _ => None,
        }
    }

    fn on_close(&self) -> End {
        let payload = self.control.as_slice();
        let Some((&code, reason)) = payload.split_first_chunk() else {
            return if payload.is_empty() { End::Closed(None) } else { End::Violated(Violation::CloseCode) };
        };
        let code = u16::from_be_bytes(code);
        if !may_be_sent(code) {
            End::Violated(Violation::CloseCode)
        } else if std::str::from_utf8(reason).is_err() {
            End::Violated(Violation::CloseReason)
        } else {
            End::Closed(Some(code))
        }
    }
}

/// Whether a Close frame may carry this code: 1004 to 1006 and 1015 are for programs to say among themselves (section
/// 7.4.1), 3000 to 4999 are free for use.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

fn payload_length(header: &[u8]) -> u64 {
    match (header[1] & !MASKED, header) {
        (126, &[_, _, a, b, ..]) => u64::from(u16::from_be_bytes([a, b])),
        (127, &[_, _, a, b, c, d, e, f, g, h, ..]) => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        (short, _) => u64::from(short),
    }
}

/// Masks or unmasks (section 5.3).
fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// The header of a frame that is not fragmented, and its length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    len: u8,
}

impl Header {
    /// That of a frame of a server, with `payload_bytes` to follow.
    #[must_use]
    pub fn new(opcode: Opcode, payload_bytes: usize) -> Self {
        let mut header = Self::default();
        header.push(&[FIN | opcode as u8]);
        match payload_bytes {
            0..=125 => header.push(&[payload_bytes as u8]),
            126..=0xFFFF => {
                header.push(&[126]);
                header.push(&(payload_bytes as u16).to_be_bytes());
            }
            _ => {
                header.push(&[127]);
                header.push(&(payload_bytes as u64).to_be_bytes());
            }
        }
        header
    }

    /// The same of a client.
    #[must_use]
    fn masked(opcode: Opcode, payload_bytes: usize, mask: [u8; 4]) -> Self {
        let mut header = Self::new(opcode, payload_bytes);
        header.bytes[1] |= MASKED;
        header.push(&mask);
        header
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn push(&mut self, more: &[u8]) {
        let len = usize::from(self.len);
        self.bytes[len..len + more.len()].copy_from_slice(more);
        self.len += more.len() as u8;
    }
}

/// Appends a whole frame of a client, masked.
pub fn encode_masked(opcode: Opcode, payload: &[u8], mask: [u8; 4], out: &mut impl Extend<u8>) {
    out.extend(Header::masked(opcode, payload.len(), mask).as_slice().iter().copied());
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends a Close frame of a server.
pub fn encode_close(code: Option<u16>, out: &mut Vec<u8>) {
    let code = code.map(u16::to_be_bytes);
    let payload = code.as_ref().map_or(&[][..], |code| code);
    out.extend_from_slice(Header::new(Opcode::Close, payload.len()).as_slice());
    out.extend_from_slice(payload);
}

/// Appends a Pong of a server. `payload` is that of a Ping.
pub fn encode_pong(payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(Header::new(Opcode::Pong, payload.len()).as_slice());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

    /// A frame of a client.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_masked(Opcode::Binary, payload, MASK, &mut bytes);
        bytes[0] = first;
        bytes
    }

    fn binary(payload: &[u8]) -> Vec<u8> {
        frame(0x82, payload)
    }

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Seen {
        payload: Vec<u8>,
        pings: Vec<Vec<u8>>,
        end: Option<End>,
    }

    /// Everything that a client's bytes mean, read `step` at a time.
    fn read(bytes: &[u8], step: usize) -> Seen {
        let mut decoder = Decoder::new(Sender::Client, 100_000);
        let mut seen = Seen::default();
        for chunk in bytes.chunks(step) {
            let mut chunk = chunk.to_vec();
            let decoded = decoder.decode(&mut chunk);
            seen.payload.extend_from_slice(&chunk[..decoded.payload_bytes]);
            seen.pings.extend(decoder.take_ping().map(<[u8]>::to_vec));
            seen.end = decoded.end;
            if seen.end.is_some() {
                break;
            }
        }
        seen
    }

    fn end(bytes: &[u8]) -> Option<End> {
        let ends: Vec<_> = [1, 2, 3, bytes.len()].map(|step| read(bytes, step).end).to_vec();
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        ends[0]
    }

    /// RFC 6455, section 5.7: the masked example, with another opcode.
    #[test]
    fn the_masked_example_of_the_rfc_is_read() {
        let bytes = [0x82, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58];
        assert_eq!(read(&bytes, bytes.len()).payload, b"Hello");
    }

    /// [MQTT-6.0.0-2]: packets across frames, several in one, control frames between fragments; in whatever pieces.
    #[test]
    fn any_fragmentation_gives_the_same_bytes() {
        let long: Vec<u8> = (0..70_000_u32).map(|number| number as u8).collect();
        let stream = [
            frame(0x02, b"first "),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x00, b"message "),
            frame(0x8A, b"a pong nobody asked for"),
            frame(0x80, b"in four "),
            binary(b""),
            binary(&[7; 125]),
            binary(&[8; 126]),
            frame(0x89, &[9; 125]),
            binary(&long),
        ]
        .concat();
        let expected = [&b"first message in four "[..], &[7; 125], &[8; 126], &long].concat();
        for step in [1, 2, 3, 5, 7, 13, 64, 1000, 4096] {
            let seen = read(&stream, step);
            let pings = [b"ping".to_vec(), vec![9; 125]];
            // Of those that come at once the last one counts.
            assert!(pings.ends_with(&seen.pings) && !seen.pings.is_empty(), "{step} at a time: {:?}", seen.pings);
            assert!(seen.pings == pings || step > 64, "{step} at a time: {:?}", seen.pings);
            assert_eq!((seen.payload == expected, seen.end), (true, None), "{step} at a time");
        }
    }

    #[test]
    fn of_several_pings_at_once_the_last_is_answered() {
        let stream = [frame(0x89, b"one"), frame(0x89, b"two"), binary(b"x")].concat();
        assert_eq!(read(&stream, stream.len()).pings, [b"two"]);
    }

    /// What came before the end is delivered; what follows it is not looked at.
    #[test]
    fn a_close_ends_the_stream_in_its_place() {
        let close = |payload: &[u8]| [binary(b"last"), frame(0x88, payload), binary(b"late")].concat();
        for step in [1, 100] {
            let seen = read(&close(b"\x03\xE8bye"), step);
            assert_eq!((seen.payload, seen.end), (b"last".to_vec(), Some(End::Closed(Some(1000)))));
        }
        assert_eq!(end(&close(b"")), Some(End::Closed(None)));
        assert_eq!(end(&close(b"\x0F\xA0")), Some(End::Closed(Some(4000))));
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
            assert_eq!(end(&close(&code.to_be_bytes())), Some(End::Violated(Violation::CloseCode)), "{code}");
        }
        assert_eq!(end(&close(b"\x03")), Some(End::Violated(Violation::CloseCode)));
        assert_eq!(end(&close(b"\x03\xE8\xFF")), Some(End::Violated(Violation::CloseReason)));
    }

    #[test]
    fn each_violation_is_told_with_its_code() {
        let mut unmasked = binary(b"x");
        unmasked[1] &= !MASKED;
        for (bytes, violation, code) in [
            (unmasked, Violation::Unmasked, 1002),
            (frame(0x81, b"text"), Violation::Text, 1003),
            (frame(0x01, b"text"), Violation::Text, 1003),
            (frame(0xC2, b"compressed"), Violation::ReservedBits, 1002),
            (frame(0x83, b"x"), Violation::ReservedOpcode, 1002),
            (frame(0x8B, b"x"), Violation::ReservedOpcode, 1002),
            (frame(0x09, b"x"), Violation::Control, 1002),
            (frame(0x89, &[0; 126]), Violation::Control, 1002),
            (frame(0x80, b"of nothing"), Violation::Fragment, 1002),
            ([frame(0x02, b"x"), binary(b"y")].concat(), Violation::Fragment, 1002),
            (vec![0x82, 0xFE, 0, 125], Violation::Length, 1002),
            (vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], Violation::Length, 1002),
            (vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], Violation::Length, 1002),
            (vec![0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0x86, 0xA1], Violation::TooLong, 1009),
            (vec![0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], Violation::TooLong, 1009),
        ] {
            assert_eq!(end(&bytes), Some(End::Violated(violation)), "{}", bytes.escape_ascii());
            assert_eq!(violation.code(), code);
        }
        let mut server = Decoder::new(Sender::Server, 10);
        assert_eq!(server.decode(&mut binary(b"x")).end, Some(End::Violated(Violation::Masked)));
    }

    /// Every length is written in as few bytes as there are, and read back by the other side.
    #[test]
    fn frames_of_a_server_are_read_back() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 99_999] {
            let payload: Vec<u8> = (0..length).map(|number| number as u8).collect();
            let mut bytes = [Header::new(Opcode::Binary, length).as_slice(), &payload].concat();
            let mut decoder = Decoder::new(Sender::Server, 100_000);
            let decoded = decoder.decode(&mut bytes);
            assert_eq!(decoded, Decoded { payload_bytes: length, end: None });
            assert!(bytes[..length] == payload);
        }
        let mut bytes = Vec::new();
        encode_pong(b"same", &mut bytes);
        encode_close(Some(1009), &mut bytes);
        assert_eq!(bytes, b"\x8A\x04same\x88\x02\x03\xF1");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_pieces_make_no_difference(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            step in 1_usize..50,
        ) {
            let (whole, pieces) = (read(&bytes, 200), read(&bytes, step));
            proptest::prop_assert_eq!(whole.payload, pieces.payload);
            proptest::prop_assert_eq!(whole.end, pieces.end);
        }
    }
}
