//! The connection to PID 1 of the emulated host: many commands over one stream.

use crate::protocol::{Exit, Kind, Run, read_frame, write_frame};
use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// How much longer than the host itself we wait for a command that is over time.
const GRACE: Duration = Duration::from_secs(60);

/// Something that happened to a command.
#[derive(Debug)]
pub enum Event {
    /// It wrote this on standard output.
    Stdout(Vec<u8>),
    /// It wrote this on standard error.
    Stderr(Vec<u8>),
    /// It is over; the last event.
    Exited(Exit),
}

/// Commands that run, by number. `None` once the host is gone, so that nothing waits for it.
type Commands = Arc<Mutex<Option<BTreeMap<u32, Sender<Event>>>>>;

#[derive(Debug)]
pub(super) struct Connection {
    stream: Arc<Mutex<UnixStream>>,
    commands: Commands,
    last_command: Mutex<u32>,
    console_log: PathBuf,
}

impl Connection {
    /// Waits until the host says that it is ready; also returns the release of its kernel.
    pub(super) fn open(stream: UnixStream, console_log: &Path, timeout: Duration) -> Result<(Self, String)> {
        let mut reader = BufReader::new(stream.try_clone()?);
        stream.set_read_timeout(Some(timeout))?;
        let ready = read_frame(&mut reader).ok().flatten().filter(|frame| frame.kind == Kind::Ready);
        let Some(ready) = ready else {
            return Err(anyhow!("The emulated host did not come up.\n{}", console_tail(console_log)));
        };
        stream.set_read_timeout(None)?;
        let commands: Commands = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let dispatcher = Arc::clone(&commands);
        thread::Builder::new().name("host-frames".into()).spawn(move || {
            dispatch(&mut reader, &dispatcher);
            *dispatcher.lock() = None;
        })?;
        let stream = Arc::new(Mutex::new(stream));
        let connection =
            Self { stream, commands, last_command: Mutex::new(0), console_log: console_log.to_owned() };
        Ok((connection, String::from_utf8_lossy(&ready.payload).into_owned()))
    }

    pub(super) fn run(&self, request: &Run) -> Result<Running> {
        let number = {
            let mut last = self.last_command.lock();
            *last = last.wrapping_add(1);
            *last
        };
        let (sender, events) = mpsc::channel();
        if let Some(commands) = self.commands.lock().as_mut() {
            commands.insert(number, sender);
        }
        let running = Running {
            number,
            events,
            stream: Arc::clone(&self.stream),
            deadline: Instant::now() + Duration::from_secs(request.timeout_s) + GRACE,
            name: request.argv.join(" "),
            is_over: false,
            console_log: self.console_log.clone(),
        };
        let payload = serde_json::to_vec(request)?;
        write_frame(&mut *self.stream.lock(), Kind::Run, number, &payload)
            .map_err(|error| running.host_is_gone(&format!("cannot be written to: {error}")))?;
        Ok(running)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Ends the dispatching thread; fails only when the stream is closed already.
        let _ = self.stream.lock().shutdown(Shutdown::Both);
    }
}

/// Hands frames to their commands until the stream ends.
fn dispatch(reader: &mut impl Read, commands: &Commands) {
    while let Ok(Some(frame)) = read_frame(reader) {
        let event = match frame.kind {
            Kind::Stdout => Event::Stdout(frame.payload),
            Kind::Stderr => Event::Stderr(frame.payload),
            Kind::Exit => match serde_json::from_slice(&frame.payload) {
                Ok(exit) => Event::Exited(exit),
                Err(_) => return,
            },
            Kind::Ready | Kind::Run | Kind::Kill => return,
        };
        let is_last = matches!(event, Event::Exited(_));
        let mut commands = commands.lock();
        let Some(commands) = commands.as_mut() else { return };
        // The receiver is gone when nobody waits for this command any more.
        if commands.get(&frame.command).is_some_and(|sender| sender.send(event).is_err()) || is_last {
            commands.remove(&frame.command);
        }
    }
}

/// A command that runs in the host.
#[derive(Debug)]
pub struct Running {
    number: u32,
    events: Receiver<Event>,
    stream: Arc<Mutex<UnixStream>>,
    deadline: Instant,
    name: String,
    is_over: bool,
    console_log: PathBuf,
}

impl Running {
    /// Waits for the next event. An error means that the host is gone.
    pub fn next_event(&mut self) -> Result<Event> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.events.recv_timeout(left) {
            Ok(event) => {
                self.is_over = matches!(event, Event::Exited(_));
                Ok(event)
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.host_is_gone("ended")),
            Err(RecvTimeoutError::Timeout) => Err(self.host_is_gone("does not answer any more")),
        }
    }

    /// Kills the command and everything it started; its `Exited` event follows.
    pub fn kill(&self) -> Result<()> {
        write_frame(&mut *self.stream.lock(), Kind::Kill, self.number, &[])
            .context("The emulated host is gone")
    }

    fn host_is_gone(&self, how: &str) -> anyhow::Error {
        anyhow!("The emulated host {how} while it ran `{}`.\n{}", self.name, console_tail(&self.console_log))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            // Fails when the host is gone, and the command with it.
            let _ = self.kill();
        }
    }
}

fn console_tail(console_log: &Path) -> String {
    let console = fs::read(console_log).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines = console.lines().collect::<Vec<_>>();
    let tail = lines.iter().skip(lines.len().saturating_sub(30)).copied().collect::<Vec<_>>();
    format!("The last lines of its console ({}):\n{}", console_log.display(), tail.join("\n"))
}
