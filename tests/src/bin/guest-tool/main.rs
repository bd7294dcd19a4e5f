//! PID 1 of the test guests, and the tools that tests run in them.
//!
//! As `/init` it sets the guest up and then runs the commands that arrive on the console (see [`console`]); as
//! `guest-tool SUBCOMMAND` it is one of the tools below.

mod console;
mod freshness;
mod memory;
mod pagemap;
mod physical;
mod power;

use anyhow::{Result, bail};
use std::env;

fn main() {
    let arguments = env::args().collect::<Vec<_>>();
    let arguments = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    if let Err(error) = dispatch(&arguments) {
        eprintln!("guest-tool: {error:#}");
        std::process::exit(1);
    }
}

fn dispatch(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["/init", ..] => console::init(),
        [_, "touch-memory"] => memory::touch(),
        [_, "touch-physical", addresses @ ..] => physical::touch(addresses),
        [_, "wait-power-button"] => power::wait_power_button(),
        [_, "poweroff"] => power::power_off(),
        [_, "reboot"] => power::reboot(),
        [_, "panic"] => power::panic(),
        [_, "read", file] => freshness::read_once(file),
        [_, "read-loop", volume, files @ ..] => freshness::read_loop(volume, files),
        _ => bail!(
            "usage: guest-tool touch-memory | touch-physical ADDRESS.. | read FILE | read-loop DIR FILE.. \
             | wait-power-button | poweroff | reboot | panic"
        ),
    }
}
