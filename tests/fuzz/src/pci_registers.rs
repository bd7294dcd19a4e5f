//! Any access to the PCI configuration ports and to the BARs' window, with two virtio devices on the bus.
//!
//! Promises that are checked, for any input: no panic and no hang; a function's identity stays; doorbells are where
//! the BAR is, and nowhere while it decodes nothing; a queue's size stays a power of two; an access that nothing
//! answers leaves the bytes as they were; and after all that each device can be reset and brought up.

use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::interrupt::MsiVector;
use devices::pci::{HostBridge, PciFunction, PciRoot};
use devices::testing::{
    Descriptor, RecordingDoorbells, RecordingVector, STATUS_FEATURES_OK, STATUS_LIVE, bar, common,
};
use devices::virtio::VirtioDevice;
use devices::virtio::fs::{Access, Fs, FsCounters};
use devices::virtio::pci::{BAR_LEN, VirtioPci};
use devices::virtio::rng::Rng;
use devices::{BusDevice, GuestMemory};
use projection::ProjectedFs;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio_fs::Width;

const WINDOW: u64 = 0xc000_0000;
const WINDOW_LEN: u64 = 0x3000_0000;
const RAM_LEN: usize = 1 << 20;
/// Where the first queue's rings are; the others' are 64 KiB further on each.
const RINGS: [u64; 3] = [0x1000, 0x4000, 0x6000];
const MAX_ACTIONS: usize = 200;

/// One run.
#[derive(Debug, Arbitrary)]
pub struct Input {
    actions: Vec<Action>,
}

#[derive(Debug, Arbitrary)]
enum Action {
    /// A register of configuration space, by the ports.
    Configuration {
        slot: u8,
        register: u8,
        access: Access64,
    },
    /// A field of a capability, where the interesting ones are.
    Capability {
        slot: u8,
        offset: u8,
        access: Access64,
    },
    /// Through the access capability: what it selects, then its data.
    Selected {
        slot: u8,
        bar: u8,
        page: u8,
        offset: u16,
        len: u8,
        access: Access64,
    },
    /// Any access to the ports.
    Port {
        offset: u8,
        access: Access64,
    },
    /// The address register.
    Address {
        value: u32,
    },
    /// A register behind a BAR, through the window.
    Bar {
        device: bool,
        page: u8,
        offset: u16,
        access: Access64,
    },
    /// A register of the common structure.
    Common {
        device: bool,
        offset: u8,
        access: Access64,
    },
    Msix {
        device: bool,
        vector: u8,
        field: u8,
        access: Access64,
    },
    /// Anywhere in the window.
    Window {
        offset: u32,
        access: Access64,
    },
    MoveBar {
        slot: u8,
        target: Target,
    },
    Decode {
        slot: u8,
        is_on: bool,
    },
    /// Everything that a driver does until DRIVER_OK.
    BringUp {
        device: bool,
    },
    Serve {
        device: bool,
        queue: u8,
    },
    /// A chain for the entropy device, served.
    Entropy {
        address: u32,
        len: u32,
        flags: u8,
    },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Access64 {
    width: Width,
    /// What is written; `None` reads.
    value: Option<u64>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Target {
    Zero,
    Top,
    First,
    Second,
    Any(u32),
}

struct Device {
    function: Arc<VirtioPci>,
    doorbells: Arc<RecordingDoorbells>,
    queues: u16,
}

struct Run {
    devices: [Device; 2],
    memory: GuestMemory,
    ports: Arc<dyn BusDevice>,
    window: Arc<dyn BusDevice>,
}

/// Runs one input.
pub fn run(input: &Input) {
    let run = Run::new();
    for action in input.actions.iter().take(MAX_ACTIONS) {
        run.act(action);
        for device in &run.devices {
            device.check();
        }
    }
    run.finish();
}

impl Device {
    fn new(device: Box<dyn VirtioDevice>, memory: &GuestMemory, address: u32) -> Self {
        let queues = u16::try_from(device.queue_sizes().len()).expect("few queues");
        let doorbells = Arc::new(RecordingDoorbells::default());
        let vectors = (0..VirtioPci::vectors_for(device.as_ref()))
            .map(|_| Arc::new(RecordingVector::default()) as Arc<dyn MsiVector>)
            .collect();
        let function = VirtioPci::new(device, memory.clone(), address, vectors, Arc::clone(&doorbells) as _);
        Self { function: Arc::new(function.expect("a device")), doorbells, queues }
    }

    fn check(&self) {
        let expected: Vec<u64> = match self.function.bar() {
            Some(range) => {
                assert_eq!((range.end - range.start, range.start % u64::from(BAR_LEN)), (BAR_LEN.into(), 0));
                (0..self.queues).map(|queue| range.start + bar::NOTIFY + 4 * u64::from(queue)).collect()
            }
            None => vec![],
        };
        assert_eq!(self.doorbells.connected(), expected, "doorbells are where the BAR is");
        let size = u16::from_le_bytes(self.common(common::QUEUE_SIZE));
        let selected = u16::from_le_bytes(self.common(common::QUEUE_SELECT));
        let is_there = selected < self.queues;
        assert!(if is_there { size.is_power_of_two() && size <= 128 } else { size == 0 }, "size {size}");
    }

    fn common<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_bar(bar::COMMON + offset, &mut data);
        data
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(bar::COMMON + offset, data);
    }

    fn bring_up(&self) {
        self.write_common(common::DEVICE_STATUS, &[0]);
        assert_eq!(self.common(common::DEVICE_STATUS), [0]);
        self.write_common(common::DRIVER_FEATURE_SELECT, &1_u32.to_le_bytes());
        self.write_common(common::DRIVER_FEATURE, &1_u32.to_le_bytes());
        self.write_common(common::DEVICE_STATUS, &[STATUS_FEATURES_OK]);
        for queue in 0..self.queues {
            self.write_common(common::QUEUE_SELECT, &queue.to_le_bytes());
            self.write_common(common::QUEUE_MSIX_VECTOR, &queue.to_le_bytes());
            for (ring, address) in (0..).zip(RINGS) {
                let address = address + 0x1_0000 * u64::from(queue);
                self.write_common(common::QUEUE_DESC + 8 * ring, &address.to_le_bytes());
            }
            self.write_common(common::QUEUE_ENABLE, &[1, 0]);
        }
        self.write_common(common::DEVICE_STATUS, &[STATUS_LIVE]);
        assert_eq!(self.common(common::DEVICE_STATUS), [STATUS_LIVE], "a reset mends everything");
    }
}

impl Run {
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM_LEN)]).expect("RAM");
        // No volume is needed: an empty directory answers requests too.
        let file_system = Arc::new(ProjectedFs::of_volumes());
        let fs = Fs::new("fuzz", file_system, Access::ReadOnly, Arc::new(FsCounters::default()));
        let devices = [
            Device::new(Box::new(Rng), &memory, 0xc000_0000),
            Device::new(Box::new(fs), &memory, 0xc000_8000),
        ];
        let mut functions: Vec<Arc<dyn PciFunction>> = vec![Arc::new(HostBridge::new())];
        functions.extend(devices.iter().map(|device| Arc::clone(&device.function) as Arc<dyn PciFunction>));
        let root = PciRoot::new(functions);
        let run = Self { devices, memory, ports: root.ports(), window: root.window(WINDOW) };
        for slot in [1, 2] {
            run.decode(slot, true);
            let control = run.msix_capability(slot) + 3;
            run.write_configuration(slot, control, &[0x80]);
        }
        run
    }

    fn act(&self, action: &Action) {
        match *action {
            Action::Configuration { slot, register, access } => {
                let offset = self.select(slot, register);
                access.run(self.ports.as_ref(), offset);
            }
            Action::Capability { slot, offset, access } => {
                let offset = self.select(slot, 0x40_u8.saturating_add(offset % 0x70));
                access.run(self.ports.as_ref(), offset);
            }
            Action::Selected { slot, bar, page, offset, len, access } => {
                let slot = 1 + slot % 2;
                let capability = self.access_capability(slot);
                let offset = u32::from(page % 8) << 12 | u32::from(offset & 0xfff);
                self.write_configuration(slot, capability + 4, &[bar % 3]);
                self.write_configuration(slot, capability + 8, &offset.to_le_bytes());
                self.write_configuration(slot, capability + 12, &u32::from(len % 10).to_le_bytes());
                let data = self.select(slot, capability + 16);
                access.run(self.ports.as_ref(), data);
            }
            Action::Port { offset, access } => access.run(self.ports.as_ref(), (offset % 12).into()),
            Action::Address { value } => self.ports.write(0, &value.to_le_bytes()),
            Action::Bar { device, page, offset, access } => {
                let offset = u64::from(page % 8) << 12 | u64::from(offset & 0xfff);
                self.access_bar(device, offset, access);
            }
            Action::Common { device, offset, access } => {
                self.access_bar(device, bar::COMMON + u64::from(offset & 0x3f), access);
            }
            Action::Msix { device, vector, field, access } => {
                let entry = bar::MSIX_TABLE + 16 * u64::from(vector % 6);
                self.access_bar(device, entry + 4 * u64::from(field % 4), access);
            }
            Action::Window { offset, access } => {
                access.run(self.window.as_ref(), u64::from(offset) % WINDOW_LEN);
            }
            Action::MoveBar { slot, target } => {
                let address = match target {
                    Target::Zero => 0,
                    Target::Top => u32::MAX,
                    Target::First => 0xc000_0000,
                    Target::Second => 0xc000_8000,
                    Target::Any(address) => address,
                };
                self.write_configuration(slot, 0x10, &address.to_le_bytes());
            }
            Action::Decode { slot, is_on } => self.decode(slot, is_on),
            Action::BringUp { device } => self.devices[usize::from(device)].bring_up(),
            Action::Serve { device, queue } => {
                self.devices[usize::from(device)].function.serve_queue((queue % 4).into());
            }
            Action::Entropy { address, len, flags } => self.entropy(address, len, flags),
        }
    }

    /// Puts one chain into the rings that [`Device::bring_up`] gives the first device.
    fn entropy(&self, address: u32, len: u32, flags: u8) {
        let descriptor = Descriptor { address: address.into(), len, flags: (flags & 7).into(), next: 1 };
        let index: u16 = self.memory.read_obj(GuestAddress(RINGS[1] + 2)).expect("a ring in RAM");
        let slot = GuestAddress(RINGS[1] + 4 + 2 * u64::from(index % 64));
        self.memory.write_slice(&descriptor.bytes(), GuestAddress(RINGS[0])).expect("a ring in RAM");
        self.memory.write_obj(0_u16, slot).expect("a ring in RAM");
        let next = index.wrapping_add(1);
        self.memory.write_obj(next, GuestAddress(RINGS[1] + 2)).expect("a ring in RAM");
        self.devices[0].function.serve_queue(0);
    }

    /// An access behind a device's BAR: through the window where it is there, else at the device itself.
    fn access_bar(&self, device: bool, offset: u64, access: Access64) {
        let function = &self.devices[usize::from(device)].function;
        let in_window = function.bar().and_then(|range| range.start.checked_sub(WINDOW));
        match (in_window, access.value) {
            (Some(start), _) => access.run(self.window.as_ref(), start + offset),
            (None, Some(value)) => function.write_bar(offset, &value.to_le_bytes()[..access.width.bytes()]),
            (None, None) => function.read_bar(offset, &mut [0; 8][..access.width.bytes()]),
        }
    }

    /// Selects a register; returns the data port's offset.
    fn select(&self, slot: u8, register: u8) -> u64 {
        let address = 0x8000_0000 | u32::from(slot % 4) << 11 | u32::from(register & !3);
        self.ports.write(0, &address.to_le_bytes());
        u64::from(4 + register % 4)
    }

    fn write_configuration(&self, slot: u8, register: u8, data: &[u8]) {
        let offset = self.select(slot, register);
        self.ports.write(offset, data);
    }

    fn read_configuration<const N: usize>(&self, slot: u8, register: u8) -> [u8; N] {
        let offset = self.select(slot, register);
        let mut data = [0; N];
        self.ports.read(offset, &mut data);
        data
    }

    fn decode(&self, slot: u8, is_on: bool) {
        self.write_configuration(slot, 4, &[if is_on { 6 } else { 0 }]);
    }

    /// The offset of the MSI-X capability.
    fn msix_capability(&self, slot: u8) -> u8 {
        self.capability(slot, |[id, _next, _len, _cfg_type]| id == 0x11)
    }

    /// The offset of the configuration access capability (`VIRTIO_PCI_CAP_PCI_CFG`).
    fn access_capability(&self, slot: u8) -> u8 {
        self.capability(slot, |[id, _next, _len, cfg_type]| (id, cfg_type) == (0x09, 5))
    }

    /// The offset of a capability, found as a driver finds it.
    fn capability(&self, slot: u8, is_wanted: impl Fn([u8; 4]) -> bool) -> u8 {
        let [mut offset] = self.read_configuration(slot, 0x34);
        for _ in 0..48 {
            let head: [u8; 4] = self.read_configuration(slot, offset);
            if is_wanted(head) {
                return offset;
            }
            offset = head[1];
        }
        panic!("a capability of slot {slot} is gone");
    }

    fn finish(&self) {
        let identities = [0x0008_1b36_u32, 0x1044_1af4, 0x105a_1af4, u32::MAX];
        for (slot, identity) in (0..).zip(identities) {
            let mut data = [0xff; 4];
            let offset = self.select(slot, 0);
            self.ports.read(offset, &mut data);
            assert_eq!(u32::from_le_bytes(data), identity, "slot {slot}");
        }
        for slot in [1, 2] {
            assert!(self.msix_capability(slot) > self.access_capability(slot));
        }
        for device in &self.devices {
            device.bring_up();
            device.check();
        }
    }
}

impl Access64 {
    fn run(self, bus_device: &dyn BusDevice, offset: u64) {
        let len = self.width.bytes();
        match self.value {
            Some(value) => bus_device.write(offset, &value.to_le_bytes()[..len]),
            None => {
                let mut data = [0xaa; 8];
                bus_device.read(offset, &mut data[..len]);
                assert_eq!(data[len..], [0xaa; 8][len..]);
            }
        }
    }
}
