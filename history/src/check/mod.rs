//! The checker: reads a history into a [`story::Story`], then holds it against each promise.

mod acknowledged;
mod expiry;
mod faults;
mod ghosts;
mod order;
mod recovery;
mod repetition;
mod retained;
mod sessions;
mod shared;
mod story;
mod takeover;
mod wills;

use std::borrow::Cow;
use std::collections::HashMap;

use crate::event::{Symbol, What};
use crate::history::History;
use crate::settings::Settings;
use crate::violation::{Promise, Report, Violation};
use story::Story;

/// Which promises a history shows to be broken, and how; empty if it could be that of a correct cluster.
pub fn check(history: &History, settings: &Settings) -> Vec<Violation> {
    let mut history = Cow::Borrowed(history);
    if !history.events().is_sorted_by_key(|event| event.at) {
        history.to_mut().sort();
    }
    let story = Story::read(&history, settings);
    let mut report = Report::new(&history);
    let mut losses = Losses::default();

    acknowledged::check(&story, &report, &mut losses); // P1
    ghosts::check(&story, &mut report); // P2
    repetition::check(&story, &mut report); // P3, P4
    order::check(&story, &mut report); // P5
    retained::check(&story, &mut report, &mut losses); // P6
    takeover::check(&story, &mut report); // P7
    sessions::check(&story, &mut report); // P8, P10 of sessions
    wills::check(&story, &mut report, &mut losses); // P9
    expiry::check(&story, &mut report); // P10 of messages
    shared::check(&story, &mut report, &mut losses); // P11
    recovery::check(&story, &mut report); // P12
    losses.settle(&history, &mut report);

    let mut violations = report.violations;
    violations.sort_by_key(|violation| (violation.promise, violation.events.first().map(|event| event.0)));
    violations
}

/// Messages that a client should have got. Only so many may be missing as the metrics say were dropped.
#[derive(Default)]
struct Losses(Vec<(Vec<Symbol>, Violation)>);

impl Losses {
    fn add(&mut self, report: &Report<'_>, client: Symbol, promise: Promise, events: &[u32], summary: String) {
        self.add_of_any(report, vec![client], promise, events, summary);
    }

    /// Any of these should have got it, and may have been the one that it was dropped for.
    fn add_of_any(
        &mut self,
        report: &Report<'_>,
        clients: Vec<Symbol>,
        promise: Promise,
        events: &[u32],
        summary: String,
    ) {
        self.0.push((clients, report.violation(promise, events, summary)));
    }

    fn settle(mut self, history: &History, report: &mut Report<'_>) {
        let mut of_client: HashMap<Symbol, u64> = HashMap::new();
        let mut of_any = 0u64;
        for event in history.events() {
            match &event.what {
                What::Dropped { count, client: Some(client), .. } => *of_client.entry(*client).or_default() += count,
                What::Dropped { count, client: None, .. } => of_any += count,
                _ => {}
            }
        }
        // Those that only one client can have lost come first, so that no other takes its drops.
        self.0.sort_by_key(|(clients, _)| clients.len());
        self.0.retain(|(clients, _)| {
            let dropping = clients.iter().find(|client| of_client.get(client).is_some_and(|&count| count > 0));
            if let Some(count) = dropping.and_then(|client| of_client.get_mut(client)) {
                *count -= 1;
            }
            dropping.is_none()
        });
        // Which of them were dropped nobody can tell: all are shown.
        if self.0.len() as u64 > of_any {
            report.violations.extend(self.0.into_iter().map(|(_, mut violation)| {
                if of_any > 0 {
                    violation.summary.push_str(&format!(" (one of more than the {of_any} drops that were counted)"));
                }
                violation
            }));
        }
    }
}
