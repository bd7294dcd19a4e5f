//! `cargo xtask fuzz [TARGET]`: fuzzes what a guest can reach.
//!
//! The targets are binaries of the package in `tests/fuzz`, linked with libFuzzer, built with coverage
//! instrumentation on the stable compiler (what `cargo fuzz` does needs a nightly one).

use crate::paths;
use crate::process::{cargo, run, step};
use crate::test::Tally;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// All targets: binaries of `tests/fuzz`. Add new ones here.
const TARGETS: [&str; 2] = ["virtio_fs", "pci_registers"];

/// How long each target runs as part of the tests, in seconds.
const TEST_SECONDS: u32 = 60;

/// Instrumentation of libFuzzer's kind (LLVM "SanitizerCoverage"); debug assertions, since a bug must show.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

const TARGET_TRIPLE: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One of the targets; all, if none is given
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long to fuzz each target
    #[arg(long, value_name = "SECONDS", default_value_t = TEST_SECONDS)]
    seconds: u32,
}

pub(crate) fn run_targets(arguments: &Arguments) -> Result<ExitCode> {
    if !package().exists() {
        bail!("There are no fuzz targets yet: {} is missing", package().display());
    }
    let targets =
        TARGETS.into_iter().filter(|target| arguments.target.as_deref().is_none_or(|only| only == *target));
    let tally = fuzz(targets, arguments.seconds)?;
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The fuzzing that is part of the tests.
pub(crate) fn for_tests() -> Result<Tally> {
    if !package().exists() {
        return Ok(Tally::default());
    }
    fuzz(TARGETS.into_iter(), TEST_SECONDS)
}

fn package() -> PathBuf {
    paths::repository().join("tests/fuzz/Cargo.toml")
}

fn fuzz(targets: impl Iterator<Item = &'static str>, seconds: u32) -> Result<Tally> {
    step("Building the fuzz targets");
    let directory = paths::cache().join("fuzz");
    let mut build = cargo();
    build.args(["build", "--release", "--bins", "--target", TARGET_TRIPLE, "--manifest-path"]).arg(package());
    build
        .arg("--target-dir")
        .arg(directory.join("target"))
        .args(["--config", "profile.release.debug-assertions=true"]);
    build.args(["--config", "profile.release.overflow-checks=true"]);
    run(build.env("RUSTFLAGS", INSTRUMENTATION))?;
    let mut tally = Tally::default();
    for target in targets {
        step(&format!("Fuzzing {target} for {seconds} s"));
        let corpus = directory.join("corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("Cannot make {}", corpus.display()))?;
        let mut command =
            Command::new(directory.join("target").join(TARGET_TRIPLE).join("release").join(target));
        command
            .arg(&corpus)
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=10", "-rss_limit_mb=2048"]);
        command
            .arg("-print_final_stats=1")
            .arg(format!("-artifact_prefix={}/{target}-", directory.display()));
        match run(&mut command) {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                eprintln!("error: {error:#}");
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}
