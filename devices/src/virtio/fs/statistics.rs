//! What a virtio-fs device counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::opcode::{self, COUNTED, Opcode};

/// Counters of one device; any thread may read them.
#[derive(Debug)]
pub struct FsCounters {
    requests: [AtomicU64; COUNTED],
    unknown: AtomicU64,
    malformed: AtomicU64,
    no_room: AtomicU64,
}

impl Default for FsCounters {
    fn default() -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; COUNTED],
            unknown: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            no_room: AtomicU64::new(0),
        }
    }
}

/// The counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FsStatistics {
    /// Requests by the kernel's opcode names; only opcodes that were seen.
    pub requests: BTreeMap<&'static str, u64>,
    /// Requests whose opcode the protocol does not have.
    pub unknown_opcodes: u64,
    /// Chains that held no request, or a request that does not fit its opcode; answered with EIO.
    pub malformed: u64,
    /// Chains that expected a reply and had no room for its header; returned with length 0.
    pub no_room_for_reply: u64,
}

impl FsCounters {
    pub(super) fn count(&self, opcode: Opcode) {
        let counter = opcode.number().and_then(|number| self.requests.get(usize::from(number)));
        counter.unwrap_or(&self.unknown).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_no_room(&self) {
        self.no_room.fetch_add(1, Ordering::Relaxed);
    }

    /// All counters now.
    pub fn read(&self) -> FsStatistics {
        let requests = self.requests.iter().enumerate().filter_map(|(number, counter)| {
            let count = counter.load(Ordering::Relaxed);
            Some((opcode::name(number)?, count)).filter(|(_, count)| *count > 0)
        });
        FsStatistics {
            requests: requests.collect(),
            unknown_opcodes: self.unknown.load(Ordering::Relaxed),
            malformed: self.malformed.load(Ordering::Relaxed),
            no_room_for_reply: self.no_room.load(Ordering::Relaxed),
        }
    }
}
