//! The log, the checkpoints, and the threads that drive state machines upon them.
//!
//! A node keeps many groups. What they propose is written by one *writer* thread: everything that gathered since its last
//! round becomes one write and one sync ([`log`]). Committed commands go to the *apply* thread, which owns the state
//! machine. From time to time what changed in a group is written to the state store as a *checkpoint* by a third
//! thread ([`state`]); then the log before it may go.
//!
//! Which nodes there are, and whose acknowledgements can be believed, is the matter of [`membership`] and of the cores it
//! wires together: [`directory`], [`lease`], [`fence`] and [`interest`].
//!
//! This crate knows nothing of MQTT: commands are bytes, and the state machine is handed in.

pub mod clock;
pub mod data_dir;
pub mod directory;
pub mod disk;
pub mod fence;
pub mod identity;
pub mod interest;
pub mod lane;
pub mod lease;
pub mod log;
pub mod membership;
pub mod pipeline;
pub mod state;

pub use pipeline::{GroupId, Pipeline, PipelineConfig, PipelineHandle, StateMachine, Stats};
pub use state::{StateStore, Write};
