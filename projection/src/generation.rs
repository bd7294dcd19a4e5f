//! One immutable, complete generation of a volume as the guest sees it: node ids, attributes, names.
//!
//! A generation is made from a [`Snapshot`] in one go and never changes. In an AtomicWriter volume all its
//! nodes are new, so that "valid for ever" is true of everything the guest caches; only the links at the top
//! level belong to the volume and stay. In a plain volume an unchanged file keeps its node, and a directory
//! its id, from the generation before.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::Attr;
use rustix::fs::FileType;

use crate::directory::HostAttr;
use crate::nodes::Nodes;
use crate::secret_memory::SecretBytes;
use crate::snapshot::{DATA_LINK, HostContent, HostNode, Layout, Snapshot, WRITER_LINK_PREFIX};

const BLOCK_BYTES: u32 = 4096;
/// Sticky bit and write permission for others, which the guest never gets to see: the export is read-only,
/// and with fs.protected_symlinks=1 a guest kernel would not follow the pod user's links in such a directory.
const HIDDEN_BITS: u32 = libc::S_ISVTX | libc::S_IWOTH;
const PERMISSION_BITS: u32 = 0o7777;

/// Owner and permissions as the guest shall see them; `None` means as the host has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ownership {
    /// User id of every file, directory and link.
    pub uid: Option<u32>,
    /// Group id of every file, directory and link.
    pub gid: Option<u32>,
    /// Permission bits of regular files. Write permission for others is hidden all the same.
    pub mode: Option<u32>,
}

/// A file, directory or link as the guest sees it.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) attr: Attr,
    /// What it was made from, to tell whether a later reading is still the same.
    host: HostAttr,
    pub(crate) content: Content,
}

/// What a node holds.
pub(crate) enum Content {
    Directory(Directory),
    File(Arc<SecretBytes>),
    Symlink(Vec<u8>),
}

/// A directory's entries, sorted by name.
pub(crate) struct Directory {
    /// Id of the directory above, for `..` in listings.
    pub(crate) parent: u64,
    pub(crate) children: Vec<Child>,
}

/// An entry of a directory.
pub(crate) struct Child {
    pub(crate) name: Box<[u8]>,
    pub(crate) id: u64,
    pub(crate) file_type: FileType,
}

impl Node {
    /// A directory made up by this crate, owned by root and closed to writing.
    pub(crate) fn synthetic_directory(id: u64, children: Vec<Child>) -> Self {
        let host = HostAttr { mode: libc::S_IFDIR | 0o555, ..HostAttr::default() };
        let content = Content::Directory(Directory { parent: id, children });
        Self { id, attr: guest_attr(id, &host, &content, &Ownership::default()), host, content }
    }

    pub(crate) fn directory(&self) -> Option<&Directory> {
        match &self.content {
            Content::Directory(directory) => Some(directory),
            Content::File(_) | Content::Symlink(_) => None,
        }
    }

    /// Length of a file's content; zero for anything else.
    pub(crate) fn file_len_bytes(&self) -> u64 {
        match &self.content {
            Content::File(bytes) => bytes.len_bytes(),
            Content::Directory(_) | Content::Symlink(_) => 0,
        }
    }

    fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.attr.mode)
    }
}

impl Directory {
    pub(crate) fn child(&self, name: &[u8]) -> Option<&Child> {
        let index = self.children.binary_search_by(|child| (*child.name).cmp(name)).ok()?;
        self.children.get(index)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Node({}, {:?})", self.id, self.file_type())
    }
}

/// One generation.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Name under which an AtomicWriter's published directory is shown; `None` for a plain volume.
    pub(crate) shown_name: Option<Vec<u8>>,
    /// The volume's directory.
    pub(crate) root: Arc<Node>,
    /// All other nodes that belong to this generation.
    pub(crate) nodes: HashMap<u64, Arc<Node>>,
    /// Sum of the file sizes.
    pub(crate) len_bytes: u64,
}

impl Generation {
    /// Whether it is of a plain volume, whose names and directories may change under the guest.
    pub(crate) fn is_plain(&self) -> bool {
        self.shown_name.is_none()
    }
}

/// What a generation is made with.
pub(crate) struct Maker<'a> {
    /// Where new ids come from.
    pub(crate) nodes: &'a mut Nodes,
    pub(crate) ownership: Ownership,
    /// Id of the volume's directory.
    pub(crate) root_id: u64,
    /// Id of the directory above that one.
    pub(crate) root_parent: u64,
}

impl Maker<'_> {
    /// Makes the generation of an AtomicWriter volume.
    ///
    /// `links` are the volume's links at the top level; missing ones are added.
    pub(crate) fn atomic_writer(
        &mut self,
        snapshot: &Snapshot,
        shown_name: Vec<u8>,
        links: &mut HashMap<Vec<u8>, Arc<Node>>,
    ) -> Generation {
        let mut made = HashMap::new();
        let directory = self.tree(&snapshot.tree, None, self.root_id, &mut made);
        let data_link = self.symlink(shown_name.clone(), &snapshot.root);
        let mut children =
            vec![child_of(DATA_LINK.to_vec(), &data_link), child_of(shown_name.clone(), &directory)];
        for name in snapshot.tree.children().map(|(name, _)| name) {
            // The writer refuses such keys; they would hide its own names.
            if name.starts_with(b"..") {
                continue;
            }
            let link = links.entry(name.clone()).or_insert_with(|| {
                let target = [WRITER_LINK_PREFIX, name].concat();
                let host = match &snapshot.layout {
                    Layout::AtomicWriter { links, .. } => links.get(name),
                    Layout::Plain { .. } => None,
                };
                // The writer makes the link of a new key only after it has published the key.
                self.symlink(target, host.unwrap_or(&snapshot.root))
            });
            children.push(child_of(name.clone(), link));
        }
        made.insert(data_link.id, data_link);
        let root = self.directory(self.root_id, self.root_parent, &snapshot.root, children);
        Generation { shown_name: Some(shown_name), root, nodes: made, len_bytes: snapshot.len_bytes }
    }

    /// Makes the generation of a plain volume; what has not changed since `previous` keeps its id.
    pub(crate) fn plain(&mut self, snapshot: &Snapshot, previous: Option<&Generation>) -> Generation {
        let mut made = HashMap::new();
        let previous = previous.filter(|previous| previous.is_plain());
        let earlier = previous.map(|previous| Earlier { node: &previous.root, nodes: &previous.nodes });
        let children = self.children(&snapshot.tree, earlier, self.root_id, &mut made);
        let root = self.directory(self.root_id, self.root_parent, &snapshot.root, children);
        Generation { shown_name: None, root, nodes: made, len_bytes: snapshot.len_bytes }
    }

    /// Makes a node and all below it; as deep as the snapshot is, which the loader caps.
    fn tree(
        &mut self,
        host: &HostNode,
        earlier: Option<Earlier<'_>>,
        parent: u64,
        made: &mut HashMap<u64, Arc<Node>>,
    ) -> Arc<Node> {
        let node = match &host.content {
            HostContent::Directory(_) => {
                let earlier = earlier.filter(|earlier| earlier.node.host.is_same_file(&host.attr));
                let id = earlier.map_or_else(|| self.nodes.fresh_id(), |earlier| earlier.node.id);
                let children = self.children(host, earlier, id, made);
                self.directory(id, parent, &host.attr, children)
            }
            HostContent::File(bytes) => match earlier.and_then(|earlier| earlier.unchanged(host)) {
                Some(node) => node,
                None => self.leaf(&host.attr, Content::File(Arc::clone(bytes))),
            },
            HostContent::Symlink(target) => match earlier.and_then(|earlier| earlier.unchanged(host)) {
                Some(node) => node,
                None => self.symlink(target.clone(), &host.attr),
            },
        };
        made.insert(node.id, Arc::clone(&node));
        node
    }

    fn children(
        &mut self,
        host: &HostNode,
        earlier: Option<Earlier<'_>>,
        id: u64,
        made: &mut HashMap<u64, Arc<Node>>,
    ) -> Vec<Child> {
        host.children()
            .map(|(name, child)| {
                let earlier = earlier.and_then(|earlier| earlier.child(name));
                child_of(name.clone(), &self.tree(child, earlier, id, made))
            })
            .collect()
    }

    fn directory(&self, id: u64, parent: u64, host: &HostAttr, mut children: Vec<Child>) -> Arc<Node> {
        children.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        let content = Content::Directory(Directory { parent, children });
        Arc::new(Node { id, attr: guest_attr(id, host, &content, &self.ownership), host: *host, content })
    }

    fn symlink(&mut self, target: Vec<u8>, host: &HostAttr) -> Arc<Node> {
        self.leaf(host, Content::Symlink(target))
    }

    fn leaf(&mut self, host: &HostAttr, content: Content) -> Arc<Node> {
        let id = self.nodes.fresh_id();
        Arc::new(Node { id, attr: guest_attr(id, host, &content, &self.ownership), host: *host, content })
    }
}

/// The node at the same path in the generation before, and where its children are.
#[derive(Clone, Copy)]
struct Earlier<'a> {
    node: &'a Arc<Node>,
    nodes: &'a HashMap<u64, Arc<Node>>,
}

impl<'a> Earlier<'a> {
    fn child(&self, name: &[u8]) -> Option<Earlier<'a>> {
        let child = self.node.directory()?.child(name)?;
        Some(Earlier { node: self.nodes.get(&child.id)?, nodes: self.nodes })
    }

    /// The earlier node, if nothing about it has changed.
    fn unchanged(&self, host: &HostNode) -> Option<Arc<Node>> {
        let is_same_content = match (&self.node.content, &host.content) {
            (Content::File(mine), HostContent::File(theirs)) => Arc::ptr_eq(mine, theirs),
            (Content::Symlink(mine), HostContent::Symlink(theirs)) => mine == theirs,
            _ => false,
        };
        (is_same_content && self.node.host == host.attr).then(|| Arc::clone(self.node))
    }
}

fn child_of(name: Vec<u8>, node: &Arc<Node>) -> Child {
    Child { name: name.into(), id: node.id, file_type: node.file_type() }
}

/// Attributes as the guest sees them.
fn guest_attr(id: u64, host: &HostAttr, content: &Content, ownership: &Ownership) -> Attr {
    let host_permissions = host.mode & PERMISSION_BITS;
    let (mode, size, nlink) = match content {
        Content::Directory(directory) => {
            let is_directory = |child: &&Child| child.file_type == FileType::Directory;
            let subdirectories = directory.children.iter().filter(is_directory).count();
            let nlink = u32::try_from(subdirectories).unwrap_or(u32::MAX).saturating_add(2);
            (libc::S_IFDIR | (host_permissions & !HIDDEN_BITS), u64::from(BLOCK_BYTES), nlink)
        }
        Content::File(bytes) => {
            let permissions = ownership.mode.unwrap_or(host_permissions) & PERMISSION_BITS & !HIDDEN_BITS;
            (libc::S_IFREG | permissions, bytes.len_bytes(), 1)
        }
        Content::Symlink(target) => (libc::S_IFLNK | 0o777, target.len() as u64, 1),
    };
    // FUSE carries seconds as the two's complement bits of a signed number.
    let (mtime, ctime) = (host.mtime.seconds.cast_unsigned(), host.ctime.seconds.cast_unsigned());
    Attr {
        ino: id,
        size,
        blocks: size.div_ceil(512),
        // Reading is not tracked.
        atime: mtime,
        atimensec: host.mtime.nanoseconds,
        mtime,
        mtimensec: host.mtime.nanoseconds,
        ctime,
        ctimensec: host.ctime.nanoseconds,
        mode,
        nlink,
        uid: ownership.uid.unwrap_or(host.uid),
        gid: ownership.gid.unwrap_or(host.gid),
        blksize: BLOCK_BYTES,
        ..Attr::default()
    }
}
