//! Promise: an open in the guest that starts after the host's rename has returned sees the new content, never a mix.
//!
//! The host publishes the sequence number of each rotation in a page of the guest's memory (see
//! [`tests::guest_page`]), which the readers in the guest take as the floor of what they may read.

use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use std::{fs, thread};
use tests::atomic_writer::{AtomicWriter, Payload, file};
use tests::freshness::{Announcement, Report, content_of};
use tests::guest_page::GuestPage;
use tests::vm::{TIMEOUT, Vm};

/// Rotates `rotations` times, each time after the guest has read `reads_each` times; returns the readers' report.
fn rotate_under_load(program: &str, rotations: u64, reads_each: u64) -> Result<Report> {
    let volume = tempfile::tempdir()?;
    let path = fs::canonicalize(volume.path())?;
    let writer = AtomicWriter::new(&path);
    let payload = |sequence| Payload::from(["a", "b"].map(|name| file(name, content_of(sequence))));
    writer.write(&payload(0))?;
    // One vCPU: this test wants a host with several CPUs, where QEMU 7.2 emulates guests with several wrongly (see
    // xtask/src/test.rs).
    let vm =
        Vm::builder().program(program).projected(&format!("tag=token,path={}", path.display())).spawn()?;
    vm.wait_for_boot()?;
    vm.sh("mount -t virtiofs token /mnt")?;
    vm.sh("touch /tmp/report; guest-tool read-loop /mnt a b >/tmp/report 2>&1 &")?;
    let announcement = wait_for_line(&vm, 0)?;
    let announcement = serde_json::from_str::<Announcement>(&announcement).context(announcement)?;
    let page = GuestPage::find(vm.pid(), &announcement)?;
    for sequence in 1..=rotations {
        let mut raised = Ok(());
        writer.write_and(&payload(sequence), || raised = page.raise_floor(sequence))?;
        let read = raised.and_then(|()| wait_for_reads(&page, sequence * reads_each));
        read.map_err(|error| vm.stuck(&format!("Rotation {sequence}: {error:#}")))?;
    }
    page.stop()?;
    let report = wait_for_line(&vm, 1)?;
    println!("{program}: {rotations} rotations, {report}");
    serde_json::from_str(&report).context(report)
}

/// Line `index` of the reader's output, once it is there.
fn wait_for_line(vm: &Vm, index: usize) -> Result<String> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let text = vm.sh("cat /tmp/report")?;
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        if let Some(line) = complete.lines().nth(index) {
            return Ok(line.to_owned());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "The reader did not write line {index}, only this: {text}"
        );
        thread::sleep(Duration::from_millis(100));
    }
}

fn wait_for_reads(page: &GuestPage, reads: u64) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while page.reads()? < reads {
        anyhow::ensure!(Instant::now() < deadline, "The readers are stuck at {} reads", page.reads()?);
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn no_read_is_stale_or_torn_in_a_thousand_rotations() -> Result<()> {
    let report = rotate_under_load("laterna", 1000, 20)?;
    assert!(report.reads >= 20_000, "too few reads to tell: {report:?}");
    assert!(report.close_reads >= 100, "too few reads close behind a rotation to tell: {report:?}");
    assert_eq!(report.stale, 0, "{report:?}");
    assert_eq!(report.torn, 0, "{report:?}");
    assert_eq!(report.not_found, 0, "{report:?}");
    assert_eq!(report.other_errors, 0, "{report:?}");
    Ok(())
}

/// The control: with entries valid for a second, as other servers have them, the same test sees stale reads.
#[test]
fn the_test_sees_the_staleness_of_a_server_with_a_timeout() -> Result<()> {
    let report = rotate_under_load("laterna-stale", 50, 20)?;
    assert!(report.stale > 0, "a server with a timeout of 1 s must be caught: {report:?}");
    Ok(())
}
