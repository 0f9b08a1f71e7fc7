//! `kentongan cluster restore`: the first node of a new cluster, from a backup.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use kentongan_cluster::GroupId;
use kentongan_cluster::backup::{BackupError, BackupReader};
use kentongan_cluster::directory::command::MemberRecord;
use kentongan_cluster::directory::{Directory, STATE_KEY};
use kentongan_cluster::formation::Formation;
use kentongan_cluster::seed::{Seed, SeedError};
use kentongan_cluster::state::{SnapshotStreamError, StateError, Unpacked};

use super::recover::last_command;

#[derive(Debug, Args)]
pub(in crate::cli) struct RestoreArgs {
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The data directory to be made: it must be empty, or not exist.
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

/// Why a group cannot be put there.
#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error(transparent)]
    Backup(#[from] SnapshotStreamError<BackupError>),
}

pub(super) fn run(arguments: &RestoreArgs) -> anyhow::Result<String> {
    let path = &arguments.file;
    eprintln!("reading {}", path.display());
    // All of it is looked at before anything is made.
    let (directory, term) = check(path)?;
    let mut backup = BackupReader::open(path)?;
    let formation = Formation::decode(backup.header().formation.clone())?;
    let me = MemberRecord { name: "restored".to_owned(), ..MemberRecord::default() };
    let mut seed = Seed::begin(&arguments.into, me)?;
    let last = last_command();
    let (mut groups, mut rows) = (0, 0);
    while let Some(data) = backup.next_group()? {
        let group = data.group;
        let mut pairs = Unpacked::begin(group, data)?;
        if group == GroupId::DIRECTORY {
            pairs.try_for_each(|pair| pair.map(drop))?;
            continue;
        }
        let applied = pairs.base.applied;
        rows += seed.fill(group, applied, pairs.map(|pair| pair.map_err(FillError::from)), Vec::new(), &last)?;
        groups += 1;
    }
    let cluster = seed.finish(directory, term, formation.terms)?;
    let into = arguments.into.display();
    Ok(format!(
        "cluster {cluster} begins with what cluster {} had: {rows} rows in {groups} groups. Its only node has its data in {into}.\n\
         Start that one first (serve --data-dir {into}, --cluster, --node and the other flags as before). Then start the other nodes with\n\
         empty data directories, and with it as their seed (--seeds).\n",
        formation.cluster_id
    ))
}

/// Whether it is whole, and its directory.
fn check(path: &Path) -> anyhow::Result<(Directory, u64)> {
    let mut backup = BackupReader::open(path)?;
    Formation::decode(backup.header().formation.clone()).with_context(|| path.display().to_string())?;
    let mut found = None;
    while let Some(data) = backup.next_group()? {
        let group = data.group;
        let named = |error| match error {
            SnapshotStreamError::Stream(error) => anyhow::Error::from(error),
            SnapshotStreamError::Malformed(what) => anyhow::anyhow!("{}: group {group}: {what}", path.display()),
        };
        let mut pairs = Unpacked::begin(group, data).map_err(named)?;
        let term = pairs.base.applied.term;
        for pair in pairs.by_ref() {
            let (key, value) = pair.map_err(named)?;
            if group == GroupId::DIRECTORY && key == STATE_KEY {
                found = Some((Directory::restore(&value)?, term));
            }
        }
    }
    let (directory, term) = found.with_context(|| format!("{} has no directory", path.display()))?;
    ensure!(directory.cluster_id().is_some(), "{} is of no cluster", path.display());
    Ok((directory, term))
}
