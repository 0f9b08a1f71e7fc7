//! A consensus that is correct by construction: one committed log for all, terms, and one leader a term that must reach a
//! majority to commit or to confirm a read. What a deposed leader had proposed may be committed by the next one, or not.

use std::collections::VecDeque;

use bytes::Bytes;
use kentongan_cluster::directory::command::{self, Command};
use kentongan_cluster::directory::{Directory, Effect};

use super::random::Random;

struct Proposal {
    id: u64,
    command: Command,
    /// A majority has it, and so has everything before it to be committed.
    replicated: bool,
}

pub struct Consensus {
    pub term: u64,
    /// Machine, and which of its processes.
    pub leader: (usize, u64),
    /// The entry at index `i + 1`.
    log: Vec<Bytes>,
    proposals: VecDeque<Proposal>,
    next_id: u64,
    /// The state after everything that is committed.
    pub directory: Directory,
}

impl Consensus {
    pub fn new() -> Self {
        Self {
            term: 0,
            leader: (0, 0),
            log: Vec::new(),
            proposals: VecDeque::new(),
            next_id: 1,
            directory: Directory::new(),
        }
    }

    pub fn committed(&self) -> u64 {
        self.log.len() as u64
    }

    pub fn entry(&self, index: u64) -> Command {
        let bytes = self.log[index as usize - 1].clone();
        command::decode(bytes).expect("own bytes").expect("a command")
    }

    pub fn propose(&mut self, command: Command) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.proposals.push_back(Proposal { id, command, replicated: false });
        id
    }

    /// Commits what can be, in order.
    pub fn on_replicated(&mut self, id: u64) -> Vec<Effect> {
        if let Some(proposal) = self.proposals.iter_mut().find(|proposal| proposal.id == id) {
            proposal.replicated = true;
        }
        let mut effects = Vec::new();
        while let Some(proposal) = self.proposals.pop_front_if(|proposal| proposal.replicated) {
            effects.extend(self.commit(proposal.command));
        }
        effects
    }

    pub fn is_pending(&self, id: u64) -> bool {
        self.proposals.iter().any(|proposal| proposal.id == id)
    }

    pub fn elect(&mut self, leader: (usize, u64), random: &mut Random) -> Vec<Effect> {
        self.term += 1;
        self.leader = leader;
        // The new leader has a prefix of what the old one had proposed.
        let survivors = random.below(self.proposals.len() + 1);
        let mut effects = Vec::new();
        for proposal in std::mem::take(&mut self.proposals).into_iter().take(survivors) {
            effects.extend(self.commit(proposal.command));
        }
        effects
    }

    pub fn commit(&mut self, command: Command) -> Vec<Effect> {
        self.log.push(command::encode(command.clone()));
        self.directory.apply(self.committed(), command)
    }
}
