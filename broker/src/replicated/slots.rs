//! Which group keeps what: names hash to slots, slots belong to groups.

use crate::subscription::name_hash;

/// Slots of the whole cluster; never changes.
pub const SLOTS: u16 = 4096;

/// The mapping of names to groups, the same on every node and at every start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    groups: u16,
}

impl Slots {
    /// `groups` is fixed when the cluster forms; at least one.
    #[must_use]
    pub fn new(groups: u16) -> Self {
        Self { groups: groups.max(1) }
    }

    /// The slot of a Client Identifier or Topic Name: FNV-1a, because it must never change.
    #[must_use]
    pub fn slot_of(self, name: &str) -> u16 {
        let hash = name_hash(name);
        // The low bits alone mix badly over short names.
        ((hash ^ (hash >> 32)) % u64::from(SLOTS)) as u16
    }

    /// The group of a Client Identifier or Topic Name.
    #[must_use]
    pub fn group_of(self, name: &str) -> u16 {
        self.slot_of(name) % self.groups
    }

    /// How many groups there are.
    #[must_use]
    pub fn groups(self) -> u16 {
        self.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_of_a_name_never_changes() {
        let slots = Slots::new(16);
        assert_eq!(["", "a", "plant/1/temp"].map(|name| slots.slot_of(name)), SLOTS_OF_OLD);
    }

    /// Written down when the first version was released: data on disks depends on them.
    const SLOTS_OF_OLD: [u16; 3] = [4033, 192, 965];

    #[test]
    fn names_spread_evenly_over_the_groups() {
        let slots = Slots::new(16);
        let mut counts = [0_u32; 16];
        for number in 0..16_000 {
            counts[usize::from(slots.group_of(&format!("device/{number}")))] += 1;
        }
        assert!(counts.iter().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }
}
