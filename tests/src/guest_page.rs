//! A page of a guest's memory, reached through the VMM's mapping of guest RAM: a way between host and guest in
//! which no device, no file system and no cache takes part.

use crate::freshness::{Announcement, FLOOR, FLOOR_CHECK, MAGIC, READS, STOP};
use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;
use std::{io, thread};

/// The floor's page of [`crate::freshness`].
#[derive(Debug)]
pub struct GuestPage {
    memory: File,
    /// Where the page is in the VMM's address space.
    address: u64,
}

impl GuestPage {
    /// Finds the page in the process `pid`: in a mapping whose start is the guest's address 0. The magic number
    /// tells the right one.
    pub fn find(pid: u32, announcement: &Announcement) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("Cannot open {path}"))?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        // A line: range, permissions, and more.
        let mappings = maps.lines().filter_map(|line| line.split_once(' '));
        let writable = mappings.filter(|(_, rest)| rest.starts_with("rw"));
        let ranges = writable.filter_map(|(range, _)| range.split_once('-'));
        let mut page = Self { memory, address: 0 };
        for (start, end) in ranges {
            let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            page.address = start + announcement.address;
            if page.address < end && page.word(MAGIC).is_ok_and(|magic| magic == announcement.magic) {
                return Ok(page);
            }
        }
        bail!("No mapping of process {pid} has the page that the guest has at {:#x}", announcement.address)
    }

    /// Every read that begins from now on must see `sequence` or a later one.
    pub fn raise_floor(&self, sequence: u64) -> Result<()> {
        self.set_word(FLOOR, sequence)?;
        self.set_word(FLOOR_CHECK, !sequence)
    }

    /// How often the guest has read.
    pub fn reads(&self) -> Result<u64> {
        self.word(READS)
    }

    /// Ends the reader.
    pub fn stop(&self) -> Result<()> {
        self.set_word(STOP, 1)
    }

    fn word(&self, index: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        let at = self.address + u64::try_from(index * 8)?;
        patiently(|| self.memory.read_exact_at(&mut bytes, at)).context("Cannot read the VM's memory")?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn set_word(&self, index: usize, value: u64) -> Result<()> {
        let at = self.address + u64::try_from(index * 8)?;
        patiently(|| self.memory.write_all_at(&value.to_le_bytes(), at))
            .context("Cannot write the VM's memory")
    }
}

/// Tries again for a second if an access to another process's memory fails with EIO.
///
/// In the emulated host that is seen about once in ten thousand accesses, with the process and its mapping as they
/// were; why is not known. Memory that is gone reads as the end of the file instead.
fn patiently(mut access: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for _ in 0..100 {
        match access() {
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
    access()
}
