//! A driver's actions against a virtio-fs device over a projected directory that changes meanwhile.
//!
//! Promises that are checked, for any input: no panic and no hang; while the rings are as the bring-up left them,
//! each chain comes back exactly once, with a reply as long as its header says where one is expected; what the guest
//! holds stays within its caps; a reset drops all of it and mends the device; and then an open reads what the host
//! published last, or an error, never anything older.

mod guest;
mod request;

use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::pci::PciFunction;
use devices::testing::{Descriptor, DriverSide, STATUS_LIVE, VERSION_1, bar, rings};
use devices::virtio::fs::{Access, Fs, FsCounters};
use projection::ProjectedFs;
use vm_memory::{Bytes, GuestAddress};

use crate::host::{Change, HostDirectory};
use guest::{Guest, Node};
pub use request::Request;
use request::{Offset, Size};

const EVENT_IDX: u64 = 1 << 29;
const RAM_LEN: usize = 4 << 20;
const MAX_ACTIONS: usize = 100;
/// As ProjectedFs has it.
const MAX_HANDLES: usize = 1024;
const MAX_GENERATIONS: usize = 65;

/// One run.
#[derive(Debug, Arbitrary)]
pub struct Input {
    /// The volume is a child of the shared device's root, not the root itself.
    is_shared: bool,
    has_event_idx: bool,
    actions: Vec<Action>,
}

/// What the driver, or the host, does.
#[derive(Debug, Arbitrary)]
enum Action {
    /// A proper chain with a FUSE request, right or wrong.
    Request(Request),
    /// What a kernel does to open a file, so that its nodes can be used.
    Walk {
        path: u8,
    },
    /// What a kernel does to list a directory.
    List {
        node: Node,
        offset: Offset,
        size: Size,
        is_released: bool,
    },
    /// Any chain of descriptors.
    Chain {
        queue: Queue,
        head: u8,
        descriptors: Vec<RawDescriptor>,
    },
    /// Any bytes where the rings are.
    Scribble {
        queue: Queue,
        offset: u16,
        bytes: [u8; 4],
    },
    /// The available index.
    AvailableIndex {
        queue: Queue,
        index: u16,
    },
    /// Any register.
    Write {
        offset: u16,
        width: Width,
        value: u64,
    },
    /// Any register of the common structure.
    WriteCommon {
        offset: u8,
        width: Width,
        value: u32,
    },
    Configuration {
        offset: u8,
        width: Width,
        value: u64,
    },
    Read {
        offset: u16,
        width: Width,
    },
    Serve {
        queue: Queue,
    },
    Reset,
    BringUp,
    Host(Change),
    AddVolume {
        name: u8,
    },
    RemoveVolume {
        name: u8,
    },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Queue {
    Hiprio,
    Requests,
    Missing,
}

impl Queue {
    fn index(self) -> u16 {
        match self {
            Self::Hiprio => 0,
            Self::Requests => 1,
            Self::Missing => 2,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Width {
    One,
    Two,
    Four,
    Eight,
}

impl Width {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct RawDescriptor {
    place: Place,
    offset: u16,
    len: Length,
    flags: u8,
    next: u8,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Place {
    Request,
    Reply,
    Rings,
    EndOfRam,
    Anywhere(u64),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Length {
    Short(u8),
    Medium(u16),
    Table(u8),
    Any(u32),
}

impl RawDescriptor {
    fn descriptor(self) -> Descriptor {
        let start = match self.place {
            Place::Request => request::REQUEST_AT,
            Place::Reply => request::REPLY_AT,
            Place::Rings => rings(0),
            Place::EndOfRam => RAM_LEN as u64 - 0x100,
            Place::Anywhere(address) => address,
        };
        let len = match self.len {
            Length::Short(len) => len.into(),
            Length::Medium(len) => len.into(),
            Length::Table(entries) => 16 * u32::from(entries),
            Length::Any(len) => len,
        };
        Descriptor {
            address: start.wrapping_add(self.offset.into()),
            len,
            flags: (self.flags & 7).into(),
            next: self.next.into(),
        }
    }
}

/// Runs one input.
pub fn run(input: &Input) {
    let mut run = Run::new(input.is_shared, input.has_event_idx);
    for action in input.actions.iter().take(MAX_ACTIONS) {
        run.act(action);
        run.check_caps();
    }
    run.finish();
}

struct Run {
    driver: DriverSide,
    file_system: Arc<ProjectedFs>,
    counters: Arc<FsCounters>,
    host: HostDirectory,
    guest: Guest,
    features: u64,
    is_shared: bool,
    /// The rings and registers are as the bring-up left them, so every chain must come back.
    is_intact: bool,
}

/// Name of the volume under the shared root.
const VOLUME: &str = "volume";

impl Run {
    fn new(is_shared: bool, has_event_idx: bool) -> Self {
        let host = HostDirectory::new();
        let file_system = if is_shared {
            let file_system = ProjectedFs::of_volumes();
            file_system.add_volume(VOLUME, host.open_volume()).expect("the first volume");
            file_system
        } else {
            ProjectedFs::of_volume(host.open_volume())
        };
        let file_system = Arc::new(file_system);
        let counters = Arc::new(FsCounters::default());
        let device = Fs::new("fuzz", Arc::clone(&file_system), Access::ReadOnly, Arc::clone(&counters));
        let mut run = Self {
            driver: DriverSide::new(Box::new(device), RAM_LEN),
            file_system,
            counters,
            host,
            guest: Guest::default(),
            features: VERSION_1 | if has_event_idx { EVENT_IDX } else { 0 },
            is_shared,
            is_intact: false,
        };
        run.bring_up();
        run
    }

    fn bring_up(&mut self) {
        self.driver.bring_up(self.features);
        assert_eq!(self.driver.status(), STATUS_LIVE, "a reset mends everything");
        self.is_intact = true;
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Request(request) if self.is_intact => {
                self.send(request);
            }
            Action::Walk { path } if self.is_intact => self.walk(*path),
            Action::List { node, offset, size, is_released } if self.is_intact => {
                self.list(*node, *offset, *size, *is_released);
            }
            Action::Request(_) | Action::Walk { .. } | Action::List { .. } => self.serve(1),
            Action::Chain { queue, head, descriptors } => self.chain(*queue, *head, descriptors),
            Action::Scribble { queue, offset, bytes } => self.scribble(queue.index(), *offset, *bytes),
            Action::AvailableIndex { queue, index } => {
                self.is_intact = false;
                self.driver.set_available_index(queue.index(), *index);
            }
            Action::Write { offset, width, value } => self.write(u64::from(*offset), *width, *value),
            Action::WriteCommon { offset, width, value } => {
                self.write(bar::COMMON + u64::from(offset & 0x3f), *width, (*value).into());
            }
            Action::Configuration { offset, width, value } => {
                self.is_intact = false;
                let data = &value.to_le_bytes()[..width.bytes()];
                self.driver.device.write_configuration((*offset).into(), data);
            }
            Action::Read { offset, width } => {
                let mut data = [0; 8];
                self.driver.device.read_bar((*offset).into(), &mut data[..width.bytes()]);
                self.driver.device.read_configuration((offset & 0xff).into(), &mut data[..width.bytes()]);
            }
            Action::Serve { queue } => self.serve(queue.index()),
            Action::Reset => {
                self.driver.set_status(0);
                self.is_intact = false;
                // Memory decoding does not matter here: the BAR is reached directly.
                self.check_dropped();
            }
            Action::BringUp => self.bring_up(),
            Action::Host(change) => self.host.change(*change),
            Action::AddVolume { name } => {
                if self.host.token().is_some() {
                    let _ = self.file_system.add_volume(&format!("v{}", name % 4), self.host.open_volume());
                }
            }
            Action::RemoveVolume { name } => {
                let _ = self.file_system.remove_volume(&format!("v{}", name % 4));
            }
        }
    }

    fn write(&mut self, offset: u64, width: Width, value: u64) {
        self.is_intact = false;
        self.driver.device.write_bar(offset, &value.to_le_bytes()[..width.bytes()]);
    }

    fn scribble(&mut self, queue: u16, offset: u16, bytes: [u8; 4]) {
        self.is_intact = false;
        let address = GuestAddress(rings(queue) + u64::from(offset));
        self.driver.memory.write_slice(&bytes, address).expect("rings are in RAM");
    }

    fn chain(&mut self, queue: Queue, head: u8, descriptors: &[RawDescriptor]) {
        self.is_intact = false;
        let queue = queue.index().min(1);
        for (index, raw) in (0..64).zip(descriptors) {
            let descriptor = raw.descriptor();
            self.driver.put_descriptor(queue, index, descriptor);
            // The same ones as an indirect table.
            let slot = GuestAddress(request::REQUEST_AT + 16 * u64::from(index));
            self.driver.memory.write_slice(&descriptor.bytes(), slot).expect("the table is in RAM");
        }
        self.driver.make_available(queue, head.into());
        self.serve(queue);
    }

    /// Serves until the device has no more to do, as whoever waits for the queue's event does, but not for ever: a
    /// ring that is over another may keep it busy.
    fn serve(&mut self, queue: u16) {
        for _ in 0..4 {
            self.driver.serve(queue);
            let event = self.driver.device.queue_events().get(usize::from(queue));
            if event.is_none_or(|event| event.read().is_err()) {
                break;
            }
        }
    }

    fn check_caps(&self) {
        let statistics = self.file_system.statistics();
        let volumes = statistics.volumes.len();
        assert!(statistics.directory_handles <= MAX_HANDLES);
        assert!(statistics.generations <= MAX_GENERATIONS * volumes.max(1), "{statistics:?}");
    }

    fn check_dropped(&self) {
        let statistics = self.file_system.statistics();
        let held = (statistics.live_nodes, statistics.lookups, statistics.directory_handles);
        assert_eq!(held, (0, 0, 0), "a reset drops everything");
        assert_eq!(statistics.generations, statistics.volumes.len());
    }

    /// Whatever happened, a reset mends it, and an open is never stale.
    fn finish(&mut self) {
        self.driver.set_status(0);
        self.check_dropped();
        self.bring_up();
        if let Some(expected) = self.host.token().map(<[u8]>::to_vec) {
            assert_eq!(self.read_token(), Some(expected), "an open is never stale");
        }
        self.host.change(Change::Publish { files: 0 });
        let expected = self.host.token().map(<[u8]>::to_vec);
        assert_eq!(self.read_token_with_cached_links(), expected, "a warm open is never stale");
    }
}
