//! A volume being served: how fresh it is, what the guest holds of it, and what became of its source.
//!
//! ```text
//!            loads, or is unchanged                 differs and cannot be loaded
//!   Present <------------------------ any state -----------------------------> Unloadable (EIO)
//!                                         | gone, emptied, being taken down
//!                                         +----------------------------------> Lost (last generation)
//! ```
//! The state is found anew by every [`VolumeState::refresh`], and a change of it is logged once.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::Attr;
use fuse_backend_rs::api::filesystem::Entry;

use super::Volume;
use super::generations::Generations;
use crate::generation::{Generation, Maker, Node, Ownership};
use crate::nodes::{Nodes, Owner};
use crate::snapshot::{DATA_LINK, MAX_ENTRIES, Observed, Snapshot, Source, as_path};
use crate::statistics::{SourceState, VolumeStatistics};

/// How long the guest may keep what never changes: some thirty years, which every kernel takes for ever.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);

/// Cap on top-level links whose key is gone but which the guest still holds.
const MAX_OLD_LINKS: usize = MAX_ENTRIES;

/// Longest file name that a guest's kernel passes on.
const MAX_NAME_BYTES: usize = 255;

/// Links at the top level of an AtomicWriter volume, by name.
type Links = HashMap<Vec<u8>, Arc<Node>>;

/// A volume being served.
#[derive(Debug)]
pub(crate) struct VolumeState {
    source: Source,
    ownership: Ownership,
    data_timeout: Duration,
    /// Id of the volume's directory and of the directory above it. They never change.
    root_id: u64,
    root_parent: u64,
    root_lookups: u64,
    /// What the current generation was made from.
    snapshot: Snapshot,
    generations: Generations,
    /// The links of the current generation, and older ones that the guest holds.
    links: Links,
    /// The published directory's name and how often in a row it came back with other content.
    last_name: Option<(Vec<u8>, u64)>,
    /// Whether the guest may have links into `..data` cached for ever.
    was_atomic_writer: bool,
    state: SourceState,
    loads: u64,
    load_failures: u64,
    rotations: u64,
    evictions: u64,
}

impl VolumeState {
    /// Starts to serve a volume.
    pub(crate) fn new(volume: Volume, root_id: u64, root_parent: u64, nodes: &mut Nodes) -> Self {
        let Volume { source, ownership, data_timeout, snapshot } = volume;
        let mut links = Links::new();
        let first = make_first(&snapshot, Maker { nodes, ownership, root_id, root_parent }, &mut links);
        let state = Self {
            generations: Generations::new(root_id, first, source.max_size_bytes, nodes),
            source,
            ownership,
            data_timeout,
            root_id,
            root_parent,
            root_lookups: 0,
            links,
            last_name: snapshot.directory_name().map(|name| (name.to_vec(), 0)),
            was_atomic_writer: snapshot.directory_name().is_some(),
            snapshot,
            state: SourceState::Present,
            loads: 1,
            load_failures: 0,
            rotations: 0,
            evictions: 0,
        };
        state.warn_of_ignored_entries(&[]);
        state
    }

    /// Forgets all that the guest held, as if the volume had just been opened. The caller has cleared `nodes`.
    pub(crate) fn reset(&mut self, nodes: &mut Nodes) {
        self.root_lookups = 0;
        self.links = Links::new();
        self.last_name = self.snapshot.directory_name().map(|name| (name.to_vec(), 0));
        self.was_atomic_writer = self.last_name.is_some();
        let (ownership, root_id, root_parent) = (self.ownership, self.root_id, self.root_parent);
        let maker = Maker { nodes, ownership, root_id, root_parent };
        let first = make_first(&self.snapshot, maker, &mut self.links);
        self.generations = Generations::new(self.root_id, first, self.source.max_size_bytes, nodes);
    }

    /// A LOOKUP reply for the volume's directory, whose name stays for as long as the volume does.
    pub(crate) fn look_up_root(&mut self) -> Entry {
        self.root_lookups = self.root_lookups.saturating_add(1);
        let is_plain = self.current().is_plain();
        reply_for(&self.current().root, is_plain, FOREVER)
    }

    /// A FORGET for the volume's directory.
    pub(crate) fn forget_root(&mut self, count: u64) {
        self.root_lookups = self.root_lookups.saturating_sub(count);
    }

    /// A node of this volume has been forgotten by the guest.
    pub(crate) fn forgotten(&mut self, owner: Owner) {
        if let Some(serial) = owner.serial {
            self.generations.forgotten(serial);
        }
    }

    fn current(&self) -> &Generation {
        &self.generations.current.generation
    }

    /// Answers a LOOKUP in the volume's directory.
    ///
    /// # Errors
    /// ENOENT; EIO when the directory has changed and cannot be loaded; ESTALE to make the guest walk anew.
    pub(crate) fn look_up_top(&mut self, name: &[u8], nodes: &mut Nodes) -> io::Result<Entry> {
        // Without asking the host: a walk that has read an older `..data` must be able to finish.
        if let Some((node, serial)) = self.generations.published_directory(name) {
            let node = Arc::clone(node);
            return Ok(self.reply(&node, Some(serial), FOREVER, nodes));
        }
        self.refresh(nodes)?;
        let current = self.current();
        let Some(child) = current.root.directory().and_then(|root| root.child(name)) else {
            // The guest may be following a link cached for ever from when this was an AtomicWriter volume. At
            // ESTALE the kernel repeats the walk and asks for every component again.
            let is_old_link = name == DATA_LINK && self.was_atomic_writer;
            return Err(errno(if is_old_link { libc::ESTALE } else { libc::ENOENT }));
        };
        if let Some(node) = current.nodes.get(&child.id).map(Arc::clone) {
            let timeout = match (current.is_plain(), name == DATA_LINK) {
                (true, _) => Duration::ZERO,
                (false, true) => self.data_timeout,
                (false, false) => FOREVER,
            };
            let serial = self.generations.current.serial;
            return Ok(self.reply(&node, Some(serial), timeout, nodes));
        }
        let link = self.links.get(name).map(Arc::clone).ok_or_else(|| errno(libc::ENOENT))?;
        Ok(self.reply(&link, None, FOREVER, nodes))
    }

    /// Answers a LOOKUP in a directory that the guest holds.
    ///
    /// # Errors
    /// As [`Self::fresh_directory`], and ENOENT.
    pub(crate) fn look_up_in(&mut self, parent: u64, name: &[u8], nodes: &mut Nodes) -> io::Result<Entry> {
        let (directory, serial) = self.fresh_directory(parent, nodes)?;
        let child = directory.directory().and_then(|directory| directory.child(name));
        let child = child.ok_or_else(|| errno(libc::ENOENT))?;
        let generation = &self.generations.live(serial).ok_or_else(|| errno(libc::ESTALE))?.generation;
        let node = generation.nodes.get(&child.id).map(Arc::clone).ok_or_else(|| errno(libc::ESTALE))?;
        let timeout = if generation.is_plain() { Duration::ZERO } else { FOREVER };
        Ok(self.reply(&node, Some(serial), timeout, nodes))
    }

    /// The volume's directory as it is now.
    ///
    /// # Errors
    /// EIO when it has changed and cannot be loaded.
    pub(crate) fn fresh_root(&mut self, nodes: &mut Nodes) -> io::Result<Arc<Node>> {
        self.refresh(nodes)?;
        Ok(Arc::clone(&self.current().root))
    }

    /// A directory that the guest holds, as it is now, and the serial of its generation.
    ///
    /// Those of an AtomicWriter generation never change. One of a plain volume is compared with the host first.
    ///
    /// # Errors
    /// ENOTDIR; ESTALE when the guest does not hold it or the host has it no more; EIO when the volume has
    /// changed and cannot be loaded.
    pub(crate) fn fresh_directory(&mut self, id: u64, nodes: &mut Nodes) -> io::Result<(Arc<Node>, u64)> {
        let (node, owner) = held(nodes, id)?;
        if node.directory().is_none() {
            return Err(errno(libc::ENOTDIR));
        }
        let serial = owner.serial.ok_or_else(|| errno(libc::ESTALE))?;
        if self.is_immutable(serial) {
            return Ok((node, serial));
        }
        self.refresh(nodes)?;
        let now = self.current().nodes.get(&id).map(Arc::clone).ok_or_else(|| errno(libc::ESTALE))?;
        Ok((now, self.generations.current.serial))
    }

    /// The volume's directory's attributes and how long they may be kept.
    ///
    /// # Errors
    /// As [`Self::fresh_root`].
    pub(crate) fn root_attributes(&mut self, nodes: &mut Nodes) -> io::Result<(Attr, Duration)> {
        if self.current().is_plain() {
            self.refresh(nodes)?;
        }
        let current = self.current();
        Ok((current.root.attr, attr_timeout(&current.root, current.is_plain())))
    }

    /// Attributes of a node that the guest holds and how long they may be kept.
    ///
    /// # Errors
    /// As [`Self::fresh_directory`] for directories. A removed one gives its last attributes.
    pub(crate) fn attributes(&mut self, id: u64, nodes: &mut Nodes) -> io::Result<(Attr, Duration)> {
        let (node, owner) = held(nodes, id)?;
        let is_plain = owner.serial.is_some_and(|serial| !self.is_immutable(serial));
        let is_changeable = is_plain && node.directory().is_some();
        if is_changeable {
            self.refresh(nodes)?;
        }
        let now = self.current().nodes.get(&id).filter(|_| is_changeable).unwrap_or(&node);
        Ok((now.attr, attr_timeout(&node, is_plain)))
    }

    /// Whether a generation's directories never change.
    pub(crate) fn is_immutable(&self, serial: u64) -> bool {
        self.generations.live(serial).is_some_and(|live| !live.generation.is_plain())
    }

    /// Counts a LOOKUP reply and makes it.
    fn reply(
        &mut self,
        node: &Arc<Node>,
        serial: Option<u64>,
        timeout: Duration,
        nodes: &mut Nodes,
    ) -> Entry {
        if nodes.look_up(node, Owner { volume: self.root_id, serial })
            && let Some(serial) = serial
        {
            self.generations.looked_up(serial);
        }
        reply_for(node, serial.is_some_and(|serial| !self.is_immutable(serial)), timeout)
    }

    /// Makes the current generation that of the directory as it is now.
    ///
    /// # Errors
    /// EIO when the directory has changed and cannot be loaded.
    fn refresh(&mut self, nodes: &mut Nodes) -> io::Result<()> {
        match self.source.observe(Some(&self.snapshot)) {
            Ok(Observed::Unchanged) => self.enter(SourceState::Present),
            Ok(Observed::Changed(snapshot)) => {
                self.loads += 1;
                if snapshot.is_same_as(&self.snapshot) {
                    self.snapshot = *snapshot;
                } else {
                    self.adopt(*snapshot, nodes);
                }
                self.enter(SourceState::Present);
            }
            Ok(Observed::Lost(reason)) => self.enter(SourceState::Lost(reason)),
            Err(error) => {
                self.load_failures += 1;
                self.enter(SourceState::Unloadable(error.to_string()));
                return Err(errno(libc::EIO));
            }
        }
        Ok(())
    }

    /// Notes what was found, and logs it if it is news.
    fn enter(&mut self, state: SourceState) {
        if self.state == state {
            return;
        }
        let path = &self.source.path;
        match &state {
            SourceState::Present => log::info!("Volume {path:?} is available again"),
            SourceState::Lost(reason) => {
                log::warn!("Volume {path:?} is lost ({reason}); serving its last content until it returns");
            }
            SourceState::Unloadable(error) => {
                log::error!("Volume {path:?} cannot be loaded, opening its files fails with EIO: {error}");
            }
        }
        self.state = state;
    }

    /// Puts a new generation in the place of the current one.
    fn adopt(&mut self, snapshot: Snapshot, nodes: &mut Nodes) {
        let previous = std::mem::replace(&mut self.snapshot, snapshot);
        self.warn_of_ignored_entries(previous.ignored());
        let shown_name = self.choose_shown_name();
        self.was_atomic_writer |= shown_name.is_some();
        let (ownership, root_id, root_parent) = (self.ownership, self.root_id, self.root_parent);
        let mut maker = Maker { nodes, ownership, root_id, root_parent };
        let generation = match shown_name {
            Some(name) => maker.atomic_writer(&self.snapshot, name, &mut self.links),
            None => maker.plain(&self.snapshot, Some(&self.generations.current.generation)),
        };
        self.rotations += 1;
        self.evictions += self.generations.replace_current(generation, nodes);
        self.drop_old_links(nodes);
    }

    /// The host's name for the published directory, or that name with `~N` when the guest may still have the
    /// name cached for other content: the same directory published again after a chmod, say.
    fn choose_shown_name(&mut self) -> Option<Vec<u8>> {
        let name = self.snapshot.directory_name()?;
        let mut count = match &self.last_name {
            Some((last, count)) if last == name => count + 1,
            _ => 0,
        };
        loop {
            let shown = numbered(name, count);
            if self.generations.published_directory(&shown).is_none() {
                self.last_name = Some((name.to_vec(), count));
                return Some(shown);
            }
            count += 1;
        }
    }

    /// Links whose key is gone stay for as long as the guest holds them, within a cap.
    fn drop_old_links(&mut self, nodes: &mut Nodes) {
        let Some(root) = self.generations.current.generation.root.directory() else { return };
        let is_current = |node: &Node, name: &[u8]| root.child(name).is_some_and(|child| child.id == node.id);
        self.links.retain(|name, node| is_current(node, name) || nodes.is_known(node.id));
        if self.links.len() <= root.children.len() + MAX_OLD_LINKS {
            return;
        }
        for (_, node) in self.links.extract_if(|name, node| !is_current(node, name)) {
            nodes.evict(node.id);
        }
        self.evictions += 1;
    }

    /// One line about entries beside the published directory that are not the writer's and are not shown.
    fn warn_of_ignored_entries(&self, already_reported: &[Vec<u8>]) {
        let ignored = self.snapshot.ignored();
        if ignored.is_empty() || ignored == already_reported {
            return;
        }
        let shown: Vec<_> = ignored.iter().take(5).map(|name| as_path(name)).collect();
        log::warn!(
            "Volume {:?}: {} entries beside `..data` are not its writer's and are not shown, such as {shown:?}",
            self.source.path,
            ignored.len(),
        );
    }

    pub(crate) fn statistics(&self, name: String) -> VolumeStatistics {
        VolumeStatistics {
            name,
            generations: self.generations.len(),
            bytes: self.generations.len_bytes(),
            loads: self.loads,
            load_failures: self.load_failures,
            rotations: self.rotations,
            evictions: self.evictions,
            source: self.state.clone(),
        }
    }

    /// LOOKUP replies for the volume's directory that the guest has not forgotten.
    pub(crate) fn root_lookups(&self) -> u64 {
        self.root_lookups
    }

    /// Bytes and entries of the current generation, for STATFS.
    pub(crate) fn size(&self) -> (u64, usize) {
        (self.snapshot.len_bytes, self.snapshot.entry_count)
    }
}

/// Makes a volume's generation for a guest that has seen none yet.
fn make_first(snapshot: &Snapshot, mut maker: Maker<'_>, links: &mut Links) -> Generation {
    match snapshot.directory_name() {
        Some(name) => maker.atomic_writer(snapshot, name.to_vec(), links),
        None => maker.plain(snapshot, None),
    }
}

/// A name with `~count` behind it, unless that is zero, cut to what a name may have.
fn numbered(name: &[u8], count: u64) -> Vec<u8> {
    if count == 0 {
        return name.to_vec();
    }
    let suffix = format!("~{count}").into_bytes();
    let kept = name.len().min(MAX_NAME_BYTES.saturating_sub(suffix.len()));
    [name.get(..kept).unwrap_or_default(), &suffix].concat()
}

/// How long the guest may keep a node's attributes: only directories of a plain volume change theirs.
fn attr_timeout(node: &Node, is_plain: bool) -> Duration {
    if is_plain && node.directory().is_some() { Duration::ZERO } else { FOREVER }
}

fn reply_for(node: &Node, is_plain: bool, entry_timeout: Duration) -> Entry {
    Entry {
        inode: node.id,
        generation: 0,
        attr: node.attr.into(),
        attr_flags: 0,
        attr_timeout: attr_timeout(node, is_plain),
        entry_timeout,
    }
}

/// A node that the guest holds.
///
/// # Errors
/// ESTALE when it does not.
pub(crate) fn held(nodes: &Nodes, id: u64) -> io::Result<(Arc<Node>, Owner)> {
    let known = nodes.known(id).ok_or_else(|| errno(libc::ESTALE))?;
    Ok((Arc::clone(&known.node), known.owner))
}

pub(crate) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_name_still_is_a_possible_name() {
        assert_eq!(numbered(b"..x", 0), b"..x");
        assert_eq!(numbered(b"..x", 12), b"..x~12");
        let longest = [b'x'; MAX_NAME_BYTES];
        assert_eq!(numbered(&longest, 7).len(), MAX_NAME_BYTES);
        assert!(numbered(&longest, 7).ends_with(b"x~7"));
    }
}
