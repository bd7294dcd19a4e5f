//! The guest's address map: one table, one constant a row.
//!
//! ```text
//! physical addresses
//!   0x0000_0000  RAM: boot data below 640 KiB, kernel from 1 MiB on
//!   0x000a_0000  reserved: ACPI tables from 0x000e_0000 on, the BIOS's reset entry at 0x000f_fff0
//!   0x0010_0000  RAM
//!   0xc000_0000  hole: PCI window, IOAPIC, local APIC, KVM's own pages
//!   0x1_0000_0000  RAM beyond 3 GiB
//! I/O ports
//!   0x3f8 serial   0x505 pvpanic   0x600 sleep and reset registers   0xcf8 PCI configuration
//! ```

/// Where the RAM below the hole ends at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// Global descriptor table of the boot CPU.
pub const BOOT_GDT: u64 = 0x500;
/// `hvm_start_info` (PVH boot), its memory map and its module list.
pub const PVH_START_INFO: u64 = 0x6000;
/// Memory map of the PVH boot.
pub const PVH_MEMORY_MAP: u64 = 0x6100;
/// Module list of the PVH boot.
pub const PVH_MODULES: u64 = 0x6f00;
/// `boot_params`, the "zero page" of the Linux boot protocol.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Page tables of the boot CPU: PML4, PDPT and four page directories that map the first 4 GiB.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Stack of the boot CPU, downwards.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes, its final NUL included (Linux `COMMAND_LINE_SIZE` on x86).
pub const CMDLINE_MAX_LEN: usize = 2048;

/// End of the RAM below the legacy hole.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// ACPI tables, the RSDP first: where firmware-less guests look for it too.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0xf_0000;
/// The BIOS's reset entry, in real mode `f000:fff0`. Linux jumps there to reboot (arch/x86/kernel/reboot.c, `BOOT_BIOS`)
/// when ACPI is hardware-reduced and there is no EFI.
pub const BIOS_RESET: u64 = 0xf_fff0;
/// Where kernels are loaded, and where RAM goes on.
pub const KERNEL: u64 = 0x10_0000;

/// The window of all PCI BARs.
pub const PCI_WINDOW: u64 = 0xc000_0000;
/// Length of the PCI window.
pub const PCI_WINDOW_LEN: u64 = 0x2000_0000;
/// IOAPIC registers (in the kernel's irqchip).
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers (in the kernel's irqchip).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page for KVM's identity map (Intel only).
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for KVM's task state segment (Intel only).
pub const KVM_TSS: u64 = 0xfeff_d000;

/// Serial port COM1.
pub const SERIAL_PORT: u64 = 0x3f8;
/// pvpanic's register.
pub const PVPANIC_PORT: u64 = 0x505;
/// ACPI sleep control, sleep status and reset registers.
pub const POWER_PORTS: u64 = 0x600;

/// IOAPIC pins: serial port.
pub const SERIAL_GSI: u32 = 4;
/// IOAPIC pins: Generic Event Device, that is the power button.
pub const EVENT_GSI: u32 = 5;
/// First GSI that is no IOAPIC pin: message-signalled interrupts start here.
pub const FIRST_MSI_GSI: u32 = 24;
