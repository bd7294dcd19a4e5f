//! Static builds of our programs for the emulated host and for guests.

use crate::paths;
use crate::process::{cargo, step};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tests::assets::Assets;

/// Naming the target keeps build scripts and procedural macros out of `RUSTFLAGS`.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the programs and collects the assets of whole-VM tests.
pub(crate) fn assets() -> Result<Assets> {
    step("Building static programs");
    let mut command = cargo();
    command.args(["build", "--package", "vmm", "--package", "tests", "--bins"]);
    let programs = executables(&mut command)?;
    Assets::prepare(
        &paths::cache(),
        programs.into_iter().map(|p| (p.name, p.path)).collect::<BTreeMap<_, _>>(),
    )
}

/// Builds the whole-VM tests; each is a libtest program.
pub(crate) fn vm_tests() -> Result<Vec<Executable>> {
    step("Building the VM tests");
    let mut command = cargo();
    command.args(["test", "--no-run", "--package", "tests", "--test", "*"]);
    let mut tests = executables(&mut command)?;
    tests.retain(|executable| executable.is_test);
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

/// A program that cargo built.
#[derive(Debug)]
pub(crate) struct Executable {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) is_test: bool,
}

/// Runs a cargo build with static linking and returns what it made.
fn executables(command: &mut Command) -> Result<Vec<Executable>> {
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    let output = command
        .args(["--profile", "emulated", "--target", TARGET, "--message-format", "json-render-diagnostics"])
        .env("RUSTFLAGS", format!("{flags} -Ctarget-feature=+crt-static"))
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot run cargo")?;
    if !output.status.success() {
        bail!("The build failed; the compiler's messages are above");
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages are not text")?;
    Ok(text.lines().filter_map(executable_of).collect())
}

/// The program in a line of cargo's JSON messages, if the line tells of one.
fn executable_of(line: &str) -> Option<Executable> {
    let message = serde_json::from_str::<Value>(line).ok()?;
    let path = message.get("executable")?.as_str()?;
    let name = message.get("target")?.get("name")?.as_str()?.to_owned();
    let is_test = message.get("profile")?.get("test")?.as_bool()?;
    Some(Executable { name, path: path.into(), is_test })
}
