//! What may be said and stored: versions of the program that run side by side, and when what is new in one is used.
//!
//! A *feature level* is a number that covers everything that outlives a process or crosses to another: commands of the groups and of the
//! directory, what state machines make of them, checkpoints and the log. A program knows a range of them. The directory's log says
//! which one the cluster uses; its leader raises it once the programs of all members know a higher one, and it is never lowered. Each
//! group's own log has it too, from the entry on from which its state machine may do what is new.

/// The levels that a program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureLevels {
    /// The lowest: what came before it, the program has forgotten how to do.
    pub min: u32,
    /// The highest.
    pub max: u32,
}

impl FeatureLevels {
    /// Whether it can work where `used` is used.
    ///
    /// # Errors
    /// It cannot, and what an operator must do.
    pub fn check(self, used: u32) -> Result<(), UnknownLevel> {
        let Self { min, max } = self;
        if used > max {
            Err(UnknownLevel::TooOld { used, max })
        } else if used < min {
            Err(UnknownLevel::TooNew { used, min })
        } else {
            Ok(())
        }
    }
}

/// A program does not know the feature level that its cluster uses. The text reads the same on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnknownLevel {
    /// It was not upgraded with the others, or was taken back to an older version too late.
    #[error(
        "the cluster uses feature level {used}, and the program of this node knows none above {max}: start the node with the \
         version that the others run; what is on its disk is as it was"
    )]
    TooOld {
        /// What the cluster uses.
        used: u32,
        /// The highest that the program knows.
        max: u32,
    },
    /// A version was left out.
    #[error(
        "the cluster uses feature level {used}, and the program of this node knows none below {min}: first upgrade all nodes to a \
         version between"
    )]
    TooNew {
        /// What the cluster uses.
        used: u32,
        /// The lowest that the program knows.
        min: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_knows_a_range_of_levels() {
        let known = FeatureLevels { min: 2, max: 3 };
        assert_eq!([2, 3].map(|used| known.check(used)), [Ok(()), Ok(())]);
        assert_eq!(known.check(4), Err(UnknownLevel::TooOld { used: 4, max: 3 }));
        assert_eq!(known.check(1), Err(UnknownLevel::TooNew { used: 1, min: 2 }));
    }
}
