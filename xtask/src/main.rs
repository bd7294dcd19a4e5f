//! `cargo xtask`: every chore of this repository. One file per subcommand.

mod build;
mod check;
mod demo;
mod fuzz;
mod host;
mod paths;
mod process;
mod setup;
mod test;

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
    /// Watch a guest read a token that is rotated on the host
    Demo,
    /// Run all tests; those that need a VM run in an emulated KVM host if this machine's KVM cannot boot guests
    Test(test::Arguments),
    /// Check formatting, lints, documentation and dependencies
    Check,
    /// Fuzz what a guest can reach
    Fuzz(fuzz::Arguments),
    /// Run a command in the emulated KVM host, with the test assets in /laterna
    Host(host::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Setup => setup::run_setup().map(|()| ExitCode::SUCCESS),
        Chore::Demo => demo::run(),
        Chore::Test(arguments) => test::run(&arguments),
        Chore::Check => check::run_all().map(|()| ExitCode::SUCCESS),
        Chore::Fuzz(arguments) => fuzz::run_targets(&arguments),
        Chore::Host(arguments) => host::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
