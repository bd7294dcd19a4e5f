//! `cargo xtask fuzz [TARGET]`: fuzzes what a guest can reach.
//!
//! The targets are binaries of the package in `tests/fuzz`, linked with libFuzzer and built with coverage
//! instrumentation by the stable compiler (`cargo fuzz` needs a nightly one).

use crate::process::{cargo, run, step};
use crate::test::Tally;
use crate::{paths, setup};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

/// All targets: binaries of `tests/fuzz`. Add new ones here.
const TARGETS: [&str; 2] = ["virtio_fs", "pci_registers"];

/// How long each target runs as part of the tests, in seconds.
const TEST_SECONDS: u32 = 60;

/// Instrumentation for libFuzzer (LLVM "SanitizerCoverage"). The profile has debug assertions, since a bug must show.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// Naming the target keeps build scripts and procedural macros free of instrumentation.
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
    setup::run_setup()?;
    let wanted = |target: &&str| arguments.target.as_deref().is_none_or(|only| only == *target);
    let tally = fuzz(TARGETS.into_iter().filter(wanted), arguments.seconds)?;
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The fuzzing that is part of the tests; each target counts as one of them.
pub(crate) fn for_tests() -> Result<Tally> {
    fuzz(TARGETS.into_iter(), TEST_SECONDS)
}

fn fuzz(targets: impl Iterator<Item = &'static str>, seconds: u32) -> Result<Tally> {
    step("Building the fuzz targets");
    let directory = paths::cache().join("fuzz");
    let build_directory = directory.join("target");
    let mut build = cargo();
    build.args(["build", "--package", "fuzz", "--features", "libfuzzer", "--bins"]);
    build.args(["--profile", "emulated", "--target", TARGET_TRIPLE, "--target-dir"]).arg(&build_directory);
    run(build.env("RUSTFLAGS", INSTRUMENTATION))?;
    let programs = build_directory.join(TARGET_TRIPLE).join("emulated");
    let mut tally = Tally::default();
    for target in targets {
        step(&format!("Fuzzing {target} for {seconds} s"));
        match fuzz_one(&programs.join(target), &directory, target, seconds) {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                eprintln!("error: {error:#}");
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

/// Runs a target on its corpus, which is kept and grows; an input that fails is left beside it.
fn fuzz_one(program: &Path, directory: &Path, target: &str, seconds: u32) -> Result<()> {
    let corpus = directory.join("corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("Cannot make {}", corpus.display()))?;
    let mut command = Command::new(program);
    command.arg(&corpus).arg(format!("-max_total_time={seconds}"));
    // Long inputs from the start: a list of a few actions reaches little.
    command.arg("-len_control=0");
    // A hang or unbounded memory is a failure, too: seconds for one input, MiB.
    command.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    command.arg(format!("-artifact_prefix={}/{target}-", directory.display()));
    run(&mut command)
}
