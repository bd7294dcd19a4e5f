//! virtio-rng: entropy from the host's getrandom(2) (virtio 1.2 §5.4).

use std::io::Write;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::Queue;

use crate::GuestMemory;
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::{Chain, QueueError, Served, serve_chains};

/// How many bytes one request gets at most; the driver asks again for more.
const MAX_BYTES: usize = 4096;

/// The entropy device: one queue, no configuration.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn device_id(&self) -> u16 {
        4
    }

    fn pci_class(&self) -> u32 {
        0xff_00_00
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn serve(
        &mut self,
        _queue_index: u16,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        serve_chains(queue, memory, |chain| fill(memory, chain))
    }
}

/// Fills the chain's writable part; returns the bytes written, 0 for a chain that cannot be written.
fn fill(memory: &GuestMemory, chain: Chain<'_>) -> u32 {
    let Ok(mut writer) = chain.writer(memory) else { return 0 };
    let mut bytes = [0; MAX_BYTES];
    let len = writer.available_bytes().min(MAX_BYTES);
    let Some(bytes) = bytes.get_mut(..len) else { return 0 };
    let Ok(len) = getrandom(&mut *bytes, GetRandomFlags::empty()) else { return 0 };
    match writer.write_all(bytes.get(..len).unwrap_or_default()) {
        Ok(()) => u32::try_from(len).unwrap_or(0),
        Err(_) => 0,
    }
}
