//! Filters with wildcards, level by level.
//!
//! Levels are interned, nodes stand in one array, and one table holds the edges of all of them: `(parent, level) →
//! child`. `+` is a field of the node, and a closing `#` a second value of the node before it, because `sport/#`
//! matches `sport` too.
//!
//! A look-up goes through the topic once and keeps the nodes it has reached. The nodes are a tree, so each is reached
//! at most once, however many `+` lead there: the work is bounded by the filters that share a beginning with the
//! topic, and a hostile filter costs only the nodes it made.

use hashbrown::HashTable;
use smallvec::{SmallVec, smallvec};

use super::topic_hash;

/// What is kept for one filter.
pub trait FilterValue: Default {
    /// Nobody wants the filter any more; it may go.
    fn is_empty(&self) -> bool;
}

const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;
/// In place of an interned level: the child is that by `+`.
const PLUS: u32 = u32::MAX;

/// Half a cache line, because a look-up's cost is the lines it touches: values stand elsewhere.
#[derive(Debug, Clone)]
struct Node {
    parent: u32,
    /// By which level its parent reaches it.
    level: u32,
    /// The child by `+`.
    plus: u32,
    /// Children by a level that is no wildcard.
    children: u32,
    /// A bit for each of their levels, and maybe for some that left: most levels that lead nowhere are known by it.
    child_bits: u64,
    /// The value of the filter that ends here.
    here: u32,
    /// The value of the filter that ends here with `#`.
    below: u32,
}

impl Node {
    fn new(parent: u32, level: u32) -> Self {
        Self { parent, level, plus: NONE, children: 0, child_bits: 0, here: NONE, below: NONE }
    }

    fn is_unused(&self) -> bool {
        self.plus == NONE && self.children == 0 && self.here == NONE && self.below == NONE
    }

    fn value(&mut self, is_below: bool) -> &mut u32 {
        if is_below { &mut self.below } else { &mut self.here }
    }
}

#[inline]
fn bit_of(level: u32) -> u64 {
    1 << (level % 64)
}

/// The texts of levels, each kept once.
#[derive(Debug, Default)]
struct Levels {
    texts: Vec<(Box<str>, u32)>,
    free: Vec<u32>,
    by_text: HashTable<u32>,
}

impl Levels {
    #[inline]
    fn find(&self, level: &str) -> Option<u32> {
        let matches = |&id: &u32| &*self.texts[id as usize].0 == level;
        self.by_text.find(topic_hash(level), matches).copied()
    }

    /// The level's number, for one more node.
    fn acquire(&mut self, level: &str) -> u32 {
        if let Some(id) = self.find(level) {
            self.texts[id as usize].1 += 1;
            return id;
        }
        let entry = (Box::from(level), 1);
        let id = match self.free.pop() {
            Some(id) => {
                self.texts[id as usize] = entry;
                id
            }
            None => {
                self.texts.push(entry);
                (self.texts.len() - 1) as u32
            }
        };
        let texts = &self.texts;
        self.by_text.insert_unique(topic_hash(level), id, |&id| topic_hash(&texts[id as usize].0));
        id
    }

    /// One node less has the level.
    fn release(&mut self, id: u32) {
        let (text, uses) = &mut self.texts[id as usize];
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        let text = std::mem::take(text);
        if let Ok(entry) = self.by_text.find_entry(topic_hash(&text), |&other| other == id) {
            entry.remove();
        }
        self.free.push(id);
    }
}

/// Filters with wildcards, and a value for each.
#[derive(Debug)]
pub struct WildcardTrie<V> {
    levels: Levels,
    nodes: Vec<Node>,
    free: Vec<u32>,
    edges: HashTable<u32>,
    values: Vec<V>,
    free_values: Vec<u32>,
}

impl<V: FilterValue> Default for WildcardTrie<V> {
    fn default() -> Self {
        Self {
            levels: Levels::default(),
            nodes: vec![Node::new(NONE, NONE)],
            free: Vec::new(),
            edges: HashTable::new(),
            values: Vec::new(),
            free_values: Vec::new(),
        }
    }
}

impl<V: FilterValue> WildcardTrie<V> {
    /// Filters that somebody wants.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() - self.free_values.len()
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nodes in use, the root among them: the most that a look-up can visit.
    #[cfg(test)]
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Bytes of its arrays and texts, without what the values hold.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let texts: usize = self.levels.texts.iter().map(|(text, _)| text.len()).sum();
        texts
            + self.levels.texts.capacity() * size_of::<(Box<str>, u32)>()
            + (self.levels.free.capacity() + self.free.capacity() + self.free_values.capacity()) * size_of::<u32>()
            + self.nodes.capacity() * size_of::<Node>()
            + self.values.capacity() * size_of::<V>()
            + self.levels.by_text.allocation_size()
            + self.edges.allocation_size()
    }

    /// Calls `found` for the value of each filter that matches `topic`, and returns how many nodes that took.
    ///
    /// A wildcard at the first level matches no topic that begins with `$` [MQTT-4.7.2-1].
    #[inline]
    pub fn matches<'t>(&'t self, topic: &str, mut found: impl FnMut(&'t V)) -> usize {
        if self.is_empty() {
            return 0;
        }
        let mut buffers: [SmallVec<[u32; 32]>; 2] = [smallvec![ROOT], SmallVec::new()];
        let [reached, next] = &mut buffers;
        let (mut reached, mut next) = (reached, next);
        let mut visited = 0;
        let mut wildcards = !topic.starts_with('$');
        for level in topic.split('/') {
            visited += reached.len();
            // Looked for once a level, and only if some node could go on by it.
            let mut interned = None;
            for &at in reached.iter() {
                let node = &self.nodes[at as usize];
                if wildcards {
                    if node.below != NONE {
                        found(&self.values[node.below as usize]);
                    }
                    if node.plus != NONE {
                        next.push(node.plus);
                    }
                }
                if node.children > 0
                    && let Some(id) = *interned.get_or_insert_with(|| self.levels.find(level))
                    && node.child_bits & bit_of(id) != 0
                    && let Some(child) = self.child(at, id)
                {
                    next.push(child);
                }
            }
            std::mem::swap(&mut reached, &mut next);
            next.clear();
            if reached.is_empty() {
                return visited;
            }
            wildcards = true;
        }
        visited += reached.len();
        for &at in reached.iter() {
            let node = &self.nodes[at as usize];
            for value in [node.here, node.below] {
                if value != NONE {
                    found(&self.values[value as usize]);
                }
            }
        }
        visited
    }

    /// The value of `filter`, if somebody wants it.
    #[must_use]
    pub fn get(&self, filter: &str) -> Option<&V> {
        let (at, is_below) = self.find(filter)?;
        let node = &self.nodes[at as usize];
        let value = if is_below { node.below } else { node.here };
        self.values.get(value as usize)
    }

    /// Changes the value of `filter`, which may be new.
    pub fn upsert<R>(&mut self, filter: &str, edit: impl FnOnce(&mut V) -> R) -> R {
        let (path, is_below) = split_below(filter);
        let mut at = ROOT;
        for level in path.into_iter().flat_map(|path| path.split('/')) {
            at = match self.step(at, level) {
                Some(child) => child,
                None => self.grow(at, level),
            };
        }
        self.edit(at, is_below, edit)
    }

    /// Changes the value of `filter` if somebody wants it, and forgets the filter if then nobody does.
    pub fn update<R>(&mut self, filter: &str, edit: impl FnOnce(&mut V) -> R) -> Option<R> {
        let (at, is_below) = self.find(filter)?;
        let wanted = *self.nodes[at as usize].value(is_below) != NONE;
        wanted.then(|| self.edit(at, is_below, edit))
    }

    fn edit<R>(&mut self, at: u32, is_below: bool, edit: impl FnOnce(&mut V) -> R) -> R {
        let value = self.nodes[at as usize].value(is_below);
        if *value == NONE {
            *value = self.free_values.pop().unwrap_or(self.values.len() as u32);
            if *value as usize == self.values.len() {
                self.values.push(V::default());
            }
        }
        let key = *value;
        let result = edit(&mut self.values[key as usize]);
        if self.values[key as usize].is_empty() {
            *value = NONE;
            self.free_values.push(key);
            self.prune(at);
        }
        result
    }

    fn find(&self, filter: &str) -> Option<(u32, bool)> {
        let (path, is_below) = split_below(filter);
        let mut levels = path.into_iter().flat_map(|path| path.split('/'));
        let at = levels.try_fold(ROOT, |at, level| self.step(at, level))?;
        Some((at, is_below))
    }

    fn step(&self, at: u32, level: &str) -> Option<u32> {
        if level == "+" {
            let plus = self.nodes[at as usize].plus;
            return (plus != NONE).then_some(plus);
        }
        self.child(at, self.levels.find(level)?)
    }

    #[inline]
    fn child(&self, parent: u32, level: u32) -> Option<u32> {
        let is_it = |&child: &u32| {
            let node = &self.nodes[child as usize];
            node.parent == parent && node.level == level
        };
        self.edges.find(edge_hash(parent, level), is_it).copied()
    }

    fn grow(&mut self, parent: u32, level: &str) -> u32 {
        let level = if level == "+" { PLUS } else { self.levels.acquire(level) };
        let node = Node::new(parent, level);
        let child = match self.free.pop() {
            Some(child) => {
                self.nodes[child as usize] = node;
                child
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        if level == PLUS {
            self.nodes[parent as usize].plus = child;
        } else {
            let parent_node = &mut self.nodes[parent as usize];
            parent_node.children += 1;
            parent_node.child_bits |= bit_of(level);
            let nodes = &self.nodes;
            self.edges.insert_unique(edge_hash(parent, level), child, |&child| {
                let node = &nodes[child as usize];
                edge_hash(node.parent, node.level)
            });
        }
        child
    }

    /// Takes out what leads nowhere, from `at` towards the root.
    fn prune(&mut self, mut at: u32) {
        while at != ROOT && self.nodes[at as usize].is_unused() {
            let Node { parent, level, .. } = self.nodes[at as usize];
            if level == PLUS {
                self.nodes[parent as usize].plus = NONE;
            } else {
                if let Ok(edge) = self.edges.find_entry(edge_hash(parent, level), |&child| child == at) {
                    edge.remove();
                }
                let parent_node = &mut self.nodes[parent as usize];
                parent_node.children -= 1;
                if parent_node.children == 0 {
                    parent_node.child_bits = 0;
                }
                self.levels.release(level);
            }
            self.free.push(at);
            at = parent;
        }
    }
}

/// A filter without its closing `#`, and whether it had one. `None`: nothing stands before it.
fn split_below(filter: &str) -> (Option<&str>, bool) {
    match filter.strip_suffix('#') {
        None => (Some(filter), false),
        Some(path) => (path.strip_suffix('/'), true),
    }
}

/// Both numbers are ours, so mixing them needs no key.
#[inline]
fn edge_hash(parent: u32, level: u32) -> u64 {
    let edge = u64::from(parent) << 32 | u64::from(level);
    let product = u128::from(edge ^ 0xF39C_C060_5CED_C834) * 0x9E37_79B9_7F4A_7C15;
    (product >> 64) as u64 ^ product as u64
}
