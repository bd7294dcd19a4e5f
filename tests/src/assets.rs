//! What whole-VM tests work with, in one directory: kernels, the guest's initramfs, our static programs.
//!
//! | file | what it is |
//! |---|---|
//! | `laterna` and other programs | static builds of this repository's binaries |
//! | `vmlinuz` | Debian's stock bzImage |
//! | `vmlinux` | the ELF inside it, with its PVH entry point |
//! | `guest.cpio` | initramfs: busybox, `guest-tool` as `/init`, the modules that a guest of ours needs |

use crate::cpio::Archive;
use crate::debian::{self, Kernel};
use crate::host::{HostFile, HostSpec};
use crate::kernel_modules;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the assets directory to the tests.
pub const ENVIRONMENT_VARIABLE: &str = "LATERNA_TEST_ASSETS";

/// Where the assets are in the emulated host.
pub const HOST_DIRECTORY: &str = "/laterna";

/// Modules of the stock kernel that a guest of Laterna has use for.
const GUEST_MODULES: [&str; 5] = ["button", "evdev", "pvpanic-mmio", "pvpanic-pci", "virtio-rng"];

/// The assets, complete.
#[derive(Debug, Clone)]
pub struct Assets {
    /// Where they are.
    pub directory: PathBuf,
    /// The stock kernel, which is also the emulated host's.
    pub kernel: Kernel,
    busybox: PathBuf,
    programs: BTreeMap<String, PathBuf>,
}

impl Assets {
    /// Collects everything below `cache`; fetches what is missing. `programs` are static binaries by name.
    pub fn prepare(cache: &Path, programs: BTreeMap<String, PathBuf>) -> Result<Self> {
        let packages = cache.join("debian");
        let kernel = debian::kernel(&packages)?;
        let busybox = debian::busybox(&packages)?;
        let directory = cache.join("assets");
        // Begun anew, since a program left from an earlier build could be taken for today's.
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("Cannot empty {}", directory.display()))?;
        }
        fs::create_dir_all(&directory)?;
        link(&kernel.vmlinuz, &directory.join("vmlinuz"))?;
        link(&vmlinux(cache, &kernel)?, &directory.join("vmlinux"))?;
        for (name, program) in &programs {
            link(program, &directory.join(name))?;
        }
        let assets = Self { directory, kernel, busybox, programs };
        assets.write_guest().context("Cannot write the guest's initramfs")?;
        Ok(assets)
    }

    /// A host that has the assets in [`HOST_DIRECTORY`].
    pub fn host_spec(&self, console_log: PathBuf) -> Result<HostSpec> {
        let init = self.program("host-init")?.to_owned();
        let mut spec = HostSpec::new(self.kernel.clone(), self.busybox.clone(), init, console_log);
        for file in fs::read_dir(&self.directory)? {
            let name = file?.file_name().to_string_lossy().into_owned();
            let mode = if self.programs.contains_key(&name) { 0o755 } else { 0o644 };
            let source = self.directory.join(&name);
            spec.files.push(HostFile { path: format!("{HOST_DIRECTORY}/{name}"), source, mode });
        }
        Ok(spec)
    }

    /// Whether this machine's own KVM can boot guests: asks `laterna doctor`, which tries what kernels need.
    #[must_use]
    pub fn has_good_kvm(&self) -> bool {
        let doctor =
            Command::new(self.directory.join("laterna")).args(["doctor", "--output", "json"]).output();
        let report =
            doctor.ok().and_then(|output| serde_json::from_slice::<serde_json::Value>(&output.stdout).ok());
        report.and_then(|report| report.get("can_boot_guests")?.as_bool()).unwrap_or(false)
    }

    fn program(&self, name: &str) -> Result<&Path> {
        self.programs.get(name).map(PathBuf::as_path).with_context(|| format!("Program {name} was not built"))
    }

    fn write_guest(&self) -> Result<()> {
        let image = File::create(self.directory.join("guest.cpio"))?;
        let mut archive = Archive::new(BufWriter::new(image));
        for directory in ["dev", "proc", "sys", "tmp", "mnt"] {
            archive.directory(directory, 0o755)?;
        }
        archive.file("init", 0o755, &fs::read(self.program("guest-tool")?)?)?;
        archive.symlink("bin/guest-tool", "/init")?;
        archive.file("bin/busybox", 0o755, &fs::read(&self.busybox)?)?;
        archive.symlink("bin/sh", "busybox")?;
        archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
        let mut order = Vec::new();
        for module in kernel_modules::resolve(&self.kernel.modules, &GUEST_MODULES)? {
            archive.file(&format!("lib/modules/{}.ko", module.name), 0o644, &module.object)?;
            order.push(module.name);
        }
        archive.file("etc/modules", 0o644, order.join("\n").as_bytes())?;
        archive.finish()?;
        Ok(())
    }
}

/// A hard link where it is possible, else a copy.
fn link(source: &Path, to: &Path) -> Result<()> {
    fs::hard_link(source, to)
        .or_else(|_| fs::copy(source, to).map(|_| ()))
        .with_context(|| format!("Cannot copy {} to {}", source.display(), to.display()))
}

/// The ELF kernel inside the stock bzImage, unpacked once per kernel.
fn vmlinux(cache: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let to = cache.join(format!("vmlinux-{}", kernel.release));
    if to.exists() {
        return Ok(to);
    }
    eprintln!("==> Unpacking the ELF kernel from {}", kernel.vmlinuz.display());
    let image = fs::read(&kernel.vmlinuz)?;
    let payload = bzimage_payload(&image).context("The stock kernel is not the bzImage that it should be")?;
    let mut scratch = tempfile::NamedTempFile::new_in(cache)?;
    let mut zstd = Command::new("zstd")
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(scratch.as_file().try_clone()?)
        .stderr(Stdio::null())
        .spawn()
        .context("Cannot run zstd; `cargo xtask setup` installs it")?;
    let written = zstd.stdin.take().context("zstd without standard input")?.write_all(payload);
    if !zstd.wait()?.success() || written.is_err() {
        bail!("zstd cannot unpack the payload of {}", kernel.vmlinuz.display());
    }
    let mut magic = [0; 4];
    File::open(scratch.path())?.read_exact(&mut magic)?;
    if &magic != b"\x7fELF" {
        bail!("The payload of {} is no ELF kernel", kernel.vmlinuz.display());
    }
    scratch.flush()?;
    scratch.persist(&to)?;
    Ok(to)
}

/// The compressed kernel in a bzImage (Linux `Documentation/arch/x86/boot.rst`: `payload_offset` at 0x248,
/// `payload_length` at 0x24c, relative to the protected-mode code, which follows `setup_sects` + 1 sectors).
///
/// The last four bytes are the unpacked size, which is not part of the zstd stream.
fn bzimage_payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let code = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    let start = code.checked_add(word(0x248)?)?;
    let end = start.checked_add(word(0x24c)?.checked_sub(4)?)?;
    image.get(start..end)
}
