//! The generations of a volume that can be reached: the current one, and older ones that the guest holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::generation::{Generation, Node};
use crate::nodes::{Nodes, Owner};
use crate::snapshot::MAX_ENTRIES;

/// Caps on what the guest can hold beside the current generation. Beyond them the oldest is taken from it.
pub(super) const MAX_RETAINED: usize = 64;
/// As a multiple of the volume's own cap.
const MAX_RETAINED_SIZES: u64 = 4;
const MAX_RETAINED_NODES: usize = 4 * MAX_ENTRIES;

/// A generation that can be reached.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) serial: u64,
    pub(super) generation: Generation,
    /// How many of its nodes the guest holds.
    looked_up: usize,
}

impl Live {
    fn new(generation: Generation, nodes: &mut Nodes) -> Self {
        Self { serial: nodes.fresh_id(), generation, looked_up: 0 }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Generations {
    /// Key of the volume.
    volume: u64,
    pub(super) current: Live,
    /// Those with nodes that the guest holds, by serial, so the oldest is first.
    retained: BTreeMap<u64, Live>,
    max_retained_bytes: u64,
}

impl Generations {
    pub(super) fn new(volume: u64, first: Generation, max_size_bytes: u64, nodes: &mut Nodes) -> Self {
        Self {
            volume,
            current: Live::new(first, nodes),
            retained: BTreeMap::new(),
            max_retained_bytes: max_size_bytes.saturating_mul(MAX_RETAINED_SIZES),
        }
    }

    pub(super) fn live(&self, serial: u64) -> Option<&Live> {
        if self.current.serial == serial { Some(&self.current) } else { self.retained.get(&serial) }
    }

    /// A published directory, current or older, by the name under which it is shown, and its serial.
    pub(super) fn published_directory(&self, name: &[u8]) -> Option<(&Arc<Node>, u64)> {
        let is_shown_as = |live: &&Live| live.generation.shown_name.as_deref() == Some(name);
        let live = [&self.current].into_iter().chain(self.retained.values()).find(is_shown_as)?;
        let child = live.generation.root.directory()?.child(name)?;
        Some((live.generation.nodes.get(&child.id)?, live.serial))
    }

    /// The guest holds one more node of a generation.
    pub(super) fn looked_up(&mut self, serial: u64) {
        if self.current.serial == serial {
            self.current.looked_up += 1;
        } else if let Some(live) = self.retained.get_mut(&serial) {
            live.looked_up += 1;
        }
    }

    /// The guest holds one node less of a generation; an older one goes with its last.
    pub(super) fn forgotten(&mut self, serial: u64) {
        if self.current.serial == serial {
            self.current.looked_up = self.current.looked_up.saturating_sub(1);
        } else if let Some(live) = self.retained.get_mut(&serial) {
            live.looked_up = live.looked_up.saturating_sub(1);
            if live.looked_up == 0 {
                self.retained.remove(&serial);
            }
        }
    }

    /// Puts a new generation in the place of the current one; returns how many older ones were taken from the
    /// guest for it.
    pub(super) fn replace_current(&mut self, next: Generation, nodes: &mut Nodes) -> u64 {
        let mut old = std::mem::replace(&mut self.current, Live::new(next, nodes));
        if self.current.generation.is_plain() && old.generation.is_plain() {
            self.carry_over(&mut old, nodes);
        }
        if old.looked_up > 0 {
            self.retained.insert(old.serial, old);
        }
        self.evict(nodes)
    }

    /// Plain volume: held nodes that both generations have move to the new one; the old one keeps those that
    /// only the guest still has.
    fn carry_over(&mut self, old: &mut Live, nodes: &mut Nodes) {
        let owner = Owner { volume: self.volume, serial: Some(self.current.serial) };
        let kept = &self.current.generation.nodes;
        self.current.looked_up = kept.values().filter(|node| nodes.move_to(node, owner)).count();
        old.generation.nodes.retain(|id, _| nodes.is_known(*id) && !kept.contains_key(id));
        old.looked_up = old.generation.nodes.len();
        old.generation.len_bytes = old.generation.nodes.values().map(|node| node.file_len_bytes()).sum();
    }

    fn evict(&mut self, nodes: &mut Nodes) -> u64 {
        let mut evicted = 0;
        while self.retained.len() > MAX_RETAINED
            || self.retained_bytes() > self.max_retained_bytes
            || self.retained_generations().map(|old| old.nodes.len()).sum::<usize>() > MAX_RETAINED_NODES
        {
            let Some((_, oldest)) = self.retained.pop_first() else { break };
            for id in oldest.generation.nodes.keys() {
                nodes.evict(*id);
            }
            evicted += 1;
        }
        evicted
    }

    fn retained_generations(&self) -> impl Iterator<Item = &Generation> {
        self.retained.values().map(|live| &live.generation)
    }

    fn retained_bytes(&self) -> u64 {
        self.retained_generations().fold(0, |sum, old| sum.saturating_add(old.len_bytes))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        1 + self.retained.len()
    }

    /// Sum of their file sizes.
    pub(super) fn len_bytes(&self) -> u64 {
        self.current.generation.len_bytes.saturating_add(self.retained_bytes())
    }
}
