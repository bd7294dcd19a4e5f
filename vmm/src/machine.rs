//! The composition root: a checked spec becomes a machine, step by step, and runs until it ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::acpi::PowerRegisters;
use devices::interrupt::Interrupt;
use devices::pci::{HostBridge, PciFunction, PciRoot};
use devices::pvpanic::Pvpanic;
use devices::serial::Serial;
use devices::virtio::VirtioDevice;
use devices::virtio::fs::{Access, Fs, FsCounters, FsStatistics};
use devices::virtio::pci::{BAR_LEN, VirtioPci};
use devices::virtio::rng::Rng;
use devices::{BusDevice, GuestEventSink, GuestMemory, acpi, pvpanic, serial};
use projection::{ProjectedFs, Volume, VolumeSpec};
use serde::Serialize;
use vm_allocator::{AddressAllocator, AllocPolicy};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::Bus;
use crate::console::{Output, TerminalGuard};
use crate::event_loop::{EventLoop, Host, HostSignals};
use crate::kvm::{self, ExitCounters, Irqs, Shared, Vcpus, Vm};
use crate::lifecycle::{ExitLatch, ExitReason};
use crate::spec::{OnReboot, SHARED_TAG, SerialSpec, VmSpec};
use crate::{boot, layout, memory};

/// Why there is no machine, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// Kernel, initramfs, tables.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// A projected volume.
    #[error("--projected {option}: {error}")]
    Volume {
        /// The volume as the user named it.
        option: String,
        /// What is wrong with it.
        error: projection::Error,
    },
    /// The BARs do not fit into the PCI window.
    #[error("There is no room for another PCI device: {0}")]
    PciWindow(vm_allocator::Error),
    /// The file for the serial port's output.
    #[error("--serial file={path}: {error}", path = path.display())]
    SerialFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why it cannot be written.
        error: io::Error,
    },
    /// Setting a vCPU up.
    #[error(
        "KVM refused the state of a vCPU: {0}; this host's KVM cannot run the guest (try: laterna doctor)"
    )]
    Vcpu(kvm_ioctls::Error),
    /// eventfds, epoll, threads, the terminal.
    #[error("The host refused {what}: {error}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

impl Error {
    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Host { what, error }
    }
}

/// Runs the VM until it ends, through as many resets as the spec allows. `signals` are those since the process began.
///
/// # Errors
/// When the machine cannot be assembled, or the host fails it.
pub fn run(spec: &VmSpec, signals: HostSignals) -> Result<ExitReason, Error> {
    let _terminal = TerminalGuard::new();
    kvm::prepare_kick_signal().map_err(Error::host("a signal handler"))?;
    // Before the serial port's file is truncated: without KVM nothing would be written to it.
    kvm::open()?;
    let output = open_output(&spec.serial)?;
    let mut host = Host::new(spec, signals).map_err(Error::host("signals and the terminal"))?;
    loop {
        let machine = Machine::assemble(spec, &output)?;
        let reason = machine.run(&mut host)?;
        if reason != ExitReason::Reset || spec.on_reboot == OnReboot::Exit || host.is_stopping() {
            return Ok(reason);
        }
        log::info!("The guest asked for a reset; starting it again");
    }
}

fn open_output(serial: &SerialSpec) -> Result<Output, Error> {
    match serial {
        SerialSpec::Stdio => Ok(Output::Stdout),
        SerialSpec::Off => Ok(Output::Off),
        SerialSpec::File(path) => {
            Output::to_file(path).map_err(|error| Error::SerialFile { path: path.clone(), error })
        }
    }
}

/// A VM between assembly and end. Dropping it stops its vCPUs and frees all that it had.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vcpus,
    parts: Parts,
}

/// What the event loop works with.
pub(crate) struct Parts {
    pub(crate) exit: Arc<ExitLatch>,
    pub(crate) serial: Arc<Serial>,
    pub(crate) input_drained: EventFd,
    pub(crate) power_button: Arc<dyn Interrupt>,
    pub(crate) virtio: Vec<Arc<VirtioPci>>,
    pub(crate) wakeups: AtomicU64,
    shared: Arc<Shared>,
    file_systems: Vec<FileSystem>,
    /// Keeps guest RAM mapped for as long as anything runs.
    _vm: Vm,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("virtio", &self.virtio).finish_non_exhaustive()
    }
}

/// A virtio-fs device as statistics see it.
struct FileSystem {
    tag: String,
    counters: Arc<FsCounters>,
    projected: Arc<ProjectedFs>,
}

impl Machine {
    /// Assembles the machine and starts its vCPUs.
    fn assemble(spec: &VmSpec, output: &Output) -> Result<Self, Error> {
        let exit = Arc::new(ExitLatch::new().map_err(Error::host("an eventfd"))?);
        let memory = memory::allocate(spec.memory_bytes)?;
        let vm = Vm::create(&memory)?;
        let irqs = Irqs::new(&vm).map_err(Error::host("interrupt routes"))?;

        let input_drained = EventFd::new(EFD_NONBLOCK).map_err(Error::host("an eventfd"))?;
        let serial = serial_port(&irqs, output, &exit, &input_drained)?;
        let power_button = irqs.pin(layout::EVENT_GSI).map_err(Error::host("an interrupt"))?;
        let file_systems = file_systems(spec)?;
        let virtio = virtio_devices(&file_systems, &memory, &vm, &irqs)?;
        let pci = pci_root(&virtio);

        let mut ports = Bus::default();
        ports.insert(layout::SERIAL_PORT, serial::LEN, Arc::clone(&serial) as Arc<dyn BusDevice>);
        ports.insert(layout::PVPANIC_PORT, pvpanic::LEN, Arc::new(Pvpanic::new(guest_events(&exit))));
        ports.insert(layout::POWER_PORTS, acpi::LEN, Arc::new(PowerRegisters::new(guest_events(&exit))));
        ports.insert(PciRoot::PORTS_BASE, PciRoot::PORTS_LEN, pci.ports());
        let mut mmio = Bus::default();
        mmio.insert(layout::PCI_WINDOW, layout::PCI_WINDOW_LEN, pci.window(layout::PCI_WINDOW));

        let rsdp = boot::acpi::write(&memory, spec.cpus)?;
        let loaded = boot::load(&memory, &spec.kernel, spec.initramfs.as_deref(), &spec.cmdline, rsdp)?;
        boot::x86_64::write_boot_tables(&memory)?;
        boot::x86_64::write_bios_reset(&memory)?;
        let vcpus = Vcpus::create(&vm, spec.cpus)?;
        vm.configure_vcpus(&vcpus, loaded.entry).map_err(Error::Vcpu)?;

        let shared =
            Arc::new(Shared { ports, mmio, exit: Arc::clone(&exit), counters: ExitCounters::default() });
        let vcpus = Vcpus::start(vcpus, &shared).map_err(Error::host("a thread"))?;
        let wakeups = AtomicU64::new(0);
        let parts = Parts {
            exit,
            serial,
            input_drained,
            power_button,
            virtio,
            wakeups,
            shared,
            file_systems,
            _vm: vm,
        };
        Ok(Self { vcpus, parts })
    }

    /// Serves the machine until it ends.
    fn run(self, host: &mut Host) -> Result<ExitReason, Error> {
        let Self { vcpus, parts } = self;
        let parts = Arc::new(parts);
        let ended = EventLoop::new(&parts, host).and_then(|mut event_loop| event_loop.run());
        // A vCPU that waits for room on stdout gives up only when there is a reason.
        parts.exit.raise(ExitReason::Stopped);
        drop(vcpus);
        ended
    }
}

fn guest_events(exit: &Arc<ExitLatch>) -> GuestEventSink {
    let exit = Arc::clone(exit);
    Box::new(move |event| exit.raise_guest_event(event))
}

fn serial_port(
    irqs: &Irqs,
    output: &Output,
    exit: &Arc<ExitLatch>,
    input_drained: &EventFd,
) -> Result<Arc<Serial>, Error> {
    let interrupt = irqs.pin(layout::SERIAL_GSI).map_err(Error::host("an interrupt"))?;
    let input_drained = input_drained.try_clone().map_err(Error::host("an eventfd"))?;
    Ok(Arc::new(Serial::new(interrupt, output.writer(exit), input_drained)))
}

/// The file systems of all virtio-fs devices: one per tag, and one for all names.
fn file_systems(spec: &VmSpec) -> Result<Vec<FileSystem>, Error> {
    let mut file_systems = Vec::new();
    for (tag, volume) in spec.tags() {
        let volume = open_volume(&format!("tag={tag}"), volume)?;
        file_systems.push(FileSystem::new(tag, ProjectedFs::of_volume(volume)));
    }
    let shared = ProjectedFs::of_volumes();
    for (name, volume) in spec.names() {
        let option = format!("name={name}");
        let volume = open_volume(&option, volume)?;
        shared.add_volume(name, volume).map_err(|error| Error::Volume { option, error })?;
    }
    if spec.names().next().is_some() {
        file_systems.push(FileSystem::new(SHARED_TAG, shared));
    }
    Ok(file_systems)
}

fn open_volume(option: &str, spec: &VolumeSpec) -> Result<Volume, Error> {
    Volume::open(spec.clone()).map_err(|error| Error::Volume { option: option.to_owned(), error })
}

impl FileSystem {
    fn new(tag: &str, projected: ProjectedFs) -> Self {
        Self { tag: tag.to_owned(), counters: Arc::default(), projected: Arc::new(projected) }
    }
}

fn virtio_devices(
    file_systems: &[FileSystem],
    memory: &GuestMemory,
    vm: &Vm,
    irqs: &Arc<Irqs>,
) -> Result<Vec<Arc<VirtioPci>>, Error> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(Rng)];
    for FileSystem { tag, counters, projected } in file_systems {
        devices.push(Box::new(Fs::new(tag, Arc::clone(projected), Access::ReadOnly, Arc::clone(counters))));
    }
    let mut bars =
        AddressAllocator::new(layout::PCI_WINDOW, layout::PCI_WINDOW_LEN).map_err(Error::PciWindow)?;
    let mut functions = Vec::new();
    for device in devices {
        let len = u64::from(BAR_LEN);
        let bar = bars.allocate(len, len, AllocPolicy::FirstMatch).map_err(Error::PciWindow)?;
        let bar = u32::try_from(bar.start())
            .map_err(|_| Error::PciWindow(vm_allocator::Error::ResourceNotAvailable))?;
        let vectors =
            irqs.msi_vectors(VirtioPci::vectors_for(device.as_ref())).map_err(Error::host("interrupts"))?;
        let function = VirtioPci::new(device, memory.clone(), bar, vectors, vm.doorbells());
        functions.push(Arc::new(function.map_err(Error::host("a virtio device"))?));
    }
    Ok(functions)
}

fn pci_root(virtio: &[Arc<VirtioPci>]) -> Arc<PciRoot> {
    let bridge: Arc<dyn PciFunction> = Arc::new(HostBridge::new());
    let devices = virtio.iter().map(|device| Arc::clone(device) as Arc<dyn PciFunction>);
    PciRoot::new(std::iter::once(bridge).chain(devices).collect())
}

/// Everything that the machine counts, at one moment.
#[derive(Debug, Serialize)]
pub(crate) struct Statistics<'a> {
    devices: Vec<DeviceStatistics<'a>>,
    exits: &'a ExitCounters,
    wakeups: u64,
}

#[derive(Debug, Serialize)]
struct DeviceStatistics<'a> {
    tag: &'a str,
    #[serde(flatten)]
    device: FsStatistics,
    file_system: projection::Statistics,
}

impl Parts {
    pub(crate) fn statistics(&self) -> Statistics<'_> {
        let devices = self.file_systems.iter().map(|file_system| DeviceStatistics {
            tag: &file_system.tag,
            device: file_system.counters.read(),
            file_system: file_system.projected.statistics(),
        });
        Statistics {
            devices: devices.collect(),
            exits: &self.shared.counters,
            wakeups: self.wakeups.load(Ordering::Relaxed),
        }
    }
}
