//! Laterna's device models.
//!
//! A device here knows neither KVM nor Kubernetes: it sees guest memory, registers and three small seams that
//! the machine fills in ([`BusDevice`], [`interrupt`], [`virtio::pci::Doorbells`]). Everything a guest can write
//! is untrusted: no register, ring or request may panic, hang or allocate without bound.

pub mod acpi;
pub mod interrupt;
pub mod pci;
pub mod pvpanic;
pub mod serial;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;

/// Guest RAM as the devices see it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// A device behind a range of I/O ports or of physical addresses.
///
/// `offset` is relative to the start of the range; `data` holds 1, 2, 4 or 8 bytes in little-endian order, as KVM
/// hands them over. Called from any vCPU's thread.
pub trait BusDevice: Send + Sync {
    /// Fills `data`; bytes that no register backs stay as they are (the bus presets them to all ones).
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`; writes to what is not a register are ignored.
    fn write(&self, offset: u64, data: &[u8]);
}

/// What a guest tells the machine through one of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// It entered ACPI sleep state S5.
    PowerOff,
    /// It wrote the ACPI reset register.
    Reset,
    /// It reported a kernel panic.
    Panic,
    /// It panicked and will run its own crash kernel.
    CrashLoaded,
}

/// Where a device puts its [`GuestEvent`]s.
pub type GuestEventSink = Box<dyn Fn(GuestEvent) + Send + Sync>;
