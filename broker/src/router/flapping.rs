//! Client Identifiers that connections take from each other over and over: two devices with one name, which would keep
//! each other and the groups busy for ever. And those that come and go as fast: of a name that nobody has, any user may be granted it,
//! so each has a count and a ban of its own, and keeps nobody else out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use crate::config::LimitsConfig;

/// Client Identifiers watched at a time. Beyond that, those that are quiet are forgotten, else those that soon would be.
const WATCHED_MAX: usize = 10_000;

/// How many are forgotten at once if none is quiet: whoever comes next need not look through all of them again.
const FORGOTTEN_AT_ONCE: usize = WATCHED_MAX / 10;

/// Counts takeovers and connects, and bans a Client Identifier that has too many; for connects, as one user's.
#[derive(Debug)]
pub struct Flapping {
    /// By Client Identifier, or by [`of_user`].
    watched: Mutex<HashMap<String, Watched, foldhash::fast::RandomState>>,
    /// How many there are, so that a CONNECT looks no further while there is none.
    len: AtomicUsize,
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
            takeovers_max: limits.flap_takeovers_max,
            connects_max: limits.flap_connects_max,
            window_ms: u64::from(limits.flap_window_seconds.get()) * 1000,
            ban_ms: u64::from(limits.flap_ban_seconds.get()) * 1000,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Watched, foldhash::fast::RandomState>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection was taken over, which only who has its identity can do. `true`: that was once too often, and the name is banned from
    /// now on.
    pub fn on_takeover(&self, client_id: &str, now_ms: u64) -> bool {
        self.count(client_id, now_ms, self.takeovers_max, |watched| &mut watched.takeovers)
    }

    /// Somebody connects, whoever has the name. `true`: likewise for this identity, though this one may still come in.
    pub fn on_connect(&self, client_id: &str, identity: &str, now_ms: u64) -> bool {
        self.connects_max > 0
            && self.count(&of_user(client_id, identity), now_ms, self.connects_max, |watched| &mut watched.connects)
    }

    fn count(&self, client_id: &str, now_ms: u64, max: u32, counted: impl Fn(&mut Watched) -> &mut u32) -> bool {
        if max == 0 {
            return false;
        }
        let mut watched = self.lock();
        if watched.len() >= WATCHED_MAX && !watched.contains_key(client_id) {
            self.make_room(&mut watched, now_ms);
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

    /// Until when what is known of one counts.
    fn counts_until(&self, one: &Watched) -> u64 {
        one.banned_until_ms.max(one.window_began_ms + self.window_ms)
    }

    fn make_room(&self, watched: &mut HashMap<String, Watched, foldhash::fast::RandomState>, now_ms: u64) {
        watched.retain(|_, one| now_ms < self.counts_until(one));
        if watched.len() < WATCHED_MAX {
            return;
        }
        let mut ends: Vec<u64> = watched.values().map(|one| self.counts_until(one)).collect();
        let (.., &mut last, _) = ends.select_nth_unstable(FORGOTTEN_AT_ONCE - 1);
        let mut left = FORGOTTEN_AT_ONCE;
        watched.retain(|_, one| {
            let goes = left > 0 && self.counts_until(one) <= last;
            left -= usize::from(goes);
            !goes
        });
    }

    /// Whether nobody may connect by this name now.
    #[must_use]
    pub fn is_banned(&self, client_id: &str, now_ms: u64) -> bool {
        self.len.load(Ordering::Relaxed) > 0
            && self.lock().get(client_id).is_some_and(|one| now_ms < one.banned_until_ms)
    }

    /// Whether this identity may not.
    #[must_use]
    pub fn is_banned_for(&self, client_id: &str, identity: &str, now_ms: u64) -> bool {
        self.connects_max > 0 && self.is_banned(&of_user(client_id, identity), now_ms)
    }
}

/// A Client Identifier as one identity's; empty: nobody's in particular. No Client Identifier has U+0000 in it [MQTT-1.5.4-2], so this is
/// none, and of no other pair.
fn of_user(client_id: &str, identity: &str) -> String {
    format!("{client_id}\0{identity}")
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
        let banned = [0, 1, 2].map(|now| flapping.on_connect("a", "", now));
        assert_eq!(banned, [false, false, true]);
        assert!(flapping.is_banned_for("a", "", 3) && !flapping.is_banned_for("b", "", 3));
        let without = self::flapping();
        assert!((0..100).all(|now| !without.on_connect("a", "", now)));
    }

    /// Abuse: [reconnect-storm]
    #[test]
    fn who_connects_too_often_by_the_name_of_another_is_banned_alone() {
        let flapping = Flapping::new(&LimitsConfig { flap_connects_max: 2, ..LimitsConfig::default() });
        let banned = [0, 1, 2].map(|now| flapping.on_connect("a", "budi", now));
        assert_eq!(banned, [false, false, true]);
        assert!(flapping.is_banned_for("a", "budi", 3));
        let others = ["", "ana"].map(|other| flapping.is_banned_for("a", other, 3));
        assert_eq!((others, flapping.is_banned("a", 3)), ([false; 2], false));
        assert!(!flapping.is_banned_for("b", "budi", 3));
    }

    #[test]
    fn takeovers_now_and_then_are_no_storm() {
        let flapping = flapping();
        for now in (0..100).map(|n| n * 4000) {
            assert!(!flapping.on_takeover("a", now));
        }
    }

    /// Abuse: [reconnect-storm]
    #[test]
    fn what_is_watched_is_bounded_and_whoever_comes_late_is_watched_too() {
        let flapping = flapping();
        for now in [0, 1, 2, 3] {
            flapping.on_takeover("banned", now);
        }
        for n in 0..WATCHED_MAX + 10 {
            flapping.on_takeover(&n.to_string(), 10 + n as u64 / 10);
        }
        let len = flapping.lock().len();
        assert!((WATCHED_MAX - FORGOTTEN_AT_ONCE..=WATCHED_MAX).contains(&len), "{len}");
        let banned = [5000, 5001, 5002, 5003].map(|now| flapping.on_takeover("late", now));
        assert_eq!(banned, [false, false, false, true]);
        assert!(flapping.is_banned("banned", 5004), "who is banned stays so while others are forgotten");
        flapping.on_takeover("later", 70_000);
        for n in 0..WATCHED_MAX {
            flapping.on_takeover(&n.to_string(), 70_000);
        }
        assert!(flapping.lock().len() <= WATCHED_MAX);
    }
}
