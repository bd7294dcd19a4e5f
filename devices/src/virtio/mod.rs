//! virtio 1.2 devices: what a device is ([`VirtioDevice`]), how its queues are served ([`serve_chains`]), the state
//! that every transport shares ([`Core`]) and the one transport ([`pci`]).

mod core;
mod device;
pub mod fs;
pub mod pci;
mod queue;
pub mod rng;

pub use self::core::{Core, DeviceStatus, MAX_QUEUE_SIZE};
pub use device::VirtioDevice;
pub use queue::{Chain, QueueError, Served, serve_chains};
