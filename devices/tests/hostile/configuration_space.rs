//! PCI configuration space under any access: identity and capabilities stay, the BAR and its doorbells follow the
//! driver, and the access capability reaches the BAR and nothing else.

use std::sync::Arc;

use devices::BusDevice;
use devices::interrupt::MsiVector;
use devices::pci::{HostBridge, PciFunction, PciRoot};
use devices::testing::{RecordingDoorbells, RecordingVector, bar, common};
use devices::virtio::VirtioDevice;
use devices::virtio::pci::VirtioPci;
use devices::virtio::rng::Rng;
use vm_memory::GuestAddress;

use crate::rig::Rig;

const BAR0: usize = 0x10;
const COMMAND: usize = 4;

fn configuration<const N: usize>(rig: &Rig, offset: usize) -> [u8; N] {
    let mut data = [0; N];
    rig.driver.device.read_configuration(offset, &mut data);
    data
}

fn move_bar(rig: &Rig, address: u32) {
    rig.driver.device.write_configuration(BAR0, &address.to_le_bytes());
}

/// The offset of the PCI configuration access capability, the fifth of vendor capabilities.
fn access_capability(rig: &Rig) -> usize {
    let mut offset = usize::from(configuration::<1>(rig, 0x34)[0]);
    while configuration::<1>(rig, offset + 3) != [5] {
        offset = usize::from(configuration::<1>(rig, offset + 1)[0]);
    }
    offset
}

#[test]
fn what_is_read_only_stays_under_writes_of_any_offset_and_width() {
    let mut rig = Rig::live();
    let capability = access_capability(&rig);
    let msix_control = rig.driver.capability(0x11).unwrap() + 2;
    // Command, BAR 0, interrupt line, access capability's fields, message control.
    let is_writable = |offset: usize| {
        (COMMAND..COMMAND + 2).contains(&offset)
            || (BAR0..BAR0 + 4).contains(&offset)
            || offset == 0x3c
            || (capability + 4..capability + 20).contains(&offset)
            || offset == msix_control + 1
    };
    let before: [u8; 256] = configuration(&rig, 0);
    for value in [0xff, 0x00, 0xa5] {
        for offset in (0..260).chain([0xfff, 0x1_0000, usize::MAX - 8, usize::MAX]) {
            for len in [1, 2, 3, 4, 8] {
                rig.driver.device.write_configuration(offset, &[value; 8][..len]);
                let mut data = [0; 8];
                rig.driver.device.read_configuration(offset, &mut data[..len]);
            }
        }
        let after: [u8; 256] = configuration(&rig, 0);
        for offset in (0..256).filter(|offset| !is_writable(*offset)) {
            assert_eq!(after[offset], before[offset], "offset {offset:#x}");
        }
    }
    rig.assert_reset_mends();
}

#[test]
fn doorbells_follow_the_bar() {
    let mut rig = Rig::live();
    let doorbells = |rig: &Rig| rig.driver.doorbells.connected();
    assert_eq!(doorbells(&rig), [0xc000_3000, 0xc000_3004]);
    for (address, base) in [(0, 0), (u32::MAX, 0xffff_8000), (0xd000_1234, 0xd000_0000), (0x7fff, 0)] {
        move_bar(&rig, address);
        assert_eq!(rig.driver.device.bar(), Some(base..base + 0x8000));
        assert_eq!(doorbells(&rig), [base + 0x3000, base + 0x3004]);
        rig.assert_serves();
    }
    // A byte at a time, as no driver does.
    for offset in 0..4 {
        rig.driver.device.write_configuration(BAR0 + offset, &[0xc0]);
        assert_eq!(doorbells(&rig).len(), 2);
    }
    assert_eq!(rig.driver.device.bar(), Some(0xc0c0_8000..0xc0c1_0000));
}

#[test]
fn device_without_memory_decoding_has_no_bar_but_lives() {
    let mut rig = Rig::live();
    for _ in 0..3 {
        rig.driver.device.write_configuration(COMMAND, &[0]);
        assert_eq!((rig.driver.device.bar(), rig.driver.doorbells.connected()), (None, vec![]));
        move_bar(&rig, 0xd000_0000);
        assert!(rig.driver.doorbells.connected().is_empty());
        rig.assert_serves();
        rig.driver.device.write_configuration(COMMAND, &[2]);
        assert_eq!(rig.driver.doorbells.connected(), [0xd000_3000, 0xd000_3004]);
        rig.assert_serves();
    }
}

/// Sets the access capability's bar, offset and length.
fn select(rig: &Rig, bar: u8, offset: u32, len: u32) -> usize {
    let capability = access_capability(rig);
    rig.driver.device.write_configuration(capability + 4, &[bar]);
    rig.driver.device.write_configuration(capability + 8, &offset.to_le_bytes());
    rig.driver.device.write_configuration(capability + 12, &len.to_le_bytes());
    capability + 16
}

#[test]
fn access_capability_reaches_registers() {
    let rig = Rig::live();
    let status = u32::try_from(bar::COMMON + common::DEVICE_STATUS).unwrap();
    let data = select(&rig, 0, status, 1);
    assert_eq!(configuration(&rig, data), [15]);
    rig.driver.device.write_configuration(data, &[0]);
    assert_eq!(rig.driver.status(), 0);
    let sizes = select(&rig, 0, u32::try_from(common::QUEUE_SIZE).unwrap(), 2);
    assert_eq!(configuration(&rig, sizes), [128, 0]);
}

#[test]
fn access_capability_with_a_wild_selection_does_nothing() {
    let mut rig = Rig::live();
    let offsets =
        [0, 1, 3, 0x14, 0xfff, 0x1000, 0x3000, 0x4fff, 0x5fff, 0x6000, 0x7fff, 0x8000, 1 << 31, u32::MAX];
    for bar in [0, 1, 5, 6, 0xff] {
        for offset in offsets {
            for len in [0, 1, 2, 3, 4, 5, 8, 0x100, u32::MAX] {
                let is_status = (bar, offset) == (0, 0x14);
                let data = select(&rig, bar, offset, len);
                for width in [1, 2, 4] {
                    let mut value = [0xff; 4];
                    rig.driver.device.read_configuration(data, &mut value[..width]);
                    // All ones add FAILED and other bits to the status, zeros would reset.
                    rig.driver
                        .device
                        .write_configuration(data, &[if is_status { 15 } else { 0 }; 4][..width]);
                }
                // Not at the data field's own offset: the capability's bytes, nothing behind them.
                rig.driver.device.write_configuration(data + 1, &[0xff; 3]);
            }
        }
    }
    assert_eq!(rig.driver.status(), 15);
    rig.assert_reset_mends();
}

/// Two entropy devices on a root bus, with BARs side by side.
struct Bus {
    ports: Arc<dyn BusDevice>,
    window: Arc<dyn BusDevice>,
    doorbells: [Arc<RecordingDoorbells>; 2],
}

const WINDOW: u64 = 0xc000_0000;

impl Bus {
    fn new() -> Self {
        let memory = devices::GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let doorbells = [0, 1].map(|_| Arc::new(RecordingDoorbells::default()));
        let mut functions: Vec<Arc<dyn PciFunction>> = vec![Arc::new(HostBridge::new())];
        for (address, doorbells) in [0xc000_0000, 0xc000_8000].into_iter().zip(&doorbells) {
            let device: Box<dyn VirtioDevice> = Box::new(Rng);
            let vectors = (0..VirtioPci::vectors_for(device.as_ref()))
                .map(|_| Arc::new(RecordingVector::default()) as Arc<dyn MsiVector>)
                .collect();
            let function =
                VirtioPci::new(device, memory.clone(), address, vectors, Arc::clone(doorbells) as _).unwrap();
            functions.push(Arc::new(function));
        }
        let root = PciRoot::new(functions);
        let bus = Self { ports: root.ports(), window: root.window(WINDOW), doorbells };
        for slot in [1, 2] {
            bus.write(slot, COMMAND, &[6]);
        }
        bus
    }

    fn select(&self, slot: u32, register: usize) -> u64 {
        let address = 0x8000_0000 | slot << 11 | u32::try_from(register & !3).unwrap();
        self.ports.write(0, &address.to_le_bytes());
        4 + u64::try_from(register & 3).unwrap()
    }

    fn write(&self, slot: u32, register: usize, data: &[u8]) {
        let offset = self.select(slot, register);
        self.ports.write(offset, data);
    }

    fn read_window(&self, address: u64) -> [u8; 2] {
        let mut data = [0xff; 2];
        self.window.read(address - WINDOW, &mut data);
        data
    }
}

#[test]
fn bar_on_top_of_another_devices_leaves_both_usable_afterwards() {
    let bus = Bus::new();
    // The number of queues, which both have.
    let num_queues = [1, 0];
    bus.write(2, BAR0, &0xc000_0000_u32.to_le_bytes());
    assert_eq!(bus.read_window(0xc000_0012), num_queues);
    assert_eq!(bus.read_window(0xc000_8012), [0xff, 0xff]);
    bus.write(2, BAR0, &0xc001_0000_u32.to_le_bytes());
    assert_eq!([0xc000_0012, 0xc001_0012].map(|address| bus.read_window(address)), [num_queues; 2]);
    let connected = [0, 1].map(|device: usize| bus.doorbells[device].connected());
    assert_eq!(connected, [vec![0xc000_3000], vec![0xc001_3000]]);
}

#[test]
fn slots_functions_and_buses_that_are_not_there_answer_nothing() {
    let bus = Bus::new();
    for address in [0x8000_1800_u32, 0x8000_f800, 0x8000_0900, 0x8001_0800, 0x80ff_0800, 0x0000_0800, 0] {
        bus.ports.write(0, &address.to_le_bytes());
        for len in [1, 2, 4] {
            let mut data = [0xff; 4];
            bus.ports.write(4, &[0; 4][..len]);
            bus.ports.read(4, &mut data[..len]);
            assert_eq!(data, [0xff; 4], "{address:#x}");
        }
    }
    // The reserved bits 24 to 30 select nothing.
    bus.ports.write(0, &0xff00_0800_u32.to_le_bytes());
    let mut data = [0; 4];
    bus.ports.read(4, &mut data);
    assert_eq!(data, [0xf4, 0x1a, 0x44, 0x10]);
}

#[test]
fn ports_take_any_offset_and_width() {
    let bus = Bus::new();
    for register in (0..256).step_by(4) {
        for offset in 0..16 {
            for len in [1, 2, 3, 4, 8] {
                bus.select(1, register);
                let mut data = [0; 8];
                bus.ports.read(offset, &mut data[..len]);
                if offset > 0 {
                    bus.ports.write(offset, &[0xff; 8][..len]);
                }
            }
        }
    }
    for offset in [0, 1, 0x7fff, 0x8000, 0x1_0000, u64::MAX - WINDOW, u64::MAX] {
        for len in [1, 2, 4, 8] {
            let mut data = [0; 8];
            bus.window.read(offset, &mut data[..len]);
            bus.window.write(offset, &data[..len]);
        }
    }
}
