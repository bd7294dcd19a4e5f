//! Promise: reading a file of a projected volume costs few FUSE requests: 2 when nothing has changed.
//!
//! Counted in the server: at SIGUSR1 `laterna --log-format json` writes one line with `"message": "statistics"` and
//! `"statistics": {"devices": [{"tag": TAG, "requests": {OPCODE: COUNT, ..}, ..}], ..}`. The numbers are those of the
//! row "idea 1 as written" in section 2.4 of the project's notes on virtio-fs.

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use std::{fs, thread};
use tests::atomic_writer::{AtomicWriter, Payload, file};
use tests::vm::{TIMEOUT, Vm};

type Counts = BTreeMap<String, u64>;

/// A booted guest that has the volume mounted, and the last count.
struct Counted {
    vm: Vm,
    before: Counts,
}

impl Counted {
    fn start(volume: &str) -> Result<Self> {
        let builder = Vm::builder().projected(&format!("tag=token,path={volume}"));
        let vm = builder.arguments(["--log-format", "json"]).spawn()?;
        vm.wait_for_boot()?;
        // The root directory's attributes are fetched once per mount and are not what is counted here.
        vm.sh("mount -t virtiofs token /mnt && stat /mnt")?;
        let before = counts(&vm)?;
        Ok(Self { vm, before })
    }

    /// The requests that the guest's `command` costs: those that are answered, and the nodes that it forgets.
    ///
    /// FORGETs come on their own time: they are waited for until there are `forgets`.
    fn cost_of(&mut self, command: &str, expected: &str, forgets: u64) -> Result<Counts> {
        assert_eq!(self.vm.sh(command)?, expected);
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let after = counts(&self.vm)?;
            let mut cost = Counts::new();
            for (opcode, count) in &after {
                let new = count - self.before.get(opcode).copied().unwrap_or(0);
                if new > 0 {
                    cost.insert(opcode.clone(), new);
                }
            }
            if cost.get("FORGET").copied().unwrap_or(0) >= forgets || Instant::now() > deadline {
                self.before = after;
                return Ok(cost);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// All requests so far.
fn counts(vm: &Vm) -> Result<Counts> {
    let lines = |text: &str| text.lines().filter(|line| line.contains("\"statistics\"")).count();
    let seen = lines(&vm.stderr_lines().join("\n"));
    vm.signal(Signal::USR1)?;
    let line = vm.wait_for_log("a line of statistics", |text| {
        let complete = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        (lines(complete) > seen)
            .then(|| complete.lines().rfind(|l| l.contains("\"statistics\"")).map(str::to_owned))?
    })?;
    let line = serde_json::from_str::<Value>(&line).context("The statistics are no JSON")?;
    let requests =
        line.pointer("/statistics/devices/0/requests").context("The statistics have no requests")?;
    Ok(serde_json::from_value(requests.clone())?)
}

fn expected<const N: usize>(counts: [(&str, u64); N]) -> Counts {
    counts.into_iter().map(|(opcode, count)| (opcode.to_owned(), count)).collect()
}

#[test]
fn reads_cost_no_more_than_promised() -> Result<()> {
    let volume = tempfile::tempdir()?;
    let writer = AtomicWriter::new(volume.path());
    writer.write(&Payload::from([file("token", "one"), file("other", "1")]))?;
    let path = fs::canonicalize(volume.path())?;
    let mut counted = Counted::start(&path.to_string_lossy())?;
    let read = "guest-tool read /mnt/token";

    // Walk: LOOKUP token, READLINK, LOOKUP ..data, READLINK, LOOKUP ..timestamp, LOOKUP token. OPEN and FLUSH are
    // asked for once per mount and never again.
    let cold =
        expected([("LOOKUP", 4), ("READLINK", 2), ("OPEN", 1), ("READ", 1), ("FLUSH", 1), ("FORGET", 1)]);
    assert_eq!(counted.cost_of(read, "one", 1)?, cold, "cold");

    let warm = expected([("LOOKUP", 1), ("READLINK", 1), ("FORGET", 1)]);
    assert_eq!(counted.cost_of(read, "one", 1)?, warm, "warm");
    assert_eq!(counted.cost_of(read, "one", 1)?, warm, "warm again");
    assert_eq!(counted.cost_of(&format!("sleep 2; {read}"), "one", 1)?, warm, "after idle");

    writer.write(&Payload::from([file("token", "two"), file("other", "1")]))?;
    let rotated = counted.cost_of(read, "two", 1)?;
    let answered = |counts: &Counts| {
        counts.iter().filter(|(opcode, _)| *opcode != "FORGET").map(|(_, n)| n).sum::<u64>()
    };
    assert_eq!(answered(&rotated), 5, "after a rotation: {rotated:?}");
    assert_eq!(rotated.get("LOOKUP"), Some(&3), "after a rotation: {rotated:?}");
    assert_eq!(rotated.get("READLINK"), Some(&1), "after a rotation: {rotated:?}");
    assert_eq!(rotated.get("READ"), Some(&1), "after a rotation: {rotated:?}");
    assert_eq!(counted.cost_of(read, "two", 1)?, warm, "warm after a rotation");
    Ok(())
}
