//! What the kernel is told at entry: the zero page (Linux boot protocol) or `hvm_start_info` (PVH).

use devices::GuestMemory;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::Cmdline;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Address, GuestAddress, GuestMemory as _, GuestMemoryRegion};

use super::Error;
use super::initramfs::Initramfs;
use super::kernel::{Entry, Loaded};
use crate::layout;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
/// "Undefined" boot loader type (boot.rst, field `type_of_loader`).
const LOADER_UNDEFINED: u8 = 0xff;
const PVH_MAGIC: u32 = 0x336e_c578;

/// Writes the parameters that go with how the kernel is entered.
pub(super) fn write(
    memory: &GuestMemory,
    loaded: &Loaded,
    initramfs: Option<Initramfs>,
    cmdline: &Cmdline,
    rsdp: GuestAddress,
) -> Result<(), Error> {
    let written = match loaded.entry {
        Entry::Linux64(_, header) => write_boot_params(memory, header, initramfs, cmdline, rsdp),
        Entry::Pvh(_) => write_start_info(memory, initramfs, rsdp),
    };
    written.map_err(|error| Error::Write { what: "the boot parameters", reason: error.to_string() })
}

/// The memory map: (start, length, E820 type).
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_RAM_END, E820_RAM),
        (layout::LOW_RAM_END, layout::KERNEL - layout::LOW_RAM_END, E820_RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(layout::KERNEL);
        let end = region.start_addr().raw_value() + region.len();
        map.push((start, end.saturating_sub(start), E820_RAM));
    }
    map
}

fn write_boot_params(
    memory: &GuestMemory,
    header: setup_header,
    initramfs: Option<Initramfs>,
    cmdline: &Cmdline,
    rsdp: GuestAddress,
) -> Result<(), linux_loader::configurator::Error> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp.raw_value(), ..Default::default() };
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low(layout::CMDLINE);
    params.hdr.cmdline_size =
        cmdline.as_cstring().map_or(0, |text| u32::try_from(text.as_bytes().len()).unwrap_or(0));
    if let Some(initramfs) = initramfs {
        params.hdr.ramdisk_image = low(initramfs.start.raw_value());
        params.hdr.ramdisk_size = low(initramfs.len_bytes);
    }
    let map = memory_map(memory);
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    let mut table = params.e820_table;
    for (entry, (addr, size, type_)) in table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, type_ };
    }
    params.e820_table = table;
    let params = BootParams::new(&params, GuestAddress(layout::BOOT_PARAMS));
    LinuxBootConfigurator::write_bootparams(&params, memory)
}

fn write_start_info(
    memory: &GuestMemory,
    initramfs: Option<Initramfs>,
    rsdp: GuestAddress,
) -> Result<(), linux_loader::configurator::Error> {
    let map: Vec<_> = memory_map(memory)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry { addr, size, type_, reserved: 0 })
        .collect();
    let modules: Vec<_> = initramfs
        .iter()
        .map(|initramfs| hvm_modlist_entry {
            paddr: initramfs.start.raw_value(),
            size: initramfs.len_bytes,
            ..Default::default()
        })
        .collect();
    let start_info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: u32::try_from(modules.len()).unwrap_or(0),
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp.raw_value(),
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::PVH_START_INFO));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(layout::PVH_MODULES));
    PvhBootConfigurator::write_bootparams(&params, memory)
}

/// An address or length that is known to lie below 4 GiB: the low RAM ends at 3 GiB.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}
