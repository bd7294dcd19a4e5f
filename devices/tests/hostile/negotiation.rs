//! Status and features in any order: the device is live only after a proper negotiation, and a reset mends everything.

use devices::testing::{STATUS_FEATURES_OK, STATUS_LIVE, VERSION_1, common};

use crate::rig::{REPLY_AT, REQUESTS, Rig, readable, request, writable};

const NEEDS_RESET: u8 = 64;
const GETATTR: u32 = 3;

/// Offers a request and has the device serve; true when it was answered.
fn is_served(rig: &mut Rig) -> bool {
    rig.put(crate::rig::REQUEST_AT, &request(GETATTR, 1, 1, &[0; 16]));
    rig.put_chain(REQUESTS, &[readable(crate::rig::REQUEST_AT, 56), writable(REPLY_AT, 256)]);
    rig.driver.make_available(REQUESTS, 0);
    rig.driver.serve(REQUESTS);
    !rig.driver.used(REQUESTS).is_empty()
}

#[test]
fn nothing_is_served_before_driver_ok() {
    for status in [0, 1, 3, STATUS_FEATURES_OK] {
        let mut rig = Rig::new();
        rig.driver.enable_memory_and_msix();
        rig.driver.accept(VERSION_1);
        rig.driver.set_status(status);
        rig.driver.set_up_queue(REQUESTS);
        assert!(!is_served(&mut rig), "status {status}");
        rig.assert_reset_mends();
    }
}

#[test]
fn driver_ok_without_features_ok_makes_the_device_unusable() {
    for status in [4, 4 | 1, 4 | 2, 7] {
        let mut rig = Rig::new();
        rig.driver.enable_memory_and_msix();
        rig.driver.write_common(common::CONFIG_MSIX_VECTOR, &2_u16.to_le_bytes());
        rig.driver.accept(VERSION_1);
        rig.driver.set_up_queue(REQUESTS);
        rig.driver.set_status(status);
        assert_eq!(rig.driver.status(), status | NEEDS_RESET);
        assert_eq!(rig.config_interrupts(), 1);
        assert!(!is_served(&mut rig));
        // Too late.
        rig.driver.set_status(STATUS_LIVE);
        assert!(!is_served(&mut rig));
        rig.assert_reset_mends();
    }
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_accepted() {
    for features in [0, 1, 1 << 28, VERSION_1 | 1, VERSION_1 | 1 << 33, VERSION_1 | 1 << 63, u64::MAX] {
        let mut rig = Rig::new();
        rig.driver.enable_memory_and_msix();
        rig.driver.accept(features);
        rig.driver.set_status(STATUS_FEATURES_OK);
        assert_eq!(rig.driver.status(), 3, "{features:#x}");
        rig.driver.set_up_queue(REQUESTS);
        // Both at once are refused both.
        rig.driver.set_status(STATUS_LIVE);
        assert_eq!(rig.driver.status(), 3);
        assert!(!is_served(&mut rig));
        rig.assert_reset_mends();
    }
}

#[test]
fn features_stay_once_accepted() {
    let mut rig = Rig::new();
    rig.driver.enable_memory_and_msix();
    rig.driver.accept(VERSION_1);
    rig.driver.set_status(STATUS_FEATURES_OK);
    rig.driver.accept(u64::MAX);
    for (select, half) in [(0_u32, 0_u32), (1, 1)] {
        rig.driver.write_common(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
        assert_eq!(rig.common(common::DRIVER_FEATURE), half.to_le_bytes());
    }
    rig.driver.set_up_queue(REQUESTS);
    rig.driver.set_status(STATUS_LIVE);
    rig.assert_serves();
}

#[test]
fn feature_words_beyond_the_second_do_not_exist() {
    let mut rig = Rig::new();
    for select in [2_u32, 3, 0x8000_0000, u32::MAX] {
        for register in [0, common::DRIVER_FEATURE_SELECT] {
            rig.driver.write_common(register, &select.to_le_bytes());
            rig.driver.write_common(register + 4, &[0xff; 4]);
            assert_eq!(rig.common(register + 4), [0; 4]);
        }
    }
    rig.assert_reset_mends();
}

#[test]
fn status_bits_can_be_added_but_not_taken_away() {
    let mut rig = Rig::live();
    for status in [1, 2, 4, 8, 3, STATUS_FEATURES_OK, STATUS_LIVE] {
        rig.driver.set_status(status);
        assert_eq!(rig.driver.status(), STATUS_LIVE);
        rig.assert_serves();
    }
    // NEEDS_RESET is the device's own; FAILED is the driver's good-bye, which changes nothing for us.
    rig.driver.set_status(0xff);
    assert_eq!(rig.driver.status() & NEEDS_RESET, 0);
    rig.assert_reset_mends();
}

#[test]
fn reset_works_in_every_state() {
    let states: [fn(&mut Rig); 7] = [
        |_| {},
        |rig| rig.driver.set_status(1),
        |rig| rig.driver.set_status(3),
        |rig| {
            rig.driver.accept(VERSION_1);
            rig.driver.set_status(STATUS_FEATURES_OK);
            rig.driver.set_up_queue(REQUESTS);
        },
        |rig| {
            rig.driver.bring_up(VERSION_1);
            rig.assert_serves();
        },
        |rig| {
            rig.driver.bring_up(VERSION_1);
            rig.driver.set_available_index(REQUESTS, 0x4000);
            rig.driver.serve(REQUESTS);
        },
        |rig| rig.driver.set_status(0xff),
    ];
    for enter in states {
        let mut rig = Rig::new();
        rig.driver.enable_memory_and_msix();
        for _ in 0..3 {
            enter(&mut rig);
            rig.driver.set_status(0);
            assert_eq!(rig.driver.status(), 0);
            assert_eq!(rig.driver.queue_size(REQUESTS), 128);
            assert_eq!(rig.common(common::QUEUE_ENABLE), [0, 0]);
            assert_eq!(rig.common(common::CONFIG_MSIX_VECTOR), [0xff, 0xff]);
            rig.driver.serve(REQUESTS);
        }
        rig.assert_reset_mends();
    }
}

#[test]
fn device_says_by_its_isr_register_that_it_needs_a_reset() {
    let mut rig = Rig::live();
    rig.driver.set_available_index(REQUESTS, 0x4000);
    rig.driver.serve(REQUESTS);
    // Only the first byte is the register, and reading it clears it.
    assert_eq!(rig.bar(devices::testing::bar::ISR), [2, 0, 0, 0]);
    assert_eq!(rig.bar(devices::testing::bar::ISR), [0]);
    rig.assert_reset_mends();
    rig.driver.set_available_index(REQUESTS, 0x4000);
    rig.driver.serve(REQUESTS);
    rig.assert_reset_mends();
    assert_eq!(rig.bar(devices::testing::bar::ISR), [0], "a reset clears it, too");
}
