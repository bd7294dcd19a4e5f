//! Exits: how many of which kind, and what an internal error of KVM means.
// UNSAFETY: the kernel says by a field of kvm_run which member of its union it filled.
#![expect(unsafe_code, reason = "kvm_run is a union")]

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES};
use kvm_ioctls::VcpuFd;
use serde::Serialize;

/// Exits to this process by kind, all vCPUs together. Exits that KVM handles itself (ioeventfds) are not among them.
#[derive(Debug, Default, Serialize)]
pub struct ExitCounters {
    /// Reads and writes of I/O ports.
    pub pio: AtomicU64,
    /// Reads and writes of physical addresses that are not RAM.
    pub mmio: AtomicU64,
    /// Signals and all other kinds.
    pub other: AtomicU64,
}

impl ExitCounters {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One line on a `KVM_EXIT_INTERNAL_ERROR`: its kind, RIP and, when KVM gives them, the instruction's bytes.
pub fn describe_internal_error(vcpu: &mut VcpuFd) -> String {
    let rip = vcpu.get_regs().map_or_else(|_| "unknown".to_owned(), |regs| format!("{:#x}", regs.rip));
    let run = vcpu.get_kvm_run();
    // SAFETY: KVM fills `emulation_failure` on every KVM_EXIT_INTERNAL_ERROR; its first fields are those of `internal`.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    let kind = match failure.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate the instruction".to_owned(),
        other => format!("internal error {other}"),
    };
    // SAFETY: plain bytes; `ndata` and `flags` say whether the kernel filled them.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let has_bytes = failure.suberror == KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 3
        && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    let bytes = if has_bytes {
        let len = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        let hex: Vec<_> = instruction.insn_bytes.iter().take(len).map(|byte| format!("{byte:02x}")).collect();
        format!(", instruction {}", hex.join(" "))
    } else {
        String::new()
    };
    format!("{kind} at RIP {rip}{bytes}")
}
