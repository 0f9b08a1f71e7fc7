//! Who is kept out of the whole cluster, as an operator said.
//!
//! Whom a ban is about is a text that means nothing here. A ban may have an end, by the wall clock: from then on it is as good as
//! none, and it is dropped when another one needs its room.

use std::collections::BTreeMap;

use super::command::Ban;

/// The feature level from which on there are bans: a program that knows none below it stops at such a command.
pub const BANS_LEVEL: u32 = 2;

/// Bans at a time.
pub const BANS_MAX: usize = 10_000;

/// Length of the text that says whom a ban is about.
pub const SUBJECT_BYTES_MAX: usize = 1024;

/// Length of what an operator says about it.
pub const REASON_BYTES_MAX: usize = 256;

/// What is known of a ban beside whom it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Banned {
    /// Its end, in seconds since 1970; 0: none.
    pub until_seconds: u64,
    /// Why, for people.
    pub reason: String,
}

impl Banned {
    /// Whether it is still one.
    #[must_use]
    pub fn lasts(&self, now_seconds: u64) -> bool {
        self.until_seconds == 0 || now_seconds < self.until_seconds
    }
}

/// Why a ban cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BanRefusal {
    /// Some member would not understand it.
    #[error("bans need feature level {BANS_LEVEL}, and the cluster uses {used}: upgrade all nodes first")]
    FeatureLevel {
        /// What the cluster uses.
        used: u32,
    },
    /// There are too many.
    #[error("there are {BANS_MAX} bans, and there may be no more: lift some, or ban a whole network")]
    Full,
    /// It is over before it began, which only another clock can have meant.
    #[error(
        "it would have ended {ago_seconds} s ago by the cluster's clock: nobody was banned; see what the clocks of the machine that asks \
         for it and of the nodes say"
    )]
    Over {
        /// For how long.
        ago_seconds: u64,
    },
    /// One of its texts is too long, or it is about nobody.
    #[error(
        "whom it is about must have 1 to {SUBJECT_BYTES_MAX} bytes, and the reason at most {REASON_BYTES_MAX} of them"
    )]
    Length,
}

/// All bans, by whom they are about.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Bans(BTreeMap<String, Banned>);

impl Bans {
    /// In the order of whom they are about, those behind `after`.
    pub fn after<'a>(&'a self, after: &str) -> impl Iterator<Item = (&'a str, &'a Banned)> + use<'a> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (Excluded(after), Unbounded);
        self.0.range::<str, _>(range).map(|(subject, banned)| (subject.as_str(), banned))
    }

    /// All of them. No subject is empty.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Banned)> {
        self.after("")
    }

    /// Whether `ban` says what is so already. One that ended meanwhile, as one of a second may, asks for nothing more.
    #[must_use]
    pub(crate) fn says(&self, ban: &Ban) -> bool {
        let known = self.0.get(&ban.subject).filter(|banned| banned.lasts(ban.now_seconds));
        match known {
            None => ban.lifted || !Banned::of(ban).lasts(ban.now_seconds),
            Some(known) => !ban.lifted && *known == Banned::of(ban),
        }
    }

    /// What is known of whoever has this name, also if it is over.
    #[must_use]
    pub fn get(&self, subject: &str) -> Option<&Banned> {
        self.0.get(subject)
    }

    /// Whether `ban` may be said.
    pub(crate) fn check(&self, ban: &Ban) -> Result<(), BanRefusal> {
        if ban.subject.is_empty() || ban.subject.len() > SUBJECT_BYTES_MAX || ban.reason.len() > REASON_BYTES_MAX {
            return Err(BanRefusal::Length);
        }
        let is_full = || self.is_full() && self.0.values().all(|banned| banned.lasts(ban.now_seconds));
        if !ban.lifted && !self.0.contains_key(&ban.subject) && is_full() { Err(BanRefusal::Full) } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        self.0.len() >= BANS_MAX
    }

    /// Does what `ban` says. `false`: nothing changed.
    pub(super) fn apply(&mut self, ban: &Ban) -> bool {
        if self.check(ban).is_err() || self.says(ban) {
            return false;
        }
        if ban.lifted {
            self.0.remove(&ban.subject);
            return true;
        }
        let banned = Banned::of(ban);
        if !banned.lasts(ban.now_seconds) {
            return false;
        }
        if self.is_full() {
            self.0.retain(|_, banned| banned.lasts(ban.now_seconds));
        }
        self.0.insert(ban.subject.clone(), banned);
        true
    }

    /// As it stands in a snapshot.
    pub(super) fn records(&self) -> Vec<Ban> {
        let record = |(subject, banned): (&String, &Banned)| Ban {
            subject: subject.clone(),
            until_seconds: banned.until_seconds,
            reason: banned.reason.clone(),
            ..Ban::default()
        };
        self.0.iter().map(record).collect()
    }

    /// What [`Self::records`] wrote.
    pub(super) fn of_records(records: Vec<Ban>) -> Self {
        Self(records.into_iter().map(|ban| (ban.subject.clone(), Banned::of(&ban))).collect())
    }
}

impl Banned {
    fn of(ban: &Ban) -> Self {
        Self { until_seconds: ban.until_seconds, reason: ban.reason.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(subject: &str, until_seconds: u64, now_seconds: u64) -> Ban {
        Ban { subject: subject.into(), until_seconds, now_seconds, ..Ban::default() }
    }

    fn subjects(bans: &Bans) -> Vec<&str> {
        bans.iter().map(|(subject, _)| subject).collect()
    }

    #[test]
    fn a_ban_lasts_until_its_end_or_until_it_is_lifted() {
        let mut bans = Bans::default();
        assert!(bans.apply(&ban("for good", 0, 10)) && bans.apply(&ban("a while", 20, 10)));
        assert!(!bans.apply(&ban("a while", 20, 11)), "that was said before");
        assert!(bans.says(&ban("a while", 20, 19)) && !bans.says(&ban("a while", 21, 20)), "it is over");
        assert!(bans.says(&ban("a moment", 20, 20)), "it ended meanwhile");
        assert!(!bans.says(&ban("for good", 20, 20)), "what stands is another one");
        assert!(bans.apply(&ban("a while", 30, 11)), "it lasts longer");
        assert_eq!(subjects(&bans), ["a while", "for good"]);
        let lifted = Ban { lifted: true, ..ban("for good", 0, 12) };
        assert!(!bans.says(&lifted) && bans.apply(&lifted) && bans.says(&lifted));
        assert!(bans.says(&Ban { lifted: true, ..ban("a while", 0, 30) }), "it is over by itself");
        assert!(!bans.apply(&ban("late", 30, 30)), "it is over before it began");
        assert_eq!(subjects(&bans), ["a while"]);
    }

    #[test]
    fn bans_are_bounded_and_those_that_are_over_make_room() {
        let mut bans = Bans::default();
        for number in 0..BANS_MAX {
            assert!(bans.apply(&ban(&format!("{number}"), 20, 10)));
        }
        let one_more = ban("one more", 0, 19);
        assert_eq!(bans.check(&one_more), Err(BanRefusal::Full));
        assert!(!bans.apply(&one_more), "at no replica");
        assert_eq!(bans.check(&ban("7", 0, 19)), Ok(()), "it is no new one");
        assert_eq!(bans.check(&ban("one more", 0, 20)), Ok(()));
        assert!(bans.apply(&ban("one more", 0, 20)));
        assert_eq!(subjects(&bans), ["one more"]);
        for (subject, reason) in [("", ""), (&*"x".repeat(SUBJECT_BYTES_MAX + 1), ""), ("x", &*"x".repeat(257))] {
            let ban = Ban { reason: reason.into(), ..ban(subject, 0, 20) };
            assert_eq!(bans.check(&ban), Err(BanRefusal::Length));
        }
    }

    #[test]
    fn bans_are_read_a_page_at_a_time_and_as_they_were_written() {
        let mut bans = Bans::default();
        for subject in ["a", "b", "c"] {
            bans.apply(&Ban { reason: "because".into(), ..ban(subject, 7, 1) });
        }
        assert_eq!(bans.after("a").map(|(subject, _)| subject).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(Bans::of_records(bans.records()), bans);
    }
}
