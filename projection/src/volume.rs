//! One volume: what is wanted, and the directory read for the first time. [`state`] serves it.

mod generations;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::generation::Ownership;
use crate::snapshot::{Snapshot, Source};

pub(crate) use state::{VolumeState, errno, held};

/// Default of [`VolumeSpec::max_size_bytes`]: 16 MiB.
pub const DEFAULT_MAX_SIZE_BYTES: u64 = 16 << 20;

/// The volume that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// The host directory: kubelet's AtomicWriter layout, or any other.
    pub path: PathBuf,
    /// Owner and permissions as the guest shall see them.
    pub ownership: Ownership,
    /// Cap on the sum of the file sizes.
    pub max_size_bytes: u64,
    /// How long the guest may reuse `..data` without asking. Zero, the default, means never stale; anything
    /// else is for tests that must see stale reads.
    pub data_timeout: Duration,
}

impl VolumeSpec {
    /// A volume with the defaults: attributes as the host has them, 16 MiB, never stale.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ownership: Ownership::default(),
            max_size_bytes: DEFAULT_MAX_SIZE_BYTES,
            data_timeout: Duration::ZERO,
        }
    }
}

/// A volume that has been read once, ready to be served.
#[derive(Debug)]
pub struct Volume {
    source: Source,
    ownership: Ownership,
    data_timeout: Duration,
    snapshot: Snapshot,
}

impl Volume {
    /// Reads the directory for the first time.
    ///
    /// # Errors
    /// One line about the first thing found wrong with the directory. Nothing is kept.
    pub fn open(spec: VolumeSpec) -> Result<Self, Error> {
        let VolumeSpec { path, ownership, max_size_bytes, data_timeout } = spec;
        let source = Source { path, max_size_bytes };
        let snapshot = source.load()?;
        Ok(Self { source, ownership, data_timeout, snapshot })
    }
}
