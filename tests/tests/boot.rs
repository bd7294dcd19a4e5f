//! Promise: a stock kernel boots with any allowed number of vCPUs and amount of RAM, and all of that RAM is there.

use anyhow::{Context, Result};
use serde_json::Value;
use tests::vm::Vm;

/// Boots, counts the CPUs, writes and verifies all free memory.
fn boots(kernel: &str, cpus: u32, memory: &str, memory_mib: u64) -> Result<()> {
    // Without buffers for bouncing DMA, 64 MiB that the tool could not have.
    let vm = Vm::builder().kernel(kernel).cpus(cpus).memory(memory).append("swiotlb=noforce").spawn()?;
    vm.wait_for_boot()?;
    assert_eq!(vm.sh("nproc")?.trim(), cpus.to_string());
    let report = serde_json::from_str::<Value>(&vm.sh("guest-tool touch-memory")?)?;
    let mib = |name: &str| report.get(name).and_then(Value::as_u64).context("a report without that field");
    // The kernel keeps its own image, 1 page in 64 to describe memory, and what the tool leaves it.
    let kept = 104 + memory_mib / 32;
    assert!(mib("ram_mib")? + 4 > memory_mib && mib("ram_mib")? <= memory_mib, "RAM differs: {report}");
    assert!(mib("verified_mib")? + kept > memory_mib, "too little memory was there: {report}");
    assert!(mib("covered_mib")? + kept > memory_mib, "too few 2 MiB frames were reached: {report}");
    Ok(())
}

#[test]
fn one_vcpu_with_128_mib() -> Result<()> {
    boots("vmlinuz", 1, "128M", 128)
}

#[test]
fn two_vcpus_with_128_mib_by_pvh() -> Result<()> {
    boots("vmlinux", 2, "128M", 128)
}

#[test]
fn four_vcpus_with_128_mib() -> Result<()> {
    boots("vmlinuz", 4, "128M", 128)
}

#[test]
fn one_vcpu_with_3584_mib_by_pvh() -> Result<()> {
    boots("vmlinux", 1, "3584M", 3584)
}

#[test]
fn two_vcpus_with_3584_mib() -> Result<()> {
    boots("vmlinuz", 2, "3584M", 3584)
}

#[test]
fn four_vcpus_with_3584_mib() -> Result<()> {
    boots("vmlinuz", 4, "3584M", 3584)
}

#[test]
fn one_vcpu_with_5_gib() -> Result<()> {
    boots("vmlinuz", 1, "5G", 5120)
}

#[test]
fn two_vcpus_with_5_gib() -> Result<()> {
    boots("vmlinuz", 2, "5G", 5120)
}

#[test]
fn four_vcpus_with_5_gib_by_pvh() -> Result<()> {
    boots("vmlinux", 4, "5G", 5120)
}

#[test]
fn thirty_two_vcpus_come_up() -> Result<()> {
    let vm = Vm::builder().cpus(32).memory("512M").spawn()?;
    vm.wait_for_boot()?;
    assert_eq!(vm.sh("nproc")?.trim(), "32");
    Ok(())
}

/// The first and the last page of every range of RAM above 1 MiB, as the guest sees the ranges.
fn edges(vm: &Vm) -> Result<Vec<u64>> {
    let mut edges = Vec::new();
    for line in vm.sh("grep 'System RAM$' /proc/iomem")?.lines() {
        let (range, _) = line.split_once(' ').context("a malformed line")?;
        let (start, end) = range.split_once('-').context("a malformed range")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        if start >= 1 << 20 {
            edges.extend([start, (end + 1) - 4096]);
        }
    }
    Ok(edges)
}

/// Boots once to see where RAM is, and once more with the edges kept from the kernel, to write them.
fn edges_hold_data(memory: &str, ranges: usize) -> Result<()> {
    let vm = Vm::builder().memory(memory).spawn()?;
    vm.wait_for_boot()?;
    let edges = edges(&vm)?;
    assert_eq!(edges.len(), 2 * ranges, "unexpected ranges of RAM: {edges:x?}");
    drop(vm);
    let kept = edges.iter().map(|edge| format!("memmap=4K${edge:#x}")).collect::<Vec<_>>();
    // `iomem=relaxed`: /dev/mem may reach what is reserved.
    let vm = Vm::builder().memory(memory).append("iomem=relaxed").append(&kept.join(" ")).spawn()?;
    vm.wait_for_boot()?;
    let addresses = edges.iter().map(|edge| format!("{edge:x}")).collect::<Vec<_>>();
    let text = vm.sh(&format!("guest-tool touch-physical {}", addresses.join(" ")))?;
    assert_eq!(text.trim(), format!("{} pages verified", edges.len()));
    Ok(())
}

#[test]
fn edges_of_ram_below_the_hole_hold_data() -> Result<()> {
    edges_hold_data("3G", 1)
}

#[test]
fn edges_of_ram_around_the_hole_hold_data() -> Result<()> {
    edges_hold_data("5G", 2)
}
