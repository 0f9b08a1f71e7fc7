//! What the clients of an MQTT cluster saw, recorded, and the checker of what the cluster promises them.
//!
//! A [`History`] is a list of packets as clients sent and received them, timed by one observer, with marks where faults
//! began and healed. [`check`] holds it against the promises P1 to P12 ([`Promise`]) and says which are broken, with
//! the events that show it. It knows only what clients can know: an operation that was not answered may or may not have
//! taken effect, and nothing is called a violation that a correct cluster could have shown.
//!
//! [`model`] is such a correct cluster, in one thread and from a seed: it makes histories for the checker to accept.
//!
//! Absent from this crate: the broker's own code. Topic matching and every rule are written from the specification.

mod check;
mod event;
mod history;
pub mod matching;
pub mod model;
mod settings;
mod violation;

pub use check::check;
pub use event::{
    Action, Answer, ClosedBy, Connect, Delivery, Event, MessageId, Nanoseconds, Publish, Subscribe, Subscription,
    Symbol, What, Will,
};
pub use history::{History, ReadError};
pub use settings::{SECOND, Settings};
pub use violation::{Promise, Violation};
