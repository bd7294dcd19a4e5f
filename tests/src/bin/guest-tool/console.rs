//! PID 1 of a guest: runs the commands that arrive on the console, one per line.
//!
//! The guest says `@@ready` once it is up. A command is the line `NUMBER COMMAND`; the guest answers
//! `@@begin NUMBER`, whatever `sh -c COMMAND` writes, and `@@end NUMBER STATUS`, each marker on a line that the
//! guest begins itself. The numbers make an answer impossible to mistake for another command's. The terminal is
//! raw, so nothing is echoed and bytes arrive as they were written. Kernel messages are kept off the console once
//! the guest is up, panics excepted.

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use rustix::termios::{InputModes, OptionalActions, tcgetattr, tcsetattr};
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

pub(crate) fn init() -> Result<()> {
    if let Err(error) = serve() {
        eprintln!("guest-tool: {error:#}");
    }
    super::power::power_off()
}

fn serve() -> Result<()> {
    set_up()?;
    let console = OpenOptions::new().read(true).write(true).open("/dev/console").context("No console")?;
    let mut terminal = tcgetattr(&console).context("The console is no terminal")?;
    terminal.make_raw();
    // A person's Enter key ends a line, too.
    terminal.input_modes |= InputModes::ICRNL;
    tcsetattr(&console, OptionalActions::Flush, &terminal)?;
    write!(&console, "\n@@ready\n")?;
    for line in BufReader::new(console.try_clone()?).split(b'\n') {
        let line = line.context("Cannot read the console")?;
        let line = String::from_utf8_lossy(&line);
        let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        let (number, command) = match line.split_once(' ') {
            Some((number, command)) if is_number(number) => (number, command),
            // What a person types has no number.
            _ if line.trim().is_empty() => continue,
            _ => ("0", &*line),
        };
        write!(&console, "\n@@begin {number}\n")?;
        let status = shell(&console, command)?;
        write!(&console, "\n@@end {number} {status}\n")?;
    }
    Ok(())
}

/// Runs a command with its output on the console; a death by signal N counts as 128 + N, as in a shell.
fn shell(console: &File, command: &str) -> Result<i32> {
    use std::os::unix::process::ExitStatusExt;
    let status = Command::new("/bin/sh")
        .args(["-c", command])
        .env("PATH", "/bin")
        .env("HOME", "/")
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console.try_clone()?)
        .status()
        .context("Cannot run /bin/sh")?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn set_up() -> Result<()> {
    let table: [(&str, &str, &CStr); 4] = [
        ("proc", "/proc", c""),
        ("sysfs", "/sys", c""),
        ("devtmpfs", "/dev", c""),
        ("tmpfs", "/tmp", c"mode=1777"),
    ];
    for (kind, target, options) in table {
        mount(kind, target, kind, MountFlags::empty(), options)
            .with_context(|| format!("Cannot mount {kind} on {target}"))?;
    }
    // Emergencies only: a message in the middle of a marker would be taken for output.
    fs::write("/proc/sys/kernel/printk", "1")?;
    Command::new("/bin/busybox").args(["--install", "-s", "/bin"]).status().context("Cannot run busybox")?;
    for module in fs::read_to_string("/etc/modules")?.lines() {
        let object =
            File::open(format!("/lib/modules/{module}.ko")).with_context(|| format!("No {module}.ko"))?;
        // Refused, for example, where the device is off: worth a line, not the end of the guest.
        if let Err(error) = rustix::system::finit_module(&object, c"", 0) {
            eprintln!("guest-tool: Cannot load {module}: {error}");
        }
    }
    Ok(())
}
