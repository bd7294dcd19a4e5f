//! `cargo xtask`: every chore of this repository. One file per subcommand.

mod build;
mod host;
mod paths;
mod process;
mod setup;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Chores of the Laterna repository.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Install the Debian packages that everything else needs
    Setup,
    /// Run a command in the emulated KVM host, with the test assets in /laterna
    Host(host::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Setup => setup::run_setup().map(|()| ExitCode::SUCCESS),
        Chore::Host(arguments) => host::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
