//! Guests of a few instructions: kernels for tests of what a machine makes of its guest.

/// Where the guests are linked to.
const BASE: u32 = 16 << 20;

/// An ELF kernel of these instructions, 32-bit, with a PVH entry at the first.
///
/// # Panics
/// Never: instructions are fewer than an ELF file can have.
#[must_use]
pub fn kernel(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE: u64 = 12 + 4 + 4;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    let half = |image: &mut Vec<u8>, value: u16| image.extend(value.to_le_bytes());
    let word = |image: &mut Vec<u8>, value: u32| image.extend(value.to_le_bytes());
    let long = |image: &mut Vec<u8>, value: u64| image.extend(value.to_le_bytes());
    half(&mut image, 2);
    half(&mut image, 62);
    word(&mut image, 1);
    long(&mut image, u64::from(BASE));
    long(&mut image, 64);
    long(&mut image, 0);
    word(&mut image, 0);
    for value in [64, 56, 2, 0, 0, 0] {
        half(&mut image, value);
    }
    let length = u64::try_from(code.len()).expect("fits");
    for (kind, offset, size) in [(4, HEADERS, NOTE), (1, HEADERS + NOTE, length)] {
        word(&mut image, kind);
        word(&mut image, 7);
        long(&mut image, offset);
        long(&mut image, u64::from(BASE));
        long(&mut image, u64::from(BASE));
        long(&mut image, size);
        long(&mut image, size);
        long(&mut image, 4);
    }
    for value in [4, 4, 18] {
        word(&mut image, value);
    }
    image.extend(b"Xen\0");
    word(&mut image, BASE);
    image.extend(code);
    image
}

/// What no sane driver asks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsaneRequest {
    /// To write where no memory is.
    Outside,
    /// By a chain of descriptors that has no end.
    Circle,
    /// By more entries than the ring has.
    TooMany,
}

/// Instructions of a driver that asks the entropy device of the kvm engine for bytes in this
/// way, and waits for ever.
#[must_use]
pub fn breaks_a_queue(request: InsaneRequest) -> Vec<u8> {
    const DEVICE: u32 = 0xd000_1000;
    const DESCRIPTORS: u32 = 0x180_0000;
    const AVAILABLE: u32 = 0x180_1000;
    const USED: u32 = 0x180_2000;
    /// Flags of a descriptor.
    const NEXT: u32 = 1;
    const WRITE: u32 = 2;
    let started = [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1), // VIRTIO_F_VERSION_1
        (0x70, 0xb),
        (0x30, 0),
        (0x38, 8),
        (0x80, DESCRIPTORS),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),
        (0x70, 0xf),
    ];
    let (descriptor, available) = match request {
        InsaneRequest::Outside => ([0xffff_f000, 0xffff_ffff, 4096, WRITE], 1),
        InsaneRequest::Circle => ([DESCRIPTORS, 0, 4096, WRITE | NEXT], 1),
        InsaneRequest::TooMany => ([DESCRIPTORS, 0, 4096, WRITE], 100),
    };
    let mut words: Vec<_> = started
        .iter()
        .map(|(register, value)| (DEVICE + register, *value))
        .collect();
    words.extend((DESCRIPTORS..).step_by(4).zip(descriptor));
    // Flags and index; the first entry is zero as all memory is.
    words.push((AVAILABLE, available << 16));
    words.push((DEVICE + 0x50, 0));
    let mut code = writes(&words);
    code.extend([0xeb, 0xfe]); // jmp itself
    code
}

/// Instructions that write words to addresses, one after the other.
fn writes(words: &[(u32, u32)]) -> Vec<u8> {
    // mov dword [address], value
    let write = |(address, value): &(u32, u32)| {
        let (address, value) = (address.to_le_bytes(), value.to_le_bytes());
        [&[0xc7, 0x05], &address[..], &value[..]].concat()
    };
    words.iter().flat_map(write).collect()
}
