//! Which clients are connected.

use std::net::IpAddr;

use kentongan_proto::mqtt::ProtocolVersion;
use kentongan_proto::topic;
use serde::{Deserialize, Serialize};

use super::{Answered, LOOKED_AT_MAX, Operator, ROW_BYTES_MAX, ROWS_MAX};
use crate::connection_key::ConnectionKey;
use crate::router::client::OwnSubscription;
use crate::router::visit::Seen;

/// Places of an arbiter that are looked at in one go.
const PLACES_A_VISIT: usize = 512;

/// Bytes of a row beside its texts, about.
const ROW_BYTES: usize = 400;

/// Places that are looked at in one go for one name.
const PLACES_A_LOOK_UP: usize = 4096;

const BUSY: &str = "this node is too busy to say which clients it has: ask again";

/// What a client must be like. What is not said does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientFilter {
    /// Its user.
    pub username: Option<String>,
    /// A part of its Client Identifier.
    pub like_clientid: Option<String>,
    /// The address it comes from.
    pub ip_address: Option<IpAddr>,
}

/// Where a walk over the clients of a node goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsFrom {
    /// At which arbiter.
    pub arbiter: u16,
    /// At which of its places.
    pub place: usize,
}

/// Which clients of a node are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientsAsked {
    /// Where to begin.
    pub from: ClientsFrom,
    /// How many at most.
    pub limit: usize,
    /// What they must be like.
    pub filter: ClientFilter,
}

/// Some clients of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SomeClients {
    /// In the order of their places.
    pub clients: Vec<Client>,
    /// Where to go on; `None`: those were all.
    pub next: Option<ClientsFrom>,
    /// How many were looked at.
    pub looked_at: usize,
}

/// A connected client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Client {
    /// Its Client Identifier.
    pub clientid: String,
    /// Its user; null if it came without a name.
    pub username: Option<String>,
    /// The node that it is connected to.
    pub node: String,
    /// The address it comes from; null if it comes by a Unix socket.
    pub ip_address: Option<String>,
    /// The port it comes from.
    pub port: Option<u16>,
    /// The listener that it came by.
    pub listener: String,
    /// The protocol's version: 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0.
    pub proto_ver: u8,
    /// Its Keep Alive in seconds; 0 is off.
    pub keepalive: u16,
    /// Always true: sessions without a connection are among the sessions.
    pub connected: bool,
    /// When it connected.
    pub connected_at: String,
    /// Whether its session outlives the connection.
    pub persistent: bool,
    /// For how many seconds.
    pub expiry_interval: u32,
    /// How many subscriptions it has.
    pub subscriptions_cnt: usize,
    /// Messages that wait for it; null if its session keeps them, see there.
    pub mqueue_len: Option<u64>,
    /// Messages that it has not acknowledged; null likewise.
    pub inflight_cnt: Option<u64>,
    /// Bytes that its connection keeps in memory until the client takes them.
    pub waiting_bytes: usize,
}

/// Where a walk over the subscriptions of a node goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionsFrom {
    /// At which arbiter.
    pub arbiter: u16,
    /// At which of its places.
    pub place: usize,
    /// Behind which filter of the client there.
    pub after: Option<String>,
}

/// Which subscriptions of the clients of a node are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubscriptionsAsked {
    /// Where to begin.
    pub from: SubscriptionsFrom,
    /// How many at most.
    pub limit: usize,
    /// Only those of this client.
    pub clientid: Option<String>,
    /// Only those with this very filter.
    pub topic: Option<String>,
    /// Only those that match this Topic Name.
    pub match_topic: Option<String>,
}

/// Some subscriptions of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SomeSubscriptions {
    /// In the order of their clients' places.
    pub subscriptions: Vec<Subscription>,
    /// Where to go on; `None`: those were all.
    pub next: Option<SubscriptionsFrom>,
}

/// A subscription of a connected client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Subscription {
    /// Whose.
    pub clientid: String,
    /// Topic Filter, of a shared one with its `$share/NAME/`.
    pub topic: String,
    /// As granted.
    #[schema(minimum = 0, maximum = 2)]
    pub qos: u8,
    /// No Local.
    pub nl: bool,
    /// Retain As Published.
    pub rap: bool,
    /// Subscription Identifier.
    pub subid: Option<u32>,
    /// The node that the client is connected to.
    pub node: String,
}

impl ClientFilter {
    fn lets(&self, seen: &Seen<'_>) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        is(&self.username, seen.identity)
            && self.like_clientid.as_ref().is_none_or(|part| seen.client_id.contains(part.as_str()))
            && self.ip_address.is_none_or(|wanted| {
                seen.address.is_some_and(|found| found.ip().to_canonical() == wanted.to_canonical())
            })
    }
}

/// How a client is told of.
#[derive(Debug, Clone)]
struct Telling {
    node: String,
    now_ms: u64,
    wall_ms: u64,
}

impl Telling {
    fn client(&self, seen: &Seen<'_>) -> Client {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let connected_ms = self.wall_ms.saturating_sub(self.now_ms.saturating_sub(seen.connected_ms));
        Client {
            clientid: seen.client_id.to_owned(),
            username: Some(seen.identity.to_owned()).filter(|name| !name.is_empty()),
            node: self.node.clone(),
            ip_address: seen.address.map(|address| address.ip().to_canonical().to_string()),
            port: seen.address.map(|address| address.port()),
            listener: seen.listener.to_string(),
            proto_ver: match seen.version {
                ProtocolVersion::V3_1 => 3,
                ProtocolVersion::V3_1_1 => 4,
                ProtocolVersion::V5 => 5,
            },
            keepalive: seen.keep_alive_seconds,
            connected: true,
            connected_at: super::time(connected_ms),
            persistent: seen.persistent,
            expiry_interval: seen.session_expiry_seconds,
            subscriptions_cnt: seen.subscriptions,
            mqueue_len: seen.waiting.map(|(queued, _)| count(queued)),
            inflight_cnt: seen.waiting.map(|(_, in_flight)| count(in_flight)),
            waiting_bytes: seen.waiting_bytes,
        }
    }
}

impl Operator {
    fn telling(&self) -> Telling {
        let clock = &self.shared.clock;
        Telling { node: self.shared.settings.node_name(), now_ms: clock.now_ms(), wall_ms: clock.wall_ms() }
    }

    pub(super) fn clients_here(&self, asked: &ClientsAsked) -> Answered<SomeClients> {
        let mut some = SomeClients::default();
        let limit = asked.limit.min(ROWS_MAX);
        let mut bytes = 0;
        let mut from = asked.from;
        while usize::from(from.arbiter) < self.shared.inboxes.len() {
            if some.clients.len() >= limit || bytes >= ROW_BYTES_MAX || some.looked_at >= LOOKED_AT_MAX {
                some.next = Some(from);
                break;
            }
            let (filter, telling) = (asked.filter.clone(), self.telling());
            let (place, rows) = (from.place, limit - some.clients.len());
            let visited = self.visit(from.arbiter, move |arbiter| {
                let mut found = Vec::new();
                let next = arbiter.show_clients(place, PLACES_A_VISIT, |seen| {
                    if filter.lets(seen) {
                        found.push(telling.client(seen));
                    }
                    found.len() < rows
                });
                (found, next)
            });
            let (found, next) = visited.ok_or(BUSY)?;
            bytes += found.iter().map(|client| ROW_BYTES + client.clientid.len()).sum::<usize>();
            some.looked_at += next.unwrap_or(place + PLACES_A_VISIT).saturating_sub(place);
            some.clients.extend(found);
            from = match next {
                Some(place) => ClientsFrom { place, ..from },
                None => ClientsFrom { arbiter: from.arbiter + 1, place: 0 },
            };
        }
        Ok(some)
    }

    /// The client of this name, if it is connected here. Looks at all of them.
    pub(super) fn client_here(&self, client_id: &str) -> Answered<Option<Client>> {
        let telling = self.telling();
        self.with_client(client_id, move |_, _, seen| telling.client(seen))
    }

    /// Closes the connection of the client of this name; whether there was one.
    pub(super) fn kick_here(&self, client_id: &str) -> Answered<bool> {
        let found = self.with_client(client_id, |arbiter, key, _| (arbiter, key))?;
        let Some((arbiter, key)) = found else { return Ok(false) };
        self.visit(arbiter, move |arbiter| arbiter.kick(key)).ok_or_else(|| BUSY.to_owned())
    }

    fn with_client<T: Send + 'static>(
        &self,
        client_id: &str,
        tell: impl Fn(u16, ConnectionKey, &Seen<'_>) -> T + Clone + Send + 'static,
    ) -> Answered<Option<T>> {
        for number in 0..self.shared.inboxes.len() as u16 {
            let mut from = Some(0);
            while let Some(place) = from {
                let (client_id, tell) = (client_id.to_owned(), tell.clone());
                let visited = self.visit(number, move |arbiter| {
                    let (found, next) = arbiter.find_client(&client_id, place, PLACES_A_LOOK_UP);
                    (found.map(|(key, seen)| tell(number, key, &seen)), next)
                });
                let (found, next) = visited.ok_or(BUSY)?;
                if found.is_some() {
                    return Ok(found);
                }
                from = next;
            }
        }
        Ok(None)
    }

    pub(super) fn subscriptions_here(&self, asked: &SubscriptionsAsked) -> Answered<SomeSubscriptions> {
        let mut some = SomeSubscriptions::default();
        let limit = asked.limit.min(ROWS_MAX);
        let (mut bytes, mut looked_at) = (0, 0);
        let mut from = asked.from.clone();
        while usize::from(from.arbiter) < self.shared.inboxes.len() {
            if some.subscriptions.len() >= limit || bytes >= ROW_BYTES_MAX || looked_at >= LOOKED_AT_MAX {
                some.next = Some(from);
                break;
            }
            let (wanted, node) = (asked.clone(), self.shared.settings.node_name());
            let (begin, rows) = (from.clone(), limit - some.subscriptions.len());
            let visited = self.visit(from.arbiter, move |arbiter| {
                let mut found = Vec::new();
                let after = begin.after.as_deref();
                let next = arbiter.show_subscriptions(begin.place, PLACES_A_VISIT, after, |client, filter, own| {
                    let is_wanted = wanted.clientid.as_ref().is_none_or(|wanted| *wanted == *client.client_id)
                        && wanted.topic.as_ref().is_none_or(|wanted| wanted == filter)
                        && wanted.match_topic.as_ref().is_none_or(|topic| topic::matches(plain_filter(filter), topic));
                    if is_wanted {
                        found.push(subscription(&node, &client.client_id, filter, own));
                    }
                    found.len() < rows
                });
                (found, next)
            });
            let (found, next) = visited.ok_or(BUSY)?;
            bytes += found.iter().map(|own| 200 + own.clientid.len() + own.topic.len()).sum::<usize>();
            looked_at += PLACES_A_VISIT;
            some.subscriptions.extend(found);
            from = match next {
                Some((place, after)) => SubscriptionsFrom { arbiter: from.arbiter, place, after },
                None => SubscriptionsFrom { arbiter: from.arbiter + 1, ..SubscriptionsFrom::default() },
            };
        }
        Ok(some)
    }
}

/// Of a shared subscription, the filter behind its `$share/NAME/`.
fn plain_filter(filter: &str) -> &str {
    filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')).map_or(filter, |(_, filter)| filter)
}

fn subscription(node: &str, client_id: &str, filter: &str, own: &OwnSubscription) -> Subscription {
    Subscription {
        clientid: client_id.to_owned(),
        topic: filter.to_owned(),
        qos: super::sessions::number(own.options.qos),
        nl: own.options.no_local,
        rap: own.options.retain_as_published,
        subid: own.identifier.map(std::num::NonZeroU32::get),
        node: node.to_owned(),
    }
}
