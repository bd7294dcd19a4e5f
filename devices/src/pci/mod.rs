//! PCI: configuration space, the root bus, MSI-X (PCI Local Bus 3.0).

mod configuration;
mod msix;
mod root;

pub use configuration::{Configuration, Identity};
pub use msix::{Msix, NO_VECTOR};
pub use root::{HostBridge, MAX_FUNCTIONS, PciFunction, PciRoot};
