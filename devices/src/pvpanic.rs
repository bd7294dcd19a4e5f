//! pvpanic: the guest reports a kernel panic by one write (QEMU docs/specs/pvpanic.rst).
//!
//! It is the I/O port form, which guests find as ACPI device `QEMU0001`: it costs no PCI slot.

use crate::{BusDevice, GuestEvent, GuestEventSink};

/// The ACPI hardware ID that the guest's driver matches (Linux drivers/misc/pvpanic/pvpanic-mmio.c).
pub const ACPI_HID: &str = "QEMU0001";
/// Length of the register block in bytes.
pub const LEN: u64 = 1;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// The one register: reading gives the events it takes, writing reports one.
pub struct Pvpanic {
    sink: GuestEventSink,
}

impl std::fmt::Debug for Pvpanic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pvpanic").finish_non_exhaustive()
    }
}

impl Pvpanic {
    /// A register that reports to `sink`.
    pub fn new(sink: GuestEventSink) -> Self {
        Self { sink }
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let [value] = data {
            *value = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        if value & PANICKED != 0 {
            (self.sink)(GuestEvent::Panic);
        } else if value & CRASH_LOADED != 0 {
            (self.sink)(GuestEvent::CrashLoaded);
        }
    }
}
