//! PID 1 of the emulated KVM host: sets the machine up, then runs the commands that arrive on the control port.
//!
//! Three roles of one static binary. `host-init` (PID 1) prepares the machine, starts `host-init serve` and reaps
//! orphans. `host-init serve` talks [`tests::protocol`]. `host-init exec CGROUP ARGV...` enters the control group
//! of its command and becomes the command, so that everything a command starts can be killed together.
//!
//! The host powers off when its control port is closed at the other end: nobody is left to use it.

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, PidfdFlags, WaitOptions};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, thread};
use tests::protocol::{Exit, Kind, PORT_NAME, Run, read_frame, write_frame};

const CGROUPS: &str = "/sys/fs/cgroup";

fn main() {
    let arguments = env::args().collect::<Vec<_>>();
    let arguments = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    let result = match arguments.as_slice() {
        [_, "exec", cgroup, program, rest @ ..] => exec(cgroup, program, rest),
        [_, "serve"] => serve(),
        _ => init(),
    };
    if let Err(error) = result {
        eprintln!("host-init: {error:#}");
        std::process::exit(127);
    }
}

/// PID 1. Ends with the machine.
fn init() -> Result<()> {
    let outcome = set_up().and_then(|()| {
        let server =
            Command::new("/proc/self/exe").arg("serve").spawn().context("Cannot start the server")?;
        reap_until_exit_of(&server);
        Ok(())
    });
    if let Err(error) = outcome {
        eprintln!("host-init: {error:#}");
    }
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("Cannot power off")
}

fn reap_until_exit_of(server: &Child) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if u32::try_from(pid.as_raw_nonzero().get()) == Ok(server.id()) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

fn set_up() -> Result<()> {
    leave_rootfs()?;
    mount_all()?;
    run("/bin/busybox", &["--install", "-s", "/bin"])?;
    for module in fs::read_to_string("/etc/modules").unwrap_or_default().lines() {
        load_module(module)?;
    }
    run("/bin/ip", &["link", "set", "lo", "up"])?;
    run("/bin/hostname", &["kvm-host"])
}

/// Puts a bind mount of the initramfs over itself, since `pivot_root(2)`, which containers need, refuses the real one.
fn leave_rootfs() -> Result<()> {
    fs::create_dir_all("/root")?;
    fs::create_dir_all("/.root")?;
    rustix::mount::mount_bind("/", "/.root").context("Cannot bind the root directory")?;
    env::set_current_dir("/.root")?;
    rustix::mount::mount_move(".", "/").context("Cannot move the root directory")?;
    rustix::process::chroot(".").context("Cannot enter the new root directory")?;
    Ok(env::set_current_dir("/")?)
}

fn mount_all() -> Result<()> {
    // `devtmpfs` is needed before anything that opens a device; the order of the rest follows the nesting.
    let table = [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("devtmpfs", "/dev", ""),
        ("devpts", "/dev/pts", "mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/run", "mode=0755"),
        ("tmpfs", "/tmp", "mode=1777,size=75%"),
        ("cgroup2", CGROUPS, ""),
    ];
    for (kind, target, options) in table {
        fs::create_dir_all(target)?;
        let options = CString::new(options)?;
        mount(kind, target, kind, MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("Cannot mount {kind} on {target}"))?;
    }
    Ok(())
}

fn load_module(name: &str) -> Result<()> {
    let path = format!("/lib/modules/{name}.ko");
    let object = File::open(&path).with_context(|| format!("Cannot open {path}"))?;
    rustix::system::finit_module(&object, c"", 0)
        .with_context(|| format!("Cannot load the kernel module {name}"))
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status();
    let status = status.with_context(|| format!("Cannot run {program}"))?;
    if !status.success() {
        bail!("{program} {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}

/// Enters the control group, a session of its own, and the program. Returns only on failure.
fn exec(cgroup: &str, program: &str, arguments: &[&str]) -> Result<()> {
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0")
        .context("Cannot enter the command's control group")?;
    rustix::process::setsid().context("Cannot start a session")?;
    Err(Command::new(program).args(arguments).exec())
        .with_context(|| format!("Cannot run {program} in the host"))
}

/// The control port and the commands that run.
struct Server {
    port: Mutex<File>,
    /// Control group of each command that runs.
    running: Mutex<BTreeMap<u32, PathBuf>>,
}

fn serve() -> Result<()> {
    let port = control_port()?;
    let mut input =
        OpenOptions::new().read(true).write(true).open(&port).context("Cannot open the control port")?;
    let server = Arc::new(Server { port: Mutex::new(input.try_clone()?), running: Mutex::default() });
    let version = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    write_frame(&mut *server.port.lock(), Kind::Ready, 0, version.trim().as_bytes())?;
    while let Some(frame) = read_frame(&mut input).context("The control port is torn")? {
        match frame.kind {
            Kind::Run => {
                let request = serde_json::from_slice::<Run>(&frame.payload).context("A malformed command")?;
                let server = Arc::clone(&server);
                thread::spawn(move || server.command(frame.command, &request));
            }
            Kind::Kill => {
                if let Some(cgroup) = server.running.lock().get(&frame.command) {
                    kill(cgroup);
                }
            }
            _ => bail!("Unexpected frame {:?}", frame.kind),
        }
    }
    Ok(())
}

/// Finds the device node of the virtio-serial port; the kernel numbers them as it meets them.
fn control_port() -> Result<PathBuf> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME) {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("There is no virtio-serial port named {PORT_NAME}")
}

fn kill(cgroup: &Path) {
    // Fails only when the group is gone, and then so are its processes.
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
}

impl Server {
    fn send(&self, kind: Kind, command: u32, payload: &[u8]) {
        if let Err(error) = write_frame(&mut *self.port.lock(), kind, command, payload) {
            eprintln!("host-init: Cannot write to the control port: {error}");
        }
    }

    /// Runs one command from its start to its `Exit` frame.
    fn command(&self, id: u32, request: &Run) {
        let cgroup = Path::new(CGROUPS).join(format!("command-{id}"));
        let exit = self.supervise(id, request, &cgroup).unwrap_or_else(|error| {
            self.send(Kind::Stderr, id, format!("host-init: {error:#}\n").as_bytes());
            Exit { code: Some(127), signal: None, timed_out: false }
        });
        self.running.lock().remove(&id);
        // Fails when the command left a daemon behind, which may stay.
        let _ = fs::remove_dir(&cgroup);
        self.send(Kind::Exit, id, &serde_json::to_vec(&exit).unwrap_or_default());
    }

    fn supervise(&self, id: u32, request: &Run, cgroup: &Path) -> Result<Exit> {
        fs::create_dir(cgroup).context("Cannot make the command's control group")?;
        self.running.lock().insert(id, cgroup.to_owned());
        let mut child = Command::new("/proc/self/exe")
            .arg("exec")
            .arg(cgroup)
            .args(&request.argv)
            .env_clear()
            .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin:/laterna")
            .env("HOME", "/root")
            .envs(&request.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("Cannot start a process")?;
        let mut streams = Vec::new();
        streams.extend(child.stdout.take().map(|pipe| (Kind::Stdout, OwnedFd::from(pipe))));
        streams.extend(child.stderr.take().map(|pipe| (Kind::Stderr, OwnedFd::from(pipe))));
        let mut streams = Streams::new(streams)?;
        let timed_out = self.forward_until_exit(id, &child, &mut streams, request.timeout_s, cgroup)?;
        let status = child.wait()?;
        // What it wrote last. A daemon that keeps the pipes open is not waited for.
        streams.forward(|kind, bytes| self.send(kind, id, bytes));
        Ok(exit_of(status, timed_out))
    }

    /// Returns whether the time was over before the command was.
    fn forward_until_exit(
        &self,
        id: u32,
        child: &Child,
        streams: &mut Streams,
        timeout_s: u64,
        cgroup: &Path,
    ) -> Result<bool> {
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("A process without an id")?;
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let deadline = Instant::now() + Duration::from_secs(timeout_s);
        let mut timed_out = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && !timed_out {
                timed_out = true;
                kill(cgroup);
            }
            // After the kill the wait is for the exit only, which is certain to come.
            let wait = if timed_out { Duration::from_secs(1) } else { left };
            let exited = streams.wait(&process, wait)?;
            streams.forward(|kind, bytes| self.send(kind, id, bytes));
            if exited {
                return Ok(timed_out);
            }
        }
    }
}

fn exit_of(status: ExitStatus, timed_out: bool) -> Exit {
    Exit { code: status.code(), signal: status.signal(), timed_out }
}

/// The output pipes of a command, read without blocking.
struct Streams(Vec<(Kind, File)>);

impl Streams {
    fn new(pipes: Vec<(Kind, OwnedFd)>) -> Result<Self> {
        for (_, pipe) in &pipes {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self(pipes.into_iter().map(|(kind, pipe)| (kind, File::from(pipe))).collect()))
    }

    /// Waits for output, the exit of `process` or the time; says whether `process` has exited.
    fn wait(&self, process: &OwnedFd, timeout: Duration) -> Result<bool> {
        let mut polled = vec![PollFd::new(process, PollFlags::IN)];
        polled.extend(self.0.iter().map(|(_, pipe)| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        match poll(&mut polled, Some(&Timespec::try_from(timeout)?)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(polled.first().is_some_and(|process| !process.revents().is_empty()))
    }

    /// Hands on what is there now; forgets a pipe at its end.
    fn forward(&mut self, mut send: impl FnMut(Kind, &[u8])) {
        let mut buffer = vec![0; 1 << 16];
        self.0.retain_mut(|(kind, pipe)| {
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => return false,
                    Ok(len) => send(*kind, buffer.get(..len).unwrap_or_default()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        });
    }
}
