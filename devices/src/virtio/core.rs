//! What every virtio transport shares: status, features, queues (virtio 1.2 §2.1, §2.2, §3.1).

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory as _};

use crate::GuestMemory;
use crate::pci::NO_VECTOR;
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::Served;

/// The largest queue size that a device may name.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Bits of the `device_status` register (§2.1).
#[derive(Debug, Clone, Copy)]
pub struct DeviceStatus;

impl DeviceStatus {
    /// The driver accepted the offered features.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// The device met an error that only a reset mends.
    pub const NEEDS_RESET: u8 = 64;
}

const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// One virtqueue and the interrupt vector that the driver gave it.
#[derive(Debug)]
pub(crate) struct Virtqueue {
    pub(crate) queue: Queue,
    pub(crate) vector: u16,
}

/// A device with the transport-independent part of its registers.
///
/// ```text
///            FEATURES_OK            DRIVER_OK, queues valid
///   reset ───────────────► set up ───────────────────────────► live ──ring error──► NEEDS_RESET
///     ▲                      │                                  │                        │
///     └────── status = 0 ────┴──────────────────────────────────┴────────────────────────┘
/// ```
/// Queue registers change only in "set up"; queues are served only in "live".
pub struct Core {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    pub(crate) status: u8,
    pub(crate) driver_features: u64,
    pub(crate) queues: Vec<Virtqueue>,
    pub(crate) config_vector: u16,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("device_id", &self.device.device_id())
            .field("status", &self.status)
            .field("queues", &self.queues.len())
            .finish_non_exhaustive()
    }
}

impl Core {
    /// A device after reset.
    ///
    /// # Errors
    /// When the device names a queue size that is no power of two up to [`MAX_QUEUE_SIZE`].
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Result<Self, virtio_queue::Error> {
        let mut queues = Vec::new();
        for size in device.queue_sizes() {
            queues.push(Virtqueue { queue: Queue::new(*size)?, vector: NO_VECTOR });
        }
        Ok(Self { device, memory, status: 0, driver_features: 0, queues, config_vector: NO_VECTOR })
    }

    pub(crate) fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// All offered features, those of the transport included.
    pub(crate) fn offered_features(&self) -> u64 {
        self.device.offered_features() | TRANSPORT_FEATURES
    }

    /// Sets one half of the features that the driver accepts; ignored once it said FEATURES_OK.
    pub(crate) fn set_driver_features(&mut self, select: u32, bits: u32) {
        if self.status & DeviceStatus::FEATURES_OK != 0 {
            return;
        }
        let bits = u64::from(bits);
        match select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | bits,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | bits << 32,
            _ => {}
        }
    }

    /// A write to `device_status`: zero resets, other values add bits. True when the device has become unusable and
    /// the driver must be told.
    pub(crate) fn set_status(&mut self, value: u8) -> bool {
        if value == 0 {
            self.reset();
            return false;
        }
        let added = value & !self.status & !DeviceStatus::NEEDS_RESET;
        if added & DeviceStatus::FEATURES_OK != 0 && !self.are_features_acceptable() {
            self.status |= added & !(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
            return false;
        }
        self.status |= added;
        added & DeviceStatus::DRIVER_OK != 0 && !self.go_live()
    }

    /// The queue while its registers may change: set up, but not live, and not yet enabled.
    pub(crate) fn queue_in_set_up(&mut self, index: u16) -> Option<&mut Queue> {
        if self.status & DeviceStatus::DRIVER_OK != 0 {
            return None;
        }
        let virtqueue = self.queues.get_mut(usize::from(index))?;
        (!virtqueue.queue.ready()).then_some(&mut virtqueue.queue)
    }

    /// Whether queues are served.
    pub(crate) fn is_live(&self) -> bool {
        self.status & (DeviceStatus::DRIVER_OK | DeviceStatus::NEEDS_RESET) == DeviceStatus::DRIVER_OK
    }

    /// Serves one queue; `None` when it is not to be served. An error makes the device unusable.
    pub(crate) fn serve(&mut self, index: u16) -> Option<Result<Served, ()>> {
        if !self.is_live() {
            return None;
        }
        let Virtqueue { queue, vector: _ } = self.queues.get_mut(usize::from(index))?;
        if !queue.ready() {
            return None;
        }
        match self.device.serve(index, queue, &self.memory) {
            Ok(served) => Some(Ok(served)),
            Err(error) => {
                log::debug!("virtio device {}, queue {index}: {error}", self.device.device_id());
                self.status |= DeviceStatus::NEEDS_RESET;
                Some(Err(()))
            }
        }
    }

    fn are_features_acceptable(&self) -> bool {
        self.driver_features & !self.offered_features() == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn go_live(&mut self) -> bool {
        let has_event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let memory = &self.memory;
        let mut is_usable = self.status & DeviceStatus::FEATURES_OK != 0;
        for Virtqueue { queue, vector: _ } in &mut self.queues {
            queue.set_event_idx(has_event_idx);
            is_usable &= !queue.ready() || has_rings_in(memory, queue);
        }
        if !is_usable {
            self.status |= DeviceStatus::NEEDS_RESET;
        }
        is_usable
    }

    fn reset(&mut self) {
        let Self { device, memory: _, status, driver_features, queues, config_vector } = self;
        device.reset();
        *status = 0;
        *driver_features = 0;
        *config_vector = NO_VECTOR;
        for Virtqueue { queue, vector } in queues {
            queue.reset();
            *vector = NO_VECTOR;
        }
    }
}

/// Whether every byte of a queue's rings (§2.7.5, §2.7.6, §2.7.8) is RAM. virtio-queue looks at the byte behind each
/// ring only: it would accept one with a hole in it, and refuse one that ends where RAM does.
fn has_rings_in(memory: &GuestMemory, queue: &Queue) -> bool {
    let size = usize::from(queue.size());
    let rings = [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ];
    rings.into_iter().all(|(start, len)| memory.check_range(GuestAddress(start), len))
}
