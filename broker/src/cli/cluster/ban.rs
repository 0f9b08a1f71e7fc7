//! Who is kept out.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use kentongan_cluster::directory::command::Ban;
use kentongan_cluster::transport::Transport;
use serde_json::{Value, json};

use super::AskedArgs;
use super::act::{self, DECIDED_WITHIN};
use super::ask::{PAUSE, status_of};
use super::show::{plain, table_of};
use crate::bans::{Network, Subject};
use crate::peers::administration::{Act, BANS_A_PAGE, BansBehind};

const COLUMNS: [&str; 3] = ["WHO", "UNTIL", "REASON"];

#[derive(Debug, Args)]
pub(in crate::cli) struct BanArgs {
    #[command(flatten)]
    who: WhoArgs,
    /// How long. Without it, until it is lifted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Why, for those who print the bans.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    pub(super) asked: AskedArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct UnbanArgs {
    #[command(flatten)]
    who: WhoArgs,
    #[command(flatten)]
    pub(super) asked: AskedArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BansArgs {
    /// Print them as JSON.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) asked: AskedArgs,
}

/// Whom it is about: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct WhoArgs {
    /// Whoever has this Client Identifier.
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    client_id: Option<String>,
    /// Whoever is this user, or says to be.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    user: Option<String>,
    /// Whoever comes from this address, or with /BITS behind it from this network.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Network>,
}

impl WhoArgs {
    fn subject(&self) -> anyhow::Result<Subject> {
        let client_id = self.client_id.clone().map(Subject::ClientId);
        let user = || self.user.clone().map(Subject::User);
        let network = || self.address.map(Subject::Network);
        // The command line asks for one of them.
        client_id.or_else(user).or_else(network).ok_or_else(|| anyhow::anyhow!("say whom it is about"))
    }
}

/// When a ban ends that lasts `seconds` from now, in whole seconds since 1970: later rather than too early. By the clock of the cluster,
/// which will end it; that of this machine counts only where an older node does not say what the cluster's says.
fn end_after(seconds: u64, cluster_wall_ms: Option<u64>) -> u64 {
    let own = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = cluster_wall_ms.map_or_else(own, Duration::from_millis);
    now.saturating_add(Duration::from_secs(seconds)).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

/// What the cluster's clock says, if the node is one that knows; asked for as long as the ban itself would be.
fn cluster_wall_ms(transport: &Transport, peer: &str) -> anyhow::Result<Option<u64>> {
    let deadline = Instant::now() + DECIDED_WITHIN;
    loop {
        match status_of(transport, peer) {
            Ok(status) => return Ok(status.cluster_wall_ms),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Bans somebody, and returns when that is committed.
pub(super) fn ban(transport: &Transport, peer: &str, arguments: &BanArgs) -> anyhow::Result<String> {
    let subject = arguments.who.subject()?;
    let until_seconds = match arguments.seconds {
        Some(seconds) => end_after(seconds, cluster_wall_ms(transport, peer)?),
        None => 0,
    };
    let ban = Ban { until_seconds, reason: arguments.reason.clone(), ..about(&subject) };
    act::decide(transport, peer, &Act::Ban(ban), Instant::now() + DECIDED_WITHIN)?;
    Ok(format!("{} is banned {}\n", plain(&subject.to_string()), end(until_seconds)))
}

/// Lifts a ban, and returns when that is committed.
pub(super) fn unban(transport: &Transport, peer: &str, arguments: &UnbanArgs) -> anyhow::Result<String> {
    let subject = arguments.who.subject()?;
    let ban = Ban { lifted: true, ..about(&subject) };
    act::decide(transport, peer, &Act::Ban(ban), Instant::now() + DECIDED_WITHIN)?;
    Ok(format!("{} is not banned\n", plain(&subject.to_string())))
}

fn about(subject: &Subject) -> Ban {
    Ban { subject: subject.to_string(), ..Ban::default() }
}

fn end(until_seconds: u64) -> String {
    match i64::try_from(until_seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()) {
        Some(at) if until_seconds != 0 => format!("until {at}"),
        _ => "for good".to_owned(),
    }
}

/// Everybody who is banned, as the node that is asked has it.
pub(super) fn list(transport: &Transport, peer: &str, is_json: bool) -> anyhow::Result<String> {
    let bans = all(transport, peer)?;
    if is_json {
        let value = |ban: &Ban| {
            let until = (ban.until_seconds != 0).then_some(ban.until_seconds);
            json!({ "who": ban.subject, "until_seconds": until, "reason": ban.reason })
        };
        return Ok(format!("{:#}\n", json!({ "bans": bans.iter().map(value).collect::<Vec<Value>>() })));
    }
    if bans.is_empty() {
        return Ok("nobody is banned\n".to_owned());
    }
    let row = |ban: &Ban| vec![plain(&ban.subject), end(ban.until_seconds), plain(&ban.reason)];
    Ok(table_of(&COLUMNS, &bans.iter().map(row).collect::<Vec<_>>()))
}

fn all(transport: &Transport, peer: &str) -> anyhow::Result<Vec<Ban>> {
    let deadline = Instant::now() + DECIDED_WITHIN;
    let mut bans: Vec<Ban> = Vec::new();
    loop {
        let subject = bans.last().map_or_else(String::new, |ban| ban.subject.clone());
        match act::administer(transport, peer, Act::Bans(BansBehind { subject })) {
            Ok(page) if page.done => {
                let is_last = page.bans.len() < BANS_A_PAGE;
                bans.extend(page.bans);
                if is_last {
                    return Ok(bans);
                }
            }
            Err(error) if error.is_unreached && Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("cannot ask {peer}"));
            }
            outcome => {
                let hindrance = outcome.map_or_else(|error| error.to_string(), |answer| answer.hindrance);
                anyhow::ensure!(Instant::now() < deadline, "cannot ask {peer}: {hindrance}");
                std::thread::sleep(PAUSE);
            }
        }
    }
}
