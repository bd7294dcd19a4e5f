//! The boot CPU's registers, and every CPU's CPUID, MSRs and local APIC (Intel SDM vol. 3, AMD APM vol. 2).

use devices::{GuestMemory, acpi};
use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_memory::{Address, Bytes, GuestAddress};

use super::Error;
use super::kernel::Entry;
use crate::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

const PTE_PRESENT_WRITABLE: u64 = 0b11;
const PTE_HUGE: u64 = 1 << 7;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 0b100 << 8;
const APIC_MODE_EXTINT: u32 = 0b111 << 8;

/// Writes the page tables and the descriptor table that the boot CPU starts with.
///
/// # Errors
/// When RAM does not reach to them.
pub fn write_boot_tables(memory: &GuestMemory) -> Result<(), Error> {
    let gdt = [0, 0, segment_descriptor(&code_64()), segment_descriptor(&data()), segment_descriptor(&tss())];
    for (index, descriptor) in (0u64..).zip(gdt) {
        put(memory, layout::BOOT_GDT + 8 * index, descriptor)?;
    }
    let pml4 = layout::BOOT_PAGE_TABLES;
    let pdpt = pml4 + 0x1000;
    put(memory, pml4, pdpt | PTE_PRESENT_WRITABLE)?;
    for gib in 0..4 {
        let directory = pdpt + 0x1000 * (gib + 1);
        put(memory, pdpt + 8 * gib, directory | PTE_PRESENT_WRITABLE)?;
        for index in 0..512 {
            let page = (gib << 30) + (index << 21);
            put(memory, directory + 8 * index, page | PTE_HUGE | PTE_PRESENT_WRITABLE)?;
        }
    }
    Ok(())
}

/// Writes the whole BIOS: real-mode code at [`layout::BIOS_RESET`] that writes the ACPI reset register.
///
/// # Errors
/// When RAM does not reach to it.
pub fn write_bios_reset(memory: &GuestMemory) -> Result<(), Error> {
    let [low, high, ..] = (layout::POWER_PORTS + acpi::RESET_OFFSET).to_le_bytes();
    let code = [
        0xba,
        low,
        high, // mov dx, reset register
        0xb0,
        acpi::RESET_VALUE, // mov al, value
        0xee,              // out dx, al
        0xf4,              // hlt
        0xeb,
        0xfd, // jmp to hlt
    ];
    memory
        .write_slice(&code, GuestAddress(layout::BIOS_RESET))
        .map_err(Error::write("the BIOS's reset entry"))
}

fn put(memory: &GuestMemory, address: u64, value: u64) -> Result<(), Error> {
    memory.write_obj(value, GuestAddress(address)).map_err(Error::write("the boot CPU's tables"))
}

/// Sets up one vCPU. CPU 0 starts at `entry`; the others wait for their start-up interrupt.
///
/// # Errors
/// What KVM says.
pub fn configure_vcpu(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    id: u8,
    cpus: u8,
    entry: Entry,
) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_cpuid2(&cpuid(kvm, id, cpus)?)?;
    set_msrs(vcpu)?;
    set_local_interrupts(vcpu)?;
    if id == 0 { set_boot_state(vcpu, entry) } else { Ok(()) }
}

/// Has a vCPU start at `entry`.
///
/// # Errors
/// What KVM says.
pub fn set_boot_state(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })?;
    set_sregs(vcpu, entry)?;
    vcpu.set_regs(&boot_regs(entry))
}

fn boot_regs(entry: Entry) -> kvm_regs {
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, ..Default::default() };
    match entry {
        Entry::Linux64(address, _) => {
            regs.rip = address.raw_value();
            regs.rsi = layout::BOOT_PARAMS;
            regs.rsp = layout::BOOT_STACK;
        }
        Entry::Pvh(address) => {
            regs.rip = address.raw_value();
            regs.rbx = layout::PVH_START_INFO;
        }
    }
    regs
}

fn set_sregs(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    match entry {
        Entry::Linux64(..) => long_mode(&mut sregs),
        Entry::Pvh(_) => protected_mode(&mut sregs),
    }
    vcpu.set_sregs(&sregs)
}

/// 64-bit mode with paging, as the 64-bit boot protocol wants it.
fn long_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, code_64());
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.cr3 = layout::BOOT_PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
}

/// 32-bit protected mode without paging, as PVH wants it.
fn protected_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, kvm_segment { l: 0, db: 1, ..code_64() });
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
}

fn set_segments(sregs: &mut kvm_sregs, code: kvm_segment) {
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data();
    }
    sregs.tr = tss();
}

fn code_64() -> kvm_segment {
    kvm_segment { selector: CODE_SELECTOR, type_: 0b1011, l: 1, ..flat() }
}

fn data() -> kvm_segment {
    kvm_segment { selector: DATA_SELECTOR, type_: 0b0011, db: 1, ..flat() }
}

fn flat() -> kvm_segment {
    kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() }
}

fn tss() -> kvm_segment {
    kvm_segment { selector: TSS_SELECTOR, limit: 0x67, type_: 0b1011, present: 1, ..Default::default() }
}

/// The descriptor of a segment with base 0 (SDM vol. 3 §3.4.5).
fn segment_descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
    (limit & 0xffff) | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [
        msr(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        // Without it Linux takes all RAM for uncached.
        msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?;
    let set = vcpu.set_msrs(&msrs)?;
    if set == entries.len() { Ok(()) } else { Err(kvm_ioctls::Error::new(libc::EINVAL)) }
}

/// LINT0 takes the legacy PIC's interrupts and LINT1 the NMI, as firmware leaves them (MP specification §3.6.2.2).
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = vcpu.get_lapic()?;
    for (register, value) in [(APIC_LVT_LINT0, APIC_MODE_EXTINT), (APIC_LVT_LINT1, APIC_MODE_NMI)] {
        for (byte, value) in lapic.regs.iter_mut().skip(register).zip(value.to_le_bytes()) {
            *byte = value.cast_signed();
        }
    }
    vcpu.set_lapic(&lapic)
}

/// What KVM supports, with CPU `id`'s place in a flat topology: one package, one thread a core.
///
/// # Errors
/// What KVM says.
pub fn cpuid(kvm: &Kvm, id: u8, cpus: u8) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    let has_tsc_deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    let apic_id_bits = u32::from(cpus.max(1)).next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        place_in_topology(entry, u32::from(id), u32::from(cpus), apic_id_bits);
        if entry.function == 1 {
            // KVM emulates the timer whether or not it lists it (Documentation/virt/kvm/api.rst, KVM_GET_SUPPORTED_CPUID).
            entry.ecx |= u32::from(has_tsc_deadline_timer) << 24;
            entry.ecx |= 1 << 31;
        }
    }
    Ok(cpuid)
}

fn place_in_topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, cpus: u32, apic_id_bits: u32) {
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ebx = entry.ebx & 0xffff | cpus << 16 | apic_id << 24;
            entry.edx = entry.edx & !(1 << 28) | u32::from(cpus > 1) << 28;
        }
        (0x4, _) => {
            let cores = (1u32 << apic_id_bits) - 1;
            entry.eax = entry.eax & 0x3fff | cores.min(0x3f) << 26;
        }
        (0xb | 0x1f, index) => {
            let (shift, count, kind) = match index {
                0 => (0, 1, 1),
                1 => (apic_id_bits, cpus, 2),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = count;
            entry.ecx = index | kind << 8;
            entry.edx = apic_id;
        }
        (0x8000_0008, _) => entry.ecx = (cpus - 1) | apic_id_bits << 12,
        (0x8000_001e, _) => {
            entry.eax = apic_id;
            entry.ebx = apic_id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}
