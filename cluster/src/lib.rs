//! The log, the checkpoints, the groups upon them, and the threads that drive state machines.
//!
//! A node keeps many groups, each replicated by Raft ([`group`]). What all of them write becomes one write and one sync of
//! one log ([`log`], [`node`]). Committed commands go to the *apply* thread, which owns the state machine ([`pipeline`]).
//! From time to time what changed in a group is written to the state store as a *checkpoint* by a third thread
//! ([`state`]); then the log before it may go.
//!
//! Nodes speak with each other over links that carry batches of opaque messages ([`transport`]).
//!
//! How nodes become a cluster at all is the matter of [`formation`].
//!
//! Where groups are kept, and how they get there, is the matter of [`placement`].
//!
//! Which nodes there are, and whose acknowledgements can be believed, is the matter of [`membership`] and of the cores it
//! wires together: [`directory`], [`lease`], [`fence`] and [`interest`]. Nodes may run different versions of the program for a
//! while: [`feature_level`].
//!
//! This crate knows nothing of MQTT: commands are bytes, and the state machine is handed in.

pub mod backup;
pub mod clock;
pub mod data_dir;
pub mod directory;
pub mod disk;
pub mod ending;
pub mod feature_level;
pub mod fence;
pub mod formation;
pub mod group;
pub mod identity;
pub mod interest;
pub mod lane;
pub mod lease;
pub mod log;
pub mod log_rate;
pub mod membership;
pub mod node;
pub mod pipeline;
pub mod placement;
pub mod recovery;
pub mod seed;
pub mod state;
pub mod times;
pub mod transport;

pub use feature_level::{FeatureLevels, UnknownLevel};
pub use group::{CheckpointBase, Configuration};
pub use identity::{GroupId, Incarnation, NodeId};
pub use pipeline::{Opening, Pipeline, PipelineConfig, PipelineHandle, StateMachine, Stats};
pub use state::{StateStore, Write};
