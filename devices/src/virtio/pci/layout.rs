//! Where things are: the pages of BAR 0 and the capabilities that point at them (virtio 1.2 §4.1.4).

use crate::pci::Configuration;

/// Length of BAR 0 in bytes.
pub const BAR_LEN: u32 = 0x8000;

/// Bytes between the notification addresses of neighbouring queues.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// Field offsets within the PCI configuration access capability (§4.1.4, `struct virtio_pci_cap`).
pub(super) const PCI_ACCESS_BAR: usize = 4;
pub(super) const PCI_ACCESS_OFFSET: usize = 8;
pub(super) const PCI_ACCESS_LEN: usize = 12;
pub(super) const PCI_ACCESS_DATA: usize = 16;

const PAGE_LEN: u64 = 0x1000;
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
const CFG_TYPE_PCI: u8 = 5;

/// The page that each structure has in BAR 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPending,
}

const PAGES: [Page; 6] =
    [Page::Common, Page::Isr, Page::Device, Page::Notify, Page::MsixTable, Page::MsixPending];

impl Page {
    fn offset(self) -> u32 {
        let index = PAGES.iter().position(|page| *page == self).unwrap_or(0);
        u32::try_from(index as u64 * PAGE_LEN).unwrap_or(0)
    }
}

/// The structure at an offset of BAR 0, and the offset within it.
pub(super) fn page(offset: u64) -> Option<(Page, u64)> {
    let page = PAGES.get(usize::try_from(offset / PAGE_LEN).ok()?)?;
    Some((*page, offset % PAGE_LEN))
}

/// Where the driver notifies queue `index`; `queue_notify_off` is the queue's index.
pub(super) fn notify_address(bar: u64, index: u64) -> u64 {
    bar + u64::from(Page::Notify.offset()) + index * u64::from(NOTIFY_MULTIPLIER)
}

/// Offsets of the capabilities that have live registers.
pub(super) struct CapabilityOffsets {
    pub(super) pci_access: usize,
    pub(super) msix_control: usize,
}

/// Adds the capabilities of a virtio function with `vectors` MSI-X table entries.
pub(super) fn add_capabilities(configuration: &mut Configuration, vectors: u16) -> CapabilityOffsets {
    // (cfg_type, page, length, bytes behind struct virtio_pci_cap)
    let notify_multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    let structures: [(u8, Page, u32, &[u8]); 4] = [
        (1, Page::Common, 0x3c, &[]),
        (2, Page::Notify, 0x1000, &notify_multiplier),
        (3, Page::Isr, 1, &[]),
        (4, Page::Device, 0x1000, &[]),
    ];
    for (cfg_type, page, len, extra) in structures {
        let body = virtio_capability(cfg_type, page.offset(), len, extra);
        configuration.add_capability(CAPABILITY_VENDOR, &body, &[]);
    }
    // The driver selects bar, offset and length, and reads or writes the data behind them.
    let body = virtio_capability(CFG_TYPE_PCI, 0, 0, &[0; 4]);
    let mut writable = vec![0, 0, 0xff, 0, 0, 0];
    writable.resize(body.len(), 0xff);
    let pci_access = configuration.add_capability(CAPABILITY_VENDOR, &body, &writable);

    // Message control (table size - 1; enable and function mask writable), table and PBA offsets, BAR 0 each.
    let mut body = Vec::new();
    body.extend_from_slice(&vectors.saturating_sub(1).to_le_bytes());
    body.extend_from_slice(&Page::MsixTable.offset().to_le_bytes());
    body.extend_from_slice(&Page::MsixPending.offset().to_le_bytes());
    let msix = configuration.add_capability(CAPABILITY_MSIX, &body, &[0x00, 0xc0]);
    CapabilityOffsets { pci_access, msix_control: msix + 2 }
}

/// `struct virtio_pci_cap` without its first two bytes, for BAR 0.
fn virtio_capability(cfg_type: u8, offset: u32, len: u32, extra: &[u8]) -> Vec<u8> {
    let cap_len = u8::try_from(16 + extra.len()).unwrap_or(16);
    let mut body = vec![cap_len, cfg_type, 0, 0, 0, 0];
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(extra);
    body
}
