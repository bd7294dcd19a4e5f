//! Writes and verifies the guest's memory.
//!
//! Every page gets its own physical address as its content, and all are read back after the last was written: two
//! addresses that share memory, or memory that is not there, show.

use super::pagemap::{PAGE_BYTES, Pagemap};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;

const HUGE_PAGE_BYTES: u64 = 2 << 20;
const MAGIC: u64 = 0x6c61_7465_726e_6121;

/// Writes all free memory and verifies it; prints one JSON line with what was covered.
pub(crate) fn touch() -> Result<()> {
    take_all_memory();
    let pagemap = Pagemap::open()?;
    let mut blocks = Vec::new();
    let mut frames = BTreeSet::new();
    while let Some(block_bytes) = next_block_bytes(free_bytes()?) {
        let mut block = vec![0_u64; usize::try_from(block_bytes / 8)?];
        for page in block.chunks_exact_mut(usize::try_from(PAGE_BYTES / 8)?) {
            set(page, 1)?;
        }
        let addresses = pagemap.physical_addresses(&block)?;
        for (page, address) in pages(&mut block)?.zip(&addresses) {
            set(page, address ^ MAGIC)?;
            frames.insert(address / HUGE_PAGE_BYTES);
        }
        blocks.push((block, addresses));
    }
    let mut bytes = 0;
    for (block, addresses) in &mut blocks {
        for (page, address) in pages(block)?.zip(addresses.iter()) {
            ensure!(page.first() == Some(&(address ^ MAGIC)), "The page at {address:#x} lost its content");
            bytes += PAGE_BYTES;
        }
    }
    report(bytes, &frames)
}

/// Lets a process have nearly all memory, in whole 2 MiB pages: no zone kept for the kernel, small reserves.
fn take_all_memory() {
    let settings = [
        ("/sys/kernel/mm/transparent_hugepage/enabled", "always"),
        // Enabling huge pages raises the reserve, so this follows.
        ("/proc/sys/vm/min_free_kbytes", "2048"),
        ("/proc/sys/vm/lowmem_reserve_ratio", "100000\t100000\t100000"),
    ];
    for (file, value) in settings {
        // A kernel without the setting has nothing to hold back.
        let _ = fs::write(file, value);
    }
}

fn report(bytes: u64, frames: &BTreeSet<u64>) -> Result<()> {
    let ranges = system_ram()?;
    let in_ram = ranges.iter().flat_map(|(start, end)| start / HUGE_PAGE_BYTES..=end / HUGE_PAGE_BYTES);
    let in_ram = in_ram.collect::<BTreeSet<_>>();
    ensure!(frames.is_subset(&in_ram), "Memory outside of System RAM was handed out");
    let report = serde_json::json!({
        "verified_mib": bytes >> 20,
        "covered_mib": (u64::try_from(frames.len())? * HUGE_PAGE_BYTES) >> 20,
        "ram_mib": ranges.iter().map(|(start, end)| end - start + 1).sum::<u64>() >> 20,
        "ranges": ranges,
    });
    println!("{report}");
    Ok(())
}

fn pages(block: &mut [u64]) -> Result<impl Iterator<Item = &mut [u64]>> {
    Ok(block.chunks_exact_mut(usize::try_from(PAGE_BYTES / 8)?))
}

fn set(page: &mut [u64], value: u64) -> Result<()> {
    *page.first_mut().context("An empty page")? = value;
    Ok(())
}

/// Large blocks first, small ones near the end, and some memory left for the kernel.
fn next_block_bytes(free: u64) -> Option<u64> {
    match free >> 20 {
        0..=23 => None,
        24..=127 => Some(HUGE_PAGE_BYTES),
        _ => Some(16 * HUGE_PAGE_BYTES),
    }
}

fn free_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("MemFree:")).context("No MemFree in /proc/meminfo")?;
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>()?;
    Ok(kib << 10)
}

/// First and last address of each range of RAM.
fn system_ram() -> Result<Vec<(u64, u64)>> {
    let text = fs::read_to_string("/proc/iomem")?;
    let ranges = text.lines().filter_map(|line| line.strip_suffix(" : System RAM"));
    ranges
        .map(|range| {
            let (start, end) = range.split_once('-').context("A malformed line in /proc/iomem")?;
            Ok((u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?))
        })
        .collect()
}
