//! Whether a directory still is what was read from it, by stat(2) alone.
//!
//! Any error counts as a change: the loading that follows finds out what it is.

use std::os::fd::{AsFd, OwnedFd};

use super::{HostContent, HostNode};
use crate::directory::{HostAttr, open_directory};

/// For a directory that is already open.
pub(super) fn is_unchanged(directory: &OwnedFd, node: &HostNode) -> bool {
    HostAttr::of(directory).is_ok_and(|attr| attr == node.attr) && has_unchanged_children(directory, node)
}

/// For the directory `name` beneath `parent`.
pub(super) fn is_unchanged_at(parent: &OwnedFd, name: &[u8], node: &HostNode) -> bool {
    open_directory(parent, name).is_ok_and(|directory| is_unchanged(&directory, node))
}

/// A new or removed name shows in the attributes of the directory, so only the known ones are looked at.
/// The recursion is as deep as the loader's cap allows.
fn has_unchanged_children(directory: impl AsFd, node: &HostNode) -> bool {
    node.children().all(|(name, child)| {
        HostAttr::at(&directory, name).is_ok_and(|attr| attr == child.attr)
            && match child.content {
                HostContent::File(_) | HostContent::Symlink(_) => true,
                HostContent::Directory(_) => open_directory(&directory, name)
                    .is_ok_and(|subdirectory| has_unchanged_children(&subdirectory, child)),
            }
    })
}
