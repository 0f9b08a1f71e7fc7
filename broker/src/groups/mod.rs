//! The groups of this node at work: what was committed is applied here, and its effects are carried out.
//!
//! [`crate::replicated`] says what a command changes and what follows; [`machine`] makes it happen, on the one thread on
//! which groups change; [`start()`] takes up what the disk has.

mod backup;
mod certificates;
mod health;
pub mod incoming;
pub(crate) mod machine;
mod member;
mod outboxes;
mod pushes;
mod read_ahead;
pub(crate) mod search;
mod seeds;
mod share_loads;
pub(crate) mod start;
mod under_way;
mod unreached;

pub use health::Health;
pub use start::{Running, start};

/// Why this node's groups do not answer an operator, for whom it is to `do_what`.
pub(crate) fn why_silent(is_disk_full: bool, do_what: &str) -> String {
    match is_disk_full {
        // What was accepted is tried again until it is written, and nothing else is done before.
        true => "this node's disk is full, and its groups wait until there is room on it".to_owned(),
        false => format!("this node is too busy to {do_what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::why_silent;

    #[test]
    fn who_waits_for_room_on_its_disk_is_not_said_to_be_busy() {
        assert_eq!(why_silent(false, "say how it is"), "this node is too busy to say how it is");
        let full = why_silent(true, "say how it is");
        assert!(full.contains("disk is full") && !full.contains("busy"), "{full}");
    }
}
