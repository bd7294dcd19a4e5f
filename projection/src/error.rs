//! What can be wrong with a volume, each in one line that a person can act on.
//!
//! File names come from a host directory that is only partly trusted, so they are printed quoted and escaped.
//! No variant carries file content.

use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

/// An error of this crate. The message names what was wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The volume's path cannot be opened.
    #[error(
        "Cannot open the volume directory {path:?}: {cause}; give the path of a directory that this process may read"
    )]
    OpenVolume {
        /// The path from the [`VolumeSpec`](crate::VolumeSpec).
        path: PathBuf,
        /// What the kernel said.
        cause: Errno,
    },
    /// The volume's path names something else.
    #[error("{path:?} is not a directory; give the path of the volume's directory")]
    NotADirectory {
        /// The path from the [`VolumeSpec`](crate::VolumeSpec).
        path: PathBuf,
    },
    /// An entry below the volume cannot be read.
    #[error("Cannot read {path:?}: {cause}; make it readable for this process")]
    Read {
        /// The entry.
        path: PathBuf,
        /// What the kernel said.
        cause: Errno,
    },
    /// A FIFO, socket or device node.
    #[error(
        "{path:?} is a {kind}; a volume may only hold regular files, directories and symbolic links: remove it"
    )]
    SpecialFile {
        /// The entry.
        path: PathBuf,
        /// What it is, in words.
        kind: &'static str,
    },
    /// A symbolic link that leads out of the volume.
    #[error(
        "The symbolic link {link:?} leads out of the volume, to {target:?}; point it at something inside or remove it"
    )]
    EscapingLink {
        /// The link.
        link: PathBuf,
        /// Its target.
        target: PathBuf,
    },
    /// `..data` is not what an AtomicWriter makes.
    #[error(
        "{link:?} must be a symbolic link to a directory beside it whose name starts with `..`, but it is {found}"
    )]
    DataLink {
        /// The link.
        link: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// `..data` leads nowhere.
    #[error("{link:?} points to {target:?}, which does not exist; let the writer publish the volume again")]
    DanglingDataLink {
        /// The link.
        link: PathBuf,
        /// Its target.
        target: PathBuf,
    },
    /// Timestamped directories without a `..data` link.
    #[error(
        "{path:?} holds {entry:?} but no `..data` link: its writer has not published it yet; wait until it has"
    )]
    NotPublished {
        /// The volume.
        path: PathBuf,
        /// An entry that only an AtomicWriter makes.
        entry: PathBuf,
    },
    /// The files are larger than `max-size` together.
    #[error(
        "The volume is too large: with {path:?} its files exceed {limit_bytes} bytes; make it smaller or raise `max-size=`"
    )]
    TooLarge {
        /// The file that exceeded the limit.
        path: PathBuf,
        /// [`VolumeSpec::max_size_bytes`](crate::VolumeSpec::max_size_bytes).
        limit_bytes: u64,
    },
    /// More entries than a volume may have.
    #[error(
        "{path:?} brings the volume over {limit} entries; remove some (`max-size=` does not change this limit)"
    )]
    TooManyEntries {
        /// The directory that exceeded the limit.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// Directories nested deeper than a volume may have them.
    #[error(
        "{path:?} is nested deeper than {limit} directories; flatten it (`max-size=` does not change this limit)"
    )]
    TooDeep {
        /// The directory that exceeded the limit.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// The directory changed during every attempt to read it.
    #[error("{path:?} keeps changing while it is read, for {given_up_after:?} now; publish it less often")]
    KeepsChanging {
        /// The volume.
        path: PathBuf,
        /// How long it was tried.
        given_up_after: Duration,
    },
    /// A name that cannot be a child of the synthetic root.
    #[error(
        "{name:?} cannot name a volume: use 1 to 255 bytes without `/` or NUL that do not start with `..` and are not `.`"
    )]
    VolumeName {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("There is already a volume named {name:?}; choose another name or remove that one first")]
    DuplicateVolume {
        /// The name.
        name: String,
    },
    /// No such volume.
    #[error("There is no volume named {name:?}")]
    UnknownVolume {
        /// The name.
        name: String,
    },
    /// A file system made by [`ProjectedFs::of_volume`](crate::ProjectedFs::of_volume) has no children.
    #[error(
        "Volume {name:?} cannot be added or removed: this file system is a single volume, not a set of volumes"
    )]
    SingleVolume {
        /// The name.
        name: String,
    },
}
