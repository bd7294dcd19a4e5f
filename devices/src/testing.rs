//! The driver's side of a virtio-pci device, for tests and fuzz targets: it writes registers and builds rings exactly
//! as told, however wrong, and records what the device does.
#![expect(clippy::expect_used, clippy::missing_panics_doc, reason = "a test's own mistakes should stop it")]

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use crate::interrupt::{Interrupt, MsiMessage, MsiVector};
use crate::pci::PciFunction;
use crate::virtio::VirtioDevice;
use crate::virtio::pci::{Doorbells, VirtioPci};

/// Offsets of BAR 0, as the capabilities give them.
pub mod bar {
    /// Common configuration structure.
    pub const COMMON: u64 = 0x0000;
    /// Interrupt status.
    pub const ISR: u64 = 0x1000;
    /// Device configuration space.
    pub const DEVICE: u64 = 0x2000;
    /// Notifications.
    pub const NOTIFY: u64 = 0x3000;
    /// MSI-X table.
    pub const MSIX_TABLE: u64 = 0x4000;
    /// MSI-X pending bits.
    pub const MSIX_PENDING: u64 = 0x5000;
}

/// Offsets of the common configuration structure (virtio 1.2 §4.1.4.3).
pub mod common {
    /// `driver_feature_select`; `driver_feature` follows.
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// `driver_feature`.
    pub const DRIVER_FEATURE: u64 = 0x0c;
    /// `config_msix_vector`.
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    /// `device_status`.
    pub const DEVICE_STATUS: u64 = 0x14;
    /// `queue_select`.
    pub const QUEUE_SELECT: u64 = 0x16;
    /// `queue_size`.
    pub const QUEUE_SIZE: u64 = 0x18;
    /// `queue_msix_vector`.
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    /// `queue_enable`.
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// `queue_desc`; `queue_driver` and `queue_device` follow, eight bytes each.
    pub const QUEUE_DESC: u64 = 0x20;
}

/// Descriptor flags (§2.7.5).
pub mod descriptor {
    /// Another one follows.
    pub const NEXT: u16 = 1;
    /// The device writes it.
    pub const WRITE: u16 = 2;
    /// It is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// `VIRTIO_F_VERSION_1`, which a driver must accept.
pub const VERSION_1: u64 = 1 << 32;
/// ACKNOWLEDGE, DRIVER and FEATURES_OK.
pub const STATUS_FEATURES_OK: u8 = 1 | 2 | 8;
/// All that and DRIVER_OK.
pub const STATUS_LIVE: u8 = STATUS_FEATURES_OK | 4;

/// Where [`DriverSide`] puts the BAR.
const BAR_ADDRESS: u32 = 0xc000_0000;
/// Each queue's rings lie in a region of this length, from [`RINGS`] on: table, available ring, used ring.
const RING_REGION: u64 = 0x1_0000;
const RINGS: u64 = 0x10_0000;
const AVAIL_OFFSET: u64 = 0x8000;
const USED_OFFSET: u64 = 0xa000;

/// A message-signalled interrupt that counts.
#[derive(Debug, Default)]
pub struct RecordingVector {
    sent: Mutex<u64>,
    routes: Mutex<Vec<MsiMessage>>,
}

impl RecordingVector {
    /// How often it was raised.
    pub fn sent(&self) -> u64 {
        *self.sent.lock()
    }

    /// What it was routed to, oldest first.
    pub fn routes(&self) -> Vec<MsiMessage> {
        self.routes.lock().clone()
    }
}

impl Interrupt for RecordingVector {
    fn trigger(&self) -> io::Result<()> {
        *self.sent.lock() += 1;
        Ok(())
    }
}

impl MsiVector for RecordingVector {
    fn route(&self, message: MsiMessage) -> io::Result<()> {
        self.routes.lock().push(message);
        Ok(())
    }
}

/// Doorbells that remember where they are.
#[derive(Debug, Default)]
pub struct RecordingDoorbells(Mutex<Vec<u64>>);

impl RecordingDoorbells {
    /// The addresses that are connected now.
    pub fn connected(&self) -> Vec<u64> {
        self.0.lock().clone()
    }
}

impl Doorbells for RecordingDoorbells {
    fn connect(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.0.lock().push(address);
        Ok(())
    }

    fn disconnect(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.0.lock().retain(|connected| *connected != address);
        Ok(())
    }
}

/// One descriptor as the driver writes it (§2.7.5).
#[derive(Debug, Clone, Copy, Default)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`descriptor`] flags.
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

impl Descriptor {
    /// Its 16 bytes.
    pub fn bytes(self) -> [u8; 16] {
        let low = u128::from(self.address) | u128::from(self.len) << 64;
        (low | u128::from(self.flags) << 96 | u128::from(self.next) << 112).to_le_bytes()
    }
}

/// A device on a made-up bus, with guest RAM and everything that a driver can do to it.
pub struct DriverSide {
    /// The device.
    pub device: VirtioPci,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The MSI-X vectors: one per queue, and the last for configuration changes.
    pub vectors: Vec<Arc<RecordingVector>>,
    /// Where notifications are connected.
    pub doorbells: Arc<RecordingDoorbells>,
    queues: u16,
    made_available: Vec<u16>,
    seen_used: Vec<u16>,
}

impl std::fmt::Debug for DriverSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DriverSide").field("device", &self.device).finish_non_exhaustive()
    }
}

impl DriverSide {
    /// A device after power-on, with `ram_len` bytes of RAM from address 0 (2 MiB at least, for the rings).
    pub fn new(device: Box<dyn VirtioDevice>, ram_len: usize) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), ram_len)]).expect("RAM");
        Self::with_memory(device, memory)
    }

    /// As [`DriverSide::new`], with any RAM that has 2 MiB at address 0.
    pub fn with_memory(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Self {
        let queues = u16::try_from(device.queue_sizes().len()).expect("few queues");
        let vectors: Vec<_> = (0..VirtioPci::vectors_for(device.as_ref()))
            .map(|_| Arc::new(RecordingVector::default()))
            .collect();
        let senders = vectors.iter().map(|vector| Arc::clone(vector) as Arc<dyn MsiVector>).collect();
        let doorbells = Arc::new(RecordingDoorbells::default());
        let connector = Arc::clone(&doorbells) as Arc<dyn Doorbells>;
        let device =
            VirtioPci::new(device, memory.clone(), BAR_ADDRESS, senders, connector).expect("a device");
        let counters = vec![0; usize::from(queues)];
        Self {
            device,
            memory,
            vectors,
            doorbells,
            queues,
            made_available: counters.clone(),
            seen_used: counters,
        }
    }

    /// As [`DriverSide::new`], and then brought up as Linux does it: every queue at its full size, MSI-X on.
    pub fn live(device: Box<dyn VirtioDevice>, ram_len: usize) -> Self {
        let mut driver = Self::new(device, ram_len);
        driver.bring_up(VERSION_1);
        driver
    }

    /// Resets, negotiates `features`, sets every queue up, turns MSI-X on and says DRIVER_OK.
    pub fn bring_up(&mut self, features: u64) {
        self.enable_memory_and_msix();
        self.set_status(0);
        self.set_status(STATUS_FEATURES_OK & !8);
        self.accept(features);
        self.set_status(STATUS_FEATURES_OK);
        self.write_common(common::CONFIG_MSIX_VECTOR, &self.queues.to_le_bytes());
        for queue in 0..self.queues {
            self.set_up_queue(queue);
        }
        self.set_status(STATUS_LIVE);
    }

    /// Turns memory decoding and MSI-X on and unmasks every vector.
    pub fn enable_memory_and_msix(&self) {
        self.device.write_configuration(4, &[0b110]);
        let capability = self.capability(0x11).expect("an MSI-X capability");
        self.device.write_configuration(capability + 2, &[0x00, 0x80]);
        for vector in 0..=u64::from(self.queues) {
            let entry = bar::MSIX_TABLE + 16 * vector;
            self.device.write_bar(entry, &0xfee0_0000_u64.to_le_bytes());
            self.device.write_bar(entry + 8, &[0x20 + vector.to_le_bytes()[0], 0, 0, 0]);
            self.device.write_bar(entry + 12, &[0; 4]);
        }
    }

    /// The offset of the first capability with this ID.
    pub fn capability(&self, id: u8) -> Option<usize> {
        let mut offset = [0; 1];
        self.device.read_configuration(0x34, &mut offset);
        while offset != [0] {
            let mut head = [0; 2];
            self.device.read_configuration(offset[0].into(), &mut head);
            if head[0] == id {
                return Some(offset[0].into());
            }
            offset = [head[1]];
        }
        None
    }

    /// Writes the features that the driver accepts.
    pub fn accept(&self, features: u64) {
        for (select, half) in features.to_le_bytes().chunks(4).enumerate() {
            self.write_common(common::DRIVER_FEATURE_SELECT, &[u8::try_from(select).unwrap_or(0), 0, 0, 0]);
            self.write_common(common::DRIVER_FEATURE, half);
        }
    }

    /// Sets one queue up at its full size, with rings of its own, and enables it.
    pub fn set_up_queue(&mut self, queue: u16) {
        self.write_common(common::QUEUE_SELECT, &queue.to_le_bytes());
        self.write_common(common::QUEUE_MSIX_VECTOR, &queue.to_le_bytes());
        let rings = rings(queue);
        for (offset, address) in [(0, rings), (8, rings + AVAIL_OFFSET), (16, rings + USED_OFFSET)] {
            self.write_common(common::QUEUE_DESC + offset, &address.to_le_bytes());
        }
        let zeros = vec![0; usize::try_from(RING_REGION).expect("small")];
        self.memory.write_slice(&zeros, GuestAddress(rings)).expect("rings in RAM");
        self.write_common(common::QUEUE_ENABLE, &[1, 0]);
        for counters in [&mut self.made_available, &mut self.seen_used] {
            if let Some(counter) = counters.get_mut(usize::from(queue)) {
                *counter = 0;
            }
        }
    }

    /// Writes `device_status`.
    pub fn set_status(&self, status: u8) {
        self.write_common(common::DEVICE_STATUS, &[status]);
    }

    /// Reads `device_status`.
    pub fn status(&self) -> u8 {
        let mut status = [0; 1];
        self.device.read_bar(bar::COMMON + common::DEVICE_STATUS, &mut status);
        status[0]
    }

    /// Writes to the common configuration structure.
    pub fn write_common(&self, offset: u64, data: &[u8]) {
        self.device.write_bar(bar::COMMON + offset, data);
    }

    /// The size of a queue, as its register says.
    pub fn queue_size(&self, queue: u16) -> u16 {
        self.write_common(common::QUEUE_SELECT, &queue.to_le_bytes());
        let mut size = [0; 2];
        self.device.read_bar(bar::COMMON + common::QUEUE_SIZE, &mut size);
        u16::from_le_bytes(size)
    }

    /// Writes a descriptor into a queue's table.
    pub fn put_descriptor(&self, queue: u16, index: u16, descriptor: Descriptor) {
        let address = rings(queue) + 16 * u64::from(index);
        self.memory.write_slice(&descriptor.bytes(), GuestAddress(address)).expect("the table is in RAM");
    }

    /// Puts `head` into the available ring and bumps its index.
    pub fn make_available(&mut self, queue: u16, head: u16) {
        let size = self.queue_size(queue).max(1);
        let made_available = self.made_available.get_mut(usize::from(queue)).expect("a queue");
        let slot = rings(queue) + AVAIL_OFFSET + 4 + 2 * u64::from(*made_available % size);
        *made_available = made_available.wrapping_add(1);
        self.memory.write_obj(head, GuestAddress(slot)).expect("the ring is in RAM");
        let index = *made_available;
        self.set_available_index(queue, index);
    }

    /// Sets the available index to any value.
    pub fn set_available_index(&self, queue: u16, index: u16) {
        let address = GuestAddress(rings(queue) + AVAIL_OFFSET + 2);
        self.memory.write_obj(index, address).expect("the ring is in RAM");
    }

    /// Has the device serve a queue, as whoever is woken by its notification would.
    pub fn serve(&self, queue: u16) {
        self.device.serve_queue(queue);
    }

    /// The used elements since the last call: (head, length in bytes).
    pub fn used(&mut self, queue: u16) -> Vec<(u32, u32)> {
        let size = self.queue_size(queue).max(1);
        let ring = rings(queue) + USED_OFFSET;
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).expect("the ring is in RAM");
        let seen = self.seen_used.get_mut(usize::from(queue)).expect("a queue");
        let mut elements = Vec::new();
        while *seen != index {
            let slot = GuestAddress(ring + 4 + 8 * u64::from(*seen % size));
            elements.push(self.memory.read_obj::<[u32; 2]>(slot).expect("the ring is in RAM").into());
            *seen = seen.wrapping_add(1);
        }
        elements
    }

    /// Sends `request` in one readable descriptor and offers `room` bytes for the reply; returns the used length and
    /// the reply's bytes. `None` when the device did not return the chain.
    pub fn request(&mut self, queue: u16, request: &[u8], room: u32) -> Option<(u32, Vec<u8>)> {
        let (request_at, reply_at) = (0x18_0000, 0x1a_0000);
        self.memory.write_slice(request, GuestAddress(request_at)).expect("room for the request");
        let len = u32::try_from(request.len()).expect("a short request");
        let flags = if room > 0 { descriptor::NEXT } else { 0 };
        self.put_descriptor(queue, 0, Descriptor { address: request_at, len, flags, next: 1 });
        self.put_descriptor(
            queue,
            1,
            Descriptor { address: reply_at, len: room, flags: descriptor::WRITE, next: 0 },
        );
        self.make_available(queue, 0);
        self.serve(queue);
        let (_, len) = self.used(queue).pop()?;
        let mut reply = vec![0; usize::try_from(len.min(room)).expect("a short reply")];
        self.memory.read_slice(&mut reply, GuestAddress(reply_at)).expect("the reply is in RAM");
        Some((len, reply))
    }
}

/// Where a queue's descriptor table is.
pub fn rings(queue: u16) -> u64 {
    RINGS + RING_REGION * u64::from(queue)
}
