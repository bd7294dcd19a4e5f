//! MSI-X: table, pending bits and the capability's message control (PCI Local Bus 3.0 §6.8.2).

use std::sync::Arc;

use crate::interrupt::{MsiMessage, MsiVector};

/// The virtio register value for "no vector" (virtio 1.2 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

const ENTRY_LEN: u64 = 16;
const ENTRY_MASKED: u32 = 1;

#[derive(Debug, Clone, Copy)]
struct Entry {
    message: MsiMessage,
    is_masked: bool,
}

struct Vector {
    entry: Entry,
    is_pending: bool,
    routed: Option<MsiMessage>,
    sender: Arc<dyn MsiVector>,
}

/// A function's MSI-X state. The table starts with every vector masked.
pub struct Msix {
    vectors: Vec<Vector>,
    is_enabled: bool,
    is_function_masked: bool,
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix")
            .field("vectors", &self.vectors.len())
            .field("is_enabled", &self.is_enabled)
            .field("is_function_masked", &self.is_function_masked)
            .finish()
    }
}

impl Msix {
    /// A table with one entry per vector of `senders`.
    pub fn new(senders: Vec<Arc<dyn MsiVector>>) -> Self {
        let vector = |sender| Vector {
            entry: Entry { message: MsiMessage::default(), is_masked: true },
            is_pending: false,
            routed: None,
            sender,
        };
        Self {
            vectors: senders.into_iter().map(vector).collect(),
            is_enabled: false,
            is_function_masked: false,
        }
    }

    /// Number of table entries.
    pub fn len(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// Whether the table has no entry.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Takes the enable and function mask bits of the message control register (§6.8.2.3).
    pub fn set_control(&mut self, message_control: u16) {
        self.is_enabled = message_control & 1 << 15 != 0;
        self.is_function_masked = message_control & 1 << 14 != 0;
        self.deliver_pending();
    }

    /// Raises `vector`, or marks it pending while it is masked. Unknown vectors and a disabled MSI-X drop it.
    pub fn trigger(&mut self, vector: u16) {
        if !self.is_enabled {
            return;
        }
        let is_function_masked = self.is_function_masked;
        let Some(vector) = self.vectors.get_mut(usize::from(vector)) else { return };
        vector.is_pending = true;
        if !is_function_masked && !vector.entry.is_masked {
            vector.deliver();
        }
    }

    /// Reads the table; whole dwords and qwords only, as the specification demands of the driver.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; 8];
        let (low, high) = bytes.split_at_mut(4);
        low.copy_from_slice(&self.table_dword(offset).to_le_bytes());
        high.copy_from_slice(&self.table_dword(offset.saturating_add(4)).to_le_bytes());
        if is_aligned_access(offset, data.len()) {
            data.copy_from_slice(bytes.get(..data.len()).unwrap_or_default());
        }
    }

    /// Writes the table and sends what a cleared mask held back.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !is_aligned_access(offset, data.len()) {
            return;
        }
        for (index, dword) in (0u64..).zip(data.chunks_exact(4)) {
            if let Ok(bytes) = <[u8; 4]>::try_from(dword) {
                self.set_table_dword(offset.saturating_add(4 * index), u32::from_le_bytes(bytes));
            }
        }
        self.deliver_pending();
    }

    /// Reads the pending bit array.
    pub fn read_pending_bits(&self, offset: u64, data: &mut [u8]) {
        let pending = |bit: usize| self.vectors.get(bit).is_some_and(|vector| vector.is_pending);
        for (byte_index, value) in data.iter_mut().enumerate() {
            let first =
                usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(byte_index).saturating_mul(8);
            *value =
                (0..8).filter(|bit| pending(first.saturating_add(*bit))).fold(0, |byte, bit| byte | 1 << bit);
        }
    }

    fn table_dword(&self, offset: u64) -> u32 {
        let Some(vector) = self.vectors.get(table_index(offset)) else { return u32::MAX };
        let [low, high] = split(vector.entry.message.address);
        match offset % ENTRY_LEN {
            0 => low,
            4 => high,
            8 => vector.entry.message.data,
            _ => u32::from(vector.entry.is_masked),
        }
    }

    fn set_table_dword(&mut self, offset: u64, value: u32) {
        let Some(Vector { entry, .. }) = self.vectors.get_mut(table_index(offset)) else { return };
        let [low, high] = split(entry.message.address);
        match offset % ENTRY_LEN {
            0 => entry.message.address = join(value & !0b11, high),
            4 => entry.message.address = join(low, value),
            8 => entry.message.data = value,
            _ => entry.is_masked = value & ENTRY_MASKED != 0,
        }
    }

    fn deliver_pending(&mut self) {
        if !self.is_enabled || self.is_function_masked {
            return;
        }
        for vector in self.vectors.iter_mut().filter(|vector| !vector.entry.is_masked) {
            vector.route();
            if vector.is_pending {
                vector.deliver();
            }
        }
    }
}

impl Vector {
    fn route(&mut self) {
        if self.routed == Some(self.entry.message) {
            return;
        }
        match self.sender.route(self.entry.message) {
            Ok(()) => self.routed = Some(self.entry.message),
            Err(error) => log::debug!("MSI-X message {:?} is not routable: {error}", self.entry.message),
        }
    }

    fn deliver(&mut self) {
        self.is_pending = false;
        self.route();
        if let Err(error) = self.sender.trigger() {
            log::debug!("MSI-X interrupt was not sent: {error}");
        }
    }
}

fn is_aligned_access(offset: u64, len: usize) -> bool {
    (len == 4 && offset.is_multiple_of(4)) || (len == 8 && offset.is_multiple_of(8))
}

fn table_index(offset: u64) -> usize {
    usize::try_from(offset / ENTRY_LEN).unwrap_or(usize::MAX)
}

fn split(address: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
