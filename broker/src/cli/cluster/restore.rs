//! `kentongan cluster restore`: the first node of a new cluster, from a backup.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, ensure};
use clap::Args;
use kentongan_cluster::backup::{BackupError, BackupReader};
use kentongan_cluster::directory::command::MemberRecord;
use kentongan_cluster::directory::{Directory, STATE_KEY};
use kentongan_cluster::formation::Formation;
use kentongan_cluster::seed::{Seed, SeedError};
use kentongan_cluster::state::{SnapshotStreamError, StateError, Unpacked};
use kentongan_cluster::{GroupId, UnknownLevel};

use super::recover::last_command;
use crate::later;

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
    check_level(&path.display().to_string(), &directory)?;
    Ok((directory, term))
}

/// Whether this program knows what the cluster uses whose directory this is: it would drop what it has no name for. `of` is what it was read from.
pub(super) fn check_level(of: &str, directory: &Directory) -> anyhow::Result<()> {
    let program = env!("CARGO_PKG_VERSION");
    later::feature_levels().check(directory.feature_level()).map_err(|unknown| match unknown {
        UnknownLevel::TooOld { used, max } => anyhow!(
            "{of} is of a cluster that uses feature level {used}, and this program (version {program}) knows none above {max}: do this with the \
             version that the nodes of that cluster ran, or a later one; nothing was made"
        ),
        UnknownLevel::TooNew { used, min } => anyhow!(
            "{of} is of a cluster that uses feature level {used}, and this program (version {program}) knows none below {min}: do this with the \
             version that the nodes of that cluster ran, and upgrade the new cluster by way of the versions between; nothing was made"
        ),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use kentongan_cluster::backup::{BackupWriter, Header};
    use kentongan_cluster::directory::command::{Command, Form};
    use kentongan_cluster::disk::{Disk, RealDisk};
    use kentongan_cluster::formation::Terms;
    use kentongan_cluster::state::{StateStore, chunks};
    use kentongan_cluster::transport::ClusterId;

    use super::*;
    use crate::later::LEVEL_AHEAD;

    /// The data directory of the only node of a cluster that uses the feature level after those that this program knows.
    pub(in super::super) fn make_later_cluster(path: &Path) {
        let mut directory = Directory::new();
        let form =
            Form { cluster_id: Bytes::from_static(&[7; 16]), groups: 1, feature_level: LEVEL_AHEAD, ..Form::default() };
        directory.apply(1, Command::Form(form));
        let seed = Seed::begin(path, MemberRecord { name: "n1".to_owned(), ..MemberRecord::default() }).unwrap();
        seed.finish(directory, 1, Terms { groups: 1, voters: 3, settings: Bytes::new() }).unwrap();
    }

    fn back_up(data_dir: &Path, file: &Path) {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&data_dir.join("log")).unwrap());
        let store = StateStore::open(&data_dir.join("state"), disk).unwrap();
        let terms = Terms { groups: 1, voters: 3, settings: Bytes::new() };
        let member = MemberRecord { node: 1, ..MemberRecord::default() };
        let formation = Formation { cluster_id: ClusterId(7), terms, members: vec![member], is_joined: false }.encode();
        let mut backup = BackupWriter::create(file, &Header { formation, groups: 2, ..Header::default() }).unwrap();
        for group in [GroupId(0), GroupId::DIRECTORY] {
            backup.begin_group(group).unwrap();
            chunks(&store.reader(), group).unwrap().for_each(|chunk| backup.data(&chunk.unwrap()).unwrap());
            backup.end_group().unwrap();
        }
        backup.finish().unwrap();
    }

    /// It would begin with what it knows of it, and be refused by itself at its start, or miss the rest.
    #[test]
    fn a_backup_of_a_later_level_is_refused_before_anything_is_made() {
        let place = tempfile::tempdir().unwrap();
        let [cluster, file, into] = ["cluster", "backup", "into"].map(|name| place.path().join(name));
        make_later_cluster(&cluster);
        back_up(&cluster, &file);
        let arguments = RestoreArgs { file, into: into.clone() };
        let refused = run(&arguments).unwrap_err().to_string();
        let max = LEVEL_AHEAD - 1;
        let why = format!("is of a cluster that uses feature level {LEVEL_AHEAD}, and this program (version ");
        assert!(
            refused.contains(&why) && refused.contains(&format!(" knows none above {max}: do this with the version")),
            "{refused}"
        );
        assert!(!into.exists());
        later::set_ahead(true);
        let restored = run(&arguments).unwrap();
        assert!(restored.contains("rows in 1 groups"), "{restored}");
    }
}
