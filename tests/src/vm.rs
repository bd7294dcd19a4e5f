//! What a VM test is written with: start a VM, talk to its guest, watch it end.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use tests::vm::Vm;
//! let vm = Vm::builder().cpus(2).memory("256M").projected("tag=token,path=/tmp/volume").spawn()?;
//! vm.wait_for_boot()?;
//! vm.sh("mount -t virtiofs token /mnt")?;
//! assert_eq!(vm.sh("cat /mnt/token")?, "secret");
//! # Ok(()) }
//! ```
//! Every wait has a time-out that only something broken reaches; its error says what was waited for and shows the
//! end of the console and of the log. Dropping a [`Vm`] kills it.

mod terminal;
mod transcript;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use transcript::Transcript;

pub use terminal::Terminal;

/// How long a wait may take unless it says otherwise. An emulated host is slow, and a broken one is rare.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// The kernel's part of the command line. `panic=-1`: at once, so that a test sees how a guest ends.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 tsc=reliable";

/// The directory with `laterna`, kernels and initramfs ([`crate::assets`]).
pub fn assets() -> Result<PathBuf> {
    let directory = std::env::var_os(crate::assets::ENVIRONMENT_VARIABLE).map(PathBuf::from);
    directory.context("VM tests need a KVM host and their assets: run `cargo xtask test`, which brings both")
}

/// A VM to be started.
#[derive(Debug, Clone)]
pub struct VmBuilder {
    program: String,
    kernel: String,
    cpus: u32,
    memory: String,
    command_line: String,
    arguments: Vec<String>,
    is_on_terminal: bool,
}

impl VmBuilder {
    /// Another program of the assets instead of `laterna`.
    #[must_use]
    pub fn program(mut self, name: &str) -> Self {
        name.clone_into(&mut self.program);
        self
    }

    /// Another kernel of the assets instead of `vmlinuz`.
    #[must_use]
    pub fn kernel(mut self, name: &str) -> Self {
        name.clone_into(&mut self.kernel);
        self
    }

    /// Number of vCPUs; 1 unless said.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// RAM as on the command line of `laterna`; 256M unless said.
    #[must_use]
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn append(mut self, text: &str) -> Self {
        self.command_line = format!("{} {text}", self.command_line);
        self
    }

    /// Adds a `--projected` volume.
    #[must_use]
    pub fn projected(self, volume: &str) -> Self {
        self.arguments(["--projected", volume])
    }

    /// Adds arguments of `laterna run`.
    #[must_use]
    pub fn arguments<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// Puts the console on a terminal of its own instead of on pipes.
    #[must_use]
    pub fn on_terminal(mut self) -> Self {
        self.is_on_terminal = true;
        self
    }

    /// Starts the VM.
    pub fn spawn(self) -> Result<Vm> {
        let assets = assets()?;
        let program = assets.join(&self.program);
        let mut command = Command::new(&program);
        if self.is_on_terminal {
            // Makes the terminal the controlling one of a new session, as it is for a person; then becomes laterna.
            command = Command::new("setsid");
            command.arg("-c").arg(&program);
        }
        command
            .arg("run")
            .arg("--kernel")
            .arg(assets.join(&self.kernel))
            .arg("--initramfs")
            .arg(assets.join("guest.cpio"))
            .args([
                "--cmdline",
                &self.command_line,
                "--cpus",
                &self.cpus.to_string(),
                "--memory",
                &self.memory,
            ])
            .args(&self.arguments)
            .stderr(Stdio::piped());
        Vm::start(&mut command, self.is_on_terminal)
    }
}

/// What a command in the guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// What it wrote, standard error included.
    pub text: String,
    /// Its exit status; 128 + N if signal N ended it.
    pub status: i32,
}

/// A running VM.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console_input: File,
    console: Transcript,
    log: Transcript,
    terminal: Option<Terminal>,
    commands: std::cell::Cell<u32>,
    exit: Option<ExitStatus>,
}

impl Vm {
    /// A VM with one vCPU, 256 MiB, the stock kernel and the test guest.
    #[must_use]
    pub fn builder() -> VmBuilder {
        VmBuilder {
            program: "laterna".to_owned(),
            kernel: "vmlinuz".to_owned(),
            cpus: 1,
            memory: "256M".to_owned(),
            command_line: COMMAND_LINE.to_owned(),
            arguments: Vec::new(),
            is_on_terminal: false,
        }
    }

    fn start(command: &mut Command, is_on_terminal: bool) -> Result<Self> {
        let program = Path::new(command.get_program()).display().to_string();
        let terminal = if is_on_terminal { Some(Terminal::open()?) } else { None };
        match &terminal {
            Some(terminal) => command.stdin(terminal.user_side()?).stdout(terminal.user_side()?),
            None => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
        };
        let mut child = command.spawn().with_context(|| format!("Cannot run {program}"))?;
        let (input, output) = match &terminal {
            Some(terminal) => (terminal.controller()?, terminal.controller()?),
            None => {
                let pipes = child.stdin.take().zip(child.stdout.take()).context("A child without pipes")?;
                (File::from(OwnedFd::from(pipes.0)), File::from(OwnedFd::from(pipes.1)))
            }
        };
        let errors = child.stderr.take().context("A child without standard error")?;
        Ok(Self {
            child,
            console_input: input,
            console: Transcript::of(output)?,
            log: Transcript::of(File::from(OwnedFd::from(errors)))?,
            terminal,
            commands: 0.into(),
            exit: None,
        })
    }

    /// Waits until the guest takes commands.
    pub fn wait_for_boot(&self) -> Result<()> {
        self.wait_for_boots(1)
    }

    /// Waits until the guest has come up `times` times since the VM was started.
    pub fn wait_for_boots(&self, times: usize) -> Result<()> {
        let what = format!("boot number {times} of the guest");
        self.wait_for_console(&what, |text| (text.matches("@@ready\n").count() >= times).then_some(()))
    }

    /// Runs a shell command in the guest and returns what it wrote; fails if it does.
    pub fn sh(&self, command: &str) -> Result<String> {
        let output = self.try_sh(command)?;
        ensure!(
            output.status == 0,
            "`{command}` in the guest exited with {}: {}",
            output.status,
            output.text
        );
        Ok(output.text)
    }

    /// Runs a shell command in the guest.
    pub fn try_sh(&self, command: &str) -> Result<Output> {
        let number = self.start_sh(command)?;
        let (begin, end) = (format!("\n@@begin {number}\n"), format!("\n@@end {number} "));
        self.wait_for_console(&format!("the end of `{command}` in the guest"), |text| {
            let (_, rest) = text.split_once(&begin)?;
            let (text, rest) = rest.split_once(&end)?;
            let (status, _) = rest.split_once('\n')?;
            Some(Output { text: text.to_owned(), status: status.parse().ok()? })
        })
    }

    /// Starts a shell command that the guest does not survive, or that is watched otherwise; returns its number.
    pub fn start_sh(&self, command: &str) -> Result<u32> {
        ensure!(!command.contains('\n'), "A command for the guest is one line");
        let number = self.commands.get() + 1;
        self.commands.set(number);
        writeln!(&self.console_input, "{number} {command}")
            .map_err(|error| self.stuck(&format!("Cannot write to the console: {error}")))?;
        Ok(number)
    }

    /// Sends bytes to the guest's console as they are.
    pub fn type_keys(&self, keys: &[u8]) -> Result<()> {
        (&self.console_input).write_all(keys).context("Cannot write to the console")
    }

    /// Waits until `find` finds something in all that the console has shown.
    pub fn wait_for_console<T>(&self, what: &str, find: impl FnMut(&str) -> Option<T>) -> Result<T> {
        self.console.wait(TIMEOUT, find).ok_or_else(|| self.stuck(&format!("Waited in vain for {what}")))
    }

    /// Waits until `find` finds something in all that `laterna` has written on standard error.
    pub fn wait_for_log<T>(&self, what: &str, find: impl FnMut(&str) -> Option<T>) -> Result<T> {
        self.log
            .wait(TIMEOUT, find)
            .ok_or_else(|| self.stuck(&format!("Waited in vain for {what} in the log")))
    }

    /// The lines that `laterna` has written on standard error.
    #[must_use]
    pub fn stderr_lines(&self) -> Vec<String> {
        self.log.text().lines().map(str::to_owned).collect()
    }

    /// Sends `laterna` a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("No process id")?;
        kill_process(pid, signal).context("Cannot signal laterna")
    }

    /// Waits until `laterna` exits; returns its exit code.
    pub fn wait_exit(&mut self) -> Result<i32> {
        let deadline = Instant::now() + TIMEOUT;
        while self.exit.is_none() {
            if Instant::now() > deadline {
                return Err(self.stuck("Waited in vain for laterna to exit"));
            }
            self.exit = self.child.try_wait()?;
            thread::sleep(Duration::from_millis(10));
        }
        let exit = self.exit.context("No exit status")?;
        exit.code().ok_or_else(|| self.stuck(&format!("laterna was ended by signal {:?}", exit.signal())))
    }

    /// The process id of `laterna`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The terminal that the console is on, if it is.
    #[must_use]
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// Resident memory of `laterna` in KiB without mappings of `ram_kib` and more, which are the guest's.
    pub fn resident_kib_without(&self, ram_kib: u64) -> Result<u64> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.pid())).context("Cannot read smaps")?;
        let value = |line: &str, key: &str| -> Option<u64> {
            line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok()
        };
        let (mut size, mut total) = (0, 0);
        for line in smaps.lines() {
            size = value(line, "Size:").unwrap_or(size);
            total += value(line, "Rss:").filter(|_| size < ram_kib).unwrap_or(0);
        }
        if total == 0 {
            bail!("laterna has no memory: it has ended");
        }
        Ok(total)
    }

    /// An error with the last of what the guest and `laterna` said.
    #[must_use]
    pub fn stuck(&self, what: &str) -> anyhow::Error {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or(" gone");
        let (console, log) = (self.console.tail(), self.log.tail());
        anyhow::anyhow!(
            "{what}.\n--- the console's last lines ---\n{console}\n--- laterna's last lines (its state:{state}) ---\n{log}"
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
