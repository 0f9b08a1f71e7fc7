//! Who is kept out, as the whole cluster has it.
//!
//! The list is the directory's ([`kentongan_cluster::directory::bans`]); each node keeps it so that it is quickly asked: an
//! address right after it was accepted, everything that a CONNECT says before anything is done for it, and the identity once it is
//! proven. Live connections are held against a new list within a second.

mod subject;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;

pub use subject::{Network, Subject, SubjectError};

/// The end of a ban that has none.
const FOR_GOOD: u64 = u64::MAX;

type Map<K> = HashMap<K, u64, foldhash::fast::RandomState>;

/// Bans with their ends, in seconds since 1970.
#[derive(Debug, Default)]
struct BanList {
    client_ids: Map<Box<str>>,
    users: Map<Box<str>>,
    /// By how many bits the addresses of a network have in common.
    networks: BTreeMap<u8, Map<Network>>,
}

impl BanList {
    fn insert(&mut self, subject: Subject, until_seconds: u64) {
        let until = if until_seconds == 0 { FOR_GOOD } else { until_seconds };
        match subject {
            Subject::ClientId(id) => drop(self.client_ids.insert(id.into(), until)),
            Subject::User(name) => drop(self.users.insert(name.into(), until)),
            Subject::Network(network) => {
                self.networks.entry(network.bits()).or_default().insert(network, until);
            }
        }
    }

    fn has_address(&self, address: IpAddr, now: u64) -> bool {
        let lasts = |(&bits, of_size): (&u8, &Map<Network>)| {
            of_size.get(&Network::around(address, bits)).is_some_and(|&until| now < until)
        };
        self.networks.iter().any(lasts)
    }

    fn len(&self) -> usize {
        self.client_ids.len() + self.users.len() + self.networks.values().map(HashMap::len).sum::<usize>()
    }
}

/// Who wants in, or is in, as far as that is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Comer<'a> {
    /// From where.
    pub address: Option<IpAddr>,
    /// Its Client Identifier.
    pub client_id: &'a str,
    /// Who it says to be, and who it is.
    pub users: [Option<&'a str>; 3],
}

/// The bans of the cluster, shared by all threads of a node.
#[derive(Debug, Default)]
pub struct Bans {
    list: RwLock<Arc<BanList>>,
    /// How many there are, so that nobody looks further while there is none.
    len: AtomicUsize,
    /// Goes up with each list.
    version: AtomicU32,
}

impl Bans {
    /// These are banned from now on, each until its end (0: for good), and nobody else. Subjects that this version does not
    /// know are nobody here.
    pub fn set<'a>(&self, bans: impl Iterator<Item = (&'a str, u64)>) {
        let mut list = BanList::default();
        for (subject, until_seconds) in bans {
            match subject.parse() {
                Ok(subject) => list.insert(subject, until_seconds),
                Err(error) => tracing::warn!(subject, %error, "a ban is not understood here"),
            }
        }
        let len = list.len();
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
        self.len.store(len, Ordering::Release);
        self.version.fetch_add(1, Ordering::Release);
    }

    fn list(&self) -> Option<Arc<BanList>> {
        (self.len.load(Ordering::Acquire) > 0)
            .then(|| Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Changes whenever the list does.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether nobody may come from `address` at `now` (seconds since 1970, read only if there are bans).
    #[must_use]
    pub fn has_address(&self, address: IpAddr, now: impl FnOnce() -> u64) -> bool {
        self.list().is_some_and(|list| list.has_address(address, now()))
    }

    /// Whether somebody is to be kept out.
    #[must_use]
    pub fn has(&self, comer: &Comer<'_>, now: impl FnOnce() -> u64) -> bool {
        let Some(list) = self.list() else {
            return false;
        };
        let now = now();
        let lasts = |until: Option<&u64>| until.is_some_and(|&until| now < until);
        comer.address.is_some_and(|address| list.has_address(address, now))
            || lasts(list.client_ids.get(comer.client_id))
            || comer.users.iter().flatten().any(|user| lasts(list.users.get(*user)))
    }

    /// Subjects in the list, those that are over among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether nobody is banned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bans(list: &[(&str, u64)]) -> Bans {
        let bans = Bans::default();
        bans.set(list.iter().copied());
        bans
    }

    #[test]
    fn an_address_is_banned_by_itself_or_by_a_network_and_until_its_end() {
        let bans = bans(&[("address:192.0.2.7", 0), ("address:10.0.0.0/8", 100), ("address:2001:db8::/32", 0)]);
        let has = |address: &str, now| bans.has_address(address.parse().unwrap(), || now);
        assert!(has("192.0.2.7", 1) && has("::ffff:192.0.2.7", 1) && !has("192.0.2.8", 1));
        assert!(has("10.255.0.1", 99) && !has("10.255.0.1", 100) && !has("11.0.0.1", 99));
        assert!(has("2001:db8:1::1", 1) && !has("2001:db9::1", 1));
    }

    #[test]
    fn a_client_is_banned_by_its_identifier_or_by_any_of_its_names() {
        let bans = bans(&[("client-id:meter", 0), ("user:eve", 50)]);
        let has = |client_id, users, now| bans.has(&Comer { address: None, client_id, users }, || now);
        assert!(has("meter", [None; 3], 1));
        assert!(!has("eve", [None, Some("meter"), None], 1), "that is another kind of name");
        assert!(has("a", [None, None, Some("eve")], 49) && has("a", [Some("eve"), Some("bob"), None], 49));
        assert!(!has("a", [Some("eve"), None, None], 50));
    }

    #[test]
    fn without_bans_nobody_looks_at_the_clock() {
        let bans = bans(&[("later:kind", 0)]);
        let before = bans.version();
        assert!(bans.is_empty() && !bans.has(&Comer::default(), || unreachable!("there is none")));
        bans.set(std::iter::empty());
        assert_ne!(bans.version(), before);
    }
}
