//! `cargo xtask test [FILTER]`: all tests, with one line at the end that counts them.

use crate::build::Executable;
use crate::host::{command, start};
use crate::process::{cargo, step};
use crate::{build, fuzz, paths, setup};
use ::tests::assets::{Assets, ENVIRONMENT_VARIABLE};
use ::tests::host::EmulatedHost;
use anyhow::{Context, Result};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// A whole test program, which may have many slow tests.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(3600);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose names contain this; the name of a file in tests/tests means that file
    filter: Option<String>,
    /// Run only the tests that need no VM
    #[arg(long, conflicts_with = "vm_only")]
    unit_only: bool,
    /// Run only the tests in VMs
    #[arg(long)]
    vm_only: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::run_setup()?;
    let filter = arguments.filter.as_deref();
    let mut total = Tally::default();
    if !arguments.vm_only {
        total.add(unit_tests(filter)?);
    }
    if !arguments.unit_only {
        total.add(vm_tests(filter)?);
    }
    if filter.is_none() && !arguments.vm_only {
        total.add(fuzz::for_tests()?);
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many tests passed and failed. A program that ends without a verdict counts as one that failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Takes a verdict of libtest: `test result: ok. 3 passed; 0 failed; ...`.
    fn read(&mut self, line: &str) {
        let Some(verdict) = line.trim().strip_prefix("test result: ") else { return };
        for part in verdict.split([';', '.']) {
            match part.trim().split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// Makes sure that a failed program shows.
    fn close(mut self, is_success: bool) -> Self {
        if !is_success && self.failed == 0 {
            self.failed = 1;
        }
        self
    }
}

fn unit_tests(filter: Option<&str>) -> Result<Tally> {
    step("Tests that need no VM");
    let mut total = Tally::default();
    // Of the package `tests` only the library: its other tests are those that need a VM.
    for arguments in [&["vmm", "devices", "projection", "xtask", "fuzz"][..], &["tests"]] {
        let mut command = cargo();
        command.args(["test", "--no-fail-fast"]);
        command.args(arguments.iter().flat_map(|package| ["--package", package]));
        command.args((arguments == ["tests"]).then_some("--lib")).args(filter);
        total.add(tally_of(&mut command)?);
    }
    Ok(total)
}

/// Runs a test program here and shows its output.
fn tally_of(command: &mut Command) -> Result<Tally> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("Cannot run the tests")?;
    let output = child.stdout.take().context("A child without output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        tally.read(&line);
    }
    Ok(tally.close(child.wait()?.success()))
}

fn vm_tests(filter: Option<&str>) -> Result<Tally> {
    let assets = build::assets()?;
    let mut programs = build::vm_tests()?;
    if programs.iter().any(|program| Some(program.name.as_str()) == filter) {
        programs.retain(|program| Some(program.name.as_str()) == filter);
    }
    let machine = Machine::with_kvm(&assets, &programs)?;
    let mut total = Tally::default();
    for program in &programs {
        step(&format!("VM tests: {}", program.name));
        // One at a time: the machine is small, and each test wants a VM of its own.
        let mut arguments = vec!["--test-threads=1".to_owned(), "--show-output".to_owned()];
        arguments.extend(filter.filter(|filter| *filter != program.name).map(str::to_owned));
        total.add(machine.run(program, &arguments)?);
    }
    Ok(total)
}

/// Where VM tests run.
enum Machine<'a> {
    /// Here: its KVM is good.
    Here(&'a Assets),
    /// In a host that we emulate.
    Emulated(EmulatedHost),
}

impl<'a> Machine<'a> {
    fn with_kvm(assets: &'a Assets, programs: &[Executable]) -> Result<Self> {
        if assets.has_good_kvm() {
            step("This machine's KVM can boot guests; the VM tests run here");
            return Ok(Self::Here(assets));
        }
        step("This machine's KVM cannot boot guests; the VM tests run in an emulated host");
        let mut spec = assets.host_spec(paths::host_console())?;
        for program in programs {
            spec.add_program(&path_in_host(program), &program.path);
        }
        Ok(Self::Emulated(start(&spec)?))
    }

    fn run(&self, program: &Executable, arguments: &[String]) -> Result<Tally> {
        match self {
            Self::Here(assets) => {
                let mut command = Command::new(&program.path);
                tally_of(command.args(arguments).env(ENVIRONMENT_VARIABLE, &assets.directory))
            }
            Self::Emulated(host) => {
                let argv = std::iter::once(path_in_host(program)).chain(arguments.iter().cloned());
                let mut output = TallyingOutput::default();
                let command = command(argv).timeout(PROGRAM_TIMEOUT);
                let exit = host.stream(&command, &mut output, &mut io::stderr())?;
                if exit.timed_out {
                    eprintln!("error: {} was not over after {PROGRAM_TIMEOUT:?}", program.name);
                }
                Ok(output.tally.close(exit.success()))
            }
        }
    }
}

fn path_in_host(program: &Executable) -> String {
    format!("/tests/{}", program.name)
}

/// Shows what is written to it and counts the verdicts.
#[derive(Debug, Default)]
struct TallyingOutput {
    line: Vec<u8>,
    tally: Tally,
}

impl TallyingOutput {
    fn count(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.tally.read(&String::from_utf8_lossy(&self.line));
                self.line.clear();
            } else {
                self.line.push(*byte);
            }
        }
    }
}

impl Write for TallyingOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write_all(bytes)?;
        self.count(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::{Tally, TallyingOutput};

    #[test]
    fn verdicts_are_counted_however_they_arrive() {
        let mut output = TallyingOutput::default();
        let text = "running 2 tests\ntest result: FAILED. 12 passed; 3 failed; 0 ignored; 1 measured\ntest result: ok. 1 ";
        output.count(text.as_bytes());
        output.count(b"passed; 0 failed; 0 ignored\n");
        assert_eq!(output.tally, Tally { passed: 13, failed: 3 });
    }

    #[test]
    fn a_program_that_dies_counts_as_failed() {
        assert_eq!(Tally::default().close(false), Tally { passed: 0, failed: 1 });
        assert_eq!(Tally { passed: 1, failed: 2 }.close(false), Tally { passed: 1, failed: 2 });
    }
}
