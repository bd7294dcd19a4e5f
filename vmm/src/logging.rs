//! Logs: lines on stderr, as text or as JSON objects. The guest's console alone is on stdout.

use std::io::{self, Write};
use std::sync::OnceLock;

use clap::ValueEnum;
use env_logger::fmt::Formatter;
use env_logger::{Builder, Target};
use log::{LevelFilter, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Crates that log what a guest sends, as often as it likes and with its bytes.
const GUEST_DRIVEN: [&str; 3] = ["fuse_backend_rs", "virtio_queue", "vm_superio"];

/// Starts logging; later calls change nothing.
pub fn start(level: LevelFilter, format: LogFormat) {
    if FORMAT.set(format).is_err() {
        return;
    }
    let mut builder = Builder::new();
    builder.target(Target::Pipe(Box::new(Stderr)));
    builder.filter_level(level).format(move |out, record| match format {
        LogFormat::Text => text(out, record),
        LogFormat::Json => json(out, record),
    });
    for target in GUEST_DRIVEN {
        builder.filter_module(target, LevelFilter::Off);
    }
    // Fails only when a logger is there already, as in tests.
    let _ = builder.try_init();
}

fn text(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), record.args())
}

fn json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let line = serde_json::json!({
        "time": out.timestamp_millis().to_string(),
        "level": record.level().as_str(),
        "target": record.target(),
        "message": record.args().to_string(),
    });
    writeln!(out, "{line}")
}

/// stderr, as long as somebody reads it: a line that finds no room in time is dropped, since nothing may stop the event
/// loop, which serves the guest and its end.
struct Stderr;

/// How long a line may wait for room, in milliseconds.
const PATIENCE_MS: i64 = 100;
/// What a pipe that has room takes without blocking (POSIX: at least 512 bytes).
const PIPE_BUF: usize = 4096;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = rustix::stdio::stderr();
        let patience = Timespec { tv_sec: 0, tv_nsec: PATIENCE_MS * 1_000_000 };
        if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&patience))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(rustix::io::write(stderr, bytes.get(..PIPE_BUF).unwrap_or(bytes))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one line with a value that programs read, whatever the level.
pub fn report(message: &str, key: &str, value: &impl Serialize) {
    let Ok(value) = serde_json::to_value(value) else { return };
    let line = match FORMAT.get() {
        Some(LogFormat::Json) => {
            serde_json::json!({ "level": "INFO", "message": message, key: value }).to_string()
        }
        Some(LogFormat::Text) | None => format!("{message} {value}"),
    };
    // Nobody is told when stderr is gone.
    let _ = Stderr.write_all(format!("{line}\n").as_bytes());
}
