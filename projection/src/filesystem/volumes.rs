//! The volumes behind one device: which one a request is for, and what the guest holds of all of them.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::Attr;
use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::FileType;

use super::listing::Handles;
use crate::error::Error;
use crate::generation::{Child, Node};
use crate::nodes::{Nodes, ROOT_ID};
use crate::statistics::Statistics;
use crate::volume::{Volume, VolumeState, errno, held};

/// The synthetic root's own attributes never change.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);

/// The state behind a file system.
#[derive(Debug)]
pub(super) struct Volumes {
    pub(super) nodes: Nodes,
    pub(super) handles: Handles,
    /// By the id of the volume's directory.
    volumes: HashMap<u64, VolumeState>,
    /// The synthetic root; `None` when the root is a volume.
    root: Option<Root>,
}

/// The synthetic root: volumes by name, and the directory made of them.
#[derive(Debug)]
struct Root {
    names: BTreeMap<String, u64>,
    node: Arc<Node>,
}

impl Root {
    fn new(names: BTreeMap<String, u64>) -> Self {
        let children = names.iter().map(|(name, id)| Child {
            name: name.as_bytes().into(),
            id: *id,
            file_type: FileType::Directory,
        });
        let node = Arc::new(Node::synthetic_directory(ROOT_ID, children.collect()));
        Self { names, node }
    }
}

impl Volumes {
    pub(super) fn of_volume(volume: Volume) -> Self {
        let mut nodes = Nodes::new();
        let state = VolumeState::new(volume, ROOT_ID, ROOT_ID, &mut nodes);
        let volumes = HashMap::from([(ROOT_ID, state)]);
        Self { nodes, handles: Handles::default(), volumes, root: None }
    }

    pub(super) fn of_volumes() -> Self {
        Self {
            nodes: Nodes::new(),
            handles: Handles::default(),
            volumes: HashMap::new(),
            root: Some(Root::new(BTreeMap::new())),
        }
    }

    pub(super) fn add(&mut self, name: &str, volume: Volume) -> Result<(), Error> {
        let Some(root) = &mut self.root else {
            return Err(Error::SingleVolume { name: name.into() });
        };
        check_volume_name(name)?;
        let mut names = root.names.clone();
        let id = self.nodes.fresh_id();
        if names.insert(name.into(), id).is_some() {
            return Err(Error::DuplicateVolume { name: name.into() });
        }
        *root = Root::new(names);
        self.volumes.insert(id, VolumeState::new(volume, id, ROOT_ID, &mut self.nodes));
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<(), Error> {
        let Some(root) = &mut self.root else {
            return Err(Error::SingleVolume { name: name.into() });
        };
        let mut names = root.names.clone();
        let id = names.remove(name).ok_or_else(|| Error::UnknownVolume { name: name.into() })?;
        *root = Root::new(names);
        self.volumes.remove(&id);
        self.nodes.evict_volume(id);
        Ok(())
    }

    /// Drops everything that the guest held, as if it had never asked anything.
    pub(super) fn reset(&mut self) {
        self.nodes.clear();
        self.handles.clear();
        for volume in self.volumes.values_mut() {
            volume.reset(&mut self.nodes);
        }
    }

    /// Whether an id is that of the mount's root or of a volume's directory.
    pub(super) fn is_root(&self, id: u64) -> bool {
        id == ROOT_ID || self.volumes.contains_key(&id)
    }

    /// The synthetic root, if that is what an id means.
    fn synthetic_root(&self, id: u64) -> Option<&Root> {
        self.root.as_ref().filter(|_| id == ROOT_ID)
    }

    /// The volume that owns a node which the guest holds.
    fn volume_of(&mut self, id: u64) -> io::Result<&mut VolumeState> {
        let owner = held(&self.nodes, id)?.1;
        self.volumes.get_mut(&owner.volume).ok_or_else(|| errno(libc::ESTALE))
    }

    pub(super) fn look_up(&mut self, parent: u64, name: &[u8]) -> io::Result<Entry> {
        if let Some(root) = self.synthetic_root(parent) {
            let child = root.node.directory().and_then(|directory| directory.child(name));
            let id = child.ok_or_else(|| errno(libc::ENOENT))?.id;
            let volume = self.volumes.get_mut(&id).ok_or_else(|| errno(libc::ENOENT))?;
            return Ok(volume.look_up_root());
        }
        if let Some(volume) = self.volumes.get_mut(&parent) {
            return volume.look_up_top(name, &mut self.nodes);
        }
        let owner = held(&self.nodes, parent)?.1;
        let volume = self.volumes.get_mut(&owner.volume).ok_or_else(|| errno(libc::ESTALE))?;
        volume.look_up_in(parent, name, &mut self.nodes)
    }

    pub(super) fn forget(&mut self, id: u64, count: u64) {
        // The kernel never forgets the mount's root.
        if id == ROOT_ID {
            return;
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.forget_root(count);
        } else if let Some(owner) = self.nodes.forget(id, count)
            && let Some(volume) = self.volumes.get_mut(&owner.volume)
        {
            volume.forgotten(owner);
        }
    }

    pub(super) fn attributes(&mut self, id: u64) -> io::Result<(Attr, Duration)> {
        if let Some(root) = self.synthetic_root(id) {
            return Ok((root.node.attr, FOREVER));
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            return volume.root_attributes(&mut self.nodes);
        }
        let owner = held(&self.nodes, id)?.1;
        let volume = self.volumes.get_mut(&owner.volume).ok_or_else(|| errno(libc::ESTALE))?;
        volume.attributes(id, &mut self.nodes)
    }

    /// Opens a directory for listing; `None` when it never changes and needs no handle.
    pub(super) fn open_directory(&mut self, id: u64) -> io::Result<Option<u64>> {
        if let Some(root) = self.synthetic_root(id) {
            let node = Arc::clone(&root.node);
            return self.handles.open(node).map(Some);
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            let node = volume.fresh_root(&mut self.nodes)?;
            return self.handles.open(node).map(Some);
        }
        let owner = held(&self.nodes, id)?.1;
        let volume = self.volumes.get_mut(&owner.volume).ok_or_else(|| errno(libc::ESTALE))?;
        let (node, serial) = volume.fresh_directory(id, &mut self.nodes)?;
        if volume.is_immutable(serial) {
            return Ok(None);
        }
        self.handles.open(node).map(Some)
    }

    /// The directory that a READDIR is for.
    pub(super) fn listed_directory(&mut self, id: u64, handle: u64) -> io::Result<Arc<Node>> {
        if self.is_root(id) {
            return self.handles.directory(id, handle);
        }
        let (node, owner) = held(&self.nodes, id)?;
        let volume = self.volume_of(id)?;
        if owner.serial.is_some_and(|serial| volume.is_immutable(serial)) {
            return Ok(node);
        }
        self.handles.directory(id, handle)
    }

    /// Bytes and entries that STATFS gives for a node: those of its volume, or of all.
    pub(super) fn size(&mut self, id: u64) -> io::Result<(u64, usize)> {
        if self.synthetic_root(id).is_some() {
            let sizes = self.volumes.values().map(VolumeState::size);
            return Ok(sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1)));
        }
        match self.volumes.get(&id) {
            Some(volume) => Ok(volume.size()),
            None => Ok(self.volume_of(id)?.size()),
        }
    }

    pub(super) fn statistics(&self) -> Statistics {
        let name_of = |id: &u64| {
            let names = self.root.iter().flat_map(|root| &root.names);
            names.into_iter().find(|(_, named)| *named == id).map_or(String::new(), |(name, _)| name.clone())
        };
        let mut volumes: Vec<_> =
            self.volumes.iter().map(|(id, volume)| volume.statistics(name_of(id))).collect();
        volumes.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        let root_lookups: u64 = self.volumes.values().map(VolumeState::root_lookups).sum();
        Statistics {
            live_nodes: self.nodes.len(),
            lookups: self.nodes.lookups().saturating_add(root_lookups),
            directory_handles: self.handles.len(),
            generations: volumes.iter().map(|volume| volume.generations).sum(),
            bytes: volumes.iter().map(|volume| volume.bytes).sum(),
            volumes,
        }
    }
}

/// Says whether a volume can have this name under the synthetic root.
///
/// # Errors
/// When it is empty, longer than 255 bytes, a path, has control
/// characters, or is one of the names that start with `..`.
pub fn check_volume_name(name: &str) -> Result<(), Error> {
    let is_possible = (1..=255).contains(&name.len())
        && name != "."
        && !name.starts_with("..")
        && !name.contains(|c: char| c == '/' || c.is_control());
    if is_possible { Ok(()) } else { Err(Error::VolumeName { name: name.into() }) }
}
