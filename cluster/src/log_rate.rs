//! Bounds the lines of the log that anybody can cause from outside.

/// Lines that one thread writes in a second about refusals of all kinds.
const LINES_A_SECOND_MAX: u32 = 20;

/// Which refusals are logged, and how many were not. All of them are counted in the metrics, by reason.
#[derive(Debug, Default)]
pub struct LogRate {
    second: u32,
    lines: u32,
    unlogged: u64,
}

impl LogRate {
    /// Whether one more line may be written in `second`.
    pub fn admits(&mut self, second: u32) -> bool {
        if second != self.second {
            self.second = second;
            self.lines = 0;
        }
        if self.lines == LINES_A_SECOND_MAX {
            self.unlogged += 1;
            return false;
        }
        self.lines += 1;
        true
    }

    /// How many were not written since this was last asked.
    pub fn take_unlogged(&mut self) -> u64 {
        std::mem::take(&mut self.unlogged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_lines_and_what_is_left_out_is_counted() {
        let mut rate = LogRate::default();
        let mut written = |second, count| (0..count).filter(|_| rate.admits(second)).count();
        assert_eq!(written(7, 50), 20);
        assert_eq!(written(7, 50), 0);
        assert_eq!(written(8, 5), 5);
        assert_eq!((rate.take_unlogged(), rate.take_unlogged()), (80, 0));
    }
}
