//! A function's 256 bytes of configuration space (PCI Local Bus 3.0 §6.1): header, one memory BAR, capabilities.

use std::ops::Range;

const LEN: usize = 256;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const COMMAND_INTX_DISABLE_HIGH: u8 = 1 << 2;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// What a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class, subclass, programming interface: `0xCCSSPP`.
    pub class: u32,
    /// Subsystem ID (the subsystem vendor is `vendor`).
    pub subsystem: u16,
}

/// Registers with a mask of the bits that the driver may change.
#[derive(Debug, Clone)]
pub struct Configuration {
    registers: [u8; LEN],
    writable: [u8; LEN],
    next_capability: usize,
    last_capability_pointer: usize,
    bar_len: u32,
}

impl Configuration {
    /// A type 0 header without BAR and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut configuration = Self {
            registers: [0; LEN],
            writable: [0; LEN],
            next_capability: FIRST_CAPABILITY,
            last_capability_pointer: CAPABILITIES_POINTER,
            bar_len: 0,
        };
        let [prog_if, subclass, class, _] = identity.class.to_le_bytes();
        configuration.put(0x00, &identity.vendor.to_le_bytes());
        configuration.put(0x02, &identity.device.to_le_bytes());
        configuration.put(0x08, &[identity.revision, prog_if, subclass, class]);
        configuration.put(0x2c, &identity.vendor.to_le_bytes());
        configuration.put(0x2e, &identity.subsystem.to_le_bytes());
        configuration.allow(COMMAND, &[COMMAND_MEMORY | COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE_HIGH]);
        // Interrupt line: a scratch register of the operating system.
        configuration.allow(0x3c, &[0xff]);
        configuration
    }

    /// Makes BAR 0 a 32-bit, non-prefetchable memory BAR of `len` bytes (a power of two) at `address`.
    pub fn set_bar(&mut self, address: u32, len: u32) {
        self.bar_len = len;
        self.put(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(len - 1)).to_le_bytes());
    }

    /// Appends a capability: `body` follows its ID and next pointer; `writable` masks the body's bits. Returns the
    /// offset of the capability. Panics in no case: a capability that does not fit is left out and gives offset 0.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let offset = self.next_capability;
        if offset + 2 + body.len() > LEN {
            return 0;
        }
        let Ok(pointer) = u8::try_from(offset) else { return 0 };
        self.put(self.last_capability_pointer, &[pointer]);
        self.put(offset, &[id, 0]);
        self.put(offset + 2, body);
        self.allow(offset + 2, writable);
        self.put(STATUS, &[STATUS_CAPABILITIES]);
        self.last_capability_pointer = offset + 1;
        self.next_capability = (offset + 2 + body.len()).next_multiple_of(4);
        offset
    }

    /// The addresses that BAR 0 decodes now; none while the driver has memory decoding off.
    pub fn decoded_bar(&self) -> Option<Range<u64>> {
        if self.bar_len == 0 || self.byte(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        let start = u64::from(self.dword(BAR0) & !(self.bar_len - 1));
        Some(start..start + u64::from(self.bar_len))
    }

    /// Reads registers; beyond the end `data` stays as it is.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (value, register) in data.iter_mut().zip(self.registers.iter().skip(offset)) {
            *value = *register;
        }
    }

    /// Writes the writable bits of registers.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let targets = self.registers.iter_mut().zip(&self.writable).skip(offset);
        for (value, (register, writable)) in data.iter().zip(targets) {
            *register = (*register & !writable) | (value & writable);
        }
    }

    /// One register of four bytes.
    pub fn dword(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn byte(&self, offset: usize) -> u8 {
        let mut bytes = [0; 1];
        self.read(offset, &mut bytes);
        u8::from_le_bytes(bytes)
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (register, value) in self.registers.iter_mut().skip(offset).zip(bytes) {
            *register = *value;
        }
    }

    fn allow(&mut self, offset: usize, bits: &[u8]) {
        for (mask, value) in self.writable.iter_mut().skip(offset).zip(bits) {
            *mask = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration() -> Configuration {
        let mut configuration = Configuration::new(Identity {
            vendor: 0x1af4,
            device: 0x105a,
            revision: 1,
            class: 0x01_80_00,
            subsystem: 0x105a,
        });
        configuration.set_bar(0xc000_0000, 0x8000);
        configuration
    }

    #[test]
    fn bar_reports_its_size_and_moves() {
        let mut configuration = configuration();
        assert_eq!(configuration.decoded_bar(), None);
        configuration.write(COMMAND, &[COMMAND_MEMORY]);
        assert_eq!(configuration.decoded_bar(), Some(0xc000_0000..0xc000_8000));
        configuration.write(BAR0, &u32::MAX.to_le_bytes());
        assert_eq!(configuration.dword(BAR0), 0xffff_8000);
        configuration.write(BAR0, &0xd000_1234_u32.to_le_bytes());
        assert_eq!(configuration.decoded_bar(), Some(0xd000_0000..0xd000_8000));
    }

    #[test]
    fn identity_is_read_only_and_reads_past_the_end_leave_data_alone() {
        let mut configuration = configuration();
        configuration.write(0, &[0xff; LEN + 8]);
        assert_eq!(configuration.dword(0), 0x105a_1af4);
        let mut data = [0xaa; 4];
        configuration.read(LEN - 2, &mut data);
        assert_eq!(data, [0, 0, 0xaa, 0xaa]);
        configuration.read(usize::MAX, &mut data);
    }

    #[test]
    fn capabilities_chain_until_the_space_is_full() {
        let mut configuration = configuration();
        let first = configuration.add_capability(0x11, &[1, 2, 3, 4], &[0xff]);
        let second = configuration.add_capability(0x09, &[5], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(configuration.dword(CAPABILITIES_POINTER) & 0xff, 0x40);
        assert_eq!(configuration.dword(first) & 0xffff, 0x4811);
        assert_eq!(configuration.add_capability(0x09, &[0; 200], &[]), 0);
    }
}
