//! How `kentongan sub` prints a message: the format letters of mosquitto_sub.
//!
//! Where mosquitto_sub 2.0 and its manual differ, the manual is followed: a field width is the least width and cuts
//! nothing off, and a maximum width (`%.3p`) works for the payload too.

use std::fmt::Write as _;
use std::io::{self, Write};

use jiff::ZonedDateTime;
use jiff::fmt::strtime::{BrokenDownTime, Config};
use kentongan_proto::mqtt::{Publish, PublishProperties};
use serde::Serialize;
use serde::de::IgnoredAny;
use serde::ser::{SerializeMap, Serializer};

/// A compiled output format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Format(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(Vec<u8>),
    /// `@X`: a conversion of strftime(3).
    Time(char),
    Field {
        letter: char,
        pad: Padding,
    },
}

/// What stands between `%` and its letter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Padding {
    left: bool,
    zero: bool,
    least: usize,
    most: Option<usize>,
}

/// A format that cannot be used; the user's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormatError {
    #[error("the format ends after `{0}`; write `{0}{0}` for the character itself")]
    Incomplete(char),
    #[error(
        "the format has no `%{0}`; the letters are %%, %A, %C to %F, %I, %J, %j, %l, %m, %P, %p to %r, %R, %S, %t, %U, %X and %x"
    )]
    Letter(char),
    #[error("the format has no `\\{0}`; there are \\\\, \\0, \\a, \\e, \\n, \\r, \\t and \\v")]
    Escape(char),
    #[error("a width in the format is larger than {WIDTH_MAX}")]
    Width,
}

/// Nobody reads columns wider than this; a slip of the finger should not print a gigabyte of blanks.
const WIDTH_MAX: usize = 65_535;

/// What is nested deeper is indented no further: a payload of brackets alone would print as the square of its length.
const INDENTED_DEPTH_MAX: usize = 128;

/// Why a message could not be printed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrintError {
    /// `%J` was asked for.
    #[error("the payload of a message on topic {0} is not JSON, as %J wants it; %j takes any")]
    NotJson(String),
    /// Standard output failed.
    #[error(transparent)]
    Output(#[from] io::Error),
}

impl Format {
    /// The payload alone, or topic and payload.
    pub(super) fn plain(verbose: bool) -> Self {
        let field = |letter| Piece::Field { letter, pad: Padding::default() };
        match verbose {
            false => Self(vec![field('p')]),
            true => Self(vec![field('t'), Piece::Literal(b" ".to_vec()), field('p')]),
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text.chars();
        while let Some(first) = rest.next() {
            let piece = match first {
                '%' => field(&mut rest)?,
                '@' => match rest.next().ok_or(FormatError::Incomplete('@'))? {
                    '@' => Piece::Literal(b"@".to_vec()),
                    conversion => Piece::Time(conversion),
                },
                '\\' => Piece::Literal(vec![escape(&mut rest)?]),
                other => Piece::Literal(other.encode_utf8(&mut [0; 4]).as_bytes().to_vec()),
            };
            match piece {
                Piece::Literal(bytes) => literal.extend(bytes),
                piece => {
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.push(piece);
                }
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    /// Prints one message that came at `time`, all of it or nothing.
    pub(super) fn print(
        &self,
        message: &Publish,
        time: &ZonedDateTime,
        pretty: bool,
        out: &mut impl Write,
    ) -> Result<(), PrintError> {
        let mut bytes = Vec::with_capacity(message.payload.len() + 64);
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => bytes.extend_from_slice(literal),
                Piece::Time(conversion) => bytes.extend(strftime(time, *conversion).into_bytes()),
                Piece::Field { letter: letter @ ('j' | 'J'), .. } => {
                    bytes.extend(json(message, time, *letter == 'J', pretty)?);
                }
                Piece::Field { letter, pad } => print_field(*letter, *pad, message, time, &mut bytes),
            }
        }
        out.write_all(&bytes)?;
        Ok(())
    }
}

fn field(rest: &mut std::str::Chars<'_>) -> Result<Piece, FormatError> {
    let mut pad = Padding::default();
    let mut next = || rest.next().ok_or(FormatError::Incomplete('%'));
    let mut letter = next()?;
    while let '-' | '0' = letter {
        pad.left |= letter == '-';
        pad.zero |= letter == '0';
        letter = next()?;
    }
    let mut number = |letter: &mut char| -> Result<usize, FormatError> {
        let mut value = 0;
        while let Some(digit) = letter.to_digit(10) {
            value = value * 10 + digit as usize;
            if value > WIDTH_MAX {
                return Err(FormatError::Width);
            }
            *letter = next()?;
        }
        Ok(value)
    };
    pad.least = number(&mut letter)?;
    if letter == '.' {
        letter = '0';
        pad.most = Some(number(&mut letter)?);
    }
    match letter {
        '%' => Ok(Piece::Literal(b"%".to_vec())),
        'A' | 'C'..='F' | 'I' | 'J' | 'j' | 'l' | 'm' | 'P' | 'p'..='r' | 'R' | 'S' | 't' | 'U' | 'X' | 'x' => {
            Ok(Piece::Field { letter, pad })
        }
        other => Err(FormatError::Letter(other)),
    }
}

fn escape(rest: &mut std::str::Chars<'_>) -> Result<u8, FormatError> {
    match rest.next().ok_or(FormatError::Incomplete('\\'))? {
        '\\' => Ok(b'\\'),
        '0' => Ok(0),
        'a' => Ok(7),
        'e' => Ok(27),
        'n' => Ok(b'\n'),
        'r' => Ok(b'\r'),
        't' => Ok(b'\t'),
        'v' => Ok(11),
        other => Err(FormatError::Escape(other)),
    }
}

/// One conversion of strftime(3), and `N` for nanoseconds. What there is no conversion for is printed as `%X`.
fn strftime(time: &ZonedDateTime, conversion: char) -> String {
    if conversion == 'N' {
        return format!("{:09}", time.subsec_nanosecond());
    }
    let mut text = String::new();
    let config = Config::new().lenient(true);
    match BrokenDownTime::from(time).format_with_config(&config, format!("%{conversion}"), &mut text) {
        Ok(()) => text,
        Err(_) => format!("%{conversion}"),
    }
}

fn print_field(letter: char, pad: Padding, message: &Publish, time: &ZonedDateTime, out: &mut Vec<u8>) {
    let properties = &message.properties;
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let hex = |upper: bool| {
        message.payload.iter().fold(String::new(), |mut text, byte| {
            let _ = if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
            text
        })
    };
    let (value, may_zero) = match letter {
        'p' => return padded(&message.payload, pad, false, out),
        'D' => {
            return out.extend_from_slice(properties.correlation_data.as_deref().unwrap_or_default());
        }
        'P' => return out.extend_from_slice(user_properties(properties).as_bytes()),
        'q' => return out.extend_from_slice((message.delivery.qos() as u8).to_string().as_bytes()),
        'r' => return out.extend_from_slice(u8::from(message.retain).to_string().as_bytes()),
        'U' => {
            return out.extend_from_slice(
                format!("{}.{:09}", time.timestamp().as_second(), time.subsec_nanosecond()).as_bytes(),
            );
        }
        't' => (message.topic.clone(), false),
        'C' => (text(&properties.content_type), false),
        'R' => (text(&properties.response_topic), false),
        'I' => (time.strftime("%Y-%m-%dT%H:%M:%S%z").to_string(), false),
        'x' => (hex(false), true),
        'X' => (hex(true), true),
        'l' => (message.payload.len().to_string(), true),
        'm' => (message.delivery.packet_id().map_or(0, u16::from).to_string(), true),
        'A' => (number(properties.topic_alias.map(u64::from)), true),
        'E' => (number(properties.message_expiry_interval.map(u64::from)), true),
        'F' => (number(properties.payload_format_indicator.map(u64::from)), true),
        'S' => (number(properties.subscription_identifiers.first().copied().map(u64::from)), true),
        other => unreachable!("%{other} was refused when the format was read"),
    };
    padded(value.as_bytes(), pad, may_zero, out);
}

/// Widths count characters, as far as `value` is text.
fn padded(value: &[u8], pad: Padding, may_zero: bool, out: &mut Vec<u8>) {
    let (value, width) = match (std::str::from_utf8(value), pad.most) {
        (Ok(text), most) => {
            let end = most.and_then(|most| text.char_indices().nth(most)).map_or(text.len(), |(end, _)| end);
            (&value[..end], text[..end].chars().count())
        }
        (Err(_), most) => {
            let end = most.unwrap_or(value.len()).min(value.len());
            (&value[..end], end)
        }
    };
    let blanks = pad.least.saturating_sub(width);
    if pad.left {
        out.extend_from_slice(value);
        out.resize(out.len() + blanks, b' ');
    } else {
        out.resize(out.len() + blanks, if pad.zero && may_zero { b'0' } else { b' ' });
        out.extend_from_slice(value);
    }
}

fn user_properties(properties: &PublishProperties) -> String {
    let pairs: Vec<String> = properties.user_properties.iter().map(|(name, value)| format!("{name}:{value}")).collect();
    pairs.join(" ")
}

fn json(message: &Publish, time: &ZonedDateTime, parse_payload: bool, pretty: bool) -> Result<Vec<u8>, PrintError> {
    let payload = if parse_payload {
        // Only looked at: a number that no machine can hold, and a name that comes twice, are the publisher's to print.
        let text = std::str::from_utf8(&message.payload).ok();
        let json = text.filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
        json.map(unspaced).ok_or_else(|| PrintError::NotJson(message.topic.clone()))?
    } else {
        serde_json::to_string(&String::from_utf8_lossy(&message.payload)).map_err(io::Error::from)?
    };
    let envelope = JsonEnvelope {
        tst: time.strftime("%Y-%m-%dT%H:%M:%S.%6f%z").to_string(),
        topic: &message.topic,
        qos: message.delivery.qos() as u8,
        retain: u8::from(message.retain),
        payloadlen: message.payload.len(),
        mid: message.delivery.packet_id().map(u16::from),
        properties: Some(&message.properties)
            .filter(|properties| **properties != PublishProperties::default())
            .map(JsonProperties::from),
    };
    let mut object = serde_json::to_string(&envelope).map_err(io::Error::from)?;
    // The payload is put in as it was written, in place of the last brace.
    object.pop();
    object.push_str(",\"payload\":");
    object.push_str(&payload);
    object.push('}');
    Ok(if pretty { indented(&object) } else { object }.into_bytes())
}

/// Tells what of a JSON text is within strings.
#[derive(Default)]
struct Strings {
    is_open: bool,
    is_escaped: bool,
}

impl Strings {
    /// Whether the next character belongs to one, as its quotes do.
    fn hold(&mut self, char: char) -> bool {
        let was_open = self.is_open;
        self.is_open = if was_open { self.is_escaped || char != '"' } else { char == '"' };
        self.is_escaped = was_open && !self.is_escaped && char == '\\';
        was_open || self.is_open
    }
}

/// JSON without the blanks between its parts.
fn unspaced(json: &str) -> String {
    let mut strings = Strings::default();
    json.chars().filter(|&char| strings.hold(char) || !matches!(char, ' ' | '\t' | '\n' | '\r')).collect()
}

/// [`unspaced`] JSON with each of its parts on a line of its own, as serde_json does it.
fn indented(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let mut strings = Strings::default();
    let (mut depth, mut previous) = (0_usize, None);
    for char in json.chars() {
        let syntax = Some(char).filter(|&char| !strings.hold(char));
        let opened = matches!(previous, Some('{' | '['));
        let closes = matches!(syntax, Some('}' | ']'));
        depth -= usize::from(closes);
        // Nothing comes between the brackets of what is empty.
        if previous == Some(',') || opened != closes {
            text.push('\n');
            text.extend(std::iter::repeat_n("  ", depth.min(INDENTED_DEPTH_MAX)));
        }
        text.push(char);
        match syntax {
            Some(':') => text.push(' '),
            Some('{' | '[') => depth += 1,
            _ => {}
        }
        previous = syntax;
    }
    text
}

#[derive(Serialize)]
struct JsonEnvelope<'a> {
    tst: String,
    topic: &'a str,
    qos: u8,
    retain: u8,
    payloadlen: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    mid: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<JsonProperties<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct JsonProperties<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_format_indicator: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_expiry_interval: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic_alias: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_identifier: Option<u32>,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    user_properties: Pairs<'a>,
}

/// An object whose names may repeat, as those of User Properties may.
struct Pairs<'a>(&'a [(String, String)]);

impl Pairs<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'a> From<&'a PublishProperties> for JsonProperties<'a> {
    fn from(properties: &'a PublishProperties) -> Self {
        Self {
            payload_format_indicator: properties.payload_format_indicator,
            message_expiry_interval: properties.message_expiry_interval,
            topic_alias: properties.topic_alias,
            response_topic: properties.response_topic.as_deref(),
            correlation_data: properties
                .correlation_data
                .as_deref()
                .map(|data| String::from_utf8_lossy(data).into_owned()),
            content_type: properties.content_type.as_deref(),
            subscription_identifier: properties.subscription_identifiers.first().copied(),
            user_properties: Pairs(&properties.user_properties),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use bytes::Bytes;
    use kentongan_proto::mqtt::Delivery;

    use super::*;

    fn message(payload: &'static [u8]) -> Publish {
        Publish {
            dup: false,
            delivery: Delivery::AtLeastOnce(NonZeroU16::new(7).unwrap()),
            retain: true,
            topic: String::from("a/b"),
            properties: PublishProperties {
                payload_format_indicator: Some(1),
                message_expiry_interval: Some(98),
                response_topic: Some(String::from("r/t")),
                correlation_data: Some(Bytes::from_static(b"cd")),
                user_properties: [("k", "1"), ("k", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
                subscription_identifiers: vec![7],
                content_type: Some(String::from("text/x")),
                topic_alias: None,
            },
            payload: Bytes::from_static(payload),
        }
    }

    fn time() -> ZonedDateTime {
        "2026-11-24T10:53:26.481257089+07:00[+07:00]".parse().unwrap()
    }

    fn print(format: &str, payload: &'static [u8]) -> String {
        let mut out = Vec::new();
        Format::parse(format).unwrap().print(&message(payload), &time(), false, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_letter_prints_what_mosquitto_sub_prints() {
        let table = [
            ("%t", "a/b"),
            ("%p", "hel\"lo\tü"),
            ("%q", "1"),
            ("%r", "1"),
            ("%l", "9"),
            ("%m", "7"),
            ("%x", "68656c226c6f09c3bc"),
            ("%X", "68656C226C6F09C3BC"),
            ("%A", ""),
            ("%C", "text/x"),
            ("%D", "cd"),
            ("%E", "98"),
            ("%F", "1"),
            ("%P", "k:1 k:2"),
            ("%R", "r/t"),
            ("%S", "7"),
            ("%%", "%"),
            ("@@", "@"),
            ("%I", "2026-11-24T10:53:26+0700"),
            ("%U", "1795492406.481257089"),
            ("@Y-@m-@d @H:@M:@S @z", "2026-11-24 10:53:26 +0700"),
            ("@N", "481257089"),
            ("@s", "1795492406"),
            ("\\n\\t\\\\\\e[0m\\0\\a\\r\\v", "\n\t\\\u{1b}[0m\0\u{7}\r\u{b}"),
            ("x: %t!", "x: a/b!"),
        ];
        for (format, expected) in table {
            assert_eq!(print(format, "hel\"lo\tü".as_bytes()), expected, "{format}");
        }
    }

    #[test]
    fn widths_are_those_of_the_manual() {
        let table = [
            ("%12p|", "     hello ü"),
            ("%-12p|", "hello ü     "),
            ("%3p|", "hello ü"),
            ("%.3p|", "hel"),
            ("%10t|", "       a/b"),
            ("%-10t|", "a/b       "),
            ("%2.2t|", "a/"),
            ("%10.2t|", "        a/"),
            ("%-10.2t|", "a/        "),
            ("%010t|", "       a/b"),
            ("%05l|", "00008"),
            ("%5l|", "    8"),
            ("%-5l|", "8    "),
            ("%-05l|", "8    "),
            ("%05m|", "00007"),
            ("%18x|", "  68656c6c6f20c3bc"),
            ("%018X|", "0068656C6C6F20C3BC"),
            ("%10.3C|", "       tex"),
            ("%10R|", "       r/t"),
            ("%010S|", "0000000007"),
            ("%010E|", "0000000098"),
            ("%10F|", "         1"),
            ("%5A|", "     "),
            ("%26I|", "  2026-11-24T10:53:26+0700"),
            ("%5q|", "1"),
            ("%5%|", "%"),
        ];
        for (format, expected) in table {
            assert_eq!(print(format, "hello ü".as_bytes()), format!("{expected}|"), "{format}");
        }
    }

    #[test]
    fn json_holds_the_message_and_its_properties() {
        let properties = "\"properties\":{\"payload-format-indicator\":1,\"message-expiry-interval\":98,\
             \"response-topic\":\"r/t\",\"correlation-data\":\"cd\",\"content-type\":\"text/x\",\
             \"subscription-identifier\":7,\"user-properties\":{\"k\":\"1\",\"k\":\"2\"}}";
        let start = "{\"tst\":\"2026-11-24T10:53:26.481257+0700\",\"topic\":\"a/b\",\"qos\":1,\"retain\":1,";
        let expected = format!("{start}\"payloadlen\":3,\"mid\":7,{properties},\"payload\":\"a\\\"\\n\"}}");
        assert_eq!(print("%j", b"a\"\n"), expected);
        let expected = format!("{start}\"payloadlen\":11,\"mid\":7,{properties},\"payload\":{{\"a\":[1,2]}}}}");
        assert_eq!(print("%J", b"{\"a\":[1,2]}"), expected);
    }

    fn json_payload(payload: &'static [u8], pretty: bool) -> String {
        let mut out = Vec::new();
        Format::parse("%J").unwrap().print(&message(payload), &time(), pretty, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let (_, payload) = text.split_once(if pretty { "\"payload\": " } else { "\"payload\":" }).unwrap();
        payload.strip_suffix(if pretty { "\n}" } else { "}" }).unwrap().to_owned()
    }

    #[test]
    fn a_json_payload_is_printed_as_it_came_but_for_blanks() {
        for (payload, expected) in [
            ("1e400", "1e400"),
            ("[1.10, 123456789012345678901234567890]", "[1.10,123456789012345678901234567890]"),
            (r#"{"a": 1, "a": 2}"#, r#"{"a":1,"a":2}"#),
            ("\r\n{\t\"a\" : [ ] }\n", r#"{"a":[]}"#),
            (r#"["x , \\\" : y", "\\\\" , "\ud800\u00fc"]"#, r#"["x , \\\" : y","\\\\","\ud800\u00fc"]"#),
        ] {
            assert_eq!(json_payload(payload.as_bytes(), false), expected, "{payload}");
        }
    }

    #[test]
    fn pretty_json_is_that_of_serde_json() {
        for payload in ["1", "[]", "{}", r#"{"a":[1,{"b":{}},[],"x,[]{}:\\\"\n"],"c":null}"#] {
            let value: serde_json::Value = serde_json::from_str(payload).unwrap();
            let within = serde_json::to_string_pretty(&serde_json::json!({ "payload": value })).unwrap();
            let expected = within.strip_prefix("{\n  \"payload\": ").and_then(|text| text.strip_suffix("\n}"));
            assert_eq!(Some(json_payload(payload.as_bytes(), true).as_str()), expected);
        }
    }

    #[test]
    fn brackets_alone_do_not_print_as_the_square_of_their_number() {
        let payload = [[b'['; 2_000], [b']'; 2_000]].concat().leak();
        assert!(json_payload(payload, true).len() < 4_000 * (2 * INDENTED_DEPTH_MAX + 2));
    }

    #[test]
    fn a_payload_that_is_not_json_prints_nothing_under_capital_j() {
        let mut out = Vec::new();
        let outcome = Format::parse("x%J").unwrap().print(&message(b"{"), &time(), false, &mut out);
        assert!(matches!(outcome, Err(PrintError::NotJson(topic)) if topic == "a/b"));
        assert_eq!(out, b"");
    }

    #[test]
    fn a_binary_payload_is_printed_as_it_is() {
        let mut out = Vec::new();
        Format::plain(true).print(&message(b"\xff\x00"), &time(), false, &mut out).unwrap();
        assert_eq!(out, b"a/b \xff\x00");
    }

    #[test]
    fn a_format_that_means_nothing_is_refused() {
        let table = [
            ("%", FormatError::Incomplete('%')),
            ("%-", FormatError::Incomplete('%')),
            ("%5", FormatError::Incomplete('%')),
            ("@", FormatError::Incomplete('@')),
            ("\\", FormatError::Incomplete('\\')),
            ("%i", FormatError::Letter('i')),
            ("%d", FormatError::Letter('d')),
            ("%.", FormatError::Incomplete('%')),
            ("\\q", FormatError::Escape('q')),
            ("%99999p", FormatError::Width),
            ("%99999999999999999999p", FormatError::Width),
        ];
        for (format, expected) in table {
            assert_eq!(Format::parse(format), Err(expected), "{format}");
        }
    }
}
