//! virtio-fs: FUSE requests from two queues into any fuse-backend-rs [`FileSystem`] (virtio 1.2 §5.11).
//!
//! Invariants, whatever the guest sends: each request that expects a reply gets one with a header and the exact used
//! length (Linux up to 7.0 reads a used length of 0 as success); one request allocates a bounded amount; and an
//! opcode that fuse-backend-rs does not know never reaches it.

use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader};
use fuse_backend_rs::api::filesystem::FileSystem;
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use virtio_queue::Queue;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{ByteValued, Bytes};

use crate::GuestMemory;
use crate::virtio::core::MAX_QUEUE_SIZE;
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::{Chain, QueueError, Served, serve_chains};

mod opcode;
mod statistics;

use opcode::Opcode;
pub use statistics::{FsCounters, FsStatistics};

/// Longest tag in bytes (§5.11.4).
pub const MAX_TAG_LEN: usize = 36;

/// One queue for FORGET and one for requests: Linux caps request queues at the CPU count and at depth 1 more of them
/// would only add vectors.
const QUEUE_SIZES: [u16; 2] = [128, 128];
const REQUEST_QUEUES: u32 = 1;

const OUT_HEADER_LEN: u32 = 16;
const _: () = assert!(OUT_HEADER_LEN as usize == size_of::<OutHeader>());

/// Longest request: the server's limit for a message and its header page. Longer ones are refused unread.
const MAX_REQUEST_LEN: u64 = MAX_BUFFER_SIZE as u64 + 4096;

/// Longest chain in descriptors, more than any driver makes (§2.7.5.3.1: no longer than its queue). An indirect table
/// could hold 65535, and the server's work for each part of a request grows with their number.
const MAX_CHAIN_LEN: usize = MAX_QUEUE_SIZE as usize;

/// Whether a device may change its files; a read-only one answers EROFS even to opcodes that the server lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing can be changed.
    ReadOnly,
    /// The file system decides.
    ReadWrite,
}

/// A virtio-fs device.
pub struct Fs<F: FileSystem + Send + Sync> {
    config_space: [u8; MAX_TAG_LEN + 4],
    file_system: Arc<F>,
    server: Server<Arc<F>>,
    access: Access,
    counters: Arc<FsCounters>,
}

impl<F: FileSystem + Send + Sync> std::fmt::Debug for Fs<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("access", &self.access).finish_non_exhaustive()
    }
}

impl<F: FileSystem + Send + Sync> Fs<F> {
    /// A device that serves `file_system` under `tag`; of a longer tag the first [`MAX_TAG_LEN`] bytes count.
    /// It counts into `counters`, which may be read while it runs.
    pub fn new(tag: &str, file_system: Arc<F>, access: Access, counters: Arc<FsCounters>) -> Self {
        let mut config_space = [0; MAX_TAG_LEN + 4];
        let (tag_field, queues_field) = config_space.split_at_mut(MAX_TAG_LEN);
        for (byte, value) in tag_field.iter_mut().zip(tag.bytes()) {
            *byte = value;
        }
        queues_field.copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        let server = Server::new(Arc::clone(&file_system));
        Self { config_space, file_system, server, access, counters }
    }
}

impl<F: FileSystem + Send + Sync> VirtioDevice for Fs<F> {
    fn device_id(&self) -> u16 {
        26
    }

    fn pci_class(&self) -> u32 {
        0x01_80_00
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (value, byte) in data.iter_mut().zip(self.config_space.iter().skip(offset)) {
            *value = *byte;
        }
    }

    fn serve(
        &mut self,
        _queue_index: u16,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        let request = Requests {
            server: &self.server,
            is_read_only: self.access == Access::ReadOnly,
            counters: &self.counters,
            memory,
        };
        serve_chains(queue, memory, |chain| request.handle(chain))
    }

    fn reset(&mut self) {
        self.file_system.destroy();
    }
}

struct Requests<'a, F: FileSystem + Send + Sync> {
    server: &'a Server<Arc<F>>,
    is_read_only: bool,
    counters: &'a FsCounters,
    memory: &'a GuestMemory,
}

impl<'a, F: FileSystem + Send + Sync> Requests<'a, F> {
    /// Handles one chain; returns its used length.
    fn handle(&self, chain: Chain<'a>) -> u32 {
        let Some(header) = self.in_header(chain.clone()) else {
            self.counters.count_malformed();
            return self.reply_error(chain, 0, errno::EIO);
        };
        let opcode = Opcode::from_header(header.opcode);
        self.counters.count(opcode);
        match opcode {
            Opcode::Unknown => self.reply_error(chain, header.unique, errno::ENOSYS),
            Opcode::Unserved { changes_files: true, .. } if self.is_read_only => {
                self.reply_error(chain, header.unique, errno::EROFS)
            }
            Opcode::Unserved { .. } => self.reply_error(chain, header.unique, errno::ENOSYS),
            Opcode::Served { .. } => self.serve(chain, header.unique, opcode),
        }
    }

    fn serve(&self, chain: Chain<'a>, unique: u64, opcode: Opcode) -> u32 {
        let used = self.dispatch(chain.clone());
        if !opcode.expects_reply() {
            if used.is_none() {
                self.counters.count_malformed();
            }
            return 0;
        }
        match used {
            // The server answers DESTROY but counts no reply.
            Some(0) if opcode.is_destroy() => self.reply_error(chain, unique, 0),
            used => match used.and_then(|used| u32::try_from(used).ok()) {
                Some(used) if used >= OUT_HEADER_LEN => used,
                _ => {
                    self.counters.count_malformed();
                    self.reply_error(chain, unique, errno::EIO)
                }
            },
        }
    }

    /// Has the server handle the request; `None` when it wrote no reply, or the chain is none that a driver may make.
    fn dispatch(&self, chain: Chain<'a>) -> Option<usize> {
        let (mut descriptors, mut request_len) = (0, 0);
        for descriptor in chain.clone().take(MAX_CHAIN_LEN + 1) {
            descriptors += 1;
            request_len += if descriptor.is_write_only() { 0 } else { u64::from(descriptor.len()) };
        }
        if descriptors > MAX_CHAIN_LEN || request_len > MAX_REQUEST_LEN {
            return None;
        }
        let reader = Reader::from_descriptor_chain(self.memory, chain.clone()).ok()?;
        let writer = VirtioFsWriter::new(self.memory, chain).ok()?;
        self.server.handle_message(reader, Writer::VirtioFs(writer), None, None).ok()
    }

    /// The request's header; `None` when the chain holds none, or it lies outside of RAM.
    fn in_header(&self, chain: Chain<'a>) -> Option<InHeader> {
        let mut header = InHeader::default();
        let mut rest = header.as_mut_slice();
        for descriptor in chain.take(MAX_CHAIN_LEN).filter(|descriptor| !descriptor.is_write_only()) {
            let (part, behind) = rest.split_at_mut(in_both(&descriptor, rest.len()));
            self.memory.read_slice(part, descriptor.addr()).ok()?;
            rest = behind;
            if rest.is_empty() {
                return Some(header);
            }
        }
        None
    }

    /// Writes a bare header with `errno` (0: success); returns the used length, 0 where there is no room for one.
    fn reply_error(&self, chain: Chain<'a>, unique: u64, errno: i32) -> u32 {
        let header = OutHeader { len: OUT_HEADER_LEN, error: -errno, unique };
        let mut rest = header.as_slice();
        for descriptor in chain.take(MAX_CHAIN_LEN).filter(Descriptor::is_write_only) {
            let (part, behind) = rest.split_at(in_both(&descriptor, rest.len()));
            if self.memory.write_slice(part, descriptor.addr()).is_err() {
                break;
            }
            rest = behind;
            if rest.is_empty() {
                return header.len;
            }
        }
        self.counters.count_no_room();
        0
    }
}

/// As many bytes as the descriptor has, `len` at most.
fn in_both(descriptor: &Descriptor, len: usize) -> usize {
    usize::try_from(descriptor.len()).unwrap_or(usize::MAX).min(len)
}

/// The Linux errno values that FUSE replies carry, whatever the host.
mod errno {
    pub(super) const EIO: i32 = 5;
    pub(super) const EROFS: i32 = 30;
    pub(super) const ENOSYS: i32 = 38;
}
