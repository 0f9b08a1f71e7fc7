//! `kentongan ctl`: what operators ask and do, by the HTTP API of any node.

mod trace;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::{Args, Subcommand};
use hyper::header::AUTHORIZATION;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::cluster::show::{plain, table_of};
use super::exclusive::Exclusive;
use super::{EXIT_FAILURE, print_bytes};
use crate::api::tokens::{Role, Token, Tokens, check_name};
use crate::config::{HttpUrl, Secret};
use crate::http_client::{HttpClient, HttpClientOptions, secret_header};

/// More than what the directory has to decide within.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A page of the API is about a MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Rows of a page.
const PAGE_ROWS: usize = 500;

#[derive(Debug, Args)]
pub(super) struct CtlArgs {
    #[command(subcommand)]
    command: CtlCommand,
    #[command(flatten)]
    to: ToArgs,
}

/// Whom to ask, and with which token.
#[derive(Debug, Args)]
struct ToArgs {
    /// The API of a node.
    #[arg(long, global = true, value_name = "URL", env = "KENTONGANCTL_URL", default_value = "http://127.0.0.1:18083")]
    url: String,
    /// The file that the token is in. Without it, the token is that of the environment's KENTONGANCTL_TOKEN.
    #[arg(long, global = true, value_name = "FILE", env = "KENTONGANCTL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Authorities (PEM) that the node is trusted by, if its API speaks TLS. Without it, those of the system.
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Make a token: print it, once, and add its hash to a file.
    Token(TokenArgs),
    /// Clients that are connected.
    #[command(subcommand)]
    Clients(ClientsCommand),
    /// Sessions that outlive their connections.
    #[command(subcommand)]
    Sessions(SessionsCommand),
    /// Subscriptions of clients that are connected.
    Subscriptions {
        /// Only those of this client.
        #[arg(long, value_name = "ID")]
        client_id: Option<String>,
        /// Only those that match this Topic Name.
        #[arg(long, value_name = "TOPIC")]
        matching: Option<String>,
        #[command(flatten)]
        rows: RowsArgs,
    },
    /// Retained messages.
    #[command(subcommand)]
    Retained(RetainedCommand),
    /// Publish a message.
    Publish {
        /// Topic Name.
        topic: String,
        /// The payload.
        payload: String,
        /// Quality of Service.
        #[arg(long, short, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=2))]
        qos: u8,
        /// Have it retained.
        #[arg(long, short)]
        retain: bool,
    },
    /// Who is kept out.
    #[command(subcommand)]
    Banned(BannedCommand),
    /// Users that nodes have in their password files.
    Users {
        /// Only those with this in their names.
        #[arg(long, value_name = "TEXT")]
        like: Option<String>,
        #[command(flatten)]
        rows: RowsArgs,
    },
    /// Nodes of the cluster.
    Nodes,
    /// Groups, and who leads them.
    Groups,
    /// Drain a node.
    Drain {
        /// Its name or id.
        node: String,
        /// It may have clients again.
        #[arg(long)]
        undo: bool,
    },
    /// Have settings, users, rights, tokens and certificates read again.
    Reload {
        /// Only on this node, by its name or id.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Subscribers that are most behind.
    Slow {
        /// By what.
        #[arg(long, value_parser = ["bytes", "messages", "blocked"], default_value = "bytes")]
        by: String,
        /// How many at most.
        #[arg(long, value_name = "ROWS", default_value_t = 20)]
        limit: u16,
    },
    /// Topics that are published to most: counted for some seconds, from now on.
    Top {
        /// By what.
        #[arg(long, value_parser = ["messages", "bytes"], default_value = "messages")]
        by: String,
        /// For how long.
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=25))]
        seconds: u32,
        /// How many at most.
        #[arg(long, value_name = "ROWS", default_value_t = 20)]
        limit: u16,
    },
    /// Show what one client does, or what becomes of the messages of some topics, as it goes on.
    Trace(trace::TraceArgs),
    /// What nodes log.
    Log {
        /// What they are to log from now on, such as info,kentongan::session=debug.
        filter: Option<String>,
        /// Only this node, by its name or id.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// Whose it is, for the audit log.
    name: String,
    /// What he may do.
    #[arg(long, value_enum)]
    role: Role,
    /// The file of `api.tokens_file`; it is made if it does not exist. Nodes read it again on SIGHUP.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
struct RowsArgs {
    /// How many at most; 0 is all.
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    limit: usize,
}

#[derive(Debug, Subcommand)]
enum ClientsCommand {
    /// List them.
    List {
        /// Only those of this node, by its name or id.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// Only those of this user.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Only those with this in their Client Identifiers.
        #[arg(long, value_name = "TEXT")]
        like: Option<String>,
        /// Only those from this address.
        #[arg(long, value_name = "ADDRESS")]
        address: Option<String>,
        #[command(flatten)]
        rows: RowsArgs,
    },
    /// Show one.
    Show {
        /// Its Client Identifier.
        client_id: String,
    },
    /// Close a client's connection.
    Kick {
        /// Its Client Identifier.
        client_id: String,
    },
}

#[derive(Debug, Subcommand)]
enum SessionsCommand {
    /// List them.
    List {
        /// Only those of this user.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Only those with this in their Client Identifiers.
        #[arg(long, value_name = "TEXT")]
        like: Option<String>,
        #[command(flatten)]
        rows: RowsArgs,
    },
    /// Show one, and what it subscribes to.
    Show {
        /// Its Client Identifier.
        client_id: String,
    },
    /// End one, with what waits for it; its client is disconnected.
    Discard {
        /// Its Client Identifier.
        client_id: String,
    },
}

#[derive(Debug, Subcommand)]
enum RetainedCommand {
    /// List them, without their payloads.
    List {
        /// Only those whose topics this Topic Filter matches.
        #[arg(default_value = "#")]
        filter: String,
        #[command(flatten)]
        rows: RowsArgs,
    },
    /// Show one, with its payload in Base64.
    Get {
        /// Topic Name.
        topic: String,
    },
    /// Delete one.
    Delete {
        /// Topic Name.
        topic: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
enum BannedKind {
    /// A Client Identifier.
    ClientId,
    /// A user.
    Username,
    /// An address, or with /BITS behind it a network.
    PeerHost,
}

impl BannedKind {
    fn name(self) -> &'static str {
        match self {
            Self::ClientId => "clientid",
            Self::Username => "username",
            Self::PeerHost => "peerhost",
        }
    }
}

#[derive(Debug, Subcommand)]
enum BannedCommand {
    /// List them.
    List {
        #[command(flatten)]
        rows: RowsArgs,
    },
    /// Ban somebody.
    Add {
        /// What WHO is.
        #[arg(value_enum)]
        kind: BannedKind,
        /// Whom.
        who: String,
        /// For how many seconds. Without it, for good.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: Option<u64>,
        /// Why.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Lift a ban.
    Remove {
        /// What WHO is.
        #[arg(value_enum)]
        kind: BannedKind,
        /// Whose.
        who: String,
    },
}

const CLIENT_COLUMNS: [&str; 8] =
    ["clientid", "username", "node", "ip_address", "proto_ver", "keepalive", "subscriptions_cnt", "connected_at"];
const SESSION_COLUMNS: [&str; 7] =
    ["clientid", "username", "connected", "subscriptions_cnt", "mqueue_len", "inflight_cnt", "expiry_interval"];
const SUBSCRIPTION_COLUMNS: [&str; 4] = ["clientid", "topic", "qos", "node"];
const RETAINED_COLUMNS: [&str; 4] = ["topic", "qos", "payload_bytes", "from_clientid"];
const BANNED_COLUMNS: [&str; 4] = ["as", "who", "until_seconds", "reason"];
const USER_COLUMNS: [&str; 4] = ["username", "source", "algorithm", "nodes"];
const NODE_COLUMNS: [&str; 8] =
    ["node", "node_status", "standing", "version", "connections", "leads", "drains", "client_address"];
const GROUP_COLUMNS: [&str; 5] = ["group", "leader", "term", "voters", "learners"];
const SLOW_COLUMNS: [&str; 8] = [
    "clientid",
    "username",
    "node",
    "out_buffer_bytes",
    "mqueue_len",
    "inflight_cnt",
    "blocked_seconds",
    "silent_seconds",
];
const TOP_COLUMNS: [&str; 3] = ["topic", "count", "error"];
const RELOAD_COLUMNS: [&str; 5] = ["node", "applied", "changed", "needs_restart", "detail"];
const LOG_COLUMNS: [&str; 3] = ["node", "filter", "detail"];

pub(super) fn run(arguments: &CtlArgs) -> u8 {
    let outcome = match &arguments.command {
        CtlCommand::Token(token) => make_token(token),
        command => Asker::new(&arguments.to).and_then(|asker| asker.carry_out(command)),
    };
    match outcome {
        Ok(text) => print_bytes(text.as_bytes()),
        Err(error) => {
            if let Some(NotApplied { rows }) = error.downcast_ref() {
                print_bytes(rows.as_bytes());
            }
            eprintln!("kentongan ctl: {error:#}");
            EXIT_FAILURE
        }
    }
}

/// Nodes that did not do it, among what all answered.
#[derive(Debug, thiserror::Error)]
#[error("not every node has applied it")]
struct NotApplied {
    /// As they are printed.
    rows: String,
}

/// What is printed of an answer, `rows`, if all nodes have done it.
fn all_of(answer: &Value, rows: String, has_done_it: impl Fn(&Value) -> bool) -> anyhow::Result<String> {
    match answer["data"].as_array().is_some_and(|nodes| nodes.iter().all(has_done_it)) {
        true => Ok(rows),
        false => Err(NotApplied { rows }.into()),
    }
}

/// The token, alone on its line.
fn make_token(TokenArgs { name, role, file }: &TokenArgs) -> anyhow::Result<String> {
    check_name(name).map_err(anyhow::Error::msg)?;
    // Nobody adds the same name meanwhile. A link to the file is changed where it leads.
    let _exclusive = Exclusive::beside(&std::fs::canonicalize(file).unwrap_or_else(|_| file.clone()));
    let before = match file.try_exists()? {
        true => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        false => String::new(),
    };
    let is_named = |line: &str| line.split(':').next() == Some(name.as_str());
    ensure!(!before.lines().any(is_named), "{} has a token of {name} already: take its line out first", file.display());
    let token = Token::draw();
    let end = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    append(file, &format!("{end}{}\n", token.line(name, *role)))?;
    Tokens::read(file)?;
    Ok(format!("{}\n", token.expose()))
}

fn append(file: &Path, text: &str) -> anyhow::Result<()> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(file);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.with_context(|| format!("cannot write {}", file.display()))
}

/// Asks a node.
struct Asker {
    client: HttpClient,
    runtime: tokio::runtime::Runtime,
    base: String,
    is_json: bool,
}

impl Asker {
    fn new(to: &ToArgs) -> anyhow::Result<Self> {
        let token = match &to.token_file {
            Some(file) => Secret::from_file(file).with_context(|| format!("cannot use {}", file.display()))?,
            None => {
                let token = std::env::var("KENTONGANCTL_TOKEN").ok().filter(|token| !token.is_empty());
                Secret::new(token.context("give a token by --token-file, or by KENTONGANCTL_TOKEN in the environment")?)
            }
        };
        let bearer = Secret::new(format!("Bearer {}", token.expose().trim()));
        let options = HttpClientOptions {
            ca_file: to.ca_file.clone(),
            header: Some(secret_header(AUTHORIZATION, &bearer).context("the token")?),
            timeout: TIMEOUT,
            body_bytes_max: ANSWER_BYTES_MAX,
            idle_connections_max: 1,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let base = format!("{}/api/v1", to.url.trim_end_matches('/'));
        Ok(Self { client: HttpClient::new(&options)?, runtime, base, is_json: to.json })
    }

    fn carry_out(&self, command: &CtlCommand) -> anyhow::Result<String> {
        match command {
            CtlCommand::Token(_) => unreachable!("it asks nobody"),
            CtlCommand::Clients(ClientsCommand::List { node, user, like, address, rows }) => {
                let query = [("node", node), ("username", user), ("like_clientid", like), ("ip_address", address)];
                self.list("/clients", &query, rows, &CLIENT_COLUMNS)
            }
            CtlCommand::Clients(ClientsCommand::Show { client_id }) => {
                self.show(&self.get(&format!("/clients/{}", encoded(client_id)))?)
            }
            CtlCommand::Clients(ClientsCommand::Kick { client_id }) => {
                self.ask(Method::DELETE, &format!("/clients/{}", encoded(client_id)), None)?;
                Ok(format!("{} is closed\n", plain(client_id)))
            }
            CtlCommand::Sessions(SessionsCommand::List { user, like, rows }) => {
                self.list("/sessions", &[("username", user), ("like_clientid", like)], rows, &SESSION_COLUMNS)
            }
            CtlCommand::Sessions(SessionsCommand::Show { client_id }) => {
                self.show(&self.get(&format!("/sessions/{}", encoded(client_id)))?)
            }
            CtlCommand::Sessions(SessionsCommand::Discard { client_id }) => {
                self.ask(Method::DELETE, &format!("/sessions/{}", encoded(client_id)), None)?;
                Ok(format!("the session of {} has ended\n", plain(client_id)))
            }
            CtlCommand::Users { like, rows } => self.list("/users", &[("like_username", like)], rows, &USER_COLUMNS),
            CtlCommand::Trace(trace) => self.trace(trace),
            CtlCommand::Subscriptions { client_id, matching, rows } => {
                let query = [("clientid", client_id), ("match_topic", matching)];
                self.list("/subscriptions", &query, rows, &SUBSCRIPTION_COLUMNS)
            }
            CtlCommand::Retained(RetainedCommand::List { filter, rows }) => {
                self.list("/retained", &[("topic", &Some(filter.clone()))], rows, &RETAINED_COLUMNS)
            }
            CtlCommand::Retained(RetainedCommand::Get { topic }) => {
                self.show(&self.get(&format!("/retained/{}", encoded(topic)))?)
            }
            CtlCommand::Retained(RetainedCommand::Delete { topic }) => {
                self.ask(Method::DELETE, &format!("/retained/{}", encoded(topic)), None)?;
                Ok(format!("nothing is retained for {} any more\n", plain(topic)))
            }
            CtlCommand::Publish { topic, payload, qos, retain } => {
                let body = json!({ "topic": topic, "payload": payload, "qos": qos, "retain": retain });
                self.ask(Method::POST, "/publish", Some(&body))?;
                Ok("it is on its way\n".to_owned())
            }
            CtlCommand::Banned(BannedCommand::List { rows }) => self.list("/banned", &[], rows, &BANNED_COLUMNS),
            CtlCommand::Banned(BannedCommand::Add { kind, who, seconds, reason }) => {
                let body = json!({ "as": kind.name(), "who": who, "seconds": seconds, "reason": reason });
                self.show(&self.ask(Method::POST, "/banned", Some(&body))?)
            }
            CtlCommand::Banned(BannedCommand::Remove { kind, who }) => {
                self.ask(Method::DELETE, &format!("/banned/{}/{}", kind.name(), encoded(who)), None)?;
                Ok(format!("{} is not banned\n", plain(who)))
            }
            CtlCommand::Nodes => self.rows(&self.get("/nodes")?, &NODE_COLUMNS),
            CtlCommand::Groups => self.rows(&self.get("/groups")?, &GROUP_COLUMNS),
            CtlCommand::Drain { node, undo } => {
                let method = if *undo { Method::DELETE } else { Method::POST };
                self.show(&self.ask(method, &format!("/nodes/{}/drain", encoded(node)), None)?)
            }
            CtlCommand::Reload { node } => {
                let path = format!("/reload?{}", query(&[("node", node)]));
                let answer = self.ask(Method::POST, &path, None)?;
                all_of(&answer, self.rows(&answer, &RELOAD_COLUMNS)?, |row| row["applied"] == true)
            }
            CtlCommand::Slow { by, limit } => {
                self.rows(&self.get(&format!("/slow-subscribers?by={by}&limit={limit}"))?, &SLOW_COLUMNS)
            }
            CtlCommand::Top { by, seconds, limit } => {
                self.rows(&self.get(&format!("/top-topics?by={by}&seconds={seconds}&limit={limit}"))?, &TOP_COLUMNS)
            }
            CtlCommand::Log { filter, node } => {
                let path = format!("/log?{}", query(&[("node", node)]));
                let Some(filter) = filter else { return self.rows(&self.get(&path)?, &LOG_COLUMNS) };
                let answer = self.ask(Method::PUT, &path, Some(&json!({ "filter": filter })))?;
                all_of(&answer, self.rows(&answer, &LOG_COLUMNS)?, |row| row["filter"].is_string())
            }
        }
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None)
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let url = self.url(path)?;
        let body = body.map(|body| Bytes::from(body.to_string()));
        let asking = self.client.request(method, &url, body, &[]);
        let answer = self.runtime.block_on(asking).with_context(|| self.unreached())?;
        let value = match answer.body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&answer.body).with_context(|| format!("{} answers no JSON", self.base))?,
        };
        if !answer.status.is_success() {
            return Err(self.refusal(answer.status, &value));
        }
        Ok(value)
    }

    /// Where something of the API is.
    fn url(&self, path: &str) -> anyhow::Result<HttpUrl> {
        let url = HttpUrl::parse_like(&format!("{}{path}", self.base), "http://127.0.0.1:18083");
        url.map_err(|error| anyhow::anyhow!("--url: {error}"))
    }

    /// What to look at if nobody answers.
    fn unreached(&self) -> String {
        format!("{}: is api.tokens_file set there, and --url where its API listens?", self.base)
    }

    /// Why it was not done.
    fn refusal(&self, status: StatusCode, problem: &Value) -> anyhow::Error {
        match problem["detail"].as_str() {
            Some(detail) => anyhow::anyhow!("{} ({status})", as_commands(&plain(detail))),
            None => anyhow::anyhow!("{} answers {status}", self.base),
        }
    }

    /// A list, page after page.
    fn list(
        &self,
        path: &str,
        wanted: &[(&str, &Option<String>)],
        RowsArgs { limit }: &RowsArgs,
        columns: &[&str],
    ) -> anyhow::Result<String> {
        let (mut data, mut unavailable) = (Vec::new(), Vec::new());
        let mut cursor = None;
        loop {
            let left = if *limit == 0 { PAGE_ROWS } else { (limit - data.len()).min(PAGE_ROWS) };
            let mut asked = wanted.to_vec();
            let left = Some(left.to_string());
            asked.extend([("limit", &left), ("cursor", &cursor)]);
            let mut page = self.get(&format!("{path}?{}", query(&asked)))?;
            let mut take = |key: &str| page[key].as_array_mut().map(std::mem::take).unwrap_or_default();
            data.extend(take("data"));
            unavailable.extend(take("unavailable"));
            cursor = page["meta"]["cursor"].as_str().map(str::to_owned);
            if cursor.is_none() || (*limit != 0 && data.len() >= *limit) {
                break;
            }
        }
        let has_more = cursor.is_some();
        let answer = json!({ "data": data, "hasnext": has_more, "unavailable": unavailable });
        let mut text = self.rows(&answer, columns)?;
        if has_more && !self.is_json {
            text.push_str("and more: --limit says how many\n");
        }
        Ok(text)
    }

    fn rows(&self, answer: &Value, columns: &[&str]) -> anyhow::Result<String> {
        if self.is_json {
            return Ok(format!("{answer:#}\n"));
        }
        let headings: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
        let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
        let rows = answer["data"].as_array().context("the answer has no rows")?;
        let row = |row: &Value| columns.iter().map(|column| cell(&row[*column])).collect();
        let mut text = table_of(&headings, &rows.iter().map(row).collect::<Vec<_>>());
        for silent in answer["unavailable"].as_array().into_iter().flatten() {
            text.push_str(&format!("no answer from {}: {}\n", cell(&silent["node"]), cell(&silent["detail"])));
        }
        Ok(text)
    }

    fn show(&self, answer: &Value) -> anyhow::Result<String> {
        if self.is_json {
            return Ok(format!("{answer:#}\n"));
        }
        let fields = answer.as_object().context("the answer is no object")?;
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        Ok(fields.iter().map(|(name, value)| format!("{name:width$}  {}\n", cell(value))).collect())
    }
}

/// Lists of the API that its hints name, and what prints them.
const HINTED: [(&str, &str); 3] = [
    ("/api/v1/sessions", "`ctl sessions list`"),
    ("/api/v1/clients", "`ctl clients list`"),
    ("/api/v1/nodes", "`ctl nodes`"),
];

/// A hint of the API, for those who type commands.
fn as_commands(detail: &str) -> String {
    HINTED.iter().fold(detail.to_owned(), |text, (path, command)| text.replace(path, command))
}

/// A value as people read it.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => plain(text),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(fields) => fields.values().map(cell).collect::<Vec<_>>().join(" "),
        Value::Number(number) => number.to_string(),
    }
}

fn query(wanted: &[(&str, &Option<String>)]) -> String {
    let pair = |(name, value): &(&str, &Option<String>)| Some(format!("{name}={}", encoded(value.as_deref()?)));
    wanted.iter().filter_map(pair).collect::<Vec<_>>().join("&")
}

/// A text within a URL.
fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tokens::TokenHash;

    #[test]
    fn a_text_within_a_url_is_encoded() {
        assert_eq!(encoded("plant/1 ä?#"), "plant%2F1%20%C3%A4%3F%23");
        assert_eq!(query(&[("a", &Some("b c".to_owned())), ("d", &None)]), "a=b%20c");
    }

    #[test]
    fn what_one_node_has_not_done_is_a_failure_and_is_printed_all_the_same() {
        let all = |second: Value| {
            let answer = json!({ "data": [{ "node": "n1", "filter": "info" }, { "node": "n2", "filter": second }] });
            all_of(&answer, "rows".to_owned(), |row| row["filter"].is_string())
        };
        assert_eq!(all("info".into()).expect("all have"), "rows");
        let error = all(Value::Null).expect_err("n2 does not answer");
        assert_eq!(error.downcast_ref::<NotApplied>().map(|error| &*error.rows), Some("rows"));
    }

    #[test]
    fn a_token_is_made_once_for_a_name_in_a_file_of_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tokens");
        let arguments = |name: &str| TokenArgs { name: name.to_owned(), role: Role::Viewer, file: file.clone() };
        let token = make_token(&arguments("ann")).expect("made");
        make_token(&arguments("ben")).expect("made");
        assert!(make_token(&arguments("ann")).is_err());
        let tokens = Tokens::read(&file).expect("good");
        let hash = TokenHash::of(token.trim().as_bytes()).expect("short enough");
        assert_eq!(tokens.bearer(&hash).map(|bearer| bearer.name.as_str()), Some("ann"));
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_name_that_is_added_twice_at_the_same_moment_stands_there_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tokens");
        let together = std::sync::Barrier::new(12);
        let made: usize = std::thread::scope(|scope| {
            let make = || {
                let arguments = TokenArgs { name: "ann".to_owned(), role: Role::Viewer, file: file.clone() };
                together.wait();
                usize::from(make_token(&arguments).is_ok())
            };
            let making: Vec<_> = (0..12).map(|_| scope.spawn(make)).collect();
            making.into_iter().map(|one| one.join().expect("it ends")).sum()
        });
        assert_eq!(made, 1);
        Tokens::read(&file).expect("good");
    }
}
