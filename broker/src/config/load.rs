//! From sources to settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::address::ListenAddress;
use super::layer::{self, ENVIRONMENT_PREFIX, Layer};
use super::origin::{ConfigError, Origin, Problem};
use super::secret::Secret;
use super::{
    AuthenticationMethod, ClusterConfig, DEFAULT_PEER_PORT, ListenerConfig, NODE_NAME_BYTES_MAX, PACKET_BYTES_LIMIT,
    Settings,
};
use crate::peers;
use crate::replicated::SLOTS;

/// Where settings may come from, the weakest first.
#[derive(Debug, Default)]
pub struct Sources {
    /// The configuration file; its drop-in directory is `FILE.d` beside it.
    pub file: Option<PathBuf>,
    /// Variables of the environment; those that are not ours are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// What the command line said.
    pub flags: Vec<FlagValue>,
}

/// A setting given on the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct FlagValue {
    /// As the user typed it, such as `--data-dir`.
    pub flag: &'static str,
    /// The setting, such as `log.filter`.
    pub key: String,
    /// Its value.
    pub value: toml::Value,
}

impl FlagValue {
    /// A flag that stands for the setting `key`.
    #[must_use]
    pub fn new(flag: &'static str, key: &str, value: impl Into<toml::Value>) -> Self {
        Self { flag, key: key.to_owned(), value: value.into() }
    }

    /// Reads `KEY=VALUE`.
    ///
    /// # Errors
    /// There is no `=` or no such setting; the text says which.
    pub fn parse(flag: &'static str, assignment: &str) -> Result<Self, String> {
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(format!("flag {flag}: `{assignment}` must be KEY=VALUE"));
        };
        let value = layer::read_assigned(key, text).map_err(|message| format!("flag {flag}: {message}"))?;
        Ok(Self::new(flag, key, value))
    }
}

/// Settings that may be used, and where each of them was said.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The settings.
    pub settings: Settings,
    origins: BTreeMap<String, Origin>,
}

impl Effective {
    /// Reads all sources, lays them over each other and checks the outcome.
    ///
    /// # Errors
    /// Everything that is wrong, with its file and line. Always to be mended by whoever wrote the settings.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut merged = Layer::default();
        let mut problems = Vec::new();
        for layer in layers(sources) {
            match layer {
                Ok(layer) => merged.merge(layer),
                Err(found) => problems.extend(found),
            }
        }
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        let settings = Settings::deserialize(toml::Value::Table(merged.values))
            .map_err(|error| Problem { origin: Origin::Default, message: error.message().to_owned() })?;
        let mut effective = Self { settings, origins: merged.origins };
        let problems = effective.contradictions();
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        effective.read_secrets()?;
        Ok(effective)
    }

    /// Where the value of `key` (such as `session.receive_maximum` or `listener[0].address`) was said.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// Whether nobody said where to listen. Then a loopback address that this machine does not have is no error.
    #[must_use]
    pub fn listeners_are_defaults(&self) -> bool {
        !self.origins.keys().any(|key| key.split('[').next() == Some("listener"))
    }

    /// Who is to mend `key`: whoever said it, else whoever said another key of the same section.
    fn blame(&self, key: &str) -> &Origin {
        let section = key.rsplit_once('.').map_or("", |(section, _)| section);
        let sibling =
            || self.origins.iter().find(|(own, _)| own.rsplit_once('.').is_some_and(|(own, _)| own == section));
        self.origins.get(key).or_else(|| sibling().map(|(_, origin)| origin)).unwrap_or(&Origin::Default)
    }

    /// What no single source can know to be wrong.
    fn contradictions(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut refuse = |key: &str, message: String| {
            problems.push(Problem { origin: self.blame(key).clone(), message: format!("`{key}`: {message}") });
        };
        let Settings { data_dir, auth, session, storage, http, api, log, listener, .. } = &self.settings;

        if data_dir.as_os_str().is_empty() {
            refuse("data_dir", String::from("it is empty; name a directory, such as \"./kentongan-data\""));
        }
        if session.packet_bytes_max.get() > PACKET_BYTES_LIMIT {
            refuse("session.packet_bytes_max", format!("MQTT allows at most {PACKET_BYTES_LIMIT}"));
        }
        if session.packet_bytes_before_connect_max > session.packet_bytes_max {
            let limit = session.packet_bytes_max;
            refuse("session.packet_bytes_before_connect_max", format!("larger than `packet_bytes_max` ({limit})"));
        }
        if storage.groups.get() > SLOTS {
            refuse("storage.groups", format!("at most {SLOTS}: more would have nothing to keep"));
        }
        if storage.segment_bytes < 64 * 1024 {
            refuse("storage.segment_bytes", String::from("at least 65536"));
        }
        if http.token.is_some() && http.token_file.is_some() {
            refuse("http.token_file", String::from("give either `token` or `token_file`"));
        }
        if api.certificate_file.is_some() != api.key_file.is_some() {
            refuse("api.certificate_file", String::from("give both `certificate_file` and `key_file`, or neither"));
        }
        if api.tokens_file.is_some() && api.certificate_file.is_none() && !api.address.ip().to_canonical().is_loopback()
        {
            let message = "without `api.certificate_file` and `api.key_file` it must be a loopback address: tokens could be read \
                           on their way";
            refuse("api.address", String::from(message));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log.filter) {
            refuse("log.filter", format!("{error}; a level such as `info`, or `info,kentongan::session=debug`"));
        }
        if listener.is_empty() {
            refuse("listener", String::from("there must be one"));
        }
        auth.http.contradictions(&mut |key, message| refuse(&format!("auth.http.{key}"), message));
        self.settings
            .events
            .webhook
            .contradictions(&mut |key, message| refuse(&format!("events.webhook.{key}"), message));
        self.settings.cluster_contradictions(&mut refuse);
        if let Some(jwt) = &auth.jwt {
            jwt.contradictions(|key, message| refuse(&format!("auth.jwt.{key}"), message));
        }
        for (index, one) in listener.iter().enumerate() {
            let at = |name: &str| format!("listener[{index}].{name}");
            if one.keep_alive_seconds_max != 0 && one.keep_alive_seconds_min > one.keep_alive_seconds_max {
                refuse(&at("keep_alive_seconds_min"), String::from("larger than `keep_alive_seconds_max`"));
            }
            if one.protocol_versions.is_empty() {
                refuse(&at("protocol_versions"), String::from("name at least one of \"3.1\", \"3.1.1\", \"5\""));
            }
            one.websocket_contradictions(&mut |name, message| refuse(&at(name), message));
            let asks = |method| one.authentication.as_ref().is_some_and(|methods| methods.contains(&method));
            if asks(AuthenticationMethod::Password) && auth.password_file.is_none() {
                refuse(&at("authentication"), String::from("\"password\" needs `auth.password_file`"));
            }
            if asks(AuthenticationMethod::Jwt) && auth.jwt.is_none() {
                refuse(&at("authentication"), String::from("\"jwt\" needs `[auth.jwt]`"));
            }
            if asks(AuthenticationMethod::Http) && auth.http.url.is_none() {
                refuse(&at("authentication"), String::from("\"http\" needs `auth.http.url`"));
            }
            if let Some(tls) = &one.tls {
                tls.contradictions(|key, message| refuse(&at(&format!("tls.{key}")), message));
            }
        }
        self.clashes(&mut refuse);
        problems
    }

    /// Settings that would have this process listen twice at one place.
    fn clashes(&self, refuse: &mut impl FnMut(&str, String)) {
        let Settings { http, api, cluster, listener, .. } = &self.settings;
        let own = listener.iter().enumerate();
        let own = own.map(|(index, one)| (format!("listener[{index}].address"), one.address.clone()));
        let others = [
            ("http.address", http.enabled.then_some(http.address)),
            ("api.address", api.tokens_file.is_some().then_some(api.address)),
            ("cluster.address", cluster.address),
        ];
        let others = others.into_iter().filter_map(|(key, address)| Some((key.to_owned(), address?.into())));
        let places: Vec<(String, ListenAddress)> = own.chain(others).collect();
        // What nobody said is in nobody's file to be changed.
        let is_said = |key: &str| match key.starts_with("listener[") {
            true => !self.listeners_are_defaults(),
            false => self.origins.contains_key(key),
        };
        for (index, later) in places.iter().enumerate() {
            let clashes = |earlier: &&(String, ListenAddress)| earlier.1.covers(&later.1) || later.1.covers(&earlier.1);
            let Some(earlier) = places[..index].iter().find(clashes) else { continue };
            let is_earlier_to_blame = is_said(&earlier.0) && !is_said(&later.0);
            let ((key, address), (other_key, other)) =
                if is_earlier_to_blame { (earlier, later) } else { (later, earlier) };
            let how = match (address.covers(other), other.covers(address)) {
                (true, true) => format!("{address} is taken by `{other_key}`"),
                (true, false) => format!("{address} has {other} in it, which is `{other_key}`"),
                _ => format!("{address} is in {other}, which is `{other_key}`"),
            };
            refuse(key, format!("{how}: give one of them another port"));
        }
    }

    fn read_secrets(&mut self) -> Result<(), Problem> {
        if let Some(path) = self.settings.http.token_file.clone() {
            self.settings.http.token = Some(self.read_secret("http.token", &path)?);
        }
        if let Some(path) = self.settings.auth.http.header_value_file.clone() {
            self.settings.auth.http.header_value = Some(self.read_secret("auth.http.header_value", &path)?);
        }
        if let Some(path) = self.settings.events.webhook.secret_file.clone() {
            self.settings.events.webhook.secret = Some(self.read_secret("events.webhook.secret", &path)?);
            if let Err(message) = self.settings.events.webhook.key() {
                let message = format!("`events.webhook.secret_file`: {message}");
                return Err(Problem { origin: self.origin("events.webhook.secret_file").clone(), message });
            }
        }
        Ok(())
    }

    /// What is to stand under `key`, from the file that the key of that name and `_file` says.
    fn read_secret(&mut self, key: &str, path: &Path) -> Result<Secret, Problem> {
        let file_key = format!("{key}_file");
        let origin = self.origin(&file_key).clone();
        let secret = Secret::from_file(path).map_err(|error| Problem {
            origin: origin.clone(),
            message: format!("`{file_key}`: cannot use {}: {error}", path.display()),
        })?;
        self.origins.insert(key.to_owned(), origin);
        Ok(secret)
    }
}

impl Settings {
    /// What is wrong with how this node finds, and is found by, others.
    fn cluster_contradictions(&self, refuse: &mut impl FnMut(&str, String)) {
        let ClusterConfig { address, advertise, seeds, zone, voters, .. } = &self.cluster;
        let ClusterConfig { advertise_clients, ca_file, certificate_file, key_file, .. } = &self.cluster;
        if zone.as_ref().is_some_and(|zone| zone.is_empty() || zone.len() > NODE_NAME_BYTES_MAX) {
            refuse("cluster.zone", format!("1 to {NODE_NAME_BYTES_MAX} bytes"));
        }
        if voters.get().is_multiple_of(2) {
            refuse("cluster.voters", String::from("an odd number: with an even one no more nodes may be lost"));
        }
        if let Some(name) = &self.node
            && (name.is_empty() || name.len() > NODE_NAME_BYTES_MAX || name.chars().any(char::is_control))
        {
            refuse("node", format!("1 to {NODE_NAME_BYTES_MAX} bytes, none of them a control character"));
        }
        let files = [ca_file, certificate_file, key_file].map(Option::is_some);
        if files.contains(&true) && files.contains(&false) {
            let message = "give all of `ca_file`, `certificate_file` and `key_file`, or none of them";
            refuse("cluster.ca_file", String::from(message));
        }
        let advertised = (advertise.iter().map(|text| ("cluster.advertise", text)))
            .chain(advertise_clients.iter().map(|text| ("cluster.advertise_clients", text)));
        for (key, text) in advertised.chain(seeds.iter().map(|text| ("cluster.seeds", text))) {
            if let Err(message) = check_host_port(text) {
                refuse(key, message);
            }
        }
        if let Some(twice) = seeds.iter().enumerate().find(|(index, seed)| seeds[..*index].contains(seed)) {
            refuse("cluster.seeds", format!("{} stands there twice", twice.1));
        }
        let packet_bytes_max = self.session.packet_bytes_max.get();
        if address.is_some() && packet_bytes_max > peers::PACKET_BYTES_MAX {
            let limit = peers::PACKET_BYTES_MAX;
            refuse(
                "session.packet_bytes_max",
                format!("at most {limit} with `cluster.address`: nodes send no more at once"),
            );
        }
        let Some(address) = address else {
            for (key, is_set) in [("cluster.advertise", advertise.is_some()), ("cluster.seeds", !seeds.is_empty())] {
                if is_set {
                    let message = "means nothing without `cluster.address` (--cluster), where others connect";
                    refuse(key, String::from(message));
                }
            }
            return;
        };
        if address.ip().is_unspecified() && advertise.is_none() {
            let message =
                format!("others cannot dial {address}: say where they do with `cluster.advertise` (--advertise)");
            refuse("cluster.address", message);
        }
        if !address.ip().to_canonical().is_loopback() && !files.contains(&true) {
            let message = "without `cluster.ca_file`, `cluster.certificate_file` and `cluster.key_file` it must be a \
                           loopback address: other machines could read and forge everything";
            refuse("cluster.address", String::from(message));
        }
        let leaves_machine = |text: &String| {
            text.parse::<SocketAddr>().is_ok_and(|advertised| !advertised.ip().to_canonical().is_loopback())
        };
        if advertise.as_ref().is_some_and(leaves_machine) && !files.contains(&true) {
            let message = "without `cluster.ca_file`, `cluster.certificate_file` and `cluster.key_file` it must be a \
                           loopback address: other nodes dial no other";
            refuse("cluster.advertise", String::from(message));
        }
    }
}

impl ListenerConfig {
    /// What is wrong with how clients come by WebSocket, or through a balancer.
    fn websocket_contradictions(&self, refuse: &mut dyn FnMut(&str, String)) {
        if self.proxy_protocol_identity && self.proxy_protocol_from.is_empty() {
            let message = "means nothing without `proxy_protocol_from`, the balancers that are believed";
            refuse("proxy_protocol_identity", String::from(message));
        }
        let Some(websocket) = &self.websocket else {
            return;
        };
        let path = &websocket.path;
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte)) {
            refuse("websocket.path", format!("{path:?} must be a path such as /mqtt"));
        }
        let is_origin = |text: &str| {
            let host = text.split_once("://").map(|(_, host)| host);
            text == "null" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*']))
        };
        if let Some(wrong) = websocket.origins.iter().find(|origin| !is_origin(origin)) {
            refuse(
                "websocket.origins",
                format!("{wrong:?} must be an origin such as https://example.org, without a path"),
            );
        }
    }
}

/// Whether `text` is a host and a port that can be dialled.
pub(crate) fn check_host_port(text: &str) -> Result<(), String> {
    let is_dialled = match text.rsplit_once(':') {
        None => false,
        // An IPv6 address needs its brackets, or its end would be taken for the port.
        Some((host, _)) if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) => false,
        Some((host, port)) => !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0),
    };
    if is_dialled { Ok(()) } else { Err(format!("{text:?} must be HOST:PORT, such as 127.0.0.1:{DEFAULT_PEER_PORT}")) }
}

/// Every source by itself, the weakest first.
fn layers(sources: &Sources) -> Vec<Result<Layer, Vec<Problem>>> {
    let mut layers = Vec::new();
    if let Some(file) = &sources.file {
        layers.push(read_file(file));
        match drop_ins(file) {
            Ok(paths) => layers.extend(paths.iter().map(|path| read_file(path))),
            Err(problem) => layers.push(Err(vec![problem])),
        }
    }
    let mut variables: Vec<_> = sources.environment.iter().filter_map(own_variable).collect();
    variables.sort();
    for (name, text) in variables {
        let Some(text) = text.to_str() else {
            let message = String::from("not UTF-8");
            layers.push(Err(vec![Problem { origin: Origin::Environment(name.to_owned()), message }]));
            continue;
        };
        layers.extend(Layer::from_variable(name, text).map_err(|problem| vec![problem]).transpose());
    }
    for FlagValue { flag, key, value } in &sources.flags {
        let path: Vec<&str> = key.split('.').collect();
        let layer = Layer::single(&path, value.clone(), Origin::Flag(flag));
        layers.push(layer.map_err(|problem| vec![problem]));
    }
    layers
}

fn own_variable((name, text): &(OsString, OsString)) -> Option<(&str, &OsString)> {
    let name = name.to_str().filter(|name| name.starts_with(ENVIRONMENT_PREFIX))?;
    Some((name, text))
}

fn read_file(path: &Path) -> Result<Layer, Vec<Problem>> {
    let origin = Origin::File { path: path.to_owned(), line: None };
    let text = fs::read_to_string(path)
        .map_err(|error| vec![Problem { origin, message: format!("cannot read the file: {error}") }])?;
    Layer::from_toml(path, &text)
}

/// `FILE.d/*.toml`, in the order of their names. No such directory means none; hidden files are passed over, for they
/// are editors' leftovers or, in Kubernetes, the bookkeeping of a mounted ConfigMap.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, Problem> {
    let mut directory = file.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let unreadable = |error: std::io::Error| Problem {
        origin: Origin::File { path: directory.clone(), line: None },
        message: format!("cannot read the drop-in directory: {error}"),
    };
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
