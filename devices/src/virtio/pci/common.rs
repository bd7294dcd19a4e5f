//! The common configuration structure (virtio 1.2 §4.1.4.3).

use virtio_queue::{Queue, QueueT};

use crate::pci::NO_VECTOR;
use crate::virtio::core::Core;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// The selectors; everything else lives in [`Core`].
#[derive(Debug, Default)]
pub(super) struct CommonConfig {
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
}

/// What a write brought about besides a register's value.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The device was reset.
    pub(super) was_reset: bool,
    /// The device has become unusable; the driver must be told.
    pub(super) needs_reset: bool,
}

impl CommonConfig {
    /// Reads one register; other accesses read as zero.
    pub(super) fn read(&self, core: &Core, offset: u64, data: &mut [u8]) {
        let value = match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select,
            DEVICE_FEATURE => half(core.offered_features(), self.device_feature_select),
            DRIVER_FEATURE_SELECT => self.driver_feature_select,
            DRIVER_FEATURE => half(core.driver_features, self.driver_feature_select),
            CONFIG_MSIX_VECTOR => core.config_vector.into(),
            NUM_QUEUES => u32::try_from(core.queues.len()).unwrap_or(0),
            DEVICE_STATUS => core.status.into(),
            // The device configuration spaces here never change.
            CONFIG_GENERATION => 0,
            QUEUE_SELECT => self.queue_select.into(),
            _ => self.read_queue(core, offset),
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes().into_iter().chain([0; 4])) {
            *byte = value;
        }
    }

    fn read_queue(&self, core: &Core, offset: u64) -> u32 {
        let Some(virtqueue) = core.queues.get(usize::from(self.queue_select)) else {
            // §4.1.4.3.1: the size of a queue that is not there is 0.
            return if offset == QUEUE_MSIX_VECTOR { NO_VECTOR.into() } else { 0 };
        };
        let queue = &virtqueue.queue;
        match offset {
            QUEUE_SIZE => queue.size().into(),
            QUEUE_MSIX_VECTOR => virtqueue.vector.into(),
            QUEUE_ENABLE => queue.ready().into(),
            QUEUE_NOTIFY_OFF => self.queue_select.into(),
            QUEUE_DESC => half(queue.desc_table(), 0),
            0x24 => half(queue.desc_table(), 1),
            QUEUE_DRIVER => half(queue.avail_ring(), 0),
            0x2c => half(queue.avail_ring(), 1),
            QUEUE_DEVICE => half(queue.used_ring(), 0),
            0x34 => half(queue.used_ring(), 1),
            _ => 0,
        }
    }

    /// Writes one register with its own width (§4.1.3.1; addresses also as one qword); other accesses are ignored.
    pub(super) fn write(&mut self, core: &mut Core, vectors: u16, offset: u64, data: &[u8]) -> Outcome {
        let mut outcome = Outcome::default();
        match *data {
            [value] if offset == DEVICE_STATUS => {
                outcome.was_reset = value == 0;
                outcome.needs_reset = core.set_status(value);
                if outcome.was_reset {
                    *self = Self::default();
                }
            }
            [a, b] => self.write_word(core, vectors, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_dword(core, offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if offset >= QUEUE_DESC => {
                self.write_dword(core, offset, u32::from_le_bytes([a, b, c, d]));
                self.write_dword(core, offset.saturating_add(4), u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        outcome
    }

    fn write_word(&mut self, core: &mut Core, vectors: u16, offset: u64, value: u16) {
        // §4.1.5.1.2.1: a vector that cannot be used reads back as NO_VECTOR.
        let vector = if value < vectors { value } else { NO_VECTOR };
        match offset {
            CONFIG_MSIX_VECTOR => core.config_vector = vector,
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_MSIX_VECTOR => {
                if let Some(virtqueue) = core.queues.get_mut(usize::from(self.queue_select)) {
                    virtqueue.vector = vector;
                }
            }
            QUEUE_SIZE => self.with_queue(core, |queue| {
                // A size that is no power of two up to the maximum leaves the register as it is.
                let _ = queue.try_set_size(value);
            }),
            QUEUE_ENABLE if value == 1 => self.with_queue(core, |queue| queue.set_ready(true)),
            _ => {}
        }
    }

    fn write_dword(&mut self, core: &mut Core, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE => core.set_driver_features(self.driver_feature_select, value),
            QUEUE_DESC => self.with_queue(core, |queue| queue.set_desc_table_address(Some(value), None)),
            0x24 => self.with_queue(core, |queue| queue.set_desc_table_address(None, Some(value))),
            QUEUE_DRIVER => self.with_queue(core, |queue| queue.set_avail_ring_address(Some(value), None)),
            0x2c => self.with_queue(core, |queue| queue.set_avail_ring_address(None, Some(value))),
            QUEUE_DEVICE => self.with_queue(core, |queue| queue.set_used_ring_address(Some(value), None)),
            0x34 => self.with_queue(core, |queue| queue.set_used_ring_address(None, Some(value))),
            _ => {}
        }
    }

    /// Changes the selected queue, if its registers may change now.
    fn with_queue(&self, core: &mut Core, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = core.queue_in_set_up(self.queue_select) {
            change(queue);
        }
    }
}

/// The low (`select` 0) or high (1) half of a 64-bit register; 0 for any other.
fn half(value: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}
