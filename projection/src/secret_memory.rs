//! Memory for file content that may be a secret.
//!
//! Invariants: the bytes live in their own anonymous mapping that core dumps leave out (MADV_DONTDUMP), they
//! are filled by read(2) without an intermediate buffer, they are overwritten before the mapping is returned,
//! and no `Debug` output shows them.
#![expect(unsafe_code, reason = "mapping memory and wiping it are system calls and volatile writes")]

use std::fmt;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::io::{Errno, read};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The content of one file. Wiped on drop.
pub(crate) struct SecretBytes {
    /// `None` for an empty file, which needs no mapping.
    mapping: Option<Mapping>,
}

impl SecretBytes {
    /// Reads exactly `len_bytes` from the start of an open file.
    ///
    /// `Ok(None)` means that the file is shorter or longer than that, i.e. it was changed since its size was
    /// asked for.
    pub(crate) fn read_from(file: impl AsFd, len_bytes: usize) -> Result<Option<Self>, Errno> {
        let mut mapping = if len_bytes == 0 { None } else { Some(Mapping::new(len_bytes)?) };
        if let Some(mapping) = &mut mapping {
            let mut rest = mapping.as_mut_slice();
            while !rest.is_empty() {
                let count = retry_on_interrupt(|| read(&file, &mut *rest))?;
                match rest.get_mut(count..) {
                    Some(remaining) if count > 0 => rest = remaining,
                    _ => return Ok(None),
                }
            }
        }
        let mut probe = [0_u8; 1];
        let is_longer = retry_on_interrupt(|| read(&file, &mut probe))? > 0;
        Ok(if is_longer { None } else { Some(Self { mapping }) })
    }

    /// The content.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.mapping.as_ref().map_or(&[], Mapping::as_slice)
    }

    /// Length of the content.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.as_slice().len() as u64
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SecretBytes({} bytes)", self.len_bytes())
    }
}

fn retry_on_interrupt(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// An anonymous private mapping of at least one byte.
struct Mapping {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: a Mapping owns its memory like a Box<[u8]> does; nothing in it is bound to a thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference the memory is only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len_bytes: usize) -> Result<Self, Errno> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            mmap_anonymous(ptr::null_mut(), len_bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let start = NonNull::new(address.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let mapping = Self { start, len_bytes };
        // SAFETY: the range is the mapping made above; the advice does not change its content.
        unsafe { madvise(address, len_bytes, Advice::LinuxDontDump) }?;
        Ok(mapping)
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is readable, initialised (anonymous memory is zeroed), of this length and lives
        // as long as self; it is changed only through &mut self.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len_bytes) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and &mut self makes this the only reference.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len_bytes) }
    }

    /// Overwrites the content in a way that the compiler may not leave out.
    fn wipe(&mut self) {
        // Whole words where they fit: page-aligned start, so the middle part is nearly everything.
        // SAFETY: every bit pattern is a valid u8 and a valid u64.
        let (head, words, tail) = unsafe { self.as_mut_slice().align_to_mut::<u64>() };
        for byte in head.iter_mut().chain(tail) {
            // SAFETY: a valid exclusive reference.
            unsafe { ptr::write_volatile(byte, 0) };
        }
        for word in words {
            // SAFETY: a valid exclusive reference.
            unsafe { ptr::write_volatile(word, 0) };
        }
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: the range is exactly the mapping made in `new`, and no reference to it is left.
        let result = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) };
        if let Err(error) = result {
            // It is wiped, so this leaks address space and no secret.
            log::warn!("Cannot unmap {} bytes of wiped memory: {error}", self.len_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use super::*;

    fn file_with(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn content_is_read_whole() {
        let content: Vec<u8> = (0..=255_u8).cycle().take(10_000).collect();
        let bytes = SecretBytes::read_from(file_with(&content), content.len()).unwrap().unwrap();
        assert_eq!(bytes.as_slice(), content);
    }

    #[test]
    fn empty_file_needs_no_mapping() {
        let bytes = SecretBytes::read_from(file_with(b""), 0).unwrap().unwrap();
        assert!(bytes.as_slice().is_empty());
        assert!(bytes.mapping.is_none());
    }

    #[test]
    fn file_of_another_length_is_noticed() {
        assert!(SecretBytes::read_from(file_with(b"12345"), 4).unwrap().is_none());
        assert!(SecretBytes::read_from(file_with(b"12345"), 6).unwrap().is_none());
        assert!(SecretBytes::read_from(file_with(b"1"), 0).unwrap().is_none());
    }

    #[test]
    fn debug_output_shows_only_the_length() {
        let bytes = SecretBytes::read_from(file_with(b"hunter2"), 7).unwrap().unwrap();
        assert_eq!(format!("{bytes:?}"), "SecretBytes(7 bytes)");
    }

    #[test]
    fn wiping_leaves_zeros() {
        let mut bytes = SecretBytes::read_from(file_with(b"hunter2, 17 bytes"), 17).unwrap().unwrap();
        bytes.mapping.as_mut().unwrap().wipe();
        assert_eq!(bytes.as_slice(), [0; 17]);
    }

    #[test]
    fn mapping_is_left_out_of_core_dumps() {
        let bytes = SecretBytes::read_from(file_with(b"secret"), 6).unwrap().unwrap();
        let address = bytes.as_slice().as_ptr().addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_inside = false;
        let flags = smaps.lines().find_map(|line| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((start, end)) = range
                && let (Ok(start), Ok(end)) =
                    (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                is_inside = (start..end).contains(&address);
            }
            if is_inside { line.strip_prefix("VmFlags:") } else { None }
        });
        assert!(flags.unwrap().split_whitespace().any(|flag| flag == "dd"), "no dd flag in {flags:?}");
    }
}
