//! What the guest holds: node ids, and how many LOOKUP replies it has not yet forgotten for each.
//!
//! A node is in the table while its lookup count is above zero, and a request may name only those. Node ids
//! come from one counter for the life of the file system and are never reused, not even after a reset.

use std::collections::HashMap;
use std::sync::Arc;

use crate::generation::Node;

/// FUSE's node id of the mount's root; the counter starts above it.
pub(crate) const ROOT_ID: u64 = fuse_backend_rs::api::filesystem::ROOT_ID;

/// Who keeps a node alive beside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Key of the volume.
    pub(crate) volume: u64,
    /// Serial of the generation; `None` for the links at a volume's top level, which outlive generations.
    pub(crate) serial: Option<u64>,
}

/// A node that the guest holds.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) node: Arc<Node>,
    pub(crate) owner: Owner,
    lookups: u64,
}

/// The table of held nodes and the counter of ids.
#[derive(Debug)]
pub(crate) struct Nodes {
    last_id: u64,
    known: HashMap<u64, Known>,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        Self { last_id: ROOT_ID, known: HashMap::new() }
    }

    /// An id never given out before. 2^64 of them last longer than any machine.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn known(&self, id: u64) -> Option<&Known> {
        self.known.get(&id)
    }

    pub(crate) fn is_known(&self, id: u64) -> bool {
        self.known.contains_key(&id)
    }

    /// Counts one LOOKUP reply; returns whether the guest did not hold the node before.
    pub(crate) fn look_up(&mut self, node: &Arc<Node>, owner: Owner) -> bool {
        let known =
            self.known.entry(node.id).or_insert_with(|| Known { node: Arc::clone(node), owner, lookups: 0 });
        let is_new = known.lookups == 0;
        known.lookups = known.lookups.saturating_add(1);
        is_new
    }

    /// Takes back `count` LOOKUP replies; returns the owner when none is left. Unknown ids are ignored: they
    /// may be from before a reset, or the guest's invention.
    pub(crate) fn forget(&mut self, id: u64, count: u64) -> Option<Owner> {
        let known = self.known.get_mut(&id)?;
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return None;
        }
        self.known.remove(&id).map(|known| known.owner)
    }

    /// Moves a held node to a newer generation that has it too; returns whether it was held.
    pub(crate) fn move_to(&mut self, node: &Arc<Node>, owner: Owner) -> bool {
        match self.known.get_mut(&node.id) {
            Some(known) => {
                known.node = Arc::clone(node);
                known.owner = owner;
                true
            }
            None => false,
        }
    }

    /// Takes a node from the guest: requests for it answer ESTALE from now on.
    pub(crate) fn evict(&mut self, id: u64) {
        self.known.remove(&id);
    }

    /// Takes all nodes of a volume from the guest.
    pub(crate) fn evict_volume(&mut self, volume: u64) {
        self.known.retain(|_, known| known.owner.volume != volume);
    }

    /// Takes all nodes from the guest. The counter goes on.
    pub(crate) fn clear(&mut self) {
        // A new map, to give the memory back.
        self.known = HashMap::new();
    }

    /// Number of held nodes.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// LOOKUP replies not yet forgotten.
    pub(crate) fn lookups(&self) -> u64 {
        self.known.values().fold(0, |sum, known| sum.saturating_add(known.lookups))
    }
}
