//! Promise: however a guest ends, `laterna run` ends too, with the exit code documented for that end, and leaves the
//! terminal as it was.

use anyhow::{Context, Result};
use rustix::process::Signal;
use tests::vm::{Terminal, Vm, VmBuilder};

/// Exit codes as documented in `vmm/src/lifecycle.rs`.
const POWER_OFF: i32 = 0;
const RESET: i32 = 3;
const PANIC: i32 = 4;
const TRIPLE_FAULT: i32 = 5;
const STOPPED: i32 = 6;

fn booted(builder: VmBuilder) -> Result<Vm> {
    let vm = builder.spawn()?;
    vm.wait_for_boot()?;
    Ok(vm)
}

/// The exit code after the guest has run `command`.
fn exit_after(builder: VmBuilder, command: &str) -> Result<i32> {
    let mut vm = booted(builder)?;
    vm.start_sh(command)?;
    vm.wait_exit()
}

#[test]
fn power_off_is_success() -> Result<()> {
    assert_eq!(exit_after(Vm::builder(), "guest-tool poweroff")?, POWER_OFF);
    Ok(())
}

#[test]
fn power_off_with_many_vcpus_is_success() -> Result<()> {
    assert_eq!(exit_after(Vm::builder().cpus(4), "guest-tool poweroff")?, POWER_OFF);
    Ok(())
}

#[test]
fn reboot_ends_the_vm_when_told_to_exit() -> Result<()> {
    let builder = Vm::builder().arguments(["--on-reboot", "exit"]);
    assert_eq!(exit_after(builder, "guest-tool reboot")?, RESET);
    Ok(())
}

/// A stock kernel on hardware-reduced ACPI tries EFI and then the BIOS, unless it is told this.
#[test]
fn reboot_by_the_acpi_register_ends_the_vm_when_told_to_exit() -> Result<()> {
    assert_eq!(exit_after(Vm::builder().append("reboot=acpi"), "guest-tool reboot")?, RESET);
    Ok(())
}

#[test]
fn reboot_boots_again_when_told_to_reset() -> Result<()> {
    let mut vm = booted(Vm::builder().cpus(2).arguments(["--on-reboot", "reset"]))?;
    vm.sh("touch /tmp/from-the-first-boot")?;
    vm.start_sh("guest-tool reboot")?;
    vm.wait_for_boots(2)?;
    assert_ne!(vm.try_sh("test -e /tmp/from-the-first-boot")?.status, 0);
    assert_eq!(vm.sh("nproc")?.trim(), "2");
    vm.start_sh("guest-tool poweroff")?;
    assert_eq!(vm.wait_exit()?, POWER_OFF);
    Ok(())
}

#[test]
fn panic_has_its_own_exit_code() -> Result<()> {
    assert_eq!(exit_after(Vm::builder(), "guest-tool panic")?, PANIC);
    Ok(())
}

#[test]
fn triple_fault_has_its_own_exit_code() -> Result<()> {
    assert_eq!(exit_after(Vm::builder().append("reboot=t"), "guest-tool reboot")?, TRIPLE_FAULT);
    Ok(())
}

#[test]
fn sigterm_presses_the_power_button() -> Result<()> {
    let mut vm = booted(Vm::builder())?;
    vm.start_sh("guest-tool wait-power-button")?;
    vm.wait_for_console("the guest to listen", |text| {
        text.contains("waiting for the power button").then_some(())
    })?;
    vm.signal(Signal::TERM)?;
    vm.wait_for_console("the power button", |text| text.contains("power button pressed").then_some(()))?;
    assert_eq!(vm.wait_exit()?, POWER_OFF);
    Ok(())
}

#[test]
fn second_signal_stops_a_guest_that_ignores_the_button() -> Result<()> {
    let mut vm = booted(Vm::builder().arguments(["--shutdown-grace", "3600"]))?;
    // Two different ones, since equal signals that are pending merge into one.
    vm.signal(Signal::INT)?;
    vm.signal(Signal::TERM)?;
    assert_eq!(vm.wait_exit()?, STOPPED);
    Ok(())
}

#[test]
fn end_of_the_grace_stops_a_guest_that_ignores_the_button() -> Result<()> {
    let mut vm = booted(Vm::builder().arguments(["--shutdown-grace", "1"]))?;
    vm.signal(Signal::TERM)?;
    assert_eq!(vm.wait_exit()?, STOPPED);
    Ok(())
}

/// Runs `end` on a VM whose console is a terminal; the terminal must be raw before and restored after.
fn terminal_is_restored(end: impl FnOnce(&Vm) -> Result<()>, code: i32) -> Result<()> {
    // Every new terminal has the same settings.
    let before = Terminal::open()?.settings()?;
    let mut vm = booted(Vm::builder().on_terminal())?;
    let settings = |vm: &Vm| vm.terminal().context("no terminal")?.settings();
    assert_ne!(settings(&vm)?, before, "the terminal must be raw while the guest runs");
    end(&vm)?;
    assert_eq!(vm.wait_exit()?, code);
    assert_eq!(settings(&vm)?, before);
    Ok(())
}

#[test]
fn terminal_is_restored_after_power_off() -> Result<()> {
    terminal_is_restored(|vm| vm.start_sh("guest-tool poweroff").map(|_| ()), POWER_OFF)
}

#[test]
fn terminal_is_restored_after_the_escape_sequence() -> Result<()> {
    // Ctrl-A x, as in QEMU.
    terminal_is_restored(|vm| vm.type_keys(b"\x01x"), STOPPED)
}

#[test]
fn terminal_is_restored_after_a_panic() -> Result<()> {
    terminal_is_restored(|vm| vm.start_sh("guest-tool panic").map(|_| ()), PANIC)
}

/// An interrupt that comes before the guest has set its interrupt controllers up must not reach it as an exception.
#[test]
fn a_button_pressed_while_the_kernel_boots_does_not_harm_it() -> Result<()> {
    for delay_ms in [100, 400, 700, 1000, 1300] {
        let mut vm = Vm::builder().arguments(["--shutdown-grace", "5"]).spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        vm.signal(Signal::TERM)?;
        assert_eq!(vm.wait_exit()?, STOPPED, "after {delay_ms} ms");
    }
    Ok(())
}

/// The event loop serves the guest: it must not wait for who does not read its log.
#[test]
fn a_log_that_nobody_reads_does_not_stop_anything() -> Result<()> {
    let (unread, stderr) = rustix::pipe::pipe()?;
    let mut command = std::process::Command::new(tests::vm::assets()?.join("laterna"));
    command.arg("run").arg("--kernel").arg(tests::vm::assets()?.join("vmlinuz"));
    // Without `panic=` the guest, which has no root file system, halts.
    command.args(["--serial", "off", "--cmdline", "console=ttyS0"]);
    let mut laterna = command.stderr(stderr).stdin(std::process::Stdio::null()).spawn()?;
    let pid = rustix::process::Pid::from_child(&laterna);
    // Before it is up, the signal ends it.
    std::thread::sleep(std::time::Duration::from_secs(1));
    // Some 160 bytes a line into a pipe of 64 KiB.
    for _ in 0..1000 {
        rustix::process::kill_process(pid, Signal::USR1)?;
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    rustix::process::kill_process(pid, Signal::QUIT)?;
    assert_eq!(laterna.wait()?.code(), Some(STOPPED));
    drop(unread);
    Ok(())
}
