//! Who may not be here, by the bans of the cluster.

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::{Client, Phase};
use super::connect::EndCause;
use crate::bans::Comer;
use kentongan_proto::mqtt::{Connect, ReasonCode};

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
            let identity = client.session.as_ref().map(|session| &*session.identity);
            let identity = identity.filter(|name| !name.is_empty());
            let names = [identity, client.pending.as_ref().and_then(|pending| pending.user_name())];
            if !shared.bans.has(&comer(client, &client.client_id, names), || now) {
                continue;
            }
            match client.phase {
                Phase::Connected => self.end(key, EndCause::Banned, Some(ReasonCode::Banned)),
                Phase::Authenticating | Phase::AwaitingTurn | Phase::Claiming => {
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
