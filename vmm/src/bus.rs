//! Address ranges to devices, once for I/O ports and once for physical addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::BusDevice;

struct Range {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space. What no device answers reads as all ones and swallows writes, as on hardware.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, Range>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.ranges.keys()).finish()
    }
}

impl Bus {
    /// Puts `device` at `start..start + len`. Ranges must not overlap: the address map is a constant of ours.
    pub fn insert(&mut self, start: u64, len: u64, device: Arc<dyn BusDevice>) {
        debug_assert!(self.find(start).is_none() && self.find(start + len - 1).is_none());
        self.ranges.insert(start, Range { len, device });
    }

    /// Reads; `data` is all ones where no register answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address) {
            device.read(offset, data);
        }
    }

    /// Writes.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&dyn BusDevice, u64)> {
        let (start, range) = self.ranges.range(..=address).next_back()?;
        let offset = address - start;
        (offset < range.len).then_some((range.device.as_ref(), offset))
    }
}
