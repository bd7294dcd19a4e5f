//! The launcher: the only crate that sees KVM, devices and projection together.
//!
//! Start with [`machine`], which assembles a VM as a list of steps and runs it.

pub mod boot;
pub mod bus;
pub mod cli;
pub mod console;
pub mod doctor;
pub mod event_loop;
pub mod kvm;
pub mod layout;
pub mod lifecycle;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod spec;
pub mod units;
