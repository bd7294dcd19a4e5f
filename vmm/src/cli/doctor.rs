//! `laterna doctor`.

use clap::{Args, ValueEnum};

use super::FAILURE;
use crate::doctor::{self, Report, Status};

/// Say whether this host can boot guests, and what is in the way.
///
/// Runs a few instructions under the host's KVM that every kernel executes. Exits with 0 when guests can boot, else
/// with 1.
#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// How the report looks.
    #[arg(long, value_enum, default_value = "text")]
    output: OutputFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Examines the host and prints the report; returns the exit code.
pub(super) fn run(arguments: &DoctorArguments) -> u8 {
    let report = doctor::examine();
    match arguments.output {
        OutputFormat::Text => print_text(&report),
        OutputFormat::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => print_line(&text),
            Err(error) => log::error!("The report cannot be written: {error}"),
        },
    }
    if report.can_boot_guests { 0 } else { FAILURE }
}

fn print_text(report: &Report) {
    for check in &report.checks {
        let mark = match check.status {
            Status::Pass => "ok  ",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        print_line(&format!("{mark}  {}: {}", check.name, check.detail));
        if !check.advice.is_empty() {
            print_line(&format!("      -> {}", check.advice));
        }
    }
    let verdict =
        if report.can_boot_guests { "This host can boot guests." } else { "This host cannot boot guests." };
    print_line(verdict);
}

/// println!, but a closed stdout is no panic.
fn print_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
