//! What changes the cluster: a node is drained, or not any more, or removed; another one leads a group.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use kentongan_cluster::transport::{LinkError, Question, Target, Transport};
use kentongan_cluster::{GroupId, NodeId};
use serde_json::json;

use super::ask::{self, PAUSE, Survey, Unanswered, member_called, status_of};
use crate::peers::administration::{Act, Administered, Administration, Drain, HandOver};
use crate::peers::status::{GroupStatus, MemberStatus, NodeStatus};

/// How a drained node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drained {
    pub(super) name: String,
    pub(super) node: u64,
    pub(super) drains: bool,
    /// `None`: it does not answer.
    pub(super) left: Option<Left>,
}

/// What a node leads and has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    /// Groups that it leads.
    leads: usize,
    /// Those of them that another node has a vote in.
    leads_for_others: usize,
    /// Clients that it has.
    connections: u64,
}

impl Left {
    pub(super) fn of(status: &NodeStatus) -> Self {
        let led = || status.groups.iter().filter(|group| group.leads);
        let has_others = |group: &&GroupStatus| group.voters.iter().any(|&voter| voter != status.node);
        Self {
            leads: led().count(),
            leads_for_others: led().filter(has_others).count(),
            connections: status.connections,
        }
    }

    /// Whether nothing is left that another node could have.
    pub(super) fn is_nothing(self) -> bool {
        self.leads_for_others == 0 && self.connections == 0
    }
}

impl Drained {
    /// Nothing is left to wait for.
    pub(super) fn is_over(&self) -> bool {
        !self.drains || self.left.is_none_or(Left::is_nothing)
    }

    fn text(&self) -> String {
        let name = &self.name;
        match (self.drains, self.left) {
            (false, _) => format!("{name} is not drained any more: it takes clients, and groups come back\n"),
            (true, None) => format!("{name} is to be drained when it is back; it does not answer now\n"),
            (true, Some(Left { leads: 0, connections: 0, .. })) => {
                format!("{name} is drained: it leads no group and has no clients\n")
            }
            (true, Some(left)) if left.is_nothing() => {
                format!(
                    "{name} is drained: it has no clients, and leads {} groups in which it has the only vote\n",
                    left.leads
                )
            }
            (true, Some(Left { leads, connections, .. })) => {
                format!("{name} is being drained: it leads {leads} groups and has {connections} clients now\n")
            }
        }
    }

    /// For people, or as JSON.
    pub(super) fn show(&self, is_json: bool) -> String {
        if !is_json {
            return self.text();
        }
        let (leads, connections) = self.left.map(|left| (left.leads, left.connections)).unzip();
        let value = json!({
            "name": self.name,
            "node": NodeId(self.node).to_string(),
            "drains": self.drains,
            "leads": leads,
            "connections": connections,
        });
        format!("{value:#}\n")
    }
}

/// Drains a node, and waits until nothing is left there; or says that this is over.
pub(super) fn drain(
    transport: &Transport,
    peer: &str,
    called: &str,
    on: bool,
    wait: Duration,
) -> anyhow::Result<Drained> {
    drain_until(transport, peer, called, on, wait, Left::is_nothing)
}

fn drain_until(
    transport: &Transport,
    peer: &str,
    called: &str,
    on: bool,
    wait: Duration,
    is_enough: impl Fn(Left) -> bool,
) -> anyhow::Result<Drained> {
    let deadline = Instant::now() + wait;
    let status = status_of(transport, peer)?;
    let member = member_called(&status.members, called)?;
    if on {
        check_others_stay(&status.members, member)?;
    }
    anyhow::ensure!(on || !member.leaves, "{} is being removed, which cannot be undone", member.name);
    decide(
        transport,
        peer,
        &Act::Drain(Drain { node: member.node, on }),
        deadline.max(Instant::now() + DECIDED_WITHIN),
    )?;
    let mut silence = Silence::of(member.incarnation != 0);
    loop {
        let now = status_of(transport, &member.peer_address).ok().filter(|now| now.node == member.node);
        let left = now.as_ref().map(Left::of);
        let is_over = left.map_or_else(|| silence.is_end(Instant::now()), &is_enough);
        if left.is_some() {
            silence.since = None;
        }
        if !on || is_over || left.is_some() && Instant::now() >= deadline {
            return Ok(Drained { name: member.name.clone(), node: member.node, drains: on, left });
        }
        std::thread::sleep(PAUSE);
    }
}

/// A node that does not answer. One that the directory counts as living has clients as long as the contrary is not known, and what it is
/// asked for now and then gets lost: whoever removes it must not take that for an end.
#[derive(Debug)]
pub(super) struct Silence {
    lives: bool,
    since: Option<Instant>,
}

/// After that it is taken to be gone: twice the lease that it would need to have clients.
const SILENT_MIN: Duration = Duration::from_secs(3);

impl Silence {
    pub(super) fn of(lives: bool) -> Self {
        Self { lives, since: None }
    }

    /// It did not answer now, either.
    pub(super) fn is_end(&mut self, now: Instant) -> bool {
        !self.lives || now.duration_since(*self.since.get_or_insert(now)) >= SILENT_MIN
    }
}

/// How a member is to go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    /// Its clients are not moved away first.
    pub(super) now: bool,
    /// Though others are down, so that fewer nodes have copies of what there is than do now.
    pub(super) fewer_copies: bool,
    pub(super) wait: Duration,
}

/// Removes a member.
pub(super) fn remove(transport: &Transport, peer: &str, called: &str, how: Removal) -> anyhow::Result<String> {
    let Removal { now, fewer_copies, wait } = how;
    let deadline = Instant::now() + wait;
    let status = status_of(transport, peer)?;
    let member = member_called(&status.members, called)?;
    let stays = |known: &MemberStatus| known.node != member.node && !known.leaves;
    anyhow::ensure!(status.members.iter().any(stays), "nobody would be left to keep what there is");
    // Asked again it waits for what was decided.
    if !member.leaves && !fewer_copies {
        check_copies_stay(&status, member)?;
    }
    let could_take = |known: &MemberStatus| stays(known) && known.incarnation != 0 && !known.drains;
    if !now && member.incarnation != 0 && status.members.iter().any(could_take) {
        let id = NodeId(member.node).to_string();
        let drained = drain_until(transport, peer, &id, true, wait, |left| left.connections == 0)?;
        let clients = drained.left.map_or(0, |left| left.connections);
        anyhow::ensure!(
            clients == 0,
            "it is not done: {called} still has {clients} clients; it goes on being drained, so ask again, or close them \
             (--now)"
        );
    }
    let others = status.members.iter().filter(|known| stays(known) && known.incarnation != 0);
    let others: Vec<_> = others.map(|known| known.peer_address.as_str()).collect();
    ask::remove(transport, peer, &others, member.node, deadline.max(Instant::now() + DECIDED_WITHIN))?;
    Ok(format!("{called} is no member any more\n"))
}

/// Who leads a group now.
#[derive(Debug)]
pub(super) struct Transferred {
    group: u16,
    /// Whom an operator chose; `None`: nobody any more.
    to: Option<(String, u64)>,
}

impl Transferred {
    /// For people, or as JSON.
    pub(super) fn show(&self, is_json: bool) -> String {
        let group = group_name(self.group);
        if is_json {
            let (name, node) = self.to.clone().unzip();
            let node = node.map(|node| NodeId(node).to_string());
            return format!("{:#}\n", json!({ "group": self.group, "leader": name, "node": node }));
        }
        match &self.to {
            Some((name, _)) => format!("{name} leads {group}, and is to lead it from now on whenever it can\n"),
            None => format!("{group} is led by whomever the cluster chooses again\n"),
        }
    }
}

/// Lets another voter lead a group from now on, or (`None`) leaves that to the cluster again.
pub(super) fn transfer(
    transport: &Transport,
    peer: &str,
    group: u16,
    called: Option<&str>,
    wait: Duration,
) -> anyhow::Result<Transferred> {
    let deadline = Instant::now() + wait;
    let survey = ask::survey(transport, peer)?;
    // It takes long where a node does not answer.
    let decided = || deadline.max(Instant::now() + DECIDED_WITHIN);
    let name = group_name(group);
    anyhow::ensure!(survey.knows(group), "there is no {name}");
    let prefer = |node| Act::Prefer(HandOver { group: group.into(), node });
    let Some(called) = called else {
        decide(transport, peer, &prefer(0), decided())?;
        return Ok(Transferred { group, to: None });
    };
    let members: Vec<MemberStatus> = survey.nodes.iter().map(|node| node.member.clone()).collect();
    let member = member_called(&members, called)?;
    check_can_lead(&survey, group, member)?;
    hand_over(transport, peer, group, member, deadline.min(Instant::now() + DECIDED_WITHIN))?;
    // Only now, so that a refusal changes nothing. The new leader stays in office for longer than this takes.
    decide(transport, peer, &prefer(member.node), decided())?;
    loop {
        let status = status_of(transport, &member.peer_address);
        if status.is_ok_and(|status| leads_group(&status, group)) {
            return Ok(Transferred { group, to: Some((member.name.clone(), member.node)) });
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "{called} is to lead {name} from now on, but does not yet: see `kentongan cluster groups`"
        );
        std::thread::sleep(PAUSE);
    }
}

/// The number of a group, or `directory`.
pub(super) fn parse_group(text: &str) -> Result<u16, String> {
    let wrong = || String::from("must be the number of a group, or `directory`");
    match text {
        "directory" => Ok(GroupId::DIRECTORY.0),
        number => number.parse().ok().filter(|&group| group != GroupId::DIRECTORY.0).ok_or_else(wrong),
    }
}

fn group_name(group: u16) -> String {
    if group == GroupId::DIRECTORY.0 { "the directory".to_owned() } else { format!("group {group}") }
}

/// Time for what the directory must decide, however short an operator waits for the rest.
pub(super) const DECIDED_WITHIN: Duration = Duration::from_secs(10);

fn check_others_stay(members: &[MemberStatus], member: &MemberStatus) -> anyhow::Result<()> {
    let takes = |known: &MemberStatus| {
        known.node != member.node && known.incarnation != 0 && !known.leaves && !known.drains && !known.stops
    };
    anyhow::ensure!(
        members.iter().any(takes),
        "no other node could take what {} has: all others are down, drained or leaving",
        member.name
    );
    Ok(())
}

/// Whoever removes a node that lives while another is down has most likely mistaken it for that one: from then on those that live would be
/// all that have what is acknowledged, and the next one to fail would be one too many.
pub(super) fn check_copies_stay(status: &NodeStatus, member: &MemberStatus) -> anyhow::Result<()> {
    let others = status.members.iter().filter(|known| known.node != member.node && !known.leaves);
    let (living, down): (Vec<&MemberStatus>, Vec<_>) = others.partition(|known| known.incarnation != 0);
    let names =
        |members: &[&MemberStatus]| members.iter().map(|known| known.name.as_str()).collect::<Vec<_>>().join(", ");
    let copies = status.groups.iter().map(|group| group.voters.len()).max().unwrap_or(0);
    anyhow::ensure!(
        member.incarnation == 0 || down.is_empty() || living.len() >= copies,
        "{name} lives, and {down} is down: without {name} only {living} would have what {copies} nodes have now; nothing was changed. Remove \
         {down} instead, or start it again first; or say that fewer copies will do (--fewer-copies)",
        name = member.name,
        down = names(&down),
        living = if living.is_empty() { "nobody".to_owned() } else { names(&living) },
    );
    Ok(())
}

fn check_can_lead(survey: &Survey, group: u16, member: &MemberStatus) -> anyhow::Result<()> {
    let (called, name) = (&member.name, group_name(group));
    let is_drained = member.drains || member.stops || member.leaves;
    anyhow::ensure!(!is_drained, "{called} is drained, stops or leaves: it is to lead nothing");
    let leader = survey.leader_of(group);
    if let Some((_, seen)) = leader {
        let voters: Vec<_> = seen.voters.iter().map(|&node| survey.name_of(node)).collect();
        let votes = seen.voters.contains(&member.node);
        anyhow::ensure!(votes, "{called} has no vote in {name}, so it cannot lead it: {} have", voters.join(", "));
    }
    Ok(())
}

/// Asks whoever leads the group, until it has heard of it.
fn hand_over(
    transport: &Transport,
    peer: &str,
    group: u16,
    member: &MemberStatus,
    deadline: Instant,
) -> anyhow::Result<()> {
    let act = Act::HandOver(HandOver { group: group.into(), node: member.node });
    loop {
        let survey = ask::survey(transport, peer)?;
        let hindrance = match survey.leader_of(group) {
            Some((leader, _)) if leader == member.node => return Ok(()),
            None => "nobody leads it now".to_owned(),
            Some((leader, _)) => {
                let address = survey.nodes.iter().find(|node| node.member.node == leader);
                let address = address.map_or(peer, |node| &node.member.peer_address);
                match administer(transport, address, act.clone()) {
                    Ok(Administered { done: true, .. }) => return Ok(()),
                    Ok(Administered { refusal, .. }) if !refusal.is_empty() => {
                        anyhow::bail!("{}", survey.with_names(&refusal))
                    }
                    Ok(Administered { hindrance, .. }) => hindrance,
                    Err(error) => error.to_string(),
                }
            }
        };
        anyhow::ensure!(Instant::now() < deadline, "it is not done: {}", survey.with_names(&hindrance));
        std::thread::sleep(PAUSE);
    }
}

/// Asks whoever leads the directory, again and again until it is so.
pub(super) fn decide(transport: &Transport, peer: &str, act: &Act, deadline: Instant) -> anyhow::Result<()> {
    let mut address = peer.to_owned();
    loop {
        let hindrance = match administer(transport, &address, act.clone()) {
            Ok(Administered { done: true, .. }) => return Ok(()),
            Ok(Administered { refusal, .. }) if !refusal.is_empty() => anyhow::bail!("{refusal}"),
            Ok(Administered { elsewhere, .. }) if !elsewhere.is_empty() => {
                address = elsewhere;
                "whoever leads the directory has not decided".to_owned()
            }
            Ok(Administered { hindrance, .. }) => hindrance,
            Err(error) if error.is_unreached && address == peer && Instant::now() >= deadline => {
                return Err(error).context("it is not done");
            }
            Err(error) => {
                peer.clone_into(&mut address);
                error.to_string()
            }
        };
        let hindrance = if hindrance.is_empty() { "it is not committed yet" } else { &hindrance };
        anyhow::ensure!(Instant::now() < deadline, "it is not done: {hindrance}");
        std::thread::sleep(PAUSE / 4);
    }
}

pub(super) fn administer(transport: &Transport, address: &str, act: Act) -> Result<Administered, Unanswered> {
    let question = Administration::encode_question(act);
    let asking = transport.ask(Target::Address(address.to_owned()), Question::Administer, question);
    let (_, body) = asking.recv().unwrap_or(Err(LinkError::Stopped))?;
    Administered::decode_answer(body).map_err(|_| Unanswered::malformed())
}

fn leads_group(status: &NodeStatus, group: u16) -> bool {
    status.groups.iter().any(|known| known.group == u32::from(group) && known.leads)
}

impl Survey {
    fn knows(&self, group: u16) -> bool {
        self.groups().contains_key(&group.into())
    }

    /// Who leads a group by its own word, the newest if several say so, and how it sees it.
    fn leader_of(&self, group: u16) -> Option<(u64, &GroupStatus)> {
        let seen = self.groups().remove(&u32::from(group))?;
        seen.into_iter().filter(|(_, status)| status.leads).max_by_key(|(_, status)| status.term)
    }

    /// What a node said of others by their ids, with their names.
    fn with_names(&self, text: &str) -> String {
        self.nodes.iter().fold(text.to_owned(), |text, node| {
            text.replace(&NodeId(node.member.node).to_string(), &self.name_of(node.member.node))
        })
    }
}
