//! Numbers for operators and tests.

use serde::Serialize;

/// What a file system holds and has done. Counters run from its creation, not from the last INIT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Nodes that the guest holds, volume directories not counted.
    pub live_nodes: usize,
    /// LOOKUP replies that the guest has not yet forgotten, over all nodes.
    pub lookups: u64,
    /// Open directory handles.
    pub directory_handles: usize,
    /// Generations in memory: the current one of every volume and older ones that the guest holds.
    pub generations: usize,
    /// Sum of the file sizes in those generations.
    pub bytes: u64,
    /// Every volume, by name (a single volume has the empty name).
    pub volumes: Vec<VolumeStatistics>,
}

/// The part of [`Statistics`] that is about one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeStatistics {
    /// Name under the synthetic root; empty for a single volume.
    pub name: String,
    /// Generations in memory.
    pub generations: usize,
    /// Sum of the file sizes in those generations.
    pub bytes: u64,
    /// Successful readings of the directory, the first one included.
    pub loads: u64,
    /// Readings that failed.
    pub load_failures: u64,
    /// How often a new generation took the place of another.
    pub rotations: u64,
    /// Older generations taken from the guest because it held too many.
    pub evictions: u64,
    /// What the last look at the directory found.
    pub source: SourceState,
}

/// What the last look at a volume's directory found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum SourceState {
    /// The current generation is what the directory holds.
    Present,
    /// The directory is gone, emptied or being taken down; the last generation is served. The text says how
    /// it was noticed.
    Lost(String),
    /// The directory holds something newer that cannot be loaded; new opens get EIO. The text is the error.
    Unloadable(String),
}
