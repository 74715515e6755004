//! Writes every target's seeds below a directory, one file each, for a fuzzer to start from.
//!
//! ```text
//! cargo run --package bulkhead-fuzz-targets --example seeds -- fuzz/corpus
//! ```

use std::io;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let Some(corpus) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::other("which directory?"));
    };
    for target in bulkhead_fuzz_targets::TARGETS {
        let directory = corpus.join(target.name);
        std::fs::create_dir_all(&directory)?;
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
