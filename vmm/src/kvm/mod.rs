//! The only users of kvm-ioctls.

mod exit;
mod irq;
mod vcpu;
mod vm;

pub use exit::{ExitCounters, describe_internal_error};
pub use irq::Irqs;
pub use vcpu::{Shared, Vcpus, prepare_kick_signal};
pub use vm::{BareVm, Error, Vm, open};
