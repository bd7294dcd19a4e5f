//! A virtio-fs device over a real projected directory, with the driver's side in hand.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use devices::GuestMemory;
use devices::testing::{Descriptor, DriverSide, VERSION_1, bar, common, descriptor, rings};
use devices::virtio::fs::{Access, Fs, FsCounters};
use projection::{ProjectedFs, Volume, VolumeSpec};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

/// RAM from address 0 on.
pub(crate) const RAM_LEN: u64 = 8 << 20;
/// Behind a hole of one page, more RAM.
pub(crate) const HIGH_RAM: u64 = RAM_LEN + 0x1000;
pub(crate) const HIGH_RAM_LEN: u64 = 1 << 20;
/// Where tests put requests (up to 2 MiB) and replies.
pub(crate) const REQUEST_AT: u64 = 0x20_0000;
pub(crate) const REPLY_AT: u64 = 0x60_0000;
/// Where tests put indirect tables.
pub(crate) const TABLE_AT: u64 = 0x50_0000;

/// FUSE's root.
pub(crate) const ROOT: u64 = 1;
pub(crate) const HIPRIO: u16 = 0;
pub(crate) const REQUESTS: u16 = 1;

pub(crate) const EIO: i32 = -5;

pub(crate) const LOOKUP: u32 = 1;
pub(crate) const FORGET: u32 = 2;
pub(crate) const GETATTR: u32 = 3;
pub(crate) const READ: u32 = 15;
pub(crate) const INIT: u32 = 26;
pub(crate) const OPENDIR: u32 = 27;
pub(crate) const READDIR: u32 = 28;
pub(crate) const DESTROY: u32 = 38;
pub(crate) const BATCH_FORGET: u32 = 42;

/// The device, its driver and what is behind it.
pub(crate) struct Rig {
    pub(crate) driver: DriverSide,
    pub(crate) file_system: Arc<ProjectedFs>,
    pub(crate) counters: Arc<FsCounters>,
    _directory: TempDir,
}

/// What `..data` names.
pub(crate) const PUBLISHED: &str = "..2026_01_02_03_04_05.1";

/// An AtomicWriter directory with `token` and `sub/key`.
pub(crate) fn projected_directory() -> TempDir {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    fs::create_dir_all(path.join(PUBLISHED).join("sub")).unwrap();
    fs::write(path.join(PUBLISHED).join("token"), "the token").unwrap();
    fs::write(path.join(PUBLISHED).join("sub/key"), "the key").unwrap();
    symlink(PUBLISHED, path.join("..data")).unwrap();
    for name in ["token", "sub"] {
        symlink(format!("..data/{name}"), path.join(name)).unwrap();
    }
    directory
}

impl Rig {
    /// After power-on.
    pub(crate) fn new() -> Self {
        let directory = projected_directory();
        let volume = Volume::open(VolumeSpec::new(directory.path())).unwrap();
        let file_system = Arc::new(ProjectedFs::of_volume(volume));
        let counters = Arc::new(FsCounters::default());
        let device = Fs::new("token", Arc::clone(&file_system), Access::ReadOnly, Arc::clone(&counters));
        let ranges = [
            (GuestAddress(0), usize::try_from(RAM_LEN).unwrap()),
            (GuestAddress(HIGH_RAM), usize::try_from(HIGH_RAM_LEN).unwrap()),
        ];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let driver = DriverSide::with_memory(Box::new(device), memory);
        Self { driver, file_system, counters, _directory: directory }
    }

    /// Brought up as Linux does it.
    pub(crate) fn live() -> Self {
        let mut rig = Self::new();
        rig.driver.bring_up(VERSION_1);
        rig
    }

    /// Sends a well-formed request and checks its answer: proof that the device serves.
    pub(crate) fn assert_serves(&mut self) {
        let request = request(GETATTR, 77, ROOT, &[0; 16]);
        let (len, reply) = self.driver.request(REQUESTS, &request, 4096).unwrap();
        assert_eq!((len, Reply::of(&reply)), (120, Reply { len: 120, error: 0, unique: 77 }));
    }

    /// Resets, brings the device up anew and has it serve: proof that a reset mends everything.
    pub(crate) fn assert_reset_mends(&mut self) {
        self.driver.bring_up(VERSION_1);
        assert_eq!(self.driver.status(), devices::testing::STATUS_LIVE);
        self.assert_serves();
    }

    /// Writes a chain of descriptors into the table from index 0 on, each with NEXT but the last.
    pub(crate) fn put_chain(&self, queue: u16, descriptors: &[Descriptor]) {
        let last = descriptors.len() - 1;
        for (index, mut descriptor) in descriptors.iter().copied().enumerate() {
            if index < last {
                descriptor.flags |= descriptor::NEXT;
                descriptor.next = u16::try_from(index + 1).unwrap();
            }
            self.driver.put_descriptor(queue, u16::try_from(index).unwrap(), descriptor);
        }
    }

    /// Makes head 0 available, serves and returns the used length; the chain must come back exactly once.
    pub(crate) fn serve_one(&mut self, queue: u16) -> u32 {
        self.driver.make_available(queue, 0);
        self.driver.serve(queue);
        let used = self.driver.used(queue);
        assert_eq!(used.len(), 1, "the chain must come back exactly once: {used:?}");
        assert_eq!(used[0].0, 0);
        used[0].1
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.driver.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn bytes(&self, address: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.driver.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn common<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.bar(bar::COMMON + offset)
    }

    pub(crate) fn bar<const N: usize>(&self, offset: u64) -> [u8; N] {
        use devices::pci::PciFunction;
        let mut data = [0; N];
        self.driver.device.read_bar(offset, &mut data);
        data
    }

    /// Selects a queue and writes one of its address registers.
    pub(crate) fn set_ring(&self, queue: u16, which: u64, address: u64) {
        self.driver.write_common(common::QUEUE_SELECT, &queue.to_le_bytes());
        self.driver.write_common(common::QUEUE_DESC + 8 * which, &address.to_le_bytes());
    }

    /// How often the driver was told of a configuration change.
    pub(crate) fn config_interrupts(&self) -> u64 {
        self.driver.vectors.last().unwrap().sent()
    }
}

/// The header of a FUSE reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) len: u32,
    pub(crate) error: i32,
    pub(crate) unique: u64,
}

impl Reply {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            len: u32::from_le_bytes(bytes[..4].try_into().unwrap()),
            error: i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
            unique: u64::from_le_bytes(bytes[8..16].try_into().unwrap()),
        }
    }
}

/// A FUSE request whose header tells its true length.
pub(crate) fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    request_claiming(u32::try_from(40 + body.len()).unwrap(), opcode, unique, node, body)
}

/// A FUSE request whose header tells any length.
pub(crate) fn request_claiming(len: u32, opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = [len.to_le_bytes(), opcode.to_le_bytes()].concat();
    bytes.extend_from_slice(&unique.to_le_bytes());
    bytes.extend_from_slice(&node.to_le_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(body);
    bytes
}

/// A readable buffer.
pub(crate) fn readable(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: 0, next: 0 }
}

/// A writable buffer.
pub(crate) fn writable(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: descriptor::WRITE, next: 0 }
}

/// An indirect table at [`TABLE_AT`].
pub(crate) fn indirect(len: u32) -> Descriptor {
    Descriptor { address: TABLE_AT, len, flags: descriptor::INDIRECT, next: 0 }
}

/// Where a queue's three rings are after [`DriverSide::set_up_queue`]: table, available, used.
pub(crate) fn ring_addresses(queue: u16) -> [u64; 3] {
    [rings(queue), rings(queue) + 0x8000, rings(queue) + 0xa000]
}
