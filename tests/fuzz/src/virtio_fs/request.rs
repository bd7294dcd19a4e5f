//! FUSE requests: well-formed ones with any field wrong, in chains cut in any way.

use arbitrary::Arbitrary;
use devices::testing::{Descriptor, STATUS_LIVE, descriptor};
use vm_memory::{Bytes, GuestAddress};

use super::Run;
use super::guest::{Handle, Name, Node};

pub(super) const REQUEST_AT: u64 = 0x18_0000;
pub(super) const REPLY_AT: u64 = 0x1c_0000;
const TABLE_AT: u64 = 0x1e_0000;
const MAX_BODY: usize = 0x2_0000;
const REQUESTS: u16 = 1;
const EROFS: i32 = -30;

/// A request and how it is sent.
#[derive(Debug, Arbitrary)]
pub struct Request {
    pub(super) operation: Operation,
    pub(super) unique: u64,
    /// A length for the header other than the true one.
    claimed_len: Option<u32>,
    is_hiprio: bool,
    is_indirect: bool,
    /// Into how many descriptors request and room are cut.
    request_parts: u8,
    room_parts: u8,
    room: Room,
}

/// How much room there is for the reply.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Room {
    Ample,
    Exactly(u16),
    AroundAHeader(u8),
    None,
}

impl Room {
    fn len(self) -> u32 {
        match self {
            Self::Ample => 0x2000,
            Self::Exactly(len) => len.into(),
            Self::AroundAHeader(len) => (len % 34).into(),
            Self::None => 0,
        }
    }
}

/// What is asked for.
#[derive(Debug, Arbitrary)]
pub(super) enum Operation {
    LookUp {
        parent: Node,
        name: Name,
    },
    Forget {
        node: Node,
        count: u64,
    },
    BatchForget {
        claimed: Option<u32>,
        nodes: Vec<(Node, u8)>,
    },
    GetAttr {
        node: Node,
    },
    ReadLink {
        node: Node,
    },
    Read {
        node: Node,
        offset: Offset,
        size: Size,
    },
    OpenDir {
        node: Node,
    },
    ReadDir {
        node: Node,
        handle: Handle,
        offset: Offset,
        size: Size,
        is_plus: bool,
    },
    ReleaseDir {
        node: Node,
        handle: Handle,
    },
    StatFs {
        node: Node,
    },
    Init {
        is_version_7: bool,
        major: u8,
        minor: u8,
        flags: u32,
        tail: Vec<u8>,
    },
    Destroy,
    /// A well-formed request that would change something.
    Change {
        which: u8,
        node: Node,
    },
    /// One of the protocol's opcodes with one or two names behind arguments.
    Named {
        opcode: u8,
        node: Node,
        arguments: u8,
        name: Name,
        second: Option<Name>,
    },
    /// Any opcode, any body.
    Raw {
        opcode: u32,
        node: Node,
        body: Vec<u8>,
    },
    Any {
        opcode: u8,
        node: Node,
        body: Vec<u8>,
    },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Offset {
    Small(u8),
    Any(u64),
}

impl Offset {
    fn value(self) -> u64 {
        match self {
            Self::Small(offset) => offset.into(),
            Self::Any(offset) => offset,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Size {
    Page,
    Small(u8),
    Any(u32),
}

impl Size {
    pub(super) fn value(self) -> u32 {
        match self {
            Self::Page => 4096,
            Self::Small(size) => size.into(),
            Self::Any(size) => size,
        }
    }
}

impl Operation {
    pub(super) fn opcode(&self) -> u32 {
        match self {
            Self::LookUp { .. } => 1,
            Self::Forget { .. } => 2,
            Self::BatchForget { .. } => 42,
            Self::GetAttr { .. } => 3,
            Self::ReadLink { .. } => 5,
            Self::Read { .. } => 15,
            Self::OpenDir { .. } => 27,
            Self::ReadDir { is_plus, .. } => {
                if *is_plus {
                    44
                } else {
                    28
                }
            }
            Self::ReleaseDir { .. } => 29,
            Self::StatFs { .. } => 17,
            Self::Init { .. } => 26,
            Self::Destroy => 38,
            Self::Change { which, .. } => change(*which).0,
            Self::Named { opcode, .. } | Self::Any { opcode, .. } => u32::from(opcode % 64),
            Self::Raw { opcode, .. } => *opcode,
        }
    }

    pub(super) fn expects_reply(&self) -> bool {
        !matches!(self.opcode(), 2 | 36 | 42)
    }
}

/// Opcode, length of the arguments and what follows them. SETXATTR's value has the length that its arguments tell: none.
fn change(which: u8) -> (u32, usize, &'static [u8]) {
    const CHANGES: [(u32, usize, &[u8]); 17] = [
        (4, 88, b""),
        (6, 0, b"name\0target\0"),
        (8, 16, b"name\0"),
        (9, 8, b"name\0"),
        (10, 0, b"token\0"),
        (11, 0, b"sub\0"),
        (12, 8, b"token\0other\0"),
        (13, 8, b"name\0"),
        (16, 40, b"data"),
        (21, 8, b"user.x\0"),
        (24, 0, b"user.x\0"),
        (35, 16, b"name\0"),
        (39, 32, b""),
        (43, 32, b""),
        (45, 16, b"token\0other\0"),
        (47, 56, b""),
        (51, 16, b"name\0"),
    ];
    CHANGES[usize::from(which) % CHANGES.len()]
}

/// A FUSE reply.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) error: i32,
    pub(super) body: Vec<u8>,
}

impl Run {
    /// The node and the body of a request.
    fn encode(&self, operation: &Operation) -> (u64, Vec<u8>) {
        let guest = &self.guest;
        let read_in = |handle: u64, offset: Offset, size: Size| {
            let size = size.value().to_le_bytes();
            [&handle.to_le_bytes()[..], &offset.value().to_le_bytes(), &size, &[0; 20]].concat()
        };
        match operation {
            Operation::LookUp { parent, name } => (guest.node(*parent), guest.name(name)),
            Operation::Forget { node, count } => (guest.node(*node), count.to_le_bytes().to_vec()),
            Operation::BatchForget { claimed, nodes } => {
                let count = claimed.unwrap_or(u32::try_from(nodes.len()).expect("few"));
                let mut body = [count.to_le_bytes(), [0; 4]].concat();
                for (node, count) in nodes {
                    body.extend_from_slice(&guest.node(*node).to_le_bytes());
                    body.extend_from_slice(&u64::from(*count).to_le_bytes());
                }
                (0, body)
            }
            Operation::GetAttr { node } => (guest.node(*node), vec![0; 16]),
            Operation::ReadLink { node } | Operation::StatFs { node } => (guest.node(*node), vec![]),
            Operation::Read { node, offset, size } => (guest.node(*node), read_in(0, *offset, *size)),
            Operation::OpenDir { node } => (guest.node(*node), vec![0; 8]),
            Operation::ReadDir { node, handle, offset, size, is_plus: _ } => {
                (guest.node(*node), read_in(guest.handle(*handle), *offset, *size))
            }
            Operation::ReleaseDir { node, handle } => {
                let body = [&guest.handle(*handle).to_le_bytes()[..], &[0; 16]].concat();
                (guest.node(*node), body)
            }
            Operation::Init { is_version_7, major, minor, flags, tail } => {
                let major = if *is_version_7 { 7 } else { (*major).into() };
                let words = [major, (*minor).into(), 0x2_0000, *flags].map(u32::to_le_bytes);
                (0, [&words.concat()[..], tail].concat())
            }
            Operation::Destroy => (0, vec![]),
            Operation::Change { which, node } => {
                let (_, arguments, rest) = change(*which);
                (guest.node(*node), [&vec![0; arguments][..], rest].concat())
            }
            Operation::Named { opcode: _, node, arguments, name, second } => {
                let second = second.as_ref().map(|name| guest.name(name)).unwrap_or_default();
                let arguments = vec![0; usize::from(arguments % 12) * 8];
                (guest.node(*node), [arguments, guest.name(name), second].concat())
            }
            Operation::Raw { opcode: _, node, body } | Operation::Any { opcode: _, node, body } => {
                (guest.node(*node), body.clone())
            }
        }
    }

    /// Sends a request, checks what holds for any, and learns from the reply.
    pub(super) fn send(&mut self, request: &Request) -> Option<Reply> {
        let bytes = self.bytes_of(request);
        let room = request.room.len();
        let queue = if request.is_hiprio { 0 } else { REQUESTS };
        let mut chain = cut(REQUEST_AT, u32::try_from(bytes.len()).expect("short"), request.request_parts, 0);
        chain.extend(cut(REPLY_AT, room, request.room_parts, descriptor::WRITE));
        self.driver.memory.write_slice(&bytes, GuestAddress(REQUEST_AT)).expect("room for a request");
        self.put_chain(queue, &chain, request.is_indirect);
        let no_room_before = self.counters.read().no_room_for_reply;
        self.driver.make_available(queue, 0);
        self.driver.serve(queue);
        let used = self.driver.used(queue);
        assert_eq!(self.driver.status(), STATUS_LIVE);
        let [(0, len)] = used[..] else { panic!("the chain must come back exactly once: {used:?}") };
        if !request.operation.expects_reply() {
            assert_eq!(len, 0);
            return None;
        }
        if room < 16 {
            assert_eq!((len, self.counters.read().no_room_for_reply), (0, no_room_before + 1));
            return None;
        }
        let reply = self.reply(len, room, request.unique);
        if matches!(request.operation, Operation::Change { .. }) && request.claimed_len.is_none() {
            assert_eq!(reply.error, EROFS, "{:?}", request.operation);
        }
        self.guest.learn(&request.operation, &reply);
        Some(reply)
    }

    fn bytes_of(&self, request: &Request) -> Vec<u8> {
        let (node, mut body) = self.encode(&request.operation);
        body.truncate(MAX_BODY);
        let len = u32::try_from(40 + body.len()).expect("short");
        let header = [request.claimed_len.unwrap_or(len), request.operation.opcode()];
        let mut bytes = header.map(u32::to_le_bytes).concat();
        bytes.extend_from_slice(&request.unique.to_le_bytes());
        bytes.extend_from_slice(&node.to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&body);
        bytes
    }

    fn put_chain(&self, queue: u16, chain: &[Descriptor], is_indirect: bool) {
        let last = chain.len() - 1;
        for (index, part) in chain.iter().enumerate() {
            let index_of_next = u16::try_from(index + 1).expect("a short chain");
            let next = if index < last { descriptor::NEXT } else { 0 };
            let part = Descriptor { flags: part.flags | next, next: index_of_next, ..*part };
            if is_indirect {
                let slot = GuestAddress(TABLE_AT + 16 * index as u64);
                self.driver.memory.write_slice(&part.bytes(), slot).expect("the table is in RAM");
            } else {
                self.driver.put_descriptor(queue, index_of_next - 1, part);
            }
        }
        if is_indirect {
            let len = 16 * u32::try_from(chain.len()).expect("a short chain");
            let flags = descriptor::INDIRECT;
            self.driver.put_descriptor(queue, 0, Descriptor { address: TABLE_AT, len, flags, next: 0 });
        }
    }

    fn reply(&self, len: u32, room: u32, unique: u64) -> Reply {
        assert!((16..=room).contains(&len), "used length {len} of {room}");
        let mut bytes = vec![0; len as usize];
        self.driver.memory.read_slice(&mut bytes, GuestAddress(REPLY_AT)).expect("the reply is in RAM");
        let word = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four bytes");
        assert_eq!(u32::from_le_bytes(word(0)), len, "the header's length is the used length");
        let error = i32::from_le_bytes(word(4));
        assert!((-4095..=0).contains(&error), "error {error}");
        assert_eq!(bytes[8..16], unique.to_le_bytes());
        Reply { error, body: bytes.split_off(16) }
    }
}

/// Cuts `len` bytes at `address` into `parts` descriptors, 60 at most so that both halves fit a queue.
fn cut(address: u64, len: u32, parts: u8, flags: u16) -> Vec<Descriptor> {
    let parts = u32::from(parts % 60 + 1).min(len);
    let Some(part_len) = len.checked_div(parts) else { return Vec::new() };
    let descriptor = |part: u32| {
        let start = part * part_len;
        let len = if part + 1 == parts { len - start } else { part_len };
        Descriptor { address: address + u64::from(start), len, flags, next: 0 }
    };
    (0..parts).map(descriptor).collect()
}

/// A well-formed request on the queue that Linux uses.
pub(super) fn plain(operation: Operation) -> Request {
    Request {
        operation,
        unique: 42,
        claimed_len: None,
        is_hiprio: false,
        is_indirect: false,
        request_parts: 0,
        room_parts: 0,
        room: Room::Ample,
    }
}
