//! Nodes that are asked one after another, as an answer may be full before the last of them was asked.
//!
//! Some may say nothing. Whoever asks waits once, for all of those together; and as long as they answer, none is asked for what there may be no
//! room for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crossbeam::channel::Select;
use serde::de::DeserializeOwned;

use super::nodes::NodeHere;
use super::{AskError, Operator, PART_MAX, Question};

/// One that has not said a word for so long is not waited for alone: the others are called meanwhile.
const PATIENCE: Duration = Duration::from_millis(300);

/// Time for the first word of each.
const HEARD_WITHIN: Duration = Duration::from_millis(2500);

/// Nodes, while they are asked.
#[derive(Debug)]
pub struct InTurn<'a> {
    operator: &'a Operator,
    /// Those that may be asked.
    nodes: BTreeSet<u64>,
    /// Those that have answered something.
    heard: BTreeSet<u64>,
    /// Those that did not in time, and are not asked again.
    silent: BTreeMap<u64, AskError>,
}

impl<'a> InTurn<'a> {
    /// All that may be asked.
    pub fn new(operator: &'a Operator, nodes: impl IntoIterator<Item = u64>) -> Self {
        let heard = BTreeSet::from([operator.me.get()]);
        Self { operator, nodes: nodes.into_iter().collect(), heard, silent: BTreeMap::new() }
    }

    /// Asks one of them.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn ask<T: DeserializeOwned>(&mut self, node: u64, question: &Question) -> Result<T, AskError> {
        if let Some(error) = self.silent.get(&node) {
            return Err(error.clone());
        }
        let began = Instant::now();
        let answer = match self.heard.contains(&node) {
            true => self.operator.ask(node, question),
            false => self.ask_first(node, question, began),
        };
        match &answer {
            Ok(_) => {
                self.heard.insert(node);
                self.silent.remove(&node);
            }
            Err(error) if began.elapsed() > PATIENCE => drop(self.silent.insert(node, error.clone())),
            Err(_) => {}
        }
        answer
    }

    /// Asks one that has not said a word yet.
    fn ask_first<T: DeserializeOwned>(
        &mut self,
        node: u64,
        question: &Question,
        began: Instant,
    ) -> Result<T, AskError> {
        let asking = self.operator.begin_asking(node, question)?;
        let mut soon = Select::new();
        soon.recv(&asking);
        if soon.ready_timeout(PATIENCE).is_err() {
            self.call(began + HEARD_WITHIN);
        }
        // It may be there, and have much to look through.
        let within = if self.heard.contains(&node) { PART_MAX } else { HEARD_WITHIN };
        self.operator.hear_by(&asking, began + within)
    }

    /// Learns which of them are there.
    fn call(&mut self, deadline: Instant) {
        let is_unknown = |node: &u64| !self.heard.contains(node) && !self.silent.contains_key(node);
        let unknown: Vec<u64> = self.nodes.iter().copied().filter(is_unknown).collect();
        let called: Vec<_> =
            unknown.into_iter().map(|node| (node, self.operator.begin_asking(node, &Question::Node))).collect();
        for (node, asking) in called {
            match asking.and_then(|asking| self.operator.hear_by::<NodeHere>(&asking, deadline)) {
                Ok(_) => drop(self.heard.insert(node)),
                Err(error) => drop(self.silent.insert(node, error)),
            }
        }
    }
}
