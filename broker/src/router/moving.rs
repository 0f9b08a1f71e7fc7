//! Clients that are told to use another server, and those that come while this one takes none.

use kentongan_proto::mqtt::ReasonCode;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::ended::EndCause;
use crate::auth::Redirection;

/// For now, which is all that a node that is drained, or has too many, can say.
const MOVED: ReasonCode = ReasonCode::UseAnotherServer;

impl ArbiterState {
    /// Tells so many of the clients here to use another server, or closes those whose version has no word for it.
    /// `only_told`: passes over those that cannot be told where to go.
    ///
    /// Their Will Messages are published like at any end that they did not ask for [MQTT-3.1.2-8], unless they are back within
    /// the Will Delay Interval.
    pub(super) fn move_clients(&mut self, count: u64, only_told: bool) {
        let movable = |client: &super::client::Client| client.is_connected() && (!only_told || client.version.is_v5());
        let (id, count) = (self.id, usize::try_from(count).unwrap_or(usize::MAX));
        let chosen: Vec<ConnectionKey> = (self.clients.iter().filter(|(_, client)| movable(client)))
            .map(|(index, client)| ConnectionKey::new(id, index as u32, client.generation))
            .take(count)
            .collect();
        for key in chosen {
            let to = self.elsewhere(key);
            if to.is_some() || !only_told {
                let reason = to.as_ref().map_or(MOVED, Redirection::reason);
                self.end(key, EndCause::Moved(to), Some(reason));
            }
        }
    }

    /// Whether clients that connect are to go elsewhere.
    pub(super) fn is_drained(&self) -> bool {
        self.shared.cluster.as_ref().is_some_and(|cluster| cluster.elsewhere.is_drained())
    }

    /// Refuses a client that connects while this node is drained. One of an older version can only be told that this server is
    /// not available, as 3.1.1 has no other word.
    pub(super) fn refuse_drained(&mut self, key: ConnectionKey, identity: &str, client_id: &str) {
        match self.elsewhere_for(identity, client_id) {
            Some(to) => self.redirect(key, to),
            None => {
                let v5 = self.client(key).is_some_and(|client| client.version.is_v5());
                let reason = if v5 { MOVED } else { ReasonCode::ServerUnavailable };
                self.refuse(key, reason, "this node is being drained");
            }
        }
    }

    pub(super) fn elsewhere(&mut self, key: ConnectionKey) -> Option<Redirection> {
        let client = self.client(key)?;
        let identity = std::sync::Arc::clone(&client.session.as_ref()?.identity);
        let client_id = std::sync::Arc::clone(&client.client_id);
        self.elsewhere_for(&identity, &client_id)
    }

    /// Where a client may go: where the redirector or the settings say, else to another node.
    fn elsewhere_for(&self, identity: &str, client_id: &str) -> Option<Redirection> {
        self.shared.authority.elsewhere_on_shutdown(identity, client_id).or_else(|| {
            let settings = &self.shared.settings.session;
            let other_node = || self.shared.cluster.as_ref()?.elsewhere.reference();
            let server_reference = settings.server_reference.clone().or_else(other_node)?;
            Some(Redirection { server_reference, permanent: false })
        })
    }
}
