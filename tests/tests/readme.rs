//! Promise: the README's example works as it stands there.

use anyhow::{Context, Result, ensure};
use std::process::Command;
use tests::vm::Vm;

const README: &str = include_str!("../../README.md");

/// The code block that is marked with `mark`.
fn block(mark: &str) -> Result<&'static str> {
    let (_, rest) =
        README.split_once(&format!("```sh {mark}\n")).with_context(|| format!("No block {mark}"))?;
    Ok(rest.split_once("```").context("An endless block")?.0)
}

/// Runs a block on this host.
fn on_host(mark: &str) -> Result<()> {
    let status = Command::new("sh").args(["-euc", block(mark)?]).status()?;
    ensure!(status.success(), "Block {mark} failed: {status}");
    Ok(())
}

#[test]
fn the_example_shows_both_tokens() -> Result<()> {
    on_host("host")?;
    let arguments = block("run")?.split_whitespace().skip_while(|word| *word != "--memory");
    let vm = Vm::builder().arguments(arguments.skip(2)).spawn()?;
    vm.wait_for_boot()?;
    let guest = block("guest")?.trim().replace('\n', " && ");
    assert_eq!(vm.sh(&guest)?, "token-1\n");
    on_host("rotate")?;
    assert_eq!(vm.sh("cat /mnt/demo/token; stat -Lc %a /mnt/demo/token")?, "token-2\n440\n");
    Ok(())
}
