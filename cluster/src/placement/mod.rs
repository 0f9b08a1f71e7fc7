//! Where groups are kept, and how they get there. No network, no clock, no disk.
//!
//! Two pure functions, run again and again by whoever leads:
//!
//! - The leader of the *directory* asks [`plan::next_step`] what is to change in what the directory says, and proposes that.
//! - The leader of a *group* asks [`transition::next`] what change of its members, or hand-over, comes next on the way from
//!   where the group is to where the directory says it is to be, and proposes that to the group.
//!
//! Neither remembers anything, so another leader goes on where the one before stopped. What keeps a group safe meanwhile is
//! Raft's joint consensus and the rule that a learner gets a vote only once it has caught up; what is said here decides
//! only which way it goes. The directory may name voters that are not there yet: until they have caught up, the ones
//! before them decide.

pub mod plan;
pub mod transition;

pub use plan::{Step, leaders, next_step};
pub use transition::{Peer, Transition};
