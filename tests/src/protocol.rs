//! The wire between the developer's machine and PID 1 of the emulated host (`host-init`), over a virtio-serial port.
//!
//! Frames in both directions: kind (1 byte), command number (u32, little endian), length (u32, little endian),
//! payload. Many commands may run at once; their frames carry their number. Either side takes the end of the
//! stream for the end of the host.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// Name of the virtio-serial port, as in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "laterna.control";

/// Payloads above this are refused, so that a torn stream is noticed instead of read for ever.
const MAX_PAYLOAD: u32 = 1 << 20;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From the host, once: it is up and takes commands. The payload is the kernel's version.
    Ready,
    /// To the host: run the command in the payload (JSON of [`Run`]).
    Run,
    /// To the host: kill this command and everything it started.
    Kill,
    /// From the host: bytes that the command wrote on its standard output.
    Stdout,
    /// From the host: bytes that the command wrote on its standard error.
    Stderr,
    /// From the host: the command is over (JSON of [`Exit`]); the last frame with its number.
    Exit,
}

const KINDS: [Kind; 6] = [Kind::Ready, Kind::Run, Kind::Kill, Kind::Stdout, Kind::Stderr, Kind::Exit];

/// One message.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// The command it is about; 0 for [`Kind::Ready`].
    pub command: u32,
    /// Depends on the kind.
    pub payload: Vec<u8>,
}

/// A command for the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments; the program is looked for in `PATH`.
    pub argv: Vec<String>,
    /// Added to the host's few environment variables.
    pub env: BTreeMap<String, String>,
    /// After this many seconds the command and everything it started is killed.
    pub timeout_s: u64,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit status, if it exited by itself.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was over.
    pub timed_out: bool,
}

impl Exit {
    /// Whether the command exited with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.timed_out
    }
}

/// Writes one frame.
pub fn write_frame(out: &mut impl Write, kind: Kind, command: u32, payload: &[u8]) -> io::Result<()> {
    let tag = KINDS.iter().position(|k| *k == kind).and_then(|i| u8::try_from(i).ok()).unwrap_or(u8::MAX);
    let len = u32::try_from(payload.len()).ok().filter(|len| *len <= MAX_PAYLOAD);
    let len = len.ok_or_else(|| invalid("a frame's payload is too long"))?;
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.push(tag);
    frame.extend_from_slice(&command.to_le_bytes());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(payload);
    out.write_all(&frame)?;
    out.flush()
}

/// Reads one frame; `None` at the end of the stream.
pub fn read_frame(input: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut tag = [0];
    if input.read(&mut tag)? == 0 {
        return Ok(None);
    }
    let [tag] = tag;
    let kind = *KINDS.get(usize::from(tag)).ok_or_else(|| invalid("a frame of unknown kind"))?;
    let mut word = [0; 4];
    input.read_exact(&mut word)?;
    let command = u32::from_le_bytes(word);
    input.read_exact(&mut word)?;
    let len = u32::from_le_bytes(word);
    if len > MAX_PAYLOAD {
        return Err(invalid("a frame's payload is too long"));
    }
    let mut payload = Vec::new();
    input.take(u64::from(len)).read_to_end(&mut payload)?;
    if u64::try_from(payload.len()).unwrap_or(u64::MAX) != u64::from(len) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame { kind, command, payload }))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::{Kind, read_frame, write_frame};

    #[test]
    fn frames_are_read_as_they_were_written() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Stdout, 7, b"one\0two").unwrap();
        write_frame(&mut wire, Kind::Exit, 8, b"").unwrap();
        let mut wire = wire.as_slice();
        let first = read_frame(&mut wire).unwrap().unwrap();
        assert_eq!(
            (first.kind, first.command, first.payload.as_slice()),
            (Kind::Stdout, 7, &b"one\0two"[..])
        );
        assert_eq!(read_frame(&mut wire).unwrap().unwrap().kind, Kind::Exit);
        assert!(read_frame(&mut wire).unwrap().is_none());
    }

    #[test]
    fn torn_and_absurd_frames_are_errors() {
        assert!(read_frame(&mut &[3, 0, 0, 0, 0, 9, 0, 0, 0, 1][..]).is_err());
        assert!(read_frame(&mut &[3, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..]).is_err());
        assert!(read_frame(&mut &[99, 0][..]).is_err());
    }
}
