//! What a guest makes the host hold is bounded, and a reset, DESTROY or INIT drops all of it.

use crate::rig::{
    BATCH_FORGET, DESTROY, FORGET, GETATTR, HIPRIO, INIT, LOOKUP, OPENDIR, PUBLISHED, READ, READDIR,
    REQUESTS, ROOT, Reply, Rig, request,
};

const RELEASEDIR: u32 = 29;
/// As ProjectedFs has it.
const MAX_HANDLES: usize = 1024;
const ENFILE: i32 = -23;
const ESTALE: i32 = -116;

fn call(rig: &mut Rig, opcode: u32, node: u64, body: &[u8], room: u32) -> (Reply, Vec<u8>) {
    let (len, bytes) = rig.driver.request(REQUESTS, &request(opcode, 9, node, body), room).unwrap();
    let reply = Reply::of(&bytes);
    assert_eq!((reply.len, reply.unique), (len, 9));
    (reply, bytes[16..].to_vec())
}

fn look_up(rig: &mut Rig, parent: u64, name: &str) -> u64 {
    let (reply, entry) = call(rig, LOOKUP, parent, format!("{name}\0").as_bytes(), 256);
    assert_eq!(reply.error, 0, "{name}");
    u64::from_le_bytes(entry[..8].try_into().unwrap())
}

/// READ's or READDIR's arguments.
fn read_in(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    [&handle.to_le_bytes()[..], &offset.to_le_bytes(), &size.to_le_bytes(), &[0; 20]].concat()
}

/// FORGET, which is not answered, on the queue that Linux uses for it.
fn forget(rig: &mut Rig, node: u64, count: u64) {
    let request = request(FORGET, 0, node, &count.to_le_bytes());
    assert_eq!(rig.driver.request(HIPRIO, &request, 0), Some((0, vec![])));
}

fn held(rig: &Rig) -> (usize, u64, usize) {
    let statistics = rig.file_system.statistics();
    (statistics.live_nodes, statistics.lookups, statistics.directory_handles)
}

/// Has the host hold nodes, lookups and a directory handle.
fn hold(rig: &mut Rig) -> u64 {
    let data = look_up(rig, ROOT, PUBLISHED);
    let token = look_up(rig, data, "token");
    assert_eq!(call(rig, OPENDIR, ROOT, &[0; 8], 256).0.error, 0);
    assert_eq!(held(rig), (2, 2, 1));
    token
}

#[test]
fn lookups_without_forget_keep_memory_flat() {
    let mut rig = Rig::live();
    let data = look_up(&mut rig, ROOT, PUBLISHED);
    for _ in 0..25_000 {
        for (parent, name) in [(ROOT, "..data"), (ROOT, "token"), (data, "token"), (data, "sub")] {
            look_up(&mut rig, parent, name);
        }
        call(&mut rig, LOOKUP, ROOT, b"missing\0", 256);
    }
    let statistics = rig.file_system.statistics();
    assert_eq!((statistics.live_nodes, statistics.lookups), (5, 100_001));
    assert_eq!((statistics.generations, statistics.directory_handles), (1, 0));
}

#[test]
fn directories_opened_without_release_are_limited() {
    let mut rig = Rig::live();
    for number in 0..5000 {
        let error = call(&mut rig, OPENDIR, ROOT, &[0; 8], 256).0.error;
        assert_eq!(error, if number < MAX_HANDLES { 0 } else { ENFILE });
    }
    assert_eq!(held(&rig).2, MAX_HANDLES);
    for handle in 0..10_000_u64 {
        let release = [&handle.to_le_bytes()[..], &[0; 16]].concat();
        call(&mut rig, RELEASEDIR, ROOT, &release, 256);
    }
    assert_eq!(held(&rig).2, 0);
    assert_eq!(call(&mut rig, OPENDIR, ROOT, &[0; 8], 256).0.error, 0);
}

#[test]
fn reset_destroy_and_init_drop_everything() {
    let drops: [fn(&mut Rig); 4] = [
        |rig| rig.driver.set_status(0),
        |rig| {
            call(rig, DESTROY, 0, &[], 16);
        },
        |rig| {
            let init = [7_u32, 38, 0, 0].map(u32::to_le_bytes).concat();
            assert_eq!(call(rig, INIT, 0, &init, 256).0.error, 0);
        },
        |rig| {
            rig.driver.set_available_index(REQUESTS, 0x4000);
            rig.driver.serve(REQUESTS);
            rig.driver.set_status(0);
        },
    ];
    for drop_all in drops {
        let mut rig = Rig::live();
        for _ in 0..100 {
            let token = hold(&mut rig);
            drop_all(&mut rig);
            assert_eq!(held(&rig), (0, 0, 0));
            rig.assert_reset_mends();
            // Node ids are not reused, so an old one is no longer anything.
            assert_eq!(call(&mut rig, GETATTR, token, &[0; 16], 256).0.error, ESTALE);
        }
    }
}

#[test]
fn forgetting_more_than_was_looked_up_or_what_never_was_does_no_harm() {
    let mut rig = Rig::live();
    let token = hold(&mut rig);
    for node in [0, ROOT, 1000, 1 << 32, u64::MAX] {
        for count in [0, 1, u64::MAX] {
            forget(&mut rig, node, count);
        }
    }
    assert_eq!(held(&rig), (2, 2, 1));
    for count in [0, u64::MAX, 1, u64::MAX] {
        forget(&mut rig, token, count);
    }
    assert_eq!(held(&rig), (1, 1, 1));
    assert_eq!(call(&mut rig, GETATTR, token, &[0; 16], 256).0.error, ESTALE);
    rig.assert_serves();
}

#[test]
fn batch_forget_of_any_count_is_bounded_and_not_answered() {
    let mut rig = Rig::live();
    let token = hold(&mut rig);
    let malformed = rig.counters.read().malformed;
    let forget_one = [token.to_le_bytes(), 1_u64.to_le_bytes()].concat();
    for count in [2, 1000, 0xffff, 0x1_0000, 0x0fff_ffff, 0x1000_0000, u32::MAX] {
        let body = [&count.to_le_bytes()[..], &[0; 4], &forget_one].concat();
        let request = request(BATCH_FORGET, 0, 0, &body);
        assert_eq!(rig.driver.request(HIPRIO, &request, 0), Some((0, vec![])));
    }
    assert_eq!(rig.counters.read().malformed, malformed + 7);
    // Not one of a list that is not there is forgotten.
    assert_eq!(held(&rig), (2, 2, 1));
    let body = [&1_u32.to_le_bytes()[..], &[0; 4], &forget_one].concat();
    rig.driver.request(HIPRIO, &request(BATCH_FORGET, 0, 0, &body), 0).unwrap();
    assert_eq!(held(&rig), (1, 1, 1));
}

#[test]
fn read_of_any_size_and_offset_gives_what_there_is_and_what_fits() {
    let mut rig = Rig::live();
    let token = hold(&mut rig);
    let content = b"the token";
    for size in [0, 1, 9, 10, 4096, 1 << 20, u32::MAX] {
        for offset in [0, 1, 8, 9, 10, 1 << 32, 1 << 63, u64::MAX] {
            for room in [16, 17, 20, 25, 4096] {
                let (reply, data) = call(&mut rig, READ, token, &read_in(7, offset, size), room);
                assert_eq!(reply.error, 0);
                let rest =
                    usize::try_from(offset).map_or(&[][..], |at| content.get(at..).unwrap_or_default());
                let fitting = rest.len().min(size as usize).min(room as usize - 16);
                assert_eq!(data, rest[..fitting], "size {size}, offset {offset}, room {room}");
            }
        }
    }
}

#[test]
fn readdir_of_any_size_and_offset_is_answered() {
    let mut rig = Rig::live();
    let (reply, open) = call(&mut rig, OPENDIR, ROOT, &[0; 8], 256);
    assert_eq!(reply.error, 0);
    let handle = u64::from_le_bytes(open[..8].try_into().unwrap());
    for opcode in [READDIR, 44] {
        for size in [0, 1, 23, 24, 32, 100, 4080, 4096, 4097, 1 << 20, u32::MAX] {
            for offset in [0, 1, 2, 5, 6, 1 << 32, u64::MAX] {
                for handle in [handle, 0, u64::MAX] {
                    for room in [16, 17, 40, 4096] {
                        let (reply, data) =
                            call(&mut rig, opcode, ROOT, &read_in(handle, offset, size), room);
                        assert!(data.len() <= size as usize || reply.error < 0);
                    }
                }
            }
        }
    }
    assert_eq!(held(&rig), (0, 0, 1));
}
