//! Kernel modules that are needed, in the order in which they can be inserted.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::elf::{Elf, ElfError};

/// What only some containers need, where the kernel has it: the agent inserts it for them.
const ON_DEMAND: [&str; 1] = ["tun"];
/// The largest module taken, bytes uncompressed.
const MAX_MODULE: u64 = 64 << 20;
/// Directories nest this deep under `kernel/` at most.
const MAX_DEPTH: u32 = 12;

/// A module is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The modules' directory cannot be read.
    #[error("cannot read '{}'", .path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A module is neither there nor built in.
    #[error("the kernel has no module '{0}'")]
    Missing(String),
    /// It is not a module.
    #[error("'{}' is not a kernel module", .path.display())]
    Elf {
        /// What.
        path: PathBuf,
        /// Why.
        source: ElfError,
    },
}

/// A module, uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its file's name, without what says how it was compressed.
    pub file: String,
    /// What is inserted.
    pub bytes: Vec<u8>,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ModuleError + '_ {
    move |source| ModuleError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Reads the wanted modules of `lib/modules/<release>` and what they depend on, in an order
/// in which they can be inserted. What is built into the kernel needs none.
///
/// # Errors
/// See [`ModuleError`].
pub fn collect(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>, ModuleError> {
    let mut found = BTreeMap::new();
    index(&directory.join("kernel"), MAX_DEPTH, &mut found)?;
    let builtin = directory.join("modules.builtin");
    let builtin = std::fs::read_to_string(&builtin).map_err(io_error(&builtin))?;
    let builtin: BTreeSet<String> = builtin
        .lines()
        .filter_map(|line| module_name(Path::new(line)))
        .collect();
    let mut collected = Collected {
        found,
        builtin,
        seen: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in wanted {
        collected.add(name)?;
    }
    for name in ON_DEMAND {
        if collected.found.contains_key(name) {
            collected.add(name)?;
        }
    }
    Ok(collected.modules)
}

/// Whether a module's file is left to the agent to insert.
pub(crate) fn is_on_demand(file: &str) -> bool {
    ON_DEMAND
        .iter()
        .any(|name| file.strip_suffix(".ko") == Some(*name))
}

struct Collected {
    found: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Collected {
    /// Adds a module after those it depends on. The kernel's build refuses cycles; one in a
    /// damaged package ends at what was seen.
    fn add(&mut self, name: &str) -> Result<(), ModuleError> {
        if self.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self
            .found
            .get(name)
            .cloned()
            .ok_or_else(|| ModuleError::Missing(name.to_owned()))?;
        let bytes = read(&path).map_err(io_error(&path))?;
        let needed = dependencies(&bytes).map_err(|source| ModuleError::Elf {
            path: path.clone(),
            source,
        })?;
        for dependency in needed {
            self.add(&dependency)?;
        }
        self.modules.push(Module {
            file: format!("{name}.ko"),
            bytes,
        });
        Ok(())
    }
}

/// The name under which the kernel knows a module file.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, _) = file.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}

fn index(
    directory: &Path,
    depth: u32,
    found: &mut BTreeMap<String, PathBuf>,
) -> Result<(), ModuleError> {
    for entry in std::fs::read_dir(directory).map_err(io_error(directory))? {
        let entry = entry.map_err(io_error(directory))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(io_error(&path))?;
        if kind.is_dir() && depth > 0 {
            index(&path, depth - 1, found)?;
        } else if let Some(name) = module_name(&path) {
            found.insert(name, path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    let length = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => liblzma::read::XzDecoder::new(file)
            .take(MAX_MODULE + 1)
            .read_to_end(&mut bytes),
        Some("zst") => zstd::stream::read::Decoder::new(file)?
            .take(MAX_MODULE + 1)
            .read_to_end(&mut bytes),
        Some("gz") => flate2::read::GzDecoder::new(file)
            .take(MAX_MODULE + 1)
            .read_to_end(&mut bytes),
        _ => file.take(MAX_MODULE + 1).read_to_end(&mut bytes),
    }?;
    if u64::try_from(length).is_ok_and(|length| length <= MAX_MODULE) {
        Ok(bytes)
    } else {
        Err(io::Error::other("it is larger than 64 MiB"))
    }
}

/// What a module says it depends on, by the kernel's names.
fn dependencies(module: &[u8]) -> Result<Vec<String>, ElfError> {
    let info = Elf::new(module)?
        .section(b".modinfo")
        .ok_or(ElfError::NotElf)?;
    Ok(info
        .split(|byte| *byte == 0)
        .filter_map(|field| field.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect())
}
