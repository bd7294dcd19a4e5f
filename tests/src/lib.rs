//! Whole-VM tests of Laterna, and the emulated KVM host they run in.
//!
//! Three machines are involved. The **developer's machine** runs `cargo xtask`, which starts [`host::EmulatedHost`]:
//! QEMU emulating an AMD-V machine in software. That **KVM host** runs the test binaries of `tests/tests`, and
//! each of those starts `laterna`, whose **guest** runs `guest-tool` as PID 1. On a machine with a usable KVM the
//! middle one is left out: the test binaries are the same.
//!
//! - [`debian`], [`kernel_modules`], [`cpio`], [`assets`]: get stock kernels and build initramfs images.
//! - [`host`], [`protocol`]: the KVM host and the wire to its PID 1.
//! - [`vm`], [`atomic_writer`], [`freshness`], [`guest_page`]: what a VM test is written with.

pub mod assets;
pub mod atomic_writer;
pub mod cpio;
pub mod debian;
pub mod freshness;
pub mod guest_page;
pub mod host;
pub mod kernel_modules;
pub mod protocol;
pub mod vm;
