//! What follows from what the seeds said. No network, no clock, no disk.

use super::FormationError;
use crate::NodeId;
use crate::directory::command::MemberRecord;
use crate::transport::PeerHello;

/// A seed's address, and what it answered last: who it is, or why it cannot be reached. `None` before it answered.
pub(super) type Seen<'a> = (&'a str, Option<&'a Result<PeerHello, String>>);

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: this is waited for.
    Wait(String),
    /// Ask these for the record of their cluster.
    Fetch(Vec<String>),
    /// Form a cluster with these: this node is the first seed, and all are there.
    Form(Vec<(String, NodeId)>),
}

/// Says what to do. `seen` has all seeds in the order of the list.
pub(super) fn next_step(me: &MemberRecord, seen: &[Seen<'_>]) -> Result<Step, FormationError> {
    let answered: Vec<(&str, &PeerHello)> =
        seen.iter().filter_map(|(seed, answer)| Some((*seed, answer.as_ref()?.as_ref().ok()?))).collect();
    if let Some((seed, other)) = answered.iter().find(|(_, other)| other.node.0 != me.node && other.name == me.name) {
        let (name, seed) = (me.name.clone(), (*seed).to_owned());
        return Err(FormationError::SameName { name, node: other.node, seed });
    }
    let of_clusters: Vec<String> =
        answered.iter().filter(|(_, hello)| hello.cluster.is_some()).map(|(seed, _)| (*seed).to_owned()).collect();
    if !of_clusters.is_empty() {
        return Ok(Step::Fetch(of_clusters));
    }
    if answered.len() < seen.len() {
        return Ok(Step::Wait(silent(seen)));
    }
    for (index, (seed, hello)) in answered.iter().enumerate() {
        let Some((earlier, same)) =
            answered[..index].iter().find(|(_, other)| other.node == hello.node || other.name == hello.name)
        else {
            continue;
        };
        return Ok(Step::Wait(match same.node == hello.node {
            true => format!("seeds {earlier} and {seed} are one node, {:?}: name each node once", hello.name),
            false => format!(
                "seeds {earlier} and {seed} are both called {:?}: give each node a name of its own (--node)",
                hello.name
            ),
        }));
    }
    let is_me = |(_, hello): &(&str, &PeerHello)| hello.node.0 == me.node;
    match answered.first() {
        Some(first) if is_me(first) => {
            let others = answered.iter().filter(|seed| !is_me(seed));
            Ok(Step::Form(others.map(|(seed, hello)| ((*seed).to_owned(), hello.node)).collect()))
        }
        Some((seed, _)) if answered.iter().any(|seed| is_me(seed)) => {
            Ok(Step::Wait(format!("all seeds are there, and the first one, {seed}, forms the cluster")))
        }
        _ => Ok(Step::Wait(
            "all seeds are there and none of them is this node, so they form a cluster without it: nodes cannot be added to \
             one yet"
                .to_owned(),
        )),
    }
}

/// Which seeds do not answer, and why.
fn silent(seen: &[Seen<'_>]) -> String {
    let silent: Vec<String> = seen
        .iter()
        .filter_map(|(seed, answer)| match answer {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(format!("{seed} ({error})")),
            None => Some(format!("{seed} (asked just now)")),
        })
        .collect();
    format!("waiting for {} of {} seeds: {}", silent.len(), seen.len(), silent.join(", "))
}
