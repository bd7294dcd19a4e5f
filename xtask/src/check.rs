//! `cargo xtask check`: everything about the code that needs no running of it.

use crate::process::{cargo, run, step};
use anyhow::{Result, bail};

pub(crate) fn run_all() -> Result<()> {
    step("Formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    step("Lints");
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "--deny",
        "warnings",
    ]))?;
    step("Documentation");
    // Private items are documented for those who work here, so links to them are good.
    let flags = "-Dwarnings -Arustdoc::private-intra-doc-links";
    let mut doc = cargo();
    run(doc
        .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", flags))?;
    step("Dependencies: bans, licences, sources");
    if !cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success()) {
        bail!("cargo-deny is missing; run `cargo install --locked cargo-deny`");
    }
    // Not advisories: their database is not always in reach, and a new one is no fault of a change.
    run(cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}
