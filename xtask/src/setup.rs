//! `cargo xtask setup`: the Debian packages that the other chores need.

use crate::process::{run, step};
use anyhow::{Result, bail};
use std::process::Command;

/// A program that we run, the package that has it, what for.
const NEEDED: [(&str, &str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86", "the emulated KVM host"),
    ("xz", "xz-utils", "kernel modules"),
    ("zstd", "zstd", "the ELF kernel inside the stock image"),
    ("g++", "g++", "the fuzz targets"),
    ("dpkg-deb", "dpkg", "Debian packages"),
];

/// Installs what is missing; asks for it when not root.
pub(crate) fn run_setup() -> Result<()> {
    let missing = NEEDED.iter().filter(|(program, ..)| !is_installed(program)).collect::<Vec<_>>();
    let lists_are_there = Command::new("apt-cache")
        .args(["show", "linux-image-6.12-cloud-amd64"])
        .output()
        .is_ok_and(|output| output.status.success());
    if missing.is_empty() && lists_are_there {
        return Ok(());
    }
    let packages = missing.iter().map(|(_, package, _)| *package).collect::<Vec<_>>();
    if !rustix::process::geteuid().is_root() {
        let mut command = "apt-get update".to_owned();
        if !packages.is_empty() {
            command += &format!(" && apt-get install --no-install-recommends {}", packages.join(" "));
        }
        bail!("Something is missing; please run as root: {command}");
    }
    step("Updating Debian's package lists");
    run(Command::new("apt-get").args(["update", "--quiet"]))?;
    for (_, package, purpose) in &missing {
        step(&format!("Installing {package} for {purpose}"));
    }
    if packages.is_empty() {
        return Ok(());
    }
    let mut install = Command::new("apt-get");
    install.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages);
    run(install.env("DEBIAN_FRONTEND", "noninteractive"))
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
