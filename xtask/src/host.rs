//! `cargo xtask host -- COMMAND...`: a command in the emulated KVM host.

use crate::process::step;
use crate::{build, paths, setup};
use anyhow::{Context, Result};
use std::io;
use std::process::ExitCode;
use std::time::Duration;
use tests::assets::{ENVIRONMENT_VARIABLE, HOST_DIRECTORY};
use tests::host::{EmulatedHost, HostCommand};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Kill the command after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// RAM of the host in MiB
    #[arg(long, value_name = "MIB", default_value_t = 9216)]
    memory: u32,
    /// CPUs of the host (default: 1; with more, QEMU before 8.1 is not reliable)
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// The command; `sh -c '...'` for more than one
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::run_setup()?;
    let assets = build::assets()?;
    let mut spec = assets.host_spec(paths::host_console())?;
    spec.memory_mib = arguments.memory;
    spec.cpus = arguments.cpus.unwrap_or(spec.cpus);
    let host = start(&spec)?;
    let command = command(arguments.command.iter().cloned()).timeout(Duration::from_secs(arguments.timeout));
    let exit = host.stream(&command, &mut io::stdout(), &mut io::stderr())?;
    if exit.timed_out {
        eprintln!("error: The command was killed after {} s (--timeout)", arguments.timeout);
    }
    // A shell's convention for a command that a signal ended.
    let code = exit.code.unwrap_or_else(|| 128 + exit.signal.unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// A command that finds the assets.
pub(crate) fn command(argv: impl IntoIterator<Item = String>) -> HostCommand {
    HostCommand::new(argv).env(ENVIRONMENT_VARIABLE, HOST_DIRECTORY)
}

/// Starts a host and says so.
pub(crate) fn start(spec: &tests::host::HostSpec) -> Result<EmulatedHost> {
    step(&format!("Starting the emulated KVM host (console: {})", spec.console_log.display()));
    let host = EmulatedHost::start(spec).context("Cannot start the emulated KVM host")?;
    step(&format!("The host is up, Linux {}", host.kernel_version()));
    Ok(host)
}
