//! The flags that `pub` and `sub` share, and what to connect with.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::{ArgAction, Args};
use kentongan_proto::mqtt::{Connect, ProtocolVersion, QoS, Will};

use super::property::Properties;
use super::tls::TlsArgs;
use crate::config::Secret;

/// Connecting, in the flags of mosquitto_pub and mosquitto_sub.
#[derive(Debug, Clone, Args)]
pub(super) struct ConnectionArgs {
    /// Host of the broker.
    #[arg(short = 'h', long, default_value = "localhost", value_name = "HOST")]
    host: String,
    /// Port of the broker. Without one: 1883, or 8883 with TLS; for a WebSocket 80, or 443 with TLS.
    #[arg(short = 'p', long, value_name = "PORT")]
    port: Option<u16>,
    /// Connect to a Unix socket of this machine, instead of a host.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port", "url", "bind", "nodelay"])]
    unix: Option<PathBuf>,
    /// Connect by WebSocket.
    #[arg(long)]
    ws: bool,
    /// Path of the WebSocket.
    #[arg(long, default_value = "/mqtt", value_name = "PATH", value_parser = parse_path)]
    ws_path: String,
    #[command(flatten)]
    tls: TlsArgs,
    /// Host, port, user, password and topic at once: mqtt://[USER[:PASSWORD]@]HOST[:PORT][/TOPIC]. With mqtts:// it is by TLS,
    /// with ws:// by WebSocket, with wss:// by both.
    #[arg(short = 'L', long, value_name = "URL", conflicts_with_all = ["host", "port"])]
    url: Option<String>,
    /// Local address to connect from.
    #[arg(short = 'A', value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Client Identifier; without one the broker chooses.
    #[arg(short = 'i', long, value_name = "ID")]
    id: Option<String>,
    /// Client Identifier made of this and the process id.
    #[arg(short = 'I', long, value_name = "PREFIX", conflicts_with = "id")]
    id_prefix: Option<String>,
    /// User Name.
    #[arg(short = 'u', long, value_name = "USER")]
    username: Option<String>,
    /// Password. Other users of this machine can see it; --pw-file keeps it to yourself.
    #[arg(short = 'P', long, value_name = "PASSWORD", value_parser = parse_secret)]
    pw: Option<Secret>,
    /// File that holds the password.
    #[arg(long, value_name = "FILE", conflicts_with = "pw")]
    pw_file: Option<PathBuf>,
    /// Protocol version: 5, 311 or 31 (also mqttv5, mqttv311, mqttv31).
    #[arg(short = 'V', long, default_value = "5", value_name = "VERSION", value_parser = parse_version)]
    protocol_version: ProtocolVersion,
    /// Keep Alive in seconds; 0 is none.
    #[arg(short = 'k', long, default_value_t = 60, value_name = "SECONDS", allow_negative_numbers = true)]
    keepalive: u16,
    /// Keep the session when the connection ends (Clean Start 0); wants -i.
    #[arg(short = 'c', long)]
    disable_clean_session: bool,
    /// Session Expiry Interval in seconds; -1 or ∞ means never. Without it: never with -c, else 0.
    #[arg(short = 'x', long, value_name = "SECONDS", allow_hyphen_values = true, value_parser = parse_expiry)]
    session_expiry_interval: Option<u32>,
    /// An MQTT 5 property: -D COMMAND PROPERTY VALUE, or -D COMMAND user-property NAME VALUE. Commands: connect,
    /// publish, subscribe, unsubscribe, disconnect, will. May be repeated.
    #[arg(short = 'D', long, num_args = 1..=4, action = ArgAction::Append, value_names = ["COMMAND", "PROPERTY", "VALUE", "VALUE2"])]
    property: Vec<String>,
    /// Topic of a Will Message, which the broker publishes if this client is cut off.
    #[arg(long, value_name = "TOPIC")]
    will_topic: Option<String>,
    /// Payload of the Will Message.
    #[arg(long, value_name = "TEXT", requires = "will_topic")]
    will_payload: Option<String>,
    /// QoS of the Will Message.
    #[arg(long, value_name = "QOS", default_value = "0", value_parser = parse_qos, requires = "will_topic")]
    will_qos: QoS,
    /// Make the Will Message a retained one.
    #[arg(long, requires = "will_topic")]
    will_retain: bool,
    /// Send small packets at once (TCP_NODELAY).
    #[arg(long)]
    nodelay: bool,
    /// Say on standard error what is sent and received.
    #[arg(short = 'd', long)]
    debug: bool,
    /// Do not print errors.
    #[arg(long)]
    quiet: bool,
    /// Print this.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// What to connect with, once the flags made sense together.
#[derive(Debug, Clone)]
pub(super) struct ConnectOptions {
    pub(super) host: String,
    pub(super) port: u16,
    /// The Unix socket, if it is one: then host and port are only names.
    pub(super) unix: Option<PathBuf>,
    /// TLS, if that is what is spoken there.
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// The path of the WebSocket, if it is one.
    pub(super) websocket_path: Option<String>,
    pub(super) bind: Option<IpAddr>,
    pub(super) nodelay: bool,
    pub(super) debug: bool,
    pub(super) quiet: bool,
    /// The topic of the URL.
    pub(super) topic: Option<String>,
    pub(super) connect: Connect,
    pub(super) properties: Properties,
}

impl ConnectOptions {
    /// Whether packets carry properties.
    pub(super) fn is_v5(&self) -> bool {
        self.connect.version.is_v5()
    }

    /// Where the broker is, for people.
    pub(super) fn address(&self) -> String {
        match &self.unix {
            Some(path) => format!("unix:{}", path.display()),
            None => format!("{}:{}", self.host, self.port),
        }
    }
}

impl ConnectionArgs {
    /// Checks the flags against each other.
    ///
    /// `property_sizes` tells how the values of the repeated `-D` belong together.
    ///
    /// # Errors
    /// A sentence for whoever typed them.
    pub(super) fn resolve(&self) -> Result<ConnectOptions, String> {
        let mut properties = Properties::default();
        for words in split_properties(&self.property) {
            properties.add(&words)?;
        }
        let is_v5 = self.protocol_version.is_v5();
        if !self.property.is_empty() && !is_v5 {
            return Err(String::from("-D wants MQTT 5; leave out -V or give -V 5"));
        }
        let url = self.url.as_deref().map(Url::parse).transpose()?.unwrap_or_default();
        let password = match (&self.pw, &self.pw_file) {
            (Some(password), _) => Some(password.clone()),
            (None, Some(path)) => {
                let read = Secret::from_file(path);
                Some(read.map_err(|error| format!("cannot use the password in {}: {error}", path.display()))?)
            }
            (None, None) => url.password,
        };
        let tls = self.tls.resolve(url.scheme.is_some_and(|scheme| scheme.is_tls))?;
        let is_websocket = self.ws || url.scheme.is_some_and(|scheme| scheme.is_websocket);
        let user_name = self.username.clone().or(url.user);
        if password.is_some() && user_name.is_none() && !is_v5 {
            // [MQTT-3.1.2-22]
            return Err(String::from("MQTT 3 has no password without a user name; give -u, or -V 5"));
        }
        let clean_start = !self.disable_clean_session;
        let client_id = self.client_id();
        if self.id.as_deref() == Some("") {
            return Err(String::from("-i names nobody; leave it out, and the broker chooses a Client Identifier"));
        }
        if !clean_start && client_id.is_empty() {
            return Err(String::from("-c keeps a session under a Client Identifier; give one with -i"));
        }
        let expiry = &mut properties.connect.session_expiry_interval;
        *expiry = self.session_expiry_interval.or(*expiry);
        if is_v5 && !clean_start {
            expiry.get_or_insert(u32::MAX);
        }
        if self.session_expiry_interval.is_some() && !is_v5 {
            return Err(String::from("-x wants MQTT 5; leave out -V or give -V 5"));
        }
        let will = self.will_topic.as_ref().map(|topic| Will {
            topic: topic.clone(),
            payload: Bytes::from(self.will_payload.clone().unwrap_or_default()),
            qos: self.will_qos,
            retain: self.will_retain,
            properties: properties.will.clone(),
        });
        let connect = Connect {
            version: self.protocol_version,
            bridge: false,
            clean_start,
            keep_alive: self.keepalive,
            client_id,
            will,
            user_name,
            password: password.map(|secret| Bytes::copy_from_slice(secret.expose().as_bytes())),
            properties: properties.connect.clone(),
        };
        Ok(ConnectOptions {
            host: url.host.unwrap_or_else(|| self.host.clone()),
            port: url.port.or(self.port).unwrap_or_else(|| default_port(is_websocket, tls.is_some())),
            unix: self.unix.clone(),
            tls,
            websocket_path: is_websocket.then(|| self.ws_path.clone()),
            bind: self.bind,
            nodelay: self.nodelay,
            debug: self.debug,
            quiet: self.quiet,
            topic: url.topic,
            connect,
            properties,
        })
    }

    fn client_id(&self) -> String {
        match (&self.id, &self.id_prefix) {
            (Some(id), _) => id.clone(),
            (None, Some(prefix)) => format!("{prefix}{}", std::process::id()),
            // MQTT 3.1 knows no empty Client Identifier.
            (None, None) if self.protocol_version == ProtocolVersion::V3_1 => {
                format!("kentongan-{:08x}", rand::random::<u32>())
            }
            (None, None) => String::new(),
        }
    }
}

/// Clap hands over the words of all `-D` in one list; the name of the property tells how many belong together.
fn split_properties(words: &[String]) -> Vec<Vec<String>> {
    let mut split = Vec::new();
    let mut rest = words;
    while !rest.is_empty() {
        let length = if rest.get(1).is_some_and(|name| name.eq_ignore_ascii_case("user-property")) { 4 } else { 3 };
        let (one, after) = rest.split_at(length.min(rest.len()));
        split.push(one.to_vec());
        rest = after;
    }
    split
}

/// How a URL begins, and what it asks for by that.
#[derive(Debug, Clone, Copy)]
struct Scheme {
    prefix: &'static str,
    is_websocket: bool,
    is_tls: bool,
}

const SCHEMES: [Scheme; 4] = [
    Scheme { prefix: "mqtt://", is_websocket: false, is_tls: false },
    Scheme { prefix: "mqtts://", is_websocket: false, is_tls: true },
    Scheme { prefix: "ws://", is_websocket: true, is_tls: false },
    Scheme { prefix: "wss://", is_websocket: true, is_tls: true },
];

fn default_port(is_websocket: bool, is_tls: bool) -> u16 {
    match (is_websocket, is_tls) {
        (false, false) => 1883,
        (false, true) => 8883,
        (true, false) => 80,
        (true, true) => 443,
    }
}

/// The parts of `mqtt://…`.
#[derive(Debug, Default)]
struct Url {
    scheme: Option<Scheme>,
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<Secret>,
    topic: Option<String>,
}

impl Url {
    fn parse(text: &str) -> Result<Self, String> {
        let known = SCHEMES.into_iter().find_map(|scheme| Some((scheme, text.strip_prefix(scheme.prefix)?)));
        let Some((scheme, rest)) = known else {
            return Err(String::from("-L wants mqtt://[USER[:PASSWORD]@]HOST[:PORT][/TOPIC], or mqtts, ws or wss"));
        };
        let (authority, topic) = match rest.split_once('/') {
            Some((authority, topic)) => (authority, Some(topic.to_owned()).filter(|topic| !topic.is_empty())),
            None => (rest, None),
        };
        let (credentials, address) = match authority.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, authority),
        };
        let (user, password) = match credentials.map(|both| both.split_once(':').ok_or(both)) {
            Some(Ok((user, password))) => (Some(user.to_owned()), Some(Secret::new(password.to_owned()))),
            Some(Err(user)) => (Some(user.to_owned()), None),
            None => (None, None),
        };
        let (host, port) = match address.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| format!("-L: `{port}` is not a port"))?)),
            None => (address, None),
        };
        if host.is_empty() {
            return Err(String::from("-L names no host"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { scheme: Some(scheme), host: Some(host), port, user, password, topic })
    }
}

/// What may stand in the first line of a request.
fn parse_path(text: &str) -> Result<String, String> {
    let is_path = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_path { Ok(text.to_owned()) } else { Err(String::from("a path such as /mqtt")) }
}

fn parse_secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text.to_owned()))
}

fn parse_version(text: &str) -> Result<ProtocolVersion, String> {
    match text.trim_start_matches("mqttv") {
        "5" => Ok(ProtocolVersion::V5),
        "311" | "3.1.1" => Ok(ProtocolVersion::V3_1_1),
        "31" | "3.1" => Ok(ProtocolVersion::V3_1),
        _ => Err(String::from("it is one of 5, 311 and 31")),
    }
}

fn parse_expiry(text: &str) -> Result<u32, String> {
    match text {
        "-1" | "∞" => Ok(u32::MAX),
        _ => text.parse().map_err(|_| String::from("seconds, or -1 for never")),
    }
}

pub(super) fn parse_qos(text: &str) -> Result<QoS, String> {
    let level = text.parse().ok().and_then(QoS::from_bits);
    level.ok_or_else(|| String::from("it is one of 0, 1 and 2"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Line {
        #[command(flatten)]
        connection: ConnectionArgs,
    }

    fn resolve(line: &str) -> Result<ConnectOptions, String> {
        let words = std::iter::once("x").chain(line.split(' ').filter(|word| !word.is_empty()));
        Line::try_parse_from(words).map_err(|error| error.to_string())?.connection.resolve()
    }

    #[test]
    fn a_session_lasts_as_mosquitto_makes_it() {
        let expiry = |line| resolve(line).unwrap().connect.properties.session_expiry_interval;
        assert_eq!(expiry(""), None);
        assert_eq!(expiry("-c -i a"), Some(u32::MAX));
        assert_eq!(expiry("-c -i a -x 60"), Some(60));
        assert_eq!(expiry("-x -1"), Some(u32::MAX));
        assert_eq!(expiry("-x ∞"), Some(u32::MAX));
        assert_eq!(expiry("-c -i a -D connect session-expiry-interval 9"), Some(9));
        assert_eq!(expiry("-c -i a -V 311"), None, "3.1.1 has no properties");
        assert!(!resolve("-c -i a -V 311").unwrap().connect.clean_start);
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for (line, expected) in [
            ("-c", "give one with -i"),
            ("-V 311 -P x", "give -u"),
            ("-V 311 -D connect receive-maximum 7", "-D wants MQTT 5"),
            ("-V 311 -x 9", "-x wants MQTT 5"),
            ("-V 4", "one of 5, 311 and 31"),
            ("-L http://x", "-L wants mqtt://"),
            ("-L mqtt://", "names no host"),
            ("-i a -I b", "cannot be used with"),
            ("--id=", "-i names nobody"),
            ("-k -1", "-1 is not in 0..=65535"),
            ("-k 65536", "65536 is not in 0..=65535"),
            ("--unix /s -h b", "cannot be used with"),
            ("--unix /s -p 1", "cannot be used with"),
            ("-L mqtt://b --unix /s", "cannot be used with"),
            ("--alpn mqtt", "--alpn is for TLS"),
            ("--cert x", "--key"),
            ("--cafile /dev/null", "holds no certificate"),
            ("--cafile /nowhere", "cannot use /nowhere"),
            ("--ws --ws-path mqtt", "a path such as /mqtt"),
            ("-L mqtts://x --cafile /dev/null --tls-version tlsv1.1", "tlsv1.3 and tlsv1.2"),
            ("--will-payload x", "--will-topic"),
            ("-D connect receive-maximum", "-D connect receive-maximum wants one value"),
        ] {
            let found = resolve(line).unwrap_err();
            assert!(found.contains(expected), "{line}: {found}");
        }
    }

    #[test]
    fn repeated_properties_are_told_apart() {
        let options =
            resolve("-D connect user-property a b -D connect receive-maximum 7 -D CONNECT USER-PROPERTY a c").unwrap();
        let pair = |value: &str| (String::from("a"), value.to_owned());
        assert_eq!(options.connect.properties.user_properties, [pair("b"), pair("c")]);
        assert_eq!(options.connect.properties.receive_maximum.map(u16::from), Some(7));
    }

    #[test]
    fn a_url_says_everything_at_once() {
        let options = resolve("-L mqtt://ana:se:cret@[::1]:77/a/b").unwrap();
        assert_eq!((options.host.as_str(), options.port), ("::1", 77));
        assert_eq!(options.connect.user_name.as_deref(), Some("ana"));
        assert_eq!(options.connect.password.as_deref(), Some(&b"se:cret"[..]));
        assert_eq!(options.topic.as_deref(), Some("a/b"));
        let options = resolve("-L mqtt://broker").unwrap();
        assert_eq!((options.host.as_str(), options.port, options.topic), ("broker", 1883, None));
    }

    #[test]
    fn flags_and_urls_say_what_is_spoken_and_where() {
        let cafile = tempfile::NamedTempFile::new().unwrap();
        let authority = rcgen::generate_simple_self_signed([String::from("broker")]).unwrap();
        std::fs::write(cafile.path(), authority.cert.pem()).unwrap();
        let cafile = format!("--cafile {}", cafile.path().display());
        for (line, port, is_tls, path) in [
            ("", 1883, false, None),
            ("-p 77", 77, false, None),
            (cafile.as_str(), 8883, true, None),
            ("--ws", 80, false, Some("/mqtt")),
            ("--ws -p 8089 --ws-path /x", 8089, false, Some("/x")),
            (&format!("{cafile} --ws"), 443, true, Some("/mqtt")),
            ("-L ws://broker", 80, false, Some("/mqtt")),
            (&format!("-L wss://broker:9 {cafile}"), 9, true, Some("/mqtt")),
            (&format!("-L mqtts://broker {cafile} --tls-version tlsv1.2 --alpn mqtt --insecure"), 8883, true, None),
        ] {
            let options = resolve(line).unwrap();
            let found = (options.port, options.tls.is_some(), options.websocket_path.as_deref());
            assert_eq!(found, (port, is_tls, path), "{line}");
        }
    }
}
