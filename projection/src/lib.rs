//! Kubernetes volumes as a file system for a virtio-fs device.
//!
//! [`ProjectedFs`] implements fuse-backend-rs' `FileSystem` over immutable in-memory snapshots of host
//! directories. Data flows one way:
//!
//! ```text
//! host directory --directory--> Snapshot --generation--> Generation --volume--> ProjectedFs --> Server
//!   (kubelet)      (openat2)    (content)                (node ids)  (freshness)  (FUSE requests)
//! ```
//!
//! Invariants:
//! 1. A published generation never changes; a guest sees one whole generation, and an update is visible at
//!    a single point, the answer to LOOKUP of `..data`.
//! 2. The host directory is asked before a name at a volume's top level is answered, so that an open that
//!    starts after the host's rename(2) has returned never gets older content. Content that cannot be loaded
//!    is an error for new opens, never a reason to serve older bytes; only a source that is gone (not changed)
//!    leaves the last generation in service.
//! 3. No name that the guest chooses ever reaches the host: LOOKUP is answered from memory.
//! 4. Node ids come from one counter and are never reused; the FUSE inode generation number is always 0.
//! 5. What a guest can pin is bounded, and file bytes are wiped when the last reference to them goes.
//!
//! There are no threads and no inotify here: all work is done in the thread that serves the request.

mod directory;
mod error;
mod filesystem;
mod generation;
mod nodes;
mod secret_memory;
mod snapshot;
mod statistics;
#[cfg(test)]
mod tests;
mod volume;

pub use error::Error;
pub use filesystem::{ProjectedFs, check_volume_name};
pub use generation::Ownership;
pub use statistics::{SourceState, Statistics, VolumeStatistics};
pub use volume::{DEFAULT_MAX_SIZE_BYTES, Volume, VolumeSpec};
