//! Directory listings: READDIR over a snapshot of a directory, and the handles that hold one.
//!
//! The offset of an entry is its position, counted from 1, with `.` and `..` first. The snapshot does not
//! change while a handle is open, so a listing read in parts never skips or repeats an entry.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use fuse_backend_rs::api::filesystem::DirEntry;
use rustix::fs::FileType;

use crate::generation::Node;
use crate::volume::errno;

/// Cap on open handles. Each keeps a directory's names, which handles of one generation share.
const MAX_HANDLES: usize = 1024;

/// Open directories whose listing must stay the same although the directory may change.
#[derive(Debug, Default)]
pub(super) struct Handles {
    last: u64,
    open: HashMap<u64, Arc<Node>>,
}

impl Handles {
    /// Opens a directory as it is now; the handle is never 0.
    ///
    /// # Errors
    /// ENFILE when too many are open.
    pub(super) fn open(&mut self, directory: Arc<Node>) -> io::Result<u64> {
        if self.open.len() >= MAX_HANDLES {
            return Err(errno(libc::ENFILE));
        }
        self.last += 1;
        self.open.insert(self.last, directory);
        Ok(self.last)
    }

    pub(super) fn close(&mut self, handle: u64) {
        self.open.remove(&handle);
    }

    /// The directory that a handle was opened for.
    ///
    /// # Errors
    /// EBADF when there is no such handle, or it is another directory's.
    pub(super) fn directory(&self, inode: u64, handle: u64) -> io::Result<Arc<Node>> {
        let node = self.open.get(&handle).filter(|node| node.id == inode);
        node.map(Arc::clone).ok_or_else(|| errno(libc::EBADF))
    }

    /// Closes all. The numbers go on.
    pub(super) fn clear(&mut self) {
        self.open = HashMap::new();
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

/// Gives entries from `offset` on to `add_entry` until it takes no more.
pub(super) fn list(
    node: &Node,
    offset: u64,
    add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
) -> io::Result<()> {
    let directory = node.directory().ok_or_else(|| errno(libc::ENOTDIR))?;
    let dots: [(u64, FileType, &[u8]); 2] =
        [(node.id, FileType::Directory, b"."), (directory.parent, FileType::Directory, b"..")];
    let children = directory.children.iter().map(|child| (child.id, child.file_type, &*child.name));
    let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
    for (position, (ino, file_type, name)) in (1_u64..).zip(dots.into_iter().chain(children)).skip(skipped) {
        let entry = DirEntry { ino, offset: position, type_: dirent_type(file_type), name };
        if add_entry(entry)? == 0 {
            break;
        }
    }
    Ok(())
}

fn dirent_type(file_type: FileType) -> u32 {
    match file_type {
        FileType::Directory => libc::DT_DIR,
        FileType::RegularFile => libc::DT_REG,
        FileType::Symlink => libc::DT_LNK,
        _ => libc::DT_UNKNOWN,
    }
    .into()
}
