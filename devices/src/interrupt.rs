//! Interrupts as a device raises them (device to driver).

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// An interrupt that is raised by an edge: a pin of the IOAPIC behind an irqfd, say.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt once.
    fn trigger(&self) -> io::Result<()>;
}

impl Interrupt for EventFd {
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }
}

/// What a message-signalled interrupt writes, and where (PCI Local Bus 3.0 §6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Address of the write; on x86 it selects the destination APIC.
    pub address: u64,
    /// Data of the write; on x86 it holds the vector.
    pub data: u32,
}

/// One message-signalled interrupt of a device.
pub trait MsiVector: Interrupt {
    /// Sets what [`Interrupt::trigger`] sends from now on.
    fn route(&self, message: MsiMessage) -> io::Result<()>;
}
