//! Boot: kernel, initramfs, command line and tables into guest RAM, and the boot CPU's state.
//!
//! Two ways in: a bzImage by the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst) and an ELF by PVH
//! (Xen docs/misc/pvh.pandoc). What depends on the architecture is in [`x86_64`], [`acpi`] and [`params`].

pub mod acpi;
pub mod initramfs;
pub mod kernel;
mod params;
pub mod x86_64;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use devices::GuestMemory;
use linux_loader::loader::{Cmdline, load_cmdline};
use vm_memory::GuestAddress;

pub use kernel::{Image, Loaded};

use crate::layout;

/// Why a guest cannot be booted. Each names the file and what would do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{what} {path}: {error}", path = path.display())]
    Read {
        /// "Kernel" or "Initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is no kernel.
    #[error("Kernel {path}: neither a bzImage nor an ELF image; give a vmlinuz or a vmlinux for x86_64", path = .0.display())]
    NotAKernel(PathBuf),
    /// The file ends before the kernel does.
    #[error(
        "Kernel {path}: truncated, {len_bytes} bytes of {expected_bytes}; fetch or build it again",
        path = path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        len_bytes: u64,
        /// The length that its own header speaks of.
        expected_bytes: u64,
    },
    /// The headers make no sense.
    #[error("Kernel {path}: {reason}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// RAM is too small.
    #[error(
        "Guest RAM of {ram_mib} MiB is too small for {path}{with}; give --memory {needed_mib}M or more",
        path = path.display()
    )]
    RamTooSmall {
        /// The kernel.
        path: PathBuf,
        /// " and its initramfs", or nothing.
        with: &'static str,
        /// RAM there is.
        ram_mib: u64,
        /// RAM it takes, rounded up.
        needed_mib: u64,
    },
    /// Low RAM, or the kernel's own limit, is too small for the initramfs.
    #[error(
        "Initramfs {path}: {mib} MiB do not fit between the kernel and {limit_mib} MiB; make it smaller",
        path = path.display()
    )]
    InitramfsTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, rounded up.
        mib: u64,
        /// The highest address that it may reach.
        limit_mib: u64,
    },
    /// Too long or not printable.
    #[error("Kernel command line: {0}; it must be printable ASCII of at most {max} bytes", max = layout::CMDLINE_MAX_LEN - 1)]
    Cmdline(String),
    /// A table or header does not fit into RAM.
    #[error("Cannot write {what} into guest RAM: {reason}")]
    Write {
        /// What was written.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

impl Error {
    pub(crate) fn write(what: &'static str) -> impl FnOnce(vm_memory::GuestMemoryError) -> Self {
        move |error| Self::Write { what, reason: error.to_string() }
    }
}

/// Makes the kernel's command line out of the user's.
///
/// # Errors
/// When it is too long or not printable ASCII.
pub fn cmdline(text: &str) -> Result<Cmdline, Error> {
    let describe = |error: linux_loader::cmdline::Error| Error::Cmdline(error.to_string());
    let mut cmdline = Cmdline::new(layout::CMDLINE_MAX_LEN).map_err(describe)?;
    if !text.trim().is_empty() {
        cmdline.insert_str(text).map_err(describe)?;
    }
    Ok(cmdline)
}

/// Opens a regular file and tells its length in bytes. Anything else, a FIFO say, is an error and never a wait.
fn open_regular(what: &'static str, path: &Path) -> Result<(File, u64), Error> {
    let open = || {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            Ok((file, metadata.len()))
        } else {
            Err(io::Error::other("not a regular file"))
        }
    };
    open().map_err(|error| Error::Read { what, path: path.to_owned(), error })
}

/// Loads everything into RAM.
///
/// # Errors
/// When a file cannot be read, or RAM is too small for it.
pub fn load(
    memory: &GuestMemory,
    kernel: &Path,
    initramfs: Option<&Path>,
    cmdline_text: &str,
    rsdp: GuestAddress,
) -> Result<Loaded, Error> {
    let image = Image::open(kernel)?;
    let loaded = image.load(memory)?;
    let initramfs = initramfs.map(|path| initramfs::load(memory, &image, path)).transpose()?;
    let cmdline = cmdline(cmdline_text)?;
    load_cmdline(memory, GuestAddress(layout::CMDLINE), &cmdline)
        .map_err(|error| Error::Write { what: "the command line", reason: error.to_string() })?;
    params::write(memory, &loaded, initramfs, &cmdline, rsdp)?;
    Ok(loaded)
}
