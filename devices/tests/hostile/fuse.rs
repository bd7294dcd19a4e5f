//! FUSE of every opcode, however malformed: each request that expects a reply gets exactly one, with a header that
//! tells its true length; nothing is changed; nothing panics.

use devices::testing::{Descriptor, STATUS_LIVE};

use crate::rig::{
    BATCH_FORGET, DESTROY, EIO, FORGET, GETATTR, INIT, LOOKUP, REPLY_AT, REQUEST_AT, REQUESTS, ROOT, Reply,
    Rig, readable, request, request_claiming, writable,
};

const INTERRUPT: u32 = 36;
const UNIQUE: u64 = 0x1122_3344_5566_7788;
const EROFS: i32 = -30;
const ENOSYS: i32 = -38;

fn opcodes() -> impl Iterator<Item = u32> {
    (0..=64).chain([4096, 1 << 20, u32::MAX])
}

fn expects_reply(opcode: u32) -> bool {
    !matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT)
}

/// A request's bytes and how they are put into descriptors.
struct Sent<'a> {
    opcode: u32,
    bytes: &'a [u8],
    /// Into how many descriptors the request is cut.
    parts: u32,
    /// Bytes of room for the reply, cut into as many descriptors.
    room: (u32, u32),
}

/// Cuts `len` bytes at `address` into `parts` descriptors.
fn cut(address: u64, len: u32, parts: u32, make: fn(u64, u32) -> Descriptor) -> Vec<Descriptor> {
    let parts = parts.min(len);
    let start = |part: u32| len / parts.max(1) * part;
    (0..parts)
        .map(|part| {
            let end = if part + 1 == parts { len } else { start(part + 1) };
            make(address + u64::from(start(part)), end - start(part))
        })
        .collect()
}

/// Sends it, checks everything that holds for any request, and returns the reply if there is one.
fn send(rig: &mut Rig, sent: &Sent<'_>) -> Option<Reply> {
    let what = format!("opcode {}, {} bytes, room {:?}", sent.opcode, sent.bytes.len(), sent.room);
    let no_room_before = rig.counters.read().no_room_for_reply;
    rig.put(REQUEST_AT, sent.bytes);
    rig.put(REPLY_AT, &[0xee; 16]);
    let mut chain = cut(REQUEST_AT, u32::try_from(sent.bytes.len()).unwrap(), sent.parts, readable);
    chain.extend(cut(REPLY_AT, sent.room.0, sent.room.1, writable));
    if chain.is_empty() {
        chain.push(readable(REQUEST_AT, 0));
    }
    rig.put_chain(REQUESTS, &chain);
    let used = rig.serve_one(REQUESTS);
    assert_eq!(rig.driver.status(), STATUS_LIVE, "{what}");
    let has_header = sent.bytes.len() >= 40;
    if has_header && !expects_reply(sent.opcode) {
        assert_eq!(used, 0, "{what} expects no reply");
        return None;
    }
    if sent.room.0 < 16 {
        assert_eq!(used, 0, "{what}");
        assert_eq!(rig.counters.read().no_room_for_reply, no_room_before + 1, "{what} must be counted");
        return None;
    }
    assert!((16..=sent.room.0).contains(&used), "{what}: used length {used}");
    let reply = Reply::of(&rig.bytes(REPLY_AT, 16));
    assert_eq!(reply.len, used, "{what}");
    assert_eq!(reply.unique, if has_header { UNIQUE } else { 0 }, "{what}");
    assert!((-4095..=0).contains(&reply.error), "{what}: error {}", reply.error);
    Some(reply)
}

const ROOMS: [(u32, u32); 9] =
    [(0, 1), (1, 1), (15, 1), (15, 15), (16, 1), (16, 16), (80, 1), (4096, 1), (4096, 60)];

fn bodies() -> Vec<Vec<u8>> {
    let mut bodies = vec![vec![], vec![0]];
    for len in [7, 8, 15, 16, 24, 32, 40, 56, 64, 88, 128, 300] {
        bodies.extend([vec![0; len], vec![0xff; len]]);
    }
    // Names: behind argument structures of every length, without NUL, as paths, too long, two of them.
    let long = [b'x'; 256];
    let names: [&[u8]; 9] = [
        b"token",
        b"token\0",
        b"\0",
        b"../../etc/passwd\0",
        b"..\0",
        b"/\0",
        b"a\0b\0",
        &long,
        b"\xff\xfe\0rest",
    ];
    for name in names {
        for arguments in [0, 8, 16] {
            bodies.push([&[0; 16][..arguments], name].concat());
        }
    }
    bodies.push([&long[..], b"\0"].concat());
    bodies
}

#[test]
fn any_body_is_answered_once() {
    for opcode in opcodes() {
        let mut rig = Rig::live();
        for body in bodies() {
            for room in ROOMS {
                for parts in [1, 60] {
                    let bytes = request(opcode, UNIQUE, ROOT, &body);
                    send(&mut rig, &Sent { opcode, bytes: &bytes, parts, room });
                }
            }
        }
        rig.assert_reset_mends();
    }
}

#[test]
fn lying_length_is_answered_once() {
    for opcode in opcodes() {
        let mut rig = Rig::live();
        for len in
            [0, 1, 39, 40, 41, 55, 57, 4096, 1 << 20, (1 << 20) + 4096, (1 << 20) + 4097, 1 << 31, u32::MAX]
        {
            for body in [&b""[..], b"token\0", &[0; 16], &[0xff; 64]] {
                for room in [(0, 1), (16, 1), (4096, 1)] {
                    let bytes = request_claiming(len, opcode, UNIQUE, ROOT, body);
                    send(&mut rig, &Sent { opcode, bytes: &bytes, parts: 1, room });
                }
            }
        }
        rig.assert_reset_mends();
    }
}

#[test]
fn request_without_a_whole_header_is_answered_with_eio() {
    let mut rig = Rig::live();
    for opcode in [LOOKUP, FORGET, DESTROY] {
        let whole = request(opcode, UNIQUE, ROOT, &[]);
        for len in 0..40 {
            for room in ROOMS {
                let reply = send(&mut rig, &Sent { opcode, bytes: &whole[..len], parts: 3, room });
                assert!(reply.is_none_or(|reply| reply.error == EIO));
            }
        }
    }
    assert!(rig.counters.read().malformed > 0);
    rig.assert_serves();
}

#[test]
fn huge_request_is_answered_once() {
    const LIMIT: usize = (1 << 20) + 4096;
    for opcode in opcodes() {
        let mut rig = Rig::live();
        for len in [1 << 20, LIMIT - 1, LIMIT, LIMIT + 1, 2 << 20] {
            let bytes = request(opcode, UNIQUE, ROOT, &vec![b'n'; len - 40]);
            for (parts, room) in [(1, (4096, 1)), (100, (16, 2)), (1, (0, 1))] {
                let reply = send(&mut rig, &Sent { opcode, bytes: &bytes, parts, room });
                if len > LIMIT
                    && let Some(reply) = reply
                {
                    let is_unknown = matches!(reply.error, EIO | EROFS | ENOSYS);
                    assert!(is_unknown, "opcode {opcode}, {len} bytes: {reply:?}");
                }
            }
        }
        rig.assert_serves();
    }
}

#[test]
fn any_node_is_answered_once() {
    for opcode in opcodes() {
        let mut rig = Rig::live();
        for node in [0, ROOT, 2, 3, 1 << 31, 1 << 32, u64::MAX - 1, u64::MAX] {
            for body in [&b"token\0"[..], &[0; 128], &[0xff; 128]] {
                let bytes = request(opcode, UNIQUE, node, body);
                send(&mut rig, &Sent { opcode, bytes: &bytes, parts: 1, room: (4096, 1) });
            }
        }
        rig.assert_serves();
    }
}

/// Well-formed requests that would change something: opcode and body.
fn changes() -> Vec<(u32, Vec<u8>)> {
    let behind = |arguments: usize, rest: &[u8]| [&vec![0; arguments], rest].concat();
    vec![
        (4, behind(88, b"")),
        (6, b"name\0target\0".to_vec()),
        (8, behind(16, b"name\0")),
        (9, behind(8, b"name\0")),
        (10, b"token\0".to_vec()),
        (11, b"sub\0".to_vec()),
        (12, behind(8, b"token\0other\0")),
        (13, behind(8, b"name\0")),
        (16, behind(40, b"data")),
        (21, [&1_u32.to_le_bytes()[..], &[0; 4], b"user.x\0v"].concat()),
        (24, b"user.x\0".to_vec()),
        (35, behind(16, b"name\0")),
        (39, behind(32, b"")),
        (43, behind(32, b"")),
        (45, behind(16, b"token\0other\0")),
        (47, behind(56, b"")),
        (51, behind(16, b"name\0")),
    ]
}

#[test]
fn everything_that_would_change_something_is_answered_with_erofs() {
    let mut rig = Rig::live();
    for (opcode, body) in changes() {
        for node in [ROOT, 2, u64::MAX] {
            let bytes = request(opcode, UNIQUE, node, &body);
            let reply = send(&mut rig, &Sent { opcode, bytes: &bytes, parts: 1, room: (4096, 1) }).unwrap();
            assert_eq!(
                reply,
                Reply { len: 16, error: EROFS, unique: UNIQUE },
                "opcode {opcode}, node {node}"
            );
        }
    }
}

#[test]
fn lookup_takes_names_only() {
    let mut rig = Rig::live();
    let long = [b'x'; 256];
    // (what follows the header, errno)
    let einval = -22;
    let cases: [(&[u8], i32); 8] = [
        (b"token\0", 0),
        (b"missing\0", -2),
        (b"\0", einval),
        (b".\0", einval),
        (b"..\0", einval),
        (b"/etc/passwd\0", einval),
        (b"..data/token\0", einval),
        (&[&long[..], b"\0"].concat(), -36),
    ];
    for (name, error) in cases {
        let bytes = request(LOOKUP, UNIQUE, ROOT, name);
        let reply =
            send(&mut rig, &Sent { opcode: LOOKUP, bytes: &bytes, parts: 1, room: (4096, 1) }).unwrap();
        assert_eq!(reply.error, error, "{name:?}");
    }
    for name in [&b""[..], b"token"] {
        let bytes = request(LOOKUP, UNIQUE, ROOT, name);
        let reply =
            send(&mut rig, &Sent { opcode: LOOKUP, bytes: &bytes, parts: 1, room: (4096, 1) }).unwrap();
        assert!(reply.error < 0, "{name:?}");
    }
}

#[test]
fn init_of_any_version_and_length_is_answered() {
    let mut rig = Rig::live();
    for major in [0_u32, 6, 7, 8, u32::MAX] {
        for minor in [0_u32, 3, 4, 8, 22, 23, 38, u32::MAX] {
            for flags in [0_u32, 1 << 30, u32::MAX] {
                for tail in [0, 4, 8, 48] {
                    let words = [major, minor, u32::MAX, flags].map(u32::to_le_bytes).concat();
                    let bytes = request(INIT, UNIQUE, 0, &[&words[..], &vec![0xff; tail]].concat());
                    for room in [(16, 1), (80, 1), (4096, 7)] {
                        send(&mut rig, &Sent { opcode: INIT, bytes: &bytes, parts: 2, room });
                    }
                }
            }
        }
    }
    rig.assert_serves();
}

#[test]
fn destroy_is_answered_and_the_device_serves_on() {
    let mut rig = Rig::live();
    for _ in 0..3 {
        let bytes = request(DESTROY, UNIQUE, 0, &[]);
        let reply = send(&mut rig, &Sent { opcode: DESTROY, bytes: &bytes, parts: 1, room: (16, 1) });
        assert_eq!(reply, Some(Reply { len: 16, error: 0, unique: UNIQUE }));
        rig.assert_serves();
    }
}

#[test]
fn opcodes_of_no_protocol_are_answered_with_enosys_and_counted() {
    let mut rig = Rig::live();
    for opcode in [0, 7, 19, 53, 64, 4096, 1 << 20, u32::MAX] {
        let before = rig.counters.read().unknown_opcodes;
        let bytes = request(opcode, UNIQUE, ROOT, &[0; 64]);
        let reply = send(&mut rig, &Sent { opcode, bytes: &bytes, parts: 1, room: (4096, 1) }).unwrap();
        assert_eq!(reply.error, ENOSYS);
        assert_eq!(rig.counters.read().unknown_opcodes, before + 1);
    }
    assert_eq!(rig.counters.read().requests.get("GETATTR"), None);
    rig.assert_serves();
    assert_eq!(rig.counters.read().requests["GETATTR"], 1);
    assert_eq!(GETATTR, 3);
}
