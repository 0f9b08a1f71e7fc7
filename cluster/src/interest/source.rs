//! The sender's half.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::{Content, Entry, SourceId, Update, Version, entry_bytes};

/// Recent changes that are kept, so that who was away shortly gets what changed instead of everything.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many times what an update holds the changes of one entry may be, to go as one. A message that is longer finds no room in a
/// queue, or in a frame, and its link would break over it again and again; a snapshot goes in pieces.
const ENTRY_UPDATES_MAX: usize = 16;

/// A set of filters with values, and what changed of late.
#[derive(Debug)]
pub struct Source {
    id: SourceId,
    version: Version,
    filters: BTreeMap<Arc<str>, u32>,
    recent: VecDeque<(Version, Entry)>,
    recent_bytes: usize,
    recent_bytes_max: usize,
    /// Every change after this version is in `recent`.
    oldest: Version,
}

/// How far one receiver was sent a source, over one link. What was sent and not taken is sent again by a new one.
#[derive(Debug)]
pub struct Feed {
    progress: Progress,
    as_of: u64,
}

#[derive(Debug)]
enum Progress {
    /// Nothing of a snapshot sent yet.
    Begin,
    Snapshot {
        version: Version,
        as_of: u64,
        after: Arc<str>,
        piece: u32,
    },
    Deltas {
        sent: Version,
    },
}

impl Source {
    /// The source of a node that just joined, or of a group before its first entry.
    #[must_use]
    pub fn new(id: SourceId) -> Self {
        Self::restored(id, Version(0), [])
    }

    /// The source of a replica that was restored from a snapshot of its group at index `version`.
    pub fn restored(id: SourceId, version: Version, entries: impl IntoIterator<Item = Entry>) -> Self {
        Self {
            id,
            version,
            filters: entries.into_iter().filter(|&(_, value)| value != 0).collect(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_bytes_max: RECENT_BYTES_MAX,
            oldest: version,
        }
    }

    /// Keeps fewer or more recent changes than usual.
    #[must_use]
    pub fn with_recent_bytes_max(mut self, bytes: usize) -> Self {
        self.recent_bytes_max = bytes;
        self
    }

    /// Whose interest it is.
    #[must_use]
    pub fn id(&self) -> SourceId {
        self.id
    }

    /// Of the last change.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The value of a filter; 0 if it is not wanted.
    #[must_use]
    pub fn value(&self, filter: &str) -> u32 {
        self.filters.get(filter).copied().unwrap_or(0)
    }

    /// Changes a filter of a node. Returns a version that holds it.
    pub fn set(&mut self, filter: &Arc<str>, value: u32) -> Version {
        self.set_at(Version(self.version.0 + 1), filter, value)
    }

    /// Changes a filter of a group by the entry at index `version`. Returns a version that holds it.
    ///
    /// # Panics
    /// The entries are not applied in their order.
    pub fn set_at(&mut self, version: Version, filter: &Arc<str>, value: u32) -> Version {
        assert!(version >= self.version, "{:?}: {version} after {}", self.id, self.version);
        if self.value(filter) == value {
            return self.version;
        }
        if value == 0 {
            self.filters.remove(filter);
        } else {
            self.filters.insert(Arc::clone(filter), value);
        }
        self.version = version;
        self.recent.push_back((version, (Arc::clone(filter), value)));
        self.recent_bytes += entry_bytes(filter);
        while self.recent_bytes > self.recent_bytes_max {
            let Some((oldest, (filter, _))) = self.recent.pop_front() else { break };
            self.recent_bytes -= entry_bytes(&filter);
            self.oldest = oldest;
        }
        version
    }

    /// Begins to send to a receiver that holds `have`, over a new link.
    ///
    /// A receiver may hold more than this replica: then it had that of the leader before, and this one is about to apply it.
    #[must_use]
    pub fn feed(&self, have: Option<Version>) -> Feed {
        Feed { progress: have.map_or(Progress::Begin, |sent| Progress::Deltas { sent }), as_of: 0 }
    }

    /// The next piece for a receiver, of about `bytes_max`; `None` if it was sent everything.
    ///
    /// `as_of` is the index up to which the directory is applied here, and every node that joined up to there is counted by
    /// the [`super::Barrier`] of this source. For a group that is not enough: it must also have been confirmed *after that* that this
    /// node leads the group (a ReadIndex round, applied). A deposed leader knows the joiner, but not the subscriptions that
    /// its successor acknowledged without counting it.
    pub fn next(&self, feed: &mut Feed, as_of: u64, bytes_max: usize) -> Option<Update> {
        if matches!(feed.progress, Progress::Deltas { sent } if sent < self.oldest) {
            feed.progress = Progress::Begin;
        }
        match &feed.progress {
            Progress::Begin => Some(self.snapshot_piece(feed, self.version, as_of, 0, None, bytes_max)),
            Progress::Snapshot { version, as_of, after, piece } => {
                let (version, as_of, after, piece) = (*version, *as_of, Arc::clone(after), *piece);
                Some(self.snapshot_piece(feed, version, as_of, piece, Some(after), bytes_max))
            }
            &Progress::Deltas { sent } if self.is_next_entry_too_long(sent, bytes_max) => {
                Some(self.snapshot_piece(feed, self.version, as_of, 0, None, bytes_max))
            }
            &Progress::Deltas { sent } => self.delta(feed, sent, as_of, bytes_max),
        }
    }

    /// The changes of an entry cannot be cut: half of them are no version. Where they are too many, everything is sent instead,
    /// which can.
    fn is_next_entry_too_long(&self, sent: Version, bytes_max: usize) -> bool {
        let mut rest = self.recent.range(self.recent.partition_point(|&(version, _)| version <= sent)..);
        let bytes_max = bytes_max.saturating_mul(ENTRY_UPDATES_MAX);
        let Some(&(next, (ref first, _))) = rest.next() else { return false };
        let mut bytes = entry_bytes(first);
        rest.take_while(|(version, _)| *version == next).any(|(_, (filter, _))| {
            bytes += entry_bytes(filter);
            bytes > bytes_max
        })
    }

    /// Pieces are cut from the set as it is now, which may be newer than `version`: the changes after `version` follow, and
    /// set every filter that changed to what it became.
    fn snapshot_piece(
        &self,
        feed: &mut Feed,
        version: Version,
        as_of: u64,
        piece: u32,
        after: Option<Arc<str>>,
        bytes_max: usize,
    ) -> Update {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.filters.range::<Arc<str>, _>((from, Bound::Unbounded)).peekable();
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        while let Some((filter, &value)) =
            rest.next_if(|(filter, _)| entries.is_empty() || fits(bytes, filter, bytes_max))
        {
            bytes += entry_bytes(filter);
            entries.push((Arc::clone(filter), value));
        }
        let next = rest.peek().and(entries.last()).map(|(after, _)| Arc::clone(after));
        let last = next.is_none();
        feed.progress = match next {
            Some(after) => Progress::Snapshot { version, as_of, after, piece: piece + 1 },
            None => Progress::Deltas { sent: version },
        };
        feed.as_of = as_of;
        Update { source: self.id, version, as_of, content: Content::Snapshot { piece, last, entries } }
    }

    fn delta(&self, feed: &mut Feed, from: Version, as_of: u64, bytes_max: usize) -> Option<Update> {
        let begin = self.recent.partition_point(|&(version, _)| version <= from);
        let mut changes: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut to = from;
        let mut rest = self.recent.range(begin..).peekable();
        while let Some(&&(version, _)) = rest.peek() {
            // The changes of one entry stay together: half of them are no version.
            let before = changes.len();
            while let Some((_, (filter, value))) = rest.next_if(|(of, _)| *of == version) {
                bytes += entry_bytes(filter);
                changes.push((Arc::clone(filter), *value));
            }
            if bytes > bytes_max && before > 0 {
                changes.truncate(before);
                break;
            }
            to = version;
        }
        let complete = to >= self.version;
        if changes.is_empty() && feed.as_of >= as_of {
            return None;
        }
        // Also an empty one goes out when the directory moved on: a joiner waits for it, and its confirmation counts only now.
        let as_of = if complete { as_of } else { 0 };
        feed.as_of = feed.as_of.max(as_of);
        feed.progress = Progress::Deltas { sent: to };
        Some(Update { source: self.id, version: to, as_of, content: Content::Delta { from, changes } })
    }
}

fn fits(bytes: usize, filter: &str, bytes_max: usize) -> bool {
    bytes + entry_bytes(filter) <= bytes_max
}
