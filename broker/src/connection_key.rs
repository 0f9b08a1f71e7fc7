//! The name of a connection.

use std::ops::Range;

/// Those of an arbiter's slab, and more.
pub const ALL_PLACES: Range<u32> = 0..u32::MAX;

/// Names one connection of this process: its arbiter, its place in the arbiter's slab, and which of the place's
/// tenants it is, so that a message for a connection that is gone reaches nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey(u64);

impl ConnectionKey {
    const INDEX_BITS: u32 = 24;
    const GENERATION_BITS: u32 = 28;

    /// Connections that one arbiter can hold.
    pub const INDEX_MAX: u32 = (1 << Self::INDEX_BITS) - 1;

    /// `generation` wraps at 28 bits.
    #[must_use]
    pub fn new(arbiter: u16, index: u32, generation: u32) -> Self {
        debug_assert!(index <= Self::INDEX_MAX && arbiter < 1 << 12, "a key out of range");
        let generation = u64::from(generation) & ((1 << Self::GENERATION_BITS) - 1);
        Self(
            u64::from(arbiter) << (Self::INDEX_BITS + Self::GENERATION_BITS)
                | generation << Self::INDEX_BITS
                | u64::from(index),
        )
    }

    /// From [`Self::raw`].
    #[inline]
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// As a plain number, for tables that know no connections.
    #[inline]
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The arbiter it lives on.
    #[inline]
    #[must_use]
    pub fn arbiter(self) -> u16 {
        (self.0 >> (Self::INDEX_BITS + Self::GENERATION_BITS)) as u16
    }

    /// Whether it is in one of these places.
    #[must_use]
    pub fn is_in(self, places: &Range<u32>) -> bool {
        places.contains(&(self.index() as u32))
    }

    /// Its place in the slab.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        (self.0 & u64::from(Self::INDEX_MAX)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::ConnectionKey;

    #[test]
    fn a_key_keeps_its_parts_apart() {
        let key = ConnectionKey::new(3, 77, u32::MAX);
        assert_eq!((key.arbiter(), key.index()), (3, 77));
        assert_ne!(key, ConnectionKey::new(3, 77, 1));
        assert_eq!(ConnectionKey::from_raw(key.raw()), key);
    }
}
