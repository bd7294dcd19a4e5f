//! The command line: clap structs into specs, one file a subcommand.

mod doctor;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::logging::{self, LogFormat};
use crate::spec::VmSpec;

/// Exit code of a failure of Laterna itself.
const FAILURE: u8 = 1;
/// Exit code of a mistake in the arguments.
const USAGE: u8 = 2;

/// Boots a microVM that sees Kubernetes projected volumes as its host does: never stale.
#[derive(Debug, Parser)]
#[command(name = "laterna", version, propagate_version = true)]
struct Arguments {
    /// Least important messages to log on stderr.
    #[arg(long, global = true, value_enum, default_value = "info")]
    log_level: LogLevel,
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArguments>),
    Doctor(doctor::DoctorArguments),
}

/// Everything from the process's arguments to its exit code.
pub fn main() -> ExitCode {
    main_with(|_| {})
}

/// [`main`], with a last word on the spec of `laterna run` for what the command line does not offer.
pub fn main_with(adjust: impl FnOnce(&mut VmSpec)) -> ExitCode {
    let arguments = Arguments::parse();
    logging::start(arguments.log_level.into(), arguments.log_format);
    let code = match arguments.command {
        Command::Run(arguments) => run::run(*arguments, adjust),
        Command::Doctor(arguments) => doctor::run(&arguments),
    };
    ExitCode::from(code)
}
