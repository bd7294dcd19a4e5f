//! Interrupts into the guest: IOAPIC pins and message-signalled interrupts, all by irqfd.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use devices::interrupt::{Interrupt, MsiMessage, MsiVector};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::vm::Vm;
use crate::layout;

/// The VM's interrupt routes. KVM takes the whole table at once, so it is kept here.
#[derive(Debug)]
pub struct Irqs {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<u32, MsiMessage>>,
    next_gsi: Mutex<u32>,
}

impl Irqs {
    /// The routes of `vm`, with nothing but the IOAPIC's pins: KVM's own would lead to the legacy PIC, too, which in a
    /// guest that has not masked it yet turns an early interrupt into a CPU exception.
    ///
    /// # Errors
    /// When KVM refuses them.
    pub fn new(vm: &Vm) -> io::Result<Arc<Self>> {
        let irqs = Self {
            vm: Arc::clone(&vm.fd),
            messages: Mutex::default(),
            next_gsi: Mutex::new(layout::FIRST_MSI_GSI),
        };
        irqs.set_routes(&BTreeMap::new())?;
        Ok(Arc::new(irqs))
    }

    /// An interrupt on IOAPIC pin `gsi`.
    ///
    /// # Errors
    /// When KVM refuses the irqfd.
    pub fn pin(&self, gsi: u32) -> io::Result<Arc<dyn Interrupt>> {
        Ok(Arc::new(self.irqfd(gsi)?))
    }

    /// `count` message-signalled interrupts; they send nothing until they are routed.
    ///
    /// # Errors
    /// When KVM refuses an irqfd.
    pub fn msi_vectors(self: &Arc<Self>, count: usize) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        (0..count).map(|_| self.msi_vector()).collect()
    }

    fn msi_vector(self: &Arc<Self>) -> io::Result<Arc<dyn MsiVector>> {
        let gsi = {
            let mut next = self.next_gsi.lock();
            *next += 1;
            *next - 1
        };
        let event = self.irqfd(gsi)?;
        Ok(Arc::new(Msi { irqs: Arc::clone(self), gsi, event }))
    }

    fn irqfd(&self, gsi: u32) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        self.vm.register_irqfd(&event, gsi)?;
        Ok(event)
    }

    fn route(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut messages = self.messages.lock();
        messages.insert(gsi, message);
        self.set_routes(&messages)
    }

    fn set_routes(&self, messages: &BTreeMap<u32, MsiMessage>) -> io::Result<()> {
        let pins = (0..layout::FIRST_MSI_GSI).map(ioapic_pin);
        let entries: Vec<_> = pins.chain(messages.iter().map(|(gsi, message)| msi(*gsi, *message))).collect();
        let table =
            KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }
}

struct Msi {
    irqs: Arc<Irqs>,
    gsi: u32,
    event: EventFd,
}

impl Interrupt for Msi {
    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }
}

impl MsiVector for Msi {
    fn route(&self, message: MsiMessage) -> io::Result<()> {
        self.irqs.route(self.gsi, message)
    }
}

fn ioapic_pin(gsi: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin: gsi };
    entry
}

fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([a, b, c, d]),
        address_hi: u32::from_le_bytes([e, f, g, h]),
        data: message.data,
        ..Default::default()
    };
    entry
}
