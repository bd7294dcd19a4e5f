//! Stock kernels and busybox from Debian's own packages, unpacked into a cache and never installed.
//!
//! Downloading and unpacking need no privilege, only package lists (`apt-get update`). A package unpacked once is
//! used for ever; delete the cache (`cargo clean`) to get a newer one.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Follows the 6.12 long-term kernel; depends on the package with today's version in its name.
const KERNEL_META_PACKAGE: &str = "linux-image-6.12-cloud-amd64";
const KERNEL_PREFIX: &str = "linux-image-6.12.";

/// A kernel out of its package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Its module tree, `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

/// Debian 12's stock cloud kernel, in `cache`.
pub fn kernel(cache: &Path) -> Result<Kernel> {
    let package = match cached_kernel(cache) {
        Some(package) => package,
        None => current_kernel_package()?,
    };
    let root = unpacked(cache, &package)?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let vmlinuz = root.join(format!("boot/vmlinuz-{release}"));
    let modules = root.join("lib/modules").join(&release);
    for part in [&vmlinuz, &modules] {
        if !part.exists() {
            bail!("Package {package} has no {}; delete {} and try again", part.display(), root.display());
        }
    }
    Ok(Kernel { release, vmlinuz, modules })
}

/// Debian's statically linked busybox, in `cache`.
pub fn busybox(cache: &Path) -> Result<PathBuf> {
    Ok(unpacked(cache, "busybox-static")?.join("bin/busybox"))
}

fn cached_kernel(cache: &Path) -> Option<String> {
    let entries = fs::read_dir(cache).ok()?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(KERNEL_PREFIX)).max()
}

fn current_kernel_package() -> Result<String> {
    let output = Command::new("apt-cache").args(["depends", KERNEL_META_PACKAGE]).output();
    let output = output.context("Cannot run apt-cache; this needs Debian 12")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let package = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.filter(|name| name.starts_with(KERNEL_PREFIX)).max();
    let missing =
        || format!("Debian's package lists do not know {KERNEL_META_PACKAGE}; run `cargo xtask setup`");
    package.map(str::to_owned).with_context(missing)
}

/// The directory in which `package` is unpacked; fetches it if need be.
fn unpacked(cache: &Path, package: &str) -> Result<PathBuf> {
    let directory = cache.join(package);
    if directory.exists() {
        return Ok(directory);
    }
    eprintln!("==> Fetching Debian package {package}");
    fs::create_dir_all(cache).with_context(|| format!("Cannot make {}", cache.display()))?;
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(cache)?;
    run(Command::new("apt-get").args(["download", package]).current_dir(scratch.path()))?;
    let archive =
        fs::read_dir(scratch.path())?.flatten().find(|e| e.path().extension().is_some_and(|x| x == "deb"));
    let archive = archive.with_context(|| format!("apt-get fetched no file for {package}"))?.path();
    let root = scratch.path().join("root");
    run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&root))?;
    // Atomic, so that an interrupted run leaves nothing that looks complete.
    fs::rename(&root, &directory).or_else(|error| if directory.exists() { Ok(()) } else { Err(error) })?;
    Ok(directory)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("Cannot run {program}; this needs Debian 12"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{program} failed ({}); `cargo xtask setup` may help: {}", output.status, text.trim());
    }
    Ok(())
}
