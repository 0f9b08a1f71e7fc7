//! `kentongan cluster backup`: what all groups have, in one file.
//!
//! What is said with the nodes, and why all of them are spoken with, stands in [`crate::peers::backup`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use kentongan_cluster::GroupId;
use kentongan_cluster::backup::{BackupWriter, Header};
use kentongan_cluster::directory::{Directory, STATE_KEY};
use kentongan_cluster::formation::Formation;
use kentongan_cluster::state::{self, SnapshotStreamError};
use kentongan_cluster::transport::{Talk, Transport};
use prost::Message as _;

use super::AskedArgs;
use super::ask::{self, Survey};
use crate::peers::backup::{BackupAnswer, Groups, Holds, Order, Said};
use crate::peers::status::{GroupStatus, MemberStatus};

/// How often it is begun anew, when nodes come or go meanwhile.
const TRIES: usize = 5;

/// Pause between two of these.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a long backup says how far it has come.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(in crate::cli) struct BackupArgs {
    /// The file to be written; there must be none of this name.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    pub(super) asked: AskedArgs,
}

impl BackupArgs {
    pub(super) fn file(&self) -> &Path {
        &self.file
    }
}

pub(super) fn run(transport: &Transport, peer: &str, file: &Path) -> anyhow::Result<String> {
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ensure!(!file.try_exists()?, "{} exists: name a file that does not", file.display());
    let mut tried = 0;
    let mut nodes = loop {
        tried += 1;
        let survey = match ask::survey(transport, peer) {
            Ok(survey) => survey,
            // Nothing was begun that nodes which come or go could have disturbed.
            Err(error) if tried == 1 || tried == TRIES => return Err(error),
            Err(error) => {
                eprintln!("begun anew: {error:#}");
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        match capture(transport, &survey) {
            Ok(nodes) => break nodes,
            Err(error) if tried == TRIES => {
                return Err(error.context("the cluster did not stay as it was for long enough"));
            }
            Err(error) => {
                eprintln!("begun anew: {error:#}");
                std::thread::sleep(PAUSE);
            }
        }
    };
    let groups: usize = nodes.iter().map(|node| node.captured.len()).sum();
    let header = Header {
        cluster_id: Bytes::copy_from_slice(&nodes[0].formation()?.cluster_id.0.to_be_bytes()),
        formation: nodes[0].holds.formation.clone(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        begun_ms: u64::try_from(begun.as_millis()).unwrap_or(u64::MAX),
        groups: groups as u32,
    };
    let mut writer = BackupWriter::create(file, &header)?;
    let mut written = 0;
    let mut said = Instant::now();
    for node in &mut nodes {
        node.order(Order::Send(Groups { groups: node.captured.clone() }));
        for group in node.captured.clone() {
            writer.begin_group(GroupId(group as u16))?;
            while let Some(data) = node.hear_data(group)? {
                writer.data(&data)?;
            }
            writer.end_group()?;
            written += 1;
            if said.elapsed() >= PROGRESS_INTERVAL {
                said = Instant::now();
                eprintln!("{written} of {groups} groups, {} KiB", writer.bytes().div_ceil(1024));
            }
        }
    }
    let bytes = writer.finish()?;
    Ok(format!("{}: {groups} groups of cluster {}, {bytes} bytes\n", file.display(), nodes[0].formation()?.cluster_id))
}

/// A node that is spoken with.
struct Spoken {
    node: u64,
    name: String,
    talk: Talk,
    holds: Holds,
    /// The groups that it has captured.
    captured: Vec<u32>,
}

impl Spoken {
    fn formation(&self) -> anyhow::Result<Formation> {
        Formation::decode(self.holds.formation.clone()).with_context(|| self.name.clone())
    }

    fn order(&self, order: Order) {
        self.talk.order(order.to_bytes());
    }

    fn hear(&mut self) -> anyhow::Result<Said> {
        hear(&mut self.talk).with_context(|| self.name.clone())
    }

    /// The next part of a group. `None`: that was all of it.
    fn hear_data(&mut self, group: u32) -> anyhow::Result<Option<Bytes>> {
        match self.hear()? {
            Said::Data(data) => Ok(Some(data)),
            Said::GroupEnd(ended) if ended == group => Ok(None),
            _ => bail!("{} answers something else than what was ordered", self.name),
        }
    }
}

fn hear(talk: &mut Talk) -> anyhow::Result<Said> {
    let answer = talk.hear()?.context("it has nothing more to say")?;
    let answer = BackupAnswer::decode(answer).context("its answer is malformed")?;
    answer.said.context("an answer that this version does not know")
}

/// Has every node hold, every group captured, and then nobody hold any more. What was captured waits to be sent.
fn capture(transport: &Transport, survey: &Survey) -> anyhow::Result<Vec<Spoken>> {
    let mut nodes = hold(transport, survey)?;
    let keepers = keepers(survey, &nodes)?;
    for (node, groups) in &keepers {
        nodes[*node].order(Order::Capture(Groups { groups: groups.clone() }));
    }
    for (node, groups) in keepers {
        match nodes[node].hear()? {
            Said::Captured(captured) if captured.groups == groups => nodes[node].captured = groups,
            _ => bail!("{} answers something else than what was ordered", nodes[node].name),
        }
    }
    // The last of all: it knows of whoever is connected in any group that was captured.
    let directory = capture_directory(&mut nodes)?;
    for node in &nodes {
        node.order(Order::Release(Groups::default()));
    }
    for node in &mut nodes {
        match node.hear()? {
            Said::Released(released) if released.held => {}
            _ => bail!("{} did not hold what it has for long enough", node.name),
        }
    }
    let held: BTreeSet<u64> = nodes.iter().map(|node| node.holds.incarnation).collect();
    let lives: BTreeSet<u64> = directory.living().map(|(_, incarnation)| incarnation.0).collect();
    ensure!(held == lives, "a node came or went meanwhile");
    Ok(nodes)
}

/// Every node that lives.
fn hold(transport: &Transport, survey: &Survey) -> anyhow::Result<Vec<Spoken>> {
    let living = survey.nodes.iter().filter(|node| node.member.incarnation != 0);
    let talks: Vec<_> = living
        .map(|node| {
            let first = Order::Hold(Groups::default()).to_bytes();
            (&node.member, transport.talk(node.member.peer_address.clone(), first))
        })
        .collect();
    ensure!(!talks.is_empty(), "no node lives");
    let hold = |(member, mut talk): (&MemberStatus, Talk)| {
        let name = member.name.clone();
        match hear(&mut talk).with_context(|| name.clone())? {
            Said::Holds(holds) => Ok(Spoken { node: member.node, name, talk, holds, captured: Vec::new() }),
            _ => bail!("{name} answers something else than what was ordered"),
        }
    };
    talks.into_iter().map(hold).collect()
}

/// By which node each group is captured: the first that keeps it.
fn keepers(survey: &Survey, nodes: &[Spoken]) -> anyhow::Result<BTreeMap<usize, Vec<u32>>> {
    let groups = u32::from(nodes[0].formation()?.terms.groups);
    let status = |node: &Spoken| {
        let known = survey.nodes.iter().find(|known| known.member.node == node.node)?;
        known.answer.as_ref().ok()
    };
    let keeps = |node: &Spoken, group: u32| {
        status(node).is_some_and(|status| {
            let is_member =
                |kept: &GroupStatus| kept.voters.contains(&status.node) || kept.learners.contains(&status.node);
            status.groups.iter().any(|kept| kept.group == group && is_member(kept))
        })
    };
    let mut keepers: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for group in 0..groups {
        let keeper = nodes.iter().position(|node| keeps(node, group));
        let keeper = keeper.with_context(|| format!("no node that answers keeps group {group}"))?;
        keepers.entry(keeper).or_default().push(group);
    }
    Ok(keepers)
}

/// Captures the directory, twice: it is looked at, and it is kept to be sent.
fn capture_directory(nodes: &mut [Spoken]) -> anyhow::Result<Directory> {
    let number = u32::from(GroupId::DIRECTORY.0);
    let node = &mut nodes[0];
    let order = || Groups { groups: vec![number] };
    node.order(Order::Capture(order()));
    node.order(Order::Send(order()));
    match node.hear()? {
        Said::Captured(captured) if captured.groups == [number] => {}
        _ => bail!("{} answers something else than what was ordered", node.name),
    }
    let name = node.name.clone();
    let parts = std::iter::from_fn(|| node.hear_data(number).transpose());
    let collected = state::collect(GroupId::DIRECTORY, parts).map_err(|error| match error {
        SnapshotStreamError::Stream(error) => error,
        SnapshotStreamError::Malformed(what) => {
            anyhow::anyhow!("{name}: the directory that it sent is malformed: {what}")
        }
    });
    let (_, pairs) = collected?;
    let bytes = pairs.iter().find(|(key, _)| key == STATE_KEY).context("the directory is empty")?;
    let directory = Directory::restore(&bytes.1)?;
    node.order(Order::Capture(order()));
    match node.hear()? {
        Said::Captured(captured) if captured.groups == [number] => node.captured.push(number),
        _ => bail!("{} answers something else than what was ordered", node.name),
    }
    Ok(directory)
}
