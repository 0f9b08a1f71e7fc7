//! Who may have how many files and connections open, so that the log and its checkpoints find a descriptor whatever comes from outside.
//!
//! Each door has a bound of its own, and clients get what is left when all of them are full. Where the process may open few files, the
//! doors give way first: together they have no more than half of what is not the broker's own, and are bounded by that.

use anyhow::ensure;
use kentongan_cluster::state::{OPEN_TABLES_MAX, OPEN_TABLES_MIN};
use kentongan_cluster::transport::{CONNECTIONS_MAX as PEERS_MAX, STRANGERS_MIN};

use crate::config::Settings;
use crate::http;

/// What a node opens before anybody connects, beside what each arbiter does.
const AT_START: u64 = 40;

/// An arbiter's poller and what wakes it.
const OF_ARBITER: u64 = 4;

/// What is open for a while only: segments and tables that are written and merged, files of settings and certificates, questions to servers
/// of keys, a webhook.
const FOR_A_WHILE: u64 = 24;

/// Links with other nodes and questions to them, for eight nodes. More use what `limits.descriptors_reserve` keeps.
const LINKS: u64 = 64;

/// Checkpoints of other nodes: each keeps its file open until the store has it, and the two that are fetched at a time, one of which is the
/// directory's, have it open to write as well. Of more groups than this not all are on their way at once.
const COPIED_GROUPS_MAX: u64 = 32;

/// A door that nobody gets through is no use.
const DOOR_MIN: u64 = 4;

/// Of what is not the broker's own, strangers at the port for nodes have one in so many, where that is more than their least: the more
/// there may be, the more somebody must send to keep a node from ending its handshake.
const STRANGERS_SHARE: u64 = 16;

/// How many of each kind there may be at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Connections of clients.
    pub clients: usize,
    /// Connections to `/metrics` and health.
    pub http: usize,
    /// Connections to the API.
    pub api: usize,
    /// Connections to the port for nodes that have shown no certificate.
    pub strangers: usize,
    /// Tables of the state store that are kept open.
    pub tables: usize,
}

impl Default for Descriptors {
    fn default() -> Self {
        Self::of(u64::MAX, &Settings::default(), 1)
    }
}

impl Descriptors {
    /// Deals `limit` out as `settings` want it.
    #[must_use]
    pub fn of(limit: u64, settings: &Settings, arbiters: usize) -> Self {
        let if_any = |is_there: bool, count: u64| if is_there { count } else { 0 };
        let is_member = settings.cluster.address.is_some();
        let own = needed(arbiters)
            + FOR_A_WHILE
            + u64::from(settings.limits.descriptors_reserve)
            // An authentication server may be named while the broker runs.
            + u64::from(settings.auth.http.requests_max.get())
            + if_any(is_member, LINKS + u64::from(settings.storage.groups.get()).min(COPIED_GROUPS_MAX) + 2);
        let http = if_any(settings.http.enabled, http::CONNECTIONS_MAX as u64);
        let api = if_any(settings.api.tokens_file.is_some(), settings.api.connections_max.get().into());
        let rest = limit.saturating_sub(own);
        let strangers = if_any(is_member, (rest / STRANGERS_SHARE).clamp(STRANGERS_MIN as u64, PEERS_MAX as u64));
        let tables = OPEN_TABLES_MAX as u64;
        let wanted = http + api + strangers + tables;
        let share = |one: u64, least: u64| match rest / 2 {
            given if given < wanted => (one * given / wanted).max(least.min(one)),
            _ => one,
        };
        let (http, api, strangers) = (share(http, DOOR_MIN), share(api, DOOR_MIN), share(strangers, DOOR_MIN));
        let tables = share(tables, OPEN_TABLES_MIN as u64);
        let clients = rest.saturating_sub(http + api + strangers + tables).max(1);
        let [clients, http, api, strangers, tables] =
            [clients, http, api, strangers, tables].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        Self { clients, http, api, strangers, tables }
    }
}

/// Says how many clients there may be, and what to do if that is fewer than the settings speak of.
pub fn announce(limit: u64, descriptors: &Descriptors, settings: &Settings) {
    let clients = descriptors.clients;
    match wanted(settings).filter(|&wanted| wanted > clients as u64) {
        None => tracing::info!(clients, limit, "connections of clients that the limit of descriptors leaves room for"),
        Some(wanted) => tracing::warn!(
            clients,
            limit,
            wanted,
            "the limit of descriptors (RLIMIT_NOFILE) leaves room for fewer connections of clients than the listeners' \
             `connections_max` allows: raise it (`LimitNOFILE=` of a unit, `--ulimit nofile=` of a container, `ulimit -n` of a shell)"
        ),
    }
}

/// The connections that listeners with a bound may have together; `None` if none has one.
fn wanted(settings: &Settings) -> Option<u64> {
    let bounds =
        settings.listener.iter().map(|listener| u64::from(listener.connections_max)).filter(|&bound| bound > 0);
    bounds.reduce(u64::saturating_add)
}

fn needed(arbiters: usize) -> u64 {
    AT_START + OF_ARBITER * arbiters as u64
}

/// The runtime panics where it finds none, and then nothing says what to do.
///
/// # Errors
/// `limit` does not do for a start.
pub fn check(limit: u64, arbiters: usize) -> anyhow::Result<()> {
    let needed = needed(arbiters);
    ensure!(
        limit >= needed,
        "this process may open only {limit} files and connections (RLIMIT_NOFILE), and needs {needed} before any client comes: raise \
         that limit (`LimitNOFILE=` of a unit, `--ulimit nofile=` of a container, `ulimit -n` of a shell)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::config::ListenerConfig;

    fn everything() -> Settings {
        let mut settings = Settings::default();
        settings.api.tokens_file = Some("tokens".into());
        settings.cluster.address = Some(([127, 0, 0, 1], 0).into());
        settings
    }

    /// The greatest number that can be open if every door is full.
    fn all_of(descriptors: Descriptors) -> u64 {
        let Descriptors { clients, http, api, strangers, tables } = descriptors;
        (clients + http + api + strangers + tables) as u64
    }

    #[test]
    fn a_gateway_with_the_usual_limit_takes_hundreds_of_clients() {
        let alone = Descriptors { clients: 728, http: 64, api: 0, strangers: 0, tables: 64 };
        assert_eq!(Descriptors::of(1024, &Settings::default(), 2), alone);
        let member = Descriptors { clients: 518, http: 64, api: 64, strangers: 64, tables: 64 };
        assert_eq!(Descriptors::of(1024, &everything(), 2), member);
        let large = Descriptors::of(1 << 20, &everything(), 16);
        assert_eq!((large.http, large.api, large.strangers, large.tables), (64, 64, 1024, 64));
        assert_eq!(large.clients, (1 << 20) - 24 - 40 - 64 - 64 - 32 - 64 - 18 - 3 * 64 - 1024);
        assert_eq!(Descriptors::of(4096, &everything(), 2).strangers, 240);
    }

    #[test]
    fn with_few_descriptors_the_doors_have_half_of_what_is_not_our_own() {
        let small = Descriptors { clients: 118, http: 38, api: 38, strangers: 0, tables: 38 };
        let settings = Settings { cluster: Settings::default().cluster, ..everything() };
        assert_eq!(Descriptors::of(400, &settings, 2), small);
        let tiny = Descriptors { clients: 1, http: 4, api: 4, strangers: 4, tables: 10 };
        assert_eq!(Descriptors::of(50, &everything(), 2), tiny);
    }

    #[test]
    fn all_doors_together_leave_what_is_reserved() {
        for settings in [Settings::default(), everything()] {
            for (limit, arbiters) in [(400, 1), (512, 4), (1024, 2), (4096, 64), (65536, 256)] {
                let all = all_of(Descriptors::of(limit, &settings, arbiters));
                let own = needed(arbiters) + FOR_A_WHILE + u64::from(settings.limits.descriptors_reserve) + 32;
                assert!(all + own <= limit.max(own + 30), "{all} and {own} of {limit}");
            }
        }
    }

    #[test]
    fn only_listeners_with_a_bound_say_how_many_clients_are_wanted() {
        let listener = |connections_max| ListenerConfig { connections_max, ..ListenerConfig::default() };
        let settings = |listener| Settings { listener, ..Settings::default() };
        assert_eq!(wanted(&settings(vec![listener(0)])), None);
        assert_eq!(wanted(&settings(vec![listener(1000), listener(0), listener(500)])), Some(1500));
    }

    #[test]
    fn what_the_settings_allow_is_reserved() {
        let mut settings = everything();
        let before = Descriptors::of(4096, &settings, 2);
        settings.api.connections_max = NonZeroU32::new(164).expect("not 0");
        settings.auth.http.requests_max = NonZeroU32::new(42).expect("not 0");
        settings.limits.descriptors_reserve += 1000;
        let after = Descriptors::of(4096, &settings, 2);
        assert_eq!(after.api, 164);
        let more_reserved = 100 + 10 + 1000 - (before.strangers - after.strangers);
        assert_eq!(before.clients - after.clients, more_reserved, "strangers give way too");
        settings.http.enabled = false;
        assert_eq!(Descriptors::of(4096, &settings, 2).clients - after.clients, 64);
    }
}
