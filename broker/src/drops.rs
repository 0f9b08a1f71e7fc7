//! Whose messages fell to a bound: what the counters do not say, for a simulation that holds it against what its clients
//! missed. In the product nobody asks, and every note is nothing when it is compiled.

use crate::session::outbound::Full;

/// The bound that a message above QoS 0, or a retained one, fell to, although its session lived and it had not expired. What a
/// shared subscription has for one member reaches no other, so there the QoS of the publication counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Too many messages waited.
    QueueMessages,
    /// Too many bytes waited.
    QueueBytes,
    /// The client takes no packet as large.
    PacketSize,
    /// Too many bytes waited for the socket of the member of a shared subscription who was granted QoS 0.
    OutBuffer,
}

impl Bound {
    /// As the metric has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueMessages => "queue_messages",
            Self::QueueBytes => "queue_bytes",
            Self::PacketSize => "packet_too_large",
            Self::OutBuffer => "slow_consumer",
        }
    }
}

impl From<Full> for Bound {
    fn from(full: Full) -> Self {
        match full {
            Full::Messages => Self::QueueMessages,
            Full::Bytes => Self::QueueBytes,
        }
    }
}

/// The session of `client_id` lost so many messages.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
pub(crate) fn note(_client_id: &str, _bound: impl Into<Bound>, _count: usize) {}

#[cfg(any(test, feature = "simulation"))]
pub(crate) use noting::{Noted, forget_after, listen, note, noted, take};

#[cfg(any(test, feature = "simulation"))]
mod noting {
    use std::cell::RefCell;

    use super::Bound;

    /// What one session lost.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Noted {
        pub(crate) client_id: Box<str>,
        pub(crate) bound: Bound,
        pub(crate) count: usize,
    }

    thread_local! {
        /// A simulation runs on one thread. `None`: nobody listens.
        static NOTED: RefCell<Option<Vec<Noted>>> = const { RefCell::new(None) };
    }

    /// The session of `client_id` lost so many messages.
    pub(crate) fn note(client_id: &str, bound: impl Into<Bound>, count: usize) {
        NOTED.with_borrow_mut(|noted| {
            if let Some(noted) = noted {
                noted.push(Noted { client_id: Box::from(client_id), bound: bound.into(), count });
            }
        });
    }

    /// From here on what is noted on this thread is kept, or not. Nothing is left of before.
    pub(crate) fn listen(listens: bool) {
        NOTED.set(listens.then(Vec::new));
    }

    /// How many notes wait to be taken.
    pub(crate) fn noted() -> usize {
        NOTED.with_borrow(|noted| noted.as_ref().map_or(0, Vec::len))
    }

    /// Those behind so many are of what another replica noted before.
    pub(crate) fn forget_after(count: usize) {
        NOTED.with_borrow_mut(|noted| {
            if let Some(noted) = noted {
                noted.truncate(count);
            }
        });
    }

    /// What was noted since it was asked last.
    pub(crate) fn take() -> Vec<Noted> {
        NOTED.with_borrow_mut(|noted| noted.as_mut().map(std::mem::take)).unwrap_or_default()
    }
}
