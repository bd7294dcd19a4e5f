//! A chain, however it is built, comes back exactly once, and the device goes on.

use devices::testing::{Descriptor, STATUS_LIVE, descriptor};

use crate::rig::{
    GETATTR, HIGH_RAM, HIGH_RAM_LEN, RAM_LEN, REPLY_AT, REQUEST_AT, REQUESTS, ROOT, Reply, Rig, TABLE_AT,
    indirect, readable, request, writable,
};

const GETATTR_REPLY_LEN: u32 = 120;

/// A live device with a GETATTR at [`REQUEST_AT`].
fn rig_with_request() -> Rig {
    let rig = Rig::live();
    rig.put(REQUEST_AT, &request(GETATTR, 5, ROOT, &[0; 16]));
    rig
}

/// The reply's header at [`REPLY_AT`].
fn reply(rig: &Rig) -> Reply {
    Reply::of(&rig.bytes(REPLY_AT, 16))
}

/// Serves the chain at head 0, which expects no proper answer; then the device must still work.
fn serves_on_after(rig: &mut Rig) -> u32 {
    let len = rig.serve_one(REQUESTS);
    assert_eq!(rig.driver.status(), STATUS_LIVE);
    rig.assert_serves();
    len
}

#[test]
fn loop_of_descriptors_ends() {
    for flags in [descriptor::NEXT, descriptor::NEXT | descriptor::WRITE] {
        let mut rig = rig_with_request();
        let to_itself = Descriptor { address: REQUEST_AT, len: 56, flags, next: 0 };
        rig.driver.put_descriptor(REQUESTS, 0, to_itself);
        serves_on_after(&mut rig);
        let pair = |next| Descriptor { address: REPLY_AT, len: 1, flags, next };
        rig.driver.put_descriptor(REQUESTS, 0, pair(1));
        rig.driver.put_descriptor(REQUESTS, 1, pair(0));
        serves_on_after(&mut rig);
    }
}

#[test]
fn next_beyond_the_table_ends_the_chain() {
    for next in [128, 129, 0x7fff, 0xffff] {
        let mut rig = rig_with_request();
        let first = Descriptor { address: REQUEST_AT, len: 56, flags: descriptor::NEXT, next };
        rig.driver.put_descriptor(REQUESTS, 0, first);
        assert_eq!(serves_on_after(&mut rig), 0, "there is no room for a reply");
        assert!(rig.counters.read().no_room_for_reply > 0);
    }
}

#[test]
fn head_beyond_the_table_makes_the_device_unusable_until_reset() {
    for head in [128, 0x7fff, 0xffff] {
        let mut rig = rig_with_request();
        rig.driver.make_available(REQUESTS, head);
        rig.driver.serve(REQUESTS);
        assert_eq!(rig.driver.status(), STATUS_LIVE | 64);
        assert_eq!(rig.config_interrupts(), 1);
        rig.assert_reset_mends();
    }
}

#[test]
fn same_head_twice_comes_back_twice() {
    let mut rig = rig_with_request();
    rig.put_chain(REQUESTS, &[readable(REQUEST_AT, 56), writable(REPLY_AT, 4096)]);
    for _ in 0..100 {
        rig.driver.make_available(REQUESTS, 0);
    }
    rig.driver.serve(REQUESTS);
    rig.driver.serve(REQUESTS);
    assert_eq!(rig.driver.used(REQUESTS), vec![(0, GETATTR_REPLY_LEN); 100]);
    rig.assert_serves();
}

#[test]
fn indirect_table_serves_and_its_lies_do_not_hurt() {
    let table = [
        Descriptor { address: REQUEST_AT, len: 56, flags: descriptor::NEXT, next: 1 },
        writable(REPLY_AT, 4096),
    ];
    let bytes = [table[0].bytes(), table[1].bytes()].concat();
    // (length of the table, whether the chain in it can be followed to its end)
    let lens = [
        (32, true),
        (65535 * 16, true),
        (0, false),
        (1, false),
        (15, false),
        (16, false),
        (31, false),
        (33, false),
        (65536 * 16, false),
        (u32::MAX, false),
        (u32::MAX - 15, false),
    ];
    for (len, is_whole) in lens {
        let mut rig = rig_with_request();
        rig.put(TABLE_AT, &bytes);
        rig.put_chain(REQUESTS, &[indirect(len)]);
        let used = serves_on_after(&mut rig);
        assert_eq!(used, if is_whole { GETATTR_REPLY_LEN } else { 0 }, "table of {len} bytes");
        // NEXT beside INDIRECT is forbidden (§2.7.5.3.1); what would follow is not looked at.
        rig.put_chain(REQUESTS, &[indirect(len), writable(REPLY_AT, 4096)]);
        serves_on_after(&mut rig);
    }
}

#[test]
fn indirect_table_in_an_indirect_table_ends_the_chain() {
    for flags in [descriptor::INDIRECT, descriptor::INDIRECT | descriptor::NEXT] {
        let mut rig = rig_with_request();
        let inner = Descriptor { address: TABLE_AT, len: 16, flags, next: 0 };
        rig.put(TABLE_AT, &inner.bytes());
        rig.put_chain(REQUESTS, &[indirect(16)]);
        assert_eq!(serves_on_after(&mut rig), 0);
    }
}

#[test]
fn indirect_table_outside_of_ram_ends_the_chain() {
    for address in [RAM_LEN - 16, RAM_LEN - 8, RAM_LEN, HIGH_RAM + HIGH_RAM_LEN, 1 << 60, u64::MAX - 15] {
        let mut rig = rig_with_request();
        rig.put_chain(REQUESTS, &[Descriptor { address, ..indirect(64) }]);
        serves_on_after(&mut rig);
    }
}

#[test]
fn longest_chain_a_driver_may_make_is_served_and_a_longer_one_is_refused() {
    for (descriptors, error) in [(1024_u16, 0), (1025, -5), (65535, -5)] {
        let mut rig = rig_with_request();
        let mut table = Vec::new();
        for index in 0..descriptors - 1 {
            let buffer = match index {
                0 => readable(REQUEST_AT, 56),
                1 => writable(REPLY_AT, 4096),
                _ => writable(REPLY_AT, 0),
            };
            let chained = Descriptor { flags: buffer.flags | descriptor::NEXT, next: index + 1, ..buffer };
            table.extend_from_slice(&chained.bytes());
        }
        table.extend_from_slice(&writable(REPLY_AT, 1).bytes());
        rig.put(TABLE_AT, &table);
        rig.put_chain(REQUESTS, &[indirect(u32::try_from(table.len()).unwrap())]);
        let used = rig.serve_one(REQUESTS);
        assert_eq!(reply(&rig), Reply { len: used, error, unique: 5 });
        rig.assert_serves();
    }
}

#[test]
fn zero_length_descriptors_are_harmless_anywhere() {
    let mut rig = rig_with_request();
    let (request, room) = (readable(REQUEST_AT, 56), writable(REPLY_AT, 4096));
    let (nothing, no_room) = (readable(REQUEST_AT, 0), writable(REPLY_AT, 0));
    for chain in
        [vec![nothing, request, nothing, no_room, room, no_room], vec![no_room, nothing, request, room]]
    {
        rig.put_chain(REQUESTS, &chain);
        assert_eq!(rig.serve_one(REQUESTS), GETATTR_REPLY_LEN);
    }
    rig.put_chain(REQUESTS, &[nothing, no_room]);
    assert_eq!(serves_on_after(&mut rig), 0);
    rig.put_chain(REQUESTS, &[readable(u64::MAX, 0), request, room]);
    serves_on_after(&mut rig);
}

#[test]
fn room_before_the_request_is_answered_all_the_same() {
    let mut rig = rig_with_request();
    rig.put_chain(REQUESTS, &[writable(REPLY_AT, 4096), readable(REQUEST_AT, 56)]);
    assert_eq!(rig.serve_one(REQUESTS), GETATTR_REPLY_LEN);
    assert_eq!(reply(&rig), Reply { len: GETATTR_REPLY_LEN, error: 0, unique: 5 });
}

#[test]
fn request_and_room_split_into_single_bytes_are_served() {
    let mut rig = rig_with_request();
    let request = (0..56).map(|index| readable(REQUEST_AT + index, 1));
    let room = (0..64).map(|index| writable(REPLY_AT + index, if index < 63 { 1 } else { 4096 }));
    rig.put_chain(REQUESTS, &request.chain(room).collect::<Vec<_>>());
    assert_eq!(rig.serve_one(REQUESTS), GETATTR_REPLY_LEN);
    assert_eq!(reply(&rig).unique, 5);
}

#[test]
fn lengths_at_the_edges_of_u32_neither_overflow_nor_reach_beyond_ram() {
    let edges = [0, 1, 15, 16, 1 << 20, 1 << 31, u32::MAX - 15, u32::MAX - 1, u32::MAX];
    for request_len in edges {
        for room in edges {
            let mut rig = rig_with_request();
            rig.put_chain(
                REQUESTS,
                &[
                    readable(REQUEST_AT, 56),
                    readable(REQUEST_AT, request_len),
                    writable(REPLY_AT, room),
                    writable(REPLY_AT, room),
                ],
            );
            serves_on_after(&mut rig);
        }
    }
}

#[test]
fn buffers_outside_of_ram_are_refused_with_a_reply_where_there_is_room() {
    let mut rig = rig_with_request();
    let starts = [
        RAM_LEN - 55,
        RAM_LEN - 1,
        RAM_LEN,
        RAM_LEN + 0xfff,
        HIGH_RAM + HIGH_RAM_LEN - 8,
        HIGH_RAM + HIGH_RAM_LEN,
        1 << 32,
        1 << 63,
        u64::MAX - 55,
        u64::MAX,
    ];
    for start in starts {
        rig.put_chain(REQUESTS, &[readable(start, 56), writable(REPLY_AT, 64)]);
        assert_eq!(rig.serve_one(REQUESTS), 16, "request at {start:#x}");
        assert!(reply(&rig).error < 0);
        rig.put_chain(REQUESTS, &[readable(REQUEST_AT, 56), writable(start, 256)]);
        assert!(matches!(rig.serve_one(REQUESTS), 0 | 16), "room at {start:#x}");
        // A header fits in the first buffer whatever the second is.
        rig.put_chain(REQUESTS, &[readable(REQUEST_AT, 56), writable(REPLY_AT, 16), writable(start, 256)]);
        assert_eq!(rig.serve_one(REQUESTS), 16);
        assert_eq!(reply(&rig), Reply { len: 16, error: -5, unique: 5 });
    }
    rig.assert_serves();
}

#[test]
fn chain_of_only_one_kind_comes_back() {
    let mut rig = rig_with_request();
    rig.put_chain(REQUESTS, &[readable(REQUEST_AT, 56)]);
    assert_eq!(serves_on_after(&mut rig), 0);
    rig.put_chain(REQUESTS, &[writable(REPLY_AT, 4096)]);
    assert_eq!(serves_on_after(&mut rig), 16);
    rig.put_chain(REQUESTS, &[Descriptor { address: REQUEST_AT, len: 56, flags: 0xfff8, next: 0 }]);
    serves_on_after(&mut rig);
}

#[test]
fn reply_may_overwrite_the_request_and_the_rings() {
    for target in [REQUEST_AT, devices::testing::rings(REQUESTS), devices::testing::rings(REQUESTS) + 0xa000]
    {
        let mut rig = rig_with_request();
        rig.put_chain(REQUESTS, &[readable(REQUEST_AT, 56), writable(target, 4096)]);
        rig.driver.make_available(REQUESTS, 0);
        rig.driver.serve(REQUESTS);
        rig.assert_reset_mends();
    }
}
