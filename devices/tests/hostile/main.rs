//! A guest that is hostile from its first instruction, against every queue, register and FUSE opcode: nothing
//! panics, hangs or grows without bound, and what a driver does right afterwards works. One promise per module.
//!
//! The modules are `cfg(test)` only so that clippy.toml's exemptions for tests reach their helpers.

#[cfg(test)]
mod chains;
#[cfg(test)]
mod configuration_space;
#[cfg(test)]
mod fuse;
#[cfg(test)]
mod held;
#[cfg(test)]
mod msix;
#[cfg(test)]
mod negotiation;
#[cfg(test)]
mod queue_registers;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod rings;
