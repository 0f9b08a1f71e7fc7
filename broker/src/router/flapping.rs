//! Client Identifiers that connections take from each other over and over: two devices with one name, which would keep
//! each other and the groups busy for ever. And those that come and go as fast.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use crate::config::LimitsConfig;

/// Client Identifiers watched at a time. Beyond that, those that are quiet are forgotten.
const WATCHED_MAX: usize = 10_000;

/// How often those are looked for at most.
const SWEEP_MS: u64 = 1000;

/// Counts takeovers and connects, and bans a Client Identifier that has too many.
#[derive(Debug)]
pub struct Flapping {
    watched: Mutex<HashMap<String, Watched, foldhash::fast::RandomState>>,
    /// How many there are, so that a CONNECT looks no further while there is none.
    len: AtomicUsize,
    /// When the quiet were last forgotten.
    swept_ms: AtomicU64,
    takeovers_max: u32,
    connects_max: u32,
    window_ms: u64,
    ban_ms: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    window_began_ms: u64,
    takeovers: u32,
    connects: u32,
    banned_until_ms: u64,
}

impl Flapping {
    /// As `limits` say.
    #[must_use]
    pub fn new(limits: &LimitsConfig) -> Self {
        Self {
            watched: Mutex::default(),
            len: AtomicUsize::new(0),
            swept_ms: AtomicU64::new(0),
            takeovers_max: limits.flap_takeovers_max,
            connects_max: limits.flap_connects_max,
            window_ms: u64::from(limits.flap_window_seconds.get()) * 1000,
            ban_ms: u64::from(limits.flap_ban_seconds.get()) * 1000,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Watched, foldhash::fast::RandomState>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection was taken over. `true`: that was once too often, and the name is banned from now on.
    pub fn on_takeover(&self, client_id: &str, now_ms: u64) -> bool {
        self.count(client_id, now_ms, self.takeovers_max, |watched| &mut watched.takeovers)
    }

    /// Somebody connects, whoever has the name. `true`: likewise, though this one may still come in.
    pub fn on_connect(&self, client_id: &str, now_ms: u64) -> bool {
        self.count(client_id, now_ms, self.connects_max, |watched| &mut watched.connects)
    }

    fn count(&self, client_id: &str, now_ms: u64, max: u32, counted: impl Fn(&mut Watched) -> &mut u32) -> bool {
        if max == 0 {
            return false;
        }
        let mut watched = self.lock();
        if watched.len() >= WATCHED_MAX && !watched.contains_key(client_id) {
            self.forget_the_quiet(&mut watched, now_ms);
            if watched.len() >= WATCHED_MAX {
                return false;
            }
        }
        let one = watched.entry_ref(client_id).or_default();
        if now_ms >= one.window_began_ms + self.window_ms {
            *one = Watched { window_began_ms: now_ms, banned_until_ms: one.banned_until_ms, ..Watched::default() };
        }
        *counted(one) += 1;
        let banned = *counted(one) > max;
        if banned {
            one.banned_until_ms = now_ms + self.ban_ms;
            (one.takeovers, one.connects) = (0, 0);
        }
        self.len.store(watched.len(), Ordering::Relaxed);
        banned
    }

    fn forget_the_quiet(&self, watched: &mut HashMap<String, Watched, foldhash::fast::RandomState>, now_ms: u64) {
        // They are many, and whoever comes would look through all of them.
        if now_ms < self.swept_ms.load(Ordering::Relaxed) {
            return;
        }
        self.swept_ms.store(now_ms + SWEEP_MS, Ordering::Relaxed);
        watched.retain(|_, one| now_ms < one.banned_until_ms.max(one.window_began_ms + self.window_ms));
    }

    /// Whether nobody may connect by this name now.
    #[must_use]
    pub fn is_banned(&self, client_id: &str, now_ms: u64) -> bool {
        self.len.load(Ordering::Relaxed) > 0
            && self.lock().get(client_id).is_some_and(|one| now_ms < one.banned_until_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn flapping() -> Flapping {
        Flapping::new(&LimitsConfig {
            flap_takeovers_max: 3,
            flap_window_seconds: NonZeroU32::new(10).unwrap(),
            flap_ban_seconds: NonZeroU32::new(60).unwrap(),
            ..LimitsConfig::default()
        })
    }

    #[test]
    fn a_storm_is_banned_for_a_while_and_others_are_not() {
        let flapping = flapping();
        let times = [0, 100, 200, 300];
        let banned = times.map(|now| flapping.on_takeover("a", now));
        assert_eq!(banned, [false, false, false, true]);
        assert!(flapping.is_banned("a", 301) && flapping.is_banned("a", 60_299));
        assert!(!flapping.is_banned("b", 301));
        assert!(!flapping.is_banned("a", 60_300), "it is over");
    }

    #[test]
    fn who_comes_and_goes_too_often_is_banned_too_where_that_is_set() {
        let flapping = Flapping::new(&LimitsConfig { flap_connects_max: 2, ..LimitsConfig::default() });
        let banned = [0, 1, 2].map(|now| flapping.on_connect("a", now));
        assert_eq!(banned, [false, false, true]);
        assert!(flapping.is_banned("a", 3) && !flapping.is_banned("b", 3));
        let without = self::flapping();
        assert!((0..100).all(|now| !without.on_connect("a", now)));
    }

    #[test]
    fn takeovers_now_and_then_are_no_storm() {
        let flapping = flapping();
        for now in (0..100).map(|n| n * 4000) {
            assert!(!flapping.on_takeover("a", now));
        }
    }

    #[test]
    fn what_is_watched_is_bounded_and_the_quiet_make_room() {
        let flapping = flapping();
        for n in 0..WATCHED_MAX + 10 {
            flapping.on_takeover(&n.to_string(), 0);
        }
        assert_eq!(flapping.lock().len(), WATCHED_MAX);
        flapping.on_takeover("late", 10_000);
        assert_eq!(flapping.lock().len(), 1);
    }
}
