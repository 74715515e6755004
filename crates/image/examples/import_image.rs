//! Imports or loads an archive into a store and prints the image IDs: what `docker import` and
//! `docker load` cost without a daemon.
//!
//! `import_image import|load <tar> <data root>`

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use bulkhead_image::{ImageError, ImageId, ImageStore, ImportOptions};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, tar, root] = &arguments[..] else {
        return fail("usage: import_image import|load <tar> <data root>");
    };
    let mut source = match File::open(tar) {
        Ok(source) => source,
        Err(error) => return fail(format!("{tar}: {error}")),
    };
    match run(verb, &mut source, Path::new(root)) {
        Ok(ids) => {
            for id in ids {
                // A closed pipe is no failure of the import.
                let _ = writeln!(std::io::stdout(), "{id}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(error.full_message()),
    }
}

fn run(verb: &str, source: &mut File, root: &Path) -> Result<Vec<ImageId>, ImageError> {
    let store = ImageStore::open(root)?;
    if verb == "load" {
        let loaded = store.load(source, &|_| {})?;
        return Ok(loaded.into_iter().map(|image| image.id).collect());
    }
    Ok(vec![store.import(
        source,
        &ImportOptions::default(),
        &|_| {},
    )?])
}

fn fail(why: impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "import_image: {why}");
    ExitCode::FAILURE
}
