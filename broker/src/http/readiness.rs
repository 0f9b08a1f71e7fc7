//! Whether clients should be sent to this node.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Named conditions, all of which must hold before the node is ready. None holds at the start.
#[derive(Debug, Default)]
pub struct Readiness {
    conditions: Mutex<BTreeMap<&'static str, bool>>,
    is_stuck: AtomicBool,
}

impl Readiness {
    /// Names the conditions. One that is set later without being named here is added.
    #[must_use]
    pub fn new(conditions: &[&'static str]) -> Self {
        Self {
            conditions: Mutex::new(conditions.iter().map(|&name| (name, false)).collect()),
            is_stuck: AtomicBool::new(false),
        }
    }

    /// Says whether only a new start would mend this process.
    pub fn set_stuck(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::Relaxed);
    }

    /// Whether only a new start would mend this process.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// Says whether a condition holds.
    pub fn set(&self, condition: &'static str, holds: bool) {
        let before = self.lock().insert(condition, holds);
        if before != Some(holds) {
            tracing::debug!(condition, holds, "readiness changed");
        }
    }

    /// Whether all conditions hold.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|&holds| holds)
    }

    /// The conditions that do not hold, by name.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().iter().filter(|&(_, &holds)| !holds).map(|(&name, _)| name).collect()
    }

    /// All conditions, by name, and whether each holds.
    #[must_use]
    pub fn conditions(&self) -> Vec<(&'static str, bool)> {
        self.lock().iter().map(|(&name, &holds)| (name, holds)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, bool>> {
        // A map of booleans is whole after any panic.
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
