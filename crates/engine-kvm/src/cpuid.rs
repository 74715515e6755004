//! What the guest's CPUs say about themselves: what KVM supports, with the machine's own
//! topology, and without what a container's VM has no business with. Pure.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Most entries that KVM takes.
pub(crate) const MAX_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

/// KVM's own leaves begin here.
const HYPERVISOR: u32 = 0x4000_0000;
/// Frequencies, as other hypervisors tell them too.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// How fast the local APIC's timer counts under KVM, kHz (`APIC_BUS_CYCLE_NS` is 1).
const APIC_KHZ: u32 = 1_000_000;

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const PERFORMANCE_CAPABILITIES: u32 = 1 << 15;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1, EDX: the count of logical CPUs is meaningful.
const HTT: u32 = 1 << 28;
/// Leaf 7, EBX.
const SGX: u32 = 1 << 2;
/// Leaf 7, EDX: AMX's tiles and their number formats; further ones in sub-leaf 1, EAX and EDX.
const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
const AMX_FP16: u32 = 1 << 21;
const AMX_COMPLEX: u32 = 1 << 8;
/// Leaf 0xd, EAX of sub-leaf 0: the state of AMX's tiles, which are also its sub-leaves.
const TILE_STATES: [u32; 2] = [17, 18];
/// Leaf 0x8000_0001, ECX.
const COMPATIBILITY_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// What XSAVE writes of the x87 and SSE states and its own header, bytes (Intel SDM volume 1,
/// 13.4).
const XSAVE_LEGACY: u32 = 576;

/// What the machine adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// CPUs of the machine: cores of one package, each with one thread.
    pub(crate) cpus: u8,
    /// The time stamp counter's frequency, where it is known.
    pub(crate) tsc_khz: Option<u32>,
    /// Whether KVM emulates the local APIC's deadline timer.
    pub(crate) tsc_deadline: bool,
}

/// The entries for the CPU with this local APIC.
pub(crate) fn entries(
    supported: &[kvm_cpuid_entry2],
    facts: Facts,
    apic: u8,
) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .iter()
        .filter(|entry| !is_left_out(entry))
        .copied()
        .collect();
    let xsave = xsave_size(&entries);
    for entry in &mut entries {
        adapt(entry, facts, apic);
        if (entry.function, entry.index) == (0xd, 0) {
            entry.ecx = xsave;
        }
    }
    entries.extend(topology(facts, apic));
    if let Some(khz) = facts.tsc_khz {
        entries.retain(|entry| entry.function != HYPERVISOR_TIMING);
        entries.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: khz,
            ebx: APIC_KHZ,
            ..Default::default()
        });
    }
    entries.truncate(MAX_ENTRIES);
    entries
}

/// Leaves that are missing, which reads as zeros: performance counters (nothing in a
/// container's VM may watch its neighbours), enclaves, processor trace, nested
/// virtualization, the host's topology, and AMX: a process has to ask the host's kernel for
/// the tiles' state (`ARCH_REQ_XCOMP_GUEST_PERM`), which kernels before 5.17 cannot give, and
/// those before 6.4 offer half of it to those who have not asked, so that guests die of it.
fn is_left_out(entry: &kvm_cpuid_entry2) -> bool {
    matches!(
        entry.function,
        0x0a | 0x0b | 0x12 | 0x14 | 0x1d | 0x1e | 0x1f | 0x8000_000a | 0x8000_0022 | 0x8000_0026
    ) || (entry.function == 0xd && TILE_STATES.contains(&entry.index))
}

/// What XSAVE can write at most, bytes: each state's sub-leaf has its size in EAX and its
/// place in EBX, which is 0 for those that XSAVES alone writes.
fn xsave_size(entries: &[kvm_cpuid_entry2]) -> u32 {
    let states = entries
        .iter()
        .filter(|entry| entry.function == 0xd && entry.index >= 2 && entry.ebx != 0);
    states
        .map(|state| state.ebx.saturating_add(state.eax))
        .fold(XSAVE_LEGACY, u32::max)
}

fn adapt(entry: &mut kvm_cpuid_entry2, facts: Facts, apic: u8) {
    let cpus = u32::from(facts.cpus);
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | cpus << 16 | u32::from(apic) << 24;
            entry.ecx =
                entry.ecx & !(VMX | TSC_DEADLINE | PERFORMANCE_CAPABILITIES) | HYPERVISOR_PRESENT;
            if facts.tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx &= !HTT;
            if cpus > 1 {
                entry.edx |= HTT;
            }
        }
        // Caches: Intel's and AMD's leaf have the same layout.
        0x4 | 0x8000_001d => {
            let kind = entry.eax & 0x1f;
            let level = entry.eax >> 5 & 0x7;
            // Caches up to the second level are a core's own, the third is the package's.
            let sharing = if level >= 3 { cpus - 1 } else { 0 };
            if kind != 0 {
                entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
                if entry.function == 0x4 {
                    entry.eax = entry.eax & !(0x3f << 26) | (cores_field(cpus)) << 26;
                }
            }
        }
        0x7 if entry.index == 0 => {
            entry.ebx &= !SGX;
            entry.edx &= !AMX;
        }
        0x7 if entry.index == 1 => {
            entry.eax &= !AMX_FP16;
            entry.edx &= !AMX_COMPLEX;
        }
        0xd if entry.index == 0 => {
            for state in TILE_STATES {
                entry.eax &= !(1 << state);
            }
        }
        HYPERVISOR => entry.eax = HYPERVISOR_TIMING,
        0x8000_0001 => {
            entry.ecx &= !(SVM | COMPATIBILITY_LEGACY | AMD_COUNTERS);
            if cpus > 1 {
                entry.ecx |= COMPATIBILITY_LEGACY;
            }
        }
        0x8000_0008 => entry.ecx = (cpus - 1) | (width(cpus) << 12),
        0x8000_001e => {
            entry.eax = u32::from(apic);
            entry.ebx = u32::from(apic);
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Leaf 4's number of core IDs in the package less one, which has six bits.
fn cores_field(cpus: u32) -> u32 {
    (cpus.next_power_of_two() - 1).min(0x3f)
}

/// Bits that a number below `cpus` needs.
fn width(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Leaf 0xb: levels of the topology.
fn topology(facts: Facts, apic: u8) -> [kvm_cpuid_entry2; 3] {
    /// Level types.
    const THREAD: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let cpus = u32::from(facts.cpus);
    let level = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | kind,
        edx: u32::from(apic),
        ..Default::default()
    };
    [
        level(0, 0, 1, THREAD),
        level(1, width(cpus), cpus, CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    fn made(function: u32, cpus: u8, apic: u8) -> Vec<kvm_cpuid_entry2> {
        let facts = Facts {
            cpus,
            tsc_khz: Some(2_600_000),
            tsc_deadline: false,
        };
        entries(&[entry(function)], facts, apic)
            .into_iter()
            .filter(|entry| entry.function == function)
            .collect()
    }

    #[test]
    fn a_guest_is_no_host() {
        assert_eq!(made(1, 1, 0)[0].ecx & (VMX | TSC_DEADLINE), 0);
        assert_ne!(made(1, 1, 0)[0].ecx & HYPERVISOR_PRESENT, 0);
        assert_eq!(made(0x8000_0001, 1, 0)[0].ecx & SVM, 0);
        for left_out in [0xa, 0x12, 0x14, 0x8000_000a] {
            assert!(made(left_out, 1, 0).is_empty());
        }
    }

    #[test]
    fn no_tiles_and_no_counters() {
        let state = |index: u32, eax: u32, ebx: u32| kvm_cpuid_entry2 {
            function: 0xd,
            index,
            eax,
            ebx,
            ..Default::default()
        };
        // As Sapphire Rapids has it: AVX, AVX-512, PKRU, and the tiles, the largest and last.
        let mut supported = vec![entry(1), entry(7), entry(0x1d), entry(0x1e)];
        supported.push(kvm_cpuid_entry2 {
            index: 1,
            ..entry(7)
        });
        supported.push(entry(0x8000_0001));
        supported.push(kvm_cpuid_entry2 {
            ecx: 11008,
            ..state(0, 0x0006_02e7, 0)
        });
        supported.extend([
            state(1, 0x1f, 0),
            state(2, 256, 576),
            state(7, 1024, 1664),
            state(9, 8, 2688),
            state(11, 16, 0),
            state(17, 64, 2752),
            state(18, 8192, 2816),
        ]);
        let facts = Facts {
            cpus: 1,
            tsc_khz: None,
            tsc_deadline: true,
        };
        let entries = entries(&supported, facts, 0);
        let found = |function: u32, index: u32| {
            entries
                .iter()
                .find(|entry| (entry.function, entry.index) == (function, index))
        };
        let states = found(0xd, 0).unwrap();
        assert_eq!((states.eax, states.ecx), (0x2e7, 2696));
        assert!(found(0xd, 9).is_some() && found(0xd, 11).is_some());
        for (function, index) in [(0xd, 17), (0xd, 18), (0x1d, 0), (0x1e, 0)] {
            assert!(found(function, index).is_none(), "{function:#x}.{index}");
        }
        assert_eq!(found(7, 0).unwrap().edx, !AMX);
        assert_eq!(found(7, 1).unwrap().eax, !AMX_FP16);
        assert_eq!(found(7, 1).unwrap().edx, !AMX_COMPLEX);
        assert_eq!(found(1, 0).unwrap().ecx & PERFORMANCE_CAPABILITIES, 0);
        assert_eq!(found(0x8000_0001, 0).unwrap().ecx & AMD_COUNTERS, 0);
    }

    #[test]
    fn every_cpu_knows_its_number_and_their_count() {
        assert_eq!(made(1, 3, 2)[0].ebx >> 16, 0x0203);
        let levels = made(0xb, 3, 2);
        assert_eq!(levels.len(), 3);
        assert!(levels.iter().all(|level| level.edx == 2));
        // Two bits number three cores.
        assert_eq!((levels[1].eax, levels[1].ebx), (2, 3));
        assert_eq!(levels[1].ecx, 0x201);
        assert_eq!(made(0x8000_0008, 3, 2)[0].ecx, 0x2002);
        assert_eq!(made(1, 1, 0)[0].edx & HTT, 0);
    }

    #[test]
    fn kvm_tells_frequencies() {
        assert_eq!(made(HYPERVISOR, 1, 0)[0].eax, HYPERVISOR_TIMING);
        assert_eq!(made(HYPERVISOR_TIMING, 1, 0)[0].eax, 2_600_000);
    }
}
