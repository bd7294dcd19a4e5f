//! Guest RAM: private anonymous memory in one or two regions, never part of a core dump.
// UNSAFETY: madvise(2) takes the address of a mapping.
#![expect(unsafe_code, reason = "madvise(2) on the mappings of guest RAM")]

use devices::GuestMemory;
use rustix::mm::{Advice, madvise};
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryRegion as _};

use crate::layout;

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// mmap(2) failed.
    #[error("Cannot map {mib} MiB of guest RAM: {source}; give less with --memory", mib = len_bytes >> 20)]
    Map {
        /// Length asked for.
        len_bytes: u64,
        /// What vm-memory says.
        source: vm_memory::mmap::FromRangesError,
    },
    /// madvise(2) failed.
    #[error("Cannot keep guest RAM out of core dumps: {0}")]
    DontDump(std::io::Error),
}

/// Where RAM of `len_bytes` lies: what does not fit below the hole goes on at 4 GiB.
pub fn regions(len_bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = len_bytes.min(layout::HOLE_START);
    let mut regions = vec![(GuestAddress(0), low)];
    if len_bytes > low {
        regions.push((GuestAddress(layout::HIGH_RAM_START), len_bytes - low));
    }
    regions
}

/// Maps guest RAM of `len_bytes`; the host provides pages as the guest touches them.
///
/// # Errors
/// When the host does not map that much.
pub fn allocate(len_bytes: u64) -> Result<GuestMemory, Error> {
    let ranges: Vec<_> = regions(len_bytes)
        .into_iter()
        .map(|(start, len)| (start, usize::try_from(len).unwrap_or(usize::MAX)))
        .collect();
    let memory = GuestMemory::from_ranges(&ranges).map_err(|source| Error::Map { len_bytes, source })?;
    for region in memory.iter() {
        let len = usize::try_from(region.len()).unwrap_or(0);
        // SAFETY: the range is the mapping that the region owns, and this advice does not change its content.
        unsafe { madvise(region.as_ptr().cast(), len, Advice::LinuxDontDump) }
            .map_err(|error| Error::DontDump(error.into()))?;
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_below_4_gib_free() {
        assert_eq!(regions(128 << 20), [(GuestAddress(0), 128 << 20)]);
        assert_eq!(regions(3 << 30), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(regions(5 << 30), [(GuestAddress(0), 3 << 30), (GuestAddress(1 << 32), 2 << 30)]);
    }
}
