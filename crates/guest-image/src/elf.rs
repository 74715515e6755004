//! As much of ELF (System V ABI, 64-bit little-endian) as is needed to look at kernels,
//! modules and the agent. Everything read is bounded by the file.

/// A file is not the ELF that is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not ELF at all, another machine's, or cut short.
    #[error("it is not a 64-bit x86 ELF file")]
    NotElf,
    /// It needs a dynamic loader, which a guest has not.
    #[error("it is not statically linked")]
    Dynamic,
}

const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const MACHINE_X86_64: u16 = 62;

/// An ELF file in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let elf = Self { bytes };
        // Magic, class 64, little-endian, version 1.
        if !bytes.starts_with(b"\x7fELF\x02\x01\x01") || elf.u16(18) != Some(MACHINE_X86_64) {
            return Err(ElfError::NotElf);
        }
        Ok(elf)
    }

    fn slice(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.bytes.get(start..end)
    }

    fn u16(&self, offset: u64) -> Option<u16> {
        Some(u16::from_le_bytes(self.slice(offset, 2)?.try_into().ok()?))
    }

    fn u32(&self, offset: u64) -> Option<u32> {
        Some(u32::from_le_bytes(self.slice(offset, 4)?.try_into().ok()?))
    }

    fn u64(&self, offset: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.slice(offset, 8)?.try_into().ok()?))
    }

    /// The bytes of every segment of this type.
    fn segments(self, wanted: u32) -> impl Iterator<Item = &'a [u8]> {
        let table = self.u64(32).unwrap_or(0);
        let size = u64::from(self.u16(54).unwrap_or(0));
        let count = u64::from(self.u16(56).unwrap_or(0));
        (0..count).filter_map(move |index| {
            let header = table.checked_add(size * index)?;
            (self.u32(header)? == wanted).then_some(())?;
            self.slice(
                self.u64(header.checked_add(8)?)?,
                self.u64(header.checked_add(32)?)?,
            )
        })
    }

    /// The bytes of the section with this name.
    pub(crate) fn section(self, name: &[u8]) -> Option<&'a [u8]> {
        let table = self.u64(40)?;
        let size = u64::from(self.u16(58)?);
        let count = u64::from(self.u16(60)?);
        let section = |index: u64| -> Option<(u32, &'a [u8])> {
            let header = table.checked_add(size.checked_mul(index)?)?;
            let bytes = self.slice(
                self.u64(header.checked_add(24)?)?,
                self.u64(header.checked_add(32)?)?,
            );
            // One without bytes in the file (.bss) may point anywhere.
            Some((self.u32(header)?, bytes.unwrap_or_default()))
        };
        let (_, names) = section(u64::from(self.u16(62)?))?;
        (0..count).filter_map(section).find_map(|(at, bytes)| {
            let found = names.get(usize::try_from(at).ok()?..)?;
            let found = found.split(|byte| *byte == 0).next()?;
            (found == name).then_some(bytes)
        })
    }

    /// Whether there is a note of this owner and type.
    pub(crate) fn has_note(self, owner: &[u8], kind: u32) -> bool {
        self.segments(PT_NOTE)
            .any(|notes| notes_contain(notes, owner, kind))
    }
}

fn notes_contain(mut notes: &[u8], owner: &[u8], kind: u32) -> bool {
    let word = |notes: &[u8], at: usize| -> Option<usize> {
        let bytes = notes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let mut step = || -> Option<bool> {
        let (name, description) = (word(notes, 0)?, word(notes, 4)?);
        let found = word(notes, 8)?;
        // Three words of header.
        let name_end = name.checked_add(12)?;
        let matches = u32::try_from(found) == Ok(kind) && notes.get(12..name_end)? == owner;
        let next = name_end
            .checked_next_multiple_of(4)?
            .checked_add(description.checked_next_multiple_of(4)?)?;
        notes = notes.get(next..)?;
        Some(matches)
    };
    loop {
        match step() {
            Some(true) => return true,
            Some(false) => {}
            None => return false,
        }
    }
}

/// That this is an executable that runs without a dynamic loader.
pub(crate) fn check_static(bytes: &[u8]) -> Result<(), ElfError> {
    let elf = Elf::new(bytes)?;
    if elf.segments(PT_INTERP).next().is_some() {
        return Err(ElfError::Dynamic);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_elf_and_scraps_of_it_do_no_harm() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::new(&bytes).unwrap();
        assert!(elf.section(b".text").is_some_and(|text| !text.is_empty()));
        assert!(elf.section(b".no such section").is_none());
        assert!(elf.has_note(b"GNU\0", 3), "a build ID");
        for length in 0..200 {
            let scrap = bytes.get(..length).unwrap();
            if let Ok(elf) = Elf::new(scrap) {
                assert!(elf.section(b".text").is_none());
                assert!(!elf.has_note(b"GNU\0", 3));
            }
        }
        let mut wild = bytes.get(..4096).unwrap().to_vec();
        for at in (16..64).step_by(2) {
            wild[at] = 0xff;
            wild[18] = 62;
            wild[19] = 0;
            let _ = Elf::new(&wild).map(|elf| {
                let _ = elf.section(b".text");
                let _ = elf.has_note(b"GNU\0", 3);
            });
        }
    }
}
