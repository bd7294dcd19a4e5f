//! The emulated host's initramfs.

use super::HostSpec;
use crate::cpio::Archive;
use crate::kernel_modules;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

/// Writes the image of `spec` to the file `to`.
///
/// It is made anew for every start: that takes a fraction of a second, and there is no cache to go stale.
pub(super) fn write(spec: &HostSpec, to: &Path) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(to)?));
    archive.directory("dev", 0o755)?;
    archive.file("init", 0o755, &read(&spec.init)?)?;
    archive.file("bin/busybox", 0o755, &read(&spec.busybox)?)?;
    archive.symlink("bin/sh", "busybox")?;
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost kvm-host\n")?;
    let wanted = spec.modules.iter().map(String::as_str).collect::<Vec<_>>();
    let mut order = String::new();
    for module in kernel_modules::resolve(&spec.kernel.modules, &wanted)? {
        archive.file(&format!("lib/modules/{}.ko", module.name), 0o644, &module.object)?;
        writeln!(order, "{}", module.name)?;
    }
    archive.file("etc/modules", 0o644, order.as_bytes())?;
    for file in &spec.files {
        archive.file(&file.path, file.mode, &read(&file.source)?)?;
    }
    archive.finish()?;
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("Cannot read {}", file.display()))
}
