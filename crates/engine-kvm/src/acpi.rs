//! The ACPI tables: as little as a stock kernel needs to find its CPUs, its virtio devices
//! and the registers by which it powers off and resets (ACPI 6.4, hardware-reduced).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
    ZERO,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::layout;

const OEM: [u8; 6] = *b"BULKHD";
const OEM_TABLE: [u8; 8] = *b"BULKHEAD";

/// SLP_TYP of the state S5, ours to choose; the guest reads it from `\_S5`.
pub(crate) const POWER_OFF: u8 = 5;

/// What is written to the reset register.
pub(crate) const RESET: u8 = 1;

/// Bytes of a table's header.
const HEADER: u32 = 36;

/// `iapc_boot_arch`: no VGA, and no CMOS clock (table 5.10).
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// What the tables tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Platform {
    /// CPUs, with their local APICs numbered from 0.
    pub(crate) cpus: u8,
    /// Virtio devices.
    pub(crate) devices: usize,
    /// Whether the serial port is for the kernel's driver; its early console needs no word.
    pub(crate) serial: bool,
}

/// All tables, to be put at [`layout::ACPI`]. The RSDP is the first one.
pub(crate) fn tables(platform: Platform) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(16)];
    let dsdt = append(&mut bytes, dsdt(platform).as_slice());
    let fadt = append(&mut bytes, &encoded(&fadt(dsdt)));
    let madt = append(&mut bytes, &encoded(&madt(platform.cpus)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut bytes, &encoded(&xsdt));
    let rsdp = encoded(&Rsdp::new(OEM, xsdt));
    bytes.splice(..rsdp.len(), rsdp);
    bytes
}

/// Puts a table behind the others; its address.
fn append(bytes: &mut Vec<u8>, table: &[u8]) -> u64 {
    let offset = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    bytes.extend_from_slice(table);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    layout::ACPI.saturating_add(offset)
}

fn encoded(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> FADT {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // No button is a fixed one; there are none.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(layout::RESET);
    fadt.reset_value = RESET;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, apic);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn dsdt(platform: Platform) -> Sdt {
    let state = Package::new(vec![&POWER_OFF, &ZERO, &ZERO, &ZERO]);
    let mut body = encoded(&Name::new(Path::new("_S5_"), &state));
    let mut children = Vec::new();
    if platform.serial {
        children.extend(serial_port());
    }
    let devices = (0..platform.devices).map_while(layout::device);
    for (index, (address, gsi)) in devices.enumerate() {
        children.extend(virtio_device(index, address, gsi));
    }
    body.extend(Scope::raw(Path::new("_SB_"), children));
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&body);
    dsdt
}

/// An edge-triggered interrupt of one device.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial_port() -> Vec<u8> {
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8);
    encoded(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&ports, &interrupt(layout::SERIAL_GSI)]),
            ),
        ],
    ))
}

/// What Linux's virtio_mmio driver looks for, `drivers/virtio/virtio_mmio.c`.
fn virtio_device(index: usize, address: u64, gsi: u32) -> Vec<u8> {
    // Devices are in the gap below 4 GiB.
    let narrow = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
    let registers = Memory32Fixed::new(true, narrow(address), narrow(layout::DEVICE_SIZE));
    encoded(&Device::new(
        Path::new(&format!("VR{index:02}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&registers, &interrupt(gsi)]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLATFORM: Platform = Platform {
        cpus: 3,
        devices: layout::MAX_DEVICES,
        serial: true,
    };

    /// A table in the memory that begins at [`layout::ACPI`].
    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let at = usize::try_from(address - layout::ACPI).unwrap();
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        let table = &bytes[at..at + usize::try_from(length).unwrap()];
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {:?}", &table[..4]);
        table
    }

    fn address(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_and_adds_up() {
        let bytes = tables(PLATFORM);
        assert!(layout::ACPI + u64::try_from(bytes.len()).unwrap() < layout::RESET_VECTOR);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
        let xsdt = table(&bytes, address(&bytes[24..]));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&bytes, address(&xsdt[36..]));
        assert_eq!(&fadt[..4], b"FACP");
        let dsdt = table(&bytes, address(&fadt[140..]));
        assert_eq!(&dsdt[..4], b"DSDT");
        let madt = table(&bytes, address(&xsdt[44..]));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
    }

    /// The reference compiler takes the tables apart and finds what was put in.
    #[test]
    fn the_reference_disassembler_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = tables(PLATFORM);
        let xsdt = table(&bytes, address(&bytes[24..]));
        let fadt = table(&bytes, address(&xsdt[36..]));
        let dsdt = table(&bytes, address(&fadt[140..]));
        std::fs::write(directory.path().join("dsdt.dat"), dsdt).unwrap();
        let output = std::process::Command::new("iasl")
            .args(["-d", "dsdt.dat"])
            .current_dir(directory.path())
            .output();
        let output = match output {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("not run: there is no iasl (Debian: acpica-tools)");
                return;
            }
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{output:?}");
        let text = std::fs::read_to_string(directory.path().join("dsdt.dsl")).unwrap();
        assert_eq!(text.matches("\"LNRO0005\"").count(), layout::MAX_DEVICES);
        for wanted in ["0xD0014000", "Name (_S5, Package", "PNP0501"] {
            assert!(text.contains(wanted), "{wanted} is not in {text}");
        }
    }
}
