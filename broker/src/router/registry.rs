//! Who holds which Client Identifier now: the volatile half of a session's claim.
//!
//! A transient session that nobody contends for is claimed here and nowhere else, so that its CONNECT waits for no
//! other thread. Everything else goes through [`crate::groups::machine::Machine`], which uses the same table.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use super::ConnectionKey;

const SHARDS: usize = 64;

/// Who has a Client Identifier.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// The living connection, if any.
    pub owner: Option<ConnectionKey>,
    /// Whom the session belongs to; another identity may neither resume it nor take it over.
    pub identity: Arc<str>,
    /// Whether a group keeps a persistent session of that name.
    pub persistent: bool,
    /// Without such a session: what it sent while there was one waits in its group's outbox.
    pub unrouted: bool,
}

impl Claim {
    /// Whether there is a session, and it is not that identity's.
    #[must_use]
    pub fn belongs_to_other(&self, identity: &str) -> bool {
        (self.owner.is_some() || self.persistent) && *self.identity != *identity
    }

    fn is_over(&self) -> bool {
        self.owner.is_none() && !self.persistent && !self.unrouted
    }
}

/// The claims of this node.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<Mutex<HashMap<Arc<str>, Claim, foldhash::fast::RandomState>>>,
    hasher: foldhash::fast::RandomState,
}

impl Default for Registry {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: foldhash::fast::RandomState::default() }
    }
}

impl Registry {
    fn shard(&self, client_id: &str) -> MutexGuard<'_, HashMap<Arc<str>, Claim, foldhash::fast::RandomState>> {
        let hash = self.hasher.hash_one(client_id) as usize;
        self.shards[hash % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a Client Identifier that nobody has and no persistent session uses, or has just used. `false`: it must be contended
    /// for, or asked for.
    #[must_use]
    pub fn claim_if_free(&self, client_id: &Arc<str>, identity: &Arc<str>, owner: ConnectionKey) -> bool {
        let mut shard = self.shard(client_id);
        if shard.contains_key(client_id) {
            return false;
        }
        let claim = Claim { owner: Some(owner), identity: Arc::clone(identity), ..Claim::default() };
        shard.insert(Arc::clone(client_id), claim);
        true
    }

    /// What is known of a Client Identifier.
    #[must_use]
    pub fn get(&self, client_id: &str) -> Option<Claim> {
        self.shard(client_id).get(client_id).cloned()
    }

    /// Makes `owner` the owner, whoever it was before.
    pub fn set_owner(&self, client_id: &Arc<str>, identity: &Arc<str>, owner: ConnectionKey) {
        let mut shard = self.shard(client_id);
        let claim = shard.entry(Arc::clone(client_id)).or_default();
        claim.owner = Some(owner);
        claim.identity = Arc::clone(identity);
    }

    /// The connection `owner` ended; a claim that has passed to another since stays.
    pub fn release(&self, client_id: &str, owner: ConnectionKey) {
        let mut shard = self.shard(client_id);
        if let Some(claim) = shard.get_mut(client_id)
            && claim.owner == Some(owner)
        {
            claim.owner = None;
            if claim.is_over() {
                shard.remove(client_id);
            }
        }
    }

    /// A group began or ended keeping a persistent session of that name.
    pub fn set_persistent(&self, client_id: &Arc<str>, identity: &Arc<str>, persistent: bool) {
        let mut shard = self.shard(client_id);
        if persistent {
            let claim = shard.entry(Arc::clone(client_id)).or_default();
            claim.persistent = true;
            claim.identity = Arc::clone(identity);
        } else if let Some(claim) = shard.get_mut(client_id) {
            claim.persistent = false;
            if claim.is_over() {
                shard.remove(client_id);
            }
        }
    }

    /// What a client sent while it had a persistent session waits in an outbox, or does so no more. Until then its group says when
    /// another kind of session may begin (P5).
    pub fn set_unrouted(&self, client_id: &Arc<str>, unrouted: bool) {
        let mut shard = self.shard(client_id);
        if unrouted {
            shard.entry(Arc::clone(client_id)).or_default().unrouted = true;
        } else if let Some(claim) = shard.get_mut(client_id) {
            claim.unrouted = false;
            if claim.is_over() {
                shard.remove(client_id);
            }
        }
    }

    /// Client Identifiers with a session of any kind, or with something left of one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether there is no session at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<str> {
        Arc::from(text)
    }

    /// P7: of two connections with one Client Identifier, the second finds the first.
    #[test]
    fn a_claim_is_exclusive_until_released_by_its_owner() {
        let registry = Registry::default();
        let (first, second) = (ConnectionKey::new(0, 1, 1), ConnectionKey::new(1, 1, 2));
        assert!(registry.claim_if_free(&name("a"), &name(""), first));
        assert!(!registry.claim_if_free(&name("a"), &name(""), second));
        registry.release("a", second);
        assert_eq!(registry.get("a").and_then(|claim| claim.owner), Some(first), "not the owner's release");
        registry.release("a", first);
        assert!(registry.claim_if_free(&name("a"), &name(""), second));
    }

    #[test]
    fn a_persistent_session_outlives_its_connection() {
        let registry = Registry::default();
        let owner = ConnectionKey::new(0, 1, 1);
        registry.set_owner(&name("a"), &name(""), owner);
        registry.set_persistent(&name("a"), &name(""), true);
        registry.release("a", owner);
        assert!(!registry.claim_if_free(&name("a"), &name(""), owner), "a transient CONNECT must ask the group");
        registry.set_persistent(&name("a"), &name(""), false);
        assert!(registry.is_empty());
    }

    /// P5: a transient CONNECT may not begin beside the group's back while that still routes what the client sent before.
    #[test]
    fn what_a_client_sent_is_asked_for_until_it_is_routed_and_belongs_to_nobody() {
        let registry = Registry::default();
        let owner = ConnectionKey::new(0, 1, 1);
        registry.set_persistent(&name("a"), &name("one"), true);
        registry.set_unrouted(&name("a"), true);
        registry.set_persistent(&name("a"), &name("one"), false);
        assert!(!registry.claim_if_free(&name("a"), &name("other"), owner));
        assert!(!registry.get("a").expect("it is known").belongs_to_other("other"), "the session is over");
        registry.set_owner(&name("a"), &name("other"), owner);
        registry.set_unrouted(&name("a"), false);
        assert_eq!(registry.get("a").and_then(|claim| claim.owner), Some(owner));
        registry.release("a", owner);
        assert!(registry.is_empty());
    }
}
