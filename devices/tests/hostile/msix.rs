//! The MSI-X table in any state: an interrupt goes out, waits for its mask, or is dropped; registers are never out of range.

use devices::interrupt::MsiMessage;
use devices::pci::PciFunction;
use devices::testing::{bar, common};

use crate::rig::{HIPRIO, REQUESTS, Rig};

/// Three vectors: two queues and configuration changes.
const VECTORS: u64 = 3;
const TABLE_LEN: u64 = 16 * VECTORS;

fn set_mask(rig: &Rig, vector: u64, is_masked: bool) {
    rig.driver.device.write_bar(bar::MSIX_TABLE + 16 * vector + 12, &u32::from(is_masked).to_le_bytes());
}

/// Writes the enable (bit 7) and function mask (bit 6) byte of the message control register.
fn set_control(rig: &Rig, byte: u8) {
    let capability = rig.driver.capability(0x11).unwrap();
    rig.driver.device.write_configuration(capability + 3, &[byte]);
}

fn sent(rig: &Rig, queue: u16) -> u64 {
    rig.driver.vectors[usize::from(queue)].sent()
}

fn pending(rig: &Rig) -> u64 {
    u64::from_le_bytes(rig.bar(bar::MSIX_PENDING))
}

#[test]
fn masked_interrupt_waits_and_is_sent_once() {
    let mut rig = Rig::live();
    set_mask(&rig, 1, true);
    for _ in 0..5 {
        rig.assert_serves();
    }
    assert_eq!((sent(&rig, REQUESTS), pending(&rig)), (0, 0b10));
    for _ in 0..3 {
        set_mask(&rig, 1, false);
        set_mask(&rig, 1, true);
    }
    assert_eq!((sent(&rig, REQUESTS), pending(&rig)), (1, 0));
}

#[test]
fn function_mask_holds_every_vector_back() {
    let mut rig = Rig::live();
    set_control(&rig, 0xc0);
    rig.assert_serves();
    rig.driver.set_available_index(HIPRIO, 0x4000);
    rig.driver.serve(HIPRIO);
    assert_eq!((sent(&rig, REQUESTS), rig.config_interrupts(), pending(&rig)), (0, 0, 0b110));
    // The vector's own mask still counts when the function's is lifted.
    set_mask(&rig, 1, true);
    set_control(&rig, 0x80);
    assert_eq!((sent(&rig, REQUESTS), rig.config_interrupts(), pending(&rig)), (0, 1, 0b10));
}

#[test]
fn disabled_msix_sends_nothing() {
    let mut rig = Rig::live();
    for control in [0x00, 0x40] {
        set_control(&rig, control);
        rig.assert_serves();
        assert_eq!((sent(&rig, REQUESTS), pending(&rig)), (0, 0));
    }
    set_control(&rig, 0x80);
    rig.assert_serves();
    assert_eq!(sent(&rig, REQUESTS), 1);
}

#[test]
fn vector_that_is_not_there_reads_back_as_none_and_drops_its_interrupts() {
    let mut rig = Rig::live();
    rig.driver.write_common(common::QUEUE_SELECT, &REQUESTS.to_le_bytes());
    for vector in [3_u16, 4, 0x7ff, 0x800, 0xfffe, 0xffff] {
        for register in [common::QUEUE_MSIX_VECTOR, common::CONFIG_MSIX_VECTOR] {
            rig.driver.write_common(register, &vector.to_le_bytes());
            assert_eq!(rig.common(register), [0xff, 0xff]);
        }
        rig.assert_serves();
    }
    assert_eq!(rig.driver.vectors.iter().map(|vector| vector.sent()).sum::<u64>(), 0);
}

#[test]
fn all_queues_may_share_a_vector() {
    let mut rig = Rig::live();
    rig.driver.write_common(common::QUEUE_SELECT, &REQUESTS.to_le_bytes());
    rig.driver.write_common(common::QUEUE_MSIX_VECTOR, &[2, 0]);
    rig.assert_serves();
    assert_eq!((sent(&rig, REQUESTS), rig.config_interrupts()), (0, 1));
}

#[test]
fn table_takes_aligned_dwords_and_qwords_only() {
    let rig = Rig::live();
    let table = |rig: &Rig| {
        (0..TABLE_LEN / 4).map(|dword| rig.bar(bar::MSIX_TABLE + 4 * dword)).collect::<Vec<[u8; 4]>>()
    };
    let before = table(&rig);
    for offset in 0..TABLE_LEN + 16 {
        for len in [1_u64, 2, 3, 4, 5, 8] {
            let is_whole = matches!(len, 4 | 8) && offset % len == 0;
            if !is_whole {
                let len = usize::try_from(len).unwrap();
                rig.driver.device.write_bar(bar::MSIX_TABLE + offset, &[0xff; 8][..len]);
                let mut data = [0xaa; 8];
                rig.driver.device.read_bar(bar::MSIX_TABLE + offset, &mut data[..len]);
                assert_eq!(data, [0xaa; 8], "a read of {len} at {offset}");
            }
        }
    }
    assert_eq!(table(&rig), before);
}

#[test]
fn table_ends_after_its_last_vector() {
    let mut rig = Rig::live();
    let routed =
        |rig: &Rig| rig.driver.vectors.iter().map(|vector| vector.routes().len()).collect::<Vec<_>>();
    let before = routed(&rig);
    for offset in (TABLE_LEN..0x1000).step_by(8) {
        rig.driver.device.write_bar(bar::MSIX_TABLE + offset, &[0; 8]);
        assert_eq!(rig.bar(bar::MSIX_TABLE + offset), [0xff; 8]);
        rig.driver.device.write_bar(bar::MSIX_PENDING + offset, &[0xff; 8]);
        assert_eq!(rig.bar(bar::MSIX_PENDING + offset), [0; 8]);
    }
    // A qword may reach from the last entry to behind it.
    rig.driver.device.write_bar(bar::MSIX_TABLE + 0xff8, &[0; 8]);
    assert_eq!(routed(&rig), before);
    rig.assert_serves();
}

#[test]
fn pending_bits_cannot_be_written() {
    let rig = Rig::live();
    for len in [1, 2, 4, 8] {
        rig.driver.device.write_bar(bar::MSIX_PENDING, &[0xff; 8][..len]);
    }
    assert_eq!(pending(&rig), 0);
    for vector in 0..VECTORS {
        set_mask(&rig, vector, true);
        set_mask(&rig, vector, false);
    }
    assert_eq!(rig.driver.vectors.iter().map(|vector| vector.sent()).sum::<u64>(), 0);
}

#[test]
fn message_rewritten_while_masked_is_the_one_that_is_sent() {
    let mut rig = Rig::live();
    set_mask(&rig, 1, true);
    rig.assert_serves();
    let entry = bar::MSIX_TABLE + 16;
    rig.driver.device.write_bar(entry, &0xfee0_1003_u64.to_le_bytes());
    rig.driver.device.write_bar(entry + 8, &u32::MAX.to_le_bytes());
    set_mask(&rig, 1, false);
    // The two lowest address bits are always zero.
    let message = MsiMessage { address: 0xfee0_1000, data: u32::MAX };
    assert_eq!(rig.driver.vectors[1].routes().last(), Some(&message));
    assert_eq!(sent(&rig, REQUESTS), 1);
}

#[test]
fn unchanged_message_is_not_routed_again() {
    let rig = Rig::live();
    let before = rig.driver.vectors[1].routes().len();
    for _ in 0..1000 {
        set_mask(&rig, 1, true);
        set_mask(&rig, 1, false);
        set_control(&rig, 0xc0);
        set_control(&rig, 0x80);
    }
    assert_eq!(rig.driver.vectors[1].routes().len(), before);
}
