//! The initramfs: as high in low RAM as the kernel allows, so that it is out of the kernel's way.

use std::path::Path;

use devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryRegion};

use super::{Error, Image, open_regular};

/// Where the initramfs lies.
#[derive(Debug, Clone, Copy)]
pub struct Initramfs {
    /// Its first byte, at the start of a page.
    pub start: GuestAddress,
    /// Its length.
    pub len_bytes: u64,
}

/// The length of the file, if it can be read.
///
/// # Errors
/// When it cannot, or is no regular file.
pub fn len_bytes(path: &Path) -> Result<u64, Error> {
    open_regular("Initramfs", path).map(|(_, len)| len)
}

/// Loads it.
///
/// # Errors
/// When it cannot be read, or RAM is too small for it and the kernel.
pub fn load(memory: &GuestMemory, image: &Image, path: &Path) -> Result<Initramfs, Error> {
    let (mut file, len_bytes) = open_regular("Initramfs", path)?;
    let low_ram_len = memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len);
    let limit = image.initramfs_limit().min(low_ram_len);
    image.check_ram(low_ram_len, len_bytes)?;
    if image.end_with(len_bytes) > limit {
        let mib = len_bytes.div_ceil(1 << 20);
        return Err(Error::InitramfsTooLarge { path: path.to_owned(), mib, limit_mib: limit >> 20 });
    }
    let start = GuestAddress(limit.saturating_sub(len_bytes) & !0xfff);
    let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
    memory.read_exact_volatile_from(start, &mut file, len).map_err(|error| Error::Read {
        what: "Initramfs",
        path: path.to_owned(),
        error: std::io::Error::other(error),
    })?;
    Ok(Initramfs { start, len_bytes })
}
