//! Where clients may go instead.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Another node that lives and is not drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub node: u64,
    /// Where clients from anywhere reach it, if somebody said.
    pub address: Option<String>,
}

#[derive(Debug, Default)]
struct Places {
    places: Vec<Place>,
    /// Clients of each node that takes some, as that said last.
    said: BTreeMap<u64, u64>,
    /// The same with those that were sent there since.
    expected: BTreeMap<u64, u64>,
}

/// Whether this node takes clients, and where else they may go. Shared by all threads.
#[derive(Debug, Default)]
pub struct Elsewhere {
    drained: AtomicBool,
    stops: AtomicBool,
    places: Mutex<Places>,
}

impl Elsewhere {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the directory says: whether this node is drained, and which others are there.
    pub fn set(&self, drained: bool, places: Vec<Place>) {
        self.drained.store(drained, Ordering::Relaxed);
        self.lock().places = places;
    }

    /// How many clients every node has that takes some, this one included.
    pub fn set_loads(&self, loads: BTreeMap<u64, u64>) {
        let mut places = self.lock();
        // What was said before those that were sent have arrived is no news.
        if places.said != loads {
            places.expected.clone_from(&loads);
            places.said = loads;
        }
    }

    /// This process is about to end.
    pub fn set_stops(&self) {
        self.stops.store(true, Ordering::Relaxed);
    }

    /// Whether this process is about to end.
    #[must_use]
    pub fn stops(&self) -> bool {
        self.stops.load(Ordering::Relaxed)
    }

    /// Whether clients are to go elsewhere, be it because an operator said so, or because the process is about to end.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed) || self.stops()
    }

    /// Whether another node could take clients.
    #[must_use]
    pub fn is_there_any(&self) -> bool {
        !self.lock().places.is_empty()
    }

    /// Whether somebody said where clients reach another node.
    #[must_use]
    pub fn is_any_advertised(&self) -> bool {
        self.lock().places.iter().any(|place| place.address.is_some())
    }

    /// Where one client may go: to whoever has the fewest, those that were sent there before included.
    #[must_use]
    pub fn reference(&self) -> Option<String> {
        let mut places = self.lock();
        let Places { places, expected, .. } = &mut *places;
        let advertised = places.iter().filter_map(|place| Some((place.node, place.address.as_ref()?)));
        // Who did not say how many it has takes none: its disk is full, say.
        let (node, address) = advertised.min_by_key(|(node, _)| expected.get(node).copied().unwrap_or(u64::MAX))?;
        expected.entry(node).and_modify(|count| *count += 1);
        Some(address.clone())
    }

    /// The counts of the other nodes that take clients, if all of those that are there said theirs.
    #[must_use]
    pub fn other_loads(&self) -> Option<Vec<u64>> {
        let places = self.lock();
        let said = |place: &Place| places.said.get(&place.node).copied();
        places.places.iter().map(said).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(node: u64, address: Option<&str>) -> Place {
        Place { node, address: address.map(str::to_owned) }
    }

    #[test]
    fn clients_go_where_the_fewest_are_or_will_be() {
        let elsewhere = Elsewhere::default();
        elsewhere
            .set(false, vec![place(2, Some("two")), place(3, Some("three")), place(4, None), place(5, Some("full"))]);
        elsewhere.set_loads(BTreeMap::from([(1, 9), (2, 2), (3, 0), (4, 0)]));
        let sent: Vec<_> = (0..5).map(|_| elsewhere.reference().unwrap()).collect();
        assert_eq!(sent, ["three", "three", "two", "three", "two"]);
        assert_eq!(elsewhere.other_loads(), None, "one of them does not say");
        elsewhere.set(false, vec![place(2, Some("two")), place(3, Some("three"))]);
        assert_eq!(elsewhere.other_loads(), Some(vec![2, 0]));
    }

    #[test]
    fn what_was_said_before_is_no_news() {
        let elsewhere = Elsewhere::default();
        elsewhere.set(true, vec![place(2, Some("two")), place(3, Some("three"))]);
        let loads = || BTreeMap::from([(2, 1), (3, 0)]);
        elsewhere.set_loads(loads());
        assert_eq!(elsewhere.reference().as_deref(), Some("three"));
        elsewhere.set_loads(loads());
        assert_eq!(elsewhere.reference().as_deref(), Some("two"));
    }

    #[test]
    fn nobody_is_sent_to_where_nobody_said_how_clients_reach_it() {
        let elsewhere = Elsewhere::default();
        assert!(!elsewhere.is_there_any());
        elsewhere.set(true, vec![place(2, None)]);
        assert!(elsewhere.is_there_any() && !elsewhere.is_any_advertised() && elsewhere.is_drained());
        assert_eq!(elsewhere.reference(), None);
    }
}
