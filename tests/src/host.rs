//! The emulated KVM host: a machine with AMD-V emulated by QEMU in software (TCG), running a stock Debian kernel.
//!
//! It is up in seconds and has a real `/dev/kvm`, wherever QEMU runs. [`EmulatedHost::start`] boots it,
//! [`EmulatedHost::run`] runs commands in it (several at a time, if wanted), dropping it powers it off. A host
//! that dies (QEMU ended, its kernel panicked) is an error with the last lines of its console, never a hang.

mod connection;
mod image;

pub use connection::{Event, Running};

use crate::debian::Kernel;
use crate::protocol::{Exit, Run};
use anyhow::{Context, Result};
use connection::Connection;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than the slowest machine needs (3 s is usual), since only a broken host gets there.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// How often to try to boot.
const BOOT_ATTEMPTS: usize = 3;

/// The wanted host.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Its kernel and where that kernel's modules are.
    pub kernel: Kernel,
    /// Static `busybox`; all its applets are linked in `/bin`.
    pub busybox: PathBuf,
    /// Static `host-init`, PID 1.
    pub init: PathBuf,
    /// RAM in MiB; taken from this machine as the host touches it.
    pub memory_mib: u32,
    /// Number of CPUs; 1 unless said. QEMU before 8.1 may run code that another CPU has just patched as it was before
    /// (mended there by "accel/tcg: Always lock pages before translation"), and a kernel, which patches itself, then
    /// dies of an `int3`: seen in hosts with 2 CPUs, and in 3 of 40 boots of guests with 32 vCPUs in them.
    pub cpus: u32,
    /// Kernel modules to load, by name; what they depend on is added.
    pub modules: Vec<String>,
    /// Files to put into the host.
    pub files: Vec<HostFile>,
    /// Where the host's console goes.
    pub console_log: PathBuf,
}

/// A file put into the host.
#[derive(Debug, Clone)]
pub struct HostFile {
    /// Absolute path in the host.
    pub path: String,
    /// Where its content comes from.
    pub source: PathBuf,
    /// Permission bits.
    pub mode: u32,
}

impl HostSpec {
    /// A host that can run guests of up to 5 GiB, with KVM and nothing else.
    #[must_use]
    pub fn new(kernel: Kernel, busybox: PathBuf, init: PathBuf, console_log: PathBuf) -> Self {
        let modules = vec!["kvm-amd".to_owned()];
        Self { kernel, busybox, init, memory_mib: 9 << 10, cpus: 1, modules, files: Vec::new(), console_log }
    }

    /// Adds an executable file.
    pub fn add_program(&mut self, path: &str, source: &Path) {
        self.files.push(HostFile { path: path.to_owned(), source: source.to_owned(), mode: 0o755 });
    }
}

/// A command for the host.
#[derive(Debug, Clone)]
pub struct HostCommand(pub(crate) Run);

impl HostCommand {
    /// A command with its arguments, killed after ten minutes.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self(Run { argv, env: BTreeMap::new(), timeout_s: 600 })
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// After this time the command and everything it started is killed.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.0.timeout_s = timeout.as_secs();
        self
    }
}

/// A running KVM host.
#[derive(Debug)]
pub struct EmulatedHost {
    qemu: Child,
    connection: Connection,
    kernel_version: String,
    // Holds the socket and the image for as long as QEMU runs.
    _scratch: TempDir,
}

impl EmulatedHost {
    /// Boots a host and waits until it takes commands.
    ///
    /// Tries again if it does not come up: QEMU 7.2, Debian 12's, can run a breakpoint that Linux has already
    /// patched away on another CPU (fixed in 8.1, "accel/tcg: Always lock pages before translation"), and Linux
    /// patches most while it boots. Seen once in twenty boots on a busy machine.
    pub fn start(spec: &HostSpec) -> Result<Self> {
        for _ in 1..BOOT_ATTEMPTS {
            match Self::start_once(spec) {
                Ok(host) => return Ok(host),
                Err(error) => eprintln!("==> The emulated host did not come up; trying again\n{error:#}"),
            }
        }
        Self::start_once(spec)
    }

    fn start_once(spec: &HostSpec) -> Result<Self> {
        // Not below the repository: the path of a Unix socket may have 107 bytes at most.
        let scratch = tempfile::Builder::new().prefix("laterna-host-").tempdir()?;
        let initramfs = scratch.path().join("initramfs");
        image::write(spec, &initramfs).context("Cannot write the host's initramfs")?;
        if let Some(directory) = spec.console_log.parent() {
            fs::create_dir_all(directory)?;
        }
        let socket = scratch.path().join("control");
        let mut qemu = Qemu(Some(spawn_qemu(spec, &initramfs, &socket)?));
        let stream = qemu.connect(&socket, &spec.console_log)?;
        let (connection, kernel_version) = Connection::open(stream, &spec.console_log, BOOT_TIMEOUT)?;
        let qemu = qemu.0.take().context("QEMU is gone")?;
        Ok(Self { qemu, connection, kernel_version, _scratch: scratch })
    }

    /// The release of the host's kernel, as `uname -r` has it.
    #[must_use]
    pub fn kernel_version(&self) -> &str {
        &self.kernel_version
    }

    /// Starts a command. Dropping what is returned kills it.
    pub fn run(&self, command: &HostCommand) -> Result<Running> {
        self.connection.run(&command.0)
    }

    /// Runs a command to its end and hands its output on as it comes.
    pub fn stream(&self, command: &HostCommand, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit> {
        let mut running = self.run(command)?;
        loop {
            match running.next_event()? {
                Event::Stdout(bytes) => out.write_all(&bytes).and_then(|()| out.flush())?,
                Event::Stderr(bytes) => err.write_all(&bytes).and_then(|()| err.flush())?,
                Event::Exited(exit) => return Ok(exit),
            }
        }
    }
}

impl Drop for EmulatedHost {
    fn drop(&mut self) {
        end(&mut self.qemu);
    }
}

/// QEMU until the host is up: killed if that fails.
struct Qemu(Option<Child>);

impl Qemu {
    fn connect(&mut self, socket: &Path, console_log: &Path) -> Result<UnixStream> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("QEMU did not open the control socket in 30 s");
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
            if let Some(status) = self.0.as_mut().map(Child::try_wait).transpose()?.flatten() {
                let log = fs::read_to_string(qemu_log(console_log)).unwrap_or_default();
                anyhow::bail!("QEMU ended at once ({status}): {}", log.trim());
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if let Some(qemu) = &mut self.0 {
            end(qemu);
        }
    }
}

fn end(qemu: &mut Child) {
    // Nothing in the host outlives it, so there is nothing to shut down in order.
    let _ = qemu.kill();
    let _ = qemu.wait();
}

fn qemu_log(console_log: &Path) -> PathBuf {
    console_log.with_extension("qemu.log")
}

fn spawn_qemu(spec: &HostSpec, initramfs: &Path, socket: &Path) -> Result<Child> {
    let log = qemu_log(&spec.console_log);
    let log = File::create(&log).with_context(|| format!("Cannot write {}", log.display()))?;
    // `tsc=reliable`: the emulated clocks drift apart and Linux would drop the TSC, and kvm-clock with it.
    // `panic=-1` with `-no-reboot`: a host that panics ends QEMU, so that it is noticed.
    let append = "console=ttyS0 tsc=reliable panic=-1 mitigations=off no_timer_check rdinit=/init";
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-M", "q35"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"])
        .args(["-smp", &spec.cpus.to_string(), "-m", &format!("{}M", spec.memory_mib)])
        .arg("-serial")
        .arg(format!("file:{}", spec.console_log.display()))
        .arg("-chardev")
        .arg(format!("socket,id=control,path={},server=on,wait=on", socket.display()))
        .args(["-device", "virtio-serial-pci", "-device"])
        .arg(format!("virtserialport,chardev=control,name={}", crate::protocol::PORT_NAME))
        .arg("-kernel")
        .arg(&spec.kernel.vmlinuz)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", append])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn().context("Cannot run qemu-system-x86_64; `cargo xtask setup` installs it")
}
