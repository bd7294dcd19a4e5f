//! ACPI tables of a hardware-reduced machine (ACPI 6.5 §5.2): RSDP, XSDT, FADT, MADT, DSDT.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use devices::{GuestMemory, acpi as registers, pci, pvpanic, serial};
use vm_memory::{Bytes, GuestAddress};

use super::Error;
use crate::layout;

const OEM_ID: [u8; 6] = *b"LATERN";
const OEM_TABLE_ID: [u8; 8] = *b"LATERNA ";
const OEM_REVISION: u32 = 1;
const SDT_HEADER_LEN: u32 = 36;

/// IA-PC boot architecture flags (§5.2.9.3): no VGA, no CMOS clock. Neither an 8042 nor legacy devices, by their absence.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_CMOS_RTC: u16 = 1 << 5;

/// Writes the tables; returns where the RSDP is.
///
/// # Errors
/// When they do not fit into their place.
pub fn write(memory: &GuestMemory, cpus: u8) -> Result<GuestAddress, Error> {
    let rsdp = GuestAddress(layout::ACPI_TABLES);
    let mut tables = Tables { memory, next: layout::ACPI_TABLES + Rsdp::len() as u64 };
    let dsdt = tables.add(&dsdt())?;
    let fadt = tables.add(&fadt(dsdt))?;
    let madt = tables.add(&madt(cpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&xsdt)?;
    let bytes = aml_bytes(&Rsdp::new(OEM_ID, xsdt));
    memory.write_slice(&bytes, rsdp).map_err(Error::write("the RSDP"))?;
    Ok(rsdp)
}

struct Tables<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Tables<'_> {
    fn add(&mut self, table: &dyn Aml) -> Result<u64, Error> {
        let bytes = aml_bytes(table);
        let start = self.next.next_multiple_of(16);
        self.next = start + bytes.len() as u64;
        if self.next > layout::ACPI_TABLES_END {
            return Err(Error::Write {
                what: "the ACPI tables",
                reason: "they outgrew their place".to_owned(),
            });
        }
        self.memory.write_slice(&bytes, GuestAddress(start)).map_err(Error::write("an ACPI table"))?;
        Ok(start)
    }
}

fn aml_bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    aml.to_aml_bytes(&mut bytes as &mut dyn AmlSink);
    bytes
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |offset: u64| {
        GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, layout::POWER_PORTS + offset)
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS_RTC).into();
    fadt.reset_reg = port(registers::RESET_OFFSET);
    fadt.reset_value = registers::RESET_VALUE;
    fadt.sleep_control_reg = port(registers::SLEEP_CONTROL_OFFSET);
    fadt.sleep_status_reg = port(registers::SLEEP_STATUS_OFFSET);
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let controller = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, controller);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER_LEN, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for bytes in [pci_bridge(), serial_port(), power_button(), event_device(), pvpanic_device(), soft_off()] {
        dsdt.append_slice(&bytes);
    }
    dsdt
}

/// A device in `\_SB_`.
fn device(name: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    let device = Device::new(Path::new(name), children);
    aml_bytes(&Scope::new(Path::new("\\_SB_"), vec![&device]))
}

fn pci_bridge() -> Vec<u8> {
    let [ports, window, window_end] =
        [pci::PciRoot::PORTS_BASE, layout::PCI_WINDOW, layout::PCI_WINDOW + layout::PCI_WINDOW_LEN - 1]
            .map(|value| u32::try_from(value).unwrap_or(0));
    let ports = u16::try_from(ports).unwrap_or(0);
    device(
        "PCI0",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &IO::new(ports, ports, 1, 8),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        window,
                        window_end,
                        None::<u32>,
                    ),
                ]),
            ),
        ],
    )
}

fn edge_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial_port() -> Vec<u8> {
    let port = u16::try_from(layout::SERIAL_PORT).unwrap_or(0);
    let len = u8::try_from(serial::LEN).unwrap_or(0);
    let resources = [&IO::new(port, port, 1, len) as &dyn Aml, &edge_interrupt(layout::SERIAL_GSI)];
    device(
        "COM1",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec())),
        ],
    )
}

/// A control method power button: a hardware-reduced machine has no fixed one (§4.8.2.2.1.2).
fn power_button() -> Vec<u8> {
    device(
        "PWRB",
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")), &Name::new(Path::new("_UID"), &ZERO)],
    )
}

/// The Generic Event Device (§5.6.9); its one interrupt means that the power button was pressed.
fn event_device() -> Vec<u8> {
    let pressed: u8 = 0x80;
    let button = Path::new("PWRB");
    device(
        "GED_",
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&edge_interrupt(layout::EVENT_GSI)])),
            &Method::new(Path::new("_EVT"), 1, true, vec![&Notify::new(&button, &pressed)]),
        ],
    )
}

fn pvpanic_device() -> Vec<u8> {
    let port = u16::try_from(layout::PVPANIC_PORT).unwrap_or(0);
    let len = u8::try_from(pvpanic::LEN).unwrap_or(0);
    device(
        "PEVT",
        vec![
            &Name::new(Path::new("_HID"), &pvpanic::ACPI_HID),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&IO::new(port, port, 1, len)])),
        ],
    )
}

fn soft_off() -> Vec<u8> {
    aml_bytes(&Name::new(Path::new("\\_S5_"), &Package::new(vec![&registers::SLEEP_TYPE_S5])))
}
