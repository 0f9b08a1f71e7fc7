//! Those that come most often, of more than could be counted (Metwally, Agrawal and El Abbadi, 2005).
//!
//! So many are counted at a time. One more takes the place of the one that has least, and inherits its count: so a count is never less
//! than it should be, and at most by `error` more. Whoever has more than the smallest count of all is certainly there.

use hashbrown::HashMap;

/// Bytes of a name. What is longer is cut: it is for people to read.
const NAME_BYTES_MAX: usize = 512;

/// A name and about how much it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) name: String,
    /// At most so much.
    pub(super) count: u64,
    /// And so much less at least, at worst.
    pub(super) error: u64,
}

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct SpaceSaving {
    /// Where the one with this hash stands.
    places: HashMap<u64, usize, foldhash::fast::FixedState>,
    counted: Vec<(u64, Counted)>,
}

impl SpaceSaving {
    /// Counts `weight` for the name with this hash; `names_max` are kept.
    pub(super) fn count(&mut self, names_max: usize, hash: u64, name: &str, weight: u64) {
        if let Some(&place) = self.places.get(&hash) {
            self.counted[place].1.count += weight;
            return;
        }
        if self.counted.len() < names_max {
            self.places.insert(hash, self.counted.len());
            self.counted.push((hash, Counted { name: cut(name).to_owned(), count: weight, error: 0 }));
            return;
        }
        let least = self.counted.iter_mut().enumerate().min_by_key(|(_, (_, counted))| counted.count);
        let Some((place, (old, counted))) = least else {
            return;
        };
        self.places.remove(old);
        self.places.insert(hash, place);
        *old = hash;
        counted.error = counted.count;
        counted.count += weight;
        counted.name.clear();
        counted.name.push_str(cut(name));
    }

    /// The smallest count, which one that is not there can have at most; 0 while there is room for all.
    pub(super) fn least(&self, names_max: usize) -> u64 {
        let is_full = self.counted.len() >= names_max;
        self.counted.iter().map(|(_, counted)| counted.count).min().filter(|_| is_full).unwrap_or(0)
    }

    /// All that are counted, in no order.
    pub(super) fn counted(&self) -> impl Iterator<Item = &Counted> {
        self.counted.iter().map(|(_, counted)| counted)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(name: &str) -> u64 {
        use std::hash::BuildHasher as _;
        foldhash::fast::FixedState::default().hash_one(name)
    }

    /// What has more than its share of all is found whatever else comes, and its count is right within its error.
    #[test]
    fn the_largest_are_found_among_many_and_never_counted_for_less() {
        let mut sketch = SpaceSaving::default();
        let mut truth: HashMap<String, u64> = HashMap::new();
        let mut state = 1_u64;
        for step in 0..100_000_u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let name = match step % 10 {
                0..4 => String::from("hot"),
                4..6 => String::from("warm"),
                _ => format!("cold/{}", state >> 40),
            };
            sketch.count(64, hash(&name), &name, 2);
            *truth.entry(name).or_default() += 2;
        }
        assert!(truth.len() > 10_000);
        let mut counted: Vec<_> = sketch.counted().cloned().collect();
        counted.sort_by_key(|one| std::cmp::Reverse(one.count));
        assert_eq!(counted.len(), 64);
        assert_eq!([&*counted[0].name, &counted[1].name], ["hot", "warm"]);
        for one in &counted {
            let exact = truth[&one.name];
            assert!(one.count >= exact && one.count - one.error <= exact, "{one:?} {exact}");
        }
        assert_eq!((counted[0].count, counted[0].error), (80_000, 0), "it came first and never left");
        assert!(sketch.least(64) <= 200_000 / 64, "no more than an equal share");
    }

    #[test]
    fn a_name_is_kept_up_to_a_bound() {
        let mut sketch = SpaceSaving::default();
        sketch.count(1, 1, &"灯".repeat(1000), 1);
        sketch.count(1, 2, &"灯".repeat(2000), 1);
        let counted = sketch.counted().next().unwrap();
        assert_eq!((counted.name.len(), counted.count, counted.error), (510, 2, 1));
        assert_eq!(sketch.places.len(), 1);
    }
}
