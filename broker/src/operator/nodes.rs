//! How nodes are, and what is decided about them by the directory.

use std::time::Instant;

use crossbeam::channel::{Sender, bounded};
use kentongan_cluster::directory::command::{Ban, MemberRecord};
use kentongan_cluster::membership::Wish;
use kentongan_cluster::transport::{Question as PeerQuestion, Target};
use kentongan_cluster::{GroupId, NodeId};
use serde::{Deserialize, Serialize};

use super::{Answered, AskError, DECIDE_PAUSE, DECIDED_WITHIN, Operator, PART_MAX};
use crate::groups::why_silent;
use crate::peers::administration::{Act, Administered, Administration, Drain};
use crate::peers::status::{GroupStatus, Standing};
use crate::replicated::submitter::Query;

/// How a node is, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeHere {
    /// Its program's version.
    pub version: String,
    /// Its cluster, in hexadecimal digits; empty where it is alone.
    pub cluster: String,
    /// What it may do.
    pub standing: String,
    /// For how long it may still acknowledge; `None`: no end, or no lease.
    pub lease_ms_left: Option<u64>,
    /// Clients connected to it.
    pub connections: u64,
    /// Seconds since its process started.
    pub uptime_seconds: u64,
    /// The groups that it keeps.
    pub groups: Vec<GroupHere>,
}

/// A group as a node that keeps it sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupHere {
    /// Which; 65535 is the directory.
    pub group: u16,
    /// Whether this node leads it.
    pub leads: bool,
    /// The latest term it saw.
    pub term: u64,
    /// The index up to which it knows entries to be committed.
    pub committed: u64,
    /// The index up to which it has applied them.
    pub applied: u64,
    /// The nodes that vote in it.
    pub voters: Vec<u64>,
    /// Those that follow it without a vote.
    pub learners: Vec<u64>,
}

/// A member as the directory has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub node: u64,
    /// Its label.
    pub name: String,
    /// Where other nodes dial it.
    pub peer_address: String,
    /// Where clients dial it.
    pub client_address: String,
    /// What it shares its fate with.
    pub zone: String,
    /// It is registered.
    pub lives: bool,
    /// An operator drains it.
    pub drains: bool,
    /// Its process is about to end.
    pub stops: bool,
    /// It is to go.
    pub leaves: bool,
}

impl Operator {
    /// Why its groups have not answered in time.
    pub(super) fn silent(&self, do_what: &str) -> String {
        format!("{}: ask again", why_silent(self.pipeline.is_full(), do_what))
    }

    pub(super) fn node_here(&self) -> Answered<NodeHere> {
        let busy = || self.silent("say how it is");
        let groups = self.pipeline.status().recv_timeout(PART_MAX).map_err(|_| busy())?;
        let groups =
            groups.iter().filter(|(_, status)| status.configuration.contains(self.me)).map(|(group, status)| {
                let GroupStatus { leads, term, committed, applied, voters, learners, .. } =
                    GroupStatus::new(*group, self.me, status, status.handed_out.index);
                GroupHere { group: group.0, leads, term, committed, applied, voters, learners }
            });
        let here = NodeHere {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            standing: Standing::Serving.name().to_owned(),
            connections: self.shared.connections.load(std::sync::atomic::Ordering::Relaxed) as u64,
            uptime_seconds: self.shared.clock.elapsed().as_secs(),
            groups: groups.collect(),
            ..NodeHere::default()
        };
        if self.transport.is_none() {
            return Ok(here);
        }
        let status = self.status_of_machine().ok_or_else(busy)?;
        let standing = status.standing().name().to_owned();
        Ok(NodeHere { cluster: status.cluster, standing, lease_ms_left: status.lease_ms_left, ..here })
    }

    /// The members as this node's directory has them. Where it is alone, itself.
    ///
    /// # Errors
    /// It is too busy.
    pub fn all_members(&self) -> Result<Vec<Member>, AskError> {
        if self.transport.is_none() {
            let (node, name) = (self.me.get(), self.shared.settings.node_name());
            let client_address =
                self.shared.settings.listener.first().map_or_else(String::new, |listener| listener.address.to_string());
            let own = Member {
                node,
                name,
                peer_address: String::new(),
                client_address,
                zone: String::new(),
                lives: true,
                drains: false,
                stops: false,
                leaves: false,
            };
            return Ok(vec![own]);
        }
        let mut members: Vec<_> = self
            .members()?
            .into_iter()
            .map(|member| Member {
                node: member.node,
                name: member.name,
                peer_address: member.peer_address,
                client_address: member.client_address,
                zone: member.zone,
                lives: member.incarnation != 0,
                drains: member.drains,
                stops: member.stops,
                leaves: member.leaves,
            })
            .collect();
        members.sort_unstable_by(|one, other| (&one.name, one.node).cmp(&(&other.name, other.node)));
        Ok(members)
    }

    /// Who leads each group but the directory, as far as this node knows; 0: nobody.
    ///
    /// # Errors
    /// It is too busy.
    pub fn leaders(&self) -> Result<Vec<u64>, AskError> {
        let groups = self.shared.submitter.slots().groups();
        if self.transport.is_none() {
            return Ok(vec![self.me.get(); usize::from(groups)]);
        }
        let busy = || AskError::Unavailable(self.silent("say who leads the groups"));
        let routes = self.status_of_machine().ok_or_else(busy)?.routes;
        let leader = |group: u16| routes.iter().find(|route| route.group == u32::from(group));
        Ok((0..groups).map(|group| leader(group).map_or(0, |route| route.leader)).collect())
    }

    /// Has a member drained, or has that over, and returns when that is committed.
    ///
    /// # Errors
    /// It cannot be, or nobody decides now.
    pub fn drain(&self, node: u64, on: bool) -> Result<(), AskError> {
        let Some(node) = NodeId::new(node) else {
            return Err(AskError::Refused("there is no such node".to_owned()));
        };
        self.decide(&Act::Drain(Drain { node: node.get(), on }), |answer| Query::Drain(node, on, answer))
    }

    /// Bans somebody, or lifts that, and returns when that is committed.
    ///
    /// # Errors
    /// It cannot be, or nobody decides now.
    pub fn ban(&self, ban: &Ban) -> Result<(), AskError> {
        self.decide(&Act::Ban(ban.clone()), |answer| Query::Ban(ban.clone(), answer))
    }

    /// The bans behind `subject`, a page of them, as this node's directory has them.
    ///
    /// # Errors
    /// It is too busy.
    pub fn bans(&self, subject: String) -> Result<Vec<Ban>, AskError> {
        let (answer, answered) = bounded(1);
        self.pipeline.notify(Query::Bans(subject, answer));
        answered.recv_timeout(PART_MAX).map_err(|_| AskError::Unavailable(self.silent("say who is banned")))
    }

    /// Asks whoever leads the directory, again and again until it is so.
    fn decide(&self, act: &Act, query: impl Fn(Sender<(Wish, Vec<MemberRecord>)>) -> Query) -> Result<(), AskError> {
        let Some(transport) = &self.transport else {
            let message =
                "this node is alone and keeps no directory: start it with cluster.address (--cluster), and it does";
            return Err(AskError::Refused(message.to_owned()));
        };
        let deadline = Instant::now() + DECIDED_WITHIN;
        loop {
            let (answer, answered) = bounded(1);
            self.pipeline.notify(query(answer));
            let wish = answered.recv_timeout(PART_MAX).map(|(wish, _)| wish);
            let hindrance = match wish {
                Ok(Wish::Fulfilled) => return Ok(()),
                Ok(Wish::Refused(reason)) => return Err(AskError::Refused(reason.to_string())),
                Ok(Wish::Elsewhere { address }) => {
                    let question = Administration::encode_question(act.clone());
                    let asking = transport.ask(Target::Address(address), PeerQuestion::Administer, question);
                    let answered = asking.recv_timeout(PART_MAX).ok().and_then(Result::ok);
                    match answered.and_then(|(_, body)| Administered::decode_answer(body).ok()) {
                        Some(Administered { done: true, .. }) => return Ok(()),
                        Some(Administered { refusal, .. }) if !refusal.is_empty() => {
                            return Err(AskError::Refused(refusal));
                        }
                        Some(Administered { hindrance, .. }) if !hindrance.is_empty() => hindrance,
                        Some(_) => "it is not committed yet".to_owned(),
                        None => "whoever leads the directory does not answer".to_owned(),
                    }
                }
                Ok(Wish::NoLeader) => "the directory has no leader".to_owned(),
                Ok(Wish::Proposed) => "it is not committed yet".to_owned(),
                Err(_) => why_silent(self.pipeline.is_full(), "decide that"),
            };
            if Instant::now() >= deadline {
                return Err(AskError::Unavailable(format!("it is not done: {hindrance}; ask again")));
            }
            std::thread::sleep(DECIDE_PAUSE);
        }
    }
}

/// As people read it.
#[must_use]
pub fn group_name(group: u16) -> String {
    if group == GroupId::DIRECTORY.0 { "directory".to_owned() } else { group.to_string() }
}
