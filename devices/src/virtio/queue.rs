//! Serving a virtqueue: take available chains, have each handled, return it as used (virtio 1.2 §2.7).

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use crate::GuestMemory;

/// A descriptor chain over borrowed guest memory.
pub type Chain<'m> = DescriptorChain<&'m GuestMemory>;

/// Why a queue cannot be served any more.
#[derive(Debug, thiserror::Error)]
#[error("The virtqueue is unusable: {0}")]
pub struct QueueError(#[from] virtio_queue::Error);

/// What [`serve_chains`] leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The driver wants an interrupt.
    pub needs_interrupt: bool,
    /// Chains are left: serve again after the other queues had their turn.
    pub has_more: bool,
}

/// How many chains one call serves at most, so that a driver that never stops cannot keep a thread: one request may
/// take some milliseconds (a thousand descriptors, 1 MiB), and signals wait for the same thread.
const MAX_CHAINS: u16 = 64;

/// Hands each available chain to `handle`, which returns the number of bytes it wrote (the used length).
///
/// # Errors
/// When the rings are outside of guest memory, or an index is not one of the queue's.
pub fn serve_chains<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
    mut handle: impl FnMut(Chain<'m>) -> u32,
) -> Result<Served, QueueError> {
    let mut chains = 0;
    let mut served = Served { needs_interrupt: false, has_more: false };
    loop {
        queue.disable_notification(memory)?;
        while let Some(chain) = queue.iter(memory)?.next() {
            let head_index = chain.head_index();
            let len = handle(chain);
            queue.add_used(memory, head_index, len)?;
            chains += 1;
            if chains == MAX_CHAINS {
                served.has_more = true;
                break;
            }
        }
        if served.has_more || !queue.enable_notification(memory)? {
            break;
        }
    }
    served.needs_interrupt = chains > 0 && queue.needs_notification(memory)?;
    Ok(served)
}
