//! The receiver's half.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Content, Entry, SourceId, Update, Version};

/// Names one connection of one link: what came over an earlier one is never mixed with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What the node must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableOutput {
    /// The subscription index changes.
    Change {
        /// Whose filter.
        source: SourceId,
        /// The filter.
        filter: Arc<str>,
        /// Its value before; 0 if it was not wanted.
        old: u32,
        /// Its value now; 0 if it is not wanted any more.
        new: u32,
    },
    /// Tell the source that this version is held, once every publisher here matches against the changes before this.
    Confirm {
        /// Which source.
        source: SourceId,
        /// Which version.
        version: Version,
    },
    /// Pieces are missing: ask the source, over the same link, to begin again from what is held.
    Ask {
        /// Which source.
        source: SourceId,
        /// See [`super::Source::feed`].
        have: Option<Version>,
    },
}

#[derive(Debug, Default)]
struct View {
    /// `None` before the first snapshot is complete.
    version: Option<Version>,
    as_of: u64,
    filters: BTreeMap<Arc<str>, u32>,
}

#[derive(Debug)]
struct Assembly {
    version: Version,
    as_of: u64,
    pieces: u32,
    entries: Vec<Entry>,
}

/// What every source wants, as far as it is known here.
///
/// Sources are followed and dropped by what the directory says, so that an update which was long on its way does not bring
/// back the interest of a node that is lost.
#[derive(Debug, Default)]
pub struct Table {
    views: BTreeMap<SourceId, View>,
    /// Snapshots that are coming in.
    assemblies: BTreeMap<(LinkId, SourceId), Assembly>,
}

impl Table {
    /// Knows nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A node lives, or a group exists: its interest is taken from now on.
    pub fn follow(&mut self, source: SourceId) {
        self.views.entry(source).or_default();
    }

    /// The node is lost: nobody there can miss anything any more. Not before: while it is only dead, what it confirmed to its
    /// clients still binds the others.
    pub fn drop_source(&mut self, source: SourceId, outputs: &mut Vec<TableOutput>) {
        self.assemblies.retain(|&(_, assembled), _| assembled != source);
        let Some(view) = self.views.remove(&source) else { return };
        for (filter, old) in view.filters {
            outputs.push(TableOutput::Change { source, filter, old, new: 0 });
        }
    }

    /// The sources that are followed.
    pub fn sources(&self) -> impl Iterator<Item = SourceId> + '_ {
        self.views.keys().copied()
    }

    /// Whether interest of that source is taken.
    #[must_use]
    pub fn follows(&self, source: SourceId) -> bool {
        self.views.contains_key(&source)
    }

    /// What to ask a source to begin from over a new link. Keep what is held until then: it was confirmed, and others count
    /// on it.
    #[must_use]
    pub fn have(&self, source: SourceId) -> Option<Version> {
        self.views.get(&source).and_then(|view| view.version)
    }

    /// The value of a filter at a source; 0 if it is not wanted.
    #[must_use]
    pub fn value(&self, source: SourceId, filter: &str) -> u32 {
        self.views.get(&source).and_then(|view| view.filters.get(filter)).copied().unwrap_or(0)
    }

    /// Of the sources that a node which joined by the entry `join` waits for, those that it must still wait for before its
    /// first lease counts.
    ///
    /// What was taken before the source applied that entry does not count: the source may have acknowledged
    /// subscriptions afterwards without waiting for the joiner.
    pub fn missing(&self, join: u64, sources: impl IntoIterator<Item = SourceId>) -> Vec<SourceId> {
        let complete = |view: &View| view.version.is_some() && view.as_of >= join;
        sources.into_iter().filter(|source| !self.views.get(source).is_some_and(complete)).collect()
    }

    /// Something of a source came over a link.
    pub fn on_update(&mut self, link: LinkId, update: Update, outputs: &mut Vec<TableOutput>) {
        let Update { source, version, as_of, content } = update;
        if !self.views.contains_key(&source) {
            return;
        }
        match content {
            Content::Delta { from, changes } => self.on_delta(source, version, as_of, from, changes, outputs),
            Content::Snapshot { piece, last, entries } => {
                let began = Assembly { version, as_of, pieces: 0, entries: Vec::new() };
                let key = (link, source);
                let mut assembly = if piece == 0 { Some(began) } else { self.assemblies.remove(&key) };
                let Some(assembly) =
                    assembly.take_if(|assembly| assembly.version == version && assembly.pieces == piece)
                else {
                    outputs.push(TableOutput::Ask { source, have: self.have(source) });
                    return;
                };
                self.on_piece(key, assembly, last, entries, outputs);
            }
        }
    }

    /// A link broke: half of a snapshot is worth nothing, everything else stays.
    pub fn on_link_closed(&mut self, link: LinkId) {
        self.assemblies.retain(|&(of, _), _| of != link);
    }

    fn on_piece(
        &mut self,
        key: (LinkId, SourceId),
        mut assembly: Assembly,
        last: bool,
        entries: Vec<Entry>,
        outputs: &mut Vec<TableOutput>,
    ) {
        assembly.pieces += 1;
        assembly.entries.extend(entries);
        if !last {
            self.assemblies.insert(key, assembly);
            return;
        }
        let source = key.1;
        let Some(view) = self.views.get_mut(&source) else { return };
        // An older one comes from a leader that is behind.
        if view.version.is_none_or(|held| assembly.version > held) {
            let wanted: BTreeMap<_, _> = assembly.entries.into_iter().filter(|&(_, value)| value != 0).collect();
            let gone = view.filters.keys().filter(|filter| !wanted.contains_key(*filter));
            let changes: Vec<Entry> = gone.map(|filter| (Arc::clone(filter), 0)).chain(wanted.clone()).collect();
            view.set_all(source, changes, outputs);
            view.version = Some(assembly.version);
        }
        view.confirm(source, assembly.version, assembly.as_of, outputs);
    }

    fn on_delta(
        &mut self,
        source: SourceId,
        version: Version,
        as_of: u64,
        from: Version,
        changes: Vec<Entry>,
        outputs: &mut Vec<TableOutput>,
    ) {
        let Some(view) = self.views.get_mut(&source) else { return };
        let Some(held) = view.version.filter(|&held| from <= held) else {
            outputs.push(TableOutput::Ask { source, have: view.version });
            return;
        };
        if version > held {
            // Only what each filter became: among changes that are known already, one may take back what a later one, also
            // known, gave again; a publish matched in between would miss it.
            let became: BTreeMap<Arc<str>, u32> = changes.into_iter().collect();
            view.set_all(source, became, outputs);
            view.version = Some(version);
        }
        view.confirm(source, version, as_of, outputs);
    }
}

impl View {
    fn set_all(&mut self, source: SourceId, changes: impl IntoIterator<Item = Entry>, outputs: &mut Vec<TableOutput>) {
        for (filter, new) in changes {
            let old = match new {
                0 => self.filters.remove(&filter),
                _ => self.filters.insert(Arc::clone(&filter), new),
            };
            let old = old.unwrap_or(0);
            if old != new {
                outputs.push(TableOutput::Change { source, filter, old, new });
            }
        }
    }

    /// Says what is held, also when `version` brought nothing: the last confirmation may have been lost with its link, or have
    /// come before the source counted this node.
    fn confirm(&mut self, source: SourceId, version: Version, as_of: u64, outputs: &mut Vec<TableOutput>) {
        let Some(held) = self.version else { return };
        if version == held {
            self.as_of = self.as_of.max(as_of);
        }
        outputs.push(TableOutput::Confirm { source, version: held });
    }
}
