//! Kernel images: what a file is, how much RAM it takes, and how it is loaded.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use devices::GuestMemory;
use linux_loader::bootparam::setup_header;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::{Address, ByteValued, GuestAddress};

use super::{Error, open_regular};
use crate::layout;

/// Where the setup header of a bzImage lies in the file (boot.rst, "The real-mode kernel header").
const SETUP_HEADER_OFFSET: u64 = 0x1f1;
const BZIMAGE_MAGIC: u32 = 0x5372_6448;
const XLF_KERNEL_64: u16 = 1;
/// From the start of a bzImage's protected-mode part to its 64-bit entry point.
const ENTRY_64_OFFSET: u64 = 0x200;
const PAGE_BYTES: u64 = 4096;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// A kernel file whose header has been read.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    kind: Kind,
    /// End of what the kernel takes before it knows of memory management, and thus the least RAM in bytes.
    end: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    BzImage { initrd_addr_max: u64 },
    Elf,
}

/// How the boot CPU starts.
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// 64-bit Linux boot protocol at this address, with the image's setup header in the zero page.
    Linux64(GuestAddress, setup_header),
    /// PVH, at this 32-bit address.
    Pvh(GuestAddress),
}

/// A kernel in RAM.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// How it is entered.
    pub entry: Entry,
}

impl Image {
    /// Opens a kernel and reads its header.
    ///
    /// # Errors
    /// When it cannot be read, is no kernel, is truncated, or cannot be booted by Laterna.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (mut file, len_bytes) = open_regular("Kernel", path)?;
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_err() {
            return Err(Error::NotAKernel(path.to_owned()));
        }
        let (kind, end) =
            if magic == ELF_MAGIC { inspect_elf(&mut file) } else { inspect_bzimage(&mut file) }
                .and_then(|inspected| inspected.check_len(len_bytes))
                .map_err(|flaw| flaw.at(path, len_bytes))?;
        Ok(Self { path: path.to_owned(), file, kind, end })
    }

    /// End of the addresses that the kernel needs to itself; RAM must reach to it.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// End of the addresses that the kernel and an initramfs of `initramfs_bytes` need at least.
    pub fn end_with(&self, initramfs_bytes: u64) -> u64 {
        self.end.saturating_add(initramfs_bytes.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES))
    }

    /// The highest address that an initramfs may reach (exclusive).
    pub fn initramfs_limit(&self) -> u64 {
        match self.kind {
            Kind::BzImage { initrd_addr_max } => initrd_addr_max.saturating_add(1),
            Kind::Elf => u64::MAX,
        }
    }

    /// Says whether `ram_bytes` of RAM hold the kernel and an initramfs of `initramfs_bytes`.
    ///
    /// # Errors
    /// When not; the error names how much would.
    pub fn check_ram(&self, ram_bytes: u64, initramfs_bytes: u64) -> Result<(), Error> {
        let needed = self.end_with(initramfs_bytes);
        if needed <= ram_bytes {
            return Ok(());
        }
        Err(Error::RamTooSmall {
            path: self.path.clone(),
            with: if initramfs_bytes > 0 { " and its initramfs" } else { "" },
            ram_mib: ram_bytes >> 20,
            needed_mib: needed.div_ceil(1 << 20),
        })
    }

    /// Loads the kernel.
    ///
    /// # Errors
    /// When RAM is too small or the file cannot be read.
    pub fn load(&self, memory: &GuestMemory) -> Result<Loaded, Error> {
        let ram_bytes = vm_memory::GuestMemory::last_addr(memory).raw_value().saturating_add(1);
        self.check_ram(ram_bytes, 0)?;
        let unusable = |reason: String| Error::Unusable { path: self.path.clone(), reason };
        let not_loaded = |error: linux_loader::loader::Error| {
            unusable(format!("it cannot be loaded ({error}); give a bzImage, or a vmlinux with PVH note"))
        };
        let mut file = &self.file;
        let start = Some(GuestAddress(layout::KERNEL));
        let entry = match self.kind {
            Kind::BzImage { .. } => {
                let result = BzImage::load(memory, start, &mut file, start);
                let KernelLoaderResult { kernel_load, setup_header, .. } = result.map_err(not_loaded)?;
                let header = setup_header.ok_or_else(|| unusable("no setup header".to_owned()))?;
                Entry::Linux64(kernel_load.unchecked_add(ENTRY_64_OFFSET), header)
            }
            Kind::Elf => {
                let result = Elf::load(memory, None, &mut file, start).map_err(not_loaded)?;
                match result.pvh_boot_cap {
                    PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh(address),
                    PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
                        return Err(unusable(
                            "an ELF image without PVH note; build it with CONFIG_PVH=y or give the bzImage"
                                .to_owned(),
                        ));
                    }
                }
            }
        };
        Ok(Loaded { entry })
    }
}

/// What a header says about its image.
struct Inspected {
    kind: Kind,
    end: u64,
    file_len_bytes: u64,
}

impl Inspected {
    fn check_len(self, len_bytes: u64) -> Result<(Kind, u64), Flaw> {
        if self.file_len_bytes > len_bytes {
            Err(Flaw::Truncated(self.file_len_bytes))
        } else {
            Ok((self.kind, self.end))
        }
    }
}

enum Flaw {
    NotAKernel,
    Truncated(u64),
    Unusable(&'static str),
}

impl Flaw {
    fn at(self, path: &Path, len_bytes: u64) -> Error {
        let path = path.to_owned();
        match self {
            Self::NotAKernel => Error::NotAKernel(path),
            Self::Truncated(expected_bytes) => Error::Truncated { path, len_bytes, expected_bytes },
            Self::Unusable(reason) => Error::Unusable { path, reason: reason.to_owned() },
        }
    }
}

fn inspect_bzimage(file: &mut File) -> Result<Inspected, Flaw> {
    let mut header = setup_header::default();
    file.seek(SeekFrom::Start(SETUP_HEADER_OFFSET)).map_err(|_| Flaw::NotAKernel)?;
    file.read_exact(header.as_mut_slice()).map_err(|_| Flaw::NotAKernel)?;
    if header.header != BZIMAGE_MAGIC {
        return Err(Flaw::NotAKernel);
    }
    if header.version < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Flaw::Unusable(
            "a bzImage without 64-bit entry point; Linux 3.8 or newer for x86_64 has one",
        ));
    }
    let setup_sects = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    // A relocatable kernel below its preferred address moves up to it before it needs `init_size` bytes.
    let start = header.pref_address.max(layout::KERNEL);
    Ok(Inspected {
        kind: Kind::BzImage { initrd_addr_max: header.initrd_addr_max.into() },
        end: start.saturating_add(header.init_size.into()),
        file_len_bytes: (setup_sects + 1) * 512 + u64::from(header.syssize) * 16,
    })
}

fn inspect_elf(file: &mut File) -> Result<Inspected, Flaw> {
    let mut header = Elf64_Ehdr::default();
    let header_len = size_of::<Elf64_Ehdr>() as u64;
    let phdr_len = size_of::<Elf64_Phdr>() as u64;
    file.rewind().map_err(|_| Flaw::NotAKernel)?;
    file.read_exact(header.as_mut_slice()).map_err(|_| Flaw::Truncated(header_len))?;
    if header.e_machine != 62 || header.e_ident.get(4) != Some(&2) {
        return Err(Flaw::Unusable("an ELF image for another architecture; x86_64 is wanted"));
    }
    if u64::from(header.e_phentsize) != phdr_len {
        return Err(Flaw::Unusable("an ELF image with program headers of an unknown size"));
    }
    let phdrs_end = header.e_phoff.saturating_add(phdr_len * u64::from(header.e_phnum));
    let (mut end, mut file_len_bytes) = (0, phdrs_end);
    file.seek(SeekFrom::Start(header.e_phoff)).map_err(|_| Flaw::Truncated(phdrs_end))?;
    for _ in 0..header.e_phnum {
        let mut phdr = Elf64_Phdr::default();
        file.read_exact(phdr.as_mut_slice()).map_err(|_| Flaw::Truncated(phdrs_end))?;
        file_len_bytes = file_len_bytes.max(phdr.p_offset.saturating_add(phdr.p_filesz));
        if phdr.p_type == PT_LOAD {
            end = end.max(phdr.p_paddr.saturating_add(phdr.p_memsz));
        }
    }
    if end == 0 {
        return Err(Flaw::Unusable("an ELF image without anything to load"));
    }
    Ok(Inspected { kind: Kind::Elf, end, file_len_bytes })
}

#[cfg(test)]
mod tests;
