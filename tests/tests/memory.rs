//! Promise: whatever a guest makes the server remember is dropped when the guest reboots or unmounts.

use anyhow::Result;
use std::fs;
use tempfile::TempDir;
use tests::atomic_writer::{AtomicWriter, Payload, file};
use tests::vm::{Vm, VmBuilder};

const RAM_KIB: u64 = 128 << 10;

/// What may come and go: stacks, allocator slack. A single leaked generation per round would be 100 times 64 KiB.
const SLACK_KIB: u64 = 2048;

const READ_ALL: &str =
    "mount -t virtiofs token /mnt && cat /mnt/token /mnt/sub/deep >/dev/null && ls -lR /mnt >/dev/null";

fn volume() -> Result<TempDir> {
    let volume = tempfile::tempdir()?;
    let payload = Payload::from([file("token", vec![b't'; 65536]), file("sub/deep", "x")]);
    AtomicWriter::new(volume.path()).write(&payload)?;
    Ok(volume)
}

fn builder(volume: &TempDir) -> Result<VmBuilder> {
    let path = fs::canonicalize(volume.path())?;
    Ok(Vm::builder().memory("128M").projected(&format!("tag=token,path={}", path.display())))
}

fn assert_flat(vm: &Vm, before: u64, rounds: &str) -> Result<()> {
    let after = vm.resident_kib_without(RAM_KIB)?;
    println!("{rounds}: {before} KiB before, {after} KiB after");
    assert!(after <= before + SLACK_KIB, "{rounds} took laterna from {before} to {after} KiB");
    Ok(())
}

#[test]
fn a_hundred_remounts_leave_memory_flat() -> Result<()> {
    let volume = volume()?;
    let vm = builder(&volume)?.spawn()?;
    vm.wait_for_boot()?;
    let rounds =
        |count: u32| format!("for i in $(seq {count}); do {READ_ALL} && umount /mnt || exit 1; done");
    vm.sh(&rounds(5))?;
    let before = vm.resident_kib_without(RAM_KIB)?;
    vm.sh(&rounds(100))?;
    assert_flat(&vm, before, "100 remounts")
}

#[test]
fn a_hundred_reboots_leave_memory_flat() -> Result<()> {
    let volume = volume()?;
    let vm = builder(&volume)?.arguments(["--on-reboot", "reset"]).spawn()?;
    let mut before = 0;
    for boot in 1..=103 {
        vm.wait_for_boots(boot)?;
        vm.sh(READ_ALL)?;
        if boot == 3 {
            before = vm.resident_kib_without(RAM_KIB)?;
        }
        if boot < 103 {
            vm.start_sh("guest-tool reboot")?;
        }
    }
    assert_flat(&vm, before, "100 reboots")
}
