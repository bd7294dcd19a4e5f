//! `cargo xtask demo`: a guest reads a token that is rotated in front of the user's eyes.
//!
//! The rotating is done by the same program on the KVM host, which is emulated where this machine's KVM cannot boot
//! guests: see `tests/src/bin/demo.rs`.

use crate::host::{command, start};
use crate::process::step;
use crate::{build, paths, setup};
use anyhow::Result;
use std::io;
use std::process::{Command, ExitCode};
use std::time::Duration;
use tests::assets::{ENVIRONMENT_VARIABLE, HOST_DIRECTORY};

pub(crate) fn run() -> Result<ExitCode> {
    setup::run_setup()?;
    let assets = build::assets()?;
    let is_success = if assets.has_good_kvm() {
        step("This machine's KVM can boot guests");
        let program = assets.directory.join("demo");
        Command::new(program).env(ENVIRONMENT_VARIABLE, &assets.directory).status()?.success()
    } else {
        step("This machine's KVM cannot boot guests, so QEMU emulates a host that can");
        let host = start(&assets.host_spec(paths::host_console())?)?;
        let program = command([format!("{HOST_DIRECTORY}/demo")]).timeout(Duration::from_secs(300));
        host.stream(&program, &mut io::stdout(), &mut io::stderr())?.success()
    };
    Ok(if is_success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
