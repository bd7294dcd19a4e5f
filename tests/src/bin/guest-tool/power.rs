//! Every way in which a guest ends.

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::system::RebootCommand;
use std::fs::{self, File};
use std::io::Read;

/// `EV_KEY` and `KEY_POWER` of Linux `input-event-codes.h`.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// `struct input_event` on 64-bit machines: time (16 bytes), type, code (u16 each), value (i32).
const EVENT_BYTES: usize = 24;

/// Powers off by ACPI; what a `poweroff` without init system does.
pub(crate) fn power_off() -> Result<()> {
    end(RebootCommand::PowerOff)
}

/// Reboots the way the kernel command line says (`reboot=`): by ACPI, or by a triple fault with `reboot=t`.
pub(crate) fn reboot() -> Result<()> {
    end(RebootCommand::Restart)
}

/// Panics the kernel.
pub(crate) fn panic() -> Result<()> {
    fs::write("/proc/sys/kernel/sysrq", "1")?;
    fs::write("/proc/sysrq-trigger", "c").context("Cannot crash the kernel")
}

fn end(how: RebootCommand) -> Result<()> {
    rustix::fs::sync();
    rustix::system::reboot(how).context("reboot(2) failed")
}

/// Waits until the power button is pressed, then powers off.
pub(crate) fn wait_power_button() -> Result<()> {
    let mut devices = Vec::new();
    for entry in fs::read_dir("/dev/input").context("This guest has no input devices")? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("event")) {
            devices.push(File::open(&path).with_context(|| format!("Cannot open {}", path.display()))?);
        }
    }
    anyhow::ensure!(!devices.is_empty(), "This guest has no power button: /dev/input has no event device");
    println!("waiting for the power button on {} devices", devices.len());
    loop {
        let mut polled = devices.iter().map(|d| PollFd::new(d, PollFlags::IN)).collect::<Vec<_>>();
        poll(&mut polled, None)?;
        let ready = polled.iter().map(|p| !p.revents().is_empty()).collect::<Vec<_>>();
        for (device, _) in devices.iter_mut().zip(ready).filter(|(_, is_ready)| *is_ready) {
            if power_key_pressed(device)? {
                println!("power button pressed");
                return power_off();
            }
        }
    }
}

fn power_key_pressed(device: &mut File) -> Result<bool> {
    let mut events = [0; EVENT_BYTES * 16];
    let len = device.read(&mut events)?;
    let pressed = events.get(..len).unwrap_or_default().chunks_exact(EVENT_BYTES).any(|event| {
        let field = |at: usize| event.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
        field(16) == Some(EV_KEY)
            && field(18) == Some(KEY_POWER)
            && event.get(20).is_some_and(|value| *value == 1)
    });
    Ok(pressed)
}
