//! The root bus: configuration by ports CF8/CFC (PCI Local Bus 3.0 §3.2.2.3.2) and the memory window of all BARs.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::configuration::{Configuration, Identity};
use crate::BusDevice;

/// How many functions a bus holds, the host bridge in slot 0 included: slots 0 to 31, function 0 of each.
pub const MAX_FUNCTIONS: usize = 32;

/// One function of the root bus.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space.
    fn read_configuration(&self, offset: usize, data: &mut [u8]);
    /// Writes configuration space.
    fn write_configuration(&self, offset: usize, data: &[u8]);
    /// The addresses that its BAR decodes now.
    fn bar(&self) -> Option<Range<u64>>;
    /// Reads behind the BAR.
    fn read_bar(&self, offset: u64, data: &mut [u8]);
    /// Writes behind the BAR.
    fn write_bar(&self, offset: u64, data: &[u8]);
}

/// The function in slot 0. Linux believes in CF8/CFC only when it finds a host bridge (arch/x86/pci/direct.c).
#[derive(Debug)]
pub struct HostBridge(Configuration);

impl HostBridge {
    /// A bridge without registers of its own.
    pub fn new() -> Self {
        Self(Configuration::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_00_00,
            subsystem: 0x1100,
        }))
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn read_configuration(&self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn write_configuration(&self, _offset: usize, _data: &[u8]) {}
    fn bar(&self) -> Option<Range<u64>> {
        None
    }
    fn read_bar(&self, _offset: u64, _data: &mut [u8]) {}
    fn write_bar(&self, _offset: u64, _data: &[u8]) {}
}

/// The bus, seen as I/O ports ([`PciRoot::ports`]) and as a window of physical addresses ([`PciRoot::window`]).
pub struct PciRoot {
    functions: Vec<Arc<dyn PciFunction>>,
    address: Mutex<u32>,
}

impl std::fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciRoot").field("functions", &self.functions.len()).finish_non_exhaustive()
    }
}

const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_PORTS: Range<u64> = 0..4;
const DATA_PORTS: Range<u64> = 4..8;

impl PciRoot {
    /// First of the [`PciRoot::PORTS_LEN`] configuration ports.
    pub const PORTS_BASE: u64 = 0xcf8;
    /// Number of configuration ports.
    pub const PORTS_LEN: u64 = 8;

    /// A bus with `functions` in its slots, from slot 0 on; what is beyond [`MAX_FUNCTIONS`] is unreachable.
    pub fn new(functions: Vec<Arc<dyn PciFunction>>) -> Arc<Self> {
        Arc::new(Self { functions, address: Mutex::new(0) })
    }

    /// The configuration ports as a device, to be put at [`PciRoot::PORTS_BASE`].
    pub fn ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ports(Arc::clone(self)))
    }

    /// The window that holds every BAR as a device, to be put at `base`.
    pub fn window(self: &Arc<Self>, base: u64) -> Arc<dyn BusDevice> {
        Arc::new(Window { root: Arc::clone(self), base })
    }

    /// The function and the register that the address port selects.
    fn selected(&self) -> Option<(&Arc<dyn PciFunction>, usize)> {
        let address = *self.address.lock();
        let [register, function, bus, _] = address.to_le_bytes();
        if address & ADDRESS_ENABLE == 0 || bus != 0 || function & 0b111 != 0 {
            return None;
        }
        let function = self.functions.get(usize::from(function >> 3))?;
        Some((function, usize::from(register & !0b11)))
    }

    fn at(&self, address: u64) -> Option<(&Arc<dyn PciFunction>, u64)> {
        self.functions.iter().find_map(|function| {
            let bar = function.bar().filter(|bar| bar.contains(&address))?;
            Some((function, address - bar.start))
        })
    }
}

struct Ports(Arc<PciRoot>);

impl BusDevice for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if ADDRESS_PORTS.contains(&offset) {
            let address = self.0.address.lock().to_le_bytes();
            for (value, byte) in
                data.iter_mut().zip(address.iter().skip(usize::try_from(offset).unwrap_or(4)))
            {
                *value = *byte;
            }
        } else if let Some((function, register, len)) = self.target(offset, data.len()) {
            function.read_configuration(register, data.get_mut(..len).unwrap_or_default());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 {
            // Only a whole dword sets the address; a byte at CF9 is some chipsets' reset register, not ours.
            if let Ok(bytes) = <[u8; 4]>::try_from(data) {
                *self.0.address.lock() = u32::from_le_bytes(bytes);
            }
        } else if let Some((function, register, len)) = self.target(offset, data.len()) {
            function.write_configuration(register, data.get(..len).unwrap_or_default());
        }
    }
}

impl Ports {
    /// The function, register and length (within the selected dword) of an access to the data ports.
    fn target(&self, offset: u64, len: usize) -> Option<(&Arc<dyn PciFunction>, usize, usize)> {
        if !DATA_PORTS.contains(&offset) {
            return None;
        }
        let (function, register) = self.0.selected()?;
        let within = usize::try_from(offset - DATA_PORTS.start).ok()?;
        Some((function, register + within, len.min(4 - within)))
    }
}

struct Window {
    root: Arc<PciRoot>,
    base: u64,
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, offset)) = self.root.at(self.base.saturating_add(offset)) {
            function.read_bar(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.root.at(self.base.saturating_add(offset)) {
            function.write_bar(offset, data);
        }
    }
}
