//! A page of a guest's memory, reached through the VMM's mapping of guest RAM: a way between host and guest in
//! which no device, no file system and no cache takes part.

use crate::freshness::{Announcement, FLOOR, FLOOR_CHECK, MAGIC, READS, STOP};
use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

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
        let ranges = maps.lines().filter_map(|line| line.split_once(' ')?.0.split_once('-'));
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
        self.memory.read_exact_at(&mut bytes, self.address + u64::try_from(index * 8)?)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn set_word(&self, index: usize, value: u64) -> Result<()> {
        let at = self.address + u64::try_from(index * 8)?;
        self.memory.write_all_at(&value.to_le_bytes(), at).context("The VM's memory is gone")
    }
}
