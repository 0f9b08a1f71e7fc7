//! A broken promise, and the events that show it.

use std::fmt;

use crate::history::History;

/// A promise of the cluster to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Promise {
    /// An acknowledged message reaches every matching session.
    P1,
    /// What is delivered was published, accepted and subscribed to.
    P2,
    /// QoS 2 is handed on exactly once a session.
    P3,
    /// A duplicate carries DUP, follows a break, and there are no more than the in-flight window.
    P4,
    /// First deliveries keep publisher order.
    P5,
    /// A retained topic is a linearizable register.
    P6,
    /// One connection per Client Identifier: nothing of the old one takes effect after the new CONNACK.
    P7,
    /// Session Present is 1 exactly when the session lives.
    P8,
    /// A Will Message is published exactly once per abnormal end.
    P9,
    /// Nothing expires early, or more than a little late.
    P10,
    /// A shared group hands each message to one live member.
    P11,
    /// Soon after a fault heals, clients are served again.
    P12,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One promise broken once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub promise: Promise,
    /// What is wrong, naming message, topic and session.
    pub summary: String,
    /// The events that show it, by their index in the history, each as a line.
    pub events: Vec<(usize, String)>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.summary)?;
        for (index, line) in &self.events {
            write!(f, "\n  {index:>7} {line}")?;
        }
        Ok(())
    }
}

/// Where the checks put what they find.
pub(crate) struct Report<'h> {
    history: &'h History,
    pub(crate) violations: Vec<Violation>,
}

impl<'h> Report<'h> {
    pub(crate) fn new(history: &'h History) -> Self {
        Self { history, violations: Vec::new() }
    }

    pub(crate) fn add(&mut self, promise: Promise, events: &[u32], summary: String) {
        let violation = self.violation(promise, events, summary);
        self.violations.push(violation);
    }

    pub(crate) fn violation(&self, promise: Promise, events: &[u32], summary: String) -> Violation {
        let mut events: Vec<usize> = events.iter().map(|&index| index as usize).collect();
        events.sort_unstable();
        events.dedup();
        let events = events.into_iter().map(|index| (index, self.history.describe(index).to_string())).collect();
        Violation { promise, summary, events }
    }
}
