//! The seam between a device and its transport.

use virtio_queue::Queue;

use crate::GuestMemory;
use crate::virtio::queue::{QueueError, Served};

/// A virtio device without its transport: it never sees a register.
///
/// The transport negotiates features, owns the queues and calls [`VirtioDevice::serve`] from whatever thread the
/// machine lets serve that queue; it never calls two methods of one device at once.
pub trait VirtioDevice: Send {
    /// Device ID (virtio 1.2 §5).
    fn device_id(&self) -> u16;

    /// PCI class, subclass and programming interface, `0xCCSSPP`; drivers ignore it, people read it in lspci.
    fn pci_class(&self) -> u32;

    /// Device-specific feature bits that are offered; the transport adds its own.
    fn offered_features(&self) -> u64 {
        0
    }

    /// The largest size of each virtqueue, a power of two each.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the device configuration space; bytes behind its end stay as they are.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Serves what the driver made available in queue `queue_index`.
    ///
    /// # Errors
    /// When the ring itself cannot be used any more; the transport then sets DEVICE_NEEDS_RESET.
    fn serve(
        &mut self,
        queue_index: u16,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<Served, QueueError>;

    /// Drops everything that the driver's requests built up. When it returns, nothing of the device touches guest
    /// memory until the next [`VirtioDevice::serve`].
    fn reset(&mut self) {}
}
