//! The VM file descriptor: memory slots, the in-kernel irqchip, doorbells.
// UNSAFETY: KVM is given the host addresses of guest RAM.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION takes the address of a mapping")]

use std::io;
use std::sync::Arc;

use devices::GuestMemory;
use devices::virtio::pci::Doorbells;
use kvm_bindings::{KVM_API_VERSION, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::kernel::Entry;
use crate::boot::x86_64::{configure_vcpu, cpuid, set_boot_state};
use crate::layout;

/// Why KVM does not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /dev/kvm is not there.
    #[error(
        "This host has no /dev/kvm: load the kvm_intel or kvm_amd module, switch virtualisation on in the firmware, \
         or, in a pod, ask for the device (try: laterna doctor)"
    )]
    Missing,
    /// /dev/kvm may not be opened.
    #[error(
        "No permission to open /dev/kvm: be in the group that owns it (usually kvm), or, in a pod, have a device \
         plugin give it to the container (try: laterna doctor)"
    )]
    Permission,
    /// /dev/kvm cannot be opened for another reason.
    #[error("Cannot open /dev/kvm: {0}")]
    Open(io::Error),
    /// It is not the KVM that everybody knows.
    #[error("/dev/kvm speaks API version {0} instead of 12")]
    ApiVersion(i32),
    /// A capability that Laterna needs is not there.
    #[error("This host's KVM lacks {0}; a newer host kernel has it")]
    Capability(&'static str),
    /// A call failed.
    #[error("KVM refused {call}: {error}")]
    Call {
        /// The ioctl, by its name in the kernel's header.
        call: &'static str,
        /// What it answered.
        error: kvm_ioctls::Error,
    },
}

impl Error {
    pub(super) fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Call { call, error }
    }
}

const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Opens /dev/kvm and checks that it can do what Laterna needs.
///
/// # Errors
/// When it cannot, with what to do about it.
pub fn open() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => Error::Missing,
        libc::EACCES | libc::EPERM => Error::Permission,
        errno => Error::Open(io::Error::from_raw_os_error(errno)),
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(Error::ApiVersion(version));
    }
    match CAPABILITIES.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(Error::Capability(name)),
        None => Ok(kvm),
    }
}

/// A VM with its RAM and interrupt controllers.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    pub(super) fd: Arc<VmFd>,
    /// Keeps the memory slots' mappings for as long as the VM.
    _memory: GuestMemory,
}

impl Vm {
    /// Makes a VM around `memory`.
    ///
    /// # Errors
    /// When the host's KVM refuses.
    pub fn create(memory: &GuestMemory) -> Result<Self, Error> {
        let kvm = open()?;
        let fd = kvm.create_vm().map_err(Error::call("KVM_CREATE_VM"))?;
        set_memory(&fd, memory)?;
        let tss = usize::try_from(layout::KVM_TSS).unwrap_or(0);
        fd.set_tss_address(tss).map_err(Error::call("KVM_SET_TSS_ADDR"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(Error::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.create_irq_chip().map_err(Error::call("KVM_CREATE_IRQCHIP"))?;
        Ok(Self { kvm, fd: Arc::new(fd), _memory: memory.clone() })
    }

    /// Sets all vCPUs up; the first starts at `entry`.
    ///
    /// # Errors
    /// What KVM says.
    pub fn configure_vcpus(&self, vcpus: &[VcpuFd], entry: Entry) -> Result<(), kvm_ioctls::Error> {
        let cpus = u8::try_from(vcpus.len()).unwrap_or(u8::MAX);
        for (id, vcpu) in (0u8..).zip(vcpus) {
            configure_vcpu(&self.kvm, vcpu, id, cpus, entry)?;
        }
        Ok(())
    }

    /// Notifications of virtqueues as ioeventfds of this VM.
    pub fn doorbells(&self) -> Arc<dyn Doorbells> {
        Arc::new(IoEventFds(Arc::clone(&self.fd)))
    }
}

/// A VM without interrupt controllers and with one vCPU, which exits at HLT: for trying things out.
#[derive(Debug)]
pub struct BareVm {
    /// The vCPU.
    pub vcpu: VcpuFd,
    kvm: Kvm,
    _fd: VmFd,
    _memory: GuestMemory,
}

impl BareVm {
    /// Makes a VM around `memory`.
    ///
    /// # Errors
    /// When the host's KVM refuses.
    pub fn create(memory: &GuestMemory) -> Result<Self, Error> {
        let kvm = open()?;
        let fd = kvm.create_vm().map_err(Error::call("KVM_CREATE_VM"))?;
        set_memory(&fd, memory)?;
        let vcpu = fd.create_vcpu(0).map_err(Error::call("KVM_CREATE_VCPU"))?;
        Ok(Self { vcpu, kvm, _fd: fd, _memory: memory.clone() })
    }

    /// Has the vCPU start at `entry` with an interrupt descriptor table.
    ///
    /// # Errors
    /// What KVM says.
    pub fn start_at(&self, entry: Entry, idt: kvm_segment) -> Result<(), kvm_ioctls::Error> {
        self.vcpu.set_cpuid2(&cpuid(&self.kvm, 0, 1)?)?;
        set_boot_state(&self.vcpu, entry)?;
        let mut sregs = self.vcpu.get_sregs()?;
        sregs.idt.base = idt.base;
        sregs.idt.limit = u16::try_from(idt.limit).unwrap_or(u16::MAX);
        self.vcpu.set_sregs(&sregs)
    }
}

/// Gives RAM to a VM, whose owner keeps `memory` for as long.
fn set_memory(fd: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
            flags: 0,
        };
        // SAFETY: the mapping is the region's, and the VM's owner keeps it for as long as the VM lives.
        unsafe { fd.set_user_memory_region(slot) }.map_err(Error::call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

struct IoEventFds(Arc<VmFd>);

impl Doorbells for IoEventFds {
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        // Any width and any value: KVM then need not decode the instruction on EPT hosts.
        Ok(self.0.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }

    fn disconnect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        Ok(self.0.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }
}
