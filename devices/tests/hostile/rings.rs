//! Rings anywhere: outside of RAM, over each other, with any index. The device serves, or says that it needs a reset.

use std::cell::Cell;

use devices::GuestMemory;
use devices::testing::{DriverSide, STATUS_FEATURES_OK, STATUS_LIVE, VERSION_1, common};
use devices::virtio::{QueueError, Served, VirtioDevice, serve_chains};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use crate::rig::{
    GETATTR, HIGH_RAM, HIGH_RAM_LEN, RAM_LEN, REPLY_AT, REQUEST_AT, REQUESTS, ROOT, Rig, readable, request,
    ring_addresses, writable,
};

const NEEDS_RESET: u8 = 64;
const EVENT_IDX: u64 = 1 << 29;

/// Lengths of the rings of a queue of 128: table, available, used.
const RING_LENS: [u64; 3] = [128 * 16, 6 + 128 * 2, 6 + 128 * 8];
const RING_ALIGNMENTS: [u64; 3] = [16, 2, 4];

/// A device with everything set up but DRIVER_OK, and one ring of the request queue elsewhere.
fn with_ring_at(which: usize, address: u64) -> Rig {
    let rig = Rig::new();
    rig.driver.enable_memory_and_msix();
    rig.driver.set_status(STATUS_FEATURES_OK & !8);
    rig.driver.accept(VERSION_1);
    rig.driver.set_status(STATUS_FEATURES_OK);
    rig.driver.write_common(common::CONFIG_MSIX_VECTOR, &2_u16.to_le_bytes());
    for (index, ring) in (0..).zip(ring_addresses(REQUESTS)) {
        rig.set_ring(REQUESTS, index, ring);
    }
    rig.set_ring(REQUESTS, u64::try_from(which).unwrap(), address);
    rig.driver.write_common(common::QUEUE_ENABLE, &[1, 0]);
    rig
}

#[test]
fn ring_that_is_not_all_ram_makes_the_device_unusable() {
    for which in 0..3 {
        let (len, alignment) = (RING_LENS[which], RING_ALIGNMENTS[which]);
        let last_fitting = (RAM_LEN - len) & !(alignment - 1);
        let bad = [
            last_fitting + alignment,
            RAM_LEN - alignment,
            RAM_LEN,
            // In the hole, and from the hole into the RAM behind it.
            RAM_LEN + 0x800,
            HIGH_RAM - alignment,
            HIGH_RAM + HIGH_RAM_LEN - alignment,
            HIGH_RAM + HIGH_RAM_LEN,
            0xffff_fff0,
            1 << 32,
            u64::MAX - (alignment - 1),
        ];
        for address in bad {
            let mut rig = with_ring_at(which, address);
            rig.driver.set_status(STATUS_LIVE);
            assert_eq!(rig.driver.status(), STATUS_LIVE | NEEDS_RESET, "ring {which} at {address:#x}");
            assert_eq!(rig.config_interrupts(), 1);
            rig.driver.serve(REQUESTS);
            rig.assert_reset_mends();
        }
        for address in [last_fitting, HIGH_RAM, (HIGH_RAM + HIGH_RAM_LEN - len) & !(alignment - 1)] {
            let rig = with_ring_at(which, address);
            rig.driver.set_status(STATUS_LIVE);
            assert_eq!(rig.driver.status(), STATUS_LIVE, "ring {which} at {address:#x}");
            rig.driver.serve(REQUESTS);
        }
    }
}

#[test]
fn misaligned_ring_address_is_not_taken() {
    for (which, alignment) in RING_ALIGNMENTS.into_iter().enumerate() {
        for misalignment in 1..alignment {
            let before = ring_addresses(REQUESTS)[which];
            let rig = with_ring_at(which, before + misalignment);
            let register = common::QUEUE_DESC + 8 * u64::try_from(which).unwrap();
            assert_eq!(u64::from(u32::from_le_bytes(rig.common(register))), before);
        }
    }
}

#[test]
fn ring_at_address_zero_does_no_harm() {
    for which in 0..3 {
        let mut rig = with_ring_at(which, 0);
        rig.driver.set_status(STATUS_LIVE);
        rig.driver.set_available_index(REQUESTS, 1);
        rig.driver.serve(REQUESTS);
        rig.assert_reset_mends();
    }
}

#[test]
fn available_index_beyond_the_queue_makes_the_device_unusable() {
    for index in [129, 0x7fff, 0x8000, 0xffff] {
        for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
            let mut rig = Rig::new();
            rig.driver.bring_up(features);
            rig.driver.set_available_index(REQUESTS, index);
            rig.driver.serve(REQUESTS);
            assert_eq!(rig.driver.status(), STATUS_LIVE | NEEDS_RESET);
            assert_eq!(rig.config_interrupts(), 1);
            // Not served any more, and not told again.
            rig.driver.set_available_index(REQUESTS, 1);
            rig.driver.serve(REQUESTS);
            assert!(rig.driver.used(REQUESTS).is_empty());
            assert_eq!(rig.config_interrupts(), 1);
            rig.assert_reset_mends();
        }
    }
}

#[test]
fn indices_wrap() {
    let mut rig = Rig::live();
    for _ in 0..66_000 {
        let request = request(GETATTR, 1, ROOT, &[0; 16]);
        assert_eq!(rig.driver.request(REQUESTS, &request, 256).unwrap().0, 120);
    }
}

#[test]
fn rings_over_each_other_end() {
    let base = devices::testing::rings(REQUESTS);
    let offsets = [0_u64, 4, 8, 16, 64, 256];
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        for available in offsets {
            for used in offsets {
                let mut rig = Rig::new();
                rig.put(REQUEST_AT, &request(GETATTR, 1, ROOT, &[0; 16]));
                rig.driver.bring_up(features);
                rig.driver.set_status(0);
                rig.driver.accept(features);
                rig.driver.set_status(STATUS_FEATURES_OK);
                for (which, address) in [(0, base), (1, base + available), (2, base + used)] {
                    rig.set_ring(REQUESTS, which, address);
                }
                rig.driver.write_common(common::QUEUE_ENABLE, &[1, 0]);
                rig.driver.set_status(STATUS_LIVE);
                rig.put_chain(REQUESTS, &[readable(REQUEST_AT, 56), writable(REPLY_AT, 256)]);
                rig.put(base + available + 2, &[64, 0]);
                for _ in 0..10 {
                    rig.driver.serve(REQUESTS);
                }
                rig.assert_reset_mends();
            }
        }
    }
}

/// A device whose driver makes the next chain available while this one is served.
struct NeverEnding {
    handled: std::sync::Arc<parking_lot::Mutex<u64>>,
}

impl VirtioDevice for NeverEnding {
    fn device_id(&self) -> u16 {
        26
    }
    fn pci_class(&self) -> u32 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[128]
    }
    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}
    fn serve(
        &mut self,
        _queue_index: u16,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        let handled = Cell::new(0);
        let served = serve_chains(queue, memory, |_chain| {
            handled.set(handled.get() + 1);
            let index = GuestAddress(ring_addresses(0)[1] + 2);
            let available: u16 = memory.read_obj(index).unwrap();
            memory.write_obj(available.wrapping_add(1), index).unwrap();
            0
        });
        *self.handled.lock() += handled.get();
        served
    }
}

#[test]
fn never_ending_driver_does_not_keep_the_thread() {
    let handled = std::sync::Arc::default();
    let device = NeverEnding { handled: std::sync::Arc::clone(&handled) };
    let mut driver = DriverSide::live(Box::new(device), 2 << 20);
    driver.make_available(0, 0);
    for turn in 1..=5 {
        driver.serve(0);
        assert_eq!(*handled.lock(), 64 * turn, "a turn is bounded");
        // What is left has a notification of its own, so that it is not forgotten either.
        assert_eq!(driver.device.queue_events()[0].read().unwrap(), 1);
    }
}
