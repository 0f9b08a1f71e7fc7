//! Who may not be here, by the bans of the cluster.

use kentongan_proto::mqtt::{Connect, ReasonCode};
use serde_json::{Value, json};

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::{Client, Phase};
use super::ended::EndCause;
use super::log_rate::excerpt;
use crate::bans::Comer;

/// What a banned client is told.
pub(super) const BANNED: &str = "banned by the operator of this server";

impl ArbiterState {
    /// Whether one that sent this CONNECT is to be kept out, before anything else is done for it.
    pub(super) fn is_banned(&mut self, key: ConnectionKey, connect: &Connect, client_id: &str) -> bool {
        let shared = std::sync::Arc::clone(&self.shared);
        let Some(client) = self.client(key).filter(|_| !shared.bans.is_empty()) else {
            return false;
        };
        let user = connect.user_name.as_deref();
        shared.bans.has(&comer(client, client_id, [user, None]), || shared.wall_seconds())
    }

    /// Whether nobody of this identity is to come in.
    pub(super) fn is_banned_identity(&self, identity: &str) -> bool {
        let comer = Comer { users: [Some(identity).filter(|name| !name.is_empty()), None, None], ..Comer::default() };
        self.shared.bans.has(&comer, || self.shared.wall_seconds())
    }

    /// A Client Identifier is kept out of this node for a while, for everybody or for one identity, which nobody asked for. An empty
    /// one: those who are nobody in particular.
    pub(super) fn note_flap_ban(&self, client_id: &str, identity: Option<&str>, reason: &str) {
        let (client_id, identity) = (excerpt(client_id), identity.map(excerpt));
        tracing::warn!(client_id, identity, reason, "this client identifier is banned for a while");
        let seconds = self.shared.settings.limits.flap_ban_seconds;
        let subject = format!("client-id:{client_id}");
        let what = json!({ "subject": subject, "identity": identity, "seconds": seconds, "reason": reason });
        self.shared.audit.record(self.shared.clock.wall_ms(), "flap ban", Value::Null, what, "done here");
    }

    /// Ends the connections of those who were banned since this was last called. Every second.
    pub(super) fn end_banned(&mut self) {
        let version = self.shared.bans.version();
        if std::mem::replace(&mut self.bans_seen, version) == version || self.shared.bans.is_empty() {
            return;
        }
        let now = self.shared.wall_seconds();
        for key in self.keys() {
            let shared = std::sync::Arc::clone(&self.shared);
            let Some(client) = self.client(key) else { continue };
            let names = match (&client.session, &client.pending) {
                (Some(session), _) => [Some(&*session.identity), session.claimed.as_deref()],
                (None, Some(pending)) => [Some(pending.identity()), pending.user_name()],
                (None, None) => [None, None],
            };
            let names = names.map(|name| name.filter(|name| !name.is_empty()));
            if !shared.bans.has(&comer(client, &client.client_id, names), || now) {
                continue;
            }
            match client.phase {
                // DISCONNECT has no such code as CONNACK has (MQTT 5, section 3.14.2.1).
                Phase::Connected => self.end(key, EndCause::Banned, Some(ReasonCode::AdministrativeAction)),
                Phase::Authenticating | Phase::Verifying | Phase::AwaitingTurn | Phase::Claiming => {
                    self.refuse(key, ReasonCode::Banned, BANNED)
                }
                Phase::AwaitingConnect => self.end(key, EndCause::Banned, None),
                Phase::Leaving | Phase::Closing => {}
            }
        }
    }
}

fn comer<'a>(client: &'a Client, client_id: &'a str, [one, other]: [Option<&'a str>; 2]) -> Comer<'a> {
    let address = client.origin.address.map(|address| address.ip());
    Comer { address, client_id, users: [one, other, client.origin.certified.as_deref()] }
}
