//! Promise: every mistake is told in one line that says what is wrong, and nothing is started.

use anyhow::{Context, Result};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use tests::vm::assets;

/// Exit codes as documented in `laterna run --help`: the host is to blame, or the arguments and what they name.
const FAILURE: i32 = 1;
const USAGE: i32 = 2;

const NOBODY: u32 = 65534;

/// Runs `laterna run` with arguments that are fine but for those given, which come last.
fn laterna(arguments: &[&str]) -> Result<Command> {
    let assets = assets()?;
    let mut command = Command::new(assets.join("laterna"));
    command.arg("run");
    if !arguments.contains(&"--kernel") {
        command.arg("--kernel").arg(assets.join("vmlinuz"));
    }
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

fn messages(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect()
}

/// The command must fail with `code` and one line for each of `mistakes`, which holds all its words.
fn refuses(mut command: Command, code: i32, mistakes: &[&[&str]]) -> Result<()> {
    let output = command.output().context("Cannot run laterna")?;
    let lines = messages(&output);
    assert_eq!(output.status.code(), Some(code), "exit code; it said {lines:#?}");
    assert_eq!(lines.len(), mistakes.len(), "one line for each mistake; it said {lines:#?}");
    for words in mistakes {
        let is_told = lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(is_told, "no line has all of {words:?}; it said {lines:#?}");
    }
    assert!(output.stdout.is_empty(), "the console has output");
    Ok(())
}

/// A file that begins as an asset does and then ends.
fn truncated(directory: &TempDir, asset: &str, len: u64) -> Result<PathBuf> {
    let path = directory.path().join(format!("{asset}-{len}"));
    fs::copy(assets()?.join(asset), &path)?;
    File::options().write(true).open(&path)?.set_len(len)?;
    Ok(path)
}

fn refuses_kernel(kernel: &Path) -> Result<()> {
    let kernel = kernel.to_string_lossy();
    refuses(laterna(&["--kernel", &kernel])?, USAGE, &[&[&*kernel]])
}

#[test]
fn kernel_that_is_missing() -> Result<()> {
    refuses_kernel(Path::new("/no/such/kernel"))
}

#[test]
fn kernel_that_may_not_be_read() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
    let kernel = directory.path().join("secret-kernel");
    fs::write(&kernel, "x")?;
    fs::set_permissions(&kernel, Permissions::from_mode(0o0))?;
    let kernel = kernel.to_string_lossy();
    let mut command = laterna(&["--kernel", &kernel])?;
    command.uid(NOBODY);
    refuses(command, USAGE, &[&["secret-kernel", "ermission"]])
}

#[test]
fn kernel_that_is_none() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for (name, content) in
        [("text", "#!/bin/sh\necho I am no kernel\n".repeat(1000)), ("empty", String::new())]
    {
        let kernel = directory.path().join(name);
        fs::write(&kernel, content)?;
        refuses_kernel(&kernel)?;
    }
    refuses_kernel(directory.path())
}

#[test]
fn kernel_that_is_truncated() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for (asset, len) in
        [("vmlinuz", 700), ("vmlinuz", 1 << 20), ("vmlinux", 40), ("vmlinux", 100), ("vmlinux", 8 << 20)]
    {
        refuses_kernel(&truncated(&directory, asset, len)?)?;
    }
    Ok(())
}

#[test]
fn initramfs_that_is_larger_than_ram() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let initramfs = directory.path().join("huge");
    File::create(&initramfs)?.set_len(1 << 30)?;
    let initramfs = initramfs.to_string_lossy();
    refuses(laterna(&["--initramfs", &initramfs])?, USAGE, &[&["initramfs", "--memory"]])
}

#[test]
fn memory_that_is_zero_or_absurd_or_no_size() -> Result<()> {
    for memory in ["0", "99999999T", "lots", "-1", "64K", ""] {
        refuses(laterna(&["--memory", memory])?, USAGE, &[&["--memory"]])?;
    }
    Ok(())
}

#[test]
fn memory_that_cannot_hold_the_kernel_names_the_minimum() -> Result<()> {
    refuses(laterna(&["--memory", "32M"])?, USAGE, &[&["32 MiB", "give --memory"]])
}

#[test]
fn cpus_that_are_none_or_too_many() -> Result<()> {
    for cpus in ["0", "33", "1000", "two"] {
        refuses(laterna(&["--cpus", cpus])?, USAGE, &[&["--cpus", cpus]])?;
    }
    Ok(())
}

#[test]
fn all_mistakes_are_told_at_once() -> Result<()> {
    let arguments = ["--cpus", "0", "--memory", "lots", "--on-reboot", "maybe", "--serial", "telegraph"];
    let mistakes: [&[&str]; 4] = [&["--cpus"], &["--memory"], &["--on-reboot"], &["--serial"]];
    refuses(laterna(&arguments)?, USAGE, &mistakes)
}

/// A volume that is fine.
fn volume() -> Result<TempDir> {
    let volume = tempfile::tempdir()?;
    fs::write(volume.path().join("token"), "secret-token-bytes")?;
    Ok(volume)
}

fn refuses_volume(options: &str, words: &[&str]) -> Result<()> {
    refuses(laterna(&["--projected", options])?, USAGE, &[words])
}

#[test]
fn volume_with_an_unknown_key() -> Result<()> {
    let volume = volume()?;
    refuses_volume(&format!("tag=a,path={},colour=red", volume.path().display()), &["colour"])
}

#[test]
fn volumes_with_the_same_tag() -> Result<()> {
    let volume = volume()?;
    let options = format!("tag=twice,path={}", volume.path().display());
    refuses(laterna(&["--projected", &options, "--projected", &options])?, USAGE, &[&["twice"]])
}

#[test]
fn volume_with_a_tag_that_is_too_long() -> Result<()> {
    let volume = volume()?;
    let tag = "t".repeat(37);
    refuses_volume(&format!("tag={tag},path={}", volume.path().display()), &[&tag, "36"])
}

#[test]
fn volume_that_is_missing() -> Result<()> {
    refuses_volume("tag=a,path=/no/such/volume", &["/no/such/volume"])
}

#[test]
fn volume_that_is_no_directory() -> Result<()> {
    let volume = volume()?;
    let path = volume.path().join("token");
    let options = format!("tag=a,path={}", path.display());
    refuses_volume(&options, &[&path.to_string_lossy(), "directory"])
}

/// A volume that has one bad entry must be refused by that entry's name.
fn refuses_entry(volume: &TempDir, name: &str) -> Result<()> {
    let options = format!("tag=a,path={}", volume.path().display());
    refuses_volume(&options, &[name])
}

#[test]
fn volume_with_a_link_out_of_it() -> Result<()> {
    let volume = volume()?;
    symlink("/etc/passwd", volume.path().join("outward"))?;
    refuses_entry(&volume, "outward")
}

#[test]
fn volume_with_a_file_over_the_limit() -> Result<()> {
    let volume = volume()?;
    fs::write(volume.path().join("large"), vec![0; 10_000])?;
    refuses_volume(&format!("tag=a,path={},max-size=4K", volume.path().display()), &["large", "4096"])
}

#[test]
fn volume_with_a_fifo_or_a_device_node() -> Result<()> {
    for kind in [&["p"][..], &["c", "1", "3"]] {
        let volume = volume()?;
        let path = volume.path().join("special");
        anyhow::ensure!(Command::new("mknod").arg(&path).args(kind).status()?.success(), "mknod failed");
        refuses_entry(&volume, "special")?;
    }
    Ok(())
}

#[test]
fn host_without_kvm() -> Result<()> {
    let laterna = laterna(&[])?;
    // A mount namespace of its own, in which /dev is empty.
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", r#"mount -t tmpfs none /dev && exec "$0" "$@""#]);
    command.arg(laterna.get_program()).args(laterna.get_args()).stdin(Stdio::null());
    refuses(command, FAILURE, &[&["/dev/kvm"]])
}

#[test]
fn host_that_forbids_kvm() -> Result<()> {
    let mut command = laterna(&[])?;
    command.uid(NOBODY).gid(NOBODY);
    refuses(command, FAILURE, &[&["/dev/kvm", "ermission"]])
}
