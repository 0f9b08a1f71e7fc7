//! MQTT clients that do at random what clients do, and note everything that they say and hear.
//!
//! A [`Stage`] is what the clients of a run share: where the nodes are, the one [`Recorder`], and which [`Act`] is on. While
//! they [`Act::Play`], somebody else does to the nodes whatever is to be tried; then they [`Act::Settle`], and what was
//! recorded can be checked: `kentongan_history::check`.
//!
//! [`PowerCut`] is a disk that forgets what was not synced, for those who do it.
//!
//! Absent from this crate: how nodes are started, and what befalls them.

mod client;
mod habits;
mod link;
mod powercut;
mod recorder;
mod stage;
mod stalls;

pub use client::Client;
pub use habits::{Habits, Keeps, Kind, SubscribedTopics};
pub use link::{Link, Session};
pub use powercut::PowerCut;
pub use recorder::Recorder;
pub use stage::{Act, Seat, Stage, quiet};
pub use stalls::watch;
