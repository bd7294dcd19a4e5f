//! Queue registers written at the wrong time or with wrong values stay as they were, and the device keeps working.

use devices::testing::{STATUS_FEATURES_OK, STATUS_LIVE, VERSION_1, common};

use crate::rig::{HIPRIO, REQUESTS, Rig};

/// Everything that the registers of a queue say.
fn registers(rig: &Rig, queue: u16) -> (u16, u16, [[u8; 4]; 6]) {
    rig.driver.write_common(common::QUEUE_SELECT, &queue.to_le_bytes());
    let addresses = [0, 4, 8, 12, 16, 20].map(|offset| rig.common(common::QUEUE_DESC + offset));
    let word = |offset| u16::from_le_bytes(rig.common(offset));
    (word(common::QUEUE_SIZE), word(common::QUEUE_ENABLE), addresses)
}

/// Writes other values to all registers of a queue, in each width that is a register's own.
fn rewrite(rig: &Rig, queue: u16) {
    rig.driver.write_common(common::QUEUE_SELECT, &queue.to_le_bytes());
    for size in [0_u16, 1, 3, 16, 64, 129, 256, 1024, 0x8000, 0xffff] {
        rig.driver.write_common(common::QUEUE_SIZE, &size.to_le_bytes());
    }
    for enable in [0_u16, 2, 0x100, 0xffff, 1] {
        rig.driver.write_common(common::QUEUE_ENABLE, &enable.to_le_bytes());
    }
    for value in [0_u64, 0x1000, 0xffff_fff0, u64::MAX - 15, u64::MAX] {
        for register in 0..3 {
            rig.driver.write_common(common::QUEUE_DESC + 8 * register, &value.to_le_bytes());
        }
        for register in 0..6 {
            rig.driver.write_common(common::QUEUE_DESC + 4 * register, &value.to_le_bytes()[..4]);
        }
    }
}

/// Set up to the point where queues are next.
fn negotiated() -> Rig {
    let rig = Rig::new();
    rig.driver.enable_memory_and_msix();
    rig.driver.accept(VERSION_1);
    rig.driver.set_status(STATUS_FEATURES_OK);
    rig
}

#[test]
fn registers_stay_once_the_queue_is_enabled() {
    let mut rig = negotiated();
    for queue in [HIPRIO, REQUESTS] {
        rig.driver.set_up_queue(queue);
    }
    let before = [registers(&rig, HIPRIO), registers(&rig, REQUESTS)];
    assert_eq!(before[1].1, 1);
    for queue in [HIPRIO, REQUESTS] {
        rewrite(&rig, queue);
    }
    assert_eq!([registers(&rig, HIPRIO), registers(&rig, REQUESTS)], before);
    rig.driver.set_status(STATUS_LIVE);
    assert_eq!(rig.driver.status(), STATUS_LIVE);
    rig.assert_serves();
}

#[test]
fn registers_stay_while_the_device_is_live() {
    let mut rig = Rig::live();
    let before = [registers(&rig, HIPRIO), registers(&rig, REQUESTS)];
    for _ in 0..3 {
        for queue in [HIPRIO, REQUESTS] {
            rewrite(&rig, queue);
        }
        assert_eq!([registers(&rig, HIPRIO), registers(&rig, REQUESTS)], before);
        rig.assert_serves();
    }
}

#[test]
fn queue_that_was_not_enabled_cannot_be_enabled_while_the_device_is_live() {
    let mut rig = negotiated();
    rig.driver.set_up_queue(REQUESTS);
    rig.driver.set_status(STATUS_LIVE);
    rig.driver.set_up_queue(HIPRIO);
    assert_eq!(registers(&rig, HIPRIO).1, 0);
    rig.driver.set_available_index(HIPRIO, 1);
    rig.driver.serve(HIPRIO);
    assert!(rig.driver.used(HIPRIO).is_empty());
    rig.assert_serves();
}

#[test]
fn size_that_is_no_power_of_two_up_to_the_maximum_is_not_taken() {
    let rig = negotiated();
    rig.driver.write_common(common::QUEUE_SELECT, &REQUESTS.to_le_bytes());
    rig.driver.write_common(common::QUEUE_SIZE, &16_u16.to_le_bytes());
    for size in [0_u16, 3, 127, 129, 256, 0x8000, 0xfffe, 0xffff] {
        rig.driver.write_common(common::QUEUE_SIZE, &size.to_le_bytes());
        assert_eq!(rig.driver.queue_size(REQUESTS), 16, "{size}");
    }
    for size in [1_u16, 2, 64, 128] {
        rig.driver.write_common(common::QUEUE_SIZE, &size.to_le_bytes());
        assert_eq!(rig.driver.queue_size(REQUESTS), size);
    }
}

#[test]
fn smallest_queue_serves() {
    let mut rig = negotiated();
    rig.driver.write_common(common::QUEUE_SELECT, &REQUESTS.to_le_bytes());
    rig.driver.write_common(common::QUEUE_SIZE, &2_u16.to_le_bytes());
    rig.driver.set_up_queue(REQUESTS);
    rig.driver.set_status(STATUS_LIVE);
    for _ in 0..5 {
        rig.assert_serves();
    }
}

#[test]
fn enabling_takes_one_and_nothing_else() {
    for value in [0_u16, 2, 3, 0x100, 0x8000, 0xffff] {
        let rig = negotiated();
        rig.driver.write_common(common::QUEUE_SELECT, &REQUESTS.to_le_bytes());
        rig.driver.write_common(common::QUEUE_ENABLE, &value.to_le_bytes());
        assert_eq!(registers(&rig, REQUESTS).1, 0, "{value:#x}");
    }
}

#[test]
fn queue_that_is_not_there_reads_as_absent_and_takes_nothing() {
    let mut rig = negotiated();
    for queue in [2_u16, 3, 0x100, 0x7fff, 0xffff] {
        rewrite(&rig, queue);
        rig.driver.write_common(common::QUEUE_MSIX_VECTOR, &[0, 0]);
        assert_eq!(registers(&rig, queue), (0, 0, [[0; 4]; 6]));
        assert_eq!(rig.common(common::QUEUE_MSIX_VECTOR), [0xff, 0xff]);
        rig.driver.serve(queue);
    }
    rig.assert_reset_mends();
}

#[test]
fn accesses_that_are_no_registers_change_nothing() {
    let mut rig = Rig::live();
    let before = (registers(&rig, REQUESTS), rig.driver.status());
    for offset in 0..0x100 {
        for len in [1, 2, 3, 4, 8] {
            // A byte to the status register is one of its own.
            if (offset, len) == (common::DEVICE_STATUS, 1) {
                continue;
            }
            rig.driver.write_common(offset, &[0xff; 8][..len]);
            rig.driver.write_common(offset, &[0; 8][..len]);
            let _: [u8; 8] = rig.common(offset);
        }
    }
    assert_eq!((registers(&rig, REQUESTS), rig.driver.status()), before);
    rig.assert_serves();
}
