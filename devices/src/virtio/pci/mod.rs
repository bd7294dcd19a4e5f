//! virtio over PCI, the modern transport with MSI-X (virtio 1.2 §4.1): the one transport there is.
//!
//! BAR 0 holds every structure on a page of its own ([`layout`]). A driver's notification arrives through an
//! ioeventfd at the queue's own address, or, where none matches, as a write here that kicks the same eventfd.

mod common;
mod layout;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use self::common::CommonConfig;
use crate::GuestMemory;
use crate::interrupt::MsiVector;
use crate::pci::{Configuration, Identity, Msix, PciFunction};
use crate::virtio::core::{Core, DeviceStatus};
use crate::virtio::device::VirtioDevice;

pub use layout::BAR_LEN;

const VENDOR: u16 = 0x1af4;
const DEVICE_ID_BASE: u16 = 0x1040;

/// ISR status bit of a configuration change (§4.1.4.5).
const ISR_CONFIG: u8 = 1 << 1;

/// Connects the address of a queue's notification to its eventfd: an ioeventfd of KVM, in the real machine.
pub trait Doorbells: Send + Sync {
    /// From now on a write of any length to `address` signals `event`.
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// Ends what [`Doorbells::connect`] began.
    fn disconnect(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    state: Mutex<State>,
    queue_events: Vec<EventFd>,
    doorbells: Arc<dyn Doorbells>,
}

struct State {
    configuration: Configuration,
    pci_access_offset: usize,
    msix_control_offset: usize,
    core: Core,
    common: CommonConfig,
    msix: Msix,
    isr: u8,
    connected_bar: Option<u64>,
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci").field("core", &self.state.lock().core).finish_non_exhaustive()
    }
}

impl VirtioPci {
    /// Puts `device` behind a BAR at `bar_address` (aligned to [`BAR_LEN`]). It takes one vector per queue and one
    /// for configuration changes from `vectors`.
    ///
    /// # Errors
    /// When an eventfd cannot be made, or the device names an impossible queue size.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        bar_address: u32,
        vectors: Vec<Arc<dyn MsiVector>>,
        doorbells: Arc<dyn Doorbells>,
    ) -> io::Result<Self> {
        let queue_events = device
            .queue_sizes()
            .iter()
            .map(|_| EventFd::new(libc_flags::EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        let mut configuration = Configuration::new(Identity {
            vendor: VENDOR,
            device: DEVICE_ID_BASE + device.device_id(),
            revision: 1,
            class: device.pci_class(),
            subsystem: DEVICE_ID_BASE + device.device_id(),
        });
        configuration.set_bar(bar_address, BAR_LEN);
        let msix = Msix::new(vectors);
        let offsets = layout::add_capabilities(&mut configuration, msix.len());
        let core = Core::new(device, memory).map_err(io::Error::other)?;
        let state = State {
            configuration,
            pci_access_offset: offsets.pci_access,
            msix_control_offset: offsets.msix_control,
            core,
            common: CommonConfig::default(),
            msix,
            isr: 0,
            connected_bar: None,
        };
        Ok(Self { state: Mutex::new(state), queue_events, doorbells })
    }

    /// The number of vectors that [`VirtioPci::new`] wants for `device`.
    pub fn vectors_for(device: &dyn VirtioDevice) -> usize {
        device.queue_sizes().len() + 1
    }

    /// The events that say that the driver notified a queue, in the order of the queues.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// Serves one queue and interrupts the driver if it wants that. Any thread may call it, at any time; whoever is
    /// woken by [`VirtioPci::queue_events`] should.
    pub fn serve_queue(&self, index: u16) {
        let mut state = self.state.lock();
        match state.core.serve(index) {
            Some(Ok(served)) => {
                if served.needs_interrupt {
                    state.interrupt_queue(index);
                }
                if served.has_more {
                    self.notify(index);
                }
            }
            Some(Err(())) => state.interrupt_config(),
            None => {}
        }
    }

    fn notify(&self, index: u16) {
        if let Some(event) = self.queue_events.get(usize::from(index)) {
            // Fails only when the counter is full, and then whoever serves has its wake-up already.
            let _ = event.write(1);
        }
    }

    /// Has the doorbells follow the BAR.
    fn reconnect(&self, state: &mut State) {
        let bar = state.configuration.decoded_bar().map(|bar| bar.start);
        if bar == state.connected_bar {
            return;
        }
        for (index, event) in (0u64..).zip(&self.queue_events) {
            let address = |bar: u64| layout::notify_address(bar, index);
            let result =
                state.connected_bar.map_or(Ok(()), |old| self.doorbells.disconnect(address(old), event));
            let result = result.and(bar.map_or(Ok(()), |new| self.doorbells.connect(address(new), event)));
            if let Err(error) = result {
                // The queue still works, by the slower way of an exit to write_bar.
                log::debug!("The notification of queue {index} has no ioeventfd: {error}");
            }
        }
        state.connected_bar = bar;
    }
}

impl PciFunction for VirtioPci {
    fn read_configuration(&self, offset: usize, data: &mut [u8]) {
        let state = self.state.lock();
        if let Some((bar_offset, len)) = state.pci_access(offset, data.len()) {
            drop(state);
            self.read_bar(bar_offset, data.get_mut(..len).unwrap_or_default());
            return;
        }
        state.configuration.read(offset, data);
    }

    fn write_configuration(&self, offset: usize, data: &[u8]) {
        let mut state = self.state.lock();
        if let Some((bar_offset, len)) = state.pci_access(offset, data.len()) {
            drop(state);
            self.write_bar(bar_offset, data.get(..len).unwrap_or_default());
            return;
        }
        state.configuration.write(offset, data);
        let control = state.configuration.dword(state.msix_control_offset & !0b11) >> 16;
        state.msix.set_control(u16::try_from(control).unwrap_or(0));
        self.reconnect(&mut state);
    }

    fn bar(&self) -> Option<Range<u64>> {
        self.state.lock().configuration.decoded_bar()
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state.lock();
        let State { core, common, msix, isr, .. } = &mut *state;
        match layout::page(offset) {
            Some((layout::Page::Common, offset)) => common.read(core, offset, data),
            Some((layout::Page::Isr, 0)) => {
                if let Some(value) = data.first_mut() {
                    *value = std::mem::take(isr);
                }
            }
            Some((layout::Page::Device, offset)) => {
                data.fill(0);
                core.device().read_config(usize::try_from(offset).unwrap_or(usize::MAX), data);
            }
            Some((layout::Page::MsixTable, offset)) => msix.read_table(offset, data),
            Some((layout::Page::MsixPending, offset)) => msix.read_pending_bits(offset, data),
            Some((layout::Page::Isr | layout::Page::Notify, _)) | None => {}
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        let State { core, common, msix, isr, .. } = &mut *state;
        match layout::page(offset) {
            Some((layout::Page::Common, offset)) => {
                let outcome = common.write(core, msix.len(), offset, data);
                if outcome.was_reset {
                    *isr = 0;
                }
                if outcome.needs_reset {
                    state.interrupt_config();
                }
            }
            Some((layout::Page::Notify, offset)) => {
                drop(state);
                self.notify(u16::try_from(offset / u64::from(layout::NOTIFY_MULTIPLIER)).unwrap_or(u16::MAX));
            }
            Some((layout::Page::MsixTable, offset)) => msix.write_table(offset, data),
            Some((layout::Page::Isr | layout::Page::Device | layout::Page::MsixPending, _)) | None => {}
        }
    }
}

impl State {
    fn interrupt_queue(&mut self, index: u16) {
        let vector = self.core.queues.get(usize::from(index)).map(|virtqueue| virtqueue.vector);
        if let Some(vector) = vector {
            self.msix.trigger(vector);
        }
    }

    fn interrupt_config(&mut self) {
        debug_assert!(self.core.status & DeviceStatus::NEEDS_RESET != 0);
        self.isr |= ISR_CONFIG;
        self.msix.trigger(self.core.config_vector);
    }

    /// For an access to the data field of the PCI configuration access capability (§4.1.4.9): the BAR offset and the
    /// length that its other fields select.
    fn pci_access(&self, offset: usize, len: usize) -> Option<(u64, usize)> {
        let capability = self.pci_access_offset;
        if offset != capability + layout::PCI_ACCESS_DATA {
            return None;
        }
        let [bar, ..] = self.configuration.dword(capability + layout::PCI_ACCESS_BAR).to_le_bytes();
        let selected_len = self.configuration.dword(capability + layout::PCI_ACCESS_LEN);
        let selected_offset = self.configuration.dword(capability + layout::PCI_ACCESS_OFFSET);
        let selected_len = usize::try_from(selected_len).ok().filter(|len| matches!(len, 1 | 2 | 4))?;
        let is_aligned =
            usize::try_from(selected_offset).is_ok_and(|offset| offset.is_multiple_of(selected_len));
        (bar == 0 && is_aligned && selected_len <= len).then_some((u64::from(selected_offset), selected_len))
    }
}

/// Flag values of eventfd(2).
mod libc_flags {
    pub(super) const EFD_NONBLOCK: i32 = 0o4000;
}
