//! The registers of a hardware-reduced ACPI machine: sleep control, sleep status and reset (ACPI 6.5 §4.8.3.7, §4.8.3.6).

use crate::{BusDevice, GuestEvent, GuestEventSink};

/// Offset of the sleep control register, one byte.
pub const SLEEP_CONTROL_OFFSET: u64 = 0;
/// Offset of the sleep status register, one byte.
pub const SLEEP_STATUS_OFFSET: u64 = 1;
/// Offset of the reset register, one byte.
pub const RESET_OFFSET: u64 = 2;
/// Length of the register block in bytes.
pub const LEN: u64 = 3;

/// What the driver writes to the reset register (FADT field `RESET_VALUE`).
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5 (soft off), as the DSDT's `_S5_` gives it.
pub const SLEEP_TYPE_S5: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// The three registers behind consecutive I/O ports.
pub struct PowerRegisters {
    sink: GuestEventSink,
}

impl std::fmt::Debug for PowerRegisters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PowerRegisters").finish_non_exhaustive()
    }
}

impl PowerRegisters {
    /// Registers that report to `sink`.
    pub fn new(sink: GuestEventSink) -> Self {
        Self { sink }
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Nothing to report: no wake status, and control and reset are write-only in effect.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        match offset {
            SLEEP_CONTROL_OFFSET
                if value & SLEEP_ENABLE != 0
                    && (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK == SLEEP_TYPE_S5 =>
            {
                (self.sink)(GuestEvent::PowerOff);
            }
            RESET_OFFSET if value == RESET_VALUE => (self.sink)(GuestEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    fn events_of(writes: &[(u64, &[u8])]) -> Vec<GuestEvent> {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        let registers = PowerRegisters::new(Box::new(move |event| sink.lock().push(event)));
        for (offset, data) in writes {
            registers.write(*offset, data);
        }
        events.lock().clone()
    }

    #[test]
    fn s5_powers_off_and_reset_value_resets() {
        assert_eq!(events_of(&[(0, &[0x20 | 5 << 2])]), [GuestEvent::PowerOff]);
        assert_eq!(events_of(&[(2, &[1])]), [GuestEvent::Reset]);
    }

    #[test]
    fn other_values_and_widths_do_nothing() {
        assert_eq!(
            events_of(&[(0, &[5 << 2]), (0, &[0x20]), (2, &[0]), (2, &[1, 0]), (1, &[0xff]), (2, &[])]),
            []
        );
    }
}
