//! What operators and nodes want of the directory: whoever leads it proposes it.

use super::{Membership, Wish, WishRefusal};
use crate::directory::bans::{BANS_LEVEL, BanRefusal};
use crate::directory::command::{self, Ban, Command, MemberRecord};
use crate::identity::{GroupId, NodeId};

impl Membership {
    /// A node wants to be a member.
    pub fn admit(&mut self, record: MemberRecord) -> Wish {
        let Some(node) = NodeId::new(record.node) else { return Wish::NoLeader };
        if self.directory.members().contains_key(&node) {
            return Wish::Fulfilled;
        }
        match self.directory.check_admit(node, &record) {
            Err(reason) => Wish::Refused(reason.into()),
            Ok(()) => self.wish(Command::Admit(command::Admit { member: Some(record) })),
        }
    }

    /// An operator wants a member gone.
    pub fn remove(&mut self, node: NodeId) -> Wish {
        match self.directory.members().get(&node) {
            // That is final.
            None if self.is_so(true) || self.directory.removed().contains(&node) => Wish::Fulfilled,
            Some(member) if member.leaves => Wish::Proposed,
            None | Some(_) => {
                if let Some(leading) = &mut self.leading {
                    leading.on_departure_proposed(node);
                }
                self.wish(Command::Remove(command::Departing { node: node.get() }))
            }
        }
    }

    /// An operator wants a member to lead nothing and to have no clients, or wants that to be over.
    ///
    /// Whoever leads the directory sees to it that somebody is left to have them: operators' programs look before they ask, and of those
    /// that ask at the same moment for one node each, none sees what the others want.
    pub fn drain(&mut self, node: NodeId, on: bool) -> Wish {
        match self.directory.members().get(&node) {
            Some(member) if !on && member.leaves => return Wish::Refused(WishRefusal::Leaves),
            Some(member) if self.is_so(member.drains == on) => return Wish::Fulfilled,
            None | Some(_) => {}
        }
        let alone = self.is_alone();
        if let Some(leading) = self.leading.as_mut().filter(|_| on) {
            if !leading.has_all() && !alone {
                // What the leader before it proposed may be committed yet.
                return Wish::NoLeader;
            }
            if !leading.is_there_another(node, &self.directory) {
                return Wish::Refused(WishRefusal::NobodyLeft);
            }
            leading.on_departure_proposed(node);
        }
        self.wish(Command::Drain(command::Drain { node: node.get(), on, incarnation: 0 }))
    }

    /// An operator wants a voter of a group to lead it, or (`None`) whoever the cluster chooses.
    pub fn prefer(&mut self, group: GroupId, node: Option<NodeId>) -> Wish {
        if self.is_so(self.directory.chosen().get(&group).copied() == node) {
            return Wish::Fulfilled;
        }
        let node = node.map_or(0, NodeId::get);
        self.wish(Command::Prefer(command::Prefer { group: group.0.into(), node }))
    }

    /// An operator wants somebody kept out, or let in again.
    pub fn ban(&mut self, ban: Ban) -> Wish {
        let used = self.directory.feature_level();
        if used < BANS_LEVEL {
            return Wish::Refused(BanRefusal::FeatureLevel { used }.into());
        }
        match self.directory.bans().check(&ban) {
            Err(reason) => Wish::Refused(reason.into()),
            Ok(()) if self.is_so(self.directory.bans().says(&ban)) => Wish::Fulfilled,
            Ok(()) => self.wish(Command::Ban(ban)),
        }
    }

    /// Whether what is so by this node's directory may be said to be so: others than its leader, and whoever is cut off, may have missed that
    /// the opposite was said since.
    fn is_so(&self, here: bool) -> bool {
        here && self.leading.is_some()
    }

    fn wish(&mut self, command: Command) -> Wish {
        if self.leading.is_some() {
            self.propose(command);
            return Wish::Proposed;
        }
        match self.leader.and_then(|leader| self.directory.members().get(&leader)) {
            Some(member) => Wish::Elsewhere { address: member.peer_address.clone() },
            None => Wish::NoLeader,
        }
    }
}
