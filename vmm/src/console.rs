//! Laterna's own terminal as the guest's serial line: raw mode, the escape sequence, output that stops can interrupt.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use crate::lifecycle::ExitLatch;

/// Starts the escape sequence: Ctrl-A.
const ESCAPE: u8 = 0x01;
/// Ends the VM when it follows [`ESCAPE`].
const QUIT: u8 = b'x';

/// Says how to leave, when a person is there to read it.
pub const ESCAPE_HELP: &str = "Ctrl-A x stops the VM at once, Ctrl-A Ctrl-A sends one Ctrl-A";

/// Where the serial line leads.
#[derive(Debug, Clone)]
pub enum Output {
    /// To our stdout.
    Stdout,
    /// To a file.
    File(Arc<File>),
    /// Nowhere.
    Off,
}

impl Output {
    /// Makes or truncates the file that takes the guest's output. A FIFO that nobody reads is an error, not a wait.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn to_file(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
        Ok(Self::File(Arc::new(options.open(path)?)))
    }

    /// A writer for one boot's serial port; it gives up when `exit` has a reason.
    pub fn writer(&self, exit: &Arc<ExitLatch>) -> Box<dyn Write + Send> {
        Box::new(OutputWriter { output: self.clone(), exit: Arc::clone(exit) })
    }
}

struct OutputWriter {
    output: Output,
    exit: Arc<ExitLatch>,
}

impl OutputWriter {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.output {
            Output::Stdout => Some(rustix::stdio::stdout()),
            Output::File(file) => Some(file.as_fd()),
            Output::Off => None,
        }
    }
}

impl Write for OutputWriter {
    /// Writes, waiting for room if need be: a slow reader slows the guest, and nothing piles up.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(fd) = self.fd() else { return Ok(bytes.len()) };
        loop {
            let waited = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None);
            if waited.is_ok() {
                match rustix::io::write(fd, bytes) {
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    other => return Ok(other?),
                }
            }
            if self.exit.reason().is_some() {
                // Nobody will read it; the vCPU must get on to its end.
                return Ok(bytes.len());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the user's input asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// Stop the VM.
    Quit,
    /// There will be no more input.
    End,
}

/// Our stdin, in raw mode while it is a terminal of which we are in the foreground.
#[derive(Debug, Default)]
pub struct Stdin {
    is_escaped: bool,
    is_terminal: bool,
}

impl Stdin {
    /// Takes stdin over. A terminal goes into raw mode until [`restore_terminal`].
    ///
    /// # Errors
    /// When the terminal's mode cannot be set.
    pub fn take() -> io::Result<Self> {
        let is_terminal = enter_raw_mode()?;
        Ok(Self { is_escaped: false, is_terminal })
    }

    /// Whether a person is typing.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Reads up to `capacity` bytes; call it when stdin is readable.
    pub fn read(&mut self, capacity: usize) -> Input {
        let mut bytes = [0; 64];
        let Some(buffer) = bytes.get_mut(..capacity.min(64)) else { return Input::Bytes(Vec::new()) };
        // Not by std's Stdin: it would read ahead, and nothing would say that its buffer has more.
        match rustix::io::read(rustix::stdio::stdin(), &mut *buffer) {
            Ok(0) => Input::End,
            Ok(len) => self.filter(buffer.get(..len).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => Input::Bytes(Vec::new()),
            Err(_) => Input::End,
        }
    }

    fn filter(&mut self, bytes: &[u8]) -> Input {
        if !self.is_terminal {
            return Input::Bytes(bytes.to_vec());
        }
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match (std::mem::take(&mut self.is_escaped), *byte) {
                (true, QUIT) => return Input::Quit,
                (false, ESCAPE) => self.is_escaped = true,
                (_, byte) => out.push(byte),
            }
        }
        Input::Bytes(out)
    }
}

static SAVED_MODE: Mutex<Option<Termios>> = Mutex::new(None);

/// Sets raw mode if stdin is a terminal that we may change; false when it is not.
fn enter_raw_mode() -> io::Result<bool> {
    let stdin = rustix::stdio::stdin();
    // In the background, changing the mode would stop us, and the input is not ours.
    if !io::stdin().is_terminal() || tcgetpgrp(stdin).ok() != Some(getpgrp()) {
        return Ok(false);
    }
    let saved = tcgetattr(stdin)?;
    let mut raw = saved.clone();
    raw.make_raw();
    // Our log lines end in a bare newline; the guest's carriage returns do no harm beside it.
    raw.output_modes = saved.output_modes;
    *SAVED_MODE.lock() = Some(saved);
    tcsetattr(stdin, OptionalActions::Now, &raw)?;
    Ok(true)
}

/// Puts the terminal back as it was; any number of calls, from any thread.
pub fn restore_terminal() {
    if let Some(saved) = SAVED_MODE.lock().take() {
        // Fails only when the terminal is gone.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &saved);
    }
}

/// Restores the terminal when dropped, and before a panic's message is printed.
#[derive(Debug)]
pub struct TerminalGuard(());

impl TerminalGuard {
    /// Guards from here on.
    pub fn new() -> Self {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore_terminal();
            print(info);
        }));
        Self(())
    }
}

impl Default for TerminalGuard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        restore_terminal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_found_across_reads() {
        let mut stdin = Stdin { is_escaped: false, is_terminal: true };
        assert_eq!(stdin.filter(b"ab\x01"), Input::Bytes(b"ab".to_vec()));
        assert_eq!(stdin.filter(b"\x01c\x01y"), Input::Bytes(b"\x01cy".to_vec()));
        assert_eq!(stdin.filter(b"\x01"), Input::Bytes(vec![]));
        assert_eq!(stdin.filter(b"x"), Input::Quit);
    }

    #[test]
    fn piped_input_has_no_escape_sequence() {
        let mut stdin = Stdin { is_escaped: false, is_terminal: false };
        assert_eq!(stdin.filter(b"\x01x"), Input::Bytes(b"\x01x".to_vec()));
    }
}
