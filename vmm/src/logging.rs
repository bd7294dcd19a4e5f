//! Logs: lines on stderr, as text or as JSON objects. The guest's console alone is on stdout.

use std::io::{self, Write};
use std::sync::OnceLock;

use clap::ValueEnum;
use env_logger::Builder;
use env_logger::fmt::Formatter;
use log::{LevelFilter, Record};
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
    let _ = writeln!(io::stderr().lock(), "{line}");
}
