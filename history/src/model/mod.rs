//! A correct cluster in one thread, and clients that try it: histories to accept, from a seed.
//!
//! [`record`] runs a perfect broker ([`broker`]) on simulated time under clients that publish, subscribe, lose their
//! connections, take themselves over and come back ([`world`]). Packets take time and may be lost with their connection, nodes
//! crash, queues overflow and are counted: everything in the history is legal, however odd it looks. The model knows
//! what clients cannot; a [`DeliveryFact`] tells it, so that a history can be broken in a way that is surely illegal.

mod broker;
mod random;
mod world;

use crate::event::{MessageId, Nanoseconds};
use crate::history::History;
use crate::settings::{SECOND, Settings};

pub use random::Random;

/// A history of the model, and what the model knows of it.
#[derive(Debug, Clone)]
pub struct Recording {
    /// What clients saw.
    pub history: History,
    /// What was true, for each delivery.
    pub deliveries: Vec<DeliveryFact>,
    /// Sessions that never were in doubt and are connected and drained at the end.
    pub settled_sessions: Vec<u32>,
}

/// What the model knows of one [`Action::Delivered`](crate::Action::Delivered).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryFact {
    /// The event's index in the history.
    pub event: usize,
    /// The session's number.
    pub session: u32,
    /// The message; none if its payload is empty.
    pub message: Option<MessageId>,
    /// The copy of the message: the same if it is sent again.
    pub copy: u32,
    /// It came through a shared subscription.
    pub shared: bool,
    /// It is the retained message that a SUBSCRIBE asked for, and when that was sent.
    pub read_since: Option<Nanoseconds>,
    /// That SUBSCRIBE was the first of its session to match the topic.
    pub first_read: bool,
    /// A subscription that was acknowledged before the message was sent stood until the end.
    pub owed: bool,
}

/// A history of about so many events.
pub fn record(seed: u64, events: usize) -> Recording {
    world::World::new(seed, events).run()
}

/// What the checker must know of the model.
pub fn settings() -> Settings {
    Settings { in_flight_max: broker::IN_FLIGHT_MAX as u32, detection_max: 3 * SECOND, ..Settings::default() }
}
