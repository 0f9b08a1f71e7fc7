//! Where random numbers come from.

use std::sync::{Mutex, PoisonError};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// A source of random numbers for all threads of a node.
#[derive(Debug)]
pub struct Random(Source);

#[derive(Debug)]
enum Source {
    Process,
    Seeded(Mutex<SmallRng>),
}

impl Random {
    /// Numbers that nobody can foretell.
    #[must_use]
    pub fn of_process() -> Self {
        Self(Source::Process)
    }

    /// The same numbers for the same seed, so that a simulation repeats.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Mutex::new(SmallRng::seed_from_u64(seed))))
    }

    /// The next one.
    #[must_use]
    pub fn draw(&self) -> u128 {
        match &self.0 {
            Source::Process => rand::random(),
            Source::Seeded(source) => source.lock().unwrap_or_else(PoisonError::into_inner).random(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let draw = |seed| {
            let random = Random::seeded(seed);
            [random.draw(), random.draw()]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(draw(1)[0], draw(1)[1]);
        let process = Random::of_process();
        assert_ne!(process.draw(), process.draw());
    }
}
