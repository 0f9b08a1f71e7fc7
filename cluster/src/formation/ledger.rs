//! What a node has promised and what it belongs to, on its disk. No network, no clock.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use super::record::{Formation, MEMBERS_MAX, Proposal};
use crate::NodeId;
use crate::directory::command::MemberRecord;
use crate::disk::{Disk, SyncSite};
use crate::transport::ClusterId;

/// The file of the promise.
const PROMISE: &str = "promise";

/// The file of the formation.
const FORMATION: &str = "formation";

/// Why what is on the disk cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk said no. Nothing more is promised or adopted before a new start, which finds out what is on the disk.
    #[error("file {file:?} in the data directory: {error}")]
    Disk {
        /// Which file.
        file: &'static str,
        /// What the disk said.
        error: io::Error,
    },
    /// An earlier write failed.
    #[error("what this node promised could not be written down before; start it again once its disk is in order")]
    Unsure,
    /// Not written by us, or damaged.
    #[error("file {file:?} in the data directory is not what this program wrote there")]
    Foreign {
        /// Which file.
        file: &'static str,
    },
}

/// Why a node does not promise.
#[derive(Debug, thiserror::Error)]
pub enum PromiseError {
    /// It is part of a cluster.
    #[error("it belongs to cluster {0}")]
    Formed(ClusterId),
    /// It promised something with the same number, or a higher one. One with a higher number might be promised.
    #[error("it promised to join the cluster that node {decider:016x} ({name:?}) forms, with number {number}")]
    Promised {
        /// The number.
        number: u32,
        /// Who decides.
        decider: u64,
        /// By name.
        name: String,
    },
    /// It promised to be part of a cluster, some members of which are left out now and might have formed it.
    #[error(
        "it promised to join a cluster with node {missing:016x}, which is not there now; if that node's disk is gone, and \
         nothing was stored in that cluster, start the other nodes with empty data directories"
    )]
    Missing {
        /// One of them.
        missing: u64,
    },
    /// Its seeds are others, or in another order.
    #[error(
        "the first of its seeds is {seed}, where node {first:016x} is, and only that one forms the cluster: give all nodes \
         the same seeds in the same order"
    )]
    NotFirst {
        /// The first seed of its list.
        seed: String,
        /// Who is there.
        first: u64,
    },
    /// It has not heard of its first seed.
    #[error("it has not reached the first of its seeds, {seed}, yet")]
    NotYet {
        /// That seed.
        seed: String,
    },
    /// It has no seeds.
    #[error("it was started without seeds, so it is a cluster of its own")]
    NoSeeds,
    /// Nonsense.
    #[error("the proposal is malformed: {0}")]
    Malformed(&'static str),
    /// Not to be had from this disk.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Why a node does not become part of a cluster that others formed.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is not one of the members.
    #[error("cluster {0} was formed without this node: it must ask to join")]
    NotListed(ClusterId),
    /// It promised to be part of another cluster, or of none so far.
    #[error(
        "cluster {0} lists this node, which has promised to join another one since: start it with an empty data directory"
    )]
    NotPromised(ClusterId),
    /// Not to be had from this disk.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A node's promise and its formation.
///
/// What is here is on the disk, and safe.
pub struct Ledger {
    disk: Arc<dyn Disk>,
    node: NodeId,
    promise: Option<Proposal>,
    formation: Option<Formation>,
    /// A write failed: nobody knows what is on the disk.
    is_unsure: bool,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, promise, formation, .. } = self;
        formatter
            .debug_struct("Ledger")
            .field("node", node)
            .field("promise", promise)
            .field("formation", formation)
            .finish()
    }
}

impl Ledger {
    /// Reads what is there, and makes it safe.
    ///
    /// # Errors
    /// The disk cannot be read or written, or has something else in these files.
    pub fn open(disk: Arc<dyn Disk>, node: NodeId) -> Result<Self, LedgerError> {
        let formation = read(&*disk, FORMATION)?.map(Formation::decode).transpose();
        let formation = formation.map_err(|_| LedgerError::Foreign { file: FORMATION })?;
        let promise = read(&*disk, PROMISE)?.map(Proposal::decode).transpose();
        let promise = promise.map_err(|_| LedgerError::Foreign { file: PROMISE })?;
        let mut ledger = Self { disk, node, promise, formation, is_unsure: false };
        // An earlier process may have been killed between a rename and its sync. What is answered from here on must not
        // be undone by a power cut.
        match (ledger.formation.clone(), ledger.promise.clone()) {
            (Some(formation), _) => ledger.write_formation(&formation)?,
            (None, Some(promise)) => ledger.write_promise(&promise)?,
            (None, None) => {}
        }
        Ok(ledger)
    }

    /// The cluster that this node is part of.
    #[must_use]
    pub fn formation(&self) -> Option<&Formation> {
        self.formation.as_ref()
    }

    /// What it promised last.
    #[must_use]
    pub fn promise(&self) -> Option<&Proposal> {
        self.promise.as_ref()
    }

    /// Promises to be part of this cluster and of none with a lower number; the rules and their reasons are those of
    /// [`super`]. A promise that was given is given again.
    ///
    /// # Errors
    /// It would break a promise, or cannot be written down.
    pub fn make_promise(&mut self, proposal: &Proposal) -> Result<(), PromiseError> {
        if let Some(formation) = &self.formation {
            return Err(PromiseError::Formed(formation.cluster_id));
        }
        let mut members = check(proposal, self.node)?;
        let mut bound = BTreeSet::new();
        if let Some(earlier) = &self.promise {
            let is_same_cluster = earlier.cluster_id == proposal.cluster_id && earlier.decider == proposal.decider;
            let is_again = is_same_cluster && earlier.number == proposal.number;
            if !is_again && proposal.number <= earlier.number {
                let Proposal { number, decider, decider_name: name, .. } = earlier.clone();
                return Err(PromiseError::Promised { number, decider, name });
            }
            bound.extend(&earlier.bound);
            if !is_same_cluster {
                bound.extend(&earlier.members);
                bound.remove(&earlier.decider);
            }
            if let Some(&missing) = bound.difference(&members).next() {
                return Err(PromiseError::Missing { missing });
            }
            if is_same_cluster {
                members.extend(&earlier.members);
            }
        }
        if members.len() > MEMBERS_MAX {
            return Err(PromiseError::Malformed("too many nodes were named for this cluster"));
        }
        let (members, bound) = (members.into_iter().collect(), bound.into_iter().collect());
        let promise = Proposal { members, bound, ..proposal.clone() };
        if self.promise.as_ref() != Some(&promise) {
            self.write_promise(&promise)?;
            self.promise = Some(promise);
        }
        Ok(())
    }

    /// Proposes that these nodes form a cluster, to be decided by this one, with a number of at least `number`. It promises so
    /// itself, and proposes the same cluster again after a restart.
    ///
    /// # Errors
    /// It would break a promise, or cannot be written down.
    pub fn propose(&mut self, me: &MemberRecord, members: Vec<u64>, number: u32) -> Result<Proposal, PromiseError> {
        let own = |promise: &&Proposal| promise.decider == self.node.0;
        let (cluster, least) = match self.promise.as_ref() {
            Some(promise) if own(&promise) => (promise.cluster(), promise.number),
            Some(promise) => (None, promise.number.saturating_add(1)),
            None => (None, 1),
        };
        let cluster = cluster.unwrap_or_else(|| ClusterId(rand::random()));
        let proposal = Proposal::new(cluster, least.max(number), me, members);
        self.make_promise(&proposal)?;
        Ok(proposal)
    }

    /// Forms the cluster that this node proposed, every other member having promised exactly this proposal.
    ///
    /// # Errors
    /// It has promised something else since, or cannot write it down.
    pub fn decide(&mut self, proposal: &Proposal, formation: Formation) -> Result<(), AdoptError> {
        let is_current = self.promise.as_ref().is_some_and(|promise| promise.number == proposal.number);
        if proposal.decider != self.node.0 || !is_current {
            return Err(AdoptError::NotPromised(formation.cluster_id));
        }
        self.adopt(formation)
    }

    /// Becomes part of a cluster that was formed.
    ///
    /// # Errors
    /// This node is no member of it, or has promised something else, or cannot write it down.
    pub fn adopt(&mut self, formation: Formation) -> Result<(), AdoptError> {
        if !formation.lists(self.node) {
            return Err(AdoptError::NotListed(formation.cluster_id));
        }
        let promised = self.promise.as_ref().and_then(Proposal::cluster);
        if self.formation.is_some() || promised != Some(formation.cluster_id) {
            return Err(AdoptError::NotPromised(formation.cluster_id));
        }
        self.write_formation(&formation)?;
        self.formation = Some(formation);
        Ok(())
    }

    /// Becomes part of a cluster that there is, whose members have committed that it is one of them.
    ///
    /// What it promised before is no hindrance: it takes no part in what it promised, from here on, and was no member of
    /// this one when that was formed.
    ///
    /// # Errors
    /// It is part of a cluster, or cannot write this down.
    pub fn join(&mut self, formation: Formation) -> Result<(), AdoptError> {
        if !formation.lists(self.node) {
            return Err(AdoptError::NotListed(formation.cluster_id));
        }
        if self.formation.is_some() {
            return Err(AdoptError::NotPromised(formation.cluster_id));
        }
        let formation = Formation { is_joined: true, ..formation };
        self.write_formation(&formation)?;
        self.formation = Some(formation);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn is_unsure(&self) -> bool {
        self.is_unsure
    }

    fn write_promise(&mut self, promise: &Proposal) -> Result<(), LedgerError> {
        self.write(PROMISE, &promise.encode_to_vec(), SyncSite::Promise, SyncSite::PromiseName)
    }

    fn write_formation(&mut self, formation: &Formation) -> Result<(), LedgerError> {
        self.write(FORMATION, &formation.encode(), SyncSite::Formation, SyncSite::FormationName)
    }

    /// Replaces a file as a whole, or not at all.
    fn write(&mut self, file: &'static str, body: &[u8], content: SyncSite, name: SyncSite) -> Result<(), LedgerError> {
        if self.is_unsure {
            return Err(LedgerError::Unsure);
        }
        let mut bytes = BytesMut::with_capacity(CHECKSUM_BYTES + body.len());
        bytes.put_u32_le(crc32fast::hash(body));
        bytes.put_slice(body);
        let new = format!("{file}.new");
        let replace = || -> io::Result<()> {
            let mut written = self.disk.append_to(&new)?;
            // What a process left there that was killed.
            written.truncate(0)?;
            written.append(&bytes)?;
            written.sync(content)?;
            self.disk.rename(&new, file)?;
            self.disk.sync_directory(name)
        };
        replace().map_err(|error| {
            self.is_unsure = true;
            LedgerError::Disk { file, error }
        })
    }
}

/// In front of what a file holds.
const CHECKSUM_BYTES: usize = 4;

fn read(disk: &dyn Disk, file: &'static str) -> Result<Option<Bytes>, LedgerError> {
    let bytes = match disk.read(file) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LedgerError::Disk { file, error }),
    };
    let foreign = LedgerError::Foreign { file };
    let Some((checksum, body)) = bytes.split_first_chunk::<CHECKSUM_BYTES>() else { return Err(foreign) };
    match u32::from_le_bytes(*checksum) == crc32fast::hash(body) {
        true => Ok(Some(bytes.slice(CHECKSUM_BYTES..))),
        false => Err(foreign),
    }
}

/// The members of a proposal that may be promised by `node`.
fn check(proposal: &Proposal, node: NodeId) -> Result<BTreeSet<u64>, PromiseError> {
    let members: BTreeSet<u64> = proposal.members.iter().copied().collect();
    if proposal.cluster().is_none() || proposal.number == 0 || proposal.number == u32::MAX {
        return Err(PromiseError::Malformed("no cluster id, or an impossible number"));
    }
    if members.len() != proposal.members.len() || members.len() > MEMBERS_MAX || members.contains(&0) {
        return Err(PromiseError::Malformed("too many members, or one twice"));
    }
    if !members.contains(&node.0) || !members.contains(&proposal.decider) {
        return Err(PromiseError::Malformed("it leaves out the node that is asked, or the one that decides"));
    }
    Ok(members)
}
