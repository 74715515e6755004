//! Where things are in the guest's physical address space. Pure arithmetic.
//!
//! ```text
//! 0                 start info, memory map, command line (low memory, below the hole)
//! 0x0009_fc00       reserved up to 1 MiB; the ACPI tables are in there
//! 0x0010_0000       memory; the kernel goes where it was linked for, the initramfs last
//! 0xc000_0000       no memory: devices and interrupt controllers
//! 0x1_0000_0000     the rest of the memory
//! ```

/// Memory is handed out in these units, bytes: a large page.
pub(crate) const MEMORY_UNIT: u64 = 2 << 20;

/// Where a guest finds what PVH tells it, `xen/interface/hvm/start_info.h`.
pub(crate) const START_INFO: u64 = 0x6000;
/// The list of modules, which is the initramfs.
pub(crate) const MODULES: u64 = 0x6100;
/// The memory map.
pub(crate) const MEMORY_MAP: u64 = 0x6200;
/// The command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line with its NUL, bytes: the kernel's COMMAND_LINE_SIZE on x86.
pub(crate) const COMMAND_LINE_SIZE: usize = 2048;

/// What is conventional memory below the place where PCs have their firmware.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The ACPI tables, where PCs have theirs.
pub(crate) const ACPI: u64 = 0xe_0000;
/// Where a CPU that is reset in real mode begins, f000:fff0.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// Where memory begins again.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

/// Below 4 GiB there is memory up to here.
const GAP: u64 = 0xc000_0000;
/// And from here on.
const GAP_END: u64 = 1 << 32;

/// The first device; each has a page.
const DEVICES: u64 = 0xd000_0000;
/// Bytes that a device occupies.
pub(crate) const DEVICE_SIZE: u64 = 0x1000;

/// The I/O APIC, which KVM emulates there.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// The local APIC of every CPU.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that Intel's CPUs need for real mode, and one for an identity map.
pub(crate) const TSS: usize = 0xfffb_d000;
/// See [`TSS`].
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;

/// The serial port.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt.
pub(crate) const SERIAL_GSI: u32 = 4;
/// ACPI's sleep control register, then its sleep status register, then the reset register.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
/// See [`SLEEP_CONTROL`].
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// See [`SLEEP_CONTROL`].
pub(crate) const RESET: u16 = 0x602;

/// Inputs of the I/O APIC that devices get. Left out are those that the kernel treats
/// differently on a PC: the timer's (0, 2) and the serial port's.
const GSIS: [u32; 21] = [
    5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 1, 3, 8,
];

/// Most devices of a machine.
pub(crate) const MAX_DEVICES: usize = GSIS.len();

/// A piece of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Guest physical address.
    pub(crate) start: u64,
    /// Its length, bytes.
    pub(crate) bytes: u64,
}

/// Where `bytes` of memory are.
pub(crate) fn memory(bytes: u64) -> Vec<Range> {
    let low = Range {
        start: 0,
        bytes: bytes.min(GAP),
    };
    match bytes.checked_sub(GAP) {
        None | Some(0) => vec![low],
        Some(rest) => vec![
            low,
            Range {
                start: GAP_END,
                bytes: rest,
            },
        ],
    }
}

/// The end of the memory below 4 GiB.
pub(crate) fn low_end(bytes: u64) -> u64 {
    bytes.min(GAP)
}

/// The memory map that the guest is told: start, length, whether it is memory.
pub(crate) fn memory_map(bytes: u64) -> Vec<(u64, u64, bool)> {
    let mut map = vec![
        (0, CONVENTIONAL_END, true),
        (CONVENTIONAL_END, HIGH_MEMORY - CONVENTIONAL_END, false),
        (
            HIGH_MEMORY,
            low_end(bytes).saturating_sub(HIGH_MEMORY),
            true,
        ),
    ];
    map.extend(
        memory(bytes)
            .iter()
            .skip(1)
            .map(|range| (range.start, range.bytes, true)),
    );
    map
}

/// Where the n-th device is, and its interrupt.
pub(crate) fn device(index: usize) -> Option<(u64, u32)> {
    let gsi = *GSIS.get(index)?;
    let index = u64::try_from(index).ok()?;
    Some((DEVICES + index * DEVICE_SIZE, gsi))
}

/// Which device an address belongs to, and where in it that is.
pub(crate) fn device_at(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(DEVICES)?;
    let index = usize::try_from(offset / DEVICE_SIZE).ok()?;
    (index < MAX_DEVICES).then_some((index, offset % DEVICE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_gap_out() {
        assert_eq!(memory(GAP).len(), 1);
        let ranges = memory(5 << 30);
        assert_eq!(ranges.iter().map(|range| range.bytes).sum::<u64>(), 5 << 30);
        assert_eq!(ranges[1].start, GAP_END);
        assert_eq!(ranges[0].bytes, GAP);
        let map = memory_map(5 << 30);
        assert!(
            map.windows(2)
                .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
        );
    }

    #[test]
    fn devices_are_where_their_addresses_lead() {
        let mut gsis = std::collections::HashSet::new();
        for index in 0..MAX_DEVICES {
            let (address, gsi) = device(index).unwrap();
            assert!(gsis.insert(gsi) && gsi < 24 && gsi != SERIAL_GSI);
            assert_eq!(device_at(address + 0x50), Some((index, 0x50)));
        }
        assert_eq!(device(MAX_DEVICES), None);
        assert_eq!(device_at(DEVICES - 1), None);
        let end = DEVICES + DEVICE_SIZE * u64::try_from(MAX_DEVICES).unwrap();
        assert_eq!(device_at(end), None);
    }
}
