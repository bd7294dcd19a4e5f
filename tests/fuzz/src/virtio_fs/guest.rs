//! What the guest has learnt from replies, and may use in later requests.

use arbitrary::Arbitrary;

use super::request::{Offset, Operation, Reply, Size, plain};
use super::{Run, VOLUME};

const ROOT: u64 = 1;
/// Enough for what a run can learn.
const MAX_LEARNT: usize = 256;

/// A node to name in a request.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Node {
    Root,
    /// One that a LOOKUP gave, and the last one.
    Learnt(u8),
    Last,
    Any(u64),
}

/// A directory handle to name in a request.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Handle {
    Learnt(u8),
    Any(u64),
}

/// A name to look up.
#[derive(Debug, Clone, Arbitrary)]
pub(super) enum Name {
    /// One that exists, or may.
    Usual(u8),
    /// What a READLINK gave.
    Learnt(u8),
    /// Any bytes, a NUL behind them or not.
    Any(Vec<u8>, bool),
    Long(u16),
}

const USUAL_NAMES: [&str; 16] = [
    "..data",
    "token",
    "sub",
    "key",
    "deep",
    "ca.crt",
    "namespace",
    VOLUME,
    "v0",
    "v1",
    "missing",
    "..",
    ".",
    "",
    "a/b",
    "..data_tmp",
];

/// Node ids, handles and link targets.
#[derive(Debug, Default)]
pub(super) struct Guest {
    nodes: Vec<u64>,
    handles: Vec<u64>,
    targets: Vec<Vec<u8>>,
}

fn pick<T: Clone>(learnt: &[T], which: u8) -> Option<T> {
    learnt.get(usize::from(which) % learnt.len().max(1)).cloned()
}

impl Guest {
    pub(super) fn node(&self, node: Node) -> u64 {
        match node {
            Node::Root => ROOT,
            Node::Learnt(which) => pick(&self.nodes, which).unwrap_or(ROOT),
            Node::Last => self.nodes.last().copied().unwrap_or(ROOT),
            Node::Any(node) => node,
        }
    }

    pub(super) fn handle(&self, handle: Handle) -> u64 {
        match handle {
            Handle::Learnt(which) => pick(&self.handles, which).unwrap_or(0),
            Handle::Any(handle) => handle,
        }
    }

    /// The bytes of a name, with its NUL.
    pub(super) fn name(&self, name: &Name) -> Vec<u8> {
        let (mut bytes, has_end) = match name {
            Name::Usual(which) => (USUAL_NAMES[usize::from(which % 16)].into(), true),
            Name::Learnt(which) => (pick(&self.targets, *which).unwrap_or_default(), true),
            Name::Any(bytes, has_end) => (bytes.clone(), *has_end),
            Name::Long(len) => (vec![b'n'; usize::from(len % 600)], true),
        };
        if has_end {
            bytes.push(0);
        }
        bytes
    }

    pub(super) fn learn(&mut self, operation: &Operation, reply: &Reply) {
        if reply.error != 0 {
            return;
        }
        let number = reply.body.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        match (operation, number) {
            (Operation::LookUp { .. }, Some(node)) if self.nodes.len() < MAX_LEARNT => self.nodes.push(node),
            (Operation::OpenDir { .. }, Some(handle)) if self.handles.len() < MAX_LEARNT => {
                self.handles.push(handle);
            }
            (Operation::ReadLink { .. }, _) if self.targets.len() < MAX_LEARNT => {
                self.targets.push(reply.body.clone());
            }
            _ => {}
        }
    }
}

impl Run {
    fn ask(&mut self, operation: Operation) -> Option<Vec<u8>> {
        let reply = self.send(&plain(operation))?;
        (reply.error == 0).then_some(reply.body)
    }

    fn look_up(&mut self, parent: u64, name: &[u8]) -> Option<u64> {
        let operation = Operation::LookUp { parent: Node::Any(parent), name: Name::Any(name.to_vec(), true) };
        let entry = self.ask(operation)?;
        Some(u64::from_le_bytes(entry.get(..8)?.try_into().ok()?))
    }

    fn volume(&mut self) -> Option<u64> {
        if self.is_shared { self.look_up(ROOT, VOLUME.as_bytes()) } else { Some(ROOT) }
    }

    /// The directory that `..data` names.
    fn published(&mut self, volume: u64) -> Option<u64> {
        let data = self.look_up(volume, b"..data")?;
        let name = self.ask(Operation::ReadLink { node: Node::Any(data) })?;
        self.look_up(volume, &name)
    }

    /// Follows a path as a kernel does that has nothing cached.
    fn follow(&mut self, path: &str) -> Option<u64> {
        let volume = self.volume()?;
        let mut names = path.split('/');
        let first = names.next()?;
        let mut node = self.look_up(volume, first.as_bytes())?;
        if let Some(target) = self.ask(Operation::ReadLink { node: Node::Any(node) }) {
            assert_eq!(target, format!("..data/{first}").into_bytes());
            let directory = self.published(volume)?;
            node = self.look_up(directory, first.as_bytes())?;
        }
        for name in names {
            node = self.look_up(node, name.as_bytes())?;
        }
        Some(node)
    }

    pub(super) fn walk(&mut self, path: u8) {
        const PATHS: [&str; 5] = ["token", "sub", "sub/key", "sub/deep/key", "ca.crt"];
        if let Some(node) = self.follow(PATHS[usize::from(path % 5)]) {
            self.ask(Operation::GetAttr { node: Node::Any(node) });
        }
    }

    pub(super) fn list(&mut self, node: Node, offset: Offset, size: Size, is_released: bool) {
        let Some(open) = self.ask(Operation::OpenDir { node }) else { return };
        let handle = open.get(..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        let handle = Handle::Any(handle);
        let listing = self.ask(Operation::ReadDir { node, handle, offset, size, is_plus: false });
        let may_list = size.value() <= 0x2000 - 16;
        assert!(!may_list || listing.is_some_and(|listing| listing.len() <= size.value() as usize));
        if is_released {
            self.ask(Operation::ReleaseDir { node, handle });
        }
    }

    /// Opens and reads `token`.
    pub(super) fn read_token(&mut self) -> Option<Vec<u8>> {
        let token = self.follow("token")?;
        self.read(token)
    }

    /// As [`Self::read_token`], by a kernel that has the link `token` cached, as it may have for ever.
    pub(super) fn read_token_with_cached_links(&mut self) -> Option<Vec<u8>> {
        let volume = self.volume()?;
        let directory = self.published(volume)?;
        let token = self.look_up(directory, b"token")?;
        self.read(token)
    }

    fn read(&mut self, node: u64) -> Option<Vec<u8>> {
        self.ask(Operation::Read { node: Node::Any(node), offset: Offset::Small(0), size: Size::Page })
    }
}
