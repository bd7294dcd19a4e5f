//! Writes and verifies pages by their physical addresses.
#![expect(unsafe_code, reason = "memory outside of what Linux manages is reached by mapping /dev/mem only")]

use super::pagemap::PAGE_BYTES;
use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::fs::{File, OpenOptions};
use std::ptr;

const MAGIC: u64 = 0x6564_6765_6564_6765;

/// Writes the pages at these physical addresses (hexadecimal), then verifies them all.
///
/// The kernel must not use them: `memmap=SIZE$ADDRESS` on its command line keeps it away.
pub(crate) fn touch(addresses: &[&str]) -> Result<()> {
    let memory =
        OpenOptions::new().read(true).write(true).open("/dev/mem").context("Cannot open /dev/mem")?;
    let mut pages = Vec::new();
    for address in addresses {
        let address =
            u64::from_str_radix(address.trim_start_matches("0x"), 16).context("Not a hexadecimal address")?;
        pages.push((address, PhysicalPage::map(&memory, address)?));
    }
    for (address, page) in &pages {
        page.fill(address ^ MAGIC);
    }
    for (address, page) in &pages {
        ensure!(page.holds(address ^ MAGIC), "The page at {address:#x} does not hold what was written");
    }
    println!("{} pages verified", pages.len());
    Ok(())
}

/// A mapped page, mapped for as long as the process lives.
struct PhysicalPage(*mut u64);

impl PhysicalPage {
    fn map(memory: &File, address: u64) -> Result<Self> {
        ensure!(address.is_multiple_of(PAGE_BYTES), "{address:#x} is not the start of a page");
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let len = usize::try_from(PAGE_BYTES)?;
        // SAFETY: the kernel picks the place, so no memory of this process is replaced.
        let page = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, memory, address) };
        Ok(Self(page.with_context(|| format!("Cannot map {address:#x}"))?.cast()))
    }

    fn words(&self) -> impl Iterator<Item = *mut u64> {
        let start = self.0;
        // `wrapping_add`: the offsets stay within the page.
        (0..512).map(move |index| start.wrapping_add(index))
    }

    fn fill(&self, value: u64) {
        // SAFETY: the words lie in the page that `map` mapped for writing.
        self.words().for_each(|word| unsafe { word.write_volatile(value) });
    }

    fn holds(&self, value: u64) -> bool {
        // SAFETY: the words lie in the page that `map` mapped for reading.
        self.words().all(|word| unsafe { word.read_volatile() } == value)
    }
}
