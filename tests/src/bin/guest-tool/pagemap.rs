//! Physical addresses of this process's own memory (Linux `Documentation/admin-guide/mm/pagemap.rst`).

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const PAGE_BYTES: u64 = 4096;

/// Bits 0 to 54 of an entry are the page frame number, bit 63 says that the page is there.
const FRAME: u64 = (1 << 55) - 1;
const PRESENT: u64 = 1 << 63;

pub(crate) struct Pagemap(File);

impl Pagemap {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self(File::open("/proc/self/pagemap").context("Cannot open /proc/self/pagemap")?))
    }

    /// The physical address of the start of each page of `memory`, one per 4096 bytes counted from its start.
    ///
    /// All of it must have been written to. What does not start on a page boundary yields addresses within pages.
    pub(crate) fn physical_addresses<T>(&self, memory: &[T]) -> Result<Vec<u64>> {
        let start = u64::try_from(memory.as_ptr().addr())?;
        let pages = size_of_val(memory) / usize::try_from(PAGE_BYTES)?;
        let mut entries = vec![0; pages * 8];
        self.0
            .read_exact_at(&mut entries, start / PAGE_BYTES * 8)
            .context("Cannot read /proc/self/pagemap")?;
        entries
            .chunks_exact(8)
            .map(|entry| {
                let entry = u64::from_le_bytes(entry.try_into()?);
                ensure!(
                    entry & PRESENT != 0 && entry & FRAME != 0,
                    "No physical address: the page is absent, or not root"
                );
                Ok((entry & FRAME) * PAGE_BYTES + start % PAGE_BYTES)
            })
            .collect()
    }
}
