//! Whether a process of a peer has the newest data directory of its node.
//!
//! A node that goes on from an older copy has forgotten votes and entries that it acknowledged, and two that go on from the same one
//! both count as one. Each start of a data directory has a number, larger than those before it, and each process has a nonce. So
//! whoever has heard of a process knows one that was started from an older copy, or as often from another one, by what it says of itself. A
//! copy of a living node's has the larger number: it is known by that the other process lives, and so it is kept out until it does not.

use std::time::Duration;

use tokio::time::Instant;

/// Under which a refusal says [`Copied::word`].
pub(super) const COPIED_KEY: &str = "kentongan-copied";

/// How it is known that what a process has on its disk is not the newest that its node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Copied {
    /// A process of the node was heard of whose data directory was started from more often, or as often as another one.
    #[error(
        "another process of the node was heard of that has a newer data directory, or another copy of the same one"
    )]
    Older,
    /// A process of the node lives.
    #[error("another process of the node lives, and this one was started from a copy of its data directory")]
    Living,
}

impl Copied {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Older => "older",
            Self::Living => "living",
        }
    }

    pub(super) fn of(word: &str) -> Option<Self> {
        [Self::Older, Self::Living].into_iter().find(|how| how.word() == word)
    }
}

/// A process of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Began {
    /// The number of this start of its data directory.
    pub start: u64,
    pub nonce: u64,
}

impl Began {
    /// As in the epochs of its links.
    fn process(self) -> u32 {
        (self.nonce >> 32) as u32
    }
}

/// The newest process of a node that was heard of.
#[derive(Debug)]
pub(super) struct Newest {
    began: Began,
    /// One that was started later, and is not let in.
    rival: Option<Rival>,
}

#[derive(Debug)]
struct Rival {
    began: Began,
    /// Since when it asks, and when it did last.
    since: Instant,
    asked: Instant,
}

impl Newest {
    pub(super) fn of(began: Began) -> Self {
        Self { began, rival: None }
    }

    /// Takes a process for the newest, or says why not: `None` if it is too early to say. `lives` is whether a process, as in the
    /// epochs of its links, has links here; those of one that is dead last less than `patience`.
    pub(super) fn take(
        &mut self,
        began: Began,
        lives: impl Fn(u32) -> bool,
        now: Instant,
        patience: Duration,
    ) -> Result<(), Option<Copied>> {
        if began.nonce == self.began.nonce {
            return Ok(());
        }
        if began.start <= self.began.start {
            return Err(Some(Copied::Older));
        }
        if !lives(self.began.process()) {
            *self = Self::of(began);
            return Ok(());
        }
        match &mut self.rival {
            // If this node stood still meanwhile, it has not seen yet what ended.
            Some(rival) if rival.began == began && now.duration_since(rival.asked) < patience / 2 => {
                rival.asked = now;
                Err((now.duration_since(rival.since) >= patience).then_some(Copied::Living))
            }
            _ => {
                self.rival = Some(Rival { began, since: now, asked: now });
                Err(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn began(start: u64, process: u64) -> Began {
        Began { start, nonce: process << 32 | 7 }
    }

    #[test]
    fn a_process_with_an_older_copy_is_refused_however_dead_the_newest_one_is() {
        let (mut newest, now) = (Newest::of(began(5, 1)), Instant::now());
        let mut take = |began| newest.take(began, |_| false, now, PATIENCE);
        assert_eq!(take(began(5, 1)), Ok(()), "it dials again");
        assert_eq!(take(began(4, 2)), Err(Some(Copied::Older)));
        assert_eq!(take(began(5, 3)), Err(Some(Copied::Older)), "a copy that was started as often");
        assert_eq!(take(began(6, 4)), Ok(()), "it was started again");
        assert_eq!(take(began(5, 1)), Err(Some(Copied::Older)));
        assert_eq!(take(began(60, 5)), Ok(()), "it was started while this node was away");
    }

    #[test]
    fn a_process_that_was_started_again_waits_for_the_links_of_the_one_before_to_end() {
        let (mut newest, begun) = (Newest::of(began(5, 1)), Instant::now());
        let mut take = |began, living, seconds| {
            newest.take(began, |process| Some(process) == living, begun + Duration::from_secs(seconds), PATIENCE)
        };
        assert_eq!(take(began(6, 2), Some(1), 0), Err(None));
        assert_eq!(take(began(6, 2), Some(1), 4), Err(None));
        assert_eq!(take(began(6, 2), None, 5), Ok(()));
        assert_eq!(take(began(7, 3), Some(1), 7), Ok(()), "those are not of the one before");
    }

    #[test]
    fn a_copy_of_a_living_nodes_is_refused_once_that_is_sure() {
        let (mut newest, begun) = (Newest::of(began(5, 1)), Instant::now());
        let mut take =
            |began, seconds| newest.take(began, |process| process == 1, begun + Duration::from_secs(seconds), PATIENCE);
        assert_eq!(take(began(6, 2), 0), Err(None));
        for second in 1..10 {
            assert_eq!(take(began(7, 3), second), Err(None), "it was started again");
        }
        assert_eq!(take(began(7, 3), 15), Err(None), "this node may have stood still");
        for second in 16..25 {
            assert_eq!(take(began(7, 3), second), Err(None));
        }
        assert_eq!(take(began(7, 3), 25), Err(Some(Copied::Living)));
        assert_eq!(take(began(5, 1), 26), Ok(()), "the one that lives stays");
    }
}
